"""A refusal as Stripe words it: status, type, code, and whether work had begun.

What must stay true: every refusal is a JSON object under `error` with a `type` and a `message`, because
an SDK that finds anything else reports an untyped failure, or a success.
"""

from __future__ import annotations

from typing import Any

import msgspec


class StripeError(Exception):
    """`began` decides what an idempotency key remembers: Stripe stores the result of work that had begun
    (a decline, a 500, a refusal by the object's state), never a failed validation."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        began: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind
        self.began = began
        self.extra: dict[str, Any] = {}

    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self.code is not None:
            fields["code"] = self.code
            fields["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        fields["message"] = self.message
        if self.param is not None:
            fields["param"] = self.param
        fields["type"] = self.kind
        return fields

    def body(self) -> bytes:
        return msgspec.json.encode({"error": self.fields() | self.extra})


def missing(param: str) -> StripeError:
    return StripeError(400, f"Missing required param: {param}.", code="parameter_missing", param=param)


def declined(charge_id: str) -> StripeError:
    error = StripeError(402, "Your card was declined.", code="card_declined", kind="card_error", began=True)
    error.extra = {"charge": charge_id, "decline_code": "generic_decline"}
    return error


def unexpected_state(obj: dict[str, Any], wanted: str) -> StripeError:
    error = StripeError(
        400,
        f"This PaymentIntent has the status {obj['status']}; {wanted}.",
        code="payment_intent_unexpected_state",
        began=True,
    )
    error.extra = {"payment_intent": obj}
    return error


def server_error() -> StripeError:
    return StripeError(500, "The pretend Stripe failed.", kind="api_error", began=True)
