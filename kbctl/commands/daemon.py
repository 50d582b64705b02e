"""``up``, ``down``, ``status``, ``logs``: the process."""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Annotated

import typer

from kbctl.commands import ask, values
from kbctl.commands.command import Command
from kbctl.errors import Exit, KbctlError
from kbctl.paths import Home, home

_LOG_POLL_S = 0.25


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(cls=Command)(up)
    app.command(cls=Command)(down)
    app.command(cls=Command)(status)
    app.command(cls=Command)(logs)


def up(
    sandbox: Annotated[bool, typer.Option("--sandbox", help="Pretend vendors: no real money moves.")] = False,
    port: Annotated[
        int | None, typer.Option(metavar="N", help="Proxy port (4815); 0 picks a free one.")
    ] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(metavar="V=URL", help="Send a vendor to a mock of yours, for this run. Repeatable."),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay in this terminal, log to it.")
    ] = False,
    accept_rollback: Annotated[
        bool, typer.Option("--accept-rollback", help="Start although the database is an older copy.")
    ] = False,
    passphrase_stdin: Annotated[
        bool, typer.Option("--passphrase-stdin", help="Read the secret store's passphrase from stdin.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
) -> None:
    """Start the daemon.

    \b
    Example:
      kbctl up
      kbctl up --sandbox --port 0
      kbctl up --upstream stripe=http://127.0.0.1:9000
    """
    from kbctl import launch, render, wire

    if port is not None:
        values.whole("--port", port, 65535)
    where = home()
    options = launch.Options(
        sandbox=sandbox,
        port=port,
        upstreams=upstream or (),
        accept_rollback=accept_rollback,
        passphrase=_passphrase(where, passphrase_stdin),
    )
    if foreground:
        launch.replace_process(where, options)
    with render.spinner("starting; a keyring may be waiting to be unlocked") as turn:
        started = launch.start(where, options, waiting=turn)
    if json:
        render.json_document(wire.encode(started))
    else:
        render.up(started)


def _passphrase(where: Home, from_stdin: bool) -> str | None:
    from kbctl import launch

    if not from_stdin and not launch.needs_passphrase(where):
        return None
    if not from_stdin and not ask.from_terminal():
        raise KbctlError(
            "passphrase_needed",
            "the secrets of this home open with a passphrase, and nobody is here to type it",
            "kbctl up --passphrase-stdin < passphrase-file",
            Exit.REFUSED,
        )
    given = ask.secret(
        "Passphrase: ", what="passphrase", remedy="kbctl up --passphrase-stdin < passphrase-file"
    )
    if "\n" in given:
        raise KbctlError(
            "bad_value",
            "a passphrase is one line",
            "kbctl up --passphrase-stdin < passphrase-file",
            Exit.USAGE,
        )
    return given


def down() -> None:
    """Stop the daemon, after the calls in flight. Holds and keys stay as they are.

    \b
    Example:
      kbctl down
    """
    from kbctl import launch, render

    stopped = launch.stop(home())
    if stopped is None:
        render.note("kbctl was not running")
    else:
        render.down(stopped.in_flight)


def status(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show how the daemon is, and where things are.

    \b
    Example:
      kbctl status
      kbctl status --json
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.status()
        if json:
            render.json_document(client.body)
        else:
            render.daemon_status(found)


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", help="How many of the last lines.")
    ] = 50,
) -> None:
    """Show the daemon's log. Works without a daemon, too.

    \b
    Example:
      kbctl logs -n 100
      kbctl logs -f
    """
    from kbctl import render

    values.whole("--lines", lines, 1_000_000)
    try:
        log = home().log.open("rb")
    except FileNotFoundError:
        raise KbctlError(
            "no_log", "there is no log yet: nothing was started here", "kbctl up", Exit.NOT_FOUND
        ) from None
    with log:
        for last in deque(log, maxlen=lines):
            render.log_line(last.decode(errors="replace").rstrip("\n"))
        if follow:
            sys.stdout.flush()
            for line in _new_lines(log.fileno()):
                render.log_line(line)
                sys.stdout.flush()


def _new_lines(log: int) -> Iterator[str]:
    """Whole lines as they are written; a line half written is waited for."""
    pending = b""
    while True:
        pending += os.read(log, 65536)
        *whole, pending = pending.split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
        if not whole:
            time.sleep(_LOG_POLL_S)
            if os.fstat(log).st_size < os.lseek(log, 0, os.SEEK_CUR):
                os.lseek(log, 0, os.SEEK_SET)  # it was emptied: begin again
