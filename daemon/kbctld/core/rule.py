"""Parameter rules: what the fields of a call may say. ``[SCOPE: ]FIELD OP VALUE``.

What must stay true: a rule that can't be understood is an error when it is written, never one that lets
everything through. A call that a rule binds carries its field once, over body, query, path and account
headers together, and with one reading; absent, twice, or not as the rule says: refused. A rule compares
text as it was sent and repairs nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, TypeAlias

from kbctld.core.document import Batch, Document
from kbctld.core.entry import Entry, EntryError, read_entry
from kbctld.core.form import AmbiguousFieldError, Form
from kbctld.core.operation import READS, Operation
from kbctld.core.vendor import Vendor

RULE_MAX = 500
"""Characters of a rule: a list of some twenty ids, and short enough to be shown in a refusal."""

Op = Literal["==", "!=", "in", "<=", "<", ">=", ">", "startswith"]
OPS: tuple[Op, ...] = ("==", "!=", "in", "<=", "<", ">=", ">", "startswith")
_NUMERIC: frozenset[Op] = frozenset(("<=", "<", ">=", ">"))

Place: TypeAlias = Form | Document | Batch | Mapping[str, str] | None
"""Where a field can stand: a body or query, read; path parameters or account headers, by lower-case name."""

# A scope is one word, or a method and a path: neither could be FIELD OP, so a value may hold ": " itself.
_SCOPED = re.compile(r"([^\s:]+(?: +[^\s:]*/[^\s:]*)?): +(.*)")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*", re.ASCII)
# ASCII digits only: Decimal() also takes "1_000", "1e3", "NaN", blanks and full-width digits.
_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,9})?", re.ASCII)
_QUOTES = ('"', "'", "`")
_SHOWN = 60


class RuleError(ValueError):
    """A rule that can't be read; the text says what is wrong and shows one that works."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        text: as the operator wrote it.
        scope: the calls that it binds; None for all that write, and for reads that carry the field.
        field: a path of names joined by dots.
        op: how the value compares.
        values: several for ``in``, otherwise one.
    """

    text: str
    scope: Entry | None
    field: str
    op: Op
    values: tuple[str, ...]

    def admits(self, value: str) -> bool:
        """Whether this one value satisfies the rule."""
        if "\0" in value:
            return False  # to some readers a text ends there
        if self.op in _NUMERIC:
            if not _NUMBER.fullmatch(value):
                return False
            return _compare(Decimal(value), self.op, Decimal(self.values[0]))
        wanted = self.values
        if self.field.rpartition(".")[2] == "currency":
            # Vendors take USD and usd alike. What is not ASCII is no currency, whatever case makes of it.
            if not value.isascii():
                return False
            value, wanted = value.lower(), tuple(each.lower() for each in wanted)
        if self.op == "startswith":
            return value.startswith(wanted)
        return (value in wanted) is (self.op != "!=")

    def binds(self, operation: Operation | None, method: str, path: str, segments: tuple[str, ...]) -> bool:
        """Whether this rule has a say in that call: then every place of its field must be read."""
        if self.scope is None:
            return True
        listed_as = "GET" if method == "HEAD" else method
        return self.scope.covers(operation, listed_as, path, segments)


@dataclass(frozen=True, slots=True)
class RuleBreak:
    """Why a call does not pass the rules.

    Attributes:
        kind: two readings, or one that the rule does not admit.
        rule: the rule.
        sentence: one sentence for people, with little of what the agent sent.
    """

    kind: Literal["ambiguous", "not_allowed"]
    rule: Rule
    sentence: str


def read_rule(text: str, vendors: Iterable[Vendor]) -> Rule:
    """Read ``[SCOPE: ]FIELD OP VALUE``; the scope is what ``read_entry`` takes.

    Raises:
        RuleError: anything that is not understood to the letter.
    """
    if len(text) > RULE_MAX:
        raise RuleError(f"a rule has at most {RULE_MAX} characters; write one rule such as customer == cus_1")
    if not text.isprintable():
        raise RuleError("a rule holds a character that does not print; write it plainly: customer == cus_1")
    scoped = _SCOPED.fullmatch(text.strip(" "))
    scope = _read_scope(scoped[1], vendors) if scoped else None
    field, _, rest = (scoped[2] if scoped else text).strip(" ").partition(" ")
    word, _, value = rest.strip(" ").partition(" ")
    if not _FIELD.fullmatch(field):
        raise RuleError(f"{field!r} is no field; write names joined by dots, as in metadata.tier == gold")
    op = next((op for op in OPS if op == word), None)
    if op is None:
        raise RuleError(
            f"{word!r} is no operator; write one of {' '.join(OPS)} in blanks, as in amount <= 20000"
        )
    value = value.strip(" ")
    values = tuple(each.strip(" ") for each in value.split(",")) if op == "in" else (value,)
    for each in values:
        _check_value(field, op, each)
    return Rule(text, scope, field, op, values)


def check_rules(
    rules: Iterable[Rule],
    *,
    operation: Operation | None,
    method: str,
    path: str,
    segments: tuple[str, ...],
    places: Sequence[Place],
) -> RuleBreak | None:
    """The first rule that the call breaks, one with two readings before any other; None where it keeps all.

    Args:
        rules: of the key.
        operation: what the vendor file calls the call.
        method: of the call.
        path: canonical.
        segments: of the path.
        places: everywhere that a field can stand; a body that is there must have been read.
    """
    first: RuleBreak | None = None
    for rule in rules:
        if not rule.binds(operation, method, path, segments):
            continue
        try:
            values = _read(rule.field, places)
        except AmbiguousFieldError:
            return RuleBreak(
                "ambiguous",
                rule,
                f"{rule.field} can be read in more than one way, and the rule {rule.text!r} depends on it",
            )
        if first is None:
            must = rule.scope is not None or method not in READS
            first = _judge(rule, values, must)
    return first


def _judge(rule: Rule, values: tuple[str, ...] | None, must: bool) -> RuleBreak | None:
    if values is None:
        if not must:
            return None
        return RuleBreak(
            "not_allowed", rule, f"the request states no {rule.field}, and the rule {rule.text!r} asks for it"
        )
    wrong = next((value for value in values if not rule.admits(value)), None)
    if wrong is None:
        return None
    return RuleBreak(
        "not_allowed", rule, f"the rule {rule.text!r} does not admit the {rule.field} {_show(wrong)}"
    )


def _read(field: str, places: Sequence[Place]) -> tuple[str, ...] | None:
    """What the one place that carries the field says of it.

    Raises:
        AmbiguousFieldError: two places carry it, or one has two readings of it.
    """
    found: tuple[str, ...] | None = None
    for place in places:
        if place is None:
            continue
        if isinstance(place, Form | Document | Batch):
            here = place.values(field)
        else:
            value = place.get(field.lower())
            here = None if value is None else (value,)
        if here is not None:
            if found is not None:
                raise AmbiguousFieldError(field)
            found = here
    return found


def _read_scope(text: str, vendors: Iterable[Vendor]) -> Entry:
    try:
        return read_entry(text, vendors)
    except EntryError as error:
        raise RuleError(f"the rule's scope: {error}; then the rule, as in {text}: amount <= 500") from None


def _check_value(field: str, op: Op, value: str) -> None:
    if not value:
        raise RuleError(f"{field} {op} lacks a value; write one, as in {field} {op} {_sample(op)}")
    if value[0] in _QUOTES and value[-1] == value[0]:
        # Taken to the letter it would match nothing, and so "!=" would let everything through.
        raise RuleError(f"{value} is in quotes, which would be part of it; write {field} {op} {_sample(op)}")
    if op in _NUMERIC and not _NUMBER.fullmatch(value):
        raise RuleError(f"{value!r} is no plain number; write digits, as in {field} {op} 20000")


def _sample(op: Op) -> str:
    return "20000" if op in _NUMERIC else "cus_1,cus_2" if op == "in" else "cus_1"


def _compare(value: Decimal, op: Op, bound: Decimal) -> bool:
    if op in ("<=", ">=") and value == bound:
        return True
    return value < bound if op in ("<=", "<") else value > bound


def _show(value: str) -> str:
    """A value for a sentence that an audit row keeps: its start, and nothing that could be a vault key."""
    if "vault_key_" in value:
        return "that was sent, a vault key"
    return repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}..."
