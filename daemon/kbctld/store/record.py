"""Our rows as they are held against a vendor's own list."""

import sqlite3
from dataclasses import dataclass

import aiosqlite

from kbctld.store.readers import Readers


@dataclass(frozen=True, slots=True)
class Row:
    """One attempt.

    Attributes:
        call_id: of the row that holds its money: of a retry, the first attempt's.
        tenant: of its key.
        credential: that its key was issued for; None for the usual one.
        endpoint: its path, with the account in it.
        key: the agent's own idempotency key.
        minor: as it was priced.
        nano: what counts for it.
        retry: whether it went out under the hold of an earlier one.
        content: of what it asked for; None where the vendor's list is not searched by that.
        fees_nano: what a price that is told later leaves out, at most.
        accounts: JSON of the headers that moved it to another account; None for none.
        place: where its true price is told, which names what it made; None where that is not known.
    """

    call_id: str
    ts_ns: int
    key_no: int
    tenant: str | None
    credential: str | None
    operation: str | None
    endpoint: str
    request_id: str | None
    key: str | None
    minor: int | None
    currency: str | None
    nano: int
    outcome: str
    retry: bool
    content: bytes | None
    fees_nano: int
    accounts: str | None
    place: str | None


_ROW = """
    coalesce(c.replay_of, c.call_id), c.ts_ns, c.key_no, k.tenant, k.credential, c.operation, c.endpoint,
    c.vendor_request_id, c.idempotency_key, c.amount_minor, c.currency, c.amount_nano, c.outcome,
    c.replay_of IS NOT NULL, t.content, coalesce(t.fees_nano, 0), t.accounts, l.path
"""
_BESIDE = """
    JOIN vault_key AS k ON k.no = c.key_no LEFT JOIN trace AS t ON t.call_id = c.call_id
    LEFT JOIN later AS l ON l.call_id = c.call_id
"""


async def lost(reader: aiosqlite.Connection, vendor: str, since_ns: int, most: int) -> list[Row]:
    """The newest writes that nobody knows the end of."""
    # The first condition in these very words is that of the index of open holds.
    sql = f"""
        SELECT {_ROW} FROM call AS c INDEXED BY call_open {_BESIDE}
        WHERE c.outcome IN ('pending', 'unknown') AND c.outcome = 'unknown' AND c.vendor = ? AND c.ts_ns >= ?
            AND c.method NOT IN ('GET', 'HEAD') AND c.replay_of IS NULL
        ORDER BY c.no DESC LIMIT ?
    """  # noqa: S608
    async with reader.execute(sql, (vendor, since_ns, most)) as cursor:
        return [Row(*row) async for row in cursor]


async def rivals(
    reader: aiosqlite.Connection, content: bytes, from_ns: int, to_ns: int, most: int
) -> list[Row]:
    """Calls that asked for this and may have been done, of which nobody knows what they made."""
    sql = f"""
        SELECT {_ROW} FROM trace AS s INDEXED BY trace_content
        JOIN call AS c ON c.call_id = s.call_id {_BESIDE}
        WHERE s.content = ? AND s.ts_ns >= ? AND s.ts_ns < ? AND l.path IS NULL
            AND c.outcome IN ('posted', 'unknown', 'pending') LIMIT ?
    """  # noqa: S608
    async with reader.execute(sql, (content, from_ns, to_ns, most)) as cursor:
        return [Row(*row) async for row in cursor]


async def places(reader: aiosqlite.Connection, content: bytes, from_ns: int, to_ns: int) -> set[str]:
    """Where the prices of what the others made are told."""
    sql = """
        SELECT l.path FROM trace AS s INDEXED BY trace_content JOIN later AS l ON l.call_id = s.call_id
        WHERE s.content = ? AND s.ts_ns >= ? AND s.ts_ns < ?
    """
    async with reader.execute(sql, (content, from_ns, to_ns)) as cursor:
        return {row[0] async for row in cursor}


async def attempts(readers: Readers, vendor: str, from_ns: int, to_ns: int, most: int) -> list[Row]:
    """The attempts of agents at a vendor between two times, retries too."""
    sql = f"""
        SELECT {_ROW} FROM call AS c INDEXED BY call_ts {_BESIDE}
        WHERE c.ts_ns >= ? AND c.ts_ns < ? AND c.vendor = ? AND c.method != 'GET' LIMIT ?
    """  # noqa: S608

    def read(connection: sqlite3.Connection) -> list[Row]:
        return [Row(*row) for row in connection.execute(sql, (from_ns, to_ns, vendor, most))]

    return await readers.run(read)
