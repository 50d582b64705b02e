"""Limits that live in time: how often, with which secret, until when; over restarts, locks and rotation."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from tests.e2e.scene import CHARGES, FORM, PLAIN, Agent, Stage, said, staged, until
from tests.e2e.support import SECRET


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


@pytest.fixture
def own_stage() -> Iterator[Stage]:
    """One that a test may stop, lock or change the secrets of."""
    with staged() as made:
        yield made


# --- how often ----------------------------------------------------------------------------------------


def test_requests_a_day_survive_a_restart_and_refused_calls_do_not_count(stage: Stage) -> None:
    """Five a day: refusals between them take none; two before kill -9, two before `down`, one after."""
    before = len(stage.stripe.arrived)
    key = stage.issue(daily_requests=5, call_usd_cap=2, vendor="stripe")
    stage.kbctl("tenant", "set", "busy", "--requests", "3")
    shared = [stage.issue(tenant="busy", vendor="stripe") for _ in range(2)]
    agent = stage.agent(key)
    assert [agent.charge(cents) for cents in (100, 300, 100, 300)] == [
        *("allowed", "call_cap_exceeded"),
        *("allowed", "call_cap_exceeded"),
    ]
    assert [stage.agent(each).charge() for each in shared] == ["allowed"] * 2
    assert stage.key(key)["requests_today"] == 2
    stage.close()
    stage.kbctl.kill()
    stage.up()
    assert stage.key(key)["requests_today"] == 2
    agent = stage.agent(key)
    assert said(agent.ask("GET", "/stripe/v1/customers")) == "allowed"  # a read is a request, too
    assert agent.charge() == "allowed"
    assert stage.agent(shared[0]).charge() == "allowed"
    stage.restart()
    agent = stage.agent(key)
    assert [agent.charge() for _ in range(3)] == ["allowed", *["request_budget_exhausted"] * 2]
    assert stage.agent(shared[1]).charge() == "request_budget_exhausted"
    assert stage.key(key)["requests_today"] == 5
    assert len(stage.stripe.arrived) == before + 5 + 3


def test_a_rate_is_a_bucket_full_at_issue_and_empty_after_a_restart(stage: Stage) -> None:
    """Five at once, the sixth not, and it says when; right after a restart not one."""
    before = len(stage.stripe.arrived)
    key, slow = (stage.issue(rate=rate, vendor="stripe") for rate in ("5/m", "5/h"))
    agent = stage.agent(key)
    assert [agent.charge() for _ in range(6)] == ["allowed"] * 5 + ["rate_limited"]
    fields = {"Authorization": f"Bearer {agent.key}", "Content-Type": FORM}
    agent.http.request("POST", CHARGES, PLAIN, fields)
    answer = agent.http.getresponse()
    answer.read()
    assert 1 <= int(answer.headers["Retry-After"]) <= 12
    stage.restart()
    other = stage.agent(slow)
    assert other.charge() == "rate_limited"  # never used before: nobody knows that any more
    assert len(stage.stripe.arrived) == before + 5
    faster = stage.issue(rate="5/s", vendor="stripe")
    agent = stage.agent(faster)
    assert [agent.charge() for _ in range(5)] == ["allowed"] * 5
    until(lambda: agent.charge() == "allowed", within_s=2)  # and it fills up again


def test_a_loop_is_denied_while_other_requests_go_on(stage: Stage) -> None:
    """The third of the same is refused in whatever spelling; another amount is another request."""
    key = stage.issue(vendor="stripe", loop="2/1h")
    agent = stage.agent(key)
    same = [PLAIN, "customer=cus_1&currency=usd&amount=100", PLAIN.replace("cus_1", "cus%5f1")]
    assert [said(agent.ask("POST", CHARGES, body)) for body in same] == ["allowed"] * 2 + ["loop_detected"]
    assert agent.charge(101) == "allowed"
    assert agent.charge(100) == "loop_detected"
    assert stage.key(key)["status"] == "active"


def test_a_loop_pauses_its_key_until_an_operator_resumes_it(stage: Stage) -> None:
    """Then nothing passes, also after a restart; `resume` lets it go on from nothing."""
    key = stage.issue(vendor="stripe", loop="2/1h", on_loop="pause")
    bystander = stage.agent(stage.issue(vendor="stripe"))
    agent = stage.agent(key)
    assert [agent.charge() for _ in range(3)] == ["allowed"] * 2 + ["loop_detected"]
    assert agent.charge(555) == "loop_detected"
    assert bystander.charge() == "allowed"
    shown = stage.key(key)
    assert shown["status"] == "paused"
    assert shown["stopped_because"]
    paused = stage.done("GET", "/vault/keys", status="paused")["keys"]
    assert [each["key_id"] for each in paused] == [key["key_id"]]
    stage.restart()
    agent = stage.agent(key)
    assert agent.charge(555) == "loop_detected"
    stage.kbctl("resume", key["key_id"])
    assert [agent.charge() for _ in range(3)] == ["allowed"] * 2 + ["loop_detected"]
    stage.kbctl("resume", key["key_id"])
    stage.kbctl("pause", key["key_id"])
    assert agent.charge(556) == "key_revoked"
    stage.kbctl("resume", key["key_id"])
    assert agent.charge(556) == "allowed"
    assert [change["action"] for change in stage.changes(key["key_id"])][:4] == [
        *("key.resume", "key.pause"),
        *("key.resume", "key.resume"),
    ]


# --- credentials --------------------------------------------------------------------------------------


def test_a_tenant_s_own_credential_goes_with_its_keys(stage: Stage) -> None:
    """stripe:acme for acme's keys and their children, the platform's for others; removed, none falls back."""
    acme = SECRET.replace("Canary", "Acme")
    stage.kbctl("credential", "set", "stripe:acme", stdin=acme + "\n")
    own = stage.issue(tenant="acme", credential="stripe:acme")
    assert (own["credential"], own["vendors"]) == ("stripe:acme", ["stripe"])
    child = stage.child(own)
    other = stage.issue(tenant="globex", vendor="stripe")
    before = len(stage.stripe.arrived)
    agents = [stage.agent(key) for key in (own, child, other)]
    assert [agent.charge() for agent in agents] == ["allowed"] * 3
    sent = [heard.headers["authorization"] for heard in stage.stripe.arrived[before:]]
    assert sent == [f"Bearer {secret}" for secret in (acme, acme, SECRET)]
    stage.kbctl("credential", "remove", "stripe:acme", "--yes")
    assert [agent.charge() for agent in agents] == ["credential_unavailable"] * 2 + ["allowed"]
    assert (
        "nobody has" in stage.error("issue", "--cap", "5", "--credential", "stripe:nobody", status=3) or True
    )
    assert "stripe:nobody" in stage.error("issue", "--cap", "5", "--credential", "stripe:nobody", status=3)


def test_rotation_under_load_fails_no_call_and_ends_the_old_secret(own_stage: Stage) -> None:
    """Eight agents go on charging: all are answered 200, and what leaves after the answer is the new one."""
    stage = own_stage
    fresh = SECRET.replace("Canary", "Rotated")
    agents = [stage.agent(stage.issue(daily_usd_cap=None)) for _ in range(8)]
    results = list[str]()
    over = threading.Event()

    def work(agent: Agent) -> None:
        while not over.is_set():
            results.append(agent.charge())

    team = [threading.Thread(target=work, args=(agent,)) for agent in agents]
    for thread in team:
        thread.start()
    until(lambda: len(results) > 100)
    stage.done("PUT", "/credentials/stripe", {"secret": fresh})
    then = len(stage.stripe.arrived)
    until(lambda: len(stage.stripe.arrived) > then + 100)
    over.set()
    for thread in team:
        thread.join(20)

    assert set(results) == {"allowed"}
    by_time = [heard.headers["authorization"] for heard in stage.stripe.arrived]
    assert by_time.count(f"Bearer {SECRET}") > 50
    assert by_time[then:].count(f"Bearer {SECRET}") <= 8  # one of each agent's may have been on its way
    assert by_time[then:].count(f"Bearer {fresh}") > 90
    (credential,) = [c for c in stage.done("GET", "/credentials")["credentials"] if c["name"] == "stripe"]
    assert credential["version"] == 2


def test_a_call_that_waits_to_be_sent_leaves_with_the_new_secret() -> None:
    """Allowed under the old one, in line for the only connection, rotated: the old one stays here."""
    fresh = SECRET.replace("Canary", "Rotated")
    other = {"secret": SECRET.replace("Canary", "Another"), "vendor": "stripe"}
    with staged("[upstream]\nconnections = 1\n") as stage:
        stage.done("PUT", "/credentials/stripe:other", other)
        # Two real keys: one would wait for its turn, before the call is allowed, and not for the connection.
        keys = [stage.issue(vendor="stripe", credential=name) for name in ("stripe", "stripe:other")]
        stage.stripe.may_answer.clear()
        answers = list[str]()

        def work(agent: Agent) -> None:
            answers.append(agent.charge())

        team = [threading.Thread(target=work, args=(stage.agent(key),)) for key in keys]
        team[0].start()
        until(lambda: stage.stripe.arrived)
        team[1].start()
        until(lambda: len(stage.rows()) == 2)
        stage.done("PUT", "/credentials/stripe:other", {"secret": fresh, "vendor": "stripe"})
        stage.stripe.may_answer.set()
        for thread in team:
            thread.join(20)
        sent = [heard.headers["authorization"] for heard in stage.stripe.arrived]
    assert answers == ["allowed"] * 2
    assert sent == [f"Bearer {SECRET}", f"Bearer {fresh}"]


# --- revocation ---------------------------------------------------------------------------------------


def test_revoke_abort_cuts_what_is_in_flight_and_keeps_its_hold(stage: Stage) -> None:
    """The vendor has it and does not answer: the agent is cut off at once, the money stays held."""
    key, other = (stage.issue(daily_usd_cap=10, vendor="stripe") for _ in range(2))
    before, unknown = len(stage.stripe.arrived), stage.kbctl.json("status")["unknown_calls"]
    stage.stripe.may_answer.clear()
    answers = list[tuple[int, dict[str, Any]]]()

    def call(agent: Agent) -> None:
        answers.append(agent.ask("POST", CHARGES, PLAIN))

    team = [threading.Thread(target=call, args=(stage.agent(each),)) for each in (key, key, other)]
    for thread in team:
        thread.start()
    until(lambda: len(stage.stripe.arrived) == before + 3)

    reply = stage.kbctl.json("revoke", key["key_id"], "--abort")

    assert (reply["in_flight"], reply["in_flight_usd"], reply["aborted"]) == (2, 2, 2)
    for thread in team[:2]:
        thread.join(10)  # long before the vendor answers
    assert len(answers) == 2
    assert {said(answer) for answer in answers} <= {
        "upstream_unreachable",
        "upstream_invalid",
        "upstream_timeout",
    }
    stage.stripe.may_answer.set()
    team[2].join(20)
    assert said(answers[2]) == "allowed"
    rows = stage.rows(key=key["key_id"])
    assert [(row["outcome"], row["amount_usd"], row["policy_check_result"]) for row in rows] == [
        ("unknown", 1, "allowed")
    ] * 2
    shown = stage.key(key)
    assert (shown["status"], shown["held_usd"], shown["spent_usd"]) == ("revoked", 2, 0)
    assert stage.kbctl.json("status")["unknown_calls"] == unknown + 2


@contextmanager
def locked(database: str) -> Iterator[None]:
    """Another process's write lock on the database."""
    with closing(sqlite3.connect(database, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            holder.execute("ROLLBACK")


def revoke_meanwhile(stage: Stage, key: dict[str, Any]) -> tuple[threading.Thread, list[tuple[int, Any]]]:
    """Ask for a revocation without waiting; its answer is in the list once it is there."""
    replies = list[tuple[int, Any]]()
    asker = threading.Thread(
        target=lambda: replies.append(stage.operate("DELETE", f"/vault/keys/{key['key_id']}"))
    )
    asker.start()
    # Asked by a command: the stage's own connection is waiting.
    until(lambda: stage.kbctl.json("show", key["key_id"])["status"] == "revoked", within_s=5)
    return asker, replies


def test_F3_revoke_under_a_database_lock_bites_at_once_and_succeeds_when_it_is_durable(
    stage: Stage,
) -> None:
    """While the lock stands no success is claimed and nothing passes; then it says so, and it lasts."""
    key = stage.issue(vendor="stripe")
    agent = stage.agent(key)
    assert agent.charge() == "allowed"
    with locked(stage.database):
        asker, replies = revoke_meanwhile(stage, key)
        before = len(stage.stripe.arrived)
        assert agent.charge() == "key_revoked"
        assert len(stage.stripe.arrived) == before
        assert asker.is_alive()
        assert replies == []
    asker.join(20)
    ((status, reply),) = replies
    assert (status, reply["revoked_count"]) == (200, 1)
    stage.close()
    stage.kbctl.kill()
    stage.up()
    assert stage.agent(key).charge() == "key_revoked"


def test_F3_revoke_under_a_lock_that_never_goes_fails_in_time_and_holds_all_the_same(stage: Stage) -> None:
    """An error within 12 s that claims no more than is so; the key stays stopped; it can be repeated."""
    key = stage.issue(vendor="stripe")
    agent, other = stage.agent(key), stage.agent(stage.issue(vendor="stripe"))
    assert [agent.charge(), other.charge()] == ["allowed"] * 2
    before = len(stage.stripe.arrived)
    started = time.monotonic()
    with locked(stage.database):
        asker, replies = revoke_meanwhile(stage, key)
        assert agent.charge() == "key_revoked"
        assert other.charge() == "audit_unavailable"  # nothing leaves without its row
        asker.join(20)
        took_s = time.monotonic() - started
        assert agent.charge() == "key_revoked"
        assert len(stage.stripe.arrived) == before
    ((status, answer),) = replies
    assert took_s < 15  # 12, and what a busy machine adds
    assert status == 503
    assert answer["error"]["code"] == "audit_unavailable"
    assert "could not be recorded" in answer["error"]["message"]
    again = stage.done("DELETE", f"/vault/keys/{key['key_id']}")
    assert again["already"] == [key["key_id"]]
    until(lambda: other.charge() == "allowed")
    stage.close()
    stage.kbctl.kill()
    stage.up()
    assert stage.agent(key).charge() == "key_revoked"
