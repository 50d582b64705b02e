"""``token create|list|revoke``: operator tokens, for the API on the TCP port.

A token is shown once, by ``create``, and is never an argument: it is revoked by its id.
"""

from typing import Annotated

import typer

from kbctl.commands import ask, options, values
from kbctl.commands.command import Command, Noun


def register(app: typer.Typer) -> None:
    """Add these commands."""
    noun = typer.Typer(cls=Noun, rich_markup_mode=None, invoke_without_command=True)
    noun.callback(options_metavar="", subcommand_metavar="COMMAND ...")(_noun)
    noun.command("create", cls=Command)(create)
    noun.command("list", cls=Command)(list_)
    noun.command("revoke", cls=Command)(revoke)
    app.add_typer(noun, name="token")


def _noun(context: typer.Context) -> None:
    """Open the operator API on the proxy's port, to who holds a token.

    \b
    Example:
      kbctl token create --scope issue --ttl 30d
      kbctl token list
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def create(
    scope: Annotated[
        str,
        typer.Option(metavar="read|issue|admin", help="Look; issue and revoke keys as well; all of it."),
    ] = "admin",
    ttl: Annotated[
        str | None, typer.Option(metavar="30d|never", help="How long it lives. [default: 30d]")
    ] = None,
    note: Annotated[str | None, typer.Option(metavar="TEXT", help="What it is for.")] = None,
    json: options.Json = False,
) -> None:
    """Create an operator token.

    It is shown once. Piped, it is all that is printed.

    \b
    Example:
      kbctl token create --scope issue --note "billing service"
      TOKEN=$(kbctl token create --scope read --ttl 1d)
    """
    from kbctl import render
    from kbctl.client import Client

    values.choice("--scope", scope, ("read", "issue", "admin"))
    expires_in = None if ttl is None else values.ttl("--ttl", ttl)
    with Client() as client:
        proxy_url = client.status().proxy_url if ask.to_terminal() and not json else ""
        created = client.create_token(scope=scope, expires_in=expires_in, note=note)
        if json:
            render.json_document(client.body)
        elif proxy_url:
            render.token_created(created, proxy_url)
        else:
            typer.echo(created.token)


def list_(json: options.Json = False) -> None:
    """List the operator tokens, without the tokens.

    \b
    Example:
      kbctl token list
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.tokens()
        if json:
            render.json_document(client.body)
        else:
            render.tokens(found)


def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As in the list.")],
    json: options.Json = False,
) -> None:
    """Revoke an operator token, at once and for good.

    \b
    Example:
      kbctl token revoke tok_5dQ2
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.revoke_token(token_id)
        if json:
            render.json_document(client.body)
        else:
            render.say(f"{found.token_id}: revoked")
