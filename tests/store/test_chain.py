"""A2, A3: whatever is altered in the audit is found, and the first row of it is named."""

import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kbctl.checkpoint import Checkpoint
from kbctld.store import chain
from kbctld.store.chain import CALL_ENDING, CALL_FIXED, CHANGE
from kbctld.store.chain import KEY as KEY_COLUMNS
from kbctld.store.verify import Finding, Walk
from tests.store.audit import (
    altered,
    checkpoint_of,
    columns_of,
    copy_of,
    end_of,
    lived,
    one,
    verdict,
)
from tests.store.support import NOW, call, database_of, journal_in, locked, opened, outcome_of, rows
from tests.support.loop import run

MUTATIONS = 1000
BLOBS = ("request_digest", "replay_digest", "fingerprint")


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of 300 calls; nobody changes it in place."""
    folder = tmp_path_factory.mktemp("audit")
    folder.chmod(0o700)

    async def main() -> None:
        async with journal_in(folder) as journal:
            await lived(journal, 300)

    run(main())
    return copy_of(folder, folder / "still")


@pytest.fixture
def theirs(audit: Path, tmp_path: Path) -> Path:
    """A copy that may be altered."""
    return copy_of(audit, tmp_path / "theirs")


# --- what is chained ----------------------------------------------------------------------------------


def test_every_column_is_chained_or_is_known_not_to_be(audit: Path) -> None:
    """A new column must be put into one of the lists, or into this one with a reason."""
    assert set(columns_of(audit, "call")) == {*CALL_FIXED, *CALL_ENDING, "chained_no", "settled_no"}
    assert set(columns_of(audit, "change")) == set(CHANGE)
    may = set(columns_of(audit, "vault_key")) - set(KEY_COLUMNS)
    # What a key may is told by the changes; who it is stands in the chain.
    assert may == {
        "vendors", "daily_cap_nano", "total_cap_nano", "call_cap_nano", "allow", "deny", "rules",
        "daily_requests", "rate", "loop", "on_loop", "stamp", "expires_ns", "revoked_ns", "frozen",
        "paused", "policy", "said", "override", "duplicates",
    }  # fmt: skip


def test_a_life_is_whole(audit: Path) -> None:
    """Refusals have one event, calls one for the attempt and one for each outcome; nothing is open-ended."""
    walk = Walk(database_of(audit))
    assert walk.run() is None
    assert walk.calls == 300
    counted = rows(audit, "SELECT kind, count(*) AS n FROM chain GROUP BY kind")
    kinds = {row["kind"]: row["n"] for row in counted}
    assert kinds[chain.Kind.WHOLE] == 43
    assert kinds[chain.Kind.ATTEMPT] == 257
    assert kinds[chain.Kind.OUTCOME] > 230
    assert kinds[chain.Kind.CHANGE] == kinds[chain.Kind.KEY] == 3
    assert one(audit, "SELECT count(*) FROM chain WHERE was IS NOT NULL") > 50  # ends that were said twice
    assert one(audit, "SELECT count(*) FROM call WHERE outcome = 'pending'") > 10


def test_an_end_that_says_nothing_new_is_no_event(folder: Path) -> None:
    """Settling says it, and answering says it again."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            row = call(1)
            await journal.append(row)
            row.outcome = "posted"
            for _ in range(3):
                journal.finish(row)
                await journal.barrier()

    run(main())
    assert one(folder, "SELECT count(*) FROM chain") == 2
    assert verdict(folder) is None


def test_folded_refusals_stay_in_the_chain(folder: Path) -> None:
    """The row that counts a flood says something new each time; what it said before can be followed."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            for number in range(1003):
                await journal.refuse(
                    call(number, policy_check_result="rate_limited", outcome="refused", key_no=None)
                )
            for fold in list(journal._folds.values()):
                journal._flush(fold)
            await journal.barrier()
            for number in range(1003, 1010):
                await journal.refuse(
                    call(number, policy_check_result="rate_limited", outcome="refused", key_no=None)
                )

    run(main())
    assert one(folder, "SELECT max(folded) FROM call") == 9
    assert one(folder, "SELECT count(*) FROM chain WHERE kind = 2") == 2
    assert verdict(folder) is None
    with altered(folder) as connection:
        connection.execute("UPDATE call SET folded = 7 WHERE folded = 9")
    found = verdict(folder)
    assert found is not None
    assert (found.what, found.row) == ("edited", "call 1001")


def test_a_batch_that_was_rolled_back_is_not_in_the_chain(folder: Path) -> None:
    """The end of the chain moves with the commit and not before."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await journal.append(call(0))
            with locked(folder):
                assert await outcome_of(journal.append(call(1))) is not None
            await journal.append(call(2))

    run(main())
    assert verdict(folder) is None
    assert [row["call_id"] for row in rows(folder)] == ["call_0", "call_2"]


def test_a_number_given_anew_does_not_pass_for_the_call_that_had_it_first(folder: Path) -> None:
    """What is known of a call without a look at its row ends with the transaction that recorded it."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            with locked(folder):
                assert await outcome_of(journal.append(call(0))) is not None
            refused = call(1, policy_check_result="rate_limited", outcome="refused", key_no=None)
            await journal.refuse(refused)
            for refused.folded in (1, 2):
                journal.finish(refused)
                await journal.barrier()

    run(main())
    assert one(folder, "SELECT count(*) FROM chain WHERE kind = 2 AND prior IS NOT NULL") == 2
    assert verdict(folder) is None


def test_only_a_first_outcome_is_written_without_a_look_at_the_row(folder: Path) -> None:
    """And what says nothing new is no outcome, though nobody ended the call before."""
    looks: list[str] = []

    async def main() -> None:
        async with journal_in(folder) as journal:
            await journal.database.writer.set_trace_callback(
                lambda sql: looks.append(sql) if "json_each" in sql else None
            )
            row = call(0)
            await journal.append(row)
            for outcome, looked in (("pending", 1), ("unknown", 1), ("unknown", 2), ("posted", 3)):
                row.outcome = outcome
                journal.finish(row)
                await journal.barrier()
                assert len(looks) == looked
            await journal.database.writer.set_trace_callback(None)  # type: ignore[arg-type]

    run(main())
    assert one(folder, "SELECT count(*) FROM chain WHERE kind = 2") == 2
    assert one(folder, "SELECT count(*) FROM chain WHERE prior IS NOT NULL AND was IS NULL") == 1
    assert verdict(folder) is None


def test_what_was_under_way_at_a_crash_becomes_unknown_in_the_chain(audit: Path, tmp_path: Path) -> None:
    """And the next start goes on where the chain ends."""
    from kbctld.store.anchor import Anchor, Height
    from kbctld.store.database import mark_pending_unknown
    from tests.store.support import anchor_of

    folder = copy_of(audit, tmp_path / "again")
    database_of(folder).chmod(0o600)
    anchor = Anchor(anchor_of(folder))
    anchor.reset(Height(0, 0))
    anchor.close()

    async def main() -> None:
        async with opened(folder) as database:
            await mark_pending_unknown(database)
        async with journal_in(folder) as journal:
            await lived(journal, 40, start=300)

    run(main())
    assert one(folder, "SELECT count(*) FROM call WHERE outcome = 'unknown' AND no <= 300") > 10
    assert verdict(folder) is None


# --- what an intruder does -------------------------------------------------------------------------------


def flipped(value: object, dice: random.Random) -> object:
    """A value with one bit of it turned over; NULL becomes something."""
    if value is None:
        return dice.choice([0, 1, 7])
    if isinstance(value, int):
        return value ^ (1 << dice.randrange(31))
    if isinstance(value, bytes):
        at, raw = dice.randrange(len(value)), bytearray(value)
        raw[at] ^= 1 << dice.randrange(8)
        return bytes(raw)
    assert isinstance(value, str)
    at = dice.randrange(len(value)) if value else 0
    other = chr(ord(value[at]) ^ (1 << dice.randrange(5))) if value else "x"
    return value[:at] + other + value[at + 1 :]


Mutation = Callable[[sqlite3.Connection, random.Random], str | None]
"""Alters something; gives the row that must be named, or None where any will do."""


def flip_in(table: str, columns: tuple[str, ...], kind: str) -> Mutation:
    def mutate(connection: sqlite3.Connection, dice: random.Random) -> str:
        column = dice.choice([name for name in columns if name != "no"])
        numbers = [row[0] for row in connection.execute(f"SELECT no FROM {table} ORDER BY no")]
        number = dice.choice(numbers)
        (before,) = connection.execute(f"SELECT {column} FROM {table} WHERE no = ?", (number,)).fetchone()
        while True:
            after = flipped(before, dice)
            try:
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE no = ?", (after, number))
            except sqlite3.IntegrityError:  # a column that must be of its type, or its own
                if before is not None:
                    continue
                other = "x'78'" if column in BLOBS else "'x'"
                connection.execute(f"UPDATE {table} SET {column} = {other} WHERE no = ?", (number,))
            return f"{kind} {number}"

    return mutate


def flip_link(connection: sqlite3.Connection, dice: random.Random) -> None:
    column = dice.choice(["link", "ref", "kind", "prior", "was"])
    (last,) = connection.execute("SELECT max(no) FROM chain").fetchone()
    number = dice.randint(1, last)
    (before,) = connection.execute(f"SELECT {column} FROM chain WHERE no = ?", (number,)).fetchone()
    after = b"x" if before is None and column == "was" else flipped(before, dice)
    connection.execute(f"UPDATE chain SET {column} = ? WHERE no = ?", (after, number))


def delete_call(connection: sqlite3.Connection, dice: random.Random) -> str:
    number = dice.randint(1, 300)
    connection.execute("DELETE FROM call WHERE no = ?", (number,))
    return f"call {number}"


def delete_call_and_its_events(connection: sqlite3.Connection, dice: random.Random) -> None:
    number = dice.randint(1, 299)
    connection.execute("DELETE FROM call WHERE no = ?", (number,))
    connection.execute("DELETE FROM chain WHERE kind IN (1, 2, 3) AND ref = ?", (number,))


def delete_change(connection: sqlite3.Connection, dice: random.Random) -> str:
    number = dice.randint(1, 3)
    connection.execute("DELETE FROM change WHERE no = ?", (number,))
    return f"change {number}"


def delete_event(connection: sqlite3.Connection, dice: random.Random) -> None:
    (last,) = connection.execute("SELECT max(no) FROM chain").fetchone()
    connection.execute("DELETE FROM chain WHERE no = ?", (dice.randint(1, last - 1),))


def insert_call(connection: sqlite3.Connection, dice: random.Random) -> str:
    number = dice.choice([0, -5, 301, 400])
    columns = ", ".join([*CALL_FIXED[1:], *CALL_ENDING, "chained_no", "settled_no"])
    connection.execute(
        f"INSERT INTO call (no, {columns}) SELECT ?, {columns} FROM call WHERE no = ?",
        (number, dice.randint(1, 300)),
    )
    return f"call {number}"


def insert_change(connection: sqlite3.Connection, dice: random.Random) -> str:
    connection.execute(
        "INSERT INTO change VALUES (4, ?, 'uid 0', 'key.issue', 'vk_x', '{}')", (NOW + dice.randint(0, 9),)
    )
    return "change 4"


def swap_calls(connection: sqlite3.Connection, dice: random.Random) -> str:
    first, second = sorted(dice.sample(range(1, 301), 2))
    connection.execute("UPDATE call SET no = -1 WHERE no = ?", (first,))
    connection.execute("UPDATE call SET no = ? WHERE no = ?", (first, second))
    connection.execute("UPDATE call SET no = ? WHERE no = -1", (second,))
    return f"call {first}"


def swap_events(connection: sqlite3.Connection, dice: random.Random) -> None:
    (last,) = connection.execute("SELECT max(no) FROM chain").fetchone()
    first, second = dice.sample(range(1, last + 1), 2)
    connection.execute("UPDATE chain SET no = -1 WHERE no = ?", (first,))
    connection.execute("UPDATE chain SET no = ? WHERE no = ?", (first, second))
    connection.execute("UPDATE chain SET no = ? WHERE no = -1", (second,))


def settle_the_open(connection: sqlite3.Connection, dice: random.Random) -> str:
    """An open hold is made to look void, by the event of another call."""
    numbers = [row[0] for row in connection.execute("SELECT no FROM call WHERE outcome = 'pending'")]
    number = dice.choice(numbers)
    events = [row[0] for row in connection.execute("SELECT no FROM chain WHERE kind = 2")]
    connection.execute(
        "UPDATE call SET outcome = 'voided', amount_nano = 0, settled_no = ? WHERE no = ?",
        (dice.choice([*events, 10**9]), number),
    )
    return f"call {number}"


def forge_the_past(connection: sqlite3.Connection, dice: random.Random) -> str:
    """What a row said goes where overtaken outcomes are kept, and the row says something else."""
    listed = ", ".join(CALL_ENDING)
    rows_ = connection.execute(f"SELECT no, settled_no, {listed} FROM call WHERE settled_no > 0").fetchall()
    number, event, *ending = dice.choice(rows_)
    connection.execute("UPDATE chain SET was = ? WHERE no = ?", (chain.packed(tuple(ending)), event))
    connection.execute("UPDATE call SET amount_nano = 1 WHERE no = ?", (number,))
    return f"call {number}"


def pretend_pruned(connection: sqlite3.Connection, dice: random.Random) -> None:
    """Rows are taken away, and a range is left as pruning leaves it."""
    (link,) = connection.execute("SELECT link FROM chain WHERE no = 60").fetchone()
    calls = [
        row[0]
        for row in connection.execute("SELECT ref FROM chain WHERE no BETWEEN 41 AND 60 AND kind IN (1, 3)")
    ]
    connection.execute("DELETE FROM chain WHERE no BETWEEN 41 AND 60")
    connection.execute(f"DELETE FROM call WHERE no IN ({','.join(map(str, calls))})")
    low, high = (min(calls), max(calls)) if calls else (None, None)
    connection.execute("INSERT INTO chain_gap VALUES (41, 60, ?, ?, ?, 1)", (link, low, high))


MUTATE: dict[str, Mutation] = {
    "a bit of a call": flip_in("call", (*CALL_FIXED, *CALL_ENDING, "chained_no", "settled_no"), "call"),
    "a bit of a change": flip_in("change", CHANGE, "change"),
    "a bit of a key": flip_in("vault_key", KEY_COLUMNS, "key"),
    "a bit of an event": flip_link,
    "a call away": delete_call,
    "a call with its events away": delete_call_and_its_events,
    "a change away": delete_change,
    "an event away": delete_event,
    "a call too many": insert_call,
    "a change too many": insert_change,
    "calls swapped": swap_calls,
    "events swapped": swap_events,
    "an open hold closed": settle_the_open,
    "the past forged": forge_the_past,
    "pruned by somebody else": pretend_pruned,
}


def test_A2_each_of_a_thousand_alterations_is_found_and_named(audit: Path, tmp_path: Path) -> None:
    """Seeded; each on a copy of its own. A bit of every column is among them."""
    original = copy_of(audit, tmp_path / "original")
    end = end_of(original)
    with altered(original) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    source = database_of(original).read_bytes()
    target = tmp_path / "one"
    target.mkdir()
    missed, misnamed = [], []
    names = list(MUTATE)
    for seed in range(MUTATIONS):
        dice = random.Random(seed)
        name = names[0] if seed % 2 else names[seed // 2 % len(names)]
        database_of(target).write_bytes(source)
        with altered(target) as connection:
            wanted = MUTATE[name](connection, dice)
        found = verdict(target, None, end)
        if found is None:
            missed.append((seed, name, wanted))
        elif wanted is not None and found.row != wanted:
            misnamed.append((seed, name, wanted, found))
    assert missed == []
    assert misnamed == []


def test_A2_a_bit_of_every_single_column_is_found(audit: Path, tmp_path: Path) -> None:
    """None is left to chance."""
    theirs = copy_of(audit, tmp_path / "columns")
    for table, kind, columns in (
        ("call", "call", (*CALL_FIXED, *CALL_ENDING, "chained_no", "settled_no")),
        ("change", "change", CHANGE),
        ("vault_key", "key", KEY_COLUMNS),
    ):
        for column in columns[1:]:
            for number in (1, 2, 3):
                dice = random.Random(number)
                before = one(theirs, f"SELECT {column} FROM {table} WHERE no = ?", number)
                with altered(theirs) as connection:
                    flip_in(table, ("no", column), kind)(connection, _Only(number, dice))
                    found = verdict(theirs)
                    assert found is not None, (table, column, number)
                    assert found.row == f"{kind} {number}", (table, column, number, found)
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE no = ?", (before, number))
    assert verdict(theirs) is None


class _Only(random.Random):
    """Dice that always choose this row."""

    def __init__(self, number: int, dice: random.Random) -> None:
        super().__init__(dice.random())
        self._number = number

    def choice(self, seq: object) -> object:  # type: ignore[override]
        assert isinstance(seq, list)
        return self._number if self._number in seq else seq[0]


def test_A2_a_bit_anywhere_in_the_file_of_a_row_is_found(audit: Path, tmp_path: Path) -> None:
    """Turned over in the bytes of the file, not by SQL: type, length and text of every value."""
    original = copy_of(audit, tmp_path / "original")
    with closing(sqlite3.connect(database_of(original))) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    source = database_of(original).read_bytes()
    # The row of call 42, as the file has it: its call_id is nowhere else but in an index.
    places = [at for at in range(len(source)) if source.startswith(b"call_41", at)]
    target = tmp_path / "flipped"
    target.mkdir()
    dice = random.Random(7)
    quiet = 0
    for turn in range(200):
        raw = bytearray(source)
        at = dice.choice(places) + dice.randrange(-24, 160)
        raw[at] ^= 1 << dice.randrange(8)
        database_of(target).write_bytes(raw)
        found = verdict(target)
        if found is None:
            # Then no value of any row changed: the bit is of an index, or of what no row uses.
            assert everything(target) == everything(original), (turn, at)
            quiet += 1
    assert quiet < 120


def everything(folder: Path) -> list[list[tuple[object, ...]]]:
    """What the rows of the audit say."""
    with closing(sqlite3.connect(database_of(folder))) as connection:
        return [
            connection.execute(f"SELECT * FROM {table} NOT INDEXED ORDER BY no").fetchall()
            for table in ("call", "change", "chain")
        ]


def found_in(folder: Path, mutate: Callable[[sqlite3.Connection], object]) -> Finding:
    with altered(folder) as connection:
        mutate(connection)
    found = verdict(folder)
    assert found is not None
    return found


def test_what_is_wrong_is_said_in_words(theirs: Path) -> None:
    """The call by its id, what happened to it, and no more."""
    found = found_in(theirs, lambda c: c.execute("UPDATE call SET amount_nano = 1 WHERE no = 17"))
    assert found.sentence == "call call_16 (number 17) was edited: it does not say any more what was recorded"
    assert (found.what, found.call_id, found.row) == ("edited", "call_16", "call 17")
    found = found_in(theirs, lambda c: c.execute("DELETE FROM call WHERE no = 9"))
    assert (found.what, found.sentence) == ("missing", "call number 9 is missing")


def test_a_text_that_is_none_and_a_broken_page_are_findings(theirs: Path) -> None:
    """No error of SQLite's reaches anybody."""
    found = found_in(
        theirs, lambda c: c.execute("UPDATE call SET reason = CAST(x'ff41' AS TEXT) WHERE no = 20")
    )
    assert (found.what, found.row) == ("edited", "call 20")
    assert "is no text any more" in found.sentence
    with closing(sqlite3.connect(database_of(theirs))) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        root, size = (
            connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'chain'").fetchone()[0],
            connection.execute("PRAGMA page_size").fetchone()[0],
        )
    raw = bytearray(database_of(theirs).read_bytes())
    raw[(root - 1) * size : (root - 1) * size + 100] = b"\xaa" * 100
    database_of(theirs).write_bytes(raw)
    broken = verdict(theirs)
    assert broken is not None
    assert broken.what == "unreadable"


# --- what only a checkpoint tells ---------------------------------------------------------------------


def cut(folder: Path, event: int) -> None:
    """Take the end away so that what is left is in itself whole."""
    with altered(folder) as connection:
        for kind, table in ((4, "change"), (5, "vault_key")):
            connection.execute(
                f"DELETE FROM {table} WHERE no IN (SELECT ref FROM chain WHERE kind = {kind} AND no > ?)",
                (event,),
            )
        connection.execute("DELETE FROM call WHERE chained_no > ?", (event,))
        for number, columns in connection.execute(
            "SELECT no, settled_no FROM call WHERE settled_no > ?", (event,)
        ).fetchall():
            assert columns
            connection.execute(
                "UPDATE call SET settled_no = NULL, policy_check_result = 'allowed', outcome = 'pending',"
                " amount_nano = held_nano, status = NULL, reason = NULL, vendor_request_id = NULL,"
                " latency_us = NULL, upstream_us = NULL, folded = 0 WHERE no = ?",
                (number,),
            )
        connection.execute("DELETE FROM chain WHERE no > ?", (event,))


def whole_cut(folder: Path) -> int:
    """An event behind which no call is half-way."""
    event: int = one(
        folder,
        "SELECT max(c.no) FROM chain AS c WHERE c.kind = 3 AND NOT EXISTS (SELECT 1 FROM call"
        " WHERE chained_no <= c.no AND settled_no > c.no AND EXISTS (SELECT 1 FROM chain AS o"
        " WHERE o.no = call.settled_no AND o.prior <= c.no)) AND c.no < (SELECT max(no) FROM chain)",
    )
    return event


def test_A2_a_tail_that_was_cut_is_found_against_a_checkpoint(audit: Path, theirs: Path) -> None:
    """Without one nobody can tell: the naive walk says that all is well."""
    end = end_of(audit)
    cut(theirs, whole_cut(theirs))
    assert verdict(theirs) is None
    for found in (verdict(theirs, None, end), verdict(theirs, end)):
        assert found is not None
        assert found.what == "cut"
        assert "at the checkpoint of 2026-11-21 00:00:00 UTC" in found.sentence
        assert found.row == f"call {one(theirs, 'SELECT max(no) FROM call') + 1}"


def test_A2_yesterday_s_copy_is_found_against_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    """The whole file, put back."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await lived(journal, 30)
            copy_of(folder, tmp_path / "yesterday")
            await lived(journal, 30, start=30)

    run(main())
    end = end_of(folder)
    assert verdict(folder, None, end) is None
    yesterday = tmp_path / "yesterday"
    assert verdict(yesterday) is None
    found = verdict(yesterday, end)
    assert found is not None
    assert (found.what, found.row) == ("cut", "call 31")


def rechain(folder: Path) -> None:
    """What somebody does who knows how the links are made."""
    with altered(folder) as connection:
        tip = chain.tip_of(connection)
        link = chain.genesis(tip.database_id)
        for no, kind, ref, prior, was in connection.execute(
            "SELECT no, kind, ref, prior, was FROM chain ORDER BY no"
        ).fetchall():
            table = {4: "change", 5: "vault_key"}.get(kind, "call")
            columns = {4: CHANGE, 5: KEY_COLUMNS}.get(kind, (*CALL_FIXED, *CALL_ENDING))
            row = connection.execute(
                f"SELECT {', '.join(columns)} FROM {table} WHERE no = ?", (ref,)
            ).fetchone()
            fixed, ending = row[: len(CALL_FIXED)], row[len(CALL_FIXED) :]
            body = {
                1: chain.packed(fixed),
                2: was or chain.packed(ending),
                3: chain.packed(fixed) + (was or chain.packed(ending)),
            }.get(kind, chain.packed(row))
            link = chain.link(link, no, kind, ref, prior, body)
            connection.execute("UPDATE chain SET link = ? WHERE no = ?", (link, no))


def test_A2_a_chain_that_was_made_anew_is_found_against_a_checkpoint(audit: Path, theirs: Path) -> None:
    """It agrees with itself; only what was kept elsewhere tells."""
    end = end_of(audit)
    rechain(theirs)
    assert end_of(theirs) == end  # nothing was changed yet: the same links
    with altered(theirs) as connection:
        connection.execute("UPDATE call SET amount_nano = 1 WHERE no = 18")
    rechain(theirs)
    assert verdict(theirs) is None
    for found in (verdict(theirs, None, end), verdict(theirs, end)):
        assert found is not None
        assert found.what == "replaced"
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    with closing(sqlite3.connect(database_of(theirs))) as connection:
        forged = checkpoint_of(chain.tip_of(connection), stranger)
    assert forged.key != end.key  # who signs it anew does so with another key


def test_another_database_is_not_taken_for_this_one(audit: Path, folder: Path) -> None:
    """A checkpoint is of one database."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await lived(journal, 20)

    run(main())
    found = verdict(folder, end_of(audit))
    assert found is not None
    assert found.what == "replaced"
    assert "another database" in found.sentence


# --- walking on ---------------------------------------------------------------------------------------


def test_a_walk_from_a_checkpoint_looks_at_what_came_after(folder: Path) -> None:
    """Late ends of early calls among it; an earlier alteration is not its matter."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await lived(journal, 60)
            middle.append(checkpoint_of(journal.database.tip))
            await lived(journal, 60, start=60)
            early = call(7)  # as one that a restart read back
            early.no, early.outcome, early.amount_nano = 6, "posted", 77
            journal.finish(early)

    middle: list[Checkpoint] = []
    run(main())
    walk = Walk(database_of(folder), middle[0])
    assert walk.run() is None
    assert walk.calls == 60
    assert verdict(folder, None, middle[0]) is None
    with altered(folder) as connection:
        connection.execute("UPDATE call SET amount_nano = 3 WHERE no = 6")
    found = verdict(folder, middle[0])
    assert found is not None
    assert (found.what, found.row) == ("edited", "call 6")
    with altered(folder) as connection:
        connection.execute("UPDATE call SET amount_nano = 77 WHERE no = 6")
        connection.execute("UPDATE call SET method = 'GET' WHERE no = 2")
    assert verdict(folder, middle[0]) is None
    assert verdict(folder) is not None


def test_a_walk_beside_a_busy_writer_finds_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows end while it goes: what it has read already and what it has not."""
    import asyncio

    monkeypatch.setattr("kbctld.store.verify.EVENTS_AT_ONCE", 64)
    monkeypatch.setattr("kbctld.store.verify._PAGE", _page_of(64))

    async def main() -> int:
        async with journal_in(folder) as journal:
            await lived(journal, 400)
            writing = asyncio.get_running_loop().create_task(lived(journal, 600, start=400))
            walks = 0
            while not writing.done():
                walk = Walk(database_of(folder))
                while await asyncio.to_thread(walk.step):
                    pass
                assert walk.finding is None
                walks += 1
            await writing
            return walks

    assert run(main(), deadline_s=60) >= 1
    assert verdict(folder) is None


def _page_of(rows_: int) -> str:
    from kbctld.store.verify import _PAGE, EVENTS_AT_ONCE

    return _PAGE.replace(str(EVENTS_AT_ONCE), str(rows_)).replace("LIMIT 4000", f"LIMIT {rows_}")


def test_A3_a_walk_is_quick(folder: Path) -> None:
    """Above 100,000 calls a second alone; here others run beside it, so its own time is what counts."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await lived(journal, 8_000)

    run(main(), deadline_s=60)
    began = time.process_time()
    walk = Walk(database_of(folder))
    assert walk.run() is None
    assert walk.calls / (time.process_time() - began) > 40_000
