"""The pretend Stripe: one request in, one answer out.

What must stay true:

- Only the real secret opens it. A vault key is worthless here, as it is at Stripe; that is how a test sees
  that the proxy swapped it. The secret is kept as a digest and appears in no answer.
- An answer exists only after what it reports is in the book (see `book`).
- An idempotency key replays its first result for 24 hours, per account, also after a restart.
- Faults happen only when the sandbox was built with `faults=True`. The embedded one never is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from kbctld.sandbox import operations
from kbctld.sandbox.book import Line
from kbctld.sandbox.errors import StripeError, server_error
from kbctld.sandbox.form import Form, Tree, decode
from kbctld.sandbox.state import State, StripeObject, Transaction

log = logging.getLogger(__name__)

_VERSION = "2026-10-28.endive"
_FORM = "application/x-www-form-urlencoded"
_IDEMPOTENCY_KEY_LENGTH_MAX = 255
_SLOW_SECONDS_MAX = 60.0

_JSON = msgspec.json.Encoder()
_SORTED = msgspec.json.Encoder(order="deterministic")

_BEFORE = frozenset({"reset-before", "redirect", "echo-auth"})
_AFTER = frozenset({"reset-after", "500", "500-after", "garbage", "truncate"})
_SLOW = re.compile(r"slow=([0-9]{1,2}(?:\.[0-9]{1,3})?)", re.ASCII)

Ending = Literal["whole", "reset", "garbage", "truncate"]


class Request(NamedTuple):
    """`headers` has lower-case names; a header that comes twice is refused before this."""

    method: str
    path: str
    query: bytes
    headers: Mapping[str, str]
    body: bytes


class Answer(NamedTuple):
    """What to send, how late, and how the connection ends. `key_in_use` is released when it is sent."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    delay_seconds: float = 0.0
    ending: Ending = "whole"
    key_in_use: tuple[str, str] | None = None


class Sandbox:
    """A pretend Stripe account (and its connected accounts) behind one secret.

    `book` names the file that makes it survive its process; without one it lives in memory.
    """

    def __init__(
        self,
        secret: str,
        *,
        book: Path | None = None,
        faults: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.expect(secret)
        self._faults = faults
        self._clock = clock
        self._state = State(book)
        self._keys_in_use: set[tuple[str, str]] = set()
        self._requests = 0
        self._calls: Counter[str] = Counter()

    def expect(self, secret: str) -> None:
        """Accept this secret, and the one before it no longer."""
        if not secret or secret != secret.strip() or secret.startswith("vault_key_"):
            raise ValueError("the sandbox needs a secret of a vendor's kind, not a vault key")
        self._digest = _digest(secret)

    def close(self) -> None:
        """Let go of the book file. What is in memory can still be read; nothing more is moved."""
        self._state.close()

    def book(self) -> dict[str, Any]:
        """The figures. `requests` and `calls` count since this process started, all else since the book did.

        `calls` counts requests by operation, whatever came of them; `unauthorized` and `unrecognized` are the
        ones that reached no operation, `redirect.followed` those that should not have come at all.
        """
        book = self._state.book
        return {
            "authorised_minor": dict(book.authorised_minor),
            "moved_minor": dict(book.moved_minor),
            "declined_minor": dict(book.declined_minor),
            "requests": self._requests,
            "calls": dict(self._calls),
            "entries": len(book.entries),
        }

    def entries(self, after: int = 0) -> list[dict[str, Any]]:
        """The entries with a sequence above `after`, oldest first."""
        entries: list[dict[str, Any]] = msgspec.to_builtins(self._state.book.entries[max(after, 0) :])
        return entries

    def answer(self, request: Request) -> Answer:
        if request.path.startswith("/_sandbox/"):
            return self._inspect(request)
        self._requests += 1
        request_id = f"req_{secrets.token_hex(7)}"
        try:
            answer = self._serve(request, request_id)
        except StripeError as error:
            answer = Answer(error.status, error.body())
        except Exception:
            # Nothing was written, so nothing moved. The request may hold the secret: it is not logged.
            log.exception("the pretend Stripe failed on %s", request_id)
            answer = Answer(500, server_error().body())
        headers = (
            ("Request-Id", request_id),
            ("Stripe-Version", request.headers.get("stripe-version", _VERSION)),
            *answer.headers,
        )
        return answer._replace(headers=headers)

    def release(self, answer: Answer) -> None:
        """A late answer has been sent: its idempotency key is no longer in use."""
        if answer.key_in_use is not None:
            self._keys_in_use.discard(answer.key_in_use)

    def _inspect(self, request: Request) -> Answer:
        if request.path == "/_sandbox/redirected":
            self._calls["redirect.followed"] += 1
            return Answer(200, _JSON.encode({"object": "redirected"}))
        if request.method == "GET" and request.path == "/_sandbox/book":
            return Answer(200, _JSON.encode(self.book()))
        if request.method == "GET" and request.path == "/_sandbox/book/entries":
            try:
                after = Form(decode(request.query)).integer("after")
            except StripeError as error:
                return Answer(error.status, error.body())
            return Answer(200, _JSON.encode(self.entries(after or 0)))
        return Answer(404, _unrecognized(request).body())

    def _serve(self, request: Request, request_id: str) -> Answer:
        if not self._is_authentic(request.headers):
            self._calls["unauthorized"] += 1
            return _unauthorized(request.headers)
        found = operations.route(request.method, request.path)
        if found is None:
            self._calls["unrecognized"] += 1
            raise _unrecognized(request)
        operation, ids = found
        self._calls[operation.name] += 1
        tree = decode(request.query, _form_of(request))
        fault = self._fault(request, tree)
        if fault in _BEFORE:
            return _refuse(fault, request)

        account = request.headers.get("stripe-account", "")
        key = request.headers.get("idempotency-key") if request.method == "POST" else None
        fingerprint = ""
        now = self._clock()
        if key is not None:
            fingerprint = hashlib.sha256(
                f"{request.method} {request.path} ".encode() + _SORTED.encode(tree)
            ).hexdigest()
            replay = self._replay(account, key, fingerprint, now)
            if replay is not None:
                return replay

        tx = Transaction(
            self._state,
            account=account,
            operation=operation.name,
            now=now,
            request_id=request_id,
            idempotency_key=key,
        )
        status, body, line = _execute(tx, operation, ids, Form(tree), fault)
        if key is not None:
            tx.remember(line, key, fingerprint, status, body)
        self._state.write(line)
        return self._late(Answer(status, body), fault, (account, key))

    def _is_authentic(self, headers: Mapping[str, str]) -> bool:
        presented = _presented(headers)
        return presented is not None and hmac.compare_digest(_digest(presented), self._digest)

    def _fault(self, request: Request, tree: Tree) -> str:
        if not self._faults:
            return ""
        metadata = tree.get("metadata")
        named = metadata.get("sandbox_fault") if isinstance(metadata, dict) else None
        # A proxy forwards no header it does not know, so a test behind one names its fault in the metadata.
        fault = request.headers.get("sandbox-fault") or (named if isinstance(named, str) else "")
        if fault and fault not in _BEFORE and fault not in _AFTER and _SLOW.fullmatch(fault) is None:
            raise StripeError(400, f"There is no such fault: {fault}.", param="metadata[sandbox_fault]")
        return fault

    def _replay(self, account: str, key: str, fingerprint: str, now: float) -> Answer | None:
        if not 1 <= len(key) <= _IDEMPOTENCY_KEY_LENGTH_MAX:
            raise StripeError(400, f"An idempotency key has 1 to {_IDEMPOTENCY_KEY_LENGTH_MAX} characters.")
        if (account, key) in self._keys_in_use:
            raise StripeError(
                409, f"Another request with the key {key} is in progress.", code="idempotency_key_in_use"
            )
        result = self._state.result(account, key, now)
        if result is None:
            return None
        if result.fingerprint != fingerprint:
            raise StripeError(
                400, f"The key {key} was first used for another request.", kind="idempotency_error"
            )
        # A fault belongs to the attempt it was asked of: the replay is plain.
        headers = (("Idempotent-Replayed", "true"), ("Original-Request", result.request_id))
        return Answer(result.status, result.body, headers)

    def _late(self, answer: Answer, fault: str, place: tuple[str, str | None]) -> Answer:
        """Shape what follows the work: the answer may come late, broken or never."""
        if fault == "reset-after":
            return answer._replace(ending="reset")
        if fault == "garbage":
            return answer._replace(ending="garbage")
        if fault == "truncate":
            return answer._replace(ending="truncate")
        slow = _SLOW.fullmatch(fault)
        if slow is None:
            return answer
        account, key = place
        in_use = None
        if key is not None:
            in_use = (account, key)
            self._keys_in_use.add(in_use)
        return answer._replace(delay_seconds=min(float(slow[1]), _SLOW_SECONDS_MAX), key_in_use=in_use)


def _execute(
    tx: Transaction, operation: operations.Operation, ids: list[str], form: Form, fault: str
) -> tuple[int, bytes, Line]:
    """Status and body of the answer, and the line that makes them true."""
    if fault == "500":
        return 500, server_error().body(), Line()
    try:
        obj = operation.run(tx, form, *ids)
    except StripeError as error:
        if not error.began:
            raise
        return error.status, error.body(), tx.line()
    line = tx.line()
    tx.expand(obj, form.texts("expand"))
    if fault == "500-after":
        return 500, server_error().body(), line
    return 200, _JSON.encode(obj), line


def _refuse(fault: str, request: Request) -> Answer:
    """The faults that come before any work."""
    if fault == "reset-before":
        return Answer(500, b"", ending="reset")
    if fault == "redirect":
        return Answer(307, b"{}", (("Location", "/_sandbox/redirected"),))
    # echo-auth: some servers repeat what they were sent, the secret too. This one does so only when asked.
    echoed = request.headers.get("authorization", "")
    return Answer(401, StripeError(401, f"Invalid Authorization: {echoed}").body())


def _form_of(request: Request) -> bytes:
    content_type = request.headers.get("content-type", "")
    if not request.body or request.method == "GET":
        return b""
    if content_type and content_type.partition(";")[0].strip().lower() != _FORM:
        raise StripeError(400, f"The body must be {_FORM}.")
    return request.body


def _presented(headers: Mapping[str, str]) -> str | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _unauthorized(headers: Mapping[str, str]) -> Answer:
    presented = _presented(headers)
    if not presented:
        message = "No API key was provided: send it as Authorization: Bearer, or as the user of Basic."
    else:
        # Like Stripe, the last characters are shown: something for a proxy to scrub.
        message = f"Invalid API Key provided: {'*' * 8}{presented[-4:] if len(presented) > 8 else ''}"
    return Answer(401, StripeError(401, message).body(), (("WWW-Authenticate", 'Basic realm="Stripe"'),))


def _unrecognized(request: Request) -> StripeError:
    return StripeError(404, f"Unrecognized request URL ({request.method}: {request.path}).")


__all__ = ["Answer", "Ending", "Request", "Sandbox", "StripeObject"]
