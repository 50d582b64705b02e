"""sd_notify on a real datagram socket: ready when it is, the watchdog only while calls can be recorded."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kbctld.notify import Notifier
from tests.daemon.test_process import running
from tests.support.loop import run


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + address[1:] if address[0] == "@" else address)
        listening.settimeout(10)
        yield listening


def heard(listening: socket.socket, wanted: str) -> list[str]:
    """What is said up to a message that has this line."""
    told: list[str] = []
    while not told or wanted not in told[-1].split("\n"):
        told.append(listening.recv(4096).decode())
    return told


@pytest.mark.parametrize("abstract", [False, True])
def test_a_manager_hears_of_the_start_and_of_the_end(folder: Path, abstract: bool) -> None:
    address = f"@kbctl-test-{os.getpid()}" if abstract else str(folder / "notify")
    told = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000"}
    home = folder / "home"
    home.mkdir(0o700)
    with manager(address) as listening, running(home, "--sandbox", told=told) as daemon:
        before = heard(listening, "READY=1")
        assert not any("WATCHDOG=1" in message for message in before)
        assert f"STATUS=serving on {daemon.status.proxy_url}" in before[-1]
        began = time.monotonic()
        for _ in range(5):
            heard(listening, "WATCHDOG=1")
        assert 0.2 < time.monotonic() - began < 5
        assert daemon.end(signal.SIGTERM) == 0
        heard(listening, "STOPPING=1")


def test_the_watchdog_hears_nothing_of_a_daemon_that_can_not_record(folder: Path) -> None:
    """Nor of one whose loop hangs: the word comes from the loop itself."""

    async def main() -> tuple[int, int]:
        import asyncio

        well = True
        notifier = Notifier({"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "60000"})
        watching = asyncio.ensure_future(notifier.watch(lambda: well))
        await asyncio.sleep(0.2)
        first = drained(listening)
        well = False
        await asyncio.sleep(0.2)
        second = drained(listening)
        well = True
        time.sleep(0.2)  # noqa: ASYNC251 - the loop hangs
        assert "WATCHDOG=1" not in drained(listening)
        watching.cancel()
        notifier.close()
        return first.count("WATCHDOG=1"), second.count("WATCHDOG=1")

    with manager(str(folder / "notify")) as listening:
        alive, dead = run(main())
    assert alive >= 5
    assert dead <= 1


def drained(listening: socket.socket) -> list[str]:
    listening.setblocking(False)
    told: list[str] = []
    while True:
        try:
            told += listening.recv(4096).decode().split("\n")
        except BlockingIOError:
            return told


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "many"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"},
    ],
)
def test_nobody_who_listens_stops_nothing(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    notifier.tell("READY=1")
    notifier.close()
    assert notifier.watchdog_s is None
    assert environ == {}
