"""Settles calls that got no answer, by what the vendor itself shows of them.

What must stay true: a call is posted only where the vendor's list shows what it made, or its object that it
was done, and never for less than it holds; it is freed only where its object is in a state that no call
leaves again. That nothing is listed, or not yet done, proves nothing: such a call is asked about again, ever
more rarely, and stays held until a person resolves it. What is still unknown is on disk, so that a restart
goes on with it.
"""

import asyncio
import json
import logging
import sqlite3
from collections.abc import Mapping
from typing import Any

from kbctld.core import listing
from kbctld.core.cost import Remembered
from kbctld.core.grant import Grant
from kbctld.core.later import place_of
from kbctld.core.ledger import NS_PER_DAY, NS_PER_S, Hold, Outcome, day_of
from kbctld.core.listing import Evidence, Rival
from kbctld.core.lookup import Missed
from kbctld.core.money import usd_from_nano
from kbctld.core.operation import Amount, Increase, Operation
from kbctld.core.record import AFTER_S, BEFORE_S, Made, evidence, proven_nano
from kbctld.core.state import read_state, state_target
from kbctld.core.vendor import Vendor
from kbctld.core.vendor_file import ListingTable, StateTable
from kbctld.credentials import Credential
from kbctld.proxy.call import Refused
from kbctld.proxy.plane import Plane
from kbctld.proxy.record import Source, pages, read, unusable
from kbctld.proxy.upstream import UpstreamError
from kbctld.store.journal import JournalError
from kbctld.store.record import Row, lost, places, rivals

log = logging.getLogger("kbctld.proxy")

_APART_S = 0.2
_LOOK_AGAIN_S = 10.0
_FAILED_S = 60.0
_FIRST_S = 30
"""An SDK's own retry tells sooner."""
_LONGEST_S = 6 * 3600
_PAGES = 10
_LISTING_PAGES = 50
"""A list of contents takes no key to look for: all of its time is read."""
_MOST = 10_000
_OBJECT_DAYS = 30
_OBJECT_BYTES = 1024 * 1024
_RIVALS = 1_000


class Settling:
    """``run`` goes on until it is cancelled."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._vault = plane.vault
        self._began_ns = plane.vault.now_ns()
        self._due_ns: dict[str, int] = {}

    async def run(self) -> None:
        """Ask about each call when it is due."""
        while True:
            try:
                await asyncio.sleep(await self.step())
            except (JournalError, sqlite3.Error) as error:
                log.warning("calls without an answer can't be asked about now: %s", error)
                await asyncio.sleep(_FAILED_S)

    async def step(self) -> float:
        """Ask about the call that is due first, if one is; gives the seconds until the next step.

        Raises:
            JournalError: nothing can be recorded now.
            sqlite3.Error: nothing can be read now.
        """
        if not any(hold.outcome is Outcome.UNKNOWN for hold in self._vault.ledger.open):
            self._due_ns.clear()
            return _LOOK_AGAIN_S
        waiting = await self._waiting()
        due = {row.call_id: self._due_ns.get(row.call_id) or self._first_ns(row) for _, row in waiting}
        self._due_ns = due
        vendor, row = min(waiting, key=lambda each: due[each[1].call_id], default=(None, None))
        now_ns = self._vault.now_ns()
        if vendor is None or row is None or due[row.call_id] > now_ns:
            return _LOOK_AGAIN_S
        # As long again as the call is old: what is not listed by then will hardly ever be.
        age_s = (now_ns - row.ts_ns) // NS_PER_S
        due[row.call_id] = now_ns + min(max(age_s, _FIRST_S), _LONGEST_S) * NS_PER_S
        try:
            await self._ask(vendor, row)
        except Refused as refused:
            log.info("%s can't be asked about now: %s", row.call_id, refused.refusal.sentence)
        except UpstreamError as error:
            log.info("%s: the vendor did not tell: %s", row.call_id, error.detail)
        return _APART_S

    async def _waiting(self) -> list[tuple[Vendor, Row]]:
        await self._vault.journal.barrier()
        now_ns = self._vault.now_ns()
        found: list[tuple[Vendor, Row]] = []
        for vendor in self._plane.vendors.values():
            longest = _days(vendor)
            if longest:
                since_ns = now_ns - longest * NS_PER_DAY
                rows = await lost(self._vault.journal.database.reader, vendor.name, since_ns, _MOST)
                found += [
                    (vendor, row)
                    for row in rows
                    if _reach_days(vendor, row) * NS_PER_DAY > now_ns - row.ts_ns
                ]
        return found

    def _first_ns(self, row: Row) -> int:
        """At once after a start: whoever could still have retried is gone."""
        return row.ts_ns + (_FIRST_S * NS_PER_S if row.ts_ns >= self._began_ns else 0)

    async def _ask(self, vendor: Vendor, row: Row) -> None:
        operation = vendor.operations[row.operation or ""]  # or it would not be waiting
        grant = await self._vault.grant_of(row.key_no)
        credential = self._plane.usable_credential(grant, vendor)
        by_content = vendor.file.listing.get(operation.record or "")
        state = vendor.file.state.get(operation.state or "")
        if by_content is not None:
            await self._ask_for_content(vendor, row, operation, grant, credential, by_content)
        elif state is not None:
            await self._ask_object(vendor, row, operation, grant, credential, state)
        elif operation.record is not None and row.key is not None:
            await self._ask_for_key(vendor, row, operation.record, row.key, grant, credential)

    # --- by its idempotency key -----------------------------------------------------------------

    async def _ask_for_key(
        self, vendor: Vendor, row: Row, kind: str, own_key: str, grant: Grant, credential: Credential
    ) -> None:
        key = self._plane.key_there(vendor, row.tenant, own_key.encode()).decode()
        at_s = row.ts_ns // NS_PER_S
        source = Source(kind, accounts=accounts_of(row))
        made, _ = await self._listed(
            row, grant, credential, source, at_s - BEFORE_S, at_s + AFTER_S, most=_PAGES
        )
        found = evidence(made, kind, key)
        # From here to the decision nothing is awaited: a retry could end the call meanwhile.
        hold = self._vault.unresolved(row.call_id)
        if found is None or hold is None:
            return
        nano = proven_nano(found, row.minor, row.currency, hold.nano, self._vault.rates)
        if nano is None:
            log.warning(
                "%s made %s, but its amount is not what was held: kbctl resolve %s",
                *(row.call_id, found.object_id, row.call_id),
            )
            return
        if found.minor is not None and found.currency is not None and _built_on(vendor, row):
            counted = Remembered(nano, found.minor, found.currency)
            self._vault.remember(vendor.name, credential.name, found.object_id, counted)
        hold.row.vendor_request_id = hold.row.vendor_request_id or found.request_id
        await self._resolve(hold, nano, {"found": found.object_id})

    # --- by what it asked for -------------------------------------------------------------------

    async def _ask_for_content(
        self,
        vendor: Vendor,
        row: Row,
        operation: Operation,
        grant: Grant,
        credential: Credential,
        table: ListingTable,
    ) -> None:
        group, _ = await self._rivals(row)
        if not group:
            return
        parameters = parameters_of(vendor, row)
        from_s, to_s = group[0].at_s - BEFORE_S, group[-1].at_s + AFTER_S
        source = Source(operation.record or "", parameters)
        made, whole = await self._listed(row, grant, credential, source, from_s, to_s, most=_LISTING_PAGES)
        if not whole:
            log.info("%s: %s lists more of that time than is read", row.call_id, vendor.name)
            return
        # Meanwhile others may have told what they made, or have begun.
        group, owned = await self._rivals(row)
        key = (row.content or b"").hex()
        free = [
            thing
            for thing in made
            if thing.key == key and _place(operation, parameters, thing.object_id) not in owned
        ]
        found = listing.evidence(row.call_id, group, free)
        hold = self._vault.unresolved(row.call_id)
        if found is None or hold is None:
            return
        self._await_price(vendor, row, operation, credential, table, found, hold)
        await self._resolve(hold, hold.nano, {"found": found.made.object_id} if found.certain else {})

    async def _rivals(self, row: Row) -> tuple[list[Rival], set[str]]:
        """Those that asked for the same near its time, and where others tell of what they have made."""
        if row.content is None:
            return [], set()
        await self._vault.journal.barrier()
        reader = self._vault.journal.database.reader
        from_ns, to_ns = row.ts_ns - NS_PER_DAY, row.ts_ns + NS_PER_DAY
        same = await rivals(reader, row.content, from_ns, to_ns, _RIVALS)
        group = listing.cluster(row.call_id, map(_rival, same)) if len(same) < _RIVALS else []
        return group, await places(reader, row.content, from_ns, to_ns) if group else set()

    def _await_price(
        self,
        vendor: Vendor,
        row: Row,
        operation: Operation,
        credential: Credential,
        table: ListingTable,
        found: Evidence,
        hold: Hold,
    ) -> None:
        """Its true price is asked for as if it had answered, where that is the price of what it made."""
        later = operation.later
        if later is None or not (found.certain and table.price_follows):
            return
        path = _place(operation, parameters_of(vendor, row), found.made.object_id)
        if path is not None:
            self._vault.await_price(
                *(hold.row, vendor.name, credential.name, operation.name, path, row.fees_nano, later.after_s)
            )

    # --- by its object --------------------------------------------------------------------------

    async def _ask_object(
        self,
        vendor: Vendor,
        row: Row,
        operation: Operation,
        grant: Grant,
        credential: Credential,
        table: StateTable,
    ) -> None:
        target = state_target(table, parameters_of(vendor, row))
        why = f"kbctl asked what became of {row.call_id}"
        raw = await read(self._plane, grant, credential, target, accounts_of(row), _OBJECT_BYTES, why=why)
        fate = read_state(table, raw, row.minor)
        if isinstance(fate, Missed):
            raise unusable(vendor, target, fate.why)
        hold = self._vault.unresolved(row.call_id)
        if fate == "open" or hold is None:
            return
        if fate == "never":
            await self._resolve(hold, None, {"found": target.path})
            return
        if isinstance(operation.cost, Increase) and table.amount is not None:
            self._remember(vendor, row, credential, parameters_of(vendor, row)[operation.cost.of])
        await self._resolve(hold, hold.nano, {"found": target.path})

    def _remember(self, vendor: Vendor, row: Row, credential: Credential, object_id: str) -> None:
        """Later steps count only what they add to the amount that it has now."""
        if row.minor is not None and row.currency is not None:
            nano = self._vault.rates.nano(row.minor, row.currency)
            if nano is not None:
                counted = Remembered(nano, row.minor, row.currency)
                self._vault.remember(vendor.name, credential.name, object_id, counted)

    # --- all of them ----------------------------------------------------------------------------

    async def _listed(
        self,
        row: Row,
        grant: Grant,
        credential: Credential,
        source: Source,
        from_s: int,
        to_s: int,
        *,
        most: int,
    ) -> tuple[list[Made], bool]:
        """What stands in the list, and whether that is all of it."""
        made: list[Made] = []
        count = 0
        why = f"kbctl asked what became of {row.call_id}"
        async for page in pages(self._plane, grant, credential, source, from_s, to_s, why=why):
            made += page.made
            count += 1
            if count >= most:
                return made, page.after is None
        return made, True

    async def _resolve(self, hold: Hold, nano: int | None, found: Mapping[str, Any]) -> None:
        spent = {} if nano is None else {"spent_usd": usd_from_nano(nano)}
        details = {"held_usd": usd_from_nano(hold.nano), **spent, **found}
        await self._vault.resolve(hold, nano, "kbctl", details)
        log.info("%s: %s", hold.call_id, "freed" if nano is None else "posted")


def accounts_of(row: Row) -> dict[str, str]:
    """The headers that moved a call to another account."""
    return {} if row.accounts is None else dict(json.loads(row.accounts))


def parameters_of(vendor: Vendor, row: Row) -> Mapping[str, str]:
    """Those of a call's path."""
    return vendor.match("POST", row.endpoint, tuple(row.endpoint.strip("/").split("/")))[1]


def _place(operation: Operation, parameters: Mapping[str, str], object_id: str) -> str | None:
    """Where the true price of what a call made is told; None where it is not."""
    later = operation.later
    return None if later is None else place_of(later, parameters, {later.object: object_id})


def _rival(row: Row) -> Rival:
    counts_in = (row.key_no, row.nano, day_of(row.ts_ns))
    return Rival(row.call_id, row.ts_ns // NS_PER_S, counts_in, row.outcome)


def _days(vendor: Vendor) -> int:
    """How far back the vendor can tell what became of a call; 0 where it can't."""
    reach = [each.days for each in vendor.file.listing.values()]
    reach += [vendor.file.record.days] if vendor.file.record is not None else []
    reach += [_OBJECT_DAYS] if vendor.file.state else []
    return max(reach, default=0)


def _reach_days(vendor: Vendor, row: Row) -> int:
    """The same of one call; 0 where there is nothing to find it by."""
    operation = vendor.operations.get(row.operation or "")
    if operation is None:
        return 0
    by_content = vendor.file.listing.get(operation.record or "")
    if by_content is not None:
        return by_content.days if row.content is not None else 0
    if operation.state is not None:
        return _OBJECT_DAYS
    keyed = operation.record is not None and row.key is not None and vendor.file.record is not None
    return vendor.file.record.days if keyed and vendor.file.record is not None else 0


def _built_on(vendor: Vendor, row: Row) -> bool:
    """Whether later operations name the object that it made."""
    operation = vendor.operations.get(row.operation or "")
    return operation is not None and isinstance(operation.cost, Amount) and operation.cost.object is not None
