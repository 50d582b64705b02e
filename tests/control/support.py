"""The operator API in this process: real routes, door, tokens, vault and server; only the plane is a stub."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.checkpoints import Checkpoints
from kbctld.control.audits import Audits
from kbctld.control.calls import CallHandlers
from kbctld.control.door import Door
from kbctld.control.handlers import Handlers
from kbctld.control.keys import KeyHandlers
from kbctld.control.metrics import Metrics
from kbctld.control.openapi import OpenApi
from kbctld.control.parameters import Choice, Flag, Moment, Parameter, Text, Whole
from kbctld.control.price_lists import PriceLists
from kbctld.control.reconciling import Reconciling
from kbctld.control.reports import Reports
from kbctld.control.routes import Ask, Asker, Reply, Route, Routes
from kbctld.control.sql import Sql
from kbctld.control.tiers import TierHandlers
from kbctld.control.tokens import Tokens
from kbctld.core.record import Compared, Made, Ours
from kbctld.core.refusal import Refusal
from kbctld.core.tally import Tally
from kbctld.core.tariff import PriceTable
from kbctld.core.vendor import Vendor
from kbctld.credentials import Credentials
from kbctld.http1.gate import BadHead, Head
from kbctld.http1.server import Limits, Request, Server
from kbctld.proxy.asking import stranger
from kbctld.secrets.store import MemoryStore
from kbctld.vault import Vault
from tests.daemon.support import STRIPE, Clock, vault_in
from tests.support.agent import Agent
from tests.support.agent import Reply as Answer

SECRET = "sk_test_CanaryOfTheDesk0123456789"
OWN_PRICES = PriceTable(per_segment_usd={"DE": "0.12"}, per_media_usd="0.02")
"""The operator's, of Twilio."""


async def _compared(_vendor: Vendor, credential: str, from_ns: int, _to_ns: int) -> Compared:
    """What a comparison of the account ``stripe`` gives: one difference of each kind."""
    if credential != "stripe":
        raise KbctlError("credential_unavailable", "there is no such", "kbctl credential list", Exit.REFUSED)
    call = Ours("call_1", from_ns, "refund.created", None, "k-1", 100, "USD", 10**9, "unknown")
    thing = Made("refund.created", from_ns // 10**9, "re_1", "req_1", None, 250, "USD")
    untold = replace(thing, object_id="re_2", minor=None)
    return Compared(7, [thing, untold], [call], [(replace(call, call_id="call_2", outcome="posted"), thing)])


@dataclass
class Desk:
    """What a test acts on and looks at.

    Attributes:
        port: the proxy's; operator routes want a token there.
        inside: a port whose gate lets everyone in, as the socket does.
        asked: what reached the probe's handler.
        heard: heads that reached ``derive`` or ``who_am_i``.
    """

    vault: Vault
    tokens: Tokens
    tally: Tally
    sql: Sql
    checkpoints: Checkpoints
    routes: Routes
    door: Door
    port: int = 0
    inside: int = 0
    asked: list[Ask] = field(default_factory=list)
    heard: list[tuple[Head, wire.IssueRequest | None]] = field(default_factory=list)

    async def token(self, scope: str = "admin", **terms: Any) -> wire.CreatedToken:
        body = json.dumps({"scope": scope, **terms}).encode()
        answer = await self.ask("POST", "/tokens", body=body, port=self.inside)
        assert answer.status == 201, answer.body
        return wire.decode(answer.body, wire.CreatedToken)

    def raw(
        self,
        method: str,
        target: str,
        *more: tuple[bytes, bytes],
        body: bytes | None = None,
        bearer: str | None = None,
        host: bytes | None = None,
    ) -> bytes:
        fields = [(b"Host", host or b"127.0.0.1:%d" % self.port)]
        if bearer is not None:
            fields.append((b"Authorization", b"Bearer " + bearer.encode()))
        if body is not None:
            fields.append((b"Content-Length", b"%d" % len(body)))
        lines = [b"%b: %b\r\n" % pair for pair in (*fields, *more)]
        return f"{method} {target} HTTP/1.1\r\n".encode("latin-1") + b"".join(lines) + b"\r\n" + (body or b"")

    async def ask(
        self,
        method: str,
        target: str,
        *more: tuple[bytes, bytes],
        body: bytes | None = None,
        bearer: str | None = None,
        host: bytes | None = None,
        port: int | None = None,
    ) -> Answer:
        """One request on a connection of its own; over TCP, unless ``port`` says otherwise."""
        agent = await Agent.connect(port or self.port)
        try:
            await agent.send(self.raw(method, target, *more, body=body, bearer=bearer, host=host))
            return await agent.reply(method)
        finally:
            agent.close()

    async def sees(self, method: str, target: str, *more: tuple[bytes, bytes], **also: Any) -> Answer:
        """The same as the socket would answer it."""
        return await self.ask(method, target, *more, port=self.inside, **also)


def code(answer: Answer) -> str:
    """An error's code, once it is a whole ``ErrorReply``."""
    assert answer.get(b"content-type") == b"application/json"
    return wire.decode(answer.body, wire.ErrorReply).error.code


def probe(desk: Desk) -> list[Route]:
    """Routes that tell what reached them."""

    async def take(ask: Ask) -> Reply:
        desk.asked.append(ask)
        return Reply(wire.Health(ok=True))

    async def fail(ask: Ask) -> Reply:
        raise KbctlError("gone", "it is gone", "kbctl status", Exit.NOT_FOUND)

    query: dict[str, Parameter] = {
        "text": Text("Any."),
        "labels": Text("Several.", many=True),
        "limit": Whole("So many.", 1, 1000, 100),
        "flag": Flag("Or not."),
        "from": Moment("Then."),
        "by": Choice("Which.", ("key", "day"), "key"),
        "metadata.": Text("By name."),
    }
    return [
        Route("GET", "/status/probe", take, "read", "Probe", gives=wire.Health, query=query),
        Route("GET", "/status/{name}", fail, "read", "Fail", gives=wire.Health, errors=(404,)),
        Route("GET", "/status/{name}/of/{key}", take, "read", "Names", gives=wire.Health),
        Route("PUT", "/status/probe", take, "issue", "Take", takes=wire.TokenRequest, gives=wire.Health),
    ]


@asynccontextmanager
async def desk_in(folder: Path, clock: Clock | None = None) -> AsyncIterator[Desk]:
    """A desk over a database of its own."""
    async with vault_in(folder, clock) as vault:
        credentials = Credentials(MemoryStore(), vault.journal)
        await credentials.set("stripe", STRIPE, SECRET, vault.now_ns(), "tester")
        tokens, tally, sql = Tokens(vault), Tally(), Sql(vault)
        await tokens.load()
        database = vault.journal.database
        checkpoints = Checkpoints(
            credentials.store, database, folder / "kbctl.checkpoints", lambda _key: None
        )
        await checkpoints.load()
        desk: Desk

        async def status() -> wire.Status:
            texts = "version home socket proxy_url database keyring state started_at".split()
            plain: dict[str, Any] = dict.fromkeys(texts, "x")
            plain |= dict.fromkeys("pid keys_active in_flight unknown_calls".split(), 0)
            plain |= {
                "sandbox": True,
                "unknown_usd": Decimal(0),
                "upstreams": [],
                "credentials": [],
                "notices": [],
            }
            return wire.convert(plain, wire.Status)

        keys = KeyHandlers(
            vault=vault,
            credentials=credentials,
            default_vendors=None,
            proxy_url="http://127.0.0.1:4815",
            cut=lambda _grants: 0,
        )
        handlers = Handlers(
            vault=vault,
            credentials=credentials,
            status=status,
            stop=lambda: 0,
            rotated=lambda _credential: None,
            removed=lambda _name: None,
        )
        made: list[Route] = []
        openapi = OpenApi(lambda: made, "http://127.0.0.1:4815")
        made = [
            *handlers.routes(),
            *Audits(vault, checkpoints, keys).routes(),
            *keys.routes(),
            *CallHandlers(vault, keys).routes(),
            *TierHandlers(vault).routes(),
            *Metrics(vault, tally, lambda: 0).routes(),
            *openapi.routes(),
            *Reports(vault, credentials).routes(),
            *Reconciling(vault, _compared).routes(),
            *PriceLists(vault, {"twilio": OWN_PRICES}, frozenset({"EUR"})).routes(),
            *sql.routes(),
            *tokens.routes(),
        ]

        async def plane(request: Request) -> None:
            await request.body()
            request.respond(200, [(b"Content-Type", b"text/plain")], b"plane")

        async def who_am_i(head: Head) -> Reply:
            desk.heard.append((head, None))
            return Reply(wire.Health(ok=True))

        async def derive(head: Head, asked: wire.IssueRequest) -> Reply:
            desk.heard.append((head, asked))
            return Reply(wire.Health(ok=True))

        async def reject(request: Request, bad: BadHead) -> None:
            request.respond(bad.status, [], b"", close=True)

        hosts: set[bytes] = set()

        def strange(head: Head) -> Refusal | None:
            return stranger(head, frozenset(hosts))

        routes = Routes(made)
        door = Door(
            routes,
            tokens,
            plane,
            stranger=strange,
            who_am_i=who_am_i,
            derive=derive,
            now_ns=vault.now_ns,
        )
        desk = Desk(vault, tokens, tally, sql, checkpoints, routes, door)
        probes = Routes([*made, *probe(desk)])

        async def inside(request: Request) -> None:
            await probes.handle(request, lambda *_: Asker("uid 1000", "admin"))

        loop = asyncio.get_running_loop()
        servers = [Server(door.handle, reject, Limits()), Server(inside, routes.reject, Limits())]
        ports = []
        for server in servers:
            listener = await loop.create_server(server.protocol, "127.0.0.1", 0)
            server.serve(listener)
            ports.append(listener.sockets[0].getsockname()[1])
        desk.port, desk.inside = ports
        hosts.update(f"{name}:{desk.port}".encode() for name in ("127.0.0.1", "localhost"))
        try:
            yield desk
        finally:
            for server in servers:
                await server.drain(1.0)
            credentials.close()
