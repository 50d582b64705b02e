"""Refusals as the vendor's SDK reads them: the code first, no retry, valid JSON."""

import json
from typing import Any, get_args

import pytest

from kbctld.core.refusal import STATUS, Code, Refusal
from kbctld.core.vendor import read_vendor
from kbctld.core.vendor_file import VendorFile
from kbctld.proxy.answer import refusal_answer
from tests.support.world import stripe

FILE = """
schema = 1
name = "acme"
title = "Acme"
docs = "https://docs.acme.test"
origin = "https://api.acme.test"
body = "form"
error_shape = "stripe"
request_id_header = "Request-Id"
roots = ["/v1/"]
auth = { scheme = "bearer" }
operation = []
"""


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_status_that_no_sdk_misreads(code: Code) -> None:
    refusal = Refusal(code, "why", "what to do", retry_after_s=7, facts={"cap_usd": "5.00"})
    status, fields, body = refusal_answer(refusal, stripe(), "call_1", "vk_1")
    assert status == STATUS[code]
    assert status not in (402, 408, 409, 500)
    given = dict(fields)
    assert len(given) == len(fields)
    assert given[b"Content-Type"] == b"application/json"
    again = b"true" if code is Code.OVERLOADED else b"false"  # nothing was decided: it may come back
    assert given[b"Stripe-Should-Retry"] == given[b"x-should-retry"] == again
    assert given[b"Request-Id"] == b"call_1"
    assert given[b"Retry-After"] == b"7"
    error = json.loads(body)["error"]
    assert error["message"] == f"{code}: why (what to do)"
    assert error["code"] == code.value
    assert error["type"] == ("api_error" if status >= 500 else "invalid_request_error")
    assert error["kbctl"] == {
        "call_id": "call_1",
        "key_id": "vk_1",
        "remedy": "what to do",
        "retry_after_s": 7,
        "cap_usd": "5.00",
    }


def test_without_vendor_key_remedy_or_time() -> None:
    status, fields, body = refusal_answer(Refusal(Code.KEY_MISSING, "why"), None, "call_1", None)
    assert (status, dict(fields)[b"Request-Id"]) == (401, b"call_1")
    assert b"Retry-After" not in dict(fields)
    error = json.loads(body)["error"]
    assert (error["message"], error["kbctl"]) == ("key_missing: why", {"call_id": "call_1", "remedy": ""})


def test_text_from_outside_cannot_break_out_of_the_json() -> None:
    _, fields, body = refusal_answer(Refusal(Code.AMBIGUOUS_REQUEST, 'a "b"\r\n\x00é'), None, "call_1", None)
    assert json.loads(body)["error"]["message"].endswith('a "b"\r\n\x00é')
    assert body.isascii()
    assert not [value for _, value in fields if b"\r" in value or b"\n" in value]


def test_another_status_where_http_has_one() -> None:
    assert refusal_answer(Refusal(Code.MALFORMED_REQUEST, "why", status=417), None, "c", None)[0] == 417


SHAPES: dict[str, tuple[int, list[str], dict[str, Any]]] = {
    "stripe": (429, ["error", "message"], {"type": "invalid_request_error", "code": "cap_exhausted"}),
    "twilio": (429, ["message"], {"code": 90429, "status": 429}),
    "resend": (429, ["message"], {"statusCode": 429, "name": "cap_exhausted"}),
    "openai": (429, ["error", "message"], {"type": "insufficient_quota", "code": "cap_exhausted"}),
    "anthropic": (429, ["error", "message"], {"type": "rate_limit_error"}),
    "plain": (429, ["error", "message"], {"code": "cap_exhausted"}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_vendor_s_shape(shape: str) -> None:
    """As verified with its SDKs: the message starts with the code; what the class is picked by is there."""
    status, path, wanted = SHAPES[shape]
    text = FILE.replace('error_shape = "stripe"', f'error_shape = "{shape}"')
    refusal = Refusal(Code.CAP_EXHAUSTED, "the cap is reached", retry_after_s=9)
    got, fields, raw = refusal_answer(refusal, read_vendor(text), "call_1", "vk_1")
    body = json.loads(raw)
    assert got == status
    assert {(b"Stripe-Should-Retry", b"false"), (b"x-should-retry", b"false"), (b"Retry-After", b"9")} < {
        *fields
    }
    inner = body
    for name in path[:-1]:
        inner = inner[name]
    assert inner["message"].startswith("cap_exhausted: ")
    assert {name: inner[name] for name in wanted} == wanted
    assert "call_1" in raw.decode()
    assert "vk_1" in raw.decode()


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        (Code.KEY_REVOKED, {"anthropic": "authentication_error", "openai": "invalid_request_error"}),
        (Code.ENDPOINT_NOT_ALLOWED, {"anthropic": "permission_error", "openai": "invalid_request_error"}),
        (Code.AMOUNT_UNKNOWN, {"anthropic": "invalid_request_error", "stripe": "invalid_request_error"}),
        (Code.UPSTREAM_UNREACHABLE, {"anthropic": "api_error", "openai": "api_error", "stripe": "api_error"}),
    ],
)
def test_the_type_follows_the_status(code: Code, kinds: dict[str, str]) -> None:
    for shape, kind in kinds.items():
        vendor = read_vendor(FILE.replace('error_shape = "stripe"', f'error_shape = "{shape}"'))
        _, _, raw = refusal_answer(Refusal(code, "why"), vendor, "call_1", None)
        assert json.loads(raw)["error"]["type"] == kind


# Where each shape has the text that SDKs put into str(error), and where the code stands beside it.
PLACES: dict[str, tuple[list[str], list[str]]] = {
    "stripe": (["error", "message"], ["error", "code"]),
    "twilio": (["message"], ["details", "code"]),
    "resend": (["message"], ["name"]),
    "openai": (["error", "message"], ["error", "code"]),
    "anthropic": (["error", "message"], ["kbctl", "code"]),
    "plain": (["error", "message"], ["error", "code"]),
}


def test_every_shape_of_the_vocabulary_is_here() -> None:
    """A vendor file with a shape that nobody has looked at would refuse in silence."""
    assert set(PLACES) == set(SHAPES) == set(get_args(VendorFile.__annotations__["error_shape"]))


@pytest.mark.parametrize("shape", PLACES)
@pytest.mark.parametrize("code", Code)
def test_every_code_in_every_shape(code: Code, shape: str) -> None:
    """JSON; the message starts with the code; no SDK repeats it; no status that means something else."""
    vendor = read_vendor(FILE.replace('error_shape = "stripe"', f'error_shape = "{shape}"'))
    refusal = Refusal(code, "why it is so", "what to do", retry_after_s=36_000)
    status, fields, raw = refusal_answer(refusal, vendor, "call_1", "vk_1")
    body = json.loads(raw)
    message, named = ((body[path[0]] if len(path) == 1 else body[path[0]][path[1]]) for path in PLACES[shape])
    assert message == f"{code.value}: why it is so (what to do)"
    assert named == code.value
    given = dict(fields)
    assert given[b"Content-Type"] == b"application/json"
    again = b"true" if code is Code.OVERLOADED else b"false"
    assert given[b"Stripe-Should-Retry"] == given[b"x-should-retry"] == again
    assert given[b"Retry-After"] == b"36000"  # only ever together with both of those
    assert given[b"Request-Id"] == b"call_1"
    assert status not in (402, 408, 409, 500)
    if status >= 500:
        assert code in OURS_OR_THE_VENDOR_S, "a policy is no failure of a server"
    if "statusCode" in body or "status" in body:
        assert body.get("statusCode", body.get("status")) == status


OURS_OR_THE_VENDOR_S = {
    Code.CREDENTIAL_UNAVAILABLE,
    Code.AUDIT_UNAVAILABLE,
    Code.SHUTTING_DOWN,
    Code.OVERLOADED,
    Code.UPSTREAM_UNREACHABLE,
    Code.UPSTREAM_TIMEOUT,
    Code.UPSTREAM_INVALID,
    Code.UPSTREAM_REDIRECT,
    Code.SECRET_REFLECTED,
}
"""What went wrong between here and the vendor; everything else is a decision."""
