"""``issue``, ``keys``, ``show``, ``revoke``."""

import csv
import io
import json
from collections.abc import Callable
from decimal import Decimal

import pytest

from kbctl import wire
from tests.cli.conftest import Cli, Seen
from tests.cli.support import VAULT_KEY, PretendDaemon, issued, key, refusal, revocation


def test_issue_piped_prints_the_key_alone(cli: Cli, daemon: PretendDaemon) -> None:
    """``KEY=$(kbctl issue ...)`` works; nothing that was not asked for is sent."""
    daemon.on("POST /vault/keys", issued(), 201)

    result = cli("issue", "--tenant", "acme", "--cap", "500")

    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{VAULT_KEY}\n", "")
    assert daemon.only.body == {"tenant": "acme", "daily_usd_cap": 500}


def test_issue_sends_every_limit(cli: Cli, daemon: PretendDaemon) -> None:
    """Each option has its field."""
    daemon.on("POST /vault/keys", issued(), 201)

    result = cli(
        *("issue", "--tenant", "acme", "--cap", "500.50", "--total-cap", "5000", "--call-cap", "0.000000001"),
        *(
            "--vendor",
            "stripe",
            "--vendor",
            "twilio",
            "--allow",
            "POST /v1/payment_intents",
            "--allow",
            "refunds.create",
        ),
        *("--deny", "GET /v1/*", "--ttl", "2h", "--label", "run/42", "--meta", "a=1", "--meta", "b=x=y"),
        *("--credential", "stripe:eu"),
    )

    assert result.exit_code == 0
    assert daemon.only.body == {
        "tenant": "acme",
        "daily_usd_cap": Decimal("500.50"),
        "total_usd_cap": 5000,
        "call_usd_cap": Decimal("1e-9"),
        "vendors": ["stripe", "twilio"],
        "allowed_endpoints": ["POST /v1/payment_intents", "refunds.create"],
        "denied_endpoints": ["GET /v1/*"],
        "expires_in": "2h",
        "agent_run_label": "run/42",
        "metadata": {"a": "1", "b": "x=y"},
        "credential": "stripe:eu",
    }


def test_no_cap_is_sent_as_null(cli: Cli, daemon: PretendDaemon) -> None:
    """None at all is said; left out beside another cap, it is left out."""
    daemon.on("POST /vault/keys", issued(daily_usd_cap=None), 201)

    cli("issue", "--cap", "none", "--ttl", "never")
    cli("issue", "--total-cap", "5")

    assert [asked.body for asked in daemon.asked] == [
        {"daily_usd_cap": None, "expires_in": "never"},
        {"total_usd_cap": 5},
    ]


@pytest.mark.parametrize(
    "args",
    [
        ("--tenant", "acme"),
        ("--call-cap", "5"),
        *(("--cap", cap) for cap in ("0", "-1", "NaN", "1e3", "5_00", "0.0000000001", "1000000001", "")),
        ("--cap", "5", "--total-cap", "none"),
        ("--cap", "5", "--ttl", "soon"),
        ("--cap", "5", "--meta", "novalue"),
        ("--cap", "5", "--frobnicate"),
        ("--cap",),
    ],
)
def test_issue_refuses_what_it_cannot_read(cli: Cli, daemon: PretendDaemon, args: tuple[str, ...]) -> None:
    """A usage error with a remedy, before anything is sent."""
    result = cli("issue", *args)

    assert (result.exit_code, result.stdout, daemon.asked) == (2, "", [])
    assert result.stderr.startswith("kbctl: ")
    assert "\n  try: " in result.stderr


def test_issue_as_json(cli: Cli, daemon: PretendDaemon) -> None:
    """The 201 body as received."""
    body = wire.encode(issued()).replace(b"{", b'{"newer": 0.10, ', 1)
    daemon.on("POST /vault/keys", body, 201)

    assert cli("issue", "--cap", "5", "--json").stdout == body.decode() + "\n"


def test_issue_at_a_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon) -> None:
    """The key, what it may spend, and lines to paste, none of them broken or bordered."""
    daemon.on("POST /vault/keys", issued(), 201)

    seen = terminal("issue", "--tenant", "acme", "--cap", "500")

    lines = [line.strip() for line in seen.stdout.splitlines()]
    for line in (
        VAULT_KEY,
        f"export STRIPE_API_KEY={VAULT_KEY}",
        f"export STRIPE_SECRET_KEY={VAULT_KEY}",
        "export STRIPE_BASE_URL=http://127.0.0.1:4815/stripe",
        "export KBCTL_KEY_ID=vk_3f9c2a7d10",
        "export KBCTL_PROXY_URL=http://127.0.0.1:4815",
        "export NO_PROXY=127.0.0.1,localhost",
        'stripe.api_base = os.environ["STRIPE_BASE_URL"]',
    ):
        assert line in lines
    assert "$500.00 a day (UTC) on stripe" in seen.stdout
    assert "\x1b" not in seen.stdout  # TERM=dumb


def test_issue_for_another_vendor_speaks_of_no_stripe(
    terminal: Callable[..., Seen], daemon: PretendDaemon
) -> None:
    """Only what the key covers."""
    daemon.on("POST /vault/keys", issued(vendors=["twilio"]), 201)

    seen = terminal("issue", "--cap", "500")

    assert "STRIPE" not in seen.stdout
    assert "export KBCTL_KEY_ID=vk_3f9c2a7d10" in seen.stdout


def test_issue_refused(cli: Cli, daemon: PretendDaemon) -> None:
    """The daemon's reason, as text and as JSON."""
    error = refusal("credential_missing", "stripe has no credential", "kbctl credential set stripe")
    daemon.on("POST /vault/keys", error, 403)

    plain, machine = cli("issue", "--cap", "5"), cli("issue", "--cap", "5", "--json")

    assert (plain.exit_code, plain.stdout) == (3, "")
    assert plain.stderr == "kbctl: stripe has no credential\n  try: kbctl credential set stripe\n"
    assert json.loads(machine.stderr)["error"]["code"] == "credential_missing"


def test_keys(cli: Cli, daemon: PretendDaemon) -> None:
    """Piped: one key a line, nothing cut, whatever the width."""
    long = "a-tenant-of-a-very-long-name-indeed-that-fits-no-terminal-of-eighty-columns"
    daemon.on(
        "GET /vault/keys", wire.KeyList(keys=[key(), key(key_id="vk_2", tenant=long, daily_usd_cap=None)])
    )

    result = cli("keys", "--tenant", "acme", "--label", "tenant:acme", "--status", "all")

    assert daemon.only.query == (("tenant", "acme"), ("label", "tenant:acme"), ("status", "all"))
    head, first, second = result.stdout.splitlines()
    assert head.split() == "KEY TENANT STATUS SPENT HELD CAP EXPIRES VENDORS LABEL".split()
    assert first.split()[:6] == ["vk_3f9c2a7d10", "acme", "active", "$360.00", "$120.00", "$500.00"]
    assert second.split()[:6] == ["vk_2", long, "active", "$360.00", "$120.00", "none"]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_keys_at_a_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon, columns: int) -> None:
    """Amounts and ids are whole at any width; the bar shows spent, held and free."""
    daemon.on("GET /vault/keys", wire.KeyList(keys=[key(tenant="a-tenant-of-a-very-long-name-indeed")]))

    seen = terminal("keys", columns=columns)

    for whole in ("vk_3f9c2a7d10", "active", "$360.00", "$120.00", "$500.00"):
        assert whole in seen.stdout
    if columns >= 80:
        assert "█████▒▒░" in seen.stdout
        assert max(map(len, seen.stdout.splitlines())) <= columns


def test_no_keys(cli: Cli, daemon: PretendDaemon) -> None:
    """Said beside the answer: an empty answer is empty."""
    daemon.on("GET /vault/keys", wire.KeyList(keys=[]))

    result = cli("keys")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no keys match\n")
    assert daemon.only.query == (("status", "active"),)


def test_keys_for_programs(cli: Cli, daemon: PretendDaemon) -> None:
    """One document, one object a line, or CSV with every field."""
    found = wire.KeyList(keys=[key(), key(key_id="vk_2", denied_endpoints=["POST /v1/payouts"])])
    daemon.on("GET /vault/keys", found)

    document, lines, table = cli("keys", "--json"), cli("keys", "--jsonl"), cli("keys", "--csv")

    assert wire.decode(document.stdout.encode(), wire.KeyList) == found
    assert [wire.decode(line.encode(), wire.Key) for line in lines.stdout.splitlines()] == found.keys
    rows = list(csv.DictReader(io.StringIO(table.stdout)))
    assert [row["key_id"] for row in rows] == ["vk_3f9c2a7d10", "vk_2"]
    assert (rows[0]["spent_usd"], rows[0]["total_usd_cap"]) == ("360", "")
    assert json.loads(rows[1]["denied_endpoints"]) == ["POST /v1/payouts"]


@pytest.mark.parametrize("args", [("--status", "dead"), ("--json", "--csv"), ("--jsonl", "--csv")])
def test_keys_refuses(cli: Cli, daemon: PretendDaemon, args: tuple[str, ...]) -> None:
    """Unknown states and two formats at once."""
    assert cli("keys", *args).exit_code == 2
    assert daemon.asked == []


def test_show(cli: Cli, daemon: PretendDaemon) -> None:
    """Every limit of a key, and the vault key itself as a name for it."""
    shown = key(
        call_usd_cap=Decimal(150),
        allowed_endpoints=["POST /v1/payment_intents"],
        denied_endpoints=["POST /v1/payouts"],
        status="revoked",
        revoked_at="2026-11-21T05:00:00.5Z",
    )
    daemon.on(f"GET /vault/keys/{VAULT_KEY}", shown)

    result = cli("show", VAULT_KEY)

    for part in (
        "vk_3f9c2a7d10  revoked",
        "today       $360.00 spent, $120.00 held of $500.00",
        "in all      $360.00 spent, $120.00 held, no cap",
        "a call      up to $150.00",
        "may call    POST /v1/payment_intents",
        "may not     POST /v1/payouts",
        "revoked     2026-11-21 05:00:00Z",
        "metadata    tenant_id=acme",
    ):
        assert part in result.stdout
    assert cli("show", VAULT_KEY, "--json").stdout == wire.encode(shown).decode() + "\n"


def test_show_what_is_not_there(cli: Cli, daemon: PretendDaemon) -> None:
    """Exit 6."""
    daemon.on(
        "GET /vault/keys/vk_9", refusal("key_unknown", "there is no key vk_9", "kbctl keys --status all"), 404
    )

    assert cli("show", "vk_9").exit_code == 6


def test_revoke_one(cli: Cli, daemon: PretendDaemon) -> None:
    """No question for a key that was named; what it stopped and what was on its way."""
    daemon.on("DELETE /vault/keys/vk_3", revocation())

    result = cli("revoke", "vk_3")

    assert result.exit_code == 0
    assert "revoked vk_3f9c2a7d10 (acme): $360.00 spent and $120.00 held today\n" in result.stdout
    assert "2 calls for $240.00 had already left" in result.stdout


@pytest.mark.parametrize(
    ("args", "body"),
    [
        (("vk_1", "vk_2"), {"key_ids": ["vk_1", "vk_2"]}),
        (("--tenant", "acme", "--yes"), {"tenant": "acme"}),
        (("--label", "tenant:acme", "--yes"), {"label": "tenant:acme"}),
        (("--all", "--yes"), {"all": True}),
    ],
)
def test_revoke_several(cli: Cli, daemon: PretendDaemon, args: tuple[str, ...], body: object) -> None:
    """One request for all of them."""
    daemon.on("POST /vault/revocations", revocation(already=["vk_2"], in_flight=0))

    result = cli("revoke", *args)

    assert (result.exit_code, daemon.only.body) == (0, body)
    assert "vk_2 had been revoked before\n" in result.stdout
    assert "no call was in flight\n" in result.stdout


@pytest.mark.parametrize("args", [("--tenant", "acme"), ("--label", "tenant:acme"), ("--all",)])
def test_revoke_many_needs_a_yes(cli: Cli, daemon: PretendDaemon, args: tuple[str, ...]) -> None:
    """With nobody to ask: refused, and how to say yes."""
    daemon.on("GET /vault/keys", wire.KeyList(keys=[key()]))

    result = cli("revoke", *args, input="y\n")

    assert (result.exit_code, result.stdout) == (3, "")
    assert f"try: kbctl revoke {' '.join(args)} --yes" in result.stderr
    assert all(asked.method == "GET" for asked in daemon.asked)


@pytest.mark.parametrize(("typed", "exit_code"), [("y\n", 0), ("YES\n", 0), ("\n", 3), ("n\n", 3), ("", 3)])
def test_revoke_many_asks(
    terminal: Callable[..., Seen], daemon: PretendDaemon, typed: str, exit_code: int
) -> None:
    """At a terminal: how many keys, and only a yes is one."""
    daemon.on("GET /vault/keys", wire.KeyList(keys=[key(), key()]))
    daemon.on("POST /vault/revocations", revocation())

    seen = terminal("revoke", "--tenant", "acme", typed=typed)

    assert seen.exit_code == exit_code
    assert "Revoke 2 active keys of the tenant acme, for good? [y/N]" in seen.stderr
    assert [asked.method for asked in daemon.asked] == (["GET", "POST"] if exit_code == 0 else ["GET"])


@pytest.mark.parametrize("args", [(), ("vk_1", "--all"), ("--tenant", "a", "--label", "b"), ("",)])
def test_revoke_says_which(cli: Cli, daemon: PretendDaemon, args: tuple[str, ...]) -> None:
    """None or several ways of naming keys: a mistake. An empty name names nothing."""
    assert cli("revoke", *args, "--yes").exit_code == 2
    assert daemon.asked == []


def test_revoke_as_json(cli: Cli, daemon: PretendDaemon) -> None:
    """As received."""
    daemon.on("DELETE /vault/keys/vk_3", revocation())

    assert wire.decode(cli("revoke", "vk_3", "--json").stdout.encode(), wire.RevokeReply) == revocation()
