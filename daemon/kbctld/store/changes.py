"""The statements of every change that is not a call: keys, limits, tenants, policies, credentials, tokens.

What must stay true: a statement only says what to write; the journal writes it. What stops something is an
UPDATE that may be said twice, since the journal goes on saying it after a failure.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kbctl import wire
from kbctld.core.clock import Opened
from kbctld.core.duplicates import read_duplicates
from kbctld.core.grant import Grant, label_segments
from kbctld.core.limits import Limits
from kbctld.core.pace import read_loop, read_rate
from kbctld.store.journal import Statement

_LIMIT_COLUMNS = (
    "vendors, daily_cap_nano, total_cap_nano, call_cap_nano, allow, deny, rules, daily_requests, rate, loop,"
    " on_loop, duplicates, stamp"
)


def noted(now_ns: int, actor: str, action: str, subject: str, details: Mapping[str, Any]) -> Statement:
    """Who changed what, for the list of changes."""
    return (
        "INSERT INTO change (ts_ns, actor, action, subject, details) VALUES (?, ?, ?, ?, ?)",
        (now_ns, actor, action, subject, wire.encode(details).decode()),
    )


def day_begins(opened: Opened) -> Statement:
    """The day that calls count in from now on; its row is there since the start."""
    return ("UPDATE meta SET value = ? WHERE key = 'day'", (f"{opened.day} {opened.boot_ns} {opened.boot}",))


# --- keys -------------------------------------------------------------------------------------------------


def key_issued(grant: Grant, limits: Limits, said: str, *, override: bool) -> list[Statement]:
    """A new key, and the segments that its label is found by.

    Args:
        grant: the key.
        limits: as texts, where the grant has them resolved.
        said: JSON of what was said beside its policy.
        override: whether that wins over the policy.
    """
    values = (
        grant.no,
        grant.key_id,
        grant.digest,
        grant.ending,
        *_limit_values(limits),
        grant.label,
        grant.tenant,
        json.dumps(dict(grant.metadata)),
        grant.credential,
        None if grant.parent is None else grant.parent.no,
        grant.policy,
        said,
        int(override),
        grant.created_ns,
        grant.expires_ns,
    )
    marks = ", ".join("?" * len(values))
    insert = (
        f"INSERT INTO vault_key (no, key_id, digest, ending, {_LIMIT_COLUMNS}, label, tenant, metadata,"  # noqa: S608
        f" credential, parent_no, policy, said, override, created_ns, expires_ns) VALUES ({marks})"
    )
    segments = [
        ("INSERT INTO label_segment (segment, key_no) VALUES (?, ?)", (segment, grant.no))
        for segment in label_segments(grant.label)
    ]
    return [(insert, values), *segments]


def key_limited(no: int, limits: Limits) -> Statement:
    """Other limits for a key."""
    columns = ", ".join(f"{name.strip()} = ?" for name in _LIMIT_COLUMNS.split(","))
    return (f"UPDATE vault_key SET {columns} WHERE no = ?", (*_limit_values(limits), no))  # noqa: S608


def keys_revoked(now_ns: int, numbers: Iterable[int]) -> Statement:
    """The end of these keys, for those that had not ended."""
    return (
        (
            "UPDATE vault_key SET revoked_ns = ?"
            " WHERE revoked_ns IS NULL AND no IN (SELECT value FROM json_each(?))"
        ),
        (now_ns, json.dumps(list(numbers))),
    )


def key_paused(no: int, why: str | None) -> Statement:
    """A pause, or with None its end."""
    return ("UPDATE vault_key SET paused = ? WHERE no = ?", (why, no))


def key_frozen(no: int, why: str) -> Statement:
    """A key that we stopped ourselves."""
    return ("UPDATE vault_key SET frozen = ? WHERE no = ?", (why, no))


def _limit_values(limits: Limits) -> tuple[Any, ...]:
    return (
        json.dumps(limits.vendors),
        limits.daily_cap_nano,
        limits.total_cap_nano,
        limits.call_cap_nano,
        None if limits.allow is None else json.dumps(limits.allow),
        json.dumps(limits.deny),
        json.dumps(limits.rules),
        limits.daily_requests,
        None if limits.rate is None else limits.rate.text,
        None if limits.loop is None else limits.loop.text,
        None if limits.loop is None else limits.loop.action,
        None if limits.duplicates is None else limits.duplicates.text,
        int(limits.stamp),
    )


def limits_of_row(row: Mapping[str, Any]) -> Limits:
    """The limits of a key, as ``key_issued`` and ``key_limited`` wrote them."""
    return Limits(
        vendors=tuple(json.loads(row["vendors"])),
        daily_cap_nano=row["daily_cap_nano"],
        total_cap_nano=row["total_cap_nano"],
        call_cap_nano=row["call_cap_nano"],
        allow=None if row["allow"] is None else tuple(json.loads(row["allow"])),
        deny=tuple(json.loads(row["deny"])),
        rules=tuple(json.loads(row["rules"])),
        daily_requests=row["daily_requests"],
        rate=None if row["rate"] is None else read_rate(row["rate"]),
        loop=None if row["loop"] is None else read_loop(row["loop"], row["on_loop"]),
        duplicates=None if row["duplicates"] is None else read_duplicates(row["duplicates"]),
        stamp=bool(row["stamp"]),
    )


# --- tenants and policies ---------------------------------------------------------------------------------

_TENANT_COLUMNS = "daily_cap_nano, total_cap_nano, call_cap_nano, daily_requests, rate, set_ns"


def tenant_set(name: str, limits: Limits, now_ns: int) -> Statement:
    """The limits of all keys of a tenant together."""
    news = ", ".join(f"{column.strip()} = excluded.{column.strip()}" for column in _TENANT_COLUMNS.split(","))
    return (
        (
            f"INSERT INTO tenant (name, {_TENANT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
            f" ON CONFLICT (name) DO UPDATE SET {news}"
        ),
        (
            name,
            limits.daily_cap_nano,
            limits.total_cap_nano,
            limits.call_cap_nano,
            limits.daily_requests,
            None if limits.rate is None else limits.rate.text,
            now_ns,
        ),
    )


def tenant_limits_of_row(row: Mapping[str, Any]) -> Limits:
    """As ``tenant_set`` wrote them."""
    return Limits(
        daily_cap_nano=row["daily_cap_nano"],
        total_cap_nano=row["total_cap_nano"],
        call_cap_nano=row["call_cap_nano"],
        daily_requests=row["daily_requests"],
        rate=None if row["rate"] is None else read_rate(row["rate"]),
    )


def policy_set(name: str, limits: str, now_ns: int) -> Statement:
    """A policy, new or in place of another of its name; its limits are JSON."""
    return (
        (
            "INSERT INTO policy (name, limits, set_ns) VALUES (?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET limits = excluded.limits, set_ns = excluded.set_ns"
        ),
        (name, limits, now_ns),
    )


def policy_removed(name: str) -> Statement:
    """No policy of this name any more."""
    return ("DELETE FROM policy WHERE name = ?", (name,))


# --- credentials and tokens -------------------------------------------------------------------------------


def credential_set(name: str, vendor: str, version: int, now_ns: int, fields: Mapping[str, str]) -> Statement:
    """Which secret is in the store under this name, and what goes with it; never the secret."""
    return (
        (
            "INSERT INTO credential (name, vendor, version, set_ns, fields) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET vendor = excluded.vendor, version = excluded.version,"
            " set_ns = excluded.set_ns, fields = excluded.fields"
        ),
        (name, vendor, version, now_ns, json.dumps(dict(fields))),
    )


def credential_removed(name: str, version: int) -> list[Statement]:
    """It is gone, but its versions go on counting when the name comes back."""
    return [
        (
            (
                "INSERT INTO meta (key, value) VALUES ('credential_version:' || ?, ?)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            ),
            (name, version),
        ),
        ("DELETE FROM credential WHERE name = ?", (name,)),
    ]


def token_created(
    token_id: str, digest: bytes, scope: str, note: str, now_ns: int, expires_ns: int | None
) -> Statement:
    """An operator token, by its digest."""
    return (
        "INSERT INTO token (token_id, digest, scope, note, created_ns, expires_ns) VALUES (?, ?, ?, ?, ?, ?)",
        (token_id, digest, scope, note, now_ns, expires_ns),
    )


def token_revoked(token_id: str, now_ns: int) -> Statement:
    """The end of a token."""
    return (
        "UPDATE token SET revoked_ns = ? WHERE token_id = ? AND revoked_ns IS NULL",
        (now_ns, token_id),
    )


def backend_chosen(kind: str) -> Statement:
    """Where secrets are kept, as first use chose."""
    return ("INSERT INTO meta (key, value) VALUES ('secrets_backend', ?)", (kind,))
