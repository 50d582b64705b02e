"""``audit``, ``explain``, ``resolve``: every attempt has a row, every row an end; all can be handed over."""

import os
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kbctl.commands import options, values
from kbctl.commands.command import Command, Noun
from kbctl.commands.key import one_format
from kbctl.errors import Exit, KbctlError

if TYPE_CHECKING:
    from kbctl.client import AuditFilter, Client

_FOLLOW_POLL_S = 0.5


def register(app: typer.Typer) -> None:
    """Add these commands."""
    noun = typer.Typer(cls=Noun, rich_markup_mode=None, invoke_without_command=True)
    noun.callback(options_metavar="[options]", subcommand_metavar="[COMMAND ...]")(audit)
    noun.command("verify", cls=Command)(verify)
    noun.command("checkpoint", cls=Command)(checkpoint)
    noun.command("export", cls=Command)(export)
    app.add_typer(noun, name="audit")
    for command in (explain, resolve, reconcile):
        app.command(cls=Command)(command)


_Label = Annotated[str | None, typer.Option(metavar="L", help="Only with this label segment.")]
_Tenant = Annotated[str | None, typer.Option(metavar="T", help="Only this tenant's.")]
_Key = Annotated[str | None, typer.Option(metavar="KEY", help="Only this key's.")]
_Vendor = Annotated[str | None, typer.Option(metavar="V", help="Only to this vendor.")]
_Denied = Annotated[bool, typer.Option("--denied", help="Only what was refused.")]
_Unknown = Annotated[bool, typer.Option("--unknown", help="Only what has no known outcome.")]
_Duplicates = Annotated[bool, typer.Option("--duplicates", help="Only suspected duplicates.")]


def audit(
    context: typer.Context,
    label: _Label = None,
    tenant: _Tenant = None,
    key: _Key = None,
    vendor: _Vendor = None,
    denied: _Denied = False,
    unknown: _Unknown = False,
    duplicates: _Duplicates = False,
    since: options.Since = None,
    start: options.Start = None,
    end: options.End = None,
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
      kbctl audit verify
    """
    if context.invoked_subcommand is not None:
        _nothing_before(context)
        return
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


def _nothing_before(context: typer.Context) -> None:
    """``audit --tenant acme export`` would export everything: what is said goes behind the command."""
    given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]  # type: ignore[union-attr]
    if given:
        command = f"kbctl audit {context.invoked_subcommand}"
        raise values.bad_value(f"options go behind {command}, not in front of it", f"{command} --help")


def verify(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="An exported file, which needs no daemon.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Only behind a checkpoint, or a file's last one."),
    ] = None,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Only what came since it was last verified.")
    ] = False,
    public_key: Annotated[
        str | None, typer.Option("--key", metavar="PUBLIC", help="Whose signature it must have.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Verify that every row still says what was recorded.

    Names the first row that does not, with exit status 5. With a FILE it
    verifies that alone.

    \b
    Example:
      kbctl audit verify
      kbctl audit verify --since checkpoints.txt
      kbctl audit verify audit.jsonl --key PUBLIC
    """
    if file is not None:
        if since is not None or incremental:
            raise values.bad_value(
                "--since and --incremental are not for a file", f"kbctl audit verify {file}"
            )
        _verify_file(Path(file), public_key, json)
        return
    from kbctl import render, wire
    from kbctl.client import Client

    if since is not None and incremental:
        raise values.bad_value("--since and --incremental both say where to begin", "--incremental")
    line = None if since is None else _checkpoint_of(since)
    with Client() as client, render.progress("verifying", "events") as bar:
        verdict = client.verify_audit(
            since=line, incremental=incremental, step=lambda step: bar(step.events, step.of)
        )
    finding = verdict.finding
    if finding is None and public_key is not None and verdict.public_key != public_key:
        raise KbctlError(
            "audit_key", f"the daemon signs with another key: {verdict.public_key}", "", Exit.INTEGRITY
        )
    if json:
        render.json_document(wire.encode(verdict))
    else:
        render.audit_verdict(verdict)
    if finding is not None:
        raise typer.Exit(Exit.INTEGRITY)


def _verify_file(path: Path, public_key: str | None, json: bool) -> None:
    import msgspec

    from kbctl import render
    from kbctl.export import verify_file

    with render.progress("verifying", "bytes") as bar:
        verdict = verify_file(path, public_key=public_key, step=bar)
    if json:
        told = {
            "finding": verdict.finding,
            "line": verdict.line,
            "rows": verdict.rows,
            "whole": verdict.whole,
            "filter": verdict.filter,
            "public_key": verdict.public_key,
            "checkpoint": verdict.checkpoint.line if verdict.checkpoint else None,
        }
        render.json_document(msgspec.json.encode(told))
    else:
        render.file_verdict(str(path), verdict)
    if verdict.finding is not None:
        raise typer.Exit(Exit.INTEGRITY)


def _checkpoint_of(text: str) -> str:
    """A checkpoint that was typed, or the last one of the file that was named."""
    from kbctl.checkpoint import BadCheckpointError, read_checkpoint

    example = "kbctl audit verify --since kbctl-checkpoint:1:..."
    lines = [text]
    if not text.lstrip().startswith("kbctl-checkpoint:"):
        try:
            with Path(text).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 4000))
                lines = file.read().decode("ascii", "replace").split("\n")
        except OSError:
            raise values.bad_value(f"{text[:60]!r} is neither a checkpoint nor a file", example) from None
    wrong: Exception | None = None
    for line in reversed(lines):
        if "kbctl-checkpoint:" in line:
            try:
                return read_checkpoint(line[line.index("kbctl-checkpoint:") :]).line
            except BadCheckpointError as error:
                wrong = wrong or error
    raise values.bad_value(str(wrong or "there is no checkpoint in that file"), example)


def checkpoint(json: options.Json = False) -> None:
    """Print a signed line of how far the audit has come.

    Kept elsewhere, it tells whether what was before it was changed or cut off:
    kbctl audit verify --since.

    \b
    Example:
      kbctl audit checkpoint >> /mnt/elsewhere/checkpoints
    """
    from kbctl import render
    from kbctl.client import Client

    with Client() as client:
        made = client.checkpoint()
        if json:
            render.json_document(client.body)
        else:
            render.checkpoint(made)


def export(
    form: Annotated[str, typer.Option("--format", metavar="jsonl|csv", help="How.")] = "jsonl",
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Where to, instead of stdout.")
    ] = None,
    label: _Label = None,
    tenant: _Tenant = None,
    key: _Key = None,
    vendor: _Vendor = None,
    denied: _Denied = False,
    unknown: _Unknown = False,
    duplicates: _Duplicates = False,
    since: options.Since = None,
    start: options.Start = None,
    end: options.End = None,
) -> None:
    """Write the audit as a file that verifies alone.

    \b
    Example:
      kbctl audit export --format csv -o audit.csv
      kbctl audit export --tenant acme --from 2026-11-01 -o acme.jsonl
      kbctl audit verify acme.jsonl
    """
    from kbctl.client import AuditFilter, Client

    values.choice("--format", form, ("jsonl", "csv"))
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
    )
    with Client() as client:
        pieces = client.export_audit(form, wanted)
        if output is None or output == "-":
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        from kbctl import render

        path = Path(output)
        beside = path.with_name(f"{path.name}.part")
        try:
            # Private, and in place only when it is whole.
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                for piece in pieces:
                    file.write(piece)
            beside.replace(path)
        except OSError as error:
            raise KbctlError(
                "file_unwritable",
                f"{path} can't be written: {(error.strerror or str(error)).lower()}",
                f"ls -ld {path.parent}",
                Exit.REFUSED,
            ) from None
        render.note(f"written: {path}; kbctl audit verify {path} verifies it")


def reconcile(
    vendor: Annotated[str, typer.Argument(metavar="VENDOR", help="Such as stripe.")],
    credential: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of whose account; the usual one if none.")
    ] = None,
    since: options.Since = None,
    start: options.Start = None,
    end: options.End = None,
    json: options.Json = False,
) -> None:
    """Compare the vendor's own list with our rows.

    Finds what was made around kbctl with the real key, what only our rows know,
    and amounts that differ. Exit status 5 when anything differs. Nothing is changed.

    \b
    Example:
      kbctl reconcile stripe --since 1d
    """
    from kbctl import render
    from kbctl.client import Client

    began, ended = values.window(since, start, end, datetime.now(UTC))
    with Client() as client:
        found = client.reconcile(vendor, credential=credential, start=began, end=ended)
        if json:
            render.json_document(client.body)
        else:
            render.reconciliation(found)
    if found.differences:
        raise typer.Exit(Exit.INTEGRITY)
