"""A vendor is one TOML file: its schema, and everything that can be wrong in one.

What must stay true: the file is data in closed vocabularies. It picks an auth scheme, a body kind, a
cost kind; it cannot compute. An unknown key or word is an error that names the key and the words that
would do.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Literal, NamedTuple, TypeAlias, get_args

import msgspec
from msgspec import Meta, Struct

from kbctld.core.account import AccountTable
from kbctld.core.hosts import Hosts, HostTable
from kbctld.core.money import nano_from_usd
from kbctld.core.operation import (
    PLACEHOLDER,
    Amount,
    Cost,
    Counted,
    Flat,
    Increase,
    Items,
    LookUp,
    Minutes,
    Operation,
    Operations,
    Recipients,
    Sms,
    Text,
    Tokens,
)
from kbctld.core.pace import PaceError, Rate, read_rate
from kbctld.core.tariff import PriceTable, Tariff, TariffError, read_tariff
from kbctld.core.tokens import TokenApi

SCHEMA = 1

RateClass: TypeAlias = Literal["read", "write"]
"""What vendors count apart: a method of READS is a read, any other a write."""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_OPERATION = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*", re.ASCII)
_PATTERN = re.compile(r"(GET|HEAD|POST|PUT|PATCH|DELETE) (/[A-Za-z0-9._~{}/-]*)", re.ASCII)
_ORIGIN = re.compile(r"https://[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?", re.ASCII)
_WORD = re.compile(r"/[a-z][a-z-]*", re.ASCII)
_FEES = frozenset({"per_segment_fee_usd", "per_media_fee_usd"})
_MODEL = re.compile(r"[A-Za-z0-9._:/@-]{0,200}\*?", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_OWN = ("name", "match")
_PARAMETER = re.compile(r"[A-Za-z0-9_.-]+(?:\[[A-Za-z0-9_.-]*\])*", re.ASCII)
_HEADER = re.compile(r"[a-z][a-z0-9-]*", re.ASCII)

# These frame, route or authenticate a message: we write them ourselves or not at all.
_NEVER_FORWARDED = frozenset(
    "authorization connection content-encoding content-length cookie expect forwarded host keep-alive "
    "proxy-authorization proxy-connection te trailer transfer-encoding upgrade via x-api-key".split()
)

# tomllib lets more than its own error (a ValueError) through: numbers beyond any bound, deep nesting.
UNREADABLE_TOML = (ValueError, ArithmeticError, RecursionError)


class VendorFileError(ValueError):
    """A vendor file that can't be used; the text names the key and what it takes."""


class _Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class Problem(NamedTuple):
    """One thing that is wrong in a vendor file, and the way there: ``("operation", 3, "match")``."""

    path: tuple[str | int, ...]
    message: str


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


class RecordKind(_Strict):
    """One kind of things that the vendor lists.

    Attributes:
        part_of: where in an entry another object is named that counts in its place.
    """

    part_of: Text | None = None


class RecordTable(_Strict):
    """The vendor's own list of what was made, newest first. Words are paths of names, but for the parameters.

    Attributes:
        get: the path, with what goes along every time: ``/v1/events?limit=100``.
        kind: the parameter that chooses one kind, and the member of an entry that tells it.
        since: the parameter of the earliest time, seconds since the epoch.
        until: of the latest.
        after: of the entry behind which the next page begins.
        items: in the answer, the entries.
        more: in the answer, whether there is a further page.
        id: in an entry, what names it.
        at: its time, seconds since the epoch.
        request: the id of the request that made the thing; null where the vendor did so by itself.
        key: the idempotency key of that request.
        object: the id of the thing.
        amount: its amount, in minor units.
        currency: its currency.
        days: how long entries are kept.
        kinds: what is listed, by the vendor's word.
    """

    get: Text
    kind: Text
    since: Text
    until: Text
    after: Text
    items: Text
    more: Text
    id: Text
    at: Text
    request: Text
    key: Text
    object: Text
    amount: Text
    currency: Text
    days: Annotated[int, Meta(ge=1, le=365)]
    kinds: Annotated[dict[Text, RecordKind], Meta(min_length=1)]


class ListingTable(_Strict):
    """A list of what was made that tells no request: what a call made is found by what it asked for.

    Attributes:
        get: the path, with what goes along every time, and parameters of ``match``.
        since: the parameter of the earliest time, in RFC 3339.
        until: of the latest.
        items: in the answer, the entries: a path of names, as all that follows.
        next: where the next page is, as a path and a query of the same list; null on the last one.
        object: in an entry, the id of the thing.
        at: when it was made, as RFC 2822 writes it.
        same: fields of the request and the members of an entry that they become. Of those in one table the
            first counts that is there.
        counts: fields of the request that may be repeated, and the members that say how often they were.
        only: what an entry must say to be one that a call has made.
        price: what it cost; null until the vendor knows.
        unit: the currency of that.
        price_follows: whether things of the same content cost the same, so that a true price may be taken
            from the one that was found.
        days: how long entries are kept.
    """

    get: Text
    since: Text
    until: Text
    items: Text
    next: Text
    object: Text
    at: Text
    same: Annotated[list[Annotated[dict[Text, Text], Meta(min_length=1)]], Meta(min_length=1)]
    price: Text
    unit: Text
    days: Annotated[int, Meta(ge=1, le=365)]
    counts: dict[Text, Text] = {}
    only: dict[Text, str] = {}
    price_follows: bool = False


class StateTable(_Strict):
    """What an object says of a call on it that got no answer.

    Attributes:
        get: the path, with parameters of ``match``.
        at: in the answer, its state; a path of names.
        done: states that show the call's effect, whoever brought it about.
        amount: in the answer, what must also be the amount that the call stated.
        never: states that no call brings about and none gets the object out of.
        moved: in the answer, the amount that must be 0 for that.
    """

    get: Text
    at: Text
    done: Annotated[list[str | bool], Meta(min_length=1)]
    amount: Text | None = None
    never: list[str] = []
    moved: Text | None = None


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
    record: RecordTable | None = None
    """Where calls that got no answer can be found again, by their idempotency keys."""
    listing: dict[Text, ListingTable] = {}
    """Where they can be found by their contents; by name."""
    state: dict[Text, StateTable] = {}
    """Where the object that they act on tells; by name."""
    survives: Survival | None = None
    example: list[Example] = []


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
        if not _is_read(table.get, file):
            yield Problem(("lookup", name, "get"), f"`lookup.{name}.get` takes a path below a root")
    if file.record is not None:
        yield from _problems_of_record(file.record, file)
    for name, listing in file.listing.items():
        for key, message in _problems_of_listing(name, listing, file):
            yield Problem(("listing", name, key), f"`listing.{name}.{key}` {message}")
    for name, state in file.state.items():
        if not _is_read(state.get, file):
            yield Problem(("state", name, "get"), f"`state.{name}.get` takes a path below a root")
        if bool(state.never) != (state.moved is not None):
            yield Problem(("state", name, "never"), f"`state.{name}`: `never` and `moved` stand together")
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
    yield from problems_of_prices(file, "price")
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
        method, path = split_match(operation)
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
    if operation.record in file.listing:
        if not isinstance(cost, Counted) or file.body != "form":
            yield "record", "`record` takes a listing where forms are priced by `[price]`"
        if not set(PLACEHOLDER.findall(file.listing[operation.record].get)) <= set(PLACEHOLDER.findall(path)):
            yield "record", "`record` takes a listing whose `get` has parameters of `match` alone"
    elif operation.record is not None:
        if file.record is None or operation.record not in file.record.kinds:
            yield "record", f"`record` takes one of `record.kinds` or a listing, not {operation.record!r}"
        if not isinstance(cost, Amount):
            yield "record", "`record` takes an operation whose cost is of kind amount"
    if operation.state is not None:
        table = file.state.get(operation.state)
        if table is None:
            yield "state", f"`state` takes a state of the file, not {operation.state!r}"
        elif not set(PLACEHOLDER.findall(table.get)) <= set(PLACEHOLDER.findall(path)):
            yield "state", "`state` takes one whose `get` has parameters of `match` alone"
        if operation.record is not None:
            yield "state", "`state` and `record` don't stand together: either the object is new or it is not"
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


def _is_read(get: str, file: VendorFile) -> bool:
    """Whether it is a path below a root, parameters for whole names aside."""
    path = PLACEHOLDER.sub("x", get.partition("?")[0])
    good = _PATTERN.fullmatch(f"GET {path}") is not None and "{" not in path
    return good and path.startswith(tuple(file.roots))


def _problems_of_listing(name: str, table: ListingTable, file: VendorFile) -> Iterator[tuple[str, str]]:
    if not _OPERATION.fullmatch(name) or (file.record is not None and name in file.record.kinds):
        yield "get", "stands under a name of words and dots that is none of `record.kinds`"
    if not _is_read(table.get, file):
        yield "get", "takes a path below a root"
    # kbctl reconcile reads it of the credential's own account, without a call to take parameters from.
    named = PLACEHOLDER.findall(table.get)
    if named and (file.account is None or f"/{file.account.after}/{{{'}{'.join(named)}}}/" not in table.get):
        yield "get", "takes no parameter but the one behind `account.after`"
    if name not in {operation.record for _, operation in listed(file)}:
        yield "get", "lists what no operation makes"


def _problems_of_record(table: RecordTable, file: VendorFile) -> Iterator[Problem]:
    path = table.get.partition("?")[0]
    if not path.startswith(tuple(file.roots)) or not _PATTERN.fullmatch(f"GET {path}") or "{" in path:
        yield Problem(("record", "get"), "`record.get` takes a path below a root")
    if file.idempotency is None:
        yield Problem(("record",), "`record` takes a file with `[idempotency]`: by such keys calls are found")
    for key in ("kind", "since", "until", "after"):
        name = getattr(table, key)
        if not _PARAMETER.fullmatch(name):
            yield Problem(("record", key), f"`record.{key}` takes the name of a parameter, not {name!r}")
    made = {operation.record for _, operation in listed(file)}
    for kind in table.kinds:
        if not _OPERATION.fullmatch(kind):
            yield Problem(("record", "kinds", kind), f"`record.kinds` takes words and dots, not {kind!r}")
        elif kind not in made:
            yield Problem(("record", "kinds", kind), f"`record.kinds`: no operation makes {kind!r}")


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


def problems_of_prices(file: VendorFile, key: str) -> Iterator[Problem]:
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


def split_match(operation: Operation) -> tuple[str, str]:
    """Method and path of what an operation matches.

    Raises:
        VendorFileError: it is no METHOD /path.
    """
    match = _PATTERN.fullmatch(operation.match)
    if match is None:
        raise VendorFileError("`match` takes METHOD /path with {parameters}")
    for segment in match[2].strip("/").split("/"):
        if ("{" in segment or "}" in segment) and not PLACEHOLDER.fullmatch(segment):
            raise VendorFileError("a parameter takes a whole segment of `match`")
    return match[1], match[2]


def is_parameter(segment: str) -> bool:
    """Whether it stands for any one segment."""
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
