"""Which boot of the machine this is, and its clock that nobody can set."""

import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# On macOS CLOCK_MONOTONIC counts suspended hours; on Linux only CLOCK_BOOTTIME does.
_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_ns() -> int:
    """Nanoseconds since some moment before the boot ended, suspended hours included."""
    return time.clock_gettime_ns(_CLOCK)


def boot_id() -> str:
    """A name that no other boot has; empty where the system tells none."""
    try:
        return _BOOT_ID.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
