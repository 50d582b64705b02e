"""The audit to hand over, by the operator API: verified, checkpointed, exported, pruned."""

import csv
import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kbctl import wire
from kbctl.checkpoint import BadCheckpointError, Checkpoint, public_key, read_checkpoint
from kbctl.errors import KbctlError
from kbctl.export import FileVerdict, verify_file
from kbctld.core.ledger import Verdict
from tests.control.support import Desk, code, desk_in
from tests.daemon.support import DAY_NS, NOON, Clock, allowed, ask, issue
from tests.support.loop import run


async def live(desk: Desk, calls: int = 12, **also: Any) -> None:
    """A key that spends, is refused, and leaves one call open."""
    grant = await issue(desk.vault, tenant="acme", label="tenant:acme", **also)
    for number in range(calls):
        row, permit = await allowed(desk.vault, grant, 100 + number)
        if number != 3:
            desk.vault.settle(grant, permit.attempt, Verdict.POSTED)
        row.status, row.reason = 200, "=1+1" if number == 5 else "\x1b[31mred\u202e"
        desk.vault.journal.finish(row)
    await ask(desk.vault, grant, 10**9)
    other = await issue(desk.vault, tenant="acme2", label="tenant:acme2")
    await allowed(desk.vault, other)
    await desk.vault.journal.barrier()


async def verified(desk: Desk, query: str = "") -> wire.Verdict:
    answer = await desk.sees("GET", f"/audit/verify{query}")
    assert answer.status == 200, answer.body
    *steps, last = [wire.decode(line, wire.VerifyStep) for line in answer.body.splitlines()]
    assert all(step.verdict is None for step in steps)
    assert last.verdict is not None
    return last.verdict


def damage(folder: Path, sql: str) -> None:
    with closing(sqlite3.connect(folder / "kbctl.db", isolation_level=None)) as connection:
        connection.execute(sql)


def test_the_whole_and_what_came_since(folder: Path) -> None:
    """Each verification is remembered, signed; the next one can go on from there."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            await live(desk)
            first = await verified(desk)
            assert first.finding is None
            assert first.calls == 14
            assert first.checkpoint is not None
            assert read_checkpoint(first.checkpoint).key == first.public_key == desk.checkpoints.key
            await live(desk, 5)
            rest = await verified(desk, "?incremental=true")
            assert (rest.finding, rest.calls, rest.since_event) == (None, 7, first.events)
            assert (await verified(desk, f"?since={first.checkpoint}")).calls == 7
            damage(folder, "UPDATE call SET method = 'GET' WHERE no = 2")
            assert (await verified(desk, f"?since={first.checkpoint}")).finding is None
            found = (await verified(desk)).finding
            assert found is not None
            assert (found.what, found.row) == ("edited", "call 2")
            assert found.call_id is not None
            assert found.call_id in found.sentence

    run(main())


def test_a_verification_that_found_something_is_not_gone_on_from(folder: Path) -> None:
    """Neither remembered nor signed."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            await live(desk)
            damage(folder, "DELETE FROM call WHERE no = 4")
            verdict = await verified(desk)
            assert verdict.checkpoint is None
            assert (await verified(desk, "?incremental=true")).since_event == 0

    run(main())


@pytest.mark.parametrize(
    "query", ["?since=kbctl-checkpoint:1:nothing", "?since=x&incremental=true", "?incremental=maybe"]
)
def test_a_bad_beginning_is_refused(folder: Path, query: str) -> None:
    """Before anything is looked at."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            answer = await desk.sees("GET", f"/audit/verify{query}")
            assert (answer.status, code(answer)) == (400, "invalid_request")

    run(main())


def test_A2_a_cut_tail_is_found_against_what_is_kept_beside(folder: Path) -> None:
    """The newest checkpoint of the file is looked at without being named."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            await live(desk)
            made = wire.decode((await desk.sees("GET", "/audit/checkpoint")).body, wire.AuditCheckpoint)
            assert (folder / "kbctl.checkpoints").read_text() == f"{made.checkpoint}\n"
            assert (folder / "kbctl.checkpoints").stat().st_mode & 0o777 == 0o600
            assert (await verified(desk)).agrees_with == [read_checkpoint(made.checkpoint).when]
            damage(folder, "DELETE FROM call WHERE no = 14")
            damage(folder, f"DELETE FROM chain WHERE no >= {made.events}")
            found = (await verified(desk)).finding
            assert found is not None
            assert found.what in ("cut", "missing")

    run(main())


def test_A2_checkpoints_by_another_key_are_told(folder: Path) -> None:
    """Appended to the file, or brought along."""
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))

    async def main() -> None:
        async with desk_in(folder) as desk:
            await live(desk)
            tip = desk.vault.journal.database.tip
            forged = Checkpoint(
                tip.database_id, tip.no, tip.calls, "20261121T000000Z", tip.link, public_key(stranger)
            ).signed(stranger)
            found = (await verified(desk, f"?since={forged.line}")).finding
            assert found is not None
            assert found.what == "signature"
            assert (await verified(desk)).finding is None
            with (folder / "kbctl.checkpoints").open("a") as file:
                file.write(f"{forged.line}\n")
            found = (await verified(desk)).finding
            assert found is not None
            assert found.what == "signature"

    run(main())


def test_a_checkpoint_that_was_touched_is_none(folder: Path) -> None:
    """Any character of it; blanks and line breaks of a mail are no matter."""

    async def main() -> str:
        async with desk_in(folder) as desk:
            return desk.checkpoints.now().line

    line = run(main())
    assert read_checkpoint(f"  {line[:80]}\n{line[80:]}\r\n").line == line
    dice = random.Random(3)
    for at in range(len(line)):
        other = line[:at] + dice.choice([c for c in "0Az:_" if c != line[at]]) + line[at + 1 :]
        with pytest.raises(BadCheckpointError):
            read_checkpoint(other)
    for bad in ("", "x" * 10_000, line[:-1], line + "A"):
        with pytest.raises(BadCheckpointError):
            read_checkpoint(bad)


# --- exported files -----------------------------------------------------------------------------------


async def exported(desk: Desk, query: str = "") -> bytes:
    answer = await desk.sees("GET", f"/audit/export{query}")
    assert answer.status == 200, answer.body
    return answer.body


def judged(folder: Path, body: bytes, **also: Any) -> FileVerdict:
    path = folder / "file"
    path.write_bytes(body)
    return verify_file(path, **also)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_file_verifies_alone_and_any_touched_byte_is_found(folder: Path, form: str) -> None:
    """The first line that differs is named; so is a line too few, too many, or out of order."""

    async def main() -> bytes:
        async with desk_in(folder) as desk:
            await live(desk)
            return await exported(desk, f"?format={form}")

    body = run(main())
    good = judged(folder, body)
    assert (good.finding, good.rows, good.whole) == (None, 14, True)
    assert good.public_key is not None
    lines = body.splitlines(keepends=True)
    dice = random.Random(11)
    head = 1 if form == "csv" else 0
    told = set[str]()
    for turn in range(300):
        at = dice.randrange(len(body))
        raw = bytearray(body)
        raw[at] ^= 1 << dice.randrange(8)
        try:
            found = judged(folder, bytes(raw))
        except KbctlError as error:  # the very first bytes say what kind of file it is
            told.add(error.code)
            continue
        assert found.finding is not None, (turn, at)
        line = body[:at].count(b"\n") + 1
        if head < line <= head + 14:
            assert found.line == line, (turn, at, found)
    assert told <= {"not_an_export"}
    for number, altered in (
        (head + 4, lines[: head + 3] + lines[head + 4 :]),
        (head + 4, [*lines[: head + 3], lines[head + 4], lines[head + 3], *lines[head + 5 :]]),
        (head + 5, [*lines[: head + 4], lines[head + 3], *lines[head + 4 :]]),
        (head + 10, lines[: head + 9]),
        (head + 15, lines[:-1]),
        (head + 16, [*lines, lines[head]]),
    ):
        found = judged(folder, b"".join(altered))
        assert (found.finding is not None, found.line) == (True, number)
    assert judged(folder, body, public_key=good.public_key).finding is None
    other = judged(folder, body, public_key="A" * 43)
    assert other.finding is not None
    assert "another key" in other.finding


def test_rows_of_a_file_say_what_the_audit_says(folder: Path) -> None:
    """The same fields, oldest first, and where each stands in the chain."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            await live(desk)
            told = (await desk.sees("GET", "/audit")).json
            lines = [json.loads(line) for line in (await exported(desk)).splitlines()][:-1]
            for row, line in zip(reversed(told), lines, strict=True):
                assert {name: line[name] for name in row} == row
                assert line["event"] > 0
                assert len(line["link"]) == 64
            cells = list(csv.DictReader((await exported(desk, "?format=csv")).decode().splitlines()))
            assert len(cells) == 15
            assert cells[5]["reason"] == "'=1+1"
            assert cells[6]["reason"] == "\\x1b[31mred\\u202e"
            assert cells[-1]["timestamp"] == "#trailer"

    run(main())


def test_law_8_a_filtered_file_is_of_its_tenant_alone_and_says_so(folder: Path) -> None:
    """What is left out can't be told from it, and it does not claim so."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            await live(desk)
            body = await exported(desk, "?tenant=acme2&label_contains=tenant:acme2")
            found = judged(folder, body)
            assert (found.finding, found.rows, found.whole) == (None, 1, False)
            assert found.filter == {"label_contains": ["tenant:acme2"], "tenant": "acme2"}
            assert (await desk.sees("GET", "/audit/export?key=vk_nobody")).status == 404
            none = judged(folder, await exported(desk, "?vendor=nobody&format=csv"))
            assert (none.finding, none.rows) == (None, 0)

    run(main())


def test_many_rows_come_in_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None twice, none left out, also where the last page is just full."""
    monkeypatch.setattr("kbctld.control.audits.ROWS_AT_ONCE", 7)

    async def main() -> None:
        async with desk_in(folder) as desk:
            await live(desk)
            assert judged(folder, await exported(desk)).rows == 14

    run(main())


# --- pruning ------------------------------------------------------------------------------------------


async def pruned(desk: Desk, before_ns: int, **also: Any) -> list[wire.PruneStep]:
    from kbctld.core.clock import rfc3339

    body = json.dumps({"before": rfc3339(before_ns), **also}).encode()
    answer = await desk.sees("POST", "/audit/prune", body=body)
    assert answer.status == 200, answer.body
    return [wire.decode(line, wire.PruneStep) for line in answer.body.splitlines()]


def test_D10_pruning_touches_no_cap_and_no_open_hold(folder: Path) -> None:
    """What a key has spent in all is the same after it, and after a restart; the audit verifies."""

    async def main() -> None:
        clock = Clock(NOON)
        async with desk_in(folder, clock) as desk:
            await live(desk)
            clock.ns += 100 * DAY_NS
            await live(desk, 4)
            key = (await desk.sees("GET", "/vault/keys?tenant=acme")).json
            (dry,) = await pruned(desk, clock.ns - 50 * DAY_NS, dry_run=True)
            assert dry.pruned is not None
            assert (dry.pruned.calls, dry.pruned.kept, dry.pruned.dry_run) == (12, 2, True)
            assert (await verified(desk)).calls == 20
            steps = await pruned(desk, clock.ns - 50 * DAY_NS)
            assert steps[-1].pruned is not None
            assert (steps[-1].pruned.calls, steps[-1].pruned.kept) == (12, 2)
            verdict = await verified(desk)
            assert (verdict.finding, verdict.calls) == (None, 8)
            assert verdict.pruned_events > 20
            assert (await desk.sees("GET", "/vault/keys?tenant=acme")).json == key
            (change,) = [
                each for each in (await desk.sees("GET", "/changes")).json if each["action"] == "audit.prune"
            ]
            assert (change["actor"], change["details"]["calls"]) == ("uid 1000", 12)
            assert judged(folder, await exported(desk)).rows == 8
        async with desk_in(folder, clock) as desk:
            assert (await desk.sees("GET", "/vault/keys?tenant=acme")).json == key
            assert [row["outcome"] for row in (await desk.sees("GET", "/audit?unknown=true")).json] == [
                "unknown"
            ] * 4

    run(main())


def test_nothing_is_pruned_from_an_audit_that_is_broken(folder: Path) -> None:
    """It would take away what tells who did it."""

    async def main() -> None:
        clock = Clock(NOON)
        async with desk_in(folder, clock) as desk:
            await live(desk)
            clock.ns += 100 * DAY_NS
            await live(desk, 1)
            damage(folder, "UPDATE call SET amount_nano = 0 WHERE no = 1")
            steps = await pruned(desk, clock.ns - 50 * DAY_NS)
            assert steps[-1].error is not None
            assert steps[-1].error.code == "audit_broken"
            assert len((await desk.sees("GET", "/audit")).json) == 17

    run(main())


@pytest.mark.parametrize("before", ["yesterday", "2026-11-20T00:00:01Z", "2030-01-01T00:00:00Z"])
def test_the_last_days_always_stay(folder: Path, before: str) -> None:
    """Two whole ones, whatever is asked."""

    async def main() -> None:
        async with desk_in(folder, Clock(NOON)) as desk:  # noon of 2026-11-21
            await live(desk)
            body = json.dumps({"before": before}).encode()
            answer = await desk.sees("POST", "/audit/prune", body=body)
            assert (answer.status, code(answer)) == (400, "invalid_request")
            assert (await pruned(desk, 20_777 * DAY_NS))[0].pruned is not None

    run(main())
