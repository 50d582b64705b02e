"""The socket of the daemon without an HTTP library: an answer is whole, or an error."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final

import pytest

from kbctl import Client, KbctlError, calls, wire
from kbctl.errors import Exit
from kbctl.paths import Home
from tests.cli.support import PretendDaemon, status

BODY: Final = wire.encode(status())
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BODY)
WHOLE: Final = HEAD + BODY


@contextmanager
def answering(home: Home, *connections: Callable[[socket.socket], None]) -> Iterator[None]:
    """A daemon that does as it is told, with one connection after the other."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(home.socket))
        listening.listen()
        listening.settimeout(5)

        def serve() -> None:
            for treat in connections:
                connection, _ = listening.accept()
                with connection:
                    connection.settimeout(5)
                    treat(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def saying(*pieces: bytes) -> Callable[[socket.socket], None]:
    """Read a request, write this, hang up."""

    def treat(connection: socket.socket) -> None:
        connection.recv(64 * 1024)
        with suppress(BrokenPipeError, ConnectionResetError):  # the client may have had enough
            for piece in pieces:
                connection.sendall(piece)

    return treat


def test_in_pieces(home: Home) -> None:
    """Each byte by itself, and as chunks."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
        len(BODY),
        BODY,
    )
    with answering(home, saying(*(bytes([byte]) for byte in WHOLE)), saying(chunked)):
        assert Client(home).status() == status()
        assert Client(home).status() == status()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        HEAD[:20],
        HEAD,
        WHOLE[:-1],
        b"HTTP/1.1 200 OK\r\n\r\n" + BODY,  # ended by nothing but the end: it could be cut anywhere
        b"-ERR unknown command\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        WHOLE + WHOLE,  # one request has one answer
    ],
)
def test_an_answer_is_whole_or_an_error(home: Home, said: bytes) -> None:
    """Part of one never passes for all of it."""
    with answering(home, saying(said)), pytest.raises(KbctlError) as raised:
        Client(home).status()

    assert (raised.value.message, raised.value.exit_status) == (
        "the daemon ended before it had answered",
        Exit.UNREACHABLE,
    )


@pytest.mark.parametrize("said", [b"5\r\nabcde\r\n", b"5\r\nabc", b"5\r\nabcde\r\nnonsense\r\n"])
def test_a_stream_that_breaks_off(home: Home, said: bytes) -> None:
    """What is given ends with an error, never as if it were all."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

    with answering(home, saying(head, said)), pytest.raises(KbctlError, match="broke off"):
        list(Client(home).export_audit())


def test_a_stream_that_is_left(home: Home) -> None:
    """Its connection holds the rest of it, so it is never asked anything else."""
    row = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
    with answering(home, saying(row, b"0\r\n\r\n"), saying(WHOLE)), Client(home, timeout=5) as client:
        pieces = client.export_audit()
        assert next(iter(pieces)).startswith(b"abc")
        pieces.close()  # type: ignore[attr-defined]  # a generator, as every Iterator here

        assert client.status() == status()


def test_a_refused_stream(home: Home, daemon: PretendDaemon) -> None:
    """The refusal itself, not its bytes."""
    daemon.on("GET /audit/export", b'{"error":{"code":"x","message":"no","remedy":"y"}}', 409)

    with pytest.raises(KbctlError, match="no") as raised:
        list(Client(home).export_audit())

    assert raised.value.exit_status is Exit.REFUSED


@pytest.mark.parametrize("surplus", [b"", b"HTTP/1.1 500 No\r\n\r\n"])
def test_a_kept_connection_that_ended(home: Home, surplus: bytes) -> None:
    """A restart of the daemon between two calls, or bytes that nobody asked for: a new connection."""
    started, ended = threading.Event(), threading.Event()

    def treat(connection: socket.socket) -> None:
        saying(WHOLE)(connection)
        started.wait(5)
        if surplus:
            connection.sendall(surplus)
        else:
            connection.shutdown(socket.SHUT_WR)
        ended.set()
        with suppress(ConnectionResetError):  # it was closed with bytes left to read
            connection.recv(1)

    with answering(home, treat, saying(WHOLE)), Client(home, timeout=5) as client:
        client.status()
        started.set()
        ended.wait(5)
        assert client.status() == status()


def test_a_request_that_nobody_reads(home: Home) -> None:
    """A broken pipe of the socket: to the command line it would be one of its own stdout."""
    refusal = b'{"error":{"code":"body_too_large","message":"too much","remedy":"less"}}'

    def treat(connection: socket.socket) -> None:
        connection.recv(10)
        head = b"HTTP/1.1 413 No\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(refusal)
        connection.sendall(head + refusal)

    with answering(home, treat), pytest.raises(KbctlError) as raised:
        Client(home).sql("x" * 1_000_000)

    assert raised.value.code == "body_too_large"


def test_a_daemon_that_says_nothing(home: Home) -> None:
    """There is an end to waiting, and it says so."""

    def treat(connection: socket.socket) -> None:
        while connection.recv(64 * 1024):  # until the client has had enough
            pass

    with answering(home, treat), pytest.raises(KbctlError, match="did not answer in time") as raised:
        Client(home, timeout=0.1).status()

    assert raised.value.exit_status is Exit.UNREACHABLE


def test_threads_share_a_client(home: Home, daemon: PretendDaemon) -> None:
    """Each answer goes to whoever asked for it."""
    names = [f"tenant{at}" for at in range(40)]
    for name in names:
        daemon.on(f"GET /tenants/{name}", wire.encode(status(version=name)))

    with Client(home) as client, ThreadPoolExecutor(8) as crowd:
        answers = list(crowd.map(lambda name: client._over.ask(calls.tenant(name)).content, names))

    assert [wire.decode(answer, wire.Status).version for answer in answers] == names
