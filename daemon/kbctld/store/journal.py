"""The journal: what was decided, on disk before anything acts on it.

What must stay true:

- one writer; everything that waits goes into one transaction, then all its waiters wake (group commit);
- ``append`` returns only after the row is committed and fsynced, or raises and the row does not exist;
- the write-ahead log stays short: it is moved into the database now and then, beside the commits, and where
  readers kept SQLite from beginning the log anew, they are made to wait a moment;
- a COMMIT that failed for an I/O reason may come back after a crash: from then on nothing is appended
  until a restart has read what is really there. A full disk or a locked database is definite: the
  transaction is rolled back, its waiters are told, and later ones may succeed;
- what ends a call rides in a later batch, and is never lost while the process lives.
"""

import asyncio
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kbctld.core.cost import Remembered
from kbctld.core.ledger import day_of
from kbctld.core.vault_key import PREFIX
from kbctld.store.anchor import Height
from kbctld.store.chain import Tip
from kbctld.store.database import Database, in_one_go
from kbctld.store.readers import is_broken

log = logging.getLogger("kbctld.store")

FREE_BYTES_MIN = 64 * 1024 * 1024
"""Below this no new hold is taken, so that what is under way can still be settled."""

_VAULT_KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]+", re.ASCII)
LOG_BYTES = 32 * 1024 * 1024
"""A log longer than this is cut."""
LOG_BYTES_MAX = 256 * 1024 * 1024
"""At this length a backup that holds it open is ended. Anything else that does is ended at ``LOG_BYTES``."""

_MOVED_AFTER = 32
"""So many batches, of some hundred to two thousand pages, and the log is moved."""
_LOG_LOOK_S = 0.5
_CUT_TRIES = 50
_CUT_PAUSE_S = 0.02
_STUCK_S = 10.0
_RETRY_S = 1.0
_LAG_S = 0.01
"""How long the end of a call waits for company: an agent that calls again at once costs one fsync a call."""
_FOLD_ROWS = 1000
_FOLD_NS = 60_000_000_000
_FOLD_FLUSH_S = 1.0
_FOLDS_MAX = 10_000

Statement = tuple[str, Sequence[Any]]

Work = Callable[[sqlite3.Connection, Tip], None]
"""Something of several steps inside the transaction, with events of its own."""


class JournalError(Exception):
    """Nothing can be recorded now; the text says why in one clause."""


@dataclass(frozen=True, slots=True)
class Trace:
    """By what a call can be found again at the vendor, where its row does not say it.

    Attributes:
        content: of what it asked for, where the vendor's list is searched by that.
        fees_nano: what a price that is told later leaves out, at most.
        accounts: JSON of the headers that moved it to another account; None for none.
    """

    content: bytes | None
    fees_nano: int
    accounts: str | None


@dataclass(slots=True, eq=False)
class CallRow:
    """One attempt. Fields up to ``usage_after_nano`` are fixed when it is appended; the rest end it."""

    call_id: str
    ts_ns: int
    key_no: int | None = None
    vendor: str | None = None
    operation: str | None = None
    method: str | None = None
    endpoint: str | None = None
    requested_nano: int | None = None
    currency: str | None = None
    amount_minor: int | None = None
    replay_of: str | None = None
    policy_check_result: str = "allowed"
    reason: str | None = None
    idempotency_key: str | None = None
    request_digest: bytes | None = None
    replay_digest: bytes | None = None
    fingerprint: bytes | None = None
    duplicate_of: str | None = None
    metadata: str | None = None
    usage_after_nano: int | None = None
    upstream: str | None = None
    outcome: str = "pending"
    amount_nano: int = 0
    """What counts against the cap: the hold when it is appended, the truth in the end."""
    status: int | None = None
    vendor_request_id: str | None = None
    latency_us: int | None = None
    upstream_us: int | None = None
    folded: int = 0
    scopes: tuple[str, ...] = ()
    """Whose requests it counts among, once it is let through; not stored with it."""
    trace: Trace | None = None
    """Stored in the same transaction, where there is one."""
    lost: bool = False
    """Whether it was to be recorded and was not: no retry may stand on what it holds; not stored."""
    no: int = 0
    """Its number, given when it is written."""


_BALANCE = """
INSERT INTO balance (scope, day, posted_nano, requests) VALUES (?, ?, ?, ?)
ON CONFLICT (scope, day) DO UPDATE SET
    posted_nano = posted_nano + excluded.posted_nano, requests = requests + excluded.requests
"""
_OBJECT = """
INSERT INTO object (vendor, credential, object_id, nano, minor, currency) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (vendor, credential, object_id) DO UPDATE SET
    nano = max(nano, excluded.nano), minor = excluded.minor, currency = excluded.currency
"""
_TRACE = "INSERT INTO trace (call_id, ts_ns, content, fees_nano, accounts) VALUES (?, ?, ?, ?, ?)"
_CHANGED = "UPDATE meta SET value = value + ? WHERE key = 'changes'"


@dataclass(slots=True)
class _Batch:
    """What goes into the next transaction."""

    rows: list[CallRow] = field(default_factory=list)
    finished: dict[CallRow, None] = field(default_factory=dict)
    spends: dict[tuple[str, int], int] = field(default_factory=dict)
    objects: dict[tuple[str, str, str], Remembered] = field(default_factory=dict)
    changes: list[tuple[Statement, bool]] = field(default_factory=list)
    """Each with whether memory says it already, so that it goes on being tried."""
    work: list[Work] = field(default_factory=list)
    corrected: dict[str, int] = field(default_factory=dict)
    """What calls really cost, in nano-USD, by their ids."""
    waiters: list[asyncio.Future[None]] = field(default_factory=list)

    def __bool__(self) -> bool:
        held = (
            self.rows,
            self.finished,
            self.spends,
            self.objects,
            self.changes,
            self.corrected,
            self.waiters,
        )
        return any(held)

    def balances(self) -> dict[tuple[str, int], tuple[int, int]]:
        """``(scope, day) -> (posted nano-USD, requests)`` to add. Requests are counted with their rows."""
        found = {key: (nano, 0) for key, nano in self.spends.items()}
        for row in self.rows:
            for scope in row.scopes:
                key = (scope, day_of(row.ts_ns))
                nano, requests = found.get(key, (0, 0))
                found[key] = nano, requests + 1
        return found

    def keep_endings_of(self, failed: "_Batch") -> None:
        """Take over what must still be recorded after a batch that was rolled back."""
        self.finished = {**failed.finished, **self.finished}
        for key, nano in failed.spends.items():
            self.spends[key] = self.spends.get(key, 0) + nano
        self.objects = {**failed.objects, **self.objects}
        self.corrected = {**failed.corrected, **self.corrected}
        # An UPDATE can be said twice; an INSERT is its waiter's own to repeat.
        lasting = [entry for entry in failed.changes if entry[1] and entry[0][0].startswith("UPDATE")]
        self.changes = [*lasting, *self.changes]


class Journal:
    """The one writer.

    Attributes:
        stopped: why nothing is recorded until a restart; None while all is well.
        batches: transactions committed since the start.
    """

    def __init__(self, database: Database, *, free_bytes: Callable[[], int] | None = None) -> None:
        self._database = database
        self._loop = asyncio.get_running_loop()
        self._next = _Batch()
        self._wake = asyncio.Event()
        self._lagging: asyncio.TimerHandle | None = None
        self._due = False
        """Whether what nobody waits for has waited long enough."""
        self._height = database.height
        self._free_bytes = free_bytes or self._ask_free_bytes
        self._free_until = 0.0
        self._free_enough = True
        self._folds: dict[tuple[int | None, str], _Fold] = {}
        self._closing = False
        self._writing: _Batch | None = None
        self._writing_since = 0.0
        self._log = database.path.with_name(f"{database.path.name}-wal")
        self._log_look_at = 0.0
        self._cutting: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._unmoved = 0
        """Batches since the log was last moved."""
        database.readers.fault = self.halt
        self.stopped: str | None = None
        self.batches = 0
        self._task = self._loop.create_task(self._write())

    # --- recording ------------------------------------------------------------------------------

    async def append(self, row: CallRow) -> None:
        """Record an attempt; returns when it is durable.

        Raises:
            JournalError: it was not recorded, and will not come back.
        """
        if not self._room():
            raise JournalError("less than 64 MiB of disk are free")
        await self._join(lambda batch: batch.rows.append(row))

    async def refuse(self, row: CallRow) -> None:
        """Record a refusal; a flood of one kind is folded, see ``_Fold``. Never raises."""
        kind = (row.key_no, row.policy_check_result)
        fold = self._folds.get(kind)
        if fold is None or row.ts_ns - fold.since_ns >= _FOLD_NS:
            if len(self._folds) > _FOLDS_MAX:
                self._flush_all()
                self._folds.clear()
            elif fold is not None:
                self._flush(fold)
            fold = self._folds[kind] = _Fold(row.ts_ns)
        fold.seen += 1
        if fold.seen > _FOLD_ROWS:
            if fold.row is None:
                fold.row = row
                row.folded, fold.owed = fold.owed, 0
            else:
                fold.row.folded += 1
                if not fold.waiting:
                    fold.waiting = True
                    self._loop.call_later(_FOLD_FLUSH_S, self._flush, fold)
                return
        try:
            await self._join(lambda batch: batch.rows.append(row))
        except JournalError as error:
            log.warning("a refusal was not recorded: %s", error)
            if fold.row is row:
                fold.row, fold.owed = None, row.folded + 1  # the next of its kind counts them

    def _flush(self, fold: "_Fold") -> None:
        fold.waiting = False
        if fold.row is not None:
            self.finish(fold.row)

    def _flush_all(self) -> None:
        for fold in self._folds.values():
            if fold.waiting:
                self._flush(fold)

    async def change(self, statements: Iterable[Statement], *, lasting: bool = False) -> None:
        """Record a change that is not a call; returns when it is durable.

        Args:
            statements: in their order, in one transaction.
            lasting: memory says it already: where it fails, its UPDATEs are tried again until they are
                recorded, whether or not the caller gives up.

        Raises:
            JournalError: it was not recorded, or not yet.
        """
        entries = [(statement, lasting) for statement in statements]
        await self._join(lambda batch: batch.changes.extend(entries))

    async def carry_out(self, work: Work) -> None:
        """Do something of several steps in the next transaction; returns when it is durable.

        Raises:
            JournalError: it was not done.
        """
        await self._join(lambda batch: batch.work.append(work))

    def note(self, statements: Iterable[Statement]) -> None:
        """Record a change that nobody waits for, soon."""
        self._next.changes.extend((statement, True) for statement in statements)
        self._write_soon()

    def finish(self, row: CallRow) -> None:
        """Record what the row now says of its end, soon. A row that was never written is passed over."""
        self._next.finished[row] = None
        self._write_soon()

    def correct(self, call_id: str, nano: int) -> None:
        """Record what a posted call really cost, with the next batch."""
        self._next.corrected[call_id] = nano
        self._write_soon()

    def spend(self, scope: str, day: int, nano: int) -> None:
        """Record what was posted in one scope, together with the row's end."""
        key = (scope, day)
        self._next.spends[key] = self._next.spends.get(key, 0) + nano

    def remember(self, vendor: str, credential: str, object_id: str, counted: Remembered) -> None:
        """Record what an object was counted at, together with the row's end."""
        self._next.objects[vendor, credential, object_id] = counted

    async def barrier(self, *, calls: bool = True) -> None:
        """Wait until everything recorded so far can be read back.

        Args:
            calls: whether for calls, too; else only for changes, of which there are few.
        """
        # What is being committed now can't be read yet either.
        under_way = [batch for batch in (self._next, self._writing) if batch is not None]
        if any(batch if calls else batch.changes or batch.work for batch in under_way):
            try:
                await self._join(lambda _batch: None)
            except JournalError:
                return

    @property
    def gets_on(self) -> bool:
        """Whether the writer lives, and what it writes now has not taken it too long."""
        stuck = self._writing is not None and self._loop.time() - self._writing_since > _STUCK_S
        return self.stopped is None and not self._task.done() and not stuck

    async def flushed(self) -> bool:
        """Wait as ``barrier`` does; whether all that had been recorded is durable now."""
        if self._next or self._writing is not None:
            try:
                await self._join(lambda _batch: None)
            except JournalError:
                return False
        return self.stopped is None

    def halt(self, error: sqlite3.Error) -> None:
        """Somebody came upon damage: from this moment on nothing is recorded, so nothing is forwarded."""
        if self.stopped is None:
            log.critical("spending stops: the database is damaged: %s", error)
            self._stop("the database is damaged; kbctl down, then kbctl restore FILE", [])

    async def close(self) -> None:
        """Write what waits, then stop."""
        for task in (self._cutting, self._moving):
            if task is not None:
                task.cancel()
        self._flush_all()
        self._closing = True
        self._wake.set()
        await self._task
        if self._lagging is not None:
            self._lagging.cancel()

    # --- the writer -----------------------------------------------------------------------------

    async def _join(self, add: Callable[[_Batch], object]) -> None:
        if self.stopped is not None:
            raise JournalError(self.stopped)
        if self._closing:
            raise JournalError("the daemon is stopping")
        add(self._next)
        waiter = self._loop.create_future()
        self._next.waiters.append(waiter)
        self._wake.set()
        # Shielded by nature: a cancelled caller leaves its row in the batch, where it ends as unknown.
        await waiter

    def _write_soon(self) -> None:
        """What nobody waits for lets others come along: the end of a call rides with the next one."""
        if self._lagging is None:
            self._lagging = self._loop.call_later(_LAG_S, self._lagged)

    def _lagged(self) -> None:
        self._lagging = None
        self._due = True
        self._wake.set()

    async def _write(self) -> None:
        while self.stopped is None:
            if not (self._next.waiters or self._due or (self._closing and self._next)):
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            self._due = False
            if not self._next:
                continue
            batch, self._next = self._next, _Batch()
            self._writing, self._writing_since = batch, self._loop.time()
            height = Height(self._height.call_no + len(batch.rows), self._height.changes + len(batch.changes))
            for number, row in enumerate(batch.rows, start=self._height.call_no + 1):
                row.no = number
            try:
                await self._commit(batch, height)
            except Exception as error:  # noqa: BLE001 - a writer that died in silence would be waited for
                await self._failed(batch, error)
                if self.stopped is not None:
                    return
                if self._closing:
                    log.error("the ends of %d calls were not recorded", len(self._next.finished))
                    return
                self._writing = None
                if not self._next.waiters:
                    # The endings have nobody waiting for them: again with the next caller or by the clock.
                    self._wake.clear()
                    self._loop.call_later(_RETRY_S, self._wake.set)
                    await self._wake.wait()
                    self._due = True

    def _committed(self, batch: _Batch, tip: Tip, height: Height) -> None:
        """It is synced: whoever waits for it goes on."""
        self._database.tip = tip
        self._height = height
        self.batches += 1
        try:
            self._database.anchor.write(height)
        except OSError as error:
            log.warning("the anchor could not be written and lags behind: %s", error)
        self._writing = None
        for waiter in batch.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._look_at_log()

    async def _commit(self, batch: _Batch, height: Height) -> None:
        # The values are taken here: rows change while the writer's thread works.
        inserted = [_inserted(row) for row in batch.rows]
        ended = [(*_ending(row), row.no) for row in batch.finished if row.no]
        many: list[tuple[str, list[tuple[Any, ...]]]] = [
            (_TRACE, [trace for row in batch.rows if (trace := _traced(row)) is not None]),
            (_BALANCE, [(*key, *counts) for key, counts in batch.balances().items()]),
            (_OBJECT, [(*key, r.nano, r.minor, r.currency) for key, r in batch.objects.items()]),
        ]
        single = [statement for statement, _ in batch.changes]
        if single:
            single.append((_CHANGED, (len(single),)))
        tip, corrected = self._database.tip.copy(), dict(batch.corrected)

        def write(connection: sqlite3.Connection) -> None:
            if inserted:
                tip.record(connection, inserted)
            if ended:
                tip.settle(connection, ended)
            tip.correct(connection, corrected)
            for sql, rows in many:
                if rows:
                    connection.executemany(sql, rows)
            for sql, values in single:
                connection.execute(sql, values)
            for work in batch.work:
                work(connection, tip)
            if single or batch.work:
                tip.catch_up(connection)

        await self._database.write(write, partial(self._committed, batch, tip, height))

    async def _failed(self, batch: _Batch, error: Exception) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        definite = code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CONSTRAINT)
        try:
            await self._database.writer.rollback()
        except Exception:  # noqa: BLE001 - as above
            definite = False
        told = batch.waiters
        if definite:
            reason = {
                sqlite3.SQLITE_FULL: "the disk is full",
                sqlite3.SQLITE_BUSY: "another process holds the database",
            }.get(code, "the database refused it")
            log.error("a batch was rolled back: %s (%s)", reason, error)
            for row in batch.rows:
                row.no, row.lost = 0, True
            if code == sqlite3.SQLITE_BUSY or self._closing:
                # Whoever came meanwhile has waited as well; nobody waits for a locked database twice.
                late, self._next = self._next, _Batch()
                for row in late.rows:
                    row.lost = True
                self._next.keep_endings_of(late)
                told = [*told, *late.waiters]
            self._next.keep_endings_of(batch)
        else:
            log.critical("spending stops until restart: %s", error)
            self._stop("the database failed; restart kbctl to read back what is really there", told)
            return
        _tell(told, reason)

    def _stop(self, reason: str, told: Iterable[asyncio.Future[None]]) -> None:
        self.stopped = reason
        self._wake.set()
        _tell([*told, *self._next.waiters], reason)

    # --- the log --------------------------------------------------------------------------------

    def _look_at_log(self) -> None:
        self._unmoved += 1
        if self._unmoved >= _MOVED_AFTER and self._moving is None:
            self._unmoved = 0
            self._moving = self._loop.create_task(self._move_log())
        now = self._loop.time()
        if now < self._log_look_at or self._cutting is not None:
            return
        self._log_look_at = now + _LOG_LOOK_S
        if self._log_bytes() > LOG_BYTES:
            self._cutting = self._loop.create_task(self._cut_log())

    def _log_bytes(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0

    async def _move_log(self) -> None:
        """Move what is in the log into the database; it waits for nobody, and nobody for it.

        A commit that did it, as SQLite's own do at every thousandth page, kept all calls waiting for 5 ms,
        eleven times a second under full load.
        """
        try:
            await in_one_go(self._database.checkpointer, _move)
        except sqlite3.Error as error:
            if is_broken(error):
                self.halt(error)
            else:
                log.warning("the log could not be moved into the database, and stays: %s", error)
        finally:
            self._moving = None

    async def _cut_log(self) -> None:
        """Move the log into the database and begin it anew, while nobody reads."""
        readers = self._database.readers
        try:
            async with readers.held():
                for _ in range(_CUT_TRIES):
                    # A check can begin again at any time; a backup is let finish for as long as is bearable.
                    readers.end_patient(backups=self._log_bytes() > LOG_BYTES_MAX)
                    if await in_one_go(self._database.writer, _cut):
                        return
                    await asyncio.sleep(_CUT_PAUSE_S)
            if self._log_bytes() > LOG_BYTES_MAX:
                log.warning(
                    "the log is long: another program holds the database open, see fuser %s", self._log
                )
        except sqlite3.Error as error:
            if is_broken(error):
                self.halt(error)
        finally:
            self._cutting = None

    # --- disk space -----------------------------------------------------------------------------

    def _room(self) -> bool:
        now = self._loop.time()
        if now >= self._free_until:
            self._free_until = now + 0.5
            self._free_enough = self._free_bytes() >= FREE_BYTES_MIN
        return self._free_enough

    def _ask_free_bytes(self) -> int:
        figures = os.statvfs(self._database.path.parent)
        return figures.f_bavail * figures.f_frsize

    @property
    def database(self) -> Database:
        return self._database


@dataclass(slots=True)
class _Fold:
    """A minute of refusals of one kind (same key, same code).

    The first thousand are rows of their own; the next one is the row that counts all further ones, so a
    flood costs no disk write per request and leaves no gap in the numbering.
    """

    since_ns: int
    seen: int = 0
    row: CallRow | None = None
    owed: int = 0
    """Refusals whose counting row could not be recorded."""
    waiting: bool = False
    """Whether a write of the count is due."""


def _tell(waiters: Iterable[asyncio.Future[None]], reason: str) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(JournalError(reason))


def _move(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def _cut(connection: sqlite3.Connection) -> bool:
    """Whether the log begins anew; never waits for a reader."""
    if connection.in_transaction:
        return False
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        connection.execute("PRAGMA busy_timeout = 1000")
    return not busy


def _inserted(row: CallRow) -> tuple[Any, ...]:
    """In the order of ``CALL_FIXED + CALL_ENDING``."""
    return (
        row.no,
        row.call_id,
        row.ts_ns,
        row.key_no,
        row.vendor,
        row.operation,
        row.method,
        _without_keys(row.endpoint),
        row.requested_nano,
        row.currency,
        row.amount_minor,
        row.replay_of,
        _without_keys(row.idempotency_key),
        row.request_digest,
        row.replay_digest,
        row.fingerprint,
        row.duplicate_of,
        _without_keys(row.metadata),
        row.usage_after_nano,
        row.upstream,
        row.amount_nano,
        *_ending(row),
    )


def _traced(row: CallRow) -> tuple[Any, ...] | None:
    """In the order of ``_TRACE``."""
    trace = row.trace
    if trace is None:
        return None
    return row.call_id, row.ts_ns, trace.content, trace.fees_nano, trace.accounts


def _ending(row: CallRow) -> tuple[Any, ...]:
    """In the order of ``CALL_ENDING``."""
    return (
        row.policy_check_result,
        row.outcome,
        row.amount_nano,
        row.status,
        _without_keys(row.reason),
        row.vendor_request_id,
        row.latency_us,
        row.upstream_us,
        row.folded,
    )


def _without_keys(text: str | None) -> str | None:
    """A vault key that an agent put into a path or a field stays out of the database all the same."""
    if text is None or PREFIX not in text:
        return text
    return _VAULT_KEY.sub(f"{PREFIX}***", text)
