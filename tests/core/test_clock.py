"""Effective time never goes back, and prints as RFC 3339."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbctld.core.clock import Clock, rfc3339
from kbctld.core.ledger import NS_PER_DAY, day_of
from tests.core.support import NOW


@given(st.integers(0, 10**19), st.lists(st.integers(0, 10**19)))
def test_L9_effective_time_is_the_highest_ever_seen(start: int, readings: list[int]) -> None:
    """Whatever the wall clock does, time is the maximum of where it started and all it has shown."""
    clock = Clock(start)
    seen = [clock.at(reading) for reading in readings]
    assert seen == [max([start, *readings[: n + 1]]) for n in range(len(readings))]


@pytest.mark.parametrize(
    ("step_ns", "days"),
    [
        pytest.param(-3_600 * 10**9, 0, id="an hour back"),
        pytest.param(-NS_PER_DAY, 0, id="a day back over midnight"),
        pytest.param(NS_PER_DAY, 1, id="a day ahead"),
    ],
)
def test_L9_a_step_back_opens_no_earlier_day(step_ns: int, days: int) -> None:
    """The naive reading falls into another day after a step back; effective time does not."""
    clock = Clock(NOW)
    assert day_of(clock.at(NOW + step_ns)) - day_of(NOW) == days
    naive = day_of(NOW - NS_PER_DAY) - day_of(NOW)
    assert naive == -1


def test_time_goes_on_once_the_wall_clock_has_caught_up() -> None:
    """After a step back, time stands still and then follows the wall clock again."""
    clock = Clock(100)
    assert [clock.at(wall) for wall in (40, 99, 100, 101)] == [100, 100, 100, 101]


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        pytest.param(0, "1970-01-01T00:00:00.000Z", id="the epoch"),
        pytest.param(999_999, "1970-01-01T00:00:00.000Z", id="less than a millisecond"),
        pytest.param(1_795_233_906_789_999_999, "2026-11-21T04:05:06.789Z", id="cut, not rounded"),
        pytest.param(1_709_164_799_999_999_999, "2024-02-28T23:59:59.999Z", id="never into the next day"),
    ],
)
def test_rfc3339_prints_utc_milliseconds(ns: int, text: str) -> None:
    """Times print in UTC with three decimals, cut rather than rounded up into another second or day."""
    assert rfc3339(ns) == text
