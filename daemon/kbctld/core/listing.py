"""A vendor's list that tells no request: what is asked for, and which entry a call of ours has made.

A call is found in it by its content: what it asked for, which its entry repeats. What must stay true: what
stands in the list was done, and that something does not stand there proves nothing; an entry is evidence for
one call, however many asked for the same; and where others ask for the same around us, it is for none.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from kbctld.core.body import Body
from kbctld.core.form import AmbiguousFieldError, Form, read_form
from kbctld.core.later import read_price
from kbctld.core.lookup import Missed, at
from kbctld.core.money import Rates
from kbctld.core.record import AFTER_S, BEFORE_S, Made, Page
from kbctld.core.target import Target
from kbctld.core.vendor_file import ListingTable

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_NEXT = re.compile(r"[A-Za-z0-9_.~%=&:+-]{1,2000}", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,4}", re.ASCII)
_DATE = re.compile(
    r"(?:[A-Z][a-z]{2}, )?([0-9]{1,2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) \+0000",
    re.ASCII,
)
_MONTHS = {name: n for n, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}


@dataclass(frozen=True, slots=True)
class Rival:
    """A call of ours whose entry is not known, among those that asked for the same.

    Attributes:
        at_s: when it was let through, seconds since the epoch.
        counts_in: whose money it is, how much, and of which day: of two that are equal in this it does not
            matter which was done.
        outcome: ``posted``, ``unknown`` or ``pending``.
    """

    call_id: str
    at_s: int
    counts_in: tuple[int, ...]
    outcome: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """That a call was done.

    Attributes:
        made: what it made.
        certain: whether its entry may pass for that one in all that follows; else it is one of several.
    """

    made: Made
    certain: bool


def content(table: ListingTable, name: str, path: str, body: Body) -> bytes | None:
    """What a call asks for, as its entry will repeat it, in 16 bytes; None where that can't be told.

    Args:
        table: where the entry will stand.
        name: of that table.
        path: of the list, with the account in it.
        body: of the call.
    """
    if not isinstance(body, Form):
        return None
    try:
        values = [_first(body.one(field) for field in fields) for fields in table.same]
        counts = [len(body.texts(field)) for field in table.counts]
    except AmbiguousFieldError:
        return None
    return _digest(name, path, values, counts)


def list_path(table: ListingTable, parameters: Mapping[str, str]) -> str:
    """The path of the list."""
    path = table.get.partition("?")[0]
    for name, value in parameters.items():
        path = path.replace("{" + name + "}", value)
    return path


def page_target(table: ListingTable, path: str, from_s: int, to_s: int, after: str | None) -> Target:
    """What is asked for: things made from one second to another; or the next page, by its query."""
    if after is None:
        always = table.get.partition("?")[2]
        asked = ((table.since, from_s), (table.until, to_s))
        times = [f"{quote(name)}={_rfc3339(seconds)}" for name, seconds in asked]
        after = "&".join([*filter(None, [always]), *times])
    return Target(path, tuple(path.strip("/").split("/")), after, read_form(after.encode()))


def read_page(table: ListingTable, name: str, path: str, raw: bytes, rates: Rates) -> Page | Missed:
    """What an answer lists. One entry that can't be read spoils it all: it might be the one that matters."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return Missed("its answer is not JSON")
    items = at(said, table.items)
    if not isinstance(items, list):
        return Missed("its answer is no list")
    made = []
    for item in items:
        if any(at(item, member) != wanted for member, wanted in table.only.items()):
            continue  # it was not a call that made it
        found = _made(table, name, path, item, rates)
        if found is None:
            return Missed("its answer lists what can't be read")
        made.append(found)
    there = at(said, table.next)
    if there is None:
        return Page(tuple(made), None)
    there, _, query = there.partition("?") if isinstance(there, str) else ("", "", "")
    if there != path or not _NEXT.fullmatch(query):
        return Missed("its answer has no end")
    return Page(tuple(made), query)


def cluster(call_id: str, rivals: Iterable[Rival]) -> list[Rival]:
    """Those among whom an entry may be the call's or another's, in the order of their times; the call too."""
    ordered = sorted(rivals, key=lambda each: (each.at_s, each.call_id))
    groups: list[list[Rival]] = []
    for rival in ordered:
        if not groups or rival.at_s - groups[-1][-1].at_s > BEFORE_S + AFTER_S:
            groups.append([])
        groups[-1].append(rival)
    return next((group for group in groups if any(each.call_id == call_id for each in group)), [])


def evidence(call_id: str, group: list[Rival], made: Iterable[Made]) -> Evidence | None:
    """What a call made; None where the list does not tell.

    Args:
        call_id: the call's.
        group: from ``cluster``.
        made: entries of its content that no call of ours is known to have made.
    """
    if any(rival.outcome == "pending" for rival in group):
        return None  # it is about to tell for itself
    near = [thing for thing in made if any(_reaches(rival, thing) for rival in group)]
    near.sort(key=lambda thing: (thing.at_s, thing.object_id))
    pairs = _paired(group, near)
    if len(pairs) < len(near):
        return None  # somebody asks for the same around us: any of them may be theirs
    alike = len({rival.counts_in for rival in group}) == 1
    all_done = len(pairs) == len(group)
    if not all_done and not (alike and all(rival.outcome == "unknown" for rival in group)):
        return None  # not all were done, and it matters which
    found = pairs.get(call_id)
    return None if found is None else Evidence(found, alike)


def _paired(group: list[Rival], made: list[Made]) -> dict[str, Made]:
    """As many of them as can be, each with an entry of its own; both in the order of their times."""
    pairs: dict[str, Made] = {}
    rest = list(made)
    for rival in group:
        # Whatever is too early for this one is too early for all that follow.
        while rest and rest[0].at_s < rival.at_s - BEFORE_S:
            rest.pop(0)
        if rest and _reaches(rival, rest[0]):
            pairs[rival.call_id] = rest.pop(0)
    return pairs


def _reaches(rival: Rival, thing: Made) -> bool:
    return rival.at_s - BEFORE_S <= thing.at_s <= rival.at_s + AFTER_S


def _made(table: ListingTable, name: str, path: str, item: Any, rates: Rates) -> Made | None:
    object_id, at_s = at(item, table.object), _seconds(at(item, table.at))
    values = [_first(at(item, member) for member in members.values()) for members in table.same]
    counts = [at(item, member) for member in table.counts.values()]
    plain = all(isinstance(value, str) for value in values)
    counted = all(isinstance(count, str) and _COUNT.fullmatch(count) for count in counts)
    if not isinstance(object_id, str) or not _ID.fullmatch(object_id) or at_s is None:
        return None
    if not plain or not counted:
        return None
    return Made(
        kind=name,
        at_s=at_s,
        object_id=object_id,
        request_id=object_id,
        key=_digest(name, path, values, [int(count) for count in counts]).hex(),
        minor=None,
        currency=None,
        told_later=True,
        price_nano=read_price(at(item, table.price), at(item, table.unit), rates),
    )


def _first(values: Iterable[Any]) -> Any:
    """The first that is there; nothing and an empty text are the same."""
    return next((value for value in values if value not in (None, "")), "")


def _digest(name: str, path: str, values: Iterable[str], counts: Iterable[int]) -> bytes:
    written = json.dumps([name, path, *values, *counts])
    return hashlib.blake2b(written.encode(), digest_size=16, person=b"kbctl-content").digest()


def _rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(text: Any) -> int | None:
    match = _DATE.fullmatch(text) if isinstance(text, str) else None
    month = _MONTHS.get(match[2]) if match is not None else None
    if match is None or month is None:
        return None
    day, year, hour, minute, second = (int(match[n]) for n in (1, 3, 4, 5, 6))
    try:
        return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())
    except ValueError:
        return None
