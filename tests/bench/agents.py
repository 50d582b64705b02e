"""Agents that cost next to nothing, so that what is measured is the daemon.

Load and bursts are processes of their own: ``python -m tests.bench.agents load|burst ...``. They begin at a
line on their standard input, and say how it went in one line of JSON.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop

from tests.bench.stock import vault_key

_NO_ANSWER = 0


def charge(port: int, key: str, customer: str) -> bytes:
    """A request for one cent."""
    body = f"amount=1&currency=usd&customer={customer}"
    return (
        f"POST /v1/payment_intents HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


class Agent(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if end and len(rest) >= int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            self._buffer = b""
            self._say(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        self._say(_NO_ANSWER)

    def _say(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    async def ask(self, request: bytes) -> int:
        """The status of the answer; 0 where there was none."""
        self._answer = self._loop.create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()


async def connect(port: int) -> Agent:
    return (await asyncio.get_running_loop().create_connection(Agent, "127.0.0.1", port))[1]


@dataclass(slots=True)
class Probe:
    """Calls one after the other, on a few connections, and how long each took.

    Attributes:
        took: ``(when it began, milliseconds)`` of each.
    """

    port: int
    numbers: range
    took: list[tuple[float, float]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    pause_s: float = 0.0
    """Between two calls of a connection."""
    over: bool = False

    async def run(self, connections: int) -> None:
        """Until ``over``."""
        await asyncio.gather(*(self._talk(turn, connections) for turn in range(connections)))

    async def _talk(self, turn: int, step: int) -> None:
        agent = await connect(self.port)
        while not self.over:
            number = self.numbers[turn % len(self.numbers)]
            turn += step
            request = charge(self.port, vault_key(number), "cus_probe")
            began = time.monotonic()
            status = await agent.ask(request)
            self.took.append((began, (time.monotonic() - began) * 1000))
            self.statuses[status] += 1
            if status == _NO_ANSWER:
                return
            await asyncio.sleep(self.pause_s)
        agent.close()


@dataclass(slots=True)
class Helper:
    """A process of agents."""

    process: "subprocess.Popen[str]"

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """What it says next."""
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))


@contextmanager
def helper(*args: object) -> Iterator[Helper]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.agents", *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        made = Helper(process)
        made.hear()  # that it is there
        yield made
    finally:
        process.communicate(timeout=30)


async def _load(port: int, connections: int, first: int, last: int) -> None:
    """Keys of a range in turn, from one line on standard input to the next."""
    await _line()
    probe = Probe(port, range(first, last + 1))
    began = time.monotonic()
    working = asyncio.ensure_future(probe.run(connections))
    await _line()
    probe.over = True
    await working
    took = [ms for _, ms in probe.took]
    _say(statuses=probe.statuses, seconds=time.monotonic() - began, took=took)


async def _burst(port: int, requests: int, number: int) -> None:
    """All requests of one key at once, each on a connection of its own; again with every line."""
    request = charge(port, vault_key(number), "cus_burst")
    while await _line():
        began = time.monotonic()
        agents = await asyncio.gather(*(connect(port) for _ in range(requests)))
        statuses = Counter(await asyncio.gather(*(agent.ask(request) for agent in agents)))
        ended = time.monotonic()
        for agent in agents:
            agent.close()
        _say(statuses=statuses, began=began, ended=ended)


async def _line() -> str:
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201 - read by whoever started us


if __name__ == "__main__":
    _say(ready=True)
    numbers = [int(text) for text in sys.argv[2:]]
    uvloop.run(_load(*numbers) if sys.argv[1] == "load" else _burst(*numbers))
