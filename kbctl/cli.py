"""The command line, and the one place where failures become exit codes.

What must stay true: a person never sees a traceback (unless ``KBCTL_DEBUG=1`` asks for one), an error is one
sentence and a remedy on stderr, and the exit code is one of :class:`~kbctl.errors.Exit`. With ``--json`` or
``--jsonl`` the error is JSON as well. Importing this file must stay quick: no HTTP, tables or wire here.
"""

import errno
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, Final, NoReturn

import typer

from kbctl import __version__
from kbctl.commands.command import Noun
from kbctl.errors import Exit, KbctlError
from kbctl.neutral import neutral

# Every command, and the module of kbctl.commands that has it; in the order of the help.
_COMMANDS: Final = {
    "up": "daemon",
    "down": "daemon",
    "status": "daemon",
    "logs": "daemon",
    "issue": "key",
    "keys": "key",
    "show": "key",
    "pause": "key",
    "resume": "key",
    "revoke": "key",
    "run": "run",
    "env": "run",
    "explain": "audit",
    "resolve": "audit",
    "reconcile": "audit",
    "spend": "report",
    "changes": "report",
    "sql": "report",
    "prune": "prune",
    "backup": "care",
    "restore": "care",
    "demo": "demo",
    "completion": "completion",
    "credential": "credential",
    "policy": "policy",
    "tenant": "tenant",
    "audit": "audit",
    "vendor": "report",
    "token": "token",
    "service": "service",
}

# What a shell reports for a program that Ctrl-C or a closed pipe ended.
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

# typer gives only the leaf a public name; from 0.26 on it carries its own copy of click, before it click's.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _Commands(Mapping[str, Any]):
    """The commands by name, each imported and built when it is first asked for.

    Building all of them takes ten times as long as building the one that was typed.
    """

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = _build(name)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


def _build(name: str) -> Any:
    """One command, or one noun with all of its own, as typer makes it of what its module registers."""
    beside = typer.Typer(rich_markup_mode=None)
    import_module(f"kbctl.commands.{_COMMANDS[name]}").register(beside)
    alone = typer.Typer(rich_markup_mode=None)
    alone.registered_commands = [each for each in beside.registered_commands if _name(each) == name]
    alone.registered_groups = [each for each in beside.registered_groups if each.name == name]
    return typer.main.get_group(alone).commands[name]


def _name(command: Any) -> str:
    return command.name or typer.main.get_command_name(command.callback.__name__)


class _Root(Noun):
    """Every way in, ``run()``, ``app()`` and the tests' runner alike, ends in the same exit codes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment]  # typer only reads it

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        given = sys.argv[1:] if args is None else list(args)
        status = self._run(given)
        _tell_of_other_versions(given)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            status = _pipe_closed()
        except OSError as error:
            status = _report(_from_unwritten(error), _is_json(given))
        sys.exit(status)

    def _run(self, args: list[str]) -> int:
        as_json = _is_json(args)
        try:
            with self.make_context("kbctl", list(args)) as context:
                self.invoke(context)
        except typer.Exit as ended:
            return ended.exit_code
        except KbctlError as error:
            return _report(error, as_json)
        except _UsageError as error:
            return _report(_from_usage(error), as_json)
        except (KeyboardInterrupt, EOFError, typer.Abort):
            sys.stderr.write("\n")
            return INTERRUPTED
        except BrokenPipeError:
            return _pipe_closed()
        except Exception as error:  # noqa: BLE001  # the last line of defence: nothing may end in a traceback
            return _report(_from_defect(error), as_json)
        return Exit.OK


app = typer.Typer(
    cls=_Root,
    name="kbctl",
    add_completion=False,
    no_args_is_help=False,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kbctl {__version__}")
        raise typer.Exit


@app.callback(options_metavar="[options]", subcommand_metavar="COMMAND ...")
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A capped, revocable key of its own for every AI agent that spends money.

    \b
    Example:
      kbctl demo                              see all of it, with pretend money
      kbctl up                                start the daemon
      kbctl credential set stripe             give it the real key
      kbctl issue --tenant acme --cap 500     what the agent gets instead
      kbctl run --cap 500 -- python agent.py  the same, for one run
      kbctl audit --tenant acme               what it did with it
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _is_json(args: list[str]) -> bool:
    ours = args[: args.index("--")] if "--" in args else args
    return any(arg in ("--json", "--jsonl") for arg in ours)


def _report(error: KbctlError, as_json: bool) -> int:
    if as_json:
        body = {"error": {"code": error.code, "message": error.message, "remedy": error.remedy}}
        text = json.dumps(body) + "\n"
    else:
        text = f"kbctl: {neutral(error.message)}\n"
        if error.remedy:
            text += f"  try: {neutral(error.remedy)}\n"
    sys.stderr.write(text)
    return int(error.exit_status)


def _from_usage(error: Any) -> KbctlError:
    """typer's complaint in our form."""
    message = error.format_message().strip().rstrip(".").replace("\n", " ").replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "kbctl"
    if "unexpected extra argument" in message:
        # Not repeated: it could be a secret that somebody put on the command line.
        message = "there is an argument too many"
    return KbctlError("usage", message[:1].lower() + message[1:], f"{path} --help", Exit.USAGE)


def _from_defect(error: Exception) -> KbctlError:
    """A defect, without its text: that could hold anything. What was typed in no text's bytes is none."""
    if isinstance(error, UnicodeEncodeError) and any("\udc80" <= each <= "\udcff" for each in error.object):
        # Python carries bytes of an argument that are no UTF-8 in these characters, which nothing else has.
        return KbctlError("usage", "an argument is not UTF-8 text", "kbctl --help", Exit.USAGE)
    if os.environ.get("KBCTL_DEBUG") == "1":
        traceback.print_exc()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
        return _from_unwritten(error)
    from kbctl.paths import home

    return KbctlError(
        "internal",
        f"a defect in kbctl itself ended this ({type(error).__name__}); the daemon's log is {home().log}",
        "KBCTL_DEBUG=1 kbctl ..., for the details",
        Exit.INTERNAL,
    )


def _tell_of_other_versions(given: list[str]) -> None:
    """After an upgrade the old daemon runs on until it is started again: easily overlooked."""
    client = sys.modules.get("kbctl.client")  # not loaded: nobody was asked
    others = client.Client.others if client is not None and "down" not in given[:1] else set()
    for version in sorted(others):
        sys.stderr.write(
            f"kbctl: the daemon is kbctl {version} and this is {__version__}\n  try: kbctl down && kbctl up\n"
        )
    others.clear()


def _from_unwritten(error: OSError) -> KbctlError:
    """An answer that found no room."""
    _drop_stdout()
    why = os.strerror(error.errno or errno.EIO).lower()
    return KbctlError("internal", f"the answer could not be written: {why}", "df -h", Exit.INTERNAL)


def _pipe_closed() -> int:
    # Whoever read our answer has seen enough.
    _drop_stdout()
    return PIPE_CLOSED


def _drop_stdout() -> None:
    # Python would complain when it flushes stdout at the end.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
