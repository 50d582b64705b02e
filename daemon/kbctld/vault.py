"""The state of the daemon between its two planes: grants, money and rows, in memory and in the journal.

What must stay true: memory is a fold of the journal. Whatever may only become true once it is durable
(a new key) is recorded first; whatever must bite at once (a revocation) is done in memory first and
reported only when it is durable too. Money is set aside in memory, without awaiting, and its row is
durable before anything acts on it.

The data plane asks five things of it: ``find``, ``recall``, ``authorize``, ``append`` and ``settle``.
"""

import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kbctld.core.clock import Clock
from kbctld.core.cost import Price, Remembered
from kbctld.core.grant import EntryError, Grant, label_matches, read_entry
from kbctld.core.ledger import Account, Attempt, Hold, Ledger, Outcome, Scope, Verdict, day_of
from kbctld.core.money import Rates
from kbctld.core.policy import Access, Permit, Request, authorize
from kbctld.core.refusal import Refusal
from kbctld.core.vault_key import base62, digest, mint, same
from kbctld.core.vendor import Vendor
from kbctld.store import queries
from kbctld.store.database import Database
from kbctld.store.journal import CallRow, Journal, JournalError, Statement

_OBJECTS_MAX = 100_000
_RETRY_MEMORY_NS = 24 * 3_600_000_000_000

_INSERT_KEY = """
INSERT INTO vault_key (no, key_id, digest, ending, vendors, daily_cap_nano, total_cap_nano, call_cap_nano,
    allow, deny, label, tenant, metadata, credential, created_ns, expires_ns)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a new key shall be allowed, checked and resolved; texts as the operator gave them."""

    vendors: tuple[str, ...]
    daily_cap_nano: int | None
    total_cap_nano: int | None
    call_cap_nano: int | None
    allow: tuple[str, ...] | None
    deny: tuple[str, ...]
    label: str
    tenant: str | None
    metadata: Mapping[str, str]
    credential: str | None
    lifetime_ns: int | None


class Vault:
    """Grants, ledger and journal as one.

    Attributes:
        vendors: by name.
        rates: US dollars per unit of other currencies.
        ledger: the open holds.
    """

    def __init__(
        self,
        database: Database,
        vendors: Mapping[str, Vendor],
        rates: Rates,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.vendors = vendors
        self.rates = rates
        self.ledger = Ledger()
        self.journal = Journal(database)
        self._database = database
        self._wall_ns = wall_ns
        self._clock = Clock(0)
        self._by_digest: dict[bytes, Grant] = {}
        self._by_id: dict[str, Grant] = {}
        self._objects: OrderedDict[tuple[str, str, str], Remembered] = OrderedDict()

    # --- start and stop -------------------------------------------------------------------------

    async def load(self) -> None:
        """Rebuild memory from the journal."""
        reader = self._database.reader
        await queries.mark_pending_unknown(self._database.writer)
        self._clock = Clock(await queries.highest_ns(reader))
        by_no: dict[int, Grant] = {}
        async for row in queries.vault_keys(reader):
            grant = self._stored(row)
            by_no[grant.no] = grant
            self._enter(grant)
        async for key_no, day, nano in queries.spends(reader):
            by_no[key_no].scopes[0].account.post(day, nano)
        async for row in queries.calls_to_remember(reader, self.now_ns() - _RETRY_MEMORY_NS):
            self._restore(row, by_no[row["key_no"]])

    def _stored(self, row: dict[str, Any]) -> Grant:
        allow = None if row["allow"] is None else tuple(json.loads(row["allow"]))
        terms = Terms(
            tuple(json.loads(row["vendors"])),
            row["daily_cap_nano"],
            row["total_cap_nano"],
            row["call_cap_nano"],
            allow,
            tuple(json.loads(row["deny"])),
            row["label"],
            row["tenant"],
            json.loads(row["metadata"]),
            row["credential"],
            None,
        )
        named = (row["no"], row["key_id"], row["digest"], row["ending"])
        try:
            grant = self._grant(*named, terms, row["created_ns"])
        except EntryError as error:
            # The vendor file no longer has an operation that the key's lists name. Passing over an entry of
            # the deny list would widen the key, so the key stops instead.
            grant = self._grant(*named, replace(terms, allow=(), deny=()), row["created_ns"])
            grant.frozen = f"its endpoint list can't be read any more: {error}"
        grant.expires_ns, grant.revoked_ns = row["expires_ns"], row["revoked_ns"]
        grant.frozen = row["frozen"] or grant.frozen
        return grant

    def _restore(self, row: dict[str, Any], grant: Grant) -> None:
        call = CallRow(row["call_id"], row["ts_ns"], key_no=grant.no)
        call.no, call.amount_nano = row["no"], row["amount_nano"]
        # What it says of its end already stays, when a retry ends it otherwise.
        call.status, call.reason, call.vendor_request_id = (
            row["status"],
            row["reason"],
            row["vendor_request_id"],
        )
        call.latency_us, call.upstream_us = row["latency_us"], row["upstream_us"]
        hold = Hold(
            row=call,
            call_id=call.call_id,
            accounts=tuple(scope.account for scope in grant.scopes),
            day=day_of(call.ts_ns),
            nano=call.amount_nano,
            request=row["request_digest"] or b"",
            replay=row["replay_digest"],
            held_ns=call.ts_ns,
        )
        if row["outcome"] == Outcome.POSTED:
            hold.outcome, hold.attempts = Outcome.POSTED, 0
            self.ledger.restore_replay(hold)
        else:
            self.ledger.restore_hold(hold)

    async def close(self) -> None:
        await self.journal.close()
        await self._database.close()

    # --- time and names -------------------------------------------------------------------------

    def now_ns(self) -> int:
        """Effective time: never before any time that was acted on."""
        return self._clock.at(self._wall_ns())

    def new_row(self) -> CallRow:
        """An audit row for an attempt that begins now."""
        return CallRow(f"call_{_random_name(16)}", self.now_ns())

    # --- keys -----------------------------------------------------------------------------------

    def find(self, vault_key: str) -> Grant | None:
        """The grant of a vault key."""
        wanted = digest(vault_key)
        grant = self._by_digest.get(wanted)
        return grant if grant is not None and same(grant.digest, wanted) else None

    def grants(self) -> Iterable[Grant]:
        """All that were ever issued, oldest first."""
        return self._by_id.values()

    def named(self, reference: str) -> list[Grant]:
        """The grants that a key id, the beginning of one, or a vault key can mean."""
        exact = self._by_id.get(reference) or self.find(reference)
        if exact is not None:
            return [exact]
        if not reference.startswith("vk_") or len(reference) < 4:
            return []
        return [grant for key_id, grant in self._by_id.items() if key_id.startswith(reference)]

    def labelled(self, label: str) -> list[Grant]:
        """The grants whose label has all segments of this one."""
        return [grant for grant in self._by_id.values() if label_matches(grant.label, label)]

    async def issue(self, terms: Terms) -> tuple[Grant, str]:
        """Make a key; returns when it is durable.

        Raises:
            EntryError: an endpoint entry that can't be read.
            JournalError: it could not be recorded; there is no key.
        """
        vault_key = mint(secrets.token_bytes(32))
        now_ns = self.now_ns()
        number = max((grant.no for grant in self._newest()), default=0) + 1
        grant = self._grant(
            number, f"vk_{_random_name(10)}", digest(vault_key), vault_key[-4:], terms, now_ns
        )
        grant.expires_ns = None if terms.lifetime_ns is None else now_ns + terms.lifetime_ns
        # The number is taken before the wait, so that two issues at once don't take the same one.
        self._enter(grant)
        values = (
            grant.no,
            grant.key_id,
            grant.digest,
            grant.ending,
            json.dumps(terms.vendors),
            terms.daily_cap_nano,
            terms.total_cap_nano,
            terms.call_cap_nano,
            None if terms.allow is None else json.dumps(terms.allow),
            json.dumps(terms.deny),
            terms.label,
            terms.tenant,
            json.dumps(dict(terms.metadata)),
            terms.credential,
            grant.created_ns,
            grant.expires_ns,
        )
        try:
            await self.journal.change([(_INSERT_KEY, values)])
        except JournalError:
            del self._by_digest[grant.digest], self._by_id[grant.key_id]
            raise
        return grant, vault_key

    async def revoke(self, grants: Iterable[Grant]) -> list[Grant]:
        """Stop keys: in memory at once, then on disk; returns those that were not revoked before.

        Raises:
            JournalError: they are stopped until a restart, but that is not durable.
        """
        now_ns = self.now_ns()
        stopped = []
        statements: list[Statement] = []
        for grant in grants:
            if grant.revoked_ns is None:
                grant.revoked_ns = now_ns
                stopped.append(grant)
            # Again for those that only memory knows of: a retry after a failure must make them durable.
            statements.append(
                (
                    "UPDATE vault_key SET revoked_ns = ? WHERE no = ? AND revoked_ns IS NULL",
                    (grant.revoked_ns, grant.no),
                )
            )
        if statements:
            await self.journal.change(statements)
        return stopped

    # --- calls ----------------------------------------------------------------------------------

    async def recall(self, vendor: str, credential: str, object_ids: Iterable[str]) -> dict[str, Remembered]:
        """What we know of objects of a vendor that a price builds on."""
        known = {}
        for object_id in object_ids:
            key = (vendor, credential, object_id)
            found = self._objects.get(key)
            if found is None:
                await self.journal.barrier()
                found = await queries.remembered(self._database.reader, *key)
            if found is not None:
                self._keep_object(key, found)
                known[object_id] = found
        return known

    def authorize(self, grant: Grant, access: Access, request: Request, row: CallRow) -> Permit | Refusal:
        """Decide and hold, in one step; the row then carries the hold."""
        verdict = authorize(
            grant,
            access,
            request,
            self.ledger,
            self.rates,
            now_ns=row.ts_ns,
            row=row,
            call_id=row.call_id,
        )
        if isinstance(verdict, Permit):
            row.requested_nano = verdict.price.nano if verdict.price.readable else None
            row.currency, row.amount_minor = verdict.price.currency, verdict.price.minor
            row.replay_of = verdict.replay_of
            row.amount_nano = 0 if verdict.replay_of else verdict.attempt.hold.nano
            row.request_digest, row.replay_digest = request.digest, request.replay
        else:
            row.requested_nano = verdict.requested_nano
            row.currency, row.amount_minor = verdict.currency, verdict.amount_minor
        own = grant.scopes[0].account
        row.usage_after_nano = own.used(day_of(row.ts_ns))
        return verdict

    async def append(self, row: CallRow) -> None:
        """Make the row durable. Nothing of the call may leave before this returns.

        Raises:
            JournalError: it could not be recorded.
        """
        await self.journal.append(row)

    def settle(
        self,
        grant: Grant,
        attempt: Attempt,
        verdict: Verdict,
        *,
        spent_nano: int | None = None,
        replayed: bool = False,
    ) -> None:
        """End an attempt in memory, and in the journal soon."""
        hold = attempt.hold
        for change in self.ledger.settle(attempt, verdict, spent_nano=spent_nano, replayed=replayed):
            row: CallRow = change.row
            row.outcome, row.amount_nano = change.outcome.value, change.nano
            if change.outcome is Outcome.POSTED and change.nano and row.key_no is not None:
                self.journal.spend(row.key_no, hold.day, change.nano)
            self.journal.finish(row)
        self.journal.finish(attempt.row)
        if spent_nano is not None and spent_nano > hold.nano and grant.frozen is None:
            # The truth is larger than the bound: our price is wrong, so this key spends no more.
            grant.frozen = "a call cost more than could be told before it was sent"
            self.journal.note([("UPDATE vault_key SET frozen = ? WHERE no = ?", (grant.frozen, grant.no))])

    def remember(self, vendor: str, credential: str, object_id: str, price: Price) -> None:
        """Keep what an object is counted at now, for the operations that build on it."""
        if price.counts is not None:
            key = (vendor, credential, object_id)
            before = self._objects.get(key)
            counted = price.counts
            if before is not None and before.nano > counted.nano:
                counted = Remembered(before.nano, counted.minor, counted.currency)
            self._keep_object(key, counted)
            self.journal.remember(*key, counted)

    # --- inside ---------------------------------------------------------------------------------

    def _keep_object(self, key: tuple[str, str, str], counted: Remembered) -> None:
        self._objects[key] = counted
        self._objects.move_to_end(key)
        if len(self._objects) > _OBJECTS_MAX:
            self._objects.popitem(last=False)

    def _newest(self) -> Iterable[Grant]:
        return [next(reversed(self._by_id.values()))] if self._by_id else []

    def _enter(self, grant: Grant) -> None:
        self._by_digest[grant.digest] = grant
        self._by_id[grant.key_id] = grant

    def _grant(
        self, number: int, key_id: str, key_digest: bytes, ending: str, terms: Terms, created_ns: int
    ) -> Grant:
        # A vendor file may be gone since the key was issued: its entries then cover nothing.
        vendors = [self.vendors[name] for name in terms.vendors if name in self.vendors]
        own = Scope(f"key {key_id}", Account(), terms.daily_cap_nano, terms.total_cap_nano)
        return Grant(
            no=number,
            key_id=key_id,
            digest=key_digest,
            ending=ending,
            vendors=terms.vendors,
            scopes=(own,),
            call_cap_nano=terms.call_cap_nano,
            allow=None if terms.allow is None else tuple(read_entry(text, vendors) for text in terms.allow),
            deny=tuple(read_entry(text, vendors) for text in terms.deny),
            label=terms.label,
            tenant=terms.tenant,
            metadata=terms.metadata,
            credential=terms.credential,
            created_ns=created_ns,
            expires_ns=None,
        )


def _random_name(digits: int) -> str:
    return base62(secrets.randbelow(62**digits), digits)
