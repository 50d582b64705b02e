"""Every kind of fault, how it is injected, and what a round of it looks like.

A round is: a new family of keys, agents at work, the fault, a restart where the daemon is gone, the agents
again until their caps are full, and then the laws. A kind that this machine can't inject says why.
"""

import asyncio
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.drills.daemon import POINTS
from tests.drills.judge import Family, Figures
from tests.drills.scene import Stage, cents_of, charge, connect
from tests.drills.vendor import BEHAVIOURS

CALM = ("ok",) * 8 + ("slow",) * 3 + ("declined",)
DAY_S = 86_400

Round = Callable[[Stage, int], Awaitable[Figures]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault.

    Attributes:
        name: ``kill:in-flight``.
        what: in words.
        round: injects some and checks the laws; is given how many are still wanted.
        share: of all faults, in parts of the whole.
        missing: why it can't be injected here; empty where it can.
        tmpfs: MiB of the small file system that it wants for its home; 0 for none.
    """

    name: str
    what: str
    round: Round
    share: float = 1.0
    missing: str = ""
    tmpfs: int = 0


# --- the daemon dies --------------------------------------------------------------------------------------


def _kill(point: str) -> Round:
    starts, stops = ("opened", "loading"), ("draining", "closing")
    batches = dict.fromkeys(
        ("row-queued", "before-commit", "after-commit", "before-anchor", "after-anchor"), 12
    )
    seldom = batches | {"issuing": 3, "revoking": 1, "revoked": 1}

    async def round_(stage: Stage, _wanted: int) -> Figures:
        nth = 1 if point in (*starts, *stops) else 1 + stage.dice.randrange(seldom.get(point, 50))
        if stage.pid is None:
            await stage.start()
        family = await stage.family(80)
        assert family is not None
        if point in starts:
            await _disturbed(stage, family, _after(stage, 0.05, signal.SIGKILL))
            await stage.gone()
            hit = not await stage.start(point=point, nth=1) and not stage.refusal
        else:
            await stage.stop()
            assert await stage.start(point=point, nth=nth), stage.refusal
            fault = _after(stage, 0.1, signal.SIGTERM) if point in stops else _operate(stage, family)
            await _disturbed(stage, family, fault)
            if point in stops or not stage.alive():
                await stage.gone()
            hit = stage.pid is None
            await stage.stop(signal.SIGKILL)
        assert await stage.start(), stage.refusal
        found = await _aftermath(stage, family)
        found.faults = int(hit)
        return found

    return round_


async def _kill_random(stage: Stage, _wanted: int) -> Figures:
    family = await stage.family(80)
    assert family is not None
    await _disturbed(stage, family, _after(stage, stage.dice.uniform(0.0, 0.15), signal.SIGKILL))
    await stage.gone()
    assert await stage.start(), stage.refusal
    found = await _aftermath(stage, family)
    found.faults = 1
    return found


async def _kill_after_revoke(stage: Stage, _wanted: int) -> Figures:
    """In the moment in which a revocation is acknowledged."""
    family = await stage.family(80)
    assert family is not None

    async def revoke() -> None:
        await asyncio.sleep(stage.dice.uniform(0.0, 0.1))
        assert await stage.revoke(family, stage.dice.choice(family.keys))
        os.kill(stage.pid or 0, signal.SIGKILL)

    await _disturbed(stage, family, revoke())
    await stage.gone()
    assert await stage.start(), stage.refusal
    found = await _aftermath(stage, family)
    found.faults = 1
    return found


async def _sigterm(stage: Stage, _wanted: int) -> Figures:
    """Every call that was begun ends; none is left unknown by a stop that had time."""
    family = await stage.family(80)
    assert family is not None
    await _disturbed(stage, family, _after(stage, stage.dice.uniform(0.0, 0.15), signal.SIGTERM))
    await stage.gone()
    assert await stage.start(), stage.refusal
    found = await _aftermath(stage, family)
    found.faults = 1
    return found


async def _sigterm_then_kill(stage: Stage, _wanted: int) -> Figures:
    family = await stage.family(80)
    assert family is not None

    async def both() -> None:
        await _after(stage, 0.05, signal.SIGTERM)
        await _after(stage, stage.dice.uniform(0.0, 0.05), signal.SIGKILL)

    await _disturbed(stage, family, both())
    await stage.gone()
    assert await stage.start(), stage.refusal
    found = await _aftermath(stage, family)
    found.faults = 1
    return found


async def _after(stage: Stage, seconds: float, number: int) -> None:
    await asyncio.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(stage.pid or 0, number) if stage.pid else None


async def _operate(stage: Stage, family: Family) -> None:
    """An operator at work beside the agents: issues, and revokes a key that is being used."""
    await asyncio.sleep(stage.dice.uniform(0.0, 0.04))
    for _ in range(3):
        await stage.ask("POST", "/vault/keys", {"daily_usd_cap": 1, "tenant": f"{family.tenant}x"})
    await stage.revoke(family, family.keys[-1])


async def _disturbed(stage: Stage, family: Family, fault: Awaitable[None]) -> None:
    """Agents at work, and a fault meanwhile."""

    async def injected() -> None:
        await fault

    await asyncio.gather(stage.load(family, 90, CALM), injected())


async def _aftermath(stage: Stage, family: Family) -> Figures:
    """After a restart: what had no answer is tried again, the caps are filled up, the laws are checked."""
    open_ends = [name for key in family.keys for name in key.asked if family.answered.get(name, 0) == 0]
    await stage.load(family, 40, ("ok",), names=open_ends, clients=16)
    await stage.try_revoked(family)
    return await stage.check(family)


# --- the vendor misbehaves --------------------------------------------------------------------------------


def _behave(behaviour: str) -> Round:
    async def round_(stage: Stage, wanted: int) -> Figures:
        calls = max(min(wanted * 2, 400), 20)
        # Some of the calls don't fit: the caps are small here, too.
        family = await stage.family(calls)
        assert family is not None
        await stage.load(family, calls, (behaviour,), clients=48)
        await stage.calm()
        await stage.stop(signal.SIGKILL)
        assert await stage.start(), stage.refusal
        stage.book.update(await asyncio.to_thread(stage.vendor.book))
        faults = sum(name in stage.book for key in family.keys for name in key.asked)
        found = await _aftermath(stage, family)
        found.faults = faults
        return found

    return round_


def _door(how: str) -> Round:
    async def round_(stage: Stage, _wanted: int) -> Figures:
        family = await stage.family(80)
        assert family is not None
        times = 4

        async def shut() -> None:
            for _ in range(times):
                await asyncio.to_thread(stage.vendor.shut, how, 0.03)
                await asyncio.sleep(0.06)

        await asyncio.gather(stage.load(family, 120, ("close",), clients=16), shut())
        found = await _aftermath(stage, family)
        found.faults = times
        return found

    return round_


async def _stopped_vendor(stage: Stage, _wanted: int) -> Figures:
    family = await stage.family(80)
    assert family is not None

    async def stop() -> None:
        await asyncio.sleep(0.03)
        os.kill(stage.vendor.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(stage.dice.choice((0.1, 1.0)))
        finally:
            os.kill(stage.vendor.pid, signal.SIGCONT)

    await _disturbed(stage, family, stop())
    found = await _aftermath(stage, family)
    found.faults = 1
    return found


# --- the agent misbehaves ---------------------------------------------------------------------------------


def _agent(cut: int, *, waits: bool) -> Round:
    """It hangs up: with so many bytes of its request unsent, at once or a moment later."""

    async def round_(stage: Stage, wanted: int) -> Figures:
        calls = max(min(wanted, 200), 10)
        family = await stage.family(calls)
        assert family is not None

        async def hang_up(number: int) -> None:
            key = stage.dice.choice(family.keys)
            name = f"slow.{family.tenant}-{10**7 + number}"
            key.asked.add(name)
            agent = await connect(stage.port)
            if agent is None:
                return
            agent.transport.write(charge(stage.port, key.secret, name, cents_of(name), cut=cut))
            await asyncio.sleep(stage.dice.uniform(0.0, 0.03) if waits else 0.0)
            agent.transport.abort()

        await asyncio.gather(*(hang_up(number) for number in range(calls)))
        found = await _aftermath(stage, family)
        found.faults = calls
        return found

    return round_


# --- the disk ---------------------------------------------------------------------------------------------


async def _full(stage: Stage, _wanted: int) -> Figures:
    """To the last block, while calls are under way; then there is room again."""
    family = await stage.family(80)
    assert family is not None
    ballast = stage.folder / "ballast"

    async def fill() -> None:
        await asyncio.sleep(stage.dice.uniform(0.01, 0.08))
        with suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(b"x" * 1024 * 1024)
        # A log that must grow finds no block: some commits still fit the one that is there.
        await asyncio.sleep(0.3)
        ballast.unlink()

    await asyncio.gather(stage.load(family, 300, CALM), fill())
    await asyncio.sleep(0.6)  # what it believes of the room is as old as that
    if stage.dice.random() < 0.5:
        await stage.stop(signal.SIGKILL)
        assert await stage.start(), stage.refusal
    found = await _aftermath(stage, family)
    found.faults = 1
    return found


def _io_error(*injections: str) -> Round:
    async def round_(stage: Stage, _wanted: int) -> Figures:
        await stage.stop()
        nth = 8 + stage.dice.randrange(30)
        inject = stage.dice.choice(injections).format(nth)
        served = await stage.start_traced(inject)
        family = await stage.family(60) if served else None
        if family is not None:
            await stage.load(family, 60, CALM)
            await stage.load(family, 20, ("ok",))  # what is asked after it must not be lost either
        if served:
            await stage.stop(signal.SIGKILL)
        faults = stage.injected()
        assert await stage.start(), stage.refusal
        family = family or await stage.family(60)
        assert family is not None
        found = await _aftermath(stage, family)
        found.faults = faults
        return found

    return round_


async def _read_only(stage: Stage, _wanted: int) -> Figures:
    """A home that was remounted read-only: nothing is served from it, nothing is lost by it."""
    family = await stage.family(60)
    assert family is not None
    await _disturbed(stage, family, _after(stage, 0.05, signal.SIGKILL))
    await stage.gone()
    _mount("-o", "remount,ro", str(stage.folder))
    served = await stage.start()
    if served:
        await stage.load(family, 20, ("ok",))
        await stage.stop(signal.SIGKILL)
    _mount("-o", "remount,rw", str(stage.folder))
    assert await stage.start(), stage.refusal
    found = await _aftermath(stage, family)
    found.faults = 1
    return found


async def _locked(stage: Stage, _wanted: int) -> Figures:
    """Another process holds the write lock, for less and for more than the daemon waits."""
    family = await stage.family(80)
    assert family is not None
    held_s = stage.dice.choice((0.05, 0.3, 1.3))

    def hold() -> None:
        with closing(sqlite3.connect(stage.folder / "kbctl.db", isolation_level=None, timeout=5)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            time.sleep(held_s)
            holder.execute("ROLLBACK")

    async def lock() -> None:
        await asyncio.sleep(0.03)
        await asyncio.to_thread(hold)

    await _disturbed(stage, family, lock())
    if stage.dice.random() < 0.5:
        await stage.stop(signal.SIGKILL)
        assert await stage.start(), stage.refusal
    found = await _aftermath(stage, family)
    found.faults = 1
    return found


def _mount(*how: str) -> None:
    subprocess.run(["mount", *how], check=True)


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False)


# --- the machine ------------------------------------------------------------------------------------------


async def _no_descriptors(stage: Stage, _wanted: int) -> Figures:
    """No file or socket can be opened for a while."""
    family = await stage.family(80)
    assert family is not None

    async def starve() -> None:
        await asyncio.sleep(0.02)
        pid = stage.pid or 0
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = _descriptors(pid)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(used - 2, 3), before[1]))
        await asyncio.sleep(0.25)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    await asyncio.gather(stage.load(family, 150, ("close", "close", "ok"), clients=16), starve())
    if stage.dice.random() < 0.3:
        await stage.stop(signal.SIGKILL)
        assert await stage.start(), stage.refusal
    found = await _aftermath(stage, family)
    found.faults = 1
    return found


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def noon_offset_s() -> int:
    """What makes it noon, so that a step over midnight is one wherever and whenever this runs."""
    return DAY_S // 2 - int(time.time()) % DAY_S


def _clock(*steps_s: int) -> Round:
    """The clock is set while agents spend what the day has left; the caps are for one day."""

    async def round_(stage: Stage, _wanted: int) -> Figures:
        family = await stage.family(60)
        assert family is not None
        base = noon_offset_s()
        for step_s in steps_s:
            await stage.load(family, 40, CALM)
            stage.clock.write_text(str(base + step_s))
            if stage.dice.random() < 0.4:
                await stage.stop(stage.dice.choice((signal.SIGKILL, signal.SIGTERM)))
                assert await stage.start(), stage.refusal
        await stage.load(family, 60, ("ok",))
        found = await _aftermath(stage, family)
        found.faults = len(steps_s)
        stage.clock.write_text(str(base))
        return found

    return round_


# --- the list ---------------------------------------------------------------------------------------------


def _may_mount() -> bool:
    if sys.platform != "linux" or os.getuid() != 0 or shutil.which("mount") is None:
        return False
    tried = subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return tried.returncode == 0 and subprocess.run(["umount", "/mnt"], check=False).returncode == 0


def _may_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return tried.returncode == 0


def kinds() -> list[Kind]:
    """All of them, in the order of the table."""
    trace = "" if _may_trace() else "needs strace, and the right to trace"
    mount = "" if _may_mount() else "needs to mount a tmpfs"
    linux = "" if sys.platform == "linux" else "needs Linux"
    found = [Kind(f"kill:{point}", f"kill -9: {what}", _kill(point), 0.4) for point, what in POINTS.items()]
    found += [
        Kind("kill:random", "kill -9 at any moment", _kill_random, 0.6),
        Kind("kill:revoke-acknowledged", "kill -9 as a revocation is acknowledged", _kill_after_revoke, 0.6),
        Kind("kill:draining-too-slow", "SIGTERM, and kill -9 while it drains", _sigterm_then_kill, 0.4),
        Kind("sigterm", "SIGTERM under load", _sigterm, 0.4),
    ]
    found += [
        Kind(f"vendor:{name}", f"the vendor: {name.replace('-', ' ')}", _behave(name), 4.0)
        for name in BEHAVIOURS
        if name not in ("ok", "slow", "close")
    ]
    found += [
        Kind("vendor:reset-accept", "a new connection is reset at once", _door("reset"), 0.8),
        Kind("vendor:port-shut", "nobody listens at the vendor", _door("shut"), 0.8),
        Kind("vendor:stopped", "the vendor's process stands still", _stopped_vendor, 0.3, linux),
        Kind("agent:half-request", "the agent hangs up in its body", _agent(9, waits=False), 2.0),
        Kind("agent:gone-at-once", "the agent hangs up after its body", _agent(0, waits=False), 2.0),
        Kind("agent:gone-later", "the agent hangs up before the answer", _agent(0, waits=True), 2.0),
        Kind("disk:full", "no block is free, and then again", _full, 0.3, mount, tmpfs=80),
        Kind("disk:fsync-error", "fdatasync fails", _io_error("fdatasync:error=EIO:when={}"), 0.2, trace),
        Kind(
            "disk:write-error",
            "a write fails: EIO, ENOSPC, EROFS",
            _io_error(*(f"pwrite64:error={name}:when={{}}" for name in ("EIO", "ENOSPC", "EROFS"))),
            0.2,
            trace,
        ),
        Kind("disk:read-only", "the home is read-only", _read_only, 0.2, mount, tmpfs=128),
        Kind("database:locked", "another process holds the database", _locked, 0.3),
        Kind("descriptors", "no file or socket can be opened", _no_descriptors, 0.3, linux),
        Kind("clock:back", "an hour back", _clock(-3600, 0), 0.4),
        Kind("clock:midnight-back", "a day back over midnight, and right again", _clock(-DAY_S, 0), 0.4),
        Kind("clock:midnight-ahead", "a day ahead over midnight, and right again", _clock(DAY_S, 0), 0.4),
        Kind(
            "clock:around-midnight",
            "to and fro over midnight by seconds",
            _clock(DAY_S // 2 - 2, DAY_S // 2 + 2, DAY_S // 2 - 2, 3 * DAY_S, 0),
            0.5,
        ),
    ]
    return found


@asynccontextmanager
async def home_of(kind: Kind, folder: Path) -> AsyncIterator[None]:
    """Its file system, where it wants a small one of its own."""
    if not kind.tmpfs:
        yield
        return
    size = f"size={kind.tmpfs}m,mode=700"
    _mount("-t", "tmpfs", "-o", size, "none", str(folder))
    try:
        yield
    finally:
        _unmount(folder)
