"""The daemon as a process: hardened, private, ready when it says so, and gone when it was told to go."""

import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import kbctld
from kbctl import wire
from tests.daemon.support import locked, stored

NOBODY = 65534


@dataclass
class Running:
    """A daemon that said it was ready."""

    process: "subprocess.Popen[bytes]"
    status: wire.Status

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        with httpx.Client(transport=httpx.HTTPTransport(uds=self.status.socket)) as http:
            return http.request(method, f"http://localhost{path}", json=body)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


def launch(
    home: Path,
    *arguments: str,
    program: tuple[str, ...] = ("-m", "kbctld"),
    told: dict[str, str] | None = None,
    **options: Any,
) -> tuple["subprocess.Popen[bytes]", wire.Started | None]:
    """Start a daemon and wait for its one line."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        process = subprocess.Popen(
            [sys.executable, *program, "--home", str(home), "--report-fd", str(writing), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.environ["PATH"], "HOME": str(home), **(told or {})},
            pass_fds=(writing,),
            **options,
        )
        os.close(writing)
        line = pipe.readline()
    return process, wire.decode(line, wire.Started) if line else None


@contextmanager
def running(home: Path, *arguments: str, **options: Any) -> Iterator[Running]:
    process, started = launch(home, "--port", "0", *arguments, **options)
    try:
        assert started is not None
        assert started.status is not None, started.error
        yield Running(process, started.status)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def refused(home: Path, *arguments: str) -> tuple[int, wire.ErrorBody]:
    """It must not start: its exit status and what it reported, which agree, and no socket."""
    process, started = launch(home, "--port", "0", *arguments)
    status = process.wait(20)
    assert started is not None
    assert started.error is not None
    assert started.exit_status == status
    assert started.error.remedy
    assert not (home / "kbctl.sock").is_socket()
    return status, started.error


# --- ready, and gone --------------------------------------------------------------------------------------


def test_ready_means_that_both_doors_answer(folder: Path) -> None:
    """The first connection after the word is served, on the port and on the socket that it reported."""
    with running(folder, "--sandbox") as daemon:
        status = daemon.status
        assert (status.pid, status.home, status.state) == (daemon.process.pid, str(folder), "serving")
        assert status.keyring == "memory only (sandbox)"
        assert status.socket == str(folder / "kbctl.sock")
        assert "stripe" in {upstream.vendor for upstream in status.upstreams}
        with httpx.Client(trust_env=False) as http:
            assert http.get(f"{status.proxy_url}/stripe/v1/balance").status_code == 401
        assert daemon.ask("GET", "/healthz").json() == {"ok": True}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_F4_a_signal_ends_it_in_order(folder: Path, number: signal.Signals) -> None:
    """Exit status 0; port, socket and lock are free, and the write-ahead log is in the database."""
    with running(folder, "--sandbox") as daemon:
        daemon.ask("POST", "/vault/keys", {"daily_usd_cap": 5})
        port = int(daemon.status.proxy_url.rpartition(":")[2])
        assert daemon.end(number) == 0
        assert not (folder / "kbctl.sock").exists()
        assert not list(folder.rglob("*-wal"))
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))
    with running(folder, "--sandbox") as daemon:
        assert len(daemon.ask("GET", "/vault/keys").json()["keys"]) == 1


def test_nobody_waiting_for_the_word_is_no_reason_to_end(folder: Path) -> None:
    """The `kbctl up` that started it was interrupted."""
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kbctld", "--home", str(folder), "--sandbox", "--port", "0"),
            *("--report-fd", str(writing)),
        ],
        stderr=subprocess.DEVNULL,
        pass_fds=(writing,),
    )
    os.close(writing)
    try:
        log = folder / "kbctld.log"
        for _ in range(500):
            if log.exists() and "serving on" in log.read_text():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.02)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_shutdown_over_the_socket_answers_first(folder: Path) -> None:
    """Who asks for it is told what was in flight."""
    with running(folder, "--sandbox") as daemon:
        assert daemon.ask("POST", "/shutdown").json() == {"pid": daemon.process.pid, "in_flight": 0}
        assert daemon.process.wait(20) == 0


@contextmanager
def in_flight(daemon: Running, slow: socket.socket) -> Iterator[None]:
    """A call that its vendor does not answer."""
    daemon.ask("PUT", "/credentials/stripe", {"secret": "sk_test_slow"})
    key = daemon.ask("POST", "/vault/keys", {"vendor": "stripe", "daily_usd_cap": 5}).json()["vault_key"]
    port = int(daemon.status.proxy_url.rpartition(":")[2])
    body = b"amount=100&currency=usd"
    with socket.create_connection(("127.0.0.1", port)) as agent:
        agent.sendall(
            b"POST /v1/payment_intents HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %b\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%b"
            % (port, key.encode(), len(body), body)
        )
        slow.settimeout(10)
        vendor, _ = slow.accept()
        with vendor:
            assert vendor.recv(4096)
            yield


@pytest.mark.parametrize("signals", [1, 2])
def test_F4_stopping_waits_ten_seconds_at_most_and_a_second_signal_not_at_all(
    folder: Path, signals: int
) -> None:
    """The call under way keeps its hold, keys can be revoked meanwhile, and nothing is lost."""
    with socket.create_server(("127.0.0.1", 0)) as slow:
        upstream = f"stripe=http://127.0.0.1:{slow.getsockname()[1]}"
        with running(folder, "--upstream", upstream) as daemon, in_flight(daemon, slow):
            began = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert daemon.process.poll() is None
            assert daemon.ask("GET", "/status").json()["state"] == "draining"
            if signals == 2:
                daemon.process.send_signal(signal.SIGTERM)
            assert daemon.process.wait(20) == 0
            took = time.monotonic() - began
        assert took < 3 if signals == 2 else 9 < took < 12
    assert stored(folder, "SELECT outcome, amount_nano FROM call") in (
        [("unknown", 10**9)],
        [("pending", 10**9)],
    )
    with running(folder) as daemon:
        assert daemon.ask("GET", "/status").json()["unknown_calls"] == 1


# --- what stops a start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_T1_a_home_that_others_can_change_is_refused(folder: Path, mode: int) -> None:
    """Somebody may have put something there already."""
    folder.chmod(mode)
    status, error = refused(folder)
    assert (status, error.code) == (3, "home_exposed")
    assert not (folder / "kbctl.db").exists()


def test_T1_a_home_that_others_can_only_read_is_closed_and_used(folder: Path) -> None:
    """A folder made by hand."""
    folder.chmod(0o755)
    with running(folder, "--sandbox"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_T1_a_home_of_somebody_else_is_refused(folder: Path) -> None:
    """Its owner could exchange every file in it."""
    home = folder / "theirs"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    assert refused(home)[1].code == "home_exposed"


def test_a_home_that_is_no_folder_is_refused(folder: Path) -> None:
    """A file of that name."""
    home = folder / "file"
    home.write_text("mine")
    status, error = refused(home)
    assert (status, error.code) == (3, "home_unusable")
    assert home.read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_T1_what_lies_in_the_socket_s_place_is_left_there(folder: Path, kind: str) -> None:
    """Only a socket of ours is taken away."""
    path = folder / "kbctl.sock"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(folder / "elsewhere")
    status, error = refused(folder, "--sandbox")
    assert (status, error.code) == (3, "socket_in_the_way")
    assert path.is_symlink() or path.exists()
    assert not (folder / "elsewhere").exists()


def test_D11_a_database_that_another_process_holds_stops_the_start_within_seconds(folder: Path) -> None:
    """Not called damaged: nobody shall move a healthy file away."""
    with running(folder, "--sandbox") as daemon:
        daemon.end()
    with locked(folder / "sandbox"):
        status, error = refused(folder, "--sandbox")
    assert (status, error.code) == (3, "database_locked")
    with running(folder, "--sandbox"):
        pass


@pytest.mark.parametrize(
    "upstream", ["stripe=http://[::1", "stripe=http://10.0.0.1:1", "nobody=http://127.0.0.1:1"]
)
def test_an_upstream_that_can_not_be_stops_the_start(folder: Path, upstream: str) -> None:
    """A usage error, before anything was made."""
    status, _ = refused(folder, "--upstream", upstream)
    assert status == 2
    assert not (folder / "kbctl.db").exists()


def test_D11_a_second_daemon_is_refused_before_it_touches_anything(folder: Path) -> None:
    """It names the first one, whose socket and database stay as they are."""
    with running(folder, "--sandbox") as first:
        process, started = launch(folder, "--port", "0", "--sandbox")
        assert process.wait(20) == 3
        assert started is not None
        assert started.error is not None
        assert started.error.code == "home_in_use"
        assert str(first.process.pid) in started.error.message
        assert first.ask("GET", "/healthz").status_code == 200


# --- P24 --------------------------------------------------------------------------------------------------


PROBE = """
import ctypes, json, os, sys
pid = int(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
seen = {}
for name in ("environ", "mem", "maps", "fd"):
    try:
        os.listdir(f"/proc/{pid}/{name}") if name == "fd" else open(f"/proc/{pid}/{name}", "rb").read(1)
        seen[name] = "open"
    except PermissionError:
        seen[name] = "refused"
    except OSError as error:
        seen[name] = str(error.errno)
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
if libc.ptrace(PTRACE_ATTACH, pid, 0, 0) == 0:
    os.waitpid(pid, 0x40000000)
    libc.ptrace(PTRACE_DETACH, pid, 0, 0)
    seen["ptrace"] = "open"
else:
    seen["ptrace"] = "refused"
print(json.dumps(seen))
"""

AS_NOBODY = """
import _strptime, ctypes, encodings.idna, importlib.resources, os, sys
import kbctld.__main__ as daemon
importlib.resources.files("kbctld")  # what is loaded later may lie where only root can read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
PR_SET_DUMPABLE = 4
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as after an exec: becoming another user had cleared it
if sys.argv[1:] == ["plain"]:
    print("here", flush=True)
    sys.stdin.read()
else:
    sys.exit(daemon.main())
"""


def probe(pid: int) -> dict[str, str]:
    """What a program of the user nobody may see of a process of the same user."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(pid)], capture_output=True, text=True, check=True, cwd="/"
    )
    return dict(json.loads(done.stdout))


@contextmanager
def home_of_nobody() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="kb-"))
    os.chown(home, NOBODY, NOBODY)
    try:
        yield home
    finally:
        shutil.rmtree(home)


@pytest.mark.skipif(os.getuid() != 0 or sys.platform != "linux", reason="needs root, to become another user")
def test_P24_a_program_of_the_same_user_can_not_look_into_it() -> None:
    """environ, mem, maps, open files and ptrace are refused; a plain process of that user shows itself."""
    package = Path(kbctld.__file__).parent
    if not all(folder.stat().st_mode & 0o001 for folder in [package, *package.parents]):
        pytest.skip("the package lies where only its owner may read")
    with home_of_nobody() as home:
        plain = subprocess.Popen(
            [sys.executable, "-c", AS_NOBODY, "plain"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        assert plain.stdout is not None
        assert plain.stdout.readline() == b"here\n"
        control = probe(plain.pid)
        plain.communicate(b"")
        with running(home, "--sandbox", program=("-c", AS_NOBODY)) as daemon:
            seen = probe(daemon.process.pid)
            assert daemon.ask("GET", "/healthz").status_code == 200
    assert control["environ"] == control["maps"] == control["fd"] == "open", control
    assert set(seen.values()) == {"refused"}, seen


@pytest.mark.skipif(sys.platform != "linux", reason="reads limits of another process")
def test_P24_no_core_is_dumped_and_no_file_is_for_others(folder: Path) -> None:
    """Everything that a used home holds is 0600 or 0700, the socket too, whatever the umask was."""
    with running(folder, umask=0o000) as daemon:
        daemon.ask("PUT", "/credentials/stripe", {"secret": "sk_test_canary_0123456789"})
        daemon.ask("POST", "/vault/keys", {"daily_usd_cap": 5})
        assert resource.prlimit(daemon.process.pid, resource.RLIMIT_CORE) == (0, 0)
        modes = {
            str(path.relative_to(folder)): (path.is_dir(), stat.S_IMODE(path.lstat().st_mode))
            for path in [folder, *folder.rglob("*")]
        }
        assert set(modes.values()) == {(True, 0o700), (False, 0o600)}, modes
        wanted = {"kbctl.sock", "kbctl.db", "kbctl.db-wal", "kbctl.anchor", "kbctld.log", "kbctld.lock"}
        assert wanted <= set(modes)
        assert b"canary" not in Path(f"/proc/{daemon.process.pid}/cmdline").read_bytes()


def test_what_first_use_chose_stays_chosen(folder: Path) -> None:
    """The place for secrets is recorded once, and announced once."""
    with running(folder) as daemon:
        first = daemon.status.keyring
        daemon.end()
    recorded = stored(folder, "SELECT value FROM meta WHERE key = 'secrets_backend'")
    with running(folder) as daemon:
        assert daemon.status.keyring == first
        assert daemon.status.notices == []
    assert len(recorded) == 1
