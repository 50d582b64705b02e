"""What the tests of the command line speak of: canned replies, and a server that records its requests."""

import itertools
import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from kbctl import wire

VAULT_KEY = "vault_key_" + "Ab3" * 16 + "Z"
TOKEN = "kbo_" + "Cd4" * 14
PROXY = "http://127.0.0.1:4815"


@dataclass(frozen=True)
class Asked:
    """One request that arrived."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    body: Any
    headers: Mapping[str, str]
    connection: int = 0
    """The same for requests that came on one connection."""

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Answer:
    """What is replied: a wire struct or raw bytes."""

    message: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return self.message if isinstance(self.message, bytes) else wire.encode(self.message)


class PretendDaemon:
    """Answers each request with the next canned reply for it, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._answers: dict[str, list[Answer]] = {}

    def on(self, line: str, message: Any = b"", status: int = 200, **headers: str) -> None:
        """Reply so to ``METHOD /path``; several replies come in turn, the last one for ever."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._answers.setdefault(line, []).append(Answer(message, status, named))

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        left = self._answers.get(asked.line)
        if not left:
            return Answer(refusal("not_canned", f"no canned reply for {asked.line}"), 500)
        return left.pop(0) if len(left) > 1 else left[0]

    @property
    def only(self) -> Asked:
        assert len(self.asked) == 1, self.asked
        return self.asked[0]


def _handler(daemon: PretendDaemon) -> type[BaseHTTPRequestHandler]:
    connections = itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def setup(self) -> None:
            super().setup()
            self.number = next(connections)

        def respond(self) -> None:
            split = urlsplit(self.path)
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            answer = daemon.answer(
                Asked(
                    method=self.command,
                    path=split.path,
                    query=tuple(parse_qsl(split.query, keep_blank_values=True)),
                    body=json.loads(content, parse_float=Decimal) if content else None,
                    headers={name.lower(): value for name, value in self.headers.items()},
                    connection=self.number,
                )
            )
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = do_DELETE = respond  # noqa: N815  # the base class names them so

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it so
            pass

        def address_string(self) -> str:
            return "unix"

    return Handler


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = False
    block_on_close = True  # no thread of one test lives on in the next


class _TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = False
    block_on_close = True


@contextmanager
def _running(server: socketserver.BaseServer) -> Iterator[None]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serving(socket: Path, daemon: PretendDaemon) -> Iterator[None]:
    """The daemon, on a real socket."""
    with _running(_UnixServer(str(socket), _handler(daemon))):
        yield


@contextmanager
def serving_tcp(daemon: PretendDaemon) -> Iterator[str]:
    """The daemon, or the proxy, on a port of its own: gives its URL."""
    server = _TcpServer(("127.0.0.1", 0), _handler(daemon))
    with _running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"


def refusal(code: str, message: str, remedy: str = "") -> wire.ErrorReply:
    return wire.ErrorReply(error=wire.ErrorBody(code=code, message=message, remedy=remedy))


def status(**changes: Any) -> wire.Status:
    plain: dict[str, Any] = {
        "version": "0.1.0",
        "pid": 4242,
        "home": "/home/ada/.local/share/kbctl",
        "socket": "/home/ada/.local/share/kbctl/kbctl.sock",
        "proxy_url": PROXY,
        "database": "/home/ada/.local/share/kbctl/kbctl.db",
        "sandbox": False,
        "keyring": "OS keyring (Secret Service)",
        "upstreams": [],
        "state": "serving",
        "started_at": "2026-11-21T04:12:00.123456Z",
        "keys_active": 0,
        "credentials": [],
        "in_flight": 0,
        "unknown_calls": 0,
        "unknown_usd": Decimal(0),
        "notices": [],
    }
    return wire.Status(**(plain | changes))


def credential(**changes: Any) -> wire.Credential:
    plain: dict[str, Any] = {
        "name": "stripe",
        "vendor": "stripe",
        "version": 1,
        "set_at": "2026-11-20T10:00:00Z",
        "available": True,
        "problem": None,
    }
    return wire.Credential(**(plain | changes))


def _key_fields(changes: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "key_id": "vk_3f9c2a7d10",
        "status": "active",
        "tenant": "acme",
        "vendors": ["stripe"],
        "daily_usd_cap": Decimal(500),
        "total_usd_cap": None,
        "call_usd_cap": None,
        "allowed_endpoints": None,
        "denied_endpoints": [],
        "agent_run_label": "tenant:acme",
        "metadata": {"tenant_id": "acme"},
        "credential": None,
        "created_at": "2026-11-21T04:12:00Z",
        "expires_at": "2126-11-22T04:12:00Z",
        "revoked_at": None,
        "ending": "Ab3Z",
        "spent_usd": Decimal(360),
        "held_usd": Decimal(120),
        "total_spent_usd": Decimal(360),
        "total_held_usd": Decimal(120),
    }
    return plain | dict(changes)


def key(**changes: Any) -> wire.Key:
    return wire.Key(**_key_fields(changes))


def issued(**changes: Any) -> wire.IssuedKey:
    return wire.IssuedKey(vault_key=VAULT_KEY, proxy_url=PROXY, **_key_fields(changes))


def call(**changes: Any) -> wire.Call:
    plain: dict[str, Any] = {
        "timestamp": "2026-11-20T09:30:00.000001Z",
        "call_id": "call_1",
        "vault_key_id": "vk_3f9c2a7d10",
        "parent_key_id": None,
        "tenant": "acme",
        "vendor": "stripe",
        "operation": "payment_intents.create",
        "method": "POST",
        "endpoint": "/v1/payment_intents",
        "amount_usd": Decimal(120),
        "requested_usd": Decimal(120),
        "currency": "usd",
        "amount_minor": 12000,
        "status": 200,
        "outcome": "posted",
        "replay_of": None,
        "policy_check_result": "allowed",
        "reason": None,
        "vendor_request_id": "req_1",
        "stripe_request_id": "req_1",
        "idempotency_key": "vk-1",
        "agent_run_label": "tenant:acme",
        "metadata": {"tenant_id": "acme"},
        "cap_usage_after_usd": Decimal(120),
        "latency_ms": 12.5,
        "upstream_ms": 11.0,
        "upstream": None,
        "folded": 0,
    }
    return wire.Call(**(plain | changes))


def denied(**changes: Any) -> wire.Call:
    return call(
        **{
            "call_id": "call_2",
            "amount_usd": Decimal(0),
            "status": 429,
            "outcome": "refused",
            "policy_check_result": "cap_exhausted",
            "reason": "daily cap of $500.00 reached, resets 2026-11-22T00:00:00Z",
        }
        | changes
    )


def revocation(**changes: Any) -> wire.RevokeReply:
    plain: dict[str, Any] = {
        "revoked": [key(status="revoked", revoked_at="2026-11-21T05:00:00Z")],
        "already": [],
        "in_flight": 2,
        "in_flight_usd": Decimal(240),
    }
    return wire.RevokeReply(**(plain | changes))


def tenant(**changes: Any) -> wire.Tenant:
    plain: dict[str, Any] = {
        "tenant": "acme",
        "daily_usd_cap": Decimal(2000),
        "total_usd_cap": None,
        "call_usd_cap": None,
        "daily_requests": 1000,
        "rate": "5/s",
        "spent_usd": Decimal(1500),
        "held_usd": Decimal("120.50"),
        "total_spent_usd": Decimal(9000),
        "total_held_usd": Decimal("120.50"),
        "requests_today": 42,
        "keys_active": 3,
    }
    return wire.Tenant(**(plain | changes))


def _token_fields(changes: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "token_id": "tok_5dQ2",
        "scope": "issue",
        "note": "billing",
        "created_at": "2026-11-21T04:12:00Z",
        "expires_at": "2126-12-21T04:12:00Z",
        "revoked_at": None,
    }
    return plain | dict(changes)


def token(**changes: Any) -> wire.Token:
    return wire.Token(**_token_fields(changes))


def created_token(**changes: Any) -> wire.CreatedToken:
    return wire.CreatedToken(token=TOKEN, **_token_fields(changes))


def policy(**changes: Any) -> wire.Policy:
    plain: dict[str, Any] = {"name": "free", "daily_usd_cap": Decimal(5), "rate": "1/s"}
    return wire.Policy(**(plain | changes))


def policy_change(**changes: Any) -> wire.PolicyChange:
    plain: dict[str, Any] = {
        "name": "free",
        "action": "change",
        "fields": {
            "daily_usd_cap": [5, Decimal("7.50")],
            "allowed_endpoints": [["GET /v1/a", "GET /v1/b"], ["GET /v1/b", "GET /v1/c"]],
            "rate": ["1/s", None],
        },
        "live_keys": 3,
    }
    return wire.PolicyChange(**(plain | changes))


def policy_changes(*changes: wire.PolicyChange, **more: Any) -> wire.PolicyChanges:
    plain: dict[str, Any] = {"applied": True, "keys_changed": []}
    return wire.PolicyChanges(changes=list(changes or (policy_change(),)), **(plain | more))


def spent(**changes: Any) -> wire.Spend:
    plain: dict[str, Any] = {
        "key": "vk_3f9c2a7d10",
        "calls": 1234,
        "refused": 7,
        "spent_usd": Decimal(360),
        "held_usd": Decimal(120),
        "cap_usd": Decimal(500),
    }
    return wire.Spend(**(plain | changes))


def change(**changes: Any) -> wire.Change:
    plain: dict[str, Any] = {
        "timestamp": "2026-11-20T09:30:00.000001Z",
        "actor": "uid 1000",
        "action": "key.revoke",
        "subject": "vk_3f9c2a7d10",
        "details": {"in_flight": 2, "usd": Decimal("240.10")},
    }
    return wire.Change(**(plain | changes))


def vendor(**changes: Any) -> wire.Vendor:
    plain: dict[str, Any] = {
        "name": "stripe",
        "title": "Stripe",
        "origin": "https://api.stripe.com",
        "docs": "https://docs.stripe.com/api",
        "operations": 120,
        "credentials": ["stripe", "stripe:eu"],
    }
    return wire.Vendor(**(plain | changes))


def vendor_detail(**changes: Any) -> wire.VendorDetail:
    plain: dict[str, Any] = {
        "name": "stripe",
        "title": "Stripe",
        "origin": "https://api.stripe.com",
        "docs": "https://docs.stripe.com/api",
        "roots": ["/v1/"],
        "account_headers": ["stripe-account"],
        "operations": [
            operation(),
            operation(name="accounts.create", match="POST /v1/accounts", cost="free", privileged=True),
        ],
        "credentials": [],
    }
    return wire.VendorDetail(**(plain | changes))


def operation(**changes: Any) -> wire.VendorOperation:
    plain: dict[str, Any] = {
        "name": "payment_intents.create",
        "match": "POST /v1/payment_intents",
        "cost": "amount in currency",
        "privileged": False,
        "stamps": True,
    }
    return wire.VendorOperation(**(plain | changes))


def findings(*found: wire.VendorFinding) -> wire.VendorFindings:
    return wire.VendorFindings(name="acme", operations=12, examples=4, findings=list(found))


def price(**changes: Any) -> wire.VendorPrice:
    fields = {
        "of": "a segment to US",
        "usd": Decimal("0.0145"),
        "per": "segment",
        "source": "https://twilio.test/pricing",
        "dated": "2026-11-21",
        "yours": False,
        "stale": False,
    }
    return wire.VendorPrice(**{**fields, **changes})


def prices(*found: wire.VendorPrice, vendor: str = "twilio") -> wire.VendorPrices:
    return wire.VendorPrices(vendor=vendor, prices=list(found), stale_days=180)


def difference(**changes: Any) -> wire.Difference:
    plain: dict[str, Any] = {
        "what": "differs",
        "timestamp": "2026-11-20T09:30:00.000000Z",
        "kind": "refund.created",
        "call_id": "call_7Qm2Zc4Rk9TtB1xA",
        "outcome": "posted",
        "object_id": "re_1",
        "request_id": "req_1",
        "here_usd": Decimal(20),
        "vendor_usd": Decimal("25.50"),
        "currency": "USD",
        "here_minor": 2000,
        "vendor_minor": 2550,
    }
    return wire.Difference(**(plain | changes))


def reconciliation(*found: wire.Difference) -> wire.Reconciliation:
    return wire.Reconciliation(
        vendor="stripe",
        credential="stripe",
        start="2026-11-20T00:00:00.000000Z",
        end="2026-11-21T00:00:00.000000Z",
        agree=1204,
        elsewhere_usd=Decimal(77),
        absent_usd=Decimal(20),
        differences=list(found),
    )


def rates(**changes: Any) -> wire.CurrencyRates:
    fields = {
        "currency": "JPY",
        "usd": Decimal("0.0067"),
        "minor_digits": 0,
        "source": "European Central Bank",
        "dated": "2026-10-30",
        "yours": False,
        "stale": False,
    }
    return wire.CurrencyRates(rates=[wire.CurrencyRate(**{**fields, **changes})], stale_days=45)
