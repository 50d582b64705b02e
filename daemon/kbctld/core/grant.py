"""What one vault key may do, resolved; and how its endpoint lists are read.

What must stay true: an entry allows only what it spells out. ``*`` stands for one whole segment, a
trailing ``/*`` for one or more; neither ever reaches a privileged operation.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kbctld.core.ledger import Scope
from kbctld.core.vendor import METHODS, Operation, Vendor

_PATH = re.compile(r"/(?:(?:[A-Za-z0-9._~-]+|\*)/)*(?:[A-Za-z0-9._~-]+|\*)/?", re.ASCII)
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

    def covers(self, operation: Operation | None, method: str, path: str, segments: tuple[str, ...]) -> bool:
        """Whether this entry speaks of that call."""
        if self.operation is not None:
            return operation is not None and operation.name == self.operation
        if method != self.method or path.endswith("/") != self.text.endswith("/"):
            return False
        if self.rest:
            if len(segments) <= len(self.segments):
                return False
        elif len(segments) != len(self.segments):
            return False
        return all(want in ("*", have) for want, have in zip(self.segments, segments, strict=False))

    def allows(self, operation: Operation | None, method: str, path: str, segments: tuple[str, ...]) -> bool:
        """Whether this entry of an allow list lets that call through: no ``*`` reaches a privileged one."""
        if operation is not None and operation.privileged and (self.rest or "*" in self.segments):
            return False
        return self.covers(operation, method, path, segments)


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
    if method not in METHODS:
        raise EntryError(f"{text!r} starts with no method; one of {', '.join(sorted(METHODS))}")
    if not _PATH.fullmatch(path) or _DOTS.search(path):
        raise EntryError(f"{text!r} holds no path such as /v1/customers/*, with * for a whole segment")
    segments = tuple(path.strip("/").split("/"))
    rest = path.endswith("/*")
    return Entry(text, method=method, segments=segments[:-1] if rest else segments, rest=rest)


@dataclass(slots=True, eq=False)
class Grant:
    """What one vault key may do.

    The limits never change after issue; ``revoked_ns`` and ``frozen`` do, once, in one direction.

    Attributes:
        no: its number in the journal.
        key_id: what people say aloud, ``vk_...``.
        digest: SHA-256 of the vault key.
        ending: the key's last four characters.
        vendors: names of the vendors it reaches, never empty.
        scopes: the limits that a hold must fit, its own first.
        call_cap_nano: the most that one call may hold; None for no such cap.
        allow: None for every operation whose cost is known, privileged ones excepted.
        expires_ns: nanoseconds since the epoch; None for never.
    """

    no: int
    key_id: str
    digest: bytes
    ending: str
    vendors: tuple[str, ...]
    scopes: tuple[Scope, ...]
    call_cap_nano: int | None
    allow: tuple[Entry, ...] | None
    deny: tuple[Entry, ...]
    label: str
    tenant: str | None
    metadata: Mapping[str, str]
    credential: str | None
    created_ns: int
    expires_ns: int | None
    revoked_ns: int | None = None
    frozen: str | None = None
    """Why the key was stopped by us; None while it isn't."""
    in_flight: int = 0
    """Calls that the vendor is working on now."""
    in_flight_nano: int = 0
    """What is held for them."""

    @property
    def capped(self) -> bool:
        """Whether any amount is limited, so that every cost must be known."""
        return self.call_cap_nano is not None or any(
            scope.daily_cap_nano is not None or scope.total_cap_nano is not None for scope in self.scopes
        )

    def status(self, now_ns: int) -> str:
        if self.revoked_ns is not None:
            return "revoked"
        if self.expires_ns is not None and now_ns >= self.expires_ns:
            return "expired"
        return "frozen" if self.frozen else "active"


def label_segments(label: str) -> tuple[str, ...]:
    """The whole segments that a label filter matches: ``a/tenant:b`` has ``a`` and ``tenant:b``."""
    return tuple(dict.fromkeys(segment for segment in label.split("/") if segment))


def label_matches(label: str, wanted: str) -> bool:
    """Whether all segments of ``wanted`` are segments of ``label``; a part of a segment never matches."""
    want = label_segments(wanted)
    return bool(want) and set(want) <= set(label_segments(label))
