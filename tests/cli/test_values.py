"""What a person types is read strictly, and a complaint shows what would have worked."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from kbctl import limits
from kbctl.commands import values
from kbctl.errors import Exit, KbctlError


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("500", Decimal(500)),
        ("500.50", Decimal("500.50")),
        ("0.000000001", Decimal("0.000000001")),
        ("1000000000", Decimal(10**9)),
    ],
)
def test_dollars(text: str, amount: Decimal) -> None:
    """Whole dollars, cents, and down to a nano-dollar."""
    assert values.usd("--cap", text) == amount


@pytest.mark.parametrize(
    "text",
    [
        *"0 0.00 -5 +5 NaN inf 1e3 5_00 $500 1,000 .5 5. 0.0000000001 1000000001 99999999999 none".split(),
        *("", " 5", "5 ", "5\n", "1000000000.000000001", "\u0665"),
    ],
)
def test_not_dollars(text: str) -> None:
    """Nothing that ``Decimal()`` would guess at, no zero, and no more than a billion."""
    with pytest.raises(KbctlError) as refused:
        values.usd("--cap", text)

    assert refused.value.exit_status is Exit.USAGE
    assert repr(text) in refused.value.message or "billion" in refused.value.message
    assert refused.value.remedy == "--cap 500"


@pytest.mark.parametrize(
    "number",
    [
        *(0, -1, 10**9 + 1),
        *(
            Decimal(text)
            for text in ("NaN", "sNaN", "Infinity", "-0.5", "1e-10", "1e400", "1e-400", "0e-400")
        ),
    ],
)
def test_not_dollars_either(number: Decimal | int) -> None:
    """A number is held to the same, whatever number it is; and a complaint can be printed."""
    for each in (number, 10**5000, -(10**5000)):  # which pytest can't print
        with pytest.raises(KbctlError) as refused:
            values.amount("cap", each)

        assert len(refused.value.message) < 100


def test_dollars_that_are_a_number() -> None:
    """Exact, with zeros at the end or without."""
    assert values.amount("cap", 5) == 5
    assert values.amount("cap", Decimal("0.1000000000000000000000000000000000000")) == Decimal("0.1")
    assert values.amount("cap", Decimal("1000000000")) == 10**9
    with pytest.raises(KbctlError):
        values.amount("cap", Decimal("999999999.1234567891000000000000000000001"))


def test_counts_and_speeds() -> None:
    """As typed, or as a number."""
    assert (values.count("n", "1000"), values.count("n", 1)) == (1000, 1)
    assert (values.rate("r", "100/m"), values.loop("l", "20/1m")) == ("100/m", "20/1m")


def test_no_cap_is_said() -> None:
    """``none`` is the one word for no cap."""
    assert limits.from_options(cap="none") == {"daily_usd_cap": None}
    with pytest.raises(KbctlError):
        limits.from_options(cap="None")


@pytest.mark.parametrize(
    ("text", "length"),
    [("90s", timedelta(seconds=90)), ("30m", timedelta(minutes=30)), ("7d", timedelta(days=7))],
)
def test_durations(text: str, length: timedelta) -> None:
    """A number and a unit."""
    assert values.duration("--since", text) == length


@pytest.mark.parametrize(
    "text", ["", "2", "h", "2H", "-2h", "1.5h", "0h", "2 h", "2w", "9999999d", "\u0662h"]
)
def test_not_durations(text: str) -> None:
    """The value is named and a good one shown."""
    with pytest.raises(KbctlError, match="--since") as refused:
        values.duration("--since", text)

    assert refused.value.exit_status is Exit.USAGE
    assert repr(text) in refused.value.message


@pytest.mark.parametrize(
    ("text", "wire_form"),
    [
        ("2026-11-21", "2026-11-21T00:00:00.000000Z"),
        ("2026-11-21T09:30", "2026-11-21T09:30:00.000000Z"),
        ("2026-11-21 09:30:01.5Z", "2026-11-21T09:30:01.500000Z"),
        ("2026-11-21T09:30+02:00", "2026-11-21T07:30:00.000000Z"),
    ],
)
def test_times(text: str, wire_form: str) -> None:
    """Without an offset a time is UTC, like those in the rows."""
    assert values.rfc3339(values.instant("--from", text)) == wire_form


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01", "2026-11-21T25:00", "1763", "0001-01-01T00:00+14:00"]
)
def test_not_times(text: str) -> None:
    """The value is named and a good one shown."""
    with pytest.raises(KbctlError) as refused:
        values.instant("--from", text)

    assert refused.value.remedy == "--from 2026-11-21T09:30Z"


def test_windows() -> None:
    """``--since`` counts back from now; a window that ends before it begins is a mistake."""
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)

    assert values.window("1h", None, None, now) == ("2026-11-21T11:00:00.000000Z", None)
    assert values.window(None, None, None, now) == (None, None)
    with pytest.raises(KbctlError):
        values.window("1h", "2026-11-21", None, now)
    with pytest.raises(KbctlError):
        values.window(None, "2026-11-21", "2026-11-20", now)


def test_pairs() -> None:
    """Values may hold an equals sign; names come once."""
    assert values.pairs("--meta", ["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for wrong in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(KbctlError):
            values.pairs("--meta", wrong)


def test_duplicates() -> None:
    """What to do with one, and within how long, up to a day."""
    for text in ("flag", "refuse", "flag/30s", "refuse/10m", "refuse/24h"):
        assert values.duplicates("--duplicates", text) == text
    for text in ("", "deny", "refuse/", "refuse/0m", "refuse/1d", "REFUSE", "refuse/25h", "flag/86401s"):
        with pytest.raises(KbctlError) as refused:
            values.duplicates("--duplicates", text)
        assert "--duplicates refuse/" in refused.value.remedy
        assert refused.value.exit_status is Exit.USAGE
