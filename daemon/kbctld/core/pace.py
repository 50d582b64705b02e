"""How fast and how often: rates, and the same request again and again.

What must stay true: time is a monotonic reading in nanoseconds, 0 or later, that is passed in; all of it is
integers, so nothing drifts; over any stretch of time a bucket lets through at most its burst and what its
rate makes of that stretch, and a loop guard at most ``times`` of one request per window.
"""

import re
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

NS_PER_UNIT = {"s": 10**9, "m": 60 * 10**9, "h": 3_600 * 10**9}
COUNT_MAX = 1_000_000
TIMES_MAX = 100_000
WINDOW_MAX_NS = 24 * NS_PER_UNIT["h"]
DIGESTS_MAX = 10_000

# ASCII digits only: int() also takes "1_000", "+5", " 5" and full-width digits.
_RATE = re.compile(r"([1-9][0-9]{0,6})/([smh])", re.ASCII)
_LOOP = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})([smh])", re.ASCII)

Action: TypeAlias = Literal["deny", "pause"]
_ACTIONS: dict[str, Action] = {"deny": "deny", "pause": "pause"}


class PaceError(ValueError):
    """A text that is no rate or no loop; it says what one looks like."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many per so long.

    Attributes:
        count: how many; also how many may go at once.
        per_ns: in how long.
        text: as it was written, ``5/s``.
    """

    count: int
    per_ns: int
    text: str


def read_rate(text: str) -> Rate:
    """Read ``5/s``, ``100/m`` or ``1000/h``.

    Raises:
        PaceError: it is none of these.
    """
    match = _RATE.fullmatch(text)
    if match is None or int(match[1]) > COUNT_MAX:
        raise PaceError(
            f"{text[:40]!r} is no rate; write how many per s, m or h, such as 5/s, 100/m or 1000/h"
            f" (1 to {COUNT_MAX:,})"
        )
    return Rate(int(match[1]), NS_PER_UNIT[match[2]], text)


class Bucket:
    """A token bucket for a rate, as the generic cell rate algorithm keeps it: one number, no timer.

    It holds ``rate.count`` at most and fills at the rate. Whoever takes has asked ``wait_ns`` in the same
    step. What may yet not go, because it waits for something else, is set aside: it counts as if it went at
    whatever moment is the worst, until it goes or is given back. So what goes keeps to the rate however late
    it goes, and what does not go has cost nothing.

    Time is counted in ``1 / rate.count`` of a nanosecond: an interval between two is then a whole number.
    """

    __slots__ = ("_aside", "_empty_until", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._empty_until = 0
        """When all that was taken will have been filled up again; past where it is full."""
        self._aside = 0

    @classmethod
    def empty_at(cls, rate: Rate, tick_ns: int) -> Self:
        """One with nothing in it, as after a restart that does not know what went before."""
        bucket = cls(rate)
        bucket._empty_until = (tick_ns + rate.per_ns) * rate.count
        return bucket

    def wait_ns(self, tick_ns: int, *, keep: int = 0) -> int:
        """How long until one may go; 0 when one may now. Exact unless something set aside goes meanwhile.

        Args:
            tick_ns: now.
            keep: how many must be left after it.
        """
        rate = self.rate
        over = self._used(tick_ns) + (self._aside + 1 + keep - rate.count) * rate.per_ns
        return -(-over // rate.count) if over > 0 else 0

    def left(self, tick_ns: int) -> int:
        """How many may go at once."""
        rate = self.rate
        free = (rate.count - self._aside) * rate.per_ns - self._used(tick_ns)
        return free // rate.per_ns if free > 0 else 0

    def is_full(self, tick_ns: int) -> bool:
        """Whether it is as good as a new one."""
        return not self._aside and not self._used(tick_ns)

    def take(self, tick_ns: int) -> None:
        """One goes now."""
        rate = self.rate
        self._empty_until = max(self._empty_until, tick_ns * rate.count) + rate.per_ns

    def set_aside(self) -> None:
        """One may go from now on: later ``go`` or ``give_back``."""
        self._aside += 1

    def go(self, tick_ns: int) -> None:
        """One that was set aside goes now."""
        self.give_back()
        self.take(tick_ns)

    def give_back(self) -> None:
        """One that was set aside does not go.

        What has been taken stays taken: it may have been filled up since, and nobody could tell.
        """
        if not self._aside:
            raise RuntimeError("nothing of the bucket is set aside")
        self._aside -= 1

    def changed(self, rate: Rate, tick_ns: int) -> None:
        """Another rate from now on.

        What was used stays used, request by request, as far as the new burst has room for it. A larger burst
        comes at its rate and not at once: right after the change no more may go than right before, so that
        changing to and fro wins nothing. What is set aside stays so.
        """
        before = self.rate
        fits = min(before.count, rate.count) * before.per_ns - self._used(tick_ns)
        left = fits * rate.per_ns // before.per_ns if fits > 0 else 0
        self.rate = rate
        self._empty_until = (tick_ns + rate.per_ns) * rate.count - left

    def _used(self, tick_ns: int) -> int:
        used = self._empty_until - tick_ns * self.rate.count
        return used if used > 0 else 0


@dataclass(frozen=True, slots=True)
class Loop:
    """How often the same request may come before it counts as a loop.

    Attributes:
        times: how often.
        window_ns: within how long.
        action: what is done to one more: deny that call, or pause the key.
        text: as it was written, ``20/1m``.
    """

    times: int
    window_ns: int
    action: Action
    text: str


def read_loop(text: str, action: str) -> Loop:
    """Read ``20/1m``: so many times within so many s, m or h.

    Raises:
        PaceError: it is not that, or the action is neither deny nor pause.
    """
    done = _ACTIONS.get(action)
    if done is None:
        raise PaceError(f"{action[:40]!r} is no action on a loop; it takes deny or pause")
    match = _LOOP.fullmatch(text)
    times, window_ns = (int(match[1]), int(match[2]) * NS_PER_UNIT[match[3]]) if match else (0, 0)
    if not 1 <= times <= TIMES_MAX or window_ns > WINDOW_MAX_NS:
        raise PaceError(
            f"{text[:40]!r} is no loop; write how often the same request may come within how long,"
            f" such as 20/1m (1 to {TIMES_MAX:,} times, within 1s to 24h)"
        )
    return Loop(times, window_ns, done, text)


class LoopGuard:
    """Counts the same request, by digest, in a window that slides.

    What is let through is noted, and let through is what was seen fewer than ``times`` times: so there are at
    most ``times`` of one digest in any window, its older end not counted. The guard knows at most 10,000
    digests and ``times`` ticks of each. Beyond that the digest that came longest ago is forgotten first,
    whatever its count: 10,000 different requests within a window are no loop.
    """

    __slots__ = ("_ticks", "loop")

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._ticks: OrderedDict[bytes, deque[int]] = OrderedDict()
        """By the time of each one's newest tick; each one's ticks oldest first."""

    def __len__(self) -> int:
        """How many digests it knows."""
        return len(self._ticks)

    def seen(self, digest: bytes, tick_ns: int) -> int:
        """How often this request was noted within the window that ends now."""
        self._forget(tick_ns)
        ticks = self._ticks.get(digest)
        if ticks is None:
            return 0
        while ticks[0] <= tick_ns - self.loop.window_ns:  # its newest is within, or it would be forgotten
            ticks.popleft()
        return len(ticks)

    def is_empty(self, tick_ns: int) -> bool:
        """Whether it is as good as a new one."""
        self._forget(tick_ns)
        return not self._ticks

    def note(self, digest: bytes, tick_ns: int) -> None:
        """This request was let through now."""
        self._forget(tick_ns)
        ticks = self._ticks.get(digest)
        if ticks is None:
            ticks = self._ticks[digest] = deque(maxlen=self.loop.times)
        ticks.append(tick_ns)
        self._ticks.move_to_end(digest)
        if len(self._ticks) > DIGESTS_MAX:
            self._ticks.popitem(last=False)

    def _forget(self, tick_ns: int) -> None:
        """Digests that were last noted before the window; each is looked at once more than it came."""
        while self._ticks:
            digest, ticks = next(iter(self._ticks.items()))
            if ticks[-1] > tick_ns - self.loop.window_ns:
                return
            del self._ticks[digest]
