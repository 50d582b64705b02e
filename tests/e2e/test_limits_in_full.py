"""Every limit that a key, a policy or a tenant can have, judged by what the vendor heard."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.scene import CHARGES, PLAIN, Agent, Stage, said, staged
from tests.e2e.support import SECRET


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


# --- policies -----------------------------------------------------------------------------------------


def test_a_policy_file_is_shown_applied_and_pushed_with_a_record(stage: Stage, tmp_path: Path) -> None:
    """--dry-run changes nothing; apply changes new keys; --live the living ones; each is in /changes."""
    stage.kbctl("policy", "set", "tier", "--cap", "50", "--requests", "9")
    key = dict(stage.done("POST", "/vault/keys", {"policy": "tier", "vendor": "stripe"}))
    assert (key["daily_usd_cap"], key["daily_requests"], key["policy"]) == (50, 9, "tier")
    file = tmp_path / "tiers.toml"
    file.write_text(
        '[[policies]]\nname = "tier"\ndaily_usd_cap = 20\ndenied_endpoints = ["refunds.create"]\n'
    )
    recorded = len(stage.changes("tier"))

    (shown,) = stage.kbctl.json("policy", "apply", str(file), "--dry-run")["changes"]
    assert (shown["name"], shown["action"], shown["live_keys"]) == ("tier", "change", 1)
    assert shown["fields"] == {
        "daily_usd_cap": [50, 20],
        "daily_requests": [9, None],
        "denied_endpoints": [None, ["refunds.create"]],
    }
    assert stage.done("GET", "/policies/tier")["daily_usd_cap"] == 50
    assert len(stage.changes("tier")) == recorded

    applied = stage.kbctl.json("policy", "apply", str(file))
    assert (applied["applied"], applied["keys_changed"]) == (True, [])
    assert stage.key(key)["daily_usd_cap"] == 50  # live keys keep what they were issued with
    assert stage.done("POST", "/vault/keys", {"policy": "tier"})["daily_usd_cap"] == 20
    (newest, *_) = stage.changes("tier")
    assert newest["action"] == "policy.set"
    assert newest["actor"].startswith("uid ")
    assert newest["details"]["limits"]["daily_usd_cap"] == 20

    agent = stage.agent(key)
    assert agent.charge(1500) == "allowed"
    pushed = stage.kbctl.json("policy", "apply", str(file), "--live")
    assert key["key_id"] in pushed["keys_changed"]
    assert agent.charge(501) == "cap_exhausted"
    assert said(agent.ask("POST", "/stripe/v1/refunds", "charge=ch_1&amount=1")) == "endpoint_not_allowed"
    assert stage.key(key)["daily_requests"] is None
    (newest, *_) = stage.changes(key["key_id"])
    assert (newest["action"], newest["details"]) == ("key.limits", {"policy": "tier"})


def test_a_policy_file_is_taken_whole_or_not_at_all(stage: Stage, tmp_path: Path) -> None:
    """Exit 2 that names policy and field; the good one beside it is not set either."""
    file = tmp_path / "bad.json"
    good, bad = {"name": "good", "daily_usd_cap": 1}, {"name": "bad", "daily_usd_cap": 5, "colour": 1}
    for wrong in (bad, {**bad, "colour": None}, {"name": "bad", "daily_usd_cap": 0}, {"name": "bad"}):
        file.write_text(json.dumps({"policies": [good, wrong]}))
        assert "bad" in stage.error("policy", "apply", str(file), status=2)
    assert stage.operate("GET", "/policies/good")[0] == 404


def test_a_list_of_policies_is_what_apply_takes(stage: Stage, tmp_path: Path) -> None:
    """`policy list --json` into `policy apply`: nothing differs."""
    stage.kbctl("policy", "set", "whole", "--cap", "0.5", "--rate", "5/s", "--loop", "3/1m", "--stamp")
    file = tmp_path / "all.json"
    file.write_text(stage.kbctl("policy", "list", "--json"))
    applied = stage.kbctl.json("policy", "apply", str(file))
    assert {change["action"] for change in applied["changes"]} == {"none"}


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--cap", "11"], "daily_usd_cap"),
        (["--cap", "none"], "daily_usd_cap"),
        (["--total-cap", "101"], "total_usd_cap"),
        (["--call-cap", "5.01"], "call_usd_cap"),
        (["--allow", "POST /v1/refunds"], "allowed_endpoints"),
        (["--vendor", "mail"], "vendors"),
        (["--requests", "21"], "daily_requests"),
        (["--rate", "6/s"], "rate"),
        (["--loop", "4/1m"], "loop"),
        (["--ttl", "3h"], "expires_in"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_flag_may_only_tighten_a_policy_unless_overridden(
    stage: Stage, flags: list[str], field: str
) -> None:
    """Exit 3 that names the field and the way out, and no key; with --override it is issued so."""
    strict = {
        "name": "strict",
        "daily_usd_cap": 10,
        "total_usd_cap": 100,
        "call_usd_cap": 5,
        "rate": "5/s",
        "allowed_endpoints": ["POST /v1/payment_intents"],
        "vendors": ["stripe"],
        "daily_requests": 20,
        "loop": "3/1m",
        "expires_in": "2h",
    }
    stage.done("PUT", "/policies/strict", strict)
    before = len(stage.done("GET", "/vault/keys")["keys"])
    text = stage.error("issue", "--policy", "strict", *flags, status=3)
    assert f"`{field}`" in text
    assert "--override" in text
    assert len(stage.done("GET", "/vault/keys")["keys"]) == before
    issued = stage.kbctl.json("issue", "--policy", "strict", "--override", *flags)
    assert issued["policy"] == "strict"
    others = {"daily_usd_cap": 10, "call_usd_cap": 5, "rate": "5/s"}
    assert {name: issued[name] for name in others if name != field}.items() <= others.items()


def test_a_live_push_respects_what_a_key_said_itself(stage: Stage) -> None:
    """A tighter word of its own stays; one that became wider gives way; an override stays as it is."""
    base = {"name": "pushed", "daily_usd_cap": 100}
    stage.done("PUT", "/policies/pushed", base)
    plain, tight, wide = (
        dict(stage.done("POST", "/vault/keys", {"policy": "pushed", **said_too}))
        for said_too in ({}, {"daily_usd_cap": 30}, {"daily_usd_cap": 500, "override": True})
    )
    for cap, wanted in ((50, [50, 30, 500]), (20, [20, 20, 500]), (100, [100, 30, 500])):
        stage.done("PUT", "/policies", {"policies": [{**base, "daily_usd_cap": cap}], "live": True})
        assert [stage.key(key)["daily_usd_cap"] for key in (plain, tight, wide)] == wanted


def test_a_policy_may_name_vendors_that_a_key_of_it_does_not_reach(stage: Stage) -> None:
    """Two vendors' operations in one tier: at issue, beside a tighter flag, pushed live, after kill -9."""
    two = ["payment_intents.create", "mails.send"]
    rules = ["mails.send: price <= 5", "payment_intents.create: amount <= 500"]
    base = {"name": "two", "daily_usd_cap": 100}
    both = {**base, "allowed_endpoints": two, "param_rules": rules}
    stage.done("PUT", "/policies/two", base)
    old = dict(stage.done("POST", "/vault/keys", {"policy": "two", "vendor": "stripe"}))
    assert said(stage.agent(old).ask("POST", "/stripe/v1/customers", "name=a")) == "allowed"

    pushed = stage.done("PUT", "/policies", {"policies": [both], "live": True})

    assert old["key_id"] in pushed["keys_changed"]
    terms = {"policy": "two", "vendor": "stripe"}
    new = dict(stage.done("POST", "/vault/keys", terms))
    tighter = dict(stage.done("POST", "/vault/keys", {**terms, "allowed_endpoints": two[:1]}))
    wider = {**terms, "allowed_endpoints": ["refunds.create"]}
    assert stage.operate("POST", "/vault/keys", wider)[0] == 403
    for kill in (False, True):
        if kill:
            stage.close()
            stage.kbctl.kill()
            stage.up()
        for key in (old, new, tighter):
            agent = stage.agent(key)
            assert stage.key(key)["status"] == "active"
            assert [agent.charge(500), agent.charge(501)] == ["allowed", "param_not_allowed"]
            assert said(agent.ask("POST", "/stripe/v1/customers", "name=a")) == "endpoint_not_allowed"
            assert said(agent.ask("POST", "/mail/v1/mails", "price=1&currency=usd")) == "vendor_not_allowed"


# --- caps ---------------------------------------------------------------------------------------------


def test_control_without_a_tenant_s_cap_all_of_the_storm_fits(stage: Stage) -> None:
    """The four keys of the next test, without what they share: nothing stops one of the 100 calls."""
    keys = [stage.issue(daily_usd_cap=100, tenant="free") for _ in range(4)]
    assert stage.storm(keys * 25).count("allowed") == 100


def test_L1_a_tenant_s_cap_over_several_keys_lets_exactly_fit_what_fits(stage: Stage) -> None:
    """$3 charges by four keys, 100 at once, under $100 together: 33, and the cent that is left for later."""
    stage.kbctl("tenant", "set", "shared", "--cap", "100")
    keys = [stage.issue(daily_usd_cap=100, tenant="shared") for _ in range(4)]
    other = stage.issue(tenant="unshared")
    before = len(stage.stripe.arrived)

    became = stage.storm(keys * 25, cents=300)

    assert became.count("allowed") == 33
    assert became.count("cap_exhausted") == 67
    assert len(stage.stripe.arrived) - before == 33
    tenant = stage.done("GET", "/tenants/shared")
    assert (tenant["spent_usd"], tenant["held_usd"], tenant["keys_active"]) == (99, 0, 4)
    assert sum(stage.key(key)["spent_usd"] for key in keys) == 99
    assert "tenant shared" in stage.rows(tenant="shared", denied="true")[0]["reason"]
    agents = [stage.agent(key) for key in keys]
    assert agents[0].charge(101) == "cap_exhausted"
    assert agents[1].charge(100) == "allowed"
    assert agents[2].charge(1) == "cap_exhausted"
    assert stage.agent(other).charge(300) == "allowed"
    stage.kbctl("tenant", "set", "shared", "--cap", "101")
    assert agents[3].charge(100) == "allowed"


@pytest.mark.parametrize(
    ("terms", "code", "status"),
    [
        ({"daily_usd_cap": 5}, "cap_exhausted", 429),
        ({"daily_usd_cap": None, "total_usd_cap": 5}, "total_cap_exhausted", 429),
        ({"daily_usd_cap": 5, "total_usd_cap": 100}, "cap_exhausted", 429),
    ],
)
def test_a_cap_lets_its_last_cent_go_and_not_one_more(
    stage: Stage, terms: dict[str, Any], code: str, status: int
) -> None:
    """At n and at n + 1; the refusal costs nothing; after kill -9 the cap is as used as before."""
    key = stage.issue(**terms)
    agent = stage.agent(key)
    assert [agent.charge(499), agent.charge(2)] == ["allowed", code]
    answer = agent.ask("POST", CHARGES, PLAIN)
    assert (answer[0], said(answer)) == (status, code)
    assert agent.charge(1) == "allowed"
    stage.close()
    stage.kbctl.kill()
    stage.up()
    assert stage.agent(key).charge(1) == code
    shown = stage.key(key)
    # Killed before the last one's end was on disk, it is held: it may have been done.
    assert shown["total_spent_usd"] + shown["total_held_usd"] == 5


def test_a_call_cap_is_about_one_call(stage: Stage) -> None:
    """403 beyond it, however much of the day's cap is left; at it, again and again; a tenant's too."""
    agent = stage.agent(stage.issue(call_usd_cap=2))
    assert [agent.charge(cents) for cents in (200, 201, 200)] == ["allowed", "call_cap_exceeded", "allowed"]
    assert agent.ask("POST", CHARGES, "amount=201&currency=usd")[0] == 403
    stage.kbctl("tenant", "set", "small", "--call-cap", "1")
    agent = stage.agent(stage.issue(tenant="small", call_usd_cap=2))
    assert [agent.charge(cents) for cents in (100, 101)] == ["allowed", "call_cap_exceeded"]


def test_L1_two_vendors_share_one_cap(stage: Stage) -> None:
    """A key over Stripe and a vendor of the user's own: what one spends is gone for the other."""
    key = stage.issue(daily_usd_cap=10)
    assert key["vendors"] == ["mail", "stripe"]
    agent = stage.agent(key)

    def mail(price: int) -> str:
        return said(agent.ask("POST", "/mail/v1/mails", f"price={price}&currency=usd&metadata[kind]=offer"))

    assert [agent.charge(600), mail(300)] == ["allowed"] * 2
    assert [mail(101), agent.charge(101)] == ["cap_exhausted"] * 2
    assert [mail(100), agent.charge(1)] == ["allowed", "cap_exhausted"]
    assert stage.key(key)["spent_usd"] == 10
    heard = stage.mail.arrived[-1]
    assert heard.line == "POST /v1/mails HTTP/1.1"
    assert heard.headers["authorization"] == f"Bearer {SECRET}"
    rows = stage.rows(key=key["key_id"], vendor="mail")
    assert {(row["vendor"], row["operation"]) for row in rows} == {("mail", "mails.send")}
    assert rows[0]["metadata"]["kind"] == "offer"
    # The path without a vendor fits both: refused, not guessed. One vendor's key needs no prefix.
    assert said(agent.ask("POST", "/v1/mails", "price=1&currency=usd")) == "ambiguous_request"
    only = stage.agent(stage.issue(vendor="mail"))
    assert said(only.ask("POST", "/v1/mails", "price=1&currency=usd")) == "allowed"
    assert only.charge() == "vendor_not_allowed"


# --- parameters ---------------------------------------------------------------------------------------

CAPTURE = "/stripe/v1/payment_intents/pi_{}/capture"
RULED: list[tuple[str, str, str, str, str]] = [
    # rule, method and path, query, body, what becomes of it
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", PLAIN, "allowed"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", "amount=1&currency=usd&customer=cus_2", "allowed"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", "amount=1&currency=usd&customer=cus_3", "not"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", "amount=1&currency=usd&customer=cus_1,cus_2", "not"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", "amount=1&currency=usd&customer=cus_1%20", "not"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", "amount=1&currency=usd&customer=CUS_1", "not"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", "amount=1&currency=usd&customer=", "not"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", "amount=1&currency=usd", "not"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", PLAIN + "&customer=cus_3", "twice"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", PLAIN + "&customer=cus_1", "twice"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", PLAIN + "&customer[]=cus_3", "twice"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", PLAIN + "&customer[0]=cus_3", "twice"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", PLAIN + "&customer%5Bid%5D=cus_3", "twice"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", PLAIN + "&Customer=cus_3", "twice"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", PLAIN + "&+customer=cus_3", "twice"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", "amount=1&currency=usd&customer[]=cus_1", "twice"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "", PLAIN + ";customer=cus_3", "any"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "customer=cus_3", PLAIN, "any"),
    ("customer in cus_1,cus_2", f"POST {CHARGES}", "customer=cus_1", "amount=1&currency=usd", "allowed"),
    ("currency == usd", f"POST {CHARGES}", "", PLAIN, "allowed"),
    ("currency == usd", f"POST {CHARGES}", "", "amount=1&currency=USD", "allowed"),
    ("currency == usd", f"POST {CHARGES}", "", "amount=1&currency=eur", "not"),
    ("currency == usd", f"POST {CHARGES}", "", "amount=1&currency=usd&currency=eur", "any"),
    ("payment_intents.create: amount <= 500", f"POST {CHARGES}", "", "amount=500&currency=usd", "allowed"),
    ("payment_intents.create: amount <= 500", f"POST {CHARGES}", "", "amount=501&currency=usd", "not"),
    ("payment_intents.create: amount <= 500", f"POST {CHARGES}", "", "amount=1e2&currency=usd", "any"),
    ("payment_intents.create: amount <= 500", f"POST {CHARGES}", "", "amount=-1&currency=usd", "any"),
    ("payment_intents.create: amount <= 500", f"POST {CHARGES}", "", "currency=usd", "any"),
    ("payment_intents.create: amount <= 500", "POST /stripe/v1/customers", "", "name=a", "allowed"),
    ("metadata.tier == gold", f"POST {CHARGES}", "", PLAIN + "&metadata[tier]=gold", "allowed"),
    ("metadata.tier == gold", f"POST {CHARGES}", "", PLAIN + "&metadata%5Btier%5D=gold", "allowed"),
    ("metadata.tier == gold", f"POST {CHARGES}", "", PLAIN + "&metadata[tier]=lead", "not"),
    ("metadata.tier == gold", f"POST {CHARGES}", "", PLAIN, "not"),
    ("metadata.tier == gold", f"POST {CHARGES}", "", PLAIN + "&metadata.tier=gold", "twice"),
    ("metadata.tier == gold", f"POST {CHARGES}", "", PLAIN + "&metadata[tier][]=gold", "twice"),
    ("metadata.tier == gold", f"POST {CHARGES}", "", PLAIN + "&metadata[tier]=gold&metadata=", "twice"),
    (
        "metadata.tier == gold",
        f"POST {CHARGES}",
        "",
        PLAIN + "&metadata[tier]=gold&metadata[tier]=x",
        "twice",
    ),
    ("metadata.tier == gold", f"POST {CHARGES}", "", PLAIN + "&metadata[tier]=gold&metadata[tier=x", "twice"),
    (
        "payment_intents.capture: intent in pi_1",
        f"POST {CAPTURE.format(1)}",
        "",
        "amount_to_capture=1",
        "priced",
    ),
    (
        "payment_intents.capture: intent in pi_1",
        f"POST {CAPTURE.format(2)}",
        "",
        "amount_to_capture=1",
        "not",
    ),
    (
        "payment_intents.capture: intent in pi_1",
        f"POST {CAPTURE.format(2)}",
        "",
        "amount_to_capture=1&intent=pi_1",
        "twice",
    ),
    ("GET /v1/customers: limit <= 10", "GET /stripe/v1/customers", "limit=10", "", "allowed"),
    ("GET /v1/customers: limit <= 10", "GET /stripe/v1/customers", "limit=11", "", "not"),
    ("GET /v1/customers: limit <= 10", "GET /stripe/v1/customers", "", "", "not"),
    ("GET /v1/customers: limit <= 10", "GET /stripe/v1/customers", "limit=10&limit=99", "", "twice"),
    ("GET /v1/customers: limit <= 10", "GET /stripe/v1/customers", "limit[]=10", "", "twice"),
]
BECOMES = {
    "allowed": {"allowed"},
    "priced": {"amount_unknown", "allowed"},  # the rule lets it through; what is asked next is its price
    "not": {"param_not_allowed"},
    "twice": {"ambiguous_request"},
    "any": {"param_not_allowed", "ambiguous_request", "amount_unknown", "malformed_request"},
}


@pytest.mark.parametrize(("rule", "call", "query", "body", "becomes"), RULED)
def test_P9_a_parameter_rule_holds_on_every_reading(
    stage: Stage, rule: str, call: str, query: str, body: str, becomes: str
) -> None:
    """Refused before the vendor hears of it, or passed on to the byte; the row says which rule."""
    key = stage.issue(vendor="stripe", param_rules=[rule])
    before = len(stage.stripe.arrived)
    method, _, path = call.partition(" ")

    result = said(stage.agent(key).ask(method, f"{path}?{query}" if query else path, body))

    assert result in BECOMES[becomes]
    # What kbctl itself asks, of an object that it does not know, is no call of the agent's.
    heard = [each for each in stage.stripe.arrived[before:] if each.headers.get("user-agent") != "kbctl"]
    assert len(heard) == (result == "allowed")
    if heard:
        assert heard[0].body == body.encode()
    (row,) = (row for row in stage.rows(key=key["key_id"]) if row["method"] == method)
    assert row["policy_check_result"] == result
    if result == "param_not_allowed":
        assert rule in row["reason"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", '{"amount": 100, "currency": "usd", "customer": "cus_1"}'),
        ("application/json", PLAIN),
        ("text/plain", PLAIN),
        ("multipart/form-data; boundary=x", PLAIN),
        ("application/x-www-form-urlencoded; charset=utf-16", PLAIN),
    ],
)
def test_P9_a_body_that_rules_can_not_read_is_refused(stage: Stage, kind: str, body: str) -> None:
    """415, for a money call and for one that is free; without rules the free one passes."""
    before = len(stage.stripe.arrived)
    ruled = stage.agent(stage.issue(vendor="stripe", param_rules=["customer in cus_1"]))
    for path in (CHARGES, "/stripe/v1/customers/cus_1"):
        status, answer = ruled.ask("POST", path, body, kind=kind)
        assert (status, answer["error"]["code"]) == (415, "unsupported_body")
    assert len(stage.stripe.arrived) == before


@pytest.mark.parametrize("header", ["Stripe-Account", "Stripe-Context"])
def test_another_account_is_refused_unless_a_rule_lists_it(stage: Stage, header: str) -> None:
    """Listed, it is forwarded as it came; any other, one beside it, or none listed at all: refused."""
    name = header.lower()
    listed = stage.issue(vendor="stripe", param_rules=[f"{name} in acct_1,acct_2"])
    bare = stage.agent(stage.issue(vendor="stripe"))
    agent = stage.agent(listed)

    def ask(agent: Agent, account: str) -> str:
        return said(agent.ask("POST", CHARGES, PLAIN, **{header: account}))

    before = len(stage.stripe.arrived)
    assert ask(bare, "acct_1") == "account_not_allowed"
    assert [ask(agent, account) for account in ("acct_3", "", "ACCT_1")] == ["account_not_allowed"] * 3
    assert len(stage.stripe.arrived) == before
    assert [ask(agent, account) for account in ("acct_1", "acct_2")] == ["allowed"] * 2
    assert [heard.headers[name] for heard in stage.stripe.arrived[before:]] == ["acct_1", "acct_2"]
    assert said(agent.ask("POST", CHARGES, PLAIN)) == "param_not_allowed"  # a rule asks for its field
    assert said(bare.ask("POST", CHARGES, PLAIN)) == "allowed"
    assert name not in stage.stripe.arrived[-1].headers


# --- stamps, labels, metadata -------------------------------------------------------------------------

STAMPED = [
    (CHARGES, PLAIN),
    ("/stripe/v1/charges", "amount=1&currency=usd&source=tok_visa"),
    ("/stripe/v1/refunds", "charge=ch_1&amount=1"),
    ("/stripe/v1/transfers", "amount=1&currency=usd&destination=acct_1"),
    ("/stripe/v1/payouts", "amount=1&currency=usd"),
]


@pytest.mark.parametrize(("path", "body"), STAMPED, ids=lambda value: value[:24])
def test_a_stamp_arrives_at_the_vendor(stage: Stage, path: str, body: str) -> None:
    """Key id and run id in the vendor's own metadata, behind the agent's fields, which stay as they were."""
    key = stage.issue(vendor="stripe", stamp=True, metadata={"agent_run_id": "run_1", "plan": "pro"})
    bare = stage.issue(vendor="stripe")
    said_too = body + "&metadata[agent_id]=billing"
    assert said(stage.agent(key).ask("POST", path, said_too)) == "allowed"
    heard = stage.stripe.arrived[-1]
    assert heard.body.startswith(said_too.encode() + b"&")
    marks = {name: value for name, value in heard.form.items() if name.startswith("metadata")}
    assert marks == {
        "metadata[agent_id]": "billing",
        "metadata[kbctl_key_id]": key["key_id"],
        "metadata[agent_run_id]": "run_1",
    }
    assert int(heard.headers["content-length"]) == len(heard.body)
    assert said(stage.agent(bare).ask("POST", path, body)) == "allowed"
    assert stage.stripe.arrived[-1].body == body.encode()


@pytest.mark.parametrize(
    ("query", "more"),
    [
        ("", "metadata[kbctl_key_id]=vk_forged"),
        ("", "metadata%5Bkbctl_key_id%5D=vk_forged"),
        ("", "metadata[kbctl_key_id][]=vk_forged"),
        ("", "metadata[kbctl_key_id"),
        ("", "metadata[ kbctl_key_id]=vk_forged"),
        ("", "Metadata[kbctl_key_id]=vk_forged"),
        ("", "metadata.kbctl_key_id=vk_forged"),
        ("", "metadata="),
        ("", "metadata[]=vk_forged"),
        ("", "metadata[agent_run_id]=run_forged"),
        ("metadata[kbctl_key_id]=vk_forged", ""),
        ("metadata[agent_run_id]=run_forged", ""),
        ("metadata=", ""),
    ],
)
def test_an_agent_can_not_forge_a_stamp(stage: Stage, query: str, more: str) -> None:
    """Law 11: whatever could be read as the stamp is refused, in the body and in the query."""
    key = stage.issue(vendor="stripe", stamp=True, metadata={"agent_run_id": "run_1"})
    before = len(stage.stripe.arrived)
    path = f"{CHARGES}?{quote(query, safe='=')}" if query else CHARGES
    assert (
        said(stage.agent(key).ask("POST", path, f"{PLAIN}&{more}" if more else PLAIN)) == "ambiguous_request"
    )
    assert len(stage.stripe.arrived) == before


def test_a_stamped_retry_is_still_a_retry(stage: Stage) -> None:
    """Law 12: the same request with the same idempotency key, stamped twice alike: one spend."""
    key = stage.issue(vendor="stripe", stamp=True, metadata={"agent_run_id": "run_1"})
    agent = stage.agent(key)
    for _ in range(2):
        assert said(agent.ask("POST", CHARGES, PLAIN, **{"Idempotency-Key": "once"})) == "allowed"
    first, second = stage.stripe.arrived[-2:]
    assert first.body == second.body
    assert stage.key(key)["spent_usd"] == 1


def test_rows_carry_label_and_metadata_which_an_agent_adds_to_and_can_not_forge(stage: Stage) -> None:
    """Label, tenant and metadata of the key in every row, refused ones too; the agent's own beside them."""
    key = stage.kbctl.json(
        *(
            "issue",
            "--tenant",
            "rows",
            "--cap",
            "10",
            "--label",
            "nightly/run:7",
            "--meta",
            "agent_run_id=run_7",
        ),
        *("--meta", "agent_id=billing", "--vendor", "stripe"),
    )
    agent = stage.agent(key)
    forged = {"metadata[agent_run_id]": "run_8", "metadata[tenant_id]": "globex", "metadata[order]": "o_1"}
    assert agent.charge(100, **forged) == "allowed"
    assert agent.charge(5000, **forged) == "cap_exhausted"
    assert said(agent.ask("POST", "/stripe/v1/account_links", "account=acct_1")) == "endpoint_not_allowed"
    rows = stage.rows(key=key["key_id"])
    own = {"agent_run_id": "run_7", "agent_id": "billing", "tenant_id": "rows"}
    assert [row["metadata"] for row in rows] == [own, {**own, "order": "o_1"}, {**own, "order": "o_1"}]
    assert {row["agent_run_label"] for row in rows} == {"nightly/run:7/tenant:rows"}
    assert {row["tenant"] for row in rows} == {"rows"}
    for label in ("nightly", "run:7", "tenant:rows", "tenant:rows/nightly"):
        assert stage.rows(label_contains=label) == rows, label
    for part in ("night", "run:", "7", "tenant:row", "tenant:rows2", "nightly/run:8"):
        assert stage.rows(label_contains=part) == [], part
    told = {line["run"]: line["spent_usd"] for line in stage.done("GET", "/spend", by="run")}
    assert told["run_7"] == 1
    assert "run_8" not in told
