"""HTTP as bytes: framing, limits, order, faults on the wire, and a close that leaves nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from kbctld.sandbox import RunningSandbox, Sandbox, start
from tests.sandbox.support import SECRET, ask

BODY = b"amount=500&currency=usd&customer=cus_1&confirm=true"
TYPE = b"Content-Type: application/x-www-form-urlencoded\r\n"


def post(body: bytes = BODY, headers: bytes = b"") -> bytes:
    head = b"POST /v1/payment_intents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + SECRET.encode()
    return head + b"\r\n" + TYPE + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def get(path: bytes = b"/v1/balance", headers: bytes = b"", version: bytes = b"1.1") -> bytes:
    auth = b"Host: x\r\nAuthorization: Bearer " + SECRET.encode() + b"\r\n"
    return b"GET " + path + b" HTTP/" + version + b"\r\n" + auth + headers + b"\r\n"


class Wire:
    """One client connection, as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, bytes, bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split()[1]), head, await self.reader.readexactly(length)

    async def status(self, data: bytes) -> int:
        self.writer.write(data)
        return (await self.answer())[0]

    async def until_money_moved(self) -> None:
        """Another connection's request has been worked on, though its answer may be late."""
        book = {"entries": 0}
        while not book["entries"]:
            self.writer.write(get(b"/_sandbox/book"))
            book = json.loads((await self.answer())[2])


Scenario = Callable[[RunningSandbox, Callable[[], Awaitable[Wire]]], Awaitable[None]]


def play(scenario: Scenario, *, faults: bool = False) -> Sandbox:
    """Run a scenario against a fresh server on a loop of its own; afterwards nothing may be left."""

    async def run() -> Sandbox:
        sandbox = Sandbox(SECRET, faults=faults)
        running = await start(sandbox)
        wires: list[Wire] = []

        async def connect() -> Wire:
            wires.append(Wire(*await asyncio.open_connection("127.0.0.1", running.port)))
            return wires[-1]

        async with asyncio.timeout(5):
            try:
                await scenario(running, connect)
            finally:
                for wire in wires:
                    wire.writer.close()
                await asyncio.gather(*(wire.writer.wait_closed() for wire in wires), return_exceptions=True)
                await running.close()
        return sandbox

    return asyncio.run(run())


def test_a_request_arrives_byte_by_byte() -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        wire = await connect()
        for byte in post():
            wire.writer.write(bytes([byte]))
            await wire.writer.drain()
            await asyncio.sleep(0)
        status, _, body = await wire.answer()
        assert (status, json.loads(body)["status"]) == (200, "succeeded")

    play(scenario)


def test_pipelined_requests_are_answered_in_order_on_one_connection() -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        wire = await connect()
        wire.writer.write(b"".join(post(b"amount=%d&currency=usd" % (100 + n)) for n in range(300)))
        for number in range(300):
            _, _, body = await wire.answer()
            assert json.loads(body)["amount"] == 100 + number

    play(scenario)


def test_a_late_answer_holds_back_the_ones_behind_it() -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        wire = await connect()
        wire.writer.write(post(headers=b"Sandbox-Fault: slow=0.05\r\n") + get())
        assert json.loads((await wire.answer())[2])["object"] == "payment_intent"
        assert json.loads((await wire.answer())[2])["object"] == "balance"

    play(scenario, faults=True)


def test_a_chunked_body_is_read() -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        wire = await connect()
        head = post().split(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
        chunks = b"".join(
            b"%x\r\n%s\r\n" % (len(BODY[i : i + 7]), BODY[i : i + 7]) for i in range(0, len(BODY), 7)
        )
        assert await wire.status(head + chunks + b"0\r\n\r\n") == 200
        assert await wire.status(get()) == 200

    play(scenario)


def test_expect_continue_is_answered() -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        wire = await connect()
        head, _, body = post(headers=b"Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        wire.writer.write(head + b"\r\n\r\n")
        assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert await wire.status(body) == 200

    play(scenario)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost x\r\n\r\n", 400),
        (b"GET /v1/balance HTTP/1.1\r\n\r\n", 400),
        (get(headers=b"Authorization: Bearer sk_other\r\n"), 400),
        (post(headers=b"Transfer-Encoding: chunked\r\n"), 400),
        (post(headers=b"Content-Length: 1\r\n"), 400),
        (get(headers=b"Connection: upgrade\r\nUpgrade: h2c\r\n") + b"PRI", 200),
        (post(b"a" * (1024 * 1024 + 1)), 413),
        (get(headers=b"X: " + b"a" * 70_000 + b"\r\n"), 431),
        (get(b"/" + b"a" * 70_000), 431),
        (get(headers=b"Connection: close\r\n"), 200),
        (get(version=b"1.0"), 200),
    ],
)
def test_what_ends_a_connection_is_answered_first(data: bytes, status: int) -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        wire = await connect()
        wire.writer.write(data)
        answered, head, body = await wire.answer()
        assert answered == status
        assert b"application/json" in head
        assert "error" in json.loads(body) or status == 200
        assert await wire.reader.read() == b""

    assert play(scenario).book()["entries"] == 0


def test_a_body_of_a_mebibyte_passes() -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        wire = await connect()
        assert await wire.status(post(BODY + b"&x=" + b"a" * (1024 * 1024 - len(BODY) - 3))) == 200

    play(scenario)


@pytest.mark.parametrize(
    ("fault", "entries", "seen"),
    [
        ("reset-before", 0, "reset"),
        ("reset-after", 1, "reset"),
        ("500", 0, 500),
        ("500-after", 1, 500),
        ("garbage", 1, "broken"),
        ("truncate", 1, "broken"),
        ("redirect", 0, 307),
        ("echo-auth", 0, 401),
        ("slow=0.01", 1, 200),
        ("unheard-of", 0, 400),
    ],
)
@pytest.mark.parametrize("in_header", [True, False])
def test_a_fault_happens_as_asked(fault: str, entries: int, seen: int | str, in_header: bool) -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        wire = await connect()
        if in_header:
            wire.writer.write(post(headers=b"Sandbox-Fault: " + fault.encode() + b"\r\n"))
        else:
            wire.writer.write(post(BODY + b"&metadata[sandbox_fault]=" + fault.encode()))
        if seen == "reset":
            with pytest.raises(ConnectionResetError):
                await wire.reader.readexactly(1)
        elif seen == "broken":
            with pytest.raises((asyncio.IncompleteReadError, IndexError)):
                await wire.answer()
        else:
            status, head, body = await wire.answer()
            assert status == seen
            assert (SECRET.encode() in body) == (fault == "echo-auth")
            assert (b"Location: /_sandbox/redirected" in head) == (fault == "redirect")

    assert play(scenario, faults=True).book()["entries"] == entries


def test_faults_are_ignored_unless_the_sandbox_was_built_for_them() -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        wire = await connect()
        body = BODY + b"&metadata[sandbox_fault]=reset-after"
        assert await wire.status(post(body, b"Sandbox-Fault: reset-before\r\n")) == 200

    assert play(scenario).book()["moved_minor"] == {"usd": 500}


def test_a_retry_after_a_lost_answer_is_a_replay() -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        data = post(BODY + b"&metadata[sandbox_fault]=reset-after", b"Idempotency-Key: k\r\n")
        wire = await connect()
        wire.writer.write(data)
        with pytest.raises(ConnectionResetError):
            await wire.answer()
        wire = await connect()
        wire.writer.write(data)
        status, head, _ = await wire.answer()
        assert (status, b"Idempotent-Replayed: true" in head) == (200, True)

    assert play(scenario, faults=True).book()["moved_minor"] == {"usd": 500}


def test_a_key_in_use_is_a_409_and_then_a_replay() -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        data = post(BODY + b"&metadata[sandbox_fault]=slow=0.2", b"Idempotency-Key: k\r\n")
        first, second = await connect(), await connect()
        first.writer.write(data)
        await second.until_money_moved()
        assert await second.status(data) == 409
        status, _, body = await first.answer()
        assert status == 200
        second.writer.write(data)
        assert (await second.answer())[2] == body

    assert play(scenario, faults=True).book()["moved_minor"] == {"usd": 500}


def test_a_client_that_gives_up_on_a_late_answer_frees_its_key() -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        data = post(BODY + b"&metadata[sandbox_fault]=slow=60", b"Idempotency-Key: k\r\n")
        first, second = await connect(), await connect()
        first.writer.write(data)
        await second.until_money_moved()
        first.writer.close()
        await first.writer.wait_closed()
        while await second.status(data) == 409:
            pass

    assert play(scenario, faults=True).book()["moved_minor"] == {"usd": 500}


def test_close_ends_idle_late_and_listening_and_leaves_no_task() -> None:
    async def scenario(running: RunningSandbox, connect: Callable[[], Awaitable[Wire]]) -> None:
        tasks = asyncio.all_tasks()
        idle, late = await connect(), await connect()
        assert await idle.status(get()) == 200
        late.writer.write(post(headers=b"Sandbox-Fault: slow=60\r\n"))
        await idle.until_money_moved()
        await running.close()
        assert asyncio.all_tasks() == tasks
        for wire in (idle, late):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await wire.answer()
        with pytest.raises(ConnectionRefusedError):
            await connect()
        assert ask(running.sandbox, "GET", "/_sandbox/book").json["moved_minor"] == {"usd": 500}

    play(scenario, faults=True)


def test_it_runs_on_uvloop_too() -> None:
    async def run() -> None:
        running = await start(Sandbox(SECRET, faults=True))
        wire = Wire(*await asyncio.open_connection("127.0.0.1", running.port))
        assert await wire.status(post()) == 200
        wire.writer.write(post(headers=b"Sandbox-Fault: reset-after\r\n"))
        with pytest.raises(ConnectionResetError):
            await wire.answer()
        wire.writer.close()
        await running.close()
        assert running.sandbox.book()["moved_minor"] == {"usd": 1000}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_it_listens_on_loopback_only(host: str) -> None:
    with pytest.raises(ValueError, match="loopback only"):
        asyncio.run(start(Sandbox(SECRET), host))
