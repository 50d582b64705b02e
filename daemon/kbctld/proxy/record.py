"""The vendor's own list, page by page: each is read in its turn with the real key, and has its row."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from kbctld.core.grant import Grant
from kbctld.core.lookup import Missed
from kbctld.core.policy import Access
from kbctld.core.record import Made, page_target, read_page
from kbctld.credentials import Credential
from kbctld.proxy.ours import hear, new_row, own_fields, recorded
from kbctld.proxy.upstream import Failure, UpstreamError

if TYPE_CHECKING:
    from kbctld.proxy.exchange import Plane

_ANSWER_BYTES = 4 * 1024 * 1024


async def pages(
    plane: "Plane", grant: Grant, credential: Credential, kind: str, from_s: int, to_s: int, *, why: str
) -> AsyncIterator[tuple[Made, ...]]:
    """What was made from one second to another, newest first; whoever has seen enough breaks off.

    Args:
        plane: the way out.
        grant: in whose turn.
        credential: of which account.
        kind: one of ``record.kinds``.
        from_s: seconds since the epoch.
        to_s: the last one, included.
        why: for the rows.

    Raises:
        Refused: nothing may leave now.
        UpstreamError: the vendor gave no usable answer.
        JournalError: it can't be recorded.
    """
    vendor = plane.vendors[credential.vendor]
    table = vendor.file.record
    assert table is not None  # noqa: S101 - whoever asks has looked
    after: str | None = None
    while True:
        target = page_target(table, kind, from_s, to_s, after)
        operation, parameters = vendor.match("GET", target.path, target.segments)
        reads = Access(vendor, "GET", target, operation, parameters, {})
        async with plane.turn(grant, reads, credential) as turn:
            await turn.comes()
            row = new_row(plane, reads, why)

            def ready() -> Credential:
                turn.leaves()
                return plane.usable_credential(grant, vendor, credential.name)

            async with recorded(plane, row):
                heard = await hear(plane, reads, row, ready, fields=own_fields(reads), most=_ANSWER_BYTES)
        if heard.status != 200 or heard.raw is None:
            raise _unusable(f"{vendor.name} answered {target.path} with status {heard.status}")
        # In a thread: a page of a hundred entries is up to megabytes of JSON.
        page = await asyncio.to_thread(read_page, table, heard.raw)
        if isinstance(page, Missed):
            raise _unusable(f"{vendor.name} was asked for {target.path} and {page.why}")
        yield page.made
        if page.after is None:
            return
        after = page.after


def _unusable(why: str) -> UpstreamError:
    return UpstreamError(Failure.INVALID, why, sent=True)
