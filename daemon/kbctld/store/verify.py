"""Walking the chain of the audit: does every row still say what it said when it was recorded.

What must stay true:

- the first row that does not is named, with what is wrong with it;
- a walk reads in pages, each in a transaction of its own, and lets other threads run between rows: calls
  under way neither wait for it nor does the log grow because of it;
- whatever is in the file, bytes that are no text or pages that are no pages, ends in a finding and never
  in an error.

A walk is used by one thread at a time.
"""

import json
import sqlite3
import struct
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kbctl.checkpoint import Checkpoint
from kbctld.store import chain
from kbctld.store.chain import CALL_ENDING, CALL_FIXED, CHANGE, GAP, KEY, Kind, named

EVENTS_AT_ONCE = 4000
_BREATH = 512  # events that are looked at before another thread may run: two milliseconds
_FIXED, _COLUMNS = len(CALL_FIXED), len(CALL_FIXED) + len(CALL_ENDING)
_BEGINNING = chain.beginning


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and where it begins.

    Attributes:
        what: edited, missing, inserted, out_of_order, cut, replaced or unreadable.
        sentence: for people.
        call_id: of the call, where it is one and its row can be read.
        row: ``call 17``, ``change 3``; empty where it is not about one row.
        event: where in the chain.
    """

    what: str
    sentence: str
    call_id: str | None = None
    row: str = ""
    event: int | None = None


class _Broken(Exception):  # noqa: N818 - an outcome, not a defect
    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.sentence)
        self.finding = finding


@dataclass(slots=True)
class Walk:
    """One walk.

    Args:
        path: of the database.
        since: where to begin: what was before is taken to be as this says. None for the beginning.
        against: checkpoints that the chain must agree with, each under its number of events.

    Attributes:
        event, link: how far it has come.
        events, calls: how many were looked at.
        pruned: events that were passed over, because they were pruned.
        passed: checkpoints that could not be compared, because they lie within what was pruned.
        finding: what is wrong; None while nothing is.
    """

    path: Path
    since: Checkpoint | None = None
    against: Mapping[int, Checkpoint] = field(default_factory=dict)
    event: int = 0
    link: bytes = b""
    last: int = 0
    events: int = 0
    calls: int = 0
    pruned: int = 0
    passed: list[Checkpoint] = field(default_factory=list)
    finding: Finding | None = None
    database_id: str = ""
    call_no: int = 0
    change_no: int = 0
    key_no: int = 0
    _keys: int = 0
    _gaps: int = 0
    _awaited: dict[int, int] = field(default_factory=dict)
    """Events that must settle a call, which its row names: ``event -> call``."""
    _connection: sqlite3.Connection | None = None
    _left: dict[int, Checkpoint] = field(default_factory=dict)

    def step(self) -> bool:
        """Look at one page; False when the walk has ended, well or with a finding."""
        try:
            return self._step()
        except _Broken as broken:
            self.finding = broken.finding
        except sqlite3.Error as error:
            self.finding = self._unreadable(error)
        except (struct.error, TypeError, ValueError, OverflowError):
            self.finding = self._misshapen()
        self.close()
        return False

    def run(self) -> Finding | None:
        """The whole walk."""
        while self.step():
            pass
        return self.finding

    def close(self) -> None:
        """Let go of the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- pages ----------------------------------------------------------------------------------

    def _step(self) -> bool:
        if self._connection is None:
            self._connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA query_only = ON")
            self._connection.execute("BEGIN")
            try:
                self._begin(self._connection)
            finally:
                self._connection.execute("ROLLBACK")
        connection = self._connection
        connection.execute("BEGIN")
        try:
            page = connection.execute(_PAGE, (self.event,)).fetchall()
            self._page(connection, page)
            if len(page) < EVENTS_AT_ONCE:
                self._finish(connection)
                self.close()
                return False
        finally:
            if self._connection is not None:
                connection.execute("ROLLBACK")
        return True

    def _begin(self, connection: sqlite3.Connection) -> None:
        tip = chain.tip_of(connection)
        self.database_id, self.last = tip.database_id, tip.no
        self._left = dict(self.against)
        since = self.since
        for checkpoint in (*self._left.values(), *([since] if since else [])):
            if checkpoint.database != tip.database_id:
                raise _Broken(
                    Finding(
                        "replaced",
                        f"this is another database than the one of the checkpoint of {checkpoint.when}",
                    )
                )
        if since is None:
            self.link = chain.genesis(tip.database_id)
            return
        if since.events > tip.no:
            raise _Broken(_cut(since, tip.no, tip.calls))
        found = connection.execute("SELECT link FROM chain WHERE no = ?", (since.events,)).fetchone()
        if found is None:
            found = connection.execute(
                "SELECT link FROM chain_gap WHERE first <= :no AND last = :no ORDER BY first DESC LIMIT 1",
                {"no": since.events},
            ).fetchone()
        if found is None and since.events:
            raise _Broken(
                Finding("missing", f"event {since.events}, which the checkpoint is of, is not there any more")
            )
        if found is not None and found[0] != since.link:
            raise _Broken(_disagrees(since, None, None))
        self.event, self.link, self.call_no = since.events, since.link, since.calls
        of_kind = "SELECT ref FROM chain WHERE no <= ? AND kind = ? ORDER BY no DESC LIMIT 1"
        for kind in (Kind.CHANGE, Kind.KEY):
            row = connection.execute(of_kind, (self.event, kind)).fetchone()
            if kind is Kind.CHANGE:
                self.change_no = row[0] if row else 0
            else:
                self.key_no = row[0] if row else 0

    def _page(self, connection: sqlite3.Connection, page: list[tuple[Any, ...]]) -> None:
        calls = self._read(connection, _CALLS, [r[2] for r in page if r[1] in (1, 2, 3)])
        changes = self._read(connection, _CHANGES, [r[2] for r in page if r[1] == Kind.CHANGE])
        keys = self._read(connection, _KEYS, [r[2] for r in page if r[1] == Kind.KEY])
        # Looked up once: a million times is long.
        link, encode, left, awaited = chain.link, chain.packed, self._left, self._awaited
        for turn, (no, kind, ref, stored, prior, was) in enumerate(page):
            if turn % _BREATH == 0:
                time.sleep(0)
            if no != self.event + 1:
                self._skip(connection, no)
            if prior == 0 or (kind != Kind.OUTCOME and (prior or (was is not None and kind != Kind.WHOLE))):
                raise ValueError("an event of its kind has no such value")
            if no in awaited:
                owner = awaited.pop(no)
                if kind != Kind.OUTCOME or owner != ref:
                    raise _Broken(self._of_call(connection, owner, no, "edited"))
            if kind == Kind.ATTEMPT or kind == Kind.WHOLE:
                row = calls.get(ref)
                if row is None or row[_COLUMNS] != no or ref != self.call_no + 1:
                    raise _Broken(self._displaced(connection, row, no, ref))
                body = encode(row[:_FIXED])
                ending, settled = row[_FIXED:_COLUMNS], row[_COLUMNS + 1]
                if kind == Kind.WHOLE:
                    if settled == no and was is None:
                        body += encode(ending)
                    elif was is not None and settled is not None and settled != no:
                        body += was
                    else:
                        raise _Broken(self._of_call(connection, ref, no, "edited"))
                elif settled is None and ending != _BEGINNING(row[:_FIXED]):
                    raise _Broken(self._of_call(connection, ref, no, "edited"))
                self.call_no = ref
                self.calls += 1
                if settled is not None and settled != no:
                    self._await(connection, settled, ref, no)
            elif kind == Kind.OUTCOME:
                found = calls.get(ref)
                if found is None:
                    raise _Broken(self._gone(connection, "call", ref, no))
                settled = found[_COLUMNS + 1]
                if settled == no and was is None:
                    body = encode(found[_FIXED:_COLUMNS])
                elif was is not None and settled is not None:
                    body = was
                    self._await(connection, settled, ref, no)
                else:
                    raise _Broken(self._of_call(connection, ref, no, "edited"))
            elif kind == Kind.CHANGE:
                found = changes.get(ref)
                if found is None:
                    raise _Broken(self._gone(connection, "change", ref, no))
                if ref != self.change_no + 1:
                    raise _Broken(_row("change", ref, no, "out_of_order"))
                body, self.change_no = encode(found), ref
            elif kind == Kind.KEY:
                found = keys.get(ref)
                if found is None:
                    raise _Broken(self._gone(connection, "key", ref, no))
                if ref <= self.key_no:
                    raise _Broken(_row("key", ref, no, "out_of_order"))
                body, self.key_no = encode(found), ref
                self._keys += 1
            elif kind == Kind.PRUNE:
                gaps = connection.execute(_GAPS, (ref,)).fetchall()
                body = encode(gaps)
                self._gaps += len(gaps)
            else:
                raise _Broken(_row("event", no, no, "edited"))
            self.link = link(self.link, no, kind, ref, prior, body)
            if self.link != stored:
                if kind <= Kind.WHOLE:
                    raise _Broken(self._of_call(connection, ref, no, "edited"))
                what = {Kind.CHANGE: "change", Kind.KEY: "key"}.get(kind, "pruning")
                raise _Broken(_row(what, ref, no, "edited"))
            self.event = no
            self.events += 1
            if left and no in left:
                self._compare(connection, left.pop(no))

    def _displaced(
        self, connection: sqlite3.Connection, row: tuple[Any, ...] | None, no: int, ref: int
    ) -> Finding:
        """Why a call does not stand where its first event is."""
        expected = self.call_no + 1
        if ref > expected:
            return self._gone(connection, "call", expected, no)
        if ref < expected or row is not None:
            return self._of_call(connection, ref, no, "out_of_order")
        return self._gone(connection, "call", ref, no)

    def _await(self, connection: sqlite3.Connection, settled: int, ref: int, no: int) -> None:
        """A call's row names the event that settles it; two rows can't name the same one."""
        other = self._awaited.setdefault(settled, ref)
        if settled > no and other == ref:
            return
        owner = connection.execute("SELECT ref FROM chain WHERE no = ?", (settled,)).fetchone()
        wrong = other if owner == (ref,) and settled > no else ref
        raise _Broken(self._of_call(connection, wrong, no, "edited"))

    def _skip(self, connection: sqlite3.Connection, no: int) -> None:
        """Go on behind what was pruned."""
        while self.event + 1 != no:
            first = self.event + 1
            gap = connection.execute(_GAP, (first,)).fetchone()
            if gap is None or not first <= gap[0] < no:
                raise _Broken(self._missing(connection, first, no - 1))
            last, link, first_call, last_call = gap
            if first_call is not None:
                if first_call != self.call_no + 1:
                    raise _Broken(self._gone(connection, "call", self.call_no + 1, first))
                extra = connection.execute(
                    "SELECT no FROM call WHERE no BETWEEN ? AND ? LIMIT 1", (first_call, last_call)
                ).fetchone()
                if extra is not None:
                    raise _Broken(self._of_call(connection, extra[0], first, "inserted"))
                self.call_no = last_call
            self.pruned += last - first + 1
            self.event, self.link = last, link
            for at in [at for at in self._left if first <= at <= last]:
                checkpoint = self._left.pop(at)
                if at == last:
                    self._compare(connection, checkpoint)
                else:
                    self.passed.append(checkpoint)

    def _compare(self, connection: sqlite3.Connection, checkpoint: Checkpoint) -> None:
        if checkpoint.link != self.link:
            raise _Broken(_disagrees(checkpoint, self.call_no, self._call_id(connection, self.call_no)))

    def _finish(self, connection: sqlite3.Connection) -> None:
        """What must be true behind the last event; in the transaction that saw that it is the last."""
        for table, kind, last in (("call", "call", self.call_no), ("change", "change", self.change_no)):
            extra = connection.execute(
                f"SELECT no FROM {table} WHERE no > ? OR no < 1 ORDER BY no LIMIT 1",  # noqa: S608
                (last,),
            ).fetchone()
            if extra is not None:
                if kind == "call":
                    raise _Broken(self._of_call(connection, extra[0], None, "inserted"))
                raise _Broken(_row(kind, extra[0], None, "inserted"))
        extra = connection.execute(
            "SELECT no FROM vault_key WHERE no > ? OR no < 1 ORDER BY no LIMIT 1", (self.key_no,)
        ).fetchone()
        if extra is None and self.since is None:
            (count,) = connection.execute("SELECT count(*) FROM vault_key").fetchone()
            if count != self._keys:
                extra = connection.execute(
                    "SELECT no FROM vault_key WHERE no NOT IN"
                    " (SELECT ref FROM chain WHERE kind = ?) ORDER BY no LIMIT 1",
                    (Kind.KEY,),
                ).fetchone()
        if extra is not None:
            raise _Broken(_row("key", extra[0], None, "inserted"))
        if self.since is None:
            (count,) = connection.execute("SELECT count(*) FROM chain_gap").fetchone()
            if count != self._gaps:
                raise _Broken(
                    Finding("edited", "the list of what was pruned has ranges that no pruning recorded")
                )
        for ref in self._awaited.values():
            raise _Broken(self._of_call(connection, ref, None, "edited"))
        for checkpoint in self._left.values():
            if checkpoint.events > self.event:
                raise _Broken(_cut(checkpoint, self.event, self.call_no))
            if self.since is not None:
                continue  # before where this walk began
            self.passed.append(checkpoint)

    # --- reading --------------------------------------------------------------------------------

    def _read(
        self, connection: sqlite3.Connection, sql: str, refs: Iterable[int]
    ) -> dict[int, tuple[Any, ...]]:
        wanted = sorted(set(refs))
        if not wanted:
            return {}
        low, high = wanted[0], wanted[-1]
        try:
            if high - low < 2 * len(wanted):
                found = connection.execute(f"{sql} BETWEEN ? AND ?", (low, high)).fetchall()
            else:
                listed = "IN (SELECT value FROM json_each(?))"
                found = connection.execute(f"{sql} {listed}", (json.dumps(wanted),)).fetchall()
        except sqlite3.Error:
            for number in wanted:
                try:
                    connection.execute(f"{sql} = ?", (number,)).fetchall()
                except sqlite3.Error as error:
                    raise _Broken(self._unreadable_row(connection, sql, number, error)) from None
            raise
        return {row[0]: row for row in found}

    def _unreadable_row(
        self, connection: sqlite3.Connection, sql: str, number: int, error: sqlite3.Error
    ) -> Finding:
        kind = "call" if sql is _CALLS else "change" if sql is _CHANGES else "key"
        text = "is no text any more" if "decode" in str(error) else "can't be read: its page is damaged"
        call_id = self._call_id(connection, number) if kind == "call" else None
        return Finding(
            "edited",
            f"{_named(kind, number, call_id)} was edited: something of it {text}",
            call_id,
            f"{kind} {number}",
        )

    def _unreadable(self, error: sqlite3.Error) -> Finding:
        if "decode" in str(error):
            return Finding("edited", f"event {self.event + 1} or one soon after it is no text any more")
        return Finding(
            "unreadable",
            f"the database can't be read behind call {self.call_no}, event {self.event}: {error}",
            row=f"call {self.call_no + 1}",
            event=self.event + 1,
        )

    def _misshapen(self) -> Finding:
        """An event of values that no event has: a text for a number, a number below zero."""
        no, kind, ref = self.event + 1, None, None
        try:
            if self._connection is not None:
                sql = "SELECT no, kind, ref FROM chain WHERE no > ? ORDER BY no LIMIT 1"
                no, kind, ref = self._connection.execute(sql, (self.event,)).fetchone()
                if kind in (1, 2, 3) and isinstance(ref, int):
                    return self._of_call(self._connection, ref, no, "edited")
        except (sqlite3.Error, TypeError):
            pass
        return Finding("edited", _sentence("event", no, None, "edited"), None, f"event {no}", no)

    # --- words ----------------------------------------------------------------------------------

    def _call_id(self, connection: sqlite3.Connection, number: int) -> str | None:
        try:
            found = connection.execute("SELECT call_id FROM call WHERE no = ?", (number,)).fetchone()
        except sqlite3.Error:
            return None
        return str(found[0]) if found else None

    def _of_call(self, connection: sqlite3.Connection, ref: int, no: int | None, what: str) -> Finding:
        call_id = self._call_id(connection, ref)
        return Finding(what, _sentence("call", ref, call_id, what), call_id, f"call {ref}", no)

    def _gone(self, connection: sqlite3.Connection, kind: str, ref: int, no: int) -> Finding:
        """A row that its event tells of, and that is not there, or whose event is not."""
        if kind == "call" and self._call_id(connection, ref) is not None:
            return self._of_call(connection, ref, no, "out_of_order")
        return Finding("missing", _sentence(kind, ref, None, "missing"), None, f"{kind} {ref}", no)

    def _missing(self, connection: sqlite3.Connection, first: int, last: int) -> Finding:
        events = f"event {first}" if first == last else f"events {first} to {last}"
        sql = (
            "SELECT no, call_id FROM call"
            " WHERE chained_no BETWEEN :first AND :last OR settled_no BETWEEN :first AND :last"
        )
        try:
            found = connection.execute(
                f"{sql} ORDER BY no LIMIT 1", {"first": first, "last": last}
            ).fetchone()
        except sqlite3.Error:
            found = None
        if found is not None:
            about = f"; call {found[1]} (number {found[0]}) says that it is in there"
            return Finding(
                "missing", f"{events} of the chain are missing{about}", found[1], f"call {found[0]}", first
            )
        row = f"call {self.call_no + 1}"
        return Finding(
            "missing", f"{events} of the chain are missing, behind call {self.call_no}", None, row, first
        )


def _row(kind: str, ref: int, no: int | None, what: str) -> Finding:
    return Finding(what, _sentence(kind, ref, None, what), None, f"{kind} {ref}", no)


def _named(kind: str, ref: int, call_id: str | None) -> str:
    return f"call {call_id} (number {ref})" if call_id else f"{kind} number {ref}"


def _sentence(kind: str, ref: int, call_id: str | None, what: str) -> str:
    row = _named(kind, ref, call_id)
    return {
        "edited": f"{row} was edited: it does not say any more what was recorded",
        "missing": f"{row} is missing",
        "inserted": f"{row} was inserted: nothing ever recorded it",
        "out_of_order": f"{row} is out of order: it was moved, or what was there before it was taken away",
    }[what]


def _cut(checkpoint: Checkpoint, events: int, calls: int) -> Finding:
    return Finding(
        "cut",
        f"the end was cut off: it ends at call {calls}, event {events}, and had come to call"
        f" {checkpoint.calls}, event {checkpoint.events}, at the checkpoint of {checkpoint.when}",
        row=f"call {calls + 1}",
        event=events + 1,
    )


def _disagrees(checkpoint: Checkpoint, call_no: int | None, call_id: str | None) -> Finding:
    row = f"call {checkpoint.calls if call_no is None else call_no}"
    return Finding(
        "replaced",
        f"the chain was made anew: up to {row}, event {checkpoint.events}, it agrees with itself, not with"
        f" the checkpoint of {checkpoint.when}",
        call_id,
        row,
        checkpoint.events,
    )


_PAGE = f"SELECT no, kind, ref, link, prior, was FROM chain WHERE no > ? ORDER BY no LIMIT {EVENTS_AT_ONCE}"  # noqa: S608
_CALLS = f"SELECT {named(CALL_FIXED + CALL_ENDING)}, chained_no, settled_no FROM call WHERE no"  # noqa: S608
_CHANGES = f"SELECT {named(CHANGE)} FROM change WHERE no"  # noqa: S608
_KEYS = f"SELECT {named(KEY)} FROM vault_key WHERE no"  # noqa: S608
_GAP = "SELECT last, link, first_call, last_call FROM chain_gap WHERE first = ?"
_GAPS = f"SELECT {named(GAP)} FROM chain_gap WHERE prune_no = ? ORDER BY first"  # noqa: S608


def link_at(path: Path, event: int) -> bytes | None:
    """The link of one event; None where it is not there."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        found = connection.execute("SELECT link FROM chain WHERE no = ?", (event,)).fetchone()
    return bytes(found[0]) if found else None
