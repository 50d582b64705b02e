"""What a person types: dollars, durations, times, ``name=value`` pairs and choices.

The one place that reads them. Money never passes through a float and is matched by an ASCII pattern before
it is converted, because ``Decimal()`` would take ``1e3``, ``5_00``, ``NaN`` and full-width digits. Every
complaint names the value and shows one that works.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from kbctl.errors import Exit, KbctlError

USD_MAX = 1_000_000_000
COUNT_MAX = 1_000_000_000
_NANO = Decimal("1e-9")
_USD = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,9})?", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,10}", re.ASCII)
_RATE = re.compile(r"[1-9][0-9]{0,6}/[smh]", re.ASCII)
_LOOP = re.compile(r"[1-9][0-9]{0,6}/([1-9][0-9]{0,6}[smhd])", re.ASCII)
_DUPLICATES = re.compile(r"(?:flag|refuse)(?:/([1-9][0-9]{0,5}[smh]))?", re.ASCII)
_DURATION = re.compile(r"([1-9][0-9]{0,6})([smhd])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:[0-9]{2})?)?",
    re.ASCII,
)
DURATION_MAX = timedelta(days=3_660)


def bad_value(message: str, example: str) -> KbctlError:
    """A usage error that shows what would have worked."""
    return KbctlError("bad_value", message, example, Exit.USAGE)


def usd(option: str, text: str) -> Decimal:
    """Dollars above zero: ``500``, ``500.50``."""
    example = f"{option} 500"
    if text.startswith("-"):
        raise bad_value(f"{option} {text!r} is below zero", example)
    if not _USD.fullmatch(text):
        raise bad_value(
            f"{option} {text!r} is not an amount of dollars: digits, then at most a point and nine more",
            example,
        )
    return amount(option, Decimal(text), repr(text))


def amount(option: str, number: Decimal | int, shown: str | None = None) -> Decimal:
    """Dollars above zero that already are a number."""
    example = f"{option} 500"
    dollars = Decimal(number)
    if not dollars.is_finite():
        raise bad_value(f"{option} {dollars} is not an amount of dollars", example)
    # Not every number can be written out: some have more digits than Python prints.
    said = shown or (str(dollars) if abs(dollars) <= USD_MAX else f"{dollars:.3e}")
    if dollars < 0:
        raise bad_value(f"{option} {said} is below zero", example)
    if dollars == 0:
        raise bad_value(f"{option} {said} would allow nothing: a cap is above zero", example)
    if dollars > USD_MAX:
        raise bad_value(f"{option} {said} is above {USD_MAX:,} dollars", example)
    if dollars % _NANO:
        raise bad_value(f"{option} {said} has more than nine digits after the point", example)
    return dollars


def count(option: str, number: str | int) -> int:
    """How many: at least one."""
    example = f"{option} 1000"
    if isinstance(number, str):
        if not _COUNT.fullmatch(number):
            raise bad_value(f"{option} {number!r} is not a whole number of digits alone", example)
        number = int(number)
    if not 1 <= number <= COUNT_MAX:
        raise bad_value(f"{option} is not between 1 and {COUNT_MAX:,}", example)
    return number


def rate(option: str, text: str) -> str:
    """``5/s``, ``100/m``, ``1000/h``."""
    if not _RATE.fullmatch(text):
        raise bad_value(f"{option} {text!r} is not a rate: a number, a slash, and s, m or h", f"{option} 5/s")
    return text


def loop(option: str, text: str) -> str:
    """``20/1m``: so many of the same request in so long."""
    match = _LOOP.fullmatch(text)
    if not match:
        raise bad_value(f"{option} {text!r} is not a number, a slash and a duration", f"{option} 20/1m")
    duration(option, match[1])
    return text


def duplicates(option: str, text: str) -> str:
    """``flag`` or ``refuse``, and within how long: ``refuse/10m``."""
    match = _DUPLICATES.fullmatch(text)
    if not match:
        raise bad_value(
            f"{option} {text!r} is not flag or refuse, or one of them with a slash and a duration",
            f"{option} refuse/10m",
        )
    if match[1] and duration(option, match[1]) > timedelta(days=1):
        raise bad_value(f"{option} {text!r} is longer than 24h", f"{option} refuse/24h")
    return text


def duration(option: str, text: str) -> timedelta:
    """``90s``, ``30m``, ``2h``, ``7d``."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise bad_value(
            f"{option} {text!r} is not a duration: a number and one of s, m, h, d", f"{option} 2h"
        )
    length = timedelta(**{_UNITS[match[2]]: int(match[1])})
    if length > DURATION_MAX:
        raise bad_value(f"{option} {text!r} is longer than ten years", f"{option} 30d")
    return length


def ttl(option: str, text: str) -> str:
    """A duration or ``never``, as the daemon takes it."""
    if text != "never":
        duration(option, text)
    return text


def instant(option: str, text: str) -> datetime:
    """``2026-11-21``, ``2026-11-21T09:30`` or with an offset; without one it is UTC, as in every row."""
    example = f"{option} 2026-11-21T09:30Z"
    if not _TIME.fullmatch(text):
        raise bad_value(f"{option} {text!r} is not a time (UTC unless it says otherwise)", example)
    try:
        parsed = datetime.fromisoformat(text)
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        raise bad_value(f"{option} {text!r} is not a time that exists", example) from None


def rfc3339(moment: datetime) -> str:
    """The form that times have on the wire."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def window(
    since: str | None, start: str | None, end: str | None, now: datetime
) -> tuple[str | None, str | None]:
    """The ``from`` and ``to`` of a query, out of ``--since`` or ``--from`` and ``--to``."""
    began: datetime | None
    if since is not None:
        if start is not None:
            raise bad_value("--since and --from both say where to begin", "--since 1h")
        began = now - duration("--since", since)
    else:
        began = None if start is None else instant("--from", start)
    ended = instant("--to", end) if end is not None else None
    if began and ended and began >= ended:
        raise bad_value("the time window ends before it begins", "--from 2026-11-20 --to 2026-11-21")
    return rfc3339(began) if began else None, rfc3339(ended) if ended else None


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """``name=value``, each name once."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise bad_value(f"{option} {text!r} is not name=value", f"{option} agent_run_id=run_42")
        if name in found:
            raise bad_value(f"{option} gives {name!r} twice", f"{option} {name}={value}")
        found[name] = value
    return found


def whole(option: str, number: int, most: int) -> int:
    """A count: not below zero, not above ``most``."""
    if not 0 <= number <= most:
        raise bad_value(f"{option} {number} is not between 0 and {most}", f"{option} 0")
    return number


def choice(option: str, text: str, allowed: Sequence[str]) -> str:
    """One of a few words."""
    if text not in allowed:
        raise bad_value(f"{option} {text!r} is not one of {', '.join(allowed)}", f"{option} {allowed[0]}")
    return text
