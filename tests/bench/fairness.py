"""What a burst of one key does to the calls of another."""

import asyncio
from bisect import bisect
from collections.abc import Callable

import uvloop

from tests.bench.agents import Helper, Probe, helper
from tests.bench.daemon import serve
from tests.bench.report import Report, Watch, percentile
from tests.bench.upstream import fixed_answer

_UPSTREAM_MS = 10
_PROBES = 4
_BETWEEN_S = 0.5


def drill(keys: int, watch: Watch, *, burst: int = 1000, rounds: int = 20, quiet_s: float = 4.0) -> Report:
    """Measure another key while it is quiet, then while one sends very many requests at once.

    Args:
        keys: in the database.
        watch: told of what takes long.
        burst: requests at once, each on a connection of its own.
        rounds: how many bursts.
        quiet_s: how long the other key is measured before.
    """
    report = Report(f"fairness, a burst of {burst:,}")
    with (
        fixed_answer(_UPSTREAM_MS) as upstream,
        serve(upstream, keys, watch) as served,
        helper("burst", served.port, burst, 1) as rival,
    ):
        probe = Probe(served.port, range(2, 3))
        tick = watch("bursts", rounds)
        quiet, windows, statuses = uvloop.run(_measure(probe, rival, rounds, quiet_s, tick))
        heard = upstream.heard()
    report.check(sum(statuses.values()) == burst * rounds, f"the bursts were answered {statuses}")
    report.check(statuses.keys() <= {200, 429}, f"the bursts were answered {statuses}")
    report.check(heard["cus_burst"] == statuses[200], "the vendor heard more or less of the bursts")
    report.check(set(probe.statuses) == {200}, f"the other key was answered {dict(probe.statuses)}")
    report.check(heard["cus_probe"] == probe.statuses[200], "the vendor heard more or less of the other key")
    alone = sorted(ms for began, ms in probe.took if began < quiet)
    beside = sorted(ms for began, ms in probe.took if _within(began, began + ms / 1000, windows))
    report.add("refused of the bursts", statuses[429], "calls")
    report.spread("a burst", [(end - begin) * 1000 for begin, end in windows])
    report.spread("the other key, quiet", alone)
    report.spread("the other key, beside a burst", beside)
    for share, bar in ((0.5, None), (0.99, 2.0)):
        ratio = percentile(beside, share) / percentile(alone, share)
        report.add(f"ratio at {share:.0%}", ratio, "x", bar)
    return report


async def _measure(
    probe: Probe, rival: Helper, rounds: int, quiet_s: float, tick: Callable[[int], None]
) -> tuple[float, list[tuple[float, float]], dict[int, int]]:
    """When it ceased to be quiet, when each burst was, and how they were answered."""
    probing = asyncio.ensure_future(probe.run(_PROBES))
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
