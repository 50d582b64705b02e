"""The decision: every code in its order, the cap to the nano, and what a refusal tells."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbctld.core.cost import FREE, UNPRICED, Price, Remembered
from kbctld.core.grant import Grant
from kbctld.core.ledger import NS_PER_DAY, Ledger, Outcome, Scope, Verdict
from kbctld.core.money import NANO_MAX
from kbctld.core.pace import read_loop, read_rate
from kbctld.core.policy import LOOPED, Access, Permit, admit, authorize
from kbctld.core.refusal import Code, Refusal
from kbctld.core.vendor import read_vendor
from tests.core.support import (
    DAY,
    HEAD,
    NOW,
    OPERATIONS,
    RATES,
    USD,
    Desk,
    access,
    grant,
    request,
    scope,
)

ONE_DOLLAR = "amount=100&currency=usd"


def code_of(verdict: Permit | Refusal | None) -> Code | None:
    """The code of a refusal; None for a yes."""
    return verdict.code if isinstance(verdict, Refusal) else None


def refused(verdict: Permit | Refusal | None) -> Refusal:
    """A verdict that must be a refusal."""
    assert isinstance(verdict, Refusal)
    return verdict


def permitted(verdict: Permit | Refusal) -> Permit:
    """A verdict that must be a permit."""
    assert isinstance(verdict, Permit), verdict
    return verdict


# --- precedence ---------------------------------------------------------------------------------------

# What is wrong, most important first. Each is repaired by itself, so what is left decides.
WRONG = [
    ("revoked", Code.KEY_REVOKED),
    ("frozen", Code.KEY_REVOKED),
    ("expired", Code.KEY_EXPIRED),
    ("vendor", Code.VENDOR_NOT_ALLOWED),
    ("endpoint", Code.ENDPOINT_NOT_ALLOWED),
    ("account", Code.ACCOUNT_NOT_ALLOWED),
    ("param", Code.PARAM_NOT_ALLOWED),
    ("repeated", Code.AMBIGUOUS_REQUEST),
    ("odd", Code.AMOUNT_UNKNOWN),
    ("call cap", Code.CALL_CAP_EXCEEDED),
    ("rate", Code.RATE_LIMITED),
    ("requests", Code.REQUEST_BUDGET_EXHAUSTED),
    ("loop", Code.LOOP_DETECTED),
    ("daily cap", Code.CAP_EXHAUSTED),
    ("total cap", Code.TOTAL_CAP_EXHAUSTED),
]
NAMES = [name for name, _ in WRONG]
CODES = dict(WRONG)


def attempt(wrong: set[str]) -> Refusal | Permit:
    """One call of $1 with all of these things wrong with it."""
    key = grant(
        scope(USD - 1 if "daily cap" in wrong else USD, USD),
        scope(USD, USD - 1 if "total cap" in wrong else USD),
        call_cap=USD - 1 if "call cap" in wrong else USD,
        vendors=("other",) if "vendor" in wrong else ("acme", "other"),
        deny=("payments.create",) if "endpoint" in wrong else (),
        rules=("description == tea",),
        expires_ns=NOW if "expired" in wrong else NOW + 1,
    )
    key.scope.set_rate(read_rate("1/h"), 0)
    key.scope.daily_requests = 1
    key.scope.set_loop(read_loop("1/1h", "deny"))
    assert key.scope.bucket is not None
    assert key.scope.guard is not None
    if "rate" in wrong:
        key.scope.bucket.take(0)
    if "requests" in wrong:
        key.scope.account.requests[DAY] = 1
    if "loop" in wrong:
        key.scope.guard.note(b"request", 0)
    key.revoked_ns = NOW if "revoked" in wrong else None
    key.frozen = "a call cost more than its hold" if "frozen" in wrong else None
    amount = "1_00" if "odd" in wrong else "100"
    body = f"amount={amount}&currency=usd{'&currency=jpy' if 'repeated' in wrong else ''}"
    body += "" if "param" in wrong else "&description=tea"
    call = access(accounts={"acme-account": "acct_2"} if "account" in wrong else None)
    return authorize(key, call, request(body), Ledger(), RATES, now_ns=NOW, tick_ns=0, row=None, call_id="")


@pytest.mark.parametrize("name", NAMES)
def test_each_thing_that_is_wrong_has_its_code(name: str) -> None:
    """Alone, everything wrong is refused by its own code."""
    assert code_of(attempt({name})) is CODES[name]


def test_a_call_with_nothing_wrong_is_permitted() -> None:
    """The control of the table: without any of these, the same call leaves."""
    assert code_of(attempt(set())) is None


@pytest.mark.parametrize("first", range(len(WRONG)), ids=lambda n: NAMES[n])
def test_where_several_things_are_wrong_the_earlier_is_given(first: int) -> None:
    """With this and everything after it wrong, this one's code is the answer."""
    assert code_of(attempt(set(NAMES[first:]))) is WRONG[first][1]


@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_any_mixture_is_refused_by_its_earliest(wrong: set[str]) -> None:
    """The order of the checks is the order of the codes, whatever is mixed."""
    assert code_of(attempt(wrong)) is CODES[min(wrong, key=NAMES.index)]


def test_the_order_of_the_checks_is_that_of_the_codes() -> None:
    """But for the body, which is not read before the endpoint is allowed, the table follows the codes."""
    order = [code for _, code in WRONG if code is not Code.AMBIGUOUS_REQUEST]
    assert order == sorted(order, key=list(Code).index)


# --- admit: what needs no body --------------------------------------------------------------------------


def test_a_key_that_was_never_issued_is_unknown() -> None:
    """Nothing else is said about it."""
    assert code_of(admit(None, access(), NOW)) is Code.KEY_UNKNOWN
    assert code_of(admit(None, None, NOW)) is Code.KEY_UNKNOWN


def test_a_good_key_is_admitted_before_its_vendor_is_known() -> None:
    """Where the path doesn't tell the vendor yet, only the key is judged."""
    key = grant()
    assert admit(key, None, NOW) is None
    key.revoked_ns = NOW
    assert code_of(admit(key, None, NOW)) is Code.KEY_REVOKED


@pytest.mark.parametrize(
    ("now_ns", "code"),
    [
        pytest.param(NOW - 1, None, id="a nanosecond before"),
        pytest.param(NOW, Code.KEY_EXPIRED, id="exactly then"),
        pytest.param(NOW + NS_PER_DAY, Code.KEY_EXPIRED, id="a day after"),
    ],
)
def test_a_key_expires_at_its_nanosecond(now_ns: int, code: Code | None) -> None:
    """The test is now >= expires_at."""
    assert code_of(admit(grant(expires_ns=NOW), access(), now_ns)) is code


def test_another_account_is_refused_by_naming_the_header() -> None:
    """The remedy says what to leave out."""
    refusal = refused(admit(grant(), access(accounts={"acme-account": "acct_2"}), NOW))
    assert "acme-account" in refusal.remedy


@pytest.mark.parametrize(
    ("limits", "call", "code"),
    [
        pytest.param({}, "POST /v1/payments", None, id="priced, by default"),
        pytest.param({}, "POST /v1/customers", None, id="free, by default"),
        pytest.param({}, "GET /v1/anything", None, id="an unlisted read, by default"),
        pytest.param({}, "HEAD /v1/anything", None, id="HEAD is a read"),
        pytest.param({"allow": ("GET /v1/*",)}, "HEAD /v1/anything", None, id="HEAD is allowed as GET is"),
        pytest.param(
            {"deny": ("GET /v1/*",)}, "HEAD /v1/x", Code.ENDPOINT_NOT_ALLOWED, id="HEAD is denied as GET is"
        ),
        pytest.param({}, "POST /v1/keys", Code.ENDPOINT_NOT_ALLOWED, id="privileged, by default"),
        pytest.param({}, "POST /v1/anything", Code.ENDPOINT_NOT_ALLOWED, id="an unlisted write, by default"),
        pytest.param({"allow": ("POST /v1/*",)}, "POST /v1/keys", Code.ENDPOINT_NOT_ALLOWED, id="star"),
        pytest.param({"allow": ("keys.create",)}, "POST /v1/keys", None, id="privileged by name"),
        pytest.param(
            {"allow": ("keys.create",)}, "POST /v1/payments", Code.ENDPOINT_NOT_ALLOWED, id="not listed"
        ),
        pytest.param({"allow": ()}, "GET /v1/anything", Code.ENDPOINT_NOT_ALLOWED, id="an empty list"),
        pytest.param({"allow": ("POST /v1/*",)}, "POST /v1/anything", None, id="an unlisted write by a star"),
        pytest.param({"deny": ("POST /v1/*",)}, "POST /v1/payments", Code.ENDPOINT_NOT_ALLOWED, id="denied"),
        pytest.param({"deny": ("POST /v1/*",)}, "GET /v1/customers/c", None, id="another method denied"),
        pytest.param(
            {"allow": ("payments.create",), "deny": ("POST /v1/payments",)},
            "POST /v1/payments",
            Code.ENDPOINT_NOT_ALLOWED,
            id="deny wins over allow",
        ),
        pytest.param(
            {"allow": ("keys.update",), "deny": ("POST /v1/keys/*",)},
            "POST /v1/keys/k_1",
            Code.ENDPOINT_NOT_ALLOWED,
            id="deny by a star wins over allow by name",
        ),
    ],
)
def test_endpoints_are_allowed_by_list_and_never_by_surprise(
    limits: dict[str, tuple[str, ...]], call: str, code: Code | None
) -> None:
    """Deny first, then the list; without one, everything whose cost is known and that is not privileged."""
    assert code_of(admit(grant(**limits), access(call), NOW)) is code  # type: ignore[arg-type]


def test_an_endpoint_refusal_says_what_is_allowed() -> None:
    """At most five entries, or that it is nothing; what was attempted stands in the facts."""
    allow = tuple(f"GET /v1/x{n}" for n in range(6))
    refusal = refused(admit(grant(allow=allow), access("POST /v1/payments"), NOW))
    assert "GET /v1/x4" in refusal.sentence
    assert "GET /v1/x5" not in refusal.sentence
    assert "POST /v1/payments" in refusal.remedy
    assert refusal.facts == {"attempted": "payments.create"}
    assert "nothing" in refused(admit(grant(allow=()), access("GET /v1/y"), NOW)).sentence


@pytest.mark.parametrize(
    ("call", "title", "needs_body"),
    [
        pytest.param("POST /v1/payments", "payments.create", True, id="a listed write"),
        pytest.param("GET /v1/customers/c", "customers.retrieve", False, id="a listed read"),
        pytest.param("POST /v1/other", "POST /v1/other", False, id="an unlisted write"),
        pytest.param("HEAD /v1/other", "HEAD /v1/other", False, id="an unlisted read"),
    ],
)
def test_an_access_has_a_title_and_knows_whether_its_body_decides(
    call: str, title: str, needs_body: bool
) -> None:
    """The operation's name, or method and path; only the body of a listed write can tell a cost."""
    attempted = access(call)
    assert (attempted.title, attempted.needs_body(grant())) == (title, needs_body)


# --- authorize: what it costs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "body", "price"),
    [
        pytest.param("POST /v1/tips", ONE_DOLLAR, Price(USD, 100, "USD"), id="an amount"),
        pytest.param("POST /v1/customers", "", FREE, id="free"),
        pytest.param("GET /v1/anything", "", FREE, id="an unlisted read"),
    ],
)
@pytest.mark.parametrize("cap", [None, 5 * USD])
def test_what_can_be_priced_is_priced_under_a_cap_or_not(
    call: str, body: str, price: Price, cap: int | None
) -> None:
    """Rows of keys without a cap show the same amounts."""
    permit = permitted(Desk(grant(scope(cap))).ask(body, call))
    assert permit.price == price
    assert (permit.attempt.hold.nano, permit.replay_of) == (price.nano, None)


@pytest.mark.parametrize(
    ("call", "body"),
    [
        pytest.param("POST /v1/payments", "currency=usd", id="no amount"),
        pytest.param("POST /v1/payments", "amount=1_0&currency=usd", id="an odd amount"),
        pytest.param("POST /v1/payments", "amount=100&currency=xaf", id="no rate"),
        pytest.param("POST /v1/subscriptions", "", id="unpriceable"),
        pytest.param("POST /v1/payments/p_9", "amount=5", id="made elsewhere"),
        pytest.param("POST /v1/anything", "", id="an unlisted write"),
        pytest.param("DELETE /v1/customers/c_1", "", id="an unlisted delete"),
    ],
)
@pytest.mark.parametrize("limits", [(USD, None, None), (None, USD, None), (None, None, USD)])
def test_law_4_what_cannot_be_told_is_refused_under_any_cap(
    call: str, body: str, limits: tuple[int | None, int | None, int | None]
) -> None:
    """Per day, in total or per call: amount_unknown. Without a cap it leaves, at a cost nobody knows."""
    daily, total, per_call = limits
    desk = Desk(grant(scope(daily, total), call_cap=per_call))
    assert code_of(desk.ask(body, call)) is Code.AMOUNT_UNKNOWN
    assert desk.ledger.open == set()

    free = Desk(grant(allow=("POST /v1/*", "DELETE /v1/*")))
    assert permitted(free.ask(body, call)).price == UNPRICED


def test_a_field_with_two_readings_is_refused_without_a_cap_too() -> None:
    """What the row would show could be wrong."""
    assert code_of(Desk(grant()).ask("amount=1&amount=2&currency=usd")) is Code.AMBIGUOUS_REQUEST


def test_law_5_a_key_revoked_while_its_body_came_in_takes_nothing() -> None:
    """The key is judged again in the step that would hold."""
    desk = Desk(grant(scope(5 * USD)))
    assert admit(desk.grant, access(), NOW) is None
    desk.grant.revoked_ns = NOW
    assert code_of(desk.ask()) is Code.KEY_REVOKED
    assert desk.ledger.open == set()


# --- the cap --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        pytest.param({"daily": USD}, None, id="exactly at the daily cap"),
        pytest.param({"daily": USD - 1}, Code.CAP_EXHAUSTED, id="one nano above the daily cap"),
        pytest.param({"daily": 3 * USD, "posted": 2 * USD}, None, id="with what was spent, exactly"),
        pytest.param({"daily": 3 * USD, "posted": 2 * USD + 1}, Code.CAP_EXHAUSTED, id="with spent, above"),
        pytest.param({"daily": 3 * USD, "held": 2 * USD}, None, id="with what is held, exactly"),
        pytest.param({"daily": 3 * USD, "held": 2 * USD + 1}, Code.CAP_EXHAUSTED, id="with held, above"),
        pytest.param({"daily": USD, "posted": USD, "day": DAY - 1}, None, id="yesterday is another day"),
        pytest.param({"total": USD}, None, id="exactly at the total cap"),
        pytest.param({"total": USD - 1}, Code.TOTAL_CAP_EXHAUSTED, id="one nano above the total cap"),
        pytest.param({"total": USD, "posted": 1, "day": DAY - 1}, Code.TOTAL_CAP_EXHAUSTED, id="of all days"),
        pytest.param(
            {"total": USD, "held": 1, "day": DAY - 9}, Code.TOTAL_CAP_EXHAUSTED, id="old holds count"
        ),
        pytest.param({"posted": 10**18}, None, id="no cap at all"),
    ],
)
def test_L1_a_cap_is_kept_to_the_nano(limits: dict[str, int], code: Code | None) -> None:
    """Spent, held and asked for together may reach a cap and not pass it by a nano-dollar."""
    assert code_of(Desk(grant(scope(**limits))).ask(ONE_DOLLAR)) is code


@pytest.mark.parametrize(
    ("cap", "code"),
    [
        pytest.param(USD, None, id="exactly"),
        pytest.param(USD - 1, Code.CALL_CAP_EXCEEDED, id="one nano above"),
    ],
)
def test_L1_a_call_cap_is_kept_to_the_nano(cap: int, code: Code | None) -> None:
    """One call may ask for its cap and no more; the refusal shows both."""
    verdict = Desk(grant(call_cap=cap)).ask(ONE_DOLLAR)
    assert code_of(verdict) is code
    if isinstance(verdict, Refusal):
        assert verdict.facts == {"call_cap_usd": "0.999999999", "requested_usd": "1.00"}
        assert verdict.retry_after_s is None


@pytest.mark.parametrize("call", ["POST /v1/customers", "GET /v1/anything"])
def test_calls_that_cost_nothing_pass_an_exhausted_cap(call: str) -> None:
    """An agent without money can still read, and clean up after itself."""
    key = grant(scope(USD, USD, posted=2 * USD), call_cap=1)
    assert permitted(Desk(key).ask("", call)).price.nano == 0


def test_L2_calls_under_way_count_before_any_answer() -> None:
    """Of ten dollars asked for before any answer, five leave; an answer of no makes room for one more."""
    desk = Desk(grant(scope(5 * USD)))
    verdicts = [desk.ask() for _ in range(10)]
    assert [code_of(verdict) for verdict in verdicts] == [None] * 5 + [Code.CAP_EXHAUSTED] * 5
    desk.ledger.settle(permitted(verdicts[0]).attempt, Verdict.REFUSED)
    assert [code_of(desk.ask()) for _ in range(2)] == [None, Code.CAP_EXHAUSTED]


@given(st.integers(1, 50), st.lists(st.tuples(st.integers(1, 30), st.sampled_from(Verdict)), max_size=30))
def test_L1_whatever_comes_back_the_vendor_is_never_owed_more_than_the_cap(
    cap: int, calls: list[tuple[int, Verdict]]
) -> None:
    """In dollars: what succeeded or may have succeeded stays within the cap."""
    desk, owed = Desk(grant(scope(cap * USD))), 0
    for dollars, verdict in calls:
        answer = desk.ask(f"amount={dollars * 100}&currency=usd")
        if isinstance(answer, Permit):
            desk.ledger.settle(answer.attempt, verdict)
            owed += dollars if verdict in (Verdict.POSTED, Verdict.SILENT) else 0
        else:
            assert owed + dollars > cap
        assert owed <= cap


def test_L11_refunds_give_nothing_back() -> None:
    """Charging $1 and refunding it spends $2 of the cap: on $10, five cycles and no charge more."""
    desk = Desk(grant(scope(10 * USD)))
    known = {"p_1": Remembered(USD, 100, "USD")}
    charged = 0
    for _ in range(1000):
        charge = desk.ask()
        if isinstance(charge, Permit):
            charged += 1
            desk.ledger.settle(charge.attempt, Verdict.POSTED)
        refund = desk.ask("amount=100", "POST /v1/payments/p_1/refund", known=known)
        if isinstance(refund, Permit):
            desk.ledger.settle(refund.attempt, Verdict.POSTED)
    assert charged == 5


def test_L12_a_hold_counts_on_every_scope_and_the_refusal_names_whose_limit_it_was() -> None:
    """A parent's cap binds its child; the sentence says that it is the parent's."""
    child, parent = scope(10 * USD), replace(scope(USD), owner="tenant acme")
    desk = Desk(grant(child, parent))
    permitted(desk.ask())
    assert (child.account.used(DAY), parent.account.used(DAY)) == (USD, USD)
    refusal = refused(desk.ask())
    assert "tenant acme" in refusal.sentence
    assert child.account.used(DAY) == USD


def test_L10_without_a_cap_the_ledger_ends_where_the_journal_does() -> None:
    """A sum that would pass a signed 64-bit integer is refused, exactly at its edge."""
    assert code_of(Desk(grant(scope(posted=NANO_MAX - USD))).ask()) is None
    assert code_of(Desk(grant(scope(posted=NANO_MAX - USD + 1))).ask()) is Code.TOTAL_CAP_EXHAUSTED


def test_L8_the_day_is_that_of_the_decision() -> None:
    """A nanosecond before midnight the cap is yesterday's; at midnight there is a new one."""
    midnight = (DAY + 1) * NS_PER_DAY
    desk = Desk(grant(scope(USD)))
    verdicts = [desk.ask(now_ns=midnight + offset) for offset in (-2, -1, 0, 1)]
    assert [code_of(verdict) for verdict in verdicts] == [None, Code.CAP_EXHAUSTED] * 2


# --- what a refusal tells -------------------------------------------------------------------------------


def test_L15_a_cap_refusal_names_cap_spent_held_and_remedy() -> None:
    """Sentence and facts both show the limit, what is spent, held and asked for; and until when."""
    refusal = refused(Desk(grant(scope(1250 * USD, posted=1000 * USD, held=250 * USD))).ask())
    assert refusal.sentence == (
        "payments.create asks for $1.00 and the daily cap of key vk_test is $1,250.00, $1,000.00 of it spent"
        " and $250.00 held; it resets at 00:00 UTC, in 12 h 0 min"
    )
    assert refusal.facts == {
        "cap_usd": "1250.00",
        "spent_usd": "1000.00",
        "held_usd": "250.00",
        "requested_usd": "1.00",
    }
    assert "00:00 UTC" in refusal.remedy
    assert refusal.retry_after_s == 43_200


def test_L15_a_total_cap_refusal_names_the_same_and_promises_no_reset() -> None:
    """Waiting does not help, so there is no time to wait."""
    refusal = refused(Desk(grant(scope(None, 5 * USD, posted=3 * USD, held=2 * USD, day=DAY - 3))).ask())
    assert refusal.sentence == (
        "payments.create asks for $1.00 and the total cap of key vk_test is $5.00, $3.00 of it spent"
        " and $2.00 held"
    )
    assert refusal.facts == {
        "cap_usd": "5.00",
        "spent_usd": "3.00",
        "held_usd": "2.00",
        "requested_usd": "1.00",
    }
    assert refusal.remedy
    assert refusal.retry_after_s is None


@pytest.mark.parametrize(
    ("seconds", "wait"),
    [(59, "59 s"), (90, "1 min 30 s"), (3_599, "59 min 59 s"), (3_600, "1 h 0 min"), (5_459, "1 h 30 min")],
)
def test_a_wait_is_told_in_hours_or_in_minutes(seconds: int, wait: str) -> None:
    """Close to midnight the sentence counts minutes and seconds."""
    refusal = refused(Desk(grant(scope(1))).ask(now_ns=(DAY + 1) * NS_PER_DAY - seconds * 10**9))
    assert refusal.sentence.endswith(f"in {wait}")
    assert refusal.retry_after_s == seconds


def test_a_refusal_about_money_carries_what_was_asked_for() -> None:
    """The audit row can show it; a refusal about anything else carries nothing."""
    refusal = refused(Desk(grant(scope(1))).ask("amount=500&currency=jpy"))
    assert (refusal.requested_nano, refusal.currency, refusal.amount_minor) == (3_333_333_334, "JPY", 500)
    other = refused(Desk(grant(scope(1))).ask("currency=jpy"))
    assert (other.requested_nano, other.currency, other.amount_minor) == (None, None, None)


# --- retries --------------------------------------------------------------------------------------------


def test_law_12_a_retry_joins_the_first_on_a_cap_that_has_no_room_for_it() -> None:
    """Same key, same request: it leaves under the first call's hold and names that call."""
    desk = Desk(grant(scope(USD)))
    first = permitted(desk.ask(replay=b"k"))
    retry = permitted(desk.ask(replay=b"k"))
    assert retry.replay_of == first.attempt.hold.call_id == "call_1"
    assert retry.attempt.hold is first.attempt.hold
    assert desk.grant.scopes[0].account.used(DAY) == USD


def test_law_12_a_retry_joins_until_the_window_of_the_vendor_ends() -> None:
    """A nanosecond before 24 hours are over, the vendor still knows the first."""
    desk = Desk(grant(scope(10 * USD)))
    first = permitted(desk.ask(replay=b"k"))
    retry = permitted(desk.ask(replay=b"k", now_ns=NOW + NS_PER_DAY - 1))
    assert retry.attempt.hold is first.attempt.hold


@pytest.mark.parametrize(
    "also",
    [
        pytest.param({"replay": b"k", "digest": b"other"}, id="another request"),
        pytest.param({"replay": b"other"}, id="another key"),
        pytest.param({}, id="no key"),
        pytest.param({"replay": b"k", "now_ns": NOW + NS_PER_DAY}, id="a day later"),
    ],
)
def test_L7_what_is_no_retry_is_never_free(also: dict[str, Any]) -> None:
    """Another request under the same key, or the same after a day, takes a hold of its own."""
    desk = Desk(grant(scope(10 * USD)))
    permitted(desk.ask(replay=b"k"))
    second = permitted(desk.ask(**also))
    assert second.replay_of is None
    assert desk.grant.scopes[0].account.used_total() == 2 * USD


def test_L7_a_vendor_that_knows_no_retries_has_none() -> None:
    """Where the vendor would charge again, so do we."""
    vendor = read_vendor(HEAD + OPERATIONS)
    key, ledger = grant(scope(10 * USD), vendor=vendor), Ledger()
    for _ in range(2):
        verdict = authorize(
            key,
            access(vendor=vendor),
            request(ONE_DOLLAR, replay=b"k"),
            ledger,
            RATES,
            now_ns=NOW,
            tick_ns=0,
            row=None,
            call_id="",
        )
        assert permitted(verdict).replay_of is None
    assert key.scopes[0].account.used(DAY) == 2 * USD


def test_law_5_a_revoked_key_cannot_retry() -> None:
    """A hold that is still open lets nothing more out."""
    desk = Desk(grant(scope(USD)))
    first = permitted(desk.ask(replay=b"k"))
    desk.grant.revoked_ns = NOW
    assert code_of(desk.ask(replay=b"k")) is Code.KEY_REVOKED
    assert first.attempt.hold.outcome is Outcome.PENDING


# --- lineage: every limit of every holder ---------------------------------------------------------------


def family(child: Grant, parent: Grant, tenant: Scope | None = None) -> Desk:
    """A key, and the one that it comes from."""
    child.key_id, child.scope.owner = "vk_child", "key vk_child"
    parent.key_id, parent.scope.owner = "vk_parent", "key vk_parent"
    child.ancestors = parent.lineage
    child.scopes = (child.scope, *parent.scopes, *(() if tenant is None else (tenant,)))
    return Desk(child)


def stopped(name: str) -> Grant:
    """A key that may do nothing any more."""
    key = grant(expires_ns=NOW if name == "expired" else None)
    key.revoked_ns = NOW if name == "revoked" else None
    key.frozen = "it cost more" if name == "frozen" else None
    key.paused = {"paused": "an operator paused it", "looped": LOOPED}.get(name)
    return key


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("revoked", Code.KEY_REVOKED),
        ("frozen", Code.KEY_REVOKED),
        ("expired", Code.KEY_EXPIRED),
        ("paused", Code.KEY_REVOKED),
        ("looped", Code.LOOP_DETECTED),
    ],
)
def test_law_9_what_stops_a_key_stops_all_that_come_from_it(name: str, code: Code) -> None:
    """The sentence says whose it was; a grandparent's counts as a parent's does."""
    alone = refused(admit(stopped(name), access(), NOW))
    assert (alone.code, "which it comes from" in alone.sentence) == (code, False)
    desk = family(grant(), stopped(name))
    for verdict in (admit(desk.grant, None, NOW), desk.ask()):
        assert code_of(verdict) is code
        assert "key vk_parent, which it comes from," in refused(verdict).sentence
    assert code_of(family(grant(), family(grant(), stopped(name)).grant).ask()) is code
    assert desk.ledger.open == set()


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("expired", "revoked", Code.KEY_REVOKED),
        ("paused", "expired", Code.KEY_EXPIRED),
        ("paused", "revoked", Code.KEY_REVOKED),
        ("looped", "expired", Code.KEY_EXPIRED),
    ],
)
def test_a_pause_is_told_after_what_can_not_be_undone(first: str, second: str, code: Code) -> None:
    """Whichever of the two it is that ended."""
    for child, parent in ((first, second), (second, first)):
        refusal = refused(family(stopped(child), stopped(parent)).ask())
        assert refusal.code is code
        assert "paused" not in refusal.sentence


def test_a_paused_key_names_its_remedy() -> None:
    """Only an operator can let it go on, and it is the paused key that goes on."""
    assert "kbctl resume vk_parent" in refused(family(grant(), stopped("paused")).ask()).remedy


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        pytest.param({"vendors": ("other",)}, Code.VENDOR_NOT_ALLOWED, id="vendor"),
        pytest.param({"deny": ("payments.create",)}, Code.ENDPOINT_NOT_ALLOWED, id="denied"),
        pytest.param({"allow": ("POST /v1/tips",)}, Code.ENDPOINT_NOT_ALLOWED, id="not listed"),
        pytest.param({"rules": ("customer == cus_1",)}, Code.PARAM_NOT_ALLOWED, id="a field that is absent"),
        pytest.param({"rules": ("amount <= 99",)}, Code.PARAM_NOT_ALLOWED, id="a field beyond its bound"),
        pytest.param({"call_cap": USD - 1}, Code.CALL_CAP_EXCEEDED, id="call cap"),
    ],
)
def test_law_9_a_limit_of_the_parent_binds_the_child(limits: dict[str, Any], code: Code) -> None:
    """However wide its own are, and however either is changed later."""
    refusal = refused(family(grant(allow=("POST /v1/*",)), grant(**limits)).ask())
    assert refusal.code is code
    assert "vk_parent" in refusal.sentence
    own = refused(family(grant(**limits), grant()).ask())
    assert own.code is code
    assert "vk_parent" not in own.sentence


def test_law_9_a_childs_list_does_not_reach_what_its_parent_may_not_by_default() -> None:
    """A privileged operation and an unlisted write are the parent's to allow."""
    child = grant(allow=("keys.create", "POST /v1/anything"))
    for call in ("POST /v1/keys", "POST /v1/anything"):
        assert code_of(family(child, grant()).ask("", call)) is Code.ENDPOINT_NOT_ALLOWED
        assert code_of(Desk(grant(allow=("keys.create", "POST /v1/anything"))).ask("", call)) is None


def test_law_11_another_account_must_be_listed_by_every_holder() -> None:
    """By a rule that binds the call; and every such rule must admit it."""
    listed, other = "acme-account in acct_1,acct_2", "acme-account == acct_1"
    for rules, account, code in [
        ((listed,), "acct_2", None),
        ((listed, other), "acct_1", None),
        ((listed, other), "acct_2", Code.ACCOUNT_NOT_ALLOWED),
        ((listed,), "acct_3", Code.ACCOUNT_NOT_ALLOWED),
        ((f"payments.create: {listed}",), "acct_2", None),
        ((f"tips.create: {listed}",), "acct_2", Code.ACCOUNT_NOT_ALLOWED),
        (("customer == cus_1",), "acct_2", Code.ACCOUNT_NOT_ALLOWED),
    ]:
        call = access(accounts={"acme-account": account})
        assert code_of(admit(grant(rules=rules), call, NOW)) is code
        assert code_of(admit(family(grant(rules=rules), grant(rules=rules)).grant, call, NOW)) is code
    call = access(accounts={"acme-account": "acct_1"})
    refusal = refused(admit(family(grant(rules=(listed,)), grant()).grant, call, NOW))
    assert "vk_parent" in refusal.sentence


def test_a_ruled_field_with_two_readings_is_ambiguous() -> None:
    """Said by the rule's holder; the remedy is another than for a wrong value."""
    desk = family(grant(), grant(rules=("amount <= 99",)))
    twice = refused(desk.ask("amount=1&amount=1&currency=usd"))
    assert (twice.code, twice.facts) == (Code.AMBIGUOUS_REQUEST, {"rule": "amount <= 99"})
    assert "vk_parent" in twice.sentence
    wrong = refused(desk.ask())
    assert wrong.remedy != twice.remedy
    assert permitted(desk.ask("amount=99&currency=usd")).price.nano == 99 * USD // 100


def test_a_body_decides_where_a_rule_or_a_loop_guard_of_any_holder_needs_it() -> None:
    """Of an unlisted write too; a read has none."""
    looped = grant()
    looped.scope.set_loop(read_loop("1/1m", "deny"))
    for parent in (grant(rules=("customer == cus_1",)), looped):
        assert access("POST /v1/other").needs_body(family(grant(), parent).grant)
        assert not access("GET /v1/other").needs_body(parent)


DOLLARS = st.none() | st.integers(0, 6)


def nano(usd: int | None) -> int | None:
    """The same as a cap."""
    return None if usd is None else usd * USD


@given(
    st.lists(st.tuples(DOLLARS, DOLLARS, DOLLARS), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([None, *Verdict])), max_size=12),
)
def test_L1_a_hold_is_taken_in_every_scope_or_in_none(
    caps: list[tuple[int | None, int | None, int | None]], calls: list[tuple[int, Verdict | None]]
) -> None:
    """A line of keys: granted exactly when it fits everywhere, and after a refusal no account has changed."""
    scopes = [scope(nano(daily), nano(total)) for daily, total, _ in caps]
    desk, used = Desk(grant(*scopes)), 0
    for each, (_, _, most) in zip(scopes, caps, strict=True):
        each.call_cap_nano = nano(most)
    for dollars, ending in calls:
        fits = all(
            (call is None or dollars <= call)
            and all(cap is None or used + dollars <= cap for cap in (daily, total))
            for daily, total, call in caps
        )
        verdict = desk.ask(f"amount={dollars * 100}&currency=usd")
        assert isinstance(verdict, Permit) is fits
        if isinstance(verdict, Permit):
            used += dollars
            if ending is not None:
                desk.ledger.settle(verdict.attempt, ending)
            if ending in (Verdict.REFUSED, Verdict.UNSENT):
                used -= dollars
        assert {each.account.used(DAY) for each in scopes} == {used * USD}


# --- how fast -------------------------------------------------------------------------------------------


def paced(rate: str = "", requests: int | None = None, loop: str = "", action: str = "deny") -> Grant:
    """A key with a pace and no cap."""
    key = grant()
    key.scope.set_rate(read_rate(rate) if rate else None, 0)
    key.scope.daily_requests = requests
    key.loop = read_loop(loop, action) if loop else None
    key.scope.set_loop(key.loop)
    return key


@pytest.mark.parametrize("whose", ["child", "parent", "tenant"])
def test_L12_a_rate_binds_by_its_narrowest_scope_and_says_when_again(whose: str) -> None:
    """Two go at once, the third waits for half a minute."""
    tenant = replace(scope(), owner="tenant acme")
    child, parent = grant(), grant()
    {"child": child.scope, "parent": parent.scope, "tenant": tenant}[whose].set_rate(read_rate("2/m"), 0)
    desk = family(child, parent, tenant)
    assert [code_of(desk.ask()) for _ in range(3)] == [None, None, Code.RATE_LIMITED]
    refusal = refused(desk.ask(now_ns=NOW + 1))
    assert {"child": "key vk_child", "parent": "key vk_parent", "tenant": "tenant acme"}[whose] in (
        refusal.sentence
    )
    assert (refusal.retry_after_s, refusal.facts) == (30, {"rate": "2/m"})
    assert refusal.requested_nano == USD
    assert code_of(desk.ask(now_ns=NOW + 30 * 10**9 - 1)) is Code.RATE_LIMITED
    assert code_of(desk.ask(now_ns=NOW + 30 * 10**9)) is None


def test_a_refusal_takes_nothing_of_any_pace() -> None:
    """Asked of all first, taken from all then: a cap that is full costs no request, rate or loop."""
    key = paced("3/h", 3, "3/1h")
    key.scope.daily_cap_nano = 0
    desk = Desk(key)
    for _ in range(5):
        assert code_of(desk.ask()) is Code.CAP_EXHAUSTED
    assert key.scope.bucket is not None
    assert key.scope.guard is not None
    assert (key.scope.bucket.left(NOW), key.scope.requests_left(DAY), len(key.scope.guard)) == (3, 3, 0)
    key.scope.daily_cap_nano = None
    permitted(desk.ask())
    left = (key.scope.bucket.left(NOW), key.scope.requests_left(DAY), key.scope.guard.seen(b"request", NOW))
    assert left == (2, 2, 1)


def test_L12_a_request_budget_counts_on_every_scope_until_midnight() -> None:
    """A parent's is used up by its children together; the new day has a new one."""
    parent = paced(requests=2)
    desks = [family(grant(), parent) for _ in range(2)]
    assert [code_of(desks[n].ask("", "GET /v1/x")) for n in (0, 1)] == [None, None]
    refusal = refused(desks[0].ask("", "GET /v1/x"))
    assert refusal.code is Code.REQUEST_BUDGET_EXHAUSTED
    assert "vk_parent has sent the 2 requests" in refusal.sentence
    assert (refusal.retry_after_s, refusal.facts) == (43_200, {"daily_requests": "2"})
    assert parent.scope.account.requests == {DAY: 2}
    assert code_of(desks[0].ask("", "GET /v1/x", now_ns=NOW + 43_200 * 10**9)) is None


def test_law_12_a_retry_counts_as_a_request_and_not_as_money() -> None:
    """The pace asks how often something is sent."""
    desk = Desk(paced("9/h", 2, "9/1h"))
    permitted(desk.ask(replay=b"k"))
    assert permitted(desk.ask(replay=b"k")).replay_of == "call_1"
    assert code_of(desk.ask(replay=b"k")) is Code.REQUEST_BUDGET_EXHAUSTED
    assert desk.grant.scope.account.used(DAY) == USD


@pytest.mark.parametrize("whose", ["child", "parent"])
def test_a_loop_is_denied_or_pauses_the_key_whose_guard_it_is(whose: str) -> None:
    """Another request still goes where only the loop is denied, and none where the key is paused."""
    for action in ("deny", "pause"):
        guarded = paced(loop="2/1m", action=action)
        desk = family(guarded, grant()) if whose == "child" else family(grant(), guarded)
        assert [code_of(desk.ask()) for _ in range(3)] == [None, None, Code.LOOP_DETECTED]
        refusal = refused(desk.ask(digest=b"another") if action == "pause" else desk.ask())
        assert refusal.code is Code.LOOP_DETECTED
        assert guarded.paused == (LOOPED if action == "pause" else None)
        if action == "pause":
            assert f"kbctl resume vk_{whose}" in refusal.remedy
        else:
            assert refusal.facts == {"loop": "2/1m"}
            assert ("vk_parent" in refusal.sentence) is (whose == "parent")
            assert code_of(desk.ask(digest=b"another")) is None
            assert code_of(desk.ask(now_ns=NOW + 60 * 10**9)) is None


def test_the_refusal_that_pauses_says_so() -> None:
    """It is the first that the agent sees of it."""
    desk = Desk(paced(loop="1/1m", action="pause"))
    permitted(desk.ask())
    refusal = refused(desk.ask())
    assert "within 1m" in refusal.sentence
    assert "the key is paused" in refusal.remedy


# --- laws over random calls -----------------------------------------------------------------------------


CALLS = st.sampled_from(
    "POST /v1/payments;POST /v1/payments/p_1;POST /v1/refunds;POST /v1/keys;POST /v1/keys/k_1;"
    "POST /v1/subscriptions;POST /v1/customers;GET /v1/customers/c_1;GET /v1/x;POST /v1/x;DELETE /v1/x".split(
        ";"
    )
)
ENTRIES = st.lists(
    st.sampled_from(
        ["POST /v1/*", "POST /v1/payments", "GET /v1/*", "keys.create", "POST /v1/*/k_1", "DELETE /*"]
    ),
    max_size=3,
).map(tuple)


def ask_once(key: Grant, attempted: Access, body: str) -> Permit | Refusal:
    """One call on a fresh ledger."""
    return authorize(
        key, attempted, request(body), Ledger(), RATES, now_ns=NOW, tick_ns=0, row=None, call_id=""
    )


@given(
    CALLS,
    st.none() | ENTRIES,
    ENTRIES,
    st.none() | st.integers(0, 2 * USD),
    st.sampled_from(["", ONE_DOLLAR]),
)
def test_law_10_no_list_and_no_cap_lets_out_what_it_does_not_name(
    call: str, allow: tuple[str, ...] | None, deny: tuple[str, ...], cap: int | None, body: str
) -> None:
    """Whatever the limits: a permit is within the cap, not denied, allowed, and privileged only by name."""
    attempted = access(call)
    verdict = ask_once(grant(scope(cap), allow=allow, deny=deny), attempted, body)
    if isinstance(verdict, Refusal):
        return
    if cap is not None:
        assert verdict.price.readable
        assert verdict.price.nano <= cap
    if attempted.operation is not None and attempted.operation.privileged:
        assert attempted.operation.name in (allow or ())
    assert "POST /v1/*" not in deny or attempted.method != "POST"
    assert "DELETE /*" not in deny or attempted.method != "DELETE"
    assert allow is None or allow
