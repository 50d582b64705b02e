"""``service``: the daemon under the machine's service manager."""

import os
from typing import Annotated

import typer

from kbctl.commands.command import Command, Noun
from kbctl.errors import Exit, KbctlError
from kbctl.paths import home

_System = Annotated[bool, typer.Option("--system", help="A service of the machine, with a user of its own.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    noun = typer.Typer(cls=Noun, rich_markup_mode=None, invoke_without_command=True)
    noun.callback(options_metavar="", subcommand_metavar="COMMAND ...")(_service)
    noun.command("install", cls=Command)(install)
    noun.command("uninstall", cls=Command)(uninstall)
    app.add_typer(noun, name="service")


def _service(context: typer.Context) -> None:
    """Let systemd or launchd start the daemon.

    \b
    Example:
      kbctl service install
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def install(
    system: _System = False,
    show: Annotated[bool, typer.Option("--print", help="Print the file, write nothing.")] = False,
) -> None:
    """Write the service file, and say how it is started.

    With --system the daemon is a user of its own, so that agents can't reach its files and socket.
    On macOS (launchd) this was never tried.

    \b
    Example:
      kbctl service install
      sudo kbctl service install --system
    """
    from kbctl import render, service

    made = service.service(home(), system=system)
    if show:
        typer.echo(made.text, nl=False)
        return
    try:
        made.path.parent.mkdir(parents=True, exist_ok=True)
        begun = made.path.with_name(f".{made.path.name}.part")
        begun.write_text(made.text, encoding="utf-8")
        begun.chmod(0o644)
        begun.replace(made.path)
    except OSError as error:
        raise _unwritable(made.path.parent, error, "install", system=system) from None
    render.service_installed(made.path, made.start)


def uninstall(system: _System = False) -> None:
    """Take that file away again. Keys, spend and everything else stay.

    \b
    Example:
      kbctl service uninstall
    """
    from kbctl import render, service

    made = service.service(home(), system=system)
    try:
        made.path.unlink()
    except FileNotFoundError:
        raise KbctlError(
            "service_unknown", f"there is no {made.path}", "kbctl service install", Exit.NOT_FOUND
        ) from None
    except OSError as error:
        raise _unwritable(made.path.parent, error, "uninstall", system=system) from None
    render.service_uninstalled(made.path, made.stop)


def _unwritable(folder: os.PathLike[str], error: OSError, verb: str, *, system: bool) -> KbctlError:
    return KbctlError(
        "file_unusable",
        f"{folder} can't be written: {(error.strerror or '').lower()}",
        f"sudo kbctl service {verb} --system" if system else f"ls -ld {os.fspath(folder)}",
        Exit.REFUSED,
    )
