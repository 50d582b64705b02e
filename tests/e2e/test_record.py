"""The vendor's own list: it settles a call without an answer, and shows what our rows do not tell alike."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.scene import until
from tests.e2e.support import SECRET, Kbctl, PretendStripe, post, pretend_stripe

INTENTS = "/v1/payment_intents"


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[PretendStripe]:
    """A pretend Stripe that hangs up when the request's metadata asks it to."""
    with pretend_stripe(tmp_path, faults=True) as server:
        yield server


@pytest.fixture
def served(home: Kbctl, faulty: PretendStripe) -> Kbctl:
    """A daemon in front of it."""
    home("up", "--port", "0", "--upstream", f"stripe={faulty.url}")
    home("credential", "set", "stripe", stdin=SECRET + "\n")
    return home


def ask(kbctl: Kbctl, key: str, body: str, idempotency_key: str, path: str = INTENTS) -> int:
    port = int(kbctl.json("status")["proxy_url"].rpartition(":")[2])
    return asyncio.run(post(port, path, key, body, idempotency_key))[0]


def test_what_the_vendor_did_before_it_hung_up_is_posted_from_its_own_list(
    served: Kbctl, faulty: PretendStripe
) -> None:
    """Nobody retries and nobody resolves: after the restart the list of events shows whose money moved."""
    key = served("issue", "--cap", "100").strip()
    assert ask(served, key, "amount=3000&currency=usd&metadata[sandbox_fault]=reset-after", "order-1") == 502
    assert ask(served, key, "amount=2000&currency=usd&metadata[sandbox_fault]=reset-before", "order-2") == 502
    assert served.json("show", key)["held_usd"] == 50
    made = faulty.entries()[0]

    served("down")
    served("up", "--port", "0", "--upstream", f"stripe={faulty.url}")
    until(lambda: served.json("show", key)["held_usd"] == 20)

    shown = served.json("show", key)
    assert (shown["spent_usd"], shown["held_usd"]) == (30, 20)
    settled = next(row for row in served.json("audit") if row["idempotency_key"] == "order-1")
    assert (settled["outcome"], settled["amount_usd"]) == ("posted", 30)
    assert settled["vendor_request_id"] == made["request_id"]
    (change,) = served.json("changes", "--subject", settled["call_id"])
    assert (change["actor"], change["action"]) == ("kbctl", "call.resolve")
    assert change["details"] == {"held_usd": 30, "spent_usd": 30, "found": made["object"]}
    # What never arrived is in no list, and stays held: that proves nothing.
    (lost,) = served.json("audit", "--unknown")
    assert lost["idempotency_key"] == "order-2"
    asked = [row for row in served.json("audit") if lost["call_id"] in (row["reason"] or "")]
    assert [(row["operation"], row["amount_usd"], row["vault_key_id"]) for row in asked] == [
        ("events.list", 0, None)
    ]
    # Later steps count only what they add to the object that was found.
    assert (
        ask(served, key, "payment_method=pm_card_visa", "c-1", f"{INTENTS}/{made['object']}/confirm") == 200
    )
    assert served.json("show", key)["spent_usd"] == 30


STRIPE = """
import json, sys
import stripe

stripe.api_key, stripe.api_base, stripe.max_network_retries = sys.argv[1], sys.argv[2] + "/stripe", 0
report = []
for name, arguments, more in json.loads(sys.argv[3]):
    try:
        report.append(getattr(stripe.PaymentIntent, name)(*arguments, **more).status)
    except stripe.StripeError as error:
        report.append(error.http_status)
print(json.dumps(report))
"""


def sdk(kbctl: Kbctl, key: str, *calls: tuple[str, list[str], dict[str, Any]]) -> list[Any]:
    """Calls of Stripe's own SDK on payment intents; their states, or statuses."""
    done = subprocess.run(
        [sys.executable, "-c", STRIPE, key, kbctl.json("status")["proxy_url"], json.dumps(calls)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(kbctl.home)},
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def with_the_real_key(faulty: PretendStripe, path: str = "", **form: str) -> dict[str, Any]:
    """What somebody does around kbctl."""
    answer = httpx.post(
        f"{faulty.url}{INTENTS}{path}",
        data=form,
        headers={"Authorization": f"Bearer {SECRET}"},
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_what_became_of_a_confirmation_is_told_by_the_intent(served: Kbctl, faulty: PretendStripe) -> None:
    """Three that got no answer: one was done, one is canceled since, one may still arrive and stays held."""
    key = served("issue", "--cap", "100").strip()
    done, dead, late = (
        with_the_real_key(faulty, amount=str(amount), currency="usd", customer="cus_1")["id"]
        for amount in (3000, 2000, 1000)
    )
    calls = [
        ("confirm", [intent], {"payment_method": "pm_card_visa", "metadata": {"sandbox_fault": fault}})
        for intent, fault in ((done, "reset-after"), (dead, "reset-before"), (late, "reset-before"))
    ]
    assert sdk(served, key, *calls) == [502, 502, 502]
    assert served.json("show", key)["held_usd"] == 60
    with_the_real_key(faulty, f"/{dead}/cancel")

    served.kill()
    served("up", "--port", "0", "--upstream", f"stripe={faulty.url}")
    until(lambda: len(served.json("audit", "--unknown")) == 1)

    shown = served.json("show", key)
    assert (shown["spent_usd"], shown["held_usd"]) == (30, 10)
    outcomes = {row["endpoint"]: row["outcome"] for row in served.json("audit") if row["vault_key_id"]}
    assert [outcomes[f"{INTENTS}/{intent}/confirm"] for intent in (done, dead, late)] == [
        *("posted", "voided", "unknown")
    ]
    until(lambda: any(late in row["endpoint"] and row["method"] == "GET" for row in served.json("audit")))
    assert served.json("show", key)["held_usd"] == 10
    served("audit", "verify")


def test_a_connected_account_has_a_list_of_its_own(served: Kbctl, faulty: PretendStripe) -> None:
    """What was made there is found there, and compared with that list; what was made here, with this one."""
    key = served("issue", "--cap", "100", "--param", "stripe-account in acct_1").strip()
    own = served("issue", "--cap", "100").strip()
    money = {"amount": 3000, "currency": "usd"}
    lost = {**money, "metadata": {"sandbox_fault": "reset-after"}}
    assert sdk(served, key, ("create", [], {**lost, "stripe_account": "acct_1"})) == [502]
    assert sdk(served, own, ("create", [], money)) == ["requires_payment_method"]

    served.kill()
    served("up", "--port", "0", "--upstream", f"stripe={faulty.url}")
    until(lambda: served.json("show", key)["spent_usd"] == 30)
    until(lambda: _reconciled(served)["agree"] == 2)


def test_reconcile_finds_what_went_around_what_is_here_alone_and_what_differs(
    served: Kbctl, faulty: PretendStripe
) -> None:
    """Exit status 0 while both tell the same, 5 when they don't; three kinds of difference, told apart."""
    key = served("issue", "--cap", "500").strip()
    assert ask(served, key, "amount=1000&currency=usd", "a-1") == 200
    assert ask(served, key, "amount=1100&currency=usd", "a-2") == 200
    assert ask(served, key, "amount=1200&currency=usd", "a-3") == 200
    until(lambda: _reconciled(served)["agree"] == 3)
    assert "3 calls of stripe agree" in served("reconcile", "stripe")

    # The real key, used by somebody else.
    answer = httpx.post(
        f"{faulty.url}{INTENTS}",
        data={"amount": "7700", "currency": "usd"},
        headers={"Authorization": f"Bearer {SECRET}"},
        trust_env=False,
    )
    assert answer.status_code == 200
    assert ask(served, key, "amount=2000&currency=usd&metadata[sandbox_fault]=reset-before", "a-4") == 502
    database = served.json("status")["database"]
    served("down")
    with sqlite3.connect(database) as editor:
        editor.execute(
            "UPDATE call SET amount_minor = 1, amount_nano = 10000000 WHERE idempotency_key = 'a-2'"
        )
    editor.close()
    served("up", "--port", "0", "--upstream", f"stripe={faulty.url}")
    until(lambda: len(_reconciled(served, status=5)["differences"]) == 3)

    found = _reconciled(served, status=5)
    by_kind = {each["what"]: each for each in found["differences"]}
    around, absent, differs = (by_kind[what] for what in ("elsewhere", "absent", "differs"))
    assert (around["object_id"], around["vendor_usd"], around["call_id"]) == (answer.json()["id"], 77, None)
    assert (absent["here_usd"], absent["outcome"], absent["object_id"]) == (20, "unknown", None)
    assert (differs["here_usd"], differs["vendor_usd"], differs["outcome"]) == (0.01, 11, "posted")
    assert (found["agree"], found["elsewhere_usd"], found["absent_usd"]) == (2, 77, 20)
    shown = served("reconcile", "stripe", "--since", "1h", status=5)
    for words in ("not here", "here alone", "differs", "$77.00", "$20.00 held"):
        assert words in shown
    assert SECRET not in shown


def _reconciled(kbctl: Kbctl, status: int = 0) -> dict[str, Any]:
    try:
        return dict(json.loads(kbctl("reconcile", "stripe", "--json", status=status)))
    except AssertionError:
        return {"agree": -1, "differences": []}  # not in the list's window yet
