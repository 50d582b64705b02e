"""The state of the daemon between its two planes: grants, money and rows, in memory and in the journal.

What must stay true:

- memory is a fold of the journal. Whatever may only become true once it is durable (a new key, a wider
  limit) is recorded first; whatever must bite at once (a revocation, a pause) is done in memory first and
  reported only when it is durable too;
- money is set aside in memory, without awaiting, and its row is durable before anything acts on it;
- a key is read from the database when it is first used, and stays until nobody has used it for a while and
  nothing of it is known to memory alone. Keys with an open hold are read at
  start, with their ancestors and tenants, so that an account in memory always knows all that is held on it;
- each key, and each tenant, has one ``Scope`` in memory at any time: two would be two caps.

The data plane asks five things of it: ``find``, ``recall``, ``authorize``, ``append`` and ``settle``.
"""

import asyncio
import gc
import json
import logging
import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from kbctld.boot import boot_id, boot_ns
from kbctld.core.clock import Clock, rfc3339
from kbctld.core.cost import Remembered
from kbctld.core.entry import Entries, EntryError, read_entries
from kbctld.core.grant import Grant, label_matches
from kbctld.core.ledger import (
    NS_PER_DAY,
    NS_PER_S,
    TWINS_MAX,
    Account,
    Attempt,
    Change,
    Hold,
    Ledger,
    LedgerError,
    Outcome,
    Scope,
    Verdict,
    day_of,
)
from kbctld.core.limits import Limits
from kbctld.core.listing import content, list_path
from kbctld.core.lookup import Plan, looks_up
from kbctld.core.money import Rates, usd_from_nano
from kbctld.core.pace import Bucket
from kbctld.core.policy import Access, Permit, Request, authorize, plan
from kbctld.core.refusal import Code, Refusal
from kbctld.core.roster import Roster
from kbctld.core.rule import RuleError, read_rule
from kbctld.core.vault_key import ALPHABET, base62, digest, mint, same
from kbctld.core.vendor import Vendor
from kbctld.prices import Prices
from kbctld.store import changes, later, queries
from kbctld.store.database import Database, mark_pending_unknown
from kbctld.store.journal import CallRow, Journal, JournalError, Statement, Trace
from kbctld.store.kept import Kept, kept_of, kept_of_tenant
from kbctld.store.readers import is_broken

log = logging.getLogger("kbctld.vault")

T = TypeVar("T")

DEPTH_MAX = 8
"""How many ancestors a key may have."""
CHILDREN_MAX = 10_000
"""How many living keys may come from one: an agent derives them without asking anybody."""
_OBJECTS_MAX = 100_000
_RETRY_MEMORY_NS = 24 * 3_600_000_000_000
_AT_ONCE = 2000
_VIEWED_AT_ONCE = 100
_HELD_AT_ONCE = 500
_KEY_ID_LENGTH = 13
_GROWN_MAX = 2000
_COUNT_KEPT_S = 10.0
_COUNT_KEPT_FROM = 50_000
_LOCKED_RETRY_S = 0.2
IDLE_KEPT = 20_000
"""So many keys stay in memory however long nobody uses them."""
_IDLE_NS = 15 * 60 * 10**9
_LOOKED_AT_ONCE = 1000
_LISTS_KEPT = 256
_NO_ENTRIES = Entries()


@dataclass(frozen=True, slots=True)
class Terms:
    """What a new key shall be, checked and resolved; texts as they were given.

    Attributes:
        limits: resolved; ``vendors`` is never None.
        said: JSON of the limits that were said beside the policy, for when the policy changes.
        override: whether those win over the policy even where they are wider.
    """

    limits: Limits
    label: str
    tenant: str | None
    metadata: Mapping[str, str]
    credential: str | None
    parent: Grant | None = None
    policy: str | None = None
    said: str = "{}"
    override: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which keys a revocation means; what is derived from one of them is meant with it."""

    numbers: frozenset[int] = frozenset()
    tenant: str | None = None
    label: str | None = None
    all: bool = False

    def means(self, grant: Grant) -> bool:
        """Whether this very key is named, not counting what it comes from."""
        return (
            self.all
            or grant.no in self.numbers
            or (self.tenant is not None and grant.tenant == self.tenant)
            or (self.label is not None and label_matches(grant.label, self.label))
        )

    def reaches(self, grant: Grant) -> bool:
        """Whether it ends this key, itself or through an ancestor."""
        return any(self.means(holder) for holder in grant.lineage)

    def stops(self, grant: Grant, now_ns: int) -> bool:
        """Whether it is to be recorded of this key; one that has expired is left as it is, unless named."""
        return self.reaches(grant) and (grant.no in self.numbers or not grant.expired(now_ns))


@dataclass(frozen=True, slots=True, eq=False)
class Revoked:
    """What a revocation did.

    Attributes:
        stopped: the numbers of the keys that it stopped, what was derived from them too, in no order.
        shown: some of these, to look at.
        flying: those of all the selected that have calls under way.
    """

    stopped: list[int]
    shown: list[Grant]
    flying: list[Grant]


class TooManyKeysError(Exception):
    """A key has as many descendants, or ancestors, as any may have."""


class Vault:
    """Grants, ledger and journal as one.

    Attributes:
        vendors: by name.
        rates: US dollars per unit of other currencies.
        prices: of language models.
        ledger: the open holds.
        policies: limits as JSON, by name.
        spent_nano: posted since the start.
        awaits: set when there is one more price to ask for.
        patience_s: how long a change that has bitten already waits for a locked database.
    """

    def __init__(
        self,
        database: Database,
        vendors: Mapping[str, Vendor],
        rates: Rates,
        prices: Prices | None = None,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        tick_ns: Callable[[], int] = time.monotonic_ns,
        boot_ns: Callable[[], int] = boot_ns,
        boot: str | None = None,
    ) -> None:
        self.vendors = vendors
        self.rates = rates
        self._grown_by = 0
        self._count = 0
        self._count_until = 0.0
        self.prices = prices or Prices()
        self.ledger = Ledger()
        self.journal = Journal(database)
        self.policies: dict[str, str] = {}
        self.spent_nano = 0
        self.patience_s = 10.0
        self.awaits = asyncio.Event()
        self._database = database
        self._wall_ns = wall_ns
        self._tick_ns = tick_ns
        self._names = _Names()
        # The keys of a policy, and a key with all that come from it, have their lists in common.
        self._entries = lru_cache(_LISTS_KEPT)(lambda texts: read_entries(texts, vendors.values()))
        self._boot_ns = boot_ns
        self._boot = boot_id() if boot is None else boot
        self._clock = Clock(0)
        self._started_tick_ns = tick_ns()
        self._last_no = 0
        self._roster = Roster()
        # Each for as long as a key of it is in memory, or somebody works on it.
        self._tenants: WeakValueDictionary[str, Scope] = WeakValueDictionary()
        self._round: Iterator[Grant] = iter(())
        self._children: dict[int, int] = {}
        self._revoking: dict[Selection, list[int]] = {}
        """Under way, each with the keys that it caught while they were read."""
        self._reading = asyncio.Lock()
        self._wanted: dict[bytes | int, None] = {}
        self._fetching: asyncio.Task[None] | None = None
        self._objects: OrderedDict[tuple[str, str, str], Remembered] = OrderedDict()

    # --- start and stop -------------------------------------------------------------------------

    async def load(self) -> None:
        """Read what must be in memory before the first call: time, policies, and whoever has an open hold."""
        reader = self._database.reader
        await mark_pending_unknown(self._database)
        await self._set_clock(await queries.highest_ns(reader))
        self._last_no = await queries.last_key_no(reader)
        self.policies = await queries.policies(reader)
        await self._enter(await self._kept((), await queries.keys_with_open_holds(reader)))
        for twin in await queries.done_since(reader, self.now_ns() - _RETRY_MEMORY_NS, TWINS_MAX):
            self.ledger.remember_twin(_done(twin))

    async def close(self) -> None:
        await self.journal.close()
        await self._database.close()

    # --- time and names -------------------------------------------------------------------------

    def now_ns(self) -> int:
        """Effective time: never before any time that was acted on, never in a day that can't be due yet."""
        clock, before = self._clock, self._clock.opened
        now_ns = clock.at(self._wall_ns(), self._boot_ns())
        if clock.opened is not before and clock.opened is not None:
            # Before any row of that day: it rides in the same batch, or in an earlier one.
            self.journal.note([changes.day_begins(clock.opened)])
        if clock.step_ns:
            self._note_step(clock.step_ns, now_ns)
        return now_ns

    @property
    def clock_notice(self) -> str | None:
        """What to tell of a clock that was set forward over midnight; None while all is well."""
        self.now_ns()
        clock = self._clock
        if not clock.ahead or clock.opened is None:
            return None
        day = rfc3339(clock.opened.day * NS_PER_DAY)[:10]
        hours = -(-clock.due_in_ns(self._boot_ns()) // 3_600_000_000_000)
        return (
            f"The clock was set forward over midnight: calls count in the day of {day} for up to {hours} h"
            " more. Set it right, or restart the machine if it is right now."
        )

    def _note_step(self, step_ns: int, now_ns: int) -> None:
        seconds = step_ns // 1_000_000_000
        log.warning("the clock was set by %+d s; no day opens for that", seconds)
        self.journal.note([changes.noted(now_ns, "clock", "clock.step", "clock", {"seconds": seconds})])

    async def _set_clock(self, highest_ns: int) -> None:
        kept = await queries.day_opened(self._database.reader)
        clock = self._clock = Clock(highest_ns, self._boot, kept)
        clock.at(self._wall_ns(), self._boot_ns())
        if clock.opened is not None and clock.opened != kept:
            await queries.keep_day_opened(self._database.writer, clock.opened)

    def tick_ns(self) -> int:
        """Monotonic time, for rates and windows."""
        return self._tick_ns()

    def new_row(self) -> CallRow:
        """An audit row for an attempt that begins now."""
        now_ns = self.now_ns()
        return CallRow(self._names.of_call(now_ns // 1_000_000), now_ns)

    # --- finding keys ---------------------------------------------------------------------------

    async def find(self, vault_key: str) -> Grant | None:
        """The grant of a vault key.

        Raises:
            JournalError: it is not in memory and the database can't be read.
        """
        return await self.find_digest(digest(vault_key))

    async def find_digest(self, wanted: bytes) -> Grant | None:
        """The grant of the vault key with this digest.

        Raises:
            JournalError: as ``find``.
        """
        grant = self._roster.find(wanted)
        if grant is None:
            await self._read_in(wanted)
            grant = self._roster.find(wanted)
        if grant is not None:
            grant.used_ns = self._tick_ns()
        return grant if grant is not None and same(grant.digest, wanted) else None

    async def named(self, reference: str) -> list[Grant]:
        """The grants that a key id, the beginning of one, or a vault key can mean."""
        if reference.startswith("vault_key_"):
            found = await self.find(reference)
            return [] if found is None else [found]
        if not reference.startswith("vk_") or len(reference) < 4 or not reference.isascii():
            return []
        known = self._roster.named(reference)
        if known is not None:
            known.used_ns = self._tick_ns()
            return [known]
        if len(reference) < _KEY_ID_LENGTH:
            await self.journal.barrier()  # one that begins so may be on its way to disk
        numbers = await self._read(queries.keys_named(self._database.reader, reference))
        return [grant for number in numbers[:2] if (grant := await self._by_number(number))]

    async def views(self, numbers: Sequence[int]) -> list[Grant]:
        """These grants, to look at: the living ones where there are such, else some that nobody keeps."""
        # With all above them: what is in memory now may not be any more when they have been read.
        kept = await self._read(kept_of(self._database.reader, numbers=numbers, known=lambda _number: False))
        found = []
        for turn, number in enumerate(numbers, start=1):
            if number in kept.keys:  # else its issue has failed meanwhile
                found.append(self._stored(number, kept, None))
            if turn % _VIEWED_AT_ONCE == 0:
                await asyncio.sleep(0)  # others are served meanwhile
        return found

    async def tenant(self, name: str) -> Scope:
        """What all keys of a tenant have together."""
        scope = self._tenants.get(name)
        if scope is None:
            async with self._reading:
                scope = self._tenant(name, await self._read(kept_of_tenant(self._database.reader, name)))
        return scope

    async def count_running(self) -> int:
        """How many keys may be used; of very many, how many it were some seconds ago."""
        now = asyncio.get_running_loop().time()
        if now >= self._count_until:
            self._count = await self._read(queries.count_running(self._database.readers, self.now_ns()))
            self._count_until = now + (_COUNT_KEPT_S if self._count > _COUNT_KEPT_FROM else 0.0)
        return self._count

    def loaded(self) -> Iterable[Grant]:
        """The grants in memory: all that were used since the start."""
        return self._roster

    async def _by_number(self, number: int) -> Grant | None:
        if number not in self._roster:
            await self._read_in(number)
        grant = self._roster.get(number)
        if grant is not None:
            grant.used_ns = self._tick_ns()
        return grant

    async def forget_idle(self, busy: Callable[[Grant], bool]) -> int:
        """Let go of some keys that nobody has used for a while; gives how many.

        A key that is asked for again is read again, so nothing may be lost with it: none goes that has a call
        under way, money held, children in memory, or a rate or loop guard that has not come to rest.

        Args:
            busy: whether calls of a key are under way or in line.
        """
        if len(self._roster) <= IDLE_KEPT:
            return 0
        async with self._reading:  # what is being read now builds on what is in memory
            open_ = {hold.row.key_no for hold in self.ledger.open}
            idle = {
                grant: _marks(grant)
                for grant in self._some()
                if grant.no not in open_ and self._idle(grant, busy)
            }
            # What it has spent, and whatever stopped it, must be on disk to be read again.
            if not idle or not await self.journal.flushed():
                return 0
            gone = [g for g, marks in idle.items() if marks == _marks(g) and self._idle(g, busy)]
            for grant in gone:
                self._roster.remove(grant)
                self._children.pop(grant.no, None)
            return len(gone)

    def _some(self) -> list[Grant]:
        """The next keys to look at, round and round."""
        found = list(islice(self._round, _LOOKED_AT_ONCE))
        if not found:
            self._round = iter(list(self._roster))
            found = list(islice(self._round, _LOOKED_AT_ONCE))
        return [grant for grant in found if grant.no in self._roster]

    def _idle(self, grant: Grant, busy: Callable[[Grant], bool]) -> bool:
        now_ns = self._tick_ns()
        return (
            now_ns - grant.used_ns >= _IDLE_NS
            and not (grant.in_flight or grant.scope.account.held_total or busy(grant))
            and not self._roster.has_children(grant)
            and all(scope.bucket is None or scope.bucket.is_full(now_ns) for scope in grant.scopes)
            and (grant.scope.guard is None or grant.scope.guard.is_empty(now_ns))
        )

    async def _read_in(self, wanted: bytes | int) -> None:
        """Take in a key, by its digest or number, in one reading with all others that are asked for now."""
        self._wanted[wanted] = None
        if self._fetching is None:
            self._fetching = asyncio.get_running_loop().create_task(self._fetch())
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        async with self._reading:
            # Who asks from here on is in the next reading.
            wanted, self._wanted, self._fetching = self._wanted, {}, None
            await self._enter(
                await self._kept(
                    [each for each in wanted if isinstance(each, bytes)],
                    [each for each in wanted if isinstance(each, int)],
                )
            )

    async def _kept(self, digests: Iterable[bytes], numbers: Iterable[int]) -> Kept:
        return await self._read(
            kept_of(
                self._database.reader,
                digests=digests,
                numbers=numbers,
                known=self._roster.__contains__,
                calls_since_ns=self.now_ns() - _RETRY_MEMORY_NS,
            )
        )

    async def _enter(self, kept: Kept) -> None:
        """Take in keys that were read. Nobody else reads any meanwhile: each comes in once."""
        holds: dict[int, list[Hold]] = {number: [] for number in kept.keys}
        calls = ((number, call) for number, calls in kept.calls.items() for call in calls)
        for turn, (number, call) in enumerate(calls, start=1):
            holds[number].append(_stored_hold(number, call))
            if turn % _HELD_AT_ONCE == 0:
                await asyncio.sleep(0)  # others are served meanwhile: a busy key has thousands a day
        for turn, number in enumerate(kept.keys, start=1):
            self._stored(number, kept, holds)
            if turn % _VIEWED_AT_ONCE == 0:
                await asyncio.sleep(0)  # others are served meanwhile

    def _stored(self, number: int, kept: Kept, holds: Mapping[int, list[Hold]] | None) -> Grant:
        """The grant of a key that was read, entered with its holds; the living one where there is one.

        Without holds it is only to look at.
        """
        known = self._roster.get(number)
        if known is not None:
            return known
        row = kept.keys[number]
        parent = None if row["parent_no"] is None else self._stored(row["parent_no"], kept, holds)
        limits = changes.limits_of_row(row)
        tenant = None if row["tenant"] is None else self._tenant(row["tenant"], kept)
        account = _stored_account(kept, row["key_id"])
        terms = Terms(
            limits,
            row["label"],
            row["tenant"],
            json.loads(row["metadata"]),
            row["credential"],
            parent,
            row["policy"],
        )
        named = (row["no"], row["key_id"], row["digest"], row["ending"])
        try:
            grant = self._grant(*named, terms, account, tenant, row["created_ns"])
        except (EntryError, RuleError) as error:
            # The vendor file no longer has an operation that the key's lists name. Passing over an entry of
            # the deny list would widen the key, so the key stops instead.
            bare = replace(terms, limits=replace(limits, allow=(), deny=(), rules=()))
            grant = self._grant(*named, bare, account, tenant, row["created_ns"])
            grant.frozen = f"its endpoint list or rules can't be read any more: {error}"
        if grant.scope.bucket is not None and limits.rate is not None:
            grant.scope.bucket = Bucket.empty_at(limits.rate, self._started_tick_ns)
        grant.expires_ns, grant.revoked_ns = row["expires_ns"], row["revoked_ns"]
        grant.frozen, grant.paused = row["frozen"] or grant.frozen, row["paused"]
        if holds is not None:
            self._keep(grant, holds[number])
        return grant

    def _keep(self, grant: Grant, holds: Iterable[Hold]) -> None:
        now_ns = self.now_ns()
        for selection, caught in self._revoking.items():
            if grant.revoked_ns is None and selection.stops(grant, now_ns):
                grant.revoked_ns = now_ns  # its row was read before the revocation was on disk
                caught.append(grant.no)
        grant.used_ns = self._tick_ns()
        self._roster.add(grant)
        self._grown()
        accounts = tuple(scope.account for scope in grant.scopes)
        for hold in holds:
            hold.accounts = accounts
            if hold.outcome is Outcome.POSTED:
                self.ledger.restore_replay(hold)
            else:
                self.ledger.restore_hold(hold)

    def _tenant(self, name: str, kept: Kept) -> Scope:
        scope = self._tenants.get(name)
        if scope is not None:
            return scope
        scope = Scope(f"tenant:{name}", f"tenant {name}", _stored_account(kept, f"tenant:{name}"))
        row = kept.tenants.get(name)
        if row is not None:
            limits = changes.tenant_limits_of_row(row)
            _limit_scope(scope, limits, self._tick_ns())
            if limits.rate is not None:
                # Nobody knows what went before the start: empty then, and filling since.
                scope.bucket = Bucket.empty_at(limits.rate, self._started_tick_ns)
        self._tenants[name] = scope
        return scope

    async def _read(self, reading: Awaitable[T]) -> T:
        try:
            return await reading
        except sqlite3.Error as error:
            if is_broken(error):
                self.journal.halt(error)
            raise JournalError(f"the database can't be read: {error}") from None

    # --- changing keys --------------------------------------------------------------------------

    async def issue(self, terms: Terms, actor: str) -> tuple[Grant, str]:
        """Make a key; returns when it is durable.

        Raises:
            EntryError: an endpoint entry that can't be read.
            RuleError: a parameter rule that can't be read.
            TooManyKeysError: its parent has too many ancestors or descendants.
            JournalError: it could not be recorded; there is no key.
        """
        if terms.parent is not None:
            await self._count_child(terms.parent)
        tenant = None if terms.tenant is None else await self.tenant(terms.tenant)
        vault_key = mint(secrets.token_bytes(32))
        now_ns = self.now_ns()
        # The number is taken before the wait, so that two issues at once don't take the same one.
        grant = self._grant(
            self._last_no + 1,
            f"vk_{self._names.next(_KEY_ID_LENGTH - 3)}",
            digest(vault_key),
            vault_key[-4:],
            terms,
            Account(),
            tenant,
            now_ns,
        )
        self._last_no += 1
        lifetime_ns = terms.limits.lifetime_ns
        grant.expires_ns = None if lifetime_ns is None else now_ns + lifetime_ns
        if terms.parent is not None and terms.parent.expires_ns is not None:
            grant.expires_ns = min(grant.expires_ns or terms.parent.expires_ns, terms.parent.expires_ns)
        grant.used_ns = self._tick_ns()
        # In memory first: a revocation of its parent or tenant, meanwhile, must find it.
        self._roster.add(grant)
        self._grown()
        statements: list[Statement] = [
            *changes.key_issued(grant, terms.limits, terms.said, override=terms.override),
            changes.noted(now_ns, actor, "key.issue", grant.key_id, _birth(grant)),
        ]
        if grant.revoked_ns is not None:
            statements.append(changes.keys_revoked(grant.revoked_ns, [grant.no]))
        try:
            await self.journal.change(statements)
        except JournalError:
            self._roster.remove(grant)
            raise
        return grant, vault_key

    async def _count_child(self, parent: Grant) -> None:
        if len(parent.lineage) > DEPTH_MAX:
            raise TooManyKeysError(
                f"key {parent.key_id} has {DEPTH_MAX} ancestors, as many as a key may have"
            )
        root = parent.root
        if root.no not in self._children:
            family = await self._read(queries.family(self._database.reader, [root.no], self.now_ns()))
            self._children.setdefault(root.no, max(len(family) - 1, 0))
        if self._children[root.no] >= CHILDREN_MAX:
            # Counted once more before it is refused: some of them may have been revoked since.
            family = await self._read(queries.family(self._database.reader, [root.no], self.now_ns()))
            self._children[root.no] = max(len(family) - 1, 0)
            if self._children[root.no] >= CHILDREN_MAX:
                raise TooManyKeysError(
                    f"{CHILDREN_MAX:,} keys come from key {root.key_id}, as many as may; revoke some"
                )
        self._children[root.no] += 1

    async def revoke(self, selection: Selection, actor: str, *, show: int = 0) -> Revoked:
        """Stop keys: in memory at once, then on disk; ``show`` is how many it shows.

        Raises:
            JournalError: they are stopped until a restart, but that is not durable yet.
        """
        now_ns = self.now_ns()
        caught = self._revoking.setdefault(selection, [])
        stopped, flying = list[int](), list[Grant]()
        # Memory is asked again for what had been stopped: a retry after a failure must make it durable.
        numbers = dict[int, None]()
        for turn, grant in enumerate(self._reached(selection), start=1):
            if selection.stops(grant, now_ns):
                numbers[grant.no] = None
                if grant.revoked_ns is None:
                    grant.revoked_ns = now_ns
                    stopped.append(grant.no)
                if grant.in_flight:
                    flying.append(grant)
            if turn % _AT_ONCE == 0:
                await asyncio.sleep(0)  # others are served meanwhile
        subject = _subject(selection, [self._roster.get(number) for number in selection.numbers])
        for turn, number in enumerate(await self._stored_family(selection, now_ns), start=1):
            if number not in numbers:
                numbers[number] = None
                stopped.append(number)
            late = self._roster.get(number)
            if late is not None and late.revoked_ns is None:
                late.revoked_ns = now_ns  # issued since we looked, but on disk before we stopped it there
                if late.in_flight:
                    flying.append(late)
            if turn % _AT_ONCE == 0:
                await asyncio.sleep(0)
        stopped = list(dict.fromkeys([*stopped, *caught]))
        numbers.update(dict.fromkeys(caught))
        details = {"keys": len(stopped), "tenant": selection.tenant, "label": selection.label}
        told = [changes.noted(now_ns, actor, "key.revoke", subject, details)] if stopped else []
        viewing = asyncio.get_running_loop().create_task(self._seen_revoked(sorted(stopped[:show]), now_ns))
        rest = iter(numbers)
        try:
            while part := list(islice(rest, _AT_ONCE)):
                await self._record_patiently([changes.keys_revoked(now_ns, part), *told])
                told = []
        except BaseException:
            viewing.cancel()
            raise
        # Not waited for: only keys that are being read now could still need it.
        self._done = asyncio.get_running_loop().create_task(self._forget(selection))
        return Revoked(stopped, await viewing, flying)

    async def _seen_revoked(self, numbers: Sequence[int], now_ns: int) -> list[Grant]:
        """These, read while their end is being recorded; none where they can't be read."""
        try:
            views = await self.views(numbers) if numbers else []
        except JournalError:
            return []
        for grant in views:
            if grant.revoked_ns is None:
                grant.revoked_ns = now_ns
        return views

    def _reached(self, selection: Selection) -> Iterator[Grant]:
        """The grants in memory that it ends, themselves or through an ancestor."""
        roster = self._roster
        if selection.all:
            return iter(list(roster))
        meant = [grant for number in selection.numbers if (grant := roster.get(number)) is not None]
        if selection.tenant is not None:
            meant += roster.of_tenant(selection.tenant)
        if selection.label is not None:
            meant += roster.of_label(selection.label)
        return roster.with_descendants(meant)

    async def _stored_family(self, selection: Selection, now_ns: int) -> Sequence[int]:
        """The numbers of what it ends on disk."""
        if selection.numbers:
            return await self._read(queries.family(self._database.reader, selection.numbers, now_ns))
        wanted = queries.KeyFilter(tenant=selection.tenant, labels=_labels(selection.label))
        return await self._read(queries.families(self._database.readers, wanted, now_ns))

    async def _forget(self, selection: Selection) -> None:
        async with self._reading:
            self._revoking.pop(selection, None)

    async def _record_patiently(self, statements: list[Statement]) -> None:
        """Record what has already happened in memory; a database that somebody has locked is waited for."""
        patience = asyncio.get_running_loop().time() + self.patience_s
        while True:
            try:
                await self.journal.change(statements, lasting=True)
                return
            except JournalError:
                if self.journal.stopped or asyncio.get_running_loop().time() > patience:
                    raise
            await asyncio.sleep(_LOCKED_RETRY_S)

    async def pause(self, grant: Grant, why: str | None, actor: str) -> None:
        """Pause a key in memory and on disk, or with None let it go on, on disk first.

        Raises:
            JournalError: it could not be recorded; a pause holds until a restart all the same.
        """
        if why is not None:
            grant.paused, grant.pauses = why, grant.pauses + 1
        pauses = grant.pauses
        action = "key.resume" if why is None else "key.pause"
        await self._record_patiently(
            [
                changes.key_paused(grant.no, why),
                changes.noted(self.now_ns(), actor, action, grant.key_id, {}),
            ]
        )
        if why is None and grant.pauses == pauses:  # else it was paused again meanwhile, and recorded later
            grant.paused = None
            if grant.scope.guard is not None:
                grant.scope.set_loop(None)
                grant.scope.set_loop(grant.loop)

    async def set_tenant(
        self, name: str, limits: Limits, actor: str, details: Mapping[str, Any] | None = None
    ) -> Scope:
        """Limit all keys of a tenant together; returns when it is durable.

        Args:
            name: of the tenant.
            limits: caps, requests and rate; the rest of them is for keys.
            actor: who asked.
            details: for the list of changes.

        Raises:
            JournalError: it could not be recorded; nothing changed.
        """
        scope = await self.tenant(name)
        now_ns = self.now_ns()
        await self.journal.change(
            [
                changes.tenant_set(name, limits, now_ns),
                changes.noted(now_ns, actor, "tenant.set", name, details or {}),
            ]
        )
        _limit_scope(scope, limits, self._tick_ns())
        return scope

    async def set_policies(
        self,
        policies: Mapping[str, str | None],
        pushed: Callable[[dict[str, Any]], Limits] | None,
        actor: str,
    ) -> list[str]:
        """Put policies in place, or with None take them away, all of them or none.

        Args:
            policies: limits as JSON, by name.
            pushed: gives the new limits of a live key's row, where the change is to reach live keys.
            actor: who asked.

        Returns:
            The ids of the keys whose limits changed with them.

        Raises:
            JournalError: it could not be recorded; nothing changed.
        """
        now_ns = self.now_ns()
        statements: list[Statement] = []
        for name, text in policies.items():
            statements.append(
                changes.policy_removed(name) if text is None else changes.policy_set(name, text, now_ns)
            )
            action = "policy.remove" if text is None else "policy.set"
            details = {} if text is None else {"limits": msgspec.Raw(text.encode())}
            statements.append(changes.noted(now_ns, actor, action, name, details))
        # Nobody reads a key meanwhile: it would come in with the limits of before.
        async with self._reading:
            moved = dict[int, Limits]()
            ids = []
            if pushed is not None:
                for name in policies:
                    for row in await self.live_keys_of(name):
                        limits = pushed(row)
                        if limits == changes.limits_of_row(row):
                            continue
                        moved[row["no"]] = limits
                        ids.append(row["key_id"])
                        statements.append(changes.key_limited(row["no"], limits))
                        statements.append(
                            changes.noted(now_ns, actor, "key.limits", row["key_id"], {"policy": name})
                        )
            await self.journal.change(statements)
            for number, limits in moved.items():
                grant = self._roster.get(number)
                if grant is not None:
                    self._limit(grant, limits)
        for name, text in policies.items():
            if text is None:
                self.policies.pop(name, None)
            else:
                self.policies[name] = text
        return ids

    async def live_keys_of(self, policy: str) -> list[dict[str, Any]]:
        """The rows of the keys of a policy that are neither revoked nor expired."""
        await self.journal.barrier()
        rows = list[dict[str, Any]]()
        before: int | None = None
        while True:
            wanted = queries.KeyFilter(policy=policy, live=True, now_ns=self.now_ns(), before_no=before)
            page = await self._read(queries.keys(self._database.reader, wanted))
            rows += page
            if len(page) < wanted.limit:
                return rows
            before = page[-1]["no"]

    # --- calls ----------------------------------------------------------------------------------

    async def recall(self, vendor: str, credential: str, object_ids: Iterable[str]) -> dict[str, Remembered]:
        """What we know of objects of a vendor that a price builds on."""
        known = {}
        for object_id in object_ids:
            key = (vendor, credential, object_id)
            found = self._objects.get(key)
            if found is None:
                await self.journal.barrier()
                found = await self._read(queries.remembered(self._database.reader, *key))
            if found is not None:
                self._keep_object(key, found)
                known[object_id] = found
        return known

    def plan(self, grant: Grant, access: Access, request: Request) -> Plan | Refusal | None:
        """What must be read at the vendor before the decision; a refusal where that can't matter."""
        if access.operation is None or not looks_up(access.operation):
            return None
        planned = plan(grant, access, request, self.ledger, now_ns=self.now_ns(), tick_ns=self._tick_ns())
        if isinstance(planned, Refusal) and planned.code is Code.LOOP_DETECTED:
            self._note_pauses(grant)
        return planned

    def authorize(self, grant: Grant, access: Access, request: Request, row: CallRow) -> Permit | Refusal:
        """Decide and hold, in one step; the row then carries the hold."""
        verdict = authorize(
            grant,
            access,
            request,
            self.ledger,
            self.rates,
            now_ns=row.ts_ns,
            tick_ns=self._tick_ns(),
            row=row,
            call_id=row.call_id,
            prices=self.prices.find,
        )
        if isinstance(verdict, Permit):
            row.requested_nano = verdict.price.nano if verdict.price.readable else None
            row.currency, row.amount_minor = verdict.price.currency, verdict.price.minor
            row.replay_of = verdict.replay_of
            row.amount_nano = 0 if verdict.replay_of else verdict.attempt.hold.nano
            row.request_digest, row.replay_digest = request.digest, request.replay
            row.fingerprint = None if verdict.replay_of else verdict.attempt.hold.fingerprint
            if verdict.repetition is not None:
                row.duplicate_of = verdict.repetition.earlier.call_id
                row.reason = f"{Code.SUSPECTED_DUPLICATE}: {verdict.repetition.sentence}"
            row.scopes = tuple([scope.name for scope in grant.scopes])
            row.trace = _trace(access, request, verdict)
            if request.replay is not None:
                self._grown()  # it stays for as long as it may be retried
        else:
            row.requested_nano = verdict.requested_nano
            row.currency, row.amount_minor = verdict.currency, verdict.amount_minor
            row.duplicate_of = verdict.facts.get("duplicate_of")
            if verdict.code is Code.LOOP_DETECTED:
                self._note_pauses(grant)
        row.usage_after_nano = grant.scope.account.used(day_of(row.ts_ns))
        return verdict

    def _note_pauses(self, grant: Grant) -> None:
        """A loop guard may have paused its key just now."""
        self.journal.note(
            [changes.key_paused(holder.no, holder.paused) for holder in grant.lineage if holder.paused]
        )

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
        for change in self.ledger.settle(attempt, verdict, spent_nano=spent_nano, replayed=replayed):
            self._end(grant, attempt.hold, change)
        self.journal.finish(attempt.row)
        self._freeze_if_over(grant, attempt.hold, spent_nano)

    def unresolved(self, call_id: str) -> Hold | None:
        """The hold of a call whose outcome nobody knows and that nobody retries now, if there is one."""
        for hold in self.ledger.open:
            if hold.call_id == call_id and hold.outcome is Outcome.UNKNOWN and not hold.attempts:
                return hold
        return None

    async def resolve(
        self, hold: Hold, spent_nano: int | None, actor: str, details: Mapping[str, Any]
    ) -> None:
        """End a call that nobody knew the end of; returns when that is durable.

        Args:
            hold: what ``unresolved`` gave in this same step.
            spent_nano: what the vendor took; None where it took nothing.
            actor: who found out.
            details: for the list of changes.

        Raises:
            JournalError: it is not durable yet; memory says it already, and the journal goes on trying.
        """
        grant = self._roster.get(hold.row.key_no)
        if grant is None:
            raise LedgerError("a hold was taken for a key that is not there")
        self._end(grant, hold, self.ledger.resolve(hold, spent_nano))
        self._freeze_if_over(grant, hold, spent_nano)
        said = changes.noted(self.now_ns(), actor, "call.resolve", hold.call_id, details)
        await self.journal.change([said])

    def _end(self, grant: Grant, hold: Hold, change: Change) -> None:
        """Put what became of a hold into its row and the balances."""
        row: CallRow = change.row
        row.outcome, row.amount_nano = change.outcome.value, change.nano
        if change.outcome is Outcome.POSTED and change.nano:
            self.spent_nano += change.nano
            for scope in grant.scopes:
                self.journal.spend(scope.name, hold.day, change.nano)
        self.journal.finish(row)

    def _freeze_if_over(self, grant: Grant, hold: Hold, spent_nano: int | None) -> None:
        """The truth is larger than the bound: our price is wrong, so this key spends no more."""
        if spent_nano is not None and spent_nano > hold.nano:
            self._freeze(grant)

    # --- prices that are told later -------------------------------------------------------------

    def await_price(
        self,
        row: CallRow,
        vendor: str,
        credential: str,
        operation: str,
        path: str,
        untold_nano: int,
        after_s: int,
    ) -> None:
        """Have the true price of a posted call asked for.

        Args:
            row: of the call.
            vendor: who tells it.
            credential: whose account the call was made in.
            operation: what the call was.
            path: where the price is told.
            untold_nano: what that price leaves out, at most.
            after_s: how long after now.
        """
        assert row.key_no is not None  # noqa: S101 - it was let through
        call = later.Awaited(
            call_id=row.call_id,
            key_no=row.key_no,
            vendor=vendor,
            credential=credential,
            operation=operation,
            path=path,
            day=day_of(row.ts_ns),
            nano=row.amount_nano,
            fees_nano=untold_nano,
            due_ns=self.now_ns() + after_s * NS_PER_S,
        )
        self.journal.note([later.awaited(call)])
        self.awaits.set()

    def put_off(self, call: later.Awaited, wait_s: int, tries: int) -> None:
        """Ask for it again, later."""
        self.journal.note([later.put_off(call.call_id, self.now_ns() + wait_s * NS_PER_S, tries)])

    def give_up(self, call: later.Awaited) -> None:
        """Ask no more; what was posted stays posted."""
        self.journal.note([later.ended(call.call_id, self.now_ns())])

    def correct(self, call: later.Awaited, grant: Grant, nano: int) -> None:
        """Put what a call really cost in place of what was posted, on the day of its hold, up or down.

        Memory, balances and row change in one step and one transaction. A price above the hold may pass a
        cap: it is recorded as it is, and the key stops.
        """
        delta, now_ns = nano - call.nano, self.now_ns()
        for scope in grant.scopes if delta else ():
            scope.account.post(call.day, delta)
            self.journal.spend(scope.name, call.day, delta)
        self.spent_nano += delta
        said = {"from_usd": usd_from_nano(call.nano), "to_usd": usd_from_nano(nano)}
        self.journal.correct(call.call_id, nano)
        self.journal.note(
            [
                later.ended(call.call_id, now_ns),
                changes.noted(now_ns, "kbctl", "call.correct", call.call_id, said),
            ]
        )
        if delta > 0:
            self._freeze(grant)

    async def grant_of(self, number: int) -> Grant:
        """The grant of a key that is on disk.

        Raises:
            JournalError: the database can't be read.
        """
        grant = await self._by_number(number)
        assert grant is not None  # noqa: S101 - its calls refer to it
        return grant

    def _freeze(self, grant: Grant) -> None:
        """The truth is larger than the bound: our price is wrong, so this key spends no more."""
        if grant.frozen is None:
            grant.frozen = "a call cost more than could be told before it was sent"
            self.journal.note([changes.key_frozen(grant.no, grant.frozen)])

    def remember(self, vendor: str, credential: str, object_id: str, counted: Remembered) -> None:
        """Keep what an object is counted at now, for the operations that build on it."""
        key = (vendor, credential, object_id)
        before = self._objects.get(key)
        if before is not None and before.nano > counted.nano:
            counted = Remembered(before.nano, counted.minor, counted.currency)
        self._keep_object(key, counted)
        self.journal.remember(*key, counted)

    # --- inside ---------------------------------------------------------------------------------

    def _grown(self) -> None:
        """Something came in that stays: the garbage collector need not look at it again and again.

        Looking through 20,000 keys took it 100 ms each time, and nobody was served meanwhile.
        """
        self._grown_by += 1
        if self._grown_by >= _GROWN_MAX:
            self._grown_by = 0
            gc.collect()
            gc.freeze()

    def _keep_object(self, key: tuple[str, str, str], counted: Remembered) -> None:
        self._objects[key] = counted
        self._objects.move_to_end(key)
        if len(self._objects) > _OBJECTS_MAX:
            self._objects.popitem(last=False)

    def _grant(
        self,
        number: int,
        key_id: str,
        key_digest: bytes,
        ending: str,
        terms: Terms,
        account: Account,
        tenant: Scope | None,
        created_ns: int,
    ) -> Grant:
        parent = terms.parent
        scope = Scope(key_id, f"key {key_id}", account)
        above = () if parent is None else tuple(holder.scope for holder in parent.lineage)
        grant = Grant(
            no=number,
            key_id=key_id,
            digest=key_digest,
            ending=ending,
            ancestors=() if parent is None else parent.lineage,
            scope=scope,
            scopes=(scope, *above, *(() if tenant is None else (tenant,))),
            vendors=(),
            allow=None,
            deny=_NO_ENTRIES,
            rules=(),
            loop=None,
            stamp=False,
            label=terms.label,
            tenant=terms.tenant,
            metadata=terms.metadata,
            credential=terms.credential,
            policy=terms.policy,
            created_ns=created_ns,
            expires_ns=None,
        )
        self._limit(grant, terms.limits)
        return grant

    def _limit(self, grant: Grant, limits: Limits) -> None:
        """Put limits in place of a grant's.

        Raises:
            EntryError: an endpoint entry that can't be read; nothing changed.
            RuleError: a parameter rule that can't be read; nothing changed.
        """
        # Of any vendor: a policy or a parent may name operations of more than this key reaches.
        vendors = list(self.vendors.values())
        allow = None if limits.allow is None else self._entries(limits.allow)
        deny = self._entries(limits.deny)
        rules = tuple(read_rule(text, vendors) for text in limits.rules)
        grant.vendors, grant.allow, grant.deny, grant.rules = limits.vendors or (), allow, deny, rules
        grant.stamp, grant.loop, grant.duplicates = limits.stamp, limits.loop, limits.duplicates
        _limit_scope(grant.scope, limits, self._tick_ns())
        grant.scope.set_loop(limits.loop)


def _marks(grant: Grant) -> tuple[object, ...]:
    """What changes when anything happens to a key."""
    account = grant.scope.account
    stopped = grant.revoked_ns, grant.paused, grant.frozen, grant.pauses
    return grant.used_ns, *stopped, account.posted_total, sum(account.requests.values())


def _limit_scope(scope: Scope, limits: Limits, tick_ns: int) -> None:
    scope.daily_cap_nano = limits.daily_cap_nano
    scope.total_cap_nano = limits.total_cap_nano
    scope.call_cap_nano = limits.call_cap_nano
    scope.daily_requests = limits.daily_requests
    scope.set_rate(limits.rate, tick_ns)


def _birth(grant: Grant) -> dict[str, str]:
    """What the list of changes says of a new key, beside who made it."""
    said = {"label": grant.label, "policy": grant.policy, "parent": grant.parent and grant.parent.key_id}
    return {name: text for name, text in said.items() if text}


def _trace(access: Access, request: Request, permit: Permit) -> Trace | None:
    """By what the call can be found again, should its answer be lost."""
    vendor, operation = access.vendor, access.operation
    listing = vendor.file.listing.get(operation.record or "") if operation is not None else None
    found = None
    if listing is not None and operation is not None and operation.record is not None:
        path = list_path(listing, access.parameters)
        found = content(listing, operation.record, path, request.form)
    if found is None and not access.accounts:
        return None
    accounts = {name: value for name, value in access.accounts.items() if name in vendor.account_headers}
    if found is None and not accounts:
        return None
    return Trace(found, permit.price.untold, json.dumps(accounts, sort_keys=True) if accounts else None)


def _labels(label: str | None) -> tuple[str, ...]:
    return () if label is None else (label,)


def _subject(selection: Selection, named: list[Grant | None]) -> str:
    if selection.tenant is not None:
        return f"tenant:{selection.tenant}"
    if selection.label is not None:
        return selection.label
    if selection.all:
        return "all"
    return named[0].key_id if len(named) == 1 and named[0] is not None else f"{len(named)} keys"


def _stored_account(kept: Kept, scope: str) -> Account:
    account = Account()
    for day, nano, requests in kept.balances.get(scope, ()):
        account.post(day, nano)
        account.requests[day] = requests
    return account


def _stored_hold(key_no: int, row: Mapping[str, Any]) -> Hold:
    """A hold as its row tells it; in no account yet."""
    call = CallRow(row["call_id"], row["ts_ns"], key_no=key_no)
    call.no, call.amount_nano = row["no"], row["amount_nano"]
    # What it says of its end already stays, when a retry ends it otherwise.
    call.status, call.reason, call.vendor_request_id = row["status"], row["reason"], row["vendor_request_id"]
    call.latency_us, call.upstream_us = row["latency_us"], row["upstream_us"]
    posted = row["outcome"] == Outcome.POSTED
    return Hold(
        row=call,
        call_id=call.call_id,
        accounts=(),
        day=day_of(call.ts_ns),
        nano=call.amount_nano,
        request=row["request_digest"] or b"",
        replay=row["replay_digest"],
        held_ns=call.ts_ns,
        fingerprint=None if posted else row["fingerprint"],  # of those that were done, see ``load``
        idempotency_key=row["idempotency_key"],
        outcome=Outcome.POSTED if posted else Outcome.PENDING,
        attempts=0,
    )


def _done(row: Mapping[str, Any]) -> Hold:
    """What is kept of a call that was done, for whoever asks for the same."""
    return Hold(
        row=None,
        call_id=row["call_id"],
        accounts=(),
        day=0,
        nano=0,
        request=b"",
        replay=None,
        held_ns=row["ts_ns"],
        fingerprint=row["fingerprint"],
        idempotency_key=row["idempotency_key"],
        outcome=Outcome.POSTED,
        attempts=0,
    )


_TO_BASE62 = bytes(ord(ALPHABET[byte % 62]) for byte in range(256))
_UNFAIR = bytes(range(256 - 256 % 62, 256))
"""Bytes that would make the first digits more likely than the rest."""


_DRAWN = 8192


class _Names:
    """Random base62 names; none is a secret. Asked for one by one, the kernel takes 8 us for each."""

    def __init__(self) -> None:
        self._drawn = ""
        self._ms = -1
        self._moment = ""

    def of_call(self, ms: int) -> str:
        """The id of a call: its time in milliseconds, then at random.

        Those that are recorded together then stand together where calls are found by their ids. At random
        each call of a batch wrote a page of that index: 26 of its 42 pages, and over a million calls more
        than half of the writer's CPU time.
        """
        if ms != self._ms:
            self._ms, self._moment = ms, base62(ms % 62**7, 7)  # over a century
        return f"call_{self._moment}{self.next(9)}"

    def next(self, digits: int) -> str:
        while len(self._drawn) < digits:
            self._drawn += secrets.token_bytes(_DRAWN).translate(_TO_BASE62, _UNFAIR).decode("ascii")
        name, self._drawn = self._drawn[:digits], self._drawn[digits:]
        return name
