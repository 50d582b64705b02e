"""Asks vendors for prices that they tell some time after a call, and corrects what was posted.

What must stay true: one question at a time, in its turn at the real key among those of the call's own key;
each is a row of its own, on disk before it leaves; only a price that was told corrects anything; and what is
waiting is on disk, so that a restart goes on with it.
"""

import asyncio
import json
import logging
import sqlite3
from typing import Any

from kbctld.core.form import EMPTY
from kbctld.core.grant import Grant
from kbctld.core.later import TRIES_MAX, true_price, wait_s
from kbctld.core.ledger import NS_PER_S
from kbctld.core.operation import Later
from kbctld.core.policy import Access
from kbctld.core.refusal import Refusal
from kbctld.core.target import Arrived
from kbctld.credentials import Credential
from kbctld.proxy.call import Refused
from kbctld.proxy.ours import hear, new_row, recorded
from kbctld.proxy.plane import Plane
from kbctld.proxy.upstream import UpstreamError
from kbctld.store.journal import JournalError
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
        operation, parameters = vendor.match("GET", target.path, target.segments)
        access = Access(vendor, "GET", target, operation, parameters, {})
        credential = plane.usable_credential(grant, vendor, call.credential)
        async with plane.turn(grant, access, credential) as turn:
            await turn.comes()
            row = new_row(plane, access, f"kbctl asked what {call.call_id} cost")

            def ready() -> Credential:
                turn.leaves()
                return credential

            async with recorded(plane, row):
                heard = await hear(plane, access, row, ready, most=_ANSWER_BYTES)
        if heard.raw is None or not 200 <= heard.status < 300:
            return {}
        try:
            said = json.loads(heard.raw)
        except (ValueError, RecursionError):
            return {}
        return said if isinstance(said, dict) else {}
