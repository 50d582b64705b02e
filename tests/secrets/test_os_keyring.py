"""OsKeyring without a keyring: deadlines, the helper's environment, and what each failure is called.

The real Secret Service is in test_secret_service.
"""

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from kbctl.errors import Exit, KbctlError
from kbctld.secrets import os_keyring
from kbctld.secrets.keyring_helper import scrubbed
from kbctld.secrets.os_keyring import OsKeyring
from kbctld.secrets.secret import Secret

TEXT = "sk_test_canary_4eC39HqLyjWDarjtT1zdp7dc"


class Spawned:
    """Every helper that was started, and how."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.processes: list[asyncio.subprocess.Process] = []
        self.calls: list[str] = []
        self.environments: list[dict[str, str]] = []


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> Spawned:
    seen = Spawned()
    start = asyncio.create_subprocess_exec

    async def record(*args: str, **keywords: Any) -> asyncio.subprocess.Process:
        seen.calls.append(repr((args, keywords)))
        seen.environments.append(keywords["env"])
        seen.processes.append(await start(*args, **keywords))
        seen.first.set()
        return seen.processes[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", record)
    return seen


@pytest.fixture
def silent_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bus that accepts a connection and never says a word."""
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / "bus"))
        bus.listen()
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path / 'bus'}")
        yield


def replace_helper(path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    path.write_text(source)
    monkeypatch.setattr(os_keyring, "HELPER", path)


def refusal(attempt: Coroutine[Any, Any, object]) -> KbctlError:
    with pytest.raises(KbctlError) as caught:
        asyncio.run(attempt)
    assert TEXT not in f"{caught.value!r} {caught.value.remedy} {caught.value.__cause__!r}"
    assert caught.value.remedy
    return caught.value


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.mark.usefixtures("silent_bus")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_keyring_that_hangs_costs_the_deadline_and_leaves_no_helper(loop: str, spawned: Spawned) -> None:
    async def scenario() -> float:
        started = time.monotonic()
        with pytest.raises(KbctlError) as caught:
            await OsKeyring(deadline_s=0.5).write("stripe", Secret(TEXT))
        assert (caught.value.code, caught.value.exit_status) == ("keyring_timeout", Exit.REFUSED)
        return time.monotonic() - started

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        assert 0.5 <= runner.run(scenario()) < 2
    (helper,) = spawned.processes
    assert helper.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(helper.pid, 0)


@pytest.mark.usefixtures("silent_bus")
def test_a_cancelled_call_kills_its_helper(spawned: Spawned) -> None:
    async def scenario() -> None:
        reading = asyncio.create_task(OsKeyring().read("stripe"))
        await asyncio.wait_for(spawned.first.wait(), 2)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(scenario())
    assert spawned.processes[0].returncode == -signal.SIGKILL


@pytest.mark.usefixtures("silent_bus")
def test_the_secret_is_in_no_argument_and_no_environment(spawned: Spawned) -> None:
    refusal(OsKeyring(deadline_s=0.05).write("stripe", Secret(TEXT)))
    assert TEXT not in spawned.calls[0]
    assert "stripe" not in spawned.calls[0]


def test_the_helper_gets_an_allowlisted_environment(
    spawned: Spawned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hostile = (
        "PYTHON_KEYRING_BACKEND KEYRING_PROPERTY_PREFERRED_COLLECTION KEYCHAIN_PATH PYTHONPATH PYTHONHOME "
        "LD_PRELOAD PYTHONSTARTUP PYTHONUSERBASE STRIPE_API_KEY"
    ).split()
    for name in hostile:
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("LC_CTYPE", "C.UTF-8")
    refusal(OsKeyring().read("stripe"))
    (environment,) = spawned.environments
    assert not set(hostile) & set(environment)
    assert environment["XDG_CONFIG_HOME"] == os.devnull
    assert environment["LC_CTYPE"] == "C.UTF-8"
    assert scrubbed(environment) == environment


@pytest.mark.parametrize(
    "address", [None, "", "unix:path=/nonexistent/bus", "tcp:host=localhost", "nonsense"]
)
def test_no_bus_is_an_absent_keyring(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if address is None:
        monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    for attempt in (OsKeyring().read("a"), OsKeyring().write("a", Secret(TEXT)), OsKeyring().probe()):
        error = refusal(attempt)
        assert (error.code, error.exit_status) == ("keyring_absent", Exit.REFUSED)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ('{"status": "ok", "secret": ""}', "keyring_wrong_answer"),
        ('{"status": "ok", "secret": 7}', "keyring_wrong_answer"),
        ('{"status": "ok"}', "keyring_wrong_answer"),
        ('{"status": "wrong", "detail": "it keeps what was deleted"}', "keyring_wrong_answer"),
        ('{"status": "locked"}', "keyring_locked"),
        ('{"status": "uncreated"}', "keyring_uncreated"),
        ('{"status": "news"}', "keyring_failed"),
        ("{}", "keyring_failed"),
        ("[]", "keyring_failed"),
        ("null", "keyring_failed"),
        ("", "keyring_failed"),
        (f"{TEXT}", "keyring_failed"),
    ],
)
def test_no_answer_but_null_means_that_there_is_no_secret(
    reply: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_helper(tmp_path / "helper.py", monkeypatch, f"print({reply!r})")
    error = refusal(OsKeyring().read("stripe"))
    assert error.code == code
    assert error.exit_status == (Exit.INTEGRITY if code == "keyring_wrong_answer" else Exit.REFUSED)


def test_null_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_helper(tmp_path / "helper.py", monkeypatch, """print('{"status": "ok", "secret": null}')""")
    assert asyncio.run(OsKeyring().read("stripe")) is None


def test_a_namespace_keeps_homes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    echo = "import json, sys; print(json.dumps({'status': 'ok', 'secret': json.load(sys.stdin)['username']}))"
    replace_helper(tmp_path / "helper.py", monkeypatch, echo)

    async def username(keyring: OsKeyring) -> str:
        secret = await keyring.read("stripe")
        assert secret is not None
        return secret.reveal()

    assert asyncio.run(username(OsKeyring())) == "stripe"
    assert asyncio.run(username(OsKeyring("/srv/agents"))) == "stripe @ /srv/agents"
    assert asyncio.run(username(OsKeyring(os.fsdecode(b"/srv/\xff")))) == "stripe @ /srv/\\udcff"


def test_a_helper_that_cannot_start_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*args: object, **keywords: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable", TEXT)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    assert refusal(OsKeyring().read("stripe")).code == "keyring_failed"


def test_an_empty_secret_is_refused_before_any_helper(spawned: Spawned) -> None:
    assert refusal(OsKeyring().write("stripe", Secret(""))).code == "secret_empty"
    assert spawned.processes == []


# Classes of the keyring library, with behaviours that a probe must find out.
NULL = "return None"
FORGETFUL = "self.kept = None"
FAITHFUL = "self.kept = password"
SHOUTING = "self.kept = password.upper()"
CLINGING = "self.kept = password; self.delete_password = lambda *names: None"
TELLING = "raise RuntimeError(password)"


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [
        (NULL, "wrong"),
        (FORGETFUL, "wrong"),
        (SHOUTING, "wrong"),
        (CLINGING, "wrong"),
        (TELLING, "failed"),
        (FAITHFUL, "ok"),
    ],
)
@pytest.mark.parametrize("op", ["probe", "set"])
def test_a_keyring_that_pretends_is_found_out(behaviour: str, status: str, op: str) -> None:
    if (behaviour, op) == (CLINGING, "set"):
        status = "ok"
    source = f"""
class Backend:
    kept = None
    def get_password(self, service, username): return self.kept
    def set_password(self, service, username, password): {behaviour}
    def delete_password(self, service, username): self.kept = None
from kbctld.secrets import keyring_helper
keyring_helper.open_backend = Backend
keyring_helper.main()
"""
    run = subprocess.run(
        [sys.executable, "-c", source],
        input=json.dumps({"op": op, "service": "kbctl", "username": "stripe", "secret": TEXT}),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout)["status"] == status
    assert TEXT not in run.stdout + run.stderr


def test_many_reads_wait_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline starts with its helper: waiting for others does not eat it."""
    slow = 'import time; time.sleep(0.15); print(\'{"status": "ok", "secret": null}\')'
    replace_helper(tmp_path / "helper.py", monkeypatch, slow)

    async def scenario() -> None:
        keyring = OsKeyring(deadline_s=0.9)
        await asyncio.gather(*(keyring.read(f"{number}") for number in range(12)))

    started = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - started > 0.9


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_the_helper_shows_its_memory_to_nobody() -> None:
    """P24, for the one other process that holds a secret: no core file, and procfs closed to its own user."""
    source = """
import ctypes, resource
from kbctld.secrets import keyring_helper
keyring_helper.harden()
pr_get_dumpable = 3
print(ctypes.CDLL(None).prctl(pr_get_dumpable, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    run = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, check=True)
    assert run.stdout.split() == [b"0", b"0", b"0"]
