"""The memory outside the database: it survives a torn write, and never runs ahead."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbctld.store.anchor import Anchor, Height
from tests.store.support import call, database_of, journal_in, opened, remembered, rows
from tests.support.loop import run

SLOT = 64


def written(path: Path, *heights: Height) -> bytes:
    anchor = Anchor(path)
    for height in heights:
        anchor.write(height)
    anchor.close()
    return path.read_bytes()


def test_what_was_written_last_is_read(folder: Path) -> None:
    """Whichever slot it went to."""
    path = folder / "anchor"
    for number in range(1, 6):
        written(path, *(Height(n, 10 * n) for n in range(1, number + 1)))
        assert Anchor.read(path) == Height(number, 10 * number)
        path.unlink()


def test_no_file_and_no_whole_slot_are_no_memory(folder: Path) -> None:
    """Neither is zero: who has no memory can't vouch for anything."""
    path = folder / "anchor"
    assert Anchor.read(path) is None
    for content in (b"", b"0 0 0", b"\0" * 2 * SLOT, b"x" * 1000):
        path.write_bytes(content)
        assert Anchor.read(path) is None


@pytest.mark.parametrize("slot", [0, 1])
def test_a_torn_slot_leaves_the_other_one(folder: Path, slot: int) -> None:
    """At every byte: half of the new one over the old one."""
    path = folder / "anchor"
    old, torn_height = Height(7, 3), Height(8, 4)
    whole = written(path, *([old, torn_height] if slot else [torn_height, old]))
    start = slot * SLOT
    for cut in range(1, 50):
        torn = whole[:start] + whole[start : start + cut].ljust(SLOT, b"\xff") + whole[start + SLOT :]
        path.write_bytes(torn)
        assert Anchor.read(path) == old


@given(place=st.integers(0, 48), value=st.integers(0, 255))
@settings(max_examples=200, deadline=None, database=None)
def test_a_changed_byte_is_never_read_as_another_height(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    """The checksum covers both numbers."""
    path = tmp_path_factory.getbasetemp() / "changed"
    whole = bytearray(written(path, Height(41, 5), Height(42, 6)))
    whole[SLOT + place] = value
    path.write_bytes(whole)

    assert Anchor.read(path) in (Height(41, 5), Height(42, 6))
    path.unlink()


def test_a_reset_forgets_what_was_higher(folder: Path) -> None:
    """After the operator's word both slots say the new height."""
    path = folder / "anchor"
    written(path, Height(90, 90), Height(91, 91))
    anchor = Anchor(path)
    anchor.reset(Height(3, 2))
    anchor.close()
    assert Anchor.read(path) == Height(3, 2)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_is_not_followed(folder: Path) -> None:
    """Nobody makes us write into a file of their choice."""
    path = folder / "anchor"
    path.symlink_to(folder / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        Anchor(path)
    assert not (folder / "elsewhere").exists()


@pytest.mark.parametrize(
    ("height", "anchor", "lost"),
    [
        (Height(5, 5), Height(5, 5), False),
        (Height(6, 5), Height(5, 5), False),
        (Height(6, 6), Height(5, 5), False),
        (Height(4, 9), Height(5, 5), True),
        (Height(9, 4), Height(5, 5), True),
    ],
)
def test_more_of_one_does_not_make_up_for_less_of_the_other(
    height: Height, anchor: Height, lost: bool
) -> None:
    """Calls and changes are compared each for itself."""
    assert height.lost_against(anchor) is lost


def test_it_is_written_after_the_commit_and_not_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it says a number, a stranger can read that row already."""
    ahead: list[tuple[int, int]] = []
    write = Anchor.write

    def look(self: Anchor, height: Height) -> None:
        ahead.append((height.call_no, len(rows(folder))))
        write(self, height)

    async def main() -> None:
        async with journal_in(folder) as journal:
            monkeypatch.setattr(Anchor, "write", look)
            for number in range(10):
                await journal.append(call(number))

    run(main())
    monkeypatch.undo()
    assert [said for said, _ in ahead] == list(range(1, 11))
    assert all(said <= there for said, there in ahead)
    assert remembered(folder) == Height(10, 0)


def test_opening_catches_up_with_what_the_anchor_missed(folder: Path) -> None:
    """It may lag: after a power cut the newest numbers are only in the database."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            for number in range(3):
                await journal.append(call(number))
        anchor = folder / "kbctl.anchor"
        written(anchor, Height(1, 0), Height(1, 0))
        async with opened(folder) as database:
            assert database.height == Height(3, 0)
        assert Anchor.read(anchor) == Height(3, 0)

    run(main())
    assert os.stat(database_of(folder)).st_mode & 0o077 == 0  # noqa: PTH116 - reads as the mode it is
