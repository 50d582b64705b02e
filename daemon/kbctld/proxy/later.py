"""Asks vendors for prices that they tell some time after a call, and corrects what was posted.

What must stay true: one question at a time, in its turn at the real key among those of the call's own key;
each is a row of its own, on disk before it leaves; only a price that was told corrects anything; and what is
waiting is on disk, so that a restart goes on with it.
"""

import asyncio
import json
import logging
import sqlite3
import time
from typing import Any

from kbctld.core.body import EMPTY
from kbctld.core.grant import Grant
from kbctld.core.later import TRIES_MAX, true_price, wait_s
from kbctld.core.ledger import NS_PER_S
from kbctld.core.operation import Later
from kbctld.core.policy import Access
from kbctld.core.refusal import Refusal
from kbctld.core.target import Arrived
from kbctld.proxy.call import Refused
from kbctld.proxy.exchange import Plane
from kbctld.proxy.inject import outbound_head
from kbctld.proxy.upstream import UpstreamError
from kbctld.store.journal import CallRow, JournalError
from kbctld.store.later import Awaited, next_due

log = logging.getLogger("kbctld.proxy")

_APART_S = 0.2
_LOOK_AGAIN_S = 600.0
_FAILED_S = 60.0
_ANSWER_BYTES = 1024 * 1024


class LaterPrices:
    """``run`` goes on until it is cancelled."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._vault = plane.vault

    async def run(self) -> None:
        """Ask for each price when it is due."""
        while True:
            try:
                await asyncio.sleep(await self.step())
            except (JournalError, sqlite3.Error) as error:
                log.warning("prices can't be asked for now: %s", error)
                await asyncio.sleep(_FAILED_S)

    async def step(self) -> float:
        """Ask for the price that is due first, if it is; gives the seconds until the next step.

        Raises:
            JournalError: nothing can be recorded now.
            sqlite3.Error: nothing can be read now.
        """
        wake = self._vault.awaits
        wake.clear()
        await self._vault.journal.barrier()
        call = await next_due(self._vault.journal.database.reader)
        wait_for = _LOOK_AGAIN_S if call is None else (call.due_ns - self._vault.now_ns()) / NS_PER_S
        if call is None or wait_for > 0:
            try:
                await asyncio.wait_for(wake.wait(), min(wait_for, _LOOK_AGAIN_S))
            except TimeoutError:
                pass
            return 0.0
        await self._ask(call)
        return _APART_S

    async def _ask(self, call: Awaited) -> None:
        vendor = self._plane.vendors.get(call.vendor)
        operation = vendor.operations.get(call.operation) if vendor is not None else None
        later = operation.later if operation is not None else None
        if later is None:
            self._vault.give_up(call)  # the file no longer says where
            return
        grant = await self._vault.grant_of(call.key_no)
        try:
            said = await self._answer(call, grant)
        except Refused as refused:
            log.info("%s: its price can't be asked for now: %s", call.call_id, refused.refusal.sentence)
            self._vault.put_off(call, wait_s(later, call.tries), call.tries)  # nobody asked: not counted
            return
        except UpstreamError as error:
            log.info("%s: its price was not told: %s", call.call_id, error.detail)
            said = {}
        self._told(call, grant, later, said)

    def _told(self, call: Awaited, grant: Grant, later: Later, said: dict[str, Any]) -> None:
        nano = true_price(later, call.path, said, call.fees_nano, self._vault.rates)
        if nano is not None:
            self._vault.correct(call, grant, nano)
        elif call.tries + 1 >= TRIES_MAX:
            log.info("%s: its price was never told; what was held stays spent", call.call_id)
            self._vault.give_up(call)
        else:
            self._vault.put_off(call, wait_s(later, call.tries + 1), call.tries + 1)

    async def _answer(self, call: Awaited, grant: Grant) -> dict[str, Any]:
        """The members of the vendor's answer; none of one that is no success or no object.

        Raises:
            Refused: nothing may leave now.
            UpstreamError: the vendor gave no usable answer.
            JournalError: it can't be recorded.
        """
        plane, vendor = self._plane, self._plane.vendors[call.vendor]
        target = vendor.settle(Arrived(None, call.path, "", EMPTY))
        if isinstance(target, Refusal):
            raise Refused(target)
        access = Access(vendor, "GET", target, None, {}, {})
        credential = plane.usable_credential(grant, vendor, call.credential)
        async with plane.turn(grant, access, credential) as turn:
            await turn.comes()
            row = self._row(call, access)
            await self._vault.append(row)
            began_ns = time.perf_counter_ns()
            try:
                pool, access = plane.way(access)
                connection = await pool.connection()
                try:
                    head = outbound_head(
                        access, pool.origin.authority, credential, vendor.file.auth.scheme, (), None
                    )
                    connection.send(head, head_only=False)
                    turn.leaves()
                    answer = await connection.answer(pool.limits.first_byte_s)
                    row.status = answer.status
                    raw = bytearray()
                    async for piece in connection.body(pool.limits.silence_s):
                        raw += piece
                        if len(raw) > _ANSWER_BYTES:
                            return {}
                finally:
                    connection.release()
            finally:
                row.latency_us = row.upstream_us = (time.perf_counter_ns() - began_ns) // 1000
                self._vault.journal.finish(row)
        if not 200 <= answer.status < 300:
            return {}
        try:
            said = json.loads(raw)
        except (ValueError, RecursionError):
            return {}
        return said if isinstance(said, dict) else {}

    def _row(self, call: Awaited, access: Access) -> CallRow:
        """Ours: of no key, and it costs nothing whatever comes of it."""
        row = self._vault.new_row()
        row.vendor, row.method, row.endpoint = call.vendor, "GET", access.target.path
        operation, _ = access.vendor.match("GET", access.target.path, access.target.segments)
        row.operation = operation.name if operation is not None else None
        row.reason = f"kbctl asked what {call.call_id} cost"
        row.upstream = self._plane.overridden.get(call.vendor)
        row.outcome, row.requested_nano = "posted", 0
        return row
