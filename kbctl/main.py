"""The command line, and the one place where failures become exit codes.

What must stay true: a person never sees a traceback (unless ``KBCTL_DEBUG=1`` asks for one), an error is one
sentence and a remedy on stderr, and the exit code is one of :class:`~kbctl.errors.Exit`. With ``--json`` or
``--jsonl`` the error is JSON as well. Importing this file must stay quick: no HTTP, tables or wire here.
"""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from kbctl import __version__
from kbctl.commands import (
    audit,
    care,
    completion,
    credential,
    daemon,
    demo,
    key,
    policy,
    prune,
    report,
    service,
    tenant,
    token,
)
from kbctl.commands import run as running
from kbctl.errors import Exit, KbctlError
from kbctl.neutral import neutral

# What a shell reports for a program that Ctrl-C or a closed pipe ended.
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

# typer gives only the leaf a public name; from 0.26 on it carries its own copy of click, before it click's.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _Root(TyperGroup):
    """Every way in, ``run()``, ``app()`` and the tests' runner alike, ends in the same exit codes."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        given = sys.argv[1:] if args is None else list(args)
        status = self._run(given)
        _tell_of_other_versions(given)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            status = _pipe_closed()
        sys.exit(status)

    def _run(self, args: list[str]) -> int:
        ours = args[: args.index("--")] if "--" in args else args
        as_json = any(arg in ("--json", "--jsonl") for arg in ours)
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


for _noun in (
    daemon,
    credential,
    key,
    running,
    policy,
    tenant,
    audit,
    report,
    prune,
    token,
    care,
    service,
    demo,
    completion,
):
    _noun.register(app)


def run() -> NoReturn:
    """The ``kbctl`` program."""
    app()
    raise AssertionError("a command line ends by exiting")


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
    """A defect, without its text: that could hold anything."""
    if os.environ.get("KBCTL_DEBUG") == "1":
        traceback.print_exc()
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


def _pipe_closed() -> int:
    # Whoever read our answer has seen enough. Python would complain when it flushes stdout at the end.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return PIPE_CLOSED
