"""Costs by count: every count against another one made in another way, every price against its table."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbctld.core.cost import Price, price
from kbctld.core.document import read_batch, read_document
from kbctld.core.form import read_form
from kbctld.core.refusal import Code, Refusal
from kbctld.core.sms import segments
from kbctld.core.tariff import PriceTable, TariffError, read_tariff
from kbctld.core.vendor import Vendor, read_vendor
from kbctld.core.vendor_file import VendorFileError
from tests.core.support import HEAD, RATES

MILLI = 1_000_000
"""A tenth of a US cent."""

PRICES = """
[price]
source = "https://acme.test/prices"
dated = "2026-11-21"
per_mail_usd = "0.001"
per_media_usd = "0.02"
per_segment_usd = { US = "0.01", DE = "0.1", "+1907" = "0.05", other = "0.5" }
per_minute_usd = { US = "0.014", other = "2" }
per_call_usd = { check = "0.05", look = "0" }

[[operation]]
name = "mails.send"
match = "POST /v1/mails"
cost = { kind = "recipients", fields = ["to", "cc", "bcc"], at_most = 3 }

[[operation]]
name = "texts.send"
match = "POST /v1/texts"
cost = { kind = "sms", to = "To", text = "Body", sender = "From", media = "Media", unbounded = ["Content"] }

[[operation]]
name = "calls.make"
match = "POST /v1/calls"
cost = { kind = "minutes", to = "To", seconds = "Limit", unbounded = ["Record"] }

[[operation]]
name = "checks.make"
match = "POST /v1/checks"
cost = { kind = "flat", price = "check", to = "To" }

[[operation]]
name = "numbers.look_up"
match = "GET /v1/numbers/{number}"
cost = { kind = "flat", price = "look", unbounded = ["Fields"] }
"""
BATCH = """
[[operation]]
name = "mails.send_batch"
match = "POST /v1/mails/batch"
cost = { kind = "recipients", fields = ["to", "cc", "bcc"], batch = true }
"""


def place(number: str) -> str | None:
    """A lookup for these tests."""
    return {"+1": "US", "+4": "DE"}.get(number[:2])


FORM = read_vendor(HEAD + PRICES, place)
JSON = read_vendor(HEAD.replace('"form"', '"json"') + PRICES + BATCH, place)


def quote(vendor: Vendor, name: str, body: str, query: str = "") -> Price | Refusal:
    """Price one call of these small vendors."""
    operation = vendor.operations[name]
    raw = body.encode()
    read = read_form(raw) if vendor is FORM else read_batch(raw) if "batch" in name else read_document(raw)
    return price(operation, read, read_form(query.encode()), {}, {}, RATES, vendor.tariff)


def nano(vendor: Vendor, name: str, body: str, query: str = "") -> int:
    """What it costs."""
    found = quote(vendor, name, body, query)
    assert isinstance(found, Price), found.sentence
    return found.nano


# --- segments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 1),
        ("a" * 160, 1),
        ("a" * 161, 2),
        ("a" * 306, 2),
        ("a" * 307, 3),
        ("я" * 70, 1),
        ("я" * 71, 2),
        ("я" * 134, 2),
        ("я" * 135, 3),
        ("a" * 69 + "я", 1),
        ("a" * 70 + "я", 2),
        ("😀" * 35, 1),
        ("😀" * 36, 2),
        ("😀" * 66, 2),
        ("😀" * 67, 3),
        ("a" * 158 + "€", 1),
        ("a" * 159 + "€", 2),
        ("€" * 80, 1),
        ("€" * 81, 2),
        ("€" * 152, 2),
        ("€" * 153, 3),
        ("a" * 152 + "[" + "a" * 151, 2),
        ("a" * 152 + "[" + "a" * 152, 3),
        ("a" * 151 + "[" + "a" * 153, 2),
        ("\f", 1),
        ("\n" * 160, 1),
        ("`", 1),
        ("`" * 71, 2),
    ],
)
def test_a_text_has_as_many_segments_as_networks_cut_it_into(text: str, count: int) -> None:
    """160 and 153 in GSM-7, 70 and 67 in UCS-2; what takes two places stays whole."""
    assert segments(text) == count


def cut(text: str) -> int:
    """Another count, by septets and bytes instead of characters: build every part, then look how many."""
    basic = (
        "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        "ÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
    )
    assert len(basic) == 128
    pieces: list[bytes] = []
    for character in text:
        if character in basic.replace("\x1b", ""):
            pieces.append(bytes([basic.index(character)]))
        elif character in "^{}\\[~]|€":
            pieces.append(b"\x1b" + character.encode()[:1])
        else:
            pieces = [each.encode("utf-16-be") for each in text]
            alone, each_part = 140, 134
            break
    else:
        alone, each_part = 160, 153
    if len(b"".join(pieces)) <= alone:
        return 1
    parts = [b""]
    for piece in pieces:
        if len(parts[-1] + piece) > each_part:
            parts.append(b"")
        parts[-1] += piece
    return len(parts)


TEXTS = st.one_of(
    st.text(alphabet="aZ €[]^|\\\n@ß", max_size=700),
    st.text(alphabet="a€я😀", max_size=300),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=300),
)


@given(TEXTS)
def test_two_counts_of_segments_agree(text: str) -> None:
    """By places and by bytes; and never fewer than the bare arithmetic of a network."""
    count = segments(text)
    assert count == cut(text)
    units = len(text.encode("utf-16-le")) // 2
    assert count <= max(1, math.ceil(units / 66))


@given(TEXTS, st.sampled_from(["a", "€", "я", "😀"]))
def test_a_longer_text_is_never_cheaper(text: str, more: str) -> None:
    """Nothing can be added that lowers a price."""
    assert segments(text + more) >= segments(text)


# --- recipients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ('{"to": "a@x.test"}', 1),
        ('{"to": ["a@x.test"]}', 1),
        ('{"to": ["a@x.test", "a@x.test"], "cc": "a@x.test"}', 3),
        ('{"to": "A, B <a@x.test>", "cc": [], "bcc": null}', 1),
        ('{"to": [], "bcc": ["a@x.test"]}', 1),
        ('{"to": ["a@x.test", "b@x.test", "c@x.test"]}', 3),
    ],
)
def test_each_recipient_counts(body: str, count: int) -> None:
    """In all three fields, one by one, the same one twice."""
    assert nano(JSON, "mails.send", body) == count * MILLI


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("{}", Code.AMOUNT_UNKNOWN, "states no to"),
        ('{"to": []}', Code.AMOUNT_UNKNOWN, "states no to"),
        ('{"to": "a@x.test, b@x.test"}', Code.AMOUNT_UNKNOWN, "not one address"),
        ('{"to": "a@x.test\uff0cb\uff20x.test"}', Code.AMOUNT_UNKNOWN, "not one address"),
        ('{"to": "a@x.test;b"}', Code.AMOUNT_UNKNOWN, "not one address"),
        ('{"to": "a@x.test\\nb"}', Code.AMOUNT_UNKNOWN, "not one address"),
        ('{"to": "everyone"}', Code.AMOUNT_UNKNOWN, "not one address"),
        ('{"to": ["a@x", "b@x", "c@x", "d@x"]}', Code.AMOUNT_UNKNOWN, "more than 3"),
        ('{"to": ["a@x", null]}', Code.AMBIGUOUS_REQUEST, "to can be read"),
        ('{"to": ["a@x", 5]}', Code.AMBIGUOUS_REQUEST, "to can be read"),
        ('{"to": [["a@x"]]}', Code.AMBIGUOUS_REQUEST, "to can be read"),
        ('{"to": true}', Code.AMBIGUOUS_REQUEST, "to can be read"),
        ('{"to": {"0": "a@x"}}', Code.AMBIGUOUS_REQUEST, "to can be read"),
        ('{"to": "a@x", "TO": "b@x"}', Code.AMBIGUOUS_REQUEST, "to can be read"),
        ('{"to": "a@x", "b_cc": "b@x"}', Code.AMBIGUOUS_REQUEST, "bcc can be read"),
    ],
)
def test_law_4_what_could_be_more_recipients_is_refused(body: str, code: Code, says: str) -> None:
    """Never counted as one."""
    found = quote(JSON, "mails.send", body)
    assert isinstance(found, Refusal)
    assert (found.code, says in found.sentence) == (code, True), found.sentence


def test_a_recipient_in_the_query_is_refused() -> None:
    """The body says who gets it."""
    found = quote(JSON, "mails.send", '{"to": "a@x.test"}', "cc=b%40x.test")
    assert isinstance(found, Refusal)
    assert found.code is Code.AMBIGUOUS_REQUEST


@pytest.mark.parametrize(
    ("body", "count"), [("to=a%40x&to=b%40x&cc=c%40x", 3), ("to=a%40x", 1), ("to=a%40x&bcc=a%40x", 2)]
)
def test_recipients_of_a_form_are_repeated_fields(body: str, count: int) -> None:
    """A form has no arrays that all readers know."""
    assert nano(FORM, "mails.send", body) == count * MILLI


@pytest.mark.parametrize("body", ["to[]=a%40x", "to=a%40x&To=b%40x", "to=a%40x;cc=b%40x"])
def test_P9_recipients_of_a_form_have_one_reading(body: str) -> None:
    """Brackets, capitals and semicolons are refused."""
    found = quote(FORM, "mails.send", body)
    assert isinstance(found, Refusal)
    assert found.code in (Code.AMBIGUOUS_REQUEST, Code.AMOUNT_UNKNOWN)


MAIL = st.fixed_dictionaries(
    {"to": st.lists(st.just("a@x.test"), min_size=1, max_size=50)},
    optional={
        "cc": st.one_of(st.just("b@x.test"), st.lists(st.just("c@x.test"), max_size=50)),
        "bcc": st.lists(st.just("d@x.test"), max_size=50),
    },
)


@given(st.lists(MAIL, min_size=1, max_size=20))
def test_a_batch_costs_what_its_mails_cost(mails: list[dict[str, list[str] | str]]) -> None:
    """The sum; counted once more by the @ signs of the text."""
    import json

    text = json.dumps(mails)
    assert nano(JSON, "mails.send_batch", text) == text.count("@") * MILLI


@pytest.mark.parametrize("body", ["[]", '[{"to": "a@x"}, {}]'])
def test_a_batch_with_a_mail_to_nobody_is_refused(body: str) -> None:
    """Each must say to whom it goes."""
    found = quote(JSON, "mails.send_batch", body)
    assert isinstance(found, Refusal)
    assert found.code is Code.AMOUNT_UNKNOWN


# --- text messages, phone calls, single calls --------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "milli"),
    [
        ("To=%2B14155550100&Body=hi", 10),
        ("To=%2B14155550100&Body=", 10),
        ("To=%2B4915155550100&Body=" + "a" * 161, 200),
        ("To=%2B19075550100&Body=hi", 50),
        ("To=%2B33155550100&Body=hi", 500),
        ("To=12345&Body=hi", 500),
        ("To=14155550100&Body=hi", 500),
        ("To=+14155550100&Body=hi", 500),
        ("To=%2B14155550100&Media=a&Media=b", 40),
        ("To=%2B14155550100&Body=hi&Media=a", 30),
        ("To=%2B4915155550100&Media=a", 100),
        ("To=%2B14155550100&Body=hi&From=%2B14155550111", 10),
    ],
)
def test_a_text_message_costs_its_segments_where_it_goes(body: str, milli: int) -> None:
    """The longest prefix, the country, else the dearest; a file at least a segment."""
    assert nano(FORM, "texts.send", body) == milli * MILLI


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("texts.send", "To=%2B14155550100", "states no Body"),
        ("texts.send", "Body=hi", "states no To"),
        ("texts.send", "To=whatsapp%3A%2B14155550100&Body=hi", "another channel, 'whatsapp'"),
        ("texts.send", "To=%2B14155550100&From=messenger%3A1&Body=hi", "another channel, 'messenger'"),
        ("texts.send", "To=%2B14155550100&Body=hi&Content=HX1", "Content makes it cost"),
        ("texts.send", "To=%2B14155550100&Body=hi&content=HX1", "Content makes it cost"),
        ("calls.make", "To=%2B14155550100", "states no Limit"),
        ("calls.make", "To=%2B14155550100&Limit=0", "Limit is zero"),
        ("calls.make", "To=%2B14155550100&Limit=1e3", "not a plain count"),
        ("calls.make", "To=%2B14155550100&Limit=-60", "not a plain count"),
        ("calls.make", "To=%2B14155550100&Limit=1234567", "not a plain count"),
        ("calls.make", "To=sip%3Ame%40x&Limit=60", "another channel, 'sip'"),
        ("calls.make", "To=%2B14155550100&Limit=60&Record=true", "Record makes it cost"),
        ("checks.make", "Channel=sms", "states no To"),
    ],
)
def test_law_4_what_is_not_bounded_is_refused(name: str, body: str, says: str) -> None:
    """With the field that is missing or that opens the end."""
    found = quote(FORM, name, body)
    assert isinstance(found, Refusal)
    assert found.code is Code.AMOUNT_UNKNOWN
    assert says in found.sentence


@pytest.mark.parametrize("body", ["To=%2B1&To=%2B2&Body=x", "To=%2B1&Body=x&body=y", "To=%2B1&Media[]=x"])
def test_P9_a_text_message_has_one_reading(body: str) -> None:
    """Repeated or folded fields are refused."""
    found = quote(FORM, "texts.send", body)
    assert isinstance(found, Refusal)
    assert found.code is Code.AMBIGUOUS_REQUEST


@given(st.integers(min_value=1, max_value=999_999))
def test_a_begun_minute_is_a_minute(seconds: int) -> None:
    """Rounded up."""
    minutes = len(range(0, seconds, 60))
    assert nano(FORM, "calls.make", f"To=%2B14155550100&Limit={seconds}") == minutes * 14 * MILLI


def test_a_flat_price_is_the_same_whatever_is_said() -> None:
    """And one segment on top where a message goes out."""
    assert nano(FORM, "checks.make", "To=%2B14155550100") == 60 * MILLI
    assert nano(FORM, "checks.make", "To=me%40x.test") == 550 * MILLI
    assert nano(FORM, "numbers.look_up", "") == 0
    found = quote(FORM, "numbers.look_up", "", "Fields=caller_name")
    assert isinstance(found, Refusal)
    assert found.code is Code.AMOUNT_UNKNOWN


# --- price tables ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('per_mail_usd = "0.001"', "", "'mails.send': its cost takes `price.per_mail_usd`"),
        ('per_media_usd = "0.02"', "", "'texts.send': its cost takes `price.per_media_usd`"),
        ('dated = "2026-11-21"', "", "`price` takes `source` and `dated`"),
        ('dated = "2026-11-21"', 'dated = "today"', "$.price.dated"),
        ('check = "0.05", ', "", "`price.per_call_usd.check`"),
        (
            'look = "0"',
            'look = "0", loook = "1"',
            "`price.per_call_usd.loook`: no operation of acme costs that",
        ),
        (', media = "Media"', "", "`price.per_media_usd`: no operation of acme costs that"),
        (', other = "2"', "", "`price.per_minute_usd` takes `other` too"),
        ('US = "0.014"', 'us = "0.014"', "`price.per_minute_usd` takes countries such as US"),
        ('US = "0.014"', 'US = "0"', "`price.per_minute_usd.US` takes US dollars"),
        ('US = "0.014"', 'US = "0.0000000001"', "`price.per_minute_usd.US` takes US dollars"),
        ('US = "0.014"', 'US = "1_0"', "`price.per_minute_usd.US` takes US dollars"),
        ('US = "0.014"', "US = 0.014", "$.price.per_minute_usd"),
        ('fields = ["to", "cc", "bcc"]', "fields = []", "$.operation[0].cost.fields"),
        ("at_most = 3", "batch = true", "`cost.batch` takes a file with JSON bodies"),
    ],
)
def test_law_10_a_price_that_is_none_is_an_error_that_names_it(old: str, new: str, says: str) -> None:
    """Never zero in its place."""
    assert old in PRICES
    with pytest.raises(VendorFileError) as raised:
        read_vendor(HEAD + PRICES.replace(old, new))
    assert says in str(raised.value)


def test_a_number_that_nobody_places_costs_the_dearest_price() -> None:
    """Without a lookup that is every number; `other` need not be the dearest itself."""
    table = PriceTable(per_segment_usd={"US": "0.01", "DE": "3", "other": "0.5"})
    tariff = read_tariff(table, "price")
    assert tariff.at(tariff.segment, "+14155550100") == 3_000 * MILLI
    with pytest.raises(TariffError):
        read_tariff(PriceTable(per_segment_usd={"+1-907": "1", "other": "1"}), "price")
