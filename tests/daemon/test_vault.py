"""Laws 1, 3, 5, 12 between memory and journal: a restart knows exactly what was known before it."""

import asyncio
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from kbctl import wire
from kbctld import vault as vaults
from kbctld.control.terms import pushed, resolve
from kbctld.core.cost import Remembered
from kbctld.core.entry import EntryError
from kbctld.core.grant import Grant
from kbctld.core.ledger import Attempt, Outcome, Verdict, day_of
from kbctld.core.limits import Limits
from kbctld.core.pace import read_rate
from kbctld.core.policy import Permit, admit
from kbctld.core.refusal import Code, Refusal
from kbctld.core.vault_key import digest, mint
from kbctld.core.vendor import Vendor
from kbctld.store import database as databases
from kbctld.store import queries
from kbctld.store.anchor import Anchor, Height
from kbctld.store.changes import limits_of_row
from kbctld.store.database import APPLICATION_ID, open_database
from kbctld.store.journal import JournalError
from kbctld.store.kept import kept_of
from kbctld.store.verify import Walk
from kbctld.vault import Selection, Terms, Vault
from tests.core.support import access
from tests.daemon.support import (
    DAY_NS,
    MAIL,
    NOON,
    POORER,
    RATES,
    STRIPE,
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
    terms,
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
        self.vault.remember("stripe", "stripe", f"pi_{self.dice.randrange(3)}", counted)


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


def test_a_busy_key_that_is_read_in_keeps_nobody_waiting(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls of a day are taken in by parts: between two of them the loop serves others."""
    at_once: list[int] = []
    real, count = vaults._stored_hold, 1200

    def counted(key_no: int, row: Mapping[str, Any]) -> Any:
        at_once[-1] += 1
        return real(key_no, row)

    async def others() -> None:
        while True:
            at_once.append(0)
            await asyncio.sleep(0)

    async def main() -> None:
        async with vault_in(folder) as vault:
            grant = await issue(vault)
            made = await asyncio.gather(*(allowed(vault, grant, 1, replay=b"%d" % n) for n in range(count)))
            for _, permit in made:
                vault.settle(grant, permit.attempt, Verdict.POSTED)
        monkeypatch.setattr(vaults, "_stored_hold", counted)
        other = asyncio.create_task(others())
        await asyncio.sleep(0)
        async with vault_in(folder) as vault:
            assert len(replays(vault)) == count
        other.cancel()

    run(main())
    assert sum(at_once) == count
    assert max(at_once) <= 500


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


def test_keys_with_the_same_list_have_it_in_common(folder: Path) -> None:
    """It is read and laid out once, however many keys a policy or a parent gives it to."""

    async def main() -> None:
        lines = tuple(f"GET /v1/things/{number}" for number in range(200))
        async with vault_in(folder) as vault:
            one, two = await issue(vault, allow=lines), await issue(vault, allow=lines, deny=lines)
            other = await issue(vault, allow=lines[1:])
            assert one.allow is two.allow is two.deny
            assert other.allow is not None
            assert [entry.text for entry in other.allow] == list(lines[1:])

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

            def fail(_connection: sqlite3.Connection) -> None:
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                raise error

            monkeypatch.setattr(databases, "commit", fail)
            with pytest.raises(JournalError):
                await ask(vault, grant)
            monkeypatch.undo()
            with pytest.raises(JournalError, match="restart"):
                await revoke(vault, grant)
            assert grant.status(NOON) == "revoked"
            with pytest.raises(JournalError, match="restart"):
                await issue(vault)

    run(main())


def test_ids_of_calls_stand_in_the_order_of_their_times() -> None:
    """Ids at random put each call of a batch into a page of its own: most of what a commit wrote."""
    names = vaults._Names()
    moments = [0, 1, 61, 62, 62**3, NOON // 10**6, NOON // 10**6 + 1, 62**7 - 1]
    ids = [names.of_call(ms) for ms in moments for _ in range(3)]
    assert [each[:12] for each in sorted(ids)] == [each[:12] for each in ids]
    assert len(set(ids)) == len(ids)
    assert {len(each) for each in [*ids, names.of_call(62**7), names.of_call(-1)]} == {len("call_") + 16}


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


# --- keys are read when they are used ---------------------------------------------------------------------


@asynccontextmanager
async def cold(
    folder: Path, clock: Clock | None = None, vendors: Mapping[str, Vendor] | None = None
) -> AsyncIterator[Vault]:
    """A vault as a start leaves it: only keys with open holds are in memory."""
    database = await open_database(folder / "kbctl.db", folder / "kbctl.anchor", accept_rollback=False)
    clock = clock or Clock()
    vault = Vault(database, vendors or {"stripe": STRIPE}, RATES, wall_ns=clock, boot_ns=clock)
    try:
        await vault.load()
        yield vault
    finally:
        await vault.close()


async def found(vault: Vault, key: str) -> Grant:
    grant = await vault.find(key)
    assert grant is not None
    return grant


def test_L6_a_key_is_found_at_its_first_use_with_all_that_belongs_to_it(folder: Path) -> None:
    """Limits, balance, requests and retries; with it its ancestors and tenant, and nobody else."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            await issue(vault)
            root, _ = await vault.issue(terms(tenant="acme", daily_cap_nano=9 * USD), "tester")
            _, key = await vault.issue(terms(tenant="acme", daily_cap_nano=5 * USD, parent=root), "tester")
            row, permit = await allowed(vault, await found(vault, key), 300, replay=b"again")
            vault.settle(await found(vault, key), permit.attempt, Verdict.POSTED)
        async with cold(folder) as vault:
            assert known(vault) == []
            assert await vault.find(key[:-1]) is None
            grant = await found(vault, key)
            assert known(vault) == [grant.parent, grant]
            assert [scope.name for scope in grant.scopes] == [grant.key_id, root.key_id, "tenant:acme"]
            assert [scope.account.posted for scope in grant.scopes] == [{20_778: 3 * USD}] * 3
            assert [scope.account.requests for scope in grant.scopes] == [{20_778: 1}] * 3
            _, retry = await allowed(vault, grant, 300, replay=b"again")
            assert retry.replay_of == row.call_id
            _, verdict = await ask(vault, grant, 201)
            assert isinstance(verdict, Refusal)
            assert verdict.code is Code.CAP_EXHAUSTED
            await allowed(vault, grant, 200)

    run(main())


def test_L6_a_key_with_an_open_hold_is_in_memory_from_the_start_and_so_is_all_above_it(folder: Path) -> None:
    """Another key of its tenant, read later, finds the hold on the tenant's account."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            root, _ = await vault.issue(terms(tenant="acme"), "tester")
            child, _ = await vault.issue(terms(tenant="acme", parent=root), "tester")
            await allowed(vault, child, 300)
            _, key = await vault.issue(terms(tenant="acme"), "tester")
            await vault.set_tenant("acme", Limits(daily_cap_nano=5 * USD), "tester")
        async with cold(folder) as vault:
            assert [grant.no for grant in known(vault)] == [root.no, child.no]
            (hold,) = vault.ledger.open
            other = await found(vault, key)
            assert other.scopes[-1] is known(vault)[0].scopes[-1] is await vault.tenant("acme")
            assert other.scopes[-1].account.held == {20_778: hold.nano}
            assert isinstance((await ask(vault, other, 201))[1], Refusal)
            await allowed(vault, other, 200)

    run(main())


def test_L1_first_uses_at_once_give_one_grant_and_one_account(folder: Path) -> None:
    """Two would be two caps: by the key, by its id, by a child, and a tenant by any of its keys."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            root, key = await vault.issue(terms(tenant="acme", daily_cap_nano=5 * USD), "tester")
            _, below = await vault.issue(terms(tenant="acme", parent=root), "tester")
            _, other = await vault.issue(terms(tenant="acme"), "tester")
        async with cold(folder) as vault:
            tenant, named, _, (seen, child, sibling, again) = await asyncio.gather(
                vault.tenant("acme"),
                vault.named(root.key_id),
                vault.views([root.no]),
                asyncio.gather(*(found(vault, each) for each in (key, below, other, key))),
            )
            assert seen is again is named[0] is child.parent
            assert len(known(vault)) == 3
            assert {scope for each in (seen, child, sibling) for scope in each.scopes} == {
                *(seen.scope, child.scope, sibling.scope, tenant)
            }
            calls = [ask(vault, each, 100) for each in (seen, child) for _ in range(5)]
            verdicts = [verdict for _, verdict in await asyncio.gather(*calls)]
            assert sum(isinstance(verdict, Permit) for verdict in verdicts) == 5

    run(main())


def test_looking_at_a_key_does_not_bring_it_into_memory(folder: Path) -> None:
    """A list of all keys reads them all; whoever is used later is still one."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            root, key = await vault.issue(terms(tenant="acme"), "tester")
            await issue(vault, tenant="acme", parent=root)
        async with cold(folder) as vault:
            numbers = await queries.page_of_keys(vault.journal.database.readers, queries.KeyFilter())
            viewed = await vault.views([number % queries.DERIVED for number in numbers])
            assert [grant.no for grant in viewed] == [1, 2]
            assert known(vault) == []
            assert await found(vault, key) not in viewed

    run(main())


class Ticks:
    """A monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.ns = 10**18

    def __call__(self) -> int:
        return self.ns


async def forget_all(vault: Vault, busy: int = 0) -> set[int]:
    """Every key that nobody uses is let go of; gives the numbers of those that stay."""
    for _ in range(4):
        await vault.forget_idle(lambda grant: grant.no == busy)
    return {grant.no for grant in vault.loaded()}


def test_keys_that_nobody_uses_leave_memory_and_come_back_with_all_they_spent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys used once would otherwise fill it. None goes that memory alone knows something of."""
    monkeypatch.setattr(vaults, "IDLE_KEPT", 0)

    async def main() -> None:
        async with vault_in(folder) as vault:
            ticks = Ticks()
            vault._tick_ns = ticks
            spent, spent_key = await vault.issue(terms(tenant="acme", daily_cap_nano=10 * USD), "tester")
            holding = await issue(vault, tenant="acme")
            parent = await issue(vault)
            child = await issue(vault, parent=parent)
            paced = await issue(vault, rate=read_rate("2/h"))
            busy = await issue(vault)
            _, permit = await allowed(vault, spent, 900)
            vault.settle(spent, permit.attempt, Verdict.POSTED)
            await allowed(vault, holding, 100)
            vault.settle(paced, (await allowed(vault, paced, 0))[1].attempt, Verdict.REFUSED)
            assert await forget_all(vault) == {1, 2, 3, 4, 5, 6}, "all were used just now"
            ticks.ns += 16 * 60 * 10**9
            child.used_ns = ticks.ns
            assert await forget_all(vault, busy.no) == {holding.no, parent.no, child.no, paced.no, busy.no}
            del permit
            again = await found(vault, spent_key)
            assert again is not spent
            assert again.scope.account.used(day_of(NOON)) == 9 * USD
            assert again.scopes[1] is holding.scopes[1], "a tenant has one account, ever"
            assert isinstance((await ask(vault, again, 101))[1], Refusal)
            await allowed(vault, again, 100)
            ticks.ns += 3600 * 10**9
            assert await forget_all(vault) == {spent.no, holding.no}, "both have calls under way"

    run(main())


@pytest.mark.parametrize("what", ["revoked", "unwritten"])
def test_a_key_stays_while_what_became_of_it_is_not_on_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It would be read back as it was before: a revocation, or money spent, would be forgotten."""
    monkeypatch.setattr(vaults, "IDLE_KEPT", 0)

    async def main() -> None:
        async with vault_in(folder) as vault:
            vault.patience_s = 0.1
            ticks = Ticks()
            vault._tick_ns = ticks
            grant = await issue(vault)
            _, permit = await allowed(vault, grant, 900)
            with locked(folder):
                if what == "revoked":
                    vault.settle(grant, permit.attempt, Verdict.REFUSED)
                    with pytest.raises(JournalError):
                        await revoke(vault, grant)
                else:
                    vault.settle(grant, permit.attempt, Verdict.POSTED)
                ticks.ns += 16 * 60 * 10**9
                assert await forget_all(vault) == {grant.no}
            await vault.journal.flushed()
            assert await forget_all(vault) == set()
            (back,) = await vault.named(grant.key_id)
            assert (back.revoked_ns is not None) is (what == "revoked")
            assert back.scope.account.used(day_of(NOON)) == (0 if what == "revoked" else 9 * USD)

    run(main())


class HeldUp:
    """All readings but one task's, held up before or after one of them until somebody says go."""

    def __init__(self, vault: Vault, at: int) -> None:
        self.spared = asyncio.current_task()
        self.read = vault._read
        self.at = at
        self.points = 0
        self.reached = asyncio.Event()
        self.go = asyncio.Event()
        self.task: asyncio.Task[Grant] | None = None

    async def __call__(self, reading: Awaitable[Any]) -> Any:
        if asyncio.current_task() is self.spared:
            return await self.read(reading)
        await self.point()
        result = await self.read(reading)
        await self.point()
        return result

    async def point(self) -> None:
        if self.points == self.at:
            self.reached.set()
            await self.go.wait()
        self.points += 1


SELECTIONS = {
    "itself": Selection(frozenset({2})),
    "its parent": Selection(frozenset({1})),
    "its tenant": Selection(tenant="acme"),
    "its label": Selection(label="run:1"),
    "all": Selection(all=True),
}


@pytest.mark.parametrize("which", SELECTIONS)
def test_law_5_a_key_that_is_revoked_while_it_is_read_is_never_let_through(
    folder: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first use is held up at each reading of the database in turn, before and after it, meanwhile."""

    async def held_up(place: Path, at: int) -> bool:
        async with vault_in(place) as vault:
            root, _ = await vault.issue(terms(tenant="acme", label="run:1/tenant:acme"), "tester")
            also = terms(tenant="acme", label="run:1/tenant:acme", parent=root)
            child, key = await vault.issue(also, "tester")
        async with cold(place) as vault:
            held = HeldUp(vault, at)
            monkeypatch.setattr(vault, "_read", held)
            held.task = asyncio.ensure_future(found(vault, key))
            stop = asyncio.ensure_future(held.reached.wait())
            await asyncio.wait([held.task, stop], return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            if not held.reached.is_set():
                return False
            stopped = (await vault.revoke(SELECTIONS[which], "tester")).stopped
            assert sorted(stopped) == ([child.no] if which == "itself" else [root.no, child.no])
            crashed = crash_copy(place, place / "crashed")
            held.go.set()
            for grant in (await held.task, await found(vault, key)):
                _, verdict = await ask(vault, grant)
                assert isinstance(verdict, Refusal), at
                assert verdict.code is Code.KEY_REVOKED
            assert not vault._revoking
        async with cold(crashed) as vault:
            assert (await found(vault, key)).status(NOON) == "revoked"
        return True

    async def main() -> int:
        for at in range(40):
            place = folder / str(at)
            place.mkdir()
            if not await held_up(place, at):
                return at
        return 0

    assert run(main()) >= 2


def test_law_5_control_without_the_list_of_revocations_under_way_a_read_would_overtake_one(
    folder: Path,
) -> None:
    """The row that was read before the revocation was on disk says that the key lives."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            grant, key = await vault.issue(TERMS, "tester")
        async with cold(folder) as vault:
            kept = await kept_of(
                vault.journal.database.reader,
                numbers=[grant.no],
                known=lambda _number: False,
                calls_since_ns=0,
            )
            await vault.revoke(Selection(frozenset({grant.no})), "tester")
            vault._revoking.clear()
            await vault._enter(kept)
            assert [grant.status(NOON) for grant in known(vault)] == ["active"]
        async with cold(folder) as vault:
            assert (await found(vault, key)).status(NOON) == "revoked"

    run(main())


def test_a_key_that_had_expired_is_not_called_revoked_by_a_revocation_of_many(folder: Path) -> None:
    """Read while its tenant is revoked or before, it has expired; the database says so, too."""
    clock = Clock()

    async def main() -> None:
        async with vault_in(folder, clock) as vault:
            _, key = await vault.issue(terms(tenant="acme", lifetime_ns=HOUR_NS), "tester")
        clock.ns += HOUR_NS
        async with cold(folder, clock) as vault:
            selection = Selection(tenant="acme")
            revoking = asyncio.ensure_future(vault.revoke(selection, "tester"))
            await asyncio.sleep(0)
            assert set(vault._revoking) == {selection}
            assert (await found(vault, key)).status(clock.ns) == "expired"
            assert (await revoking).stopped == []
        assert stored(folder, "SELECT revoked_ns FROM vault_key") == [(None,)]

    run(main())


# --- pauses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["pause", "resume"])
def test_of_a_pause_and_a_resume_under_way_the_later_one_holds(folder: Path, last: str) -> None:
    """In memory as on disk."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            grant = await issue(vault)
            await vault.pause(grant, "why", "tester")
            asked = [None, "why"] if last == "pause" else ["why", None]
            await asyncio.gather(*(vault.pause(grant, why, "tester") for why in asked))
            assert grant.status(NOON) == ("paused" if last == "pause" else "active")
        async with vault_in(folder) as vault:
            assert known(vault)[0].status(NOON) == ("paused" if last == "pause" else "active")

    run(main())


# --- lists that name operations of several vendors --------------------------------------------------------


def test_law_9_a_child_may_reach_fewer_vendors_than_the_list_of_its_parent_names(folder: Path) -> None:
    """What the list says of the others reaches nothing; after a restart as well."""
    both = {"stripe": STRIPE, "mail": MAIL}

    def resolved(parent: Grant) -> Terms:
        return resolve(
            wire.IssueRequest(),
            vendors=("stripe",),
            known=both,
            policy=None,
            parent=parent,
            default_vendors=("stripe",),
            now_ns=NOON,
        )

    async def main() -> None:
        async with cold(folder, vendors=both) as vault:
            names = ("mails.send", "refunds.create")
            parent = await issue(vault, vendors=("mail", "stripe"), allow=names, deny=("mails.send",))
            child, key = await vault.issue(resolved(parent), "tester")
            assert child.vendors == ("stripe",)
        async with cold(folder, vendors=both) as vault:
            child = await found(vault, key)
            assert child.status(NOON) == "active"
            for call, code in [
                (access("POST /v1/refunds", vendor=STRIPE), None),
                (access("POST /v1/payment_intents", vendor=STRIPE), Code.ENDPOINT_NOT_ALLOWED),
                (access("POST /v1/mails", vendor=MAIL), Code.VENDOR_NOT_ALLOWED),
            ]:
                refusal = admit(child, call, NOON)
                assert (refusal and refusal.code) == code

    run(main())


def test_law_10_a_policy_that_has_no_vendor_in_common_with_a_key_leaves_it_none(folder: Path) -> None:
    """Neither the policy's, which the key was not issued for, nor its own, which the policy no longer has."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            grant = await issue(vault, policy="gold", said='{"vendors":["stripe"]}')

            def push(row: dict[str, Any]) -> Limits:
                said = {"daily_cap_nano": USD, "vendors": ("mail",)}
                return pushed(row, said, {"stripe": STRIPE, "mail": MAIL}, limits_of_row(row))

            assert await vault.set_policies({"gold": "{}"}, push, "tester") == [grant.key_id]
            _, verdict = await ask(vault, grant)
            assert isinstance(verdict, Refusal)
            assert verdict.code is Code.VENDOR_NOT_ALLOWED

    run(main())


# --- the schema before ------------------------------------------------------------------------------------

OLD_KEYS = [
    # no, tenant, label, revoked
    (1, "acme", "tenant:acme/agent:x", None),
    (2, "acme", "/agent:y//tenant:acme/agent:y/", None),
    (3, None, "", None),
    (4, "acme2", "tenant:acme2", NOON),
]
OLD_SPEND = [(1, 20_777, 5 * USD), (1, 20_778, 7 * USD), (2, 20_778, 11 * USD), (4, 20_700, 13 * USD)]
OLD_CALLS = [
    # key, time, nano, outcome, result, replay digest, replay of
    (1, NOON - DAY_NS, 5 * USD, "posted", "allowed", None, None),
    (1, NOON, 7 * USD, "posted", "allowed", b"again", None),
    (1, NOON, 0, "posted", "allowed", b"again", "call_2"),
    (1, NOON, 0, "refused", "cap_exhausted", None, None),
    (2, NOON, 11 * USD, "posted", "allowed", None, None),
    (2, NOON, 2 * USD, "pending", "allowed", None, None),
    (3, NOON, 0, "voided", "allowed", None, None),
    (None, NOON, 0, "refused", "key_unknown", None, None),
]


def make_old(folder: Path) -> list[str]:
    """A database of schema 1, as its own release would have left it, and the keys that are in it."""
    initial = resources.files("kbctld.store") / "migrations" / "0001_initial.sql"
    secrets = [mint(bytes([no]) * 32) for no, *_ in OLD_KEYS]
    path = folder / "kbctl.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(initial.read_text(encoding="utf-8"))
        old.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;")
        for (no, tenant, label, revoked), secret in zip(OLD_KEYS, secrets, strict=True):
            old.execute(
                "INSERT INTO vault_key VALUES (?, ?, ?, ?, '[\"stripe\"]', ?, NULL, NULL, NULL, '[]',"
                " ?, ?, '{}', NULL, ?, NULL, ?, NULL)",
                (
                    no,
                    f"vk_{no}",
                    digest(secret),
                    secret[-4:],
                    20 * USD,
                    label,
                    tenant,
                    NOON - DAY_NS,
                    revoked,
                ),
            )
        old.executemany("INSERT INTO spend VALUES (?, ?, ?)", OLD_SPEND)
        for no, (key_no, ts_ns, nano, outcome, result, replay, replay_of) in enumerate(OLD_CALLS, start=1):
            old.execute(
                "INSERT INTO call (no, call_id, ts_ns, key_no, amount_nano, outcome, policy_check_result,"
                " request_digest, replay_digest, replay_of) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (no, f"call_{no}", ts_ns, key_no, nano, outcome, result, REQUEST_700, replay, replay_of),
            )
        old.execute("UPDATE meta SET value = 4 WHERE key = 'changes'")
        old.commit()
    path.chmod(0o600)
    anchor = Anchor(folder / "kbctl.anchor")
    anchor.reset(Height(len(OLD_CALLS), 4))
    anchor.close()
    return secrets


REQUEST_700 = b"amount=700&curre"


def test_a_database_of_the_first_schema_is_carried_over_whole(folder: Path) -> None:
    """Balances, tenants' sums, requests, label segments, holds and retries; a copy of what it was stays."""
    secrets = make_old(folder)

    async def main() -> None:
        async with cold(folder) as vault:
            assert [grant.no for grant in known(vault)] == [2]  # it has the open hold
            first, second, third, last = [await found(vault, secret) for secret in secrets]
            days = {20_777: 5 * USD, 20_778: 7 * USD}
            assert first.scope.account.posted == days
            assert first.scope.account.requests == {20_777: 1, 20_778: 2}
            assert second.scope.account.posted == {20_778: 11 * USD}
            assert second.scope.account.held == {20_778: 2 * USD}
            assert second.scope.account.requests == {20_778: 2}
            assert third.scope.account.used_total() == 0
            assert third.scope.account.requests == {20_778: 1}
            tenant = first.scopes[-1]
            assert tenant is second.scopes[-1]
            assert tenant.account.posted == {20_777: 5 * USD, 20_778: 18 * USD}
            assert tenant.account.held == {20_778: 2 * USD}
            assert tenant.account.requests == {20_777: 1, 20_778: 4}
            assert last.scopes[-1].account.posted == {20_700: 13 * USD}
            assert [grant.status(NOON) for grant in (first, second, third, last)] == ["active"] * 3 + [
                "revoked"
            ]
            assert {grant.scope.daily_cap_nano for grant in known(vault)} == {20 * USD}
            assert [grant.parent for grant in known(vault)] == [None] * 4
            for label, numbers in [
                ("tenant:acme", [1, 2]),
                ("agent:y", [2]),
                ("agent:x/tenant:acme", [1]),
                ("tenant:acme2", [4]),
                ("acme", []),
            ]:
                wanted = queries.KeyFilter(labels=(label,))
                rows = await queries.key_numbers(vault.journal.database.reader, wanted)
                assert sorted(rows) == numbers, label
            _, retry = await allowed(vault, first, 700, replay=b"again")
            assert retry.replay_of == "call_2"
            assert isinstance((await ask(vault, first, 1301))[1], Refusal)
            await allowed(vault, first, 1300)
            stopped = (await vault.revoke(Selection(label="tenant:acme"), "tester")).stopped
            assert sorted(stopped) == [1, 2]

    run(main())
    segments = stored(folder, "SELECT segment, key_no FROM label_segment ORDER BY key_no, segment")
    assert segments == [
        *(("agent:x", 1), ("tenant:acme", 1), ("agent:y", 2), ("tenant:acme", 2), ("tenant:acme2", 4)),
    ]
    # What there was before the chain is in it, and so is what came since.
    walk = Walk(folder / "kbctl.db")
    assert walk.run() is None
    assert walk.calls == len(OLD_CALLS) + 3
    (kept,) = (folder / "backups").iterdir()
    with closing(sqlite3.connect(kept)) as copy:
        assert copy.execute("SELECT * FROM spend ORDER BY key_no, day").fetchall() == OLD_SPEND


@dataclass
class Boot:
    """The machine's boot clock: it goes on with real time alone."""

    ns: int = 10**15

    def __call__(self) -> int:
        return self.ns


@asynccontextmanager
async def machine(folder: Path, wall: Clock, boot: Boot, name: str = "b1") -> AsyncIterator[Vault]:
    """A vault on a machine whose two clocks are set apart."""
    database = await open_database(folder / "kbctl.db", folder / "kbctl.anchor", accept_rollback=False)
    vault = Vault(database, {"stripe": STRIPE}, RATES, wall_ns=wall, boot_ns=boot, boot=name)
    try:
        await vault.load()
        await vault._by_number(1)
        yield vault
    finally:
        await vault.close()


def test_L9_setting_the_clock_ahead_gives_no_second_day(folder: Path) -> None:
    """A day's cap is spent, the clock is set ahead, before and after a restart: nothing more is granted."""

    async def main() -> None:
        wall, boot = Clock(NOON), Boot()
        async with machine(folder, wall, boot) as vault:
            await allowed(vault, await issue(vault, daily_cap_nano=5 * USD), 500)
        wall.ns += DAY_NS  # while nobody looks
        async with machine(folder, wall, boot) as vault:
            (grant,) = known(vault)
            assert isinstance((await ask(vault, grant, 1))[1], Refusal)
            assert vault.clock_notice is not None
            wall.ns += DAY_NS
            assert isinstance((await ask(vault, grant, 1))[1], Refusal)
            wall.ns -= 2 * DAY_NS
            assert isinstance((await ask(vault, grant, 1))[1], Refusal)
            assert vault.clock_notice is None
            wall.ns += DAY_NS
            boot.ns += 8 * 3600 * 10**9  # 20 h since midnight: now it may be tomorrow
            await allowed(vault, grant, 500)
            assert isinstance((await ask(vault, grant, 1))[1], Refusal)
        wall.ns += DAY_NS
        async with machine(folder, wall, boot) as vault:  # the new day is kept, too
            assert isinstance((await ask(vault, known(vault)[0], 1))[1], Refusal)
        async with machine(folder, wall, boot, "b2") as vault:  # a reboot: its clock is all there is
            await allowed(vault, known(vault)[0], 500)
        steps = stored(folder, "SELECT details FROM change WHERE action = 'clock.step' ORDER BY no")
        assert [json.loads(text)["seconds"] for (text,) in steps][:3] == [
            86_400,
            -2 * 86_400,
            86_400 - 28_800,
        ]

    run(main())


@pytest.mark.parametrize("verdict", [Verdict.SILENT, Verdict.POSTED])
def test_L6_a_hold_stays_with_the_row_of_a_first_attempt_that_was_refused_late(
    folder: Path, verdict: Verdict
) -> None:
    """Revoked between two attempts' last looks: one has left, and the other one's row has the money."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            grant = await issue(vault)
            row, first = await allowed(vault, grant, 700, replay=b"r" * 16)
            _, second = await allowed(vault, grant, 700, replay=b"r" * 16)
            assert second.replay_of == row.call_id
            vault.settle(grant, first.attempt, Verdict.UNSENT)
            row.policy_check_result = "key_revoked"
            vault.journal.finish(row)
            vault.settle(grant, second.attempt, verdict)
        async with vault_in(folder) as vault:
            (grant,) = known(vault)
            assert grant.scope.account.used_total() == 7 * USD
            assert len(vault.ledger._replays) == 1  # and a third attempt is known again

    run(main())
