"""The unmodified SDKs of Resend and Twilio through the proxy: what passes, and what each refusal raises."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.e2e.support import SECRET, Kbctl

ACCOUNT = "AC" + "5" * 32
ALIAS = "AC" + "0" * 32


class Upstream:
    """Pretend vendors on loopback: they record every request, and answer from a table."""

    def __init__(self) -> None:
        self.arrived: list[dict[str, Any]] = []
        self.answers: dict[str, tuple[int, Any]] = {}
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                upstream.arrived.append(
                    {
                        "method": self.command,
                        "path": self.path,
                        "authorization": self.headers.get("Authorization"),
                        "body": raw.decode(),
                        "agent": self.headers.get("User-Agent"),
                    }
                )
                status, said = upstream.answers.get(
                    self.path.partition("?")[0], (200, {"id": "m_1", "data": []})
                )
                if callable(said):
                    said = said(self.path)
                body = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer  # noqa: N815 - what the library calls

            def log_message(self, *_args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """Both vendors on one port."""
    made = Upstream()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()


@pytest.fixture
def up(home: Kbctl, upstream: Upstream) -> Kbctl:
    """A daemon in front of them, with both credentials set."""
    home("up", "--port", "0", "--upstream", f"twilio={upstream.url}", "--upstream", f"resend={upstream.url}")
    home("credential", "set", "resend", stdin=SECRET + "\n")
    home("credential", "set", "twilio", "--field", f"account_sid={ACCOUNT}", stdin=SECRET + "\n")
    return home


def agent(kbctl: Kbctl, script: str, *args: str) -> dict[str, Any]:
    """Run a program of an agent; what it reports."""
    done = subprocess.run(
        [sys.executable, "-c", script, kbctl.json("status")["proxy_url"], *args],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(kbctl.home)},
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


RESEND = """
import json, sys
import resend
from resend.exceptions import ResendError

resend.api_url, resend.api_key = sys.argv[1] + "/resend", sys.argv[2]
mail = {"from": "me@x.test", "to": ["a@x.test", "b@x.test"], "subject": "Hi", "text": "Hello"}
calls = {
    "send": lambda: resend.Emails.send(mail, {"idempotency_key": "k1"}),
    "batch": lambda: resend.Batch.send([mail, {**mail, "cc": "c@x.test"}]),
    "get": lambda: resend.Emails.get("m_1"),
    "list": lambda: resend.Emails.send({**mail, "to": "a@x.test, b@x.test"}),
    "key": lambda: resend.ApiKeys.create({"name": "mine"}),
}
report = {"error": "", "kind": ""}
try:
    calls[sys.argv[3]]()
except ResendError as error:
    report = {"error": str(error), "kind": error.error_type}
print(json.dumps(report))
"""


def test_resend_counts_recipients_until_the_cap(up: Kbctl, upstream: Upstream) -> None:
    """$0.0009 each: two, the same two once more as a retry, five in a batch; and a read with its body."""
    upstream.answers["/emails/batch"] = (200, {"data": [{"id": "m_1"}, {"id": "m_2"}]})
    key = up("issue", "--vendor", "resend", "--tenant", "acme", "--cap", "0.0071").strip()
    for call in ("send", "send", "batch", "get"):
        assert agent(up, RESEND, key, call)["error"] == ""
    told = [(each["method"], each["path"], each["authorization"]) for each in upstream.arrived]
    bearer = f"Bearer {SECRET}"
    assert told == [
        ("POST", "/emails", bearer),
        ("POST", "/emails", bearer),
        ("POST", "/emails/batch", bearer),
        ("GET", "/emails/m_1", bearer),
    ]
    assert upstream.arrived[-1]["body"] == "{}"
    assert upstream.arrived[0]["agent"].startswith("resend-python")
    rows = up.json("audit", "--vendor", "resend")
    assert [row["amount_usd"] for row in reversed(rows)] == [0.0018, 0, 0.0045, 0]

    stopped = agent(up, RESEND, key, "batch")
    assert (stopped["kind"], stopped["error"].startswith("cap_exhausted")) == ("cap_exhausted", True)
    assert len(upstream.arrived) == 4
    assert len(up.json("audit", "--vendor", "resend")) == 5


@pytest.mark.parametrize(("call", "code"), [("list", "amount_unknown"), ("key", "endpoint_not_allowed")])
def test_resend_raises_its_own_error_after_one_request(
    up: Kbctl, upstream: Upstream, call: str, code: str
) -> None:
    """With our code as its type and at the start of its text; a revoked key too."""
    issued = up.json("issue", "--vendor", "resend", "--tenant", "acme", "--cap", "5")
    refused = agent(up, RESEND, issued["vault_key"], call)
    assert (refused["kind"], refused["error"].startswith(code)) == (code, True)
    up("revoke", issued["key_id"])
    assert agent(up, RESEND, issued["vault_key"], "send")["kind"] == "key_revoked"
    assert upstream.arrived == []
    assert [row["policy_check_result"] for row in up.json("audit")] == ["key_revoked", code]


TWILIO = """
import json, sys
from twilio.base.exceptions import TwilioRestException
from twilio.rest import Client
from twilio.twiml.voice_response import VoiceResponse

base, key, sid, call = sys.argv[1:]
client = Client(sid, key)
client.get_hostname = lambda url: url.replace("https://", base + "/twilio/", 1)
if call == "plain":
    client = Client(sid, key)
    client.api.base_url = base + "/twilio"
text = {"to": "+14155550100", "from_": "+14155550111"}
say = VoiceResponse()
say.say("Hello", voice="alice")
calls = {
    "send": lambda: client.messages.create(body="Hello", **text),
    "plain": lambda: client.messages.create(body="Hello", **text),
    "media": lambda: client.messages.create(media_url=["https://a.test/1", "https://a.test/2"], **text),
    "whatsapp": lambda: client.messages.create(body="Hello", to="whatsapp:+14155550100", from_="whatsapp:+1"),
    "call": lambda: client.calls.create(twiml=say, time_limit=90, **text),
    "endless": lambda: client.calls.create(twiml=say, **text),
    "dial": lambda: client.calls.create(url="https://a.test/say", time_limit=90, **text),
    "lookup": lambda: [client.lookups.v2.phone_numbers("+14155550100").fetch().phone_number],
    "verify": lambda: client.verify.v2.services("VA1").verifications.create(to="+14155550100", channel="sms"),
    "services": lambda: [each.sid for each in client.verify.v2.services.stream(page_size=1)],
    "keys": lambda: client.new_keys.create(),
}
report = {"error": "", "kind": "", "status": 0, "said": None}
try:
    said = calls[call]()
    report["said"] = said if isinstance(said, list) else said.sid
except TwilioRestException as error:
    report |= {"error": str(error), "kind": (error.details or {}).get("code"), "status": error.status}
print(json.dumps(report))
"""
MESSAGES = f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
LOOKUP = "/lookups/v2/PhoneNumbers/+14155550100"
CALLS = f"/2010-04-01/Accounts/{ACCOUNT}/Calls.json"
VERIFY = "/verify/v2/Services"


def pages(path: str) -> dict[str, Any]:
    """Two pages, linked as Twilio links them."""
    second = "Page=1" in path
    link = "https://verify.twilio.com/v2/Services?PageSize=1&Page=1&PageToken=PT1"
    meta = {"key": "services", "next_page_url": None if second else link}
    return {"services": [{"sid": "VA2" if second else "VA1"}], "meta": meta}


def test_twilio_counts_segments_minutes_and_messages(up: Kbctl, upstream: Upstream) -> None:
    """Each leaves under the real account with the real token, in every form that SDKs can be pointed."""
    upstream.answers[MESSAGES] = (201, {"sid": "SM1"})
    upstream.answers[LOOKUP] = (200, {"phone_number": "+14155550100"})
    upstream.answers[CALLS] = (201, {"sid": "CA1"})
    upstream.answers[f"{VERIFY}/VA1/Verifications"] = (201, {"sid": "VE1"})
    upstream.answers[VERIFY] = (200, pages)
    key = up("issue", "--vendor", "twilio", "--tenant", "acme", "--cap", "0.99").strip()
    expected = [
        ("send", MESSAGES, 0.0145, "SM1"),
        ("plain", MESSAGES, 0.0145, "SM1"),
        ("media", MESSAGES, 0.071, "SM1"),
        ("call", CALLS, 0.028, "CA1"),
        ("verify", f"{VERIFY}/VA1/Verifications", 0.0145, "VE1"),
        ("endless", CALLS, 0.84, "CA1"),
        ("lookup", LOOKUP, 0, ["+14155550100"]),
    ]
    for number, (call, path, usd, sid) in enumerate(expected):
        report = agent(up, TWILIO, key, (ALIAS, ACCOUNT)[number % 2], call)
        assert (report["said"], report["error"]) == (sid, "")
        assert upstream.arrived[-1]["path"] == path
        assert up.json("audit", "--limit", "1")[0]["amount_usd"] == usd

    listed = agent(up, TWILIO, key, ALIAS, "services")
    assert listed["said"] == ["VA1", "VA2"]  # the link of the first page stayed inside
    assert upstream.arrived[-1]["path"] == f"{VERIFY}?PageSize=1&Page=1&PageToken=PT1"
    assert len({each["authorization"] for each in upstream.arrived}) == 1
    assert upstream.arrived[0]["authorization"].startswith("Basic ")

    before = len(upstream.arrived)
    stopped = agent(up, TWILIO, key, ALIAS, "send")
    assert (stopped["status"], stopped["kind"]) == (429, "cap_exhausted")
    assert "cap_exhausted" in stopped["error"]
    assert len(upstream.arrived) == before


@pytest.mark.parametrize(
    ("call", "sid", "status", "code"),
    [
        ("dial", ALIAS, 400, "amount_unknown"),
        ("whatsapp", ALIAS, 400, "amount_unknown"),
        ("send", "AC" + "7" * 32, 403, "account_not_allowed"),
        ("keys", ALIAS, 403, "endpoint_not_allowed"),
    ],
)
def test_twilio_raises_its_own_error_after_one_request(
    up: Kbctl, upstream: Upstream, call: str, sid: str, status: int, code: str
) -> None:
    """With our code in its text and its details."""
    key = up("issue", "--vendor", "twilio", "--tenant", "acme", "--cap", "5").strip()
    refused = agent(up, TWILIO, key, sid, call)
    assert (refused["status"], refused["kind"]) == (status, code)
    assert f"{code}: " in refused["error"]
    assert upstream.arrived == []
    assert [row["policy_check_result"] for row in up.json("audit")] == [code]


def test_a_vault_key_as_the_account_is_refused(up: Kbctl, upstream: Upstream) -> None:
    """Client(vault_key, "x") writes it into the path, where the vendor would see it."""
    key = up("issue", "--vendor", "twilio", "--tenant", "acme", "--cap", "5").strip()
    assert agent(up, TWILIO, "x", key, "send")["kind"] == "ambiguous_request"
    assert upstream.arrived == []


FOURTH = """
schema = 1
name = "pigeon"
title = "Pigeon"
docs = "https://docs.pigeon.test"
origin = "https://api.pigeon.test"
body = "form"
error_shape = "twilio"
request_id_header = "X-Request-Id"
roots = ["/v3/"]
auth = { scheme = "basic", user = "domain" }
forward_headers = ["content-type"]

[price]
source = "https://pigeon.test/prices"
dated = "2026-11-21"
per_mail_usd = "0.002"
per_segment_usd = { US = "0.01", other = "0.3" }

[[operation]]
name = "mails.send"
match = "POST /v3/mails"
cost = { kind = "recipients", fields = ["to", "cc"] }

[[operation]]
name = "texts.send"
match = "POST /v3/texts"
cost = { kind = "sms", to = "to", text = "text" }
"""


def test_another_vendor_of_mails_and_texts_is_a_file(home: Kbctl, upstream: Upstream) -> None:
    """No code: prices and counts come from TOML, and the operator's own price from the config."""
    import httpx

    (home.home / "vendors").mkdir(mode=0o700)
    for name, text in (
        ("vendors/pigeon.toml", FOURTH),
        ("config.toml", '[vendor_prices.pigeon.per_segment_usd]\nDE = "0.1"\n'),
    ):
        (home.home / name).write_text(text)
        (home.home / name).chmod(0o600)
    home("up", "--port", "0", "--upstream", f"pigeon={upstream.url}")
    home("credential", "set", "pigeon", "--field", "domain=x.test", stdin=SECRET + "\n")
    key = home("issue", "--vendor", "pigeon", "--tenant", "acme", "--cap", "5").strip()
    base = home.json("status")["proxy_url"] + "/pigeon/v3"
    sent: list[tuple[str, dict[str, Any], float]] = [
        ("mails", {"to": ["a@x.test", "b@x.test"], "cc": "c@x.test"}, 0.006),
        ("texts", {"to": "+14155550100", "text": "я" * 71}, 0.02),
        ("texts", {"to": "+4915112345678", "text": "hi"}, 0.1),
        ("texts", {"to": "+88213300", "text": "hi"}, 0.3),
    ]
    for path, form, usd in sent:
        answer = httpx.post(f"{base}/{path}", data=form, auth=("x", key), trust_env=False)
        assert answer.status_code == 200, answer.text
        assert home.json("audit", "--limit", "1")[0]["amount_usd"] == usd
    refused = httpx.post(f"{base}/texts", data={"to": "+14155550100"}, auth=("x", key), trust_env=False)
    assert refused.json()["details"]["code"] == "amount_unknown"
    assert len(upstream.arrived) == 4
