"""A stage for the tests of keys: a daemon, vendors that remember every byte, agents that stay connected.

What must stay true: an agent's connection is never replaced behind a test's back; a vendor remembers a
request before it answers it; waiting is for an event, with an end.
"""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode

import httpx

from tests.e2e.support import SECRET, Kbctl, RawVendor, new_home, post

Fields = dict[str, dict[str, str]]
CHARGES = "/stripe/v1/payment_intents"
PLAIN = "amount=100&currency=usd&customer=cus_1"
FORM = "application/x-www-form-urlencoded"

MAIL = """
schema = 1
name = "mail"
title = "Mail"
docs = "https://example.com"
origin = "https://api.example.com"
body = "form"
error_shape = "stripe"
request_id_header = "X-Request-Id"
metadata_field = "metadata"
roots = ["/v1/"]
forward_headers = ["content-type"]
auth = { scheme = "bearer" }
[[operation]]
name = "mails.send"
match = "POST /v1/mails"
cost = { kind = "amount", amount = "price", currency = "currency" }
"""
"""A vendor of the user's own, whose calls cost what they say."""


def until(condition: Callable[[], object], within_s: float = 20) -> None:
    """Wait until something is so; that it never is fails the test."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


@dataclass(frozen=True)
class Arrived:
    """One request as the vendor read it."""

    line: str
    headers: dict[str, str]
    body: bytes
    at: float
    """When its last byte was there, ``time.monotonic()``."""

    @property
    def form(self) -> dict[str, str]:
        """Its fields; one that stands twice fails the test."""
        pairs = parse_qsl(self.body.decode(), keep_blank_values=True, strict_parsing=bool(self.body))
        assert len(dict(pairs)) == len(pairs), pairs
        return dict(pairs)


class RecordingVendor(RawVendor):
    """Remembers every request, then answers 200 with an object, once it may."""

    def __init__(self) -> None:
        self.arrived: list[Arrived] = []
        self.answers: list[dict[str, Any]] = []
        """What the next answers say instead of the usual; the first comes first."""
        self.may_answer = threading.Event()
        self.may_answer.set()
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, connection: socket.socket) -> None:
        reader = connection.makefile("rb")
        while line := reader.readline():
            headers = {}
            while (field := reader.readline()) not in (b"\r\n", b""):
                name, _, value = field.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            body = reader.read(int(headers.get("content-length", "0")))
            self.arrived.append(Arrived(line.decode("latin-1").strip(), headers, body, time.monotonic()))
            answer = self.answers.pop(0) if self.answers else {"id": f"obj_{len(self.arrived)}"}
            self.may_answer.wait(30)
            text = json.dumps(answer).encode()
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(text), text)
            )


class Agent:
    """Who holds a vault key: one kept-alive connection, never opened a second time."""

    def __init__(self, port: int, key: str) -> None:
        self.key = key
        self.http = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.http.connect()
        self.http.auto_open = 0

    def ask(
        self, method: str, path: str, body: str = "", kind: str = FORM, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """One call: status and JSON."""
        fields = {"Authorization": f"Bearer {self.key}", **headers}
        if body:
            fields["Content-Type"] = kind
        self.http.request(method, path, body or None, fields)
        answer = self.http.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")

    def charge(self, cents: int = 100, **fields: str) -> str:
        """A charge of US cents: ``allowed``, or the code of what refused it."""
        form = {"amount": str(cents), "currency": "usd", "customer": "cus_1", **fields}
        return said(self.ask("POST", CHARGES, urlencode(form)))


def said(answer: tuple[int, dict[str, Any]]) -> str:
    """``allowed``, or the refusal's code; a code that the message does not start with fails the test."""
    status, body = answer
    if status == 200:
        return "allowed"
    error = body["error"]
    if "kbctl" in error or "type" in error:  # as a vendor's error: the text is what SDKs show
        assert error["message"].startswith(f"{error['code']}:"), error
    return str(error["code"])


class Scene:
    """A daemon and whoever is around it.

    Args:
        kbctl: an empty home.
        upstreams: where each vendor is; ``mail`` brings its own vendor file.
        config: the text of config.toml.
        fields: what a vendor's credentials have beside the secret.
    """

    def __init__(
        self, kbctl: Kbctl, upstreams: dict[str, str], config: str = "", fields: Fields | None = None
    ) -> None:
        self.kbctl = kbctl
        self.upstreams = [f"{name}={url}" for name, url in upstreams.items()]
        place(kbctl, "config.toml", config)
        if "mail" in upstreams:
            place(kbctl, "vendors/mail.toml", MAIL)
        self.http: httpx.Client | None = None
        self.agents: list[Agent] = []
        self.port = 0
        self.up()
        self.fields = fields or {}
        for name in upstreams:
            self.set_credential(name)

    def up(self) -> None:
        """Start the daemon, on the port of before where there was one."""
        flags = [word for text in self.upstreams for word in ("--upstream", text)]
        self.kbctl("up", "--port", str(self.port), *flags)
        status = self.kbctl.json("status")
        self.port = int(status["proxy_url"].rpartition(":")[2])
        self.url = status["proxy_url"]
        self.database = status["database"]
        self.close()
        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=status["socket"]), base_url="http://localhost", timeout=30
        )

    def close(self) -> None:
        """Hang up: the operator and every agent."""
        if self.http is not None:
            self.http.close()
        while self.agents:
            self.agents.pop().http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the operator ------------------------------------------------------------------------------

    def set_credential(self, name: str) -> None:
        """Give a vendor its real secret, under its name or one such as ``stripe:acme``."""
        fields = self.fields.get(name.partition(":")[0], {})
        self.done("PUT", f"/credentials/{name}", {"secret": SECRET, "fields": fields})

    def operate(self, method: str, path: str, body: Any = None, **query: str) -> tuple[int, Any]:
        """Ask the operator API."""
        assert self.http is not None
        answer = self.http.request(method, path, json=body, params=query or None)
        return answer.status_code, answer.json() if answer.content else None

    def done(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """The same, where it must succeed."""
        status, answer = self.operate(method, path, body, **query)
        assert status < 300, answer
        return answer

    def issue(self, **terms: Any) -> dict[str, Any]:
        return dict(self.done("POST", "/vault/keys", {"daily_usd_cap": 1000, **terms}))

    def key(self, key: dict[str, Any]) -> dict[str, Any]:
        """A key as it is now."""
        return dict(self.done("GET", f"/vault/keys/{key['key_id']}"))

    def rows(self, **query: str) -> list[dict[str, Any]]:
        """The audit, newest first."""
        return list(self.done("GET", "/audit", limit="1000", **query))

    # --- agents ------------------------------------------------------------------------------------

    def agent(self, key: dict[str, Any]) -> Agent:
        """Its holder, connected."""
        self.agents.append(Agent(self.port, key["vault_key"]))
        return self.agents[-1]

    def derive(self, parent: dict[str, Any], **terms: Any) -> tuple[int, dict[str, Any]]:
        """An agent asks for a child of its key: no operator, no token."""
        return self.unasked("POST", "/vault_keys", {"parent_vault_key": parent["vault_key"], **terms})

    def child(self, parent: dict[str, Any], **terms: Any) -> dict[str, Any]:
        """The same, where it must succeed."""
        status, answer = self.derive(parent, **terms)
        assert status == 201, answer
        return answer

    def unasked(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
        """A request to the proxy port by somebody without a token."""
        with httpx.Client(trust_env=False, timeout=30) as nobody:
            answer = nobody.request(method, f"{self.url}{path}", json=body, headers=headers)
        return answer.status_code, answer.json() if answer.content else {}

    def storm(self, keys: Iterable[dict[str, Any]], cents: int = 100) -> list[str]:
        """A charge by each of these keys, all at once; what became of each."""

        async def all_at_once() -> list[tuple[int, dict[str, Any]]]:
            body = f"amount={cents}&currency=usd&customer=cus_1"
            calls = [post(self.port, CHARGES, key["vault_key"], body, f"s{n}") for n, key in enumerate(keys)]
            return await asyncio.gather(*calls)

        return [said(answer) for answer in asyncio.run(all_at_once())]


class Stage(Scene):
    """A daemon before two vendors that remember all they are sent: Stripe, and one of the user's own."""

    def __init__(self, kbctl: Kbctl, config: str) -> None:
        self.stripe, self.mail = RecordingVendor(), RecordingVendor()
        super().__init__(kbctl, {"stripe": self.stripe.url, "mail": self.mail.url}, config)

    def close_vendors(self) -> None:
        self.stripe.close()
        self.mail.close()

    def restart(self) -> None:
        self.close()
        self.kbctl("down")
        self.up()

    def changes(self, subject: str) -> list[dict[str, Any]]:
        """What was changed of a key or a policy, newest first."""
        return list(self.done("GET", "/changes", subject=subject))

    def error(self, *args: str, status: int) -> str:
        """What a command says when it fails so."""
        before = len(self.kbctl.said)
        self.kbctl(*args, status=status)
        return self.kbctl.said[before:]


@contextmanager
def staged(config: str = "") -> Iterator[Stage]:
    with new_home() as kbctl, Stage(kbctl, config) as made:
        yield made
        made.close_vendors()


def place(kbctl: Kbctl, name: str, text: str) -> None:
    """Put a file of the owner's into the home."""
    path = kbctl.home / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
