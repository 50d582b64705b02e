"""Streams through a real daemon, read by the unmodified SDKs: what ends one early, and two vendors, one cap.

Old SDKs are driven too where they are installed, as for ``tests/sdks``.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib import resources
from socket import socket
from typing import Any, NamedTuple

import pytest

from tests.e2e.support import SECRET as STRIPE_SECRET
from tests.e2e.support import Agents, Kbctl, new_home, pretend_stripe
from tests.e2e.test_llm_sdks import (
    CHAT,
    CHAT_EVENTS,
    MESSAGE_EVENTS,
    OPENAI_AGENT,
    OPENAI_SECRET,
    Model,
    Served,
    served_model,
)
from tests.sdks.support import OLD_SDKS

# Says a line when the first event has come, and then how the stream ended.
OPENAI_STREAM = """
import json, sys
import openai

client = openai.OpenAI(api_key=sys.argv[1], base_url=sys.argv[2] + "/openai/v1")
try:
    if sys.argv[3] == "responses":
        events = client.responses.create(model="gpt-4o-mini", input="hi", max_output_tokens=100, stream=True)
    else:
        hi = [{"role": "user", "content": "hi"}]
        events = client.chat.completions.create(model="gpt-4o-mini", messages=hi, max_tokens=100, stream=True)
    for event in events:
        print("begun", flush=True)
    print(json.dumps({"kind": "", "error": "it ended well"}))
except openai.APIError as error:
    print(json.dumps({"kind": type(error).__name__, "error": str(error), "code": error.code}))
"""
ANTHROPIC_STREAM = """
import json, sys
import anthropic

client = anthropic.Anthropic(api_key=sys.argv[1], base_url=sys.argv[2] + "/anthropic")
hi = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
try:
    with client.messages.stream(**hi) as events:
        for event in events:
            print("begun", flush=True)
    print(json.dumps({"kind": "", "error": "it ended well"}))
except anthropic.APIError as error:
    print(json.dumps({"kind": type(error).__name__, "error": str(error)}))
"""


class Halting(Model):
    """Begins a stream, sends half of an event, and then does as it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.then = ""

    def serve(self, connection: socket) -> None:
        while True:
            path = self.listen(connection)
            if path is None:
                return
            begun: dict[str, Any] = CHAT_EVENTS[0]
            if path == "/v1/messages":
                begun = MESSAGE_EVENTS[0]
            elif path == "/v1/responses":
                begun = {"type": "response.output_text.delta", "delta": "hel", "sequence_number": 1}
                begun |= {"item_id": "m", "output_index": 0, "content_index": 0, "logprobs": []}
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            self.say(connection, self.event(begun) + b'data: {"half of an ev')
            if self.then == "secret":
                self.say(connection, OPENAI_SECRET.encode() + b'"}\n\n')
            if self.then != "break":
                connection.recv(1)  # until the daemon hangs up
            return

    def listen(self, connection: socket) -> str | None:
        raw = b""
        while b"\r\n\r\n" not in raw:
            piece = connection.recv(65536)
            if not piece:
                return None
            raw += piece
        head, _, body = raw.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        path = head.split()[1].decode()
        self.heard.append((path, {}, json.loads(body)))
        return path

    @staticmethod
    def event(said: dict[str, Any]) -> bytes:
        head = f"event: {said['type']}\n" if "type" in said else ""
        return f"{head}data: {json.dumps(said)}\n\n".encode()

    @staticmethod
    def say(connection: socket, data: bytes) -> None:
        connection.sendall(b"%x\r\n%b\r\n" % (len(data), data))


def agents(served: Served) -> Iterator[tuple[str, str, "subprocess.Popen[str]"]]:
    """Start one of each SDK and API at once: the vendor, its key, and the process."""
    for vendor, script, apis in (
        ("openai", OPENAI_STREAM, ("chat", "responses")),
        ("anthropic", ANTHROPIC_STREAM, ("messages",)),
    ):
        for sdk in [None, *([OLD_SDKS] if OLD_SDKS.is_dir() else [])]:
            for api in apis:
                key = served.key(vendor, "--cap", "1")
                environment = {"PATH": os.environ["PATH"], "HOME": str(served.kbctl.home)}
                if sdk is not None:
                    environment["PYTHONPATH"] = str(sdk)
                yield (
                    vendor,
                    key,
                    subprocess.Popen(
                        [sys.executable, "-c", script, key, served.proxy, api],
                        stdout=subprocess.PIPE,
                        text=True,
                        env=environment,
                    ),
                )


@pytest.mark.parametrize("ends", ["key_revoked", "shutting_down", "upstream_invalid", "upstream_timeout"])
def test_what_ends_a_stream_raises_in_each_sdk_with_its_code_and_is_not_retried(ends: str) -> None:
    model = Halting()
    model.then = "break" if ends == "upstream_invalid" else ""
    config = "[upstream]\nstream_silence_s = 1\n" if ends == "upstream_timeout" else ""
    with served_model(model, config) as served:
        started = list(agents(served))
        for _, _, agent in started:
            assert agent.stdout is not None
            assert agent.stdout.readline() == "begun\n"
        if ends == "key_revoked":
            assert served.kbctl.json("revoke", "--tenant", "acme", "--abort", "--yes")["aborted"] == len(
                started
            )
        elif ends == "shutting_down":
            served.kbctl("down")
        for vendor, _, agent in started:
            *_, last = agent.communicate()[0].splitlines()  # with what readline has buffered
            said = json.loads(last)
            assert said["kind"] == ("APIStatusError" if vendor == "anthropic" else "APIError"), said
            assert f"{ends}: " in said["error"]
            assert said.get("code", ends) == ends
        assert len(model.heard) == len(started)
        if ends != "shutting_down":
            for row in served.rows():
                told = (row["outcome"], row["status"], row["policy_check_result"])
                assert told == ("unknown", 200, "allowed")


def test_the_secret_in_a_stream_raises_in_the_sdk_and_never_reaches_it() -> None:
    model = Halting()
    model.then = "secret"
    with served_model(model) as served:
        key = served.key("openai", "--cap", "1")
        done = subprocess.run(
            [sys.executable, "-c", OPENAI_STREAM, key, served.proxy, "chat"],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": str(served.kbctl.home)},
        )
        said = json.loads(done.stdout.splitlines()[-1])
        assert said["code"] == "secret_reflected"
        assert OPENAI_SECRET not in done.stdout + done.stderr
        assert len(model.heard) == 1


# --- one key, several vendors -------------------------------------------------------------------------

STRIPE_AGENT = """
import json, sys
import stripe

for line in sys.stdin:
    stripe.api_key, stripe.api_base, amount = json.loads(line)
    try:
        intent = stripe.PaymentIntent.create(amount=int(amount), currency="usd")
        told = {"status": intent.status}
    except stripe.StripeError as error:
        told = {"kind": type(error).__name__, "error": str(error)}
    print(json.dumps(told), flush=True)
"""


class Both(NamedTuple):
    kbctl: Kbctl
    proxy: str
    model: Model
    ask: Agents


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    """A daemon in front of Stripe and OpenAI."""
    model = Model()
    try:
        with new_home() as kbctl, pretend_stripe(kbctl.home) as stripe:
            upstreams = (f"openai=http://127.0.0.1:{model.port}", f"stripe={stripe.url}")
            kbctl("up", "--port", "0", "--upstream", upstreams[0], "--upstream", upstreams[1])
            kbctl("credential", "set", "openai", stdin=OPENAI_SECRET + "\n")
            kbctl("credential", "set", "stripe", stdin=STRIPE_SECRET + "\n")
            with closing(Agents(kbctl.home)) as ask:
                yield Both(kbctl, str(kbctl.json("status")["proxy_url"]), model, ask)
    finally:
        model.close()


def test_one_key_spends_one_cap_at_stripe_and_openai(both: Both) -> None:
    kbctl, proxy, model, ask = both
    key = kbctl("issue", "--tenant", "acme", "--cap", "5").strip()
    assert ask(STRIPE_AGENT, key, f"{proxy}/stripe", "499")["status"]
    for what in ("chat", "stream"):
        said = ask(OPENAI_AGENT, key, f"{proxy}/openai/v1", what, "gpt-4o-mini", "bounded")
        assert said == {"text": "hello"}
    shown = kbctl.json("show", key)
    assert shown["spent_usd"] == pytest.approx(4.99 + 2 * 0.0000024, abs=1e-12)
    assert shown["held_usd"] == 0

    refused = ask(STRIPE_AGENT, key, f"{proxy}/stripe", "1")
    assert refused["kind"] == "RateLimitError", "one cent is left, less what OpenAI took"
    assert "cap_exhausted" in refused["error"]
    small = kbctl("issue", "--tenant", "acme", "--cap", "0.50").strip()
    assert ask(STRIPE_AGENT, small, f"{proxy}/stripe", "50")["status"]
    heard = len(model.heard)
    refused = ask(OPENAI_AGENT, small, f"{proxy}/openai/v1", "chat", "gpt-4o-mini", "bounded")
    assert (refused["kind"], "cap_exhausted" in refused["error"]) == ("RateLimitError", True)
    assert len(model.heard) == heard


def test_without_a_prefix_a_key_of_two_vendors_is_refused_and_told_how_to_name_one(
    both: Both,
) -> None:
    """Both have their operations under /v1/: nothing is guessed, and each vendor's SDK reads the refusal."""
    kbctl, proxy, model, ask = both
    key = kbctl("issue", "--tenant", "acme", "--cap", "5").strip()
    heard = len(model.heard)
    said = ask(OPENAI_AGENT, key, f"{proxy}/v1", "chat", "gpt-4o-mini", "bounded")
    assert (said["kind"], "ambiguous_request" in said["error"]) == ("BadRequestError", True)
    assert "put the vendor in front of the path" in said["error"]
    said = ask(STRIPE_AGENT, key, proxy, "1")
    assert (said["kind"], "ambiguous_request" in said["error"]) == ("InvalidRequestError", True)
    assert len(model.heard) == heard
    only = kbctl("issue", "--tenant", "acme", "--vendor", "openai", "--cap", "5").strip()
    assert ask(OPENAI_AGENT, only, f"{proxy}/v1", "chat", "gpt-4o-mini", "bounded") == {"text": "hello"}


# --- a server of one's own ----------------------------------------------------------------------------


class Tiered(Model):
    """A server of one's own whose answers name a tier that no vendor of the table has."""

    def _answer(self, path: str, body: dict[str, Any]) -> bytes:
        if body.get("stream"):
            return super()._answer(path, body)
        said = json.dumps({**CHAT, "service_tier": "on_demand"})
        return (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(said)}\r\n\r\n{said}"
        ).encode()


def test_a_server_that_speaks_as_openai_does_is_one_file_with_a_price() -> None:
    """The one that is explained beside the vendor files."""
    model = Tiered()
    try:
        with new_home() as kbctl, closing(Agents(kbctl.home)) as ask:
            (kbctl.home / "vendors").mkdir(mode=0o700)
            file = kbctl.home / "vendors" / "mine.toml"
            readme = (resources.files("kbctld") / "vendors" / "README.md").read_text(encoding="utf-8")
            file.write_text(readme.partition("# vendors/mine.toml\n")[2].partition("```")[0])
            file.chmod(0o600)
            kbctl("up", "--port", "0", "--upstream", f"mine=http://127.0.0.1:{model.port}")
            kbctl("vendor", "check", str(file))
            kbctl("credential", "set", "mine", stdin="secret-of-mine-0123456789\n")
            proxy = str(kbctl.json("status")["proxy_url"])
            key = kbctl("issue", "--tenant", "acme", "--vendor", "mine", "--cap", "1").strip()
            for base in ("/mine/v1", "/mine", "/v1"):
                for what in ("chat", "stream"):
                    said = ask(OPENAI_AGENT, key, proxy + base, what, "llama-3.3-70b", "bounded")
                    assert said == {"text": "hello"}
            said = ask(OPENAI_AGENT, key, f"{proxy}/mine/v1", "chat", "mistral", "bounded")
            assert (said["kind"], "amount_unknown" in said["error"]) == ("BadRequestError", True)
            shown = kbctl.json("show", key)
            assert (shown["status"], shown["held_usd"]) == ("active", 0)
            assert shown["spent_usd"] == pytest.approx(6 * (8 * 0.05 + 2 * 0.08) / 1e6, abs=1e-12)
    finally:
        model.close()
