"""Twilio: one key over many hosts, one account, and pages whose links stay inside the proxy."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from kbctl.paths import Home
from kbctld.config import Config, read_vendors
from kbctld.core.vendor import Vendor
from kbctld.proxy.links import LINKS_BYTES, turned
from kbctld.proxy.upstream import Pool, UpstreamLimits, read_origin
from tests.support.agent import Reply
from tests.support.loop import run
from tests.support.vendor import answer
from tests.support.world import ACCOUNT, SECRET, World, open_world

ALIAS, OTHER = (f"AC{digit * 32}" for digit in "07")
MESSAGE = "To=%2B14155550100&From=%2B14155550111&Body=Hello"
BOUNDED = f"{MESSAGE}&MaxPrice=0.0145"
VERIFICATION = "To=%2B14155550100&Channel=sms"
JSON = b"Content-Type: application/json"


def twilio(folder: Path) -> Vendor:
    return read_vendors(Home(folder), Config())["twilio"]


async def ask(
    world: World, path: str, body: str = "", *, user: str = ACCOUNT, password: str = "", key: str = ""
) -> Reply:
    """A request as Twilio's SDK sends it: form and HTTP Basic."""
    pair = base64.b64encode(f"{user}:{password or key or world.key}".encode()).decode()
    lines = [
        f"{'POST' if body else 'GET'} {path} HTTP/1.1",
        f"Host: 127.0.0.1:{world.port}",
        f"Authorization: Basic {pair}",
        "X-Twilio-Client: python-9.13.0",
    ]
    if body:
        lines += ["Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(body)}"]
    return await world.ask(("\r\n".join(lines) + "\r\n\r\n" + body).encode())


def messages(account: str) -> str:
    return f"/2010-04-01/Accounts/{account}/Messages.json"


CALLS = messages(ACCOUNT).replace("Messages", "Calls")
CALL = "To=%2B14155550100&From=%2B14155550111&Twiml=%3CResponse%2F%3E"


@pytest.mark.parametrize(
    "path",
    [
        f"/twilio{messages(ALIAS)}",
        f"/twilio/{messages(ACCOUNT)}",
        f"/twilio/api{messages(ACCOUNT)}",
        f"/twilio/api.twilio.com{messages(ALIAS)}",
        messages(ALIAS),
    ],
)
def test_a_message_leaves_under_the_real_account_with_the_real_token(tmp_path: Path, path: str) -> None:
    """Whatever names the host and the account; the hold is what its segments cost, and it is posted."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            world.vendor.answers.append(answer(b'{"sid":"SM1"}', 201, JSON, b"Twilio-Request-Id: RQ1"))
            assert (await ask(world, path, MESSAGE)).status == 201
            assert (world.heard.target, world.heard.body) == (messages(ACCOUNT), BOUNDED.encode())
            pair = base64.b64encode(f"{ACCOUNT}:{SECRET}".encode())
            assert world.heard.all(b"authorization") == [b"Basic " + pair]
            assert world.heard.all(b"x-twilio-client") == [b"python-9.13.0"]
            row = await world.last()
            assert (row["operation"], row["endpoint"]) == ("messages.create", messages(ACCOUNT))
            assert (row["amount_nano"], row["outcome"], row["vendor_request_id"]) == (
                14_500_000,
                "posted",
                "RQ1",
            )
            await world.check_books()

    run(main())


def test_the_vault_key_is_found_in_either_part(tmp_path: Path) -> None:
    """Also in both, if it is the same."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            for user, password in ((world.key, "x"), (world.key, world.key), ("AC1", world.key)):
                reply = await ask(world, f"/twilio{messages(ALIAS)}", MESSAGE, user=user, password=password)
                assert reply.status == 200
            _, second = await world.issue(vendors=("twilio",))
            reply = await ask(world, f"/twilio{messages(ALIAS)}", MESSAGE, user=second)
            assert json.loads(reply.body)["details"]["code"] == "ambiguous_request"

    run(main())


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (messages(OTHER), MESSAGE, 403, "account_not_allowed"),
        (messages("me"), MESSAGE, 403, "account_not_allowed"),
        (messages("vault_key_" + "0" * 49), MESSAGE, 400, "ambiguous_request"),
        (f"{messages(ALIAS)}?AccountSid={OTHER}", "", 403, "account_not_allowed"),
        (messages(ALIAS), f"{MESSAGE}&ContentSid=HX1", 400, "amount_unknown"),
        (messages(ALIAS), MESSAGE.replace("To=", "To=whatsapp%3A"), 400, "amount_unknown"),
        (f"{messages(ALIAS)}?Body=more", MESSAGE, 400, "ambiguous_request"),
        (CALLS, f"{CALL}&Url=https%3A%2F%2Fa.test", 400, "amount_unknown"),
        ("/v2/Services/VA1/Verifications", VERIFICATION, 400, "ambiguous_request"),
        ("/evil.com/v2/Services", "", 403, "endpoint_not_allowed"),
        ("/evil.twilio.com/v2/Services", "", 403, "endpoint_not_allowed"),
        ("/verify.twilio.com.evil.com/v2/Services", "", 403, "endpoint_not_allowed"),
        (f"/2010-04-01/Accounts/{ALIAS}.json", "", 403, "endpoint_not_allowed"),
        (f"/2010-04-01/Accounts/{ALIAS}/Keys.json", "FriendlyName=x", 403, "endpoint_not_allowed"),
        ("/studio/v2/Flows/FW1/Executions", VERIFICATION, 400, "amount_unknown"),
    ],
)
def test_law_4_and_11_what_is_not_listed_does_not_leave(
    tmp_path: Path, path: str, body: str, status: int, code: str
) -> None:
    """Another account, another host, another channel: refused in Twilio's own shape."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            reply = await ask(world, f"/twilio{path}", body)
            said = json.loads(reply.body)
            assert (reply.status, said["details"]["code"], said["code"]) == (status, code, 90_000 + status)
            assert said["message"].startswith(code)
            assert not world.vendor.arrived

    run(main())


def test_another_account_leaves_where_a_rule_lists_it(tmp_path: Path) -> None:
    """And then the own one must be listed too."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            _, sub = await world.issue(vendors=("twilio",), rules=(f"account_sid in {OTHER}",))
            _, both = await world.issue(vendors=("twilio",), rules=(f"account_sid in {ACCOUNT},{OTHER}",))
            for key, account, status in (
                (sub, OTHER, 200),
                (sub, ALIAS, 403),
                (both, ALIAS, 200),
                (both, ACCOUNT, 200),
                (both, OTHER, 200),
                (both, "AC" + "8" * 32, 403),
            ):
                reply = await ask(world, f"/twilio{messages(account)}", MESSAGE, key=key)
                assert reply.status == status, (account, reply.body)
            heard = [arrived.target for arrived in world.vendor.arrived]
            assert heard == [messages(each) for each in (OTHER, ACCOUNT, ACCOUNT, OTHER)]

    run(main())


def test_an_account_that_changes_while_a_call_waits_stops_it(tmp_path: Path) -> None:
    """The path has the old account's SID; nothing leaves with the new one's token."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            record = world.vault.append

            async def append(row: Any) -> None:
                await record(row)
                file = world.plane.vendors["twilio"]
                await world.credentials.set("twilio", file, SECRET, 0, "tester", {"account_sid": OTHER})

            world.vault.append = append  # type: ignore[method-assign]
            reply = await ask(world, f"/twilio{messages(ALIAS)}", MESSAGE)
            assert json.loads(reply.body)["details"]["code"] == "credential_unavailable"
            assert not world.vendor.arrived
            await world.check_books()

    run(main())


@pytest.mark.parametrize(
    "path", ["/verify.twilio.com/v2/Services/VA1/Verifications", "/verify/v2/Services/VA1/Verifications"]
)
def test_a_mock_has_other_hosts_under_their_labels(tmp_path: Path, path: str) -> None:
    """As `--upstream twilio=URL` promises; the row and the mock see the same path."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            assert (await ask(world, f"/twilio{path}", VERIFICATION)).status == 200
            assert world.heard.target == "/verify/v2/Services/VA1/Verifications"
            assert (await world.last())["endpoint"] == world.heard.target
            assert (await world.last())["operation"] == "verifications.create"

    run(main())


def test_law_6_each_host_has_a_pool_of_its_own(tmp_path: Path) -> None:
    """The label is taken off there, and Host is that host's."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            there = read_origin(f"http://127.0.0.1:{world.vendor.port}")
            assert isinstance(world.plane.pools, dict)
            for label in ("api", "verify"):
                pool = Pool(there, UpstreamLimits(), None)
                pool.origin = read_origin(f"http://127.0.0.1:{world.vendor.port}")
                world.plane.pools[f"twilio/{label}"] = pool
            assert (await ask(world, "/twilio/verify/v2/Services?PageSize=1")).status == 200
            assert world.heard.target == "/v2/Services?PageSize=1"
            assert (await world.last())["endpoint"] == "/verify/v2/Services"
            assert (await ask(world, f"/twilio{messages(ALIAS)}")).status == 200
            assert world.heard.target == messages(ACCOUNT)
            used = {label: len(world.plane.pools[f"twilio/{label}"]._open) for label in ("api", "verify")}
            assert used == {"api": 1, "verify": 1}
            for label in ("api", "verify"):
                world.plane.pools[f"twilio/{label}"].close()

    run(main())


# --- what the vendor itself is held to ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "sent", "left", "reason"),
    [
        (messages(ACCOUNT), MESSAGE, BOUNDED, "MaxPrice=0.0145 was added"),
        (messages(ACCOUNT), f"{MESSAGE}&MaxPrice=0.01", f"{MESSAGE}&MaxPrice=0.01", None),
        (messages(ACCOUNT), f"MaxPrice=5&{MESSAGE}", BOUNDED, "MaxPrice=0.0145 was added"),
        (messages(ACCOUNT), f"{MESSAGE}&MaxPrice=0", BOUNDED, "MaxPrice=0.0145 was added"),
        (CALLS, CALL, f"{CALL}&TimeLimit=3600", "TimeLimit=3600 was added"),
        (CALLS, f"{CALL}&TimeLimit=60", f"{CALL}&TimeLimit=60", None),
    ],
)
def test_the_vendor_is_told_the_bound_that_was_held(
    tmp_path: Path, path: str, sent: str, left: str, reason: str | None
) -> None:
    """A smaller bound of the agent's stays; the hold is the same; the row tells what was added."""

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            assert (await ask(world, f"/twilio{path}", sent)).status == 200
            assert world.heard.body.decode() == left
            row = await world.last()
            assert row["reason"] == reason
            usd = {CALL: 840_000_000, f"{CALL}&TimeLimit=60": 14_000_000}
            assert row["amount_nano"] == usd.get(sent, 14_500_000)

    run(main())


# --- links -------------------------------------------------------------------------------------------------


def page(size: int = 0) -> dict[str, Any]:
    base = "https://verify.twilio.com/v2/Services"
    return {
        "services": [{"sid": "VA1", "url": f"{base}/VA1", "links": {"next_page_url": f"{base}/VA1/x"}}],
        "pad": "x" * size,
        "meta": {
            "key": "services",
            "page": 0,
            "url": f"{base}?PageSize=50&Page=0",
            "first_page_url": f"{base}?PageSize=50&Page=0",
            "previous_page_url": None,
            "next_page_url": f"{base}?PageSize=50&Page=1&PageToken=PAVA\u00e9",
        },
    }


def through(authority: str, said: dict[str, Any]) -> dict[str, Any]:
    meta = {
        name: text.replace("https://", f"http://{authority}/twilio/")
        if name.endswith("url") and text
        else text
        for name, text in said["meta"].items()
    }
    return {**said, "meta": meta}


@pytest.mark.parametrize("size", [0, 200_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_links_to_the_next_page_go_through_the_proxy(tmp_path: Path, size: int, chunked: bool) -> None:
    """In `meta` alone; the agent follows them with its vault key."""
    body = json.dumps(page(size)).encode()

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            if chunked:
                head = (
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                world.vendor.answers.append(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            else:
                world.vendor.answers.append(answer(body, 200, JSON))
            reply = await ask(world, "/twilio/verify.twilio.com/v2/Services")
            said = json.loads(reply.body)
            assert said == through(f"127.0.0.1:{world.port}", page(size))
            link = said["meta"]["next_page_url"].partition(f":{world.port}")[2].replace("\u00e9", "")
            assert (await ask(world, link)).status == 200
            assert world.heard.target == "/verify/v2/Services?PageSize=50&Page=1&PageToken=PAVA"

    run(main())


@pytest.mark.parametrize(
    ("size", "kind", "status"),
    [(LINKS_BYTES, JSON, 200), (0, b"Content-Type: text/plain", 200), (0, JSON, 404)],
)
def test_anything_else_passes_to_the_byte(tmp_path: Path, size: int, kind: bytes, status: int) -> None:
    """What is too large, no JSON or no success."""
    body = json.dumps(page(size)).encode()

    async def main() -> None:
        async with open_world(tmp_path, vendors={"twilio": twilio(tmp_path)}) as world:
            world.vendor.answers.append(answer(body, status, kind))
            reply = await ask(world, "/twilio/verify.twilio.com/v2/Services")
            assert (reply.status, reply.body) == (status, body)

    run(main())


@pytest.mark.parametrize(
    "said",
    [
        {"meta": {"next_page_url": "https://evil.com/v2"}},
        {"meta": {"next_page_url": "https://evil.twilio.com/v2"}},
        {"meta": {"next_page_url": "https://verify.twilio.com.evil.com/"}},
        {"meta": {"next_page_url": "https://verify.twilio.com@evil.com/"}},
        {"meta": {"next_page_url": "http://verify.twilio.com/v2"}},
        {"meta": {"next_page": "https://verify.twilio.com/v2"}},
        {"meta": ["https://verify.twilio.com/v2"], "x_url": "https://verify.twilio.com/v2"},
        {"url": "https://verify.twilio.com/v2", "body": '"next_page_url": "https://verify.twilio.com/v2"'},
        ["https://verify.twilio.com/v2", {"next_page_url": "https://verify.twilio.com/v2"}],
    ],
)
def test_no_other_text_is_turned(tmp_path: Path, said: Any) -> None:
    """Other hosts, other members, other places."""
    body = json.dumps(said).encode()
    assert turned(twilio(tmp_path), "127.0.0.1:1", body) == body


@pytest.mark.parametrize("body", [b'{"next_page_url": ', b"\xff_url", b"[" * 100_000 + b"_url"])
def test_what_is_no_json_stays_as_it_is(tmp_path: Path, body: bytes) -> None:
    """Also where it breaks a reader."""
    assert turned(twilio(tmp_path), "127.0.0.1:1", body) == body


def test_an_escaped_link_is_turned_and_all_else_stays(tmp_path: Path) -> None:
    """Slashes may be escaped; numbers and blanks stay as they were written."""
    body = b'{ "n": 1.10,\n "next_page_url" : "https:\\/\\/chat.twilio.com\\/v2\\/a?b=\\"" }'
    expected = b'{ "n": 1.10,\n "next_page_url" : "http://h:1/twilio/chat.twilio.com/v2/a?b=\\"" }'
    assert turned(twilio(tmp_path), "h:1", body) == expected
