"""An audit of a test: made by the journal, altered as by an intruder, walked as ``verify`` does."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kbctl.checkpoint import Checkpoint, public_key
from kbctld.store import changes
from kbctld.store.chain import Tip, tip_of
from kbctld.store.journal import Journal
from kbctld.store.verify import Finding, Walk
from tests.store.support import NOW, call, database_of, key_statement, refusal

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
DAY_NS = 86_400_000_000_000


def checkpoint_of(tip: Tip, key: Ed25519PrivateKey = KEY) -> Checkpoint:
    unsigned = Checkpoint(tip.database_id, tip.no, tip.calls, "20261121T000000Z", tip.link, public_key(key))
    return unsigned.signed(key)


def end_of(folder: Path) -> Checkpoint:
    """How far it has come, signed."""
    with closing(sqlite3.connect(database_of(folder))) as connection:
        return checkpoint_of(tip_of(connection))


async def lived(
    journal: Journal, calls: int, *, start: int = 0, ts: Callable[[int], int] = lambda n: NOW + n
) -> None:
    """Some life: calls at once, refusals, late ends, ends said twice, open holds, keys and changes."""
    if start == 0:
        for number in range(1, 4):
            await journal.change(
                [
                    key_statement(number, tenant="acme", label=f"tenant:acme/run:{number}"),
                    changes.noted(NOW, "uid 1000", "key.issue", f"vk_{number:010}", {"label": "tenant:acme"}),
                ]
            )

    async def one(number: int) -> None:
        if number % 7 == 3:
            await journal.refuse(
                refusal(number, ts_ns=ts(number), key_no=2, status=429, reason="too much", latency_us=40)
            )
            return
        row = call(
            number,
            ts_ns=ts(number),
            key_no=1 + number % 3,
            vendor="stripe",
            operation="payment_intents.create",
            method="POST",
            endpoint="/v1/payment_intents",
            amount_nano=500 + number,
            requested_nano=500 + number,
            currency="USD",
            amount_minor=5,
            idempotency_key=f"idem-{number}",
            request_digest=bytes([number % 256]) * 32,
            replay_digest=b"r" * 16,
            metadata='{"customer": "Müller"}',
            usage_after_nano=number,
            upstream="INSECURE http://127.0.0.1:9000",
        )
        await journal.append(row)
        if number % 11 == 5:
            return  # still open
        await asyncio.sleep(0)
        row.outcome, row.amount_nano = ("posted", 400 + number) if number % 2 else ("voided", 0)
        row.status, row.reason, row.vendor_request_id = 200, "because", f"req_{number}"
        journal.finish(row)
        if number % 3 == 0:
            await journal.barrier()
        row.latency_us, row.upstream_us = 1200, 1000
        journal.finish(row)

    for at in range(start, start + calls, 20):
        await asyncio.gather(*(one(number) for number in range(at, min(at + 20, start + calls))))
    await journal.barrier()


def verdict(folder: Path, since: Checkpoint | None = None, *against: Checkpoint) -> Finding | None:
    """What a walk finds."""
    return Walk(database_of(folder), since, {each.events: each for each in against}).run()


@contextmanager
def altered(folder: Path) -> Iterator[sqlite3.Connection]:
    """The database, to be changed behind the daemon's back."""
    with closing(sqlite3.connect(database_of(folder), isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        yield connection


def copy_of(folder: Path, into: Path) -> Path:
    """The same database in another folder, without a log beside it."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    with (
        closing(sqlite3.connect(database_of(folder))) as source,
        closing(sqlite3.connect(database_of(into))) as target,
    ):
        source.backup(target)
    return into


def columns_of(folder: Path, table: str) -> list[str]:
    with closing(sqlite3.connect(database_of(folder))) as connection:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def one(folder: Path, sql: str, *values: Any) -> Any:
    with closing(sqlite3.connect(database_of(folder))) as connection:
        found = connection.execute(sql, values).fetchone()
    return None if found is None else found[0]
