"""Resend: mails are counted by recipient, one by one or in a batch, and a retry counts once."""

import json
from pathlib import Path
from typing import Any

import pytest

from kbctl.paths import Home
from kbctld.config import Config, read_vendors
from kbctld.core.vendor import Vendor
from tests.support.agent import Reply
from tests.support.loop import run
from tests.support.vendor import answer
from tests.support.world import SECRET, World, open_world

MAIL = 900_000
"""The price of a mail in the file that is shipped, in nano-USD."""


def resend(folder: Path) -> Vendor:
    return read_vendors(Home(folder), Config())["resend"]


async def ask(
    world: World, what: Any, path: str = "/resend/emails", method: str = "POST", key: str = "", **headers: str
) -> Reply:
    """A request as Resend's Python SDK sends it."""
    body = json.dumps(what)
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: 127.0.0.1:{world.port}",
        f"Authorization: Bearer {key or world.key}",
        "User-Agent: resend-python:2.51.0",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return await world.ask(("\r\n".join(lines) + "\r\n\r\n" + body).encode())


ONE = {
    "from": "me@x.test",
    "to": ["a@x.test", "b@x.test"],
    "cc": "c@x.test",
    "tags": [{"name": "run", "value": "r1"}],
}


def test_a_mail_is_counted_by_recipient_and_a_batch_by_its_mails(tmp_path: Path) -> None:
    """The body leaves as it came, with the user agent; its tags are in the row."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"resend": resend(tmp_path)}) as world:
            world.vendor.answers.append(answer(b'{"id":"m_1"}', 200, b"X-Request-Id: rq_1"))
            assert (await ask(world, ONE)).status == 200
            assert json.loads(world.heard.body) == ONE
            assert world.heard.all(b"user-agent") == [b"resend-python:2.51.0"]
            assert world.heard.all(b"authorization") == [b"Bearer " + SECRET.encode()]
            row = await world.last()
            assert (row["operation"], row["amount_nano"], row["outcome"]) == (
                "emails.send",
                3 * MAIL,
                "posted",
            )
            assert (row["vendor_request_id"], json.loads(row["metadata"])) == ("rq_1", {"run": "r1"})

            batch = [ONE, {"to": "d@x.test"}]
            assert (
                await ask(world, batch, "/resend//emails/batch", x_batch_validation="strict")
            ).status == 200
            assert (json.loads(world.heard.body), world.heard.target) == (batch, "/emails/batch")
            assert world.heard.all(b"x-batch-validation") == [b"strict"]
            assert (await world.last())["amount_nano"] == 4 * MAIL
            await world.check_books()

    run(main())


def test_a_read_with_a_body_passes_as_the_python_sdk_sends_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={"resend": resend(tmp_path)}) as world:
            assert (await ask(world, {}, "/resend/emails/m_1", "GET")).status == 200
            assert (world.heard.method, world.heard.body) == ("GET", b"{}")
            assert (await world.last())["amount_nano"] == 0

    run(main())


def test_law_12_a_retry_of_a_mail_counts_once_and_of_anything_else_not(tmp_path: Path) -> None:
    """Resend marks no replay, so the key's own table tells; it knows idempotency for mails alone."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"resend": resend(tmp_path)}) as world:
            for _ in range(2):
                assert (await ask(world, ONE, idempotency_key="k1")).status == 200
                assert world.heard.all(b"idempotency-key") == [b"k1"]
            first, second = await world.rows()
            assert (first["amount_nano"], second["amount_nano"]) == (3 * MAIL, 0)
            assert second["replay_of"] == first["call_id"]
            assert world.grant.scope.account.posted_total == 3 * MAIL
            for _ in range(2):
                assert (
                    await ask(world, {"name": "t"}, "/resend/templates", idempotency_key="k1")
                ).status == 200
            assert (await world.last())["replay_of"] is None

    run(main())


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("emails", [ONE], 400, "malformed_request"),
        ("emails/batch", ONE, 400, "malformed_request"),
        ("emails/batch", [ONE, []], 400, "malformed_request"),
        ("emails?to=a%40x.test", ONE, 400, "ambiguous_request"),
        ("emails", {**ONE, "BCC": "e@x.test"}, 400, "ambiguous_request"),
        ("emails", {**ONE, "bcc": ["a@x.test"] * 51}, 400, "amount_unknown"),
        ("broadcasts/b_1/send", {}, 400, "amount_unknown"),
        ("events/send", {"event": "e"}, 400, "amount_unknown"),
        ("domains", {"name": "x.test"}, 403, "endpoint_not_allowed"),
        ("v1/emails", ONE, 403, "endpoint_not_allowed"),
    ],
)
def test_law_4_and_10_what_is_not_understood_does_not_leave(
    tmp_path: Path, path: str, body: Any, status: int, code: str
) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={"resend": resend(tmp_path)}) as world:
            reply = await ask(world, body, f"/resend/{path}")
            said = json.loads(reply.body)
            assert (reply.status, said["name"], said["statusCode"]) == (status, code, status)
            assert said["message"].startswith(code)
            assert not world.vendor.arrived

    run(main())


def test_a_rule_holds_for_every_mail_of_a_batch(tmp_path: Path) -> None:
    """Absent in one, or another in one: neither leaves."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"resend": resend(tmp_path)}) as world:
            _, key = await world.issue(vendors=("resend",), rules=("from == me@x.test",))
            for other in ({"to": "d@x.test"}, {"to": "d@x.test", "from": "you@x.test"}):
                reply = await ask(world, [ONE, other], "/resend/emails/batch", key=key)
                assert json.loads(reply.body)["name"] == "param_not_allowed"
            assert not world.vendor.arrived
            assert (await ask(world, [ONE, ONE], "/resend/emails/batch", key=key)).status == 200

    run(main())
