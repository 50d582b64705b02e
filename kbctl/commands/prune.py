"""``prune``: old days leave the audit, and what stays can still be verified."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from kbctl.commands import ask, options, values
from kbctl.commands.command import Command


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command(cls=Command)(prune)


def prune(
    before: Annotated[str, typer.Option(metavar="90d|TIME", help="How old, or before when (UTC).")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json: options.Json = False,
) -> None:
    """Take calls of old days out of the audit.

    Whole UTC days go. Calls with an open hold, keys, caps, balances and the
    list of changes stay; so does what audit verify needs. The audit is
    verified first, and left as it is if that finds anything.

    \b
    Example:
      kbctl prune --before 90d --dry-run
      kbctl audit export -o until-now.jsonl && kbctl prune --before 90d
    """
    from kbctl import render, wire
    from kbctl.client import Client

    moment = _moment(before)
    with Client() as client:
        found = client.prune(moment, dry_run=True)
        if not dry_run and found.calls:
            if not yes:
                ask.confirm(
                    f"{found.calls:,} calls before {found.before[:10]} will be gone for good. Prune them?",
                    refusal=f"{found.calls:,} calls would be gone for good, and nobody is here to say yes",
                    remedy=f"kbctl prune --before {before} --yes",
                )
            with render.progress("pruning", "") as bar:
                found = client.prune(moment, step=lambda step: bar(step.done, step.of, step.stage))
        elif not dry_run:
            found.dry_run = False
    if json:
        render.json_document(wire.encode(found))
    else:
        render.pruned(found)


def _moment(text: str) -> str:
    if text[-1:] in ("s", "m", "h", "d") and not text.endswith("Z"):
        return values.rfc3339(datetime.now(UTC) - values.duration("--before", text))
    return values.rfc3339(values.instant("--before", text))
