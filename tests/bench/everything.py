"""All of it in short, in one table. What is not installed is left out by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench import (
    audit,
    cli,
    fairness,
    fsync,
    growth,
    memory,
    proxy,
    revoke,
    soak,
    start,
    streams,
    verify,
)
from tests.bench.machine import NotInstalledError
from tests.bench.report import Report, Watch


def drill(watch: Watch, *, peers: Path | None = None) -> Report:
    """Run every drill on fewer keys and calls than alone.

    Args:
        watch: told of what takes long.
        peers: the virtual environment that has the peers of PyPI.
    """
    report = Report("everything, in short")
    short: list[Callable[[], Report]] = [
        partial(proxy.drill, watch, rounds=2, peers=peers, connections=(1, 64), firsts=100),
        partial(fsync.drill, watch, rounds=2, seconds=1),
        partial(memory.drill, watch, keys=100_000),
        partial(cli.drill, watch, rounds=5),
        partial(audit.drill, watch, calls=500_000),
        partial(growth.drill, watch, keys=50_000, rows=500_000, rounds=5),
        partial(revoke.drill, 50_000, watch, warm_s=1.0, singles=60, groups=5),
        partial(fairness.drill, 100, watch, burst=500, rounds=5, quiet_s=2.0),
        partial(fairness.shared, 100, watch),
        partial(streams.drill, 30, watch, events=1_000, firsts=50),
        partial(soak.drill, 100, watch, calls=30_000),
        partial(start.drill, 10_000, watch, calls=200_000),
        partial(verify.drill, watch, calls=100_000),
    ]
    for each in short:
        try:
            report.include(each())
        except NotInstalledError as missing:
            report.skipped.append(str(missing))
    return report
