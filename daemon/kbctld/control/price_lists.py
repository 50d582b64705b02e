"""GET /vendors/{name}/prices and /rates: every figure that calls are priced by, with its source and day.

What must stay true: what is listed is what is used; a figure of the operator's is marked as such; one that is
old is marked too, since a price that rose meanwhile would be held too low.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Context, Decimal

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.control.parameters import Text
from kbctld.control.routes import Ask, Reply, Route
from kbctld.core.money import decimals_of, usd_from_nano
from kbctld.core.tariff import PriceTable
from kbctld.core.tokens import Ladder
from kbctld.core.vendor import Vendor
from kbctld.prices import Listed, Prices
from kbctld.vault import Vault

STALE_DAYS = 180
"""Prices that were read longer ago may have changed."""
RATES_STALE_DAYS = 45
"""Exchange rates move faster."""
_DIGITS = Context(prec=8)
_ECB = "European Central Bank"


def stale(dated: str, today: date, days: int = STALE_DAYS) -> bool:
    """Whether figures of that day are old; none that says no day is."""
    return bool(dated) and (today - date.fromisoformat(dated)).days > days


def stale_tables(vendors: Mapping[str, Vendor], prices: Prices, today: date) -> Iterator[str]:
    """A sentence for each table of prices that is old, with what to do about it."""
    for vendor in vendors.values():
        price = vendor.file.price
        if price is not None and price.dated is not None and stale(price.dated, today):
            yield (
                f"The prices of {vendor.name} are of {price.dated}: compare them with {price.source},"
                f" and set what differs under [vendor_prices.{vendor.name}] in config.toml."
            )
        for line in vendor.file.model_price:
            if stale(line.dated, today):
                yield (
                    f"The price of {vendor.name}'s {line.model} is of {line.dated}: compare it with"
                    f" {line.source},"
                    f' and set what differs under [model_prices."{vendor.name}/{line.model}"] in config.toml.'
                )
    if any(vendor.file.model_table for vendor in vendors.values()) and stale(prices.table_dated, today):
        yield (
            f"The prices of language models are of {prices.table_dated}: pip install --upgrade genai-prices,"
            " or set your own under [model_prices] in config.toml."
        )


@dataclass(frozen=True, slots=True)
class PriceLists:
    """What they are made from.

    Attributes:
        own_prices: the operator's, by vendor.
        own_rates: the currencies that the operator set.
    """

    vault: Vault
    own_prices: Mapping[str, PriceTable]
    own_rates: frozenset[str]

    def routes(self) -> list[Route]:
        """Their part of the table."""
        return [
            Route(
                *("GET", "/vendors/{name}/prices", self._prices, "read", "What things cost at a vendor"),
                gives=wire.VendorPrices,
                query={"model": Text("The tokens of this model only.")},
                errors=(404,),
            ),
            Route(
                *("GET", "/rates", self._rates, "read", "What other currencies are counted at"),
                gives=wire.CurrencyRates,
            ),
        ]

    async def _prices(self, ask: Ask) -> Reply:
        name, model = ask.parameters[0], ask.text("model")
        vendor = self.vault.vendors.get(name)
        if vendor is None:
            known = ", ".join(sorted(self.vault.vendors))
            raise KbctlError(
                "vendor_unknown",
                f"there is no vendor {name[:100]!r}; there is {known}",
                "kbctl vendor list",
                Exit.NOT_FOUND,
            )
        # In a thread: the prices of models take a while to read for the first time.
        models = await asyncio.to_thread(self.vault.prices.listed, vendor, model)
        if model is not None and not models:
            raise KbctlError(
                "model_unknown",
                f"no price is known for {name}'s model {model[:200]!r}",
                f"kbctl vendor prices {name}",
                Exit.NOT_FOUND,
            )
        today = self._today()
        lines = [] if model is not None else list(self._counted(vendor, today))
        lines += [line for each in models for line in _tokens(each, today)]
        return Reply(wire.VendorPrices(vendor=name, prices=lines, stale_days=STALE_DAYS))

    def _counted(self, vendor: Vendor, today: date) -> Iterator[wire.VendorPrice]:
        table = vendor.file.price
        if table is None:
            return
        own = self.own_prices.get(vendor.name, PriceTable())

        def line(of: str, usd: str, per: str, mine: object) -> wire.VendorPrice:
            yours = mine is not None
            source = (own.source or "config.toml") if yours else (table.source or "")
            dated = (own.dated if yours else table.dated) or ""
            return wire.VendorPrice(
                of=of,
                usd=Decimal(usd),
                per=per,
                source=source,
                dated=dated,
                yours=yours,
                stale=stale(dated, today),
            )

        for of, per, field in (
            ("a recipient", "recipient", "per_mail_usd"),
            ("a file with a message", "file", "per_media_usd"),
            ("a carrier's fee for a segment", "segment", "per_segment_fee_usd"),
            ("a carrier's fee for a file", "file", "per_media_fee_usd"),
        ):
            usd = getattr(table, field)
            if usd is not None:
                yield line(of, usd, per, getattr(own, field))
        for of, per, prices, mine in (
            ("a segment to ", "segment", table.per_segment_usd, own.per_segment_usd),
            ("a minute to ", "begun minute", table.per_minute_usd, own.per_minute_usd),
            ("", "call", table.per_call_usd, own.per_call_usd),
        ):
            for name, usd in prices.items():
                told = "any other country" if of and name == "other" else name
                yield line(of + told, usd, per, mine.get(name))

    async def _rates(self, _ask: Ask) -> Reply:
        rates, today = self.vault.rates, self._today()
        return Reply(
            wire.CurrencyRates(
                rates=[
                    wire.CurrencyRate(
                        currency=code,
                        usd=_DIGITS.divide(Decimal(numerator), Decimal(denominator)),
                        minor_digits=decimals_of(code),
                        source="config.toml" if code in self.own_rates else _ECB,
                        dated="" if code in self.own_rates else rates.dated,
                        yours=code in self.own_rates,
                        stale=code not in self.own_rates and stale(rates.dated, today, RATES_STALE_DAYS),
                    )
                    for code, (numerator, denominator) in sorted(rates.usd_per_unit.items())
                    if code != "USD"
                ],
                stale_days=RATES_STALE_DAYS,
            )
        )

    def _today(self) -> date:
        return datetime.fromtimestamp(self.vault.now_ns() // 10**9, UTC).date()


def _tokens(listed: Listed, today: date) -> Iterator[wire.VendorPrice]:
    price = listed.price
    kinds: list[tuple[str, Ladder | None]] = [
        ("input", price.input),
        ("output", price.output),
        ("input read from a cache", price.cache_read),
        ("input written to a cache", price.cache_write),
        ("input written to a cache for an hour", price.cache_write_long),
    ]
    for kind, ladder in kinds:
        for start, nano in ladder.steps if ladder is not None else ():
            above = f", above {start:,} of input" if start else ""
            yield wire.VendorPrice(
                of=f"{listed.model}: {kind}{above}",
                usd=usd_from_nano(nano),
                per="million tokens",
                source=listed.source,
                dated=listed.dated,
                yours=listed.yours,
                stale=stale(listed.dated, today),
            )
