"""What an agent is told when four fifths of a cap are gone."""

import pytest

from kbctld.core.ledger import Account, Scope
from kbctld.core.notice import notice
from tests.core.support import DAY, NOW, USD, grant, scope

DAILY = "kbctl: $20.00 is left of the $100.00 daily cap of key vk_test; it resets at 00:00 UTC"


@pytest.mark.parametrize(
    ("posted", "held", "said"),
    [
        (0, 0, None),
        (80 * USD - 1, 0, None),
        (80 * USD, 0, DAILY),
        (0, 80 * USD, DAILY),
        (50 * USD, 30 * USD, DAILY),
        (100 * USD, 0, DAILY.replace("$20", "$0")),
        (120 * USD, 0, DAILY.replace("$20", "$0")),
    ],
)
def test_at_four_fifths_of_a_daily_cap(posted: int, held: int, said: str | None) -> None:
    """What is held counts like what is spent; a cap that was lowered under it has nothing left."""
    assert notice(grant(scope(100 * USD, posted=posted, held=held)), NOW) == said


def test_the_next_day_all_of_it_is_there_again() -> None:
    key = grant(scope(100 * USD, posted=90 * USD))
    assert notice(key, NOW) is not None
    assert notice(key, NOW + 86_400 * 10**9) is None


def test_a_total_cap_does_not_reset_and_the_least_is_told() -> None:
    """Of the key, of whoever it comes from, and of its tenant: what stops it first."""
    parent = grant(scope(1000 * USD, posted=990 * USD))
    key = grant(scope(100 * USD, 200 * USD, posted=85 * USD), parent=parent)
    assert "$10.00 is left of the $1,000.00 daily cap" in str(notice(key, NOW))
    key.scope.account.post(DAY - 1, 110 * USD)
    assert (
        notice(key, NOW)
        == "kbctl: $5.00 is left of the $200.00 total cap of key vk_test, which does not reset"
    )


def test_without_a_cap_there_is_nothing_to_say() -> None:
    assert notice(grant(scope(posted=10**6 * USD)), NOW) is None


def test_a_tenant_s_name_leaves_in_ascii() -> None:
    """It becomes a header, and other characters would break the answer."""
    account = Account()
    account.post(DAY, 9 * USD)
    tenant = Scope("tenant:b\u00fccher \u4e00", "tenant b\u00fccher \u4e00", account, 10 * USD)
    said = notice(grant(scope(), tenant), NOW)
    assert said is not None
    assert said.isascii()
    assert "$10.00 daily cap of tenant b\\xfccher \\u4e00;" in said
