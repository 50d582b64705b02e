"""What the daemon does for a call, counted and not timed: the same on any machine, however busy it is.

What must stay true: only the daemon's own code counts, on whichever thread it runs; a loop over something
that grew shows in a count whether it stands in Python or in SQL.
"""

import asyncio
import sqlite3
import sys
import threading
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import median_low
from types import CodeType, FrameType
from typing import Any

import aiosqlite

import kbctld

_READ_BYTES = 4096
"""Its own 256 KiB would be nearly all that a call takes."""
_PEAK_ROUNDS = 3
_OURS = str(Path(kbctld.__file__).parent)
_MONITORING: Any = getattr(sys, "monitoring", None)
"""PEP 669. From Python 3.12 on a trace function hears of a part of the instructions only."""


class CountedLoop(asyncio.SelectorEventLoop):
    """The standard library's loop: uvloop does not tell how often it turns. It reads into small buffers."""

    turns = 0

    def _make_socket_transport(self, *args: Any, **options: Any) -> Any:
        transport = super()._make_socket_transport(*args, **options)  # type: ignore[misc]
        transport.max_size = _READ_BYTES
        return transport

    def _run_once(self) -> None:
        self.turns += 1
        super()._run_once()  # type: ignore[misc]  # its own, and stable since 3.4


@dataclass(slots=True)
class Work:
    """What one call took.

    Attributes:
        instructions: of Python's machine, in files of the daemon.
        sql_steps: of SQLite's machine, the reader's and the writer's; every row that is read takes some.
        loop_turns: of the event loop, vendor and agent included.
        peak_bytes: how much more memory was taken at once than before.
        statements: what SQLite was told, values and all; not compared.
    """

    instructions: int = 0
    sql_steps: int = 0
    loop_turns: int = 0
    peak_bytes: int = 0
    statements: list[str] = field(default_factory=list)

    def over(self, other: "Work") -> dict[str, float]:
        """Each count as a multiple of the other's."""
        return {name: getattr(self, name) / getattr(other, name) for name in _COUNTS}

    def scans(self, connection: sqlite3.Connection) -> list[str]:
        """How the statements would read a whole table or index."""
        found = []
        for sql in dict.fromkeys(self.statements):
            if sql.startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "\n", "WITH")):
                plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()
                found += [f"{step[3]}: {sql}" for step in plan if _reads_all(step[3])]
        return found


_COUNTS = [each.name for each in fields(Work) if each.name != "statements"]


def _reads_all(step: str) -> bool:
    # What a statement was given as a list is as long as what was asked for.
    return step.startswith("SCAN") and "json_each" not in step and "CONSTANT ROW" not in step


class Counter:
    """Counts while it is asked to: what a ``CountedLoop`` runs, and threads that ``counting`` saw start."""

    def __init__(self) -> None:
        self._work = Work()
        self._on = False

    async def watch(self, *connections: aiosqlite.Connection) -> None:
        """Count what these do, too."""
        for connection in connections:
            await connection.set_progress_handler(self._sql_step, 1)
            await connection.set_trace_callback(self._statement)

    async def count(self, call: Callable[[], Awaitable[object]], rounds: int = 5) -> Work:
        """The least of each count over some rounds: what is more is not the call's.

        Of the loop's turns the median: two events that chance brings in one turn make one less of them.

        Args:
            call: made once before, so that nothing is made for the first time.
            rounds: how often it is counted.
        """
        await call()
        every = [await self._counted(call) for _ in range(rounds)]
        least = Work(statements=every[-1].statements)
        for name in _COUNTS:
            setattr(least, name, min(getattr(each, name) for each in every))
        least.loop_turns = median_low([each.loop_turns for each in every])
        least.peak_bytes = min([await _peak_bytes(call) for _ in range(_PEAK_ROUNDS)])
        return least

    async def _counted(self, call: Callable[[], Awaitable[object]]) -> Work:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CountedLoop)
        self._work, self._on = Work(), True
        turned, before = loop.turns, sys.gettrace()
        if not _MONITORING:
            sys.settrace(self._enter)  # sees what is entered or resumed from here on
        try:
            await call()
        finally:
            if not _MONITORING:
                sys.settrace(before)
            self._on = False
        self._work.loop_turns = loop.turns - turned
        return self._work

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of instructions, on threads that begin within, too."""
        if _MONITORING:
            tool, instruction = _MONITORING.PROFILER_ID, _MONITORING.events.INSTRUCTION
            _MONITORING.use_tool_id(tool, "work")
            _MONITORING.register_callback(tool, instruction, self._executed)
            _MONITORING.set_events(tool, instruction)
        else:
            threading.settrace(self._enter)
        try:
            yield
        finally:
            if _MONITORING:
                _MONITORING.set_events(tool, 0)
                _MONITORING.free_tool_id(tool)
            else:
                threading.settrace(None)

    def _executed(self, code: CodeType, _offset: int) -> object:
        if not code.co_filename.startswith(_OURS):
            return _MONITORING.DISABLE
        self._work.instructions += self._on
        return None

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        """A trace function: whether this frame's instructions count."""
        if not self._on or not frame.f_code.co_filename.startswith(_OURS):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._instruction

    def _instruction(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "opcode":
            self._work.instructions += 1
        return self._instruction

    def _sql_step(self) -> int:
        self._work.sql_steps += self._on
        return 0

    def _statement(self, sql: str) -> None:
        if self._on:
            self._work.statements.append(sql)


async def _peak_bytes(call: Callable[[], Awaitable[object]]) -> int:
    tracemalloc.start()
    try:
        await call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@contextmanager
def counting() -> Iterator[Counter]:
    """A counter; the database is opened within, for its threads to be seen."""
    counter = Counter()
    with counter.listening():
        yield counter
