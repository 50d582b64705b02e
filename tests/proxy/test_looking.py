"""Look-ups: what a call comes to that does not say it is read at the vendor first, on a row of its own."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kbctld.core.pace import read_rate
from kbctld.proxy.upstream import UpstreamLimits
from kbctld.vault import Selection
from tests.support.agent import Reply
from tests.support.loop import run
from tests.support.vendor import Arrived, Line, answer
from tests.support.world import CENT, SECRET, World, open_world

REFUNDS = "/stripe/v1/refunds"
CHARGE = {"id": "ch_1", "object": "charge", "amount": 5000, "amount_refunded": 1500, "currency": "usd"}
INTENT = {"id": "pi_9", "amount": 700, "amount_capturable": 700, "currency": "usd"}


def vendor_of(objects: dict[str, Any], *, writes_get: Callable[[], bytes] | None = None) -> Any:
    """A vendor that has these objects by path, and answers a write with what was asked for."""

    async def script(line: Line) -> None:
        while True:
            asked = await line.request()
            if asked.method == "GET":
                found = objects.get(asked.target)
                await line.say(answer(json.dumps(found).encode()) if found else answer(b"{}", 404))
            elif writes_get is not None:
                await line.say(writes_get())
            else:
                await line.say(answer(b'{"id":"re_1","object":"refund","amount":3500,"currency":"usd"}'))

    return script


async def refund(world: World, body: bytes = b"charge=ch_1", **also: Any) -> Reply:
    return await world.ask(world.request("POST", REFUNDS, body=body, **also))


def writes(world: World) -> list[Arrived]:
    return [arrived for arrived in world.vendor.arrived if arrived.method != "GET"]


@pytest.mark.parametrize(
    ("body", "target", "objects"),
    [
        (b"charge=ch_1", "/v1/charges/ch_1", CHARGE),
        (
            b"payment_intent=pi_1",
            "/v1/payment_intents/pi_1?expand[]=latest_charge",
            {"id": "pi_1", "latest_charge": CHARGE},
        ),
    ],
)
def test_a_refund_without_an_amount_is_held_exactly(
    tmp_path: Path, body: bytes, target: str, objects: dict[str, Any]
) -> None:
    """What is left of the charge; the look-up has a row of its own, of no cost, that says what it was for."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = vendor_of({target: objects})
            assert (await refund(world, body)).status == 200
            assert [arrived.target for arrived in world.vendor.arrived] == [target, "/v1/refunds"]
            looked_up, call = await world.rows()
            assert (call["requested_nano"], call["amount_nano"], call["outcome"]) == (
                3500 * CENT,
                3500 * CENT,
                "posted",
            )
            assert (call["currency"], call["amount_minor"]) == ("USD", 3500)
            assert (looked_up["method"], looked_up["endpoint"]) == ("GET", target.partition("?")[0])
            assert looked_up["operation"] in ("charges.retrieve", "payment_intents.retrieve")
            assert looked_up["reason"] == f"looked up by kbctl to price {call['call_id']}"
            assert (looked_up["amount_nano"], looked_up["outcome"], looked_up["status"]) == (0, "posted", 200)
            assert looked_up["key_no"] == call["key_no"]
            assert world.posted_cents == 3500
            await world.check_books()
            await world.check_oracle()

    run(main())


def test_law_6_a_look_up_carries_the_real_key_and_nothing_of_the_agent_s(tmp_path: Path) -> None:
    """Its version of the API, its client's name and its retry key stay with its own call."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = vendor_of({"/v1/charges/ch_1": CHARGE})
            more = [
                (b"Stripe-Version", b"2015-01-01"),
                (b"Idempotency-Key", b"k1"),
                (b"User-Agent", b"agent/1"),
            ]
            raw = world.request("POST", REFUNDS, *more, body=b"charge=ch_1")
            reply = await world.ask(raw)
            looked_up, call = world.vendor.arrived
            assert looked_up.all(b"authorization") == [b"Bearer " + SECRET.encode()]
            assert looked_up.all(b"stripe-version") == [b"2024-06-20"]
            assert looked_up.all(b"user-agent") == [b"kbctl"]
            assert looked_up.all(b"idempotency-key") == []
            assert call.all(b"idempotency-key") == [b"k1"]
            assert b"amount_refunded" not in reply.body, "its answer stays here"

    run(main())


def test_a_look_up_acts_in_the_account_of_its_call(tmp_path: Path) -> None:
    """Where the key may name another account at all."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = vendor_of({"/v1/charges/ch_1": CHARGE})
            _, key = await world.issue(rules=("refunds.create: stripe-account in acct_1",))
            raw = world.request("POST", REFUNDS, (b"Stripe-Account", b"acct_1"), body=b"charge=ch_1", key=key)
            assert (await world.ask(raw)).status == 200
            assert [each.all(b"stripe-account") for each in world.vendor.arrived] == [[b"acct_1"]] * 2

    run(main())


def test_law_4_a_look_up_that_is_not_answered_moves_no_money(tmp_path: Path) -> None:
    """Silence for its bounded time: amount_unknown, and no write reached the vendor."""

    async def silent(line: Line) -> None:
        while True:
            await line.request()

    async def main() -> None:
        async with open_world(tmp_path, upstream=UpstreamLimits(lookup_s=0.2)) as world:
            world.vendor.script = silent
            reply = await refund(world)
            assert (reply.status, reply.code) == (400, "amount_unknown")
            assert "did not answer within 0.2 s" in json.loads(reply.body)["error"]["message"]
            assert writes(world) == []
            looked_up, call = await world.rows()
            assert (looked_up["outcome"], looked_up["status"]) == ("voided", None)
            assert (call["policy_check_result"], call["amount_nano"]) == ("amount_unknown", 0)
            assert world.held_cents == world.posted_cents == 0
            await world.check_books()

    run(main())


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        pytest.param(answer(b'{"error":{}}', 404), "status 404", id="not there"),
        pytest.param(answer(b"{}", 302, b"Location: https://evil.test/"), "status 302", id="redirected"),
        pytest.param(answer(b"<html>"), "not JSON", id="no JSON"),
        pytest.param(answer(b'{"amount":5000,"currency":"usd"}'), "tells no amount", id="half of it"),
        pytest.param(answer(b" " * 300_000), "too large", id="too large"),
        pytest.param(answer(b"x", 200, b"Content-Encoding: gzip"), "encoded", id="encoded"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "gave no answer", id="broken off"),
        pytest.param(b"nonsense\r\n\r\n", "gave no answer", id="no HTTP"),
    ],
)
def test_law_4_a_look_up_without_a_usable_answer_is_a_refusal(tmp_path: Path, raw: bytes, says: str) -> None:
    """With the reason; the write does not leave."""

    async def script(line: Line) -> None:
        await line.request()
        await line.say(raw)

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = script
            reply = await refund(world)
            assert (reply.status, reply.code) == (400, "amount_unknown")
            assert says in json.loads(reply.body)["error"]["message"]
            assert writes(world) == []
            looked_up, call = await world.rows()
            assert looked_up["outcome"] in ("posted", "voided")
            assert (looked_up["amount_nano"], call["outcome"]) == (0, "refused")
            await world.check_books()

    run(main())


def test_law_4_a_vendor_that_can_t_be_reached_is_a_refusal(tmp_path: Path) -> None:
    """Nothing was sent at all."""

    async def main() -> None:
        async with open_world(tmp_path, origin="http://127.0.0.1:9") as world:
            reply = await refund(world)
            assert (reply.status, reply.code) == (400, "amount_unknown")
            assert "gave no answer" in json.loads(reply.body)["error"]["message"]

    run(main())


@pytest.mark.parametrize(
    ("terms", "body", "code"),
    [
        pytest.param({"deny": ("refunds.create",)}, b"charge=ch_1", "endpoint_not_allowed", id="endpoint"),
        pytest.param({"rules": ("charge == ch_2",)}, b"charge=ch_1", "param_not_allowed", id="rule"),
        pytest.param(
            {"rate": read_rate("1/h"), "call_cap_nano": CENT}, b"charge=ch_1", "rate_limited", id="rate"
        ),
        pytest.param({}, b"charge=ch_1&charge=ch_2", "ambiguous_request", id="two readings"),
        pytest.param({}, b"reason=duplicate", "amount_unknown", id="no object"),
    ],
)
def test_a_refusal_that_is_certain_asks_the_vendor_nothing(
    tmp_path: Path, terms: dict[str, Any], body: bytes, code: str
) -> None:
    """The cheap ones come first."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = vendor_of({"/v1/charges/ch_1": CHARGE})
            _, key = await world.issue(**terms)
            if code == "rate_limited":  # its one call of the hour
                await world.ask(world.request("GET", "/stripe/v1/balance", body=b"", key=key))
                world.vendor.arrived.clear()
            reply = await refund(world, body, key=key)
            assert reply.code == code
            assert world.vendor.arrived == []

    run(main())


def test_law_5_a_key_that_is_revoked_during_its_look_up_makes_no_call(tmp_path: Path) -> None:
    """The answer comes too late for it."""

    async def main() -> None:
        async with open_world(tmp_path) as world:

            async def revoking(line: Line) -> None:
                await line.request()
                await world.vault.revoke(Selection(numbers=frozenset({world.grant.no})), "tester")
                await line.say(answer(json.dumps(CHARGE).encode()))

            world.vendor.script = revoking
            reply = await refund(world)
            assert (reply.status, reply.code) == (401, "key_revoked")
            assert writes(world) == []
            await world.check_books()

    run(main())


def refunding(left: int) -> Callable[[], bytes]:
    """As the vendor does: what is left goes once, and then nothing is left."""
    remaining = [left]

    def once() -> bytes:
        amount, remaining[0] = remaining[0], 0
        if not amount:
            return answer(b'{"error":{"type":"invalid_request_error","code":"charge_already_refunded"}}', 400)
        return answer(b'{"id":"re_1","object":"refund","amount":%d,"currency":"usd"}' % amount)

    return once


@pytest.mark.parametrize("cap_cents", [3499, 3500, 6999, 100_000])
def test_L1_twenty_refunds_at_once_never_pass_the_cap(tmp_path: Path, cap_cents: int) -> None:
    """Each holds all that is left, so that no order of answers can overrun it; one is paid, or none."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = vendor_of({"/v1/charges/ch_1": CHARGE}, writes_get=refunding(3500))
            grant, key = await world.issue(daily_cap_nano=cap_cents * CENT)
            replies = await asyncio.gather(*(refund(world, key=key) for _ in range(20)))
            paid = [reply for reply in replies if reply.status == 200]
            assert len(paid) == (1 if cap_cents >= 3500 else 0)
            account = grant.scope.account
            assert account.posted_total == len(paid) * 3500 * CENT
            assert account.held_total == 0
            if cap_cents < 3500:
                assert writes(world) == []
            rows = await world.rows()
            assert sum(row["method"] == "GET" for row in rows) == sum(
                arrived.method == "GET" for arrived in world.vendor.arrived
            )
            await world.check_books()
            await world.check_oracle()

    run(main())


def test_L1_control_what_is_not_looked_up_would_be_counted_as_nothing(tmp_path: Path) -> None:
    """A key without a cap needs no price: its refunds leave unpriced, and count nothing."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = vendor_of({"/v1/charges/ch_1": CHARGE}, writes_get=refunding(3500))
            grant, key = await world.issue(daily_cap_nano=None)
            replies = await asyncio.gather(*(refund(world, key=key) for _ in range(20)))
            assert sum(reply.status == 200 for reply in replies) == 1
            assert grant.scope.account.posted_total == 0
            assert [arrived for arrived in world.vendor.arrived if arrived.method == "GET"] == []

    run(main())


def test_an_intent_that_was_made_elsewhere_counts_in_full_once(tmp_path: Path) -> None:
    """When it is confirmed; what follows builds on that, and looks nothing up."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.script = vendor_of(
                {"/v1/payment_intents/pi_9": INTENT}, writes_get=lambda: answer(json.dumps(INTENT).encode())
            )
            for step, body in (("/confirm", b""), ("/capture", b"amount_to_capture=500"), ("/confirm", b"")):
                raw = world.request("POST", f"/stripe/v1/payment_intents/pi_9{step}", body=body)
                assert (await world.ask(raw)).status == 200
            assert world.posted_cents == 700
            assert [each.method for each in world.vendor.arrived] == ["GET", "POST", "POST", "POST"]
            await world.check_books()
            await world.check_oracle()

    run(main())


@pytest.mark.parametrize(
    ("invoice", "call", "cents"),
    [
        ({"status": "open", "amount_remaining": 900}, "pay", 900),
        ({"status": "open", "amount_remaining": 900}, "send", 900),
        ({"status": "draft", "amount_due": 800, "automatic_tax": {"enabled": False}}, "finalize", 800),
        ({"status": "draft", "amount_due": 800, "automatic_tax": {"enabled": True}}, "finalize", None),
        ({"status": "draft", "amount_remaining": 900}, "pay", None),
        ({"status": "paid", "amount_remaining": 0}, "send", None),
    ],
)
def test_an_invoice_counts_what_it_comes_to(
    tmp_path: Path, invoice: dict[str, Any], call: str, cents: int | None
) -> None:
    """Where that can't become more any more; and once."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            known = {"/v1/invoices/in_1": {"id": "in_1", "currency": "usd", **invoice}}
            world.vendor.script = vendor_of(known, writes_get=lambda: answer(b'{"id":"in_1"}'))
            reply = await world.ask(world.request("POST", f"/stripe/v1/invoices/in_1/{call}", body=b""))
            if cents is None:
                assert reply.code == "amount_unknown"
                assert writes(world) == []
                return
            paid = await world.ask(world.request("POST", "/stripe/v1/invoices/in_1/pay", body=b""))
            assert (reply.status, paid.status) == (200, 200)
            assert world.posted_cents == cents
            assert [each.method for each in world.vendor.arrived] == ["GET", "POST", "POST"]

    run(main())


def test_a_look_up_takes_a_turn_of_the_vendor_s_rate(tmp_path: Path) -> None:
    """Two reads a minute: the turn of a third does not come within its bounded time."""

    async def main() -> None:
        limits = UpstreamLimits(lookup_s=0.3)
        async with open_world(tmp_path, rates={"read": read_rate("2/m")}, upstream=limits) as world:
            world.vendor.script = vendor_of({"/v1/charges/ch_1": CHARGE})
            assert [(await refund(world)).status for _ in range(3)] == [200, 200, 400]
            assert [each.method for each in world.vendor.arrived] == ["GET", "POST"] * 2
            assert world.plane.idle
            await world.check_books()

    run(main())


def test_one_call_at_a_time_still_looks_up(tmp_path: Path) -> None:
    """A look-up needs no place and no connection beside its call's."""

    async def main() -> None:
        async with open_world(tmp_path, busy_per_key=1, upstream=UpstreamLimits(connections=1)) as world:
            world.vendor.script = vendor_of({"/v1/charges/ch_1": CHARGE})
            replies = await asyncio.gather(*(refund(world) for _ in range(5)))
            assert [reply.status for reply in replies] == [200] * 5

    run(main())


def test_L8_a_retry_whose_look_up_fails_is_under_its_first_hold(tmp_path: Path) -> None:
    """The vendor fell silent in the midst of the first; the retry brings the answer."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            steps = [answer(json.dumps(CHARGE).encode()), answer(b"{}", 500), answer(b"{}", 404)]

            async def script(line: Line) -> None:
                while True:
                    await line.request()
                    await line.say(steps.pop(0) if steps else answer(b'{"amount":3500,"currency":"usd"}'))

            world.vendor.script = script
            raw = world.request("POST", REFUNDS, (b"Idempotency-Key", b"k1"), body=b"charge=ch_1")
            assert (await world.ask(raw)).status == 500
            assert world.held_cents == 3500
            assert (await world.ask(raw)).status == 200
            assert (world.held_cents, world.posted_cents) == (0, 3500)
            await world.check_books()

    run(main())


# --- what a refusal leaves behind ---------------------------------------------------------------------


def declined(status: str) -> bytes:
    intent = {"id": "pi_7", "amount": 100, "currency": "usd", "status": status}
    return answer(json.dumps({"error": {"code": "card_declined", "payment_intent": intent}}).encode(), 402)


@pytest.mark.parametrize(
    ("status", "cents"), [("requires_payment_method", 100), ("requires_action", 100), ("canceled", 0)]
)
def test_law_3_a_declined_intent_that_can_still_be_confirmed_counts(
    tmp_path: Path, status: str, cents: int
) -> None:
    """With its client secret, from any browser; so a later confirmation through us counts nothing more."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.answers.append(declined(status))
            body = b"amount=100&currency=usd&confirm=true"
            assert (await world.ask(world.request(body=body))).status == 402
            row = await world.last()
            assert (row["outcome"], row["status"]) == ("posted" if cents else "voided", 402)
            assert (world.posted_cents, world.held_cents) == (cents, 0)
            if cents:
                again = await world.ask(
                    world.request("POST", "/stripe/v1/payment_intents/pi_7/confirm", body=b"")
                )
                assert again.status == 200
                assert world.posted_cents == 100
                assert [each.method for each in world.vendor.arrived] == ["POST", "POST"], "it is remembered"
            await world.check_books()

    run(main())


@pytest.mark.parametrize("body", [b"", b"amount_to_capture=1"])
def test_L3_a_refused_step_does_not_make_the_next_one_cheaper(tmp_path: Path, body: bytes) -> None:
    """A capture of nothing, or of a cent, is refused; the confirmation still counts the whole intent."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            intent = {**INTENT, "amount_capturable": 0, "status": "requires_payment_method"}
            refusal = answer(json.dumps({"error": {"payment_intent": intent}}).encode(), 400)
            answers = [refusal, answer(json.dumps(intent).encode())]
            world.vendor.script = vendor_of(
                {"/v1/payment_intents/pi_9": intent}, writes_get=lambda: answers.pop(0)
            )
            for step, said in (("capture", body), ("confirm", b"")):
                await world.ask(world.request("POST", f"/stripe/v1/payment_intents/pi_9/{step}", body=said))
            assert world.posted_cents == 700
            await world.check_books()

    run(main())


def test_L3_an_object_that_is_worth_more_than_was_counted_is_not_remembered(tmp_path: Path) -> None:
    """What is confirmed later is looked up."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            big = {"id": "pi_8", "amount": 90_000, "currency": "usd", "status": "requires_confirmation"}
            answers = [answer(json.dumps({"error": {"payment_intent": big}}).encode(), 402), answer(b"{}")]
            world.vendor.script = vendor_of(
                {"/v1/payment_intents/pi_8": big}, writes_get=lambda: answers.pop(0)
            )
            assert (await world.ask()).status == 402
            await world.ask(world.request("POST", "/stripe/v1/payment_intents/pi_8/confirm", body=b""))
            assert world.posted_cents == 100 + 90_000
            await world.check_books()

    run(main())


def test_law_3_a_plain_refusal_still_frees_the_hold(tmp_path: Path) -> None:
    """No object, nothing to pay."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.answers.append(answer(b'{"error":{"code":"parameter_missing"}}', 400))
            assert (await world.ask()).status == 400
            assert world.posted_cents == world.held_cents == 0

    run(main())
