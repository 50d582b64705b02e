"""What a slow disk costs: calls a second where every flush takes 2 ms, one call at a time and 64.

Flushes are shared by the calls that wait for one, so 64 at once must get much further than one at a time.
What must stay true: the delay is really there; a call that is faster than a flush would show that it is not.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from kbctl.client import Client
from kbctl.errors import KbctlError
from kbctl.launch import environment
from kbctl.paths import Home
from tests.bench.fixed import Origin, fixed
from tests.bench.load import Wrk, wrk
from tests.bench.machine import Cores, NotInstalledError, await_quiet, family, two_cores
from tests.bench.proxy import Running, entered_on, prove
from tests.bench.report import Report, Watch
from tests.e2e.support import SECRET, Kbctl, new_home

_SOURCE = Path(__file__).with_name("slow_fsync.c")
_DELAY_MS = 2.0


def drill(watch: Watch, *, rounds: int = 3, seconds: int = 2, quiet_s: float = 3.0) -> Report:
    """Compile the delay, start a daemon under it, put load on.

    Args:
        watch: told of what takes long.
        rounds: how many; every second one runs backwards.
        seconds: of each slice.
        quiet_s: how long a slice waits for a quiet core.

    Raises:
        NotInstalledError: a C compiler, nginx or wrk.
    """
    report = Report(f"flushes of {_DELAY_MS:g} ms")
    cores = two_cores()
    report.notes.append(cores.told())
    with (
        slow_flushes() as shim,
        wrk() as load,
        entered_on(cores, cores.rest, fixed) as upstream,
        _slow_daemon(cores, upstream.plain, shim) as running,
    ):
        prove(running)
        tick = watch("slow flushes", rounds)
        ratios = []
        for turn in range(rounds):
            rates = {}
            for connections in (1, 64) if turn % 2 == 0 else (64, 1):
                await_quiet(cores.measured, quiet_s)
                rates[connections] = _measure(report, cores, load, running, connections, seconds, turn)
            ratios.append(rates[64] / rates[1])
            tick(1)
    report.score("with a 2 ms fsync, calls/s at c=64 over c=1", ratios, 20, 28)
    return report


def _measure(
    report: Report, cores: Cores, load: Wrk, running: Running, connections: int, seconds: int, turn: int
) -> float:
    with cores.pinned(cores.rest):
        load.warm(running.url, running.key, connections)
        answered = load.run(running.url, running.key, connections, seconds)
    report.check(answered.bad == 0, f"{answered.bad} of {answered.calls} answers were bad")
    report.check(
        answered.p50_ms >= _DELAY_MS, f"a call took {answered.p50_ms} ms: the delay of flushes did not work"
    )
    report.samples.append(
        {"kind": "slow flushes", "round": turn, "connections": connections, **asdict(answered)}
    )
    return answered.rate


@contextmanager
def slow_flushes() -> Iterator[Path]:
    """The compiled delay, for LD_PRELOAD.

    Raises:
        NotInstalledError: there is no C compiler, or no LD_PRELOAD.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform != "linux":
        raise NotInstalledError("LD_PRELOAD, which delays flushes,", "run this on Linux")
    if compiler is None:
        raise NotInstalledError("a C compiler", "apt-get install gcc libc6-dev")
    with tempfile.TemporaryDirectory(prefix="kb") as folder:
        shim = Path(folder) / "slow_fsync.so"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-o", str(shim), str(_SOURCE), "-ldl"], check=True
        )
        yield shim


@contextmanager
def _slow_daemon(cores: Cores, origin: Origin, shim: Path) -> Iterator[Running]:
    """A daemon under the delay. `kbctl up` would take LD_PRELOAD out of its environment."""
    with new_home() as kbctl, (kbctl.home / "said").open("wb") as said:
        command = [sys.executable, "-E", "-P", "-m", "kbctld", "--home", str(kbctl.home), "--port", "0"]
        with cores.pinned(cores.measured):
            process = subprocess.Popen(
                [*command, "--upstream", f"stripe={origin.url}", "--foreground"],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=kbctl.home,
                env={**environment(os.environ), "HOME": str(kbctl.home), "LD_PRELOAD": str(shim)},
            )
        try:
            port = _await(process, kbctl)
            kbctl("credential", "set", "stripe", stdin=SECRET + "\n")
            key = kbctl("issue", "--tenant", "acme", "--cap", "1000000").strip()
            yield Running(port, key, tuple(family(process.pid)))
        finally:
            process.terminate()
            process.wait(30)


def _await(process: "subprocess.Popen[bytes]", kbctl: Kbctl) -> int:
    """Its port, once it serves."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with Client(Home(kbctl.home)) as client:
                return int(client.status().proxy_url.rpartition(":")[2])
        except KbctlError:
            said = (kbctl.home / "said").read_text()
            assert process.poll() is None, f"the daemon ended as it started: {said}"
            assert time.monotonic() < deadline, f"the daemon did not come up: {said}"
            time.sleep(0.05)
