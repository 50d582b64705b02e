"""The request target: parsed once, then matched, audited and sent, always the same value.

What must stay true: a path that passes is canonical, so that no two readers can see two paths in it.
Segments hold only unreserved characters (RFC 3986 2.3), or are a phone number (``+14155550100``); there are
no escapes, dot segments, empty segments, semicolons or backslashes. Tricks are refused, not repaired. The
only repairs are the plus of a phone number, which some clients escape, and taking away what SDKs are known
to put in front when they join a base URL and a path (``Vendor.joins``).
"""

import re
from functools import lru_cache

from msgspec import Struct

from kbctld.core.form import Form, FormError, read_form
from kbctld.core.refusal import Code, Refusal

_SEGMENT = r"(?:[A-Za-z0-9._~-]+|\+[0-9]+)"
_CANONICAL = re.compile(rf"/(?:{_SEGMENT}(?:/{_SEGMENT})*/?)?", re.ASCII)
# A path as it may arrive: canonical but for the doubled slashes that base URLs leave near the start.
_ARRIVING = re.compile(rf"(?:/{{1,2}}{_SEGMENT})*/?", re.ASCII)
_DOT_SEGMENT = re.compile(r"/\.{1,2}(?:/|$)")
# In a path a plus stands for itself, escaped or not: one form, so that nobody compares two.
_ESCAPED_PLUS = re.compile(r"/%2[Bb](?=[0-9]+(?:/|$))")
_QUERY = re.compile(r"[A-Za-z0-9._~!$'()*+,:@/?&=%\[\]-]*", re.ASCII)


class Target(Struct, frozen=True):
    """What the vendor is asked for.

    Attributes:
        path: canonical path at the vendor, starting with a slash.
        segments: its segments, without the empty one of a trailing slash.
        query: the raw query without ``?``, exactly as it goes out; empty where there is none.
        form: the query, read.
    """

    path: str
    segments: tuple[str, ...]
    query: str
    form: Form

    @property
    def text(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


class Arrived(Struct, frozen=True):
    """A target that passed the grammar but is not yet tied to a vendor."""

    prefix: str | None
    """The vendor named by the first segment, if one is."""
    path: str
    """What stands behind the prefix; may still start with a base URL's leftovers."""
    query: str
    form: Form


def read_target(raw: str, vendors: frozenset[str]) -> Arrived | Refusal:
    """Check the grammar of a request target and take the vendor's prefix off.

    Args:
        raw: the target as it stands in the request line, ASCII.
        vendors: the names that count as a prefix.
    """
    return _read_short(raw, vendors) if len(raw) <= _SHORT else _read(raw, vendors)


def _read(raw: str, vendors: frozenset[str]) -> Arrived | Refusal:
    if not raw.startswith("/"):
        if "://" in raw:
            return Refusal(
                Code.AMBIGUOUS_REQUEST,
                "the request names a whole URL, as clients do when HTTP_PROXY points here",
                "unset HTTP_PROXY and HTTPS_PROXY, or set NO_PROXY=127.0.0.1,localhost",
            )
        return Refusal(Code.MALFORMED_REQUEST, "the request target is not a path")
    path, mark, query = raw.partition("?")
    path = _ESCAPED_PLUS.sub("/+", path)
    if not _ARRIVING.fullmatch(path) or _DOT_SEGMENT.search(path):
        return Refusal(
            Code.AMBIGUOUS_REQUEST,
            "the path holds an escape, a dot segment, an empty segment or a character that does not belong",
            "send the plain path from the vendor's documentation",
        )
    if not _QUERY.fullmatch(query) or (mark and not query):
        return Refusal(Code.AMBIGUOUS_REQUEST, "the query holds a character that must be percent-encoded")
    try:
        form = read_form(query.encode("ascii"))
    except FormError as error:
        return Refusal(Code.MALFORMED_REQUEST, f"the query can't be read: {error}")
    first = path[1:].partition("/")[0]
    if first in vendors:
        return Arrived(first, path[1 + len(first) :] or "/", query, form)
    return Arrived(None, path, query, form)


# The same few targets come again and again. Long ones are not kept.
_SHORT = 100
_read_short = lru_cache(1024)(_read)


def settle_target(
    arrived: Arrived, joins: tuple[str, ...], roots: tuple[str, ...], adds: str = ""
) -> Target | Refusal:
    """Take away what SDKs leave in front of an operation's path; what remains must be canonical.

    Args:
        arrived: the checked target.
        joins: leftovers of base URLs, longest first: ``/v1/``, ``/v1``, ``/``, and the empty one.
        roots: what every path of the vendor starts with: ``/v1/``, ``/v2/``.
        adds: what to put in front of a canonical path that starts with none of them: ``/v1``.
    """
    settle = _settle_short if len(arrived.path) <= _SHORT else _settle
    path = settle(arrived.prefix is None, arrived.path, joins, roots, adds)
    if isinstance(path, Refusal):
        return path
    return Target(path, tuple(path.strip("/").split("/")), arrived.query, arrived.form)


def _settle(
    bare: bool, arrived: str, joins: tuple[str, ...], roots: tuple[str, ...], adds: str
) -> str | Refusal:
    for join in joins:
        if join == "/" and bare:
            continue  # "//v1" at the very start is another host's path to some readers
        path = arrived.removeprefix(join) if arrived.startswith(join) else None
        if path is not None and path.startswith(roots) and _CANONICAL.fullmatch(path):
            return path
    if _CANONICAL.fullmatch(arrived):
        if adds:
            return adds + arrived
        return Refusal(
            Code.ENDPOINT_NOT_ALLOWED,
            f"no path of this vendor starts like this; they start with {' or '.join(roots)}",
        )
    return Refusal(
        Code.AMBIGUOUS_REQUEST,
        "the path holds an empty segment",
        "take the trailing slash off the base URL",
    )


_settle_short = lru_cache(1024)(_settle)
