"""Effective time: the wall clock, but never back, and never into a new day before that day can be due.

What must stay true, whatever is done to the wall clock:

- time never goes back: not before any time that was already acted on or journaled;
- a new UTC day, and with it a new window of every daily cap, opens at most once per 20 h of boot clock
  (``CLOCK_BOOTTIME``: it counts suspended hours too, and nobody can set it). That holds over restarts of the
  daemon; a reboot of the machine takes the wall clock as it is.

A clock that is set forward over midnight is therefore not believed at once: time goes on as the boot clock
tells it, calls count in the day that is open, and the new day opens when it may. A machine whose clock is
right never notices, since from midnight to midnight are 24 h.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from kbctld.core.ledger import NS_PER_DAY, NS_PER_S, day_of

DAY_NS_MIN = 20 * 3_600 * NS_PER_S
"""The boot clock's least time between the beginnings of two days."""
_UNSET_BEFORE = 20_454
"""2026-01-01: a wall clock in a day before that is not set yet, as where a machine has no battery."""
STEP_NS_MIN = 60 * NS_PER_S
"""What the wall clock may gain or lose on the boot clock between two readings without a word."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The day that calls count in.

    Attributes:
        day: UTC, counted from 1970-01-01.
        boot: which boot of the machine it was opened in; empty where that can't be told.
        boot_ns: what the boot clock said when the day began; below zero when that was before the boot.
    """

    day: int
    boot: str
    boot_ns: int


class Clock:
    """Turns readings of the wall clock into effective time.

    A step back of the wall clock opens no earlier day and revives no expired key: time stands still until
    the wall clock has caught up.

    Attributes:
        highest_ns: effective time, as of the latest reading.
        opened: the day that is open; None before the first reading.
        ahead: whether the wall clock was in a day that may not open yet, at the latest reading.
        step_ns: how far the wall clock had been set since the reading before; 0 where it was not.
    """

    def __init__(self, highest_ns: int, boot: str = "", opened: Opened | None = None) -> None:
        self.highest_ns = highest_ns
        self.ahead = False
        self.step_ns = 0
        self._boot = boot
        self._lead_ns: int | None = None
        # An older day than what was journaled since, or a day of another boot, says nothing of now.
        comparable = opened is not None and boot != "" and opened.boot == boot
        self.opened = opened if opened and comparable and opened.day >= day_of(highest_ns) else None

    def at(self, wall_ns: int, boot_ns: int) -> int:
        """Effective nanoseconds since the epoch for these readings of the wall clock and the boot clock."""
        lead_ns, before_ns = wall_ns - boot_ns, self._lead_ns
        self._lead_ns = lead_ns
        moved_ns = 0 if before_ns is None else lead_ns - before_ns
        self.step_ns = moved_ns if abs(moved_ns) >= STEP_NS_MIN else 0
        opened = self.opened
        if opened is None:
            first_ns = max(wall_ns, self.highest_ns)
            opened = self.opened = Opened(day_of(first_ns), self._boot, boot_ns - first_ns % NS_PER_DAY)
        end_ns = (opened.day + 1) * NS_PER_DAY
        self.ahead = False
        if wall_ns >= end_ns:
            began_ns, due_ns = boot_ns - wall_ns % NS_PER_DAY, opened.boot_ns + DAY_NS_MIN
            if opened.day < _UNSET_BEFORE:
                self.opened = Opened(day_of(wall_ns), self._boot, began_ns)
            elif boot_ns >= due_ns:
                self.opened = Opened(day_of(wall_ns), self._boot, max(began_ns, due_ns))
            else:
                self.ahead = True
                wall_ns = min(opened.day * NS_PER_DAY + boot_ns - opened.boot_ns, end_ns - 1)
        if wall_ns > self.highest_ns:
            self.highest_ns = wall_ns
        return self.highest_ns

    def due_in_ns(self, boot_ns: int) -> int:
        """How long by the boot clock until a new day may open; 0 where it may now."""
        return 0 if self.opened is None else max(self.opened.boot_ns + DAY_NS_MIN - boot_ns, 0)


def rfc3339(ns: int) -> str:
    """``2026-11-21T04:05:06.789Z``."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest // 1_000_000:03d}Z"
