"""Law 9: a child is less than its parent, in each single field, at every moment, on every connection."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import msgspec
import pytest

from kbctl import wire
from tests.e2e.scene import CHARGES, Agent, RecordingVendor, Scene, said, until
from tests.e2e.support import SECRET, Kbctl, new_home

PARENT: dict[str, Any] = {
    "vendor": "stripe",
    "tenant": "acme",
    "agent_run_label": "run/tenant:acme",
    "daily_usd_cap": 100,
    "total_usd_cap": 1000,
    "call_usd_cap": 50,
    "allowed_endpoints": ["POST /v1/payment_intents", "GET /v1/customers/*", "payment_intents.capture"],
    "denied_endpoints": ["GET /v1/customers/cus_secret"],
    "param_rules": ["payment_intents.create: currency == usd"],
    "daily_requests": 100,
    "rate": "50/s",
    "loop": "20/1m",
    "on_loop": "pause",
    "expires_in": "1h",
    "stamp": True,
    "metadata": {"agent_run_id": "run_1"},
}

WIDER: list[tuple[str, dict[str, Any]]] = [
    # the field that must be named, and the child's own terms
    ("daily_usd_cap", {"daily_usd_cap": 100.01}),
    ("daily_usd_cap", {"daily_usd_cap": None}),
    ("total_usd_cap", {"total_usd_cap": 1000.01}),
    ("total_usd_cap", {"total_usd_cap": None}),
    ("call_usd_cap", {"call_usd_cap": 50.01}),
    ("call_usd_cap", {"call_usd_cap": None}),
    ("allowed_endpoints", {"allowed_endpoints": ["POST /v1/refunds"]}),
    ("allowed_endpoints", {"allowed_endpoints": ["POST /v1/payment_intents", "refunds.create"]}),
    ("allowed_endpoints", {"allowed_endpoints": ["POST /v1/*"]}),
    ("allowed_endpoints", {"allowed_endpoints": ["GET /v1/*"]}),
    ("allowed_endpoints", {"allowed_endpoints": ["GET /v1/customers"]}),
    ("allowed_endpoints", {"allowed_endpoints": ["POST /v1/payment_intents/*/capture", "POST /v1/payouts"]}),
    ("vendors", {"vendor": "mail"}),
    ("vendors", {"vendors": ["mail", "stripe"]}),
    ("daily_requests", {"daily_requests": 101}),
    ("daily_requests", {"daily_requests": None}),
    ("rate", {"rate": "51/s"}),
    ("rate", {"rate": "3000/m"}),  # no faster, but a larger burst
    ("rate", {"rate": None}),
    ("loop", {"loop": "21/1m", "on_loop": "pause"}),
    ("loop", {"loop": "20/30s", "on_loop": "pause"}),
    ("loop", {"loop": "20/1m", "on_loop": "deny"}),
    ("loop", {"loop": None}),
    ("expires_in", {"expires_in": "2h"}),
    ("expires_in", {"expires_in": "never"}),
    ("tenant", {"tenant": "globex"}),
    ("agent_run_label", {"agent_run_label": "tenant:globex"}),
    ("agent_run_label", {"agent_run_label": "x/tenant:globex/y"}),
    ("stamp", {"stamp": False}),
]
ONLY_OPERATORS: list[tuple[str, dict[str, Any]]] = [
    ("credential", {"credential": "stripe:acme"}),
    ("credential", {"credential": "mail"}),
    ("policy", {"policy": "starter"}),
    ("override", {"override": True}),
    ("override", {"override": False}),
]
TIGHTER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # the child's own terms, and what it then shows
    ({}, {}),
    ({"daily_usd_cap": 100}, {}),
    ({"daily_usd_cap": 99.99}, {"daily_usd_cap": 99.99}),
    ({"total_usd_cap": 1}, {"total_usd_cap": 1}),
    ({"call_usd_cap": 49.99}, {"call_usd_cap": 49.99}),
    ({"allowed_endpoints": []}, {"allowed_endpoints": []}),
    ({"allowed_endpoints": ["payment_intents.create"]}, {"allowed_endpoints": ["payment_intents.create"]}),
    (
        {"allowed_endpoints": ["GET /v1/customers/*/cards"]},
        {"allowed_endpoints": ["GET /v1/customers/*/cards"]},
    ),
    ({"vendors": ["stripe"]}, {}),
    (
        {"denied_endpoints": ["POST /v1/payment_intents"]},
        {"denied_endpoints": ["GET /v1/customers/cus_secret", "POST /v1/payment_intents"]},
    ),
    (
        {"param_rules": ["amount <= 100"]},
        {"param_rules": ["payment_intents.create: currency == usd", "amount <= 100"]},
    ),
    ({"daily_requests": 100}, {}),
    ({"daily_requests": 1}, {"daily_requests": 1}),
    ({"rate": "1/m"}, {"rate": "1/m"}),
    ({"loop": "19/2m", "on_loop": "pause"}, {"loop": "19/2m"}),
    ({"expires_in": "59m"}, {}),
    ({"tenant": "acme"}, {}),
    ({"agent_run_label": "tenant:acme/nested"}, {"agent_run_label": "run/tenant:acme/nested"}),
    ({"stamp": True}, {}),
    (
        {"metadata": {"role": "sub"}},
        {"metadata": {"role": "sub", "agent_run_id": "run_1", "tenant_id": "acme"}},
    ),
    # What the parent is known by stays: a child adds to it and can't forge it.
    (
        {"metadata": {"tenant_id": "globex", "agent_run_id": "run_2"}},
        {"metadata": {"agent_run_id": "run_1", "tenant_id": "acme"}},
    ),
]


class Family(Scene):
    """A daemon before vendors that remember all they are sent."""

    def __init__(self, kbctl: Kbctl) -> None:
        self.stripe, self.mail = RecordingVendor(), RecordingVendor()
        super().__init__(kbctl, {"stripe": self.stripe.url, "mail": self.mail.url})
        kbctl("credential", "set", "stripe:acme", stdin=SECRET + "x\n")

    def count(self) -> int:
        return len(self.done("GET", "/vault/keys")["keys"])


@pytest.fixture(scope="module")
def family() -> Iterator[Family]:
    with new_home() as kbctl, Family(kbctl) as made:
        yield made
        made.stripe.close()
        made.mail.close()


# --- issuing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asker", ["agent", "operator"])
@pytest.mark.parametrize(("field", "terms"), WIDER, ids=lambda value: json.dumps(value)[:60])
def test_a_child_wider_in_a_single_field_is_refused_by_its_name(
    family: Family, field: str, terms: dict[str, Any], asker: str
) -> None:
    """403 that names the field, whoever asks; no key, and nothing in the list of changes."""
    parent = family.issue(**PARENT)
    before = family.count(), family.done("GET", "/changes")
    if asker == "agent":
        status, answer = family.derive(parent, **terms)
    else:
        asked = {"parent_vault_key": parent["key_id"], **terms}
        status, answer = family.operate("POST", "/vault/keys", asked)

    assert (status, answer["error"]["code"]) == (403, "wider_than_parent"), answer
    assert f"`{field}`" in answer["error"]["message"]
    assert "vault_key_" not in json.dumps(answer)
    assert (family.count(), family.done("GET", "/changes")) == before


@pytest.mark.parametrize(("field", "terms"), ONLY_OPERATORS, ids=lambda value: json.dumps(value)[:60])
def test_an_agent_asks_for_no_credential_policy_or_override(
    family: Family, field: str, terms: dict[str, Any]
) -> None:
    """Law 11: those are the operator's to choose, even where they would change nothing."""
    parent = family.issue(**PARENT)
    before = family.count()
    status, answer = family.derive(parent, **terms)
    assert (status, answer["error"]["code"]) == (403, "wider_than_parent")
    assert f"`{field}`" in answer["error"]["message"]
    assert family.count() == before


@pytest.mark.parametrize(("terms", "shown"), TIGHTER, ids=lambda value: json.dumps(value)[:60])
def test_a_child_within_its_parent_is_issued(
    family: Family, terms: dict[str, Any], shown: dict[str, Any]
) -> None:
    """What it does not say is its parent's; what it says is its own, or added to its parent's."""
    parent = family.issue(**PARENT)
    child = family.child(parent, **terms)
    inherited = {
        name: child[name]
        for name in (*PARENT.keys() - {"vendor", "expires_in", "agent_run_label", "metadata"}, "vendors")
    }
    wanted = {name: parent[name] for name in inherited}
    assert inherited == wanted | {name: shown[name] for name in shown.keys() & wanted.keys()}
    for name in ("agent_run_label", "metadata"):
        assert child[name] == shown.get(name, parent[name])
    assert child["parent_key_id"] == parent["key_id"]
    assert moment(child["expires_at"]) <= moment(parent["expires_at"])


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_parent_of_no_tenant_lends_nobody_s_name(family: Family) -> None:
    """Law 8: its child can't take a tenant's name by field, by label or by the metadata that lookups use."""
    parent = family.issue()
    for field, terms in (
        ("tenant", {"tenant": "globex"}),
        ("agent_run_label", {"agent_run_label": "tenant:globex"}),
        ("metadata", {"metadata": {"tenant_id": "globex"}}),
    ):
        status, answer = family.derive(parent, **terms)
        assert (status, answer["error"]["code"]) == (403, "wider_than_parent"), terms
        assert f"`{field}" in answer["error"]["message"]
    assert family.done("GET", "/vault/keys", **{"metadata.tenant_id": "globex"})["keys"] == []


def test_an_agent_learns_nothing_of_vendors_beyond_its_key(family: Family) -> None:
    """A vendor without a credential, one with, and one that is none: the same answer."""
    parent = family.issue(vendor="stripe")
    answers = [family.derive(parent, vendor=name) for name in ("mail", "no-such-vendor")]
    assert [(status, answer["error"]["code"]) for status, answer in answers] == [
        (403, "wider_than_parent")
    ] * 2


def test_only_the_key_itself_is_the_authority(family: Family) -> None:
    """Not its id, not another key beside it, not one that has ended: 400 or 401, and no key."""
    parent, other, ended = (family.issue() for _ in range(3))
    family.done("DELETE", f"/vault/keys/{ended['key_id']}")
    before = family.count()
    bearer = {"Authorization": f"Bearer {other['vault_key']}"}
    for named, headers, wanted in (
        (parent["key_id"], {}, (401, "key_unknown")),
        ("vault_key_" + "0" * 49, {}, (401, "key_unknown")),
        (parent["vault_key"], bearer, (400, "invalid_request")),
        (ended["vault_key"], {}, (401, "key_revoked")),
    ):
        asked = {"parent_vault_key": named, "daily_usd_cap": 1}
        status, answer = family.unasked("POST", "/vault_keys", asked, **headers)
        assert (status, answer["error"]["code"]) == wanted
    for headers in ({}, bearer):  # without a parent it is an operator's request
        assert family.unasked("POST", "/vault_keys", {"daily_usd_cap": 1}, **headers)[0] == 401
    assert family.count() == before


def test_eight_ancestors_are_as_many_as_a_key_may_have(family: Family) -> None:
    """The eighth descendant is issued, works, and counts in all nine; the ninth is refused."""
    line = [family.issue(daily_usd_cap=10)]
    for _ in range(8):
        line.append(family.child(line[-1]))
    status, answer = family.derive(line[-1])
    assert (status, answer["error"]["code"]) == (403, "too_many_keys")
    assert family.agent(line[-1]).charge(700) == "allowed"
    assert [family.key(key)["spent_usd"] for key in line] == [7] * 9
    assert family.agent(line[4]).charge(700) == "cap_exhausted"
    family.done("DELETE", f"/vault/keys/{line[0]['key_id']}")
    assert family.agent(line[-1]).charge(1) == "key_revoked"


# --- money --------------------------------------------------------------------------------------------


def test_control_children_s_own_caps_alone_would_overspend(family: Family) -> None:
    """Three keys of $10 that come from nothing spend $30 in the storm below."""
    assert family.storm([family.issue(daily_usd_cap=10) for _ in range(3)] * 20).count("allowed") == 30


def test_L1_the_spend_of_children_counts_against_every_ancestor_and_the_tenant(family: Family) -> None:
    """Three children of $10 under a $10 parent, 60 calls at once: $10, and it says whose cap it was."""
    top = family.issue(daily_usd_cap=1000, tenant="sum")
    parent = family.child(top, daily_usd_cap=10)
    children = [family.child(parent, daily_usd_cap=10) for _ in range(3)]
    before = len(family.stripe.arrived)

    became = family.storm(children * 20)

    assert became.count("allowed") == 10
    assert became.count("cap_exhausted") == 50
    assert len(family.stripe.arrived) - before == 10
    assert sum(family.key(child)["spent_usd"] for child in children) == 10
    assert [family.key(key)["spent_usd"] for key in (parent, top)] == [10, 10]
    assert family.done("GET", "/tenants/sum")["spent_usd"] == 10
    reasons = {row["reason"] for child in children for row in family.rows(key=child["key_id"], denied="true")}
    assert any(parent["key_id"] in reason for reason in reasons)
    own = family.rows(key=children[0]["key_id"])
    assert {row["parent_key_id"] for row in own} == {parent["key_id"]}
    assert {row["tenant"] for row in own} == {"sum"}


def test_a_tenant_s_cap_holds_for_children_and_survives_kill_9(family: Family) -> None:
    """Half is spent through a child; after the kill the other half is there for the family, and no more."""
    family.done("PUT", "/tenants/killed", {"daily_usd_cap": 10})
    parent = family.issue(tenant="killed")
    child = family.child(parent, total_usd_cap=8)
    ended = family.child(parent)
    assert family.agent(child).charge(500) == "allowed"
    family.done("DELETE", f"/vault/keys/{ended['key_id']}")

    family.close()
    family.kbctl.kill()
    family.up()

    agent = family.agent(child)
    assert agent.charge(301) == "total_cap_exhausted"
    assert agent.charge(300) == "allowed"
    assert family.agent(parent).charge(201) == "cap_exhausted"
    assert family.agent(parent).charge(200) == "allowed"
    assert family.agent(ended).charge(1) == "key_revoked"
    assert family.done("GET", "/tenants/killed")["spent_usd"] == 10


# --- the end of a parent ------------------------------------------------------------------------------


def revoke(family: Family, parent: dict[str, Any]) -> None:
    family.done("DELETE", f"/vault/keys/{parent['key_id']}")


def pause(family: Family, parent: dict[str, Any]) -> None:
    family.done("POST", f"/vault/keys/{parent['key_id']}/pause")


def expire(family: Family, parent: dict[str, Any]) -> None:
    until(lambda: family.key(parent)["status"] == "expired")


def freeze(family: Family, parent: dict[str, Any]) -> None:
    # The vendor refunds more than could be told before: our price was wrong.
    family.stripe.answers.append({"id": "re_1", "amount": 10**8, "currency": "usd"})
    assert said(family.agent(parent).ask("POST", "/stripe/v1/refunds", "charge=ch_1&amount=100")) == "allowed"
    until(lambda: family.key(parent)["status"] == "frozen")


@pytest.mark.parametrize("stopped", ["itself", "its parent"])
def test_resume_never_exits_0_without_letting_the_key_go_on(family: Family, stopped: str) -> None:
    """A frozen key, or one whose parent is paused: it goes on, or the command says that it does not."""
    parent = family.issue(daily_usd_cap=None)
    child = family.child(parent)
    if stopped == "itself":
        freeze(family, parent)
        name = parent["key_id"]
    else:
        pause(family, parent)
        name = child["key_id"]
    try:
        family.kbctl("resume", name)
    except AssertionError:
        return  # it said so
    assert family.key({"key_id": name})["status"] == "active"


@pytest.mark.parametrize(
    ("end", "code", "status"),
    [
        (revoke, "key_revoked", "revoked"),
        (pause, "key_revoked", "paused"),
        (expire, "key_expired", "expired"),
        (freeze, "key_revoked", "frozen"),
    ],
)
def test_F3_the_end_of_a_parent_ends_the_child_on_its_open_connection(
    family: Family, end: Callable[[Family, dict[str, Any]], None], code: str, status: str
) -> None:
    """The next request on a connection that was open all along is refused, and the vendor hears nothing."""
    top = family.issue(daily_usd_cap=None, expires_in="3s" if end is expire else "1h")
    child = family.child(family.child(top))
    stays = family.issue()
    agent, bystander = family.agent(child), family.agent(stays)
    assert [agent.charge(), bystander.charge()] == ["allowed"] * 2

    end(family, top)
    before = len(family.stripe.arrived)

    answer = agent.ask("POST", CHARGES, "amount=100&currency=usd")
    assert (answer[0], said(answer)) == (401, code)
    assert len(family.stripe.arrived) == before
    if status in ("paused", "frozen"):  # the other two are the child's own, too
        assert top["key_id"] in answer[1]["error"]["message"]
    assert family.key(child)["status"] == status
    assert child["key_id"] not in [
        key["key_id"] for key in family.done("GET", "/vault/keys", status="active")["keys"]
    ]
    assert bystander.charge() == "allowed"
    if end is pause:
        family.done("POST", f"/vault/keys/{top['key_id']}/resume")
        assert agent.charge() == "allowed"
    else:
        assert family.derive(child)[0] in (401, 403)


def test_F3_a_child_derived_while_its_parent_is_revoked_is_revoked_too(family: Family) -> None:
    """Agents derive as fast as they can: after the acknowledgement not one of their children is alive."""
    parent = family.issue(tenant="racing")
    children = list[dict[str, Any]]()
    over = threading.Event()

    def spawn() -> None:
        while not over.is_set():
            status, answer = family.derive(parent)
            if status != 201:
                return
            children.append(answer)

    team = [threading.Thread(target=spawn) for _ in range(4)]
    for thread in team:
        thread.start()
    until(lambda: len(children) >= 10)
    family.done("DELETE", f"/vault/keys/{parent['key_id']}")
    for thread in team:
        thread.join(20)
    over.set()
    before = len(family.stripe.arrived)
    assert {family.agent(child).charge() for child in children} == {"key_revoked"}
    assert len(family.stripe.arrived) == before
    assert {key["status"] for key in family.done("GET", "/vault/keys", tenant="racing")["keys"]} == {
        "revoked"
    }


# --- a parent that is tightened -----------------------------------------------------------------------


def charge(agent: Agent) -> str:
    return agent.charge(1000)


@pytest.mark.parametrize(
    ("tighter", "code"),
    [
        ({"denied_endpoints": ["payment_intents.create"]}, "endpoint_not_allowed"),
        ({"denied_endpoints": ["POST /v1/*"]}, "endpoint_not_allowed"),
        ({"allowed_endpoints": ["POST /v1/refunds"]}, "endpoint_not_allowed"),
        ({"param_rules": ["amount <= 999"]}, "param_not_allowed"),
        ({"param_rules": ["payment_intents.create: customer in cus_2"]}, "param_not_allowed"),
        ({"vendors": ["mail"]}, "vendor_not_allowed"),
        ({"daily_usd_cap": 10}, "cap_exhausted"),
        ({"total_usd_cap": 10}, "total_cap_exhausted"),
        ({"call_usd_cap": 9.99}, "call_cap_exceeded"),
        ({"daily_requests": 1}, "request_budget_exhausted"),
    ],
    ids=lambda value: json.dumps(value),
)
def test_what_its_parent_may_no_longer_do_ends_for_the_child(
    family: Family, tighter: dict[str, Any], code: str
) -> None:
    """The parent's policy is tightened live: the child's next call on its open connection is refused."""
    base = {"name": "loose", "daily_usd_cap": 1000, "vendors": ["mail", "stripe"]}
    family.done("PUT", "/policies/loose", base)
    parent = dict(family.done("POST", "/vault/keys", {"policy": "loose"}))
    child = family.child(family.child(parent))
    agent, bystander = family.agent(child), family.agent(family.issue())
    assert [charge(agent), charge(bystander)] == ["allowed"] * 2
    before = len(family.stripe.arrived)

    pushed = family.done("PUT", "/policies", {"policies": [{**base, **tighter}], "live": True})

    assert parent["key_id"] in pushed["keys_changed"]
    answer = agent.ask("POST", CHARGES, "amount=1000&currency=usd&customer=cus_1")
    assert said(answer) == code
    assert parent["key_id"] in answer[1]["error"]["message"]
    assert len(family.stripe.arrived) == before
    assert charge(bystander) == "allowed"
    family.done("DELETE", f"/vault/keys/{parent['key_id']}")


@pytest.mark.parametrize(
    ("pace", "code"), [({"rate": "1/h"}, "rate_limited"), ({"loop": "1/1h"}, "loop_detected")]
)
def test_a_pace_that_its_parent_gets_is_the_child_s_too(
    family: Family, pace: dict[str, str], code: str
) -> None:
    """One more call at most, then refused: a new bucket is full, a new guard has seen nothing."""
    base = {"name": "paced", "daily_usd_cap": 1000}
    family.done("PUT", "/policies/paced", base)
    parent = dict(family.done("POST", "/vault/keys", {"policy": "paced", "vendor": "stripe"}))
    agent = family.agent(family.child(parent))
    assert [agent.charge() for _ in range(3)] == ["allowed"] * 3
    family.done("PUT", "/policies", {"policies": [{**base, **pace}], "live": True})
    assert [agent.charge() for _ in range(2)] == ["allowed", code]
    family.done("DELETE", f"/vault/keys/{parent['key_id']}")


def test_a_stamp_that_its_parent_gets_is_the_child_s_too(family: Family) -> None:
    """From then on the child's calls carry the child's id to the vendor."""
    base = {"name": "stamped", "daily_usd_cap": 1000}
    family.done("PUT", "/policies/stamped", base)
    parent = dict(family.done("POST", "/vault/keys", {"policy": "stamped", "vendor": "stripe"}))
    child = family.child(parent)
    agent = family.agent(child)
    assert agent.charge() == "allowed"
    assert "metadata[kbctl_key_id]" not in family.stripe.arrived[-1].form
    family.done("PUT", "/policies", {"policies": [{**base, "stamp": True}], "live": True})
    assert agent.charge() == "allowed"
    assert family.stripe.arrived[-1].form["metadata[kbctl_key_id]"] == child["key_id"]


# --- what an agent can ask ----------------------------------------------------------------------------


def test_vault_self_is_about_the_asker_and_nobody_else(family: Family) -> None:
    """What is left of its own caps or of what binds it; no relative's id, label or key, no spend."""
    parent = family.issue(
        tenant="quiet", daily_usd_cap=20, metadata={"who": "parent"}, agent_run_label="boss", vendor="stripe"
    )
    sibling = family.child(parent, daily_usd_cap=10, agent_run_label="brother", metadata={"who2": "sibling"})
    child = family.child(parent, daily_usd_cap=15, daily_requests=10)
    assert family.agent(sibling).charge(800) == "allowed"
    agent = family.agent(child)
    assert agent.charge(200) == "allowed"

    status, myself = agent.ask("GET", "/vault/self")

    assert status == 200
    assert set(myself) == {field.name for field in msgspec.structs.fields(wire.KeySelf)}
    assert (myself["key_id"], myself["status"], myself["vendors"]) == (child["key_id"], "active", ["stripe"])
    assert (myself["daily_usd_cap"], myself["daily_usd_left"]) == (15, 10)  # 20 of the parent's, less 8 and 2
    assert (myself["daily_requests"], myself["daily_requests_left"]) == (10, 9)
    text = json.dumps(myself)
    for stranger in (parent, sibling):
        assert stranger["key_id"] not in text
        assert stranger["vault_key"] not in text
    assert "brother" not in text
    assert "vault_key_" not in text
    for other in (parent, sibling):
        assert family.agent(other).ask("GET", "/vault/self")[1]["key_id"] == other["key_id"]
    family.done("DELETE", f"/vault/keys/{child['key_id']}")
    assert agent.ask("GET", "/vault/self")[0] == 401
    assert family.unasked("GET", "/vault/self")[0] == 401


def test_T3_a_vault_key_opens_nothing_else_of_the_operator_api(family: Family) -> None:
    """Every route of the document, in every slot that a key may stand in: 401, telling nothing."""
    secret_name = "nobody-may-read-this"
    other = family.issue(tenant=secret_name)
    mine = family.issue()
    paths = family.done("GET", "/openapi.json")["paths"]
    fill = {"key": mine["key_id"], "tenant": secret_name, "policy": "starter", "name": "stripe"}
    basic = base64.b64encode(f"{mine['vault_key']}:".encode()).decode()
    slots = (
        {"Authorization": f"Bearer {mine['vault_key']}"},
        {"Authorization": f"Basic {basic}"},
        {"x-api-key": mine["vault_key"]},
    )
    asked = 0
    for path, item in paths.items():
        place = path
        for name in [part[1:-1] for part in path.split("/") if part.startswith("{")]:
            place = place.replace("{" + name + "}", fill.get(name, "tok_x"))
        for method in item.keys() & {"get", "post", "put", "delete"}:
            if place in ("/healthz", "/vault/self"):
                continue
            for slot in slots:
                status, answer = family.unasked(method.upper(), place, {"daily_usd_cap": 1}, **slot)
                assert status == 401, (method, place, answer)
                assert secret_name not in json.dumps(answer)
                assert other["key_id"] not in json.dumps(answer)
                asked += 1
    assert asked > 60
    assert {family.key(key)["status"] for key in (mine, other)} == {"active"}
    assert family.kbctl.json("status")["state"] == "serving"


# --- the tree -----------------------------------------------------------------------------------------


def test_the_tree_shows_who_came_from_whom(family: Family) -> None:
    """Every descendant once, under its own parent, in order of issue, with its figures."""
    top = family.issue(tenant="tree")
    first, second = family.child(top), family.child(top)
    grandchild = family.child(first)
    assert family.agent(grandchild).charge(300) == "allowed"
    family.done("DELETE", f"/vault/keys/{second['key_id']}")

    tree = family.kbctl.json("show", top["key_id"], "--tree")

    def shape(node: dict[str, Any]) -> tuple[Any, ...]:
        key = node["key"]
        return (key["key_id"], key["status"], key["spent_usd"], [shape(each) for each in node["children"]])

    assert shape(tree) == (
        *(top["key_id"], "active", 3),
        [
            (first["key_id"], "active", 3, [(grandchild["key_id"], "active", 3, [])]),
            (second["key_id"], "revoked", 0, []),
        ],
    )
    assert "vault_key_" not in json.dumps(tree)
    text = family.kbctl("show", top["key_id"], "--tree")
    assert text.index(first["key_id"]) < text.index(grandchild["key_id"]) < text.index(second["key_id"])
