"""The completion scripts: fresh, and right in the shells themselves where those are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kbctl.cli import app
from kbctl.commands import completion
from kbctl.shipped import COMPLETIONS
from tests.cli.conftest import Cli

SCRIPTS = Path(__file__).parents[2] / "completions"


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_fresh(cli: Cli, shell: str) -> None:
    """What is shipped is what the commands make: else run ``python -m kbctl.commands.completion``."""
    made = completion.script(shell, app)

    assert (SCRIPTS / COMPLETIONS[shell]).read_text() == made
    assert cli("completion", shell).stdout == made


def test_unknown_shell(cli: Cli) -> None:
    """Which there are."""
    result = cli("completion", "tcsh")

    assert result.exit_code == 2
    assert "bash, zsh, fish" in result.stderr


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_syntax(shell: str) -> None:
    """The shell itself can read it."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(SCRIPTS / COMPLETIONS[shell])], check=True, capture_output=True)


OFFERS = [
    ("kbctl re", {"revoke", "resume", "resolve", "restore", "reconcile"}),
    ("kbctl policy ", {"set", "apply", "list", "show", "remove"}),
    ("kbctl token create --scope ", {"read", "issue", "admin"}),
    ("kbctl issue --on-loop ", {"deny", "pause"}),
    ("kbctl spend --by te", {"tenant"}),
    ("kbctl credential ", {"set", "list", "remove"}),
    ("kbctl keys --status re", {"revoked"}),
    ("kbctl issue --cap ", {"none"}),
    ("kbctl completion ", {"bash", "zsh", "fish"}),
    ("kbctl revoke --al", {"--all"}),
    ("kbctl audit --tenant ", set()),
    ("kbctl audit --tenant up --den", {"--denied"}),
]


@pytest.mark.parametrize(("line", "offers"), OFFERS)
def test_bash(line: str, offers: set[str]) -> None:
    """What TAB offers."""
    script = f"""
        source {SCRIPTS / "kbctl.bash"}
        COMP_WORDS=({line} {'""' if line.endswith(" ") else ""})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _kbctl
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """

    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)

    assert set(done.stdout.split()) == offers


def test_bash_offers_files(tmp_path: Path) -> None:
    """Where a command reads one."""
    (tmp_path / "policies.toml").touch()
    script = f"""
        cd {tmp_path}; source {SCRIPTS / "kbctl.bash"}
        COMP_WORDS=(kbctl policy apply po); COMP_CWORD=3
        _kbctl; printf '%s\\n' "${{COMPREPLY[@]}}"
    """

    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["policies.toml"]


@pytest.mark.parametrize(("line", "offers"), OFFERS)
def test_fish(line: str, offers: set[str]) -> None:
    """What TAB offers."""
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    script = f"source {SCRIPTS / 'kbctl.fish'}; complete -C '{line}'"

    done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, check=True)

    assert {row.split("\t")[0] for row in done.stdout.splitlines()} == offers
