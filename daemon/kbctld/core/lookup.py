"""What only the vendor knows of an object: which one to read before a call is priced, and what was read.

What must stay true: the path of a look-up comes from the vendor file, with nothing of the agent's in it but
ids of the plainest kind; an answer that does not say exactly what was asked is no answer.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from kbctld.core.body import Body
from kbctld.core.form import AmbiguousFieldError, read_form
from kbctld.core.money import MINOR_MAX, read_currency
from kbctld.core.operation import PLACEHOLDER, Amount, Increase, LookUp, Operation
from kbctld.core.target import Target
from kbctld.core.vendor import Vendor
from kbctld.core.vendor_file import LookupTable

_ID = re.compile(r"[A-Za-z0-9_]{1,255}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Plan:
    """One look-up to make.

    Attributes:
        table: how its answer is read.
        target: what is asked for.
    """

    table: LookupTable
    target: Target


@dataclass(frozen=True, slots=True)
class Found:
    """What the vendor says.

    Attributes:
        minor: of what the call may move at most.
        currency: upper case.
    """

    minor: int
    currency: str


@dataclass(frozen=True, slots=True)
class Missed:
    """No answer that could be used; the clause says why."""

    why: str


_LOOKS_UP = (Amount, Increase, LookUp)


def looks_up(operation: Operation) -> bool:
    """Whether there is anything to read for it at all."""
    return isinstance(operation.cost, _LOOKS_UP) and bool(operation.cost.lookup)


def plan_lookup(
    vendor: Vendor, operation: Operation, body: Body, parameters: Mapping[str, str], known: Mapping[str, Any]
) -> Plan | None:
    """What must be read before this call can be priced; None where nothing must or nothing can.

    Args:
        vendor: whose file has the look-ups.
        operation: what is attempted.
        body: what it says.
        parameters: of the path.
        known: the objects that are remembered, by id.
    """
    cost = operation.cost
    if not isinstance(cost, _LOOKS_UP) or not looks_up(operation):
        return None
    try:
        if not _asks(cost, body, parameters, known):
            return None
        plans = list(_plans([vendor.file.lookup[name] for name in cost.lookup], body, parameters))
    except AmbiguousFieldError:
        return None  # pricing refuses it
    return plans[0] if len(plans) == 1 else None  # of two objects we would not know which the vendor takes


def _asks(
    cost: Amount | Increase | LookUp, body: Body, parameters: Mapping[str, str], known: Mapping[str, Any]
) -> bool:
    """Whether the request alone, with what is remembered, does not tell the cost."""
    match cost:
        case LookUp():
            return True
        case Amount():
            return body.one(cost.amount) is None
        case Increase():
            return parameters[cost.of] not in known and not _says_nothing(cost, body)
        case _:
            assert_never(cost)


def _says_nothing(cost: Increase, body: Body) -> bool:
    """Whether it is of no account as long as no amount is stated, and none is."""
    stated = (field for field in (cost.amount, cost.currency) if field)
    return cost.only_stated and all(body.one(field) is None for field in stated)


def _plans(tables: list[LookupTable], body: Body, parameters: Mapping[str, str]) -> Iterator[Plan]:
    for table in tables:
        names = PLACEHOLDER.findall(table.get)
        ids = {name: parameters.get(name) or body.one(name) for name in names}
        if all(found is not None and _ID.fullmatch(found) for found in ids.values()):
            path, _, query = table.get.partition("?")
            for name, found in ids.items():
                path = path.replace("{" + name + "}", str(found))
            segments = tuple(path.strip("/").split("/"))
            yield Plan(table, Target(path, segments, query, read_form(query.encode())))


def read_found(table: LookupTable, raw: bytes) -> Found | Missed:
    """What an answer says of the object."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return Missed("its answer is not JSON")
    for path, wanted in table.require.items():
        there = at(said, path)
        if type(there) is not type(wanted) or there != wanted:
            return Missed(f"its {path} is not {json.dumps(wanted)}")
    minor = minor_at(said, table.amount)
    less = 0 if table.minus is None else minor_at(said, table.minus)
    currency = at(said, table.currency)
    code = read_currency(currency) if isinstance(currency, str) else None
    if minor is None or less is None or less > minor or code is None:
        return Missed(f"its answer tells no {table.amount} that could be counted")
    return Found(minor - less, code)


def at(said: Any, path: str) -> Any:
    """What stands at a path of names in an answer; None where nothing does."""
    for name in path.split("."):
        said = said.get(name) if isinstance(said, dict) else None
    return said


def minor_at(said: Any, path: str) -> int | None:
    """The amount that stands there, in minor units; None where it is none."""
    value = at(said, path)
    plain = isinstance(value, int) and not isinstance(value, bool)
    return value if plain and 0 <= value < MINOR_MAX else None
