"""P21, P22, D12: more than it can take. It sheds, keeps each key its share, and recovers."""

import asyncio
import json
import os
import resource
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from kbctld.core.vault_key import mint
from tests.e2e.support import SECRET, Kbctl, RawVendor, exchange, new_home

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"id":"pi_1"}'


class Vendor(RawVendor):
    """Answers at once, but for who asks for its ``slow`` customer."""

    def serve(self, connection: socket.socket) -> None:
        while (asked := connection.recv(65536)) and b"amount=1" in asked:
            if b"slow" in asked:
                time.sleep(30)
            connection.sendall(OK)


@contextmanager
def served(config: str = "") -> Iterator[tuple[Kbctl, int]]:
    vendor = Vendor()
    with new_home() as kbctl:
        kbctl.home.mkdir(mode=0o700, exist_ok=True)
        (kbctl.home / "config.toml").write_text(config)
        (kbctl.home / "config.toml").chmod(0o600)
        try:
            kbctl("up", "--port", "0", "--upstream", f"stripe=http://127.0.0.1:{vendor.port}")
            kbctl("credential", "set", "stripe", stdin=SECRET + "\n")
            yield kbctl, int(kbctl.json("status")["proxy_url"].rpartition(":")[2])
        finally:
            vendor.close()


def issue(kbctl: Kbctl) -> str:
    return kbctl("issue", "--tenant", "acme", "--cap", "500").strip()


async def ask(port: int, key: str, body: str = "amount=1&currency=usd") -> int:
    return (await exchange(port, "/v1/payment_intents", key, body))[0]


async def several(port: int, key: str, count: int) -> list[float]:
    """Good calls one after the other: how long each took."""
    took = []
    for _ in range(count):
        began = time.monotonic()
        assert await ask(port, key) == 200
        took.append(time.monotonic() - began)
    return sorted(took)


def test_under_overload_it_sheds_and_another_key_keeps_its_share() -> None:
    """One agent has all connections at work: its next calls are shed, somebody else's go through."""
    with served("[limits]\nconnections = 20\n") as (kbctl, port):
        hog, other = issue(kbctl), issue(kbctl)

        async def main() -> None:
            slow = [
                asyncio.ensure_future(ask(port, hog, f"amount=1&currency=usd&customer=slow{n}"))
                for n in range(20)
            ]
            while kbctl.json("status")["in_flight"] < 20:
                await asyncio.sleep(0.05)
            # Beyond its share while there is nobody else, too: the bound is on all of them.
            for _ in range(5):
                status, answer = await exchange(port, "/v1/payment_intents", hog, "amount=1&currency=usd")
                assert (status, json.loads(answer)["error"]["code"]) == (503, "overloaded")
                assert await ask(port, other) == 200
            for each in slow:
                each.cancel()
            await asyncio.gather(*slow, return_exceptions=True)

        asyncio.run(main())
        rows = kbctl.json("audit", "--denied")
        assert {row["policy_check_result"] for row in rows} == {"overloaded"}
        assert sum(1 + row["folded"] for row in rows) == 5  # every one has its row


def test_P21_slow_clients_do_not_slow_the_others() -> None:
    """500 that never end their head, 100 that drip their body, 100 that never read."""
    with served("[limits]\nhead_s = 4.0\n") as (kbctl, port), ExitStack() as stack:
        key = issue(kbctl)
        before = asyncio.run(several(port, key, 100))
        memory = rss_mb(kbctl)

        def client(text: bytes) -> socket.socket:
            made = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            made.sendall(text)
            return made

        head = b"POST /v1/payment_intents HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % port
        slow = [client(head) for _ in range(500)]
        body = (
            b"Authorization: Bearer %b\r\nContent-Type: application/x-www-form-urlencoded\r\n" % key.encode()
        )
        drip = [client(head + body + b"Content-Length: 500\r\n\r\n") for _ in range(100)]
        for _ in range(100):
            client(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port * 20)
        for each in drip:
            each.sendall(b"a")
        meanwhile = asyncio.run(several(port, key, 100))
        assert meanwhile[98] <= max(2 * before[98], 0.25)
        assert rss_mb(kbctl) - memory <= 50
        time.sleep(4)
        cut = 0
        for each in slow:
            each.settimeout(2)
            cut += each.recv(65536)[:12] == b"HTTP/1.1 400"
        assert cut == 500


def test_P22_a_flood_of_unknown_keys_is_no_flood_of_rows() -> None:
    """After the first thousand of a minute they are counted, not written."""
    with served() as (kbctl, port):
        key = issue(kbctl)
        unknown = [mint(os.urandom(32)) for _ in range(4000)]

        async def flood(part: list[str]) -> Counter[int]:
            return Counter([await ask(port, each) for each in part])

        async def main() -> tuple[Counter[int], list[float]]:
            flooding = asyncio.gather(*(flood(unknown[start::16]) for start in range(16)))
            took = await several(port, key, 50)
            answers = sum(await flooding, Counter[int]())
            return answers, took

        answers, _ = asyncio.run(main())
        assert answers == {401: 4000}
        kbctl("down")
        with closing(sqlite3.connect(kbctl.home / "kbctl.db")) as database:
            rows, folded = database.execute(
                "SELECT count(*), sum(folded) FROM call WHERE policy_check_result = 'key_unknown'"
            ).fetchone()
        assert rows + folded == 4000
        assert rows <= 1001


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")
def test_D12_without_free_descriptors_it_neither_dies_nor_spins_and_recovers() -> None:
    """No new connection can be taken; those there are go on, and all is well once there are some again."""
    with served() as (kbctl, port):
        key = issue(kbctl)
        assert asyncio.run(ask(port, key)) == 200
        pid = kbctl.pid()
        open_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files, before[1]))
        with ExitStack() as stack:
            for _ in range(50):
                made = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                made.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
            spent, began = cpu_s(pid), time.monotonic()
            time.sleep(3)
            share = (cpu_s(pid) - spent) / (time.monotonic() - began)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        began = time.monotonic()
        while asyncio.run(ask(port, key)) != 200:
            assert time.monotonic() - began < 5
        assert share < 0.5
        assert kbctl.pid() == pid
        assert (kbctl.home / "kbctld.log").stat().st_size < 1024 * 1024


def rss_mb(kbctl: Kbctl) -> float:
    status = Path(f"/proc/{kbctl.pid()}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
