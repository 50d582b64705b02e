"""POST /vendors/{name}/reconcile: a vendor's own list of a time, held against our rows of it."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.control.keys import unrecorded
from kbctld.control.parameters import Moment, Text
from kbctld.control.routes import Ask, Reply, Route
from kbctld.core.clock import rfc3339
from kbctld.core.ledger import NS_PER_DAY, NS_PER_S
from kbctld.core.money import Rates, usd_from_nano
from kbctld.core.record import Compared, Made, Ours
from kbctld.core.vendor import Vendor
from kbctld.store.journal import JournalError
from kbctld.vault import Vault

_SETTLED_NS = 2 * NS_PER_S
"""What is younger may still be on its way into the vendor's list."""


@dataclass(frozen=True, slots=True)
class Reconciling:
    """The handler and what it works on.

    Attributes:
        compare: reads the list of a credential's account between two times, and compares.
    """

    vault: Vault
    compare: Callable[[Vendor, str, int, int], Awaitable[Compared]]

    def routes(self) -> list[Route]:
        """Its part of the table."""
        return [
            Route(
                *("POST", "/vendors/{name}/reconcile", self._reconcile, "admin"),
                "Compare a vendor's own list with our rows",
                gives=wire.Reconciliation,
                query={
                    "credential": Text("Of whose account; the vendor's usual one when left out."),
                    "from": Moment("From this time on; a day before `to` when left out."),
                    "to": Moment("Before this time; now when left out."),
                },
                errors=(404, 409, 503),
            ),
        ]

    async def _reconcile(self, ask: Ask) -> Reply:
        name = ask.parameters[0]
        vendor = self.vault.vendors.get(name)
        if vendor is None:
            raise KbctlError(
                "vendor_unknown", f"there is no vendor {name[:100]!r}", "kbctl vendor list", Exit.NOT_FOUND
            )
        if not vendor.list_days:
            raise KbctlError(
                "record_unknown",
                f"the vendor file of {name} does not say where {name} lists what was made",
                f"kbctl audit --vendor {name} --unknown",
                Exit.REFUSED,
            )
        now_ns = self.vault.now_ns()
        given_ns, to_ns = ask.moment("from"), ask.moment("to")
        to_ns = min(now_ns - _SETTLED_NS, now_ns if to_ns is None else to_ns)
        from_ns = to_ns - NS_PER_DAY if given_ns is None else given_ns
        days = vendor.list_days
        if not now_ns - days * NS_PER_DAY <= from_ns < to_ns:
            raise KbctlError(
                "invalid_request",
                f"`from` is not before `to` and within the {days} days that {name} lists",
                f"kbctl reconcile {name} --since 1d",
                Exit.USAGE,
            )
        credential = ask.text("credential") or name
        try:
            found = await self.compare(vendor, credential, from_ns, to_ns)
        except JournalError as error:
            raise unrecorded(error) from None
        rates = self.vault.rates
        return Reply(
            wire.Reconciliation(
                vendor=name,
                credential=credential,
                start=rfc3339(from_ns),
                end=rfc3339(to_ns),
                agree=found.agree,
                elsewhere_usd=usd_from_nano(sum(_nano(thing, rates) or 0 for thing in found.elsewhere)),
                absent_usd=usd_from_nano(sum(call.nano for call in found.absent)),
                differences=sorted(_differences(found, rates), key=lambda each: each.timestamp),
            )
        )


def _differences(found: Compared, rates: Rates) -> Iterator[wire.Difference]:
    for thing in found.elsewhere:
        yield wire.Difference(
            what="elsewhere",
            timestamp=rfc3339(thing.at_s * NS_PER_S),
            kind=thing.kind,
            call_id=None,
            outcome=None,
            object_id=thing.object_id,
            request_id=thing.request_id,
            here_usd=None,
            vendor_usd=_usd(thing, rates),
            currency=thing.currency,
            here_minor=None,
            vendor_minor=thing.minor,
        )
    for call in found.absent:
        yield _ours("absent", call, None, rates)
    for call, thing in found.differ:
        yield _ours("differs", call, thing, rates)


def _ours(what: str, call: Ours, thing: Made | None, rates: Rates) -> wire.Difference:
    return wire.Difference(
        what=what,
        timestamp=rfc3339(call.at_ns),
        kind=call.kind or "",
        call_id=call.call_id,
        outcome=call.outcome,
        object_id=None if thing is None else thing.object_id,
        request_id=call.request_id if thing is None else thing.request_id,
        here_usd=usd_from_nano(call.nano),
        vendor_usd=None if thing is None else _usd(thing, rates),
        currency=call.currency if thing is None else thing.currency,
        here_minor=call.minor,
        vendor_minor=None if thing is None else thing.minor,
    )


def _usd(thing: Made, rates: Rates) -> Decimal | None:
    nano = _nano(thing, rates)
    return None if nano is None else usd_from_nano(nano)


def _nano(thing: Made, rates: Rates) -> int | None:
    if thing.told_later:
        return thing.price_nano
    if thing.minor is None or thing.currency is None:
        return None
    return rates.nano(thing.minor, thing.currency)
