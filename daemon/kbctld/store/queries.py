"""Reading: what the daemon needs at start, and what the operator asks of the audit.

What must stay true: a tenant or label filter matches whole segments, never a part of one (law 8): what is
compared are the segments that ``label_segments`` cut when the key was issued. Reads never hold a transaction
open across an await of somebody else's.
"""

import heapq
import json
import sqlite3
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import aiosqlite
import msgspec

from kbctl import wire
from kbctld.core.clock import Opened, rfc3339
from kbctld.core.cost import Remembered
from kbctld.core.grant import label_segments
from kbctld.core.ledger import NS_PER_DAY
from kbctld.core.money import NANO_MAX, usd_from_nano
from kbctld.store.changes import day_begins
from kbctld.store.database import in_one_go
from kbctld.store.readers import Readers

LIMIT_MAX = 1000

_REVOKE_S_MAX = 60.0
"""A revocation is not ended halfway, however many keys it looks for."""

# Said in every query of open holds: these very words are the condition of the index that finds them.
_OPEN = "outcome IN ('pending', 'unknown')"


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which calls; every field narrows, None does not.

    Attributes:
        key_no: only calls of this key.
        keys: only calls of keys like these.
        before_no: only calls older than this number: the cursor of a page.
        after_no: only calls newer than this number, likewise.
    """

    key_no: int | None = None
    keys: "KeyFilter | None" = None
    vendor: str | None = None
    denied: bool = False
    unknown: bool = False
    duplicates: bool = False
    from_ns: int | None = None
    to_ns: int | None = None
    before_no: int | None = None
    after_no: int | None = None
    limit: int = 100


# --- keys -------------------------------------------------------------------------------------------------

Row = dict[str, Any]


async def _rows(reader: aiosqlite.Connection, sql: str, values: Sequence[Any] = ()) -> list[Row]:
    def read(connection: sqlite3.Connection) -> list[Row]:
        cursor = connection.execute(sql, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    return await in_one_go(reader, read)


async def keys_named(reader: aiosqlite.Connection, beginning: str) -> list[int]:
    """Numbers of the keys whose id is this, or begins so; enough of them to tell that there are several."""
    # "~" sorts behind every letter and digit of an id.
    sql = "SELECT no, key_id FROM vault_key WHERE key_id >= ? AND key_id < ? ORDER BY key_id LIMIT 100"
    found = await _rows(reader, sql, (beginning, f"{beginning}~"))
    exact = [row["no"] for row in found if row["key_id"] == beginning]
    return exact or [row["no"] for row in found]


@dataclass(frozen=True, slots=True)
class KeyFilter:
    """Which keys; every field narrows, None does not.

    Attributes:
        labels: each a label, all of whose segments the key's label must have.
        metadata: names and the values that they must have.
        live: only keys that are neither revoked nor expired at ``now_ns``.
        running: only keys that are neither paused nor frozen.
        before_no: only keys older than this number: the cursor of a page.
    """

    tenant: str | None = None
    labels: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    policy: str | None = None
    parent_no: int | None = None
    live: bool = False
    running: bool = False
    revoked: bool = False
    now_ns: int = 0
    before_no: int | None = None
    limit: int = LIMIT_MAX


def _key_conditions(wanted: KeyFilter) -> tuple[str, list[Any]]:
    conditions, values = ["1"], list[Any]()
    for column, value in (
        ("tenant", wanted.tenant),
        ("policy", wanted.policy),
        ("parent_no", wanted.parent_no),
    ):
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(value)
    for label in wanted.labels:
        segments = label_segments(label)
        if not segments:
            conditions.append("0")
        for segment in segments:
            conditions.append("no IN (SELECT key_no FROM label_segment WHERE segment = ?)")
            values.append(segment)
    for name, value in wanted.metadata:
        conditions.append(
            "EXISTS (SELECT 1 FROM json_each(vault_key.metadata) AS m WHERE m.key = ? AND m.value = ?)"
        )
        values += [name, value]
    if wanted.live:
        conditions.append("revoked_ns IS NULL AND (expires_ns IS NULL OR expires_ns > ?)")
        values.append(wanted.now_ns)
    if wanted.running:
        conditions.append("paused IS NULL AND frozen IS NULL")
    if wanted.revoked:
        conditions.append("revoked_ns IS NOT NULL")
    if wanted.before_no is not None:
        conditions.append("no < ?")
        values.append(wanted.before_no)
    return " AND ".join(conditions), values


async def keys(reader: aiosqlite.Connection, wanted: KeyFilter) -> list[Row]:
    """A page of keys, newest first."""
    conditions, values = _key_conditions(wanted)
    sql = f"SELECT * FROM vault_key WHERE {conditions} ORDER BY no DESC LIMIT ?"  # noqa: S608
    return await _rows(reader, sql, (*values, wanted.limit))


DERIVED = 2**61
"""Added to the number of a derived key where its place in a list is meant."""


async def page_of_keys(readers: Readers, wanted: KeyFilter) -> list[int]:
    """The places of a page; asked apart, because some filters look at every key.

    Keys that operators issued come before derived ones, each newest first: an agent that derives keys must
    not push its own out of sight of who looks for it. A place is a cursor, and modulo ``DERIVED`` a number.
    """
    before = DERIVED * 2 if wanted.before_no is None else wanted.before_no
    conditions, values = _key_conditions(replace(wanted, before_no=None))

    def part(connection: sqlite3.Connection, which: str, below: int, limit: int) -> list[int]:
        sql = (
            f"SELECT no FROM vault_key WHERE parent_no {which} AND no < ? AND {conditions}"  # noqa: S608
            " ORDER BY no DESC LIMIT ?"
        )
        return [row[0] for row in connection.execute(sql, (below, *values, limit))]

    def read(connection: sqlite3.Connection) -> list[int]:
        issued = wanted.before_no is None or before < DERIVED
        places = part(connection, "IS NULL", min(before, DERIVED), wanted.limit) if issued else []
        below = DERIVED if issued else before - DERIVED
        rest = part(connection, "IS NOT NULL", below, wanted.limit - len(places))
        return [*places, *(DERIVED + number for number in rest)]

    return await readers.run(read)


async def count_keys(reader: aiosqlite.Connection, wanted: KeyFilter) -> int:
    """How many there are."""
    conditions, values = _key_conditions(wanted)
    found = await _rows(reader, f"SELECT count(*) AS n FROM vault_key WHERE {conditions}", values)  # noqa: S608
    return int(found[0]["n"])


async def count_running(readers: Readers, now_ns: int) -> int:
    """How many keys may be used now; asked apart, because it looks at each."""
    conditions, values = _key_conditions(KeyFilter(live=True, running=True, now_ns=now_ns))
    sql = f"SELECT count(*) FROM vault_key WHERE {conditions}"  # noqa: S608

    def read(connection: sqlite3.Connection) -> int:
        return int(connection.execute(sql, values).fetchone()[0])

    return await readers.run(read)


async def key_numbers(reader: aiosqlite.Connection, wanted: KeyFilter) -> list[int]:
    """The numbers of all that match."""
    conditions, values = _key_conditions(wanted)
    found = await _rows(reader, f"SELECT no FROM vault_key WHERE {conditions}", values)  # noqa: S608
    return [row["no"] for row in found]


_FAMILY = """
    WITH RECURSIVE member (no) AS (
        {seeds}
        UNION
        SELECT child.no FROM vault_key AS child JOIN member ON child.parent_no = member.no
    )
    SELECT member.no FROM member JOIN vault_key AS k ON k.no = member.no
    WHERE k.revoked_ns IS NULL AND (k.expires_ns IS NULL OR k.expires_ns > ?)
    ORDER BY member.no
"""  # in order, so that neighbours are written together


async def family(reader: aiosqlite.Connection, numbers: Iterable[int], now_ns: int) -> list[int]:
    """The numbers of these keys, and of all derived from any of them, that are not revoked or expired."""
    sql = _FAMILY.format(seeds="SELECT value FROM json_each(?)")
    return [row["no"] for row in await _rows(reader, sql, (json.dumps(list(numbers)), now_ns))]


async def families(readers: Readers, wanted: KeyFilter, now_ns: int) -> "array[int]":
    """The same of all keys that match; there may be very many, so it is asked apart."""
    conditions, values = _key_conditions(wanted)
    members = _FAMILY.format(seeds=f"SELECT no FROM vault_key WHERE {conditions}")  # noqa: S608
    # In few rows: at each that is fetched this thread has to wait until the event loop lets it in.
    sql = f"SELECT json_group_array(no) FROM ({members}) GROUP BY no >> 16"  # noqa: S608

    def read(connection: sqlite3.Connection) -> "array[int]":
        found = array("q")
        for (numbers,) in connection.execute(sql, (*values, now_ns)):
            found.extend(msgspec.json.decode(numbers, type=list[int]))
        return found

    return await readers.run(read, limit_s=_REVOKE_S_MAX, waits=False)


async def last_key_no(reader: aiosqlite.Connection) -> int:
    """The highest number of any key."""
    found = await _rows(reader, "SELECT coalesce(max(no), 0) AS no FROM vault_key")
    return int(found[0]["no"])


async def keys_with_open_holds(reader: aiosqlite.Connection) -> list[int]:
    """The numbers of the keys that have one."""
    sql = f"SELECT DISTINCT key_no FROM call INDEXED BY call_open WHERE {_OPEN} AND key_no IS NOT NULL"  # noqa: S608
    return [row["key_no"] for row in await _rows(reader, sql)]


_SLACK_NS = 3_600_000_000_000


_REMEMBERED = """
    no, call_id, ts_ns, key_no, amount_nano, outcome, request_digest, replay_digest, fingerprint,
    idempotency_key, status, reason, vendor_request_id, latency_us, upstream_us
"""
# Two halves, each by its own index. The second goes down the key's calls from the newest and ends at the
# first that is far too old, however long the key has lived: rows are all but in the order of their times.
# Whether the row's own attempt was let go in the end is not asked: refused at its last look, it still has the
# money of a retry that had left.
CALLS_TO_REMEMBER = f"""
    SELECT {_REMEMBERED} FROM call INDEXED BY call_open
    WHERE {_OPEN} AND key_no = :key_no AND replay_of IS NULL
    UNION ALL
    SELECT {_REMEMBERED} FROM call INDEXED BY call_key
    WHERE key_no = :key_no AND no > coalesce(
        (SELECT no FROM call INDEXED BY call_key
         WHERE key_no = :key_no AND ts_ns < :past_ns ORDER BY no DESC LIMIT 1),
        0
    ) AND ts_ns >= :since_ns AND outcome = 'posted' AND replay_digest IS NOT NULL AND replay_of IS NULL
    ORDER BY no
"""  # noqa: S608


def values_to_remember(key_no: int, since_ns: int) -> dict[str, int]:
    return {"key_no": key_no, "since_ns": since_ns, "past_ns": since_ns - _SLACK_NS}


async def done_since(reader: aiosqlite.Connection, since_ns: int, most: int) -> list[Row]:
    """The newest calls that were done and that asking for twice is suspicious of, oldest first."""
    sql = """
        SELECT * FROM (
            SELECT call_id, ts_ns, fingerprint, idempotency_key FROM call INDEXED BY call_fingerprint
            WHERE fingerprint IS NOT NULL AND ts_ns >= ? AND outcome = 'posted' ORDER BY ts_ns DESC LIMIT ?
        ) ORDER BY ts_ns
    """
    return await _rows(reader, sql, (since_ns, most))


async def highest_ns(reader: aiosqlite.Connection) -> int:
    """The latest time that was ever journaled."""
    sql = """
        SELECT max(coalesce((SELECT max(ts_ns) FROM call), 0),
                   coalesce((SELECT ts_ns FROM change ORDER BY no DESC LIMIT 1), 0),
                   coalesce((SELECT created_ns FROM vault_key ORDER BY no DESC LIMIT 1), 0)) AS ns
    """
    return int((await _rows(reader, sql))[0]["ns"])


async def day_opened(reader: aiosqlite.Connection) -> Opened | None:
    """The day that calls counted in last; None where none was ever kept."""
    rows = await _rows(reader, "SELECT value FROM meta WHERE key = 'day'")
    if not rows:
        return None
    day, boot_ns, boot = str(rows[0]["value"]).split(" ")
    return Opened(int(day), boot, int(boot_ns))


async def keep_day_opened(writer: aiosqlite.Connection, opened: Opened) -> None:
    """At start, before anything is journaled; later the journal does it."""
    await writer.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('day', '')")
    await writer.execute(*day_begins(opened))
    await writer.commit()


# --- policies, tenants, changes ---------------------------------------------------------------------------


async def policies(reader: aiosqlite.Connection) -> dict[str, str]:
    """``name -> limits`` as JSON."""
    return {row["name"]: row["limits"] for row in await _rows(reader, "SELECT * FROM policy ORDER BY name")}


async def tenant_names(reader: aiosqlite.Connection) -> list[str]:
    """Every tenant that has limits or a key."""
    # From one to the next by the index: a tenant may have very many keys.
    sql = """
        WITH RECURSIVE holder (name) AS (
            SELECT min(tenant) FROM vault_key WHERE tenant IS NOT NULL
            UNION ALL
            SELECT (SELECT min(tenant) FROM vault_key WHERE tenant > holder.name)
            FROM holder WHERE holder.name IS NOT NULL
        )
        SELECT name FROM tenant UNION SELECT name FROM holder WHERE name IS NOT NULL ORDER BY 1
    """
    return [row["name"] for row in await _rows(reader, sql)]


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Which changes; every field narrows, None does not."""

    subject: str | None = None
    from_ns: int | None = None
    to_ns: int | None = None
    before_no: int | None = None
    limit: int = 100


async def changes(reader: aiosqlite.Connection, wanted: ChangeFilter) -> tuple[list[wire.Change], int | None]:
    """One page of what was changed, newest first, and the cursor of the next page."""
    conditions, values = ["1"], list[Any]()
    for bound, condition in (
        (wanted.subject, "subject = ?"),
        (wanted.from_ns, "ts_ns >= ?"),
        (wanted.to_ns, "ts_ns < ?"),
        (wanted.before_no, "no < ?"),
    ):
        if bound is not None:
            conditions.append(condition)
            values.append(bound)
    sql = f"SELECT * FROM change WHERE {' AND '.join(conditions)} ORDER BY no DESC LIMIT ?"  # noqa: S608
    rows = await _rows(reader, sql, (*values, wanted.limit + 1))
    more = rows[wanted.limit - 1]["no"] if len(rows) > wanted.limit else None
    found = [
        wire.Change(
            timestamp=rfc3339(row["ts_ns"]),
            actor=row["actor"],
            action=row["action"],
            subject=row["subject"],
            details=json.loads(row["details"]),
        )
        for row in rows[: wanted.limit]
    ]
    return found, more


# --- credentials ------------------------------------------------------------------------------------------


async def credentials(reader: aiosqlite.Connection) -> list[tuple[str, str, int, int, dict[str, str]]]:
    """``(name, vendor, version, set_ns, fields)``."""
    found = await _rows(reader, "SELECT * FROM credential ORDER BY name")
    return [
        (row["name"], row["vendor"], row["version"], row["set_ns"], json.loads(row["fields"]))
        for row in found
    ]


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


async def unknown_totals(reader: aiosqlite.Connection) -> tuple[int, int]:
    """How many calls have an unknown outcome, and the nano-USD held for them."""
    sql = (
        "SELECT count(*), coalesce(sum(amount_nano), 0) FROM call"  # noqa: S608
        f" WHERE {_OPEN} AND outcome = 'unknown'"
    )
    async with reader.execute(sql) as cursor:
        row = await cursor.fetchone()
    return (row[0], row[1]) if row else (0, 0)


async def tokens(reader: aiosqlite.Connection) -> list[tuple[Any, ...]]:
    """``(token_id, digest, scope, note, created_ns, expires_ns, revoked_ns)``, oldest first."""
    sql = "SELECT token_id, digest, scope, note, created_ns, expires_ns, revoked_ns FROM token ORDER BY no"
    async with reader.execute(sql) as cursor:
        return [tuple(row) async for row in cursor]


_CALL_COLUMNS = """
    c.no, c.ts_ns, c.call_id, k.key_id, k.tenant, c.vendor, c.operation, c.method, c.endpoint, c.amount_nano,
    c.requested_nano, c.currency, c.amount_minor, c.status, c.outcome, c.replay_of, c.policy_check_result,
    c.reason, c.vendor_request_id, c.idempotency_key, k.label, coalesce(c.metadata, k.metadata),
    c.usage_after_nano, c.latency_us, c.upstream_us, c.upstream, c.folded,
    (SELECT p.key_id FROM vault_key AS p WHERE p.no = k.parent_no), c.duplicate_of
"""


async def calls_named(reader: aiosqlite.Connection, beginning: str) -> list[wire.Call]:
    """The calls whose id is this, or begins so; two are enough to tell that there are several."""
    # "~" sorts behind every letter and digit of an id.
    sql = (
        f"SELECT {_CALL_COLUMNS} FROM call AS c LEFT JOIN vault_key AS k ON k.no = c.key_no"  # noqa: S608
        " WHERE c.call_id >= ? AND c.call_id < ? ORDER BY c.call_id LIMIT 2"
    )
    async with reader.execute(sql, (beginning, f"{beginning}~")) as cursor:
        found = [_call(tuple(row)) async for row in cursor]
    exact = [call for call in found if call.call_id == beginning]
    return exact or found


async def calls(readers: Readers, wanted: CallFilter) -> tuple[list[wire.Call], int | None]:
    """One page of calls, newest first, and the cursor of the next page.

    A page may have fewer rows than asked for, or none, and yet be followed by another: where what is wanted
    is rare among very many rows, looking for it is handed on to the next page after a while.
    """

    def read(connection: sqlite3.Connection) -> tuple[list[wire.Call], int | None]:
        numbers, more = _CallSearch(connection, wanted).run()
        sql = (
            f"SELECT {_CALL_COLUMNS} FROM json_each(?) AS j CROSS JOIN call AS c ON c.no = j.value"  # noqa: S608
            " LEFT JOIN vault_key AS k ON k.no = c.key_no ORDER BY c.no DESC"
        )
        return [_call(row) for row in connection.execute(sql, (json.dumps(numbers),))], more

    return await readers.run(read)


_PIECE = 20_000
_FEW_KEYS = 5_000
_SEARCH_S = 1.5


class _CallSearch:
    """Finds the numbers of a page of calls, in pieces: no piece holds a read transaction for long.

    By an index where one is made for what is asked; where there are few keys, from each key's newest call;
    else back from the newest of all, a piece at a time.
    """

    def __init__(self, connection: sqlite3.Connection, wanted: CallFilter) -> None:
        self._connection = connection
        self._want = wanted.limit + 1
        self._conditions, self._values = list[str](), list[Any]()
        self._wanted = wanted
        self._keys: tuple[str, list[Any]] | None = None
        if wanted.keys is not None:
            self._keys = _key_conditions(wanted.keys)
        for bound, condition in (
            (wanted.vendor, "c.vendor = ?"),
            (wanted.from_ns, "c.ts_ns >= ?"),
            (wanted.to_ns, "c.ts_ns < ?"),
        ):
            if bound is not None:
                self._conditions.append(condition)
                self._values.append(bound)
        if wanted.denied:
            self._conditions.append("c.policy_check_result != 'allowed'")
        if wanted.unknown:
            self._conditions.append(f"c.{_OPEN} AND c.outcome = 'unknown' AND c.replay_of IS NULL")
        if wanted.duplicates:
            self._conditions.append("c.duplicate_of IS NOT NULL")

    def run(self) -> tuple[list[int], int | None]:
        """The numbers, newest first, and the cursor of the next page."""
        wanted, until = self._wanted, time.monotonic() + _SEARCH_S
        low, high = self._bounds()
        found: list[int] = []
        if wanted.unknown or wanted.key_no is not None:
            index = "call_open" if wanted.unknown else "call_key"
            found = self._among(f"INDEXED BY {index}", low, high, self._want)
            high = low
        elif wanted.denied or wanted.duplicates:
            index = "call_denied" if wanted.denied else "call_duplicate"
            found = self._among(f"INDEXED BY {index}", low, high, self._want)
            high = low
        elif self._keys is not None and (few := self._few_keys()) is not None:
            found = self._by_key(few, low, high, self._want)
            high = low
        pieces = 0
        while high > low and len(found) < self._want and (not pieces or time.monotonic() < until):
            begin = max(low, high - _PIECE)
            found += self._among("NOT INDEXED", begin, high, self._want - len(found))
            high, pieces = begin, pieces + 1
        if len(found) >= self._want:
            return found[: wanted.limit], found[wanted.limit - 1]
        return found, high if high > low else None

    def _bounds(self) -> tuple[int, int]:
        """The numbers to look at, from the first up to, not including, the second."""
        wanted, ask = self._wanted, self._connection.execute
        sql = "SELECT no FROM call INDEXED BY call_ts WHERE ts_ns >= ? ORDER BY ts_ns LIMIT 1"
        high = ask("SELECT coalesce(max(no), 0) + 1 FROM call").fetchone()[0]
        low = 1
        # Rows are all but in the order of their times.
        if wanted.from_ns is not None:
            first = ask(sql, (max(wanted.from_ns - _SLACK_NS, 0),)).fetchone()
            low = high if first is None else first[0]
        if wanted.to_ns is not None:
            beyond = ask(sql, (min(wanted.to_ns + _SLACK_NS, NANO_MAX),)).fetchone()
            high = high if beyond is None else beyond[0]
        if wanted.before_no is not None:
            high = min(high, wanted.before_no)
        return low, high

    def _among(self, index: str, low: int, high: int, limit: int) -> list[int]:
        conditions = ["c.no >= ?", "c.no < ?", *self._conditions]
        values = [low, high, *self._values]
        if self._wanted.key_no is not None:
            conditions.append("c.key_no = ?")
            values.append(self._wanted.key_no)
        if self._keys is not None:
            which, with_values = self._keys
            of = f"SELECT 1 FROM vault_key WHERE no = c.key_no AND {which}"  # noqa: S608
            conditions.append(f"EXISTS ({of})")
            values += with_values
        sql = (
            f"SELECT c.no FROM call AS c {index} WHERE {' AND '.join(conditions)}"  # noqa: S608
            " ORDER BY c.no DESC LIMIT ?"
        )
        return [row[0] for row in self._connection.execute(sql, (*values, limit))]

    def _few_keys(self) -> list[int] | None:
        """The keys that are meant, unless they are many."""
        assert self._keys is not None  # noqa: S101 - asked first
        which, values = self._keys
        sql = f"SELECT no FROM vault_key WHERE {which} LIMIT ?"  # noqa: S608
        found = [row[0] for row in self._connection.execute(sql, (*values, _FEW_KEYS + 1))]
        return found if len(found) <= _FEW_KEYS else None

    def _by_key(self, keys: list[int], low: int, high: int, limit: int) -> list[int]:
        conditions = " AND ".join(["c.key_no = ?", "c.no >= ?", "c.no < ?", *self._conditions])
        sql = (
            f"SELECT c.no FROM call AS c INDEXED BY call_key WHERE {conditions}"  # noqa: S608
            " ORDER BY c.no DESC LIMIT ?"
        )
        newest: list[int] = []  # a heap of as many as are wanted, the oldest of them first
        for key in keys:
            # A key's calls that are older than all that is wanted so far need not be looked at.
            oldest = newest[0] if len(newest) == limit else low
            for (no,) in self._connection.execute(sql, (key, oldest, high, *self._values, limit)):
                if len(newest) < limit:
                    heapq.heappush(newest, no)
                else:
                    heapq.heappushpop(newest, no)
        return sorted(newest, reverse=True)


def _call_conditions(wanted: CallFilter) -> tuple[str, list[Any]]:
    """What narrows, in one statement: for who reads all of it in any case."""
    conditions, values = ["1"], list[Any]()
    if wanted.denied:
        conditions.append("c.policy_check_result != 'allowed'")
    if wanted.unknown:
        conditions.append(f"c.{_OPEN} AND c.outcome = 'unknown' AND c.replay_of IS NULL")
    if wanted.duplicates:
        conditions.append("c.duplicate_of IS NOT NULL")
    for bound, condition in (
        (wanted.key_no, "c.key_no = ?"),
        (wanted.vendor, "c.vendor = ?"),
        (wanted.from_ns, "c.ts_ns >= ?"),
        (wanted.to_ns, "c.ts_ns < ?"),
        (wanted.before_no, "c.no < ?"),
        (wanted.after_no, "c.no > ?"),
    ):
        if bound is not None:
            conditions.append(condition)
            values.append(bound)
    if wanted.keys is not None:
        which, with_values = _key_conditions(wanted.keys)
        conditions.append(f"EXISTS (SELECT 1 FROM vault_key WHERE no = c.key_no AND {which})")  # noqa: S608
        values += with_values
    return " AND ".join(conditions), values


def exported(
    connection: sqlite3.Connection, wanted: CallFilter
) -> list[tuple[int, wire.Call, int | None, bytes | None]]:
    """One page of calls, oldest first: number, call, and the event that says how it ended, with its link."""
    conditions, values = _call_conditions(wanted)
    sql = (
        f"SELECT {_CALL_COLUMNS}, e.no, e.link FROM call AS c"  # noqa: S608
        " LEFT JOIN vault_key AS k ON k.no = c.key_no"
        " LEFT JOIN chain AS e ON e.no = coalesce(c.settled_no, c.chained_no)"
        f" WHERE {conditions} ORDER BY c.no LIMIT ?"
    )
    rows = connection.execute(sql, (*values, wanted.limit)).fetchall()
    return [(row[0], _call(row), row[-2], row[-1]) for row in rows]


def _call(row: tuple[Any, ...]) -> wire.Call:
    return wire.Call(
        timestamp=rfc3339(row[1]),
        call_id=row[2],
        vault_key_id=row[3],
        parent_key_id=row[27],
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
        duplicate_of=row[28],
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


_OF_METADATA = "coalesce(coalesce(c.metadata, k.metadata) ->> '{}', '')"
_SPEND_BY = {
    "agent": _OF_METADATA.format("agent_id"),
    "day": "strftime('%Y-%m-%d', c.ts_ns / 1000000000, 'unixepoch')",
    "key": "coalesce(k.key_id, '')",
    "label": "coalesce(k.label, '')",
    "run": _OF_METADATA.format("agent_run_id"),
    "tenant": "coalesce(k.tenant, '')",
    "vendor": "coalesce(c.vendor, '')",
}
SPEND_BY = tuple(_SPEND_BY)
SPEND_LINES_MAX = 10_000


_CAPS_BY = {
    "key": "SELECT key_id, daily_cap_nano, total_cap_nano FROM vault_key WHERE key_id IN",
    "tenant": "SELECT name, daily_cap_nano, total_cap_nano FROM tenant WHERE name IN",
}


def _caps(
    connection: sqlite3.Connection, by: str, names: Iterable[str], *, one_day: bool
) -> Mapping[str, int | None]:
    """The daily caps where a report is of one UTC day, else the total ones."""
    if by not in _CAPS_BY:
        return {}
    sql = f"{_CAPS_BY[by]} (SELECT value FROM json_each(?))"  # noqa: S608
    rows = connection.execute(sql, (json.dumps(list(names)),))
    return {row[0]: row[1 if one_day else 2] for row in rows}


_SPEND_PIECE = 100_000
_SPEND_S_MAX = 60.0


async def spend(readers: Readers, by: str, from_ns: int, to_ns: int) -> list[wire.Spend]:
    """Who spent what between two times: the largest first, days in order; the empty name is nobody's.

    Summed up in pieces, so that a report of all there is holds no read transaction for long.

    Args:
        by: one of ``SPEND_BY``.
    """
    sql = f"""
        SELECT {_SPEND_BY[by]} AS name, sum(1 + c.folded),
            sum(CASE WHEN c.policy_check_result != 'allowed' THEN 1 + c.folded ELSE 0 END),
            sum(CASE WHEN c.outcome = 'posted' THEN c.amount_nano ELSE 0 END),
            sum(CASE WHEN c.outcome IN ('pending', 'unknown') THEN c.amount_nano ELSE 0 END)
        FROM call AS c INDEXED BY call_ts LEFT JOIN vault_key AS k ON k.no = c.key_no
        WHERE c.ts_ns >= ? AND c.ts_ns < ? GROUP BY name
    """  # noqa: S608
    ahead = "SELECT ts_ns FROM call INDEXED BY call_ts WHERE ts_ns > ? ORDER BY ts_ns LIMIT 1 OFFSET ?"

    def read(connection: sqlite3.Connection) -> list[wire.Spend]:
        sums: dict[str, tuple[int, int, int, int]] = {}
        begin = from_ns
        while begin < to_ns:
            last = connection.execute(ahead, (begin, _SPEND_PIECE)).fetchone()
            end = to_ns if last is None else min(last[0], to_ns)
            for name, *figures in connection.execute(sql, (begin, end)):
                before = sums.get(str(name), (0, 0, 0, 0))
                calls, refused, posted, held = (a + b for a, b in zip(before, figures, strict=True))
                sums[str(name)] = calls, refused, posted, held
            begin = end
        if by == "day":
            ordered = sorted(sums.items())
        else:
            ordered = sorted(sums.items(), key=lambda line: (-line[1][2] - line[1][3], line[0]))
        ordered = ordered[:SPEND_LINES_MAX]
        one_day = from_ns // NS_PER_DAY == (to_ns - 1) // NS_PER_DAY
        caps = _caps(connection, by, (name for name, _ in ordered), one_day=one_day)
        return [
            wire.Spend(
                **{by: name},
                calls=calls,
                refused=refused,
                spent_usd=usd_from_nano(posted),
                held_usd=usd_from_nano(held),
                cap_usd=_usd(caps.get(name)),
            )
            for name, (calls, refused, posted, held) in ordered
        ]

    return await readers.run(read, limit_s=_SPEND_S_MAX)


def _usd(nano: int | None) -> Decimal | None:
    return None if nano is None else usd_from_nano(nano)


async def secrets_backend(reader: aiosqlite.Connection) -> str | None:
    """Which place for secrets first use chose."""
    async with reader.execute("SELECT value FROM meta WHERE key = 'secrets_backend'") as cursor:
        row = await cursor.fetchone()
    return str(row[0]) if row else None
