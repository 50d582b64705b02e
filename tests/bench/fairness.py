"""What a burst of one key does to the calls of another.

The daemon has a core of its own: what a thousand agents, their upstream and the other key's agent take
from each other is not its doing. Nor is how long this upstream takes to accept a crowd of new connections:
the first burst, which opens them, is told apart.
"""

import asyncio
from bisect import bisect
from collections.abc import Callable

import uvloop

from tests.bench.agents import Helper, Probe, helper
from tests.bench.daemon import serve
from tests.bench.machine import two_cores
from tests.bench.report import Report, Watch, percentile
from tests.bench.upstream import fixed_answer

_UPSTREAM_MS = 10
_RATED = '[vendor_rates.stripe]\nread = "100/s"\nwrite = "100/s"\n'
_BETWEEN_S = 0.5


def shared(keys: int, watch: Watch) -> Report:
    """The same where the vendor's rate is what the keys share: Stripe's 100 writes a second.

    A burst of 1,000 then waits its turns for nine seconds, and the other key, which sends some ten calls a
    second, is served before it.
    """
    return drill(keys, watch, rounds=3, config=_RATED, probes=1, pause_s=0.09)


def drill(
    keys: int,
    watch: Watch,
    *,
    burst: int = 1000,
    rounds: int = 20,
    quiet_s: float = 10.0,
    config: str = "",
    probes: int = 4,
    pause_s: float = 0.0,
) -> Report:
    """Measure another key while it is quiet, then while one sends very many requests at once.

    Args:
        keys: in the database.
        watch: told of what takes long.
        burst: requests at once, each on a connection of its own.
        rounds: how many bursts, after the first one.
        quiet_s: how long the other key is measured before.
        config: of the daemon.
        probes: connections of the other key.
        pause_s: between two calls on each.
    """
    report = Report(f"fairness, a burst of {burst:,}")
    cores = two_cores()
    with (
        cores.pinned(cores.rest),
        fixed_answer(_UPSTREAM_MS) as upstream,
        serve(upstream, keys, watch, config=config, core=cores.measured) as served,
        helper("burst", served.port, burst, 1) as rival,
    ):
        probe = Probe(served.port, range(2, 3), pause_s=pause_s)
        tick = watch("bursts", 1 + rounds)
        quiet, windows, statuses = uvloop.run(_measure(probe, probes, rival, 1 + rounds, quiet_s, tick))
        heard = upstream.heard()
    report.check(sum(statuses.values()) == burst * (1 + rounds), f"the bursts were answered {statuses}")
    report.check(statuses.keys() <= {200, 429}, f"the bursts were answered {statuses}")
    report.check(heard["cus_burst"] == statuses[200], "the vendor heard more or less of the bursts")
    report.check(set(probe.statuses) == {200}, f"the other key was answered {dict(probe.statuses)}")
    report.check(heard["cus_probe"] == probe.statuses[200], "the vendor heard more or less of the other key")
    alone = sorted(ms for began, ms in probe.took if began < quiet)
    first, *later = windows
    cold = sorted(ms for began, ms in probe.took if _within(began, began + ms / 1000, [first]))
    beside = sorted(ms for began, ms in probe.took if _within(began, began + ms / 1000, later))
    report.add("refused of the bursts", statuses[429], "calls")
    report.spread("a burst", [(end - begin) * 1000 for begin, end in later])
    report.spread("the other key, quiet", alone)
    report.spread("the other key, beside the first burst", cold)
    report.spread("the other key, beside a burst", beside)
    for share, bar in ((0.5, None), (0.99, 2.0)):
        ratio = percentile(beside, share) / percentile(alone, share)
        report.add(f"ratio at {share:.0%}", ratio, "x", bar)
    return report


async def _measure(
    probe: Probe, probes: int, rival: Helper, rounds: int, quiet_s: float, tick: Callable[[int], None]
) -> tuple[float, list[tuple[float, float]], dict[int, int]]:
    """When it ceased to be quiet, when each burst was, and how they were answered."""
    probing = asyncio.ensure_future(probe.run(probes))
    await asyncio.sleep(quiet_s)
    quiet = asyncio.get_running_loop().time()
    windows, statuses = [], {200: 0, 429: 0}
    for _ in range(rounds):
        rival.begin()
        said = await asyncio.to_thread(rival.hear)
        windows.append((said["began"], said["ended"]))
        for status, count in said["statuses"].items():
            statuses[int(status)] = statuses.get(int(status), 0) + count
        tick(1)
        await asyncio.sleep(_BETWEEN_S)
    probe.over = True
    await probing
    return quiet, windows, statuses


def _within(begin: float, end: float, windows: list[tuple[float, float]]) -> bool:
    """Whether a call and a burst overlapped."""
    place = bisect(windows, (end,)) - 1
    return place >= 0 and windows[place][1] > begin
