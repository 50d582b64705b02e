"""What one call can cost at most, read from the request before it leaves.

What must stay true: a cost that can't be bounded is a refusal, never zero; a price is never below what
the vendor can take for the request as sent. A new kind of cost is one function here and one row in
``vendors/README.md``.
"""

from collections.abc import Mapping
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from kbctld.core import counted, tokens
from kbctld.core.body import Body
from kbctld.core.counted import refuse_unbounded
from kbctld.core.document import Document
from kbctld.core.form import AmbiguousFieldError, Form
from kbctld.core.items import sum_items
from kbctld.core.lookup import Found, Missed
from kbctld.core.money import NANO_PER_USD, USD_MAX, Rates, read_currency, read_minor
from kbctld.core.operation import (
    Amount,
    Counted,
    Flat,
    Free,
    Increase,
    Items,
    LookUp,
    Minutes,
    Operation,
    Recipients,
    Sms,
    Tokens,
    Unpriceable,
)
from kbctld.core.refusal import Code, Refusal
from kbctld.core.tariff import Tariff, UntoldError
from kbctld.core.tokens import TokenPrice


class Remembered(Struct, frozen=True):
    """What an object of the vendor has been counted at when it was made.

    Attributes:
        nano: nano-USD counted so far, the highest ever.
        minor: in minor units, the highest amount ever stated for it.
        currency: upper case.
    """

    nano: int
    minor: int
    currency: str


class Price(Struct, frozen=True):
    """The most that a call can take.

    Attributes:
        nano: nano-USD to hold.
        minor: the amount as the call states it; None where it states none.
        currency: upper case; None where it can't be told from the request.
        exact: False where the answer tells the truth that the request can't.
        readable: False where nobody can tell the cost and no cap asks for it.
        counts: what the object will have been counted at once this is spent; None where nothing builds on it.
        untold: nano-USD of it that the vendor leaves out, at most, of the price that it tells later.
        tokens: the prices of the model, for when the answer tells its usage; None for any other call.
    """

    nano: int = 0
    minor: int | None = None
    currency: str | None = None
    exact: bool = True
    readable: bool = True
    counts: Remembered | None = None
    tokens: TokenPrice | None = None
    untold: int = 0


FREE = Price()
UNPRICED = Price(readable=False)


def objects_needed(operation: Operation, form: Body, parameters: Mapping[str, str]) -> list[str]:
    """The ids of the objects that ``price`` must be told about."""
    cost = operation.cost
    if isinstance(cost, Increase):
        return [parameters[cost.of]]
    if isinstance(cost, Amount):
        try:
            return _named(cost, form, parameters)
        except AmbiguousFieldError:
            return []  # pricing refuses it; nothing to look up
    return []


def price(
    operation: Operation,
    form: Body,
    query: Form,
    parameters: Mapping[str, str],
    known: Mapping[str, Remembered],
    rates: Rates,
    tariff: Tariff | None = None,
    find_price: tokens.FindPrice = lambda model: None,
    looked_up: Found | Missed | None = None,
) -> Price | Refusal:
    """Price one call.

    Args:
        operation: what is attempted.
        form: the body, a form or a JSON document.
        query: the query; may not name a field that decides.
        parameters: the path's parameters.
        known: what we remember of the objects that ``objects_needed`` named.
        rates: US dollars per unit of other currencies.
        tariff: the vendor's prices of what it sells by count; None where nothing is.
        find_price: what the tokens of a model cost; without, none is known.
        looked_up: what the vendor says of the object, where ``plan_lookup`` asked for it.
    """
    cost = operation.cost
    match cost:
        case Unpriceable():
            return _unknown(operation, cost.why)
        case Free() | LookUp():
            decides = []
        case Amount():
            decides = [cost.amount, *([cost.currency] if cost.currency else cost.currency_of)]
        case Tokens():
            decides = tokens.deciding(cost.api)
        case Increase():
            decides = [field for field in (cost.amount, cost.currency) if field]
        case Recipients() | Sms() | Minutes() | Flat():
            decides = counted.deciding(cost)
        case Items():
            decides = [cost.of]
        case _:
            assert_never(cost)
    stray = query.mentions(decides)
    if stray is not None:
        return Refusal(
            Code.AMBIGUOUS_REQUEST,
            f"{stray} stands in the query of {operation.name}",
            f"send {stray} in the body, once",
        )
    try:
        if isinstance(cost, Amount):
            for field in decides:
                form.one(field)  # two readings of any of them come before what one reading says
            refuse_unbounded(cost.unbounded, form, query)
            return _price_amount(operation, cost, form, parameters, known, rates, looked_up)
        if isinstance(cost, Tokens):
            return _price_tokens(operation, cost, form, find_price)
        if isinstance(cost, Counted):
            assert tariff is not None  # noqa: S101 - the vendor file has a price for each
            nano = counted.price_counted(cost, form, query, tariff)
            untold = counted.fees(cost, form, query, tariff) if operation.later is not None else 0
            return _bounded(operation, Price(nano, untold=untold))
        if isinstance(cost, Items):
            assert isinstance(form, Form)  # noqa: S101 - such a path takes nothing else
            return _priced(operation, *sum_items(cost, form, query), rates)
        if isinstance(cost, Free):
            refuse_unbounded(cost.unbounded, form, query)
            return FREE
        if isinstance(cost, LookUp):
            told = _told(looked_up)
            return _priced(operation, told.minor, told.currency, rates)
        for field in decides:
            form.one(field)  # as above
        return _price_increase(operation, cost, form, known.get(parameters[cost.of]), rates, looked_up)
    except UntoldError as error:
        return _unknown(operation, str(error), error.remedy)
    except AmbiguousFieldError as error:
        return Refusal(
            Code.AMBIGUOUS_REQUEST,
            f"{error} can be read in more than one way in {operation.name}",
            f"send {error} once, as a plain field",
        )


def _price_amount(
    operation: Operation,
    cost: Amount,
    form: Body,
    parameters: Mapping[str, str],
    known: Mapping[str, Remembered],
    rates: Rates,
    looked_up: Found | Missed | None,
) -> Price | Refusal:
    minor = _minor(operation, cost.amount, form, signed=cost.signed)
    if isinstance(minor, Refusal):
        return minor
    if minor is None:
        if looked_up is None:
            return _unknown(operation, f"it states no {cost.amount}", f"state {cost.amount}")
        told = _told(looked_up, f"it states no {cost.amount}, and ", f"state {cost.amount}")
        quote = _priced(operation, told.minor, told.currency, rates)
        # Meanwhile it may have become less.
        return quote if isinstance(quote, Refusal) else replace(quote, exact=not cost.answers_amount)
    if cost.currency is None:
        found = [known.get(name) for name in _named(cost, form, parameters)]
        currencies = {remembered.currency if remembered else None for remembered in found}
        if len(currencies) != 1 or None in currencies:
            # None named, one made elsewhere, or several that differ: whichever of them the vendor looks at.
            most = Price(rates.nano_at_most(minor), minor, None, exact=not cost.answers_amount)
            return _bounded(operation, most)
        currency = str(currencies.pop())
    else:
        read = _currency(operation, cost.currency, form)
        if isinstance(read, Refusal):
            return read
        if read is None:
            return _unknown(operation, f"it states no {cost.currency}", f"state {cost.currency}")
        currency = read
    return _priced(operation, minor, currency, rates, is_object=cost.object is not None)


def _priced(
    operation: Operation, minor: int, currency: str, rates: Rates, *, is_object: bool = False
) -> Price | Refusal:
    nano = rates.nano(minor, currency)
    if nano is None:
        return _no_rate(operation, currency)
    counts = Remembered(nano, minor, currency) if is_object else None
    return _bounded(operation, Price(nano, minor, currency, counts=counts))


def _told(looked_up: Found | Missed | None, before: str = "", remedy: str = "") -> Found:
    """What the vendor said.

    Raises:
        UntoldError: nothing that could be used.
    """
    if isinstance(looked_up, Found):
        return looked_up
    why = "it names no object that can be looked up" if looked_up is None else looked_up.why
    raise UntoldError(before + why, remedy)


def _price_increase(
    operation: Operation,
    cost: Increase,
    form: Body,
    before: Remembered | None,
    rates: Rates,
    looked_up: Found | Missed | None,
) -> Price | Refusal:
    minor = _minor(operation, cost.amount, form) if cost.amount else None
    currency = _currency(operation, cost.currency, form) if cost.currency else None
    if isinstance(minor, Refusal):
        return minor
    if isinstance(currency, Refusal):
        return currency
    if before is None:
        if cost.only_stated and minor is None and currency is None:
            return FREE
        # Made elsewhere: nobody counted it, and the request alone doesn't say what it is worth.
        elsewhere = "this object was not made through kbctl, so nobody counted it yet"
        if looked_up is None:
            return _unknown(operation, elsewhere)
        told = _told(looked_up, f"{elsewhere}, and ")
        before = Remembered(0, told.minor, told.currency)
    total = Remembered(0, before.minor if minor is None else minor, currency or before.currency)
    nano = rates.nano(total.minor, total.currency)
    if nano is None:
        return _no_rate(operation, total.currency)
    highest = max(nano, before.nano)
    return _bounded(
        operation,
        Price(
            highest - before.nano,
            minor,
            total.currency,
            # A part (amount_to_capture) says nothing of the whole, which a new currency would apply to.
            counts=Remembered(highest, max(total.minor, before.minor), total.currency),
        ),
    )


def _price_tokens(
    operation: Operation, cost: Tokens, form: Body, find_price: tokens.FindPrice
) -> Price | Refusal:
    if not isinstance(form, Document):
        return _unknown(operation, "it has no JSON body")
    most = tokens.bound(cost.api, form, find_price)
    return _bounded(operation, Price(most.nano, exact=False, tokens=most.price))


def _named(cost: Amount, form: Body, parameters: Mapping[str, str]) -> list[str]:
    values = (parameters.get(field) or form.one(field) for field in cost.currency_of)
    return [value for value in values if value]


def _minor(operation: Operation, field: str, form: Body, *, signed: bool = False) -> int | Refusal | None:
    text = form.one(field)
    if text is None:
        return None
    minor = read_minor(text.removeprefix("-") if signed else text)
    if minor is None:
        return _unknown(
            operation, f"its {field} is not a plain count of minor units", f"send {field} as digits only"
        )
    return minor


def _currency(operation: Operation, field: str, form: Body) -> str | Refusal | None:
    text = form.one(field)
    if text is None:
        return None
    currency = read_currency(text)
    if currency is None:
        return _unknown(operation, f"its {field} is not a three-letter code")
    return currency


def _bounded(operation: Operation, quote: Price) -> Price | Refusal:
    if quote.nano > USD_MAX * NANO_PER_USD:
        return _unknown(operation, "its amount is larger than any cap can be")
    return quote


def _no_rate(operation: Operation, currency: str) -> Refusal:
    return _unknown(
        operation,
        f"there is no US dollar rate for {currency}",
        f"add {currency} = <USD per unit> under [rates] in config.toml and restart the daemon",
    )


def _unknown(operation: Operation, why: str, remedy: str = "") -> Refusal:
    return Refusal(
        Code.AMOUNT_UNKNOWN,
        f"what {operation.name} would cost can't be told before it is sent: {why}",
        remedy,
    )
