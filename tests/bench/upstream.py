"""A vendor that answers every request alike, and remembers which customers it was asked about.

A process of its own: ``python -m tests.bench.upstream MILLISECONDS`` prints its port and serves until its
standard input ends. ``GET /_heard`` is what it remembers.
"""

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import uvloop

_ASKED = re.compile(rb"customer=(cus_[0-9a-z]+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_BODY = b'{"id":"pi_1","object":"payment_intent"}'
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


class _Vendor(asyncio.Protocol):
    def __init__(self, delay_s: float, heard: Counter[str]) -> None:
        self._delay_s = delay_s
        self._heard = heard
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or len(rest) < (int(length[1]) if length else 0):
            return
        self._buffer.clear()
        if head.startswith(b"GET /_heard "):
            self._answer(json.dumps(self._heard).encode())
            return
        asked = _ASKED.search(rest)
        self._heard[asked[1].decode() if asked else ""] += 1
        if self._delay_s:
            self._loop.call_later(self._delay_s, self._answer, _BODY)
        else:
            self._answer(_BODY)

    def _answer(self, body: bytes) -> None:
        self._transport.write(_ANSWER % (len(body), body))


async def _serve(delay_s: float) -> None:
    heard: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Vendor(delay_s, heard), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - read by whoever started us
    await loop.run_in_executor(None, sys.stdin.read)


@dataclass(frozen=True, slots=True)
class Upstream:
    """One that runs."""

    url: str

    def heard(self) -> dict[str, int]:
        """How often it was asked about each customer."""
        with urllib.request.urlopen(f"{self.url}/_heard") as answer:
            return dict(json.load(answer))


@contextmanager
def fixed_answer(delay_ms: int) -> Iterator[Upstream]:
    """One that answers after that time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.upstream", str(delay_ms)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield Upstream(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.communicate(timeout=20)


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]) / 1000))
