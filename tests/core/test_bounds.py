"""Bounds that the vendor itself is held to, and what instructions of a phone call can cost."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbctld.core.bounds import bounded, bounds
from kbctld.core.cost import Price, price
from kbctld.core.form import read_form
from kbctld.core.operation import Free, Minutes, Sms
from kbctld.core.refusal import Code, Refusal
from kbctld.core.vendor import read_vendor
from kbctld.core.vendor_file import VendorFileError
from tests.core.support import HEAD, RATES

FILE = """
[price]
source = "https://acme.test/prices"
dated = "2026-11-21"
per_segment_usd = { other = "0.01" }
per_minute_usd = { other = "0.02" }
per_call_usd = { change = "0" }

[[operation]]
name = "texts.send"
match = "POST /v1/texts"
cost = { kind = "sms", to = "To", text = "Body", ceiling = "Most" }

[[operation]]
name = "calls.make"
match = "POST /v1/calls"
cost = { kind = "minutes", to = "To", seconds = "Limit", default_seconds = 90, at_most = 600, TOLD }

[[operation]]
name = "calls.change"
match = "POST /v1/calls/{call}"
cost = { kind = "flat", price = "change", TOLD }
""".replace("TOLD", 'instructions = { inline = "Do", elsewhere = ["Url", "App"], price = "told" }')
PLAIN = read_vendor(HEAD + FILE)
TOLD = read_vendor(HEAD + FILE.replace('change = "0"', 'change = "0", told = "5"'))
CENT = 10_000_000
TO = "To=%2B14155550100"


def quote(body: str, name: str = "calls.make", query: str = "", vendor: object = PLAIN) -> Price | Refusal:
    """Price one call."""
    file = TOLD if vendor is TOLD else PLAIN
    form, asked = read_form(body.encode()), read_form(query.encode())
    return price(file.operations[name], form, asked, {"call": "c"}, {}, RATES, file.tariff)


def nano(body: str, name: str = "calls.make", query: str = "", vendor: object = PLAIN) -> int:
    """What one call costs."""
    found = quote(body, name, query, vendor)
    assert isinstance(found, Price), found.sentence
    return found.nano


def refused(*args: str) -> str:
    """Why it is refused."""
    found = quote(*args)
    assert isinstance(found, Refusal), found
    assert found.code is Code.AMOUNT_UNKNOWN
    return found.sentence + found.remedy


def test_a_call_without_a_length_costs_its_default() -> None:
    """90 seconds are two minutes begun; a longer one than the file allows is refused by its name."""
    assert nano(TO) == nano(f"{TO}&Limit=120") == 4 * CENT
    assert nano(f"{TO}&Limit=600") == 20 * CENT
    assert "Limit is more than 600 seconds" in refused(f"{TO}&Limit=601")
    assert "Limit" in refused(f"{TO}&Limit=")


FREE_DOCUMENTS = [
    "<Response/>",
    "<Response><Say>Hi &amp; bye</Say></Response>",
    '<?xml version="1.0" encoding="UTF-8"?><Response><Say voice="alice" language="de">Hi</Say></Response>',
    '<Response><Play loop="0">https://a.test/x.mp3</Play><Pause length="3"/><Hangup/></Response>',
]
COSTLY = {
    "<Response><Dial>+4915155550100</Dial></Response>": "Dial",
    "<Response><Say>a</Say><Record/></Response>": "Record",
    '<Response><Gather action="/x"/></Response>': "Gather",
    "<Response><Redirect>/x</Redirect></Response>": "Redirect",
    "<Response><say>Hi</say></Response>": "say",
    '<Response><Say voice="Polly.Joanna-Neural">Hi</Say></Response>': "voice",
    '<Response><Hangup callback="/x"/></Response>': "Hangup",
    "<Response><Say><Dial>+1</Dial></Say></Response>": "Say",
    "<Response><Pause><Dial>+1</Dial></Pause></Response>": "Pause",
    '<Response xmlns="urn:x"><Say>a</Say></Response>': "Response",
    '<Response a="b"/>': "Response",
    "<Other/>": "Response",
    "<Response><x:Dial/></Response>": "XML",
    "<Response>": "XML",
    "": "XML",
    '<!DOCTYPE r [<!ENTITY d "<Dial>1</Dial>">]><Response>&d;</Response>': "plain instructions",
    "<Response><!-- <Dial/> --></Response>": "plain instructions",
    "<Response><?x <Dial/> ?></Response>": "plain instructions",
    f"<Response><Say>{'a' * 4000}</Say></Response>": "plain instructions",
}


def escaped(text: str) -> str:
    return text.replace("%", "%25").replace("&", "%26").replace("+", "%2B").replace(";", "%3B")


@pytest.mark.parametrize("document", FREE_DOCUMENTS)
@pytest.mark.parametrize("vendor", [PLAIN, TOLD])
def test_instructions_that_cost_nothing_add_nothing(document: str, vendor: object) -> None:
    """Speaking, playing, waiting, hanging up; in a change of a call too."""
    assert nano(f"{TO}&Limit=60&Do={escaped(document)}", vendor=vendor) == 2 * CENT
    assert nano(f"Do={escaped(document)}", "calls.change", vendor=vendor) == 0


@pytest.mark.parametrize(("document", "says"), COSTLY.items())
def test_law_4_instructions_that_may_cost_more_cost_what_the_operator_said(document: str, says: str) -> None:
    """And are refused where nobody said; a length of the call bounds none of them."""
    body = f"{TO}&Limit=60&Do={escaped(document)}"
    why = refused(body)
    assert says in why
    assert "per_call_usd.told" in why
    assert nano(body, vendor=TOLD) == 502 * CENT
    assert nano(f"Do={escaped(document)}", "calls.change", vendor=TOLD) == 500 * CENT


@pytest.mark.parametrize(
    ("body", "query"),
    [
        (f"{TO}&Limit=60&Url=https%3A%2F%2Fa.test", ""),
        (f"{TO}&Limit=60&app=1", ""),
        (f"{TO}&Limit=60", "Url=x"),
    ],
)
def test_law_4_instructions_from_elsewhere_are_nobody_s_to_see(body: str, query: str) -> None:
    """Even beside harmless ones in the request."""
    both = f"{body}&Do=%3CResponse%2F%3E"
    assert "further calls" in refused(both, "calls.make", query)
    assert nano(both, "calls.make", query, vendor=TOLD) == 502 * CENT


def test_P9_instructions_with_two_readings_are_refused() -> None:
    """One of them might dial."""
    found = quote(f"{TO}&Limit=60&Do=%3CResponse%2F%3E&Do=x")
    assert isinstance(found, Refusal)
    assert found.code is Code.AMBIGUOUS_REQUEST


# --- what is written ---------------------------------------------------------------------------------------

TEXT, CALL = PLAIN.operations["texts.send"].cost, PLAIN.operations["calls.make"].cost


@pytest.mark.parametrize(
    ("body", "held", "writes"),
    [
        (TO, 14_500_000, "0.0145"),
        (TO, 14_599_999, "0.0145"),
        (TO, 3_000_000_000, "3"),
        (TO, 100_000, "0.0001"),
        (TO, 99_999, None),
        (f"{TO}&Most=0.0145", 14_500_000, None),
        (f"{TO}&Most=0.001", 14_500_000, None),
        (f"{TO}&Most=0.0146", 14_500_000, "0.0145"),
        (f"{TO}&Most=0", 14_500_000, "0.0145"),
        (f"{TO}&Most=-1", 14_500_000, "0.0145"),
        (f"{TO}&Most=", 14_500_000, "0.0145"),
        (f"{TO}&Most=1e-9", 14_500_000, "0.0145"),
        (f"{TO}&Most=NaN", 14_500_000, "0.0145"),
    ],
)
def test_the_ceiling_is_the_smaller_of_what_is_held_and_what_was_stated(
    body: str, held: int, writes: str | None
) -> None:
    """In four decimals, never above the hold; none that would read as nothing."""
    assert bounds(TEXT, read_form(body.encode()), held) == ({} if writes is None else {"Most": writes})


@given(st.integers(min_value=100_000, max_value=10**15))
def test_law_1_the_ceiling_is_never_above_the_hold(held: int) -> None:
    """And less than a tenth of a milli-dollar below it."""
    ceiling = Decimal(bounds(TEXT, read_form(TO.encode()), held)["Most"])
    assert 0 <= held - ceiling * 1_000_000_000 < 100_000


def test_a_stated_ceiling_changes_no_hold() -> None:
    """Nor does a silly one; two are refused."""
    bodies = [f"{TO}&Body=Hi{more}" for more in ("", "&Most=0.0001", "&Most=9", "&Most=x")]
    assert {nano(body, "texts.send") for body in bodies} == {CENT}
    found = quote(f"{TO}&Body=Hi&Most=1&most=9", "texts.send")
    assert isinstance(found, Refusal)
    assert found.code is Code.AMBIGUOUS_REQUEST


def test_a_length_is_written_only_where_none_was_stated() -> None:
    """That which was priced."""
    assert isinstance(CALL, Minutes)
    assert bounds(CALL, read_form(TO.encode()), 1) == {"Limit": "90"}
    assert bounds(CALL, read_form(f"{TO}&Limit=5".encode()), 1) == {}
    unset = Minutes(to="To", seconds="Limit")
    assert bounds(unset, read_form(b""), 1) == bounds(Free(), read_form(b""), 1) == {}
    assert bounds(Sms(to="To", text="Body"), read_form(b""), 10**9) == {}


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        (b"", b"a=1"),
        (b"b=%41&c=x+y", b"b=%41&c=x+y&a=1"),
        (b"a=9&b=2", b"b=2&a=1"),
        (b"b=2&%61=9&a=8", b"b=2&a=1"),
        (b"b=a%3D9", b"b=a%3D9&a=1"),
    ],
)
def test_all_other_bytes_stay(raw: bytes, left: bytes) -> None:
    """In their order and spelling."""
    assert bounded(raw, {"a": "1"}) == left


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("default_seconds = 90, at_most = 600", "default_seconds = 601, at_most = 600", "longer than"),
        ("default_seconds = 90", "default_seconds = 0", "default_seconds"),
        ('elsewhere = ["Url", "App"]', "elsewhere = []", "elsewhere"),
    ],
)
def test_a_file_with_a_bound_that_is_none_is_refused(old: str, new: str, says: str) -> None:
    """With its key."""
    with pytest.raises(VendorFileError, match=says):
        read_vendor(HEAD + FILE.replace(old, new))


def test_fields_are_written_into_forms_only() -> None:
    """A JSON body stays as it is."""
    with pytest.raises(VendorFileError, match="form bodies"):
        read_vendor((HEAD + FILE).replace('body = "form"', 'body = "json"'))
