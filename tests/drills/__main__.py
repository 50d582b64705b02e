"""Crash drills: ``python -m tests.drills``. The real daemon, an independent vendor, all that can go wrong.

    python -m tests.drills                  10,000 faults of 71 kinds; --jobs 6 takes ten minutes
    python -m tests.drills --short          some of every kind, in a minute or two
    python -m tests.drills --kind kill      only kinds whose name begins so
    python -m tests.drills storm            100,000 calls, 200 at a time, against caps
    python -m tests.drills control          naive daemons, each of which must be caught

Exit status 0: every law held (of ``control``: every naive daemon was caught); 1 otherwise.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.drills.judge import Figures
from tests.drills.kinds import Kind, home_of, kinds, noon_offset_s
from tests.drills.scene import Nursery, Stage, new_folder
from tests.drills.storm import storm
from tests.drills.vendor import AccountingVendor, accounting_vendor
from tests.support.naive import NAIVE

LONG, SHORT = 10_000, 400
_COLUMNS = {
    "faults": "faults",
    "seen": "calls seen",
    "rows": "rows",
    "cents_over": "¢ over",
    "cents_uncounted": "¢ uncounted",
    "cents_twice": "¢ twice",
    "rows_missing": "rows missing",
    "freed": "freed wrongly",
    "revoked_served": "served revoked",
    "unknown": "unknown, kept",
}
_ROUNDS_WITHOUT_A_FAULT = 10


async def drill(
    kind: Kind, faults: int, vendor: AccountingVendor, nursery: Nursery, seed: int, *, broken: str = ""
) -> Figures:
    """So many faults of one kind, in one home."""
    found = Figures()
    with new_folder() as folder:
        async with home_of(kind, folder):
            stage = Stage(nursery, vendor, folder, random.Random(f"{seed} {kind.name}"), broken)
            stage.clock.write_text(str(noon_offset_s()))
            vendor.book()
            await stage.open()
            try:
                in_vain = 0
                while found.faults < faults and in_vain < _ROUNDS_WITHOUT_A_FAULT:
                    before = found.faults
                    found.add(await kind.round(stage, faults - found.faults))
                    in_vain = in_vain + 1 if found.faults == before else 0
                    if broken and found.broken:
                        break
            except BaseException:
                if "KBCTL_DRILLS_KEEP" in os.environ:
                    shutil.copytree(
                        folder, os.environ["KBCTL_DRILLS_KEEP"], dirs_exist_ok=True, ignore=_no_sockets
                    )
                raise
            finally:
                with suppress(AssertionError):
                    await stage.stop(signal.SIGKILL)
    return found


def _no_sockets(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".sock")]


def plan(chosen: list[Kind], faults: int) -> dict[Kind, int]:
    """How many of each kind."""
    able = [kind for kind in chosen if not kind.missing]
    parts = sum(kind.share for kind in able)
    return {kind: max(round(faults * kind.share / parts), 1) for kind in able}


async def drills(
    chosen: list[Kind], faults: int, seed: int, jobs: int, tick: Callable[[Kind, Figures | None], None]
) -> dict[str, Figures]:
    """All of them, some at a time; each of those has a vendor and a nursery of its own."""
    found: dict[str, Figures] = {}
    waiting = list(reversed(plan(chosen, faults).items()))

    async def work() -> None:
        nursery = Nursery()
        try:
            with accounting_vendor() as vendor:
                while waiting:
                    kind, wanted = waiting.pop()
                    tick(kind, None)
                    found[kind.name] = await drill(kind, wanted, vendor, nursery, seed)
                    tick(kind, found[kind.name])
        finally:
            nursery.close()

    await asyncio.gather(*(work() for _ in range(jobs)))
    return {kind.name: found[kind.name] for kind in chosen if kind.name in found}


async def control(seed: int) -> dict[str, Figures]:
    """What the checker finds of each naive daemon."""
    by_name = {kind.name: kind for kind in kinds()}
    against = {
        "free-on-silence": "vendor:reset-moved",
        "send-first": "kill:in-flight",
        "forget-holds": "vendor:reset-moved",
        "check-then-add": "kill:random",
        "revoke-in-memory": "kill:revoke-acknowledged",
        "believe-the-clock": "clock:midnight-ahead",
        "every-retry-pays": "kill:answer-head",
    }
    assert against.keys() == NAIVE.keys()
    found = {}
    nursery = Nursery()
    try:
        with accounting_vendor() as vendor:
            for broken, name in against.items():
                found[broken] = await drill(by_name[name], 200, vendor, nursery, seed, broken=broken)
    finally:
        nursery.close()
    return found


def table(found: dict[str, Figures], missing: list[Kind], first: str = "fault") -> Table:
    shown = Table(title_justify="left", row_styles=["", "dim"])
    shown.add_column(first)
    for title in _COLUMNS.values():
        shown.add_column(title, justify="right")
    shown.add_column("pass")
    total = Figures()
    for name, figures in found.items():
        total.add(figures)
        _add(shown, name, figures)
    shown.add_section()
    _add(shown, "all", total)
    for kind in missing:
        shown.add_row(kind.name, *["-"] * len(_COLUMNS), f"not here: {kind.missing}")
    return shown


def markdown(found: dict[str, Figures]) -> str:
    """The same for a README: kinds of a group together."""
    groups: dict[str, tuple[int, Figures]] = {}
    total = Figures()
    for name, figures in found.items():
        kinds_of, together = groups.setdefault(name.partition(":")[0], (0, Figures()))
        together.add(figures)
        total.add(figures)
        groups[name.partition(":")[0]] = kinds_of + 1, together
    groups["all"] = len(found), total
    lines = [f"| {' | '.join(['fault', 'kinds', *_COLUMNS.values()])} |"]
    lines.append("| --- |" + " ---: |" * (len(_COLUMNS) + 1))
    for group, (kinds_of, together) in groups.items():
        counts = (f"{getattr(together, field):,}" for field in _COLUMNS)
        lines.append(f"| {' | '.join([group, str(kinds_of), *counts])} |")
    return "\n".join(lines)


def _add(shown: Table, name: str, figures: Figures) -> None:
    passed = "yes" if not figures.broken and figures.faults else "NO"
    shown.add_row(name, *(f"{getattr(figures, field):,}" for field in _COLUMNS), passed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=__doc__, formatter_class=_Raw)
    parser.add_argument("what", nargs="?", choices=("drills", "storm", "control", "kinds"), default="drills")
    parser.add_argument("--short", action="store_true", help=f"{SHORT} faults instead of {LONG:,}")
    parser.add_argument("--faults", type=int, default=None)
    parser.add_argument("--calls", type=int, default=100_000, help="of the storm")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="kinds at a time")
    parser.add_argument("--kind", default="", help="only kinds whose name begins so")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None, help="the figures, as JSON")
    parser.add_argument("--markdown", action="store_true", help="one line for each group of kinds")
    given = parser.parse_args()
    seed = random.randrange(2**32) if given.seed is None else given.seed
    screen = Console(stderr=True)
    out = Console(width=None if sys.stdout.isatty() else 170)
    began = time.monotonic()
    chosen = [kind for kind in kinds() if kind.name.startswith(given.kind)]
    if given.what == "kinds":
        for kind in chosen:
            out.print(f"{kind.name:24} {kind.what}{f'   ({kind.missing})' if kind.missing else ''}")
        return 0
    if given.what == "storm":
        told = uvloop.run(storm(given.calls, screen))
        out.print(told.table())
        return 0 if told.exact else 1
    if given.what == "control":
        found = uvloop.run(control(seed))
        out.print(table(found, [], "naive daemon"))
        blind = [name for name, figures in found.items() if not figures.broken]
        out.print(f"seed {seed}; not caught: {', '.join(blind) or 'none'}")
        return 1 if blind else 0
    faults = given.faults or (SHORT if given.short else LONG)
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen) as progress:
        task = progress.add_task("starting", total=sum(plan(chosen, faults).values()))

        done = dict[str, Figures]()

        def tick(kind: Kind, figures: Figures | None) -> None:
            if figures is not None:
                done[kind.name] = figures
                _keep(given.json, seed, done)
                if not screen.is_terminal:
                    screen.print(f"{kind.name}: {figures}", soft_wrap=True, emoji=False)
            progress.update(task, description=kind.name, advance=figures.faults if figures else 0)

        found = uvloop.run(drills(chosen, faults, seed, given.jobs, tick))
    missing = [kind for kind in chosen if kind.missing]
    if given.markdown:
        print(markdown(found))  # noqa: T201 - to be pasted as it is
    else:
        out.print(table(found, missing))
    out.print(f"seed {seed}; {time.monotonic() - began:.0f} s")
    return 1 if any(figures.broken or not figures.faults for figures in found.values()) else 0


def _keep(path: Path | None, seed: int, found: dict[str, Figures]) -> None:
    """So that a run that is broken off has told something."""
    if path is not None:
        told = {name: asdict(figures) for name, figures in found.items()}
        path.write_text(json.dumps({"seed": seed, "kinds": told}, indent=1))


class _Raw(argparse.RawDescriptionHelpFormatter):
    """The docstring as it is written."""


def _apart() -> None:
    """Mounts of a drill are of its own namespace, and gone with it."""
    if sys.platform != "linux" or "KBCTL_DRILLS_APART" in os.environ or shutil.which("unshare") is None:
        return
    how = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    if os.system(f"{' '.join(how)} true 2>/dev/null") == 0:
        os.environ["KBCTL_DRILLS_APART"] = "1"
        os.execvp(how[0], [*how, sys.executable, "-m", "tests.drills", *sys.argv[1:]])


if __name__ == "__main__":
    assert asyncio
    _apart()
    sys.exit(main())
