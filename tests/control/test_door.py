"""The proxy's port: whose request is whose, and who may ask what of the operator API."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from kbctld.control.door import SEGMENTS
from kbctld.control.routes import Route
from kbctld.core.operator_token import SCOPES, covers, mint
from kbctld.core.vault_key import mint as mint_vault_key
from tests.control.support import code, desk_in
from tests.daemon.support import TERMS
from tests.support.agent import Agent
from tests.support.loop import run

UNKNOWN = mint(bytes(32))
VAULT_KEY = mint_vault_key(bytes(32))


@pytest.mark.parametrize(
    ("authorization", "error"),
    [
        (None, "token_missing"),
        (b"Bearer ", "token_missing"),
        (b"Bearer", "token_missing"),
        (b"Basic a2JjdGw6eA==", "token_missing"),
        (b"Token " + UNKNOWN.encode(), "token_missing"),
        (b"Bearer " + UNKNOWN.encode(), "token_unknown"),
        (b"Bearer " + UNKNOWN[:-1].encode(), "token_unknown"),
        (b"Bearer x", "token_unknown"),
        (b"Bearer \xff\xfe", "token_unknown"),
        (b"Bearer " + b"x" * 4000, "token_unknown"),
        (b"Bearer " + VAULT_KEY.encode(), "token_unknown"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/status"),
        ("HEAD", "/status"),
        ("POST", "/shutdown"),
        ("DELETE", "/status"),
        ("GET", "/vault/nothing"),
    ],
)
def test_without_a_good_token_there_is_only_that(
    folder: Path, authorization: bytes | None, error: str, method: str, path: str
) -> None:
    """401 with what to do, before it is told what is there and what takes which method."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            more = [] if authorization is None else [(b"Authorization", authorization)]
            answer = await desk.ask(method, path, *more)
            assert answer.status == 401
            assert answer.get(b"www-authenticate") == b"Bearer"
            if method != "HEAD":
                assert code(answer) == error
                assert answer.json["error"]["remedy"] == "kbctl token create"
                assert ("vault key" in answer.json["error"]["message"]) == (
                    VAULT_KEY.encode() in (authorization or b"")
                )

    run(main())


def test_a_vault_key_that_is_good_is_no_operator(folder: Path) -> None:
    """Neither in Authorization nor in x-api-key, whatever route but its own two."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            _, key = await desk.vault.issue(TERMS, "tester")
            for route in desk.routes.all:
                for more in ((b"Authorization", b"Bearer " + key.encode()), (b"x-api-key", key.encode())):
                    body = b"{}" if route.takes else None
                    answer = await desk.ask(route.method, concrete(route), more, body=body)
                    assert answer.status == (200 if route.scope is None else 401), route.path

    run(main())


def concrete(route: Route) -> str:
    """Its path with names that nothing has."""
    return "/".join(["", *("nobody" if "{" in part else part for part in route.segments)])


def bodies(route: Route) -> bytes | None:
    """A body of the right type that changes nothing."""
    return None if route.takes is None else b'{"colour": 1}'


def test_every_route_for_every_scope(folder: Path) -> None:
    """A scope may do what it may, and all before it; the refusal names the scope that is needed."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            tokens = {scope: (await desk.token(scope)).token for scope in SCOPES}
            before = {str(grant.status(0)) for grant in desk.vault.loaded()}
            for route in desk.routes.all:
                for scope, token in tokens.items():
                    answer = await desk.ask(route.method, concrete(route), body=bodies(route), bearer=token)
                    if route.scope is None or covers(scope, route.scope):
                        assert answer.status in (200, 204, 400, 404), (route, scope, answer)
                        assert answer.status != 404 or code(answer) != "not_found"
                    else:
                        assert (answer.status, code(answer)) == (403, "token_scope"), (route, scope)
                        assert f"scope {route.scope}" in answer.json["error"]["message"]
                        assert route.scope in answer.json["error"]["remedy"]
                none = await desk.ask(route.method, concrete(route), body=bodies(route))
                assert none.status == (200 if route.scope is None else 401), route
            assert before == {str(grant.status(0)) for grant in desk.vault.loaded()}

    run(main(), deadline_s=60)


@pytest.mark.parametrize(
    ("host", "more", "there"),
    [
        (None, [], True),
        (b"LOCALHOST:%d", [], True),
        (b"evil.example", [], False),
        (b"evil.example:%d", [], False),
        (b"127.0.0.1", [], False),
        (b"127.0.0.1:1", [], False),
        (b"127.0.0.1.evil.example:%d", [], False),
        (None, [(b"Origin", b"http://evil.example")], False),
        (None, [(b"Origin", b"null")], False),
        (None, [(b"Origin", b"http://127.0.0.1:4815")], False),
        (None, [(b"Sec-Fetch-Site", b"cross-site")], False),
        (None, [(b"Sec-Fetch-Site", b"same-origin")], False),
        (None, [(b"Sec-Fetch-Site", b"none")], True),
    ],
    ids=lambda value: str(value)[:50],
)
def test_pages_and_rebound_names_are_turned_away_first(
    folder: Path, host: bytes | None, more: list[tuple[bytes, bytes]], there: bool
) -> None:
    """Even with a token, and even where none is asked for."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            token = (await desk.token()).token
            named = host % desk.port if host is not None and b"%d" in host else host
            for path in ("/status", "/healthz", "/vault/self", "/openapi.json"):
                answer = await desk.ask("GET", path, *more, host=named, bearer=token)
                assert answer.status == (200 if there else 403), path
                assert there or code(answer) == "origin_not_allowed"
            assert there or not desk.heard

    run(main())


@pytest.mark.parametrize(
    ("target", "ours"),
    [
        *((f"/{segment}", True) for segment in sorted(SEGMENTS)),
        ("/vault/keys?x=1", True),
        ("/status?x", True),
        ("/stripe/v1/charges", False),
        ("/v1/charges", False),
        ("/", False),
        ("/?status", False),
        ("//status", False),
        ("/%73tatus", False),
        ("/Status", False),
        ("/statuses", False),
        ("/vault_keysx", False),
        ("/stripe/status", False),
        ("*", False),
        ("http://127.0.0.1/status", False),
    ],
)
def test_the_first_segment_decides(folder: Path, target: str, ours: bool) -> None:
    """Byte for byte; everything else is an agent's."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            answer = await desk.ask("GET", target)
            assert (answer.body == b"plane") == (not ours)

    run(main())


def test_both_kinds_on_one_connection(folder: Path) -> None:
    """Pipelined, bodies and all; a refused one does not shift the rest."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            token = (await desk.token()).token
            script: list[tuple[tuple[Any, ...], dict[str, Any], int, bytes | None]] = [
                (("POST", "/stripe/v1/x"), {"body": b"a=1"}, 200, b"plane"),
                (("GET", "/status"), {"bearer": token}, 200, None),
                (("POST", "/vault/keys"), {"body": b'{"daily_usd_cap": 5}'}, 401, None),
                (("POST", "/v1/x"), {"body": b"a=1"}, 200, b"plane"),
                (("POST", "/tokens"), {"body": b"{}", "bearer": token}, 201, None),
                (("POST", "/tokens"), {"body": b"{}"}, 401, None),
                (("HEAD", "/metrics"), {"bearer": token}, 200, b""),
                (("GET", "/healthz"), {}, 200, b'{"ok":true}'),
                (("POST", "/stripe/v1/x"), {"body": b"a=1"}, 200, b"plane"),
            ]
            agent = await Agent.connect(desk.port)
            await agent.send(b"".join(desk.raw(*place, **also) for place, also, _, _ in script), step=100)
            for place, _, status, body in script:
                answer = await agent.reply(place[0])
                assert answer.status == status, place
                assert body is None or answer.body == body
            agent.close()

    run(main())


def test_what_an_agent_may_ask_with_its_own_key(folder: Path) -> None:
    """GET /vault/self, and a child of a key that the body names; both go to who answers agents."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            key = [(b"Authorization", b"Bearer " + VAULT_KEY.encode())]
            assert (await desk.ask("GET", "/vault/self", *key)).status == 200
            assert (await desk.ask("HEAD", "/vault/self", *key)).status == 200
            assert (await desk.ask("POST", "/vault/self", *key)).status == 401
            child = json.dumps({"parent_vault_key": VAULT_KEY, "daily_usd_cap": 1.5}).encode()
            for path in ("/vault/keys", "/vault_keys"):
                for more in ([], key, [(b"Content-Type", b"application/json")]):
                    answer = await desk.ask("POST", path, *more, body=child)
                    assert answer.status == 201
            assert len(desk.heard) == 8
            asked = desk.heard[-1][1]
            assert asked is not None
            assert (asked.parent_vault_key, str(asked.daily_usd_cap)) == (VAULT_KEY, "1.5")

    run(main())


@pytest.mark.parametrize(
    ("fields", "body", "status"),
    [
        ([], b"{}", 401),
        ([], b'{"daily_usd_cap": 1}', 401),
        ([], b'{"parent_vault_key": null}', 401),
        ([], b"not json", 401),
        ([], b"[" * 100_000, 401),
        ([], b"[]", 401),
        ([], b"", 401),
        ([(b"Content-Type", b"text/plain")], b'{"parent_vault_key": "vault_key_x"}', 401),
        ([], b'{"parent_vault_key": 5}', 400),
        ([], b'{"parent_vault_key": "vault_key_x", "colour": 1}', 400),
        ([], b" " * 1_100_000, 413),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_body_without_a_parent_is_no_derivation(
    folder: Path, fields: list[tuple[bytes, bytes]], body: bytes, status: int
) -> None:
    """Then the token decides, and there is none."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            answer = await desk.ask("POST", "/vault/keys", *fields, body=body)
            assert answer.status == status
            assert not desk.heard
            assert not list(desk.vault.loaded())

    run(main())


def test_with_an_operator_token_a_parent_is_the_operator_s_affair(folder: Path) -> None:
    """A good one asks the route; a bad one is refused and does not fall back to the parent key."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            body = json.dumps({"parent_vault_key": VAULT_KEY, "colour": 1}).encode()
            issue, read = (await desk.token("issue")).token, (await desk.token("read")).token
            for token, status in ((issue, 400), (read, 403), (UNKNOWN, 401)):
                assert (await desk.ask("POST", "/vault/keys", body=body, bearer=token)).status == status
            assert not desk.heard

    run(main())


def test_a_flood_of_bad_tokens_logs_one_line_a_second_and_no_row(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the line tells nothing of a token."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            agent = await Agent.connect(desk.port)
            for _ in range(50):
                await agent.send(desk.raw("GET", "/status", bearer=UNKNOWN) * 2)
                assert (await agent.reply("GET")).status == 401
                assert (await agent.reply("GET")).status == 401
            agent.close()
            await desk.vault.journal.barrier()
            reader = desk.vault.journal.database.reader
            async with reader.execute("SELECT count(*) FROM call") as cursor:
                assert await cursor.fetchone() == (0,)

    with caplog.at_level(logging.INFO):
        run(main())
    lines = [record.getMessage() for record in caplog.records if record.name == "kbctld.control"]
    assert 1 <= len(lines) <= 4
    assert "kbctl_tok_" not in caplog.text
