"""``issue``, ``keys``, ``show``, ``revoke``: vault keys."""

from typing import TYPE_CHECKING, Annotated

import typer

from kbctl.commands import ask, values
from kbctl.commands.command import Command
from kbctl.errors import Exit, KbctlError

if TYPE_CHECKING:
    from kbctl import wire

_STATUSES = ("active", "frozen", "revoked", "expired", "all")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(cls=Command)(issue)
    app.command(cls=Command)(keys)
    app.command(cls=Command)(show)
    app.command(cls=Command)(revoke)


def issue(
    tenant: Annotated[str | None, typer.Option(metavar="T", help="Whose agent it is.")] = None,
    cap: Annotated[str | None, typer.Option(metavar="USD|none", help="Dollars a day (UTC), or none.")] = None,
    total_cap: Annotated[str | None, typer.Option(metavar="USD", help="Dollars over the key's life.")] = None,
    call_cap: Annotated[str | None, typer.Option(metavar="USD", help="Dollars a call.")] = None,
    vendor: Annotated[
        list[str] | None,
        typer.Option(metavar="V", help="Only this vendor. Repeatable. [default: all with a credential]"),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="ENTRY", help="Only these calls: 'METHOD /path' or an operation. Repeatable."),
    ] = None,
    deny: Annotated[
        list[str] | None, typer.Option(metavar="ENTRY", help="Not these calls, even if allowed. Repeatable.")
    ] = None,
    ttl: Annotated[
        str | None, typer.Option(metavar="2h|never", help="How long it lives. [default: 24h]")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="L", help="What to find its calls by.")] = None,
    meta: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Metadata of every row. Repeatable.")
    ] = None,
    credential: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which real key, where a vendor has several.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Issue a vault key, for one agent to hold.

    The key is shown once. Piped, it is all that is printed.

    \b
    Example:
      kbctl issue --tenant acme --cap 500
      kbctl issue --tenant acme --cap 20 --ttl 2h \\
          --allow "POST /v1/payment_intents" --meta agent_run_id=run_42
      KEY=$(kbctl issue --tenant acme --cap 500)
    """
    from kbctl import render
    from kbctl.client import Client

    request = _request(tenant, cap, total_cap, call_cap, vendor, allow, deny, ttl, label, meta, credential)
    with Client() as client:
        issued = client.issue(request)
        if json:
            render.json_document(client.body)
        elif ask.to_terminal():
            render.issued(issued, _environment(issued))
        else:
            typer.echo(issued.vault_key)


def _request(
    tenant: str | None,
    cap: str | None,
    total_cap: str | None,
    call_cap: str | None,
    vendors: list[str] | None,
    allow: list[str] | None,
    deny: list[str] | None,
    ttl: str | None,
    label: str | None,
    meta: list[str] | None,
    credential: str | None,
) -> "wire.IssueRequest":
    from msgspec import UNSET

    from kbctl import wire

    if cap is None and total_cap is None:
        raise KbctlError(
            "cap_needed",
            "say how much the key may spend a day, or none",
            f"kbctl issue {f'--tenant {tenant} ' if tenant else ''}--cap 500",
            Exit.USAGE,
        )
    return wire.IssueRequest(
        tenant=tenant,
        daily_usd_cap=UNSET if cap is None else values.usd_or_none("--cap", cap),
        total_usd_cap=None if total_cap is None else values.usd("--total-cap", total_cap),
        call_usd_cap=None if call_cap is None else values.usd("--call-cap", call_cap),
        vendors=vendors or None,
        allowed_endpoints=allow or None,
        denied_endpoints=deny or None,
        expires_in=None if ttl is None else values.ttl("--ttl", ttl),
        agent_run_label=label,
        metadata=values.pairs("--meta", meta) if meta else None,
        credential=credential,
    )


def _environment(key: "wire.IssuedKey") -> dict[str, str]:
    """What an agent's process needs so that nothing in it changes but these."""
    lines: dict[str, str] = {}
    if "stripe" in key.vendors:
        lines["STRIPE_API_KEY"] = key.vault_key
        lines["STRIPE_SECRET_KEY"] = key.vault_key
        lines["STRIPE_BASE_URL"] = f"{key.proxy_url}/stripe"
    lines["KBCTL_KEY_ID"] = key.key_id
    lines["KBCTL_PROXY_URL"] = key.proxy_url
    lines["NO_PROXY"] = "127.0.0.1,localhost"
    return lines


def keys(
    tenant: Annotated[str | None, typer.Option(metavar="T", help="Only this tenant's.")] = None,
    label: Annotated[str | None, typer.Option(metavar="L", help="Only with this label segment.")] = None,
    status: Annotated[
        str, typer.Option(metavar="active|frozen|revoked|expired|all", help="Only in this state.")
    ] = "active",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print one JSON object a line.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """List vault keys, each with its spend against its cap.

    \b
    Example:
      kbctl keys
      kbctl keys --tenant acme --status all
    """
    from kbctl import render, wire
    from kbctl.client import Client

    values.choice("--status", status, _STATUSES)
    one_format(json, jsonl, csv)
    with Client() as client:
        found = client.keys(tenant=tenant, label=label, status=status)
        if json:
            render.json_document(client.body)
        elif jsonl:
            render.json_lines([wire.encode(found)])
        elif csv:
            render.csv_rows([found], wire.Key)
        else:
            render.keys(found)


def one_format(json: bool, jsonl: bool, csv: bool) -> None:
    """Refuse two output formats at once."""
    if json + jsonl + csv > 1:
        raise values.bad_value("--json, --jsonl and --csv exclude each other", "--json")


def show(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="Key id, a unique prefix of it, or the vault key.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show one vault key: limits, spend, holds.

    \b
    Example:
      kbctl show vk_3f9c2a
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.key(key)
        if json:
            render.json_document(client.body)
        else:
            render.key(found)


def revoke(
    key: Annotated[
        list[str] | None, typer.Argument(metavar="KEY", help="Key ids, prefixes of them, or vault keys.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(metavar="T", help="Every key of this tenant.")] = None,
    label: Annotated[str | None, typer.Option(metavar="L", help="Every key with this label segment.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every key.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Revoke vault keys, at once and for good. Nobody else's key is touched.

    \b
    Example:
      kbctl revoke vk_3f9c2a
      kbctl revoke --tenant acme
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
            _confirm(client.keys(tenant=tenant, label=label, status="active"), tenant, label)
        if key and len(key) == 1:
            reply = client.revoke(key[0])
        else:
            reply = client.revoke_all(
                wire.RevokeRequest(key_ids=key or None, tenant=tenant, label=label, all=every or None)
            )
        if json:
            render.json_document(client.body)
        else:
            render.revoked(reply)


def _confirm(active: "list[wire.Key]", tenant: str | None, label: str | None) -> None:
    if tenant is not None:
        flag, whose = f"--tenant {tenant}", f" of the tenant {tenant}"
    elif label is not None:
        flag, whose = f"--label {label}", f" with the label {label}"
    else:
        flag, whose = "--all", ""
    count = f"{len(active)} active key{'' if len(active) == 1 else 's'}{whose}"
    ask.confirm(
        f"Revoke {count}, for good?",
        refusal=f"revoking {count} needs a yes, and nobody is here to give it",
        remedy=f"kbctl revoke {flag} --yes",
    )
