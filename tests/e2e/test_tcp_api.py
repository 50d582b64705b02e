"""The operator API over TCP on a real daemon: tokens made on the socket, used on the proxy's port."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.support import Kbctl, new_home
from tests.e2e.test_operator_api import Api


@pytest.fixture
def api() -> Iterator[Api]:
    with new_home() as kbctl:
        made = Api(kbctl)
        yield made
        made.http.close()


def create(api: Api, **terms: Any) -> dict[str, Any]:
    status, token = api.ask("POST", "/tokens", json.dumps(terms))
    assert status == 201, token
    return dict(token)


def tcp(api: Api, token: str | None = None) -> httpx.Client:
    fields = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=f"http://127.0.0.1:{api.port}", headers=fields, trust_env=False, timeout=30)


def test_a_token_s_life(api: Api) -> None:
    """Nothing without one; all that its scope allows with one; nothing after its revocation."""
    with tcp(api) as nobody:
        assert nobody.get("/healthz").status_code == 200
        answer = nobody.get("/status")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_missing")
        assert answer.headers["www-authenticate"] == "Bearer"

    token = create(api, scope="issue", note="a service")
    with tcp(api, token["token"]) as service:
        assert service.get("/status").json()["keys_active"] == 0
        key = service.post("/vault/keys", json={"daily_usd_cap": 5, "tenant": "acme"}).json()
        assert api.charge(key["vault_key"]) == 200
        (row,) = service.get("/audit").json()
        assert row["vault_key_id"] == key["key_id"]
        assert service.get("/spend?by=tenant").json()[0]["spent_usd"] == 1
        assert service.post("/sql", json={"query": "SELECT 1"}).status_code == 403
        assert service.get("/tokens").status_code == 403
        assert service.delete(f"/vault/keys/{key['key_id']}").status_code == 200
        assert api.charge(key["vault_key"]) == 401

        assert api.ask("DELETE", f"/tokens/{token['token_id']}")[0] == 200
        answer = service.get("/status")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_revoked")


def test_it_outlives_a_kill_and_is_nowhere_in_the_home(api: Api) -> None:
    """kill -9 right after its creation, then a start: still good; only a digest is on disk or in the log."""
    kept, gone = create(api, expires_in="never"), create(api)
    api.ask("DELETE", f"/tokens/{gone['token_id']}")
    with tcp(api, "kbctl_tok_" + "x" * 49) as stranger:
        assert stranger.get("/status").status_code == 401
    api.kbctl.kill()
    api.kbctl("up", "--sandbox", "--port", str(api.port))
    for token, status in ((kept, 200), (gone, 401)):
        with tcp(api, token["token"]) as holder:
            assert holder.get("/tokens").status_code == status
    api.kbctl("down")
    for path in Path(api.kbctl.home).rglob("*"):
        if path.is_file():
            assert b"kbctl_tok_" not in path.read_bytes(), path


def test_metrics_tell_what_the_proxy_did(api: Api) -> None:
    """Calls that were allowed and refused on the real plane, read by Prometheus' parser."""
    key = api.issue(daily_usd_cap=2, vendor="stripe")
    assert [api.charge(key["vault_key"]) for _ in range(3)] == [200, 200, 429]
    assert api.charge("vault_key_x") == 401
    with tcp(api, create(api, scope="read")["token"]) as prometheus:
        text = prometheus.get("/metrics").text
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["kbctl_calls_total", "posted", "allowed", "stripe"] == 2
    assert found["kbctl_calls_total", "refused", "cap_exhausted", "stripe"] == 1
    assert found["kbctl_calls_total", "refused", "key_unknown", ""] == 1
    assert found["kbctl_added_seconds_count",] == 2
    assert 0 < found["kbctl_added_seconds_sum",] < 2
    assert (found["kbctl_spent_usd_total",], found["kbctl_held_usd",]) == (2, 0)
    assert found["kbctl_journal_batches_total",] > 2


def test_what_agents_ask_reaches_the_proxy_all_the_same(api: Api) -> None:
    """With and without a vendor's prefix, on a connection that also asks the operator API."""
    key = api.issue()
    form = {"amount": "100", "currency": "usd"}
    with tcp(api, key["vault_key"]) as agent:
        assert agent.post("/stripe/v1/payment_intents", data=form).status_code == 200
        answer = agent.get("/status")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_unknown")
        assert agent.post("/v1/payment_intents", data=form).status_code == 200


def test_a_vendor_can_not_take_the_operator_api_s_place(home: Kbctl) -> None:
    """The start says which file; nothing is served."""
    (home.home / "vendors").mkdir(mode=0o700)
    file = home.home / "vendors" / "audit.toml"
    file.touch(mode=0o600)
    file.write_text(VENDOR)
    home("up", "--sandbox", "--port", "0", status=2)
    assert str(file) in home.said
    assert "operator API" in home.said


VENDOR = """
schema = 1
name = "audit"
title = "Audit"
docs = "https://example.com"
origin = "https://api.example.com"
body = "form"
error_shape = "stripe"
request_id_header = "X-Request-Id"
roots = ["/v1/"]
auth = { scheme = "bearer" }
[[operation]]
name = "mails.send"
match = "POST /v1/mails/{id}"
cost = { kind = "free" }
"""
