"""Very many streams of events at once: whether each passes byte by byte, what that takes, how soon it begins.

Vendor and agents are processes of their own: ``python -m tests.bench.streams vendor`` and ``... agents PORT
KEY STREAMS EVENTS``. Both keep a digest of each stream, the vendor of what it wrote and the agents of what
they read; only the event that tells the usage because the daemon asked for it is in neither.
"""

import asyncio
import hashlib
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httptools
import httpx
import uvloop

from tests.bench.report import Report, Watch, percentile
from tests.e2e.support import Kbctl, new_home

SECRETS = {"openai": "sk-proj-CanaryCanaryCanary0123456789", "anthropic": "sk-ant-CanaryCanary0123456789"}
KINDS = ("chat", "responses", "messages")
READ = 8
"""Input tokens of each; a stream's number and one more are written."""
NANO = {"chat": (150, 600), "responses": (150, 600), "messages": (1_000, 5_000)}
"""What a token costs, read and written: gpt-4o-mini, and claude-haiku-4-5."""

_ASKED = re.compile(rb"stream ([0-9]+) of ([0-9]+) events after ([0-9]+) ms")
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_ENDS = (b"\n", b"\r\n", b"\r")
_BLOCK = 64
_SIZES = (1, 2, 3, 7, 64, 500, 1_400, 4_096, 16_384)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_SAMPLE_S = 0.1


# --- what streams are made of -------------------------------------------------------------------------


def kind_of(number: int) -> str:
    return KINDS[number % len(KINDS)]


def _pool(chance: random.Random, kind: str) -> list[bytes]:
    """Events without a usage, from one byte to 64 KiB, some of several lines, some only comments."""
    texts = ["a", "é", "한국어", "😀", 'he said "usage": {1}', "[DONE", "data:", " "]
    pool = []
    for size in [1, 5, 20, 40, 40, 60, 100, 200, 400] * 12 + [4_000, 64 * 1024]:
        text = "".join(chance.choices(texts, k=1 + size // 3))[:size]
        said: dict[str, Any] = {
            "id": "c1",
            "choices": [{"index": 0, "delta": {"content": text}}],
            "usage": None,
        }
        if kind != "chat":
            said = {"type": "response.output_text.delta", "delta": text}
        if kind == "messages":
            said = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        head = b"" if kind == "chat" else b"event: %b\n" % said["type"].encode()
        pool.append(head + b"data: " + json.dumps(said, ensure_ascii=False).encode() + b"\n\n")
    pool += [b": still there\n\n", b"\n", b"data\n\n", b"id: 7\nretry: 5\n\n", b"data: x\n\n"]
    pool += [b'data: {"choices":\ndata: [{"delta":\ndata: {}}]}\n\n'] * 3
    return pool


def _first(kind: str) -> bytes:
    if kind != "messages":
        return b""
    usage = {"input_tokens": READ, "output_tokens": 1}
    return (
        b"event: message_start\ndata: %b\n\n"
        % json.dumps({"type": "message_start", "message": {"usage": usage}}).encode()
    )


def _last(kind: str, number: int) -> tuple[bytes, bytes]:
    """The event with the usage, and what follows it."""
    written = number + 1
    if kind == "chat":
        usage = {"prompt_tokens": READ, "completion_tokens": written}
        said = {"id": "c1", "choices": [], "usage": usage}
        return b"data: %b\n\n" % json.dumps(said).encode(), b"data: [DONE]\n\n"
    if kind == "responses":
        answer = {"id": "r1", "usage": {"input_tokens": READ, "output_tokens": written}}
        said = {"type": "response.completed", "response": answer}
        return b"event: response.completed\ndata: %b\n\n" % json.dumps(said).encode(), b""
    said = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": written},
    }
    end = b'event: message_stop\ndata: {"type": "message_stop"}\n\n'
    return b"event: message_delta\ndata: %b\n\n" % json.dumps(said).encode(), end


def spent_nano(number: int) -> int:
    """What a stream's usage costs."""
    read, written = NANO[kind_of(number)]
    return READ * read + (number + 1) * written


def asking(number: int, events: int, after_ms: int = 0) -> tuple[str, bytes]:
    """Path and body of the request for a stream."""
    kind = kind_of(number)
    text = f"stream {number} of {events} events after {after_ms} ms"
    said: dict[str, Any] = {"model": "gpt-4o-mini", "stream": True}
    if kind == "chat":
        said |= {"messages": [{"role": "user", "content": text}], "max_completion_tokens": 1_000}
        return "/openai/v1/chat/completions", json.dumps(said).encode()
    if kind == "responses":
        return "/openai/v1/responses", json.dumps(
            {**said, "input": text, "max_output_tokens": 1_000}
        ).encode()
    said |= {
        "model": "claude-haiku-4-5",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 1_000,
    }
    return "/anthropic/v1/messages", json.dumps(said).encode()


# --- the vendor ---------------------------------------------------------------------------------------


class _Vendor(asyncio.Protocol):
    """Writes streams in awkward pieces, and waits while nobody reads them."""

    def __init__(self, written: dict[int, str], pools: dict[tuple[str, bytes], list[bytes]]) -> None:
        self._written = written
        self._pools = pools
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def connection_lost(self, error: Exception | None) -> None:
        self._may_write.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or len(rest) < (int(length[1]) if length else 0):
            return
        self._buffer.clear()
        if head.startswith(b"GET /_written "):
            said = json.dumps(self._written).encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))
            return
        asked = _ASKED.search(rest)
        assert asked is not None
        hidden = b"include_usage" in rest
        self._task = self._loop.create_task(self._stream(int(asked[1]), int(asked[2]), int(asked[3]), hidden))

    async def _stream(self, number: int, events: int, after_ms: int, hidden: bool) -> None:
        chance = random.Random(number)
        kind, end = kind_of(number), _ENDS[number // len(KINDS) % len(_ENDS)]
        pool = self._pools.get((kind, end))
        if pool is None:
            made = _pool(random.Random(kind), kind)
            pool = self._pools[kind, end] = [event.replace(b"\n", end) for event in made]
        digest = hashlib.sha256()
        if after_ms:
            await asyncio.sleep(after_ms / 1000)
        first = _first(kind).replace(b"\n", end)
        usage, last = (part.replace(b"\n", end) for part in _last(kind, number))
        self._transport.write(_HEAD)
        for begin in range(0, events, _BLOCK):
            # Something of its own in each block: two streams that were mixed up would differ.
            mine = b": %d at %d" % (number, begin) + end + end
            events_here = chance.choices(pool, k=min(_BLOCK, events - begin) - 1)
            block = b"".join([first if begin == 0 else b"", mine, *events_here])
            digest.update(block)
            await self._write(block, chance)
        digest.update(last if hidden else usage + last)
        await self._write(usage + last, chance)
        self._written[number] = digest.hexdigest()
        self._transport.write(b"0\r\n\r\n")

    async def _write(self, data: bytes, chance: random.Random) -> None:
        """In chunks that end wherever they will, several of them in a write."""
        out, at = bytearray(), 0
        while at < len(data):
            piece = data[at : at + chance.choice(_SIZES)]
            out += b"%x\r\n%b\r\n" % (len(piece), piece)
            at += len(piece)
            if chance.random() < 0.2:
                await self._push(out)
        await self._push(out)

    async def _push(self, out: bytearray) -> None:
        await self._may_write.wait()
        self._transport.write(bytes(out))
        out.clear()
        await asyncio.sleep(0)


async def _serve() -> None:
    written: dict[int, str] = {}
    pools: dict[tuple[str, bytes], list[bytes]] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Vendor(written, pools), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - read by whoever started us
    await loop.run_in_executor(None, sys.stdin.read)


# --- the agents ---------------------------------------------------------------------------------------


class _Agent(asyncio.Protocol):
    """One connection; one stream at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._first_ms = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._whole.done():
            self._whole.set_result(False)

    def on_body(self, body: bytes) -> None:
        if self._first_ms == 0.0:
            self._first_ms = (time.perf_counter() - self._began) * 1000
        self._size += len(body)
        self._digest.update(body)

    def on_message_complete(self) -> None:
        self._whole.set_result(True)

    async def ask(self, port: int, key: str, path: str, body: bytes) -> dict[str, Any]:
        """Status, digest and size of the body, whether it was whole, and when its first byte came."""
        self._parser = httptools.HttpResponseParser(self)
        self._digest, self._size, self._first_ms = hashlib.sha256(), 0, 0.0
        self._whole: asyncio.Future[bool] = self._loop.create_future()
        self._began = time.perf_counter()
        self.transport.write(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        whole = await self._whole
        status = self._parser.get_status_code()
        return {
            "status": status,
            "digest": self._digest.hexdigest(),
            "size": self._size,
            "whole": whole,
            "first_ms": self._first_ms,
        }


async def _ask(port: int, key: str, number: int, events: int) -> dict[str, Any]:
    _, agent = await asyncio.get_running_loop().create_connection(_Agent, "127.0.0.1", port)
    try:
        return await agent.ask(port, key, *asking(number, events))
    finally:
        agent.transport.close()


async def _agents(port: int, key: str, streams: int, events: int) -> None:
    heard = await asyncio.gather(*(_ask(port, key, number, events) for number in range(streams)))
    print(json.dumps(heard), flush=True)  # noqa: T201 - read by whoever started us


# --- the drill ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Memory:
    """What the daemon's process takes, from time to time."""

    pid: int
    samples: list[float] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def now_mb(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    @contextmanager
    def watched(self) -> Iterator[None]:
        def watch() -> None:
            while not self._over.wait(_SAMPLE_S):
                self.samples.append(self.now_mb())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            self._over.set()
            watcher.join()
            self.samples.append(self.now_mb())

    def part(self, begin: float, end: float) -> float:
        """The most within a part of the time: 0 the first sample, 1 the last."""
        last = len(self.samples) - 1
        return max(self.samples[int(begin * last) : int(end * last) + 1])


@dataclass(frozen=True, slots=True)
class _Served:
    kbctl: Kbctl
    port: int
    vendor_port: int
    key: str


def drill(streams: int, watch: Watch, *, events: int = 10_000, firsts: int = 200) -> Report:
    """Send streams through a daemon, all at once, and compare what was written with what was read.

    Args:
        streams: at once, each on a connection of its own.
        watch: told of what takes long.
        events: of each stream.
        firsts: how often the first byte is timed, directly and through the daemon.
    """
    report = Report(f"{streams:,} streams of {events:,} events")
    with _serving() as served:
        memory = _Memory(served.kbctl.pid())
        idle_mb = memory.now_mb()
        tick = watch("streaming", 1)
        began = time.monotonic()
        with memory.watched():
            heard = _run("agents", served.port, served.key, streams, events)
        seconds = time.monotonic() - began
        tick(1)
        written = _written(served)
        _compare(report, heard, written)
        _check_money(report, served, streams)
        report.add("streaming", seconds, "s")
        report.add("events", streams * events / seconds, "events/s")
        report.add("bytes", sum(each["size"] for each in heard) / seconds / 1e6, "MB/s")
        report.add("memory, idle", idle_mb, "MB")
        # A short run is over before its streams have all begun.
        early = memory.part(0, 1 / 3) if events >= _LONG else memory.part(1 / 3, 2 / 3)
        most = (memory.part(0, 1) - idle_mb) / streams
        report.add("memory, early", early, "MB")
        report.add("memory, last third", memory.part(2 / 3, 1), "MB", bar=early + _FLAT_MB)
        report.add("memory, most for a stream", most, "MB", bar=_STREAM_MB)
        report.check(memory.part(2 / 3, 1) <= early + _FLAT_MB, f"memory grew by more than {_FLAT_MB} MB")
        report.check(most <= _STREAM_MB, f"a stream took more than {_STREAM_MB} MB")
        for after_ms in (0, 100):
            _report_firsts(report, served, firsts if after_ms == 0 else firsts // 10, after_ms)
    return report


_LONG = 5_000
_FLAT_MB = 16
"""What the allocator may take later; a byte kept of each byte that passes would be ten times that."""
_STREAM_MB = 1.5
"""Two buffers of 256 KiB, an event of 64 KiB, sockets' buffers, and room."""


def _compare(report: Report, heard: list[dict[str, Any]], written: dict[str, str]) -> None:
    for number, each in enumerate(heard):
        told = f"stream {number} ({kind_of(number)}) was answered {each['status']}"
        report.check(each["status"] == 200 and each["whole"], f"{told}, whole: {each['whole']}")
        report.check(each["digest"] == written.get(str(number)), f"stream {number} is not what was written")


def _check_money(report: Report, served: _Served, streams: int) -> None:
    rows = served.kbctl.json("audit", "--limit", "0")
    report.check(len(rows) == streams, f"{len(rows)} rows were written")
    report.check({row["outcome"] for row in rows} == {"posted"}, "a hold was not settled by its stream")
    shown = served.kbctl.json("show", served.key)
    expected = sum(map(spent_nano, range(streams)))
    report.check(round(shown["spent_usd"] * 1e9) == expected, f"{shown['spent_usd']} USD were spent")
    report.check(shown["held_usd"] == 0, f"{shown['held_usd']} USD are still held")


def time_firsts(ways: Mapping[str, tuple[int, str]], times: int, after_ms: int = 0) -> dict[str, list[float]]:
    """When the first byte of short streams came, in milliseconds, asked for in turns each way.

    Args:
        ways: by name, a port and the key that it wants.
        times: how often.
        after_ms: how long the vendor waits before it writes.

    Raises:
        RuntimeError: an answer other than 200.
    """
    return uvloop.run(_time_firsts(ways, times, after_ms))


async def _time_firsts(
    ways: Mapping[str, tuple[int, str]], times: int, after_ms: int
) -> dict[str, list[float]]:
    loop = asyncio.get_running_loop()
    agents = {
        way: (await loop.create_connection(_Agent, "127.0.0.1", port))[1] for way, (port, _) in ways.items()
    }
    took: dict[str, list[float]] = {way: [] for way in ways}
    path, body = asking(0, 3, after_ms)
    for _ in range(times):
        for way, (port, key) in ways.items():
            said = await agents[way].ask(port, key, path, body)
            if said["status"] != 200:
                raise RuntimeError(f"{way}, it was answered {said['status']}")
            took[way].append(said["first_ms"])
    for agent in agents.values():
        agent.transport.close()
    return took


def _report_firsts(report: Report, served: _Served, times: int, after_ms: int) -> None:
    """Time the first byte of short streams, in turns without the daemon and with it."""
    ways = {"direct": (served.vendor_port, served.key), "through": (served.port, served.key)}
    took = time_firsts(ways, times, after_ms)
    direct, through = (percentile(sorted(took[way]), 0.5) for way in ways)
    when = f"a first byte after {after_ms} ms"
    report.add(f"{when}: direct, median", direct)
    report.add(f"{when}: added by the daemon, median", through - direct)
    report.add(f"{when}: ratio", through / direct, "x", bar=1.1 if after_ms else None)


@contextmanager
def vendor() -> Iterator[int]:
    """One that writes streams, a process of its own; its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.streams", "vendor"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.communicate(timeout=20)


@contextmanager
def _serving() -> Iterator[_Served]:
    with vendor() as vendor_port, new_home() as kbctl:
        upstreams = [f"--upstream={name}=http://127.0.0.1:{vendor_port}" for name in SECRETS]
        kbctl("up", "--port", "0", *upstreams)
        for name, secret in SECRETS.items():
            kbctl("credential", "set", name, stdin=secret + "\n")
        key = kbctl("issue", "--tenant", "acme", "--cap", "1000").strip()
        port = int(kbctl.json("status")["proxy_url"].rpartition(":")[2])
        yield _Served(kbctl, port, vendor_port, key)


def _written(served: _Served) -> dict[str, str]:
    said = httpx.get(f"http://127.0.0.1:{served.vendor_port}/_written", trust_env=False)
    return dict(said.json())


def _run(*args: object) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.streams", *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=1800,
    )
    return list(json.loads(done.stdout))


if __name__ == "__main__":
    if sys.argv[1] == "vendor":
        uvloop.run(_serve())
    else:
        uvloop.run(_agents(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
