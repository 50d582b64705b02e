"""Operator tokens over their life: durable before they are good, gone at once, kept as a digest only."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kbctld.control.tokens import Tokens
from kbctld.core.vault_key import digest
from kbctld.store.database import open_database
from kbctld.store.journal import JournalError
from tests.control.support import code, desk_in
from tests.daemon.support import DAY_NS, NOON, Clock, crash_copy, locked, stored, vault_in
from tests.support.loop import run

TOKEN = re.compile(r"kbctl_tok_[0-9A-Za-z]{49}")


def test_create_list_and_revoke(folder: Path) -> None:
    """Shown once, whole; afterwards only what it may do and how long."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            first = await desk.token("read", note="grafana", expires_in="2h")
            assert TOKEN.fullmatch(first.token)
            assert re.fullmatch(r"tok_[0-9A-Za-z]{10}", first.token_id)
            assert (first.scope, first.note) == ("read", "grafana")
            assert (first.created_at, first.expires_at) == (
                "2026-11-21T12:00:00.000Z",
                "2026-11-21T14:00:00.000Z",
            )
            second = await desk.token()
            assert (second.scope, second.expires_at) == ("admin", "2026-12-21T12:00:00.000Z")
            assert (await desk.token(expires_in="never")).expires_at is None

            listed = await desk.sees("GET", "/tokens")
            assert [token["token_id"] for token in listed.json["tokens"]][1:] == [
                second.token_id,
                first.token_id,
            ]
            assert not TOKEN.search(listed.body.decode())

            assert (await desk.ask("GET", "/status", bearer=first.token)).status == 200
            gone = await desk.sees("DELETE", f"/tokens/{first.token_id}")
            assert gone.json["revoked_at"] == "2026-11-21T12:00:00.000Z"
            answer = await desk.ask("GET", "/status", bearer=first.token)
            assert (answer.status, code(answer)) == (401, "token_revoked")
            again = await desk.sees("DELETE", f"/tokens/{first.token_id}")
            assert (again.status, again.json) == (200, gone.json)

    run(main())


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"scope": "root"}, "scope"),
        ({"scope": "ADMIN"}, "scope"),
        ({"scope": None}, "scope"),
        ({"scope": ""}, "scope"),
        ({"expires_in": "0d"}, "expires_in"),
        ({"expires_in": "30 days"}, "expires_in"),
        ({"expires_in": "3661d"}, "expires_in"),
        ({"expires_in": "9999999d"}, "expires_in"),
        ({"expires_in": 30}, "expires_in"),
        ({"note": "x" * 201}, "note"),
        ({"note": "a\nb"}, "note"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_a_token_can_not_be(folder: Path, body: dict[str, object], names: str) -> None:
    """400 that names the field; nothing is created."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            answer = await desk.sees("POST", "/tokens", body=json.dumps(body).encode())
            assert (answer.status, code(answer)) == (400, "invalid_request")
            assert names in answer.json["error"]["message"]
            assert (await desk.sees("GET", "/tokens")).json == {"tokens": []}

    run(main())


@pytest.mark.parametrize("name", ["tok_0000000000", "tok_", "kbctl_tok_" + "x" * 49])
def test_a_token_that_is_not_there(folder: Path, name: str) -> None:
    """404; whatever stood in the path is not repeated."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            answer = await desk.sees("DELETE", f"/tokens/{name}")
            assert (answer.status, code(answer)) == (404, "token_unknown")
            assert b"xxx" not in answer.body

    run(main())


def test_it_survives_a_crash_right_after_its_answer(folder: Path, tmp_path: Path) -> None:
    """Created, and revoked, on disk by the time that it was said; the token itself is nowhere."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            kept, gone = await desk.token("issue"), await desk.token()
            await desk.sees("DELETE", f"/tokens/{gone.token_id}")
            crashed = crash_copy(folder, tmp_path / "crashed")
            for path in crashed.iterdir():
                assert kept.token.encode() not in path.read_bytes()
                assert kept.token[10:40].encode() not in path.read_bytes()
            async with desk_in(crashed) as after:
                answer = await after.ask("GET", "/status", bearer=kept.token)
                assert answer.status == 200
                answer = await after.ask("GET", "/status", bearer=gone.token)
                assert (answer.status, code(answer)) == (401, "token_revoked")
                assert (await after.sees("GET", "/tokens")).json == (await desk.sees("GET", "/tokens")).json

    run(main())
    digests = stored(folder, "SELECT digest FROM token")
    assert all(len(row[0]) == 32 for row in digests)


def test_the_digest_is_sha_256_of_the_text(folder: Path) -> None:
    """As anyone can check who holds a token."""

    async def main() -> str:
        async with desk_in(folder) as desk:
            return (await desk.token()).token

    text = run(main())
    assert stored(folder, "SELECT digest FROM token") == [(hashlib.sha256(text.encode()).digest(),)]


def test_it_ends_by_the_daemon_s_own_clock(folder: Path) -> None:
    """At its time, not a nanosecond before; a clock that steps back revives nothing."""

    async def main() -> None:
        clock = Clock()
        async with desk_in(folder, clock) as desk:
            token = await desk.token("read", expires_in="30d")
            for ns, status in (
                (NOON + 30 * DAY_NS - 1, 200),
                (NOON + 30 * DAY_NS, 401),
                (NOON, 401),
                (NOON + 31 * DAY_NS, 401),
            ):
                clock.ns = ns
                answer = await desk.ask("GET", "/status", bearer=token.token)
                assert answer.status == status, ns
            assert code(answer) == "token_expired"

    run(main())


def test_a_restart_knows_the_time_of_the_last_token(folder: Path) -> None:
    """A clock that was set back meanwhile does not lengthen anything's life."""

    async def main() -> None:
        async with desk_in(folder, Clock(NOON + DAY_NS)) as desk:
            await desk.token()
        async with vault_in(folder, Clock(NOON)) as vault:
            assert vault.now_ns() == NOON + DAY_NS

    run(main())


def test_what_can_not_be_recorded_is_not_created_and_yet_stopped(folder: Path) -> None:
    """A token that is not durable is none; one that is revoked is stopped even if the disk says no."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            token = await desk.token()
            with locked(folder):
                answer = await desk.sees("POST", "/tokens", body=b"{}")
                assert (answer.status, code(answer)) == (503, "audit_unavailable")
                answer = await desk.sees("DELETE", f"/tokens/{token.token_id}")
                assert (answer.status, code(answer)) == (503, "audit_unavailable")
                assert (await desk.ask("GET", "/tokens", bearer=token.token)).status == 401
            assert len((await desk.sees("GET", "/tokens")).json["tokens"]) == 1
            assert (await desk.sees("DELETE", f"/tokens/{token.token_id}")).status == 200
        async with vault_in(folder) as vault:
            tokens = Tokens(vault)
            await tokens.load()
            found = tokens.find(token.token)
            assert found is not None
            assert found.revoked_ns is not None

    run(main(), deadline_s=30)


def test_a_token_is_no_good_before_it_is_durable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its row is being written nobody can use it, and nobody can when it was not written."""

    async def main() -> None:
        async with vault_in(folder) as vault:
            tokens = Tokens(vault)
            seen: list[Callable[[], object]] = []

            async def change(statements: list[tuple[str, tuple[object, ...]]]) -> None:
                (_, values) = statements[0]
                assert isinstance(values[1], bytes)
                seen.append(lambda: tokens._by_digest.get(values[1]))  # type: ignore[call-overload]
                assert seen[0]() is None
                raise JournalError("no")

            monkeypatch.setattr(vault.journal, "change", change)
            with pytest.raises(JournalError):
                await tokens.create("read", None, "", "tester")
            assert seen[0]() is None

    run(main())


def test_a_rolled_back_database_keeps_no_token_alive(folder: Path) -> None:
    """One that was revoked since would be good again."""

    async def main() -> str:
        async with desk_in(folder) as desk:
            text = (await desk.token()).token
        database = await open_database(folder / "kbctl.db", folder / "kbctl.anchor", accept_rollback=True)
        await database.close()
        return text

    text = run(main())
    assert stored(folder, "SELECT count(*) FROM token WHERE revoked_ns IS NULL") == [(0,)]
    assert stored(folder, "SELECT digest FROM token") == [(digest(text),)]
