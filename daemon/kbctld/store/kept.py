"""All that the database keeps of some keys, read in one trip to the reader's thread.

What must stay true: what is read of a key comes with all that stands above it, so that nothing has to be
asked again before the key can be used.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiosqlite

from kbctld.store import queries
from kbctld.store.database import in_one_go
from kbctld.store.queries import Row


@dataclass(slots=True)
class Kept:
    """What was found.

    Attributes:
        keys: rows by number, those of ancestors too.
        tenants: limits by tenant, where it has any.
        balances: ``(day, posted_nano, requests)`` of every day of a scope, by its name.
        calls: what a key's first use reads back of its calls, by its number.
    """

    keys: dict[int, Row] = field(default_factory=dict)
    tenants: dict[str, Row] = field(default_factory=dict)
    balances: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    calls: dict[int, list[Row]] = field(default_factory=dict)


async def kept_of(
    reader: aiosqlite.Connection,
    *,
    digests: Iterable[bytes] = (),
    numbers: Iterable[int] = (),
    known: Callable[[int], bool],
    calls_since_ns: int | None = None,
) -> Kept:
    """Read keys, by their digests or by their numbers.

    Args:
        reader: on whose thread.
        digests: of keys that are asked for.
        numbers: of keys that are asked for.
        known: whether a key is in memory, so that it and what is above it need not be read.
        calls_since_ns: how old a posted call may be to be read back, too; None for no calls at all.
    """
    shown, wanted = list(digests), [number for number in numbers if not known(number)]
    if not shown and not wanted:
        return Kept()

    def read(connection: sqlite3.Connection) -> Kept:
        kept = Kept()
        found = _of(connection, "SELECT * FROM vault_key WHERE no", wanted)
        for digest in shown:
            found += _rows(connection, "SELECT * FROM vault_key WHERE digest = ?", (digest,))
        while found:
            kept.keys.update((row["no"], row) for row in found)
            above = {row["parent_no"] for row in found} - kept.keys.keys() - {None}
            found = _of(connection, "SELECT * FROM vault_key WHERE no", [no for no in above if not known(no)])
        _read_tenants(connection, {row["tenant"] for row in kept.keys.values()} - {None}, kept)
        _read_balances(connection, [row["key_id"] for row in kept.keys.values()], kept)
        if calls_since_ns is not None:
            for number in kept.keys:
                values = queries.values_to_remember(number, calls_since_ns)
                kept.calls[number] = _rows(connection, queries.CALLS_TO_REMEMBER, values)
        return kept

    return await in_one_go(reader, read)


async def kept_of_tenant(reader: aiosqlite.Connection, name: str) -> Kept:
    """The limits and balance of a tenant alone."""

    def read(connection: sqlite3.Connection) -> Kept:
        kept = Kept()
        _read_tenants(connection, {name}, kept)
        return kept

    return await in_one_go(reader, read)


def _read_tenants(connection: sqlite3.Connection, names: set[str], kept: Kept) -> None:
    for row in _of(connection, "SELECT * FROM tenant WHERE name", names):
        kept.tenants[row["name"]] = row
    _read_balances(connection, [f"tenant:{name}" for name in names], kept)


def _read_balances(connection: sqlite3.Connection, scopes: Iterable[str], kept: Kept) -> None:
    for row in _of(connection, "SELECT * FROM balance WHERE scope", scopes):
        days = kept.balances.setdefault(row["scope"], [])
        days.append((row["day"], row["posted_nano"], row["requests"]))


def _of(connection: sqlite3.Connection, select: str, names: Iterable[Any]) -> list[Row]:
    """Rows whose name or number is one of these."""
    listed = list(names)
    if not listed:
        return []
    sql = f"{select} IN (SELECT value FROM json_each(?))"  # noqa: S608
    return _rows(connection, sql, (json.dumps(listed),))


def _rows(connection: sqlite3.Connection, sql: str, values: tuple[Any, ...] | Mapping[str, Any]) -> list[Row]:
    cursor = connection.execute(sql, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
