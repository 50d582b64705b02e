"""What operators read that spans parts: which vendors there are, and who spent what.

What must stay true: a report runs on a connection of its own, so that no call waits for it.
"""

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.control.parameters import Choice, Moment
from kbctld.control.routes import Ask, Reply, Route
from kbctld.control.vendor_check import check_vendor
from kbctld.core.ledger import NS_PER_DAY, day_of
from kbctld.core.operation import (
    Amount,
    Cost,
    Flat,
    Free,
    Increase,
    Items,
    LookUp,
    Minutes,
    Recipients,
    Sms,
    Tokens,
    Unpriceable,
)
from kbctld.credentials import Credentials
from kbctld.store import queries
from kbctld.vault import Vault


@dataclass(frozen=True, slots=True)
class Reports:
    """What they are made from."""

    vault: Vault
    credentials: Credentials

    def routes(self) -> list[Route]:
        """Their part of the table."""
        return [
            Route(
                *("GET", "/spend", self._spend, "read", "Who spent what: today, if no time is given"),
                gives=list[wire.Spend],
                query={
                    "by": Choice("What a line stands for.", queries.SPEND_BY, "key"),
                    "from": Moment("Calls at or after this time; 00:00 UTC today when left out."),
                    "to": Moment("Calls before this time; now when left out."),
                },
            ),
            Route(
                *("GET", "/vendors", self._vendors, "read", "The vendors that keys can be issued for"),
                gives=wire.VendorList,
            ),
            Route(
                *("GET", "/vendors/{name}", self._vendor, "read", "One vendor: what it can do, and the cost"),
                gives=wire.VendorDetail,
                errors=(404,),
            ),
            Route(
                *("POST", "/vendors/check", self._check, "issue", "What is wrong in a vendor file"),
                takes=wire.VendorText,
                gives=wire.VendorFindings,
            ),
        ]

    async def _vendors(self, _ask: Ask) -> Reply:
        names = self._credential_names()
        return Reply(
            wire.VendorList(
                vendors=[
                    wire.Vendor(
                        name=name,
                        title=vendor.file.title,
                        origin=vendor.file.origin,
                        docs=vendor.file.docs,
                        operations=len(vendor.operations),
                        credentials=names.get(name, []),
                    )
                    for name, vendor in sorted(self.vault.vendors.items())
                ]
            )
        )

    async def _vendor(self, ask: Ask) -> Reply:
        name = ask.parameters[0]
        vendor = self.vault.vendors.get(name)
        if vendor is None:
            known = ", ".join(sorted(self.vault.vendors))
            raise KbctlError(
                "vendor_unknown",
                f"there is no vendor {name[:100]!r}; there is {known}",
                "kbctl vendor list",
                Exit.NOT_FOUND,
            )
        return Reply(
            wire.VendorDetail(
                name=vendor.name,
                title=vendor.file.title,
                origin=vendor.origin,
                docs=vendor.file.docs,
                roots=list(vendor.roots),
                account_headers=sorted(vendor.account_headers),
                operations=[
                    wire.VendorOperation(
                        name=operation.name,
                        match=operation.match,
                        cost=_in_words(operation.cost),
                        privileged=operation.privileged,
                        stamps=operation.stamps,
                    )
                    for operation in vendor.operations.values()
                ],
                credentials=self._credential_names().get(name, []),
            )
        )

    async def _check(self, ask: Ask) -> Reply:
        text = wire.decode(ask.body, wire.VendorText).text
        vault = self.vault
        # In a thread: the prices of models take a while to read for the first time.
        check = partial(check_vendor, text, set(vault.vendors), vault.rates, vault.prices.find)
        return Reply(await asyncio.to_thread(check))

    def _credential_names(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for credential in self.credentials:
            names.setdefault(credential.vendor, []).append(credential.name)
        return names

    async def _spend(self, ask: Ask) -> Reply:
        now_ns = self.vault.now_ns()
        by, given_ns, to_ns = ask.text("by") or "key", ask.moment("from"), ask.moment("to")
        to_ns = now_ns + 1 if to_ns is None else to_ns
        from_ns = day_of(now_ns) * NS_PER_DAY if given_ns is None else given_ns
        if from_ns >= to_ns:
            raise KbctlError("invalid_request", "`from` is not before `to`", "kbctl spend", Exit.USAGE)
        await self.vault.journal.barrier()
        return Reply(await queries.spend(self.vault.journal.database.readers, by, from_ns, to_ns))


def _in_words(cost: Cost) -> str:
    """How a cost is told before the call is sent."""
    match cost:
        case Free(unbounded=[]):
            return "free"
        case Free(unbounded=fields):
            return f"free, unknown with {' or '.join(fields)}"
        case Unpriceable(why=why):
            return f"unknown before it is sent: {why}"
        case Amount(amount=amount, currency=str(currency)):
            return f"{amount} in {currency}"
        case Amount(amount=amount, currency_of=objects):
            return f"{amount} in the currency of {' or '.join(objects)}"
        case LookUp(lookup=names):
            return f"looked up: {' or '.join(names)}"
        case Items(of=of):
            return f"the sum of {of}"
        case Increase(amount=None, of=of):
            return f"nothing beyond what {of} was counted at"
        case Increase(amount=amount, of=of):
            return f"what {amount} adds to {of}"
        case Recipients(fields=fields):
            return f"recipients in {', '.join(fields)}, each at its price"
        case Sms(text=text, media=media):
            return (
                f"segments of {text}{f' and files of {media}' if media else ''}, at the price of the country"
            )
        case Minutes(seconds=seconds):
            return f"minutes begun in {seconds}, at the price of the country"
        case Flat(price=name, to=to):
            return f"the price of one {name}{f' and of one segment to {to}' if to else ''}"
        case Tokens():
            return "bytes of the body and the stated maximum of output, at the model's price of tokens"
        case _:
            assert_never(cost)
