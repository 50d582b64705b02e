"""``audit verify``, ``audit checkpoint``, ``audit export`` and ``prune``, as a person meets them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kbctl import AsyncClient, Client, KbctlError, wire
from kbctl.checkpoint import Checkpoint, public_key
from kbctl.paths import Home
from kbctld.store.export import Writer
from tests.cli.conftest import Cli, Seen
from tests.cli.support import PretendDaemon, refusal
from tests.cli.support import call as canned_call
from tests.support.loop import run as loop_run

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEY = public_key(PRIVATE)
CHECKPOINT = Checkpoint("ab" * 16, 17, 9, "20261121T103000Z", bytes(32), KEY).signed(PRIVATE)


def verdict(**changes: Any) -> wire.Verdict:
    plain: dict[str, Any] = {
        "finding": None,
        "events": 2_000_017,
        "calls": 1_000_003,
        "pruned_events": 0,
        "since_event": 0,
        "seconds": 9.84,
        "agrees_with": ["2026-11-21 10:30:00 UTC"],
        "checkpoint": CHECKPOINT.line,
        "public_key": KEY,
    }
    return wire.Verdict(**(plain | changes))


def lines(*steps: wire.Reply) -> bytes:
    return b"".join(wire.encode(step) + b"\n" for step in steps)


def verified(**changes: Any) -> bytes:
    return lines(
        wire.VerifyStep(events=5, of=10), wire.VerifyStep(events=10, of=10, verdict=verdict(**changes))
    )


BROKEN = wire.Finding(
    what="edited",
    sentence="call call_9\x1b[2K (number 9) was edited: it does not say any more what was recorded",
    row="call 9",
    call_id="call_9",
    event=12,
)


def test_verify(cli: Cli, daemon: PretendDaemon) -> None:
    """How much was looked at, what it agrees with, and how far it was found good."""
    daemon.on("GET /audit/verify", verified())

    result = cli("audit", "verify")

    head, *facts = result.stdout.splitlines()
    assert head == "the audit is whole: 1,000,003 calls, 2,000,017 events; 9.8 s"
    assert facts[0].split(maxsplit=2)[2] == "the checkpoint of 2026-11-21 10:30:00 UTC"
    assert facts[-1].split() == ["checkpoint", CHECKPOINT.line]
    assert (result.exit_code, daemon.only.query) == (0, ())


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_a_broken_audit_exits_5_and_names_the_call(cli: Cli, daemon: PretendDaemon, how: list[str]) -> None:
    """What an intruder wrote does not reach the terminal as it is."""
    daemon.on("GET /audit/verify", verified(finding=BROKEN, checkpoint=None, agrees_with=[]))

    result = cli("audit", "verify", *how)

    assert result.exit_code == 5
    assert "\x1b" not in result.stdout
    if how:
        assert json.loads(result.stdout)["finding"]["row"] == "call 9"
    else:
        assert result.stdout.startswith("the audit is broken: call call_9\\x1b[2K (number 9) was edited")


def test_verify_since(cli: Cli, daemon: PretendDaemon, tmp_path: Path) -> None:
    """A checkpoint, the last one of a file, or where the last verification ended."""
    daemon.on("GET /audit/verify", verified(since_event=17))
    log = tmp_path / "log"
    log.write_text(f"2026-11-21 INFO kbctld.audit: {CHECKPOINT.line}\nand more\n")

    for given in (CHECKPOINT.line, str(log)):
        assert "since event 17" in cli("audit", "verify", "--since", given).stdout
    cli("audit", "verify", "--incremental")

    assert [asked.query for asked in daemon.asked] == [
        (("since", CHECKPOINT.line),),
        (("since", CHECKPOINT.line),),
        (("incremental", "true"),),
    ]


@pytest.mark.parametrize(
    "args",
    [
        ("verify", "--since", "nowhere"),
        ("verify", "--since", CHECKPOINT.line[:-3] + "AAA"),
        ("verify", "--since", CHECKPOINT.line, "--incremental"),
        ("verify", "x.jsonl", "--incremental"),
        ("--tenant", "acme", "export"),
        ("export", "--format", "xml"),
    ],
)
def test_what_makes_no_sense_is_refused(cli: Cli, daemon: PretendDaemon, args: tuple[str, ...]) -> None:
    """Before the daemon is asked."""
    result = cli("audit", *args)
    assert result.exit_code == 2
    assert "try: " in result.stderr
    assert daemon.asked == []


def test_another_key_than_the_one_that_was_noted(cli: Cli, daemon: PretendDaemon) -> None:
    """A daemon that somebody else set up signs everything just as well."""
    daemon.on("GET /audit/verify", verified())
    assert cli("audit", "verify", "--key", KEY).exit_code == 0
    result = cli("audit", "verify", "--key", "B" * 43)
    assert result.exit_code == 5
    assert KEY in result.stderr


def test_an_answer_that_breaks_off_is_no_verdict(cli: Cli, daemon: PretendDaemon) -> None:
    """Half of it says nothing."""
    daemon.on("GET /audit/verify", lines(wire.VerifyStep(events=5, of=10)))
    result = cli("audit", "verify")
    assert result.exit_code == 1
    assert "broke off" in result.stderr


def test_checkpoint(cli: Cli, daemon: PretendDaemon) -> None:
    """The line alone on stdout."""
    made = wire.AuditCheckpoint(checkpoint=CHECKPOINT.line, public_key=KEY, events=17, calls=9)
    daemon.on("GET /audit/checkpoint", made)
    assert cli("audit", "checkpoint").stdout == f"{CHECKPOINT.line}\n"
    assert json.loads(cli("audit", "checkpoint", "--json").stdout)["public_key"] == KEY


# --- files --------------------------------------------------------------------------------------------


def exported(form: str = "jsonl", **filters: str) -> bytes:
    writer = Writer(csv=form == "csv")
    body = writer.head() + writer.lines([(canned_call(), 3, bytes(32)), (canned_call(), None, None)])
    said = {"filter": filters, "made": "x", "checkpoint": CHECKPOINT.line, "public_key": KEY}
    from kbctl.checkpoint import signature

    return body + writer.trailer(said, lambda message: signature(PRIVATE, message))


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_export_and_verify_without_a_daemon(
    cli: Cli, daemon: PretendDaemon, tmp_path: Path, form: str
) -> None:
    """The file is private, whole or not there, and verifies alone."""
    daemon.on("GET /audit/export", exported(form))
    path = tmp_path / "audit"

    assert cli("audit", "export", "--format", form, "-o", str(path)).exit_code == 0
    assert path.read_bytes() == exported(form)
    assert path.stat().st_mode & 0o777 == 0o600
    assert cli("audit", "export", "--format", form).stdout_bytes == exported(form)
    assert daemon.asked[0].query == (("format", form),)
    daemon.asked.clear()

    good = cli("audit", "verify", str(path))
    assert good.stdout.startswith(f"{path} is what was exported: 2 calls, every call of the audit")
    assert json.loads(cli("audit", "verify", str(path), "--json").stdout)["rows"] == 2
    assert cli("audit", "verify", str(path), "--key", "A" * 43).exit_code == 5
    path.write_bytes(path.read_bytes().replace(b"acme", b"acmf", 1))
    bad = cli("audit", "verify", str(path))
    assert bad.exit_code == 5
    assert f"line {1 if form == 'jsonl' else 2} differs from what was exported" in bad.stdout
    assert daemon.asked == []


def test_a_filtered_file_says_what_was_verified(cli: Cli, tmp_path: Path) -> None:
    """Not that nothing is missing."""
    path = tmp_path / "audit"
    path.write_bytes(exported(tenant="acme"))
    text = cli("audit", "verify", str(path)).stdout
    assert "a part of the audit" in text
    assert "tenant=acme" in text


def test_what_is_no_exported_file(cli: Cli, tmp_path: Path) -> None:
    """Empty, something else, not there, or a folder."""
    other = tmp_path / "other"
    for content, status in ((b"", 2), (b"hello\n", 2), (b"{}\n", 5), (b'{"trailer":{}}\n', 5)):
        other.write_bytes(content)
        assert cli("audit", "verify", str(other)).exit_code == status
    assert cli("audit", "verify", str(tmp_path / "nothing")).exit_code == 6
    assert cli("audit", "verify", str(tmp_path)).exit_code == 2


def test_an_export_that_can_not_be_written_or_given(cli: Cli, daemon: PretendDaemon, tmp_path: Path) -> None:
    """Nothing half stays behind."""
    daemon.on("GET /audit/export", exported())
    assert cli("audit", "export", "-o", str(tmp_path / "no" / "where")).exit_code == 3
    daemon._answers.clear()
    daemon.on("GET /audit/export", refusal("audit_key_unavailable", "there is no key"), 409)
    result = cli("audit", "export", "-o", str(tmp_path / "audit"))
    assert result.exit_code == 3
    assert not (tmp_path / "audit").exists()


# --- prune --------------------------------------------------------------------------------------------


def pruned(calls: int, *, dry_run: bool = False) -> wire.PruneStep:
    done = wire.Pruned(
        before="2026-08-23T00:00:00.000Z",
        calls=calls,
        kept=2,
        first="2026-01-01T10:00:00.000Z" if calls else None,
        dry_run=dry_run,
    )
    return wire.PruneStep(stage="prune", done=calls, of=calls, pruned=done)


def test_prune_asks_before_it_takes_anything_away(
    cli: Cli, terminal: Callable[..., Seen], daemon: PretendDaemon
) -> None:
    """How many calls it is, by a dry run; nobody there is no yes."""
    line = "POST /audit/prune"
    daemon.on(line, lines(pruned(1234, dry_run=True)))
    result = cli("prune", "--before", "90d")
    assert result.exit_code == 3
    assert "1,234 calls would be gone for good" in result.stderr
    assert "kbctl prune --before 90d --yes" in result.stderr
    result = cli("prune", "--before", "2026-08-23", "--dry-run")
    assert result.stdout == "1,234 calls before 2026-08-23 would be pruned, the oldest of 2026-01-01\n"
    assert all(asked.body["dry_run"] for asked in daemon.asked)
    assert daemon.asked[1].body["before"] == "2026-08-23T00:00:00.000000Z"
    assert "Prune them?" in terminal("prune", "--before", "90d", typed="n\n").stderr
    daemon._answers.clear()
    daemon.on(line, lines(pruned(1234, dry_run=True)))
    step = wire.PruneStep(stage="verify", done=1, of=2)
    daemon.on(line, lines(step, pruned(1234)))
    result = cli("prune", "--before", "90d", "--yes")
    assert result.stdout == "1,234 calls before 2026-08-23 pruned, the oldest of 2026-01-01\n"
    assert "dry_run" not in daemon.asked[-1].body


def test_prune_of_nothing_and_of_a_broken_audit(cli: Cli, daemon: PretendDaemon) -> None:
    """The one is no error, the other one of integrity."""
    line = "POST /audit/prune"
    daemon.on(line, lines(pruned(0, dry_run=True)))
    assert cli("prune", "--before", "90d", "--yes").stdout == "there is nothing to prune before 2026-08-23\n"
    assert json.loads(cli("prune", "--before", "90d", "--yes", "--json").stdout)["dry_run"] is False
    daemon._answers.clear()
    daemon.on(line, lines(pruned(7, dry_run=True)))
    error = wire.ErrorBody(code="audit_broken", message="nothing was pruned", remedy="kbctl audit verify")
    daemon.on(line, lines(wire.PruneStep(stage="prune", done=0, of=0, error=error)))
    result = cli("prune", "--before", "90d", "--yes")
    assert result.exit_code == 5
    assert "try: kbctl audit verify" in result.stderr


# --- in Python ----------------------------------------------------------------------------------------


def test_both_clients_do_all_of_it(home: Home, daemon: PretendDaemon) -> None:
    """And are told of each step."""
    made = wire.AuditCheckpoint(checkpoint=CHECKPOINT.line, public_key=KEY, events=17, calls=9)
    daemon.on("GET /audit/verify", verified())
    daemon.on("GET /audit/checkpoint", made)
    daemon.on("GET /audit/export", exported())
    daemon.on("POST /audit/prune", lines(wire.PruneStep(stage="verify", done=1, of=2), pruned(3)))
    told: list[Any] = []

    async def main() -> None:
        async with AsyncClient(home) as client:
            assert await client.verify_audit(step=told.append) == verdict()
            assert await client.checkpoint() == made
            assert b"".join([piece async for piece in client.export_audit()]) == exported()
            assert (await client.prune("2026-08-23T00:00:00Z", step=told.append)).calls == 3

    client = Client(home)
    assert client.verify_audit(step=told.append) == verdict()
    assert client.checkpoint() == made
    assert b"".join(client.export_audit()) == exported()
    assert client.prune("2026-08-23T00:00:00Z", step=told.append).calls == 3
    loop_run(main())
    assert len(told) == 4

    daemon._answers.clear()
    daemon.on("GET /audit/verify", b"")
    daemon.on("POST /audit/prune", b"")
    with pytest.raises(KbctlError, match="broke off"):
        client.prune("2026-08-23T00:00:00Z")

    async def cut() -> None:
        for work in (AsyncClient(home).verify_audit, lambda: AsyncClient(home).prune("x")):
            with pytest.raises(KbctlError, match="broke off"):
                await work()

    loop_run(cut())
