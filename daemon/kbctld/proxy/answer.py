"""A refusal as the vendor would have said it, so that its SDK raises the right class and does not retry.

What must stay true (each verified against real SDKs): the message starts with the machine code, the one
thing that every SDK puts into ``str(error)``; both no-retry headers are on every answer of a policy, since
``Retry-After`` alone makes some SDKs sleep for hours; where only the moment was bad (``overloaded``) both say
the opposite, so that SDKs come back by themselves: nothing was decided and nothing was sent; the body is
JSON in the vendor's own shape, since a foreign shape reads as success in others.
"""

import json
from typing import Any

from kbctld.core.refusal import Code, Refusal
from kbctld.core.vendor import Vendor
from kbctld.http1.server import Fields


def refusal_answer(
    refusal: Refusal, vendor: Vendor | None, call_id: str, key_id: str | None
) -> tuple[int, Fields, bytes]:
    """Status, header fields and body.

    Args:
        refusal: why.
        vendor: whose shape; None where the vendor is not known: Stripe's, which OpenAI's SDKs read too.
        call_id: the audit row, as the vendor's request id.
        key_id: whose key, where one was found.
    """
    status = refusal.http_status
    again = b"true" if refusal.code is Code.OVERLOADED else b"false"
    fields: Fields = [
        (b"Content-Type", b"application/json"),
        (b"Cache-Control", b"no-store"),
        (b"Stripe-Should-Retry", again),
        (b"x-should-retry", again),
        ((vendor.file.request_id_header if vendor else "Request-Id").encode(), call_id.encode()),
    ]
    if refusal.retry_after_s is not None:
        fields.append((b"Retry-After", b"%d" % refusal.retry_after_s))
    message = f"{refusal.code}: {refusal.sentence}"
    if refusal.remedy:
        message += f" ({refusal.remedy})"
    details: dict[str, Any] = {"call_id": call_id, "remedy": refusal.remedy, **refusal.facts}
    if key_id is not None:
        details["key_id"] = key_id
    if refusal.retry_after_s is not None:
        details["retry_after_s"] = refusal.retry_after_s
    shape = _SHAPES[vendor.file.error_shape if vendor else "stripe"]
    return status, fields, json.dumps(shape(refusal.code.value, status, message, call_id, details)).encode()


Details = dict[str, Any]


def _stripe(code: str, status: int, message: str, call_id: str, details: Details) -> dict[str, Any]:
    kind = "api_error" if status >= 500 else "invalid_request_error"
    return {"error": {"type": kind, "code": code, "message": message, "kbctl": details}}


def _twilio(code: str, status: int, message: str, call_id: str, details: Details) -> dict[str, Any]:
    # An integer code, which typed SDKs want; never RFC 9457's members, which make another class of error.
    return {
        "code": 90_000 + status,
        "message": message,
        "more_info": "",
        "status": status,
        "details": {"code": code, **details},
    }


def _resend(code: str, status: int, message: str, call_id: str, details: Details) -> dict[str, Any]:
    # Without statusCode older SDKs take the body for a success.
    return {"statusCode": status, "name": code, "message": message, "kbctl": details}


def _openai(code: str, status: int, message: str, call_id: str, details: Details) -> dict[str, Any]:
    kind = {429: "insufficient_quota"}.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}, "kbctl": details}


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def _anthropic(code: str, status: int, message: str, call_id: str, details: Details) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    error = {"type": kind, "message": message}
    return {"type": "error", "error": error, "request_id": call_id, "kbctl": {"code": code, **details}}


def _plain(code: str, status: int, message: str, call_id: str, details: Details) -> dict[str, Any]:
    return {
        "error": {"code": code, "message": message},
        "message": message,
        "status": status,
        "kbctl": details,
    }


_SHAPES = {
    "stripe": _stripe,
    "twilio": _twilio,
    "resend": _resend,
    "openai": _openai,
    "anthropic": _anthropic,
    "plain": _plain,
}
