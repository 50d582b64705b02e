"""A home for every test, a pretend daemon on its socket, and two ways to type: piped, and a terminal."""

import getpass
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kbctl.cli import app
from kbctl.paths import Home
from tests.cli.support import PretendDaemon, serving

Cli = Callable[..., Result]


@dataclass(frozen=True)
class Seen:
    """What somebody at a terminal saw."""

    stdout: str
    stderr: str
    exit_code: int

    @property
    def plain(self) -> str:
        """What was read: the answer without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.stdout)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    # pytest's own folders are too deep for a socket's path.
    root = Path(tempfile.mkdtemp(prefix="kb-", dir="/tmp")).resolve()
    monkeypatch.setenv("KBCTL_HOME", str(root))
    for name in ("NO_COLOR", "FORCE_COLOR", "KBCTL_DEBUG", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    yield Home(root)
    shutil.rmtree(root)


@pytest.fixture
def daemon(home: Home) -> Iterator[PretendDaemon]:
    pretend = PretendDaemon()
    with serving(home.socket, pretend):
        yield pretend


@pytest.fixture
def cli(home: Home) -> Cli:
    """Run a command line with nobody at a terminal."""

    def run(*args: str, input: str | bytes | None = None) -> Result:  # noqa: A002  # CliRunner names it so
        return CliRunner().invoke(app, list(args), input=input)

    return run


class _Terminal(io.TextIOWrapper):
    def __init__(self, typed: str = "") -> None:
        super().__init__(io.BytesIO(typed.encode()), encoding="utf-8", newline="\n")

    def isatty(self) -> bool:
        return True

    def seen(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode()


@pytest.fixture
def terminal(home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Seen]:
    """Run a command line at a terminal; ``typed`` are the lines that are typed, hidden or not.

    Without ``color`` it is a dumb one, which rich takes for 80 columns whatever ``columns`` says.
    """

    def run(*args: str, typed: str = "", columns: int = 80, color: bool = False) -> Seen:
        stdin, stdout, stderr = _Terminal(typed), _Terminal(), _Terminal()
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(columns))
            patch.setenv("TERM", "xterm-256color" if color else "dumb")
            patch.setattr(sys, "stdin", stdin)
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "stderr", stderr)
            # The real one would read from the terminal of whoever runs the tests.
            patch.setattr(getpass, "getpass", lambda *_, **__: stdin.readline().rstrip("\n"))
            with pytest.raises(SystemExit) as ended:
                app(list(args))
        assert isinstance(ended.value.code, int)
        return Seen(stdout.seen(), stderr.seen(), int(ended.value.code))

    return run
