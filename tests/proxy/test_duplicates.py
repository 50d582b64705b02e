"""Law 12 on the wire: a retry is one charge, another plan for the same thing is told or refused."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kbctl.paths import Home
from kbctld.config import Config, read_vendors
from kbctld.core.duplicates import read_duplicates
from kbctld.core.idempotency import namespaced
from kbctld.core.vendor import Vendor
from tests.support.agent import Reply
from tests.support.loop import run
from tests.support.vendor import Line, answer, polite, vendor_on_loopback
from tests.support.world import ACCOUNT, CENT, TARGET, World, open_world

FORM = b"application/x-www-form-urlencoded"
REFUSE, FLAG = read_duplicates("refuse/10m"), read_duplicates("flag/10m")
DOLLAR = b"amount=100&currency=usd"


def vendor(folder: Path, name: str) -> Vendor:
    return read_vendors(Home(folder), Config())[name]


@pytest.fixture(autouse=True)
def owner_only() -> Iterator[None]:
    """As the daemon sets it: a database that others can read is not opened again."""
    before = os.umask(0o077)
    yield
    os.umask(before)


async def pay(
    world: World,
    idempotency_key: str | None = "k",
    *,
    key: str = "",
    body: bytes = DOLLAR,
    target: str = TARGET,
) -> Reply:
    """A charge of a dollar, with this idempotency key."""
    fields = [] if idempotency_key is None else [(b"Idempotency-Key", idempotency_key.encode())]
    return await world.ask(world.request("POST", target, *fields, body=body, key=key or world.key))


def said(reply: Reply) -> str:
    return "allowed" if reply.status == 200 else str(json.loads(reply.body)["error"]["code"])


# --- retries ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["at once", "later", "after a restart"])
def test_a_retry_holds_once(tmp_path: Path, again: str) -> None:
    """Whenever it comes: while the first is under way, after it, and after the daemon has started anew."""

    async def main() -> None:
        async with vendor_on_loopback() as outside:
            async with open_world(tmp_path, vendor=outside) as world:
                if again == "at once":
                    replies = await asyncio.gather(*(pay(world) for _ in range(20)))
                    assert {reply.status for reply in replies} == {200}
                else:
                    assert (await pay(world)).status == 200
                key, key_id = world.key, world.grant.key_id
                if again == "later":
                    assert (await pay(world)).status == 200
                await world.calm()
            async with open_world(tmp_path, vendor=outside) as world:
                if again == "after a restart":
                    assert (await pay(world, key=key)).status == 200
                rows = [row for row in await world.rows() if row["key_no"] == 1]
                first, *retries = rows
                assert first["replay_of"] is None
                assert {row["replay_of"] for row in retries} == {first["call_id"]}
                assert {row["amount_nano"] for row in retries} == {0}
                assert {row["duplicate_of"] for row in rows} == {None}
                (grant,) = await world.vault.named(key_id)
                await world.vault.find(key)
                assert grant.scope.account.used_total() == 100 * CENT
                await world.check_books()

    run(main())


def test_another_body_under_the_same_key_holds_again_and_the_vendor_refuses_it(tmp_path: Path) -> None:
    """Also while the first is under way; its refusal releases its own hold alone."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            assert (await pay(world)).status == 200
            world.vendor.answers.append(answer(b'{"error":{"type":"idempotency_error"}}', 400))
            other = await pay(world, body=b"amount=101&currency=usd")
            assert (other.status, len(world.vendor.arrived)) == (400, 2)
            rows = await world.rows()
            assert [(row["replay_of"], row["outcome"]) for row in rows] == [
                (None, "posted"),
                (None, "voided"),
            ]
            assert (world.posted_cents, world.held_cents) == (100, 0)
            assert (await pay(world)).status == 200  # the first is still the one that retries join
            assert (await world.last())["replay_of"] == rows[0]["call_id"]
            await world.check_books()

    run(main())


@pytest.mark.parametrize(
    ("headers", "target"),
    [
        pytest.param((b"Content-Type", FORM + b"; charset=utf-8"), TARGET, id="type"),
        pytest.param(None, "/stripe/v1/payment_intents?expand[]=latest_charge", id="query"),
    ],
)
def test_what_the_vendor_would_see_differently_is_no_retry(
    tmp_path: Path, headers: tuple[bytes, bytes] | None, target: str
) -> None:
    """Then the money is held again: never one hold for what may be two charges."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            await pay(world)
            raw = world.request("POST", target, (b"Idempotency-Key", b"k"))
            if headers is not None:
                raw = raw.replace(b"Content-Type: " + FORM, b": ".join(headers))
            assert (await world.ask(raw)).status == 200
            assert (await world.last())["replay_of"] is None
            assert world.posted_cents == 200

    run(main())


def test_another_vault_key_with_the_same_idempotency_key_holds_for_itself(tmp_path: Path) -> None:
    """To the vendor it is the same call; whose money it was is not ours to guess, so both are counted."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            other, key = await world.issue(tenant="acme", duplicates=REFUSE)
            third, second = await world.issue(tenant="acme", duplicates=REFUSE)
            assert said(await pay(world, key=key)) == "allowed"
            world.vendor.answers.append(answer(b"{}", 200, b"Idempotent-Replayed: true"))
            assert said(await pay(world, key=second)) == "allowed"  # a retry, to the vendor: no duplicate
            assert [row["duplicate_of"] for row in await world.rows()] == [None, None]
            assert other.scope.account.posted_total == third.scope.account.posted_total == 100 * CENT
            await world.check_books()

    run(main())


def test_a_body_that_streams_by_is_never_joined(tmp_path: Path) -> None:
    """What nobody has compared is no retry; it costs nothing, or it would not stream."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            _, key = await world.issue(daily_cap_nano=None, allow=("POST /v1/unlisted",))
            target, body = "/stripe/v1/unlisted", b"x" * 200_000
            for _ in range(2):
                raw = world.request("POST", target, (b"Idempotency-Key", b"k"), body=body, key=key)
                kind = b"application/octet-stream"
                assert (await world.ask(raw.replace(FORM, kind))).status == 200
            assert {row["replay_of"] for row in await world.rows()} == {None}

    run(main())


def test_on_stripe_v2_and_elsewhere_a_retry_is_known_where_the_vendor_knows_it(tmp_path: Path) -> None:
    """Stripe's header stands for v1 and v2 alike; Twilio knows none, so every create is counted."""

    async def main() -> None:
        stripe, twilio = vendor(tmp_path, "stripe"), vendor(tmp_path, "twilio")
        assert stripe.retries("POST", None) is not None
        assert stripe.retries("GET", None) is None
        async with open_world(tmp_path, vendors={"twilio": twilio}) as world:
            for _ in range(2):
                assert (await text(world, idempotency_key="k")).status == 200
            assert [row["replay_of"] for row in await world.rows()] == [None, None]
            assert world.grant.scope.account.posted_total == 2 * (await world.last())["requested_nano"]

    run(main())


# --- duplicates -------------------------------------------------------------------------------------------


async def text(world: World, key: str = "", idempotency_key: str | None = None, body: str = "hi") -> Reply:
    """A text message by Twilio."""
    path = f"/twilio/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
    form = f"To=%2B15005550006&From=%2B15005550001&Body={body}".encode()
    return await pay(world, idempotency_key, key=key, body=form, target=path)


@pytest.mark.parametrize(("limit", "through"), [(None, 20), (FLAG, 20), (REFUSE, 1)])
def test_twenty_plans_at_once_for_one_thing(tmp_path: Path, limit: Any, through: int) -> None:
    """With twenty keys: refused, exactly one passes, in the same step that holds its money."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            grant, key = await world.issue(duplicates=limit)
            replies = await asyncio.gather(*(pay(world, f"plan-{n}", key=key) for n in range(20)))
            results = [said(reply) for reply in replies]
            assert results.count("allowed") == len(world.vendor.arrived) == through
            assert results.count("suspected_duplicate") == 20 - through
            assert grant.scope.account.posted_total == through * 100 * CENT
            rows = await world.rows()
            flagged = [row for row in rows if row["duplicate_of"] is not None]
            assert len(flagged) == (0 if limit is None else 19)
            assert {row["duplicate_of"] for row in flagged} <= {row["call_id"] for row in rows}
            assert all(row["reason"].startswith(FLAGGED if through > 1 else REFUSED) for row in flagged)
            await world.check_books()
            await world.check_oracle()

    run(main())


FLAGGED = "suspected_duplicate: payment_intents.create asks for $1.00 just as call_"
REFUSED = "payment_intents.create asks for $1.00 just as call_"


def test_an_agent_that_plans_again_after_a_timeout_is_stopped(tmp_path: Path) -> None:
    """The vendor has the first one and has not answered: it may have been done, so it is not done again."""

    async def silent(line: Line) -> None:
        await line.request()
        line.reset()

    async def main() -> None:
        async with vendor_on_loopback() as outside:
            async with open_world(tmp_path, vendor=outside) as world:
                _, key = await world.issue(duplicates=REFUSE)
                outside.script = silent
                assert said(await pay(world, "plan-1", key=key)) == "upstream_unreachable"
                again = await pay(world, "plan-2", key=key)
                assert (again.status, said(again)) == (403, "suspected_duplicate")
                first, second = await world.rows()
                error = json.loads(again.body)["error"]
                assert error["message"].startswith("suspected_duplicate: ")
                assert first["call_id"] in error["message"]
                assert "which may have been done" in error["message"]
                assert "send its own Idempotency-Key" in error["message"]
                assert error["kbctl"]["duplicate_of"] == first["call_id"] == second["duplicate_of"]
                assert (second["policy_check_result"], second["outcome"]) == (
                    "suspected_duplicate",
                    "refused",
                )
                assert (second["requested_nano"], second["amount_nano"]) == (100 * CENT, 0)
            outside.script = polite
            # The journal remembers it, and the remedy works: the first one's own key.
            async with open_world(tmp_path, vendor=outside) as world:
                assert said(await pay(world, "plan-3", key=key)) == "suspected_duplicate"
                assert said(await pay(world, "plan-1", key=key)) == "allowed"
                assert said(await pay(world, "plan-4", key=key)) == "suspected_duplicate"
                assert said(await pay(world, "plan-5", key=key, body=DOLLAR + b"&metadata[n]=2")) == "allowed"

    run(main())


def test_what_was_done_is_remembered_over_a_restart_by_keys_that_nobody_has_used_since(
    tmp_path: Path,
) -> None:
    """Of a whole tenant: the agent that plans again may hold another key. Not of another tenant."""

    async def main() -> None:
        async with vendor_on_loopback() as outside:
            async with open_world(tmp_path, vendor=outside) as world:
                _, one = await world.issue(tenant="acme", duplicates=REFUSE)
                _, two = await world.issue(tenant="acme", duplicates=REFUSE)
                _, three = await world.issue(tenant="acme2", duplicates=REFUSE)
                _, four = await world.issue(duplicates=REFUSE)
                assert said(await pay(world, "a", key=one)) == "allowed"
            async with open_world(tmp_path, vendor=outside) as world:
                assert said(await pay(world, "b", key=two)) == "suspected_duplicate"
                assert said(await pay(world, "c", key=three)) == "allowed"
                assert said(await pay(world, "d", key=four)) == "allowed"

    run(main())


def test_a_family_of_keys_is_one_asker(tmp_path: Path) -> None:
    """Without a tenant: a key, and all that comes from the same root."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            parent, key = await world.issue(duplicates=REFUSE)
            _, child = await world.issue(parent=parent, duplicates=None)
            assert said(await pay(world, "a", key=child)) == "allowed"
            assert said(await pay(world, "b", key=key)) == "suspected_duplicate"
            refusal = await pay(world, "c", key=child)  # the child itself says nothing; its parent does
            assert (
                f"key {parent.key_id}, which it comes from," in json.loads(refusal.body)["error"]["message"]
            )

    run(main())


@pytest.mark.parametrize("status", [400, 402, 429])
def test_what_the_vendor_refused_may_be_planned_again(tmp_path: Path, status: int) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            _, key = await world.issue(duplicates=REFUSE)
            world.vendor.answers.append(answer(b"{}", status))
            assert (await pay(world, "a", key=key)).status == status
            assert said(await pay(world, "b", key=key)) == "allowed"
            assert [row["duplicate_of"] for row in await world.rows()] == [None, None]

    run(main())


def test_where_every_create_bills_again_it_is_the_only_help(tmp_path: Path) -> None:
    """Twilio knows no retries at all: the same text to the same number is refused, another one leaves."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": vendor(tmp_path, "twilio")}) as world:
            _, key = await world.issue(vendors=("twilio",), duplicates=REFUSE)
            assert (await text(world, key)).status == 200
            refusal = await text(world, key)
            body = json.loads(refusal.body)
            assert (refusal.status, body["details"]["code"]) == (403, "suspected_duplicate")
            assert "look it up first" in body["message"]
            assert (await text(world, key, body="bye")).status == 200
            # A code that did not come is asked for again as a rule.
            path = "/twilio/verify.twilio.com/v2/Services/VA1/Verifications"
            for _ in range(2):
                form = b"To=%2B15005550006&Channel=sms"
                assert (await pay(world, None, key=key, body=form, target=path)).status == 200

    run(main())


def test_a_stamp_does_not_hide_a_duplicate(tmp_path: Path) -> None:
    """The proxy's own marks, which differ by key, are no part of what is asked for."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            _, one = await world.issue(
                tenant="acme", duplicates=REFUSE, stamp=True, metadata={"agent_run_id": "1"}
            )
            _, two = await world.issue(
                tenant="acme", duplicates=REFUSE, stamp=True, metadata={"agent_run_id": "2"}
            )
            assert said(await pay(world, "a", key=one)) == "allowed"
            assert said(await pay(world, "b", key=two)) == "suspected_duplicate"

    run(main())


def test_a_duplicate_that_fails_later_is_still_told_in_its_row(tmp_path: Path) -> None:
    """What goes wrong takes the place of the sentence, never of the mark."""

    async def cut(line: Line) -> None:
        await line.request()
        line.reset()

    async def main() -> None:
        async with open_world(tmp_path) as world:
            _, key = await world.issue(duplicates=FLAG)
            await pay(world, "a", key=key)
            world.pool.close()
            world.vendor.script = cut
            await pay(world, "b", key=key)
            first, second = await world.rows()
            assert second["duplicate_of"] == first["call_id"]

    run(main())


# --- tenants that share an account ------------------------------------------------------------------------


def test_two_tenants_with_one_idempotency_key_get_each_other_s_answer_unless_kept_apart(
    tmp_path: Path,
) -> None:
    """The naive version first: the vendor sees one key, and cannot tell them."""

    async def main() -> None:
        for apart in (frozenset[str](), frozenset({"stripe"})):
            async with open_world(tmp_path / str(len(apart)), apart=apart) as world:
                keys = [(await world.issue(tenant=name))[1] for name in ("acme", "globex")]
                for key in [*keys, world.key, keys[0]]:
                    assert (await pay(world, "order-1", key=key)).status == 200
                sent = [arrived.all(b"idempotency-key")[0] for arrived in world.vendor.arrived]
                if not apart:
                    assert set(sent) == {b"order-1"}
                    continue
                names = ("acme", "globex", None, "acme")
                assert sent == [namespaced(name, b"order-1") for name in names]
                rows = await world.rows()
                # Ours goes by the agent's own: in the row, and for whoever retries.
                assert {row["idempotency_key"] for row in rows} == {"order-1"}
                assert [row["replay_of"] for row in rows] == [None, None, None, rows[0]["call_id"]]

    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    run(main())


def echoes(reply: Reply) -> list[bytes]:
    return [value for name, value in reply.fields if name.lower() == b"idempotency-key"]


def test_an_echo_of_the_key_is_the_agent_s_own(tmp_path: Path) -> None:
    """Stripe repeats it in its answers."""

    async def main() -> None:
        async with open_world(tmp_path, apart=frozenset({"stripe"})) as world:
            _, key = await world.issue(tenant="acme")
            echo = b"Idempotency-Key: " + namespaced("acme", b"order-1")
            world.vendor.answers += [answer(b"{}", 200, echo), answer(b"{}", 200, echo)]
            reply = await pay(world, "order-1", key=key)
            assert echoes(reply) == [b"order-1"]
            reply = await pay(world, None, key=key)  # sent none: then what the vendor says stays
            assert echoes(reply) == [namespaced("acme", b"order-1")]

    run(main())


def test_once_keys_are_kept_apart_a_retry_is_a_call_of_its_own(tmp_path: Path) -> None:
    """The vendor does not know the new key and charges again: so the money is held again, too."""

    async def main() -> None:
        async with vendor_on_loopback() as outside:
            async with open_world(tmp_path, vendor=outside) as world:
                grant, key = await world.issue(tenant="acme")
                await pay(world, "order-1", key=key)
            async with open_world(tmp_path, vendor=outside, apart=frozenset({"stripe"})) as world:
                await pay(world, "order-1", key=key)
                assert (await world.last())["replay_of"] is None
                (found,) = await world.vault.named(grant.key_id)
                assert found.scope.account.posted_total == 200 * CENT
            async with open_world(tmp_path, vendor=outside, apart=frozenset({"stripe"})) as world:
                await pay(world, "order-1", key=key)
                assert (await world.last())["replay_of"] is not None  # the same again after every start
                assert len({arrived.all(b"idempotency-key")[0] for arrived in outside.arrived}) == 2

    run(main())
