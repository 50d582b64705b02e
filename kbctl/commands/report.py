"""``spend``, ``changes``, ``sql``, ``vendor``: what was spent, who changed what, and what there is."""

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from kbctl.commands import options, values
from kbctl.commands.command import Command, Noun
from kbctl.commands.key import one_format
from kbctl.errors import Exit

_DIMENSIONS = ("key", "tenant", "vendor", "label", "agent", "run", "day")
_QUERY_CHARACTERS_MAX = 256 * 1024


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (spend, changes, sql):
        app.command(cls=Command)(command)
    noun = typer.Typer(cls=Noun, rich_markup_mode=None, invoke_without_command=True)
    noun.callback(options_metavar="", subcommand_metavar="COMMAND ...")(_vendor)
    noun.command("list", cls=Command)(vendor_list)
    noun.command("show", cls=Command)(vendor_show)
    noun.command("prices", cls=Command)(vendor_prices)
    noun.command("check", cls=Command)(vendor_check)
    app.add_typer(noun, name="vendor")


def spend(
    by: Annotated[str, typer.Option(metavar="|".join(_DIMENSIONS), help="A line for each.")] = "key",
    since: options.Since = None,
    start: options.Start = None,
    end: options.End = None,
    json: options.Json = False,
    csv: options.Csv = False,
) -> None:
    """Show what was spent, against the caps.

    \b
    Example:
      kbctl spend
      kbctl spend --by tenant --since 7d
      kbctl spend --by day --from 2026-11-01 --csv
    """
    from kbctl import render
    from kbctl.client import Client

    values.choice("--by", by, _DIMENSIONS)
    one_format(json, False, csv)
    began, ended = values.window(since, start, end, datetime.now(UTC))
    with Client() as client:
        found = client.spend(by, start=began, end=ended)
        if json:
            render.json_document(client.body)
        elif csv:
            columns = (by, "calls", "refused", "spent_usd", "held_usd", "cap_usd")
            render.csv_records(columns, ([getattr(line, name) for name in columns] for line in found))
        else:
            render.spend(by, found)


def changes(
    subject: Annotated[
        str | None, typer.Option(metavar="ID", help="Only of this key, policy, tenant or token.")
    ] = None,
    since: options.Since = None,
    start: options.Start = None,
    end: options.End = None,
    limit: Annotated[int, typer.Option(metavar="N", help="How many, newest first; 0 for all.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    jsonl: options.Jsonl = False,
    csv: options.Csv = False,
) -> None:
    """Show who changed keys, policies, tenants and tokens, and how.

    \b
    Example:
      kbctl changes --since 1d
      kbctl changes --subject vk_3f9c2a
    """
    from kbctl import calls, render, wire
    from kbctl.client import Client

    one_format(json, jsonl, csv)
    values.whole("--limit", limit, 1_000_000_000)
    began, ended = values.window(since, start, end, datetime.now(UTC))
    with Client() as client:
        pages = client.change_bodies(subject=subject, start=began, end=ended, limit=limit)
        if json:
            render.json_array(pages)
        elif jsonl:
            render.json_lines(pages)
        else:
            found = (calls.decode(page, list[wire.Change]) for page in pages)
            if csv:
                render.csv_rows(found, wire.Change)
            else:
                render.changes([change for page in found for change in page])


def sql(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="One SELECT; - reads it from stdin.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array of objects.")] = False,
    jsonl: options.Jsonl = False,
    csv: options.Csv = False,
) -> None:
    """Ask the audit database, read-only. The view is named calls.

    \b
    Example:
      kbctl sql "SELECT tenant, sum(amount_usd) FROM calls GROUP BY tenant"
      kbctl sql - --csv < report.sql
    """
    from kbctl import render
    from kbctl.client import Client

    one_format(json, jsonl, csv)
    text = sys.stdin.read(_QUERY_CHARACTERS_MAX + 1) if query == "-" else query
    example = 'kbctl sql "SELECT * FROM calls LIMIT 5"'
    if not text.strip():
        raise values.bad_value("the query is empty", example)
    if len(text) > _QUERY_CHARACTERS_MAX:
        raise values.bad_value("the query is longer than any that is meant", example)
    with Client() as client:
        found = client.sql(text)
        if json or jsonl:
            render.json_records(client.body, lines=jsonl)
        elif csv:
            render.csv_records(found.columns, found.rows)
        else:
            render.records(found)


def _vendor(context: typer.Context) -> None:
    """Show what keys can be issued for; check a vendor file.

    \b
    Example:
      kbctl vendor list
      kbctl vendor check acme.toml
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def vendor_list(json: options.Json = False) -> None:
    """List the vendors, and which have a credential.

    \b
    Example:
      kbctl vendor list
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.vendors()
        if json:
            render.json_document(client.body)
        else:
            render.vendors(found)


def vendor_show(
    name: Annotated[str, typer.Argument(metavar="V", help="As in the list.")], json: options.Json = False
) -> None:
    """Show what one vendor can do, and how each operation is priced.

    Privileged operations are allowed by exact name only.

    \b
    Example:
      kbctl vendor show stripe
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.vendor(name)
        if json:
            render.json_document(client.body)
        else:
            render.vendor(found)


def vendor_prices(
    name: Annotated[
        str | None, typer.Argument(metavar="VENDOR", help="All vendors if none is given.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of this model only.", metavar="MODEL")] = None,
    json: options.Json = False,
) -> None:
    """Show the prices in force, with source and date.

    Without a vendor, the exchange rates too. What you set is marked as yours. What is old is marked, too:
    compare it with its source, and set what differs in config.toml.

    \b
    Example:
      kbctl vendor prices twilio
      kbctl vendor prices openai --model gpt-4o-mini
    """
    from kbctl import render, wire
    from kbctl.client import Client

    if model is not None and name is None:
        raise values.bad_value("--model goes with a vendor", "kbctl vendor prices openai --model gpt-4o-mini")
    with Client() as client:
        names = [each.name for each in client.vendors()] if name is None else [name]
        found = [client.vendor_prices(each, model) for each in names]
        if json and name is not None:
            render.json_document(client.body)
            return
        rates = client.rates() if name is None else None
    if json:
        lists = {"vendors": found, "rates": rates.rates if rates is not None else []}
        render.json_document(wire.encode(lists))
    else:
        render.prices(found, rates)


def vendor_check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A vendor file, or - for stdin.")],
    json: options.Json = False,
) -> None:
    """Check a vendor file, and that its examples come true.

    What is wrong is listed by line, with exit status 2. Nothing is changed.

    \b
    Example:
      kbctl vendor check acme.toml && cp acme.toml ~/.local/share/kbctl/vendors/
    """
    from kbctl import render
    from kbctl.client import Client
    from kbctl.commands.policy import read_text

    shown = "stdin" if file == "-" else file
    text = read_text(file, shown, "kbctl vendor check acme.toml")
    with Client() as client:
        found = client.check_vendor(text)
        if json:
            render.json_document(client.body)
        else:
            render.vendor_findings(shown, found)
    if found.findings:
        raise typer.Exit(Exit.USAGE)
