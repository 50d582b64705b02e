"""The ledger, told in a small language: take, join, settle, and what then counts against the cap.

One line is one story about one key with a cap of 100: ``take a 60`` sets 60 aside for call a, ``join a b``
forwards b as a retry of a, ``a posted`` ends an attempt, and ``= 60/0 open`` says what must then be held and
posted, and whether a hold is open.
"""

from dataclasses import dataclass, field
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from kbctld.core import ledger as ledgers
from kbctld.core.ledger import (
    NS_PER_DAY,
    NS_PER_S,
    Account,
    Attempt,
    Change,
    Hold,
    Ledger,
    LedgerError,
    Outcome,
    Scope,
    Verdict,
    day_of,
    seconds_to_midnight,
)
from kbctld.core.pace import read_loop, read_rate
from tests.core.support import DAY, NOW

CAP = 100
HOUR = 3_600 * NS_PER_S
WINDOW = 24 * HOUR


@dataclass
class Table:
    """One key, its ledger, and the attempts by name."""

    scope: Scope = field(default_factory=lambda: Scope("vk_test", "key vk_test", Account(), CAP, None))
    ledger: Ledger = field(default_factory=Ledger)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    rows: dict[str, tuple[Outcome, int]] = field(default_factory=dict)

    def take(
        self, name: str, nano: int, *, now_ns: int = NOW, request: bytes = b"r", replay: bytes | None = None
    ) -> Attempt:
        """Set money aside for a call."""
        attempt = self.ledger.take(
            [self.scope], row=name, call_id=name, nano=nano, now_ns=now_ns, request=request, replay=replay
        )
        self.attempts[name] = attempt
        self.rows[name] = (Outcome.PENDING, nano)
        return attempt

    def join(self, first: str, name: str) -> Attempt:
        """Forward a retry."""
        self.attempts[name] = self.ledger.join(self.attempts[first].hold, name)
        self.rows[name] = (Outcome.PENDING, 0)
        return self.attempts[name]

    def settle(
        self, name: str, verdict: Verdict, spent_nano: int | None = None, *, replayed: bool = False
    ) -> list[Change]:
        """End an attempt, and keep what that says of the rows."""
        changes = self.ledger.settle(self.attempts[name], verdict, spent_nano=spent_nano, replayed=replayed)
        for change in changes:
            self.rows[change.row] = (change.outcome, change.nano)
        return changes

    def run(self, story: str) -> None:
        """Play one story."""
        for line in story.split(";"):
            match line.split():
                case ["take", name, nano]:
                    self.take(name, int(nano))
                case ["join", first, name]:
                    self.join(first, name)
                case ["=", sums, *is_open]:
                    assert f"{self.held}/{self.posted}" == sums, line
                    assert bool(self.ledger.open) is bool(is_open), line
                case [name, "replayed", verdict, *spent]:
                    self.settle(name, Verdict(verdict), *map(int, spent), replayed=True)
                case [name, verdict, *spent]:
                    self.settle(name, Verdict(verdict), *map(int, spent))

    @property
    def held(self) -> int:
        return sum(self.scope.account.held.values())

    @property
    def posted(self) -> int:
        return sum(self.scope.account.posted.values())

    @property
    def state(self) -> object:
        """All that a settlement may change."""
        account = self.scope.account
        holds = [
            (hold.outcome, hold.attempts, hold.silent)
            for hold in dict.fromkeys(attempt.hold for attempt in self.attempts.values())
        ]
        return (
            dict(account.held),
            dict(account.posted),
            account.held_total,
            account.posted_total,
            holds,
            set(self.ledger.open),
        )


# --- stories ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "story",
    [
        pytest.param("take a 60; = 60/0 open", id="a hold counts at once"),
        pytest.param("take a 60; a posted; = 0/60", id="success spends it"),
        pytest.param("take a 60; a refused; = 0/0", id="a definite no releases it"),
        pytest.param("take a 60; a unsent; = 0/0", id="what never left releases it"),
        pytest.param("take a 60; a silent; = 60/0 open", id="silence keeps it"),
        pytest.param("take a 60; a posted 10; = 0/10", id="the truth may be less"),
        pytest.param("take a 60; a posted 0; = 0/0", id="the truth may be nothing"),
        pytest.param("take a 60; a posted 130; = 0/130", id="the truth may be more than the cap"),
        pytest.param(
            "take a 60; take b 40; = 100/0 open; a refused; = 40/0 open; b posted; = 0/40", id="two"
        ),
        pytest.param("take a 0; take b 0; a posted; = 0/0 open; b posted; = 0/0", id="two that cost nothing"),
        pytest.param(
            "take a 0; take b 60; b refused; = 0/0 open; a silent; = 0/0 open", id="free beside dear"
        ),
        pytest.param(
            "take a 60; a unsent; take b 60; = 60/0 open; b posted; = 0/60", id="released money is free"
        ),
    ],
)
def test_a_call_ends_by_what_was_proved(story: str) -> None:
    """Success posts, a definite refusal or an unsent request voids, silence keeps."""
    Table().run(story)


@pytest.mark.parametrize(
    "story",
    [
        pytest.param(
            "take a 60; join a b; = 60/0 open; a posted; = 0/60; b posted; = 0/60", id="both succeed"
        ),
        pytest.param(
            "take a 60; join a b; b posted; = 0/60; a refused; = 0/60", id="the retry succeeds first"
        ),
        pytest.param("take a 60; a silent; join a b; b posted; = 0/60", id="silence, then success"),
        pytest.param("take a 60; a silent; join a b; b posted 20; = 0/20", id="the retry tells the truth"),
        pytest.param("take a 60; a posted; join a b; b silent; = 0/60", id="spent stays spent after silence"),
        pytest.param("take a 60; a posted; join a b; b refused; = 0/60", id="spent stays spent after a no"),
        pytest.param("take a 60; a posted; join a b; b posted 99; = 0/60", id="spent once, whatever comes"),
        pytest.param("take a 60; join a b; a refused; = 60/0 open; b refused; = 0/0", id="both say no"),
        pytest.param(
            "take a 60; join a b; a unsent; = 60/0 open; b silent; = 60/0 open", id="one may have arrived"
        ),
        pytest.param(
            "take a 60; join a b; a silent; = 60/0 open; b refused; = 60/0 open", id="a no beside silence"
        ),
        pytest.param(
            "take a 60; join a b; b refused; = 60/0 open; a silent; = 60/0 open", id="silence beside a no"
        ),
        pytest.param(
            "take a 60; a silent; join a b; b unsent; = 60/0 open", id="an unsent retry proves nothing"
        ),
        pytest.param("take a 60; a silent; join a b; b refused; = 60/0 open", id="a no to the retry alone"),
        pytest.param(
            "take a 60; a silent; join a b; b replayed refused; = 0/0", id="a replayed no is for all"
        ),
        pytest.param("take a 60; a silent; join a b; b replayed silent; = 60/0 open", id="a replayed 500"),
        pytest.param("take a 60; a silent; join a b; b replayed posted; = 0/60", id="a replayed success"),
        pytest.param(
            "take a 60; join a b; b replayed refused; = 60/0 open; a silent; = 60/0 open",
            id="silence after it",
        ),
        pytest.param(
            "take a 60; a silent; join a b; join a c; b replayed refused; = 60/0 open; c refused; = 0/0",
            id="a replayed no before another",
        ),
        pytest.param(
            "take a 60; a silent; join a b; b silent; join a c; c posted; = 0/60", id="third time lucky"
        ),
    ],
)
def test_law_12_a_retry_shares_the_hold_of_the_first(story: str) -> None:
    """One hold and at most one spend; released only when no attempt can have reached the vendor."""
    Table().run(story)


def test_the_rows_say_what_became_of_each_attempt() -> None:
    """The first row carries the money; a retry's row has its own outcome and counts nothing."""
    table = Table()
    table.run("take a 60; join a b; join a c; join a d; b silent; c refused; d unsent")
    assert table.rows == {
        "a": (Outcome.PENDING, 60),
        "b": (Outcome.UNKNOWN, 0),
        "c": (Outcome.VOIDED, 0),
        "d": (Outcome.VOIDED, 0),
    }
    table.run("a silent")
    assert table.rows["a"] == (Outcome.UNKNOWN, 60)
    table.run("join a e; e posted")
    assert table.rows["a"] == (Outcome.POSTED, 60)
    assert table.rows["e"] == (Outcome.POSTED, 0)


def test_the_first_row_keeps_its_money_while_a_retry_is_under_way() -> None:
    """An ending that decides nothing yet says nothing of the row that carries the hold."""
    for verdict in (Verdict.SILENT, Verdict.REFUSED, Verdict.UNSENT):
        table = Table()
        table.run("take a 60; join a b")
        assert table.settle("a", verdict) == []
        assert table.rows["a"] == (Outcome.PENDING, 60)


def test_an_answer_is_no_repetition_unless_it_says_so() -> None:
    """A plain no to a retry leaves the silence of the first as it is."""
    table = Table()
    table.run("take a 60; a silent; join a b")
    table.ledger.settle(table.attempts["b"], Verdict.REFUSED)
    table.run("= 60/0 open")


def test_silence_is_told_once() -> None:
    """A second silence under the same hold changes its own row only."""
    table = Table()
    table.run("take a 60; a silent; join a b")
    assert table.settle("b", Verdict.SILENT) == [Change("b", Outcome.UNKNOWN, 0)]


# --- the ceiling --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("daily", "total", "used", "nano", "fits"),
    [
        pytest.param(100, None, 40, 60, True, id="exactly at the daily cap"),
        pytest.param(100, None, 40, 61, False, id="one nano above the daily cap"),
        pytest.param(None, 100, 40, 60, True, id="exactly at the total cap"),
        pytest.param(None, 100, 40, 61, False, id="one nano above the total cap"),
        pytest.param(1000, 100, 40, 61, False, id="the smaller cap counts"),
        pytest.param(None, None, 40, 10**18, True, id="no cap"),
        pytest.param(100, None, 100, 0, True, id="nothing at an exhausted cap"),
        pytest.param(100, None, 130, 0, True, id="nothing above an overrun cap"),
        pytest.param(100, None, 130, 1, False, id="something above an overrun cap"),
    ],
)
def test_L1_a_hold_beyond_a_cap_is_an_error(
    daily: int | None, total: int | None, used: int, nano: int, fits: bool
) -> None:
    """The ledger stops rather than overspend, even if its caller did not check."""
    table = Table(scope=Scope("vk_test", "key vk_test", Account(), daily, total))
    table.scope.account.post(DAY, used)
    before = table.state
    if fits:
        table.take("a", nano)
        assert table.held == nano
    else:
        with pytest.raises(LedgerError, match="beyond its cap"):
            table.take("a", nano)
        assert table.state == before


def test_L1_a_hold_fits_every_scope_or_none() -> None:
    """Where one of several accounts has no room, nothing is set aside on any."""
    wide, narrow = (
        Scope("vk_test", "tenant", Account(), 1000, None),
        Scope("vk_test", "key", Account(), 10, None),
    )
    ledger = Ledger()
    with pytest.raises(LedgerError):
        ledger.take([wide, narrow], row=1, call_id="a", nano=11, now_ns=NOW, request=b"r", replay=None)
    assert (wide.account, narrow.account, ledger.open) == (Account(), Account(), set())
    ledger.take([wide, narrow], row=1, call_id="a", nano=10, now_ns=NOW, request=b"r", replay=None)
    assert (wide.account.used(DAY), narrow.account.used(DAY)) == (10, 10)


@pytest.mark.parametrize(
    ("daily", "total", "room"),
    [
        pytest.param(None, None, None, id="no cap"),
        pytest.param(100, None, 30, id="per day"),
        pytest.param(None, 150, 30, id="in total"),
        pytest.param(100, 110, -10, id="both, the smaller counts"),
    ],
)
def test_room_is_what_still_fits(daily: int | None, total: int | None, room: int | None) -> None:
    """Spent and held of the day against the daily cap, and of all days against the total one."""
    account = Account()
    account.post(DAY - 1, 50)
    account.post(DAY, 30)
    account.hold(DAY, 40)
    assert Scope("vk_test", "key", account, daily, total).room(DAY) == room


class Naive:
    """Checks, calls the vendor, then adds: what metering after the fact does."""

    def __init__(self) -> None:
        self.spent = 0

    def may(self, nano: int) -> bool:
        return self.spent + nano <= CAP

    def done(self, nano: int) -> None:
        self.spent += nano


def test_L2_control_check_then_add_overspends_where_a_hold_does_not() -> None:
    """Three calls of 60 that are asked before any answer: the naive meter grants all, the ledger one."""
    naive, table, granted = Naive(), Table(), []
    asked = [naive.may(60) for _ in range(3)]
    for yes in asked:
        naive.done(60 * yes)
    assert naive.spent == 180 > CAP

    for name in "abc":
        room = table.scope.room(DAY)
        assert room is not None
        if room >= 60:
            granted.append(table.take(name, 60))
    assert len(granted) == 1
    assert table.held == 60 <= CAP


# --- L4: settled once ---------------------------------------------------------------------------------

VERDICTS = list(Verdict)


@pytest.mark.parametrize(
    ("first", "second"),
    [pytest.param(one, two, id=f"{one}-{two}") for one, two in product(VERDICTS, VERDICTS)],
)
@pytest.mark.parametrize("others", ["", "join a b", "join a b; b silent", "join a b; b posted"])
def test_L4_second_settle_is_an_error(first: Verdict, second: Verdict, others: str) -> None:
    """Every ordered pair of verdicts on one attempt, alone or beside a retry: an error, and no change."""
    table = Table()
    table.run(f"take other 7; take a 60; {others}" if others else "take other 7; take a 60")
    table.settle("a", first)
    before = table.state
    with pytest.raises(LedgerError, match="settled twice"):
        table.settle("a", second)
    assert table.state == before


def test_L4_control_a_count_of_attempts_would_take_a_second_settle_for_the_retry() -> None:
    """Counting open attempts alone, a no told twice would release money that the retry may still spend."""
    table = Table()
    table.run("take a 60; join a b; a refused")
    assert table.attempts["a"].hold.attempts == 1  # so a count alone would let a second one pass
    with pytest.raises(LedgerError):
        table.settle("a", Verdict.REFUSED)
    table.run("= 60/0 open; b posted; = 0/60")


def test_L4_a_retry_cannot_join_what_was_released() -> None:
    """A hold that ended by a no has nothing left to share."""
    table = Table()
    table.run("take a 60; a refused")
    with pytest.raises(LedgerError, match="joined a hold that was released"):
        table.join("a", "b")


def test_L4_an_account_releases_only_what_it_holds() -> None:
    """A release beyond what is held is an error and changes nothing."""
    account = Account()
    account.hold(DAY, 5)
    for day, nano in [(DAY, 6), (DAY + 1, 5)]:
        with pytest.raises(LedgerError, match="released twice"):
            account.release(day, nano)
    assert account.used(DAY) == account.used_total() == 5


# --- L5: silence never frees --------------------------------------------------------------------------


def test_L5_an_unknown_hold_outlives_48_hours_and_three_restarts() -> None:
    """No time, no forgetting of retries and no restart releases money that may have been spent."""
    table = Table()
    table.run("take a 60; a silent")
    hold = table.attempts["a"].hold
    for restart in range(1, 4):
        later = NOW + restart * 48 * HOUR
        table.ledger.forget_replays(later)
        account = Account()
        table = Table(scope=Scope("vk_test", "key vk_test", account, None, CAP))
        again = Hold(
            hold.row, hold.call_id, (account,), hold.day, hold.nano, hold.request, hold.replay, hold.held_ns
        )
        table.ledger.restore_hold(again)
        assert table.ledger.open == {again}
        assert again.outcome is Outcome.UNKNOWN
        with pytest.raises(LedgerError, match="beyond its cap"):
            table.take("b", 41, now_ns=later)
    table.take("b", 40, now_ns=later)


@pytest.mark.parametrize(
    ("spent", "outcome", "left"), [(None, "voided", 0), (0, "posted", 0), (25, "posted", 25)]
)
def test_L5_only_evidence_from_outside_ends_an_unknown_hold(
    spent: int | None, outcome: str, left: int
) -> None:
    """Once, and for what it says; never a call that is under way or has an end."""
    table = Table()
    table.run("take a 60; a silent; take b 10; take c 20; c posted")
    hold = table.attempts["a"].hold
    change = table.ledger.resolve(hold, spent)
    assert (change.outcome, change.nano) == (outcome, left)
    assert table.scope.account.used_total() == left + 10 + 20
    for ended in (hold, table.attempts["b"].hold, table.attempts["c"].hold):
        with pytest.raises(LedgerError, match="not unknown"):
            table.ledger.resolve(ended, spent)


def test_of_unknown_calls_that_hold_nothing_only_some_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their rows tell of them; an agent whose vendor is down could fill the memory. Money is always kept."""
    monkeypatch.setattr(ledgers, "EMPTY_MAX", 2)
    table = Table()
    for number in range(5):
        for name, nano in ((f"free{number}", 0), (f"paid{number}", 1)):
            table.take(name, nano)
            table.ledger.settle(table.attempts[name], Verdict.SILENT)
    kept = {hold.call_id for hold in table.ledger.open}
    assert kept == {"free3", "free4", *(f"paid{number}" for number in range(5))}
    table.ledger.restore_hold(table.attempts["free0"].hold)
    assert len(table.ledger.open) == 7


def test_so_many_requests_are_remembered_for_their_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first; its retry then takes a hold of its own, which counts more and never less."""
    monkeypatch.setattr(ledgers, "REPLAYS_MAX", 3)
    table = Table()
    for number in range(4):
        table.take(f"c{number}", 10, replay=b"%d" % number)
    found = [table.ledger.find_replay(b"%d" % number, b"r", NOW, HOUR) for number in range(4)]
    assert [each is not None for each in found] == [False, True, True, True]
    assert len(table.ledger.open) == 4


def test_L5_after_a_restart_a_no_to_the_retry_frees_nothing() -> None:
    """A restored hold may have reached the vendor: only success or a replayed answer ends it."""
    table = Table()
    hold = Hold("a", "a", (table.scope.account,), DAY, 60, b"r", b"k", NOW)
    table.ledger.restore_hold(hold)
    for verdict, replayed, left in [
        (Verdict.UNSENT, False, 60),
        (Verdict.REFUSED, False, 60),
        (Verdict.SILENT, True, 60),
        (Verdict.REFUSED, True, 0),
    ]:
        found = table.ledger.find_replay(b"k", b"r", NOW + HOUR, WINDOW)
        assert found is hold
        table.attempts["retry"] = table.ledger.join(found, "retry")
        table.settle("retry", verdict, replayed=replayed)
        assert table.held == left
    assert hold.outcome is Outcome.VOIDED


# --- L7: retries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", VERDICTS, ids=str)
def test_L7_50_retries_are_one_hold_and_one_spend(first: Verdict) -> None:
    """However the first ends while 50 retries are under way, one hold is taken and one amount is spent."""
    table = Table()
    table.take("a", 60, replay=b"k")
    for n in range(50):
        found = table.ledger.find_replay(b"k", b"r", NOW + n, WINDOW)
        assert found is table.attempts["a"].hold
        table.join("a", f"retry {n}")
        assert table.held == 60
    table.settle("a", first)
    for n in range(50):
        table.settle(f"retry {n}", Verdict.POSTED)
    assert (table.held, table.posted, len(table.ledger.open)) == (0, 60, 0)
    assert sum(nano for _, nano in table.rows.values()) == 60


def test_L7_control_a_hold_for_every_retry_would_not_fit() -> None:
    """Without sharing, the second of the same requests would already exceed the cap."""
    table = Table()
    table.take("a", 60, replay=b"k")
    with pytest.raises(LedgerError, match="beyond its cap"):
        table.take("b", 60, replay=b"k")


@pytest.mark.parametrize(
    ("replay", "request_digest", "after_ns", "found"),
    [
        pytest.param(b"k", b"r", 0, True, id="at once"),
        pytest.param(b"k", b"r", WINDOW - 1, True, id="a nanosecond before the window ends"),
        pytest.param(b"k", b"r", WINDOW, False, id="exactly at its end"),
        pytest.param(b"k", b"other", 0, False, id="another request"),
        pytest.param(b"other", b"r", 0, False, id="another key"),
        pytest.param(None, b"r", 0, False, id="no key"),
    ],
)
def test_L7_a_retry_is_the_same_key_and_request_within_the_window(
    replay: bytes | None, request_digest: bytes, after_ns: int, found: bool
) -> None:
    """Anything else takes a hold of its own."""
    table = Table()
    hold = table.take("a", 60, replay=b"k").hold
    assert table.ledger.find_replay(replay, request_digest, NOW + after_ns, WINDOW) is (
        hold if found else None
    )


def test_L7_another_request_under_the_same_key_does_not_displace_the_first() -> None:
    """The vendor keeps comparing with the first, so retries of the first still find it, and others don't."""
    table = Table()
    first = table.take("a", 30, replay=b"k").hold
    table.take("b", 30, request=b"other", replay=b"k")
    assert table.ledger.find_replay(b"k", b"r", NOW, WINDOW) is first
    assert table.ledger.find_replay(b"k", b"other", NOW, WINDOW) is None


def test_L7_a_refused_request_takes_a_hold_of_its_own_when_tried_again() -> None:
    """What was released is forgotten: the next attempt may succeed and must be counted."""
    table = Table()
    table.take("a", 60, replay=b"k")
    table.run("a refused")
    assert table.ledger.find_replay(b"k", b"r", NOW, WINDOW) is None
    second = table.take("b", 60, replay=b"k").hold
    assert table.ledger.find_replay(b"k", b"r", NOW, WINDOW) is second


def test_L7_releasing_a_younger_hold_leaves_the_first_to_its_retries() -> None:
    """A no to another request with the same key does not make the ledger forget the first."""
    table = Table()
    first = table.take("a", 30, replay=b"k").hold
    table.take("b", 30, request=b"other", replay=b"k")
    table.run("b refused")
    assert table.ledger.find_replay(b"k", b"r", NOW, WINDOW) is first


def test_L7_after_the_window_the_same_request_begins_anew() -> None:
    """The younger hold is the one that its retries find, live and after a restart alike."""
    table, later = Table(), NOW + WINDOW
    old = table.take("a", 30, replay=b"k").hold
    new = table.take("b", 30, now_ns=later, replay=b"k").hold
    assert table.ledger.find_replay(b"k", b"r", later, WINDOW) is new
    restored = Ledger()
    restored.restore_replay(old)
    restored.restore_replay(new)
    assert restored.find_replay(b"k", b"r", later, WINDOW) is new


def test_L7_a_restored_spend_still_answers_its_retries() -> None:
    """After a restart, a retry of a call that was posted joins it and spends nothing."""
    table = Table()
    table.scope.account.post(DAY, 60)
    hold = Hold(
        "a", "a", (table.scope.account,), DAY, 60, b"r", b"k", NOW, outcome=Outcome.POSTED, attempts=0
    )
    table.ledger.restore_replay(hold)
    assert table.ledger.find_replay(b"k", b"r", NOW + HOUR, WINDOW) is hold
    table.attempts["b"] = table.ledger.join(hold, "b")
    assert table.settle("b", Verdict.POSTED) == [Change("b", Outcome.POSTED, 0)]
    assert (table.held, table.posted) == (0, 60)


def test_what_is_too_old_to_be_retried_is_forgotten() -> None:
    """Memory of retries goes by age; money that is still held stays held."""
    table = Table()
    for n in range(5):
        table.take(f"call {n}", 10, now_ns=NOW + n, replay=b"%d" % n)
    table.ledger.forget_replays(NOW + 3)
    found = [table.ledger.find_replay(b"%d" % n, b"r", NOW, WINDOW) is not None for n in range(5)]
    assert found == [False, False, False, True, True]
    assert table.held == 50
    table.take("call 3 again", 10, now_ns=NOW + 9, replay=b"3")
    table.ledger.forget_replays(NOW + 9)  # what was taken again is young: it keeps nothing older in memory
    found = [table.ledger.find_replay(b"%d" % n, b"r", NOW, WINDOW) is not None for n in (3, 4)]
    assert found == [True, False]
    table.ledger.forget_replays(NOW + 99)
    assert table.ledger.find_replay(b"3", b"r", NOW, WINDOW) is None


# --- L8: midnight -------------------------------------------------------------------------------------

MIDNIGHT = (DAY + 1) * NS_PER_DAY


def test_L8_every_call_counts_on_the_day_of_its_hold() -> None:
    """200 calls around midnight: each day is at its cap and no call moves to another by ending late."""
    table, granted = Table(), {DAY: 0, DAY + 1: 0}
    for n in range(200):
        now_ns = MIDNIGHT + (n - 100) * NS_PER_S
        room = table.scope.room(day_of(now_ns))
        assert room is not None
        if room >= 7:
            table.take(f"call {n}", 7, now_ns=now_ns)
            granted[day_of(now_ns)] += 1
    for name in list(table.attempts):
        table.settle(name, Verdict.POSTED)
    assert granted == {DAY: CAP // 7, DAY + 1: CAP // 7}
    assert table.scope.account.posted == {DAY: 98, DAY + 1: 98}
    assert table.scope.account.held == {}


def test_L8_silence_over_midnight_keeps_yesterdays_money() -> None:
    """A hold of yesterday leaves today's cap free, and its late success posts to yesterday."""
    table = Table()
    table.take("a", 100, now_ns=MIDNIGHT - 1)
    table.take("b", 100, now_ns=MIDNIGHT)
    table.run("a silent; join a c; c posted; b posted")
    assert table.scope.account.posted == {DAY: 100, DAY + 1: 100}


@pytest.mark.parametrize(
    ("now_ns", "seconds"),
    [
        pytest.param(MIDNIGHT, 86_400, id="midnight"),
        pytest.param(MIDNIGHT - 1, 1, id="a nanosecond before"),
        pytest.param(MIDNIGHT - NS_PER_S, 1, id="a second before"),
        pytest.param(MIDNIGHT - NS_PER_S - 1, 2, id="rounded up"),
        pytest.param(NOW, 43_200, id="noon"),
    ],
)
def test_a_wait_for_midnight_is_never_too_short(now_ns: int, seconds: int) -> None:
    """Whole seconds, rounded up, so that whoever waits them is in the next day."""
    assert seconds_to_midnight(now_ns) == seconds
    assert day_of(now_ns + seconds * NS_PER_S) == day_of(now_ns) + 1


# --- one scope ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("daily", "total", "rooms"),
    [
        pytest.param(None, None, (None, None, None), id="no cap"),
        pytest.param(100, None, (60, None, 60), id="a daily one"),
        pytest.param(None, 100, (None, 50, 50), id="a total one"),
        pytest.param(100, 70, (60, 20, 20), id="the narrower of both"),
        pytest.param(30, 999, (-10, 949, -10), id="lowered under what is used"),
    ],
)
def test_L1_room_is_what_the_narrowest_cap_leaves(
    daily: int | None, total: int | None, rooms: tuple[int | None, ...]
) -> None:
    """Forty are used today, ten more on other days."""
    account = Account()
    account.post(DAY, 30)
    account.hold(DAY, 10)
    account.post(DAY - 1, 10)
    scope = Scope("vk_test", "key vk_test", account, daily, total)
    assert (scope.daily_room(DAY), scope.total_room(), scope.room(DAY)) == rooms
    assert scope.capped is (rooms != (None, None, None))


def test_a_request_budget_is_that_of_a_day() -> None:
    """Never below zero, also where it was lowered under what was sent."""
    scope = Scope("vk_test", "key vk_test", Account())
    assert scope.requests_left(DAY) is None
    scope.account.requests[DAY] = 3
    for budget, left in ((5, 2), (3, 0), (2, 0)):
        scope.daily_requests = budget
        assert (scope.requests_left(DAY), scope.requests_left(DAY + 1)) == (left, budget)


def test_another_rate_keeps_what_was_used_of_the_old_one() -> None:
    """The same rate set again changes nothing; none at all forgets it."""
    scope = Scope("vk_test", "key vk_test", Account())
    scope.set_rate(None, 0)
    assert scope.bucket is None
    scope.set_rate(read_rate("5/s"), 0)
    first = scope.bucket
    assert first is not None
    for _ in range(3):
        first.take(0)
    scope.set_rate(read_rate("5/s"), 0)
    assert scope.bucket is first
    assert first.left(0) == 2
    scope.set_rate(read_rate("4/s"), 0)
    assert scope.bucket is first
    assert (first.rate.text, first.left(0)) == ("4/s", 1)
    scope.set_rate(None, 0)
    assert scope.bucket is None


def test_another_loop_guard_begins_anew_and_an_equal_one_does_not() -> None:
    """A policy that is pushed again must not forget what was seen."""
    scope = Scope("vk_test", "key vk_test", Account())
    scope.set_loop(read_loop("2/1m", "deny"))
    first = scope.guard
    scope.set_loop(read_loop("2/1m", "deny"))
    assert scope.guard is first is not None
    scope.set_loop(read_loop("2/1m", "pause"))
    assert scope.guard is not first
    scope.set_loop(None)
    assert scope.guard is None


# --- any order ----------------------------------------------------------------------------------------


@dataclass
class Told:
    """A call as the reference remembers it: what each of its attempts proved, None while under way."""

    day: int
    nano: int
    proofs: list[Verdict | None]

    def counts(self) -> int:
        """The law in one line: a call counts unless every attempt is known not to have done it."""
        return 0 if {*self.proofs} <= {Verdict.REFUSED, Verdict.UNSENT} else self.nano


class AnyOrder(RuleBasedStateMachine):
    """Takes, retries and endings in any order, against a reference that only keeps what was proved."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.now_ns = NOW
        self.parent = Scope("vk_test", "tenant acme", Account(), 150, 300)
        self.keys = [Scope("vk_test", f"key {n}", Account(), CAP, None) for n in range(2)]
        self.told: list[tuple[int, Told, Hold]] = []
        self.flying: list[tuple[Attempt, Told, int]] = []

    def fits(self, key: int, nano: int) -> bool:
        """Whether the reference finds room, from what was proved alone."""
        day = day_of(self.now_ns)
        mine = sum(told.counts() for owner, told, _ in self.told if owner == key and told.day == day)
        ours = sum(told.counts() for _, told, _ in self.told if told.day == day)
        ever = sum(told.counts() for _, told, _ in self.told)
        return mine + nano <= CAP and ours + nano <= 150 and ever + nano <= 300

    def hold(self, key: int, nano: int) -> Attempt:
        """Ask the ledger."""
        return self.ledger.take(
            (self.keys[key], self.parent),
            row=None,
            call_id="",
            nano=nano,
            now_ns=self.now_ns,
            request=b"",
            replay=None,
        )

    @rule(key=st.integers(0, 1), nano=st.integers(1, 70))
    def take(self, key: int, nano: int) -> None:
        if not self.fits(key, nano):
            with pytest.raises(LedgerError):
                self.hold(key, nano)
            return
        attempt = self.hold(key, nano)
        told = Told(day_of(self.now_ns), nano, [None])
        self.told.append((key, told, attempt.hold))
        self.flying.append((attempt, told, 0))

    @precondition(lambda self: any(told.counts() for _, told, _ in self.told))
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        alive = [(told, hold) for _, told, hold in self.told if told.counts()]
        told, hold = data.draw(st.sampled_from(alive))
        self.flying.append((self.ledger.join(hold, None), told, len(told.proofs)))
        told.proofs.append(None)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), verdict=st.sampled_from(VERDICTS), replayed=st.booleans())
    def end(self, data: st.DataObject, verdict: Verdict, replayed: bool) -> None:
        attempt, told, place = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.ledger.settle(attempt, verdict, replayed=replayed)
        if replayed and verdict is not Verdict.SILENT:
            told.proofs = [Verdict.REFUSED if proof is Verdict.SILENT else proof for proof in told.proofs]
        told.proofs[place] = verdict
        if Verdict.POSTED in told.proofs:
            told.proofs = [Verdict.POSTED] * len(told.proofs)
        with pytest.raises(LedgerError):
            self.ledger.settle(attempt, verdict)

    @rule(hours=st.integers(1, 13))
    def wait(self, hours: int) -> None:
        self.now_ns += hours * HOUR
        self.ledger.forget_replays(self.now_ns)

    @invariant()
    def L1_nothing_is_over_its_cap_and_every_nano_is_accounted_for(self) -> None:
        days = {told.day for _, told, _ in self.told}
        for key, scope in enumerate(self.keys):
            for day in days:
                mine = sum(told.counts() for owner, told, _ in self.told if (owner, told.day) == (key, day))
                assert scope.account.used(day) == mine <= CAP
        for day in days:
            ours = sum(told.counts() for _, told, _ in self.told if told.day == day)
            assert self.parent.account.used(day) == ours <= 150
        ever = sum(told.counts() for _, told, _ in self.told)
        assert self.parent.account.used_total() == ever <= 300
        assert self.parent.account.posted_total == sum(key.account.posted_total for key in self.keys)
        open_nano = sum(hold.nano for hold in self.ledger.open)
        assert self.parent.account.held_total == open_nano == sum(self.parent.account.held.values())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, database=None)
