"""Calls: what agents did and were refused, and what became of a call whose answer never came.

What must stay true: money that may have moved is freed by an operator's word alone, never by time; a filter
that names a tenant or a label shows nobody else's calls.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.control.call_filter import CALL_QUERY, wanted_calls
from kbctld.control.keys import KeyHandlers, next_page, unrecorded
from kbctld.control.parameters import Whole
from kbctld.control.routes import Ask, Reply, Route
from kbctld.control.terms import usage
from kbctld.core.ledger import Outcome
from kbctld.core.money import nano_from_usd
from kbctld.store import queries
from kbctld.store.journal import JournalError
from kbctld.vault import Vault

_CALL_ID = re.compile(r"call_[0-9A-Za-z]{1,16}", re.ASCII)
_NOTE = re.compile(r"[^\x00-\x1f\x7f]{0,200}")


@dataclass(slots=True)
class CallHandlers:
    """The handlers and what they work on.

    Attributes:
        keys: finds the key that a filter names.
    """

    vault: Vault
    keys: KeyHandlers

    def routes(self) -> list[Route]:
        """Their part of the table."""
        return [
            Route(
                *("GET", "/audit", self.list, "read", "Calls, newest first"),
                gives=list[wire.Call],
                query={
                    **CALL_QUERY,
                    "limit": Whole("Rows of a page.", 1, queries.LIMIT_MAX, 100),
                    "before": Whole('The cursor of a page: follow `Link: rel="next"`.', 1, 2**62),
                },
                errors=(404,),
            ),
            Route(
                *("GET", "/calls/{call}", self.show, "read", "Show a call"),
                gives=wire.Call,
                errors=(404,),
            ),
            Route(
                *("POST", "/calls/{call}/resolve", self.resolve, "admin", "Say what became of a call"),
                takes=wire.ResolveRequest,
                gives=wire.Call,
                errors=(404, 409, 503),
            ),
        ]

    async def list(self, ask: Ask) -> Reply:
        await self.vault.journal.barrier()
        before = ask.text("before")
        wanted = replace(
            await wanted_calls(ask, self.vault, self.keys),
            before_no=None if before is None else int(before),
            limit=int(ask.text("limit") or 100),
        )
        found, cursor = await queries.calls(self.vault.journal.database.readers, wanted)
        fields: tuple[tuple[bytes, bytes], ...] = ()
        if cursor is not None:
            fields = ((b"Link", f'<{next_page("/audit", ask, cursor)}>; rel="next"'.encode()),)
        return Reply(found, fields=fields)

    async def show(self, ask: Ask) -> Reply:
        return Reply(await self._named(ask.parameters[0]))

    async def resolve(self, ask: Ask) -> Reply:
        request = wire.decode(ask.body, wire.ResolveRequest)
        note = request.note or ""
        if not _NOTE.fullmatch(note):
            raise usage("invalid_request", "`note` takes at most 200 characters, no control characters")
        spent_nano = None
        if request.spent_usd is not None:
            try:
                spent_nano = nano_from_usd(request.spent_usd)
            except ValueError as error:
                raise usage("invalid_request", f"`spent_usd`: {error}") from None
        call = await self._named(ask.parameters[0])
        # From here to the decision nothing is awaited: a retry could end the call meanwhile.
        hold = self.vault.unresolved(call.call_id)
        if hold is None:
            raise _not_unknown(call)
        details: dict[str, Any] = {"held_usd": call.amount_usd, "spent_usd": request.spent_usd}
        if note:
            details["note"] = note
        try:
            await self.vault.resolve(hold, spent_nano, ask.actor, details)
        except JournalError as error:
            raise unrecorded(error) from None
        return Reply(await self._named(call.call_id))

    async def _named(self, reference: str) -> wire.Call:
        """The one call that an id, or the beginning of one, means."""
        found: list[wire.Call] = []
        if _CALL_ID.fullmatch(reference):
            await self.vault.journal.barrier()
            found = await queries.calls_named(self.vault.journal.database.reader, reference)
        if len(found) == 1:
            return found[0]
        shown = reference[:100]
        if found:
            raise usage("call_ambiguous", f"{shown} could be several calls; give more of the call id")
        raise KbctlError("call_unknown", f"there is no call {shown}", "kbctl audit", Exit.NOT_FOUND)


def _not_unknown(call: wire.Call) -> KbctlError:
    look_at = call.replay_of or call.call_id
    if call.replay_of is not None:
        why = f"is a retry of {call.replay_of}, which holds the money"
    elif call.outcome in (Outcome.PENDING, Outcome.UNKNOWN):
        why = "is still under way"
    else:
        why = f"has a known outcome: {call.outcome}"
    return KbctlError("call_not_unknown", f"{call.call_id} {why}", f"kbctl explain {look_at}", Exit.REFUSED)
