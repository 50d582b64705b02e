"""The true price of a call, where the vendor tells it some time after: when to ask, and what an answer says.

What must stay true: only a plain figure in a currency with a rate is a price. Anything else proves nothing,
and what was held stays spent; it is never freed because nobody answered.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from kbctld.core.money import NANO_PER_USD, USD_MAX, Rates, read_currency
from kbctld.core.operation import Later

TRIES_MAX = 16
"""How often a price is asked for: over three days, with a minute before the first."""
_WAIT_MAX_S = 12 * 3600

_PRICE = re.compile(r"-?([0-9]{1,9}(?:\.[0-9]{1,9})?)", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def wait_s(later: Later, tries: int) -> int:
    """Seconds until it is asked for again: twice as long each time, half a day at most."""
    return min(later.after_s << tries, _WAIT_MAX_S)


def place_of(later: Later, parameters: Mapping[str, str], said: Mapping[str, Any]) -> str | None:
    """The path where the vendor will tell it; None where the answer names no object."""
    object_id = said.get(later.object)
    if not isinstance(object_id, str) or not _ID.fullmatch(object_id):
        return None
    return _filled(later, {**parameters, "id": object_id})


def object_in(later: Later, parameters: Mapping[str, str], place: str) -> str:
    """The id of the object in what ``place_of`` gave."""
    before, _, behind = _filled(later, parameters).partition("{id}")
    return place.removeprefix(before).removesuffix(behind)


def _filled(later: Later, parameters: Mapping[str, str]) -> str:
    path = later.get
    for name, value in parameters.items():
        path = path.replace(f"{{{name}}}", value)
    return path


def true_price(later: Later, path: str, said: Mapping[str, Any], fees_nano: int, rates: Rates) -> int | None:
    """Nano-USD that the call cost, rounded up; None where the answer does not tell.

    Nothing at all is no price: it may be one that is not known yet.

    Args:
        later: where in the answer the price stands; some vendors write what they take as less than nothing.
        path: what was asked for, from ``place_of``.
        said: the members of the answer.
        fees_nano: what that price leaves out, at most.
        rates: US dollars per unit of other currencies.
    """
    nano = read_price(said.get(later.price), said.get(later.unit), rates)
    object_id = said.get(later.object)
    if nano is None or not isinstance(object_id, str) or object_id not in path:
        return None
    return nano + fees_nano


def read_price(text: Any, unit: Any, rates: Rates) -> int | None:
    """A price that a vendor writes as text, in nano-USD, rounded up; None where it is none, or nothing."""
    currency = read_currency(str(unit))
    match = _PRICE.fullmatch(text) if isinstance(text, str) else None
    rate = rates.usd_per_unit.get(currency) if currency is not None else None
    if match is None or rate is None:
        return None
    nano = -(-Fraction(match[1]) * Fraction(*rate) * NANO_PER_USD // 1)
    return nano if 0 < nano <= USD_MAX * NANO_PER_USD else None
