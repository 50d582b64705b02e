"""Databases of a test: opened as the daemon opens them, and read as a stranger would."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

from kbctld.store.anchor import Anchor, Height
from kbctld.store.database import Database, open_database
from kbctld.store.journal import CallRow, Journal

NOW = 1_795_219_200_000_000_000
"""2026-11-21T00:00:00Z."""

PLENTY = 1 << 40


def database_of(folder: Path) -> Path:
    return folder / "kbctl.db"


def anchor_of(folder: Path) -> Path:
    return folder / "kbctl.anchor"


def remembered(folder: Path) -> Height | None:
    """What the anchor says."""
    return Anchor.read(anchor_of(folder))


@asynccontextmanager
async def opened(folder: Path, *, accept_rollback: bool = False) -> AsyncIterator[Database]:
    database = await open_database(database_of(folder), anchor_of(folder), accept_rollback=accept_rollback)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def journal_in(
    folder: Path, *, free_bytes: Callable[[], int] = lambda: PLENTY
) -> AsyncIterator[Journal]:
    async with opened(folder) as database:
        journal = Journal(database, free_bytes=free_bytes)
        try:
            yield journal
        finally:
            await journal.close()


def call(number: int, **fields: Any) -> CallRow:
    """An attempt that is told from others by its number."""
    return CallRow(f"call_{number}", fields.pop("ts_ns", NOW + number), **fields)


def refusal(number: int, **fields: Any) -> CallRow:
    fields = {"policy_check_result": "cap_exhausted", "outcome": "refused", **fields}
    return call(number, **fields)


def key_statement(number: int, **columns: Any) -> tuple[str, Sequence[Any]]:
    """The statement that records a vault key."""
    values = {
        "no": number,
        "key_id": f"vk_{number:010}",
        "digest": number.to_bytes(32, "big"),
        "ending": "Ab3Z",
        "vendors": '["stripe"]',
        "deny": "[]",
        "label": "",
        "metadata": "{}",
        "created_ns": NOW,
    } | columns
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    return f"INSERT INTO vault_key ({names}) VALUES ({marks})", tuple(values.values())


def rows(folder: Path, sql: str = "SELECT * FROM call ORDER BY no") -> list[dict[str, Any]]:
    """What is there, read by a connection of its own."""
    with closing(sqlite3.connect(database_of(folder))) as stranger:
        stranger.row_factory = sqlite3.Row
        return [dict(row) for row in stranger.execute(sql)]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Somebody else holds the write lock."""
    with closing(sqlite3.connect(database_of(folder), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            holder.execute("ROLLBACK")


async def outcome_of(work: Any) -> BaseException | None:
    """How an awaitable ended: its exception, or None."""
    try:
        await work
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is
        return error
    return None


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
