"""`python -m kbctld.sandbox`: the pretend Stripe in a process of its own, for tests that kill it.

The accepted secret is the first line of stdin, because arguments and the environment can be read by others.
One JSON line with the url goes to stdout once it listens. SIGTERM or SIGINT ends it with status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

import uvloop

from kbctld.sandbox import BookDamagedError, BookInUseError, Sandbox, start


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kbctld.sandbox", description="A pretend Stripe on loopback."
    )
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--book", type=Path, help="the file that keeps its book and its objects")
    parser.add_argument("--faults", action="store_true", help="break when a request asks for it")
    arguments = parser.parse_args()
    try:
        sandbox = Sandbox(sys.stdin.readline().strip(), book=arguments.book, faults=arguments.faults)
    except (BookDamagedError, BookInUseError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(sandbox, arguments.port))
    except OSError as error:  # the port is taken
        sys.stderr.write(f"{error}\n")
        return 3
    finally:
        sandbox.close()
    return 0


async def _serve(sandbox: Sandbox, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    running = await start(sandbox, port=port)
    sys.stdout.write(json.dumps({"url": running.url}) + "\n")
    sys.stdout.flush()
    await stop.wait()
    await running.close()


if __name__ == "__main__":
    sys.exit(main())
