"""A deciding field has one reading, or the form is refused."""

import re
from collections.abc import Callable
from urllib.parse import parse_qsl, unquote_plus, unquote_to_bytes

import pytest
from hypothesis import Phase, example, find, given, settings
from hypothesis import strategies as st

from kbctld.core.form import FIELDS_MAX, AmbiguousFieldError, FormError, read_form

# --- other readers, as small as they can be --------------------------------------------------------

THOROUGH = settings(max_examples=5000, phases=[Phase.generate])
Reader = Callable[[str, str], str | None]
NESTED = "an array or an object"
CONFLICT = "an error"


def first_wins(raw: str, name: str) -> str | None:
    """Like a reader that stops at the first match."""
    return next((value for key, value in parse_qsl(raw, keep_blank_values=True) if key == name), None)


def last_wins(raw: str, name: str) -> str | None:
    """Like a reader that fills a mapping."""
    return dict(parse_qsl(raw, keep_blank_values=True)).get(name)


def splits_semicolons(raw: str, name: str) -> str | None:
    """Like the readers that follow HTML 4: a semicolon separates too."""
    return dict(parse_qsl(raw.replace(";", "&"), keep_blank_values=True)).get(name)


def folds_case(raw: str, name: str) -> str | None:
    """Like ASP.NET and its kin: names are trimmed and compared without case, repeats are joined."""
    pairs = parse_qsl(raw, keep_blank_values=True)
    found = [value for key, value in pairs if key.strip().lower() == name]
    return ",".join(found) if found else None


def rack_like(raw: str, name: str) -> str | None:
    """Like Rack 2: brackets make arrays and objects, those in front are skipped, and the last scalar wins."""
    fields: dict[str, str] = {}
    for piece in re.split(r"& *", raw):
        key, _, value = piece.partition("=")
        key = unquote_plus(key)
        match = re.match(r"[\[\]]*([^\[\]]+)\]*", key)
        if match is None:
            continue
        if match.end() == len(key):
            fields[match[1]] = unquote_plus(value)
        else:
            fields[match[1]] = CONFLICT if match[1] in fields else NESTED
    return fields.get(name)


def php_like(raw: str, name: str) -> str | None:
    """Like PHP: blanks in front go, blanks, dots and an unclosed bracket become an underscore."""
    fields: dict[str, str] = {}
    for piece in raw.split("&"):
        key, _, value = piece.partition("=")
        key = unquote_plus(key).lstrip(" ").partition("\0")[0]
        base, bracket, rest = key.partition("[")
        nested = bool(bracket) and "]" in rest
        text = base if nested or not bracket else f"{base}_{rest}"
        if base:
            fields[re.sub("[ .]", "_", text)] = NESTED if nested else unquote_plus(value)
    return fields.get(name)


READERS: list[Reader] = [first_wins, last_wins, splits_semicolons, folds_case, rack_like, php_like]
NAMES = ["amount", "currency", "amount_to_capture"]

# --- the differential -------------------------------------------------------------------------------

PREFIXES = st.sampled_from(
    [""] * 6 + [" ", "+", "%20", "[", "]", "][", "%5B", "%5d", "[]", ".", "_", "x;", "\u00a0"]
)
KEYS = st.sampled_from(
    "amount amount Amount AMOUNT a%6dount a%6Dount am+ount amounts currency Currency currenc%79 customer "
    "amount_to_capture amount.to.capture amount+to_capture amount%20to.capture amount[to_capture "
    "amount%5Bto_capture Amount_To_Capture metadata[amount] charge x".split()
)
SUFFIXES = st.sampled_from(
    [""] * 8
    + ["[]", "[0]", "[x]", "%5B%5D", "]", "]]", "]x", "[", "%00", "%20", "+", ".x", " ", ";amount", ";x"]
)
VALUES = st.sampled_from(
    "=1 =2000 =2000 =usd =jpy = == ;amount=9 =1;amount=9 =1;a%6dount=9 =1;currency=jpy =%3Bamount%3D3 =5%00 "
    "=5+ =1&amount=1 =\uff15 =;amount[to_capture=7 =x".split()
) | st.just("")
PLAIN = st.sampled_from(
    ["amount=2000", "a%6dount=2000", "currency=usd", "amount_to_capture=5", "x=1", "metadata[x]=1"]
)
FIELDS = PLAIN | st.builds("".join, st.tuples(PREFIXES, KEYS, SUFFIXES, VALUES))
SEPARATORS = st.sampled_from(["&", "&", "&", "&&", "& ", ";"])


@st.composite
def hostile_forms(draw: st.DrawFn) -> str:
    """Forms that try to mean one amount here and another there."""
    fields = draw(st.lists(FIELDS, min_size=1, max_size=5))
    if draw(st.integers(0, 3)) == 0:
        fields.append(fields[0].partition("=")[0] + draw(VALUES))
    return "".join(field + draw(SEPARATORS) for field in fields[:-1]) + fields[-1]


def ours(raw: str, name: str) -> tuple[bool, str | None]:
    """Whether our reading stands, and what it is."""
    try:
        return True, read_form(raw.encode()).one(name)
    except (FormError, AmbiguousFieldError):
        return False, None


@settings(max_examples=800)
@given(hostile_forms(), st.sampled_from(NAMES))
def test_P10_where_we_read_a_field_every_reader_reads_the_same(raw: str, name: str) -> None:
    """A deciding field that we accept, or take as absent, is the same to every other reader."""
    stands, value = ours(raw, name)
    if stands:
        assert {reader.__name__: reader(raw, name) for reader in READERS} == {
            reader.__name__: value for reader in READERS
        }


@settings(max_examples=300)
@given(st.text("amount=[]&;%+. 0156AMdD", max_size=24))
def test_P10_the_same_for_any_text(raw: str) -> None:
    """The same for texts that nobody composed."""
    stands, value = ours(raw, "amount")
    if stands:
        assert [reader(raw, "amount") for reader in READERS] == [value] * len(READERS)


@settings(max_examples=800)
@given(hostile_forms(), st.sampled_from(NAMES))
def test_P10_where_we_see_no_mention_no_reader_sees_the_field(raw: str, name: str) -> None:
    """A query in which we see no deciding field holds none for any reader."""
    try:
        form = read_form(raw.encode())
    except FormError:
        return
    if form.mentions([name]) is None:
        assert [reader(raw, name) for reader in READERS] == [None] * len(READERS)


@pytest.mark.parametrize("reader", READERS[1:], ids=lambda reader: str(reader.__name__))
def test_P10_control_two_naive_readers_disagree_on_such_forms(reader: Reader) -> None:
    """The same generator finds a form that first-wins and this reader read differently: we refuse it."""
    raw = find(
        hostile_forms(), lambda raw: reader(raw, "amount") != first_wins(raw, "amount"), settings=THOROUGH
    )
    assert ours(raw, "amount") == (False, None)


def test_P10_control_the_generator_also_finds_forms_that_we_accept() -> None:
    """The property is not empty: some generated forms are read, with an amount in them."""
    raw = find(hostile_forms(), lambda raw: ours(raw, "amount")[1] == "2000", settings=THOROUGH)
    assert first_wins(raw, "amount") == "2000"


# --- cases that somebody will try -------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param("amount=2000&amount=1", id="twice"),
        pytest.param("amount=1&amount=1", id="twice the same"),
        pytest.param("amount=1&a%6dount=2000", id="twice, once in escapes"),
        pytest.param("amount[]=2000", id="an array"),
        pytest.param("amount=1&amount[]=2000", id="beside an array"),
        pytest.param("amount%5B%5D=2000", id="an array in escapes"),
        pytest.param("amount[x]=2000", id="an object"),
        pytest.param("amount[=2000", id="an open bracket"),
        pytest.param("amount]=2000", id="a closing bracket behind"),
        pytest.param("amount=1&]amount=2000", id="a closing bracket in front"),
        pytest.param("[amount]=2000", id="in brackets"),
        pytest.param("[]amount=2000", id="behind brackets"),
        pytest.param("Amount=2000", id="a capital"),
        pytest.param("amount=1&AMOUNT=2000", id="beside capitals"),
        pytest.param(" amount=2000", id="a blank in front"),
        pytest.param("amount+=2000", id="a blank behind"),
        pytest.param("amount=1;amount=2000", id="a semicolon"),
        pytest.param("amount=1;2", id="a semicolon in the value"),
        pytest.param("x=1;amount=2000", id="behind a semicolon only"),
        pytest.param("x=1;a%6dount=2000", id="behind a semicolon in escapes"),
        pytest.param("amount=1&x=1;y=2", id="a semicolon elsewhere"),
    ],
)
def test_P9_a_field_with_two_readings_is_ambiguous(raw: str) -> None:
    """Any form of a deciding field that some parser reads differently is refused, naming the field."""
    form = read_form(raw.encode())
    with pytest.raises(AmbiguousFieldError, match=r"^amount$"):
        form.one("amount")
    assert form.mentions(["currency", "amount"]) == "amount"


@pytest.mark.parametrize(
    "key",
    [
        "amount[to_capture",
        "amount%5Bto_capture",
        "amount.to.capture",
        "amount+to+capture",
        "Amount_to_capture",
    ],
)
def test_P9_a_name_that_php_folds_into_a_deciding_one_is_ambiguous(key: str) -> None:
    """PHP reads blanks, dots and an unclosed bracket as the underscore of amount_to_capture."""
    raw = f"{key}=9"
    assert php_like(raw, "amount_to_capture") or folds_case(raw, "amount_to_capture")
    with pytest.raises(AmbiguousFieldError, match="amount_to_capture"):
        read_form(raw.encode()).one("amount_to_capture")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        pytest.param("amount=2000&currency=usd", "2000", id="plain"),
        pytest.param("a%6dount=2000", "2000", id="a name in escapes"),
        pytest.param("amount=%32000", "2000", id="a value in escapes"),
        pytest.param("amount=", "", id="empty"),
        pytest.param("amount", "", id="no equals sign"),
        pytest.param("amount==5", "=5", id="two equals signs"),
        pytest.param("amount=1+2", "1 2", id="a plus is a blank"),
        pytest.param("amount=%2B5", "+5", id="a plus in escapes is one"),
        pytest.param("metadata[amount]=9&amount=5", "5", id="an amount in the metadata"),
        pytest.param("amount.x=9&amount=5", "5", id="another name with a dot"),
        pytest.param("amounts=9&amount=5", "5", id="a longer name"),
        pytest.param("x=1%3Bamount=2&amount=5", "5", id="a semicolon in escapes"),
        pytest.param("x=1;y=2", None, id="a semicolon without the field"),
        pytest.param("amount.x=9", None, id="only another name with a dot"),
        pytest.param("", None, id="an empty form"),
    ],
)
def test_a_field_with_one_reading_is_read(raw: str, value: str | None) -> None:
    """What every reader reads alike is given, decoded once; what is absent is None."""
    assert read_form(raw.encode()).one("amount") == value
    assert {reader(raw, "amount") for reader in READERS} == {value}


def test_P9_control_first_wins_and_last_wins_differ_where_we_refuse() -> None:
    """The naive readers see $0.01 and $20.00 in the same bytes."""
    raw = "amount=1&amount=2000"
    assert (first_wins(raw, "amount"), last_wins(raw, "amount")) == ("1", "2000")
    assert ours(raw, "amount") == (False, None)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        pytest.param(b"amount%00=5", "control character", id="NUL in a name"),
        pytest.param(b"a\x1fmount=5", "control character", id="a raw control character in a name"),
        pytest.param(b"amount%7f=5", "control character", id="DEL in a name"),
        pytest.param(b"amount=%", "starts no escape", id="a lone percent sign"),
        pytest.param(b"amount=%4", "starts no escape", id="half an escape"),
        pytest.param(b"%u0061mount=5", "starts no escape", id="an escape of IIS"),
        pytest.param(b"amount=\xff", "UTF-8", id="not UTF-8"),
        pytest.param(b"%c1%a1mount=5", "UTF-8", id="overlong UTF-8"),
        pytest.param(b"amount=%ed%a0%80", "UTF-8", id="a surrogate"),
    ],
)
def test_P9_what_is_no_form_is_an_error(raw: bytes, says: str) -> None:
    """Bytes that parsers repair in their own ways are no form at all."""
    with pytest.raises(FormError, match=says):
        read_form(raw)


PIECES = st.lists(
    st.sampled_from([b"a", b"=", b"&", b"+", b"%", b"%c3", b"%a9", b"%26", b"\xc3", b"\xa9", b"\xff", b";"])
)


@given(raw=PIECES.map(b"".join))
@example(raw=b"a=\xc3%a9")
@example(raw=b"\xc3\xa9=%c3\xa9+")
def test_P9_text_is_taken_apart_as_its_bytes_are(raw: bytes) -> None:
    """Split first and decoded afterwards, byte by byte, whichever bytes were escaped."""

    def naive(piece: bytes) -> str:
        return unquote_to_bytes(piece.replace(b"+", b" ")).decode("utf-8")

    try:
        pairs = tuple(
            (naive(name), naive(value))
            for name, _, value in (piece.partition(b"=") for piece in (raw.split(b"&") if raw else []))
        )
    except UnicodeDecodeError:
        pairs = None
    try:
        read = read_form(raw).pairs
    except FormError as error:
        read = None
        if "starts no escape" in str(error):
            return
    assert read == pairs


def test_a_form_has_a_bounded_number_of_fields() -> None:
    """The limit is taken at n and refused at n + 1."""
    assert len(read_form(b"&".join([b"a=1"] * FIELDS_MAX)).pairs) == FIELDS_MAX
    with pytest.raises(FormError, match="at most 1,000 fields"):
        read_form(b"&".join([b"a=1"] * (FIELDS_MAX + 1)))


def test_mentions_names_the_first_that_could_be_seen() -> None:
    """The names are asked in order; where none could be seen there is none."""
    form = read_form(b"expand[]=x&Currency=usd&amount=1")
    assert form.mentions(["amount", "currency"]) == "amount"
    assert form.mentions(["currency", "amount"]) == "currency"
    assert form.mentions(["customer"]) is None
    assert form.mentions([]) is None


def test_an_object_is_read_flat_for_the_record() -> None:
    """metadata[key]=value becomes a mapping; later ones win, and other fields are no part of it."""
    form = read_form(b"metadata[run]=1&metadata[run]=2&metadata[a][b]=3&metadata=4&meta[x]=5&metadata[y=6")
    assert form.object("metadata") == {"run": "2", "a][b": "3"}


# --- fields of rules: metadata.tier stands as metadata[tier] -------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param("metadata[tier]=gold&metadata[tier]=x", id="twice"),
        pytest.param("metadata[tier]=gold&metadata[tier]=gold", id="twice the same"),
        pytest.param("metadata[tier]=gold&metadata%5Btier%5D=x", id="twice, once in escapes"),
        pytest.param("metadata[tier]=gold&metadata[ti%65r]=x", id="twice, a letter in escapes"),
        pytest.param("metadata.tier=gold", id="with a dot"),
        pytest.param("metadata[tier]=gold&metadata.tier=x", id="beside one with a dot"),
        pytest.param("metadata[tier]=gold& metadata[tier]=x", id="beside one with a blank in front"),
        pytest.param("metadata[tier]=gold&metadata[tier]+=x", id="beside one with a blank behind"),
        pytest.param("metadata[tier]=gold&metadata[+tier]=x", id="beside one with a blank inside"),
        pytest.param(
            "metadata[tier]=gold&metadata+[tier]=x", id="beside one with a blank before the bracket"
        ),
        pytest.param("metadata[tier]=gold&metadata[tier][]=x", id="beside an array"),
        pytest.param("metadata[tier][]=gold", id="an array"),
        pytest.param("metadata[tier][0]=gold", id="an array with a number"),
        pytest.param("metadata[tier]=gold&metadata[tier][x]=x", id="beside an object"),
        pytest.param("metadata[tier]=gold&Metadata[tier]=x", id="beside a capital"),
        pytest.param("metadata[TIER]=gold", id="capitals"),
        pytest.param("metadata[tier]=gold&metadata=", id="beside a text that clears them all"),
        pytest.param("metadata=gold", id="a text for the parent"),
        pytest.param("metadata[]=gold", id="an array for the parent"),
        pytest.param("metadata[][tier]=gold", id="in an array"),
        pytest.param("metadata[tier=gold", id="an open bracket"),
        pytest.param("metadata]tier=gold", id="the wrong bracket"),
        pytest.param("metadata[tier]=gold&metadata[tier]x=x", id="beside one with something behind"),
        pytest.param("metadata[tier]=gold&[metadata][tier]=x", id="beside one all in brackets"),
        pytest.param("metadata[tier]=gold&[]metadata[tier]=x", id="beside one behind brackets"),
        pytest.param("metadata[[tier]]=gold", id="double brackets"),
        pytest.param("metadata[tier]=gold;metadata[tier]=x", id="a semicolon"),
        pytest.param("x=1;metadata.tier=gold", id="behind a semicolon only"),
        pytest.param("metadata[tier]=gold&x=1;METADATA[tier]=x", id="capitals behind a semicolon"),
        pytest.param("metadata[tier]=gold&x=1;y=2", id="a semicolon elsewhere"),
    ],
)
def test_P9_a_nested_field_with_two_readings_is_ambiguous(raw: str) -> None:
    """Whatever some parser takes for metadata[tier], for its parent or for something in it is refused."""
    with pytest.raises(AmbiguousFieldError, match=r"^metadata\.tier$"):
        read_form(raw.encode()).values("metadata.tier")


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        pytest.param("my.meta[tier]=x", "my_meta.tier", id="a dot in the parent"),
        pytest.param("my+meta[tier]=x", "my_meta.tier", id="a blank in the parent"),
        pytest.param("my_meta[tier]=gold&my[meta=x", "my_meta.tier", id="an open bracket over the parent"),
        pytest.param("amount[to_capture=9", "amount_to_capture", id="an open bracket in a plain name"),
        pytest.param("a[b.c]=9", "a.b.c", id="a dot below"),
        pytest.param("a.b[c]=9", "a.b.c", id="a dot above"),
        pytest.param("a[b]=9", "a.b.c", id="a text on the way"),
        pytest.param("amount=1&amount.x=9", "amount", id="something below a plain name"),
        pytest.param("To=1&to=9", "To", id="a small letter beside a capital"),
        pytest.param("To[]=1", "To", id="an array of a name with a capital"),
    ],
)
def test_P9_dots_blanks_and_open_brackets_join_other_names(raw: str, field: str) -> None:
    """PHP and readers of dotted names see the field in keys that look like another one's."""
    with pytest.raises(AmbiguousFieldError, match=rf"^{re.escape(field)}$"):
        read_form(raw.encode()).values(field)


@pytest.mark.parametrize(
    ("raw", "field", "values"),
    [
        pytest.param("metadata[tier]=gold", "metadata.tier", ("gold",), id="nested"),
        pytest.param("metadata%5Btier%5D=gold", "metadata.tier", ("gold",), id="in escapes"),
        pytest.param("a[b][c]=1", "a.b.c", ("1",), id="nested twice"),
        pytest.param("amount=5", "amount", ("5",), id="plain"),
        pytest.param("amount=", "amount", ("",), id="empty"),
        pytest.param("To=%2B1555", "To", ("+1555",), id="a plus in escapes"),
        pytest.param("To=+1555", "To", (" 1555",), id="a plus is a blank"),
        pytest.param(
            "metadata[tier]=gold&metadata[tier_2]=x&metadata[tiers]=y",
            "metadata.tier",
            ("gold",),
            id="longer",
        ),
        pytest.param(
            "metadata[tier]=gold&x[metadata][tier]=y&tier=z", "metadata.tier", ("gold",), id="elsewhere"
        ),
        pytest.param("metadata[amount]=9&amount=5", "amount", ("5",), id="an amount in the metadata"),
        pytest.param("x=1%3Bmetadata&metadata[tier]=gold", "metadata.tier", ("gold",), id="; in escapes"),
        pytest.param(
            "metadata[x]=1&metadata.y=2&metadata_tier=3", "metadata.tier", None, id="neighbours only"
        ),
        pytest.param("x=1;y=2", "metadata.tier", None, id="a semicolon without the field"),
        pytest.param("[]=1&.=2&=3", "metadata.tier", None, id="names of nothing"),
        pytest.param("", "amount", None, id="an empty form"),
    ],
)
def test_a_rule_reads_a_field_with_one_reading(raw: str, field: str, values: tuple[str, ...] | None) -> None:
    """One plain occurrence is given, decoded once; what no parser could see is None."""
    assert read_form(raw.encode()).values(field) == values


@settings(max_examples=800)
@given(hostile_forms(), st.sampled_from(NAMES))
def test_P9_a_rule_reads_as_strictly_as_a_price(raw: str, name: str) -> None:
    """Where a price would be refused for two readings a rule is too; otherwise both read the same."""
    try:
        form = read_form(raw.encode())
        values = form.values(name)
    except (FormError, AmbiguousFieldError):
        return
    assert form.one(name) == (values[0] if values else None)


def nests_dots(raw: str) -> object:
    """Like Node's qs where it allows dots: metadata.tier and metadata[tier] are the same."""
    return nested(raw, lambda key: [piece for piece in re.split(r"[.\[\]]", key) if piece])


def nests_like_php(raw: str) -> object:
    """Like PHP: blanks and dots before the first bracket, and one left open, become underscores."""

    def path(key: str) -> list[str]:
        base, bracket, rest = key.lstrip(" ").partition("[")
        if bracket and "]" not in rest:
            base, rest = f"{base}_{rest}", ""
        below = re.findall(r"\[([^\]]*)\]", "[" + rest) if bracket else []
        return [re.sub("[ .]", "_", base), *(piece or "0" for piece in below)] if base else []

    return nested(raw, path)


def nests_without_case(raw: str) -> object:
    """Like Go and its kin: names inside brackets are trimmed and compared without case."""
    return nested(raw, lambda key: [piece.strip().lower() for piece in re.split(r"[\[\]]", key) if piece])


def nested(raw: str, path: Callable[[str], list[str]]) -> object:
    """metadata.tier of a tree that fills from left to right; a text in the way is replaced, and replaces."""
    tree: dict[str, object] = {}
    for key, value in parse_qsl(raw, keep_blank_values=True):
        *parents, last = path(key) or [""]
        here = tree
        for parent in parents:
            below = here.get(parent)
            if not isinstance(below, dict):
                below = here[parent] = {}
            here = below
        here[last] = value
    inner = tree.get("metadata")
    return inner.get("tier") if isinstance(inner, dict) else None


NESTED_READERS = [nests_dots, nests_like_php, nests_without_case]
NESTED_KEYS = st.sampled_from(
    "metadata[tier] metadata[tier] metadata%5Btier%5D metadata.tier Metadata[tier] metadata[Tier] metadata "
    "metadata[] metadata[tier][] metadata[tier][x] metadata[tier_2] metadata[ti%65r] +metadata[tier] "
    "metadata[+tier] metadata[tier metadata_tier x[metadata][tier] [metadata][tier] tier".split()
)
NESTED_FORMS = st.lists(
    st.builds("{}={}".format, NESTED_KEYS, st.sampled_from("gold gold x".split())), max_size=3
).map("&".join)


def ours_nested(raw: str) -> tuple[bool, str | None]:
    """Whether our reading of metadata.tier stands, and what it is."""
    try:
        return True, (read_form(raw.encode()).values("metadata.tier") or (None,))[0]
    except AmbiguousFieldError:
        return False, None


@settings(max_examples=800)
@given(NESTED_FORMS)
def test_P10_where_we_read_a_nested_field_every_reader_reads_the_same(raw: str) -> None:
    """A nested field that we accept, or take as absent, is the same to readers that build trees."""
    stands, value = ours_nested(raw)
    if stands:
        assert [reader(raw) for reader in NESTED_READERS] == [value] * len(NESTED_READERS)


@pytest.mark.parametrize("reader", NESTED_READERS, ids=lambda reader: str(reader.__name__))
def test_P10_control_naive_readers_disagree_on_nested_fields(reader: Callable[[str], object]) -> None:
    """The same generator finds a form that a plain lookup and this reader read differently: we refuse it."""
    raw = find(NESTED_FORMS, lambda raw: reader(raw) != first_wins(raw, "metadata[tier]"), settings=THOROUGH)
    assert ours_nested(raw) == (False, None)
    assert ours_nested("metadata[tier]=gold&metadata[tier_2]=x") == (True, "gold")


def test_the_same_fields_are_canonical_in_any_order_and_spelling() -> None:
    """What does the same thing once more is seen to be the same; another value or one more field is not."""
    same = [b"a=1&b=x+y", b"b=x%20y&a=1", b"%61=%31&b=x%20y"]
    assert len({read_form(raw).canonical() for raw in same}) == 1
    others = [b"a=1&b=x-y", b"a=1", b"a=1&b=x+y&c=", b"a=1&b=x+y&a=1", b"a=1%26b=x+y"]
    assert len({read_form(raw).canonical() for raw in [*same, *others]}) == 1 + len(others)
