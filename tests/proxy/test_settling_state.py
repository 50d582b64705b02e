"""A call on an intent that was there already, whose answer was lost: the intent itself settles it."""

import json
from pathlib import Path
from typing import Any

import pytest

from kbctld.core.ledger import NS_PER_S
from kbctld.proxy.reconciling import reconcile
from kbctld.proxy.settling import Settling
from tests.proxy.test_settling import KEY, change_rows, event, listed, pass_time
from tests.support.loop import run
from tests.support.vendor import Line, answer, polite
from tests.support.world import CENT, World, open_world

INTENT = "/stripe/v1/payment_intents/pi_9"


def intent(status: str = "requires_confirmation", amount: int = 300, received: int = 0, **more: Any) -> bytes:
    """What Stripe says of an intent of $3."""
    made = {"id": "pi_9", "amount": amount, "currency": "usd", "status": status, "amount_received": received}
    return answer(json.dumps({**made, **more}).encode())


async def lose(
    world: World, step: str, body: bytes, *before: bytes, key: str | None = None, account: str = ""
) -> None:
    """A call on the intent that Stripe takes and does not answer, after look-ups that it does answer."""
    said = list(before)

    async def silent(line: Line) -> None:
        while True:
            await line.request()
            if not said:
                line.reset()
                return
            await line.say(said.pop(0))

    world.vendor.script = silent
    more = [(b"Stripe-Account", account.encode())] if account else []
    raw = world.request("POST", f"{INTENT}{step}", KEY, *more, body=body, key=key)
    assert (await world.ask(raw)).status == 502
    world.vendor.script = polite
    await world.rows()


async def outcome(world: World) -> tuple[str, float]:
    """Of the agent's call."""
    row = next(row for row in await world.rows() if row["method"] == "POST")
    await world.check_books()
    return row["outcome"], row["amount_nano"] / CENT


@pytest.mark.parametrize(
    ("step", "body", "said", "ends"),
    [
        ("/confirm", b"x=1", intent("succeeded", received=300), ("posted", 300)),
        ("/confirm", b"x=1", intent("requires_capture"), ("posted", 300)),
        ("/confirm", b"x=1", intent("requires_action"), ("posted", 300)),
        ("/confirm", b"x=1", intent("canceled"), ("voided", 0)),
        # Not yet proves nothing: the request may still be on its way to Stripe.
        ("/confirm", b"x=1", intent("requires_confirmation"), ("unknown", 300)),
        ("/confirm", b"x=1", intent("requires_payment_method"), ("unknown", 300)),
        ("/confirm", b"x=1", intent("canceled", received=100), ("unknown", 300)),
        ("/confirm", b"x=1", intent("a new word"), ("unknown", 300)),
        ("/confirm", b"x=1", answer(b"{}"), ("unknown", 300)),
        ("/confirm", b"x=1", answer(b"{}", 404), ("unknown", 300)),
        ("/confirm", b"x=1", answer(b" " * (1024 * 1024 + 1)), ("unknown", 300)),
        ("/capture", b"x=1", intent("succeeded", received=300), ("posted", 300)),
        ("/capture", b"x=1", intent("requires_capture"), ("unknown", 300)),
        ("/increment_authorization", b"amount=500", intent("requires_capture", 500), ("posted", 500)),
        ("/increment_authorization", b"amount=500", intent("requires_capture", 300), ("unknown", 500)),
        ("", b"amount=500", intent("requires_payment_method", 500), ("posted", 500)),
        ("", b"amount=500", intent("canceled"), ("voided", 0)),
    ],
)
def test_law_3_only_what_shows_that_it_was_done_or_never_will_be_ends_it(
    tmp_path: Path, step: str, body: bytes, said: bytes, ends: tuple[str, float]
) -> None:
    """Made elsewhere, so that all of it is held; a canceled intent from which nothing was taken is final."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            settling = Settling(world.plane)
            await lose(world, step, body, intent())
            held = (await outcome(world))[1]
            assert held > 0
            pass_time(world, 31)
            before = len(world.vendor.arrived)
            world.vendor.answers.append(said)
            await settling.step()
            (asked,) = world.vendor.arrived[before:]
            assert (asked.method, asked.target) == ("GET", "/v1/payment_intents/pi_9")
            assert await outcome(world) == ends
            changed = await change_rows(world)
            assert len(changed) == (ends[0] != "unknown")
            if changed:
                details = json.loads(changed[0][2])
                assert details["held_usd"] == held / 100
                assert details.get("spent_usd") == (held / 100 if ends[0] == "posted" else None)

    run(main())


class _Naive(Settling):
    """The control: takes what is not done yet for what will not be."""

    async def step(self) -> float:
        before = len(self._vault.ledger.open)
        seconds = await super().step()
        for hold in list(self._vault.ledger.open) if before == len(self._vault.ledger.open) else ():
            await self._vault.resolve(hold, None, "naive", {})
        return seconds


@pytest.mark.parametrize("naive", [True, False])
def test_law_3_a_confirmation_that_lands_late_is_still_held(tmp_path: Path, naive: bool) -> None:
    """The intent is read before the lost request arrives there: $3 of a cap of $3, and then $3 once more."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            settling = (_Naive if naive else Settling)(world.plane)
            _, key = await world.issue(daily_cap_nano=None, total_cap_nano=300 * CENT)
            await lose(world, "/confirm", b"x=1", intent(), key=key)
            pass_time(world, 31)
            world.vendor.answers.append(intent("requires_confirmation"))
            await settling.step()
            moved = 300  # it lands now
            raw = world.request("POST", body=b"amount=300&currency=usd", key=key)
            status = (await world.ask(raw)).status
            moved += 300 if status == 200 else 0
            assert (status, moved) == ((200, 600) if naive else (429, 300))

    run(main())


def test_an_update_that_was_done_is_what_later_steps_build_on(tmp_path: Path) -> None:
    """They count only what they add."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            settling = Settling(world.plane)
            await lose(world, "", b"amount=500", intent())
            pass_time(world, 31)
            world.vendor.answers.append(intent("requires_confirmation", 500))
            await settling.step()
            assert (await world.vault.recall("stripe", "stripe", ["pi_9"]))["pi_9"].nano == 500 * CENT
            raw = world.request("POST", f"{INTENT}/confirm", body=b"x=1")
            assert (await world.ask(raw)).status == 200
            assert world.posted_cents == 500
            await world.check_books()

    run(main())


def test_a_call_that_holds_nothing_is_settled_too(tmp_path: Path) -> None:
    """A confirmation of what was counted when it was made: it need not stay unknown for ever."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            settling = Settling(world.plane)
            made = json.dumps({"id": "pi_9", "amount": 300, "currency": "usd"}).encode()
            world.vendor.answers.append(answer(made))
            await world.ask(world.request(body=b"amount=300&currency=usd"))
            world.pool.close()
            await lose(world, "/confirm", b"x=1")
            assert (world.posted_cents, world.held_cents) == (300, 0)
            pass_time(world, 31)
            world.vendor.answers.append(intent("succeeded", received=300))
            await settling.step()
            rows = [row for row in await world.rows() if row["method"] == "POST"]
            assert [(row["outcome"], row["amount_nano"]) for row in rows] == [
                ("posted", 300 * CENT),
                ("posted", 0),
            ]

    run(main())


def test_an_intent_of_a_connected_account_is_read_there(tmp_path: Path) -> None:
    """The own account has none of that name, or another one."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            settling = Settling(world.plane)
            _, key = await world.issue(rules=("stripe-account in acct_1",))
            await lose(world, "/confirm", b"x=1", intent(), key=key, account="acct_1")
            pass_time(world, 31)
            world.vendor.answers.append(intent("succeeded", received=300))
            await settling.step()
            assert world.heard.all(b"stripe-account") == [b"acct_1"]
            assert await outcome(world) == ("posted", 300)

    run(main())


def test_in_a_connected_account_all_is_asked_there(tmp_path: Path) -> None:
    """Object, list and reconciliation, over a restart; the own account is not asked for that call."""
    header = (b"Stripe-Account", b"acct_1")

    async def main() -> None:
        async with open_world(tmp_path) as world:
            _, key = await world.issue(rules=("stripe-account in acct_1",))

            async def silent(line: Line) -> None:
                await line.request()
                line.reset()

            world.vendor.script = silent
            raw = world.request("POST", "/stripe/v1/payment_intents", KEY, header, key=key)
            assert (await world.ask(raw)).status == 502
            await world.rows()
        (tmp_path / "kbctl.db").chmod(0o600)
        async with open_world(tmp_path) as world:
            settling = Settling(world.plane)
            pass_time(world, 60)
            world.vendor.answers.append(listed(event(world)))
            await settling.step()
            assert world.heard.all(b"stripe-account") == [b"acct_1"]
            assert (await outcome(world))[0] == "posted"

            accounts: list[list[bytes]] = []

            async def by_account(line: Line) -> None:
                while True:
                    asked = await line.request()
                    accounts.append(asked.all(b"stripe-account"))
                    there = accounts[-1] == [b"acct_1"] and "=payment_intent.created" in asked.target
                    await line.say(listed(*([event(world)] if there else [])))

            world.pool.close()
            world.vendor.script = by_account
            now_ns = world.vault.now_ns() + NS_PER_S
            vendor = world.plane.vendors["stripe"]
            found = await reconcile(world.plane, vendor, "stripe", now_ns - 3600 * NS_PER_S, now_ns)
            assert (found.agree, found.elsewhere, found.absent, found.differ) == (1, [], [], [])
            assert vendor.file.record is not None
            kinds = len(vendor.file.record.kinds)
            assert sorted(accounts) == [[]] * kinds + [[b"acct_1"]] * kinds

    run(main())
