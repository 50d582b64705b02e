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
