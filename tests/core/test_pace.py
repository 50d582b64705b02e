"""Rates and loops: what they may say, and that nothing more goes than they let."""

from bisect import bisect_left, bisect_right
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbctld.core.pace import (
    DIGESTS_MAX,
    NS_PER_UNIT,
    Bucket,
    LoopGuard,
    PaceError,
    Rate,
    read_loop,
    read_rate,
)

S = NS_PER_UNIT["s"]


@pytest.mark.parametrize(
    ("text", "count", "per_ns"),
    [
        ("5/s", 5, S),
        ("100/m", 100, 60 * S),
        ("1000/h", 1000, 3_600 * S),
        ("1/h", 1, 3_600 * S),
        ("1000000/s", 1_000_000, S),
    ],
)
def test_a_rate_is_a_number_and_a_unit(text: str, count: int, per_ns: int) -> None:
    """It keeps its text for people."""
    assert read_rate(text) == Rate(count, per_ns, text)


WRONG_RATES = "0/s 1000001/s -1/s +5/s 5.0/s 1_0/s 05/s 5/d 5/S 5/1s 5s 5/ /s 5 five/s".split()
ODD_RATES = ["", " 5/s", "5/s\n", "5 / s", "\N{FULLWIDTH DIGIT FIVE}/s", "9" * 5000 + "/s"]


@pytest.mark.parametrize("text", [*WRONG_RATES, *ODD_RATES])
def test_anything_else_is_no_rate(text: str) -> None:
    """The error shows what one looks like, and never all of a long text."""
    with pytest.raises(
        PaceError, match=r"is no rate; write .* 5/s, 100/m or 1000/h \(1 to 1,000,000\)$"
    ) as raised:
        read_rate(text)
    assert len(str(raised.value)) < 200


# --- the bucket -------------------------------------------------------------------------------------------

RATES = st.builds(Rate, st.integers(1, 40), st.integers(1, 10**4), st.just(""))
STARTS = st.integers(0, 10**6)


def check_exact(went: list[int], rate: Rate, burst: int | None = None) -> None:
    """Over every window: at most the burst and what the rate makes of the window, without rounding."""
    burst = rate.count if burst is None else burst
    for first in range(len(went)):
        for last in range(first, len(went)):
            many, window_ns = last - first + 1, went[last] - went[first]
            assert (many - burst) * rate.per_ns <= window_ns * rate.count


@given(RATES, STARTS, st.lists(st.integers(0, 3_000), max_size=80))
def test_over_any_window_no_more_goes_than_burst_and_rate(rate: Rate, tick_ns: int, steps: list[int]) -> None:
    """Exactly, for every window and whatever the arrivals."""
    bucket = Bucket(rate)
    went = []
    for step in steps:
        tick_ns += step
        left = bucket.left(tick_ns)
        assert (left > 0) is (bucket.wait_ns(tick_ns) == 0)
        if left:
            bucket.take(tick_ns)
            went.append(tick_ns)
            assert bucket.left(tick_ns) == left - 1
    check_exact(went, rate)


@given(RATES, STARTS, st.integers(1, 120))
def test_who_waits_as_long_as_told_goes_then_and_no_nanosecond_earlier(
    rate: Rate, tick_ns: int, many: int
) -> None:
    """No drift either way: the n-th goes at the first whole nanosecond at which the rate has made room."""
    bucket = Bucket(rate)
    started = tick_ns
    for number in range(1, many + 1):
        wait_ns = bucket.wait_ns(tick_ns)
        if wait_ns:
            assert bucket.wait_ns(tick_ns + wait_ns - 1) == 1
        tick_ns += wait_ns
        assert bucket.wait_ns(tick_ns) == 0
        bucket.take(tick_ns)
        assert tick_ns - started == max(0, -(-(number - rate.count) * rate.per_ns // rate.count))


@given(
    RATES,
    STARTS,
    st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from("take aside go back".split())), max_size=80),
)
def test_what_is_set_aside_keeps_to_the_rate_however_late_it_goes(
    rate: Rate, tick_ns: int, steps: list[tuple[int, str]]
) -> None:
    """And one that is given back leaves the bucket as if it had never been there."""
    bucket, without = Bucket(rate), Bucket(rate)
    aside, went = 0, []
    for step, what in steps:
        tick_ns += step
        if what in ("take", "aside") and bucket.wait_ns(tick_ns) == 0:
            if what == "aside":
                bucket.set_aside()
                aside += 1
            else:
                for one in (bucket, without):
                    one.take(tick_ns)
                went.append(tick_ns)
        elif what == "go" and aside:
            bucket.go(tick_ns)
            without.take(tick_ns)
            aside -= 1
            went.append(tick_ns)
        elif what == "back" and aside:
            bucket.give_back()
            aside -= 1
        assert bucket.left(tick_ns) == without.left(tick_ns) - aside
        assert bucket.is_full(tick_ns) is (aside == 0 and without.is_full(tick_ns))
    check_exact(went, rate)


def test_a_naive_give_back_lets_too_many_through() -> None:
    """Control: a token that is put back after it has been filled up again is one too many."""
    tokens, went = 5, 0
    tokens -= 1  # the first is taken, and does not go yet
    tokens = min(5, tokens + 5)  # a second later the bucket is full again
    went += tokens  # a burst
    tokens = 1  # the first does not go: it is put back
    went += tokens
    assert went == 6

    bucket = Bucket(read_rate("5/s"))
    bucket.set_aside()
    went = bucket.left(S)
    for _ in range(went):
        bucket.take(S)
    bucket.give_back()
    assert went + bucket.left(S) == 5


def test_nothing_that_was_not_set_aside_is_given_back() -> None:
    """That would make a token from nothing."""
    bucket = Bucket(read_rate("5/s"))
    bucket.take(0)
    with pytest.raises(RuntimeError, match="set aside"):
        bucket.give_back()
    with pytest.raises(RuntimeError, match="set aside"):
        bucket.go(0)
    assert bucket.left(0) == 4


@given(RATES, STARTS)
def test_an_empty_bucket_fills_at_the_rate(rate: Rate, tick_ns: int) -> None:
    """After a restart nothing goes at once."""
    bucket = Bucket.empty_at(rate, tick_ns)
    assert bucket.left(tick_ns) == 0
    assert bucket.wait_ns(tick_ns) == -(-rate.per_ns // rate.count)
    assert bucket.left(tick_ns + rate.per_ns) == rate.count
    assert not bucket.is_full(tick_ns + rate.per_ns - 1)
    assert bucket.is_full(tick_ns + rate.per_ns)


def test_some_can_be_kept() -> None:
    """Who must leave two behind waits for three."""
    bucket = Bucket(read_rate("5/s"))
    for _ in range(3):
        assert bucket.wait_ns(0, keep=2) == 0
        bucket.take(0)
    assert bucket.wait_ns(0) == 0
    assert bucket.wait_ns(0, keep=2) == S // 5


@given(RATES, RATES, STARTS, st.integers(0, 60), st.integers(0, 10**4), st.integers(0, 10**4))
def test_a_changed_rate_lets_no_more_go_at_once_than_the_old_one_did(
    old: Rate, new: Rate, tick_ns: int, used: int, later: int, again: int
) -> None:
    """Nor does changing to and fro; what was used stays used."""
    bucket = Bucket(old)
    for _ in range(min(used, old.count)):
        bucket.take(tick_ns)
    tick_ns += later
    before = bucket.left(tick_ns)
    bucket.changed(new, tick_ns)
    assert bucket.rate == new
    after = bucket.left(tick_ns)
    # The request that has been filled up in part may count as used.
    assert max(0, before - max(0, old.count - new.count) - 1) <= after <= min(before, new.count)
    went = []
    for _ in range(60):
        tick_ns += bucket.wait_ns(tick_ns)
        bucket.take(tick_ns)
        went.append(tick_ns)
    check_exact(went, new)
    bucket.changed(old, tick_ns + again)
    assert bucket.left(tick_ns + again) <= new.count


def test_a_changed_rate_in_plain_figures() -> None:
    """Larger: the new room fills at its rate. Smaller: what was used may fill it. The same: no change."""
    bucket = Bucket(read_rate("5/s"))
    for _ in range(3):
        bucket.take(0)
    bucket.changed(read_rate("10/s"), 0)
    assert [bucket.left(tick) for tick in (0, S // 10, S // 2, S)] == [2, 3, 7, 10]
    bucket.changed(read_rate("10/s"), 0)
    assert [bucket.left(tick) for tick in (0, S // 10, S // 2, S)] == [2, 3, 7, 10]
    bucket.changed(read_rate("1/m"), 0)
    assert [bucket.left(tick) for tick in (0, 59 * S, 60 * S)] == [0, 0, 1]


# --- the same request -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "times", "window_ns"),
    [
        ("20/1m", 20, 60 * S),
        ("1/1s", 1, S),
        ("100000/24h", 100_000, 86_400 * S),
        ("3/86400s", 3, 86_400 * S),
        ("3/1440m", 3, 86_400 * S),
    ],
)
@pytest.mark.parametrize("action", ["deny", "pause"])
def test_a_loop_is_a_number_and_a_window(text: str, times: int, window_ns: int, action: str) -> None:
    """What is done to one more is said beside it."""
    loop = read_loop(text, action)
    assert (loop.times, loop.window_ns, loop.action, loop.text) == (times, window_ns, action, text)


WRONG_LOOPS = "0/1m 100001/1m 20/m 20/0m 20/25h 20/1441m 20/86401s 20/1d 20 20/1 -1/1m 1_0/1m 02/1m 2/01m"
ODD_LOOPS = ["", "2/1M", "20/1m\n", " 20/1m", "\N{FULLWIDTH DIGIT TWO}/1m", "9" * 5000]


@pytest.mark.parametrize("text", [*WRONG_LOOPS.split(), *ODD_LOOPS])
def test_anything_else_is_no_loop(text: str) -> None:
    """The error shows what one looks like."""
    with pytest.raises(PaceError, match=r"is no loop; .* 20/1m \(1 to 100,000 times, within 1s to 24h\)"):
        read_loop(text, "deny")


@pytest.mark.parametrize("action", ["", "Deny", "warn"])
def test_a_loop_has_one_of_two_actions(action: str) -> None:
    """An unknown one is not passed over."""
    with pytest.raises(PaceError, match="it takes deny or pause"):
        read_loop("20/1m", action)


@given(
    st.integers(1, 6),
    STARTS,
    st.lists(st.tuples(st.integers(0, 3 * S // 10), st.sampled_from([b"a", b"b", b"c"])), max_size=80),
)
def test_of_one_request_no_more_than_so_many_in_any_window(
    times: int, tick_ns: int, steps: list[tuple[int, bytes]]
) -> None:
    """As a list of all that was let through tells it; nothing that fits is held back."""
    guard = LoopGuard(read_loop(f"{times}/1s", "deny"))
    went: dict[bytes, list[int]] = {b"a": [], b"b": [], b"c": []}
    for step, digest in steps:
        tick_ns += step
        ticks = went[digest]
        seen = guard.seen(digest, tick_ns)
        assert seen == len(ticks) - bisect_right(ticks, tick_ns - S)
        if seen < times:
            guard.note(digest, tick_ns)
            ticks.append(tick_ns)
    for ticks in went.values():
        for first, tick in enumerate(ticks):
            assert bisect_left(ticks, tick + S) - first <= times


def test_a_counter_per_minute_lets_twice_as_many_through() -> None:
    """Control: fixed windows meet at their edges."""
    fixed: Counter[int] = Counter()
    guard = LoopGuard(read_loop("20/1m", "deny"))
    went = {"fixed": 0, "guard": 0}
    for tick_ns in (*[59 * S] * 30, *[61 * S] * 30):
        if fixed[tick_ns // (60 * S)] < 20:
            fixed[tick_ns // (60 * S)] += 1
            went["fixed"] += 1
        if guard.seen(b"x", tick_ns) < 20:
            guard.note(b"x", tick_ns)
            went["guard"] += 1
    assert went == {"fixed": 40, "guard": 20}


def test_the_window_slides_to_the_nanosecond() -> None:
    """One that is a whole window old no longer counts."""
    guard = LoopGuard(read_loop("2/1s", "deny"))
    guard.note(b"x", 0)
    guard.note(b"x", 10)
    assert [guard.seen(b"x", tick) for tick in (S - 1, S, S + 9, S + 10)] == [2, 1, 1, 0]


def test_expired_digests_are_forgotten() -> None:
    """Whichever request comes next."""
    guard = LoopGuard(read_loop("2/1s", "deny"))
    for number in range(100):
        guard.note(b"%d" % number, number)
    assert len(guard) == 100
    guard.note(b"0", 200)
    assert guard.seen(b"other", S + 50) == 0
    assert len(guard) == 50, "those noted from 51 on, and the first, which came again"
    guard.note(b"other", S + 150)
    assert len(guard) == 2
    assert not guard.is_empty(S + 150)
    assert guard.seen(b"other", 3 * S) == len(guard) == 0
    assert guard.is_empty(3 * S)


def test_no_more_digests_are_kept_than_the_bound() -> None:
    """n and n + 1: the one that came longest ago goes first, not the one that came first."""
    guard = LoopGuard(read_loop("20/24h", "deny"))
    for number in range(DIGESTS_MAX):
        guard.note(b"%d" % number, number)
    assert len(guard) == DIGESTS_MAX
    guard.note(b"0", DIGESTS_MAX)
    guard.note(b"one more", DIGESTS_MAX)
    assert len(guard) == DIGESTS_MAX
    assert guard.seen(b"0", DIGESTS_MAX) == 2
    assert guard.seen(b"1", DIGESTS_MAX) == 0
    assert guard.seen(b"2", DIGESTS_MAX) == 1


def test_no_more_ticks_are_kept_than_count() -> None:
    """Whoever notes more than it may keeps the newest."""
    guard = LoopGuard(read_loop("3/1s", "pause"))
    for tick in range(10):
        guard.note(b"x", tick)
    assert guard.seen(b"x", 9) == 3
    assert [guard.seen(b"x", S + tick) for tick in (6, 7, 9)] == [3, 2, 0]
