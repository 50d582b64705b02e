"""The price that a vendor tells later: when it is asked for, where, and what counts as one."""

from typing import Any

import pytest

from kbctld.core.cost import Price, price
from kbctld.core.form import read_form
from kbctld.core.later import TRIES_MAX, place_of, true_price, wait_s
from kbctld.core.operation import Later
from kbctld.core.tariff import PriceTable
from kbctld.core.vendor import priced, read_vendor
from kbctld.core.vendor_file import VendorFileError
from tests.core.support import HEAD, RATES

LATER = Later(get="/v1/{account}/texts/{id}.json", object="sid", price="price", unit="unit")
PATH = "/v1/acct/texts/SM1.json"
SAID = {"sid": "SM1", "price": "-0.00750", "unit": "USD"}
MILLI = 1_000_000


def test_it_is_asked_for_less_and_less_often() -> None:
    """After a minute, two, four; in the end twice a day; for days, but not for ever."""
    waits = [wait_s(LATER, tries) for tries in range(TRIES_MAX)]
    assert waits[:3] == [60, 120, 240]
    assert waits[-1] == 12 * 3600
    assert 3 * 86_400 < sum(waits) < 7 * 86_400


def test_the_path_names_the_account_and_the_object() -> None:
    """As the call's own path and its answer do."""
    assert place_of(LATER, {"account": "acct"}, SAID) == PATH


@pytest.mark.parametrize(
    "said", [{}, {"sid": None}, {"sid": 5}, {"sid": ""}, {"sid": "../x"}, {"sid": "a" * 65}]
)
def test_an_answer_without_an_id_names_no_place(said: dict[str, Any]) -> None:
    """Nor one that would lead elsewhere."""
    assert place_of(LATER, {"account": "acct"}, said) is None


@pytest.mark.parametrize(
    ("said", "nano"),
    [
        ({}, 7_500_000),
        ({"price": "0.0075"}, 7_500_000),
        ({"price": "-3"}, 3_000_000_000),
        ({"price": "-0.000000001"}, 1),
        ({"unit": "usd"}, 7_500_000),
        ({"unit": "EUR"}, 8_250_000),
        ({"unit": "JPY"}, 50_000),
        ({"unit": "JPY", "price": "-0.000000001"}, 1),
    ],
)
def test_a_price_is_what_the_vendor_took_in_dollars(said: dict[str, Any], nano: int) -> None:
    """Whatever its sign, rounded up; what it leaves out comes on top."""
    assert true_price(LATER, PATH, {**SAID, **said}, 0, RATES) == nano
    assert true_price(LATER, PATH, {**SAID, **said}, 6 * MILLI, RATES) == nano + 6 * MILLI


@pytest.mark.parametrize(
    "said",
    [
        {"price": None},
        {"price": -0.0075},
        {"price": ""},
        {"price": "0"},
        {"price": "-0.00000"},
        {"price": "--1"},
        {"price": "1e3"},
        {"price": "+1"},
        {"price": "1_0"},
        {"price": "NaN"},
        {"price": "0.0000000001"},
        {"price": "1234567890"},
        {"price": "999999999", "unit": "GBP"},
        {"price": "\uff11"},
        {"unit": None},
        {"unit": "XXX"},
        {"sid": "SM2"},
        {"sid": None},
    ],
)
def test_law_3_anything_else_is_no_price(said: dict[str, Any]) -> None:
    """Not yet known, not a plain figure, in a currency without a rate, or of another call."""
    assert true_price(LATER, PATH, {**SAID, **said}, 0, RATES) is None


FILE = """
[price]
source = "https://acme.test/prices"
dated = "2026-11-21"
per_segment_usd = { other = "0.01" }
per_segment_fee_usd = "0.006"
per_media_fee_usd = "0.01"

[[operation]]
name = "texts.send"
match = "POST /v1/{account}/texts"
cost = { kind = "sms", to = "To", text = "Body" }
later = { get = "/v1/{account}/texts/{id}.json", object = "sid", price = "price", unit = "unit" }
"""


def test_a_file_says_where() -> None:
    """With what the price leaves out."""
    file = read_vendor(HEAD + FILE)
    assert file.operations["texts.send"].later == LATER
    assert (file.tariff.segment_fee, file.tariff.media_fee) == (6 * MILLI, 10 * MILLI)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("{account}/texts/{id}", "{other}/texts/{id}", "parameters of"),
        ("texts/{id}", "texts/latest", "{id}"),
        ('get = "/v1/', 'get = "/v9/', "starts with none"),
        ('{ kind = "sms", to = "To", text = "Body" }', '{ kind = "free" }', "priced by"),
        ("later = {", "# {", "no operation of acme costs that"),
        ('object = "sid", ', "", "object"),
    ],
)
def test_a_file_that_says_it_wrongly_is_refused(old: str, new: str, says: str) -> None:
    """With its key."""
    with pytest.raises(VendorFileError, match=says):
        read_vendor((HEAD + FILE).replace(old, new))


MAILS = """
[[operation]]
name = "mails.send"
match = "POST /v1/{account}/mails"
cost = { kind = "recipients", fields = ["to"] }
later = { get = "/v1/{account}/mails/{id}", object = "id", price = "price", unit = "unit" }
"""


def test_what_a_later_price_leaves_out_is_known_when_the_call_is_priced() -> None:
    """Fees of segments and files; nothing of a mail. The operator's figures win."""
    file = read_vendor(HEAD + FILE.replace("[price]", '[price]\nper_mail_usd = "0.001"') + MAILS)
    own = priced(file, PriceTable(per_segment_fee_usd="0.001", per_mail_usd="0.002"), "mine")

    def untold(vendor: object, name: str, body: str) -> tuple[int, int]:
        chosen = own if vendor is own else file
        form, empty = read_form(body.encode()), read_form(b"")
        found = price(chosen.operations[name], form, empty, {"account": "a"}, {}, RATES, chosen.tariff)
        assert isinstance(found, Price)
        return found.nano, found.untold

    long = f"To=%2B14155550100&Body={'a' * 161}"
    assert untold(file, "texts.send", long) == (20 * MILLI, 12 * MILLI)
    assert untold(own, "texts.send", long) == (20 * MILLI, 2 * MILLI)
    assert untold(file, "mails.send", "to=a%40b.test") == (1 * MILLI, 0)
    assert untold(own, "mails.send", "to=a%40b.test") == (2 * MILLI, 0)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (PriceTable(per_mail_usd="x"), "US dollars"),
        (PriceTable(per_minute_usd={"other": "1"}), "no operation of acme costs that"),
        (PriceTable(per_call_usd={"Look": "1"}), "lower-case names"),
    ],
)
def test_a_price_of_the_operator_s_that_is_none_is_refused(own: PriceTable, says: str) -> None:
    """With its key; so is one of a vendor that sells nothing by count."""
    with pytest.raises(VendorFileError, match=says):
        priced(read_vendor(HEAD + FILE), own, "mine")
    bare = """
[[operation]]
name = "gifts.send"
match = "POST /v1/gifts"
cost = { kind = "free" }
"""
    with pytest.raises(VendorFileError, match="nothing of acme is sold by count"):
        priced(read_vendor(HEAD + bare), own, "mine")
