"""The operator API on the proxy's port: told from agents' calls by the first segment of the path.

What must stay true: web pages and foreign Hosts are turned away before any credential is read; whoever
has no good operator token learns nothing but that; a vault key opens only what is an agent's own (what it
may still do, and deriving a child). Nothing of a token is logged, and a flood of bad ones logs one line a
second.
"""

import logging
import time
from collections.abc import Awaitable, Callable

import msgspec

from kbctl import wire
from kbctld.control.routes import (
    Asker,
    HttpError,
    Reply,
    Route,
    Routes,
    is_json,
    read_body,
    respond,
)
from kbctld.control.tokens import Tokens
from kbctld.core.operator_token import PREFIX
from kbctld.core.refusal import Refusal
from kbctld.core.vault_key import PREFIX as VAULT_KEY_PREFIX
from kbctld.http1.gate import Head
from kbctld.http1.server import Request

log = logging.getLogger("kbctld.control")

SEGMENTS = frozenset(
    "vault vault_keys audit calls policies tenants credentials vendors spend sql changes tokens status"
    " rates healthz metrics openapi.json shutdown backup".split()
)
"""First segments that are the operator API's; no vendor may be called so."""

WhoAmI = Callable[[Head], Awaitable[Reply]]
Derive = Callable[[Head, wire.IssueRequest], Awaitable[Reply]]

_REMEDY = "kbctl token create"
_ISSUING = ("/vault/keys", "/vault_keys")


class Door:
    """Looks at every request on the proxy's port and passes it on.

    Args:
        routes: the operator API.
        tokens: who may use it.
        plane: takes everything else.
        stranger: what the proxy says of a page or a foreign Host.
        who_am_i: answers GET /vault/self, by the vault key in the head; raises ``HttpError``.
        derive: answers an agent that asks for a child of its key; raises ``HttpError``.
        now_ns: effective time, by which tokens expire.
    """

    def __init__(
        self,
        routes: Routes,
        tokens: Tokens,
        plane: Callable[[Request], Awaitable[None]],
        *,
        stranger: Callable[[Head], Refusal | None],
        who_am_i: WhoAmI,
        derive: Derive,
        now_ns: Callable[[], int],
    ) -> None:
        self._routes = routes
        self._tokens = tokens
        self._plane = plane
        self._stranger = stranger
        self._who_am_i = who_am_i
        self._derive = derive
        self._now_ns = now_ns
        self._quiet_until = 0.0
        self._unsaid = 0

    async def handle(self, request: Request) -> None:
        """Serve one request whose head passed the gate."""
        head = request.head
        assert head is not None  # noqa: S101 - for the type checker
        path = head.target.partition("?")[0]
        if path[1:].partition("/")[0] in SEGMENTS and path[0] == "/":
            await respond(request, self._operator(request, head, path))
        else:
            await self._plane(request)

    async def _operator(self, request: Request, head: Head, path: str) -> tuple[int, Reply]:
        refusal = self._stranger(head)
        if refusal is not None:
            raise HttpError(403, refusal.code.value, refusal.sentence, refusal.remedy)
        if path == "/vault/self" and head.method in ("GET", "HEAD"):
            return 200, await self._who_am_i(head)
        if path in _ISSUING and head.method == "POST" and not _bearer(head).startswith(PREFIX):
            asked = await _derivation(request, head)
            if asked is not None:
                return 201, await self._derive(head, asked)
        return await self._routes.answer(request, head, self._let_in)

    def _let_in(self, _request: Request, head: Head, route: Route | None) -> Asker:
        """The gate of TCP: an operator token that is good now."""
        if route is not None and route.scope is None:
            return Asker("", "read")
        text = _bearer(head)
        if not text:
            raise self._refused(
                "token_missing", "the operator API on TCP takes Authorization: Bearer, with an operator token"
            )
        token = self._tokens.find(text)
        if token is None:
            sentence = (
                "this is a vault key: it is for calls to vendors; the operator API takes an operator token"
                if text.startswith(VAULT_KEY_PREFIX)
                else "no operator token like this was created here"
            )
            raise self._refused("token_unknown", sentence)
        if token.revoked_ns is not None:
            raise self._refused("token_revoked", f"the token {token.token_id} was revoked")
        if token.expires_ns is not None and self._now_ns() >= token.expires_ns:
            raise self._refused("token_expired", f"the token {token.token_id} has expired")
        return Asker(token.token_id, token.scope)

    def _refused(self, code: str, sentence: str) -> HttpError:
        now = time.monotonic()
        if now < self._quiet_until:
            self._unsaid += 1
        else:
            since = f", and {self._unsaid:,} since the last such line" if self._unsaid else ""
            log.warning("operator API: a request on TCP was turned away: %s%s", code, since)
            self._quiet_until, self._unsaid = now + 1.0, 0
        return HttpError(401, code, sentence, _REMEDY)


def _bearer(head: Head) -> str:
    scheme, _, value = (head.get(b"authorization") or b"").partition(b" ")
    return value.strip(b" ").decode("latin-1") if scheme.lower() == b"bearer" else ""


async def _derivation(request: Request, head: Head) -> wire.IssueRequest | None:
    """What an agent asks for, if that is what this is: a body that names the key it derives from."""
    if not head.has_body or not is_json(head):
        return None
    body = await read_body(request, head)
    try:
        plain = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(plain, dict) or plain.get("parent_vault_key") is None:
        return None
    return wire.decode(body, wire.IssueRequest)
