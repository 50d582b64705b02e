"""An answer that leaves four fifths of a cap gone says so, where SDKs look for it."""

from pathlib import Path

import pytest

from kbctl.paths import Home
from kbctld.config import Config, read_vendors
from kbctld.core.grant import Grant
from kbctld.core.limits import Limits
from tests.support.agent import Reply
from tests.support.loop import run
from tests.support.vendor import answer
from tests.support.world import CENT, World, open_world


def told(reply: Reply, name: bytes) -> list[bytes]:
    return [value for each, value in reply.fields if each.lower() == name]


async def pay(world: World, key: str, cents: int = 100, *, method: str = "POST") -> Reply:
    body = b"amount=%d&currency=usd" % cents if method == "POST" else b""
    return await world.ask(world.request(method, body=body, key=key))


def text(grant: Grant, left: str, cap: str) -> bytes:
    return (
        f"kbctl: {left} is left of the {cap} daily cap of key {grant.key_id}; it resets at 00:00 UTC"
    ).encode()


def test_from_four_fifths_on_every_answer_says_what_is_left(tmp_path: Path) -> None:
    """The one that takes it there too; a refusal speaks for itself."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            grant, key = await world.issue(daily_cap_nano=1000 * CENT)
            quiet = await pay(world, key, 799)
            assert told(quiet, b"stripe-notice") == told(quiet, b"kbctl-notice") == []
            for reply in (await pay(world, key, 1), await pay(world, key, method="GET")):
                assert reply.status == 200
                assert told(reply, b"stripe-notice") == [text(grant, "$2.00", "$10.00")]
                assert told(reply, b"kbctl-notice") == [text(grant, "$2.00", "$10.00")]
            refusal = await pay(world, key, 201)
            assert refusal.status == 429
            assert told(refusal, b"stripe-notice") == told(refusal, b"kbctl-notice") == []

    run(main())


def test_what_the_vendor_released_is_left_again(tmp_path: Path) -> None:
    """The figures are those of after the answer: a declined card costs nothing."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            _, key = await world.issue(daily_cap_nano=1000 * CENT)
            world.vendor.answers.append(answer(b"{}", 402))
            assert told(await pay(world, key, 900), b"kbctl-notice") == []

    run(main())


@pytest.mark.parametrize("size", [2, 100_000])
def test_a_notice_of_the_vendor_s_own_stays(tmp_path: Path, size: int) -> None:
    """Both stand in one field, in an answer that is passed on whole and in one that streams."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            grant, key = await world.issue(daily_cap_nano=100 * CENT)
            body = b"{" + b" " * (size - 2) + b"}"
            world.vendor.answers.append(answer(body, 200, b"Stripe-Notice: This API ends soon."))
            reply = await pay(world, key, 90)
            assert told(reply, b"stripe-notice") == [b"This API ends soon.; " + text(grant, "$0.10", "$1.00")]
            world.vendor.answers.append(answer(b"{}", 200, b"Stripe-Notice: This API ends soon."))
            assert told(await pay(world, world.key), b"stripe-notice") == [b"This API ends soon."]

    run(main())


def test_caps_of_an_ancestor_and_of_the_tenant_bind_and_are_told(tmp_path: Path) -> None:
    """As GET /vault/self tells them; a tenant's name may hold anything that a header may not."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            parent, _ = await world.issue(tenant="b\u00fccher", daily_cap_nano=200 * CENT)
            _, child = await world.issue(tenant="b\u00fccher", parent=parent, daily_cap_nano=None)
            said = told(await pay(world, child, 180), b"kbctl-notice")
            assert said == [text(parent, "$0.20", "$2.00")]
            await world.vault.set_tenant("b\u00fccher", Limits(daily_cap_nano=190 * CENT), "tester")
            (last,) = told(await pay(world, child, method="GET"), b"kbctl-notice")
            assert b"$0.10 is left of the $1.90 daily cap of tenant b\\xfccher" in last

    run(main())


def test_other_vendors_have_the_plain_header_alone(tmp_path: Path) -> None:
    async def main() -> None:
        resend = read_vendors(Home(tmp_path), Config())["resend"]
        async with open_world(tmp_path, vendors={"resend": resend}) as world:
            _, key = await world.issue(vendors=("resend",), daily_cap_nano=1_000_000)
            raw = world.request("POST", "/resend/emails", body=b'{"to":"a@x.test"}', key=key)
            reply = await world.ask(raw.replace(b"application/x-www-form-urlencoded", b"application/json"))
            assert reply.status == 200
            assert len(told(reply, b"kbctl-notice")) == 1
            assert told(reply, b"stripe-notice") == []

    run(main())
