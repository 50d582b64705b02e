"""What may stand in a query: one small description per parameter, which checks it and documents it.

What must stay true: a value that a handler sees has passed its description; nothing is repaired.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from kbctld.core.money import NANO_MAX

_DIGITS = re.compile(r"[0-9]{1,19}", re.ASCII)
_TEXT_MAX = 2000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Text:
    """Any text; ``many`` may stand several times."""

    about: str
    many: bool = False

    def refuses(self, text: str) -> str | None:
        """What it takes instead; None where the text is fine."""
        return f"at most {_TEXT_MAX:,} characters" if len(text) > _TEXT_MAX else None


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within bounds."""

    about: str
    least: int
    most: int
    default: int | None = None
    many: bool = False

    def refuses(self, text: str) -> str | None:
        if _DIGITS.fullmatch(text) and self.least <= int(text) <= self.most:
            return None
        return f"a number from {self.least:,} to {self.most:,}"


@dataclass(frozen=True, slots=True)
class Flag:
    """``true`` or ``false``."""

    about: str
    many: bool = False

    def refuses(self, text: str) -> str | None:
        return None if text in ("true", "false") else "true or false"


@dataclass(frozen=True, slots=True)
class Moment:
    """A time in RFC 3339."""

    about: str
    many: bool = False

    def refuses(self, text: str) -> str | None:
        return "a time such as 2026-06-01T00:00:00Z" if read_moment(text) is None else None


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    about: str
    words: tuple[str, ...]
    default: str | None = None
    many: bool = False

    def refuses(self, text: str) -> str | None:
        return None if text in self.words else f"one of {', '.join(self.words)}"


Parameter: TypeAlias = Text | Whole | Flag | Moment | Choice


def read_moment(text: str) -> int | None:
    """Nanoseconds since 1970, within what the database can compare; None for what is no time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    # The year 9999 is "for ever", and more nanoseconds than the database can compare.
    return min(max((moment - _EPOCH) // timedelta(microseconds=1) * 1000, -NANO_MAX), NANO_MAX)
