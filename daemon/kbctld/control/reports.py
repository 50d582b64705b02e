"""What operators read that spans parts: which vendors there are, and who spent what.

What must stay true: a report runs on a connection of its own, so that no call waits for it.
"""

from dataclasses import dataclass

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.control.parameters import Choice, Moment
from kbctld.control.routes import Ask, Reply, Route
from kbctld.core.ledger import NS_PER_DAY, day_of
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
        ]

    async def _vendors(self, _ask: Ask) -> Reply:
        names: dict[str, list[str]] = {}
        for credential in self.credentials:
            names.setdefault(credential.vendor, []).append(credential.name)
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

    async def _spend(self, ask: Ask) -> Reply:
        now_ns = self.vault.now_ns()
        by, given_ns, to_ns = ask.text("by") or "key", ask.moment("from"), ask.moment("to")
        to_ns = now_ns + 1 if to_ns is None else to_ns
        from_ns = day_of(now_ns) * NS_PER_DAY if given_ns is None else given_ns
        if from_ns >= to_ns:
            raise KbctlError("invalid_request", "`from` is not before `to`", "kbctl spend", Exit.USAGE)
        await self.vault.journal.barrier()
        async with queries.own_reader(self.vault.journal.database.path) as reader:
            return Reply(await queries.spend(reader, by, from_ns, to_ns))
