"""wrk as the load: keep-alive, one thread, closed loop, every call a charge of its own.

What must stay true: a call that was not answered 200 is counted as bad. wrk counts statuses above 399 by
itself, and nothing here answers 201 or 302; to look at each answer in Lua would halve what wrk can send.
Its percentiles are of a closed loop: they say little about a proxy that cannot keep up.
"""

import itertools
import json
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.machine import NotInstalledError

PATH = "/v1/payment_intents"
_NUMBER = "0000000000"
BODY = (
    "amount=1&currency=usd&customer=cus_NffrFeUfNV2Hib&automatic_payment_methods[enabled]=true"
    "&receipt_email=jenny.rosen%40example.com&metadata[agent_run]=run_2026_11_21"
    f"&description=order%20no.%20{_NUMBER}"
)
FORM = "application/x-www-form-urlencoded"
_WARM_S = 0.25
_LINE = re.compile(r"^\{.*\}$", re.MULTILINE)

# The number at the end of the body is another one in every call: no two are the same to who looks for that.
_SCRIPT = f"""
local first, number
function init(args)
    local headers = {{ ["Authorization"] = "Bearer " .. args[1], ["Content-Type"] = "{FORM}" }}
    first = wrk.format("POST", "{PATH}", headers, "{BODY}"):sub(1, -{len(_NUMBER) + 1})
    number = tonumber(args[2])
end
function request()
    number = number + 1
    return first .. string.format("%0{len(_NUMBER)}d", number)
end
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '\\n{{"calls":%d,"microseconds":%d,"p50":%d,"p99":%d,"status":%d,"broken":%d}}\\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
        errors.connect + errors.read + errors.write + errors.timeout))
end
"""

_numbers = itertools.count(int(time.time()) % 1000 * 1_000_000, 2_000_000)
"""Where each run of wrk begins to count."""


@dataclass(frozen=True, slots=True)
class Answered:
    """How a slice of load was answered.

    Attributes:
        calls: that were answered, well or badly.
        bad: answered other than 200, or cut.
    """

    calls: int
    seconds: float
    p50_ms: float
    p99_ms: float
    bad: int

    @property
    def rate(self) -> float:
        """Good calls a second."""
        return (self.calls - self.bad) / self.seconds


@dataclass(frozen=True, slots=True)
class Wrk:
    """One that is installed."""

    program: str
    script: Path

    def warm(self, url: str, key: str, connections: int) -> None:
        """A little load that nobody counts."""
        process = self._start(url, key, connections, 60)
        time.sleep(_WARM_S)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)

    def run(self, url: str, key: str, connections: int, seconds: int) -> Answered:
        """Put load on for so long."""
        process = self._start(url, key, connections, seconds)
        said, complained = process.communicate(timeout=seconds + 60)
        line = _LINE.search(said)
        assert line is not None, f"wrk said nothing about {url}: {said}{complained}"
        found = json.loads(line[0])
        return Answered(
            calls=found["calls"],
            seconds=found["microseconds"] / 1e6,
            p50_ms=found["p50"] / 1000,
            p99_ms=found["p99"] / 1000,
            bad=found["status"] + found["broken"],
        )

    def _start(self, url: str, key: str, connections: int, seconds: int) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [
                *(self.program, "--threads", "1", "--connections", str(connections)),
                *("--duration", f"{seconds}s", "--timeout", "30s", "--script", str(self.script)),
                *(url, "--", key, str(next(_numbers))),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextmanager
def wrk() -> Iterator[Wrk]:
    """The one of this machine.

    Raises:
        NotInstalledError: there is none.
    """
    program = shutil.which("wrk")
    if program is None:
        raise NotInstalledError("wrk", "apt-get install wrk")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT)
        script.flush()
        yield Wrk(program, Path(script.name))
