"""Verifying an exported audit from the file alone: no daemon, no database.

What must stay true: a file that passes is byte for byte what the daemon signed. The first line that differs
is named where the running digests tell it; a trailer that does not fit is told from lines that don't.
"""

import csv
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from kbctl.checkpoint import BadCheckpointError, Checkpoint, read_checkpoint, verifies
from kbctl.errors import Exit, KbctlError

FORMAT: Final = "kbctl-audit-export/1"

_JSON_TRAILER: Final = b'{"trailer":'
_CSV_TRAILER: Final = b"#trailer,"
_JSON_RUNNING: Final = re.compile(rb',"running":"([0-9a-f]{32})"\}\n')
_CSV_RUNNING: Final = re.compile(rb",([0-9a-f]{32})\n")
_JSON_TAIL, _CSV_TAIL = 47, 34
_SIGNATURE: Final = re.compile(rb',"signature":"([0-9A-Za-z_-]{86})"\}')
_LINE_BYTES_MAX: Final = 16 * 1024 * 1024
_TELL_ROWS: Final = 20_000


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """What a file was found to be.

    Attributes:
        finding: what is wrong, a sentence; None where nothing is.
        line: the first line that differs; None where that can't be told.
        rows: calls in it.
        whole: whether it has every call of the audit, up to its checkpoint; False for a filtered one.
        filter: what it was filtered by.
        public_key: whose signature it has.
        checkpoint: how far the audit had come then.
    """

    finding: str | None
    line: int | None
    rows: int
    whole: bool
    filter: dict[str, Any]
    public_key: str | None
    checkpoint: Checkpoint | None


class _Bad(Exception):  # noqa: N818 - an outcome, not a defect
    def __init__(self, sentence: str, line: int | None = None) -> None:
        super().__init__(sentence)
        self.line = line


def verify_file(
    path: Path, *, public_key: str | None = None, step: Callable[[int, int], None] | None = None
) -> FileVerdict:
    """Look through a whole file.

    Args:
        path: of the file.
        public_key: whose signature it must have; None takes the one that it names.
        step: told now and then how many bytes of how many were read.

    Raises:
        KbctlError: it can't be read, or is no exported audit at all.
    """
    rows = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.readline(_LINE_BYTES_MAX)
            if not first:
                raise _not_one(path)
            as_csv = not first.startswith(b"{")
            if as_csv and not first.startswith(b"timestamp,call_id,"):
                raise _not_one(path)
            whole, running, at = hashlib.sha256(), "", 1
            if as_csv:
                whole.update(first)
                first, at = file.readline(_LINE_BYTES_MAX), 2
            mark, pattern, tail = (
                (_CSV_TRAILER, _CSV_RUNNING, _CSV_TAIL)
                if as_csv
                else (_JSON_TRAILER, _JSON_RUNNING, _JSON_TAIL)
            )
            line = first
            try:
                while not line.startswith(mark):
                    if not line:
                        raise _Bad("its end was cut off: it has no trailer", at)
                    match = pattern.fullmatch(line[-tail:])
                    body = line[:-tail]
                    running = hashlib.sha256(running.encode() + body).hexdigest()[:32]
                    if match is None or match[1].decode() != running:
                        raise _Bad(f"line {at} differs from what was exported", at)
                    whole.update(line)
                    rows, at = rows + 1, at + 1
                    if step is not None and rows % _TELL_ROWS == 0:
                        step(file.tell(), size)
                    line = file.readline(_LINE_BYTES_MAX)
                said = _trailer(line, as_csv=as_csv, at=at)
                if file.read(1):
                    raise _Bad("something was added behind its trailer", at + 1)
                checkpoint = _check(said, whole.hexdigest(), running, rows, public_key, at)
            except _Bad as bad:
                return FileVerdict(str(bad), bad.line, rows, False, {}, None, None)
    except OSError as error:
        raise KbctlError(
            "file_unreadable",
            f"{path} can't be read: {(error.strerror or str(error)).lower()}",
            f"ls -l {path}",
            Exit.NOT_FOUND if isinstance(error, FileNotFoundError) else Exit.USAGE,
        ) from None
    filters = dict(said.get("filter") or {})
    return FileVerdict(None, None, rows, not filters, filters, checkpoint.key, checkpoint)


def _trailer(line: bytes, *, as_csv: bool, at: int) -> dict[str, Any]:
    """What it says, its signature checked."""
    if as_csv:
        cells = next(csv.reader(io.StringIO(line.decode("utf-8", "replace"))), [])
        text = cells[1].encode() if len(cells) == 2 and line.endswith(b"\n") else b""
    else:
        text = line[len(_JSON_TRAILER) : -2] if line.endswith(b"}}\n") else b""
    match = _SIGNATURE.search(text)
    if match is None or match.end() != len(text):
        raise _Bad("its trailer was altered or cut off", at)
    message = text[: match.start()] + b"}"
    try:
        said = msgspec.json.decode(message, type=dict[str, Any])
    except msgspec.DecodeError:
        raise _Bad("its trailer was altered", at) from None
    if said.get("format") != FORMAT:
        raise _Bad("it is of another format than this kbctl knows", at)
    if not verifies(str(said.get("public_key")), match[1].decode(), message):
        raise _Bad("the signature of its trailer does not fit: the trailer was altered", at)
    return said


def _check(
    said: dict[str, Any], digest: str, running: str, rows: int, public_key: str | None, at: int
) -> Checkpoint:
    """Hold what was read against what the trailer says."""
    if public_key is not None and said["public_key"] != public_key:
        raise _Bad(f"it was signed by another key: {said['public_key']}", at)
    if said.get("rows") != rows:
        raise _Bad(f"it has {rows} calls, and had {said.get('rows')} when it was exported", at)
    if said.get("sha256") != digest or said.get("running") != running:
        raise _Bad("its lines are not those that were exported")
    try:
        checkpoint = read_checkpoint(str(said.get("checkpoint")))
    except BadCheckpointError as error:
        raise _Bad(f"its checkpoint is not good: {error}", at) from None
    if checkpoint.key != said["public_key"]:
        raise _Bad("its checkpoint was signed by another key than the file", at)
    return checkpoint


def _not_one(path: Path) -> KbctlError:
    return KbctlError(
        "not_an_export",
        f"{path} is no exported audit",
        "kbctl audit export --format jsonl -o audit.jsonl",
        Exit.USAGE,
    )
