"""A small vendor, rates that can be checked by hand, and short ways to a grant and a call."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from kbctld.core.cost import Remembered
from kbctld.core.entry import read_entries
from kbctld.core.form import Form, read_form
from kbctld.core.grant import Grant
from kbctld.core.ledger import NS_PER_DAY, Account, Ledger, Scope
from kbctld.core.lookup import Found, Missed
from kbctld.core.money import NANO_PER_USD, rates_from
from kbctld.core.policy import Access, Permit, Request, authorize
from kbctld.core.refusal import Refusal
from kbctld.core.rule import read_rule
from kbctld.core.target import Target
from kbctld.core.vendor import Vendor, read_vendor

USD = NANO_PER_USD
DAY = 20_778
"""2026-11-21, counted from 1970-01-01."""
NOW = DAY * NS_PER_DAY + NS_PER_DAY // 2

EMPTY = Form((), has_semicolon=False)

RATES = rates_from(
    "2026-11-20",
    {
        "EUR": Fraction(11, 10),
        "GBP": Fraction(13, 10),
        "JPY": Fraction(1, 150),
        "KWD": Fraction(13, 4),
        "IDR": Fraction(1, 16_000),
    },
)

HEAD = """
schema = 1
name = "acme"
title = "Acme"
docs = "https://docs.acme.test"
origin = "https://api.acme.test"
body = "form"
error_shape = "stripe"
request_id_header = "Request-Id"
roots = ["/v1/", "/v2/"]
joins = ["/", "/v1", "/v1/"]
forward_headers = ["accept"]
account_headers = ["acme-account"]
auth = { scheme = "bearer" }
"""

IDEMPOTENCY = """
[idempotency]
header = "Idempotency-Key"
methods = ["POST"]
window_hours = 24
"""

OPERATIONS = """
[[operation]]
name = "payments.create"
match = "POST /v1/payments"
cost = { kind = "amount", amount = "amount", currency = "currency", object = "id" }

[[operation]]
name = "tips.create"
match = "POST /v1/tips"
cost = { kind = "amount", amount = "amount", currency = "currency" }

[[operation]]
name = "payments.update"
match = "POST /v1/payments/{payment}"
cost = { kind = "increase", of = "payment", amount = "amount", currency = "currency" }

[[operation]]
name = "payments.capture"
match = "POST /v1/payments/{payment}/capture"
cost = { kind = "increase", of = "payment", amount = "amount_to_capture" }

[[operation]]
name = "payments.settle"
match = "POST /v1/payments/{payment}/settle"
cost = { kind = "increase", of = "payment" }

[[operation]]
name = "payments.refund"
match = "POST /v1/payments/{payment}/refund"
cost = { kind = "amount", amount = "amount", currency_of = ["payment"] }

[[operation]]
name = "refunds.create"
match = "POST /v1/refunds"
cost = { kind = "amount", amount = "amount", currency_of = ["payment", "charge"] }

[[operation]]
name = "subscriptions.create"
match = "POST /v1/subscriptions"
cost = { kind = "unpriceable", why = "it is charged again later" }

[[operation]]
name = "customers.create"
match = "POST /v1/customers"
cost = { kind = "free" }

[[operation]]
name = "customers.update"
match = "POST /v1/customers/{customer}"
cost = { kind = "free" }

[[operation]]
name = "customers.retrieve"
match = "GET /v1/customers/{customer}"
cost = { kind = "free" }

[[operation]]
name = "keys.create"
match = "POST /v1/keys"
cost = { kind = "free" }
privileged = true

[[operation]]
name = "keys.update"
match = "POST /v1/keys/{key}"
cost = { kind = "free" }
privileged = true
"""

OTHERS = """
[[operation]]
name = "accounts.create"
match = "POST /v1/accounts"
cost = { kind = "free", unbounded = ["balance", "discount"] }

[[operation]]
name = "balances.change"
match = "POST /v1/balances"
cost = { kind = "amount", amount = "amount", currency = "currency", signed = true, unbounded = ["lines"] }

[[operation]]
name = "grants.create"
match = "POST /v1/grants"
cost = { kind = "amount", amount = "amount.value", currency = "amount.currency" }

[[operation]]
name = "carts.create"
match = "POST /v1/carts"
[operation.cost]
kind = "items"
of = "lines"
amount = "price.unit"
quantity = "quantity"
currency = "price.currency"
item_beside = ["price.product"]
beside = ["metadata", "mode"]
"""

LOOKUPS = """
[[operation]]
name = "returns.create"
match = "POST /v1/returns"
cost = { kind = "amount", amount = "amount", currency_of = ["sale"], lookup = ["sale_left", "order_left"] }

[[operation]]
name = "sales.return"
match = "POST /v1/sales/{sale}/return"
cost = { kind = "amount", amount = "amount", currency_of = ["sale"], lookup = [
  "sale_left",
], answers_amount = false }

[[operation]]
name = "sales.update"
match = "POST /v1/sales/{sale}"
cost = { kind = "increase", of = "sale", amount = "amount", currency = "currency", lookup = [
  "sale_left",
], only_stated = true }

[[operation]]
name = "sales.confirm"
match = "POST /v1/sales/{sale}/confirm"
cost = { kind = "increase", of = "sale", amount = "amount", lookup = ["sale_left"] }

[[operation]]
name = "sales.reverse"
match = "POST /v1/sales/{sale}/reverse"
cost = { kind = "lookup", lookup = ["sale_left"] }

[lookup.sale_left]
get = "/v1/sales/{sale}"
amount = "amount"
minus = "returned"
currency = "currency"
require = { status = "open", "tax.added" = false }

[lookup.order_left]
get = "/v1/orders/{order}?expand[]=sale"
amount = "sale.amount"
currency = "sale.currency"
"""

VENDOR = read_vendor(HEAD + IDEMPOTENCY + OPERATIONS + OTHERS + LOOKUPS)


def scope(
    daily: int | None = None, total: int | None = None, *, posted: int = 0, held: int = 0, day: int = DAY
) -> Scope:
    """Limits over an account on which something was spent and held already."""
    account = Account()
    account.post(day, posted)
    account.hold(day, held)
    return Scope("vk_test", "key vk_test", account, daily, total)


def grant(
    *scopes: Scope,
    call_cap: int | None = None,
    allow: tuple[str, ...] | None = None,
    deny: tuple[str, ...] = (),
    vendors: tuple[str, ...] = ("acme",),
    label: str = "",
    rules: tuple[str, ...] = (),
    expires_ns: int | None = None,
    parent: Grant | None = None,
    vendor: Vendor = VENDOR,
) -> Grant:
    """A key; without scopes, one that has no cap."""
    scopes = scopes or (scope(),)
    scopes[0].call_cap_nano = call_cap
    return Grant(
        no=1,
        key_id="vk_test",
        digest=b"digest",
        ending="abcd",
        ancestors=parent.lineage if parent else (),
        scope=scopes[0],
        scopes=(*scopes, *(parent.scopes if parent else ())),
        vendors=vendors,
        rules=tuple(read_rule(text, [vendor]) for text in rules),
        loop=None,
        stamp=False,
        policy=None,
        allow=None if allow is None else read_entries(allow, [vendor]),
        deny=read_entries(deny, [vendor]),
        label=label,
        tenant=None,
        metadata={},
        credential=None,
        created_ns=0,
        expires_ns=expires_ns,
    )


def access(
    call: str = "POST /v1/payments",
    *,
    query: str = "",
    accounts: Mapping[str, str] | None = None,
    vendor: Vendor = VENDOR,
) -> Access:
    """An attempt at ``METHOD /path``."""
    method, _, path = call.partition(" ")
    target = Target(path, tuple(path.strip("/").split("/")), query, read_form(query.encode()))
    operation, parameters = vendor.match(method, path, target.segments)
    return Access(vendor, method, target, operation, parameters, accounts or {})


def request(
    body: str = "",
    *,
    known: Mapping[str, Remembered] | None = None,
    digest: bytes = b"request",
    replay: bytes | None = None,
    fingerprint: bytes | None = None,
    idempotency_key: str | None = None,
    looked_up: Found | Missed | None = None,
) -> Request:
    """What the body and headers of an attempt say."""
    form = read_form(body.encode())
    known = known or {}
    return Request(form, known, digest, digest, replay, fingerprint, idempotency_key, looked_up)


@dataclass
class Desk:
    """A key and its ledger, asked call by call."""

    grant: Grant
    ledger: Ledger = field(default_factory=Ledger)
    calls: int = 0

    def ask(
        self,
        body: str = "amount=100&currency=usd",
        call: str = "POST /v1/payments",
        *,
        now_ns: int = NOW,
        **also: Any,
    ) -> Permit | Refusal:
        """Authorize one call."""
        self.calls += 1
        name = f"call_{self.calls}"
        return authorize(
            self.grant,
            access(call),
            request(body, **also),
            self.ledger,
            RATES,
            now_ns=now_ns,
            tick_ns=now_ns,
            row=name,
            call_id=name,
        )
