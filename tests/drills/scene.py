"""What a drill acts on: one home and its daemon, the accounting vendor, and families of agents.

Caps are a part of what is asked for, so that every round runs into them: a cent that were granted twice would
show.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx

from tests.drills.judge import Family, Figures, Key, judge
from tests.drills.vendor import AccountingVendor

SECRET = "sk_test_CanaryCanaryCanary0123456789"
CONFIG = """
[secrets]
backend = "keyfile"
[upstream]
first_byte_s = 0.7
silence_s = 0.7
connect_s = 2
[limits]
turn_s = 5
"""
ANSWER_S = 20.0
_serials = itertools.count(1)
"""Names are told apart over all homes: the vendor is the same."""


class Nursery:
    """Forks daemons; see ``tests.drills.daemon``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.drills.daemon"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._hear()

    def start(self, **wanted: Any) -> dict[str, Any]:
        return self._ask(do="start", **wanted)

    def wait(self, pid: int) -> int:
        return int(self._ask(do="wait", pid=pid)["status"])

    def close(self) -> None:
        self._process.communicate(timeout=20)

    def _ask(self, **wanted: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))


class Agent(asyncio.Protocol):
    """One connection of an agent; one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not end:
            return
        length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
        if length and len(rest) >= int(length):
            self._buffer.clear()
            self._say(int(head[9:12]), rest)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        self._say(0, b"")

    def _say(self, status: int, body: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; status 0 where there was none."""
        if self.gone:
            return 0, b""
        self._answer = self._loop.create_future()
        self.transport.write(request)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._answer
        except TimeoutError:
            self.transport.abort()
            return 0, b""


async def connect(port: int) -> Agent | None:
    try:
        return (await asyncio.get_running_loop().create_connection(Agent, "127.0.0.1", port))[1]
    except OSError:
        return None


def charge(port: int, vault_key: str, name: str, cents: int, *, cut: int = 0) -> bytes:
    """A charge under an idempotency key; ``cut`` leaves out so many of its last bytes."""
    body = f"amount={cents}&currency=usd&customer=cus_1"
    request = (
        f"POST /v1/payment_intents HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {vault_key}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nIdempotency-Key: {name}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    return request[: len(request) - cut]


def look(port: int, vault_key: str, name: str) -> bytes:
    """A read, which costs nothing: no cap stands in its way."""
    return (
        f"GET /v1/customers/cus_1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {vault_key}\r\nIdempotency-Key: {name}\r\n\r\n"
    ).encode()


def cents_of(name: str) -> int:
    """The amount belongs to the name, so that a repetition asks for the same: $1 to $10."""
    return 100 + int(name.rpartition("-")[2]) * 7919 % 900


class Stage:
    """A home, its daemon, and the families that were made in it.

    Attributes:
        pid: of the daemon; None while there is none.
        port: of its proxy; the same over restarts.
        clock: the file that says by how many seconds the daemon's clock is off.
    """

    def __init__(
        self,
        nursery: Nursery,
        vendor: AccountingVendor,
        folder: Path,
        dice: random.Random,
        broken: str = "",
    ) -> None:
        self.vendor = vendor
        self.folder = folder
        self.dice = dice
        self.pid: int | None = None
        self.port = 0
        self.clock = folder / "clock"
        self.book: dict[str, dict[str, Any]] = {}
        self._nursery = nursery
        self._broken = broken
        self.refusal = ""
        self._traced: subprocess.Popen[bytes] | None = None
        self._trace = folder / "trace"
        self._operator: httpx.AsyncClient | None = None
        (folder / "config.toml").write_text(CONFIG)
        (folder / "config.toml").chmod(0o600)

    # --- the daemon -------------------------------------------------------------------------------

    async def start(self, *, point: str = "", nth: int = 0) -> bool:
        """Whether it serves; not when it died or refused on the way."""
        answer = await asyncio.to_thread(self._nursery.start, **self._wanted(point, nth))
        return self._started(answer["said"], answer["pid"])

    async def start_traced(self, inject: str) -> bool:
        """The same, with system calls that fail."""
        self._traced = self._spawn_traced(inject)
        assert self._traced.stdout is not None
        line = await asyncio.to_thread(self._traced.stdout.readline)
        said = json.loads(line) if line else None
        return self._started(said, said["status"]["pid"] if said and said.get("status") else 0)

    def _spawn_traced(self, inject: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [
                *("strace", "-f", "-qq", "-o", str(self._trace), "-e", f"trace={inject.partition(':')[0]}"),
                *("-e", f"inject={inject}"),
                *(sys.executable, "-m", "tests.drills.daemon", "--one", json.dumps(self._wanted("", 0))),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def injected(self) -> int:
        """How many system calls were made to fail in the last traced life."""
        return self._trace.read_text().count("(INJECTED)")

    def _wanted(self, point: str, nth: int) -> dict[str, Any]:
        return {
            "home": str(self.folder),
            "upstream": self.vendor.url,
            "port": self.port,
            "point": point,
            "nth": nth,
            "clock": str(self.clock),
            "broken": self._broken,
        }

    def _started(self, said: Any, pid: int) -> bool:
        if said is None or said.get("error"):
            self.pid = None
            if self._traced is not None:
                self._end_traced()
            elif pid:
                self._nursery.wait(pid)
            self.refusal = said["error"]["code"] if said else ""
            return False
        self.pid = pid
        self.port = int(said["status"]["proxy_url"].rpartition(":")[2])
        transport = httpx.AsyncHTTPTransport(uds=said["status"]["socket"])
        self._operator = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30)
        return True

    async def open(self) -> None:
        """First start: with the real key in its keyring."""
        assert await self.start(), self.refusal
        await self.ask("PUT", "/credentials/stripe", {"vendor": "stripe", "secret": SECRET})

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """Send a signal and wait until it is gone."""
        if self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        await self.gone()

    async def gone(self) -> None:
        """Wait until it is; somebody has seen to it."""
        pid, self.pid = self.pid, None
        if self._traced is not None:
            await asyncio.to_thread(self._end_traced)
        elif pid is not None:
            await asyncio.to_thread(self._nursery.wait, pid)
        if self._operator is not None:
            await self._operator.aclose()
            self._operator = None

    def _end_traced(self) -> None:
        assert self._traced is not None
        self._traced.wait(30)
        assert self._traced.stdout is not None
        self._traced.stdout.close()
        self._traced = None

    def alive(self) -> bool:
        """Whether the process is; a zombie is not."""
        if self.pid is None:
            return False
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    # --- the operator -----------------------------------------------------------------------------

    async def ask(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """The operator's word; None where it could not be had."""
        if self._operator is None:
            return None
        try:
            answer = await self._operator.request(method, path, json=body, params=query or None)
        except httpx.HTTPError:
            return None
        return answer.json() if answer.status_code < 300 and answer.content else None

    async def family(self, calls: int, children: int = 3) -> Family | None:
        """A tenant, a key, children of it, and caps that about so many calls of $5 run into."""
        name = f"t{next(_serials)}"
        asked = calls * 500
        family = Family(name)

        async def issue(share: float, above: tuple[str, ...], **more: Any) -> Key | None:
            cap = int(asked * share)
            wanted = {"daily_usd_cap": cap / 100, "tenant": name, "expires_in": "never", "vendor": "stripe"}
            made = await self.ask("POST", "/vault/keys", wanted | more)
            if made is None:
                return None
            key = Key(made["vault_key"], made["key_id"], (made["key_id"], *above))
            family.caps[made["key_id"]] = cap
            family.keys.append(key)
            return key

        family.caps[f"tenant:{name}"] = int(asked * 0.6)
        cap = {"daily_usd_cap": family.caps[f"tenant:{name}"] / 100}
        if await self.ask("PUT", f"/tenants/{name}", cap) is None:
            return None
        root = await issue(0.5, (f"tenant:{name}",))
        if root is None or await issue(0.3, (f"tenant:{name}",)) is None:
            return None
        for _ in range(children):
            above = (root.key_id, f"tenant:{name}")
            if await issue(0.25, above, parent_vault_key=root.secret) is None:
                return None
        return family

    # --- the agents -------------------------------------------------------------------------------

    async def load(
        self,
        family: Family,
        calls: int,
        behaviours: Sequence[str],
        *,
        clients: int = 24,
        again: float = 0.15,
        names: Sequence[str] = (),
    ) -> None:
        """So many charges by many agents at once; it ends when they are through, or nobody answers any more.

        Args:
            family: whose keys.
            calls: how many.
            behaviours: of the vendor, drawn for each.
            clients: at once.
            again: how often a charge that had no good answer is tried again at once.
            names: idempotency keys of the family to try again first.
        """
        keys = [key for key in family.keys if not key.revoked]
        owners = {name: key for key in family.keys for name in key.asked}
        waiting = [(owners[name], name) for name in names]
        left = calls

        async def client() -> None:
            nonlocal left
            agent: Agent | None = None
            failures = 0
            while (waiting or left > 0) and failures < 3:
                if waiting:
                    key, name = waiting.pop()
                else:
                    left -= 1
                    key = self.dice.choice(keys)
                    name = f"{self.dice.choice(behaviours)}.{family.tenant}-{next(_serials)}"
                    key.asked.add(name)
                if agent is None or agent.gone:
                    agent = await connect(self.port)
                if agent is None:
                    failures += 1
                    await asyncio.sleep(0.01)
                    continue
                status, _ = await agent.ask(charge(self.port, key.secret, name, cents_of(name)))
                if status:
                    family.answered[name] = status
                if status in (0, 500, 502, 503, 504) and self.dice.random() < again:
                    waiting.append((key, name))
                failures = failures + 1 if status == 0 and not self.alive() else 0
            if agent is not None:
                agent.transport.abort()

        await asyncio.gather(*(client() for _ in range(clients)))

    async def revoke(self, family: Family, key: Key) -> bool:
        """Revoke, and once that is acknowledged, note that whatever its agent still asks for is late."""
        if await self.ask("DELETE", f"/vault/keys/{key.key_id}") is None:
            return False
        for each in family.keys:
            each.revoked |= key.key_id in each.scopes
        return True

    async def try_revoked(self, family: Family) -> None:
        """Whose revocation was acknowledged asks again, for what only the revocation can refuse."""
        for key in family.keys:
            if not key.revoked:
                continue
            name = f"ok.{family.tenant}-{next(_serials)}"
            key.asked.add(name)
            key.asked_late.add(name)
            agent = await connect(self.port)
            if agent is not None:
                await agent.ask(look(self.port, key.secret, name))
                agent.transport.abort()

    # --- the laws ---------------------------------------------------------------------------------

    async def calm(self) -> None:
        """Wait until no call is under way."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            status = await self.ask("GET", "/status")
            if status is not None and not status["in_flight"]:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("calls are still under way after 30 s")

    async def check(self, family: Family) -> Figures:
        """Hold what the daemon says against the vendor's book."""
        await self.calm()
        self.book.update(await asyncio.to_thread(self.vendor.book))
        rows = list[dict[str, Any]]()
        page: str | None = f"/audit?tenant={family.tenant}&limit=1000"
        while page is not None:
            assert self._operator is not None
            answer = await self._operator.get(page)
            rows += answer.json()
            page = answer.links["next"]["url"] if "next" in answer.links else None
        told = [
            {
                "idempotency_key": row["idempotency_key"] or "",
                "outcome": row["outcome"],
                "cents": round(row["amount_usd"] * 100),
                "allowed": row["policy_check_result"] == "allowed",
            }
            for row in rows
        ]
        counted = {}
        for scope in family.caps:
            tenant, _, name = scope.partition("tenant:")
            path = f"/tenants/{name}" if not tenant else f"/vault/keys/{scope}"
            said = await self.ask("GET", path)
            counted[scope] = round((said["total_spent_usd"] + said["total_held_usd"]) * 100)
        return judge(family, self.book, told, counted)


@contextmanager
def new_folder() -> Iterator[Path]:
    """A private folder with a path short enough for a UNIX socket."""
    folder = Path(tempfile.mkdtemp(prefix="kd"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
