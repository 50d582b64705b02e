"""Money as an integer of nano-USD (1e-9 USD), and the way into it from texts and from other currencies.

What must stay true: no float anywhere, and every conversion rounds up, so that what we count is never
less than what the vendor can take. An amount that cannot be read exactly is None, never zero.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

NANO_PER_USD = 1_000_000_000

USD_MAX = 1_000_000_000
"""The largest cap: far above any real one, and its nano-USD still leave room in a signed 64-bit integer."""

NANO_MAX = 2**63 - 1
"""SQLite's INTEGER; a sum that would pass it is refused before it is stored."""

MINOR_MAX = 10**12
"""More minor units than any amount that is read."""

# ASCII digits only: int() also takes "1_000", "+5", " 5" and full-width digits.
_MINOR = re.compile(r"[0-9]{1,12}", re.ASCII)
_CURRENCY = re.compile(r"[A-Za-z]{3}", re.ASCII)

# Digits after the point per currency as Stripe counts minor units, which is not ISO 4217 everywhere:
# https://docs.stripe.com/currencies (MGA has two in ISO and none here; ISK has none in ISO and two here;
# UGX stands in both lists there: none is the dearer reading, so none it is).
_ZERO_DECIMAL = frozenset("BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF UGX VND VUV XAF XOF XPF".split())
_THREE_DECIMAL = frozenset("BHD JOD KWD OMR TND".split())


def nano_from_usd(usd: Decimal | int) -> int:
    """Exact nano-USD of a dollar amount.

    Raises:
        ValueError: not finite, more than nine decimals, or outside 0..USD_MAX.
    """
    amount = Decimal(usd)
    if not amount.is_finite():
        raise ValueError("a dollar amount must be a finite number")
    # Bound the size before scaling: 1e400 and 1e-400 would otherwise become 400-digit integers.
    if not 0 <= amount <= USD_MAX:
        raise ValueError(f"a dollar amount lies between 0 and {USD_MAX:,}")
    # Decimal arithmetic rounds to the context's 28 digits; a fraction does not.
    if amount and amount.adjusted() < -9:
        raise ValueError("a dollar amount has at most nine decimals")
    scaled = Fraction(amount) * NANO_PER_USD
    if scaled.denominator != 1:
        raise ValueError("a dollar amount has at most nine decimals")
    return scaled.numerator


def usd_from_nano(nano: int) -> Decimal:
    """The exact dollar amount, at least two decimals, no others that are zero."""
    sign = "-" if nano < 0 else ""
    whole, part = divmod(abs(nano), NANO_PER_USD)
    decimals = f"{part:09d}".rstrip("0").ljust(2, "0")
    return Decimal(f"{sign}{whole}.{decimals}")


def say_usd(nano: int) -> str:
    """For sentences: ``$4.80``, ``$1,250.00``."""
    amount = usd_from_nano(nano)
    return f"-${-amount:,f}" if nano < 0 else f"${amount:,f}"  # f: a Decimal may print itself as 1E-9


def read_minor(text: str) -> int | None:
    """A count of minor units as vendors take it: one to twelve ASCII digits, nothing else."""
    return int(text) if _MINOR.fullmatch(text) else None


def read_currency(text: str) -> str | None:
    """An ISO 4217 code in either case, as upper case."""
    return text.upper() if _CURRENCY.fullmatch(text) else None


def decimals_of(currency: str) -> int:
    """Digits after the point in the vendor's minor unit of an upper-case currency code."""
    if currency in _ZERO_DECIMAL:
        return 0
    return 3 if currency in _THREE_DECIMAL else 2


_KYD_CENT_NANO = 12_000_000
_SCALE = {0: 1, 2: 100, 3: 1000}


@dataclass(frozen=True, slots=True)
class Rates:
    """US dollars per unit of each currency, as exact fractions, from one dated table.

    Attributes:
        dated: the table's own date, ISO form; shown where a rate is used.
        usd_per_unit: numerator and denominator per upper-case code; always holds USD.
    """

    dated: str
    usd_per_unit: Mapping[str, tuple[int, int]]

    def nano(self, minor: int, currency: str) -> int | None:
        """Nano-USD of ``minor`` minor units, rounded up; None where the table lacks the currency."""
        rate = self.usd_per_unit.get(currency)
        if rate is None:
            return None
        numerator, denominator = rate
        scaled = minor * NANO_PER_USD * numerator
        return -(-scaled // (denominator * _SCALE[decimals_of(currency)]))

    def nano_at_most(self, minor: int) -> int:
        """Nano-USD that ``minor`` minor units can be worth in any currency of the table, rounded up.

        Currencies that the ECB's table lacks are pegged to a listed one (GIP, FKP and SHP to GBP), cheaper
        per minor unit (KWD, BHD and OMR have three decimals), or KYD, pegged at 1.20 US dollars: the floor.
        """
        listed = (self.nano(minor, code) for code in self.usd_per_unit)
        return max(minor * _KYD_CENT_NANO, *(nano for nano in listed if nano is not None))


def rates_from(dated: str, usd_per_unit: Mapping[str, Fraction | Decimal | int]) -> Rates:
    """Build a table.

    Args:
        dated: ISO date of the table.
        usd_per_unit: US dollars for one unit, per code.

    Raises:
        ValueError: a code or a rate that is not one, naming it.
    """
    table = {"USD": (1, 1)}
    for code, value in usd_per_unit.items():
        currency = read_currency(code)
        if currency is None:
            raise ValueError(f"{code!r} is not a three-letter currency code")
        if isinstance(value, Decimal) and not value.is_finite():
            raise ValueError(f"the rate of {currency} is not a finite number")
        # Bound the size before it becomes a fraction: 1e999999999 would fill the memory.
        if not Fraction(1, 10**9) <= value <= 10**6:
            raise ValueError(f"the rate of {currency} is not a positive number of US dollars")
        rate = Fraction(value)
        if currency == "USD" and rate != 1:
            raise ValueError("the rate of USD is 1")
        table[currency] = (rate.numerator, rate.denominator)
    return Rates(dated, table)
