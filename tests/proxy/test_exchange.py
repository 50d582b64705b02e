"""L13, F3 and laws 2 and 3 between the steps of one exchange: cancelled, revoked or stopped at any moment."""

import asyncio
import sqlite3
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kbctld.core.pace import Rate, read_rate
from kbctld.core.vendor_file import RateClass
from kbctld.proxy.upstream import UpstreamLimits
from kbctld.vault import Selection
from tests.support.loop import run
from tests.support.vendor import Line, answer, polite
from tests.support.world import TARGET, World, open_world

# --- cancelled at every await --------------------------------------------------------------------


class CancelledAt:
    """Cancels the task that runs a coroutine when it suspends for the n-th time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.struck = False

    def __call__(self, work: Coroutine[Any, Any, None]) -> Awaitable[None]:
        return self._drive(work)

    @types.coroutine
    def _drive(self, work: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        inner = work.__await__()
        failure: BaseException | None = None
        while True:
            try:
                waited_for = next(inner) if failure is None else inner.throw(failure)
            except StopIteration:
                return
            if self.count == 0:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                self.struck = True
            self.count -= 1
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001 - passed on to whom it is for
                failure = error
            else:
                failure = None


Manner = Callable[[Line], Awaitable[None]]


async def in_pieces(line: Line) -> None:
    """Answers so that every read on the way has to wait."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    large = b"70000\r\n" + b"x" * 0x70000 + b"\r\n"
    for piece in (head[:9], head[9:], b"1\r\nx\r\n", large, b"0\r\n\r\n"):
        await line.say(piece)
        await asyncio.sleep(0.002)


async def small(line: Line) -> None:
    raw = answer(b'{"id":"pi_1"}')
    for piece in (raw[:20], raw[20:-3], raw[-3:]):
        await line.say(piece)
        await asyncio.sleep(0.002)


async def refuses(line: Line) -> None:
    await line.say(answer(b'{"error":{}}', 402))


async def usual(line: Line) -> None:
    await line.say(line.vendor.usual())


class Mannered:
    """Answers each request of each connection in the manner of the moment."""

    def __init__(self, manner: Manner) -> None:
        self.manner = manner

    async def __call__(self, line: Line) -> None:
        while True:
            await line.request()
            await self.manner(line)


async def strike(world: World, raw: bytes, count: int) -> bool:
    """Send in pieces, cancel at that suspension; whether there was one."""
    blow = CancelledAt(count)
    world.around = blow
    agent = await world.connect()
    for piece in (raw[:-5], raw[-5:]):
        await agent.send(piece)
        await asyncio.sleep(0.002)
    reply = await agent.reply()
    agent.close()
    await world.calm()
    world.around = None
    assert blow.struck is not reply.whole
    return blow.struck


@pytest.mark.parametrize("manner", [in_pieces, small, refuses])
@pytest.mark.parametrize("pooled", [False, True])
def test_cancelled_at_any_await_no_hold_leaks(tmp_path: Path, manner: Manner, pooled: bool) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = mannered = Mannered(manner)
            outcomes = set()
            for count in range(100):
                if pooled:
                    mannered.manner = usual
                    assert (await world.ask()).status == 200
                    mannered.manner = manner
                before, rows, held = len(world.vendor.arrived), len(await world.rows()), world.held_cents
                struck = await strike(world, world.request(), count)
                await asyncio.sleep(0.005)  # what has left may still be on its way to the vendor
                outcome = "none" if len(await world.rows()) == rows else (await world.last())["outcome"]
                outcomes.add(outcome)
                if len(world.vendor.arrived) > before:
                    assert outcome in ("unknown", "voided" if manner is refuses else "posted")
                else:
                    assert outcome in ("none", "refused", "voided", "unknown")
                assert world.held_cents == held + (100 if outcome == "unknown" else 0)
                await world.check_books()
                assert world.plane.idle
                assert world.pool._connecting == 0
                assert len(world.pool._open) == len(world.pool._idle)
                if not struck:
                    break
            assert count > 2, "there was more than one await to strike at"
            assert outcomes >= {"unknown", "voided"}

    run(main())


@pytest.mark.parametrize("first", [True, False], ids=["its first attempt", "its retry"])
def test_cancelled_retries_share_one_hold(tmp_path: Path, first: bool) -> None:
    """Law 12: whichever of two attempts is struck, money is held once, and never freed on silence."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = Mannered(small)
            for count in range(100):
                raw = world.request("POST", TARGET, (b"Idempotency-Key", b"k%d" % count))
                before = world.held_cents + world.posted_cents
                if first:
                    struck = await strike(world, raw, count)
                    assert (await world.ask(raw)).status == 200
                else:
                    assert (await world.ask(raw)).status == 200
                    struck = await strike(world, raw, count)
                assert world.held_cents + world.posted_cents == before + 100
                await world.check_books()
                if not struck:
                    break
            assert count > 2

    run(main())


# --- turns ---------------------------------------------------------------------------------------


class Slow:
    """Answers once it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, line: Line) -> None:
        await line.request()
        await self.go.wait()
        await line.say(answer())
        await polite(line)


def test_a_turn_that_comes_together_with_the_end_is_passed_on(tmp_path: Path) -> None:
    """Else each such moment would take one of the key's places for ever."""

    async def main() -> None:
        async with open_world(tmp_path, busy_per_key=1) as world:
            world.vendor.script = slow = Slow()
            first = asyncio.create_task(world.ask())
            while not world.vendor.arrived:
                await asyncio.sleep(0)
            known = set(world.server._connections)
            turns = world.plane._places._keys[world.grant.no]
            second = asyncio.create_task(world.ask())
            while len(turns.waiting) < 1:
                await asyncio.sleep(0)
            (doomed,) = world.server._connections.keys() - known
            third = asyncio.create_task(world.ask())
            while len(turns.waiting) < 2:
                await asyncio.sleep(0)
            slow.go.set()
            while len(turns.waiting) == 2:
                await asyncio.sleep(0)
            doomed.cancel_task()
            assert [(await call).status for call in (first, second, third)] == [200, 0, 200]
            assert world.plane.idle
            await world.check_books()

    run(main())


def test_too_many_calls_of_one_key(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, busy_per_key=2, turn_s=0.1) as world:
            world.vendor.script = slow = Slow()
            calls = [asyncio.create_task(world.ask()) for _ in range(2)]
            while len(world.vendor.arrived) < 2:
                await asyncio.sleep(0)
            reply = await world.ask()
            assert (reply.status, reply.code, reply.get(b"retry-after")) == (429, "rate_limited", b"1")
            _, other = await world.issue()
            world.vendor.script = polite
            assert (await world.ask(world.request(key=other))).status == 200, "another key has its own places"
            slow.go.set()
            assert [reply.status for reply in await asyncio.gather(*calls)] == [200, 200]
            assert world.plane.idle
            assert len(world.vendor.arrived) == 3
            await world.check_books()

    run(main())


def test_calls_beyond_the_vendor_s_rate_wait_and_are_then_refused(tmp_path: Path) -> None:
    """n and n + 1 of each class; what was refused after its turn came has cost none; accounts are apart."""

    async def main() -> None:
        rates: dict[RateClass, Rate] = {"write": read_rate("2/h"), "read": read_rate("1/h")}
        async with open_world(tmp_path, rates=rates, turn_s=0.1) as world:
            unpriced = world.request(body=b"amount=1&currency=xyz")
            for _ in range(3):
                assert (await world.ask(unpriced)).code == "amount_unknown"
            assert [(await world.ask()).status for _ in range(2)] == [200, 200]
            reply = await world.ask()
            assert (reply.status, reply.code, reply.get(b"retry-after")) == (429, "rate_limited", b"1")
            assert "stripe takes 2/h writes of this account" in reply.json["error"]["message"]
            assert (await world.last())["policy_check_result"] == "rate_limited"
            read = world.request("GET", "/stripe/v1/customers/cus_1", body=b"")
            assert (await world.ask(read)).status == 200
            look = world.request("HEAD", "/stripe/v1/customers/cus_1", body=b"")
            assert (await world.ask(look)).status == 429, "HEAD is a read too"
            file = world.plane.vendors["stripe"]
            await world.credentials.set("stripe:other", file, "sk_test_of_another_account", 0, "tester")
            _, other = await world.issue(credential="stripe:other")
            assert (await world.ask(world.request(key=other))).status == 200
            assert world.plane.idle
            await world.check_books()

    run(main())


def test_a_slow_body_keeps_nothing_from_others(tmp_path: Path) -> None:
    """The only slot and the only turn of the hour are for whoever has sent all of its request."""

    async def main() -> None:
        rates: dict[RateClass, Rate] = {"write": read_rate("1/h")}
        limits = UpstreamLimits(connections=1)
        async with open_world(tmp_path, rates=rates, upstream=limits, turn_s=0.1) as world:
            slow = await world.connect()
            await slow.send(world.request()[:-1])
            while not world.busy:
                await asyncio.sleep(0)
            assert (await world.ask()).status == 200
            await slow.send(world.request()[-1:])
            assert (await slow.reply()).code == "rate_limited"
            slow.close()
            await world.calm()
            assert world.plane.idle

    run(main())


def test_what_is_known_of_an_object_is_asked_after_the_wait(tmp_path: Path) -> None:
    """A price builds on it: while a call waited its turn, the one before it changed the object."""

    async def main() -> None:
        async with open_world(tmp_path, upstream=UpstreamLimits(connections=1)) as world:
            world.vendor.answers.append(answer(b'{"id":"pi_1","amount":100,"currency":"usd"}'))
            assert (await world.ask()).status == 200
            world.vendor.script = slow = Slow()
            raise_it = world.request("POST", f"{TARGET}/pi_1", body=b"amount=300&currency=usd")
            world.pool._idle[0].close()  # the next connection gets the slow script
            calls = [asyncio.create_task(world.ask(raise_it)) for _ in range(2)]
            while len(world.vendor.arrived) < 2 or not world.plane._shares["stripe", "stripe"]._line:
                await asyncio.sleep(0)
            slow.go.set()
            assert [(await call).status for call in calls] == [200, 200]
            assert world.posted_cents == 300
            await world.check_books()

    run(main())


# --- durable before the first byte ---------------------------------------------------------------


def test_the_row_is_on_disk_before_the_vendor_hears_of_it(tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []

    async def looks(line: Line) -> None:
        while True:
            await line.request()
            place = f"file:{tmp_path / 'kbctl.db'}?mode=ro"
            with closing(sqlite3.connect(place, uri=True)) as journal:
                told.append(
                    journal.execute("SELECT outcome, amount_nano FROM call ORDER BY no DESC").fetchone()
                )
            await line.say(answer())

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = looks
            for _ in range(5):
                assert (await world.ask()).status == 200
            assert told == [("pending", 1_000_000_000)] * 5

    run(main())


def test_what_cannot_be_recorded_is_not_forwarded(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            journal = world.vault.journal
            assert (await world.ask()).status == 200
            plenty = journal._free_bytes
            journal._free_bytes, journal._free_until = (lambda: 0), 0.0
            reply = await world.ask()
            assert (reply.status, reply.code) == (503, "audit_unavailable")
            assert len(world.vendor.arrived) == 1
            assert world.held_cents == 0
            journal._free_bytes, journal._free_until = plenty, 0.0
            assert (await world.ask()).status == 200
            await world.check_books()

    run(main())


# --- the last look -------------------------------------------------------------------------------


async def waiting_for_a_connection(world: World) -> "asyncio.Task[Any]":
    """A call whose row is written, and that has no connection yet."""
    call = asyncio.create_task(world.ask())
    while not world.pool._waiting:
        await asyncio.sleep(0)
    assert world.held_cents == 100
    return call


@pytest.mark.parametrize(
    ("what", "code"),
    [("revoked", "key_revoked"), ("removed", "credential_unavailable"), ("draining", "shutting_down")],
)
def test_what_changes_while_a_call_waits_stops_it(tmp_path: Path, what: str, code: str) -> None:
    async def main() -> None:
        async with open_world(tmp_path, upstream=UpstreamLimits(connections=1)) as world:
            taken = await world.pool.connection()
            call = await waiting_for_a_connection(world)
            if what == "revoked":
                await world.vault.revoke(Selection(frozenset({world.grant.no})), "tester")
            elif what == "removed":
                await world.credentials.remove("stripe", world.vault.now_ns(), "tester")
            else:
                world.plane.draining = True
            taken.release()
            assert (await call).code == code
            assert not world.vendor.arrived
            assert world.held_cents == 0
            row = await world.last()
            assert (row["policy_check_result"], row["outcome"]) == (code, "voided")
            await world.check_books()

    run(main())


@pytest.mark.parametrize(
    ("what", "code"),
    [("revoked", "key_revoked"), ("removed", "credential_unavailable"), ("draining", "shutting_down")],
)
def test_what_changes_while_a_call_is_in_line_stops_it(tmp_path: Path, what: str, code: str) -> None:
    """It has no row yet, and nothing is held for it."""

    async def main() -> None:
        async with open_world(tmp_path, upstream=UpstreamLimits(connections=1)) as world:
            world.vendor.script = slow = Slow()
            other, other_key = await world.issue()
            first = asyncio.create_task(world.ask())
            while not world.vendor.arrived:
                await asyncio.sleep(0)
            call = asyncio.create_task(world.ask(world.request(key=other_key)))
            shares = world.plane._shares["stripe", "stripe"]
            while not shares._line:
                await asyncio.sleep(0)
            assert other.scopes[0].account.held_total == 0
            if what == "revoked":
                await world.vault.revoke(Selection(frozenset({other.no})), "tester")
            elif what == "removed":
                await world.credentials.remove("stripe", 0, "tester")
            else:
                world.plane.draining = True
            slow.go.set()
            assert (await call).code == code
            assert (await first).status == 200
            assert len(world.vendor.arrived) == 1
            assert (await world.last())["policy_check_result"] == code
            assert world.plane.idle
            await world.check_books()

    run(main())


def test_a_secret_that_is_rotated_while_a_call_waits_is_the_one_that_is_sent(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, upstream=UpstreamLimits(connections=1)) as world:
            taken = await world.pool.connection()
            call = await waiting_for_a_connection(world)
            file = world.plane.vendors["stripe"]
            await world.credentials.set(
                "stripe", file, "sk_test_the_newer_one", world.vault.now_ns(), "tester"
            )
            taken.release()
            assert (await call).status == 200
            assert world.heard.all(b"authorization") == [b"Bearer sk_test_the_newer_one"]

    run(main())


def test_a_key_that_is_revoked_while_its_body_comes_in_sends_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            raw = world.request()
            agent = await world.connect()
            await agent.send(raw[:-1])
            while not world.busy:
                await asyncio.sleep(0)
            await world.vault.revoke(Selection(frozenset({world.grant.no})), "tester")
            await agent.send(raw[-1:] + raw)
            for _ in range(2):
                assert (await agent.reply()).code == "key_revoked", "on this connection and for ever"
            agent.close()
            assert world.vendor.lines == 0

    run(main())


def test_a_defect_of_ours_keeps_what_has_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_secret: str) -> None:
        raise ValueError("a defect")

    async def main() -> None:
        async with open_world(tmp_path) as world:
            monkeypatch.setattr("kbctld.proxy.plane.Scrubber", broken)
            reply = await world.ask()
            assert (reply.status, reply.code) == (500, "internal")
            assert (world.held_cents, world.posted_cents) == (100, 0)
            assert (await world.last())["outcome"] == "unknown"
            assert world.plane.idle
            await world.check_books()

    run(main())
    assert "a request failed inside the daemon" in caplog.text


def test_L6_a_retry_does_not_leave_on_a_hold_that_could_not_be_recorded(tmp_path: Path) -> None:
    """The disk is full for the first attempt's row and not for its retry's: a crash would forget the hold."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            journal = world.vault.journal
            commit, begun, refused = journal._commit, asyncio.Event(), asyncio.Event()

            async def full(*_batch: Any) -> None:
                journal._commit = commit  # type: ignore[method-assign]
                begun.set()
                await refused.wait()
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error

            journal._commit = full  # type: ignore[method-assign, assignment]
            request = world.request("POST", TARGET, (b"Idempotency-Key", b"order-1"))
            first = asyncio.create_task(world.ask(request))
            await begun.wait()
            second = asyncio.create_task(world.ask(request))
            while not journal._next.rows:
                await asyncio.sleep(0.001)
            refused.set()
            assert [(await first).status, (await second).status] == [503, 503]
            assert not world.vendor.arrived
            assert world.held_cents == 0
            told = [(row["policy_check_result"], row["amount_nano"]) for row in await world.rows()]
            assert told == [("audit_unavailable", 0)] * 2
            await world.check_books()
            assert (await world.ask(request)).status == 200

    run(main())
