"""What stops a start, said by `kbctl up`: one sentence, one remedy, the right exit status, nothing listening.

D6: a missing, empty, foreign, newer, damaged or rolled-back database never means zero spend.
"""

import asyncio
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kbctl.paths import Home
from tests.e2e.support import SECRET, Kbctl, PretendStripe, post

USAGE, REFUSED, UNREACHABLE, INTEGRITY = 2, 3, 4, 5


def refused(kbctl: Kbctl, status: int, *args: str) -> dict[str, str]:
    """`kbctl up` must fail so, and no daemon may be left."""
    before = len(kbctl.said)
    kbctl("up", "--port", "0", "--json", *args, status=status)
    error: dict[str, str] = json.loads(kbctl.said[before:])["error"]
    assert error["message"]
    assert error["remedy"]
    kbctl("status", status=UNREACHABLE)
    return error


def used(kbctl: Kbctl) -> str:
    """A home with a key in it, and its daemon stopped again."""
    kbctl("up", "--sandbox", "--port", "0")
    key = kbctl("issue", "--tenant", "acme", "--cap", "500", "--ttl", "never").strip()
    kbctl("down")
    return key


def state(kbctl: Kbctl) -> Home:
    return Home(kbctl.home)


def truncate(home: Home) -> None:
    home.database(sandbox=True).write_bytes(b"")


def remove(home: Home) -> None:
    home.database(sandbox=True).unlink()


def zero_header(home: Home) -> None:
    with home.database(sandbox=True).open("r+b") as file:
        file.write(b"\0" * 100)


def cut_in_half(home: Home) -> None:
    path = home.database(sandbox=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_pages(home: Home) -> None:
    path = home.database(sandbox=True)
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 64)


def make_foreign(home: Home) -> None:
    path = home.database(sandbox=True)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE someone_elses (x)")
    other.close()
    path.chmod(0o600)


def make_newer(home: Home) -> None:
    with sqlite3.connect(home.database(sandbox=True)) as database:
        database.execute("PRAGMA user_version = 999")
    database.close()


def lose_the_anchor(home: Home) -> None:
    home.anchor(sandbox=True).unlink()


def open_to_others(home: Home) -> None:
    home.database(sandbox=True).chmod(0o644)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (remove, "database_missing"),
        (truncate, "database_empty"),
        (zero_header, "database_damaged"),
        (cut_in_half, "database_damaged"),
        (spoil_pages, "database_damaged"),
        (make_foreign, "database_foreign"),
        (make_newer, "database_newer"),
        (lose_the_anchor, "database_unanchored"),
        (open_to_others, "database_exposed"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_D6_a_database_that_is_not_what_it_was_stops_the_start(
    home: Kbctl, spoil: Callable[[Home], None], code: str
) -> None:
    """Exit status 5, and the file is left as it was found."""
    used(home)
    spoil(state(home))
    path = state(home).database(sandbox=True)
    before = path.read_bytes() if path.exists() else None

    assert refused(home, INTEGRITY, "--sandbox")["code"] == code
    assert (path.read_bytes() if path.exists() else None) == before


def test_D6_a_rolled_back_database_is_noticed_and_accepted_only_by_word(home: Kbctl) -> None:
    """Yesterday's copy put back: refused; with --accept-rollback the keys that were live are frozen."""
    key = used(home)
    path = state(home).database(sandbox=True)
    yesterday = path.read_bytes()
    home("up", "--sandbox", "--port", "0")
    home("issue", "--cap", "1")
    home("down")
    path.write_bytes(yesterday)

    error = refused(home, INTEGRITY, "--sandbox")
    assert error["code"] == "database_rolled_back"
    assert error["remedy"].startswith("kbctl up --accept-rollback")

    home("up", "--sandbox", "--port", "0", "--accept-rollback")
    assert home.json("show", key)["status"] == "frozen"
    home("down")
    home("up", "--sandbox", "--port", "0")
    assert home.json("show", key)["status"] == "frozen"


def test_D6_a_lost_write_ahead_log_is_noticed(home: Kbctl, stripe_server: PretendStripe) -> None:
    """Deleting -wal after kill -9 takes committed rows with it, and SQLite opens the rest without a word."""
    home("up", "--port", "0", "--upstream", f"stripe={stripe_server.url}")
    home("credential", "set", "stripe", stdin=SECRET + "\n")
    home("issue", "--cap", "500")
    home.kill()
    database = Home(home.home).database()
    wal = database.with_name(database.name + "-wal")
    assert wal.stat().st_size > 0
    wal.unlink()

    assert refused(home, INTEGRITY)["code"] in ("database_rolled_back", "database_foreign")


def test_D11_a_second_daemon_on_the_same_home_and_a_taken_port(home: Kbctl) -> None:
    """Exit status 3 both times, and the first daemon does not notice."""
    home("up", "--sandbox", "--port", "0")
    before = len(home.said)
    home("up", "--sandbox", "--port", "0", "--json", status=REFUSED)
    assert json.loads(home.said[before:])["error"]["code"] == "home_in_use"
    assert home.json("status")["state"] == "serving"
    home("down")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        kbctl_said = len(home.said)
        home("up", "--sandbox", "--port", str(port), "--json", status=REFUSED)
    error = json.loads(home.said[kbctl_said:])["error"]
    assert (error["code"], str(port) in error["message"]) == ("port_taken", True)
    home("up", "--sandbox", "--port", str(port))


def test_a_stale_socket_is_taken_away_and_anything_else_is_not(home: Kbctl) -> None:
    """What a killed daemon left is no obstacle; a file of somebody's is."""
    home("up", "--sandbox", "--port", "0")
    home.kill()
    assert Home(home.home).socket.is_socket()
    home("status", status=UNREACHABLE)
    home("up", "--sandbox", "--port", "0")
    home("down")

    Home(home.home).socket.write_text("mine")
    assert refused(home, REFUSED, "--sandbox")["code"] == "socket_in_the_way"
    assert Home(home.home).socket.read_text() == "mine"


def test_a_home_with_a_long_path_works(home: Kbctl) -> None:
    """A UNIX socket's path has about a hundred bytes; the socket then lies in a private temporary folder."""
    far = home.home / ("long-" * 20) / "home"
    far.mkdir(parents=True)
    long = Kbctl(far)
    long("up", "--sandbox", "--port", "0")
    try:
        assert long.json("status")["socket"] != str(far / "kbctl.sock")
        assert long("issue", "--cap", "5").startswith("vault_key_")
    finally:
        long("down")


VENDOR = """
schema = 1
name = "mail"
title = "Mail"
docs = "https://example.com"
origin = "https://api.example.com"
body = "form"
error_shape = "stripe"
request_id_header = "X-Request-Id"
roots = ["/v1/"]
[auth]
scheme = "bearer"
[[operation]]
name = "mails.send"
match = "POST /v1/mails"
cost = { kind = "free" }
"""


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("config.toml", "port = ", "not TOML"),
        ("config.toml", "prot = 1", "unknown field `prot`"),
        ("config.toml", "port = 70000", "`$.port`"),
        ("config.toml", 'port = "x"', "`$.port`"),
        (
            "config.toml",
            '[secrets]\nbackend = "plain"',
            "os-keyring, systemd-credential, passphrase or keyfile",
        ),
        ("config.toml", "[limits]\nbody_bytes = 1", "`$.limits.body_bytes`"),
        ("config.toml", "[rates]\nEURO = 1.1", "three-letter"),
        ("config.toml", "[rates]\nEUR = -1", "the rate of EUR"),
        ("config.toml", 'default_vendors = ["nope"]', "stripe"),
        ("config.toml", 'ca_file = "/nowhere.pem"', "/nowhere.pem"),
        ("vendors/mail.toml", VENDOR.replace("schema = 1", "schema = 2"), "`$.schema`"),
        ("vendors/mail.toml", VENDOR.replace('"free"', '"cheap"'), "free, amount, increase, "),
        ("vendors/mail.toml", VENDOR.replace("https://api", "http://api"), "`origin`"),
        ("vendors/mail.toml", VENDOR + "colour = 1", "unknown field `colour`"),
        ("vendors/mail.toml", VENDOR.replace('"mail"', '"stripe"'), "`name`"),
        ("vendors/post.toml", VENDOR, "`name` is mail"),
    ],
)
def test_a_broken_config_or_vendor_file_stops_the_start(home: Kbctl, file: str, text: str, says: str) -> None:
    """Exit status 2, naming the file, the key and what it takes."""
    path = home.home / file
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)

    error = refused(home, USAGE, "--sandbox")

    assert str(path) in error["message"]
    assert says in error["message"]


def test_a_config_that_others_can_read_or_change_stops_the_start(home: Kbctl) -> None:
    """Owner-only or refused; the remedy mends it as typed."""
    path = home.home / "config.toml"
    path.write_text("port = 0\n")
    path.chmod(0o644)

    error = refused(home, USAGE, "--sandbox")

    assert error["code"] == "config_exposed"
    subprocess.run(["sh", "-c", error["remedy"]], check=True)
    home("up", "--sandbox")


@pytest.mark.parametrize(
    "url", ["http://example.com", "https://10.0.0.1:9", "ftp://127.0.0.1", "http://127.0.0.1:9/path", "x"]
)
def test_an_upstream_that_is_not_on_this_machine_is_refused(home: Kbctl, url: str) -> None:
    """A vendor's calls go to its own origin or to a loopback mock, nowhere else."""
    refused(home, USAGE, "--upstream", f"stripe={url}")


def test_an_operator_s_own_vendor_works_without_code(home: Kbctl) -> None:
    """A TOML file in the home, a credential, a key: the call arrives with the real secret."""
    folder = home.home / "vendors"
    folder.mkdir(mode=0o700)
    (folder / "mail.toml").write_text(VENDOR)
    (folder / "mail.toml").chmod(0o600)
    script = (
        "import socket,sys\n"
        "s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=True)\n"
        "c,_=s.accept(); data=c.recv(65536)\n"
        "c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}')\n"
        "print(data.split(b'\\r\\n')[0].decode(), flush=True); print(b'Bearer mail_secret_1' in data)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        home("up", "--port", "0", "--upstream", f"mail=http://127.0.0.1:{port}")
        home("credential", "set", "mail", stdin="mail_secret_1\n")
        key = home("issue", "--cap", "5").strip()
        proxy = int(home.json("status")["proxy_url"].rpartition(":")[2])
        status, _ = asyncio.run(post(proxy, "/mail/v1/mails", key, "to=a%40example.com"))
        assert status == 200
        assert server.stdout.read().split() == ["POST", "/v1/mails", "HTTP/1.1", "True"]


def test_files_and_folders_of_a_home_are_private(home: Kbctl, tmp_path: Path) -> None:
    """Also in a folder that was made by hand, open to all."""
    folder = home.home / "open"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    own = Kbctl(folder)
    own("up", "--port", "0")
    try:
        modes = {path.name: path.lstat().st_mode & 0o077 for path in [folder, *folder.rglob("*")]}
    finally:
        own("down")
    assert set(modes.values()) == {0}
    assert "secrets.key" in modes
    shutil.rmtree(folder)
