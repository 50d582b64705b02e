"""A vendor is one TOML file: where it lives, how it is spoken to, what each operation costs.

What must stay true: the file is data in closed vocabularies. It picks an auth scheme, a body kind, a
cost kind; it cannot compute. An unknown key or word is an error that names the key and the words that
would do. Only the file names the origin; nothing in a request can change it.
"""

import re
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

import msgspec
from msgspec import Meta, Struct

from kbctld.core.account import AccountTable
from kbctld.core.hosts import Hosts, HostTable
from kbctld.core.money import nano_from_usd
from kbctld.core.pace import PaceError, Rate, read_rate
from kbctld.core.refusal import Refusal
from kbctld.core.target import Arrived, Target, settle_target
from kbctld.core.tariff import CountryOf, PriceTable, Tariff, TariffError, nowhere, overlaid, read_tariff
from kbctld.core.tokens import TokenApi

SCHEMA = 1

READS = frozenset({"GET", "HEAD"})
WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
METHODS = READS | WRITES

RateClass: TypeAlias = Literal["read", "write"]
"""What vendors count apart: a method of READS is a read, any other a write."""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_OPERATION = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*", re.ASCII)
_PATTERN = re.compile(r"(GET|HEAD|POST|PUT|PATCH|DELETE) (/[A-Za-z0-9._~{}/-]*)", re.ASCII)
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}", re.ASCII)
"""A parameter of a path."""
_ORIGIN = re.compile(r"https://[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?", re.ASCII)
_WORD = re.compile(r"/[a-z][a-z-]*", re.ASCII)
_FEES = frozenset({"per_segment_fee_usd", "per_media_fee_usd"})
_MODEL = re.compile(r"[A-Za-z0-9._:/@-]{0,200}\*?", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_OWN = ("name", "match")
_HEADER = re.compile(r"[a-z][a-z0-9-]*", re.ASCII)

# These frame, route or authenticate a message: we write them ourselves or not at all.
_NEVER_FORWARDED = frozenset(
    "authorization connection content-encoding content-length cookie expect forwarded host keep-alive "
    "proxy-authorization proxy-connection te trailer transfer-encoding upgrade via x-api-key".split()
)

# tomllib lets more than its own error (a ValueError) through: numbers beyond any bound, deep nesting.
UNREADABLE_TOML = (ValueError, ArithmeticError, RecursionError)

Text = Annotated[str, Meta(min_length=1)]


class VendorFileError(ValueError):
    """A vendor file that can't be used; the text names the key and what it takes."""


class _Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class Problem(NamedTuple):
    """One thing that is wrong in a vendor file, and the way there: ``("operation", 3, "match")``."""

    path: tuple[str | int, ...]
    message: str


class Free(_Strict, tag_field="kind", tag="free"):
    """Moves no money.

    Attributes:
        unbounded: fields of body or query that make it cost what the request does not tell.
    """

    unbounded: list[Text] = []


class Amount(_Strict, tag_field="kind", tag="amount"):
    """A field of the body is the amount, in minor units; a field may be a path, ``amount.value``.

    Attributes:
        amount: the field.
        currency: the field; left out where the currency follows from an object (``currency_of``).
        currency_of: fields or path parameters naming an object whose currency applies. Where we
            don't know that object, the dearest minor unit is held and the answer's own figure is spent.
        object: the answer's field with the id to remember the amount under, if later operations build on it.
        signed: the amount goes either way; what counts is how much.
        unbounded: fields of body or query beside which the amount is not all.
        lookup: where the amount is left out, what to read of the object instead: the one of these look-ups
            whose object the request names.
        answers_amount: the answer's ``amount`` is what was moved, and not what it was moved of.
    """

    amount: Text
    currency: Text | None = None
    currency_of: list[Text] = []
    object: Text | None = None
    signed: bool = False
    unbounded: list[Text] = []
    lookup: list[Text] = []
    answers_amount: bool = True


class Increase(_Strict, tag_field="kind", tag="increase"):
    """Sets the amount of an object that was counted when it was made; only the excess counts.

    Attributes:
        of: the path parameter that names the object.
        amount: the form field with the new total; where absent, nothing is added.
        currency: the form field; where absent, the object's own.
        only_stated: without amount and currency it does nothing, whatever the object is.
        lookup: what to read of an object that nobody counted yet, which then counts in full.
    """

    of: Text
    amount: Text | None = None
    currency: Text | None = None
    only_stated: bool = False
    lookup: list[Text] = []


class LookUp(_Strict, tag_field="kind", tag="lookup"):
    """Moves what an object comes to, each time.

    Attributes:
        lookup: what to read of it: the one of these look-ups whose object the request names.
    """

    lookup: Annotated[list[Text], Meta(min_length=1)]


class Tokens(_Strict, tag_field="kind", tag="tokens"):
    """Costs what a language model reads and writes: held by the body's bounds, spent by the answer's usage.

    Attributes:
        api: how bodies ask and answers count.
    """

    api: TokenApi


class Items(_Strict, tag_field="kind", tag="items"):
    """A list in the form holds what is to be paid: the sum of amount times quantity, in one currency.

    What may stand beside is listed, because anything else may change the sum: taxes, shipping, a quantity
    that the payer may raise.

    Attributes:
        of: the list: ``line_items`` for ``line_items[0][quantity]``.
        amount: of one item's unit: a path within the item.
        quantity: within the item.
        currency: within the item.
        item_beside: what else an item may hold, with all that stands below.
        beside: what else the form may hold, with all that stands below.
    """

    of: Text
    amount: Text
    quantity: Text
    currency: Text
    item_beside: list[Text] = []
    beside: list[Text] = []


class Unpriceable(_Strict, tag_field="kind", tag="unpriceable"):
    """Costs money that the request does not tell."""

    why: Text


class Recipients(_Strict, tag_field="kind", tag="recipients"):
    """A mail: ``price.per_mail_usd`` for each recipient.

    Attributes:
        fields: the fields with recipients, the one that no mail lacks first.
        at_most: recipients of one field.
        batch: whether the body is an array of such mails.
    """

    fields: Annotated[list[Text], Meta(min_length=1)]
    at_most: Annotated[int, Meta(ge=1, le=10_000)] = 50
    batch: bool = False


class Sms(_Strict, tag_field="kind", tag="sms"):
    """A text message: ``price.per_segment_usd`` for each segment, ``price.per_media_usd`` for each file.

    Attributes:
        to: the field with the destination, a phone number.
        sender: the field with the sender, whose channel (``whatsapp:``) must be none either.
        text: the field with the text.
        media: the field with the files' addresses.
        ceiling: the field in which the vendor takes the most that it may charge, in US dollars; the proxy
            writes what is held into it.
        unbounded: fields that make it cost what the request does not tell.
    """

    to: Text
    text: Text
    sender: Text | None = None
    media: Text | None = None
    ceiling: Text | None = None
    unbounded: list[Text] = []


class Instructions(_Strict):
    """What a phone call is told to do, which may dial further calls.

    Attributes:
        inline: the field with a document of instructions, of which a few that cost nothing are known.
        elsewhere: fields that name a document which the request does not hold.
        price: the name in ``price.per_call_usd`` of the most that such a document can cost; without that
            price, a call that names one is refused.
    """

    inline: Text
    elsewhere: Annotated[list[Text], Meta(min_length=1)]
    price: Text


class Minutes(_Strict, tag_field="kind", tag="minutes"):
    """A phone call: ``price.per_minute_usd`` for each begun minute that it may last.

    Attributes:
        to: the field with the destination, a phone number.
        seconds: the field with how long it may last.
        default_seconds: what the proxy writes there where the request states nothing; without it, such a
            call is refused.
        at_most: the longest that may be stated.
        instructions: what it is told to do.
        unbounded: fields that make it cost what the request does not tell.
    """

    to: Text
    seconds: Text
    default_seconds: Annotated[int, Meta(ge=1, le=86_400)] | None = None
    at_most: Annotated[int, Meta(ge=1, le=999_999)] = 999_999
    instructions: Instructions | None = None
    unbounded: list[Text] = []


class Flat(_Strict, tag_field="kind", tag="flat"):
    """The same for every call: ``price.per_call_usd`` of this name.

    Attributes:
        price: its name.
        to: the field with a destination that gets a message of one segment on top.
        instructions: what a phone call is told to do by it.
        unbounded: fields of body or query that make it cost what the request does not tell.
    """

    price: Text
    to: Text | None = None
    instructions: Instructions | None = None
    unbounded: list[Text] = []


Counted = Recipients | Sms | Minutes | Flat
"""Costs a count of things times their price in the file's ``[price]``."""

Cost = Free | Amount | Increase | LookUp | Items | Recipients | Sms | Minutes | Flat | Tokens | Unpriceable


class Later(_Strict):
    """Where the vendor tells the true price of a call, some time after it.

    Attributes:
        get: the path, with parameters of ``match`` and ``{id}``.
        object: the field of the call's answer with that id.
        price: the field of the later answer with the price, a text; null until it is known.
        unit: the field with its currency.
        after_s: seconds until it is first asked for.
    """

    get: Text
    object: Text
    price: Text
    unit: Text
    after_s: Annotated[int, Meta(ge=1, le=86_400)] = 60


class Operation(_Strict):
    """One thing that the vendor can do."""

    name: Text
    match: Text
    cost: Cost
    privileged: bool = False
    """Mints credentials or moves payout destinations: allowed by exact name only."""
    stamps: bool = False
    """Takes the vendor's own metadata, so that a key may stamp it."""
    repeats: bool = False
    """Asking for it again soon is normal, as for a code that did not come: no duplicate is suspected."""
    later: Later | None = None
    """Where its true price is told, for what is counted by a table of prices."""

    @property
    def body_decides(self) -> bool:
        """Whether its cost depends on what the body says."""
        cost = self.cost
        return bool(cost.unbounded) if isinstance(cost, Free) else not isinstance(cost, Unpriceable)


class Operations(_Strict):
    """Several things that the vendor can do, alike in all but name and match."""

    cost: Cost
    matches: Annotated[dict[Text, Text], Meta(min_length=1)]
    """``METHOD /path`` by name."""
    privileged: bool = False
    stamps: bool = False


AuthScheme = Literal["bearer", "basic", "x-api-key", "header"]


class Auth(_Strict):
    """How the real secret is sent.

    Attributes:
        scheme: the usual way.
        also: other ways that the vendor takes: used where the agent sent its vault key so.
        user: for basic, the field of the credential that is the user's name; the secret is the password.
        header: for header, the lower-case name of the vendor's own; its value is the secret.
    """

    scheme: AuthScheme
    also: list[Literal["bearer", "x-api-key"]] = []
    user: Text | None = None
    header: Text | None = None


class Idempotency(_Strict):
    """How the vendor recognises a retry."""

    header: Text
    methods: list[Literal["POST", "DELETE"]]
    window_hours: Annotated[int, Meta(ge=1, le=168)]
    """No longer than the vendor keeps a key: afterwards a retry is a new call."""
    operations: list[Text] = []
    """The only operations that it recognises a retry of; empty for all."""
    replay_header: Text | None = None
    """``true`` in an answer that repeats an earlier one."""


class RateTable(_Strict):
    """The rate that the vendor takes of one account, by class; left out where it has none."""

    read: Text | None = None
    write: Text | None = None


class Timeouts(_Strict):
    """How long the vendor may take, where that is longer than usual; seconds."""

    first_byte_s: Annotated[int, Meta(ge=1, le=3600)] | None = None
    """From the last byte of a request to the first one of its answer."""


class TokenDollars(_Strict):
    """US dollars for a million tokens; a figure that is left out costs what input costs."""

    input_per_million: Decimal | int
    output_per_million: Decimal | int | None = None
    """Left out for a model that writes nothing."""
    cache_read_per_million: Decimal | int | None = None
    cache_write_per_million: Decimal | int | None = None


class ModelPrice(_Strict):
    """The price of models whose names begin alike.

    Attributes:
        model: a name, or the beginning of names and a star.
        source: where it was read.
        dated: when, ISO form.
    """

    model: Text
    input_per_million: Decimal | int
    source: Text
    dated: Text
    output_per_million: Decimal | int | None = None
    cache_read_per_million: Decimal | int | None = None
    cache_write_per_million: Decimal | int | None = None


class LookupTable(_Strict):
    """Something to read of an object before a call on it is priced.

    Attributes:
        get: the path, with the path parameters or body fields that name the object: ``/v1/charges/{charge}``.
        amount: in the answer, in minor units; a path of names.
        minus: in the answer, what of it is gone already.
        currency: in the answer.
        require: what else the answer must say, or it does not bound the cost.
    """

    get: Text
    amount: Text
    currency: Text
    minus: Text | None = None
    require: dict[Text, str | bool] = {}


class Survival(_Strict):
    """An object that a refused call has made or left, so that it can go on without a further call.

    Attributes:
        at: where it stands in the answer.
        ended: the values of its ``status`` with which it can't.
    """

    at: Text
    ended: list[Text] = []


class Example(_Strict):
    """A claim of the file that the tests run."""

    request: Text
    body: str = ""
    operation: str | None = None
    usd: Decimal | int | None = None
    refused: str | None = None


class VendorFile(_Strict):
    """The schema of a vendor file."""

    schema: Literal[1]
    name: Text
    title: Text
    docs: Text
    origin: Text
    body: Literal["form", "json"]
    auth: Auth
    error_shape: Literal["stripe", "twilio", "resend", "openai", "anthropic", "plain"]
    request_id_header: Text
    roots: Annotated[list[Text], Meta(min_length=1)]
    operation: list[Operation] = []
    operations: list[Operations] = []
    """The same in groups."""
    json_roots: list[Text] = []
    """Those of the roots whose requests are JSON where the others' are forms."""
    hosts: HostTable | None = None
    """Further hosts than the origin's; their paths have the host's label in front."""
    account: AccountTable | None = None
    """How a path names the account that it acts in."""
    joins: list[str] = []
    adds: str | None = None
    """What stands in front of a path that starts with no root: a base URL left it out."""
    forward_headers: list[Text] = []
    notice_header: Text | None = None
    """An answer's header that its SDKs show as a warning."""
    account_headers: list[Text] = []
    idempotency: Idempotency | None = None
    metadata_field: Text | None = None
    """The body's object of names and values that the vendor keeps: ``metadata``."""
    metadata_list: Text | None = None
    """The same as a list of ``{name, value}``: Resend's ``tags``."""
    secret_prefixes: list[Text] = []
    rate: RateTable | None = None
    timeouts: Timeouts = msgspec.field(default_factory=Timeouts)
    price: PriceTable | None = None
    """What things cost that are sold by count."""
    model_table: Literal["openai", "anthropic"] | None = None
    """Whose list of the genai-prices library knows the models."""
    model_price: list[ModelPrice] = []
    """Wins over the list; the first line that fits a model holds."""
    lookup: dict[Text, LookupTable] = {}
    """By name."""
    lookup_headers: dict[Text, Text] = {}
    """What goes along with look-ups: the version of the API whose answers they read."""
    survives: Survival | None = None
    example: list[Example] = []


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
        self.key_header = (file.auth.header or "").encode("ascii")
        self.request_id_header = file.request_id_header.lower().encode("ascii")
        self.rates = read_rates_of(file.rate, "rate")
        self.operations = {operation.name: operation for _, operation in listed(file)}
        self._json_roots = tuple(file.json_roots)
        self._literal: dict[tuple[str, str], Operation] = {}
        self._tree: dict[str, _Branch] = {}
        self._patterns: dict[str, tuple[str, ...]] = {}
        """The segments of each operation with parameters, by its name."""
        for operation in self.operations.values():
            method, path = _split(operation)
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
        operation = min(found, key=lambda each: sum(map(_is_parameter, self._patterns[each.name])))
        pattern = zip(self._patterns[operation.name], segments, strict=True)
        return operation, {want[1:-1]: have for want, have in pattern if _is_parameter(want)}

    @staticmethod
    def _plant(branch: _Branch, segments: tuple[str, ...]) -> _Branch:
        """Where a path of these segments ends."""
        for segment in segments:
            if _is_parameter(segment):
                branch.any = branch = branch.any or _Branch()
            else:
                branch = branch.words.setdefault(segment, _Branch())
        return branch


def listed(file: VendorFile) -> Iterator[tuple[tuple[str | int, ...], Operation]]:
    """Every operation of a file, grouped or not, and the way to where it stands."""
    for number, operation in enumerate(file.operation):
        yield ("operation", number), operation
    for number, group in enumerate(file.operations):
        for name, match in group.matches.items():
            operation = Operation(
                name=name,
                match=match,
                cost=group.cost,
                privileged=group.privileged,
                stamps=group.stamps,
            )
            yield ("operations", number, "matches", name), operation


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
    for problem in _problems_of_prices(file, key):
        raise VendorFileError(problem.message)
    return Vendor(file, vendor.tariff.country_of)


def read_rates_of(table: RateTable | None, key: str) -> dict[RateClass, Rate]:
    """The rates of a table.

    Args:
        table: as it was written; None for none.
        key: what the table is called, for people.

    Raises:
        VendorFileError: one that is none.
    """
    rates: dict[RateClass, Rate] = {}
    kind: RateClass
    for kind in ("read", "write"):
        text = getattr(table, kind, None)
        if text is not None:
            try:
                rates[kind] = read_rate(text)
            except PaceError as error:
                raise VendorFileError(f"`{key}.{kind}`: {error}") from None
    return rates


def check_dollars(figures: TokenDollars | ModelPrice, key: str) -> None:
    """Only figures that can be counted exactly, so that none is too small or too large to read.

    Raises:
        VendorFileError: one that is none, with its key.
    """
    for name in TokenDollars.__struct_fields__:
        usd = getattr(figures, name)
        try:
            _ = usd if usd is None else nano_from_usd(usd)
        except ValueError as error:
            raise VendorFileError(f"`{key}.{name}`: {error}") from None


def problems(file: VendorFile) -> Iterator[Problem]:
    """Everything that is wrong in a file of the right form."""
    if not _NAME.fullmatch(file.name):
        yield Problem(("name",), "`name` takes a lower-case word such as stripe")
    if not _ORIGIN.fullmatch(file.origin):
        yield Problem(("origin",), "`origin` takes https://host and nothing behind it")
    hosts = file.hosts.problem(file.origin) if file.hosts is not None else None
    if hosts is not None:
        yield Problem(("hosts",), hosts)
    if file.account is not None and file.account.field != file.auth.user:
        yield Problem(("account", "field"), "`account.field` takes the field that `auth.user` names")
    for root in file.roots:
        if not root.startswith("/") or not (root.endswith("/") or _WORD.fullmatch(root)):
            yield Problem(("roots",), f"`roots` takes paths such as /v1/ or /emails, not {root!r}")
    if file.adds is not None and f"{file.adds}/" not in file.roots:
        yield Problem(("adds",), f"`adds` takes a root without its last slash, not {file.adds!r}")
    named = {"request_id_header": file.request_id_header}
    if file.notice_header is not None:
        named["notice_header"] = file.notice_header
    if file.idempotency is not None:
        named["idempotency.header"] = file.idempotency.header
        named["idempotency.replay_header"] = file.idempotency.replay_header or file.idempotency.header
    for key, header in named.items():
        if not _HEADER.fullmatch(header.lower()):
            yield Problem(tuple(key.split(".")), f"`{key}` takes a header name, not {header!r}")
    if (file.auth.scheme == "basic") != (file.auth.user is not None):
        yield Problem(
            ("auth", "user"), "`auth.user` stands with scheme basic, and names a field of the credential"
        )
    own = file.auth.header
    if (file.auth.scheme == "header") != (own is not None):
        yield Problem(("auth", "header"), "`auth.header` stands with scheme header, and names one")
    elif own is not None and (not _HEADER.fullmatch(own) or own in _NEVER_FORWARDED):
        yield Problem(("auth", "header"), f"`auth.header` takes a lower-case name of a header, not {own!r}")
    elif own in (*file.forward_headers, *file.account_headers):
        yield Problem(("auth", "header"), f"`auth.header` can't be passed on as well: {own!r} is the key's")
    for key in ("forward_headers", "account_headers"):
        for header in getattr(file, key):
            if not _HEADER.fullmatch(header):
                yield Problem((key,), f"`{key}` takes lower-case header names, not {header!r}")
            elif header in _NEVER_FORWARDED:
                yield Problem((key,), f"`{key}` can't take {header!r}: we write it ourselves or not at all")
    if file.idempotency is not None:
        for name in file.idempotency.operations:
            if name not in {operation.name for _, operation in listed(file)}:
                yield Problem(
                    ("idempotency", "operations"),
                    f"`idempotency.operations` takes operations of the file, not {name!r}",
                )
    roots = tuple(file.roots)
    if file.hosts is not None and hosts is None:
        roots = Hosts(file.hosts, roots).all_roots
    for root in file.json_roots:
        if root not in file.roots:
            yield Problem(("json_roots",), f"`json_roots` takes some of the roots, not {root!r}")
    for name, table in file.lookup.items():
        path = PLACEHOLDER.sub("x", table.get.partition("?")[0])
        if not path.startswith(tuple(file.roots)) or not _PATTERN.fullmatch(f"GET {path}") or "{" in path:
            yield Problem(("lookup", name, "get"), f"`lookup.{name}.get` takes a path below a root")
    for header in file.lookup_headers:
        if header not in file.forward_headers:
            message = f"`lookup_headers` takes some of `forward_headers`, not {header!r}"
            yield Problem(("lookup_headers",), message)
    names: set[str] = set()
    matches: set[tuple[str, str]] = set()
    for place, operation in listed(file):
        for key, message in _problems_of(operation, file, roots, names, matches):
            # In a group one line says name and match; the rest stands once, above.
            where = (*place, key) if place[0] == "operation" else place if key in _OWN else (*place[:2], key)
            yield Problem(where, f"operation {operation.name!r}: {message}")
    yield from _problems_of_prices(file, "price")
    for number, line in enumerate(file.model_price):
        for key, message in _problems_of_line(line):
            yield Problem(("model_price", number, key), message)


def _problems_of(
    operation: Operation,
    file: VendorFile,
    roots: tuple[str, ...],
    names: set[str],
    matches: set[tuple[str, str]],
) -> Iterator[tuple[str, str]]:
    if not _OPERATION.fullmatch(operation.name):
        yield "name", "`name` takes words joined by dots, such as payment_intents.create"
    if operation.name in names:
        yield "name", "`name` stands twice"
    names.add(operation.name)
    try:
        method, path = _split(operation)
    except VendorFileError as error:
        yield "match", str(error)
        return
    if not path.startswith(roots):
        yield "match", f"`match` starts with none of {', '.join(file.roots)}"
    shape = (method, PLACEHOLDER.sub("{}", path))
    if shape in matches:
        yield "match", "`match` is another operation's too"
    matches.add(shape)
    form = file.body == "form" and not path.startswith(tuple(file.json_roots))
    if operation.stamps and (file.metadata_field is None or not form):
        yield "stamps", "`stamps` takes a file with `metadata_field` and form bodies"
    cost = operation.cost
    if isinstance(cost, Items) and not form:
        yield "cost", "`cost` takes kind items where bodies are forms"
    if isinstance(cost, Amount) and cost.currency is None and not cost.currency_of:
        yield "cost", "`cost` takes `currency` or `currency_of`"
    if isinstance(cost, Recipients) and cost.batch and file.body != "json":
        yield "cost", "`cost.batch` takes a file with JSON bodies"
    if isinstance(cost, Tokens) and (file.body != "json" or not (file.model_price or file.model_table)):
        yield "cost", "`cost` takes a file with JSON bodies and `model_price` or `model_table`"
    if operation.later is not None:
        known = {*PLACEHOLDER.findall(path), "id"}
        if not isinstance(cost, Counted):
            yield "later", "`later` takes an operation that is priced by `[price]`"
        if not set(PLACEHOLDER.findall(operation.later.get)) <= known or "{id}" not in operation.later.get:
            yield "later", "`later.get` takes {id} and the parameters of `match`"
        elif not operation.later.get.startswith(roots):
            yield "later", f"`later.get` starts with none of {', '.join(file.roots)}"
    adds = (isinstance(cost, Sms) and cost.ceiling) or (isinstance(cost, Minutes) and cost.default_seconds)
    if adds and file.body != "form":
        yield "cost", "`cost` takes `ceiling` and `default_seconds` only in a file with form bodies"
    if isinstance(cost, Minutes) and cost.default_seconds and cost.default_seconds > cost.at_most:
        yield "cost", "`cost.default_seconds` is longer than `cost.at_most`"
    if isinstance(cost, Increase) and "{" + cost.of + "}" not in path:
        yield "cost", "`cost.of` takes a path parameter of `match`"
    if isinstance(cost, Amount | Increase | LookUp):
        for name in cost.lookup:
            if name not in file.lookup:
                yield "cost", f"`cost.lookup` takes look-ups of the file, not {name!r}"


def _problems_of_line(line: ModelPrice) -> Iterator[tuple[str, str]]:
    if not _MODEL.fullmatch(line.model):
        takes = "`model_price.model` takes a name, or the beginning of names and a *"
        yield "model", f"{takes}, not {line.model!r}"
    if not _DATE.fullmatch(line.dated):
        yield "dated", f"`model_price.dated` takes a date such as 2026-11-21, not {line.dated!r}"
    try:
        check_dollars(line, "model_price")
    except VendorFileError as error:
        yield "input_per_million", str(error)


def _problems_of_prices(file: VendorFile, key: str) -> Iterator[Problem]:
    """A price that is none; a table without its source; something counted without a price."""
    if file.price is not None and not (file.price.source and file.price.dated):
        yield Problem(("price",), f"`{key}` takes `source` and `dated`: where prices were read, and when")
    try:
        tariff = read_tariff(file.price or PriceTable(), key)
    except TariffError as error:
        yield Problem(("price",), str(error))
        return
    present = _present(tariff)
    for place, operation in listed(file):
        for price in _needs(operation.cost):
            if price not in present:
                message = f"operation {operation.name!r}: its cost takes `{key}.{price}`"
                yield Problem((*place[:2], "cost"), message)
            present[price] = True
        if isinstance(operation.cost, Sms) and operation.later is not None:
            present.update(dict.fromkeys(present.keys() & _FEES, True))
        if isinstance(operation.cost, Minutes | Flat) and operation.cost.instructions is not None:
            name = f"per_call_usd.{operation.cost.instructions.price}"
            if name in present:
                present[name] = True  # the operator's word: a file may do without
    for price, used in present.items():
        if not used:
            message = f"`{key}.{price}`: no operation of {file.name} costs that"
            yield Problem(("price", *price.split(".")), message)


def _present(tariff: Tariff) -> dict[str, bool]:
    """The keys of the prices that a tariff holds; none is used yet."""
    counts = {
        "per_mail_usd": tariff.mail is not None,
        "per_segment_usd": bool(tariff.segment),
        "per_media_usd": tariff.media is not None,
        "per_segment_fee_usd": tariff.segment_fee > 0,
        "per_media_fee_usd": tariff.media_fee > 0,
        "per_minute_usd": bool(tariff.minute),
    }
    held = [key for key, there in counts.items() if there] + [f"per_call_usd.{name}" for name in tariff.call]
    return dict.fromkeys(held, False)


def _needs(cost: Cost) -> list[str]:
    """The keys of the prices that this cost is made of."""
    match cost:
        case Recipients():
            return ["per_mail_usd"]
        case Sms():
            return ["per_segment_usd", *(["per_media_usd"] if cost.media is not None else [])]
        case Minutes():
            return ["per_minute_usd"]
        case Flat():
            return [f"per_call_usd.{cost.price}", *(["per_segment_usd"] if cost.to is not None else [])]
    return []


def _split(operation: Operation) -> tuple[str, str]:
    match = _PATTERN.fullmatch(operation.match)
    if match is None:
        raise VendorFileError("`match` takes METHOD /path with {parameters}")
    for segment in match[2].strip("/").split("/"):
        if ("{" in segment or "}" in segment) and not PLACEHOLDER.fullmatch(segment):
            raise VendorFileError("a parameter takes a whole segment of `match`")
    return match[1], match[2]


def _is_parameter(segment: str) -> bool:
    return segment.startswith("{")


def explain(text: str) -> str:
    """msgspec names the path of a wrong value; for the closed vocabularies, say the words too."""
    if "kind`" in text:
        kinds = "free, amount, increase, lookup, items, recipients, sms, minutes, flat, tokens or unpriceable"
        text += f"; `kind` takes {kinds}"
    elif "`$.auth.scheme`" in text:
        text += "; it takes bearer, basic, x-api-key or header"
    elif "`$.idempotency.methods" in text:
        text += "; it takes POST or DELETE"
    elif "`$.body`" in text:
        text += "; it takes form or json"
    elif ".cost.api`" in text:
        text += f"; it takes {', '.join(get_args(TokenApi))}"
    elif "`$.model_table`" in text:
        text += "; it takes openai or anthropic"
    elif "`$.error_shape`" in text:
        text += "; it takes stripe, twilio, resend, openai, anthropic or plain"
    elif "`$.schema`" in text:
        text += f"; it takes {SCHEMA}"
    return text
