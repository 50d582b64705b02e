"""Law 12 with the real SDK and real processes: duplicates, keys kept apart, and the word at four fifths."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.scene import CHARGES, Agent, Scene, Stage, said, staged
from tests.e2e.support import PretendStripe, new_home, pretend_stripe

# An agent that plans anew: the SDK makes a new idempotency key for each call.
AGENT = """
import json, sys, warnings
import stripe

warnings.simplefilter("always")
stripe.api_key, stripe.api_base = sys.argv[1], sys.argv[2]
report = []
for amount in json.loads(sys.argv[3]):
    with warnings.catch_warnings(record=True) as warned:
        try:
            said = stripe.PaymentIntent.create(amount=amount, currency="usd", customer="cus_1").id
        except stripe.StripeError as error:
            said = [type(error).__name__, error.http_status, str(error)]
    report.append([said, [str(warning.message) for warning in warned]])
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


def run_agent(scene: Scene, key: dict[str, Any], amounts: list[int]) -> list[tuple[Any, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", AGENT, key["vault_key"], f"{scene.url}/stripe", json.dumps(amounts)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(scene.kbctl.home)},
    )
    assert done.returncode == 0, done.stderr
    return [(said, warned) for said, warned in json.loads(done.stdout)]


def test_what_nobody_has_limited_is_flagged_and_can_be_looked_for(stage: Stage) -> None:
    """By default a second plan passes; its row names the first, in every form that shows rows."""
    key = stage.issue(tenant="flagged")
    assert key["duplicates"] == "flag/10m"
    results = run_agent(stage, key, [700, 700, 701])
    assert [isinstance(result, str) for result, _ in results] == [True] * 3

    third, second, first = stage.rows(tenant="flagged")
    assert (first["duplicate_of"], third["duplicate_of"]) == (None, None)
    assert (second["duplicate_of"], second["policy_check_result"]) == (first["call_id"], "allowed")
    assert second["reason"].startswith(
        "suspected_duplicate: payment_intents.create asks for $7.00 just as call_"
    )
    assert second["amount_usd"] == 7
    assert stage.rows(tenant="flagged", duplicates="true") == [second]
    assert stage.kbctl.json("audit", "--tenant", "flagged", "--duplicates") == [second]
    assert "duplicate?" in stage.kbctl("audit", "--tenant", "flagged", "--duplicates")
    query = "SELECT call_id FROM calls WHERE duplicate_of IS NOT NULL AND tenant = 'flagged'"
    assert stage.kbctl.json("sql", query) == [{"call_id": second["call_id"]}]


def test_the_sdk_is_refused_once_and_told_how_to_go_on(stage: Stage) -> None:
    """PermissionError: one request, no retry; also after a restart, and by another key of the tenant."""
    stage.kbctl("policy", "set", "careful", "--cap", "100", "--duplicates", "refuse/1h")
    key = stage.issue(tenant="careful", policy="careful", daily_usd_cap=50)
    assert key["duplicates"] == "refuse/1h"
    assert "refuse what spends just as another call did within 1h" in stage.kbctl("show", key["key_id"])
    before = len(stage.stripe.arrived)
    (first, _), (second, _) = run_agent(stage, key, [900, 900])
    assert isinstance(first, str)
    kind, status, message = second
    assert (kind, status) == ("PermissionError", 403)
    assert "suspected_duplicate: payment_intents.create asks for $9.00 just as call_" in message
    assert "send its own Idempotency-Key" in message
    stage.restart()
    other = stage.issue(tenant="careful", policy="careful", daily_usd_cap=50)
    ((third, _), (fourth, _)) = run_agent(stage, other, [900, 901])
    assert third[:2] == ["PermissionError", 403]
    assert isinstance(fourth, str)
    assert len(stage.stripe.arrived) - before == 2
    rows = stage.rows(tenant="careful")
    assert len(rows) == 4  # nothing was repeated
    assert [row["policy_check_result"] for row in rows].count("suspected_duplicate") == 2
    assert stage.key(key)["spent_usd"] == 9
    told = stage.kbctl("explain", rows[1]["call_id"])
    assert f"kbctl explain {rows[3]['call_id']}, for the call that spends just so" in told


def test_law_9_a_child_may_only_tighten(stage: Stage) -> None:
    """A shorter window, a flag, or none at all are refused; what is not said is the parent's."""
    parent = stage.issue(vendor="stripe", duplicates="refuse/10m")
    for wider in ("flag/10m", "refuse/9m", None, "flag/1h"):
        status, answer = stage.derive(parent, daily_usd_cap=5, duplicates=wider)
        assert (status, answer["error"]["code"]) == (403, "wider_than_parent"), wider
        assert "`duplicates` is wider than its parent" in answer["error"]["message"]
    assert stage.child(parent, daily_usd_cap=5)["duplicates"] == "refuse/10m"
    stricter = stage.child(parent, daily_usd_cap=5, duplicates="refuse/1h")
    assert stricter["duplicates"] == "refuse/1h"
    mine = stage.unasked("GET", "/vault/self", Authorization=f"Bearer {stricter['vault_key']}")[1]
    assert mine["duplicates"] == "refuse/1h"

    loose = stage.issue(vendor="stripe", duplicates=None)
    assert loose["duplicates"] is None
    agent = stage.agent(loose)
    for name in ("a", "b"):
        body = "amount=55&currency=usd"
        assert said(agent.ask("POST", CHARGES, body, **{"Idempotency-Key": name})) == "allowed"
    assert stage.rows(key=loose["key_id"], duplicates="true") == []


@pytest.mark.parametrize("value", ["sometimes", "refuse/25h", "flag/", ""])
def test_a_limit_that_says_nothing_is_a_mistake(stage: Stage, value: str) -> None:
    status, answer = stage.operate("POST", "/vault/keys", {"daily_usd_cap": 1, "duplicates": value})
    assert (status, answer["error"]["code"]) == (400, "invalid_request")
    assert "`duplicates`" in answer["error"]["message"]


def test_a_live_key_follows_its_policy(stage: Stage) -> None:
    """Pushed with --live, and the default again once neither policy nor key says anything."""
    stage.kbctl("policy", "set", "moving", "--cap", "100")
    key = stage.issue(policy="moving", daily_usd_cap=50, vendor="stripe")
    assert key["duplicates"] == "flag/10m"
    stage.kbctl("policy", "set", "moving", "--cap", "100", "--duplicates", "refuse", "--live")
    assert stage.key(key)["duplicates"] == "refuse/10m"
    agent = stage.agent(key)
    assert agent.charge(41) == "allowed"
    assert agent.charge(41) == "suspected_duplicate"
    stage.kbctl("policy", "set", "moving", "--cap", "100", "--live")
    assert stage.key(key)["duplicates"] == "flag/10m"
    assert agent.charge(41) == "allowed"


def test_the_sdk_warns_at_four_fifths_of_a_cap(stage: Stage) -> None:
    """stripe-python shows Stripe-Notice as a Python warning; nothing was changed in the agent."""
    key = stage.issue(vendor="stripe", daily_usd_cap=10)
    results = run_agent(stage, key, [500, 299, 1, 100])
    assert all(isinstance(result, str) for result, _ in results), results
    before, just, there, after = (warned for _, warned in results)
    assert before == just == []
    text = f"left of the $10.00 daily cap of key {key['key_id']}; it resets at 00:00 UTC"
    # The SDK adds a line of its own: how to suppress notices.
    assert [warning.partition("\n")[0] for warning in (*there, *after)] == [
        f"kbctl: $2.00 is {text}",
        f"kbctl: $1.00 is {text}",
    ]


# --- two tenants on one account -----------------------------------------------------------------------------


@pytest.fixture
def stripe_account(tmp_path: Path) -> Iterator[PretendStripe]:
    with pretend_stripe(tmp_path) as server:
        yield server


@pytest.mark.parametrize("namespace", ["account", "tenant"])
def test_tenants_that_share_an_account_share_idempotency_keys_unless_told_otherwise(
    stripe_account: PretendStripe, namespace: str
) -> None:
    """The naive version: the second tenant gets the first one's payment, and is charged for it here."""
    config = f'[idempotency.stripe]\nnamespace = "{namespace}"\n'
    with new_home() as kbctl, Scene(kbctl, {"stripe": stripe_account.url}, config) as scene:
        keys = [scene.issue(tenant=name, vendor="stripe") for name in ("acme", "globex")]

        def pay(agent: Agent) -> str:
            body = "amount=1200&currency=usd"
            status, answer = agent.ask("POST", CHARGES, body, **{"Idempotency-Key": "order-1"})
            assert status == 200, answer
            return str(answer["id"])

        acme, globex = (pay(scene.agent(key)) for key in keys)
        assert (acme == globex) is (namespace == "account")
        assert pay(scene.agent(keys[0])) == acme  # a retry is one still
        scene.close()
        kbctl("down")
        scene.up()
        assert pay(scene.agent(keys[0])) == acme  # and after a restart
        assert stripe_account.authorised_cents() == (1200 if namespace == "account" else 2400)
        assert scene.key(keys[0])["spent_usd"] == 12
        assert {row["idempotency_key"] for row in scene.rows()} == {"order-1"}
