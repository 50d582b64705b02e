"""Failures become one sentence, a remedy and an exit code; start-up stays quick."""

import json
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer

import kbctl
from kbctl import cli, client, commands, wire
from kbctl.paths import Home
from tests.cli.conftest import Cli
from tests.cli.support import PretendDaemon, call, key, status
from tests.cli.test_audit_chain import verified

ROOT = Path(__file__).parents[2]


def test_version(cli: Cli) -> None:
    """One line, easy to compare."""
    assert cli("--version").stdout == f"kbctl {kbctl.__version__}\n"


def test_nothing_typed(cli: Cli) -> None:
    """Help, not an error."""
    assert cli().exit_code == 0
    assert cli().stdout == cli("--help").stdout
    assert cli("credential").stdout == cli("credential", "--help").stdout


@pytest.mark.parametrize(
    ("args", "stderr"),
    [
        (("frob",), "kbctl: no such command 'frob'\n  try: kbctl --help\n"),
        (("show",), "kbctl: missing argument 'KEY'\n  try: kbctl show --help\n"),
        (("logs", "-n", "-1"), "kbctl: --lines -1 is not between 0 and 1000000\n  try: --lines 0\n"),
        (("credential", "set"), "kbctl: missing argument 'NAME'\n  try: kbctl credential set --help\n"),
        (("up", "--port", "65536"), "kbctl: --port 65536 is not between 0 and 65535\n"),
        (("up", "--port", "http"), "kbctl: invalid value for '--port'"),
    ],
)
def test_usage_errors(cli: Cli, args: tuple[str, ...], stderr: str) -> None:
    """Exit 2, in the form of every other error."""
    result = cli(*args)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(stderr)


def test_usage_errors_as_json(cli: Cli) -> None:
    """A program that asked for JSON gets JSON."""
    result = cli("show", "--json", "a", "b")

    assert (result.exit_code, result.stdout) == (2, "")
    assert json.loads(result.stderr)["error"] == {
        "code": "usage",
        "message": "there is an argument too many",
        "remedy": "kbctl show --help",
    }


def _broken(_: object) -> None:
    raise RuntimeError("sk_live_canary")


def test_a_defect(cli: Cli, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence and the log's place; no traceback, and not the defect's text: it could hold anything."""
    monkeypatch.setattr(client.Client, "status", _broken)

    result = cli("status")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "a defect in kbctl itself ended this (RuntimeError)" in result.stderr
    assert str(home.log) in result.stderr
    assert "Traceback" not in result.stderr
    assert "canary" not in result.stderr


def test_a_defect_in_detail(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback is there for who asks for it."""
    monkeypatch.setattr(client.Client, "status", _broken)
    monkeypatch.setenv("KBCTL_DEBUG", "1")

    assert "Traceback" in cli("status").stderr


def test_ctrl_c(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from any program."""

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(client.Client, "status", interrupted)

    assert cli("status").exit_code == 130


def test_errors_are_neutral(cli: Cli, daemon: PretendDaemon) -> None:
    """A message may quote what an agent sent."""
    daemon.on("GET /status", b'{"error":{"code":"x","message":"no \\u001b[2J","remedy":"a\\u0007"}}', 500)

    assert cli("status").stderr == "kbctl: no \\x1b[2J\n  try: a\\x07\n"


def test_a_reader_that_goes_away(daemon: PretendDaemon, home: Home) -> None:
    """``kbctl status | head -0`` complains about nothing."""
    daemon.on("GET /status", status(notices=["n" * 200_000]))
    with subprocess.Popen(
        [sys.executable, "-m", "kbctl", "status"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()

    assert (process.returncode, complaint) == (141, b"")


def test_a_full_disk(home: Home) -> None:
    """Of the answer, not of the daemon: one sentence, no traceback."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        for args in ("--version", "--help"):
            command = [sys.executable, "-m", "kbctl", args]
            done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)

            assert (done.returncode, len(done.stderr.splitlines())) == (1, 2), args
            assert done.stderr.startswith("kbctl: the answer could not be written: "), args


@pytest.mark.parametrize(
    "command", [("keys", "--tenant"), ("audit", "--label"), ("issue", "--cap", "5", "--tenant")]
)
def test_an_argument_that_is_no_text(cli: Cli, daemon: PretendDaemon, command: tuple[str, ...]) -> None:
    """Bytes that are no UTF-8 are the typist's mistake, not ours."""
    result = cli(*command, "a\udcffb")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "kbctl: an argument is not UTF-8 text\n  try: kbctl --help\n"


def test_every_command_is_found() -> None:
    """The table of commands says of each module just what that registers."""
    registered: dict[str, str] = {}
    for module in pkgutil.iter_modules(commands.__path__):
        register = getattr(import_module(f"kbctl.commands.{module.name}"), "register", None)
        if register is not None:
            app = typer.Typer(rich_markup_mode=None, callback=lambda: None)
            register(app)
            registered |= dict.fromkeys(typer.main.get_group(app).commands, module.name)

    assert registered == cli._COMMANDS


# What takes long to import, and what the commands below have no use for.
SLOW = {"asyncio", "email", "http", "httpx", "pydantic", "rich", "ssl"}


@pytest.mark.parametrize(
    ("args", "without"),
    [
        (("--version",), SLOW | {"re", "typer", "typing", "kbctl.cli"}),
        (("completion", "zsh"), SLOW | {"re", "typer", "typing", "kbctl.cli"}),
        (("--help",), SLOW | {"msgspec", "kbctl.client", "kbctl.render"}),
        (("keys", "--help"), SLOW | {"msgspec", "kbctl.client", "kbctl.commands.audit"}),
        (("keys",), SLOW | {"kbctl.commands.audit", "kbctl.commands.demo", "platformdirs"}),
        (("keys", "--status", "all", "--json"), SLOW),
        (("status",), SLOW | {"kbctl.commands.key"}),
        (("audit", "--tenant", "acme", "--limit", "5"), SLOW | {"kbctl.commands.demo"}),
        (("audit", "verify"), SLOW),
        (("show", "vk_3"), SLOW),
        (("frob",), SLOW | {"msgspec", "kbctl.commands.key"}),
    ],
)
def test_what_is_loaded(home: Home, daemon: PretendDaemon, args: tuple[str, ...], without: set[str]) -> None:
    """Only what the command needs: this counts what the time is spent on."""
    daemon.on("GET /vault/keys", wire.KeyList(keys=[key()]))
    daemon.on("GET /vault/keys/vk_3", key())
    daemon.on("GET /status", status())
    daemon.on("GET /audit", [call()])
    daemon.on("GET /audit/verify", verified())

    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kbctl", *args], cwd=ROOT, capture_output=True, text=True
    )

    rows = [row for row in done.stderr.splitlines() if row.startswith("import time:")]
    loaded = {row.rpartition("|")[2].strip() for row in rows}
    assert done.returncode == (2 if args == ("frob",) else 0), done.stderr[-500:]
    assert "kbctl.main" in loaded
    assert loaded & without == set()


def test_the_public_names() -> None:
    """``from kbctl import Client`` works, and nothing else is promised."""
    assert {getattr(kbctl, name) for name in kbctl.__all__}
    with pytest.raises(AttributeError):
        _ = kbctl.Daemon
