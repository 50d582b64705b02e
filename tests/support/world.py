"""The proxy plane in this process: real server, vault, journal and pool; only the vendor is scripted."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

from kbctld.core.grant import Grant
from kbctld.core.limits import Limits as KeyLimits
from kbctld.core.money import rates_from
from kbctld.core.pace import Rate
from kbctld.core.vendor import Vendor as VendorFile
from kbctld.core.vendor import read_vendor
from kbctld.core.vendor_file import RateClass
from kbctld.credentials import Credentials
from kbctld.http1.gate import BadHead
from kbctld.http1.server import Limits, Request, Server
from kbctld.proxy.exchange import exchange
from kbctld.proxy.plane import Plane
from kbctld.proxy.upstream import Pool, UpstreamLimits, read_origin, verifying_context
from kbctld.secrets.store import MemoryStore
from kbctld.store.database import Database, open_database
from kbctld.vault import Terms, Vault
from tests.support.agent import Agent, Reply
from tests.support.vendor import Arrived, Vendor, vendor_on_loopback

SECRET = "sk_test_CanaryOfTheWorld0123456789"
ACCOUNT = "AC" + "5" * 32
"""The account that a secret goes with, at vendors that ask for one."""
CENT = 10_000_000
"""One US cent in nano-USD."""

BODY = b"amount=100&currency=usd"
TARGET = "/stripe/v1/payment_intents"
FORM = (b"Content-Type", b"application/x-www-form-urlencoded")

TERMS = Terms(
    limits=KeyLimits(vendors=("stripe",), daily_cap_nano=1_000_000 * 100 * CENT),
    label="world",
    tenant=None,
    metadata={},
    credential=None,
)
_LIMITS = frozenset(field.name for field in fields(KeyLimits))


def terms(**changes: Any) -> Terms:
    """Terms that differ from the usual ones."""
    limits = replace(TERMS.limits, **{name: changes.pop(name) for name in _LIMITS & changes.keys()})
    return replace(TERMS, limits=limits, **changes)


def stripe() -> VendorFile:
    """The vendor file that is shipped."""
    return read_vendor((resources.files("kbctld") / "vendors" / "stripe.toml").read_text(encoding="utf-8"))


@dataclass
class World:
    """What a test acts on and looks at."""

    vendor: Vendor
    vault: Vault
    database: Database
    credentials: Credentials
    plane: Plane
    server: Server
    pool: Pool
    port: int
    key: str
    grant: Grant
    around: Callable[[Coroutine[Any, Any, None]], Awaitable[None]] | None = None
    """Wraps the work on each request, for tests that disturb it."""
    busy: int = 0
    _calm: asyncio.Event = field(default_factory=asyncio.Event)

    # --- to act -----------------------------------------------------------------------------------

    async def issue(self, **changes: Any) -> tuple[Grant, str]:
        return await self.vault.issue(terms(**changes), "tester")

    def request(
        self,
        method: str = "POST",
        target: str = TARGET,
        *more: tuple[bytes, bytes],
        body: bytes = BODY,
        key: str | None = None,
        host: bytes | None = None,
    ) -> bytes:
        """A request as an agent should send it; ``more`` are further fields, an empty key leaves it out."""
        fields = [(b"Host", host or b"127.0.0.1:%d" % self.port)]
        key = self.key if key is None else key
        if key:
            fields.append((b"Authorization", b"Bearer " + key.encode()))
        if body:
            fields += [FORM, (b"Content-Length", b"%d" % len(body))]
        lines = [b"%b: %b\r\n" % pair for pair in (*fields, *more)]
        return f"{method} {target} HTTP/1.1\r\n".encode("latin-1") + b"".join(lines) + b"\r\n" + body

    async def connect(self) -> Agent:
        return await Agent.connect(self.port)

    async def ask(self, raw: bytes | None = None, *, step: int | None = None) -> Reply:
        """Send on a connection of its own; the first answer."""
        raw = self.request() if raw is None else raw
        agent = await self.connect()
        try:
            await agent.send(raw, step)
            return await agent.reply(
                raw.partition(b" ")[0].decode("latin-1") if raw[:1].isalpha() else "POST"
            )
        finally:
            agent.close()

    # --- to look ----------------------------------------------------------------------------------

    async def calm(self) -> None:
        """Wait until no request is worked on."""
        while self.busy:
            self._calm.clear()
            await self._calm.wait()

    async def rows(self) -> list[dict[str, Any]]:
        """The audit, oldest first, once nothing is under way any more."""
        await self.calm()
        await self.vault.journal.change([])
        async with self.database.reader.execute("SELECT * FROM call ORDER BY no") as cursor:
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) async for row in cursor]

    async def last(self) -> dict[str, Any]:
        return (await self.rows())[-1]

    async def check_books(self) -> None:
        """L13: memory and journal tell the same money, nothing is negative, every hold has its row."""
        rows = await self.rows()
        for grant in self.vault.loaded():
            account = grant.scopes[0].account
            open_nano = sum(hold.nano for hold in self.vault.ledger.open if account in hold.accounts)
            mine = [row for row in rows if row["key_no"] == grant.no]
            assert account.held_total == open_nano == sum(account.held.values())
            assert open_nano == sum(r["amount_nano"] for r in mine if r["outcome"] in ("pending", "unknown"))
            assert account.posted_total == sum(r["amount_nano"] for r in mine if r["outcome"] == "posted")
            assert min([0, *account.held.values(), *account.posted.values()]) == 0
            assert grant.in_flight == grant.in_flight_nano == 0
        assert not [row for row in rows if row["outcome"] == "pending"]

    async def check_oracle(self) -> None:
        """P1: what the vendor received is what the audit says was allowed to leave, no more and no less."""
        rows = [row for row in await self.rows() if row["policy_check_result"] == "allowed"]
        told = Counter((row["method"], row["endpoint"], row["request_digest"]) for row in rows)
        heard: Counter[tuple[str, str, bytes]] = Counter()
        for arrived in self.vendor.arrived:
            place = (arrived.method, arrived.target.partition("?")[0])
            whole, unread = (*place, _digest(arrived, arrived.body)), (*place, _digest(arrived, b""))
            heard[whole if whole in told or unread not in told else unread] += 1
        assert heard == told

    @property
    def heard(self) -> Arrived:
        """The newest request at the vendor."""
        return self.vendor.arrived[-1]

    @property
    def held_cents(self) -> float:
        return self.grant.scopes[0].account.held_total / CENT

    @property
    def posted_cents(self) -> float:
        return self.grant.scopes[0].account.posted_total / CENT

    # --- inside -----------------------------------------------------------------------------------

    async def handle(self, request: Request) -> None:
        await self._counted(exchange(self.plane, request))

    async def reject(self, request: Request, bad: BadHead) -> None:
        await self._counted(self.plane.reject(request, bad))

    async def _counted(self, work: Coroutine[Any, Any, None]) -> None:
        self.busy += 1
        try:
            await (work if self.around is None else self.around(work))
        finally:
            self.busy -= 1
            self._calm.set()


@asynccontextmanager
async def open_world(
    folder: Path,
    *,
    limits: Limits | None = None,
    upstream: UpstreamLimits | None = None,
    vendors: Mapping[str, VendorFile] | None = None,
    origin: str | None = None,
    ca_file: Path | None = None,
    vendor: Vendor | None = None,
    rates: Mapping[RateClass, Rate] | None = None,
    apart: frozenset[str] = frozenset(),
    busy_per_key: int = 256,
    turn_s: float = 10.0,
) -> AsyncIterator[World]:
    """A world with one key of a large cap.

    Args:
        folder: where database and anchor go.
        limits: towards agents.
        upstream: towards the vendor.
        vendors: vendor files; the shipped Stripe by default.
        origin: instead of the vendor's plain loopback address.
        ca_file: roots for TLS towards ``origin``.
        vendor: one that already listens.
        rates: what the vendor takes of each credential; none by default.
        busy_per_key: calls of one key at once.
        turn_s: how long a further one waits.
    """
    if vendor is None:
        async with (
            vendor_on_loopback() as own,
            open_world(
                folder,
                limits=limits,
                upstream=upstream,
                vendors=vendors,
                origin=origin,
                ca_file=ca_file,
                vendor=own,
                rates=rates,
                apart=apart,
                busy_per_key=busy_per_key,
                turn_s=turn_s,
            ) as world,
        ):
            yield world
        return
    files = {"stripe": stripe()} if vendors is None else dict(vendors)
    database = await open_database(folder / "kbctl.db", folder / "kbctl.anchor", accept_rollback=False)
    vault = Vault(database, files, rates_from("2026-11-20", {"EUR": Fraction(11, 10)}))
    await vault.load()
    credentials = Credentials(MemoryStore(), vault.journal)
    for name, file in files.items():
        user = file.file.auth.user
        beside = {} if user is None else {user: ACCOUNT}
        await credentials.set(name, file, SECRET, vault.now_ns(), "tester", beside)
    target = read_origin(origin or f"http://127.0.0.1:{vendor.port}")
    context = verifying_context(None if ca_file is None else str(ca_file)) if target.tls else None
    pool = Pool(target, upstream or UpstreamLimits(), context)
    loop = asyncio.get_running_loop()
    grant, key = await vault.issue(terms(vendors=tuple(files)), "tester")
    made: World
    server = Server(
        lambda request: made.handle(request),
        lambda request, bad: made.reject(request, bad),
        limits or Limits(),
    )
    listener = await loop.create_server(server.protocol, "127.0.0.1", 0)
    server.serve(listener)
    port = listener.sockets[0].getsockname()[1]
    hosts = frozenset(f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost", "[::1]"))
    plane = Plane(
        vault=vault,
        credentials=credentials,
        vendors=files,
        pools=dict.fromkeys(files, pool),
        own_hosts=hosts,
        overridden={},
        rates=dict.fromkeys(files, rates or {}),
        apart=apart,
        busy_per_key=busy_per_key,
        turn_s=turn_s,
    )
    made = World(vendor, vault, database, credentials, plane, server, pool, port, key, grant)
    try:
        yield made
    finally:
        plane.draining = True
        await server.drain(1.0)
        await made.calm()
        await listener.wait_closed()
        pool.close()
        credentials.close()
        await vault.close()


def _digest(arrived: Arrived, body: bytes) -> bytes:
    kinds = arrived.all(b"content-type")
    parts = (arrived.method.encode(), arrived.target.encode(), kinds[0] if kinds else b"")
    return hashlib.blake2b(b"".join(part + b"\0" for part in parts) + body, digest_size=16).digest()
