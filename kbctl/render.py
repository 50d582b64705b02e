"""Replies as a person or a program reads them: tables, plain columns, JSON, JSON lines, CSV.

What must stay true: stdout carries the answer and nothing else; colour, bars and panels appear only on a
terminal, and piped columns are never cut; what agents and vendors wrote passes through
:mod:`kbctl.neutral` on its way, in every format. The only importer of rich.
"""

import csv
import io
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.status import Status as Spinner
from rich.table import Table
from rich.text import Text

from kbctl import wire
from kbctl.neutral import neutral, neutral_json

_GAP: Final = 2
_BAR_CELLS = 12
_RED, _YELLOW, _GREEN, _DIM, _BOLD = "red", "yellow", "green", "dim", "bold"
_STATUS_STYLES = {"active": _GREEN, "frozen": _YELLOW, "revoked": _RED, "expired": _DIM}
_OUTCOME_STYLES = {"posted": _GREEN, "pending": _YELLOW, "unknown": _YELLOW, "voided": _DIM}


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    right: bool = False
    fold: int = 0
    """How narrow a long value may be folded; 0 for one that is never broken."""
    cut: int = 0
    """How narrow a long value may be cut; 0 for one that is never cut."""
    drop: int = 0
    """The column of the highest number goes first on a terminal too narrow for all; 0 stays."""
    terminal: bool = False
    """Left out when piped: bars."""


Cell = Text | str


# --- machines -------------------------------------------------------------------------------------


def json_document(body: bytes) -> None:
    """One JSON document as the daemon wrote it; indented where a person reads it."""
    if sys.stdout.isatty():
        body = msgspec.json.format(body, indent=2)
    _write(neutral_json(body.decode().rstrip("\n")) + "\n")


def json_array(pages: Iterable[bytes]) -> None:
    """Several JSON arrays as one."""
    json_document(msgspec.json.encode([row for page in pages for row in _rows(page)]))


def json_lines(pages: Iterable[bytes]) -> None:
    """The members of JSON arrays, one a line, each page as it comes."""
    for page in pages:
        for row in _rows(page):
            _write(neutral_json(bytes(row).decode().replace("\n", " ")) + "\n")
        sys.stdout.flush()


def csv_rows(pages: Iterable[Sequence[wire.Reply]], kind: type[wire.Reply]) -> None:
    """Messages of one kind as CSV: a header, then each page as it comes; lists and objects as JSON."""
    fields = [field.name for field in msgspec.structs.fields(kind)]
    _write(_csv_line(fields))
    for page in pages:
        for row in page:
            _write(_csv_line([_csv_cell(getattr(row, name)) for name in fields]))
        sys.stdout.flush()


def _rows(page: bytes) -> list[msgspec.Raw]:
    return msgspec.json.decode(page, type=list[msgspec.Raw])


def _csv_line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, list | dict):
        return neutral_json(wire.encode(value).decode())
    if not isinstance(value, str):
        return str(value)
    text = neutral(value)
    # A spreadsheet runs a cell that begins so, and agents choose what is in here.
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _write(text: str) -> None:
    sys.stdout.write(text)


# --- values ---------------------------------------------------------------------------------------


def usd(amount: Decimal | int | None) -> str:
    """``$1,234.50``; at least cents, and as many digits as the amount has."""
    if amount is None:
        return "-"
    text = f"{Decimal(amount):,f}"
    whole, _, fraction = text.partition(".")
    return f"${whole}.{fraction.rstrip('0').ljust(2, '0')}"


def moment(text: str | None) -> str:
    """A time of the wire, to the second."""
    if text is None:
        return "-"
    parsed = _parse(text)
    return neutral(text) if parsed is None else f"{parsed:%Y-%m-%d %H:%M:%S}Z"


def _short_moment(text: str) -> str:
    parsed = _parse(text)
    if parsed is None:
        return neutral(text)
    today = datetime.now(UTC).date()
    return f"{parsed:%H:%M:%S}" if parsed.date() == today else f"{parsed:%m-%d %H:%M}"


def _remaining(text: str | None) -> str:
    """How long until then, in the largest unit that says it."""
    if text is None:
        return "never"
    parsed = _parse(text)
    if parsed is None:
        return neutral(text)
    left = parsed - datetime.now(UTC)
    if left <= timedelta(0):
        return "ended"
    seconds = int(left.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"in {seconds // size}{unit}"
    return f"in {seconds}s"


def _parse(text: str) -> datetime | None:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed.astimezone(UTC) if parsed.tzinfo else None


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


# --- the terminal ---------------------------------------------------------------------------------


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # called while BrokenPipeError is handled; rich would exit by itself


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # rich would also believe FORCE_COLOR; a file is a file.
    return _Console(
        file=stream,
        force_terminal=stream.isatty(),
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


def _say(*parts: Cell | tuple[str, str], console: Console | None = None) -> None:
    (console or _console()).print(Text.assemble(*parts))


def say(text: str) -> None:
    """One line of the answer."""
    _say(neutral(text))


def note(text: str) -> None:
    """Something beside the answer, on stderr."""
    _say((neutral(text), _DIM), console=_console(stderr=True))


@contextmanager
def spinner(text: str, *, after_s: float = 1.0) -> Iterator[Callable[[], None]]:
    """Gives a function to call while waiting; it shows a spinner on a terminal once that takes long."""
    console = _console(stderr=True)
    wheel = Spinner(text, console=console)
    began = datetime.now(UTC)
    shown = False

    def turn() -> None:
        nonlocal shown
        if not shown and console.is_terminal and (datetime.now(UTC) - began).total_seconds() >= after_s:
            shown = True
            wheel.start()

    try:
        yield turn
    finally:
        if shown:
            wheel.stop()


def _table(columns: Sequence[_Column], rows: Sequence[Sequence[Cell]]) -> None:
    console = _console()
    texts = [[_text(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        _plain(columns, texts)
        return
    widths = _layout(columns, texts, console.width)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style=f"{_DIM} underline")
    for at, width in widths.items():
        table.add_column(
            columns[at].title,
            justify="right" if columns[at].right else "left",
            no_wrap=not columns[at].fold,
            overflow="fold" if columns[at].fold else "ellipsis",
            width=width,
        )
    for row in texts:
        table.add_row(*(row[at] for at in widths))
    needed = sum(width + _GAP for width in widths.values())
    console.width = max(needed, console.width)
    console.print(table, soft_wrap=False)


def _layout(columns: Sequence[_Column], rows: Sequence[Sequence[Text]], room: int) -> dict[int, int]:
    """Which columns are shown, and how wide. Money and ids are whole or absent: half a number is wrong."""
    natural = [
        max(len(column.title), *(row[at].cell_len for row in rows)) for at, column in enumerate(columns)
    ]
    least = [
        min(width, max(column.fold or column.cut, len(column.title))) if column.fold or column.cut else width
        for column, width in zip(columns, natural, strict=True)
    ]
    kept = list(range(len(columns)))
    while sum(least[at] + _GAP for at in kept) - _GAP > room:
        spare = max(kept, key=lambda at: columns[at].drop)
        if not columns[spare].drop:
            break
        kept.remove(spare)
    widths = {at: natural[at] for at in kept}
    # What is too much is taken from the columns that can give, the widest first.
    for at in sorted(kept, key=lambda at: least[at] - natural[at]):
        excess = sum(width + _GAP for width in widths.values()) - _GAP - room
        widths[at] = max(least[at], natural[at] - max(excess, 0))
    return widths


def _plain(columns: Sequence[_Column], rows: Sequence[Sequence[Text]]) -> None:
    kept = [at for at, column in enumerate(columns) if not column.terminal]
    lines = [[columns[at].title for at in kept], *([row[at].plain for at in kept] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(kept))]
    for line in lines:
        cells = [
            cell.rjust(width) if columns[at].right else cell.ljust(width)
            for at, cell, width in zip(kept, line, widths, strict=True)
        ]
        _write((" " * _GAP).join(cells).rstrip() + "\n")


def _text(cell: Cell) -> Text:
    return Text(neutral(cell)) if isinstance(cell, str) else cell


def _styled(text: str, style: str) -> Text:
    return Text(neutral(text), style=style)


def _facts(rows: Sequence[tuple[str, Cell]], *, indent: int = 2) -> None:
    """Names and values, the values under each other; long ones wrap under themselves."""
    console = _console()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        head = Text(" " * indent + name.ljust(width) + "  ", style=_DIM)
        body = _text(value)
        if not console.is_terminal:
            _write(head.plain + body.plain + "\n")
            continue
        room = max(console.width - len(head), 20)
        for at, line in enumerate(body.wrap(console, room)):
            line.rstrip()
            console.print(Text.assemble(head if at == 0 else " " * len(head), line))


def _bar(spent: Decimal, held: Decimal, cap: Decimal, cells: int = _BAR_CELLS) -> Text:
    """Spent, then held, against the cap: not full before the cap is, not empty once something is spent."""
    solid, shaded, free = ("█", "▒", "░") if _speaks_unicode() else ("#", "=", ".")
    used = min(spent + held, cap)
    total = int(cells * used / cap)
    if used and not total:
        total = 1
    first = round(total * spent / (spent + held)) if held else total
    style = _RED if used >= cap else _YELLOW if used * 5 >= cap * 4 else _GREEN
    return Text.assemble(
        (solid * first, style), (shaded * (total - first), style), (free * (cells - total), _DIM)
    )


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "ascii").lower().replace("-", "") in ("utf8", "utf16", "utf32")


# --- daemon ---------------------------------------------------------------------------------------


def up(status: wire.Status) -> None:
    """What a person needs after a start: where it is, what to know, what to do next."""
    mode = " with the sandbox: no real money moves" if status.sandbox else ""
    _say(Text.assemble(("kbctl is up", _BOLD), mode))
    rows: list[tuple[str, Cell]] = [
        ("proxy", status.proxy_url),
        ("secrets", status.keyring),
        ("home", status.home),
    ]
    rows += [("note", _styled(notice, _YELLOW)) for notice in status.notices]
    rows.append(("next", _styled(_next_command(status), _BOLD)))
    _facts(rows)


def _next_command(status: wire.Status) -> str:
    usable = [credential for credential in status.credentials if credential.available]
    if not usable:
        return "kbctl credential set stripe"
    return "kbctl keys" if status.keys_active else "kbctl issue --tenant acme --cap 500"


def daemon_status(status: wire.Status) -> None:
    """How the daemon is."""
    healthy = status.state == "serving"
    _say(
        Text.assemble(_styled(status.state, f"{_BOLD} {_GREEN if healthy else _RED}"), f", pid {status.pid}")
    )
    rows: list[tuple[str, Cell]] = [
        ("version", status.version),
        ("since", moment(status.started_at)),
        ("proxy", status.proxy_url),
        ("socket", status.socket),
        ("database", status.database),
        ("secrets", status.keyring),
    ]
    if status.sandbox:
        rows.append(("mode", _styled("sandbox: no real money moves", _YELLOW)))
    rows.append(("keys", f"{status.keys_active:,} active"))
    if not status.credentials:
        rows.append(("credential", _styled("none yet: kbctl credential set stripe", _YELLOW)))
    rows += [("credential", _credential_line(credential)) for credential in status.credentials]
    rows += [
        ("upstream", Text.assemble(neutral(f"{each.vendor} at {each.origin} "), ("INSECURE", _RED)))
        if each.insecure
        else ("upstream", f"{each.vendor} at {each.origin}")
        for each in status.upstreams
    ]
    rows.append(("in flight", _plural(status.in_flight, "call")))
    if status.unknown_calls:
        unknown = (
            f"{_plural(status.unknown_calls, 'call')} whose outcome nobody knows, "
            f"{usd(status.unknown_usd)} held: kbctl audit --unknown"
        )
        rows.append(("unknown", _styled(unknown, _YELLOW)))
    rows += [("note", _styled(notice, _YELLOW)) for notice in status.notices]
    _facts(rows)


def down(in_flight: int) -> None:
    """What the end of the daemon met."""
    drained = f"; {_plural(in_flight, 'call')} in flight when it was asked" if in_flight else ""
    say(f"kbctl is down{drained}")


def log_line(line: str) -> None:
    """One line of the log; it holds what agents sent."""
    _write(neutral(line.replace("\t", "    ")) + "\n")


# --- credentials ----------------------------------------------------------------------------------


def credential_set(credential: wire.Credential) -> None:
    """What became of a secret."""
    verb = f"rotated to version {credential.version}" if credential.version > 1 else "stored"
    say(f"{credential.name}: {verb}, for {credential.vendor}")
    if not credential.available:
        note(f"but it cannot be used yet: {credential.problem or 'no reason given'}")


def credentials(found: Sequence[wire.Credential]) -> None:
    """The credentials, without the secrets."""
    if not found:
        note("no credentials yet: kbctl credential set stripe")
        return
    columns = [
        _Column("NAME"),
        _Column("VENDOR"),
        _Column("VERSION", right=True),
        _Column("SET"),
        _Column("USABLE", fold=20),
    ]
    _table(
        columns,
        [(each.name, each.vendor, str(each.version), moment(each.set_at), _usable(each)) for each in found],
    )


def _usable(credential: wire.Credential) -> Text:
    if credential.available:
        return _styled("yes", _GREEN)
    return _styled(f"no: {credential.problem or 'no reason given'}", _RED)


def _credential_line(credential: wire.Credential) -> Text:
    line = Text(neutral(f"{credential.name} (version {credential.version})"))
    if not credential.available:
        line.append_text(_styled(f" {credential.problem or 'cannot be used'}", _RED))
    return line


# --- keys -----------------------------------------------------------------------------------------


def issued(key: wire.IssuedKey, environment: Mapping[str, str]) -> None:
    """A new key, once. Without side borders, so that every line can be copied whole."""
    console = _console()
    lines = Text(neutral(key.vault_key), style=_BOLD, no_wrap=True, overflow="ignore")
    title = _styled(f"vault key {key.key_id}, shown only now", _BOLD)
    console.print(
        Panel(lines, title=title, title_align="left", box=box.HORIZONTALS, padding=(0, 0)), soft_wrap=False
    )
    _facts(
        [("may spend", _limits(key)), ("until", f"{moment(key.expires_at)} ({_remaining(key.expires_at)})")]
    )
    _say("\nFor the agent's environment:\n")
    for name, value in environment.items():
        _write(f"export {name}={shlex.quote(value)}\n")
    if "STRIPE_BASE_URL" in environment:
        _say("\nIn Python:\n")
        _write(
            "import os, stripe\n"
            'stripe.api_key = os.environ["STRIPE_API_KEY"]\n'
            'stripe.api_base = os.environ["STRIPE_BASE_URL"]\n'
        )


def _limits(key: wire.Key) -> str:
    caps = [
        (key.daily_usd_cap, "a day (UTC)"),
        (key.total_usd_cap, "in all"),
        (key.call_usd_cap, "a call"),
    ]
    said = [f"{usd(cap)} {span}" for cap, span in caps if cap is not None]
    return f"{', '.join(said) or 'without a cap'} on {', '.join(key.vendors)}"


def keys(found: Sequence[wire.Key]) -> None:
    """The keys, each with its spend against its cap."""
    if not found:
        note("no keys match")
        return
    columns = [
        _Column("KEY"),
        _Column("TENANT", cut=8),
        _Column("STATUS"),
        _Column("USED", terminal=True, drop=1),
        _Column("SPENT", right=True),
        _Column("HELD", right=True),
        _Column("CAP", right=True),
        _Column("EXPIRES", drop=2),
        _Column("VENDORS", cut=10, drop=3),
        _Column("LABEL", fold=16, drop=4),
    ]
    _table(columns, [_key_row(key) for key in found])


def _key_row(key: wire.Key) -> Sequence[Cell]:
    spent, held, cap, span = _tightest(key)
    used: Cell = "" if cap is None else _bar(spent, held, cap, 8)
    return (
        key.key_id,
        key.tenant or "-",
        _styled(key.status, _STATUS_STYLES.get(key.status, "")),
        used,
        usd(spent),
        usd(held),
        "none" if cap is None else f"{usd(cap)}{span}",
        _remaining(key.expires_at) if key.status in ("active", "frozen") else "-",
        ",".join(key.vendors),
        key.agent_run_label or "-",
    )


def _tightest(key: wire.Key) -> tuple[Decimal, Decimal, Decimal | None, str]:
    """Spend, hold and cap of the limit that this key will meet first."""
    total = (key.total_spent_usd, key.total_held_usd, key.total_usd_cap, " total")
    today = (key.spent_usd, key.held_usd, key.daily_usd_cap, "")
    if key.total_usd_cap is None:
        return today
    if key.daily_usd_cap is None:
        return total
    left_in_all = key.total_usd_cap - key.total_spent_usd - key.total_held_usd
    return total if left_in_all < key.daily_usd_cap - key.spent_usd - key.held_usd else today


def key(found: wire.Key) -> None:
    """All of one key."""
    _say(
        Text.assemble(
            _styled(found.key_id, _BOLD), "  ", _styled(found.status, _STATUS_STYLES.get(found.status, ""))
        )
    )
    allowed = found.allowed_endpoints
    rows: list[tuple[str, Cell]] = [
        ("tenant", found.tenant or "-"),
        ("label", found.agent_run_label or "-"),
        ("vendors", ", ".join(found.vendors)),
        ("today", _spend(found.spent_usd, found.held_usd, found.daily_usd_cap)),
        ("in all", _spend(found.total_spent_usd, found.total_held_usd, found.total_usd_cap)),
    ]
    if found.call_usd_cap is not None:
        rows.append(("a call", f"up to {usd(found.call_usd_cap)}"))
    if allowed is None:
        rows.append(("may call", "every operation whose cost is known, except privileged ones"))
    rows += [("may call", entry) for entry in allowed or ()]
    rows += [("may not", entry) for entry in found.denied_endpoints]
    rows += [
        ("credential", found.credential or "the vendor's default"),
        ("ends with", f"...{found.ending}"),
        ("created", moment(found.created_at)),
    ]
    expires = moment(found.expires_at) if found.expires_at else "never"
    live = found.expires_at and found.status in ("active", "frozen")
    rows.append(("expires", f"{expires} ({_remaining(found.expires_at)})" if live else expires))
    if found.revoked_at:
        rows.append(("revoked", _styled(moment(found.revoked_at), _RED)))
    rows += [("metadata", f"{name}={value}") for name, value in found.metadata.items()]
    _facts(rows)


def _spend(spent: Decimal, held: Decimal, cap: Decimal | None) -> Text:
    words = f"{usd(spent)} spent, {usd(held)} held"
    if cap is None:
        return Text(f"{words}, no cap")
    said = f"{words} of {usd(cap)}"
    return Text.assemble(_bar(spent, held, cap), "  ", said) if sys.stdout.isatty() else Text(said)


def revoked(reply: wire.RevokeReply) -> None:
    """What was stopped, and what was already on its way."""
    for each in reply.revoked:
        spent = f"{usd(each.spent_usd)} spent and {usd(each.held_usd)} held today"
        _say(
            _styled("revoked ", _RED),
            neutral(f"{each.key_id} ({each.tenant or each.agent_run_label or '-'}): {spent}"),
        )
    for key_id in reply.already:
        say(f"{key_id} had been revoked before")
    if not reply.revoked and not reply.already:
        say("no key matched, so nothing was revoked")
    elif reply.in_flight:
        calls = _plural(reply.in_flight, "call")
        say(f"{calls} for {usd(reply.in_flight_usd)} had already left; what they cost stays counted")
    elif reply.revoked:
        say("no call was in flight")


# --- audit ----------------------------------------------------------------------------------------


_AUDIT_COLUMNS = (
    _Column("UTC"),
    _Column("KEY"),
    _Column("TENANT", cut=8, drop=1),
    _Column("CALL", fold=20),
    _Column("ASKED", right=True),
    _Column("COUNTED", right=True, drop=2),
    _Column("RESULT"),
    _Column("REASON", fold=24, drop=3),
)


def audit(calls: Sequence[wire.Call]) -> None:
    """Rows of the audit."""
    if not calls:
        note("no calls match")
        return
    _table(_AUDIT_COLUMNS, [_call_row(call) for call in calls])


def audit_line(call: wire.Call) -> None:
    """One row by itself, for a list that goes on."""
    when, key_id, _, what, asked, counted, result, reason = _call_row(call)
    line = Text.assemble(
        (f"{when}  ", _DIM),
        _text(key_id),
        "  ",
        _text(what),
        f"  asked {asked}, counted {counted}  ",
        _text(result),
    )
    if reason:
        line.append_text(_styled(f"  {_text(reason).plain}", _DIM))
    _say(line)
    sys.stdout.flush()


def _call_row(call: wire.Call) -> Sequence[Cell]:
    return (
        _short_moment(call.timestamp),
        call.vault_key_id or "-",
        call.tenant or "-",
        f"{call.method or '?'} {call.endpoint or '?'}",
        usd(call.requested_usd),
        usd(call.amount_usd),
        _result(call),
        call.reason or "",
    )


def _result(call: wire.Call) -> Text:
    if call.policy_check_result != "allowed":
        more = f" x{call.folded + 1:,}" if call.folded else ""
        return _styled(call.policy_check_result + more, _RED)
    again = " again" if call.replay_of else ""
    return _styled(call.outcome + again, _OUTCOME_STYLES.get(call.outcome, ""))


# --- the demo -------------------------------------------------------------------------------------


def scene(number: int, text: str) -> None:
    """The heading of a part of the story."""
    _say("")
    _say(Text.assemble((f"{number}. ", _DIM), (neutral(text), _BOLD)))
    sys.stdout.flush()


def told(who: str, text: str, *, style: str = "") -> None:
    """A line of the story: who, and what happened."""
    _facts([(who.ljust(8), _styled(text, style))], indent=3)
    sys.stdout.flush()


def verdict(holds: bool, text: str) -> None:
    """What was expected, and whether it is so."""
    _facts([("ok" if holds else "FAILED", _styled(text, _GREEN if holds else f"{_BOLD} {_RED}"))], indent=3)
    sys.stdout.flush()


def prologue(status: wire.Status) -> None:
    """What is about to be seen."""
    _say(
        ("kbctl demo", _BOLD),
        f": a pretend Stripe, a daemon at {neutral(status.proxy_url)}, a throw-away home",
    )


def moral(checks: int, seconds: float) -> None:
    """The end of the story, and how to begin for real."""
    _say("")
    _say(
        (f"All {checks} expectations held", f"{_BOLD} {_GREEN}"),
        f", in {seconds:.1f} s. The demo's home is gone again.",
    )
    _say("\nFor real:\n")
    rows = [
        ("kbctl up", "start the daemon"),
        ("kbctl credential set stripe", "give it the real key, typed unseen"),
        ("kbctl issue --tenant acme --cap 500", "a key for the agent"),
    ]
    for command, why in rows:
        _say((f"  {command.ljust(38)}", _BOLD), (why, _DIM))
