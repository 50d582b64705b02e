"""Look-ups: which object is read before a call is priced, and what its answer may say."""

import json
from typing import Any

import pytest

from kbctld.core.body import read_body
from kbctld.core.cost import Remembered
from kbctld.core.lookup import Found, Missed, Plan, plan_lookup, read_found
from kbctld.core.outcome import Survivor, survivor
from kbctld.core.pace import read_rate
from kbctld.core.policy import Permit, plan
from kbctld.core.refusal import Code, Refusal
from kbctld.core.vendor import read_vendor
from kbctld.core.vendor_file import LookupTable, Survival, VendorFileError
from tests.core.support import DAY, HEAD, LOOKUPS, NOW, USD, VENDOR, Desk, access, grant, request, scope

KNOWN = {"s_1": Remembered(USD, 100, "USD")}


def planned(call: str, body: str = "", known: dict[str, Remembered] | None = None) -> str | None:
    """What would be asked for; None for nothing."""
    attempt = access(call)
    assert attempt.operation is not None
    form = read_body(VENDOR, attempt.target.path, attempt.operation, body.encode())
    found = plan_lookup(VENDOR, attempt.operation, form, attempt.parameters, known or {})
    return None if found is None else found.target.text


@pytest.mark.parametrize(
    ("call", "body", "asks"),
    [
        pytest.param("/returns", "sale=s_1", "/v1/sales/s_1", id="named in the body"),
        pytest.param("/returns", "order=o_1", "/v1/orders/o_1?expand[]=sale", id="the other object"),
        pytest.param("/sales/s_1/return", "", "/v1/sales/s_1", id="named in the path"),
        pytest.param("/sales/s_1/confirm", "", "/v1/sales/s_1", id="not counted yet"),
        pytest.param("/sales/s_1", "amount=5", "/v1/sales/s_1", id="changed"),
        pytest.param("/sales/s_1/reverse", "", "/v1/sales/s_1", id="each time"),
        pytest.param("/returns", "sale=s_1&amount=5", None, id="stated"),
        pytest.param("/returns", "", None, id="nothing named"),
        pytest.param("/returns", "sale=s_1&order=o_1", None, id="two named"),
        pytest.param("/returns", "sale=s_1&sale=s_2", None, id="two readings"),
        pytest.param("/sales/s_1", "description=x", None, id="nothing changed"),
        pytest.param("/payments/p_1", "amount=5", None, id="no look-up"),
        pytest.param("/tips", "amount=5", None, id="all stated"),
        pytest.param("/customers", "", None, id="free"),
    ],
)
def test_what_is_asked_for_before_a_call_is_priced(call: str, body: str, asks: str | None) -> None:
    """One object, where the request does not tell what the call comes to; else nothing."""
    assert planned(f"POST /v1{call}", body) == asks


def test_an_object_that_was_counted_is_not_looked_up() -> None:
    """What we remember is what counts."""
    assert planned("POST /v1/sales/s_1/confirm", known=KNOWN) is None


@pytest.mark.parametrize(
    "name", ["../x", "s_1/refund", "s 1", "s_1?x=1", "", "s%2F1", "é", "s" * 256, "s-1", "."]
)
def test_law_11_nothing_but_a_plain_id_of_the_agent_s_stands_in_a_look_up(name: str) -> None:
    """The path is the vendor file's."""
    assert planned("POST /v1/returns", f"sale={name}") is None


TABLE = VENDOR.file.lookup["sale_left"]
SALE: dict[str, Any] = {
    "amount": 2000,
    "returned": 500,
    "currency": "usd",
    "status": "open",
    "tax": {"added": False},
}


def test_an_answer_tells_amount_and_currency() -> None:
    """What is left, by the paths of the file."""
    assert read_found(TABLE, json.dumps(SALE).encode()) == Found(1500, "USD")
    nested = LookupTable(get="/v1/x", amount="sale.amount", currency="sale.currency")
    assert read_found(nested, json.dumps({"sale": SALE}).encode()) == Found(2000, "USD")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"amount": None}, "tells no amount", id="no amount"),
        pytest.param({"amount": "2000"}, "tells no amount", id="a text"),
        pytest.param({"amount": True}, "tells no amount", id="a truth"),
        pytest.param({"amount": 20.5}, "tells no amount", id="a fraction"),
        pytest.param({"amount": -1}, "tells no amount", id="less than nothing"),
        pytest.param({"amount": 10**12}, "tells no amount", id="beyond all bounds"),
        pytest.param({"returned": None}, "tells no amount", id="not what is gone"),
        pytest.param({"returned": 2001}, "tells no amount", id="more gone than there was"),
        pytest.param({"currency": "dollars"}, "tells no amount", id="no currency"),
        pytest.param({"currency": 5}, "tells no amount", id="a number"),
        pytest.param({"status": "draft"}, 'status is not "open"', id="another state"),
        pytest.param({"status": None}, 'status is not "open"', id="no state"),
        pytest.param({"tax": {"added": True}}, "tax.added is not false", id="a tax"),
        pytest.param({"tax": {"added": 0}}, "tax.added is not false", id="nought for false"),
        pytest.param({"tax": None}, "tax.added is not false", id="nothing where something stands"),
    ],
)
def test_law_4_an_answer_that_does_not_say_it_exactly_is_none(change: dict[str, Any], says: str) -> None:
    """It is told why, and the call is refused."""
    found = read_found(TABLE, json.dumps(SALE | change).encode())
    assert isinstance(found, Missed)
    assert says in found.why


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[1]", b"null", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_law_4_an_answer_that_is_no_object_is_none(raw: bytes) -> None:
    """Whatever it is, it is no price."""
    assert isinstance(read_found(TABLE, raw), Missed)


# --- when it may be asked -----------------------------------------------------------------------------


def planning(key: Any, call: str = "POST /v1/returns", body: str = "sale=s_1", **also: Any) -> Any:
    """What ``policy.plan`` says of one call."""
    desk = Desk(key)
    return plan(key, access(call), request(body, **also), desk.ledger, now_ns=NOW, tick_ns=NOW)


def test_a_key_that_may_make_the_call_has_its_object_looked_up() -> None:
    """And no other call, nor one of a key without a cap, which needs no price."""
    assert isinstance(planning(grant(scope(USD))), Plan)
    assert planning(grant(scope(USD)), "POST /v1/tips", "amount=1&currency=usd") is None
    assert planning(grant(scope(USD)), "POST /v1/nothing/like/this") is None
    assert planning(grant()) is None


@pytest.mark.parametrize(
    ("key", "code"),
    [
        pytest.param(grant(scope(USD), deny=("returns.create",)), Code.ENDPOINT_NOT_ALLOWED, id="denied"),
        pytest.param(grant(scope(USD), allow=("tips.create",)), Code.ENDPOINT_NOT_ALLOWED, id="not allowed"),
        pytest.param(grant(scope(USD), rules=("sale == s_2",)), Code.PARAM_NOT_ALLOWED, id="ruled out"),
        pytest.param(grant(scope(USD), expires_ns=NOW), Code.KEY_EXPIRED, id="expired"),
        pytest.param(grant(scope(USD, posted=USD)), Code.CAP_EXHAUSTED, id="nothing left today"),
        pytest.param(grant(scope(None, USD, held=USD)), Code.TOTAL_CAP_EXHAUSTED, id="nothing left at all"),
    ],
)
def test_a_call_that_is_refused_anyway_asks_the_vendor_nothing(key: Any, code: Code) -> None:
    """The cheap refusals come first."""
    refusal = planning(key)
    assert isinstance(refusal, Refusal)
    assert refusal.code is code
    assert "$0.000000001" not in refusal.sentence


def test_L8_a_retry_is_under_its_first_hold_even_where_nothing_can_be_looked_up_now() -> None:
    """The vendor may be silent just then; what was held is held."""
    key = grant(scope(20 * USD))
    desk = Desk(key)
    first = desk.ask("sale=s_1", "POST /v1/returns", looked_up=Found(2000, "USD"), replay=b"r")
    assert isinstance(first, Permit)
    assert first.attempt.hold.nano == 20 * USD
    asked = request("sale=s_1", replay=b"r")
    assert isinstance(
        plan(key, access("POST /v1/returns"), asked, desk.ledger, now_ns=NOW, tick_ns=NOW), Plan
    ), "no room is left, and none is needed"
    again = desk.ask("sale=s_1", "POST /v1/returns", looked_up=Missed("silence"), replay=b"r")
    assert isinstance(again, Permit)
    assert again.replay_of == "call_1"
    assert key.scope.account.used(DAY) == 20 * USD
    other = desk.ask("sale=s_2", "POST /v1/returns", looked_up=Missed("silence"), replay=b"q")
    assert isinstance(other, Refusal)
    assert other.code is Code.AMOUNT_UNKNOWN


def test_refusals_after_a_look_up_count_for_the_pace() -> None:
    """They cost the vendor a call each; a refusal without one is free."""
    key = grant(scope(20 * USD))
    key.scope.set_rate(read_rate("2/m"), NOW)
    desk = Desk(key)
    codes = [refused(desk, Missed("silence")) for _ in range(3)]
    assert codes == [Code.AMOUNT_UNKNOWN, Code.AMOUNT_UNKNOWN, Code.AMOUNT_UNKNOWN]
    waiting = planning(key)
    assert isinstance(waiting, Refusal)
    assert waiting.code is Code.RATE_LIMITED
    other = grant(scope(20 * USD))
    other.scope.set_rate(read_rate("2/m"), NOW)
    desk = Desk(other)
    assert [refused(desk, None) for _ in range(3)] == [Code.AMOUNT_UNKNOWN] * 3
    assert isinstance(planning(other), Plan)
    assert refused(desk, Found(2001, "USD")) is Code.CAP_EXHAUSTED
    assert refused(desk, Found(2001, "USD")) is Code.CAP_EXHAUSTED
    assert isinstance(planning(other), Refusal)


def refused(desk: Desk, looked_up: Found | Missed | None) -> Code:
    """The code of a call that is refused."""
    refusal = desk.ask("sale=s_1", "POST /v1/returns", looked_up=looked_up)
    assert isinstance(refusal, Refusal)
    return refusal.code


# --- what the file may say ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            'lookup = ["sale_left", "order_left"]',
            'lookup = ["nope"]',
            "takes look-ups of the file",
        ),
        ('get = "/v1/sales/{sale}"', 'get = "/v9/sales/{sale}"', "`lookup.sale_left.get` takes a path"),
        ('get = "/v1/sales/{sale}"', 'get = "/v1/sales/{Sale}"', "`lookup.sale_left.get` takes a path"),
        ('get = "/v1/sales/{sale}"', 'get = "/v1/a b/{sale}"', "`lookup.sale_left.get` takes a path"),
        (
            "[lookup.sale_left]",
            '[lookup_headers]\nhost = "x"\n[lookup.sale_left]',
            "`lookup_headers` takes some",
        ),
    ],
)
def test_a_look_up_that_cannot_work_is_an_error_that_names_it(old: str, new: str, says: str) -> None:
    """When the file is read."""
    assert old in LOOKUPS
    with pytest.raises(VendorFileError) as raised:
        read_vendor(HEAD + LOOKUPS.replace(old, new, 1))
    assert says in str(raised.value)


# --- what a refusal leaves behind ---------------------------------------------------------------------

SURVIVES = Survival(at="error.intent", ended=["canceled"])


@pytest.mark.parametrize(
    ("said", "found"),
    [
        pytest.param(
            {"error": {"intent": {"id": "i_1", "status": "x", "amount": 5, "currency": "usd"}}},
            Survivor("i_1", 5, "USD"),
            id="alive",
        ),
        pytest.param(
            {"error": {"intent": {"id": "i_1", "status": "x", "amount": True, "currency": "dollars"}}},
            Survivor("i_1", None, None),
            id="of no certain amount",
        ),
        pytest.param(
            {"error": {"intent": {"id": "i_1", "status": "x"}}}, Survivor("i_1", None, None), id="of none"
        ),
        pytest.param({"error": {"intent": {"id": "i_1", "status": "canceled"}}}, None, id="ended"),
        pytest.param({"error": {"intent": {"id": "i_1"}}}, None, id="no state"),
        pytest.param({"error": {"intent": {"status": "x"}}}, None, id="no id"),
        pytest.param({"error": {"intent": {"id": "", "status": "x"}}}, None, id="an empty id"),
        pytest.param({"error": {"intent": "i_1"}}, None, id="an id alone"),
        pytest.param({"error": {}}, None, id="none"),
        pytest.param([], None, id="no object"),
    ],
)
def test_law_3_an_object_that_a_refused_call_left_is_seen(said: Any, found: Survivor | None) -> None:
    """It can be paid without a further call."""
    assert survivor(SURVIVES, json.dumps(said).encode()) == found


@pytest.mark.parametrize("raw", [b"", b"<html>", b"\xff", b"[" * 100_000])
def test_a_refusal_that_is_no_json_left_nothing(raw: bytes) -> None:
    """A plain refusal, then."""
    assert survivor(SURVIVES, raw) is None
