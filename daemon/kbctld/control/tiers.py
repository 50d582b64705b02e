"""Policies and tenants: limits that many keys share; and the list of what was changed.

What must stay true: policies are applied all together or not at all; what a live key may do changes only
where the operator asks for that, and is then in the list of changes.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.control.keys import next_page, unrecorded
from kbctld.control.parameters import Moment, Parameter, Text, Whole
from kbctld.control.routes import Ask, Reply, Route
from kbctld.control.terms import check_tenant, pushed, said_in, said_on_wire, usage
from kbctld.core.entry import EntryError
from kbctld.core.ledger import Scope, day_of
from kbctld.core.limits import Limits, Said, merged
from kbctld.core.money import usd_from_nano
from kbctld.core.rule import RuleError
from kbctld.store import queries
from kbctld.store.changes import limits_of_row
from kbctld.store.journal import JournalError
from kbctld.vault import Vault

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_POLICIES_MAX = 1000


@dataclass(slots=True)
class TierHandlers:
    """The handlers and what they work on."""

    vault: Vault
    _setting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def routes(self) -> list[Route]:
        """This part of the table."""
        window: dict[str, Parameter] = {
            "subject": Text("Only changes of this key id, policy, tenant, credential or token."),
            "from": Moment("Only from then on."),
            "to": Moment("Only before then."),
            "limit": Whole("Changes of a page.", 1, queries.LIMIT_MAX, default=100),
            "before": Whole("The cursor of the next page, from the Link field.", 1, 2**62),
        }
        return [
            Route("GET", "/policies", self.list, "read", "List policies", gives=wire.PolicyList),
            Route(
                "PUT",
                "/policies",
                self.apply,
                "admin",
                "Put policies in place, all of them or none",
                takes=wire.PolicyApply,
                gives=wire.PolicyChanges,
                errors=(503,),
            ),
            Route(
                "GET",
                "/policies/{policy}",
                self.show,
                "read",
                "Show a policy",
                gives=wire.Policy,
                errors=(404, 503),
            ),
            Route(
                "PUT",
                "/policies/{policy}",
                self.set,
                "admin",
                "Put one policy in place",
                takes=wire.Policy,
                gives=wire.PolicyChanges,
                errors=(503,),
            ),
            Route(
                "DELETE",
                "/policies/{policy}",
                self.remove,
                "admin",
                "Remove a policy; its keys stay as they are",
                status=204,
                errors=(404, 503),
            ),
            Route("GET", "/tenants", self.tenants, "read", "List tenants", gives=wire.TenantList),
            Route("GET", "/tenants/{tenant}", self.tenant, "read", "Show a tenant", gives=wire.Tenant),
            Route(
                "PUT",
                "/tenants/{tenant}",
                self.set_tenant,
                "admin",
                "Limit all keys of a tenant together",
                takes=wire.TenantRequest,
                gives=wire.Tenant,
                errors=(503,),
            ),
            Route(
                "GET",
                "/changes",
                self.changes,
                "read",
                "What operators and agents changed, newest first",
                gives=list[wire.Change],
                query=window,
            ),
        ]

    # --- policies -------------------------------------------------------------------------------

    async def list(self, ask: Ask) -> Reply:
        policies = [self._policy(name) for name in sorted(self.vault.policies)]
        return Reply(wire.PolicyList(policies=policies))

    async def show(self, ask: Ask) -> Reply:
        return Reply(self._policy(self._known(ask.parameters[0])))

    async def apply(self, ask: Ask) -> Reply:
        return Reply(await self._apply(wire.decode(ask.body, wire.PolicyApply), ask.actor))

    async def set(self, ask: Ask) -> Reply:
        policy = wire.decode(ask.body, wire.Policy)
        if policy.name != ask.parameters[0]:
            raise usage("invalid_request", "`name` is another than the path's")
        return Reply(await self._apply(wire.PolicyApply(policies=[policy]), ask.actor))

    async def remove(self, ask: Ask) -> Reply:
        name = self._known(ask.parameters[0])
        try:
            await self.vault.set_policies({name: None}, None, ask.actor)
        except JournalError as error:
            raise unrecorded(error) from None
        return Reply(None)

    async def _apply(self, request: wire.PolicyApply, actor: str) -> wire.PolicyChanges:
        if len(request.policies) > _POLICIES_MAX:
            raise usage("invalid_request", f"`policies` takes at most {_POLICIES_MAX:,}")
        wanted = dict[str, Said]()
        for policy in request.policies:
            if policy.name in wanted:
                raise usage("invalid_request", f"`policies` names {policy.name!r} twice")
            wanted[policy.name] = self._said(policy)
        changes = []
        for name, said in wanted.items():
            live = await self.vault.live_keys_of(name)
            changes.append(_difference(name, self._stored(name), said, len(live)))
        keys_changed = list[str]()
        if not request.dry_run:
            texts: dict[str, str | None] = {
                name: wire.encode(said_on_wire(said)).decode() for name, said in wanted.items()
            }

            def push(row: dict[str, Any]) -> Limits:
                return pushed(row, wanted[row["policy"]], self.vault.vendors, limits_of_row(row))

            try:
                keys_changed = await self.vault.set_policies(texts, push if request.live else None, actor)
            except (EntryError, RuleError) as error:
                raise usage("endpoint_entry", f"a live key can't take it: {error}") from None
            except JournalError as error:
                raise unrecorded(error) from None
        return wire.PolicyChanges(changes=changes, applied=not request.dry_run, keys_changed=keys_changed)

    def _said(self, policy: wire.Policy) -> Said:
        if not _NAME.fullmatch(policy.name):
            raise usage(
                "invalid_request", "`name` takes 1 to 64 letters, digits, dots, dashes and underscores"
            )
        for vendor in policy.vendors or ():
            if vendor not in self.vault.vendors:
                known = ", ".join(sorted(self.vault.vendors))
                raise usage("vendor_unknown", f"there is no vendor {vendor[:100]!r}; there is {known}")
        said = said_in(policy, list(self.vault.vendors.values()))
        if "daily_cap_nano" not in said and said.get("total_cap_nano") is None:
            raise usage(
                "cap_missing",
                f"the policy {policy.name} needs daily_usd_cap",
                f"kbctl policy set {policy.name} --cap 500, or --cap none to set no limit",
            )
        return said

    def _stored(self, name: str) -> Said | None:
        text = self.vault.policies.get(name)
        if text is None:
            return None
        return said_in(wire.decode(text.encode(), wire.Limits), list(self.vault.vendors.values()))

    def _known(self, name: str) -> str:
        if name not in self.vault.policies:
            raise KbctlError(
                "policy_unknown", f"there is no policy {name[:100]}", "kbctl policy list", Exit.NOT_FOUND
            )
        return name

    def _policy(self, name: str) -> wire.Policy:
        limits = wire.decode(self.vault.policies[name].encode(), wire.Limits)
        fields = {field: getattr(limits, field) for field in limits.__struct_fields__}
        return wire.Policy(name=name, **fields)

    # --- tenants --------------------------------------------------------------------------------

    async def tenants(self, ask: Ask) -> Reply:
        await self.vault.journal.barrier()
        names = await queries.tenant_names(self.vault.journal.database.reader)
        return Reply(wire.TenantList(tenants=[await self._tenant(name) for name in names]))

    async def tenant(self, ask: Ask) -> Reply:
        check_tenant(ask.parameters[0])
        await self.vault.journal.barrier()
        return Reply(await self._tenant(ask.parameters[0]))

    async def set_tenant(self, ask: Ask) -> Reply:
        name = ask.parameters[0]
        check_tenant(name)
        request = wire.decode(ask.body, wire.TenantRequest)
        limits = wire.Limits(
            daily_usd_cap=request.daily_usd_cap,
            total_usd_cap=request.total_usd_cap,
            call_usd_cap=request.call_usd_cap,
            daily_requests=request.daily_requests,
            rate=request.rate,
        )
        said = said_in(limits, ())
        try:
            async with self._setting:  # two at once on different fields must not undo each other
                wanted = merged(said, _limits_of(await self.vault.tenant(name)))
                await self.vault.set_tenant(name, wanted, ask.actor, said_on_wire(said))
        except JournalError as error:
            raise unrecorded(error) from None
        return Reply(await self._tenant(name))

    async def _tenant(self, name: str) -> wire.Tenant:
        scope = await self.vault.tenant(name)
        now_ns = self.vault.now_ns()
        day, account = day_of(now_ns), scope.account
        live = queries.KeyFilter(tenant=name, live=True, now_ns=now_ns)
        shown = said_on_wire({field: getattr(_limits_of(scope), field) for field in _TENANT_SAID})
        return wire.Tenant(
            tenant=name,
            **shown,
            spent_usd=usd_from_nano(account.posted.get(day, 0)),
            held_usd=usd_from_nano(account.held.get(day, 0)),
            total_spent_usd=usd_from_nano(account.posted_total),
            total_held_usd=usd_from_nano(account.held_total),
            requests_today=account.requests.get(day, 0),
            keys_active=await queries.count_keys(self.vault.journal.database.reader, live),
        )

    # --- changes --------------------------------------------------------------------------------

    async def changes(self, ask: Ask) -> Reply:
        before = ask.text("before")
        wanted = queries.ChangeFilter(
            subject=ask.text("subject"),
            from_ns=ask.moment("from"),
            to_ns=ask.moment("to"),
            before_no=None if before is None else int(before),
            limit=int(ask.text("limit") or 100),
        )
        await self.vault.journal.barrier()
        found, cursor = await queries.changes(self.vault.journal.database.reader, wanted)
        fields: tuple[tuple[bytes, bytes], ...] = ()
        if cursor is not None:
            fields = ((b"Link", f'<{next_page("/changes", ask, cursor)}>; rel="next"'.encode()),)
        return Reply(found, fields=fields)


_TENANT_SAID = ("daily_cap_nano", "total_cap_nano", "call_cap_nano", "daily_requests", "rate")


def _limits_of(scope: Scope) -> Limits:
    return Limits(
        daily_cap_nano=scope.daily_cap_nano,
        total_cap_nano=scope.total_cap_nano,
        call_cap_nano=scope.call_cap_nano,
        daily_requests=scope.daily_requests,
        rate=None if scope.bucket is None else scope.bucket.rate,
    )


def _difference(name: str, before: Said | None, after: Said, live_keys: int) -> wire.PolicyChange:
    old, new = said_on_wire(before or {}), said_on_wire(after)
    fields = {
        field: [old.get(field), new.get(field)]
        for field in sorted(old.keys() | new.keys())
        if _told(old, field) != _told(new, field)
    }
    action = "add" if before is None else "change" if fields else "none"
    return wire.PolicyChange(name=name, action=action, fields=fields, live_keys=live_keys)


def _told(shown: Mapping[str, Any], field: str) -> tuple[bool, Any]:
    """A cap of null is not the same as none said."""
    return field in shown, shown.get(field)
