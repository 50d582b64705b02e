"""Law 5: when `revoke` has returned, no later request of that key reaches the vendor, on no connection."""

import asyncio
import socket
import sqlite3
import time
from collections.abc import Iterator

import pytest

from kbctl.client import Client
from kbctl.paths import Home
from kbctl.wire import IssueRequest, RevokeRequest
from tests.e2e.support import SECRET, Kbctl, RawVendor, exchange, new_home

CHARGE = "amount=100&currency=usd"


class TimingVendor(RawVendor):
    """Notes when each request's first byte came in; answers after a moment."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []
        self.delay_s = 0.0
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        while data := connection.recv(65536):
            self.arrivals.append(time.monotonic())
            while CHARGE.encode() not in data:
                data += connection.recv(65536)
            time.sleep(self.delay_s)
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"id":"pi_1"}')


class Scene:
    def __init__(self, kbctl: Kbctl, vendor: TimingVendor, config: str = "") -> None:
        (kbctl.home / "config.toml").write_text(config)
        (kbctl.home / "config.toml").chmod(0o600)
        kbctl("up", "--port", "0", "--upstream", f"stripe=http://127.0.0.1:{vendor.port}")
        kbctl("credential", "set", "stripe", stdin=SECRET + "\n")
        self.kbctl = kbctl
        self.vendor = vendor
        self.client = Client(Home(kbctl.home))
        self.port = int(self.client.status().proxy_url.rpartition(":")[2])


@pytest.fixture
def scene() -> Iterator[Scene]:
    vendor = TimingVendor()
    with new_home() as kbctl:
        made = Scene(kbctl, vendor)
        yield made
        made.client.close()
    vendor.close()


async def keep_charging(port: int, key: str, until: asyncio.Event) -> list[int]:
    """Charge again and again on one kept-alive connection; the statuses."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/payment_intents HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(CHARGE)}\r\n\r\n{CHARGE}"
    )
    statuses = []
    while not until.is_set():
        writer.write(head.encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        statuses.append(int(answer[9:12]))
        length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        if statuses[-1] != 200:
            await asyncio.sleep(0.001)
    writer.close()
    return statuses


def test_F3_after_the_acknowledgement_nothing_of_the_key_is_sent(scene: Scene) -> None:
    """60 clients on open connections: not one request arrives later than the answer to the revocation."""
    doomed = scene.client.issue(IssueRequest(daily_usd_cap=1_000_000, tenant="acme"))
    other = scene.client.issue(IssueRequest(daily_usd_cap=1_000_000, tenant="globex"))
    acknowledged = 0.0

    async def play() -> tuple[list[list[int]], list[int]]:
        nonlocal acknowledged
        over = asyncio.Event()
        team = [asyncio.create_task(keep_charging(scene.port, doomed.vault_key, over)) for _ in range(60)]
        await asyncio.sleep(0.4)
        reply = await asyncio.to_thread(scene.client.revoke, doomed.key_id)
        acknowledged = time.monotonic()
        assert [key.key_id for key in reply.revoked] == [doomed.key_id]
        await asyncio.sleep(0.3)
        over.set()
        statuses = await asyncio.gather(*team)
        last = max(scene.vendor.arrivals)
        over.clear()
        bystander = asyncio.create_task(keep_charging(scene.port, other.vault_key, over))
        await asyncio.sleep(0.1)
        over.set()
        assert last <= acknowledged
        return statuses, await bystander

    statuses, bystander = asyncio.run(play())

    assert all(200 in of_client and of_client[-1] == 401 for of_client in statuses)
    for of_client in statuses:
        assert 200 not in of_client[of_client.index(401) :]
    assert set(bystander) == {200}


def test_revoke_says_what_was_in_flight_and_lets_it_end(scene: Scene) -> None:
    """Three calls with the vendor: counted, with their money, and still answered and spent."""
    scene.vendor.delay_s = 0.5
    issued = scene.client.issue(IssueRequest(daily_usd_cap=100))

    async def play() -> tuple[int, int, list[list[int]]]:
        over = asyncio.Event()
        over_soon = [asyncio.create_task(keep_charging(scene.port, issued.vault_key, over)) for _ in range(3)]
        while len(scene.vendor.arrivals) < 3:
            await asyncio.sleep(0.01)
        reply = await asyncio.to_thread(scene.client.revoke, issued.key_id)
        over.set()
        return reply.in_flight, int(reply.in_flight_usd * 100), await asyncio.gather(*over_soon)

    in_flight, cents, statuses = asyncio.run(play())

    assert (in_flight, cents) == (3, 300)
    assert statuses == [[200], [200], [200]]
    assert scene.client.key(issued.key_id).spent_usd == 3


def test_a_call_that_was_allowed_and_waits_to_be_sent_is_stopped_too() -> None:
    """Allowed, its row on disk, in line for the only connection: revoked meanwhile, it never leaves.

    Calls with one real key are in line before they have a row; two accounts meet at the connection.
    """
    vendor = TimingVendor()
    vendor.delay_s = 2
    with new_home() as kbctl:
        scene = Scene(kbctl, vendor, "[upstream]\nconnections = 1\n")
        kbctl("credential", "set", "stripe:other", stdin=SECRET + "\n")
        busy = scene.client.issue(IssueRequest(daily_usd_cap=100))
        issued = scene.client.issue(IssueRequest(daily_usd_cap=100, credential="stripe:other"))

        async def play() -> list[tuple[int, bytes]]:
            calls = []
            for key in (busy, issued):
                work = exchange(scene.port, "/v1/payment_intents", key.vault_key, CHARGE)
                calls.append(asyncio.create_task(work))
                while not vendor.arrivals:
                    await asyncio.sleep(0.01)
            while len(next(scene.client.audit())) < 2:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(scene.client.revoke, issued.key_id)
            return await asyncio.gather(*calls)

        answers = sorted(asyncio.run(play()))
        rows = kbctl.json("audit")
        scene.client.close()
    vendor.close()

    assert [status for status, _ in answers] == [200, 401]
    assert b"key_revoked" in answers[1][1]
    assert len(vendor.arrivals) == 1
    ends = {(row["policy_check_result"], row["outcome"], row["amount_usd"]) for row in rows}
    assert ends == {("allowed", "posted", 1), ("key_revoked", "voided", 0)}


def test_a_revocation_survives_kill_9_right_after_its_answer() -> None:
    """What was acknowledged is on disk."""
    vendor = TimingVendor()
    with new_home() as kbctl:
        scene = Scene(kbctl, vendor)
        keys = [scene.client.issue(IssueRequest(daily_usd_cap=5, tenant=f"t{n % 2}")) for n in range(6)]
        reply = scene.client.revoke_all(RevokeRequest(tenant="t0"))
        kbctl.kill()
        scene.client.close()
        kbctl("up", "--port", "0", "--upstream", f"stripe=http://127.0.0.1:{vendor.port}")
        listed = {key["key_id"]: key["status"] for key in kbctl.json("keys", "--status", "all")["keys"]}
    vendor.close()

    assert {key.key_id for key in reply.revoked} == {key.key_id for key in keys[::2]}
    assert [listed[key.key_id] for key in keys] == ["revoked", "active"] * 3


def test_revoke_bites_in_memory_while_the_database_is_locked_and_does_not_claim_more(scene: Scene) -> None:
    """Another process holds the write lock: the key stops at once, and success is reported only later."""
    issued = scene.client.issue(IssueRequest(daily_usd_cap=100))
    holder = sqlite3.connect(scene.client.status().database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(Exception, match="could not be recorded"):
            scene.client.revoke(issued.key_id)
        assert scene.client.key(issued.key_id).status == "revoked"
    finally:
        holder.execute("ROLLBACK")
        holder.close()

    assert scene.client.revoke(issued.key_id).already == [issued.key_id]
