"""An agent that sends whatever bytes a test wants; what comes back is read by h11, which is nobody's here."""

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Self

import h11

PATIENCE_S = 10.0


@dataclass
class Reply:
    """An answer as a strict client reads it.

    Attributes:
        status: 0 where the connection ended without one.
        whole: it ended as its head had said.
        interim: the 1xx that came before it.
        reset: the connection was reset before its end.
    """

    status: int = 0
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    whole: bool = False
    interim: list[int] = field(default_factory=list)
    reset: bool = False

    def get(self, name: bytes) -> bytes | None:
        """The only value of a field, or None."""
        values = [value for key, value in self.fields if key == name]
        assert len(values) < 2, values
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The machine code of a refusal; empty for anything else."""
        if b'"kbctl"' not in self.body and b'"internal"' not in self.body:
            return ""
        error = self.json["error"]
        assert error["message"].startswith(f"{error['code']}: ")
        return str(error["code"])


class Agent:
    """One connection to the daemon."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._left = b""

    @classmethod
    async def connect(cls, port: int, *, limit: int = 2**16) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=limit))

    def say(self, data: bytes) -> None:
        """Hand bytes to the loop, in whatever pieces it will."""
        self.writer.write(data)

    async def send(self, data: bytes, step: int | None = None) -> None:
        """Send, in pieces of ``step`` bytes that the loop does not join; a hang-up is no error."""
        for start in range(0, len(data), step or len(data) or 1):
            if self.writer.is_closing():
                return
            self.say(data[start : start + (step or len(data))])
            try:
                await self.writer.drain()
                if step:
                    await asyncio.sleep(0)
            except ConnectionError:
                return

    def half_close(self) -> None:
        self.writer.write_eof()

    async def reply(self, method: str = "POST", patience_s: float = PATIENCE_S) -> Reply:
        """The next answer."""
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
        parser.send(h11.EndOfMessage())
        reply = Reply()
        parser.receive_data(self._left) if self._left else None
        pieces = []
        async with asyncio.timeout(patience_s):
            while True:
                try:
                    event = parser.next_event()
                except h11.RemoteProtocolError:
                    if self.reader.at_eof() or reply.reset:
                        break
                    raise
                if event is h11.NEED_DATA:
                    try:
                        parser.receive_data(await self.reader.read(65536))
                    except ConnectionError:
                        reply.reset = True
                        break
                elif isinstance(event, h11.InformationalResponse):
                    reply.interim.append(event.status_code)
                elif isinstance(event, h11.Response):
                    reply.status, reply.fields = event.status_code, list(event.headers)
                elif isinstance(event, h11.Data):
                    pieces.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    reply.whole = True
                    break
                else:
                    break
        reply.body = b"".join(pieces)
        self._left = parser.trailing_data[0]
        return reply

    async def rest(self, patience_s: float = PATIENCE_S) -> bytes:
        """Everything until the daemon closes."""
        pieces = [self._left]
        self._left = b""
        async with asyncio.timeout(patience_s):
            try:
                while piece := await self.reader.read(65536):
                    pieces.append(piece)
            except ConnectionError:
                pass
        return b"".join(pieces)

    def close(self) -> None:
        self.writer.transport.abort()

    def reset(self) -> None:
        """RST, not FIN: a half-closed agent still gets its answer, one that is gone does not."""
        held = self.writer.get_extra_info("socket")
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()
