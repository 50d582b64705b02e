"""What tokens cost: the operator's word before the vendor file's, both before the table, and nothing else."""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kbctl.errors import KbctlError
from kbctl.paths import Home
from kbctld import prices
from kbctld.config import read_config, read_prices, read_vendors
from kbctld.core.tokens import Ladder, TokenPrice
from kbctld.core.vendor import Vendor, read_vendor
from kbctld.core.vendor_file import TokenDollars
from kbctld.prices import Prices
from tests.core.support import HEAD
from tests.support.loop import run

LINES = """
[[model_price]]
model = "llama-3"
input_per_million = 1
source = "the invoice"
dated = "2026-11-21"

[[model_price]]
model = "llama-*"
input_per_million = 0.05
output_per_million = 0.08
cache_read_per_million = 0.01
cache_write_per_million = 0.06
source = "the invoice"
dated = "2026-11-21"
"""


def vendor(table: str = "", lines: str = "") -> Vendor:
    head = HEAD.replace('"form"', '"json"') + "operation = []\n"
    return read_vendor(head + (f'model_table = "{table}"\n' if table else "") + lines)


OPENAI, ANTHROPIC, OWN = vendor("openai"), vendor("anthropic"), vendor(lines=LINES)


def flat(nano: int) -> Ladder:
    return Ladder(((0, nano),))


def test_the_table_knows_models_by_name_only() -> None:
    found = Prices()
    small = found.find(OPENAI, "gpt-4o-mini")
    assert small is not None
    assert (small.input, small.output, small.cache_read) == (
        flat(150_000_000),
        flat(600_000_000),
        flat(75_000_000),
    )
    assert found.find(OPENAI, "gpt-4o-mini") is small
    for unknown in ("gpt-99", "gpt-5-superpro", "ft:gpt-99:org::id", "claude-haiku-4-5", "llama-3"):
        assert found.find(OPENAI, unknown) is None, unknown
    message = found.find(ANTHROPIC, "claude-haiku-4-5-20251001")
    assert message is not None
    assert message.cache_write_long == flat(2_000_000_000)
    assert found.find(OWN, "gpt-4o-mini") is None


@pytest.mark.parametrize(
    ("table", "model", "known"),
    [
        (OPENAI, "gpt-5-nano", True),
        (OPENAI, "gpt-5-nano-2025-08-07", True),
        (OPENAI, "gpt-5-nano-max", False),
        (OPENAI, "gpt-3.5-turbo-instruct-0914", True),
        (OPENAI, "ft:gpt-4o-mini-2024-07-18:acme::a1", True),
        (OPENAI, "ft:gpt-4-0613:acme::a1", False),
        (ANTHROPIC, "claude-opus-4-0", True),
        (ANTHROPIC, "claude-haiku-4-5@20251001", True),
        (ANTHROPIC, "claude-sonnet-4-5-latest", True),
        (ANTHROPIC, "claude-sonnet-4-20250514", True),
        (ANTHROPIC, "claude-opus-4-8-fast", False),
    ],
)
def test_law_4_a_model_that_only_begins_like_a_listed_one_has_no_price(
    table: Vendor, model: str, known: bool
) -> None:
    """The table fits beginnings: a dearer model to come would be counted as the one it is named after."""
    assert any(entry.is_match(model) for entry in prices._read_tables()[table.file.model_table or ""].models)
    assert (Prices().find(table, model) is not None) is known


def test_law_1_the_dearest_step_of_a_ladder_and_input_that_is_no_text_are_in_the_bound() -> None:
    long = Prices().find(ANTHROPIC, "claude-sonnet-4-5")
    assert long is not None
    assert len(long.input.steps) == 2
    assert long.dearest_input == 12_000_000_000  # kept for an hour, in a long prompt
    loud = Prices().find(OPENAI, "gpt-audio")
    assert loud is not None
    assert loud.dearest_output > (loud.output.dearest if loud.output else 0)


def entry(name: str, **figures: Any) -> Any:
    return SimpleNamespace(
        is_match=lambda model: model.startswith(name), get_prices=lambda now: SimpleNamespace(**figures)
    )


def test_law_10_an_entry_that_costs_otherwise_or_is_not_the_only_one_is_no_price(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = [
        entry("a", input_mtok=Decimal("0.00000000011"), output_mtok=None),
        entry("b", input_mtok=Decimal(1), requests_kcount=Decimal(1)),
        entry("c", output_mtok=Decimal(1)),
        entry("d", input_mtok=Decimal(1)),
        entry("dd", input_mtok=Decimal(2)),
    ]
    monkeypatch.setattr(prices, "_read_tables", lambda: {"openai": SimpleNamespace(models=entries)})
    found = Prices()
    assert found.find(OPENAI, "a") == TokenPrice(flat(1))  # rounded up
    assert [found.find(OPENAI, model) for model in ("b", "c", "dd", "e")] == [None] * 4
    assert found.find(OPENAI, "d") == TokenPrice(flat(10**9))


def test_what_was_found_is_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "_REMEMBERED_MAX", 3)
    found = Prices()
    for number in range(10):
        found.find(OPENAI, f"gpt-{number}00")
    assert len(found._found) <= 3


def test_the_vendor_file_s_first_line_that_fits_wins_and_the_operator_before_it() -> None:
    assert Prices().find(OWN, "llama-3") == TokenPrice(flat(10**9), surcharges=False)
    assert Prices().find(OWN, "llama-4") == TokenPrice(
        flat(50_000_000), flat(80_000_000), flat(10_000_000), flat(60_000_000), surcharges=False
    )
    assert Prices().find(OWN, "Llama-4") is None
    own = {"acme/llama-3": TokenDollars(input_per_million=2), "openai/x": TokenDollars(input_per_million=3)}
    assert Prices(own).find(OWN, "llama-3") == TokenPrice(flat(2 * 10**9), surcharges=False)
    assert Prices(own).find(OPENAI, "x") is None  # the name of this vendor is acme
    assert Prices({"openai/x": TokenDollars(input_per_million=3)}).find(vendor("openai"), "x") is None
    listed = vendor("openai", LINES)
    assert Prices().find(listed, "llama-3") == TokenPrice(flat(10**9)), "its projects have tiers all the same"


def test_the_table_is_read_once_in_a_thread_and_only_for_vendors_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = []

    def read_tables() -> dict[str, Any]:
        read.append(1)
        return {"openai": SimpleNamespace(models=[])}

    monkeypatch.setattr(prices, "_read_tables", read_tables)

    async def main() -> None:
        found = Prices()
        await found.ready(OWN)
        assert not read
        await asyncio.gather(*(found.ready(OPENAI) for _ in range(5)))
        await found.ready(OPENAI)
        assert len(read) == 1
        assert found.find(OPENAI, "gpt-4o") is None

    run(main())


def test_neither_the_command_line_nor_the_daemon_s_modules_read_the_table() -> None:
    script = "import kbctl.main, kbctld.app, sys; assert 'genai_prices' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def write(home: Home, text: str) -> None:
    home.config.write_text(text)
    home.config.chmod(0o600)


def test_config_sets_prices(home: Home) -> None:
    write(home, '[model_prices."openai/gpt-99"]\ninput_per_million = 1.25\noutput_per_million = 10\n')
    config = read_config(home)
    vendors = read_vendors(home, config)
    found = read_prices(home, config, vendors).find(vendors["openai"], "gpt-99")
    assert found == TokenPrice(flat(1_250_000_000), flat(10 * 10**9))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[model_prices."opnai/gpt-99"]\ninput_per_million = 1', "takes VENDOR/MODEL"),
        ('[model_prices."openai"]\ninput_per_million = 1', "takes VENDOR/MODEL"),
        (
            '[model_prices."openai/gpt-99"]\ninput_per_million = -1',
            "model_prices.openai/gpt-99.input_per_million",
        ),
        ('[model_prices."openai/gpt-99"]\ninput_per_million = nan', "finite"),
        ('[model_prices."openai/gpt-99"]\ninput_per_million = 1\noutput = 2', "unknown field `output`"),
        ('[model_prices."openai/gpt-99"]\noutput_per_million = 1', "input_per_million"),
    ],
)
def test_law_10_a_wrong_price_stops_the_start(home: Home, text: str, says: str) -> None:
    write(home, text)

    def start() -> None:
        config = read_config(home)
        read_prices(home, config, read_vendors(home, config))

    with pytest.raises(KbctlError) as raised:
        start()
    assert says in raised.value.message


def test_the_table_s_day_is_the_newest_that_it_names() -> None:
    """Never one that is still to come."""
    dated = Prices().table_dated
    assert "2026-10" <= dated[:7] <= datetime.now(UTC).date().isoformat()[:7]


def test_models_are_listed_with_whose_word_it_is() -> None:
    """The operator's before the file's, both before the table; a model that nobody knows is not there."""
    own = {"acme/llama-9": TokenDollars(input_per_million=1), "other/x": TokenDollars(input_per_million=1)}
    vendor = read_vendor(HEAD + LINES)
    found = [(each.model, each.source, each.dated, each.yours) for each in Prices(own).listed(vendor)]
    assert found == [
        ("llama-9", "config.toml", "", True),
        ("llama-3", "the invoice", "2026-11-21", False),
        ("llama-*", "the invoice", "2026-11-21", False),
    ]
    (one,) = Prices(own).listed(vendor, "llama-3.1")
    assert (one.model, one.source) == ("llama-3.1", "the invoice")
    assert Prices(own).listed(vendor, "gpt-5") == []
