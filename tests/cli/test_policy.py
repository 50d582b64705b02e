"""``policy``: what is set is what was written, and what was not understood is refused."""

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from kbctl import wire
from tests.cli.conftest import Cli, Seen
from tests.cli.support import PretendDaemon, policy, policy_change, policy_changes, refusal

TOML = """
[[policies]]
name = "free"
daily_usd_cap = 5
total_usd_cap = "none"
call_usd_cap = 0.000000001
rate = "1/s"

[[policies]]
name = "pro"
vendors = ["stripe"]
daily_usd_cap = 123456789.123456789
allowed_endpoints = ["POST /v1/payment_intents"]
param_rules = ["customer in cus_1,cus_2"]
daily_requests = 1000
loop = "none"
on_loop = "pause"
duplicates = "refuse"
expires_in = "never"
stamp = true
"""
ENTRIES = [
    {
        "name": "free",
        "daily_usd_cap": 5,
        "total_usd_cap": None,
        "call_usd_cap": Decimal("1e-9"),
        "rate": "1/s",
    },
    {
        "name": "pro",
        "vendors": ["stripe"],
        "daily_usd_cap": Decimal("123456789.123456789"),
        "allowed_endpoints": ["POST /v1/payment_intents"],
        "param_rules": ["customer in cus_1,cus_2"],
        "daily_requests": 1000,
        "loop": None,
        "on_loop": "pause",
        "duplicates": "refuse",
        "expires_in": "never",
        "stamp": True,
    },
]


def _said(entry: dict[str, object]) -> dict[str, object]:
    """Without the nulls that say nothing: those of fields that have no "none"."""
    silent = (
        "vendors",
        "allowed_endpoints",
        "denied_endpoints",
        "param_rules",
        "on_loop",
        "expires_in",
        "stamp",
    )
    return {name: value for name, value in entry.items() if value is not None or name not in silent}


def _sent(daemon: PretendDaemon) -> list[dict[str, object]]:
    return [_said(entry) for entry in daemon.asked[-1].body["policies"]]


# --- set ------------------------------------------------------------------------------------------


def test_set(cli: Cli, daemon: PretendDaemon) -> None:
    """Replaces one policy; shows what differs and whom it concerns."""
    daemon.on("PUT /policies/free", policy_changes())

    result = cli(*"policy set free --cap 7.50 --rate none --allow".split(), "GET /v1/b", "--vendor", "stripe")

    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "free: changed, 3 live keys",
            "  - daily_usd_cap  $5.00",
            "  + daily_usd_cap  $7.50",
            "  - allowed_endpoints  GET /v1/a",
            "  + allowed_endpoints  GET /v1/c",
            "  - rate  1/s",
            "  + rate  none",
        ],
    )
    assert result.stderr == "live keys keep the limits that they were issued with; --live changes them, too\n"
    assert _said(daemon.only.body) == {
        "name": "free",
        "daily_usd_cap": Decimal("7.50"),
        "rate": None,
        "allowed_endpoints": ["GET /v1/b"],
        "vendors": ["stripe"],
    }


def test_set_live(cli: Cli, daemon: PretendDaemon) -> None:
    """Goes to the live keys as well, and says which."""
    daemon.on("PUT /policies", policy_changes(keys_changed=["vk_1", "vk_2"]))

    result = cli(*"policy set free --cap 5 --live".split())

    assert daemon.only.body["live"] is True
    assert _sent(daemon) == [{"name": "free", "daily_usd_cap": 5}]
    assert result.stdout.endswith("changed with it: vk_1, vk_2\n")
    assert result.stderr == ""


def test_set_a_new_one(cli: Cli, daemon: PretendDaemon) -> None:
    """Everything is an addition."""
    fields = {"daily_usd_cap": [None, 5], "total_usd_cap": [None, None]}
    daemon.on(
        "PUT /policies/a%2Fb",
        policy_changes(policy_change(name="a/b", action="add", live_keys=0, fields=fields)),
    )

    result = cli(*"policy set a/b --cap 5 --total-cap none".split())

    assert result.stdout == "a/b: new\n  + daily_usd_cap  $5.00\n  + total_usd_cap  none\n"
    assert result.stderr == ""


@pytest.mark.parametrize(
    "args",
    [
        ("free",),
        (),
        ("", "--cap", "5"),
        ("..", "--cap", "5"),
        ("free", "--cap", "-5"),
        ("free", "--cap", "NaN"),
        ("free", "--rate", "fast"),
        ("free", "--loop", "20"),
        ("free", "--on-loop", "shrug"),
        ("free", "--requests", "0"),
        ("free", "--ttl", "soon"),
        ("free", "--tenant", "acme"),
    ],
)
def test_set_refuses(cli: Cli, daemon: PretendDaemon, args: tuple[str, ...]) -> None:
    """A usage error with a remedy, before anything is sent."""
    result = cli("policy", "set", *args, "--json")

    assert (result.exit_code, result.stdout, daemon.asked) == (2, "", [])
    assert json.loads(result.stderr)["error"]["remedy"]


# --- apply ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["policies.toml", "policies.TOML", "policies", "policies.txt"])
def test_apply_toml(cli: Cli, daemon: PretendDaemon, tmp_path: Path, name: str) -> None:
    """By its ending or by its content; numbers stay exact."""
    daemon.on("PUT /policies", policy_changes())
    (tmp_path / name).write_text(TOML)

    assert cli("policy", "apply", str(tmp_path / name)).exit_code == 0

    assert _sent(daemon) == ENTRIES
    assert "live" not in daemon.only.body
    assert "dry_run" not in daemon.only.body


@pytest.mark.parametrize("name", ["policies.json", "policies"])
def test_apply_json(cli: Cli, daemon: PretendDaemon, tmp_path: Path, name: str) -> None:
    """The same in JSON, where null is none."""
    daemon.on("PUT /policies", policy_changes())
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf \n" + wire.encode({"policies": ENTRIES}))

    assert cli("policy", "apply", str(tmp_path / name), "--live", "--dry-run").exit_code == 0

    assert _sent(daemon) == ENTRIES
    assert (daemon.only.body["live"], daemon.only.body["dry_run"]) == (True, True)


def test_what_list_prints_is_what_apply_takes(cli: Cli, daemon: PretendDaemon) -> None:
    """Unchanged: said stays said, none stays none, silence stays silence."""
    everything = policy(
        name="pro",
        vendors=["stripe"],
        total_usd_cap=None,
        call_usd_cap=Decimal("0.10"),
        allowed_endpoints=[],
        denied_endpoints=["refunds.create"],
        daily_requests=None,
        loop=None,
        on_loop="deny",
        stamp=False,
    )
    daemon.on("GET /policies", wire.PolicyList(policies=[policy(), everything]))
    daemon.on("PUT /policies", policy_changes(policy_change(action="none", fields={})))
    listed = cli("policy", "list", "--json").stdout

    result = cli("policy", "apply", "-", input=listed)

    assert (result.exit_code, result.stdout) == (0, "free: as it was, 3 live keys\n")
    assert daemon.asked[-1].body["policies"] == json.loads(listed, parse_float=Decimal)["policies"]


def test_apply_from_stdin(cli: Cli, daemon: PretendDaemon) -> None:
    """TOML as well; an empty set changes nothing and is no mistake."""
    daemon.on("PUT /policies", policy_changes())
    daemon.on("PUT /policies", wire.PolicyChanges(changes=[], applied=True, keys_changed=[]))

    assert cli("policy", "apply", "-", input=TOML).exit_code == 0
    assert _sent(daemon) == ENTRIES
    empty = cli("policy", "apply", "-", input='{"policies":[]}')
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert "no policy in it" in empty.stderr


def test_dry_run(cli: Cli, daemon: PretendDaemon) -> None:
    """The diff is the answer; that nothing happened is said beside it."""
    daemon.on("PUT /policies", policy_changes(applied=False))

    result = cli("policy", "apply", "-", "--dry-run", input=TOML)

    assert "  + daily_usd_cap  $7.50\n" in result.stdout
    assert result.stderr == "nothing was changed: this only shows what would be\n"
    assert cli("policy", "apply", "-", "--dry-run", "--json", input=TOML).stdout == (
        wire.encode(policy_changes(applied=False)).decode() + "\n"
    )


FREE = '[[policies]]\nname = "free"\n'
WRONG = [
    ("", "no list named policies"),
    ("[]", "is not TOML"),
    ('{"policies":{}}', "no list named policies"),
    ('{"policies":[],"live":true}', "'live'"),
    ('{"policies":[5]}', "policy 1 is not a set of fields"),
    ('{"policies":[{"daily_usd_cap":5}]}', "policy 1: name"),
    ('{"policies":[{"name":7}]}', "policy 1: name"),
    ('{"policies":[{"name":""}]}', "policy 1: name"),
    ('{"policies":[{"name":"a"},{"name":"a"}]}', "two policies of the name 'a'"),
    ('{"policies":[{"name":"a","name":"b"}]}', "'name' is there twice"),
    ('{"policies":[{"name":"a","daily_usd_cap":NaN}]}', "policy a: daily_usd_cap"),
    ('{"policies":[{"name":"a","daily_usd_cap":Infinity}]}', "policy a: daily_usd_cap"),
    ('{"policies":[{"name":"a","daily_usd_cap":1e999999999999999999999}]}', "policy a: daily_usd_cap"),
    ('{"policies":[{"name":"a","daily_usd_cap":1e400}]}', "policy a: daily_usd_cap"),
    ('{"policies":[{"name":"a","daily_usd_cap":1e-400}]}', "policy a: daily_usd_cap"),
    ('{"policies":[{"name":"a","daily_usd_cap":' + "9" * 4000 + "}]}", "policy a: daily_usd_cap"),
    ('{"policies":[{"name":"a","daily_usd_cap":' + "9" * 5000 + "}]}", "is not JSON"),
    ('{"policies":[{"name":"a","daily_usd_cap":"5"}]}', "policy a: daily_usd_cap"),
    ('{"policies":[{"name":"a","daily_usd_cap":true}]}', "policy a: daily_usd_cap"),
    ('{"policies":[{"name":"a","daily_usd_cap":[5]}]}', "policy a: daily_usd_cap"),
    ('{"policies":' * 100_000, "nested too deeply"),
    ('{"policies":[}', "is not JSON"),
    (FREE + "daily_usd_cap = -5", "policy free: daily_usd_cap -5 is below zero"),
    (FREE + "daily_usd_cap = 0", "policy free: daily_usd_cap 0"),
    (FREE + "daily_usd_cap = nan", "policy free: daily_usd_cap NaN"),
    (FREE + "daily_usd_cap = -inf", "policy free: daily_usd_cap"),
    (FREE + "daily_usd_cap = 0.0000000001", "policy free: daily_usd_cap"),
    (FREE + "daily_usd_cap = 2026-11-21", "policy free: daily_usd_cap"),
    (FREE + "daily_usd_cap = 1\ndaily_usd_cap = 2", "is not TOML"),
    (FREE + "daily_cap = 5", "there is no field 'daily_cap'"),
    (FREE + 'tenant = "acme"', "there is no field 'tenant'"),
    (FREE + "daily_requests = 1.5", "policy free: daily_requests"),
    (FREE + 'daily_requests = "5"', "policy free: daily_requests"),
    (FREE + "daily_requests = 0", "policy free: daily_requests"),
    (FREE + 'vendors = "stripe"', "policy free: vendors takes a list"),
    (FREE + "vendors = [5]", "policy free: vendors"),
    (FREE + "rate = 5", "policy free: rate"),
    (FREE + 'rate = "5/d"', "policy free: rate"),
    (FREE + 'loop = "20"', "policy free: loop"),
    (FREE + 'on_loop = "none"', "policy free: on_loop"),
    (FREE + 'expires_in = "soon"', "policy free: expires_in"),
    (FREE + 'stamp = "yes"', "policy free: stamp"),
    ("policies = 5", "no list named policies"),
    ("[[policies]", "is not TOML"),
]


@pytest.mark.parametrize(("text", "named"), WRONG)
def test_a_wrong_file(cli: Cli, daemon: PretendDaemon, text: str, named: str) -> None:
    """Nothing of it is sent; the sentence names the place, the remedy shows what would work."""
    result = cli("policy", "apply", "-", "--json", input=text)

    assert (result.exit_code, result.stdout, daemon.asked) == (2, "", [])
    error = json.loads(result.stderr)["error"]
    assert named in error["message"]
    assert error["remedy"]
    assert len(error["message"]) < 400


def test_the_remedy_is_of_the_same_language(cli: Cli, daemon: PretendDaemon) -> None:
    """A line that can stand in that file."""
    toml = cli("policy", "apply", "-", input=FREE + "daily_usd_cap = -5")
    as_json = cli("policy", "apply", "-", input='{"policies":[{"name":"a","rate":5}]}')

    assert toml.stderr.endswith("\n  try: daily_usd_cap = 500\n")
    assert as_json.stderr.endswith('\n  try: "rate": "5/s"\n')


def test_not_a_file(cli: Cli, daemon: PretendDaemon, tmp_path: Path) -> None:
    """Missing, a folder, not text, too large: said with its name, exit 2."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large").write_bytes(b" " * (4 * 1024 * 1024 + 1))
    for name, why in (
        ("missing.toml", "No such file"),
        ("", "Is a directory"),
        ("binary", "not UTF-8"),
        ("large", "larger"),
    ):
        result = cli("policy", "apply", str(tmp_path / name))
        assert (result.exit_code, daemon.asked) == (2, [])
        assert why in result.stderr
        assert str(tmp_path / name) in result.stderr


# --- list, show, remove ---------------------------------------------------------------------------


def test_list(cli: Cli, daemon: PretendDaemon) -> None:
    """In short: ``-`` says nothing, ``none`` says none."""
    found = [
        policy(),
        policy(name="pro", daily_usd_cap=None, vendors=["stripe"], allowed_endpoints=["a", "b"]),
    ]
    daemon.on("GET /policies", wire.PolicyList(policies=found))

    head, free, pro = cli("policy", "list").stdout.splitlines()

    assert head.split("  ")[0] == "NAME"
    assert free.split() == "free $5.00 - - - 1/s - - -".split()
    assert pro.split() == "pro none - - - 1/s - stripe 2 endpoints".split()


@pytest.mark.parametrize("columns", [60, 80])
def test_list_at_a_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon, columns: int) -> None:
    """Caps are whole at any width."""
    daemon.on(
        "GET /policies", wire.PolicyList(policies=[policy(name="a-rather-long-name", total_usd_cap=10**9)])
    )

    seen = terminal("policy", "list", columns=columns, color=True)

    assert "$5.00" in seen.plain
    assert "$1,000,000,000.00" in seen.plain
    assert max(map(len, seen.plain.splitlines())) <= columns


def test_no_policies(cli: Cli, daemon: PretendDaemon) -> None:
    """The way to the first one."""
    daemon.on("GET /policies", wire.PolicyList(policies=[]))

    result = cli("policy", "list")

    assert (result.stdout, result.stderr) == ("", "no policies yet: kbctl policy set free --cap 5\n")
    assert cli("policy", "list", "--json").stdout == '{"policies":[]}\n'


def test_show(cli: Cli, daemon: PretendDaemon) -> None:
    """What it sets, in the words of its file."""
    daemon.on(
        "GET /policies/free", policy(total_usd_cap=None, allowed_endpoints=["GET /a", "GET /b"], stamp=True)
    )

    lines = cli("policy", "show", "free").stdout.splitlines()

    assert [" ".join(line.split()) for line in lines] == [
        "free",
        "daily_usd_cap $5.00",
        "total_usd_cap none",
        "allowed_endpoints GET /a",
        "allowed_endpoints GET /b",
        "rate 1/s",
        "stamp true",
    ]
    assert cli("policy", "show", "free", "--json").stdout.startswith('{"vendors":null')


def test_remove(cli: Cli, daemon: PretendDaemon) -> None:
    """What becomes of its keys is said; one that is not there is exit 6."""
    daemon.on("DELETE /policies/free", b"", 204)
    daemon.on("DELETE /policies/pro", refusal("policy_unknown", "no policy pro", "kbctl policy list"), 404)

    assert cli("policy", "remove", "free").stdout.startswith("free: removed")
    assert cli("policy", "remove", "pro").exit_code == 6


@pytest.mark.parametrize("no_color", [False, True])
def test_colours(
    terminal: Callable[..., Seen], daemon: PretendDaemon, monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    """Red and green for the diff, unless ``NO_COLOR`` says otherwise."""
    daemon.on("PUT /policies/free", policy_changes())
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")

    seen = terminal(*"policy set free --cap 5".split(), color=True)

    assert ("\x1b[31m" in seen.stdout) is not no_color
    assert "  - daily_usd_cap  $5.00" in seen.plain


def test_a_policy_cannot_steer_the_terminal(cli: Cli, daemon: PretendDaemon) -> None:
    """A name or a limit that a file brought is shown, not obeyed."""
    daemon.on(
        "PUT /policies",
        policy_changes(policy_change(name="\x1b[2J", fields={"vendors": [None, ["\x1b]0;x\x07"]]})),
    )

    assert not set(cli("policy", "apply", "-", input=TOML).stdout) & set("\x1b\x07")
