"""The operator API in Python: one method per call, over the UNIX socket of the daemon or its TCP port.

What must stay true: every failure leaves here as a :class:`~kbctl.errors.KbctlError` with a code, a sentence
and a remedy; nothing of the environment (proxies, netrc) steers a request; and no secret is handed to a
socket that another user of this machine could have put there, or in plain text to another machine.

    from kbctl import Client

    with Client().issue(tenant="acme", cap=500, ttl="2h") as key:
        run_agent(key.vault_key)
    # revoked, however the block ended
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar, Unpack, overload

from kbctl import __version__, calls, limits, wire
from kbctl.calls import PAGE_MAX, AuditFilter, Call
from kbctl.issued import AsyncIssuedKey, IssuedKey, Issuing
from kbctl.local import Local
from kbctl.paths import Home, home

if TYPE_CHECKING:
    import httpx

    from kbctl.remote import Remote

__all__ = ["PAGE_MAX", "AsyncClient", "AsyncIssuedKey", "AuditFilter", "Client", "IssuedKey", "Issuing"]

T = TypeVar("T")

# Above the slowest thing the daemon waits for: a keyring that has to be unlocked by a person.
_TIMEOUT_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the daemon is, and how it is spoken to."""

    socket: Path | None
    url: str
    token: str | None = field(repr=False)
    timeout: float

    @classmethod
    def of(cls, chosen: Home | None, url: str | None, token: str | None, timeout: float) -> Self:
        if url is None:
            if token is not None:
                raise TypeError("a token goes with a url; the socket needs none")
            return cls((chosen or home()).socket, "http://localhost", None, timeout)
        if chosen is not None or token is None:
            raise TypeError("a url needs a token, and takes no home beside it")
        from kbctl import remote

        origin = remote.check_url(url, loopback_only=True)
        return cls(None, origin, calls.header_safe(token, "token"), timeout)

    @property
    def name(self) -> str:
        return self.url if self.socket is None else str(self.socket)

    def check(self) -> None:
        """Before every request: a socket can be replaced at any time."""
        if self.socket is not None:
            calls.check_owner(self.socket)

    def blocking(self, *, keep: bool) -> "Local | Remote":
        """What a call goes over; connections are kept for the next one inside a ``with``, else closed."""
        if self.socket is not None:
            return Local(str(self.socket), self.timeout, keep=keep)
        import httpx

        from kbctl.remote import Remote

        transport = httpx.HTTPTransport(**self._transport(keep=keep))
        return Remote(self.url, httpx.Client(transport=transport, **self._settings()))

    def unblocking(self, *, keep: bool) -> "httpx.AsyncClient":
        """The same for asyncio."""
        import httpx

        transport = httpx.AsyncHTTPTransport(**self._transport(keep=keep))
        return httpx.AsyncClient(transport=transport, **self._settings())

    def _settings(self) -> dict[str, Any]:
        from kbctl import remote

        headers = {} if self.token is None else {"authorization": f"Bearer {self.token}"}
        return {**remote.settings(self.url, self.timeout), "headers": headers}

    def _transport(self, *, keep: bool) -> dict[str, Any]:
        import httpx

        return {
            "uds": None if self.socket is None else str(self.socket),
            # Making a TLS context takes longer than asking the daemon; only https has a use for one.
            "verify": self.url.startswith("https:"),
            "trust_env": False,
            "limits": httpx.Limits(max_keepalive_connections=None if keep else 0),
        }


def _wanted(request: wire.IssueRequest | None, said: limits.Said) -> wire.IssueRequest:
    if request is None:
        return limits.from_keywords(said, "issue")
    if said:
        raise TypeError("issue() takes a request or keywords, not both")
    if not isinstance(request, wire.IssueRequest):
        raise TypeError(f"issue() takes a wire.IssueRequest or keywords, not a {type(request).__name__}")
    return request


class Client:
    """Asks the daemon; blocking.

    Outside of ``with`` every call has its own connection, and there is nothing to close.

    Args:
        home: whose daemon; the one that ``KBCTL_HOME`` names when left out.
        url: its TCP API instead, such as ``http://127.0.0.1:4815``; plain http only on this machine.
        token: what that wants: an operator token, from ``kbctl token create``.
        timeout: seconds to wait for an answer.
    """

    others: ClassVar[set[str]] = set()
    """Versions other than our own that answered in this process; the command line tells of them."""

    def __init__(
        self,
        home: Home | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        timeout: float = _TIMEOUT_S,
    ) -> None:
        self._place = _Place.of(home, url, token, timeout)
        self._over = self._place.blocking(keep=False)
        self.body: bytes = b""
        """What was answered last, byte for byte: what ``--json`` shows."""
        self.daemon_version: str | None = None
        """Which kbctl answered last; None before, and where it does not say."""

    def __enter__(self) -> Self:
        self._over.close()
        self._over = self._place.blocking(keep=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._over.close()
        self._over = self._place.blocking(keep=False)

    @overload
    def issue(self, request: wire.IssueRequest, /) -> IssuedKey: ...

    @overload
    def issue(self, /, **said: Unpack[limits.Said]) -> IssuedKey: ...

    def issue(self, request: wire.IssueRequest | None = None, /, **said: Unpack[limits.Said]) -> IssuedKey:
        """A new vault key, from a request or from keywords: ``issue(tenant="acme", cap=500)``.

        The answer is the only place where it is ever seen. As ``with client.issue(...) as key:`` it is
        revoked at the end of the block.
        """
        issued = self._ask(calls.issue(_wanted(request, said), IssuedKey))
        return issued.issued_by(self)

    def status(self) -> wire.Status:
        """How the daemon is."""
        return self._ask(calls.status())

    def shutdown(self) -> wire.ShutdownReply:
        """Drain and end the daemon; returns at once."""
        return self._ask(calls.shutdown())

    def backup(self, path: str, *, force: bool = False) -> wire.BackupState:
        """Begin a copy of the database in a file of the daemon's machine; absolute. Returns at once."""
        return self._ask(calls.backup(path, force=force))

    def backup_state(self) -> wire.BackupState:
        """How far that is."""
        return self._ask(calls.backup_state())

    def keys(
        self,
        *,
        tenant: str | None = None,
        label: str | None = None,
        status: str = "all",
        metadata: Mapping[str, str] | None = None,
    ) -> list[wire.Key]:
        """The keys that match; ``status`` is active, paused, frozen, revoked, expired or all."""
        bodies = self.key_bodies(tenant=tenant, label=label, status=status, metadata=metadata)
        return [key for body in bodies for key in calls.decode(body, wire.KeyList).keys]

    def key_bodies(
        self,
        *,
        tenant: str | None = None,
        label: str | None = None,
        status: str = "all",
        metadata: Mapping[str, str] | None = None,
    ) -> Iterator[bytes]:
        """The same, a page at a time, as the daemon wrote it: ``{"keys": [...]}``."""
        call: Call[Any] | None = calls.keys(tenant, label, status, metadata)
        while call is not None:
            answer = self._send(call)
            yield answer.content
            call = calls.next_page(answer, call)

    def key(self, ref: str) -> wire.Key:
        """One key, by key id, a unique prefix of it, or the vault key itself."""
        return self._ask(calls.key(ref))

    def tree(self, ref: str) -> wire.KeyTree:
        """A key and everything derived from it."""
        return self._ask(calls.tree(ref))

    def pause(self, ref: str) -> wire.Key:
        """Refuse the key's calls until it is resumed."""
        return self._ask(calls.pause(ref))

    def resume(self, ref: str) -> wire.Key:
        """Let a paused or frozen key go on."""
        return self._ask(calls.resume(ref))

    def revoke(self, ref: str, *, abort: bool = False) -> wire.RevokeReply:
        """End one key at once; durable when this returns. ``abort`` cuts its calls under way."""
        return self._ask(calls.revoke(ref, abort=abort))

    def revoke_all(self, request: wire.RevokeRequest) -> wire.RevokeReply:
        """End several keys at once: a list, a tenant's, a label's, or all."""
        return self._ask(calls.revoke_all(request))

    def policies(self) -> list[wire.Policy]:
        """The named sets of limits."""
        return self._ask(calls.policies()).policies

    def policy(self, name: str) -> wire.Policy:
        """One of them."""
        return self._ask(calls.policy(name))

    def apply_policies(
        self, policies: Iterable[wire.Policy], *, live: bool = False, dry_run: bool = False
    ) -> wire.PolicyChanges:
        """Set several policies, all or none. ``live`` pushes what changed to the keys that have them."""
        return self._ask(calls.apply_policies(policies, live=live, dry_run=dry_run))

    def set_policy(self, policy: wire.Policy, *, live: bool = False) -> wire.PolicyChanges:
        """Add a policy, or replace it."""
        return self._ask(calls.set_policy(policy, live=live))

    def remove_policy(self, name: str) -> None:
        """Forget a policy; its keys keep their limits."""
        self._ask(calls.remove_policy(name))

    def tenants(self) -> list[wire.Tenant]:
        """The tenants, each with its spend."""
        return self._ask(calls.tenants()).tenants

    def tenant(self, name: str) -> wire.Tenant:
        """One of them."""
        return self._ask(calls.tenant(name))

    def set_tenant(self, name: str, request: wire.TenantRequest) -> wire.Tenant:
        """Limit all keys of a tenant together."""
        return self._ask(calls.set_tenant(name, request))

    def create_token(
        self, *, scope: str = "admin", expires_in: str | None = None, note: str | None = None
    ) -> wire.CreatedToken:
        """A new operator token for the TCP API. The answer is the only place where it is ever seen."""
        return self._ask(calls.create_token(wire.TokenRequest(scope=scope, expires_in=expires_in, note=note)))

    def tokens(self) -> list[wire.Token]:
        """The operator tokens, without the tokens."""
        return self._ask(calls.tokens()).tokens

    def revoke_token(self, token_id: str) -> wire.Token:
        """End an operator token at once."""
        return self._ask(calls.revoke_token(token_id))

    def spend(self, by: str = "key", *, start: str | None = None, end: str | None = None) -> list[wire.Spend]:
        """Spend by key, tenant, vendor, label, agent, run or day. Times are RFC 3339 in UTC."""
        return self._ask(calls.spend(by, start, end))

    def sql(self, query: str) -> wire.SqlReply:
        """One read-only query of the audit database."""
        return self._ask(calls.sql(query))

    def vendors(self) -> list[wire.Vendor]:
        """The vendors that the daemon knows."""
        return self._ask(calls.vendors()).vendors

    def vendor(self, name: str) -> wire.VendorDetail:
        """One of them, with what it can do and how each operation is priced."""
        return self._ask(calls.vendor(name))

    def vendor_prices(self, name: str, model: str | None = None) -> wire.VendorPrices:
        """What a vendor's things cost, with sources and dates; of one model only, where it is named."""
        return self._ask(calls.vendor_prices(name, model))

    def rates(self) -> wire.CurrencyRates:
        """US dollars per unit of other currencies."""
        return self._ask(calls.rates())

    def check_vendor(self, text: str) -> wire.VendorFindings:
        """What is wrong in a vendor file; nothing is changed."""
        return self._ask(calls.check_vendor(text))

    def credentials(self) -> list[wire.Credential]:
        """The real secrets that the daemon holds, without the secrets."""
        return self._ask(calls.credentials()).credentials

    def set_credential(
        self,
        name: str,
        secret: str,
        *,
        vendor: str | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> wire.Credential:
        """Store a real secret, or rotate it; ``fields`` go with it, such as ``account_sid``."""
        return self._ask(calls.set_credential(name, secret, vendor, fields))

    def remove_credential(self, name: str) -> None:
        """Forget a real secret."""
        self._ask(calls.remove_credential(name))

    def call(self, ref: str) -> wire.Call:
        """One call, by its id or a unique beginning of it."""
        return self._ask(calls.call(ref))

    def resolve(self, ref: str, spent_usd: Decimal | int | None, note: str | None = None) -> wire.Call:
        """Say what the vendor took for a call whose outcome nobody knows; None where it took nothing."""
        return self._ask(calls.resolve(ref, spent_usd, note))

    def reconcile(
        self,
        vendor: str,
        *,
        credential: str | None = None,
        start: str | None = None,
        end: str | None = None,
    ) -> wire.Reconciliation:
        """Hold the vendor's own list of a time against our rows; of the last day when left out."""
        return self._ask(calls.reconcile(vendor, credential, start, end))

    def audit(self, wanted: AuditFilter | None = None) -> Iterator[list[wire.Call]]:
        """Calls, newest first, a page at a time as they are asked for."""
        for body in self.audit_bodies(wanted):
            yield calls.decode(body, list[wire.Call])

    def audit_bodies(self, wanted: AuditFilter | None = None) -> Iterator[bytes]:
        """The same pages as the daemon wrote them: JSON arrays."""
        wanted = wanted or AuditFilter()
        return self._bodies(calls.audit(wanted), wanted.limit)

    def checkpoint(self) -> wire.AuditCheckpoint:
        """How far the audit has come, signed: a line to keep somewhere else."""
        return self._ask(calls.checkpoint())

    def verify_audit(
        self,
        *,
        since: str | None = None,
        incremental: bool = False,
        step: Callable[[wire.VerifyStep], None] | None = None,
    ) -> wire.Verdict:
        """Whether every row of the audit still says what was recorded.

        Args:
            since: a checkpoint: only what came after it, and that it is really there.
            incremental: only what came since it was last found good.
            step: told now and then how far it is.
        """
        for line in self._lines(calls.verify(since, incremental=incremental)):
            found = calls.decode(line, wire.VerifyStep)
            if found.verdict is not None:
                return found.verdict
            if step is not None:
                step(found)
        raise calls.cut_off()

    def export_audit(self, form: str = "jsonl", wanted: AuditFilter | None = None) -> Iterator[bytes]:
        """The audit as a file, in pieces as they come: ``jsonl`` or ``csv``. Its limit is not looked at."""
        return self._pieces(calls.export(form, wanted or AuditFilter()))

    def prune(
        self, before: str, *, dry_run: bool = False, step: Callable[[wire.PruneStep], None] | None = None
    ) -> wire.Pruned:
        """Take calls of whole UTC days before a time out of the audit; what stays can still be verified."""
        for line in self._lines(calls.prune(before, dry_run=dry_run)):
            found = calls.decode(line, wire.PruneStep)
            done = calls.pruned(found)
            if done is not None:
                return done
            if step is not None:
                step(found)
        raise calls.cut_off()

    def changes(
        self,
        *,
        subject: str | None = None,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
    ) -> Iterator[list[wire.Change]]:
        """What operators changed, newest first, a page at a time. ``limit`` None or 0: all of it."""
        for body in self.change_bodies(subject=subject, start=start, end=end, limit=limit):
            yield calls.decode(body, list[wire.Change])

    def change_bodies(
        self,
        *,
        subject: str | None = None,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
    ) -> Iterator[bytes]:
        """The same pages as the daemon wrote them: JSON arrays."""
        return self._bodies(calls.changes(subject, start, end, limit), limit)

    def _bodies(self, first: Call[Any], limit: int | None) -> Iterator[bytes]:
        call: Call[Any] | None = first
        left = limit or None
        while call is not None:
            answer = self._send(call)
            body, rows = calls.page(answer, left)
            yield body
            left = None if left is None else left - rows
            call = None if left is not None and left <= 0 else calls.next_page(answer, call)

    def _lines(self, call: Call[Any]) -> Iterator[bytes]:
        """The lines of an answer, each as it comes."""
        rest = b""
        for piece in self._pieces(call):
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines

    def _pieces(self, call: Call[Any]) -> Iterator[bytes]:
        self._place.check()
        yield from self._over.pieces(call)

    def _ask(self, call: Call[T]) -> T:
        return calls.read(self._send(call), call)

    def _send(self, call: Call[Any]) -> calls.Answer:
        self._place.check()
        answer = self._over.ask(call)
        self.body = answer.content
        self.daemon_version = calls.daemon_version(answer)
        if self.daemon_version not in (None, __version__):
            self.others.add(self.daemon_version)
        calls.check_answer(answer, call)
        return answer


class AsyncClient:
    """The same for asyncio.

    Outside of ``async with`` every call has its own connection, and there is nothing to close.

    Args:
        home: whose daemon; the one that ``KBCTL_HOME`` names when left out.
        url: its TCP API instead, such as ``http://127.0.0.1:4815``; plain http only on this machine.
        token: what that wants: an operator token, from ``kbctl token create``.
        timeout: seconds to wait for an answer.
    """

    def __init__(
        self,
        home: Home | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        timeout: float = _TIMEOUT_S,
    ) -> None:
        self._place = _Place.of(home, url, token, timeout)
        self._http = self._place.unblocking(keep=False)

    async def __aenter__(self) -> Self:
        await self._http.aclose()
        self._http = self._place.unblocking(keep=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()
        self._http = self._place.unblocking(keep=False)

    @overload
    def issue(self, request: wire.IssueRequest, /) -> Issuing: ...

    @overload
    def issue(self, /, **said: Unpack[limits.Said]) -> Issuing: ...

    def issue(self, request: wire.IssueRequest | None = None, /, **said: Unpack[limits.Said]) -> Issuing:
        """A new vault key, from a request or from keywords: ``await issue(tenant="acme", cap=500)``.

        As ``async with client.issue(...) as key:`` it is revoked at the end of the block.
        """
        wanted = _wanted(request, said)

        async def ask() -> AsyncIssuedKey:
            issued = await self._ask(calls.issue(wanted, AsyncIssuedKey))
            return issued.issued_by(self)

        return Issuing(ask)

    async def status(self) -> wire.Status:
        """How the daemon is."""
        return await self._ask(calls.status())

    async def shutdown(self) -> wire.ShutdownReply:
        """Drain and end the daemon; returns at once."""
        return await self._ask(calls.shutdown())

    async def backup(self, path: str, *, force: bool = False) -> wire.BackupState:
        """Begin a copy of the database in a file of the daemon's machine; absolute. Returns at once."""
        return await self._ask(calls.backup(path, force=force))

    async def backup_state(self) -> wire.BackupState:
        """How far that is."""
        return await self._ask(calls.backup_state())

    async def keys(
        self,
        *,
        tenant: str | None = None,
        label: str | None = None,
        status: str = "all",
        metadata: Mapping[str, str] | None = None,
    ) -> list[wire.Key]:
        """The keys that match; ``status`` is active, paused, frozen, revoked, expired or all."""
        call: Call[wire.KeyList] | None = calls.keys(tenant, label, status, metadata)
        found: list[wire.Key] = []
        while call is not None:
            answer = await self._send(call)
            found += calls.read(answer, call).keys
            call = calls.next_page(answer, call)
        return found

    async def key(self, ref: str) -> wire.Key:
        """One key, by key id, a unique prefix of it, or the vault key itself."""
        return await self._ask(calls.key(ref))

    async def tree(self, ref: str) -> wire.KeyTree:
        """A key and everything derived from it."""
        return await self._ask(calls.tree(ref))

    async def pause(self, ref: str) -> wire.Key:
        """Refuse the key's calls until it is resumed."""
        return await self._ask(calls.pause(ref))

    async def resume(self, ref: str) -> wire.Key:
        """Let a paused or frozen key go on."""
        return await self._ask(calls.resume(ref))

    async def revoke(self, ref: str, *, abort: bool = False) -> wire.RevokeReply:
        """End one key at once; durable when this returns. ``abort`` cuts its calls under way."""
        return await self._ask(calls.revoke(ref, abort=abort))

    async def revoke_all(self, request: wire.RevokeRequest) -> wire.RevokeReply:
        """End several keys at once: a list, a tenant's, a label's, or all."""
        return await self._ask(calls.revoke_all(request))

    async def policies(self) -> list[wire.Policy]:
        """The named sets of limits."""
        return (await self._ask(calls.policies())).policies

    async def policy(self, name: str) -> wire.Policy:
        """One of them."""
        return await self._ask(calls.policy(name))

    async def apply_policies(
        self, policies: Iterable[wire.Policy], *, live: bool = False, dry_run: bool = False
    ) -> wire.PolicyChanges:
        """Set several policies, all or none. ``live`` pushes what changed to the keys that have them."""
        return await self._ask(calls.apply_policies(policies, live=live, dry_run=dry_run))

    async def set_policy(self, policy: wire.Policy, *, live: bool = False) -> wire.PolicyChanges:
        """Add a policy, or replace it."""
        return await self._ask(calls.set_policy(policy, live=live))

    async def remove_policy(self, name: str) -> None:
        """Forget a policy; its keys keep their limits."""
        await self._ask(calls.remove_policy(name))

    async def tenants(self) -> list[wire.Tenant]:
        """The tenants, each with its spend."""
        return (await self._ask(calls.tenants())).tenants

    async def tenant(self, name: str) -> wire.Tenant:
        """One of them."""
        return await self._ask(calls.tenant(name))

    async def set_tenant(self, name: str, request: wire.TenantRequest) -> wire.Tenant:
        """Limit all keys of a tenant together."""
        return await self._ask(calls.set_tenant(name, request))

    async def create_token(
        self, *, scope: str = "admin", expires_in: str | None = None, note: str | None = None
    ) -> wire.CreatedToken:
        """A new operator token for the TCP API. The answer is the only place where it is ever seen."""
        return await self._ask(
            calls.create_token(wire.TokenRequest(scope=scope, expires_in=expires_in, note=note))
        )

    async def tokens(self) -> list[wire.Token]:
        """The operator tokens, without the tokens."""
        return (await self._ask(calls.tokens())).tokens

    async def revoke_token(self, token_id: str) -> wire.Token:
        """End an operator token at once."""
        return await self._ask(calls.revoke_token(token_id))

    async def spend(
        self, by: str = "key", *, start: str | None = None, end: str | None = None
    ) -> list[wire.Spend]:
        """Spend by key, tenant, vendor, label, agent, run or day. Times are RFC 3339 in UTC."""
        return await self._ask(calls.spend(by, start, end))

    async def sql(self, query: str) -> wire.SqlReply:
        """One read-only query of the audit database."""
        return await self._ask(calls.sql(query))

    async def vendors(self) -> list[wire.Vendor]:
        """The vendors that the daemon knows."""
        return (await self._ask(calls.vendors())).vendors

    async def vendor(self, name: str) -> wire.VendorDetail:
        """One of them, with what it can do and how each operation is priced."""
        return await self._ask(calls.vendor(name))

    async def vendor_prices(self, name: str, model: str | None = None) -> wire.VendorPrices:
        """What a vendor's things cost, with sources and dates; of one model only, where it is named."""
        return await self._ask(calls.vendor_prices(name, model))

    async def rates(self) -> wire.CurrencyRates:
        """US dollars per unit of other currencies."""
        return await self._ask(calls.rates())

    async def check_vendor(self, text: str) -> wire.VendorFindings:
        """What is wrong in a vendor file; nothing is changed."""
        return await self._ask(calls.check_vendor(text))

    async def credentials(self) -> list[wire.Credential]:
        """The real secrets that the daemon holds, without the secrets."""
        return (await self._ask(calls.credentials())).credentials

    async def set_credential(
        self,
        name: str,
        secret: str,
        *,
        vendor: str | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> wire.Credential:
        """Store a real secret, or rotate it; ``fields`` go with it, such as ``account_sid``."""
        return await self._ask(calls.set_credential(name, secret, vendor, fields))

    async def remove_credential(self, name: str) -> None:
        """Forget a real secret."""
        await self._ask(calls.remove_credential(name))

    async def call(self, ref: str) -> wire.Call:
        """One call, by its id or a unique beginning of it."""
        return await self._ask(calls.call(ref))

    async def resolve(self, ref: str, spent_usd: Decimal | int | None, note: str | None = None) -> wire.Call:
        """Say what the vendor took for a call whose outcome nobody knows; None where it took nothing."""
        return await self._ask(calls.resolve(ref, spent_usd, note))

    async def reconcile(
        self,
        vendor: str,
        *,
        credential: str | None = None,
        start: str | None = None,
        end: str | None = None,
    ) -> wire.Reconciliation:
        """Hold the vendor's own list of a time against our rows; of the last day when left out."""
        return await self._ask(calls.reconcile(vendor, credential, start, end))

    async def audit(self, wanted: AuditFilter | None = None) -> AsyncIterator[list[wire.Call]]:
        """Calls, newest first, a page at a time as they are asked for."""
        wanted = wanted or AuditFilter()
        async for body in self._bodies(calls.audit(wanted), wanted.limit):
            yield calls.decode(body, list[wire.Call])

    async def checkpoint(self) -> wire.AuditCheckpoint:
        """How far the audit has come, signed: a line to keep somewhere else."""
        return await self._ask(calls.checkpoint())

    async def verify_audit(
        self,
        *,
        since: str | None = None,
        incremental: bool = False,
        step: Callable[[wire.VerifyStep], None] | None = None,
    ) -> wire.Verdict:
        """Whether every row of the audit still says what was recorded; as ``Client.verify_audit``."""
        async with aclosing(self._lines(calls.verify(since, incremental=incremental))) as lines:
            async for line in lines:
                found = calls.decode(line, wire.VerifyStep)
                if found.verdict is not None:
                    return found.verdict
                if step is not None:
                    step(found)
        raise calls.cut_off()

    def export_audit(
        self, form: str = "jsonl", wanted: AuditFilter | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The audit as a file, in pieces as they come: ``jsonl`` or ``csv``. Its limit is not looked at."""
        return self._pieces(calls.export(form, wanted or AuditFilter()))

    async def prune(
        self, before: str, *, dry_run: bool = False, step: Callable[[wire.PruneStep], None] | None = None
    ) -> wire.Pruned:
        """Take calls of whole UTC days before a time out of the audit; as ``Client.prune``."""
        async with aclosing(self._lines(calls.prune(before, dry_run=dry_run))) as lines:
            async for line in lines:
                found = calls.decode(line, wire.PruneStep)
                done = calls.pruned(found)
                if done is not None:
                    return done
                if step is not None:
                    step(found)
        raise calls.cut_off()

    async def changes(
        self,
        *,
        subject: str | None = None,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[list[wire.Change]]:
        """What operators changed, newest first, a page at a time. ``limit`` None or 0: all of it."""
        async for body in self._bodies(calls.changes(subject, start, end, limit), limit):
            yield calls.decode(body, list[wire.Change])

    async def _bodies(self, first: Call[Any], limit: int | None) -> AsyncIterator[bytes]:
        call: Call[Any] | None = first
        left = limit or None
        while call is not None:
            answer = await self._send(call)
            body, rows = calls.page(answer, left)
            yield body
            left = None if left is None else left - rows
            call = None if left is not None and left <= 0 else calls.next_page(answer, call)

    async def _lines(self, call: Call[Any]) -> AsyncGenerator[bytes, None]:
        """The lines of an answer, each as it comes."""
        rest = b""
        async with aclosing(self._pieces(call)) as pieces:
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield line

    async def _pieces(self, call: Call[Any]) -> AsyncGenerator[bytes, None]:
        import httpx

        from kbctl import remote

        self._place.check()
        try:
            async with self._http.stream(**remote.request(call)) as answer:
                if not answer.is_success:
                    await answer.aread()
                calls.check_answer(answer, call)
                async for piece in answer.aiter_bytes():
                    yield piece
        except httpx.RemoteProtocolError:
            raise calls.cut_off() from None
        except httpx.HTTPError as error:
            raise remote.failure(self._place.name, error) from None

    async def _ask(self, call: Call[T]) -> T:
        return calls.read(await self._send(call), call)

    async def _send(self, call: Call[Any]) -> calls.Answer:
        import httpx

        from kbctl import remote

        self._place.check()
        try:
            answer = await self._http.request(**remote.request(call))
        except httpx.HTTPError as error:
            raise remote.failure(self._place.name, error) from None
        calls.check_answer(answer, call)
        return answer
