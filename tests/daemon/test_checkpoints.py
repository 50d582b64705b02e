"""Checkpoints: made by themselves, by a key of the secret store, also where that answers late."""

import asyncio
import base64
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kbctl.checkpoint import read_checkpoint, verifies
from kbctl.errors import Exit, KbctlError
from kbctld import checkpoints as module
from kbctld.checkpoints import ITEM, Checkpoints
from kbctld.secrets.secret import Secret
from kbctld.secrets.store import MemoryStore, SecretStore
from kbctld.store.journal import Journal
from tests.store.support import call, journal_in
from tests.support.loop import run


class Stuck(MemoryStore):
    """A keyring that does not answer until somebody unlocks it."""

    locked = True

    async def read(self, name: str) -> Secret | None:
        if self.locked:
            raise KbctlError("keyring_locked", "the keyring is locked", "unlock it", Exit.REFUSED)
        return await super().read(name)


@asynccontextmanager
async def keeping(
    folder: Path, store: SecretStore, made: list[str] | None = None
) -> AsyncIterator[tuple[Journal, Checkpoints]]:
    async with journal_in(folder) as journal:
        checkpoints = Checkpoints(
            store, journal.database, folder / "kbctl.checkpoints", ([] if made is None else made).append
        )
        try:
            yield journal, checkpoints
        finally:
            await checkpoints.close()


def test_the_key_is_made_once_and_kept(folder: Path) -> None:
    """Whoever is told of it is told once; the next start has the same one."""
    store, made = MemoryStore(), list[str]()

    async def main() -> list[str | None]:
        keys = []
        for _ in range(2):
            async with keeping(folder, store, made) as (_journal, checkpoints):
                await checkpoints.load()
                keys.append(checkpoints.key)
        return keys

    first, second = run(main())
    assert first == second
    assert made == [first]
    kept = run(store.read(ITEM))
    assert kept is not None
    assert len(base64.b64decode(kept.reveal())) == 32


def test_they_come_by_themselves_while_something_happens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many events, at the end, and never twice for the same end."""
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    monkeypatch.setattr(module, "EVERY_EVENTS", 5)
    path = folder / "kbctl.checkpoints"

    async def main() -> None:
        async with keeping(folder, MemoryStore()) as (journal, checkpoints):
            checkpoints.begin()
            await asyncio.sleep(0.05)
            assert not path.exists()
            for number in range(5):
                await journal.append(call(number))
            await asyncio.sleep(0.2)
            assert len(path.read_text().splitlines()) == 1
            await journal.append(call(5))
            await asyncio.sleep(0.1)
            assert len(path.read_text().splitlines()) == 1
            monkeypatch.setattr(module, "EVERY_S", 0.0)
            await asyncio.sleep(0.1)
            assert len(path.read_text().splitlines()) == 2
            await journal.append(call(6))

    run(main())
    lines = path.read_text().splitlines()
    assert [read_checkpoint(line).calls for line in lines][-1] == 7
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()

    async def again() -> None:
        async with keeping(folder, MemoryStore()) as (_journal, checkpoints):
            await checkpoints.load()
            checkpoints._written = 7
            checkpoints._write_if(due=True)

    run(again())
    assert path.read_bytes() == before


def test_a_store_that_answers_late_delays_them_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then there is nothing to sign with, and that is said."""
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    store = Stuck()

    async def main() -> None:
        async with keeping(folder, store) as (journal, checkpoints):
            checkpoints.begin()
            await journal.append(call(0))
            await asyncio.sleep(0.05)
            with pytest.raises(KbctlError, match="no key to sign with: the keyring is locked") as caught:
                checkpoints.now()
            assert caught.value.code == "audit_key_unavailable"
            store.locked = False
            await asyncio.sleep(0.1)
            made = checkpoints.now()
            assert made.calls == 1
            assert verifies(made.key, checkpoints.sign(b"x"), b"x")
            assert not verifies(made.key, checkpoints.sign(b"x"), b"y")

    run(main())


def test_an_item_that_is_no_key_is_not_written_over(folder: Path) -> None:
    """A new key in its place would make every checkpoint of before one of a stranger."""
    store = MemoryStore()

    async def main() -> None:
        await store.write(ITEM, Secret("no key"))
        async with keeping(folder, store) as (_journal, checkpoints):
            with pytest.raises(KbctlError) as caught:
                await checkpoints.load()
            assert (caught.value.code, caught.value.exit_status) == ("audit_key_damaged", Exit.INTEGRITY)
        kept = await store.read(ITEM)
        assert kept is not None
        assert kept.reveal() == "no key"

    run(main())


def test_a_torn_line_is_passed_over_and_an_old_past_is_set_aside(folder: Path) -> None:
    """A crash while one is written, and an operator who took an older database."""

    async def main() -> None:
        async with keeping(folder, MemoryStore()) as (journal, checkpoints):
            await checkpoints.load()
            assert checkpoints.newest() is None
            await journal.append(call(0))
            first = checkpoints.now()
            checkpoints.keep(first)
            checkpoints.set_verified(first)
            with checkpoints.path.open("a") as file:
                file.write(first.line[:50])
            assert checkpoints.newest() == first
            assert checkpoints.kept() == [first]
            assert checkpoints.verified() == first
            checkpoints.set_aside()
            assert (checkpoints.newest(), checkpoints.verified()) == (None, None)
            assert (folder / "kbctl.checkpoints.before").exists()
            checkpoints.set_aside()

    run(main())
