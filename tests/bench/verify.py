"""What the journal takes for a call, and how soon a walk has looked at all that it wrote.

What must stay true: the rows come from the journal itself, each an attempt and an outcome; and the walk that
is measured finds one byte that is altered.
"""

import asyncio
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import uvloop

from kbctld.core.vault_key import base62
from kbctld.store.database import open_database
from kbctld.store.journal import CallRow, Journal
from kbctld.store.verify import Walk
from tests.bench.report import Report, Watch

_AT_ONCE = 200
_FROM_NS = 1_795_219_200_000_000_000
_CALL_US = 10.0  # 100,000 calls a second
_MILLION_S = 15.0


def drill(watch: Watch, *, calls: int = 1_000_000) -> Report:
    """Record, walk, alter, walk.

    Args:
        watch: told of what takes long.
        calls: that are recorded.
    """
    report = Report(f"the chain of {calls:,} calls")
    with tempfile.TemporaryDirectory(prefix="kbctl-verify-") as folder:
        path = Path(folder) / "kbctl.db"
        began, used = time.perf_counter(), time.process_time()
        uvloop.run(_fill(path, calls, watch))
        report.add("recording a call and its end", (time.perf_counter() - began) / calls * 1e6, "us")
        report.add("recording, CPU time", (time.process_time() - used) / calls * 1e6, "us")
        report.add("on disk", path.stat().st_size / calls, "bytes a call")

        walk, tick = Walk(path), watch("walking the chain", calls)
        began, seen = time.perf_counter(), 0
        while walk.step():
            tick(walk.calls - seen)
            seen = walk.calls
        took = time.perf_counter() - began
        report.check(walk.finding is None, f"the walk found {walk.finding}")
        report.check(walk.calls == calls, f"the walk looked at {walk.calls:,} calls")
        report.add("the walk", took, "s", bar=_MILLION_S * calls / 1_000_000)
        report.add("the walk, a call", took / calls * 1e6, "us", bar=_CALL_US)

        altered = calls // 2
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE call SET amount_nano = amount_nano + 1 WHERE no = ?", (altered,))
        found = Walk(path).run()
        report.check(found is not None and found.row == f"call {altered}", f"altered {altered}: {found}")
    return report


async def _fill(path: Path, calls: int, watch: Watch) -> None:
    tick = watch("recording calls", calls)
    database = await open_database(path, path.with_suffix(".anchor"), accept_rollback=False)
    journal = Journal(database)

    async def one(number: int) -> None:
        ns = _FROM_NS + number * 1_000_000
        row = CallRow(
            f"call_{base62(ns // 1_000_000, 7)}{base62(number * 0x9E3779B97F4A7C15 % 62**9, 9)}",
            ns,
            vendor="stripe",
            operation="payment_intents.create",
            method="POST",
            endpoint="/v1/payment_intents",
            amount_nano=10_000_000,
            requested_nano=10_000_000,
            currency="usd",
            amount_minor=1,
            idempotency_key=f"idem-{number}",
            request_digest=b"x" * 16,
            replay_digest=b"y" * 16,
            metadata=f'{{"run_id":"r{number % 499}","tenant_id":"t{number % 1000}"}}',
            usage_after_nano=10_000_000 * number,
            scopes=("vk_0000000000",),
        )
        await journal.append(row)
        row.outcome, row.status, row.vendor_request_id = "posted", 200, f"req_{number:014}"
        row.latency_us, row.upstream_us = 21_000, 20_000
        journal.finish(row)

    for first in range(0, calls, _AT_ONCE):
        some = range(first, min(first + _AT_ONCE, calls))
        await asyncio.gather(*(one(number) for number in some))
        tick(len(some))
    await journal.close()
    await database.close()
