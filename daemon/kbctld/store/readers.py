"""Reading what may take long: each on a connection and a thread of its own, and none for long.

What must stay true: a read transaction keeps SQLite from beginning its write-ahead log anew, so nobody but a
copy and a check of the whole database reads for longer than ``READ_S_MAX``; when the log has grown all the
same, new readers wait until it is short again, and a check is ended. Whoever comes upon a damaged page, or a
disk that fails, has the journal told: nothing is spent on a database that can't be believed.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TypeVar

from kbctl.errors import Exit, KbctlError

T = TypeVar("T")

READ_S_MAX = 5.0
_STEPS = 20_000
_BROKEN = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR))


class TooSlowError(KbctlError):
    """It was ended: it had read for too long, or what it held up could wait no longer."""


def is_broken(error: sqlite3.Error) -> bool:
    """Whether the file or the disk is at fault, and not what was asked."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN


class Readers:
    """All long readers of one database.

    Attributes:
        fault: told of every error that puts the file itself in doubt.
    """

    def __init__(self, path: Path) -> None:
        self.fault: Callable[[sqlite3.Error], None] = lambda _error: None
        self._path = path
        self._lock = threading.Lock()
        self._reading: dict[sqlite3.Connection, str] = {}
        """Every open connection, and what it is for."""
        self._ended: set[sqlite3.Connection] = set()
        self._quick = 0
        self._may_begin = asyncio.Event()
        self._may_begin.set()
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def run(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        limit_s: float | None = READ_S_MAX,
        waits: bool = True,
        purpose: str = "report",
    ) -> T:
        """Do a piece of reading apart from everybody else.

        Args:
            work: gets a connection that can only read; it runs in a thread.
            limit_s: how long it may take; more than ``READ_S_MAX`` only for what reads in pieces. None for
                what ``end_patient`` may end at any time.
            waits: whether it waits while the log is being shortened; a revocation does not.
            purpose: ``report``, ``check`` or ``backup``.

        Raises:
            TooSlowError: it was ended.
        """
        if waits:
            await self._may_begin.wait()

        def read() -> T:
            until = None if limit_s is None else time.monotonic() + limit_s
            with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)) as connection:
                if until is not None:
                    connection.set_progress_handler(lambda: time.monotonic() >= until, _STEPS)
                with self._lock:
                    self._reading[connection] = purpose
                try:
                    return work(connection)
                finally:
                    with self._lock:
                        del self._reading[connection]
                        self._ended.discard(connection)

        quick = limit_s is not None and limit_s <= READ_S_MAX
        if quick:
            self._quick += 1
            self._quiet.clear()
        try:
            return await asyncio.to_thread(read)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
                raise TooSlowError(
                    "query_too_slow",
                    "it had to read for too long and was ended, so that others don't wait for it",
                    "kbctl audit --since 1h    # or another way to ask for less",
                    Exit.REFUSED,
                ) from None
            if is_broken(error):
                self.fault(error)
            raise
        finally:
            if quick:
                self._quick -= 1
                if not self._quick:
                    self._quiet.set()

    def may_go_on(self, connection: sqlite3.Connection) -> None:
        """For work that SQLite does not end by itself: called now and then.

        Raises:
            sqlite3.OperationalError: it is to end.
        """
        if connection in self._ended:
            error = sqlite3.OperationalError("interrupted")
            error.sqlite_errorcode = sqlite3.SQLITE_INTERRUPT
            raise error

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Let nobody begin meanwhile, once those that had begun have ended; some seconds at most."""
        self._may_begin.clear()
        try:
            await self._quiet.wait()
            yield
        finally:
            self._may_begin.set()

    def end_patient(self, *, backups: bool) -> None:
        """End what reads without a limit: a check, and if need be a backup."""
        self._end(("check", "backup") if backups else ("check",))

    def end_all(self) -> None:
        """End everything: nobody waits for a report when the daemon stops."""
        self._end(("check", "backup", "report"))

    def _end(self, purposes: tuple[str, ...]) -> None:
        with self._lock:
            for connection, purpose in self._reading.items():
                if purpose in purposes:
                    self._ended.add(connection)
                    connection.interrupt()
