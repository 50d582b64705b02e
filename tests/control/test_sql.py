"""POST /sql reads, and does nothing else: not to the data, not to the disk, not to the event loop."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from kbctld.control import sql as sql_module
from tests.control.support import Desk, code, desk_in
from tests.daemon.support import allowed, ask, issue, stored
from tests.support.agent import Reply as Answer
from tests.support.loop import run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def query(desk: Desk, text: str) -> Answer:
    return await desk.sees("POST", "/sql", body=json.dumps({"query": text}).encode())


def test_it_reads_what_was_just_recorded(folder: Path) -> None:
    """The published query, on rows that were committed a moment ago."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            grant = await issue(desk.vault, metadata={"agent_run_id": "run_xyz"}, daily_cap_nano=2 * 10**9)
            await allowed(desk.vault, grant, 150)
            await ask(desk.vault, grant, 100)
            answer = await query(
                desk,
                "SELECT ts, endpoint, amount_usd, policy_check_result FROM calls"
                " WHERE metadata->>'agent_run_id'='run_xyz' AND policy_check_result != 'allowed'"
                " ORDER BY ts DESC",
            )
            assert answer.status == 200
            assert answer.json == {
                "columns": ["ts", "endpoint", "amount_usd", "policy_check_result"],
                "rows": [["2026-11-21T12:00:00.000Z", None, 0.0, "cap_exhausted"]],
            }

    run(main())


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("SELECT 1, 1.5, 'a', NULL, x'00ff'", [1, 1.5, "a", None, "00ff"]),
        ("SELECT 9223372036854775807, 9e999", [9223372036854775807, None]),
        ("SELECT CAST(x'ff41' AS TEXT)", ["\ufffdA"]),
        ("SELECT 'Ä', '\"'", ["Ä", '"']),
        ("VALUES (1)", [1]),
        ("WITH t(x) AS (SELECT 7) SELECT x FROM t", [7]),
        ("SELECT count(*) FROM pragma_table_info('call') WHERE name = 'ts_ns'", [1]),
        ("SELECT value FROM json_each('[5]')", [5]),
        ("SELECT count(*) FROM sqlite_master WHERE name = 'calls'", [1]),
        ("SELECT 1; ", [1]),
        ("SELECT printf('%.*c', 100000000, 'x')", [None]),
        ("SELECT 1 -- the end", [1]),
        (
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 5) SELECT sum(x) FROM c",
            [15],
        ),
    ],
)
def test_values(folder: Path, text: str, row: list[Any]) -> None:
    """Each kind of value of SQLite has one form in JSON."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            answer = await query(desk, text)
            assert (answer.status, answer.json.get("rows")) == (200, [row]), answer.body

    run(main())


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ("DELETE FROM call", 403, "sql_read_only"),
        ("UPDATE vault_key SET revoked_ns = NULL", 403, "sql_read_only"),
        ("INSERT INTO meta VALUES ('a', 1)", 403, "sql_read_only"),
        ("INSERT INTO meta SELECT 'a', 1 RETURNING key", 403, "sql_read_only"),
        ("REPLACE INTO meta VALUES ('a', 1)", 403, "sql_read_only"),
        ("WITH t AS (SELECT 1) DELETE FROM call", 403, "sql_read_only"),
        ("EXPLAIN DELETE FROM call", 403, "sql_read_only"),
        ("DROP TABLE call", 403, "sql_read_only"),
        ("DROP VIEW calls", 403, "sql_read_only"),
        ("CREATE TABLE a (b)", 403, "sql_read_only"),
        ("CREATE TEMP TABLE a (b)", 403, "sql_read_only"),
        ("CREATE TEMP VIEW a AS SELECT 1", 403, "sql_read_only"),
        ("CREATE TEMP TRIGGER a AFTER INSERT ON call BEGIN SELECT 1; END", 403, "sql_read_only"),
        ("CREATE VIRTUAL TABLE a USING fts5(b)", 403, "sql_read_only"),
        ("CREATE INDEX a ON call (status)", 403, "sql_read_only"),
        ("ALTER TABLE call RENAME TO b", 403, "sql_read_only"),
        ("REINDEX", 403, "sql_read_only"),
        ("ANALYZE", 403, "sql_read_only"),
        ("BEGIN", 403, "sql_read_only"),
        ("BEGIN IMMEDIATE", 403, "sql_read_only"),
        ("SAVEPOINT a", 403, "sql_read_only"),
        ("ATTACH ':memory:' AS a", 403, "sql_read_only"),
        ("ATTACH 'FOLDER/attached' AS a", 403, "sql_read_only"),
        ("DETACH main", 403, "sql_read_only"),
        ("PRAGMA journal_mode = DELETE", 403, "sql_read_only"),
        ("PRAGMA journal_mode", 403, "sql_read_only"),
        ("PRAGMA query_only = OFF", 403, "sql_read_only"),
        ("PRAGMA writable_schema = ON", 403, "sql_read_only"),
        ("PRAGMA wal_checkpoint(TRUNCATE)", 403, "sql_read_only"),
        ("PRAGMA trusted_schema = 1", 403, "sql_read_only"),
        ("PRAGMA temp_store_directory = '/'", 403, "sql_read_only"),
        ("SELECT * FROM pragma_user_version", 403, "sql_read_only"),
        ("SELECT load_extension('/tmp/x.so')", 403, "sql_read_only"),
        ("SELECT LOAD_EXTENSION('/tmp/x.so')", 403, "sql_read_only"),
        ("VACUUM", None, None),
        ("VACUUM INTO 'FOLDER/copy'", None, None),
        ("UPDATE sqlite_master SET sql = ''", None, None),
        ("DELETE FROM sqlite_master", None, None),
        ("SELECT 1; DELETE FROM call", 400, "sql_error"),
        ("SELECT 1; SELECT 2", 400, "sql_error"),
        ("SELECT 1; VACUUM INTO 'FOLDER/copy'", 400, "sql_error"),
        ("SELEKT 1", 400, "sql_error"),
        ("SELECT * FROM nothing", 400, "sql_error"),
        ("SELECT ?", 400, "sql_error"),
        ("SELECT :a", 400, "sql_error"),
        ("SELECT 1 \x00 DELETE", 400, "sql_error"),
        ("", 400, "sql_error"),
        ("  -- nothing", 400, "sql_error"),
        (";", 400, "sql_error"),
        ("SELECT readfile('/etc/passwd')", 400, "sql_error"),
        ("SELECT writefile('FOLDER/written', 'a')", 400, "sql_error"),
        ("SELECT fts3_tokenizer('simple')", 403, "sql_read_only"),
        ("SELECT zeroblob(100000000)", 400, "sql_error"),
        ("SELECT " + ",".join("1" * 300), 400, "sql_error"),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, 400, "sql_error"),
        ("SELECT abs(-9223372036854775807 - 1)", 400, "sql_error"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_nothing_but_one_reading_statement(
    folder: Path, text: str, status: int | None, error: str | None
) -> None:
    """Refused with SQLite's own sentence, or as a write; nothing in the home has changed afterwards."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            await allowed(desk.vault, await issue(desk.vault))
            await desk.vault.journal.barrier()
            files = names(folder)
            before = stored(folder, "SELECT * FROM call"), stored(folder, "SELECT * FROM sqlite_master")
            answer = await query(desk, text.replace("FOLDER", str(folder)))
            assert answer.status in ((400, 403) if status is None else (status,)), answer.body
            assert error is None or code(answer) == error
            assert answer.json["error"]["message"]
            after = stored(folder, "SELECT * FROM call"), stored(folder, "SELECT * FROM sqlite_master")
            assert after == before
            assert names(folder) == files
            await allowed(desk.vault, await issue(desk.vault))  # the journal goes on

    run(main())


@pytest.mark.parametrize(
    "body", [b"{}", b'{"query": 5}', b'{"query": "SELECT 1", "colour": 1}', b"SELECT 1", b""]
)
def test_what_is_no_question(folder: Path, body: bytes) -> None:
    """400 before a connection is opened."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            answer = await desk.sees("POST", "/sql", body=body)
            assert (answer.status, code(answer)) == (400, "invalid_request")

    run(main())


COUNT = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT {}) SELECT {} FROM c"


@pytest.mark.parametrize(
    ("text", "there"),
    [
        (COUNT.format(10_000, "x"), True),
        (COUNT.format(10_001, "x"), False),
        (COUNT.format(16, "hex(zeroblob(500000))"), True),
        (COUNT.format(17, "hex(zeroblob(500000))"), False),
        (COUNT.format(2000, "zeroblob(10000)"), False),
    ],
)
def test_rows_and_bytes_are_bounded(folder: Path, text: str, there: bool) -> None:
    """What is too much is refused whole: half an answer would be taken for all of it."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            answer = await query(desk, text)
            assert answer.status == (200 if there else 400)
            assert there or code(answer) == "sql_too_large"

    run(main())


def test_a_statement_that_does_not_end_is_ended_and_holds_up_nobody(folder: Path) -> None:
    """Calls are decided and recorded all the while; afterwards the log can be truncated."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            desk.sql.deadline_s = 1.0
            grant = await issue(desk.vault)
            endless = COUNT.format(10**12, "count(*)")
            # The machine may be busy with others; a statement that holds calls up does so every time.
            for _ in range(3):
                began = time.monotonic()
                running = [asyncio.create_task(query(desk, endless)) for _ in range(2)]
                worst = 0.0
                while not all(task.done() for task in running):
                    step = time.monotonic()
                    await allowed(desk.vault, grant, 1)
                    await asyncio.sleep(0.005)
                    worst = max(worst, time.monotonic() - step)
                for task in running:
                    assert (task.result().status, code(task.result())) == (400, "sql_timeout")
                assert 0.9 < time.monotonic() - began < 5
                if worst < 0.25:
                    break
            assert worst < 0.25
            async with desk.vault.journal.database.writer.execute(
                "PRAGMA wal_checkpoint(TRUNCATE)"
            ) as cursor:
                assert await cursor.fetchone() == (0, 0, 0)

    run(main())


def test_stopping_does_not_wait_for_a_statement(folder: Path) -> None:
    """The daemon's exit joins its threads: one that reads on would hold it up for half a minute."""

    async def main() -> float:
        async with desk_in(folder) as desk:
            asking = asyncio.create_task(query(desk, COUNT.format(10**12, "count(*)")))
            await asyncio.sleep(0.2)
        began = time.monotonic()
        await asyncio.get_running_loop().shutdown_default_executor()
        assert (await asking).status in (0, 400)
        return time.monotonic() - began

    assert run(main()) < 2


def test_two_at_once_and_the_rest_in_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask."""
    running, most = 0, 0

    def watched(self: Any, _connection: Any) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return b'{"columns":[],"rows":[]}'

    monkeypatch.setattr(sql_module._Statement, "run", watched)

    async def main() -> None:
        async with desk_in(folder) as desk:
            answers = await asyncio.gather(*(query(desk, "SELECT 1") for _ in range(10)))
            assert {answer.status for answer in answers} == {200}

    run(main())
    assert most == 2
