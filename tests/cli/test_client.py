"""The client: every call has one request, and every failure one error."""

import asyncio
import gc
import re
import socket
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import anyio
import pytest
from rich.pretty import pretty_repr

from kbctl import AsyncClient, Client, KbctlError, wire
from kbctl.client import AuditFilter, IssuedKey
from kbctl.errors import Exit
from kbctl.paths import Home
from tests.cli.support import (
    PROXY,
    TOKEN,
    VAULT_KEY,
    PretendDaemon,
    call,
    change,
    created_token,
    credential,
    findings,
    issued,
    key,
    policy,
    policy_changes,
    prices,
    rates,
    reconciliation,
    refusal,
    revocation,
    serving_tcp,
    spent,
    status,
    tenant,
    token,
    vendor,
    vendor_detail,
)

CALLS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "GET /status": (lambda c: c.status(), status()),
    "POST /shutdown": (lambda c: c.shutdown(), wire.ShutdownReply(pid=1, in_flight=0)),
    "POST /vault/keys": (lambda c: c.issue(wire.IssueRequest(daily_usd_cap=5)), issued()),
    "GET /vault/keys": (lambda c: c.keys(metadata={"run": "a b"}), wire.KeyList(keys=[key()])),
    "GET /vault/keys/vk_3": (lambda c: c.key("vk_3"), key()),
    "DELETE /vault/keys/vk_3": (lambda c: c.revoke("vk_3"), revocation()),
    "POST /vault/revocations": (lambda c: c.revoke_all(wire.RevokeRequest(all=True)), revocation()),
    "GET /vault/keys/vk_3/tree": (lambda c: c.tree("vk_3"), wire.KeyTree(key=key(), children=[])),
    "POST /vault/keys/vk_3/pause": (lambda c: c.pause("vk_3"), key()),
    "POST /vault/keys/vk_3/resume": (lambda c: c.resume("vk_3"), key()),
    "GET /policies": (lambda c: c.policies(), wire.PolicyList(policies=[policy()])),
    "GET /policies/free": (lambda c: c.policy("free"), policy()),
    "PUT /policies": (lambda c: c.apply_policies([policy()], dry_run=True), policy_changes()),
    "PUT /policies/free": (lambda c: c.set_policy(policy()), policy_changes()),
    "DELETE /policies/free": (lambda c: c.remove_policy("free"), b""),
    "GET /tenants": (lambda c: c.tenants(), wire.TenantList(tenants=[tenant()])),
    "GET /tenants/a%2Fb": (lambda c: c.tenant("a/b"), tenant()),
    "PUT /tenants/acme": (
        lambda c: c.set_tenant("acme", wire.TenantRequest(daily_usd_cap=None)),
        tenant(),
    ),
    "POST /tokens": (lambda c: c.create_token(scope="read", expires_in="1d"), created_token()),
    "GET /tokens": (lambda c: c.tokens(), wire.TokenList(tokens=[token()])),
    "DELETE /tokens/tok_1": (lambda c: c.revoke_token("tok_1"), token()),
    "GET /spend": (lambda c: c.spend("day", start="2026-11-20T00:00:00Z"), [spent()]),
    "GET /calls/call_1%2F": (lambda c: c.call("call_1/"), call()),
    "POST /calls/call_1/resolve": (lambda c: c.resolve("call_1", Decimal("12.5"), "seen"), call()),
    "POST /sql": (lambda c: c.sql("SELECT 1"), wire.SqlReply(columns=["1"], rows=[[1]])),
    "GET /vendors": (lambda c: c.vendors(), wire.VendorList(vendors=[vendor()])),
    "GET /vendors/stripe": (lambda c: c.vendor("stripe"), vendor_detail()),
    "GET /vendors/twilio/prices": (lambda c: c.vendor_prices("twilio"), prices()),
    "GET /vendors/openai/prices": (lambda c: c.vendor_prices("openai", "gpt-5"), prices(vendor="openai")),
    "GET /rates": (lambda c: c.rates(), rates()),
    "POST /vendors/stripe/reconcile": (
        lambda c: c.reconcile("stripe", credential="stripe:acme", start="2026-11-20T00:00:00Z"),
        reconciliation(),
    ),
    "POST /vendors/check": (lambda c: c.check_vendor("schema = 1"), findings()),
    "GET /credentials": (lambda c: c.credentials(), wire.CredentialList(credentials=[credential()])),
    "PUT /credentials/stripe": (lambda c: c.set_credential("stripe", "sk"), credential()),
    "DELETE /credentials/stripe": (lambda c: c.remove_credential("stripe"), b""),
}


LISTS = ("keys", "credentials", "policies", "tenants", "tokens", "vendors")


def _plain(reply: Any) -> Any:
    """What a client gives for a reply: the list in it, or all of it."""
    if reply == b"":
        return None
    for name in LISTS:
        if isinstance(reply, wire.Reply) and reply.__struct_fields__ == (name,):
            return getattr(reply, name)
    return reply


@pytest.mark.parametrize("line", CALLS)
def test_both_clients_ask_alike(daemon: PretendDaemon, home: Home, line: str) -> None:
    """Blocking or not: the same request, the same reply."""
    ask, reply = CALLS[line]
    daemon.on(line, reply)

    async def asked_async() -> Any:
        async with AsyncClient(home) as client:
            return await ask(client)

    with Client(home) as client:
        blocking = ask(client)
    unblocking = asyncio.run(asked_async())

    first, second = daemon.asked
    assert (first.line, first.query, first.body) == (second.line, second.query, second.body)
    assert first.headers["host"] == "localhost"
    assert wire.encode(blocking) == wire.encode(unblocking) == wire.encode(_plain(reply))


@pytest.mark.parametrize(
    ("http", "exit_status"),
    [
        (400, Exit.USAGE),
        (413, Exit.USAGE),
        (415, Exit.USAGE),
        (422, Exit.USAGE),
        (401, Exit.REFUSED),
        (403, Exit.REFUSED),
        (409, Exit.REFUSED),
        (429, Exit.REFUSED),
        (404, Exit.NOT_FOUND),
        (500, Exit.INTERNAL),
        (503, Exit.INTERNAL),
    ],
)
def test_errors_keep_code_sentence_and_remedy(
    daemon: PretendDaemon, home: Home, http: int, exit_status: Exit
) -> None:
    """What the daemon says is what the person reads."""
    daemon.on("GET /status", refusal("some_code", "it is so", "do that"), http)

    with Client(home) as client, pytest.raises(KbctlError) as raised:
        client.status()

    error = raised.value
    assert (error.code, error.message, error.remedy) == ("some_code", "it is so", "do that")
    assert error.exit_status is exit_status


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error": "x"}'])
def test_an_error_without_a_reason(daemon: PretendDaemon, home: Home, body: bytes) -> None:
    """Something else answered, or badly: said, with the status."""
    daemon.on("GET /status", body, 502)

    with Client(home) as client, pytest.raises(KbctlError, match="HTTP 502") as raised:
        client.status()

    assert raised.value.code == "bad_answer"


def test_an_answer_that_is_none(daemon: PretendDaemon, home: Home) -> None:
    """A reply that does not follow the contract names its field."""
    daemon.on("GET /status", b'{"version": 5}')

    with Client(home) as client, pytest.raises(KbctlError, match="could not be read") as raised:
        client.status()

    assert raised.value.exit_status is Exit.INTERNAL


def test_no_daemon(home: Home) -> None:
    """No socket: start one."""
    with Client(home) as client, pytest.raises(KbctlError) as raised:
        client.status()

    assert (raised.value.exit_status, raised.value.remedy) == (Exit.UNREACHABLE, "kbctl up")


def test_a_dead_daemon(home: Home) -> None:
    """A socket that nobody listens on any more: the same."""
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(home.socket))
    with warnings.catch_warnings():
        # httpcore leaves the socket of a refused connection to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        with Client(home) as client:
            try:
                client.status()
            except KbctlError as error:
                answered = (error.exit_status, error.remedy)
        gc.collect()

    assert answered == (Exit.UNREACHABLE, "kbctl up")


def test_a_socket_where_others_may_write(daemon: PretendDaemon, home: Home) -> None:
    """A folder that anyone may write holds anyone's socket: no secret goes there."""
    home.root.chmod(0o777)
    with Client(home) as client, pytest.raises(KbctlError) as raised:
        client.set_credential("stripe", "sk_live_x")

    assert (raised.value.code, raised.value.exit_status) == ("socket_not_ours", Exit.REFUSED)
    assert daemon.asked == []


@pytest.mark.parametrize(
    ("api", "remedy"), [("0", "kbctl down && kbctl up"), ("2", "pip install --upgrade kbctl")]
)
def test_another_version(daemon: PretendDaemon, home: Home, api: str, remedy: str) -> None:
    """After an upgrade the old daemon still runs: say which side is old. Stopping it works anyway."""
    daemon.on("GET /status", status(), Kbctl_Api=api)
    daemon.on("POST /shutdown", wire.ShutdownReply(pid=1, in_flight=0), Kbctl_Api=api)

    with Client(home) as client:
        with pytest.raises(KbctlError) as raised:
            client.status()
        client.shutdown()

    assert raised.value.remedy == remedy


def test_proxies_of_the_environment_are_ignored(
    daemon: PretendDaemon, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy variable would otherwise see every secret that is set."""
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    daemon.on("GET /status", status())

    with Client(home) as client:
        assert client.status().pid == 4242


def test_references_are_one_segment(daemon: PretendDaemon, home: Home) -> None:
    """Whatever is typed stays inside its place in the path."""
    daemon.on("GET /vault/keys/..%2F..%2Fstatus%3Fx%23y", key())

    with Client(home) as client:
        client.key("../../status?x#y")
        for wrong in ("", ".", ".."):
            with pytest.raises(KbctlError):
                client.key(wrong)

    assert len(daemon.asked) == 1


def test_no_secret_in_a_representation() -> None:
    """What lands in a traceback's locals or a log shows nothing."""
    request = wire.CredentialRequest(secret="sk_live_canary")

    assert "canary" not in repr(request)


def test_audit_pages(daemon: PretendDaemon, home: Home) -> None:
    """All pages are followed, by path only, and no further than the limit."""
    pages = [[call(call_id=f"call_{page}{row}") for row in range(3)] for page in range(3)]
    daemon.on("GET /audit", pages[0], Link='</audit?before=7&limit=3>; rel="next"')
    daemon.on("GET /audit", pages[1], Link='<http://elsewhere.example/audit?before=4>; rel="next"')
    daemon.on("GET /audit", pages[2])

    with Client(home) as client:
        everything = [row.call_id for page in client.audit(AuditFilter(tenant="acme")) for row in page]

    assert everything == [row.call_id for page in pages for row in page]
    assert [dict(asked.query) for asked in daemon.asked] == [
        {"tenant": "acme", "limit": "1000"},
        {"before": "7", "limit": "3"},
        {"before": "4"},
    ]


def test_audit_stops_at_its_limit(daemon: PretendDaemon, home: Home) -> None:
    """A page that brings more than asked for is cut, in both clients."""
    daemon.on("GET /audit", [call(), call()], Link='</audit?before=7>; rel="next"')

    async def unblocking() -> int:
        async with AsyncClient(home) as client:
            return sum([len(page) async for page in client.audit(AuditFilter(limit=3))])

    with Client(home) as client:
        assert sum(len(page) for page in client.audit(AuditFilter(limit=3))) == 3
    assert asyncio.run(unblocking()) == 3
    assert len(daemon.asked) == 4


def test_money_stays_exact(daemon: PretendDaemon, home: Home) -> None:
    """Dollars are read and written as decimals; 0.1 + 0.2 has no place here."""
    daemon.on("POST /vault/keys", issued(spent_usd=Decimal("0.300000001")), 201)

    with Client(home) as client:
        reply = client.issue(wire.IssueRequest(daily_usd_cap=Decimal("123456789.123456789")))

    assert daemon.only.body["daily_usd_cap"] == Decimal("123456789.123456789")
    assert reply.spent_usd == Decimal("0.300000001")
    assert reply.vault_key == VAULT_KEY


# --- keys held for a block --------------------------------------------------------------------------

REVOKE = "DELETE /vault/keys/vk_3f9c2a7d10"


def test_issue_in_keywords(daemon: PretendDaemon, home: Home) -> None:
    """Each keyword has its field; money may be an int, a Decimal or a text."""
    daemon.on("POST /vault/keys", issued(), 201)

    issued_key = Client(home).issue(
        tenant="acme",
        cap="500.50",
        total_cap=5000,
        call_cap=Decimal("0.000000001"),
        vendors=["stripe"],
        allow=("POST /v1/payment_intents",),
        deny=[],
        param=["customer in cus_1"],
        requests=1000,
        rate="5/s",
        loop="none",
        on_loop="pause",
        duplicates="none",
        ttl="2h",
        label="run/42",
        metadata={"a": "1"},
        policy="free",
        override=True,
        parent="vk_1",
        credential="stripe:eu",
        stamp=True,
    )

    assert isinstance(issued_key, wire.IssuedKey)
    assert (issued_key.vault_key, issued_key.key_id) == (VAULT_KEY, "vk_3f9c2a7d10")
    assert daemon.only.body == {
        "tenant": "acme",
        "daily_usd_cap": Decimal("500.50"),
        "total_usd_cap": 5000,
        "call_usd_cap": Decimal("1e-9"),
        "vendors": ["stripe"],
        "allowed_endpoints": ["POST /v1/payment_intents"],
        "denied_endpoints": [],
        "param_rules": ["customer in cus_1"],
        "daily_requests": 1000,
        "rate": "5/s",
        "loop": None,
        "on_loop": "pause",
        "duplicates": None,
        "expires_in": "2h",
        "agent_run_label": "run/42",
        "metadata": {"a": "1"},
        "policy": "free",
        "override": True,
        "parent_vault_key": "vk_1",
        "credential": "stripe:eu",
        "stamp": True,
    }


@pytest.mark.parametrize("said", [{"cap": None}, {"cap": "none"}])
def test_no_cap_is_said(daemon: PretendDaemon, home: Home, said: dict[str, Any]) -> None:
    """None, in either spelling."""
    daemon.on("POST /vault/keys", issued(), 201)

    Client(home).issue(**said)

    assert daemon.only.body == {"daily_usd_cap": None}


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"tenant": "acme", "call_cap": 5},
        {"total_cap": None},
        {"cap": 0},
        {"cap": -1},
        {"cap": "1e3"},
        {"cap": ""},
        {"cap": Decimal("NaN")},
        {"cap": 5, "requests": 0},
        {"cap": 5, "rate": "fast"},
        {"cap": 5, "loop": "20"},
        {"cap": 5, "on_loop": "none"},
        {"cap": 5, "duplicates": "deny"},
        {"cap": 5, "ttl": "soon"},
        {"cap": 5, "override": True},
    ],
)
def test_issue_refuses_values(daemon: PretendDaemon, home: Home, said: dict[str, Any]) -> None:
    """As the command line does, with a remedy in Python."""
    with pytest.raises(KbctlError) as refused:
        Client(home).issue(**said)

    assert refused.value.exit_status is Exit.USAGE
    assert "=" in refused.value.remedy
    assert daemon.asked == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"cap": 0.1}, "cap takes dollars as an int, a str or a Decimal, not a float: a float is not exact"),
        ({"cap": True}, "not a bool"),
        ({"cap": 5, "total_cap": 1.0}, "total_cap"),
        ({"cap": 5, "call_cap": [1]}, "call_cap"),
        ({"cap": 5, "requests": 1.5}, "requests"),
        ({"cap": 5, "requests": True}, "requests"),
        ({"cap": 5, "vendors": "stripe"}, "vendors takes a list"),
        ({"cap": 5, "allow": "POST /v1/x"}, "allow takes a list"),
        ({"cap": 5, "allow": [5]}, "allow"),
        ({"cap": 5, "rate": 5}, "rate"),
        ({"cap": 5, "ttl": 7200}, "ttl"),
        ({"cap": 5, "stamp": "yes"}, "stamp"),
        ({"cap": 5, "tenant": 7}, "tenant"),
        ({"cap": 5, "metadata": {"a": 1}}, "metadata"),
        ({"cap": 5, "daily_usd_cap": 5}, "unexpected keyword argument 'daily_usd_cap'"),
    ],
)
def test_issue_refuses_types(daemon: PretendDaemon, home: Home, said: dict[str, Any], why: str) -> None:
    """A mistake of the program, not of a person; in both clients before anything is sent."""
    for client in (Client(home), AsyncClient(home)):
        with pytest.raises(TypeError, match=re.escape(why)):
            client.issue(**said)
    assert daemon.asked == []


def test_a_request_or_keywords(home: Home) -> None:
    """Not both, and nothing else."""
    request = wire.IssueRequest(daily_usd_cap=5)
    client: Any = Client(home)
    with pytest.raises(TypeError, match="not both"):
        client.issue(request, cap=5)
    with pytest.raises(TypeError, match=re.escape("wire.IssueRequest")):
        client.issue({"daily_usd_cap": 5})


def test_no_representation_shows_a_key(daemon: PretendDaemon, home: Home) -> None:
    """Neither repr() nor rich's own, of keys, requests and tokens."""
    daemon.on("POST /vault/keys", issued(), 201)
    daemon.on("POST /tokens", created_token(), 201)
    client = Client(home)
    held = [
        client.issue(cap=5),
        wire.IssueRequest(parent_vault_key=VAULT_KEY),
        client.create_token(),
        issued(),
        Client(url=PROXY, token=TOKEN)._place,
    ]

    for each in held:
        seen = repr(each) + str(each) + pretty_repr(each) + pretty_repr([each])
        assert VAULT_KEY not in seen
        assert TOKEN not in seen


def test_a_block_revokes(daemon: PretendDaemon, home: Home) -> None:
    """At its end, also when it raises; the block's exception goes on."""
    daemon.on("POST /vault/keys", issued(), 201)
    daemon.on(REVOKE, revocation(revoked=[], already=["vk_3f9c2a7d10"]))

    with Client(home).issue(cap=5) as held:
        assert held.vault_key == VAULT_KEY
        assert len(daemon.asked) == 1
    with pytest.raises(ZeroDivisionError), Client(home).issue(cap=5):
        _ = 1 / 0

    assert [asked.method for asked in daemon.asked] == ["POST", "DELETE"] * 2


def test_a_block_whose_key_cannot_be_revoked(daemon: PretendDaemon, home: Home) -> None:
    """That is the error, unless the block has one of its own: then it is noted there."""
    daemon.on("POST /vault/keys", issued(), 201)
    daemon.on(REVOKE, refusal("audit_unavailable", "the disk is full", "df"), 503)

    with pytest.raises(KbctlError, match="the disk is full"), Client(home).issue(cap=5):
        pass
    with pytest.raises(ZeroDivisionError) as raised, Client(home).issue(cap=5):
        _ = 1 / 0

    assert raised.value.__notes__ == [
        "kbctl: vk_3f9c2a7d10 could not be revoked: the disk is full; try: kbctl revoke vk_3f9c2a7d10"
    ]


def test_a_key_outlives_its_client(daemon: PretendDaemon, home: Home) -> None:
    """A closed client can still revoke what it issued, and leaves no connection open."""
    daemon.on("POST /vault/keys", issued(), 201)
    daemon.on(REVOKE, revocation())

    with Client(home) as client:
        held = client.issue(cap=5)
    with held:
        pass
    client.close()
    held.revoke()
    gc.collect()

    assert len(daemon.asked) == 3


def test_connections(daemon: PretendDaemon, home: Home) -> None:
    """Kept inside ``with``; one a call without it."""
    daemon.on("GET /status", status())

    with Client(home) as client:
        client.status()
        client.status()
    Client(home).status()
    Client(home).status()

    kept = [asked.connection for asked in daemon.asked]
    assert kept[0] == kept[1]
    assert len(set(kept)) == 3


def test_a_key_without_a_client() -> None:
    """Made otherwise, it says so."""
    lone = wire.decode(wire.encode(issued()), IssuedKey)
    with pytest.raises(TypeError, match="not issued by a client"):
        lone.revoke()


def test_an_async_block_revokes(daemon: PretendDaemon, home: Home) -> None:
    """Awaited or not, at its end, also when it raises."""
    daemon.on("POST /vault/keys", issued(), 201)
    daemon.on(REVOKE, revocation())

    async def blocks() -> None:
        async with AsyncClient(home).issue(tenant="acme", cap=500) as held:
            assert held.vault_key == VAULT_KEY
        awaited = await AsyncClient(home).issue(wire.IssueRequest(daily_usd_cap=5))
        assert len(daemon.asked) == 3
        async with awaited as same:
            assert same is awaited
        with pytest.raises(ZeroDivisionError):
            async with AsyncClient(home).issue(cap=5):
                _ = 1 / 0

    asyncio.run(blocks())

    assert [asked.method for asked in daemon.asked] == ["POST", "DELETE"] * 3


def test_an_async_block_that_is_cancelled(daemon: PretendDaemon, home: Home) -> None:
    """By asyncio, and by a task group that cancels every await from then on."""
    daemon.on("POST /vault/keys", issued(), 201)
    daemon.on(REVOKE, revocation())

    async def by_asyncio() -> None:
        async with asyncio.timeout(0.2), AsyncClient(home).issue(cap=5):
            await asyncio.sleep(60)

    async def by_anyio() -> None:
        with anyio.move_on_after(0.2):
            async with AsyncClient(home).issue(cap=5):
                await anyio.sleep(60)

    with pytest.raises(TimeoutError):
        asyncio.run(by_asyncio())
    asyncio.run(by_anyio())

    assert [asked.method for asked in daemon.asked] == ["POST", "DELETE"] * 2


def test_an_async_block_whose_key_cannot_be_revoked(daemon: PretendDaemon, home: Home) -> None:
    """As in the blocking one."""
    daemon.on("POST /vault/keys", issued(), 201)
    daemon.on(REVOKE, refusal("audit_unavailable", "the disk is full", "df"), 503)

    async def blocks() -> None:
        with pytest.raises(KbctlError, match="the disk is full"):
            async with AsyncClient(home).issue(cap=5):
                pass
        with pytest.raises(ZeroDivisionError) as raised:
            async with AsyncClient(home).issue(cap=5):
                _ = 1 / 0
        assert "the disk is full" in raised.value.__notes__[0]

    asyncio.run(blocks())


def test_many_blocks_at_once(daemon: PretendDaemon, home: Home) -> None:
    """One ending does not cut the connections of the others."""
    daemon.on("POST /vault/keys", issued(), 201)
    daemon.on(REVOKE, revocation())

    async def blocks() -> None:
        client = AsyncClient(home)

        async def one() -> None:
            async with client.issue(cap=5):
                await asyncio.sleep(0)

        await asyncio.gather(*(one() for _ in range(20)))

    asyncio.run(blocks())

    assert len(daemon.asked) == 40


# --- the rest ---------------------------------------------------------------------------------------


def test_keys_follow_pages(daemon: PretendDaemon, home: Home) -> None:
    """All of them, in both clients, by path only."""
    for _ in range(2):
        daemon.on(
            "GET /vault/keys",
            wire.KeyList(keys=[key(key_id="vk_2")]),
            Link='<http://elsewhere.example/vault/keys?before=7>; rel="next"',
        )
        daemon.on("GET /vault/keys", wire.KeyList(keys=[key(key_id="vk_1")]))

    async def unblocking() -> list[str]:
        async with AsyncClient(home) as client:
            return [each.key_id for each in await client.keys(tenant="acme")]

    with Client(home) as client:
        assert [each.key_id for each in client.keys(tenant="acme")] == ["vk_2", "vk_1"]
    assert asyncio.run(unblocking()) == ["vk_2", "vk_1"]
    first = (("tenant", "acme"), ("status", "all"), ("limit", "1000"))
    assert [asked.query for asked in daemon.asked] == [first, (("before", "7"),)] * 2


def test_changes_page(daemon: PretendDaemon, home: Home) -> None:
    """As the audit does, in both clients."""
    daemon.on("GET /changes", [change(), change()], Link='</changes?before=7>; rel="next"')

    async def unblocking() -> int:
        async with AsyncClient(home) as client:
            return sum([len(page) async for page in client.changes(limit=3)])

    with Client(home) as client:
        assert sum(len(page) for page in client.changes(subject="vk_3", limit=3)) == 3
    assert asyncio.run(unblocking()) == 3
    assert daemon.asked[0].query == (("subject", "vk_3"), ("limit", "3"))


def test_revoke_and_abort(daemon: PretendDaemon, home: Home) -> None:
    """Said only when asked for; several policies at once only when live."""
    daemon.on("DELETE /vault/keys/vk_3", revocation())
    daemon.on("PUT /policies", policy_changes())

    with Client(home) as client:
        client.revoke("vk_3", abort=True)
        client.set_policy(policy(), live=True)

    assert daemon.asked[0].query == (("abort", "true"),)
    assert daemon.asked[1].body["live"] is True


def test_over_tcp() -> None:
    """With a token, in both clients; refusals as over the socket."""
    daemon = PretendDaemon()
    daemon.on("GET /status", status())
    daemon.on("GET /tokens", refusal("scope_too_small", "this token may only read", "kbctl token list"), 403)

    async def unblocking(url: str) -> int:
        async with AsyncClient(url=url, token=TOKEN) as client:
            return (await client.status()).pid

    with serving_tcp(daemon) as url:
        with Client(url=f"{url}/", token=TOKEN) as client:
            assert client.status().pid == 4242
            with pytest.raises(KbctlError) as refused:
                client.tokens()
        assert asyncio.run(unblocking(url)) == 4242

    assert refused.value.exit_status is Exit.REFUSED
    assert {asked.headers["authorization"] for asked in daemon.asked} == {f"Bearer {TOKEN}"}


def test_nothing_there_over_tcp() -> None:
    """Said with the place."""
    with serving_tcp(PretendDaemon()) as url:
        pass
    with pytest.raises(KbctlError, match="nothing answers at http://127") as refused:
        Client(url=url, token=TOKEN).status()

    assert (refused.value.exit_status, refused.value.remedy) == (Exit.UNREACHABLE, "kbctl up")


@pytest.mark.parametrize(
    "url", ["http://127.8.9.10:4815", "http://[::1]:1", "http://localhost", "https://kb.example"]
)
def test_places_that_may_have_a_token(url: str) -> None:
    """This machine, or any over TLS."""
    Client(url=url, token=TOKEN).close()


@pytest.mark.parametrize(
    "url",
    [
        *("http://kb.example", "http://10.0.0.1:4815", "http://localhost.evil.example", "http://0.0.0.0:1"),
        *("ftp://127.0.0.1", "127.0.0.1:4815", "", "http://", "http://127.0.0.1:99999"),
        *("http://u:p@127.0.0.1", "http://127.0.0.1/api", "http://127.0.0.1?x=1", "http://127.0.0.1#x"),
    ],
)
def test_places_that_may_not(url: str) -> None:
    """Plain http to elsewhere, or what is no origin; a password in it is not repeated."""
    with pytest.raises(KbctlError) as refused:
        Client(url=url, token=TOKEN)

    assert refused.value.exit_status is Exit.USAGE
    assert "u:p" not in refused.value.message


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "t\u00f6ken", "x" * 600])
def test_tokens_that_are_none(token: str) -> None:
    """Refused without being repeated."""
    with pytest.raises(KbctlError) as refused:
        Client(url=PROXY, token=token)

    assert not token or token not in refused.value.message


def test_a_place_is_one_place(home: Home) -> None:
    """A url with its token, or a home."""
    for wrong in ({"url": PROXY}, {"token": TOKEN}, {"home": home, "url": PROXY, "token": TOKEN}):
        with pytest.raises(TypeError):
            Client(**wrong)
