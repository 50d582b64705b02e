"""Laws 1, 3, 5, 12 between memory and journal: a restart knows exactly what was known before it."""

import asyncio
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from kbctld.core.cost import Price, Remembered
from kbctld.core.entry import EntryError
from kbctld.core.grant import Grant
from kbctld.core.ledger import Attempt, Outcome, Verdict
from kbctld.core.policy import Permit
from kbctld.core.refusal import Code, Refusal
from kbctld.store.journal import JournalError
from kbctld.vault import Vault
from tests.daemon.support import (
    DAY_NS,
    NOON,
    POORER,
    TERMS,
    USD,
    Clock,
    allowed,
    ask,
    balances,
    crash_copy,
    holds,
    issue,
    keys,
    known,
    locked,
    replays,
    revoke,
    stored,
    vault_in,
)
from tests.support.loop import run

HOUR_NS = 3600 * 10**9


# --- restart ----------------------------------------------------------------------------------------------


class Story:
    """A random life of a vault: keys, calls, retries, ends of every kind, revocations, and time."""

    def __init__(self, vault: Vault, clock: Clock, seed: int) -> None:
        self.vault = vault
        self.clock = clock
        self.dice = random.Random(seed)
        self.flying: list[tuple[Grant, Attempt]] = []

    async def live(self, steps: int) -> None:
        await issue(self.vault, tenant="acme", label="tenant:acme", metadata={"tenant_id": "acme"})
        acts = [self.call] * 8 + [self.end] * 6 + [self.issue, self.revoke, self.later, self.remember]
        for _ in range(steps):
            await self.dice.choice(acts)()

    async def issue(self) -> None:
        dice = self.dice
        await issue(
            self.vault,
            daily_cap_nano=dice.choice([None, 50 * USD, 500 * USD]),
            total_cap_nano=dice.choice([None, 800 * USD]),
            call_cap_nano=dice.choice([None, 40 * USD]),
            allow=dice.choice([None, ("POST /v1/payment_intents", "refunds.create", "GET /v1/*")]),
            deny=dice.choice([(), ("POST /v1/charges",)]),
            label=dice.choice(["", "a/b"]),
            lifetime_ns=dice.choice([None, 30 * HOUR_NS]),
        )

    async def call(self) -> None:
        dice = self.dice
        grant = dice.choice(known(self.vault))
        cents = dice.choice([1, 100, 3999, 5000])
        replay = dice.choice([None, b"%d-%d" % (grant.no, cents), b"%d-%d'" % (grant.no, cents)])
        call = dice.choice(["POST /v1/payment_intents"] * 4 + ["GET /v1/customers/cus_1"])
        _, verdict = await ask(self.vault, grant, cents, call=call, replay=replay)
        if isinstance(verdict, Permit):
            self.flying.append((grant, verdict.attempt))

    async def end(self) -> None:
        if not self.flying:
            return
        dice = self.dice
        grant, attempt = self.flying.pop(dice.randrange(len(self.flying)))
        verdict = dice.choice([Verdict.POSTED, *Verdict])
        spent_nano = dice.choice([None] * 8 + [0, attempt.hold.nano // 2, attempt.hold.nano + 1])
        if attempt.is_retry or verdict is not Verdict.POSTED:
            spent_nano = None
        self.vault.settle(grant, attempt, verdict, spent_nano=spent_nano, replayed=dice.random() < 0.2)

    async def revoke(self) -> None:
        if self.dice.random() < 0.4:
            await revoke(self.vault, self.dice.choice(known(self.vault)))

    async def later(self) -> None:
        self.clock.ns += self.dice.choice([-HOUR_NS, 1, HOUR_NS, 13 * HOUR_NS])

    async def remember(self) -> None:
        nano = self.dice.randrange(1, 50) * USD
        counted = Remembered(nano, nano // 10**7, "USD")
        self.vault.remember("stripe", "stripe", f"pi_{self.dice.randrange(3)}", Price(nano, counts=counted))


async def objects(vault: Vault) -> dict[str, Any]:
    return await vault.recall("stripe", "stripe", [f"pi_{number}" for number in range(3)])


@pytest.mark.parametrize("seed", range(20))
def test_L6_a_restart_rebuilds_exactly_what_was_known(folder: Path, seed: int) -> None:
    """Balances, keys, holds, retries, objects: after a clean end, and from what kill -9 leaves."""
    clock = Clock()

    async def main() -> None:
        async with vault_in(folder, clock) as vault:
            await Story(vault, clock, seed).live(120)
            await vault.journal.barrier()
            before = keys(vault), balances(vault), holds(vault), await objects(vault)
            retried = replays(vault)
            crashed = crash_copy(folder, folder / "crashed")
        for place in (crashed, folder):
            async with vault_in(place, clock) as vault:
                assert (keys(vault), balances(vault), holds(vault), await objects(vault)) == before
                assert replays(vault) == retried
                assert {hold.outcome for hold in vault.ledger.open} <= {Outcome.UNKNOWN}
                assert all(grant.in_flight == 0 for grant in known(vault))
                assert stored(place, "SELECT count(*) FROM call WHERE outcome = 'pending'") == [(0,)]
                for grant in known(vault):
                    counted = stored(
                        place, f"SELECT coalesce(sum(amount_nano), 0) FROM call WHERE key_no = {grant.no}"
                    )
                    assert counted == [(grant.scopes[0].account.used_total(),)]

    run(main())


def test_law_3_a_call_that_had_not_ended_stays_held_over_days_and_restarts(folder: Path) -> None:
    """L5: two days and four restarts later it is unknown, and still counts on its own day."""
    clock = Clock()

    async def main() -> None:
        async with vault_in(folder, clock) as vault:
            grant = await issue(vault)
            row, _ = await allowed(vault, grant, 5000, replay=b"retry")
        for _ in range(4):
            clock.ns += 16 * HOUR_NS
            async with vault_in(folder, clock) as vault:
                (hold,) = vault.ledger.open
                assert (hold.call_id, hold.nano, hold.outcome) == (row.call_id, 50 * USD, Outcome.UNKNOWN)
                assert balances(vault)[grant.key_id] == ({}, {20_778: 50 * USD}, 0, 50 * USD)

    run(main())
    assert stored(folder, "SELECT outcome, amount_nano FROM call") == [("unknown", 50 * USD)]


def test_law_12_a_retry_after_a_restart_shares_the_hold_and_ends_it(folder: Path) -> None:
    """One hold, one spend; what the first row said of its end is kept."""
    clock = Clock()

    async def main() -> None:
        async with vault_in(folder, clock) as vault:
            grant = await issue(vault)
            row, permit = await allowed(vault, grant, 5000, replay=b"retry")
            vault.settle(grant, permit.attempt, Verdict.SILENT)
            row.status, row.reason, row.latency_us, row.upstream_us = 504, "no answer", 80_000, 79_000
            row.vendor_request_id = "req_1"
            vault.journal.finish(row)
        async with vault_in(folder, clock) as vault:
            (grant,) = known(vault)
            _, permit = await allowed(vault, grant, 5000, replay=b"retry")
            assert permit.replay_of == row.call_id
            assert balances(vault)[grant.key_id] == ({}, {20_778: 50 * USD}, 0, 50 * USD)
            vault.settle(grant, permit.attempt, Verdict.POSTED)
            assert balances(vault)[grant.key_id] == ({20_778: 50 * USD}, {}, 50 * USD, 0)
            # Another body under the same name is another call, and counts.
            _, other = await allowed(vault, grant, 700, replay=b"retry")
            assert other.replay_of is None
            vault.settle(grant, other.attempt, Verdict.REFUSED)

    run(main())
    found = stored(
        folder,
        "SELECT outcome, amount_nano, status, reason, latency_us, upstream_us, vendor_request_id"
        " FROM call ORDER BY no",
    )
    assert found[0] == ("posted", 50 * USD, 504, "no answer", 80_000, 79_000, "req_1")
    assert [row[:2] for row in found[1:]] == [("posted", 0), ("voided", 0)]


def test_a_key_whose_operation_is_gone_from_the_vendor_file_is_stopped(folder: Path) -> None:
    """Passing over an entry of its deny list would widen it; with the right file it goes on."""
    clock = Clock()

    async def main() -> None:
        async with vault_in(folder, clock) as vault:
            await issue(vault, deny=("refunds.create",))
            await issue(vault, allow=("refunds.create",))
            await issue(vault)
        async with vault_in(folder, clock, POORER) as vault:
            assert [grant.status(NOON) for grant in known(vault)] == ["frozen", "frozen", "active"]
            assert "refunds.create" in str(known(vault)[0].frozen)
        async with vault_in(folder, clock) as vault:
            assert [grant.status(NOON) for grant in known(vault)] == ["active"] * 3

    run(main())


# --- keys -------------------------------------------------------------------------------------------------


def test_issues_at_once_take_numbers_of_their_own(folder: Path) -> None:
    """Fifty at once, and all of them are there after a restart."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            made = await asyncio.gather(*(issue(vault) for _ in range(50)))
            assert sorted(grant.no for grant in made) == list(range(1, 51))
            before = keys(vault)
        async with vault_in(folder) as vault:
            assert keys(vault) == before

    run(main())


def test_a_key_that_could_not_be_recorded_does_not_exist(folder: Path) -> None:
    """Not in memory, not on disk."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            first = await issue(vault)
            with locked(folder), pytest.raises(JournalError):
                await issue(vault)
            assert [grant.no for grant in known(vault)] == [first.no]
            second = await issue(vault)
        async with vault_in(folder) as vault:
            assert [grant.key_id for grant in known(vault)] == [first.key_id, second.key_id]

    run(main())


def test_a_key_with_an_entry_that_can_not_be_read_does_not_exist(folder: Path) -> None:
    """Nothing was recorded either."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            with pytest.raises(EntryError):
                await issue(vault, allow=("nothing.create",))
            assert known(vault) == []

    run(main())
    assert stored(folder, "SELECT count(*) FROM vault_key") == [(0,)]


def test_a_key_is_found_by_itself_and_by_a_beginning_of_its_id(folder: Path) -> None:
    """Never by a part of the key, nor by a beginning that says nothing; on disk it is nowhere."""

    async def main() -> str:
        async with vault_in(folder) as vault:
            grant, key = await vault.issue(TERMS, "tester")
            assert await vault.find(key) is grant
            for reference in (grant.key_id, grant.key_id[:8], key):
                assert await vault.named(reference) == [grant], reference
            for reference in ("", "v", "vk", "vk_", key[:-1], key[:20], f"{key} ", "VK_" + grant.key_id[3:]):
                assert await vault.named(reference) == [], reference
            return key

    key = run(main())
    for path in folder.iterdir():
        assert key.encode() not in path.read_bytes()


# --- revoke -----------------------------------------------------------------------------------------------


def test_law_5_revoke_bites_before_it_is_durable_and_is_reported_after(folder: Path) -> None:
    """While its row is on the way the key is dead already; when revoke returns, the files say so, too."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            grant = await issue(vault)
            working = asyncio.ensure_future(revoke(vault, grant))
            await asyncio.sleep(0)
            assert not working.done()
            _, verdict = await ask(vault, grant)
            assert isinstance(verdict, Refusal)
            assert verdict.code is Code.KEY_REVOKED
            assert await working == [grant.no]
            crashed = crash_copy(folder, folder / "crashed")
            assert await revoke(vault, grant) == []
        async with vault_in(crashed) as vault:
            assert [found.status(NOON) for found in known(vault)] == ["revoked"]

    run(main())


def test_law_5_a_revocation_that_can_not_be_recorded_bites_and_is_not_claimed(folder: Path) -> None:
    """Asked again once the database answers, it is durable, though memory had it all along."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            grant = await issue(vault)
            with locked(folder):
                with pytest.raises(JournalError):
                    await revoke(vault, grant)
                assert grant.status(NOON) == "revoked"
            assert await revoke(vault, grant) == []
            crashed = crash_copy(folder, folder / "crashed")
        async with vault_in(crashed) as vault:
            assert [found.status(NOON) for found in known(vault)] == ["revoked"]

    run(main())


def test_D4_revoke_works_in_memory_when_nothing_is_recorded_any_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database failed: every key can still be stopped, and no call is allowed to leave."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            grant = await issue(vault)

            async def fail() -> None:
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                raise error

            monkeypatch.setattr(vault.journal.database.writer, "commit", fail)
            with pytest.raises(JournalError):
                await ask(vault, grant)
            monkeypatch.undo()
            with pytest.raises(JournalError, match="restart"):
                await revoke(vault, grant)
            assert grant.status(NOON) == "revoked"
            with pytest.raises(JournalError, match="restart"):
                await issue(vault)

    run(main())


def test_a_revocation_overtakes_the_issue_that_it_ends(folder: Path) -> None:
    """`revoke --all` while a key is on its way to disk: it is born revoked."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            coming = asyncio.ensure_future(issue(vault))
            await asyncio.sleep(0)
            await revoke(vault, *known(vault))
            assert (await coming).status(NOON) == "revoked"
        async with vault_in(folder) as vault:
            assert [found.status(NOON) for found in known(vault)] == ["revoked"]

    run(main())


# --- money and time ---------------------------------------------------------------------------------------


def test_an_overage_is_posted_and_freezes_the_key_for_good(folder: Path) -> None:
    """The truth counts though it is larger, and then the key spends no more; also after a restart."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            grant = await issue(vault)
            _, permit = await allowed(vault, grant, 1000)
            vault.settle(grant, permit.attempt, Verdict.POSTED, spent_nano=10 * USD + 1)
            assert balances(vault)[grant.key_id][0] == {20_778: 10 * USD + 1}
            _, verdict = await ask(vault, grant, 1)
            assert isinstance(verdict, Refusal)
            assert "cost more" in verdict.sentence
        async with vault_in(folder) as vault:
            (grant,) = known(vault)
            assert grant.status(NOON) == "frozen"
            assert grant.scopes[0].account.posted_total == 10 * USD + 1

    run(main())


@pytest.mark.parametrize("spent", [0, 1, 10 * USD])
def test_a_truth_within_the_hold_releases_the_rest_and_freezes_nothing(folder: Path, spent: int) -> None:
    """Zero is a value, too."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            grant = await issue(vault)
            row, permit = await allowed(vault, grant, 1000)
            vault.settle(grant, permit.attempt, Verdict.POSTED, spent_nano=spent)
            assert (row.outcome, row.amount_nano) == ("posted", spent)
            assert grant.status(NOON) == "active"
        async with vault_in(folder) as vault:
            assert balances(vault)[grant.key_id] == ({20_778: spent} if spent else {}, {}, spent, 0)

    run(main())


@pytest.mark.parametrize("back_ns", [1, HOUR_NS, DAY_NS, 400 * DAY_NS])
@pytest.mark.parametrize("restarted", [False, True])
def test_L9_a_step_back_of_the_clock_opens_nothing(folder: Path, back_ns: int, restarted: bool) -> None:
    """No earlier day with room left, no expired key alive again; a restart does not forget it."""
    clock = Clock(NOON)

    async def stays_closed(vault: Vault) -> None:
        assert vault.now_ns() == NOON + HOUR_NS
        for grant, code in zip(known(vault), (Code.KEY_EXPIRED, Code.CAP_EXHAUSTED), strict=True):
            _, verdict = await ask(vault, grant, 1)
            assert isinstance(verdict, Refusal)
            assert verdict.code is code

    async def main() -> None:
        async with vault_in(folder, clock) as vault:
            short = await issue(vault, lifetime_ns=HOUR_NS)
            full = await issue(vault, daily_cap_nano=USD)
            clock.ns = NOON + HOUR_NS
            assert short.status(vault.now_ns()) == "expired"
            await allowed(vault, full, 100)
            clock.ns -= back_ns
            if not restarted:
                await stays_closed(vault)
        if restarted:
            async with vault_in(folder, clock) as vault:
                await stays_closed(vault)

    run(main())


def test_L8_a_hold_counts_on_its_own_day_and_is_posted_there(folder: Path) -> None:
    """Taken before midnight, ended after it; the next day has its whole cap, on both sides of a restart."""
    clock = Clock(20_778 * DAY_NS + DAY_NS - 1)

    async def main() -> None:
        async with vault_in(folder, clock) as vault:
            grant = await issue(vault, daily_cap_nano=10 * USD)
            _, late = await allowed(vault, grant, 1000)
            assert isinstance((await ask(vault, grant, 1))[1], Refusal)
            clock.ns += 1
            _, early = await allowed(vault, grant, 1000)
            assert isinstance((await ask(vault, grant, 1))[1], Refusal)
            vault.settle(grant, late.attempt, Verdict.POSTED)
            vault.settle(grant, early.attempt, Verdict.POSTED)
            expected = {20_778: 10 * USD, 20_779: 10 * USD}
            assert balances(vault)[grant.key_id][0] == expected
        async with vault_in(folder, clock) as vault:
            assert balances(vault)[grant.key_id] == (expected, {}, 20 * USD, 0)
            assert isinstance((await ask(vault, known(vault)[0], 1))[1], Refusal)

    run(main())


def test_a_call_that_could_not_be_recorded_holds_nothing_afterwards(folder: Path) -> None:
    """Its hold is released by who asked; what was held meanwhile was only ever too much."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            grant = await issue(vault)
            with locked(folder), pytest.raises(JournalError):
                await ask(vault, grant, 1000)
            (hold,) = vault.ledger.open
            vault.settle(grant, Attempt(hold, hold.row, is_retry=False), Verdict.UNSENT)
            assert balances(vault)[grant.key_id] == ({}, {}, 0, 0)
        async with vault_in(folder) as vault:
            assert balances(vault)[grant.key_id] == ({}, {}, 0, 0)

    run(main())
    assert stored(folder, "SELECT count(*) FROM call") == [(0,)]
