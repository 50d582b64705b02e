"""A deciding member has one reading, or the JSON body is refused."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from kbctld.core.document import (
    DEPTH_MAX,
    MEMBERS_MAX,
    NUMBER_MAX,
    VALUES_MAX,
    Document,
    DocumentError,
    Json,
    Number,
    read_batch,
    read_document,
)
from kbctld.core.form import AmbiguousFieldError

# --- other readers, as small as they can be --------------------------------------------------------

THOROUGH = settings(max_examples=5000, phases=[Phase.generate])
Pairs = list[tuple[str, Any]]
Reader = Callable[[str, str], object]


def last_wins(raw: str, name: str) -> object:
    """Like Python, JavaScript, PHP, Ruby: a mapping is filled from left to right."""
    return _walk(json.loads(raw), name)


def first_wins(raw: str, name: str) -> object:
    """Like a reader that stops at the first match."""

    def fill(pairs: Pairs) -> dict[str, Any]:
        return dict(reversed(pairs))

    return _walk(json.loads(raw, object_pairs_hook=fill), name)


def folds_case(raw: str, name: str) -> object:
    """Like Go: names compare without case, the last one wins."""

    def fill(pairs: Pairs) -> dict[str, Any]:
        return {key.strip().casefold(): value for key, value in pairs}

    return _walk(json.loads(raw, object_pairs_hook=fill), name.casefold())


def passes_over(raw: str, name: str) -> object:
    """Like Go's second JSON package: dashes and underscores don't count either."""

    def bare(text: str) -> str:
        return re.sub("[_-]", "", text.casefold())

    def fill(pairs: Pairs) -> dict[str, Any]:
        return {bare(key): value for key, value in pairs}

    return _walk(json.loads(raw, object_pairs_hook=fill), bare(name))


def flattens(raw: str, name: str) -> object:
    """Like readers that make one flat mapping of names joined by dots."""
    flat: dict[str, object] = {}

    def fill(value: object, path: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                fill(item, f"{path}.{key}" if path else key)
        else:
            flat[path] = value

    fill(json.loads(raw), "")
    return flat.get(name)


def _walk(value: Any, name: str) -> object:
    for segment in name.split("."):
        value = value.get(segment) if isinstance(value, dict) else None
    return value


READERS: list[Reader] = [last_wins, first_wins, folds_case, passes_over, flattens]
NAMES = ["amount", "metadata.tier", "reply_to"]

# --- the differential -------------------------------------------------------------------------------

KEYS = st.sampled_from(
    "amount amount Amount AMOUNT \\u0061mount amount\\u0020 amounts metadata metadata Metadata metadata.tier "
    "metadata[tier] tier tier Tier reply_to reply_to replyTo reply-to Reply_To \\u212Aey x".split()
)
SCALARS = st.sampled_from('1 2000 2000 "2000" "gold" "gold" "" true null 1e3 2000.0 -0 "\\u0067old"'.split())
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2).map(lambda items: "[" + ",".join(items) + "]")
        | st.lists(st.tuples(KEYS, inner), max_size=3).map(lambda pairs: _write(pairs))
    ),
    max_leaves=4,
)
MEMBERS = (
    st.tuples(KEYS, SCALARS)
    | st.tuples(
        KEYS | st.just("metadata"),
        st.lists(st.tuples(KEYS | st.just("tier"), SCALARS), max_size=3).map(lambda pairs: _write(pairs)),
    )
    | st.tuples(KEYS, VALUES)
)


def _write(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}"


HOSTILE = st.lists(MEMBERS, max_size=5).map(_write)


def ours(raw: str, name: str) -> tuple[bool, tuple[str, ...] | None]:
    """Whether our reading stands, and what it is."""
    try:
        return True, read_document(raw.encode()).values(name)
    except (DocumentError, AmbiguousFieldError):
        return False, None


def said(value: object) -> tuple[str, ...] | None:
    """What another reader found, as ``values`` says it."""
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    return tuple(item if isinstance(item, str) else json.dumps(item) for item in items)


@settings(max_examples=800)
@given(HOSTILE, st.sampled_from(NAMES))
def test_P10_where_we_read_a_member_every_reader_reads_the_same(raw: str, name: str) -> None:
    """A deciding member that we accept, or take as absent, is the same to every other reader."""
    stands, value = ours(raw, name)
    if stands:
        assert {reader.__name__: said(reader(raw, name)) for reader in READERS} == {
            reader.__name__: value for reader in READERS
        }


@settings(max_examples=800)
@given(HOSTILE, st.sampled_from(NAMES))
def test_P10_where_we_see_no_mention_no_reader_sees_the_member(raw: str, name: str) -> None:
    """A document in which we see no deciding member holds none for any reader."""
    try:
        document = read_document(raw.encode())
    except DocumentError:
        return
    if document.mentions([name]) is None:
        assert [reader(raw, name) for reader in READERS] == [None] * len(READERS)


@pytest.mark.parametrize("reader", READERS[1:], ids=lambda reader: str(reader.__name__))
def test_P10_control_two_naive_readers_disagree_on_such_documents(reader: Reader) -> None:
    """The same generator finds a document that Python and this reader read differently: we refuse it."""
    name = {"passes_over": "reply_to", "flattens": "metadata.tier"}.get(reader.__name__, "amount")
    raw = find(HOSTILE, lambda raw: reader(raw, name) != last_wins(raw, name), settings=THOROUGH)
    assert ours(raw, name) == (False, None)


@pytest.mark.parametrize("name", NAMES)
def test_P10_control_the_generator_also_finds_documents_that_we_accept(name: str) -> None:
    """The property is not empty: some generated documents are read, with the member in them."""
    raw = find(HOSTILE, lambda raw: ours(raw, name)[1] is not None, settings=THOROUGH)
    assert said(last_wins(raw, name)) == ours(raw, name)[1]


# --- agreement with a plain parser -------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | TEXTS
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS.filter(lambda key: not re.search(r"[\x00-\x1f\x7f]", key)), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text("abc._", max_size=3), TREES, max_size=4)


def plain(value: Json) -> Any:
    """Our tree as the stdlib's."""
    if isinstance(value, Number):
        return json.loads(value.text)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


@given(OBJECTS, st.booleans(), st.sampled_from([None, 2]))
def test_what_is_valid_reads_as_everywhere(
    tree: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    """Whatever a JSON library writes is read, whole, and as its own reader reads it."""
    raw = json.dumps(tree, ensure_ascii=ascii_only, indent=indent)
    assert plain(dict(read_document(raw.encode()).members)) == json.loads(raw) == tree


@given(st.binary(max_size=40) | st.text('{}[]":,\\u0d8a1e-. tfn', max_size=40).map(str.encode))
def test_P9_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """No bytes raise anything else, and what we take the stdlib takes for the same."""
    try:
        document = read_document(raw)
    except DocumentError:
        return
    assert plain(dict(document.members)) == json.loads(raw)


# --- what is no document -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        pytest.param(b'{"amount":1,"amount":2000}', "name twice", id="twice"),
        pytest.param(b'{"amount":1,"amount":1}', "name twice", id="twice the same"),
        pytest.param(b'{"amount":1,"\\u0061mount":2000}', "name twice", id="twice, once in escapes"),
        pytest.param(b'{"x":[{"y":{"a":1,"a":2}}]}', "name twice", id="twice, deep down"),
        pytest.param(b'{"amount":NaN}', "NaN is no JSON", id="NaN"),
        pytest.param(b'{"amount":Infinity}', "Infinity is no JSON", id="infinity"),
        pytest.param(b'{"amount":-Infinity}', "-Infinity is no JSON", id="minus infinity"),
        pytest.param(b'\xef\xbb\xbf{"amount":1}', "byte order mark", id="a BOM"),
        pytest.param('{"amount":1}'.encode("utf-16"), "UTF-8", id="UTF-16 with a BOM"),
        pytest.param('{"amount":1}'.encode("utf-16-le"), "not JSON", id="UTF-16"),
        pytest.param('{"amount":1}'.encode("utf-32-be"), "not JSON", id="UTF-32"),
        pytest.param(b'{"amount":"\xff"}', "UTF-8", id="not UTF-8"),
        pytest.param(b'{"\xc1\xa1mount":1}', "UTF-8", id="overlong UTF-8"),
        pytest.param(b'{"amount":"\xed\xa0\x80"}', "UTF-8", id="a surrogate in UTF-8"),
        pytest.param(b'{"amount":"\\ud800"}', "surrogate", id="half a pair"),
        pytest.param(b'{"x":[["\\udc00\\ud800"]]}', "surrogate", id="a pair the wrong way round"),
        pytest.param(b'{"amount\\ud800":1}', "surrogate", id="half a pair in a name"),
        pytest.param(b'{"amount\\u0000":1}', "control character", id="NUL in a name"),
        pytest.param(b'{"x":{"a\\u001fb":1}}', "control character", id="a control character in a name"),
        pytest.param(b'{"amount\x7f":1}', "control character", id="DEL in a name"),
        pytest.param(b"[1]", "is an object", id="an array"),
        pytest.param(b'"amount"', "is an object", id="a text"),
        pytest.param(b"5", "is an object", id="a number"),
        pytest.param(b"null", "is an object", id="null"),
        pytest.param(b"", "not JSON", id="nothing"),
        pytest.param(b" ", "not JSON", id="a blank"),
        pytest.param(b'{"amount":1}{"amount":2000}', "not JSON", id="two documents"),
        pytest.param(b'{"amount":1},', "not JSON", id="a comma behind"),
        pytest.param(b'{"amount":1}\x00', "not JSON", id="NUL behind"),
        pytest.param(b'{"amount":1,}', "not JSON", id="a comma too many"),
        pytest.param(b"{'amount':1}", "not JSON", id="single quotes"),
        pytest.param(b"{amount:1}", "not JSON", id="no quotes"),
        pytest.param(b'{"amount":1/*,"amount":2*/}', "not JSON", id="a comment"),
        pytest.param(b'{"amount":01}', "not JSON", id="a leading zero"),
        pytest.param(b'{"amount":+1}', "not JSON", id="a plus"),
        pytest.param(b'{"amount":0x10}', "not JSON", id="a hexadecimal number"),
        pytest.param(b'{"amount":1_000}', "not JSON", id="an underscore"),
        pytest.param(b'{"amount":1.}', "not JSON", id="a point without digits"),
        pytest.param('{"amount":\uff15}'.encode(), "not JSON", id="a full-width digit"),
        pytest.param('{"amount":1\uff15}'.encode(), "not JSON", id="a full-width digit behind"),
        pytest.param('{\u00a0"amount":1}'.encode(), "not JSON", id="a blank that is none"),
        pytest.param(b'{"amount":"a\nb"}', "not JSON", id="a raw newline"),
        pytest.param(b'{"amount":"\\x41"}', "not JSON", id="an escape of C"),
        pytest.param(b'{"amount":"\\u+041"}', "not JSON", id="an escape with a sign"),
        pytest.param(b'{"amount":"\\', "not JSON", id="cut off in an escape"),
        pytest.param(b'{"amount', "not JSON", id="cut off in a name"),
        pytest.param(b'{"a":[[]]]]]]', "not JSON", id="closed too often"),
        pytest.param(b"]" * 100, "not JSON", id="closed and never opened"),
    ],
)
def test_P9_what_some_reader_takes_otherwise_is_an_error(raw: bytes, says: str) -> None:
    """Bytes that parsers repair, cut or merge in their own ways are no document at all."""
    with pytest.raises(DocumentError, match=says):
        read_document(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"amount":1,"\\u0061mount":2000}',
        b'{"amount":NaN}',
        b'\xef\xbb\xbf{"amount":1}',
        b'{"amount":"\\ud800"}',
        b'{"amount\\u0000":1}',
        b"[1]",
    ],
)
def test_P9_control_the_plain_parser_takes_them(raw: bytes) -> None:
    """json.loads lets each of these through."""
    json.loads(raw)
    with pytest.raises(DocumentError):
        read_document(raw)


def test_P9_depth_has_a_bound() -> None:
    """The limit is taken at n and refused at n + 1; beyond the interpreter's own it is the same error."""

    def nested(depth: int) -> bytes:
        return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    read_document(nested(DEPTH_MAX))
    for depth in (DEPTH_MAX + 1, VALUES_MAX):
        with pytest.raises(DocumentError, match="nests at most 32 deep"):
            read_document(nested(depth))
    with pytest.raises(RecursionError):
        json.loads(nested(VALUES_MAX))
    with pytest.raises(DocumentError, match="nests at most 32 deep"):
        read_document(b'{"a":' * (DEPTH_MAX + 1))
    read_document(b'{"a":[' + b"[]," * 100 + b'"' + b"[" * 100 + b'"]}')


def test_P9_members_have_a_bound_over_all_objects() -> None:
    """The limit is taken at n and refused at n + 1, wherever the members stand; texts don't count."""

    def objects(members: int) -> bytes:
        return json.dumps({"x": [{"y": ':":\\":'}] * (members - 1)}).encode()

    assert len(read_document(objects(MEMBERS_MAX)).members) == 1
    with pytest.raises(DocumentError, match=f"at most {MEMBERS_MAX:,} members"):
        read_document(objects(MEMBERS_MAX + 1))


def test_P9_values_have_a_bound() -> None:
    """The limit is taken at n and refused at n + 1; texts don't count."""

    def numbers(values: int) -> bytes:
        return json.dumps({"x": [0] * (values - 2) + ['[,{"\\']}).encode()

    read_document(numbers(VALUES_MAX))
    with pytest.raises(DocumentError, match=f"at most {VALUES_MAX:,} values"):
        read_document(numbers(VALUES_MAX + 1))


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b'{"x":[' + b'"",' * 3_000_000 + b'""]}', id="texts"),
        pytest.param(b'{"x":[' + b"[]," * 3_000_000 + b"[]]}", id="arrays"),
        pytest.param(b'{"x":[' + b"0," * 3_000_000 + b"0]}", id="numbers"),
        pytest.param(b"{" + b'"x":0,' * 1_500_000 + b'"y":0}', id="members"),
        pytest.param(b'{"x":"\\\\","y":[' + b"0," * 3_000_000 + b"0]}", id="numbers behind a backslash"),
        pytest.param(b'{"x":' + b"[" * 9_000_000, id="brackets"),
        pytest.param(b'{"x":[' + b"[]" * 3_000_000, id="arrays without commas"),
    ],
)
def test_P9_a_body_made_to_be_slow_is_refused_before_it_is_parsed(
    raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine megabytes of the dearest tokens cost some passes over the text, and build no elements."""
    monkeypatch.setattr("kbctld.core.document._DECODER", None)
    with pytest.raises(DocumentError, match="at most"):
        read_document(raw)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"]" * 9_000_000, id="closing brackets"),
        pytest.param(b'"' + b'\\"' * 4_500_000, id="escaped quotes"),
        pytest.param(b'{"x":' + b"9" * 9_000_000 + b"}", id="digits"),
        pytest.param(b'{"x"' + b" " * 9_000_000, id="blanks"),
    ],
)
def test_P9_a_long_body_that_is_no_document_is_refused(raw: bytes) -> None:
    """What the counts let through ends where the parser gives up, or before its number is converted."""
    with pytest.raises(DocumentError):
        read_document(raw)


def test_a_number_has_a_bounded_length() -> None:
    """The limit is taken at n and refused at n + 1, before anything converts it."""
    longest = "9" * NUMBER_MAX
    assert read_document(b'{"a":%s}' % longest.encode()).one("a") == longest
    for number in (longest + "9", "0." + "0" * NUMBER_MAX, "1e" + "9" * NUMBER_MAX):
        with pytest.raises(DocumentError, match="at most 40 characters"):
            read_document(b'{"a":[%s]}' % number.encode())


# --- one reading, or none ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        pytest.param('{"Amount":2000}', "amount", id="a capital"),
        pytest.param('{"amount":1,"AMOUNT":2000}', "amount", id="beside capitals"),
        pytest.param('{"amount":1,"\\u0041mount":2000}', "amount", id="beside a capital in escapes"),
        pytest.param('{"to\u212aen":"x"}', "token", id="the Kelvin sign, which Go takes for a k"),
        pytest.param('{"token":"y","to\\u212aen":"x"}', "token", id="beside the Kelvin sign in escapes"),
        pytest.param('{"cu\u017ftomer":"x"}', "customer", id="the long s, which Go takes for an s"),
        pytest.param('{" amount":2000}', "amount", id="a blank in front"),
        pytest.param('{"amount\\u00a0":2000}', "amount", id="another blank behind"),
        pytest.param('{"replyTo":"x"}', "reply_to", id="in camel case"),
        pytest.param('{"reply_to":"y","reply-to":"x"}', "reply_to", id="beside one with a dash"),
        pytest.param('{"amount[]":2000}', "amount", id="with brackets"),
        pytest.param('{"amount":1,"[amount]":2000}', "amount", id="beside one in brackets"),
        pytest.param('{"amount.x":1}', "amount", id="with something below it"),
        pytest.param('{"metadata.tier":"gold"}', "metadata.tier", id="joined by a dot"),
        pytest.param(
            '{"metadata":{"tier":"gold"},"metadata.tier":"x"}', "metadata.tier", id="beside a joined one"
        ),
        pytest.param(
            '{"metadata":{"tier":"gold"},"metadata[tier]":"x"}', "metadata.tier", id="beside one in brackets"
        ),
        pytest.param(
            '{"metadata":{"tier":"gold"},"metadata[tier][x]":"x"}', "metadata.tier", id="beside one below it"
        ),
        pytest.param(
            '{"metadata":{"tier":"gold"},"Metadata":{}}', "metadata.tier", id="beside another parent"
        ),
        pytest.param('{"Metadata":{"tier":"gold"}}', "metadata.tier", id="in another parent only"),
        pytest.param('{"metadata":{"tier":"gold","Tier":"x"}}', "metadata.tier", id="beside a capital below"),
        pytest.param('{"metadata":{"TIER":"gold"}}', "metadata.tier", id="capitals below"),
        pytest.param('{"a":{"b.c":1}}', "a.b.c", id="joined further down"),
        pytest.param('{"a.b":{"c":1}}', "a.b.c", id="joined further up"),
        pytest.param('{"metadata":"gold"}', "metadata.tier", id="a text for the parent"),
        pytest.param('{"metadata":null}', "metadata.tier", id="null for the parent"),
        pytest.param('{"metadata":[{"tier":"gold"}]}', "metadata.tier", id="an array for the parent"),
        pytest.param('{"amount":null}', "amount", id="null"),
        pytest.param('{"amount":{"x":1}}', "amount", id="an object"),
        pytest.param('{"amount":[[1]]}', "amount", id="an array in an array"),
        pytest.param('{"amount":[1,{"x":1}]}', "amount", id="an object in an array"),
        pytest.param('{"amount":[1,null]}', "amount", id="null in an array"),
        pytest.param('{"amount":[]}', "amount", id="an empty array"),
    ],
)
def test_P9_a_member_with_two_readings_is_ambiguous(raw: str, name: str) -> None:
    """Any form of a deciding member that some reader takes otherwise is refused, naming the field."""
    document = read_document(raw.encode())
    for ask in (document.one, document.values):
        with pytest.raises(AmbiguousFieldError, match=rf"^{re.escape(name)}$"):
            ask(name)
    assert document.mentions(["currency", name]) == name


@pytest.mark.parametrize(
    ("value", "one", "values"),
    [
        pytest.param("2000", "2000", ("2000",), id="a whole number"),
        pytest.param("0", "0", ("0",), id="zero"),
        pytest.param("-5", "-5", ("-5",), id="below zero"),
        pytest.param("20.5", "20.5", ("20.5",), id="a fraction"),
        pytest.param("-0.5", "-0.5", ("-0.5",), id="a fraction below zero"),
        pytest.param("999999999999999", "999999999999999", ("999999999999999",), id="fifteen digits"),
        pytest.param('"2000"', "2000", ("2000",), id="a text of digits"),
        pytest.param('"\\u0032000"', "2000", ("2000",), id="a text in escapes"),
        pytest.param('"\\ud83d\\ude00"', "\U0001f600", ("\U0001f600",), id="a whole pair"),
        pytest.param('""', "", ("",), id="an empty text"),
        pytest.param("1e3", "1e3", None, id="an exponent"),
        pytest.param("1E3", "1E3", None, id="a large exponent"),
        pytest.param("1.0", "1.0", None, id="a point and a zero"),
        pytest.param("20.50", "20.50", None, id="a zero too many"),
        pytest.param("-0", "-0", None, id="minus zero"),
        pytest.param("-0.0", "-0.0", None, id="minus zero with a point"),
        pytest.param("1000000000000001", "1000000000000001", None, id="sixteen digits"),
        pytest.param("0.1000000000000001", "0.1000000000000001", None, id="sixteen digits behind the point"),
        pytest.param("true", None, ("true",), id="true"),
        pytest.param("false", None, ("false",), id="false"),
        pytest.param('["a"]', None, ("a",), id="an array of one"),
        pytest.param('["a","b",3,true]', None, ("a", "b", "3", "true"), id="an array of scalars"),
        pytest.param('["a",1e3]', None, None, id="an exponent in an array"),
    ],
)
def test_what_a_value_says(value: str, one: str | None, values: tuple[str, ...] | None) -> None:
    """A price gets the text as it was sent, a rule only what every reader would print like this."""
    document = read_document(f'{{"x":{{"f":{value}}},"f":{value}}}'.encode())
    for name in ("f", "x.f"):
        assert ours_or_none(document.one, name) == one
        assert ours_or_none(document.values, name) == values
        assert document.mentions([name]) == name


def ours_or_none(ask: Callable[[str], Any], name: str) -> Any:
    """An answer that is not None, or None for an ambiguous one."""
    try:
        answer = ask(name)
    except AmbiguousFieldError:
        return None
    assert answer is not None
    return answer


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        pytest.param("{}", "amount", id="an empty object"),
        pytest.param('{"amounts":1}', "amount", id="a longer name"),
        pytest.param('{"amoun":1}', "amount", id="a shorter name"),
        pytest.param('{"metadata":{"amount":1}}', "amount", id="in the metadata"),
        pytest.param('{"x":[{"amount":1}]}', "amount", id="in an array"),
        pytest.param('{"x":"amount","y":"\\"amount\\":1"}', "amount", id="in a text"),
        pytest.param('{"tier":"gold"}', "metadata.tier", id="without its parent"),
        pytest.param('{"metadata":{}}', "metadata.tier", id="an empty parent"),
        pytest.param('{"metadata":{"tiers":1,"metadata":{"tier":1}}}', "metadata.tier", id="elsewhere below"),
        pytest.param('{"metadata.x":1,"metadata[y]":2}', "metadata.tier", id="a joined neighbour"),
        pytest.param('{"":1,"[]":2,"_":3}', "amount", id="names of nothing"),
    ],
)
def test_what_is_absent_is_none(raw: str, name: str) -> None:
    """A member that no reader could see is absent, not ambiguous."""
    document = read_document(raw.encode())
    assert document.one(name) is None
    assert document.values(name) is None
    assert document.mentions([name]) is None


def test_mentions_names_the_first_that_could_be_seen() -> None:
    """The names are asked in order; where none could be seen there is none."""
    document = read_document(b'{"Currency":"usd","amount":1,"to":null}')
    assert document.mentions(["amount", "currency"]) == "amount"
    assert document.mentions(["currency", "amount"]) == "currency"
    assert document.mentions(["customer", "to"]) == "to"
    assert document.mentions([]) is None


# --- for the record ----------------------------------------------------------------------------------


def test_an_object_is_read_flat_for_the_record() -> None:
    """Scalars become text, what nests is left out, and what is no object is an empty one."""
    document = read_document(
        b'{"metadata":{"run":"1","n":1e3,"t":true,"f":false,"z":null,"a":[1],"o":{"p":"q"}},"x":"y"}'
    )
    assert document.object("metadata") == {"run": "1", "n": "1e3", "t": "true", "f": "false", "z": "null"}
    assert document.object("metadata.o") == {"p": "q"}
    for name in ("x", "x.y", "nothing", "metadata.a"):
        assert document.object(name) == {}


def test_pairs_are_read_flat_for_the_record() -> None:
    """An array of names and values becomes a mapping; later ones win, and what is no pair is left out."""
    tags = '{"name":"a","value":"1"},{"name":"a","value":2},{"name":"b","value":null},{"name":"c"}'
    tags += ',{"value":"d"},{"name":"e","value":[]},{"name":{},"value":"f"},"g",["h","i"]'
    document = read_document(f'{{"tags":[{tags}],"x":{{"name":"a","value":"1"}}}}'.encode())
    assert document.pairs("tags") == {"a": "2", "b": "null"}
    assert document.pairs("x") == document.pairs("nothing") == {}


def test_a_document_is_a_value() -> None:
    """Two readings of the same text are equal, and numbers are kept as they were sent."""
    assert read_document(b'{"a":1.50}') == Document({"a": Number("1.50")}, 10)


def test_the_same_members_are_canonical_in_any_order_and_spacing() -> None:
    """What does the same thing once more is seen to be the same; the text "5" is not the number 5."""
    same = [b'{"a":5,"b":[1,{"c":null}]}', b' { "b": [1, {"c": null}], "\\u0061": 5 } ']
    assert len({read_document(raw).canonical() for raw in same}) == 1
    others = [
        *(b'{"a":"5","b":[1,{"c":null}]}', b'{"a":5.0,"b":[1,{"c":null}]}', b'{"a":5,"b":[{"c":null},1]}'),
        *(b'{"a":5}', b'{"a":{"":["5"]},"b":[1,{"c":null}]}', b'{"a":true}', b'{"a":null}', b"{}"),
    ]
    found = {read_document(raw).canonical() for raw in [*same, *others]}
    assert len(found) == 1 + len(others)


# --- several objects at once -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw", [b"{}", b"null", b'["a"]', b"[[]]", b"[{}, 1]", b"[{}", b'[{"a":1,"a":2}]', b"\xef\xbb\xbf[]", b""]
)
def test_a_batch_is_an_array_of_objects_and_nothing_else(raw: bytes) -> None:
    """As strict as one object, each of them."""
    with pytest.raises(DocumentError):
        read_batch(raw)


def test_a_batch_says_what_all_of_its_objects_say() -> None:
    """A rule must hold for each; one value for all there is not."""
    batch = read_batch(b'[{"a": "1", "t": [{"name": "n", "value": "v"}]}, {"a": ["2", "3"], "b": "x"}]')
    assert batch.values("a") == ("1", "2", "3")
    assert batch.values("b") is None
    assert batch.one("c") is None
    assert batch.texts("c") == ()
    assert batch.object("c") == {}
    assert batch.pairs("t") == {"n": "v"}
    assert batch.mentions(["c", "b"]) == "b"
    for ask in (batch.one, batch.texts):
        with pytest.raises(AmbiguousFieldError):
            ask("b")
    assert (
        batch.canonical()
        == read_batch(b'[{"t":[{"value":"v","name":"n"}],"a":"1"},{"b":"x","a":["2","3"]}]').canonical()
    )
    assert batch.canonical() != read_batch(b'[{"a": ["2", "3"], "b": "x"}]').canonical()
