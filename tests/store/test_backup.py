"""D7, D8, D9: copies of a live database, and how they come back."""

import asyncio
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from kbctl.errors import Exit, KbctlError
from kbctld.store import journal as journals
from kbctld.store.anchor import Height
from kbctld.store.backup import Contents, back_up, restore
from kbctld.store.database import known_schema
from tests.store.support import (
    anchor_of,
    call,
    contents,
    database_of,
    journal_in,
    key_statement,
    opened,
    rows,
)
from tests.support.loop import run

STAMP = "20261121T000000Z"


def untold(_done: int, _pages: int) -> None:
    pass


def use(folder: Path, first: int = 0, calls: int = 3, *, keys: tuple[int, ...] = (1, 2)) -> None:
    async def main() -> None:
        async with journal_in(folder) as journal:
            await journal.change([key_statement(number) for number in keys])
            for number in range(first, first + calls):
                await journal.append(call(number, key_no=1))

    run(main())


def copied(folder: Path, file: Path, *, replace: bool = False) -> Contents:
    async def main() -> Contents:
        async with opened(folder) as database:
            return await back_up(database, file, replace=replace, told=untold)

    return run(main())


def put_back(folder: Path, file: Path) -> None:
    restore(file, database_of(folder), anchor_of(folder), stamp=STAMP)


def start(folder: Path, *, accept_rollback: bool = False) -> Height:
    async def main() -> Height:
        async with opened(folder, accept_rollback=accept_rollback) as database:
            return database.height

    return run(main())


# --- making one -------------------------------------------------------------------------------------------


def test_D8_a_copy_is_of_one_moment_however_much_is_written_meanwhile(folder: Path) -> None:
    """Call n refers to key n: a copy of two moments would have calls without their keys, or gaps."""
    file = folder / "copy.db"

    async def main() -> tuple[Contents, int]:
        async with journal_in(folder) as journal:
            over = asyncio.Event()
            written = 0

            async def write() -> None:
                nonlocal written
                while not over.is_set():
                    written += 1
                    await journal.change([key_statement(written)])
                    await journal.append(call(written, key_no=written, metadata='"' + "x" * 3000 + '"'))

            writing = asyncio.ensure_future(write())
            while written < 200:
                await asyncio.sleep(0.01)
            held = await back_up(journal.database, file, replace=False, told=untold)
            behind = written
            over.set()
            await writing
            return held, behind

    held, behind = run(main())
    assert 199 <= held.calls <= behind
    assert held.calls == held.height.call_no
    with closing(sqlite3.connect(file)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert copy.execute("PRAGMA foreign_key_check").fetchall() == []
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert [no for (no,) in copy.execute("SELECT no FROM call ORDER BY no")] == [
            *range(1, held.calls + 1)
        ]


def test_D8_a_copy_is_private_and_replaces_nothing_unasked(folder: Path, tmp_path: Path) -> None:
    use(folder)
    place = tmp_path / "elsewhere"
    place.mkdir()
    file = place / "copy.db"
    os.umask(0)
    held = copied(folder, file)
    assert (held.calls, held.keys, held.live, held.schema) == (3, 2, 2, known_schema())
    assert file.stat().st_mode & 0o777 == 0o600
    before = contents(place)
    with pytest.raises(KbctlError) as caught:
        copied(folder, file)
    assert (caught.value.code, caught.value.exit_status) == ("file_exists", Exit.REFUSED)
    assert contents(place) == before
    os.umask(0o077)
    use(folder, 3, keys=(3,))
    assert copied(folder, file, replace=True).calls == 6
    assert contents(place).keys() == {"copy.db"}


@pytest.mark.parametrize("link", [True, False])
def test_a_copy_follows_no_link(folder: Path, link: bool) -> None:
    """Whoever can write to the folder can't have another file written."""
    use(folder)
    victim, file = folder / "victim", folder / "copy.db"
    victim.write_text("mine")
    (file if link else folder / ".copy.db.part").symlink_to(victim)
    copied(folder, file, replace=True)
    assert victim.read_text() == "mine"
    assert not file.is_symlink()


@pytest.mark.parametrize("where", ["missing/copy.db", "file/copy.db"])
def test_a_copy_that_can_not_be_written_is_told(folder: Path, where: str) -> None:
    use(folder)
    (folder / "file").write_text("")
    before = contents(folder).keys()
    with pytest.raises(KbctlError) as caught:
        copied(folder, folder / where)
    assert caught.value.code == "file_unusable"
    assert contents(folder).keys() == before


def test_a_damaged_database_gives_no_copy(folder: Path) -> None:
    """It is damaged while it is open, so that no start has seen it."""
    use(folder, calls=400)

    async def main() -> None:
        async with journal_in(folder) as journal:
            size = database_of(folder).stat().st_size
            with database_of(folder).open("r+b") as file:
                for page in range(4, size // 4096):
                    file.seek(page * 4096)
                    file.write(b"\xee" * 64)
            with pytest.raises(KbctlError):
                await back_up(journal.database, folder / "copy.db", replace=False, told=untold)

    run(main())
    assert not (folder / "copy.db").exists()
    assert not (folder / ".copy.db.part").exists()


def test_D7_a_copy_that_keeps_the_log_open_for_too_long_is_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is worth more than the copy: nothing of it is left, and the next one can be made."""
    monkeypatch.setattr(journals, "LOG_BYTES", 100_000)
    monkeypatch.setattr(journals, "LOG_BYTES_MAX", 200_000)
    monkeypatch.setattr(journals, "_LOG_LOOK_S", 0.0)
    use(folder, calls=2000)
    log = folder / "kbctl.db-wal"

    async def main() -> None:
        async with journal_in(folder) as journal:
            loop, longest = asyncio.get_running_loop(), 0

            def slowly(_done: int, _pages: int) -> None:
                asyncio.run_coroutine_threadsafe(more(), loop).result(20)

            async def more() -> None:
                nonlocal longest
                for number in range(40):
                    await journal.append(call(number, metadata='"' + "x" * 5000 + '"'))
                longest = max(longest, log.stat().st_size)

            monkeypatch.setattr("kbctld.store.backup._PAGES_A_STEP", 1)
            with pytest.raises(KbctlError) as caught:
                await back_up(journal.database, folder / "copy.db", replace=False, told=slowly)
            assert caught.value.code == "query_too_slow"
            assert longest < 4_000_000
            await more()
            await asyncio.sleep(0.2)
            await journal.append(call(0))
            assert log.stat().st_size < 300_000

    run(main())
    assert not (folder / "copy.db").exists()


# --- putting one back -------------------------------------------------------------------------------------


def test_D8_what_was_copied_comes_back_whole(folder: Path) -> None:
    """With the proof, and what was here beside it."""
    use(folder)
    file = folder / "copy.db"
    held = copied(folder, file)
    before = rows(folder), database_of(folder).read_bytes()
    database_of(folder).write_bytes(b"damaged" * 1000)

    done = restore(file, database_of(folder), anchor_of(folder), stamp=STAMP)

    assert done.contents == held
    assert (done.behind, done.unanchored) == (None, False)
    assert done.sha256 == hashlib.sha256(database_of(folder).read_bytes()).hexdigest()
    assert done.kept == folder / f"kbctl.db.replaced-{STAMP}"
    assert done.kept.read_bytes() == b"damaged" * 1000
    assert database_of(folder).stat().st_mode & 0o777 == 0o600
    assert start(folder) == held.height
    assert rows(folder) == before[0]


def test_D8_an_older_one_is_served_only_by_word_and_freezes_every_live_key(folder: Path) -> None:
    """The naive restore, which forgets the anchor with the file, would let all of them spend again."""
    use(folder)
    file = folder / "copy.db"
    copied(folder, file)
    use(folder, 3, keys=(3,))

    done = restore(file, database_of(folder), anchor_of(folder), stamp=STAMP)

    assert done.behind == Height(6, 3)
    with pytest.raises(KbctlError) as caught:
        start(folder)
    assert caught.value.code == "database_rolled_back"
    start(folder, accept_rollback=True)
    assert [bool(row["frozen"]) for row in rows(folder, "SELECT frozen FROM vault_key")] == [True, True]
    naive = folder / "naive"
    naive.mkdir(0o700)
    shutil.copy(file, database_of(naive))
    start(naive, accept_rollback=True)  # nothing remembered, so only the word remains
    assert [bool(row["frozen"]) for row in rows(naive, "SELECT frozen FROM vault_key")] == [True, True]


def test_where_nothing_is_remembered_a_restore_says_that_it_can_not_tell(
    folder: Path, tmp_path: Path
) -> None:
    """Another machine: the ledger may have gone on since."""
    use(folder)
    file = folder / "copy.db"
    copied(folder, file)
    other = tmp_path / "other"
    other.mkdir(0o700)
    done = restore(file, database_of(other), anchor_of(other), stamp=STAMP)
    assert (done.unanchored, done.kept) == (True, None)
    with pytest.raises(KbctlError) as caught:
        start(other)
    assert caught.value.code == "database_unanchored"


def test_the_log_of_what_was_here_goes_aside_with_it(folder: Path) -> None:
    """Read together with another file it would spoil that one."""
    use(folder)
    file = folder / "copy.db"
    held = copied(folder, file)
    (folder / "kbctl.db-wal").write_bytes(b"half a log")
    put_back(folder, file)
    assert (folder / f"kbctl.db.replaced-{STAMP}-wal").read_bytes() == b"half a log"
    assert start(folder) == held.height


def damaged(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[4096 * 5 : 4096 * 5 + 200] = b"\xee" * 200
    file.write_bytes(raw)


def short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4096])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def text(file: Path) -> None:
    file.write_text("dear diary\n" * 1000)


def missing(file: Path) -> None:
    file.unlink()


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def with_log(file: Path) -> None:
    file.with_name(file.name + "-wal").write_bytes(b"x")


def sql(*statements: str) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        with closing(sqlite3.connect(file, isolation_level=None)) as copy:
            for statement in statements:
                copy.execute(statement)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (damaged, "backup_unfit"),
        (short, "backup_unfit"),
        (empty, "backup_unfit"),
        (text, "backup_unfit"),
        (missing, "file_unusable"),
        (folder_instead, "file_unusable"),
        (pipe, "backup_unfit"),
        (with_log, "backup_unfit"),
        (sql("PRAGMA application_id = 7"), "backup_unfit"),
        (sql("PRAGMA user_version = 999"), "database_newer"),
        (sql("DELETE FROM meta"), "backup_unfit"),
        (sql("DELETE FROM vault_key WHERE no = 1"), "backup_unfit"),
        (sql("DROP VIEW calls", "DROP TABLE call"), "backup_unfit"),
    ],
    ids=[
        *("damaged", "short", "empty", "text", "missing", "folder", "pipe", "log", "foreign", "newer"),
        *("no counters", "no key", "no calls"),
    ],
)
def test_D8_what_is_not_a_whole_copy_is_refused_and_nothing_is_changed(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None], code: str
) -> None:
    use(folder, calls=60)
    place = tmp_path / "elsewhere"
    place.mkdir()
    file = place / "copy.db"
    copied(folder, file)
    spoil(file)
    before = contents(folder)
    with pytest.raises(KbctlError) as caught:
        put_back(folder, file)
    assert caught.value.code == code
    assert caught.value.remedy
    assert contents(folder) == before


@pytest.mark.parametrize("step", range(1, 9))
def test_D8_a_restore_that_is_killed_leaves_the_old_or_the_new_or_a_refusal(folder: Path, step: int) -> None:
    """kill -9 before each touch of a name: what is served afterwards is whole, or nothing is."""
    use(folder)
    file = folder / "copy.db"
    copied(folder, file)
    database_of(folder).with_name("kbctl.db-wal").touch()
    child = os.fork()
    if child == 0:
        seen = 0

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def touch(*args: object, **options: object) -> object:
                nonlocal seen
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), 9)
                return real(*args, **options)

            return touch

        for name in ("link", "replace", "unlink", "fsync"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            put_back(folder, file)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert start(folder) == Height(3, 2)
    assert [row["call_id"] for row in rows(folder)] == ["call_0", "call_1", "call_2"]
