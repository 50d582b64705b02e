"""Every request that the operator API takes, and how its answer is read; nothing here sends one.

What must stay true: a name that was typed stays one segment of its path; where a request goes is never the
answer's to choose; and every failure is a :class:`~kbctl.errors.KbctlError` with a sentence and a remedy.
"""

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import msgspec

from kbctl import __version__, wire
from kbctl.errors import Exit, KbctlError

T = TypeVar("T")

PAGE_MAX: Final = 1000
"""Rows of one page; the daemon's own limit."""

_TOKEN = re.compile(r"[!-~]{1,512}", re.ASCII)
_NEXT = re.compile(r'<([^>]*)> *; *rel="next"', re.ASCII)
_VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,40}", re.ASCII)
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


class Answer(Protocol):
    """What came back, whatever it came over. Header names are found in lower case."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def content(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which calls; every part narrows. Times are RFC 3339 in UTC. ``limit`` None or 0: all of them."""

    label_contains: str | None = None
    tenant: str | None = None
    key: str | None = None
    vendor: str | None = None
    denied: bool = False
    unknown: bool = False
    duplicates: bool = False
    start: str | None = None
    end: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, before anything is sent."""

    method: str
    path: str
    kind: type[T]
    body: wire.Request | None = field(default=None, repr=False)
    query: tuple[tuple[str, str], ...] = ()
    any_api: bool = False
    """Whether a daemon of another version may be asked this: stopping one must always work."""
    bearer: str | None = field(default=None, repr=False)


# --- the calls ------------------------------------------------------------------------------------


def status() -> Call[wire.Status]:
    return Call("GET", "/status", wire.Status)


def shutdown() -> Call[wire.ShutdownReply]:
    return Call("POST", "/shutdown", wire.ShutdownReply, any_api=True)


def backup(path: str, *, force: bool) -> Call[wire.BackupState]:
    return Call("POST", "/backup", wire.BackupState, body=wire.BackupRequest(path=path, force=force))


def backup_state() -> Call[wire.BackupState]:
    return Call("GET", "/backup", wire.BackupState)


def issue(request: wire.IssueRequest, kind: type[T]) -> Call[T]:
    return Call("POST", "/vault/keys", kind, body=request)


def keys(
    tenant: str | None, label: str | None, status: str, metadata: Mapping[str, str] | None
) -> Call[wire.KeyList]:
    query = _given(tenant=tenant, label=label, status=status, limit=str(PAGE_MAX))
    query += tuple((f"metadata.{name}", value) for name, value in (metadata or {}).items())
    return Call("GET", "/vault/keys", wire.KeyList, query=query)


def key(ref: str) -> Call[wire.Key]:
    return Call("GET", _key(ref), wire.Key)


def tree(ref: str) -> Call[wire.KeyTree]:
    return Call("GET", f"{_key(ref)}/tree", wire.KeyTree)


def pause(ref: str) -> Call[wire.Key]:
    return Call("POST", f"{_key(ref)}/pause", wire.Key)


def resume(ref: str) -> Call[wire.Key]:
    return Call("POST", f"{_key(ref)}/resume", wire.Key)


def revoke(ref: str, *, abort: bool) -> Call[wire.RevokeReply]:
    query = _given(abort="true" if abort else None)
    return Call("DELETE", _key(ref), wire.RevokeReply, query=query)


def revoke_all(request: wire.RevokeRequest) -> Call[wire.RevokeReply]:
    return Call("POST", "/vault/revocations", wire.RevokeReply, body=request)


def policies() -> Call[wire.PolicyList]:
    return Call("GET", "/policies", wire.PolicyList)


def policy(name: str) -> Call[wire.Policy]:
    return Call("GET", _policy(name), wire.Policy)


def apply_policies(policies: Iterable[wire.Policy], *, live: bool, dry_run: bool) -> Call[wire.PolicyChanges]:
    body = wire.PolicyApply(policies=list(policies), live=live or None, dry_run=dry_run or None)
    return Call("PUT", "/policies", wire.PolicyChanges, body=body)


def set_policy(policy: wire.Policy, *, live: bool) -> Call[wire.PolicyChanges]:
    if live:
        return apply_policies([policy], live=True, dry_run=False)
    return Call("PUT", _policy(policy.name), wire.PolicyChanges, body=policy)


def remove_policy(name: str) -> Call[None]:
    return Call("DELETE", _policy(name), type(None))


def tenants() -> Call[wire.TenantList]:
    return Call("GET", "/tenants", wire.TenantList)


def tenant(name: str) -> Call[wire.Tenant]:
    return Call("GET", _tenant(name), wire.Tenant)


def set_tenant(name: str, request: wire.TenantRequest) -> Call[wire.Tenant]:
    return Call("PUT", _tenant(name), wire.Tenant, body=request)


def create_token(request: wire.TokenRequest) -> Call[wire.CreatedToken]:
    return Call("POST", "/tokens", wire.CreatedToken, body=request)


def tokens() -> Call[wire.TokenList]:
    return Call("GET", "/tokens", wire.TokenList)


def revoke_token(token_id: str) -> Call[wire.Token]:
    return Call("DELETE", f"/tokens/{_segment(token_id, 'kbctl token list')}", wire.Token)


def spend(by: str, start: str | None, end: str | None) -> Call[list[wire.Spend]]:
    return Call("GET", "/spend", list[wire.Spend], query=_given(by=by, start=start, to=end))


def sql(query: str) -> Call[wire.SqlReply]:
    return Call("POST", "/sql", wire.SqlReply, body=wire.SqlRequest(query=query))


def vendors() -> Call[wire.VendorList]:
    return Call("GET", "/vendors", wire.VendorList)


def vendor(name: str) -> Call[wire.VendorDetail]:
    return Call("GET", f"/vendors/{_segment(name, 'kbctl vendor list')}", wire.VendorDetail)


def vendor_prices(name: str, model: str | None) -> Call[wire.VendorPrices]:
    path = f"/vendors/{_segment(name, 'kbctl vendor list')}/prices"
    return Call("GET", path, wire.VendorPrices, query=_given(model=model))


def rates() -> Call[wire.CurrencyRates]:
    return Call("GET", "/rates", wire.CurrencyRates)


def check_vendor(text: str) -> Call[wire.VendorFindings]:
    return Call("POST", "/vendors/check", wire.VendorFindings, body=wire.VendorText(text=text))


def credentials() -> Call[wire.CredentialList]:
    return Call("GET", "/credentials", wire.CredentialList)


def set_credential(
    name: str, secret: str, vendor: str | None, fields: Mapping[str, str] | None
) -> Call[wire.Credential]:
    body = wire.CredentialRequest(secret=secret, vendor=vendor, fields=dict(fields) if fields else None)
    return Call("PUT", _credential(name), wire.Credential, body=body)


def remove_credential(name: str) -> Call[None]:
    return Call("DELETE", _credential(name), type(None))


def call(ref: str) -> Call[wire.Call]:
    return Call("GET", f"/calls/{quote(ref, safe='')}", wire.Call)


def resolve(ref: str, spent_usd: Decimal | int | None, note: str | None) -> Call[wire.Call]:
    request = wire.ResolveRequest(spent_usd=spent_usd, note=note)
    return Call("POST", f"/calls/{quote(ref, safe='')}/resolve", wire.Call, body=request)


def audit(wanted: AuditFilter) -> Call[list[wire.Call]]:
    query = _given(
        label_contains=wanted.label_contains,
        tenant=wanted.tenant,
        key=wanted.key,
        vendor=wanted.vendor,
        denied="true" if wanted.denied else None,
        unknown="true" if wanted.unknown else None,
        duplicates="true" if wanted.duplicates else None,
        start=wanted.start,
        to=wanted.end,
        limit=_page_size(wanted.limit),
    )
    return Call("GET", "/audit", list[wire.Call], query=query)


def checkpoint() -> Call[wire.AuditCheckpoint]:
    return Call("GET", "/audit/checkpoint", wire.AuditCheckpoint)


def verify(since: str | None, *, incremental: bool) -> Call[wire.VerifyStep]:
    query = _given(since=since, incremental="true" if incremental else None)
    return Call("GET", "/audit/verify", wire.VerifyStep, query=query)


def export(form: str, wanted: AuditFilter) -> Call[bytes]:
    query = _given(
        format=form,
        label_contains=wanted.label_contains,
        tenant=wanted.tenant,
        key=wanted.key,
        vendor=wanted.vendor,
        denied="true" if wanted.denied else None,
        unknown="true" if wanted.unknown else None,
        duplicates="true" if wanted.duplicates else None,
        start=wanted.start,
        to=wanted.end,
    )
    return Call("GET", "/audit/export", bytes, query=query)


def prune(before: str, *, dry_run: bool) -> Call[wire.PruneStep]:
    body = wire.PruneRequest(before=before, dry_run=dry_run or None)
    return Call("POST", "/audit/prune", wire.PruneStep, body=body)


def changes(
    subject: str | None, start: str | None, end: str | None, limit: int | None
) -> Call[list[wire.Change]]:
    query = _given(subject=subject, start=start, to=end, limit=_page_size(limit))
    return Call("GET", "/changes", list[wire.Change], query=query)


def reconcile(
    vendor: str, credential: str | None, start: str | None, end: str | None
) -> Call[wire.Reconciliation]:
    query = _given(credential=credential, start=start, to=end)
    path = f"/vendors/{_segment(vendor, 'kbctl vendor list')}/reconcile"
    return Call("POST", path, wire.Reconciliation, query=query)


def derive(request: wire.IssueRequest) -> Call[wire.IssuedKey]:
    """On the proxy port: the parent key is the authority."""
    return Call("POST", "/vault_keys", wire.IssuedKey, body=request)


def whoami(vault_key: str) -> Call[wire.KeySelf]:
    """On the proxy port, by the key itself."""
    return Call("GET", "/vault/self", wire.KeySelf, bearer=vault_key)


def _page_size(limit: int | None) -> str:
    return str(min(limit or PAGE_MAX, PAGE_MAX))


def _given(**query: str | None) -> tuple[tuple[str, str], ...]:
    """What was said; ``start`` is ``from``, which Python keeps for itself."""
    return tuple(
        ("from" if name == "start" else name, value) for name, value in query.items() if value is not None
    )


def _key(ref: str) -> str:
    return f"/vault/keys/{_segment(ref, 'kbctl keys')}"


def _policy(name: str) -> str:
    return f"/policies/{_segment(name, 'kbctl policy list')}"


def _tenant(name: str) -> str:
    return f"/tenants/{_segment(name, 'kbctl tenant list')}"


def _credential(name: str) -> str:
    return f"/credentials/{_segment(name, 'kbctl credential list')}"


def _segment(text: str, remedy: str) -> str:
    """One path segment, whatever it holds.

    An empty one or ``..`` would name another resource: the collection, or the folder above.
    """
    if text in ("", ".", ".."):
        raise KbctlError("bad_value", f"{text!r} names nothing", remedy, Exit.USAGE)
    return quote(text, safe="")


# --- the wire -------------------------------------------------------------------------------------


def header_safe(secret: str, what: str) -> str:
    """A token or a key that can stand in a header; the complaint does not repeat it."""
    if not isinstance(secret, str) or not _TOKEN.fullmatch(secret):
        raise KbctlError(
            "bad_value",
            f"that is no {what}: it is empty, has a space, or is not plain text",
            "kbctl token list" if what == "token" else "kbctl keys",
            Exit.USAGE,
        )
    return secret


def check_owner(socket: Path) -> None:
    """Refuse somebody else's socket: that of a long home is in a temp folder, where anyone may be first."""
    try:
        found, folder = socket.lstat(), socket.parent.stat()
    except FileNotFoundError:
        raise not_running() from None
    except OSError as error:
        raise unreachable(str(socket), error) from None
    trusted = (os.geteuid(), 0)
    others_write = folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not folder.st_mode & stat.S_ISVTX
    if found.st_uid not in trusted or folder.st_uid not in trusted or others_write:
        raise KbctlError(
            "socket_not_ours",
            f"the socket {socket} could belong to another user of this machine, so nothing was sent to it",
            f"ls -ld {socket.parent} {socket}",
            Exit.REFUSED,
        )


def not_running() -> KbctlError:
    """Nobody listens on the socket."""
    return KbctlError("daemon_unreachable", "the daemon is not running", "kbctl up", Exit.UNREACHABLE)


def too_late() -> KbctlError:
    """Somebody listens, and says nothing."""
    return KbctlError(
        "daemon_unreachable", "the daemon did not answer in time", "kbctl logs", Exit.UNREACHABLE
    )


def unreachable(place: str, error: BaseException | None) -> KbctlError:
    """What any other failure of an exchange with a socket or a URL means for the person."""
    if is_forbidden(error):
        return KbctlError(
            "socket_forbidden", f"this user may not open the socket {place}", "id -un", Exit.REFUSED
        )
    return KbctlError(
        "daemon_unreachable", "the daemon ended before it had answered", "kbctl logs", Exit.UNREACHABLE
    )


def is_forbidden(error: BaseException | None) -> bool:
    """Whether the system did not let this user, somewhere below the failure."""
    while error is not None:
        if isinstance(error, PermissionError):
            return True
        error = error.__cause__ or error.__context__
    return False


def daemon_version(answer: Answer) -> str | None:
    """Which kbctl answered, as far as it said something that looks like a version."""
    said = answer.headers.get("kbctl-version", "")
    return said if _VERSION.fullmatch(said) else None


def is_success(answer: Answer) -> bool:
    """Whether it is what was asked for, and no refusal."""
    return 200 <= answer.status_code < 300


def check_answer(answer: Answer, call: Call[Any]) -> None:
    """Raise what the daemon refused with, or that it is of another version."""
    api = answer.headers.get("kbctl-api", wire.API)
    if api != wire.API and not call.any_api:
        older = api.isdecimal() and int(api) < int(wire.API)
        theirs = daemon_version(answer)
        raise KbctlError(
            "api_mismatch",
            f"the running daemon is {f'kbctl {theirs}' if theirs else 'another version'}, and this kbctl"
            f" {__version__} does not speak its language",
            "kbctl down && kbctl up" if older else "pip install --upgrade kbctl",
            Exit.REFUSED,
        )
    if is_success(answer):
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


def read(answer: Answer, call: Call[T]) -> T:
    """The answer as what this call is answered with."""
    if call.kind is type(None):
        return None
    return decode(answer.content, call.kind)


def decode(body: bytes, kind: type[T]) -> T:
    """A reply, or why it is none."""
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


def cut_off() -> KbctlError:
    """An answer in pieces that ended before its end."""
    return KbctlError(
        "answer_cut",
        "the daemon's answer broke off, so nothing can be said of it",
        "kbctl logs",
        Exit.INTERNAL,
    )


def pruned(step: wire.PruneStep) -> wire.Pruned | None:
    """What was pruned, once it was.

    Raises:
        KbctlError: it could not be.
    """
    if step.error is not None:
        broken = step.error.code == "audit_broken"
        raise KbctlError(
            step.error.code,
            step.error.message,
            step.error.remedy,
            Exit.INTEGRITY if broken else Exit.REFUSED,
        )
    return step.pruned


def page(answer: Answer, left: int | None) -> tuple[bytes, int]:
    """One page of a JSON array, cut to what is still wanted, and how many rows it has."""
    try:
        rows = msgspec.json.decode(answer.content, type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        raise _unreadable(error) from None
    if left is None or len(rows) <= left:
        return answer.content, len(rows)
    return msgspec.json.encode(rows[:left]), left


def next_page(answer: Answer, call: Call[T]) -> Call[T] | None:
    """The call for the page after this one."""
    found = _NEXT.search(answer.headers.get("link", ""))
    if found is None:
        return None
    target = urlsplit(found[1])
    # Only the path and query: where a request goes is not the answer's to choose.
    return replace(
        call, path=quote(unquote(target.path)), query=tuple(parse_qsl(target.query, keep_blank_values=True))
    )
