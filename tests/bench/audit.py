"""How soon the newest calls of something are found among very many, over the daemon's own socket.

What must stay true: what is asked about is spread over the whole table, another tenant, run, key or moment
each time, and what comes is what was asked for.
"""

import time
from datetime import UTC, datetime, timedelta

from kbctl.calls import AuditFilter
from tests.bench.daemon import serve_calls
from tests.bench.report import Report, Watch
from tests.bench.stock import key_id, run, tenant
from tests.bench.upstream import fixed_answer

_NEWEST = 50
_FLOOR_MS = 100
_GOAL_MS = 10


def drill(watch: Watch, *, calls: int = 10_000_000, keys: int = 5_000, asked: int = 40) -> Report:
    """Fill, start, ask.

    Args:
        watch: told of what takes long.
        calls: in the database, a second apart.
        keys: in the database, over which the calls are spread.
        asked: how often, in each way.
    """
    report = Report(f"the newest {_NEWEST} of {calls:,} calls")
    with fixed_answer(0) as upstream, serve_calls(upstream, keys, calls, watch) as served:
        now = datetime.now(UTC)
        numbers = [(turn * 7919) % keys + 1 for turn in range(asked)]
        moments = [now - timedelta(seconds=calls * turn / asked) for turn in range(asked)]
        ways = {
            "label": [AuditFilter(label_contains=f"tenant:{tenant(no)}", limit=_NEWEST) for no in numbers],
            "run id": [AuditFilter(label_contains=run(no), limit=_NEWEST) for no in numbers],
            "key": [AuditFilter(key=key_id(no), limit=_NEWEST) for no in numbers],
            "time": [AuditFilter(end=moment.isoformat(), limit=_NEWEST) for moment in moments],
        }
        for name, wanted in ways.items():
            tick = watch(f"asking by {name}", asked)
            took = []
            for each in wanted:
                began = time.monotonic()
                found = next(iter(served.client.audit(each)), [])
                took.append((time.monotonic() - began) * 1000)
                full = calls < keys * _NEWEST * 2 or len(found) == _NEWEST
                report.check(full and bool(found), f"by {name}: {len(found)} calls of {each}")
                tick(1)
            report.score(f"newest {_NEWEST} of {calls:,} by {name}", took[1:], _FLOOR_MS, _GOAL_MS, "ms")
            report.samples.append({"kind": "audit, ms", "by": name, "took": took})
    return report
