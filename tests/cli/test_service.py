"""Service files: hardened, complete, and gone again."""

import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from kbctl import service
from kbctl.cli import app
from kbctl.errors import KbctlError
from kbctl.paths import Home


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KBCTL_HOME", str(tmp_path / "a $home 100%"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


def kbctl(*args: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, args)
    assert done.exit_code == status, done.output
    return done.output


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_a_unit_is_written_and_taken_away(own_home: Path) -> None:
    path = own_home / ".config/systemd/user/kbctl.service"
    assert "systemctl --user enable --now kbctl" in kbctl("service", "install")
    text = path.read_text()
    assert text == kbctl("service", "install", "--print")
    assert "Type=notify" in text
    assert "WatchdogSec=30" in text
    assert f'"--home" "{own_home}/a $$home 100%%"' in text
    assert [each.name for each in path.parent.iterdir()] == ["kbctl.service"]
    kbctl("service", "uninstall")
    assert not path.exists()
    kbctl("service", "uninstall", status=6)


def test_a_system_service_does_not_live_in_somebody_s_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "executable", "/home/ann/.venv/bin/python")
    with pytest.raises(KbctlError) as caught:
        service.service(Home(Path("/x")), system=True)
    assert caught.value.code == "service_unreachable"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_T4_the_system_unit_scores_no_more_than_1_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten, zero being the safest; and systemd understands every line."""
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    unit = tmp_path / "kbctl.service"
    unit.write_text(service.service(Home(Path("/x")), system=True).text)
    scored = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert scored.returncode == 0, scored.stdout[-300:] + scored.stderr
    told = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    ).stderr
    assert "Unknown" not in told, told
    assert "Failed to parse" not in told, told
    # The control: without its lines it is as open as any.
    bare = "\n".join(line for line in unit.read_text().splitlines() if "=" not in line or line[0] in "TENADW")
    unit.write_text(bare + "\n")
    control = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(unit)],
        capture_output=True,
        check=False,
    )
    assert control.returncode != 0


def test_launchd_gets_a_property_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never tried on a Mac; it is at least XML that names our command."""
    monkeypatch.setattr(sys, "platform", "darwin")
    made = service.service(Home(Path("/Users/ann/a & b")), system=False)
    words = [each.text for each in ElementTree.fromstring(made.text).iter("string")]
    assert words[1:4] == [sys.executable, "-E", "-P"]
    assert "/Users/ann/a & b" in words
    with pytest.raises(KbctlError):
        service.service(Home(Path("/x")), system=True)
