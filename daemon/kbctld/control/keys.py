"""Vault keys: issued, listed, shown, paused and revoked by operators; derived and asked about by agents.

What must stay true: a change is durable when its handler returns; an agent learns of its own key and
nothing of anyone else's; the vault key itself is in one answer, once.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TypeVar
from urllib.parse import urlencode

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.control.parameters import Choice, Flag, Parameter, Text, Whole
from kbctld.control.routes import Ask, HttpError, Reply, Route
from kbctld.control.terms import resolve, said_in, usage
from kbctld.core.clock import rfc3339
from kbctld.core.entry import EntryError
from kbctld.core.grant import Grant
from kbctld.core.ledger import Scope, day_of
from kbctld.core.money import usd_from_nano
from kbctld.core.refusal import Code, Refusal
from kbctld.core.rule import RuleError
from kbctld.core.slots import find_vault_key
from kbctld.credentials import Credentials
from kbctld.http1.gate import Head
from kbctld.store import queries
from kbctld.store.journal import JournalError
from kbctld.vault import Selection, TooManyKeysError, Vault

T = TypeVar("T")
Keys = list[wire.Key]

STATUSES = ("active", "paused", "frozen", "revoked", "expired", "all")
_SHOWN_MAX = 20
"""Of the keys that a revocation has stopped; of the others it tells how many they are."""
_SHOWN_AT_ONCE = 200


@dataclass(slots=True)
class KeyHandlers:
    """The handlers and what they work on.

    Attributes:
        default_vendors: what a key covers that names no vendor; None for every vendor with a credential.
        proxy_url: where agents point their SDK.
        cut: ends the calls of keys that vendors are working on; gives how many.
    """

    vault: Vault
    credentials: Credentials
    default_vendors: tuple[str, ...] | None
    proxy_url: str
    cut: Callable[[Iterable[Grant]], int]

    def routes(self) -> list[Route]:
        """This part of the table."""
        filters: dict[str, Parameter] = {
            "tenant": Text("Only this tenant's."),
            "label": Text("Only keys whose label has these whole segments.", many=True),
            "label_contains": Text("The same as label.", many=True),
            "status": Choice("Only in this state.", STATUSES, default="all"),
            "metadata.": Text("Only keys whose metadata has this value under the name behind the dot."),
            "limit": Whole("Keys of a page.", 1, queries.LIMIT_MAX, default=queries.LIMIT_MAX),
            "before": Whole("The cursor of the next page, from the Link field.", 1, 2**62),
        }
        abort = {"abort": Flag("Cut the calls that are under way; what they hold stays held.")}
        return [
            Route("GET", "/vault/keys", self.list, "read", "List keys", gives=wire.KeyList, query=filters),
            Route(
                "POST",
                "/vault/keys",
                self.issue,
                "issue",
                "Issue a key",
                takes=wire.IssueRequest,
                gives=wire.IssuedKey,
                status=201,
                errors=(404, 409, 503),
            ),
            Route(
                "POST",
                "/vault_keys",
                self.issue,
                "issue",
                "Issue a key",
                takes=wire.IssueRequest,
                gives=wire.IssuedKey,
                status=201,
                errors=(404, 409, 503),
            ),
            Route("GET", "/vault/keys/{key}", self.show, "read", "Show a key", gives=wire.Key, errors=(404,)),
            Route(
                "DELETE",
                "/vault/keys/{key}",
                self.revoke,
                "issue",
                "Revoke a key and all that come from it",
                gives=wire.RevokeReply,
                query=abort,
                errors=(404, 503),
            ),
            Route(
                "POST",
                "/vault/revocations",
                self.revoke_many,
                "issue",
                "Revoke keys by id, tenant or label, or all",
                takes=wire.RevokeRequest,
                gives=wire.RevokeReply,
                errors=(404, 503),
            ),
            Route(
                "GET",
                "/vault/keys/{key}/tree",
                self.tree,
                "read",
                "A key and all that come from it",
                gives=wire.KeyTree,
                errors=(404, 503),
            ),
            Route(
                "POST",
                "/vault/keys/{key}/pause",
                self.pause,
                "issue",
                "Pause a key and all that come from it",
                gives=wire.Key,
                errors=(404, 503),
            ),
            Route(
                "POST",
                "/vault/keys/{key}/resume",
                self.resume,
                "issue",
                "Let a paused key go on",
                gives=wire.Key,
                errors=(404, 409, 503),
            ),
        ]

    # --- issuing --------------------------------------------------------------------------------

    async def issue(self, ask: Ask) -> Reply:
        request = wire.decode(ask.body, wire.IssueRequest)
        parent = None
        if request.parent_vault_key is not None:
            parent = await self.named(request.parent_vault_key)
        return Reply(await self._issue(request, parent, ask.actor))

    async def derive(self, head: Head, request: wire.IssueRequest) -> Reply:
        """A child of the key that an agent shows: the parent key is the authority."""
        shown = request.parent_vault_key or ""
        carried = _carried(head)
        if carried not in (None, shown):
            raise usage("invalid_request", "`parent_vault_key` is another key than the request carries")
        parent = await self._own(shown)
        for field in ("policy", "override"):
            if getattr(request, field) is not None:
                raise HttpError(403, "wider_than_parent", f"`{field}` is for operators", "leave it out")
        if request.credential not in (None, parent.credential):
            raise HttpError(
                403, "wider_than_parent", "`credential` is another than the parent's", "leave it out"
            )
        return Reply(await self._issue(request, parent, parent.key_id))

    async def _issue(self, request: wire.IssueRequest, parent: Grant | None, actor: str) -> wire.IssuedKey:
        if parent is not None and parent.status(self.vault.now_ns()) in ("revoked", "expired", "frozen"):
            raise HttpError(
                403,
                "parent_ended",
                f"the parent {parent.key_id} has ended",
                "kbctl keys    # for a living one",
            )
        policy = None
        if request.policy is not None:
            text = self.vault.policies.get(request.policy)
            if text is None:
                raise KbctlError(
                    "policy_unknown",
                    f"there is no policy {request.policy[:100]}",
                    "kbctl policy list",
                    Exit.NOT_FOUND,
                )
            known = list(self.vault.vendors.values())
            policy = said_in(wire.decode(text.encode(), wire.Limits), known)
        terms = resolve(
            request,
            vendors=self._vendors(request, parent),
            known=self.vault.vendors,
            policy=policy,
            parent=parent,
            default_vendors=self._default_vendors(request, parent),
            now_ns=self.vault.now_ns(),
        )
        self._check_credential(request)
        try:
            grant, vault_key = await self.vault.issue(terms, actor)
        except (EntryError, RuleError) as error:
            raise usage("endpoint_entry", str(error)) from None
        except TooManyKeysError as error:
            raise HttpError(403, "too_many_keys", str(error), "kbctl revoke --help") from None
        except JournalError as error:
            raise unrecorded(error) from None
        key = self.key(grant)
        fields = {name: getattr(key, name) for name in key.__struct_fields__}
        return wire.IssuedKey(**fields, vault_key=vault_key, proxy_url=self.proxy_url)

    def _vendors(self, request: wire.IssueRequest, parent: Grant | None) -> tuple[str, ...] | None:
        if request.vendor is not None and request.vendors is not None:
            raise usage("invalid_request", "give `vendor` or `vendors`, not both")
        named = [request.vendor] if request.vendor is not None else request.vendors
        if named is None:
            credential = self.credentials.get(request.credential) if request.credential else None
            return None if credential is None or parent is not None else (credential.vendor,)
        if not named:
            raise usage("invalid_request", "`vendors` names no vendor")
        if parent is not None and not set(named) <= set(parent.vendors):
            # Before anything is said of vendors that the parent does not reach.
            raise HttpError(
                403,
                "wider_than_parent",
                f"`vendors` is wider than its parent {parent.key_id} allows",
                "ask for no more than the parent may",
            )
        for name in named:
            if name not in self.vault.vendors:
                known = ", ".join(sorted(self.vault.vendors))
                raise usage(
                    "vendor_unknown",
                    f"there is no vendor {name[:100]!r}; there is {known}",
                    "kbctl issue --cap 500 --vendor stripe",
                )
            if not self.credentials.of_vendor(name):
                raise KbctlError(
                    "credential_missing",
                    f"{name} has no credential",
                    f"kbctl credential set {name}",
                    Exit.REFUSED,
                )
        return tuple(sorted(set(named)))

    def _default_vendors(self, request: wire.IssueRequest, parent: Grant | None) -> tuple[str, ...]:
        if parent is not None:
            return parent.vendors
        found = self.default_vendors or tuple(sorted({each.vendor for each in self.credentials}))
        if not found:
            raise KbctlError(
                "credential_missing",
                "no vendor has a credential yet",
                "kbctl credential set stripe",
                Exit.REFUSED,
            )
        return found

    def _check_credential(self, request: wire.IssueRequest) -> None:
        if request.credential is not None and self.credentials.get(request.credential) is None:
            raise KbctlError(
                "credential_missing",
                f"there is no credential {request.credential[:100]}",
                f"kbctl credential set {request.credential[:100]}",
                Exit.REFUSED,
            )

    # --- looking --------------------------------------------------------------------------------

    async def list(self, ask: Ask) -> Reply:
        now_ns = self.vault.now_ns()
        status = ask.text("status") or "all"
        limit = int(ask.text("limit") or queries.LIMIT_MAX)
        before = ask.text("before")
        wanted = queries.KeyFilter(
            tenant=ask.text("tenant"),
            labels=(*ask.query.get("label", ()), *ask.query.get("label_contains", ())),
            metadata=tuple(
                (name[9:], values[-1]) for name, values in ask.query.items() if name.startswith("metadata.")
            ),
            live=status in ("active", "paused", "frozen"),
            revoked=status == "revoked",
            now_ns=now_ns,
            before_no=None if before is None else int(before),
            limit=limit,
        )
        await self.vault.journal.barrier()
        found = list[Grant]()
        more: int | None = None
        while True:
            places = await self._places(wanted)
            for grant in await self._read(self.vault.views([place % queries.DERIVED for place in places])):
                if status in ("all", grant.status(now_ns)):
                    found.append(grant)
            if len(places) == limit:
                more = places[-1]
            # An ancestor decides too, which the database can't tell: look on until the page is full.
            if len(places) < limit or len(found) >= limit:
                break
            wanted = replace(wanted, before_no=more)
            more = None
        if len(found) > limit:
            found = found[:limit]
            more = found[-1].no + (queries.DERIVED if found[-1].parent else 0)
        fields: tuple[tuple[bytes, bytes], ...] = ()
        if more is not None:
            fields = ((b"Link", f'<{next_page("/vault/keys", ask, more)}>; rel="next"'.encode()),)
        return Reply(wire.KeyList(keys=await self._shown(found)), fields=fields)

    async def show(self, ask: Ask) -> Reply:
        return Reply(self.key(await self.named(ask.parameters[0])))

    async def tree(self, ask: Ask) -> Reply:
        return Reply(await self._tree(await self.named(ask.parameters[0])))

    async def _tree(self, grant: Grant) -> wire.KeyTree:
        places = await self._places(queries.KeyFilter(parent_no=grant.no))
        numbers = [place % queries.DERIVED for place in places]
        views = await self._read(self.vault.views(numbers[::-1]))
        children = [await self._tree(child) for child in views]
        return wire.KeyTree(key=self.key(grant), children=children)

    async def whoami(self, head: Head) -> Reply:
        """What the key that asks may still do."""
        shown = _carried(head)
        if shown is None:
            raise HttpError(
                401, "key_missing", "/vault/self takes Authorization: Bearer, with a vault key", "kbctl issue"
            )
        grant = await self._own(shown)
        now_ns, tick_ns = self.vault.now_ns(), self.vault.tick_ns()
        day = day_of(now_ns)
        lineage, scopes = grant.lineage, grant.scopes
        vendors = [name for name in grant.vendors if all(name in holder.vendors for holder in lineage)]
        rules = dict.fromkeys(rule.text for holder in lineage for rule in holder.rules)
        deny = dict.fromkeys(entry.text for holder in lineage for entry in holder.deny)
        buckets = [scope.bucket for scope in scopes if scope.bucket is not None]
        tightest = min(buckets, key=lambda bucket: bucket.left(tick_ns), default=None)
        watched = [holder.duplicates for holder in lineage if holder.duplicates is not None]
        strictest = max(watched, key=lambda each: (each.action == "refuse", each.window_ns), default=None)
        loops = [holder.loop.text for holder in lineage if holder.loop is not None]
        expiries = [holder.expires_ns for holder in lineage if holder.expires_ns is not None]
        myself = wire.KeySelf(
            key_id=grant.key_id,
            status=grant.status(now_ns),
            vendors=vendors,
            allowed_endpoints=None if grant.allow is None else [entry.text for entry in grant.allow],
            denied_endpoints=list(deny),
            param_rules=list(rules),
            daily_usd_cap=_usd(grant.scope.daily_cap_nano),
            daily_usd_left=_usd(_least(scope.daily_room(day) for scope in scopes)),
            total_usd_cap=_usd(grant.scope.total_cap_nano),
            total_usd_left=_usd(_least(scope.total_room() for scope in scopes)),
            call_usd_cap=_usd(_least(scope.call_cap_nano for scope in scopes)),
            daily_requests=grant.scope.daily_requests,
            daily_requests_left=_least(scope.requests_left(day) for scope in scopes),
            rate=None if tightest is None else tightest.rate.text,
            rate_left=None if tightest is None else tightest.left(tick_ns),
            loop=loops[0] if loops else None,
            duplicates=strictest.text if strictest else None,
            expires_at=rfc3339(min(expiries)) if expiries else None,
            agent_run_label=grant.label,
            metadata=dict(grant.metadata),
        )
        return Reply(myself)

    # --- stopping -------------------------------------------------------------------------------

    async def revoke(self, ask: Ask) -> Reply:
        grant = await self.named(ask.parameters[0])
        return await self._revoke(Selection(frozenset({grant.no})), ask, abort=ask.text("abort") == "true")

    async def revoke_many(self, ask: Ask) -> Reply:
        request = wire.decode(ask.body, wire.RevokeRequest)
        given = [name for name in ("key_ids", "tenant", "label", "all") if getattr(request, name)]
        if len(given) != 1:
            raise usage("invalid_request", "a revocation takes exactly one of key_ids, tenant, label and all")
        if request.key_ids:
            numbers = frozenset([(await self.named(name)).no for name in request.key_ids])
            selection = Selection(numbers)
        else:
            selection = Selection(tenant=request.tenant, label=request.label, all=bool(request.all))
            await self.vault.journal.barrier(calls=False)  # a key on its way to disk is meant, too
        return await self._revoke(selection, ask, abort=bool(request.abort))

    async def _check_fits(self, selection: Selection) -> None:
        labels = () if selection.label is None else (selection.label,)
        if not await self._places(queries.KeyFilter(tenant=selection.tenant, labels=labels, limit=1)):
            raise KbctlError("key_unknown", "no key fits that", "kbctl keys --status all", Exit.NOT_FOUND)

    async def _revoke(self, selection: Selection, ask: Ask, *, abort: bool) -> Reply:
        before = set[str]()
        if selection.numbers:
            named = await self._read(self.vault.views([*selection.numbers]))
            before = {grant.key_id for grant in named if grant.revoked_ns is not None}
        try:
            done = await self.vault.revoke(selection, ask.actor, show=_SHOWN_MAX)
        except JournalError as error:
            raise KbctlError(
                "audit_unavailable",
                f"the keys are stopped until a restart, but that could not be recorded: {error}",
                "kbctl status    # then revoke again",
            ) from None
        if not done.stopped and not selection.numbers:
            await self._check_fits(selection)
        in_flight = sum(grant.in_flight for grant in done.flying)
        in_flight_nano = sum(grant.in_flight_nano for grant in done.flying)
        aborted = self.cut(done.flying) if abort else 0
        return Reply(
            wire.RevokeReply(
                revoked=await self._shown(done.shown),
                revoked_count=len(done.stopped),
                already=sorted(before),
                in_flight=in_flight,
                in_flight_usd=usd_from_nano(in_flight_nano),
                aborted=aborted,
            )
        )

    async def pause(self, ask: Ask) -> Reply:
        return await self._pause(ask, "an operator paused it")

    async def resume(self, ask: Ask) -> Reply:
        grant = await self.named(ask.parameters[0])
        for holder in grant.lineage:
            if holder.frozen:
                raise KbctlError(
                    "key_frozen",
                    f"key {holder.key_id} was stopped for good: {holder.frozen}",
                    "kbctl issue --help    # for a new one",
                    Exit.REFUSED,
                )
            if holder.paused and holder is not grant:
                raise KbctlError(
                    "parent_paused",
                    f"key {holder.key_id}, which {grant.key_id} comes from, is paused too",
                    f"kbctl resume {holder.key_id}    # first",
                    Exit.REFUSED,
                )
        return await self._pause(ask, None)

    async def _pause(self, ask: Ask, why: str | None) -> Reply:
        grant = await self.named(ask.parameters[0])
        try:
            await self.vault.pause(grant, why, ask.actor)
        except JournalError as error:
            raise unrecorded(error) from None
        return Reply(self.key(grant))

    # --- inside ---------------------------------------------------------------------------------

    async def named(self, reference: str) -> Grant:
        """The one key that a key id, the beginning of one, or a vault key means."""
        found = await self._read(self.vault.named(reference))
        if len(found) == 1:
            return found[0]
        # A vault key may stand here: never repeat it.
        shown = "that" if reference.startswith("vault_key_") else reference[:100]
        if found:
            raise usage("key_ambiguous", f"{shown} could be several keys; give more of the key id")
        raise KbctlError("key_unknown", f"there is no key {shown}", "kbctl keys --status all", Exit.NOT_FOUND)

    async def _own(self, vault_key: str) -> Grant:
        grant = await self._read(self.vault.find(vault_key))
        if grant is None:
            raise HttpError(
                401, "key_unknown", "no vault key like this was issued here", "kbctl issue --help"
            )
        status = grant.status(self.vault.now_ns())
        if status in ("revoked", "expired", "frozen"):
            code = "key_expired" if status == "expired" else "key_revoked"
            raise HttpError(401, code, f"key {grant.key_id} is {status}", "ask the operator for a new key")
        return grant

    async def _read(self, reading: Awaitable[T]) -> T:
        try:
            return await reading
        except JournalError as error:
            raise unrecorded(error) from None

    async def _places(self, wanted: queries.KeyFilter) -> Sequence[int]:
        """A page of keys, newest first."""
        try:
            return await queries.page_of_keys(self.vault.journal.database.readers, wanted)
        except sqlite3.Error as error:
            raise unrecorded(JournalError(f"the database can't be read: {error}")) from None

    async def _shown(self, grants: Sequence[Grant]) -> Keys:
        """Keys as they are shown; others are served meanwhile."""
        shown = []
        for turn, grant in enumerate(grants, start=1):
            shown.append(self.key(grant))
            if turn % _SHOWN_AT_ONCE == 0:
                await asyncio.sleep(0)
        return shown

    def key(self, grant: Grant) -> wire.Key:
        """A key as it is shown."""
        now_ns = self.vault.now_ns()
        day = day_of(now_ns)
        scope: Scope = grant.scope
        account = scope.account
        return wire.Key(
            key_id=grant.key_id,
            status=grant.status(now_ns),
            stopped_because=next(
                (why for holder in grant.lineage if (why := holder.frozen or holder.paused)), None
            ),
            parent_key_id=None if grant.parent is None else grant.parent.key_id,
            policy=grant.policy,
            tenant=grant.tenant,
            vendors=[*grant.vendors],
            daily_usd_cap=_usd(scope.daily_cap_nano),
            total_usd_cap=_usd(scope.total_cap_nano),
            call_usd_cap=_usd(scope.call_cap_nano),
            allowed_endpoints=None if grant.allow is None else [entry.text for entry in grant.allow],
            denied_endpoints=[entry.text for entry in grant.deny],
            param_rules=[rule.text for rule in grant.rules],
            daily_requests=scope.daily_requests,
            rate=None if scope.bucket is None else scope.bucket.rate.text,
            loop=None if grant.loop is None else grant.loop.text,
            on_loop=None if grant.loop is None else grant.loop.action,
            duplicates=None if grant.duplicates is None else grant.duplicates.text,
            stamp=grant.stamp,
            agent_run_label=grant.label,
            metadata=dict(grant.metadata),
            credential=grant.credential,
            created_at=rfc3339(grant.created_ns),
            expires_at=None if grant.expires_ns is None else rfc3339(grant.expires_ns),
            revoked_at=None if grant.revoked_ns is None else rfc3339(grant.revoked_ns),
            ending=grant.ending,
            spent_usd=usd_from_nano(account.posted.get(day, 0)),
            held_usd=usd_from_nano(account.held.get(day, 0)),
            total_spent_usd=usd_from_nano(account.posted_total),
            total_held_usd=usd_from_nano(account.held_total),
            requests_today=account.requests.get(day, 0),
        )


def _carried(head: Head) -> str | None:
    """The vault key in the head, wherever SDKs put theirs; None where there is none."""
    found = find_vault_key(head.get(b"authorization"), head.get(b"x-api-key"))
    if not isinstance(found, Refusal):
        return found.key
    if found.code is Code.KEY_MISSING:
        return None
    raise HttpError(found.http_status, found.code.value, found.sentence, found.remedy)


def next_page(path: str, ask: Ask, cursor: int) -> str:
    """Where a list goes on."""
    pairs = [(name, value) for name, values in ask.query.items() for value in values if name != "before"]
    return f"{path}?{urlencode([*pairs, ('before', str(cursor))])}"


def unrecorded(error: JournalError) -> KbctlError:
    """The database did not take it."""
    return KbctlError("audit_unavailable", f"the change could not be recorded: {error}", "kbctl status")


def _least(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return max(min(known), 0) if known else None


def _usd(nano: int | None) -> Decimal | None:
    return None if nano is None else usd_from_nano(nano)
