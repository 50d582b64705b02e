"""Effective time never goes back, opens no day before it can be due, and prints as RFC 3339."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbctld.core.clock import DAY_NS_MIN, Clock, Opened, rfc3339
from kbctld.core.ledger import NS_PER_DAY, NS_PER_S, day_of
from tests.core.support import NOW

HOUR = 3_600 * NS_PER_S
NOON = day_of(NOW) * NS_PER_DAY + 12 * HOUR
BOOTED = 100 * HOUR
"""What the boot clock says at noon."""


def noon(highest_ns: int = NOON, boot: str = "b1", opened: Opened | None = None) -> Clock:
    """A clock that was first read at noon."""
    clock = Clock(highest_ns, boot, opened)
    clock.at(NOON, BOOTED)
    return clock


def after(clock: Clock, hours: float, step_ns: int = 0) -> int:
    """Effective time so long after noon, with the wall clock set by that much."""
    passed_ns = int(hours * HOUR)
    return clock.at(NOON + passed_ns + step_ns, BOOTED + passed_ns)


@given(st.integers(0, 10**19), st.lists(st.integers(0, 10**19), min_size=1))
def test_L9_effective_time_is_the_highest_ever_seen(start: int, readings: list[int]) -> None:
    """While the boot clock agrees, time is the maximum of where it started and all that was shown."""
    clock = Clock(start)
    seen = [clock.at(reading, reading) for reading in [max(start, readings[0]), *sorted(readings)]]
    assert seen == [max([start, readings[0], *sorted(readings)[:n]]) for n in range(len(readings) + 1)]


@given(st.lists(st.tuples(st.integers(0, 3 * NS_PER_DAY), st.integers(0, 10 * HOUR)), max_size=60))
def test_L9_no_readings_open_two_days_within_20_hours_of_boot_clock(readings: list[tuple[int, int]]) -> None:
    """Whatever the wall clock says: time never goes back, and days begin at least 20 h apart."""
    clock = noon()
    boot_ns, before_ns = BOOTED, clock.highest_ns
    opened = [clock.opened]
    for wall_ns, passed_ns in readings:
        boot_ns += passed_ns
        now_ns = clock.at(NOON - NS_PER_DAY + wall_ns, boot_ns)
        assert now_ns >= before_ns
        assert clock.opened is not None
        assert day_of(now_ns) == clock.opened.day
        before_ns = now_ns
        if clock.opened is not opened[-1]:
            opened.append(clock.opened)
    assert all(b.boot_ns - a.boot_ns >= DAY_NS_MIN for a, b in pairwise(opened) if a and b)


@pytest.mark.parametrize("step_ns", [-HOUR, NS_PER_DAY, -NS_PER_DAY, 12 * HOUR, 40 * NS_PER_DAY])
def test_L9_a_step_over_midnight_opens_no_window(step_ns: int) -> None:
    """An hour and a day back, and ahead over midnight: the day stays. The naive reading is in another one."""
    clock = noon()
    seen = [after(clock, hours, step_ns) for hours in (0, 0.5, 7.9)]
    assert {day_of(ns) for ns in seen} == {day_of(NOON)}
    assert step_ns == -HOUR or day_of(NOON + step_ns) != day_of(NOON)


def test_L9_time_goes_on_by_the_boot_clock_while_the_wall_clock_is_not_believed() -> None:
    """So a key that lives for two hours ends after two hours, not at once and not never."""
    clock = noon()
    assert after(clock, 2, NS_PER_DAY) == NOON + 2 * HOUR
    assert clock.ahead
    assert clock.due_in_ns(BOOTED + 2 * HOUR) == 6 * HOUR
    assert after(clock, 2.5) == NOON + int(2.5 * HOUR)  # set right again: as if nothing had been
    assert not clock.ahead


def test_L9_a_day_that_was_not_believed_opens_20_hours_after_the_one_before_began() -> None:
    """The wall clock may be right after all: it is believed once a day can have passed."""
    clock = noon()
    assert day_of(after(clock, 7.99, 3 * NS_PER_DAY)) == day_of(NOON)
    assert day_of(after(clock, 8, 3 * NS_PER_DAY)) == day_of(NOON) + 3
    assert day_of(after(clock, 27.99, 3 * NS_PER_DAY)) == day_of(NOON) + 3
    assert after(clock, 27.99, 3 * NS_PER_DAY) == NOON + 3 * NS_PER_DAY + 8 * HOUR  # it stands meanwhile
    assert day_of(after(clock, 28, 3 * NS_PER_DAY)) == day_of(NOON) + 4


def test_L9_midnight_opens_a_day_on_a_machine_whose_clock_is_right() -> None:
    """Every midnight, also where nobody asked between and where the machine was asleep."""
    clock = noon()
    assert [day_of(after(clock, hours)) - day_of(NOON) for hours in (11.99, 12, 36, 59.99, 60, 300)] == [
        *(0, 1, 2, 2, 3, 13)
    ]
    late = Clock(0, "b1")
    first = (day_of(NOON) + 1) * NS_PER_DAY - 1
    assert day_of(late.at(first, BOOTED)) == day_of(NOON)  # started a moment before midnight
    assert day_of(late.at(first + 1, BOOTED + 1)) == day_of(NOON) + 1


def test_L9_the_open_day_is_kept_over_a_restart_and_not_over_a_reboot() -> None:
    """Set ahead while the daemon was down: the same boot remembers, another one takes the clock as it is."""
    kept = noon().opened
    assert kept is not None
    tomorrow = NOON + NS_PER_DAY
    same, other, none = Clock(NOON, "b1", kept), Clock(NOON, "b2", kept), Clock(NOON, "b1")
    nameless = Clock(NOON, "", Opened(kept.day, "", kept.boot_ns))
    seen = [day_of(clock.at(tomorrow, BOOTED + HOUR)) for clock in (same, other, none, nameless)]
    assert seen == [kept.day, *[kept.day + 1] * 3]
    older = Clock(tomorrow, "b1", kept)  # rows of a later day than the one kept: they win
    assert day_of(older.at(tomorrow, BOOTED)) == kept.day + 1


def test_a_clock_that_was_not_set_yet_is_believed_once_it_is() -> None:
    """A machine without a battery starts in 1970: it need not wait until the day of its setting is over."""
    clock = Clock(0, "b1")
    assert clock.at(5 * NS_PER_S, 5 * NS_PER_S) == 5 * NS_PER_S
    assert clock.at(NOON, 6 * NS_PER_S) == NOON
    assert day_of(clock.at(NOON + NS_PER_DAY, 7 * NS_PER_S)) == day_of(NOON)
    assert clock.due_in_ns(6 * NS_PER_S) == 8 * HOUR


def test_L9_a_step_is_told_once_and_a_pause_is_none() -> None:
    """By how much the wall clock was set, either way, at the reading that finds it."""
    clock = noon()
    steps = []
    for hours, step_ns in ((0.5, 0), (0.6, -HOUR), (0.7, -HOUR), (0.8, 59 * NS_PER_S), (5, 59 * NS_PER_S)):
        after(clock, hours, step_ns)
        steps.append(clock.step_ns)
    assert steps == [0, -HOUR, 0, HOUR + 59 * NS_PER_S, 0]


def test_before_the_first_reading_nothing_is_open() -> None:
    """And so nothing has to be waited for."""
    assert Clock(0).due_in_ns(5) == 0


def test_time_goes_on_once_the_wall_clock_has_caught_up() -> None:
    """After a step back, time stands still and then follows the wall clock again."""
    clock = Clock(100)
    assert [clock.at(wall, 0) for wall in (40, 99, 100, 101)] == [100, 100, 100, 101]


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
