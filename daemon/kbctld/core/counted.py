"""Costs that are a count of things times their price in the vendor file: which reader each kind has.

What must stay true: a field that decides is read from the body alone; one that leaves the cost open is looked
for in body and query alike.
"""

from collections.abc import Sequence
from typing import assert_never

from kbctld.core.document import Batch, Document
from kbctld.core.flat import price_flat
from kbctld.core.form import Form
from kbctld.core.minutes import price_minutes
from kbctld.core.operation import Counted, Flat, Minutes, Recipients, Sms
from kbctld.core.recipients import price_recipients
from kbctld.core.sms import fees_of_sms, price_sms
from kbctld.core.tariff import Tariff, UntoldError
from kbctld.core.twiml import price_instructions


def deciding(cost: Counted) -> list[str]:
    """The fields that the price is read from."""
    match cost:
        case Recipients():
            return cost.fields
        case Sms():
            return [field for field in (cost.to, cost.text, cost.sender, cost.media, cost.ceiling) if field]
        case Minutes():
            return [cost.to, cost.seconds, *_inline(cost)]
        case Flat():
            return [*([cost.to] if cost.to else []), *_inline(cost)]
        case _:
            assert_never(cost)


def refuse_unbounded(fields: Sequence[str], body: Form | Document | Batch, query: Form) -> None:
    """Look for what makes a call cost more than its request tells.

    Raises:
        UntoldError: body or query holds one of these fields, in any reading.
    """
    found = body.mentions(fields) or query.mentions(fields)
    if found is not None:
        raise UntoldError(f"{found} makes it cost what the request does not tell", f"leave {found} out")


def price_counted(cost: Counted, body: Form | Document | Batch, query: Form, tariff: Tariff) -> int:
    """Nano-USD of one call.

    Raises:
        UntoldError: it can't be bounded.
        AmbiguousFieldError: a field with two readings.
    """
    if not isinstance(cost, Recipients):
        refuse_unbounded(cost.unbounded, body, query)
    match cost:
        case Recipients():
            return price_recipients(cost, body, tariff)
        case Sms():
            return price_sms(cost, body, tariff)
        case Minutes():
            return price_minutes(cost, body, tariff) + _told(cost, body, query, tariff)
        case Flat():
            return price_flat(cost, body, tariff) + _told(cost, body, query, tariff)
        case _:
            assert_never(cost)


def fees(cost: Counted, body: Form | Document | Batch, query: Form, tariff: Tariff) -> int:
    """Nano-USD of the price that the vendor will not tell later; asked of a call that was priced."""
    match cost:
        case Sms():
            return fees_of_sms(cost, body, tariff)
        case Minutes() | Flat():
            return _told(cost, body, query, tariff)
        case Recipients():
            return 0
        case _:
            assert_never(cost)


def _inline(cost: Minutes | Flat) -> list[str]:
    return [cost.instructions.inline] if cost.instructions is not None else []


def _told(cost: Minutes | Flat, body: Form | Document | Batch, query: Form, tariff: Tariff) -> int:
    return 0 if cost.instructions is None else price_instructions(cost.instructions, body, query, tariff)
