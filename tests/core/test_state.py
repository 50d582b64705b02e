"""What an object says of a call on it: done, never, or nothing that could be relied on."""

import json
import tomllib
from typing import Any

import msgspec
import pytest

from kbctld.core.lookup import Missed
from kbctld.core.state import Fate, read_state, state_target
from kbctld.core.vendor_file import StateTable, VendorFile, problems
from tests.core.support import HEAD

TABLE = StateTable(
    get="/v1/sales/{sale}?expand=x", at="status", done=["paid"], never=["void"], moved="received"
)
AMOUNT = msgspec.structs.replace(TABLE, done=["open", "paid"], amount="amount")
FLAG = StateTable(get="/v1/sales/{sale}", at="captured", done=[True])


def test_what_is_asked_for() -> None:
    """The object that the path of the call names."""
    assert state_target(TABLE, {"sale": "s_1"}).text == "/v1/sales/s_1?expand=x"
    assert state_target(FLAG, {"sale": "s_1"}).segments == ("v1", "sales", "s_1")


@pytest.mark.parametrize(
    ("table", "said", "minor", "fate"),
    [
        (TABLE, {"status": "paid"}, None, "done"),
        (TABLE, {"status": "open"}, None, "open"),
        (TABLE, {"status": "void", "received": 0}, None, "never"),
        # Something has moved, or nobody says that nothing has.
        (TABLE, {"status": "void", "received": 1}, None, "open"),
        (TABLE, {"status": "void"}, None, "open"),
        (TABLE, {"status": "void", "received": False}, None, "open"),
        (AMOUNT, {"status": "open", "amount": 5}, 5, "done"),
        (AMOUNT, {"status": "open", "amount": 4}, 5, "open"),
        (AMOUNT, {"status": "open"}, None, "open"),
        (FLAG, {"captured": True}, None, "done"),
        (FLAG, {"captured": False}, None, "open"),
        (FLAG, {"captured": "true"}, None, "open"),
    ],
)
def test_law_3_only_a_state_without_a_way_out_and_without_money_is_never(
    table: StateTable, said: dict[str, Any], minor: int | None, fate: Fate
) -> None:
    """That the effect is not there yet is not that it will not be."""
    assert read_state(table, json.dumps(said).encode(), minor) == fate


@pytest.mark.parametrize("raw", [b"x", b"[" * 100_000, b"[]", b"{}", b'{"status":1}', b'{"status":null}'])
def test_what_tells_no_state_proves_nothing(raw: bytes) -> None:
    """It is an answer that can't be used."""
    assert isinstance(read_state(TABLE, raw, None), Missed)


FILE = """
[state.sale_paid]
get = "/v1/sales/{sale}"
at = "status"
done = ["paid"]
never = ["void"]
moved = "received"
[[operation]]
name = "sales.pay"
match = "POST /v1/sales/{sale}/pay"
cost = { kind = "increase", of = "sale" }
state = "sale_paid"
"""


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("x", "x", None),
        ('get = "/v1/', 'get = "/v9/', ("state", "sale_paid", "get")),
        ('{sale}"\nat', '{other}"\nat', ("operation", 0, "state")),
        ('moved = "received"\n', "", ("state", "sale_paid", "never")),
        ('never = ["void"]\n', "", ("state", "sale_paid", "never")),
        ('state = "sale_paid"', 'state = "sale"', ("operation", 0, "state")),
        ('state = "sale_paid"', 'state = "sale_paid"\nrecord = "sale.made"', ("operation", 0, "state")),
    ],
)
def test_what_can_be_wrong_with_it(old: str, new: str, place: tuple[str | int, ...] | None) -> None:
    """The object must be one that the call's own path names."""
    file = msgspec.convert(tomllib.loads(HEAD + FILE.replace(old, new)), VendorFile)
    found = [problem.path for problem in problems(file)]
    assert (place in found) if place else found == []
