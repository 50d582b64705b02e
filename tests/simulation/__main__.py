"""Deterministic simulation: ``python -m tests.simulation``. The real daemon on a machine that is a figure.

    python -m tests.simulation --seeds 10000          the stories of so many seeds, on every core
    python -m tests.simulation --seed 4711            one story, every step of it
    python -m tests.simulation control                naive daemons, each of which must be caught

Every seed that breaks a law is printed, and told again step by step by its number. Exit status 1 then.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress

from tests.simulation.story import LawBroken, tell
from tests.support.naive import NAIVE, naive

LAZY = "acknowledge-unsynced"
"""One more naive variant: of the disk's use, and so not of the daemon's functions."""
CONTROLS = {**NAIVE, LAZY: "a commit is acknowledged before it is synced"}
CONTROL_SEEDS = 400
_AT_ONCE = 20


@dataclass(slots=True)
class Told:
    """What some stories came to."""

    seeds: int = 0
    calls: int = 0
    deaths: int = 0
    unknown: int = 0
    moved: int = 0
    broken: tuple[str, ...] = ()

    def add(self, other: "Told") -> None:
        self.seeds += other.seeds
        self.calls += other.calls
        self.deaths += other.deaths
        self.unknown += other.unknown
        self.moved += other.moved
        self.broken += other.broken


def tell_all(seeds: range) -> Told:
    """The stories of these seeds."""
    logging.disable(logging.CRITICAL)  # a story has faults on purpose; what they did is judged, not read
    told = Told()
    for seed in seeds:
        told.seeds += 1
        try:
            story, found = tell(seed)
        except Exception as error:  # noqa: BLE001 - told with its seed
            told.broken += (f"seed {seed}: {type(error).__name__}: {error}",)
            continue
        told.calls += story.calls
        told.deaths += story.deaths
        told.unknown += found.unknown
        told.moved += sum(entry["moved"] for entry in story.vendor.book.values())
    return told


def caught(how: str, seeds: int = CONTROL_SEEDS) -> tuple[int, str] | None:
    """The first seed that a naive variant breaks a law under, and how; None where none does."""
    logging.disable(logging.CRITICAL)
    with ExitStack() as stack:
        if how != LAZY:
            stack.enter_context(naive(how))
        for seed in range(seeds):
            try:
                tell(seed, lazy=how == LAZY)
            except LawBroken as broken:
                return seed, str(broken)
            except AssertionError as broken:  # the real anchor found it first
                return seed, str(broken)
    return None


def _parts(first: int, seeds: int) -> Iterator[range]:
    for begin in range(first, first + seeds, _AT_ONCE):
        yield range(begin, min(begin + _AT_ONCE, first + seeds))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=("stories", "control"), default="stories")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    out = Console(highlight=False)
    if given.what == "control":
        blind = 0
        for how, what in CONTROLS.items():
            first = caught(how)
            blind += first is None
            said = f"NOT CAUGHT in {CONTROL_SEEDS} seeds" if first is None else f"seed {first[0]}: {first[1]}"
            out.print(f"{how} ({what}): {said}", soft_wrap=True)
        return 1 if blind else 0
    if given.seed is not None:
        logging.disable(logging.CRITICAL)
        try:
            story, found = tell(given.seed, lambda step: out.print(step, soft_wrap=True))
        except LawBroken as broken:
            out.print(f"BROKEN: {broken}", soft_wrap=True)
            return 1
        out.print(f"{story.calls} calls, {story.deaths} deaths, {found.unknown} unknown: every law held")
        return 0
    began, told = time.monotonic(), Told()
    with Progress(console=Console(stderr=True)) as progress, ProcessPoolExecutor(os.cpu_count()) as pool:
        task = progress.add_task("stories", total=given.seeds)
        for part in pool.map(tell_all, _parts(given.first, given.seeds)):
            told.add(part)
            progress.advance(task, part.seeds)
            for line in part.broken:
                progress.console.print(line, soft_wrap=True)
    out.print(
        f"{told.seeds:,} seeds, {told.calls:,} calls, {told.deaths:,} deaths, ${told.moved / 100:,.2f} moved,"
        f" {told.unknown:,} unknown kept, {len(told.broken)} seeds broke a law;"
        f" {time.monotonic() - began:.0f} s",
        soft_wrap=True,
    )
    return 1 if told.broken else 0


if __name__ == "__main__":
    sys.exit(main())
