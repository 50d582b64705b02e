"""One HTTP/1.1 exchange at a time with the daemon of this machine, over its UNIX socket.

What must stay true: an answer is whole, or an error; a connection that could hold anything of another answer
is never used again; and no OSError of the socket gets out, because to the command line a broken pipe is one
of its own stdout.

The command line comes through here, and so does every blocking ``Client`` of a home: importing httpx takes
longer than the rest of ``kbctl keys`` together. What goes over TCP or TLS is httpx's, in :mod:`kbctl.remote`.
"""

import socket
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode

import httptools

from kbctl import __version__, calls, wire
from kbctl.calls import Call

_READ_BYTES: Final = 64 * 1024


class _EndedError(Exception):
    """The connection ended, or what came over it is no answer."""


@dataclass(slots=True)
class Received:
    """An answer, whole or as far as it has come; the parser of httptools fills it."""

    status_code: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    again: bool = False
    """Whether the connection may be asked something else afterwards."""
    complete: bool = False
    parser: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)

    @property
    def content(self) -> bytes:
        """The body so far."""
        return b"".join(self.pieces)

    def on_message_begin(self) -> None:
        if self.complete:  # there was one request: what comes behind its answer is nobody's
            self.again = False
            raise _EndedError

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status_code = self.parser.get_status_code()
        self.again = self.parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        self.complete = True


class Local:
    """The daemon at a socket. Threads may share one.

    Args:
        path: the socket; who may own it is checked by the caller.
        timeout: seconds to wait for it to take or give the next bytes.
        keep: whether a connection is kept for the next call.
    """

    def __init__(self, path: str, timeout: float, *, keep: bool) -> None:
        self._path = path
        self._timeout = timeout
        self._keep = keep
        self._idle: list[socket.socket] = []

    def close(self) -> None:
        """Give the connections back."""
        while (connection := self._kept()) is not None:
            connection.close()

    def ask(self, call: Call[Any]) -> Received:
        """The whole answer; whether it is a refusal has not been looked at.

        Raises:
            KbctlError: there was none.
        """
        with closing(self._exchange(call)) as steps:
            try:
                for answer in steps:
                    if answer.complete:
                        return answer
            except _EndedError:
                pass
        raise calls.unreachable(self._path, None)

    def pieces(self, call: Call[Any]) -> Iterator[bytes]:
        """The body of an answer that is none of a refusal, each piece as it comes.

        Raises:
            KbctlError: it is a refusal, or it broke off.
        """
        with closing(self._exchange(call)) as steps:
            try:
                for answer in steps:
                    if calls.is_success(answer):
                        calls.check_answer(answer, call)
                        while answer.pieces:
                            yield answer.pieces.pop(0)
                    elif answer.complete:
                        calls.check_answer(answer, call)
            except _EndedError:
                raise calls.cut_off() from None

    def _exchange(self, call: Call[Any]) -> Generator[Received, None, None]:
        """Send, and yield the answer each time that more of it has come."""
        connection = self._connection()
        answer = Received()
        try:
            try:
                connection.sendall(_request(call))
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may have answered before it had read all
            while not answer.complete:
                received = connection.recv(_READ_BYTES)
                if not received:
                    raise _EndedError
                answer.parser.feed_data(received)
                if answer.status_code:
                    yield answer
        except httptools.HttpParserError:
            raise _EndedError from None
        except TimeoutError:
            raise calls.too_late() from None
        except OSError as error:
            raise calls.unreachable(self._path, error) from None
        finally:
            if self._keep and answer.again and answer.complete:
                self._idle.append(connection)
            else:
                connection.close()

    def _kept(self) -> socket.socket | None:
        try:
            return self._idle.pop()
        except IndexError:  # asked for first and told afterwards: another thread may take the last one
            return None

    def _connection(self) -> socket.socket:
        while (kept := self._kept()) is not None:
            if _is_quiet(kept):
                return kept
            kept.close()
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(self._timeout)
            connection.connect(self._path)
        except PermissionError as error:
            connection.close()
            raise calls.unreachable(self._path, error) from None
        except OSError:
            connection.close()
            raise calls.not_running() from None
        return connection


def _is_quiet(connection: socket.socket) -> bool:
    """Whether nothing came since the last answer: not the end, and no bytes either."""
    timeout = connection.gettimeout()
    try:
        connection.setblocking(False)
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        connection.settimeout(timeout)
        return True
    except OSError:
        pass
    return False


def _request(call: Call[Any]) -> bytes:
    target = f"{call.path}?{urlencode(call.query, quote_via=quote)}" if call.query else call.path
    lines = [f"{call.method} {target} HTTP/1.1", "host: localhost", f"user-agent: kbctl/{__version__}"]
    body = b""
    if call.body is not None:
        body = wire.encode(call.body)
        lines.append("content-type: application/json")
    if call.method in ("POST", "PUT"):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "\r\n"]).encode("ascii") + body
