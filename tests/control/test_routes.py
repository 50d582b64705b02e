"""The way through the table: what a route does not say it takes never reaches its handler."""

from pathlib import Path

import pytest

from kbctld.control.routes import BODY_BYTES_MAX, Ask, Reply, Route, Routes
from tests.control.support import Desk, code, desk_in
from tests.support.agent import Agent
from tests.support.loop import run


@pytest.mark.parametrize(
    ("method", "target", "status", "error"),
    [
        ("GET", "/status/probe", 200, ""),
        ("HEAD", "/status/probe", 200, ""),
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/status/probe/", 404, "not_found"),
        ("GET", "//status/probe", 404, "not_found"),
        ("GET", "/st%61tus/probe", 404, "not_found"),
        ("GET", "http://127.0.0.1/status/probe", 404, "not_found"),
        ("GET", "/status/", 404, "not_found"),
        ("GET", "/status/other", 404, "gone"),
        ("DELETE", "/status/probe", 405, "method_not_allowed"),
        ("OPTIONS", "/status/probe", 405, "method_not_allowed"),
        ("HEAD", "/shutdown", 405, ""),
        ("GET", "/status/a%2Fb", 404, "gone"),
        ("GET", "/status/%zz", 400, "invalid_request"),
        ("GET", "/status/%", 400, "invalid_request"),
        ("GET", "/status/%ff", 400, "invalid_request"),
        ("GET", "/status/%00", 400, "invalid_request"),
        ("GET", "/status/%0a", 400, "invalid_request"),
    ],
)
def test_paths_and_methods(folder: Path, method: str, target: str, status: int, error: str) -> None:
    """Exactly the paths of the table, percent-escapes read strictly, HEAD wherever there is GET."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            answer = await desk.sees(method, target)
            assert answer.status == status
            if error:
                assert code(answer) == error
            if method == "HEAD":
                assert answer.body == b""
            if status == 405:
                allowed = (answer.get(b"allow") or b"").split(b", ")
                assert allowed == sorted(set(allowed)) != []
                assert method.encode() not in allowed

    run(main())


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("text=&labels=a&labels=b&limit=1000&flag=true&from=2026-06-01T00:00:00%2B02:00&by=day", None),
        ("metadata.tenant_id=acme&metadata.x=", None),
        ("text=%E2%82%AC+x", None),
        ("from=9999-12-31T23:59:59Z", None),
        ("from=0001-01-01T00:00:00%2B23:59", None),
        ("colour=red", "colour"),
        ("metadata.=x", "metadata."),
        ("metadata=x", "metadata"),
        ("text", "read"),
        ("text=%ff", "read"),
        ("text=%zz", "read"),
        ("&text=a", "read"),
        ("&".join(f"metadata.x{number}=1" for number in range(101)), "read"),
        ("text=" + "x" * 2001, "text"),
        ("text=a&text=b", "text"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=", "limit"),
        ("limit=+5", "limit"),
        ("limit=1_0", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=" + "9" * 100, "limit"),
        ("limit=5&limit=6", "limit"),
        ("flag=True", "flag"),
        ("flag=", "flag"),
        ("from=yesterday", "from"),
        ("from=2026-06-01", "from"),
        ("from=2026-06-01T00:00:00", "from"),
        ("by=week", "by"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_queries(folder: Path, query: str, error: str | None) -> None:
    """A value that its parameter does not take is refused by name; the handler sees only good ones."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            answer = await desk.sees("GET", f"/status/probe?{query}")
            if error is None:
                assert answer.status == 200, answer.body
                assert len(desk.asked) == 1
            else:
                assert (answer.status, code(answer)) == (400, "invalid_request")
                assert error in answer.json["error"]["message"]
                assert desk.asked == []

    run(main())


def test_what_a_handler_is_given(folder: Path) -> None:
    """Decoded segments in order, all values of a name, and who asks."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            await desk.sees("GET", "/status/a%20b/of/%E2%82%AC")
            await desk.sees("GET", "/status/probe?labels=a&labels=b&from=1970-01-01T00:00:01Z")
            await desk.sees("PUT", "/status/probe", body=b"{}")
            names, labels, body = desk.asked
            assert names.parameters == ("a b", "€")
            assert (labels.query["labels"], labels.text("labels"), labels.text("text")) == (
                ["a", "b"],
                "b",
                None,
            )
            assert (labels.moment("from"), labels.moment("to")) == (10**9, None)
            assert (body.body, body.actor) == (b"{}", "uid 1000")

    run(main())


JSON = b"application/json"


@pytest.mark.parametrize(
    ("method", "fields", "body", "status", "error"),
    [
        ("PUT", [], b"{}", 200, ""),
        ("PUT", [(b"Content-Type", JSON)], b"{}", 200, ""),
        ("PUT", [(b"Content-Type", JSON + b'; charset="UTF-8"')], b"{}", 200, ""),
        ("PUT", [(b"Content-Type", JSON + b"; charset=latin-1")], b"{}", 415, "unsupported_body"),
        ("PUT", [(b"Content-Type", b"text/plain")], b"{}", 415, "unsupported_body"),
        ("PUT", [(b"Content-Type", b"multipart/form-data")], b"{}", 415, "unsupported_body"),
        ("PUT", [(b"Content-Encoding", b"gzip")], b"{}", 415, "unsupported_body"),
        ("PUT", [], b" " * BODY_BYTES_MAX, 200, ""),
        ("PUT", [], b" " * (BODY_BYTES_MAX + 1), 413, "body_too_large"),
        ("GET", [], b"{}", 400, "invalid_request"),
        ("GET", [(b"Transfer-Encoding", b"chunked")], None, 400, "invalid_request"),
        ("GET", [], b"", 200, ""),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bodies(
    folder: Path,
    method: str,
    fields: list[tuple[bytes, bytes]],
    body: bytes | None,
    status: int,
    error: str,
) -> None:
    """JSON up to 1 MiB where one is taken, none elsewhere."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            answer = await desk.sees(method, "/status/probe", *fields, body=body)
            assert answer.status == status
            assert not error or code(answer) == error
            assert len(desk.asked) == (status == 200)

    run(main())


def test_a_chunked_body_is_bounded_as_it_comes(folder: Path) -> None:
    """It states no length; the first byte too many ends it, and the connection."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            agent = await Agent.connect(desk.inside)
            await agent.send(desk.raw("PUT", "/status/probe", (b"Transfer-Encoding", b"chunked")))
            piece = b"%x\r\n%b\r\n" % (BODY_BYTES_MAX // 2 + 1, b" " * (BODY_BYTES_MAX // 2 + 1))
            await agent.send(piece * 2)
            answer = await agent.reply()
            assert (answer.status, code(answer)) == (413, "body_too_large")
            assert answer.get(b"connection") == b"close"
            agent.close()

    run(main())


def test_the_connection_goes_on_after_every_refusal_that_read_all(folder: Path) -> None:
    """Pipelined: each answer is the one of its own request."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            agent = await Agent.connect(desk.inside)
            asked = [
                ("GET", "/status/probe", None, 200),
                ("GET", "/nothing", None, 404),
                ("PUT", "/status/probe", b"{}", 200),
                ("GET", "/status/probe", b"{}", 400),
                ("DELETE", "/status/probe", b"{}", 405),
                ("HEAD", "/status/probe", None, 200),
                ("GET", "/openapi.json", None, 200),
            ]
            await agent.send(b"".join(desk.raw(method, path, body=body) for method, path, body, _ in asked))
            for method, _, _, status in asked:
                assert (await agent.reply(method)).status == status
            agent.close()

    run(main())


def test_a_key_in_a_wrong_place_is_not_repeated(folder: Path) -> None:
    """Errors end up in terminals and logs."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            for secret in ("vault_key_" + "x" * 49, "kbctl_tok_" + "x" * 49):
                for method, target in (("GET", f"/vault/{secret}"), ("PUT", f"/vault/keys/{secret}")):
                    answer = await desk.sees(method, target)
                    assert answer.status in (404, 405)
                    assert secret.encode() not in answer.body

    run(main())


def test_a_table_that_can_not_be_is_refused_when_it_is_made() -> None:
    """Two handlers for one route, or a success that its status denies."""

    async def nothing(_ask: Ask) -> Reply:
        return Reply(None)

    one = Route("DELETE", "/a", nothing, "read", "A", status=204)
    with pytest.raises(ValueError, match="twice"):
        Routes([one, one])
    with pytest.raises(ValueError, match="204"):
        Routes([Route("DELETE", "/a", nothing, "read", "A")])
    with pytest.raises(ValueError, match="204"):
        Routes([Route("GET", "/a", nothing, "read", "A", gives=str, status=204)])


def test_every_route_says_a_scope_and_stays_behind_the_door(folder: Path) -> None:
    """Nothing but /healthz is open, and the door knows every first segment."""
    from kbctld.control.door import SEGMENTS

    async def main() -> Desk:
        async with desk_in(folder) as desk:
            return desk

    routes = run(main()).routes.all
    assert {route.segments[0] for route in routes} <= SEGMENTS
    assert [route.path for route in routes if route.scope is None] == ["/healthz"]
    assert all(route.scope != "read" for route in routes if route.method != "GET")
    assert all(route.summary and not route.summary.endswith(".") for route in routes)
