"""Every command explains itself, with an example, on eighty columns; nothing is offered that isn't there."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from kbctl.cli import app
from tests.cli.conftest import Cli

COMMANDS = [
    "up", "down", "status", "logs", "issue", "keys", "show", "pause", "resume", "revoke", "run", "env",
    "explain", "resolve", "reconcile", "spend", "changes", "sql", "prune", "backup", "restore",
    "demo", "completion",
    "credential", "credential set", "credential list", "credential remove",
    "policy", "policy set", "policy apply", "policy list", "policy show", "policy remove",
    "tenant", "tenant set", "tenant list", "tenant show",
    "audit", "audit verify", "audit checkpoint", "audit export",
    "vendor", "vendor list", "vendor show", "vendor prices", "vendor check",
    "token", "token create", "token list", "token revoke",
    "service", "service install", "service uninstall",
]  # fmt: skip


def _walk(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _walk(child, f"{path} {name}".strip())


FOUND = dict(_walk(typer.main.get_command(app)))


def test_the_commands() -> None:
    """Exactly these: help never speaks of what is still to come."""
    assert list(FOUND) == ["", *COMMANDS]


@pytest.mark.parametrize("path", FOUND)
def test_help(cli: Cli, path: str) -> None:
    """A sentence, an example that begins with the command, and no line over eighty."""
    result = cli(*path.split(), "--help")

    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert max(map(len, lines)) <= 80
    example = lines.index("  Example:")
    assert any(f"kbctl {path}".strip() in line for line in lines[example + 1 :])
    assert "<" not in result.stdout.partition("Options:")[2]
    # A summary that did not fit would end in dots.
    assert not any(line.endswith("...") for line in lines[1:])


@pytest.mark.parametrize("path", FOUND)
def test_every_option_is_explained(path: str) -> None:
    """Its help says what it does, as a sentence."""
    for parameter in FOUND[path].params:
        assert parameter.help, parameter.name
        assert parameter.help.endswith((".", "]")), parameter.help
