"""From what an operator or an agent says about a key to the terms that it is issued on.

What must stay true: a field that is not understood is an error that names it; what a policy or a parent
says is widened only by an operator's explicit override, and a parent's never.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from msgspec import UNSET

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.control.routes import HttpError
from kbctld.core.duplicates import FLAGGED, read_duplicates
from kbctld.core.entry import EntryError, read_entry
from kbctld.core.grant import Grant, label_segments
from kbctld.core.limits import Limits, Said, first_wider, merged, replaced, tightened
from kbctld.core.money import nano_from_usd, usd_from_nano
from kbctld.core.pace import PaceError, read_loop, read_rate
from kbctld.core.rule import RuleError, read_rule
from kbctld.core.vendor import Vendor
from kbctld.vault import Terms

_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)", re.ASCII)
_UNIT_NS = {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_LIFETIME_MAX_NS = 3660 * _UNIT_NS["d"]
_LIFETIME_NS = 24 * _UNIT_NS["h"]
_TENANT = re.compile(r"[^/\x00-\x1f\x7f]{1,200}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LABEL_MAX = 500
_METADATA_MAX = 50
_ENTRIES_MAX = 200
_REQUESTS_MAX = 10**12
_ENTRY_EXAMPLE = 'kbctl issue --cap 500 --allow "POST /v1/payment_intents"'
_RULE_EXAMPLE = 'kbctl issue --cap 500 --param "payment_intents.create: amount <= 20000"'


def usage(code: str, message: str, remedy: str = "kbctl --help") -> KbctlError:
    """The asker's mistake."""
    return KbctlError(code, message, remedy, Exit.USAGE)


# --- reading limits -----------------------------------------------------------------------------------


def said_in(limits: wire.Limits, vendors: Sequence[Vendor]) -> dict[str, Any]:
    """The limits that were said explicitly, checked.

    Args:
        limits: as they came.
        vendors: whose operations lists and rules may name.

    Raises:
        KbctlError: a value that can't be, naming its field.
    """
    said = dict[str, Any]()
    for field, name, usd in (
        ("daily_usd_cap", "daily_cap_nano", limits.daily_usd_cap),
        ("total_usd_cap", "total_cap_nano", limits.total_usd_cap),
        ("call_usd_cap", "call_cap_nano", limits.call_usd_cap),
    ):
        if usd is not UNSET:
            said[name] = _cap(field, usd)
    if limits.vendors is not None:
        said["vendors"] = tuple(sorted(set(limits.vendors)))
    if limits.allowed_endpoints is not None:
        said["allow"] = _entries("allowed_endpoints", limits.allowed_endpoints, vendors)
    if limits.denied_endpoints:
        said["deny"] = _entries("denied_endpoints", limits.denied_endpoints, vendors)
    if limits.param_rules:
        said["rules"] = _rules(limits.param_rules, vendors)
    if limits.daily_requests is not UNSET:
        said["daily_requests"] = _requests(limits.daily_requests)
    if limits.rate is not UNSET:
        said["rate"] = None if limits.rate is None else _paced("rate", read_rate, limits.rate)
    if limits.loop is not UNSET:
        action = limits.on_loop or "deny"
        if action not in ("deny", "pause"):
            raise usage("invalid_request", f"`on_loop` takes deny or pause, not {action[:100]!r}")
        said["loop"] = None if limits.loop is None else _paced("loop", read_loop, limits.loop, action)
    elif limits.on_loop is not None:
        raise usage(
            "invalid_request", "`on_loop` says what happens when `loop` is reached, and there is none"
        )
    if limits.duplicates is not UNSET:
        text = limits.duplicates
        said["duplicates"] = None if text is None else _paced("duplicates", read_duplicates, text)
    if limits.expires_in is not None:
        never = limits.expires_in == "never"
        said["lifetime_ns"] = None if never else duration_ns("expires_in", limits.expires_in)
    if limits.stamp is not None:
        said["stamp"] = limits.stamp
    return said


def _cap(field: str, usd: Decimal | int | None) -> int | None:
    if usd is None:
        return None
    try:
        nano = nano_from_usd(usd)
    except ValueError as error:
        raise usage("invalid_request", f"`{field}`: {error}") from None
    if nano == 0:
        raise usage("invalid_request", f"`{field}` is above zero; null (--cap none) sets no limit")
    return nano


def _entries(field: str, texts: list[str], vendors: Sequence[Vendor]) -> tuple[str, ...]:
    if len(texts) > _ENTRIES_MAX:
        raise usage("invalid_request", f"`{field}` takes at most {_ENTRIES_MAX} entries")
    for text in texts:
        try:
            read_entry(text[:1000], vendors)
        except EntryError as error:
            raise usage("endpoint_entry", f"`{field}`: {error}", _ENTRY_EXAMPLE) from None
    return tuple(dict.fromkeys(texts))


def _rules(texts: list[str], vendors: Sequence[Vendor]) -> tuple[str, ...]:
    if len(texts) > _ENTRIES_MAX:
        raise usage("invalid_request", f"`param_rules` takes at most {_ENTRIES_MAX} rules")
    for text in texts:
        try:
            read_rule(text, vendors)
        except (RuleError, EntryError) as error:
            raise usage("param_rule", f"`param_rules`: {error}", _RULE_EXAMPLE) from None
    return tuple(dict.fromkeys(texts))


def _requests(number: int | None) -> int | None:
    if number is not None and not 1 <= number <= _REQUESTS_MAX:
        raise usage(
            "invalid_request", "`daily_requests` takes a whole number above zero, or null for no limit"
        )
    return number


def _paced(field: str, read: Any, *texts: str) -> Any:
    try:
        return read(*texts)
    except PaceError as error:
        raise usage("invalid_request", f"`{field}`: {error}") from None


def duration_ns(field: str, text: str) -> int:
    """``30m``, ``2h``, ``7d`` in nanoseconds."""
    match = _DURATION.fullmatch(text)
    nano = int(match[1]) * _UNIT_NS[match[2]] if match else 0
    if not 0 < nano <= _LIFETIME_MAX_NS:
        raise usage(
            "invalid_request", f"`{field}` takes 30m, 2h, 7d or never (at most 10 years), not {text[:100]!r}"
        )
    return nano


# --- limits as they are shown ---------------------------------------------------------------------------


def said_on_wire(said: Said) -> dict[str, Any]:
    """The same as fields of ``wire.Limits``."""
    shown = dict[str, Any]()
    for name, value in said.items():
        match name:
            case "daily_cap_nano" | "total_cap_nano" | "call_cap_nano":
                shown[name.replace("_cap_nano", "_usd_cap")] = None if value is None else usd_from_nano(value)
            case "allow":
                shown["allowed_endpoints"] = list(value)
            case "deny":
                shown["denied_endpoints"] = list(value)
            case "rules":
                shown["param_rules"] = list(value)
            case "vendors":
                shown["vendors"] = list(value)
            case "rate" | "duplicates":
                shown[name] = None if value is None else value.text
            case "loop":
                shown["loop"] = None if value is None else value.text
                if value is not None:
                    shown["on_loop"] = value.action
            case "lifetime_ns":
                shown["expires_in"] = _say_duration(value)
            case _:
                shown[name] = value
    return shown


def _say_duration(nano: int | None) -> str:
    if nano is None:
        return "never"
    unit = next(unit for unit in ("d", "h", "m", "s") if nano % _UNIT_NS[unit] == 0)
    return f"{nano // _UNIT_NS[unit]}{unit}"


# --- terms ----------------------------------------------------------------------------------------------


def resolve(
    request: wire.IssueRequest,
    *,
    vendors: tuple[str, ...] | None,
    known: Mapping[str, Vendor],
    policy: Said | None,
    parent: Grant | None,
    default_vendors: tuple[str, ...],
    now_ns: int,
) -> Terms:
    """The terms of a new key.

    Args:
        request: what was asked for.
        vendors: the vendors it names, checked; None where it names none.
        known: all vendors.
        policy: what the policy that it names says.
        parent: the key that it is to be derived from.
        default_vendors: what it reaches where nothing says.
        now_ns: effective time.

    Raises:
        KbctlError: a field that can't be, or one that is wider than policy or parent allow.
    """
    reach = vendors or (parent.vendors if parent else (policy or {}).get("vendors")) or default_vendors
    reached = [known[name] for name in reach if name in known]
    said = said_in(request, reached)
    said.pop("vendors", None)
    if vendors is not None:
        said["vendors"] = vendors
    limits = merged(said, Limits())
    everything = said
    every = list(known.values())
    if policy is not None:
        base = merged(policy, Limits())
        if request.override:
            limits = replaced(said, base)
        else:
            _refuse_wider(first_wider(said, base, every), said, base, f"the policy {request.policy}")
            limits = merged(said, base)
        everything = {**policy, **said}
        for name in ("deny", "rules"):
            if getattr(limits, name):
                everything[name] = getattr(limits, name)
    if parent is not None:
        base = limits_of(parent, now_ns)
        _refuse_wider(first_wider(everything, base, every), everything, base, f"its parent {parent.key_id}")
        limits = merged(everything, base)
        if "lifetime_ns" not in everything:
            limits = replace(limits, lifetime_ns=min(_LIFETIME_NS, base.lifetime_ns or _LIFETIME_NS))
    else:
        if "daily_cap_nano" not in everything and limits.total_cap_nano is None:
            raise usage(
                "cap_missing",
                "a key needs daily_usd_cap",
                "kbctl issue --cap 500, or --cap none to set no limit",
            )
        if "lifetime_ns" not in everything:
            limits = replace(limits, lifetime_ns=_LIFETIME_NS)
        if "duplicates" not in everything:
            limits = replace(limits, duplicates=FLAGGED)
    limits = replace(limits, vendors=limits.vendors or default_vendors)
    label, tenant, metadata = _names(request, parent)
    return Terms(
        limits=limits,
        label=label,
        tenant=tenant,
        metadata=metadata,
        credential=request.credential or (parent.credential if parent else None),
        parent=parent,
        policy=request.policy,
        said=wire.encode(said_on_wire(said)).decode(),
        override=bool(request.override),
    )


def pushed(row: Mapping[str, Any], policy: Said, known: Mapping[str, Vendor], before: Limits) -> Limits:
    """The limits of a live key once its policy has changed: what was said beside it stays said.

    What would now be wider gives way to the policy, unless it was an override. The key's vendors stay where
    neither says; its expiry stays as it was issued.
    """
    vendors = list(known.values())
    said = said_in(wire.decode(row["said"].encode(), wire.Limits), vendors)
    base = merged(policy, Limits())
    limits = replaced(said, base) if row["override"] else tightened(said, base, vendors)
    if "duplicates" not in {*policy, *said}:
        limits = replace(limits, duplicates=FLAGGED)
    # None where neither says; where both do and have none in common, the key reaches nothing.
    reach = before.vendors if limits.vendors is None else limits.vendors
    return replace(limits, vendors=reach, lifetime_ns=before.lifetime_ns)


def limits_of(grant: Grant, now_ns: int) -> Limits:
    """What a grant may do itself; the lifetime is what is left of it."""
    scope = grant.scope
    return Limits(
        vendors=grant.vendors,
        daily_cap_nano=scope.daily_cap_nano,
        total_cap_nano=scope.total_cap_nano,
        call_cap_nano=scope.call_cap_nano,
        allow=None if grant.allow is None else tuple(entry.text for entry in grant.allow),
        deny=tuple(entry.text for entry in grant.deny),
        rules=tuple(rule.text for rule in grant.rules),
        daily_requests=scope.daily_requests,
        rate=None if scope.bucket is None else scope.bucket.rate,
        loop=grant.loop,
        duplicates=grant.duplicates,
        lifetime_ns=None if grant.expires_ns is None else grant.expires_ns - now_ns,
        stamp=grant.stamp,
    )


_LIMIT_FIELDS = {
    "daily_usd_cap": "daily_cap_nano",
    "total_usd_cap": "total_cap_nano",
    "call_usd_cap": "call_cap_nano",
    "rate": "rate",
    "loop": "loop",
    "duplicates": "duplicates",
    "daily_requests": "daily_requests",
}


def _refuse_wider(field: str | None, said: Said, base: Limits, whose: str) -> None:
    if field is None:
        return
    name = _LIMIT_FIELDS.get(field)
    compared = ""
    if name is not None:
        asked = said_on_wire({name: said[name]})[field]
        allowed = said_on_wire({name: getattr(base, name)})[field]
        compared = f": {'none' if asked is None else asked} is asked for, and {allowed} is the most"
    policy = whose.startswith("the policy")
    raise HttpError(
        403,
        "wider_than_policy" if policy else "wider_than_parent",
        f"`{field}` is wider than {whose} allows{compared}",
        "kbctl issue --override    # with the same flags"
        if policy
        else "ask for no more than the parent may",
    )


def _names(request: wire.IssueRequest, parent: Grant | None) -> tuple[str, str | None, dict[str, str]]:
    """Label, tenant and metadata, each completed from the other two and from the parent."""
    label, tenant = request.agent_run_label or "", request.tenant
    if len(label) > _LABEL_MAX or _CONTROL.search(label):
        raise usage(
            "invalid_request",
            f"`agent_run_label` takes at most {_LABEL_MAX} characters, no control characters",
        )
    if parent is not None:
        # What a parent is known by stays: a child adds to it.
        have = label_segments(parent.label)
        label = "/".join([*have, *(segment for segment in label_segments(label) if segment not in have)])
        tenant = tenant or parent.tenant
        if tenant != parent.tenant:
            raise HttpError(403, "wider_than_parent", "`tenant` is another than the parent's", "leave it out")
    from_label = [segment[7:] for segment in label_segments(label) if segment.startswith("tenant:")]
    if parent is not None and any(name != parent.tenant for name in from_label):
        raise HttpError(
            403,
            "wider_than_parent",
            "`agent_run_label` names another tenant than the parent's",
            "leave it out",
        )
    if len(from_label) > 1:
        raise usage("invalid_request", "`agent_run_label` names more than one tenant")
    if tenant is None and from_label:
        tenant = from_label[0]
    if tenant is not None:
        check_tenant(tenant)
        if f"tenant:{tenant}" not in label_segments(label):
            if from_label:
                raise usage("invalid_request", f"`agent_run_label` names another tenant than {tenant!r}")
            label = f"{label}/tenant:{tenant}" if label else f"tenant:{tenant}"
    if len(label) > 2 * _LABEL_MAX:
        raise usage("invalid_request", "`agent_run_label` is too long together with the parent's")
    metadata = dict(request.metadata or {})
    if len(metadata) > _METADATA_MAX or any(
        not 0 < len(name) <= 100 or len(value) > 500 for name, value in metadata.items()
    ):
        raise usage(
            "invalid_request",
            f"`metadata` takes at most {_METADATA_MAX} entries, names to 100 and values to 500 characters",
        )
    if parent is not None:
        if tenant is None and "tenant_id" in metadata.keys() - parent.metadata.keys():
            # What keys are looked up by: a tenant's name is not an agent's to take.
            raise HttpError(
                403, "wider_than_parent", "`metadata.tenant_id` names a tenant, and the parent has none", ""
            )
        metadata = {**metadata, **parent.metadata}
    if tenant is not None and metadata.setdefault("tenant_id", tenant) != tenant:
        raise usage("invalid_request", f"`metadata.tenant_id` names another tenant than {tenant!r}")
    return label, tenant, metadata


def check_tenant(tenant: str) -> None:
    """Refuse what can't be a tenant's name."""
    if not _TENANT.fullmatch(tenant):
        raise usage("invalid_request", "`tenant` takes 1 to 200 characters without / and control characters")
