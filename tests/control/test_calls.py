"""Looking at one call, and settling one whose outcome nobody knows."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kbctl import wire
from kbctld.core.grant import Grant
from kbctld.core.ledger import Attempt, Verdict
from kbctld.vault import Vault
from tests.control.support import Desk, code, desk_in
from tests.daemon.support import USD, allowed, ask, issue, vault_in
from tests.support.agent import Reply as Answer
from tests.support.loop import run


async def silent(vault: Vault, grant: Grant, cents: int = 12_000) -> tuple[str, Attempt]:
    """A call that the vendor never answered."""
    row, permit = await allowed(vault, grant, cents)
    vault.settle(grant, permit.attempt, Verdict.SILENT)
    return row.call_id, permit.attempt


async def resolve(desk: Desk, call_id: str, body: str, **also: Any) -> Answer:
    return await desk.sees(
        "POST",
        f"/calls/{call_id}/resolve",
        (b"Content-Type", b"application/json"),
        body=body.encode(),
        **also,
    )


def seen(answer: Answer) -> wire.Call:
    assert answer.status == 200, answer.body
    return msgspec.json.decode(answer.body, type=wire.Call)


@pytest.mark.parametrize(
    ("body", "outcome", "counted", "spent_usd"),
    [
        ('{"spent_usd": 100.5, "note": "dashboard"}', "posted", Decimal("100.5"), "100.5"),
        ('{"spent_usd": 0}', "posted", Decimal(0), "0"),
        ('{"spent_usd": null}', "voided", Decimal(0), "null"),
    ],
)
def test_law_3_only_an_operator_s_word_ends_a_call_without_an_answer(
    folder: Path, body: str, outcome: str, counted: Decimal, spent_usd: str
) -> None:
    """The money moves by what was said, in memory, in the row and after a restart; who said it is kept."""

    async def check() -> None:
        async with desk_in(folder) as desk:
            vault = desk.vault
            grant = await issue(vault, tenant="acme")
            call_id, _ = await silent(vault, grant)
            await silent(vault, grant, 100)
            before = seen(await desk.sees("GET", f"/calls/{call_id}"))
            listed = await desk.sees("GET", "/audit?unknown=true")
            after = seen(await resolve(desk, call_id, body))
            again = await resolve(desk, call_id, body)
            left = await desk.sees("GET", "/audit?unknown=true")
            changes = await desk.sees("GET", f"/changes?subject={call_id}")

            assert (before.outcome, before.amount_usd) == ("unknown", Decimal(120))
            assert (after.outcome, after.amount_usd) == (outcome, counted)
            assert (again.status, code(again)) == (409, "call_not_unknown")
            assert len(msgspec.json.decode(listed.body)) == 2
            assert len(msgspec.json.decode(left.body)) == 1
            assert f'"spent_usd":{spent_usd}'.encode() in changes.body
            assert b"call.resolve" in changes.body
            account = grant.scope.account
            assert account.held_total == USD
            assert account.posted_total == counted * USD
        async with vault_in(folder) as vault:
            (grant,) = vault.loaded()
            account = grant.scope.account
            assert (account.held_total, Decimal(account.posted_total)) == (USD, counted * USD)

    run(check())


def test_a_call_under_way_is_nobody_s_to_resolve(folder: Path) -> None:
    """Pending, retried just now, answered or refused: each says why not."""

    async def check() -> None:
        async with desk_in(folder) as desk:
            vault = desk.vault
            grant = await issue(vault)
            pending, _ = await allowed(vault, grant, 100)
            posted, permit = await allowed(vault, grant, 100)
            vault.settle(grant, permit.attempt, Verdict.POSTED)
            refused, _ = await ask(vault, grant, 10_000_000)
            first, permit = await allowed(vault, grant, 200, replay=b"r" * 32)
            vault.settle(grant, permit.attempt, Verdict.SILENT)
            retry, again = await allowed(vault, grant, 200, replay=b"r" * 32)
            said = {}
            for row in (pending, posted, refused, first, retry):
                answer = await resolve(desk, row.call_id, '{"spent_usd": null}')
                assert (answer.status, code(answer)) == (409, "call_not_unknown")
                said[row.call_id] = answer.body.decode()
            assert "still under way" in said[pending.call_id]
            assert "known outcome: posted" in said[posted.call_id]
            assert "known outcome: refused" in said[refused.call_id]
            assert "still under way" in said[first.call_id]
            assert f"retry of {first.call_id}" in said[retry.call_id]

            vault.settle(grant, again.attempt, Verdict.SILENT)
            assert seen(await resolve(desk, first.call_id, '{"spent_usd": 2}')).outcome == "posted"

    run(check())


def test_more_than_was_held_is_written_down_and_freezes_the_key(folder: Path) -> None:
    """The truth is posted, never clipped; a key whose price was wrong spends no more."""

    async def check() -> None:
        async with desk_in(folder) as desk:
            grant = await issue(desk.vault)
            call_id, _ = await silent(desk.vault, grant, 100)
            after = seen(await resolve(desk, call_id, '{"spent_usd": 3}'))
            assert after.amount_usd == 3
            assert grant.frozen is not None

    run(check())


def test_a_call_is_named_by_its_id_or_the_beginning_of_it(folder: Path) -> None:
    async def check() -> None:
        async with desk_in(folder) as desk:
            grant = await issue(desk.vault)
            call_id, _ = await silent(desk.vault, grant)
            await silent(desk.vault, grant)
            assert seen(await desk.sees("GET", f"/calls/{call_id[:18]}")).call_id == call_id
            for named, status, why in (
                (call_id[:12], 400, "call_ambiguous"),  # of the same millisecond
                ("call_", 404, "call_unknown"),
                ("call_0", 404, "call_unknown"),
                ("x", 404, "call_unknown"),
                ("call_%25", 404, "call_unknown"),
            ):
                answer = await desk.sees("GET", f"/calls/{named}")
                assert (answer.status, code(answer)) == (status, why), named

    run(check())


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"spent_usd": -1}',
        '{"spent_usd": "5"}',
        '{"spent_usd": 1e12}',
        '{"spent_usd": 1, "note": "a\\u0007"}',
        '{"spent_usd": 1, "why": ""}',
    ],
)
def test_a_resolution_that_can_not_be_read_changes_nothing(folder: Path, body: str) -> None:
    async def check() -> None:
        async with desk_in(folder) as desk:
            grant = await issue(desk.vault)
            call_id, _ = await silent(desk.vault, grant)
            answer = await resolve(desk, call_id, body)
            assert answer.status == 400
            assert seen(await desk.sees("GET", f"/calls/{call_id}")).outcome == "unknown"

    run(check())


@pytest.mark.parametrize(
    "window", ["from=0541-08-11T04:25:02.7-22:26", "to=9999-12-31T23:59:59Z", "to=0001-01-01T00:00:00Z"]
)
def test_a_time_that_no_call_can_have_is_a_time(folder: Path, window: str) -> None:
    """Far before and far after: what lies between is listed."""

    async def check() -> None:
        async with desk_in(folder) as desk:
            await silent(desk.vault, await issue(desk.vault))
            answer = await desk.sees("GET", f"/audit?{window}")
            assert answer.status == 200, answer.body
            assert len(msgspec.json.decode(answer.body)) == (0 if window.startswith("to=0001") else 1)

    run(check())
