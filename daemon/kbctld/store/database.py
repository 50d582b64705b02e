"""Opening the database: created on first use only, checked always, migrated forward.

What must stay true: a missing, empty, foreign, newer, damaged or rolled-back file never means zero spend.
Each is an error of its own and nothing is served. ``accept_rollback`` is the operator's word that what is
there shall count from now on; every key that was live is then frozen, because what it spent is not known.
Before the schema is brought forward a copy is kept, whole or not at all.

Looking at every page takes a second for every 200 MB. A database up to 64 MiB is looked through before
anything is served; of a larger one both ends of every table and index, and the rest behind, while calls are
served (``whole``): damage found there stops spending as damage met by a call does.
"""

import asyncio
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

import aiosqlite

from kbctl.errors import Exit, KbctlError
from kbctld.durable import sync_path
from kbctld.store import chain
from kbctld.store.anchor import Anchor, Height
from kbctld.store.readers import Readers

T = TypeVar("T")

APPLICATION_ID = 0x6B626374  # "kbct": says whose file it is, in the header that file(1) reads
_CHAINED = 5  # the schema that brought the chain: what was there before is taken into it
_MIGRATION = re.compile(r"(\d{4})_[a-z_]+\.sql")
_AUTOCHECKPOINT_PAGES = 6000
"""At 24 MB of log a commit does what the checkpointer has left to do, and whoever waits for it waits 5 ms
longer; then SQLite begins the log anew."""
_LOOKED_THROUGH_BYTES = 64 * 1024 * 1024
_RESTORE = "kbctl restore FILE    # FILE is what kbctl backup made; the damaged one is kept beside it"
_ACCEPT = "kbctl up --accept-rollback    # unless you can put the right file back; freezes all live keys"


@dataclass(slots=True)
class Database:
    """An open, checked database.

    Attributes:
        writer: the one connection that writes.
        checkpointer: moves the write-ahead log into the database, beside the writer.
        reader: reads only.
        anchor: its memory outside.
        readers: what may take long, each on a connection of its own.
        height: how far it has come.
        tip: the end of its chain; the journal moves it.
        created: whether this was first use.
        looked_through: whether every page was looked at when it was opened.
    """

    path: Path
    writer: aiosqlite.Connection
    checkpointer: aiosqlite.Connection
    reader: aiosqlite.Connection
    anchor: Anchor
    height: Height
    tip: chain.Tip
    created: bool
    looked_through: bool = True
    readers: Readers = field(init=False)

    def __post_init__(self) -> None:
        self.readers = Readers(self.path)

    async def write(
        self, work: Callable[[sqlite3.Connection], None], then: Callable[[], None] | None = None
    ) -> None:
        """Do something in one transaction; returns when it is committed and synced.

        One trip to the writer's thread, the commit included: each costs two wake-ups, and under load its
        turn. With one agent, two trips were 8 % of the daemon's whole CPU time.

        Args:
            work: in the writer's thread.
            then: what to do first of all once it is synced, in the event loop: under load whoever awaits this
                is served one round of the loop later.

        Raises:
            Exception: whatever the work or the commit failed with; the transaction is still open then.
        """
        loop = asyncio.get_running_loop()

        def through(connection: sqlite3.Connection) -> None:
            work(connection)
            commit(connection)
            if then is not None:
                loop.call_soon_threadsafe(then)

        await in_one_go(self.writer, through)

    async def close(self) -> None:
        self.readers.end_all()
        # The writer last: the last connection to close checkpoints and removes the log.
        await self.reader.close()
        await self.checkpointer.close()
        await self.writer.close()
        self.anchor.close()


def commit(connection: sqlite3.Connection) -> None:
    """The moment from which it is there for good; in the writer's thread."""
    connection.commit()


async def in_one_go(connection: aiosqlite.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Do several things in one trip to the connection's thread: under load each trip waits for its turn."""
    result: T = await connection._execute(work, connection._conn)  # type: ignore[no-untyped-call]
    return result


async def mark_pending_unknown(database: Database) -> None:
    """Before the journal begins: whatever had not ended may have reached the vendor."""
    tip = database.tip.copy()
    await database.write(partial(chain.mark_pending_unknown, tip))
    database.tip = tip


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
        checkpointer = await aiosqlite.connect(path, isolation_level=None)
        try:
            await _sync_for_good(checkpointer)
            await checkpointer.execute("PRAGMA query_only = ON")  # it may move pages, and nothing else
            reader = await _open_reader(path)
        except BaseException:
            await checkpointer.close()
            raise
    except sqlite3.Error as error:
        await writer.close()
        raise unusable(path, error) from None
    except BaseException:
        await writer.close()
        raise
    anchor = Anchor(anchor_path)
    anchor.reset(height)
    return Database(
        path,
        writer,
        checkpointer,
        reader,
        anchor,
        height,
        tip,
        created,
        not await asyncio.to_thread(_is_large, path),
    )


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
    known = known_schema()
    if isinstance(version, int) and version > known:
        raise KbctlError(
            "database_newer",
            f"{path} was written by a newer kbctl (schema {version}, this one knows {known})",
            "pip install --upgrade kbctl",
            Exit.INTEGRITY,
        )
    verdict = await in_one_go(writer, lambda connection: _look_over(connection, path))
    if verdict != "ok":
        raise damaged(path, verdict)
    return False


def _is_large(path: Path) -> bool:
    return path.stat().st_size > _LOOKED_THROUGH_BYTES


def _look_over(connection: sqlite3.Connection, path: Path) -> str:
    """What is wrong as far as can be told at once; ``ok`` if nothing is."""
    if not _is_large(path):
        return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    # Both ends of each: a file that was cut, or begins with another one's pages, shows it there.
    tables = connection.execute(
        "SELECT name, sql LIKE '%WITHOUT ROWID%' FROM sqlite_master WHERE type = 'table'"
    ).fetchall()
    for table, keyed in tables:
        columns = connection.execute("SELECT name FROM pragma_table_info(?) WHERE pk ORDER BY pk", (table,))
        key = [str(name) for (name,) in columns] if keyed else ["rowid"]
        _ends(connection, table, "NOT INDEXED", key)
        for index, origin in connection.execute("SELECT name, origin FROM pragma_index_list(?)", (table,)):
            if origin != "pk" or not keyed:
                named = connection.execute("SELECT name FROM pragma_index_info(?)", (index,))
                where = connection.execute(
                    "SELECT sql FROM sqlite_master WHERE name = ?", (index,)
                ).fetchone()[0]
                condition = (where or "").partition(" WHERE ")[2] or "1"
                _ends(connection, table, f"INDEXED BY {index}", [str(name) for (name,) in named], condition)
    return "ok"


def _ends(connection: sqlite3.Connection, table: str, how: str, key: list[str], condition: str = "1") -> None:
    for order in ("ASC", "DESC"):
        ordered = ", ".join(f"{column} {order}" for column in key)
        connection.execute(
            f"SELECT * FROM {table} {how} WHERE {condition} ORDER BY {ordered} LIMIT 100"  # noqa: S608 - ours
        ).fetchall()


def whole(connection: sqlite3.Connection) -> str:
    """What is wrong with any page; ``ok`` if nothing is. Reads all of it."""
    return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])


async def _make_durable(writer: aiosqlite.Connection, path: Path) -> None:
    await writer.execute("PRAGMA journal_mode = WAL")
    await _sync_for_good(writer)
    await writer.execute("PRAGMA foreign_keys = ON")
    await writer.execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT_PAGES}")
    await writer.execute("PRAGMA journal_size_limit = 67108864")
    mode, synchronous = await _one(writer, "PRAGMA journal_mode"), await _one(writer, "PRAGMA synchronous")
    if (mode, synchronous) != ("wal", 2):
        raise _not_durable(path)


async def _sync_for_good(connection: aiosqlite.Connection) -> None:
    """What it syncs is on the medium: macOS leaves it in the drive's cache unless it is asked twice."""
    await connection.execute("PRAGMA synchronous = FULL")
    await connection.execute("PRAGMA fullfsync = ON")
    await connection.execute("PRAGMA checkpoint_fullfsync = ON")


async def _migrate(writer: aiosqlite.Connection, path: Path) -> None:
    """Bring the schema forward; each step is one transaction, so a kill leaves the old or the new one."""
    version = await _one(writer, "PRAGMA user_version")
    assert isinstance(version, int)  # noqa: S101 - for the type checker
    steps = migrations()
    if 0 < version < len(steps):
        await _keep_copy(writer, path, version)
    for number, sql in enumerate(steps, start=1):
        if number > version:
            await writer.executescript(
                f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA application_id = {APPLICATION_ID};\n"
                f"PRAGMA user_version = {number};"
            )
            if number == _CHAINED:
                await in_one_go(writer, chain.adopt)
            await writer.commit()


async def _keep_copy(writer: aiosqlite.Connection, path: Path, version: int) -> None:
    """A copy of the old schema under ``backups``: whole, on disk and under its name, or not there."""
    height = await _height(writer)
    folder = path.parent / "backups"
    folder.mkdir(mode=0o700, exist_ok=True)
    copy = folder / f"{path.stem}-schema-{version}-call-{height.call_no}-change-{height.changes}.db"
    if copy.exists():
        return  # an earlier start was ended between this and the step itself
    needed = int(str(await _one(writer, "PRAGMA page_count"))) * 4096 * 2
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise KbctlError(
            "disk_full",
            f"{path} is of an older schema; to bring it forward, with a copy kept, takes"
            f" {needed // 2**20 + 1:,} MiB and {free // 2**20:,} MiB are free",
            f"df -h {path.parent}",
            Exit.REFUSED,
        )
    begun = copy.with_suffix(".part")
    begun.unlink(missing_ok=True)
    await writer.execute("VACUUM INTO ?", (str(begun),))
    await asyncio.to_thread(in_place, begun, copy)


def in_place(begun: Path, final: Path) -> None:
    """Give a file its name once all of it is on disk."""
    sync_path(begun)
    begun.replace(final)
    sync_path(final.parent)


def known_schema() -> int:
    """The newest schema that this kbctl knows."""
    return len(migrations())


def migrations() -> list[str]:
    """The steps from nothing to the newest schema."""
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


def damaged(path: Path, how: str) -> KbctlError:
    """The file can't be believed: its holder is not served from it."""
    return KbctlError("database_damaged", f"{path} is damaged: {how}", _RESTORE, Exit.INTEGRITY)


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
    return KbctlError("database_damaged", f"{path} can't be read: {error}", _RESTORE, Exit.INTEGRITY)


def _not_durable(path: Path) -> KbctlError:
    return KbctlError(
        "database_not_durable",
        f"{path} can't be kept in WAL mode with full synchronisation on this file system",
        "KBCTL_HOME=/a/folder/on/a/local/disk kbctl up",
        Exit.INTEGRITY,
    )
