"""Effective time: the wall clock, never before any time that was already acted on or journaled."""

from datetime import UTC, datetime


class Clock:
    """Turns wall-clock readings into effective time.

    A step back of the wall clock opens no earlier day and revives no expired key: time stands still until
    the wall clock has caught up.
    """

    def __init__(self, highest_ns: int) -> None:
        self.highest_ns = highest_ns

    def at(self, wall_ns: int) -> int:
        """Effective nanoseconds since the epoch for this reading."""
        if wall_ns > self.highest_ns:
            self.highest_ns = wall_ns
        return self.highest_ns


def rfc3339(ns: int) -> str:
    """``2026-11-21T04:05:06.789Z``."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest // 1_000_000:03d}Z"
