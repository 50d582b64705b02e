"""One permitted call between its hold and the end of its hold.

What must stay true: every way out ends the hold exactly once, by what was proved. An answer read to its end
proves what its status says; anything else proves nothing once a byte has left, and that nothing happened
while none had.
"""

from types import TracebackType
from typing import Any, Self

import msgspec

from kbctld.core.grant import Grant
from kbctld.core.later import place_of
from kbctld.core.ledger import Verdict
from kbctld.core.money import read_currency
from kbctld.core.operation import Amount, Increase, Later, Tokens
from kbctld.core.outcome import survivor, verdict_of
from kbctld.core.policy import Access, Permit
from kbctld.core.tokens import spent
from kbctld.credentials import Credential
from kbctld.proxy.call import Call
from kbctld.proxy.shares import Turn
from kbctld.proxy.sse import UsageStream, usage_in
from kbctld.proxy.upstream import Answer, Connection, Failure, Pool

# What is kept of an answer, where its JSON tells the true cost or an object's id.
_OBJECT_BYTES = 1024 * 1024
_TOKENS_BYTES = 10 * 1024 * 1024


class Flight:
    """Used as ``async with Flight(...) as flight``; leaving it settles what ``landed`` did not.

    While the vendor works on it, it is in ``aloft`` under its key's number.
    """

    def __init__(
        self,
        call: Call,
        grant: Grant,
        access: Access,
        permit: Permit,
        turn: Turn,
        aloft: "dict[int, set[Flight]]",
        *,
        hides_usage: bool,
    ) -> None:
        self.permit = permit
        self._turn = turn
        self._aloft = aloft
        self._call = call
        self._grant = grant
        self._access = access
        self._nano = 0 if permit.replay_of else permit.attempt.hold.nano
        self._connection: Connection | None = None
        self._settled = False
        self._hides_usage = hides_usage
        self._events: UsageStream | None = None
        operation = access.operation
        # Where nobody could read the price before, a later one says nothing of what was counted.
        self._later = operation.later if operation is not None and permit.price.readable else None

    @property
    def reads_answer(self) -> bool:
        """Whether the answer's JSON tells something that we need."""
        price = self.permit.price
        return price.counts is not None or not price.exact or self._later is not None

    @property
    def reads_up_to(self) -> int:
        """How many bytes of it: an object's amount stands near its beginning, a usage often at the end."""
        return _TOKENS_BYTES if self.permit.price.tokens is not None else _OBJECT_BYTES

    def events(self, answer: Answer) -> UsageStream | None:
        """What listens to an answer that is a stream of a language model's events; None for any other."""
        cost = self._access.operation.cost if self._access.operation else None
        if not isinstance(cost, Tokens):
            return None
        kind = (answer.get(b"content-type") or b"").partition(b";")[0].strip().lower()
        if self._events is None and kind == b"text/event-stream" and 200 <= answer.status < 300:
            self._events = UsageStream(cost.api, hides=self._hides_usage)
        return self._events

    async def board(self, pool: Pool) -> Connection:
        """Take a connection; it is given back when the flight ends.

        Raises:
            UpstreamError: none could be had; nothing was sent.
        """
        self._connection = await pool.connection()
        return self._connection

    def take_off(self, data: bytes) -> None:
        """Write the request: its bytes leave here, and only here.

        Raises:
            UpstreamError: the connection was gone; nothing was written.
        """
        assert self._connection is not None  # noqa: S101 - boarded
        self._connection.send(data, head_only=self._access.method == "HEAD")
        self._call.took_off()
        self._turn.leaves()
        self._grant.in_flight += 1
        self._grant.in_flight_nano += self._nano
        self._aloft.setdefault(self._grant.no, set()).add(self)

    def cut(self, failure: Failure, why: str) -> None:
        """End it on our word. The vendor may have acted, so what it holds stays held."""
        assert self._connection is not None  # noqa: S101 - aloft
        self._connection.cut(failure, why)

    def landed(self, answer: Answer, read: bytes, credential: Credential) -> None:
        """The answer was read to its end: settle by what it says.

        Args:
            answer: its head.
            read: its body, as far as ``reads_answer`` needs it.
            credential: whose account the vendor acted in.
        """
        header = self._access.vendor.replay_header
        replayed = header != b"" and answer.get(header) == b"true"
        spent_nano = None
        if self.permit.price.tokens is not None and 200 <= answer.status < 300:
            spent_nano = self._true_tokens(usage_in(read) if self._events is None else self._events.told)
        elif self.reads_answer and 200 <= answer.status < 300:
            said = _json_object(read)
            spent_nano = self._true_amount(said)
            object_id = self._object_id(said)
            if object_id is not None:
                self._remember(object_id, credential)
        verdict = verdict_of(answer.status)
        if verdict is Verdict.REFUSED and self._left_behind(read, credential):
            verdict = Verdict.POSTED
        self._settle(verdict, spent_nano=spent_nano, replayed=replayed)
        if self._later is not None and verdict is Verdict.POSTED and self.permit.replay_of is None:
            self._await_price(self._later, _json_object(read), credential)

    def _await_price(self, later: Later, said: dict[str, Any], credential: Credential) -> None:
        """What it really cost is told later, where the answer says of what."""
        path = place_of(later, self._access.parameters, said)
        operation = self._access.operation
        if path is not None and operation is not None:
            self._call.vault.await_price(
                self._call.row,
                self._access.vendor.name,
                credential.name,
                operation.name,
                path,
                self.permit.price.untold,
                later.after_s,
            )

    def _left_behind(self, read: bytes, credential: Credential) -> bool:
        """Whether a refused call left an object that can be paid without a further call: it counts."""
        survives, counts = self._access.vendor.file.survives, self.permit.price.counts
        found = survivor(survives, read) if survives is not None and counts is not None else None
        if found is None or counts is None:
            return False
        # Later steps build on it only where all of it was counted.
        if found.minor is not None and found.minor <= counts.minor and found.currency == counts.currency:
            for object_id in {found.id, self._object_id({}) or found.id}:
                self._remember(object_id, credential)
        return True

    def _remember(self, object_id: str, credential: Credential) -> None:
        counted = self.permit.price.counts
        if counted is not None:
            self._call.vault.remember(self._access.vendor.name, credential.name, object_id, counted)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None and self._events.final:
            # It broke off when it had told its usage, which proves it. Read to its end it is settled already.
            self._settle(Verdict.POSTED, spent_nano=self._true_tokens(self._events.told))
        # No answer, half of one, cancelled, or a defect of ours: what left may have arrived.
        self._settle(Verdict.SILENT if self._call.flew else Verdict.UNSENT)
        if self._connection is not None:
            self._connection.release()

    def _settle(self, verdict: Verdict, *, spent_nano: int | None = None, replayed: bool = False) -> None:
        if self._settled:
            return
        self._settled = True
        if self._call.flew:
            self._grant.in_flight -= 1
            self._grant.in_flight_nano -= self._nano
            others = self._aloft[self._grant.no]
            others.discard(self)
            if not others:
                del self._aloft[self._grant.no]
        self._call.vault.settle(
            self._grant, self.permit.attempt, verdict, spent_nano=spent_nano, replayed=replayed
        )

    def _true_tokens(self, said: dict[str, Any]) -> int | None:
        """What the tokens really cost; None where the answer does not say."""
        cost = self._access.operation.cost if self._access.operation else None
        price = self.permit.price.tokens
        return spent(cost.api, price, said) if isinstance(cost, Tokens) and price is not None else None

    def _true_amount(self, said: dict[str, Any]) -> int | None:
        """What it really cost, where the request could only bound it."""
        if self.permit.price.exact:
            return None
        minor, currency = said.get("amount"), read_currency(str(said.get("currency")))
        if not isinstance(minor, int) or isinstance(minor, bool) or currency is None:
            return None
        if not 0 <= minor < 10**12:  # no amount: the hold stands
            return None
        spent_nano = self._call.vault.rates.nano(minor, currency)
        if spent_nano is not None:
            self._call.row.currency, self._call.row.amount_minor = currency, minor
        return spent_nano

    def _object_id(self, said: dict[str, Any]) -> str | None:
        """The object whose later steps build on this amount."""
        cost = self._access.operation.cost if self._access.operation else None
        if isinstance(cost, Increase):
            return self._access.parameters[cost.of]
        if isinstance(cost, Amount) and cost.object is not None:
            found = said.get(cost.object)
            return found if isinstance(found, str) and 0 < len(found) <= 255 else None
        return None


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
