"""D1, law 2: seen from the kernel, no byte of a call leaves before its row was synced."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.support import Kbctl, PretendStripe, post

CALLS = 30
SYNCED = re.compile(r"f(?:data)?sync(?:\(\d+\)| resumed>\)) += 0")


def traceable() -> bool:
    """Whether strace is here and may attach to a process."""
    if shutil.which("strace") is None:
        return False
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return os.getuid() == 0 or not scope.exists() or scope.read_text().strip() == "0"


@pytest.mark.skipif(not traceable(), reason="needs strace, and the right to attach it")
def test_D1_no_byte_leaves_before_its_row_is_synced(
    served: Kbctl, stripe_server: PretendStripe, tmp_path: Path
) -> None:
    """Per call, in the kernel's order: its row into the log, the log synced, then its request out."""
    key = served("issue", "--cap", "1000").strip()
    port = int(served.json("status")["proxy_url"].rpartition(":")[2])
    trace = tmp_path / "trace"
    strace = subprocess.Popen(
        [
            *(
                "strace",
                "-f",
                "-s",
                "9000",
                "-e",
                "trace=fdatasync,fsync,pwrite64,write,writev,sendto,sendmsg",
            ),
            *("-o", str(trace), "-p", str(served.pid())),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert strace.stderr is not None
    try:
        assert "attached" in strace.stderr.readline()

        async def calls() -> list[int]:
            return [
                (await post(port, "/v1/payment_intents", key, "amount=100&currency=usd", f"order-{n:03}"))[0]
                for n in range(CALLS)
            ]

        assert asyncio.run(calls()) == [200] * CALLS
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(20)
        strace.stderr.close()

    lines = trace.read_text().splitlines()
    synced = [at for at, line in enumerate(lines) if SYNCED.search(line)]
    for number in range(CALLS):
        name = f"order-{number:03}"
        row = next(at for at, line in enumerate(lines) if "pwrite64(" in line and name in line)
        sent = next(
            at for at, line in enumerate(lines) if "POST /v1/payment_intents" in line and name in line
        )
        assert any(row < at < sent for at in synced), name
