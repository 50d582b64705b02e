"""Reads what a language model's answer says of its usage, from a stream of events as it passes by.

What must stay true: every byte passes in its order and as it came, held back no longer than its event takes
to end; the one exception is the event that tells the usage because we, not the agent, asked for it. Usage
counts only where the stream says that it is the whole: an early figure is a part of it.
"""

import re
from typing import Any

import msgspec

from kbctld.core.tokens import STREAMS_ASKED_FOR_USAGE, TokenApi

_BREAK = re.compile(rb"\r\n|\n|\r")
_EVENT_BYTES = 10 * 1024 * 1024
"""The last event of a Responses stream repeats the whole answer; a longer one passes unread."""

_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})


class _Answer(msgspec.Struct):
    usage: dict[str, Any] | None = None
    service_tier: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    usage: dict[str, Any] | None = None
    service_tier: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    response: _Answer | None = None
    message: _Answer | None = None
    usage: dict[str, Any] | None = None


_answer = msgspec.json.Decoder(_Answer)
_chunk = msgspec.json.Decoder(_Chunk)
_event = msgspec.json.Decoder(_Event)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def usage_in(raw: bytes) -> dict[str, Any]:
    """What an answer that is no stream says of its usage; empty where it can't be read."""
    try:
        answer = _answer.decode(raw)
    except _UNREADABLE:
        return {}
    return {"usage": answer.usage, "service_tier": answer.service_tier}


class UsageStream:
    """One answer's events, piece by piece.

    Attributes:
        final: whether the usage of the whole answer has been told.
        hides: whether an event may be left out of what passes.
    """

    def __init__(self, api: TokenApi, *, hides: bool) -> None:
        """Args: api: whose events. hides: whether the agent did not ask for the event with the usage."""
        self.final = False
        self.hides = hides
        self._api = api
        self._usage: dict[str, Any] | None = None
        self._tier: str | None = None
        self._kept = bytearray()
        self._data: list[bytes] = []
        self._line = 0  # where the line that is not yet whole begins
        self._seen = 0  # up to where no line ends
        self._lost = False

    @property
    def told(self) -> dict[str, Any]:
        """The members of an answer that was not streamed, as far as they are about usage."""
        return {"usage": self._usage, "service_tier": self._tier} if self.final else {}

    def feed(self, piece: bytes) -> bytes:
        """What may pass now."""
        if self._lost:
            return piece
        self._kept += piece
        shown = bytearray()
        begin = 0
        while (found := _BREAK.search(self._kept, self._seen)) is not None:
            if found[0] == b"\r" and found.end() == len(self._kept):
                break  # the other half of its line end may be on its way
            line = bytes(self._kept[self._line : found.start()])
            self._line = self._seen = found.end()
            if line:
                if line.startswith(b"data:"):
                    self._data.append(line[5:])
                continue
            if not self._hear(b"\n".join(self._data)):
                shown += self._kept[begin : found.end()]
            self._data.clear()
            begin = found.end()
        else:
            self._seen = len(self._kept)
        del self._kept[:begin]
        self._line -= begin
        self._seen -= begin
        if len(self._kept) > _EVENT_BYTES:
            self._lost = True
            return bytes(shown) + self.rest() if self.hides else piece
        return bytes(shown) if self.hides else piece

    def rest(self) -> bytes:
        """What was kept back, at the end of the stream."""
        kept, self._kept = bytes(self._kept) if self.hides else b"", bytearray()
        return kept

    def _hear(self, data: bytes) -> bool:
        """Take in one event; whether it is not for the agent."""
        if data.strip() == b"[DONE]":
            self.final = self._usage is not None
            return False
        try:
            if self._api in STREAMS_ASKED_FOR_USAGE:
                return self._hear_chunk(_chunk.decode(data)) and self.hides
            self._hear_event(_event.decode(data))
        except _UNREADABLE:
            pass
        return False

    def _hear_chunk(self, chunk: _Chunk) -> bool:
        self._tier = chunk.service_tier or self._tier
        if chunk.usage is None:
            return False
        self._usage = chunk.usage
        only = chunk.choices == []
        self.final = self.final or only
        return only

    def _hear_event(self, event: _Event) -> None:
        if event.type in _ENDS and event.response is not None and event.response.usage is not None:
            self._usage, self._tier, self.final = event.response.usage, event.response.service_tier, True
        elif event.type == "message_start" and event.message is not None:
            self._usage = dict(event.message.usage or {})
        elif event.type == "message_delta" and event.usage is not None and self._usage is not None:
            said = {name: value for name, value in event.usage.items() if value is not None}
            self._usage, self.final = {**self._usage, **said}, True
