"""What a drill found: figures, and the bars beside them. Only correctness fails a drill."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

Watch = Callable[[str, int], Callable[[int], None]]
"""Told what takes long now and how many steps it has; gives what is told of every further steps."""


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


@dataclass(slots=True)
class Report:
    """All that a drill found.

    Attributes:
        wrong: what went wrong, other than that it took long.
    """

    drill: str
    figures: list[Figure] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str = "ms", bar: float | None = None) -> None:
        self.figures.append(Figure(name, value, unit, bar))

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

    def show(self, console: Console) -> None:
        table = Table(title=self.drill)
        table.add_column("figure")
        table.add_column("measured", justify="right")
        table.add_column("bar", justify="right")
        for figure in self.figures:
            colour = {None: "", True: "green", False: "red"}[figure.met]
            bar = "" if figure.bar is None else f"<= {figure.bar:,g} {figure.unit}"
            table.add_row(figure.name, f"{figure.value:,.4g} {figure.unit}", bar, style=colour)
        console.print(table)
        for sentence in self.wrong:
            console.print(f"WRONG: {sentence}", style="bold red")

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that no more than the rest are above."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
