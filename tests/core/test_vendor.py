"""Vendor files: what they may say, how a wrong one is told, and which operation a path is."""

from collections.abc import Iterator

import pytest

from kbctld.core.cost import objects_needed
from kbctld.core.operation import METHODS, READS, WRITES, Unpriceable
from kbctld.core.pace import read_rate
from kbctld.core.vendor import read_vendor
from kbctld.core.vendor_file import VendorFileError
from tests.core.support import EMPTY, HEAD, IDEMPOTENCY, OPERATIONS, VENDOR

FILE = HEAD + IDEMPOTENCY + OPERATIONS


def operation(match: str, cost: str = '{ kind = "free" }', name: str = "things.do") -> str:
    """One more operation."""
    return f'[[operation]]\nname = "{name}"\nmatch = "{match}"\ncost = {cost}\n'


ITEMS = '{ kind = "items", of = "lines", amount = "unit", quantity = "count", currency = "currency" }'


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        pytest.param("schema = 1", "schema = 2", ["$.schema", "it takes 1"], id="another schema"),
        pytest.param("schema = 1", "", ["schema"], id="no schema"),
        pytest.param('title = "Acme"', 'titel = "Acme"', ["titel"], id="an unknown key"),
        pytest.param('title = "Acme"', 'title = ""', ["$.title"], id="an empty text"),
        pytest.param('title = "Acme"', "title = 5", ["$.title", "str"], id="a number for a text"),
        pytest.param('body = "form"', 'body = "xml"', ["$.body", "it takes form or json"], id="another body"),
        pytest.param('"bearer"', '"digest"', ["$.auth.scheme", "it takes bearer"], id="another scheme"),
        pytest.param('"bearer"', '"basic"', ["auth.user", "basic"], id="a name that is missing"),
        pytest.param('"bearer"', '"bearer", user = "x"', ["auth.user", "basic"], id="a name for nothing"),
        pytest.param('"bearer"', '"header"', ["auth.header", "names one"], id="a header without its name"),
        pytest.param('"bearer"', '"bearer", header = "x"', ["auth.header"], id="a header for nothing"),
        pytest.param('"bearer"', '"header", header = "X-Key"', ["auth.header", "X-Key"], id="in capitals"),
        pytest.param('"bearer"', '"header", header = "host"', ["auth.header", "host"], id="a header of ours"),
        pytest.param(
            '"bearer"', '"header", header = "accept"', ["auth.header", "passed on"], id="a header passed on"
        ),
        pytest.param(
            '"bearer"', '"bearer", colour = "x"', ["colour", "$.auth"], id="a key too many in a table"
        ),
        pytest.param(
            'error_shape = "stripe"', 'error_shape = "aws"', ["$.error_shape", "it takes stripe"], id="shape"
        ),
        pytest.param('["POST"]', '["PUT"]', ["$.idempotency.methods", "POST or DELETE"], id="a method"),
        pytest.param(
            "window_hours = 24", "window_hours = 0", ["$.idempotency.window_hours", ">= 1"], id="0 h"
        ),
        pytest.param("window_hours = 24", "window_hours = 169", ["window_hours", "<= 168"], id="169 h"),
        pytest.param("window_hours = 24", "window_hours = 23.5", ["window_hours", "int"], id="half an hour"),
        pytest.param('roots = ["/v1/", "/v2/"]', "roots = []", ["$.roots"], id="no roots"),
        pytest.param('"/v2/"]', '"/v2"]', ["`roots`", "/v1/", "/v2"], id="a root without its slash"),
        pytest.param('"/v2/"]', '"v2/"]', ["`roots`", "v2/"], id="a root without a slash in front"),
        pytest.param(
            'kind = "free"',
            'kind = "gratis"',
            ["kind", "increase, lookup, items, recipients, sms"],
            id="kind",
        ),
        pytest.param(
            'kind = "free"',
            'why = "free"',
            ["kind", "increase, lookup, items, recipients, sms"],
            id="no kind",
        ),
        pytest.param(
            'kind = "free"', 'kind = "free", why = "x"', ["why", ".cost"], id="a key of another kind"
        ),
        pytest.param('name = "acme"', 'name = "Acme"', ["`name`", "lower-case"], id="a capital"),
        pytest.param('name = "acme"', 'name = "a/b"', ["`name`", "lower-case"], id="a slash"),
        pytest.param(
            '["accept"]', '["Accept"]', ["`forward_headers`", "lower-case", "Accept"], id="header case"
        ),
        pytest.param('["accept"]', '["a b"]', ["`forward_headers`", "a b"], id="header blank"),
        pytest.param('["accept"]', '["host"]', ["`forward_headers`", "host"], id="the Host header"),
        pytest.param(
            '["accept"]', '["authorization"]', ["`forward_headers`", "authorization"], id="a credential"
        ),
        pytest.param(
            '["acme-account"]', '["x-api-key"]', ["`account_headers`", "x-api-key"], id="another one"
        ),
        pytest.param('"Request-Id"', '"Requêst-Id"', ["`request_id_header`", "header name"], id="not ASCII"),
        pytest.param('"Idempotency-Key"', '"a:b"', ["`idempotency.header`", "header name"], id="a colon"),
        pytest.param(
            "window_hours = 24",
            'window_hours = 24\nreplay_header = " "',
            ["`idempotency.replay_header`"],
            id="blank",
        ),
    ],
)
def test_law_10_a_wrong_word_is_an_error_that_names_the_key_and_what_it_takes(
    old: str, new: str, names: list[str]
) -> None:
    """Nothing that the schema doesn't know is passed over."""
    assert FILE.count(old)
    with pytest.raises(VendorFileError) as raised:
        read_vendor(FILE.replace(old, new, 1))
    assert [name for name in names if name not in str(raised.value)] == []


@pytest.mark.parametrize(
    "origin",
    [
        "http://api.acme.test",
        "api.acme.test",
        "https://",
        "https://api.acme.test/",
        "https://api.acme.test/v1",
        "https://api.acme.test?x",
        "https://api.acme.test#x",
        "https://user@api.acme.test",
        "https://user:word@api.acme.test",
        "https://api.acme.test@evil.test",
        "https://api acme",
        "https://[::1",
        "https://api.acme.test:",
        "https://api.acme.test:port",
        "https://api.acme.test\\\\evil",
        "https://.acme.test",
        "HTTPS://api.acme.test",
    ],
)
def test_law_6_an_origin_is_https_and_a_host(origin: str) -> None:
    """The real secret goes to one host: no user, no path, nothing that a URL reader could see otherwise."""
    with pytest.raises(VendorFileError, match="`origin` takes https://host"):
        read_vendor(FILE.replace("https://api.acme.test", origin))


@pytest.mark.parametrize(
    "origin", ["https://api.acme.test", "https://api.acme.test:8443", "https://localhost"]
)
def test_an_origin_may_have_a_port(origin: str) -> None:
    """A host, with a port or without."""
    assert read_vendor(FILE.replace("https://api.acme.test", origin)).origin == origin


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        pytest.param(operation("FETCH /v1/x"), "`match` takes METHOD /path", id="no such method"),
        pytest.param(operation("POST v1/x"), "`match` takes METHOD /path", id="no slash"),
        pytest.param(operation("POST /v1/x?y"), "`match` takes METHOD /path", id="a query"),
        pytest.param(operation("POST /v1/%41"), "`match` takes METHOD /path", id="an escape"),
        pytest.param(operation("POST /v1/{x}y"), "a whole segment", id="a parameter in a segment"),
        pytest.param(operation("POST /v1/{X}"), "a whole segment", id="a parameter in capitals"),
        pytest.param(operation("POST /v1/x}"), "a whole segment", id="half a parameter"),
        pytest.param(operation("POST /v3/x"), "none of /v1/, /v2/", id="no root"),
        pytest.param(operation("POST /v1/x", name="Things"), "words joined by dots", id="a name in capitals"),
        pytest.param(operation("POST /v1/x", name="a..b"), "words joined by dots", id="an empty word"),
        pytest.param(
            operation("POST /v1/x", name="tips.create"), "'tips.create': `name` stands twice", id="name twice"
        ),
        pytest.param(operation("POST /v1/tips"), "`match` is another operation's", id="match twice"),
        pytest.param(
            operation("POST /v1/x") + "stamps = true\n", "a file with `metadata_field`", id="stamps nowhere"
        ),
        pytest.param(operation("POST /v1/payments/{id}"), "`match` is another operation's", id="shape twice"),
        pytest.param(
            operation("POST /v1/x", '{ kind = "amount", amount = "amount" }'),
            "`currency` or `currency_of`",
            id="amount",
        ),
        pytest.param(
            operation("POST /v1/{x}", '{ kind = "increase", of = "y" }'),
            "`cost.of` takes a path parameter",
            id="of",
        ),
    ],
)
def test_an_operation_that_cannot_work_is_an_error_that_names_it(extra: str, says: str) -> None:
    """What could never match, or matches what another does, is told when the file is read."""
    with pytest.raises(VendorFileError, match="operation '") as raised:
        read_vendor(FILE + extra)
    assert says in str(raised.value)


def test_a_file_that_is_not_toml_is_told_with_its_line() -> None:
    """The text says where."""
    with pytest.raises(VendorFileError, match=r"not TOML: .*line 1"):
        read_vendor("schema 1")


@pytest.mark.parametrize("usd", ['"20"', "true", "[1]"])
def test_an_amount_of_an_example_is_a_number(usd: str) -> None:
    """A text is not taken for money."""
    with pytest.raises(VendorFileError, match=r"\$\.example\[0\]\.usd"):
        read_vendor(f'{FILE}\n[[example]]\nrequest = "GET /v1/x"\nusd = {usd}\n')


def test_an_amount_of_an_example_is_exact() -> None:
    """Files are read without floats."""
    file = read_vendor(f'{FILE}\n[[example]]\nrequest = "GET /v1/x"\nusd = 0.1\n').file
    assert str(file.example[0].usd) == "0.1"


def test_headers_may_repeat_an_answer_by_another_name() -> None:
    """A vendor that marks repeated answers says in which header."""
    file = read_vendor(
        FILE.replace("window_hours = 24", 'window_hours = 24\nreplay_header = "Replayed"')
    ).file
    assert file.idempotency is not None
    assert file.idempotency.replay_header == "Replayed"


def test_reads_and_writes_are_all_methods_and_apart() -> None:
    """Only these six are ever forwarded."""
    assert READS | WRITES == METHODS == {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
    assert not READS & WRITES


def test_joins_are_tried_longest_first_and_none_at_last() -> None:
    """/v1/ is taken off before /v1, or a slash would stay."""
    assert VENDOR.joins == ("/v1/", "/v1", "/", "")
    assert read_vendor(HEAD.replace('joins = ["/", "/v1", "/v1/"]', "") + OPERATIONS).joins == ("",)


@pytest.mark.parametrize(
    ("table", "names"),
    [
        pytest.param('read = "100"', ["`rate.read`", "100/m"], id="no unit"),
        pytest.param('write = "0/s"', ["`rate.write`", "1 to 1,000,000"], id="none at all"),
        pytest.param('delete = "1/s"', ["delete", "$.rate"], id="another class"),
        pytest.param("read = 100", ["$.rate.read", "str"], id="a number"),
        pytest.param('read = ""', ["$.rate.read"], id="an empty text"),
    ],
)
def test_a_wrong_rate_is_an_error_that_names_its_class(table: str, names: list[str]) -> None:
    """Never no rate in its place."""
    with pytest.raises(VendorFileError) as raised:
        read_vendor(f"{FILE}\n[rate]\n{table}\n")
    assert [name for name in names if name not in str(raised.value)] == []


def test_a_rate_is_read_per_class() -> None:
    """A class that is left out has none."""
    assert read_vendor(FILE).rates == {}
    assert read_vendor(f'{FILE}\n[rate]\nwrite = "25/s"\n').rates == {"write": read_rate("25/s")}
    both = read_vendor(f'{FILE}\n[rate]\nread = "5/m"\nwrite = "25/s"\n').rates
    assert both == {"read": read_rate("5/m"), "write": read_rate("25/s")}


# --- which operation a path is ------------------------------------------------------------------------

PRIORITY = read_vendor(
    HEAD
    + operation("GET /v1/{a}/{b}", name="both")
    + operation("GET /v1/things/{b}", name="thing")
    + operation("GET /v1/{a}/all", name="all")
    + operation("GET /v1/things/newest", name="newest")
    + operation("POST /v1/things/{b}", name="change")
    + operation("GET /v1/slashed/", name="slashed")
    + operation("GET /v1/dotted/{b}/", name="tail")
)


@pytest.mark.parametrize(
    ("call", "name", "parameters"),
    [
        pytest.param("GET /v1/things/newest", "newest", {}, id="a literal wins"),
        pytest.param("GET /v1/things/t_1", "thing", {"b": "t_1"}, id="more literals win"),
        pytest.param("GET /v1/others/all", "all", {"a": "others"}, id="a literal further on"),
        pytest.param("GET /v1/others/o_1", "both", {"a": "others", "b": "o_1"}, id="parameters for the rest"),
        pytest.param("POST /v1/things/newest", "change", {"b": "newest"}, id="by method"),
        pytest.param("GET /v1/slashed/", "slashed", {}, id="a literal with its slash"),
        pytest.param("GET /v1/slashed", None, {}, id="a literal without it"),
        pytest.param("GET /v1/things/t_1/", None, {}, id="a slash behind is another path"),
        pytest.param("GET /v1/things", None, {}, id="too short"),
        pytest.param("GET /v1/things/t_1/x", None, {}, id="too long"),
        pytest.param("HEAD /v1/things/t_1", None, {}, id="HEAD is not GET"),
        pytest.param("DELETE /v1/things/t_1", None, {}, id="another method"),
        pytest.param("GET /v1/Things/Newest", "both", {"a": "Things", "b": "Newest"}, id="case counts"),
    ],
)
def test_the_operation_of_a_path_is_its_most_literal_one(
    call: str, name: str | None, parameters: dict[str, str]
) -> None:
    """A path in words wins over one with parameters, and fewer parameters over more, whatever the order."""
    method, _, path = call.partition(" ")
    found, values = PRIORITY.match(method, path, tuple(path.strip("/").split("/")))
    assert (found.name if found else None, values) == (name, parameters)


def test_a_group_lists_operations_that_are_alike_in_all_but_name_and_match() -> None:
    """One line each; cost, privileged and stamps are the group's."""
    vendor = read_vendor(
        HEAD
        + 'metadata_field = "metadata"\n'
        + '[[operations]]\ncost = { kind = "unpriceable", why = "x" }\nprivileged = true\nstamps = true\n'
        + '[operations.matches]\n"things.do" = "POST /v1/things"\n'
        + '"things.undo" = "DELETE /v1/things/{thing}"\n'
    )
    found, parameters = vendor.match("DELETE", "/v1/things/t_1", ("v1", "things", "t_1"))
    assert list(vendor.operations) == ["things.do", "things.undo"]
    assert found is vendor.operations["things.undo"]
    assert parameters == {"thing": "t_1"}
    assert (found.cost, found.privileged, found.stamps) == (Unpriceable(why="x"), True, True)


def test_bodies_are_json_below_some_of_the_roots() -> None:
    """One vendor may take forms in one version of its API and JSON in the next."""
    vendor = read_vendor(HEAD + 'json_roots = ["/v2/"]\n' + OPERATIONS)
    assert [vendor.takes_json(path) for path in ("/v1/payments", "/v2/payments")] == [False, True]
    assert read_vendor(HEAD.replace('"form"', '"json"') + OPERATIONS).takes_json("/v1/payments")
    with pytest.raises(VendorFileError, match="where bodies are forms"):
        read_vendor(HEAD + 'json_roots = ["/v2/"]\n' + operation("POST /v2/x", ITEMS))
    with pytest.raises(VendorFileError, match="`json_roots` takes some of the roots"):
        read_vendor(HEAD + 'json_roots = ["/v3/"]\n' + OPERATIONS)


def test_a_match_takes_as_many_steps_as_the_path_has_segments() -> None:
    """A thousand operations are found as fast as ten; and none of them hides another."""
    many = [f"/v1/things{number}/{{thing}}/parts/{{part}}" for number in range(1000)]
    vendor = read_vendor(HEAD + "".join(operation(f"POST {p}", name=f"t{n}") for n, p in enumerate(many)))
    for number in (0, 500, 999):
        segments = ("v1", f"things{number}", "t_1", "parts", "p_1")
        found, parameters = vendor.match("POST", "/" + "/".join(segments), segments)
        assert found is vendor.operations[f"t{number}"]
        assert parameters == {"thing": "t_1", "part": "p_1"}
    counted = Counted(("v1", "things999", "t_1", "parts", "p_1"))
    vendor.match("POST", "/v1/things999/t_1/parts/p_1", counted)
    assert counted.read <= 3 * len(counted)


class Counted(tuple[str, ...]):
    """Segments that count how often one of them is read."""

    read = 0

    def __iter__(self) -> Iterator[str]:
        for segment in super().__iter__():
            self.read += 1
            yield segment


def test_privileged_is_said_and_never_assumed_away() -> None:
    """An operation is privileged exactly where its file says so."""
    assert {name for name, listed in VENDOR.operations.items() if listed.privileged} == {
        "keys.create",
        "keys.update",
    }


def test_a_payload_kind_asks_for_no_more_than_its_own_objects() -> None:
    """Free and unpriceable operations never look anything up."""
    for name in ("customers.create", "subscriptions.create"):
        assert objects_needed(VENDOR.operations[name], EMPTY, {}) == []


@pytest.mark.parametrize(
    ("cost", "decides"),
    [
        ('{ kind = "free" }', False),
        ('{ kind = "free", unbounded = ["balance"] }', True),
        ('{ kind = "unpriceable", why = "a file says it" }', False),
        ('{ kind = "amount", amount = "amount", currency = "currency" }', True),
    ],
)
def test_a_body_decides_where_the_cost_is_read_from_it(cost: str, decides: bool) -> None:
    """What decides nothing may stream by unread."""
    vendor = read_vendor(FILE + operation("POST /v1/things", cost))
    assert vendor.operations["things.do"].body_decides is decides


@pytest.mark.parametrize(
    ("seconds", "fits"), [("1", 1), ("3600", 1), ("0", 0), ("3601", 0), ('"9"', 0), ("1.5", 0)]
)
def test_a_first_byte_may_take_an_hour_and_no_longer(seconds: str, fits: int) -> None:
    text = f"{FILE}\n[timeouts]\nfirst_byte_s = {seconds}\n"
    if fits:
        assert str(read_vendor(text).file.timeouts.first_byte_s) == seconds
    else:
        with pytest.raises(VendorFileError, match="first_byte_s"):
            read_vendor(text)
