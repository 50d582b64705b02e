"""Whose account a call acts in, where the path names it by an id of its own.

What must stay true: the agent does not choose the account. An alias stands for the credential's own and is
replaced by it before anything is matched or recorded; any other id is another account, which a parameter rule
of the key must list. What stands where an account's id belongs is one, whatever it looks like.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct, structs

from kbctld.core.refusal import Code, Refusal
from kbctld.core.target import Target

_TAIL = re.compile(r"\.[a-z]{1,8}\Z", re.ASCII)

Text = Annotated[str, Meta(min_length=1)]


class AccountTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """How paths name an account.

    Attributes:
        field: the field of the credential with its own account's id; rules call it so too.
        after: the segment in front of an id.
        alias: an id that stands for the credential's own.
        prefix: how ids start, which are as long as the alias: found anywhere in path and query.
    """

    field: Text
    after: Text
    alias: Text
    prefix: Text


@dataclass(frozen=True, slots=True)
class Acting:
    """A target with its account told.

    Attributes:
        own: the credential's own account, where the path names it.
        other: the id of another one, or None.
    """

    target: Target
    own: str | None
    other: str | None


def find_account(table: AccountTable, target: Target, own: str) -> Acting | Refusal:
    """Replace the alias by the credential's own account and find any other that is named.

    Args:
        table: of the vendor.
        target: as it was asked for.
        own: the id of the credential's account.
    """
    segments, found = [], []
    for number, segment in enumerate(target.segments):
        tail = _TAIL.search(segment)
        name = segment[: tail.start()] if tail else segment
        before = target.segments[number - 1] if number else ""
        if before == table.after or _is_id(table, name):
            named = own if name == table.alias else name
            found.append(named)
            segment = named + segment[len(name) :]
        segments.append(segment)
    # In the query too an id of another account moves a call there; an alias is not replaced there.
    strangers = {name for name in found if name != own}
    strangers |= {text for _, text in target.form.pairs if _is_id(table, text) and text != own}
    if len(strangers) > 1:
        return Refusal(Code.AMBIGUOUS_REQUEST, "the request names two accounts of the vendor", "name one")
    path = "/" + "/".join(segments) + ("/" if target.path.endswith("/") else "")
    settled = structs.replace(target, path=path, segments=tuple(segments))
    return Acting(settled, own if own in found else None, next(iter(strangers), None))


def _is_id(table: AccountTable, text: str) -> bool:
    return len(text) == len(table.alias) and text.lower().startswith(table.prefix.lower())
