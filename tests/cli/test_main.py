"""Failures become one sentence, a remedy and an exit code; start-up stays quick."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import kbctl
from kbctl import client
from kbctl.paths import Home
from tests.cli.conftest import Cli
from tests.cli.support import PretendDaemon, status

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


@pytest.mark.parametrize("args", ["--version", "--help"])
def test_start_up_loads_little(args: str) -> None:
    """Neither HTTP nor tables nor wire for what needs none of them."""
    script = (
        "import sys\nsys.argv = ['kbctl', sys.argv[1]]\nfrom kbctl.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        "slow = {'httpx', 'rich', 'msgspec', 'asyncio', 'pydantic'}\n"
        "print(*sorted(slow & set(sys.modules)), file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, args], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stderr.strip() == ""


def test_the_public_names() -> None:
    """``from kbctl import Client`` works, and nothing else is promised."""
    assert {getattr(kbctl, name) for name in kbctl.__all__}
    with pytest.raises(AttributeError):
        _ = kbctl.Daemon
