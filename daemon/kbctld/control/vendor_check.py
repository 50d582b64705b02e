"""POST /vendors/check: everything that is wrong in a vendor file, each by key and line.

What must stay true: a file without findings is one that the daemon starts with, and whose examples came true
in the same steps that decide about a call. Nothing of the daemon's own state is touched.
"""

import re
import tomllib
from collections.abc import Collection, Iterator
from decimal import Decimal
from typing import Any

import msgspec

from kbctl import wire
from kbctld.control.door import SEGMENTS
from kbctld.core.body import read_body
from kbctld.core.document import DocumentError
from kbctld.core.form import FormError
from kbctld.core.grant import nobodys
from kbctld.core.ledger import Account, Ledger, Scope
from kbctld.core.money import NANO_MAX, Rates, nano_from_usd
from kbctld.core.operation import Operation, Operations
from kbctld.core.policy import Access, Permit, Request, TokenPrices, admit, authorize
from kbctld.core.refusal import Code, Refusal
from kbctld.core.target import read_target
from kbctld.core.vendor import Vendor
from kbctld.core.vendor_file import (
    UNREADABLE_TOML,
    Example,
    ModelPrice,
    Problem,
    RateTable,
    VendorFile,
    VendorFileError,
    explain,
    listed,
    problems,
    read_rates_of,
)
from kbctld.country import country_of

_AT = re.compile(r" - at `\$([^`]*)`")
_FIELD = re.compile(r"field `([^`]+)`")
_STEP = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+)\]")
_TOML_LINE = re.compile(r"\(at line (\d+)")
_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.\"' -]+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')\s*(?:\.[^=]*)?=")
_LISTS: dict[str, type] = {
    "operation": Operation,
    "operations": Operations,
    "example": Example,
    "model_price": ModelPrice,
}

Path = tuple[str | int, ...]


def check_vendor(
    text: str, vendors: Collection[str], rates: Rates, prices: TokenPrices
) -> wire.VendorFindings:
    """What is wrong in a vendor file, by line.

    Args:
        text: the file.
        vendors: the names of those that there are.
        rates: US dollars per unit of other currencies, for its examples.
        prices: of language models.
    """
    try:
        plain: dict[str, Any] = tomllib.loads(text, parse_float=Decimal)
    except UNREADABLE_TOML as error:
        line = _TOML_LINE.search(str(error))
        finding = wire.VendorFinding(
            line=int(line[1]) if line else None, key="", message=f"not TOML: {error}"[:500]
        )
        return wire.VendorFindings(name=None, operations=0, examples=0, findings=[finding])
    lines = _lines(text)
    found = list(_wrong(plain, vendors, rates, prices))
    name = plain.get("name")
    return wire.VendorFindings(
        name=name if isinstance(name, str) else None,
        operations=_count(plain, "operation") + _grouped(plain),
        examples=_count(plain, "example"),
        findings=sorted(
            (
                wire.VendorFinding(
                    line=_line_of(each.path, lines), key=_shown(each.path), message=each.message
                )
                for each in found
            ),
            key=lambda finding: finding.line or 0,
        ),
    )


def _count(plain: dict[str, Any], key: str) -> int:
    value = plain.get(key)
    return len(value) if isinstance(value, list) else 0


def _grouped(plain: dict[str, Any]) -> int:
    groups = plain.get("operations")
    found = (
        [group.get("matches") for group in groups if isinstance(group, dict)]
        if isinstance(groups, list)
        else []
    )
    return sum(len(matches) for matches in found if isinstance(matches, dict))


def _wrong(
    plain: dict[str, Any], vendors: Collection[str], rates: Rates, prices: TokenPrices
) -> Iterator[Problem]:
    """First the form of it; then what stands in it; then what it claims. Each only of what passed so far."""
    form = list(_form(plain))
    yield from form
    if form:
        return
    file = msgspec.convert(plain, VendorFile, builtin_types=(Decimal,))
    content = [*problems(file), *_rates(file.rate), *_first_segments(file, vendors)]
    yield from content
    if content:
        return
    vendor = Vendor(file, country_of)
    for place, operation in listed(file):
        yield from _hidden(vendor, operation, place, rates, prices)
    for number, example in enumerate(file.example):
        why = _untrue(vendor, example, rates, prices)
        if why is not None:
            yield Problem(("example", number, "request"), f"example {example.request!r}: {why}")
    if {example.refused is None for example in file.example} != {True, False}:
        yield Problem(("example",), "`example` takes at least one call that passes and one that is refused")


def _form(plain: dict[str, Any]) -> Iterator[Problem]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(VendorFile)}
    for name in plain.keys() - fields.keys():
        yield Problem((name,), f"there is no key `{name}`; there are {', '.join(fields)}")
    for name, field in fields.items():
        if name not in plain:
            if field.required:
                yield Problem((name,), f"the key `{name}` is missing")
        elif name in _LISTS and isinstance(plain[name], list):
            for number, item in enumerate(plain[name]):
                yield from _misfit(item, _LISTS[name], (name, number))
        else:
            yield from _misfit(plain[name], field.type, (name,))


def _misfit(value: Any, kind: Any, path: Path) -> Iterator[Problem]:
    try:
        msgspec.convert(value, kind, builtin_types=(Decimal,))
    except msgspec.ValidationError as error:
        text = str(error)
        at = _AT.search(text)
        steps = _STEP.findall(at[1]) if at else []
        below: Path = tuple(int(index) if index else name for name, index in steps)
        field = _FIELD.search(text)
        whole = (*path, *below, *([field[1]] if field else []))
        place = f" - at `$.{'.'.join(str(step) for step in whole)}`"
        said = explain(_AT.sub("", text) + place).replace(place, "")
        yield Problem(whole, f"`{_shown(whole)}`: {said[:1].lower()}{said[1:]}")


def _rates(table: RateTable | None) -> Iterator[Problem]:
    try:
        read_rates_of(table, "rate")
    except VendorFileError as error:
        yield Problem(("rate",), str(error))


def _first_segments(file: VendorFile, vendors: Collection[str]) -> Iterator[Problem]:
    """A name or a root that something else of the proxy's port answers to would never be reached."""
    if file.name in SEGMENTS:
        yield Problem(("name",), f"`name`: /{file.name} is the operator API's; take another name")
    for root in file.roots:
        first = root.strip("/").partition("/")[0]
        if first in SEGMENTS:
            yield Problem(("roots",), f"`roots`: /{first} is the operator API's when no prefix is sent")
        elif first == file.name or first in vendors:
            yield Problem(("roots",), f"`roots`: /{first} would be read as the prefix of the vendor {first}")


def _hidden(
    vendor: Vendor, operation: Operation, place: Path, rates: Rates, prices: TokenPrices
) -> Iterator[Problem]:
    method, _, pattern = operation.match.partition(" ")
    where = (*place, "match") if place[0] == "operation" else place
    path = pattern.replace("{", "x_").replace("}", "")
    access, verdict = _attempt(vendor, f"{method} {path}", "", rates, prices)
    if access is None and isinstance(verdict, Refusal):
        yield Problem(where, f"operation {operation.name!r}: its path is refused: {verdict.sentence}")
    elif access is not None and (access.operation is None or access.operation.name != operation.name):
        other = access.operation.name if access.operation else "nothing"
        yield Problem(where, f"operation {operation.name!r}: its path is taken for {other}")


def _untrue(vendor: Vendor, example: Example, rates: Rates, prices: TokenPrices) -> str | None:
    """Why what an example claims did not come true; None where it did."""
    if example.refused is not None and example.refused not in [*Code]:
        return f"there is no refusal {example.refused!r}"
    if example.refused is None and example.operation is None:
        return "it claims nothing; say `operation` or `refused`"
    if example.refused is not None and example.usd is not None:
        return "it claims `usd` and `refused`, and a refused call costs nothing"
    access, verdict = _attempt(vendor, example.request, example.body, rates, prices)
    if isinstance(verdict, Refusal):
        if verdict.code != example.refused:
            return f"it is refused with {verdict.code}: {verdict.sentence}"
    elif example.refused is not None:
        return f"it is not refused, and {example.refused} was claimed"
    name = access.operation.name if access is not None and access.operation is not None else None
    if example.operation is not None and name != example.operation:
        return f"it is {name or 'no operation of this file'}, and {example.operation} was claimed"
    if example.usd is not None and isinstance(verdict, Permit):
        nano = nano_from_usd(example.usd)
        if verdict.price.nano != nano:
            return f"it holds ${Decimal(verdict.price.nano) / 10**9:f}, and ${example.usd} was claimed"
    return None


def _attempt(
    vendor: Vendor, line: str, body: str, rates: Rates, prices: TokenPrices
) -> tuple[Access | None, Permit | Refusal]:
    """One request through every step that decides, with a new key under the widest cap there is."""
    method, _, target = line.partition(" ")
    arrived = read_target(target, frozenset({vendor.name}))
    if isinstance(arrived, Refusal):
        return None, arrived
    settled = vendor.settle(arrived)
    if isinstance(settled, Refusal):
        return None, settled
    operation, parameters = vendor.match(method, settled.path, settled.segments)
    access = Access(vendor, method, settled, operation, parameters, {})
    grant = nobodys(Scope("vk_example", "key vk_example", Account(), NANO_MAX), vendor.name)
    refusal = admit(grant, access, 0)
    if refusal is not None:
        return access, refusal
    try:
        raw = body.encode()
        form = read_body(vendor, settled.path, operation, raw)
    except (DocumentError, FormError) as error:
        return access, Refusal(Code.MALFORMED_REQUEST, f"the body can't be read: {error}")
    asked = Request(form, {}, b"", b"", None)
    verdict = authorize(
        grant, access, asked, Ledger(), rates, now_ns=0, tick_ns=0, row=None, call_id="call_0", prices=prices
    )
    return access, verdict


# --- where it stands --------------------------------------------------------------------------------


def _lines(text: str) -> dict[Path, int]:
    """The line of every table and every key, counted from 1."""
    found: dict[Path, int] = {}
    counts: dict[str, int] = {}
    table: Path = ()
    inside = ""
    for number, line in enumerate(text.split("\n"), 1):
        if inside:
            inside = "" if line.count(inside) % 2 else inside
            continue
        header = _HEADER.fullmatch(line)
        key = _KEY.match(line)
        if header:
            names = [name.strip(" \"'") for name in header[2].split(".")]
            if header[1] == "[[":
                counts[names[0]] = counts.get(names[0], -1) + 1
            table = (names[0], counts[names[0]], *names[1:]) if names[0] in counts else tuple(names)
            found.setdefault(table, number)
        elif key:
            found.setdefault((*table, key[1].strip("\"'")), number)
            inside = next((quotes for quotes in ('"""', "'''") if line.count(quotes) % 2), "")
    return found


def _line_of(path: Path, lines: dict[Path, int]) -> int | None:
    """The line of the nearest thing that is written down: a key of an inline table stands on its line."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


def _shown(path: Path) -> str:
    """``operation[3].match``, counted from 1 as people do."""
    return "".join(f"[{step + 1}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
