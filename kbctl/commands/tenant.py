"""``tenant set|list|show``: limits over all keys of a tenant together."""

from shlex import quote
from typing import Annotated

import typer

from kbctl.commands import options, values
from kbctl.commands.command import Command, Noun

_Name = Annotated[str, typer.Argument(metavar="T", help="As in issue --tenant.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    noun = typer.Typer(cls=Noun, rich_markup_mode=None, invoke_without_command=True)
    noun.callback(options_metavar="", subcommand_metavar="COMMAND ...")(_noun)
    noun.command("set", cls=Command)(set_)
    noun.command("list", cls=Command)(list_)
    noun.command("show", cls=Command)(show)
    app.add_typer(noun, name="tenant")


def _noun(context: typer.Context) -> None:
    """Limit all keys of a tenant together.

    \b
    Example:
      kbctl tenant set acme --cap 2000
      kbctl tenant list
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def set_(
    name: _Name,
    cap: options.Cap = None,
    total_cap: options.TotalCap = None,
    call_cap: options.CallCap = None,
    requests: options.Requests = None,
    rate: options.Rate = None,
    json: options.Json = False,
) -> None:
    """Set limits of a tenant. What is not said stays as it was.

    \b
    Example:
      kbctl tenant set acme --cap 2000
      kbctl tenant set acme --cap none --requests 10000
    """
    from kbctl import limits, render, wire
    from kbctl.client import Client

    said = limits.from_options(cap=cap, total_cap=total_cap, call_cap=call_cap, requests=requests, rate=rate)
    if not said:
        raise values.bad_value(
            "say at least one limit of the tenant", f"kbctl tenant set {quote(name)} --cap 2000"
        )
    with Client() as client:
        found = client.set_tenant(name, wire.TenantRequest(**said))
        if json:
            render.json_document(client.body)
        else:
            render.tenant(found)


def list_(json: options.Json = False) -> None:
    """List the tenants, each with its spend against its cap.

    \b
    Example:
      kbctl tenant list
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.tenants()
        if json:
            render.json_document(client.body)
        else:
            render.tenants(found)


def show(name: _Name, json: options.Json = False) -> None:
    """Show one tenant: limits, spend, holds of all its keys together.

    \b
    Example:
      kbctl tenant show acme
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.tenant(name)
        if json:
            render.json_document(client.body)
        else:
            render.tenant(found)
