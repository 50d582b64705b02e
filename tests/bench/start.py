"""How soon a daemon is ready over a large database, and how soon it finds something in it."""

import time

from kbctl.calls import AuditFilter
from tests.bench.daemon import serve_calls
from tests.bench.report import Report, Watch
from tests.bench.stock import TENANTS
from tests.bench.upstream import fixed_answer

_ASKED = 40
_STARTS = 3


def drill(keys: int, watch: Watch, *, calls: int = 10_000_000) -> Report:
    """Fill, start, ask.

    Args:
        keys: in the database.
        watch: told of what takes long.
        calls: in the database, over all keys.
    """
    report = Report(f"start, {keys:,} keys and {calls:,} calls")
    with fixed_answer(0) as upstream, serve_calls(upstream, keys, calls, watch) as served:
        kbctl = served.kbctl
        kbctl("down")
        took = []
        for _ in range(_STARTS):
            began = time.monotonic()
            kbctl("up", "--port", "0", "--upstream", f"stripe={upstream.url}")
            took.append(time.monotonic() - began)
            if len(took) < _STARTS:
                kbctl("down")
        report.add("start, empty", served.empty_s, "s")
        report.add("start, all of it", sorted(took)[len(took) // 2], "s", bar=5 * served.empty_s + 3)
        client = served.client
        for name, wanted in (
            (
                "newest 50 of a tenant",
                [
                    AuditFilter(label_contains=f"tenant:t{n % TENANTS:04d}", limit=50)
                    for n in range(7, _ASKED)
                ],
            ),
            ("newest 50 refused", [AuditFilter(denied=True, limit=50)] * 5),
            ("newest 50 of nobody", [AuditFilter(label_contains="tenant:nobody", limit=50)] * 5),
        ):
            asked = []
            for each in wanted:
                began = time.monotonic()
                found = next(iter(client.audit(each)))
                asked.append((time.monotonic() - began) * 1000)
                report.check(
                    len(found) == 50 or "nobody" in name or calls < 10_000_000, f"{name}: {len(found)}"
                )
            report.spread(name, asked, p99=100 if "tenant" in name else None)
        report.add("memory", served.memory_mb(), "MB")
    return report
