"""A look-up: what the vendor says of an object, read with the real key before a call on it is priced.

What must stay true: to the vendor it is a call like any other: its row is durable before its first byte, it
keeps to the vendor's rate, it acts in the account of the call that needs it, and the secret goes nowhere
else. It moves no money, takes its bounded time within its call's, and nothing of it reaches the agent.
"""

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from kbctld.core.grant import Grant
from kbctld.core.ledger import day_of
from kbctld.core.lookup import Found, Missed, Plan, read_found
from kbctld.core.policy import Access, admit
from kbctld.core.policy import Request as Asked
from kbctld.core.refusal import Code, Refusal
from kbctld.credentials import Credential
from kbctld.proxy.asking import request_digest
from kbctld.proxy.call import Call, Refused, allowed
from kbctld.proxy.inject import outbound_head
from kbctld.proxy.shares import Turn
from kbctld.proxy.upstream import Answer, Connection, UpstreamError
from kbctld.store.journal import CallRow, JournalError

if TYPE_CHECKING:
    from kbctld.proxy.exchange import Plane

_ANSWER_BYTES = 256 * 1024


async def look_up(
    plane: "Plane", call: Call, turn: Turn, grant: Grant, access: Access, credential: Credential, asked: Asked
) -> Asked:
    """The same request, with what the vendor says of the object that its price needs, if it needs any.

    Raises:
        Refused: the call can't be made whatever it would cost, or its look-up can't be recorded.
    """
    plan = allowed(plane.vault.plan(grant, access, asked))
    if plan is None:
        return asked
    operation, parameters = access.vendor.match("GET", plan.target.path, plan.target.segments)
    reads = replace(access, method="GET", target=plan.target, operation=operation, parameters=parameters)
    row = _row(plane, call, grant, reads)
    try:
        await plane.vault.append(row)
    except JournalError as error:
        why = f"a look-up can't be recorded: {error}"
        raise Refused(Refusal(Code.AUDIT_UNAVAILABLE, why, "kbctl status")) from None
    started_ns = time.perf_counter_ns()
    try:
        found = await _ask(plane, turn, grant, reads, credential, plan, row)
    finally:
        row.latency_us = row.upstream_us = (time.perf_counter_ns() - started_ns) // 1000
        plane.vault.journal.finish(row)
        plane.tally.ended(row.vendor, row.policy_check_result, row.outcome)
    return replace(asked, looked_up=found)


def _row(plane: "Plane", call: Call, grant: Grant, reads: Access) -> CallRow:
    """Ours, and told from the agent's by its reason. No limit of the key counts it."""
    row = plane.vault.new_row()
    row.key_no, row.vendor, row.upstream = grant.no, reads.vendor.name, call.row.upstream
    row.method, row.endpoint, row.operation = "GET", reads.target.path, reads.title
    row.request_digest, row.requested_nano = request_digest(reads, {}, b""), 0
    row.usage_after_nano = grant.scope.account.used(day_of(row.ts_ns))
    row.reason = f"looked up by kbctl to price {call.row.call_id}"
    return row


async def _ask(
    plane: "Plane",
    turn: Turn,
    grant: Grant,
    reads: Access,
    credential: Credential,
    plan: Plan,
    row: CallRow,
) -> Found | Missed:
    row.outcome = "voided"  # until it has answered; a read moves nothing, so nobody need resolve it
    pool, there = plane.way(reads)
    asked_for = f"{reads.vendor.name} was asked for {plan.target.path} and"
    try:
        async with asyncio.timeout(pool.limits.lookup_s):
            await turn.borrow("read")
            connection = await pool.connection()
            try:
                # As before every call: meanwhile the key may have been revoked, or the secret rotated.
                refusal = admit(grant, None, plane.vault.now_ns())
                if refusal is not None:
                    raise Refused(refusal)
                credential = plane.usable_credential(grant, reads.vendor)
                fields = _fields(reads)
                data = outbound_head(there, pool.origin.authority, credential, "bearer", fields, None)
                connection.send(data, head_only=False)
                answer = await connection.answer(pool.limits.lookup_s)
                row.status = answer.status
                request_id = answer.get(reads.vendor.request_id_header)
                if request_id is not None and not plane.scrubber(credential).finds(request_id):
                    row.vendor_request_id = request_id.decode("latin-1")[:200]
                raw = await _whole(connection, answer, pool.limits.lookup_s)
            finally:
                connection.release()
    except TimeoutError:
        return Missed(f"{asked_for} did not answer within {pool.limits.lookup_s:g} s")
    except UpstreamError as error:
        return Missed(f"{asked_for} gave no answer: {error.detail}")
    if answer.status != 200:
        return Missed(f"{asked_for} answered with status {answer.status}")
    row.outcome = "posted"
    if raw is None:
        return Missed(f"{asked_for} its answer is too large or encoded")
    found = read_found(plan.table, raw)
    return Missed(f"{asked_for} {found.why}") if isinstance(found, Missed) else found


def _fields(reads: Access) -> list[tuple[bytes, bytes]]:
    """Nothing of the agent's but the account, which was allowed: its version of the API might tell less."""
    said = {"user-agent": "kbctl", **reads.vendor.file.lookup_headers}
    said |= {name: value for name, value in reads.accounts.items() if name in reads.vendor.account_headers}
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in said.items()]


async def _whole(connection: Connection, answer: Answer, silence_s: float) -> bytes | None:
    """Its body; None where that is too large, or encoded though it was asked not to be."""
    if any(name == b"content-encoding" and value != b"identity" for name, value in answer.fields):
        return None
    read = bytearray()
    async for piece in connection.body(silence_s):
        read += piece
        if len(read) > _ANSWER_BYTES:
            return None
    return bytes(read)
