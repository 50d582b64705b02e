"""One request of an agent, from its head to the end of its answer: ``exchange``, read top to bottom.

Its order is the product's promise. What must stay true: every way out of it leaves one row, and ends a hold
by what was proved.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

from kbctld.core.notice import notice
from kbctld.core.policy import Permit, admit
from kbctld.core.refusal import Code, Refusal
from kbctld.core.target import read_target
from kbctld.core.vendor import Vendor
from kbctld.credentials import Credential
from kbctld.http1.server import BadBody, ClientGone, Fields, Request
from kbctld.proxy.asking import (
    find_access,
    plain_fields,
    read_body,
    read_request,
    stranger,
    write_bounds,
)
from kbctld.proxy.call import Call, Refused, allowed
from kbctld.proxy.flight import Flight
from kbctld.proxy.inject import outbound_head
from kbctld.proxy.links import LINKS_BYTES, turned
from kbctld.proxy.looking import look_up
from kbctld.proxy.plane import Plane
from kbctld.proxy.scrub import Scrubber
from kbctld.proxy.sse import UsageStream
from kbctld.proxy.upstream import Answer, Connection, Failure, Pool, UpstreamError

log = logging.getLogger("kbctld.proxy")

# An answer up to this size is passed on in one write, once it is whole: a refusal can still replace it.
_WHOLE_BYTES = 64 * 1024
# How long a stream is heard when the agent does not hear it any more.
_LAST_WORDS_S = 1.0
_NOT_PASSED_ON = frozenset(
    b"connection keep-alive proxy-authenticate proxy-connection te trailer transfer-encoding upgrade "
    b"content-length set-cookie alt-svc strict-transport-security".split()
)


async def exchange(plane: Plane, request: Request) -> None:
    """Serve one request whose head passed the gate."""
    head = request.head
    assert head is not None  # noqa: S101 - for the type checker
    call = Call(plane.vault, request, plane.vendors, plane.overridden, plane.tally)
    try:
        # Who asks, and for what: refused before the body is read. A page or a foreign Host is turned away
        # before any key is read.
        arrived = allowed(read_target(head.target, plane.prefixes))
        call.arrived(arrived)
        _refuse_if(stranger(head, plane.own_hosts))
        fields = plain_fields(head)
        slots = dict(fields)
        grant = allowed(await call.identify(fields, slots, plane.key_headers))
        access = allowed(
            find_access(call, plane.vendors, plane.credentials, grant, arrived, head.method, fields)
        )
        _refuse_if(admit(grant, access, call.row.ts_ns))
        credential = plane.usable_credential(grant, access.vendor)
        _refuse_if(plane.overload(request, grant))

        async with plane.turn(grant, access, credential) as turn:
            # The body is read only as far as something in it decides; then nothing of the agent's is missing.
            body = await read_body(request, head, grant, access, slots)
            # Its turn at the real key, which all agents share.
            await turn.comes()
            # What it would cost.
            apart = access.vendor.name in plane.apart
            body, asked, hides_usage = await read_request(
                call, head, grant, access, credential, slots, body, apart=apart
            )
            # What only the vendor knows of the object that it is about.
            asked = await look_up(plane, call, turn, grant, access, asked)
            # The decision. The money is set aside in the same step, without suspending.
            permit: Permit = allowed(call.authorize(grant, access, asked))
            # What the vendor itself can keep to, where it takes a bound.
            body = write_bounds(call, access, permit, asked, body)

            async with Flight(
                call, grant, access, permit, turn, plane.aloft, hides_usage=hides_usage
            ) as flight:
                # Durable before the first byte.
                await call.record(permit.attempt)
                pool, access = plane.way(access)
                connection = await flight.board(pool)
                # A last look: meanwhile the key may have been revoked, or its secret rotated or removed.
                _refuse_if(admit(grant, None, plane.vault.now_ns()))
                before, credential = credential, plane.usable_credential(grant, access.vendor)
                _refuse_if(_moved(before, credential))
                length = len(body) if body is not None else head.length if head.has_body else None
                # The real key goes in, once, and the request out, once.
                fields = plane.kept_apart(grant, access.vendor, fields)
                outbound = outbound_head(access, pool.origin.authority, credential, call.slot, fields, length)
                flight.take_off(outbound + (body or b""))
                if body is None and head.has_body:
                    await _stream_up(request, connection)
                answer = await connection.answer(pool.limits.first_byte_s)
                request_id = answer.get(access.vendor.request_id_header)
                if request_id is not None and not plane.scrubber(credential).finds(request_id):
                    call.heard(request_id)
                # The answer goes back as it comes, without the secret; read to its end, it settles the hold.
                await _pass_back(plane, call, flight, connection, answer, credential, pool, access.vendor)
    except Refused as refused:
        await call.refuse(refused.refusal)
    except UpstreamError as error:
        await call.fail(error)
    except ClientGone:
        await call.left()


async def _stream_up(request: Request, connection: Connection) -> None:
    """Pass the body on as it comes."""
    try:
        async for piece in request.pieces():
            await connection.send_more(piece)
    except (BadBody, ClientGone):
        connection.close()  # half a request must not wait there for its other half
        raise UpstreamError(Failure.INVALID, "the agent broke off its request", sent=True) from None


async def _pass_back(
    plane: Plane,
    call: Call,
    flight: Flight,
    connection: Connection,
    answer: Answer,
    credential: Credential,
    pool: Pool,
    file: Vendor,
) -> None:
    vendor = credential.vendor
    if 300 <= answer.status < 400:
        raise Refused(Refusal(Code.UPSTREAM_REDIRECT, f"{vendor} answered with a redirect; none is followed"))
    for name, value in answer.fields:
        if name == b"content-encoding" and value != b"identity":
            raise Refused(
                Refusal(Code.UPSTREAM_INVALID, f"{vendor} encoded its answer though it was asked not to")
            )
    fields = _passed_on(answer, call, own_key=file.name in plane.apart)
    scrubber = plane.scrubber(credential)
    reflected = scrubber.finds(b"\n".join([text for pair in fields for text in pair]))
    events = flight.events(answer)
    silence_s = pool.limits.silence_s if events is None else pool.limits.stream_silence_s
    has_body = call.row.method != "HEAD"  # what it answers has a length all the same
    has_links = file.hosts is not None and 200 <= answer.status < 300 and _is_json(answer)
    whole: bytes | None = None
    pieces = connection.body(silence_s)
    if has_body and has_links:
        whole, pieces = await _up_to(LINKS_BYTES, pieces)
    elif has_body and answer.length is not None and answer.length <= _WHOLE_BYTES:
        whole = await connection.whole(silence_s)
    if whole is not None:
        shown = whole if events is None else events.feed(whole) + events.rest()
        flight.landed(answer, whole, credential)
        if reflected or scrubber.finds(whole) or (shown is not whole and scrubber.finds(shown)):
            raise Refused(_reflected(vendor))
        call.answered(answer.status)
        if has_links:
            shown = turned(file, _authority(call.request), whole)
        call.request.respond(answer.status, _noticed(fields, call, file), shown)
        return
    if reflected:
        raise Refused(_reflected(vendor))
    call.row.status = answer.status  # on its way to the agent: what goes wrong from here on only ends it
    call.events = events
    fields = _noticed(fields, call, file)
    if events is None:
        read = await _stream_down(call, flight, pieces, answer, fields, scrubber)
    else:
        read = b""
        await _stream_events(call, events, pieces, answer, fields, scrubber)
    flight.landed(answer, read, credential)
    call.answered(answer.status)
    call.request.end()


async def _up_to(bound: int, pieces: AsyncIterator[bytes]) -> tuple[bytes | None, AsyncIterator[bytes]]:
    """All of a body that is no larger than that; of a larger one None, and its pieces from the first on."""
    read: list[bytes] = []
    size = 0
    async for piece in pieces:
        read.append(piece)
        size += len(piece)
        if size > bound:
            break
    else:
        return b"".join(read), pieces

    async def again() -> AsyncIterator[bytes]:
        for piece in read:
            yield piece
        async for piece in pieces:
            yield piece

    return None, again()


def _is_json(answer: Answer) -> bool:
    kind = (answer.get(b"content-type") or b"").partition(b";")[0].strip().lower()
    return kind == b"application/json"


def _authority(request: Request) -> str:
    """How the agent addresses us: one of our own names, as ``stranger`` has seen to."""
    host = request.head.get(b"host") if request.head is not None else None
    return (host or b"").decode("ascii")


async def _stream_down(
    call: Call,
    flight: Flight,
    pieces: AsyncIterator[bytes],
    answer: Answer,
    fields: Fields,
    scrubber: Scrubber,
) -> bytes:
    """Pass pieces on as they come; when the agent goes, the vendor's answer is still heard to its end."""
    stream = scrubber.stream()
    read = bytearray()
    keeps = flight.reads_up_to if flight.reads_answer else -1
    there = True
    call.request.start(answer.status, fields, answer.length)
    async for piece in pieces:
        if len(read) <= keeps:
            read += piece
        # Nothing comes behind the scrubber: what leaves it leaves the daemon.
        passed = stream.feed(piece)
        if stream.found and there:
            _note_reflected(call)
            call.request.cut()
            there = False
        there = there and await _send(call.request, passed)
    if there:
        await _send(call.request, stream.rest())
    return bytes(read)


async def _stream_events(
    call: Call,
    events: UsageStream,
    pieces: AsyncIterator[bytes],
    answer: Answer,
    fields: Fields,
    scrubber: Scrubber,
) -> None:
    """Pass events on as they come. Nobody pays for words that nobody hears: when the agent goes, we go too.

    Raises:
        ClientGone: it went, and the vendor had more to say.
        Refused: the vendor repeated the real secret, and had more to say.
    """
    stream = scrubber.stream()
    # No length: an event may be left out, or one that says why it ends may be put in.
    call.request.start(answer.status, fields, None)
    async for piece in pieces:
        passed = stream.feed(events.feed(piece))
        if stream.found:
            _note_reflected(call)
            reflected = _reflected(call.row.vendor or "the vendor")
            await call.break_off(reflected)
            if await _ends_by_itself(events, pieces):
                return
            raise Refused(reflected)
        if not await _send(call.request, passed):
            if await _ends_by_itself(events, pieces):
                return
            raise ClientGone
    await _send(call.request, stream.feed(events.rest()) + stream.rest())


async def _ends_by_itself(events: UsageStream, pieces: AsyncIterator[bytes]) -> bool:
    """Listen a moment longer: a stream that is about to end still tells what it cost."""
    try:
        async with asyncio.timeout(_LAST_WORDS_S):
            async for piece in pieces:
                events.feed(piece)
    except TimeoutError:
        return False
    return True


def _note_reflected(call: Call) -> None:
    log.warning("%s: the vendor repeated the real secret; its answer was cut", call.row.call_id)
    call.row.reason = "the vendor repeated the real secret; its answer was cut"


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


def _moved(before: Credential, now: Credential) -> Refusal | None:
    """A path that names the account of a credential must not leave with another account's."""
    if before is now or before.fields == now.fields:
        return None
    return Refusal(Code.CREDENTIAL_UNAVAILABLE, f"the account of {now.name} was changed just now", "retry")


def _reflected(vendor: str) -> Refusal:
    return Refusal(Code.SECRET_REFLECTED, f"{vendor} repeated the real secret in its answer")


def _passed_on(answer: Answer, call: Call, *, own_key: bool) -> Fields:
    """The vendor's fields that agents get; with ``own_key`` its echo of an idempotency key as it was sent."""
    options = b",".join([value for name, value in answer.fields if name == b"connection"])
    named = {name.strip(b" \t").lower() for name in options.split(b",")} if options else ()
    fields = [
        (name, value) for name, value in answer.fields if name not in _NOT_PASSED_ON and name not in named
    ]
    head = call.request.head
    if own_key and head is not None and call.vendor is not None and call.vendor.retry_header:
        name = call.vendor.retry_header
        fields = [(each, (head.get(name) or value) if each == name else value) for each, value in fields]
    fields.append((b"kbctl-call-id", call.row.call_id.encode()))
    return fields


def _noticed(fields: Fields, call: Call, vendor: Vendor) -> Fields:
    """With a word on the cap that has little left, where the vendor's SDKs look for such; its own stays."""
    said = notice(call.grant, call.vault.now_ns()) if call.grant is not None else None
    if said is None:
        return fields
    told = [(b"kbctl-notice", said.encode("ascii"))]
    header = vendor.file.notice_header
    if header is not None:
        name = header.lower().encode("ascii")
        own = [value for each, value in fields if each == name]
        told.append((name, b"; ".join([*own, said.encode("ascii")])))
        fields = [pair for pair in fields if pair[0] != name]
    return [*fields, *told]
