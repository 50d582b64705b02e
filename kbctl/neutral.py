"""Makes what agents, vendors and log files wrote harmless to show.

What must stay true: no byte of theirs reaches a terminal as a control. Escape sequences recolour, rename and
overwrite what the person reads (or answer questions in their place), C1 controls do the same in one
character, and direction marks make text read other than it is. All of them are shown as escapes instead, so
nothing is hidden either. Line breaks too: a row stays a row.
"""

import re
import unicodedata

_CONTROL = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
# Everything outside printable ASCII is looked up; the common case never leaves this expression.
_DOUBTFUL = re.compile(r"[^ -~]")
_JSON_DOUBTFUL = re.compile(r"[^\n -~]")


def neutral(text: str) -> str:
    """The text with every control, format and line-breaking character spelled out."""
    return _DOUBTFUL.sub(_spelled, text)


def neutral_json(document: str) -> str:
    """The same for a JSON document: its strings keep their values, because JSON has its own escapes."""
    return _JSON_DOUBTFUL.sub(_spelled_in_json, document)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in _CONTROL


def _spelled(match: re.Match[str]) -> str:
    character = match[0]
    if not _is_control(character):
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _spelled_in_json(match: re.Match[str]) -> str:
    character = match[0]
    if not _is_control(character) or character in "\r\t":
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
