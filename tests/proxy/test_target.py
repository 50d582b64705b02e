"""P6, P7, P8: one target is matched, audited, sent; the agent chooses neither origin, account nor method."""

import json
from pathlib import Path

import pytest

from kbctld.core.vendor import Vendor, read_vendor
from tests.support.loop import run
from tests.support.world import TARGET, World, open_world, stripe

OTHER = """
schema = 1
name = "other"
title = "Other"
docs = "https://example.invalid/docs"
origin = "https://api.example.invalid"
body = "form"
error_shape = "stripe"
request_id_header = "X-Request-Id"
roots = ["/v1/"]
operation = []
[auth]
scheme = "bearer"
"""


def two_vendors() -> dict[str, Vendor]:
    return {"stripe": stripe(), "other": read_vendor(OTHER)}


async def refused(world: World, raw: bytes, status: int, code: str, what: object) -> None:
    """This request is refused so, has that row, and goes nowhere."""
    before = len(world.vendor.arrived)
    reply = await world.ask(raw)
    assert (reply.status, reply.code) == (status, code), what
    assert len(world.vendor.arrived) == before, what
    row = await world.last()
    assert (row["policy_check_result"], row["outcome"], row["status"]) == (code, "refused", status), what
    assert row["call_id"].encode() == reply.get(b"request-id")


# --- paths ---------------------------------------------------------------------------------------

JOINS = {
    "/stripe/v1/payment_intents": "/v1/payment_intents",
    "/stripe//v1/payment_intents": "/v1/payment_intents",
    "/stripe/v1/v1/payment_intents": "/v1/payment_intents",
    "/stripe/v1//v1/payment_intents": "/v1/payment_intents",
    "/v1/payment_intents": "/v1/payment_intents",
    "/v1/v1/payment_intents": "/v1/payment_intents",
    "/stripe/v1/v2/payment_intents": "/v2/payment_intents",
    "/stripe/v1/payment_intents?expand[]=x&expand%5B%5D=y": "/v1/payment_intents?expand[]=x&expand%5B%5D=y",
    "/stripe/v1/payment_intents/pi_1.a~b-c": "/v1/payment_intents/pi_1.a~b-c",
}


@pytest.mark.parametrize(("sent", "received"), JOINS.items(), ids=JOINS)
def test_what_sdks_join_arrives_normalised(tmp_path: Path, sent: str, received: str) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            reply = await world.ask(world.request("GET", sent, body=b""))
            assert reply.status == 200
            assert world.heard.target == received
            row = await world.last()
            assert (row["endpoint"], row["vendor"]) == (received.partition("?")[0], "stripe")
            await world.check_oracle()

    run(main())


INTENTS = "/stripe/v1/payment_intents"
AMBIGUOUS = [
    "/stripe/v1/./payment_intents",
    "/stripe/v1/../v1/payment_intents",
    "/stripe/v1/refunds/../payment_intents",
    "/stripe/v1/payment_intents/..",
    "/stripe/v1/payment_intents/.",
    "/stripe/../stripe/v1/payment_intents",
    "/../v1/payment_intents",
    "/stripe/v1/%70ayment_intents",
    "/stripe/v1/refunds/%2e%2e/payment_intents",
    "/stripe/v1/refunds/%2E%2E/payment_intents",
    "/stripe/v1/refunds/.%2e/payment_intents",
    "/stripe/v1/refunds%2fpayment_intents",
    "/stripe/v1/refunds%2F..%2Fpayment_intents",
    "/stripe/v1/refunds%5c..%5cpayment_intents",
    "/stripe/v1/refunds\\..\\payment_intents",
    "/stripe/v1/refunds/..\\payment_intents",
    "/stripe\\v1\\payment_intents",
    "/stripe/v1/payment_intents;a=b",
    "/stripe/v1/payment_intents;/../refunds",
    "/stripe/v1/..;/payment_intents",
    "/stripe/v1/payment_intents%00",
    "/stripe/v1/payment_intents%20",
    "/stripe/v1/payment_intents%0d%0aHost:%20evil",
    "/stripe/v1/payment_intents%3Famount=1",
    "/stripe/v1/payment_intents%23",
    "/stripe/v1/payment_intents#",
    "/stripe/v1/payment_intents#/refunds",
    "/stripe/v1/payment_intents?a=b#c",
    "/stripe/v1/payment_intents//",
    "/stripe/v1//payment_intents",
    "/stripe/v1/payment_intents//confirm",
    "/stripe///v1/payment_intents",
    "//v1/payment_intents",
    "//evil.invalid/v1/payment_intents",
    "///v1/payment_intents",
    "/stripe//v1//payment_intents",
    "/%73tripe/v1/payment_intents",
    "/stripe/v1/payment_intents:confirm",
    "/stripe/v1/payment_intents@evil",
    "/stripe/v1/payment_intents,x",
    "/stripe/v1/payment_intents+x",
    "/stripe/v1/payment_intents*",
    "/stripe/v1/payment_intents'",
    '/stripe/v1/payment_intents"',
    "/stripe/v1/<payment_intents>",
    "/stripe/v1/{payment_intents}",
    "/stripe/v1/payment|intents",
    "/stripe/v1/payment^intents",
    "/stripe/v1/payment`intents",
    "/stripe/v1/payment_intents?",
    '/stripe/v1/payment_intents?a="b"',
    "/stripe/v1/payment_intents?a=<b>",
    "/stripe/v1/payment_intents?a=\\b",
    "/stripe/v1/payment_intents?a={b}",
    "/stripe/v1/payment_intents?_method=DELETE",
    "/stripe/v1/payment_intents?_METHOD=DELETE",
    "/stripe/v1/payment_intents?%5Fmethod=DELETE",
    "/stripe/v1/payment_intents?a=b&_method=DELETE",
    "/stripe/v1/payment_intents?a=b;_method=DELETE",
    "/stripe/v1/payment_intents?_method[]=DELETE",
    "/stripe/v1/payment_intents?api_key=sk_live_x",
    "/stripe/v1/payment_intents?amount=1",
    "/stripe/v1/payment_intents?Amount=1",
    "/stripe/v1/payment_intents?currency=jpy",
    "/stripe/v1/payment_intents?amount[]=1",
    "/stripe/v1/payment_intents?a=b;amount=1",
    "http://evil.invalid/v1/payment_intents",
    "http://HOST/stripe/v1/payment_intents",
    "https://api.stripe.com/v1/payment_intents",
    "HTTP://HOST/stripe/v1/payment_intents",
    "http://user:pass@HOST/stripe/v1/payment_intents",
]
NO_ENDPOINT = [
    "/stripe/",
    "/stripe",
    "/",
    "/payment_intents",
    "/stripe/V1/payment_intents",
    "/stripe/v3/payment_intents",
    "/stripe/v1",
    "/stripe/v1x/payment_intents",
    "/STRIPE/v1/payment_intents",
    "/stripe/stripe/v1/payment_intents",
    "/stripe/oauth/token",
    "/files.stripe.com/v1/files",
    "/other/v1/payment_intents",
]
MALFORMED = [
    "/stripe/v1/payment_intents?a=%zz",
    "/stripe/v1/payment_intents?a=%",
    "/stripe/v1/payment_intents?a=%ff",
    "/stripe/v1/payment_intents?%00=a",
]


def test_path_tricks_are_refused_and_never_repaired(tmp_path: Path) -> None:
    table = [(target, 400, "ambiguous_request") for target in AMBIGUOUS]
    table += [(target, 403, "endpoint_not_allowed") for target in NO_ENDPOINT]
    table += [(target, 400, "malformed_request") for target in MALFORMED]

    async def main() -> None:
        async with open_world(tmp_path) as world:
            for target, status, code in table:
                raw = world.request("POST", target.replace("HOST", f"127.0.0.1:{world.port}"))
                await refused(world, raw, status, code, target)
            assert world.vendor.lines == 0
            assert (await world.ask()).status == 200, "the control"

    run(main())


@pytest.mark.parametrize("allow", [("POST /v1/refunds",), ("POST /v1/refunds/*",), ("refunds.create",)])
def test_no_spelling_reaches_what_the_key_does_not_allow(tmp_path: Path, allow: tuple[str, ...]) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            _, key = await world.issue(allow=allow)
            for target in [*AMBIGUOUS, *NO_ENDPOINT, *MALFORMED, *JOINS, TARGET + "/", "/stripe/v1/refundsx"]:
                reply = await world.ask(world.request("POST", target.replace("HOST", "h"), key=key))
                assert reply.status in (400, 403), target
            assert world.vendor.lines == 0

    run(main())


def test_a_slash_behind_an_operation_s_path_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            await refused(world, world.request("POST", TARGET + "/"), 400, "ambiguous_request", "slash")

    run(main())


# --- which vendor --------------------------------------------------------------------------------


def test_a_prefix_that_disagrees_with_the_key_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors=two_vendors()) as world:
            _, key = await world.issue(vendors=("stripe",))
            reply = await world.ask(world.request("GET", "/other/v1/x", body=b"", key=key))
            assert (reply.status, reply.code) == (403, "vendor_not_allowed")
            call_id = (await world.last())["call_id"].encode()
            assert reply.get(b"x-request-id") == call_id, "in the other's own shape"
            both = world.request("GET", "/v1/balance", body=b"")
            await refused(world, both, 400, "ambiguous_request", "two vendors and no prefix")
            assert (await world.ask(world.request("GET", "/stripe/v1/balance", body=b""))).status == 200

    run(main())


# --- origin and account --------------------------------------------------------------------------

HOSTS = [
    b"api.stripe.com",
    b"evil.invalid",
    b"127.0.0.1",
    b"127.0.0.1:1",
    b"localhost",
    b"127.0.0.2:PORT",
    b"127.1:PORT",
    b"2130706433:PORT",
    b"0.0.0.0:PORT",
    b"127.0.0.1:PORT.evil.invalid",
    b"127.0.0.1:PORT@evil.invalid",
    b"user@127.0.0.1:PORT",
    b"127.0.0.1:PORT/",
    b"127.0.0.1.:PORT",
    b"localhost.:PORT",
    b"localhost.evil.invalid:PORT",
    b"[::1%25lo]:PORT",
    b"[::ffff:127.0.0.1]:PORT",
    b"[::2]:PORT",
    b"127.0.0.1:+PORT",
    b"127.0.0.1:0PORT",
]


def test_a_foreign_host_is_turned_away_before_any_key_is_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            port = b"%d" % world.port
            for host in HOSTS:
                for key in (None, "", "vault_key_nonsense"):
                    raw = world.request(host=host.replace(b"PORT", port), key=key)
                    await refused(world, raw, 403, "origin_not_allowed", host)
                    assert (await world.last())["key_no"] is None
            assert world.vendor.lines == 0
            for host in (b"127.0.0.1:PORT", b"localhost:PORT", b"LOCALHOST:PORT", b"[::1]:PORT"):
                assert (await world.ask(world.request(host=host.replace(b"PORT", port)))).status == 200

    run(main())


def test_pages_are_turned_away(tmp_path: Path) -> None:
    fields = [(b"Origin", b"null"), (b"Origin", b"http://127.0.0.1"), (b"Origin", b"")]
    fields += [
        (b"Sec-Fetch-Site", site) for site in (b"cross-site", b"same-site", b"same-origin", b"", b"None")
    ]

    async def main() -> None:
        async with open_world(tmp_path) as world:
            for field in fields:
                await refused(world, world.request("POST", TARGET, field), 403, "origin_not_allowed", field)
            options = world.request("OPTIONS", TARGET, body=b"")
            await refused(world, options, 403, "origin_not_allowed", "preflight")
            star = world.request("OPTIONS", "*", body=b"", key="")
            assert (await world.ask(star)).status in (400, 403)
            reply = await world.ask(world.request("POST", TARGET, (b"Origin", b"null")))
            assert not [name for name, _ in reply.fields if name.startswith(b"access-control")]
            none = world.request("POST", TARGET, (b"Sec-Fetch-Site", b"none"))
            assert (await world.ask(none)).status == 200

    run(main())


PROBES = [
    (b"X-Forwarded-Host", b"evil.invalid"),
    (b"X-Forwarded-Server", b"evil.invalid"),
    (b"X-Forwarded-For", b"1.2.3.4"),
    (b"X-Forwarded-Proto", b"http"),
    (b"X-Forwarded-Port", b"80"),
    (b"X-Forwarded-Prefix", b"/evil"),
    (b"X-Original-Host", b"evil.invalid"),
    (b"X-Original-URL", b"/v1/payouts"),
    (b"X-Rewrite-URL", b"/v1/payouts"),
    (b"X-Host", b"evil.invalid"),
    (b"X-HTTP-Host-Override", b"evil.invalid"),
    (b"Forwarded", b"host=evil.invalid"),
    (b"Proxy-Host", b"evil.invalid"),
    (b"Proxy", b"http://evil.invalid"),
    (b"Via", b"1.1 evil.invalid"),
    (b"Destination", b"http://evil.invalid"),
    (b"X-Real-IP", b"127.0.0.1"),
    (b"X-Custom-IP-Authorization", b"127.0.0.1"),
    (b"True-Client-IP", b"127.0.0.1"),
    (b"X-Stripe-Account", b"acct_2"),
    (b"Stripe-Accounts", b"acct_2"),
    (b"Referer", b"http://evil.invalid"),
]


def test_no_header_changes_origin_or_target(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            await world.ask()
            plain = world.heard.raw
            for probe in PROBES:
                assert (await world.ask(world.request("POST", TARGET, probe))).status == 200, probe
                assert world.heard.raw == plain, probe
            await world.check_oracle()

    run(main())


@pytest.mark.parametrize("name", [b"Stripe-Account", b"stripe-account", b"STRIPE-CONTEXT"])
def test_another_account_is_refused(tmp_path: Path, name: bytes) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            for value in (b"acct_2", b""):
                raw = world.request("POST", TARGET, (name, value))
                await refused(world, raw, 403, "account_not_allowed", value)
            hop = world.request("POST", TARGET, (name, b"acct_2"), (b"Connection", name))
            assert (await world.ask(hop)).status == 200, "for this hop only, so it is dropped"
            assert not world.heard.all(name.lower())

    run(main())


# --- methods -------------------------------------------------------------------------------------


def test_methods_outside_the_grant_are_refused_in_any_case(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            _, key = await world.issue(allow=("GET /v1/customers/*",))
            target = "/stripe/v1/customers/cus_1"
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                raw = world.request(method, target, body=b"", key=key)
                await refused(world, raw, 403, "endpoint_not_allowed", method)
                await refused(
                    world, world.request(method.lower(), target, key=key), 400, "malformed_request", method
                )
            assert (await world.ask(world.request("GET", target, body=b"", key=key))).status == 200

    run(main())


CUSTOMER = "/stripe/v1/customers/cus_1"
PLAIN = b"application/x-www-form-urlencoded"
OVERRIDES = [
    (b"_method=DELETE", PLAIN),
    (b"_METHOD=DELETE", PLAIN),
    (b"name=x&_method=DELETE", PLAIN),
    (b"_method=DELETE&_method=POST", PLAIN),
    (b"%5fmethod=DELETE", PLAIN),
    (b"_method[]=DELETE", PLAIN),
    (b"_method[a]=DELETE", PLAIN),
    (b"name=x;_method=DELETE", PLAIN),
    (b"+_method=DELETE", PLAIN),
    (b"_method=DELETE", PLAIN + b"; charset=utf-8"),
    (b"_method=DELETE", PLAIN.upper()),
    # Readers that look at the media type alone take these for forms too, and Rack one without any type.
    (b"_method=DELETE", PLAIN + b"; charset=iso-8859-1"),
    (b"_method=DELETE", PLAIN + b"; x=y"),
    (b"_method=DELETE", PLAIN + b";"),
    (b"_method=DELETE", b""),
    (b"_method=DELETE", None),
    # Whatever some reader makes of a form that we can't read, we don't send it.
    (b"_method=DELETE&name=%zz", PLAIN),
    (b"_method=DELETE&name=\xff", PLAIN),
]


@pytest.mark.parametrize(("body", "kind"), OVERRIDES)
def test_a_body_can_t_turn_an_update_into_something_else(
    tmp_path: Path, body: bytes, kind: bytes | None
) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            raw = world.request("POST", CUSTOMER, body=body)
            typed = b"Content-Type: " + PLAIN + b"\r\n"
            raw = raw.replace(typed, b"" if kind is None else b"Content-Type: " + kind + b"\r\n")
            reply = await world.ask(raw)
            assert reply.status in (400, 415), reply
            assert reply.code in ("ambiguous_request", "malformed_request", "unsupported_body")
            assert world.vendor.lines == 0

    run(main())


def test_nor_a_large_body_that_nothing_else_decides(tmp_path: Path) -> None:
    """An endpoint that no vendor file lists: its body streams by unread, but not where it may be a form."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            _, key = await world.issue(allow=("POST /v1/new_things/*",), daily_cap_nano=None)
            body = b"_method=DELETE&pad=" + b"x" * 100_000
            raw = world.request("POST", "/stripe/v1/new_things/a", body=body, key=key)
            await refused(world, raw, 400, "ambiguous_request", "large")

    run(main())


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"name=x", PLAIN),
        (b"name=x", PLAIN + b'; charset="UTF-8"'),
        (b"metadata[a]=b", PLAIN),
        (b'{"name": "50% _method"}', b"application/json"),
        (b"\xff\xfe", b"application/octet-stream"),
    ],
)
def test_other_bodies_of_free_operations_pass_untouched(tmp_path: Path, body: bytes, kind: bytes) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            raw = world.request("POST", "/stripe/v1/products", body=body).replace(PLAIN, kind)
            assert (await world.ask(raw)).status == 200
            assert (world.heard.body, world.heard.all(b"content-type")) == (body, [kind])
            await world.check_oracle()

    run(main())


def test_the_sentence_about_a_whole_url_says_what_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            reply = await world.ask(world.request("GET", "http://api.stripe.com/v1/balance", body=b""))
            assert "HTTP_PROXY" in json.loads(reply.body)["error"]["message"]

    run(main())
