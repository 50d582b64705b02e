"""One request of an agent, from its head to the end of its answer: ``exchange``, read top to bottom.

Its order is the product's promise. What must stay true: every way out of it leaves one row, and ends a hold
by what was proved.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kbctld.core.grant import Grant
from kbctld.core.policy import Permit, admit
from kbctld.core.refusal import Code, Refusal
from kbctld.core.target import read_target
from kbctld.core.vendor import Vendor
from kbctld.credentials import Credential, Credentials
from kbctld.http1.gate import BadHead
from kbctld.http1.server import BadBody, ClientGone, Fields, Request
from kbctld.proxy.asking import find_access, find_credential, plain_fields, read_request, stranger
from kbctld.proxy.call import Call, Refused, allowed
from kbctld.proxy.flight import Flight
from kbctld.proxy.inject import outbound_head
from kbctld.proxy.scrub import Scrubber
from kbctld.proxy.upstream import Answer, Connection, Failure, Pool, UpstreamError
from kbctld.vault import Vault

log = logging.getLogger("kbctld.proxy")

# An answer up to this size is passed on in one write, once it is whole: a refusal can still replace it.
_WHOLE_BYTES = 64 * 1024
# What is kept of a larger one, where its JSON tells an object's id or the true amount.
_READ_BYTES = 1024 * 1024
_NOT_PASSED_ON = frozenset(
    b"connection keep-alive proxy-authenticate proxy-connection te trailer transfer-encoding upgrade "
    b"content-length set-cookie alt-svc strict-transport-security".split()
)


async def exchange(plane: "Plane", request: Request) -> None:
    """Serve one request whose head passed the gate."""
    head = request.head
    assert head is not None  # noqa: S101 - for the type checker
    call = Call(plane.vault, request, plane.vendors, plane.overridden)
    try:
        # Who asks, and for what: refused before the body is read. A page or a foreign Host is turned away
        # before any key is read.
        arrived = allowed(read_target(head.target, frozenset(plane.vendors)))
        call.arrived(arrived)
        _refuse_if(stranger(head, plane.own_hosts))
        fields = plain_fields(head)
        grant = allowed(call.identify(fields))
        access = allowed(find_access(call, plane.vendors, grant, arrived, head.method, fields))
        _refuse_if(admit(grant, access, call.row.ts_ns))
        credential = plane.usable_credential(grant, access.vendor)

        async with plane.turn(grant):
            # What it would cost: the body is read only as far as something in it decides.
            body, asked = await read_request(call, request, head, grant, access, credential, fields)
            # The decision. The money is set aside in the same step, without suspending.
            permit: Permit = allowed(call.authorize(grant, access, asked))

            async with Flight(call, grant, access, permit) as flight:
                # Durable before the first byte.
                await call.record()
                pool = plane.pools[access.vendor.name]
                connection = await flight.board(pool)
                # A last look: meanwhile the key may have been revoked, or its secret rotated or removed.
                _refuse_if(admit(grant, None, plane.vault.now_ns()))
                credential = plane.usable_credential(grant, access.vendor)
                length = len(body) if body is not None else head.length if head.has_body else None
                # The real key goes in, once, and the request out, once.
                outbound = outbound_head(access, pool.origin.authority, credential.revealed(), fields, length)
                flight.take_off(outbound + (body or b""))
                if body is None and head.has_body:
                    await _stream_up(request, connection)
                answer = await connection.answer(pool.limits.first_byte_s)
                request_id = answer.get(access.vendor.request_id_header)
                if request_id is not None and not plane.scrubber(credential).finds(request_id):
                    call.heard(request_id)
                # The answer goes back as it comes, without the secret; read to its end, it settles the hold.
                await _pass_back(plane, call, flight, connection, answer, credential, pool)
    except Refused as refused:
        await call.refuse(refused.refusal)
    except UpstreamError as error:
        await call.fail(error)
    except ClientGone:
        await call.refuse(Refusal(Code.MALFORMED_REQUEST, "the agent broke off its request"))


async def _stream_up(request: Request, connection: Connection) -> None:
    """Pass the body on as it comes."""
    try:
        async for piece in request.pieces():
            await connection.send_more(piece)
    except (BadBody, ClientGone):
        connection.close()  # half a request must not wait there for its other half
        raise UpstreamError(Failure.INVALID, "the agent broke off its request", sent=True) from None


async def _pass_back(
    plane: "Plane",
    call: Call,
    flight: Flight,
    connection: Connection,
    answer: Answer,
    credential: Credential,
    pool: Pool,
) -> None:
    vendor = credential.vendor
    if 300 <= answer.status < 400:
        raise Refused(Refusal(Code.UPSTREAM_REDIRECT, f"{vendor} answered with a redirect; none is followed"))
    if any(name == b"content-encoding" and value != b"identity" for name, value in answer.fields):
        raise Refused(
            Refusal(Code.UPSTREAM_INVALID, f"{vendor} encoded its answer though it was asked not to")
        )
    fields = _passed_on(answer, call.row.call_id)
    scrubber = plane.scrubber(credential)
    reflected = scrubber.finds(b"\n".join(text for pair in fields for text in pair))
    pieces = connection.body(pool.limits.silence_s)
    has_body = call.row.method != "HEAD"  # what it answers has a length all the same
    if has_body and answer.length is not None and answer.length <= _WHOLE_BYTES:
        whole = b"".join([piece async for piece in pieces])
        flight.landed(answer, whole, credential)
        if reflected or scrubber.finds(whole):
            raise Refused(_reflected(vendor))
        call.answered(answer.status)
        call.request.respond(answer.status, fields, whole)
        return
    if reflected:
        raise Refused(_reflected(vendor))
    call.row.status = answer.status  # on its way to the agent: what goes wrong from here on only cuts it
    read = await _stream_down(call, pieces, answer, fields, scrubber, keep=flight.reads_answer)
    flight.landed(answer, read, credential)
    call.answered(answer.status)
    call.request.end()


async def _stream_down(
    call: Call,
    pieces: AsyncIterator[bytes],
    answer: Answer,
    fields: Fields,
    scrubber: Scrubber,
    *,
    keep: bool,
) -> bytes:
    """Pass pieces on as they come; when the agent goes, the vendor's answer is still heard to its end."""
    stream = scrubber.stream()
    read = bytearray()
    there = True
    call.request.start(answer.status, fields, answer.length)
    async for piece in pieces:
        if keep and len(read) <= _READ_BYTES:
            read += piece
        passed = stream.feed(piece)
        if stream.found and there:
            log.warning("%s: the vendor repeated the real secret; its answer was cut", call.row.call_id)
            call.row.reason = "the vendor repeated the real secret; its answer was cut"
            call.request.cut()
            there = False
        there = there and await _send(call.request, passed)
    if there:
        await _send(call.request, stream.rest())
    return bytes(read)


async def _send(request: Request, piece: bytes) -> bool:
    """Whether the agent is still there."""
    if piece:
        try:
            await request.send(piece)
        except ClientGone:
            return False
    return True


def _refuse_if(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise Refused(refusal)


def _reflected(vendor: str) -> Refusal:
    return Refusal(Code.SECRET_REFLECTED, f"{vendor} repeated the real secret in its answer")


def _passed_on(answer: Answer, call_id: str) -> Fields:
    options = b",".join(value for name, value in answer.fields if name == b"connection")
    named = {name.strip(b" \t").lower() for name in options.split(b",")}
    fields = [
        (name, value) for name, value in answer.fields if name not in _NOT_PASSED_ON and name not in named
    ]
    fields.append((b"kbctl-call-id", call_id.encode()))
    return fields


@dataclass(slots=True)
class _Turns:
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
    _turns: dict[int, _Turns] = field(default_factory=dict)
    _scrubbers: dict[str, tuple[int, Scrubber]] = field(default_factory=dict)

    async def handle(self, request: Request) -> None:
        """Serve one request whose head passed the gate."""
        await exchange(self, request)

    async def reject(self, request: Request, bad: BadHead) -> None:
        """Record and answer one whose head did not."""
        await Call(self.vault, request, self.vendors, self.overridden).reject(bad)

    def usable_credential(self, grant: Grant, vendor: Vendor) -> Credential:
        """The credential of a call that may leave now.

        Raises:
            Refused: there is none, or we are stopping.
        """
        if self.draining:
            raise Refused(Refusal(Code.SHUTTING_DOWN, "the daemon is stopping", retry_after_s=5))
        return allowed(find_credential(self.credentials, grant, vendor))

    def scrubber(self, credential: Credential) -> Scrubber:
        """What to look for in this credential's answers; an older secret's needles go with it."""
        kept = self._scrubbers.get(credential.name)
        if kept is None or kept[0] != credential.version:
            kept = credential.version, Scrubber(credential.revealed().reveal())
            self._scrubbers[credential.name] = kept
        return kept[1]

    @asynccontextmanager
    async def turn(self, grant: Grant) -> AsyncIterator[None]:
        """One of the key's places, at once or in line.

        Raises:
            Refused: none came free in time.
        """
        turns = self._turns.setdefault(grant.no, _Turns())
        if turns.busy < self.busy_per_key:
            turns.busy += 1
        else:
            await self._wait_turn(grant, turns)
        try:
            yield
        finally:
            self._pass_turn(grant, turns)

    async def _wait_turn(self, grant: Grant, turns: _Turns) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        turns.waiting.append(waiter)
        try:
            async with asyncio.timeout(self.turn_s):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self._pass_turn(grant, turns)  # it came together with the end of our patience
            elif waiter in turns.waiting:
                turns.waiting.remove(waiter)
            if not isinstance(error, TimeoutError):
                raise
            raise Refused(
                Refusal(
                    Code.RATE_LIMITED,
                    f"key {grant.key_id} has {self.busy_per_key} calls under way already",
                    "send fewer at once",
                    retry_after_s=1,
                )
            ) from None

    def _pass_turn(self, grant: Grant, turns: _Turns) -> None:
        while turns.waiting:
            waiter = turns.waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        turns.busy -= 1
        if turns.busy == 0:
            self._turns.pop(grant.no, None)
