"""``run`` and ``env``: a key in the environment of a command, and the lines for where we don't start it.

What must stay true: the key of a run is revoked when the command has ended, however it ended, and when kbctl
itself is told to end; only SIGKILL leaves it, to its expiry. Stdout is the command's alone.
"""

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kbctl.commands import issuing, values
from kbctl.commands.command import Command
from kbctl.commands.issuing import issues
from kbctl.errors import Exit, KbctlError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kbctl import wire
    from kbctl.client import Client

_FORMATS = ("sh", "fish", "dotenv", "json")
_TTL = "24h"
# Not the usual 90 s: nothing interrupts us between issuing and revoking.
_TIMEOUT_S = 20.0
# How long a command that was told to end keeps its key, to finish what it began.
_ENDING_S = 5.0


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(cls=Command, context_settings={"allow_interspersed_args": False})(run)
    app.command(cls=Command)(env)


@issues
def run(
    command: Annotated[list[str], typer.Argument(metavar="CMD", help="What to run, after --.")],
    no_shim: Annotated[
        bool, typer.Option("--no-shim", help="Don't steer SDKs that read no base URL from the environment.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    **typed: Any,
) -> None:
    """Run a command with a key of its own, revoked when it ends.

    The exit status is the command's. Real keys of the same vendors are taken out
    of its environment. Its run id is in metadata and label of every row.

    \b
    Example:
      kbctl run --tenant acme --cap 500 -- python agent.py
      kbctl run --cap 20 --ttl 1h --meta agent_run_id=run_42 -- node agent.js
    """
    from kbctl import child
    from kbctl.client import Client

    fields = issuing.said(**typed)
    run_id = _name_run(fields)
    request = issuing.request(fields, "run", " -- CMD")
    program = child.find(command[0])
    with Client(timeout=_TIMEOUT_S) as client:
        _bound(client, request)
    # Outside of `with` every call has a connection of its own: the daemon may be restarted meanwhile.
    with child.Held() as held:
        issued = client.issue(request)
        with _revoked_at_end(client, issued) as revoke:
            environment = _child_environment(client, issued, with_shim=not no_shim, quiet=quiet)
            pid = child.start(program, command, environment, held)
            status = held.wait(pid, _ENDING_S, revoke)
        if not quiet:
            _say(_summary(client, issued, run_id))
    raise typer.Exit(status)


def _name_run(fields: dict[str, Any]) -> str:
    """Give the run a fresh id, unless it has one; a label too, unless it has one."""
    import secrets

    metadata: dict[str, str] = fields.setdefault("metadata", {})
    run_id = metadata.setdefault("agent_run_id", f"run_{secrets.token_hex(6)}")
    fields.setdefault("agent_run_label", f"run:{run_id}")
    return run_id


def _bound(client: "Client", request: "wire.IssueRequest") -> None:
    """A key that nobody could revoke must still end: a day, unless a policy says less or a parent does."""
    if request.expires_in is None and request.parent_vault_key is None:
        limits = client.policy(request.policy) if request.policy is not None else None
        if limits is None or limits.expires_in in (None, "never"):
            request.expires_in = _TTL


@contextmanager
def _revoked_at_end(client: "Client", issued: "wire.IssuedKey") -> "Iterator[Any]":
    done = False

    def early() -> None:
        nonlocal done
        done = _revoke(client, issued)
        if done:
            _say(f"{issued.key_id} is revoked; the command was told to end and goes on without it")

    try:
        yield early
    finally:
        if not done:
            _revoke(client, issued)


def _revoke(client: "Client", issued: "wire.IssuedKey") -> bool:
    """Revoke; a failure is said and changes nothing about the exit status, which is the command's."""
    try:
        client.revoke(issued.key_id)
    except KbctlError as error:
        until = f"; it ends by itself at {issued.expires_at}" if issued.expires_at else ""
        _say(
            f"{issued.key_id} could not be revoked: {error.message}{until}"
            f"\n  try: kbctl revoke {issued.key_id}"
        )
        return False
    return True


def _child_environment(
    client: "Client", issued: "wire.IssuedKey", *, with_shim: bool, quiet: bool
) -> dict[str, str]:
    from kbctl import environment

    before = dict(os.environ)
    ours = environment.lines(issued, environment.twilio_account(client, issued), before)
    taken = environment.real_keys(issued.vendors, ours, before)
    if taken and not quiet:
        _say(f"taken out of the command's environment: {', '.join(taken)}")
    if with_shim:
        ours |= environment.with_shim(before)
    return {name: value for name, value in before.items() if name not in taken} | ours


def _summary(client: "Client", issued: "wire.IssuedKey", run_id: str) -> str:
    from kbctl import render

    try:
        family = client.tree(issued.key_id)
        lines = client.spend("key", start=issued.created_at)
    except KbctlError as error:
        return f"{issued.key_id} ended; what it spent could not be asked: {error.message}"
    key = family.key
    mine = [line for line in lines if line.name in set(_ids(family))]
    calls, refused = sum(line.calls for line in mine), sum(line.refused for line in mine)
    cap = key.daily_usd_cap or key.total_usd_cap
    of = f" of {render.usd(cap)}" if cap is not None else ""
    held = f", {render.usd(key.total_held_usd)} held" if key.total_held_usd else ""
    return (
        f"{key.key_id} ({run_id}): spent {render.usd(key.total_spent_usd)}{of}{held}; "
        f"{calls} call{'' if calls == 1 else 's'}, {refused} refused; {key.status}"
    )


def _ids(family: "wire.KeyTree") -> "Iterator[str]":
    yield family.key.key_id
    for each in family.children:
        yield from _ids(each)


def _say(text: str) -> None:
    from kbctl.neutral import neutral

    sys.stderr.write("\n".join(neutral(line) for line in f"kbctl: {text}".split("\n")) + "\n")
    sys.stderr.flush()


@issues
def env(
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="The vault key itself; - reads it from stdin.")
    ] = None,
    issue: Annotated[bool, typer.Option("--issue", help="Issue a key with these limits instead.")] = False,
    format_: Annotated[
        str, typer.Option("--format", metavar="|".join(_FORMATS), help="How to write the lines.")
    ] = "sh",
    **typed: Any,
) -> None:
    """Print the environment lines for a vault key.

    A key id is not enough: a vault key is shown once, and nobody can give it back.

    \b
    Example:
      eval "$(kbctl env --issue --tenant acme --cap 500)"
      kbctl issue --cap 20 | kbctl env - --format dotenv > .env
    """
    from kbctl import environment
    from kbctl.client import Client

    values.choice("--format", format_, _FORMATS)
    fields = issuing.said(**typed)
    request = None
    if key is not None:
        if issue or fields:
            raise values.bad_value(
                "a key that is there has its limits; say KEY or --issue, not both",
                "kbctl env --issue --cap 500",
            )
        key = _whole_key(key)
    elif issue:
        request = issuing.request(fields, "env --issue")
    else:
        raise values.bad_value("say which key, or --issue for a new one", "kbctl env --issue --cap 500")
    with Client() as client:
        issued = client.issue(request) if request is not None else _known(client, str(key))
        account = environment.twilio_account(client, issued)
        sys.stdout.write(_written(environment.lines(issued, account, os.environ), format_))


def _whole_key(text: str) -> str:
    given = sys.stdin.readline().strip() if text == "-" else text
    if not given.startswith("vault_key_"):
        # Not repeated: it may be a secret of another kind.
        raise KbctlError(
            "vault_key_needed",
            "that is no vault key, and from a key id nobody can make it again: it was shown once, when it was"
            " issued",
            "kbctl env --issue --cap 500",
            Exit.USAGE,
        )
    return given


def _known(client: "Client", vault_key: str) -> "wire.IssuedKey":
    import msgspec

    from kbctl import wire

    found = client.key(vault_key)
    if found.status in ("revoked", "expired"):
        raise KbctlError(
            f"key_{found.status}",
            f"{found.key_id} is {found.status}, so no call would pass",
            "kbctl env --issue --cap 500",
            Exit.REFUSED,
        )
    plain = {name: getattr(found, name) for name in (field.name for field in msgspec.structs.fields(found))}
    return wire.IssuedKey(**plain, vault_key=vault_key, proxy_url=client.status().proxy_url)


def _written(lines: "Mapping[str, str]", format_: str) -> str:
    if format_ == "json":
        import json

        return json.dumps(lines, indent=2) + "\n"
    write = {"sh": _sh, "fish": _fish, "dotenv": _dotenv}[format_]
    return "".join(f"{write(name, value)}\n" for name, value in lines.items())


def _sh(name: str, value: str) -> str:
    from shlex import quote

    return f"export {name}={quote(value)}"


def _fish(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"set -gx {name} '{escaped}'"


def _dotenv(name: str, value: str) -> str:
    plain = all(each.isalnum() or each in "_-.,:/*" for each in value)
    return f"{name}={value}" if plain else f"{name}='{value}'"
