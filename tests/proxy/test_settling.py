"""A call that got no answer: the vendor's own list settles it, and nothing else does."""

import json
from pathlib import Path
from typing import Any

import pytest

from kbctld.core.ledger import NS_PER_S
from kbctld.proxy.settling import Settling
from tests.support.loop import run
from tests.support.vendor import Line, answer, polite
from tests.support.world import CENT, World, open_world

KEY = (b"Idempotency-Key", b"order-1")


def event(world: World, key: str = "order-1", **changes: Any) -> dict[str, Any]:
    """What Stripe lists of an intent of $1."""
    made = {"id": "pi_1", "amount": 100, "currency": "usd", **changes}
    return {
        "id": "evt_1",
        "type": "payment_intent.created",
        "created": world.vault.now_ns() // NS_PER_S,
        "request": {"id": "req_9", "idempotency_key": key},
        "data": {"object": made},
    }


def listed(*events: dict[str, Any], more: bool = False) -> bytes:
    return answer(json.dumps({"data": events, "has_more": more}).encode())


async def lose(world: World, *fields: tuple[bytes, bytes], key: str | None = None) -> None:
    """A call that the vendor takes and does not answer; afterwards it is polite."""

    async def silent(line: Line) -> None:
        await line.request()
        line.reset()

    world.vendor.script = silent
    raw = world.request("POST", "/stripe/v1/payment_intents", *fields, key=key)
    assert (await world.ask(raw)).status == 502
    world.vendor.script = polite
    await world.rows()


def pass_time(world: World, seconds: int) -> None:
    """The clocks go on: the wall's, and the machine's own."""
    wall, boot = world.vault._wall_ns, world.vault._boot_ns
    world.vault._wall_ns = lambda: wall() + seconds * 10**9
    world.vault._boot_ns = lambda: boot() + seconds * 10**9


async def change_rows(world: World) -> list[tuple[Any, ...]]:
    async with world.database.reader.execute(
        "SELECT actor, subject, details FROM change WHERE action = 'call.resolve'"
    ) as cursor:
        return [tuple(row) async for row in cursor]


def test_what_stands_in_the_list_is_posted(tmp_path: Path) -> None:
    """After half a minute, in which a retry would have told; by a row of ours; the object is remembered."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            settling = Settling(world.plane)
            await lose(world, KEY)
            call_id = (await world.last())["call_id"]
            await settling.step()
            assert len(world.vendor.arrived) == 1
            pass_time(world, 31)
            world.vendor.answers.append(listed(event(world, "order-0"), more=True))
            world.vendor.answers.append(listed({**event(world), "id": "evt_2"}))
            await settling.step()
            first, second = world.vendor.arrived[1:]
            assert (first.method, first.target.partition("?")[0]) == ("GET", "/v1/events")
            assert "type=payment_intent.created" in first.target
            assert second.target == f"{first.target}&starting_after=evt_1"
            assert (world.posted_cents, world.held_cents) == (100, 0)
            rows = await world.rows()
            assert (rows[0]["outcome"], rows[0]["vendor_request_id"]) == ("posted", "req_9")
            why = f"kbctl asked what became of {call_id}"
            for row in rows[1:]:
                assert (row["key_no"], row["amount_nano"], row["reason"]) == (None, 0, why)
            assert len(rows) == 3
            ((actor, subject, details),) = await change_rows(world)
            assert (actor, subject, json.loads(details)["found"]) == ("kbctl", call_id, "pi_1")
            assert (await world.vault.recall("stripe", "stripe", ["pi_1"]))["pi_1"].nano == 100 * CENT
            await world.check_books()
            # Nothing is unknown any more, so nothing is asked.
            pass_time(world, 86_400)
            await settling.step()
            assert len(world.vendor.arrived) == 3

    run(main())


class _Naive(Settling):
    """The control: takes what is not listed for what did not happen."""

    async def step(self) -> float:
        before = len(self._plane.vault.ledger.open)
        seconds = await super().step()
        for hold in list(self._vault.ledger.open) if before == len(self._vault.ledger.open) else ():
            await self._vault.resolve(hold, None, "naive", {})
        return seconds


@pytest.mark.parametrize("naive", [True, False])
def test_law_3_what_is_not_listed_is_never_freed_however_long(tmp_path: Path, naive: bool) -> None:
    """The vendor moved $1 of a cap of $1 and lists it days later: who takes that for a no moves it twice."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            settling = (_Naive if naive else Settling)(world.plane)
            grant, key = await world.issue(daily_cap_nano=None, total_cap_nano=100 * CENT)
            await lose(world, KEY, key=key)
            moved_cents = 100
            for questions in range(1, 31):
                pass_time(world, 12 * 3600)
                world.vendor.answers.append(listed())
                await settling.step()
                if naive:
                    break
                assert grant.scope.account.held_total == 100 * CENT
                assert len(world.vendor.arrived) == 1 + questions
            status = (await world.ask(world.request(key=key))).status
            moved_cents += 100 if status == 200 else 0
            assert (status, moved_cents) == ((200, 200) if naive else (429, 100))
            if naive:
                return
            assert await change_rows(world) == []
            world.vendor.answers.append(listed(event(world)))
            pass_time(world, 12 * 3600)
            await settling.step()
            assert (grant.scope.account.posted_total, grant.scope.account.held_total) == (100 * CENT, 0)

    run(main())


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(answer(b"{}", 500), id="an error"),
        pytest.param(answer(b"{}"), id="no list"),
        pytest.param(answer(b"x"), id="no JSON"),
        pytest.param(answer(b" " * (4 * 1024 * 1024 + 1)), id="too large"),
        pytest.param(b"no HTTP\r\n\r\n", id="garbage"),
        pytest.param("less", id="less than is held"),
        pytest.param("another key", id="another key"),
        pytest.param("twice", id="twice"),
    ],
)
def test_law_3_what_proves_nothing_changes_nothing(tmp_path: Path, raw: bytes | str) -> None:
    """It stays held; the next question is answered, and settles it."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            settling = Settling(world.plane)
            await lose(world, KEY)
            pass_time(world, 31)
            said = {
                "less": listed(event(world, amount=99)),
                "another key": listed(event(world, "order-2")),
                "twice": listed(event(world), event(world, id="pi_2")),
            }
            world.vendor.answers.append(said[raw] if isinstance(raw, str) else raw)
            await settling.step()
            assert (world.posted_cents, world.held_cents) == (0, 100)
            pass_time(world, 20)
            await settling.step()
            assert len(world.vendor.arrived) == 2  # not yet again
            pass_time(world, 40)
            world.vendor.answers.append(listed(event(world)))
            await settling.step()
            assert (world.posted_cents, world.held_cents) == (100, 0)

    run(main())


def test_more_than_was_held_is_posted_and_stops_the_key(tmp_path: Path) -> None:
    """The truth, never clipped; the bound was wrong."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            settling = Settling(world.plane)
            await lose(world, KEY)
            pass_time(world, 31)
            world.vendor.answers.append(listed(event(world, amount=300)))
            await settling.step()
            assert (world.posted_cents, world.held_cents) == (300, 0)
            assert world.grant.frozen is not None

    run(main())


def test_a_call_without_a_key_and_one_that_is_listed_as_nothing_wait_for_a_person(tmp_path: Path) -> None:
    """There is nothing to find them by."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            settling = Settling(world.plane)
            await lose(world)
            pass_time(world, 86_400)
            await settling.step()
            assert len(world.vendor.arrived) == 1
            assert world.held_cents == 100

    run(main())


def test_where_tenants_have_keys_of_their_own_theirs_is_looked_for(tmp_path: Path) -> None:
    """As the vendor got it: another tenant's call with the same key is not evidence."""

    async def main() -> None:
        async with open_world(tmp_path, apart=frozenset({"stripe"})) as world:
            settling = Settling(world.plane)
            _, key = await world.issue(tenant="acme")
            await lose(world, KEY, key=key)
            ((sent,),) = [arrived.all(b"idempotency-key") for arrived in world.vendor.arrived]
            pass_time(world, 31)
            world.vendor.answers.append(listed(event(world)))
            await settling.step()
            assert await change_rows(world) == []
            pass_time(world, 3600)
            world.vendor.answers.append(listed(event(world, sent.decode())))
            await settling.step()
            assert len(await change_rows(world)) == 1

    run(main())


def test_a_restart_asks_at_once_and_a_draining_daemon_does_not(tmp_path: Path) -> None:
    """Whoever could have retried is gone; what is unknown is on disk."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            await lose(world, KEY)
        (tmp_path / "kbctl.db").chmod(0o600)
        async with open_world(tmp_path) as world:
            settling = Settling(world.plane)
            world.plane.draining = True
            await settling.step()
            assert world.vendor.arrived == []
            world.plane.draining = False
            pass_time(world, 60)
            world.vendor.answers.append(listed(event(world)))
            await settling.step()
            assert [row["outcome"] for row in await world.rows()] == ["posted", "posted"]
            await world.check_books()

    run(main())
