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
        key: the agent's own idempotency key.
        minor: as it was priced.
        nano: what counts for it.
        retry: whether it went out under the hold of an earlier one.
    """

    call_id: str
    ts_ns: int
    key_no: int
    tenant: str | None
    credential: str | None
    operation: str | None
    request_id: str | None
    key: str | None
    minor: int | None
    currency: str | None
    nano: int
    outcome: str
    retry: bool


_ROW = """
    coalesce(c.replay_of, c.call_id), c.ts_ns, c.key_no, k.tenant, k.credential, c.operation,
    c.vendor_request_id, c.idempotency_key, c.amount_minor, c.currency, c.amount_nano, c.outcome,
    c.replay_of IS NOT NULL
"""


async def lost(reader: aiosqlite.Connection, vendor: str, since_ns: int, most: int) -> list[Row]:
    """The newest calls that nobody knows the end of and that the vendor could know by their key."""
    # The first condition in these very words is that of the index of open holds.
    sql = f"""
        SELECT {_ROW} FROM call AS c INDEXED BY call_open JOIN vault_key AS k ON k.no = c.key_no
        WHERE c.outcome IN ('pending', 'unknown') AND c.outcome = 'unknown' AND c.vendor = ? AND c.ts_ns >= ?
            AND c.idempotency_key IS NOT NULL AND c.replay_of IS NULL
        ORDER BY c.no DESC LIMIT ?
    """  # noqa: S608
    async with reader.execute(sql, (vendor, since_ns, most)) as cursor:
        return [Row(*row) async for row in cursor]


async def attempts(readers: Readers, vendor: str, from_ns: int, to_ns: int, most: int) -> list[Row]:
    """The attempts of agents at a vendor between two times, retries too."""
    sql = f"""
        SELECT {_ROW} FROM call AS c INDEXED BY call_ts JOIN vault_key AS k ON k.no = c.key_no
        WHERE c.ts_ns >= ? AND c.ts_ns < ? AND c.vendor = ? AND c.method != 'GET' LIMIT ?
    """  # noqa: S608

    def read(connection: sqlite3.Connection) -> list[Row]:
        return [Row(*row) for row in connection.execute(sql, (from_ns, to_ns, vendor, most))]

    return await readers.run(read)
