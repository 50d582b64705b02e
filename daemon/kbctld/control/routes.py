"""From a request on the UNIX socket to a handler and back: a sorted table, one struct in, one struct out.

What must stay true: every failure is an ``ErrorReply`` with a remedy; nothing here answers a browser.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.http1.gate import BadHead, Head
from kbctld.http1.server import BadBody, Fields, Request

log = logging.getLogger("kbctld.control")

_STATUS = {
    Exit.USAGE: 400,
    Exit.REFUSED: 409,
    Exit.NOT_FOUND: 404,
    Exit.INTEGRITY: 500,
    Exit.INTERNAL: 503,
    Exit.UNREACHABLE: 503,
}


_STATUS_OF_CODE = {"origin_not_allowed": 403, "method_not_allowed": 405}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of an operator.

    Attributes:
        parameters: the variable segments of the path, decoded.
        query: names with all their values, in order.
        body: raw; handlers decode it with the struct they take.
    """

    parameters: tuple[str, ...]
    query: dict[str, list[str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler gives back."""

    message: Any
    status: int = 200
    fields: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[Ask], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table; ``*`` in the path is a variable segment."""

    method: str
    path: str
    handler: Handler
    query: frozenset[str] = frozenset()
    """Names that may stand in the query; a trailing dot takes any name that starts so."""


class Routes:
    """The table, and the way through it."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes = [(route.method, tuple(route.path.strip("/").split("/")), route) for route in routes]

    async def handle(self, request: Request) -> None:
        """Answer one request."""
        assert request.head is not None  # noqa: S101 - for the type checker
        try:
            reply = await self._answer(request, request.head)
        except KbctlError as error:
            status = _STATUS_OF_CODE.get(error.code, _STATUS[error.exit_status])
            _fail(request, status, error.code, error.message, error.remedy)
        except wire.WireError as error:
            _fail(request, 400, "invalid_request", str(error), "kbctl --help")
        except BadBody as bad:
            _fail(request, bad.status, bad.code, bad.sentence, "")
        else:
            fields: Fields = [(b"Kbctl-Api", wire.API.encode()), *reply.fields]
            body = b"" if reply.message is None else wire.encode(reply.message)
            if body:
                fields.append((b"Content-Type", b"application/json"))
            request.respond(204 if reply.message is None else reply.status, fields, body)

    async def reject(self, request: Request, bad: BadHead) -> None:
        """Answer a request whose head did not pass the gate."""
        _fail(request, bad.status, bad.code, bad.sentence, "")

    async def _answer(self, request: Request, head: Head) -> Reply:
        if head.get(b"origin") is not None or head.get(b"sec-fetch-site") not in (None, b"none"):
            raise KbctlError(
                "origin_not_allowed", "the operator API does not answer web pages", "", Exit.REFUSED
            )
        path, _, query = head.target.partition("?")
        segments = tuple(path.strip("/").split("/"))
        fitting = [route for _, pattern, route in self._routes if _fits(pattern, segments)]
        route = next((route for route in fitting if route.method == head.method), None)
        if route is None:
            if fitting:
                allowed = ", ".join(route.method for route in fitting)
                raise KbctlError("method_not_allowed", f"{path} takes {allowed}", "", Exit.USAGE)
            raise KbctlError("not_found", f"there is nothing at {path}", "", Exit.NOT_FOUND)
        parameters = tuple(
            unquote(have)
            for want, have in zip(route.path.strip("/").split("/"), segments, strict=True)
            if want == "*"
        )
        return await route.handler(Ask(parameters, _query(route, query), await request.body()))


def _fits(pattern: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    return len(pattern) == len(segments) and all(
        want == have or (want == "*" and have) for want, have in zip(pattern, segments, strict=True)
    )


def _query(route: Route, text: str) -> dict[str, list[str]]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=100)
    except ValueError:
        raise KbctlError("invalid_request", "the query can't be read", "", Exit.USAGE) from None
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        if name not in route.query and not any(
            name.startswith(prefix) for prefix in route.query if prefix.endswith(".")
        ):
            allowed = ", ".join(sorted(route.query)) or "none"
            raise KbctlError(
                "invalid_request", f"unknown filter `{name}`", f"filters here: {allowed}", Exit.USAGE
            )
        found.setdefault(name, []).append(value)
    return found


def _fail(request: Request, status: int, code: str, message: str, remedy: str) -> None:
    body = wire.encode(wire.ErrorReply(error=wire.ErrorBody(code=code, message=message, remedy=remedy)))
    fields: Fields = [(b"Content-Type", b"application/json"), (b"Kbctl-Api", wire.API.encode())]
    request.respond(status, fields, body, close=request.head is None)
