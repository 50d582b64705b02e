"""``completion``: scripts for bash, zsh and fish, made from the commands themselves.

What must stay true: pressing TAB starts no Python; the scripts name every command, option and choice there is
and nothing else. The copies in ``completions/`` are written by ``python -m kbctl.commands.completion``, and
compared with the commands by a test; those are what is printed, because making them builds every command.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from kbctl.commands import values
from kbctl.commands.command import Command
from kbctl.shipped import COMPLETIONS, completions


@dataclass(frozen=True, slots=True)
class _Option:
    names: tuple[str, ...]
    help: str
    takes_value: bool
    repeatable: bool
    choices: tuple[str, ...]
    files: bool
    value: str


@dataclass(frozen=True, slots=True)
class _Command:
    path: tuple[str, ...]
    help: str
    options: tuple[_Option, ...]
    arguments: tuple[_Option, ...]
    subcommands: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return " ".join(self.path)


_HELP = _Option(("--help", "-h"), "Show this message and exit.", False, False, (), False, "")


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command(cls=Command)(completion)


def completion(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="Which shell.")],
) -> None:
    """Print the completion script of a shell.

    \b
    Example:
      source <(kbctl completion bash)
      kbctl completion zsh > ~/.zfunc/_kbctl
      kbctl completion fish > ~/.config/fish/completions/kbctl.fish
    """
    values.choice("the shell", shell, tuple(COMPLETIONS))
    sys.stdout.write(completions(shell) or script(shell, _app()))


def script(shell: str, app: typer.Typer) -> str:
    """The completion script of a shell."""
    commands = list(_walk(typer.main.get_command(app), ()))
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands)


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[_Command]:
    children = {name: child for name, child in getattr(command, "commands", {}).items() if not child.hidden}
    parameters = [
        _option(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)
    ]
    yield _Command(
        path=path,
        help=_first_line(command.help),
        options=(*(each for each in parameters if each.names[0].startswith("-")), _HELP),
        arguments=tuple(each for each in parameters if not each.names[0].startswith("-")),
        subcommands=tuple((name, _first_line(child.help)) for name, child in children.items()),
    )
    for name, child in children.items():
        yield from _walk(child, (*path, name))


def _option(parameter: Any) -> _Option:
    """One parameter. What its value may be is read from how help writes it: ``a|b|c``, ``FILE``, a word."""
    metavar = parameter.metavar or ""
    words = metavar.split("|")
    return _Option(
        names=tuple(sorted(parameter.opts, key=len, reverse=True)),
        help=(getattr(parameter, "help", None) or "").strip(),
        takes_value=not getattr(parameter, "is_flag", False),
        repeatable=bool(getattr(parameter, "multiple", False) or parameter.nargs == -1),
        choices=tuple(word for word in words if word.isalpha() and word.islower()) if len(words) > 1 else (),
        files=metavar == "FILE",
        value=metavar,
    )


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


# --- bash -----------------------------------------------------------------------------------------


def _bash(commands: list[_Command]) -> str:
    steps = [f'"{" ".join(("kbctl", *each.path))}"' for each in commands if each.path]
    lines = [
        "# bash completion of kbctl. Made by: python -m kbctl.commands.completion",
        "",
        "_kbctl() {",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}",
        "    local command=kbctl options words files at",
        "    COMPREPLY=()",
        "    # bash splits --option=value at the sign",
        '    if [[ $cur == "=" ]]; then cur=""',
        '    elif [[ $prev == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}',
        "    fi",
        "    for ((at = 1; at < COMP_CWORD; at++)); do",
        '        case "$command ${COMP_WORDS[at]}" in',
        f'            {"|".join(steps)}) command+=" ${{COMP_WORDS[at]}}" ;;',
        "        esac",
        "    done",
        '    case "$command $prev" in',
    ]
    for command in commands:
        name = " ".join(("kbctl", *command.path))
        silent = []
        for option in command.options:
            patterns = [f'"{name} {each}"' for each in option.names]
            if option.files:
                lines.append(f'        {"|".join(patterns)}) COMPREPLY=($(compgen -f -- "$cur")); return ;;')
            elif option.choices:
                lines.append(
                    f"        {'|'.join(patterns)})\n"
                    f'            COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$cur")); return ;;'
                )
            elif option.takes_value:
                silent += patterns
        if silent:
            lines.append(f"        {'|'.join(silent)})\n            return ;;")
    lines += ["    esac", '    case "$command" in']
    for command in commands:
        options = " ".join(name for option in command.options for name in option.names)
        words = " ".join(
            [name for name, _ in command.subcommands] + [c for a in command.arguments for c in a.choices]
        )
        files = " files=1" if any(argument.files for argument in command.arguments) else ""
        lines += [
            f'        "{" ".join(("kbctl", *command.path))}")',
            f'            options="{options}"',
            f'            words="{words}"{files} ;;',
        ]
    lines += [
        "    esac",
        "    if [[ $cur == -* ]]; then words=$options; fi",
        '    COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        '    if [[ $files && $cur != -* ]]; then COMPREPLY+=($(compgen -f -- "$cur")); fi',
        "}",
        "",
        "complete -F _kbctl kbctl",
    ]
    return "\n".join(lines) + "\n"


# --- zsh ------------------------------------------------------------------------------------------


def _zsh(commands: list[_Command]) -> str:
    lines = ["#compdef kbctl", "# zsh completion of kbctl. Made by: python -m kbctl.commands.completion", ""]
    for command in commands:
        lines += [f"{_zsh_function(command.path)}() {{"]
        if command.subcommands:
            lines += [
                "    local curcontext=$curcontext state line",
                "    local -a commands=(",
                *(f"        {_quoted(f'{name}:{text}')}" for name, text in command.subcommands),
                "    )",
                "    _arguments -C \\",
                *(f"        {specification} \\" for specification in _zsh_options(command)),
                "        '1:command:->command' \\",
                "        '*::argument:->argument'",
                "    case $state in",
                "        command) _describe -t commands 'kbctl command' commands ;;",
                "        argument)",
                "            case $line[1] in",
                *(
                    f"                {name}) {_zsh_function((*command.path, name))} ;;"
                    for name, _ in command.subcommands
                ),
                "            esac ;;",
                "    esac",
            ]
        else:
            specifications = [*_zsh_options(command), *_zsh_arguments(command)]
            lines += [
                "    _arguments -s \\",
                *(f"        {specification} \\" for specification in specifications[:-1]),
                f"        {specifications[-1]}",
            ]
        lines += ["}", ""]
    # As an autoloaded file the body is the function; sourced, it must register itself.
    lines += [
        "if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then",
        '    _kbctl "$@"',
        "else",
        "    compdef _kbctl kbctl",
        "fi",
    ]
    return "\n".join(lines) + "\n"


def _zsh_function(path: tuple[str, ...]) -> str:
    return "_".join(("_kbctl", *path))


def _zsh_options(command: _Command) -> Iterator[str]:
    for option in command.options:
        action = f":{_zsh_text(option.value.lower())}:{_zsh_values(option)}" if option.takes_value else ""
        described = f"[{_zsh_text(option.help)}]{action}"
        if option.repeatable:
            for name in option.names:
                yield _quoted(f"*{name}{described}")
        elif len(option.names) == 1:
            yield _quoted(f"{option.names[0]}{described}")
        else:
            exclusive = _quoted(f"({' '.join(option.names)})")
            yield f"{exclusive}{{{','.join(option.names)}}}{_quoted(described)}"


def _zsh_arguments(command: _Command) -> Iterator[str]:
    for at, argument in enumerate(command.arguments, 1):
        place = "*" if argument.repeatable else at
        yield _quoted(f"{place}:{_zsh_text(argument.value.lower())}:{_zsh_values(argument)}")


def _zsh_values(option: _Option) -> str:
    if option.files:
        return "_files"
    return f"({' '.join(option.choices)})" if option.choices else " "


def _zsh_text(text: str) -> str:
    for special in ("\\", "[", "]", ":"):
        text = text.replace(special, f"\\{special}")
    return text


# --- fish -----------------------------------------------------------------------------------------


def _fish(commands: list[_Command]) -> str:
    steps = " ".join(_quoted(" ".join(("kbctl", *each.path))) for each in commands if each.path)
    lines = [
        "# fish completion of kbctl. Made by: python -m kbctl.commands.completion",
        "",
        "function __kbctl_at --description 'Whether the command typed so far is this one'",
        "    set -l command kbctl",
        "    for word in (commandline -opc)[2..-1]",
        f'        if contains -- "$command $word" {steps}',
        '            set command "$command $word"',
        "        end",
        "    end",
        '    test "$command" = "$argv[1]"',
        "end",
        "",
        "complete -c kbctl -f",
    ]
    for command in commands:
        condition = f"-n \"__kbctl_at '{' '.join(('kbctl', *command.path))}'\""
        for name, text in command.subcommands:
            lines.append(f"complete -c kbctl {condition} -a {name} -d {_quoted(text)}")
        for argument in command.arguments:
            if argument.choices:
                lines.append(f"complete -c kbctl {condition} -a {_quoted(' '.join(argument.choices))}")
            elif argument.files:
                lines.append(f"complete -c kbctl {condition} -F")
        for option in command.options:
            names = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names
            )
            value = ""
            if option.takes_value:
                value = " -r -F" if option.files else " -x"
                if option.choices:
                    value += f" -a {_quoted(' '.join(option.choices))}"
            lines.append(f"complete -c kbctl {condition} {names}{value} -d {_quoted(option.help)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A single-quoted word, which bash, zsh and fish read alike as long as it holds no backslash."""
    return "'" + text.replace("'", "'\\''") + "'"


def _app() -> typer.Typer:
    from kbctl.cli import app  # which imports every command as it is needed, this file among them

    return app


def _write_all(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for shell, name in COMPLETIONS.items():
        (folder / name).write_text(script(shell, _app()), encoding="utf-8")


if __name__ == "__main__":
    _write_all(Path(__file__).parents[2] / "completions")
