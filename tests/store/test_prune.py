"""D10: old days go, and what stays can be followed from end to end; killed at any batch it can, too."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from kbctl.checkpoint import Checkpoint
from kbctld.store import prune
from kbctld.store.journal import Journal, Trace
from kbctld.store.prune import Plan, Pruning
from tests.store.audit import DAY_NS, altered, checkpoint_of, lived, one, verdict
from tests.store.support import NOW, call, database_of, journal_in, key_statement, opened, rows
from tests.support.loop import run

ROOT = Path(__file__).parents[2]
CALLS_A_DAY = 200


async def live_days(journal: Journal, days: int) -> list[Checkpoint]:
    """Some days of life, each with a checkpoint at its end."""
    made = []
    for day in range(days):
        began = NOW + day * DAY_NS
        await lived(journal, CALLS_A_DAY, start=day * CALLS_A_DAY, ts=lambda n, began=began: began + n)  # type: ignore[misc]
        made.append(checkpoint_of(journal.database.tip))
    return made


async def prune_all(journal: Journal, before_ns: int, marks: Collection[int] = ()) -> Plan:
    with closing(sqlite3.connect(journal.database.path)) as connection:
        plan = prune.plan(connection, before_ns)
    work = Pruning(plan, set(marks))
    while not work.over:
        await journal.carry_out(work.batch)
    assert work.done == plan.calls
    return plan


@asynccontextmanager
async def three_days(folder: Path) -> AsyncIterator[tuple[Journal, list[Checkpoint]]]:
    async with journal_in(folder) as journal:
        yield journal, await live_days(journal, 3)


def test_D10_whole_days_go_and_the_rest_verifies(folder: Path) -> None:
    """Open holds stay however old; keys, changes and balances are as before."""

    async def main() -> tuple[Plan, list[Checkpoint]]:
        async with three_days(folder) as (journal, made):
            journal.spend("vk_0000000001", 20_778, 777)
            before.append(one(folder, "SELECT count(*) FROM call WHERE outcome = 'pending' AND no <= 400"))
            # In the middle of the third day: only days that are over go.
            plan = await prune_all(journal, NOW + 2 * DAY_NS + DAY_NS // 2, {each.events for each in made})
            await lived(journal, 50, start=600, ts=lambda n: NOW + 3 * DAY_NS + n)
            return plan, made

    before: list[int] = []
    plan, made = run(main())
    assert plan.before_ns == NOW + 2 * DAY_NS
    assert plan.calls + plan.kept == 400
    old = rows(folder, f"SELECT * FROM call WHERE ts_ns < {NOW + 2 * DAY_NS}")
    assert len(old) == plan.kept == before[0]
    assert {row["outcome"] for row in old} == {"pending"}
    assert one(folder, "SELECT count(*) FROM call") == plan.kept + 250
    assert one(folder, "SELECT count(*) FROM change") == one(folder, "SELECT count(*) FROM vault_key") == 3
    assert one(folder, "SELECT posted_nano FROM balance") == 777
    assert verdict(folder, None, *made) is None  # whoever kept one of these can still compare it
    for each in made:
        assert verdict(folder, each) is None


def test_D10_pruning_again_takes_what_has_ended_since(folder: Path) -> None:
    """What an open hold had kept goes once it is settled, and was settled before those days were over."""

    async def main() -> list[int]:
        counts = []
        async with three_days(folder) as (journal, _made):
            await prune_all(journal, NOW + DAY_NS)
            counts.append(one(folder, f"SELECT count(*) FROM call WHERE ts_ns < {NOW + DAY_NS}"))
            for row in rows(folder, f"SELECT no FROM call WHERE ts_ns < {NOW + DAY_NS}"):
                late = call(0)
                late.no, late.outcome, late.amount_nano = row["no"], "voided", 0
                journal.finish(late)
            await journal.barrier()
            assert verdict(folder) is None
            await prune_all(journal, NOW + 2 * DAY_NS)
            counts.append(one(folder, f"SELECT count(*) FROM call WHERE ts_ns < {NOW + DAY_NS}"))
            await lived(journal, 20, start=600, ts=lambda n: NOW + 4 * DAY_NS + n)
            await prune_all(journal, NOW + 4 * DAY_NS)
            counts.append(one(folder, f"SELECT count(*) FROM call WHERE ts_ns < {NOW + DAY_NS}"))
            assert verdict(folder) is None
        return counts

    kept, late, gone = run(main())
    assert kept > 10
    assert late == kept  # they were settled on the third day
    assert gone == 0


def test_by_what_a_call_was_found_goes_with_it(folder: Path) -> None:
    """And stays with a call that stays."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await journal.change([key_statement(1)])
            for number, outcome in enumerate(("posted", "unknown", "posted")):
                row = call(number, key_no=1, ts_ns=NOW + number * DAY_NS, outcome=outcome)
                row.trace = Trace(b"c" * 16, 5, None)
                await journal.append(row)
            await lived(journal, 1, start=10, ts=lambda n: NOW + 4 * DAY_NS + n)
            await prune_all(journal, NOW + 2 * DAY_NS)

    run(main())
    assert [row["call_id"] for row in rows(folder, "SELECT call_id FROM trace")] == ["call_1", "call_2"]


def test_the_newest_call_stays_so_that_numbers_go_on(folder: Path) -> None:
    """Else a start would take the database for one that was put back."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await lived(journal, 60)
            await prune_all(journal, NOW + 50 * DAY_NS)
        async with opened(folder):
            pass
        async with journal_in(folder) as journal:
            row = call(60)
            await journal.append(row)
            assert row.no == 61

    run(main())
    assert one(folder, "SELECT max(no) FROM call") == 61
    assert verdict(folder) is None


def test_nothing_to_prune_is_no_error(folder: Path) -> None:
    """Nor is a database without a call."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            assert (await prune_all(journal, NOW)).calls == 0
            await lived(journal, 30)
            assert (await prune_all(journal, NOW - DAY_NS)).calls == 0

    run(main())
    assert verdict(folder) is None


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("UPDATE chain_gap SET last_call = last_call + 1 WHERE first_call IS NOT NULL", None),
        ("DELETE FROM chain_gap WHERE first = (SELECT max(first) FROM chain_gap)", "missing"),
        ("UPDATE chain_gap SET link = zeroblob(32) WHERE first = (SELECT min(first) FROM chain_gap)", None),
        ("INSERT INTO chain_gap VALUES (100000, 100001, zeroblob(32), NULL, NULL, 9)", "edited"),
        (
            (
                "INSERT INTO call (no, call_id, ts_ns, amount_nano, outcome, policy_check_result)"
                " SELECT min(first_call), 'x', 0, 0, 'refused', 'x' FROM chain_gap"
            ),
            "inserted",
        ),
        ("DELETE FROM call WHERE no = (SELECT min(no) FROM call)", "missing"),
    ],
)
def test_D10_what_pruning_left_is_as_safe_as_rows(folder: Path, sql: str, what: str | None) -> None:
    """The ranges are committed to, and nothing can be put into them."""

    async def main() -> None:
        async with three_days(folder) as (journal, _made):
            await prune_all(journal, NOW + 2 * DAY_NS)

    run(main())
    assert verdict(folder) is None
    with altered(folder) as connection:
        connection.execute(sql)
    found = verdict(folder)
    assert found is not None
    assert what in (None, found.what), found


def test_space_is_given_back(folder: Path) -> None:
    """In steps, each a transaction of its own."""

    async def main() -> tuple[int, int]:
        async with journal_in(folder) as journal:
            await lived(journal, 3000)
            await prune_all(journal, NOW + 5 * DAY_NS)
            with closing(sqlite3.connect(database_of(folder))) as connection:
                before = int(connection.execute("PRAGMA page_count").fetchone()[0])
                free = prune.free_pages(connection)
            assert free > 100
            while free:
                await journal.carry_out(prune.shrink)
                with closing(sqlite3.connect(database_of(folder))) as connection:
                    free = prune.free_pages(connection)
            return before, int(one(folder, "PRAGMA page_count"))

    before, after = run(main(), deadline_s=60)
    assert after < before / 2
    assert verdict(folder) is None


_PRUNER = """
import asyncio, pathlib, sqlite3, sys
from kbctld.store import prune
from tests.store.support import journal_in
folder, before = pathlib.Path(sys.argv[1]), int(sys.argv[2])
prune.CALLS_AT_ONCE = 5
async def main():
    async with journal_in(folder) as journal:
        work = prune.Pruning(prune.plan(sqlite3.connect(journal.database.path), before), set())
        while not work.over:
            await journal.carry_out(work.batch)
            print(work.done, flush=True)
asyncio.run(main())
"""


def test_D10_killed_at_any_batch_what_is_there_verifies(folder: Path) -> None:
    """kill -9 again and again; the next pruning goes on where that one ended."""

    async def main() -> None:
        async with three_days(folder):
            pass

    run(main())
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'daemon'}"}
    sizes = [one(folder, "SELECT count(*) FROM call")]
    for lines in (1, 3, 7, 12):
        process = subprocess.Popen(
            [sys.executable, "-c", _PRUNER, str(folder), str(NOW + 2 * DAY_NS)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        for _ in range(lines):
            assert process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        assert verdict(folder) is None
        sizes.append(one(folder, "SELECT count(*) FROM call"))
    assert sizes == sorted(set(sizes), reverse=True)

    async def rest() -> None:
        async with journal_in(folder) as journal:
            await prune_all(journal, NOW + 2 * DAY_NS)
            await asyncio.sleep(0)

    run(rest())
    assert verdict(folder) is None
