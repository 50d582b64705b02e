"""Words pass to a command just as typer's own validators would pass them, without those."""

from typing import Annotated, Any

import pytest
import typer
from typer.core import TyperOption

from kbctl.commands.command import Command


def _probe(
    text: Annotated[str, typer.Option(help="A word.")] = "usual",
    maybe: Annotated[str | None, typer.Option(help="A word, or none.")] = None,
    number: Annotated[int, typer.Option(help="A number.")] = 50,
    unsaid: Annotated[int | None, typer.Option(help="A number, or none.")] = None,
    many: Annotated[list[str] | None, typer.Option(help="Words.")] = None,
    flag: Annotated[bool, typer.Option("--flag", help="Yes.")] = False,
) -> None:
    """Take one of each."""


VALUES = [
    None, "", "a", "käse", "a\udcff", "5", "-5", " 5", "+5", "5.0", "1_0", "\u0665", "0x5",
    "9" * 18, "9" * 30, 5, True, False, (), ["a"], ("a", "käse"), ["a\udcff"], ["a", "b"],
]  # fmt: skip


@pytest.mark.parametrize("name", ["text", "maybe", "number", "unsaid", "many", "flag"])
def test_as_typer_would(name: str) -> None:
    """The same value for every way to say it, or the same complaint."""
    app = typer.Typer()
    app.command(cls=Command)(_probe)
    command: Any = typer.main.get_command(app)
    (parameter,) = (each for each in command.params if each.name == name)
    context = command.make_context("probe", [])

    def outcome(process: Any, value: Any) -> Any:
        try:
            found = process(context, value)
        except typer.BadParameter as error:
            return error.message
        return type(found), found

    for value in VALUES:
        typers = outcome(TyperOption.process_value.__get__(parameter), value)
        assert outcome(parameter.process_value, value) == typers, value
