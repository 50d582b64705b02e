"""The client: every call has one request, and every failure one error."""

import asyncio
import gc
import socket
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from kbctl import AsyncClient, Client, KbctlError, wire
from kbctl.client import AuditFilter
from kbctl.errors import Exit
from kbctl.paths import Home
from tests.cli.support import (
    VAULT_KEY,
    PretendDaemon,
    call,
    credential,
    issued,
    key,
    refusal,
    revocation,
    status,
)

CALLS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "GET /status": (lambda c: c.status(), status()),
    "POST /shutdown": (lambda c: c.shutdown(), wire.ShutdownReply(pid=1, in_flight=0)),
    "POST /vault/keys": (lambda c: c.issue(wire.IssueRequest(daily_usd_cap=5)), issued()),
    "GET /vault/keys": (lambda c: c.keys(metadata={"run": "a b"}), wire.KeyList(keys=[key()])),
    "GET /vault/keys/vk_3": (lambda c: c.key("vk_3"), key()),
    "DELETE /vault/keys/vk_3": (lambda c: c.revoke("vk_3"), revocation()),
    "POST /vault/revocations": (lambda c: c.revoke_all(wire.RevokeRequest(all=True)), revocation()),
    "GET /credentials": (lambda c: c.credentials(), wire.CredentialList(credentials=[credential()])),
    "PUT /credentials/stripe": (lambda c: c.set_credential("stripe", "sk"), credential()),
    "DELETE /credentials/stripe": (lambda c: c.remove_credential("stripe"), b""),
}


def _plain(reply: Any) -> Any:
    return getattr(reply, "keys", None) or getattr(reply, "credentials", None) or reply or None


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
    expected = reply if line == "GET /status" else _plain(reply)
    assert blocking == unblocking == expected


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
