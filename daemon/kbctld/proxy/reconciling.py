"""Holds a vendor's own list of a time against our rows of it.

What must stay true: it only reads; nothing is settled or changed by what it finds.
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass

from kbctl.errors import Exit, KbctlError
from kbctld.core.grant import nobodys
from kbctld.core.later import object_in
from kbctld.core.ledger import NS_PER_S, Account, Scope
from kbctld.core.money import NANO_MAX
from kbctld.core.operation import PLACEHOLDER
from kbctld.core.record import Compared, Made, Ours, compare, merged
from kbctld.core.vendor import Vendor
from kbctld.credentials import Credential
from kbctld.proxy.call import Refused
from kbctld.proxy.plane import Plane
from kbctld.proxy.record import Source, pages
from kbctld.proxy.settling import parameters_of
from kbctld.proxy.upstream import UpstreamError
from kbctld.store.record import Row, attempts

_MARGIN_S = 900
"""Beyond either border, so that what stands across it finds its match."""
_PATIENCE_S = 75.0
"""Less than our own clients wait."""
_ROWS = 100_000
_LISTED = 50_000


async def reconcile(plane: Plane, vendor: Vendor, credential: str, from_ns: int, to_ns: int) -> Compared:
    """Where they differ between two times, in the credential's account and all that calls of ours acted in.

    Raises:
        KbctlError: the list can't be read now, or is too long to be read in one go.
        JournalError: the reading can't be recorded.
    """
    from_s, to_s = from_ns // NS_PER_S - _MARGIN_S, -(-to_ns // NS_PER_S)
    begin_ns, end_ns = max(from_s, 0) * NS_PER_S, min(to_ns + _MARGIN_S * NS_PER_S, NANO_MAX)
    made: dict[_Account, list[Made]] = {}
    try:
        async with asyncio.timeout(_PATIENCE_S):
            grant = nobodys(Scope("kbctl", "kbctl", Account()), vendor.name, credential)
            there = plane.usable_credential(grant, vendor, credential)
            own = _own(vendor, there)
            rows = await _rows(plane, vendor, credential, begin_ns, end_ns)
            for account in dict.fromkeys([own, *(_account_of(vendor, row, own) for row in rows)]):
                listed = made.setdefault(account, [])
                for source in _sources(vendor, account):
                    why = f"kbctl reconciled {vendor.name}"
                    async for page in pages(plane, grant, there, source, from_s, to_s, why=why):
                        listed += page.made
                        if sum(map(len, made.values())) > _LISTED:
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
    # Once more: what has ended meanwhile tells what it made.
    ours: dict[_Account, list[Ours]] = {account: [] for account in made}
    for row in await _rows(plane, vendor, credential, begin_ns, end_ns):
        ours.setdefault(_account_of(vendor, row, own), []).append(_ours(plane, vendor, row))
    rates = plane.vault.rates

    def compared() -> Compared:
        return merged(compare(made[each], ours[each], from_ns, to_ns, rates) for each in made)

    return await asyncio.to_thread(compared)


@dataclass(frozen=True, slots=True)
class _Account:
    """In which calls act: as a path names it, or headers do.

    Attributes:
        parameters: of the paths of listings.
        headers: JSON; None for none.
    """

    parameters: tuple[tuple[str, str], ...]
    headers: str | None


def _own(vendor: Vendor, credential: Credential) -> _Account:
    table = vendor.file.account
    if table is None:
        return _Account((), None)
    return _Account(tuple((name, credential.fields[table.field]) for name in _names(vendor)), None)


def _account_of(vendor: Vendor, row: Row, own: _Account) -> _Account:
    there = parameters_of(vendor, row)
    return _Account(tuple((name, there.get(name, usual)) for name, usual in own.parameters), row.accounts)


def _names(vendor: Vendor) -> list[str]:
    """The parameters of listings."""
    return sorted({name for table in vendor.file.listing.values() for name in PLACEHOLDER.findall(table.get)})


def _sources(vendor: Vendor, account: _Account) -> Iterator[Source]:
    headers = json.loads(account.headers) if account.headers is not None else {}
    record = vendor.file.record
    for kind in (*(record.kinds if record is not None else ()), *vendor.file.listing):
        yield Source(kind, dict(account.parameters), headers)


async def _rows(plane: Plane, vendor: Vendor, credential: str, from_ns: int, to_ns: int) -> list[Row]:
    """Those of one credential.

    Raises:
        KbctlError: they are too many.
    """
    await plane.vault.journal.barrier()
    rows = await attempts(plane.vault.journal.database.readers, vendor.name, from_ns, to_ns, _ROWS + 1)
    if len(rows) > _ROWS:
        raise _too_long(vendor)
    found = []
    for row in rows:
        own = plane.credentials.get(row.credential or "")
        if (row.credential if own is not None and own.vendor == vendor.name else vendor.name) == credential:
            found.append(row)
    return found


def _ours(plane: Plane, vendor: Vendor, row: Row) -> Ours:
    """Its key as the vendor got it; of what is found by its content, that, until it is known what it made."""
    operation = vendor.operations.get(row.operation or "")
    kind = operation.record if operation is not None and not row.retry else None
    request_id = row.request_id
    key = None if row.key is None else plane.key_there(vendor, row.tenant, row.key.encode()).decode()
    if kind in vendor.file.listing and operation is not None:
        request_id, key = None, row.content.hex() if row.content is not None else None
        if row.place is not None and operation.later is not None:
            request_id, key = object_in(operation.later, parameters_of(vendor, row), row.place), None
    return Ours(
        call_id=row.call_id,
        at_ns=row.ts_ns,
        kind=kind,
        request_id=request_id,
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
