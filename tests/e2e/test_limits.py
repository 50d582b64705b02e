"""P14, P20, P21 and streaming: every wait ends, every size is bounded, what streams stays whole and flat."""

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbctl.client import AuditFilter, Client
from kbctl.paths import Home
from kbctl.wire import IssueRequest
from tests.e2e.support import SECRET, Kbctl, RawVendor, exchange, new_home

CONFIG = """
[limits]
head_s = 0.4
body_bytes = 200000
body_grace_s = 0.5
body_bytes_per_s = 100000
write_stall_s = 1
connections = 40
in_flight_per_key = 2
turn_s = 0.3
"""
MIB = 1024 * 1024


class StreamingVendor(RawVendor):
    """`GET /v1/big` is 32 MiB, `GET /v1/drip` an event every 50 ms, anything else answers its body's hash."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.hold.set()
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        reader = connection.makefile("rb")
        while line := reader.readline():
            length = 0
            while (field := reader.readline()) not in (b"\r\n", b""):
                if field.lower().startswith(b"content-length:"):
                    length = int(field.split(b":")[1])
            digest = hashlib.sha256(reader.read(length)).hexdigest()
            self.hold.wait(10)
            if b" /v1/big " in line:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (32 * MIB))
                for number in range(32):
                    connection.sendall(bytes([number]) * MIB)
            elif b" /v1/drip " in line:
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for number in range(4):
                    event = b"data: %d\n\n" % number
                    connection.sendall(b"%x\r\n%b\r\n" % (len(event), event))
                    time.sleep(0.05)
                connection.sendall(b"0\r\n\r\n")
            else:
                answer = json.dumps({"id": "pi_1", "sha256": digest}).encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)


class Scene:
    def __init__(self, kbctl: Kbctl, vendor: StreamingVendor) -> None:
        (kbctl.home / "config.toml").write_text(CONFIG)
        (kbctl.home / "config.toml").chmod(0o600)
        kbctl("up", "--port", "0", "--upstream", f"stripe=http://127.0.0.1:{vendor.port}")
        kbctl("credential", "set", "stripe", stdin=SECRET + "\n")
        self.kbctl = kbctl
        self.vendor = vendor
        self.client = Client(Home(kbctl.home))
        self.key = self.client.issue(IssueRequest(daily_usd_cap=None))
        self.port = int(self.client.status().proxy_url.rpartition(":")[2])

    def head(self, line: str, *fields: str) -> bytes:
        named = (f"Host: 127.0.0.1:{self.port}", f"Authorization: Bearer {self.key.vault_key}", *fields)
        return "\r\n".join((f"{line} HTTP/1.1", *named, "", "")).encode()

    def talk(self, raw: bytes, wait_s: float = 5) -> tuple[bytes, float]:
        """Everything that comes back until the daemon closes, and how long that took."""
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_s) as connection:
            connection.sendall(raw)
            out = b""
            while piece := connection.recv(65536):
                out += piece
        return out, time.monotonic() - started


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    vendor = StreamingVendor()
    with new_home() as kbctl:
        made = Scene(kbctl, vendor)
        yield made
        made.client.close()
    vendor.close()


def test_P20_a_head_that_does_not_come_is_cut_on_time(scene: Scene) -> None:
    """Half a head is answered 400 and closed after head_s; a connection that says nothing is just closed."""
    out, took_s = scene.talk(scene.head("GET /v1/x")[:-2])
    assert out.startswith(b"HTTP/1.1 400 ")
    assert b"too slowly" in out
    assert 0.3 < took_s < 3
    silent, took_s = scene.talk(b"")
    assert silent == b""
    assert took_s < 3


def test_P20_a_body_below_the_least_speed_is_cut(scene: Scene) -> None:
    """The first bytes of a body and then nothing: answered and closed after the grace."""
    out, took_s = scene.talk(
        scene.head(
            "POST /v1/charges", "Content-Type: application/x-www-form-urlencoded", "Content-Length: 10"
        )
        + b"amount",
    )
    assert out.startswith(b"HTTP/1.1 400 ")
    assert b"too slowly" in out
    assert 0.4 < took_s < 4


@pytest.mark.parametrize(("size", "status"), [(200_000, 200), (200_001, 413)])
def test_P20_the_body_s_limit_is_exact(scene: Scene, size: int, status: int) -> None:
    """n bytes pass, n + 1 do not, whether announced or in chunks."""
    body = b"x" * size
    kind = "Content-Type: text/plain"
    plain, _ = scene.talk(
        scene.head("POST /v1/tokens", kind, f"Content-Length: {size}", "Connection: close") + body
    )
    assert int(plain[9:12]) == status
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    chunked, _ = scene.talk(
        scene.head("POST /v1/tokens", kind, "Transfer-Encoding: chunked", "Connection: close") + chunks
    )
    assert int(chunked[9:12]) == status


def test_P20_connections_that_ask_nothing_make_room_for_one_that_does(scene: Scene) -> None:
    """With 40 open and half a request on each, the next is served; the one idle for longest goes."""
    connections = []
    try:
        for _ in range(40):
            connections.append(socket.create_connection(("127.0.0.1", scene.port), timeout=5))
            connections[-1].sendall(b"G")
        time.sleep(0.1)
        out, _ = scene.talk(scene.head("GET /v1/x", "Connection: close"))
        assert out.startswith(b"HTTP/1.1 200 ")
        assert closed(connections[0])
        assert not closed(connections[-1])
    finally:
        for connection in connections:
            connection.close()
    time.sleep(0.1)
    out, _ = scene.talk(scene.head("GET /v1/x", "Connection: close"))
    assert out.startswith(b"HTTP/1.1 200 ")


def closed(connection: socket.socket) -> bool:
    """Whether the other end has closed it."""
    connection.settimeout(0.5)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_P20_calls_of_a_key_beyond_its_places_wait_and_are_then_refused(scene: Scene) -> None:
    """Two places: the third waits its turn and is refused when none comes free; other keys go on."""
    other = scene.client.issue(IssueRequest(daily_usd_cap=None))
    scene.vendor.hold.clear()

    async def play() -> tuple[list[int], int]:
        def call(key: str) -> "asyncio.Task[tuple[int, bytes]]":
            return asyncio.create_task(exchange(scene.port, "/v1/customers", key, "a=b"))

        calls = [call(scene.key.vault_key) for _ in range(4)]
        await asyncio.sleep(0.6)
        elsewhere = call(other.vault_key)
        await asyncio.sleep(0.1)
        scene.vendor.hold.set()
        return [(await made)[0] for made in calls], (await elsewhere)[0]

    statuses, elsewhere = asyncio.run(play())

    assert sorted(statuses) == [200, 200, 429, 429]
    assert elsewhere == 200


def test_P20_calls_beyond_the_operator_s_rate_of_a_vendor_are_refused() -> None:
    """Two writes an hour of all keys together: the third waits and is refused; reads have no rate here."""
    vendor = StreamingVendor()
    with new_home() as kbctl:
        config = kbctl.home / "config.toml"
        config.write_text('[limits]\nturn_s = 0.2\n[vendor_rates.stripe]\nwrite = "2/h"\n')
        config.chmod(0o600)
        kbctl("up", "--port", "0", "--upstream", f"stripe=http://127.0.0.1:{vendor.port}")
        kbctl("credential", "set", "stripe", stdin=SECRET + "\n")
        keys = [kbctl("issue", "--cap", "5").strip() for _ in range(3)]
        port = int(kbctl.json("status")["proxy_url"].rpartition(":")[2])
        answers = [asyncio.run(exchange(port, "/v1/customers", key, "a=b")) for key in keys]
    vendor.close()

    assert [status for status, _ in answers] == [200, 200, 429]
    assert b"stripe takes 2/h writes of this account" in answers[-1][1]


def test_a_large_upload_streams_by_whole(scene: Scene) -> None:
    """Nothing in it decides, so it is not kept: the vendor receives every byte."""
    key = scene.client.issue(IssueRequest(daily_usd_cap=None, allowed_endpoints=["POST /v1/unlisted"]))
    body = os.urandom(199_000)
    head = scene.head(
        "POST /v1/unlisted", "Content-Type: image/png", f"Content-Length: {len(body)}", "Connection: close"
    )
    out, _ = scene.talk(head.replace(scene.key.vault_key.encode(), key.vault_key.encode()) + body)
    assert out.startswith(b"HTTP/1.1 200 ")
    assert hashlib.sha256(body).hexdigest().encode() in out


def test_a_large_answer_streams_down_whole_and_memory_stays_flat(scene: Scene) -> None:
    """32 MiB to an agent that reads slowly: byte-identical, and the daemon holds only a little of it."""
    before = rss_kib(scene.kbctl.pid())
    wanted = hashlib.sha256(b"".join(bytes([number]) * MIB for number in range(32)))
    digest, peak = hashlib.sha256(), before
    with socket.create_connection(("127.0.0.1", scene.port), timeout=10) as connection:
        connection.sendall(scene.head("GET /v1/big", "Connection: close"))
        time.sleep(0.3)  # the vendor would have sent all of it by now
        peak = max(peak, rss_kib(scene.kbctl.pid()))
        data = connection.recv(65536)
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        digest.update(data.partition(b"\r\n\r\n")[2])
        while piece := connection.recv(MIB):
            digest.update(piece)
    assert digest.digest() == wanted.digest()
    assert peak - before < 8 * 1024


def test_events_pass_as_they_come(scene: Scene) -> None:
    """The first event is there long before the last one was made."""
    arrivals = []
    with socket.create_connection(("127.0.0.1", scene.port), timeout=10) as connection:
        connection.sendall(scene.head("GET /v1/drip", "Connection: close"))
        while piece := connection.recv(65536):
            arrivals.extend([time.monotonic()] * piece.count(b"data: "))
    assert len(arrivals) == 4
    assert arrivals[-1] - arrivals[0] > 0.1


def test_an_agent_that_reads_nothing_is_cut_and_its_call_still_ends(scene: Scene) -> None:
    """After write_stall_s the connection is dropped; the vendor's answer is heard to its end and settles."""
    connection = socket.create_connection(("127.0.0.1", scene.port), timeout=10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(scene.head("GET /v1/big"))
    deadline = time.monotonic() + 15
    outcome = ""
    while outcome != "posted" and time.monotonic() < deadline:
        time.sleep(0.1)
        ((row,),) = scene.client.audit(AuditFilter(key=scene.key.key_id, limit=1))
        outcome = row.outcome
    connection.close()
    assert outcome == "posted"


def test_P14_the_environment_chooses_neither_proxy_nor_certificates(tmp_path: Path) -> None:
    """A daemon started under hostile variables: the canary proxy gets no byte, no TLS key is logged."""
    heard = []
    canary = socket.create_server(("127.0.0.1", 0))
    canary.settimeout(0.1)
    url = f"http://127.0.0.1:{canary.getsockname()[1]}"
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(f"open({str(tmp_path / 'spied')!r}, 'w')")
    vendor = StreamingVendor()
    hostile = {
        **dict.fromkeys(
            ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), url
        ),
        "SSLKEYLOGFILE": str(tmp_path / "keys.log"),
        "SSL_CERT_FILE": str(tmp_path / "none.pem"),
        "NETRC": str(tmp_path / "netrc"),
        "PYTHONPATH": str(spy),
        "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
    }
    with new_home() as kbctl:
        environment = {"PATH": os.environ["PATH"], "HOME": str(kbctl.home), "KBCTL_HOME": str(kbctl.home)}
        up = [sys.executable, "-E", "-P", "-m", "kbctl", "up", "--port", "0"]
        subprocess.run(
            [*up, "--upstream", f"stripe=http://127.0.0.1:{vendor.port}"],
            env={**environment, **hostile},
            check=True,
            capture_output=True,
            timeout=60,
        )
        daemon = Path(f"/proc/{kbctl.pid()}/environ").read_bytes()
        kbctl("credential", "set", "stripe", stdin=SECRET + "\n")
        key = kbctl("issue", "--cap", "5").strip()
        port = int(kbctl.json("status")["proxy_url"].rpartition(":")[2])
        status, _ = asyncio.run(exchange(port, "/v1/payment_intents", key, "amount=100&currency=usd"))
    vendor.close()
    try:
        heard.append(canary.accept())
    except TimeoutError:
        pass
    canary.close()

    assert status == 200
    assert heard == []
    assert not (tmp_path / "keys.log").exists()
    assert not (tmp_path / "spied").exists()
    assert not any(name.encode() in daemon for name in hostile)


def rss_kib(pid: int) -> int:
    return next(
        int(line.split()[1])
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
