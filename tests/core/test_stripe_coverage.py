"""Every operation that Stripe's SDK can send is listed in stripe.toml, and what it costs was looked at.

The list comes from the SDK's own source, not from a copy: a newer SDK that can do more fails here until the
new operations are classified.
"""

import ast
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, resources
from pathlib import Path

import msgspec
import pytest
import stripe

import kbctld
from kbctld.core.operation import READS, Amount, Free, Increase, Items, LookUp, Operation, Unpriceable
from kbctld.core.vendor import Vendor, read_vendor

NEWEST = Path(stripe.__path__[0])
OLD = Path(os.environ.get("KBCTL_TEST_STRIPE_OLD") or Path(sys.prefix) / "stripe-11.6") / "stripe"
FILE = read_vendor((resources.files(kbctld) / "vendors" / "stripe.toml").read_text(encoding="utf-8"))

_VERBS = frozenset(("get", "post", "delete", "put", "patch"))
_PATH = re.compile(r"/(?:v[0-9]+|oauth)/")
_PARAMETER = re.compile(r"\{[^}]*\}")

# --- what the SDK can send ----------------------------------------------------------------------------


@dataclass
class Sent:
    """One operation of an SDK.

    Attributes:
        hosts: by the SDK's own words; ``api`` is the one that kbctl reaches.
        names: as its services call it: ``customers.tax_ids.create``.
        fields: what its body takes, nested ones joined by dots.
    """

    method: str
    shape: str
    hosts: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)


def literal(node: ast.expr) -> str | None:
    """A text, plain or before its ``.format``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        node = node.func.value
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def requests_in(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Method, shape of the path, and host of each call that names a verb and a path one after the other."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        for verb, path in zip(call.args, call.args[1:], strict=False):
            method, text = literal(verb), literal(path)
            if method in _VERBS and text is not None and _PATH.match(text):
                host = next((literal(key.value) for key in call.keywords if key.arg == "base_address"), None)
                yield method.upper(), _PARAMETER.sub("{}", text), host or "api"


@cache
def sources(package: Path) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}


@cache
def operations_of(package: Path) -> dict[tuple[str, str], Sent]:
    """What an SDK can send, by method and shape."""
    found: dict[tuple[str, str], Sent] = {}
    for tree in sources(package).values():
        for method, shape, host in requests_in(tree):
            found.setdefault((method, shape), Sent(method, shape)).hosts.add(host)
    return found


def classes_of(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def names_in(annotation: ast.AST) -> Iterator[str]:
    """The types that an annotation names, quoted or not."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                yield from names_in(ast.parse(node.value, mode="eval"))
            except SyntaxError:
                pass  # one of the words of a Literal


def fields_of(classes: dict[str, ast.ClassDef], name: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The fields of a type of parameters, and of those that it is built from."""
    if name not in classes or name in above:
        return
    for node in classes[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
            for inner in names_in(node.annotation):
                below = fields_of(classes, inner, (*above, name))
                yield from (f"{node.target.id}.{each}" for each in below)


@cache
def parameters_of(module: str, name: str) -> frozenset[str]:
    path = NEWEST.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return frozenset(fields_of(classes_of(sources(NEWEST)[path]), name))


def services(module: str, name: str, prefix: str) -> Iterator[tuple[str, ast.ClassDef, ast.Module]]:
    """A service of the SDK, and those below it, by the way an agent's author writes them."""
    tree = sources(NEWEST)[NEWEST.joinpath(*module.split(".")[1:]).with_suffix(".py")]
    yield prefix, classes_of(tree)[name], tree
    below = getattr(import_module(module), "_subservices", {})
    for attribute, (inner, kind) in below.items():
        yield from services(inner, kind, f"{prefix}{attribute}.")


@cache
def newest() -> dict[tuple[str, str], Sent]:
    """What the installed SDK can send, with names and fields."""
    found = operations_of(NEWEST)
    roots = [("stripe._v1_services", "V1Services", ""), ("stripe._v2_services", "V2Services", "v2.")]
    for root in roots:
        for prefix, service, tree in services(*root):
            imported = {
                alias.name: node.module or ""
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            for method in service.body:
                if not isinstance(method, ast.FunctionDef) or method.name.startswith("_"):
                    continue
                for verb, shape, _ in requests_in(method):
                    sent = found[verb, shape]
                    sent.names.add(prefix + method.name)
                    for argument in method.args.args:
                        if argument.arg == "params" and argument.annotation is not None:
                            for name in names_in(argument.annotation):
                                if name.endswith("Params"):
                                    sent.fields |= parameters_of(imported[name], name)
    return found


def listed(vendor: Vendor, method: str, shape: str) -> Operation | None:
    """What the file lists for it; None where nothing, or something of another shape, answers to its path."""
    path = shape.replace("{}", "x_1")
    found, _ = vendor.match(method, path, tuple(path.strip("/").split("/")))
    if found is None or f"{method} {shape}" != _PARAMETER.sub("{}", found.match):
        return None
    return found


def missing(vendor: Vendor, package: Path) -> list[str]:
    return [
        f"{method} {shape}"
        for method, shape in operations_of(package)
        if shape.startswith(vendor.roots) and listed(vendor, method, shape) is None
    ]


@pytest.fixture(params=["installed", "11.6"])
def package(request: pytest.FixtureRequest) -> Path:
    """One generation of the SDK."""
    if request.param == "installed":
        return NEWEST
    if not OLD.is_dir():
        pytest.skip(f"stripe 11.6 is not in {OLD.parent}; the README's test command puts it there")
    return OLD


# --- nothing is left to chance ------------------------------------------------------------------------


def test_each_operation_of_the_sdk_is_listed(package: Path) -> None:
    """By a name of its own, for exactly its path."""
    assert len(operations_of(package)) > 500
    assert missing(FILE, package) == []


def test_no_path_of_the_sdk_was_overlooked(package: Path) -> None:
    """Every text in its source that is a path belongs to a call that was found."""
    found = {shape for _, shape in operations_of(package)}
    texts = {
        _PARAMETER.sub("{}", node.value)
        for tree in sources(package).values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _PATH.match(node.value)
    }
    # Prefixes, and a page for browsers; "/v1/%ss" is the URL of an object, which the services spell out.
    others = {"/v1/", "/v2/", "/v2/core/events/", "/oauth/authorize"}
    assert {text for text in texts - found - others if "%s" not in text and " " not in text} == set()


@pytest.mark.parametrize("name", ["payment_intents.create", "customers.list", "webhook_endpoints.delete"])
def test_control_an_operation_that_the_file_lacks_is_noticed(name: str) -> None:
    """A copy of the file without one of them does not pass."""
    file = msgspec.structs.replace(
        FILE.file,
        operation=[each for each in FILE.file.operation if each.name != name],
        operations=[
            msgspec.structs.replace(
                group, matches={key: match for key, match in group.matches.items() if key != name}
            )
            for group in FILE.file.operations
        ],
    )
    assert missing(Vendor(file), NEWEST) == [_PARAMETER.sub("{}", FILE.operations[name].match)]


def test_law_4_what_another_host_takes_is_no_free_operation(package: Path) -> None:
    """Uploads, OAuth and meter event streams live elsewhere: refused under a cap, or no path of ours."""
    elsewhere = [each for each in operations_of(package).values() if each.hosts - {"api"}]
    assert elsewhere
    for sent in elsewhere:
        if sent.method not in READS and sent.shape.startswith(FILE.roots):
            found = listed(FILE, sent.method, sent.shape)
            assert found is not None
            assert isinstance(found.cost, Unpriceable)


# As the SDK's classes call what its services call customers.sources.create.
_BY_CLASS = re.compile(r"(?:accounts|customers|transfers)\.(?:create|update|delete|verify)_[a-z_]+")


def test_operations_have_the_names_of_the_sdk() -> None:
    """client.v1.customers.tax_ids.create is customers.tax_ids.create, so that nobody has to look it up."""
    named = {
        found.name: sent.names
        for sent in newest().values()
        if sent.names and (found := listed(FILE, sent.method, sent.shape)) is not None
    }
    others = {name for name, names in named.items() if name not in names}
    assert len(named) > 600
    assert {name for name in others if not _BY_CLASS.fullmatch(name)} == set()


def test_what_takes_metadata_stamps() -> None:
    """Exactly what the SDK's types of parameters say; JSON is not stamped."""
    for sent in newest().values():
        found = listed(FILE, sent.method, sent.shape)
        if found is not None and sent.names and sent.method == "POST":
            assert found.stamps is ("metadata" in sent.fields and sent.shape.startswith("/v1/")), found.name


# --- money --------------------------------------------------------------------------------------------

MONEY = re.compile(
    r"(?:^|_)(?:amount|amounts|balance|price|quantity|coupon|promotion_code|source|credit|fee|invoice_now|"
    r"auto_advance|auto_confirm|plan)$"
)

NO_MONEY = {
    # What is only described: a catalogue, a cart on a display, a report of what happened elsewhere.
    "coupons": {"amount_off", "currency_options"},
    "plans": {"amount", "interval", "tiers"},
    "prices": {"transform_quantity", "unit_amount", "custom_unit_amount", "currency_options", "tiers"},
    "product_catalog": {"price", "end_behavior"},
    "products": {"default_price", "default_price_data"},
    "promotion_codes": {"promotion", "restrictions"},
    "quotes": {"line_items", "discounts", "application_fee_amount", "subscription_data", "transfer_data"},
    "shipping_rates": {"fixed_amount"},
    "terminal": {"cart", "tipping", "collect_config"},
    "billing_portal": {"features"},
    "payment_records": {"amount_requested", "amount"},
    # A preview.
    "invoices": {"invoice_items", "discounts", "schedule_details", "subscription_details"},
    # What a mandate may cover later; each charge states its own. Ways to pay, by name.
    "setup_intents": {"payment_method_options", "payment_method_data", "single_use", "amounts"},
    "payment_methods": {"customer_balance", "upi"},
    "payment_method_configurations": {"customer_balance"},
    # A payment or refund that was counted as it was made.
    "charges": {"transfer_data"},
    # What a source was made from; what an order is made of, shown to the payer.
    "sources": {"original_source", "source_order", "mandate"},
    # A new customer owes nothing yet; what is used from now on pays only what is asked for.
    "customers": {"invoice_settings", "source", "cash_balance", "default_source"},
}


def test_law_4_no_free_write_has_a_field_of_money_that_nobody_looked_at() -> None:
    """A field that is called an amount, a balance or a price is a condition of the cost, or stands above."""
    strays = defaultdict(set)
    for sent in newest().values():
        found = listed(FILE, sent.method, sent.shape)
        if sent.method in READS or found is None or not isinstance(found.cost, Free) or found.privileged:
            continue
        if ".test_helpers." in f".{found.name}":
            continue  # test keys alone, where nothing is money
        known = NO_MONEY.get(found.name.partition(".")[0], set()) | set(found.cost.unbounded)
        for path in sent.fields:
            if any(MONEY.search(name) for name in path.split(".")) and path.partition(".")[0] not in known:
                strays[found.name].add(path)
    assert strays == {}


@pytest.mark.parametrize(
    "match",
    [
        "POST /v1/payment_intents",
        "POST /v1/payment_intents/{}",
        "POST /v1/payment_intents/{}/confirm",
        "POST /v1/payment_intents/{}/capture",
        "POST /v1/payment_intents/{}/increment_authorization",
        "POST /v1/payment_intents/{}/apply_customer_balance",
        "POST /v1/payment_intents/{}/verify_microdeposits",
        "POST /v1/charges",
        "POST /v1/charges/{}/capture",
        "POST /v1/charges/{}/refund",
        "POST /v1/charges/{}/refunds",
        "POST /v1/refunds",
        "POST /v1/application_fees/{}/refunds",
        "POST /v1/transfers",
        "POST /v1/transfers/{}/reversals",
        "POST /v1/payouts",
        "POST /v1/payouts/{}/reverse",
        "POST /v1/topups",
        "POST /v1/climate/orders",
        "POST /v1/invoices",
        "POST /v1/invoices/{}",
        "POST /v1/invoices/{}/pay",
        "POST /v1/invoices/{}/finalize",
        "POST /v1/invoices/{}/send",
        "POST /v1/invoices/{}/add_lines",
        "POST /v1/invoiceitems",
        "POST /v1/subscriptions",
        "POST /v1/subscriptions/{}",
        "POST /v1/subscriptions/{}/resume",
        "POST /v1/subscription_items",
        "POST /v1/subscription_items/{}/usage_records",
        "POST /v1/subscription_schedules",
        "POST /v1/checkout/sessions",
        "POST /v1/payment_links",
        "POST /v1/quotes/{}/accept",
        "POST /v1/credit_notes",
        "POST /v1/customers/{}/balance_transactions",
        "POST /v1/customers/{}/cash_balance",
        "POST /v1/billing/credit_grants",
        "POST /v1/billing/meter_events",
        "POST /v1/issuing/cards",
        "POST /v1/issuing/cards/{}",
        "POST /v1/issuing/authorizations/{}/approve",
        "POST /v1/issuing/disputes",
        "POST /v1/disputes/{}",
        "POST /v1/treasury/outbound_payments",
        "POST /v1/treasury/outbound_transfers",
        "POST /v1/treasury/inbound_transfers",
        "POST /v1/treasury/credit_reversals",
        "POST /v1/terminal/readers/{}/process_payment_intent",
        "POST /v1/terminal/readers/{}/confirm_payment_intent",
        "POST /v1/terminal/readers/{}/refund_payment",
        "POST /v1/identity/verification_sessions",
        "POST /v1/financial_connections/accounts/{}/refresh",
        "POST /v1/forwarding/requests",
        "POST /v2/money_management/outbound_payments",
        "POST /v2/money_management/payout_intents",
        "POST /v2/money_management/payout_intents/{}/confirm",
        "POST /v2/money_management/inbound_transfers",
        "POST /v2/billing/meter_events",
    ],
)
def test_law_4_what_moves_money_is_never_free(match: str) -> None:
    """Payments, refunds, payouts, invoices, credit, cards and what Stripe itself bills by the call."""
    found = listed(FILE, *match.split(" "))
    assert found is not None
    assert isinstance(found.cost, Amount | Increase | Items | LookUp | Unpriceable)


def test_law_4_a_customer_is_free_until_money_is_given_with_it() -> None:
    """A balance or a coupon given with a customer is credit; a new source pays what is past due."""
    for name, fields in {
        "customers.create": {"balance", "coupon"},
        "customers.update": {"balance", "coupon", "source"},
    }.items():
        cost = FILE.operations[name].cost
        assert isinstance(cost, Free)
        assert fields <= set(cost.unbounded)


# --- credentials and payout destinations --------------------------------------------------------------

PRIVILEGED = re.compile(
    r"(?:POST|DELETE) /v[12]/(?:accounts?|account_links|account_sessions|"
    r"core/accounts|core/account_tokens|core/account_links|"
    r"core/event_destinations|core/vault|webhook_endpoints|ephemeral_keys|apple_pay|payment_method_domains|apps|"
    r"customer_sessions|billing_portal/sessions|forwarding/requests|billing/meter_event_session|"
    r"terminal/connection_tokens|terminal/onboarding_links|balance_settings|treasury/financial_accounts|"
    r"issuing/cards|issuing/cardholders|issuing/tokens|money_management/financial_accounts|"
    r"money_management/financial_addresses|money_management/outbound_setup_intents|"
    r"money_management/payout_methods|customers/\{\}/(?:sources|bank_accounts))(?:/|$)"
)


def test_what_mints_credentials_or_moves_payouts_is_privileged() -> None:
    """Accounts and external accounts, webhooks, keys, sessions, tokens, cards; in both versions."""
    found = [each for each in FILE.operations.values() if PRIVILEGED.match(_PARAMETER.sub("{}", each.match))]
    assert len(found) > 80
    assert [operation.name for operation in found if not operation.privileged] == []


@pytest.mark.parametrize(
    "name",
    [
        "issuing.cards.retrieve",
        "apps.secrets.find",
        "webhook_endpoints.retrieve",
        "v2.core.event_destinations.retrieve",
        "v2.money_management.financial_addresses.retrieve",
        "treasury.financial_accounts.retrieve",
    ],
)
def test_reads_that_can_be_asked_for_secrets_or_numbers_are_privileged(name: str) -> None:
    """``expand`` and ``include`` make them tell a card's number, an account's number or a signing secret."""
    assert FILE.operations[name].privileged


def test_test_helpers_are_free_and_reach_test_keys_alone() -> None:
    """They pretend what customers, banks and time do; Stripe refuses them with a live key."""
    helpers = [each for name, each in FILE.operations.items() if ".test_helpers." in f".{name}"]
    assert len(helpers) > 40
    assert all(each.cost == Free() and not each.privileged for each in helpers)
