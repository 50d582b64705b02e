"""The money: what is held, what is spent, and the rule that both together never pass a cap.

What must stay true, at every moment:

- spent + held <= cap for every scope and window, because a hold is taken in the same step that checks it;
- a hold ends only by evidence: a definite success posts it, a definite refusal voids it, silence keeps it;
- a retry of the same request shares the first one's hold, and the hold is voided only when none of the
  attempts that share it can have reached the vendor;
- what asks for the same as a call that was not released can be told from its fingerprint;
- no reset: the UTC day of the hold is part of the balance's key.

In memory this is a fold of the journal; the journal rebuilds it by ``restore_*`` at start.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from msgspec import Struct

from kbctld.core.money import NANO_MAX
from kbctld.core.pace import Bucket, Loop, LoopGuard, Rate

REPLAYS_MAX = 100_000
"""So many requests are remembered for their retries. A retry of one that was forgotten takes a hold of its
own: it counts more than it costs, never less."""
EMPTY_MAX = 10_000
"""So many calls of unknown outcome that hold nothing are kept; a vendor that is down makes them free."""
NS_PER_S = 1_000_000_000
NS_PER_DAY = 86_400 * NS_PER_S


def day_of(now_ns: int) -> int:
    """The UTC day, counted from 1970-01-01."""
    return now_ns // NS_PER_DAY


def seconds_to_midnight(now_ns: int) -> int:
    """Whole seconds until 00:00 UTC, at least 1, rounded up."""
    return -(-(NS_PER_DAY - now_ns % NS_PER_DAY) // NS_PER_S)


TWINS_MAX = 50_000
"""How many calls are remembered by what they asked for. Beyond it the oldest is forgotten first: what repeats
that one is then not recognised, and is counted like any other call."""


class LedgerError(RuntimeError):
    """The ledger's own rules were about to break: a defect of ours, never an agent's doing."""


class Outcome(StrEnum):
    """How far a call has come."""

    PENDING = "pending"
    POSTED = "posted"
    VOIDED = "voided"
    UNKNOWN = "unknown"
    REFUSED = "refused"


class Verdict(StrEnum):
    """What one forwarding attempt proved."""

    POSTED = "posted"
    """The vendor did it."""
    REFUSED = "refused"
    """The vendor definitely did not."""
    UNSENT = "unsent"
    """No byte of the request left."""
    SILENT = "silent"
    """Bytes left and nothing definite came back."""


_OWN = {
    Verdict.POSTED: Outcome.POSTED,
    Verdict.REFUSED: Outcome.VOIDED,
    Verdict.UNSENT: Outcome.VOIDED,
    Verdict.SILENT: Outcome.UNKNOWN,
}
"""What becomes of a retry's own row."""


@dataclass(slots=True)
class Account:
    """The balances of one scope, nano-USD."""

    posted: dict[int, int] = field(default_factory=dict)
    """By UTC day."""
    held: dict[int, int] = field(default_factory=dict)
    """By UTC day of the hold."""
    posted_total: int = 0
    held_total: int = 0
    requests: dict[int, int] = field(default_factory=dict)
    """Calls let through, by UTC day."""

    def used(self, day: int) -> int:
        return self.posted.get(day, 0) + self.held.get(day, 0)

    def used_total(self) -> int:
        return self.posted_total + self.held_total

    def hold(self, day: int, nano: int) -> None:
        self.held[day] = self.held.get(day, 0) + nano
        self.held_total += nano

    def release(self, day: int, nano: int) -> None:
        left = self.held.get(day, 0) - nano
        if left < 0:
            raise LedgerError("a hold was released twice")
        self.held_total -= nano
        if left:
            self.held[day] = left
        else:
            self.held.pop(day, None)  # calls that cost nothing share the day, and may have ended it already

    def post(self, day: int, nano: int) -> None:
        self.posted[day] = self.posted.get(day, 0) + nano
        self.posted_total += nano


@dataclass(slots=True, eq=False, weakref_slot=True)
class Scope:
    """One set of limits and the account that it watches: a key's own, or a tenant's.

    Attributes:
        name: under which the journal keeps its balance: ``vk_...`` or ``tenant:acme``.
        owner: whose limit it is, in words: ``key vk_...``, ``tenant acme``.
        call_cap_nano: the most that one call may hold.
    """

    name: str
    owner: str
    account: Account
    daily_cap_nano: int | None = None
    total_cap_nano: int | None = None
    call_cap_nano: int | None = None
    daily_requests: int | None = None
    bucket: Bucket | None = None
    guard: LoopGuard | None = None

    @property
    def capped(self) -> bool:
        """Whether any amount is limited, so that every cost must be known."""
        return not (self.daily_cap_nano is self.total_cap_nano is self.call_cap_nano is None)

    def room(self, day: int) -> int | None:
        """Nano-USD that still fit; None without a cap."""
        rooms = [room for room in (self.daily_room(day), self.total_room()) if room is not None]
        return min(rooms) if rooms else None

    def fits(self, day: int, nano: int) -> bool:
        """Whether so much may still be set aside."""
        daily, account = self.daily_cap_nano, self.account
        if daily is not None and account.used(day) + nano > daily:
            return False
        # Without a cap, what the journal can count is one.
        total = NANO_MAX if self.total_cap_nano is None else self.total_cap_nano
        return account.posted_total + account.held_total + nano <= total

    def daily_room(self, day: int) -> int | None:
        """Nano-USD that still fit today; below zero where a cap was lowered under what is used."""
        return None if self.daily_cap_nano is None else self.daily_cap_nano - self.account.used(day)

    def total_room(self) -> int | None:
        """Nano-USD that ever still fit."""
        return None if self.total_cap_nano is None else self.total_cap_nano - self.account.used_total()

    def requests_left(self, day: int) -> int | None:
        """Calls that may still go today."""
        if self.daily_requests is None:
            return None
        return max(self.daily_requests - self.account.requests.get(day, 0), 0)

    def set_rate(self, rate: Rate | None, tick_ns: int) -> None:
        """Put another rate in place; what was used of the old one stays used."""
        if rate is None or self.bucket is None:
            self.bucket = None if rate is None else Bucket(rate)
        elif self.bucket.rate != rate:
            self.bucket.changed(rate, tick_ns)

    def set_loop(self, loop: Loop | None) -> None:
        """Put another loop guard in place; an equal one keeps what it has seen."""
        if loop is None:
            self.guard = None
        elif self.guard is None or self.guard.loop != loop:
            self.guard = LoopGuard(loop)


@dataclass(slots=True, eq=False)
class Hold:
    """Money set aside for one call, shared by that call's retries.

    Attributes:
        row: the audit row that carries it; opaque here.
        call_id: that row's id.
        accounts: where it is set aside.
        attempts: forwarding attempts now under way.
        silent: some attempt may have reached the vendor without an answer.
        request: digest of method, target and body, to tell a retry from another request.
        replay: digest under which retries find it; None where the vendor knows no retries.
        fingerprint: of what it asks for; None where asking twice is no matter.
        idempotency_key: the agent's own.
        twin: an earlier hold with this fingerprint, for as long as this one may still be released.
    """

    row: Any
    call_id: str
    accounts: tuple[Account, ...]
    day: int
    nano: int
    request: bytes
    replay: bytes | None
    held_ns: int
    fingerprint: bytes | None = None
    idempotency_key: str | None = None
    outcome: Outcome = Outcome.PENDING
    attempts: int = 1
    silent: bool = False
    twin: "Hold | None" = None


@dataclass(slots=True, eq=False)
class Attempt:
    """One forwarding of one request: the first under its hold, or a retry."""

    hold: Hold
    row: Any
    is_retry: bool
    settled: bool = False


class Change(Struct, frozen=True):
    """What a settlement does to one audit row."""

    row: Any
    outcome: Outcome
    nano: int
    """What counts against the cap from now on."""


class Ledger:
    """All accounts' open holds, and the memory of requests that may be retried or repeated.

    Attributes:
        open: calls under way, and those of unknown outcome: all that money is held for, some others.
    """

    def __init__(self) -> None:
        # Ordered, to forget the oldest of very many at once.
        self._replays: OrderedDict[bytes, Hold] = OrderedDict()
        self._twins: OrderedDict[bytes, Hold] = OrderedDict()
        """The newest of each fingerprint."""
        self.open: set[Hold] = set()
        self._empty: OrderedDict[Hold, None] = OrderedDict()

    def find_replay(self, replay: bytes | None, request: bytes, now_ns: int, window_ns: int) -> Hold | None:
        """The hold that a retry shares, if this is one."""
        if replay is None:
            return None
        hold = self._replays.get(replay)
        if hold is None or hold.request != request or now_ns - hold.held_ns >= window_ns:
            return None
        return hold

    def find_twin(self, fingerprint: bytes | None) -> Hold | None:
        """The newest hold on what was asked for just so, if the vendor did it or may have."""
        twin = None if fingerprint is None else self._twins.get(fingerprint)
        while twin is not None and twin.outcome is Outcome.VOIDED:
            twin = twin.twin
        return twin

    def take(
        self,
        scopes: Iterable[Scope],
        *,
        row: Any,
        call_id: str,
        nano: int,
        now_ns: int,
        request: bytes,
        replay: bytes | None,
        fingerprint: bytes | None = None,
        idempotency_key: str | None = None,
    ) -> Attempt:
        """Set money aside. The caller has checked every scope in the same step, without awaiting."""
        day = day_of(now_ns)
        accounts = []
        for scope in scopes:
            if nano and not scope.fits(day, nano):
                raise LedgerError("a hold was taken beyond its cap")
            accounts.append(scope.account)
        hold = Hold(
            *(row, call_id, tuple(accounts), day, nano, request, replay, now_ns),
            fingerprint=fingerprint if nano else None,
            idempotency_key=idempotency_key,
        )
        self._hold(hold)
        self._remember(hold)
        self.remember_twin(hold)
        return Attempt(hold, row, is_retry=False)

    def join(self, hold: Hold, row: Any) -> Attempt:
        """Forward a retry under the first attempt's hold."""
        if hold.outcome is Outcome.VOIDED:
            raise LedgerError("a retry joined a hold that was released")
        hold.attempts += 1
        return Attempt(hold, row, is_retry=True)

    def settle(
        self, attempt: Attempt, verdict: Verdict, *, spent_nano: int | None = None, replayed: bool = False
    ) -> list[Change]:
        """End one attempt, and its hold where that is now decided.

        Args:
            attempt: what ``take`` or ``join`` gave; each is settled once.
            verdict: what this attempt proved.
            spent_nano: the true cost where the hold was only a bound; None for the hold itself.
            replayed: the vendor marked its answer as the repetition of its first one to this request, so a
                refusal speaks for every attempt.
        """
        hold = attempt.hold
        if attempt.settled:
            raise LedgerError("an attempt was settled twice")
        attempt.settled = True
        hold.attempts -= 1
        if verdict is Verdict.SILENT:
            hold.silent = True
        elif replayed:
            hold.silent = False
        changes = [Change(attempt.row, _OWN[verdict], 0)] if attempt.is_retry else []
        if hold.outcome is Outcome.POSTED:
            return changes
        if verdict is Verdict.POSTED:
            changes.append(self._post(hold, hold.nano if spent_nano is None else spent_nano))
        elif hold.attempts == 0 and not hold.silent:
            changes.append(self._void(hold))
        elif hold.attempts == 0 and hold.outcome is Outcome.PENDING:
            hold.outcome = Outcome.UNKNOWN
            self._keep_empty(hold)
            changes.append(Change(hold.row, Outcome.UNKNOWN, hold.nano))
        return changes

    def resolve(self, hold: Hold, spent_nano: int | None) -> Change:
        """End a hold that nobody knew the end of, by evidence from outside the exchange.

        Args:
            hold: one that is unknown, with no attempt under way.
            spent_nano: what the vendor took; None where it took nothing.
        """
        if hold.outcome is not Outcome.UNKNOWN or hold.attempts:
            raise LedgerError("a hold was resolved that is not unknown")
        return self._void(hold) if spent_nano is None else self._post(hold, spent_nano)

    def forget_replays(self, before_ns: int) -> None:
        """Drop what is too old to be retried or repeated; the order of either table is by age."""
        for table in (self._replays, self._twins):
            old = []
            for digest, hold in table.items():
                if hold.held_ns >= before_ns:
                    break
                old.append(digest)
            for digest in old:
                del table[digest]

    def restore_hold(self, hold: Hold) -> None:
        """Take a hold back from the journal: it may have reached the vendor, so it is unknown."""
        hold.outcome = Outcome.UNKNOWN
        hold.silent = True
        hold.attempts = 0
        self._hold(hold)
        self._keep_empty(hold)
        self.restore_replay(hold)
        self.remember_twin(hold)

    def restore_replay(self, hold: Hold) -> None:
        """Take the memory of a request back from the journal, oldest first."""
        self._remember(hold)

    def _remember(self, hold: Hold) -> None:
        if hold.replay is None:
            return
        # The first of its kind stays: the vendor compares a later, different request with it too.
        first = self._replays.get(hold.replay)
        if first is None or first.request == hold.request:
            self._replays.pop(hold.replay, None)  # to the young end: the order is by age
            self._replays[hold.replay] = hold
            if len(self._replays) > REPLAYS_MAX:
                self._replays.popitem(last=False)

    def remember_twin(self, hold: Hold) -> None:
        """Let what asks for the same find this hold; from the journal too, in any order."""
        if hold.fingerprint is None:
            return
        later, twin = None, self._twins.get(hold.fingerprint)
        while twin is not None and twin.held_ns > hold.held_ns:
            later, twin = twin, twin.twin
        if later is None:
            hold.twin = twin
            self._twins.pop(hold.fingerprint, None)  # to the young end: the order is by age
            self._twins[hold.fingerprint] = hold
            if len(self._twins) > TWINS_MAX:
                self._twins.popitem(last=False)
        elif later.outcome is not Outcome.POSTED:  # that one would do for ever
            hold.twin, later.twin = twin, hold

    def _keep_empty(self, hold: Hold) -> None:
        """An unknown call that holds no money: of very many the newest are kept; their rows tell of all."""
        if not hold.nano:
            self._empty[hold] = None
            if len(self._empty) > EMPTY_MAX:
                self.open.discard(self._empty.popitem(last=False)[0])

    def _hold(self, hold: Hold) -> None:
        for account in hold.accounts:
            account.hold(hold.day, hold.nano)
        self.open.add(hold)

    def _post(self, hold: Hold, spent_nano: int) -> Change:
        self._end(hold, Outcome.POSTED)
        hold.twin = None  # whoever looks for one finds this, for good
        for account in hold.accounts:
            account.post(hold.day, spent_nano)
        return Change(hold.row, Outcome.POSTED, spent_nano)

    def _void(self, hold: Hold) -> Change:
        self._end(hold, Outcome.VOIDED)
        if hold.replay is not None and self._replays.get(hold.replay) is hold:
            # A refused request may be tried again and then succeed: it must take a hold of its own.
            del self._replays[hold.replay]
        if hold.fingerprint is not None and self._twins.get(hold.fingerprint) is hold:
            twin = self.find_twin(hold.fingerprint)
            if twin is None:
                del self._twins[hold.fingerprint]
            else:
                self._twins[hold.fingerprint] = twin
        return Change(hold.row, Outcome.VOIDED, 0)

    def _end(self, hold: Hold, outcome: Outcome) -> None:
        hold.outcome = outcome
        self.open.discard(hold)
        self._empty.pop(hold, None)
        for account in hold.accounts:
            account.release(hold.day, hold.nano)
