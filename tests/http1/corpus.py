"""Requests that are wrong in one way each, grafted on one that is otherwise perfect.

Written from RFC 9112 and 9110, and from the attacks on readers that were laxer: CL.TE, TE.CL, TE.TE and 0.CL
smuggling, header injection, h2c upgrades, method overrides, chunk extensions and terminators.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MALFORMED = "malformed_request"
AMBIGUOUS = "ambiguous_request"
TOO_LARGE = "head_too_large"

BODY = b"amount=100&currency=usd"
TYPE = b"Content-Type: application/x-www-form-urlencoded\r\n"
CHUNKS = b"17\r\n" + BODY + b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """One change and the verdict that it deserves."""

    name: str
    change: Mapping[str, bytes]
    status: int = 400
    code: str = MALFORMED

    def __str__(self) -> str:
        return self.name


def graft(change: Mapping[str, bytes], *, host: bytes, key: bytes) -> bytes:
    """The perfect request with some parts replaced; HOST in a part stands for the right one."""
    parts = {
        "front": b"",
        "method": b"POST",
        "gap": b" ",
        "target": b"/stripe/v1/payment_intents",
        "version": b" HTTP/1.1",
        "line_end": b"\r\n",
        "host": b"Host: HOST\r\n",
        "key": b"Authorization: Bearer " + key + b"\r\n",
        "type": TYPE,
        "length": b"Content-Length: 23\r\n",
        "more": b"",
        "end": b"\r\n",
        "body": BODY,
        **change,
    }
    return b"".join(parts.values()).replace(b"HOST", host)


def _more(line: bytes) -> dict[str, bytes]:
    return {"more": line + b"\r\n"}


def _length(value: bytes) -> dict[str, bytes]:
    return {"length": b"Content-Length: " + value + b"\r\n"}


def _coding(value: bytes) -> dict[str, bytes]:
    return {"length": b"", "more": b"Transfer-Encoding: " + value + b"\r\n", "body": CHUNKS}


def _lengths() -> Iterator[Case]:
    yield Case("CL twice, equal", _more(b"Content-Length: 23"))
    yield Case("CL twice, different", _more(b"Content-Length: 5"))
    yield Case("CL twice, other case", _more(b"CONTENT-LENGTH: 23"))
    for value in (
        b"23, 23",
        b"23,23",
        b"23 ,",
        b",23",
        b"+23",
        b"-1",
        b"-0",
        b"0x17",
        b"027",
        b"023",
        b"00",
        b"2 3",
        b"2\t3",
        b"23.0",
        b"2_3",
        b"1e1",
        b"23;",
        b'"23"',
        b"",
        b"twenty",
        b"1000000000000000000",
        b"18446744073709551639",
        b"99999999999999999999999999",
        b"\xa023",
        b"\xd9\xa2\xd9\xa3",
        b"\xef\xbc\x92\xef\xbc\x93",
        b"23\xa0",
    ):
        yield Case(f"CL {value!r}", _length(value))
    for line in (
        b"Content-Length : 23",
        b"Content-Length\t: 23",
        b" Content-Length: 23",
        b"Content_Length: 23",
        b"Content Length: 23",
        b"Content-Length\x00: 23",
        b"\x00Content-Length: 23",
        b"Content-Length\x0b: 23",
        b"Content-Length\r: 23",
        b"Content-Length",
        b"Content-Length 23",
        b"Content-Length: 23\x00",
        b"Content-Length: \x0b23",
        b"Content-Length:\r\n 23",
        b"Content-Length: 23\r\n, 5",
    ):
        yield Case(f"CL line {line!r}", {"length": line + b"\r\n"})


def _codings() -> Iterator[Case]:
    yield Case("CL before TE", {"more": b"Transfer-Encoding: chunked\r\n", "body": CHUNKS})
    yield Case(
        "TE before CL",
        {"length": b"Transfer-Encoding: chunked\r\n", "more": b"Content-Length: 23\r\n", "body": CHUNKS},
    )
    yield Case(
        "CL 0 and TE",
        {"length": b"Content-Length: 0\r\n", "more": b"Transfer-Encoding: chunked\r\n", "body": CHUNKS},
    )
    yield Case("CL and TE identity", _more(b"Transfer-Encoding: identity"))
    yield Case("CL and a TE that is none", _more(b"Transfer-Encoding: x"))
    for value in (
        b"Chunked",
        b"CHUNKED",
        b"gzip",
        b"identity",
        b"gzip, chunked",
        b"chunked, gzip",
        b"identity, chunked",
        b"chunked, identity",
        b"chunked, chunked",
        b"chunked,",
        b",chunked",
        b"chunked;q=1",
        b"chunked ;x",
        b'"chunked"',
        b"'chunked'",
        b"xchunked",
        b"chunkedx",
        b"chunk",
        b"x chunked",
        b"chunked chunked",
        b"",
        b"\xa0chunked",
        b"chunked\xa0",
        b"chunk\xe9d",
        b"cow",
    ):
        yield Case(f"TE {value!r}", _coding(value))
    yield Case("TE twice, equal", _coding(b"chunked\r\nTransfer-Encoding: chunked"))
    yield Case("TE twice, the second none", _coding(b"chunked\r\nTransfer-Encoding: identity"))
    yield Case("TE twice, the first none", _coding(b"identity\r\nTransfer-Encoding: chunked"), code=AMBIGUOUS)
    for line in (
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding\t: chunked",
        b" Transfer-Encoding: chunked",
        b"Transfer_Encoding: chunked",
        b"Transfer-Encoding:\r\n chunked",
        b"Transfer-Encoding:\r\n\tchunked",
        b"Transfer-Encoding:\nchunked",
        b"Transfer-Encoding\r\n: chunked",
        b"Transfer-Encoding: chunked\x00",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding: \x0cchunked",
        b"Transfer-Encoding: chunked\r",
        b"\x00Transfer-Encoding: chunked",
        b"Transfer-Encoding\x00: chunked",
        b"X: y\rTransfer-Encoding: chunked",
        b"X: y\nTransfer-Encoding: chunked",
        b"X: y\r\rTransfer-Encoding: chunked",
        b"X:\x00\r\n Transfer-Encoding: chunked",
    ):
        yield Case(f"TE line {line!r}", {"length": b"", "more": line + b"\r\n", "body": CHUNKS})
    yield Case("TE in HTTP/1.0", {**_coding(b"chunked"), "version": b" HTTP/1.0"})


def _request_lines() -> Iterator[Case]:
    for version in (
        b"",
        b" ",
        b" HTTP/0.9",
        b" HTTP/1.2",
        b" HTTP/1.10",
        b" HTTP/01.1",
        b" HTTP/1.01",
        b" HTTP/2.0",
        b" HTTP/2",
        b" HTTP/1",
        b" HTTP/1,1",
        b" http/1.1",
        b" HTTP/1.1 ",
        b"  HTTP/1.1",
        b"\tHTTP/1.1",
        b" HTTP /1.1",
        b" HTTP/1.1\x00",
        b" RTSP/1.0",
        b" ICE/1.0",
        b" HTTP/1.1 HTTP/1.1",
        b" HTTP/+1.1",
    ):
        yield Case(f"version {version!r}", {"version": version})
    for method in (
        b"post",
        b"Post",
        b"poST",
        b"get",
        b"TRACE",
        b"TRACK",
        b"DEBUG",
        b"PURGE",
        b"PROPFIND",
        b"LINK",
        b"BREW",
        b"SOURCE",
        b"PRI",
        b"M-SEARCH",
        b"POST1",
        b"PO ST",
        b"POST\x00",
        b"P\xd6ST",
        b"POST:",
        b"",
        b"A" * 17,
    ):
        yield Case(f"method {method!r}", {"method": method})
    yield Case("CONNECT", {"method": b"CONNECT", "target": b"HOST"})
    yield Case("the HTTP/2 preface", {"front": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"})
    for front in (b"\r\n", b"\n", b" ", b"\t", b"\x00", b"\xef\xbb\xbf", b"\r\n\r\n", b"GET / HTTP/0.9\r\n"):
        yield Case(f"in front {front!r}", {"front": front})
    for gap in (b"  ", b"\t", b"", b"\x0b", b" \r\n "):
        yield Case(f"gap {gap!r}", {"gap": gap})
    for line_end in (b"\n", b"\r", b"\r\r\n", b"\n\r\n", b"\r\n\r\n"):
        yield Case(f"line end {line_end!r}", {"line_end": line_end})
    for target in (
        b"",
        b"/v1/a b",
        b"/v1/\xc3\xa9",
        b"/v1/\xff",
        b"v1/payment_intents",
        b"\\v1",
        b"?amount=1",
        b"/\x7f",
    ):
        yield Case(f"target {target!r}", {"target": target})
    for byte in (*range(0x20), 0x7F):
        yield Case(f"target with 0x{byte:02x}", {"target": b"/stripe/v1/pay" + bytes([byte]) + b"ments"})


def _names() -> Iterator[Case]:
    for byte in b'"(),/;<=>?@[\\]{} ':
        yield Case(f"name with {chr(byte)!r}", _more(b"X" + bytes([byte]) + b"Y: z"))
    for byte in (*range(0x20), 0x7F, 0x80, 0xE9, 0xFF):
        yield Case(f"name with 0x{byte:02x}", _more(b"X" + bytes([byte]) + b"Y: z"))
    for line in (b": z", b"X", b"X Y", b"X_Y: z", b"X\r: z", b"X :z", b"_: z", b"Authorization_: z"):
        yield Case(f"line {line!r}", _more(line))


def _values() -> Iterator[Case]:
    for byte in (*range(0x09), *range(0x0A, 0x20), 0x7F):
        yield Case(f"value with 0x{byte:02x}", _more(b"X: a" + bytes([byte]) + b"b"))
    for line in (b"X: a\r\n b", b"X: a\r\n\tb", b"X:\r\n b", b"X: a\r\n ", b"X: a\r\n \r\n b"):
        yield Case(f"folded {line!r}", _more(line))
    yield Case("folded at the very start", {"host": b" x\r\nHost: HOST\r\n"})
    yield Case("bare LF between fields", _more(b"X: a\nY: b"))
    yield Case("bare LF at the end of a field", {"more": b"X: a\n"})
    yield Case("CR CR LF at the end of a field", {"more": b"X: a\r\r\n"})
    yield Case("LF CR LF at the end", {"end": b"\n\r\n"})
    yield Case("LF LF at the end", {"type": TYPE[:-2] + b"\n", "length": b"", "end": b"\n"})
    yield Case("CR CR LF at the end", {"end": b"\r\r\n\r\n"})


def _decisive() -> Iterator[Case]:
    yield Case("Host missing", {"host": b""})
    yield Case("Host missing in HTTP/1.0", {"host": b"", "version": b" HTTP/1.0"})
    yield Case("Host empty", {"host": b"Host:\r\n"})
    yield Case("Host list", {"host": b"Host: HOST, HOST\r\n"})
    yield Case("Host with a blank", {"host": b"Host: HOST evil\r\n"})
    yield Case("Host twice, equal", _more(b"Host: HOST"), code=AMBIGUOUS)
    yield Case("Host twice, different", _more(b"host: evil"), code=AMBIGUOUS)
    for line in (
        b"Content-Type: text/plain",
        b"Content-Encoding: identity\r\nContent-Encoding: gzip",
        b"Authorization: Bearer other",
        b"X-Api-Key: a\r\nX-Api-Key: b",
        b"Expect: 100-continue\r\nExpect: 100-continue",
        b"Idempotency-Key: a\r\nIdempotency-Key: b",
        b"Connection: close\r\nConnection: keep-alive",
        b"Cookie: a=b\r\nCookie: c=d",
        b"Origin: null\r\nOrigin: http://x",
        b"Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site",
        b"Stripe-Account: acct_1\r\nStripe-Account: acct_2",
        b"Stripe-Context: a\r\nStripe-Context: b",
        b"Stripe-Version: a\r\nStripe-Version: b",
        b"User-Agent: a\r\nUser-Agent: b",
        b"X-HTTP-Method-Override: DELETE",
        b"x-http-method-override: GET",
        b"X-HTTP-Method: DELETE",
        b"X-Method-Override: DELETE",
    ):
        yield Case(f"decisive {line!r}", _more(line), code=AMBIGUOUS)
    for line in (
        b"Upgrade: h2c",
        b"Upgrade: websocket",
        b"Connection: Upgrade\r\nUpgrade: websocket",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        b"Connection: upgrade\r\nUpgrade: TLS/1.0",
    ):
        yield Case(f"upgrade {line!r}", _more(line))
    for value in (
        b"100-Continue",
        b"100-continue, x",
        b"x 100-continue",
        b"100-continue;q=1",
        b"\xa0100-continue",
        b"200-ok",
        b"",
        b"100",
    ):
        yield Case(f"Expect {value!r}", _more(b"Expect: " + value), status=417)


def _sizes() -> Iterator[Case]:
    yield Case("101 fields", _more(b"\r\n".join([b"X: y"] * 97)), status=431, code=TOO_LARGE)
    yield Case("line of 8,193 bytes", _more(b"X: " + b"y" * 8188), status=431, code=TOO_LARGE)
    yield Case(
        "request line of 8,193 bytes", {"target": b"/" + b"a" * (8193 - 15)}, status=431, code=TOO_LARGE
    )


HEADS: tuple[Case, ...] = (
    *_lengths(),
    *_codings(),
    *_request_lines(),
    *_names(),
    *_values(),
    *_decisive(),
    *_sizes(),
)
"""Heads that the gate must not let pass."""


def _chunked(body: bytes) -> dict[str, bytes]:
    return _coding(b"chunked") | {"body": body}


BODIES: tuple[Case, ...] = tuple(
    Case(f"chunks {body!r}", _chunked(body))
    for body in (
        b"17;a=b\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"17;\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"17 ;a\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"17;\nxx\r\n" + BODY + b"\r\n0\r\n\r\n",
        b'17;a="\r\n0\r\n\r\n"\r\n' + BODY + b"\r\n0\r\n\r\n",
        b"17\n" + BODY + b"\r\n0\r\n\r\n",
        b"17\r" + BODY + b"\r\n0\r\n\r\n",
        b"17\r\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"17\r\n" + BODY + b"\n0\r\n\r\n",
        b"17\r\n" + BODY + b"XX0\r\n\r\n",
        b"17\r\n" + BODY + b"\r\n0\r\nX: y\r\n\r\n",
        b"17\r\n" + BODY + b"\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"17\r\n" + BODY + b"\r\n0;a\r\n\r\n",
        b"17\r\n" + BODY + b"\r\n0\r\n\n",
        b"17\r\n" + BODY + b"\r\n0\n\r\n",
        b"16\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"18\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"0x17\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"-17\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"+17\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"1_7\r\n" + BODY + b"\r\n0\r\n\r\n",
        b" 17\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"17 \r\n" + BODY + b"\r\n0\r\n\r\n",
        b"\t17\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"000000017\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"100000017\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"fffffffffffffff7\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"g\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"\r\n17\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"\x0017\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"17\x00\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"\xef\xbc\x91\xef\xbc\x97\r\n" + BODY + b"\r\n0\r\n\r\n",
        BODY,
    )
)
"""Chunked bodies behind a good head that must not be taken; a reader of heads can't tell."""

FINE: tuple[Case, ...] = tuple(
    Case(name, change, status=200, code="")
    for name, change in (
        ("as it is", {}),
        ("no blank behind the colon", {"length": b"Content-Length:23\r\n"}),
        ("blanks around a value", {"length": b"Content-Length: \t 23 \t\r\n"}),
        ("names in any case", {"length": b"cONTENT-lENGTH: 23\r\n"}),
        ("an empty value", _more(b"X-Empty:")),
        ("8-bit text in a value", _more(b"X-Name: J\xfcrgen")),
        ("a tab in a value", _more(b"X: a\tb")),
        ("every token character in a name", _more(b"!#$%&'*+-.^`|~09azAZ: y")),
        ("a field twice that decides nothing", _more(b"X: a\r\nX: b")),
        ("HTTP/1.0", {"version": b" HTTP/1.0"}),
        ("100 fields", _more(b"\r\n".join([b"X: y"] * 96))),
        ("a line of 8,192 bytes", _more(b"X: " + b"y" * 8187)),
        ("chunked", _coding(b"chunked")),
        ("chunked, blanks in front", _coding(b"   chunked")),
        ("chunked in two chunks", _chunked(b"A\r\namount=100\r\nd\r\n&currency=usd\r\n0\r\n\r\n")),
        ("chunked, sizes with zeros", _chunked(b"00000017\r\n" + BODY + b"\r\n000\r\n\r\n")),
        ("Connection: close", _more(b"Connection: close")),
        ("Connection names a field", _more(b"Connection: x-hop\r\nX-Hop: y")),
        ("Expect", _more(b"Expect: 100-continue")),
    )
)
"""The controls: as unusual as HTTP allows, and taken."""
