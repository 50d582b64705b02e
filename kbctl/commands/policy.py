"""``policy set|apply|list|show|remove``: named sets of limits, such as the tiers of a plan.

A file is read strictly: what is misspelt, doubled or out of range is refused with the name of its policy and
field, because a limit that is not understood would be a limit that does not hold. Numbers are exact decimals.
"""

import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kbctl.commands import options, values
from kbctl.commands.command import Command, Noun

if TYPE_CHECKING:
    from kbctl import wire
    from kbctl.client import Client

_FILE_BYTES_MAX = 4 * 1024 * 1024

_Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the policy: free, pro.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    noun = typer.Typer(cls=Noun, rich_markup_mode=None, invoke_without_command=True)
    noun.callback(options_metavar="", subcommand_metavar="COMMAND ...")(_noun)
    noun.command("set", cls=Command)(set_)
    noun.command("apply", cls=Command)(apply)
    noun.command("list", cls=Command)(list_)
    noun.command("show", cls=Command)(show)
    noun.command("remove", cls=Command)(remove)
    app.add_typer(noun, name="policy")


def _noun(context: typer.Context) -> None:
    """Name limits once, and issue keys by that name.

    \b
    Example:
      kbctl policy set free --cap 5 --rate 1/s
      kbctl policy list
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def set_(
    name: _Name,
    cap: options.Cap = None,
    total_cap: options.TotalCap = None,
    call_cap: options.CallCap = None,
    vendor: options.Vendor = None,
    allow: options.Allow = None,
    deny: options.Deny = None,
    param: options.Param = None,
    requests: options.Requests = None,
    rate: options.Rate = None,
    loop: options.Loop = None,
    on_loop: options.OnLoop = None,
    duplicates: options.Duplicates = None,
    ttl: options.Ttl = None,
    stamp: options.Stamp = False,
    live: options.Live = False,
    json: options.Json = False,
) -> None:
    """Add a policy, or replace it. Shows what differs.

    Live keys keep what they were issued with, unless --live.

    \b
    Example:
      kbctl policy set free --cap 5 --rate 1/s --ttl 1h
      kbctl policy set pro --cap 500 --allow "POST /v1/payment_intents" --live
    """
    from kbctl import limits, wire
    from kbctl.client import Client

    said = limits.from_options(
        cap=cap,
        total_cap=total_cap,
        call_cap=call_cap,
        vendors=vendor,
        allow=allow,
        deny=deny,
        param=param,
        requests=requests,
        rate=rate,
        loop=loop,
        on_loop=on_loop,
        duplicates=duplicates,
        ttl=ttl,
        stamp=stamp or None,
    )
    if not said:
        raise values.bad_value("a policy needs at least one limit", f"kbctl policy set {quote(name)} --cap 5")
    with Client() as client:
        _show_changes(client, client.set_policy(wire.Policy(name=name, **said), live=live), live, json)


def apply(
    file: Annotated[str, typer.Argument(metavar="FILE", help="TOML or JSON; - is stdin.")],
    live: options.Live = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what differs; change nothing.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Set the policies of a file, all of them or none. Shows what differs.

    \b
    The file, as TOML or as "kbctl policy list --json" prints it:
      [[policies]]
      name = "free"
      daily_usd_cap = 5
      allowed_endpoints = ["POST /v1/payment_intents"]

    \b
    Example:
      kbctl policy apply policies.toml --dry-run
      kbctl policy list --json | kbctl policy apply - --live
    """
    from kbctl.client import Client

    policies = read_file(file)
    with Client() as client:
        _show_changes(
            client, client.apply_policies(policies, live=live, dry_run=dry_run), live or dry_run, json
        )


def _show_changes(client: "Client", changes: "wire.PolicyChanges", live: bool, json: bool) -> None:
    from kbctl import render

    if json:
        render.json_document(client.body)
        return
    render.policy_changes(changes)
    if not live and any(each.live_keys and each.action == "change" for each in changes.changes):
        render.note("live keys keep the limits that they were issued with; --live changes them, too")


def list_(json: options.Json = False) -> None:
    """List the policies. As JSON it is what apply takes.

    \b
    Example:
      kbctl policy list
      kbctl policy list --json > policies.json
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.policies()
        if json:
            render.json_document(client.body)
        else:
            render.policies(found)


def show(name: _Name, json: options.Json = False) -> None:
    """Show one policy: every limit that it sets.

    \b
    Example:
      kbctl policy show free
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        found = client.policy(name)
        if json:
            render.json_document(client.body)
        else:
            render.policy(found)


def remove(name: _Name) -> None:
    """Forget a policy. The keys issued with it keep their limits.

    \b
    Example:
      kbctl policy remove free
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        client.remove_policy(name)
    render.say(f"{name}: removed; the keys issued with it keep their limits")


# --- the file -------------------------------------------------------------------------------------


def read_file(file: str) -> "list[wire.Policy]":
    """The policies of a file, or of stdin for ``-``.

    Raises:
        KbctlError: it cannot be read, or naming the policy and the field that are wrong.
    """
    shown = "stdin" if file == "-" else file
    text = read_text(file, shown, "kbctl policy apply policies.toml")
    suffix = Path(file).suffix.lower()
    as_json = suffix == ".json" or (suffix != ".toml" and text.lstrip()[:1] == "{")
    read, line = (_json, _json_line) if as_json else (_toml, _toml_line)
    try:
        document = read(text)
    except (ValueError, RecursionError, ArithmeticError) as error:
        deep = isinstance(error, RecursionError)
        why = "it is nested too deeply" if deep else str(error).partition("\n")[0]
        kind = "JSON" if as_json else "TOML"
        raise values.bad_value(
            f"{shown} is not {kind} that can be read: {why}", line("name", "free")
        ) from None
    return _policies(document, shown, line)


def read_text(file: str, shown: str, example: str) -> str:
    """All of a file, or of stdin for ``-``."""
    try:
        if file == "-":
            body = sys.stdin.buffer.read(_FILE_BYTES_MAX + 1)
        else:
            with Path(file).open("rb") as opened:
                body = opened.read(_FILE_BYTES_MAX + 1)
        if len(body) > _FILE_BYTES_MAX:
            raise values.bad_value(f"{shown} is larger than any such file", example)
        return body.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise values.bad_value(f"{shown} can't be read: {why}", example) from None


def _policies(document: Any, shown: str, line: Callable[[str, Any], str]) -> "list[wire.Policy]":
    from kbctl import limits

    example = "kbctl policy apply --help"
    if not isinstance(document, dict) or not isinstance(document.get("policies"), list):
        raise values.bad_value(f"{shown} has no list named policies", example)
    unknown = next((name for name in document if name != "policies"), None)
    if unknown is not None:
        raise values.bad_value(f"{shown}: there is no field {unknown!r} beside policies", example)
    found: dict[str, wire.Policy] = {}
    for at, entry in enumerate(document["policies"], 1):
        place = f"{shown}, policy {at}"
        if not isinstance(entry, dict):
            raise values.bad_value(f"{place} is not a set of fields", example)
        policy = limits.policy_entry(entry, place, line)
        if policy.name in found:
            raise values.bad_value(f"{shown} has two policies of the name {policy.name!r}", example)
        found[policy.name] = policy
    return list(found.values())


def _toml(text: str) -> Any:
    import tomllib

    return tomllib.loads(text, parse_float=_exact)


def _json(text: str) -> Any:
    import json

    return json.loads(text, parse_float=_exact, parse_constant=_exact, object_pairs_hook=_once)


def _exact(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:
        return Decimal("Infinity")  # more than any Decimal: refused where the field is known


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the field {name!r} is there twice")
        found[name] = value
    return found


def _toml_line(name: str, value: Any) -> str:
    return f"{name} = {_json_text(value)}"


def _json_line(name: str, value: Any) -> str:
    return f'"{name}": {_json_text(value)}'


def _json_text(value: Any) -> str:
    import json

    return json.dumps(value)
