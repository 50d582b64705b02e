"""The laws, held against the vendor's own book: pure, and without a line of the daemon's code.

What a family of keys was allowed is known from its caps, what the vendor did from its book, what we say of it
from the audit. All money is cents.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

_COUNTS = ("posted", "unknown", "pending")


@dataclass(slots=True)
class Key:
    """One key of a family: its cap, and the scopes that count what it spends, its own first."""

    secret: str
    key_id: str
    scopes: tuple[str, ...]
    asked: set[str] = field(default_factory=set)
    """Idempotency keys of its calls."""
    revoked: bool = False
    """That was acknowledged."""
    asked_late: set[str] = field(default_factory=set)
    """Those begun after that."""


@dataclass(slots=True)
class Family:
    """A tenant, a key, and what was derived from it; ``caps`` in cents, by scope."""

    tenant: str
    caps: dict[str, int] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)
    answered: dict[str, int] = field(default_factory=dict)
    """The last status that an agent got, by idempotency key."""


@dataclass(slots=True)
class Figures:
    """What was found; everything from ``cents_over`` to ``revoked_served`` must be zero."""

    faults: int = 0
    seen: int = 0
    rows: int = 0
    cents_over: int = 0
    """Moved, or counted by ourselves, beyond a cap."""
    cents_uncounted: int = 0
    """Moved, and neither posted nor held."""
    cents_twice: int = 0
    """Counted more than once for one idempotency key."""
    rows_missing: int = 0
    """Calls that the vendor saw more often than they have rows that let them through."""
    freed: int = 0
    """Holds released though the vendor had seen the call and not refused it."""
    revoked_served: int = 0
    """Calls that the vendor saw though they began after a revocation was acknowledged."""
    unanswered: int = 0
    """Answered 200 to the agent, and not moved by the vendor."""
    unknown: int = 0
    """Holds kept because nobody knows."""

    def add(self, other: "Figures") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def broken(self) -> int:
        return (
            self.cents_over
            + self.cents_uncounted
            + self.cents_twice
            + self.rows_missing
            + self.freed
            + self.revoked_served
            + self.unanswered
        )


def judge(
    family: Family,
    book: Mapping[str, Mapping[str, Any]],
    rows: Iterable[Mapping[str, Any]],
    counted: Mapping[str, int],
) -> Figures:
    """Hold a family's rows and balances against the vendor's book.

    Args:
        family: whose caps.
        book: of the vendor: ``seen``, ``moved`` and ``refused`` by idempotency key.
        rows: the audit of the tenant: ``idempotency_key``, ``outcome``, ``cents``, ``allowed``.
        counted: spent and held by our own account, by scope.
    """
    said = Figures()
    by_name = defaultdict[str, list[Mapping[str, Any]]](list)
    for row in rows:
        said.rows += 1
        by_name[row["idempotency_key"]].append(row)
        said.unknown += row["outcome"] == "unknown"
    moved = dict.fromkeys(family.caps, 0)
    for key in family.keys:
        for name in key.asked:
            entry = book.get(name, {"seen": 0, "moved": 0, "refused": False})
            mine = by_name[name]
            kept = sum(row["cents"] for row in mine if row["outcome"] in _COUNTS)
            said.seen += entry["seen"]
            said.cents_uncounted += max(entry["moved"] - kept, 0)
            said.cents_twice += kept - max((row["cents"] for row in mine), default=0)
            said.rows_missing += max(entry["seen"] - sum(row["allowed"] for row in mine), 0)
            told_no = entry["refused"] or not entry["seen"]
            said.freed += bool(mine) and not told_no and not kept
            said.unanswered += family.answered.get(name) == 200 and not entry["moved"]
            said.revoked_served += name in key.asked_late and entry["seen"] > 0
            for scope in key.scopes:
                moved[scope] += entry["moved"]
    for scope, cap in family.caps.items():
        said.cents_over += max(moved[scope] - cap, counted[scope] - cap, 0)
        said.cents_uncounted += max(moved[scope] - counted[scope], 0)
    return said
