"""``tenant`` and ``token``: what is set up once."""

import json
from collections.abc import Callable
from decimal import Decimal

import pytest

from kbctl import wire
from tests.cli.conftest import Cli, Seen
from tests.cli.support import TOKEN, PretendDaemon, created_token, refusal, status, tenant, token

# --- tenants --------------------------------------------------------------------------------------


def test_set(cli: Cli, daemon: PretendDaemon) -> None:
    """Only what was said is sent; none is sent as null."""
    daemon.on("PUT /tenants/acme", tenant())

    result = cli(
        *"tenant set acme --cap 2000 --total-cap none --call-cap 50.5 --requests none --rate 5/s".split()
    )
    cli(*"tenant set acme --cap none".split())

    assert daemon.asked[0].body == {
        "daily_usd_cap": 2000,
        "total_usd_cap": None,
        "call_usd_cap": Decimal("50.5"),
        "daily_requests": None,
        "rate": "5/s",
    }
    assert daemon.asked[1].body == {"daily_usd_cap": None}
    assert [line.strip() for line in result.stdout.splitlines()] == [
        "acme  3 active keys",
        "today     $1,500.00 spent, $120.50 held of $2,000.00",
        "in all    $9,000.00 spent, $120.50 held, no cap",
        "requests  42 of 1,000 today",
        "rate      5/s",
    ]


@pytest.mark.parametrize(
    "args",
    [
        ("acme",),
        (),
        ("..", "--cap", "5"),
        ("acme", "--cap", "0"),
        ("acme", "--cap", "1e3"),
        ("acme", "--requests", "-1"),
        ("acme", "--rate", "5"),
        ("acme", "--ttl", "2h"),
    ],
)
def test_set_refuses(cli: Cli, daemon: PretendDaemon, args: tuple[str, ...]) -> None:
    """A usage error with a remedy, before anything is sent."""
    result = cli("tenant", "set", *args, "--json")

    assert (result.exit_code, result.stdout, daemon.asked) == (2, "", [])
    assert json.loads(result.stderr)["error"]["remedy"]


def test_list(cli: Cli, daemon: PretendDaemon) -> None:
    """Spend of all keys together against the cap that is met first."""
    full = tenant(tenant="globex", total_usd_cap=Decimal(9200), daily_usd_cap=None)
    found = wire.TenantList(tenants=[tenant(), full])
    daemon.on("GET /tenants", found)

    head, first, second = cli("tenant", "list").stdout.splitlines()

    assert head.split() == "TENANT SPENT HELD CAP REQUESTS KEYS".split()
    assert first.split() == "acme $1,500.00 $120.50 $2,000.00 42 3".split()
    assert second.split() == "globex $9,000.00 $120.50 $9,200.00 total 42 3".split()
    assert cli("tenant", "list", "--json").stdout == wire.encode(found).decode() + "\n"


@pytest.mark.parametrize("columns", [60, 80])
def test_list_at_a_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon, columns: int) -> None:
    """With bars; amounts are whole."""
    daemon.on("GET /tenants", wire.TenantList(tenants=[tenant(tenant="a-tenant-of-a-very-long-name-indeed")]))

    seen = terminal("tenant", "list", columns=columns, color=True)

    assert "██████" in seen.plain
    assert "$1,500.00" in seen.plain
    assert max(map(len, seen.plain.splitlines())) <= columns


def test_show(cli: Cli, terminal: Callable[..., Seen], daemon: PretendDaemon) -> None:
    """With a bar on a terminal; one that is not there is exit 6."""
    daemon.on("GET /tenants/acme", tenant(call_usd_cap=Decimal(50)))
    daemon.on("GET /tenants/a%20b", refusal("tenant_unknown", "no tenant a b", "kbctl tenant list"), 404)

    assert "a call    up to $50.00\n" in cli("tenant", "show", "acme").stdout
    assert "█" in terminal("tenant", "show", "acme").stdout
    assert cli("tenant", "show", "a b").exit_code == 6


def test_no_tenants(cli: Cli, daemon: PretendDaemon) -> None:
    """The way to the first one."""
    daemon.on("GET /tenants", wire.TenantList(tenants=[]))

    assert cli("tenant", "list").stderr == "no tenants yet: kbctl tenant set acme --cap 2000\n"


# --- operator tokens ------------------------------------------------------------------------------


def test_create_piped_prints_the_token_alone(cli: Cli, daemon: PretendDaemon) -> None:
    """``TOKEN=$(kbctl token create)`` works."""
    daemon.on("POST /tokens", created_token(), 201)

    result = cli("token", "create", "--scope", "issue", "--ttl", "30d", "--note", "billing")
    cli("token", "create")

    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{TOKEN}\n", "")
    assert [asked.body for asked in daemon.asked] == [
        {"scope": "issue", "expires_in": "30d", "note": "billing"},
        {},
    ]


@pytest.mark.parametrize("columns", [60, 80])
def test_create_at_a_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon, columns: int) -> None:
    """Once, with a line to paste that is whole at any width."""
    daemon.on("GET /status", status())
    daemon.on("POST /tokens", created_token(), 201)

    seen = terminal("token", "create", columns=columns, color=True)

    lines = [line.strip() for line in seen.plain.splitlines()]
    assert TOKEN in lines
    assert f"curl -H 'Authorization: Bearer {TOKEN}' http://127.0.0.1:4815/vault/keys" in lines
    assert "tok_5dQ2, shown only now" in seen.plain


def test_create_as_json(terminal: Callable[..., Seen], cli: Cli, daemon: PretendDaemon) -> None:
    """The 201 body."""
    daemon.on("POST /tokens", created_token(), 201)

    assert cli("token", "create", "--json").stdout == wire.encode(created_token()).decode() + "\n"
    assert json.loads(terminal("token", "create", "--json").stdout)["token"] == TOKEN


@pytest.mark.parametrize(
    "args", [("--scope", "root"), ("--scope", ""), ("--ttl", "soon"), ("--ttl", "0d"), ("x",)]
)
def test_create_refuses(cli: Cli, daemon: PretendDaemon, args: tuple[str, ...]) -> None:
    """A usage error, before anything is sent."""
    assert cli("token", "create", *args).exit_code == 2
    assert daemon.asked == []


def test_tokens(cli: Cli, daemon: PretendDaemon) -> None:
    """Each with its state; never the token."""
    found = wire.TokenList(
        tokens=[
            token(expires_at=None),
            token(token_id="tok_2", revoked_at="2026-11-21T05:00:00Z"),
            token(token_id="tok_3", expires_at="2020-01-01T00:00:00Z", note="\x1b[2J"),
        ]
    )
    daemon.on("GET /tokens", found)

    lines = cli("token", "list").stdout.splitlines()

    assert [line.split()[:4] for line in lines[1:]] == [
        ["tok_5dQ2", "issue", "active", "never"],
        ["tok_2", "issue", "revoked", "-"],
        ["tok_3", "issue", "expired", "-"],
    ]
    assert "\x1b" not in lines[3]
    assert cli("token", "list", "--json").stdout.startswith('{"tokens":[{')


def test_no_tokens(cli: Cli, daemon: PretendDaemon) -> None:
    """The way to the first one."""
    daemon.on("GET /tokens", wire.TokenList(tokens=[]))

    assert "kbctl token create" in cli("token", "list").stderr


def test_revoke_token(cli: Cli, daemon: PretendDaemon) -> None:
    """By its id; one that is not there is exit 6."""
    daemon.on("DELETE /tokens/tok_5dQ2", token(revoked_at="2026-11-21T05:00:00Z"))
    daemon.on("DELETE /tokens/tok_9", refusal("token_unknown", "no token tok_9", "kbctl token list"), 404)

    assert cli("token", "revoke", "tok_5dQ2").stdout == "tok_5dQ2: revoked\n"
    assert cli("token", "revoke", "tok_9").exit_code == 6
    assert cli("token", "revoke", "..").exit_code == 2
