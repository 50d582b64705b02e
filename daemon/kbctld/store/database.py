"""Opening the database: created on first use only, checked always, migrated forward.

What must stay true: a missing, empty, foreign, newer, damaged or rolled-back file never means zero spend.
Each is an error of its own and nothing is served. ``accept_rollback`` is the operator's word that what is
there shall count from now on; every key that was live is then frozen, because what it spent is not known.
"""

import asyncio
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

import aiosqlite

from kbctl.errors import Exit, KbctlError
from kbctld.store import chain
from kbctld.store.anchor import Anchor, Height

T = TypeVar("T")

APPLICATION_ID = 0x6B626374  # "kbct": says whose file it is, in the header that file(1) reads
_CHAINED = 5  # the schema that brought the chain: what was there before is taken into it
_MIGRATION = re.compile(r"(\d{4})_[a-z_]+\.sql")
_ACCEPT = "kbctl up --accept-rollback    # unless you can put the right file back; freezes all live keys"


@dataclass(slots=True)
class Database:
    """An open, checked database.

    Attributes:
        writer: the one connection that writes and checkpoints.
        reader: reads only.
        anchor: its memory outside.
        height: how far it has come.
        tip: the end of its chain; the journal moves it.
        created: whether this was first use.
    """

    path: Path
    writer: aiosqlite.Connection
    reader: aiosqlite.Connection
    anchor: Anchor
    height: Height
    tip: chain.Tip
    created: bool

    async def close(self) -> None:
        # The writer last: the last connection to close checkpoints and removes the log.
        await self.reader.close()
        await self.writer.close()
        self.anchor.close()


async def in_one_go(connection: aiosqlite.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Do several things in one trip to the connection's thread: under load each trip waits for its turn."""
    result: T = await connection._execute(work, connection._conn)  # type: ignore[no-untyped-call]
    return result


async def mark_pending_unknown(database: Database) -> None:
    """Before the journal begins: whatever had not ended may have reached the vendor."""
    tip = replace(database.tip)
    await in_one_go(database.writer, partial(chain.mark_pending_unknown, tip))
    await database.writer.commit()
    database.tip = tip


async def apart(path: Path, work: Callable[[sqlite3.Connection], T]) -> T:
    """Read what may take long on a connection and a thread of its own, so that nobody else waits for it."""

    def read() -> T:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return work(connection)

    return await asyncio.to_thread(read)


async def open_database(path: Path, anchor_path: Path, *, accept_rollback: bool) -> Database:
    """Open, check and migrate.

    Raises:
        KbctlError: with exit status 5, saying which of the ways to be wrong it is.
    """
    fresh = _check_files(path, anchor_path, accept_rollback)
    if fresh:
        # Before the database: killed at any point from here on, the next start is first use again.
        begun = Anchor(anchor_path)
        begun.reset(Height(0, 0))
        begun.close()
    try:
        # IMMEDIATE: a deferred transaction that starts with a read fails at its first write, unwaited.
        writer = await aiosqlite.connect(path, isolation_level="IMMEDIATE", timeout=1.0)
    except sqlite3.Error as error:
        raise unusable(path, error) from None
    try:
        created = await _identify(writer, path, fresh, _has_history(anchor_path))
        if not created and not accept_rollback:
            await _compare(writer, path, anchor_path)
        if created:
            await writer.execute("PRAGMA auto_vacuum = INCREMENTAL")  # so that pruning gives space back
        await _make_durable(writer, path)
        await _migrate(writer, path)
        if accept_rollback and not created:
            await _freeze(writer)
        height = await _height(writer)
        tip = await in_one_go(writer, chain.tip_of)
        reader = await _open_reader(path)
    except sqlite3.Error as error:
        await writer.close()
        raise unusable(path, error) from None
    except BaseException:
        await writer.close()
        raise
    anchor = Anchor(anchor_path)
    anchor.reset(height)
    return Database(path, writer, reader, anchor, height, tip, created)


async def _open_reader(path: Path) -> aiosqlite.Connection:
    """A connection that only reads; it sees the mode that the file is in, whatever the writer believes."""
    reader = await aiosqlite.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        await reader.execute("PRAGMA query_only = ON")
        # SQLite swallows an I/O error on the way to WAL: the writer then says "wal" all the same.
        if await _one(reader, "PRAGMA journal_mode") != "wal":
            raise _not_durable(path)
    except BaseException:
        await reader.close()
        raise
    return reader


async def _compare(writer: aiosqlite.Connection, path: Path, anchor_path: Path) -> None:
    """Refuse a database that its anchor does not vouch for, before a byte of it is changed."""
    known, height = Anchor.read(anchor_path), await _height(writer)
    if known is None:
        raise _integrity(
            "database_unanchored",
            f"{anchor_path} is missing or unreadable, so it can't be told whether {path} lost rows",
        )
    if height.lost_against(known):
        raise _integrity(
            "database_rolled_back",
            f"{path} has lost rows that had been committed: it ends at call {height.call_no},"
            f" change {height.changes}, and had come to call {known.call_no}, change {known.changes}",
        )


def _has_history(anchor_path: Path) -> bool:
    """Whether something had been committed here; an anchor from a first use that was killed says no."""
    try:
        empty = anchor_path.stat().st_size == 0
    except FileNotFoundError:
        return False
    return not empty and Anchor.read(anchor_path) != Height(0, 0)


def _check_files(path: Path, anchor_path: Path, accept_rollback: bool) -> bool:
    """Whether this is first use; refuses what only looks like it."""
    try:
        size = path.lstat().st_size
    except FileNotFoundError:
        if _has_history(anchor_path) and not accept_rollback:
            raise _integrity("database_missing", f"{path} is missing and was there before") from None
        return True
    if path.is_symlink() or not path.is_file():
        raise KbctlError(
            "database_foreign", f"{path} is not a plain file", f"mv {path} {path}.aside", Exit.INTEGRITY
        )
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise KbctlError(
            "database_exposed",
            f"{path} can be read or written by others, or belongs to someone else",
            f"chmod 600 {path}",
            Exit.INTEGRITY,
        )
    if size == 0:
        if _has_history(anchor_path) and not accept_rollback:
            raise _integrity("database_empty", f"{path} is empty; SQLite would take it for a new database")
        return True
    return False


async def _identify(writer: aiosqlite.Connection, path: Path, fresh: bool, anchored: bool) -> bool:
    """Whether the database has yet to be made; refuses a foreign file before changing a byte of it."""
    if fresh:
        return True
    application = await _one(writer, "PRAGMA application_id")
    version = await _one(writer, "PRAGMA user_version")
    if application != APPLICATION_ID:
        tables = await _one(writer, "SELECT count(*) FROM sqlite_master")
        if application == 0 and tables == 0 and not anchored:
            return True  # a first use that was killed before it had made anything
        raise KbctlError(
            "database_foreign",
            f"{path} is a SQLite database, but not kbctl's",
            f"mv {path} {path}.aside    # then put kbctl's own back",
            Exit.INTEGRITY,
        )
    known = len(_migrations())
    if isinstance(version, int) and version > known:
        raise KbctlError(
            "database_newer",
            f"{path} was written by a newer kbctl (schema {version}, this one knows {known})",
            "pip install --upgrade kbctl",
            Exit.INTEGRITY,
        )
    verdict = await _one(writer, "PRAGMA quick_check(1)")
    if verdict != "ok":
        raise _integrity("database_damaged", f"{path} is damaged: {verdict}")
    return False


async def _make_durable(writer: aiosqlite.Connection, path: Path) -> None:
    await writer.execute("PRAGMA journal_mode = WAL")
    await writer.execute("PRAGMA synchronous = FULL")
    await writer.execute("PRAGMA foreign_keys = ON")
    await writer.execute("PRAGMA wal_autocheckpoint = 1000")
    await writer.execute("PRAGMA journal_size_limit = 67108864")
    mode, synchronous = await _one(writer, "PRAGMA journal_mode"), await _one(writer, "PRAGMA synchronous")
    if (mode, synchronous) != ("wal", 2):
        raise _not_durable(path)


async def _migrate(writer: aiosqlite.Connection, path: Path) -> None:
    """Bring the schema forward; each step is one transaction, so a kill leaves the old or the new one."""
    version = await _one(writer, "PRAGMA user_version")
    assert isinstance(version, int)  # noqa: S101 - for the type checker
    migrations = _migrations()
    if 0 < version < len(migrations):
        copy = path.with_name(f"{path.name}.before-schema-{version + 1}")
        copy.unlink(missing_ok=True)
        await writer.execute("VACUUM INTO ?", (str(copy),))
    for number, sql in enumerate(migrations, start=1):
        if number > version:
            await writer.executescript(
                f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA application_id = {APPLICATION_ID};\n"
                f"PRAGMA user_version = {number};"
            )
            if number == _CHAINED:
                await in_one_go(writer, chain.adopt)
            await writer.commit()


def _migrations() -> list[str]:
    folder = resources.files("kbctld.store") / "migrations"
    files = sorted(
        (file for file in folder.iterdir() if _MIGRATION.fullmatch(file.name)), key=lambda f: f.name
    )
    return [file.read_text(encoding="utf-8") for file in files]


async def _height(writer: aiosqlite.Connection) -> Height:
    call_no = await _one(writer, "SELECT coalesce(max(no), 0) FROM call")
    changes = await _one(writer, "SELECT value FROM meta WHERE key = 'changes'")
    if not isinstance(call_no, int) or not isinstance(changes, int):
        raise sqlite3.DatabaseError("its counters are not numbers")
    return Height(call_no, changes)


async def _freeze(writer: aiosqlite.Connection) -> None:
    def freeze(connection: sqlite3.Connection) -> None:
        tip = chain.tip_of(connection)
        frozen = connection.execute(
            "UPDATE vault_key SET frozen = 'the database was rolled back, so what it spent is not known'"
            " WHERE revoked_ns IS NULL AND frozen IS NULL"
        ).rowcount
        # One that was revoked since would be good again; a person makes new ones on the socket.
        connection.execute("UPDATE token SET revoked_ns = created_ns WHERE revoked_ns IS NULL")
        connection.execute(
            "INSERT INTO change (ts_ns, actor, action, subject, details)"
            " VALUES (?, ?, 'database.accept_rollback', 'all', ?)",
            (time.time_ns(), f"uid {os.getuid()}", json.dumps({"keys_frozen": frozen})),
        )
        tip.catch_up(connection)
        connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")

    await in_one_go(writer, freeze)
    await writer.commit()


async def _one(connection: aiosqlite.Connection, sql: str) -> object:
    cursor = await connection.execute(sql)
    row = await cursor.fetchone()
    await cursor.close()
    return None if row is None else row[0]


def _integrity(code: str, message: str) -> KbctlError:
    return KbctlError(code, message, _ACCEPT, Exit.INTEGRITY)


def unusable(path: Path, error: sqlite3.Error) -> KbctlError:
    """What an error of SQLite's on the way up means: held by somebody, no room, or damaged."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return KbctlError(
            "database_locked", f"another process holds {path}", f"fuser -v {path}", Exit.REFUSED
        )
    if code == sqlite3.SQLITE_FULL:
        return KbctlError(
            "disk_full", f"there is no room left to write {path}", f"df -h {path.parent}", Exit.REFUSED
        )
    return KbctlError(
        "database_damaged",
        f"{path} can't be read: {error}",
        f"mv {path} {path}.damaged    # and put a backup in its place",
        Exit.INTEGRITY,
    )


def _not_durable(path: Path) -> KbctlError:
    return KbctlError(
        "database_not_durable",
        f"{path} can't be kept in WAL mode with full synchronisation on this file system",
        "KBCTL_HOME=/a/folder/on/a/local/disk kbctl up",
        Exit.INTEGRITY,
    )
