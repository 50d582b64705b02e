"""Calls whose true price is yet to be told: on disk, so that a restart goes on asking."""

from dataclasses import dataclass

import aiosqlite

from kbctld.store.journal import Statement


@dataclass(frozen=True, slots=True)
class Awaited:
    """One of them.

    Attributes:
        credential: in whose account it was made.
        path: where the vendor tells its price.
        day: UTC day of its hold.
        nano: what was posted for it.
        fees_nano: what the price that is told leaves out, at most.
        due_ns: when it is asked for.
        tries: how often it was.
    """

    call_id: str
    key_no: int
    vendor: str
    credential: str
    operation: str
    path: str
    day: int
    nano: int
    fees_nano: int
    due_ns: int
    tries: int = 0


_COLUMNS = "call_id, key_no, vendor, credential, operation, path, day, nano, fees_nano, due_ns, tries"


async def next_due(reader: aiosqlite.Connection) -> Awaited | None:
    """The one that is due first."""
    sql = f"SELECT {_COLUMNS} FROM later WHERE ended_ns IS NULL ORDER BY due_ns LIMIT 1"  # noqa: S608
    async with reader.execute(sql) as cursor:
        row = await cursor.fetchone()
    return None if row is None else Awaited(*row)


def awaited(call: Awaited) -> Statement:
    """A price to ask for."""
    values = tuple(getattr(call, name) for name in _COLUMNS.split(", "))
    return f"INSERT INTO later ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values  # noqa: S608


def put_off(call_id: str, due_ns: int, tries: int) -> Statement:
    """Not told yet."""
    return "UPDATE later SET due_ns = ?, tries = ? WHERE call_id = ?", (due_ns, tries, call_id)


def ended(call_id: str, now_ns: int) -> Statement:
    """Told, or given up."""
    return "UPDATE later SET ended_ns = ? WHERE call_id = ?", (now_ns, call_id)
