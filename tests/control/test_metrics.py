"""GET /metrics: read back by Prometheus' own parser, and equal to what happened."""

import sqlite3
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kbctld.core.ledger import Verdict
from kbctld.store import queries
from tests.control.support import Desk, desk_in
from tests.daemon.support import allowed, ask, issue, revoke
from tests.support.loop import run


async def figures(desk: Desk) -> dict[str, float]:
    """Every sample, named as Prometheus writes it."""
    answer = await desk.sees("GET", "/metrics")
    assert answer.get(b"content-type") == b"text/plain; version=0.0.4; charset=utf-8"
    found = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in found
            found[name] = sample.value
    return found


def test_what_it_tells(folder: Path) -> None:
    """Money, keys and unknown outcomes from the vault; calls and times from the tally."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            vault, tally = desk.vault, desk.tally
            grant = await issue(vault, daily_cap_nano=10 * 10**9)
            await revoke(vault, await issue(vault))
            for cents, verdict in ((150, Verdict.POSTED), (200, Verdict.SILENT), (400, None)):
                _, permit = await allowed(vault, grant, cents)
                if verdict is not None:
                    vault.settle(grant, permit.attempt, verdict)
            await ask(vault, grant, 900)
            for _ in range(2):
                tally.ended("stripe", "allowed", "posted")
            tally.ended(None, "key_unknown", "refused")
            for own_us in (0, 250, 251, 3_000_000, 10**9):
                tally.took(own_us)
            told = await figures(desk)
            assert told["kbctl_calls_total{outcome=posted,result=allowed,vendor=stripe}"] == 2
            assert told["kbctl_calls_total{outcome=refused,result=key_unknown,vendor=}"] == 1
            assert (told["kbctl_spent_usd_total"], told["kbctl_held_usd"]) == (1.5, 6)
            assert (told["kbctl_unknown_calls"], told["kbctl_unknown_usd"]) == (1, 2)
            assert (told["kbctl_keys_active"], told["kbctl_in_flight_calls"]) == (1, 0)
            assert told["kbctl_journal_up"] == 1
            assert told["kbctl_journal_batches_total"] == vault.journal.batches > 0
            assert told["kbctl_info{version=0.1.0}"] == 1
            assert told["kbctl_added_seconds_count"] == 5
            assert told["kbctl_added_seconds_sum"] == 1003.000501
            buckets = [
                told[f"kbctl_added_seconds_bucket{{le={le}}}"]
                for le in ("0.00025", "0.0005", "1.0", "10.0", "+Inf")
            ]
            assert buckets == [2, 3, 3, 4, 5]

    run(main())


def test_a_journal_that_has_stopped_is_still_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is when somebody looks; what can't be read is left out."""

    async def unreadable(_reader: object) -> int:
        raise sqlite3.OperationalError("disk I/O error")

    async def main() -> None:
        async with desk_in(folder) as desk:
            monkeypatch.setattr(queries, "unknown_totals", unreadable)
            desk.vault.journal.stopped = "the disk is gone"
            told = await figures(desk)
            assert told["kbctl_journal_up"] == 0
            assert "kbctl_unknown_usd" not in told
            desk.vault.journal.stopped = None

    run(main())
