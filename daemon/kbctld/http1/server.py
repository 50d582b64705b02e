"""Connections: bytes from a socket to one request at a time, and its answer back.

What must stay true: at most one request of a connection is worked on; whatever follows waits unread.
Every wait has an end: head 10 s, body at 1 KiB/s or more, an answer nobody reads 60 s, idle 5 min. There are
so many connections and no more: where they are all taken, the one that has been idle for longest makes room,
and a client that has none of its requests under way is never kept out by those that sleep. A
head that does not pass the gate is answered and the connection closed; its rest is thrown away unread,
so that no byte of it can be taken for a second request.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from typing import cast

from kbctld.http1.gate import HEAD_BYTES_MAX, BadHead, Head, read_head
from kbctld.http1.line import Line

log = logging.getLogger("kbctld.http1")

Fields = list[tuple[bytes, bytes]]

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_LONE_LF = re.compile(rb"(?<!\r)\n")
_BUFFER_HIGH = 256 * 1024
# More than a body may have: a client that sends all of a refused one before it looks still sees why.
_LINGER_BYTES = 16 * 1024 * 1024
_LINGER_S = 2.0
_LAST_CALL_S = 1.0
# What is left of a refused request's body is read and thrown away up to this size; beyond it we close.
_SKIP_BYTES = 64 * 1024
# Connections looked at for one that is idle, each time that another wants in.
_ROOM_TRIES = 64

# Whose agent it is can't be told before its head is in, so the shape is the one that most SDKs read.
_FULL_BODY = (
    b'{"error":{"type":"api_error","code":"overloaded",'
    b'"message":"overloaded: too many requests are under way; nothing was sent"}}'
)
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Stripe-Should-Retry: true\r\nx-should-retry: true\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one listener; seconds and bytes."""

    head_s: float = 10.0
    body_bytes: int = 10 * 1024 * 1024
    body_grace_s: float = 10.0
    body_bytes_per_s: int = 1024
    write_stall_s: float = 60.0
    idle_s: float = 300.0
    connections: int = 1024
    spare: int = 128
    """Beyond those: for requests that are looked at before they are turned away."""


class ClientGone(Exception):  # noqa: N818 - an event, not a defect
    """The client closed, or stopped reading, before it had its answer."""


class BadBody(Exception):  # noqa: N818 - as BadHead
    """A body that is not taken: ``status`` and ``code`` as in ``BadHead``."""

    def __init__(self, status: int, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.sentence = sentence


Handler = Callable[["Request"], Awaitable[None]]
Rejecter = Callable[["Request", BadHead], Awaitable[None]]


class Request:
    """One request and the way to answer it.

    Attributes:
        head: what passed the gate; None in a rejecter.
        raw: the bytes of the head, for a rejecter's record.
    """

    def __init__(self, connection: "Connection", head: Head | None, raw: bytes) -> None:
        self.head = head
        self.raw = raw
        self.connection = connection
        self._left = (head.length or 0) if head else 0
        self._chunked = head is not None and head.length is None
        self._complete = head is None or head.length == 0
        self._continue = head is not None and head.expects_continue
        self._answer_chunked = False
        self._close_after = False
        self._started = False
        self._ended = False
        self._spoilt = False

    # --- the body -------------------------------------------------------------------------------

    async def body(self) -> bytes:
        """The whole body, within the listener's limits.

        Raises:
            BadBody: too large, too slow, or chunks that are not plain.
            ClientGone: it ended before its length.
        """
        if not (self._chunked or self._continue) and len(self.connection.buffer) >= self._left:
            self.check_length()
            return self._take()
        parts = [piece async for piece in self.pieces()]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check_length(self) -> None:
        """Look at the length that the head states, for who wants to know before the body is read.

        Raises:
            BadBody: it is too large.
        """
        limit = self.connection.server.limits.body_bytes
        if self.head is not None and (self.head.length or 0) > limit:
            raise BadBody(413, "body_too_large", f"the body is larger than {limit:,} bytes")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives, within the same limits; what is not asked for is not read."""
        try:
            async for piece in self._pieces():
                yield piece
        except BadBody:
            self._spoilt = True  # whatever else comes on this connection can't be told from its rest
            raise

    async def _pieces(self) -> AsyncIterator[bytes]:
        self.check_length()
        limits = self.connection.server.limits
        size = 0
        started = self.connection.loop.time()
        while True:
            piece = self._take()
            if piece:
                size += len(piece)
                if size > limits.body_bytes:
                    raise BadBody(
                        413, "body_too_large", f"the body is larger than {limits.body_bytes:,} bytes"
                    )
                yield piece
            if self._complete:
                return
            if self._continue:
                self._continue = False
                self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            until = started + limits.body_grace_s + size / limits.body_bytes_per_s
            await self.connection.more(until)

    def _take(self) -> bytes:
        """Body bytes that have arrived; sets ``_complete`` at the end of the body."""
        buffer = self.connection.buffer
        if not self._chunked:
            piece = bytes(buffer[: self._left])
            del buffer[: len(piece)]
            self._left -= len(piece)
            self._complete = self._left == 0
            return piece
        out = bytearray()
        while True:
            if self._left == 0:
                line = _CHUNK_LINE.match(buffer)
                if line is None:
                    # Extensions and lone line feeds end here: readers disagree about both.
                    if len(buffer) > 10 or b"\n" in buffer or b";" in buffer:
                        raise BadBody(400, "malformed_request", "a chunk's size line is not plain")
                    break
                size = int(line[1], 16)
                if size == 0:
                    if len(buffer) < line.end() + 2:
                        break
                    if buffer[line.end() : line.end() + 2] != b"\r\n":
                        raise BadBody(
                            400, "malformed_request", "trailers behind a chunked body are not taken"
                        )
                    del buffer[: line.end() + 2]
                    self._complete = True
                    break
                del buffer[: line.end()]
                self._left = size + 2
            if len(buffer) < self._left and len(buffer) <= 2:
                break
            if len(buffer) >= self._left:
                if buffer[self._left - 2 : self._left] != b"\r\n":
                    raise BadBody(400, "malformed_request", "a chunk is longer than it says")
                out += buffer[: self._left - 2]
                del buffer[: self._left]
                self._left = 0
            else:
                usable = min(len(buffer), self._left - 2)
                out += buffer[:usable]
                del buffer[:usable]
                self._left -= usable
                break
        return bytes(out)

    # --- the answer -----------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether bytes of the answer have gone out, so that it can't be replaced any more."""
        return self._started

    @property
    def ended(self) -> bool:
        """Whether the last byte of the answer has gone out, or none will."""
        return self._ended

    def respond(self, status: int, fields: Fields, body: bytes, *, close: bool = False) -> None:
        """Answer in one write. Does nothing when the client is gone."""
        self._started = True
        out = self._head(status, fields)
        if status != 204:  # RFC 9110 8.6: it must not have one
            out.append(b"Content-Length: %d\r\n" % len(body))
        self._finish_head(out, close)
        if self.head is None or self.head.method != "HEAD":
            out.append(body)
        self.connection.write(b"".join(out))
        self._end(close)

    def start(self, status: int, fields: Fields, length: int | None) -> None:
        """Begin an answer whose body comes in pieces.

        Args:
            status: HTTP status.
            fields: header fields, without framing.
            length: bytes of the body; None where it is not known.
        """
        self._started = True
        out = self._head(status, fields)
        if length is not None:
            out.append(b"Content-Length: %d\r\n" % length)
        elif self.head is not None and self.head.minor == 1 and self.head.method != "HEAD":
            self._answer_chunked = True
            out.append(b"Transfer-Encoding: chunked\r\n")
        self._close_after = length is None and not self._answer_chunked
        self._finish_head(out, self._close_after)
        self.connection.write(b"".join(out))

    async def send(self, piece: bytes) -> None:
        """Pass on a piece of the body and wait while the client is slow.

        Raises:
            ClientGone: it is not there any more.
        """
        if self._answer_chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        self.connection.write(piece)
        await self.connection.drained()

    def end(self) -> None:
        """The last piece has been sent."""
        if self._ended:
            return
        if self._answer_chunked:
            self.connection.write(b"0\r\n\r\n")
        self._end(self._close_after)

    def cut(self) -> None:
        """Drop the connection, so that a half-sent answer can't be taken for a whole one."""
        self._ended = True
        self.connection.abort()

    def _head(self, status: int, fields: Fields) -> list[bytes]:
        """The lines of the answer's head, as far as they are said by whoever answers."""
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        lines += [b"%b: %b\r\n" % field for field in fields]
        return lines

    def _finish_head(self, out: list[bytes], close: bool) -> None:
        draining = self.connection.server.draining
        self._close_after = close or draining or self._blocks() or not (self.head and self.head.keep_alive)
        if self._close_after:
            out.append(b"Connection: close\r\n")
        elif self.head is not None and self.head.minor == 0:
            out.append(b"Connection: keep-alive\r\n")
        out.append(b"\r\n")

    def _blocks(self) -> bool:
        """Whether what is unread of the request leaves no way to find the next one behind it."""
        return self._spoilt or (not self._complete and not 0 < self._skippable() <= _SKIP_BYTES)

    def _skippable(self) -> int:
        return 0 if self._complete or self._chunked or self._continue else self._left

    def _end(self, close: bool) -> None:
        if not self._ended:
            self._ended = True
            self.connection.request_ended(close or self._close_after or self._blocks(), self._skippable())


class Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.loop = server.loop
        self.buffer = bytearray()
        self.idle_since = 0.0
        self.request: Request | None = None
        self.known: object = None
        """What a handler has found out of what each request says again; goes with the connection."""
        self._transport: asyncio.Transport | None = None
        self._gone = False
        self._eof = False
        self._linger: int | None = None
        self._in_line = False
        """Whether what has come waits unread until its turn."""
        self._who = b""
        self._skip = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._arrived: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._reading = True
        self._task: asyncio.Task[None] | None = None

    # --- from the event loop --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self._transport = transport
        if not self.server.welcome(self, transport):
            return
        self.idle_since = self.loop.time()
        # A connection that sends nothing at all has the head's deadline too.
        self._deadline = self.loop.call_later(self.server.limits.head_s, self._head_too_slow)

    def data_received(self, data: bytes) -> None:
        if self._linger is not None:
            self._linger -= len(data)
            if self._linger < 0:
                self.abort()
            return
        self.buffer += data
        if self.request is None:
            self._come()
        elif self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)
        if len(self.buffer) > _BUFFER_HIGH and self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        # Half-closed: the client may still read its answer, but no further request can come.
        self._eof = True
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)
        return (not self.idle or self._writable is not None) and self._linger is None

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._cancel_deadline()
        for waiter in (self._arrived, self._writable):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        self.server.farewell(self)

    def pause_writing(self) -> None:
        self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None
        if self.request is None and self._linger is None:
            self._cancel_deadline()
            self._come()

    # --- for requests ---------------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        return self._gone

    @property
    def transport(self) -> asyncio.Transport | None:
        """None once, before the connection is made."""
        return self._transport

    def write(self, data: bytes) -> None:
        if not self._gone and self._transport is not None:
            self._transport.write(data)

    async def more(self, until: float) -> None:
        """Wait for bytes.

        Raises:
            BadBody: none came until that loop time.
            ClientGone: none will come.
        """
        if self._gone or self._eof:
            raise ClientGone
        self._resume_reading()
        self._arrived = self.loop.create_future()
        handle = self.loop.call_at(until, _wake, self._arrived)
        before = len(self.buffer)
        try:
            await self._arrived
        finally:
            handle.cancel()
            self._arrived = None
        if len(self.buffer) == before:
            if self._gone or self._eof:
                raise ClientGone
            raise BadBody(400, "malformed_request", "the body came in too slowly")

    async def drained(self) -> None:
        """Wait until the client has read enough.

        Raises:
            ClientGone: it closed, or read nothing for too long.
        """
        if self._gone:
            raise ClientGone
        waiter = self._writable
        if waiter is None:
            return
        handle = self.loop.call_later(self.server.limits.write_stall_s, self.abort)
        try:
            await waiter
        finally:
            handle.cancel()
        if self._gone:
            raise ClientGone

    def request_ended(self, close: bool, skip: int) -> None:
        """The answer is out: take the next request, or close."""
        self.request = None
        self._task = None
        if self._gone:
            return
        if close or self.server.draining:
            self._close_gently()
            return
        self._skip = skip
        self.idle_since = self.loop.time()
        self.server.rests(self)
        self._come()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def idle(self) -> bool:
        """Whether nothing is asked on it."""
        return self.request is None and not self._in_line

    def close_if_idle(self) -> None:
        if self.idle and self._linger is None and self._transport is not None:
            self._linger = _LINGER_BYTES
            self._close(self._transport)

    def cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # --- heads ----------------------------------------------------------------------------------

    def _come(self) -> None:
        """Something may have come: read it now, or behind what the same agent has in line already."""
        if self._in_line:
            return
        if self.buffer and self.server.line.is_long(self._who):
            self._in_line = True
            self._cancel_deadline()
            self.server.line.join(self._who, self._come_up)
        else:
            self._next()

    def _come_up(self) -> None:
        """Its turn in the line has come."""
        self._in_line = False
        if self.request is None and self._linger is None:
            self._next(up=True)

    def _next(self, *, up: bool = False) -> None:
        if self._writable is not None:
            # It does not read its answers: no further request of it is begun until it does.
            if self._deadline is None:
                self._deadline = self.loop.call_later(self.server.limits.write_stall_s, self.abort)
            return
        if self._skip:
            skipped = min(self._skip, len(self.buffer))
            del self.buffer[:skipped]
            self._skip -= skipped
        if not self.buffer or self._skip:
            if self._eof:
                self._close_gently()  # half-closed: what it has sent is answered, and no more will come
            else:
                self._resume_reading()
            return
        end = self.buffer.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX)
        if end < 0:
            if len(self.buffer) >= HEAD_BYTES_MAX:
                self._reject(BadHead(431, "head_too_large", f"the head is over {HEAD_BYTES_MAX:,} bytes"))
            elif _LONE_LF.search(self.buffer):
                # It ends a line, and so maybe the head, for laxer readers; waiting for more would only hang.
                self._reject(BadHead(400, "malformed_request", "a line ends without a carriage return"))
            elif self._eof:
                self._close_gently()  # the rest of this head will not come
            else:
                if self._deadline is None:
                    self._deadline = self.loop.call_later(self.server.limits.head_s, self._head_too_slow)
                self._resume_reading()
            return
        self._cancel_deadline()
        raw = bytes(self.buffer[: end + 4])
        try:
            head = read_head(raw)
        except BadHead as bad:
            self._reject(bad)
            return
        del self.buffer[: end + 4]
        self.request = Request(self, head, raw)
        self._who = head.get(b"authorization") or head.get(b"x-api-key") or b""
        if up:
            self._begin()
        else:
            self.server.line.join(self._who, self._begin)

    def _begin(self) -> None:
        # Also of a client that has gone meanwhile: what it asked for was an attempt, and has its row.
        if self.request is not None:
            self._run(self.server.handle(self.request))

    def _reject(self, bad: BadHead) -> None:
        self._cancel_deadline()
        raw = bytes(self.buffer[:HEAD_BYTES_MAX])
        self.buffer.clear()
        self.request = Request(self, None, raw)
        self._run(self.server.reject(self.request, bad))

    def _run(self, work: Awaitable[None]) -> None:
        self._task = self.loop.create_task(self._guard(work))

    async def _guard(self, work: Awaitable[None]) -> None:
        request = self.request
        try:
            await work
        except ClientGone:
            self.abort()
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception:
            # A defect of ours. The traceback names code, never values: no locals are printed.
            log.exception("a request failed inside the daemon")
            if request is not None and not request.started:
                request.respond(
                    500,
                    [(b"Content-Type", b"application/json")],
                    b'{"error":{"type":"api_error","code":"internal","message":"internal: the daemon failed;'
                    b' see kbctl logs"}}',
                    close=True,
                )
            else:
                self.abort()

    def _head_too_slow(self) -> None:
        self._deadline = None
        if self.request is None:
            if self.buffer:
                self._reject(BadHead(400, "malformed_request", "the head came in too slowly"))
            else:
                self.abort()

    def _close_gently(self) -> None:
        """Close so that the client can read our answer before it learns that we don't read its rest."""
        transport = self._transport
        if transport is None:
            return
        self._linger = _LINGER_BYTES
        self.buffer.clear()
        self._resume_reading()
        if self._eof or not transport.can_write_eof():
            self._close(transport)
            return
        self._cancel_deadline()
        unsent = transport.get_write_buffer_size() > 0
        transport.write_eof()
        patience_s = self.server.limits.write_stall_s if unsent else _LINGER_S
        self._deadline = self.loop.call_later(patience_s, transport.abort)

    def _close(self, transport: asyncio.Transport) -> None:
        """Close once what was written is out, or when nobody reads it."""
        self._cancel_deadline()
        self._deadline = self.loop.call_later(self.server.limits.write_stall_s, transport.abort)
        transport.close()

    def _resume_reading(self) -> None:
        if not self._reading and self._transport is not None and not self._gone:
            self._reading = True
            self._transport.resume_reading()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server:
    """One listener's connections.

    Args:
        handle: answers a request whose head passed.
        reject: records and answers one whose head did not.
        limits: its bounds.
        admit: whether this peer may connect at all; None for everyone.
    """

    def __init__(
        self,
        handle: Handler,
        reject: Rejecter,
        limits: Limits,
        admit: Callable[[asyncio.BaseTransport], bool] | None = None,
    ) -> None:
        self.handle = handle
        self.reject = reject
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.draining = False
        self.line = Line(self.loop)
        self._admit = admit
        # A dictionary as an ordered set.
        self._connections: dict[Connection, None] = {}
        self._listeners: list[asyncio.Server] = []
        self._sweeper = self.loop.call_later(30, self._sweep)
        self._empty: asyncio.Future[None] | None = None
        self._hurried = False

    def protocol(self) -> Connection:
        return Connection(self)

    def serve(self, listener: asyncio.Server) -> None:
        """Own a listener created with ``protocol``; there may be several."""
        self._listeners.append(listener)

    def welcome(self, connection: Connection, transport: asyncio.Transport) -> bool:
        if self.draining or (self._admit is not None and not self._admit(transport)):
            transport.abort()
            return False
        if len(self._connections) >= self.limits.connections:
            self._make_room()
        if len(self._connections) >= self.limits.connections + self.limits.spare:
            transport.write(_FULL)
            transport.close()
            return False
        self._connections[connection] = None
        return True

    @property
    def overloaded(self) -> bool:
        """Whether more requests are under way at once than are meant to be."""
        return len(self._connections) > self.limits.connections

    def _make_room(self) -> None:
        """Close a connection on which nothing is asked: the one that has been idle for longest.

        They are kept by the time that they became idle, so the first one that sleeps is it.
        """
        for connection in islice(self._connections, _ROOM_TRIES):
            if connection.idle:
                connection.close_if_idle()
                connection.abort()
                self._connections.pop(connection, None)
                return
        # Those at the front are at work; they go to the back, so that each look sees others.
        for connection in list(islice(self._connections, _ROOM_TRIES)):
            self._connections[connection] = self._connections.pop(connection)

    def rests(self, connection: Connection) -> None:
        """Its request has ended: it is the youngest of the idle ones."""
        if connection in self._connections:
            self._connections[connection] = self._connections.pop(connection)

    def farewell(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if not self._connections and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    async def drain(self, patience_s: float, last_call: Callable[[], None] | None = None) -> None:
        """Take no more requests, let those under way finish, then cut what is left.

        Args:
            patience_s: how long they may take.
            last_call: what ends those that are left by itself; they then have a moment to say so.
        """
        self.draining = True
        self._sweeper.cancel()
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.close_if_idle()
        await self._emptied(patience_s)
        if self._connections and last_call is not None:
            last_call()
            await self._emptied(_LAST_CALL_S)
        for connection in list(self._connections):
            connection.cancel_task()
            connection.abort()

    async def _emptied(self, patience_s: float) -> None:
        if self._connections and not self._hurried:
            self._empty = self.loop.create_future()
            handle = self.loop.call_later(patience_s, _wake, self._empty)
            await self._empty
            handle.cancel()

    def hurry(self) -> None:
        """Wait for nothing that is under way."""
        self._hurried = True
        if self._empty is not None:
            _wake(self._empty)

    def _sweep(self) -> None:
        now = self.loop.time()
        for connection in list(self._connections):
            if now - connection.idle_since > self.limits.idle_s:
                connection.close_if_idle()
        self._sweeper = self.loop.call_later(30, self._sweep)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
