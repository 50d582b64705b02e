"""What an HTTP status proves about money."""

import pytest

from kbctld.core.ledger import Verdict
from kbctld.core.outcome import verdict_of

PROVES = {
    Verdict.POSTED: [200, 201, 202, 204, 299],
    Verdict.REFUSED: [400, 401, 402, 403, 404, 408, 410, 418, 422, 424, 429, 499],
    Verdict.SILENT: [
        100,
        101,
        199,
        300,
        301,
        302,
        304,
        307,
        308,
        399,
        409,
        500,
        502,
        503,
        504,
        529,
        599,
        600,
    ],
}


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        pytest.param(status, verdict, id=str(status))
        for verdict, all_of in PROVES.items()
        for status in all_of
    ],
)
def test_L5_only_a_definite_answer_proves_anything(status: int, verdict: Verdict) -> None:
    """2xx posts, 4xx but 409 refuses, and everything else is silence."""
    assert verdict_of(status) is verdict


def test_L5_no_status_is_read_as_unsent() -> None:
    """An answer means that bytes left: none of the statuses there are frees a hold as unsent."""
    assert Verdict.UNSENT not in {verdict_of(status) for status in range(1000)}
