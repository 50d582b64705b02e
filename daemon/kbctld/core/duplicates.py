"""The same thing asked for twice: what makes two calls the same, and what is done about it.

An agent that plans again after a timeout sends what it had sent before with an idempotency key of its own
making: to the vendor a new call, and a second charge. What must stay true: a fingerprint is of what the call
does and of whom it does it for, never of how it was written down; its idempotency key and its headers are no
part of it.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeAlias

from kbctld.core.body import Body
from kbctld.core.document import Document
from kbctld.core.form import Form
from kbctld.core.operation import READS, Free, Operation, Tokens, Unpriceable
from kbctld.core.pace import NS_PER_UNIT, WINDOW_MAX_NS, PaceError
from kbctld.core.target import Target

OnDuplicate: TypeAlias = Literal["flag", "refuse"]

_TEXT = re.compile(r"(flag|refuse)(?:/([1-9][0-9]{0,5})([smh]))?", re.ASCII)
_ACTIONS: dict[str, OnDuplicate] = {"flag": "flag", "refuse": "refuse"}
_MARKS = ("agent_run_id", "kbctl_key_id")
"""Metadata that says who asks, not for what: a second run that does the same does it again."""


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What is done when a call asks for what another one has asked for.

    Attributes:
        action: let it through and say so in its row, or refuse it.
        window_ns: how long after the other one.
        text: as it is written, ``flag/10m``.
    """

    action: OnDuplicate
    window_ns: int
    text: str


FLAGGED = Duplicates("flag", 10 * NS_PER_UNIT["m"], "flag/10m")
"""Where nothing is said: no call is lost to it, and whoever looks sees it."""


def read_duplicates(text: str) -> Duplicates:
    """Read ``flag``, ``refuse``, ``flag/1h`` or ``refuse/30s``; ten minutes where no time is said.

    Raises:
        PaceError: it is none of these.
    """
    match = _TEXT.fullmatch(text)
    window_ns = int(match[2]) * NS_PER_UNIT[match[3]] if match and match[2] else FLAGGED.window_ns
    if match is None or window_ns > WINDOW_MAX_NS:
        raise PaceError(
            f"{text[:40]!r} does not say what to do with a duplicate; write flag or refuse and within how"
            " long, such as refuse/10m (1s to 24h)"
        )
    return Duplicates(_ACTIONS[match[1]], window_ns, text if match[2] else f"{text}/10m")


_UNWATCHED = (Free, Tokens, Unpriceable)


def is_watched(operation: Operation | None, method: str) -> bool:
    """Whether to do it twice is suspicious: it moves money by its request, and nobody asks for it again."""
    return (
        operation is not None
        and method not in READS
        and not operation.repeats
        and not isinstance(operation.cost, _UNWATCHED)
    )


def fingerprint(
    family: str,
    credential: str,
    method: str,
    target: Target,
    accounts: Mapping[str, str],
    body: Body,
    metadata_field: str | None,
) -> bytes:
    """What a call does, and for whom, in 16 bytes.

    Args:
        family: within which two calls are compared: a tenant, or a key with all that comes from it.
        credential: with which real key, by its name; a new secret of that name changes nothing.
        method: and the next, what is done.
        target: in its canonical form; its query in any order.
        accounts: headers that move it to another account.
        body: as it was read, in any order and spelling.
        metadata_field: where marks of the run stand that asks; they don't count.
    """
    parts = [f"{header}\0{account}\0" for header, account in sorted(accounts.items())]
    said = "".join(parts) + f"{family}\0{credential}\0{method}\0{target.path}\0"
    whole = said.encode() + target.form.canonical() + b"\0" + _unmarked(body, metadata_field)
    return hashlib.blake2b(whole, digest_size=16).digest()


def _unmarked(body: Body, metadata_field: str | None) -> bytes:
    """The body in canonical form, without the marks of the run that asks."""
    if metadata_field is None:
        return body.canonical()
    if isinstance(body, Form):
        return body.canonical(_marks_in(metadata_field))
    said = body.members.get(metadata_field) if isinstance(body, Document) else None
    if isinstance(body, Document) and isinstance(said, dict):
        kept = {name: value for name, value in said.items() if name not in _MARKS}
        return replace(body, members={**body.members, metadata_field: kept}).canonical()
    return body.canonical()


@lru_cache
def _marks_in(metadata_field: str) -> frozenset[str]:
    return frozenset(f"{metadata_field}[{name}]" for name in _MARKS)
