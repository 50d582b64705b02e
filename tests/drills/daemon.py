"""The real daemon with named points at which it dies: ``python -m tests.drills.daemon``.

The product has no failpoints. This launcher wraps the functions that make up the steps of an exchange, and
kills its own process when a step is reached for the n-th time. Nothing else of the daemon is changed, except
by ``broken``, which makes it one of the naive variants that the checker must catch.

It is a nursery: one JSON object a line on standard input. ``{"do": "start", ...}`` forks a daemon, so that
what is imported once serves a thousand lives; ``{"do": "wait", "pid": N}`` waits until one is gone. With
``--one`` it is that daemon itself, for who traces it from its first system call.
"""

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from kbctl.paths import Home
from kbctld import app, vault
from kbctld.app import App, Options, Reporter, run
from kbctld.core.policy import Permit
from kbctld.http1.server import Request
from kbctld.proxy.upstream import Connection, Pool
from kbctld.store import database
from kbctld.store.anchor import Anchor
from kbctld.store.journal import Journal
from kbctld.vault import Vault
from tests.support.naive import naive

_SOON_S = 0.002
_for_ever = contextlib.ExitStack()

POINTS: dict[str, str] = {
    "request-read": "the head of a request has come in",
    "before-hold": "about to decide",
    "after-hold": "the money is held in memory alone",
    "row-queued": "the row waits for its batch",
    "before-commit": "the batch is written, not committed",
    "after-commit": "the batch is committed, nobody knows yet",
    "before-anchor": "committed, the anchor lags",
    "after-anchor": "the anchor is written",
    "recorded": "the row is durable, nothing is sent",
    "connected": "a connection is there",
    "before-send": "about to write the request",
    "in-flight": "the bytes have left",
    "answer-head": "the head of the answer is read",
    "answer-body": "a piece of the answer is read",
    "before-settle": "about to settle",
    "settled": "settled in memory alone",
    "before-respond": "about to answer the agent",
    "responded": "the agent has its answer",
    "issuing": "a new key is about to be recorded",
    "revoking": "a revocation bites, and is not recorded",
    "revoked": "a revocation is recorded, and not acknowledged",
    "opened": "start: the database is open",
    "loading": "start: pending calls were made unknown",
    "draining": "stop: the first step",
    "closing": "stop: the journal is about to close",
}
"""Where it can be killed."""


_AT_START = ("opened", "loading")


class Killer:
    """Dies at the n-th arrival at a point."""

    def __init__(self, point: str, nth: int) -> None:
        self._point = point
        self._left = nth
        self.serves = point in _AT_START
        """Whether the steps of the start are over: they are some of the same."""

    def reach(self, point: str) -> None:
        if point == self._point and self.serves:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _around(
    owner: Any, name: str, before: Callable[..., None] | None, after: Callable[..., None] | None
) -> None:
    """Call these with the arguments, and with the result and the arguments."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    async def coroutine(*args: Any, **also: Any) -> Any:
        if before is not None:
            before(*args)
        result = await inner(*args, **also)
        if after is not None:
            after(result, *args)
        return result

    @functools.wraps(inner)
    def function(*args: Any, **also: Any) -> Any:
        if before is not None:
            before(*args)
        result = inner(*args, **also)
        if after is not None:
            after(result, *args)
        return result

    setattr(owner, name, coroutine if asyncio.iscoroutinefunction(inner) else function)


def arm(killer: Killer) -> None:
    """Put every point in its place."""

    def at(point: str) -> Callable[..., None]:
        return lambda *_args: killer.reach(point)

    def held(verdict: Any, *_args: Any) -> None:
        if isinstance(verdict, Permit):
            killer.reach("after-hold")

    def queued(_journal: Any, batch: Any, _height: Any) -> None:
        if batch.rows:
            killer.reach("row-queued")

    def sent(*_args: Any) -> None:
        # uvloop writes at the end of the round: a moment later the bytes have left.
        asyncio.get_running_loop().call_later(_SOON_S, killer.reach, "in-flight")

    _around(app, "exchange", at("request-read"), None)
    _around(Vault, "authorize", at("before-hold"), held)
    _around(Journal, "_commit", queued, None)
    _around(database, "commit", at("before-commit"), at("after-commit"))
    _around(Anchor, "write", at("before-anchor"), at("after-anchor"))
    _around(Vault, "append", None, at("recorded"))
    _around(Pool, "connection", None, at("connected"))
    _around(Connection, "send", at("before-send"), sent)
    _around(Connection, "answer", None, at("answer-head"))
    _around(Vault, "settle", at("before-settle"), at("settled"))
    _around(Request, "respond", at("before-respond"), at("responded"))
    _around(Vault, "issue", at("issuing"), None)
    _around(Vault, "_record_patiently", at("revoking"), at("revoked"))
    _around(app, "open_database", None, at("opened"))
    _around(vault, "mark_pending_unknown", None, at("loading"))
    _around(App, "stop", at("draining"), None)
    _around(Journal, "close", at("closing"), None)
    _around(Reporter, "ready", None, lambda *_args: setattr(killer, "serves", True))
    body = Connection.body

    async def pieces(self: Connection, silence_s: float) -> AsyncIterator[bytes]:
        async for piece in body(self, silence_s):
            killer.reach("answer-body")
            yield piece

    Connection.body = pieces  # type: ignore[method-assign]
    _around(Connection, "whole", None, at("answer-body"))


def _set_clock(offset: Path) -> None:
    """The wall clock is off by as many seconds as that file says; the machine's own clocks are not."""
    known = (0, 0)

    def wall_ns() -> int:
        nonlocal known
        try:
            changed = offset.stat().st_mtime_ns
            if changed != known[0]:
                known = changed, int(offset.read_text() or "0") * 10**9
        except (OSError, ValueError):
            pass
        return time.time_ns() + known[1]

    init = Vault.__init__

    def with_clock(self: Vault, *args: Any, **also: Any) -> None:
        init(self, *args, **{**also, "wall_ns": wall_ns})

    Vault.__init__ = with_clock  # type: ignore[method-assign]


def live(wanted: dict[str, Any], report_fd: int | None) -> int:
    """Be a daemon until it ends; gives its exit status."""
    if wanted.get("broken"):
        _for_ever.enter_context(naive(wanted["broken"]))
    if wanted.get("point"):
        arm(Killer(wanted["point"], wanted["nth"]))
    if wanted.get("clock"):
        _set_clock(Path(wanted["clock"]))
    options = Options(
        home=Home(Path(wanted["home"])),
        port=wanted.get("port", 0),
        upstreams=[f"stripe={wanted['upstream']}"],
    )
    return run(options, Reporter(report_fd))


def _start(wanted: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.close(reading)
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            status = live(wanted, writing)
        finally:
            os._exit(status)
    os.close(writing)
    with contextlib.closing(os.fdopen(reading, "rb")) as report:
        line = report.readline()
    return {"pid": pid, "said": json.loads(line) if line else None}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        sys.exit(live(json.loads(sys.argv[2]), 1))
    assert vault  # imported, with all that it imports, before the first fork
    print("{}", flush=True)  # noqa: T201 - read by whoever started us
    for line in sys.stdin:
        wanted = json.loads(line)
        if wanted["do"] == "start":
            answer = _start(wanted)
        else:
            answer = {"status": os.waitstatus_to_exitcode(os.waitpid(wanted["pid"], 0)[1])}
        print(json.dumps(answer), flush=True)  # noqa: T201 - as above


if __name__ == "__main__":
    main()
