"""Prices of things that a vendor sells by count: a mail, a segment of a text message, a minute, a call.

What must stay true: prices are dated data of the vendor file, which the operator's may replace one by one.
A destination that nobody can place costs the dearest price of its table, never none; what can't be counted
is an ``UntoldError``, never zero.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from kbctld.core.money import nano_from_usd

OTHER = "other"
"""The key of a table for countries that it does not list."""

CountryOf: TypeAlias = Callable[[str], str | None]
"""The country of a phone number in E.164, as ISO 3166-1 alpha-2; None where it has none or nobody knows."""

_USD = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,9})?", re.ASCII)
_DESTINATION = re.compile(r"[A-Z]{2}|\+[1-9][0-9]{0,14}|other", re.ASCII)
_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
_E164 = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)

Text = Annotated[str, Meta(min_length=1)]
Day = Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]


class TariffError(ValueError):
    """A price that is none; the text names its key and what it takes."""


class UntoldError(ValueError):
    """What a call costs can't be told from the request; the text says why."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.remedy = remedy


class PriceTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """Prices in US dollars, as texts such as ``"0.0009"``.

    Attributes:
        source: where they were read.
        dated: on which day.
        per_mail_usd: of one recipient of a mail.
        per_segment_usd: of one segment of a text message, by destination: ``US``, ``+1907``, ``other``.
        per_media_usd: of one file that goes with a message.
        per_segment_fee_usd: what of a segment the vendor bills apart, at most, and leaves out of the price
            that it tells later.
        per_media_fee_usd: the same of a file.
        per_minute_usd: of one begun minute of a phone call, by destination.
        per_call_usd: of one call of an operation, by a name that ``cost.price`` names.
    """

    source: Text | None = None
    dated: Day | None = None
    per_mail_usd: Text | None = None
    per_segment_usd: dict[str, str] = {}
    per_media_usd: Text | None = None
    per_segment_fee_usd: Text | None = None
    per_media_fee_usd: Text | None = None
    per_minute_usd: dict[str, str] = {}
    per_call_usd: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Tariff:
    """A table of prices, checked; all in nano-USD."""

    mail: int | None
    segment: Mapping[str, int]
    media: int | None
    minute: Mapping[str, int]
    call: Mapping[str, int]
    country_of: CountryOf
    segment_fee: int = 0
    media_fee: int = 0

    def at(self, table: Mapping[str, int], number: str) -> int:
        """The price of a destination: of the longest prefix listed, else of its country, else the dearest."""
        if _E164.fullmatch(number):
            for length in range(len(number), 1, -1):
                if number[:length] in table:
                    return table[number[:length]]
            country = self.country_of(number)
            if country is not None and country in table:
                return table[country]
        return max(table.values())


def nowhere(_number: str) -> str | None:
    """A lookup that places no number, so that each costs the dearest price."""
    return None


def read_tariff(table: PriceTable, key: str, country_of: CountryOf = nowhere) -> Tariff:
    """Check a table.

    Args:
        table: as it was written.
        key: what it is called, for people.
        country_of: places phone numbers.

    Raises:
        TariffError: a price or a destination that is none.
    """
    return Tariff(
        None if table.per_mail_usd is None else _nano(table.per_mail_usd, f"{key}.per_mail_usd"),
        _by_destination(table.per_segment_usd, f"{key}.per_segment_usd"),
        None if table.per_media_usd is None else _nano(table.per_media_usd, f"{key}.per_media_usd"),
        _by_destination(table.per_minute_usd, f"{key}.per_minute_usd"),
        {name: _of_call(name, text, f"{key}.per_call_usd") for name, text in table.per_call_usd.items()},
        country_of,
        *(
            0 if text is None else _nano(text, f"{key}.{name}")
            for name, text in (
                ("per_segment_fee_usd", table.per_segment_fee_usd),
                ("per_media_fee_usd", table.per_media_fee_usd),
            )
        ),
    )


def overlaid(table: PriceTable, own: PriceTable) -> PriceTable:
    """The operator's prices over the file's, one by one; source and date stay those of the file's."""
    return PriceTable(
        source=table.source,
        dated=table.dated,
        per_mail_usd=own.per_mail_usd or table.per_mail_usd,
        per_segment_usd={**table.per_segment_usd, **own.per_segment_usd},
        per_media_usd=own.per_media_usd or table.per_media_usd,
        per_segment_fee_usd=own.per_segment_fee_usd or table.per_segment_fee_usd,
        per_media_fee_usd=own.per_media_fee_usd or table.per_media_fee_usd,
        per_minute_usd={**table.per_minute_usd, **own.per_minute_usd},
        per_call_usd={**table.per_call_usd, **own.per_call_usd},
    )


def _by_destination(table: Mapping[str, str], key: str) -> dict[str, int]:
    for destination in table:
        if not _DESTINATION.fullmatch(destination):
            raise TariffError(f"`{key}` takes countries such as US, prefixes such as +1907, and other")
    if table and OTHER not in table:
        raise TariffError(f"`{key}` takes `other` too: what countries cost that it does not list")
    return {destination: _nano(text, f"{key}.{destination}") for destination, text in table.items()}


def _of_call(name: str, text: str, key: str) -> int:
    if not _NAME.fullmatch(name):
        raise TariffError(f"`{key}` takes lower-case names, not {name!r}")
    # Zero is said of a call that is free unless it asks for more; of a count it would be no price.
    return _nano(text, f"{key}.{name}", least=0)


def _nano(text: str, key: str, least: int = 1) -> int:
    nano = nano_from_usd(Decimal(text)) if _USD.fullmatch(text) else -1
    if nano < least:
        raise TariffError(f'`{key}` takes US dollars as a text such as "0.0009"')
    return nano
