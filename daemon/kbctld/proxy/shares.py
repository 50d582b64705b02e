"""Whose call goes next: three bounds at once on the calls of agents that share one real key.

What must stay true: of one vault key no more than its places are under way; of all keys no more than the
slots towards the vendor, three quarters of them for one flow; what leaves keeps to the vendor's rate, however
late it leaves. A flow that stays within its share does not wait behind one that bursts. Every place, slot
and turn that was given comes back however its call ends, and what nobody needs any more is forgotten.

A flow is a root vault key and all that was derived from it: a thousand children win nothing. Waiting calls
are served in turns over flows. That is deficit round robin with a quantum of one: every call costs one, so
it is plain round robin. Within a flow the oldest call that can go, goes.
"""

import asyncio
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Self

from kbctld.core.grant import Grant
from kbctld.core.pace import Bucket, Rate
from kbctld.core.refusal import Code, Refusal
from kbctld.core.vendor_file import RateClass
from kbctld.proxy.call import Refused

# Turns of one flow, of one that is alone, and of all, and dismissals, each time the loop comes round. A
# thousand calls that start at once would be one long step of it, and their answers another, while everybody
# else's next byte waits; of one agent alone, few in each round cost a tenth of all its calls.
_AT_ONCE = 1
_AT_ONCE_ALONE = 16
_AT_ONCE_OF_ALL = 32
_NS_PER_S = 1_000_000_000
_TIMER_MIN_NS = 1_000_000  # event loops count milliseconds: a sooner one would be a busy loop
_RESERVE = 5
"""A fifth of the rate's burst is kept for flows within their share."""
_TIDIED = 2
"""Resting flows that each call looks at: more than it can make, so that none is kept for ever."""


@dataclass(slots=True)
class _Place:
    """The calls of one key: so many at once, the rest in line."""

    busy: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Places:
    """The places of each vault key, whatever vendors it calls."""

    def __init__(self, per_key: int = 256, *, turn_s: float = 10.0) -> None:
        self._per_key = per_key
        self._turn_s = turn_s
        self._keys: dict[int, _Place] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or in line."""
        return not self._keys

    def fair(self, grant: Grant, requests: int) -> bool:
        """Whether the calls of this key are no more than its share of so many, over all keys with calls."""
        place = self._keys.get(grant.no)
        mine = 0 if place is None else place.busy + len(place.waiting)
        return mine < max(1, requests // (len(self._keys) + (place is None)))

    def busy(self, grant: Grant) -> bool:
        """Whether calls of this key are under way or in line."""
        return grant.no in self._keys

    async def take(self, grant: Grant) -> None:
        """One of the key's places, at once or in line; ``give_back`` it.

        Raises:
            Refused: none came free in time.
        """
        place = self._keys.get(grant.no)
        if place is None:
            place = self._keys[grant.no] = _Place()
        if place.busy < self._per_key:
            place.busy += 1
        else:
            await self._wait(grant, place)

    def give_back(self, grant: Grant) -> None:
        """The place goes to the first in line."""
        place = self._keys[grant.no]
        while place.waiting:
            waiter = place.waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        place.busy -= 1
        if place.busy == 0:
            del self._keys[grant.no]

    async def _wait(self, grant: Grant, place: _Place) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place.waiting.append(waiter)
        try:
            async with asyncio.timeout(self._turn_s):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self.give_back(grant)  # it came together with the end of our patience
            elif waiter in place.waiting:
                place.waiting.remove(waiter)
            if not isinstance(error, TimeoutError):
                raise
            raise Refused(
                _refusal(f"key {grant.key_id} has {self._per_key} calls under way already")
            ) from None


class Turn:
    """One call's way past the three bounds: ``async with shares.turn(...) as turn``.

    Entering it takes a place of the key; ``comes`` takes a slot and a turn of the rate; leaving it gives all
    of that back, the turn of the rate only where ``leaves`` was not called.
    """

    __slots__ = (
        "_shares",
        "_waited_ns",
        "buckets",
        "flow",
        "grant",
        "kind",
        "left",
        "number",
        "root",
        "until_ns",
        "waiter",
    )

    def __init__(self, shares: "Shares", grant: Grant, kind: RateClass, root: int) -> None:
        self._shares = shares
        self._waited_ns = 0
        self.grant = grant
        self.kind: RateClass = kind
        self.root = root
        self.left = False
        """Whether any byte of the call may have left."""
        self.flow: _Flow | None = None
        """Of one that is in line or whose turn has come."""
        self.waiter: asyncio.Future[Refusal | None] | None = None
        """Of one that is in line: gives None, or why its turn did not come."""
        self.number = 0
        self.until_ns = 0
        self.buckets: tuple[Bucket, ...] = ()
        """Of one whose turn has come: where it is set aside until it leaves."""

    async def __aenter__(self) -> Self:
        shares = self._shares
        began_ns = shares.now_ns()
        await shares.places.take(self.grant)
        self._waited_ns = shares.now_ns() - began_ns
        return self

    async def comes(self) -> None:
        """Wait for a slot towards the vendor and a turn of its rate; at once where both are free.

        Called when nothing but ourselves can still hold the call up: an agent that is slow to send its body
        would keep both from others.

        Raises:
            Refused: they did not come within what is left of the call's patience.
        """
        waiter = self._shares.ask(self, self._waited_ns)
        if waiter is not None:
            refusal = await waiter
            if refusal is not None:
                raise Refused(refusal)

    async def borrow(self, kind: RateClass) -> None:
        """Take a further turn of the vendor's rate, for something that must be asked before this call can go.

        It has its slot, and goes before others in line: they all wait for time alone, and each call that had
        its turn borrows one at most.
        """
        await self._shares.borrow(kind)

    def leaves(self) -> None:
        """Its first byte leaves now: its turn of the rate is used up."""
        self.left = True
        self._shares.left(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shares.end(self)
        self._shares.places.give_back(self.grant)


@dataclass(slots=True, eq=False)
class _Flow:
    """A root key and what was derived from it, at one real key.

    Attributes:
        no: the root's number.
        busy: how many of its calls have a slot.
        waiting: those in line, oldest first; no empty line.
        own: what it may take of the reserve, by class.
    """

    no: int
    busy: int = 0
    waiting: dict[RateClass, deque[Turn]] = field(default_factory=dict)
    own: dict[RateClass, Bucket] = field(default_factory=dict)


class _Lane:
    """The vendor's rate for one class of calls."""

    __slots__ = ("_share", "_shared_by", "bucket", "rate", "reserve")

    def __init__(self, rate: Rate) -> None:
        # Full: what left before a restart is not known, and the vendor's own limit stands behind ours.
        self.bucket = Bucket(rate)
        self.rate = rate
        self.reserve = rate.count // _RESERVE
        self._shared_by = 0
        self._share = rate

    def share(self, flows: int) -> Rate:
        """What each of so many flows may take of the reserve, and one more, so that a newcomer finds some.

        All together they may take less than the rate, so that the reserve fills up again.
        """
        if flows != self._shared_by:
            parts = flows + 1
            burst = max(1, self.reserve // parts)
            per_ns = -(-self.rate.per_ns * burst * parts // self.rate.count)
            self._shared_by, self._share = flows, Rate(burst, per_ns, f"1/{parts} of {self.rate.text}")
        return self._share

    def again_ns(self, now_ns: int) -> int | None:
        """When to look again for a call that waits for this rate; None if it waits for something else."""
        wait_ns = self.bucket.wait_ns(now_ns)
        if wait_ns:
            return wait_ns
        wait_ns = self.bucket.wait_ns(now_ns, keep=self.reserve)
        # Only the reserve is left. Meanwhile a flow may come back within its share: look once an interval.
        return min(wait_ns, -(-self.rate.per_ns // self.rate.count)) if wait_ns else None


class Shares:
    """The turns of all calls at one real key.

    Args:
        vendor: whose key it is, for people.
        places: of vault keys, shared by all real keys.
        slots: calls under way at the vendor at once: its pool's connections.
        rates: what the vendor takes of each class of calls; a class that is missing has no rate.
        turn_s: how long a call waits in all.
        now_ns: a monotonic reading.
    """

    def __init__(
        self,
        vendor: str,
        places: Places,
        *,
        slots: int = 256,
        rates: Mapping[RateClass, Rate] | None = None,
        turn_s: float = 10.0,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.places = places
        self.now_ns = now_ns
        self._vendor = vendor
        self._slots = slots
        self._slots_of_one = max(1, slots * 3 // 4)
        self._turn_s = turn_s
        self._busy = 0
        self._lanes: dict[RateClass, _Lane] = {kind: _Lane(rate) for kind, rate in (rates or {}).items()}
        self._flows: dict[int, _Flow] = {}
        self._resting: dict[int, _Flow] = {}
        """Those of them with nothing under way or in line, until their own buckets are full again."""
        self._ring: dict[int, _Flow] = {}
        """Those with calls in line, the next to be served first."""
        self._line: list[tuple[int, int, Turn]] = []
        """Every call in line, by when its patience ends."""
        self._in_line: dict[RateClass, int] = {}
        """How many of each class; no zero."""
        self._numbers = 0
        self._given = 0
        self._given_to: dict[int, int] = {}
        """Turns since the loop last came round, and by flow."""
        self._timer: asyncio.TimerHandle | None = None
        self._due_ns = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or in line."""
        return not (self._busy or self._line or self._timer or len(self._flows) > len(self._resting))

    @property
    def _active(self) -> int:
        """How many flows have calls under way or in line."""
        return len(self._flows) - len(self._resting)

    def turn(self, grant: Grant, kind: RateClass, *, flow: int) -> Turn:
        """A call's way past the bounds.

        Args:
            grant: whose place it takes.
            kind: which of the vendor's rates it falls under.
            flow: the number of the root key that this one was derived from, or its own.
        """
        return Turn(self, grant, kind, flow)

    async def borrow(self, kind: RateClass) -> None:
        """Wait for a turn of the rate, and use it up."""
        lane = self._lanes.get(kind)
        while lane is not None:
            wait_ns = lane.bucket.wait_ns(self.now_ns())
            if not wait_ns:
                lane.bucket.take(self.now_ns())
                return
            await asyncio.sleep(max(wait_ns, _TIMER_MIN_NS) / _NS_PER_S)

    # --- for a turn: nothing in here suspends ---------------------------------------------------------

    def ask(self, turn: Turn, waited_ns: int) -> asyncio.Future[Refusal | None] | None:
        """None where its turn is now; else what to wait for."""
        now_ns = self.now_ns()
        self._tidy(now_ns)
        turn.flow = flow = self._enter(turn.root)
        # Nobody overtakes: what came free since the line was served last is for those in it first.
        if turn.kind not in self._in_line and self._fits(flow) and self._may(flow, turn.kind, now_ns):
            self._give(turn, flow, now_ns)
            return None
        turn.waiter = waiter = asyncio.get_running_loop().create_future()
        turn.until_ns = now_ns + int(self._turn_s * _NS_PER_S) - waited_ns
        self._numbers += 1
        turn.number = self._numbers
        self._line_up(turn, flow)
        self._serve(now_ns)
        return waiter  # it may be done already, either way

    def left(self, turn: Turn) -> None:
        """Its turn of the rate counts from now on."""
        if turn.buckets:
            now_ns = self.now_ns()
            for bucket in turn.buckets:
                bucket.go(now_ns)

    def end(self, turn: Turn) -> None:
        """It goes, from wherever it stands; what it had goes to the next."""
        flow, turn.flow = turn.flow, None
        if flow is None:
            return  # it never asked, or its turn did not come
        if turn.waiter is not None:
            self._step_out(turn, flow)
        else:
            self._busy -= 1
            flow.busy -= 1
            if not turn.left:
                for bucket in turn.buckets:
                    bucket.give_back()
        now_ns = self.now_ns()
        self._rest(flow, now_ns)
        self._serve(now_ns)

    # --- inside ---------------------------------------------------------------------------------------

    def _serve(self, now_ns: int) -> None:
        """Give turns to all in line who may have one, in turns over flows."""
        if not self._line:
            self._set_timer(now_ns)
            return
        served = True
        while served and self._busy < self._slots and any(self._open(kind, now_ns) for kind in self._in_line):
            served = False
            for flow in tuple(self._ring.values()):  # one each; who gets none keeps its place
                turn = self._next(flow, now_ns) if self._fits(flow) else None
                if turn is not None:
                    served = True
                    self._step_out(turn, flow)
                    if flow.waiting:
                        self._ring[flow.no] = self._ring.pop(flow.no)
                    self._give(turn, flow, now_ns)
        for _ in range(_AT_ONCE_OF_ALL):
            if self._line and self._line[0][0] <= now_ns:
                self._dismiss(self._line[0][2], now_ns)
        self._set_timer(now_ns)

    def _round(self) -> None:
        """The loop has come round, and served whoever else it had to."""
        self._given = 0
        self._given_to.clear()
        if self._line:
            self._serve(self.now_ns())

    def _fits(self, flow: _Flow) -> bool:
        """Whether one more turn of this flow fits into this round of the loop."""
        given = self._given_to.get(flow.no, 0)
        at_once = _AT_ONCE_ALONE if self._active == 1 else _AT_ONCE
        return self._given < _AT_ONCE_OF_ALL and given < at_once

    def _next(self, flow: _Flow, now_ns: int) -> Turn | None:
        """The oldest call of a flow in line that may go."""
        heads = [waiting[0] for kind, waiting in flow.waiting.items() if self._may(flow, kind, now_ns)]
        return min(heads, key=lambda turn: turn.number) if heads else None

    def _open(self, kind: RateClass, now_ns: int) -> bool:
        """Whether the rate lets anyone through."""
        lane = self._lanes.get(kind)
        return lane is None or not lane.bucket.wait_ns(now_ns)

    def _may(self, flow: _Flow, kind: RateClass, now_ns: int) -> bool:
        """Whether a call of this flow may go now."""
        if self._busy >= self._slots or flow.busy >= self._slots_of_one:
            return False
        lane = self._lanes.get(kind)
        if lane is None:
            return True
        if lane.bucket.wait_ns(now_ns):
            return False
        within = not self._own(flow, kind, lane, now_ns).wait_ns(now_ns)
        return within or not lane.bucket.wait_ns(now_ns, keep=lane.reserve)

    def _give(self, turn: Turn, flow: _Flow, now_ns: int) -> None:
        if not self._given:
            asyncio.get_running_loop().call_soon(self._round)
        self._given += 1
        self._given_to[flow.no] = self._given_to.get(flow.no, 0) + 1
        self._busy += 1
        flow.busy += 1
        lane = self._lanes.get(turn.kind)
        if lane is not None:
            own = self._own(flow, turn.kind, lane, now_ns)
            turn.buckets = (lane.bucket,) if own.wait_ns(now_ns) else (lane.bucket, own)
            for bucket in turn.buckets:
                bucket.set_aside()
        waiter, turn.waiter = turn.waiter, None
        if waiter is not None and not waiter.done():  # one that was cancelled passes it on as it ends
            waiter.set_result(None)

    def _own(self, flow: _Flow, kind: RateClass, lane: _Lane, now_ns: int) -> Bucket:
        """What the flow may take of the reserve, as many as are active now."""
        share = lane.share(self._active)
        own = flow.own.get(kind)
        if own is None:
            own = flow.own[kind] = Bucket(share)
        elif own.rate != share:
            own.changed(share, now_ns)
        return own

    def _line_up(self, turn: Turn, flow: _Flow) -> None:
        insort(self._line, (turn.until_ns, turn.number, turn))
        flow.waiting.setdefault(turn.kind, deque()).append(turn)
        self._ring.setdefault(flow.no, flow)
        self._in_line[turn.kind] = self._in_line.get(turn.kind, 0) + 1

    def _step_out(self, turn: Turn, flow: _Flow) -> None:
        del self._line[bisect_left(self._line, (turn.until_ns, turn.number))]
        waiting = flow.waiting[turn.kind]
        waiting.remove(turn)
        if not waiting:
            del flow.waiting[turn.kind]
        if not flow.waiting:
            del self._ring[flow.no]
        self._in_line[turn.kind] -= 1
        if not self._in_line[turn.kind]:
            del self._in_line[turn.kind]

    def _dismiss(self, turn: Turn, now_ns: int) -> None:
        """Its patience is at an end."""
        flow, turn.flow = turn.flow, None
        waiter, turn.waiter = turn.waiter, None
        assert flow is not None and waiter is not None  # noqa: S101, PT018 - in line
        why = self._why(turn, flow)
        self._step_out(turn, flow)
        self._rest(flow, now_ns)
        if not waiter.done():
            waiter.set_result(_refusal(why))

    def _why(self, turn: Turn, flow: _Flow) -> str:
        if flow.busy >= self._slots_of_one:
            whose = f"key {turn.grant.key_id} or of keys with the same root"
            return f"{flow.busy} calls of {whose} are under way at {self._vendor}"
        if self._busy >= self._slots:
            return f"{self._slots} calls are under way at {self._vendor} already and none ended in time"
        rate = self._lanes[turn.kind].rate.text
        return f"{self._vendor} takes {rate} {turn.kind}s of this account and no turn came in time"

    # --- who is there ---------------------------------------------------------------------------------

    def _enter(self, root: int) -> _Flow:
        self._resting.pop(root, None)
        flow = self._flows.get(root)
        if flow is None:
            flow = self._flows[root] = _Flow(root)
        return flow

    def _rest(self, flow: _Flow, now_ns: int) -> None:
        """Forget it once it needs nothing: at once, or when what it has used of its share is filled up."""
        if flow.busy or flow.waiting:
            return
        if not flow.own or all(own.is_full(now_ns) for own in flow.own.values()):
            self._resting.pop(flow.no, None)
            del self._flows[flow.no]
        else:
            self._resting[flow.no] = self._resting.pop(flow.no, flow)

    def _tidy(self, now_ns: int) -> None:
        if self._resting:
            for flow in tuple(islice(self._resting.values(), _TIDIED)):
                self._rest(flow, now_ns)

    # --- the one timer --------------------------------------------------------------------------------

    def _set_timer(self, now_ns: int) -> None:
        """For the next turn that time alone brings, or the next patience that ends; none if nobody waits."""
        if not self._line:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        due_ns = self._line[0][0]
        if self._busy < self._slots:
            for kind in self._in_line:
                lane = self._lanes.get(kind)
                again_ns = lane.again_ns(now_ns) if lane is not None else None
                if again_ns is not None:
                    due_ns = min(due_ns, now_ns + again_ns)
        if self._timer is not None:
            if self._due_ns <= due_ns:
                return  # early is fine: it looks again
            self._timer.cancel()
        self._due_ns = due_ns
        wait_ns = max(due_ns - now_ns, _TIMER_MIN_NS)
        self._timer = asyncio.get_running_loop().call_later(wait_ns / _NS_PER_S, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._serve(self.now_ns())


def _refusal(sentence: str) -> Refusal:
    return Refusal(Code.RATE_LIMITED, sentence, "send fewer at once", retry_after_s=1)
