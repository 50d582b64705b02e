"""GET /spend: sums by every dimension, and caps where a line has one."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kbctl import wire
from kbctld.core.ledger import Verdict
from kbctld.core.limits import Limits
from kbctld.vault import Vault
from tests.control.support import Desk, code, desk_in
from tests.daemon.support import DAY_NS, NOON, USD, Clock, allowed, ask, issue
from tests.support.loop import run


async def lines(desk: Desk, query: str) -> dict[str, tuple[int, int, Decimal, Decimal, Decimal | None]]:
    answer = await desk.sees("GET", f"/spend?{query}")
    assert answer.status == 200, answer.body
    found = msgspec.json.decode(answer.body, type=list[wire.Spend])
    return {
        line.name: (line.calls, line.refused, line.spent_usd, line.held_usd, line.cap_usd) for line in found
    }


async def history(vault: Vault, clock: Clock) -> dict[str, str]:
    """Yesterday 7 dollars of acme; today 1 posted, 2 unknown, 4 pending, 8 voided, and refusals."""
    acme = await issue(vault, tenant="acme", label="a/tenant:acme", metadata={"agent_id": "a1"})
    other = await issue(vault, daily_cap_nano=None, total_cap_nano=100 * USD, label="b")
    _, permit = await allowed(vault, acme, 700)
    vault.settle(acme, permit.attempt, Verdict.POSTED)
    clock.ns = NOON
    for cents, verdict in ((100, Verdict.POSTED), (200, Verdict.SILENT), (400, None), (800, Verdict.REFUSED)):
        _, permit = await allowed(vault, acme, cents)
        if verdict is not None:
            vault.settle(acme, permit.attempt, verdict)
    for _ in range(3):
        await ask(vault, other, 20_000)
    lost = vault.new_row()
    lost.policy_check_result, lost.outcome = "key_unknown", "refused"
    await vault.journal.refuse(lost)
    return {"acme": acme.key_id, "other": other.key_id}


N = Decimal("0.00")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"ACME": (4, 0, 1, 6, 500), "OTHER": (3, 3, 0, 0, None), "": (1, 1, 0, 0, None)}),
        (
            "by=key&from=2026-11-20T00:00:00Z",
            {"ACME": (5, 0, 8, 6, None), "OTHER": (3, 3, 0, 0, 100), "": (1, 1, 0, 0, None)},
        ),
        ("by=key&to=2026-11-21T00:00:00Z&from=2026-11-20T00:00:00Z", {"ACME": (1, 0, 7, 0, 500)}),
        ("by=tenant", {"acme": (4, 0, 1, 6, 2000), "": (4, 4, 0, 0, None)}),
        ("by=vendor", {"stripe": (7, 3, 1, 6, None), "": (1, 1, 0, 0, None)}),
        ("by=label", {"a/tenant:acme": (4, 0, 1, 6, None), "b": (3, 3, 0, 0, None), "": (1, 1, 0, 0, None)}),
        ("by=agent", {"a1": (4, 0, 1, 6, None), "": (4, 4, 0, 0, None)}),
        ("by=run", {"": (8, 4, 1, 6, None)}),
        (
            "by=day&from=2026-11-01T00:00:00Z",
            {"2026-11-20": (1, 0, 7, 0, None), "2026-11-21": (8, 4, 1, 6, None)},
        ),
        ("from=2026-11-21T13:00:00Z&to=2026-11-22T00:00:00Z", {}),
        (
            "from=0001-01-01T00:00:00Z&to=9999-12-31T00:00:00Z&by=vendor",
            {"stripe": (8, 3, 8, 6, None), "": (1, 1, 0, 0, None)},
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_sums(folder: Path, query: str, expected: dict[str, tuple[Any, ...]]) -> None:
    """Posted is spent; pending and unknown are held; voided and refused are neither."""

    async def main() -> None:
        clock = Clock(NOON - DAY_NS)
        async with desk_in(folder, clock) as desk:
            ids = await history(desk.vault, clock)
            await desk.vault.set_tenant("acme", Limits(daily_cap_nano=2000 * USD), "tester")
            named = {
                ids.get(name.lower(), name) if name.isupper() else name: line
                for name, line in expected.items()
            }
            found = await lines(desk, query)
            assert found == named
            assert list(found)[:1] == list(named)[:1]  # largest first, days in order

    run(main())


def test_folded_refusals_count(folder: Path) -> None:
    """A flood is one row, and all of it in the report."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            grant = await issue(desk.vault, daily_cap_nano=USD)
            for _ in range(1010):
                await ask(desk.vault, grant, 200)
            desk.vault.journal._flush_all()
            assert await lines(desk, "by=key") == {grant.key_id: (1010, 1010, N, N, Decimal(1))}

    run(main())


@pytest.mark.parametrize(
    "query",
    [
        "by=colour",
        "by=",
        "from=x",
        "from=2026-11-22T00:00:00Z",
        "from=2026-11-21T00:00:00Z&to=2026-11-21T00:00:00Z",
    ],
)
def test_what_is_no_report(folder: Path, query: str) -> None:
    """400 that names the parameter."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            answer = await desk.sees("GET", f"/spend?{query}")
            assert (answer.status, code(answer)) == (400, "invalid_request")
            assert query.partition("=")[0] in answer.json["error"]["message"]

    run(main())


def test_vendors(folder: Path) -> None:
    """What keys can be issued for, and with which credentials."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            (vendor,) = (await desk.sees("GET", "/vendors")).json["vendors"]
            assert (vendor["name"], vendor["origin"]) == ("stripe", "https://api.stripe.com")
            assert vendor["credentials"] == ["stripe"]
            assert vendor["operations"] > 10

    run(main())
