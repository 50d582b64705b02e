"""What the daemon's process takes: idle, with very many keys, and with very many agents that are silent.

What must stay true: every one of those agents has made a call on its connection, so that what a connection
keeps after a call is in the figure.
"""

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Callable

import uvloop

from tests.bench.agents import charge, connect
from tests.bench.daemon import Served, serve
from tests.bench.report import Report, Watch
from tests.bench.stock import vault_key
from tests.bench.upstream import fixed_answer

_SETTLE_S = 1.0
_FILES_BESIDE = 100
_KEYS_OF_AGENTS = 100


def drill(watch: Watch, *, keys: int = 1_000_000, connections: int = 10_000) -> Report:
    """Start over a few keys, connect, start over very many keys.

    Args:
        watch: told of what takes long.
        keys: in the database.
        connections: that stay open and silent.
    """
    report = Report(f"memory, {keys:,} keys, {connections:,} idle connections")
    usable = _usable_files() - _FILES_BESIDE
    if usable < connections:
        report.skipped.append(
            f"{connections - usable:,} of {connections:,} idle connections: `ulimit -Hn` allows no more files"
        )
        connections = usable
    config = f"[limits]\nconnections = {connections + _FILES_BESIDE}\nidle_s = 3600\n"
    with fixed_answer(0) as upstream:
        with serve(upstream, _KEYS_OF_AGENTS, watch, config=config) as served:
            time.sleep(_SETTLE_S)
            report.score("RSS, idle", [served.memory_mb()], 60, 30, "MB")
            tick = watch(f"connecting {connections:,} agents", connections)
            statuses, memory_mb = uvloop.run(_idle(served, connections, tick))
            report.check(statuses == {200: connections}, f"the agents were answered {dict(statuses)}")
            report.score(f"RSS, {connections:,} idle connections", [memory_mb], 200, 100, "MB")
        with serve(upstream, keys, watch) as served:
            time.sleep(_SETTLE_S)
            report.score(f"RSS, {keys:,} keys", [served.memory_mb()], 600, 300, "MB")
    return report


async def _idle(served: Served, connections: int, tick: Callable[[int], None]) -> tuple[Counter[int], float]:
    """Connect agents, each of which makes one call and stays; how they were answered, and the memory then."""
    statuses = Counter[int]()
    agents = []
    for number in range(connections):
        agents.append(await connect(served.port))
        request = charge(served.port, vault_key(number % _KEYS_OF_AGENTS + 1), "cus_idle")
        statuses[await agents[-1].ask(request)] += 1
        tick(1)
    await asyncio.sleep(_SETTLE_S)
    memory_mb = served.memory_mb()
    for agent in agents:
        agent.close()
    return statuses, memory_mb


def _usable_files() -> int:
    """As many as this process may have open; what is allowed is taken."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 65_536
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return hard
