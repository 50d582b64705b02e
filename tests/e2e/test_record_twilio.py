"""Twilio's own SDK, a Twilio with a book that hangs up, a daemon that is killed: the list settles calls."""

import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.e2e.scene import until
from tests.e2e.support import SECRET, Kbctl
from tests.e2e.test_mail_and_text_sdks import ACCOUNT, ALIAS, agent

MESSAGES = f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
PRICE = "-0.00750"

SEND = """
import json, sys
from twilio.base.exceptions import TwilioRestException
from twilio.rest import Client

base, key, sid, *bodies = sys.argv[1:]
client = Client(sid, key)
client.get_hostname = lambda url: url.replace("https://", base + "/twilio/", 1)
said = []
for body in bodies:
    try:
        said.append(client.messages.create(to="+14155550100", from_="+14155550111", body=body).sid)
    except TwilioRestException as error:
        said.append(error.status)
print(json.dumps({"said": said}))
"""


class Twilio:
    """It keeps a book of the messages that it made, and lists them once they are ``shown``.

    A message that says ``lost`` gets no answer; one that says ``never`` is not even made.
    """

    def __init__(self) -> None:
        self.book: list[dict[str, Any]] = []
        self.shown = 0
        twilio = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"])).decode()
                said = {name: values[0] for name, values in parse_qs(raw).items()}
                assert self.path == MESSAGES
                if "never" not in said["Body"]:
                    twilio.make(said)
                if "never" in said["Body"] or "lost" in said["Body"]:
                    self.close_connection = True
                    return
                self.say(201, twilio.book[-1])

            def do_GET(self) -> None:
                path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
                if path == MESSAGES:
                    assert query["DateSent>"][0] < query["DateSent<"][0]
                    page = int(query.get("Page", ["0"])[0])
                    newest = twilio.book[: twilio.shown][::-1]
                    more = f"{MESSAGES}?Page={page + 1}&PageToken=PASM{page}&{urlsplit(self.path).query}"
                    last = page + 1 >= len(newest)
                    entries = newest[page : page + 1]  # a page holds one
                    self.say(200, {"messages": entries, "next_page_uri": None if last else more})
                elif path.endswith("/Calls.json"):
                    self.say(200, {"calls": [], "next_page_uri": None})
                else:
                    sid = path.rpartition("/")[2].removesuffix(".json")
                    self.say(200, next(each for each in twilio.book if each["sid"] == sid))

            def say(self, status: int, said: dict[str, Any]) -> None:
                body = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def make(self, said: dict[str, str]) -> None:
        self.book.append(
            {
                "sid": f"SM{len(self.book) + 1}",
                "date_created": formatdate(time.time()).replace("-0000", "+0000"),
                "to": said["To"],
                "from": said["From"],
                "messaging_service_sid": None,
                "body": said["Body"],
                "num_media": "0",
                "num_segments": "1",
                "direction": "outbound-api",
                "status": "queued",
                "price": None,
                "price_unit": "USD",
            }
        )


@pytest.fixture
def twilio() -> Iterator[Twilio]:
    """Stopped at the end."""
    made = Twilio()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()


@pytest.fixture
def served(home: Kbctl, twilio: Twilio) -> Kbctl:
    """A daemon in front of it."""
    home("up", "--port", "0", "--upstream", f"twilio={twilio.url}")
    home("credential", "set", "twilio", "--field", f"account_sid={ACCOUNT}", stdin=SECRET + "\n")
    return home


def again(kbctl: Kbctl, twilio: Twilio) -> None:
    """The daemon dies and is started anew."""
    kbctl.kill()
    kbctl("up", "--port", "0", "--upstream", f"twilio={twilio.url}")


def of(kbctl: Kbctl, outcome: str) -> list[dict[str, Any]]:
    """The agents' calls that ended so."""
    return [
        row
        for row in kbctl.json("audit", "--limit", "0")
        if row["outcome"] == outcome and row["vault_key_id"]
    ]


def test_messages_whose_answers_were_lost_are_settled_from_twilios_list(
    served: Kbctl, twilio: Twilio
) -> None:
    """One that was not made, and two alike of which one is listed first; the caps hold what may be due."""
    key = served("issue", "--vendor", "twilio", "--tenant", "acme", "--cap", "0.058").strip()
    said = agent(served, SEND, key, ALIAS, "never made", "lost", "lost", "heard", "more")["said"]
    # The cap is full, of what was billed or may be.
    assert said == [502, 502, 502, "SM3", 429]

    # What Twilio lists late is no refusal meanwhile.
    again(served, twilio)
    until(lambda: len([row for row in served.json("audit") if row["operation"] == "messages.list"]) >= 3)
    assert len(of(served, "unknown")) == 3
    assert served.json("show", key)["held_usd"] == 0.0435
    assert agent(served, SEND, key, ALIAS, "more")["said"] == [429]

    # One of two that ask for the same is listed: one is settled, it does not matter which.
    twilio.shown = 1
    again(served, twilio)
    until(lambda: len(of(served, "unknown")) == 2)
    assert served.json("show", key)["held_usd"] == 0.029

    twilio.shown = 3
    again(served, twilio)
    until(lambda: len(of(served, "unknown")) == 1)
    shown = served.json("show", key)
    assert (shown["spent_usd"], shown["held_usd"]) == (0.0435, 0.0145)
    found = {
        served.json("changes", "--subject", row["call_id"])[0]["details"]["found"]
        for row in of(served, "posted")
        if served.json("changes", "--subject", row["call_id"])
    }
    assert found == {"SM1", "SM2"}
    served("audit", "verify")

    # The list agrees, but for the one that was never made; then somebody sends one around kbctl.
    until(lambda: _reconciled(served)["agree"] == 3)
    assert [each["what"] for each in _reconciled(served)["differences"]] == ["absent"]
    twilio.make({"To": "+14155550100", "From": "+14155550111", "Body": "psst"})
    twilio.book[-1]["price"] = PRICE
    twilio.shown = 4
    until(lambda: len(_reconciled(served)["differences"]) == 2)
    (around,) = [each for each in _reconciled(served)["differences"] if each["what"] == "elsewhere"]
    assert (around["object_id"], around["vendor_usd"], around["kind"]) == ("SM4", 0.0075, "message")
    assert "not here" in served("reconcile", "twilio", status=5)

    # By hand, as the last resort.
    (lost,) = of(served, "unknown")
    served("resolve", lost["call_id"], "--void")
    assert served.json("show", key)["held_usd"] == 0


def _reconciled(kbctl: Kbctl) -> dict[str, Any]:
    return dict(json.loads(kbctl("reconcile", "twilio", "--json", status=5)))
