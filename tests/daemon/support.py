"""A vault over a real journal, a clock that the test sets, and a way to look at all that it remembers."""

import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

from kbctld.core.form import read_form
from kbctld.core.grant import Grant
from kbctld.core.limits import Limits
from kbctld.core.money import NANO_PER_USD, rates_from
from kbctld.core.policy import Permit, Request
from kbctld.core.refusal import Refusal
from kbctld.core.vendor import Vendor, read_vendor
from kbctld.store.database import open_database
from kbctld.store.journal import CallRow
from kbctld.vault import Selection, Terms, Vault
from tests.core.support import access

USD = NANO_PER_USD
DAY_NS = 86_400 * 10**9
NOON = 20_778 * DAY_NS + DAY_NS // 2
"""2026-11-21T12:00:00Z."""

STRIPE = read_vendor((resources.files("kbctld") / "vendors" / "stripe.toml").read_text(encoding="utf-8"))
RATES = rates_from("2026-11-20", {"EUR": Fraction(11, 10)})

POORER = read_vendor(
    """
schema = 1
name = "stripe"
title = "Stripe"
docs = "https://docs.stripe.com/api"
origin = "https://api.stripe.com"
body = "form"
error_shape = "stripe"
request_id_header = "Request-Id"
roots = ["/v1/"]
auth = { scheme = "bearer" }
[[operation]]
name = "payment_intents.create"
match = "POST /v1/payment_intents"
cost = { kind = "amount", amount = "amount", currency = "currency", object = "id" }
"""
)
"""The same vendor after its file lost its refunds."""

MAIL = read_vendor(
    """
schema = 1
name = "mail"
title = "Mail"
docs = "https://example.com"
origin = "https://api.example.com"
body = "form"
error_shape = "stripe"
request_id_header = "X-Request-Id"
roots = ["/v1/"]
auth = { scheme = "bearer" }
[[operation]]
name = "mails.send"
match = "POST /v1/mails"
cost = { kind = "free" }
"""
)

TERMS = Terms(
    limits=Limits(vendors=("stripe",), daily_cap_nano=500 * USD),
    label="",
    tenant=None,
    metadata={},
    credential=None,
)
_LIMITS = frozenset(field.name for field in fields(Limits))


@dataclass
class Clock:
    """What the machine's clock says."""

    ns: int = NOON

    def __call__(self) -> int:
        return self.ns


@asynccontextmanager
async def vault_in(folder: Path, clock: Clock | None = None, vendor: Vendor = STRIPE) -> AsyncIterator[Vault]:
    """A vault, loaded; closed in order at the end."""
    database = await open_database(folder / "kbctl.db", folder / "kbctl.anchor", accept_rollback=False)
    clock = clock or Clock()
    vault = Vault(database, {"stripe": vendor}, RATES, wall_ns=clock, boot_ns=clock)
    vault.patience_s = 0.5
    try:
        await vault.load()
        await load_all(vault)
        yield vault
    finally:
        await vault.close()


async def load_all(vault: Vault) -> None:
    """Every key, as if each had been used: a start alone reads only those with open holds."""
    for (number,) in await vault.journal.database.reader.execute_fetchall("SELECT no FROM vault_key"):
        await vault._by_number(number)


def known(vault: Vault) -> list[Grant]:
    """The keys in memory, in order of issue."""
    return sorted(vault.loaded(), key=lambda grant: grant.no)


def terms(**changes: Any) -> Terms:
    """Terms that differ from the usual ones."""
    limits = replace(TERMS.limits, **{name: changes.pop(name) for name in _LIMITS & changes.keys()})
    return replace(TERMS, limits=limits, **changes)


async def issue(vault: Vault, **changes: Any) -> Grant:
    return (await vault.issue(terms(**changes), "tester"))[0]


async def revoke(vault: Vault, *grants: Grant) -> list[int]:
    """The numbers of those that it stopped."""
    return (await vault.revoke(Selection(frozenset(grant.no for grant in grants)), "tester")).stopped


async def ask(
    vault: Vault,
    grant: Grant,
    cents: int = 100,
    *,
    call: str = "POST /v1/payment_intents",
    replay: bytes | None = None,
) -> tuple[CallRow, Permit | Refusal]:
    """Authorize a call and make its row durable, as an exchange does."""
    row = vault.new_row()
    row.key_no, row.vendor = grant.no, "stripe"
    body = f"amount={cents}&currency=usd".encode()
    asked = Request(read_form(body), {}, body[:16].ljust(16), body, replay)
    verdict = vault.authorize(grant, access(call, vendor=STRIPE), asked, row)
    if isinstance(verdict, Permit):
        await vault.append(row)
    else:
        row.outcome, row.policy_check_result, row.amount_nano = "refused", verdict.code.value, 0
        await vault.journal.refuse(row)
    return row, verdict


async def allowed(vault: Vault, grant: Grant, cents: int = 100, **also: Any) -> tuple[CallRow, Permit]:
    row, verdict = await ask(vault, grant, cents, **also)
    assert isinstance(verdict, Permit), verdict
    return row, verdict


# --- looking ----------------------------------------------------------------------------------------------


def balances(vault: Vault) -> dict[str, Any]:
    """Per key: what is posted and held, by day and in all."""
    return {
        grant.key_id: (
            {day: nano for day, nano in grant.scopes[0].account.posted.items() if nano},
            {day: nano for day, nano in grant.scopes[0].account.held.items() if nano},
            grant.scopes[0].account.posted_total,
            grant.scopes[0].account.held_total,
        )
        for grant in known(vault)
    }


def keys(vault: Vault) -> list[tuple[Any, ...]]:
    """All that a key is, in order of issue."""
    return [
        (
            *(grant.no, grant.key_id, grant.digest, grant.ending, grant.vendors, grant.scope.call_cap_nano),
            *(grant.scopes[0].daily_cap_nano, grant.scopes[0].total_cap_nano, grant.allow, grant.deny),
            *(grant.label, grant.tenant, dict(grant.metadata), grant.credential),
            *(grant.created_ns, grant.expires_ns, grant.revoked_ns, grant.frozen),
        )
        for grant in known(vault)
    ]


def holds(vault: Vault) -> set[tuple[Any, ...]]:
    """Every open hold; how far it has come is left out, because a restart can't know."""
    return {
        (hold.call_id, hold.nano, hold.day, hold.request, hold.replay, hold.held_ns)
        for hold in vault.ledger.open
    }


def replays(vault: Vault) -> dict[bytes, tuple[str, bytes, int]]:
    """Which requests are known again now, and by which call; those older than the vendor's window are not."""
    assert STRIPE.file.idempotency is not None
    window_ns = STRIPE.file.idempotency.window_hours * 3600 * 10**9
    return {
        replay: (hold.call_id, hold.request, hold.held_ns)
        for replay, hold in vault.ledger._replays.items()
        if vault.ledger.find_replay(replay, hold.request, vault.now_ns(), window_ns) is hold
    }


def stored(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """What is on disk, read by a connection of its own."""
    with closing(sqlite3.connect(folder / "kbctl.db")) as stranger:
        return stranger.execute(sql).fetchall()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Somebody else holds the write lock."""
    with closing(sqlite3.connect(folder / "kbctl.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            holder.execute("ROLLBACK")


def crash_copy(folder: Path, to: Path) -> Path:
    """The files as they lie on disk now: what a start after kill -9 finds."""
    to.mkdir()
    for path in folder.iterdir():
        if path.name.startswith("kbctl."):
            shutil.copy(path, to / path.name)
    return to
