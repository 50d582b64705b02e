"""The audit as something to hand over: verified, checkpointed, exported, pruned.

What must stay true: each of these reads in pages, in threads, on connections of its own, so that no call
waits for it and none holds a transaction for long. Verifying and pruning take turns: a walk must not be
overtaken by what takes rows away. Nothing is pruned that was not found good first.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from functools import partial

from kbctl import wire
from kbctl.checkpoint import BadCheckpointError, Checkpoint, read_checkpoint
from kbctl.errors import Exit, KbctlError
from kbctld.checkpoints import Checkpoints
from kbctld.control.call_filter import CALL_QUERY, wanted_calls
from kbctld.control.keys import KeyHandlers
from kbctld.control.parameters import Choice, Flag, Text, read_moment
from kbctld.control.routes import Ask, HttpError, Reply, Route
from kbctld.core.clock import rfc3339
from kbctld.core.ledger import NS_PER_DAY, day_of
from kbctld.store import changes, prune, queries
from kbctld.store.export import Exported, Writer
from kbctld.store.journal import JournalError
from kbctld.store.prune import Plan, Pruning
from kbctld.store.verify import Finding, Walk
from kbctld.vault import Vault

PRUNE_DAYS_LEAST = 2
"""Whole days that always stay: retries and the caps of a day look back as far."""
ROWS_AT_ONCE = 1000
_TELL_S = 0.2
_BREATH_S = 0.01
_JSON_LINES = "application/jsonl"


@dataclass(slots=True)
class Audits:
    """The handlers and what they work on."""

    vault: Vault
    checkpoints: Checkpoints
    keys: KeyHandlers
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def routes(self) -> list[Route]:
        """Their part of the table."""
        return [
            Route(
                *("GET", "/audit/checkpoint", self._checkpoint, "read", "How far the audit has come, signed"),
                gives=wire.AuditCheckpoint,
                errors=(409, 503),
            ),
            Route(
                *(
                    "GET",
                    "/audit/export",
                    self._export,
                    "read",
                    "Calls, oldest first, as a file that verifies",
                ),
                gives=str,
                query={
                    "format": Choice("How.", ("jsonl", "csv"), "jsonl"),
                    **CALL_QUERY,
                },
                errors=(404, 409, 503),
            ),
            Route(
                *("POST", "/audit/prune", self._prune, "admin", "Take old days out of the audit"),
                takes=wire.PruneRequest,
                gives=str,
                kind=_JSON_LINES,
                errors=(409, 503),
            ),
            Route(
                *("GET", "/audit/verify", self._verify, "read", "Whether every row says what was recorded"),
                gives=str,
                kind=_JSON_LINES,
                query={
                    "since": Text("A checkpoint: only what came after it, and that it is really there."),
                    "incremental": Flag("Only what came since it was last found good."),
                },
            ),
        ]

    # --- checkpoints ----------------------------------------------------------------------------

    async def _checkpoint(self, _ask: Ask) -> Reply:
        await self.vault.journal.barrier()
        made = self.checkpoints.now()
        self.checkpoints.keep(made)
        return Reply(
            wire.AuditCheckpoint(
                checkpoint=made.line, public_key=made.key, events=made.events, calls=made.calls
            )
        )

    # --- verifying ------------------------------------------------------------------------------

    async def _verify(self, ask: Ask) -> Reply:
        given, incremental = ask.text("since"), ask.text("incremental") == "true"
        since: Checkpoint | None = None
        if given is not None:
            if incremental:
                raise _usage("`since` and `incremental` both say where to begin")
            try:
                since = read_checkpoint(given)
            except BadCheckpointError as error:
                raise _usage(str(error), "kbctl audit checkpoint") from None
        elif incremental:
            since = await asyncio.to_thread(self.checkpoints.verified)
        await self.vault.journal.barrier()
        return Reply(self._walked(since), kind=_JSON_LINES.encode())

    async def _walked(self, since: Checkpoint | None) -> AsyncGenerator[bytes, None]:
        async with self._turn:
            walk = await self._walk(since)
            async for step in self._steps(walk, time.perf_counter()):
                yield wire.encode(step) + b"\n"

    async def _walk(self, since: Checkpoint | None) -> Walk:
        """A walk from there on, held against what is kept beside the database."""
        path = self.vault.journal.database.path
        foreign = since is not None and self.checkpoints.key is not None and since.key != self.checkpoints.key
        newest = await asyncio.to_thread(self.checkpoints.newest)
        kept = await asyncio.to_thread(self.checkpoints.kept)
        walk = Walk(path, since, {each.events: each for each in kept})
        if foreign and since is not None:
            walk.finding = _foreign(since, "the checkpoint")
        elif newest is not None and self.checkpoints.key is not None and newest not in kept:
            walk.finding = _foreign(newest, f"the newest checkpoint in {self.checkpoints.path}")
        return walk

    async def _steps(self, walk: Walk, began: float) -> AsyncGenerator[wire.VerifyStep, None]:
        told = 0.0
        try:
            while walk.finding is None and await asyncio.to_thread(walk.step):
                now = time.perf_counter()
                if now - told >= _TELL_S:
                    told = now
                    yield wire.VerifyStep(events=walk.event, of=max(walk.last, walk.event))
        finally:
            walk.close()
        verdict = self._verdict(walk, time.perf_counter() - began)
        yield wire.VerifyStep(events=walk.event, of=max(walk.last, walk.event), verdict=verdict)

    def _verdict(self, walk: Walk, seconds: float) -> wire.Verdict:
        finding, made = walk.finding, None
        if finding is None and self.checkpoints.key is not None:
            made = self.checkpoints.at(walk.event, walk.call_no, walk.link)
            with contextlib.suppress(OSError):
                self.checkpoints.set_verified(made)
        held = [*walk.against.values(), *([walk.since] if walk.since else [])]
        agreed = [each for each in held if each not in walk.passed and finding is None]
        if walk.since is not None:
            agreed = [each for each in agreed if each.events >= walk.since.events]
        return wire.Verdict(
            finding=None
            if finding is None
            else wire.Finding(
                what=finding.what,
                sentence=finding.sentence,
                row=finding.row,
                call_id=finding.call_id,
                event=finding.event,
            ),
            events=walk.events,
            calls=walk.calls,
            pruned_events=walk.pruned,
            since_event=walk.since.events if walk.since else 0,
            seconds=round(seconds, 3),
            agrees_with=[agreed[-1].when] if agreed else [],
            checkpoint=None if made is None else made.line,
            public_key=self.checkpoints.key,
        )

    # --- exporting ------------------------------------------------------------------------------

    async def _export(self, ask: Ask) -> Reply:
        await self.vault.journal.barrier()
        wanted = replace(await wanted_calls(ask, self.vault, self.keys), limit=ROWS_AT_ONCE)
        until = self.checkpoints.now()  # before anything is sent: without a key there is no file
        as_csv = ask.text("format") == "csv"
        filters: dict[str, object] = {
            name: values if name == "label_contains" else values[-1]
            for name, values in sorted(ask.query.items())
            if name != "format"
        }
        kind = b"text/plain; charset=utf-8"
        return Reply(self._exported(wanted, until, filters, as_csv=as_csv), kind=kind)

    async def _exported(
        self, wanted: queries.CallFilter, until: Checkpoint, filters: dict[str, object], *, as_csv: bool
    ) -> AsyncGenerator[bytes, None]:
        writer = Writer(csv=as_csv)
        if head := writer.head():
            yield head
        after = 0
        while True:
            page = replace(wanted, after_no=after, before_no=until.calls + 1)
            rows, found = await self.vault.journal.database.readers.run(partial(_page_of, writer, page))
            if rows:
                yield rows
            if found is None:
                break
            after = found
            await asyncio.sleep(0)
        said = {
            "filter": filters,
            "made": until.time,
            "checkpoint": until.line,
            "public_key": until.key,
        }
        yield writer.trailer(said, self.checkpoints.sign)

    # --- pruning --------------------------------------------------------------------------------

    async def _prune(self, ask: Ask) -> Reply:
        request = wire.decode(ask.body, wire.PruneRequest)
        before_ns = read_moment(request.before)
        if before_ns is None:
            raise _usage(
                "`before` is a time such as 2026-06-01T00:00:00Z", "kbctl prune --before 90d --dry-run"
            )
        latest_ns = (day_of(self.vault.now_ns()) - PRUNE_DAYS_LEAST + 1) * NS_PER_DAY
        if before_ns > latest_ns:
            raise _usage(
                f"the last {PRUNE_DAYS_LEAST} whole days always stay: retries and caps look back so far",
                "kbctl prune --before 90d --dry-run",
            )
        await self.vault.journal.barrier()
        return Reply(
            self._pruned(before_ns, ask.actor, dry_run=bool(request.dry_run)), kind=_JSON_LINES.encode()
        )

    async def _pruned(self, before_ns: int, actor: str, *, dry_run: bool) -> AsyncGenerator[bytes, None]:
        async with self._turn:
            steps = self._prune_steps(before_ns, actor, dry_run=dry_run)
            try:
                async for step in steps:
                    yield wire.encode(step) + b"\n"
            except (JournalError, KbctlError, sqlite3.Error) as error:
                yield wire.encode(wire.PruneStep(stage="prune", done=0, of=0, error=_told(error))) + b"\n"

    async def _prune_steps(
        self, before_ns: int, actor: str, *, dry_run: bool
    ) -> AsyncGenerator[wire.PruneStep, None]:
        readers = self.vault.journal.database.readers
        plan = await readers.run(lambda connection: prune.plan(connection, before_ns), limit_s=None)
        if dry_run or not plan.calls:
            yield wire.PruneStep(
                stage="prune", done=0, of=plan.calls, pruned=_pruned(plan, plan.calls, dry_run)
            )
            return
        walk = await self._walk(None)
        async for step in self._steps(walk, time.perf_counter()):
            yield wire.PruneStep(stage="verify", done=step.events, of=step.of)
        if walk.finding is not None:
            raise KbctlError(
                "audit_broken",
                f"nothing was pruned, because the audit does not verify: {walk.finding.sentence}",
                "kbctl audit verify",
                Exit.INTEGRITY,
            )
        journal = self.vault.journal
        marks = {each.events for each in await asyncio.to_thread(self.checkpoints.kept)}
        work = Pruning(plan, marks)
        details = {"before": rfc3339(plan.before_ns), "calls": plan.calls, "kept": plan.kept}
        await journal.change([changes.noted(self.vault.now_ns(), actor, "audit.prune", "calls", details)])
        while not work.over:
            await journal.carry_out(work.batch)
            yield wire.PruneStep(stage="prune", done=work.done, of=plan.calls)
            await asyncio.sleep(_BREATH_S)  # others write meanwhile
        free = total = await readers.run(prune.free_pages)
        while free:
            await journal.carry_out(prune.shrink)
            left = await readers.run(prune.free_pages)
            if left >= free:
                break
            free = left
            yield wire.PruneStep(stage="shrink", done=total - free, of=total)
            await asyncio.sleep(_BREATH_S)
        yield wire.PruneStep(
            stage="prune", done=work.done, of=plan.calls, pruned=_pruned(plan, work.done, False)
        )


def _page_of(
    writer: Writer, page: queries.CallFilter, connection: sqlite3.Connection
) -> tuple[bytes, int | None]:
    """The lines of a page, and the number of its last call; None where there is no page after it."""
    found = queries.exported(connection, page)
    exported: list[Exported] = [row[1:] for row in found]
    return writer.lines(exported), found[-1][0] if len(found) == page.limit else None


def _pruned(plan: Plan, calls: int, dry_run: bool) -> wire.Pruned:
    return wire.Pruned(
        before=rfc3339(plan.before_ns),
        calls=calls,
        kept=plan.kept,
        first=None if plan.first_ns is None else rfc3339(plan.first_ns),
        dry_run=dry_run,
    )


def _foreign(checkpoint: Checkpoint, what: str) -> Finding:
    return Finding(
        "signature",
        f"{what}, of {checkpoint.when}, has another key than this daemon's, or is of another database",
        event=checkpoint.events,
    )


def _told(error: Exception) -> wire.ErrorBody:
    if isinstance(error, KbctlError):
        return wire.ErrorBody(code=error.code, message=error.message, remedy=error.remedy)
    return wire.ErrorBody(code="audit_unavailable", message=f"pruning ended: {error}", remedy="kbctl status")


def _usage(message: str, remedy: str = "kbctl audit verify") -> HttpError:
    return HttpError(400, "invalid_request", message, remedy)
