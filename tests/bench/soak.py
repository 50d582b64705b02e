"""Whether memory stays flat: very many calls, and what the process takes meanwhile."""

import time
from pathlib import Path

from tests.bench.agents import helper
from tests.bench.daemon import Served, serve
from tests.bench.report import Report, Watch
from tests.bench.upstream import fixed_answer

_CONNECTIONS = 64
_LOOK_S = 0.5
_WARM = 0.2
"""So much of the calls goes by before memory is looked at: keys are read, pools and caches filled."""
_SLOPE_BYTES_MAX = 16.0
"""A call. A million calls may then grow it by 16 MB: what a leak of one small object each would pass."""


def drill(keys: int, watch: Watch, *, calls: int = 1_000_000) -> Report:
    """Let agents call until the vendor has heard so many calls.

    Args:
        keys: in the database, each used again and again.
        watch: told of what takes long.
        calls: how many.
    """
    report = Report(f"soak, {calls:,} calls of {keys:,} keys")
    with fixed_answer(0) as upstream, serve(upstream, keys, watch) as served:
        advance = watch("calling", calls)
        looks: list[tuple[int, float]] = []
        with helper("load", served.port, _CONNECTIONS, 1, keys) as load:
            began, heard = time.monotonic(), 0
            load.begin()
            while heard < calls:
                time.sleep(_LOOK_S)
                now = upstream.heard().get("cus_probe", 0)
                advance(now - heard)
                heard = now
                looks.append((heard, served.memory_mb()))
            load.begin()
            done = load.hear()
        took_s = time.monotonic() - began
        statuses = {int(status): count for status, count in done["statuses"].items()}
        report.check(statuses.keys() == {200}, f"the load was answered {statuses}")
        warm = [look for look in looks if look[0] >= calls * _WARM]
        slope = _slope(warm) * 1e6
        report.add("calls", heard, "calls")
        report.add("rate", heard / took_s, "calls/s")
        report.add("memory after the warm-up", warm[0][1], "MB")
        report.add("memory at the end", looks[-1][1], "MB")
        report.add("growth a million calls", slope, "MB", bar=_SLOPE_BYTES_MAX)
        report.add("open files", _open_files(served), "files")
        report.add("log of the database, longest allowed 64", _log_mb(served), "MB", bar=64)
    return report


def _slope(looks: list[tuple[int, float]]) -> float:
    """MB a call, by least squares: one sample more or less at either end changes little."""
    n = len(looks)
    mean_x, mean_y = sum(x for x, _ in looks) / n, sum(y for _, y in looks) / n
    over = sum((x - mean_x) ** 2 for x, _ in looks)
    return sum((x - mean_x) * (y - mean_y) for x, y in looks) / over if over else 0.0


def _open_files(served: Served) -> int:
    return len(list(Path(f"/proc/{served.kbctl.pid()}/fd").iterdir()))


def _log_mb(served: Served) -> float:
    log = served.kbctl.home / "kbctl.db-wal"
    return log.stat().st_size / 2**20 if log.exists() else 0.0
