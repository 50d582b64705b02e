"""The drills in short: what they measure must be true; how long it takes is for `python -m tests.bench`."""

from pathlib import Path

from tests.bench import fairness, revoke, soak, start, streams
from tests.bench.report import Report, percentile, unwatched


def test_nobody_is_forwarded_after_its_revocation_with_10_000_keys() -> None:
    report = revoke.drill(10_000, unwatched, warm_s=0.5, singles=60, groups=3)
    assert not report.wrong


def test_a_burst_of_200_loses_nothing_and_refuses_nobody_else() -> None:
    report = fairness.drill(10, unwatched, burst=200, rounds=3, quiet_s=0.5)
    assert not report.wrong


def test_streams_at_once_pass_byte_by_byte_and_settle_by_their_usage() -> None:
    report = streams.drill(20, unwatched, events=500, firsts=20)
    assert not report.wrong


def test_memory_is_flat_while_agents_call() -> None:
    """In short; `python -m tests.bench soak --calls 1000000` for the truth."""
    report = soak.drill(50, unwatched, calls=8_000)
    assert not report.wrong
    growth = next(figure.value for figure in report.figures if figure.name == "growth a million calls")
    assert growth < 1500  # of so few calls the allocator alone is most; a kilobyte a call would show


def test_a_start_over_many_calls_finds_what_is_asked_for() -> None:
    report = start.drill(2_000, unwatched, calls=50_000)
    assert not report.wrong


def test_a_report_tells_how_far_its_bars_are_met(tmp_path: Path) -> None:
    report = Report("drill")
    report.spread("call", [float(ms) for ms in range(200, 0, -1)], p50=100, p99=100)
    report.check(False, "a call was lost")
    report.write(tmp_path / "report.json")

    assert [(f.name, f.value, f.met) for f in report.figures] == [
        ("call, median", 100, True),
        ("call, 99 % within", 198, False),
        ("call, longest", 200, None),
    ]
    assert report.wrong == ["a call was lost"]
    assert '"value": 198.0' in (tmp_path / "report.json").read_text()
    assert percentile([1.0], 0.5) == percentile([1.0], 0.99) == 1.0
