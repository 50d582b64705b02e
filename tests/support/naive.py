"""Naive variants of the daemon: what somebody might have built, and every checker of the laws must catch."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from kbctld.core.clock import Clock
from kbctld.core.ledger import Ledger, Verdict
from kbctld.store.journal import Journal
from kbctld.vault import Vault

NAIVE: dict[str, str] = {
    "free-on-silence": "a timeout releases the hold",
    "send-first": "the call leaves before its row is durable",
    "forget-holds": "a restart forgets what is held",
    "check-then-add": "two calls at once see the same room",
    "revoke-in-memory": "a revocation is not recorded",
    "believe-the-clock": "a clock that is set ahead opens a new day",
    "every-retry-pays": "a repetition takes a hold of its own",
}


@contextmanager
def naive(how: str) -> Iterator[None]:
    """The daemon of this process is that naive one for a while."""
    owner, name, instead = _VARIANTS[how]()
    with patch.object(owner, name, instead):
        yield


Variant = tuple[type, str, Any]


def _free_on_silence() -> Variant:
    settle = Ledger.settle

    def freeing(self: Ledger, attempt: Any, verdict: Verdict, **also: Any) -> Any:
        proved = Verdict.REFUSED if verdict is Verdict.SILENT else verdict
        return settle(self, attempt, proved, **also)

    return Ledger, "settle", freeing


def _send_first() -> Variant:
    append, tasks = Journal.append, set[asyncio.Task[None]]()

    async def slowly(self: Journal, row: Any) -> None:
        await asyncio.sleep(0.05)
        await append(self, row)

    async def later(self: Journal, row: Any) -> None:
        task = asyncio.get_running_loop().create_task(slowly(self, row))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return Journal, "append", later


def _forget_holds() -> Variant:
    return Ledger, "restore_hold", Ledger.restore_replay


def _check_then_add() -> Variant:
    take = Ledger.take

    def taking(self: Ledger, scopes: Any, **also: Any) -> Any:
        nano, also["nano"] = also["nano"], 0
        attempt = take(self, scopes, **also)
        hold = attempt.hold

        def add() -> None:
            if hold in self.open and not hold.nano:
                hold.nano = nano
                for account in hold.accounts:
                    account.hold(hold.day, nano)

        asyncio.get_running_loop().call_later(0.02, add)
        return attempt

    return Ledger, "take", taking


def _revoke_in_memory() -> Variant:
    async def nothing(*_args: Any) -> None:
        """Not recorded."""

    return Vault, "_record_patiently", nothing


def _believe_the_clock() -> Variant:
    def at(self: Clock, wall_ns: int, _boot_ns: int) -> int:
        self.highest_ns = max(self.highest_ns, wall_ns)
        return self.highest_ns

    return Clock, "at", at


def _every_retry_pays() -> Variant:
    def none(*_args: Any) -> None:
        """It finds no earlier one."""

    return Ledger, "find_replay", none


_VARIANTS: dict[str, Callable[[], Variant]] = {
    "free-on-silence": _free_on_silence,
    "send-first": _send_first,
    "forget-holds": _forget_holds,
    "check-then-add": _check_then_add,
    "revoke-in-memory": _revoke_in_memory,
    "believe-the-clock": _believe_the_clock,
    "every-retry-pays": _every_retry_pays,
}
