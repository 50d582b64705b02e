"""A read that kbctl makes for itself, with the real key: what look-ups, later prices and records share.

What must stay true: to the vendor it is a call like any other: its row is durable before its first byte, its
turn is the caller's to take, and the secret goes nowhere else. It moves no money, so its row costs nothing;
how much of an answer is kept is bounded; and nothing of it reaches an agent.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kbctld.core.policy import Access
from kbctld.credentials import Credential
from kbctld.proxy.inject import outbound_head
from kbctld.proxy.plane import Plane
from kbctld.proxy.upstream import Answer, Connection
from kbctld.store.journal import CallRow


@dataclass(frozen=True, slots=True)
class Heard:
    """What was answered.

    Attributes:
        raw: None where it is too large, or encoded though it was asked not to be.
    """

    status: int
    raw: bytes | None


def new_row(plane: Plane, reads: Access, reason: str) -> CallRow:
    """Ours, and told from an agent's by its reason."""
    row = plane.vault.new_row()
    row.vendor, row.method, row.endpoint = reads.vendor.name, "GET", reads.target.path
    row.operation, row.upstream = reads.title, plane.overridden.get(reads.vendor.name)
    row.requested_nano, row.reason = 0, reason
    row.outcome = "voided"  # until it has answered; a read moves nothing, so nobody need resolve it
    return row


@asynccontextmanager
async def recorded(plane: Plane, row: CallRow) -> AsyncIterator[None]:
    """Durable before what is done inside; ended when that ends, however it does.

    Raises:
        JournalError: it can't be recorded; nothing was done.
    """
    await plane.vault.append(row)
    began_ns = time.perf_counter_ns()
    try:
        yield
    finally:
        row.latency_us = row.upstream_us = (time.perf_counter_ns() - began_ns) // 1000
        plane.vault.journal.finish(row)
        plane.tally.ended(row.vendor, row.policy_check_result, row.outcome)


async def hear(
    plane: Plane,
    reads: Access,
    row: CallRow,
    ready: Callable[[], Credential],
    *,
    fields: Iterable[tuple[bytes, bytes]] = (),
    patience_s: float | None = None,
    most: int,
) -> Heard:
    """Ask, and hear the answer out.

    Args:
        plane: the way out.
        reads: what is asked for.
        row: recorded already.
        ready: called when nothing but the request is missing; gives the credential, or raises.
        fields: what goes along.
        patience_s: the longest silence; as with any call when left out.
        most: bytes of an answer that are kept.

    Raises:
        UpstreamError: the vendor gave no whole answer.
    """
    pool, there = plane.way(reads)
    connection = await pool.connection()
    try:
        credential = ready()
        scheme = reads.vendor.file.auth.scheme
        head = outbound_head(there, pool.origin.authority, credential, scheme, fields, None)
        connection.send(head, head_only=False)
        answer = await connection.answer(patience_s or pool.limits.first_byte_s)
        row.status = answer.status
        request_id = answer.get(reads.vendor.request_id_header)
        if request_id is not None and not plane.scrubber(credential).finds(request_id):
            row.vendor_request_id = request_id.decode("latin-1")[:200]
        raw = await _whole(connection, answer, patience_s or pool.limits.silence_s, most)
    finally:
        connection.release()
    if 200 <= answer.status < 300:
        row.outcome = "posted"
    return Heard(answer.status, raw)


def own_fields(reads: Access) -> list[tuple[bytes, bytes]]:
    """Who asks, and for answers of which version: an agent's own version might tell less."""
    said = {"user-agent": "kbctl", **reads.vendor.file.lookup_headers}
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in said.items()]


async def _whole(connection: Connection, answer: Answer, silence_s: float, most: int) -> bytes | None:
    if any(name == b"content-encoding" and value != b"identity" for name, value in answer.fields):
        return None
    read = bytearray()
    async for piece in connection.body(silence_s):
        read += piece
        if len(read) > most:
            return None
    return bytes(read)
