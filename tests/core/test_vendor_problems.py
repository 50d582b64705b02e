"""All that is wrong in a vendor file at once, each with the way there."""

import tomllib
from decimal import Decimal

import msgspec

from kbctld.core.vendor_file import VendorFile, problems
from tests.core.support import HEAD, OPERATIONS


def test_every_problem_is_told_with_its_place() -> None:
    """A person corrects a file once, not once per mistake."""
    text = HEAD.replace('"acme"', '"Acme"').replace('["accept"]', '["Accept", "host"]').replace("/v2/", "v2")
    more = (
        '[[operation]]\nname = "Bad"\nmatch = "FETCH /v1/x"\ncost = { kind = "free" }\n'
        '[[operation]]\nname = "tips.create"\nmatch = "POST /v1/tips"\ncost = { kind = "free" }\n'
        "stamps = true\n"
        '[[operation]]\nname = "z"\nmatch = "POST /v9/z"\ncost = { kind = "amount", amount = "a" }\n'
        '[[operations]]\ncost = { kind = "free" }\nstamps = true\n[operations.matches]\n"G" = "POST /v1/g"\n'
        '[[operation]]\nname = "y"\nmatch = "POST /v1/y"\ncost = { kind = "increase", of = "y" }\n'
    )
    file = msgspec.convert(tomllib.loads(text + OPERATIONS + more, parse_float=Decimal), VendorFile)
    first = len(tomllib.loads(OPERATIONS)["operation"])

    found = [problem.path for problem in problems(file)]

    assert found == [
        ("name",),
        ("roots",),
        ("forward_headers",),
        ("forward_headers",),
        ("operation", first, "name"),
        ("operation", first, "match"),
        ("operation", first + 1, "name"),
        ("operation", first + 1, "match"),
        ("operation", first + 1, "stamps"),
        ("operation", first + 2, "match"),
        ("operation", first + 2, "cost"),
        ("operation", first + 3, "cost"),
        ("operations", 0, "matches", "G"),
        ("operations", 0, "stamps"),
    ]


def test_a_list_of_retried_operations_names_operations() -> None:
    """One that is not there would silently be no retry."""
    idempotency = (
        '[idempotency]\nheader = "X-Key"\nmethods = ["POST"]\nwindow_hours = 1\noperations = ["nope"]\n'
    )
    file = msgspec.convert(tomllib.loads(HEAD + idempotency + OPERATIONS), VendorFile)
    assert [problem.path for problem in problems(file)] == [("idempotency", "operations")]


def test_a_price_that_is_none_is_told_alone() -> None:
    """What it would be used for can't be looked at then."""
    price = '[price]\nsource = "a list"\ndated = "2026-11-21"\nper_mail_usd = "cheap"\n'
    file = msgspec.convert(tomllib.loads(HEAD + price + OPERATIONS), VendorFile)
    (problem,) = problems(file)
    assert problem.path == ("price",)
    assert "price.per_mail_usd" in problem.message
