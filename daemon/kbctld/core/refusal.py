"""Every way a call can be refused: a closed set of codes, in order of precedence.

Which refusal an agent gets is part of the contract: where several apply, the one further up is given.
A refusal carries one sentence and one remedy and never a secret, a vault key, or anything of another
tenant. ``proxy.answer`` alone turns it into bytes.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class Code(StrEnum):
    """Machine codes, in order of precedence."""

    MALFORMED_REQUEST = "malformed_request"
    AMBIGUOUS_REQUEST = "ambiguous_request"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    KEY_MISSING = "key_missing"
    KEY_UNKNOWN = "key_unknown"
    KEY_REVOKED = "key_revoked"
    KEY_EXPIRED = "key_expired"
    VENDOR_NOT_ALLOWED = "vendor_not_allowed"
    ENDPOINT_NOT_ALLOWED = "endpoint_not_allowed"
    ACCOUNT_NOT_ALLOWED = "account_not_allowed"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_BODY = "unsupported_body"
    HEAD_TOO_LARGE = "head_too_large"
    PARAM_NOT_ALLOWED = "param_not_allowed"
    AMOUNT_UNKNOWN = "amount_unknown"
    CALL_CAP_EXCEEDED = "call_cap_exceeded"
    SUSPECTED_DUPLICATE = "suspected_duplicate"
    RATE_LIMITED = "rate_limited"
    REQUEST_BUDGET_EXHAUSTED = "request_budget_exhausted"
    LOOP_DETECTED = "loop_detected"
    CAP_EXHAUSTED = "cap_exhausted"
    TOTAL_CAP_EXHAUSTED = "total_cap_exhausted"
    CREDENTIAL_UNAVAILABLE = "credential_unavailable"
    AUDIT_UNAVAILABLE = "audit_unavailable"
    SHUTTING_DOWN = "shutting_down"
    OVERLOADED = "overloaded"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_INVALID = "upstream_invalid"
    UPSTREAM_REDIRECT = "upstream_redirect"
    SECRET_REFLECTED = "secret_reflected"  # noqa: S105 - a code, not a secret


STATUS: dict[Code, int] = {
    Code.MALFORMED_REQUEST: 400,
    Code.AMBIGUOUS_REQUEST: 400,
    Code.ORIGIN_NOT_ALLOWED: 403,
    Code.KEY_MISSING: 401,
    Code.KEY_UNKNOWN: 401,
    Code.KEY_REVOKED: 401,
    Code.KEY_EXPIRED: 401,
    Code.VENDOR_NOT_ALLOWED: 403,
    Code.ENDPOINT_NOT_ALLOWED: 403,
    Code.ACCOUNT_NOT_ALLOWED: 403,
    Code.BODY_TOO_LARGE: 413,
    Code.UNSUPPORTED_BODY: 415,
    Code.HEAD_TOO_LARGE: 431,
    Code.PARAM_NOT_ALLOWED: 403,
    Code.AMOUNT_UNKNOWN: 400,
    Code.CALL_CAP_EXCEEDED: 403,
    Code.SUSPECTED_DUPLICATE: 403,  # 409 says it best, but SDKs send a 409 again at once
    Code.RATE_LIMITED: 429,
    Code.REQUEST_BUDGET_EXHAUSTED: 429,
    Code.LOOP_DETECTED: 429,
    Code.CAP_EXHAUSTED: 429,
    Code.TOTAL_CAP_EXHAUSTED: 429,
    Code.CREDENTIAL_UNAVAILABLE: 503,
    Code.AUDIT_UNAVAILABLE: 503,
    Code.SHUTTING_DOWN: 503,
    Code.OVERLOADED: 503,
    Code.UPSTREAM_UNREACHABLE: 502,
    Code.UPSTREAM_TIMEOUT: 504,
    Code.UPSTREAM_INVALID: 502,
    Code.UPSTREAM_REDIRECT: 502,
    Code.SECRET_REFLECTED: 502,
}
"""The HTTP status of each code; never 402, 408 or 409, which SDKs take for something else."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call is not forwarded, or why its answer is not passed on.

    Attributes:
        code: the machine code; agents' SDKs show it at the start of the message.
        sentence: one sentence for people, without the code and without a final full stop.
        remedy: what whoever reads it can do; may be empty.
        retry_after_s: seconds until the same call can succeed by itself; None where it never will.
        facts: what a machine may want to read, as JSON-able values.
        requested_nano: what the call asked for, where that could be read; with its currency and minor units.
        status: overrides the code's usual HTTP status (417 for an Expect that we don't know).
    """

    code: Code
    sentence: str
    remedy: str = ""
    retry_after_s: int | None = None
    facts: dict[str, str] = field(default_factory=dict)
    status: int = 0
    requested_nano: int | None = None
    currency: str | None = None
    amount_minor: int | None = None

    @property
    def http_status(self) -> int:
        return self.status or STATUS[self.code]
