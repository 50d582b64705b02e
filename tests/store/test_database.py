"""D1, D3, D6, D9: a database that is not what it was is refused for what it is, and left as it was found."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from kbctl.errors import Exit, KbctlError
from kbctld.store import database as databases
from kbctld.store.anchor import Anchor, Height
from kbctld.store.database import known_schema
from tests.store.opener import make_old
from tests.store.support import (
    NOW,
    anchor_of,
    call,
    contents,
    database_of,
    journal_in,
    key_statement,
    locked,
    opened,
    remembered,
    rows,
)
from tests.support.long import LONG
from tests.support.loop import run

ROOT = Path(__file__).parents[2]


def use(folder: Path, *, calls: int = 3, keys: tuple[int, ...] = (1, 2)) -> None:
    """Some keys and calls, closed in order."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            await journal.change([key_statement(number) for number in keys])
            for number in range(calls):
                await journal.append(call(number, key_no=keys[0] if keys else None))

    run(main())


def start(folder: Path, *, accept_rollback: bool = False) -> Height:
    async def main() -> Height:
        async with opened(folder, accept_rollback=accept_rollback) as database:
            return database.height

    return run(main())


def refused(folder: Path) -> KbctlError:
    """It must not start, must say what can be done, and must not touch a byte."""
    before = contents(folder)
    with pytest.raises(KbctlError) as caught:
        start(folder)
    error = caught.value
    assert error.exit_status is Exit.INTEGRITY
    assert error.remedy
    assert error.message
    assert not error.message.endswith(".")
    assert contents(folder) == before
    return error


def edit(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database_of(folder), isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


def write(folder: Path, place: int, content: bytes) -> None:
    with database_of(folder).open("r+b") as file:
        file.seek(place)
        file.write(content)


# --- D6: what is refused ------------------------------------------------------------------------------


def missing(folder: Path) -> None:
    database_of(folder).unlink()


def empty(folder: Path) -> None:
    database_of(folder).write_bytes(b"")


def zero_header(folder: Path) -> None:
    write(folder, 0, b"\0" * 100)


def text(folder: Path) -> None:
    database_of(folder).write_text("dear diary\n" * 1000)


def half(folder: Path) -> None:
    path = database_of(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def first_pages_only(folder: Path) -> None:
    path = database_of(folder)
    path.write_bytes(path.read_bytes()[: 4096 * 3])


def damaged_pages(folder: Path) -> None:
    for page in range(1, database_of(folder).stat().st_size // 4096):
        write(folder, page * 4096, b"\xff" * 64)


def foreign(folder: Path) -> None:
    database_of(folder).unlink()
    edit(folder, "CREATE TABLE somebody_elses (x)")


def foreign_and_empty(folder: Path) -> None:
    """A file that SQLite made for somebody, without a table: still not what was here."""
    database_of(folder).unlink()
    edit(folder, "PRAGMA user_version = 0", "CREATE TABLE x (x)", "DROP TABLE x")


def foreign_with_our_tables(folder: Path) -> None:
    edit(folder, "PRAGMA application_id = 1")


def newer(folder: Path) -> None:
    edit(folder, f"PRAGMA user_version = {known_schema() + 1}")


def much_newer(folder: Path) -> None:
    edit(folder, "PRAGMA user_version = 2147483647")


def calls_deleted(folder: Path) -> None:
    edit(folder, "DELETE FROM call WHERE no = 3")


def changes_set_back(folder: Path) -> None:
    edit(folder, "UPDATE meta SET value = value - 1 WHERE key = 'changes'")


def counters_no_numbers(folder: Path) -> None:
    edit(folder, "UPDATE meta SET value = 'many' WHERE key = 'changes'")


def counters_gone(folder: Path) -> None:
    edit(folder, "DELETE FROM meta")


def table_gone(folder: Path) -> None:
    edit(folder, "PRAGMA foreign_keys = OFF", "DROP VIEW calls", "DROP TABLE call")


def anchor_missing(folder: Path) -> None:
    anchor_of(folder).unlink()


def anchor_empty(folder: Path) -> None:
    anchor_of(folder).write_bytes(b"")


def anchor_torn(folder: Path) -> None:
    anchor_of(folder).write_bytes(b"\xff" * 128)


def readable(folder: Path) -> None:
    database_of(folder).chmod(0o640)


def writable(folder: Path) -> None:
    database_of(folder).chmod(0o602)


def link(folder: Path) -> None:
    database_of(folder).rename(folder / "elsewhere.db")
    database_of(folder).symlink_to(folder / "elsewhere.db")


def dangling_link(folder: Path) -> None:
    database_of(folder).unlink()
    database_of(folder).symlink_to(folder / "nowhere.db")


def directory(folder: Path) -> None:
    database_of(folder).unlink()
    database_of(folder).mkdir()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (missing, "database_missing"),
        (empty, "database_empty"),
        (zero_header, "database_damaged"),
        (text, "database_damaged"),
        (half, "database_damaged"),
        (first_pages_only, "database_damaged"),
        (damaged_pages, "database_damaged"),
        (foreign, "database_foreign"),
        (foreign_and_empty, "database_foreign"),
        (foreign_with_our_tables, "database_foreign"),
        (newer, "database_newer"),
        (much_newer, "database_newer"),
        (calls_deleted, "database_rolled_back"),
        (changes_set_back, "database_rolled_back"),
        (counters_no_numbers, "database_damaged"),
        (counters_gone, "database_damaged"),
        (table_gone, "database_damaged"),
        (anchor_missing, "database_unanchored"),
        (anchor_empty, "database_unanchored"),
        (anchor_torn, "database_unanchored"),
        (readable, "database_exposed"),
        (writable, "database_exposed"),
        (link, "database_foreign"),
        (dangling_link, "database_foreign"),
        (directory, "database_foreign"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_D6_what_is_not_our_whole_newest_database_is_refused(
    folder: Path, spoil: Callable[[Path], None], code: str
) -> None:
    """A code of its own, exit status 5, something to do, and nothing changed on disk."""
    use(folder)
    spoil(folder)
    assert refused(folder).code == code


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_D6_somebody_else_s_database_is_refused(folder: Path) -> None:
    """Also with the right mode."""
    use(folder)
    os.chown(database_of(folder), 65534, 65534)
    assert refused(folder).code == "database_exposed"


def test_D6_one_damaged_page_is_found(folder: Path) -> None:
    """Whichever it is: none is served as if it held nothing."""
    use(folder, calls=200)
    whole = database_of(folder).read_bytes()
    codes = set()
    for page in range(len(whole) // 4096):
        write(folder, page * 4096 + (100 if page == 0 else 0), b"\xee" * 300)
        codes.add(refused(folder).code)
        database_of(folder).write_bytes(whole)
    assert codes == {"database_damaged"}
    start(folder)


def test_D6_yesterday_s_copy_is_refused_unchanged_whatever_its_mode(folder: Path) -> None:
    """A plain copy, and one that `VACUUM INTO` made: that one has no write-ahead log yet, and gets none."""
    use(folder)
    plain, vacuumed = folder / "plain", folder / "vacuumed"
    shutil.copy(database_of(folder), plain)
    edit(folder, f"VACUUM INTO '{vacuumed}'")
    use(folder, keys=(3,))
    for copy in (plain, vacuumed):
        shutil.copy(copy, database_of(folder))
        error = refused(folder)
        assert error.code == "database_rolled_back"
        assert "call 3, change 2" in error.message
        assert "call 6, change 3" in error.message


def test_D6_a_deleted_log_is_noticed(folder: Path) -> None:
    """After kill -9 committed rows may be in -wal alone; without it SQLite opens the rest without a word."""
    use(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.writer", "append", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'daemon'}"},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    for _ in range(50):
        process.stdout.readline()
    process.kill()
    process.stdout.close()
    process.wait()
    wal = folder / "kbctl.db-wal"
    assert wal.stat().st_size > 0
    wal.unlink()

    with pytest.raises(KbctlError) as caught:
        start(folder)

    assert (caught.value.code, caught.value.exit_status) == ("database_rolled_back", Exit.INTEGRITY)


def test_a_locked_database_does_not_start_and_is_not_called_empty(folder: Path) -> None:
    """Somebody else holds the write lock for longer than a second."""
    use(folder)
    with locked(folder):
        assert start(folder) == Height(3, 2)  # so far it only reads
        with pytest.raises(KbctlError) as caught:
            start(folder, accept_rollback=True)
    assert (caught.value.code, caught.value.exit_status) == ("database_locked", Exit.REFUSED)


# --- first use and the operator's word --------------------------------------------------------------------


def test_first_use_makes_a_private_database_of_our_own(folder: Path) -> None:
    """And says that it was first use, once."""

    async def main() -> list[bool]:
        created = []
        for _ in range(2):
            async with opened(folder) as database:
                created.append(database.created)
        return created

    assert run(main()) == [True, False]
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "kbctl.db": 0o600,
        "kbctl.anchor": 0o600,
    }
    assert database_of(folder).read_bytes()[68:72] == b"kbct"


def test_D9_first_use_killed_at_any_step_is_first_use_again(folder: Path) -> None:
    """kill -9 before every single step, also between the statements of the first migration: old or new."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.opener", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'daemon'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["steps"] >= 40
    assert said["said"] == {"call 0, change 1": list(range(1, said["steps"] + 1))}


@pytest.mark.parametrize("schema", range(1, known_schema()) if LONG else (1, known_schema() - 1))
def test_D9_a_migration_killed_at_any_step_gives_the_old_or_the_new(folder: Path, schema: int) -> None:
    """From the first schema and the last one (in long: every one), kill -9 before every step.

    No row is lost, and a whole copy is kept.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.opener", str(folder), str(schema)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'daemon'}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["steps"] >= 15
    assert said["said"] == {"call 1, change 2, a whole copy": list(range(1, said["steps"] + 1))}


def test_D9_no_room_for_the_copy_stops_the_start_and_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a migration on a full disk would be worse than none."""
    make_old(folder, 1)
    start_with = contents(folder)["kbctl.db"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(KbctlError) as caught:
        start(folder)
    assert (caught.value.code, caught.value.exit_status) == ("disk_full", Exit.REFUSED)
    assert contents(folder)["kbctl.db"] == start_with
    monkeypatch.undo()
    assert start(folder) == Height(1, 1)


def test_D6_a_large_database_that_was_cut_or_spoilt_at_an_end_is_refused_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all of it is looked through at the start then, but both ends of everything."""
    use(folder, calls=300)
    monkeypatch.setattr(databases, "_LOOKED_THROUGH_BYTES", 0)
    whole = database_of(folder).read_bytes()
    assert start(folder) == Height(300, 2)
    for spoil in (half, first_pages_only, zero_header, damaged_pages, table_gone):
        spoil(folder)
        assert refused(folder).code == "database_damaged"
        database_of(folder).write_bytes(whole)


def test_D6_damage_in_the_middle_of_a_large_database_is_found_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look that the start did not wait for finds whichever page it is."""
    use(folder, calls=3000)
    monkeypatch.setattr(databases, "_LOOKED_THROUGH_BYTES", 0)
    whole = database_of(folder).read_bytes()

    async def main() -> str:
        async with opened(folder) as database:
            assert not database.looked_through
            try:
                return await database.readers.run(databases.whole, limit_s=None, purpose="check")
            except sqlite3.Error as error:
                return str(error)

    behind, codes = 0, set[str]()
    middle = len(whole) // 4096 // 2
    for page in range(middle, middle + 8):
        write(folder, page * 4096, b"\xee" * 300)
        try:
            assert run(main()) != "ok"
            behind += 1
        except KbctlError as error:
            codes.add(error.code)  # it was at an end of something
        database_of(folder).write_bytes(whole)
    assert behind >= 4
    assert codes <= {"database_damaged"}


def test_an_anchor_that_remembers_nothing_does_not_stop_first_use(folder: Path) -> None:
    """It was made first, and then the power went; but one that remembers something does."""
    anchor_of(folder).write_bytes(b"")
    assert start(folder) == Height(0, 0)
    database_of(folder).unlink()
    assert start(folder) == Height(0, 0)
    database_of(folder).unlink()
    anchor = Anchor(anchor_of(folder))
    anchor.write(Height(0, 1))
    anchor.close()
    assert refused(folder).code == "database_missing"


@pytest.mark.parametrize("spoil", [missing, empty], ids=lambda value: value.__name__)
def test_the_operator_s_word_begins_anew_where_nothing_is_left(
    folder: Path, spoil: Callable[[Path], None]
) -> None:
    """No key is there, so none has to be frozen."""
    use(folder)
    spoil(folder)
    assert start(folder, accept_rollback=True) == Height(0, 0)
    assert rows(folder, "SELECT * FROM vault_key") == []
    assert start(folder) == Height(0, 0)


@pytest.mark.parametrize(
    "spoil", [calls_deleted, anchor_missing, anchor_torn], ids=lambda value: value.__name__
)
def test_the_operator_s_word_freezes_every_key_that_was_live(
    folder: Path, spoil: Callable[[Path], None]
) -> None:
    """What they spent is not known any more. Revoked ones stay revoked, and the first reason stays."""
    use(folder, keys=(1, 2, 3, 4))
    edit(
        folder,
        f"UPDATE vault_key SET revoked_ns = {NOW} WHERE no = 2",
        "UPDATE vault_key SET frozen = 'earlier' WHERE no = 3",
    )
    spoil(folder)
    refused(folder)

    height = start(folder, accept_rollback=True)

    assert height.changes == 5  # four keys and this
    assert remembered(folder) == height
    frozen = {row["no"]: row["frozen"] for row in rows(folder, "SELECT no, frozen FROM vault_key")}
    assert frozen[2] is None
    assert frozen[3] == "earlier"
    assert "rolled back" in frozen[1]
    assert "rolled back" in frozen[4]
    assert start(folder) == height


@pytest.mark.parametrize(
    "spoil",
    [zero_header, half, damaged_pages, foreign, newer, readable, link],
    ids=lambda value: value.__name__,
)
def test_the_operator_s_word_covers_lost_rows_and_nothing_else(
    folder: Path, spoil: Callable[[Path], None]
) -> None:
    """Damage, a stranger's file or an open one is refused with it, too."""
    use(folder)
    spoil(folder)
    before = contents(folder)
    with pytest.raises(KbctlError) as caught:
        start(folder, accept_rollback=True)
    assert caught.value.exit_status is Exit.INTEGRITY
    assert contents(folder) == before


# --- how it is kept ---------------------------------------------------------------------------------------


def test_D3_only_one_connection_can_write(folder: Path) -> None:
    """The others refuse even to try."""

    async def main() -> None:
        async with opened(folder) as database:
            for pragma, value in (("journal_mode", "wal"), ("foreign_keys", 1)):
                async with database.writer.execute(f"PRAGMA {pragma}") as cursor:
                    assert await cursor.fetchone() == (value,)
            for other in (database.reader, database.checkpointer):
                with pytest.raises(sqlite3.OperationalError, match="readonly"):
                    await other.execute("DELETE FROM meta")

    run(main())


def test_D3_whoever_syncs_asks_for_the_medium(folder: Path) -> None:
    """On macOS an fsync ends in the drive's cache; the log may be begun anew once a checkpoint is synced."""

    async def main() -> None:
        async with opened(folder) as database:
            for connection in (database.writer, database.checkpointer):
                for pragma, value in (("synchronous", 2), ("fullfsync", 1), ("checkpoint_fullfsync", 1)):
                    async with connection.execute(f"PRAGMA {pragma}") as cursor:
                        assert await cursor.fetchone() == (value,)

    run(main())


def test_a_row_of_a_key_that_does_not_exist_is_refused(folder: Path) -> None:
    """Foreign keys are on, and money is a whole number or nothing."""

    use(folder)

    async def main() -> None:
        async with opened(folder) as database:
            for sql in (
                "INSERT INTO label_segment VALUES ('tenant:acme', 99)",
                "INSERT INTO balance VALUES ('vk_1', 1, 0.5, 0)",
            ):
                with pytest.raises(sqlite3.IntegrityError):
                    await database.writer.execute(sql)
            await database.writer.rollback()

    run(main())
