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
        *("--duplicates", "refuse/1h"),
        *(
            "--credential",
            "stripe:eu",
            "--param",
            "customer in cus_1",
            "--param",
            "refunds.create: amount <= 5",
        ),
        *("--requests", "1000", "--rate", "5/s", "--loop", "20/1m", "--on-loop", "pause"),
        *("--policy", "free", "--override", "--parent", "vk_1", "--stamp"),
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
        "param_rules": ["customer in cus_1", "refunds.create: amount <= 5"],
        "daily_requests": 1000,
        "rate": "5/s",
        "loop": "20/1m",
        "on_loop": "pause",
        "duplicates": "refuse/1h",
        "policy": "free",
        "override": True,
        "parent_vault_key": "vk_1",
        "stamp": True,
    }


def test_no_cap_is_sent_as_null(cli: Cli, daemon: PretendDaemon) -> None:
    """None at all is said; left out beside another cap, it is left out."""
    daemon.on("POST /vault/keys", issued(daily_usd_cap=None), 201)

    cli("issue", "--cap", "none", "--ttl", "never")
    cli("issue", "--total-cap", "5")
    cli("issue", "--policy", "free")
    cli("issue", "--parent", VAULT_KEY)
    cli(*"issue --cap 5 --total-cap none --call-cap none --requests none --rate none --loop none".split())

    assert [asked.body for asked in daemon.asked] == [
        {"daily_usd_cap": None, "expires_in": "never"},
        {"total_usd_cap": 5},
        {"policy": "free"},
        {"parent_vault_key": VAULT_KEY},
        {
            "daily_usd_cap": 5,
            **dict.fromkeys(("total_usd_cap", "call_usd_cap", "daily_requests", "rate", "loop")),
        },
    ]


@pytest.mark.parametrize(
    "args",
    [
        ("--tenant", "acme"),
        ("--call-cap", "5"),
        *(("--cap", cap) for cap in ("0", "-1", "NaN", "1e3", "5_00", "0.0000000001", "1000000001", "")),
        ("--total-cap", "none"),
        *(("--cap", "5", "--requests", count) for count in ("0", "-1", "1.5", "many", "99999999999", "")),
        *(("--cap", "5", "--rate", rate) for rate in ("5", "0/s", "5/d", "5/10s", "-5/s", "\u0665/s", "")),
        *(("--cap", "5", "--loop", loop) for loop in ("20", "0/1m", "20/m", "20/1w", "20/0m", "20/99999d")),
        ("--cap", "5", "--on-loop", "shrug"),
        ("--cap", "5", "--override"),
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
    daemon.on("POST /vault/keys", issued(vendors=["twilio", "resend"]), 201)

    seen = terminal("issue", "--cap", "500")

    assert "STRIPE" not in seen.stdout
    for line in (
        f"export TWILIO_ACCOUNT_SID=AC{'0' * 32}",
        f"export TWILIO_AUTH_TOKEN={VAULT_KEY}",
        f"export RESEND_API_KEY={VAULT_KEY}",
        "export RESEND_API_URL=http://127.0.0.1:4815/resend",
        "export RESEND_BASE_URL=http://127.0.0.1:4815/resend",
    ):
        assert line in seen.stdout
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

    assert daemon.only.query == (
        ("tenant", "acme"),
        ("label", "tenant:acme"),
        ("status", "all"),
        ("limit", "1000"),
    )
    head, first, second = result.stdout.splitlines()
    assert head.split() == "KEY TENANT STATUS SPENT HELD CAP EXPIRES VENDORS LABEL".split()
    assert first.split()[:6] == ["vk_3f9c2a7d10", "acme", "active", "$360.00", "$120.00", "$500.00"]
    assert second.split()[:6] == ["vk_2", long, "active", "$360.00", "$120.00", "none"]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_keys_at_a_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon, columns: int) -> None:
    """Amounts and ids are whole at any width; the bar shows spent, held and free."""
    daemon.on("GET /vault/keys", wire.KeyList(keys=[key(tenant="a-tenant-of-a-very-long-name-indeed")]))

    seen = terminal("keys", columns=columns, color=True)

    for whole in ("vk_3f9c2a7d10", "active", "$360.00", "$120.00", "$500.00"):
        assert whole in seen.plain
    if columns >= 80:
        assert "█████▒▒░" in seen.plain
        assert max(map(len, seen.plain.splitlines())) <= columns


def test_no_keys(cli: Cli, daemon: PretendDaemon) -> None:
    """Said beside the answer: an empty answer is empty."""
    daemon.on("GET /vault/keys", wire.KeyList(keys=[]))

    result = cli("keys")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no keys match\n")
    assert daemon.only.query == (("status", "active"), ("limit", "1000"))


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


def test_keys_follow_pages(cli: Cli, daemon: PretendDaemon) -> None:
    """All of them, in every form; a newer daemon's fields survive."""
    first = b'{"keys":' + wire.encode([key(key_id="vk_1")]) + b',"newer":0.10}'
    for _ in range(4):
        daemon.on("GET /vault/keys", first, Link='</vault/keys?status=active&before=7>; rel="next"')
        daemon.on("GET /vault/keys", wire.KeyList(keys=[key(key_id="vk_2")]))

    document, lines, table = cli("keys", "--json"), cli("keys", "--jsonl"), cli("keys", "--csv")

    assert [each["key_id"] for each in json.loads(document.stdout)["keys"]] == ["vk_1", "vk_2"]
    assert document.stdout.endswith(',"newer":0.10}\n')
    assert [json.loads(line)["key_id"] for line in lines.stdout.splitlines()] == ["vk_1", "vk_2"]
    assert [row["key_id"] for row in csv.DictReader(io.StringIO(table.stdout))] == ["vk_1", "vk_2"]
    assert daemon.asked[1].query == (("status", "active"), ("before", "7"))
    assert len(cli("keys").stdout.splitlines()) == 3


def test_keys_as_received(cli: Cli, daemon: PretendDaemon) -> None:
    """One page is printed byte for byte."""
    daemon.on("GET /vault/keys", b'{"newer":0.10, "keys":[]}')

    assert cli("keys", "--json", "--status", "paused").stdout == '{"newer":0.10, "keys":[]}\n'


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


def test_show_says_what_else_holds_it(cli: Cli, daemon: PretendDaemon) -> None:
    """Why it stands still, where its limits come from, and those that are no money."""
    daemon.on(
        "GET /vault/keys/vk_3",
        key(
            status="paused",
            stopped_because="loop_detected: the same request 21 times in 1m",
            parent_key_id="vk_1",
            policy="free",
            param_rules=["customer in cus_1"],
            daily_requests=1000,
            requests_today=17,
            rate="5/s",
            loop="20/1m",
            on_loop="pause",
            stamp=True,
        ),
    )

    shown = cli("show", "vk_3").stdout

    for part in (
        "vk_3f9c2a7d10  paused",
        "because     loop_detected: the same request 21 times in 1m",
        "parent      vk_1",
        "policy      free",
        "only if     customer in cus_1",
        "requests    17 of 1,000 today",
        "rate        5/s",
        "loop        the same request 20/1m, then pause",
        "(in ",
    ):
        assert part in shown


def _family() -> wire.KeyTree:
    grandchild = wire.KeyTree(key=key(key_id="vk_c", status="revoked", daily_usd_cap=None), children=[])
    return wire.KeyTree(
        key=key(key_id="vk_a", agent_run_label="tenant:acme/run:" + "x" * 60),
        children=[
            wire.KeyTree(key=key(key_id="vk_b", held_usd=Decimal(0)), children=[grandchild]),
            wire.KeyTree(key=key(key_id="vk_d", agent_run_label="\x1b[2Jevil"), children=[]),
        ],
    )


def test_tree_piped(cli: Cli, daemon: PretendDaemon) -> None:
    """Indented, nothing cut; as JSON, as received."""
    daemon.on("GET /vault/keys/vk_a/tree", _family())

    lines = cli("show", "vk_a", "--tree").stdout.splitlines()

    assert lines[0] == (f"vk_a  active  $360.00 spent, $120.00 held of $500.00  tenant:acme/run:{'x' * 60}")
    assert lines[1] == "  vk_b  active  $360.00 spent of $500.00  tenant:acme"
    assert lines[2] == "    vk_c  revoked  $360.00 spent, $120.00 held of no cap  tenant:acme"
    assert lines[3].startswith("  vk_d  active")
    assert lines[3].endswith("\\x1b[2Jevil")
    assert cli("show", "vk_a", "--tree", "--json").stdout == wire.encode(_family()).decode() + "\n"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_tree_at_a_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon, columns: int) -> None:
    """Branches are drawn; ids and amounts are whole, the label gives way."""
    daemon.on("GET /vault/keys/vk_a/tree", _family())

    seen = terminal("show", "vk_a", "--tree", columns=columns, color=True)

    lines = seen.plain.splitlines()
    assert [line.split("vk_")[0] for line in lines] == ["", "├── ", "│   └── ", "└── "]
    for whole in ("$360.00 spent, $120.00 held of $500.00", "vk_c  revoked"):
        assert whole in seen.plain
    assert max(len(line.rstrip()) for line in lines) <= max(columns, 62)
    assert ("tenant:acme/" in seen.plain) == (columns >= 80)


def test_a_deep_tree(cli: Cli, terminal: Callable[..., Seen], daemon: PretendDaemon) -> None:
    """As deep as an answer can be."""
    family = wire.KeyTree(key=key(), children=[])
    for _ in range(200):
        family = wire.KeyTree(key=key(), children=[family])
    daemon.on("GET /vault/keys/vk_a/tree", family)

    assert len(cli("show", "vk_a", "--tree").stdout.splitlines()) == 201
    assert terminal("show", "vk_a", "--tree").exit_code == 0


@pytest.mark.parametrize(
    ("verb", "status", "said"),
    [
        ("pause", "paused", "vk_3f9c2a7d10: paused; kbctl resume vk_3f9c2a7d10 lets it go on\n"),
        ("resume", "active", "vk_3f9c2a7d10: active\n"),
    ],
)
def test_pause_and_resume(cli: Cli, daemon: PretendDaemon, verb: str, status: str, said: str) -> None:
    """One request; what became of it."""
    daemon.on(f"POST /vault/keys/vk_3/{verb}", key(status=status))

    assert cli(verb, "vk_3").stdout == said
    assert cli(verb, "vk_3", "--json").stdout == wire.encode(key(status=status)).decode() + "\n"
    assert daemon.asked[0].body is None


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_pause_refused(cli: Cli, daemon: PretendDaemon, verb: str) -> None:
    """A revoked key does neither: the daemon's sentence, exit 3, as JSON where that was asked."""
    daemon.on(f"POST /vault/keys/vk_3/{verb}", refusal("key_revoked", "vk_3 is revoked", "kbctl keys"), 409)

    result = cli(verb, "vk_3", "--json")

    assert (result.exit_code, result.stdout) == (3, "")
    assert json.loads(result.stderr)["error"]["code"] == "key_revoked"


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


def test_revoke_and_abort(cli: Cli, daemon: PretendDaemon) -> None:
    """Said on the way there, and what it did on the way back."""
    daemon.on("DELETE /vault/keys/vk_3", revocation(aborted=1, revoked_count=1234))
    daemon.on("POST /vault/revocations", revocation(aborted=2))

    one, many = cli("revoke", "vk_3", "--abort"), cli("revoke", "--all", "--abort", "--yes")

    assert daemon.asked[0].query == (("abort", "true"),)
    assert daemon.asked[1].body == {"all": True, "abort": True}
    assert "revoked 1,233 keys more\n" in one.stdout
    assert "2 calls for $240.00 had already left; 1 of them cut; what they cost stays counted" in one.stdout
    assert "2 of them cut" in many.stdout


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


@pytest.mark.parametrize("args", [("--tenant", "acme"), ("--label", "tenant:acme"), ("--all", "--abort")])
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
