"""Every vendor file that is shipped keeps the claims it makes."""

from pathlib import Path

import pytest

import kbctld
from kbctld.core.body import read_body
from kbctld.core.ledger import Ledger
from kbctld.core.money import Rates, nano_from_usd
from kbctld.core.operation import Amount, Flat, Free, Increase, Operation
from kbctld.core.policy import Access, Permit, Request, admit, authorize
from kbctld.core.refusal import Code, Refusal
from kbctld.core.target import read_target
from kbctld.core.vendor import Vendor, read_vendor
from kbctld.core.vendor_file import Example
from kbctld.country import country_of
from kbctld.prices import Prices
from tests.core.support import NOW, RATES, grant, scope

FILES = sorted((Path(kbctld.__path__[0]) / "vendors").glob("*.toml"))
VENDORS = [read_vendor(path.read_text(encoding="utf-8"), country_of) for path in FILES]
CAP = 10**18
PRICES = Prices()

EXAMPLES = [
    pytest.param(vendor, example, id=f"{vendor.name}: {example.request} {example.body}")
    for vendor in VENDORS
    for example in vendor.file.example
]
OPERATIONS = [
    pytest.param(vendor, operation, id=f"{vendor.name}: {operation.name}")
    for vendor in VENDORS
    for operation in vendor.operations.values()
]


def attempt(
    vendor: Vendor, line: str, body: str, rates: Rates = RATES
) -> tuple[Access | None, Permit | Refusal]:
    """One request line and body through every step that decides, with a new key under a cap."""
    method, _, target = line.partition(" ")
    arrived = read_target(target, frozenset({vendor.name}))
    if isinstance(arrived, Refusal):
        return None, arrived
    settled = vendor.settle(arrived)
    if isinstance(settled, Refusal):
        return None, settled
    operation, parameters = vendor.match(method, settled.path, settled.segments)
    access = Access(vendor, method, settled, operation, parameters, {})
    key = grant(scope(CAP), vendors=(vendor.name,), vendor=vendor)
    refusal = admit(key, access, NOW)
    if refusal is not None:
        return access, refusal
    asked = Request(read_body(vendor, settled.path, operation, body.encode()), {}, b"digest", b"", None)
    verdict = authorize(
        key,
        access,
        asked,
        Ledger(),
        rates,
        now_ns=NOW,
        tick_ns=0,
        row=None,
        call_id="call_1",
        prices=PRICES.find,
    )
    return access, verdict


def test_there_are_vendor_files() -> None:
    """The table tests below are not empty."""
    assert {"stripe", "openai", "anthropic"} <= {vendor.name for vendor in VENDORS}


@pytest.mark.parametrize("prefixed", [True, False], ids=["prefixed", "bare"])
@pytest.mark.parametrize(("vendor", "example"), EXAMPLES)
def test_each_example_is_true(vendor: Vendor, example: Example, prefixed: bool) -> None:
    """The stated request gives the stated operation and dollars, or the stated refusal."""
    method, _, target = example.request.partition(" ")
    access, verdict = attempt(vendor, f"{method} {f'/{vendor.name}' * prefixed}{target}", example.body)
    if isinstance(verdict, Refusal):
        assert verdict.code == example.refused, verdict.sentence
    else:
        assert example.refused is None
    if example.operation is not None:
        assert access is not None
        assert access.operation is not None
        assert access.operation.name == example.operation
    if example.usd is not None:
        assert isinstance(verdict, Permit)
        assert verdict.attempt.hold.nano == verdict.price.nano == nano_from_usd(example.usd)


@pytest.mark.parametrize(("vendor", "example"), EXAMPLES)
def test_each_example_claims_something_that_exists(vendor: Vendor, example: Example) -> None:
    """It states a refusal of the closed set, or an operation of the file; never neither, never both."""
    if example.refused is not None:
        assert Code(example.refused)
        assert example.usd is None
    else:
        assert example.operation in vendor.operations


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: str(vendor.name))
def test_each_file_has_an_allowed_and_a_refused_example(vendor: Vendor) -> None:
    """A file shows at least once what passes and once what does not."""
    assert {example.refused is None for example in vendor.file.example} == {True, False}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_each_file_is_named_after_its_vendor(path: Path) -> None:
    """stripe.toml is stripe."""
    assert read_vendor(path.read_text(encoding="utf-8")).name == path.stem


@pytest.mark.parametrize(("vendor", "operation"), OPERATIONS)
def test_each_operation_is_found_under_its_own_path(vendor: Vendor, operation: Operation) -> None:
    """No operation hides behind another, which might be cheaper or less privileged."""
    method, _, pattern = operation.match.partition(" ")
    path = pattern.replace("{", "x_").replace("}", "")
    for line in (f"{method} {path}", f"{method} /{vendor.name}{path}"):
        access, _ = attempt(vendor, line, "")
        assert access is not None
        assert access.operation is operation


@pytest.mark.parametrize(("vendor", "operation"), OPERATIONS)
def test_law_4_no_operation_that_costs_money_passes_without_saying_how_much(
    vendor: Vendor, operation: Operation
) -> None:
    """With an empty body and nothing remembered, whatever may cost money is refused under a cap."""
    method, _, pattern = operation.match.partition(" ")
    _, verdict = attempt(vendor, f"{method} {pattern.replace('{', '').replace('}', '')}", "")
    if operation.privileged:
        assert isinstance(verdict, Refusal)
        assert verdict.code is Code.ENDPOINT_NOT_ALLOWED
    elif isinstance(operation.cost, Flat) and operation.cost.to is None:
        assert isinstance(verdict, Permit)
        assert verdict.price.nano == vendor.tariff.call[operation.cost.price]
    elif isinstance(operation.cost, Free) or (
        isinstance(operation.cost, Increase) and operation.cost.only_stated
    ):
        assert isinstance(verdict, Permit)
        assert verdict.price.nano == 0
    else:
        assert isinstance(verdict, Refusal)
        assert verdict.code is Code.AMOUNT_UNKNOWN


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: str(vendor.name))
def test_law_4_an_unlisted_write_is_refused_under_a_cap(vendor: Vendor) -> None:
    """What the file doesn't list may cost anything."""
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        _, verdict = attempt(vendor, f"{method} {vendor.roots[0]}no/such/thing/as/this", "")
        assert isinstance(verdict, Refusal)
        assert verdict.code is Code.AMOUNT_UNKNOWN


@pytest.mark.parametrize(
    "name",
    [
        "ephemeral_keys.create",
        "webhook_endpoints.create",
        "apple_pay_domains.create",
        "apps.secrets.create",
        "accounts.create",
        "accounts.update",
        "accounts.create_external_account",
        "accounts.create_bank_account",
        "accounts.create_person",
        "customers.create_bank_account",
    ],
)
def test_stripe_keeps_what_mints_credentials_or_moves_payouts_privileged(name: str) -> None:
    """Keys and secrets, accounts, external and bank accounts, persons."""
    (stripe,) = (vendor for vendor in VENDORS if vendor.name == "stripe")
    assert stripe.operations[name].privileged


@pytest.mark.parametrize("name", ["payouts.create", "transfers.create", "refunds.create", "topups.create"])
def test_stripe_counts_payouts_transfers_refunds_and_topups_as_money(name: str) -> None:
    """They are priced, not privileged."""
    (stripe,) = (vendor for vendor in VENDORS if vendor.name == "stripe")
    assert isinstance(stripe.operations[name].cost, Amount)
    assert not stripe.operations[name].privileged


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("amount[]=2000&currency=usd", id="an array"),
        pytest.param("Amount=2000&currency=usd", id="a capital"),
        pytest.param("amount=2000;amount=1&currency=usd", id="a semicolon"),
        pytest.param("amount=2000&]amount=1&currency=usd", id="a bracket in front"),
        pytest.param("amount=2000&currency=usd&currency=jpy", id="two currencies"),
    ],
)
def test_P9_stripe_takes_no_amount_with_two_readings(body: str) -> None:
    """The most used operation of all, with the tricks that somebody will try."""
    (stripe,) = (vendor for vendor in VENDORS if vendor.name == "stripe")
    _, verdict = attempt(stripe, "POST /v1/payment_intents", body)
    assert isinstance(verdict, Refusal)
    assert verdict.code is Code.AMBIGUOUS_REQUEST
