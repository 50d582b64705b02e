"""What a key, a policy or a tenant may set; and the rule that what is derived is never wider.

What must stay true: None is the widest value of a cap, a rate or a lifetime; what can't be shown to be
within its base counts as wider. A deny entry and a parameter rule only ever add up.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kbctld.core.duplicates import Duplicates
from kbctld.core.entry import Entry, EntryError, read_entry
from kbctld.core.operation import READS, Operation
from kbctld.core.pace import Loop, Rate
from kbctld.core.rule import RuleError, read_rule
from kbctld.core.vendor import Vendor


@dataclass(frozen=True, slots=True)
class Limits:
    """A whole set, resolved.

    Attributes:
        vendors: None where nothing was said.
        allow: None for every operation whose cost is known, privileged ones excepted.
        rules: parameter rules, as written.
        lifetime_ns: None for never.
    """

    vendors: tuple[str, ...] | None = None
    daily_cap_nano: int | None = None
    total_cap_nano: int | None = None
    call_cap_nano: int | None = None
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    daily_requests: int | None = None
    rate: Rate | None = None
    loop: Loop | None = None
    duplicates: Duplicates | None = None
    lifetime_ns: int | None = None
    stamp: bool = False


Said = Mapping[str, Any]
"""Fields of ``Limits`` that somebody said explicitly; the others are not in it."""

ADDING = frozenset({"deny", "rules"})
"""Fields that a narrower set adds to, rather than replaces."""

WIRE_NAMES = {
    "vendors": "vendors",
    "daily_cap_nano": "daily_usd_cap",
    "total_cap_nano": "total_usd_cap",
    "call_cap_nano": "call_usd_cap",
    "allow": "allowed_endpoints",
    "deny": "denied_endpoints",
    "rules": "param_rules",
    "daily_requests": "daily_requests",
    "rate": "rate",
    "loop": "loop",
    "duplicates": "duplicates",
    "lifetime_ns": "expires_in",
    "stamp": "stamp",
}
"""What people call each field."""


def merged(said: Said, base: Limits) -> Limits:
    """``base`` with what was said put over it, or added to it."""
    values = {field.name: getattr(base, field.name) for field in fields(base)}
    for name, value in said.items():
        values[name] = _joined(values[name], value) if name in ADDING else value
    return Limits(**values)


def replaced(said: Said, base: Limits) -> Limits:
    """``base`` with what was said in its place, lists too: the operator's own word against a policy."""
    return Limits(**{**{field.name: getattr(base, field.name) for field in fields(base)}, **said})


def first_wider(said: Said, base: Limits, vendors: Sequence[Vendor]) -> str | None:
    """The first field that would widen ``base``, by the name people use; None where none would."""
    for name, value in said.items():
        if not _within(name, value, base, vendors):
            return WIRE_NAMES[name]
    return None


def tightened(said: Said, base: Limits, vendors: Sequence[Vendor]) -> Limits:
    """``base`` with what was said put over it only where that is no wider."""
    fitting = dict[str, Any]()
    for name, value in said.items():
        if _within(name, value, base, vendors):
            fitting[name] = value
        elif name == "rules":
            fitting[name] = tuple(text for text in value if _within(name, (text,), base, vendors))
        elif name == "allow":
            fitting[name] = tuple(text for text in value or () if _within(name, (text,), base, vendors))
        elif name == "vendors":
            fitting[name] = tuple(vendor for vendor in value or () if vendor in (base.vendors or ()))
    return merged(fitting, base)


def _joined(before: Iterable[str], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*before, *more]))


def _within(name: str, value: Any, base: Limits, vendors: Sequence[Vendor]) -> bool:
    bound = getattr(base, name)
    match name:
        case "allow":
            return _endpoints_within(value, base, vendors)
        case "vendors":
            return bound is None or (value is not None and set(value) <= set(bound))
        case "stamp":
            return bool(value) or not bound
        case "deny":
            return True
        case "rules":
            return _rules_within(value, bound, vendors)
        case _:
            return bound is None or (value is not None and _NO_WIDER[name](value, bound))


def _rate_within(rate: Rate, base: Rate) -> bool:
    # Both the steady pace and the burst: 300/m is 5/s, but lets 300 through at once.
    return rate.count * base.per_ns <= base.count * rate.per_ns and rate.count <= base.count


def _loop_within(loop: Loop, base: Loop) -> bool:
    milder = base.action == "pause" and loop.action != "pause"
    return loop.times <= base.times and loop.window_ns >= base.window_ns and not milder


def _duplicates_within(duplicates: Duplicates, base: Duplicates) -> bool:
    milder = base.action == "refuse" and duplicates.action != "refuse"
    return duplicates.window_ns >= base.window_ns and not milder


def _rules_within(rules: Iterable[str], base: Iterable[str], vendors: Sequence[Vendor]) -> bool:
    """A rule takes away, but for one: that an account is listed opens it."""
    accounts = {header for vendor in vendors for header in vendor.account_headers}
    return not (_fields(rules, vendors) & accounts) - _fields(base, vendors)


def _fields(rules: Iterable[str], vendors: Sequence[Vendor]) -> set[str]:
    """The fields that rules are about; one whose scope only another vendor knows binds nothing here."""
    found = set()
    for text in rules:
        try:
            found.add(read_rule(text, vendors).field.lower())
        except RuleError:
            continue
    return found


def _number_within(value: int, base: int) -> bool:
    return value <= base


_NO_WIDER: dict[str, Callable[[Any, Any], bool]] = {
    "daily_cap_nano": _number_within,
    "total_cap_nano": _number_within,
    "call_cap_nano": _number_within,
    "daily_requests": _number_within,
    "lifetime_ns": _number_within,
    "rate": _rate_within,
    "loop": _loop_within,
    "duplicates": _duplicates_within,
}


def _endpoints_within(allow: Sequence[str] | None, base: Limits, vendors: Sequence[Vendor]) -> bool:
    if allow is None:
        return base.allow is None
    entries = _read(allow, vendors)
    if base.allow is None:
        return all(_by_default(entry, base, vendors) for entry in entries)
    known = _read(base.allow, vendors)
    return all(any(_covered(entry, each, vendors) for each in known) for entry in entries)


def _read(texts: Iterable[str], vendors: Sequence[Vendor]) -> list[Entry]:
    """All that speak of these vendors: the name of another one's operation reaches nothing here."""
    entries = []
    for text in texts:
        try:
            entries.append(read_entry(text, vendors))
        except EntryError:
            continue
    return entries


def _by_default(entry: Entry, base: Limits, vendors: Sequence[Vendor]) -> bool:
    """Whether every call of ``entry`` is one that a key without a list may make.

    Privileged operations are not, nor are writes whose cost nobody knows. Under a cap those are refused by
    their price, whatever a list says.
    """
    operations = _operations(entry, vendors)
    if any(operation.privileged for operation in operations):
        return False
    if entry.operation is not None or entry.method in READS:
        return True
    capped = not (base.daily_cap_nano is base.total_cap_nano is base.call_cap_nano is None)
    return capped or len(operations) == len(vendors)


def _operations(entry: Entry, vendors: Sequence[Vendor]) -> list[Operation]:
    """The operations that an entry names exactly, at most one of each vendor."""
    if entry.wild:
        return []
    if entry.operation is not None:
        found = [vendor.operations.get(entry.operation) for vendor in vendors]
    else:
        path = entry.text.partition(" ")[2]
        found = [vendor.match(entry.method, path, entry.segments)[0] for vendor in vendors]
    return [operation for operation in found if operation is not None]


def _covered(entry: Entry, base: Entry, vendors: Sequence[Vendor]) -> bool:
    """Whether every call of ``entry`` is one of ``base``."""
    operations = _operations(entry, vendors)
    if base.operation is not None:
        if entry.operation is not None:
            return entry.operation == base.operation
        # A path is one of every vendor: with another one it may be something else, or nothing known.
        return len(operations) == len(vendors) and all(each.name == base.operation for each in operations)
    if base.wild and any(operation.privileged for operation in operations):
        return False
    if entry.operation is None:
        return _pattern_covered(entry, base)
    return all(_pattern_covered(_pattern(operation), base) for operation in operations)


def _pattern(operation: Operation) -> Entry:
    method, _, path = operation.match.partition(" ")
    segments = tuple("*" if segment.startswith("{") else segment for segment in path.strip("/").split("/"))
    return Entry(f"{method} {path}", method=method, segments=segments)


def _pattern_covered(entry: Entry, base: Entry) -> bool:
    if entry.method != base.method or entry.text.endswith("/") != base.text.endswith("/"):
        return False
    have, want = len(entry.segments), len(base.segments)
    if base.rest:
        if have < want or (have == want and not entry.rest):
            return False
    elif entry.rest or have != want:
        return False
    return all(theirs in ("*", ours) for theirs, ours in zip(base.segments, entry.segments, strict=False))
