"""The codes are a closed set, in a documented order, with statuses that SDKs don't misread."""

import pytest

from kbctld.core.refusal import STATUS, Code, Refusal

DOCUMENTED = """
400 malformed_request
400 ambiguous_request
403 origin_not_allowed
401 key_missing
401 key_unknown
401 key_revoked
401 key_expired
403 vendor_not_allowed
403 endpoint_not_allowed
403 account_not_allowed
413 body_too_large
415 unsupported_body
431 head_too_large
403 param_not_allowed
400 amount_unknown
403 call_cap_exceeded
403 suspected_duplicate
429 rate_limited
429 request_budget_exhausted
429 loop_detected
429 cap_exhausted
429 total_cap_exhausted
503 credential_unavailable
503 audit_unavailable
503 shutting_down
503 overloaded
502 upstream_unreachable
504 upstream_timeout
502 upstream_invalid
502 upstream_redirect
502 secret_reflected
"""


def test_codes_stand_in_their_documented_order_with_their_status() -> None:
    """Agents rely on code and status; where several apply, the one further up is given."""
    assert [f"{STATUS[code]} {code}" for code in Code] == DOCUMENTED.split("\n")[1:-1]


@pytest.mark.parametrize("code", Code, ids=str)
def test_no_policy_uses_a_status_that_sdks_misread(code: Code) -> None:
    """402 becomes a declined card, 408 and 409 are retried, a bare 500 too."""
    assert STATUS[code] not in {402, 408, 409, 500}
    assert Refusal(code, "why").http_status == STATUS[code]


def test_a_refusal_may_have_a_status_of_its_own() -> None:
    """An Expect that we don't know is 417, whatever its code."""
    assert Refusal(Code.MALFORMED_REQUEST, "why", status=417).http_status == 417


def test_a_refusal_promises_nothing_that_it_was_not_told() -> None:
    """By itself it has no remedy, no time after which the call would succeed, and no facts to share."""
    one, other = Refusal(Code.KEY_MISSING, "why"), Refusal(Code.KEY_MISSING, "why")
    assert (one.remedy, one.retry_after_s, one.requested_nano, one.currency, one.amount_minor) == (
        "",
        None,
        None,
        None,
        None,
    )
    assert one.facts is not other.facts
