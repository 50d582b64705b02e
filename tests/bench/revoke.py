"""How soon a revocation is acknowledged, with very many keys and under load, and whether it bites.

The daemon has a core of its own, which the load keeps busy.
"""

import random
import time
from collections.abc import Callable
from functools import partial

import uvloop

from kbctl.wire import RevokeReply, RevokeRequest
from tests.bench.agents import Agent, charge, connect, helper
from tests.bench.daemon import Served, serve
from tests.bench.machine import two_cores
from tests.bench.report import Report, Watch
from tests.bench.stock import GROUP, RUNS, TENANTS, key_id, parent, run, tenant, vault_key
from tests.bench.upstream import fixed_answer

_CONNECTIONS = 64
_ASKED_OF_A_GROUP = 3


def drill(keys: int, watch: Watch, *, warm_s: float = 5.0, singles: int = 200, groups: int = 10) -> Report:
    """Fill, start, put load on, revoke.

    Args:
        keys: in the database, a fifth of them children.
        watch: told of what takes long.
        warm_s: how long the load runs before the first revocation.
        singles: how many keys are revoked one by one.
        groups: how many tenants then, and how many labels.
    """
    report = Report(f"revoke, {keys:,} keys")
    cores = two_cores()
    with (
        cores.pinned(cores.rest),
        fixed_answer(0) as upstream,
        serve(upstream, keys, watch, core=cores.measured) as served,
    ):
        report.add("start, first use", served.first_s, "s")
        report.add("start, no keys", served.empty_s, "s")
        report.add("start, all keys", served.start_s, "s", bar=5 * served.empty_s + 3)
        report.add("memory after the start", served.memory_mb(), "MB", bar=600)
        # The load has the older half of the keys, the axe the other.
        with helper("load", served.port, _CONNECTIONS, 1, keys // 2) as load:
            load.begin()
            time.sleep(warm_s)
            axe = _Axe(served, report, random.Random(keys), keys)
            uvloop.run(axe.swing(singles, groups, watch("revoking", singles + 2 * groups)))
            load.begin()
            done = load.hear()
        heard = upstream.heard()
        for number, calls in axe.called.items():
            report.check(heard.get(f"cus_{number}", 0) == calls, f"key {number} was forwarded when revoked")
        statuses = {int(status): count for status, count in done["statuses"].items()}
        report.check(statuses.keys() <= {200, 401}, f"the load was answered {statuses}")
        report.check(heard["cus_probe"] == statuses[200], "the vendor heard more or less than was answered")
        report.add("load meanwhile", sum(statuses.values()) / done["seconds"], "calls/s")
        report.spread("call meanwhile", done["took"])
        report.add("memory at the end", served.memory_mb(), "MB", bar=600)
    return report


class _Axe:
    """Revokes, and asks at once.

    Attributes:
        called: how many calls of each key the vendor may have heard.
    """

    def __init__(self, served: Served, report: Report, chance: random.Random, keys: int) -> None:
        self.called: dict[int, int] = {}
        self._served = served
        self._report = report
        self._chance = chance
        self._keys = keys
        self._took: list[float] = []

    async def swing(self, singles: int, groups: int, tick: Callable[[int], None]) -> None:
        agent = await connect(self._served.port)
        client, chance = self._served.client, self._chance
        dead = set[int]()
        for turn, number in enumerate(chance.sample(range(self._keys // 2 + 1, self._keys + 1), singles)):
            self.called[number] = 0
            if turn % 2 and not dead & {number, parent(number)}:
                # Every other one has been used before, so that the daemon has it in memory.
                self.called[number] = 1
                self._report.check(await self._ask(agent, number) == 200, f"key {number} did not work")
            dead.add(number)
            await self._revoke(agent, [number], partial(client.revoke, key_id(number)))
            tick(1)
        self._tell("one key")
        for value in chance.sample(range(min(TENANTS, self._keys // GROUP)), groups):
            request = RevokeRequest(tenant=tenant(value * GROUP + 1))
            await self._revoke(agent, self._some(value, TENANTS), partial(client.revoke_all, request))
            tick(1)
        self._tell("a tenant")
        for value in chance.sample(range(min(RUNS, self._keys // GROUP)), groups):
            request = RevokeRequest(label=run(value * GROUP + 1))
            await self._revoke(agent, self._some(value, RUNS), partial(client.revoke_all, request))
            tick(1)
        self._tell("a label")
        agent.close()

    async def _revoke(self, agent: Agent, numbers: list[int], work: Callable[[], RevokeReply]) -> None:
        began = time.monotonic()
        reply = work()  # nothing else happens in this process: blocking is the shortest way
        self._took.append((time.monotonic() - began) * 1000)
        self._report.check(reply.revoked_count > 0 or bool(reply.already), f"nothing was revoked: {numbers}")
        for number in numbers:
            status = await self._ask(agent, number)
            self._report.check(status == 401, f"key {number} was answered {status} when revoked")

    async def _ask(self, agent: Agent, number: int) -> int:
        return await agent.ask(charge(self._served.port, vault_key(number), f"cus_{number}"))

    def _some(self, value: int, modulus: int) -> list[int]:
        """Some keys of a tenant or of a label."""
        groups = range(value, self._keys // GROUP, modulus)
        return [
            self._chance.choice(groups) * GROUP + self._chance.randint(1, GROUP)
            for _ in range(_ASKED_OF_A_GROUP)
        ]

    def _tell(self, what: str) -> None:
        self._report.spread(f"revoke {what}", self._took, p50=50, p99=250)
        self._took = []
