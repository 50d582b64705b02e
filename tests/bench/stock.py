"""A home with very many keys, filled past the daemon: through its own schema, but not one by one.

What must stay true: the rows are such as the daemon writes itself, and every key can be used.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from kbctl.paths import Home
from kbctld.core.vault_key import base62, digest, mint
from kbctld.store.database import open_database

TENANTS = 1000
RUNS = 499
"""How many values the ``run:`` segment of labels takes; no divisor of the tenants."""
GROUP = 5
"""So many keys in a row share tenant and run, and the last of them comes from the one before it."""

_KEY = """
INSERT INTO vault_key (no, key_id, digest, ending, vendors, daily_cap_nano, deny, label, tenant, metadata,
    created_ns, expires_ns, parent_no)
VALUES (?, ?, ?, ?, '["stripe"]', 500000000000, '[]', ?, ?, ?, ?, ?, ?)
"""
_SEGMENT = "INSERT INTO label_segment (segment, key_no) VALUES (?, ?)"
_BATCH = 5000
_CALLS = 250_000

# Rows as the daemon writes them, a second apart, the newest now. Which key a call is of is scattered, so that
# the calls of a key, and of a tenant, lie all over the table.
_CALL = """
WITH RECURSIVE number (no) AS (SELECT :first UNION ALL SELECT no + 1 FROM number WHERE no < :last)
INSERT INTO call (no, call_id, ts_ns, key_no, vendor, operation, method, endpoint, amount_nano,
    requested_nano, currency, amount_minor, status, outcome, policy_check_result, reason,
    vendor_request_id, idempotency_key,
    request_digest, replay_digest, metadata, usage_after_nano, latency_us,
    upstream_us)
SELECT no, 'call_' || printf('%08x', no) || lower(hex(randomblob(4))), :now_ns - (:calls - no) * 1000000000,
    no * 7919 % :keys + 1, 'stripe', 'payment_intents.create', 'POST', '/v1/payment_intents',
    CASE WHEN no % 50 THEN 10000000 ELSE 0 END, 10000000, 'usd', 1,
    CASE WHEN no % 50 THEN 200 ELSE 429 END,
    CASE WHEN no % 50 = 0 THEN 'refused' WHEN no % 100000 = 1 THEN 'unknown' ELSE 'posted' END,
    CASE WHEN no % 50 THEN 'allowed' ELSE 'cap_exhausted' END,
    CASE WHEN no % 50 THEN NULL ELSE 'the daily cap of key vk_0000000000 is used up' END,
    CASE WHEN no % 50 THEN 'req_' || lower(hex(randomblob(7))) END, lower(hex(randomblob(16))),
    randomblob(16), CASE WHEN no % 50 THEN randomblob(16) END,
    '{"run_id":"r' || (no % 499) || '","tenant_id":"t' || (no % 1000) || '"}', 10000000 * (no % 500),
    21000, 20000
FROM number
"""


def vault_key(no: int) -> str:
    """The key that an agent would hold."""
    return mint(no.to_bytes(32, "big"))


def key_id(no: int) -> str:
    # Scattered, as real ones are: the index of a million ids in a row would be far too good.
    return f"vk_{base62(no * 0x9E3779B97F4A7C15 % 62**10, 10)}"


def tenant(no: int) -> str:
    return f"t{(no - 1) // GROUP % TENANTS:04d}"


def run(no: int) -> str:
    return f"run:r{(no - 1) // GROUP % RUNS:03d}"


def parent(no: int) -> int | None:
    return no - 1 if no % GROUP == 0 else None


def fill(home: Home, keys: int, now_ns: int, tick: Callable[[int], None]) -> None:
    """Put keys 1 to ``keys`` into a home that no daemon serves.

    Args:
        home: whose database; made when it isn't there.
        keys: how many.
        now_ns: when they were issued; half of them last a day, half for ever.
        tick: told of how many more are in.
    """
    home.root.mkdir(mode=0o700, exist_ok=True)
    before = os.umask(0o077)
    try:
        asyncio.run(_make(home))
        _insert(home.database(), keys, now_ns, tick)
    finally:
        os.umask(before)


async def _make(home: Home) -> None:
    database = await open_database(home.database(), home.anchor(), accept_rollback=False)
    await database.close()


def _insert(path: Path, keys: int, now_ns: int, tick: Callable[[int], None]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -400000")
        for first in range(1, keys + 1, _BATCH):
            numbers = range(first, min(first + _BATCH, keys + 1))
            database.execute("BEGIN")
            database.executemany(_KEY, (_row(no, now_ns) for no in numbers))
            database.executemany(_SEGMENT, _segments(numbers))
            database.execute("COMMIT")
            tick(len(numbers))
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.sync()


def fill_calls(home: Home, calls: int, keys: int, now_ns: int, tick: Callable[[int], None]) -> None:
    """Put calls 1 to ``calls`` of keys 1 to ``keys`` into a home that ``fill`` has filled."""
    with closing(sqlite3.connect(home.database(), isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -400000")
        indexes = database.execute(
            "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'call' AND type = 'index' AND sql != ''"
        ).fetchall()
        # In order and all at once afterwards: one by one ten million random places would take an hour.
        for name, _ in indexes:
            database.execute(f"DROP INDEX {name}")
        for first in range(1, calls + 1, _CALLS):
            last = min(first + _CALLS - 1, calls)
            asked = {"first": first, "last": last, "calls": calls, "keys": keys, "now_ns": now_ns}
            database.execute(_CALL, asked)
            tick(last - first + 1)
        for _, sql in indexes:
            database.execute(sql)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.sync()


def _row(no: int, now_ns: int) -> tuple[object, ...]:
    key, of = vault_key(no), tenant(no)
    return (
        *(no, key_id(no), digest(key), key[-4:], f"tenant:{of}/{run(no)}", of, f'{{"tenant_id":"{of}"}}'),
        *(now_ns, None if no % 2 else now_ns + 86_400 * 10**9, parent(no)),
    )


def _segments(numbers: range) -> Iterator[tuple[str, int]]:
    for no in numbers:
        yield f"tenant:{tenant(no)}", no
        yield run(no), no
