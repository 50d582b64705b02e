"""The whole daemon on a real gnome-keyring: stored in one session, read in the next, locked in a third."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.support import SECRET, Kbctl, PretendStripe

MISSING = [name for name in ("gnome-keyring-daemon", "dbus-run-session") if shutil.which(name) is None]

UNLOCK = "printf %s pretend-password | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1\n"
KBCTL = '"$PYTHON" -m kbctl'


def session(home: Kbctl, commands: str, *, unlock: bool = True) -> list[str]:
    """Run shell commands in a D-Bus session of their own; their output, a line each."""
    runtime = home.home / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    done = subprocess.run(
        ["dbus-run-session", "--", "sh", "-ec", (UNLOCK if unlock else "") + commands],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home.home),
            "XDG_RUNTIME_DIR": str(runtime),
            "KBCTL_HOME": str(home.home / "kb"),
            "PYTHON": sys.executable,
            "LANG": "C.UTF-8",
        },
    )
    end_keyrings(home.home)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()


def end_keyrings(home: Path) -> None:
    """gnome-keyring-daemon outlives its bus; it is the one whose HOME is ours."""
    for process in Path("/proc").iterdir():
        try:
            mine = f"HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0")
            if mine and b"gnome-keyring-d" in (process / "comm").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue


@pytest.mark.skipif(bool(MISSING) and os.environ.get("CI") != "true", reason=f"needs {' and '.join(MISSING)}")
def test_K5_the_os_keyring_keeps_the_secret_between_sessions(
    home: Kbctl, stripe_server: PretendStripe
) -> None:
    """First use chooses the keyring, a later session reads it back, a locked one says so."""
    up = f"{KBCTL} up --port 0 --upstream stripe={stripe_server.url} >/dev/null\n"
    status = f"{KBCTL} status --json | tr -d '\\n'; echo\n"
    down = f"{KBCTL} down >/dev/null 2>&1\n"

    first = session(
        home,
        f"{up} echo {SECRET} | {KBCTL} credential set stripe >/dev/null\n {status}"
        f"{KBCTL} issue --cap 500 --ttl never\n {down}",
    )
    assert json.loads(first[0])["keyring"].startswith("OS keyring")
    assert not (home.home / "kb" / "secrets.kbctl").exists()
    assert SECRET.encode() not in b"".join(
        file.read_bytes() for file in home.home.rglob("*") if file.is_file()
    )

    charge = (
        'URL=$("$PYTHON" -m kbctl status --json | "$PYTHON" -c '
        "\"import json,sys; print(json.load(sys.stdin)['proxy_url'])\")\n"
        f'"$PYTHON" -c "import httpx,sys; r=httpx.post(sys.argv[1]+\'/v1/payment_intents\','
        "data={'amount':'1000','currency':'usd'},headers={'Authorization':'Bearer '+sys.argv[2]},"
        f'trust_env=False); print(r.status_code, r.text[:80].replace(chr(10),chr(32)))" "$URL" {first[1]}\n'
    )
    second = session(home, f"{up} {status} {charge} {down}")
    assert json.loads(second[0])["credentials"][0]["available"] is True
    assert second[1].startswith("200 ")
    assert stripe_server.authorised_cents() == 1000

    third = session(home, f"{up} {status} {charge} {down}", unlock=False)
    credential = json.loads(third[0])["credentials"][0]
    assert credential["available"] is False
    assert "locked" in credential["problem"]
    assert third[1].startswith("503 ")
    assert stripe_server.authorised_cents() == 1000
