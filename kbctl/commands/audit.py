"""``audit``, ``explain``, ``resolve``: every attempt has a row, and every row an end."""

import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from kbctl.commands import options, values
from kbctl.commands.command import Command
from kbctl.commands.key import one_format

if TYPE_CHECKING:
    from kbctl.client import AuditFilter, Client

_FOLLOW_POLL_S = 0.5


def register(app: typer.Typer) -> None:
    """Add this command."""
    for command in (audit, explain, resolve):
        app.command(cls=Command)(command)


def audit(
    label: Annotated[str | None, typer.Option(metavar="L", help="Only with this label segment.")] = None,
    tenant: Annotated[str | None, typer.Option(metavar="T", help="Only this tenant's.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Only this key's.")] = None,
    vendor: Annotated[str | None, typer.Option(metavar="V", help="Only to this vendor.")] = None,
    denied: Annotated[bool, typer.Option("--denied", help="Only what was refused.")] = False,
    unknown: Annotated[bool, typer.Option("--unknown", help="Only what has no known outcome.")] = False,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="Only suspected duplicates.")] = False,
    since: Annotated[str | None, typer.Option(metavar="1h", help="How far back: 30m, 2h, 7d.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Only from then on (UTC).")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Only before then (UTC).")] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="How many, newest first; 0 for all.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new rows until Ctrl-C.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print one JSON object a line.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Show what agents did, and what they were refused.

    \b
    Example:
      kbctl audit --label tenant:acme --since 1h
      kbctl audit --denied --limit 0 --jsonl
      kbctl audit --follow
    """
    from kbctl import render, wire
    from kbctl.client import AuditFilter, Client

    one_format(json, jsonl, csv)
    values.whole("--limit", limit, 1_000_000_000)
    began, ended = values.window(since, start, end, datetime.now(UTC))
    wanted = AuditFilter(
        label_contains=label,
        tenant=tenant,
        key=key,
        vendor=vendor,
        denied=denied,
        unknown=unknown,
        duplicates=duplicates,
        start=began,
        end=ended,
        limit=limit,
    )
    with Client() as client:
        if follow:
            if json or csv or end is not None:
                raise values.bad_value(
                    "--follow goes with --jsonl or the plain form, and has no end", "--follow"
                )
            _follow(client, wanted, jsonl)
        elif json:
            render.json_array(client.audit_bodies(wanted))
        elif jsonl:
            render.json_lines(client.audit_bodies(wanted))
        elif csv:
            render.csv_rows(client.audit(wanted), wire.Call)
        else:
            render.audit([call for page in client.audit(wanted) for call in page])


def _follow(client: "Client", wanted: "AuditFilter", jsonl: bool) -> None:
    """The rows there are, oldest first, then each new one as it comes.

    The daemon is asked again from the newest time seen, that time included, since several rows can share it;
    the ones already shown are known by their ids.
    """
    from kbctl import render, wire

    shown: set[str] = set()
    newest = wanted.start
    while True:
        calls = [call for page in client.audit(wanted) for call in page]
        for call in reversed(calls):
            if call.call_id in shown:
                continue
            if jsonl:
                render.json_lines([wire.encode([call])])
            else:
                render.audit_line(call)
        sys.stdout.flush()
        if calls:
            newest = calls[0].timestamp
            shown = {call.call_id for call in calls}
        wanted = replace(wanted, start=newest, limit=None)
        time.sleep(_FOLLOW_POLL_S)


_Call = Annotated[str, typer.Argument(metavar="CALL", help="A call id, or a unique beginning of one.")]


def explain(call: _Call, json: options.Json = False) -> None:
    """Tell what became of one call, and what can be done about it.

    \b
    Example:
      kbctl explain call_7Qm2Zc4Rk9TtB1xA
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.call(call)
        if json:
            render.json_document(client.body)
        else:
            render.explained(found)


def resolve(
    call: _Call,
    spent: Annotated[
        str | None, typer.Option(metavar="USD", help="The vendor did it, and took this much.")
    ] = None,
    void: Annotated[bool, typer.Option("--void", help="The vendor did not do it: free the money.")] = False,
    note: Annotated[str | None, typer.Option(metavar="TEXT", help="How you know; kept in `changes`.")] = None,
    json: options.Json = False,
) -> None:
    """Settle a call whose outcome nobody knows.

    Its money is held until the vendor's own record is known: no answer is not a
    refund. kbctl audit --unknown lists such calls.

    \b
    Example:
      kbctl resolve call_7Qm2Zc4Rk9TtB1xA --spent 12.50 --note "in dashboard"
      kbctl resolve call_7Qm2Zc4Rk9TtB1xA --void
    """
    from kbctl import render
    from kbctl.client import Client

    if void == (spent is not None):
        raise values.bad_value("a call is resolved with one of --spent USD and --void", "--spent 12.50")
    usd = None if spent is None else values.usd("--spent", spent)
    with Client() as client:
        found = client.resolve(call, usd, note)
        if json:
            render.json_document(client.body)
        else:
            render.explained(found)
