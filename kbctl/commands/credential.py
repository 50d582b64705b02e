"""``credential set|list|remove``: the real secrets, which the daemon keeps and no agent sees.

A secret is typed unseen or comes on stdin; it is never an argument, because every process may read those.
"""

from typing import Annotated

import typer

from kbctl.commands import ask, values
from kbctl.commands.command import Command, Noun


def register(app: typer.Typer) -> None:
    """Add these commands."""
    noun = typer.Typer(cls=Noun, rich_markup_mode=None, invoke_without_command=True)
    noun.callback(options_metavar="", subcommand_metavar="COMMAND ...")(_noun)
    noun.command("set", cls=Command)(set_)
    noun.command("list", cls=Command)(list_)
    noun.command("remove", cls=Command)(remove)
    app.add_typer(noun, name="credential")


def _noun(context: typer.Context) -> None:
    """Set, list and remove the real API keys.

    \b
    Example:
      kbctl credential set stripe
      kbctl credential list
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def set_(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A vendor, or vendor:anything for a second one.")
    ],
    vendor: Annotated[
        str | None, typer.Option(metavar="V", help="Whose it is, where the name does not say it.")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="What goes with the secret, such as account_sid. Repeatable."),
    ] = None,
) -> None:
    """Store a real API key, or rotate it. Typed unseen, or read from stdin.

    \b
    Example:
      kbctl credential set stripe
      pass show stripe/live | kbctl credential set stripe
      kbctl credential set twilio --field account_sid=AC0123456789
    """
    from kbctl import render
    from kbctl.client import Client

    fields = values.pairs("--field", field) if field else None
    secret = ask.secret(f"Secret for {name}: ", what="secret", remedy=f"kbctl credential set {name}")
    with Client() as client:
        render.credential_set(client.set_credential(name, secret, vendor=vendor, fields=fields))


def list_(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the credentials, without the secrets.

    \b
    Example:
      kbctl credential list
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.credentials()
        if json:
            render.json_document(client.body)
        else:
            render.credentials(found)


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in the list.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Forget a real API key. Vault keys that need it stop working.

    \b
    Example:
      kbctl credential remove stripe
    """
    from kbctl import render
    from kbctl.client import Client

    if not yes:
        ask.confirm(
            f"Remove the credential {name}? Vault keys that need it stop working.",
            refusal=f"removing {name} needs a yes, and nobody is here to give it",
            remedy=f"kbctl credential remove {name} --yes",
        )
    with Client() as client:
        client.remove_credential(name)
    render.say(f"{name}: removed")
