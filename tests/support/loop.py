"""Runs a test's coroutine on the loop that the daemon runs on, and fails on whatever it leaves behind."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

DEADLINE_S = 30.0
"""No test waits for longer: one that hangs fails and says where."""


def run(
    main: Coroutine[Any, Any, T],
    *,
    deadline_s: float = DEADLINE_S,
    loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> T:
    """The coroutine's result, once nothing of it is left running and nothing failed unheard."""
    unheard: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context))
        async with asyncio.timeout(deadline_s):
            result = await main
            this = asyncio.current_task()
            while any(task is not this for task in asyncio.all_tasks()):
                await asyncio.sleep(0.001)
        return result

    with asyncio.Runner(loop_factory=loop) as runner:
        result = runner.run(watched())
    assert not unheard, unheard
    return result
