"""Reading: what the daemon needs at start, and what the operator asks of the audit.

What must stay true: a tenant or label filter matches whole segments, never a part of one (law 8), so
labels are compared in Python by the same function that the rest of kbctl uses. Reads never hold a
transaction open across an await of somebody else's.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import aiosqlite

from kbctl import wire
from kbctld.core.clock import rfc3339
from kbctld.core.cost import Remembered
from kbctld.core.grant import label_matches
from kbctld.core.money import usd_from_nano

LIMIT_MAX = 1000

# Said in every query of open holds: these very words are the condition of the index that finds them.
_OPEN = "outcome IN ('pending', 'unknown')"


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which calls; every field narrows, None does not.

    Attributes:
        key_nos: keys to look at, already chosen by tenant and label.
        before_no: only calls older than this number: the cursor of a page.
    """

    key_nos: frozenset[int] | None = None
    vendor: str | None = None
    denied: bool = False
    unknown: bool = False
    from_ns: int | None = None
    to_ns: int | None = None
    before_no: int | None = None
    limit: int = 100


async def mark_pending_unknown(writer: aiosqlite.Connection) -> None:
    """After a restart a call that had not ended may have reached the vendor: nobody knows."""
    await writer.execute(f"UPDATE call SET outcome = 'unknown' WHERE {_OPEN} AND outcome = 'pending'")  # noqa: S608
    await writer.commit()


async def vault_keys(reader: aiosqlite.Connection) -> AsyncIterator[dict[str, Any]]:
    """Every vault key ever issued."""
    async with reader.execute("SELECT * FROM vault_key ORDER BY no") as cursor:
        names = [column[0] for column in cursor.description]
        async for row in cursor:
            yield dict(zip(names, row, strict=True))


async def spends(reader: aiosqlite.Connection) -> AsyncIterator[tuple[int, int, int]]:
    """``(key_no, day, posted_nano)`` of every key and day."""
    async with reader.execute("SELECT key_no, day, posted_nano FROM spend") as cursor:
        async for row in cursor:
            yield row[0], row[1], row[2]


async def calls_to_remember(reader: aiosqlite.Connection, since_ns: int) -> AsyncIterator[dict[str, Any]]:
    """Open holds of any age, and younger calls that may still be retried; oldest first."""
    columns = (
        "no, call_id, ts_ns, key_no, amount_nano, outcome, request_digest, replay_digest,"
        " status, reason, vendor_request_id, latency_us, upstream_us"
    )
    # Two halves, each by its own index, so that a start does not read the whole audit.
    sql = f"""
        SELECT {columns} FROM call INDEXED BY call_open
        WHERE {_OPEN} AND replay_of IS NULL AND policy_check_result = 'allowed'
        UNION ALL
        SELECT {columns} FROM call INDEXED BY call_ts
        WHERE ts_ns >= ? AND outcome = 'posted' AND replay_digest IS NOT NULL AND replay_of IS NULL
            AND policy_check_result = 'allowed'
        ORDER BY no
    """  # noqa: S608
    async with reader.execute(sql, (since_ns,)) as cursor:
        names = [column[0] for column in cursor.description]
        async for row in cursor:
            yield dict(zip(names, row, strict=True))


async def highest_ns(reader: aiosqlite.Connection) -> int:
    """The latest time that was ever journaled."""
    sql = """
        SELECT max(coalesce((SELECT max(ts_ns) FROM call), 0),
                   coalesce((SELECT max(max(created_ns, coalesce(revoked_ns, 0))) FROM vault_key), 0))
    """
    async with reader.execute(sql) as cursor:
        row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def credentials(reader: aiosqlite.Connection) -> list[tuple[str, str, int, int]]:
    """``(name, vendor, version, set_ns)``."""
    async with reader.execute("SELECT name, vendor, version, set_ns FROM credential ORDER BY name") as cursor:
        return [(row[0], row[1], row[2], row[3]) async for row in cursor]


async def last_versions(reader: aiosqlite.Connection) -> dict[str, int]:
    """How far the versions of credentials that were removed had come."""
    sql = "SELECT substr(key, 20), value FROM meta WHERE key LIKE 'credential_version:%'"
    async with reader.execute(sql) as cursor:
        return {row[0]: row[1] async for row in cursor}


async def remembered(
    reader: aiosqlite.Connection, vendor: str, credential: str, object_id: str
) -> Remembered | None:
    """What an object was counted at."""
    sql = "SELECT nano, minor, currency FROM object WHERE vendor = ? AND credential = ? AND object_id = ?"
    async with reader.execute(sql, (vendor, credential, object_id)) as cursor:
        row = await cursor.fetchone()
    return Remembered(row[0], row[1], row[2]) if row else None


async def key_nos(
    reader: aiosqlite.Connection, tenant: str | None, labels: list[str]
) -> dict[int, tuple[str, str]]:
    """``no -> (key_id, label)`` of the keys of a tenant whose label has all these segments."""
    sql = "SELECT no, key_id, label FROM vault_key"
    values: tuple[Any, ...] = ()
    if tenant is not None:
        sql += " WHERE tenant = ?"
        values = (tenant,)
    async with reader.execute(sql, values) as cursor:
        return {
            row[0]: (row[1], row[2])
            async for row in cursor
            if all(label_matches(row[2], label) for label in labels)
        }


async def unknown_totals(reader: aiosqlite.Connection) -> tuple[int, int]:
    """How many calls have an unknown outcome, and the nano-USD held for them."""
    sql = (
        "SELECT count(*), coalesce(sum(amount_nano), 0) FROM call"  # noqa: S608
        f" WHERE {_OPEN} AND outcome = 'unknown'"
    )
    async with reader.execute(sql) as cursor:
        row = await cursor.fetchone()
    return (row[0], row[1]) if row else (0, 0)


_CALL_COLUMNS = """
    c.no, c.ts_ns, c.call_id, k.key_id, k.tenant, c.vendor, c.operation, c.method, c.endpoint, c.amount_nano,
    c.requested_nano, c.currency, c.amount_minor, c.status, c.outcome, c.replay_of, c.policy_check_result,
    c.reason, c.vendor_request_id, c.idempotency_key, k.label, coalesce(c.metadata, k.metadata),
    c.usage_after_nano, c.latency_us, c.upstream_us, c.upstream, c.folded
"""


async def calls(reader: aiosqlite.Connection, wanted: CallFilter) -> tuple[list[wire.Call], int | None]:
    """One page of calls, newest first, and the cursor of the next page."""
    conditions, values = ["1"], list[Any]()
    if wanted.key_nos is not None:
        # A long list as a JSON array: the number of bound values is limited.
        conditions.append("c.key_no IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(sorted(wanted.key_nos)))
    if wanted.vendor is not None:
        conditions.append("c.vendor = ?")
        values.append(wanted.vendor)
    if wanted.denied:
        conditions.append("c.policy_check_result != 'allowed'")
    if wanted.unknown:
        conditions.append("c.outcome = 'unknown'")
    for bound, condition in (
        (wanted.from_ns, "c.ts_ns >= ?"),
        (wanted.to_ns, "c.ts_ns < ?"),
        (wanted.before_no, "c.no < ?"),
    ):
        if bound is not None:
            conditions.append(condition)
            values.append(bound)
    sql = (
        f"SELECT {_CALL_COLUMNS} FROM call AS c LEFT JOIN vault_key AS k ON k.no = c.key_no"  # noqa: S608
        f" WHERE {' AND '.join(conditions)} ORDER BY c.no DESC LIMIT ?"
    )
    async with reader.execute(sql, (*values, wanted.limit + 1)) as cursor:
        rows = [tuple(row) async for row in cursor]
    more = rows[wanted.limit - 1][0] if len(rows) > wanted.limit else None
    return [_call(row) for row in rows[: wanted.limit]], more


def _call(row: tuple[Any, ...]) -> wire.Call:
    return wire.Call(
        timestamp=rfc3339(row[1]),
        call_id=row[2],
        vault_key_id=row[3],
        parent_key_id=None,
        tenant=row[4],
        vendor=row[5],
        operation=row[6],
        method=row[7],
        endpoint=row[8],
        amount_usd=usd_from_nano(row[9]),
        requested_usd=_usd(row[10]),
        currency=row[11],
        amount_minor=row[12],
        status=row[13],
        outcome=row[14],
        replay_of=row[15],
        policy_check_result=row[16],
        reason=row[17],
        vendor_request_id=row[18],
        stripe_request_id=row[18] if row[5] == "stripe" else None,
        idempotency_key=row[19],
        agent_run_label=row[20],
        metadata=json.loads(row[21]) if row[21] else {},
        cap_usage_after_usd=_usd(row[22]),
        latency_ms=None if row[23] is None else row[23] / 1000,
        upstream_ms=None if row[24] is None else row[24] / 1000,
        upstream=row[25],
        folded=row[26],
    )


def _usd(nano: int | None) -> Decimal | None:
    return None if nano is None else usd_from_nano(nano)


async def secrets_backend(reader: aiosqlite.Connection) -> str | None:
    """Which place for secrets first use chose."""
    async with reader.execute("SELECT value FROM meta WHERE key = 'secrets_backend'") as cursor:
        row = await cursor.fetchone()
    return str(row[0]) if row else None
