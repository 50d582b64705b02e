"""One seed's story: agents, an operator, faults, deaths and restarts, with the laws checked at every step."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache, partial
from importlib import resources
from typing import Any

from kbctld.core.grant import Grant
from kbctld.core.limits import Limits as KeyLimits
from kbctld.core.money import rates_from
from kbctld.core.vendor import Vendor as VendorFile
from kbctld.core.vendor import read_vendor
from kbctld.credentials import Credentials
from kbctld.http1.server import Limits, Server
from kbctld.proxy.exchange import exchange
from kbctld.proxy.plane import Plane
from kbctld.proxy.upstream import Pool, UpstreamLimits, read_origin
from kbctld.secrets.store import MemoryStore
from kbctld.store.journal import JournalError
from kbctld.vault import Selection, Terms, Vault
from tests.drills.judge import Family, Figures, Key, judge
from tests.simulation.machine import DAY_NS, HOW, NOON, Disk, Life, Loop, Vendor

CENT = 10_000_000
HOUR_NS = 3_600 * 10**9
SECRET = "sk_test_CanaryOfTheSimulation0123"
_PORT = 4815
_HOSTS = frozenset({b"127.0.0.1:4815"})
_ORIGIN = read_origin("http://127.0.0.1:9")
_UPSTREAM = UpstreamLimits(first_byte_s=1.0, silence_s=1.0)
_FAULTS = ("full", "busy", "lost", "kept", "io-kept", "io-lost")
_STEPS_NS = (-HOUR_NS, DAY_NS, -DAY_NS, 12 * HOUR_NS, 0)


class LawBroken(AssertionError):  # noqa: N818 - a verdict
    """Which law, and how."""


@cache
def _stripe() -> VendorFile:
    return read_vendor((resources.files("kbctld") / "vendors" / "stripe.toml").read_text(encoding="utf-8"))


@cache
def _rates() -> Any:
    return rates_from("2026-11-20", {"EUR": Fraction(11, 10)})


class _Agent(asyncio.Protocol):
    """One request, one answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The story writes."""

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
        if end and length and len(body) >= int(length) and not self.answer.done():
            self.answer.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(0)


class Story:
    """What happens under one seed.

    Args:
        seed: all there is to say.
        say: is told every step.
        lazy: whether the disk acknowledges what it has not synced; a control.
    """

    def __init__(
        self, seed: int, say: Callable[[str], None] = lambda _step: None, *, lazy: bool = False
    ) -> None:
        self.dice = random.Random(seed)
        self.say = say
        self.disk = Disk()
        self.disk.lazy = lazy
        self.vendor = Vendor(self.dice)
        self.family = Family("acme")
        self.owners: dict[str, Key] = {}
        self.calls = 0
        self.deaths = 0
        self._numbers = 0
        self._step_ns = self._ahead_ns = 0
        self._vault: Vault | None = None
        self._grants: dict[str, Grant] = {}
        self._broken: LawBroken | None = None

    async def tell(self) -> Figures:
        """All of it.

        Raises:
            LawBroken: at the first step that breaks one.
        """
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        self.loop = loop
        loop.vendor = self.vendor
        self.vendor.leaving, self.vendor.moved = self._leaving, self._moved
        self._began_ns = loop.now_ns()
        await self._live(self._found)
        for _ in range(self.dice.randint(1, 3)):
            await self._live(self._work)
            if self.dice.random() < 0.3:
                self._pass(self.dice.randint(1, 30) * HOUR_NS)
        found: Figures = await self._live(self._last)
        return found

    # --- one life -----------------------------------------------------------------------------------

    async def _live(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """A start, some work, and an end: in order or not."""
        loop = self.loop
        self.disk.cut(self.dice)
        life = self._life = loop.life = Life(self.disk, self.dice)
        work = loop.create_task(self._started(main))
        await asyncio.wait({work, life.over}, return_when=asyncio.FIRST_COMPLETED)
        died = not life.alive
        life.alive = False
        self._vault = None
        self._grants = {}
        self.disk.fault = None
        if died:
            self.deaths += 1
            self.say("it is dead")
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        for result in await asyncio.gather(*rest, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, LawBroken):
                raise result
        if self._broken is not None:
            raise self._broken
        return None if died else work.result()

    async def _started(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        loop, life = self.loop, self._life
        vault = Vault(
            life.database(),
            {"stripe": _stripe()},
            _rates(),
            wall_ns=self._wall_ns,
            tick_ns=loop.now_ns,
            boot_ns=loop.now_ns,
            boot="boot",
        )
        await vault.load()
        credentials = Credentials(MemoryStore(), None)
        await credentials.set("stripe", _stripe(), SECRET, NOON, "story")
        self._pool = Pool(_ORIGIN, _UPSTREAM, None)
        self._plane = Plane(
            vault=vault,
            credentials=credentials,
            vendors=vault.vendors,
            pools={"stripe": self._pool},
            own_hosts=_HOSTS,
            overridden={},
        )
        self._server = Server(partial(exchange, self._plane), self._plane.reject, Limits())
        self._vault = vault
        grants = {key.key_id: (await vault.named(key.key_id))[0] for key in self.family.keys}
        self._grants = grants
        return await main()

    async def _found(self) -> None:
        """First use: a tenant, a key with children, and one with a cap for its life."""
        vault = self._vault
        assert vault is not None
        cap = self.dice.randint(15, 40) * 100
        self.family.caps["tenant:acme"] = cap
        await vault.set_tenant("acme", KeyLimits(daily_cap_nano=cap * CENT), "story")

        async def issue(parent: Grant | None, above: tuple[str, ...], **limits: int) -> Grant:
            limits = {name: cents * CENT for name, cents in limits.items()}
            terms = Terms(KeyLimits(vendors=("stripe",), **limits), "", "acme", {}, None, parent)  # type: ignore[arg-type]
            grant, secret = await vault.issue(terms, "story")
            self.family.keys.append(Key(secret, grant.key_id, (grant.key_id, *above)))
            self.family.caps[grant.key_id] = next(iter(limits.values())) // CENT
            return grant

        root = await issue(None, ("tenant:acme",), daily_cap_nano=int(cap * 0.7))
        for _ in range(2):
            await issue(root, (root.key_id, "tenant:acme"), daily_cap_nano=int(cap * 0.4))
        last = await issue(None, ("tenant:acme",), total_cap_nano=int(cap * 0.5))
        self._for_life = {last.key_id}
        await vault.close()

    async def _work(self) -> None:
        """Agents and an operator, until they are through or something kills the daemon."""
        events: list[Coroutine[Any, Any, None]] = [self._ask() for _ in range(self.dice.randint(4, 14))]
        if self.dice.random() < 0.4:
            events.append(self._revoke())
        if self.dice.random() < 0.5:
            events.append(self._disk_fails())
        if self.dice.random() < 0.4:
            events.append(self._set_clock())
        if self.dice.random() < 0.15:
            events.append(self._sleep_long())
        if self.dice.random() < 0.2:
            events.append(self._refuse_connections())
        if self.dice.random() < 0.5:
            events.append(self._die())
        self.dice.shuffle(events)
        tasks = [self.loop.create_task(self._at_some_time(event)) for event in events]
        await asyncio.gather(*tasks)
        await self._stop()

    async def _last(self) -> Figures:
        """What had no answer is asked again; then all is held against the vendor's book."""
        assert self._vault is not None
        for name in [name for name, status in self.family.answered.items() if status == 0]:
            await self._ask(name)
        for key in [key for key in self.family.keys if key.revoked]:
            await self._ask(owner=key)
        await self._calm()
        await self._vault.journal.barrier()
        rows = await self._rows()
        counted = {scope: self._counted(scope) for scope in self.family.caps}
        windows = self._windows()
        for scope, cap in self.family.caps.items():
            self.family.caps[scope] = cap * (1 if scope in self._for_life else windows)
        found = judge(self.family, self.vendor.book, rows, counted)
        if self.loop.now_ns() - self._began_ns + self._ahead_ns > 20 * HOUR_NS:
            found.cents_twice = 0  # a vendor forgets idempotency keys after a day: a hold of its own is right
        await self._stop()
        if found.broken:
            raise LawBroken(f"at the end: {found}")
        return found

    async def _stop(self) -> None:
        """SIGTERM: what is under way ends, what waits is written."""
        assert self._vault is not None
        self._plane.draining = True
        await self._calm()
        self._pool.close()
        await self._vault.close()

    async def _calm(self) -> None:
        while self._plane.aloft or not self._plane.idle:
            await asyncio.sleep(0.05)

    # --- what happens -------------------------------------------------------------------------------

    async def _at_some_time(self, event: Coroutine[Any, Any, None]) -> None:
        try:
            await asyncio.sleep(self.dice.random() * 0.12)
        except BaseException:
            event.close()
            raise
        await event

    async def _ask(self, name: str | None = None, owner: Key | None = None) -> None:
        """An agent charges; a good deal of the unanswered is tried again."""
        dice, family = self.dice, self.family
        if name is None:
            key = owner or dice.choice(family.keys)
            self._numbers += 1
            name = f"{'ok' if owner else dice.choice(HOW)}.{self._numbers}"
            key.asked.add(name)
            self.owners[name] = key
            if key.revoked:
                key.asked_late.add(name)
        else:
            key = self.owners[name]
        cents = 100 + int(name.partition(".")[2]) * 7919 % 900
        agent = _Agent()
        _, wire = self.loop.wire(self._server.protocol(), agent)
        body = f"amount={cents}&currency=usd"
        wire.write(
            f"POST /v1/payment_intents HTTP/1.1\r\nHost: 127.0.0.1:{_PORT}\r\n"
            f"Authorization: Bearer {key.secret}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Idempotency-Key: {name}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        self.calls += 1
        patience_s = dice.choice((0.004, 0.02, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0))
        try:
            async with asyncio.timeout(patience_s):
                status = await agent.answer
        except TimeoutError:
            status = 0
        wire.abort()
        self.say(f"{name} by {self._called(key)} for {cents}: {status or 'no answer'}")
        if status or name not in family.answered:
            family.answered[name] = status
        self._check_memory()
        if status in (0, 500, 502, 504) and dice.random() < 0.35 and not key.revoked:
            await asyncio.sleep(dice.choice((0, 0.003, 0.05)))
            await self._ask(name)

    def _called(self, key: Key) -> str:
        """The same in every run: its id is not."""
        return ("root", "child 1", "child 2", "other")[self.family.keys.index(key)]

    async def _revoke(self) -> None:
        assert self._vault is not None
        key = self.dice.choice(self.family.keys)
        self.say(f"revoking {self._called(key)}")
        try:
            await self._vault.revoke(Selection(frozenset({self._grants[key.key_id].no})), "story")
        except JournalError:
            return
        for each in self.family.keys:
            each.revoked |= key.key_id in each.scopes
        self.say(f"revoked {self._called(key)}")

    async def _disk_fails(self) -> None:
        self.disk.fault = self.dice.choice(_FAULTS)
        self.say(f"the next commit: {self.disk.fault}")

    async def _set_clock(self) -> None:
        self._step_ns = self.dice.choice(_STEPS_NS)
        self._ahead_ns = max(self._ahead_ns, self._step_ns)
        self.say(f"the clock is off by {self._step_ns / HOUR_NS:g} h")

    async def _sleep_long(self) -> None:
        self._pass(self.dice.randint(1, 30) * HOUR_NS)

    def _pass(self, by_ns: int) -> None:
        self.say(f"{by_ns / HOUR_NS:g} h pass")
        self.loop.jump(by_ns)

    async def _refuse_connections(self) -> None:
        self.loop.refuses = True
        await asyncio.sleep(0.02)
        self.loop.refuses = False

    async def _die(self) -> None:
        self.say("kill -9")
        self._life.crash()

    # --- the laws, at every step --------------------------------------------------------------------

    def _wall_ns(self) -> int:
        return NOON + self.loop.now_ns() - self._began_ns + self._step_ns

    def _windows(self) -> int:
        """How many days may have opened since noon of the first: one per 20 h that really passed."""
        return 1 + (12 * HOUR_NS + self.loop.now_ns() - self._began_ns) // (20 * HOUR_NS)

    def _counted(self, scope: str) -> int:
        """Posted and held, in cents."""
        for grant in self._grants.values():
            for each in grant.scopes:
                if each.name == scope:
                    return each.account.used_total() // CENT
        raise KeyError(scope)

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """A law that breaks within somebody's callback ends the life, and is told by who waits for it."""
        try:
            yield
        except LawBroken as broken:
            self._broken = self._broken or broken
            self._life.crash()

    def _leaving(self, piece: bytes) -> None:
        """Laws 2, 5 and 9, in the instant in which a request leaves."""
        with self._judging():
            name = piece.lower().partition(b"idempotency-key: ")[2].split(b"\r\n")[0].decode()
            self.say(f"{name} leaves")
            if name not in self.disk.names:
                raise LawBroken(f"law 2: {name} leaves, and its row is not on disk")
            if self.owners[name].revoked:
                raise LawBroken(f"law 5: {name} leaves, and its key is revoked")

    def _moved(self, name: str, cents: int) -> None:
        """Laws 1 and 9, in the instant in which money moves."""
        with self._judging():
            for scope in self.owners[name].scopes:
                mine = [each for key in self.family.keys if scope in key.scopes for each in key.asked]
                moved = sum(self.vendor.book[each]["moved"] for each in mine if each in self.vendor.book)
                cap = self.family.caps[scope] * (1 if scope in self._for_life else self._windows())
                if moved > cap:
                    raise LawBroken(
                        f"law 1: {name} for {cents}: {moved} moved in {scope}, and its cap is {cap}"
                    )
                if self._life.alive and self._grants and moved > self._counted(scope):
                    raise LawBroken(
                        f"law 1: {moved} moved in {scope}, and {self._counted(scope)} are counted"
                    )

    def _check_memory(self) -> None:
        """Law 1 in our own account: held and spent never exceed a cap, on any day."""
        with self._judging():
            for grant in self._grants.values():
                for scope in grant.scopes:
                    for day in {*scope.account.posted, *scope.account.held}:
                        room = scope.room(day)
                        if room is not None and room < 0:
                            raise LawBroken(f"law 1: {scope.name} is {-room} beyond its cap on day {day}")

    async def _rows(self) -> list[dict[str, Any]]:
        assert self._vault is not None
        reader = self._vault.journal.database.reader
        sql = "SELECT idempotency_key, outcome, amount_nano, policy_check_result FROM call"
        async with reader.execute(sql) as cursor:
            return [
                {
                    "idempotency_key": name,
                    "outcome": outcome,
                    "cents": nano // CENT,
                    "allowed": verdict == "allowed",
                }
                async for name, outcome, nano, verdict in cursor
            ]


def tell(
    seed: int, say: Callable[[str], None] = lambda _step: None, *, lazy: bool = False
) -> tuple[Story, Figures]:
    """Tell one seed's story.

    Raises:
        LawBroken: one was.
    """
    story = Story(seed, say, lazy=lazy)
    with asyncio.Runner(loop_factory=Loop) as runner:
        found = runner.run(story.tell())
        loop = runner.get_loop()
        assert isinstance(loop, Loop)
        assert not loop.unheard, loop.unheard
    return story, found
