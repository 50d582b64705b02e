"""Settles calls that got no answer, where the vendor's own list shows what they made.

What must stay true: only what stands in the list settles a call, and never for less than it holds. That it
does not stand there proves nothing: such a call is asked about again, ever more rarely, and stays held until
a person resolves it. What is still unknown is on disk, so that a restart goes on with it.
"""

import asyncio
import logging
import sqlite3

from kbctld.core.cost import Remembered
from kbctld.core.ledger import NS_PER_DAY, NS_PER_S, Outcome
from kbctld.core.money import usd_from_nano
from kbctld.core.operation import Amount
from kbctld.core.record import Made, evidence, proven_nano
from kbctld.core.vendor import Vendor
from kbctld.proxy.call import Refused
from kbctld.proxy.exchange import Plane
from kbctld.proxy.record import pages
from kbctld.proxy.upstream import UpstreamError
from kbctld.store.journal import JournalError
from kbctld.store.record import Row, lost

log = logging.getLogger("kbctld.proxy")

_APART_S = 0.2
_LOOK_AGAIN_S = 10.0
_FAILED_S = 60.0
_FIRST_S = 30
"""An SDK's own retry tells sooner."""
_LONGEST_S = 6 * 3600
_BEFORE_S = 60
_AFTER_S = 900
"""How far from the call's time its entry is looked for: the vendor's clock is not ours."""
_PAGES = 10
_MOST = 10_000


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
            log.info("%s: the vendor's list was not told: %s", row.call_id, error.detail)
        return _APART_S

    async def _waiting(self) -> list[tuple[Vendor, Row]]:
        await self._vault.journal.barrier()
        found: list[tuple[Vendor, Row]] = []
        for vendor in self._plane.vendors.values():
            if vendor.file.record is not None:
                since_ns = self._vault.now_ns() - vendor.file.record.days * NS_PER_DAY
                rows = await lost(self._vault.journal.database.reader, vendor.name, since_ns, _MOST)
                found += [(vendor, row) for row in rows if _kind(vendor, row) is not None]
        return found

    def _first_ns(self, row: Row) -> int:
        """At once after a start: whoever could still have retried is gone."""
        return row.ts_ns + (_FIRST_S * NS_PER_S if row.ts_ns >= self._began_ns else 0)

    async def _ask(self, vendor: Vendor, row: Row) -> None:
        kind = _kind(vendor, row)
        if kind is None or row.key is None:
            return
        grant = await self._vault.grant_of(row.key_no)
        credential = self._plane.usable_credential(grant, vendor)
        key = self._plane.key_there(vendor, row.tenant, row.key.encode()).decode()
        at_s = row.ts_ns // NS_PER_S
        listed: list[Made] = []
        read = 0
        async for page in pages(
            self._plane,
            grant,
            credential,
            kind,
            at_s - _BEFORE_S,
            at_s + _AFTER_S,
            why=f"kbctl asked what became of {row.call_id}",
        ):
            listed += page
            read += 1
            if read >= _PAGES:
                break
        found = evidence(listed, kind, key)
        if found is not None:
            await self._settle(vendor, row, credential.name, found)

    async def _settle(self, vendor: Vendor, row: Row, credential: str, found: Made) -> None:
        # From here to the decision nothing is awaited: a retry could end the call meanwhile.
        hold = self._vault.unresolved(row.call_id)
        if hold is None:
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
            self._vault.remember(vendor.name, credential, found.object_id, counted)
        hold.row.vendor_request_id = hold.row.vendor_request_id or found.request_id
        details = {
            "held_usd": usd_from_nano(hold.nano),
            "spent_usd": usd_from_nano(nano),
            "found": found.object_id,
        }
        await self._vault.resolve(hold, nano, "kbctl", details)
        log.info("%s made %s: posted", row.call_id, found.object_id)


def _kind(vendor: Vendor, row: Row) -> str | None:
    operation = vendor.operations.get(row.operation or "")
    return operation.record if operation is not None else None


def _built_on(vendor: Vendor, row: Row) -> bool:
    """Whether later operations name the object that it made."""
    operation = vendor.operations.get(row.operation or "")
    return operation is not None and isinstance(operation.cost, Amount) and operation.cost.object is not None
