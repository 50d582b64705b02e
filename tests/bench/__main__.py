"""``python -m tests.bench NAME``: how fast, how fair, how large. Figures, not verdicts."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.bench import fairness, revoke, soak, start, streams
from tests.bench.report import Report

_DRILLS: dict[str, tuple[Callable[..., Report], int]] = {
    "revoke": (revoke.drill, 1_000_000),
    "fairness": (fairness.drill, 1_000),
    "shares": (fairness.shared, 1_000),
    "streams": (streams.drill, 100),
    "soak": (soak.drill, 1_000),
    "start": (start.drill, 1_000_000),
}


def main() -> int:
    """Run one drill; 1 when something went wrong other than that it took long."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", choices=_DRILLS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--keys", type=int, metavar="N", help="keys in the database, or streams at once")
    parser.add_argument("--calls", type=int, metavar="N", help="calls that are made, or in the database")
    given = parser.parse_args()
    drill, keys = _DRILLS[given.name]
    if given.calls is not None:
        drill = partial(drill, calls=given.calls)
    with Progress(console=Console(stderr=True)) as progress:

        def watch(title: str, steps: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=steps)
            return lambda steps: progress.advance(task, steps)

        report = drill(given.keys or keys, watch)
    report.show(Console())
    if given.json is not None:
        report.write(given.json)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
