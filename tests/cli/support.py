"""What the tests of the command line speak of: canned replies, and a server that records its requests."""

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
PROXY = "http://127.0.0.1:4815"


@dataclass(frozen=True)
class Asked:
    """One request that arrived."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    body: Any
    headers: Mapping[str, str]

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


@contextmanager
def serving(socket: Path, daemon: PretendDaemon) -> Iterator[None]:
    """The daemon, on a real socket."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

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

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = False
        block_on_close = True  # no thread of one test lives on in the next

    with Server(str(socket), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


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
