"""Programs of the published shape, unmodified SDK included: only the host is ours.

What a platform runs, what its agents run, and what an operator asks afterwards: the calls, fields and
queries stand here as people publish them, and do what the comments beside them promise.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.scene import Scene, said
from tests.e2e.support import SECRET, Kbctl, PretendStripe, new_home, pretend_stripe

PLAN_CAPS = {"starter": 500, "growth": 5000, "enterprise": 50000}

# What every program begins with. httpx takes the very calls that requests takes.
BEGIN = """
import json, os, sys
import httpx as requests
import stripe

PROXY, TOKEN = os.environ["PROXY"], os.environ.get("TOKEN")
AUTH = {"Authorization": f"Bearer {TOKEN}"}
job = json.load(sys.stdin)
report = {}
"""
END = "\nprint(json.dumps(report))\n"

# The platform's run of one tenant: issue, charge every customer, stop at the cap.
BILLING_RUN = """
def run_billing_agent(tenant_id, plan_id, tenant_plan):
    # the cap is the tier's
    plan_caps = {"starter": 500, "growth": 5000, "enterprise": 50000}
    cap = plan_caps.get(tenant_plan, 500)
    # a vault key for this run of this tenant
    resp = requests.post(
        f"{PROXY}/vault/keys",
        headers={"Authorization": f"Bearer {TOKEN}"},
        json={
            "vendor": "stripe",
            "daily_usd_cap": cap,
            "allowed_endpoints": ["POST /v1/payment_intents", "POST /v1/refunds"],
            "expires_in": "2h",
            "agent_run_label": f"billing-agent/tenant:{tenant_id}/plan:{plan_id}",
            "metadata": {"tenant_id": tenant_id, "plan_tier": tenant_plan},
        },
    )
    vault_key = resp.json()["vault_key"]
    stripe.api_key = vault_key
    stripe.api_base = f"{PROXY}/stripe"
    run_id = resp.json()["key_id"]
    for customer in job["customers"]:
        try:
            stripe.PaymentIntent.create(
                amount=customer["amount_cents"],
                currency="usd",
                customer=customer["stripe_customer_id"],
                idempotency_key=f"{run_id}-{customer['id']}",
            )
            report["charged"] = report.get("charged", 0) + 1
        except Exception as e:
            if "cap_exhausted" in str(e):
                report["notified"] = f"Tenant {tenant_id} billing agent hit spend cap: {cap} USD"
                break
            raise
    report["key"] = resp.json()

run_billing_agent(job["tenant"], "monthly", job["plan"])
"""

# One real key for everybody, and nothing in between.
NAIVE_RUN = """
stripe.api_key, stripe.api_base = job["secret"], job["base"]
for customer in job["customers"]:
    stripe.PaymentIntent.create(amount=customer["amount_cents"], currency="usd", customer="cus_1")
    report["charged"] = report.get("charged", 0) + 1
"""

# Four tenants under way; A is found by its metadata and stopped.
REVOKE_ONE = """
clients = {
    tenant: stripe.StripeClient(key, base_addresses={"api": f"{PROXY}/stripe"})
    for tenant, key in job["keys"].items()
}

def charge_each():
    became = {}
    for tenant, client in clients.items():
        try:
            client.v1.payment_intents.create(
                params={"amount": 1000, "currency": "usd", "customer": f"cus_{tenant}"}
            )
            became[tenant] = "charged"
        except stripe.AuthenticationError as e:
            became[tenant] = f"{e.http_status} {e.error.code}"
    return became

report["before"] = charge_each()
# 1. the active vault key of tenant A
resp = requests.get(
    f"{PROXY}/vault/keys",
    headers={"Authorization": f"Bearer {TOKEN}"},
    params={"metadata.tenant_id": job["tenant_a"], "status": "active"},
)
report["found"] = resp.json()["keys"]
key_id = resp.json()["keys"][0]["key_id"]
# 2. revoke just that one
resp = requests.delete(f"{PROXY}/vault/keys/{key_id}", headers={"Authorization": f"Bearer {TOKEN}"})
report["took_s"] = resp.elapsed.total_seconds()
report["after"] = charge_each()
resp = requests.get(
    f"{PROXY}/vault/keys",
    headers={"Authorization": f"Bearer {TOKEN}"},
    params={"metadata.tenant_id": job["tenant_a"], "status": "active"},
)
report["left"] = resp.json()["keys"]
"""

AUDIT_OF_ONE = """
resp = requests.get(
    f"{PROXY}/audit",
    headers={"Authorization": f"Bearer {TOKEN}"},
    params={
        "label_contains": f"tenant:{job['tenant_a']}",
        "vendor": job.get("vendor", "stripe"),
        "from": job["from"],
        "to": job["to"],
    },
)
report["rows"] = resp.json()
"""

# A nested chat's own key: derived by the agent that holds the parent, with nobody's token.
SUBAGENT = """
os.environ["BILLING_VAULT_KEY"] = job["vault_key"]

def spawn_billing_subagent(parent_run_id):
    return requests.post(f"{PROXY}/vault_keys", json={
        "parent_vault_key": os.environ["BILLING_VAULT_KEY"],
        "daily_usd_cap": 200,
        "allowed_endpoints": ["POST /v1/payment_intents"],
        "expires_in": "30m",
        "metadata": {"parent_run_id": parent_run_id, "role": "billing_subagent"},
    }).json()["vault_key"]

child_key = spawn_billing_subagent("run_parent")
report["child_key"] = child_key
child = stripe.StripeClient(api_key=child_key, base_addresses={"api": f"{PROXY}/stripe"})
try:
    for _ in range(5):
        child.v1.payment_intents.create(params={"amount": 6000, "currency": "usd", "customer": "cus_1"})
        report["charged"] = report.get("charged", 0) + 1
except stripe.RateLimitError as e:
    report["stopped"] = e.error.code
try:
    child.v1.refunds.create(params={"payment_intent": "pi_1", "amount": 100})
except stripe.PermissionError as e:
    report["refund"] = e.error.code
"""

# The billing and the refund agent of one process, each with a client of its own.
TWO_AGENTS = """
clients = {
    role: stripe.StripeClient(api_key=key, base_addresses={"api": f"{PROXY}/stripe"})
    for role, key in job["keys"].items()
}

def charge_customer(client):
    return client.v1.charges.create(params={"amount": 2000, "customer": "cus_1", "currency": "usd"})

def create_intent(client):
    return client.v1.payment_intents.create(params={"amount": 2000, "currency": "usd", "customer": "cus_1"})

def look_up_customer(client):
    return client.v1.customers.retrieve(job["customer"])

def issue_refund(client):
    return client.v1.refunds.create(params={"payment_intent": intent.id, "amount": 500})

stripe.api_key, stripe.api_base = job["keys"]["setup"], f"{PROXY}/stripe"
intent = stripe.PaymentIntent.create(
    amount=2000, currency="usd", customer="cus_1", payment_method="pm_card_visa", confirm=True
)
for role, client in clients.items():
    for tool in (charge_customer, create_intent, look_up_customer, issue_refund):
        try:
            tool(client)
            outcome = "done"
        except stripe.PermissionError as e:
            outcome = e.error.code
        report.setdefault(role, {})[tool.__name__] = outcome
"""

# A crew's agent: what it says in the vendor's metadata is in the audit too.
CREW_AGENT = """
stripe.api_key, stripe.api_base = job["vault_key"], f"{PROXY}/stripe"
os.environ["CREW_RUN_ID"] = "crew_7"
stripe.PaymentIntent.create(
    amount=2000,
    currency="usd",
    customer="cus_1",
    metadata={
        "crew_run_id": os.environ["CREW_RUN_ID"],
        "agent_id": "billing_agent",
    },
)
"""

REFUSED_OF_A_RUN = """
SELECT ts, endpoint, amount_usd, policy_check_result
FROM calls
WHERE metadata->>'agent_run_id' = 'run_xyz'
AND policy_check_result != 'allowed'
ORDER BY ts DESC;
"""
CALLS_OF_AN_AGENT = "SELECT * FROM calls WHERE metadata->>'agent_id' = 'billing_agent'"
SPEND_PER_KEY = "SELECT vault_key_id, sum(amount_usd) AS usd FROM calls GROUP BY vault_key_id"

DAY = timedelta(days=1)


class Platform(Scene):
    """A daemon in front of a pretend Stripe, and the operator token that the platform's programs hold."""

    def __init__(self, kbctl: Kbctl, stripe_server: PretendStripe) -> None:
        super().__init__(kbctl, {"stripe": stripe_server.url})
        self.stripe = stripe_server
        self.token = kbctl("token", "create", "--scope", "issue").strip()

    def run(self, program: str, job: dict[str, Any], *, token: bool = True) -> dict[str, Any]:
        """Run a program as its own process; its report. A traceback fails the test."""
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + program + END],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=60,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.kbctl.home),
                "PROXY": self.url,
                **({"TOKEN": self.token} if token else {}),
            },
        )
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def bill(self, tenant: str, plan: str = "starter", customers: int = 2) -> dict[str, Any]:
        """The published run over so many customers at $120 each."""
        job = {"tenant": tenant, "plan": plan, "customers": people(tenant, customers)}
        return self.run(BILLING_RUN, job)

    def customer(self) -> str:
        """The id of a customer that the vendor knows."""
        maker = self.issue(daily_usd_cap=1)
        status, made = self.agent(maker).ask("POST", "/v1/customers", "email=a@example.com")
        assert status == 200
        return str(made["id"])


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with (
        pretend_stripe(tmp_path_factory.mktemp("stripe")) as server,
        new_home() as kbctl,
        Platform(kbctl, server) as made,
    ):
        yield made


def people(tenant: str, count: int) -> list[dict[str, Any]]:
    return [
        {"id": number, "amount_cents": 12_000, "stripe_customer_id": f"cus_{tenant}_{number}"}
        for number in range(count)
    ]


def today() -> dict[str, str]:
    """The window of an audit query: this UTC day, and the next in case it is just ending."""
    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return {"from": stamp(start), "to": stamp(start + 2 * DAY)}


def stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


# --- one key per tenant and run -----------------------------------------------------------------------


def test_control_the_shared_real_key_charges_everybody(platform: Platform) -> None:
    """The same customers with the one real key: nothing stops the run at any tier's cap."""
    before = platform.stripe.authorised_cents()
    job = {"secret": SECRET, "base": platform.stripe.url, "customers": people("naive", 10)}
    assert platform.run(NAIVE_RUN, job)["charged"] == 10
    assert platform.stripe.authorised_cents() - before == 120_000 > PLAN_CAPS["starter"] * 100


def test_L1_a_run_charges_up_to_its_plan_s_cap_and_no_other_tenant_s(platform: Platform) -> None:
    """Starter stops at $500 and tells operations; growth charges the same customers all through."""
    before = platform.stripe.authorised_cents()

    stopped = platform.bill("capped", "starter", customers=10)
    going = platform.bill("roomy", "growth", customers=10)
    unknown = platform.bill("odd", "no-such-plan", customers=5)

    assert stopped["charged"] == 4  # 4 x $120 fit into $500
    assert stopped["notified"] == "Tenant capped billing agent hit spend cap: 500 USD"
    assert (going["charged"], "notified" in going) == (10, False)
    assert (unknown["charged"], unknown["key"]["daily_usd_cap"]) == (4, 500)
    assert platform.stripe.authorised_cents() - before == 18 * 12_000
    key = stopped["key"]
    assert key["vault_key"].startswith("vault_key_")
    assert (key["tenant"], key["status"], key["daily_usd_cap"]) == ("capped", "active", 500)
    assert key["metadata"] == {"tenant_id": "capped", "plan_tier": "starter"}
    assert key["agent_run_label"] == "billing-agent/tenant:capped/plan:monthly"
    assert platform.key(key)["spent_usd"] == 480
    # The run's id in front of each customer's: what the vendor saw is what the rows say.
    rows = platform.rows(key=key["key_id"])
    assert [row["idempotency_key"] for row in rows] == [f"{key['key_id']}-{n}" for n in (4, 3, 2, 1, 0)]
    seen = {entry["idempotency_key"] for entry in platform.stripe.entries()}
    assert {f"{key['key_id']}-{n}" in seen for n in range(4)} == {True}
    assert f"{key['key_id']}-4" not in seen


def test_the_cap_s_429_says_midnight_and_not_to_retry(platform: Platform) -> None:
    """Retry-After is the time to 00:00 UTC, and both headers that stop an SDK's own retries are there."""
    key = platform.issue(daily_usd_cap=1, vendor="stripe")
    agent = platform.agent(key)
    assert agent.charge(100) == "allowed"
    form = {
        "Authorization": f"Bearer {key['vault_key']}",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    agent.http.request("POST", "/stripe/v1/payment_intents", "amount=1&currency=usd", form)
    answer = agent.http.getresponse()
    body = json.loads(answer.read())
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + DAY
    assert said((answer.status, body)) == "cap_exhausted"
    assert answer.status == 429
    assert abs(int(answer.headers["Retry-After"]) - (midnight - now).total_seconds()) < 10
    assert answer.headers["Stripe-Should-Retry"] == answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("plan", sorted(PLAN_CAPS))
def test_the_plans_are_policies_too(platform: Platform, plan: str) -> None:
    """The tiers are there by name with the published caps; a key of one has its cap and may be tighter."""
    listed = {each["name"]: each["daily_usd_cap"] for each in platform.done("GET", "/policies")["policies"]}
    assert listed[plan] == PLAN_CAPS[plan]
    terms = {"policy": plan, "tenant": f"of-{plan}", "vendor": "stripe"}
    assert platform.done("POST", "/vault/keys", terms)["daily_usd_cap"] == PLAN_CAPS[plan]
    assert platform.done("POST", "/vault/keys", {**terms, "daily_usd_cap": 120})["daily_usd_cap"] == 120
    wider = {**terms, "daily_usd_cap": PLAN_CAPS[plan] + 1}
    status, answer = platform.operate("POST", "/vault/keys", wider)
    assert (status, answer["error"]["code"]) == (403, "wider_than_policy")
    assert "`daily_usd_cap`" in answer["error"]["message"]


def test_F3_one_tenant_is_looked_up_and_revoked_and_the_others_go_on(platform: Platform) -> None:
    """By metadata.tenant_id and status=active exactly A's key is found; A's next call gets 401."""
    keys = {tenant: platform.bill(tenant)["key"] for tenant in ("ra", "rb", "rc", "rd", "ra2")}
    vault_keys = {tenant: key["vault_key"] for tenant, key in keys.items()}

    report = platform.run(REVOKE_ONE, {"tenant_a": "ra", "keys": vault_keys})

    assert set(report["before"].values()) == {"charged"}
    assert [key["key_id"] for key in report["found"]] == [keys["ra"]["key_id"]]
    assert "vault_key" not in report["found"][0]
    assert report["took_s"] < 1
    assert report["after"] == {**dict.fromkeys(keys, "charged"), "ra": "401 key_revoked"}
    assert report["left"] == []


def test_the_key_that_the_lookup_finds_first_stops_the_tenant_s_agent(platform: Platform) -> None:
    """Law 5 for the published lookup: an agent can't put a child of its key in front of it."""
    key = platform.bill("dodger")["key"]
    platform.child(key)
    agent = platform.agent(key)
    assert agent.charge() == "allowed"

    found = platform.done("GET", "/vault/keys", **{"metadata.tenant_id": "dodger", "status": "active"})[
        "keys"
    ]
    assert len(found) == 2
    platform.done("DELETE", f"/vault/keys/{found[0]['key_id']}")

    assert agent.charge() == "key_revoked"


# --- the audit of one tenant --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audited(platform: Platform) -> Platform:
    """Tenants whose names begin alike, each with charges and a refusal."""
    for tenant in ("a", "a2", "b", "xa"):
        key = platform.bill(tenant, customers=5)["key"]
        nested = platform.child(key, agent_run_label="nested")
        assert platform.agent(nested).charge(1200) == "allowed"
    return platform


def of_tenant(audited: Platform, tenant: str, window: dict[str, str]) -> list[dict[str, Any]]:
    """What the published audit query gives."""
    return list(audited.run(AUDIT_OF_ONE, {"tenant_a": tenant, **window})["rows"])


def test_T1_the_audit_of_a_tenant_has_no_other_tenant_s_rows(audited: Platform) -> None:
    """Every row of A's, of the keys derived from A's too, and none of b's, a2's or xa's."""
    rows = of_tenant(audited, "a", today())

    assert {row["tenant"] for row in rows} == {"a"}
    assert {row["metadata"]["tenant_id"] for row in rows} == {"a"}
    results = [row["policy_check_result"] for row in rows]
    assert results == ["allowed", "cap_exhausted", *["allowed"] * 4]  # newest first; the first is the child's
    assert sum(row["amount_usd"] for row in rows) == 492
    for row in rows:
        assert row["timestamp"].endswith("Z")
        assert row["vault_key_id"].startswith("vk_")
        assert row["endpoint"] == "/v1/payment_intents"
        assert "tenant:a" in row["agent_run_label"].split("/")
        allowed = row["policy_check_result"] == "allowed"
        assert (row["amount_usd"] > 0) is allowed
        assert bool(row["stripe_request_id"]) is allowed
    for other in ("a2", "b", "xa"):
        mine = of_tenant(audited, other, today())
        assert len(mine) == 6
        assert not {row["call_id"] for row in mine} & {row["call_id"] for row in rows}


def test_T1_control_a_filter_on_the_text_would_mix_them(audited: Platform) -> None:
    """The naive filter finds a2's rows under a: the data could tell a wrong answer from a right one."""
    naive = "SELECT DISTINCT tenant FROM calls WHERE agent_run_label LIKE '%tenant:a%'"
    assert {row["tenant"] for row in audited.kbctl.json("sql", naive)} >= {"a", "a2"}


def test_the_audit_s_window_and_vendor_narrow(audited: Platform) -> None:
    """`from` is within, `to` is not; another window and another vendor have no rows."""
    rows = of_tenant(audited, "b", today())
    newest = rows[0]["timestamp"]
    at = {"from": newest, "to": today()["to"]}
    assert of_tenant(audited, "b", at) == rows[:1]
    until_then = {"from": today()["from"], "to": newest}
    assert of_tenant(audited, "b", until_then) == rows[1:]
    june = {"from": "2026-06-01T00:00:00Z", "to": "2026-06-02T00:00:00Z"}
    assert of_tenant(audited, "b", june) == []
    assert of_tenant(audited, "b", {**today(), "vendor": "twilio"}) == []


# --- one key per agent --------------------------------------------------------------------------------

AGENTS: dict[str, dict[str, Any]] = {
    # each role's policy as published, and what the four tools of TWO_AGENTS become with it
    "graph-billing": {
        "policy": {
            "vendor": "stripe",
            "allowed_endpoints": ["POST /v1/charges", "POST /v1/payment_intents"],
            "daily_usd_cap": 5000,
            "expires_in": "8h",
        },
        "may": {"charge_customer", "create_intent"},
        "hours": 8,
    },
    "graph-refunds": {
        "policy": {
            "vendor": "stripe",
            "allowed_endpoints": ["POST /v1/refunds"],
            "daily_usd_cap": 500,
            "expires_in": "4h",
        },
        "may": {"issue_refund"},
        "hours": 4,
    },
    "crew-billing": {
        "policy": {
            "vendor": "stripe",
            "daily_usd_cap": 10000,
            "allowed_endpoints": ["POST /v1/payment_intents", "GET /v1/customers/*"],
            "expires_in": "24h",
        },
        "may": {"create_intent", "look_up_customer"},
        "hours": 24,
    },
    "crew-refunds": {
        "policy": {
            "vendor": "stripe",
            "daily_usd_cap": 2000,
            "allowed_endpoints": ["POST /v1/refunds"],
            "expires_in": "8h",
        },
        "may": {"issue_refund"},
        "hours": 8,
    },
    "chat-billing": {
        "policy": {
            "vendor": "stripe",
            "daily_usd_cap": 5000,
            "allowed_endpoints": ["POST /v1/payment_intents"],
            "expires_in": "24h",
        },
        "may": {"create_intent"},
        "hours": 24,
    },
    "chat-refunds": {
        "policy": {
            "vendor": "stripe",
            "daily_usd_cap": 1000,
            "allowed_endpoints": ["POST /v1/refunds"],
            "expires_in": "8h",
        },
        "may": {"issue_refund"},
        "hours": 8,
    },
}
TOOLS = {"charge_customer", "create_intent", "look_up_customer", "issue_refund"}


def test_each_agent_does_what_its_policy_lists_and_nothing_else(platform: Platform) -> None:
    """The billing agent can't refund, the refund agent can't charge: rejected before the vendor hears."""
    keys = {role: platform.done("POST", "/vault/keys", agent["policy"]) for role, agent in AGENTS.items()}
    vault_keys = {role: key["vault_key"] for role, key in keys.items()}
    job = {"customer": platform.customer(), "keys": {**vault_keys, "setup": platform.issue()["vault_key"]}}
    before = dict(platform.stripe.book()["calls"])

    report = platform.run(TWO_AGENTS, job)

    for role, agent in AGENTS.items():
        refused = dict.fromkeys(TOOLS - agent["may"], "endpoint_not_allowed")
        assert report[role] == dict.fromkeys(agent["may"], "done") | refused, role
        lifetime = moment(keys[role]["expires_at"]) - moment(keys[role]["created_at"])
        assert lifetime == timedelta(hours=agent["hours"]), role
        assert keys[role]["daily_usd_cap"] == agent["policy"]["daily_usd_cap"]
        rows = platform.rows(key=keys[role]["key_id"])
        assert {row["policy_check_result"] for row in rows} == {"allowed", "endpoint_not_allowed"}
        assert sum(row["policy_check_result"] == "allowed" for row in rows) == len(agent["may"])
    after = platform.stripe.book()["calls"]
    heard = {name: count - before.get(name, 0) for name, count in after.items()}
    may = [tool for agent in AGENTS.values() for tool in agent["may"]]
    assert heard["charges.create"] == may.count("charge_customer") + 1  # and what set the stage
    assert heard["refunds.create"] == may.count("issue_refund") + 1


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_one_agent_s_budget_and_end_are_its_own(platform: Platform) -> None:
    """A burst on one key takes nothing of another's requests; revoking one leaves the other at work."""
    billing, refunds = (platform.issue(vendor="stripe", daily_requests=3) for _ in range(2))
    burst = platform.agent(billing)
    assert [burst.charge() for _ in range(4)] == ["allowed"] * 3 + ["request_budget_exhausted"]
    other = platform.agent(refunds)
    assert other.charge() == "allowed"
    platform.done("DELETE", f"/vault/keys/{billing['key_id']}")
    assert other.charge() == "allowed"
    assert platform.agent(billing).charge() == "key_revoked"


def test_a_vault_key_is_worthless_at_the_vendor(platform: Platform) -> None:
    """What leaks with an agent's context opens nothing: the vendor itself answers 401."""
    key = platform.issue()
    job = {"secret": key["vault_key"], "base": platform.stripe.url, "customers": people("leak", 1)}
    with pytest.raises(AssertionError, match="AuthenticationError"):
        platform.run(NAIVE_RUN, job)


def test_a_nested_chat_derives_its_own_key_without_any_token(platform: Platform) -> None:
    """$200 of its parent's cap, one endpoint, thirty minutes; its spend is its parent's too."""
    parent = platform.done("POST", "/vault/keys", {**AGENTS["chat-billing"]["policy"], "tenant": "chat"})

    report = platform.run(SUBAGENT, {"vault_key": parent["vault_key"]}, token=False)

    assert (report["charged"], report["stopped"]) == (3, "cap_exhausted")
    assert report["refund"] == "endpoint_not_allowed"
    child = platform.done("GET", f"/vault/keys/{report['child_key']}")
    assert (child["parent_key_id"], child["tenant"]) == (parent["key_id"], "chat")
    assert moment(child["expires_at"]) - moment(child["created_at"]) == timedelta(minutes=30)
    assert child["metadata"] == {
        "parent_run_id": "run_parent",
        "role": "billing_subagent",
        "tenant_id": "chat",
    }
    assert child["spent_usd"] == platform.key(parent)["spent_usd"] == 180
    (change,) = platform.done("GET", "/changes", subject=child["key_id"])
    assert (change["action"], change["actor"]) == ("key.issue", parent["key_id"])


# --- SQL ----------------------------------------------------------------------------------------------


def test_the_published_queries_run_as_written_live_and_on_a_copy(
    home: Kbctl, stripe_server: PretendStripe, tmp_path: Path
) -> None:
    """What a run was refused, what an agent did, and spend per key: the same by `kbctl sql` and by SQLite."""
    with Platform(home, stripe_server) as platform:
        key = home.json(
            *("issue", "--tenant", "acme", "--cap", "50", "--allow", "POST /v1/payment_intents"),
            *("--meta", "agent_run_id=run_xyz"),
        )
        other = home.json("issue", "--tenant", "acme", "--cap", "50", "--meta", "agent_run_id=run_xy")
        for each in (key, other):
            agent = platform.agent(each)
            assert agent.charge(3000) == "allowed"
            assert agent.charge(3000) == "cap_exhausted"
        refund = platform.agent(key).ask("POST", "/v1/refunds", "charge=ch_1&amount=100")
        assert said(refund) == "endpoint_not_allowed"
        platform.run(CREW_AGENT, {"vault_key": other["vault_key"]}, token=False)

    refused = home.json("sql", REFUSED_OF_A_RUN)
    of_agent = home.json("sql", CALLS_OF_AN_AGENT)
    per_key = home.json("sql", SPEND_PER_KEY)

    assert [list(row) for row in refused] == [["ts", "endpoint", "amount_usd", "policy_check_result"]] * 2
    assert [(row["endpoint"], row["amount_usd"], row["policy_check_result"]) for row in refused] == [
        ("/v1/refunds", 0, "endpoint_not_allowed"),
        ("/v1/payment_intents", 0, "cap_exhausted"),
    ]
    (row,) = of_agent
    assert (row["vault_key_id"], row["amount_usd"]) == (other["key_id"], 20)
    metadata = json.loads(row["metadata"])
    assert metadata == {
        "crew_run_id": "crew_7",
        "agent_id": "billing_agent",
        "agent_run_id": "run_xy",
        "tenant_id": "acme",
    }
    assert stripe_server.entries()[-1]["metadata"]["agent_id"] == "billing_agent"  # forwarded, too
    assert {each["vault_key_id"]: each["usd"] for each in per_key} == {key["key_id"]: 30, other["key_id"]: 50}

    database = Path(home.json("status")["database"])
    home("down")
    copy = tmp_path / "copy.db"
    shutil.copy(database, copy)
    with closing(sqlite3.connect(copy)) as stranger:
        stranger.row_factory = sqlite3.Row
        for query, live in (
            (REFUSED_OF_A_RUN, refused),
            (CALLS_OF_AN_AGENT, of_agent),
            (SPEND_PER_KEY, per_key),
        ):
            assert [dict(found) for found in stranger.execute(query)] == live
