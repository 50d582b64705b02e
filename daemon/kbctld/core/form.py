"""Reading ``application/x-www-form-urlencoded`` so that every other reader would read the same.

We decide on our reading and forward the very bytes we read; the vendor reads them with a parser of its
own. What must stay true: for the fields that decide (money, currency), we accept only texts on which
first-wins, last-wins, Rack-like, PHP-like and ``;``-splitting parsers agree. Everything else is refused
as ambiguous, never repaired.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr

FIELDS_MAX = 1_000
"""Far above what an SDK sends (metadata is 50 keys); bounds the work of one request."""

_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# PHP turns these into "_" in a name, a bracket that nothing closes too; other readers trim or fold case.
_FOLDED = re.compile(r"[ .\[]")
_BRACKETS = "[]"
_packed = msgspec.msgpack.Encoder().encode
_ITEM = re.compile(r"([a-z_]+)\[(0|[1-9][0-9]{0,2})\]((?:\[[a-z0-9_]+\])+)", re.ASCII)


class FormError(ValueError):
    """Bytes that are not a form at all."""


class Form(Struct, frozen=True):
    """The fields in the order sent, names and values decoded."""

    pairs: tuple[tuple[str, str], ...]
    has_semicolon: bool
    """A raw ``;`` stands in the text: some parsers split fields there."""
    _seen: Mapping[str, Sequence[int]] = {}
    """Where the laxest readers see a name, folded: places in ``pairs``. Follows from these."""

    def __post_init__(self) -> None:
        force_setattr(self, "_seen", _index(tuple([key for key, _ in self.pairs])))

    def one(self, name: str) -> str | None:
        """The value of a field that decides something; None where it is absent.

        Args:
            name: of the field, or a path of names joined by dots: ``amount.value`` is ``amount[value]``.

        Raises:
            AmbiguousFieldError: it stands there twice, as an array or object, under a name that other
                parsers fold into this one, or beside a raw ``;``.
        """
        if "." in name:
            values = self.values(name)
            return values[0] if values else None
        if self.has_semicolon and self._mentions(name):
            raise AmbiguousFieldError(name)
        places = self._seen.get(_fold(name))
        if places is None:
            return None
        key, value = self.pairs[places[0]]
        if len(places) > 1 or key != name:
            raise AmbiguousFieldError(name)
        return value

    def values(self, field: str) -> tuple[str, ...] | None:
        """What a rule on this field must hold for; None where it is absent.

        Args:
            field: a path of names joined by dots: ``metadata.tier`` stands here as ``metadata[tier]``.

        Raises:
            AmbiguousFieldError: where ``one`` would; it also stands as ``metadata.tier``, or the form has
                something in its way or below it: ``metadata=``, ``metadata[tier][x]=``.
        """
        path = field.split(".")
        name = path[0] + "".join(f"[{segment}]" for segment in path[1:])
        folded = [_fold(segment) for segment in path]
        found = [value for key, value in self.pairs if key == name]
        if len(found) > 1 or any(key != name and _could_reach(key, folded) for key, _ in self.pairs):
            raise AmbiguousFieldError(field)
        if self.has_semicolon and self._mentions(path[0]):
            raise AmbiguousFieldError(field)
        return tuple(found) or None

    def texts(self, name: str) -> tuple[str, ...]:
        """Every value of a field that may be repeated, in order.

        Raises:
            AmbiguousFieldError: it stands there under a name that other parsers fold into this one, as an
                array or object, or beside a raw ``;``.
        """
        found = [self.pairs[place] for place in self._seen.get(_fold(name), ())]
        if any(key != name for key, _ in found) or (self.has_semicolon and self._mentions(name)):
            raise AmbiguousFieldError(name)
        return tuple(value for _, value in found)

    def items(self, name: str) -> list[dict[str, str]]:
        """A list that decides something, ``name[0][a][b]=value``: of each item the values, ``a.b`` by path.

        Raises:
            AmbiguousFieldError: an item without its number, or any other spelling that some parser takes for
                a part of the list; a field twice; a number left out; a raw ``;``.
        """
        found: dict[int, dict[str, str]] = {}
        for key, value in self.pairs:
            part = _ITEM.fullmatch(key)
            if part is not None and part[1] == name:
                item = found.setdefault(int(part[2]), {})
                path = part[3][1:-1].replace("][", ".")
                if path in item:
                    raise AmbiguousFieldError(name)
                item[path] = value
            elif _fold(name) in _names(key):
                raise AmbiguousFieldError(name)
        if self.has_semicolon or found.keys() != set(range(len(found))):
            raise AmbiguousFieldError(name)
        return [found[number] for number in sorted(found)]

    def mentions(self, names: Iterable[str]) -> str | None:
        """The first of these names that any parser could see in here; for places where none belongs.

        Of a path, whatever could be its first name.
        """
        if not self.pairs:
            return None
        for name in names:
            root = name.partition(".")[0]
            if _fold(root) in self._seen or (self.has_semicolon and self._mentions(root)):
                return name
        return None

    def _mentions(self, name: str) -> bool:
        folded = _fold(name)
        return any(folded in _fold(key) or folded in _fold(value) for key, value in self.pairs)

    def canonical(self, without: frozenset[str] = frozenset()) -> bytes:
        """The same bytes for the same fields, in whatever order and spelling they were sent.

        Args:
            without: names of fields that don't count.
        """
        return _packed(sorted([pair for pair in self.pairs if pair[0] not in without]))

    def object(self, name: str) -> dict[str, str]:
        """``name[key]=value`` fields as a flat mapping; later ones win. For records, never for decisions."""
        found = {}
        before = name + "["
        for key, value in self.pairs:
            if key.startswith(before) and key.endswith("]"):
                found[key[len(before) : -1]] = value
        return found


class AmbiguousFieldError(ValueError):
    """A deciding field that two parsers could read differently; the text is its name."""


def read_form(raw: bytes) -> Form:
    """Decode a form, strictly.

    Raises:
        FormError: broken escapes, not UTF-8, control characters in a name, or too many fields.
    """
    if not raw:
        return EMPTY
    # Each byte as one character: a text is quicker to take apart than bytes.
    pieces = raw.decode("latin-1").split("&")
    if len(pieces) > FIELDS_MAX:
        raise FormError(f"a form has at most {FIELDS_MAX:,} fields")
    if _BROKEN_ESCAPE.search(raw):
        raise FormError("a form holds a % that starts no escape")
    pairs = []
    try:
        for piece in pieces:
            name, _, value = piece.partition("=")
            if "%" in value or "+" in value or not value.isascii():
                value = _decode(value)
            pairs.append((_name(name) if len(name) <= _SHORT else _read_name(name), value))
    except UnicodeDecodeError:
        raise FormError("a form is UTF-8") from None
    return Form(tuple(pairs), has_semicolon=b";" in raw)


def _decode(raw: str) -> str:
    """What a piece of a form says, whose characters are its bytes."""
    raw = raw.replace("+", " ")
    if "%" in raw:
        return unquote_to_bytes(raw.encode("latin-1")).decode("utf-8")
    return raw if raw.isascii() else raw.encode("latin-1").decode("utf-8")


# Names come again and again; what they mean is worked out once. Long ones are not kept.
_SHORT = 64
_KEPT = 4096
_FEW = 16


def _read_name(raw: str) -> str:
    name = _decode(raw)
    if _CONTROL.search(name):
        raise FormError("a form field's name holds a control character")
    return name


_name = lru_cache(_KEPT)(_read_name)


def _fold_long(text: str) -> str:
    return _FOLDED.sub("_", text.strip().casefold())


_fold_short = lru_cache(_KEPT)(_fold_long)


def _fold(text: str) -> str:
    return _fold_short(text) if len(text) <= _SHORT else _fold_long(text)


def _names_of(key: str) -> tuple[str, ...]:
    """What the laxest readers take a key for: case, blanks, dots and brackets folded away."""
    # Rack 2 skips brackets of either kind in front, and ends the name at the next one.
    root = key.strip().lstrip(_BRACKETS).replace("]", "[").partition("[")[0]
    return tuple({_fold_long(root), _fold_long(key)})


_names_short = lru_cache(_KEPT)(_names_of)


def _names(key: str) -> tuple[str, ...]:
    return _names_short(key) if len(key) <= _SHORT else _names_of(key)


def _index_of(keys: tuple[str, ...]) -> Mapping[str, Sequence[int]]:
    """Where the laxest readers see each name, folded."""
    seen: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        for name in _names(key):
            seen.setdefault(name, []).append(place)
    return seen


# An agent's calls have the same few names in the same order. What is kept is bounded as that of names is.
_index_short = lru_cache(_KEPT // _FEW)(_index_of)


def _index(keys: tuple[str, ...]) -> Mapping[str, Sequence[int]]:
    return (
        _index_short(keys) if len(keys) <= _FEW and len("".join(keys)) <= _FEW * _SHORT else _index_of(keys)
    )


EMPTY = Form((), has_semicolon=False)
"""What says nothing."""


def _could_reach(key: str, path: list[str]) -> bool:
    """Whether the laxest reader sees the folded path, a part of its way, or something below it there."""
    with_dots = re.split(r"[\[\].]", key)  # a dot joins names too
    with_brackets = re.split(r"[\[\]]", key)  # a dot is a "_"
    for pieces in (with_dots, with_brackets, [key]):
        seen = [piece for piece in map(_fold, pieces) if piece]
        if seen and all(want == have for want, have in zip(path, seen, strict=False)):
            return True
    return False
