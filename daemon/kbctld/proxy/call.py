"""One attempt of an agent: its audit row from the first line to the last, and every answer of our own.

What must stay true: whatever happens, the attempt ends as exactly one row, and a refusal that the agent
gets is the one that the row tells. Before the row is recorded a refusal makes it; afterwards it completes it.
"""

import time
from collections.abc import Mapping
from typing import TypeVar

from msgspec import Struct

from kbctld.core.grant import Grant
from kbctld.core.ledger import Attempt
from kbctld.core.policy import Access, Permit, Request, admit
from kbctld.core.refusal import Code, Refusal
from kbctld.core.slots import find_vault_key
from kbctld.core.tally import Tally
from kbctld.core.target import Arrived
from kbctld.core.vault_key import digest
from kbctld.core.vendor import Vendor
from kbctld.core.vendor_file import AuthScheme
from kbctld.http1.gate import BadHead
from kbctld.http1.server import ClientGone, Fields
from kbctld.http1.server import Request as HttpRequest
from kbctld.proxy.answer import refusal_answer
from kbctld.proxy.sse import UsageStream
from kbctld.proxy.upstream import Failure, UpstreamError
from kbctld.store.journal import JournalError
from kbctld.vault import Vault

T = TypeVar("T")

_ENDPOINT_MAX = 2000
_FAILURE = {
    Failure.UNREACHABLE: Code.UPSTREAM_UNREACHABLE,
    Failure.TIMEOUT: Code.UPSTREAM_TIMEOUT,
    Failure.INVALID: Code.UPSTREAM_INVALID,
    Failure.REVOKED: Code.UPSTREAM_INVALID,
    Failure.STOPPING: Code.SHUTTING_DOWN,
}


class Refused(Exception):  # noqa: N818 - an outcome, not a defect
    """Ends an exchange with a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


def allowed(verdict: T | Refusal) -> T:
    """What a check gave, unless it gave a refusal.

    Raises:
        Refused: it did.
    """
    if isinstance(verdict, Refusal):
        raise Refused(verdict)
    return verdict


class _Known(Struct, frozen=True):
    """What the same bytes on the same connection were found to be the last time."""

    said: tuple[bytes | None, bytes | None, list[bytes]]
    slot: AuthScheme
    digest: bytes


class Call:
    """One attempt.

    Attributes:
        row: what the audit will say.
        grant: whose key it is, once that is known.
        vendor: whose shape a refusal takes, once that is known.
        slot: where the agent sent its vault key.
        flew: whether bytes of it have left.
        events: the stream of events that answers it, once that has begun: a refusal can be told in it.
    """

    def __init__(
        self,
        vault: Vault,
        request: HttpRequest,
        vendors: Mapping[str, Vendor],
        overridden: Mapping[str, str],
        tally: Tally,
    ) -> None:
        self.vault = vault
        self.request = request
        self.row = vault.new_row()
        self.grant: Grant | None = None
        self.vendor: Vendor | None = None
        self.slot: AuthScheme = "bearer"
        self.flew = False
        self.events: UsageStream | None = None
        self.took_off_ns = 0
        self._vendors = vendors
        self._overridden = overridden
        self._tally = tally
        self._recorded = False
        self._started_ns = time.perf_counter_ns()
        if request.head is not None:
            self.row.method = request.head.method
            self.row.endpoint = request.head.target.partition("?")[0][:_ENDPOINT_MAX]

    # --- what it is -----------------------------------------------------------------------------

    async def identify(
        self, fields: Fields, slots: Mapping[bytes, bytes], key_headers: frozenset[bytes]
    ) -> Grant | Refusal:
        """Find whose key it is; the row is that key's from here on, even if the key is no good.

        Args:
            fields: of the request.
            slots: the same by name.
            key_headers: in which vendors take a key beside the usual ones.
        """
        own = [value for name, value in fields if name in key_headers]
        said = (slots.get(b"authorization"), slots.get(b"x-api-key"), own)
        known = self.request.connection.known
        if not isinstance(known, _Known) or known.said != said:
            shown = find_vault_key(*said)
            if isinstance(shown, Refusal):
                return shown
            known = self.request.connection.known = _Known(said, shown.slot, digest(shown.key))
        self.slot = known.slot
        try:
            grant = await self.vault.find_digest(known.digest)
        except JournalError as error:
            return Refusal(Code.AUDIT_UNAVAILABLE, f"the key can't be looked up: {error}", "kbctl status")
        if grant is not None:
            self.grant, self.row.key_no = grant, grant.no
            if len(grant.vendors) == 1:
                self.name_vendor(grant.vendors[0])
        refusal = admit(grant, None, self.row.ts_ns)
        return refusal or grant or Refusal(Code.KEY_UNKNOWN, "no vault key like this was issued here")

    def arrived(self, arrived: Arrived) -> None:
        """The path's grammar was good: the row tells it without the vendor's prefix."""
        self.row.endpoint = arrived.path[:_ENDPOINT_MAX]
        if arrived.prefix is not None:
            self.name_vendor(arrived.prefix)

    def name_vendor(self, name: str) -> None:
        """From here on the row and the shape of a refusal are this vendor's."""
        self.vendor = self._vendors.get(name)
        self.row.vendor = name
        self.row.upstream = self._overridden.get(name)

    def authorize(self, grant: Grant, access: Access, asked: Request) -> Permit | Refusal:
        """Decide and set the money aside, now."""
        self.row.ts_ns = self.vault.now_ns()
        return self.vault.authorize(grant, access, asked, self.row)

    async def record(self, attempt: Attempt) -> None:
        """Make the row durable, with the money that it stands on; until this returns nothing may leave.

        Raises:
            Refused: it could not be recorded, or of a retry the call whose hold it shares could not.
        """
        try:
            await self.vault.append(self.row)
        except JournalError as error:
            raise Refused(
                Refusal(Code.AUDIT_UNAVAILABLE, f"the call can't be recorded: {error}", "kbctl status")
            ) from None
        self._recorded = True
        if attempt.hold.row.lost:
            # Nothing on disk says what is held: after a crash nobody would know.
            sentence = "the call that this one repeats could not be recorded"
            raise Refused(Refusal(Code.AUDIT_UNAVAILABLE, sentence, "kbctl status"))

    def took_off(self) -> None:
        """The first byte has left."""
        self.flew = True
        self.took_off_ns = time.perf_counter_ns()

    def heard(self, vendor_request_id: bytes | None) -> None:
        """The vendor has begun to answer, under this id of its own."""
        if vendor_request_id is not None:
            self.row.vendor_request_id = vendor_request_id.decode("latin-1")[:200]

    # --- how it ends ----------------------------------------------------------------------------

    def answered(self, status: int) -> None:
        """The vendor's answer has come in whole."""
        now_ns = time.perf_counter_ns()
        self.row.status = status
        self.row.latency_us = (now_ns - self._started_ns) // 1000
        self.row.upstream_us = (now_ns - self.took_off_ns) // 1000
        self.vault.journal.finish(self.row)
        self._tally.ended(self.row.vendor, self.row.policy_check_result, self.row.outcome)
        self._tally.took(self.row.latency_us - self.row.upstream_us)

    async def refuse(self, refusal: Refusal, *, was_allowed: bool = False) -> None:
        """Record and answer a refusal: of the call, or of passing on its answer.

        Args:
            refusal: why.
            was_allowed: the verdict on the call stays what it was; only its answer is ours.
        """
        row = self.row
        row.reason = refusal.sentence
        if not self.request.started:
            row.status = refusal.http_status
        row.latency_us = (time.perf_counter_ns() - self._started_ns) // 1000
        if not (self.flew or was_allowed):
            row.policy_check_result = refusal.code.value
        if self._recorded:
            self.vault.journal.finish(row)
        else:
            row.outcome, row.amount_nano = "refused", 0
            await self.vault.journal.refuse(row)
        self._tally.ended(row.vendor, row.policy_check_result, row.outcome)
        if self.request.started:
            await self.break_off(refusal)
            return
        self.request.respond(*self._told(refusal))

    async def break_off(self, refusal: Refusal) -> None:
        """End an answer of which a part is out, so that the part does not pass for the whole.

        A stream of events ends with one that tells the refusal, anything else with its connection.
        """
        if self.request.ended:
            return
        if self.events is None or self.events.lost:
            self.request.cut()
            return
        *_, body = self._told(refusal)
        try:
            await self.request.send(self.events.error(body))
        except ClientGone:
            return
        self.request.end()

    async def left(self) -> None:
        """Record that the agent broke off: its request, or the stream of events that answers it."""
        if not self.request.started:
            await self.refuse(Refusal(Code.MALFORMED_REQUEST, "the agent broke off its request"))
            return
        fate = (
            "what it cost had been told, and is counted"
            if self.row.outcome == "posted"
            else "what it cost had not been told, so what it asked for stays held"
        )
        await self.refuse(
            Refusal(Code.MALFORMED_REQUEST, f"the agent left the stream before its end; {fate}")
        )

    def _told(self, refusal: Refusal) -> tuple[int, Fields, bytes]:
        key_id = self.grant.key_id if self.grant else None
        return refusal_answer(refusal, self.vendor, self.row.call_id, key_id)

    async def fail(self, error: UpstreamError) -> None:
        """Record and answer that the vendor gave no usable answer."""
        fate = (
            "whether it acted is not known, so what the call asked for stays held"
            if error.sent
            else "nothing was sent, so nothing is held"
        )
        if self.row.outcome == "posted":
            fate = "but it had told what the call cost, which is counted"
        vendor = self.row.vendor or "the vendor"
        code = _FAILURE[error.failure]
        if error.failure is Failure.REVOKED and self.request.started:
            code = Code.KEY_REVOKED  # it has seen that the vendor acted: what is left to tell is why it ends
        refusal = Refusal(code, f"{vendor}: {error.detail}; {fate}")
        await self.refuse(refusal, was_allowed=True)

    async def reject(self, bad: BadHead) -> None:
        """Record and answer a head that did not pass the gate."""
        line = self.request.raw.split(b"\r\n", 1)[0].split(b" ")
        if len(line) > 1 and line[0].isalpha() and len(line[0]) <= 16:
            self.row.method = line[0].decode("ascii", "replace").upper()
            self.row.endpoint = line[1].split(b"?")[0][:200].decode("ascii", "replace")
            for name in self._vendors:
                if self.row.endpoint.startswith(f"/{name}/"):
                    self.name_vendor(name)
        await self.refuse(Refusal(Code(bad.code), bad.sentence, status=bad.status))
