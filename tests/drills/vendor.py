"""An accounting vendor: it misbehaves as each request tells it to, and keeps its own book of what it did.

A process of its own, never killed by a drill, so that its memory is its book: ``python -m
tests.drills.vendor`` prints its port and serves until its standard input ends. It shares no code with the
daemon: its amounts are read by a pattern, its HTTP is bytes.

A request's idempotency key is ``HOW.NAME``: how to behave, and the name of the call. Like Stripe it moves
money once per idempotency key, and gives a repetition the first answer again. Of each key the book says:
``seen`` how often it came, ``moved`` cents, ``refused`` whether some answer was a definite refusal that was
written to its end.

``GET /_book`` is the book since it was asked for last; ``GET /_doors/HOW/SECONDS`` lets new connections
be ``reset`` or the port be ``shut`` for so long.
"""

import asyncio
import json
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import uvloop

_AMOUNT = re.compile(rb"(?:^|&)amount=([0-9]+)(?:&|$)")
_NAME = re.compile(rb"\r\nidempotency-key: *([0-9A-Za-z._-]+)\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_JSON = b"Content-Type: application/json\r\n"
_DONE = b'{"id":"pi_drill","object":"payment_intent","status":"succeeded"}'
_ERROR = b'{"error":{"type":"card_error","code":"card_declined","message":"declined"}}'
_DRIP_S = 0.004


def _answer(status: bytes, body: bytes = _DONE, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\n%b%bContent-Length: %d\r\n\r\n%b" % (status, _JSON, more, len(body), body)


_OK = _answer(b"200 OK")

Script = Callable[["_Talk"], None]


def _reset(talk: "_Talk") -> None:
    """RST, not FIN: what was written and not yet read by the other side is lost."""
    raw = talk.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    talk.transport.abort()


def _say(raw: bytes) -> Script:
    return lambda talk: talk.transport.write(raw)


def _say_and_close(raw: bytes) -> Script:
    def script(talk: "_Talk") -> None:
        talk.transport.write(raw)
        talk.transport.close()

    return script


def _say_and_reset(raw: bytes) -> Script:
    def script(talk: "_Talk") -> None:
        talk.transport.write(raw)
        talk.later(0.005, lambda: _reset(talk))

    return script


def _drip(raw: bytes, *, then: Script) -> Script:
    def script(talk: "_Talk") -> None:
        def next_piece(at: int) -> None:
            if at >= len(raw):
                then(talk)
                return
            talk.transport.write(raw[at : at + 3])
            talk.later(_DRIP_S, lambda: next_piece(at + 3))

        next_piece(0)

    return script


def _nothing(talk: "_Talk") -> None:
    """Silence."""


def _half_close(talk: "_Talk") -> None:
    talk.transport.write_eof()


def _slow(talk: "_Talk") -> None:
    talk.later(0.02, lambda: talk.transport.write(_OK))


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a request is treated: whether its money moves, what is said, whether that is a definite refusal."""

    says: Script
    moves: bool = True
    refuses: bool = False
    at_head: bool = False
    """Said before the body was read."""


BEHAVIOURS: dict[str, Behaviour] = {
    "ok": Behaviour(_say(_OK)),
    "slow": Behaviour(_slow),
    "close": Behaviour(_say_and_close(_answer(b"200 OK", more=b"Connection: close\r\n"))),
    "declined": Behaviour(_say(_answer(b"402 Payment Required", _ERROR)), moves=False, refuses=True),
    "limited": Behaviour(_say(_answer(b"429 Too Many Requests", _ERROR)), moves=False, refuses=True),
    "conflict": Behaviour(_say(_answer(b"409 Conflict", _ERROR))),
    "error-idle": Behaviour(_say(_answer(b"500 Internal Server Error", _ERROR)), moves=False),
    "error-moved": Behaviour(_say(_answer(b"500 Internal Server Error", _ERROR))),
    "reset-head": Behaviour(_reset, moves=False, at_head=True),
    "reset-idle": Behaviour(_reset, moves=False),
    "reset-moved": Behaviour(_reset),
    "reset-answer": Behaviour(_say_and_reset(_OK[:-30])),
    "drip": Behaviour(_drip(_OK, then=_nothing)),
    "drip-cut": Behaviour(_drip(_OK[:-20], then=_reset)),
    "stall": Behaviour(_say(_OK[:-20])),
    "silence": Behaviour(_nothing),
    "half-close": Behaviour(_half_close),
    "garbage": Behaviour(_say(b"\x16\x03\x01\x00\xff" + bytes(range(256)))),
    "truncated": Behaviour(_say_and_close(_OK[:-30])),
    "two-lengths": Behaviour(_say(_answer(b"200 OK", more=b"Content-Length: 3\r\n"))),
    "bad-chunk": Behaviour(
        _say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX\r\n0\r\n\r\n")
    ),
    "flood-100": Behaviour(_say(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20 + _OK)),
    "huge-head": Behaviour(_say(_answer(b"200 OK", more=b"X-Pad: %b\r\n" % (b"a" * 70_000)))),
    "switch": Behaviour(
        _say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
    ),
    "redirect": Behaviour(_say(_answer(b"302 Found", b"", b"Location: http://127.0.0.1:1/\r\n"))),
    "gzip": Behaviour(_say(_answer(b"200 OK", more=b"Content-Encoding: gzip\r\n"))),
    "not-json": Behaviour(_say(_answer(b"200 OK", b"<html>fine</html>"))),
    "two-answers": Behaviour(_say(_OK + _OK)),
    "early": Behaviour(_say(_OK), at_head=True),
}


class _Book:
    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Any]] = {}
        self.fresh: dict[str, dict[str, Any]] = {}
        self.doors = ("open", 0.0)

    def entry(self, name: str) -> dict[str, Any]:
        entry = self.entries.setdefault(name, {"seen": 0, "moved": 0, "refused": False})
        self.fresh[name] = entry
        return entry


class _Talk(asyncio.Protocol):
    """One connection."""

    def __init__(self, house: "_House") -> None:
        self._house = house
        self._buffer = bytearray()
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        if self._house.resets:
            _reset(self)

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        def then() -> None:
            if not self.transport.is_closing():
                what()

        self._house.loop.call_later(seconds, then)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = bytes(self._buffer).partition(b"\r\n\r\n")
        if not end:
            return
        head += b"\r\n"
        if head.startswith(b"GET /_"):
            self._buffer.clear()
            self.transport.write(_answer(b"200 OK", self._house.told(head.split(b" ")[1].decode())))
            return
        if head.startswith(b"GET /v1/events"):  # kbctl asks by itself: it moves nothing, and proves nothing
            self._buffer.clear()
            self.transport.write(_answer(b"200 OK", b'{"data": [], "has_more": false}'))
            return
        named = _NAME.search(head)
        name = named[1].decode() if named else "ok.nameless"
        entry = self._house.book.entry(name)
        if not self._begun:
            self._begun = True
            entry["seen"] += 1
        behaviour = BEHAVIOURS[name.partition(".")[0]]
        # The first time as told; a repetition is answered as Stripe would.
        again = entry["seen"] > 1
        length = _LENGTH.search(head)
        whole = len(body) >= (int(length[1]) if length else 0)
        if behaviour.at_head and not again:
            if behaviour.moves and not whole:
                return
        elif not whole:
            return
        self._buffer.clear()
        self._begun = False
        if again and entry["refused"]:
            self.transport.write(_answer(b"402 Payment Required", _ERROR, b"Idempotent-Replayed: true\r\n"))
            return
        amount = _AMOUNT.search(body)
        cents = int(amount[1]) if amount else 0
        if again:
            replayed = b"Idempotent-Replayed: true\r\n" if entry["moved"] else b""
            entry["moved"] = entry["moved"] or cents
            self.transport.write(_answer(b"200 OK", more=replayed))
            return
        if behaviour.moves:
            entry["moved"] = cents
        if behaviour.refuses:
            entry["refused"] = True
        behaviour.says(self)


class _House:
    """The port, and the book."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.book = _Book()
        self.resets = False
        self.port = 0
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await self.loop.create_server(
            lambda: _Talk(self), "127.0.0.1", self.port, backlog=1024, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def told(self, path: str) -> bytes:
        _, what, *rest = path.split("/")
        if what == "_doors":
            how, seconds = rest[0], float(rest[1])
            if how == "reset":
                self.resets = True
            elif self._server is not None:
                self._server.close()
                self._server = None
            self.loop.call_later(seconds, self._reopen)
            return b"{}"
        fresh, self.book.fresh = self.book.fresh, {}
        return json.dumps(fresh).encode()

    def _reopen(self) -> None:
        self.resets = False
        if self._server is None:
            self._opening = self.loop.create_task(self.open())


async def _serve() -> None:
    house = _House()
    await house.open()
    print(house.port, flush=True)  # noqa: T201 - read by whoever started us
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@dataclass(frozen=True, slots=True)
class AccountingVendor:
    """One that runs."""

    pid: int
    url: str

    def book(self) -> dict[str, dict[str, Any]]:
        """What came, by idempotency key, since this was asked last."""
        return dict(json.loads(self._get("/_book")))

    def shut(self, how: str, seconds: float) -> None:
        self._get(f"/_doors/{how}/{seconds}")

    def _get(self, path: str) -> bytes:
        until = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
                    return bytes(answer.read())
            except OSError:  # its doors are shut just now
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)


@contextmanager
def accounting_vendor() -> Iterator[AccountingVendor]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.drills.vendor"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield AccountingVendor(process.pid, f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.communicate(timeout=20)


if __name__ == "__main__":
    uvloop.run(_serve())
