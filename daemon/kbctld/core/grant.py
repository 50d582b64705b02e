"""What one vault key may do, resolved; and what it is known by.

What must stay true: a limit of any ancestor is a limit of the key, whatever is changed later; a part of a
label's segment never matches.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kbctld.core.duplicates import Duplicates
from kbctld.core.entry import Entries
from kbctld.core.ledger import Scope
from kbctld.core.pace import Loop
from kbctld.core.rule import Rule


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
        vendors: names of the vendors it reaches; empty only where a policy took the last away.
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
    allow: Entries | None
    deny: Entries
    rules: tuple[Rule, ...]
    loop: Loop | None
    stamp: bool
    label: str
    tenant: str | None
    metadata: Mapping[str, str]
    credential: str | None
    policy: str | None
    created_ns: int
    expires_ns: int | None
    duplicates: Duplicates | None = None
    """What is done when it asks for what was asked for already; None where nothing is."""
    revoked_ns: int | None = None
    frozen: str | None = None
    """Why the key was stopped by us; None while it isn't."""
    paused: str | None = None
    """Why the key is paused, by an operator or by its loop guard; None while it isn't."""
    pauses: int = 0
    """How often an operator has paused it since it was read."""
    in_flight: int = 0
    """Calls that the vendor is working on now."""
    in_flight_nano: int = 0
    """What is held for them."""
    used_ns: int = 0
    """When it was last asked for, by the monotonic clock."""

    @property
    def lineage(self) -> "tuple[Grant, ...]":
        """Itself and its ancestors."""
        # Not kept: a grant that holds itself would never be let go of.
        return (self, *self.ancestors)

    @property
    def capped(self) -> bool:
        """Whether any amount is limited, so that every cost must be known."""
        return any(scope.capped for scope in self.scopes)

    @property
    def parent(self) -> "Grant | None":
        return self.ancestors[0] if self.ancestors else None

    @property
    def root(self) -> "Grant":
        """The grant that an operator issued and all the others come from."""
        return self.lineage[-1]

    @property
    def family(self) -> str:
        """Within what its calls are compared: its tenant, or else its root with all that comes from it."""
        return self.scopes[-1].name

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


def nobodys(scope: Scope, vendor: str, credential: str | None = None) -> Grant:
    """A grant that no key stands behind: of an example, or of what kbctl does for itself.

    Args:
        scope: its limits, and what it is called.
        vendor: the one that it reaches.
        credential: with which real key; None for the vendor's usual one.
    """
    return Grant(
        no=0,
        key_id=scope.name,
        digest=b"",
        ending="",
        ancestors=(),
        scope=scope,
        scopes=(scope,),
        vendors=(vendor,),
        allow=None,
        deny=Entries(),
        rules=(),
        loop=None,
        stamp=False,
        label="",
        tenant=None,
        metadata={},
        credential=credential,
        policy=None,
        created_ns=0,
        expires_ns=None,
    )
