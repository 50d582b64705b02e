"""What each call of the pretend Stripe does to its objects, and what it counts.

What must stay true: an operation validates before it puts or counts anything, so a refusal changes nothing
(a declined card is work that began: it leaves its failed charge behind, as at Stripe). What it counts
follows the rule of the book: a PaymentIntent at creation and by what later calls add to it; charges, refunds,
transfers, payouts and top-ups at their amounts. A reversed transfer brings money back and adds nothing.

Not modelled: balances (nothing is ever refused for want of funds), fees, disputes, 3-D Secure, and
refusal of parameters that Stripe does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kbctld.sandbox.errors import StripeError, declined, missing, unexpected_state
from kbctld.sandbox.form import Form, check_charge_size
from kbctld.sandbox.state import StripeObject, Transaction

Handler = Callable[..., StripeObject]

_CARD = {
    "brand": "visa",
    "country": "US",
    "exp_month": 12,
    "exp_year": 2030,
    "funding": "credit",
    "last4": "4242",
}
_DECLINING = ("pm_card_chargeDeclined", "pm_card_visa_chargeDeclined", "tok_chargeDeclined")
_CONFIRMABLE = ("requires_payment_method", "requires_confirmation", "requires_action")


class Operation(NamedTuple):
    name: str
    run: Handler


# PaymentIntents.


def _create_payment_intent(tx: Transaction, form: Form) -> StripeObject:
    amount, currency = form.required_amount(), form.currency()
    check_charge_size(amount, currency)
    method = _payment_method(form)
    confirm = form.boolean("confirm") or False
    if confirm and method is None and form.text("customer") is None:
        raise missing("payment_method")
    intent_id = tx.new_id("pi")
    intent: StripeObject = {
        "id": intent_id,
        "object": "payment_intent",
        "amount": amount,
        "amount_capturable": 0,
        "amount_received": 0,
        "application": None,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": form.choice("capture_method", ("automatic", "automatic_async", "manual"))
        or "automatic_async",
        "client_secret": f"{intent_id}_{tx.new_id('secret')}",
        "confirmation_method": form.choice("confirmation_method", ("automatic", "manual")) or "automatic",
        "created": tx.now,
        "currency": currency,
        "customer": form.text("customer"),
        "description": form.text("description"),
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "metadata": form.metadata(),
        "next_action": None,
        "on_behalf_of": form.text("on_behalf_of"),
        "payment_method": method,
        "payment_method_types": form.texts("payment_method_types") or ["card"],
        "receipt_email": form.text("receipt_email"),
        "setup_future_usage": form.text("setup_future_usage"),
        "shipping": None,
        "statement_descriptor": form.text("statement_descriptor"),
        "status": "requires_confirmation" if method else "requires_payment_method",
    }
    failure = _pay(tx, intent) if confirm else None
    tx.put("payment_intent", intent)
    tx.count(
        intent,
        amount,
        authorised_minor=amount,
        moved_minor=intent["amount_received"],
        declined=failure is not None,
    )
    if failure is not None:
        raise failure
    return intent


def _payment_method(form: Form) -> str | None:
    method = form.text("payment_method") or form.text("source")
    if method is None and form.given("payment_method_data"):
        return "pm_card_visa"
    return method


def _pay(tx: Transaction, intent: StripeObject) -> StripeError | None:
    """Attempt the payment: the intent as it is afterwards, and the decline if it was one."""
    # A customer stands for the card on file: pretend customers have no list of cards.
    method = intent["payment_method"] or "pm_card_visa"
    manual = intent["capture_method"] == "manual"
    failed = _declines(tx, method)
    charge = _new_charge(
        tx,
        amount=intent["amount"],
        currency=intent["currency"],
        captured=not manual,
        failed=failed,
        customer=intent["customer"],
        description=intent["description"],
        metadata=intent["metadata"],
        payment_intent=intent["id"],
        payment_method=method,
    )
    intent["latest_charge"] = charge["id"]
    if failed:
        failure = declined(charge["id"])
        intent.update(
            status="requires_payment_method",
            payment_method=None,
            last_payment_error=failure.fields() | failure.extra,
        )
        failure.extra["payment_intent"] = intent
        return failure
    intent.update(payment_method=method, last_payment_error=None)
    if manual:
        intent.update(status="requires_capture", amount_capturable=intent["amount"])
    else:
        intent.update(status="succeeded", amount_received=intent["amount"])
    return None


def _declines(tx: Transaction, method: str) -> bool:
    if method.startswith(_DECLINING):
        return True
    try:
        stored = tx.find("payment_method", method)
    except StripeError:
        return False  # any other id is a good card
    return bool(stored.get("declines"))


def _update_payment_intent(tx: Transaction, form: Form, intent_id: str) -> StripeObject:
    intent = tx.find("payment_intent", intent_id)
    amount = form.amount()
    currency = form.currency() if form.text("currency") else intent["currency"]
    if (form.given("amount") or form.given("currency")) and intent["status"] not in _CONFIRMABLE:
        raise unexpected_state(intent, "its amount can no longer be changed")
    check_charge_size(amount or intent["amount"], currency)
    intent["metadata"] = form.metadata(intent["metadata"])
    intent.update(amount=amount or intent["amount"], currency=currency)
    for name in ("customer", "description", "receipt_email", "statement_descriptor", "setup_future_usage"):
        if form.given(name):
            intent[name] = form.text(name)
    method = _payment_method(form)
    if method is not None and intent["status"] in _CONFIRMABLE:
        intent.update(payment_method=method, status="requires_confirmation")
    tx.put("payment_intent", intent)
    _count_excess(tx, intent)
    return intent


def _count_excess(tx: Transaction, intent: StripeObject) -> None:
    excess = tx.excess(intent)
    if excess:
        tx.count(intent, intent["amount"], authorised_minor=excess)


def _confirm_payment_intent(tx: Transaction, form: Form, intent_id: str) -> StripeObject:
    intent = tx.find("payment_intent", intent_id)
    amount = form.amount("amount_to_confirm")
    if intent["status"] not in _CONFIRMABLE:
        raise unexpected_state(intent, "it cannot be confirmed")
    method = _payment_method(form) or intent["payment_method"]
    if method is None and intent["customer"] is None:
        raise unexpected_state(intent, "it has no payment method to be confirmed with")
    capture_method = form.choice("capture_method", ("automatic", "automatic_async", "manual"))
    if amount is not None:
        check_charge_size(amount, intent["currency"], "amount_to_confirm")
        intent["amount"] = amount
    intent["payment_method"] = method
    intent["capture_method"] = capture_method or intent["capture_method"]
    excess = tx.excess(intent)
    failure = _pay(tx, intent)
    tx.put("payment_intent", intent)
    if excess or intent["amount_received"]:
        tx.count(
            intent,
            intent["amount"],
            authorised_minor=excess,
            moved_minor=intent["amount_received"],
            declined=failure is not None,
        )
    if failure is not None:
        raise failure
    return intent


def _capture_payment_intent(tx: Transaction, form: Form, intent_id: str) -> StripeObject:
    intent = tx.find("payment_intent", intent_id)
    amount = form.amount("amount_to_capture")
    final = form.boolean("final_capture")
    if intent["status"] != "requires_capture":
        raise unexpected_state(intent, "it cannot be captured")
    capturable = intent["amount_capturable"]
    if amount is None:
        amount = capturable
    if amount > capturable:
        raise StripeError(
            400,
            f"At most {capturable} can be captured.",
            code="amount_too_large",
            param="amount_to_capture",
            began=True,
        )
    intent["amount_received"] += amount
    rest = capturable - amount
    if final is False and rest:
        intent["amount_capturable"] = rest
    else:
        intent.update(amount_capturable=0, status="succeeded")
    intent["metadata"] = form.metadata(intent["metadata"])
    charge = tx.find("charge", intent["latest_charge"])
    charge.update(amount_captured=intent["amount_received"], captured=True)
    if intent["status"] == "succeeded":
        charge["amount_refunded"] = rest  # what is not captured is released, which Stripe shows as refunded
    tx.put("charge", charge)
    tx.put("payment_intent", intent)
    tx.count(intent, amount, moved_minor=amount)
    return intent


def _increment_authorization(tx: Transaction, form: Form, intent_id: str) -> StripeObject:
    intent = tx.find("payment_intent", intent_id)
    amount = form.required_amount()
    check_charge_size(amount, intent["currency"])
    if intent["status"] != "requires_capture":
        raise unexpected_state(intent, "its authorization cannot be incremented")
    if amount <= intent["amount"]:
        raise StripeError(400, f"amount must be more than {intent['amount']}.", param="amount", began=True)
    intent["amount_capturable"] += amount - intent["amount"]
    intent["amount"] = amount
    intent["metadata"] = form.metadata(intent["metadata"])
    charge = tx.find("charge", intent["latest_charge"])
    charge["amount"] = amount
    tx.put("charge", charge)
    tx.put("payment_intent", intent)
    _count_excess(tx, intent)
    return intent


def _cancel_payment_intent(tx: Transaction, form: Form, intent_id: str) -> StripeObject:
    intent = tx.find("payment_intent", intent_id)
    reason = form.choice(
        "cancellation_reason", ("duplicate", "fraudulent", "requested_by_customer", "abandoned")
    )
    if intent["status"] in ("succeeded", "canceled"):
        raise unexpected_state(intent, "it cannot be canceled")
    if intent["status"] == "requires_capture":
        charge = tx.find("charge", intent["latest_charge"])
        charge["amount_refunded"] += intent["amount_capturable"]
        charge["refunded"] = charge["amount_refunded"] == charge["amount"]
        tx.put("charge", charge)
    intent.update(status="canceled", canceled_at=tx.now, cancellation_reason=reason, amount_capturable=0)
    return tx.put("payment_intent", intent)


# Charges.


def _new_charge(
    tx: Transaction, *, amount: int, currency: str, captured: bool, failed: bool, **fields: Any
) -> StripeObject:
    charge: StripeObject = {
        "id": tx.new_id("ch"),
        "object": "charge",
        "amount": amount,
        "amount_captured": amount if captured and not failed else 0,
        "amount_refunded": 0,
        "balance_transaction": None,
        "billing_details": {"address": None, "email": None, "name": None, "phone": None},
        "captured": captured and not failed,
        "created": tx.now,
        "currency": currency,
        "disputed": False,
        "failure_code": "card_declined" if failed else None,
        "failure_message": "Your card was declined." if failed else None,
        "livemode": False,
        "outcome": {"network_status": "declined_by_network" if failed else "approved_by_network"},
        "paid": not failed,
        "payment_method_details": {"card": _CARD, "type": "card"},
        "receipt_url": None,
        "refunded": False,
        "status": "failed" if failed else "succeeded",
    }
    charge.update(fields)
    return tx.put("charge", charge)


def _create_charge(tx: Transaction, form: Form) -> StripeObject:
    amount, currency = form.required_amount(), form.currency()
    check_charge_size(amount, currency)
    source, customer = form.text("source"), form.text("customer")
    if source is None and customer is None:
        raise missing("source")
    capture = form.boolean("capture")
    captured = capture is None or capture
    failed = _declines(tx, source or "tok_visa")
    charge = _new_charge(
        tx,
        amount=amount,
        currency=currency,
        captured=captured,
        failed=failed,
        customer=customer,
        description=form.text("description"),
        metadata=form.metadata(),
        payment_intent=None,
        payment_method=None,
        source=None if source is None else {"id": tx.new_id("card"), "object": "card", **_CARD},
    )
    if failed:
        raise declined(charge["id"])  # a failed charge can never be captured: it authorised nothing
    tx.count(charge, amount, authorised_minor=amount, moved_minor=charge["amount_captured"])
    return charge


def _capture_charge(tx: Transaction, form: Form, charge_id: str) -> StripeObject:
    charge = tx.find("charge", charge_id)
    amount = form.amount()
    if charge["payment_intent"] is not None:
        raise StripeError(400, "Capture the PaymentIntent of this charge instead.", began=True)
    if charge["captured"] or charge["refunded"] or charge["status"] != "succeeded":
        raise StripeError(
            400, f"Charge {charge_id} cannot be captured.", code="charge_already_captured", began=True
        )
    if amount is None:
        amount = charge["amount"]
    if amount > charge["amount"]:
        raise StripeError(
            400,
            f"At most {charge['amount']} can be captured.",
            code="amount_too_large",
            param="amount",
            began=True,
        )
    # Released is shown as refunded here too.
    charge.update(captured=True, amount_captured=amount, amount_refunded=charge["amount"] - amount)
    tx.put("charge", charge)
    tx.count(charge, amount, moved_minor=amount)
    return charge


# Refunds.


def _create_refund(tx: Transaction, form: Form) -> StripeObject:
    charge_id, intent_id = form.text("charge"), form.text("payment_intent")
    if charge_id is None and intent_id is None:
        raise missing("payment_intent")
    if intent_id is not None:
        intent = tx.find("payment_intent", intent_id, "payment_intent")
        latest = intent["latest_charge"]
        if latest is None or (charge_id is not None and charge_id != latest):
            raise StripeError(400, f"{intent_id} has no such successful charge to refund.", began=True)
        charge_id = latest
    return _refund(tx, form, str(charge_id))


def _refund(tx: Transaction, form: Form, charge_id: str) -> StripeObject:
    charge = tx.find("charge", charge_id, "charge")
    amount = form.amount()
    reason = form.choice("reason", ("duplicate", "fraudulent", "requested_by_customer"))
    metadata = form.metadata()
    if charge["status"] != "succeeded":
        raise StripeError(
            400, f"Charge {charge_id} did not succeed.", code="charge_not_refundable", began=True
        )
    if charge["refunded"]:
        raise StripeError(
            400, f"Charge {charge_id} has already been refunded.", code="charge_already_refunded", began=True
        )
    if _is_open(tx, charge["payment_intent"]):
        raise StripeError(400, "Cancel or capture the PaymentIntent of this charge instead.", began=True)
    remaining = charge["amount"] - charge["amount_refunded"]
    if amount is None:
        amount = remaining
    if amount > remaining:
        raise StripeError(
            400,
            f"Refund amount ({amount}) is greater than unrefunded amount on charge ({remaining})",
            param="amount",
            began=True,
        )
    if not charge["captured"] and amount < remaining:
        raise StripeError(400, "An uncaptured charge is released whole.", param="amount", began=True)
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    tx.put("charge", charge)
    refund = tx.put(
        "refund",
        {
            "id": tx.new_id("re"),
            "amount": amount,
            "balance_transaction": None,
            "charge": charge_id,
            "created": tx.now,
            "currency": charge["currency"],
            "livemode": False,
            "metadata": metadata,
            "payment_intent": charge["payment_intent"],
            "reason": reason,
            "receipt_number": None,
            "status": "succeeded",
        },
    )
    # Releasing what was never captured sends no money anywhere, but the caller asked for a refund of it.
    tx.count(refund, amount, authorised_minor=amount, moved_minor=amount if charge["captured"] else 0)
    return refund


def _is_open(tx: Transaction, intent_id: str | None) -> bool:
    return intent_id is not None and bool(
        tx.find("payment_intent", intent_id)["status"] == "requires_capture"
    )


def _refund_charge(tx: Transaction, form: Form, charge_id: str) -> StripeObject:
    """The older form of a refund: it answers with the charge."""
    _refund(tx, form, charge_id)
    return tx.find("charge", charge_id)


# Transfers, payouts, top-ups.


def _create_transfer(tx: Transaction, form: Form) -> StripeObject:
    amount, currency = form.required_amount(), form.currency()
    transfer = {
        "id": tx.new_id("tr"),
        "amount": amount,
        "amount_reversed": 0,
        "balance_transaction": None,
        "created": tx.now,
        "currency": currency,
        "description": form.text("description"),
        "destination": form.required("destination"),
        "livemode": False,
        "metadata": form.metadata(),
        "reversed": False,
        "source_transaction": form.text("source_transaction"),
        "transfer_group": form.text("transfer_group"),
    }
    tx.count(transfer, amount, authorised_minor=amount, moved_minor=amount)
    return tx.put("transfer", transfer)


def _reverse_transfer(tx: Transaction, form: Form, transfer_id: str) -> StripeObject:
    transfer = tx.find("transfer", transfer_id)
    amount = form.amount()
    metadata = form.metadata()
    remaining = transfer["amount"] - transfer["amount_reversed"]
    if amount is None:
        amount = remaining
    if not 0 < amount <= remaining:
        raise StripeError(400, f"At most {remaining} can be reversed.", param="amount", began=True)
    transfer["amount_reversed"] += amount
    transfer["reversed"] = transfer["amount_reversed"] == transfer["amount"]
    tx.put("transfer", transfer)
    reversal = {
        "id": tx.new_id("trr"),
        "amount": amount,
        "balance_transaction": None,
        "created": tx.now,
        "currency": transfer["currency"],
        "metadata": metadata,
        "transfer": transfer_id,
    }
    tx.count(reversal, amount)
    return tx.put("transfer_reversal", reversal)


def _create_payout(tx: Transaction, form: Form) -> StripeObject:
    amount, currency = form.required_amount(), form.currency()
    payout = {
        "id": tx.new_id("po"),
        "amount": amount,
        "arrival_date": tx.now + 2 * 86400,
        "automatic": False,
        "balance_transaction": None,
        "created": tx.now,
        "currency": currency,
        "description": form.text("description"),
        "destination": form.text("destination"),
        "livemode": False,
        "metadata": form.metadata(),
        "method": form.choice("method", ("standard", "instant")) or "standard",
        "status": "pending",
        "type": "bank_account",
    }
    tx.count(payout, amount, authorised_minor=amount, moved_minor=amount)
    return tx.put("payout", payout)


def _create_topup(tx: Transaction, form: Form) -> StripeObject:
    amount, currency = form.required_amount(), form.currency()
    topup = {
        "id": tx.new_id("tu"),
        "amount": amount,
        "balance_transaction": None,
        "created": tx.now,
        "currency": currency,
        "description": form.text("description"),
        "livemode": False,
        "metadata": form.metadata(),
        "status": "succeeded",
    }
    tx.count(topup, amount, authorised_minor=amount, moved_minor=amount)
    return tx.put("topup", topup)


# What moves no money.


def _create_customer(tx: Transaction, form: Form) -> StripeObject:
    customer = {
        "id": tx.new_id("cus"),
        "balance": 0,
        "created": tx.now,
        "currency": None,
        "delinquent": False,
        "description": form.text("description"),
        "email": form.text("email"),
        "livemode": False,
        "metadata": form.metadata(),
        "name": form.text("name"),
        "phone": form.text("phone"),
    }
    return tx.put("customer", customer)


def _delete_customer(tx: Transaction, form: Form, customer_id: str) -> StripeObject:
    if tx.find("customer", customer_id).get("deleted"):
        raise StripeError(404, f"No such customer: '{customer_id}'", code="resource_missing", param="id")
    return tx.put("customer", {"id": customer_id, "deleted": True})


def _create_product(tx: Transaction, form: Form) -> StripeObject:
    active = form.boolean("active")
    wanted = form.text("id")
    if wanted is not None and tx.knows(wanted):
        raise StripeError(400, f"{wanted} already exists.", code="resource_already_exists", param="id")
    product = {
        "id": wanted or tx.new_id("prod"),
        "active": active is None or active,
        "created": tx.now,
        "default_price": None,
        "description": form.text("description"),
        "livemode": False,
        "metadata": form.metadata(),
        "name": form.required("name"),
    }
    return tx.put("product", product)


def _create_price(tx: Transaction, form: Form) -> StripeObject:
    currency, unit_amount = form.currency(), form.integer("unit_amount")
    if unit_amount is None:
        raise missing("unit_amount")
    if unit_amount < 0:
        raise StripeError(
            400, "This value must not be negative.", code="parameter_invalid_integer", param="unit_amount"
        )
    recurring = form.tree.get("recurring")
    if isinstance(recurring, dict):
        plan = Form(recurring)
        recurring_fields = {
            "interval": plan.choice("interval", ("day", "week", "month", "year")) or "month",
            "interval_count": plan.integer("interval_count") or 1,
        }
    else:
        recurring_fields = None
    metadata = form.metadata()
    product_data = form.tree.get("product_data")
    product = form.text("product")
    if product is None and isinstance(product_data, dict):
        product = _create_product(tx, Form(product_data))["id"]
    if product is None:
        raise missing("product")
    price = {
        "id": tx.new_id("price"),
        "active": True,
        "created": tx.now,
        "currency": currency,
        "livemode": False,
        "metadata": metadata,
        "nickname": form.text("nickname"),
        "product": product,
        "recurring": recurring_fields,
        "type": "one_time" if recurring_fields is None else "recurring",
        "unit_amount": unit_amount,
        "unit_amount_decimal": str(unit_amount),
    }
    return tx.put("price", price)


def _create_setup_intent(tx: Transaction, form: Form) -> StripeObject:
    method = _payment_method(form)
    confirm = form.boolean("confirm")
    if confirm and method is None:
        raise missing("payment_method")
    waiting = "requires_confirmation" if method else "requires_payment_method"
    intent_id = tx.new_id("seti")
    intent = {
        "id": intent_id,
        "client_secret": f"{intent_id}_{tx.new_id('secret')}",
        "created": tx.now,
        "customer": form.text("customer"),
        "description": form.text("description"),
        "livemode": False,
        "metadata": form.metadata(),
        "payment_method": method,
        "payment_method_types": form.texts("payment_method_types") or ["card"],
        "status": "succeeded" if confirm else waiting,
        "usage": form.choice("usage", ("on_session", "off_session")) or "off_session",
    }
    return tx.put("setup_intent", intent)


def _retrieve_payment_method(tx: Transaction, form: Form, method_id: str) -> StripeObject:
    if method_id.startswith("pm_card_"):
        return _card(tx, method_id, method_id, None)
    return tx.find("payment_method", method_id)


def _attach_payment_method(tx: Transaction, form: Form, method_id: str) -> StripeObject:
    """A test token becomes a card of its own; attaching a card again only moves it."""
    customer = form.required("customer")
    if method_id.startswith("pm_card_"):
        return tx.put("payment_method", _card(tx, tx.new_id("pm"), method_id, customer))
    method = tx.find("payment_method", method_id)
    method["customer"] = customer
    return tx.put("payment_method", method)


def _card(tx: Transaction, method_id: str, token: str, customer: str | None) -> StripeObject:
    return {
        "id": method_id,
        "object": "payment_method",
        "card": _CARD,
        "created": tx.now,
        "customer": customer,
        "declines": token.startswith(_DECLINING),  # ours, so that a kept card declines as its token does
        "livemode": False,
        "metadata": {},
        "type": "card",
    }


def _balance(tx: Transaction, form: Form) -> StripeObject:
    nothing = [{"amount": 0, "currency": "usd", "source_types": {"card": 0}}]
    return {"object": "balance", "available": nothing, "livemode": False, "pending": nothing}


_EVENTS = {
    "payment_intents.create": ("payment_intent.created", "payment_intent"),
    "charges.create": ("charge.succeeded", "charge"),
    "refunds.create": ("refund.created", "refund"),
    "charges.refund": ("refund.created", "refund"),
    "charges.refunds.create": ("refund.created", "refund"),
    "transfers.create": ("transfer.created", "transfer"),
    "payouts.create": ("payout.created", "payout"),
    "topups.create": ("topup.created", "topup"),
}


def _list_events(tx: Transaction, form: Form) -> StripeObject:
    """What calls made, as the book has it; only of what moves money."""
    kind, created = form.text("type"), form.tree.get("created")
    span = Form(created if isinstance(created, dict) else {})
    first, last = span.integer("gte"), span.integer("lte")
    found: list[StripeObject] = []
    for entry in reversed(tx.entries()):
        name, thing = _EVENTS.get(entry.kind, ("", ""))
        at = int(entry.time)
        if not name or kind not in (None, name) or at < (first or 0) or (last is not None and at > last):
            continue
        made = {"id": entry.object, "object": thing, "amount": entry.amount_minor, "currency": entry.currency}
        found.append(
            {
                "id": f"evt_{entry.seq}",
                "object": "event",
                "created": at,
                "data": {"object": made},
                "request": {"id": entry.request_id, "idempotency_key": entry.idempotency_key},
                "type": name,
            }
        )
    after = form.text("starting_after")
    ids = [event["id"] for event in found]
    begin = ids.index(after) + 1 if after in ids else 0
    size = min(max(form.integer("limit") or 10, 1), 100)
    page = found[begin : begin + size]
    return {"object": "list", "data": page, "has_more": len(found) > begin + size, "url": "/v1/events"}


# The table.


def _retrieve(kind: str) -> Handler:
    return lambda tx, form, object_id: tx.find(kind, object_id)


def _update(kind: str, *fields: str) -> Handler:
    def update(tx: Transaction, form: Form, object_id: str) -> StripeObject:
        obj = tx.find(kind, object_id)
        obj["metadata"] = form.metadata(obj.get("metadata"))
        for name in fields:
            if form.given(name):
                obj[name] = form.text(name)
        return tx.put(kind, obj)

    return update


def _list(kind: str, url: str, *filters: str) -> Handler:
    def page(tx: Transaction, form: Form) -> StripeObject:
        match = {name: value for name in filters if (value := form.text(name)) is not None}
        return tx.page(kind, form, url, match)

    return page


def _sublist(kind: str, parent: str, url: str) -> Handler:
    def page(tx: Transaction, form: Form, parent_id: str) -> StripeObject:
        tx.find(parent, parent_id)
        return tx.page(kind, form, url.format(parent_id), {parent: parent_id})

    return page


_TABLE: tuple[tuple[str, str, str, Handler], ...] = (
    ("POST", "/v1/payment_intents", "payment_intents.create", _create_payment_intent),
    (
        "GET",
        "/v1/payment_intents",
        "payment_intents.list",
        _list("payment_intent", "/v1/payment_intents", "customer"),
    ),
    ("GET", "/v1/payment_intents/{}", "payment_intents.retrieve", _retrieve("payment_intent")),
    ("POST", "/v1/payment_intents/{}", "payment_intents.update", _update_payment_intent),
    ("POST", "/v1/payment_intents/{}/confirm", "payment_intents.confirm", _confirm_payment_intent),
    ("POST", "/v1/payment_intents/{}/capture", "payment_intents.capture", _capture_payment_intent),
    ("POST", "/v1/payment_intents/{}/cancel", "payment_intents.cancel", _cancel_payment_intent),
    (
        "POST",
        "/v1/payment_intents/{}/increment_authorization",
        "payment_intents.increment_authorization",
        _increment_authorization,
    ),
    ("POST", "/v1/charges", "charges.create", _create_charge),
    ("GET", "/v1/charges", "charges.list", _list("charge", "/v1/charges", "customer", "payment_intent")),
    ("GET", "/v1/charges/{}", "charges.retrieve", _retrieve("charge")),
    ("POST", "/v1/charges/{}", "charges.update", _update("charge", "description")),
    ("POST", "/v1/charges/{}/capture", "charges.capture", _capture_charge),
    ("POST", "/v1/charges/{}/refund", "charges.refund", _refund_charge),
    ("POST", "/v1/charges/{}/refunds", "charges.refunds.create", _refund),
    (
        "GET",
        "/v1/charges/{}/refunds",
        "charges.refunds.list",
        _sublist("refund", "charge", "/v1/charges/{}/refunds"),
    ),
    ("POST", "/v1/refunds", "refunds.create", _create_refund),
    ("GET", "/v1/refunds", "refunds.list", _list("refund", "/v1/refunds", "charge", "payment_intent")),
    ("GET", "/v1/refunds/{}", "refunds.retrieve", _retrieve("refund")),
    ("POST", "/v1/refunds/{}", "refunds.update", _update("refund")),
    ("POST", "/v1/transfers", "transfers.create", _create_transfer),
    (
        "GET",
        "/v1/transfers",
        "transfers.list",
        _list("transfer", "/v1/transfers", "destination", "transfer_group"),
    ),
    ("GET", "/v1/transfers/{}", "transfers.retrieve", _retrieve("transfer")),
    ("POST", "/v1/transfers/{}", "transfers.update", _update("transfer", "description")),
    ("POST", "/v1/transfers/{}/reversals", "transfers.reversals.create", _reverse_transfer),
    (
        "GET",
        "/v1/transfers/{}/reversals",
        "transfers.reversals.list",
        _sublist("transfer_reversal", "transfer", "/v1/transfers/{}/reversals"),
    ),
    ("POST", "/v1/payouts", "payouts.create", _create_payout),
    ("GET", "/v1/payouts", "payouts.list", _list("payout", "/v1/payouts", "destination", "status")),
    ("GET", "/v1/payouts/{}", "payouts.retrieve", _retrieve("payout")),
    ("POST", "/v1/topups", "topups.create", _create_topup),
    ("GET", "/v1/topups", "topups.list", _list("topup", "/v1/topups", "status")),
    ("GET", "/v1/topups/{}", "topups.retrieve", _retrieve("topup")),
    ("POST", "/v1/customers", "customers.create", _create_customer),
    ("GET", "/v1/customers", "customers.list", _list("customer", "/v1/customers", "email")),
    ("GET", "/v1/customers/{}", "customers.retrieve", _retrieve("customer")),
    (
        "POST",
        "/v1/customers/{}",
        "customers.update",
        _update("customer", "description", "email", "name", "phone"),
    ),
    ("DELETE", "/v1/customers/{}", "customers.delete", _delete_customer),
    ("POST", "/v1/products", "products.create", _create_product),
    ("GET", "/v1/products", "products.list", _list("product", "/v1/products")),
    ("GET", "/v1/products/{}", "products.retrieve", _retrieve("product")),
    ("POST", "/v1/prices", "prices.create", _create_price),
    ("GET", "/v1/prices", "prices.list", _list("price", "/v1/prices", "product")),
    ("GET", "/v1/prices/{}", "prices.retrieve", _retrieve("price")),
    ("POST", "/v1/setup_intents", "setup_intents.create", _create_setup_intent),
    ("GET", "/v1/setup_intents/{}", "setup_intents.retrieve", _retrieve("setup_intent")),
    ("GET", "/v1/payment_methods/{}", "payment_methods.retrieve", _retrieve_payment_method),
    ("POST", "/v1/payment_methods/{}/attach", "payment_methods.attach", _attach_payment_method),
    ("GET", "/v1/balance", "balance.retrieve", _balance),
    ("GET", "/v1/events", "events.list", _list_events),
)

_ROUTES = {(method, pattern): Operation(name, handler) for method, pattern, name, handler in _TABLE}


def route(method: str, path: str) -> tuple[Operation, list[str]] | None:
    """The operation of a path and the ids in it. Every second segment after the collection is an id."""
    parts = path.split("/")
    if len(parts) > 6 or "" in parts[1:]:
        return None
    ids = parts[3::2]
    parts[3::2] = ["{}"] * len(ids)
    operation = _ROUTES.get((method, "/".join(parts)))
    return None if operation is None else (operation, ids)
