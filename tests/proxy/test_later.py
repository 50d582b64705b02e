"""A vendor tells the true price after the call: it is asked for, and what was posted is corrected."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from kbctld.core.later import TRIES_MAX
from kbctld.proxy.later import LaterPrices
from kbctld.store.later import next_due
from tests.proxy.test_twilio import ALIAS, CALL, CALLS, JSON, MESSAGE, ask, messages, twilio
from tests.support.loop import run
from tests.support.vendor import answer
from tests.support.world import ACCOUNT, World, open_world

PLACE = messages(ACCOUNT).replace(".json", "/SM1.json")


def told(price: str | None, **more: Any) -> bytes:
    """The vendor's later answer."""
    return answer(json.dumps({"sid": "SM1", "price": price, "price_unit": "USD", **more}).encode(), 200, JSON)


async def send(world: World, key: str | None = None, sid: str = "SM1") -> None:
    """One message of an agent, held and posted at $0.0145."""
    made = json.dumps({"sid": sid, "price": None, "price_unit": "USD"}).encode()
    world.vendor.answers.append(answer(made, 201, JSON))
    assert (await ask(world, f"/twilio{messages(ALIAS)}", MESSAGE, key=key or world.key)).status == 201
    await world.rows()


def pass_time(world: World, seconds: int) -> None:
    """The clocks go on: the wall's, and the machine's own."""
    wall, boot = world.vault._wall_ns, world.vault._boot_ns
    world.vault._wall_ns = lambda: wall() + seconds * 10**9
    world.vault._boot_ns = lambda: boot() + seconds * 10**9


async def posted(world: World) -> int:
    """What counts against the cap, the same in memory, in the balance and in the row."""
    rows = [row for row in await world.rows() if row["operation"] == "messages.create"]
    async with world.database.reader.execute(
        "SELECT sum(posted_nano) FROM balance WHERE scope = ?", (world.grant.key_id,)
    ) as cursor:
        ((balance,),) = await cursor.fetchall()
    await world.check_books()
    assert world.grant.scope.account.posted_total == balance == sum(row["amount_nano"] for row in rows)
    return int(balance)


@pytest.mark.parametrize(
    ("price", "nano", "frozen"),
    [
        # Told without the carriers' fee of 0.0062 at most, which is billed apart.
        ("-0.00750", 13_700_000, False),
        ("-0.00830", 14_500_000, False),
        ("-0.05000", 56_200_000, True),
    ],
)
def test_what_was_posted_becomes_what_it_cost(tmp_path: Path, price: str, nano: int, frozen: bool) -> None:
    """Down or up; a key whose call cost more than was held stops. The question is a row of ours."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            await send(world)
            assert await posted(world) == 14_500_000
            first = (await world.last())["call_id"]
            later = LaterPrices(world.plane)
            pass_time(world, 61)
            world.vendor.answers.append(told(price))
            await later.step()
            assert (world.heard.method, world.heard.target) == ("GET", PLACE)
            assert world.heard.all(b"authorization")[0].startswith(b"Basic ")
            assert await posted(world) == nano
            ours = await world.last()
            assert (ours["key_no"], ours["operation"], ours["amount_nano"]) == (None, "messages.retrieve", 0)
            assert (ours["status"], ours["outcome"]) == (200, "posted")
            assert ours["reason"] == f"kbctl asked what {first} cost"
            assert (world.grant.frozen is not None) is frozen
            async with world.database.reader.execute(
                "SELECT actor, subject FROM change WHERE action = 'call.correct'"
            ) as cursor:
                assert [tuple(row) async for row in cursor] == [("kbctl", first)]
            assert await next_due(world.database.reader) is None

    run(main())


@pytest.mark.parametrize(
    "raw",
    [
        told(None),
        told("0"),
        told("-0.00750", sid="SM2"),
        told("-0.00750", price_unit="XXX"),
        answer(b"{}", 500, JSON),
        answer(b'{"sid":"SM1","price":"-0.0075","price_unit":"USD"}', 404, JSON),
        answer(b"[]", 200, JSON),
        answer(b"no JSON", 200, JSON),
        answer(b" " * (1024 * 1024 + 1), 200, JSON),
        b"no HTTP\r\n\r\n",
    ],
)
def test_law_3_what_is_not_told_is_not_freed(tmp_path: Path, raw: bytes) -> None:
    """It is asked for again after twice the time, and then counts."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            await send(world)
            later = LaterPrices(world.plane)
            pass_time(world, 61)
            world.vendor.answers.append(raw)
            await later.step()
            assert await posted(world) == 14_500_000
            waiting = await next_due(world.database.reader)
            assert waiting is not None
            assert waiting.tries == 1
            assert 110 * 10**9 < waiting.due_ns - world.vault.now_ns() <= 120 * 10**9
            pass_time(world, 121)
            world.vendor.answers.append(told("-0.00750"))
            await later.step()
            assert await posted(world) == 13_700_000

    run(main())


def test_a_price_that_is_never_told_is_given_up(tmp_path: Path) -> None:
    """What was held stays spent."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            await send(world)
            later = LaterPrices(world.plane)
            for _ in range(TRIES_MAX):
                pass_time(world, 86_400)
                world.vendor.answers.append(told(None))
                await later.step()
            assert await posted(world) == 14_500_000
            assert await next_due(world.database.reader) is None
            assert len([row for row in await world.rows() if row["method"] == "GET"]) == TRIES_MAX

    run(main())


def test_a_restart_goes_on_asking(tmp_path: Path) -> None:
    """What waits is on disk; the correction counts on the day of the hold, for every scope of the key."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            grant, key = await world.issue(vendors=("twilio",), tenant="acme")
            await send(world, key)
            number = grant.no
        (tmp_path / "kbctl.db").chmod(0o600)
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            pass_time(world, 2 * 86_400)
            world.vendor.answers.append(told("-0.00750"))
            await LaterPrices(world.plane).step()
            grant = await world.vault.grant_of(number)
            days = [scope.account.posted for scope in grant.scopes]
            today = world.vault.now_ns() // (86_400 * 10**9)
            assert [list(each.values()) for each in days] == [[13_700_000], [13_700_000]]
            assert all(day < today for each in days for day in each)
            await world.check_books()

    run(main())


def test_while_the_daemon_stops_or_the_credential_is_gone_nobody_is_asked(tmp_path: Path) -> None:
    """That is no try of the vendor's, and no row."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            await send(world)
            later = LaterPrices(world.plane)
            heard = len(world.vendor.arrived)
            for _ in range(2):
                pass_time(world, 86_400)
                world.plane.draining = True
                await later.step()
                world.plane.draining = False
            waiting = await next_due(world.database.reader)
            assert waiting is not None
            assert waiting.tries == 0
            assert len(world.vendor.arrived) == heard
            assert len(await world.rows()) == 1

    run(main())


def test_a_call_is_asked_about_too(tmp_path: Path) -> None:
    """Its price comes when it has ended; until the first is due, nothing is asked."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            world.vendor.answers.append(answer(b'{"sid":"CA1"}', 201, JSON))
            assert (await ask(world, f"/twilio{CALLS}", CALL)).status == 201
            await world.rows()
            waiting = await next_due(world.database.reader)
            assert waiting is not None
            assert waiting.path == CALLS.replace(".json", "/CA1.json")
            assert (waiting.nano, waiting.fees_nano) == (840_000_000, 0)
            world.vault._wall_ns = lambda: waiting.due_ns - 10**7
            began = time.monotonic()
            assert await LaterPrices(world.plane).step() == 0
            assert time.monotonic() - began < 5
            assert len(world.vendor.arrived) == 1

    run(main())


def test_refused_calls_and_those_without_an_id_wait_for_nothing(tmp_path: Path) -> None:
    """There is nothing to ask about."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            for raw in (
                answer(b'{"sid":"SM1"}', 400, JSON),
                answer(b"{}", 201, JSON),
                answer(b"x", 201, JSON),
            ):
                world.vendor.answers.append(raw)
                await ask(world, f"/twilio{messages(ALIAS)}", MESSAGE)
            await world.rows()
            assert await next_due(world.database.reader) is None

    run(main())
