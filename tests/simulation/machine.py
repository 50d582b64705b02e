"""A machine that is a figure: a disk that forgets what was not synced, a network, a vendor, and two clocks.

What runs on it is the real thing: HTTP server, exchange, upstream connections, vault, journal and its SQL.
Every wait takes virtual time from the seed's dice, so that one number is one run, to the last interleaving.
"""

import asyncio
import random
import re
import sqlite3
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

import aiosqlite

from kbctld.store.anchor import Anchor, Height
from kbctld.store.chain import tip_of
from kbctld.store.database import APPLICATION_ID, Database
from tests.support.virtual import VirtualLoop

DAY_NS = 86_400 * 10**9
NOON = 20_778 * DAY_NS + DAY_NS // 2


# --- the disk ---------------------------------------------------------------------------------------------


@cache
def _formatted() -> bytes:
    """A new database, as the daemon makes it."""
    with closing(sqlite3.connect(":memory:")) as connection:
        folder = resources.files("kbctld.store") / "migrations"
        files = sorted(
            (file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name
        )
        for file in files:
            connection.executescript(file.read_text(encoding="utf-8"))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(files)}")
        connection.commit()
        return connection.serialize()


class Disk:
    """What a power cut leaves.

    Attributes:
        synced: the image that is safe.
        pending: images that were committed since and are not: a power cut leaves any of them.
        lazy: whether a commit is acknowledged before it is synced; the control.
        names: idempotency keys whose rows are safe.
        anchor: what the file outside remembers.
        fault: what befalls the next commit, if anything.
    """

    def __init__(self) -> None:
        self.synced = _formatted()
        self.pending: list[bytes] = []
        self.lazy = False
        self.names: set[str] = set()
        self.anchor = Height(0, 0)
        self.fault: str | None = None

    def committed(self, image: bytes, names: set[str]) -> None:
        if self.lazy:
            self.pending.append(image)
        else:
            self.synced, self.pending = image, []
            self.names |= names

    def cut(self, dice: random.Random) -> None:
        """The power goes: of what was not synced, a part may be there, and never a part of a transaction."""
        self.synced = dice.choice([self.synced, *self.pending])
        self.pending = []


class Cursor:
    """What ``execute`` gives, to be awaited or entered."""

    def __init__(self, work: Callable[[], Awaitable[sqlite3.Cursor]]) -> None:
        self._work = work

    def __await__(self) -> Generator[Any, None, "Cursor"]:
        self._cursor = yield from self._work().__await__()
        return self

    async def __aenter__(self) -> "Cursor":
        return await self

    async def __aexit__(self, *_: object) -> None:
        self._cursor.close()

    async def fetchone(self) -> Any:
        return self._cursor.fetchone()

    async def fetchall(self) -> Any:
        return self._cursor.fetchall()

    async def close(self) -> None:
        self._cursor.close()

    def __aiter__(self) -> "Cursor":
        return self

    async def __anext__(self) -> Any:
        row = self._cursor.fetchone()
        if row is None:
            raise StopAsyncIteration
        return row


_EMPTY = sqlite3.connect(":memory:")


class Connection:
    """An aiosqlite connection as far as the daemon knows one; its thread is virtual time."""

    def __init__(self, life: "Life", *, writes: bool) -> None:
        self._life = life
        self._writes = writes
        self._image = b""
        self._real = _EMPTY

    def fresh(self) -> sqlite3.Connection:
        """Over what is committed now; where the writer is between two transactions, that is what it sees."""
        writer = self._life.writer
        if writer is not None and writer is not self and not writer.fresh().in_transaction:
            return writer.fresh()
        image = self._life.committed
        if image is not self._image:
            self._image = image
            self._real = sqlite3.connect(":memory:", isolation_level="IMMEDIATE")
            self._real.deserialize(image)
        return self._real

    @property
    def _conn(self) -> "Connection":
        """Stands for the connection of the moment in which the work is done."""
        return self

    async def _execute(self, work: Callable[[sqlite3.Connection], Any], _conn: object) -> Any:
        await self._life.pause()
        return work(self._real if self._writes else self.fresh())

    def execute(self, sql: str, values: Any = ()) -> Cursor:
        async def work() -> sqlite3.Cursor:
            found = await self._execute(lambda connection: connection.execute(sql, values), self)
            return cast(sqlite3.Cursor, found)

        return Cursor(work)

    async def commit(self) -> None:
        await self._life.pause()
        disk = self._life.disk
        fault, disk.fault = disk.fault, None
        if fault in ("full", "busy"):
            error = sqlite3.OperationalError(fault)
            error.sqlite_errorcode = sqlite3.SQLITE_FULL if fault == "full" else sqlite3.SQLITE_BUSY
            raise error
        if fault == "lost":
            await self._life.ends()
        self._real.commit()
        image = self._real.serialize()
        if fault in ("io-kept", "io-lost"):
            # The live connection has rolled it back; whether it is there after a crash, nobody knows.
            self._image = image
            if fault == "io-kept":
                disk.synced = image
            self.fresh()
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        self._life.committed = self._image = image
        found = self._real.execute(
            "SELECT idempotency_key FROM call WHERE no > ?", (self._life.named,)
        ).fetchall()
        self._life.named += len(found)
        disk.committed(image, {name for (name,) in found})
        if fault == "kept":
            await self._life.ends()
        await self._life.pause()

    async def rollback(self) -> None:
        await self._life.pause()
        self._real.rollback()

    async def close(self) -> None:
        if self._real is not _EMPTY:
            self._real.close()


class _Database(Database):
    """With a moment between the work and its commit, in which this process may end."""

    async def write(
        self, work: Callable[[sqlite3.Connection], None], then: Callable[[], None] | None = None
    ) -> None:
        await self.writer._execute(work, self.writer)  # type: ignore[no-untyped-call]
        await self.writer.commit()
        if then is not None:
            then()


class _Anchor:
    """The file outside."""

    def __init__(self, life: "Life") -> None:
        self._life = life

    def write(self, height: Height) -> None:
        if self._life.alive:
            self._life.disk.anchor = height

    def close(self) -> None:
        """Nothing is left to write."""


# --- a process --------------------------------------------------------------------------------------------


class Life:
    """One process of the daemon. Once it is over, nothing that it does has an effect."""

    def __init__(self, disk: Disk, dice: random.Random) -> None:
        self.disk = disk
        self.dice = dice
        self.alive = True
        self.over = asyncio.get_running_loop().create_future()
        self.committed = disk.synced
        self.named = 0
        self.writer: Connection | None = None

    async def pause(self) -> None:
        """Some time goes by; a process that died meanwhile does not come back from it."""
        await asyncio.sleep(self.dice.choice((0, 0, 0.0002, 0.001, 0.004)))
        if not self.alive:
            await self.ends()

    async def ends(self) -> None:
        """kill -9, here: who waits for this waits for ever, until the story clears it away."""
        self.crash()
        await asyncio.get_running_loop().create_future()

    def crash(self) -> None:
        if self.alive:
            self.alive = False
            self.over.set_result(None)

    def database(self) -> Database:
        """What opening it gives; refuses one that its anchor does not vouch for, as the real one does."""
        writer, reader = Connection(self, writes=True), Connection(self, writes=False)
        checkpointer = Connection(self, writes=False)
        calls = writer.fresh().execute("SELECT coalesce(max(no), 0) FROM call").fetchone()[0]
        changes = writer.fresh().execute("SELECT value FROM meta WHERE key = 'changes'").fetchone()[0]
        height = Height(calls, changes)
        self.named, self.writer = calls, writer
        assert not height.lost_against(self.disk.anchor), "committed rows were lost"
        return _Database(
            Path("/tmp/simulated.db"),
            cast(aiosqlite.Connection, writer),
            cast(aiosqlite.Connection, checkpointer),
            cast(aiosqlite.Connection, reader),
            cast(Anchor, _Anchor(self)),
            height,
            tip_of(writer.fresh()),
            False,
        )


# --- the network ------------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """One end of a connection; the other end is a protocol, too. What is written arrives later, in order."""

    def __init__(self, loop: "Loop", life: Life, *, survives: bool) -> None:
        super().__init__()
        self._loop = loop
        self._life = life
        self._survives = survives
        self.protocol: asyncio.Protocol | None = None
        self.peer: Wire | None = None
        self.heard: Callable[[bytes], None] | None = None
        self._closed = False
        self._at = 0.0

    @property
    def _there(self) -> bool:
        """Whether whose end it is lives: a vendor and an agent outlive the daemon."""
        return self._survives or self._life.alive

    def _later(self, what: Callable[[], None]) -> None:
        self._at = max(self._at, self._loop.time() + self._life.dice.choice((0, 0.0003, 0.002, 0.01)))
        self._loop.call_at(self._at, what)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed or not self._there:
            return
        piece = bytes(data)
        if self.heard is not None:
            self.heard(piece)
        peer = self.peer
        assert peer is not None
        self._later(lambda: peer.arrives(piece))

    def arrives(self, piece: bytes) -> None:
        if not self._closed and self._there and self.protocol is not None:
            self.protocol.data_received(piece)

    def abort(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self.peer is not None:
            self._later(self.peer.lost)
        self._loop.call_soon(self._told)

    close = abort

    def lost(self) -> None:
        if not self._closed:
            self._closed = True
            self._told()

    def _told(self) -> None:
        if self._there and self.protocol is not None:
            self.protocol.connection_lost(None)

    def is_closing(self) -> bool:
        return self._closed

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """There is room for all."""

    def resume_reading(self) -> None:
        """As above."""


class Loop(VirtualLoop):
    """Virtual time, and a network on which there is one vendor."""

    life: Life
    vendor: "Vendor"
    refuses = False

    def wire(self, daemon: asyncio.Protocol, other: asyncio.Protocol) -> tuple[Wire, Wire]:
        """Connect the daemon with somebody: its end, and the other's."""
        ends = Wire(self, self.life, survives=False), Wire(self, self.life, survives=True)
        ends[0].peer, ends[1].peer = ends[1], ends[0]
        for end, protocol in zip(ends, (daemon, other), strict=True):
            end.protocol = protocol
            protocol.connection_made(end)
        return ends

    async def create_connection(self, factory: Any, *_args: Any, **_also: Any) -> Any:  # type: ignore[override]
        life = self.life
        await life.pause()
        if self.refuses:
            raise ConnectionRefusedError(111, "Connection refused")
        protocol = factory()
        ours, _ = self.wire(protocol, VendorEnd(self.vendor))
        ours.heard = self.vendor.leaving
        return ours, protocol


# --- the vendor -------------------------------------------------------------------------------------------

_ASKED = re.compile(
    rb"\r\nidempotency-key: *([a-z0-9.-]+)\r\n.*\r\n\r\namount=([0-9]+)&", re.IGNORECASE | re.DOTALL
)
_DONE = b'{"id":"pi_1","object":"payment_intent"}'
_ERROR = b'{"error":{"type":"card_error","message":"declined"}}'


def _answer(status: bytes, body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b" % (
        *(status, more),
        *(len(body), body),
    )


_OK = _answer(b"200 OK", _DONE)
HOW = ("ok", "ok", "ok", "declined", "error", "reset", "reset-moved", "silence", "half", "garbage")


class Vendor:
    """Moves money once per idempotency key, and says what it likes of it.

    Attributes:
        book: by idempotency key: ``seen``, ``moved`` cents, ``refused``.
        leaving: told every piece of a request in the instant in which the daemon lets it go.
        moved: told after every movement.
    """

    def __init__(self, dice: random.Random) -> None:
        self.book: dict[str, dict[str, Any]] = {}
        self.leaving: Callable[[bytes], None] = lambda _piece: None
        self.moved: Callable[[str, int], None] = lambda _name, _cents: None
        self.dice = dice


class VendorEnd(asyncio.Protocol):
    def __init__(self, vendor: Vendor) -> None:
        self._vendor = vendor

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(Wire, transport)

    def data_received(self, data: bytes) -> None:
        found = _ASKED.search(data)
        assert found, data
        name, cents = found[1].decode(), int(found[2])
        vendor = self._vendor
        entry = vendor.book.setdefault(name, {"seen": 0, "moved": 0, "refused": False})
        entry["seen"] += 1
        again = entry["seen"] > 1
        how = name.partition(".")[0]
        if again:
            how = "declined" if entry["refused"] else "ok"
        if how not in ("declined", "reset") and not entry["moved"]:
            entry["moved"] = cents
            vendor.moved(name, cents)
        match how:
            case "ok":
                self._wire.write(
                    _answer(b"200 OK", _DONE, b"Idempotent-Replayed: true\r\n") if again else _OK
                )
            case "declined":
                entry["refused"] = True
                more = b"Idempotent-Replayed: true\r\n" if again else b""
                self._wire.write(_answer(b"402 Payment Required", _ERROR, more))
            case "error":
                self._wire.write(_answer(b"500 Internal Server Error", _ERROR))
            case "half":
                self._wire.write(_OK[:-9])
                self._wire.close()
            case "garbage":
                self._wire.write(b"\x00garbage\r\n\r\n")
            case "reset" | "reset-moved":
                self._wire.abort()
            case _:
                """Silence."""
