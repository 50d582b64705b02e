"""The same thing asked for twice: what is the same, who is told, and who refuses it."""

from dataclasses import replace
from typing import Any

import pytest

from kbctld.core.document import read_batch, read_document
from kbctld.core.duplicates import FLAGGED, Duplicates, fingerprint, is_watched, read_duplicates
from kbctld.core.form import read_form
from kbctld.core.grant import Grant
from kbctld.core.ledger import Account, Hold, Ledger, Outcome, Scope, Verdict
from kbctld.core.pace import PaceError
from kbctld.core.policy import Permit, authorize
from kbctld.core.refusal import Code, Refusal
from kbctld.core.vendor import read_vendor
from tests.core.support import (
    HEAD,
    IDEMPOTENCY,
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

S = 10**9
MINUTE = 60 * S


@pytest.mark.parametrize(
    ("text", "action", "window_ns", "shown"),
    [
        ("flag", "flag", 10 * MINUTE, "flag/10m"),
        ("refuse", "refuse", 10 * MINUTE, "refuse/10m"),
        ("flag/1s", "flag", S, "flag/1s"),
        ("refuse/24h", "refuse", 24 * 60 * MINUTE, "refuse/24h"),
    ],
)
def test_what_is_done_and_within_how_long(text: str, action: str, window_ns: int, shown: str) -> None:
    """Ten minutes where nothing is said; what was read is shown whole."""
    found = read_duplicates(text)
    assert (found.action, found.window_ns, found.text) == (action, window_ns, shown)
    assert read_duplicates(found.text) == found


@pytest.mark.parametrize(
    "text",
    ["", "deny", "refuse/", "refuse/0m", "refuse/25h", "refuse/10", "refuse/1d", "Refuse", "refuse/\uff11m"],
)
def test_what_does_not_say_it_is_an_error_that_shows_how(text: str) -> None:
    with pytest.raises(PaceError, match="such as refuse/10m"):
        read_duplicates(text)


REPEATING = """
[[operation]]
name = "codes.send"
match = "POST /v1/codes"
repeats = true
cost = { kind = "amount", amount = "amount", currency = "currency" }
"""
TOKENS = """
[[operation]]
name = "chat"
match = "POST /v1/chat"
cost = { kind = "tokens", api = "openai-chat" }

[[model_price]]
model = "m"
input_per_million = 1
source = "s"
dated = "2026-11-21"
"""
SPENDING = read_vendor(HEAD + IDEMPOTENCY + OPERATIONS + REPEATING)


@pytest.mark.parametrize(
    ("call", "watched"),
    [
        ("POST /v1/payments", True),
        ("POST /v1/payments/p_1", True),
        ("POST /v1/customers", False),
        ("POST /v1/subscriptions", False),
        ("POST /v1/nobody_knows", False),
        ("POST /v1/codes", False),
        ("GET /v1/payments", False),
    ],
)
def test_only_what_spends_by_its_request_is_watched(call: str, watched: bool) -> None:
    """Not what is free, unknown or a read, nor what its vendor file says is asked for again as a rule."""
    asked = access(call, vendor=SPENDING)
    assert is_watched(asked.operation, asked.method) is watched


def test_a_read_is_not_watched_even_where_it_costs() -> None:
    """A lookup is repeated without a second thought."""
    paid = access("POST /v1/payments")
    assert is_watched(paid.operation, "POST")
    assert not is_watched(paid.operation, "GET")


def test_identical_prompts_are_no_suspicion() -> None:
    """Agents ask a language model the same again; what they mean is another answer."""
    vendor = read_vendor(HEAD.replace('body = "form"', 'body = "json"') + TOKENS)
    assert not is_watched(vendor.operations["chat"], "POST")


PLAIN: dict[str, Any] = {
    "family": "tenant:acme",
    "credential": "acme/acme",
    "call": "POST /v1/payments",
    "query": "",
    "accounts": {},
    "body": "amount=100&currency=usd&metadata[order]=7",
    "metadata": "metadata",
}


def printed(**changes: Any) -> bytes:
    said = PLAIN | changes
    asked = access(said["call"], query=said["query"], accounts=said["accounts"])
    body = read_form(said["body"].encode())
    return fingerprint(
        said["family"],
        said["credential"],
        asked.method,
        asked.target,
        asked.accounts,
        body,
        said["metadata"],
    )


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"body": "metadata[order]=7&currency=usd&amount=100"}, id="order"),
        pytest.param({"body": "amount=%31%30%30&currency=usd&metadata%5Border%5D=7"}, id="spelling"),
        pytest.param({"body": PLAIN["body"] + "&metadata[agent_run_id]=run_2"}, id="another run"),
        pytest.param({"body": PLAIN["body"] + "&metadata[kbctl_key_id]=vk_2"}, id="a stamp"),
    ],
)
def test_the_same_however_it_is_written_and_whoever_asks(changes: dict[str, Any]) -> None:
    assert printed(**changes) == printed()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"family": "tenant:acme2"}, id="another tenant"),
        pytest.param({"credential": "acme/other"}, id="another real key"),
        pytest.param({"call": "PUT /v1/payments"}, id="another method"),
        pytest.param({"call": "POST /v1/tips"}, id="another path"),
        pytest.param({"query": "a=b"}, id="a query"),
        pytest.param({"accounts": {"acme-account": "acct_1"}}, id="another account"),
        pytest.param({"body": "amount=101&currency=usd&metadata[order]=7"}, id="another amount"),
        pytest.param({"body": "amount=100&currency=usd&metadata[order]=8"}, id="other metadata"),
        pytest.param(
            {"metadata": None, "body": PLAIN["body"] + "&metadata[agent_run_id]=r"}, id="no metadata there"
        ),
    ],
)
def test_another_thing_has_another_fingerprint(changes: dict[str, Any]) -> None:
    assert printed(**changes) != printed()


def test_accounts_have_no_order_and_documents_no_spelling() -> None:
    asked = access("POST /v1/payments")
    one, two = (
        fingerprint("f", "c", "POST", asked.target, accounts, read_document(body), "metadata")
        for accounts, body in (
            ({"a": "1", "b": "2"}, b'{"x": 1, "metadata": {"agent_run_id": "r", "n": "1"}}'),
            ({"b": "2", "a": "1"}, b'{"metadata":{"n":"1"},"x":1}'),
        )
    )
    assert one == two


DOLLAR = "amount=100&currency=usd"


# --- the decision -----------------------------------------------------------------------------------------


def watching(
    text: str | None = "refuse/10m", *, parent: Grant | None = None, daily: int = 1000 * USD
) -> Grant:
    made = grant(scope(daily), parent=parent)
    made.duplicates = None if text is None else read_duplicates(text)
    return made


def asked(
    desk: Desk, key: str | None = None, *, at_ns: int = NOW, body: str = "amount=100&currency=usd"
) -> Any:
    """A payment, with an idempotency key of its own or of that name."""
    desk_key = key or f"key-{desk.calls}"
    return desk.ask(
        body,
        now_ns=at_ns,
        replay=desk_key.encode(),
        fingerprint=body.encode(),
        idempotency_key=desk_key,
    )


def permitted(verdict: Any) -> Permit:
    assert isinstance(verdict, Permit), verdict
    return verdict


def refused(verdict: Any) -> Refusal:
    assert isinstance(verdict, Refusal), verdict
    assert verdict.code is Code.SUSPECTED_DUPLICATE
    return verdict


def test_without_the_limit_a_plan_made_again_is_a_second_charge() -> None:
    """The naive version, law 12's gap: a new idempotency key, and the money is held twice."""
    desk = Desk(watching(None))
    for at_ns in (NOW, NOW + 34 * S):
        assert permitted(asked(desk, at_ns=at_ns)).repetition is None
    assert desk.grant.scope.account.held_total == 2 * USD


def test_a_flag_tells_and_lets_through() -> None:
    desk = Desk(watching("flag/10m"))
    first = permitted(asked(desk))
    second = permitted(asked(desk, at_ns=NOW + 34 * S))
    assert second.repetition is not None
    assert second.repetition.earlier is first.attempt.hold
    assert second.repetition.holder is None
    assert second.repetition.sentence == (
        "payments.create asks for $1.00 just as call_1 did at 2026-11-21T12:00:00.000Z, 34 s ago,"
        " which is still under way"
    )
    assert desk.grant.scope.account.held_total == 2 * USD


@pytest.mark.parametrize(
    ("verdict", "state"),
    [(None, "is still under way"), (Verdict.POSTED, "was done"), (Verdict.SILENT, "may have been done")],
)
def test_what_was_done_or_may_have_been_is_refused_a_second_time(verdict: Verdict | None, state: str) -> None:
    """It names the earlier call and when, and how to go on; nothing is held for it."""
    desk = Desk(watching())
    first = permitted(asked(desk))
    if verdict is not None:
        desk.ledger.settle(first.attempt, verdict)
    refusal = refused(asked(desk, at_ns=NOW + 34 * S))
    assert refusal.http_status == 403
    assert refusal.retry_after_s is None
    assert f"call_1 did at 2026-11-21T12:00:00.000Z, 34 s ago, which {state}; key vk_test" in refusal.sentence
    assert "send its own Idempotency-Key" in refusal.remedy
    assert refusal.facts == {"duplicate_of": "call_1", "duplicate_at": "2026-11-21T12:00:00.000Z"}
    assert (refusal.requested_nano, refusal.currency, refusal.amount_minor) == (USD, "USD", 100)
    account = desk.grant.scope.account
    assert account.used_total() == USD


def test_what_was_released_is_no_twin() -> None:
    """A definite refusal by the vendor, or nothing sent: the plan may be made again."""
    desk = Desk(watching())
    for verdict in (Verdict.REFUSED, Verdict.UNSENT):
        desk.ledger.settle(permitted(asked(desk)).attempt, verdict)
    assert permitted(asked(desk)).repetition is None


def test_a_second_try_that_was_released_does_not_hide_the_first() -> None:
    desk = Desk(watching("flag/10m"))
    permitted(asked(desk))
    for name in ("call_2", "call_3"):
        second = permitted(asked(desk))
        assert second.attempt.hold.call_id == name
        assert second.repetition is not None
        assert second.repetition.earlier.call_id == "call_1"
        desk.ledger.settle(second.attempt, Verdict.REFUSED)


def test_the_newest_that_stands_is_named_in_whatever_order_they_end() -> None:
    desk = Desk(watching("flag/10m"))
    first, second, third = (permitted(asked(desk, at_ns=NOW + n)).attempt for n in range(3))
    desk.ledger.settle(second, Verdict.REFUSED)
    assert desk.ledger.find_twin(first.hold.fingerprint) is third.hold
    desk.ledger.settle(third, Verdict.REFUSED)
    assert desk.ledger.find_twin(first.hold.fingerprint) is first.hold
    desk.ledger.settle(first, Verdict.REFUSED)
    assert desk.ledger.find_twin(first.hold.fingerprint) is None


def test_a_retry_is_no_duplicate() -> None:
    """The same idempotency key: one hold, whatever the limit says."""
    desk = Desk(watching())
    permitted(asked(desk, "order-1"))
    retry = permitted(asked(desk, "order-1"))
    assert (retry.replay_of, retry.repetition) == ("call_1", None)


def test_the_same_idempotency_key_from_another_vault_key_is_the_vendor_s_to_know() -> None:
    """It repeats its answer and does nothing twice, for as long as it keeps the key."""
    desk = Desk(watching("refuse/24h"))
    permitted(asked(desk, "order-1"))
    say: dict[str, Any] = {"fingerprint": b"amount=100&currency=usd", "idempotency_key": "order-1"}
    assert permitted(desk.ask(replay=b"another vault key's", **say)).repetition is None
    hours = 60 * MINUTE
    late = Desk(watching("refuse/24h"))
    late.grant = replace_window(late.grant)
    permitted(asked(late, "order-1"))
    assert refused(late.ask(replay=b"x", now_ns=NOW + 24 * hours, **say))


def replace_window(holder: Grant) -> Grant:
    """With a window that is longer than the vendor keeps idempotency keys."""
    holder.duplicates = Duplicates("refuse", 48 * 60 * MINUTE, "refuse/48h")
    return holder


@pytest.mark.parametrize(("after_ns", "same"), [(10 * MINUTE - 1, True), (10 * MINUTE, False)])
def test_the_window_ends_to_the_nanosecond(after_ns: int, same: bool) -> None:
    desk = Desk(watching())
    permitted(asked(desk))
    assert isinstance(asked(desk, at_ns=NOW + after_ns), Refusal) is same


def test_what_costs_nothing_is_nobody_s_twin() -> None:
    desk = Desk(watching())
    for _ in range(2):
        assert permitted(asked(desk, body="amount=0&currency=usd")).repetition is None
    assert desk.ledger.find_twin(b"amount=0&currency=usd") is None


@pytest.mark.parametrize(
    ("own", "parents", "answer"),
    [
        ("flag/10m", "refuse/1m", "refused"),
        ("refuse/1m", "flag/10m", "refused"),
        (None, "refuse/1m", "refused"),
        ("flag/10m", None, "flagged"),
        (None, "flag/10m", "flagged"),
        ("flag/10m", "refuse/10s", "flagged"),
        ("refuse/10s", None, "silent"),
        (None, None, "silent"),
    ],
)
def test_law_9_the_strictest_of_the_lineage_holds(own: str | None, parents: str | None, answer: str) -> None:
    """And it is said whose limit it was."""
    parent = watching(parents)
    desk = Desk(watching(own, parent=parent))
    permitted(asked(desk))
    verdict = asked(desk, at_ns=NOW + 34 * S)
    if answer == "refused":
        whose = "key vk_test" if own and own.startswith("refuse") else "key vk_test, which it comes from,"
        assert f"; {whose} may not" in refused(verdict).sentence
    else:
        assert (permitted(verdict).repetition is not None) is (answer == "flagged")


def test_where_the_vendor_knows_no_retry_the_remedy_is_to_look() -> None:
    vendor = read_vendor(HEAD + OPERATIONS)
    key, ledger = watching(), Ledger()

    def ask(name: str) -> Any:
        return authorize(
            *(key, access("POST /v1/payments", vendor=vendor), request(DOLLAR, fingerprint=b"f")),
            *(ledger, RATES),
            now_ns=NOW,
            tick_ns=NOW,
            row=name,
            call_id=name,
        )

    permitted(ask("call_1"))
    assert refused(ask("call_2")).remedy.startswith("look it up first; ")


def test_it_comes_before_the_pace_and_after_the_cap_of_one_call() -> None:
    """The documented precedence: a duplicate takes nothing from a rate."""
    desk = Desk(watching())
    permitted(asked(desk))
    desk.grant.scope.daily_requests = 1
    assert refused(asked(desk))
    desk.grant.scope.call_cap_nano = USD // 2
    verdict = asked(desk)
    assert isinstance(verdict, Refusal)
    assert verdict.code is Code.CALL_CAP_EXCEEDED


# --- the memory -------------------------------------------------------------------------------------------


def held(name: str, at_ns: int, outcome: Outcome = Outcome.PENDING, print_: bytes = b"f") -> Hold:
    return Hold(name, name, (), 0, USD, b"r", None, at_ns, fingerprint=print_, outcome=outcome)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_what_is_read_back_in_any_order_stands_by_its_age(order: tuple[int, ...]) -> None:
    """The newest is found first; when it is released, the one before it."""
    ledger = Desk(grant()).ledger
    holds = [held(f"call_{n}", NOW + n) for n in range(3)]
    for n in order:
        ledger.remember_twin(holds[n])
    for n in (2, 1, 0):
        assert ledger.find_twin(b"f") is holds[n]
        holds[n].outcome = Outcome.VOIDED
    assert ledger.find_twin(b"f") is None


def test_behind_what_was_done_nothing_older_is_kept() -> None:
    """It would never be asked for: memory does not grow with every month of the same payment."""
    ledger = Desk(grant()).ledger
    done, older = held("done", NOW + 1, Outcome.POSTED), held("older", NOW)
    ledger.remember_twin(done)
    ledger.remember_twin(older)
    assert (done.twin, older.twin) == (None, None)
    assert ledger.find_twin(b"f") is done


def test_one_that_is_spent_lets_go_of_the_one_before_it() -> None:
    desk = Desk(watching("flag/10m"))
    permitted(asked(desk))
    second = permitted(asked(desk)).attempt
    assert second.hold.twin is not None
    desk.ledger.settle(second, Verdict.POSTED)
    assert second.hold.twin is None


def test_the_memory_is_bounded_and_forgets_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kbctld.core.ledger.TWINS_MAX", 2)
    ledger = Desk(grant()).ledger
    for name in (b"a", b"b", b"c"):
        ledger.remember_twin(held(name.decode(), NOW, print_=name))
    assert [ledger.find_twin(name) is not None for name in (b"a", b"b", b"c")] == [False, True, True]


def test_a_day_later_it_is_forgotten() -> None:
    ledger = Desk(grant()).ledger
    ledger.remember_twin(held("a", NOW, print_=b"a"))
    ledger.remember_twin(held("b", NOW + 5, print_=b"b"))
    ledger.forget_replays(NOW + 5)
    assert [ledger.find_twin(name) is not None for name in (b"a", b"b")] == [False, True]


def test_an_unknown_that_is_read_back_is_a_twin() -> None:
    """After a restart a call that may have been done still is one."""
    desk = Desk(watching())
    hold = replace(held("call_old", NOW, print_=b"amount=100&currency=usd"), accounts=())
    desk.ledger.restore_hold(hold)
    assert "which may have been done" in refused(asked(desk)).sentence


def test_by_default_it_is_told() -> None:
    assert read_duplicates("flag") == FLAGGED


def test_whose_calls_are_compared() -> None:
    """A tenant's; without one, those of a key and of all that comes from it."""
    root = grant(scope())
    assert grant(scope(), parent=root).family == root.family == "vk_test"
    tenant = Scope("tenant:acme", "tenant acme", Account())
    assert grant(scope(), tenant).family == "tenant:acme"


@pytest.mark.parametrize(
    ("method", "operation", "known"),
    [
        ("POST", "payments.create", True),
        ("POST", "tips.create", False),
        ("POST", None, False),
        ("DELETE", "payments.create", False),
    ],
)
def test_which_retries_a_vendor_knows(method: str, operation: str | None, known: bool) -> None:
    """By method, and by operation where its file names some."""
    some = read_vendor(HEAD + IDEMPOTENCY + 'operations = ["payments.create"]\n' + OPERATIONS)
    named = None if operation is None else some.operations[operation]
    assert (some.retries(method, named) is not None) is known
    assert (SPENDING.retries(method, named) is not None) is (method == "POST")
    assert read_vendor(HEAD + OPERATIONS).retries(method, named) is None


def test_a_batch_of_mails_has_a_fingerprint_of_its_own() -> None:
    """In its order: what is sent to whom first is no mark."""
    asked = access("POST /v1/payments")
    prints = {
        fingerprint("f", "c", "POST", asked.target, {}, read_batch(body), "metadata")
        for body in (b'[{"to":"a"},{"to":"b"}]', b'[ {"to": "a"}, {"to": "b"} ]', b'[{"to":"b"},{"to":"a"}]')
    }
    assert len(prints) == 2
