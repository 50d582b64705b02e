"""A list that tells no request: which entry is a call's, told by what it asked for and by nothing less."""

import json
import tomllib
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from kbctld.core.document import read_document
from kbctld.core.form import EMPTY as NO_BODY
from kbctld.core.form import read_form
from kbctld.core.later import object_in
from kbctld.core.listing import (
    Evidence,
    Rival,
    cluster,
    content,
    evidence,
    list_path,
    page_target,
    read_page,
)
from kbctld.core.lookup import Missed
from kbctld.core.operation import Later
from kbctld.core.record import Compared, Made, Ours, Page, compare, merged
from kbctld.core.vendor_file import ListingTable, VendorFile, problems
from tests.core.support import HEAD, RATES, USD

TABLE = ListingTable(
    get="/v1/Accounts/{account}/texts?size=2",
    since="sent>",
    until="sent<",
    items="texts",
    next="next",
    object="sid",
    at="made",
    same=[{"To": "to"}, {"Service": "service", "From": "from"}, {"Body": "body"}],
    counts={"Media": "media"},
    only={"direction": "api"},
    price="price",
    unit="unit",
    days=30,
)
PATH = "/v1/Accounts/AC1/texts"
ENTRY: dict[str, Any] = {
    "sid": "SM1",
    "made": "Sat, 21 Nov 2026 13:26:19 +0000",
    "to": "+1",
    "from": "+2",
    "service": None,
    "body": "Hello",
    "media": "0",
    "direction": "api",
    "price": None,
    "unit": "USD",
}
AT_S = 1_795_267_579


def page(*entries: dict[str, Any], after: Any = None) -> bytes:
    return json.dumps({"texts": entries, "next": after}).encode()


def asked(body: str) -> bytes | None:
    return content(TABLE, "text", PATH, read_form(body.encode()))


def listed(**changes: Any) -> str | None:
    """The content of one entry."""
    found = read_page(TABLE, "text", PATH, page({**ENTRY, **changes}), RATES)
    assert isinstance(found, Page)
    return found.made[0].key


# --- what a call asks for, and what its entry repeats ---------------------------------------------


@pytest.mark.parametrize(
    ("body", "entry"),
    [
        ("To=%2B1&From=%2B2&Body=Hello", {}),
        ("Body=Hello&From=%2B2&To=%2B1&MaxPrice=1", {}),
        ("To=%2B1&Service=MG1&Body=Hello", {"service": "MG1"}),
        ("To=%2B1&Service=MG1&From=%2B2&Body=Hello", {"service": "MG1"}),
        ("To=%2B1&From=%2B2&Media=a&Media=b", {"body": "", "media": "2"}),
        ("To=%2B1&From=%2B2&Media=a&Body=", {"body": None, "media": "1"}),
    ],
)
def test_an_entry_has_the_content_of_its_call(body: str, entry: dict[str, Any]) -> None:
    """A service chooses its sender later; no text and an empty one are the same."""
    found = asked(body)
    assert found is not None
    assert listed(**entry) == found.hex()


@pytest.mark.parametrize(
    "entry",
    [
        {"to": "+3"},
        {"from": "+3"},
        {"service": "MG1"},
        {"body": "Hello "},
        {"body": "hello"},
        {"media": "1"},
        {"to": "+2", "from": "+1"},
    ],
)
def test_what_differs_in_anything_is_another_content(entry: dict[str, Any]) -> None:
    """Also between accounts and lists."""
    found = asked("To=%2B1&From=%2B2&Body=Hello")
    assert found is not None
    assert listed(**entry) != found.hex()
    form = read_form(b"To=%2B1&From=%2B2&Body=Hello")
    assert len({content(TABLE, *where, form) for where in (("text", "/a"), ("text", "/b"), ("x", "/a"))}) == 3


def test_what_can_be_read_in_two_ways_has_no_content() -> None:
    """Nor has what is no form."""
    assert asked("To=%2B1&To=%2B1&Body=x") is None
    assert asked("To=%2B1&Media=a&Media[0]=b") is None
    assert content(TABLE, "text", PATH, read_document(b"{}")) is None
    assert content(TABLE, "text", PATH, NO_BODY) is not None


# --- asking and reading ---------------------------------------------------------------------------


def test_what_is_asked_for() -> None:
    """A time in the account of the call; the next page by what the last one says."""
    assert list_path(TABLE, {"account": "AC1"}) == PATH
    first = page_target(TABLE, PATH, AT_S, AT_S + 60, None)
    assert first.text == f"{PATH}?size=2&sent%3E=2026-11-21T13:26:19Z&sent%3C=2026-11-21T13:27:19Z"
    assert first.form.one("sent>") == "2026-11-21T13:26:19Z"
    assert page_target(TABLE, PATH, AT_S, AT_S, "Page=1&Token=a").text == f"{PATH}?Page=1&Token=a"
    bare = msgspec.structs.replace(TABLE, get="/v1/texts")
    assert page_target(bare, "/v1/texts", AT_S, AT_S, None).query.startswith("sent%3E=")


def test_a_page() -> None:
    """What calls have made; a price once there is one."""
    made = Made("text", AT_S, "SM1", "SM1", listed(), None, None, told_later=True)
    assert read_page(TABLE, "text", PATH, page(ENTRY), RATES) == Page((made,), None)
    inbound = {"direction": "inbound"}
    priced = {**ENTRY, "price": "-0.00750"}
    found = read_page(TABLE, "text", PATH, page(inbound, priced, after=f"{PATH}?Page=1"), RATES)
    assert found == Page((replace(made, price_nano=7_500_000),), "Page=1")
    assert read_page(
        TABLE, "text", PATH, page({**ENTRY, "made": "1 Jan 2026 00:00:00 +0000"}), RATES
    ) == Page((replace(made, at_s=1_767_225_600),), None)


@pytest.mark.parametrize(
    "raw",
    [
        b"no JSON",
        b"[" * 100_000,
        b"[]",
        b'{"texts":{}}',
        page({**ENTRY, "sid": "../x"}),
        page({**ENTRY, "sid": None}),
        page({**ENTRY, "made": None}),
        page({**ENTRY, "made": "2026-11-21T13:26:19Z"}),
        page({**ENTRY, "made": "Sat, 21 Foo 2026 13:26:19 +0000"}),
        page({**ENTRY, "made": "Sat, 31 Feb 2026 13:26:19 +0000"}),
        page({**ENTRY, "made": "Sat, 21 Nov 2026 13:26:19 +0100"}),
        page({**ENTRY, "to": 5}),
        page({**ENTRY, "media": None}),
        page({**ENTRY, "media": "two"}),
        page(ENTRY, after=5),
        page(ENTRY, after="/v1/Accounts/AC2/texts?Page=1"),
        page(ENTRY, after=f"https://evil.test{PATH}?Page=1"),
        page(ENTRY, after=f"{PATH}?Page=1 HTTP/1.1\r\nx"),
        page(ENTRY, after=PATH),
    ],
)
def test_what_can_not_be_read_spoils_all_of_it(raw: bytes) -> None:
    """The entry that matters might be the one; and no page of the vendor's leads out of the list."""
    assert isinstance(read_page(TABLE, "text", PATH, raw, RATES), Missed)


# --- evidence -------------------------------------------------------------------------------------


def rival(name: str, at_s: int = 0, outcome: str = "unknown", counts_in: tuple[int, ...] = (1, 5)) -> Rival:
    return Rival(name, at_s, counts_in, outcome)


def thing(name: str, at_s: int = 1) -> Made:
    return Made("text", at_s, name, name, "k", None, None, told_later=True)


def found(call_id: str, group: list[Rival], *made: Made) -> tuple[str, bool] | None:
    said = evidence(call_id, group, made)
    return None if said is None else (said.made.object_id, said.certain)


def test_one_call_and_one_entry() -> None:
    """From a minute before it, since clocks differ, to a quarter of an hour after."""
    assert evidence("a", [rival("a")], [thing("1")]) == Evidence(thing("1"), certain=True)
    for at_s, there in ((-61, False), (-60, True), (900, True), (901, False)):
        assert (found("a", [rival("a")], thing("1", at_s)) is not None) is there
    assert found("a", [rival("a")]) is None


def test_an_entry_more_than_calls_is_evidence_for_none() -> None:
    """Somebody else asks for the same around us."""
    assert found("a", [rival("a")], thing("1"), thing("2")) is None


def test_as_many_entries_as_calls() -> None:
    """All were done; each has one, by their times."""
    group = [rival("a"), rival("b", 100)]
    assert found("a", group, thing("2", 101), thing("1")) == ("1", True)
    assert found("b", group, thing("2", 101), thing("1")) == ("2", True)
    others = [rival("a"), rival("b", 100, counts_in=(2, 5))]
    assert found("b", others, thing("1"), thing("2", 101)) == ("2", False)


def test_law_3_fewer_entries_than_calls() -> None:
    """As many as there are, where it does not matter which; else none."""
    group = [rival("a"), rival("b", 10)]
    assert found("a", group, thing("1", 11)) == ("1", True)
    assert found("b", group, thing("1", 11)) is None
    for other in ((2, 5), (1, 6)):
        apart = [rival("a"), rival("b", 10, counts_in=other)]
        assert found("a", apart, thing("1", 11)) is None
        assert found("b", apart, thing("1", 11)) is None


def test_law_3_a_call_that_answered_has_one_of_them() -> None:
    """Its entry is not another call's, though nobody knows which it is; one under way has none yet."""
    posted = [rival("a"), rival("b", 10, "posted")]
    assert found("a", posted, thing("1", 11)) is None
    assert found("a", posted, thing("1", 1), thing("2", 11)) == ("1", True)
    pending = [rival("a"), rival("b", 10, "pending")]
    assert found("a", pending, thing("1", 1), thing("2", 11)) is None


def test_an_entry_that_is_too_early_for_a_later_call_is_not_its_own() -> None:
    """Two calls far apart, both entries near the first: the second was not done by that."""
    group = [rival("a"), rival("b", 900)]
    assert found("b", group, thing("1", 1), thing("2", 2)) is None
    assert found("a", group, thing("1", 1), thing("2", 2)) is None
    assert found("b", group, thing("2", 902)) == ("2", True)


def test_calls_whose_times_overlap_are_looked_at_together() -> None:
    """One by one: the first and the last need not."""
    calls = [rival("c", 1920), rival("a", 0), rival("b", 960), rival("d", 5000)]
    assert [each.call_id for each in cluster("c", calls)] == ["a", "b", "c"]
    assert [each.call_id for each in cluster("d", calls)] == ["d"]
    assert cluster("x", calls) == []


# --- comparing ------------------------------------------------------------------------------------

MADE = Made("text", 1000, "SM1", "SM1", "k-1", None, None, told_later=True)
OURS = Ours("call_1", 1000 * 10**9, "text", "SM1", None, None, None, USD, "posted")


@pytest.mark.parametrize(
    ("call", "made", "agrees"),
    [
        (OURS, MADE, True),
        (OURS, replace(MADE, price_nano=USD), True),
        (OURS, replace(MADE, price_nano=USD + 1), False),
        (replace(OURS, outcome="voided", nano=0), MADE, False),
        (replace(OURS, request_id=None, key="k-1", outcome="unknown"), MADE, True),
    ],
)
def test_a_price_agrees_that_is_no_more_than_counts(call: Ours, made: Made, agrees: bool) -> None:
    """What is not told yet agrees; what was freed and made all the same does not."""
    said = compare([made], [call], 0, 2000 * 10**9, RATES)
    assert said == (Compared(agree=1) if agrees else Compared(differ=[(call, made)]))


def test_the_same_content_at_another_time_is_another_call() -> None:
    """Unlike a key, it may be asked for again."""
    call = replace(OURS, request_id=None, key="k-1", outcome="unknown")
    late = replace(MADE, at_s=1901)
    assert compare([late], [call], 0, 2000 * 10**9, RATES) == Compared(elsewhere=[late], absent=[call])


def test_several_comparisons_come_to_one() -> None:
    """Of the accounts of one credential."""
    one = Compared(1, [MADE], [OURS], [(OURS, MADE)])
    assert merged([one, one, Compared()]) == Compared(2, [MADE] * 2, [OURS] * 2, [(OURS, MADE)] * 2)


def test_a_place_names_its_object() -> None:
    """What was made is known by where its price is told."""
    later = Later(get="/v1/{account}/texts/{id}.json", object="sid", price="price", unit="unit")
    assert object_in(later, {"account": "AC1"}, "/v1/AC1/texts/SM1.json") == "SM1"


# --- the file -------------------------------------------------------------------------------------

FILE = """
account = { field = "sid", after = "Accounts", alias = "AC00", prefix = "AC" }
auth = { scheme = "basic", user = "sid" }
[price]
source = "https://acme.test/prices"
dated = "2026-11-21"
per_segment_usd = { other = "0.01" }
[listing.text]
get = "/v1/Accounts/{account}/texts"
since = "sent>"
until = "sent<"
items = "texts"
next = "next"
object = "sid"
at = "made"
same = [{ To = "to" }]
price = "price"
unit = "unit"
days = 30
[[operation]]
name = "texts.send"
match = "POST /v1/Accounts/{account}/texts"
cost = { kind = "sms", to = "To", text = "Body" }
record = "text"
"""
FREE = """record = "text"
[[operation]]
name = "texts.free"
match = "POST /v1/Accounts/{account}/free"
cost = { kind = "free" }
record = "text"
"""
ELSEWHERE = """record = "text"
[[operation]]
name = "texts.other"
match = "POST /v1/texts"
cost = { kind = "sms", to = "To", text = "Body" }
record = "text"
"""
MORE = """[listing.call]
get = "/v1/calls"
since = "a"
until = "b"
items = "c"
next = "d"
object = "e"
at = "f"
same = [{ To = "to" }]
price = "price"
unit = "unit"
days = 30
[[operation]]"""


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("x", "x", None),
        ('get = "/v1/Acc', 'get = "/v9/Acc', ("listing", "text", "get")),
        ('get = "/v1/Accounts/{account}/texts"', 'get = "/v1/{account}/texts"', ("listing", "text", "get")),
        ('after = "Accounts"', 'after = "Users"', ("listing", "text", "get")),
        ("[[operation]]", MORE, ("listing", "call", "get")),
        ("listing.text", "listing.Text", ("listing", "Text", "get")),
        ('record = "text"', 'record = "call"', ("operation", 0, "record")),
        ('record = "text"', FREE, ("operation", 1, "record")),
        ('record = "text"', ELSEWHERE, ("operation", 1, "record")),
    ],
)
def test_what_can_be_wrong_with_it(old: str, new: str, place: tuple[str | int, ...] | None) -> None:
    """A list of the account that calls name, of what some operation makes that is sold by count."""
    head = HEAD.replace('auth = { scheme = "bearer" }\n', "")
    text = head + FILE.replace(old, new)
    file = msgspec.convert(tomllib.loads(text, parse_float=Decimal), VendorFile)
    found = [problem.path for problem in problems(file)]
    assert (place in found) if place else found == []
