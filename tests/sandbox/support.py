"""How the tests of the pretend Stripe reach it: in memory, over a socket in a thread, as a process.

What must stay true: everything that is started here is ended here, and only loopback is used.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from urllib.parse import urlencode

from kbctld.sandbox import RunningSandbox, Sandbox, start
from kbctld.sandbox.stripe import Answer, Request

SECRET = "sk_test_pretend_51HxQ"


class Reply(NamedTuple):
    status: int
    json: dict[str, Any]
    headers: dict[str, str]

    @property
    def error(self) -> tuple[int, str | None, str | None]:
        error = self.json["error"]
        return self.status, error.get("code"), error.get("param")


def ask(
    sandbox: Sandbox,
    method: str,
    path: str,
    params: dict[str, Any] | None = None,
    *,
    key: str | None = None,
    secret: str = SECRET,
    **headers: str,
) -> Reply:
    """One request without a network. A header `stripe_account` is sent as `stripe-account`."""
    sent = {"authorization": f"Bearer {secret}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        sent["idempotency-key"] = key
    encoded = urlencode(params or {}).encode()
    path, _, query = path.partition("?")
    if method == "GET":
        request = Request(method, path, query.encode() or encoded, sent, b"")
    else:
        request = Request(method, path, query.encode(), sent, encoded)
    return reply(sandbox.answer(request))


def reply(answer: Answer) -> Reply:
    return Reply(answer.status, json.loads(answer.body), dict(answer.headers))


def pay(sandbox: Sandbox, amount: int, **params: Any) -> Reply:
    """A PaymentIntent that succeeds at once, unless the parameters say otherwise."""
    whole = {"amount": amount, "currency": "usd", "customer": "cus_1", "confirm": "true"}
    return ask(sandbox, "POST", "/v1/payment_intents", whole | params)


@contextmanager
def served(sandbox: Sandbox) -> Iterator[RunningSandbox]:
    """The sandbox on a socket, on a loop in another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        running = asyncio.run_coroutine_threadsafe(start(sandbox), loop).result()
        try:
            yield running
        finally:
            asyncio.run_coroutine_threadsafe(running.close(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def process(*arguments: str | Path, secret: str = SECRET) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`python -m kbctld.sandbox`, and its url; killed and reaped whatever happens."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen(
        [sys.executable, "-m", "kbctld.sandbox", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    with child:
        try:
            cast(IO[bytes], child.stdin).write(secret.encode() + b"\n")
            cast(IO[bytes], child.stdin).flush()
            line = cast(IO[bytes], child.stdout).readline()
            yield child, json.loads(line)["url"] if line else ""
        finally:
            child.kill()
