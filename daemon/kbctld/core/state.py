"""What an object says of a call on it that got no answer: that it was done, or that it never will be.

What must stay true: only a state that no call leaves again, with nothing moved, proves that a call moved
nothing; that its effect is not there yet proves nothing, since it may still arrive. A state that shows the
effect posts what is held, whoever brought it about: that frees nothing.
"""

import json
from collections.abc import Mapping
from typing import Literal, TypeAlias

from kbctld.core.form import read_form
from kbctld.core.lookup import Missed, at, minor_at
from kbctld.core.target import Target
from kbctld.core.vendor_file import StateTable

Fate: TypeAlias = Literal["done", "never", "open"]


def state_target(table: StateTable, parameters: Mapping[str, str]) -> Target:
    """What is asked for."""
    path, _, query = table.get.partition("?")
    for name, value in parameters.items():
        path = path.replace("{" + name + "}", value)
    return Target(path, tuple(path.strip("/").split("/")), query, read_form(query.encode()))


def read_state(table: StateTable, raw: bytes, minor: int | None) -> Fate | Missed:
    """What became of a call.

    Args:
        table: how the answer is read.
        raw: the answer.
        minor: the amount that the call stated, in minor units; None where it stated none.
    """
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return Missed("its answer is not JSON")
    state = at(said, table.at)
    if not isinstance(state, str | bool):
        return Missed(f"its answer tells no {table.at}")
    if table.moved is not None and state in table.never and minor_at(said, table.moved) == 0:
        return "never"
    as_stated = table.amount is None or (minor is not None and minor_at(said, table.amount) == minor)
    shows = any(type(state) is type(done) and state == done for done in table.done)
    return "done" if shows and as_stated else "open"
