"""K1, K3, K4, K5: the real gnome-keyring, headless, in sessions of its own.

The recipe: a private home and runtime directory, one `dbus-run-session`, and the password on the stdin of
`gnome-keyring-daemon --unlock`. The first call creates the login keyring; later ones need the same bytes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MISSING = [name for name in ("gnome-keyring-daemon", "dbus-run-session") if shutil.which(name) is None]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or bool(MISSING and os.environ.get("CI") != "true"),
    reason=f"needs a Secret Service to test with: {', '.join(MISSING) or 'Linux'} not found",
)

TEXT = "sk_test_canary_4eC39HqLyjWDarjtT1zdp7dc"
PASSWORD = "pretend password"

UNLOCK = 'printf %s "$KEYRING_PASSWORD" | gnome-keyring-daemon --unlock --components=secrets >/dev/null; '
SCRIPT = Path(__file__).with_name("secret_service_session.py")


def keyrings_of(home: Path) -> list[int]:
    """Living gnome-keyring-daemons of this home; a zombie is one that only waits for its parent."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            if os.fsencode(f"HOME={home}") in environment and is_alive(int(process.name)):
                found.append(int(process.name))
        except (OSError, ValueError):
            continue  # no process, or gone, or not ours to look into
    return found


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return "(gnome-keyring" in status and status.rsplit(") ", 1)[1][0] != "Z"


class Login:
    """A home in which sessions are opened, one after the other."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def session(self, scenario: str, password: str | None = PASSWORD) -> dict[str, Any]:
        """Open a session, unlock with the password (None: nobody does), play the scenario."""
        assert not MISSING, f"CI must have {', '.join(MISSING)}"
        runtime = self.home / "run"
        runtime.mkdir(mode=0o700, exist_ok=True)
        environment = {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(runtime),
            "KEYRING_PASSWORD": password or "",
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            "PYTHON": sys.executable,
            "SCRIPT": str(SCRIPT),
            "SCENARIO": scenario,
        }
        commands = (UNLOCK if password is not None else "") + 'exec "$PYTHON" -P "$SCRIPT" "$SCENARIO"'
        daemons: list[int] = []
        try:
            run = subprocess.run(
                ["dbus-run-session", "--", "sh", "-c", commands],
                env=environment,
                capture_output=True,
                text=True,
                timeout=20,
            )
            assert run.returncode == 0, run.stderr
            result: dict[str, Any] = json.loads(run.stdout)
            daemons = result["daemons"]
            assert daemons, "no Secret Service was seen, so nothing was tested"
            assert TEXT not in run.stderr
        finally:
            self.end(daemons)
        return result

    def end(self, daemons: list[int]) -> None:
        """Kill the daemons of this home, by pid, and wait until none is left."""
        give_up = time.monotonic() + 3
        while left := {pid for pid in (*daemons, *keyrings_of(self.home)) if is_alive(pid)}:
            assert time.monotonic() < give_up, f"gnome-keyring-daemon left over: {left}"
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.02)


@pytest.fixture
def login() -> Iterator[Login]:
    # Not tmp_path: the socket of the keyring must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="kbctl-") as home:
        yield Login(Path(home))


def test_set_get_delete_and_a_second_session(login: Login) -> None:
    first = login.session("cycle")
    assert first["first_choice"] == ["os-keyring", ""]
    assert first["nothing yet"] == "None"
    assert first["written"] == [TEXT, "other"]
    assert first["big"]
    assert first["together"] == [TEXT] * 6
    assert first["rotated"] == "rotated"
    assert first["removed"] == ["None", "other"]
    assert first["items"] == ["Password for 'kept' on 'kbctl'"], "neither probe nor removed item stays behind"

    second = login.session("persisted")
    assert second["kept"] == TEXT
    assert second["shadowed"] in (
        ["None", "new"],
        ["keyring_wrong_answer", "shadow"],
        ["keyring_wrong_answer", TEXT],
    )
    assert second["removed"] == "None"


def test_a_wrong_password_is_a_locked_keyring(login: Login) -> None:
    login.session("cycle")
    for password in (PASSWORD + "\n", None):
        result = login.session("locked", password)
        assert result["answers"] == ["keyring_locked"] * 4
        assert result["first_choice"] == "keyring_locked", "locked is not absent"
    assert login.session("persisted")["kept"] == TEXT


def test_a_keyring_that_was_never_created(login: Login) -> None:
    result = login.session("uncreated", password=None)
    assert result["answers"] == ["keyring_uncreated"] * 4
    kind, notice = result["headless"]
    assert kind == "keyfile"
    assert notice.startswith("The OS keyring is not set up: no keyring has ever been created in it. ")
    assert result["display"] == "keyring_uncreated"


def test_a_stopped_daemon_costs_the_deadline_and_the_loop_nothing(login: Login) -> None:
    # The machine may be busy with others; what holds the loop up itself does so every time.
    for _ in range(3):
        result = login.session("stopped")
        if result["lag"] <= 0.05:
            break
    assert result["answers"] == ["keyring_timeout"] * 3
    assert all(0.6 <= seconds < 1.6 for seconds in result["seconds"])
    assert result["lag"] <= 0.05
    assert result["first_choice"] == "keyring_timeout", "stuck is not absent"
    assert result["continued"] == TEXT


def test_a_killed_daemon_comes_back_locked(login: Login) -> None:
    result = login.session("killed")
    assert result == {"after": "keyring_locked", "restarted": True, "daemons": result["daemons"]}


def test_nothing_that_steers_the_keyring_library_receives_a_secret(login: Login) -> None:
    result = login.session("hostile")
    assert result["controls stolen"] == [True, True, True], "the trap must work, or the test proves nothing"
    assert result["answer"] == TEXT
    assert result["loot"] is False
    assert result["application"] == ["Python keyring library"]
