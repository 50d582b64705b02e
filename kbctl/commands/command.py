"""One command as help shows it: ``KEY...`` where typer would write ``[KEY]... <list[str]>``."""

from typing import Any

from typer.core import TyperCommand


class Command(TyperCommand):
    """A command whose usage and arguments read as in a manual page."""

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
