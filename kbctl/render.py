"""Replies as a person or a program reads them: tables, plain columns, JSON, JSON lines, CSV.

What must stay true: stdout carries the answer and nothing else; colour, bars and panels appear only on a
terminal, and piped columns are never cut; what agents and vendors wrote passes through
:mod:`kbctl.neutral` on its way, in every format. The only importer of rich, and only where it draws on a
terminal: importing it takes longer than asking the daemon.
"""

import csv
import io
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import msgspec

from kbctl import __version__, wire
from kbctl.neutral import neutral, neutral_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status as Spinner
    from rich.text import Text

    from kbctl.export import FileVerdict

_GAP: Final = 2
_BAR_CELLS = 12
_RED, _YELLOW, _GREEN, _DIM, _BOLD = "red", "yellow", "green", "dim", "bold"
_STATUS_STYLES = {"active": _GREEN, "paused": _YELLOW, "frozen": _YELLOW, "revoked": _RED, "expired": _DIM}
_LIVE = ("active", "paused", "frozen")
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


@dataclass(frozen=True, slots=True)
class Words:
    """Text in several styles, which rich draws on a terminal and nobody sees elsewhere."""

    parts: tuple[tuple[str, str], ...]
    """Each with its style."""
    style: str = ""
    """Of all of it, and of the room around it in a table."""

    @property
    def plain(self) -> str:
        return "".join(text for text, _ in self.parts)


Cell = Words | str

_POLICY_FIELDS: Final = [field.name for field in msgspec.structs.fields(wire.Limits)]
_POLICY_COLUMNS: Final = ("daily_usd_cap", "total_usd_cap", "call_usd_cap", "daily_requests", "rate")
_CAN_BE_NONE: Final = (*_POLICY_COLUMNS, "loop", "duplicates")
_GUIDE: Final = 4  # cells of a branch of a tree
_LABEL_LEAST: Final = 10


# --- machines -------------------------------------------------------------------------------------


def json_document(body: bytes) -> None:
    """One JSON document as the daemon wrote it; indented where a person reads it."""
    if sys.stdout.isatty():
        body = msgspec.json.format(body, indent=2)
    _write(neutral_json(body.decode().rstrip("\n")) + "\n")


def json_array(pages: Iterable[bytes]) -> None:
    """Several JSON arrays as one."""
    json_document(msgspec.json.encode([row for page in pages for row in _rows(page)]))


def json_joined(pages: Iterable[bytes], member: str) -> None:
    """Several documents ``{member: [...]}`` as one; a single one as the daemon wrote it."""
    first, *more = pages
    if not more:
        json_document(first)
        return
    joined = msgspec.json.decode(first, type=dict[str, msgspec.Raw])
    rows = [row for page in (first, *more) for row in _rows(page, member)]
    json_document(msgspec.json.encode({**joined, member: rows}))


def json_lines(pages: Iterable[bytes], member: str | None = None) -> None:
    """The rows of JSON arrays, or of the arrays named ``member``, one a line, each page as it comes."""
    for page in pages:
        for row in _rows(page, member):
            _json_line(bytes(row))
        sys.stdout.flush()


def json_records(body: bytes, *, lines: bool) -> None:
    """The rows of a query as objects, their values as the daemon wrote them."""
    found = msgspec.json.decode(body, type=_Records)
    names = _distinct(found.columns)
    records = [dict(zip(names, row, strict=True)) for row in found.rows]
    if not lines:
        json_document(msgspec.json.encode(records))
        return
    for record in records:
        _json_line(msgspec.json.encode(record))


def _json_line(row: bytes) -> None:
    _write(neutral_json(row.decode().replace("\n", " ")) + "\n")


class _Records(msgspec.Struct):
    columns: list[str]
    rows: list[list[msgspec.Raw]]


def _distinct(columns: Sequence[str]) -> list[str]:
    """The names of columns, the second ``a`` as ``a_2``: an object holds each name once."""
    names: list[str] = []
    for column in columns:
        name, again = column, 2
        while name in names:
            name, again = f"{column}_{again}", again + 1
        names.append(name)
    return names


def csv_rows(pages: Iterable[Sequence[wire.Reply]], kind: type[wire.Reply]) -> None:
    """Messages of one kind as CSV: a header, then each page as it comes; lists and objects as JSON."""
    fields = [field.name for field in msgspec.structs.fields(kind)]
    _write(_csv_line(fields))
    for page in pages:
        for row in page:
            _write(_csv_line([_csv_cell(getattr(row, name)) for name in fields]))
        sys.stdout.flush()


def csv_records(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """The rows of a query as CSV."""
    _write(_csv_line([_csv_cell(column) for column in columns]))
    for row in rows:
        _write(_csv_line([_csv_cell(value) for value in row]))


def _rows(page: bytes, member: str | None = None) -> list[msgspec.Raw]:
    if member is not None:
        page = bytes(msgspec.json.decode(page, type=dict[str, msgspec.Raw])[member])
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


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> None:
            raise  # called while BrokenPipeError is handled; rich would exit by itself

    # rich would also believe FORCE_COLOR; a file is a file.
    return Ours(
        file=_stream(stderr=stderr),
        force_terminal=_stream(stderr=stderr).isatty(),
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


def _stream(*, stderr: bool = False) -> TextIO:
    return sys.stderr if stderr else sys.stdout


def _say(*parts: Cell | tuple[str, str], stderr: bool = False) -> None:
    line = _joined(*parts)
    stream = _stream(stderr=stderr)
    if stream.isatty():
        _console(stderr=stderr).print(_drawn(line))
    else:
        stream.write(line.plain + "\n")
        stream.flush()


def _joined(*parts: Cell | tuple[str, str]) -> Words:
    pieces: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, Words):
            pieces += [(text, style or part.style) for text, style in part.parts]
        else:
            pieces.append((part, "") if isinstance(part, str) else part)
    return Words(tuple(pieces))


def _drawn(words: Words) -> "Text":
    from rich.text import Text

    text = Text(style=words.style)
    for part, style in words.parts:
        text.append(part, style or None)
    return text


def say(text: str) -> None:
    """One line of the answer."""
    _say(neutral(text))


def note(text: str) -> None:
    """Something beside the answer, on stderr."""
    _say((neutral(text), _DIM), stderr=True)


@contextmanager
def spinner(text: str, *, after_s: float = 1.0) -> Iterator[Callable[[], None]]:
    """Gives a function to call while waiting; it shows a spinner on a terminal once that takes long."""
    began = datetime.now(UTC)
    wheel: Spinner | None = None

    def turn() -> None:
        nonlocal wheel
        if wheel is None and sys.stderr.isatty() and (datetime.now(UTC) - began).total_seconds() >= after_s:
            wheel = _spinner(text)
            wheel.start()

    try:
        yield turn
    finally:
        if wheel is not None:
            wheel.stop()


def _spinner(text: str) -> "Spinner":
    from rich.status import Status as Spinner

    return Spinner(text, console=_console(stderr=True))


@contextmanager
def progress(text: str, unit: str = "", *, after_s: float = 0.5) -> Iterator[Callable[..., None]]:
    """Gives a function of ``(done, of)`` and a new text: a bar, on a terminal, once that takes long."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    began = datetime.now(UTC)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + unit),
        TimeRemainingColumn(),
        console=_console(stderr=True),
        transient=True,
        disable=False,
    ) as bar:
        task = bar.add_task(text, total=None, visible=False)

        def turn(done: int, of: int, stage: str = text) -> None:
            late = (datetime.now(UTC) - began).total_seconds() >= after_s
            bar.update(task, completed=done, total=of, description=stage, visible=late)

        yield turn


def _table(columns: Sequence[_Column], rows: Sequence[Sequence[Cell]]) -> None:
    words = [[_words(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _plain(columns, words)
        return
    from rich.table import Table

    console = _console()
    texts = [[_drawn(cell) for cell in row] for row in words]
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


def _natural(columns: Sequence[_Column], rows: "Sequence[Sequence[Text]]") -> list[int]:
    return [max(len(column.title), *(row[at].cell_len for row in rows)) for at, column in enumerate(columns)]


def _least(columns: Sequence[_Column], rows: "Sequence[Sequence[Text]]") -> list[int]:
    """How narrow each column can be, with its gap."""
    return [
        (min(width, max(each.fold or each.cut, len(each.title))) if each.fold or each.cut else width) + _GAP
        for each, width in zip(columns, _natural(columns, rows), strict=True)
    ]


def _layout(columns: Sequence[_Column], rows: "Sequence[Sequence[Text]]", room: int) -> dict[int, int]:
    """Which columns are shown, and how wide. Money and ids are whole or absent: half a number is wrong."""
    natural = _natural(columns, rows)
    least = [width - _GAP for width in _least(columns, rows)]
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


def _plain(columns: Sequence[_Column], rows: Sequence[Sequence[Words]]) -> None:
    kept = [at for at, column in enumerate(columns) if not column.terminal]
    lines = [[columns[at].title for at in kept], *([row[at].plain for at in kept] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(kept))]
    for line in lines:
        cells = [
            cell.rjust(width) if columns[at].right else cell.ljust(width)
            for at, cell, width in zip(kept, line, widths, strict=True)
        ]
        _write((" " * _GAP).join(cells).rstrip() + "\n")


def _words(cell: Cell) -> Words:
    return _styled(cell, "") if isinstance(cell, str) else cell


def _styled(text: str, style: str) -> Words:
    return Words(((neutral(text), ""),), style)


def _facts(rows: Sequence[tuple[str, Cell]], *, indent: int = 2) -> None:
    """Names and values, the values under each other; long ones wrap under themselves."""
    width = max(len(name) for name, _ in rows)
    heads = [" " * indent + name.ljust(width) + "  " for name, _ in rows]
    if not sys.stdout.isatty():
        for plain, (_, value) in zip(heads, rows, strict=True):
            _write(plain + _words(value).plain + "\n")
        return
    from rich.text import Text

    console = _console()
    for plain, (_, value) in zip(heads, rows, strict=True):
        head = Text(plain, style=_DIM)
        body = _drawn(_words(value))
        room = max(console.width - len(head), 20)
        for at, line in enumerate(body.wrap(console, room)):
            line.rstrip()
            console.print(Text.assemble(head if at == 0 else " " * len(head), line))


def _bar(spent: Decimal, held: Decimal, cap: Decimal, cells: int = _BAR_CELLS) -> Words:
    """Spent, then held, against the cap: not full before the cap is, not empty once something is spent."""
    solid, shaded, free = ("█", "▒", "░") if _speaks_unicode() else ("#", "=", ".")
    used = min(spent + held, cap)
    total = int(cells * used / cap)
    if used and not total:
        total = 1
    first = round(total * spent / (spent + held)) if held else total
    style = _RED if used >= cap else _YELLOW if used * 5 >= cap * 4 else _GREEN
    return _joined((solid * first, style), (shaded * (total - first), style), (free * (cells - total), _DIM))


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "ascii").lower().replace("-", "") in ("utf8", "utf16", "utf32")


# --- daemon ---------------------------------------------------------------------------------------


def up(status: wire.Status) -> None:
    """What a person needs after a start: where it is, what to know, what to do next."""
    mode = " with the sandbox: no real money moves" if status.sandbox else ""
    _say(_joined(("kbctl is up", _BOLD), mode))
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
    _say(_joined(_styled(status.state, f"{_BOLD} {_GREEN if healthy else _RED}"), f", pid {status.pid}"))
    rows: list[tuple[str, Cell]] = [
        ("version", _versions(status.version)),
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
        ("upstream", _joined(neutral(f"{each.vendor} at {each.origin} "), ("INSECURE", _RED)))
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
    rows.append(("audit key", status.audit_key or _styled("not read yet", _YELLOW)))
    rows += [("note", _styled(notice, _YELLOW)) for notice in status.notices]
    _facts(rows)


def _versions(daemon: str) -> Cell:
    if daemon == __version__:
        return daemon
    return _styled(f"{daemon}, and this command is {__version__}: kbctl down && kbctl up", _YELLOW)


def down(in_flight: int) -> None:
    """What the end of the daemon met."""
    drained = f"; {_plural(in_flight, 'call')} in flight when it was asked" if in_flight else ""
    say(f"kbctl is down{drained}")


def backup(state: wire.BackupState) -> None:
    """What a backup holds, and how it comes back."""
    _say(_joined(("backed up", _BOLD), f" to {neutral(state.path)}"))
    rows: list[tuple[str, Cell]] = [("size", f"{state.bytes:,} bytes, looked through")]
    if state.holds is not None:
        rows += _contents(state.holds)
    rows.append(("back", f"kbctl down && kbctl restore {shlex.quote(neutral(state.path))}"))
    _facts(rows)


def restored(done: wire.Restored) -> None:
    """What was put in place, how that is known, and what to do next."""
    _say(_joined(("restored", _BOLD), f" {neutral(done.file)}"))
    rows: list[tuple[str, Cell]] = [
        ("proved", f"every page, row and index looked through; all {done.bytes:,} bytes are in place"),
        ("sha256", done.sha256),
    ]
    if done.holds is not None:
        rows += _contents(done.holds)
    rows.append(("kept", f"what was here: {neutral(done.kept)}" if done.kept else "nothing was here before"))
    if done.must_accept:
        lost = f"{_plural(done.calls_behind, 'call')} and {_plural(done.changes_behind, 'change')}"
        what = f"it is older than what was recorded here, by {lost}"
        if not done.calls_behind and not done.changes_behind:
            what = "nothing here remembers how far the database had come, so it may be older"
        rows.append(("older", _styled(f"{what}; to serve it all the same freezes every live key", _YELLOW)))
    rows.append(("next", _styled("kbctl up --accept-rollback" if done.must_accept else "kbctl up", _BOLD)))
    _facts(rows)


def _contents(holds: wire.DatabaseContents) -> list[tuple[str, Cell]]:
    newest = f", the newest of {moment(holds.newest)}" if holds.newest else ""
    return [
        ("calls", f"{holds.calls:,}, up to number {holds.last_call:,}{newest}"),
        ("keys", f"{holds.keys:,}, {holds.keys_live:,} of them live"),
        ("schema", f"{holds.schema}, after {_plural(holds.changes, 'change')}"),
    ]


def service_installed(path: Path, commands: Sequence[str]) -> None:
    """Where the file is, and what makes the service manager start it."""
    _say(_joined(("written", _BOLD), f" {neutral(str(path))}"))
    _facts([("next", _styled(command, _BOLD)) for command in commands])


def service_uninstalled(path: Path, commands: Sequence[str]) -> None:
    """What still runs until the service manager is told."""
    _say(_joined(("removed", _BOLD), f" {neutral(str(path))}"))
    _facts([("next", _styled(command, _BOLD)) for command in commands])


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


def _usable(credential: wire.Credential) -> Words:
    if credential.available:
        return _styled("yes", _GREEN)
    return _styled(f"no: {credential.problem or 'no reason given'}", _RED)


def _credential_line(credential: wire.Credential) -> Words:
    line = _styled(f"{credential.name} (version {credential.version})", "")
    if credential.available:
        return line
    return _joined(line, _styled(f" {credential.problem or 'cannot be used'}", _RED))


# --- keys -----------------------------------------------------------------------------------------


def issued(key: wire.IssuedKey, environment: Mapping[str, str]) -> None:
    """A new key, once. Without side borders, so that every line can be copied whole."""
    _panel(key.vault_key, f"vault key {key.key_id}, shown only now")
    until = moment(key.expires_at) + f" ({_remaining(key.expires_at)})" if key.expires_at else "revoked"
    rows: list[tuple[str, Cell]] = [("may spend", _limits(key)), *_rules(key), ("until", until)]
    _facts(rows)
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


def _panel(secret: str, title: str) -> None:
    from rich import box
    from rich.panel import Panel
    from rich.text import Text

    line = Text(neutral(secret), style=_BOLD, no_wrap=True, overflow="ignore")
    heading = _drawn(_styled(title, _BOLD))
    framed = Panel(line, title=heading, title_align="left", box=box.HORIZONTALS, padding=(0, 0))
    _console().print(framed, soft_wrap=False)


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
    return (
        key.key_id,
        key.tenant or "-",
        _status(key.status),
        *_usage(*_tightest(key)),
        _remaining(key.expires_at) if key.status in _LIVE else "-",
        ",".join(key.vendors),
        key.agent_run_label or "-",
    )


def _status(status: str) -> Words:
    return _styled(status, _STATUS_STYLES.get(status, ""))


def _usage(spent: Decimal, held: Decimal, cap: Decimal | None, span: str = "") -> Sequence[Cell]:
    """The cells USED, SPENT, HELD and CAP."""
    return (
        "" if not cap else _bar(spent, held, cap, 8),
        usd(spent),
        usd(held),
        "none" if cap is None else f"{usd(cap)}{span}",
    )


def _tightest(key: wire.Key | wire.Tenant) -> tuple[Decimal, Decimal, Decimal | None, str]:
    """Spend, hold and cap of the limit that this key or tenant will meet first."""
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
    _say(_joined(_styled(found.key_id, _BOLD), "  ", _status(found.status)))
    allowed = found.allowed_endpoints
    rows: list[tuple[str, Cell]] = []
    if found.stopped_because:
        rows.append(("because", _styled(found.stopped_because, _YELLOW)))
    if found.parent_key_id:
        rows.append(("parent", found.parent_key_id))
    if found.policy:
        rows.append(("policy", found.policy))
    rows += [
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
    rows += _rules(found)
    rows += [
        ("credential", found.credential or "the vendor's default"),
        ("ends with", f"...{found.ending}"),
        ("created", moment(found.created_at)),
    ]
    expires = moment(found.expires_at) if found.expires_at else "never"
    live = found.expires_at and found.status in _LIVE
    rows.append(("expires", f"{expires} ({_remaining(found.expires_at)})" if live else expires))
    if found.revoked_at:
        rows.append(("revoked", _styled(moment(found.revoked_at), _RED)))
    rows += [("metadata", f"{name}={value}") for name, value in found.metadata.items()]
    _facts(rows)


def _rules(key: wire.Key) -> Sequence[tuple[str, Cell]]:
    """What a key is held to beside money, endpoints and time."""
    rows: list[tuple[str, Cell]] = [("only if", rule) for rule in key.param_rules]
    if key.daily_requests is not None:
        rows.append(("requests", f"{key.requests_today:,} of {key.daily_requests:,} today"))
    if key.rate:
        rows.append(("rate", key.rate))
    if key.loop:
        rows.append(("loop", f"the same request {key.loop}, then {key.on_loop or 'deny'}"))
    if key.duplicates:
        action, _, window = key.duplicates.partition("/")
        rows.append(("duplicates", f"{action} what spends just as another call did within {window}"))
    if key.stamp:
        rows.append(("stamp", "key and run are written into the vendor's metadata"))
    return rows


def _spend(spent: Decimal, held: Decimal, cap: Decimal | None) -> Words:
    words = f"{usd(spent)} spent, {usd(held)} held"
    if cap is None:
        return _styled(f"{words}, no cap", "")
    said = f"{words} of {usd(cap)}"
    return _joined(_bar(spent, held, cap), "  ", said) if sys.stdout.isatty() else _styled(said, "")


def key_tree(family: wire.KeyTree) -> None:
    """A key and what was derived from it, to any depth."""
    if not sys.stdout.isatty():
        open_ones = [(family, 0)]
        while open_ones:
            node, depth = open_ones.pop()
            line, label = _tree_line(node.key)
            _write("  " * depth + line.plain + label.plain + "\n")
            open_ones += [(child, depth + 1) for child in reversed(node.children)]
        return
    from rich.tree import Tree

    console = _console()
    root = Tree(_tree_text(family.key, console.width), guide_style=_DIM)
    branches = [(family, root, 1)]
    needed = console.width
    while branches:
        node, branch, depth = branches.pop(0)
        for child in node.children:
            text = _tree_text(child.key, console.width - _GUIDE * depth)
            needed = max(needed, text.cell_len + _GUIDE * depth)
            branches.append((child, branch.add(text), depth + 1))
    # Money and ids are whole: what is too wide runs over, as in a table.
    console.width = needed
    console.print(root, soft_wrap=False)


def _tree_line(key: wire.Key) -> tuple[Words, Words]:
    """What must be whole, and the label."""
    spent, held, cap, span = _tightest(key)
    line = _joined(
        _styled(key.key_id, _BOLD),
        "  ",
        _status(key.status),
        f"  {usd(spent)} spent, {usd(held)} held of " if held else f"  {usd(spent)} spent of ",
        "no cap" if cap is None else f"{usd(cap)}{span}",
    )
    return line, _styled(f"  {key.agent_run_label}" if key.agent_run_label else "", _DIM)


def _tree_text(key: wire.Key, room: int) -> "Text":
    """Both on one line of a terminal, the label cut to what is left."""
    line, label = (_drawn(words) for words in _tree_line(key))
    line.no_wrap = True
    left = room - line.cell_len
    if left < _LABEL_LEAST:
        return line
    label.truncate(left, overflow="ellipsis")
    return line.append_text(label)


def revoked(reply: wire.RevokeReply) -> None:
    """What was stopped, and what was already on its way."""
    for each in reply.revoked:
        spent = f"{usd(each.spent_usd)} spent and {usd(each.held_usd)} held today"
        _say(
            _styled("revoked ", _RED),
            neutral(f"{each.key_id} ({each.tenant or each.agent_run_label or '-'}): {spent}"),
        )
    more = reply.revoked_count - len(reply.revoked)
    if more > 0:
        _say(_styled("revoked ", _RED), f"{_plural(more, 'key')} more")
    for key_id in reply.already:
        say(f"{key_id} had been revoked before")
    if not reply.revoked and not reply.already:
        say("no key matched, so nothing was revoked")
    elif reply.in_flight:
        calls = _plural(reply.in_flight, "call")
        cut = f"; {reply.aborted:,} of them cut" if reply.aborted else ""
        say(f"{calls} for {usd(reply.in_flight_usd)} had already left{cut}; what they cost stays counted")
    elif reply.revoked:
        say("no call was in flight")


# --- policies -------------------------------------------------------------------------------------


def policies(found: Sequence[wire.Policy]) -> None:
    """The policies, each with its limits in short."""
    if not found:
        note("no policies yet: kbctl policy set free --cap 5")
        return
    columns = [
        _Column("NAME"),
        _Column("A DAY", right=True),
        _Column("IN ALL", right=True),
        _Column("A CALL", right=True),
        _Column("REQUESTS", right=True, drop=3),
        _Column("RATE", right=True, drop=2),
        _Column("LIVES", drop=1),
        _Column("VENDORS", cut=10, drop=4),
        _Column("MAY CALL", drop=5),
    ]
    _table(columns, [_policy_row(each) for each in found])


def _policy_row(policy: wire.Policy) -> Sequence[Cell]:
    allowed = policy.allowed_endpoints
    return (
        policy.name,
        *(_limit(name, getattr(policy, name)) for name in _POLICY_COLUMNS),
        policy.expires_in or "-",
        ",".join(policy.vendors or ()) or "-",
        "-" if allowed is None else _plural(len(allowed), "endpoint"),
    )


def policy(found: wire.Policy) -> None:
    """All that one policy sets, in the words of its file."""
    _say(_styled(found.name, _BOLD))
    rows: list[tuple[str, Cell]] = []
    for field in _POLICY_FIELDS:
        value = getattr(found, field)
        if value is msgspec.UNSET or (value is None and field not in _CAN_BE_NONE):
            continue
        rows += [(field, entry) for entry in _entries(field, value)]
    _facts(rows or [("limits", "none of its own")])


def policy_changes(reply: wire.PolicyChanges) -> None:
    """What differs, as a diff."""
    for change in reply.changes:
        keys = f", {_plural(change.live_keys, 'live key')}" if change.live_keys else ""
        verb = {"add": "new", "change": "changed", "remove": "removed", "none": "as it was"}
        _say(_styled(change.name, _BOLD), neutral(f": {verb.get(change.action, change.action)}{keys}"))
        for field, values in change.fields.items():
            before, after = [*values, None, None][:2]
            old, new = _entries(field, before), _entries(field, after)
            if change.action == "add":
                old = []
            if change.action == "remove":
                new = []
            for sign, style, entries, others in (("-", _RED, old, new), ("+", _GREEN, new, old)):
                for entry in entries:
                    if entry not in others:
                        _say(_styled(f"  {sign} {field}  {entry}", style))
    if reply.keys_changed:
        say(f"changed with it: {', '.join(reply.keys_changed)}")
    if not reply.changes:
        note("there is no policy in it, so nothing differs")
    elif not reply.applied:
        note("nothing was changed: this only shows what would be")


def _entries(field: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [str(each) for each in value]
    return [_limit(field, value)]


def _limit(field: str, value: Any) -> str:
    """One value of a policy: ``-`` where it says nothing, ``none`` where it says that."""
    if value is msgspec.UNSET:
        return "-"
    if value is None:
        return "none" if field in _CAN_BE_NONE else "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal | int):
        return usd(value) if field.endswith("_usd_cap") else f"{value:,}"
    return str(value)


# --- tenants --------------------------------------------------------------------------------------


def tenants(found: Sequence[wire.Tenant]) -> None:
    """The tenants, each with the spend of all its keys against its cap."""
    if not found:
        note("no tenants yet: kbctl tenant set acme --cap 2000")
        return
    columns = [
        _Column("TENANT", cut=8),
        _Column("USED", terminal=True, drop=1),
        _Column("SPENT", right=True),
        _Column("HELD", right=True),
        _Column("CAP", right=True),
        _Column("REQUESTS", right=True, drop=3),
        _Column("KEYS", right=True, drop=2),
    ]
    _table(
        columns,
        [
            (each.tenant, *_usage(*_tightest(each)), f"{each.requests_today:,}", f"{each.keys_active:,}")
            for each in found
        ],
    )


def tenant(found: wire.Tenant) -> None:
    """All of one tenant."""
    _say(_styled(found.tenant, _BOLD), f"  {_plural(found.keys_active, 'active key')}")
    rows: list[tuple[str, Cell]] = [
        ("today", _spend(found.spent_usd, found.held_usd, found.daily_usd_cap)),
        ("in all", _spend(found.total_spent_usd, found.total_held_usd, found.total_usd_cap)),
    ]
    if found.call_usd_cap is not None:
        rows.append(("a call", f"up to {usd(found.call_usd_cap)}"))
    most = "" if found.daily_requests is None else f" of {found.daily_requests:,}"
    rows.append(("requests", f"{found.requests_today:,}{most} today"))
    if found.rate:
        rows.append(("rate", found.rate))
    _facts(rows)


# --- operator tokens ------------------------------------------------------------------------------


def token_created(token: wire.CreatedToken, proxy_url: str) -> None:
    """A new token, once, and a line that uses it."""
    _panel(token.token, f"operator token {token.token_id}, shown only now")
    until = f"{moment(token.expires_at)} ({_remaining(token.expires_at)})" if token.expires_at else "revoked"
    _facts([("scope", token.scope), ("until", until)])
    _say("\nTry it:\n")
    _write(f"curl -H {shlex.quote(f'Authorization: Bearer {token.token}')} {proxy_url}/vault/keys\n")


def tokens(found: Sequence[wire.Token]) -> None:
    """The operator tokens, without the tokens."""
    if not found:
        note("no operator tokens yet: kbctl token create --scope issue")
        return
    columns = [
        _Column("TOKEN"),
        _Column("SCOPE"),
        _Column("STATUS"),
        _Column("EXPIRES"),
        _Column("CREATED", drop=1),
        _Column("NOTE", fold=12),
    ]
    _table(columns, [_token_row(each) for each in found])


def _token_row(token: wire.Token) -> Sequence[Cell]:
    left = _remaining(token.expires_at)
    status = "revoked" if token.revoked_at else "expired" if left == "ended" else "active"
    return (
        token.token_id,
        token.scope,
        _status(status),
        left if status == "active" else "-",
        moment(token.created_at),
        token.note or "-",
    )


# --- reconciliation -------------------------------------------------------------------------------

_DIFFERENCES: Final = {
    "elsewhere": ("not here", _RED),
    "absent": ("here alone", _YELLOW),
    "differs": ("differs", _YELLOW),
}


def reconciliation(found: wire.Reconciliation) -> None:
    """Where a vendor's list and our rows differ, oldest first, and what to do about it."""
    span = f"from {moment(found.start)} to {moment(found.end)}"
    if not found.differences:
        _say((f"{_plural(found.agree, 'call')} of {found.credential} agree", _GREEN), f" {span}")
        return
    columns = [
        _Column("UTC", drop=3),
        _Column("RECORD"),
        _Column("MADE", cut=12, drop=2),
        _Column("HERE", right=True),
        _Column("THERE", right=True),
        _Column("CALL", drop=1),
        _Column("OBJECT", cut=14, drop=4),
    ]
    _table(columns, [_difference_row(each) for each in found.differences])
    kinds = [each.what for each in found.differences]
    _say("")
    _say(f"{found.agree:,} agree, {len(kinds):,} differ {span}")
    if "elsewhere" in kinds:
        _say(f"not here: {usd(found.elsewhere_usd)} with the real key around kbctl, or by rows that are gone")
        _say(
            ("  if nobody should have it, rotate it: ", _DIM),
            f"kbctl credential set {found.credential}",
        )
    if "absent" in kinds:
        _say(f"here alone: {usd(found.absent_usd)} that {found.vendor} does not list in this account")
        _say(("  look before you free anything: ", _DIM), "kbctl explain CALL")


def _difference_row(each: wire.Difference) -> Sequence[Cell]:
    title, style = _DIFFERENCES.get(each.what, (each.what, ""))
    return (
        _short_moment(each.timestamp),
        _styled(title, style),
        each.kind,
        f"{usd(each.here_usd)}{' held' if each.outcome == 'unknown' else ''}",
        usd(each.vendor_usd),
        each.call_id or "-",
        each.object_id or "-",
    )


# --- reports --------------------------------------------------------------------------------------


def spend(by: str, found: Sequence[wire.Spend]) -> None:
    """What was spent, a line for each of a dimension."""
    if not found:
        note("nothing was spent or refused in that time")
        return
    columns = [
        _Column(by.upper(), fold=0 if by in ("key", "day") else 12),
        _Column("USED", terminal=True, drop=1),
        _Column("SPENT", right=True),
        _Column("HELD", right=True),
        _Column("CAP", right=True),
        _Column("CALLS", right=True, drop=3),
        _Column("REFUSED", right=True, drop=2),
    ]
    _table(
        columns,
        [
            (
                each.name or "-",
                *_usage(each.spent_usd, each.held_usd, each.cap_usd),
                f"{each.calls:,}",
                f"{each.refused:,}",
            )
            for each in found
        ],
    )


def changes(found: Sequence[wire.Change]) -> None:
    """Who changed what."""
    if not found:
        note("no changes match")
        return
    columns = [
        _Column("UTC"),
        _Column("WHO", fold=10),
        _Column("WHAT"),
        _Column("OF", fold=12),
        _Column("DETAILS", fold=20, drop=1),
    ]
    _table(columns, [_change_row(each) for each in found])


def _change_row(change: wire.Change) -> Sequence[Cell]:
    details = ", ".join(f"{name}={_plain_value(value)}" for name, value in change.details.items())
    return (_short_moment(change.timestamp), change.actor, change.action, change.subject, details)


def records(reply: wire.SqlReply) -> None:
    """The rows of a query: a table, or on a terminal too narrow for one, a block for each row."""
    if not reply.rows:
        note("no rows")
        return
    columns = [
        _Column(neutral(name), right=_all_numbers(reply.rows, at)) for at, name in enumerate(reply.columns)
    ]
    columns = [each if each.right else replace(each, fold=12) for each in columns]
    rows = [[_plain_value(value) for value in row] for row in reply.rows]
    if sys.stdout.isatty() and _is_too_wide(columns, rows):
        for at, row in enumerate(rows, 1):
            _say((f"row {at:,}", _DIM))
            _facts(list(zip((column.title for column in columns), row, strict=True)), indent=2)
        return
    _table(columns, rows)


def _is_too_wide(columns: Sequence[_Column], rows: Sequence[Sequence[str]]) -> bool:
    texts = [[_drawn(_words(cell)) for cell in row] for row in rows]
    return sum(_least(columns, texts)) > _console().width


def _all_numbers(rows: Sequence[Sequence[Any]], at: int) -> bool:
    found = [row[at] for row in rows if row[at] is not None]
    return bool(found) and all(isinstance(value, int | Decimal) for value in found)


def _plain_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Decimal):
        return f"{value:f}"
    return value if isinstance(value, str) else wire.encode(value).decode()


def vendors(found: Sequence[wire.Vendor]) -> None:
    """The vendors, and which have a credential."""
    columns = [
        _Column("VENDOR"),
        _Column("TITLE", cut=10, drop=2),
        _Column("ORIGIN", fold=20, drop=1),
        _Column("OPERATIONS", right=True, drop=3),
        _Column("CREDENTIALS", fold=11),
    ]
    _table(
        columns,
        [(each.name, each.title, each.origin, f"{each.operations:,}", _usable_ones(each)) for each in found],
    )


def _usable_ones(vendor: wire.Vendor) -> Cell:
    return _styled(", ".join(vendor.credentials), _GREEN) if vendor.credentials else _styled("none", _DIM)


def vendor(found: wire.VendorDetail) -> None:
    """One vendor: where it is, and each operation with its cost."""
    _say(_styled(found.name, _BOLD), f"  {neutral(found.title)}")
    rows: list[tuple[str, Cell]] = [("origin", found.origin), ("docs", found.docs)]
    if found.account_headers:
        rows.append(("accounts", ", ".join(found.account_headers)))
    rows.append(("credentials", ", ".join(found.credentials) or "none"))
    _facts(rows)
    _say("")
    columns = [
        _Column("OPERATION"),
        _Column("REQUEST", fold=16, drop=1),
        _Column("COST", fold=12),
        _Column("NOTES", fold=10),
    ]
    _table(
        columns,
        [(each.name, each.match, each.cost, _notes(each)) for each in found.operations],
    )


def _notes(operation: wire.VendorOperation) -> Cell:
    notes = [*(["privileged"] if operation.privileged else []), *(["stamps"] if operation.stamps else [])]
    return _styled(" ".join(notes), _YELLOW if operation.privileged else _DIM)


def prices(found: Sequence[wire.VendorPrices], rates: wire.CurrencyRates | None) -> None:
    """What things cost, by vendor, and the exchange rates; what is old is said at the end."""
    columns = [
        _Column("PRICE OF", fold=16),
        _Column("USD", right=True),
        _Column("PER", drop=1),
        _Column("DATED"),
        _Column("SOURCE", fold=16, drop=2),
        _Column("NOTES"),
    ]
    old = 0
    for each in found:
        if each.prices:
            _say(_styled(each.vendor, _BOLD))
            _table(
                columns,
                [
                    (line.of, f"{line.usd:f}", line.per, line.dated or "-", line.source, _price_notes(line))
                    for line in each.prices
                ],
            )
            _say("")
            old += sum(line.stale for line in each.prices)
        elif len(found) == 1:
            note(f"{each.vendor} has no price list: amounts stand in its requests")
    if rates is not None:
        _say(_styled("exchange rates", _BOLD))
        _table(
            columns,
            [
                (line.currency, f"{line.usd:f}", "unit", line.dated or "-", line.source, _price_notes(line))
                for line in rates.rates
            ],
        )
        old += sum(line.stale for line in rates.rates)
    if old:
        note(f"{_plural(old, 'figure')} marked old: compare with the source; set yours in config.toml")


def _price_notes(line: wire.VendorPrice | wire.CurrencyRate) -> Cell:
    if line.stale:
        return _styled("old", _YELLOW)
    return _styled("yours", _GREEN) if line.yours else ""


def vendor_findings(file: str, found: wire.VendorFindings) -> None:
    """What is wrong, a line each, as compilers write it; or that nothing is."""
    for each in found.findings:
        place = file if each.line is None else f"{file}:{each.line}"
        _say(neutral(f"{place}: {each.message}"))
    if not found.findings:
        examples = _plural(found.examples, "example")
        _say(f"{neutral(file)}: good; {_plural(found.operations, 'operation')}, {examples} came true")


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


def audit_verdict(found: wire.Verdict) -> None:
    """How the audit was found."""
    if found.finding is not None:
        _say(_styled("the audit is broken: ", f"{_BOLD} {_RED}"), neutral(found.finding.sentence))
        rows: list[tuple[str, Cell]] = [("what", found.finding.what)]
        if found.finding.call_id:
            rows.append(("call", found.finding.call_id))
        rows.append(("good until", f"{_plural(found.calls, 'call')}, {_plural(found.events, 'event')}"))
        _facts(rows)
        return
    since = f" since event {found.since_event:,}" if found.since_event else ""
    _say(
        _styled("the audit is whole", f"{_BOLD} {_GREEN}"),
        f": {_plural(found.calls, 'call')}, {_plural(found.events, 'event')}{since}; {found.seconds:.1f} s",
    )
    rows = []
    if found.pruned_events:
        rows.append(("pruned", _plural(found.pruned_events, "event")))
    rows += [("agrees with", f"the checkpoint of {each}") for each in found.agrees_with]
    if found.public_key:
        rows.append(("audit key", found.public_key))
    if found.checkpoint:
        rows.append(("checkpoint", found.checkpoint))
    else:
        rows.append(("checkpoint", _styled("none: the signing key can't be read now", _YELLOW)))
    _facts(rows)


def file_verdict(path: str, found: "FileVerdict") -> None:
    """How an exported file was found."""
    if found.finding is not None:
        _say(
            _styled(f"{neutral(path)} is not what was exported: ", f"{_BOLD} {_RED}"), neutral(found.finding)
        )
        return
    what = "every call of the audit" if found.whole else "a part of the audit"
    _say(
        _styled(f"{neutral(path)} is what was exported", f"{_BOLD} {_GREEN}"),
        f": {_plural(found.rows, 'call')}, {what}",
    )
    rows: list[tuple[str, Cell]] = []
    if found.filter:
        rows.append(("filter", neutral(", ".join(f"{name}={value}" for name, value in found.filter.items()))))
        rows.append(("verified", "every line and the signature; that no call of the filter is missing says"))
        rows.append(("", "the daemon that signed it"))
    if found.checkpoint is not None:
        rows.append(("as of", found.checkpoint.when))
    rows.append(("signed by", found.public_key or ""))
    _facts(rows)


def checkpoint(made: wire.AuditCheckpoint) -> None:
    """The line; on a terminal, what it is good for too."""
    say(made.checkpoint)
    note(f"call {made.calls:,}; keep this line where this machine can't change it, and with it the audit key")
    note(made.public_key)


def pruned(found: wire.Pruned) -> None:
    """What was taken away, or would be."""
    day = found.before[:10]
    if not found.calls:
        say(f"there is nothing to prune before {day}")
    else:
        verb = "would be pruned" if found.dry_run else "pruned"
        since = f", the oldest of {found.first[:10]}" if found.first else ""
        say(f"{_plural(found.calls, 'call')} before {day} {verb}{since}")
    if found.kept:
        note(f"{_plural(found.kept, 'call')} as old stay: open holds, and what was settled since")


def audit(calls: Sequence[wire.Call]) -> None:
    """Rows of the audit."""
    if not calls:
        note("no calls match")
        return
    _table(_AUDIT_COLUMNS, [_call_row(call) for call in calls])


def audit_line(call: wire.Call) -> None:
    """One row by itself, for a list that goes on."""
    when, key_id, _, what, asked, counted, result, reason = _call_row(call)
    line = _joined(
        (f"{when}  ", _DIM),
        _words(key_id),
        "  ",
        _words(what),
        f"  asked {asked}, counted {counted}  ",
        _words(result),
        _styled(f"  {_words(reason).plain}" if reason else "", _DIM),
    )
    _say(line)
    sys.stdout.flush()


def explained(call: wire.Call) -> None:
    """One call in words: who, what, the verdict, what became of the money, and what can be done."""
    _say(_joined(_styled(call.call_id, _BOLD), "  ", _result(call)))
    took = "" if call.latency_ms is None else f", {call.latency_ms:,.0f} ms"
    if call.upstream_ms is not None:
        took += f" ({call.upstream_ms:,.0f} ms of it the vendor's)"
    who = [call.vault_key_id or "nobody's key"]
    who += [
        f"{name} {value}"
        for name, value in (("tenant", call.tenant), ("label", call.agent_run_label))
        if value
    ]
    what = f"{call.method or '?'} {call.endpoint or '?'}"
    rows: list[tuple[str, Cell]] = [
        ("when", f"{moment(call.timestamp)}{took}"),
        ("who", ", ".join(who)),
        ("what", what + (f" ({call.vendor}: {call.operation})" if call.operation else "")),
    ]
    if call.requested_usd is not None:
        stated = f" (stated: {call.amount_minor:,} {call.currency}, in minor units)" if call.currency else ""
        rows.append(("asked for", usd(call.requested_usd) + stated))
    rows.append(("counts", f"{usd(call.amount_usd)} against the cap"))
    if call.reason:
        rows.append(("because", _styled(call.reason, _RED if call.outcome == "refused" else _YELLOW)))
    if call.status is not None:
        rows.append(("answered", f"HTTP {call.status}"))
    for name, value in (
        ("vendor id", call.vendor_request_id),
        ("idempotency", call.idempotency_key),
        ("retry of", call.replay_of),
        ("repeats", call.duplicate_of),
        ("sent to", call.upstream),
    ):
        if value:
            rows.append((name, value))
    if call.folded:
        rows.append(("stands for", f"{call.folded + 1:,} refusals of this kind"))
    rows += [("metadata", f"{name}={value}") for name, value in call.metadata.items()]
    _facts(rows)
    for line in _next_steps(call):
        _say(_styled(line, _DIM))


def _next_steps(call: wire.Call) -> list[str]:
    if call.replay_of:
        return [f"kbctl explain {call.replay_of}, for the call that holds the money"]
    if call.duplicate_of and call.outcome == "refused":
        return [f"kbctl explain {call.duplicate_of}, for the call that spends just so"]
    if call.outcome == "unknown":
        return [
            "No answer came back: the vendor may have done it, so its money stays held. If you know:",
            f"  kbctl resolve {call.call_id} --spent {call.amount_usd}",
            f"  kbctl resolve {call.call_id} --void",
        ]
    if call.outcome == "refused" and call.vault_key_id:
        return [f"kbctl show {call.vault_key_id}, for what this key may do"]
    return []


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


def _result(call: wire.Call) -> Words:
    if call.policy_check_result != "allowed":
        more = f" x{call.folded + 1:,}" if call.folded else ""
        return _styled(call.policy_check_result + more, _RED)
    again = " again" if call.replay_of else " duplicate?" if call.duplicate_of else ""
    return _styled(call.outcome + again, _OUTCOME_STYLES.get(call.outcome, ""))


# --- the demo -------------------------------------------------------------------------------------


def scene(number: int, text: str) -> None:
    """The heading of a part of the story."""
    _say("")
    _say(_joined((f"{number}. ", _DIM), (neutral(text), _BOLD)))
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
