"""The audit as a file that verifies alone: one line a call, oldest first, and a trailer.

A line ends in ``running``: the first 32 hexadecimal digits of SHA-256 over the running digest of the line
before and the line without it, so that a reader finds the first line that differs. The trailer has the
digest of every byte in front of it, a checkpoint, and a signature over all of that.

What must stay true: what agents and vendors wrote can't break out of its cell. A cell that a spreadsheet
would run begins with an apostrophe, and controls are spelled out.
"""

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from kbctl import wire
from kbctl.neutral import neutral, neutral_json

FORMAT: Final = "kbctl-audit-export/1"
_FIELDS: Final = [field.name for field in msgspec.structs.fields(wire.Call)]
_DIGITS: Final = 32
_RUN = ("=", "+", "-", "@")

Exported = tuple[wire.Call, int | None, bytes | None]
"""A call, the number of the event that says how it ended, and its link."""


class Writer:
    """Makes the bytes of one file.

    Args:
        csv: whether it is CSV and not JSON lines.

    Attributes:
        rows: written so far.
    """

    def __init__(self, *, csv: bool) -> None:
        self.rows = 0
        self._csv = csv
        self._running = ""
        self._whole = hashlib.sha256()

    def head(self) -> bytes:
        """What stands in front of all rows."""
        if not self._csv:
            return b""
        names = _line([*_FIELDS, "event", "link", "running"])
        self._whole.update(names)
        return names

    def lines(self, page: Iterable[Exported]) -> bytes:
        """The lines of some calls."""
        out = bytearray()
        for call, event, link in page:
            text = None if link is None else link.hex()
            if self._csv:
                body = _line([*_cells(call), "" if event is None else str(event), text or ""])[:-1]
                out += body + b"," + self._run(body) + b"\n"
            else:
                plain = neutral_json(wire.encode(call).decode()).encode()
                body = plain[:-1] + b',"event":%b,"link":%b' % (wire.encode(event), wire.encode(text))
                out += body + b',"running":"' + self._run(body) + b'"}\n'
            self.rows += 1
        self._whole.update(out)
        return bytes(out)

    def trailer(self, said: Mapping[str, Any], sign: Callable[[bytes], str]) -> bytes:
        """The last line.

        Args:
            said: what else it tells: checkpoint, key, filter.
            sign: gives the signature of a message.
        """
        message = wire.encode(
            {
                "format": FORMAT,
                "rows": self.rows,
                "sha256": self._whole.hexdigest(),
                "running": self._running,
                **said,
            }
        )
        signed = message[:-1] + b',"signature":%b}' % wire.encode(sign(message))
        if self._csv:
            return _line(["#trailer", signed.decode()])
        return b'{"trailer":' + signed + b"}\n"

    def _run(self, body: bytes) -> bytes:
        self._running = hashlib.sha256(self._running.encode() + body).hexdigest()[:_DIGITS]
        return self._running.encode()


def _line(cells: Iterable[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


def _cells(call: wire.Call) -> list[str]:
    return [_cell(getattr(call, name)) for name in _FIELDS]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, dict):
        return neutral_json(wire.encode(value).decode())
    if not isinstance(value, str):
        return str(value)
    text = neutral(value)
    return f"'{text}" if text.startswith(_RUN) else text
