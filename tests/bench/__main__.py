"""``python -m tests.bench COMMAND``: how fast, how fair, how large.

A command prints a table and, with ``--json FILE``, writes it with date, machine and every single
measurement; ``--compare FILE`` shows what changed since such a file. It ends with 1 when an answer was wrong
or a floor was missed, with 2 when something that it needs is not installed.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from tests.bench import (
    audit,
    cli,
    everything,
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
from tests.bench.report import Report


@dataclass(frozen=True, slots=True)
class Command:
    """A drill, which options it takes, and what it is given where an option is left out."""

    drill: Callable[..., Report]
    help: str
    options: tuple[str, ...]
    given: dict[str, Any]


_OPTIONS: dict[str, dict[str, Any]] = {
    "keys": {"type": int, "metavar": "N", "help": "keys in the database"},
    "rows": {"type": int, "metavar": "N", "help": "calls in the database"},
    "calls": {"type": int, "metavar": "N", "help": "calls that are made, or in the database"},
    "streams": {"type": int, "metavar": "N", "help": "streams at once"},
    "connections": {"type": int, "metavar": "N", "help": "that stay open and silent"},
    "rounds": {"type": int, "metavar": "N", "help": "how often all is measured in turn"},
    "seconds": {"type": int, "metavar": "S", "help": "of load in each slice"},
    "only": {
        "type": lambda text: tuple(text.split(",")),
        "metavar": "NAME,...",
        "help": f"who takes part: {', '.join(proxy.NAMES)}",
    },
    "peers": {
        "type": Path,
        "metavar": "DIR",
        "default": Path(os.environ["KBCTL_BENCH_PEERS"]) if "KBCTL_BENCH_PEERS" in os.environ else None,
        "help": "the virtual environment with tests/bench/peers.txt installed; also $KBCTL_BENCH_PEERS",
    },
}


def _command(drill: Callable[..., Report], help: str, *options: str, **given: Any) -> Command:  # noqa: A002
    return Command(drill, help, options, given)


_COMMANDS = {
    "proxy": _command(
        proxy.drill, "calls/s and latency beside other proxies", "rounds", "seconds", "only", "peers"
    ),
    "fsync": _command(fsync.drill, "calls/s where every flush takes 2 ms", "rounds", "seconds"),
    "memory": _command(memory.drill, "idle, with many keys, with many connections", "keys", "connections"),
    "cli": _command(cli.drill, "the command line over `python -c pass`", "rounds"),
    "audit": _command(audit.drill, "the newest 50 of ten million rows", "calls", "keys"),
    "growth": _command(
        growth.drill, "a call with very much in store over one with little", "keys", "rows", "rounds"
    ),
    "revoke": _command(revoke.drill, "how soon a revocation is acknowledged", "keys", keys=1_000_000),
    "fairness": _command(fairness.drill, "a burst of one key beside another key", "keys", keys=1_000),
    "shares": _command(fairness.shared, "the same where the vendor's rate is shared", "keys", keys=1_000),
    "streams": _command(streams.drill, "streams of events at once", "streams", streams=100),
    "soak": _command(soak.drill, "whether memory stays flat", "keys", "calls", keys=1_000),
    "start": _command(start.drill, "start over a large database", "keys", "calls", keys=1_000_000),
    "verify": _command(verify.drill, "what the journal takes, and the walk of its chain", "calls"),
    "all": _command(everything.drill, "all of it in short, in one table", "peers"),
}


def main() -> int:
    """Run one command."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is stopped then, too
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        added = commands.add_parser(name, help=command.help, description=command.help)
        for option in command.options:
            added.add_argument(f"--{option}", **_OPTIONS[option])
        added.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
        added.add_argument("--compare", type=Path, metavar="FILE", help="a run that was saved before")
    given = parser.parse_args()
    command = _COMMANDS[given.name]
    said = {name: getattr(given, name) for name in command.options if getattr(given, name) is not None}
    saved = None if given.compare is None else json.loads(given.compare.read_text())
    with Progress(console=Console(stderr=True)) as progress:

        def watch(title: str, steps: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=steps)
            return lambda steps: progress.advance(task, steps)

        try:
            report = command.drill(watch=watch, **{**command.given, **said})
        except NotInstalledError as missing:
            progress.stop()
            sys.stderr.write(f"{missing}\n")
            return 2
    report.show(Console())
    if saved is not None:
        report.show_changes(Console(), saved)
    if given.json is not None:
        report.write(given.json)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
