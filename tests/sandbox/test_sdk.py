"""The real, unmodified Stripe SDK against the pretend Stripe: what an agent's code would see."""

from __future__ import annotations

import pytest
import stripe

from kbctld.sandbox import RunningSandbox
from tests.sandbox.support import SECRET


def test_a_confirmed_payment_intent_succeeds_and_has_a_charge(
    client: stripe.StripeClient, running: RunningSandbox
) -> None:
    intent = client.v1.payment_intents.create(
        params={
            "amount": 2000,
            "currency": "USD",
            "customer": "cus_1",
            "payment_method": "pm_card_visa",
            "confirm": True,
            "metadata": {"agent_id": "billing"},
            "expand": ["latest_charge"],
        }
    )
    assert (intent.status, intent.amount_received, intent.currency) == ("succeeded", 2000, "usd")
    assert intent.metadata is not None
    assert intent.metadata["agent_id"] == "billing"
    assert isinstance(intent.latest_charge, stripe.Charge)
    assert client.v1.charges.retrieve(intent.latest_charge.id).payment_intent == intent.id
    # Expanding is for the answer alone: what is stored keeps the id.
    assert client.v1.payment_intents.retrieve(intent.id).latest_charge == intent.latest_charge.id
    assert intent.last_response is not None
    assert intent.last_response.request_id is not None
    assert intent.last_response.request_id.startswith("req_")
    book = running.sandbox.book()
    assert book["authorised_minor"] == book["moved_minor"] == {"usd": 2000}


def test_the_long_way_create_update_confirm_capture_refund(
    client: stripe.StripeClient, running: RunningSandbox
) -> None:
    intents = client.v1.payment_intents
    intent = intents.create(params={"amount": 1000, "currency": "eur", "capture_method": "manual"})
    assert intent.status == "requires_payment_method"
    assert intents.update(intent.id, params={"amount": 1500}).amount == 1500
    assert intents.confirm(intent.id, params={"payment_method": "pm_card_visa"}).status == "requires_capture"
    assert intents.increment_authorization(intent.id, params={"amount": 1800}).amount_capturable == 1800
    captured = intents.capture(intent.id, params={"amount_to_capture": 1200})
    assert (captured.status, captured.amount_received) == ("succeeded", 1200)
    refund = client.v1.refunds.create(params={"payment_intent": intent.id})
    assert (refund.amount, refund.currency, refund.status) == (1200, "eur", "succeeded")
    book = running.sandbox.book()
    assert book["authorised_minor"] == {"eur": 1800 + 1200}
    assert book["moved_minor"] == {"eur": 1200 + 1200}


def test_an_open_payment_intent_can_be_canceled_once(client: stripe.StripeClient) -> None:
    intent = client.v1.payment_intents.create(params={"amount": 1000, "currency": "usd"})
    canceled = client.v1.payment_intents.cancel(intent.id, params={"cancellation_reason": "abandoned"})
    assert canceled.status == "canceled"
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.payment_intents.confirm(intent.id, params={"payment_method": "pm_card_visa"})
    assert caught.value.code == "payment_intent_unexpected_state"


def test_charges_are_captured_refunded_in_parts_and_never_refunded_twice(client: stripe.StripeClient) -> None:
    charges, refunds = client.v1.charges, client.v1.refunds
    charge = charges.create(params={"amount": 900, "currency": "usd", "source": "tok_visa", "capture": False})
    assert charge.captured is False
    assert charges.capture(charge.id).amount_captured == 900
    assert refunds.create(params={"charge": charge.id, "amount": 300}).amount == 300
    with pytest.raises(stripe.InvalidRequestError) as caught:
        refunds.create(params={"charge": charge.id, "amount": 601})
    assert caught.value.param == "amount"
    assert refunds.create(params={"charge": charge.id}).amount == 600
    with pytest.raises(stripe.InvalidRequestError) as caught:
        refunds.create(params={"charge": charge.id})
    assert caught.value.code == "charge_already_refunded"
    assert charges.retrieve(charge.id).refunded
    assert [refund.amount for refund in refunds.list(params={"charge": charge.id})] == [600, 300]


def test_a_declined_card_is_a_card_error_and_leaves_the_intent_open(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.CardError) as caught:
        client.v1.payment_intents.create(
            params={
                "amount": 700,
                "currency": "usd",
                "payment_method": "pm_card_chargeDeclined",
                "confirm": True,
            }
        )
    assert caught.value.code == "card_declined"
    assert caught.value.error is not None
    intent = caught.value.error.payment_intent
    assert intent is not None
    again = client.v1.payment_intents.confirm(intent.id, params={"payment_method": "pm_card_visa"})
    assert again.status == "succeeded"


def test_a_declined_source_is_a_card_error(client: stripe.StripeClient, running: RunningSandbox) -> None:
    with pytest.raises(stripe.CardError):
        client.v1.charges.create(params={"amount": 700, "currency": "usd", "source": "tok_chargeDeclined"})
    assert running.sandbox.book()["entries"] == 0


def test_money_leaves_by_transfer_payout_and_topup(
    client: stripe.StripeClient, running: RunningSandbox
) -> None:
    transfer = client.v1.transfers.create(params={"amount": 400, "currency": "usd", "destination": "acct_1"})
    reversal = client.v1.transfers.reversals.create(transfer.id, params={"amount": 100})
    assert (reversal.amount, reversal.transfer) == (100, transfer.id)
    assert client.v1.transfers.retrieve(transfer.id).amount_reversed == 100
    assert client.v1.payouts.create(params={"amount": 300, "currency": "usd"}).status == "pending"
    assert client.v1.topups.create(params={"amount": 200, "currency": "usd"}).status == "succeeded"
    assert running.sandbox.book()["moved_minor"] == {"usd": 900}


def test_lists_page_by_cursor_newest_first(client: stripe.StripeClient) -> None:
    made = [
        client.v1.payment_intents.create(
            params={"amount": 100 + number, "currency": "usd", "customer": f"cus_{number % 2}"}
        ).id
        for number in range(7)
    ]
    newest_first = made[::-1]
    page = client.v1.payment_intents.list(params={"limit": 3})
    assert ([intent.id for intent in page.data], page.has_more) == (newest_first[:3], True)
    assert [intent.id for intent in page.auto_paging_iter()] == newest_first
    before = client.v1.payment_intents.list(params={"limit": 2, "ending_before": newest_first[4]})
    assert [intent.id for intent in before.data] == newest_first[2:4]
    ours = client.v1.payment_intents.list(params={"customer": "cus_1"})
    assert [intent.id for intent in ours.data] == made[1::2][::-1]


def test_customers_products_prices_and_cards(client: stripe.StripeClient) -> None:
    customer = client.v1.customers.create(params={"email": "a@example.com", "metadata": {"a": "1", "b": "2"}})
    changed = client.v1.customers.update(customer.id, params={"name": "Ada", "metadata": {"a": ""}})
    assert (changed.name, changed.email) == ("Ada", "a@example.com")
    assert changed.metadata is not None
    assert changed.metadata.to_dict() == {"b": "2"}
    product = client.v1.products.create(params={"name": "Seat"})
    price = client.v1.prices.create(
        params={
            "currency": "usd",
            "unit_amount": 900,
            "product": product.id,
            "recurring": {"interval": "month"},
        }
    )
    assert client.v1.prices.retrieve(price.id).product == product.id
    card = client.v1.payment_methods.attach("pm_card_chargeDeclined", params={"customer": customer.id})
    assert client.v1.payment_methods.retrieve(card.id).customer == customer.id
    with pytest.raises(stripe.CardError):
        client.v1.payment_intents.create(
            params={"amount": 100, "currency": "usd", "payment_method": card.id, "confirm": True}
        )
    assert client.v1.setup_intents.create(params={"customer": customer.id}).status.startswith("requires_")
    assert client.v1.balance.retrieve().object == "balance"
    (event,) = client.v1.events.list().data
    assert (event.type, event.data.object["amount"]) == ("payment_intent.created", 100)
    assert client.v1.customers.delete(customer.id).deleted
    assert client.v1.customers.list().data == []


def test_a_replay_is_marked_and_moves_nothing(client: stripe.StripeClient, running: RunningSandbox) -> None:
    def create(amount: int) -> stripe.PaymentIntent:
        return client.v1.payment_intents.create(
            params={"amount": amount, "currency": "usd", "customer": "cus_1", "confirm": True},
            options={"idempotency_key": "order-1"},
        )

    first, second = create(500), create(500)
    assert first.id == second.id
    assert first.last_response is not None
    assert second.last_response is not None
    assert second.last_response.headers["Idempotent-Replayed"] == "true"
    assert second.last_response.headers["Original-Request"] == first.last_response.request_id
    assert running.sandbox.book()["moved_minor"] == {"usd": 500}
    with pytest.raises(stripe.IdempotencyError):
        create(501)
    assert running.sandbox.book()["moved_minor"] == {"usd": 500}


@pytest.mark.parametrize("key", ["sk_test_other", "vault_key_4f1c0a9e", SECRET + "x", SECRET[:-1]])
def test_any_other_key_is_refused(client: stripe.StripeClient, running: RunningSandbox, key: str) -> None:
    with pytest.raises(stripe.AuthenticationError):
        client.v1.payment_intents.create(params={"amount": 500, "currency": "usd"}, options={"api_key": key})
    assert running.sandbox.book()["calls"] == {"unauthorized": 1}


def test_after_expect_the_old_secret_is_refused(client: stripe.StripeClient, running: RunningSandbox) -> None:
    client.v1.balance.retrieve()
    running.sandbox.expect("sk_test_rotated")
    with pytest.raises(stripe.AuthenticationError):
        client.v1.balance.retrieve()
    assert client.v1.balance.retrieve(options={"api_key": "sk_test_rotated"}).object == "balance"
