"""The limits of a key as they are said: options of a command line, keywords of Python, entries of a file.

One table gives every limit its name, its field on the wire and the one reader of its value, so that all three
take and refuse the same. Money is an int, a Decimal or text; a float is refused, because ``0.1`` is none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, TypedDict

from kbctl import wire
from kbctl.commands import values
from kbctl.errors import Exit, KbctlError

Usd = Decimal | int | str | None
"""Dollars a person says: ``500``, ``"500.50"``, ``Decimal("0.25")``; ``"none"`` or None for no cap."""


class Said(TypedDict, total=False):
    """The keywords of ``issue`` and ``derive``. Left out: what the policy or the parent says."""

    tenant: str | None
    cap: Usd
    """Dollars a day (UTC). Must be said, unless a total cap, a policy or a parent is."""
    total_cap: Usd
    call_cap: Usd
    vendors: Sequence[str] | None
    allow: Sequence[str] | None
    deny: Sequence[str] | None
    param: Sequence[str] | None
    requests: int | str | None
    """A day; ``"none"`` or None for no limit, as for a rate, a loop and duplicates."""
    rate: str | None
    loop: str | None
    on_loop: str | None
    duplicates: str | None
    ttl: str | None
    label: str | None
    metadata: Mapping[str, str] | None
    policy: str | None
    override: bool | None
    parent: str | None
    credential: str | None
    stamp: bool | None


@dataclass(frozen=True, slots=True)
class _Limit:
    field: str
    read: Callable[[str, Any], Any]
    example: Any
    can_be_none: bool = False
    """Whether null says "no limit", rather than nothing."""


def _cap(shown: str, value: Any) -> Decimal:
    if isinstance(value, str):
        return values.usd(shown, value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        kind = type(value).__name__
        why = ": a float is not exact" if isinstance(value, float) else ""
        raise TypeError(f"{shown} takes dollars as an int, a str or a Decimal, not a {kind}{why}")
    return values.amount(shown, value)


def _count(shown: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{shown} takes a whole number, not a {type(value).__name__}")
    return values.count(shown, value)


def _text(shown: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown} takes a text, not a {type(value).__name__}")
    return value


def _texts(shown: str, value: Any) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{shown} takes a list of texts, not a {type(value).__name__}")
    return [_text(f"each of {shown}", each) for each in value]


def _rate(shown: str, value: Any) -> str:
    return values.rate(shown, _text(shown, value))


def _loop(shown: str, value: Any) -> str:
    return values.loop(shown, _text(shown, value))


def _on_loop(shown: str, value: Any) -> str:
    return values.choice(shown, _text(shown, value), ("deny", "pause"))


def _duplicates(shown: str, value: Any) -> str:
    return values.duplicates(shown, _text(shown, value))


def _ttl(shown: str, value: Any) -> str:
    return values.ttl(shown, _text(shown, value))


def _flag(shown: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{shown} takes true or false, not a {type(value).__name__}")
    return value


_LIMITS: Final = {
    "vendors": _Limit("vendors", _texts, ["stripe"]),
    "cap": _Limit("daily_usd_cap", _cap, 500, can_be_none=True),
    "total_cap": _Limit("total_usd_cap", _cap, 5000, can_be_none=True),
    "call_cap": _Limit("call_usd_cap", _cap, 50, can_be_none=True),
    "allow": _Limit("allowed_endpoints", _texts, ["POST /v1/payment_intents"]),
    "deny": _Limit("denied_endpoints", _texts, ["refunds.create"]),
    "param": _Limit("param_rules", _texts, ["customer in cus_1,cus_2"]),
    "requests": _Limit("daily_requests", _count, 1000, can_be_none=True),
    "rate": _Limit("rate", _rate, "5/s", can_be_none=True),
    "loop": _Limit("loop", _loop, "20/1m", can_be_none=True),
    "on_loop": _Limit("on_loop", _on_loop, "pause"),
    "duplicates": _Limit("duplicates", _duplicates, "refuse/10m", can_be_none=True),
    "ttl": _Limit("expires_in", _ttl, "2h"),
    "stamp": _Limit("stamp", _flag, True),
}
_BY_FIELD: Final = {limit.field: limit for limit in _LIMITS.values()}
_IDENTITY: Final = {
    "tenant": "tenant",
    "label": "agent_run_label",
    "metadata": "metadata",
    "policy": "policy",
    "override": "override",
    "parent": "parent_vault_key",
    "credential": "credential",
}


def from_options(**typed: Any) -> dict[str, Any]:
    """What was typed as options, by field; ``None`` and an empty list were not."""
    found: dict[str, Any] = {}
    for name, value in typed.items():
        if value is None or value == []:
            continue
        limit = _LIMITS[name]
        shown = "--vendor" if name == "vendors" else f"--{name.replace('_', '-')}"
        if value == "none" and limit.can_be_none:
            found[limit.field] = None
        else:
            found[limit.field] = limit.read(shown, value)
    return found


def from_keywords(said: Mapping[str, Any], function: str) -> wire.IssueRequest:
    """What was said in Python.

    Raises:
        TypeError: an unknown keyword, or a value of a wrong type; a float above all.
        KbctlError: a value that says nothing sensible, or no cap at all.
    """
    found: dict[str, Any] = {}
    for name, value in said.items():
        if name in _IDENTITY:
            if value is not None:
                found[_IDENTITY[name]] = dict(value) if isinstance(value, Mapping) else value
            continue
        if name not in _LIMITS:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        limit = _LIMITS[name]
        if value is None or value == "none":
            if limit.can_be_none:
                found[limit.field] = None
                continue
            if value is None:
                continue
        try:
            found[limit.field] = limit.read(name, value)
        except KbctlError as error:
            raise KbctlError(error.code, error.message, f"{name}={limit.example!r}", Exit.USAGE) from None
    check_said(found, "cap=500", 'policy="free", override=True')
    try:
        return wire.convert(found, wire.IssueRequest)
    except wire.WireError as error:
        raise TypeError(f"{function}(): {error}") from None


def check_said(found: Mapping[str, Any], cap_example: str, override_example: str) -> None:
    """Without policy and parent a cap must be said, or that there is none; an override is one of a policy."""
    if not found.keys() & {"daily_usd_cap", "policy", "parent_vault_key"} and not found.get("total_usd_cap"):
        raise KbctlError(
            "cap_needed", "say how much the key may spend a day, or none", cap_example, Exit.USAGE
        )
    if found.get("override") and "policy" not in found:
        raise values.bad_value("an override needs a policy to override", override_example)


def policy_entry(entry: Mapping[str, Any], place: str, line: Callable[[str, Any], str]) -> wire.Policy:
    """One policy of a file, whose numbers are int or Decimal; ``line`` writes an example as the file would.

    Raises:
        KbctlError: naming the policy and the field.
    """
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise values.bad_value(f"{place}: name must be a text", line("name", "free"))
    found: dict[str, Any] = {}
    for field, value in entry.items():
        if field == "name":
            continue
        limit = _BY_FIELD.get(field)
        if limit is None:
            known = ", ".join(("name", *_BY_FIELD))
            raise values.bad_value(
                f"policy {name}: there is no field {field!r}; the fields are {known}",
                line("daily_usd_cap", 500),
            )
        if value is None or (value == "none" and limit.can_be_none):
            if limit.can_be_none:
                found[field] = None
            continue
        try:
            if limit.read in (_cap, _count) and isinstance(value, str):
                raise TypeError(f'policy {name}: {field} takes a number or "none", not the text {value!r}')
            found[field] = limit.read(f"policy {name}: {field}", value)
        except TypeError as error:
            raise values.bad_value(str(error), line(field, limit.example)) from None
        except KbctlError as error:
            raise KbctlError(error.code, error.message, line(field, limit.example), Exit.USAGE) from None
    return wire.Policy(name=name, **found)
