"""A vendor, as its file has it: where it lives, how it is spoken to, which operation a path is.

What must stay true: only the file names the origin; nothing in a request can change it.
"""

import tomllib
from decimal import Decimal
from typing import Any

import msgspec

from kbctld.core.hosts import Hosts
from kbctld.core.operation import Operation
from kbctld.core.refusal import Refusal
from kbctld.core.target import Arrived, Target, settle_target
from kbctld.core.tariff import CountryOf, PriceTable, nowhere, overlaid, read_tariff
from kbctld.core.vendor_file import (
    UNREADABLE_TOML,
    Idempotency,
    VendorFile,
    VendorFileError,
    explain,
    is_parameter,
    listed,
    problems,
    problems_of_prices,
    read_rates_of,
    split_match,
)


class _Branch:
    """Where a path can go on from here: by a word, or by whatever stands for a parameter."""

    __slots__ = ("any", "operation", "words")

    def __init__(self) -> None:
        self.words: dict[str, _Branch] = {}
        self.any: _Branch | None = None
        self.operation: Operation | None = None
        """What ends here."""


class Vendor:
    """A vendor file, checked and made quick to ask."""

    def __init__(self, file: VendorFile, country_of: CountryOf = nowhere) -> None:
        self.file = file
        self.tariff = read_tariff(file.price or PriceTable(), "price", country_of)
        self.name = file.name
        self.origin = file.origin
        self.roots = tuple(file.roots)
        self.hosts = Hosts(file.hosts, self.roots) if file.hosts is not None else None
        self.joins = tuple(sorted({"", *file.joins}, key=len, reverse=True))
        self.adds = file.adds or ""
        self.forward_headers = frozenset(file.forward_headers)
        self.account_headers = frozenset(file.account_headers)
        self.forwarded = frozenset(name.encode("ascii") for name in self.forward_headers)
        self.leaving = self.forwarded | {name.encode("ascii") for name in self.account_headers}
        """Names of an agent's fields that may leave, as they arrive."""
        self.retry_header, self.replay_header = _idempotency_headers(file.idempotency)
        self.key_header = (file.auth.header or "").encode("ascii")
        self.request_id_header = file.request_id_header.lower().encode("ascii")
        reach = [table.days for table in file.listing.values()]
        reach += [file.record.days] if file.record is not None else []
        self.list_days = min(reach, default=0)
        """How far back its own lists reach; 0 where it has none."""
        self.rates = read_rates_of(file.rate, "rate")
        self.operations = {operation.name: operation for _, operation in listed(file)}
        self._json_roots = tuple(file.json_roots)
        self._literal: dict[tuple[str, str], Operation] = {}
        self._tree: dict[str, _Branch] = {}
        self._patterns: dict[str, tuple[str, ...]] = {}
        """The segments of each operation with parameters, by its name."""
        for operation in self.operations.values():
            method, path = split_match(operation)
            if "{" in path:
                self._patterns[operation.name] = segments = tuple(path.strip("/").split("/"))
                self._plant(self._tree.setdefault(method, _Branch()), segments).operation = operation
            else:
                self._literal[method, path] = operation

    def takes_json(self, path: str) -> bool:
        """Whether the body of a request to this path is JSON; a form where it isn't."""
        return self.file.body == "json" or path.startswith(self._json_roots)

    def settle(self, arrived: Arrived) -> Target | Refusal:
        """The canonical target of one that arrived."""
        if self.hosts is None:
            return settle_target(arrived, self.joins, self.roots, self.adds)
        there = self.hosts.settle(arrived)
        if isinstance(there, Refusal):
            return there
        return settle_target(there, self.joins, self.hosts.all_roots)

    def retries(self, method: str, operation: Operation | None) -> Idempotency | None:
        """How the vendor knows a retry of this; None where it would do it again."""
        known = self.file.idempotency
        if known is None or method not in known.methods:
            return None
        if known.operations and (operation is None or operation.name not in known.operations):
            return None
        return known

    def match(
        self, method: str, path: str, segments: tuple[str, ...]
    ) -> tuple[Operation | None, dict[str, str]]:
        """The operation of a canonical path, and its path parameters; None where the file lists none.

        As many steps as the path has segments, however many operations there are.
        """
        operation = self._literal.get((method, path))
        if operation is not None:
            return operation, {}
        if path.endswith("/") or method not in self._tree:
            return None, {}
        # Words before parameters, so that of equals the first is the one with its words in front.
        reached = [self._tree[method]]
        for segment in segments:
            steps = ((branch.words.get(segment), branch.any) for branch in reached)
            reached = [branch for step in steps for branch in step if branch is not None]
        found = [branch.operation for branch in reached if branch.operation is not None]
        if not found:
            return None, {}
        # /v1/accounts/{id}/x must not hide behind /v1/{a}/{b}/x: most words win.
        operation = min(found, key=lambda each: sum(map(is_parameter, self._patterns[each.name])))
        pattern = zip(self._patterns[operation.name], segments, strict=True)
        return operation, {want[1:-1]: have for want, have in pattern if is_parameter(want)}

    @staticmethod
    def _plant(branch: _Branch, segments: tuple[str, ...]) -> _Branch:
        """Where a path of these segments ends."""
        for segment in segments:
            if is_parameter(segment):
                branch.any = branch = branch.any or _Branch()
            else:
                branch = branch.words.setdefault(segment, _Branch())
        return branch


def _idempotency_headers(known: Idempotency | None) -> tuple[bytes, bytes]:
    """Of a request's idempotency key, and of the mark on a repeated answer; empty where there is none."""
    if known is None:
        return b"", b""
    return known.header.lower().encode("ascii"), (known.replay_header or "").lower().encode("ascii")


def read_vendor(text: str, country_of: CountryOf = nowhere) -> Vendor:
    """Read and check a vendor file.

    Args:
        text: the file.
        country_of: places phone numbers, for prices by country; without it each costs the dearest.

    Raises:
        VendorFileError: with the key and the allowed values.
    """
    try:
        plain: dict[str, Any] = tomllib.loads(text, parse_float=Decimal)
    except UNREADABLE_TOML as error:
        raise VendorFileError(f"not TOML: {error}") from None
    try:
        file = msgspec.convert(plain, VendorFile, builtin_types=(Decimal,))
    except msgspec.ValidationError as error:
        raise VendorFileError(explain(str(error))) from None
    for problem in problems(file):
        raise VendorFileError(problem.message)
    return Vendor(file, country_of)


def priced(vendor: Vendor, own: PriceTable, key: str) -> Vendor:
    """The same vendor with the operator's prices over its own.

    Args:
        vendor: as its file has it.
        own: the prices that differ.
        key: what they are called, for people.

    Raises:
        VendorFileError: a price that is none, or a vendor without any.
    """
    if vendor.file.price is None:
        raise VendorFileError(f"`{key}`: nothing of {vendor.name} is sold by count")
    file = msgspec.structs.replace(vendor.file, price=overlaid(vendor.file.price, own))
    for problem in problems_of_prices(file, key):
        raise VendorFileError(problem.message)
    return Vendor(file, vendor.tariff.country_of)
