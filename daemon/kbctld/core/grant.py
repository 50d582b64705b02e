"""What one vault key may do, resolved; and how its endpoint lists are read.

What must stay true: an entry allows only what it spells out. ``*`` stands for one whole segment, a
trailing ``/*`` for one or more; neither ever reaches a privileged operation.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kbctld.core.ledger import Scope
from kbctld.core.pace import Loop
from kbctld.core.vendor import METHODS, Operation, Vendor

if TYPE_CHECKING:
    from kbctld.core.rule import Rule  # it reads its own scope with read_entry

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


@dataclass(slots=True, eq=False)
class Grant:
    """What one vault key may do.

    Every limit of every holder in ``lineage`` applies to every call: a child is less than its parent however
    either of them is changed later.

    Attributes:
        no: its number in the journal.
        key_id: what people say aloud, ``vk_...``.
        digest: SHA-256 of the vault key.
        ending: the key's last four characters.
        ancestors: the grant that it was derived from, that one's, and so on up.
        scope: its own limits and account.
        scopes: the limits that every hold must fit: its own, its ancestors', its tenant's.
        vendors: names of the vendors it reaches, never empty.
        allow: None for every operation whose cost is known, privileged ones excepted.
        rules: what parameters must be.
        stamp: whether its calls carry its id in the vendor's own metadata.
        expires_ns: nanoseconds since the epoch; None for never.
    """

    no: int
    key_id: str
    digest: bytes
    ending: str
    ancestors: "tuple[Grant, ...]"
    scope: Scope
    scopes: tuple[Scope, ...]
    vendors: tuple[str, ...]
    allow: tuple[Entry, ...] | None
    deny: tuple[Entry, ...]
    rules: "tuple[Rule, ...]"
    loop: Loop | None
    stamp: bool
    label: str
    tenant: str | None
    metadata: Mapping[str, str]
    credential: str | None
    policy: str | None
    created_ns: int
    expires_ns: int | None
    revoked_ns: int | None = None
    frozen: str | None = None
    """Why the key was stopped by us; None while it isn't."""
    paused: str | None = None
    """Why the key is paused, by an operator or by its loop guard; None while it isn't."""
    in_flight: int = 0
    """Calls that the vendor is working on now."""
    in_flight_nano: int = 0
    """What is held for them."""
    lineage: "tuple[Grant, ...]" = field(init=False, repr=False)
    """Itself and its ancestors."""

    @property
    def capped(self) -> bool:
        """Whether any amount is limited, so that every cost must be known."""
        return any(scope.capped for scope in self.scopes)

    def __post_init__(self) -> None:
        self.lineage = (self, *self.ancestors)

    @property
    def parent(self) -> "Grant | None":
        return self.ancestors[0] if self.ancestors else None

    @property
    def root(self) -> "Grant":
        """The grant that an operator issued and all the others come from."""
        return self.lineage[-1]

    def expired(self, now_ns: int) -> bool:
        """Whether its own time is over."""
        return self.expires_ns is not None and now_ns >= self.expires_ns

    def status(self, now_ns: int) -> str:
        """``revoked``, ``expired``, ``frozen``, ``paused`` or ``active``; what stops an ancestor stops it."""
        lineage = self.lineage
        if any(holder.revoked_ns is not None for holder in lineage):
            return "revoked"
        if any(holder.expired(now_ns) for holder in lineage):
            return "expired"
        if any(holder.frozen for holder in lineage):
            return "frozen"
        return "paused" if any(holder.paused for holder in lineage) else "active"


def label_segments(label: str) -> tuple[str, ...]:
    """The whole segments that a label filter matches: ``a/tenant:b`` has ``a`` and ``tenant:b``."""
    return tuple(dict.fromkeys(segment for segment in label.split("/") if segment))


def label_matches(label: str, wanted: str) -> bool:
    """Whether all segments of ``wanted`` are segments of ``label``; a part of a segment never matches."""
    want = label_segments(wanted)
    return bool(want) and set(want) <= set(label_segments(label))
