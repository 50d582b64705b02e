"""The drills' own tests: some faults of the kinds that matter most, and a judge that can't be fooled.

``python -m tests.drills --short`` runs every kind.
"""

import asyncio
import random

import pytest
import uvloop
from rich.console import Console

from tests.drills.__main__ import drill
from tests.drills.daemon import POINTS
from tests.drills.judge import Family, Figures, Key, judge
from tests.drills.kinds import kinds
from tests.drills.scene import Nursery
from tests.drills.storm import storm
from tests.drills.vendor import BEHAVIOURS, accounting_vendor

KINDS = {kind.name: kind for kind in kinds()}


def run(name: str, faults: int, broken: str = "") -> Figures:
    async def main() -> Figures:
        nursery = Nursery()
        try:
            with accounting_vendor() as vendor:
                return await drill(
                    KINDS[name], faults, vendor, nursery, random.randrange(2**32), broken=broken
                )
        finally:
            nursery.close()

    return uvloop.run(main())


@pytest.mark.parametrize(
    ("name", "faults"),
    [
        ("kill:after-commit", 1),
        ("kill:in-flight", 2),
        ("kill:settled", 1),
        ("kill:revoke-acknowledged", 1),
        ("vendor:reset-moved", 20),
        ("vendor:silence", 20),
        ("clock:midnight-ahead", 2),
        ("descriptors", 1),
    ],
)
def test_L6_L9_F1_the_laws_hold_through_a_drill(name: str, faults: int) -> None:
    """The real daemon, a real kill, and the vendor's own book: nothing over, nothing lost, nothing freed."""
    if KINDS[name].missing:
        pytest.skip(KINDS[name].missing)
    found = run(name, faults)
    assert found.broken == 0, found
    assert found.faults >= faults
    assert found.seen > 0


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("vendor:reset-moved", "free-on-silence"),
        ("kill:in-flight", "send-first"),
        ("clock:midnight-ahead", "believe-the-clock"),
        ("kill:revoke-acknowledged", "revoke-in-memory"),
    ],
)
def test_L6_control_a_naive_daemon_fails_the_same_drill(name: str, broken: str) -> None:
    """Or the drill is blind."""
    assert run(name, 100, broken).broken > 0


def test_L2_a_storm_grants_the_last_dollar_and_not_a_cent_more() -> None:
    """200 agents at once against keys, a parent and a tenant: exactly what the caps leave."""
    told = asyncio.run(storm(1500, Console(quiet=True)))
    assert told.exact, told
    assert told.statuses[200] * 100 == sum(told.must.values())


def test_L6_there_are_enough_points_and_kinds() -> None:
    """At least twelve named points of an exchange, and twenty kinds of fault."""
    assert len(POINTS) >= 12
    assert len(KINDS) >= 20 + len(POINTS)
    assert {f"vendor:{name}" for name in BEHAVIOURS} - KINDS.keys() == {
        "vendor:ok",
        "vendor:slow",
        "vendor:close",
    }


VOID = {"idempotency_key": "a", "outcome": "voided", "cents": 0, "allowed": True}
SEEN = {"seen": 1, "moved": 500, "refused": False}
NOT_DONE = {"seen": 1, "moved": 0, "refused": False}
ROW = {"idempotency_key": "a", "outcome": "posted", "cents": 500, "allowed": True}


@pytest.mark.parametrize(
    ("book", "rows", "counted", "answered", "wrong"),
    [
        pytest.param(SEEN, [ROW], 500, 200, None, id="all is well"),
        pytest.param(SEEN, [ROW | {"outcome": "unknown"}], 500, 0, None, id="held"),
        pytest.param(
            SEEN | {"moved": 0, "refused": True},
            [VOID],
            0,
            402,
            None,
            id="refused",
        ),
        pytest.param(SEEN | {"moved": 700}, [ROW | {"cents": 700}], 700, 200, "cents_over", id="over"),
        pytest.param(SEEN, [ROW], 601, 200, "cents_over", id="counted over"),
        pytest.param(SEEN, [VOID], 0, 0, "freed", id="freed"),
        pytest.param(NOT_DONE, [VOID], 0, 0, "freed", id="freed, unmoved"),
        pytest.param(SEEN, [], 0, 0, "rows_missing", id="no row"),
        pytest.param(SEEN | {"seen": 2}, [ROW], 500, 200, "rows_missing", id="two calls, one row"),
        pytest.param(SEEN, [ROW | {"allowed": False}], 500, 200, "rows_missing", id="seen though denied"),
        pytest.param(SEEN, [ROW | {"cents": 400}], 400, 200, "cents_uncounted", id="counted too little"),
        pytest.param(SEEN, [ROW, ROW], 1000, 200, "cents_twice", id="counted twice"),
        pytest.param(NOT_DONE, [ROW], 500, 200, "unanswered", id="answered, not moved"),
    ],
)
def test_the_judge(book: object, rows: object, counted: int, answered: int, wrong: str | None) -> None:
    """Every law that it judges can be broken, one at a time."""
    family = Family("t", {"k": 600}, [Key("secret", "k", ("k",), {"a"})], {"a": answered})
    found = judge(family, {"a": book}, rows, {"k": counted})  # type: ignore[dict-item, arg-type]
    assert (found.broken > 0) is (wrong is not None)
    assert wrong is None or getattr(found, wrong) > 0


def test_the_judge_sees_a_revoked_key_that_is_served() -> None:
    """Law 5: begun after the acknowledgement, and seen by the vendor."""
    family = Family("t", {"k": 600}, [Key("secret", "k", ("k",), {"a"}, True, {"a"})])
    assert judge(family, {"a": SEEN}, [ROW], {"k": 500}).revoked_served == 1
    assert judge(family, {}, [ROW | {"outcome": "refused", "cents": 0}], {"k": 0}).broken == 0
