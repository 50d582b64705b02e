"""What a call can cost at most: read before it leaves, or refused."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kbctld.core.cost import FREE, Price, Remembered, objects_needed, price
from kbctld.core.document import read_document
from kbctld.core.form import read_form
from kbctld.core.lookup import Found, Missed
from kbctld.core.money import USD_MAX, rates_from
from kbctld.core.refusal import Code, Refusal
from tests.core.support import EMPTY, RATES, USD, access

DOLLARS = Remembered(20 * USD, 2000, "USD")
YEN = Remembered(RATES.nano(500, "JPY") or 0, 500, "JPY")


def quote(
    body: str,
    call: str = "POST /v1/payments",
    looked_up: Found | Missed | None = None,
    **known: Remembered,
) -> Price | Refusal:
    """Price one call of the small vendor; the query, if any, stands behind the path."""
    call, _, query = call.partition("?")
    attempt = access(call, query=query)
    assert attempt.operation is not None
    form = read_form(body.encode())
    needed = objects_needed(attempt.operation, form, attempt.parameters)
    recalled = {name: known[name] for name in needed if name in known}
    return price(
        attempt.operation,
        form,
        attempt.target.form,
        attempt.parameters,
        recalled,
        RATES,
        looked_up=looked_up,
    )


def test_what_moves_no_money_is_free() -> None:
    """A free operation costs nothing whatever stands in its body."""
    assert quote("amount=2000&amount=1&currency=usd", "POST /v1/customers") == FREE == Price(0)


@pytest.mark.parametrize(
    ("body", "nano", "minor", "currency"),
    [
        pytest.param("amount=2000&currency=usd", 20 * USD, 2000, "USD", id="dollars"),
        pytest.param("amount=500&currency=JPY", 3_333_333_334, 500, "JPY", id="yen, rounded up"),
        pytest.param("amount=1000&currency=kwd", 3_250_000_000, 1000, "KWD", id="dinars"),
        pytest.param("amount=0&currency=usd", 0, 0, "USD", id="nothing"),
        pytest.param("amount=%32000&metadata[amount]=1&currency=usd", 20 * USD, 2000, "USD", id="escapes"),
    ],
)
def test_an_amount_is_priced_in_its_currency(body: str, nano: int, minor: int, currency: str) -> None:
    """The form's amount and currency are the price, and what the new object is counted at."""
    plain = Price(nano, minor, currency, exact=True, readable=True, counts=None)
    assert quote(body, "POST /v1/tips") == plain
    assert quote(body) == replace(plain, counts=Remembered(nano, minor, currency))


@pytest.mark.parametrize(
    ("body", "call", "says", "remedy"),
    [
        pytest.param("currency=usd", "POST /v1/payments", "states no amount", "state amount", id="no amount"),
        pytest.param(
            "amount=5", "POST /v1/payments", "states no currency", "state currency", id="no currency"
        ),
        pytest.param("", "POST /v1/payments", "states no amount", "state amount", id="an empty body"),
        *(
            pytest.param(
                f"amount={text}&currency=usd", "POST /v1/payments", "plain count", "digits only", id=text
            )
            for text in ("20_00", "%2B5", "1e3", "-5", "20.5", "", "+5", "%EF%BC%95", "5%00", "9999999999999")
        ),
        pytest.param("amount=5&currency=us", "POST /v1/payments", "three-letter code", "", id="no code"),
        pytest.param("amount=5&currency=", "POST /v1/payments", "three-letter code", "", id="an empty code"),
        pytest.param(
            "amount=5&currency=xaf", "POST /v1/payments", "no US dollar rate for XAF", "XAF = ", id="no rate"
        ),
        pytest.param(
            "amount=999999999999&currency=gbp", "POST /v1/payments", "larger than any cap", "", id="too large"
        ),
        pytest.param(
            "amount=999999999999", "POST /v1/refunds", "larger than any cap", "", id="too large a refund"
        ),
        pytest.param("payment=p_1", "POST /v1/refunds", "states no amount", "", id="a refund of all"),
        pytest.param("amount=1_0", "POST /v1/refunds", "plain count", "", id="an odd refund"),
        pytest.param("", "POST /v1/subscriptions", "it is charged again later", "", id="unpriceable"),
        pytest.param("amount=9", "POST /v1/payments/p_9", "not made through kbctl", "", id="made elsewhere"),
        pytest.param("amount=9.5", "POST /v1/payments/p_9", "plain count", "", id="an odd increase"),
        pytest.param(
            "currency=dollar", "POST /v1/payments/p_9", "three-letter code", "", id="an odd currency"
        ),
    ],
)
def test_law_4_what_cannot_be_bounded_is_refused(body: str, call: str, says: str, remedy: str) -> None:
    """A missing, odd, huge or inconvertible amount is amount_unknown, with its reason: never zero."""
    refusal = quote(body, call)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.AMOUNT_UNKNOWN
    assert says in refusal.sentence
    assert remedy in refusal.remedy


def test_law_4_an_increase_into_a_currency_without_a_rate_is_refused() -> None:
    """An object that we know becomes unknown money in an unknown currency."""
    refusal = quote("currency=xaf", "POST /v1/payments/p_1", p_1=DOLLARS)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.AMOUNT_UNKNOWN


@pytest.mark.parametrize(
    ("body", "call", "field"),
    [
        pytest.param("amount=1&amount=2&currency=usd", "POST /v1/payments", "amount", id="amount twice"),
        pytest.param(
            "amount=1&currency=usd&currency=jpy", "POST /v1/payments", "currency", id="currency twice"
        ),
        pytest.param("amount=x&currency=usd&currency=jpy", "POST /v1/payments", "currency", id="before odd"),
        pytest.param("amount=1&currency=usd&Currency=jpy", "POST /v1/payments", "currency", id="a capital"),
        pytest.param("amount=1&payment=p_1&payment=p_2", "POST /v1/refunds", "payment", id="object twice"),
        pytest.param(
            "amount=1&payment=p_1&charge[]=c", "POST /v1/refunds", "charge", id="object as an array"
        ),
        pytest.param(
            "amount_to_capture[]=9", "POST /v1/payments/p_1/capture", "amount_to_capture", id="part"
        ),
        pytest.param("currency=usd", "POST /v1/payments?amount=1", "amount", id="amount in the query"),
        pytest.param("amount=1", "POST /v1/payments?Currency[]=jpy", "currency", id="currency in the query"),
        pytest.param("amount=1", "POST /v1/refunds?charge=c_1", "charge", id="object in the query"),
        pytest.param("", "POST /v1/payments/p_1?amount=9", "amount", id="increase in the query"),
        pytest.param("", "POST /v1/payments/p_1?currency=jpy", "currency", id="its currency in the query"),
    ],
)
def test_P9_a_deciding_field_stands_once_and_in_the_body(body: str, call: str, field: str) -> None:
    """Twice, in another shape, or in the query: ambiguous_request, naming the field."""
    refusal = quote(body, call, p_1=DOLLARS)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.AMBIGUOUS_REQUEST
    assert field in refusal.sentence
    assert field in refusal.remedy


def test_a_query_without_deciding_fields_does_not_matter() -> None:
    """expand[] and the like may stand there."""
    assert quote("amount=2000&currency=usd", "POST /v1/payments?expand[]=customer") == quote(
        "amount=2000&currency=usd"
    )


@pytest.mark.parametrize(
    ("minor", "fits"),
    [pytest.param(10**11, True, id="exactly"), pytest.param(10**11 + 1, False, id="a cent above")],
)
def test_L10_the_largest_price_is_the_largest_cap(minor: int, fits: bool) -> None:
    """A billion dollars can be asked for, and not a cent more."""
    assert isinstance(quote(f"amount={minor}&currency=usd"), Price) is fits


# --- objects that were counted before ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "call", "expected"),
    [
        pytest.param(
            "amount=3000",
            "",
            Price(10 * USD, 3000, "USD", counts=Remembered(30 * USD, 3000, "USD")),
            id="more",
        ),
        pytest.param("amount=2000", "", Price(0, 2000, "USD", counts=DOLLARS), id="the same"),
        pytest.param("amount=5", "", Price(0, 5, "USD", counts=DOLLARS), id="less gives nothing back"),
        pytest.param("description=x", "", Price(0, None, "USD", counts=DOLLARS), id="no amount"),
        pytest.param(
            "currency=gbp",
            "",
            Price(6 * USD, None, "GBP", counts=Remembered(26 * USD, 2000, "GBP")),
            id="dearer",
        ),
        pytest.param(
            "currency=idr", "", Price(0, None, "IDR", counts=Remembered(20 * USD, 2000, "IDR")), id="cheaper"
        ),
        pytest.param(
            "amount=3000&currency=gbp",
            "",
            Price(19 * USD, 3000, "GBP", counts=Remembered(39 * USD, 3000, "GBP")),
            id="both",
        ),
        pytest.param("amount_to_capture=5", "/capture", Price(0, 5, "USD", counts=DOLLARS), id="a part"),
        pytest.param(
            "amount_to_capture=2500",
            "/capture",
            Price(5 * USD, 2500, "USD", counts=Remembered(25 * USD, 2500, "USD")),
            id="more than the whole",
        ),
        pytest.param(
            "amount=9999", "/settle", Price(0, None, "USD", counts=DOLLARS), id="no field of amount"
        ),
    ],
)
def test_an_increase_counts_only_the_excess(body: str, call: str, expected: Price) -> None:
    """What was counted when the object was made is not counted again; only what is more."""
    assert quote(body, f"POST /v1/payments/p_1{call}", p_1=DOLLARS) == expected


@pytest.mark.parametrize(
    ("body", "call", "expected"),
    [
        pytest.param("amount=500&payment=p_1", "/refunds", Price(5 * USD, 500, "USD"), id="known dollars"),
        pytest.param("amount=300&payment=p_2", "/refunds", Price(2 * USD, 300, "JPY"), id="known yen"),
        pytest.param(
            "amount=300", "/payments/p_2/refund", Price(2 * USD, 300, "JPY"), id="known by the path"
        ),
        pytest.param(
            "amount=500", "/refunds", Price(6_500_000_000, 500, None, exact=False), id="nothing named"
        ),
        pytest.param(
            "amount=500&charge=c_9",
            "/refunds",
            Price(6_500_000_000, 500, None, exact=False),
            id="made elsewhere",
        ),
        pytest.param(
            "amount=500&payment=&charge=",
            "/refunds",
            Price(6_500_000_000, 500, None, exact=False),
            id="empty names",
        ),
        pytest.param(
            "amount=500&payment=p_1&charge=p_2",
            "/refunds",
            Price(6_500_000_000, 500, None, exact=False),
            id="two currencies",
        ),
        pytest.param(
            "amount=500&payment=p_2&charge=c_9",
            "/refunds",
            Price(6_500_000_000, 500, None, exact=False),
            id="one known, one not",
        ),
        pytest.param(
            "amount=500&payment=p_1&charge=p_1", "/refunds", Price(5 * USD, 500, "USD"), id="the same twice"
        ),
    ],
)
def test_a_refund_is_priced_in_the_currency_of_what_it_refunds(body: str, call: str, expected: Price) -> None:
    """Where that currency is certain it is exact; else the dearest is held and the answer tells the truth."""
    assert quote(body, f"POST /v1{call}", p_1=DOLLARS, p_2=YEN) == expected


def test_objects_are_asked_for_only_where_a_price_builds_on_them() -> None:
    """An increase needs its object, a refund those it names, anything else none; what is ambiguous none."""

    def needed(body: str, call: str) -> list[str]:
        attempt = access(call)
        assert attempt.operation is not None
        return objects_needed(attempt.operation, read_form(body.encode()), attempt.parameters)

    assert needed("", "POST /v1/payments/p_1") == ["p_1"]
    assert needed("payment=p_1&charge=c_1", "POST /v1/refunds") == ["p_1", "c_1"]
    assert needed("payment=p_1&payment=p_2", "POST /v1/refunds") == []
    assert needed("amount=1&currency=usd", "POST /v1/payments") == []
    assert needed("", "POST /v1/customers") == []
    assert needed("", "POST /v1/subscriptions") == []


# --- L3: a hold is never less than what the vendor can take -------------------------------------------

CODES = st.sampled_from(["USD", "EUR", "GBP", "JPY", "KWD", "IDR"])
MINORS = st.integers(0, 10**7)
STEPS = st.lists(
    st.tuples(st.just("update"), st.none() | MINORS, st.none() | CODES)
    | st.tuples(st.just("capture"), st.none() | MINORS, st.none()),
    max_size=6,
)


def worth(minor: int, currency: str) -> int:
    """Nano-USD, which the table has for all of these."""
    nano = RATES.nano(minor, currency)
    assert nano is not None
    return nano


def play(minor: int, currency: str, steps: list[tuple[str, int | None, str | None]]) -> tuple[int, int, int]:
    """Make a payment and change it: what we held, the most it was ever worth, and what it was at first."""
    first = quote(f"amount={minor}&currency={currency}")
    assert isinstance(first, Price)
    assert first.counts is not None
    held, most, counted = first.nano, worth(minor, currency), first.counts
    for step, part, code in steps:
        if step == "update":
            minor, currency = minor if part is None else part, code or currency
            body = "&".join(
                [f"amount={part}"] * (part is not None) + [f"currency={code}"] * (code is not None)
            )
            now = quote(body, "POST /v1/payments/p_1", p_1=counted)
            most = max(most, worth(minor, currency))
        else:
            body = "" if part is None else f"amount_to_capture={part}"
            now = quote(body, "POST /v1/payments/p_1/capture", p_1=counted)
            most = max(most, worth(minor if part is None else part, currency))
        assert isinstance(now, Price)
        assert now.nano >= 0
        assert now.counts is not None
        held, counted = held + now.nano, now.counts
    return held, most, first.nano


@settings(max_examples=500)
@given(MINORS, CODES, STEPS)
def test_L3_all_holds_of_an_object_cover_the_most_it_was_ever_worth(
    minor: int, currency: str, steps: list[tuple[str, int | None, str | None]]
) -> None:
    """Raised, lowered, moved to other currencies, captured in parts: what is counted is never less."""
    held, most, _ = play(minor, currency, steps)
    assert held >= most


def test_L3_control_counting_only_the_creation_would_miss_an_increase() -> None:
    """The naive price, which looks at creation alone, is $10 short after one update; ours is not."""
    held, most, naive = play(2000, "USD", [("update", 3000, None)])
    assert naive < most == held


def test_L3_a_part_says_nothing_of_the_whole() -> None:
    """After a capture of one cent, a move of the whole to pounds still counts the whole."""
    held, most, _ = play(10_000, "USD", [("capture", 1, None), ("update", None, "GBP")])
    assert held == most == 130 * USD


@given(
    MINORS,
    st.lists(CODES, min_size=2, max_size=2),
    st.sampled_from(["", "&payment=p_1", "&payment=p_1&charge=p_2"]),
)
def test_L3_a_refund_holds_enough_for_whichever_object_the_vendor_looks_at(
    minor: int, codes: list[str], named: str
) -> None:
    """Named, not named, or two at once: the hold covers the refund in any currency that it could be in."""
    known = {"p_1": Remembered(0, 0, codes[0]), "p_2": Remembered(0, 0, codes[1])}
    now = quote(f"amount={minor}{named}", "POST /v1/refunds", None, **known)
    assert isinstance(now, Price)
    possible = codes if "charge" in named else codes[:1]
    assert now.nano >= max(worth(minor, code) for code in possible)


@given(st.integers(0, 10**12 - 1), st.fractions(Fraction(1, 10**9), 10**6))
def test_L10_no_price_is_larger_than_a_cap_can_be(minor: int, rate: Fraction) -> None:
    """Whatever the amount and the rate, what is priced fits the journal; the rest is refused."""
    attempt = access("POST /v1/payments")
    assert attempt.operation is not None
    form = read_form(f"amount={minor}&currency=eur".encode())
    quoted = price(attempt.operation, form, EMPTY, {}, {}, rates_from("2026-11-20", {"EUR": rate}))
    assert isinstance(quoted, Refusal) or 0 <= quoted.nano <= USD_MAX * USD


# --- conditions, signs and lists ----------------------------------------------------------------------


@pytest.mark.parametrize("field", ["balance", "discount", "Balance", "balance[x]", "discount[]"])
def test_law_4_what_is_free_only_without_a_field_is_unknown_with_it(field: str) -> None:
    """However it is spelled, in the body or in the query."""
    assert quote("name=x&metadata[balance]=5", "POST /v1/accounts") == FREE
    for refusal in (
        quote(f"name=x&{field}=5", "POST /v1/accounts"),
        quote("name=x", f"POST /v1/accounts?{field}=5"),
    ):
        assert isinstance(refusal, Refusal)
        assert refusal.code is Code.AMOUNT_UNKNOWN
        assert "makes it cost" in refusal.sentence
        assert "leave" in refusal.remedy


@pytest.mark.parametrize("minor", ["500", "-500"])
def test_an_amount_that_goes_either_way_counts_by_its_size(minor: str) -> None:
    """Money given is money, and so is money taken."""
    assert quote(f"amount={minor}&currency=usd", "POST /v1/balances") == Price(5 * USD, 500, "USD")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param("amount=--5&currency=usd", "plain count", id="two signs"),
        pytest.param("amount=%2B5&currency=usd", "plain count", id="a plus"),
        pytest.param("amount=-&currency=usd", "plain count", id="a sign alone"),
        pytest.param(
            "amount=5&currency=usd&lines[0][amount]=9", "lines makes it cost", id="beside the amount"
        ),
    ],
)
def test_law_4_an_amount_that_is_not_all_or_odd_is_refused(body: str, says: str) -> None:
    """A sign is one minus; what stands beside may be more."""
    refusal = quote(body, "POST /v1/balances")
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.AMOUNT_UNKNOWN
    assert says in refusal.sentence


def test_an_amount_may_stand_below_another_field() -> None:
    """In a form in brackets, in JSON as an object; a number or a text."""
    five = Price(5 * USD, 500, "USD")
    assert quote("amount[value]=500&amount[currency]=usd", "POST /v1/grants") == five
    attempt = access("POST /v1/grants")
    assert attempt.operation is not None
    for value in ("500", '"500"'):
        document = read_document(b'{"amount":{"value":%s,"currency":"usd"}}' % value.encode())
        assert price(attempt.operation, document, EMPTY, {}, {}, RATES) == five


@pytest.mark.parametrize(
    "body",
    [
        "amount[value]=500&amount[value]=5&amount[currency]=usd",
        "amount=1&amount[value]=500&amount[currency]=usd",
        "amount[value][]=500&amount[currency]=usd",
        "amount[Value]=900&amount[value]=500&amount[currency]=usd",
        "amount.value=900&amount[value]=500&amount[currency]=usd",
    ],
)
def test_P9_a_nested_amount_has_one_reading(body: str) -> None:
    """As a plain one has."""
    refusal = quote(body, "POST /v1/grants")
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.AMBIGUOUS_REQUEST


def test_P9_a_nested_amount_may_not_stand_in_the_query() -> None:
    """Whatever part of it."""
    refusal = quote("amount[value]=5&amount[currency]=usd", "POST /v1/grants?amount[value]=900")
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.AMBIGUOUS_REQUEST


LINE = "lines[0][price][unit]=500&lines[0][price][currency]=usd&lines[0][quantity]=2"
SECOND = "&lines[1][price][unit]=1&lines[1][price][currency]=USD&lines[1][quantity]=100"


@pytest.mark.parametrize(
    ("body", "usd", "minor"),
    [
        pytest.param(LINE, 10, 1000, id="one"),
        pytest.param(LINE + SECOND, 11, 1100, id="two"),
        pytest.param(SECOND[1:] + "&" + LINE, 11, 1100, id="in any order"),
        pytest.param(
            LINE + "&lines[0][price][product][name]=x&mode=buy&metadata[a]=b",
            10,
            1000,
            id="what may stand by",
        ),
        pytest.param(LINE.replace("=2", "=0"), 0, 0, id="none of it"),
    ],
)
def test_items_come_to_their_sum(body: str, usd: int, minor: int) -> None:
    """Amount times quantity of each."""
    assert quote(body, "POST /v1/carts") == Price(usd * USD, minor, "USD")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param("mode=buy", "states no lines", id="none"),
        pytest.param(LINE + "&tax=1", "tax may change what lines come to", id="beside"),
        pytest.param(LINE + "&lines[0][tax]=1", "lines.tax may change", id="in an item"),
        pytest.param(LINE + "&lines[0][price][products]=1", "lines.price.products may change", id="longer"),
        pytest.param(LINE.replace("[quantity]=2", "[quantity]=x"), "lacks a plain", id="odd quantity"),
        pytest.param("lines[0][price][unit]=500&lines[0][quantity]=2", "lacks a plain", id="no currency"),
        pytest.param(LINE + "&lines[1][quantity]=2", "lacks a plain", id="one that lacks all"),
        pytest.param(LINE + SECOND.replace("USD", "jpy"), "several currencies", id="currencies"),
        pytest.param(LINE.replace("usd", "xaf"), "no US dollar rate for XAF", id="rate"),
        pytest.param(LINE.replace("=500", "=999999999999").replace("usd", "idr"), "larger than", id="minor"),
        pytest.param(LINE.replace("=500", "=99999999999"), "larger than any cap", id="dollars"),
    ],
)
def test_law_4_items_that_have_no_certain_sum_are_refused(body: str, says: str) -> None:
    """What is not known to leave the sum alone may change it."""
    refusal = quote(body, "POST /v1/carts")
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.AMOUNT_UNKNOWN
    assert says in refusal.sentence


def test_law_4_what_may_change_a_sum_is_seen_in_the_query_too() -> None:
    """Not in the body alone."""
    refusal = quote(LINE, "POST /v1/carts?tax=1")
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.AMOUNT_UNKNOWN


@pytest.mark.parametrize(
    "body",
    [
        LINE + "&lines[0][quantity]=3",
        LINE + "&lines[][quantity]=3",
        LINE + "&Lines[0][quantity]=3",
        LINE + "&lines[00][quantity]=3",
        LINE + "&lines[0][quantity][]=3",
        LINE + "&lines=3",
        LINE + "&lines[2][quantity]=3",
        LINE + "&metadata[a]=b;lines[0][quantity]=9",
        LINE.replace("[0]", "[1]"),
    ],
)
def test_P9_a_list_has_one_reading(body: str) -> None:
    """Twice, without numbers, with gaps, or in a spelling that some parser takes for it: ambiguous."""
    refusal = quote(body, "POST /v1/carts")
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.AMBIGUOUS_REQUEST
    assert "lines" in refusal.sentence


def test_P9_a_list_may_not_stand_in_the_query() -> None:
    """The vendor might add it up."""
    refusal = quote(LINE, "POST /v1/carts?lines[1][quantity]=9")
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.AMBIGUOUS_REQUEST


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 1000)), min_size=1, max_size=9))
def test_L3_a_sum_is_what_its_items_come_to(items: list[tuple[int, int]]) -> None:
    """Exactly, whatever they are."""
    body = "&".join(
        f"lines[{n}][price][unit]={unit}&lines[{n}][price][currency]=usd&lines[{n}][quantity]={count}"
        for n, (unit, count) in enumerate(items)
    )
    now = quote(body, "POST /v1/carts")
    assert isinstance(now, Price)
    assert now.minor == sum(unit * count for unit, count in items)
    assert now.nano == now.minor * USD // 100


# --- what the vendor says of an object ----------------------------------------------------------------

LEFT = Found(1500, "USD")
MISSED = Missed("acme was asked for /v1/sales/s_1 and answered with status 404")


@pytest.mark.parametrize(
    ("body", "call", "expected"),
    [
        pytest.param("sale=s_1", "/returns", Price(15 * USD, 1500, "USD", exact=False), id="all of it"),
        pytest.param("", "/sales/s_1/return", Price(15 * USD, 1500, "USD"), id="an answer of something else"),
        pytest.param("", "/sales/s_1/reverse", Price(15 * USD, 1500, "USD"), id="each time"),
        pytest.param(
            "",
            "/sales/s_1/confirm",
            Price(15 * USD, None, "USD", counts=Remembered(15 * USD, 1500, "USD")),
            id="in full, the first time",
        ),
        pytest.param(
            "amount=500",
            "/sales/s_1/confirm",
            Price(5 * USD, 500, "USD", counts=Remembered(5 * USD, 1500, "USD")),
            id="a part",
        ),
        pytest.param(
            "amount=2000",
            "/sales/s_1",
            Price(20 * USD, 2000, "USD", counts=Remembered(20 * USD, 2000, "USD")),
            id="a new total",
        ),
    ],
)
def test_what_the_vendor_says_is_the_price(body: str, call: str, expected: Price) -> None:
    """Of a call that does not state it, or of an object that nobody counted yet."""
    assert quote(body, f"POST /v1{call}", LEFT) == expected


def test_an_object_counts_once_however_often_it_is_looked_at() -> None:
    """What was counted at its confirmation is not counted again at the next one."""
    first = quote("", "POST /v1/sales/s_1/confirm", LEFT)
    assert isinstance(first, Price)
    assert first.counts is not None
    again = quote("", "POST /v1/sales/s_1/confirm", s_1=first.counts)
    assert isinstance(again, Price)
    assert again.nano == 0


def test_an_update_that_states_nothing_of_money_costs_nothing() -> None:
    """Whoever made the object; nothing was looked up for it."""
    assert quote("description=x", "POST /v1/sales/s_1") == FREE


@pytest.mark.parametrize(
    "call", ["/returns", "/sales/s_1/return", "/sales/s_1/confirm", "/sales/s_1/reverse"]
)
def test_law_4_what_could_not_be_looked_up_is_refused(call: str) -> None:
    """With the reason, and never counted as zero."""
    refusal = quote("", f"POST /v1{call}", MISSED)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.AMOUNT_UNKNOWN
    assert "status 404" in refusal.sentence
    nothing = quote("", f"POST /v1{call}")
    assert isinstance(nothing, Refusal)
    assert nothing.code is Code.AMOUNT_UNKNOWN


def test_law_4_what_is_looked_up_in_a_currency_without_a_rate_is_refused() -> None:
    """As if the request had stated it."""
    refusal = quote("sale=s_1", "POST /v1/returns", Found(1, "XAF"))
    assert isinstance(refusal, Refusal)
    assert "no US dollar rate for XAF" in refusal.sentence


def test_an_answer_with_another_amount_settles_nothing() -> None:
    """A refund of a charge is answered with the charge, whose amount is what it was refunded of."""
    stated = quote("amount=500", "POST /v1/sales/s_1/return")
    assert stated == Price(6_500_000_000, 500, None, exact=True)
