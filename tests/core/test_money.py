"""Money is exact both ways, and every conversion rounds up."""

import ast
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kbctld.core
from kbctld.core.money import (
    NANO_MAX,
    NANO_PER_USD,
    USD_MAX,
    Rates,
    decimals_of,
    nano_from_usd,
    rates_from,
    read_currency,
    read_minor,
    say_usd,
    usd_from_nano,
)
from tests.core.support import RATES

NANOS = st.integers(0, USD_MAX * NANO_PER_USD)
MINORS = st.integers(0, 10**12 - 1)
FRACTIONS = st.fractions(Fraction(1, 10**9), 10**6)
CURRENCIES = st.sampled_from(["USD", "EUR", "JPY", "KWD", "ISK", "UGX", "MGA", "BHD"])


# --- dollars in and out ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usd", "nano"),
    [
        pytest.param(0, 0, id="zero"),
        pytest.param(Decimal("-0"), 0, id="minus zero"),
        pytest.param(5, 5_000_000_000, id="whole dollars"),
        pytest.param(Decimal("0.1"), 100_000_000, id="a dime"),
        pytest.param(Decimal("19.99"), 19_990_000_000, id="a price"),
        pytest.param(Decimal("0.000000001"), 1, id="the smallest"),
        pytest.param(Decimal("1.000000000000"), 1_000_000_000, id="zeros behind the ninth decimal"),
        pytest.param(Decimal("1E+3"), 1_000_000_000_000, id="an exponent in a file"),
        pytest.param(USD_MAX, USD_MAX * NANO_PER_USD, id="the largest cap"),
        pytest.param(Decimal("999999999.999999999"), 999_999_999_999_999_999, id="all digits"),
    ],
)
def test_L10_dollars_are_read_exactly(usd: Decimal | int, nano: int) -> None:
    """A dollar amount becomes exactly its nano-USD."""
    assert nano_from_usd(usd) == nano


@pytest.mark.parametrize(
    ("usd", "says"),
    [
        pytest.param(Decimal("NaN"), "finite", id="NaN"),
        pytest.param(Decimal("sNaN"), "finite", id="signalling NaN"),
        pytest.param(Decimal("Infinity"), "finite", id="infinity"),
        pytest.param(-1, "between", id="negative"),
        pytest.param(Decimal("-0.000000001"), "between", id="just negative"),
        pytest.param(USD_MAX + 1, "between", id="above the largest cap"),
        pytest.param(Decimal("1E+999999"), "between", id="a huge exponent"),
        pytest.param(Decimal("1E-999999"), "nine decimals", id="a tiny exponent"),
        pytest.param(Decimal("0.0000000001"), "nine decimals", id="ten decimals"),
        pytest.param(Decimal("1.0000000005"), "nine decimals", id="ten decimals behind a dollar"),
    ],
)
def test_L10_what_is_no_exact_dollar_amount_is_refused(usd: Decimal | int, says: str) -> None:
    """Nothing is rounded on the way in: what nano-USD can't hold exactly is an error that says why."""
    with pytest.raises(ValueError, match=says):
        nano_from_usd(usd)


@given(NANOS)
def test_L10_printing_and_reading_are_inverse(nano: int) -> None:
    """Every amount prints to a decimal that reads back as the same amount."""
    assert nano_from_usd(usd_from_nano(nano)) == nano


@given(NANOS | st.integers(-(10**18), NANO_MAX))
def test_amounts_print_with_two_decimals_and_no_more_zeros(nano: int) -> None:
    """A sentence shows plain digits with thousands, at least two decimals, never an exponent."""
    text = say_usd(nano)
    sign, whole, decimals = text[: text.index("$")], text[text.index("$") + 1 : -1], text.partition(".")[2]
    assert sign == ("-" if nano < 0 else "")
    assert set(whole) <= set("0123456789,.")
    assert len(decimals) == 2 or (2 < len(decimals) <= 9 and not decimals.endswith("0"))
    assert Decimal(text.replace("$", "").replace(",", "")) == usd_from_nano(nano)


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        pytest.param(4_800_000_000, "$4.80", id="two decimals"),
        pytest.param(1_250_000_000_000, "$1,250.00", id="thousands"),
        pytest.param(1, "$0.000000001", id="the smallest has no exponent"),
        pytest.param(-1_500_000_000, "-$1.50", id="negative"),
        pytest.param(NANO_MAX, "$9,223,372,036.854775807", id="the largest that can be counted"),
    ],
)
def test_say_usd_is_fit_for_a_sentence(nano: int, text: str) -> None:
    """The form that refusals show."""
    assert say_usd(nano) == text


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_L10_sums_of_cents_are_exact(cents: list[int]) -> None:
    """Amounts add up to what the cents add up to."""
    held = sum(nano_from_usd(Decimal(c).scaleb(-2)) for c in cents)
    assert held == sum(cents) * 10_000_000


def test_L10_control_a_float_sum_misses_where_ours_does_not() -> None:
    """Ten dimes are a dollar here, and are not in floats."""
    dollar = 0.0
    for _ in range(10):  # from Python 3.12 on ``sum`` puts it right by itself
        dollar += 0.1
    assert dollar != 1.0
    assert sum(nano_from_usd(Decimal("0.1")) for _ in range(10)) == NANO_PER_USD


# --- texts of a request ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "1", "007", "2000", "9" * 12])
def test_plain_digits_are_an_amount(text: str) -> None:
    """One to twelve ASCII digits are the number they spell."""
    assert read_minor(text) == int(text)


# The second column is what int() makes of it: None where it raises too.
@pytest.mark.parametrize(
    ("text", "naive"),
    [
        pytest.param("1_000", 1000, id="underscore"),
        pytest.param("+5", 5, id="plus"),
        pytest.param("\uff12\uff10", 20, id="full-width digits"),
        pytest.param("\u0663", 3, id="Arabic digits"),
        pytest.param("\u00b2", None, id="superscript"),
        pytest.param(" 5", 5, id="blank in front"),
        pytest.param("5\n", 5, id="newline behind"),
        pytest.param("5\u3000", 5, id="wide blank behind"),
        pytest.param("-5", -5, id="negative"),
        pytest.param("-0", 0, id="minus zero"),
        pytest.param("9" * 13, 10**13 - 1, id="13 digits"),
        pytest.param("1e3", None, id="exponent"),
        pytest.param("20.5", None, id="decimals"),
        pytest.param("20.", None, id="a point"),
        pytest.param("2,000", None, id="thousands"),
        pytest.param("0x10", None, id="hexadecimal"),
        pytest.param("true", None, id="true"),
        pytest.param("", None, id="empty"),
        pytest.param("5\x00", None, id="NUL"),
    ],
)
def test_L10_an_amount_is_digits_and_nothing_else(text: str, naive: int | None) -> None:
    """What int() would quietly take as a number is no amount."""
    try:
        assert int(text) == naive
    except ValueError:
        assert naive is None
    assert read_minor(text) is None


@given(st.text(max_size=14))
def test_L10_whatever_is_read_as_an_amount_is_ascii_digits(text: str) -> None:
    """No text but plain digits is ever a number."""
    plain = text.isascii() and text.isdigit() and len(text) <= 12
    assert (read_minor(text) is not None) is plain


@pytest.mark.parametrize(
    ("text", "currency"),
    [
        pytest.param("usd", "USD", id="lower case"),
        pytest.param("UsD", "USD", id="mixed case"),
        pytest.param("us", None, id="two letters"),
        pytest.param("usdd", None, id="four letters"),
        pytest.param("us1", None, id="a digit"),
        pytest.param(" us", None, id="a blank"),
        pytest.param("usd\n", None, id="a newline"),
        pytest.param("\uff35\uff33\uff24", None, id="full-width letters"),
        pytest.param("", None, id="empty"),
    ],
)
def test_a_currency_is_three_ascii_letters(text: str, currency: str | None) -> None:
    """A code is read in either case and given in upper case; anything else is none."""
    assert read_currency(text) == currency


# --- other currencies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("currency", "decimals"),
    [
        *(pytest.param(code, 0, id=code) for code in "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF".split()),
        *(pytest.param(code, 0, id=code) for code in "UGX VND VUV XAF XOF XPF".split()),
        *(pytest.param(code, 3, id=code) for code in "BHD JOD KWD OMR TND".split()),
        *(pytest.param(code, 2, id=code) for code in "USD EUR GBP ISK HUF TWD XYZ".split()),
    ],
)
def test_minor_units_are_as_the_vendor_counts_them(currency: str, decimals: int) -> None:
    """Yen have no decimals, dinars three, krónur two although ISO says none."""
    assert decimals_of(currency) == decimals


@pytest.mark.parametrize(
    ("minor", "currency", "nano"),
    [
        pytest.param(2000, "USD", 20_000_000_000, id="cents"),
        pytest.param(500, "JPY", 3_333_333_334, id="yen, rounded up"),
        pytest.param(1000, "KWD", 3_250_000_000, id="fils"),
        pytest.param(1, "EUR", 11_000_000, id="a euro cent"),
        pytest.param(0, "JPY", 0, id="nothing"),
        pytest.param(2000, "XAF", None, id="no rate"),
    ],
)
def test_minor_units_convert_by_hand_checked_rates(minor: int, currency: str, nano: int | None) -> None:
    """0, 2 and 3 decimals convert as on paper; without a rate there is no amount."""
    assert RATES.nano(minor, currency) == nano


@given(MINORS, CURRENCIES, FRACTIONS)
def test_L10_every_conversion_rounds_up(minor: int, currency: str, rate: Fraction) -> None:
    """The result is the true value or less than one nano-USD above it, never below."""
    dollars = Fraction(1) if currency == "USD" else rate
    true = Fraction(minor, 10 ** decimals_of(currency)) * dollars * NANO_PER_USD
    nano = rates_from("2026-11-20", {currency: dollars}).nano(minor, currency)
    assert nano is not None
    assert true <= nano < true + 1


def test_L10_control_rounding_down_counts_less_than_the_vendor_takes() -> None:
    """Floor division loses a part of a nano-USD that ours keeps."""
    true = Fraction(500, 150) * NANO_PER_USD
    assert 500 * NANO_PER_USD // 150 < true <= RATES.nano(500, "JPY")  # type: ignore[operator]


@given(MINORS, MINORS, CURRENCIES, FRACTIONS)
def test_L10_conversion_is_monotone(one: int, other: int, currency: str, rate: Fraction) -> None:
    """More minor units are never fewer dollars."""
    table = Rates("2026-11-20", {currency: (rate.numerator, rate.denominator)})
    low, high = table.nano(min(one, other), currency), table.nano(max(one, other), currency)
    assert low is not None
    assert high is not None
    assert low <= high


@given(MINORS)
def test_L3_the_dearest_minor_unit_bounds_every_currency(minor: int) -> None:
    """Where the currency is not known, no currency of the table is worth more than the bound."""
    bound = RATES.nano_at_most(minor)
    worths = [RATES.nano(minor, code) for code in RATES.usd_per_unit]
    assert bound == max(worth for worth in worths if worth is not None)


def test_L3_the_bound_covers_a_currency_that_the_table_lacks() -> None:
    """KYD, pegged at 1.20 dollars, is not quoted by the ECB; a table without the pound is no cheaper."""
    assert rates_from("2026-11-20", {}).nano_at_most(100) == 1_200_000_000


def test_dollars_are_always_in_a_table() -> None:
    """A table without any rate still prices dollars."""
    assert rates_from("2026-11-20", {}).nano(100, "USD") == NANO_PER_USD


@pytest.mark.parametrize(
    ("code", "rate", "says"),
    [
        pytest.param("EURO", 1, "'EURO' is not a three-letter", id="no code"),
        pytest.param("EUR", 0, "EUR is not a positive", id="zero"),
        pytest.param("EUR", -1, "EUR is not a positive", id="negative"),
        pytest.param("EUR", Decimal("NaN"), "EUR is not a finite", id="NaN"),
        pytest.param("EUR", Decimal("Infinity"), "EUR is not a finite", id="infinity"),
        pytest.param("EUR", Decimal("1E-10"), "EUR is not a positive", id="too small"),
        pytest.param("EUR", Decimal("1E+999999999"), "EUR is not a positive", id="a huge exponent"),
        pytest.param("eur", 10**6 + 1, "EUR is not a positive", id="too large"),
        pytest.param("usd", Decimal("0.5"), "USD is 1", id="half a dollar for a dollar"),
    ],
)
def test_a_rate_that_is_none_is_an_error_that_names_it(code: str, rate: Decimal | int, says: str) -> None:
    """A table takes no code and no rate that could make money cheaper by mistake."""
    with pytest.raises(ValueError, match=says):
        rates_from("2026-11-20", {code: rate})


@pytest.mark.parametrize("rate", [Decimal("1E-9"), Fraction(1, 3), 10**6])
def test_the_edges_of_a_rate_are_taken_exactly(rate: Decimal | Fraction | int) -> None:
    """The smallest and largest rate, and one that no decimal can write, stand in the table as they are."""
    assert Fraction(*rates_from("2026-11-20", {"eur": rate}).usd_per_unit["EUR"]) == rate


# --- the whole of core ----------------------------------------------------------------------------


def floats_in(source: str) -> list[int]:
    """Lines on which a float could come to be: a literal, the name, or a true division."""
    return sorted(
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Name) and node.id in ("float", "round"))
        or (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div))
    )


@pytest.mark.parametrize(
    "path", sorted(Path(kbctld.core.__path__[0]).glob("*.py")), ids=lambda path: str(path.name)
)
def test_L10_no_float_stands_in_core(path: Path) -> None:
    """No float literal, no float(), no true division in any file that decides."""
    assert floats_in(path.read_text()) == []


def test_L10_control_the_check_for_floats_finds_them() -> None:
    """A literal, a call, a rounding and a division are each found."""
    assert floats_in("a = 0.1\nb = float('1')\nc = 1 / 2\nc /= 3\nd = round(c)\ne = 10 // 3\n") == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_L10_the_largest_amount_fits_a_signed_64_bit_integer() -> None:
    """The largest cap, and the largest single call beside it, can be stored."""
    assert NANO_MAX == 2**63 - 1
    assert 2 * USD_MAX * NANO_PER_USD < NANO_MAX
