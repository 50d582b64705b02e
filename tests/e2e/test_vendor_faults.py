"""L5, P13, P15-P17: what a vendor can do to us, and what each proves about the money.

A scripted vendor on a raw socket does what the request's metadata asks of it. Whatever it does: the agent
gets an answer in the vendor's shape, the row tells how it ended, and a hold is released only by a definite
refusal or when nothing had been sent.
"""

import asyncio
import base64
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from kbctl.client import AuditFilter, Client
from kbctl.paths import Home
from kbctl.wire import IssueRequest
from tests.e2e.support import SECRET, Kbctl, RawVendor, exchange, new_home

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nRequest-Id: req_1\r\n"
BODY = b'{"id":"pi_1","object":"payment_intent"}'


def whole(head: bytes = OK, body: bytes = BODY, more: bytes = b"") -> bytes:
    return head + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


def status_line(line: bytes) -> bytes:
    return OK.replace(b"200 OK", line)


def in_chunks(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


Behaviour = Callable[[socket.socket], None]


def says(data: bytes) -> Behaviour:
    return lambda connection: connection.sendall(data)


def says_and_closes(data: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.close()

    return behave


def resets(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def is_silent(connection: socket.socket) -> None:
    time.sleep(1.5)  # longer than the first byte may take here


def stalls(connection: socket.socket) -> None:
    connection.sendall(OK + b"Content-Length: 100\r\n\r\n{")
    time.sleep(1.5)


ECHO = b'{"error":{"message":"Invalid API Key provided: %b"}}'
RAW = SECRET.encode()
KEPT, RELEASED, SPENT = "unknown", "voided", "posted"

# what it does: (behaviour, the agent's status, the agent's code, the row's outcome)
CASES: dict[str, tuple[Behaviour, int, str, str]] = {
    "success": (says(whole()), 200, "", SPENT),
    "success in chunks": (says(in_chunks(BODY, 7)), 200, "", SPENT),
    "204": (says(status_line(b"204 No Content") + b"\r\n"), 204, "", SPENT),
    "interim answers first": (says(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 8 + whole()), 200, "", SPENT),
    "400": (says(whole(status_line(b"400 Bad Request"))), 400, "", RELEASED),
    "402": (says(whole(status_line(b"402 Payment Required"))), 402, "", RELEASED),
    "404": (says(whole(status_line(b"404 Not Found"))), 404, "", RELEASED),
    "429": (says(whole(status_line(b"429 Too Many Requests"))), 429, "", RELEASED),
    "409": (says(whole(status_line(b"409 Conflict"))), 409, "", KEPT),
    "500": (says(whole(status_line(b"500 Oops"))), 500, "", KEPT),
    "503": (says(whole(status_line(b"503 Busy"))), 503, "", KEPT),
    "301": (
        says(whole(status_line(b"301 Moved"), b"", b"Location: http://evil/\r\n")),
        502,
        "upstream_redirect",
        KEPT,
    ),
    "307": (
        says(whole(status_line(b"307 There"), b"", b"Location: /v1/x\r\n")),
        502,
        "upstream_redirect",
        KEPT,
    ),
    "304": (says(status_line(b"304 Not Modified") + b"\r\n"), 502, "upstream_redirect", KEPT),
    "close without an answer": (says_and_closes(b""), 502, "upstream_unreachable", KEPT),
    "reset without an answer": (resets, 502, "upstream_unreachable", KEPT),
    "silence": (is_silent, 504, "upstream_timeout", KEPT),
    "stalled body": (stalls, 504, "upstream_timeout", KEPT),
    "half a head": (says_and_closes(OK[:30]), 502, "upstream_unreachable", KEPT),
    "half a body": (says_and_closes(OK + b"Content-Length: 100\r\n\r\n{"), 502, "upstream_invalid", KEPT),
    # An answer of unknown length is passed on as it comes: where it goes wrong, it is cut.
    "half the chunks": (says_and_closes(in_chunks(BODY, 7)[:-9]), 200, "", KEPT),
    "bad chunk": (
        says(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
        200,
        "",
        KEPT,
    ),
    "garbage": (says(b"SSH-2.0-OpenSSH_9.2\r\n"), 502, "upstream_invalid", KEPT),
    "length and chunks": (says(whole(more=b"Transfer-Encoding: chunked\r\n")), 502, "upstream_invalid", KEPT),
    "two lengths": (says(whole(more=b"Content-Length: 5\r\n")), 502, "upstream_invalid", KEPT),
    "no length": (says_and_closes(OK + b"\r\n" + BODY), 502, "upstream_invalid", KEPT),
    "gzip": (says(whole(more=b"Content-Encoding: gzip\r\n")), 502, "upstream_invalid", KEPT),
    "nine interim answers": (
        says(b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + whole()),
        502,
        "upstream_invalid",
        KEPT,
    ),
    "101": (
        says(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        502,
        "upstream_invalid",
        KEPT,
    ),
    "huge head": (says(OK + b"X-A: " + b"y" * 70_000 + b"\r\n" + whole()), 502, "upstream_invalid", KEPT),
    "201 fields": (says(OK + b"X-A: y\r\n" * 201 + whole()[len(OK) :]), 502, "upstream_invalid", KEPT),
    "extra bytes": (
        says(whole() + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        502,
        "upstream_invalid",
        KEPT,
    ),
    "header with a bare CR": (says(whole(more=b"X-A: a\rb\r\n")), 502, "upstream_invalid", KEPT),
    "trailers": (says(in_chunks(BODY, 7)[:-2] + b"X-A: b\r\n\r\n"), 200, "", KEPT),
    "the secret in an error": (
        says(whole(status_line(b"401 No"), ECHO % RAW)),
        502,
        "secret_reflected",
        RELEASED,
    ),
    "the secret in base64": (
        says(whole(body=b"{" + base64.b64encode(b"u:" + RAW) + b"}")),
        502,
        "secret_reflected",
        SPENT,
    ),
    "the secret in hex": (says(whole(body=RAW.hex().encode())), 502, "secret_reflected", SPENT),
    "the secret in capitals": (says(whole(body=RAW.upper())), 502, "secret_reflected", SPENT),
    "the secret in a header": (
        says(whole(more=b"X-Echo: Bearer " + RAW + b"\r\n")),
        502,
        "secret_reflected",
        SPENT,
    ),
}


class ScriptedVendor(RawVendor):
    """Does to each request what its `metadata[case]` names."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self.requests: list[bytes] = []
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True)
        with connection:
            while True:
                data = b""
                while b"metadata[case]=" not in data:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    data += piece
                self.requests.append(data)
                CASES[data.rpartition(b"metadata[case]=")[2].decode().replace("+", " ")][0](connection)


QUICK = "[upstream]\nfirst_byte_s = 1\nsilence_s = 0.8\nconnect_s = 1\n"


class Stage:
    """A daemon with short patience in front of a scripted vendor."""

    def __init__(self, kbctl: Kbctl, vendor: ScriptedVendor, origin: str, config: str = QUICK) -> None:
        (kbctl.home / "config.toml").write_text(config)
        (kbctl.home / "config.toml").chmod(0o600)
        kbctl("up", "--port", "0", "--upstream", f"stripe={origin}")
        kbctl("credential", "set", "stripe", stdin=SECRET + "\n")
        self.vendor = vendor
        self.client = Client(Home(kbctl.home))
        self.port = int(self.client.status().proxy_url.rpartition(":")[2])

    def play(self, case: str) -> tuple[int, bytes, str, int]:
        """Status, body, the row's outcome, and the cents that still count against the key's cap."""
        issued = self.client.issue(IssueRequest(daily_usd_cap=50))
        body = f"amount=3000&currency=usd&metadata[case]={case.replace(' ', '+')}"
        status, answer = asyncio.run(exchange(self.port, "/v1/payment_intents", issued.vault_key, body))
        ((row,),) = self.client.audit(AuditFilter(key=issued.key_id))
        shown = self.client.key(issued.key_id)
        assert row.amount_usd == shown.spent_usd + shown.held_usd
        assert row.policy_check_result == "allowed"
        return status, answer, row.outcome, int((shown.spent_usd + shown.held_usd) * 100)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One daemon for the whole table: that it survives every case is part of the test."""
    vendor = ScriptedVendor()
    with new_home() as kbctl:
        made = Stage(kbctl, vendor, f"http://127.0.0.1:{vendor.port}")
        yield made
        made.client.close()
        log = (kbctl.home / "kbctld.log").read_text()
    vendor.close()
    assert "Traceback" not in log
    assert SECRET not in log


@pytest.mark.parametrize("name", CASES)
def test_L5_what_a_vendor_does_decides_about_the_hold(stage: Stage, name: str) -> None:
    """The agent's status and code, the row's outcome and what stays counted, per behaviour."""
    _, status, code, outcome = CASES[name]

    answered, body, ended, counted = stage.play(name)

    assert (answered, ended) == (status, outcome)
    assert counted == (0 if outcome == RELEASED else 3000)
    if outcome == KEPT and status == 200:
        assert not body.endswith(b"0\r\n\r\n")
    if code:
        assert json.loads(body)["error"]["message"].startswith(code + ": ")
    assert RAW not in body
    assert b"evil" not in body


def test_P4_a_connection_that_misbehaved_is_not_used_again(stage: Stage) -> None:
    """After an anomaly the next call comes on a fresh connection; after a clean answer on the same."""
    stage.play("success")
    before = len(stage.vendor.connections)
    stage.play("success")
    assert len(stage.vendor.connections) == before
    stage.play("extra bytes")
    stage.play("success")
    assert len(stage.vendor.connections) == before + 1


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 34])
def test_P17_the_secret_is_found_wherever_a_stream_is_cut(stage: Stage, size: int) -> None:
    """Chunks of every small size: the agent never gets the secret, and the answer does not end well."""
    CASES[f"echo {size}"] = (
        says(in_chunks(b"x" * 70_000 + RAW + b"y" * 100, size * 1000 + size)),
        0,
        "",
        SPENT,
    )
    CASES[f"drip {size}"] = (says(in_chunks(b"before " + RAW + b" after", size)), 0, "", SPENT)
    for case in (f"echo {size}", f"drip {size}"):
        _, body, _, counted = stage.play(case)
        assert RAW not in body.replace(b"\r\n", b"")
        assert not body.endswith(b"0\r\n\r\n")  # cut, so that no client takes it for whole
        assert counted == 3000


def test_P15_a_certificate_must_be_valid_and_for_this_host(tmp_path: Path) -> None:
    """Verified TLS with the operator's roots works; another name or another root is `not sent`."""
    authority, stranger = trustme.CA(), trustme.CA()
    roots = tmp_path / "roots.pem"
    authority.cert_pem.write_to_path(str(roots))
    outcomes = {}
    for name, signer, host in [
        ("good", authority, "localhost"),
        ("another root", stranger, "localhost"),
        ("another host", authority, "example.com"),
    ]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        signer.issue_cert(host).configure_cert(context)
        vendor = ScriptedVendor(context)
        with new_home() as kbctl:
            made = Stage(kbctl, vendor, f"https://localhost:{vendor.port}", f'ca_file = "{roots}"\n' + QUICK)
            outcomes[name] = made.play("success")
            made.client.close()
        vendor.close()
        if name != "good":
            assert vendor.requests == []

    assert (outcomes["good"][0], outcomes["good"][2]) == (200, SPENT)
    for name in ("another root", "another host"):
        status, body, outcome, counted = outcomes[name]
        assert (status, outcome, counted) == (502, RELEASED, 0)
        assert b"certificate" in body
