"""What the tokens of language models cost: the operator's own figures, the vendor file's, then a dated table.

What must stay true: a model that none of them knows has no price; a figure is never rounded down. The table
(the library genai-prices, offline) is read when a call first needs it, in a thread: it takes a quarter of a
second, which neither a start nor another call should wait for.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from kbctld.core.money import NANO_PER_USD
from kbctld.core.tokens import Ladder, TokenPrice
from kbctld.core.vendor import Vendor
from kbctld.core.vendor_file import ModelPrice, TokenDollars

# A model that takes or makes anything else is billed by something that its bytes do not bound.
_KNOWN = frozenset(
    "input_mtok output_mtok cache_read_mtok cache_write_mtok cache_write_1h_mtok "
    "input_audio_mtok cache_audio_read_mtok output_audio_mtok input_image_mtok cache_image_read_mtok "
    "output_image_mtok web_searches_kcount storage_searches_kcount".split()
)
_OTHER_INPUT = ("input_audio_mtok", "cache_audio_read_mtok", "input_image_mtok", "cache_image_read_mtok")
_OTHER_OUTPUT = ("output_audio_mtok", "output_image_mtok")
# As a comment writes it, or as Python does.
_DAY = re.compile(r"(20[0-9]{2})-([01][0-9])-([0-3][0-9])")
_REMEMBERED_MAX = 10_000
# What may follow a listed name without being another model: a date, ``latest``.
_VERSION = re.compile(r"(?:-preview)?(?:[-@]?(?:\d{4}-\d{2}-\d{2}|\d{8}|\d{4}|latest))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Listed:
    """A model's price, and where it is from.

    Attributes:
        model: its name, or the beginning of names and a star.
        dated: ISO form; empty where config.toml says it.
    """

    model: str
    price: TokenPrice
    source: str
    dated: str
    yours: bool = False


class Prices:
    """Asked by vendor and model; ``ready`` comes first."""

    def __init__(self, own: Mapping[str, TokenDollars] | None = None) -> None:
        """Args: own: the operator's, by ``vendor/model``; each wins over everything else."""
        self._own = {name: _of_line(figures) for name, figures in (own or {}).items()}
        self._tables: dict[str, Any] | None = None
        self._dated = ""
        self._found: dict[tuple[str, str, int], TokenPrice | None] = {}
        self._loading: asyncio.Task[dict[str, Any]] | None = None

    async def ready(self, vendor: Vendor) -> None:
        """Read the table, if this vendor is in it and nobody did so before."""
        if vendor.file.model_table is None or self._tables is not None:
            return
        if self._loading is None:
            self._loading = asyncio.ensure_future(asyncio.to_thread(_read_tables))
        self._tables = await asyncio.shield(self._loading)

    def find(self, vendor: Vendor, model: str) -> TokenPrice | None:
        """What a model's tokens cost today; None where nobody knows it."""
        price = self._own.get(f"{vendor.name}/{model}")
        line = _fitting(vendor.file.model_price, model)
        if price is None and line is not None:
            price = _of_line(line)
        if price is not None:
            # A server of one's own has no such tiers as the vendors of the table have.
            return replace(price, surcharges=vendor.file.model_table is not None)
        if vendor.file.model_table is None:
            return None
        if self._tables is None:
            self._tables = _read_tables()
        now = datetime.now(UTC)
        key = (vendor.file.model_table, model, now.date().toordinal())
        if key not in self._found:
            if len(self._found) >= _REMEMBERED_MAX:
                self._found.clear()
            self._found[key] = _listed(self._tables[vendor.file.model_table], model, now)
        return self._found[key]

    def listed(self, vendor: Vendor, model: str | None = None) -> list[Listed]:
        """The prices in force for a vendor's models, or for one of them; may take a while the first time."""
        if model is not None:
            price = self.find(vendor, model)
            return [] if price is None else [self._listed(vendor, model, price)]
        names = [
            name.removeprefix(f"{vendor.name}/") for name in self._own if name.startswith(f"{vendor.name}/")
        ]
        names += [line.model for line in vendor.file.model_price]
        if vendor.file.model_table is not None:
            self._tables = self._tables or _read_tables()
            names += [entry.id for entry in self._tables[vendor.file.model_table].models]
        found = []
        for name in dict.fromkeys(names):
            price = self.find(vendor, name.removesuffix("*"))
            if price is not None:
                found.append(self._listed(vendor, name, price))
        return found

    def _listed(self, vendor: Vendor, model: str, price: TokenPrice) -> Listed:
        if f"{vendor.name}/{model}" in self._own:
            return Listed(model, price, "config.toml", "", yours=True)
        line = _fitting(vendor.file.model_price, model.removesuffix("*"))
        if line is not None:
            return Listed(model, price, line.source, line.dated)
        self._dated = self._dated or _table_dated()
        return Listed(model, price, f"genai-prices {version('genai-prices')}", self._dated)

    @property
    def table_dated(self) -> str:
        """The day of the bundled table, ISO form."""
        self._dated = self._dated or _table_dated()
        return self._dated


def _table_dated() -> str:
    """The newest day that the table names: it says none of its own, and can't be older than that."""
    # By its place: to import it takes far longer, and the start asks too.
    place = distribution("genai-prices").locate_file("genai_prices/data.py")
    text = Path(str(place)).read_text(encoding="utf-8")
    today = datetime.now(UTC).date().isoformat()
    named = (f"{year}-{month}-{day}" for year, month, day in _DAY.findall(text))
    return max((day for day in named if day <= today), default="")


def _read_tables() -> dict[str, Any]:
    from genai_prices import data

    return {provider.id: provider for provider in data.providers}


def _listed(provider: Any, model: str, now: datetime) -> TokenPrice | None:
    """From the table; where several of its entries fit, nobody knows which the vendor means."""
    fitting = [entry for entry in provider.models if entry.is_match(model)]
    if len(fitting) != 1 or not _is_meant(fitting[0], model):
        return None
    figures = {name: value for name, value in vars(fitting[0].get_prices(now)).items() if value is not None}
    if not figures.keys() <= _KNOWN or "input_mtok" not in figures:
        return None
    ladders = {name: _ladder(value) for name, value in figures.items()}
    return TokenPrice(
        ladders["input_mtok"],
        ladders.get("output_mtok"),
        ladders.get("cache_read_mtok"),
        ladders.get("cache_write_mtok"),
        ladders.get("cache_write_1h_mtok"),
        max((ladders[name].dearest for name in _OTHER_INPUT if name in ladders), default=0),
        max((ladders[name].dearest for name in _OTHER_OUTPUT if name in ladders), default=0),
    )


def _is_meant(entry: Any, model: str) -> bool:
    """Whether it is this model that an entry lists: some fit whatever begins alike, models to come too."""
    if model.startswith("ft:"):
        return str(entry.id).startswith("ft:")  # what was trained costs more than what it was trained from
    if not entry.is_match(model + "~"):
        return True  # it fits this name, not a beginning of it
    begins = next(end for end in range(1, len(model) + 1) if entry.is_match(model[:end] + "~"))
    return _VERSION.fullmatch(model[begins:]) is not None


def _ladder(value: Any) -> Ladder:
    if isinstance(value, Decimal):
        return Ladder(((0, _nano(value)),))
    return Ladder(((0, _nano(value.base)), *((tier.start, _nano(tier.price)) for tier in value.tiers)))


def _nano(usd: Decimal | int) -> int:
    scaled = Fraction(usd) * NANO_PER_USD
    return -(-scaled.numerator // scaled.denominator)


def _fitting(lines: Iterable[ModelPrice], model: str) -> ModelPrice | None:
    for line in lines:
        if line.model == model or (line.model.endswith("*") and model.startswith(line.model[:-1])):
            return line
    return None


def _of_line(line: ModelPrice | TokenDollars) -> TokenPrice:
    def ladder(usd: Decimal | int | None) -> Ladder | None:
        return None if usd is None else Ladder(((0, _nano(usd)),))

    return TokenPrice(
        Ladder(((0, _nano(line.input_per_million)),)),
        ladder(line.output_per_million),
        ladder(line.cache_read_per_million),
        ladder(line.cache_write_per_million),
    )
