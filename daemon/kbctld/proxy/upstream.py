"""The one way out: pooled HTTP/1.1 connections to the origins named in vendor files, nowhere else.

What must stay true: proxies, certificates and key logs named in the environment are ignored; TLS is
verified against one known set of roots; redirects are never followed; a request is written once and
never resent; a connection that misbehaved in any way is never used again. Every failure says whether a
byte of the request had left, because that decides about money.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import cast
from urllib.parse import urlsplit

import certifi
import httptools

_HEAD_BYTES_MAX = 64 * 1024
_FIELDS_MAX = 200
_INFORMATIONAL_MAX = 8
_BUFFER_HIGH = 256 * 1024


class Failure(StrEnum):
    """What went wrong on the way out."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    INVALID = "invalid"
    REVOKED = "revoked"
    """An operator cut it."""
    STOPPING = "stopping"
    """The daemon waits no longer."""


class UpstreamError(Exception):
    """No usable answer.

    Attributes:
        failure: what kind.
        sent: whether any byte of the request had been handed to the network.
        detail: one clause for people; never holds a secret.
    """

    def __init__(self, failure: Failure, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.failure = failure
        self.detail = detail
        self.sent = sent


@dataclass(frozen=True, slots=True)
class UpstreamLimits:
    """Bounds of the way out; seconds, counts."""

    connect_s: float = 5.0
    first_byte_s: float = 80.0
    silence_s: float = 60.0
    stream_silence_s: float = 300.0
    """Within a stream of events, whose writer may have to think."""
    idle_s: float = 20.0
    lookup_s: float = 5.0
    connections: int = 256


@dataclass(frozen=True, slots=True)
class Origin:
    """Where requests go.

    Attributes:
        host: name or address to connect to and to verify.
        port: TCP port.
        tls: whether the connection is encrypted; plain only towards a loopback mock.
        authority: what the Host header says.
        text: ``https://api.stripe.com``.
    """

    host: str
    port: int
    tls: bool
    authority: str
    text: str


def read_origin(text: str) -> Origin:
    """Parse an origin that has been checked elsewhere: scheme, host, optional port, nothing else."""
    parts = urlsplit(text)
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    host = parts.hostname or ""
    return Origin(host, port, tls, parts.netloc, text)


def verifying_context(ca_file: str | None = None) -> ssl.SSLContext:
    """TLS as it must be: verified names and chains, 1.2 or newer, nothing taken from the environment.

    ``ssl.create_default_context`` would honour SSL_CERT_FILE, SSL_CERT_DIR and SSLKEYLOGFILE.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=ca_file or certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context


@dataclass(slots=True)
class Answer:
    """The head of an answer.

    Attributes:
        status: HTTP status.
        fields: names in lower case, values as sent.
        length: bytes of the body; None where the framing tells its end.
    """

    status: int
    fields: list[tuple[bytes, bytes]]
    length: int | None

    def get(self, name: bytes) -> bytes | None:
        for key, value in self.fields:
            if key == name:
                return value
        return None


class Connection(asyncio.Protocol):
    """One connection to an origin; carries one request at a time."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._loop = pool.loop
        self._transport: asyncio.Transport | None = None
        self.idle_since = 0.0
        self.closed = False
        self._begin(head_only=False)
        self._busy = False

    def _begin(self, *, head_only: bool) -> None:
        self._busy = True
        self._head_only = head_only
        self._parser = httptools.HttpResponseParser(self)
        self._fields: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._field_bytes = 0
        self._informational = 0
        self._answer: Answer | None = None
        self._pieces: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._complete = False
        self._reusable = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._written = False
        self._stuffed: asyncio.Future[bool] | None = None

    # --- one request ----------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a request can be written to it; not once the vendor has begun to close."""
        return not self.closed and self._transport is not None and not self._transport.is_closing()

    def send(self, data: bytes, *, head_only: bool) -> None:
        """Write a whole request. From here on its bytes have left.

        Raises:
            UpstreamError: the connection is already gone; nothing was written.
        """
        if not self.ready or self._transport is None:
            raise UpstreamError(Failure.UNREACHABLE, "the connection was closed", sent=False)
        self._begin(head_only=head_only)
        self._written = True
        self._transport.write(data)

    async def send_more(self, piece: bytes) -> None:
        """Write a further piece of the body and wait while the vendor is slow to take it.

        Raises:
            UpstreamError: it answered before it had the whole request, closed, or takes nothing.
        """
        if self._error is not None:
            raise self._error
        if self._answer is not None or self._transport is None:
            self._reusable = False
            raise UpstreamError(Failure.INVALID, "it answered before it had the whole request", sent=True)
        self._transport.write(piece)
        if self._stuffed is not None:
            try:
                async with asyncio.timeout(self._pool.limits.silence_s):
                    await self._stuffed
            except TimeoutError:
                raise UpstreamError(Failure.TIMEOUT, "it stopped taking the request", sent=True) from None

    async def answer(self, first_byte_s: float) -> Answer:
        """The head of the answer.

        Raises:
            UpstreamError: silence, a closed connection, or bytes that are no answer.
        """
        until = self._loop.time() + first_byte_s
        while self._answer is None:
            if self._error is not None:
                raise self._error
            await self._wait(until, f"no answer came within {first_byte_s:g} s")
        return self._answer

    async def body(self, silence_s: float) -> AsyncIterator[bytes]:
        """The body, in pieces as they arrive.

        Raises:
            UpstreamError: it broke off, or nothing came for too long.
        """
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._buffered -= len(piece)
                if self._paused and self._buffered <= _BUFFER_HIGH // 2 and self._transport is not None:
                    self._paused = False
                    self._transport.resume_reading()
                yield piece
            if self._error is not None:
                raise self._error
            if self._complete:
                return
            await self._wait(self._loop.time() + silence_s, f"the answer stalled for {silence_s:g} s")

    async def whole(self, silence_s: float) -> bytes:
        """The body at once, of an answer that is short enough to be kept.

        Raises:
            UpstreamError: as ``body``.
        """
        if self._complete and self._error is None and len(self._pieces) == 1:
            self._buffered = 0
            return self._pieces.popleft()
        return b"".join([piece async for piece in self.body(silence_s)])

    async def _wait(self, until: float, what: str) -> None:
        self._waiter = self._loop.create_future()
        handle = self._loop.call_at(until, _fire, self._waiter)
        try:
            await self._waiter
        finally:
            handle.cancel()
            fired = self._waiter.done() and not self._waiter.cancelled() and self._waiter.result()
            self._waiter = None
        if fired:
            raise UpstreamError(Failure.TIMEOUT, what, sent=True)

    def release(self) -> None:
        """Give the connection back; it is kept only after a clean, complete answer."""
        clean = (
            self._complete and self._reusable and self._error is None and not self._pieces and not self.closed
        )
        self._busy = False
        self._pool.take_back(self, keep=clean)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def cut(self, failure: Failure, why: str) -> None:
        """End the request that is under way, at once; whoever waits for its answer is told why."""
        if not self._complete:
            self._fail(why, failure)
        self.close()
        self._wake()

    # --- from the event loop --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self._transport = transport
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if not self._busy or self._complete or self._error is not None:
            # Bytes that belong to no request: whoever sent them must not prepare our next answer.
            self._reusable = False
            self.close()
            return
        if self._answer is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("it switched protocols")
        except httptools.HttpParserError:
            self._fail("it sent something that is not HTTP")
        if self._answer is None and self._head_bytes > _HEAD_BYTES_MAX:
            self._fail("the head of its answer is too large")
        if self._head_only and self._answer is not None:
            self._complete = True
        self._wake()

    def pause_writing(self) -> None:
        self._stuffed = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._stuffed is not None:
            _fire(self._stuffed)
            self._stuffed = None

    def eof_received(self) -> None:
        # A body framed by the end of the connection can't be told from one that broke off.
        self._reusable = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._busy and not self._complete and self._error is None:
            if self._answer is None:
                self._error = UpstreamError(
                    Failure.UNREACHABLE, "it closed the connection before answering", sent=self._written
                )
            else:
                self._error = UpstreamError(Failure.INVALID, "its answer broke off", sent=self._written)
        self.resume_writing()
        self._wake()
        self._pool.lost(self)

    # --- from httptools -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._reusable = False
            self._fail("it sent a second answer")
        self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer is not None:
            self._fail("it sent trailers")
            return
        self._fields.append((name.lower(), value))
        self._field_bytes += len(name) + len(value)
        if len(self._fields) > _FIELDS_MAX or self._field_bytes > _HEAD_BYTES_MAX:
            self._fail("the head of its answer is too large")

    def on_headers_complete(self) -> None:
        if self._error is not None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._informational += 1
            if status == 101 or self._informational > _INFORMATIONAL_MAX:
                self._fail("it sent too many interim answers")
            return
        lengths = [value for name, value in self._fields if name == b"content-length"]
        codings = [value for name, value in self._fields if name == b"transfer-encoding"]
        if len(lengths) > 1 or (lengths and codings) or any(c.strip().lower() != b"chunked" for c in codings):
            self._fail("the length of its answer can be read in two ways")
            return
        bodyless = self._head_only or status in (204, 304)
        if not lengths and not codings and not bodyless:
            self._fail("it does not say how long its answer is")
            return
        # With some of the request unsent this answers what it has not read: the rest of it, which the agent
        # chose, might be taken for a request of its own.
        whole = self._transport is not None and self._transport.get_write_buffer_size() == 0
        self._reusable = whole and self._parser.should_keep_alive()
        length = int(lengths[0]) if lengths else (0 if bodyless else None)
        self._answer = Answer(status, self._fields, length)

    def on_body(self, body: bytes) -> None:
        if self._head_only:
            self._fail("it sent a body to a HEAD request")
            return
        self._pieces.append(body)
        self._buffered += len(body)
        if self._buffered > _BUFFER_HIGH and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._answer is not None:
            self._complete = True

    def _fail(self, detail: str, failure: Failure = Failure.INVALID) -> None:
        if self._error is None:
            self._error = UpstreamError(failure, detail, sent=self._written)
        self._reusable = False

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(False)
        if self._stuffed is not None and (self._answer is not None or self._error is not None):
            _fire(self._stuffed)  # whoever waits to send more need not


class Pool:
    """Keep-alive connections to one origin, newest first, bounded."""

    def __init__(self, origin: Origin, limits: UpstreamLimits, context: ssl.SSLContext | None) -> None:
        self.origin = origin
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self._context = context
        self._idle: list[Connection] = []
        self._connecting = 0
        self._open: set[Connection] = set()
        self._waiting: deque[asyncio.Future[bool]] = deque()

    async def connection(self) -> Connection:
        """A connection that is ready to be written to.

        Raises:
            UpstreamError: none could be had; nothing was sent.
        """
        until = self.loop.time() + self.limits.connect_s
        while True:
            connection = self._take_idle()
            if connection is not None:
                return connection
            if self._connecting + len(self._open) < self.limits.connections:
                return await self._connect(until - self.loop.time())
            await self._turn(until)

    def take_back(self, connection: Connection, *, keep: bool) -> None:
        if keep:
            connection.idle_since = self.loop.time()
            self._idle.append(connection)
        else:
            connection.close()
        self._next_turn()

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._next_turn()

    def close(self) -> None:
        for connection in list(self._open):
            connection.close()

    def _take_idle(self) -> Connection | None:
        oldest = self.loop.time() - self.limits.idle_s
        while self._idle:
            connection = self._idle.pop()
            if connection.ready and connection.idle_since >= oldest:
                return connection
            connection.close()
        return None

    async def _connect(self, patience_s: float) -> Connection:
        self._connecting += 1
        try:
            async with asyncio.timeout(max(patience_s, 0.001)):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self),
                    self.origin.host,
                    self.origin.port,
                    ssl=self._context if self.origin.tls else None,
                    server_hostname=self.origin.host if self.origin.tls else None,
                )
            return connection
        except TimeoutError:
            raise UpstreamError(
                Failure.UNREACHABLE, f"no connection within {self.limits.connect_s:g} s", sent=False
            ) from None
        except ssl.SSLCertVerificationError as error:
            raise UpstreamError(
                Failure.UNREACHABLE, f"its certificate is not valid: {error.verify_message}", sent=False
            ) from None
        except OSError as error:
            reason = error.strerror or error.__class__.__name__
            raise UpstreamError(Failure.UNREACHABLE, reason.lower(), sent=False) from None
        finally:
            self._connecting -= 1
            self._next_turn()

    async def _turn(self, until: float) -> None:
        waiter = self.loop.create_future()
        self._waiting.append(waiter)
        handle = self.loop.call_at(until, _fire, waiter)
        try:
            if await waiter:
                raise UpstreamError(
                    Failure.UNREACHABLE,
                    f"all {self.limits.connections} connections to it are busy",
                    sent=False,
                )
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._next_turn()  # it came too late for this one
            raise
        finally:
            handle.cancel()
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _next_turn(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(False)
                return


def _fire(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(True)
