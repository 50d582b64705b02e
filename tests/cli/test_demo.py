"""The demo is a test of itself: what does not hold makes it fail. (The story itself is played end to end.)"""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kbctl import launch
from kbctl.commands import demo
from kbctl.errors import Exit, KbctlError
from tests.cli.conftest import Cli
from tests.cli.support import call, denied, status


@pytest.fixture
def homes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where throw-away homes are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_failed_expectation_fails_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """Named, with exit 1, in words and in the summary."""
    story = demo.Story(told=False)
    story.expect(True, "this holds")
    story.expect(False, "this does not")

    with pytest.raises(
        KbctlError, match="1 of 2 expectations did not hold, the first: this does not"
    ) as raised:
        story.end()

    assert raised.value.exit_status is Exit.INTERNAL
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize("failure", [KeyboardInterrupt, KbctlError("x", "no")])
def test_nothing_stays_behind(cli: Cli, homes: Path, monkeypatch: pytest.MonkeyPatch, failure: Any) -> None:
    """However it ends: the daemon is stopped and the home is gone."""
    stopped: list[Path] = []

    def play(*_: object) -> None:
        raise failure

    monkeypatch.setattr(launch, "start", lambda *_, **__: status(sandbox=True))
    monkeypatch.setattr(launch, "stop", lambda home: stopped.append(home.root))
    monkeypatch.setattr(demo, "_play", play)

    assert cli("demo").exit_code in (1, 130)
    assert len(stopped) == 1
    assert list(homes.iterdir()) == []


def test_a_start_that_fails(cli: Cli, homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its remedy is one that still works when the demo's home is gone."""

    def start(*_: object, **__: object) -> None:
        raise KbctlError("start_failed", "it ended", "kbctl logs")

    monkeypatch.setattr(launch, "start", start)

    result = cli("demo")

    assert (result.exit_code, result.stderr) == (1, "kbctl: it ended\n  try: kbctl up --sandbox\n")
    assert list(homes.iterdir()) == []


def test_the_same_refusal_again_and_again_is_one_line() -> None:
    """For reading; allowed calls are never gathered."""
    rows = [denied(folded=4), denied(), denied(endpoint="/v1/x"), call(), call()]

    assert [row.folded for row in demo._gathered(rows)] == [5, 0, 0, 0]
