"""Run by the tests: first use, killed (kill -9) at every step that it takes, each time in a new folder.

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
from pathlib import Path
from typing import Any

import aiosqlite

from kbctl.errors import KbctlError
from kbctld.store import anchor
from tests.store.support import journal_in, key_statement, opened


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
    module: Any = anchor
    for name in ("open", "pwrite", "fsync"):
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


def killed(folder: Path, step: int) -> bool:
    """Whether first use came to this step and died there."""
    folder.mkdir()
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


def main() -> None:
    os.umask(0o077)
    root = Path(sys.argv[1])
    said: dict[str, list[int]] = {}
    step = 1
    while killed(root / str(step), step):
        said.setdefault(asyncio.run(next_start(root / str(step))), []).append(step)
        step += 1
    print(json.dumps({"steps": step - 1, "said": said}))  # noqa: T201


if __name__ == "__main__":
    main()
