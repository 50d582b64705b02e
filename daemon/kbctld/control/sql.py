"""POST /sql: one reading statement on the live audit database.

What must stay true: nothing can be changed or reached by it but the rows of this database; it runs apart
from the event loop on a connection of its own, which is closed when it ends; its time, rows and bytes are
bounded.
"""

import asyncio
import sqlite3
import threading
import time
from dataclasses import dataclass, field

import msgspec

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.control.routes import Ask, HttpError, Reply, Route
from kbctld.store.readers import READ_S_MAX, is_broken
from kbctld.vault import Vault

ROWS_MAX = 10_000
BYTES_MAX = 16 * 1024 * 1024
DEADLINE_S = READ_S_MAX

_AT_ONCE = 2
_VALUE_BYTES_MAX = 1024 * 1024
_COLUMNS_MAX = 200
_STEPS = 20_000
_ROWS_A_PIECE = 200
_READING = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE))
# They tell of tables and can't change anything, whatever their argument.
_PRAGMAS = frozenset("table_info table_xinfo table_list index_list index_info index_xinfo".split())
# All built-in functions only read, but for these: code from a file, an address of this process.
_FORBIDDEN = frozenset(("load_extension", "fts3_tokenizer"))
_REMEDY = 'kbctl sql "SELECT * FROM calls ORDER BY ts DESC LIMIT 10"'


@dataclass(slots=True)
class Sql:
    """Answers statements.

    Attributes:
        deadline_s: how long one may run.
    """

    vault: Vault
    deadline_s: float = DEADLINE_S
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    def routes(self) -> list[Route]:
        """Their part of the table."""
        return [
            Route(
                *("POST", "/sql", self._ask, "admin", "One reading statement on the audit database"),
                takes=wire.SqlRequest,
                gives=wire.SqlReply,
            )
        ]

    async def _ask(self, ask: Ask) -> Reply:
        request = wire.decode(ask.body, wire.SqlRequest)
        async with self._places:
            await self.vault.journal.barrier()
            statement = _Statement(request.query, self.deadline_s)
            try:
                return Reply(await self.vault.journal.database.readers.run(statement.run))
            except asyncio.CancelledError:
                statement.cancelled.set()  # its thread must not keep the daemon from stopping
                raise


class _Statement:
    """One statement, in a thread of its own."""

    def __init__(self, query: str, deadline_s: float) -> None:
        self.cancelled = threading.Event()
        self._query = query
        self._deadline_s = deadline_s
        self._until = 0.0
        self._denied = False

    def run(self, connection: sqlite3.Connection) -> bytes:
        """The reply, encoded here so that the event loop does not wait for it.

        Raises:
            KbctlError: it can't be run, may not be run, or is too much.
        """
        self._until = time.monotonic() + self._deadline_s
        try:
            connection.execute("PRAGMA query_only = ON")
            connection.text_factory = _text
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_BYTES_MAX)
            connection.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, _COLUMNS_MAX)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            connection.set_progress_handler(self._tired, _STEPS)
            connection.set_authorizer(self._may)
            return self._read(connection)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            if isinstance(error, sqlite3.Error) and is_broken(error):
                raise
            if self._denied:
                raise HttpError(
                    403, "sql_read_only", "only one reading statement is taken here", _REMEDY
                ) from None
            if time.monotonic() >= self._until:
                raise _usage("sql_timeout", f"it ran for more than {self._deadline_s:g} s") from None
            raise _usage("sql_error", f"SQLite: {error}") from None

    def _read(self, connection: sqlite3.Connection) -> bytes:
        cursor = connection.execute(self._query)
        if cursor.description is None:
            raise _usage("sql_error", "there is no statement that reads anything")
        columns = [column[0] for column in cursor.description]
        pieces, size, count = list[bytes](), 0, 0
        while rows := cursor.fetchmany(_ROWS_A_PIECE):
            count += len(rows)
            piece = _encoder.encode([[_plain(value) for value in row] for row in rows])[1:-1]
            size += len(piece) + 1
            if count > ROWS_MAX:
                raise _usage("sql_too_large", f"there are more than {ROWS_MAX:,} rows; add a LIMIT")
            if size > BYTES_MAX:
                raise _usage("sql_too_large", "the answer is over 16 MiB; name fewer columns or add a LIMIT")
            pieces.append(piece)
        return b'{"columns":%b,"rows":[%b]}' % (_encoder.encode(columns), b",".join(pieces))

    def _may(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        allowed = (
            action in _READING
            or (action == sqlite3.SQLITE_FUNCTION and second not in _FORBIDDEN)
            or (action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS)
            # Asked when a table-valued function such as json_each comes into use. A statement that really
            # writes there is refused by SQLite itself, and this connection can't write anyway.
            or (action == sqlite3.SQLITE_UPDATE and first == "sqlite_master")
        )
        if not allowed:
            self._denied = True
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    def _tired(self) -> int:
        return int(self.cancelled.is_set() or time.monotonic() >= self._until)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def _usage(code: str, message: str) -> KbctlError:
    return KbctlError(code, message, _REMEDY, Exit.USAGE)


_encoder = msgspec.json.Encoder()
