"""A look-up: what the vendor says of an object, read with the real key before a call on it is priced.

What must stay true: it keeps to the vendor's rate, acts in the account of the call that needs it, and takes
its bounded time within its call's. What holds for every read of ours is in ``ours``.
"""

import asyncio

from msgspec import structs

from kbctld.core.grant import Grant
from kbctld.core.ledger import day_of
from kbctld.core.lookup import Found, Missed, Plan, read_found
from kbctld.core.policy import Access, admit
from kbctld.core.policy import Request as Asked
from kbctld.core.refusal import Code, Refusal
from kbctld.credentials import Credential
from kbctld.proxy.asking import request_digest
from kbctld.proxy.call import Call, Refused, allowed
from kbctld.proxy.ours import hear, new_row, own_fields, recorded
from kbctld.proxy.plane import Plane
from kbctld.proxy.shares import Turn
from kbctld.proxy.upstream import UpstreamError
from kbctld.store.journal import CallRow, JournalError

_ANSWER_BYTES = 256 * 1024


async def look_up(plane: Plane, call: Call, turn: Turn, grant: Grant, access: Access, asked: Asked) -> Asked:
    """The same request, with what the vendor says of the object that its price needs, if it needs any.

    Raises:
        Refused: the call can't be made whatever it would cost, or its look-up can't be recorded.
    """
    plan = allowed(plane.vault.plan(grant, access, asked))
    if plan is None:
        return asked
    operation, parameters = access.vendor.match("GET", plan.target.path, plan.target.segments)
    reads = structs.replace(
        access, method="GET", target=plan.target, operation=operation, parameters=parameters
    )
    row = _row(plane, call, grant, reads)
    try:
        async with recorded(plane, row):
            found = await _ask(plane, turn, grant, reads, plan, row)
    except JournalError as error:
        why = f"a look-up can't be recorded: {error}"
        raise Refused(Refusal(Code.AUDIT_UNAVAILABLE, why, "kbctl status")) from None
    return structs.replace(asked, looked_up=found)


def _row(plane: Plane, call: Call, grant: Grant, reads: Access) -> CallRow:
    """Ours, and told from the agent's by its reason. No limit of the key counts it."""
    row = new_row(plane, reads, f"looked up by kbctl to price {call.row.call_id}")
    row.key_no, row.request_digest = grant.no, request_digest(reads, {}, b"")
    row.usage_after_nano = grant.scope.account.used(day_of(row.ts_ns))
    return row


async def _ask(
    plane: Plane, turn: Turn, grant: Grant, reads: Access, plan: Plan, row: CallRow
) -> Found | Missed:
    patience_s = plane.way(reads)[0].limits.lookup_s
    asked_for = f"{reads.vendor.name} was asked for {plan.target.path} and"

    def ready() -> Credential:
        # As before every call: meanwhile the key may have been revoked, or the secret rotated.
        refusal = admit(grant, None, plane.vault.now_ns())
        if refusal is not None:
            raise Refused(refusal)
        return plane.usable_credential(grant, reads.vendor)

    try:
        async with asyncio.timeout(patience_s):
            await turn.borrow("read")
            heard = await hear(
                plane, reads, row, ready, fields=_fields(reads), patience_s=patience_s, most=_ANSWER_BYTES
            )
    except TimeoutError:
        return Missed(f"{asked_for} did not answer within {patience_s:g} s")
    except UpstreamError as error:
        return Missed(f"{asked_for} gave no answer: {error.detail}")
    if heard.status != 200:
        return Missed(f"{asked_for} answered with status {heard.status}")
    if heard.raw is None:
        return Missed(f"{asked_for} its answer is too large or encoded")
    found = read_found(plan.table, heard.raw)
    return Missed(f"{asked_for} {found.why}") if isinstance(found, Missed) else found


def _fields(reads: Access) -> list[tuple[bytes, bytes]]:
    """Nothing of the agent's but the account, which was allowed."""
    account = {name: value for name, value in reads.accounts.items() if name in reads.vendor.account_headers}
    return own_fields(reads) + [
        (name.encode("ascii"), value.encode("latin-1")) for name, value in account.items()
    ]
