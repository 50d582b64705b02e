"""P1, P2, P4-P8, P11 through the real daemon: what a recording vendor received, not what we answered.

Each case is one change to a request that is otherwise perfect: a good Host, a live key, an allowed target.
The unchanged request is accepted, or the table would prove nothing.
"""

import asyncio
import hashlib
import json
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.e2e.support import SECRET, Kbctl, RawVendor, new_home

TARGET = b"/stripe/v1/payment_intents"
BODY = b"amount=100&currency=usd"
TYPE = b"Content-Type: application/x-www-form-urlencoded\r\n"


class RecordingVendor(RawVendor):
    """Reads whole requests, keeps their bytes, answers each with an empty object."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        buffer = b""
        while True:
            head, mark, rest = buffer.partition(b"\r\n\r\n")
            lengths = (
                line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
            )
            length = int(next(lengths, b"0"))
            if mark and len(rest) >= length:
                self.requests.append(head + mark + rest[:length])
                buffer = rest[length:]
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                continue
            data = connection.recv(65536)
            if not data:
                return
            buffer += data


class Door:
    """A daemon with one key, and a recording vendor behind it."""

    def __init__(self, kbctl: Kbctl, vendor: RecordingVendor) -> None:
        self.kbctl = kbctl
        self.vendor = vendor
        kbctl("up", "--port", "0", "--upstream", f"stripe=http://127.0.0.1:{vendor.port}")
        kbctl("credential", "set", "stripe", stdin=SECRET + "\n")
        self.key = kbctl("issue", "--cap", "1000000").strip()
        self.port = int(kbctl.json("status")["proxy_url"].rpartition(":")[2])

    def request(self, change: dict[str, bytes]) -> bytes:
        """The perfect request with one part replaced."""
        parts = {
            "method": b"POST",
            "target": TARGET,
            "version": b"HTTP/1.1",
            "host": b"Host: 127.0.0.1:%d\r\n" % self.port,
            "key": b"Authorization: Bearer %b\r\n" % self.key.encode(),
            "type": TYPE,
            "length": b"Content-Length: %d\r\n" % len(change.get("body", BODY)),
            "more": b"",
            "body": BODY,
            "front": b"",
            **change,
        }
        parts = {name: part.replace(b"PORT", str(self.port).encode()) for name, part in parts.items()}
        line = parts["front"] + parts["method"] + b" " + parts["target"] + b" " + parts["version"] + b"\r\n"
        fields = parts["host"] + parts["key"] + parts["type"] + parts["length"] + parts["more"]
        return line + fields + b"\r\n" + parts["body"]

    def send(self, raw: bytes, pieces: int = 1) -> tuple[int, str]:
        """Status and code of the first answer; the daemon must answer or close within seconds."""

        async def talk() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                step = max(1, len(raw) // pieces)
                for start in range(0, len(raw), step):
                    writer.write(raw[start : start + step])
                    await writer.drain()
                    if pieces > 1:
                        await asyncio.sleep(0)
                writer.write_eof()
                async with asyncio.timeout(3):
                    return await reader.read()
            except ConnectionError:
                return b""
            finally:
                writer.close()

        out = asyncio.run(talk())
        out = out.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = out.partition(b"\r\n\r\n")[2]
        code = json.loads(body)["error"]["code"] if b'"code"' in body else ""
        return int(out[9:12] or b"0"), code


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    """One daemon for the whole table: that it survives every case is part of the test."""
    vendor = RecordingVendor()
    with new_home() as kbctl:
        yield Door(kbctl, vendor)
    vendor.close()


def chunked(coding: bytes, body: bytes = b"17\r\n" + BODY + b"\r\n0\r\n\r\n") -> dict[str, bytes]:
    return {"length": b"", "more": b"Transfer-Encoding: " + coding + b"\r\n", "body": body}


M, A = "malformed_request", "ambiguous_request"
REFUSED: dict[str, tuple[dict[str, bytes], int, str]] = {
    # how long the body is
    "TE in capitals": (chunked(b"Chunked"), 400, M),
    "TE gzip, chunked": (chunked(b"gzip, chunked"), 400, M),
    "TE chunked, chunked": (chunked(b"chunked, chunked"), 400, M),
    "TE xchunked": (chunked(b"xchunked"), 400, M),
    "TE identity": (chunked(b"identity"), 400, M),
    "TE quoted": (chunked(b'"chunked"'), 400, M),
    "TE twice": ({**chunked(b"chunked"), "type": TYPE + b"Transfer-Encoding: identity\r\n"}, 400, ""),
    "TE and CL": ({"more": b"Transfer-Encoding: chunked\r\n"}, 400, ""),
    "TE in HTTP/1.0": ({**chunked(b"chunked"), "version": b"HTTP/1.0"}, 400, M),
    "chunk extension": (chunked(b"chunked", b"17;a=b\r\n" + BODY + b"\r\n0\r\n\r\n"), 400, M),
    "chunk extension on the last": (chunked(b"chunked", b"17\r\n" + BODY + b"\r\n0;a\r\n\r\n"), 400, M),
    "chunk size ends in LF": (chunked(b"chunked", b"17\n" + BODY + b"\r\n0\r\n\r\n"), 400, M),
    "chunk data ends in LF": (chunked(b"chunked", b"17\r\n" + BODY + b"\n0\r\n\r\n"), 400, M),
    "chunk trailer": (chunked(b"chunked", b"17\r\n" + BODY + b"\r\n0\r\nX: y\r\n\r\n"), 400, M),
    "chunk too long": (chunked(b"chunked", b"16\r\n" + BODY + b"\r\n0\r\n\r\n"), 400, M),
    "chunk size 0x17": (chunked(b"chunked", b"0x17\r\n" + BODY + b"\r\n0\r\n\r\n"), 400, M),
    "chunk size -17": (chunked(b"chunked", b"-17\r\n" + BODY + b"\r\n0\r\n\r\n"), 400, M),
    "chunk size and blank": (chunked(b"chunked", b"17 \r\n" + BODY + b"\r\n0\r\n\r\n"), 400, M),
    "chunk size of nine digits": (chunked(b"chunked", b"000000017\r\n" + BODY + b"\r\n0\r\n\r\n"), 400, M),
    "chunk size empty": (chunked(b"chunked", b"\r\n" + BODY + b"\r\n0\r\n\r\n"), 400, M),
    "CL twice, equal": ({"more": b"Content-Length: 23\r\n"}, 400, ""),
    "CL twice, different": ({"more": b"Content-Length: 5\r\n"}, 400, ""),
    "CL list": ({"length": b"Content-Length: 23, 23\r\n"}, 400, M),
    "CL +23": ({"length": b"Content-Length: +23\r\n"}, 400, M),
    "CL -1": ({"length": b"Content-Length: -1\r\n"}, 400, M),
    "CL 0x17": ({"length": b"Content-Length: 0x17\r\n"}, 400, M),
    "CL 023": ({"length": b"Content-Length: 023\r\n"}, 400, M),
    "CL 2 3": ({"length": b"Content-Length: 2 3\r\n"}, 400, M),
    "CL 23.0": ({"length": b"Content-Length: 23.0\r\n"}, 400, M),
    "CL empty": ({"length": b"Content-Length:\r\n"}, 400, M),
    "CL beyond 64 bits": ({"length": b"Content-Length: 99999999999999999999\r\n"}, 400, M),
    "CL over the limit": ({"length": b"Content-Length: 10485761\r\n"}, 413, "body_too_large"),
    # header lines
    "underscore in a name": ({"more": b"Content_Length: 5\r\n"}, 400, M),
    "blank before the colon": ({"more": b"X-A : b\r\n"}, 400, M),
    "folded line": ({"more": b"X-A: b\r\n c\r\n"}, 400, M),
    "line that starts with a blank": ({"type": b" " + TYPE}, 400, M),
    "NUL in a value": ({"more": b"X-A: b\x00c\r\n"}, 400, M),
    "bare CR in a value": ({"more": b"X-A: b\rc\r\n"}, 400, M),
    "bare LF ends a line": ({"more": b"X-A: b\nX-B: c\r\n"}, 400, M),
    "DEL in a value": ({"more": b"X-A: \x7f\r\n"}, 400, M),
    "no name": ({"more": b": b\r\n"}, 400, M),
    "no colon": ({"more": b"X-A\r\n"}, 400, M),
    "name with a slash": ({"more": b"X/A: b\r\n"}, 400, M),
    "name with an accent": ({"more": b"X-\xc3\xa9: b\r\n"}, 400, M),
    "no Host": ({"host": b""}, 400, M),
    "Host twice": ({"more": b"Host: 127.0.0.1:PORT\r\n"}, 400, A),
    "Host list": ({"host": b"Host: 127.0.0.1:PORT, evil\r\n"}, 400, M),
    "Host empty": ({"host": b"Host:\r\n"}, 400, M),
    "foreign Host": ({"host": b"Host: evil.example\r\n"}, 403, "origin_not_allowed"),
    "Host without our port": ({"host": b"Host: 127.0.0.1\r\n"}, 403, "origin_not_allowed"),
    "Host with user": ({"host": b"Host: a@127.0.0.1:PORT\r\n"}, 403, "origin_not_allowed"),
    "Content-Type twice": ({"more": TYPE}, 400, A),
    "Authorization twice": ({"more": b"Authorization: Bearer x\r\n"}, 400, A),
    "Idempotency-Key twice": ({"more": b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n"}, 400, A),
    "Expect something else": ({"more": b"Expect: 200-ok\r\n"}, 417, M),
    "Upgrade h2c": ({"more": b"Connection: Upgrade\r\nUpgrade: h2c\r\n"}, 400, M),
    "Upgrade websocket": ({"more": b"Connection: Upgrade\r\nUpgrade: websocket\r\n"}, 400, M),
    "HTTP2-Settings": ({"more": b"HTTP2-Settings: AAMAAABk\r\n"}, 400, M),
    "method override": ({"more": b"X-HTTP-Method-Override: DELETE\r\n"}, 400, A),
    "method override, short": ({"more": b"X-HTTP-Method: DELETE\r\n"}, 400, A),
    "method override, other": ({"more": b"x-method-override: DELETE\r\n"}, 400, A),
    "method override in the body": ({"body": BODY + b"&_method=DELETE"}, 400, A),
    "method override in the query": ({"target": TARGET + b"?_method=DELETE"}, 400, A),
    "101 fields": ({"more": b"".join(b"X-%d: y\r\n" % n for n in range(98))}, 431, "head_too_large"),
    "head over 32 KiB": ({"more": b"".join(b"X-%d: %b\r\n" % (n, b"y" * 1000) for n in range(33))}, 431, ""),
    "line over 8 KiB": ({"target": TARGET + b"?a=" + b"x" * 8192}, 431, "head_too_large"),
    # the request line
    "HTTP/0.9": ({"version": b""}, 400, M),
    "HTTP/1.2": ({"version": b"HTTP/1.2"}, 400, M),
    "HTTP/2.0": ({"version": b"HTTP/2.0"}, 400, M),
    "http/1.1": ({"version": b"http/1.1"}, 400, M),
    "two blanks": ({"method": b"POST "}, 400, M),
    "empty line in front": ({"front": b"\r\n"}, 400, M),
    "blank in front": ({"front": b" "}, 400, M),
    "HTTP/2 preface in front": ({"front": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}, 400, M),
    "CONNECT": ({"method": b"CONNECT"}, 400, M),
    "TRACE": ({"method": b"TRACE"}, 400, M),
    "post": ({"method": b"post"}, 400, M),
    "unknown method": ({"method": b"FOO"}, 400, M),
    "OPTIONS": ({"method": b"OPTIONS"}, 403, "origin_not_allowed"),
    # the target
    "absolute form, ours": ({"target": b"http://127.0.0.1:PORT" + TARGET}, 400, A),
    "absolute form, foreign": ({"target": b"http://evil.example" + TARGET}, 400, A),
    "asterisk form": ({"target": b"*"}, 400, M),
    "authority form": ({"target": b"evil.example:443"}, 400, M),
    "fragment": ({"target": TARGET + b"#x"}, 400, A),
    "two slashes in front": ({"target": b"//evil.example/v1/payment_intents"}, 400, A),
    "two slashes inside": ({"target": b"/stripe/v1/payment_intents//x"}, 400, A),
    "dot segment": ({"target": b"/stripe/v1/../v1/payment_intents"}, 400, A),
    "single dot": ({"target": b"/stripe/v1/./payment_intents"}, 400, A),
    "%2e%2e": ({"target": b"/stripe/v1/%2e%2e/v1/payment_intents"}, 400, A),
    "%2f": ({"target": b"/stripe/v1%2fpayment_intents"}, 400, A),
    "%252e": ({"target": b"/stripe/v1/%252e%252e/x"}, 400, A),
    "semicolon": ({"target": TARGET + b";a=b"}, 400, A),
    "backslash": ({"target": b"/stripe/v1\\payment_intents"}, 400, A),
    "upper-case prefix": ({"target": b"/STRIPE/v1/payment_intents"}, 403, "endpoint_not_allowed"),
    # who asks
    "Origin": ({"more": b"Origin: http://evil.example\r\n"}, 403, "origin_not_allowed"),
    "Sec-Fetch-Site": ({"more": b"Sec-Fetch-Site: cross-site\r\n"}, 403, "origin_not_allowed"),
    "key named by Connection": ({"more": b"Connection: authorization\r\n"}, 401, "key_missing"),
    "no key": ({"key": b""}, 401, "key_missing"),
    "another account": ({"more": b"Stripe-Account: acct_1\r\n"}, 403, "account_not_allowed"),
    "another context": ({"more": b"stripe-context: acct_1\r\n"}, 403, "account_not_allowed"),
    # the body
    "gzip": ({"more": b"Content-Encoding: gzip\r\n"}, 415, "unsupported_body"),
    "multipart": ({"type": b"Content-Type: multipart/form-data; boundary=x\r\n"}, 415, "unsupported_body"),
    "no type": ({"type": b""}, 415, "unsupported_body"),
    "UTF-16": ({"type": TYPE[:-2] + b"; charset=utf-16\r\n"}, 415, "unsupported_body"),
    "amount twice": ({"body": BODY + b"&amount=1"}, 400, A),
    "amount in the query": ({"target": TARGET + b"?amount=1"}, 400, A),
    "amount split by a semicolon": ({"body": b"x=1;amount=999&" + BODY}, 400, A),
    "amount as an array": ({"body": BODY + b"&amount[]=1"}, 400, A),
    "amount in capitals too": ({"body": BODY + b"&AMOUNT=1"}, 400, A),
    "amount escaped too": ({"body": BODY + b"&am%6funt=1"}, 400, A),
    "amount missing": ({"body": b"currency=usd"}, 400, "amount_unknown"),
    "amount negative": ({"body": b"amount=-5&currency=usd"}, 400, "amount_unknown"),
    "amount 20_00": ({"body": b"amount=20_00&currency=usd"}, 400, "amount_unknown"),
    "amount 1e3": ({"body": b"amount=1e3&currency=usd"}, 400, "amount_unknown"),
    "amount 20.5": ({"body": b"amount=20.5&currency=usd"}, 400, "amount_unknown"),
    "amount in full-width digits": ({"body": b"amount=\xef\xbc\x92&currency=usd"}, 400, "amount_unknown"),
    "currency without a rate": ({"body": b"amount=5&currency=xaf"}, 400, "amount_unknown"),
    "broken escape": ({"body": BODY + b"&a=%zz"}, 400, M),
}

FORWARDED: dict[str, dict[str, bytes]] = {
    "as it is": {},
    "chunked": chunked(b"chunked"),
    "two chunks": chunked(b"chunked", b"a\r\n" + BODY[:10] + b"\r\nD\r\n" + BODY[10:] + b"\r\n0\r\n\r\n"),
    "HTTP/1.0": {"version": b"HTTP/1.0"},
    "localhost": {"host": b"Host: localhost:PORT\r\n"},
    "with 100-continue": {"more": b"Expect: 100-continue\r\n"},
    "with a charset": {"type": TYPE[:-2] + b"; charset=utf-8\r\n"},
    "100 fields": {"more": b"".join(b"X-%d: y\r\n" % n for n in range(96))},
    "hop-by-hop and forwarding fields": {
        "more": b"X-Forwarded-Host: evil\r\nForwarded: host=evil\r\nCookie: a=b\r\n"
        b"Proxy-Authorization: Basic eA==\r\n"
        b"Via: 1.1 evil\r\nTE: trailers\r\nX-Api-Key: sk_live_of_another\r\n"
        b"Connection: x-a, keep-alive\r\nX-A: b\r\n"
    },
    "at the root": {"target": b"/v1/payment_intents"},
    "with a doubled slash behind the prefix": {"target": b"/stripe//v1/payment_intents"},
    "with a doubled version": {"target": b"/stripe/v1/v1/payment_intents"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_P2_a_request_with_two_meanings_or_none_is_refused_and_not_forwarded(door: Door, name: str) -> None:
    """One change to a perfect request: its status, its code, and not a byte to the vendor."""
    change, status, code = REFUSED[name]
    before = len(door.vendor.requests)

    answered = door.send(door.request(change))

    assert answered[0] == status
    assert answered[1] == code if code else answered[1] in (M, A, "head_too_large")
    assert len(door.vendor.requests) == before


@pytest.mark.parametrize("pieces", [1, 40], ids=["at once", "in pieces"])
@pytest.mark.parametrize("name", FORWARDED)
def test_P4_what_passes_is_written_anew_by_us(door: Door, name: str, pieces: int) -> None:
    """The control of the table above: each is accepted, and the vendor receives one form of it only."""
    before = len(door.vendor.requests)

    answered = door.send(door.request(FORWARDED[name]), pieces)

    assert answered == (200, "")
    (received,) = door.vendor.requests[before:]
    head, _, body = received.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    assert line == b"POST /v1/payment_intents HTTP/1.1"
    assert body == BODY
    assert sorted(field.partition(b":")[0].lower() for field in fields) == [
        b"accept-encoding",
        b"authorization",
        b"content-length",
        b"content-type",
        b"host",
    ]
    assert f"Authorization: Bearer {SECRET}".encode() in fields
    assert f"Host: 127.0.0.1:{door.vendor.port}".encode() in fields
    assert door.key.encode() not in received


def test_a_smuggled_second_request_is_a_request_of_its_own_or_nothing(door: Door) -> None:
    """Bytes behind a body are the next request, judged by itself; behind a refused head they are nothing."""
    before = len(door.vendor.requests)
    good = door.request({})
    bad = door.request({"length": b"Content-Length: 23, 23\r\n"})

    door.send(good + good)
    assert len(door.vendor.requests) == before + 2
    assert door.send(bad + good)[0] == 400
    assert len(door.vendor.requests) == before + 2
    door.send(door.request({"more": b"Connection: close\r\n"}) + good)
    assert len(door.vendor.requests) == before + 3


def test_P1_what_the_vendor_received_is_what_the_audit_allowed() -> None:
    """The whole table through a fresh daemon: the two multisets are equal, and every attempt has a row."""
    vendor = RecordingVendor()
    with new_home() as kbctl:
        door = Door(kbctl, vendor)
        cases = [change for change, _, _ in REFUSED.values()] + list(FORWARDED.values())
        for number, change in enumerate(cases):
            kept = {**change, "more": change.get("more", b"") + b"X-Case: %d\r\n" % number}
            door.send(door.request(kept))
        rows = kbctl.json("audit", "--limit", "0")
    vendor.close()

    received = Counter(
        (
            request.split(b" ")[0].decode(),
            request.split(b" ")[1].decode(),
            hashlib.sha256(request.partition(b"\r\n\r\n")[2]).hexdigest(),
        )
        for request in vendor.requests
    )
    permitted = Counter(
        (row["method"], row["endpoint"], hashlib.sha256(BODY).hexdigest())
        for row in rows
        if row["policy_check_result"] == "allowed"
    )
    assert received == permitted
    assert len(rows) >= len(cases)
    assert door.key not in json.dumps(rows)
