"""The data plane beside other proxies: calls a second and latency, each on one core of its own.

What must stay true: kbctl runs with all it does (policy, holds, rows synced to disk before the first byte,
audit) and the others only swap the key; the proxy that is measured has its core for itself, and whoever
answers falsely fails the run. A ratio is of slices of the same round; its score is the median of the rounds.
"""

import http.client
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from tests.bench import streams
from tests.bench.fixed import ANSWER, Fixed, Origin, fixed
from tests.bench.load import BODY, FORM, PATH, Answered, Wrk, wrk
from tests.bench.machine import (
    Cores,
    NotInstalledError,
    Shares,
    await_quiet,
    cpu_s,
    family,
    free_port,
    memory_mb,
    two_cores,
)
from tests.bench.peers.known import NGINX, PEERS, Job, Peer, start, version
from tests.bench.report import Grid, Report, Watch, percentile
from tests.e2e.support import SECRET, new_home

CONNECTIONS = (1, 16, 64, 256)
NAMES = ("direct", "kbctl", *(peer.name for peer in PEERS))
_CAP_USD = 1_000_000
UPSTREAMS = ("plain", "tls")
_SPOILED = 0.25
"""Of a core, taken by others within a slice: it is measured again, once."""


# --- what is measured ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Running:
    """Something that answers: where, to whom, and its processes."""

    port: int
    key: str
    pids: tuple[int, ...]
    host: str = "127.0.0.1"
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}{PATH}"


Start: TypeAlias = Callable[[], Any]
"""Gives a context manager of what is Running."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Who takes part. A fresh one is started for each of its slices."""

    name: str
    start: Start
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Slice:
    """One measurement.

    Attributes:
        upstream: ``plain`` or ``tls``.
        share: of its core that the proxy took.
        others: of the proxy's core, or of the other one, that neither proxy nor load nor upstream took; the
            larger.
    """

    upstream: str
    round: int
    name: str
    connections: int
    calls_s: float
    p50_ms: float
    p99_ms: float
    bad: int
    share: float
    others: float
    memory_mb: float


@dataclass(slots=True)
class Slices:
    """All of them, and what follows from them."""

    all: list[Slice] = field(default_factory=list)

    def of(self, name: str, connections: int, upstream: str = "plain") -> dict[int, Slice]:
        """By round."""
        return {
            each.round: each
            for each in self.all
            if (each.name, each.connections, each.upstream) == (name, connections, upstream)
        }

    def over(self, name: str, other: str, connections: int, upstream: str = "plain") -> list[float]:
        """Calls a second of one over another's, round by round."""
        mine, theirs = self.of(name, connections, upstream), self.of(other, connections, upstream)
        return [
            mine[turn].calls_s / theirs[turn].calls_s
            for turn in sorted(mine.keys() & theirs.keys())
            if theirs[turn].calls_s > 0
        ]

    def added_over(self, name: str, other: str, connections: int) -> list[float]:
        """What one adds to the median time of a call, over what another adds, round by round."""
        mine, theirs = self.of(name, connections), self.of(other, connections)
        direct = self.of("direct", connections)
        return [
            (mine[turn].p50_ms - direct[turn].p50_ms) / (theirs[turn].p50_ms - direct[turn].p50_ms)
            for turn in sorted(mine.keys() & theirs.keys() & direct.keys())
            if theirs[turn].p50_ms > direct[turn].p50_ms
        ]

    def tail(self, name: str, connections: int) -> list[float]:
        """The 99th percentile over the median, round by round."""
        return [each.p99_ms / each.p50_ms for each in self.of(name, connections).values() if each.p50_ms]


# --- the drill ----------------------------------------------------------------------------------------


def drill(
    watch: Watch,
    *,
    rounds: int = 3,
    seconds: int = 1,
    only: Sequence[str] = NAMES,
    peers: Path | None = None,
    connections: Sequence[int] = CONNECTIONS,
    upstreams: Sequence[str] = UPSTREAMS,
    firsts: int = 300,
    quiet_s: float = 3.0,
) -> Report:
    """Put load on each in turn, round by round, first before a plain upstream and then before one with TLS.

    Args:
        watch: told of what takes long.
        rounds: how many; every second one runs backwards.
        seconds: of each slice.
        only: who takes part.
        peers: the virtual environment that has the peers of PyPI.
        connections: at once.
        upstreams: ``plain``, ``tls`` or both.
        firsts: how often a round times the first byte of a stream.
        quiet_s: how long a slice waits for a quiet core; 0: not at all, and no slice is measured again.

    Raises:
        NotInstalledError: nginx or wrk.
    """
    report = Report(f"the data plane, {rounds} rounds of {seconds} s slices")
    cores, slices = two_cores(), Slices()
    report.notes.append(cores.told())
    programs = installed(only, peers, report)
    with wrk() as load, entered_on(cores, cores.rest, fixed) as upstream:
        race = _Race(load, cores, upstream, report, slices, quiet_s)
        for kind in upstreams:
            origin = upstream.plain if kind == "plain" else upstream.tls
            entered = _contenders(cores, origin, programs, only)
            work = [(turn, each) for turn in range(rounds) for each in connections]
            tick = watch(f"{kind} upstream", len(work) * len(entered))
            race.run(kind, entered, work, seconds, tick)
    _judge(report, slices)
    report.grids += [_grid(slices, kind, connections) for kind in upstreams]
    if "kbctl" in only and "nginx" in programs:
        _first_bytes(report, cores, programs["nginx"], rounds, firsts, quiet_s, watch)
    report.samples += [{"kind": "slice", **asdict(each)} for each in slices.all]
    spoiled = sum(each.others > _SPOILED for each in slices.all)
    if spoiled:
        report.notes.append(f"{spoiled} of {len(slices.all)} slices were disturbed by other processes")
    return report


def installed(only: Sequence[str], peers: Path | None, report: Report) -> dict[str, str]:
    """What is installed of the peers; the rest is left out by name."""
    found = {}
    for peer in PEERS:
        if peer.name in only:
            try:
                found[peer.name] = program = peer.find(peers)
                report.about.setdefault("peers", {})[peer.name] = version(peer, program)
            except NotInstalledError as missing:
                report.skipped.append(str(missing))
    return found


def _contenders(
    cores: Cores, origin: Origin, programs: Mapping[str, str], only: Sequence[str]
) -> list[Contender]:
    entered = []
    if "direct" in only:
        entered.append(Contender("direct", lambda: _direct(origin)))
    if "kbctl" in only:
        entered.append(Contender("kbctl", lambda: kbctl_before(cores, origin)))
    return entered + [
        Contender(peer.name, _starter(cores, peer, programs[peer.name], origin), peer.fresh)
        for peer in PEERS
        if peer.name in programs and (peer.tls or origin.ca is None)
    ]


def _starter(cores: Cores, peer: Peer, program: str, origin: Origin) -> Start:
    return lambda: peer_before(cores, peer, program, origin)


@dataclass(slots=True)
class _Race:
    load: Wrk
    cores: Cores
    upstream: Fixed
    report: Report
    slices: Slices
    quiet_s: float

    def run(
        self,
        kind: str,
        entered: Sequence[Contender],
        work: Iterable[tuple[int, int]],
        seconds: int,
        tick: Callable[[int], None],
    ) -> None:
        with ExitStack() as stack:
            standing = {each.name: stack.enter_context(each.start()) for each in entered if not each.fresh}
            for turn, connections in work:
                for each in entered if turn % 2 == 0 else reversed(entered):
                    with ExitStack() as brief:
                        running = standing.get(each.name) or brief.enter_context(each.start())
                        if turn == 0 and each.name != "direct":
                            prove(running)
                        found = self._measure(kind, turn, each.name, running, connections, seconds)
                        if found.others > _SPOILED and self.quiet_s:
                            again = self._measure(kind, turn, each.name, running, connections, seconds)
                            found = min(found, again, key=lambda found: found.others)
                    self.slices.all.append(found)
                    tick(1)

    def _measure(
        self, kind: str, turn: int, name: str, running: Running, connections: int, seconds: int
    ) -> Slice:
        await_quiet(self.cores.measured, self.quiet_s)
        with self.cores.pinned(self.cores.rest):
            self.load.warm(running.url, running.key, connections)
            heard = self.upstream.heard()
            mine = Shares(self.cores.measured, running.pids)
            # Load and upstream: what has ended, wrk, is counted as part of this process.
            rest = Shares(self.cores.rest, [])
            before = _spent_s(self.upstream)
            answered = self.load.run(running.url, running.key, connections, seconds)
            (share, others), (_, on_rest) = mine.now(), rest.now()
            own = (_spent_s(self.upstream) - before) / answered.seconds
            others_rest = max(on_rest - own, 0.0)
        self._check(kind, name, answered, self.upstream.heard() - heard)
        return Slice(
            *(kind, turn, name, connections, answered.rate, answered.p50_ms, answered.p99_ms, answered.bad),
            *(share, max(others if running.pids else 0.0, others_rest)),
            memory_mb(running.pids),
        )

    def _check(self, kind: str, name: str, answered: Answered, heard: int) -> None:
        self.report.check(
            answered.bad == 0, f"{name}, {kind}: {answered.bad} of {answered.calls} answers were bad"
        )
        self.report.check(
            heard >= answered.calls, f"{name}, {kind}: {answered.calls} answers, {heard} calls at the vendor"
        )


def _spent_s(upstream: Fixed) -> float:
    """Processor time of the upstream, of this process, and of all its children that have ended."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return cpu_s(family(upstream.pid)) + sum(each.ru_utime + each.ru_stime for each in own)


# --- how each is started ------------------------------------------------------------------------------


@contextmanager
def entered_on(cores: Cores, core: int | None, what: Callable[[], Any]) -> Iterator[Any]:
    """A context whose processes are started on a core; this process goes back."""
    with ExitStack() as stack:
        with cores.pinned(core):
            entered = stack.enter_context(what())
        yield entered


@contextmanager
def _direct(origin: Origin) -> Iterator[Running]:
    """No proxy at all."""
    yield Running(origin.port, SECRET, (), origin.host, "http" if origin.ca is None else "https")


@contextmanager
def kbctl_before(
    cores: Cores, origin: Origin, *, vendor: str = "stripe", secret: str = SECRET
) -> Iterator[Running]:
    """The daemon before one vendor, with a key that may spend a million dollars."""
    with new_home() as kbctl:
        if origin.ca is not None:
            (kbctl.home / "config.toml").write_text(f'ca_file = "{origin.ca}"\n')
            (kbctl.home / "config.toml").chmod(0o600)
        with cores.pinned(cores.measured):
            kbctl("up", "--port", "0", "--upstream", f"{vendor}={origin.url}")
        kbctl("credential", "set", vendor, stdin=secret + "\n")
        key = kbctl("issue", "--tenant", "acme", "--cap", str(_CAP_USD)).strip()
        port = int(kbctl.json("status")["proxy_url"].rpartition(":")[2])
        yield Running(port, key, tuple(family(kbctl.pid())))


@contextmanager
def peer_before(
    cores: Cores, peer: Peer, program: str, origin: Origin, *, secret: str = SECRET, streams: bool = False
) -> Iterator[Running]:
    """One of the others, with a key of the same length."""
    key = "vault_key_" + "a1B2c3D4" * 5
    with tempfile.TemporaryDirectory(prefix="kb") as folder:
        job = Job(Path(folder), free_port(), origin, key, secret, streams)
        with cores.pinned(cores.measured):
            process = start(peer, program, job)
        try:
            _await(peer.name, process, job)
            yield Running(job.port, key, tuple(family(process.pid)))
        finally:
            process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


def _await(name: str, process: "subprocess.Popen[bytes]", job: Job) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", job.port), 1).close()
            return
        except OSError:
            said = (job.folder / "said").read_text()
            assert process.poll() is None, f"{name} ended as it started: {said}"
            assert time.monotonic() < deadline, f"{name} did not come up: {said}"
            time.sleep(0.02)


def prove(running: Running) -> None:
    """That it passes the fixed answer on to who has the key, and nothing to who has not."""
    assert _ask(running, running.key) == (200, ANSWER), f"{running.url} does not give the fixed answer"
    assert _ask(running, "vault_key_" + "z" * 40)[0] == 401, f"{running.url} serves anybody"


def _ask(running: Running, key: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": FORM}
        connection.request("POST", PATH, BODY, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


# --- what it comes to ---------------------------------------------------------------------------------

_OVER = (
    ("nginx", 0.20, 0.35),
    ("envoy", 0.75, 1.05),
    ("mitmproxy", 25.0, 45.0),
    ("httpx", 40.0, 70.0),
)
_SHOWN = {"httpx": "uvicorn + httpx", "envoy": "Envoy", "haproxy": "HAProxy"}


def _judge(report: Report, slices: Slices) -> None:
    """Score what was measured; a peer that was left out scores nothing."""
    for other, floor, goal in _OVER:
        if slices.of("kbctl", 64) and slices.of(other, 64):
            name = f"calls/s at c=64, over {_SHOWN.get(other, other)}"
            report.score(name, slices.over("kbctl", other, 64), floor, goal)
    if slices.of("kbctl", 1) and slices.of("nginx", 1):
        report.score("calls/s at c=1, over nginx", slices.over("kbctl", "nginx", 1), 0.12, 0.30)
        if slices.of("direct", 1):
            added = slices.added_over("kbctl", "nginx", 1)
            report.score("added p50 at c=1, over nginx's added p50", added, 6, 3)
    if slices.of("kbctl", 64):
        report.score("p99 / p50 at c=64", slices.tail("kbctl", 64), 3, 2)
    if slices.of("kbctl", 64, "tls") and slices.of("nginx", 64, "tls"):
        over = slices.over("kbctl", "nginx", 64, "tls")
        report.score("TLS upstream, calls/s at c=64, over nginx with TLS upstream", over, 0.16, 0.30)


def _grid(slices: Slices, upstream: str, connections: Sequence[int]) -> Grid:
    """Medians of all who took part."""
    columns = ["proxy", *(f"c={each}" for each in connections), "p50 / p99 ms c=64", "core c=64", "MB"]
    rows = []
    for name in dict.fromkeys(each.name for each in slices.all if each.upstream == upstream):
        rates = [list(slices.of(name, each, upstream).values()) for each in connections]
        row = [_SHOWN.get(name, name), *(f"{median(one.calls_s for one in each):,.0f}" for each in rates)]
        at = list(slices.of(name, 64, upstream).values())
        if at:
            row.append(f"{median(one.p50_ms for one in at):.2f} / {median(one.p99_ms for one in at):.2f}")
            row.append(f"{median(one.share for one in at):.2f}")
        else:
            row += ["", ""]
        row.append(f"{max(one.memory_mb for each in rates for one in each):.0f}")
        rows.append(row)
    return Grid(f"calls/s, {upstream} upstream (medians)", columns, rows)


def _first_bytes(
    report: Report, cores: Cores, nginx: str, rounds: int, times: int, quiet_s: float, watch: Watch
) -> None:
    """Time the first byte of streams: directly, through nginx and through the daemon, in turns."""
    secret = streams.SECRETS["openai"]
    with entered_on(cores, cores.rest, streams.vendor) as port, ExitStack() as stack:
        origin = Origin("127.0.0.1", port, None)
        mine = stack.enter_context(kbctl_before(cores, origin, vendor="openai", secret=secret))
        theirs = stack.enter_context(peer_before(cores, NGINX, nginx, origin, secret=secret, streams=True))
        ways = {"direct": (port, secret), "nginx": (theirs.port, theirs.key), "kbctl": (mine.port, mine.key)}
        tick = watch("first bytes of streams", rounds)
        ratios = []
        for turn in range(rounds):
            await_quiet(cores.measured, quiet_s)
            with cores.pinned(cores.rest):
                took = streams.time_firsts(ways, times)
            middle = {way: percentile(sorted(each), 0.5) for way, each in took.items()}
            report.samples.append({"kind": "first byte, median ms", "round": turn, **middle})
            if middle["nginx"] > middle["direct"]:
                ratios.append((middle["kbctl"] - middle["direct"]) / (middle["nginx"] - middle["direct"]))
            tick(1)
    report.score("first byte of a stream: added, over nginx's added", ratios, 6, 3)
