"""``run`` and ``env`` against a pretend daemon."""

import json
import shlex
import signal
import sys
from pathlib import Path

import pytest

from kbctl import wire
from tests.cli.conftest import Cli
from tests.cli.support import (
    PROXY,
    VAULT_KEY,
    PretendDaemon,
    credential,
    issued,
    key,
    policy,
    refusal,
    revocation,
    spent,
    status,
)

REVOKE = "DELETE /vault/keys/vk_3f9c2a7d10"


@pytest.fixture
def runs(daemon: PretendDaemon) -> PretendDaemon:
    """A daemon that issues, revokes and reports."""
    daemon.on("POST /vault/keys", issued(), 201)
    daemon.on(REVOKE, revocation())
    daemon.on("GET /vault/keys/vk_3f9c2a7d10/tree", wire.KeyTree(key=key(status="revoked"), children=[]))
    daemon.on("GET /spend", [spent(), spent(key="vk_other")])
    return daemon


def asked(daemon: PretendDaemon) -> list[str]:
    return [each.line for each in daemon.asked]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_run_is_named_issued_revoked_and_summed_up(cli: Cli, runs: PretendDaemon) -> None:
    """The order of things, and one line on stderr."""
    result = cli("run", "--tenant", "acme", "--cap", "500", "--", *python("raise SystemExit(7)"))

    assert (result.exit_code, result.stdout) == (7, "")
    body = runs.asked[0].body
    run_id = body["metadata"]["agent_run_id"]
    assert run_id.startswith("run_")
    assert body == {
        "tenant": "acme",
        "daily_usd_cap": 500,
        "expires_in": "24h",
        "metadata": {"agent_run_id": run_id},
        "agent_run_label": f"run:{run_id}",
    }
    assert asked(runs)[:2] == ["POST /vault/keys", REVOKE]
    assert result.stderr == (
        f"kbctl: vk_3f9c2a7d10 ({run_id}): spent $360.00 of $500.00, $120.00 held; "
        "1234 calls, 7 refused; revoked\n"
    )


def test_what_is_said_of_the_run_is_taken(cli: Cli, runs: PretendDaemon) -> None:
    """Id, label and life."""
    meta = ("--meta", "agent_run_id=mine", "--meta", "a=b")
    cli("run", "--cap", "5", "--ttl", "1h", "--label", "x", *meta, "--quiet", "--", "true")

    body = runs.asked[0].body
    assert body["metadata"] == {"agent_run_id": "mine", "a": "b"}
    assert (body["agent_run_label"], body["expires_in"]) == ("x", "1h")


def test_quiet(cli: Cli, runs: PretendDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but errors, and nothing is asked for a summary."""
    monkeypatch.setenv("STRIPE_KEY", "sk_live_x")
    result = cli("run", "--cap", "5", "-q", "--", "true")

    assert (result.exit_code, result.stderr) == (0, "")
    assert asked(runs) == ["POST /vault/keys", REVOKE]


@pytest.mark.parametrize(("said", "sent"), [("1h", None), ("never", "24h"), (None, "24h")])
def test_a_policy_may_be_shorter_than_a_day(
    cli: Cli, runs: PretendDaemon, said: str | None, sent: str | None
) -> None:
    """A longer wish than the policy's would be refused; none at all must still end."""
    runs.on("GET /policies/free", policy(expires_in=said))
    cli("run", "--policy", "free", "-q", "--", "true")

    assert next(each for each in runs.asked if each.method == "POST").body.get("expires_in") == sent


@pytest.mark.parametrize(
    ("make", "status"),
    [
        pytest.param(None, 127, id="nothing of that name"),
        pytest.param("text", 126, id="not executable"),
        pytest.param("folder", 126, id="a folder"),
        pytest.param("#!/no/such/interpreter\n", 127, id="no interpreter"),
    ],
)
def test_a_command_that_can_t_be_run_leaves_no_key(
    cli: Cli, runs: PretendDaemon, tmp_path: Path, make: str | None, status: int
) -> None:
    """127 and 126, as a shell says them, with a sentence and a remedy."""
    path = tmp_path / "command"
    if make == "folder":
        path.mkdir()
    elif make is not None:
        path.write_text(make)
        path.chmod(0o755 if make.startswith("#!") else 0o644)

    result = cli("run", "--cap", "5", "--", str(path))

    assert result.exit_code == status
    assert str(path) in result.stderr
    assert "  try: " in result.stderr
    assert asked(runs).count("POST /vault/keys") == asked(runs).count(REVOKE)


def test_the_environment_of_the_command(
    cli: Cli, runs: PretendDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ours is set, real keys are gone and named, the rest is as it was."""
    for name, value in {"STRIPE_KEY": "sk_live_x", "HARMLESS": "1", "STRIPE_API_KEY": "sk_live_x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", "")
    out = tmp_path / "environment"
    code = f"import json, os; open({str(out)!r}, 'w').write(json.dumps(dict(os.environ)))"

    result = cli("run", "--cap", "5", "--", *python(code))

    found = json.loads(out.read_text())
    assert "taken out of the command's environment: STRIPE_KEY\n" in result.stderr
    assert "STRIPE_KEY" not in found
    assert (found["STRIPE_API_KEY"], found["HARMLESS"]) == (VAULT_KEY, "1")
    assert found["PYTHONPATH"].endswith("kbctl/shim")
    assert found["NODE_OPTIONS"].endswith("kbctl/shim/register.cjs")
    assert "sk_live_x" not in out.read_text()


def test_no_shim(cli: Cli, runs: PretendDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python's and Node's own variables are left alone."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("NODE_OPTIONS", raising=False)
    out = tmp_path / "environment"
    code = f"import os; open({str(out)!r}, 'w').write(' '.join(os.environ))"

    assert cli("run", "--cap", "5", "--no-shim", "--", *python(code)).exit_code == 0
    assert not {"PYTHONPATH", "NODE_OPTIONS"} & set(out.read_text().split())


def test_a_revocation_that_fails_is_said_and_the_status_is_the_command_s(
    cli: Cli, daemon: PretendDaemon
) -> None:
    """Whose key, until when, and what to type."""
    daemon.on("POST /vault/keys", issued(), 201)
    daemon.on(REVOKE, refusal("audit_unavailable", "the disk is full"), 503)

    result = cli("run", "--cap", "5", "-q", "--", *python("raise SystemExit(3)"))

    assert result.exit_code == 3
    assert "vk_3f9c2a7d10 could not be revoked: the disk is full; it ends by itself at 2126" in result.stderr
    assert "  try: kbctl revoke vk_3f9c2a7d10\n" in result.stderr


def test_options_of_the_command_are_its_own(cli: Cli, runs: PretendDaemon) -> None:
    """With or without the two dashes."""
    code = "import sys; raise SystemExit(len(sys.argv))"
    assert cli("run", "--cap", "5", *python(code), "--cap", "--json").exit_code == 3


def test_no_cap(cli: Cli) -> None:
    """Before anything is issued or run."""
    result = cli("run", "--tenant", "acme", "--", "true")

    assert result.exit_code == 2
    assert "try: kbctl run --tenant acme --cap 500 -- CMD" in result.stderr


LINES = {
    "STRIPE_API_KEY": VAULT_KEY,
    "STRIPE_SECRET_KEY": VAULT_KEY,
    "STRIPE_BASE_URL": f"{PROXY}/stripe",
    "KBCTL_KEY_ID": "vk_3f9c2a7d10",
    "KBCTL_PROXY_URL": PROXY,
    "NO_PROXY": "127.0.0.1,localhost",
}


@pytest.fixture
def known(daemon: PretendDaemon, monkeypatch: pytest.MonkeyPatch) -> PretendDaemon:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    daemon.on(f"GET /vault/keys/{VAULT_KEY}", key())
    daemon.on("GET /status", status())
    daemon.on("POST /vault/keys", issued(), 201)
    return daemon


def test_env_of_a_key_that_is_there(cli: Cli, known: PretendDaemon) -> None:
    """Lines that a shell takes."""
    result = cli("env", VAULT_KEY)

    read = dict(part.split("=", 1) for part in shlex.split(result.stdout) if part != "export")
    assert (result.exit_code, read, result.stderr) == (0, LINES, "")
    assert cli("env", "-", input=f"{VAULT_KEY}\n").stdout == result.stdout


def test_env_issues(cli: Cli, known: PretendDaemon) -> None:
    """With the options of issue."""
    result = cli("env", "--issue", "--cap", "5", "--format", "json")

    assert json.loads(result.stdout) == LINES
    assert known.only.body == {"daily_usd_cap": 5}


@pytest.mark.parametrize(
    ("form", "first"),
    [
        ("sh", f"export STRIPE_API_KEY={VAULT_KEY}"),
        ("fish", f"set -gx STRIPE_API_KEY '{VAULT_KEY}'"),
        ("dotenv", f"STRIPE_API_KEY={VAULT_KEY}"),
    ],
)
def test_env_formats(cli: Cli, known: PretendDaemon, form: str, first: str) -> None:
    """One line a variable."""
    lines = cli("env", VAULT_KEY, "--format", form).stdout.splitlines()

    assert (lines[0], len(lines)) == (first, len(LINES))


def test_env_knows_the_twilio_account(cli: Cli, daemon: PretendDaemon) -> None:
    """The credential's, else the one that stands for it."""
    ours = credential(name="twilio", vendor="twilio", fields={"account_sid": "AC" + "7" * 32})
    daemon.on("POST /vault/keys", issued(vendors=["twilio"]), 201)
    daemon.on("GET /credentials", wire.CredentialList(credentials=[ours]))
    daemon.on("GET /credentials", wire.CredentialList(credentials=[]))

    assert f"TWILIO_ACCOUNT_SID=AC{'7' * 32}\n" in cli("env", "--issue", "--cap", "5").stdout
    assert f"TWILIO_ACCOUNT_SID=AC{'0' * 32}\n" in cli("env", "--issue", "--cap", "5").stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["vk_3f9c2a"], "from a key id nobody can make it again"),
        ([], "say which key"),
        (["--cap", "5"], "say which key"),
        ([VAULT_KEY, "--cap", "5"], "not both"),
        ([VAULT_KEY, "--issue"], "not both"),
        (["--issue"], "say how much"),
        ([VAULT_KEY, "--format", "csh"], "not one of sh, fish, dotenv, json"),
    ],
)
def test_env_wrong(cli: Cli, known: PretendDaemon, args: list[str], says: str) -> None:
    """What to say instead; no key is issued."""
    result = cli("env", *args)

    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert "POST /vault/keys" not in asked(known)
    assert VAULT_KEY not in result.stderr


def test_env_of_a_key_that_is_over(cli: Cli, daemon: PretendDaemon) -> None:
    """No call of it would pass."""
    daemon.on(f"GET /vault/keys/{VAULT_KEY}", key(status="revoked"))

    assert cli("env", VAULT_KEY).exit_code == 3


def test_signals_are_as_they_were(cli: Cli, runs: PretendDaemon) -> None:
    """Nothing of a run stays in the process that ran it."""

    before = signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGCHLD)
    cli("run", "--cap", "5", "-q", "--", "true")

    assert (signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGCHLD)) == before
