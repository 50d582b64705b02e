"""The options that say what a new key may do, for every command that issues one."""

import inspect
from collections.abc import Callable
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kbctl.commands import options, values

if TYPE_CHECKING:
    from kbctl import wire


def said(
    tenant: Annotated[str | None, typer.Option(metavar="T", help="Whose agent it is.")] = None,
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
    policy: Annotated[
        str | None, typer.Option(metavar="P", help="Its limits; what else is said may only tighten them.")
    ] = None,
    override: Annotated[
        bool, typer.Option("--override", help="Let what else is said widen the policy.")
    ] = False,
    parent: Annotated[
        str | None, typer.Option(metavar="KEY", help="Derive it from this key, within its limits.")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="L", help="What to find its calls by.")] = None,
    meta: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Metadata of every row. Repeatable.")
    ] = None,
    stamp: options.Stamp = False,
    credential: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which real key, where a vendor has several.")
    ] = None,
) -> dict[str, Any]:
    """What was said, by the field of the request."""
    from kbctl import limits

    wanted = limits.from_options(
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
    identity = {
        "tenant": tenant,
        "agent_run_label": label,
        "metadata": values.pairs("--meta", meta) if meta else None,
        "credential": credential,
        "policy": policy,
        "override": override or None,
        "parent_vault_key": parent,
    }
    return wanted | {name: value for name, value in identity.items() if value is not None}


def issues(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; they arrive in its ``**typed``, for ``said``."""
    ours = inspect.signature(said).parameters.values()
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    first = [parameter for parameter in own if parameter.default is inspect.Parameter.empty]
    last = [parameter for parameter in own if parameter not in first]
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*first, *ours, *last)
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def request(fields: dict[str, Any], verb: str, tail: str = "") -> "wire.IssueRequest":
    """The request; complains in words of the command that was typed."""
    from kbctl import limits, wire

    tenant = f"--tenant {quote(fields['tenant'])} " if "tenant" in fields else ""
    limits.check_said(
        fields,
        f"kbctl {verb} {tenant}--cap 500{tail}",
        f"kbctl {verb} {tenant}--policy free --cap 500 --override{tail}",
    )
    return wire.IssueRequest(**fields)
