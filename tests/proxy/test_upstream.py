"""L5, P13, P16: whatever a vendor does, the agent gets one answer, the hold ends by what was proved, and a
connection that misbehaved is never used again."""

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from kbctld.proxy.upstream import Failure, UpstreamError, UpstreamLimits
from tests.support.loop import run
from tests.support.vendor import Line, Script, answer, polite, vendor_on_loopback
from tests.support.world import TARGET, World, open_world

SHORT = UpstreamLimits(connect_s=0.3, first_byte_s=0.25, silence_s=0.25)
PATIENT = UpstreamLimits(connect_s=5, first_byte_s=10, silence_s=10)

KEPT, RELEASED, POSTED = (100, 0), (0, 0), (0, 100)
"""Cents held and cents posted after a call for 100."""

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = 100_000


@dataclass(frozen=True)
class Behaviour:
    """What a vendor does to one call, and what must follow.

    Attributes:
        status: what the agent gets, with code; without one it is the vendor's own answer.
        outcome: of the row.
        money: cents held and posted.
        reused: the connection may carry the next call.
        whole: the agent's answer ends as its head says.
    """

    name: str
    script: Script
    status: int
    code: str
    outcome: str
    money: tuple[int, int]
    reused: bool = False
    whole: bool = True
    limits: UpstreamLimits = PATIENT

    def __str__(self) -> str:
        return self.name


def says(raw: bytes, *, then: str = "") -> Script:
    """Read a request, send these bytes, then close, reset, or go on politely."""

    async def script(line: Line) -> None:
        await line.request()
        await line.say(raw)
        if then == "close":
            return
        if then == "reset":
            line.reset()
            return
        await polite(line)

    return script


def bad(
    name: str, raw: bytes, *, then: str = "", limits: UpstreamLimits = PATIENT, code: str = "upstream_invalid"
) -> Behaviour:
    """An answer that is none: the hold stays."""
    status = 504 if code == "upstream_timeout" else 502
    return Behaviour(name, says(raw, then=then), status, code, "unknown", KEPT, limits=limits)


def cut(name: str, raw: bytes, *, then: str = "", limits: UpstreamLimits = PATIENT) -> Behaviour:
    """An answer that breaks off behind its head: the agent's copy breaks off too, and the hold stays."""
    return Behaviour(name, says(raw, then=then), 200, "", "unknown", KEPT, whole=False, limits=limits)


def proves(name: str, raw: bytes, status: int, outcome: str, *, reused: bool = True) -> Behaviour:
    """A good answer, passed on as it is."""
    money = {"posted": POSTED, "voided": RELEASED, "unknown": KEPT}[outcome]
    return Behaviour(name, says(raw), status, "", outcome, money, reused)


async def resets_at_once(line: Line) -> None:
    line.reset()


async def closes_at_once(_line: Line) -> None:
    pass


async def half_closes(line: Line) -> None:
    await line.request()
    line.half_close()
    await line.hear_out()


async def says_more_later(line: Line) -> None:
    await line.request()
    await line.say(answer())
    await asyncio.sleep(0.02)
    await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    await line.hear_out()


async def drips(line: Line) -> None:
    await line.request()
    for byte in answer(b'{"id":"pi_1"}'):
        await line.say(bytes([byte]))
        await asyncio.sleep(0.002)
    await polite(line)


BEHAVIOURS = [
    # no answer at all
    Behaviour("reset at once", resets_at_once, 502, "upstream_unreachable", "unknown", KEPT),
    Behaviour("close at once", closes_at_once, 502, "upstream_unreachable", "unknown", KEPT),
    Behaviour("half-close", half_closes, 502, "upstream_unreachable", "unknown", KEPT),
    bad("reset behind the request", b"", then="reset", code="upstream_unreachable"),
    bad("close behind the request", b"", then="close", code="upstream_unreachable"),
    bad("silence", b"", limits=SHORT, code="upstream_timeout"),
    bad("silence in the status line", b"HTTP/1.1 20", limits=SHORT, code="upstream_timeout"),
    bad("silence in the head", OK + b"Content-", limits=SHORT, code="upstream_timeout"),
    bad("silence after 100", b"HTTP/1.1 100 Continue\r\n\r\n", limits=SHORT, code="upstream_timeout"),
    bad("close in the head", OK + b"Content-Length: 2\r\n", then="close", code="upstream_unreachable"),
    # half an answer
    bad("stalled body", answer(b"{}")[:-1], limits=SHORT, code="upstream_timeout"),
    bad("truncated body", answer(b"{}")[:-1], then="close"),
    bad("reset in the body", answer(b"{}")[:-1], then="reset"),
    bad("a refusal that breaks off", answer(b'{"error":{}}', 402)[:-1], then="close"),
    cut("stalled large body", answer(b"x" * LARGE)[:-1], limits=SHORT),
    cut("truncated large body", answer(b"x" * LARGE)[:-1], then="close"),
    cut("stalled chunks", CHUNKED + b"2\r\n{}\r\n", limits=SHORT),
    cut("truncated chunk", CHUNKED + b"5\r\n{}", then="close"),
    cut("chunks without an end", CHUNKED + b"2\r\n{}\r\n", then="close"),
    cut("bad chunk size", CHUNKED + b"2\r\n{}\r\nxyz\r\n"),
    cut("negative chunk size", CHUNKED + b"2\r\n{}\r\n-2\r\n"),
    cut("chunk longer than it says", CHUNKED + b"2\r\n{}x\r\n0\r\n\r\n"),
    cut("trailers", CHUNKED + b"2\r\n{}\r\n0\r\nSet-Cookie: a=b\r\n\r\n"),
    # no HTTP
    bad("garbage", b"\x00\xff\x13garbage\r\n\r\n"),
    bad("HTTP/0.9", b"<html>hello</html>"),
    bad("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n"),
    bad("HTTP/2", b"HTTP/2 200\r\nContent-Length: 0\r\n\r\n"),
    bad("no status", b"HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n"),
    bad("four-digit status", b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
    bad("bare line feeds", b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
    bad("folded header", OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
    bad("blank before the colon", OK + b"Content-Length : 0\r\n\r\n"),
    bad("NUL in a header", OK + b"X: a\x00b\r\nContent-Length: 0\r\n\r\n"),
    bad("bare CR in a header", OK + b"X: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n"),
    bad("a header that is none", OK + b"nonsense\r\nContent-Length: 0\r\n\r\n"),
    # a length that can be read in two ways, or not at all
    bad("CL and TE", OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
    bad("TE and CL", OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
    bad("two CLs, equal", OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}"),
    bad("two CLs, different", OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    bad("CL list", OK + b"Content-Length: 2, 2\r\n\r\n{}"),
    bad("CL +2", OK + b"Content-Length: +2\r\n\r\n{}"),
    bad("CL -2", OK + b"Content-Length: -2\r\n\r\n{}"),
    bad("CL of 30 digits", OK + b"Content-Length: 999999999999999999999999999999\r\n\r\n{}"),
    bad("TE gzip", OK + b"Transfer-Encoding: gzip\r\n\r\n{}"),
    bad("TE gzip, chunked", OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
    bad("no length", OK + b"\r\n{}"),
    bad("no length, closed", OK + b"Connection: close\r\n\r\n{}", then="close"),
    # too much
    bad("9 interim answers", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9 + answer()),
    bad("101", b"HTTP/1.1 101 Go\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"),
    bad("101 without Upgrade", b"HTTP/1.1 101 Go on\r\n\r\n" + answer()),
    bad("a head of 66 KB", OK + b"X: " + b"y" * 66_000 + b"\r\nContent-Length: 0\r\n\r\n"),
    bad(
        "a head of 66 KB in fields", OK + (b"X: " + b"y" * 600 + b"\r\n") * 110 + b"Content-Length: 0\r\n\r\n"
    ),
    bad("an endless head", OK + b"X: " + b"y" * 300_000),
    bad("201 fields", OK + b"X: y\r\n" * 200 + b"Content-Length: 0\r\n\r\n"),
    bad("a second answer behind the first", answer() + answer(b"evil")),
    bad("garbage behind the answer", answer() + b"garbage"),
    Behaviour("a second answer, later", says_more_later, 200, "", "posted", POSTED),
    # redirects and encodings
    *(
        Behaviour(
            f"{status}",
            says(answer(b"", status, b"Location: http://127.0.0.1:1/")),
            502,
            "upstream_redirect",
            "unknown",
            KEPT,
            reused=True,
        )
        for status in (300, 301, 302, 303, 304, 305, 307, 308, 399)
    ),
    bad("gzip", answer(b"\x1f\x8b", 200, b"Content-Encoding: gzip")),
    bad("br", answer(b"\x1f\x8b", 200, b"Content-Encoding: br")),
    bad("identity, gzip", answer(b"..", 200, b"Content-Encoding: identity", b"Content-Encoding: gzip")),
    # refusals, and answers that prove nothing
    *(
        proves(f"{status}", answer(b'{"error":{}}', status), status, "voided")
        for status in (400, 401, 402, 403, 404, 408, 410, 422, 429, 451, 499)
    ),
    *(
        proves(f"{status}", answer(b'{"error":{}}', status), status, "unknown")
        for status in (409, 500, 501, 502, 503, 504, 599)
    ),
    proves("a long refusal", answer(b"x" * LARGE, 402), 402, "voided"),
    # controls: unusual, and good
    Behaviour("200 byte by byte", drips, 200, "", "posted", POSTED, reused=True),
    proves("200", answer(b'{"id":"pi_1"}'), 200, "posted"),
    proves("201", answer(b"{}", 201), 201, "posted"),
    proves("204", b"HTTP/1.1 204 No\r\n\r\n", 204, "posted"),
    proves("200 without a body", answer(b""), 200, "posted"),
    proves("chunks", CHUNKED + b"2\r\n{}\r\n0\r\n\r\n", 200, "posted"),
    proves("8 interim answers", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 8 + answer(), 200, "posted"),
    proves("identity", answer(b"{}", 200, b"Content-Encoding: identity"), 200, "posted"),
    proves("Connection: close", answer(b"{}", 200, b"Connection: close"), 200, "posted", reused=False),
    proves("HTTP/1.0", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, "posted", reused=False),
]


def test_the_table_is_long_and_says_each_thing_once() -> None:
    assert len(BEHAVIOURS) >= 25
    assert len({behaviour.name for behaviour in BEHAVIOURS}) == len(BEHAVIOURS)


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=str)
def test_whatever_the_vendor_does(tmp_path: Path, behaviour: Behaviour) -> None:
    async def main() -> None:
        async with open_world(tmp_path, upstream=behaviour.limits) as world:
            world.vendor.script = behaviour.script
            reply = await world.ask()
            assert (reply.status, reply.code) == (behaviour.status, behaviour.code), reply
            assert reply.whole is behaviour.whole
            row = await world.last()
            assert (row["policy_check_result"], row["outcome"]) == ("allowed", behaviour.outcome)
            assert row["status"] == behaviour.status
            assert bool(row["reason"]) is (bool(behaviour.code) or not behaviour.whole)
            assert (world.held_cents, world.posted_cents) == behaviour.money
            if behaviour.code:
                assert row["reason"] in reply.json["error"]["message"]
                assert reply.get(b"x-should-retry") == reply.get(b"stripe-should-retry") == b"false"
            # The next call, to a vendor that has come to its senses.
            world.vendor.script = polite
            if behaviour.script is says_more_later:
                while world.pool._open:
                    await asyncio.sleep(0.001)
            assert (await world.ask()).status == 200
            assert world.vendor.lines == (1 if behaviour.reused else 2)
            assert world.posted_cents == behaviour.money[1] + 100
            await world.check_books()

    run(main())


def test_interim_answers_do_not_reach_the_agent(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.answers.append(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 8 + answer())
            reply = await world.ask()
            assert (reply.status, reply.interim, reply.get(b"link")) == (200, [], None)

    run(main())


def test_of_the_answer_s_head_the_agent_gets_what_is_for_it(tmp_path: Path) -> None:
    hop = (
        b"Set-Cookie: a=b",
        b"Set-Cookie: c=d",
        b"Connection: X-Hop",
        b"Connection: keep-alive, x-hop-2",
        b"X-Hop: 1",
        b"X-Hop-2: 1",
        b"Keep-Alive: timeout=5",
        b"Proxy-Authenticate: Basic",
        b"Alt-Svc: h2=:443",
        b"Strict-Transport-Security: max-age=1",
    )

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.answers.append(answer(b"{}", 200, *hop, b"Request-Id: req_1", b"X-Ours: yes"))
            reply = await world.ask()
            row = await world.last()
            assert dict(reply.fields) == {
                b"request-id": b"req_1",
                b"x-ours": b"yes",
                b"kbctl-call-id": row["call_id"].encode(),
                b"content-length": b"2",
            }
            assert row["vendor_request_id"] == "req_1"

    run(main())


def test_head_keeps_its_length_and_a_body_behind_it_is_an_anomaly(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            ask = world.request("HEAD", "/stripe/v1/balance", body=b"")
            for length in (11, 100_000):
                world.vendor.answers.append(OK + b"Content-Length: %d\r\n\r\n" % length)
                reply = await world.ask(ask)
                assert (reply.status, reply.get(b"content-length")) == (200, b"%d" % length)
            assert world.vendor.lines == 1
            world.vendor.answers.append(OK + b"Content-Length: 11\r\n\r\nHTTP/1.1 40")
            await world.ask(ask)
            assert (await world.ask(ask)).status == 200
            assert world.vendor.lines == 2, "what it sent too much is not the beginning of the next answer"
            await world.check_books()

    run(main())


def test_a_redirect_is_neither_followed_nor_passed_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with vendor_on_loopback() as canary, open_world(tmp_path) as world:
            place = f"http://127.0.0.1:{canary.port}/v1/payment_intents".encode()
            for status in (301, 302, 303, 307, 308):
                world.vendor.answers.append(answer(b"go", status, b"Location: " + place))
                reply = await world.ask()
                assert (reply.status, reply.code) == (502, "upstream_redirect")
                assert reply.get(b"location") is None
                assert place not in reply.body
            assert canary.lines == 0

    run(main())


def test_a_repeated_refusal_speaks_for_the_first_attempt_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            ask = world.request("POST", TARGET, (b"Idempotency-Key", b"once"))
            world.vendor.answers.append(answer(b"{}", 500))
            assert (await world.ask(ask)).status == 500
            assert (world.held_cents, world.posted_cents) == KEPT
            world.vendor.answers.append(answer(b"{}", 400))
            assert (await world.ask(ask)).status == 400
            assert (world.held_cents, world.posted_cents) == KEPT, "not marked: the first may have acted"
            world.vendor.answers.append(answer(b"{}", 400, b"Idempotent-Replayed: true"))
            assert (await world.ask(ask)).status == 400
            assert (world.held_cents, world.posted_cents) == RELEASED
            await world.check_books()

    run(main())


# --- large uploads -------------------------------------------------------------------------------


async def answers_unread(line: Line) -> None:
    """Answers as soon as it has the head, and reads the rest late."""
    await line.head()
    await line.say(answer(b'{"error":{}}', 413))
    await asyncio.sleep(0.2)
    await polite(line)


def test_an_early_answer_to_a_body_that_streams(tmp_path: Path) -> None:
    """It answers what it has not read; the rest must not be taken for the next request."""

    async def main() -> None:
        async with open_world(tmp_path, upstream=PATIENT) as world:
            _, key = await world.issue(allow=("POST /v1/uploads",), daily_cap_nano=None)
            world.vendor.script = answers_unread
            raw = world.request("POST", "/stripe/v1/uploads", body=b"x" * 9_000_000, key=key)
            raw = raw.replace(b"application/x-www-form-urlencoded", b"application/json")
            before = world.pool.loop.time()
            reply = await world.ask(raw)
            assert (reply.status, reply.code) == (502, "upstream_invalid")
            assert world.pool.loop.time() - before < 5, "whoever waits to send more is woken"
            world.vendor.script = polite
            assert (await world.ask()).status == 200
            assert world.vendor.lines == 2
            assert len(world.vendor.arrived) == 1

    run(main())


def test_an_early_answer_to_a_body_that_was_read_before(tmp_path: Path) -> None:
    """Its status counts, but the connection, with the rest of the body still before it, is not used again."""

    async def main() -> None:
        async with open_world(tmp_path, upstream=PATIENT) as world:
            world.vendor.script = answers_unread
            body = b"amount=100&currency=usd&description=" + b"x" * 10_000_000
            reply = await world.ask(world.request(body=body))
            assert (reply.status, reply.code) == (413, "")
            world.vendor.script = polite
            assert (await world.ask()).status == 200
            assert world.vendor.lines == 2
            assert (world.held_cents, world.posted_cents) == POSTED

    run(main())


# --- no connection: nothing was sent, so nothing is held -----------------------------------------


async def unsent(world: World) -> str:
    """This call finds no vendor; the sentence that says why."""
    reply = await world.ask()
    assert (reply.status, reply.code) == (502, "upstream_unreachable")
    row = await world.last()
    assert (row["outcome"], row["policy_check_result"]) == ("voided", "allowed")
    assert (world.held_cents, world.posted_cents) == RELEASED
    assert "nothing was sent" in row["reason"]
    await world.check_books()
    return str(row["reason"])


def test_a_port_where_nobody_listens(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        async with open_world(tmp_path, origin=f"http://127.0.0.1:{port}") as world:
            assert "connection refused" in await unsent(world)

    run(main())


def test_a_port_that_does_not_answer(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            port = full.getsockname()[1]
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            try:
                async with open_world(tmp_path, origin=f"http://127.0.0.1:{port}", upstream=SHORT) as world:
                    assert "no connection within 0.3 s" in await unsent(world)
            finally:
                for filler in fillers:
                    filler.close()

    run(main())


def test_all_connections_busy(tmp_path: Path) -> None:
    """Calls with one real key wait their turn for the slots; those with another still meet at the pool."""
    go = asyncio.Event()

    async def slow(line: Line) -> None:
        await line.request()
        await go.wait()
        await line.say(answer())
        await polite(line)

    async def main() -> None:
        async with open_world(tmp_path, upstream=UpstreamLimits(connect_s=0.3, connections=1)) as world:
            world.vendor.script = slow
            file = world.plane.vendors["stripe"]
            await world.credentials.set("stripe:other", file, "sk_test_of_another_account", 0, "tester")
            _, other = await world.issue(credential="stripe:other")
            first = asyncio.create_task(world.ask())
            while not world.vendor.arrived:
                await asyncio.sleep(0)
            reply = await world.ask(world.request(key=other))
            assert (reply.status, reply.code) == (502, "upstream_unreachable")
            assert "all 1 connections to it are busy" in reply.json["error"]["message"]
            waits = asyncio.create_task(world.ask(world.request(key=other)))
            while not world.pool._waiting:
                await asyncio.sleep(0)
            go.set()
            assert (await first).status == (await waits).status == 200
            assert world.vendor.lines == 1, "the one that waited got the one that was given back"
            await world.check_books()

    run(main())


def test_a_connection_that_comes_free_for_one_that_gave_up_goes_to_the_next(tmp_path: Path) -> None:
    """Two wait for the only connection; the first is cancelled in the very moment that it is its turn."""

    async def main() -> None:
        async with open_world(tmp_path, upstream=UpstreamLimits(connect_s=30, connections=1)) as world:
            held = await world.pool.connection()
            first, second = (asyncio.create_task(world.pool.connection()) for _ in range(2))
            while len(world.pool._waiting) < 2:
                await asyncio.sleep(0)
            held.close()
            while len(world.pool._waiting) == 2:
                await asyncio.sleep(0)
            first.cancel()
            async with asyncio.timeout(2):
                (await second).close()
            assert isinstance(
                (await asyncio.gather(first, return_exceptions=True))[0], asyncio.CancelledError
            )

    run(main())


def test_an_idle_connection_that_the_vendor_closes_is_not_written_to(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            for then in ("close", "reset", "close"):
                world.vendor.script = says(answer(), then=then)
                assert (await world.ask()).status == 200
                while world.pool._open:
                    await asyncio.sleep(0)
            assert world.vendor.lines == 3
            assert world.posted_cents == 300

    run(main())


def test_an_old_idle_connection_is_not_used(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, upstream=UpstreamLimits(idle_s=0.2)) as world:
            for wait_s, lines in ((0.0, 1), (0.0, 1), (0.3, 2)):
                await asyncio.sleep(wait_s)
                assert (await world.ask()).status == 200
                assert world.vendor.lines == lines

    run(main())


def test_a_connection_that_is_gone_is_not_written_to(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            connection = await world.pool.connection()
            assert connection.ready
            connection.close()
            with pytest.raises(UpstreamError) as caught:
                connection.send(b"GET / HTTP/1.1\r\n\r\n", head_only=False)
            assert (caught.value.failure, caught.value.sent) == (Failure.UNREACHABLE, False)

    run(main())


def test_each_wait_on_a_kept_connection_has_its_own_end(tmp_path: Path) -> None:
    """The second call has as long as the first."""

    async def main() -> None:
        async with open_world(tmp_path, upstream=SHORT) as world:

            async def answers_once(line: Line) -> None:
                await line.request()
                await line.say(answer())
                await line.request()
                await asyncio.sleep(10)

            world.vendor.script = answers_once
            assert (await world.ask()).status == 200
            await asyncio.sleep(0.15)
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert (await world.ask()).status == 504
            assert loop.time() - began >= SHORT.first_byte_s - 0.01
            assert world.vendor.lines == 1

    run(main())
