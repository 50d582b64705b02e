"""D1, D4, D5, D11, A1, A5: what the journal acknowledged is on disk, and what it could not record it says."""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kbctld.core.cost import Remembered
from kbctld.store import database as databases
from kbctld.store import journal as journals
from kbctld.store.journal import FREE_BYTES_MIN, Journal, JournalError
from kbctld.store.readers import TooSlowError
from tests.store.support import (
    NOW,
    call,
    database_of,
    journal_in,
    key_statement,
    locked,
    opened,
    outcome_of,
    refusal,
    remembered,
    rows,
)
from tests.support.loop import run

ROOT = Path(__file__).parents[2]
MINUTE = 60 * 10**9


def writer(*arguments: str, before: tuple[str, ...] = ()) -> list[str]:
    return [*before, sys.executable, "-m", "tests.store.writer", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'daemon'}"}


# --- acknowledged is durable ------------------------------------------------------------------------


def test_D1_what_append_acknowledged_anybody_can_read(folder: Path) -> None:
    """Committed when it returns, with the log synced at every commit."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            connection = journal.database.writer
            for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
                async with connection.execute(f"PRAGMA {pragma}") as cursor:
                    assert await cursor.fetchone() == (value,)
            for number in range(20):
                await journal.append(call(number))
                assert len(rows(folder)) == number + 1

    run(main())
    assert [row["no"] for row in rows(folder)] == list(range(1, 21))
    assert {row["outcome"] for row in rows(folder)} == {"pending"}


def test_D1_every_acknowledged_row_is_there_after_kill_9(folder: Path) -> None:
    """Ten times: nothing acknowledged is lost, numbers have no gap, the anchor is not ahead."""
    everything: set[str] = set()
    for round_ in range(10):
        process = subprocess.Popen(
            writer("append", str(folder)), cwd=ROOT, env=environment(), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        acknowledged = [process.stdout.readline() for _ in range(1 + 37 * round_)]
        process.kill()
        acknowledged += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        everything |= {line.decode().strip() for line in acknowledged if line.endswith(b"\n")}

        anchored = remembered(folder)
        found = rows(folder)

        assert everything <= {row["call_id"] for row in found}
        assert [row["no"] for row in found] == list(range(1, len(found) + 1))
        assert anchored is not None
        assert anchored.call_no <= len(found)

        async def reopen() -> None:
            async with opened(folder):
                pass

        run(reopen())
    assert len(everything) > 1500


def test_many_waiters_share_few_transactions(folder: Path) -> None:
    """Group commit: what waits goes into one transaction, and wakes together."""
    statements: list[str] = []

    async def main() -> None:
        async with journal_in(folder) as journal:
            await journal.database.writer.set_trace_callback(statements.append)
            await asyncio.gather(*(journal.append(call(number)) for number in range(1000)))
            await journal.database.writer.set_trace_callback(None)  # type: ignore[arg-type]

    run(main())
    assert len(rows(folder)) == 1000
    assert sum(text == "COMMIT" for text in statements) <= 3


def test_the_end_of_a_call_rides_with_the_next_one_and_is_written_without_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent alone costs one transaction a call; the end of its last call waits for a moment only."""

    async def end(journal: Journal, number: int) -> None:
        row = call(number)
        await journal.append(row)
        row.outcome = "posted"
        journal.finish(row)

    async def main() -> None:
        with monkeypatch.context() as patience:
            patience.setattr(journals, "_LAG_S", 60)  # however busy the machine is
            async with journal_in(folder) as journal:
                for number in range(10):
                    await end(journal, number)
                    await asyncio.sleep(0.01)  # the agent thinks
                assert journal.batches == 10
        async with journal_in(folder) as journal:
            await end(journal, 10)
            async with asyncio.timeout(10):
                while journal.batches < 2:
                    await asyncio.sleep(0.01)
            assert [row["outcome"] for row in rows(folder)] == ["posted"] * 11

    run(main())


def test_what_ends_a_call_is_written_with_its_spend_and_its_object(folder: Path) -> None:
    """One transaction holds all three, and a row that was never written ends nowhere."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await journal.change([key_statement(1)])
            row = call(1, key_no=1, amount_nano=500)
            await journal.append(row)
            row.outcome, row.amount_nano, row.status = "posted", 400, 200
            row.vendor_request_id, row.latency_us, row.upstream_us = "req_1", 12, 10
            for nano in (400, 30):
                journal.spend("vk_1", 20_778, nano)
            journal.remember("stripe", "stripe", "pi_1", Remembered(400, 40, "USD"))
            journal.finish(row)
            journal.finish(call(99, outcome="posted"))

    run(main())
    (found,) = rows(folder)
    ends = ("outcome", "amount_nano", "status", "vendor_request_id", "latency_us", "upstream_us")
    assert [found[name] for name in ends] == ["posted", 400, 200, "req_1", 12, 10]
    assert rows(folder, "SELECT * FROM balance") == [
        {"scope": "vk_1", "day": 20_778, "posted_nano": 430, "requests": 0}
    ]
    assert [row["nano"] for row in rows(folder, "SELECT * FROM object")] == [400]


def test_an_object_never_counts_less_than_before(folder: Path) -> None:
    """A later, smaller figure for the same object leaves the larger one."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            for nano in (900, 300):
                journal.remember("stripe", "stripe", "pi_1", Remembered(nano, nano // 10, "USD"))
                await journal.change([])

    run(main())
    assert [row["nano"] for row in rows(folder, "SELECT * FROM object")] == [900]


def test_a_caller_that_gave_up_leaves_its_row(folder: Path) -> None:
    """It was cancelled while it waited: the row is written all the same, and can be ended."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            row = call(1)
            waiting = asyncio.ensure_future(journal.append(row))
            await asyncio.sleep(0)
            waiting.cancel()
            assert isinstance(await outcome_of(waiting), asyncio.CancelledError)
            row.outcome = "voided"
            journal.finish(row)

    run(main())
    assert [row["outcome"] for row in rows(folder)] == ["voided"]


def test_the_barrier_waits_for_what_is_being_written(folder: Path) -> None:
    """Also for a batch that has left the queue and is not committed yet."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            for number in range(50):
                waiting = asyncio.ensure_future(journal.append(call(number)))
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                await journal.barrier()
                if number % 4:
                    assert len(rows(folder)) == number + 1
                await waiting
            await journal.barrier()

    run(main())


def test_a_barrier_for_changes_waits_for_no_calls(folder: Path) -> None:
    """Also for changes that have left the queue and are not committed yet, and for nothing else."""
    insert = "INSERT INTO meta (key, value) VALUES (?, '')"

    def written() -> set[str]:
        with closing(sqlite3.connect(folder / "kbctl.db")) as reader:
            return {key for (key,) in reader.execute("SELECT key FROM meta")}

    async def main() -> None:
        async with journal_in(folder) as journal:
            for number in range(20):
                calling = asyncio.ensure_future(journal.append(call(number)))
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                with pytest.raises(StopIteration):  # it ends without having waited for anything
                    journal.barrier(calls=False).send(None)
                if number % 4 == 1:
                    control = journal.barrier()
                    control.send(None)  # the call is on its way, and this one waits for it
                    control.close()
                key = f"of turn {number}"
                changing = asyncio.ensure_future(journal.change([(insert, (key,))]))
                for _ in range(1 + number % 4):
                    await asyncio.sleep(0)
                await journal.barrier(calls=False)
                assert key in written()
                await asyncio.gather(calling, changing)

    run(main())


def test_a_closed_journal_takes_nothing(folder: Path) -> None:
    """What waited is written before it closes; whoever comes later is told."""

    async def main() -> None:
        async with opened(folder) as database:
            journal = Journal(database)
            waiting = asyncio.ensure_future(journal.append(call(1)))
            await asyncio.sleep(0)
            await journal.close()
            assert waiting.done()
            with pytest.raises(JournalError, match="stopping"):
                await journal.append(call(2))

    run(main())
    assert [row["call_id"] for row in rows(folder)] == ["call_1"]


# --- what fails for certain -------------------------------------------------------------------------


def test_D5_a_full_database_records_nothing_and_recovers(folder: Path) -> None:
    """Everybody who waits is told; ends that came meanwhile are written once there is room again."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            early = call(0)
            await journal.append(early)
            connection = journal.database.writer
            async with connection.execute("PRAGMA page_count") as cursor:
                pages = next(iter(await cursor.fetchall()))[0]
            await connection.execute(f"PRAGMA max_page_count = {pages}")
            big = "x" * 50_000
            failed = await asyncio.gather(
                *(outcome_of(journal.append(call(n, reason=big))) for n in range(1, 20))
            )
            assert {str(error) for error in failed} == {"the disk is full"}
            assert journal.stopped is None
            assert len(rows(folder)) == 1

            early.outcome, early.reason = "posted", big
            journal.finish(early)
            assert isinstance(await outcome_of(journal.append(call(20, reason=big))), JournalError)
            await connection.execute("PRAGMA max_page_count = 1000000")
            await journal.append(call(21))

    run(main())
    assert [(row["no"], row["call_id"], row["outcome"]) for row in rows(folder)] == [
        (1, "call_0", "posted"),
        (2, "call_21", "pending"),
    ]


def may_mount() -> bool:
    """Whether a file system can be mounted here, where nobody else sees it."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        return False
    tried = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


@pytest.mark.skipif(not may_mount(), reason="needs root, and the right to mount")
def test_D5_no_space_left_on_a_real_file_system(tmp_path: Path) -> None:
    """A tmpfs that is full to the last block: rows are refused, none is lost, the early one ends."""
    script = (
        'mount -t tmpfs -o size=2m,mode=700 none "$0" && "$@" && sqlite="$0/kbctl.db" && cp "$sqlite" "$0.db"'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(tmp_path), *writer("full", str(tmp_path))],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said["failures"]) == {"the disk is full"}
    assert len(said["failures"]) == 5
    assert said["stopped"] is None
    copy = Path(f"{tmp_path}.db")
    with closing(sqlite3.connect(copy)) as database:
        found = database.execute("SELECT call_id, outcome FROM call ORDER BY no").fetchall()
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    copy.unlink()
    assert [call_id for call_id, _ in found] == said["acknowledged"]
    assert found[0] == ("call_0", "posted")


def test_D11_a_locked_database_costs_nobody_more_than_a_second(folder: Path) -> None:
    """Also whoever comes while another one waits: each is told within a second, and later rows are taken."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            loop = asyncio.get_running_loop()
            early = call(0)
            await journal.append(early)

            async def timed(number: int, after_s: float) -> float:
                await asyncio.sleep(after_s)
                began = loop.time()
                with pytest.raises(JournalError, match="another process holds the database"):
                    await journal.append(call(number))
                return loop.time() - began

            with locked(folder):
                early.outcome = "posted"
                journal.finish(early)
                waits = await asyncio.gather(*(timed(n, n * 0.15) for n in range(1, 7)))
            assert max(waits) < 1.6  # the second, and what a busy machine adds
            assert journal.stopped is None
            await journal.append(call(100))

    run(main())
    assert [(row["call_id"], row["outcome"]) for row in rows(folder)] == [
        ("call_0", "posted"),
        ("call_100", "pending"),
    ]


def test_ends_are_written_though_nobody_comes(folder: Path) -> None:
    """After a failure without waiters the writer tries again by the clock."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            row = call(0)
            await journal.append(row)
            with locked(folder):
                row.outcome = "posted"
                journal.finish(row)
                await asyncio.sleep(1.3)
            for _ in range(300):
                if rows(folder)[0]["outcome"] == "posted":
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("the end was not written")

    run(main())


def test_a_change_that_the_database_refuses_is_told_and_not_repeated(folder: Path) -> None:
    """The second key of the same number fails; so does what shared its transaction; the next one does not."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await journal.change([key_statement(1)])
            failed = await asyncio.gather(
                outcome_of(journal.change([key_statement(1, key_id="vk_other")])),
                outcome_of(journal.append(call(1))),
            )
            assert [str(error) for error in failed] == ["the database refused it"] * 2
            assert journal.stopped is None
            await journal.append(call(2))

    run(main())
    assert [row["key_id"] for row in rows(folder, "SELECT * FROM vault_key")] == ["vk_0000000001"]
    assert [(row["no"], row["call_id"]) for row in rows(folder)] == [(1, "call_2")]


def test_a_revocation_that_could_not_be_written_is_written_later(folder: Path) -> None:
    """An UPDATE that memory says already is kept; its caller was told no all the same. Others are not."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await journal.change([key_statement(1)])
            update = ("UPDATE vault_key SET revoked_ns = ? WHERE no = ?", (NOW, 1))
            forgotten = ("UPDATE vault_key SET frozen = 'x' WHERE no = ?", (1,))
            with locked(folder):
                with pytest.raises(JournalError):
                    await journal.change([update], lasting=True)
                with pytest.raises(JournalError):
                    await journal.change([forgotten])
            await journal.append(call(1))

    run(main())
    assert rows(folder, "SELECT revoked_ns, frozen FROM vault_key") == [{"revoked_ns": NOW, "frozen": None}]


# --- what nobody can know ---------------------------------------------------------------------------


def failing(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    "error",
    [
        failing(sqlite3.SQLITE_IOERR_FSYNC),
        failing(sqlite3.SQLITE_IOERR_WRITE),
        failing(sqlite3.SQLITE_CORRUPT),
        failing(sqlite3.SQLITE_NOTADB),
        sqlite3.ProgrammingError("closed"),
        ValueError("no active connection"),
    ],
    ids=["fsync", "write", "corrupt", "no database", "without a code", "closed"],
)
def test_D4_a_failed_commit_stops_everything_until_a_restart(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The row can come back after a crash: all who wait are told, and nothing is appended any more."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await journal.append(call(0))

            def fail(_connection: sqlite3.Connection) -> None:
                time.sleep(0.01)
                raise error

            monkeypatch.setattr(databases, "commit", fail)
            first = asyncio.ensure_future(outcome_of(journal.append(call(1))))
            await asyncio.sleep(0.005)  # joins while the first is being written
            second = asyncio.ensure_future(outcome_of(journal.append(call(2))))
            began = asyncio.get_running_loop().time()
            told = await asyncio.gather(first, second)
            assert asyncio.get_running_loop().time() - began < 0.5
            assert [str(one) for one in told] == [journal.stopped] * 2
            assert "restart" in (journal.stopped or "")
            monkeypatch.undo()
            for work in (journal.append(call(3)), journal.change([key_statement(1)])):
                assert isinstance(await outcome_of(work), JournalError)
            await journal.refuse(refusal(4))
            await journal.barrier()

    run(main())
    assert [row["call_id"] for row in rows(folder)] == ["call_0"]


def test_a_row_that_cannot_be_bound_does_not_end_the_writer_in_silence(folder: Path) -> None:
    """Not an error of SQLite's at all: whoever waits is told, now and later."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            for number in (1, 2):
                error = await asyncio.wait_for(outcome_of(journal.append(call(number, status=2**70))), 5)
                assert isinstance(error, JournalError)

    run(main())
    assert rows(folder) == []


def may_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return tried.returncode == 0


@pytest.mark.skipif(not may_trace(), reason="needs strace")
def test_D4_an_fsync_that_fails_is_never_taken_for_a_success(tmp_path: Path) -> None:
    """The kernel says EIO at the n-th sync: no acknowledged row is lost, nothing is acknowledged after it."""
    wheres = (1, 3, 7, 12, 16, 20, 24, 30)
    running = []
    for when in wheres:
        place = tmp_path / str(when)
        place.mkdir()
        inject = ("strace", "-f", "-qq", "-o", os.devnull, "-e", f"inject=fdatasync:error=EIO:when={when}")
        command = writer("sequence", str(place), "20", before=inject)
        running.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    stops = 0
    for when, process in zip(wheres, running, strict=True):
        out, err = process.communicate(timeout=40)
        assert process.returncode == 0, err
        said: dict[str, Any] = json.loads(out)
        if "start" in said:  # it failed while the database was being made
            assert said["start"] in ("database_damaged", "database_not_durable")
        elif said["stopped"] is not None:
            stops += 1
            assert set(said["failures"]) == {said["stopped"]}
            assert len(said["acknowledged"]) + len(said["failures"]) == 20
        else:
            assert said["failures"] == []  # an error of a checkpoint: the log still has everything
        if database_of(tmp_path / str(when)).exists() and "start" not in said:
            kept = {row["call_id"] for row in rows(tmp_path / str(when))}
            assert set(said["acknowledged"]) <= kept, when
    assert stops >= 3


def test_an_anchor_that_cannot_be_written_lags_and_stops_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is durable; that is what its caller asked for."""

    async def main() -> None:
        async with journal_in(folder) as journal:

            def fail(*_: object) -> None:
                raise OSError(5, "Input/output error")

            monkeypatch.setattr(type(journal.database.anchor), "write", fail)
            await journal.append(call(1))
            monkeypatch.undo()
            await journal.append(call(2))

    run(main())
    assert len(rows(folder)) == 2


# --- room -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "taken"), [(FREE_BYTES_MIN, True), (FREE_BYTES_MIN - 1, False)])
def test_D5_below_64_mib_no_new_hold_is_taken(folder: Path, free: int, taken: bool) -> None:
    """Exactly at the bar it still is; refusals and ends are recorded on either side."""

    async def main() -> None:
        async with journal_in(folder, free_bytes=lambda: free) as journal:
            if taken:
                await journal.append(call(1))
            else:
                with pytest.raises(JournalError, match="64 MiB"):
                    await journal.append(call(1))
            await journal.refuse(refusal(2))

    run(main())
    assert FREE_BYTES_MIN == 64 * 1024 * 1024
    assert [row["call_id"] for row in rows(folder)] == [*(["call_1"] if taken else []), "call_2"]


def test_D5_new_holds_are_taken_again_when_space_returns(folder: Path) -> None:
    """Within half a second, without a restart."""
    free = [0]

    async def main() -> None:
        async with journal_in(folder, free_bytes=lambda: free[0]) as journal:
            assert isinstance(await outcome_of(journal.append(call(1))), JournalError)
            free[0] = FREE_BYTES_MIN
            loop = asyncio.get_running_loop()
            until = loop.time() + 5
            while await outcome_of(journal.append(call(2))) is not None:
                assert loop.time() < until
                await asyncio.sleep(0.05)

    run(main())
    assert [row["call_id"] for row in rows(folder)] == ["call_2"]


# --- floods -----------------------------------------------------------------------------------------


async def flood(journal: Journal, first: int, count: int, **fields: Any) -> None:
    for start in range(first, first + count, 500):
        numbers = range(start, min(start + 500, first + count))
        await asyncio.gather(*(journal.refuse(refusal(number, **fields)) for number in numbers))


def test_A5_a_flood_of_refusals_is_counted_without_a_gap(folder: Path) -> None:
    """The first thousand of a kind in a minute are rows, the next one counts all further ones."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await flood(journal, 0, 5000)
            await flood(journal, 5000, 3, policy_check_result="key_unknown")
            await flood(journal, 5003, 2, ts_ns=NOW + MINUTE)

    run(main())
    found = rows(folder)
    assert [row["no"] for row in found] == list(range(1, len(found) + 1))
    kinds = [(row["policy_check_result"], row["ts_ns"] >= NOW + MINUTE) for row in found]
    assert kinds.count(("cap_exhausted", False)) == 1001
    assert kinds.count(("key_unknown", False)) == 3
    assert kinds.count(("cap_exhausted", True)) == 2
    assert [row["folded"] for row in found if row["folded"]] == [3999]
    assert sum(1 + row["folded"] for row in found) == 5005


@pytest.mark.parametrize(("count", "stored", "folded"), [(1000, 1000, 0), (1001, 1001, 0), (1002, 1001, 1)])
def test_A5_the_fold_begins_at_exactly_a_thousand(folder: Path, count: int, stored: int, folded: int) -> None:
    """At n, n + 1 and n + 2."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await flood(journal, 0, count)

    run(main())
    found = rows(folder)
    assert (len(found), sum(row["folded"] for row in found)) == (stored, folded)


def test_A5_the_count_is_flushed_while_the_flood_goes_on(folder: Path) -> None:
    """A second later, not at the end of the minute: a crash loses no more than that."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await flood(journal, 0, 1500)
            for _ in range(400):
                if max(row["folded"] for row in rows(folder, "SELECT folded FROM call")):
                    break
                await asyncio.sleep(0.01)
            assert max(row["folded"] for row in rows(folder, "SELECT folded FROM call")) == 499

    run(main())


def test_A5_what_could_not_be_counted_is_counted_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that should have counted was not written: the one after it stands for both."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await flood(journal, 0, 1000)

            def fail(_connection: sqlite3.Connection) -> None:
                raise failing(sqlite3.SQLITE_FULL)

            monkeypatch.setattr(databases, "commit", fail)
            await flood(journal, 1000, 4)
            monkeypatch.undo()
            await flood(journal, 1004, 2)

    run(main())
    found = rows(folder)
    assert sum(1 + row["folded"] for row in found) == 1006
    assert [row["no"] for row in found] == list(range(1, 1002))


# --- the log, and damage that is met while it runs ----------------------------------------------------------


def test_D7_the_log_stays_short_though_somebody_always_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two reports that overlap without a gap: SQLite alone never begins the log anew, and it grows on."""
    monkeypatch.setattr(journals, "_LOG_LOOK_S", 0.0)

    async def main(cut_at: int) -> int:
        monkeypatch.setattr(journals, "LOG_BYTES", cut_at)
        longest = 0
        async with journal_in(folder) as journal:

            async def begin() -> tuple[threading.Event, asyncio.Future[None]]:
                begun, ended = threading.Event(), threading.Event()

                def read(connection: sqlite3.Connection) -> None:
                    cursor = connection.execute("SELECT * FROM call, meta")
                    cursor.fetchone()
                    begun.set()
                    ended.wait(30)

                reading = asyncio.ensure_future(journal.database.readers.run(read))
                while not begun.is_set() and journal._cutting is None:
                    await asyncio.sleep(0.001)
                return ended, reading

            await journal.append(call(0))
            reports = [await begin(), await begin()]
            for number in range(1, 400):
                await journal.append(call(number, metadata='"' + "x" * 9000 + '"'))
                longest = max(longest, (folder / "kbctl.db-wal").stat().st_size)
                # A report lasts for so many rows and not for a time: on a busy machine it is a long one.
                if number % 16 == 0:
                    ended, reading = reports.pop(0)
                    ended.set()
                    await reading
                    reports.append(await begin())
            for ended, reading in reports:
                ended.set()
                await reading
        return longest

    naive = run(main(1 << 40))
    assert naive > 8_000_000, "the fault is not there"
    assert run(main(1_000_000)) < 4_000_000


def test_D7_the_log_is_moved_beside_the_commits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before SQLite would do it within one, for which every call of that moment would wait."""

    def moved() -> int:
        """Rows in the database file itself, whatever its log says."""
        copy = folder / "alone.db"
        copy.write_bytes((folder / "kbctl.db").read_bytes())
        with closing(sqlite3.connect(copy)) as alone:
            there = alone.execute("SELECT 1 FROM sqlite_master WHERE name = 'call'").fetchone()
            found: int = alone.execute("SELECT count(*) FROM call").fetchone()[0] if there else 0
        for path in folder.glob("alone.db*"):
            path.unlink()
        return found

    async def main(after: int) -> int:
        monkeypatch.setattr(journals, "_MOVED_AFTER", after)
        async with journal_in(folder) as journal:
            before = moved()
            for _ in range(40):
                await journal.append(call(0))
            while journal._moving is not None:
                await asyncio.sleep(0.001)
            return moved() - before

    assert run(main(1_000)) == 0, "the control"
    assert run(main(32)) >= 30


def test_D7_a_log_that_cannot_be_moved_stays_and_stops_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_connection: sqlite3.Connection) -> None:
        raise failing(sqlite3.SQLITE_FULL)

    async def main() -> None:
        monkeypatch.setattr(journals, "_move", fails)
        monkeypatch.setattr(journals, "_MOVED_AFTER", 2)
        async with journal_in(folder) as journal:
            for _ in range(6):
                await journal.append(call(0))
            assert journal.stopped is None
            assert "could not be moved" in caplog.text

    run(main())
    assert len(rows(folder)) == 6


def test_D4_damage_that_is_met_as_the_log_is_moved_stops_everything(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_connection: sqlite3.Connection) -> None:
        raise failing(sqlite3.SQLITE_CORRUPT)

    async def main() -> None:
        monkeypatch.setattr(journals, "_move", fails)
        monkeypatch.setattr(journals, "_MOVED_AFTER", 2)
        async with journal_in(folder) as journal:
            await journal.append(call(0))
            await journal.append(call(0))
            while journal._moving is not None:
                await asyncio.sleep(0)
            with pytest.raises(JournalError, match="damaged"):
                await journal.append(call(0))

    run(main())


def test_D7_a_report_is_ended_after_its_time(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as database:
            endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
            began = time.monotonic()
            with pytest.raises(TooSlowError) as caught:
                await database.readers.run(lambda c: c.execute(endless).fetchone(), limit_s=0.2)
            assert time.monotonic() - began < 2
            assert caught.value.code == "query_too_slow"

    run(main())


@pytest.mark.parametrize("patient", [False, True])
def test_no_report_keeps_the_daemon_from_stopping(folder: Path, patient: bool) -> None:
    async def main() -> None:
        async with opened(folder) as database:
            endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
            reading = asyncio.ensure_future(
                database.readers.run(lambda c: c.execute(endless).fetchone(), limit_s=None if patient else 60)
            )
            await asyncio.sleep(0.1)
            began = time.monotonic()
        await outcome_of(reading)
        assert time.monotonic() - began < 2

    run(main())


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOTADB])
def test_D4_damage_that_a_reader_meets_stops_everything_within_100_ms(folder: Path, code: int) -> None:
    """A report found it: whoever waits to record is told at once, and nothing is written any more."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await journal.append(call(0))

            def read(_connection: sqlite3.Connection) -> None:
                raise failing(code)

            with pytest.raises(sqlite3.Error):
                await journal.database.readers.run(read)
            began = time.monotonic()
            assert isinstance(await outcome_of(journal.append(call(1))), JournalError)
            assert time.monotonic() - began < 0.1
            assert "kbctl restore" in (journal.stopped or "")

    run(main())
    assert [row["call_id"] for row in rows(folder)] == ["call_0"]


def test_what_a_reader_asked_wrongly_stops_nothing(folder: Path) -> None:
    async def main() -> None:
        async with journal_in(folder) as journal:
            with pytest.raises(sqlite3.OperationalError):
                await journal.database.readers.run(lambda c: c.execute("SELECT nothing"))
            await journal.append(call(0))
            assert await journal.flushed()

    run(main())
