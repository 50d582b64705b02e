"""The decision: may this call leave, and if so, what is set aside for it.

What must stay true: ``authorize`` checks and holds in one step without suspending, so that nothing can
change between the two. The answer is a value with no default: ``Permit`` or ``Refusal``. The order of the
checks is the documented precedence of the codes.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from msgspec import Struct

from kbctld.core.body import Body
from kbctld.core.clock import rfc3339
from kbctld.core.cost import FREE, UNPRICED, Price, Remembered, price
from kbctld.core.grant import Grant
from kbctld.core.ledger import (
    NS_PER_S,
    Attempt,
    Hold,
    Ledger,
    Outcome,
    Scope,
    day_of,
    seconds_to_midnight,
)
from kbctld.core.lookup import Found, Missed, Plan, plan_lookup
from kbctld.core.money import NANO_MAX, Rates, say_usd
from kbctld.core.operation import READS, Operation
from kbctld.core.refusal import Code, Refusal
from kbctld.core.rule import check_rules
from kbctld.core.target import Target
from kbctld.core.tokens import TokenPrice
from kbctld.core.vendor import Vendor

NS_PER_HOUR = 3_600_000_000_000

TokenPrices: TypeAlias = Callable[[Vendor, str], TokenPrice | None]
"""What the tokens of a vendor's model cost; None where nobody knows it."""

_SOME = Price(1)
"""Of a call that is not priced yet: the least that it can ask for."""

LOOPED = "it sent the same request over and over"
"""Why a key is paused whose loop guard tripped."""


class Access(Struct, frozen=True):
    """What is attempted.

    Attributes:
        vendor: whom it would go to.
        method: one of ``vendor.METHODS``.
        target: the canonical target.
        operation: what the vendor file calls it; None where it lists nothing.
        parameters: the path's parameters.
        accounts: the vendor's account headers that were sent: they name another account to act on.
    """

    vendor: Vendor
    method: str
    target: Target
    operation: Operation | None
    parameters: Mapping[str, str]
    accounts: Mapping[str, str]

    @property
    def title(self) -> str:
        """The operation's name, or method and path."""
        return self.operation.name if self.operation else f"{self.method} {self.target.path}"

    @property
    def listed_method(self) -> str:
        """The method that lists speak of: HEAD asks for what GET does."""
        return "GET" if self.method == "HEAD" else self.method

    def needs_body(self, grant: Grant) -> bool:
        """Whether the body decides anything, and so must be read before the call can leave."""
        if self.method in READS:
            return False
        return self.operation is not None or any(
            holder.rules or holder.scope.guard is not None for holder in grant.lineage
        )


class Request(Struct, frozen=True):
    """The parts of an access that stand in its body and headers.

    Attributes:
        form: the body, read; empty where nothing depends on it.
        known: remembered objects that the price needs.
        digest: of method, target, type, account and body: equal for a retry.
        same: the same of a canonical body: equal for what does the same thing once more.
        replay: digest of key, credential and idempotency key; None without one.
        fingerprint: of what it asks for; None where asking twice is no matter.
        idempotency_key: the agent's own, where the vendor knows a retry by it.
        looked_up: what the vendor said of an object that the price needs; None where nothing was asked.
    """

    form: Body
    known: Mapping[str, Remembered]
    digest: bytes
    same: bytes
    replay: bytes | None
    fingerprint: bytes | None = None
    idempotency_key: str | None = None
    looked_up: Found | Missed | None = None


class Repetition(Struct, frozen=True):
    """That a call asks for what an earlier one has asked for, which was done or may have been.

    Attributes:
        earlier: that one's hold.
        sentence: for people.
        holder: whose limit refuses it; None where it is only told.
    """

    earlier: Hold
    sentence: str
    holder: Grant | None


class Permit(Struct, frozen=True):
    """The call may leave once its row is durable."""

    attempt: Attempt
    price: Price
    replay_of: str | None
    """The call id of the first attempt, where this is a retry: it counts nothing."""
    repetition: Repetition | None = None
    """Where it looks like a second charge for the same thing, and is let through all the same."""


def admit(grant: Grant | None, access: Access | None, now_ns: int) -> Refusal | None:
    """The checks that need no body: the key, the vendor, the endpoint, the account.

    Every ancestor is asked too: what it may no longer do ends for all that were derived from it.
    ``access`` is None where the vendor could not be told because the key is bad.
    """
    if grant is None:
        return Refusal(Code.KEY_UNKNOWN, "no vault key like this was issued here", "issue one: kbctl issue")
    refusal = _stopped(grant, now_ns)
    if refusal is not None or access is None:
        return refusal
    lineage = grant.lineage
    for holder in lineage:
        if access.vendor.name not in holder.vendors:
            return Refusal(
                Code.VENDOR_NOT_ALLOWED,
                f"{_whose(holder, grant)} does not reach {access.vendor.name}",
                "issue --vendor",
            )
    call = (access.operation, access.listed_method, access.target.path, access.target.segments)
    for holder in lineage:
        refusal = _endpoint(holder, grant, access, call)
        if refusal is not None:
            return refusal
    if access.accounts:
        for holder in lineage:
            refusal = _account(holder, grant, access, call)
            if refusal is not None:
                return refusal
    return None


def authorize(
    grant: Grant,
    access: Access,
    request: Request,
    ledger: Ledger,
    rates: Rates,
    *,
    now_ns: int,
    tick_ns: int,
    row: Any,
    call_id: str,
    prices: TokenPrices = lambda vendor, model: None,
) -> Permit | Refusal:
    """Decide, and set the money aside where the answer is yes: in every scope, or in none.

    Args:
        grant: whose key it is.
        access: what is attempted.
        request: what its body and headers say.
        ledger: where holds live.
        rates: US dollars per unit of other currencies.
        now_ns: effective time: never before any time already journaled.
        tick_ns: monotonic time, for rates and windows.
        row: the audit row that will carry the hold.
        call_id: that row's id.
        prices: of language models; without, none is known.
    """
    refusal = admit(grant, access, now_ns)  # once more: it may have been revoked while the body came in
    if refusal is None:
        refusal = _rules(grant, access, request)
    if refusal is not None:
        return refusal
    first = _first(access, request, ledger, now_ns)
    quote = _quote(grant, access, request, rates, prices)
    if isinstance(quote, Refusal):
        if first is None or not isinstance(request.looked_up, Missed):
            _slow_down(grant, request, tick_ns)
            return quote
        quote = Price(first.nano)  # what could be looked up then, and not now, is held already
    repetition = None if first else _repetition(grant, access, request, quote, ledger, now_ns)
    # A retry is a request like any other to the pace; only its money is counted already.
    refusal = (
        (_call_caps(grant, access, quote) if first is None else None)
        or _duplicate(grant, access, repetition)
        or _pace(grant, request, now_ns, tick_ns)
        or (_caps(grant, access, quote, now_ns) if first is None else None)
    )
    if refusal is not None:
        _slow_down(grant, request, tick_ns)
        return replace(refusal, requested_nano=quote.nano, currency=quote.currency, amount_minor=quote.minor)
    _count(grant, request, now_ns, tick_ns)
    if first is not None:
        return Permit(ledger.join(first, row), quote, first.call_id)
    attempt = ledger.take(
        grant.scopes,
        row=row,
        call_id=call_id,
        nano=quote.nano,
        now_ns=now_ns,
        request=request.digest,
        replay=request.replay,
        fingerprint=request.fingerprint,
        idempotency_key=request.idempotency_key,
    )
    return Permit(attempt, quote, None, repetition)


def plan(
    grant: Grant, access: Access, request: Request, ledger: Ledger, *, now_ns: int, tick_ns: int
) -> Plan | Refusal | None:
    """What must be read at the vendor before the decision; a refusal where that can't matter any more.

    Only for a key that may make the call and has room for some money, because a look-up is a call of its own.
    """
    if access.operation is None or not grant.capped:
        return None
    wanted = plan_lookup(access.vendor, access.operation, request.form, access.parameters, request.known)
    if wanted is None:
        return None
    refusal = admit(grant, access, now_ns) or _rules(grant, access, request)
    if refusal is None and _first(access, request, ledger, now_ns) is None:
        refusal = _pace(grant, request, now_ns, tick_ns) or _caps(grant, access, _SOME, now_ns)
    return refusal or wanted


def _first(access: Access, request: Request, ledger: Ledger, now_ns: int) -> Hold | None:
    """The hold of the first attempt, where this is a retry."""
    idempotency = access.vendor.file.idempotency
    if idempotency is None or request.replay is None:
        return None
    window_ns = idempotency.window_hours * NS_PER_HOUR
    return ledger.find_replay(request.replay, request.digest, now_ns, window_ns)


# --- who asks, and for what ---------------------------------------------------------------------------


def _whose(holder: Grant, grant: Grant) -> str:
    """Whose limit it is: most often the key's own."""
    return f"key {holder.key_id}" if holder is grant else f"key {holder.key_id}, which it comes from,"


def _stopped(grant: Grant, now_ns: int) -> Refusal | None:
    stopped = [
        holder
        for holder in grant.lineage
        if holder.revoked_ns is not None
        or holder.frozen
        or holder.paused
        or (holder.expires_ns is not None and now_ns >= holder.expires_ns)
    ]
    if not stopped:
        return None
    for holder in stopped:
        if holder.revoked_ns is not None:
            who = _whose(holder, grant)
            return Refusal(Code.KEY_REVOKED, f"{who} was revoked", "ask the operator for a new key")
        if holder.frozen:
            who = _whose(holder, grant)
            return Refusal(Code.KEY_REVOKED, f"{who} was stopped: {holder.frozen}", "issue a new key")
    for holder in stopped:
        if holder.expired(now_ns):
            who = _whose(holder, grant)
            return Refusal(Code.KEY_EXPIRED, f"{who} has expired", "ask the operator for a new key")
    paused = stopped[0]
    looped = paused.paused == LOOPED
    return Refusal(
        Code.LOOP_DETECTED if looped else Code.KEY_REVOKED,
        f"{_whose(paused, grant)} is paused: {paused.paused}",
        f"ask the operator to look, then to run: kbctl resume {paused.key_id}",
    )


_Call = tuple[Operation | None, str, str, tuple[str, ...]]


def _endpoint(holder: Grant, grant: Grant, access: Access, call: _Call) -> Refusal | None:
    if holder.deny and (
        denied := holder.deny.covering(access.operation, access.listed_method, access.target.segments)
    ):
        return Refusal(
            Code.ENDPOINT_NOT_ALLOWED,
            f"{_whose(holder, grant)} denies {access.title}: {denied[0].text}",
            "ask the operator for a key that allows it",
            facts={"attempted": access.title},
        )
    if holder.allow is not None:
        if holder.allow.allowing(*call):
            return None
        allowed = ", ".join(entry.text for entry in holder.allow[:5])
        who = _whose(holder, grant)
        return Refusal(
            Code.ENDPOINT_NOT_ALLOWED,
            f"{who} does not allow {access.title}; it allows {allowed or 'nothing'}",
            f'ask for a key issued with --allow "{access.method} {access.target.path}"',
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
            f'ask for a key issued with --allow "{access.method} {access.target.path}"',
            facts={"attempted": access.title},
        )
    return None


def _account(holder: Grant, grant: Grant, access: Access, call: _Call) -> Refusal | None:
    """Another account of the vendor is refused unless a rule that binds this call lists it."""
    for header, value in access.accounts.items():
        binding = [
            rule
            for rule in holder.rules
            if rule.field == header and (rule.scope is None or rule.scope.covers(*call))
        ]
        if not binding or not all(rule.admits(value) for rule in binding):
            return Refusal(
                Code.ACCOUNT_NOT_ALLOWED,
                f"the request names another account of the vendor in {header}, and"
                f" {_whose(holder, grant)} does not list it",
                f'send it without, or ask for a key issued with --param "{header} in ..."',
            )
    return None


def _rules(grant: Grant, access: Access, request: Request) -> Refusal | None:
    for holder in grant.lineage:
        if not holder.rules:
            continue
        found = check_rules(
            holder.rules,
            operation=access.operation,
            method=access.listed_method,
            path=access.target.path,
            segments=access.target.segments,
            places=(request.form, access.target.form, access.parameters, access.accounts),
        )
        if found is not None:
            ambiguous = found.kind == "ambiguous"
            return Refusal(
                Code.AMBIGUOUS_REQUEST if ambiguous else Code.PARAM_NOT_ALLOWED,
                f"{found.sentence}, as {_whose(holder, grant)} asks for",
                "send it once, as a plain field"
                if ambiguous
                else "ask the operator for a key that allows it",
                facts={"rule": found.rule.text},
            )
    return None


# --- whether it was asked for already ---------------------------------------------------------------------


_STATE = {
    Outcome.PENDING: "is still under way",
    Outcome.POSTED: "was done",
    Outcome.UNKNOWN: "may have been done",
}


def _repetition(
    grant: Grant, access: Access, request: Request, quote: Price, ledger: Ledger, now_ns: int
) -> Repetition | None:
    """Whether this looks like a second charge for the same thing, to anyone in the lineage."""
    earlier = ledger.find_twin(request.fingerprint) if quote.nano else None
    if earlier is None:
        return None
    age_ns = now_ns - earlier.held_ns
    idempotency = access.vendor.file.idempotency
    if (
        idempotency is not None
        and request.idempotency_key is not None
        and request.idempotency_key == earlier.idempotency_key
        and age_ns < idempotency.window_hours * NS_PER_HOUR
    ):
        return None  # with another vault key: the vendor knows it for a retry, and does nothing twice
    watching = [
        holder for holder in grant.lineage if holder.duplicates and age_ns < holder.duplicates.window_ns
    ]
    if not watching:
        return None
    sentence = (
        f"{access.title} asks for {say_usd(quote.nano)} just as {earlier.call_id} did at"
        f" {rfc3339(earlier.held_ns)}, {_wait(age_ns // NS_PER_S)} ago, which {_STATE[earlier.outcome]}"
    )
    refusing = (holder for holder in watching if holder.duplicates and holder.duplicates.action == "refuse")
    return Repetition(earlier, sentence, next(refusing, None))


def _duplicate(grant: Grant, access: Access, repetition: Repetition | None) -> Refusal | None:
    if repetition is None or repetition.holder is None:
        return None
    idempotency = access.vendor.retries(access.method, access.operation)
    again = f"to try that one again, send its own {idempotency.header}" if idempotency else "look it up first"
    return Refusal(
        Code.SUSPECTED_DUPLICATE,
        f"{repetition.sentence}; {_whose(repetition.holder, grant)} may not do the same again so soon",
        f"{again}; to do it a second time, change what it says or ask for a key with --duplicates flag",
        facts={
            "duplicate_of": repetition.earlier.call_id,
            "duplicate_at": rfc3339(repetition.earlier.held_ns),
        },
    )


# --- how fast ---------------------------------------------------------------------------------------------


def _pace(grant: Grant, request: Request, now_ns: int, tick_ns: int) -> Refusal | None:
    for scope in grant.scopes:
        wait_ns = scope.bucket.wait_ns(tick_ns) if scope.bucket is not None else 0
        if scope.bucket is not None and wait_ns > 0:
            wait_s = -(-wait_ns // NS_PER_S)
            return Refusal(
                Code.RATE_LIMITED,
                f"{scope.owner} may send {scope.bucket.rate.text}",
                f"send the next one in {wait_s} s",
                retry_after_s=wait_s,
                facts={"rate": scope.bucket.rate.text},
            )
    day = day_of(now_ns)
    for scope in grant.scopes:
        if scope.requests_left(day) == 0:
            wait_s = seconds_to_midnight(now_ns)
            return Refusal(
                Code.REQUEST_BUDGET_EXHAUSTED,
                f"{scope.owner} has sent the {scope.daily_requests} requests that it may send a day;"
                f" it may again from 00:00 UTC, in {_wait(wait_s)}",
                "wait for 00:00 UTC, or ask the operator for a key with more --requests",
                retry_after_s=wait_s,
                facts={"daily_requests": str(scope.daily_requests)},
            )
    for holder in grant.lineage:
        guard = holder.scope.guard
        if guard is None or guard.seen(request.same, tick_ns) < guard.loop.times:
            continue
        if guard.loop.action == "pause":
            holder.paused = LOOPED
            remedy = f"the key is paused; ask the operator to look, then to run: kbctl resume {holder.key_id}"
        else:
            remedy = "stop repeating it: the answer will not change"
        return Refusal(
            Code.LOOP_DETECTED,
            f"the same request was sent {guard.loop.times} times within {guard.loop.text.partition('/')[2]},"
            f" which is as often as {_whose(holder, grant)} may",
            remedy,
            facts={"loop": guard.loop.text},
        )
    return None


def _slow_down(grant: Grant, request: Request, tick_ns: int) -> None:
    """A refusal asked the vendor nothing and is free; one that comes after a look-up is not."""
    if request.looked_up is not None:
        _take_pace(grant, request, tick_ns)


def _take_pace(grant: Grant, request: Request, tick_ns: int) -> None:
    for scope in grant.scopes:
        if scope.bucket is not None:
            scope.bucket.take(tick_ns)
        if scope.guard is not None:
            scope.guard.note(request.same, tick_ns)


def _count(grant: Grant, request: Request, now_ns: int, tick_ns: int) -> None:
    """Take what ``_pace`` found to be there, from every scope."""
    _take_pace(grant, request, tick_ns)
    day = day_of(now_ns)
    for scope in grant.scopes:
        scope.account.requests[day] = scope.account.requests.get(day, 0) + 1


# --- what it costs ----------------------------------------------------------------------------------------


def _quote(
    grant: Grant, access: Access, request: Request, rates: Rates, prices: TokenPrices
) -> Price | Refusal:
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
    quote = price(
        access.operation,
        request.form,
        access.target.form,
        access.parameters,
        request.known,
        rates,
        access.vendor.tariff,
        partial(prices, access.vendor),
        request.looked_up,
    )
    if isinstance(quote, Refusal) and quote.code is Code.AMOUNT_UNKNOWN and not grant.capped:
        return UNPRICED
    return quote


def _call_caps(grant: Grant, access: Access, quote: Price) -> Refusal | None:
    for scope in grant.scopes:
        cap = scope.call_cap_nano
        if cap is not None and quote.nano > cap:
            return Refusal(
                Code.CALL_CAP_EXCEEDED,
                f"{access.title} asks for {say_usd(quote.nano)} and one call of {scope.owner}"
                f" may take {say_usd(cap)}",
                "split it, or ask for a key with a larger --call-cap",
                facts={"call_cap_usd": _plain(cap), "requested_usd": _plain(quote.nano)},
            )
    return None


def _caps(grant: Grant, access: Access, quote: Price, now_ns: int) -> Refusal | None:
    if quote.nano == 0:
        return None
    day, nano = day_of(now_ns), quote.nano
    full = [scope for scope in grant.scopes if not scope.fits(day, nano)]
    for scope in full:
        cap = scope.daily_cap_nano
        if cap is not None and scope.account.used(day) + nano > cap:
            return _daily(scope, cap, access, quote, now_ns)
    for scope in full:
        return _total(scope, access, quote)
    return None


def _daily(scope: Scope, cap: int, access: Access, quote: Price, now_ns: int) -> Refusal:
    day = day_of(now_ns)
    spent, held = scope.account.posted.get(day, 0), scope.account.held.get(day, 0)
    wait_s = seconds_to_midnight(now_ns)
    return Refusal(
        Code.CAP_EXHAUSTED,
        f"{access.title} asks for {_asked(quote)} and the daily cap of {scope.owner} is {say_usd(cap)},"
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


def _total(scope: Scope, access: Access, quote: Price) -> Refusal:
    account = scope.account
    cap = NANO_MAX if scope.total_cap_nano is None else scope.total_cap_nano
    return Refusal(
        Code.TOTAL_CAP_EXHAUSTED,
        f"{access.title} asks for {_asked(quote)} and the total cap of {scope.owner} is {say_usd(cap)},"
        f" {say_usd(account.posted_total)} of it spent and {say_usd(account.held_total)} held",
        "ask the operator for a new key",
        facts={
            "cap_usd": _plain(cap),
            "spent_usd": _plain(account.posted_total),
            "held_usd": _plain(account.held_total),
            "requested_usd": _plain(quote.nano),
        },
    )


def _asked(quote: Price) -> str:
    return "money" if quote is _SOME else say_usd(quote.nano)


def _plain(nano: int) -> str:
    return say_usd(nano).replace("$", "").replace(",", "")


def _wait(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} s"
    hours, rest = divmod(seconds, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
