"""What the figures come from: which core does what, how busy it is, and what machine it was.

What must stay true: a figure that something else on the core may have spoiled is known to be one. Where the
system has no affinity (macOS), nothing is pinned and the report says so.
"""

import os
import platform
import socket
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LOOK_S = 0.05
_QUIET = 0.3
"""Of a core, before a slice: less is quiet. In so short a look one tick of the clock is a fifth of it."""


class NotInstalledError(Exception):
    """Something that is needed is not installed."""

    def __init__(self, what: str, install: str) -> None:
        super().__init__(f"{what} is not installed: {install}")


@dataclass(frozen=True, slots=True)
class Cores:
    """Where what is measured runs, and where all that it talks to; None where nothing can be pinned."""

    measured: int | None
    rest: int | None

    @contextmanager
    def pinned(self, core: int | None) -> Iterator[None]:
        """What is started within, and this process meanwhile, runs on that core."""
        if core is None:
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def told(self) -> str:
        if self.measured is None:
            return "nothing is pinned to a core here: two cores and sched_setaffinity are needed for that"
        return f"what is measured on core {self.measured}, load and upstream on core {self.rest}"


def two_cores() -> Cores:
    """The first two that this process may use."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return Cores(usable[0], usable[1]) if len(usable) > 1 else Cores(None, None)


@dataclass(slots=True)
class Shares:
    """How much of a core some processes took, and all others together, since it was made."""

    core: int | None
    pids: Sequence[int]
    _began: float = 0.0
    _ours_s: float = 0.0
    _busy_s: float = 0.0

    def __post_init__(self) -> None:
        self._began, self._ours_s, self._busy_s = time.monotonic(), cpu_s(self.pids), _busy_s(self.core)

    def now(self) -> tuple[float, float]:
        """Of the processes, and of the others; zeros where the system does not tell."""
        took = time.monotonic() - self._began
        ours = (cpu_s(self.pids) - self._ours_s) / took
        if self.core is None:
            return ours, 0.0
        return ours, max((_busy_s(self.core) - self._busy_s) / took - ours, 0.0)


def await_quiet(core: int | None, within_s: float) -> float:
    """Wait until nothing burns a core; the share that is still taken when that does not come about."""
    end = time.monotonic() + within_s
    while True:
        shares = Shares(core, ())
        time.sleep(_LOOK_S)
        busy = shares.now()[1]
        if busy < _QUIET or time.monotonic() > end:
            return busy


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children = defaultdict[int, list[int]](list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            children[int(path.read_text().rpartition(")")[2].split()[1])].append(int(path.parent.name))
        except OSError:
            pass  # gone since
    found = [pid]
    for each in found:
        found += children[each]
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """What processes have used so far."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks * _TICK_S


def memory_mb(pids: Iterable[int]) -> float:
    """Resident now, together."""
    kib = 0
    for pid in pids:
        try:
            kib += int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])
        except (OSError, IndexError):
            continue
    return kib / 1024


def _busy_s(core: int | None) -> float:
    """What a core has spent on anything, the time that a host took away included."""
    if core is None:
        return 0.0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _wait, irq, soft, steal = map(int, fields[:8])
            return (user + nice + system + irq + soft + steal) * _TICK_S
    return 0.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def about() -> dict[str, Any]:
    """When and where: what a reader of the figures wants to know."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "tests.bench", *sys.argv[1:]],
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
        },
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
