"""From a request to a handler and back: a sorted table, one struct in, one struct out.

What must stay true: every failure is an ``ErrorReply`` with a remedy; a route says all that it takes and
gives, and what it does not say is refused before its handler runs; whoever asks is known, and may, before
a byte of the body is read. Who that is decides a ``Gate``: one for the socket, one for TCP.
"""

import logging
import re
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld import __version__
from kbctld.control.parameters import Parameter, read_moment
from kbctld.core.operator_token import Scope, covers
from kbctld.http1.gate import BadHead, Head
from kbctld.http1.server import BadBody, Fields, Request

log = logging.getLogger("kbctld.control")

BODY_BYTES_MAX = 1024 * 1024

JSON = b"application/json"

_STATUS = {
    Exit.USAGE: 400,
    Exit.REFUSED: 409,
    Exit.NOT_FOUND: 404,
    Exit.INTEGRITY: 500,
    Exit.INTERNAL: 503,
    Exit.UNREACHABLE: 503,
}
_VERSIONS = ((b"Kbctl-Api", wire.API.encode()), (b"Kbctl-Version", __version__.encode()))
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SECRET = re.compile(r"(vault_key_|kbctl_tok_)[0-9A-Za-z]+", re.ASCII)
_SHOWN = 200


class HttpError(KbctlError):
    """A failure with an HTTP status and header fields of its own."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        remedy: str = "",
        fields: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(code, message, remedy, Exit.REFUSED)
        self.status = status
        self.fields = fields


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and what they may.

    Attributes:
        actor: ``uid 1000`` on the socket, a token's id on TCP; empty for who needs no name.
    """

    actor: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of an operator.

    Attributes:
        parameters: the variable segments of the path, decoded.
        query: names with all their values, in order; each has passed its ``Parameter``.
        body: raw; handlers decode it with the struct they take.
        actor: as in ``Asker``.
    """

    parameters: tuple[str, ...]
    query: dict[str, list[str]]
    body: bytes
    actor: str

    def text(self, name: str) -> str | None:
        values = self.query.get(name)
        return values[-1] if values else None

    def moment(self, name: str) -> int | None:
        text = self.text(name)
        return None if text is None else read_moment(text)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler gives back.

    Attributes:
        message: a struct, or a list of them; bytes and texts go out as they are, and pieces as they come;
            None for nothing.
        kind: its media type.
    """

    message: Any
    fields: tuple[tuple[bytes, bytes], ...] = ()
    kind: bytes = JSON


Handler = Callable[[Ask], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table.

    Attributes:
        path: ``{name}`` in it is a variable segment.
        scope: what an operator token needs; None where nobody is asked for one.
        takes: the struct of the body; None where there is none.
        gives: the struct of the answer, ``list`` of one, ``str`` for text, ``dict`` for other JSON, or None.
        kind: the media type of a text.
        status: of a success; 204 where it gives nothing.
        query: what may stand in the query; a name with a final dot takes any name that starts so.
        errors: statuses that only the handler itself gives.
    """

    method: str
    path: str
    handler: Handler
    scope: Scope | None
    summary: str
    _: KW_ONLY
    takes: type[wire.Request] | None = None
    gives: Any = None
    kind: str = "text/plain"
    status: int = 200
    query: Mapping[str, Parameter] = field(default_factory=dict)
    errors: tuple[int, ...] = ()

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(self.path[1:].split("/"))


Gate = Callable[[Request, Head, Route | None], Asker]
"""Lets an asker through to a route, or to the news that there is none; raises a ``KbctlError`` otherwise."""


class Routes:
    """The table, and the way through it.

    Attributes:
        all: every route, in the order of the table.
    """

    def __init__(self, routes: list[Route]) -> None:
        self.all = sorted(routes, key=lambda route: (route.path, route.method))
        self._by_path: dict[str, dict[str, Route]] = {}
        for route in self.all:
            if route.method in self._by_path.setdefault(route.path, {}):
                raise ValueError(f"{route.method} {route.path} stands twice in the table")
            if (route.gives is None) != (route.status == 204):
                raise ValueError(f"{route.method} {route.path} gives nothing with 204, and 204 nothing")
            self._by_path[route.path][route.method] = route
        # Plain segments before variable ones, so that a name can't take another route's place.
        self._patterns = [
            (tuple(path[1:].split("/")), here)
            for path, here in sorted(self._by_path.items(), key=lambda item: item[0].count("{"))
        ]

    async def handle(self, request: Request, gate: Gate) -> None:
        """Answer one request whose head passed."""
        assert request.head is not None  # noqa: S101 - for the type checker
        await respond(request, self.answer(request, request.head, gate))

    async def answer(self, request: Request, head: Head, gate: Gate) -> tuple[int, Reply]:
        """What the request is answered.

        Raises:
            KbctlError, wire.WireError, BadBody: it is refused.
        """
        path, _, query = head.target.partition("?")
        here, segments = self._find(path)
        route = here.get("GET" if head.method == "HEAD" else head.method)
        asker = gate(request, head, route)
        if not here:
            raise KbctlError("not_found", f"there is nothing at {_shown(path)}", "", Exit.NOT_FOUND)
        if route is None:
            methods = sorted({*here, "HEAD"} if "GET" in here else here)
            allow = ", ".join(methods)
            raise HttpError(
                405,
                "method_not_allowed",
                f"{_shown(path)} takes {allow}",
                fields=((b"Allow", allow.encode()),),
            )
        if route.scope is not None and not covers(asker.scope, route.scope):
            raise HttpError(
                403,
                "token_scope",
                f"{route.method} {route.path} takes a token of scope {route.scope}, not {asker.scope}",
                f"kbctl token create --scope {route.scope}",
            )
        parameters = tuple(
            _decoded(have)
            for want, have in zip(route.segments, segments, strict=True)
            if want.startswith("{")
        )
        asked = _query(route, query)
        body = await _body(route, request, head)
        return route.status, await route.handler(Ask(parameters, asked, body, asker.actor))

    async def reject(self, request: Request, bad: BadHead) -> None:
        """Answer a request whose head did not pass the gate."""
        _fail(request, bad.status, bad.code, bad.sentence, "")

    def _find(self, path: str) -> tuple[dict[str, Route], tuple[str, ...]]:
        segments = tuple(path[1:].split("/"))
        if path.startswith("/"):
            for pattern, here in self._patterns:
                if _fits(pattern, segments):
                    return here, segments
        return {}, segments


async def respond(request: Request, work: Awaitable[tuple[int, Reply]]) -> None:
    """Answer with what the work gives, or with the failure that it ends in."""
    try:
        status, reply = await work
    except KbctlError as error:
        if isinstance(error, HttpError):
            _fail(request, error.status, error.code, error.message, error.remedy, *error.fields)
        else:
            _fail(request, _STATUS[error.exit_status], error.code, error.message, error.remedy)
    except wire.WireError as error:
        _fail(request, 400, "invalid_request", str(error), "kbctl --help")
    except BadBody as bad:
        _fail(request, bad.status, bad.code, bad.sentence, "")
    else:
        message = reply.message
        fields: Fields = [*_VERSIONS, *reply.fields]
        if message is None:
            request.respond(status, fields, b"")
            return
        fields.append((b"Content-Type", reply.kind))
        if isinstance(message, AsyncGenerator):
            await _stream(request, status, fields, message)
            return
        if isinstance(message, str):
            message = message.encode()
        request.respond(status, fields, message if isinstance(message, bytes) else wire.encode(message))


async def _stream(request: Request, status: int, fields: Fields, pieces: AsyncGenerator[bytes, None]) -> None:
    """Answer in pieces; one that fails on the way is cut, so that it can't be taken for a whole one."""
    async with aclosing(pieces):
        request.start(status, fields, None)
        if request.head is None or request.head.method != "HEAD":
            try:
                async for piece in pieces:
                    await request.send(piece)
            except (KbctlError, sqlite3.Error) as error:
                log.warning("an answer was cut off: %s", error)
                request.cut()
                return
        request.end()


async def read_body(request: Request, head: Head) -> bytes:
    """A JSON body, within our own bounds.

    Raises:
        BadBody: too large, too slow, or of another type.
    """
    if not is_json(head):
        raise BadBody(
            415, "unsupported_body", "the body is JSON in UTF-8: send Content-Type: application/json"
        )
    too_large = BadBody(413, "body_too_large", f"the body is larger than {BODY_BYTES_MAX:,} bytes")
    if (head.length or 0) > BODY_BYTES_MAX:
        raise too_large
    body = bytearray()
    async for piece in request.pieces():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise too_large
    return bytes(body)


def is_json(head: Head) -> bool:
    """Whether the body can be JSON by what the head says of it: ``curl -d`` calls every body a form."""
    kind, _, rest = (head.get(b"content-type") or JSON).lower().partition(b";")
    charset = rest.replace(b" ", b"").replace(b'"', b"")
    return (
        kind.strip() in (JSON, b"application/x-www-form-urlencoded")
        and charset in (b"", b"charset=utf-8")
        and head.get(b"content-encoding") in (None, b"identity")
    )


async def _body(route: Route, request: Request, head: Head) -> bytes:
    if route.takes is not None:
        return await read_body(request, head)
    if head.has_body:
        raise KbctlError(
            "invalid_request", f"{route.method} {route.path} takes no body", "send it without one", Exit.USAGE
        )
    return b""


def _fits(pattern: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    return len(pattern) == len(segments) and all(
        want == have or (want.startswith("{") and have) for want, have in zip(pattern, segments, strict=True)
    )


def _decoded(segment: str) -> str:
    try:
        if _BAD_ESCAPE.search(segment):
            raise ValueError
        text = unquote(segment, errors="strict")
    except ValueError:
        raise _malformed("a segment of the path is not percent-encoded UTF-8") from None
    if _CONTROL.search(text):
        raise _malformed("a segment of the path holds a control character")
    return text


def _query(route: Route, text: str) -> dict[str, list[str]]:
    try:
        if _BAD_ESCAPE.search(text):
            raise ValueError
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=100
        )
    except ValueError:
        raise _malformed("the query can't be read") from None
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        parameter = _parameter(route, name)
        if parameter is None:
            allowed = ", ".join(sorted(route.query)) or "none"
            raise KbctlError(
                "invalid_request",
                f"unknown filter `{name[:_SHOWN]}`",
                f"filters here: {allowed}",
                Exit.USAGE,
            )
        wants = parameter.refuses(value)
        if wants is not None:
            raise _malformed(f"`{name[:_SHOWN]}` takes {wants}, not {value[:_SHOWN]!r}")
        if name in found and not parameter.many:
            raise _malformed(f"`{name[:_SHOWN]}` stands twice")
        found.setdefault(name, []).append(value)
    return found


def _parameter(route: Route, name: str) -> Parameter | None:
    known = route.query.get(name)
    if known is not None:
        return None if name.endswith(".") else known
    return next(
        (of for prefix, of in route.query.items() if prefix[-1] == "." and name.startswith(prefix)), None
    )


def _shown(path: str) -> str:
    """A path for an error: short, and without a key that was put into it."""
    return _SECRET.sub(r"\1***", path)[:_SHOWN]


def _malformed(message: str) -> KbctlError:
    return KbctlError("invalid_request", message, "kbctl --help", Exit.USAGE)


def _fail(
    request: Request, status: int, code: str, message: str, remedy: str, *more: tuple[bytes, bytes]
) -> None:
    body = wire.encode(wire.ErrorReply(error=wire.ErrorBody(code=code, message=message, remedy=remedy)))
    fields: Fields = [(b"Content-Type", JSON), *_VERSIONS, *more]
    if status == 401:
        fields.append((b"WWW-Authenticate", b"Bearer"))
    request.respond(status, fields, body, close=request.head is None)
