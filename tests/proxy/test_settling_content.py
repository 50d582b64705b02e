"""A text message whose answer was lost: Twilio's own list settles it, by what it says and to whom."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kbctld.core.ledger import NS_PER_DAY, NS_PER_S
from kbctld.proxy import settling as settling_module
from kbctld.proxy.later import LaterPrices
from kbctld.proxy.reconciling import reconcile
from kbctld.proxy.settling import Settling
from kbctld.store.later import next_due
from tests.proxy.test_settling import change_rows, pass_time
from tests.proxy.test_twilio import ALIAS, CALL, CALLS, JSON, MESSAGE, OTHER, ask, messages, twilio
from tests.support.loop import run
from tests.support.vendor import Line, answer, polite
from tests.support.world import ACCOUNT, CENT, World, open_world

LISTED = messages(ACCOUNT)
NANO = 14_500_000
"""What a message of one segment holds."""


def entry(world: World, sid: str = "SM1", *, ago_s: int = 0, **changes: Any) -> dict[str, Any]:
    """What Twilio lists of MESSAGE."""
    at = datetime.fromtimestamp(world.vault.now_ns() // NS_PER_S - ago_s, UTC)
    return {
        "sid": sid,
        "date_created": at.strftime("%a, %d %b %Y %H:%M:%S +0000"),
        "date_sent": None,
        "to": "+14155550100",
        "from": "+14155550111",
        "messaging_service_sid": None,
        "body": "Hello",
        "num_media": "0",
        "direction": "outbound-api",
        "price": None,
        "price_unit": "USD",
        **changes,
    }


def listed(
    entries: Iterable[dict[str, Any]] = (), *, after: str | None = None, of: str = "messages"
) -> bytes:
    return answer(json.dumps({of: list(entries), "next_page_uri": after}).encode(), 200, JSON)


async def lose(world: World, body: str = MESSAGE, *, key: str = "", path: str = "") -> None:
    """A call that Twilio takes and does not answer; afterwards it is polite."""

    async def silent(line: Line) -> None:
        await line.request()
        line.reset()

    world.vendor.script = silent
    assert (await ask(world, path or f"/twilio{messages(ALIAS)}", body, key=key)).status == 502
    world.vendor.script = polite
    await world.rows()


async def outcomes(world: World) -> list[str]:
    """Of the agents' calls, oldest first."""
    return [row["outcome"] for row in await world.rows() if row["method"] == "POST"]


async def settle(world: World, settling: Settling, *answers: bytes) -> None:
    """Every call that is due is asked about, each with these answers."""
    for _ in range(len(await outcomes(world))):
        world.vendor.answers.clear()
        world.vendor.answers += answers
        await settling.step()
    world.vendor.answers.clear()


def test_the_one_message_that_says_the_same_is_the_calls_own(tmp_path: Path) -> None:
    """It is posted at what was held; then its true price is asked for, as if Twilio had answered."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            settling = Settling(world.plane)
            await lose(world)
            call_id = (await world.last())["call_id"]
            await settling.step()
            assert len(world.vendor.arrived) == 1  # whoever can still tell comes first
            pass_time(world, 31)
            other = entry(world, "SM0", ago_s=31, body="Hi")
            reply = entry(world, "SM9", ago_s=31, direction="inbound", num_media=None)
            world.vendor.answers += [
                listed([other, reply], after=f"{LISTED}?PageSize=200&Page=1&PageToken=PASM0"),
                listed([entry(world, ago_s=31)]),
            ]
            await settling.step()
            first, second = world.vendor.arrived[1:]
            assert first.target.startswith(f"{LISTED}?PageSize=200&DateSent%3E=20")
            assert second.target == f"{LISTED}?PageSize=200&Page=1&PageToken=PASM0"
            row, *asked = await world.rows()
            assert (row["outcome"], row["amount_nano"]) == ("posted", NANO)
            assert {(each["key_no"], each["amount_nano"], each["reason"]) for each in asked} == {
                (None, 0, f"kbctl asked what became of {call_id}")
            }
            ((actor, subject, details),) = await change_rows(world)
            assert (actor, subject, json.loads(details)["found"]) == ("kbctl", call_id, "SM1")
            await world.check_books()

            pass_time(world, 61)
            said = json.dumps({"sid": "SM1", "price": "-0.00750", "price_unit": "USD"}).encode()
            world.vendor.answers.append(answer(said, 200, JSON))
            await LaterPrices(world.plane).step()
            assert world.heard.target == LISTED.replace(".json", "/SM1.json")
            # Without the carriers' fee of 0.0062 at most, which is billed apart.
            assert (await world.rows())[0]["amount_nano"] == 13_700_000
            await world.check_books()

    run(main())


class _Naive(Settling):
    """The control: takes what is not listed for what did not happen."""

    async def step(self) -> float:
        before = len(self._vault.ledger.open)
        seconds = await super().step()
        for hold in list(self._vault.ledger.open) if before == len(self._vault.ledger.open) else ():
            await self._vault.resolve(hold, None, "naive", {})
        return seconds


@pytest.mark.parametrize("naive", [True, False])
def test_law_3_a_list_that_lags_frees_nothing(tmp_path: Path, naive: bool) -> None:
    """Twilio bills a message and lists it hours later: who takes its absence for a no pays for two of one."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            settling = (_Naive if naive else Settling)(world.plane)
            grant, key = await world.issue(
                vendors=("twilio",), daily_cap_nano=None, total_cap_nano=NANO, duplicates=None
            )
            await lose(world, key=key)
            made = entry(world)
            billed = 1
            for _ in range(1 if naive else 20):
                pass_time(world, 3600)
                await settle(world, settling, listed())
            world.vendor.answers.append(answer(b'{"sid":"SM2"}', 201, JSON))
            status = (await ask(world, f"/twilio{messages(ALIAS)}", MESSAGE, key=key)).status
            billed += status == 201
            assert (status, billed) == ((201, 2) if naive else (429, 1))
            if naive:
                return
            assert grant.scope.account.held_total == NANO
            pass_time(world, 12 * 3600)
            await settle(world, settling, listed([made]))
            assert (grant.scope.account.posted_total, grant.scope.account.held_total) == (NANO, 0)

    run(main())


def test_two_calls_and_one_message_settle_one_of_them(tmp_path: Path) -> None:
    """They are one key's and cost the same; the other stays, over a restart too, until its own is listed."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            await lose(world)
            await lose(world)
            made = [entry(world, sid) for sid in ("SM1", "SM2")]
            settling = Settling(world.plane)
            pass_time(world, 31)
            await settle(world, settling, listed(made[:1]))
            assert sorted(await outcomes(world)) == ["posted", "unknown"]
        (tmp_path / "kbctl.db").chmod(0o600)
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            settling = Settling(world.plane)
            pass_time(world, 7200)
            # The same one once more is the first call's.
            await settle(world, settling, listed(made[:1]))
            assert sorted(await outcomes(world)) == ["posted", "unknown"]
            pass_time(world, 12 * 3600)
            await settle(world, settling, listed(made))
            assert await outcomes(world) == ["posted", "posted"]
            await world.check_books()

    run(main())


def test_what_another_call_was_told_it_made_is_not_this_ones(tmp_path: Path) -> None:
    """The agent asked again, and that answer came: one message is the second call's, and no evidence."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            settling = Settling(world.plane)
            await lose(world)
            world.vendor.answers.append(answer(b'{"sid":"SM2"}', 201, JSON))
            assert (await ask(world, f"/twilio{messages(ALIAS)}", MESSAGE)).status == 201
            pass_time(world, 31)
            await settle(world, settling, listed([entry(world, "SM2", ago_s=31)]))
            assert await outcomes(world) == ["unknown", "posted"]
            pass_time(world, 3600)
            both = [entry(world, sid, ago_s=3631) for sid in ("SM1", "SM2")]
            await settle(world, settling, listed(both))
            assert await outcomes(world) == ["posted", "posted"]
            details = json.loads((await change_rows(world))[0][2])
            assert details["found"] == "SM1"

    run(main())


def test_an_answer_without_its_id_claims_a_message_too(tmp_path: Path) -> None:
    """Nobody knows which of them it made, so that one message settles no other call."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            settling = Settling(world.plane)
            await lose(world)
            world.vendor.answers.append(answer(b"{}", 201, JSON))
            assert (await ask(world, f"/twilio{messages(ALIAS)}", MESSAGE)).status == 201
            pass_time(world, 31)
            await settle(world, settling, listed([entry(world, ago_s=31)]))
            assert await outcomes(world) == ["unknown", "posted"]

    run(main())


def test_two_keys_and_one_message_settle_neither(tmp_path: Path) -> None:
    """Whose money it was matters; with a message each both are posted, and keep what was held."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            settling = Settling(world.plane)
            _, key = await world.issue(vendors=("twilio",), tenant="acme")
            await lose(world)
            await lose(world, key=key)
            pass_time(world, 31)
            await settle(world, settling, listed([entry(world, ago_s=31)]))
            assert await outcomes(world) == ["unknown", "unknown"]
            pass_time(world, 3600)
            both = [entry(world, sid, ago_s=3631) for sid in ("SM1", "SM2")]
            await settle(world, settling, listed(both))
            assert await outcomes(world) == ["posted", "posted"]
            assert await next_due(world.database.reader) is None
            await world.check_books()

    run(main())


@pytest.mark.parametrize(
    "said",
    [
        "nothing",
        "another body",
        "another sender",
        "another time",
        "two of them",
        "more pages than are read",
        "an entry that can't be read",
        "an error",
    ],
)
def test_law_3_what_proves_nothing_changes_nothing(
    tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays held."""
    monkeypatch.setattr(settling_module, "_LISTING_PAGES", 1)

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            settling = Settling(world.plane)
            await lose(world)
            pass_time(world, 31)
            mine = entry(world, ago_s=31)
            answers = {
                "nothing": [listed()],
                "another body": [listed([entry(world, ago_s=31, body="Hello!")])],
                "another sender": [listed([entry(world, ago_s=31, messaging_service_sid="MG1")])],
                "another time": [listed([entry(world, ago_s=120), entry(world, ago_s=-900)])],
                "two of them": [listed([mine, {**mine, "sid": "SM2"}])],
                "more pages than are read": [listed([mine], after=f"{LISTED}?Page=1"), listed()],
                "an entry that can't be read": [listed([mine, {**mine, "date_created": None}])],
                "an error": [answer(b"{}", 500)],
            }
            await settle(world, settling, *answers[said])
            assert await outcomes(world) == ["unknown"]
            assert await change_rows(world) == []
            await world.check_books()

    run(main())


def test_a_phone_call_is_found_and_keeps_what_was_held(tmp_path: Path) -> None:
    """What the list repeats of it does not say how long it may last: no other one's price is its own."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            settling = Settling(world.plane)
            await lose(world, CALL, path=f"/twilio{CALLS}")
            pass_time(world, 31)
            await settle(world, settling, listed([entry(world, "CA1", ago_s=31, body=None)], of="calls"))
            assert world.vendor.arrived[1].target.startswith(f"{CALLS}?PageSize=200&StartTime%3E=")
            row = (await world.rows())[0]
            assert (row["outcome"], row["amount_nano"]) == ("posted", 84 * CENT)
            assert await next_due(world.database.reader) is None

    run(main())


def test_a_call_in_another_account_is_looked_for_there(tmp_path: Path) -> None:
    """Which a rule allowed; kbctl reconcile reads both accounts."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            settling = Settling(world.plane)
            _, sub = await world.issue(vendors=("twilio",), rules=(f"account_sid in {OTHER}",))
            await lose(world, key=sub, path=f"/twilio{messages(OTHER)}")
            pass_time(world, 31)
            made = listed([entry(world, ago_s=31)])
            await settle(world, settling, made)
            assert world.heard.target.startswith(f"{messages(OTHER)}?")
            assert await outcomes(world) == ["posted"]

            vendor, now_ns = world.plane.vendors["twilio"], world.vault.now_ns() + NS_PER_S
            before = len(world.vendor.arrived)

            async def both(line: Line) -> None:
                while True:
                    there = (await line.request()).target
                    await line.say(made if there.startswith(messages(OTHER)) else listed(of=_of(there)))

            world.pool.close()
            world.vendor.script = both
            found = await reconcile(world.plane, vendor, "twilio", now_ns - 3600 * NS_PER_S, now_ns)
            assert (found.agree, found.elsewhere, found.absent) == (1, [], [])
            paths = {each.target.partition("?")[0] for each in world.vendor.arrived[before:]}
            assert paths == {
                path.replace("Messages", kind)
                for path in (messages(ACCOUNT), messages(OTHER))
                for kind in ("Messages", "Calls")
            }

    run(main())


def _of(target: str) -> str:
    return "calls" if "/Calls.json" in target else "messages"


def test_reconcile_knows_messages_by_their_ids_and_else_by_what_they_say(tmp_path: Path) -> None:
    """One that was answered, one that was lost, one that is gone, and one that went around."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            await lose(world)
            await lose(world, MESSAGE.replace("Hello", "Bye"))
            world.vendor.answers.append(answer(b'{"sid":"SM1"}', 201, JSON))
            assert (await ask(world, f"/twilio{messages(ALIAS)}", MESSAGE)).status == 201
            entries = [
                entry(world, "SM3", ago_s=5, body="Psst", price="-0.00750"),
                entry(world, "SM2", price="-0.50000"),
                entry(world, "SM1"),
            ]
            world.pool.close()

            async def lists(line: Line) -> None:
                while True:
                    of = _of((await line.request()).target)
                    await line.say(listed(entries if of == "messages" else (), of=of))

            world.vendor.script = lists
            vendor, now_ns = world.plane.vendors["twilio"], world.vault.now_ns() + NS_PER_S
            found = await reconcile(world.plane, vendor, "twilio", now_ns - 3600 * NS_PER_S, now_ns)
            assert found.agree == 1
            assert [(each.object_id, each.price_nano) for each in found.elsewhere] == [("SM3", 7_500_000)]
            assert [each.outcome for each in found.absent] == ["unknown"]
            assert [(ours.outcome, thing.object_id) for ours, thing in found.differ] == [("unknown", "SM2")]

    run(main())


def test_the_content_is_on_disk_with_its_row(tmp_path: Path) -> None:
    """As a digest: neither number nor text is kept."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            await lose(world)
            async with world.database.reader.execute("SELECT content, fees_nano FROM trace") as cursor:
                ((content, fees_nano),) = await cursor.fetchall()
            assert (len(content), fees_nano) == (16, 6_200_000)

    run(main())
    assert b"14155550100" not in b"".join(path.read_bytes() for path in tmp_path.glob("kbctl.db*"))


def test_a_file_that_lists_nothing_any_more_leaves_its_calls_alone(tmp_path: Path) -> None:
    """Nor are those asked about that are older than the list reaches."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            settling = Settling(world.plane)
            await lose(world)
            pass_time(world, 31 * NS_PER_DAY // NS_PER_S)
            await settle(world, settling, listed([entry(world)]))
            assert len(world.vendor.arrived) == 1
            assert await outcomes(world) == ["unknown"]

    run(main())
