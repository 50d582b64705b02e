"""``up``, ``down``, ``status``, ``logs``."""

import fcntl
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

import pytest

from kbctl import launch, wire
from kbctl.paths import Home
from tests.cli.conftest import Cli, Seen
from tests.cli.support import PretendDaemon, credential, status

# Stands where the interpreter would: writes down how it was started, then does what the test wants.
_STUB = """#!{python} -S
import json, os, sys
told = dict(argv=sys.argv[1:], env=dict(os.environ), cwd=os.getcwd(), session=os.getsid(0) == os.getpid())
told["stdin"] = sys.stdin.read()
with open({notes!r}, "w") as notes:
    json.dump(told, notes)
sys.stderr.write({log!r})
sys.stderr.flush()
if "--report-fd" in sys.argv:
    os.write(int(sys.argv[sys.argv.index("--report-fd") + 1]), {report!r})
"""


@dataclass
class Stub:
    """A pretend ``python -m kbctld``."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def reports(self, report: bytes, log: str = "") -> None:
        program = self.folder / "interpreter"
        text = _STUB.format(python=sys.executable, notes=str(self.folder / "notes"), log=log, report=report)
        program.write_text(text)
        program.chmod(0o755)
        self.monkeypatch.setattr(sys, "executable", str(program))

    def started(self, **changes: Any) -> None:
        self.reports(wire.encode(wire.Started(status=status(**changes))) + b"\n")

    @property
    def told(self) -> Any:
        return json.loads((self.folder / "notes").read_text())


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    return Stub(tmp_path, monkeypatch)


def test_up_says_where_and_what_next(cli: Cli, stub: Stub) -> None:
    """Proxy, place of secrets, notices, and the next command; nothing on stderr."""
    stub.started(notices=["the keyring is an encrypted file"])

    result = cli("up")

    assert result.exit_code == 0, result.stderr
    assert "http://127.0.0.1:4815" in result.stdout
    assert "OS keyring (Secret Service)" in result.stdout
    assert "the keyring is an encrypted file" in result.stdout
    assert "next     kbctl credential set stripe" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("state", "command"),
    [
        ({"credentials": [credential()]}, "kbctl issue --tenant acme --cap 500"),
        ({"credentials": [credential()], "keys_active": 2}, "kbctl keys"),
        ({"credentials": [credential(available=False)], "keys_active": 2}, "kbctl credential set stripe"),
    ],
)
def test_up_knows_what_is_missing(cli: Cli, stub: Stub, state: dict[str, Any], command: str) -> None:
    """The next command is the one that is next."""
    stub.started(**state)

    assert f"next     {command}\n" in cli("up").stdout


def test_up_as_json(cli: Cli, stub: Stub) -> None:
    """The status, as one document."""
    stub.started(sandbox=True)

    result = cli("up", "--sandbox", "--json")

    assert wire.decode(result.stdout.encode(), wire.Status) == status(sandbox=True)


def test_the_daemon_inherits_nothing_that_steers_it(
    cli: Cli, stub: Stub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An allowlisted environment, isolated imports, its own session, private files."""
    for name in (
        "PYTHONPATH",
        "LD_PRELOAD_X",
        "HTTPS_PROXY",
        "STRIPE_API_KEY",
        "SSL_CERT_FILE",
        "PYTHONSTARTUP",
    ):
        monkeypatch.setenv(name, "steered")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    stub.started()

    assert (
        cli(
            "up", "--sandbox", "--port", "0", "--upstream", "a=http://127.0.0.1:1", "--accept-rollback"
        ).exit_code
        == 0
    )

    told = stub.told
    assert "steered" not in told["env"].values()
    assert told["env"]["LC_TIME"] == "C.UTF-8"
    assert told["env"]["XDG_RUNTIME_DIR"] == "/run/user/1000"
    assert told["argv"][:6] == ["-E", "-P", "-m", "kbctld", "--home", str(home.root)]
    assert told["argv"][6:-2] == [
        "--sandbox",
        "--port",
        "0",
        "--upstream",
        "a=http://127.0.0.1:1",
        "--accept-rollback",
    ]
    assert (told["session"], told["stdin"], told["cwd"]) == (True, "", str(home.root))
    assert stat.S_IMODE(home.log.stat().st_mode) == 0o600


def test_up_makes_a_private_home(cli: Cli, stub: Stub, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that isn't there yet is made for its owner alone."""
    monkeypatch.setenv("KBCTL_HOME", str(home.root / "new"))
    stub.started()

    assert cli("up").exit_code == 0
    assert stat.S_IMODE((home.root / "new").stat().st_mode) == 0o700


def test_up_tells_what_the_daemon_said(cli: Cli, stub: Stub) -> None:
    """Its sentence, its remedy, its exit code."""
    error = wire.ErrorBody(code="port_taken", message="port 4815 is taken", remedy="kbctl up --port 0")
    stub.reports(wire.encode(wire.Started(error=error, exit_status=3)) + b"\n")

    result = cli("up")

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "kbctl: port 4815 is taken\n  try: kbctl up --port 0\n"


@pytest.mark.parametrize("claimed", [0, 99, -1])
def test_a_failed_start_never_exits_0(cli: Cli, stub: Stub, claimed: int) -> None:
    """An error without a usable exit code is an internal one."""
    error = wire.ErrorBody(code="x", message="no")
    stub.reports(wire.encode(wire.Started(error=error, exit_status=claimed)) + b"\n")

    assert cli("up").exit_code == 1


@pytest.mark.parametrize("report", [b"", b"not json\n"])
def test_a_start_in_silence(cli: Cli, stub: Stub, home: Home, report: bytes) -> None:
    """The pipe closed without a report: the last line of this start's log, made harmless, says why."""
    home.log.write_text("ValueError: of an older start\n")
    stub.reports(report, log="Traceback\nKeyError: 'x\x1b[2J'\n\n")

    result = cli("up")

    assert result.exit_code == 1
    assert "ended while it started; its last words: KeyError: 'x\\x1b[2J'" in result.stderr
    assert "try: kbctl logs" in result.stderr


def test_a_start_that_hangs(cli: Cli, stub: Stub, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up and ended, not waited for."""
    monkeypatch.setattr(launch, "_START_S_MAX", 0.0)
    stub.started()

    result = cli("up")

    assert result.exit_code == 1
    assert "was stopped" in result.stderr


def test_a_passphrase_goes_by_stdin(cli: Cli, stub: Stub) -> None:
    """Never as an argument or in the environment."""
    stub.started()

    assert cli("up", "--passphrase-stdin", input="open sesame\n").exit_code == 0

    assert stub.told["stdin"] == "open sesame\n"
    assert "sesame" not in json.dumps([stub.told["argv"], stub.told["env"]])
    assert "--passphrase-stdin" in stub.told["argv"]


def test_a_passphrase_is_asked_for(terminal: Callable[..., Seen], stub: Stub, home: Home) -> None:
    """A home whose config keeps secrets under one asks for it, unseen."""
    home.config.write_text('[secrets]\nbackend = "passphrase"\n')
    stub.started()

    seen = terminal("up", typed="open sesame\n")

    assert (seen.exit_code, stub.told["stdin"]) == (0, "open sesame\n")
    assert "sesame" not in seen.stdout + seen.stderr


def test_nobody_there_for_the_passphrase(cli: Cli, stub: Stub, home: Home) -> None:
    """Refused at once, with the way to give it."""
    home.config.write_text('[secrets]\nbackend = "passphrase"\n')

    result = cli("up")

    assert result.exit_code == 3
    assert "try: kbctl up --passphrase-stdin < passphrase-file" in result.stderr


@pytest.mark.parametrize("given", ["", "\n", "two\nlines\n"])
def test_no_passphrase(cli: Cli, stub: Stub, given: str) -> None:
    """Empty or of several lines: a mistake."""
    assert cli("up", "--passphrase-stdin", input=given).exit_code == 2


def test_foreground_becomes_the_daemon(cli: Cli, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same program in place of ours, without a report."""
    became: list[Any] = []
    before = os.dup(0)
    monkeypatch.setattr(os, "execve", lambda *told: became.extend(told))
    try:
        # exec does not come back; here it does, and what follows is the ordinary start.
        monkeypatch.setattr(launch, "start", lambda *_, **__: status())
        cli("up", "--foreground", "--passphrase-stdin", input="open sesame\n")
        handed_over = os.read(0, 100)
    finally:
        os.dup2(before, 0)
        os.close(before)

    assert became[1] == [
        sys.executable, "-E", "-P", "-m", "kbctld", "--home", str(home.root),
        "--passphrase-stdin", "--foreground",
    ]  # fmt: skip
    assert handed_over == b"open sesame\n"


def test_down_waits_for_the_lock(cli: Cli, daemon: PretendDaemon, home: Home) -> None:
    """Gone is when the kernel has taken the lock back; what was in flight is said."""
    home.lock.touch()
    daemon.on("POST /shutdown", wire.ShutdownReply(pid=4242, in_flight=2))

    result = cli("down")

    assert (result.exit_code, result.stdout) == (0, "kbctl is down; 2 calls in flight when it was asked\n")


def test_down_that_does_not_come_down(
    cli: Cli, daemon: PretendDaemon, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the deadline: which process it is."""
    monkeypatch.setattr(launch, "_STOP_S_MAX", 0.0)
    daemon.on("POST /shutdown", wire.ShutdownReply(pid=4242, in_flight=0))
    with home.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        result = cli("down")

    assert result.exit_code == 1
    assert "try: kill 4242" in result.stderr


def test_down_when_nothing_runs(cli: Cli) -> None:
    """What was asked for is already so."""
    result = cli("down")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "kbctl was not running\n")


def test_down_of_a_daemon_that_does_not_answer(cli: Cli, home: Home) -> None:
    """Something holds the home: not running would be a lie."""
    with home.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        result = cli("down")

    assert result.exit_code == 4
    assert "holds this home but does not answer" in result.stderr


def test_status(cli: Cli, daemon: PretendDaemon) -> None:
    """What is unsafe or unknown is told in words."""
    upstream = wire.Upstream(vendor="stripe", origin="http://127.0.0.1:9000", insecure=True)
    daemon.on(
        "GET /status", status(upstreams=[upstream], unknown_calls=1, unknown_usd=Decimal(120), notices=["n"])
    )

    result = cli("status")

    assert result.exit_code == 0
    for part in (
        "stripe at http://127.0.0.1:9000 INSECURE",
        "$120.00 held: kbctl audit --unknown",
        "note        n\n",
    ):
        assert part in result.stdout


def test_status_as_json(cli: Cli, daemon: PretendDaemon) -> None:
    """As received, fields that we don't know included."""
    body = wire.encode(status()).replace(b"{", b'{"new_field":1.10,', 1)
    daemon.on("GET /status", body)

    assert cli("status", "--json").stdout == body.decode() + "\n"


def test_status_when_nothing_runs(cli: Cli) -> None:
    """Exit 4 and the command that helps, as text and as JSON."""
    plain, machine = cli("status"), cli("status", "--json")

    assert (plain.exit_code, plain.stderr) == (4, "kbctl: the daemon is not running\n  try: kbctl up\n")
    assert (machine.exit_code, machine.stdout) == (4, "")
    assert json.loads(machine.stderr) == {
        "error": {"code": "daemon_unreachable", "message": "the daemon is not running", "remedy": "kbctl up"}
    }


def test_logs(cli: Cli, home: Home) -> None:
    """The last lines, with what agents sent made harmless."""
    home.log.write_bytes(b"one\ntwo \x1b]0;owned\x07\nthree \xff\n")

    assert cli("logs", "-n", "2").stdout == "two \\x1b]0;owned\\x07\nthree \ufffd\n"
    assert cli("logs", "-n", "0").stdout == ""


def test_logs_go_on(cli: Cli, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole lines as they come, from the start again when the file was emptied, until Ctrl-C."""
    home.log.write_text("one\n")
    steps: Iterator[Callable[[TextIO], int]] = iter(
        [lambda log: log.write("tw"), lambda log: log.write("o\n"), lambda log: log.truncate(0)]
    )

    def meanwhile(_: float) -> None:
        with home.log.open("a") as log:
            step = next(steps, None)
            if step is None:
                raise KeyboardInterrupt
            step(log)

    monkeypatch.setattr(time, "sleep", meanwhile)

    result = cli("logs", "-f")

    assert (result.exit_code, result.stdout) == (130, "one\ntwo\n")


def test_no_logs(cli: Cli) -> None:
    """Nothing was started here yet."""
    result = cli("logs")

    assert result.exit_code == 6
    assert "try: kbctl up" in result.stderr
