"""The vendor's own list: what is asked for, what an entry proves, and where our rows differ from it."""

import json
import tomllib
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from kbctld.core.lookup import Missed
from kbctld.core.record import (
    Compared,
    Made,
    Ours,
    Page,
    compare,
    evidence,
    page_target,
    proven_nano,
    read_page,
)
from kbctld.core.vendor_file import RecordKind, RecordTable, VendorFile, problems
from tests.core.support import HEAD, RATES, USD

TABLE = RecordTable(
    get="/v1/events?limit=2",
    kind="type",
    since="created[gte]",
    until="created[lte]",
    after="starting_after",
    items="data",
    more="has_more",
    id="id",
    at="created",
    request="request.id",
    key="request.key",
    object="object.id",
    amount="object.amount",
    currency="object.currency",
    days=30,
    kinds={"sale.made": RecordKind(part_of="object.order"), "return.made": RecordKind()},
)
ENTRY: dict[str, Any] = {
    "id": "evt_1",
    "type": "sale.made",
    "created": 1000,
    "request": {"id": "req_1", "key": "k-1"},
    "object": {"id": "s_1", "amount": 500, "currency": "usd", "order": None},
}
MADE = Made("sale.made", 1000, "s_1", "req_1", "k-1", 500, "USD")
OURS = Ours("call_1", 1000 * 10**9, "sale.made", "req_1", "k-1", 500, "USD", 5 * USD, "posted")


def page(*entries: dict[str, Any], more: Any = False) -> bytes:
    return json.dumps({"data": entries, "has_more": more}).encode()


def compared(made: list[Made], ours: list[Ours]) -> Compared:
    """Between the seconds 900 and 2000."""
    return compare(made, ours, 900 * 10**9, 2000 * 10**9, RATES)


# --- asking and reading ---------------------------------------------------------------------------


def test_what_is_asked_for() -> None:
    """One kind of one time; the next page begins behind the last entry."""
    first = page_target(TABLE, "sale.made", 5, 9, None)
    assert first.text == "/v1/events?limit=2&type=sale.made&created[gte]=5&created[lte]=9"
    assert page_target(TABLE, "sale.made", 5, 9, "evt_1").text == f"{first.text}&starting_after=evt_1"
    bare = msgspec.structs.replace(TABLE, get="/v1/events")
    assert page_target(bare, "sale.made", 5, 9, None).query == "type=sale.made&created[gte]=5&created[lte]=9"


def test_a_page() -> None:
    """What stands in it, and where the next begins."""
    assert read_page(TABLE, page(ENTRY)) == Page((MADE,), None)
    assert read_page(TABLE, page(ENTRY, more=True)) == Page((MADE,), "evt_1")
    assert read_page(TABLE, page()) == Page((), None)
    of_order = {**ENTRY, "object": {**ENTRY["object"], "order": "o_1"}}
    automatic = {**ENTRY, "request": {"id": None, "key": None}}
    odd = {**ENTRY, "object": {"id": "s_1", "amount": "500", "currency": 5}}
    assert read_page(TABLE, page(of_order, automatic, odd)) == Page(
        (
            replace(MADE, part=True),
            replace(MADE, request_id=None, key=None),
            replace(MADE, minor=None, currency=None),
        ),
        None,
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"no JSON",
        b"[" * 100_000,
        b"[]",
        b'{"data":{},"has_more":false}',
        page(more="no"),
        page(more=True),
        page({**ENTRY, "type": "other.made"}),
        page({**ENTRY, "type": 5}),
        page({**ENTRY, "created": True}),
        page({**ENTRY, "created": "now"}),
        page({**ENTRY, "object": {}}),
        page({**ENTRY, "object": {"id": "../x"}}),
        page({**ENTRY, "id": "evt&after=x"}),
        page({**ENTRY, "id": None}),
    ],
)
def test_what_can_not_be_read_spoils_all_of_it(raw: bytes) -> None:
    """The entry that matters might be the one; and no id of the vendor's changes what is asked for next."""
    assert isinstance(read_page(TABLE, raw), Missed)


# --- evidence -------------------------------------------------------------------------------------


def test_an_entry_with_the_key_is_evidence() -> None:
    """Of the right kind, and the only one."""
    other = replace(MADE, key="k-2")
    assert evidence([other, MADE], "sale.made", "k-1") == MADE
    assert evidence([other], "sale.made", "k-1") is None
    assert evidence([MADE, replace(MADE, object_id="s_2")], "sale.made", "k-1") is None
    assert evidence([MADE], "return.made", "k-1") is None
    assert evidence([replace(MADE, part=True)], "sale.made", "k-1") is None


@pytest.mark.parametrize(
    ("found", "row", "held", "nano"),
    [
        pytest.param((500, "USD"), (500, "USD"), 5 * USD, 5 * USD, id="as held"),
        pytest.param((500, "EUR"), (500, "EUR"), 5 * USD, 5 * USD, id="at the rate of its time"),
        pytest.param((700, "USD"), (500, "USD"), 5 * USD, 7 * USD, id="more: the truth"),
        pytest.param((700, "USD"), (None, None), 0, 7 * USD, id="nobody could tell before"),
        pytest.param((499, "USD"), (500, "USD"), 5 * USD, None, id="less would free the rest"),
        pytest.param((500, "XXX"), (500, "USD"), 5 * USD, None, id="no rate"),
        pytest.param((None, "USD"), (500, "USD"), 5 * USD, None, id="no amount"),
        pytest.param((500, None), (500, "USD"), 5 * USD, None, id="no currency"),
        pytest.param((None, None), (None, None), 0, None, id="nothing"),
    ],
)
def test_law_3_evidence_posts_what_was_held_or_more(
    found: tuple[int | None, str | None],
    row: tuple[int | None, str | None],
    held: int,
    nano: int | None,
) -> None:
    """It never frees a cent: an agent chooses the key that it is found by."""
    thing = replace(MADE, minor=found[0], currency=found[1])
    assert proven_nano(thing, *row, held, RATES) == nano


# --- comparing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ours",
    [
        [OURS],
        [replace(OURS, key=None)],
        [replace(OURS, request_id=None, outcome="unknown")],
        [replace(OURS, request_id=None, outcome="pending")],
        # The answer came to a retry: its row has the request's id, the first one holds the money.
        [replace(OURS, request_id=None, key=None), replace(OURS, kind=None, nano=0)],
        # A bound, whose true cost the row keeps in dollars.
        [replace(OURS, minor=900)],
        # The same key was refused before.
        [replace(OURS, call_id="call_0", request_id=None, outcome="voided"), replace(OURS, request_id=None)],
    ],
)
def test_one_call_that_both_tell_alike(ours: list[Ours]) -> None:
    """By the request's id, or else by its key."""
    assert compared([MADE], ours) == Compared(agree=1)


def test_what_no_call_of_ours_made() -> None:
    """By another key, by none, or twice by one; what the vendor did by itself is nobody's call."""
    around = replace(MADE, object_id="s_2", request_id="req_2", key=None)
    again = replace(MADE, object_id="s_3", request_id="req_3")
    automatic = replace(MADE, request_id=None, key=None)
    part = replace(around, part=True)
    found = compared([MADE, around, again, automatic, part], [OURS])
    assert found == Compared(agree=1, elsewhere=[around, again])


def test_what_we_count_that_is_not_listed() -> None:
    """Posted and unknown; not what was refused or is under way, nor what is listed as nothing."""
    others = [
        replace(OURS, call_id=f"call_{n}", request_id=f"req_{n}", key=None, outcome=outcome)
        for n, outcome in enumerate(("unknown", "voided", "pending"), 2)
    ]
    free = replace(OURS, call_id="call_9", request_id="req_9", kind=None)
    assert compared([], [OURS, *others, free]) == Compared(absent=[OURS, others[0]])


@pytest.mark.parametrize(
    ("call", "thing"),
    [
        pytest.param(OURS, replace(MADE, minor=501), id="amount"),
        pytest.param(OURS, replace(MADE, currency="EUR"), id="currency"),
        pytest.param(OURS, replace(MADE, minor=None), id="no amount"),
        pytest.param(OURS, replace(MADE, currency=None), id="no currency"),
        pytest.param(replace(OURS, outcome="voided", nano=0), MADE, id="freed, though it was done"),
    ],
)
def test_what_both_tell_otherwise(call: Ours, thing: Made) -> None:
    """Money that was freed and moved all the same is among it."""
    assert compared([thing], [call]) == Compared(differ=[(call, thing)])


def test_a_side_effect_of_another_call_is_no_difference() -> None:
    """An order that is paid makes a sale, by the order's own request."""
    order = replace(OURS, kind="return.made")
    found = compared([MADE], [order])
    assert (found.elsewhere, found.differ, found.agree) == ([], [], 0)
    assert compared([MADE, replace(MADE, object_id="s_2")], [OURS]) == Compared(agree=1)


def test_what_stands_across_a_border_is_no_difference() -> None:
    """Both lists reach further than the time that is told of."""
    early = replace(MADE, at_s=899)
    assert compared([early], [OURS]) == Compared()
    assert compared([replace(early, request_id="req_2", key=None)], []) == Compared()
    assert compared([], [replace(OURS, at_ns=2000 * 10**9)]) == Compared()


# --- the file -------------------------------------------------------------------------------------

FILE = """
[record]
get = "/v1/events"
kind = "type"
since = "from"
until = "to"
after = "after"
items = "data"
more = "more"
id = "id"
at = "at"
request = "request"
key = "key"
object = "object"
amount = "amount"
currency = "currency"
days = 30
kinds = { "sale.made" = {} }
[[operation]]
name = "sales.create"
match = "POST /v1/sales"
cost = { kind = "amount", amount = "amount", currency = "currency" }
record = "sale.made"
"""
FREE = '''record = "sale.made"
[[operation]]
name = "x"
match = "POST /v1/x"
cost = { kind = "free" }
record = "sale.made"'''
KEYS = '[idempotency]\nheader = "X-Key"\nmethods = ["POST"]\nwindow_hours = 1\n'


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("", "", None),
        ('get = "/v1/events"', 'get = "/v9/events"', ("record", "get")),
        ('get = "/v1/events"', 'get = "/v1/{x}"', ("record", "get")),
        ('get = "/v1/events"', 'get = "/v1/a b"', ("record", "get")),
        ('since = "from"', 'since = "a&b"', ("record", "since")),
        ('"sale.made" = {}', '"sale.made" = {}, "Sale" = {}', ("record", "kinds", "Sale")),
        ('"sale.made" = {}', '"sale.made" = {}, "tip.made" = {}', ("record", "kinds", "tip.made")),
        ('record = "sale.made"', FREE, ("operation", 1, "record")),
        (KEYS, "", ("record",)),
    ],
)  # fmt: skip
def test_what_can_be_wrong_with_it(old: str, new: str, place: tuple[str | int, ...] | None) -> None:
    """A path below a root, names that stay one parameter, kinds that some operation makes."""
    text = (HEAD + KEYS + FILE).replace(old, new) if old else HEAD + KEYS + FILE
    file = msgspec.convert(tomllib.loads(text, parse_float=Decimal), VendorFile)
    assert [problem.path for problem in problems(file)] == ([] if place is None else [place])


def test_an_operation_is_listed_as_something_of_the_file() -> None:
    """A kind that is not there, and a file without a list."""
    wrong = FILE.replace('record = "sale.made"', 'record = "tip.made"')
    bare = "[[operation]]" + FILE.partition("[[operation]]")[2]
    for text in (wrong, bare):
        file = msgspec.convert(tomllib.loads(HEAD + KEYS + text), VendorFile)
        assert ("operation", 0, "record") in [problem.path for problem in problems(file)]
