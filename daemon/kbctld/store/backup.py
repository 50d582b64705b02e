"""A copy of the whole database in one file, made while calls go on; and one that is put in its place.

What must stay true: a copy is of one moment and was looked through before it has its name; a file appears
under its name whole, private to its owner and on disk, or not at all. What is restored is proved on the very
bytes that will be served; what it replaces is kept beside it; and the anchor is left as it is, so that a
ledger older than what was spent is not served before an operator has said so.
"""

import asyncio
import hashlib
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from kbctl.errors import Exit, KbctlError
from kbctld.durable import sync, sync_path
from kbctld.store.anchor import Anchor, Height
from kbctld.store.database import APPLICATION_ID, Database, known_schema

_PAGES_A_STEP = 500
_RESTORED_FROM = "kbctl backup FILE    # on the home that has the whole database; then restore that FILE"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SUFFIXES = ("", "-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Contents:
    """What a database holds, counted.

    Attributes:
        bytes: of the file.
        schema: its number.
        height: how far it has come.
        calls: rows of calls.
        keys: of any status.
        live: keys that are neither revoked nor frozen.
        last_ns: when its newest call began; None where there is none.
    """

    bytes: int
    schema: int
    height: Height
    calls: int
    keys: int
    live: int
    last_ns: int | None


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put in place, and how that is known.

    Attributes:
        sha256: of the file as it was given, and of what is served from now on.
        behind: what the anchor remembers, where that is more than the file holds; None where nothing is lost.
        unanchored: whether there is no anchor to compare with.
        kept: where the database that was here is now; None where there was none.
    """

    contents: Contents
    sha256: str
    behind: Height | None
    unanchored: bool
    kept: Path | None


# --- making one -------------------------------------------------------------------------------------------


async def back_up(
    database: Database, file: Path, *, replace: bool, told: Callable[[int, int], None]
) -> Contents:
    """Copy the database as it is now.

    Args:
        database: which goes on being written to.
        file: absolute.
        replace: whether a file that is there may be replaced.
        told: of the pages that are done, and of all there are; called in another thread.

    Raises:
        KbctlError: there is no copy; nothing is left of it.
    """
    begun = file.with_name(f".{file.name}.part")
    try:
        _begin(file, begun, replace)
        try:
            await database.readers.run(
                lambda source: _copy(source, begun, told, database.readers.may_go_on),
                limit_s=None,
                purpose="backup",
            )
            return await asyncio.to_thread(_finish, begun, file, replace)
        finally:
            begun.unlink(missing_ok=True)
    except FileExistsError:
        raise KbctlError(
            "file_exists", f"{file} is there already", f"kbctl backup --force {file}", Exit.REFUSED
        ) from None
    except OSError as error:
        raise KbctlError(
            "file_unusable",
            f"{file} can't be written: {error.strerror}",
            f"ls -ld {file.parent}",
            Exit.REFUSED,
        ) from None
    except sqlite3.Error as error:
        raise KbctlError(
            "backup_failed", f"the copy could not be made: {error}", f"df -h {file.parent}", Exit.REFUSED
        ) from None


def _begin(file: Path, begun: Path, replace: bool) -> None:
    if not replace and os.path.lexists(file):
        raise FileExistsError
    begun.unlink(missing_ok=True)  # of a backup that was killed; only one is made at a time
    os.close(os.open(begun, _NEW, 0o600))


def _copy(
    source: sqlite3.Connection,
    begun: Path,
    told: Callable[[int, int], None],
    may_go_on: Callable[[sqlite3.Connection], None],
) -> None:
    def step(_status: int, left: int, pages: int) -> None:
        may_go_on(source)
        told(pages - left, pages)

    with closing(sqlite3.connect(begun, isolation_level=None)) as target:
        # Reading holds this moment: without it a copy begins again whenever something is written.
        source.execute("BEGIN")
        source.execute("SELECT 1 FROM meta").fetchone()
        source.backup(target, pages=_PAGES_A_STEP, progress=step, sleep=0)
        source.execute("COMMIT")
        # One file that any program can open: without this it would want a log beside it.
        target.execute("PRAGMA journal_mode = DELETE")


def _finish(begun: Path, file: Path, replace: bool) -> Contents:
    with closing(sqlite3.connect(f"{begun.as_uri()}?mode=ro", uri=True)) as copy:
        _check(copy, file, "quick_check")
        contents = _count(copy, begun)
    sync_path(begun)
    if replace:
        begun.replace(file)
    else:
        os.link(begun, file)  # fails where somebody else made one meanwhile
    sync_path(file.parent)
    return contents


# --- putting one in place ---------------------------------------------------------------------------------


def restore(file: Path, path: Path, anchor_path: Path, *, stamp: str) -> Restored:
    """Put a backup in the place of a database that no daemon serves.

    Args:
        file: what ``back_up`` made.
        path: of the database.
        anchor_path: its memory outside.
        stamp: names what is kept of the database that was here.

    Raises:
        KbctlError: it was not restored; what was here is as it was.
    """
    begun = path.with_name(f"{path.name}.restoring")
    try:
        begun.unlink(missing_ok=True)
        digest = _take_in(file, begun)
        try:
            with closing(sqlite3.connect(f"{begun.as_uri()}?mode=ro&immutable=1", uri=True)) as copy:
                _check(copy, file, "integrity_check")
                if copy.execute("PRAGMA foreign_key_check").fetchone() is not None:
                    raise _unfit(file, "has rows of keys that are not in it")
                contents = _count(copy, begun)
            if _digest(begun) != digest:
                raise _unfit(file, "changed while it was read")
            known = Anchor.read(anchor_path)
            kept = _set_aside(path, stamp)
            begun.replace(path)
            sync_path(path.parent)
        finally:
            begun.unlink(missing_ok=True)
    except OSError as error:
        raise KbctlError(
            "file_unusable",
            f"{error.filename or file} can't be used: {error.strerror}",
            f"ls -l {file}",
            Exit.REFUSED,
        ) from None
    except sqlite3.Error as error:
        raise _unfit(file, f"can't be read: {error}") from None
    behind = known if known is not None and contents.height.lost_against(known) else None
    return Restored(contents, digest, behind, known is None, kept)


def _take_in(file: Path, begun: Path) -> str:
    """Copy the bytes; gives their SHA-256."""
    source = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(source, "rb") as reading:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            raise _unfit(file, "is not a plain file")
        log = file.with_name(f"{file.name}-wal")
        if log.exists() and log.stat().st_size:
            raise _unfit(file, f"has a log beside it, {log.name}, so it alone is not a whole database")
        taken = hashlib.sha256()
        with os.fdopen(os.open(begun, _NEW, 0o600), "wb") as writing:
            while piece := reading.read(1024 * 1024):
                taken.update(piece)
                writing.write(piece)
            writing.flush()
            sync(writing.fileno())
        return taken.hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as reading:
        return hashlib.file_digest(reading, "sha256").hexdigest()


def _set_aside(path: Path, stamp: str) -> Path | None:
    """Keep what was here under another name, its log with it. It stays in place until it is replaced."""
    kept: Path | None = None
    aside = path.with_name(f"{path.name}.replaced-{stamp}")
    for suffix in _SUFFIXES:
        here = path.with_name(path.name + suffix)
        if os.path.lexists(here):
            os.link(here, aside.with_name(aside.name + suffix), follow_symlinks=False)
            kept = aside
    for suffix in _SUFFIXES[1:]:
        # It belongs to the file that was here: read together with another it would spoil that one.
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return kept


# --- both -------------------------------------------------------------------------------------------------


def _check(copy: sqlite3.Connection, file: Path, how: str) -> None:
    if copy.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise _unfit(file, "is not a database of kbctl")
    schema = copy.execute("PRAGMA user_version").fetchone()[0]
    if schema > known_schema():
        raise KbctlError(
            "database_newer",
            f"{file} was written by a newer kbctl (schema {schema}, this one knows {known_schema()})",
            "pip install --upgrade kbctl",
            Exit.INTEGRITY,
        )
    copy.execute("PRAGMA cache_size = -262144")  # each row is looked up in each index
    verdict = copy.execute(f"PRAGMA {how}(1)").fetchone()[0]
    if verdict != "ok":
        raise _unfit(file, f"is damaged: {verdict}")


def _count(copy: sqlite3.Connection, file: Path) -> Contents:
    def one(sql: str) -> int:
        found = copy.execute(sql).fetchone()
        if found is None or not isinstance(found[0], int):
            raise sqlite3.DatabaseError("its counters are not numbers")
        return found[0]

    newest = copy.execute("SELECT max(ts_ns) FROM call").fetchone()[0]
    return Contents(
        file.stat().st_size,
        one("PRAGMA user_version"),
        Height(
            one("SELECT coalesce(max(no), 0) FROM call"), one("SELECT value FROM meta WHERE key = 'changes'")
        ),
        one("SELECT count(*) FROM call"),
        one("SELECT count(*) FROM vault_key"),
        one("SELECT count(*) FROM vault_key WHERE revoked_ns IS NULL AND frozen IS NULL"),
        newest,
    )


def _unfit(file: Path, why: str) -> KbctlError:
    return KbctlError("backup_unfit", f"{file} {why}", _RESTORED_FROM, Exit.INTEGRITY)
