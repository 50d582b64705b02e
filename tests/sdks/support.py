"""What tests of SDKs stand on: the SDKs, mocks that nobody here wrote, and a daemon between them.

What must stay true: an SDK lives in a process of its own, which sees nothing of ours; every request that
reaches a mock has passed a relay that kept it; everything listens on loopback, and is stopped.
"""

import base64
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.scene import Scene
from tests.e2e.support import SECRET, Kbctl, new_home

HERE = Path(__file__).parent
OLD_SDKS = Path(os.environ.get("KBCTL_TEST_OLD_SDKS") or Path(sys.prefix) / "old-sdks")
NODE_SDKS = Path(os.environ.get("KBCTL_TEST_NODE") or HERE)
"""The folder whose ``node_modules`` holds what package.json asks for."""

ACCOUNT = "AC" + "5" * 32
VENDORS = ("stripe", "twilio", "resend", "openai", "anthropic")

CONFIG = """
[limits]
body_bytes = 65536
in_flight_per_key = 1
[upstream]
first_byte_s = 0.5
"""

OF_THE_CONNECTION = ("connection", "keep-alive", "transfer-encoding", "content-length")

OURS: dict[str, Any] = {
    "/v1/charges": {"id": "ch_1", "object": "charge", "amount": 1000, "currency": "usd", "captured": True}
    | {"amount_refunded": 0, "description": None},
    f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json": {"sid": "SM1", "num_segments": "1"},
    "/emails": {"id": "m_1"},
    "/v1/chat/completions": {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}
        ],
        "usage": {"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10},
    },
    "/v1/messages": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 8, "output_tokens": 2},
    },
}
"""What a relay says itself: as OpenAI and Anthropic, for whom there is no small mock, and without Node."""


def skip_unless(there: bool, reason: str) -> None:
    """Skip a test that lacks something; where everything must be there, fail it."""
    if not there:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def old_sdks() -> str:
    """The import path of the old SDKs for Python."""
    skip_unless(OLD_SDKS.is_dir(), f"no old SDKs in {OLD_SDKS}; the README's test command puts them there")
    return str(OLD_SDKS)


def has_node() -> bool:
    """Whether Node and its packages are here."""
    return shutil.which("node") is not None and (NODE_SDKS / "node_modules" / "emulate").is_dir()


def node_modules() -> Path:
    """The packages for Node."""
    skip_unless(has_node(), f"no node, or no packages in {NODE_SDKS}: npm ci --prefix tests/sdks")
    return NODE_SDKS / "node_modules"


@dataclass(frozen=True)
class Sdk:
    """One vendor's SDK for one language, the newest or an old one."""

    language: str
    vendor: str
    old: bool

    def __str__(self) -> str:
        return f"{self.language} {self.vendor}{' old' if self.old else ''}"


SDKS = [
    Sdk(language, vendor, old)
    for language, vendors in (("python", VENDORS), ("node", VENDORS[:3]))
    for vendor in vendors
    for old in (False, True)
]


def is_here(sdk: Sdk) -> bool:
    """Whether a test can have this SDK; where everything must be there, it has to."""
    there = has_node() if sdk.language == "node" else OLD_SDKS.is_dir() or not sdk.old
    return there or os.environ.get("CI") == "true"


class Agent:
    """A process that holds one SDK; see agent.py and agent.cjs."""

    def __init__(self, sdk: Sdk) -> None:
        self.sdk = sdk
        environment = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "ignore"}
        if sdk.language == "python":
            command = [sys.executable, "-P", str(HERE / "agent.py"), sdk.vendor]
            if sdk.old:
                environment["PYTHONPATH"] = old_sdks()
        else:
            package = node_modules() / (f"{sdk.vendor}-old" if sdk.old else sdk.vendor)
            command = ["node", str(HERE / "agent.cjs"), str(package), sdk.vendor]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def ask(self, call: str, key: str, url: str, **more: Any) -> None:
        """Have it make a call; ``answer`` tells what became of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"call": call, "key": key, "url": url, **more}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise AssertionError(self._errors.read())
        said: dict[str, Any] = json.loads(line)
        return said

    def close(self) -> None:
        self._process.communicate(timeout=20)
        self._errors.close()


@dataclass(frozen=True)
class Arrived:
    """One request as it came to a mock."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def secret(self) -> str:
        """The real key that came with it."""
        scheme, _, given = self.headers.get("authorization", "").partition(" ")
        if scheme == "Basic":
            return base64.b64decode(given).decode().partition(":")[2]
        return given or self.headers.get("x-api-key", "")


ASKED_BY_US = ("kbctl asked", "looked up by kbctl")
"""How the reasons of rows begin that are of what kbctl itself asked a vendor, whenever it is due."""


class Relay:
    """In front of a mock: keeps every request, passes it on, and can misbehave in the mock's place.

    Args:
        behind: the mocks' ports, by how a path begins; the first that fits is asked, without one ``OURS``.
    """

    def __init__(self, behind: dict[str, int]) -> None:
        self.arrived: list[Arrived] = []
        self.fault = ""
        self.may_answer = threading.Event()
        self.may_answer.set()
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                if headers.get("user-agent", "kbctl") != "kbctl":  # every SDK says who it is
                    relay.arrived.append(Arrived(self.command, self.path, headers, body))
                relay.may_answer.wait(20)
                if relay.fault:
                    self.close_connection = True
                    self.wfile.write(relay.misbehaviour())
                    return
                port = next((behind[root] for root in behind if self.path.startswith(root)), None)
                if port is None:
                    ours = json.dumps(OURS.get(self.path.partition("?")[0], {})).encode()
                    self.pass_on(200, [("Content-Type", "application/json")], ours)
                else:
                    mock = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                    mock.request(self.command, self.path, body or None, headers)
                    answer = mock.getresponse()
                    self.pass_on(answer.status, answer.getheaders(), answer.read())
                    mock.close()

            do_GET = do_POST = do_DELETE = do_PATCH = handle_request  # noqa: N815 - what the library calls

            def pass_on(self, status: int, fields: list[tuple[str, str]], body: bytes) -> None:
                self.send_response(status)
                for name, value in fields:
                    if name.lower() not in (
                        "connection",
                        "keep-alive",
                        "transfer-encoding",
                        "content-length",
                    ):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def misbehaviour(self) -> bytes:
        """What is said in place of an answer."""
        if self.fault == "upstream_timeout":
            time.sleep(0.8)  # longer than CONFIG lets the first byte take
        if self.fault == "upstream_invalid":
            return b"SSH-2.0-OpenSSH_9.2\r\n"
        if self.fault == "upstream_redirect":
            return b"HTTP/1.1 307 There\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
        if self.fault == "secret_reflected":
            said = b'{"error": {"message": "Invalid API Key provided: %b"}}' % SECRET.encode()
            return b"HTTP/1.1 401 No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
                len(said),
                said,
            )
        return b""

    def close(self) -> None:
        self.may_answer.set()
        self.server.shutdown()
        self.server.server_close()


Ports = dict[str, dict[str, int]]
"""Of the mocks of each vendor, by how a path begins."""


@contextmanager
def mocks() -> Iterator[Ports]:
    """What mocks.cjs starts."""
    process = subprocess.Popen(
        [
            "node",
            str(HERE / "mocks.cjs"),
            str(node_modules()),
            json.dumps({"account": ACCOUNT, "token": SECRET}),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert process.stdout is not None
    try:
        ports = json.loads(process.stdout.readline())
        yield {
            "stripe": {"/v1/payment_intents": ports["stripe"], "/": ports["charges"]},
            "twilio": {"/": ports["twilio"]},
            "resend": {"/": ports["resend"]},
        }
    finally:
        process.communicate(timeout=20)


class Street(Scene):
    """A daemon, a relay behind it for each vendor, and agents in front."""

    def __init__(self, kbctl: Kbctl, behind: Ports, config: str) -> None:
        self.relays = {vendor: Relay(behind.get(vendor, {})) for vendor in VENDORS}
        self.held: dict[Sdk, Agent] = {}
        urls = {vendor: relay.url for vendor, relay in self.relays.items()}
        super().__init__(kbctl, urls, config, fields={"twilio": {"account_sid": ACCOUNT}})

    def close_all(self) -> None:
        for agent in self.held.values():
            agent.close()
        for relay in self.relays.values():
            relay.close()

    def holder(self, sdk: Sdk) -> Agent:
        """Who holds this SDK; started at its first use."""
        if sdk not in self.held:
            self.held[sdk] = Agent(sdk)
        return self.held[sdk]

    def call(self, sdk: Sdk, key: str, call: str = "pay", **more: Any) -> dict[str, Any]:
        """Make one call with this SDK; what became of it."""
        holder = self.holder(sdk)
        holder.ask(call, key, self.url, **more)
        return holder.answer()

    def key_for(self, vendor: str, **terms: Any) -> str:
        """A vault key for this vendor alone."""
        return str(self.issue(vendors=[vendor], **terms)["vault_key"])

    def newest(self, since: str = "") -> list[dict[str, Any]]:
        """The agents' rows after that one, oldest first; without one, the last alone."""
        rows = self.done("GET", "/audit", limit="100")
        rows = [row for row in rows if not (row["reason"] or "").startswith(ASKED_BY_US)]
        rows = rows if since else rows[:1]
        ids = [row["call_id"] for row in rows]
        assert not since or since in ids, "more rows than this looks at"
        return list(reversed(rows[: ids.index(since)] if since else rows))


@contextmanager
def street(behind: Ports, config: str = CONFIG) -> Iterator[Street]:
    with new_home() as kbctl, Street(kbctl, behind, config) as made:
        try:
            yield made
        finally:
            made.close_all()
