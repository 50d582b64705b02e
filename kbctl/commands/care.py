"""``backup`` and ``restore``: the database in one file, and back."""

import time
from pathlib import Path
from typing import Annotated

import typer

from kbctl.commands import ask, options
from kbctl.commands.command import Command
from kbctl.errors import Exit, KbctlError

_POLL_S = 0.1


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(cls=Command)(backup)
    app.command(cls=Command)(restore)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy goes.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json: options.Json = False,
) -> None:
    """Copy the database into one file while calls go on.

    The copy is of one moment, was looked through, and can be read by you alone. There is no real key in it.

    \b
    Example:
      kbctl backup ~/kbctl-$(date +%F).db
    """
    from kbctl import render, wire
    from kbctl.client import Client

    target = file.expanduser().absolute()
    with Client() as client:
        state = client.backup(str(target), force=force)
        with render.progress("copying") as advance:
            while state.state in ("copying", "checking"):
                time.sleep(_POLL_S)
                state = client.backup_state()
                advance(state.pages_done, state.pages)
    if state.error is not None:
        error = state.error
        raise KbctlError(error.code, error.message, error.remedy, Exit.REFUSED)
    if json:
        render.json_document(wire.encode(state))
    else:
        render.backup(state)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What kbctl backup made.")],
    sandbox: Annotated[bool, typer.Option("--sandbox", help="The database of kbctl up --sandbox.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json: options.Json = False,
) -> None:
    """Put a backup in the place of the database. The daemon must be down.

    What was there is kept beside it. A backup older than what was spent since is not served before you accept
    that (kbctl up --accept-rollback), and every key that was live is frozen then.

    \b
    Example:
      kbctl down && kbctl restore ~/kbctl-2026-11-21.db && kbctl up
    """
    from kbctl import launch, render, wire
    from kbctl.paths import home

    where, given = home(), file.expanduser().absolute()
    if where.database(sandbox=sandbox).exists() and not yes:
        ask.confirm(
            f"Put {given} in the place of {where.database(sandbox=sandbox)}?",
            refusal="a database is here, and nobody is there to ask whether it may be replaced",
            remedy=f"kbctl restore {given} --yes",
        )
    with render.spinner("looking through it") as turn:
        done = launch.restore(where, given, sandbox=sandbox, waiting=turn)
    if json:
        render.json_document(wire.encode(done))
    else:
        render.restored(done)
