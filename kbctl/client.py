"""The operator API in Python: one method per call, over the UNIX socket of the daemon.

What must stay true: every failure leaves here as a :class:`~kbctl.errors.KbctlError` with a code, a sentence
and a remedy; nothing of the environment (proxies, netrc) steers a request; and no secret is handed to a
socket that another user of this machine could have put there.

    from kbctl import Client
    from kbctl.wire import IssueRequest

    with Client() as kbctl:
        key = kbctl.issue(IssueRequest(tenant="acme", daily_usd_cap=500))
        print(key.key_id, key.vault_key)
"""

import os
import stat
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctl.paths import Home, home

T = TypeVar("T")

PAGE_MAX: Final = 1000
"""Rows of one audit page; the daemon's own limit."""

# Above the slowest thing the daemon waits for: a keyring that has to be unlocked by a person.
_TIMEOUT_S: Final = 90.0
_EXITS: Final = {
    400: Exit.USAGE,
    413: Exit.USAGE,
    415: Exit.USAGE,
    422: Exit.USAGE,
    401: Exit.REFUSED,
    403: Exit.REFUSED,
    409: Exit.REFUSED,
    429: Exit.REFUSED,
    404: Exit.NOT_FOUND,
}


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which calls; every part narrows. Times are RFC 3339 in UTC. ``limit`` None or 0: all of them."""

    label_contains: str | None = None
    tenant: str | None = None
    key: str | None = None
    vendor: str | None = None
    denied: bool = False
    unknown: bool = False
    start: str | None = None
    end: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class _Call(Generic[T]):
    """One request, before anything is sent."""

    method: str
    path: str
    kind: type[T]
    body: wire.Request | None = field(default=None, repr=False)
    query: tuple[tuple[str, str], ...] = ()
    any_api: bool = False
    """Whether a daemon of another version may be asked this: stopping one must always work."""


class Client:
    """Asks the daemon of one home; blocking.

    Args:
        home: whose daemon; the one that ``KBCTL_HOME`` names when left out.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, home: Home | None = None, *, timeout: float = _TIMEOUT_S) -> None:
        self._socket = _socket(home)
        self._http = httpx.Client(transport=httpx.HTTPTransport(uds=str(self._socket)), **_settings(timeout))
        self.body: bytes = b""
        """What was answered last, byte for byte: what ``--json`` shows."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back."""
        self._http.close()

    def status(self) -> wire.Status:
        """How the daemon is."""
        return self._ask(_status())

    def shutdown(self) -> wire.ShutdownReply:
        """Drain and end the daemon; returns at once."""
        return self._ask(_shutdown())

    def issue(self, request: wire.IssueRequest) -> wire.IssuedKey:
        """A new vault key. The answer is the only place where it is ever seen."""
        return self._ask(_issue(request))

    def keys(
        self,
        *,
        tenant: str | None = None,
        label: str | None = None,
        status: str = "all",
        metadata: Mapping[str, str] | None = None,
    ) -> list[wire.Key]:
        """The keys that match; ``status`` is active, frozen, revoked, expired or all."""
        return self._ask(_keys(tenant, label, status, metadata)).keys

    def key(self, ref: str) -> wire.Key:
        """One key, by key id, a unique prefix of it, or the vault key itself."""
        return self._ask(_key(ref))

    def revoke(self, ref: str) -> wire.RevokeReply:
        """End one key at once; durable when this returns."""
        return self._ask(_revoke(ref))

    def revoke_all(self, request: wire.RevokeRequest) -> wire.RevokeReply:
        """End several keys at once: a list, a tenant's, a label's, or all."""
        return self._ask(_revoke_all(request))

    def credentials(self) -> list[wire.Credential]:
        """The real secrets that the daemon holds, without the secrets."""
        return self._ask(_credentials()).credentials

    def set_credential(self, name: str, secret: str, *, vendor: str | None = None) -> wire.Credential:
        """Store a real secret, or rotate it."""
        return self._ask(_set_credential(name, secret, vendor))

    def remove_credential(self, name: str) -> None:
        """Forget a real secret."""
        self._ask(_remove_credential(name))

    def audit(self, wanted: AuditFilter | None = None) -> Iterator[list[wire.Call]]:
        """Calls, newest first, a page at a time as they are asked for."""
        for body in self.audit_bodies(wanted):
            yield _decode(body, list[wire.Call])

    def audit_bodies(self, wanted: AuditFilter | None = None) -> Iterator[bytes]:
        """The same pages as the daemon wrote them: JSON arrays."""
        wanted = wanted or AuditFilter()
        call: _Call[list[Any]] | None = _audit(wanted)
        left = wanted.limit or None
        while call is not None:
            answer = self._send(call)
            body, rows = _page(answer, left)
            yield body
            left = None if left is None else left - rows
            call = None if left is not None and left <= 0 else _next_page(answer)

    def _ask(self, call: _Call[T]) -> T:
        return _read(self._send(call), call)

    def _send(self, call: _Call[Any]) -> httpx.Response:
        _check_owner(self._socket)
        try:
            answer = self._http.request(**_request(call))
        except httpx.HTTPError as error:
            raise _unreachable(self._socket, error) from None
        self.body = answer.content
        _check_answer(answer, call)
        return answer


class AsyncClient:
    """The same for asyncio.

    Args:
        home: whose daemon; the one that ``KBCTL_HOME`` names when left out.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, home: Home | None = None, *, timeout: float = _TIMEOUT_S) -> None:
        self._socket = _socket(home)
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self._socket)), **_settings(timeout)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    async def status(self) -> wire.Status:
        """How the daemon is."""
        return await self._ask(_status())

    async def shutdown(self) -> wire.ShutdownReply:
        """Drain and end the daemon; returns at once."""
        return await self._ask(_shutdown())

    async def issue(self, request: wire.IssueRequest) -> wire.IssuedKey:
        """A new vault key. The answer is the only place where it is ever seen."""
        return await self._ask(_issue(request))

    async def keys(
        self,
        *,
        tenant: str | None = None,
        label: str | None = None,
        status: str = "all",
        metadata: Mapping[str, str] | None = None,
    ) -> list[wire.Key]:
        """The keys that match; ``status`` is active, frozen, revoked, expired or all."""
        return (await self._ask(_keys(tenant, label, status, metadata))).keys

    async def key(self, ref: str) -> wire.Key:
        """One key, by key id, a unique prefix of it, or the vault key itself."""
        return await self._ask(_key(ref))

    async def revoke(self, ref: str) -> wire.RevokeReply:
        """End one key at once; durable when this returns."""
        return await self._ask(_revoke(ref))

    async def revoke_all(self, request: wire.RevokeRequest) -> wire.RevokeReply:
        """End several keys at once: a list, a tenant's, a label's, or all."""
        return await self._ask(_revoke_all(request))

    async def credentials(self) -> list[wire.Credential]:
        """The real secrets that the daemon holds, without the secrets."""
        return (await self._ask(_credentials())).credentials

    async def set_credential(self, name: str, secret: str, *, vendor: str | None = None) -> wire.Credential:
        """Store a real secret, or rotate it."""
        return await self._ask(_set_credential(name, secret, vendor))

    async def remove_credential(self, name: str) -> None:
        """Forget a real secret."""
        await self._ask(_remove_credential(name))

    async def audit(self, wanted: AuditFilter | None = None) -> AsyncIterator[list[wire.Call]]:
        """Calls, newest first, a page at a time as they are asked for."""
        wanted = wanted or AuditFilter()
        call: _Call[list[Any]] | None = _audit(wanted)
        left = wanted.limit or None
        while call is not None:
            answer = await self._send(call)
            body, rows = _page(answer, left)
            yield _decode(body, list[wire.Call])
            left = None if left is None else left - rows
            call = None if left is not None and left <= 0 else _next_page(answer)

    async def _ask(self, call: _Call[T]) -> T:
        return _read(await self._send(call), call)

    async def _send(self, call: _Call[Any]) -> httpx.Response:
        _check_owner(self._socket)
        try:
            answer = await self._http.request(**_request(call))
        except httpx.HTTPError as error:
            raise _unreachable(self._socket, error) from None
        _check_answer(answer, call)
        return answer


# --- the calls ------------------------------------------------------------------------------------


def _status() -> _Call[wire.Status]:
    return _Call("GET", "/status", wire.Status)


def _shutdown() -> _Call[wire.ShutdownReply]:
    return _Call("POST", "/shutdown", wire.ShutdownReply, any_api=True)


def _issue(request: wire.IssueRequest) -> _Call[wire.IssuedKey]:
    return _Call("POST", "/vault/keys", wire.IssuedKey, body=request)


def _keys(
    tenant: str | None, label: str | None, status: str, metadata: Mapping[str, str] | None
) -> _Call[wire.KeyList]:
    query = _given(tenant=tenant, label=label, status=status)
    query += tuple((f"metadata.{name}", value) for name, value in (metadata or {}).items())
    return _Call("GET", "/vault/keys", wire.KeyList, query=query)


def _key(ref: str) -> _Call[wire.Key]:
    return _Call("GET", f"/vault/keys/{_segment(ref)}", wire.Key)


def _revoke(ref: str) -> _Call[wire.RevokeReply]:
    return _Call("DELETE", f"/vault/keys/{_segment(ref)}", wire.RevokeReply)


def _revoke_all(request: wire.RevokeRequest) -> _Call[wire.RevokeReply]:
    return _Call("POST", "/vault/revocations", wire.RevokeReply, body=request)


def _credentials() -> _Call[wire.CredentialList]:
    return _Call("GET", "/credentials", wire.CredentialList)


def _set_credential(name: str, secret: str, vendor: str | None) -> _Call[wire.Credential]:
    body = wire.CredentialRequest(secret=secret, vendor=vendor)
    return _Call("PUT", f"/credentials/{_segment(name)}", wire.Credential, body=body)


def _remove_credential(name: str) -> _Call[None]:
    return _Call("DELETE", f"/credentials/{_segment(name)}", type(None))


def _audit(wanted: AuditFilter) -> _Call[list[Any]]:
    query = _given(
        label_contains=wanted.label_contains,
        tenant=wanted.tenant,
        key=wanted.key,
        vendor=wanted.vendor,
        denied="true" if wanted.denied else None,
        unknown="true" if wanted.unknown else None,
        to=wanted.end,
        limit=str(min(wanted.limit or PAGE_MAX, PAGE_MAX)),
    )
    if wanted.start is not None:
        query += (("from", wanted.start),)
    return _Call("GET", "/audit", list[Any], query=query)


def _given(**query: str | None) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in query.items() if value is not None)


def _segment(text: str) -> str:
    """One path segment, whatever it holds.

    An empty one or ``..`` would name another resource: the collection, or the folder above.
    """
    if text in ("", ".", ".."):
        raise KbctlError("bad_value", f"{text!r} names nothing", "kbctl keys", Exit.USAGE)
    return quote(text, safe="")


# --- the wire -------------------------------------------------------------------------------------


def _socket(chosen: Home | None) -> Path:
    return (chosen or home()).socket


def _settings(timeout: float) -> dict[str, Any]:
    return {"base_url": "http://localhost", "trust_env": False, "timeout": timeout, "follow_redirects": False}


def _request(call: _Call[Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"method": call.method, "url": call.path}
    if call.query:
        made["params"] = call.query
    if call.body is not None:
        made["content"] = wire.encode(call.body)
        made["headers"] = {"content-type": "application/json"}
    return made


def _check_owner(socket: Path) -> None:
    """Refuse somebody else's socket: that of a long home is in a temp folder, where anyone may be first."""
    try:
        found, folder = socket.lstat(), socket.parent.stat()
    except FileNotFoundError:
        raise _not_running() from None
    except OSError as error:
        raise _unreachable(socket, error) from None
    trusted = (os.geteuid(), 0)
    others_write = folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not folder.st_mode & stat.S_ISVTX
    if found.st_uid not in trusted or folder.st_uid not in trusted or others_write:
        raise KbctlError(
            "socket_not_ours",
            f"the socket {socket} could belong to another user of this machine, so nothing was sent to it",
            f"ls -ld {socket.parent} {socket}",
            Exit.REFUSED,
        )


def _not_running() -> KbctlError:
    return KbctlError("daemon_unreachable", "the daemon is not running", "kbctl up", Exit.UNREACHABLE)


def _unreachable(socket: Path, error: BaseException) -> KbctlError:
    """What a failed exchange means for the person."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PermissionError):
            return KbctlError(
                "socket_forbidden", f"this user may not open the socket {socket}", "id -un", Exit.REFUSED
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ConnectError):
        return _not_running()
    if isinstance(error, httpx.TimeoutException):
        return KbctlError(
            "daemon_unreachable", "the daemon did not answer in time", "kbctl logs", Exit.UNREACHABLE
        )
    return KbctlError(
        "daemon_unreachable", "the daemon ended before it had answered", "kbctl logs", Exit.UNREACHABLE
    )


def _check_answer(answer: httpx.Response, call: _Call[Any]) -> None:
    api = answer.headers.get("kbctl-api", wire.API)
    if api != wire.API and not call.any_api:
        older = api.isdecimal() and int(api) < int(wire.API)
        raise KbctlError(
            "api_mismatch",
            f"the running daemon is of {'an older' if older else 'another'} version than this kbctl",
            "kbctl down && kbctl up" if older else "pip install --upgrade kbctl",
            Exit.REFUSED,
        )
    if answer.is_success:
        return
    exit_status = _EXITS.get(answer.status_code, Exit.INTERNAL)
    try:
        error = wire.decode(answer.content, wire.ErrorReply).error
    except wire.WireError:
        raise KbctlError(
            "bad_answer",
            f"the daemon answered HTTP {answer.status_code} without a reason",
            "kbctl logs",
            exit_status,
        ) from None
    raise KbctlError(error.code, error.message, error.remedy, exit_status)


def _read(answer: httpx.Response, call: _Call[T]) -> T:
    if call.kind is type(None):
        return None
    return _decode(answer.content, call.kind)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return wire.decode(body, kind)
    except wire.WireError as error:
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> KbctlError:
    return KbctlError(
        "bad_answer",
        f"the daemon's answer could not be read: {error}",
        "kbctl down && kbctl up",
        Exit.INTERNAL,
    )


def _page(answer: httpx.Response, left: int | None) -> tuple[bytes, int]:
    """One page, cut to what is still wanted, and how many rows it has."""
    try:
        rows = msgspec.json.decode(answer.content, type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        raise _unreadable(error) from None
    if left is None or len(rows) <= left:
        return answer.content, len(rows)
    return msgspec.json.encode(rows[:left]), left


def _next_page(answer: httpx.Response) -> _Call[list[Any]] | None:
    url = answer.links.get("next", {}).get("url")
    if url is None:
        return None
    target = httpx.URL(url)
    # Only the path and query: where a request goes is not the answer's to choose.
    return _Call("GET", target.path, list[Any], query=tuple(target.params.multi_items()))
