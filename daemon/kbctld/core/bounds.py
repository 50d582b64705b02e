"""What the proxy writes into a request, so that the vendor itself keeps to what was held.

What must stay true: what is added follows from the request and its price alone, never from what else is
spent, so that a retry leaves as the first attempt did; it only ever makes a call cheaper; and all other bytes
of the request stay as they were sent.
"""

import re
from decimal import Decimal
from urllib.parse import unquote_plus, urlencode

from kbctld.core.document import Batch, Document
from kbctld.core.form import Form
from kbctld.core.money import NANO_PER_USD
from kbctld.core.operation import Cost, Minutes, Sms

_USD = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,9})?", re.ASCII)
# Vendors take four decimals; the last is rounded down, so that the ceiling is never above the hold.
_STEP_NANO = NANO_PER_USD // 10_000


def bounds(cost: Cost, body: Form | Document | Batch, nano: int) -> dict[str, str]:
    """The fields to write, by name; none where the request bounds itself.

    Args:
        cost: of the operation.
        body: as the agent sent it, priced.
        nano: what is held for it, in nano-USD.
    """
    if isinstance(cost, Minutes) and cost.default_seconds is not None and body.one(cost.seconds) is None:
        return {cost.seconds: str(cost.default_seconds)}
    if isinstance(cost, Sms) and cost.ceiling is not None and nano >= _STEP_NANO:
        ceiling = Decimal(nano // _STEP_NANO).scaleb(-4)
        stated = body.one(cost.ceiling)
        if stated is None or not _USD.fullmatch(stated) or not 0 < Decimal(stated) <= ceiling:
            return {cost.ceiling: f"{ceiling.normalize():f}"}
    return {}


def bounded(raw: bytes, fields: dict[str, str]) -> bytes:
    """A form with these fields, instead of those of the same name; every other byte as it was sent."""
    kept = [
        piece
        for piece in (raw.split(b"&") if raw else [])
        if unquote_plus(piece.partition(b"=")[0].decode("latin-1")) not in fields
    ]
    return b"&".join([*kept, urlencode(fields).encode()])
