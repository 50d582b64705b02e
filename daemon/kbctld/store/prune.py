"""Taking old calls out of the audit, so that what stays can still be followed from end to end.

What must stay true:

- only whole UTC days go, and of them only calls that are over: one with an open hold stays, one that was
  settled after those days stays, and the newest call of all stays, so that numbers go on. Balances, keys,
  changes and what objects were counted at are in tables of their own and are not touched;
- a batch is one transaction: calls, all of their events, the ranges that these leave in the chain, and the
  event that commits to those ranges. Killed between two batches, what is there verifies;
- where a checkpoint was made a range ends, so that whoever kept that checkpoint can still compare it.
"""

import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass

from kbctld.core.ledger import NS_PER_DAY
from kbctld.store.chain import GAP, INSERT_EVENT, Kind, Tip, named, packed

CALLS_AT_ONCE = 400
PAGES_AT_ONCE = 256

_PRUNABLE = "no <= ? AND ts_ns < ? AND settled_no <= ? AND outcome NOT IN ('pending', 'unknown') AND no > ?"


@dataclass(frozen=True, slots=True)
class Plan:
    """What can go.

    Attributes:
        before_ns: midnight UTC; only what is older.
        last_call, last_event: nothing behind these is touched.
        calls: how many go.
        kept: how many as old stay.
        first_ns: the time of the oldest that goes.
    """

    before_ns: int
    last_call: int
    last_event: int
    calls: int
    kept: int
    first_ns: int | None


def plan(connection: sqlite3.Connection, before_ns: int) -> Plan:
    """Look what can go."""
    before_ns = before_ns // NS_PER_DAY * NS_PER_DAY
    # Rows are all but in the order of their times: the first of the later ones is among the earliest of them.
    later = connection.execute(
        "SELECT no, chained_no FROM call WHERE no = (SELECT min(no) FROM"
        " (SELECT no FROM call INDEXED BY call_ts WHERE ts_ns >= ? ORDER BY ts_ns LIMIT 10000))",
        (before_ns,),
    ).fetchone()
    if later is None:  # all is as old, and the newest stays
        later = connection.execute("SELECT no, chained_no FROM call ORDER BY no DESC LIMIT 1").fetchone()
    if later is None:
        return Plan(before_ns, 0, 0, 0, 0, None)
    last_call, last_event = later[0] - 1, later[1] - 1
    calls, first_ns = connection.execute(
        f"SELECT count(*), min(ts_ns) FROM call WHERE {_PRUNABLE}",  # noqa: S608
        (last_call, before_ns, last_event, 0),
    ).fetchone()
    (old,) = connection.execute("SELECT count(*) FROM call WHERE no <= ?", (last_call,)).fetchone()
    return Plan(before_ns, last_call, last_event, calls, old - calls, first_ns)


@dataclass(slots=True)
class Pruning:
    """One pruning, a batch at a time.

    Attributes:
        marks: numbers of events that checkpoints were made at.
        done: calls that are gone.
        after: behind which call the next batch begins.
    """

    plan: Plan
    marks: Collection[int]
    done: int = 0
    after: int = 0
    over: bool = False

    def batch(self, connection: sqlite3.Connection, tip: Tip) -> None:
        """Take away some hundred calls; inside the journal's transaction."""
        values = (self.plan.last_call, self.plan.before_ns, self.plan.last_event, self.after)
        rows = connection.execute(
            f"SELECT no, chained_no, settled_no FROM call WHERE {_PRUNABLE}"  # noqa: S608
            " ORDER BY no LIMIT ?",
            (*values, CALLS_AT_ONCE),
        ).fetchall()
        if not rows:
            self.over = True
            return
        calls = [row[0] for row in rows]
        attempts = {row[1]: row[0] for row in rows}
        links = _links(connection, {number for row in rows for number in row[1:]})
        tip.prunings += 1
        gaps = _ranges(links, attempts, self.marks, tip.prunings)
        connection.executemany(
            f"INSERT INTO chain_gap ({named(GAP)}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
            gaps,
        )
        connection.execute(
            "DELETE FROM trace WHERE call_id IN"
            " (SELECT call_id FROM call WHERE no IN (SELECT value FROM json_each(?)))",
            (json.dumps(calls),),
        )
        for table, numbers in (("call", calls), ("chain", list(links))):
            connection.execute(
                f"DELETE FROM {table} WHERE no IN (SELECT value FROM json_each(?))",  # noqa: S608
                (json.dumps(numbers),),
            )
        connection.execute(INSERT_EVENT, tip.add(Kind.PRUNE, tip.prunings, packed(gaps)))
        self.after = calls[-1]
        self.done += len(calls)


def _links(connection: sqlite3.Connection, wanted: set[int]) -> dict[int, bytes]:
    """The links of these events, and of the outcomes that they took the place of."""
    links: dict[int, bytes] = {}
    while wanted:
        found = connection.execute(
            "SELECT no, link, prior FROM chain WHERE no IN (SELECT value FROM json_each(?))",
            (json.dumps(sorted(wanted)),),
        ).fetchall()
        links.update((row[0], row[1]) for row in found)
        wanted = {row[2] for row in found} - links.keys() - {None}
    return links


def _ranges(
    links: dict[int, bytes], attempts: dict[int, int], marks: Collection[int], prune_no: int
) -> list[tuple[int, int, bytes, int | None, int | None, int]]:
    """The events as ranges without gaps, in order, as ``chain_gap`` has them."""
    ranges: list[tuple[int, int, bytes, int | None, int | None, int]] = []
    first, calls = 0, list[int]()
    for number in sorted(links):
        first = first or number
        if number in attempts:
            calls.append(attempts[number])
        if number + 1 not in links or number in marks:
            low, high = (calls[0], calls[-1]) if calls else (None, None)
            ranges.append((first, number, links[number], low, high, prune_no))
            first, calls = 0, []
    return ranges


def shrink(connection: sqlite3.Connection, _tip: Tip) -> None:
    """Give some of the free pages back to the file system."""
    connection.execute(f"PRAGMA incremental_vacuum({PAGES_AT_ONCE})").fetchall()


def free_pages(connection: sqlite3.Connection) -> int:
    """Pages that can be given back; 0 where the database was made by a kbctl that could not."""
    (mode,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    (count,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(count) if mode == 2 else 0
