"""A memory of how far the database had come, kept outside it.

What must stay true: it is written after a commit, never before, so it can lag behind the database and
never run ahead of it. A database below its anchor has lost committed rows: an older copy was put back,
or its write-ahead log was deleted. SQLite opens such a file without a complaint.

Two slots are written in turn, each with a checksum, so that a torn write leaves the other one.
"""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from kbctld.durable import sync

_SLOT_BYTES = 64


@dataclass(frozen=True, slots=True, order=True)
class Height:
    """How far a database has come.

    Attributes:
        call_no: number of the newest call.
        changes: changes that are not calls.
    """

    call_no: int
    changes: int

    def lost_against(self, anchor: "Height") -> bool:
        """Whether something that the anchor remembers is missing here."""
        return self.call_no < anchor.call_no or self.changes < anchor.changes


class Anchor:
    """The open anchor file. Its writes go to the operating system's cache: they cost microseconds."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._turn = 0

    @staticmethod
    def read(path: Path) -> Height | None:
        """What the file remembers; None where there is no file, or no whole slot in it."""
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        slots = [_parse(raw[start : start + _SLOT_BYTES]) for start in (0, _SLOT_BYTES)]
        heights = [slot for slot in slots if slot is not None]
        if not heights:
            return None
        return Height(max(h.call_no for h in heights), max(h.changes for h in heights))

    def write(self, height: Height) -> None:
        body = f"{height.call_no:020d} {height.changes:020d}".encode()
        slot = body + b" %08x" % zlib.crc32(body)
        os.pwrite(self._fd, slot.ljust(_SLOT_BYTES - 1) + b"\n", self._turn * _SLOT_BYTES)
        self._turn ^= 1

    def reset(self, height: Height) -> None:
        """Forget what was remembered: both slots say this height."""
        self.write(height)
        self.write(height)
        sync(self._fd)

    def close(self) -> None:
        sync(self._fd)
        os.close(self._fd)


def _parse(slot: bytes) -> Height | None:
    parts = slot.split()
    if len(parts) != 3 or b"%08x" % zlib.crc32(slot[:41]) != parts[2]:
        return None
    return Height(int(parts[0]), int(parts[1]))
