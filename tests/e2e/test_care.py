"""Backup and restore as a person does them, on a daemon that runs."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

import kbctl
from tests.e2e.support import SECRET, Kbctl, PretendStripe, new_home, pretend_stripe


@pytest.fixture(scope="module")
def stripe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PretendStripe]:
    with pretend_stripe(tmp_path_factory.mktemp("stripe")) as server:
        yield server


@pytest.fixture
def home(stripe: PretendStripe) -> Iterator[Kbctl]:
    with new_home() as kbctl:
        kbctl("up", "--port", "0", "--upstream", f"stripe={stripe.url}")
        kbctl("credential", "set", "stripe", stdin=SECRET + "\n")
        yield kbctl


def spend(kbctl: Kbctl, key: str, cents: int) -> int:
    url = kbctl.json("status")["proxy_url"]
    answer = httpx.post(
        f"{url}/v1/payment_intents",
        data={"amount": str(cents), "currency": "usd"},
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
    )
    return answer.status_code


def test_D8_a_backup_comes_back_and_nothing_of_it_is_secret(home: Kbctl, stripe: PretendStripe) -> None:
    key = home("issue", "--tenant", "acme", "--cap", "5").strip()
    assert spend(home, key, 300) == 200
    file = home.home / "copy.db"

    said = home.json("backup", str(file))

    assert said["state"] == "done"
    assert (said["holds"]["calls"], said["holds"]["keys_live"]) == (1, 1)
    assert file.stat().st_mode & 0o777 == 0o600
    raw = file.read_bytes()
    assert SECRET.encode() not in raw
    assert key.encode() not in raw
    home("backup", str(file), status=3)
    home("backup", "--force", str(file))
    with closing(sqlite3.connect(file)) as copy:
        assert copy.execute("SELECT tenant, amount_usd FROM calls").fetchall() == [("acme", 3.0)]

    home("restore", str(file), status=3)  # it runs, and nobody is there to ask
    assert "kbctl down" in home.said or "--yes" in home.said
    home("restore", "--yes", str(file), status=3)
    assert "home_in_use" not in home.said
    home("down")
    back = home.json("restore", "--yes", str(file))
    assert (back["must_accept"], back["calls_behind"]) == (False, 0)
    assert Path(back["kept"]).exists()
    home("up", "--port", "0", "--upstream", f"stripe={stripe.url}")
    assert spend(home, key, 300) == 429  # what was spent is spent
    assert spend(home, key, 200) == 200


def test_D8_an_older_backup_freezes_what_was_live(home: Kbctl, stripe: PretendStripe) -> None:
    key = home("issue", "--tenant", "acme", "--cap", "5").strip()
    file = home.home / "copy.db"
    home("backup", str(file))
    assert spend(home, key, 500) == 200
    home("down")
    said = home("restore", "--yes", str(file))
    assert "kbctl up --accept-rollback" in said
    up = ("up", "--port", "0", "--upstream", f"stripe={stripe.url}")
    home(*up, status=5)
    home(*up, "--accept-rollback")
    assert spend(home, key, 100) == 401
    assert [each["status"] for each in home.json("keys")["keys"]] in ([], ["frozen"])


def test_a_damaged_database_says_how_to_restore(home: Kbctl) -> None:
    file = home.home / "copy.db"
    home("backup", str(file))
    home("down")
    database = home.home / "kbctl.db"
    database.write_bytes(database.read_bytes()[:20_000])
    home("up", "--port", "0", status=5)
    assert "kbctl restore" in home.said
    home("restore", "--yes", str(file))
    home("up", "--port", "0")


def test_only_the_socket_says_where_a_file_is_written(home: Kbctl) -> None:
    token = home("token", "create", "--scope", "admin").strip()
    url = home.json("status")["proxy_url"]
    answer = httpx.post(
        f"{url}/backup",
        json={"path": str(home.home / "x.db")},
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "socket_only")
    done = subprocess.run(
        [
            *("curl", "-s", "--unix-socket", home.json("status")["socket"], "http://x/backup"),
            *("-H", "Content-Type: application/json", "-d", json.dumps({"path": "relative.db"})),
        ],
        capture_output=True,
        check=False,
    )
    assert b"bad_value" in done.stdout


def test_a_command_of_another_version_says_so(home: Kbctl, tmp_path: Path) -> None:
    """After an upgrade the old daemon runs on: `up` says what to do, `status` shows both, others warn."""
    newer = tmp_path / "newer"
    shutil.copytree(Path(kbctl.__file__).parent, newer / "kbctl")
    (newer / "kbctl" / "version.py").write_text('__version__ = "99.1"\n')

    def command(*args: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", "from kbctl.main import run; run()", *args],
            capture_output=True,
            text=True,
            cwd=newer,
            env={"PATH": os.environ["PATH"], "HOME": str(home.home), "KBCTL_HOME": str(home.home)},
            check=False,
        )

    shown = command("status")
    assert f"{kbctl.__version__}, and this command is 99.1: kbctl down && kbctl up" in shown.stdout
    said = command("keys", "--json")
    assert json.loads(said.stdout) == {"keys": []}
    assert f"the daemon is kbctl {kbctl.__version__} and this is 99.1" in said.stderr
    up = command("up", "--port", "0")
    assert up.returncode == 3
    assert f"kbctl {kbctl.__version__} runs here already, and this is 99.1" in up.stderr
    assert "try: kbctl down && kbctl up" in up.stderr
    down = command("down")
    assert (down.returncode, down.stderr) == (0, "")
    assert home("status", status=4) == ""
    assert "the daemon is kbctl" not in home.said
