"""One request of an agent, from its head to the end of its answer. Read it top to bottom.

The order is the product's promise:

1. a browser or a foreign Host is turned away before any key is read;
2. the key, the vendor, the operation: refused before the body is read;
3. the body is read only where something in it decides, and priced;
4. ``authorize`` decides and sets the money aside, without suspending;
5. the row is durable before the first byte leaves;
6. the real secret is put in, once, and the request written, once;
7. the answer goes back as it comes, without the secret;
8. ``settle``: success spends, a definite refusal releases, silence keeps.

What must stay true: every way out of this file ends the hold by what was proved, and leaves one row.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kbctld.core.cost import Remembered, objects_needed
from kbctld.core.form import Form, FormError, read_form
from kbctld.core.grant import Grant
from kbctld.core.ledger import Attempt, Verdict
from kbctld.core.money import read_currency
from kbctld.core.outcome import verdict_of
from kbctld.core.policy import Access, Permit, admit
from kbctld.core.policy import Request as Asked
from kbctld.core.refusal import Code, Refusal
from kbctld.core.target import Arrived, read_target, settle_target
from kbctld.core.vendor import Amount, Free, Increase, Vendor
from kbctld.credentials import Credential, Credentials
from kbctld.http1.gate import BadHead, Head
from kbctld.http1.server import BadBody, ClientGone, Fields, Request
from kbctld.proxy.answer import refusal_answer
from kbctld.proxy.inject import outbound_head
from kbctld.proxy.scrub import Scrubber
from kbctld.proxy.slots import find_vault_key
from kbctld.proxy.upstream import Answer, Connection, Failure, Pool, UpstreamError
from kbctld.store.journal import CallRow, JournalError
from kbctld.vault import Vault

log = logging.getLogger("kbctld.proxy")

# An answer up to this size is passed on in one write, once it is whole: a refusal can still replace it.
_WHOLE_BYTES = 64 * 1024
# What is kept of a larger one, where its JSON tells an object's id or the true amount.
_READ_BYTES = 1024 * 1024
_IDEMPOTENCY_KEY_MAX = 255
_FORM = b"application/x-www-form-urlencoded"
_NOT_PASSED_ON = frozenset(
    b"connection keep-alive proxy-authenticate proxy-connection te trailer transfer-encoding upgrade "
    b"content-length set-cookie alt-svc strict-transport-security".split()
)


class Refused(Exception):  # noqa: N818 - an outcome, not a defect
    """Ends an exchange with a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


@dataclass(slots=True)
class Turns:
    """The calls of one key: so many at once, the rest in line."""

    busy: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


@dataclass(slots=True)
class Plane:
    """What exchanges share.

    Attributes:
        own_hosts: the Host values that name this listener.
        pools: the way out, by vendor.
        overridden: vendors whose origin the operator replaced, and by what; shown in every row.
        draining: whether new calls are turned away.
        busy_per_key: calls of one key under way at once.
        turn_s: how long a further one waits.
    """

    vault: Vault
    credentials: Credentials
    vendors: Mapping[str, Vendor]
    pools: Mapping[str, Pool]
    own_hosts: frozenset[bytes]
    overridden: Mapping[str, str]
    busy_per_key: int = 256
    turn_s: float = 10.0
    draining: bool = False
    turns: dict[int, Turns] = field(default_factory=dict)
    scrubbers: dict[tuple[str, int], Scrubber] = field(default_factory=dict)

    async def handle(self, request: Request) -> None:
        """Serve one request whose head passed the gate."""
        assert request.head is not None  # noqa: S101 - for the type checker
        exchange = Exchange(self, request, request.head)
        try:
            await exchange.run()
        except Refused as refused:
            await exchange.refuse(refused.refusal)
        except ClientGone:
            await exchange.refuse(Refusal(Code.MALFORMED_REQUEST, "the agent broke off its request"))

    async def reject(self, request: Request, bad: BadHead) -> None:
        """Record and answer one whose head did not."""
        row = self.vault.new_row()
        refusal = Refusal(Code(bad.code), bad.sentence, status=bad.status)
        line = request.raw.split(b"\r\n", 1)[0].split(b" ")
        if len(line) > 1 and line[0].isalpha() and len(line[0]) <= 16:
            row.method = line[0].decode("ascii", "replace").upper()
            row.endpoint = line[1].split(b"?")[0][:200].decode("ascii", "replace")
        _mark_refused(row, refusal)
        await self.vault.journal.refuse(row)
        vendor = next(
            (v for name, v in self.vendors.items() if (row.endpoint or "").startswith(f"/{name}/")), None
        )
        request.respond(*refusal_answer(refusal, vendor, row.call_id, None), close=True)


class Exchange:
    """The state of one exchange; ``run`` is the story."""

    def __init__(self, plane: Plane, request: Request, head: Head) -> None:
        self.plane = plane
        self.vault = plane.vault
        self.request = request
        self.head = head
        self.started = time.perf_counter_ns()
        self.row = self.vault.new_row()
        self.row.method = head.method
        self.row.endpoint = head.target.partition("?")[0][:2000]
        self.vendor: Vendor | None = None
        self.grant: Grant | None = None

    async def run(self) -> None:
        """The whole of it. Raises ``Refused`` wherever the answer is no."""
        fields = self._turn_away_browsers()
        holder = self._identify(fields)
        arrived = self._read_target()
        if isinstance(holder, Refusal):
            raise Refused(holder)
        grant, access = holder, self._find_operation(holder, arrived, fields)
        _refuse_if(admit(grant, access, self.row.ts_ns))
        credential = self._find_credential(grant, access)
        await self._take_turn(grant)
        try:
            body, asked = await self._read_body(grant, access, credential, fields)
            self.row.ts_ns = self.vault.now_ns()
            verdict = self.vault.authorize(grant, access, asked, self.row)
            if isinstance(verdict, Refusal):
                raise Refused(verdict)
            await self._forward(grant, access, credential, fields, body, verdict)
        finally:
            self._end_turn(grant)

    # --- 1: who is asking -----------------------------------------------------------------------

    def _turn_away_browsers(self) -> Fields:
        """Refuse pages and rebound names; give the fields that count, without those Connection names."""
        head = self.head
        host = (head.get(b"host") or b"").lower()
        site = head.get(b"sec-fetch-site")
        if host not in self.plane.own_hosts:
            raise Refused(
                Refusal(
                    Code.ORIGIN_NOT_ALLOWED,
                    "the Host header does not name this proxy",
                    "use http://127.0.0.1:PORT as `kbctl status` shows it",
                )
            )
        if head.get(b"origin") is not None or site not in (None, b"none") or head.method == "OPTIONS":
            raise Refused(
                Refusal(
                    Code.ORIGIN_NOT_ALLOWED, "the request comes from a web page; agents call from programs"
                )
            )
        named = {name.strip(b" \t").lower() for name in (head.get(b"connection") or b"").split(b",")}
        return [(name, value) for name, value in head.fields if name not in named]

    def _identify(self, fields: Fields) -> Grant | Refusal:
        """Whose key it is, for the row; whether it is good is asked after the path was read."""
        slots = dict(fields)
        key = find_vault_key(slots.get(b"authorization"), slots.get(b"x-api-key"))
        if isinstance(key, Refusal):
            return key
        grant = self.vault.find(key)
        if grant is not None:
            self.grant = grant
            self.row.key_no = grant.no
            if len(grant.vendors) == 1:
                self._name_vendor(grant.vendors[0])
        refusal = admit(grant, None, self.row.ts_ns)
        return refusal or grant or Refusal(Code.KEY_UNKNOWN, "no vault key like this was issued here")

    # --- 2: what is asked -----------------------------------------------------------------------

    def _read_target(self) -> Arrived:
        arrived = read_target(self.head.target, frozenset(self.plane.vendors))
        if isinstance(arrived, Refusal):
            raise Refused(arrived)
        self.row.endpoint = arrived.path
        if arrived.prefix is not None:
            self._name_vendor(arrived.prefix)
        return arrived

    def _name_vendor(self, name: str) -> None:
        """From here on the row and the shape of a refusal are this vendor's."""
        self.vendor = self.plane.vendors.get(name)
        self.row.vendor = name
        self.row.upstream = self.plane.overridden.get(name)

    def _find_operation(self, grant: Grant, arrived: Arrived, fields: Fields) -> Access:
        vendors = self.plane.vendors
        if arrived.prefix is not None:
            vendor = vendors[arrived.prefix]
        else:
            fitting = [
                vendors[name]
                for name in grant.vendors
                if name in vendors
                and (len(grant.vendors) == 1 or arrived.path.startswith(vendors[name].roots))
            ]
            if len(fitting) != 1:
                raise Refused(
                    Refusal(
                        Code.AMBIGUOUS_REQUEST,
                        f"key {grant.key_id} reaches {_list(grant.vendors)} and the path does not say which",
                        f"put the vendor in front of the path, as in /{grant.vendors[0]}{arrived.path}",
                    )
                )
            vendor = fitting[0]
        self._name_vendor(vendor.name)
        if vendor.name not in grant.vendors:
            raise Refused(
                Refusal(
                    Code.VENDOR_NOT_ALLOWED,
                    f"key {grant.key_id} does not reach {vendor.name}; it reaches {_list(grant.vendors)}",
                    f"ask for a key issued with --vendor {vendor.name}",
                )
            )
        target = settle_target(arrived, vendor.joins, vendor.roots)
        if isinstance(target, Refusal):
            raise Refused(target)
        if target.form.mentions(("_method", "api_key")) is not None:
            raise Refused(
                Refusal(Code.AMBIGUOUS_REQUEST, "the query overrides the method or carries a credential")
            )
        operation, parameters = vendor.match(self.head.method, target.path, target.segments)
        self.row.endpoint = target.path
        self.row.operation = operation.name if operation else None
        self._refuse_repeated(vendor, fields)
        names_account = any(name.decode("latin-1") in vendor.account_headers for name, _ in fields)
        return Access(vendor, self.head.method, target, operation, parameters, names_account)

    def _refuse_repeated(self, vendor: Vendor, fields: Fields) -> None:
        seen = set()
        for name, _ in fields:
            if name in seen and name.decode("latin-1") in vendor.forward_headers:
                raise Refused(
                    Refusal(Code.AMBIGUOUS_REQUEST, f"the header {name.decode('latin-1')} stands twice")
                )
            seen.add(name)

    def _find_credential(self, grant: Grant, access: Access) -> Credential:
        if self.plane.draining:
            raise Refused(Refusal(Code.SHUTTING_DOWN, "the daemon is stopping", retry_after_s=5))
        name = grant.credential or access.vendor.name
        credential = self.plane.credentials.get(name)
        if credential is None or credential.vendor != access.vendor.name:
            raise Refused(
                Refusal(
                    Code.CREDENTIAL_UNAVAILABLE,
                    f"there is no credential {name}",
                    f"kbctl credential set {name}",
                )
            )
        if credential.secret is None:
            raise Refused(
                Refusal(
                    Code.CREDENTIAL_UNAVAILABLE,
                    f"the credential {name} can't be read from its store now",
                    "kbctl status",
                )
            )
        return credential

    async def _take_turn(self, grant: Grant) -> None:
        turns = self.plane.turns.setdefault(grant.no, Turns())
        if turns.busy < self.plane.busy_per_key:
            turns.busy += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        turns.waiting.append(waiter)
        try:
            async with asyncio.timeout(self.plane.turn_s):
                await waiter
        except TimeoutError:
            raise Refused(
                Refusal(
                    Code.RATE_LIMITED,
                    f"key {grant.key_id} has {self.plane.busy_per_key} calls under way already",
                    "send fewer at once",
                    retry_after_s=1,
                )
            ) from None
        finally:
            if waiter in turns.waiting:
                turns.waiting.remove(waiter)

    def _end_turn(self, grant: Grant) -> None:
        turns = self.plane.turns[grant.no]
        while turns.waiting:
            waiter = turns.waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)  # the turn passes on
                return
        turns.busy -= 1
        if turns.busy == 0:
            del self.plane.turns[grant.no]

    # --- 3: what it would cost ------------------------------------------------------------------

    async def _read_body(
        self, grant: Grant, access: Access, credential: Credential, fields: Fields
    ) -> tuple[bytes | None, Asked]:
        """The body where something in it decides; None where it may stream by unread."""
        slots = dict(fields)
        if slots.get(b"content-encoding", b"identity") != b"identity":
            raise Refused(
                Refusal(
                    Code.UNSUPPORTED_BODY, "an encoded body can't be read", "send it without Content-Encoding"
                )
            )
        length = self.head.length
        streams = not access.needs_body and length is not None and length > _WHOLE_BYTES
        body: bytes | None = None
        if self.head.has_body and not streams:
            try:
                body = await self.request.body()
            except BadBody as bad:
                raise Refused(Refusal(Code(bad.code), bad.sentence, status=bad.status)) from None
        form = self._read_form(access, slots.get(b"content-type"), body or b"")
        self.row.metadata = _metadata(grant, access.vendor, form, slots)
        known: dict[str, Remembered] = {}
        if access.operation is not None:
            wanted = objects_needed(access.operation, form, access.parameters)
            known = await self.vault.recall(access.vendor.name, credential.name, wanted)
        digest = hashlib.blake2b(digest_size=16)
        for part in (access.method.encode(), access.target.text.encode(), slots.get(b"content-type", b"")):
            digest.update(part + b"\0")
        digest.update(body or b"")
        replay = None if streams else self._replay_digest(grant, access, credential, slots)
        return body, Asked(form, known, digest.digest(), replay)

    def _read_form(self, access: Access, content_type: bytes | None, body: bytes) -> Form:
        operation = access.operation
        decides = operation is not None and isinstance(operation.cost, Amount | Increase)
        kind, _, rest = (content_type or b"").lower().partition(b";")
        is_form = kind.strip() == _FORM and rest.strip().replace(b'"', b"") in (b"", b"charset=utf-8")
        if not body or not (is_form or decides):
            return Form((), has_semicolon=False)
        if not is_form:
            assert operation is not None  # noqa: S101 - decides
            raise Refused(
                Refusal(
                    Code.UNSUPPORTED_BODY,
                    f"{operation.name} takes a body of type {_FORM.decode()}",
                    "send the amount as a form field",
                )
            )
        try:
            form = read_form(body)
        except FormError as error:
            if decides:
                raise Refused(Refusal(Code.MALFORMED_REQUEST, f"the body can't be read: {error}")) from None
            return Form((), has_semicolon=False)
        if form.mentions(("_method",)) is not None:
            raise Refused(Refusal(Code.AMBIGUOUS_REQUEST, "the body overrides the method"))
        return form

    def _replay_digest(
        self, grant: Grant, access: Access, credential: Credential, slots: dict[bytes, bytes]
    ) -> bytes | None:
        idempotency = access.vendor.file.idempotency
        if idempotency is None or access.method not in idempotency.methods:
            return None
        key = slots.get(idempotency.header.lower().encode())
        if not key:
            return None
        if len(key) > _IDEMPOTENCY_KEY_MAX:
            raise Refused(
                Refusal(
                    Code.MALFORMED_REQUEST,
                    f"an idempotency key has at most {_IDEMPOTENCY_KEY_MAX} characters",
                )
            )
        self.row.idempotency_key = key.decode("latin-1")
        # The vendor knows a retry per account: another credential, or another secret, is another account.
        whose = f"{grant.no}\0{access.vendor.name}\0{credential.name}\0{credential.version}\0".encode()
        return hashlib.blake2b(whose + key, digest_size=16).digest()

    # --- 4 to 8: durable, out, back, settled ----------------------------------------------------

    async def _forward(
        self,
        grant: Grant,
        access: Access,
        credential: Credential,
        fields: Fields,
        body: bytes | None,
        permit: Permit,
    ) -> None:
        flight = Flight(self.vault, grant, permit)
        connection: Connection | None = None
        pool = self.plane.pools[access.vendor.name]
        try:
            try:
                await self.vault.append(self.row)
            except JournalError as error:
                raise Refused(
                    Refusal(Code.AUDIT_UNAVAILABLE, f"the call can't be recorded: {error}", "kbctl status")
                ) from None
            connection = await pool.connection()
            # Between the decision and now the key may have been revoked, and its secret rotated or removed.
            _refuse_if(admit(grant, None, self.vault.now_ns()))
            credential = self._find_credential(grant, access)
            secret = credential.secret
            assert secret is not None  # noqa: S101 - _find_credential
            length = self.head.length if body is None and self.head.has_body else None
            head = outbound_head(
                access, pool.origin.authority, secret, fields, len(body) if body is not None else length
            )
            connection.send(head + (body or b""), head_only=access.method == "HEAD")
            flight.took_off()
            if body is None and self.head.has_body:
                await self._stream_up(connection)
            answer = await connection.answer(pool.limits.first_byte_s)
            self.row.vendor_request_id = _text(
                answer.get(access.vendor.file.request_id_header.lower().encode())
            )
            scrubber = self.plane.scrubbers.setdefault(
                (credential.name, credential.version), Scrubber(secret.reveal())
            )
            await self._pass_back(access, credential, connection, answer, scrubber, flight, pool)
        except UpstreamError as error:
            flight.lands(Verdict.SILENT if error.sent else Verdict.UNSENT, self._finished)
            await self._answer_failure(error, access.vendor)
        except Refused as refused:
            # Nothing had left, or the answer itself was refused after it had settled.
            flight.lands(Verdict.UNSENT if not flight.flew else Verdict.SILENT, self._finished)
            if refused.refusal.code is Code.AUDIT_UNAVAILABLE:
                raise
            await self._replace(refused.refusal, flew=flight.flew)
        finally:
            # Cancelled, or a defect of ours: what left may have arrived.
            flight.lands(Verdict.UNSENT if not flight.flew else Verdict.SILENT, self._finished)
            if connection is not None:
                connection.release()

    async def _stream_up(self, connection: Connection) -> None:
        try:
            async for piece in self.request.pieces():
                await connection.send_more(piece)
        except (BadBody, ClientGone):
            connection.close()
            raise UpstreamError(Failure.INVALID, "the agent broke off its request", sent=True) from None

    async def _pass_back(
        self,
        access: Access,
        credential: Credential,
        connection: Connection,
        answer: Answer,
        scrubber: Scrubber,
        flight: "Flight",
        pool: Pool,
    ) -> None:
        if 300 <= answer.status < 400:
            raise Refused(
                Refusal(
                    Code.UPSTREAM_REDIRECT, f"{access.vendor.name} answered with a redirect; none is followed"
                )
            )
        if answer.get(b"content-encoding") not in (None, b"identity"):
            raise Refused(
                Refusal(Code.UPSTREAM_INVALID, f"{access.vendor.name} encoded its answer though asked not to")
            )
        fields = _passed_on(answer, self.row.call_id)
        reflected = scrubber.finds(b"\n".join(value for _, value in fields))
        pieces = connection.body(pool.limits.silence_s)
        status = answer.status
        read = bytearray()
        wants_json = flight.reads_answer
        if answer.length is not None and answer.length <= _WHOLE_BYTES:
            async for piece in pieces:
                read += piece
            flight.lands(
                verdict_of(status), self._finished, **self._truth(access, credential, answer, read, flight)
            )
            if reflected or scrubber.finds(bytes(read)):
                raise Refused(_reflected(access.vendor))
            self.row.status = status
            self._note_times(flight)
            self.request.respond(status, fields, bytes(read))
            return
        if reflected:
            raise Refused(_reflected(access.vendor))
        self.row.status = status
        await self._stream_down(pieces, answer, fields, scrubber, read if wants_json else None)
        flight.lands(
            verdict_of(status), self._finished, **self._truth(access, credential, answer, read, flight)
        )
        self._note_times(flight)
        self.request.end()

    async def _stream_down(
        self,
        pieces: AsyncIterator[bytes],
        answer: Answer,
        fields: Fields,
        scrubber: Scrubber,
        read: bytearray | None,
    ) -> None:
        """Pass pieces on as they come. When the agent goes, the vendor's answer is still heard to its end."""
        stream = scrubber.stream()
        gone = False
        self.request.start(answer.status, fields, answer.length)
        async for piece in pieces:
            if read is not None and len(read) <= _READ_BYTES:
                read += piece
            passed = stream.feed(piece)
            if stream.found:
                log.warning("%s: the vendor repeated the real secret; the answer was cut", self.row.call_id)
                self.row.reason = "the vendor repeated the real secret; the answer was cut"
                self.request.cut()
                gone = True
            if passed and not gone:
                try:
                    await self.request.send(passed)
                except ClientGone:
                    gone = True
        rest = stream.rest()
        if rest and not gone:
            try:
                await self.request.send(rest)
            except ClientGone:
                return

    def _truth(
        self,
        access: Access,
        credential: Credential,
        answer: Answer,
        read: bytearray,
        flight: "Flight",
    ) -> dict[str, Any]:
        """What the answer proves beyond its status: a repetition, the true amount, the object's id."""
        idempotency = access.vendor.file.idempotency
        replay_header = idempotency.replay_header if idempotency else None
        replayed = bool(replay_header) and answer.get(str(replay_header).lower().encode()) == b"true"
        truth: dict[str, Any] = {"replayed": replayed}
        if not flight.reads_answer or not 200 <= answer.status < 300:
            return truth
        try:
            said = msgspec.json.decode(bytes(read))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return truth
        if not isinstance(said, dict):
            return truth
        price = flight.permit.price
        if not price.exact:
            minor, currency = said.get("amount"), read_currency(str(said.get("currency")))
            if isinstance(minor, int) and not isinstance(minor, bool) and minor >= 0 and currency:
                spent = self.vault.rates.nano(minor, currency)
                if spent is not None:
                    truth["spent_nano"] = spent
                    self.row.currency, self.row.amount_minor = currency, minor
        object_id = _object_id(access, said)
        if object_id is not None:
            self.vault.remember(access.vendor.name, credential.name, object_id, price)
        return truth

    # --- answers of our own ---------------------------------------------------------------------

    async def refuse(self, refusal: Refusal) -> None:
        """Record and answer a refusal of a call that never had a hold."""
        _mark_refused(self.row, refusal)
        self.row.latency_us = (time.perf_counter_ns() - self.started) // 1000
        await self.vault.journal.refuse(self.row)
        self._respond(refusal)

    async def _replace(self, refusal: Refusal, *, flew: bool) -> None:
        """Answer a call that had a row of its own: refused at the last moment, or its answer withheld."""
        self.row.reason = refusal.sentence
        self.row.status = refusal.http_status
        self.row.latency_us = (time.perf_counter_ns() - self.started) // 1000
        if not flew:
            self.row.policy_check_result = refusal.code.value
        self._finished()
        self._respond(refusal)

    async def _answer_failure(self, error: UpstreamError, vendor: Vendor) -> None:
        code = {
            Failure.UNREACHABLE: Code.UPSTREAM_UNREACHABLE,
            Failure.TIMEOUT: Code.UPSTREAM_TIMEOUT,
            Failure.INVALID: Code.UPSTREAM_INVALID,
        }[error.failure]
        fate = (
            "whether it acted is not known, so what the call asked for stays held"
            if error.sent
            else "nothing was sent, so nothing is held"
        )
        await self._replace(Refusal(code, f"{vendor.name}: {error.detail}; {fate}"), flew=True)

    def _respond(self, refusal: Refusal) -> None:
        if self.request.started:
            self.request.cut()
            return
        key_id = self.grant.key_id if self.grant else None
        self.request.respond(*refusal_answer(refusal, self.vendor, self.row.call_id, key_id))

    def _note_times(self, flight: "Flight") -> None:
        now = time.perf_counter_ns()
        self.row.latency_us = (now - self.started) // 1000
        self.row.upstream_us = (now - flight.took_off_ns) // 1000

    def _finished(self) -> None:
        self.vault.journal.finish(self.row)


class Flight:
    """One permitted call: its hold, whether its bytes have left, and that it ends exactly once."""

    def __init__(self, vault: Vault, grant: Grant, permit: Permit) -> None:
        self.permit = permit
        self.flew = False
        self.took_off_ns = 0
        self._vault = vault
        self._grant = grant
        self._nano = 0 if permit.replay_of else permit.attempt.hold.nano
        self._landed = False

    @property
    def reads_answer(self) -> bool:
        """Whether the answer's JSON tells something that we need."""
        return self.permit.price.counts is not None or not self.permit.price.exact

    def took_off(self) -> None:
        """The first byte has left."""
        self.flew = True
        self.took_off_ns = time.perf_counter_ns()
        self._grant.in_flight += 1
        self._grant.in_flight_nano += self._nano

    def lands(
        self, verdict: Verdict, then: Any, *, spent_nano: int | None = None, replayed: bool = False
    ) -> None:
        """End the hold by what was proved; only the first word counts."""
        if self._landed:
            return
        self._landed = True
        if self.flew:
            self._grant.in_flight -= 1
            self._grant.in_flight_nano -= self._nano
        attempt: Attempt = self.permit.attempt
        self._vault.settle(self._grant, attempt, verdict, spent_nano=spent_nano, replayed=replayed)
        then()


def _refuse_if(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise Refused(refusal)


def _mark_refused(row: CallRow, refusal: Refusal) -> None:
    row.outcome, row.amount_nano = "refused", 0
    row.policy_check_result, row.reason = refusal.code.value, refusal.sentence
    row.status = refusal.http_status


def _reflected(vendor: Vendor) -> Refusal:
    return Refusal(Code.SECRET_REFLECTED, f"{vendor.name} repeated the real secret in its answer")


def _passed_on(answer: Answer, call_id: str) -> Fields:
    named = {name.strip(b" \t").lower() for name in (answer.get(b"connection") or b"").split(b",")}
    fields = [
        (name, value) for name, value in answer.fields if name not in _NOT_PASSED_ON and name not in named
    ]
    fields.append((b"kbctl-call-id", call_id.encode()))
    return fields


def _metadata(grant: Grant, vendor: Vendor, form: Form, slots: dict[bytes, bytes]) -> str | None:
    """What the request says of its run, overlaid by the key's own: an agent can add but not forge."""
    said: dict[str, str] = {}
    if vendor.file.metadata_field is not None:
        said.update(list(form.object(vendor.file.metadata_field).items())[:50])
    run_id = slots.get(b"x-agent-run-id")
    if run_id:
        said["agent_run_id"] = run_id.decode("latin-1")[:500]
    if not said:
        return None
    said = {name[:100]: value[:500] for name, value in said.items()}
    return json.dumps({**said, **grant.metadata})


def _object_id(access: Access, said: dict[str, Any]) -> str | None:
    operation = access.operation
    if operation is None or isinstance(operation.cost, Free):
        return None
    if isinstance(operation.cost, Increase):
        return access.parameters[operation.cost.of]
    if isinstance(operation.cost, Amount) and operation.cost.object is not None:
        found = said.get(operation.cost.object)
        return found if isinstance(found, str) and 0 < len(found) <= 255 else None
    return None


def _list(words: tuple[str, ...]) -> str:
    return " and ".join(words)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")[:200]
