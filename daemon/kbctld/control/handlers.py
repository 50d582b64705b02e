"""What operators can ask: keys, credentials, audit, status.

What must stay true: a change is durable when its handler returns; a field that is not understood is an
error that names it; the real secret goes in and never comes out.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import urlencode

from msgspec import UNSET

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.control.routes import Ask, Reply, Route
from kbctld.core.clock import rfc3339
from kbctld.core.grant import EntryError, Grant, label_matches, label_segments
from kbctld.core.ledger import day_of
from kbctld.core.money import NANO_MAX, nano_from_usd, usd_from_nano
from kbctld.credentials import Credential, Credentials
from kbctld.store import queries
from kbctld.store.journal import JournalError
from kbctld.vault import Terms, Vault

_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)", re.ASCII)
_UNIT_NS = {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_TENANT = re.compile(r"[^/\x00-\x1f\x7f]{1,200}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DEFAULT_LIFETIME = "24h"
_LABEL_MAX = 500
_METADATA_MAX = 50
_ENTRIES_MAX = 200
_ENTRY_EXAMPLE = 'kbctl issue --cap 500 --allow "POST /v1/payment_intents"'
_STATUSES = ("active", "frozen", "revoked", "expired", "all")


@dataclass(slots=True)
class Handlers:
    """The handlers and what they work on.

    Attributes:
        default_vendors: what a key covers that names no vendor; None for every vendor with a credential.
        proxy_url: where agents point their SDK.
        status: makes the status report.
        stop: begins the shutdown; gives the calls in flight.
        rotated: told of each credential that was set.
    """

    vault: Vault
    credentials: Credentials
    default_vendors: tuple[str, ...] | None
    proxy_url: str
    reader_status: Callable[[int, int], wire.Status]
    stop: Callable[[], int]
    rotated: Callable[[Credential], None]

    def routes(self) -> list[Route]:
        """The sorted table."""
        key_filters = frozenset({"tenant", "label", "label_contains", "status", "metadata."})
        call_filters = frozenset(
            "label_contains tenant key vendor denied unknown from to limit before".split()
        )
        return [
            Route("GET", "/audit", self.list_calls, call_filters),
            Route("GET", "/credentials", self.list_credentials),
            Route("DELETE", "/credentials/*", self.remove_credential),
            Route("PUT", "/credentials/*", self.set_credential),
            Route("GET", "/healthz", self.health),
            Route("POST", "/shutdown", self.shut_down),
            Route("GET", "/status", self.show_status),
            Route("GET", "/vault/keys", self.list_keys, key_filters),
            Route("POST", "/vault/keys", self.issue_key),
            Route("DELETE", "/vault/keys/*", self.revoke_key),
            Route("GET", "/vault/keys/*", self.show_key),
            Route("POST", "/vault/revocations", self.revoke_keys),
            Route("POST", "/vault_keys", self.issue_key),
        ]

    # --- keys -----------------------------------------------------------------------------------

    async def issue_key(self, ask: Ask) -> Reply:
        terms = self._terms(wire.decode(ask.body, wire.IssueRequest))
        try:
            grant, vault_key = await self.vault.issue(terms)
        except EntryError as error:
            raise _usage("endpoint_entry", str(error), _ENTRY_EXAMPLE) from None
        except JournalError as error:
            raise _unrecorded(error) from None
        key = self._key(grant)
        issued = wire.IssuedKey(
            **{name: getattr(key, name) for name in key.__struct_fields__},
            vault_key=vault_key,
            proxy_url=self.proxy_url,
        )
        return Reply(issued, status=201)

    async def list_keys(self, ask: Ask) -> Reply:
        status = _last(ask, "status") or "all"
        if status not in _STATUSES:
            raise _usage("invalid_request", f"`status` takes {', '.join(_STATUSES)}, not {status!r}")
        tenant = _last(ask, "tenant")
        labels = [*ask.query.get("label", ()), *ask.query.get("label_contains", ())]
        wanted = {name[9:]: values[-1] for name, values in ask.query.items() if name.startswith("metadata.")}
        now_ns = self.vault.now_ns()
        found = [
            grant
            for grant in self.vault.grants()
            if (status == "all" or grant.status(now_ns) == status)
            and (tenant is None or grant.tenant == tenant)
            and all(label_matches(grant.label, label) for label in labels)
            and all(grant.metadata.get(name) == value for name, value in wanted.items())
        ]
        return Reply(wire.KeyList(keys=[self._key(grant) for grant in reversed(found)]))

    async def show_key(self, ask: Ask) -> Reply:
        return Reply(self._key(self._named(ask.parameters[0])))

    async def revoke_key(self, ask: Ask) -> Reply:
        return await self._revoke([self._named(ask.parameters[0])])

    async def revoke_keys(self, ask: Ask) -> Reply:
        request = wire.decode(ask.body, wire.RevokeRequest)
        given = [name for name in ("key_ids", "tenant", "label", "all") if getattr(request, name)]
        if len(given) != 1:
            raise _usage(
                "invalid_request", "a revocation takes exactly one of key_ids, tenant, label and all"
            )
        if request.key_ids:
            return await self._revoke([self._named(name) for name in request.key_ids])
        if request.tenant:
            grants = [grant for grant in self.vault.grants() if grant.tenant == request.tenant]
        elif request.label:
            grants = self.vault.labelled(request.label)
        else:
            grants = list(self.vault.grants())
        if not grants:
            raise KbctlError("key_unknown", "no key fits that", "kbctl keys --status all", Exit.NOT_FOUND)
        now_ns = self.vault.now_ns()
        return await self._revoke([grant for grant in grants if grant.status(now_ns) != "expired"])

    async def _revoke(self, grants: list[Grant]) -> Reply:
        grants = list(dict.fromkeys(grants))
        try:
            stopped = await self.vault.revoke(grants)
        except JournalError as error:
            raise KbctlError(
                "audit_unavailable",
                f"the keys are stopped until a restart, but that could not be recorded: {error}",
                "kbctl status    # then revoke again",
            ) from None
        return Reply(
            wire.RevokeReply(
                revoked=[self._key(grant) for grant in stopped],
                already=[grant.key_id for grant in grants if grant not in stopped],
                in_flight=sum(grant.in_flight for grant in grants),
                in_flight_usd=usd_from_nano(sum(grant.in_flight_nano for grant in grants)),
            )
        )

    def _named(self, reference: str) -> Grant:
        found = self.vault.named(reference)
        if len(found) == 1:
            return found[0]
        # A vault key may stand here: never repeat it.
        shown = "that" if reference.startswith("vault_key_") else reference
        if found:
            raise _usage("key_ambiguous", f"{shown} could be {len(found)} keys; give more of the key id")
        raise KbctlError("key_unknown", f"there is no key {shown}", "kbctl keys --status all", Exit.NOT_FOUND)

    def _terms(self, request: wire.IssueRequest) -> Terms:
        if request.daily_usd_cap is UNSET and request.total_usd_cap is None:
            raise _usage(
                "cap_missing",
                "a key needs daily_usd_cap",
                "kbctl issue --cap 500, or --cap none to set no limit",
            )
        label, tenant, metadata = _names(request)
        lifetime = request.expires_in or _DEFAULT_LIFETIME
        return Terms(
            vendors=self._vendors(request),
            daily_cap_nano=_cap(
                "daily_usd_cap", None if request.daily_usd_cap is UNSET else request.daily_usd_cap
            ),
            total_cap_nano=_cap("total_usd_cap", request.total_usd_cap),
            call_cap_nano=_cap("call_usd_cap", request.call_usd_cap),
            allow=None if request.allowed_endpoints is None else _entries(request.allowed_endpoints),
            deny=_entries(request.denied_endpoints or []),
            label=label,
            tenant=tenant,
            metadata=metadata,
            credential=self._credential(request),
            lifetime_ns=None if lifetime == "never" else _duration_ns("expires_in", lifetime),
        )

    def _vendors(self, request: wire.IssueRequest) -> tuple[str, ...]:
        if request.vendor is not None and request.vendors is not None:
            raise _usage("invalid_request", "give `vendor` or `vendors`, not both")
        named = (
            request.vendors
            if request.vendors is not None
            else [request.vendor]
            if request.vendor is not None
            else None
        )
        if named is None and request.credential is not None:
            credential = self.credentials.get(request.credential)
            named = [credential.vendor] if credential else None
        if named is None:
            named = list(self.default_vendors or {credential.vendor for credential in self.credentials})
            if not named:
                raise KbctlError(
                    "credential_missing",
                    "no vendor has a credential yet",
                    "kbctl credential set stripe",
                    Exit.REFUSED,
                )
        if not named:
            raise _usage("invalid_request", "`vendors` names no vendor")
        for name in named:
            if name not in self.vault.vendors:
                known = ", ".join(sorted(self.vault.vendors))
                raise _usage(
                    "vendor_unknown",
                    f"there is no vendor {name!r}; there is {known}",
                    "kbctl issue --cap 500 --vendor stripe",
                )
            if not self.credentials.of_vendor(name):
                raise KbctlError(
                    "credential_missing",
                    f"{name} has no credential",
                    f"kbctl credential set {name}",
                    Exit.REFUSED,
                )
        return tuple(dict.fromkeys(sorted(named)))

    def _credential(self, request: wire.IssueRequest) -> str | None:
        if request.credential is not None and self.credentials.get(request.credential) is None:
            raise KbctlError(
                "credential_missing",
                f"there is no credential {request.credential}",
                f"kbctl credential set {request.credential}",
                Exit.REFUSED,
            )
        return request.credential

    def _key(self, grant: Grant) -> wire.Key:
        own = grant.scopes[0]
        account, day = own.account, day_of(self.vault.now_ns())
        return wire.Key(
            key_id=grant.key_id,
            status=grant.status(self.vault.now_ns()),
            tenant=grant.tenant,
            vendors=list(grant.vendors),
            daily_usd_cap=_usd(own.daily_cap_nano),
            total_usd_cap=_usd(own.total_cap_nano),
            call_usd_cap=_usd(grant.call_cap_nano),
            allowed_endpoints=None if grant.allow is None else [entry.text for entry in grant.allow],
            denied_endpoints=[entry.text for entry in grant.deny],
            agent_run_label=grant.label,
            metadata=dict(grant.metadata),
            credential=grant.credential,
            created_at=rfc3339(grant.created_ns),
            expires_at=None if grant.expires_ns is None else rfc3339(grant.expires_ns),
            revoked_at=None if grant.revoked_ns is None else rfc3339(grant.revoked_ns),
            ending=grant.ending,
            spent_usd=usd_from_nano(account.posted.get(day, 0)),
            held_usd=usd_from_nano(account.held.get(day, 0)),
            total_spent_usd=usd_from_nano(account.posted_total),
            total_held_usd=usd_from_nano(account.held_total),
        )

    # --- credentials ----------------------------------------------------------------------------

    async def list_credentials(self, ask: Ask) -> Reply:
        return Reply(wire.CredentialList(credentials=[credential_view(c) for c in self.credentials]))

    async def set_credential(self, ask: Ask) -> Reply:
        name = ask.parameters[0]
        request = wire.decode(ask.body, wire.CredentialRequest)
        vendor_name = request.vendor or name.partition(":")[0]
        vendor = self.vault.vendors.get(vendor_name)
        if vendor is None:
            known = ", ".join(sorted(self.vault.vendors))
            raise _usage(
                "vendor_unknown",
                f"there is no vendor {vendor_name!r}; there is {known}",
                "kbctl credential set stripe",
            )
        credential = await self.credentials.set(name, vendor, request.secret, self.vault.now_ns())
        self.rotated(credential)
        return Reply(credential_view(credential))

    async def remove_credential(self, ask: Ask) -> Reply:
        await self.credentials.remove(ask.parameters[0])
        return Reply(None)

    # --- audit and status -----------------------------------------------------------------------

    async def list_calls(self, ask: Ask) -> Reply:
        await self.vault.journal.barrier()
        reader = self.vault.journal.database.reader
        limit = _whole(ask, "limit", 100, queries.LIMIT_MAX)
        tenant, labels = _last(ask, "tenant"), ask.query.get("label_contains", [])
        chosen: frozenset[int] | None = None
        if tenant is not None or labels:
            chosen = frozenset(await queries.key_nos(reader, tenant, labels))
        reference = _last(ask, "key")
        if reference is not None:
            number = frozenset({self._named(reference).no})
            chosen = number if chosen is None else chosen & number
        before = _last(ask, "before")
        wanted = queries.CallFilter(
            key_nos=chosen,
            vendor=_last(ask, "vendor"),
            denied=_flag(ask, "denied"),
            unknown=_flag(ask, "unknown"),
            from_ns=_time(ask, "from"),
            to_ns=_time(ask, "to"),
            before_no=None if before is None else _whole(ask, "before", 0, 2**62),
            limit=limit,
        )
        found, cursor = await queries.calls(reader, wanted)
        fields: tuple[tuple[bytes, bytes], ...] = ()
        if cursor is not None:
            fields = ((b"Link", f'<{_next_page(ask, cursor)}>; rel="next"'.encode()),)
        return Reply(found, fields=fields)

    async def show_status(self, ask: Ask) -> Reply:
        await self.vault.journal.barrier()
        count, nano = await queries.unknown_totals(self.vault.journal.database.reader)
        return Reply(self.reader_status(count, nano))

    async def health(self, ask: Ask) -> Reply:
        if self.vault.journal.stopped is not None:
            raise KbctlError("audit_unavailable", self.vault.journal.stopped, "kbctl down && kbctl up")
        return Reply({"ok": True})

    async def shut_down(self, ask: Ask) -> Reply:
        return Reply(wire.ShutdownReply(pid=os.getpid(), in_flight=self.stop()))


def credential_view(credential: Credential) -> wire.Credential:
    """A credential without its secret."""
    return wire.Credential(
        name=credential.name,
        vendor=credential.vendor,
        version=credential.version,
        set_at=rfc3339(credential.set_ns),
        available=credential.secret is not None,
        problem=credential.problem,
    )


def _names(request: wire.IssueRequest) -> tuple[str, str | None, dict[str, str]]:
    """Label, tenant and metadata, each completed from the other two."""
    label, tenant = request.agent_run_label or "", request.tenant
    if len(label) > _LABEL_MAX or _CONTROL.search(label):
        raise _usage(
            "invalid_request",
            f"`agent_run_label` takes at most {_LABEL_MAX} characters, no control characters",
        )
    from_label = [segment[7:] for segment in label_segments(label) if segment.startswith("tenant:")]
    if len(from_label) > 1:
        raise _usage("invalid_request", "`agent_run_label` names more than one tenant")
    if tenant is None and from_label:
        tenant = from_label[0]
    if tenant is not None:
        if not _TENANT.fullmatch(tenant):
            raise _usage(
                "invalid_request", "`tenant` takes 1 to 200 characters without / and control characters"
            )
        if f"tenant:{tenant}" not in label_segments(label):
            if from_label:
                raise _usage("invalid_request", f"`agent_run_label` names another tenant than {tenant!r}")
            label = f"{label}/tenant:{tenant}" if label else f"tenant:{tenant}"
    metadata = dict(request.metadata or {})
    if len(metadata) > _METADATA_MAX or any(
        not 0 < len(name) <= 100 or len(value) > 500 for name, value in metadata.items()
    ):
        raise _usage(
            "invalid_request",
            f"`metadata` takes at most {_METADATA_MAX} entries, names to 100 and values to 500 characters",
        )
    if tenant is not None and metadata.setdefault("tenant_id", tenant) != tenant:
        raise _usage("invalid_request", f"`metadata.tenant_id` names another tenant than {tenant!r}")
    return label, tenant, metadata


def _cap(field: str, usd: Decimal | int | None) -> int | None:
    if usd is None:
        return None
    try:
        nano = nano_from_usd(usd)
    except ValueError as error:
        raise _usage("invalid_request", f"`{field}`: {error}") from None
    if nano == 0:
        raise _usage("invalid_request", f"`{field}` is above zero; null (--cap none) sets no limit")
    return nano


def _entries(texts: list[str]) -> tuple[str, ...]:
    if len(texts) > _ENTRIES_MAX:
        raise _usage("invalid_request", f"an endpoint list has at most {_ENTRIES_MAX} entries")
    return tuple(dict.fromkeys(texts))


def _duration_ns(field: str, text: str) -> int:
    match = _DURATION.fullmatch(text)
    nano = int(match[1]) * _UNIT_NS[match[2]] if match else 0
    if not 0 < nano <= 3660 * _UNIT_NS["d"]:
        raise _usage(
            "invalid_request", f"`{field}` takes 30m, 2h, 7d or never (at most 10 years), not {text!r}"
        )
    return nano


def _last(ask: Ask, name: str) -> str | None:
    values = ask.query.get(name)
    return values[-1] if values else None


def _flag(ask: Ask, name: str) -> bool:
    text = _last(ask, name) or "false"
    if text not in ("true", "false"):
        raise _usage("invalid_request", f"`{name}` takes true or false, not {text!r}")
    return text == "true"


def _whole(ask: Ask, name: str, default: int, most: int) -> int:
    text = _last(ask, name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or not 1 <= int(text) <= most:
        raise _usage("invalid_request", f"`{name}` takes a number from 1 to {most:,}, not {text!r}")
    return int(text)


def _time(ask: Ask, name: str) -> int | None:
    text = _last(ask, name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise _usage("invalid_request", f"`{name}` takes a time such as 2026-06-01T00:00:00Z, not {text!r}")
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    # The year 9999 is "for ever", and more nanoseconds than the database can compare.
    return min(max(since // timedelta(microseconds=1) * 1000, -NANO_MAX), NANO_MAX)


def _next_page(ask: Ask, cursor: int) -> str:
    pairs = [(name, value) for name, values in ask.query.items() for value in values if name != "before"]
    return f"/audit?{urlencode([*pairs, ('before', str(cursor))])}"


def _usd(nano: int | None) -> Decimal | None:
    return None if nano is None else usd_from_nano(nano)


def _usage(code: str, message: str, remedy: str = "kbctl --help") -> KbctlError:
    return KbctlError(code, message, remedy, Exit.USAGE)


def _unrecorded(error: JournalError) -> KbctlError:
    return KbctlError("audit_unavailable", f"the change could not be recorded: {error}", "kbctl status")
