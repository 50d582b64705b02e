"""A vendor whose bodies are JSON: priced, ruled and recorded from the same reading of it."""

import base64
import json
from pathlib import Path

import pytest

from kbctl.errors import KbctlError
from kbctld.core.form import Form
from kbctld.core.policy import Access
from kbctld.core.target import Target
from kbctld.core.vendor import read_vendor
from kbctld.proxy.inject import outbound_head
from tests.support.loop import run
from tests.support.vendor import answer
from tests.support.world import CENT, SECRET, World, open_world

NO_FORM = Form((), has_semicolon=False)

MAIL_FILE = """
schema = 1
name = "mail"
title = "Mail"
docs = "https://docs.mail.test"
origin = "https://api.mail.test"
body = "json"
error_shape = "stripe"
request_id_header = "X-Request-Id"
roots = ["/v1/"]
auth = { scheme = "bearer" }
metadata_field = "metadata"
metadata_list = "tags"
forward_headers = ["content-type"]

[[operation]]
name = "gifts.send"
match = "POST /v1/gifts"
cost = { kind = "amount", amount = "value.amount", currency = "value.currency" }

[[operation]]
name = "mails.send"
match = "POST /v1/mails"
cost = { kind = "free" }
"""
MAIL = read_vendor(MAIL_FILE)
GIFT = '{"value": {"amount": 250, "currency": "usd"}, "to": "+15550100"}'


def post(
    world: World, body: str, path: str = "gifts", *, key: str | None = None, kind: str = "json"
) -> bytes:
    """A request of an agent; its framing is spelt out, since ``World.request`` writes forms."""
    raw = body.encode()
    key = key or world.key
    head = (
        f"POST /mail/v1/{path} HTTP/1.1\r\nHost: 127.0.0.1:{world.port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/{kind}\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (GIFT, 200, ""),
        (GIFT.replace("250", '"250"'), 200, ""),
        (GIFT.replace("250", "2.5e2"), 400, "amount_unknown"),
        (GIFT.replace("250", "250.0"), 400, "amount_unknown"),
        (GIFT.replace("250", "-1"), 400, "amount_unknown"),
        (GIFT.replace("250", "null"), 400, "ambiguous_request"),
        (GIFT.replace("250", "[250]"), 400, "ambiguous_request"),
        (GIFT.replace('"amount": 250', '"amount": 250, "amount": 1'), 400, "malformed_request"),
        (GIFT.replace('"amount": 250', '"amount": 1, "Amount": 250'), 400, "ambiguous_request"),
        (GIFT.replace('"to"', '"value.amount": 1, "to"'), 400, "ambiguous_request"),
        ("{}", 400, "amount_unknown"),
        ("[]", 400, "malformed_request"),
        (GIFT[:-1], 400, "malformed_request"),
        ("\ufeff" + GIFT, 400, "malformed_request"),
    ],
)
def test_law_4_a_cost_is_read_from_json_or_refused(tmp_path: Path, body: str, status: int, code: str) -> None:
    """What two readers could read differently decides nothing."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"mail": MAIL}) as world:
            reply = await world.ask(post(world, body))
            assert reply.status == status
            if code:
                assert reply.code == code
                assert not world.vendor.arrived
            else:
                assert world.heard.body == body.encode()
                assert world.posted_cents == 250

    run(main())


def test_a_form_is_not_what_this_vendor_reads(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={"mail": MAIL}) as world:
            reply = await world.ask(post(world, "value=1", kind="x-www-form-urlencoded"))
            assert (reply.status, reply.code) == (415, "unsupported_body")

    run(main())


RULES = ("to startswith +1", "gifts.send: value.currency == USD", "gifts.send: value.amount <= 300")


@pytest.mark.parametrize(
    ("body", "path", "code"),
    [
        (GIFT, "gifts", ""),
        (GIFT.replace("250", "301"), "gifts", "param_not_allowed"),
        (GIFT.replace("usd", "eur"), "gifts", "param_not_allowed"),
        (GIFT.replace("+1555", "+4955"), "gifts", "param_not_allowed"),
        (GIFT.replace('"+15550100"', '["+15550100", "+1666"]'), "gifts", ""),
        (GIFT.replace('"+15550100"', '["+15550100", "+44"]'), "gifts", "param_not_allowed"),
        (GIFT.replace('"+15550100"', "[]"), "gifts", "ambiguous_request"),
        (GIFT.replace('"to"', '"TO": "+44", "to"'), "gifts", "ambiguous_request"),
        ('{"to": "+1"}', "mails", ""),
        ('{"text": "hi"}', "mails", "param_not_allowed"),
        ("to=%2B1", "mails", "malformed_request"),
    ],
)
def test_law_10_rules_hold_in_json(tmp_path: Path, body: str, path: str, code: str) -> None:
    """Every element of a list must keep the rule; what is not said, or said twice, does not."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"mail": MAIL}) as world:
            _, key = await world.issue(vendors=("mail",), rules=RULES)
            reply = await world.ask(post(world, body, path, key=key))
            assert (reply.code if reply.status != 200 else "") == code
            assert len(world.vendor.arrived) == (0 if code else 1)

    run(main())


def test_what_the_body_says_of_its_run_is_in_the_row(tmp_path: Path) -> None:
    """An object's names, a list of names and values, and the header; the key's own words stand above them."""
    body = {
        "metadata": {"agent_id": "a1", "tier": "forged", "n": 7},
        "tags": [{"name": "run", "value": "r1"}, {"name": "tenant_id", "value": "other"}],
    }

    async def main() -> None:
        async with open_world(tmp_path, vendors={"mail": MAIL}) as world:
            _, key = await world.issue(vendors=("mail",), metadata={"tier": "gold", "tenant_id": "acme"})
            assert (await world.ask(post(world, json.dumps(body), "mails", key=key))).status == 200
            said = json.loads((await world.last())["metadata"])
            assert said == {"agent_id": "a1", "tier": "gold", "n": "7", "run": "r1", "tenant_id": "acme"}

    run(main())


def test_one_key_over_two_vendors_has_one_cap(tmp_path: Path) -> None:
    """What it spends at either counts for both."""
    from tests.support.world import BODY, stripe

    async def main() -> None:
        async with open_world(tmp_path, vendors={"mail": MAIL, "stripe": stripe()}) as world:
            grant, key = await world.issue(vendors=("mail", "stripe"), daily_cap_nano=400 * CENT)
            world.vendor.answers.append(answer())
            assert (await world.ask(post(world, GIFT, key=key))).status == 200
            assert (await world.ask(world.request(key=key, body=BODY))).status == 200
            refused = await world.ask(world.request(key=key, body=BODY))
            assert (refused.status, refused.code) == (429, "cap_exhausted")
            assert grant.scope.account.posted_total == 350 * CENT

    run(main())


AUTHS = {
    '{ scheme = "bearer" }': {"bearer": b"Bearer ", "basic": b"Bearer ", "x-api-key": b"Bearer "},
    '{ scheme = "x-api-key", also = ["bearer"] }': {"bearer": b"Bearer ", "basic": b"", "x-api-key": b""},
}


@pytest.mark.parametrize("auth", AUTHS)
def test_law_6_the_real_key_goes_where_the_vendor_takes_it(tmp_path: Path, auth: str) -> None:
    """In place of the vault key if the vendor takes it there, else in the usual place; in one place only."""
    text = MAIL_FILE.replace('{ scheme = "bearer" }', auth)

    async def main() -> None:
        async with open_world(tmp_path, vendors={"mail": read_vendor(text)}) as world:
            key = world.key.encode()
            slots = {
                "bearer": (b"Authorization", b"Bearer " + key),
                "basic": (b"Authorization", b"Basic " + base64.b64encode(b"user:" + key)),
                "x-api-key": (b"x-api-key", key),
            }
            for slot, before in AUTHS[auth].items():
                raw = world.request("GET", "/mail/v1/mails", slots[slot], key="", body=b"")
                assert (await world.ask(raw)).status == 200
                authorization = world.heard.all(b"authorization")
                api_key = world.heard.all(b"x-api-key")
                secret = SECRET.encode()
                expected = ([before + secret], []) if before else ([], [secret])
                assert (authorization, api_key) == expected, slot

    run(main())


def test_a_secret_that_goes_with_a_name_needs_one(tmp_path: Path) -> None:
    """HTTP Basic: the name is a field of the credential, asked for when it is set, kept when it rotates."""
    text = MAIL_FILE.replace('{ scheme = "bearer" }', '{ scheme = "basic", user = "account_sid" }')
    file = read_vendor(text)

    async def main() -> None:
        async with open_world(tmp_path) as world:
            for fields in ({}, {"account_sid": "a b"}, {"account_sid": "AC1", "colour": "red"}):
                with pytest.raises(KbctlError, match=r"account_sid|colour"):
                    await world.credentials.set("mail", file, SECRET, 0, "tester", fields)
            made = await world.credentials.set("mail", file, SECRET, 0, "tester", {"account_sid": "AC1"})
            again = await world.credentials.set("mail", file, "another_secret_1", 0, "tester")
            assert (made.fields, again.fields) == ({"account_sid": "AC1"}, {"account_sid": "AC1"})
            access = Access(file, "GET", Target("/v1/mails", ("v1", "mails"), "", NO_FORM), None, {}, {})
            head = outbound_head(access, "api.mail.test", again, "bearer", [], None)
            pair = base64.b64encode(b"AC1:another_secret_1")
            assert b"\r\nAuthorization: Basic " + pair + b"\r\n" in head

    run(main())
