"""A vendor's own list of what was made in an account: how it is asked for, and what it proves of our calls.

What must stay true: what stands in the list was done; that something does not stand there proves nothing,
however long it has not. So evidence only ever posts, never less than was held: nothing here can free money.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kbctld.core.form import read_form
from kbctld.core.ledger import NS_PER_S
from kbctld.core.lookup import Missed, at, minor_at
from kbctld.core.money import Rates, read_currency
from kbctld.core.target import Target
from kbctld.core.vendor_file import RecordTable

BEFORE_S = 60
AFTER_S = 900
"""How far from a call's time its entry is looked for: the vendor's clock is not ours."""

_ID = re.compile(r"[A-Za-z0-9_]{1,255}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Made:
    """Something that the vendor says was made.

    Attributes:
        kind: the vendor's word for it.
        at_s: when, seconds since the epoch.
        object_id: what was made.
        request_id: of the call that made it; None where the vendor did so by itself.
        key: the idempotency key of that call, as the vendor got it; in a listing, its content.
        minor: its amount in minor units; None where that can't be told.
        currency: upper case; None where that can't be told.
        part: whether it stems from another object, which counts in its place.
        told_later: the list tells no amount, and a price only some time after.
        price_nano: that price, nano-USD; None while it is not told.
    """

    kind: str
    at_s: int
    object_id: str
    request_id: str | None
    key: str | None
    minor: int | None
    currency: str | None
    part: bool = False
    told_later: bool = False
    price_nano: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the list, newest first.

    Attributes:
        after: where the next part begins; None for the last.
    """

    made: tuple[Made, ...]
    after: str | None


@dataclass(frozen=True, slots=True)
class Ours:
    """One attempt as our row tells it.

    Attributes:
        call_id: of the row that holds its money: of a retry, the first attempt's.
        at_ns: when it was let through.
        kind: what the vendor lists it as; None where it lists nothing of such calls.
        request_id: the vendor's word for the request.
        key: its idempotency key, as it was sent; in a listing, its content until it is known
            what it made.
        minor: minor units; None where nobody could tell.
        currency: upper case.
        nano: what counts for it, nano-USD.
        outcome: ``posted``, ``unknown``, ``voided`` or ``pending``.
    """

    call_id: str
    at_ns: int
    kind: str | None
    request_id: str | None
    key: str | None
    minor: int | None
    currency: str | None
    nano: int
    outcome: str


@dataclass(slots=True)
class Compared:
    """Where the two lists differ.

    Attributes:
        agree: how many calls both have, with the same amount.
        elsewhere: what the vendor lists that no call of ours made.
        absent: what we count that the vendor does not list.
        differ: what both have, with other amounts.
    """

    agree: int = 0
    elsewhere: list[Made] = field(default_factory=list)
    absent: list[Ours] = field(default_factory=list)
    differ: list[tuple[Ours, Made]] = field(default_factory=list)


def merged(parts: Iterable[Compared]) -> Compared:
    """What several comparisons come to."""
    whole = Compared()
    for part in parts:
        whole.agree += part.agree
        whole.elsewhere += part.elsewhere
        whole.absent += part.absent
        whole.differ += part.differ
    return whole


def page_target(table: RecordTable, kind: str, from_s: int, to_s: int, after: str | None) -> Target:
    """What is asked for: things of one kind, made from one second to another, both included."""
    path, _, query = table.get.partition("?")
    asked = {table.kind: kind, table.since: str(from_s), table.until: str(to_s)}
    if after is not None:
        asked[table.after] = after
    query = "&".join([*filter(None, [query]), *(f"{name}={value}" for name, value in asked.items())])
    return Target(path, tuple(path.strip("/").split("/")), query, read_form(query.encode()))


def read_page(table: RecordTable, raw: bytes) -> Page | Missed:
    """What an answer lists. One entry that can't be read spoils it all: it might be the one that matters."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return Missed("its answer is not JSON")
    items, more = at(said, table.items), at(said, table.more)
    if not isinstance(items, list) or not isinstance(more, bool):
        return Missed("its answer is no list")
    made = []
    after = None
    for item in items:
        after = at(item, table.id)
        found = _made(table, item)
        if found is None or not _plain_id(after):
            return Missed("its answer lists what can't be read")
        made.append(found)
    if more and after is None:
        return Missed("its answer has no end")
    return Page(tuple(made), str(after) if more else None)


def evidence(made: Iterable[Made], kind: str, key: str) -> Made | None:
    """What a call with this idempotency key made; None where the list does not tell, or tells of several."""
    found = [each for each in made if each.kind == kind and each.key == key and not each.part]
    return found[0] if len(found) == 1 else None


def proven_nano(
    found: Made, minor: int | None, currency: str | None, held_nano: int, rates: Rates
) -> int | None:
    """What is posted for a call that certainly happened; None where a person must decide.

    Args:
        found: what it made.
        minor: of the call's row.
        currency: of the call's row.
        held_nano: what is set aside for it.
        rates: US dollars per unit of other currencies.
    """
    if found.minor is None or found.currency is None:
        return None
    if (found.minor, found.currency) == (minor, currency):
        return held_nano
    nano = rates.nano(found.minor, found.currency)
    # Less than was held would free the rest on the strength of a key that the agent chose.
    return nano if nano is not None and nano >= held_nano else None


def compare(made: Iterable[Made], ours: Iterable[Ours], from_ns: int, to_ns: int, rates: Rates) -> Compared:
    """Where the vendor's list and our rows differ between two times.

    Both may reach further than that, so that what stands on either side of a border finds its match.
    """
    calls: dict[str, Ours] = {}
    by_request: dict[str, str] = {}
    by_key: dict[tuple[str, str], list[Ours]] = {}
    # Of several with one key, those that were refused come last.
    for each in sorted(ours, key=lambda each: each.outcome == "voided"):
        if each.request_id is not None:
            by_request[each.request_id] = each.call_id
        if each.kind is not None:
            calls[each.call_id] = each
            if each.key is not None:
                by_key.setdefault((each.kind, each.key), []).append(each)
    compared = Compared()
    matched: set[str] = set()
    for thing in made:
        if thing.part or thing.request_id is None:
            continue  # made by the vendor itself, such as a renewal, or counted with what it is a part of
        call_id = by_request.get(thing.request_id) or _by_key(by_key, thing, matched)
        inside = from_ns <= thing.at_s * NS_PER_S < to_ns
        if call_id is None:
            if inside:
                compared.elsewhere.append(thing)
            continue
        call = calls.get(call_id)
        if call is None or call.kind != thing.kind or call_id in matched:
            continue  # a side effect of a call that is counted as another thing
        matched.add(call_id)
        if not inside:
            continue
        if _alike(call, thing, rates):
            compared.agree += 1
        else:
            compared.differ.append((call, thing))
    counted = (call for call in calls.values() if call.outcome in ("posted", "unknown"))
    compared.absent = [
        call for call in counted if call.call_id not in matched and from_ns <= call.at_ns < to_ns
    ]
    return compared


def _alike(call: Ours, thing: Made, rates: Rates) -> bool:
    """Whether the same counts for both; of a bound, the row keeps the true cost in US dollars alone."""
    if thing.told_later and call.outcome != "voided":
        return thing.price_nano is None or thing.price_nano <= call.nano
    if call.outcome == "voided" or thing.minor is None or thing.currency is None:
        return False
    same = (call.minor, call.currency) == (thing.minor, thing.currency)
    return same or rates.nano(thing.minor, thing.currency) == call.nano


def _by_key(by_key: Mapping[tuple[str, str], list[Ours]], thing: Made, matched: set[str]) -> str | None:
    found = by_key.get((thing.kind, thing.key), ()) if thing.key is not None else ()
    near = (
        call.call_id
        for call in found
        # A content says less than a key: it may be asked for again at another time.
        if not thing.told_later or -BEFORE_S <= thing.at_s - call.at_ns // NS_PER_S <= AFTER_S
    )
    return next((call_id for call_id in near if call_id not in matched), None)


def _made(table: RecordTable, item: Any) -> Made | None:
    kind, at_s, object_id = at(item, table.kind), at(item, table.at), at(item, table.object)
    entry = table.kinds.get(kind) if isinstance(kind, str) else None
    if entry is None or not isinstance(at_s, int) or isinstance(at_s, bool) or not _plain_id(object_id):
        return None
    currency = at(item, table.currency)
    return Made(
        kind=kind,
        at_s=at_s,
        object_id=object_id,
        request_id=_text(at(item, table.request)),
        key=_text(at(item, table.key)),
        minor=minor_at(item, table.amount),
        currency=read_currency(currency) if isinstance(currency, str) else None,
        part=entry.part_of is not None and at(item, entry.part_of) is not None,
    )


def _plain_id(value: Any) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
