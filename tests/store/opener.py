"""Run by the tests: first use, killed (kill -9) at every step that it takes, each time in a new folder.

With a number behind the folder: the first start on a database of that schema instead.

Prints one JSON object: how many steps there are, and what the next start said after each kill.
A process of its own, because it forks.
"""

import asyncio
import json
import os
import signal
import sqlite3
import sys
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite

from kbctl.errors import KbctlError
from kbctld import durable
from kbctld.store import anchor
from kbctld.store.database import APPLICATION_ID, migrations
from tests.store.support import NOW, anchor_of, database_of, journal_in, key_statement, opened


def die_at(step: int) -> None:
    """Let this process kill itself before its n-th touch of the disk."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)

    connection: Any = aiosqlite.Connection
    execute = connection._execute

    async def counted(self: aiosqlite.Connection, *args: Any, **options: Any) -> Any:
        count()
        return await execute(self, *args, **options)

    async def counted_script(self: aiosqlite.Connection, sql: str) -> Any:
        # Inside the migration, too: its statements one by one, still one transaction.
        pending = ""
        for line in sql.splitlines(keepends=True):
            pending += line
            if sqlite3.complete_statement(pending):
                await self.execute(pending)
                pending = ""
        assert not pending.strip()

    connection._execute = counted
    connection.executescript = counted_script
    touching: list[tuple[Any, str]] = [(anchor, "open"), (anchor, "pwrite"), (durable, "fsync")]
    for module, name in touching:
        real = getattr(os, name)

        def touched(*args: Any, _real: Any = real, **options: Any) -> Any:
            count()
            return _real(*args, **options)

        module.os = _Os(module.os, name, touched)


class _Os:
    """The os module with one function replaced."""

    def __init__(self, real: Any, name: str, function: Any) -> None:
        self._real = real
        setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def first_use(folder: Path) -> None:
    async with opened(folder):
        pass


async def next_start(folder: Path) -> str:
    """Open, use, open again."""
    try:
        async with journal_in(folder) as journal:
            await journal.change([key_statement(1)])
        async with opened(folder) as database:
            return f"call {database.height.call_no}, change {database.height.changes}"
    except KbctlError as error:
        return error.code


def killed(folder: Path, step: int, schema: int) -> bool:
    """Whether the start came to this step and died there."""
    folder.mkdir()
    if schema:
        make_old(folder, schema)
    child = os.fork()
    if child == 0:
        die_at(step)
        try:
            asyncio.run(first_use(folder))
        except Exception:  # noqa: BLE001 - any is a finding
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


def make_old(folder: Path, schema: int) -> None:
    """A database as a kbctl of that schema left it: a key, and a call that had not ended."""
    with closing(sqlite3.connect(database_of(folder), isolation_level=None)) as old:
        old.execute("PRAGMA journal_mode = WAL")
        for number, sql in enumerate(migrations()[:schema], start=1):
            old.executescript(f"BEGIN; {sql} PRAGMA user_version = {number}; COMMIT;")
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute(*key_statement(7, label="tenant:acme"))
        old.execute(
            "INSERT INTO call (no, call_id, ts_ns, key_no, amount_nano, outcome, policy_check_result)"
            " VALUES (1, 'call_1', ?, 7, 5, 'pending', 'allowed')",
            (NOW,),
        )
        old.execute("UPDATE meta SET value = 1 WHERE key = 'changes'")
    beside = anchor.Anchor(anchor_of(folder))
    beside.reset(anchor.Height(1, 1))
    beside.close()


def kept(folder: Path) -> str:
    """Whether all under ``backups`` are whole databases of the schemas that their names say."""
    told = []
    for copy in sorted((folder / "backups").iterdir()):
        with closing(sqlite3.connect(f"{copy.as_uri()}?mode=ro", uri=True)) as opened_copy:
            sound = opened_copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            version = opened_copy.execute("PRAGMA user_version").fetchone()[0]
            calls = opened_copy.execute("SELECT count(*) FROM call").fetchone()[0]
        told.append(copy.name.startswith(f"kbctl-schema-{version}-call-1-") and sound and calls == 1)
    return "a whole copy" if told and all(told) else f"{told}"


def main() -> None:
    os.umask(0o077)
    root = Path(sys.argv[1])
    schema = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    said: dict[str, list[int]] = {}
    step = 1
    while killed(root / str(step), step, schema):
        word = asyncio.run(next_start(root / str(step)))
        if schema:
            word += f", {kept(root / str(step))}"
        said.setdefault(word, []).append(step)
        step += 1
    print(json.dumps({"steps": step - 1, "said": said}))  # noqa: T201


if __name__ == "__main__":
    main()
