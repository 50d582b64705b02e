"""An agent that holds one vendor's SDK for Python, newest or old: it makes the call that a line of stdin asks
for, and says in a line of JSON what became of it.

What must stay true: SDKs are used as their own documentation says, and none is patched; only ``time.sleep``
is, so that a test sees what an SDK would have slept.

A line is ``{"call", "key", "url", ...}``, the rest being the call's own; the answer ``{"said"}``, or
``{"kind", "text", "code"}`` of what was raised; always with ``slept`` (seconds).
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

Call = Callable[..., Any]

slept: list[float] = []
time.sleep = slept.append  # type: ignore[assignment]

SID = "AC" + "0" * 32

SAY = "<Response><Say>Hello</Say></Response>"


def stripe_calls(key: str, url: str) -> dict[str, Call]:
    stripe: Any = import_module("stripe")

    stripe.api_key, stripe.api_base, stripe.upload_api_base = key, url + "/stripe", url + "/stripe"

    def shown(charge: Any) -> dict[str, Any]:
        names = ("id", "amount", "captured", "amount_refunded", "description")
        replayed = charge.last_response.headers.get("idempotent-replayed")
        return {**{name: charge[name] for name in names}, "replayed": replayed}

    def pay(**fields: Any) -> Any:
        fields = {"amount": 1000, "currency": "usd", "source": "tok_visa", **fields}
        return shown(stripe.Charge.create(**fields))

    return {
        "pay": pay,
        "long": lambda: pay(description="x" * 70_000),
        "unpriced": lambda: stripe.Subscription.create(customer="cus_1", items=[{"price": "price_1"}]).id,
        "upload": lambda: stripe.File.create(purpose="dispute_evidence", file=("a.png", b"\x89PNG")).id,
        "capture": lambda of: shown(stripe.Charge.capture(of)),
        "refund": lambda **fields: stripe.Refund.create(**fields).amount,
        "fetch": lambda of: shown(stripe.Charge.retrieve(of)),
        "list": lambda of: [
            each.amount for each in stripe.Refund.list(limit=2, charge=of).auto_paging_iter()
        ],
        "intent": lambda **fields: stripe.PaymentIntent.create(**fields).amount,
    }


def twilio_calls(key: str, url: str, sid: str = SID) -> dict[str, Call]:
    client: Any = import_module("twilio.rest").Client(sid, key)
    client.get_hostname = lambda to: to.replace("https://", f"{url}/twilio/", 1)
    ends = {"to": "+14155550100", "from_": "+14155550111"}

    def pay(body: str = "Hello") -> Any:
        sent = client.messages.create(body=body, **ends)
        return {"id": sent.sid, "segments": sent.num_segments}

    def verify() -> Any:
        service = client.verify.v2.services.list(limit=1)[0]
        begun = service.verifications.create(to="+14155550100", channel="sms")
        checked = service.verification_checks.create(to="+14155550100", code="123456")
        return [begun.status, checked.status]

    return {
        "pay": pay,
        "long": lambda: pay("x" * 70_000),
        "unpriced": lambda: client.calls.create(url="https://a.test/say", **ends).sid,
        "call": lambda: client.calls.create(twiml=SAY, time_limit=90, **ends).to,
        "verify": verify,
        "fetch": lambda of: client.messages(of).fetch().body,
        "list": lambda: [each.body for each in client.messages.stream(page_size=2)],
    }


def resend_calls(key: str, url: str) -> dict[str, Call]:
    resend: Any = import_module("resend")

    resend.api_key, resend.api_url = key, url + "/resend"
    mail = {"from": "me@x.test", "to": ["a@x.test"], "subject": "Hi", "text": "Hello"}

    def pay(idempotency_key: str = "", **fields: Any) -> Any:
        options = [{"idempotency_key": idempotency_key}] if idempotency_key else []
        return {"id": resend.Emails.send({**mail, **fields}, *options)["id"]}

    return {
        "pay": pay,
        "long": lambda: pay(text="x" * 70_000),
        "unpriced": lambda: pay(to="a@x.test, b@x.test"),
        "batch": lambda: len(resend.Batch.send([mail, {**mail, "cc": ["c@x.test"]}])["data"]),
        "fetch": lambda of: resend.Emails.get(of)["subject"],
        "list": lambda: len(resend.Emails.list()["data"]),
    }


def openai_calls(key: str, url: str) -> dict[str, Call]:
    openai: Any = import_module("openai")

    client = openai.OpenAI(api_key=key, base_url=url + "/openai/v1")

    def pay(text: str = "hi", **fields: Any) -> Any:
        hi = [{"role": "user", "content": text}]
        return (
            client.chat.completions.create(model="gpt-4o-mini", messages=hi, **fields)
            .choices[0]
            .message.content
        )

    return {
        "pay": lambda: pay(max_tokens=100),
        "long": lambda: pay("x" * 70_000, max_tokens=100),
        "unpriced": pay,
        "upload": lambda: client.files.create(purpose="batch", file=("a.jsonl", b"{}")).id,
    }


def anthropic_calls(key: str, url: str) -> dict[str, Call]:
    anthropic: Any = import_module("anthropic")

    client = anthropic.Anthropic(api_key=key, base_url=url + "/anthropic")

    def pay(text: str = "hi", model: str = "claude-haiku-4-5") -> Any:
        hi = [{"role": "user", "content": text}]
        return client.messages.create(model=model, max_tokens=100, messages=hi).content[0].text

    return {
        "pay": pay,
        "long": lambda: pay("x" * 70_000),
        "unpriced": lambda: pay(model="model-99"),
        "upload": lambda: client.beta.files.upload(file=("a.txt", b"a")).id,
    }


VENDORS: dict[str, Callable[..., dict[str, Call]]] = {
    "stripe": stripe_calls,
    "twilio": twilio_calls,
    "resend": resend_calls,
    "openai": openai_calls,
    "anthropic": anthropic_calls,
}


def code_of(error: Any) -> Any:
    """The machine code where this SDK keeps it beside the text."""
    if hasattr(error, "details"):  # twilio
        return (error.details or {}).get("code")
    if hasattr(error, "error_type"):  # resend
        return error.error_type
    return getattr(getattr(error, "error", error), "code", None)  # stripe, openai


def answer(vendor: str, ask: dict[str, Any]) -> dict[str, Any]:
    slept.clear()
    call, place = ask.pop("call"), {name: ask.pop(name) for name in ("key", "url", "sid") if name in ask}
    try:
        return {"said": VENDORS[vendor](**place)[call](**ask), "slept": slept}
    except Exception as error:  # noqa: BLE001 - which class it has is what the test asks
        return {"kind": type(error).__name__, "text": str(error), "code": code_of(error), "slept": slept}


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(sys.argv[1], json.loads(line))) + "\n")
        sys.stdout.flush()
