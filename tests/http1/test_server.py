"""P2, P4, P5, P20, P21 over real sockets: whose turn it is, how much is taken, that every wait ends."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from kbctld.http1 import server as servers
from kbctld.http1.gate import HEAD_BYTES_MAX, BadHead, Head, read_head
from kbctld.http1.line import _ALONE_S, _BEGUN_ALONE, _BEGUN_AT_ONCE, Line
from kbctld.http1.server import BadBody, ClientGone, Limits, Request, Server
from tests.http1.corpus import BODIES, CHUNKS, FINE, HEADS, Case, graft
from tests.support.agent import Agent
from tests.support.loop import run

HOST = b"127.0.0.1"
GET = b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n"
SECOND = b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 8 * 1024 * 1024

Handle = Callable[[Request], Awaitable[None]]


class House:
    """A server whose handler the test chooses, and what came to it."""

    def __init__(self, handle: Handle, limits: Limits) -> None:
        self.came: list[str] = []
        self.gone = 0
        self.server = Server(self._handle, self._reject, limits)
        self.port = 0
        self._serve = handle

    async def _handle(self, request: Request) -> None:
        assert request.head is not None
        self.came.append(request.head.target)
        try:
            await self._serve(request)
        except BadBody as bad:
            self.came.append(bad.code)
            request.respond(bad.status, [], bad.code.encode())
        except ClientGone:
            self.gone += 1
            raise

    async def _reject(self, request: Request, bad: BadHead) -> None:
        self.came.append(bad.code)
        request.respond(bad.status, [], bad.code.encode(), close=True)

    async def empty(self) -> None:
        """Wait until every connection is gone."""
        while self.server._connections:
            await asyncio.sleep(0.001)


async def echo(request: Request) -> None:
    """Say which request this was, and its body."""
    assert request.head is not None
    request.respond(200, [], request.head.target.encode() + b" " + await request.body())


async def refuse(request: Request) -> None:
    """As the proxy refuses a bad key: without a look at the body."""
    request.respond(401, [], b"no")


@asynccontextmanager
async def house(handle: Handle = echo, **limits: Any) -> AsyncIterator[House]:
    it = House(handle, Limits(**limits))
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(it.server.protocol, "127.0.0.1", 0)
    it.server.serve(listener)
    it.port = listener.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        await it.server.drain(1.0)
        await listener.wait_closed()


@asynccontextmanager
async def visit(it: House) -> AsyncIterator[Agent]:
    agent = await Agent.connect(it.port)
    try:
        yield agent
    finally:
        agent.close()


def inside(
    test: Callable[[House, Agent], Coroutine[Any, Any, None]], handle: Handle = echo, **limits: Any
) -> None:
    """Run a test with one house and one agent in it."""

    async def main() -> None:
        async with house(handle, **limits) as it, visit(it) as agent:
            await test(it, agent)

    run(main())


def post(body: bytes, *more: bytes, target: bytes = b"/first", length: int | None = None) -> bytes:
    fields = [b"Host: x", b"Content-Length: %d" % (len(body) if length is None else length), *more]
    return b"POST " + target + b" HTTP/1.1\r\n" + b"\r\n".join(fields) + b"\r\n\r\n" + body


def chunked(chunks: bytes) -> bytes:
    return b"POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


# --- one request after the other -----------------------------------------------------------------


def test_a_connection_serves_one_request_after_the_other() -> None:
    async def main(it: House, agent: Agent) -> None:
        for number in range(3):
            await agent.send(post(b"%d" % number))
            reply = await agent.reply()
            assert (reply.status, reply.body, reply.get(b"connection")) == (200, b"/first %d" % number, None)

    inside(main)


@pytest.mark.parametrize("step", [None, 1, 7])
def test_pipelined_requests_wait_their_turn_and_are_answered_in_order(step: int | None) -> None:
    go = asyncio.Event()

    async def slow(request: Request) -> None:
        if request.head is not None and request.head.target == "/first":
            await go.wait()
        await echo(request)

    async def main(it: House, agent: Agent) -> None:
        await agent.send(post(b"one") + post(b"two", target=b"/second") + SECOND, step)
        while not it.came:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert it.came == ["/first"], "the second is not begun while the first is worked on"
        go.set()
        assert [(await agent.reply()).body for _ in range(3)] == [b"/first one", b"/second two", b"/second "]

    inside(main, slow)


def test_http_1_0_closes_unless_it_asks_otherwise() -> None:
    async def main(it: House, agent: Agent) -> None:
        await agent.send(b"GET /a HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
        reply = await agent.reply("GET")
        assert (reply.body, reply.get(b"connection")) == (b"/a ", b"keep-alive")
        await agent.send(b"GET /b HTTP/1.0\r\nHost: x\r\n\r\n")
        reply = await agent.reply("GET")
        assert (reply.body, reply.get(b"connection")) == (b"/b ", b"close")
        assert await agent.rest() == b""

    inside(main)


def test_connection_close_is_obeyed() -> None:
    async def main(it: House, agent: Agent) -> None:
        await agent.send(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + SECOND)
        assert (await agent.reply("GET")).get(b"connection") == b"close"
        assert await agent.rest() == b""
        assert it.came == ["/a"]

    inside(main)


def test_head_has_the_length_and_no_body() -> None:
    async def main(it: House, agent: Agent) -> None:
        await agent.send(b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        reply = await agent.reply("HEAD")
        assert (reply.status, reply.get(b"content-length"), reply.body) == (200, b"3", b"")
        assert (await agent.reply("GET")).body == b"/first "

    inside(main)


def test_204_has_no_length() -> None:
    """RFC 9110 8.6: a server MUST NOT send one."""

    async def nothing(request: Request) -> None:
        request.respond(204, [], b"")

    async def main(it: House, agent: Agent) -> None:
        await agent.send(GET + GET)
        for _ in range(2):
            reply = await agent.reply("GET")
            assert (reply.status, reply.whole, reply.get(b"content-length")) == (204, True, None)

    inside(main, nothing)


@pytest.mark.parametrize(("version", "ends"), [(b"1.1", "chunked"), (b"1.0", "close")])
def test_an_answer_of_unknown_length_ends_recognisably(version: bytes, ends: str) -> None:
    async def stream(request: Request) -> None:
        request.start(200, [(b"X-Y", b"z")], None)
        for piece in (b"one ", b"two ", b"three"):
            await request.send(piece)
        request.end()

    async def main(it: House, agent: Agent) -> None:
        await agent.send(b"GET / HTTP/" + version + b"\r\nHost: x\r\n\r\n")
        reply = await agent.reply("GET")
        assert (reply.body, reply.whole) == (b"one two three", True)
        assert reply.get(b"transfer-encoding") == (b"chunked" if ends == "chunked" else None)
        assert reply.get(b"connection") == (None if ends == "chunked" else b"close")

    inside(main, stream)


def test_an_answer_that_is_cut_is_no_whole_answer() -> None:
    async def half(request: Request) -> None:
        request.start(200, [], None)
        await request.send(b"half")
        request.cut()

    async def main(it: House, agent: Agent) -> None:
        await agent.send(GET)
        assert not (await agent.reply("GET")).whole

    inside(main, half)


def test_a_defect_of_ours_is_a_500_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: Request) -> None:
        raise ValueError("inside")

    async def main(it: House, agent: Agent) -> None:
        await agent.send(GET)
        reply = await agent.reply("GET")
        assert (reply.status, reply.code, reply.get(b"connection")) == (500, "internal", b"close")
        assert b"inside" not in reply.body
        assert await agent.rest() == b""

    with caplog.at_level(logging.ERROR):
        inside(main, broken)
    assert "a request failed inside the daemon" in caplog.text


# --- bodies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in FINE if case.change.get("body")], ids=str)
@pytest.mark.parametrize("step", [None, 1, 2, 3])
def test_chunked_bodies_are_joined_wherever_they_are_cut(case: Case, step: int | None) -> None:
    async def main(it: House, agent: Agent) -> None:
        await agent.send(graft(case.change, host=HOST, key=b"k") + SECOND, step)
        assert (await agent.reply()).body.endswith(b" amount=100&currency=usd")
        assert (await agent.reply("GET")).body == b"/second "

    inside(main)


@pytest.mark.parametrize("step", [None, 1])
def test_chunks_that_are_not_plain_end_the_connection(step: int | None) -> None:
    async def main() -> None:
        async with house() as it:
            for case in BODIES:
                async with visit(it) as agent:
                    it.came.clear()
                    await agent.send(graft(case.change, host=HOST, key=b"k") + SECOND, step)
                    reply = await agent.reply()
                    assert (reply.status, reply.body) == (400, b"malformed_request"), case.name
                    assert reply.get(b"connection") == b"close", case.name
                    assert await agent.rest() == b"", case.name
                    assert it.came == ["/stripe/v1/payment_intents", "malformed_request"], case.name

    run(main())


def test_nothing_behind_a_head_that_did_not_pass_is_taken_for_a_request() -> None:
    async def main() -> None:
        async with house() as it:
            for case in HEADS:
                async with visit(it) as agent:
                    it.came.clear()
                    await agent.send(graft(case.change, host=HOST, key=b"k") + b"\r\n\r\n" + SECOND)
                    reply = await agent.reply()
                    assert (reply.status, reply.body.decode()) == (case.status, case.code), case.name
                    assert reply.get(b"connection") == b"close", case.name
                    assert await agent.rest() == b"", case.name
                    assert it.came == [case.code], case.name

    run(main())


def test_100_continue_is_said_when_the_body_is_wanted() -> None:
    async def main(it: House, agent: Agent) -> None:
        await agent.send(post(b"", b"Expect: 100-continue", length=4))
        assert await agent.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await agent.send(b"body" + GET)
        assert (await agent.reply()).body == b"/first body"
        assert (await agent.reply("GET")).body == b"/first "

    inside(main)


def test_100_continue_is_not_said_when_the_body_is_not_wanted() -> None:
    async def main(it: House, agent: Agent) -> None:
        await agent.send(post(b"", b"Expect: 100-continue", length=4))
        reply = await agent.reply()
        assert (reply.status, reply.interim) == (401, [])
        # Whether the body still comes can't be known, so what comes is not read.
        assert reply.get(b"connection") == b"close"
        assert await agent.rest() == b""
        assert it.came == ["/first"]

    inside(main, refuse)


def test_a_refusal_that_leaves_a_small_body_unread_keeps_the_connection() -> None:
    async def main(it: House, agent: Agent) -> None:
        smuggled = SECOND * 3
        await agent.send(post(smuggled[:20], length=len(smuggled)))
        assert (await agent.reply()).status == 401
        await agent.send(smuggled[20:] + GET)
        reply = await agent.reply("GET")
        assert (reply.status, reply.get(b"connection")) == (401, None)
        assert it.came == ["/first", "/first"], "no byte of the body was taken for a request"

    inside(main, refuse)


@pytest.mark.parametrize(
    "raw",
    [post(b"", length=65_537), post(b"", length=LARGE), chunked(b"5\r\nhello\r\n"), chunked(CHUNKS)],
    ids=["64 KiB and one byte", "8 MiB", "chunks that go on", "chunks that end"],
)
def test_a_refusal_that_leaves_a_large_body_unread_says_that_it_closes(raw: bytes) -> None:
    """Clients that were not told pool the connection, and fail on their next request."""

    async def main(it: House, agent: Agent) -> None:
        await agent.send(raw)
        reply = await agent.reply()
        assert (reply.status, reply.get(b"connection")) == (401, b"close")
        assert await agent.rest() == b""

    inside(main, refuse)


@pytest.mark.parametrize("looks", ["meanwhile", "afterwards"])
def test_a_client_that_sends_a_large_body_can_still_read_its_refusal(looks: str) -> None:
    async def main(it: House, agent: Agent) -> None:
        upload = asyncio.create_task(agent.send(post(b"x" * LARGE), 65536))
        if looks == "afterwards":
            await upload
        reply = await agent.reply()
        assert (reply.status, reply.body, reply.whole, reply.reset) == (401, b"no", True, False)
        await upload

    inside(main, refuse)


def test_but_not_without_end() -> None:
    async def main(it: House, agent: Agent) -> None:
        await agent.send(post(b"", length=10 * LARGE))
        for _ in range(10):
            await agent.send(b"x" * LARGE)
        await it.empty()

    inside(main, refuse)


# --- limits, at n and at n + 1 -------------------------------------------------------------------


@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 431)])
@pytest.mark.parametrize("step", [None, 4096])
def test_a_head_has_at_most_32_kib(extra: int, status: int, step: int | None) -> None:
    start, end = b"GET / HTTP/1.1\r\nHost: x\r\n", b"\r\n"
    room = HEAD_BYTES_MAX + extra - len(start) - len(end)
    lines = []
    while room:
        size = room if room <= 8000 else min(8000, room - 100)
        lines.append(b"X: " + b"y" * (size - 5) + b"\r\n")
        room -= size
    raw = start + b"".join(lines) + end
    assert len(raw) == HEAD_BYTES_MAX + extra

    async def main(it: House, agent: Agent) -> None:
        await agent.send(raw, step)
        assert (await agent.reply("GET")).status == status

    inside(main)


@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413)])
@pytest.mark.parametrize("framing", ["length", "chunks", "many chunks"])
def test_a_body_has_at_most_so_many_bytes(size: int, status: int, framing: str) -> None:
    body = b"x" * size
    raw = {
        "length": post(body),
        "chunks": chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)),
        "many chunks": chunked(b"1\r\nx\r\n" * size + b"0\r\n\r\n"),
    }[framing]

    async def main(it: House, agent: Agent) -> None:
        await agent.send(raw)
        reply = await agent.reply()
        assert reply.status == status
        assert reply.body == (b"/first " + body if status == 200 else b"body_too_large")

    inside(main, body_bytes=1000)


def test_a_body_that_says_it_is_too_large_is_not_asked_for() -> None:
    async def main(it: House, agent: Agent) -> None:
        await agent.send(post(b"", b"Expect: 100-continue", length=1001))
        reply = await agent.reply()
        assert (reply.status, reply.interim, reply.get(b"connection")) == (413, [], b"close")

    inside(main, body_bytes=1000)


def test_so_many_connections_and_no_more() -> None:
    """Where all are at work: some more are looked at, and beyond those none."""

    async def main() -> None:
        go = asyncio.Event()

        async def work(request: Request) -> None:
            await go.wait()
            await echo(request)

        async with house(work, connections=3, spare=2) as it:
            agents = []
            for number in range(1, 6):
                agents.append(await Agent.connect(it.port))
                await agents[-1].send(GET)
                while len(it.came) < number:
                    await asyncio.sleep(0)
                assert it.server.overloaded is (number > 3)
            async with visit(it) as one_too_many:
                reply = await one_too_many.reply("GET")
                assert (reply.status, reply.whole) == (503, True)
                assert reply.json["error"]["code"] == "overloaded"
                assert reply.get(b"stripe-should-retry") == reply.get(b"x-should-retry") == b"true"
                assert reply.get(b"retry-after") == b"1"
                assert await one_too_many.rest() == b""
            go.set()
            for agent in agents:
                assert (await agent.reply("GET")).status == 200
                agent.close()

    run(main())


def test_who_sleeps_makes_room_for_who_asks() -> None:
    """The one that has been idle for longest goes first; none that is at work."""

    async def main() -> None:
        go = asyncio.Event()

        async def work(request: Request) -> None:
            if request.head is not None and request.head.method == "POST":
                await go.wait()
            await echo(request)

        async with house(work, connections=4, spare=0) as it:
            agents = [await Agent.connect(it.port) for _ in range(4)]
            for agent in agents:
                await agent.send(GET)
                assert (await agent.reply("GET")).status == 200
            await agents[0].send(post(b""))  # the first one works, so the second is the oldest that sleeps
            while len(it.came) < 5:
                await asyncio.sleep(0)
            async with visit(it) as late:
                await late.send(GET)
                assert (await late.reply("GET")).status == 200
                assert await agents[1].rest() == b""
                for agent in agents[2:]:
                    await agent.send(GET)
                    assert (await agent.reply("GET")).status == 200
            go.set()
            assert (await agents[0].reply("POST")).status == 200
            for agent in agents:
                agent.close()

    run(main())


def test_P21_heads_that_never_end_keep_nobody_out() -> None:
    """However many there are: the oldest of them makes room."""

    async def main() -> None:
        async with house(connections=8, spare=0) as it:
            slow = [await Agent.connect(it.port) for _ in range(40)]
            for agent in slow:
                await agent.send(b"GET / HT")
            async with visit(it) as good:
                await good.send(GET)
                assert (await good.reply("GET")).status == 200
            assert len(it.server._connections) <= 8
            for agent in slow:
                agent.close()

    run(main())


# --- every wait has an end -----------------------------------------------------------------------


async def seconds(wait: Awaitable[Any]) -> float:
    loop = asyncio.get_running_loop()
    before = loop.time()
    await wait
    return loop.time() - before


def test_a_connection_that_says_nothing_is_cut() -> None:
    async def main(it: House, agent: Agent) -> None:
        assert 0.05 < await seconds(agent.rest()) < 1
        assert it.came == []

    inside(main, head_s=0.1)


@pytest.mark.parametrize("after_a_first", [False, True])
def test_a_head_that_drips_is_cut_however_steadily_it_drips(after_a_first: bool) -> None:
    async def main(it: House, agent: Agent) -> None:
        if after_a_first:
            await agent.send(GET)
            await agent.reply("GET")

        async def drip() -> None:
            for byte in b"GET / HTTP/1.1\r\nX: " + b"y" * 10_000:
                agent.say(bytes([byte]))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        reply = await agent.reply("GET")
        assert (reply.status, reply.body) == (400, b"malformed_request")
        dripping.cancel()

    inside(main, head_s=0.15)


def test_a_body_that_stalls_is_cut() -> None:
    async def main(it: House, agent: Agent) -> None:
        await agent.send(post(b"begun", length=1000))
        reply = await agent.reply()
        assert (reply.status, reply.body, reply.get(b"connection")) == (400, b"malformed_request", b"close")

    inside(main, body_grace_s=0.1)


def test_a_body_that_drips_below_the_rate_is_cut() -> None:
    async def main(it: House, agent: Agent) -> None:
        agent.say(post(b"", length=1000))

        async def drip() -> None:
            for _ in range(1000):
                agent.say(b"x")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert await seconds(agent.reply()) < 2
        dripping.cancel()
        assert it.came == ["/first", "malformed_request"]

    inside(main, body_grace_s=0.1, body_bytes_per_s=200)


def test_a_slow_body_above_the_rate_is_taken() -> None:
    async def main(it: House, agent: Agent) -> None:
        agent.say(post(b"", length=40))
        for _ in range(20):
            agent.say(b"xx")
            await asyncio.sleep(0.01)
        assert (await agent.reply()).status == 200

    inside(main, body_grace_s=0.1, body_bytes_per_s=50)


async def deaf(it: House) -> socket.socket:
    """A client that can't take much, and never does."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", it.port))
    return client


def test_a_client_that_never_reads_a_long_answer_is_cut() -> None:
    sent = 0

    async def endless(request: Request) -> None:
        nonlocal sent
        request.start(200, [], None)
        while True:
            await request.send(b"x" * 65536)
            sent += 65536

    async def main() -> None:
        async with house(endless, write_stall_s=0.2) as it:
            with await deaf(it) as client:
                await asyncio.get_running_loop().sock_sendall(client, GET)
                assert await seconds(it.empty()) < 3
                while not it.gone:
                    await asyncio.sleep(0)
        assert sent < 64 * 1024 * 1024, "what it does not read is not piled up"

    run(main())


def test_a_client_that_never_reads_its_answers_gets_no_more_of_them() -> None:
    """Pipelined requests, each answered in one write: answers must not pile up, nor the connection stay."""

    async def ample(request: Request) -> None:
        request.respond(200, [], b"x" * 60_000)

    async def main() -> None:
        async with house(ample, write_stall_s=0.3) as it:
            with await deaf(it) as client:
                await asyncio.get_running_loop().sock_sendall(client, GET * 3000)
                assert await seconds(it.empty()) < 3
                assert len(it.came) < 500, "30 MB are more than any socket's buffers"

    run(main())


def test_a_client_that_reads_late_gets_all_its_answers() -> None:
    """The control of the one above."""

    async def ample(request: Request) -> None:
        request.respond(200, [], b"x" * 60_000)

    async def main(it: House, agent: Agent) -> None:
        agent.say(GET * 300)
        agent.half_close()
        while len(it.came) < 20:
            await asyncio.sleep(0)
        for _ in range(300):
            assert len((await agent.reply("GET")).body) == 60_000
        assert len(it.came) == 300

    inside(main, ample)


def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    go = asyncio.Event()

    async def waits(request: Request) -> None:
        if request.head is not None and request.head.target == "/second":
            await go.wait()
        await echo(request)

    async def main(it: House, agent: Agent) -> None:
        await agent.send(GET)
        await agent.reply("GET")
        async with visit(it) as busy:
            await busy.send(SECOND)
            while "/second" not in it.came:
                await asyncio.sleep(0)
            it.server._sweeper.cancel()
            it.server._sweep()
            assert len(it.server._connections) == 2, "neither has been idle for long"
            it.server.limits = replace(it.server.limits, idle_s=-1.0)
            it.server._sweeper.cancel()
            it.server._sweep()
            assert await agent.rest() == b""
            go.set()
            assert (await busy.reply("GET")).status == 200

    inside(main, waits)


# --- clients that leave --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_a_half_closed_client_still_gets_its_answers(count: int) -> None:
    async def main(it: House, agent: Agent) -> None:
        await agent.send(post(b"body") * count)
        agent.half_close()
        for _ in range(count):
            assert (await agent.reply()).body == b"/first body"
        assert await agent.rest() == b""
        await it.empty()

    inside(main)


def test_a_half_closed_client_whose_next_request_is_incomplete_is_let_go() -> None:
    async def main(it: House, agent: Agent) -> None:
        await agent.send(GET + SECOND[:-2])
        agent.half_close()
        assert (await agent.reply("GET")).status == 200
        assert await agent.rest() == b""
        await it.empty()

    inside(main)


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_client_may_hang_up_at_any_byte(how: str) -> None:
    raw = post(b"four", target=b"/only")

    async def main() -> None:
        async with house() as it:
            for count in range(len(raw) + 1):
                it.came.clear()
                it.gone = 0
                client = socket.create_connection(("127.0.0.1", it.port))
                if how == "rst":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.sendall(raw[:count])
                while not it.server._connections:
                    await asyncio.sleep(0)
                client.close()
                await it.empty()
                if how == "fin":
                    assert it.came == (["/only"] if count >= len(raw) - 4 else []), count
                    assert it.gone == (1 if len(raw) - 4 <= count < len(raw) else 0), count

    run(main())


# --- the end -------------------------------------------------------------------------------------


def test_draining_closes_idle_connections_and_lets_the_others_finish() -> None:
    go = asyncio.Event()

    async def waits(request: Request) -> None:
        if request.head is not None and request.head.target == "/second":
            await go.wait()
        await echo(request)

    async def main(it: House, idle: Agent) -> None:
        async with visit(it) as silent, visit(it) as busy:
            await idle.send(GET)
            await idle.reply("GET")
            await busy.send(SECOND + GET)
            while "/second" not in it.came:
                await asyncio.sleep(0)
            draining = asyncio.create_task(it.server.drain(5))
            assert await idle.rest() == b""
            assert await silent.rest() == b""
            assert not draining.done()
            go.set()
            reply = await busy.reply("GET")
            assert (reply.body, reply.get(b"connection")) == (b"/second ", b"close")
            assert await busy.rest() == b"", "and takes no further request"
            busy.close()
            await draining
            assert it.came.count("/first") == 1

    inside(main, waits)


def test_draining_ends_with_its_patience() -> None:
    cancelled = asyncio.Event()

    async def stuck(request: Request) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def main(it: House, agent: Agent) -> None:
        await agent.send(GET)
        while not it.came:
            await asyncio.sleep(0)
        assert await seconds(it.server.drain(0.1)) < 1
        await cancelled.wait()
        assert not (await agent.reply("GET")).whole
        await it.empty()

    inside(main, stuck)


@pytest.mark.parametrize("known", [True, False], ids=["connections that were used before", "new ones"])
def test_law_7_a_request_whose_agent_left_while_it_was_in_line_is_begun_all_the_same(known: bool) -> None:
    """Thirty with one credential come at once, and all their agents go: each is an attempt."""
    begun = []
    asks = b"GET /first HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer one\r\n\r\n"

    async def count(request: Request) -> None:
        begun.append(request)
        request.respond(200, [], b"ok")

    async def main() -> None:
        async with house(count) as it:
            agents = [await Agent.connect(it.port) for _ in range(30)]
            while len(it.server._connections) < 30:
                await asyncio.sleep(0)
            for agent in agents if known else ():
                agent.say(asks)
                await agent.reply("GET")
            begun.clear()
            rounds = it.server.line._round
            it.server.line._round = lambda: None  # type: ignore[method-assign]
            it.server.line._latest = b"Bearer two"  # others ask as well
            for agent in agents:
                agent.say(asks)
            while sum(map(len, it.server.line._lines.values())) < 30 - _BEGUN_AT_ONCE:
                await asyncio.sleep(0)
            for agent in agents:
                agent.reset()
            await it.empty()
            assert len(begun) == _BEGUN_AT_ONCE
            it.server.line._round = rounds  # type: ignore[method-assign]
            it.server.line._round()
            while it.server.line._lines:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(begun) == 30

    run(main())


class _Crowd:
    """Connections of one agent, each used once, whose requests then stand in line behind each other."""

    def __init__(self, it: House, agents: list[Agent]) -> None:
        self.line = it.server.line
        self.agents = agents
        self._round = self.line._round

    @classmethod
    async def gathers(cls, it: House, size: int) -> "_Crowd":
        agents = [await Agent.connect(it.port) for _ in range(size)]
        for agent in agents:
            agent.say(_OF_ONE)
            await agent.reply("GET")
        return cls(it, agents)

    async def asks(self, what: bytes) -> None:
        """Once this returns, what the last seven have said waits unread; the others ask as ever."""
        self.line._round = lambda: None  # type: ignore[method-assign]
        self.line._latest = b"Bearer two"  # others ask as well
        for agent in self.agents[:-7]:
            agent.say(_OF_ONE)
        while not self.line._lines:
            await asyncio.sleep(0)
        for agent in self.agents[-7:]:
            agent.say(what)
        while sum(map(len, self.line._lines.values())) < len(self.agents) - _BEGUN_AT_ONCE:
            await asyncio.sleep(0)

    def goes_on(self) -> None:
        self.line._round = self._round  # type: ignore[method-assign]
        self._round()


_OF_ONE = b"GET /first HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer one\r\n\r\n"


def in_a_crowd(body: Callable[[House, _Crowd], Coroutine[Any, Any, None]], **limits: Any) -> None:
    async def main() -> None:
        async with house(**limits) as it:
            crowd = await _Crowd.gathers(it, 12)
            it.came.clear()
            try:
                await body(it, crowd)
            finally:
                for agent in crowd.agents:
                    agent.close()

    run(main())


def test_heads_of_a_crowd_are_read_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a thousand of them in one step of the loop would be 10 ms for which everybody else waits."""
    read = []

    def noted(raw: bytes) -> Head:
        read.append(raw)
        return read_head(raw)

    monkeypatch.setattr(servers, "read_head", noted)

    async def body(it: House, crowd: _Crowd) -> None:
        read.clear()
        await crowd.asks(_OF_ONE)
        assert len(read) == _BEGUN_AT_ONCE + 1
        crowd.goes_on()
        assert len(read) == 2 * _BEGUN_AT_ONCE
        for agent in crowd.agents:
            assert (await agent.reply("GET")).status == 200
        assert len(it.came) == 12

    in_a_crowd(body)


def test_a_connection_in_line_is_not_idle() -> None:
    """Neither a drain nor a newcomer for whom there is no room takes it for one on which nothing is asked."""

    async def body(it: House, crowd: _Crowd) -> None:
        await crowd.asks(_OF_ONE)
        waiting = [connection for connection in it.server._connections if connection._in_line]
        assert len(waiting) >= 7
        for _ in range(12):
            it.server._make_room()
        for connection in waiting:
            connection.idle_since = -1e9
        it.server._sweep()
        draining = asyncio.create_task(it.server.drain(5))
        await asyncio.sleep(0)
        assert set(waiting) <= set(it.server._connections)
        crowd.goes_on()
        for agent in crowd.agents[-7:]:
            assert (await agent.reply("GET")).status == 200
        for agent in crowd.agents:
            agent.close()
        await draining
        assert len(it.came) == 12

    in_a_crowd(body)


def test_an_agent_that_will_say_no_more_has_the_answer_that_it_is_in_line_for() -> None:
    """It has closed its half: what it asked for is done, so it is told how that went."""

    async def body(it: House, crowd: _Crowd) -> None:
        await crowd.asks(_OF_ONE)
        for agent in crowd.agents[-7:]:
            agent.half_close()
        while sum(connection._eof for connection in it.server._connections) < 7:
            await asyncio.sleep(0)
        crowd.goes_on()
        for agent in crowd.agents[-7:]:
            assert (await agent.reply("GET")).status == 200

    in_a_crowd(body)


def test_half_a_head_that_stood_in_line_is_waited_for_and_not_for_ever() -> None:
    async def body(it: House, crowd: _Crowd) -> None:
        await crowd.asks(_OF_ONE[:-2])
        crowd.goes_on()
        *half, late = crowd.agents[-7:]
        for agent in half:
            agent.say(_OF_ONE[-2:])
            assert (await agent.reply("GET")).status == 200
        assert (await late.reply("GET")).status == 400

    in_a_crowd(body, head_s=0.3)


def test_a_bad_head_that_stood_in_line_is_refused() -> None:
    async def body(it: House, crowd: _Crowd) -> None:
        await crowd.asks(_OF_ONE.replace(b"Host: x", b"Host : x"))
        crowd.goes_on()
        for agent in crowd.agents[-7:]:
            assert (await agent.reply("GET")).status == 400

    in_a_crowd(body)


@pytest.mark.parametrize("others", [True, False], ids=["others ask as well", "alone"])
def test_an_agent_that_is_alone_has_more_begun_in_each_round(others: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        line, begun = Line(loop), list[int]()
        line.join(b"one", lambda: None)
        line.join(b"two" if others else b"one", lambda: None)
        line._alone_from -= 0 if others else 2 * _ALONE_S
        await asyncio.sleep(0.001)
        for number in range(40):
            line.join(b"one", lambda number=number: begun.append(number))  # type: ignore[misc]
        assert len(begun) == (_BEGUN_AT_ONCE if others else _BEGUN_ALONE)
        while len(begun) < 40:
            await asyncio.sleep(0)
        assert begun == [*range(40)]

    run(main())
