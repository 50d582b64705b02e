"""A daemon over a filled home, and what its process takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kbctl.client import Client
from kbctl.paths import Home
from tests.bench.machine import two_cores
from tests.bench.report import Watch
from tests.bench.stock import fill, fill_calls
from tests.bench.upstream import Upstream
from tests.e2e.support import SECRET, Kbctl, new_home


@dataclass(frozen=True, slots=True)
class Served:
    """A daemon that runs.

    Attributes:
        first_s: how long its first start took.
        empty_s: how long a start on the same home took, without a key in it.
        start_s: how long the start with all keys took.
    """

    kbctl: Kbctl
    client: Client
    port: int
    first_s: float
    empty_s: float
    start_s: float

    def memory_mb(self, field: str = "VmRSS") -> float:
        """Resident now; its peak as ``VmHWM``."""
        status = Path(f"/proc/{self.kbctl.pid()}/status").read_text()
        return int(status.partition(f"{field}:")[2].split()[0]) / 1024


@contextmanager
def serve(
    upstream: Upstream, keys: int, watch: Watch, *, config: str = "", core: int | None = None
) -> Iterator[Served]:
    """A home with so many keys, and its daemon.

    Args:
        upstream: where calls go.
        keys: in the home.
        watch: told of what takes long.
        config: its config.toml.
        core: that the daemon runs on; None for any.
    """
    with new_home() as kbctl:
        if config:
            kbctl.home.mkdir(mode=0o700, exist_ok=True)
            (kbctl.home / "config.toml").write_text(config)
            (kbctl.home / "config.toml").chmod(0o600)
        up = ("up", "--port", "0", "--upstream", f"stripe={upstream.url}")
        first_s = _timed(kbctl, *up)
        kbctl("credential", "set", "stripe", stdin=SECRET + "\n")
        kbctl("down")
        empty_s = _timed(kbctl, *up)
        kbctl("down")
        fill(Home(kbctl.home), keys, time.time_ns(), watch(f"making {keys:,} keys", keys))
        with two_cores().pinned(core):
            start_s = _timed(kbctl, *up)
        with Client(Home(kbctl.home)) as client:
            port = int(client.status().proxy_url.rpartition(":")[2])
            yield Served(kbctl, client, port, first_s, empty_s, start_s)


@contextmanager
def serve_calls(upstream: Upstream, keys: int, calls: int, watch: Watch) -> Iterator[Served]:
    """The same with so many calls of these keys; its first start over them is done."""
    with serve(upstream, keys, watch) as served:
        served.kbctl("down")
        home = Home(served.kbctl.home)
        fill_calls(home, calls, keys, time.time_ns(), watch(f"making {calls:,} calls", calls))
        home.anchor().unlink()  # it remembers a database without calls; the word stands for it once
        served.kbctl("up", "--port", "0", "--upstream", f"stripe={upstream.url}", "--accept-rollback")
        yield served


def _timed(kbctl: Kbctl, *args: str) -> float:
    began = time.monotonic()
    kbctl(*args)
    return time.monotonic() - began
