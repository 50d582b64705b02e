"""The operator API on the UNIX socket: good and bad input, whole label segments, pages without loss."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.support import Kbctl, new_home, post


class Api:
    """Raw HTTP over the socket, as `curl --unix-socket` would speak it."""

    def __init__(self, kbctl: Kbctl) -> None:
        self.kbctl = kbctl
        kbctl("up", "--sandbox", "--port", "0")
        status = kbctl.json("status")
        self.port = int(status["proxy_url"].rpartition(":")[2])
        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=status["socket"]), base_url="http://localhost", timeout=30
        )

    def ask(self, method: str, path: str, body: str | None = None, **fields: str) -> tuple[int, Any]:
        answer = self.http.request(method, path, content=body, headers=fields)
        return answer.status_code, json.loads(answer.text, parse_float=Decimal) if answer.text else None

    def issue(self, **terms: Any) -> dict[str, Any]:
        status, key = self.ask("POST", "/vault/keys", json.dumps({"daily_usd_cap": 1000, **terms}))
        assert status == 201, key
        return dict(key)

    def charge(self, key: str, cents: int = 100) -> int:
        body = f"amount={cents}&currency=usd&customer=cus_1"
        return asyncio.run(post(self.port, "/v1/payment_intents", key, body))[0]


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with new_home() as kbctl:
        made = Api(kbctl)
        yield made
        made.http.close()


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("{}", "daily_usd_cap"),
        ('{"daily_usd_cap": 0}', "daily_usd_cap"),
        ('{"daily_usd_cap": -5}', "daily_usd_cap"),
        ('{"daily_usd_cap": NaN}', "JSON"),
        ('{"daily_usd_cap": 1e400}', "daily_usd_cap"),
        ('{"daily_usd_cap": 99999999999999999999999999}', "daily_usd_cap"),
        ('{"daily_usd_cap": 0.0000000001}', "daily_usd_cap"),
        ('{"daily_usd_cap": "5"}', "daily_usd_cap"),
        ('{"daily_usd_cap": true}', "daily_usd_cap"),
        ('{"daily_usd_cap": 5, "colour": 1}', "colour"),
        ('{"daily_usd_cap": 5, "vendor": "nope"}', "nope"),
        ('{"daily_usd_cap": 5, "vendor": "stripe", "vendors": ["stripe"]}', "vendors"),
        ('{"daily_usd_cap": 5, "vendors": []}', "vendors"),
        ('{"daily_usd_cap": 5, "expires_in": "2 hours"}', "expires_in"),
        ('{"daily_usd_cap": 5, "expires_in": "-1h"}', "expires_in"),
        ('{"daily_usd_cap": 5, "allowed_endpoints": ["/v1/x"]}', "/v1/x"),
        ('{"daily_usd_cap": 5, "allowed_endpoints": ["POST /v1/../x"]}', "/v1/../x"),
        ('{"daily_usd_cap": 5, "denied_endpoints": ["refunds.destroy"]}', "refunds.destroy"),
        ('{"daily_usd_cap": 5, "tenant": "a/b"}', "tenant"),
        ('{"daily_usd_cap": 5, "tenant": ""}', "tenant"),
        ('{"daily_usd_cap": 5, "tenant": "a", "agent_run_label": "tenant:b"}', "agent_run_label"),
        ('{"daily_usd_cap": 5, "metadata": {"a": 1}}', "metadata"),
        ('{"daily_usd_cap": 5, "agent_run_label": "%s"}' % ("x" * 501), "agent_run_label"),
        ("[]", "object"),
        ("not json", "JSON"),
        ("[" * 100_000, "JSON"),
    ],
    ids=lambda value: value[:60],
)
def test_a_key_that_can_not_be_is_refused_by_naming_the_field(api: Api, body: str, names: str) -> None:
    """400 with code, sentence and remedy; no key is made."""
    before = len(api.ask("GET", "/vault/keys")[1]["keys"])

    status, answer = api.ask("POST", "/vault/keys", body)

    assert status == 400
    assert names in answer["error"]["message"]
    assert len(api.ask("GET", "/vault/keys")[1]["keys"]) == before


def test_a_body_beyond_the_limit_is_refused(api: Api) -> None:
    """Ten megabytes of label are not read into memory twice."""
    status, answer = api.ask("POST", "/vault/keys", '{"agent_run_label": "' + "x" * 11_000_000 + '"}')
    assert (status, answer["error"]["code"]) == (413, "body_too_large")


def test_dollars_are_exact_both_ways(api: Api) -> None:
    """What was asked for comes back to the last digit, as a JSON number."""
    key = api.issue(daily_usd_cap=None, total_usd_cap=0.1, call_usd_cap=123456789.123456789)
    assert (key["daily_usd_cap"], key["total_usd_cap"]) == (None, Decimal("0.10"))
    status, answer = api.ask("POST", "/vault/keys", '{"daily_usd_cap": 123456789.123456789}')
    assert (status, answer["daily_usd_cap"]) == (201, Decimal("123456789.123456789"))


def test_the_published_way_to_issue_list_revoke_and_audit(api: Api) -> None:
    """The fields and filters that the published snippets use."""
    key = api.issue(
        vendor="stripe",
        daily_usd_cap=500,
        allowed_endpoints=["POST /v1/payment_intents", "POST /v1/refunds"],
        expires_in="2h",
        agent_run_label="billing-agent/tenant:published/plan:growth",
        metadata={"tenant_id": "published", "plan_tier": "growth"},
    )
    assert api.charge(key["vault_key"]) == 200
    status, listed = api.ask("GET", "/vault/keys?metadata.tenant_id=published&status=active")
    assert (status, listed["keys"][0]["key_id"]) == (200, key["key_id"])
    assert api.ask("DELETE", f"/vault/keys/{key['key_id']}")[0] == 200
    assert api.charge(key["vault_key"]) == 401
    status, rows = api.ask(
        "GET", "/audit?label_contains=tenant:published&vendor=stripe&from=2026-01-01T00:00:00Z"
    )
    assert [row["policy_check_result"] for row in rows] == ["key_revoked", "allowed"]
    wanted = {
        "timestamp",
        "vault_key_id",
        "endpoint",
        "amount_usd",
        "stripe_request_id",
        "agent_run_label",
        "metadata",
    }
    assert wanted <= set(rows[0])
    assert rows[1]["metadata"]["plan_tier"] == "growth"


def test_law_8_a_filter_matches_whole_segments(api: Api) -> None:
    """tenant:acme is not tenant:acme2, nor acme; both tenants have calls."""
    for tenant in ("acme", "acme2", "xacme"):
        api.charge(api.issue(tenant=tenant)["vault_key"])
    for query in ("label_contains=tenant:acme", "tenant=acme"):
        rows = api.ask("GET", f"/audit?{query}")[1]
        assert {row["tenant"] for row in rows} == {"acme"}, query
        keys = api.ask("GET", f"/vault/keys?{query}")[1]["keys"]
        assert {key["tenant"] for key in keys} == {"acme"}, query
    assert api.ask("GET", "/audit?label_contains=acme")[1] == []


def test_pages_lose_and_repeat_nothing_while_rows_arrive(api: Api) -> None:
    """Follow Link: rel=next two rows at a time, with new calls in between."""
    key = api.issue(tenant="pager")
    for _ in range(7):
        api.charge(key["vault_key"])
    path, seen = "/audit?tenant=pager&limit=2", list[str]()
    while path:
        answer = api.http.get(path)
        seen.extend(row["call_id"] for row in answer.json())
        api.charge(key["vault_key"])
        path = answer.links["next"]["url"] if "next" in answer.links else ""
    everything = [row["call_id"] for row in api.ask("GET", "/audit?tenant=pager&limit=1000")[1]]
    assert seen == everything[-7:]


def test_a_key_is_named_by_id_prefix_or_itself_and_never_repeated(api: Api) -> None:
    """The vault key in a path finds its key, and an unknown one is not echoed."""
    key = api.issue()
    for name in (key["key_id"], key["key_id"][:9], key["vault_key"]):
        assert api.ask("GET", f"/vault/keys/{name}")[1]["key_id"] == key["key_id"]
    other = "x" if key["vault_key"][-1] != "x" else "y"
    status, answer = api.ask("GET", f"/vault/keys/{key['vault_key'][:-1]}{other}")
    assert status == 404
    assert "vault_key_" not in json.dumps(answer)
    assert api.ask("GET", "/vault/keys/vk_")[0] in (400, 404)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("PUT", "/status", 405),
        ("GET", "/audit?limit=0", 400),
        ("GET", "/audit?limit=1001", 400),
        ("GET", "/audit?from=yesterday", 400),
        ("GET", "/audit?colour=red", 400),
        ("GET", "/audit?denied=maybe", 400),
        ("GET", "/vault/keys?status=odd", 400),
        ("DELETE", "/vault/keys/vk_nope", 404),
        ("DELETE", "/credentials/nope", 404),
        ("GET", "/healthz", 200),
    ],
)
def test_what_is_not_there_or_not_understood_says_so(api: Api, method: str, path: str, status: int) -> None:
    """Each with its status, and an error that has a code."""
    answered, answer = api.ask(method, path)
    assert answered == status
    assert status == 200 or answer["error"]["code"]


def test_a_web_page_is_turned_away(api: Api) -> None:
    """Even on the socket: a browser extension or a forwarded socket brings an Origin."""
    assert api.ask("GET", "/status", Origin="http://evil.example")[0] == 403


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the child touches nothing of ours
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_T2_another_user_on_the_socket_is_cut_off(api: Api) -> None:
    """File modes set aside: the peer's uid decides, before a byte of its request is read."""
    path = Path(api.kbctl.json("status")["socket"])
    api.kbctl.home.chmod(0o711)
    path.chmod(0o666)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setuid(65534)
        heard = b"?"
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(path))
                connection.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
                heard = connection.recv(100)
            except OSError:
                heard = b""
        os.write(writing, b"nothing" if heard == b"" else b"an answer")
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"nothing"
    path.chmod(0o600)
    api.kbctl.home.chmod(0o700)
    assert api.ask("GET", "/healthz")[0] == 200
