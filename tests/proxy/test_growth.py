"""What a call costs does not grow with what is stored: keys, rows, tenants, lists, and hardly with parents.

Counted, not timed: instructions, steps of SQLite, turns of the loop, memory. `python -m tests.bench growth`
is the same by the clock, with a million keys and ten million rows.
"""

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kbctl.paths import Home
from kbctld.core import roster
from kbctld.core.grant import Grant
from kbctld.core.ledger import NS_PER_DAY
from kbctld.core.pace import read_rate
from kbctld.core.roster import Roster
from kbctld.store import queries
from tests.bench.stock import fill, fill_calls, vault_key
from tests.support.loop import run
from tests.support.work import CountedLoop, Counter, Work, counting
from tests.support.world import World, open_world

FLOOR = 1.2
"""How much more a call may take with all that is stored than with next to nothing."""
FEW, MANY = 10, 20_000
ROWS = 200_000
_PARENT_TAKES = 0.065
"""Of what a call with one parent takes, one more, in instructions."""
_BALANCES_STEPS = 80
"""Of SQLite: its balance, once for the request and once for the money."""


Stock = Callable[[int, int], Path]
Measured = Callable[[World, Counter], Awaitable[Work]]


@pytest.fixture(scope="module")
def stock() -> Iterator[Stock]:
    """Gives a folder with so many keys and calls of them, as a daemon would have left it two days ago."""
    made: dict[tuple[int, int], Path] = {}
    before = os.umask(0o077)

    def stocked(keys: int, rows: int) -> Path:
        if (keys, rows) not in made:
            folder = made[keys, rows] = Path(tempfile.mkdtemp(prefix="kb-"))
            fill(Home(folder), keys, time.time_ns(), lambda _: None)
            # Of the last day a key's first use reads its calls back, to know their retries.
            fill_calls(Home(folder), rows, keys, time.time_ns() - 2 * NS_PER_DAY, lambda _: None)
        return made[keys, rows]

    yield stocked
    os.umask(before)
    for folder in made.values():
        shutil.rmtree(folder)


def measure(folder: Path, work: Measured) -> Work:
    """What that gives, in a world over this folder."""

    async def main() -> Work:
        with counting() as counter:
            async with open_world(folder) as world:
                await counter.watch(world.database.writer, world.database.reader)
                return await work(world, counter)

    return run(main(), loop=CountedLoop)


async def usual(world: World, counter: Counter, **terms: Any) -> Work:
    """A call of a key that is in use."""
    _, key = await world.issue(**terms)
    return await again_and_again(world, counter, key)


async def again_and_again(world: World, counter: Counter, key: str) -> Work:
    agent = await world.connect()
    raw = world.request(key=key)

    async def call() -> None:
        await agent.send(raw)
        reply = await agent.reply("POST")
        assert reply.status == 200, reply
        await ended(world)

    work = await counter.count(call)
    agent.close()
    return work


async def first(world: World, counter: Counter) -> Work:
    """The first call of a key since the start."""
    numbers = iter(range(1, FEW + 1))

    async def call() -> None:
        reply = await world.ask(world.request(key=vault_key(next(numbers))))
        assert reply.status == 200, reply
        await ended(world)

    return await counter.count(call)


async def ended(world: World) -> None:
    """Wait until the end of the call is on disk, too."""
    await world.calm()
    await world.vault.journal.barrier()


def flat(many: Work, few: Work, most: float = FLOOR) -> None:
    grown = {name: ratio for name, ratio in many.over(few).items() if ratio > most}
    assert not grown, (grown, many, few)


# --- keys and rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [usual, first])
def test_a_call_costs_the_same_with_10_keys_and_with_20_000(stock: Stock, work: Measured) -> None:
    """With their tenants and labels, a thousand and five hundred."""
    flat(measure(stock(MANY, 0), work), measure(stock(FEW, 0), work))


def test_a_call_costs_the_same_with_20_000_keys_in_memory(stock: Stock) -> None:
    flat(in_memory(stock(MANY, 0)), in_memory(stock(FEW, 0)))


def in_memory(folder: Path) -> Work:
    """A call of one of very many keys that are all in use, of a tenant and a label that many have."""

    async def work(world: World, counter: Counter) -> Work:
        numbers = [row[0] for row in await world.database.reader.execute_fetchall("SELECT no FROM vault_key")]
        await world.vault._enter(await world.vault._kept((), numbers))
        return await usual(world, counter, label="tenant:t0001/run:r001", tenant="t0001")

    return measure(folder, work)


@pytest.mark.parametrize("work", [usual, first])
def test_a_call_costs_the_same_with_no_row_and_with_200_000(stock: Stock, work: Measured) -> None:
    flat(measure(stock(FEW, ROWS), work), measure(stock(FEW, 0), work))


@pytest.mark.parametrize("work", [usual, first])
def test_no_statement_of_a_call_reads_a_whole_table(stock: Stock, work: Measured) -> None:
    done = measure(stock(FEW, 0), work)
    assert done.statements
    assert not scans(done, stock(FEW, 0))


def scans(work: Work, folder: Path) -> list[str]:
    """What of it would read a whole table."""
    with closing(sqlite3.connect(folder / "kbctl.db")) as stranger:
        return work.scans(stranger)


# --- what one key has -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("allow", "GET /v1/things/{}"),
        ("allow", "POST /v1/things/{}/*"),
        ("allow", "POST /v1/*/{}"),
        ("deny", "POST /v1/payment_intents/{}/*"),
    ],
)
def test_a_call_costs_the_same_with_1_line_in_a_list_and_with_200(
    tmp_path: Path, kind: str, line: str
) -> None:
    def listed(lines: int) -> Work:
        listed = [line.format(number) for number in range(lines - 1)]
        listed.append("payment_intents.create" if kind == "allow" else "DELETE /v1/customers/*")
        folder = tmp_path / str(lines)
        folder.mkdir(mode=0o700)
        return measure(folder, lambda world, counter: usual(world, counter, **{kind: tuple(listed)}))

    flat(listed(200), listed(1))


def test_a_parent_costs_no_more_for_those_above_it(tmp_path: Path) -> None:
    """Each has caps, requests and a rate that are asked for every call, and a balance that is kept.

    So a call of a key with eight takes more than of a key with one, but the eighth no more than the second:
    were anything asked of each parent's parents, it would be 36 times for eight of them.
    """

    def derived(depth: int) -> Work:
        async def work(world: World, counter: Counter) -> Work:
            limits: dict[str, Any] = {"rate": read_rate("1000/s"), "daily_requests": 10_000}
            grant, key = await world.issue(**limits)
            for _ in range(depth):
                grant, key = await world.issue(parent=grant, **limits)
            return await again_and_again(world, counter, key)

        folder = tmp_path / str(depth)
        folder.mkdir(mode=0o700)
        return measure(folder, work)

    one, four, eight = derived(1), derived(4), derived(8)

    assert eight.loop_turns <= one.loop_turns * FLOOR
    assert eight.peak_bytes <= one.peak_bytes * FLOOR
    for count in ("instructions", "sql_steps"):
        least, some, most = (getattr(work, count) for work in (one, four, eight))
        assert (most - some) / 4 <= (some - least) / 3 * 1.05, (count, least, some, most)
    assert (eight.instructions - one.instructions) / 7 <= one.instructions * _PARENT_TAKES
    assert (eight.sql_steps - one.sql_steps) / 7 <= _BALANCES_STEPS


# --- the controls -----------------------------------------------------------------------------------


def test_control_a_look_at_every_key_is_seen(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(self: Roster, digest: bytes) -> Grant | None:
        for grant in self:
            if grant.digest == digest:
                return grant
        return None

    find.__code__ = find.__code__.replace(co_filename=str(roster.__file__))  # as if it stood there
    monkeypatch.setattr(Roster, "find", find)

    assert in_memory(stock(MANY, 0)).over(in_memory(stock(FEW, 0)))["instructions"] > 10


def test_control_a_look_at_every_row_is_seen(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    naive = queries.CALLS_TO_REMEMBER.replace("INDEXED BY call_open", "NOT INDEXED")
    assert naive != queries.CALLS_TO_REMEMBER
    monkeypatch.setattr(queries, "CALLS_TO_REMEMBER", naive)

    many, few = measure(stock(FEW, ROWS), first), measure(stock(FEW, 0), first)
    assert many.over(few)["sql_steps"] > 10
    assert scans(few, stock(FEW, 0))


def test_control_a_copy_of_all_keys_is_seen(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one instruction does it all, memory tells."""
    real = Roster.find

    def find(self: Roster, digest: bytes) -> Grant | None:
        return real(self, digest) if list(self) else None

    monkeypatch.setattr(Roster, "find", find)

    assert in_memory(stock(MANY, 0)).over(in_memory(stock(FEW, 0)))["peak_bytes"] > FLOOR
