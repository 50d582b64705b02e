"""Calls that cost the same whatever they say, and perhaps a message of one segment on top."""

from kbctld.core.document import Batch, Document
from kbctld.core.form import Form
from kbctld.core.operation import Flat
from kbctld.core.sms import phone_number
from kbctld.core.tariff import Tariff


def price_flat(cost: Flat, body: Form | Document | Batch, tariff: Tariff) -> int:
    """Nano-USD of the call.

    Raises:
        UntoldError: it states no destination where one counts.
        AmbiguousFieldError: a field with two readings.
    """
    price = tariff.call[cost.price]
    if cost.to is None:
        return price
    return price + tariff.at(tariff.segment, phone_number(body, cost.to))
