"""``POST /vendors/check`` and ``GET /vendors/{name}``: what a vendor file says, and what is wrong in one."""

from pathlib import Path

import pytest

import kbctld
from kbctl.wire import encode
from kbctld.control.vendor_check import check_vendor
from kbctld.prices import Prices
from tests.control.support import code, desk_in
from tests.core.support import RATES
from tests.support.loop import run

STRIPE = (Path(kbctld.__path__[0]) / "vendors" / "stripe.toml").read_text(encoding="utf-8")


def line_of(text: str, part: str) -> int:
    """The line, from 1, that first holds this."""
    return text[: text.index(part)].count("\n") + 1


def test_the_shipped_file_is_good() -> None:
    """No findings, and its examples counted."""
    found = check_vendor(STRIPE, ["stripe"], RATES, Prices().find)

    assert (found.name, found.findings) == ("stripe", [])
    assert found.operations > 600
    assert found.examples > 10


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        pytest.param('title = "Stripe"', 'titel = "x"', "titel", "there is no key `titel`", id="unknown"),
        pytest.param('body = "form"', 'body = "xml"', "body", "it takes form or json", id="word"),
        pytest.param('scheme = "bearer"', 'scheme = "x"', "auth.scheme", "it takes bearer", id="in a table"),
        pytest.param("window_hours = 23", "window_hours = 0", "idempotency.window_hours", ">= 1", id="0"),
        pytest.param('kind = "free"', 'kind = "fre"', ".cost.kind", "free, amount, increase", id="kind"),
        pytest.param('"/v2/"]', '"/v2"]', "roots", "takes paths such as /v1/", id="root"),
        pytest.param('"/v2/"]', '"/audit/"]', "roots", "/audit is the operator API's", id="segment"),
        pytest.param('"/v2/"]', '"/twilio/"]', "roots", "the prefix of the vendor twilio", id="prefix"),
        pytest.param('name = "stripe"', 'name = "vault"', "name", "the operator API's", id="name"),
        pytest.param('read = "100/s"', 'read = "fast"', "rate", "rate.read", id="rate"),
        pytest.param('POST /v1/payouts"', 'POST /v9/payouts"', ".match", "none of /v1/", id="match"),
        pytest.param(
            'DELETE /v1/coupons/{coupon}"', 'DELETE /v9/x"', ".coupons.delete", "none of /v1/", id="grouped"
        ),
        pytest.param(
            '"payment_intents.cancel" =', '"Cancel" =', ".Cancel", "words joined by dots", id="name"
        ),
        pytest.param("[operations.matches]", "[operations.match]", "", "match", id="a key of a group"),
        pytest.param("usd = 20\n", "usd = 21\n", "example[1].request", "it holds $20", id="dollars"),
        pytest.param('"ambiguous_request"', '"nope"', ".request", "no refusal 'nope'", id="refusal"),
        pytest.param('"customers.create"\nusd', '"refunds.create"\nusd', ".request", "claimed", id="other"),
    ],
)
def test_what_is_wrong_is_told_by_key_and_line(old: str, new: str, key: str, says: str) -> None:
    """Each finding stands where somebody has to look."""
    assert old in STRIPE
    text = STRIPE.replace(old, new, 1)

    found = check_vendor(text, ["stripe", "twilio"], RATES, Prices().find).findings

    told = [each for each in found if each.key.endswith(key)]
    assert told, found
    assert says in told[0].message
    assert told[0].line is not None
    assert abs(told[0].line - line_of(text, new)) <= 3  # an example is told at its request


def test_several_are_told_at_once() -> None:
    """In the order of the lines; what is missing first, because it stands nowhere."""
    text = STRIPE.replace('title = "Stripe"', 'titel = "x"').replace('body = "form"', 'body = "xml"')

    found = check_vendor(text, [], RATES, Prices().find).findings

    assert [(each.key, each.line is None) for each in found] == [
        ("title", True),
        ("titel", False),
        ("body", False),
    ]


@pytest.mark.parametrize("text", ["a =", "[", "a = 1\na = 2", "a = " + "[" * 5000])
def test_what_is_no_toml(text: str) -> None:
    """One finding."""
    (finding,) = check_vendor(text, [], RATES, Prices().find).findings
    assert "not TOML" in finding.message


def test_a_file_without_a_refused_example_is_told() -> None:
    """As the table of keys asks."""
    text = STRIPE[: STRIPE.index("[[example]]")]
    (finding,) = check_vendor(text, [], RATES, Prices().find).findings
    assert finding.key == "example"


def test_over_the_api(folder: Path) -> None:
    """Both routes, and a vendor that there is not."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            shown = (await desk.sees("GET", "/vendors/stripe")).json
            by_name = {each["name"]: each for each in shown["operations"]}
            assert by_name["payment_intents.create"]["cost"] == "amount in currency"
            assert by_name["customers.delete"]["cost"] == "free"
            assert by_name["sources.create"]["cost"] == "free, unknown with amount"
            assert by_name["checkout.sessions.create"]["cost"] == "the sum of line_items"
            assert by_name["ephemeral_keys.create"]["privileged"]
            assert shown["credentials"] == ["stripe"]
            missing = await desk.sees("GET", "/vendors/nope")
            assert (missing.status, code(missing)) == (404, "vendor_unknown")
            checked = await desk.sees("POST", "/vendors/check", body=encode({"text": STRIPE}))
            assert checked.json["examples"] > 10

    run(main())
