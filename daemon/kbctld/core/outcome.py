"""What an answer, or the lack of one, proves about money. Silence is not a refund."""

import json
from dataclasses import dataclass

from kbctld.core.ledger import Verdict
from kbctld.core.money import read_currency
from kbctld.core.vendor_file import Survival


def verdict_of(status: int) -> Verdict:
    """What a complete answer with this HTTP status proves.

    2xx: done. 4xx: definitely not done, 429 too; but 409 may speak of another attempt that is still
    running. 3xx and 5xx: nothing is proved; Stripe stores even 500s as the result of work that began.
    """
    if 200 <= status < 300:
        return Verdict.POSTED
    if 400 <= status < 500 and status != 409:
        return Verdict.REFUSED
    return Verdict.SILENT


@dataclass(frozen=True, slots=True)
class Survivor:
    """An object that a refused call has made or left, and that can go on without a further call.

    Attributes:
        id: its own.
        minor: what it comes to, in minor units; None where that can't be told.
        currency: upper case; None where that can't be told.
    """

    id: str
    minor: int | None
    currency: str | None


def survivor(survives: Survival, raw: bytes) -> Survivor | None:
    """The object in the answer of a refused call; None where there is none, or it has ended.

    A declined PaymentIntent can be confirmed again with its client secret, from any browser.
    """
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    for name in survives.at.split("."):
        said = said.get(name) if isinstance(said, dict) else None
    if not isinstance(said, dict) or said.get("status") in (None, *survives.ended):
        return None
    found, minor, currency = said.get("id"), said.get("amount"), said.get("currency")
    if not isinstance(found, str) or not 0 < len(found) <= 255:
        return None
    plain = isinstance(minor, int) and not isinstance(minor, bool)
    return Survivor(
        found, minor if plain else None, read_currency(currency) if isinstance(currency, str) else None
    )
