"""Whose request begins next, where many come at once.

What must stay true: whatever joined begins, once, in the order of its credential's line; a line that is long
holds up nobody but its own agent.
"""

import asyncio
from collections import deque
from collections.abc import Callable

# Requests with one credential that are begun in one round of the event loop: while others ask as well, and
# once nobody else has for a second. Of one agent alone, few in each round cost a tenth of all its calls.
_BEGUN_AT_ONCE = 1
_BEGUN_ALONE = 16
_ALONE_S = 1.0


class Line:
    """Requests that have yet to begin, in a line per credential.

    In each round of the event loop a few of each line begin, so that a thousand requests of one agent that
    come at once don't make everybody else wait for the last of them. What comes on a connection whose agent
    has a line already joins it as bytes: reading a thousand heads is a long step too.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lines: dict[bytes, deque[Callable[[], None]]] = {}
        self._begun: dict[bytes, int] = {}
        self._at_once = _BEGUN_ALONE
        self._latest = b""
        self._alone_from = 0.0

    def is_long(self, who: bytes) -> bool:
        """Whether one more with this credential has to wait."""
        return who in self._lines

    def join(self, who: bytes, begin: Callable[[], None]) -> None:
        """Begin something of a credential now, or in its turn."""
        if who != self._latest:
            self._latest, self._alone_from = who, self._loop.time() + _ALONE_S
            self._at_once = _BEGUN_AT_ONCE
        if not self._begun and not self._lines:
            self._loop.call_soon(self._round)
        begun = self._begun.get(who, 0)
        if begun < self._at_once and who not in self._lines:
            self._begun[who] = begun + 1
            begin()
        else:
            self._lines.setdefault(who, deque()).append(begin)

    def _round(self) -> None:
        self._begun.clear()
        if self._at_once == _BEGUN_AT_ONCE and self._loop.time() > self._alone_from:
            self._at_once = _BEGUN_ALONE
        for who, line in list(self._lines.items()):
            self._begun[who] = min(len(line), self._at_once)
            for _ in range(self._begun[who]):
                line.popleft()()
            if not line:
                del self._lines[who]
        if self._begun:
            self._loop.call_soon(self._round)
