"""What a call costs with very much in store, over what it costs with next to nothing, by the clock.

What must stay true: both sides of a ratio are measured in turn, one call at a time, in the same round, by the
same agent; what nobody uses meanwhile stands still. `tests/proxy/test_growth.py` counts the same on few keys.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import uvloop

from kbctl.paths import Home
from kbctl.wire import IssueRequest
from tests.bench.agents import Agent, charge, connect
from tests.bench.daemon import Served, serve
from tests.bench.report import Grid, Report, Watch
from tests.bench.stock import fill_calls, vault_key
from tests.bench.upstream import Upstream, fixed_answer

_FEW = 10
_PARENTS = 8
_LINES = 200
_BLOCK = 200
"""Calls in a row before the other side has its turn."""
_FLOOR, _GOAL = 1.2, 1.05


@dataclass(frozen=True, slots=True)
class _Side:
    """Who is called, by which key."""

    pid: int
    port: int
    key: str


@dataclass(frozen=True, slots=True)
class _Cost:
    """Of one call of a block, in microseconds: till its answer, and of the daemon's processor."""

    clock_us: float
    cpu_us: float


def drill(watch: Watch, *, keys: int = 1_000_000, rows: int = 10_000_000, rounds: int = 15) -> Report:
    """Fill, start three daemons, call them in turn.

    Args:
        watch: told of what takes long.
        keys: in the database of the second.
        rows: in that of the third, all of ten keys, a second apart up to now.
        rounds: how often all is measured in turn.
    """
    report = Report(f"growth to {keys:,} keys, {rows:,} rows, {_PARENTS} parents, {_LINES} lines")
    with (
        fixed_answer(0) as upstream,
        serve(upstream, _FEW, watch) as few,
        serve(upstream, keys, watch) as many,
        _with_rows(upstream, rows, watch) as rowed,
    ):
        plain = _side(few, few.port, vault_key(1))
        pairs = {
            f"{keys:,} keys over {_FEW}": (plain, _side(many, many.port, vault_key(keys // 2))),
            f"{rows:,} rows over none": (plain, _side(rowed[0], rowed[1], vault_key(1))),
            f"{_PARENTS} parents over 1": (_derived(few, 1), _derived(few, _PARENTS)),
            f"{_LINES} lines allowed over 1": (_listed(few, 1), _listed(few, _LINES)),
        }
        found = uvloop.run(_measure(report, pairs, rounds, watch("calling", rounds * len(pairs))))
    _tell(report, found)
    return report


async def _measure(
    report: Report, pairs: dict[str, tuple[_Side, _Side]], rounds: int, tick: Callable[[int], None]
) -> dict[str, list[tuple[_Cost, _Cost]]]:
    """What a call of either side cost, by the name of the pair and by round."""
    sides = dict.fromkeys(side for pair in pairs.values() for side in pair)
    agents = {side: await connect(side.port) for side in sides}
    found: dict[str, list[tuple[_Cost, _Cost]]] = {name: [] for name in pairs}
    for turn in range(rounds + 1):
        for name, (less, more) in pairs.items():
            order = (less, more) if turn % 2 else (more, less)
            costs = {side: await _block(report, agents[side], side) for side in order}
            if turn:  # in the first, keys are read and pools are filled
                found[name].append((costs[less], costs[more]))
                tick(1)
    for agent in agents.values():
        agent.close()
    return found


def _tell(report: Report, found: dict[str, list[tuple[_Cost, _Cost]]]) -> None:
    grid = Grid("one call, medians", ["", "us, less", "us, more", "CPU us, less", "CPU us, more"], [])
    for name, both in found.items():
        report.score(name, [more.cpu_us / less.cpu_us for less, more in both], _FLOOR, _GOAL)
        report.score(
            f"{name}, till the answer", [more.clock_us / less.clock_us for less, more in both], _FLOOR, _GOAL
        )
        sides = [[pair[at] for pair in both] for at in (0, 1)]
        figures = [
            *(median(cost.clock_us for cost in costs) for costs in sides),
            *(median(cost.cpu_us for cost in costs) for costs in sides),
        ]
        grid.rows.append([name, *(f"{figure:,.0f}" for figure in figures)])
        report.samples.append(
            {"kind": "growth, us", "of": name, "cpu": [(less.cpu_us, more.cpu_us) for less, more in both]}
        )
    report.grids.append(grid)


async def _block(report: Report, agent: Agent, side: _Side) -> _Cost:
    request = charge(side.port, side.key, "cus_growth")
    before, began = _cpu_ns(side.pid), time.perf_counter_ns()
    statuses = {await agent.ask(request) for _ in range(_BLOCK)}
    took = time.perf_counter_ns() - began
    await asyncio.sleep(0.02)  # the end of the last call is on its way to disk
    report.check(statuses == {200}, f"port {side.port} answered {sorted(statuses)}")
    return _Cost(took / _BLOCK / 1000, (_cpu_ns(side.pid) - before) / _BLOCK / 1000)


def _cpu_ns(pid: int) -> int:
    """What all threads of a process have run for so far; finer than the ticks of its stat."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def _side(served: Served, port: int, key: str) -> _Side:
    return _Side(served.kbctl.pid(), port, key)


def _derived(served: Served, depth: int) -> _Side:
    """A key with so many above it, each of which has every kind of limit."""
    issued = served.client.issue(
        IssueRequest(vendor="stripe", daily_usd_cap=100_000, rate="100000/s", daily_requests=1_000_000)
    )
    for _ in range(depth):
        issued = served.client.issue(IssueRequest(parent_vault_key=issued.vault_key))
    return _side(served, served.port, issued.vault_key)


def _listed(served: Served, lines: int) -> _Side:
    """A key with so many lines, the last of which allows the call."""
    allowed = [f"POST /v1/customers/*/things/{line}" for line in range(lines - 1)]
    issued = served.client.issue(
        IssueRequest(
            vendor="stripe",
            daily_usd_cap=100_000,
            allowed_endpoints=[*allowed, "POST /v1/payment_intents"],
        )
    )
    return _side(served, served.port, issued.vault_key)


@contextmanager
def _with_rows(upstream: Upstream, rows: int, watch: Watch) -> Iterator[tuple[Served, int]]:
    """A daemon with a few keys that have made very many calls, and its port."""
    with serve(upstream, _FEW, watch) as served:
        served.kbctl("down")
        # Its anchor remembers fewer rows, which is what it says after a crash as well.
        fill_calls(Home(served.kbctl.home), rows, _FEW, time.time_ns(), watch(f"making {rows:,} rows", rows))
        served.kbctl("up", "--port", "0", "--upstream", f"stripe={upstream.url}")
        yield served, int(served.client.status().proxy_url.rpartition(":")[2])
