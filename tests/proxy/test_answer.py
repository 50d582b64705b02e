"""Refusals as the vendor's SDK reads them: the code first, no retry, valid JSON."""

import json

import pytest

from kbctld.core.refusal import STATUS, Code, Refusal
from kbctld.proxy.answer import refusal_answer
from tests.support.world import stripe


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_status_that_no_sdk_misreads(code: Code) -> None:
    refusal = Refusal(code, "why", "what to do", retry_after_s=7, facts={"cap_usd": "5.00"})
    status, fields, body = refusal_answer(refusal, stripe(), "call_1", "vk_1")
    assert status == STATUS[code]
    assert status not in (402, 408, 409, 500)
    given = dict(fields)
    assert len(given) == len(fields)
    assert given[b"Content-Type"] == b"application/json"
    assert given[b"Stripe-Should-Retry"] == given[b"x-should-retry"] == b"false"
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
