"""A vendor on a raw socket: it records every byte, and a script decides about every byte that it answers."""

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

Script: TypeAlias = Callable[["Line"], Awaitable[None]]


def answer(body: bytes = b"{}", status: int = 200, *more: bytes) -> bytes:
    """A plain answer of the vendor; ``more`` are whole header lines without their ends."""
    lines = [b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % len(body), *more]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Arrived:
    """One request as the vendor read it.

    Attributes:
        line: number of its connection.
        raw: the bytes of its head.
    """

    line: int
    method: str
    target: str
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    raw: bytes

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]


class Line:
    """One connection, for a script."""

    def __init__(self, vendor: "Vendor", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.vendor = vendor
        self.reader = reader
        self.writer = writer
        vendor.lines += 1
        self.no = vendor.lines

    async def head(self) -> tuple[bytes, str, str, tuple[tuple[bytes, bytes], ...], int]:
        """Read a head and nothing behind it; anything that is not plain HTTP/1.1 fails the test."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].split(b"\r\n")
        method, target, version = first.decode("ascii").split(" ")
        assert version == "HTTP/1.1"
        fields = []
        for line in lines:
            name, colon, value = line.partition(b": ")
            assert colon, line
            assert name.strip(b" \t") == name, line
            fields.append((name.lower(), value))
        assert not [name for name, _ in fields if name in (b"transfer-encoding", b"trailer", b"expect")]
        lengths = [value for name, value in fields if name == b"content-length"]
        assert len(lengths) < 2
        return raw, method, target, tuple(fields), int(lengths[0]) if lengths else 0

    async def request(self) -> Arrived:
        """Read and record the next request."""
        raw, method, target, fields, length = await self.head()
        body = await self.reader.readexactly(length)
        arrived = Arrived(self.no, method, target, fields, body, raw)
        self.vendor.arrived.append(arrived)
        return arrived

    async def say(self, data: bytes) -> None:
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def hear_out(self) -> bytes:
        """Everything until the daemon hangs up."""
        return await self.reader.read()

    def stop_reading(self) -> None:
        transport = self.writer.transport
        assert hasattr(transport, "pause_reading")
        transport.pause_reading()

    def half_close(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        """RST, not FIN."""
        held = self.writer.get_extra_info("socket")
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def polite(line: Line) -> None:
    """Answer every request: what stands in ``Vendor.answers``, then a payment intent."""
    while True:
        await line.request()
        answers = line.vendor.answers
        await line.say(answers.popleft() if answers else line.vendor.usual())


class Vendor:
    """What it heard, and what it does."""

    def __init__(self) -> None:
        self.script: Script = polite
        self.answers: deque[bytes] = deque()
        self.arrived: list[Arrived] = []
        self.lines = 0
        self.port = 0
        self.failures: list[Exception] = []
        self._given = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def usual(self) -> bytes:
        self._given += 1
        return answer(b'{"id":"pi_%d","amount":100,"currency":"usd"}' % self._given)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.script(Line(self, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the daemon hung up
        except asyncio.CancelledError:
            pass  # the test is over
        except Exception as error:  # noqa: BLE001 - told at the end, where it fails the test
            self.failures.append(error)
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def hang_up(self) -> None:
        """End every script."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


@asynccontextmanager
async def vendor_on_loopback(context: ssl.SSLContext | None = None) -> AsyncIterator[Vendor]:
    """A vendor that listens; a script that failed fails the test at the end."""
    vendor = Vendor()
    server = await asyncio.start_server(vendor.take, "127.0.0.1", 0, ssl=context, limit=2**22)
    vendor.port = server.sockets[0].getsockname()[1]
    try:
        yield vendor
    finally:
        server.close()
        await vendor.hang_up()
        await server.wait_closed()
    assert not vendor.failures, vendor.failures
