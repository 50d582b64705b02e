"""An event loop whose time is a figure: waiting takes none, and every run is the same."""

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_NS_PER_S = 1_000_000_000


class _Selector(selectors.SelectSelector):
    """Where the loop would sleep, time goes on instead."""

    now_ns = 1_000 * _NS_PER_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits, and for nothing that time could bring"
            self.now_ns += -int(-timeout * _NS_PER_S // 1)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._hands = _Selector()
        self.unheard: list[Mapping[str, Any]] = []
        super().__init__(self._hands)
        self.set_exception_handler(lambda _loop, context: self.unheard.append(context))

    def time(self) -> float:
        return self._hands.now_ns / _NS_PER_S

    def now_ns(self) -> int:
        """The same in nanoseconds, without rounding."""
        return self._hands.now_ns

    def jump(self, by_ns: int) -> None:
        """The machine was busy with something else."""
        self._hands.now_ns += by_ns

    @property
    def timers(self) -> int:
        """How many are set."""
        return sum(not handle.cancelled() for handle in self._scheduled)  # type: ignore[attr-defined]


def virtual_loop() -> VirtualLoop:
    """The one that runs us."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result; fails on what failed unheard."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(main)
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        assert not loop.unheard, loop.unheard
    return result
