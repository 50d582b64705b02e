"""The unmodified Stripe SDK asks for what does not say its amount; the pretend Stripe counts what moves."""

import json
import os
import subprocess
import sys
from typing import Any

import httpx

from tests.e2e.support import SECRET, Kbctl, PretendStripe

# As an agent's author writes it: a refund of all that is left, twenty at once, and a foreign intent.
AGENT = """
import concurrent.futures, json, sys
import stripe

stripe.api_key, stripe.api_base = sys.argv[1], sys.argv[2]

def attempt(call):
    try:
        return [call().to_dict().get("amount"), ""]
    except stripe.StripeError as error:
        return [None, error.error.code if error.error else str(error)]

steps = {
    "refund": lambda: stripe.Refund.create(payment_intent=sys.argv[4]),
    "refunds": lambda: stripe.Refund.create(payment_intent=sys.argv[4]),
    "confirm": lambda: stripe.PaymentIntent.confirm(sys.argv[4], payment_method="pm_card_visa"),
}
count = 20 if sys.argv[3] == "refunds" else 1
with concurrent.futures.ThreadPoolExecutor(count) as pool:
    done = [pool.submit(attempt, steps[sys.argv[3]]) for _ in range(count)]
print(json.dumps([each.result() for each in done]))
"""


def run_agent(kbctl: Kbctl, key: str, step: str, intent: str) -> list[list[Any]]:
    base = kbctl.json("status")["proxy_url"] + "/stripe"
    done = subprocess.run(
        [sys.executable, "-c", AGENT, key, base, step, intent],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(kbctl.home)},
    )
    kbctl.said += done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    report: list[list[Any]] = json.loads(done.stdout)
    return report


def made_elsewhere(server: PretendStripe, amount: int, *, confirm: bool) -> str:
    """The operator's own payment intent, which kbctl never saw."""
    form = {"amount": str(amount), "currency": "usd", "payment_method": "pm_card_visa"}
    answer = httpx.post(
        f"{server.url}/v1/payment_intents",
        data=form | ({"confirm": "true"} if confirm else {}),
        headers={"Authorization": f"Bearer {SECRET}"},
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_a_refund_of_all_that_is_left_is_held_and_spent_exactly(
    served: Kbctl, stripe_server: PretendStripe
) -> None:
    """$42 of a payment that kbctl never saw; its look-up is told in the audit, and costs nothing."""
    intent = made_elsewhere(stripe_server, 4200, confirm=True)
    key = served.json("issue", "--tenant", "acme", "--cap", "50")

    assert run_agent(served, key["vault_key"], "refund", intent) == [[4200, ""]]

    call, looked_up = served.json("audit", "--tenant", "acme")
    assert (call["operation"], call["amount_usd"], call["outcome"]) == ("refunds.create", 42, "posted")
    assert (looked_up["operation"], looked_up["amount_usd"]) == ("payment_intents.retrieve", 0)
    assert call["call_id"] in looked_up["reason"]
    assert served.json("show", key["key_id"])["spent_usd"] == 42


def test_L1_twenty_refunds_at_once_of_what_is_beyond_the_cap(
    served: Kbctl, stripe_server: PretendStripe
) -> None:
    """None leaves; and under a cap that has room for one, one is paid."""
    intent = made_elsewhere(stripe_server, 4200, confirm=True)
    poor = served.json("issue", "--tenant", "poor", "--cap", "41.99")
    rich = served.json("issue", "--tenant", "rich", "--cap", "60")

    assert {code for _, code in run_agent(served, poor["vault_key"], "refunds", intent)} == {"cap_exhausted"}
    refunded = run_agent(served, rich["vault_key"], "refunds", intent)

    assert [amount for amount, _ in refunded if amount] == [4200]
    assert served.json("show", poor["key_id"])["spent_usd"] == 0
    spent = served.json("show", rich["key_id"])
    assert (spent["spent_usd"], spent["held_usd"]) == (42, 0)


def test_an_intent_made_elsewhere_counts_in_full_as_it_is_confirmed(
    served: Kbctl, stripe_server: PretendStripe
) -> None:
    """And beyond the cap it is not confirmed at all."""
    intent = made_elsewhere(stripe_server, 4200, confirm=False)
    poor = served.json("issue", "--tenant", "poor", "--cap", "41")
    rich = served.json("issue", "--tenant", "rich", "--cap", "42")

    assert run_agent(served, poor["vault_key"], "confirm", intent) == [[None, "cap_exhausted"]]
    assert run_agent(served, rich["vault_key"], "confirm", intent) == [[4200, ""]]
    assert served.json("show", rich["key_id"])["spent_usd"] == 42


def test_law_4_what_can_t_be_looked_up_is_refused(served: Kbctl) -> None:
    """There is no such intent: amount_unknown, and the vendor was asked for nothing but that."""
    key = served.json("issue", "--tenant", "acme", "--cap", "50")

    assert run_agent(served, key["vault_key"], "refund", "pi_none") == [[None, "amount_unknown"]]

    call, looked_up = served.json("audit", "--tenant", "acme")
    assert (call["policy_check_result"], call["amount_usd"]) == ("amount_unknown", 0)
    assert "status 404" in call["reason"]
    assert (looked_up["method"], looked_up["status"]) == ("GET", 404)
