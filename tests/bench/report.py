"""What a drill found: figures with the bars beside them, and scores with floor and goal.

What must stay true: a wrong answer and a floor that is missed fail a drill; a bar that is missed does not. A
score is a ratio of what was measured in the same run, so it can be compared with a saved one; a figure is of
this machine on this day.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from tests.bench.machine import about

Watch = Callable[[str, int], Callable[[int], None]]
"""Told what takes long now and how many steps it has; gives what is told of every further steps."""

Verdict = Literal["goal", "floor", "missed"]
_COLOURS = {"goal": "green", "floor": "yellow", "missed": "bold red", "": ""}


def unwatched(_title: str, _steps: int) -> Callable[[int], None]:
    return lambda _steps: None


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a report."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    """The most that it should be."""

    @property
    def met(self) -> bool | None:
        return None if self.bar is None else self.value <= self.bar


@dataclass(frozen=True, slots=True)
class Score:
    """What a measure came to, and what it must and should reach. A goal below the floor: less is better.

    Attributes:
        value: the median of the rounds.
        least: of any round.
        most: of any round.
    """

    name: str
    value: float
    floor: float
    goal: float
    unit: str = "x"
    least: float = 0.0
    most: float = 0.0

    @property
    def verdict(self) -> Verdict:
        sign = 1 if self.goal >= self.floor else -1
        if sign * self.value >= sign * self.goal:
            return "goal"
        return "floor" if sign * self.value >= sign * self.floor else "missed"


@dataclass(frozen=True, slots=True)
class Grid:
    """Figures in rows and columns, as they are."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True, slots=True)
class Change:
    """A score then and now."""

    name: str
    before: float
    now: float
    better: bool

    @property
    def share(self) -> float:
        """0.1 is a tenth more than before."""
        return self.now / self.before - 1


@dataclass(slots=True)
class Report:
    """All that a drill found.

    Attributes:
        wrong: what went wrong, other than that it took long.
        skipped: what was left out, and how it is installed.
        samples: every single measurement behind the scores.
    """

    drill: str
    figures: list[Figure] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=about)

    @property
    def failed(self) -> bool:
        return bool(self.wrong) or any(score.verdict == "missed" for score in self.scores)

    def add(self, name: str, value: float, unit: str = "ms", bar: float | None = None) -> None:
        self.figures.append(Figure(name, value, unit, bar))

    def score(self, name: str, rounds: Sequence[float], floor: float, goal: float, unit: str = "x") -> None:
        """Judge the median of what the rounds came to; no round at all is wrong."""
        self.check(bool(rounds), f"no round could tell: {name}")
        if rounds:
            self.scores.append(Score(name, median(rounds), floor, goal, unit, min(rounds), max(rounds)))

    def spread(
        self, name: str, took: Iterable[float], *, p50: float | None = None, p99: float | None = None
    ) -> None:
        """Median, 99th percentile and maximum of times in milliseconds."""
        ordered = sorted(took)
        self.add(f"{name}, median", percentile(ordered, 0.5), bar=p50)
        self.add(f"{name}, 99 % within", percentile(ordered, 0.99), bar=p99)
        self.add(f"{name}, longest", ordered[-1])

    def check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)

    def include(self, other: "Report") -> None:
        """Take over what another drill found."""
        self.figures += [
            Figure(f"{other.drill}: {figure.name}", figure.value, figure.unit, figure.bar)
            for figure in other.figures
            if figure.bar is not None
        ]
        self.wrong += [f"{other.drill}: {sentence}" for sentence in other.wrong]
        self.scores += other.scores
        self.grids += other.grids
        self.notes += [note for note in other.notes if note not in self.notes]
        self.skipped += [line for line in other.skipped if line not in self.skipped]
        self.samples += other.samples

    def show(self, console: Console) -> None:
        for grid in self.grids:
            console.print(_of_grid(grid))
        load = ", ".join(f"{each:.1f}" for each in self.about["load_average_before"])
        table = Table(title=self.drill, caption=f"{self.about['date']}; load average before: {load}")
        table.add_column("measure")
        for heading in ("measured", "rounds", "floor", "goal or bar"):
            table.add_column(heading, justify="right")
        table.add_column("")
        for score in self.scores:
            sign = ">=" if score.goal >= score.floor else "<="
            rounds = "" if score.least == score.most else f"{score.least:,.3g} - {score.most:,.3g}"
            table.add_row(
                *(score.name, f"{score.value:,.3g} {score.unit}", rounds),
                *(f"{sign} {score.floor:,g}", f"{sign} {score.goal:,g}", score.verdict),
                style=_COLOURS[score.verdict],
            )
        for figure in self.figures:
            colour = {None: "", True: "green", False: "red"}[figure.met]
            bar = "" if figure.bar is None else f"<= {figure.bar:,g} {figure.unit}"
            table.add_row(figure.name, f"{figure.value:,.4g} {figure.unit}", "", "", bar, style=colour)
        console.print(table)
        for sentence in self.notes:
            console.print(sentence, highlight=False)
        for sentence in self.skipped:
            console.print(f"left out: {sentence}", highlight=False, style="yellow")
        for sentence in self.wrong:
            console.print(f"WRONG: {sentence}", style="bold red")

    def show_changes(self, console: Console, saved: Mapping[str, Any]) -> None:
        """Each score beside that of a saved run."""
        table = Table(title="change", caption=f"against {saved['about']['date']}")
        table.add_column("measure")
        for heading in ("then", "now", "change"):
            table.add_column(heading, justify="right")
        for change in changes(self.scores, saved):
            colour = "" if abs(change.share) < _NOISE else "green" if change.better else "red"
            table.add_row(
                *(change.name, f"{change.before:,.3g}", f"{change.now:,.3g}", f"{change.share:+.0%}"),
                style=colour,
            )
        console.print(table)

    def write(self, path: Path) -> None:
        self.about["load_average_after"] = [round(load, 2) for load in os.getloadavg()]
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


_NOISE = 0.15
"""Smaller changes are not resolved on a machine that does other things, too."""


def changes(scores: Iterable[Score], saved: Mapping[str, Any]) -> list[Change]:
    """What became of the scores that a saved run has as well."""
    before = {score["name"]: float(score["value"]) for score in saved.get("scores", [])}
    return [
        Change(
            score.name,
            before[score.name],
            score.value,
            (score.value > before[score.name]) == (score.goal >= score.floor),
        )
        for score in scores
        if before.get(score.name)
    ]


def _of_grid(grid: Grid) -> Table:
    table = Table(title=grid.title)
    table.add_column(grid.columns[0])
    for heading in grid.columns[1:]:
        table.add_column(heading, justify="right")
    for row in grid.rows:
        table.add_row(*row)
    return table


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that no more than the rest are above."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
