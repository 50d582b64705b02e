"""A further vendor is a file and nothing else: written as the README teaches it, and used by an agent."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.support import SECRET, Kbctl

README = (resources.files("kbctld") / "vendors" / "README.md").read_text(encoding="utf-8")
TUTORIAL = README.partition("## A vendor of your own, step by step")[2]
STEPS = re.findall(
    r"```toml\n(.*?)```\n\n```console\n\$ kbctl vendor check pigeon.toml\n(.*?)```", TUTORIAL, re.S
)
PIGEON = "\n".join(toml for toml, _ in STEPS)

# Another one: texts, in a form, with the key as a bearer.
SWIFT = """
schema = 1
name = "swift"
title = "Swift"
docs = "https://docs.swift.example"
origin = "https://api.swift.example"
body = "form"
error_shape = "resend"
request_id_header = "X-Request-Id"
roots = ["/sms/"]

[auth]
scheme = "bearer"

[price]
source = "https://swift.example/pricing"
dated = "2026-11-21"

[price.per_segment_usd]
US = "0.02"
other = "0.6"

[[operation]]
name = "sms.send"
match = "POST /sms/send"
cost = { kind = "sms", to = "to", text = "message" }

[[example]]
request = "POST /sms/send"
body = "to=%2B14155550100&message=Hi"
operation = "sms.send"
usd = 0.02

[[example]]
request = "POST /sms/send"
body = "message=Hi"
refused = "amount_unknown"
"""


class Heard:
    """Both pretend vendors on loopback."""

    def __init__(self) -> None:
        self.arrived: list[tuple[str, dict[str, str], str]] = []
        heard = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                fields = {name.lower(): value for name, value in self.headers.items()}
                heard.arrived.append((self.path, fields, body))
                self.send_response(200)
                self.send_header("X-Request-Id", f"r_{len(heard.arrived)}")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def heard() -> Iterator[Heard]:
    """Stopped in any case."""
    made = Heard()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()


def test_each_step_of_the_tutorial_prints_what_it_says(home: Kbctl, tmp_path: Path) -> None:
    """The real command, on the file as it is so far."""
    assert len(STEPS) == 5
    home("up", "--port", "0")
    file = tmp_path / "pigeon.toml"
    for number, (_, printed) in enumerate(STEPS, start=1):
        file.write_text("\n".join(toml for toml, _ in STEPS[:number]))
        before = len(home.said)
        home("vendor", "check", str(file), status=0 if number > 3 else 2)
        assert home.said[before:].replace(str(file), "pigeon.toml") == printed


def test_a_fourth_vendor_is_a_file(home: Kbctl, heard: Heard) -> None:
    """Two of them, fresh: their calls are priced, and refused at the cap in their own shapes."""
    (home.home / "vendors").mkdir()
    for name, text in (("pigeon", PIGEON), ("swift", SWIFT)):
        path = home.home / "vendors" / f"{name}.toml"
        path.write_text(text)
        path.chmod(0o600)
    home("up", "--port", "0", "--upstream", f"pigeon={heard.url}", "--upstream", f"swift={heard.url}")
    for name in ("pigeon", "swift"):
        home("credential", "set", name, stdin=f"{SECRET}-{name}\n")
    key = home(
        "issue", "--vendor", "pigeon", "--vendor", "swift", "--tenant", "acme", "--cap", "0.05"
    ).strip()
    proxy = home.json("status")["proxy_url"]

    def mail(*recipients: str, token: str = key, **headers: str) -> httpx.Response:
        said = {"X-Pigeon-Token": token, **headers}
        return httpx.post(f"{proxy}/pigeon/v1/mails", json={"to": recipients}, headers=said, trust_env=False)

    def sms(message: str) -> httpx.Response:
        form = {"to": "+14155550100", "message": message}
        said = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{proxy}/swift/sms/send", data=form, headers=said, trust_env=False)

    assert mail("a@x.test", "b@x.test").status_code == 200  # 2 x 0.002
    assert mail("a@x.test", Authorization="Bearer sk_of_the_agent").status_code == 200  # 0.002
    assert sms("Hello").status_code == 200  # 0.02
    (mailed, fields, body), (_, mixed, _), (texted, form_fields, form) = heard.arrived
    assert (mailed, json.loads(body)) == ("/v1/mails", {"to": ["a@x.test", "b@x.test"]})
    assert fields["x-pigeon-token"] == mixed["x-pigeon-token"] == f"{SECRET}-pigeon"
    assert not {"authorization", "x-api-key"} & (fields.keys() | mixed.keys())
    assert (texted, form) == ("/sms/send", "to=%2B14155550100&message=Hello")
    assert form_fields["authorization"] == f"Bearer {SECRET}-swift"

    # 0.026 of 0.05 are spent: 0.04 does not fit, nor do thirteen recipients at 0.026.
    stopped = sms("a" * 161)
    assert (stopped.status_code, stopped.json()["name"]) == (429, "cap_exhausted")
    refused = mail(*[f"{number}@x.test" for number in range(13)])
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "cap_exhausted")
    assert refused.json()["message"].startswith("cap_exhausted: mails.send asks for $0.026 ")
    assert mail("a@x.test, b@x.test").json()["error"]["code"] == "amount_unknown"
    assert mail("a@x.test", token="not-a-key").json()["error"]["code"] == "key_missing"
    minted = httpx.post(f"{proxy}/pigeon/v1/tokens", headers={"X-Pigeon-Token": key}, trust_env=False)
    assert minted.json()["error"]["code"] == "endpoint_not_allowed"
    assert len(heard.arrived) == 3

    rows = [
        (row["vendor"], row["operation"], row["amount_usd"], row["policy_check_result"])
        for row in reversed(home.json("audit", "--tenant", "acme"))
    ]
    assert rows == [
        ("pigeon", "mails.send", 0.004, "allowed"),
        ("pigeon", "mails.send", 0.002, "allowed"),
        ("swift", "sms.send", 0.02, "allowed"),
        ("swift", "sms.send", 0, "cap_exhausted"),
        ("pigeon", "mails.send", 0, "cap_exhausted"),
        ("pigeon", "mails.send", 0, "amount_unknown"),
        ("pigeon", "tokens.create", 0, "endpoint_not_allowed"),
    ]
    assert home.json("audit", "--vendor", "pigeon")[-1]["vendor_request_id"] == "r_1"
    assert "pigeon" in home("vendor", "list")
