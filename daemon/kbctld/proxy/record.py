"""What the vendor says was made, page by page: each is read in turn with the real key, and has its row."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from kbctld.core import listing, record
from kbctld.core.grant import Grant
from kbctld.core.lookup import Missed
from kbctld.core.policy import Access
from kbctld.core.record import Page
from kbctld.core.target import Target
from kbctld.core.vendor import Vendor
from kbctld.credentials import Credential
from kbctld.proxy.ours import hear, new_row, own_fields, recorded
from kbctld.proxy.plane import Plane
from kbctld.proxy.upstream import Failure, UpstreamError

_ANSWER_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """What is asked about.

    Attributes:
        kind: one of ``record.kinds``, or the name of a ``listing``.
        parameters: of the path, where it has some.
        accounts: headers that name another account than the credential's own.
    """

    kind: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    accounts: Mapping[str, str] = field(default_factory=dict)


async def pages(
    plane: Plane, grant: Grant, credential: Credential, source: Source, from_s: int, to_s: int, *, why: str
) -> AsyncIterator[Page]:
    """What was made from one second to another, newest first; whoever has seen enough breaks off.

    Args:
        plane: the way out.
        grant: in whose turn.
        credential: of which account.
        source: which list.
        from_s: seconds since the epoch.
        to_s: the last one, included.
        why: for the rows.

    Raises:
        Refused: nothing may leave now.
        UpstreamError: the vendor gave no usable answer.
        JournalError: it can't be recorded.
    """
    vendor = plane.vendors[credential.vendor]
    by_content = vendor.file.listing.get(source.kind)
    table = vendor.file.record
    path = "" if by_content is None else listing.list_path(by_content, source.parameters)
    after: str | None = None
    while True:
        if by_content is not None:
            target = listing.page_target(by_content, path, from_s, to_s, after)
        else:
            assert table is not None  # noqa: S101 - whoever asks has looked
            target = record.page_target(table, source.kind, from_s, to_s, after)
        raw = await read(plane, grant, credential, target, source.accounts, _ANSWER_BYTES, why=why)
        # In a thread: a page of a hundred entries is up to megabytes of JSON.
        if by_content is not None:
            rates = plane.vault.rates
            page = await asyncio.to_thread(listing.read_page, by_content, source.kind, path, raw, rates)
        else:
            assert table is not None  # noqa: S101 - as above
            page = await asyncio.to_thread(record.read_page, table, raw)
        if isinstance(page, Missed):
            raise unusable(vendor, target, page.why)
        yield page
        if page.after is None:
            return
        after = page.after


async def read(
    plane: Plane,
    grant: Grant,
    credential: Credential,
    target: Target,
    accounts: Mapping[str, str],
    most: int,
    *,
    why: str,
) -> bytes:
    """One read with the real key, in its turn and with its row.

    Raises:
        Refused: nothing may leave now.
        UpstreamError: the vendor gave no usable answer.
        JournalError: it can't be recorded.
    """
    vendor = plane.vendors[credential.vendor]
    operation, parameters = vendor.match("GET", target.path, target.segments)
    reads = Access(vendor, "GET", target, operation, parameters, accounts)
    fields = [
        *own_fields(reads),
        *((name.encode("ascii"), value.encode("latin-1")) for name, value in accounts.items()),
    ]
    async with plane.turn(grant, reads, credential) as turn:
        await turn.comes()
        row = new_row(plane, reads, why)

        def ready() -> Credential:
            turn.leaves()
            return plane.usable_credential(grant, vendor, credential.name)

        async with recorded(plane, row):
            heard = await hear(plane, reads, row, ready, fields=fields, most=most)
    if heard.status != 200:
        raise unusable(vendor, target, f"answered with status {heard.status}")
    if heard.raw is None:
        raise unusable(vendor, target, "its answer is too large or encoded")
    return heard.raw


def unusable(vendor: Vendor, target: Target, why: str) -> UpstreamError:
    """An answer from which nothing follows."""
    said = f"{vendor.name} was asked for {target.path} and {why}"
    return UpstreamError(Failure.INVALID, said, sent=True)
