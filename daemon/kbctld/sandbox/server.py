"""HTTP/1.1 for the pretend Stripe: loopback only, keep-alive, Content-Length and chunked bodies.

What must stay true: requests of one connection are answered in their order, each one whole; what cannot be
parsed is answered once, in Stripe's shape, and the connection ends; nothing a client sends grows
without a bound; `close` leaves no listener, connection, timer or file open.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections import deque
from http import HTTPStatus
from typing import cast

import httptools

from kbctld.sandbox.errors import StripeError
from kbctld.sandbox.stripe import Answer, Request, Sandbox

_HEAD_BYTES_MAX = 64 * 1024
_BODY_BYTES_MAX = 1024 * 1024
_FEED_BYTES = 16 * 1024  # the grain in which the head's limit is noticed
_LINGER_SECONDS = 1.0

_REASONS = {status.value: status.phrase for status in HTTPStatus}

# Two of these with different values mean two readings of one request.
_SINGLE = frozenset({"authorization", "content-type", "host", "idempotency-key", "stripe-account"})


class RunningSandbox:
    """A sandbox that listens at `url` until it is closed."""

    def __init__(self, sandbox: Sandbox, server: asyncio.Server, connections: _Connections) -> None:
        self.sandbox = sandbox
        host, port = server.sockets[0].getsockname()[:2]
        self.port: int = port
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._server = server
        self._connections = connections

    async def close(self) -> None:
        """End the listener, every connection and the book file. What was answered stays in the book."""
        self._server.close()
        self._connections.closing = True
        open_now = list(self._connections)
        for connection in open_now:
            connection.abort()
        await asyncio.gather(*(connection.closed for connection in open_now))
        await self._server.wait_closed()
        self.sandbox.close()


async def start(sandbox: Sandbox, host: str = "127.0.0.1", port: int = 0) -> RunningSandbox:
    """Serve on a loopback address; port 0 picks a free one."""
    # A pretend vendor holds pretend money, but its secret may be typed by a person: nobody else's business.
    if not ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback:
        raise ValueError(f"the sandbox listens on loopback only, not on {host}")
    loop = asyncio.get_running_loop()
    connections = _Connections()
    server = await loop.create_server(
        lambda: _Connection(sandbox, connections, loop), "127.0.0.1" if host == "localhost" else host, port
    )
    return RunningSandbox(sandbox, server, connections)


class _Connections(set["_Connection"]):
    """The open ones. One that was accepted just before the end is made after it: `closing` ends it then."""

    closing = False


class _Connection(asyncio.Protocol):
    def __init__(self, sandbox: Sandbox, connections: _Connections, loop: asyncio.AbstractEventLoop) -> None:
        self._sandbox = sandbox
        self._connections = connections
        self._loop = loop
        self.closed: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._problem: StripeError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._late: Answer | None = None
        self._full = False  # the peer does not read its answers
        self._ending = False  # nothing more will be answered
        self._deaf = False  # nothing more will be parsed
        self._head_bytes = 0
        self._in_head = True
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        if self._connections.closing:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._late is not None:
            self._sandbox.release(self._late)
        self._connections.discard(self)
        self._ending = True
        self._waiting.clear()
        if not self.closed.done():
            self.closed.set_result(None)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._ending or self._deaf:
            return  # read and dropped, so that the last answer is not lost to a reset
        for start_ in range(0, len(data), _FEED_BYTES):
            piece = data[start_ : start_ + _FEED_BYTES]
            if self._in_head:
                self._head_bytes += len(piece)
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade:
                # The request is answered as if it had not asked; what follows may be anything.
                self._deaf = True
            except httptools.HttpParserError:
                # A problem of ours, raised in a callback, comes back as a parser's error too.
                self._problem = self._problem or StripeError(400, "The request is not readable as HTTP/1.1.")
            if self._in_head and self._head_bytes > _HEAD_BYTES_MAX:
                self._problem = self._problem or _head_too_large()
            if self._problem is not None or self._deaf:
                self._deaf = True
                break
        self._advance()

    def pause_writing(self) -> None:
        self._full = True
        self._flow()

    def resume_writing(self) -> None:
        self._full = False
        self._advance()

    # httptools

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key in _SINGLE and key in self._headers:
            self._refuse(StripeError(400, f"The header {key} came twice."))
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_bytes > _HEAD_BYTES_MAX:
            self._refuse(_head_too_large())
        if "host" not in self._headers and self._parser.get_http_version() == "1.1":
            self._refuse(StripeError(400, "An HTTP/1.1 request names its host."))
        if int(self._headers.get("content-length", "0")) > _BODY_BYTES_MAX:
            self._refuse(StripeError(413, "The body is too large."))
        # Only while it is this request's turn: otherwise the line would come between two answers.
        if self._headers.get("expect", "").lower() == "100-continue" and not self._waiting and not self._late:
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > _BODY_BYTES_MAX:
            self._refuse(StripeError(413, "The body is too large."))
        self._body.append(body)

    def on_message_complete(self) -> None:
        path, _, query = self._url.partition(b"?")
        request = Request(
            self._parser.get_method().decode("latin-1"),
            path.decode("latin-1"),
            query,
            self._headers,
            b"".join(self._body),
        )
        self._waiting.append(
            (request, self._parser.should_keep_alive() and not self._parser.should_upgrade())
        )
        self._head_bytes, self._in_head = 0, True
        self._begin()

    def _refuse(self, problem: StripeError) -> None:
        self._problem = problem
        raise problem  # stops the parser

    # answers

    def _advance(self) -> None:
        while self._waiting and self._late is None and not self._full and not self._ending:
            request, keep_alive = self._waiting.popleft()
            answer = self._sandbox.answer(request)
            if answer.delay_seconds:
                self._late = answer
                self._timer = self._loop.call_later(
                    answer.delay_seconds, self._answer_late, answer, request.method, keep_alive
                )
            else:
                self._answer(answer, request.method, keep_alive)
        if self._problem is not None and not self._waiting and self._late is None and not self._ending:
            self._answer(Answer(self._problem.status, self._problem.body()), "GET", keep_alive=False)
        self._flow()

    def _answer_late(self, answer: Answer, method: str, keep_alive: bool) -> None:
        self._timer = self._late = None
        self._sandbox.release(answer)
        self._answer(answer, method, keep_alive)
        self._advance()

    def _answer(self, answer: Answer, method: str, keep_alive: bool) -> None:
        if answer.ending == "reset":
            self._reset()
            return
        if answer.ending == "garbage":
            self._send(b"\x00\xff this is no HTTP \r\n\r\n")
            self._finish()
            return
        head = _head(answer, keep_alive)
        body = b"" if method == "HEAD" else answer.body
        if answer.ending == "truncate":
            self._send(head + body[: len(body) // 2])
            self._finish()
            return
        self._send(head + body)
        if not keep_alive:
            self._finish()

    def _send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _finish(self) -> None:
        """Say that no more comes, then drop what still arrives for a moment.

        Closing on unread bytes makes the kernel send a reset, and the client might lose the answer.
        """
        self._ending = True
        self._waiting.clear()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        self._timer = self._loop.call_later(_LINGER_SECONDS, transport.abort)

    def _reset(self) -> None:
        """A reset, not a clean end: no linger makes the kernel send one."""
        self._ending = True
        self._waiting.clear()
        if self._transport is None:
            return
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _flow(self) -> None:
        """Read only while answers go out: what waits is then at most one read."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        # A late answer alone does not stop reading, or a client that gave up would go unnoticed.
        if (self._full or self._waiting) and not self._ending:
            transport.pause_reading()
        else:
            transport.resume_reading()


def _head_too_large() -> StripeError:
    return StripeError(431, "The head of the request is too large.")


def _head(answer: Answer, keep_alive: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
        "Content-Type: application/json",
        f"Content-Length: {len(answer.body)}",
        "Connection: keep-alive" if keep_alive else "Connection: close",
    ]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
