"""``GET /vendors/{name}/prices`` and ``GET /rates``: what is used is listed, with source, day and owner."""

from datetime import date, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from kbctld.control.price_lists import STALE_DAYS, stale, stale_tables
from kbctld.core.vendor import Vendor, priced, read_vendor
from kbctld.prices import Prices
from tests.control.support import OWN_PRICES, Desk, desk_in
from tests.core.support import NOW, RATES
from tests.daemon.support import STRIPE, Clock
from tests.support.loop import run

TODAY = date(2026, 11, 21)


def shipped(name: str) -> Vendor:
    """A vendor file that is shipped."""
    return read_vendor((resources.files("kbctld") / "vendors" / f"{name}.toml").read_text(encoding="utf-8"))


async def lines(desk: Desk, target: str) -> dict[str, Any]:
    """By what they are the price of."""
    answer = await desk.sees("GET", target)
    assert answer.status == 200, answer.body
    return {each["of"]: each for each in answer.json["prices"]}


def test_what_is_counted_is_listed(folder: Path) -> None:
    """The file's figures with its source and day, and the operator's in their place."""

    async def main() -> None:
        async with desk_in(folder, Clock(NOW)) as desk:
            twilio = priced(shipped("twilio"), OWN_PRICES, "vendor_prices.twilio")
            desk.vault.vendors = {"stripe": STRIPE, "twilio": twilio}
            found = await lines(desk, "/vendors/twilio/prices")
            assert found["a segment to US"] == {
                "of": "a segment to US",
                "usd": 0.0145,
                "per": "segment",
                "source": "https://www.twilio.com/en-us/pricing",
                "dated": "2026-11-21",
                "yours": False,
                "stale": False,
            }
            mine = {of: line["usd"] for of, line in found.items() if line["yours"]}
            assert mine == {"a segment to DE": 0.12, "a file with a message": 0.02}
            assert found["a segment to DE"]["source"] == "config.toml"
            assert found["a segment to DE"]["dated"] == ""
            # All that decides is there, at the figure that decides.
            tariff = twilio.tariff
            listed = {round(each["usd"] * 10**9) for each in found.values()}
            assert listed == {
                *tariff.segment.values(),
                *tariff.minute.values(),
                *tariff.call.values(),
                tariff.media,
                tariff.segment_fee,
                tariff.media_fee,
            }
            assert await lines(desk, "/vendors/stripe/prices") == {}

    run(main())


def test_models_are_listed_by_what_they_read_and_write(folder: Path) -> None:
    """All of the table, or one; tiers apart."""

    async def main() -> None:
        async with desk_in(folder, Clock(NOW)) as desk:
            desk.vault.vendors = {"anthropic": shipped("anthropic")}
            found = await lines(desk, "/vendors/anthropic/prices?model=claude-sonnet-4-5")
            assert found["claude-sonnet-4-5: input"]["usd"] == 3
            assert found["claude-sonnet-4-5: output, above 200,000 of input"]["usd"] == 22.5
            assert {each["per"] for each in found.values()} == {"million tokens"}
            assert all(each["source"].startswith("genai-prices ") for each in found.values())
            every = await lines(desk, "/vendors/anthropic/prices")
            assert found.items() <= every.items()
            missing = await desk.sees("GET", "/vendors/anthropic/prices?model=gpt-nothing")
            assert (missing.status, missing.json["error"]["code"]) == (404, "model_unknown")
            nobody = await desk.sees("GET", "/vendors/nobody/prices")
            assert (nobody.status, nobody.json["error"]["code"]) == (404, "vendor_unknown")

    run(main())


def test_the_rates_are_listed(folder: Path) -> None:
    """With the day of their table, and how many decimals an amount has."""

    async def main() -> None:
        async with desk_in(folder, Clock(NOW)) as desk:
            desk.vault.rates = RATES
            rates = {each["currency"]: each for each in (await desk.sees("GET", "/rates")).json["rates"]}
            assert "USD" not in rates
            assert (rates["EUR"]["usd"], rates["EUR"]["source"], rates["EUR"]["yours"]) == (
                1.1,
                "config.toml",
                True,
            )
            assert rates["JPY"] == {
                "currency": "JPY",
                "usd": 0.0066666667,
                "minor_digits": 0,
                "source": "European Central Bank",
                "dated": "2026-11-20",
                "yours": False,
                "stale": False,
            }

    run(main())


def test_old_figures_are_marked_from_one_day_to_the_next(folder: Path) -> None:
    """On the day after the last."""
    dated = "2026-11-21"
    assert not stale(dated, TODAY + timedelta(days=STALE_DAYS))
    assert stale(dated, TODAY + timedelta(days=STALE_DAYS + 1))
    assert not stale("", TODAY)

    async def main() -> None:
        async with desk_in(folder, Clock(NOW + 200 * 86_400 * 10**9)) as desk:
            desk.vault.vendors = {"twilio": priced(shipped("twilio"), OWN_PRICES, "x")}
            found = await lines(desk, "/vendors/twilio/prices")
            assert found["a segment to US"]["stale"]
            assert not found["a segment to DE"]["stale"]  # nobody said when that was read
            desk.vault.rates = RATES
            rates = (await desk.sees("GET", "/rates")).json["rates"]
            assert {each["currency"] for each in rates if each["stale"]} == {"GBP", "JPY", "KWD", "IDR"}

    run(main())


@pytest.mark.parametrize(("days", "told"), [(0, 0), (STALE_DAYS, 0), (STALE_DAYS + 30, 3)])
def test_old_tables_are_told_with_what_to_do(days: int, told: int) -> None:
    """One sentence each: what it is, of which day, and the cure."""
    line = '[[model_price]]\nmodel = "llama-*"\ninput_per_million = 1\nsource = "x"\ndated = "2026-11-21"\n'
    file = (resources.files("kbctld") / "vendors" / "openai.toml").read_text(encoding="utf-8")
    vendors = {"twilio": shipped("twilio"), "openai": read_vendor(file + line)}
    prices = Prices()
    prices._dated = "2026-11-21"
    found = list(stale_tables(vendors, prices, TODAY + timedelta(days=days)))
    assert len(found) == told
    for text, words in zip(found, ("vendor_prices.twilio", "llama-*", "genai-prices"), strict=False):
        assert words in text
        assert "2026-11-21" in text
        assert "config.toml" in text
