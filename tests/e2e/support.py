"""Real processes for end-to-end tests: a daemon started by `kbctl up`, and a pretend Stripe of its own.

What must stay true: everything that is started is stopped, whatever the test does; only loopback is used;
a home's path is short enough for a UNIX socket.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

SECRET = "sk_test_CanaryCanaryCanary0123456789"  # pretend, and searched for everywhere afterwards


class Kbctl:
    """The command line of one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.said = ""
        """Everything that any command printed."""

    def __call__(self, *args: str, stdin: str = "", status: int = 0) -> str:
        """Run a command; its standard output. Anything but the expected exit status fails the test."""
        done = subprocess.run(
            [sys.executable, "-m", "kbctl", *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), "KBCTL_HOME": str(self.home)},
        )
        self.said += done.stdout + done.stderr
        assert done.returncode == status, (
            f"kbctl {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def json(self, *args: str) -> Any:
        return json.loads(self(*args, "--json"))

    def pid(self) -> int:
        return int((self.home / "kbctld.lock").read_text())

    def kill(self) -> None:
        """`kill -9`, and wait until the kernel has taken the process away."""
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)


class Agents:
    """Processes with SDKs in them, one a script, that do one task after another: importing one is slow.

    A script reads a task from each line of its input, a JSON array of texts, and prints what came of it.
    """

    def __init__(self, home: Path) -> None:
        self._env = {"PATH": os.environ["PATH"], "HOME": str(home)}
        self._running: dict[str, subprocess.Popen[str]] = {}

    def __call__(self, script: str, *task: str) -> Any:
        if script not in self._running:
            self._running[script] = subprocess.Popen(
                [sys.executable, "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self._env,
            )
        agent = self._running[script]
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdin.write(json.dumps(task) + "\n")
        agent.stdin.flush()
        return json.loads(agent.stdout.readline())

    def close(self) -> None:
        for agent in self._running.values():
            agent.communicate(timeout=60)


def wait_gone(pid: int) -> None:
    """Wait until a process that is not our child is gone (or only a zombie of somebody else's)."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} did not end")


@contextmanager
def new_home() -> Iterator[Kbctl]:
    """A private home whose daemon, if one was started, is stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="kb"))
    kbctl = Kbctl(folder)
    try:
        yield kbctl
    finally:
        try:
            os.kill(kbctl.pid(), signal.SIGTERM)
            wait_gone(kbctl.pid())
        except (FileNotFoundError, ProcessLookupError, ValueError):
            pass
        shutil.rmtree(folder, ignore_errors=True)


class PretendStripe:
    """A pretend Stripe in a process of its own, which outlives every daemon of the test."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process = process
        self.url = url

    def book(self) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}/_sandbox/book", trust_env=False)
        return dict(answer.json())

    def authorised_cents(self) -> int:
        return int(self.book()["authorised_minor"].get("usd", 0))

    def entries(self) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/_sandbox/book/entries?after=0", trust_env=False)
        return list(answer.json())


@contextmanager
def pretend_stripe(folder: Path, *, faults: bool = False) -> Iterator[PretendStripe]:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "kbctld.sandbox",
            "--port",
            "0",
            "--book",
            str(folder / "book"),
            *(["--faults"] if faults else []),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(SECRET + "\n")
        process.stdin.close()
        yield PretendStripe(process, json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


class RawVendor:
    """A vendor on a raw loopback socket, so that a test decides about every byte; a thread a connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        """What the vendor does with a connection; it is closed afterwards."""
        raise NotImplementedError

    def close(self) -> None:
        self._listener.close()
        for connection in self.connections:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        try:
            self.serve(connection)
        except OSError:
            pass  # the daemon, or the test, has hung up
        finally:
            connection.close()


async def exchange(port: int, path: str, key: str, body: str, idempotency_key: str = "") -> tuple[int, bytes]:
    """One POST on a connection of its own, as no library would send it; status 0 is no answer at all."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n"
        + (f"Idempotency-Key: {idempotency_key}\r\n" if idempotency_key else "")
        + "\r\n"
    )
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0, b""
    raw = bytearray()
    try:
        writer.write((head + body).encode())
        async with asyncio.timeout(30):  # an answer that does not end fails the test
            while piece := await reader.read(65536):
                raw += piece
    except OSError:
        pass  # cut: what came until then counts
    finally:
        writer.close()
    if not raw.startswith(b"HTTP/1.1 "):
        return 0, b""
    return int(raw[9:12]), bytes(raw).partition(b"\r\n\r\n")[2]


async def post(
    port: int, path: str, key: str, body: str, idempotency_key: str = ""
) -> tuple[int, dict[str, Any]]:
    """The same, with a JSON answer."""
    status, answer = await exchange(port, path, key, body, idempotency_key)
    return status, json.loads(answer or b"{}")
