"""Stripe's form encoding: `metadata[a]=b`, `expand[0]=x`, read strictly.

What must stay true: an amount is ASCII digits and nothing else (`int()` alone would take `20_00`, `+5` and
full-width digits), and what cannot be read is refused with Stripe's code, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Union
from urllib.parse import parse_qsl

from kbctld.sandbox.errors import StripeError, missing

Tree = dict[str, Union[str, "Tree"]]

_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)

# More than any real call carries; without bounds, nesting and fields are a way to exhaust the parser.
_FIELDS_MAX = 1_000
_DEPTH_MAX = 8

# What Stripe documents for metadata.
_METADATA_KEYS_MAX = 50
_METADATA_KEY_LENGTH_MAX = 40
_METADATA_VALUE_LENGTH_MAX = 500

# The largest charge Stripe takes in a two-decimal currency: eight digits.
_AMOUNT_MAX = 99_999_999
_AMOUNT_MIN = {"usd": 50, "eur": 50, "gbp": 30, "cad": 50, "aud": 50, "chf": 50, "jpy": 50}

_CURRENCIES = frozenset(
    """usd aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd bwp byn bzd cad
    cdf chf clp cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf gtq gyd hkd hnl
    htg huf idr ils inr isk jmd jod jpy kes kgs khr kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad mdl mga mkd
    mmk mnt mop mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd
    rub rwf sar sbd scr sek sgd shp sle sos srd std szl thb tjs tnd top try ttd twd tzs uah ugx uyu uzs vnd
    vuv wst xaf xcd xof xpf yer zar zmw""".split()
)


def decode(*encoded: bytes) -> Tree:
    """The nested parameters of a query and a body: where both name one field, the body's stands.

    Whether the real Stripe honours money in a POST's query string is not known. This one does, so that a
    proxy that overlooks it is found out.
    """
    tree: Tree = {}
    for data in encoded:
        try:
            pairs = parse_qsl(
                data.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_MAX
            )
        except ValueError as error:
            raise StripeError(400, "The parameters are not a readable form.") from error
        for key, value in pairs:
            _insert(tree, key, value)
    return tree


def _insert(tree: Tree, key: str, value: str) -> None:
    name, bracket, rest = key.partition("[")
    path = [name]
    if bracket:
        if not rest.endswith("]"):
            raise StripeError(400, f"Invalid parameter name: {key}.", param=key)
        path += rest[:-1].split("][")
    if len(path) > _DEPTH_MAX:
        raise StripeError(400, "The parameters are nested too deeply.", param=name)
    node = tree
    for part in path[:-1]:
        child = node.setdefault(part or str(len(node)), {})
        if isinstance(child, str):
            raise StripeError(400, f"{name} is both a value and an object.", param=name)
        node = child
    leaf = path[-1] or str(len(node))
    if isinstance(node.get(leaf), dict):
        raise StripeError(400, f"{name} is both a value and an object.", param=name)
    node[leaf] = value


class Form:
    """The parameters of one call, read by name."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def given(self, name: str) -> bool:
        return name in self.tree

    def text(self, name: str) -> str | None:
        value = self.tree.get(name)
        if isinstance(value, dict):
            raise StripeError(400, f"Invalid string for {name}.", code="parameter_invalid_string", param=name)
        return value or None

    def required(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise missing(name)
        return value

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        value = self.text(name)
        if value is not None and value not in allowed:
            raise StripeError(400, f"Invalid {name}: must be one of {', '.join(allowed)}.", param=name)
        return value

    def boolean(self, name: str) -> bool | None:
        value = self.text(name)
        if value is None:
            return None
        # stripe-python 11 writes `True`, every other SDK `true`.
        if value not in ("true", "True", "false", "False"):
            raise StripeError(400, f"Invalid boolean: {value}", param=name)
        return value in ("true", "True")

    def integer(self, name: str) -> int | None:
        if name not in self.tree:
            return None
        value = self.text(name)
        if value is None:
            raise StripeError(400, f"{name} cannot be unset.", code="parameter_invalid_empty", param=name)
        if _INTEGER.fullmatch(value) is None:
            raise StripeError(400, f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
        return int(value)

    def amount(self, name: str = "amount") -> int | None:
        """An amount in minor units: at least 1."""
        value = self.integer(name)
        if value is not None and value < 1:
            raise StripeError(
                400, "This value must be at least 1.", code="parameter_invalid_integer", param=name
            )
        return value

    def required_amount(self, name: str = "amount") -> int:
        value = self.amount(name)
        if value is None:
            raise missing(name)
        return value

    def currency(self) -> str:
        value = self.required("currency").lower()
        if value not in _CURRENCIES:
            raise StripeError(400, f"Invalid currency: {value}.", param="currency")
        return value

    def metadata(self, current: dict[str, str] | None = None) -> dict[str, str]:
        """`current` with this call's changes: an empty value removes its key, an empty `metadata` all."""
        changes = self.tree.get("metadata")
        if changes is None:
            return current or {}
        if isinstance(changes, str):
            if changes:
                raise StripeError(400, "Invalid object for metadata.", param="metadata")
            return {}
        merged = dict(current or {})
        for key, value in changes.items():
            if isinstance(value, dict) or len(key) > _METADATA_KEY_LENGTH_MAX:
                raise StripeError(400, f"Invalid metadata key: {key}.", param=f"metadata[{key}]")
            if len(value) > _METADATA_VALUE_LENGTH_MAX:
                raise StripeError(400, f"The metadata value of {key} is too long.", param=f"metadata[{key}]")
            if value:
                merged[key] = value
            else:
                merged.pop(key, None)
        if len(merged) > _METADATA_KEYS_MAX:
            raise StripeError(400, "Too many metadata keys.", param="metadata")
        return merged

    def texts(self, name: str) -> list[str]:
        """A list of strings, in the order of its indices (`expand[]=a`, `expand[0]=a`)."""
        value = self.tree.get(name, {})
        if isinstance(value, str):
            raise StripeError(400, f"Invalid array for {name}.", param=name)
        return [item for item in value.values() if isinstance(item, str)]


def check_charge_size(amount: int, currency: str, param: str = "amount") -> None:
    """What may be taken from a card: neither too small nor too large."""
    if amount < _AMOUNT_MIN.get(currency, 1):
        raise StripeError(
            400, "The amount is below the least that can be charged.", code="amount_too_small", param=param
        )
    if amount > _AMOUNT_MAX:
        raise StripeError(
            400, "The amount is above the most that can be charged.", code="amount_too_large", param=param
        )
