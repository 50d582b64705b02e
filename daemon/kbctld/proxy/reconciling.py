"""Holds a vendor's own list of a time against our rows of it.

What must stay true: it only reads; nothing is settled or changed by what it finds.
"""

import asyncio
from collections.abc import Iterable

from kbctl.errors import Exit, KbctlError
from kbctld.core.grant import nobodys
from kbctld.core.ledger import NS_PER_S, Account, Scope
from kbctld.core.money import NANO_MAX
from kbctld.core.record import Compared, Made, Ours, compare
from kbctld.core.vendor import Vendor
from kbctld.proxy.call import Refused
from kbctld.proxy.exchange import Plane
from kbctld.proxy.record import pages
from kbctld.proxy.upstream import UpstreamError
from kbctld.store.record import Row, attempts

_MARGIN_S = 900
"""Beyond either border, so that what stands across it finds its match."""
_PATIENCE_S = 75.0
"""Less than our own clients wait."""
_ROWS = 100_000
_LISTED = 50_000


async def reconcile(plane: Plane, vendor: Vendor, credential: str, from_ns: int, to_ns: int) -> Compared:
    """Where they differ between two times.

    Raises:
        KbctlError: the list can't be read now, or is too long to be read in one go.
        JournalError: the reading can't be recorded.
    """
    from_s, to_s = from_ns // NS_PER_S - _MARGIN_S, -(-to_ns // NS_PER_S)
    made: list[Made] = []
    try:
        async with asyncio.timeout(_PATIENCE_S):
            grant = nobodys(Scope("kbctl", "kbctl", Account()), vendor.name, credential)
            there = plane.usable_credential(grant, vendor, credential)
            for kind in vendor.file.record.kinds if vendor.file.record is not None else ():
                async for page in pages(
                    plane, grant, there, kind, from_s, to_s, why=f"kbctl reconciled {vendor.name}"
                ):
                    made += page
                    if len(made) > _LISTED:
                        raise _too_long(vendor)
    except TimeoutError:
        raise _too_long(vendor) from None
    except Refused as refused:
        raise KbctlError(
            refused.refusal.code,
            refused.refusal.sentence,
            refused.refusal.remedy or f"kbctl reconcile {vendor.name}    # again, later",
            Exit.REFUSED,
        ) from None
    except UpstreamError as error:
        raise KbctlError(
            "record_unavailable", error.detail, f"kbctl vendor show {vendor.name}", Exit.REFUSED
        ) from None
    await plane.vault.journal.barrier()
    readers = plane.vault.journal.database.readers
    begin_ns, end_ns = max(from_s, 0) * NS_PER_S, min(to_ns + _MARGIN_S * NS_PER_S, NANO_MAX)
    rows = await attempts(readers, vendor.name, begin_ns, end_ns, _ROWS + 1)
    if len(rows) > _ROWS:
        raise _too_long(vendor)
    ours = list(_ours(plane, vendor, credential, rows))
    return await asyncio.to_thread(compare, made, ours, from_ns, to_ns, plane.vault.rates)


def _ours(plane: Plane, vendor: Vendor, credential: str, rows: Iterable[Row]) -> Iterable[Ours]:
    """Those of one account, their keys as the vendor got them."""
    for row in rows:
        own = plane.credentials.get(row.credential or "")
        if (row.credential if own is not None and own.vendor == vendor.name else vendor.name) != credential:
            continue
        operation = vendor.operations.get(row.operation or "")
        key = None if row.key is None else plane.key_there(vendor, row.tenant, row.key.encode()).decode()
        yield Ours(
            call_id=row.call_id,
            at_ns=row.ts_ns,
            kind=operation.record if operation is not None and not row.retry else None,
            request_id=row.request_id,
            key=key,
            minor=row.minor,
            currency=row.currency,
            nano=row.nano,
            outcome=row.outcome,
        )


def _too_long(vendor: Vendor) -> KbctlError:
    return KbctlError(
        "record_too_long",
        f"{vendor.name} lists more of that time than can be compared in one go",
        f"kbctl reconcile {vendor.name} --since 1h",
        Exit.REFUSED,
    )
