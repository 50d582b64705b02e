"""Reading a JSON body so that every other reader would read the same; the sibling of ``core.form``.

We decide on our reading and forward the very bytes we read; the vendor reads them with a parser of its
own. What must stay true: a text that parsers repair, cut or merge in their own ways (a name twice, a BOM,
NaN, a lone surrogate) is no document at all; and for the members that decide, only names and values are
accepted on which first-wins, last-wins and case-folding readers agree. Numbers stay the text they were
sent as: no float, and no conversion before its size is known.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from kbctld.core.form import AmbiguousFieldError

MEMBERS_MAX = 20_000
"""A long chat with its tools has thousands."""

VALUES_MAX = 100_000
"""Commas and opening brackets, which bound the elements of arrays: an embedding has 3,072."""

DEPTH_MAX = 32
"""Our own bound: how deep the interpreter lets a parser go depends on who called it."""

NUMBER_MAX = 40
"""Characters of a number; far more than any reader keeps exactly."""

_BOM = b"\xef\xbb\xbf"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BRACKET = re.compile(r"[\[\]{}]")
# Readers that flatten a document write a path with dots or brackets.
_JOINTS = re.compile(r"[.\[\]]")
# Go's encoding/json compares names without case; its second version looks past - and _ as well.
_PASSED_OVER = re.compile(r"[\s_-]")
# One spelling per number: 1e3, 1.0 and -0 are written otherwise by who reads and prints them.
_PLAIN = re.compile(r"(?!-0\Z)-?(?:0|[1-9][0-9]*)(?:\.[0-9]*[1-9])?", re.ASCII)
_DOUBLE_DIGITS = 15
"""Significant digits that every reader keeps, one that reads numbers as doubles included."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it was sent."""

    text: str


Json: TypeAlias = "str | Number | bool | list[Json] | dict[str, Json] | None"


class DocumentError(ValueError):
    """Bytes that are not a JSON document as every reader takes it."""


@dataclass(frozen=True, slots=True)
class Document:
    """The members of a JSON object, decoded; a field is a path, ``metadata.tier`` is in ``metadata``."""

    members: dict[str, Json]
    size: int
    """Bytes of the whole text that it was read from."""

    def one(self, name: str) -> str | None:
        """The value of a field that decides something, a number as it was sent; None where it is absent.

        Raises:
            AmbiguousFieldError: it is no text and no number, stands in something that is no object, or
                beside a member that other readers take for it.
        """
        found = self._find(name)
        if found is None:
            return None
        match found[0]:
            case str() as text:
                return text
            case Number(text):
                return text
        raise AmbiguousFieldError(name)

    def values(self, name: str) -> tuple[str, ...] | None:
        """What a rule on this field must hold for: its value, or each one of an array; None where absent.

        Raises:
            AmbiguousFieldError: where ``one`` would, an array of scalars and true or false excepted; null
                and an empty array, which some take for absence; a number that readers print differently.
        """
        found = self._find(name)
        if found is None:
            return None
        value = found[0]
        texts = [_settled(item) for item in (value if isinstance(value, list) else [value])]
        settled = tuple(text for text in texts if text is not None)
        if not settled or len(settled) < len(texts):
            raise AmbiguousFieldError(name)
        return settled

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts of a field that counts them: one, or each of an array; none where it is absent or empty.

        Raises:
            AmbiguousFieldError: anything else stands in it, or beside it a member that others take for it.
        """
        found = self._find(name)
        value = None if found is None else found[0]
        items = value if isinstance(value, list) else [] if value is None else [value]
        texts = tuple(item for item in items if isinstance(item, str))
        if len(texts) < len(items):
            raise AmbiguousFieldError(name)
        return texts

    def mentions(self, names: Iterable[str]) -> str | None:
        """The first of these names that any reader could see in here; for places where none belongs."""
        for name in names:
            try:
                if self._find(name) is not None:
                    return name
            except AmbiguousFieldError:
                return name
        return None

    def object(self, name: str) -> dict[str, str]:
        """An object's scalars as a flat mapping, all but texts as JSON. For records, never for decisions."""
        value = self._at(name)
        if not isinstance(value, dict):
            return {}
        texts = {key: _printed(item) for key, item in value.items()}
        return {key: text for key, text in texts.items() if text is not None}

    def pairs(self, name: str) -> dict[str, str]:
        """An array of ``{"name": ..., "value": ...}`` as a flat mapping; later ones win. For records."""
        value = self._at(name)
        found = {}
        for item in value if isinstance(value, list) else []:
            if isinstance(item, dict):
                key, text = _printed(item.get("name")), _printed(item.get("value"))
                if "name" in item and "value" in item and key is not None and text is not None:
                    found[key] = text
        return found

    def canonical(self) -> bytes:
        """The same bytes for the same members, in whatever order and spacing they were sent."""
        return json.dumps(self.members, sort_keys=True, default=_text_of).encode()

    def _find(self, name: str) -> tuple[Json] | None:
        value: Json = self.members
        path = name.split(".")
        folded = [_fold(segment) for segment in path]
        for depth, segment in enumerate(path):
            if not isinstance(value, dict):
                raise AmbiguousFieldError(name)
            if any(key != segment and _could_be(key, folded[depth:]) for key in value):
                raise AmbiguousFieldError(name)
            if segment not in value:
                return None
            value = value[segment]
        return (value,)

    def _at(self, name: str) -> Json:
        value: Json = self.members
        for segment in name.split("."):
            value = value.get(segment) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True, slots=True)
class Batch:
    """The objects of a JSON array, where an operation takes several at once."""

    documents: tuple[Document, ...]

    def one(self, name: str) -> str | None:
        """No single value decides for several objects: None where none carries the field.

        Raises:
            AmbiguousFieldError: one of them could carry it.
        """
        if self.mentions([name]) is not None:
            raise AmbiguousFieldError(name)
        return None

    def texts(self, name: str) -> tuple[str, ...]:
        """As ``one``."""
        self.one(name)
        return ()

    def values(self, name: str) -> tuple[str, ...] | None:
        """What a rule on this field must hold for, in all of them; None where any of them lacks it.

        Raises:
            AmbiguousFieldError: where that of one of them would.
        """
        found = [document.values(name) for document in self.documents]
        present = [values for values in found if values is not None]
        if len(present) < len(found):
            return None
        return tuple(value for values in present for value in values) or None

    def mentions(self, names: Iterable[str]) -> str | None:
        """The first of these names that any reader could see in any of them."""
        names = list(names)
        return next(filter(None, (document.mentions(names) for document in self.documents)), None)

    def object(self, name: str) -> dict[str, str]:
        """As of one object; those of later objects win."""
        return {key: text for each in self.documents for key, text in each.object(name).items()}

    def pairs(self, name: str) -> dict[str, str]:
        """As of one object; those of later objects win."""
        return {key: text for each in self.documents for key, text in each.pairs(name).items()}

    def canonical(self) -> bytes:
        """The same bytes for the same objects in the same order."""
        return b"[" + b",".join(document.canonical() for document in self.documents) + b"]"


def read_document(raw: bytes) -> Document:
    """Decode a JSON object, strictly.

    Raises:
        DocumentError: not a JSON object in UTF-8, or one that some reader takes otherwise or not at all.
    """
    value = _read(raw)
    if not isinstance(value, dict):
        raise DocumentError("a JSON body is an object")
    return Document(value, len(raw))


def read_batch(raw: bytes) -> Batch:
    """Decode a JSON array of objects, as strictly.

    Raises:
        DocumentError: not such an array in UTF-8, or one that some reader takes otherwise or not at all.
    """
    value = _read(raw)
    if not isinstance(value, list):
        raise DocumentError("a JSON body of this operation is an array")
    documents = [Document(item, len(raw)) for item in value if isinstance(item, dict)]
    if len(documents) < len(value):
        raise DocumentError("the array in a JSON body holds objects")
    return Batch(tuple(documents))


def _read(raw: bytes) -> Json:
    if raw.startswith(_BOM):
        raise DocumentError("a JSON body starts with no byte order mark")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise DocumentError("a JSON body is UTF-8") from None
    _bound(text)
    try:
        value: Json = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise DocumentError(f"not JSON at character {error.pos}: {error.msg}") from None
    _check(value)
    return value


def _bound(text: str) -> None:
    """Refuse what would cost too much to parse, by counting what stands outside strings.

    Right for every text up to its first error, and no parser goes beyond that one. Only counting and
    splitting: a body may be large, and the parser below builds every element before anyone can count it.
    """
    bare = text.replace("\\\\", "").replace('\\"', "")
    if bare.count('"') > 2 * (2 * MEMBERS_MAX + VALUES_MAX):
        raise DocumentError(f"a JSON body has at most {VALUES_MAX:,} values")
    bare = "".join(bare.split('"')[::2])
    if bare.count(":") > MEMBERS_MAX:
        raise DocumentError(f"a JSON body has at most {MEMBERS_MAX:,} members")
    if bare.count(",") + bare.count("[") + bare.count("{") > VALUES_MAX:
        raise DocumentError(f"a JSON body has at most {VALUES_MAX:,} values")
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > DEPTH_MAX:
            raise DocumentError(f"a JSON body nests at most {DEPTH_MAX} deep")
        if depth <= 0:
            return  # the document ends here; the parser refuses what follows


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise DocumentError("a JSON object holds a name twice")
    return members


def _number(text: str) -> Number:
    if len(text) > NUMBER_MAX:
        raise DocumentError(f"a number in a JSON body has at most {NUMBER_MAX} characters")
    return Number(text)


def _constant(text: str) -> Json:
    raise DocumentError(f"{text} is no JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_number, parse_float=_number, parse_constant=_constant
)


def _check(value: Json) -> None:
    """No lone surrogate anywhere, no control character in a name. Goes as deep as DEPTH_MAX."""
    match value:
        case str():
            _check_text(value)
        case list():
            for item in value:
                _check(item)
        case dict():
            for name, item in value.items():
                _check_text(name)
                if _CONTROL.search(name):
                    raise DocumentError("a name in a JSON body holds a control character")
                _check(item)


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DocumentError("a JSON body holds half of a surrogate pair") from None


def _settled(value: Json) -> str | None:
    """A scalar that every reader would print like this; None for anything else."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case Number(text) if _PLAIN.fullmatch(text) and sum(map(str.isdigit, text)) <= _DOUBLE_DIGITS:
            return text
    return None


def _printed(value: Json) -> str | None:
    """A scalar for the record, all but texts as JSON; None for an array or an object."""
    match value:
        case str():
            return value
        case Number(text):
            return text
        case list() | dict():
            return None
    return json.dumps(value)


def _text_of(number: Number) -> dict[str, str]:
    # Nothing that was sent looks like this, because no name holds a control character.
    return {"\0": number.text}


def _fold(text: str) -> str:
    return _PASSED_OVER.sub("", text.casefold())


def _could_be(key: str, path: list[str]) -> bool:
    """Whether the laxest reader sees the folded path, a part of its way, or something below it there."""
    pieces = [piece for piece in map(_fold, _JOINTS.split(key)) if piece]
    return bool(pieces) and all(want == have for want, have in zip(path, pieces, strict=False))
