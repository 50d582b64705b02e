"""The unmodified Stripe SDK, newest and 11.6, through the proxy until the cap stops it."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.support import Kbctl, PretendStripe
from tests.sdks.support import old_sdks

# As an agent's author writes it: a key, a base, calls, and one look at the error's text.
AGENT = """
import json, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="kbctl: ")  # little of the cap is left
sys.path[:0] = json.loads(sys.argv[4])
import stripe

stripe.api_key, stripe.api_base = sys.argv[1], sys.argv[2]
report = {"version": stripe.VERSION, "charges": 0, "error": "", "kind": "", "code": ""}
for number in range(int(sys.argv[3])):
    try:
        intent = stripe.PaymentIntent.create(
            amount=12000, currency="usd", customer="cus_1", metadata={"agent_id": "billing"},
            idempotency_key=f"{sys.argv[1][-8:]}-{number}",
        )
        assert intent.amount == 12000 and intent.last_response.request_id
        report["charges"] += 1
    except stripe.StripeError as error:
        report |= {"error": str(error), "kind": type(error).__name__, "code": error.error.code}
        break
print(json.dumps(report))
"""


@pytest.fixture(params=["newest", "11.6"])
def sdk(request: pytest.FixtureRequest) -> list[str]:
    """The import path of one generation of the SDK."""
    if request.param == "newest":
        return []
    return [old_sdks()]


def run_agent(kbctl: Kbctl, key: str, base: str, calls: int, sdk: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", AGENT, key, base, str(calls), json.dumps(sdk)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(kbctl.home)},
    )
    kbctl.said += done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("suffix", ["/stripe", "/stripe/", "/stripe/v1", "/stripe/v1/", ""])
def test_every_base_url_that_sdks_produce_reaches_the_operation(served: Kbctl, suffix: str) -> None:
    """The prefix, a trailing slash, a repeated version or none at all: all are the same call."""
    base = served.json("status")["proxy_url"] + suffix
    key = served("issue", "--tenant", "acme", "--cap", "500").strip()

    assert run_agent(served, key, base, 1, [])["charges"] == 1
    assert served.json("audit")[0]["operation"] == "payment_intents.create"


def test_the_cap_stops_the_sdk_with_one_request_and_revoke_with_401(
    served: Kbctl, stripe_server: PretendStripe, sdk: list[str]
) -> None:
    """The story of the README: charge until the cap, then a revoked key, while another tenant goes on."""
    base = served.json("status")["proxy_url"] + "/stripe"
    acme = served.json("issue", "--tenant", "acme", "--cap", "500")
    globex = served.json("issue", "--tenant", "globex", "--cap", "500")

    stopped = run_agent(served, acme["vault_key"], base, 10, sdk)

    assert sdk == [] or stopped["version"].startswith("11.6")
    assert stopped["charges"] == 4  # 4 x $120 fit into $500
    assert "cap_exhausted" in stopped["error"]
    assert (stopped["kind"], stopped["code"]) == ("RateLimitError", "cap_exhausted")
    rows = served.json("audit", "--label", "tenant:acme")
    assert [row["policy_check_result"] for row in rows] == ["cap_exhausted", *["allowed"] * 4]
    assert [row["outcome"] for row in rows] == ["refused", *["posted"] * 4]
    assert rows[0]["requested_usd"] == 120
    assert rows[1]["metadata"]["agent_id"] == "billing"
    assert rows[1]["stripe_request_id"].startswith("req_")
    assert stripe_server.authorised_cents() == 48_000

    assert run_agent(served, globex["vault_key"], base, 1, sdk)["charges"] == 1
    served("revoke", acme["key_id"])
    revoked = run_agent(served, acme["vault_key"], base, 1, sdk)
    assert (revoked["kind"], revoked["charges"]) == ("AuthenticationError", 0)
    assert "key_revoked" in revoked["error"]
    assert run_agent(served, globex["vault_key"], base, 1, sdk)["charges"] == 1
    assert len(served.json("audit", "--label", "tenant:acme")) == 6  # the refused call was one request too
    # Globex's second run repeated the idempotency key of its first: a retry, charged and counted once.
    assert stripe_server.authorised_cents() == 60_000
    assert served.json("show", globex["key_id"])["spent_usd"] == 120


def test_a_refused_endpoint_and_an_unreadable_amount_have_the_sdk_s_own_classes(served: Kbctl) -> None:
    """403 is a PermissionError, 400 an InvalidRequestError, each with one request and no row upstream."""
    base = served.json("status")["proxy_url"] + "/stripe"
    narrow = served("issue", "--tenant", "a", "--cap", "500", "--allow", "GET /v1/customers/*").strip()
    script = AGENT.replace("amount=12000", "amount='20_00'")

    refused = run_agent(served, narrow, base, 1, [])
    assert (refused["kind"], refused["code"]) == ("PermissionError", "endpoint_not_allowed")

    wide = served("issue", "--tenant", "b", "--cap", "500").strip()
    done = subprocess.run(
        [sys.executable, "-c", script, wide, base, "1", "[]"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(served.home)},
    )
    report = json.loads(done.stdout)
    assert (report["kind"], report["code"]) == ("InvalidRequestError", "amount_unknown")
    assert [row["outcome"] for row in served.json("audit")] == ["refused", "refused"]
