"""P20 and fair shares: whose call goes next, on a clock that is a figure."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import pytest

from kbctld.core.grant import Grant
from kbctld.core.pace import Bucket, Rate, read_rate
from kbctld.core.refusal import Code
from kbctld.core.vendor_file import RateClass
from kbctld.proxy.call import Refused
from kbctld.proxy.shares import Places, Shares
from tests.core.support import grant
from tests.support.virtual import run_virtually, virtual_loop

S = 1_000_000_000


def key(number: int) -> Grant:
    return replace(grant(), no=number, key_id=f"vk_{number}")


def shares_of(
    *,
    write: str | None = None,
    read: str | None = None,
    slots: int = 10_000,
    turn_s: float = 10.0,
    per_key: int = 10_000,
) -> Shares:
    rates: dict[RateClass, Rate] = {}
    if write is not None:
        rates["write"] = read_rate(write)
    if read is not None:
        rates["read"] = read_rate(read)
    places = Places(per_key, turn_s=turn_s)
    return Shares("stripe", places, slots=slots, rates=rates, turn_s=turn_s, now_ns=virtual_loop().now_ns)


class Scene:
    """Calls, and what became of them.

    Attributes:
        went: flow and time of each call that left, in order.
        refused: flow, time and sentence of each that was.
        busy: calls under way now, by flow.
        most: the most there ever were, by flow; 0 stands for all.
    """

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.went: list[tuple[int, int]] = []
        self.refused: list[tuple[int, int, str]] = []
        self.busy: dict[int, int] = {}
        self.most: dict[int, int] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def call(
        self,
        flow: int,
        *,
        kind: RateClass = "write",
        takes_s: float = 0.0,
        leaves: bool = True,
        before_s: float = 0.0,
        no: int | None = None,
    ) -> "asyncio.Task[None]":
        """Start one; ``no`` is its key where that is not the root."""
        task = asyncio.create_task(self._call(flow, kind, takes_s, leaves, before_s, no or flow))
        self.tasks.append(task)
        return task

    async def _call(
        self, flow: int, kind: RateClass, takes_s: float, leaves: bool, before_s: float, no: int
    ) -> None:
        now_ns = virtual_loop().now_ns
        try:
            async with self.shares.turn(key(no), kind, flow=flow) as turn:
                await turn.comes()
                self._count(flow, 1)
                try:
                    await asyncio.sleep(before_s)
                    if leaves:
                        turn.leaves()
                        self.went.append((flow, now_ns()))
                    await asyncio.sleep(takes_s)
                finally:
                    self._count(flow, -1)
        except Refused as refused:
            refusal = refused.refusal
            assert (refusal.code, refusal.retry_after_s) == (Code.RATE_LIMITED, 1)
            self.refused.append((flow, now_ns(), refusal.sentence))

    def _count(self, flow: int, change: int) -> None:
        for who in (0, flow):
            self.busy[who] = self.busy.get(who, 0) + change
            self.most[who] = max(self.most.get(who, 0), self.busy[who])

    async def settle(self) -> None:
        """Until whatever can happen now has happened."""
        for _ in range(100):
            await asyncio.sleep(0)

    async def end(self) -> None:
        """All have ended, and nothing is left of them."""
        await asyncio.gather(*self.tasks, return_exceptions=True)
        check_idle(self.shares)

    def flows(self) -> list[int]:
        return [flow for flow, _ in self.went]

    def times_s(self, flow: int) -> list[float]:
        return [(tick - 1_000 * S) / S for who, tick in self.went if who == flow]


def check_idle(shares: Shares) -> None:
    assert shares.idle
    assert shares.places.idle
    assert (shares._line, shares._ring, shares._in_line) == ([], {}, {})
    assert (shares._busy, shares._timer) == (0, None)
    assert shares._flows == shares._resting
    for lane in shares._lanes.values():
        assert lane.bucket._aside == 0
    for flow in shares._flows.values():
        assert (flow.busy, flow.waiting) == (0, {})
        assert not any(own._aside for own in flow.own.values())


def check_rate(went: list[tuple[int, int]], rate: Rate) -> None:
    """Over every window: at most the burst and what the rate makes of the window."""
    ticks = [tick for _, tick in went]
    lowest = ticks[0] * rate.count if ticks else 0  # max over j <= i of (-j T + t_j), kept as one figure
    for number, tick in enumerate(ticks):
        lowest = max(lowest, tick * rate.count - number * rate.per_ns)
        latest = lowest + (number + 1 - rate.count) * rate.per_ns
        assert latest <= tick * rate.count


# --- the rate ---------------------------------------------------------------------------------------------


def test_many_in_line_leave_exactly_at_the_rate() -> None:
    """The burst at once, the rest as fast as the rate lets them and no faster; all of them in the end."""

    async def main() -> None:
        scene = Scene(shares_of(write="7/s", turn_s=100))
        for number in range(300):
            scene.call(1 + number % 3)
        await scene.end()
        assert len(scene.went) == 300
        check_rate(scene.went, read_rate("7/s"))
        took_s = (scene.went[-1][1] - scene.went[0][1]) / S
        assert 293 / 7 <= took_s < 294 / 7 + 0.01, "one of the burst is kept for those within their share"

    run_virtually(main())


def test_a_turn_that_leaves_late_still_keeps_to_the_rate() -> None:
    """Between turn and take-off lie the disk and the connection: late ones all at once are no burst more."""

    async def main() -> None:
        chance = random.Random(1)
        scene = Scene(shares_of(write="10/s", turn_s=1000))
        for number in range(400):
            scene.call(1 + number % 5, before_s=chance.choice([0.0, 0.3, 3.0]))
            await asyncio.sleep(chance.choice([0.0, 0.0, 0.4]))
        await scene.end()
        assert len(scene.went) == 400
        check_rate(scene.went, read_rate("10/s"))

    run_virtually(main())


def test_check_rate_bites() -> None:
    """Control: one call too many in a burst, or one interval a nanosecond short, is found."""
    rate = read_rate("10/s")
    check_rate([(1, 5)] * 10 + [(1, 5 + S // 10)], rate)
    for wrong in ([(1, 5)] * 11, [(1, 5)] * 10 + [(1, 4 + S // 10)], [(1, 0)] + [(1, 5 * S)] * 11):
        with pytest.raises(AssertionError):
            check_rate(wrong, rate)


def test_reads_and_writes_have_rates_of_their_own() -> None:
    """And a class that has none has no limit; a key's read does not stand behind its write."""

    async def main() -> None:
        scene = Scene(shares_of(write="2/h", turn_s=5))
        for _ in range(4):
            scene.call(1)
        for _ in range(50):
            scene.call(1, kind="read")
        await scene.settle()
        assert len(scene.went) == 52
        await scene.end()
        assert len(scene.refused) == 2

        scene = Scene(shares_of(write="2/h", read="3/h", turn_s=5))
        for _ in range(5):
            scene.call(1)
            scene.call(1, kind="read")
        await scene.end()
        assert (len(scene.went), len(scene.refused)) == (5, 5)

    run_virtually(main())


@pytest.mark.parametrize("turns", [1, 2, 50])
def test_a_turn_that_never_left_is_given_back(turns: int) -> None:
    """However often: the rate counts bytes that left, not calls that were refused after their turn came."""

    async def main() -> None:
        scene = Scene(shares_of(write="2/h", turn_s=1))
        for _ in range(turns):
            await scene.call(1, leaves=False)
        assert scene.shares._lanes["write"].bucket.left(virtual_loop().now_ns()) == 2
        assert not scene.shares._flows, "nor does it cost its share"
        for _ in range(3):
            await scene.call(1)
        assert (len(scene.went), len(scene.refused)) == (2, 1)
        check_idle(scene.shares)

    run_virtually(main())


def test_a_turn_that_is_given_back_is_the_next_one_s_at_once() -> None:
    """Whoever waits for the rate need not wait for time."""

    async def main() -> None:
        scene = Scene(shares_of(write="1/h"))
        scene.call(1, leaves=False, takes_s=3)
        scene.call(2)
        await scene.end()
        assert scene.times_s(2) == [3.0]

    run_virtually(main())


# --- fair turns -------------------------------------------------------------------------------------------


def test_flows_are_served_in_turns_and_each_in_its_order() -> None:
    """Whatever the order in which they came."""

    async def main() -> None:
        scene = Scene(shares_of(slots=1))
        done: list[str] = []

        async def call(name: str) -> None:
            flow = "abc".index(name[0]) + 1
            async with scene.shares.turn(key(flow), "write", flow=flow) as turn:
                await turn.comes()
                done.append(name)
                await asyncio.sleep(1)

        names = "a0 a1 a2 a3 a4 b1 b2 b3 c1".split()
        await asyncio.gather(*(call(name) for name in names))
        assert done == "a0 a1 b1 c1 a2 b2 a3 b3 a4".split()
        check_idle(scene.shares)

    run_virtually(main())


def test_a_flow_that_can_not_go_keeps_its_place_in_the_round() -> None:
    """Others go past it meanwhile; once it can, it is not behind those that came later."""

    async def main() -> None:
        scene = Scene(shares_of(write="1/m", slots=100, turn_s=100))
        scene.call(9)
        await scene.settle()
        for flow in (1, 2, 3):
            scene.call(flow)
        for _ in range(7):
            scene.call(3, kind="read")
        await scene.settle()
        assert scene.flows() == [9, *[3] * 7]
        await scene.end()
        assert scene.flows()[8:] == [1], "the first in the round got the only turn of that minute"

    run_virtually(main())


def test_nobody_overtakes_the_line_when_the_timer_is_late() -> None:
    """A turn that time has brought is for the first in line, not for whoever happens to ask first."""

    async def main() -> None:
        scene = Scene(shares_of(write="1/s"))
        scene.call(1)
        scene.call(2)
        await scene.settle()
        scene.call(3)
        virtual_loop().jump(S)
        await scene.end()
        assert scene.flows() == [1, 2, 3]

    run_virtually(main())


Go = Callable[[int], Awaitable[object]]


async def one_among_a_thousand(go: Go) -> list[int]:
    """Flow 1 calls a thousand times at once, flow 2 now and then: how many of 1 went as each of 2 waited."""
    order: list[int] = []

    async def call(flow: int) -> None:
        await go(flow)
        order.append(flow)

    burst = [asyncio.create_task(call(1)) for _ in range(1_000)]
    overtaken = []
    await asyncio.sleep(0.5)
    for _ in range(20):
        asked = len(order)
        await call(2)
        overtaken.append(len(order) - asked - 1)
        await asyncio.sleep(0.3)
    await asyncio.gather(*burst)
    return overtaken


def test_a_plain_queue_lets_a_burst_stop_everybody() -> None:
    """Control: first come, first served, at the same rate."""

    async def main() -> None:
        bucket, line, now_ns = Bucket(read_rate("100/s")), asyncio.Lock(), virtual_loop().now_ns

        async def fifo(_flow: int) -> None:
            async with line:
                await asyncio.sleep(bucket.wait_ns(now_ns()) / S + 1e-9)
                bucket.take(now_ns())

        overtaken = await one_among_a_thousand(fifo)
        assert overtaken[0] > 800

    run_virtually(main())


def test_a_burst_of_a_thousand_does_not_stop_another_flow() -> None:
    """None of the burst goes before a call of the other: the reserve is for those within their share."""

    async def main() -> None:
        scene = Scene(shares_of(write="100/s", turn_s=1000))

        async def fair(flow: int) -> None:
            await scene.call(flow)

        overtaken = await one_among_a_thousand(fair)
        # The task that asks is woken one step after the call went; the loop may run others in between.
        assert max(overtaken) <= 2
        waited_s = scene.times_s(2)
        assert waited_s == pytest.approx([0.5 + 0.3 * number for number in range(20)], abs=1e-6)
        await scene.end()
        check_rate(scene.went, read_rate("100/s"))
        assert len(scene.went) == 1_020
        assert scene.went[-1][1] - scene.went[0][1] < 9.5 * S, "and none of the rate is lost"

    run_virtually(main())


def test_a_newcomer_among_ten_bursts_goes_at_once() -> None:
    """Each of the ten is over its share; the eleventh is not."""

    async def main() -> None:
        scene = Scene(shares_of(write="100/s", turn_s=1000))
        for flow in range(1, 11):
            for _ in range(100):
                scene.call(flow)
        await asyncio.sleep(2.0005)
        for _ in range(10):
            scene.call(99)
            await asyncio.sleep(0.5)
        assert scene.times_s(99) == pytest.approx([2.0005 + 0.5 * number for number in range(10)], abs=1e-6)
        await scene.end()
        check_rate(scene.went, read_rate("100/s"))
        early = scene.flows()[:500]
        # All hundred of the first flow were in line before any other: it has what one alone gets at once.
        first, *others = [early.count(flow) for flow in range(1, 11)]
        assert others == pytest.approx([48] * 9, abs=5)
        assert first <= max(others) + 16

    run_virtually(main())


def test_one_flow_that_calls_one_by_one_wins_nothing_by_pausing() -> None:
    """It is remembered while its share is used up, so the reserve stays for others."""

    async def main() -> None:
        scene = Scene(shares_of(write="10/s", turn_s=1000))

        async def hammer() -> None:
            for _ in range(200):
                await scene.call(1)

        hammering = asyncio.create_task(hammer())
        await asyncio.sleep(3.05)
        scene.call(2)
        await scene.settle()
        assert scene.times_s(2) == pytest.approx([3.05], abs=1e-6)
        await hammering
        await scene.end()
        check_rate(scene.went, read_rate("10/s"))

    run_virtually(main())


def test_a_thousand_children_are_one_flow() -> None:
    """Keys derived from one root share its turns and its slots."""

    async def main() -> None:
        scene = Scene(shares_of(slots=1, turn_s=10_000))
        for number in range(1_000):
            scene.call(1, no=100 + number, takes_s=1)
        for _ in range(3):
            scene.call(2, takes_s=1)
        await asyncio.sleep(7)
        assert scene.flows() == [1, 1, 2, 1, 2, 1, 2]
        for task in scene.tasks:
            task.cancel()
        await scene.end()

        scene = Scene(shares_of(slots=8))
        for number in range(20):
            scene.call(1, no=100 + number, takes_s=1)
        scene.call(2, takes_s=1)
        await scene.settle()
        assert scene.busy == {0: 7, 1: 6, 2: 1}
        await scene.end()

    run_virtually(main())


# --- slots and places -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slots", "of_one"), [(256, 192), (8, 6), (4, 3), (3, 2), (2, 1), (1, 1)])
def test_one_flow_takes_three_quarters_of_the_slots_and_no_more(slots: int, of_one: int) -> None:
    """n and n + 1, of one and of all; a newcomer finds the rest."""

    async def main() -> None:
        scene = Scene(shares_of(slots=slots))
        for _ in range(of_one + 1):
            scene.call(1, takes_s=1)
        await scene.settle()
        assert scene.busy[0] == of_one
        for flow in range(2, slots - of_one + 3):
            scene.call(flow, takes_s=1)
        await scene.settle()
        assert scene.busy[0] == slots
        await scene.end()
        assert len(scene.went) == slots + 2
        assert (scene.most[0], scene.most[1]) == (slots, of_one)

    run_virtually(main())


def test_places_of_a_key_are_its_own() -> None:
    """n and n + 1: another key of the same flow has its own; at other real keys it has no more."""

    async def main() -> None:
        scene = Scene(shares_of(per_key=2))
        other = Scene(Shares("mail", scene.shares.places, now_ns=virtual_loop().now_ns))
        for _ in range(2):
            scene.call(1, takes_s=3)
        other.call(1, takes_s=1)
        scene.call(1, no=5, takes_s=1)
        await scene.settle()
        assert (scene.busy[0], other.busy) == (3, {})
        await asyncio.gather(*scene.tasks)
        await other.end()
        await scene.end()
        assert other.times_s(1) == [3.0]

    run_virtually(main())


# --- patience ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "flow", "says"),
    [
        ({"write": "1/h"}, 2, "stripe takes 1/h writes of this account and no turn came in time"),
        ({"slots": 1}, 2, "1 calls are under way at stripe already and none ended in time"),
        (
            {"slots": 2},
            1,
            "1 calls of key vk_1 or of keys with the same root are under way at stripe",
        ),
        ({"per_key": 1}, 1, "key vk_1 has 1 calls under way already"),
    ],
)
def test_a_call_waits_so_long_and_no_longer(made: Mapping[str, str], flow: int, says: str) -> None:
    """It is told what it waited for; nothing is left of it, and those that came later go on waiting."""

    async def main() -> None:
        shares = shares_of(turn_s=10, **made)  # type: ignore[arg-type]
        scene = Scene(shares)
        scene.call(1, takes_s=100)
        scene.call(flow)
        await asyncio.sleep(5)
        scene.call(flow)
        await asyncio.sleep(5.001)
        assert [(who, sentence) for who, _, sentence in scene.refused] == [(flow, says)]
        assert scene.refused[0][1] == pytest.approx(1_010 * S, abs=S // 100)
        await asyncio.sleep(5)
        assert len(scene.refused) == 2
        assert not shares._line
        await scene.end()
        assert scene.flows() == [1]

    run_virtually(main())


def test_patience_is_one_for_all_bounds() -> None:
    """What was spent on the key's place is not there for the vendor's turn; what the body takes is."""

    async def main() -> None:
        scene = Scene(shares_of(write="1/h", per_key=1, turn_s=10))
        scene.call(1, takes_s=6)
        scene.call(1)
        await scene.end()
        assert [tick for _, tick, _ in scene.refused] == pytest.approx([1_010 * S], abs=S // 100)

        async with scene.shares.turn(key(2), "write", flow=2) as turn:
            await asyncio.sleep(100)
            with pytest.raises(Refused):
                await turn.comes()
            assert virtual_loop().now_ns() == pytest.approx(1_120 * S, abs=S // 100)
        check_idle(scene.shares)

    run_virtually(main())


def test_a_call_whose_patience_is_at_its_end_when_it_asks_has_no_turn() -> None:
    """Its key's place came in the last moment: it goes if it can go at once, and else is refused."""

    async def main() -> None:
        scene = Scene(shares_of(slots=1))
        async with scene.shares.turn(key(1), "write", flow=1) as turn:
            turn._waited_ns = 10 * S
            await turn.comes()
            async with scene.shares.turn(key(2), "write", flow=2) as late:
                late._waited_ns = 10 * S
                with pytest.raises(Refused):
                    await late.comes()
                assert scene.shares._busy == 1
        check_idle(scene.shares)

    run_virtually(main())


def test_one_timer_and_none_when_nobody_waits() -> None:
    """However many wait."""

    async def main() -> None:
        loop = virtual_loop()
        scene = Scene(shares_of(write="10/s", slots=1_000, turn_s=10))
        for _ in range(10):
            scene.call(1, kind="read")
        await scene.settle()
        assert (len(scene.went), loop.timers) == (10, 0)
        waiting = [scene.call(1 + number % 40) for number in range(400)]
        await scene.settle()
        assert loop.timers == 1
        for task in waiting:
            task.cancel()
        await scene.settle()
        assert loop.timers == 0
        await scene.end()

    run_virtually(main())


# --- cancelled at every stage -----------------------------------------------------------------------------


@pytest.mark.parametrize("made", [{"per_key": 1}, {"slots": 1}, {"write": "1/s"}])
@pytest.mark.parametrize("moment", ["in line", "after its turn", "under way"])
def test_a_call_that_is_cancelled_passes_everything_on(made: Mapping[str, str], moment: str) -> None:
    """In line, between its turn and its take-off, or while it is under way."""

    async def main() -> None:
        scene = Scene(shares_of(turn_s=100, **made))  # type: ignore[arg-type]
        first = scene.call(1, takes_s=1)
        await scene.settle()
        doomed = scene.call(1, takes_s=50, before_s=0 if moment == "under way" else 50)
        third = scene.call(1)
        await scene.settle()
        assert not doomed.done()
        if moment == "in line":
            doomed.cancel()
        else:
            await asyncio.sleep(1.5)
            assert (scene.busy[1], len(scene.went)) == (1, 2 if moment == "under way" else 1)
            doomed.cancel()
        await asyncio.gather(first, third)
        await scene.end()
        assert doomed.cancelled()
        assert len(scene.went) == (3 if moment == "under way" else 2)
        assert not scene.refused

    run_virtually(main())


@pytest.mark.parametrize("made", [{"per_key": 1}, {"slots": 1}, {"write": "1/s"}])
def test_a_turn_that_comes_in_the_moment_of_the_end_is_passed_on(made: Mapping[str, str]) -> None:
    """It was given and not yet taken: else each such moment would cost one for ever."""

    async def main() -> None:
        scene = Scene(shares_of(turn_s=100, **made))  # type: ignore[arg-type]
        async with scene.shares.turn(key(1), "write", flow=1) as turn:
            await turn.comes()
            turn.leaves()
            doomed, third = scene.call(1), scene.call(1)
            await scene.settle()
            if "write" in made:
                # In the step in which the timer gives the turn, right behind it.
                virtual_loop().call_at(1_001.0 + 1e-10, doomed.cancel)
                await asyncio.sleep(1)
        doomed.cancel()
        waits = len(scene.shares._line) + sum(len(p.waiting) for p in scene.shares.places._keys.values())
        assert waits <= 1, "it has its turn"
        await third
        await scene.end()
        assert doomed.cancelled()
        assert scene.times_s(1) == ([1.0] if "write" in made else [0.0])

    run_virtually(main())


def test_a_call_that_is_cancelled_as_its_patience_ends_is_just_gone() -> None:
    """Both in one step."""

    async def main() -> None:
        scene = Scene(shares_of(slots=1, turn_s=1))
        scene.call(1, takes_s=5)
        doomed = scene.call(1)
        await scene.settle()
        virtual_loop().call_at(1_001.0 - 1e-10, doomed.cancel)
        await scene.end()
        assert doomed.cancelled()
        assert not scene.refused

    run_virtually(main())


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_nothing_is_lost_and_no_bound_is_passed(seed: int) -> None:
    """Calls of many flows come, wait, leave early or late or never, and are cancelled at any moment."""

    async def main() -> None:
        chance = random.Random(seed)
        slots, per_key = chance.choice([1, 2, 5, 40]), chance.choice([1, 3, 50])
        rates: dict[str, str] = {}
        if chance.random() < 0.8:
            rates["write"] = chance.choice(["1/s", "5/s", "30/s", "7/m"])
        if chance.random() < 0.5:
            rates["read"] = chance.choice(["3/s", "50/s"])
        shares = shares_of(slots=slots, per_key=per_key, turn_s=3, **rates)
        scenes: dict[RateClass, Scene] = {"read": Scene(shares), "write": Scene(shares)}
        doomed: deque[asyncio.Task[None]] = deque()
        kind: RateClass
        for _ in range(400):
            kind = "read" if chance.random() < 0.4 else "write"
            flow = chance.choice([1, 1, 1, 2, 3, chance.randint(4, 30)])
            task = scenes[kind].call(
                flow,
                kind=kind,
                takes_s=chance.choice([0, 0, 0.01, 0.5]),
                leaves=chance.random() < 0.8,
                before_s=chance.choice([0, 0, 0.01, 1]),
                no=flow * 100 + chance.randint(0, 2),
            )
            if chance.random() < 0.3:
                doomed.append(task)
            if doomed and chance.random() < 0.3:
                doomed.popleft().cancel()
            await asyncio.sleep(chance.choice([0, 0, 0, 0.001, 0.1]))
            assert shares._busy <= slots
            assert all(flow.busy <= max(1, slots * 3 // 4) for flow in shares._flows.values())
            assert all(place.busy <= per_key for place in shares.places._keys.values())
        for scene in scenes.values():
            await asyncio.gather(*scene.tasks, return_exceptions=True)
        check_idle(shares)
        for kind, scene in scenes.items():
            if kind in rates:
                check_rate(scene.went, read_rate(rates[kind]))
        ends = [task.cancelled() or task.exception() for scene in scenes.values() for task in scene.tasks]
        assert not [end for end in ends if isinstance(end, BaseException)]

    run_virtually(main())


# --- no growth --------------------------------------------------------------------------------------------


def test_flows_are_forgotten() -> None:
    """At once where there is no rate; else when what they used of their share is filled up again."""

    async def main() -> None:
        scene = Scene(shares_of())
        for flow in range(1_000):
            await scene.call(1 + flow)
        assert not scene.shares._flows

        scene = Scene(shares_of(write="1000/s"))
        for flow in range(1_000):
            scene.call(1 + flow)
        await scene.end()
        assert len(scene.shares._flows) > 900
        await asyncio.sleep(5)
        for _ in range(600):
            await scene.call(1)
            await asyncio.sleep(0.1)
        assert list(scene.shares._flows) == [1]
        await scene.end()

    run_virtually(main())
