"""The decision: may this call leave, and if so, what is set aside for it.

What must stay true: ``authorize`` checks and holds in one step without suspending, so that nothing can
change between the two. The answer is a value with no default: ``Permit`` or ``Refusal``. The order of the
checks is the documented precedence of the codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from kbctld.core.cost import FREE, UNPRICED, Price, Remembered, price
from kbctld.core.form import Form
from kbctld.core.grant import Grant
from kbctld.core.ledger import Attempt, Ledger, Scope, day_of, seconds_to_midnight
from kbctld.core.money import NANO_MAX, Rates, say_usd
from kbctld.core.refusal import Code, Refusal
from kbctld.core.target import Target
from kbctld.core.vendor import READS, Operation, Vendor

NS_PER_HOUR = 3_600_000_000_000


@dataclass(frozen=True, slots=True)
class Access:
    """What is attempted.

    Attributes:
        vendor: whom it would go to.
        method: one of ``vendor.METHODS``.
        target: the canonical target.
        operation: what the vendor file calls it; None where it lists nothing.
        parameters: the path's parameters.
        names_account: an account header of the vendor was sent.
    """

    vendor: Vendor
    method: str
    target: Target
    operation: Operation | None
    parameters: Mapping[str, str]
    names_account: bool

    @property
    def title(self) -> str:
        """The operation's name, or method and path."""
        return self.operation.name if self.operation else f"{self.method} {self.target.path}"

    @property
    def listed_method(self) -> str:
        """The method that lists speak of: HEAD asks for what GET does."""
        return "GET" if self.method == "HEAD" else self.method

    @property
    def needs_body(self) -> bool:
        """Whether the body decides anything, and so must be read before the call can leave."""
        return self.operation is not None and self.method not in READS


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of an access that stand in its body and headers.

    Attributes:
        form: the body, read; empty where nothing depends on it.
        known: remembered objects that the price needs.
        digest: of method, target, type and body: equal for a retry.
        replay: digest of key, credential and idempotency key; None without one.
    """

    form: Form
    known: Mapping[str, Remembered]
    digest: bytes
    replay: bytes | None


@dataclass(frozen=True, slots=True)
class Permit:
    """The call may leave once its row is durable."""

    attempt: Attempt
    price: Price
    replay_of: str | None
    """The call id of the first attempt, where this is a retry: it counts nothing."""


def admit(grant: Grant | None, access: Access | None, now_ns: int) -> Refusal | None:
    """The checks that need no body: the key, the vendor, the endpoint, the account.

    ``access`` is None where the vendor could not be told because the key is bad.
    """
    if grant is None:
        return Refusal(Code.KEY_UNKNOWN, "no vault key like this was issued here", "issue one: kbctl issue")
    if grant.revoked_ns is not None:
        return Refusal(Code.KEY_REVOKED, f"key {grant.key_id} was revoked", "ask the operator for a new key")
    if grant.frozen:
        return Refusal(Code.KEY_REVOKED, f"key {grant.key_id} was stopped: {grant.frozen}", "issue a new key")
    if grant.expires_ns is not None and now_ns >= grant.expires_ns:
        return Refusal(Code.KEY_EXPIRED, f"key {grant.key_id} has expired", "ask the operator for a new key")
    if access is None:
        return None
    if access.vendor.name not in grant.vendors:
        return Refusal(
            Code.VENDOR_NOT_ALLOWED,
            f"key {grant.key_id} does not reach {access.vendor.name}",
            "issue --vendor",
        )
    refusal = _endpoint(grant, access)
    if refusal is not None:
        return refusal
    if access.names_account:
        return Refusal(
            Code.ACCOUNT_NOT_ALLOWED,
            "the request names another account of the vendor",
            f"send it without {' and '.join(sorted(access.vendor.account_headers))}",
        )
    return None


def authorize(
    grant: Grant,
    access: Access,
    request: Request,
    ledger: Ledger,
    rates: Rates,
    *,
    now_ns: int,
    row: Any,
    call_id: str,
) -> Permit | Refusal:
    """Decide, and set the money aside where the answer is yes.

    Args:
        grant: whose key it is.
        access: what is attempted.
        request: what its body and headers say.
        ledger: where holds live.
        rates: US dollars per unit of other currencies.
        now_ns: effective time: never before any time already journaled.
        row: the audit row that will carry the hold.
        call_id: that row's id.
    """
    refusal = admit(grant, access, now_ns)  # once more: it may have been revoked while the body came in
    if refusal is not None:
        return refusal
    quote = _quote(grant, access, request, rates)
    if isinstance(quote, Refusal):
        return quote
    idempotency = access.vendor.file.idempotency
    if idempotency is not None and request.replay is not None:
        window_ns = idempotency.window_hours * NS_PER_HOUR
        first = ledger.find_replay(request.replay, request.digest, now_ns, window_ns)
        if first is not None:
            return Permit(ledger.join(first, row), quote, first.call_id)
    refusal = _money(grant, access, quote, now_ns)
    if refusal is not None:
        return replace(refusal, requested_nano=quote.nano, currency=quote.currency, amount_minor=quote.minor)
    attempt = ledger.take(
        grant.scopes,
        row=row,
        call_id=call_id,
        nano=quote.nano,
        now_ns=now_ns,
        request=request.digest,
        replay=request.replay,
    )
    return Permit(attempt, quote, None)


def _endpoint(grant: Grant, access: Access) -> Refusal | None:
    target = access.target
    call = (access.operation, access.listed_method, target.path, target.segments)
    denied = next((entry for entry in grant.deny if entry.covers(*call)), None)
    if denied is not None:
        return Refusal(
            Code.ENDPOINT_NOT_ALLOWED,
            f"key {grant.key_id} denies {access.title}: {denied.text}",
            "ask the operator for a key that allows it",
            facts={"attempted": access.title},
        )
    if grant.allow is not None:
        if any(entry.allows(*call) for entry in grant.allow):
            return None
        allowed = ", ".join(entry.text for entry in grant.allow[:5])
        return Refusal(
            Code.ENDPOINT_NOT_ALLOWED,
            f"key {grant.key_id} does not allow {access.title}; it allows {allowed or 'nothing'}",
            f'ask for a key issued with --allow "{access.method} {target.path}"',
            facts={"attempted": access.title},
        )
    if access.operation is not None and access.operation.privileged:
        return Refusal(
            Code.ENDPOINT_NOT_ALLOWED,
            f"{access.title} is privileged: it mints credentials or moves payout destinations",
            f"ask for a key issued with --allow {access.operation.name}",
            facts={"attempted": access.title},
        )
    if access.operation is None and access.method not in READS and not grant.capped:
        return Refusal(
            Code.ENDPOINT_NOT_ALLOWED,
            f"{access.title} is not an operation whose cost is known",
            f'ask for a key issued with --allow "{access.method} {target.path}"',
            facts={"attempted": access.title},
        )
    return None


def _quote(grant: Grant, access: Access, request: Request, rates: Rates) -> Price | Refusal:
    if access.operation is None:
        if access.method in READS:
            return FREE
        if not grant.capped:
            return UNPRICED
        return Refusal(
            Code.AMOUNT_UNKNOWN,
            f"what {access.title} would cost can't be told before it is sent: no vendor file lists it",
            f"use an operation from the file of {access.vendor.name}, or a key with --cap none",
        )
    quote = price(access.operation, request.form, access.target.form, access.parameters, request.known, rates)
    if isinstance(quote, Refusal) and quote.code is Code.AMOUNT_UNKNOWN and not grant.capped:
        return UNPRICED
    return quote


def _money(grant: Grant, access: Access, quote: Price, now_ns: int) -> Refusal | None:
    if quote.nano == 0:
        return None
    cap = grant.call_cap_nano
    if cap is not None and quote.nano > cap:
        return Refusal(
            Code.CALL_CAP_EXCEEDED,
            f"{access.title} asks for {say_usd(quote.nano)} and one call of key {grant.key_id}"
            f" may take {say_usd(cap)}",
            "split it, or ask for a key with a larger --call-cap",
            facts={"call_cap_usd": _plain(cap), "requested_usd": _plain(quote.nano)},
        )
    daily = (_daily(scope, access, quote, now_ns) for scope in grant.scopes)
    total = (_total(scope, access, quote) for scope in grant.scopes)
    return next((refusal for refusal in chain(daily, total) if refusal is not None), None)


def _daily(scope: Scope, access: Access, quote: Price, now_ns: int) -> Refusal | None:
    cap = scope.daily_cap_nano
    day = day_of(now_ns)
    if cap is None or scope.account.used(day) + quote.nano <= cap:
        return None
    spent, held = scope.account.posted.get(day, 0), scope.account.held.get(day, 0)
    wait_s = seconds_to_midnight(now_ns)
    return Refusal(
        Code.CAP_EXHAUSTED,
        f"{access.title} asks for {say_usd(quote.nano)} and the daily cap of {scope.owner} is {say_usd(cap)},"
        f" {say_usd(spent)} of it spent and {say_usd(held)} held; it resets at 00:00 UTC, in {_wait(wait_s)}",
        "wait for 00:00 UTC, or ask the operator for a key with a larger cap",
        retry_after_s=wait_s,
        facts={
            "cap_usd": _plain(cap),
            "spent_usd": _plain(spent),
            "held_usd": _plain(held),
            "requested_usd": _plain(quote.nano),
        },
    )


def _total(scope: Scope, access: Access, quote: Price) -> Refusal | None:
    # Without a cap, what the journal can count is one.
    cap = NANO_MAX if scope.total_cap_nano is None else scope.total_cap_nano
    account = scope.account
    if account.used_total() + quote.nano <= cap:
        return None
    return Refusal(
        Code.TOTAL_CAP_EXHAUSTED,
        f"{access.title} asks for {say_usd(quote.nano)} and the total cap of {scope.owner} is {say_usd(cap)},"
        f" {say_usd(account.posted_total)} of it spent and {say_usd(account.held_total)} held",
        "ask the operator for a new key",
        facts={
            "cap_usd": _plain(cap),
            "spent_usd": _plain(account.posted_total),
            "held_usd": _plain(account.held_total),
            "requested_usd": _plain(quote.nano),
        },
    )


def _plain(nano: int) -> str:
    return say_usd(nano).replace("$", "").replace(",", "")


def _wait(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
