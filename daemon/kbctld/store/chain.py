"""The audit as a chain of events: what is hashed, and the end of the chain that the writer adds to.

An event is the attempt of a call, an outcome of a call, both at once (a refusal), a change by an operator, a
new key, or a pruning. Its link is::

    SHA-256( link of the event before || no, kind, ref, prior: 8 + 1 + 8 + 8 bytes, big endian || the row )

and the row is MessagePack of the tuple of its columns: MessagePack tells a text from bytes and an integer
from a real, so no two rows have the same bytes. The first event stands on the link ``genesis``.

What must stay true:

- every column of ``call`` is either fixed when the call is recorded or said anew by each outcome, and stands
  in one of the two lists below; so is every column of ``change``, and what a key is, but not what it may;
- an event is written in the transaction of the row that it is about, and moves the end of the chain only
  when that is committed;
- nothing is ever hashed twice: an outcome that takes the place of another keeps what that one said in
  ``was``, so that the chain can be followed from end to end at any time.
"""

import hashlib
import json
import sqlite3
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import msgspec

CALL_FIXED: Final = (
    "no",
    "call_id",
    "ts_ns",
    "key_no",
    "vendor",
    "operation",
    "method",
    "endpoint",
    "requested_nano",
    "currency",
    "amount_minor",
    "replay_of",
    "idempotency_key",
    "request_digest",
    "replay_digest",
    "fingerprint",
    "duplicate_of",
    "metadata",
    "usage_after_nano",
    "upstream",
    "held_nano",
)
"""What a call's row says from the beginning and for ever."""

CALL_ENDING: Final = (
    "policy_check_result",
    "outcome",
    "amount_nano",
    "status",
    "reason",
    "vendor_request_id",
    "latency_us",
    "upstream_us",
    "folded",
)
"""What each outcome of a call says anew."""

CHANGE: Final = ("no", "ts_ns", "actor", "action", "subject", "details")
KEY: Final = (
    "no",
    "key_id",
    "digest",
    "ending",
    "label",
    "tenant",
    "metadata",
    "credential",
    "created_ns",
    "parent_no",
)
"""Who a key is: what calls are attributed by. What it may is told by the changes."""
GAP: Final = ("first", "last", "link", "first_call", "last_call", "prune_no")

_FIXED = len(CALL_FIXED)
_OUTCOME = CALL_ENDING.index("outcome")
_head = struct.Struct(">QBQQ").pack
_sha256 = hashlib.sha256


class Kind(IntEnum):
    """What an event is about."""

    ATTEMPT = 1
    OUTCOME = 2
    WHOLE = 3
    """An attempt that had ended when it was recorded."""
    CHANGE = 4
    KEY = 5
    PRUNE = 6


Event = tuple[int, int, int, bytes, int | None]
"""``(no, kind, ref, link, prior)``: a row of the table, before anything took its place."""

INSERT_EVENT: Final = "INSERT INTO chain (no, kind, ref, link, prior) VALUES (?, ?, ?, ?, ?)"


def genesis(database_id: str) -> bytes:
    """What the first event of a database stands on."""
    return _sha256(b"kbctl audit chain 1 " + database_id.encode()).digest()


def link(before: bytes, no: int, kind: int, ref: int, prior: int | None, row: bytes) -> bytes:
    """The link of one event."""
    return _sha256(before + _head(no, kind, ref, prior or 0) + row).digest()


packed = msgspec.msgpack.Encoder().encode
"""The bytes of a row, or of a part of one."""


def beginning(fixed: Sequence[Any]) -> tuple[Any, ...]:
    """How a call that has no outcome yet must read: let through, and all of its hold held."""
    return ("allowed", "pending", fixed[-1], None, None, None, None, None, 0)


@dataclass(slots=True)
class Tip:
    """The end of the chain: what the next event stands on.

    Attributes:
        no: number of the last event.
        link: its link.
        calls, changes, keys: the numbers of the last row of each that is in the chain.
        prunings: how many there were.
        database_id: of which database.
        begun: calls that it recorded and that have no outcome yet: what stands there need not be read.
    """

    no: int
    link: bytes
    calls: int
    changes: int
    keys: int
    prunings: int
    database_id: str
    begun: set[int] = field(default_factory=set)

    def copy(self) -> "Tip":
        """One that a transaction can move, and that is thrown away where it fails."""
        return Tip(
            self.no,
            self.link,
            self.calls,
            self.changes,
            self.keys,
            self.prunings,
            self.database_id,
            set(self.begun),
        )

    def add(self, kind: Kind, ref: int, row: bytes, prior: int | None = None) -> Event:
        """The event of one row; the end moves on to it."""
        self.no += 1
        self.link = link(self.link, self.no, kind, ref, prior, row)
        return self.no, kind, ref, self.link, prior

    def record(self, connection: sqlite3.Connection, calls: Sequence[tuple[Any, ...]]) -> None:
        """Insert calls with their events.

        Args:
            connection: in a transaction.
            calls: values of ``CALL_FIXED + CALL_ENDING``, in the order of their numbers.
        """
        rows, events = [], []
        for values in calls:
            fixed, ending = values[:_FIXED], values[_FIXED:]
            number = fixed[0]
            if ending == beginning(fixed):
                event = self.add(Kind.ATTEMPT, number, packed(fixed))
                rows.append((*values, event[0], None))
                self.begun.add(number)
            else:
                event = self.add(Kind.WHOLE, number, packed(fixed) + packed(ending))
                rows.append((*values, event[0], event[0]))
            events.append(event)
            self.calls = number
        connection.executemany(_INSERT_CALL, rows)
        connection.executemany(INSERT_EVENT, events)

    def settle(self, connection: sqlite3.Connection, endings: Iterable[tuple[Any, ...]]) -> None:
        """Say how calls ended, with their events; what says nothing new is passed over.

        Args:
            connection: in a transaction.
            endings: values of ``CALL_ENDING``, then the call's number.
        """
        said = {values[-1]: values[:-1] for values in endings}
        if not said:
            return
        # A first outcome is never what stood there, so nothing is read: 2 us of 22 a call, 13 for one alone.
        first = {number for number, ending in said.items() if ending[_OUTCOME] != "pending"} & self.begun
        self.begun -= first
        standing = {} if len(first) == len(said) else _standing(connection, said.keys() - first)
        overtaken, events, finished = [], [], []
        for number, ending in said.items():
            prior = None
            if number not in first:
                if number not in standing:
                    continue
                prior, before = standing[number]
                if before == ending:
                    continue
                if prior is not None:
                    overtaken.append((packed(before), prior))
                self.begun.discard(number)
            event = self.add(Kind.OUTCOME, number, packed(ending), prior)
            events.append(event)
            finished.append((*ending, event[0], number))
        if overtaken:
            connection.executemany(_OVERTAKEN, overtaken)
        connection.executemany(INSERT_EVENT, events)
        connection.executemany(_FINISH, finished)

    def correct(self, connection: sqlite3.Connection, amounts: Mapping[str, int]) -> None:
        """Put what posted calls really cost, by their ids, in place of what was posted, with their events."""
        at = CALL_ENDING.index("amount_nano")
        for call_id, nano in amounts.items():
            found = connection.execute(_POSTED, (call_id,)).fetchall()
            self.settle(connection, [(*row[:at], nano, *row[at + 1 :]) for row in found])

    def catch_up(self, connection: sqlite3.Connection) -> None:
        """Add the keys and changes that this transaction inserted."""
        events = []
        for row in connection.execute(_NEW_KEYS, (self.keys,)).fetchall():
            events.append(self.add(Kind.KEY, row[0], packed(row)))
            self.keys = row[0]
        for row in connection.execute(_NEW_CHANGES, (self.changes,)).fetchall():
            events.append(self.add(Kind.CHANGE, row[0], packed(row)))
            self.changes = row[0]
        connection.executemany(INSERT_EVENT, events)


def named(columns: Iterable[str]) -> str:
    """Columns as SQL lists them."""
    return ", ".join(columns)


def _standing(
    connection: sqlite3.Connection, numbers: Iterable[int]
) -> dict[int, tuple[int | None, tuple[Any, ...]]]:
    """``number -> (the event that settles it, how it ended)`` as the rows say it now."""
    found = connection.execute(_ENDINGS_OF, (json.dumps(list(numbers)),)).fetchall()
    return {row[0]: (row[1], row[2:]) for row in found}


def _marks(columns: Sequence[str], more: int = 0) -> str:
    return ", ".join("?" * (len(columns) + more))


_INSERT_CALL = (
    f"INSERT INTO call ({named(CALL_FIXED + CALL_ENDING)}, chained_no, settled_no)"  # noqa: S608
    f" VALUES ({_marks(CALL_FIXED + CALL_ENDING, 2)})"
)
_ENDINGS_OF = (
    f"SELECT no, settled_no, {named(CALL_ENDING)} FROM call"  # noqa: S608
    " WHERE no IN (SELECT value FROM json_each(?))"
)
_FINISH = f"UPDATE call SET {named(f'{name} = ?' for name in CALL_ENDING)}, settled_no = ? WHERE no = ?"  # noqa: S608
_POSTED = f"SELECT {named(CALL_ENDING)}, no FROM call WHERE call_id = ? AND outcome = 'posted'"  # noqa: S608
_OVERTAKEN = "UPDATE chain SET was = ? WHERE no = ?"
_NEW_KEYS = f"SELECT {named(KEY)} FROM vault_key WHERE no > ? ORDER BY no"  # noqa: S608
_NEW_CHANGES = f"SELECT {named(CHANGE)} FROM change WHERE no > ? ORDER BY no"  # noqa: S608


def tip_of(connection: sqlite3.Connection) -> Tip:
    """The end of the chain as the database has it."""

    def one(sql: str) -> Any:
        found = connection.execute(sql).fetchone()
        return None if found is None else found[0]

    database_id = one("SELECT value FROM meta WHERE key = 'database_id'")
    if not isinstance(database_id, str):
        raise sqlite3.DatabaseError("it has no id")
    last = connection.execute("SELECT no, link FROM chain ORDER BY no DESC LIMIT 1").fetchone()
    number, end = last or (0, genesis(database_id))
    return Tip(
        number,
        end,
        one("SELECT coalesce(max(no), 0) FROM call"),
        one("SELECT coalesce(max(no), 0) FROM change"),
        one("SELECT coalesce(max(no), 0) FROM vault_key"),
        one("SELECT coalesce(max(prune_no), 0) FROM chain_gap"),
        database_id,
    )


_ADOPTED_AT_ONCE = 5000


def adopt(connection: sqlite3.Connection) -> None:
    """Chain what a database held before it had a chain; part of the migration's own transaction."""
    tip = tip_of(connection)
    tip.calls = tip.changes = tip.keys = 0
    tip.catch_up(connection)
    # Who was under way then has its hold in the amount, as ever until it is settled.
    connection.execute("UPDATE call SET held_nano = amount_nano WHERE outcome IN ('pending', 'unknown')")
    columns = named(CALL_FIXED + CALL_ENDING)
    every = f"SELECT {columns} FROM call WHERE no > ? ORDER BY no LIMIT {_ADOPTED_AT_ONCE}"  # noqa: S608
    while rows := connection.execute(every, (tip.calls,)).fetchall():
        events, numbers = [], []
        for values in rows:
            fixed, ending = values[:_FIXED], values[_FIXED:]
            whole = ending != beginning(fixed)
            body = packed(fixed) + packed(ending) if whole else packed(fixed)
            event = tip.add(Kind.WHOLE if whole else Kind.ATTEMPT, fixed[0], body)
            events.append(event)
            numbers.append((event[0], event[0] if whole else None, fixed[0]))
            tip.calls = fixed[0]
        connection.executemany(INSERT_EVENT, events)
        connection.executemany("UPDATE call SET chained_no = ?, settled_no = ? WHERE no = ?", numbers)


def mark_pending_unknown(tip: Tip, connection: sqlite3.Connection) -> None:
    """After a restart a call that had not ended may have reached the vendor: nobody knows."""
    sql = (
        f"SELECT {named(CALL_ENDING)}, no FROM call INDEXED BY call_open"  # noqa: S608
        " WHERE outcome IN ('pending', 'unknown') AND outcome = 'pending'"
    )
    connection.execute("BEGIN IMMEDIATE")  # also where nothing is to be done: a locked database shows here
    at = CALL_ENDING.index("outcome")
    found = sorted(connection.execute(sql).fetchall(), key=lambda row: row[-1])
    tip.settle(connection, [(*row[:at], "unknown", *row[at + 1 :]) for row in found])
