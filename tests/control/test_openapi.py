"""GET /openapi.json: valid OpenAPI, every route in it, and real answers as it says."""

import json
from pathlib import Path
from typing import Any

import jsonschema
from openapi_spec_validator import OpenAPIV31SpecValidator

from kbctld.control.openapi import document
from kbctld.control.routes import Route
from kbctld.core.ledger import Verdict
from kbctld.core.vault_key import mint
from tests.control.support import SECRET, Desk, desk_in
from tests.daemon.support import allowed, ask, issue
from tests.support.agent import Reply
from tests.support.loop import run


def check(told: dict[str, Any], method: str, path: str, answer: Reply) -> None:
    """An answer is one that the document describes, down to its last field."""
    responses = told["paths"][path][method.lower()]["responses"]
    assert str(answer.status) in responses, (method, path, answer)
    response = responses[str(answer.status)]
    if "$ref" in response:
        response = told["components"]["responses"][response["$ref"].rpartition("/")[2]]
    if "content" not in response:
        assert answer.body == b""
        return
    ((kind, content),) = response["content"].items()
    assert (answer.get(b"content-type") or b"").decode().partition(";")[0] == kind
    if kind == "application/json":
        schema = {**content["schema"], "components": told["components"]}
        jsonschema.Draft202012Validator(schema).validate(json.loads(answer.body))


async def documented(desk: Desk) -> dict[str, Any]:
    answer = await desk.sees("GET", "/openapi.json")
    assert answer.status == 200
    return dict(answer.json)


def test_it_is_valid_and_has_every_route(folder: Path) -> None:
    """By a validator that is not ours."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            told = await documented(desk)
            OpenAPIV31SpecValidator(told).validate()
            listed = {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}
            assert listed == {(route.method, route.path) for route in desk.routes.all} | {
                ("GET", "/vault/self")
            }
            for route in desk.routes.all:
                entry = told["paths"][route.path][route.method.lower()]
                assert entry.get("x-scope") == route.scope
                assert entry["security"] or route.scope is None
                assert ("requestBody" in entry) == (route.takes is not None)
                assert {
                    parameter["name"] for parameter in entry["parameters"] if parameter["in"] == "query"
                } == set(route.query)

    run(main())


def test_money_is_a_number_and_what_may_be_left_out_is_not_required(folder: Path) -> None:
    """As the wire reads and writes it."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            schemas = (await documented(desk))["components"]["schemas"]
            asked = schemas["IssueRequest"]
            assert asked["properties"]["daily_usd_cap"] == {"anyOf": [{"type": "number"}, {"type": "null"}]}
            assert asked.get("required", []) == []
            assert asked["additionalProperties"] is False
            assert schemas["Key"]["properties"]["spent_usd"] == {"type": "number"}
            assert "tenant" in schemas["Key"]["required"]
            assert "decimal" not in json.dumps(schemas)

    run(main())


def test_real_answers_are_as_it_says(folder: Path) -> None:
    """Every route, in a way that succeeds and in ways that don't."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            told = await documented(desk)
            grant = await issue(desk.vault, tenant="acme", label="tenant:acme", metadata={"a": "b"})
            _, permit = await allowed(desk.vault, grant)
            desk.vault.settle(grant, permit.attempt, Verdict.POSTED)
            await ask(desk.vault, grant, 10**9)
            lost, permit = await allowed(desk.vault, grant)
            desk.vault.settle(grant, permit.attempt, Verdict.SILENT)
            token = await desk.token(note="x")
            names = {
                "call": lost.call_id,
                "key": grant.key_id,
                "name": "stripe:acme",
                "token_id": token.token_id,
                "policy": "gold",
                "tenant": "acme",
            }
            gold = {"name": "gold", "daily_usd_cap": 5, "rate": "5/s", "loop": None, "param_rules": []}
            sent = {
                "/calls/{call}/resolve": {"spent_usd": None},
                "/policies": {"policies": [gold], "live": True},
                "/policies/{policy}": {**gold, "daily_usd_cap": None},
                "/tenants/{tenant}": {"daily_usd_cap": 2000, "rate": "5/s"},
                "/vault/keys": {"daily_usd_cap": 5.25, "call_usd_cap": None, "tenant": "acme"},
                "/vault_keys": {"total_usd_cap": 1},
                "/vault/revocations": {"tenant": "acme"},
                "/credentials/{name}": {"secret": SECRET, "vendor": "stripe"},
                "/audit/prune": {"before": "2020-01-01T00:00:00Z"},
                "/sql": {"query": "SELECT * FROM calls"},
                "/tokens": {"scope": "read"},
                "/vendors/check": {"text": "schema = 2"},
            }
            # What takes away comes last.
            last = ("PUT", "POST", "GET", "DELETE")
            for route in sorted(desk.routes.all, key=lambda route: last.index(route.method)):
                body = None if route.takes is None else json.dumps(sent[route.path]).encode()
                path = route.path.replace("/vendors/{name}", "/vendors/stripe").format(**names)
                answer = await desk.sees(route.method, path, body=body)
                assert answer.status == route.status, (route, answer.body)
                check(told, route.method, route.path, answer)
                for wrong in await refusals(desk, route):
                    assert wrong.status >= 400, route
                    check(told, route.method, route.path, wrong)

    run(main(), deadline_s=60)


async def refusals(desk: Desk, route: Route) -> list[Reply]:
    """Ways to be refused that every route has."""
    path = route.path.format(
        call="call_nobody",
        key="nobody",
        name="nobody:%00",
        token_id="nobody",
        policy="nobody",
        tenant="a%2Fb",
    )
    body = b"{}" if route.takes is not None else None
    key = [(b"Authorization", b"Bearer " + mint(bytes(32)).encode())]
    found = [
        await desk.sees(route.method, f"{path}?colour=red", body=body),
        await desk.ask(route.method, path, host=b"evil.example"),
        await desk.sees(route.method, path, body=b"]"),
    ]
    if route.scope is not None:
        found.append(await desk.ask(route.method, path, *key, body=body))
    if "{" in route.path:
        found.append(await desk.sees(route.method, path, body=body))
    if route.takes is not None:
        found.append(await desk.sees(route.method, path, (b"Content-Type", b"text/plain"), body=body))
        found.append(await desk.sees(route.method, path, body=b" " * 1_100_000))
    return found


def test_the_document_of_no_routes_is_one(folder: Path) -> None:
    """It needs nothing but the table."""
    OpenAPIV31SpecValidator(document([], "http://127.0.0.1:4815")).validate()
