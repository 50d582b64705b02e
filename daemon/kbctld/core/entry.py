"""How endpoint lists are read: ``METHOD /path`` with stars, or an operation's name.

What must stay true: an entry speaks only of what it spells out. ``*`` stands for one whole segment, a
trailing ``/*`` for one or more; in an allow list neither ever reaches a privileged operation. A list of two
hundred is asked in as many steps as a list of one.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from kbctld.core.operation import METHODS, Operation
from kbctld.core.vendor import Vendor

_SEGMENT = r"(?:[A-Za-z0-9._~-]+|\+[0-9]+|\*)"
_PATH = re.compile(rf"/(?:{_SEGMENT}/)*{_SEGMENT}/?", re.ASCII)
_DOTS = re.compile(r"/\.{1,2}(?:/|$)")


class EntryError(ValueError):
    """An endpoint entry that can't be read; the text says what one looks like."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an allow or deny list.

    Attributes:
        text: as the operator wrote it.
        operation: an operation's name, or None for a path entry.
        method: the method of a path entry.
        segments: its segments, ``*`` for any one.
        rest: whether one or more further segments may follow.
    """

    text: str
    operation: str | None = None
    method: str = ""
    segments: tuple[str, ...] = ()
    rest: bool = False

    @property
    def wild(self) -> bool:
        """Whether it stands for more than one path."""
        return self.rest or "*" in self.segments

    def covers(self, operation: Operation | None, method: str, path: str, segments: tuple[str, ...]) -> bool:
        """Whether this entry speaks of that call. A slash at the end makes no other call of it."""
        if self.operation is not None:
            return operation is not None and operation.name == self.operation
        if method != self.method:
            return False
        if self.rest:
            if len(segments) <= len(self.segments):
                return False
        elif len(segments) != len(self.segments):
            return False
        return all(want in ("*", have) for want, have in zip(self.segments, segments, strict=False))

    def allows(self, operation: Operation | None, method: str, path: str, segments: tuple[str, ...]) -> bool:
        """Whether this entry of an allow list lets that call through: no ``*`` reaches a privileged one."""
        if self.operation is None and path.endswith("/") != self.text.endswith("/"):
            return False
        if operation is not None and operation.privileged and self.wild:
            return False
        return self.covers(operation, method, path, segments)


@dataclass(slots=True)
class _Step:
    """Where entries stand after some segments; entries by their place in the list.

    Attributes:
        further: the step after one more segment, by its name; ``*`` for any.
        ending: entries that end here.
        resting: entries that one or more segments of any name may follow.
    """

    further: "dict[str, _Step]" = field(default_factory=dict)
    ending: list[int] = field(default_factory=list)
    resting: list[int] = field(default_factory=list)


class Entries(tuple[Entry, ...]):
    """The lines of one allow or deny list, in their order.

    Which of them speak of a call is found by its segments, one step each. With the 200 lines that a list may
    have, asking every one took twice as long as the rest of a call.
    """

    _named: dict[str, list[int]]
    _paths: dict[str, _Step]

    def __new__(cls, entries: Iterable[Entry] = ()) -> Self:
        made = super().__new__(cls, entries)
        made._named, made._paths = {}, {}
        for place, entry in enumerate(made):
            if entry.operation is not None:
                made._named.setdefault(entry.operation, []).append(place)
                continue
            step = made._paths.setdefault(entry.method, _Step())
            for segment in entry.segments:
                step = step.further.setdefault(segment, _Step())
            (step.resting if entry.rest else step.ending).append(place)
        return made

    def allowing(
        self, operation: Operation | None, method: str, path: str, segments: tuple[str, ...]
    ) -> bool:
        """Whether an entry lets that call through."""
        return any(
            entry.allows(operation, method, path, segments)
            for entry in self.covering(operation, method, segments)
        )

    def covering(self, operation: Operation | None, method: str, segments: tuple[str, ...]) -> list[Entry]:
        """All that speak of that call, in their order, by what ``Entry.covers`` says of each."""
        places = [] if operation is None else list(self._named.get(operation.name, ()))
        first = self._paths.get(method)
        steps = [] if first is None else [first]
        for segment in segments:
            for step in steps:
                places += step.resting
            names = {segment, "*"}
            steps = [step.further[name] for step in steps for name in names if name in step.further]
        for step in steps:
            places += step.ending
        return [self[place] for place in sorted(places)]


def read_entry(text: str, vendors: Iterable[Vendor]) -> Entry:
    """Read ``METHOD /path`` or an operation's name.

    Raises:
        EntryError: neither, or an operation that none of the vendors has.
    """
    method, blank, path = text.partition(" ")
    if not blank:
        if any(text in vendor.operations for vendor in vendors):
            return Entry(text, operation=text)
        raise EntryError(
            f"{text!r} is neither METHOD /path nor an operation of the key's vendors;"
            ' write "POST /v1/payment_intents" or payment_intents.create'
        )
    if method not in METHODS - {"HEAD"}:
        known = ", ".join(sorted(METHODS - {"HEAD"}))
        raise EntryError(f"{text!r} starts with no method; one of {known} (GET speaks of HEAD too)")
    if not _PATH.fullmatch(path) or _DOTS.search(path):
        raise EntryError(f"{text!r} holds no path such as /v1/customers/*, with * for a whole segment")
    segments = tuple(path.strip("/").split("/"))
    rest = path.endswith("/*")
    return Entry(text, method=method, segments=segments[:-1] if rest else segments, rest=rest)


def read_entries(texts: Iterable[str], vendors: Iterable[Vendor]) -> Entries:
    """Read a list.

    Raises:
        EntryError: one of them can't be read.
    """
    known = list(vendors)
    return Entries(read_entry(text, known) for text in texts)
