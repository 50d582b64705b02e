"""100,000 calls, 200 at a time, against caps: 0 cents over, and the last dollar that fits is granted.

Every call costs $1. Two tenants are asked for more than they may spend: in one the tenant's cap is the least,
in the other the keys' own caps are, so that what must be granted is known to the call.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.drills.judge import Family, Figures
from tests.drills.scene import Nursery, Stage, charge, connect, new_folder
from tests.drills.vendor import accounting_vendor

CLIENTS = 200
CENTS = 100


@dataclass(slots=True)
class Told:
    """What became of a storm.

    Attributes:
        statuses: of the answers.
        scopes: by scope, its cap and what the vendor moved in it, both in cents.
        must: by tenant, what must have been granted, in cents.
        figures: what the laws say.
    """

    calls: int
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    scopes: dict[str, tuple[int, int]] = field(default_factory=dict)
    must: dict[str, int] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)

    @property
    def exact(self) -> bool:
        granted = all(self.scopes[f"tenant:{name}"][1] == cents for name, cents in self.must.items())
        return granted and not self.figures.broken and self.statuses.keys() <= {200, 429}

    def table(self) -> Table:
        shown = Table(
            title=f"{self.calls:,} calls, {CLIENTS} at a time, {self.seconds:.0f} s: "
            f"{self.statuses[200]:,} granted, {self.statuses[429]:,} refused",
            title_justify="left",
        )
        for title in ("scope", "cap", "moved by the vendor", "must be", "¢ over"):
            shown.add_column(title, justify="left" if title == "scope" else "right")
        for scope, (cap, moved) in self.scopes.items():
            must = self.must.get(scope.removeprefix("tenant:"))
            told = "" if must is None or not scope.startswith("tenant:") else f"${must / 100:,.2f}"
            shown.add_row(scope, f"${cap / 100:,.2f}", f"${moved / 100:,.2f}", told, str(max(moved - cap, 0)))
        figures = self.figures
        shown.caption = (
            f"rows missing {figures.rows_missing}, freed wrongly {figures.freed}, ¢ uncounted"
            f" {figures.cents_uncounted}: {'exact' if self.exact else 'NOT EXACT'}"
        )
        return shown


def must(family: Family, asked: int) -> int:
    """How many calls must be granted where each key is asked for so many."""
    root, other, *children = (family.caps[key.key_id] // CENTS for key in family.keys)
    below = min(root, asked + sum(min(child, asked) for child in children))
    return min(family.caps[f"tenant:{family.tenant}"] // CENTS, below + min(other, asked))


async def storm(calls: int, screen: Console) -> Told:
    """Asks for so many; the caps are for about a third of them."""
    told = Told(calls)
    nursery = Nursery()
    try:
        with accounting_vendor() as vendor, new_folder() as folder:
            stage = Stage(nursery, vendor, folder, random.Random(1))
            await stage.open()
            families = []
            for share in (0.25, 0.25):
                family = await stage.family(int(calls * share * CENTS / 500))
                assert family is not None
                families.append(family)
            # In the second the keys bind: its tenant may spend a lot.
            wide = families[1]
            await stage.ask("PUT", f"/tenants/{wide.tenant}", {"daily_usd_cap": calls * 100})
            wide.caps[f"tenant:{wide.tenant}"] = calls * 100 * 100
            for family in families:
                told.must[family.tenant] = must(family, calls // 10) * CENTS
            keys = [(family, key) for family in families for key in family.keys]
            numbers = iter(range(calls))
            loop = asyncio.get_running_loop()
            began = loop.time()
            with Progress(console=screen) as progress:
                task = progress.add_task("storm", total=calls)

                async def client() -> None:
                    agent = await connect(stage.port)
                    assert agent is not None
                    for number in numbers:
                        family, key = keys[number % len(keys)]
                        name = f"ok.{family.tenant}-{number}"
                        key.asked.add(name)
                        status, _ = await agent.ask(charge(stage.port, key.secret, name, CENTS))
                        family.answered[name] = status
                        told.statuses[status] += 1
                        progress.advance(task)
                    agent.transport.abort()

                await asyncio.gather(*(client() for _ in range(CLIENTS)))
            told.seconds = loop.time() - began
            for family in families:
                told.figures.add(await stage.check(family))
                for scope, cap in family.caps.items():
                    mine = [name for key in family.keys if scope in key.scopes for name in key.asked]
                    told.scopes[scope] = (
                        cap,
                        sum(stage.book[name]["moved"] for name in mine if name in stage.book),
                    )
            await stage.stop()
    finally:
        nursery.close()
    return told
