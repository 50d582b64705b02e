"""The pretend Stripe's own book: what callers were authorised to move, and what moved.

What must stay true:

- An entry is with the operating system (write(2) returned) before the answer that it belongs to is sent, so
  `kill -9` of this process loses no counted cent. A power cut may: there is no fsync, because the
  process that a test kills is this one, never the machine.
- One request is one line. A half-written last line is a request nobody was answered; it is dropped on
  reload. Any other unreadable line means the file is not ours or was damaged, and is an error.
- `authorised` never falls. A PaymentIntent counts when it is created, since whoever has its client secret can
  confirm it elsewhere; later calls count only what they add. `moved` is what really succeeded.
- A PaymentIntent whose first confirmation was declined still exists and can be confirmed again, so it counts
  as authorised too; `declined` tells how much of `authorised` was answered with such a refusal.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec


class BookDamagedError(Exception):
    """The book file holds a line that this program did not write."""


class BookInUseError(Exception):
    """Another sandbox has the book file open."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=False):
    """One event of money: `amount_minor` is what the call was about, the next two what it added.

    `kind` is the operation (`refunds.create`); `seq` starts at 1 and has no gaps.
    """

    seq: int
    time: float
    object: str
    kind: str
    amount_minor: int
    currency: str
    authorised_minor: int
    moved_minor: int
    request_id: str
    declined: bool = False
    idempotency_key: str | None = None
    account: str = ""
    metadata: dict[str, str] = {}


class ObjectLine(msgspec.Struct, array_like=True):
    account: str
    kind: str
    id: str
    body: msgspec.Raw


class ResultLine(msgspec.Struct):
    """What an idempotency key remembers."""

    account: str
    key: str
    fingerprint: str
    status: int
    body: msgspec.Raw
    request_id: str
    time: float


class Line(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """Everything one request changed."""

    objects: list[ObjectLine] = []
    entries: list[Entry] = []
    result: ResultLine | None = None


class Book:
    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.authorised_minor: Counter[str] = Counter()
        self.moved_minor: Counter[str] = Counter()
        self.declined_minor: Counter[str] = Counter()
        self._authority: Counter[tuple[str, str]] = Counter()

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.authorised_minor[entry.currency] += entry.authorised_minor
        self.moved_minor[entry.currency] += entry.moved_minor
        if entry.declined:
            self.declined_minor[entry.currency] += entry.authorised_minor
        if entry.kind.startswith("payment_intents."):
            self._authority[entry.object, entry.currency] += entry.authorised_minor

    def excess(self, payment_intent: str, currency: str, amount_minor: int) -> int:
        """How much of this amount the PaymentIntent was not already counted for."""
        return max(0, amount_minor - self._authority[payment_intent, currency])


class BookFile:
    """Lines on disk, one writer."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise BookInUseError(f"{path} is open in another sandbox") from error
        self._path = path
        self._size = 0
        self._open = True
        self._encoder = msgspec.json.Encoder()

    def read(self) -> Iterator[Line]:
        """Every line, oldest first; then the file ends where the last whole line does."""
        decoder = msgspec.json.Decoder(Line)
        size = 0
        with self._path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if not text.endswith(b"\n"):
                    if text[:2] != b'{"'[: len(text)]:  # never cut off the end of somebody else's file
                        raise BookDamagedError(f"{self._path} is not a sandbox book")
                    break
                try:
                    line = decoder.decode(text)
                except msgspec.MsgspecError as error:
                    raise BookDamagedError(
                        f"line {number} of {self._path} is not a sandbox book's"
                    ) from error
                size += len(text)
                yield line
        os.ftruncate(self._fd, size)
        self._size = size

    def append(self, line: Line) -> None:
        """Hand the whole line to the operating system, or leave the file as it was and raise OSError."""
        if not self._open:
            raise OSError("the book is closed")
        data = self._encoder.encode(line) + b"\n"
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            # A full disk may have taken a part. If it cannot be cut off either, a later line would
            # follow the torn one, so no later line is written.
            self._open = False
            os.ftruncate(self._fd, self._size)
            self._open = True
            raise
        self._size += len(data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._open = False
