"""``issue``, ``keys``, ``show``, ``pause``, ``resume``, ``revoke``: vault keys."""

import os
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kbctl.commands import ask, issuing, options, values
from kbctl.commands.command import Command
from kbctl.commands.issuing import issues

if TYPE_CHECKING:
    from kbctl import wire

_STATUSES = ("active", "paused", "frozen", "revoked", "expired", "all")

_Key = Annotated[str, typer.Argument(metavar="KEY", help="Key id, a unique prefix of it, or the vault key.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (issue, keys, show, pause, resume, revoke):
        app.command(cls=Command)(command)


@issues
def issue(json: options.Json = False, **typed: Any) -> None:
    """Issue a vault key, for one agent to hold.

    The key is shown once. Piped, it is all that is printed. A cap must be said,
    unless a policy or a parent says it.

    \b
    Example:
      kbctl issue --tenant acme --cap 500
      kbctl issue --tenant acme --cap 20 --ttl 2h --rate 5/s \\
          --allow "POST /v1/payment_intents" --meta agent_run_id=run_42
      kbctl issue --tenant acme --policy free
      kbctl issue --parent vk_3f9c2a --cap 5
      KEY=$(kbctl issue --tenant acme --cap 500)
    """
    from kbctl import environment, render
    from kbctl.client import Client

    request = issuing.request(issuing.said(**typed), "issue")
    with Client() as client:
        issued = client.issue(request)
        if json:
            render.json_document(client.body)
        elif ask.to_terminal():
            account = environment.twilio_account(client, issued)
            render.issued(issued, environment.lines(issued, account, os.environ))
        else:
            typer.echo(issued.vault_key)


def keys(
    tenant: Annotated[str | None, typer.Option(metavar="T", help="Only this tenant's.")] = None,
    label: Annotated[str | None, typer.Option(metavar="L", help="Only with this label segment.")] = None,
    status: Annotated[str, typer.Option(metavar="|".join(_STATUSES), help="Only in this state.")] = "active",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    jsonl: options.Jsonl = False,
    csv: options.Csv = False,
) -> None:
    """List vault keys, each with its spend against its cap.

    \b
    Example:
      kbctl keys
      kbctl keys --tenant acme --status all
    """
    from kbctl import calls, render, wire
    from kbctl.client import Client

    values.choice("--status", status, _STATUSES)
    one_format(json, jsonl, csv)
    with Client() as client:
        pages = client.key_bodies(tenant=tenant, label=label, status=status)
        if json:
            render.json_joined(pages, "keys")
        elif jsonl:
            render.json_lines(pages, "keys")
        else:
            found = (calls.decode(page, wire.KeyList).keys for page in pages)
            if csv:
                render.csv_rows(found, wire.Key)
            else:
                render.keys([key for page in found for key in page])


def one_format(json: bool, jsonl: bool, csv: bool) -> None:
    """Refuse two output formats at once."""
    if json + jsonl + csv > 1:
        raise values.bad_value("--json, --jsonl and --csv exclude each other", "--json")


def show(
    key: _Key,
    tree: Annotated[bool, typer.Option("--tree", help="With everything derived from it.")] = False,
    json: options.Json = False,
) -> None:
    """Show one vault key: limits, spend, holds.

    \b
    Example:
      kbctl show vk_3f9c2a
      kbctl show vk_3f9c2a --tree
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        if tree:
            family = client.tree(key)
            render.json_document(client.body) if json else render.key_tree(family)
        else:
            found = client.key(key)
            render.json_document(client.body) if json else render.key(found)


def pause(key: _Key, json: options.Json = False) -> None:
    """Refuse a vault key's calls until it is resumed.

    \b
    Example:
      kbctl pause vk_3f9c2a
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.pause(key)
        if json:
            render.json_document(client.body)
        else:
            render.say(f"{found.key_id}: {found.status}; kbctl resume {found.key_id} lets it go on")


def resume(key: _Key, json: options.Json = False) -> None:
    """Let a paused or frozen vault key go on.

    \b
    Example:
      kbctl resume vk_3f9c2a
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.resume(key)
        if json:
            render.json_document(client.body)
        else:
            render.say(f"{found.key_id}: {found.status}")


def revoke(
    key: Annotated[
        list[str] | None, typer.Argument(metavar="KEY", help="Key ids, prefixes of them, or vault keys.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(metavar="T", help="Every key of this tenant.")] = None,
    label: Annotated[str | None, typer.Option(metavar="L", help="Every key with this label segment.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every key.")] = False,
    abort: Annotated[
        bool, typer.Option("--abort", help="Cut calls under way, too; what they hold stays held.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json: options.Json = False,
) -> None:
    """Revoke vault keys, at once and for good. Nobody else's key is touched.

    \b
    Example:
      kbctl revoke vk_3f9c2a
      kbctl revoke --tenant acme --abort
    """
    from kbctl import render, wire
    from kbctl.client import Client

    ways = [bool(key), tenant is not None, label is not None, every]
    if sum(ways) != 1:
        raise values.bad_value(
            "say which keys: by name, by --tenant, by --label, or --all", "kbctl revoke vk_3f9c2a"
        )
    with Client() as client:
        if not key and not yes:
            _confirm(client.keys(tenant=tenant, label=label, status="active"), tenant, label, abort)
        if key and len(key) == 1:
            reply = client.revoke(key[0], abort=abort)
        else:
            reply = client.revoke_all(
                wire.RevokeRequest(
                    key_ids=key or None,
                    tenant=tenant,
                    label=label,
                    all=every or None,
                    abort=abort or None,
                )
            )
        if json:
            render.json_document(client.body)
        else:
            render.revoked(reply)


def _confirm(active: "list[wire.Key]", tenant: str | None, label: str | None, abort: bool) -> None:
    if tenant is not None:
        flag, whose = f"--tenant {quote(tenant)}", f" of the tenant {tenant}"
    elif label is not None:
        flag, whose = f"--label {quote(label)}", f" with the label {label}"
    else:
        flag, whose = "--all", ""
    count = f"{len(active)} active key{'' if len(active) == 1 else 's'}{whose}"
    ask.confirm(
        f"Revoke {count}, for good?",
        refusal=f"revoking {count} needs a yes, and nobody is here to give it",
        remedy=f"kbctl revoke {flag}{' --abort' if abort else ''} --yes",
    )
