"""The gate: one request head, bytes in, a value or a ``BadHead`` out. Pure.

What must stay true: whatever passes has exactly one meaning to every HTTP reader. httptools (llhttp)
parses; in front of it stand the rules that it is laxer about. Measured against a public corpus of 74
invalid requests, llhttp alone lets 19 through: bare line feeds in odd places, missing or repeated Host,
underscores in names, chunk extensions, upgrades. Everything here is refused, never repaired.

RFC 9112 (message syntax) and RFC 9110 (fields) are the rules; the comments name the attacks.
"""

import re
from collections.abc import Mapping

import httptools
from msgspec import Struct

HEAD_BYTES_MAX = 32 * 1024
LINE_BYTES_MAX = 8 * 1024
FIELDS_MAX = 100

# RFC 9110 5.6.2, less "_": readers that map names to CGI variables can't tell "_" from "-".
_NAME = rb"[!#$%&'*+.^`|~0-9A-Za-z-]+"
# RFC 9110 5.5: visible, blank, tab, and the old 8-bit characters; never NUL, CR, LF or other controls.
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*"
_FIELDS = re.compile(rb"(?:" + _NAME + rb":" + _VALUE + rb"\r\n)*")
_REQUEST_LINE = re.compile(rb"([A-Za-z]{1,16}) ([\x21-\x7e]+) HTTP/1\.([01])\r\n")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")

# Fields that decide something: with two of them, two readers can take different ones.
_SINGLE = frozenset(
    b"host content-length content-type content-encoding transfer-encoding authorization x-api-key "
    b"expect idempotency-key connection cookie origin sec-fetch-site stripe-account stripe-context "
    b"stripe-version user-agent".split()
)
_OVERRIDES = frozenset(b"x-http-method-override x-http-method x-method-override".split())
_UPGRADES = frozenset(b"upgrade http2-settings".split())

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class BadHead(Exception):  # noqa: N818 - it is what arrived, not a failure of ours
    """A head that does not pass.

    Attributes:
        status: 400, 413, 417, 431 or 501.
        code: ``malformed_request``, ``ambiguous_request`` or ``head_too_large``.
        sentence: what is wrong, for the person who wrote the client.
    """

    def __init__(self, status: int, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.sentence = sentence


class Head(Struct, frozen=True):
    """A request head that passed.

    Attributes:
        method: upper case, one of ``METHODS``.
        target: the request target, visible ASCII.
        fields: names in lower case with values without blanks around them, in the order sent.
        length: bytes of the body; None where it is chunked.
        keep_alive: whether the client will send another request on this connection.
        expects_continue: whether it waits for ``100 Continue`` before the body.
        minor: the HTTP/1.x minor version.
        first: the first value of each name.
    """

    method: str
    target: str
    fields: tuple[tuple[bytes, bytes], ...]
    length: int | None
    keep_alive: bool
    expects_continue: bool
    minor: int
    first: Mapping[bytes, bytes]

    def get(self, name: bytes) -> bytes | None:
        """The value of a field; of the single ones there is at most one."""
        return self.first.get(name)

    @property
    def has_body(self) -> bool:
        return self.length != 0


class _Collector:
    """What httptools calls back."""

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))


def read_head(raw: bytes) -> Head:
    """Check and parse one head, from its first byte to its empty line inclusive.

    Raises:
        BadHead: it does not pass.
    """
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise _malformed("the request line is not METHOD TARGET HTTP/1.1")
    if line.end() > LINE_BYTES_MAX + 2:
        raise BadHead(431, "head_too_large", f"the request line is longer than {LINE_BYTES_MAX:,} bytes")
    fields_end = len(raw) - 2
    match = _FIELDS.fullmatch(raw, line.end(), fields_end)
    if match is None or raw[fields_end:] != b"\r\n":
        raise _malformed("a header line holds a character that has no place there, or is folded")
    method = line[1].decode("ascii")
    if method not in METHODS:
        raise _malformed(f"{method} is not a method that is served here")
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        raise _malformed("upgrading the connection is not served here") from None
    except httptools.HttpParserError:
        raise _malformed("the head is not HTTP") from None
    fields = tuple(collector.fields)
    if collector.target != line[2] or len(fields) != raw.count(b"\r\n") - 2:
        raise _malformed("the head can be read in two ways")
    return _head(method, line[2].decode("ascii"), int(line[3]), fields)


def _head(method: str, target: str, minor: int, fields: tuple[tuple[bytes, bytes], ...]) -> Head:
    if len(fields) > FIELDS_MAX:
        raise BadHead(431, "head_too_large", f"there are more than {FIELDS_MAX} header fields")
    seen: dict[bytes, bytes] = {}
    for name, value in fields:
        if len(name) + len(value) + 4 > LINE_BYTES_MAX:
            raise BadHead(431, "head_too_large", f"a header line is longer than {LINE_BYTES_MAX:,} bytes")
        if name in _SINGLE and name in seen:
            raise _ambiguous(f"{name.decode()} stands twice")
        if name in _OVERRIDES:
            raise _ambiguous("a header that overrides the method is not taken")
        if name in _UPGRADES:
            raise _malformed("upgrading the connection is not served here")
        if name not in seen:
            seen[name] = value
    host = seen.get(b"host")
    if not host or b"," in host or b" " in host:
        raise _malformed("there must be exactly one Host")
    length = _length(seen, minor)
    expect = seen.get(b"expect")
    if expect is not None and expect != b"100-continue":
        raise BadHead(417, "malformed_request", "the only expectation met here is 100-continue")
    # Not asked of the parser: where there is no body it has already begun the next message.
    stated = seen.get(b"connection")
    options = {option.strip(b" \t").lower() for option in stated.split(b",")} if stated else ()
    keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options)
    continues = expect is not None and minor == 1
    return Head(method, target, fields, length, keep_alive, continues, minor, seen)


def _length(seen: dict[bytes, bytes], minor: int) -> int | None:
    """Bytes of the body; None for chunked. CL.TE and TE.CL smuggling live on doubts about this."""
    coding = seen.get(b"transfer-encoding")
    stated = seen.get(b"content-length")
    if coding is not None:
        if stated is not None:
            raise _ambiguous("content-length and transfer-encoding stand together")
        if minor == 0:
            raise _malformed("HTTP/1.0 has no transfer-encoding")
        if coding != b"chunked":
            raise _malformed("the only transfer-encoding taken is chunked")
        return None
    if stated is None:
        return 0
    if not _LENGTH.fullmatch(stated):
        raise _malformed("content-length is not a plain number")
    return int(stated)


def _malformed(sentence: str) -> BadHead:
    return BadHead(400, "malformed_request", sentence)


def _ambiguous(sentence: str) -> BadHead:
    return BadHead(400, "ambiguous_request", sentence)
