"""Commands and nouns as ours read: ``KEY...`` in help where typer would write ``[KEY]... <list[str]>``, and
no validator for words that need none.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from typer.core import TyperCommand, TyperGroup

_INTEGER: Final = re.compile(r"-?[0-9]{1,18}", re.ASCII)


class Command(TyperCommand):
    """A command whose usage and arguments read as in a manual page."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        _take_as_typed(self.params)

    def get_help_option(self, ctx: Any) -> Any:
        """``--help``."""
        return _take_as_typed([super().get_help_option(ctx)])[0]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """``[options] NAME``, ``[options] [KEY...]``."""
        arguments = [(_shown(parameter), parameter.required) for parameter in self._arguments()]
        return ["[options]", *(name if required else f"[{name}]" for name, required in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options."""
        arguments = [(_shown(parameter), parameter.help or "") for parameter in self._arguments()]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(arguments)
        records = [
            parameter.get_help_record(ctx)
            for parameter in self.get_params(ctx)
            if parameter.param_type_name == "option"
        ]
        with formatter.section("Options"):
            formatter.write_dl([record for record in records if record])

    def _arguments(self) -> list[Any]:
        return [parameter for parameter in self.params if parameter.param_type_name == "argument"]


def _shown(argument: Any) -> str:
    return f"{argument.metavar}{'...' if argument.nargs == -1 else ''}"


class Noun(TyperGroup):
    """A noun with commands of its own, which may do something by itself."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        _take_as_typed(self.params)

    def get_help_option(self, ctx: Any) -> Any:
        """``--help``."""
        return _take_as_typed([super().get_help_option(ctx)])[0]


def _take_as_typed(parameters: list[Any]) -> list[Any]:
    """Pass on what needs no validator; everything else goes typer's own way.

    typer 0.29 makes a pydantic validator for each parameter of a command that runs, also for one that was not
    typed, and for ``--help``. Importing pydantic is half of the time that ``kbctl keys`` would take.
    """
    for parameter in parameters:
        kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
        if kind in (bool, str, int, list[str]) and "process_value" not in vars(parameter):
            parameter.process_value = partial(_process, parameter, kind, parameter.process_value)
    return parameters


def _process(
    parameter: Any, kind: Any, otherwise: Callable[[Any, Any], Any], context: Any, value: Any
) -> Any:
    if value is None and not parameter.required:
        value = () if parameter.nargs == -1 or getattr(parameter, "multiple", False) else None
    elif kind is int and isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    elif not _is_already(kind, value):
        return otherwise(context, value)
    return value if parameter.callback is None else parameter.callback(context, parameter, value)


def _is_already(kind: Any, value: Any) -> bool:
    if kind is str:
        return isinstance(value, str)
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)
    return type(value) is kind
