"""Operator tokens: who may use the operator API over TCP, and how far.

What must stay true: only the digest of a token is kept; a token is good once it is durable and not a
moment before; a revocation bites at once in memory and is reported only when it is durable; an unknown
token costs the same work as a known one.
"""

import re
import secrets
from dataclasses import dataclass

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.control.routes import Ask, Reply, Route
from kbctld.core.clock import rfc3339
from kbctld.core.operator_token import SCOPES, Scope, mint
from kbctld.core.vault_key import base62, digest, same
from kbctld.store import changes, queries
from kbctld.store.journal import JournalError
from kbctld.vault import Vault

_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)", re.ASCII)
_UNIT_NS = {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_LIFETIME = "30d"
_NOTE = re.compile(r"[^\x00-\x1f\x7f]{0,200}")
_NOBODY = bytes(32)


@dataclass(slots=True)
class Token:
    """One token, without itself."""

    token_id: str
    digest: bytes
    scope: Scope
    note: str
    created_ns: int
    expires_ns: int | None
    revoked_ns: int | None


class Tokens:
    """All that were ever created, in memory and in the journal."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._by_digest: dict[bytes, Token] = {}
        self._by_id: dict[str, Token] = {}

    async def load(self) -> None:
        """Read them back at start."""
        for row in await queries.tokens(self._vault.journal.database.reader):
            self._enter(Token(*row))

    def find(self, text: str) -> Token | None:
        """The token that this text is, good or not; the work is the same whether there is one."""
        wanted = digest(text)
        token = self._by_digest.get(wanted)
        return token if same(_NOBODY if token is None else token.digest, wanted) else None

    async def create(self, scope: Scope, lifetime_ns: int | None, note: str, actor: str) -> tuple[Token, str]:
        """Make a token; returns when it is durable.

        Raises:
            JournalError: it could not be recorded; there is no token.
        """
        text = mint(secrets.token_bytes(32))
        now_ns = self._vault.now_ns()
        expires_ns = None if lifetime_ns is None else now_ns + lifetime_ns
        token_id = f"tok_{base62(secrets.randbelow(62**10), 10)}"
        token = Token(token_id, digest(text), scope, note, now_ns, expires_ns, None)
        created = changes.token_created(token_id, token.digest, scope, note, now_ns, expires_ns)
        said = changes.noted(now_ns, actor, "token.create", token_id, {"scope": scope})
        await self._vault.journal.change([created, said])
        self._enter(token)
        return token, text

    async def revoke(self, token: Token, actor: str) -> None:
        """Stop a token: in memory at once, then on disk.

        Raises:
            JournalError: it is stopped until a restart, but that is not durable.
        """
        now_ns = self._vault.now_ns()
        token.revoked_ns = token.revoked_ns or now_ns
        # Again for one that only memory knows of: a retry after a failure must make it durable.
        await self._vault.journal.change(
            [
                changes.token_revoked(token.token_id, token.revoked_ns),
                changes.noted(now_ns, actor, "token.revoke", token.token_id, {}),
            ],
            lasting=True,
        )

    # --- what operators ask -----------------------------------------------------------------------

    def routes(self) -> list[Route]:
        """Their part of the table."""
        return [
            Route(
                *("GET", "/tokens", self._list, "admin", "Operator tokens, newest first"),
                gives=wire.TokenList,
            ),
            Route(
                *("POST", "/tokens", self._create, "admin", "Create an operator token"),
                takes=wire.TokenRequest,
                gives=wire.CreatedToken,
                status=201,
                errors=(503,),
            ),
            Route(
                *("DELETE", "/tokens/{token_id}", self._revoke, "admin", "Revoke an operator token"),
                gives=wire.Token,
                errors=(404, 503),
            ),
        ]

    async def _list(self, _ask: Ask) -> Reply:
        return Reply(wire.TokenList(tokens=[_view(token) for token in reversed(self._by_id.values())]))

    async def _create(self, ask: Ask) -> Reply:
        request = wire.decode(ask.body, wire.TokenRequest)
        scope = next((known for known in SCOPES if known == request.scope), None)
        if scope is None:
            raise _usage(f"`scope` takes {', '.join(SCOPES)}, not {request.scope[:50]!r}")
        note = request.note or ""
        if not _NOTE.fullmatch(note):
            raise _usage("`note` takes at most 200 characters, no control characters")
        try:
            token, text = await self.create(
                scope, _lifetime_ns(request.expires_in or _LIFETIME), note, ask.actor
            )
        except JournalError as error:
            raise KbctlError(
                "audit_unavailable", f"the token could not be recorded: {error}", "kbctl status"
            ) from None
        view = _view(token)
        return Reply(
            wire.CreatedToken(**{name: getattr(view, name) for name in view.__struct_fields__}, token=text)
        )

    async def _revoke(self, ask: Ask) -> Reply:
        token = self._by_id.get(ask.parameters[0])
        if token is None:
            # The token itself may stand here: never repeat it.
            raise KbctlError(
                "token_unknown", "there is no token of that id", "kbctl token list", Exit.NOT_FOUND
            )
        try:
            await self.revoke(token, ask.actor)
        except JournalError as error:
            raise KbctlError(
                "audit_unavailable",
                f"the token is stopped until a restart, but that could not be recorded: {error}",
                "kbctl status    # then revoke again",
            ) from None
        return Reply(_view(token))

    def _enter(self, token: Token) -> None:
        self._by_digest[token.digest] = token
        self._by_id[token.token_id] = token


def _view(token: Token) -> wire.Token:
    return wire.Token(
        token_id=token.token_id,
        scope=token.scope,
        note=token.note,
        created_at=rfc3339(token.created_ns),
        expires_at=None if token.expires_ns is None else rfc3339(token.expires_ns),
        revoked_at=None if token.revoked_ns is None else rfc3339(token.revoked_ns),
    )


def _lifetime_ns(text: str) -> int | None:
    if text == "never":
        return None
    match = _DURATION.fullmatch(text)
    nano = int(match[1]) * _UNIT_NS[match[2]] if match else 0
    if not 0 < nano <= 3660 * _UNIT_NS["d"]:
        raise _usage(f"`expires_in` takes 30m, 2h, 7d or never (at most 10 years), not {text[:50]!r}")
    return nano


def _usage(message: str) -> KbctlError:
    return KbctlError("invalid_request", message, "kbctl token create --scope read --ttl 7d", Exit.USAGE)
