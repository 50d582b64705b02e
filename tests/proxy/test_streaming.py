"""Bodies in many pieces: unchanged, unbuffered, bounded by the slower side, settled by the vendor."""

import asyncio
import hashlib
import random
from pathlib import Path

import pytest

from kbctld.http1.server import Limits
from kbctld.proxy.upstream import UpstreamLimits
from tests.support.agent import Agent
from tests.support.loop import run
from tests.support.vendor import Line, answer, polite
from tests.support.world import World, open_world

MIB = 1024 * 1024
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"0\r\n\r\n"


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def uncapped(world: World) -> str:
    """A key whose large bodies stream by: nothing in them decides."""
    _, key = await world.issue(allow=("POST /v1/uploads",), daily_cap_nano=None)
    return key


def upload(world: World, key: str, body: bytes) -> bytes:
    raw = world.request("POST", "/stripe/v1/uploads", body=body, key=key)
    return raw.replace(b"application/x-www-form-urlencoded", b"application/octet-stream")


# --- unchanged -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 12 * MIB + 3])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_answers_arrive_byte_for_byte(tmp_path: Path, size: int, framing: str) -> None:
    body = noise(size)
    pieces = [body[at : at + 99_991] for at in range(0, size, 99_991)]
    chunks = CHUNKED + b"".join(map(chunk, pieces)) + DONE

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.answers.append(answer(body) if framing == "length" else chunks)
            reply = await world.ask()
            assert (reply.status, reply.whole) == (200, True)
            assert reply.body == body
            assert (await world.last())["outcome"] == "posted"
            assert (await world.ask()).status == 200
            assert world.vendor.lines == 1

    run(main())


@pytest.mark.parametrize("size", [65_536, 65_537, 9 * MIB + 3])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_uploads_arrive_byte_for_byte(tmp_path: Path, size: int, framing: str) -> None:
    body = noise(size)

    async def main() -> None:
        async with open_world(tmp_path) as world:
            raw = upload(world, await uncapped(world), body)
            if framing == "chunks":
                raw = raw[: -len(body)].replace(b"Content-Length: %d" % size, b"Transfer-Encoding: chunked")
                raw += b"".join(chunk(body[at : at + 70_001]) for at in range(0, size, 70_001)) + DONE
            assert (await world.ask(raw)).status == 200
            assert world.heard.body == body
            assert world.heard.all(b"content-length") == [b"%d" % size]
            await world.check_oracle()

    run(main())


def test_a_large_body_that_decides_is_read_and_arrives_byte_for_byte(tmp_path: Path) -> None:
    body = b"amount=100&currency=usd&description=" + b"x" * (9 * MIB)

    async def main() -> None:
        async with open_world(tmp_path) as world:
            assert (await world.ask(world.request(body=body))).status == 200
            assert world.heard.body == body
            assert world.posted_cents == 100

    run(main())


@pytest.mark.parametrize(("size", "status"), [(100_000, 200), (100_001, 413)])
@pytest.mark.parametrize("streams", [True, False])
def test_a_body_that_is_too_large_is_refused_before_anything_leaves(
    tmp_path: Path, size: int, status: int, streams: bool
) -> None:
    async def main() -> None:
        async with open_world(tmp_path, limits=Limits(body_bytes=100_000)) as world:
            if streams:
                raw = upload(world, await uncapped(world), b"x" * size)
            else:
                raw = world.request(body=b"amount=100&currency=usd&a=".ljust(size, b"x"))
            reply = await world.ask(raw)
            assert (reply.status, reply.code) == (status, "body_too_large" if status == 413 else "")
            assert world.vendor.lines == (1 if status == 200 else 0)
            assert (await world.last())["outcome"] == ("posted" if status == 200 else "refused")
            await world.check_books()

    run(main())


def test_100_continue_is_answered_here_and_only_once_the_call_may_leave(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            raw = world.request("POST", "/stripe/v1/payment_intents", (b"Expect", b"100-continue"))
            agent = await world.connect()
            await agent.send(raw[:-23])
            assert await agent.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await agent.send(raw[-23:])
            assert (await agent.reply()).status == 200
            assert not world.heard.all(b"expect")
            agent.close()
            _, key = await world.issue(allow=())
            reply = await world.ask(raw[:-23].replace(world.key.encode(), key.encode()))
            assert (reply.status, reply.interim) == (403, [])

    run(main())


# --- bounded -------------------------------------------------------------------------------------

FLOOD = 64 * MIB
SOCKETS = 32 * MIB
"""What the kernel may hold in the sockets between three parties, generously."""


async def stands_still(count: list[int]) -> int:
    """Wait until this number has stopped growing."""
    while True:
        before = count[0]
        await asyncio.sleep(0.15)
        if count[0] == before:
            return before


def test_a_slow_reader_bounds_what_is_taken_from_the_vendor(tmp_path: Path) -> None:
    sent = [0]
    piece = noise(256 * 1024)

    async def floods(line: Line) -> None:
        await line.request()
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % FLOOD)
        while sent[0] < FLOOD:
            await line.say(piece)
            sent[0] += len(piece)
        await polite(line)

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = floods
            agent = await world.connect()
            await agent.send(world.request())
            assert 0 < await stands_still(sent) < SOCKETS
            (inner,) = world.pool._open
            assert inner._buffered < MIB, "and the daemon itself holds next to nothing of it"
            (outer,) = world.server._connections
            assert outer._transport is not None
            assert outer._transport.get_write_buffer_size() < 2 * MIB
            digest = hashlib.sha256((await agent.reply()).body).digest()
            assert digest == hashlib.sha256(piece * (FLOOD // len(piece))).digest()
            agent.close()

    run(main())


def test_a_slow_vendor_bounds_what_is_taken_from_the_agent(tmp_path: Path) -> None:
    sent = [0]
    go = asyncio.Event()
    piece = noise(256 * 1024)

    async def waits(line: Line) -> None:
        await go.wait()
        await polite(line)

    async def main() -> None:
        async with open_world(tmp_path, limits=Limits(body_bytes=FLOOD)) as world:
            world.vendor.script = waits
            raw = upload(world, await uncapped(world), b"x")
            agent = await world.connect()

            async def push() -> None:
                agent.say(raw[:-1].replace(b"Content-Length: 1", b"Content-Length: %d" % FLOOD))
                while sent[0] < FLOOD:
                    agent.say(piece)
                    await agent.writer.drain()
                    sent[0] += len(piece)

            pushing = asyncio.create_task(push())
            assert 0 < await stands_still(sent) < SOCKETS
            (outer,) = world.server._connections
            assert len(outer.buffer) < 2 * MIB
            (inner,) = world.pool._open
            assert inner._transport is not None
            assert inner._transport.get_write_buffer_size() < 2 * MIB
            go.set()
            await pushing
            assert (await agent.reply()).status == 200
            agent.close()
            digest = hashlib.sha256(world.heard.body).digest()
            assert digest == hashlib.sha256(piece * (FLOOD // len(piece))).digest()

    run(main())


def test_an_upload_that_the_vendor_stops_taking_is_given_up(tmp_path: Path) -> None:
    async def deaf(line: Line) -> None:
        line.stop_reading()
        await asyncio.Event().wait()

    async def main() -> None:
        limits = UpstreamLimits(silence_s=0.2, first_byte_s=0.2)
        async with open_world(tmp_path, limits=Limits(body_bytes=FLOOD), upstream=limits) as world:
            world.vendor.script = deaf
            raw = upload(world, await uncapped(world), b"x" * (15 * MIB))
            reply = await world.ask(raw)
            assert (reply.status, reply.code) == (504, "upstream_timeout")
            assert (await world.last())["outcome"] == "unknown"
            await world.check_books()

    run(main())


# --- unbuffered ----------------------------------------------------------------------------------


def test_each_event_arrives_before_the_next_is_sent(tmp_path: Path) -> None:
    arrived = asyncio.Event()
    events = [chunk(b"data: %d\n\n" % number) for number in range(20)]

    async def tells(line: Line) -> None:
        await line.request()
        await line.say(CHUNKED)
        for event in events:
            arrived.clear()
            await line.say(event)
            await arrived.wait()
        await line.say(DONE)

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = tells
            agent = await world.connect()
            await agent.send(world.request())
            await agent.reader.readuntil(b"\r\n\r\n")
            for event in events:
                assert await agent.reader.readexactly(len(event)) == event
                arrived.set()
            assert await agent.reader.readexactly(5) == DONE
            agent.close()
            assert (await world.last())["outcome"] == "posted"

    run(main())


# --- agents that leave ---------------------------------------------------------------------------


async def leaves(world: World, agent: Agent) -> None:
    """The agent is gone, and the daemon has noticed."""
    agent.reset()
    while world.server._connections:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("ending", "outcome", "money"),
    [
        (chunk(b"more") * 1000 + DONE, "posted", (0, 100)),
        (b"", "unknown", (100, 0)),
        (b"garbage", "unknown", (100, 0)),
    ],
    ids=["a good end", "no end", "a bad end"],
)
@pytest.mark.parametrize("moment", ["before the answer", "in its middle"])
def test_an_agent_that_leaves_does_not_change_what_the_vendor_did(
    tmp_path: Path, moment: str, ending: bytes, outcome: str, money: tuple[int, int]
) -> None:
    go = asyncio.Event()

    async def script(line: Line) -> None:
        await line.request()
        if moment == "before the answer":
            await go.wait()
        await line.say(CHUNKED + chunk(b"begun"))
        await go.wait()
        await line.say(ending)
        if ending.endswith(DONE):
            await polite(line)

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = script
            agent = await world.connect()
            await agent.send(world.request())
            if moment == "in its middle":
                await agent.reader.readuntil(b"begun")
            else:
                while not world.vendor.arrived:
                    await asyncio.sleep(0)
            await leaves(world, agent)
            assert (world.held_cents, world.posted_cents) == (100, 0)
            go.set()
            assert (await world.last())["outcome"] == outcome
            assert (world.held_cents, world.posted_cents) == money
            await world.check_books()

    run(main())


@pytest.mark.parametrize("count", [1, 10, 22])
def test_an_agent_that_leaves_within_a_priced_body_has_asked_for_nothing(tmp_path: Path, count: int) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            agent = await world.connect()
            await agent.send(world.request()[: count - 23])
            while not world.busy:
                await asyncio.sleep(0)
            await leaves(world, agent)
            row = await world.last()
            assert (row["policy_check_result"], row["outcome"]) == ("malformed_request", "refused")
            assert world.vendor.lines == 0
            assert world.plane.idle
            await world.check_books()

    run(main())


def test_an_agent_that_leaves_within_an_upload_leaves_the_vendor_half_a_request(tmp_path: Path) -> None:
    half: list[int] = []

    async def counts(line: Line) -> None:
        await line.head()
        half.append(len(await line.hear_out()))

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = counts
            raw = upload(world, await uncapped(world), b"x" * 500_000)
            agent = await world.connect()
            await agent.send(raw[:-100_000])
            while not world.pool._open:
                await asyncio.sleep(0)
            await leaves(world, agent)
            row = await world.last()
            assert (row["policy_check_result"], row["outcome"]) == ("allowed", "unknown")
            while not half:
                await asyncio.sleep(0)
            assert half[0] <= 400_000
            assert not world.pool._idle
            await world.check_books()

    run(main())


def test_an_agent_that_never_reads_is_cut_and_the_vendor_heard_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, limits=Limits(write_stall_s=0.3)) as world:
            world.vendor.answers.append(answer(noise(FLOOD)))
            deaf = await Agent.connect(world.port, limit=1024)
            await deaf.send(world.request())
            while not world.vendor.arrived:
                await asyncio.sleep(0)
            assert (await world.ask()).status == 200, "it costs its own place only"
            assert [row["outcome"] for row in await world.rows()] == ["posted", "posted"]
            deaf.close()
            await world.check_books()

    run(main())
