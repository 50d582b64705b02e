"""Reads what a language model's answer says of its usage, from a stream of events as it passes by.

What must stay true: every byte passes in its order and as it came, held back no longer than its event takes
to end; the one exception is the event that tells the usage because we, not the agent, asked for it. What has
passed always ends with an event, so that a word of our own can follow it. Usage counts only where the stream
says that it is the whole: an early figure is a part of it. Events that can't tell a usage are not taken
apart: the work on a piece is a few searches, however many events stand in it.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from kbctld.core.tokens import STREAMS_ASKED_FOR_USAGE, TokenApi

# Two line ends in a row, of whichever kind; each pair of bytes stands in one of these.
_PAIRS = (b"\n\n", b"\n\r", b"\r\r")
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_EVENT_BYTES = 10 * 1024 * 1024
"""The last event of a Responses stream repeats the whole answer; a longer one passes unread."""

# A usage that is not null. Where an event's data take several lines, their prefix may stand in between.
_USAGE = re.compile(rb'"usage"(?:\s|data:)*:(?:\s|data:)*\{')
_DONE = b"[DONE]"
_TIER = b'"service_tier"'

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
        lost: whether an event was too long to be held back, so that what has passed may end within it.
    """

    def __init__(self, api: TokenApi, *, hides: bool) -> None:
        """Args: api: whose events. hides: whether the agent did not ask for the event with the usage."""
        self.final = False
        self.lost = False
        self._api = api
        self._hides = hides
        self._usage: dict[str, Any] | None = None
        self._tier: str | None = None
        self._kept = bytearray()
        self._seen = 0  # up to where no event ends
        self._half = False  # whether the last event ended with a CR, whose LF may be on its way
        self._hid = False  # whether the last event did not pass

    @property
    def told(self) -> dict[str, Any]:
        """The members of an answer that was not streamed, as far as they are about usage."""
        return {"usage": self._usage, "service_tier": self._tier} if self.final else {}

    def feed(self, piece: bytes) -> bytes:
        """What may pass now: events, whole."""
        if self.lost:
            return piece
        late = b""
        if self._half and piece:
            self._half = False
            if piece.startswith(b"\n"):
                piece, late = piece[1:], b"" if self._hid else b"\n"
        self._kept += piece
        end = self._last_end()
        if not end:
            if len(self._kept) <= _EVENT_BYTES:
                return late
            self.lost = True
            return late + self.rest()
        whole = bytes(self._kept[:end])
        del self._kept[:end]
        self._seen = len(self._kept)
        self._half = not self._kept and whole.endswith(b"\r")
        self._hid = False
        return late + (self._hear(whole) if self._may_tell(whole) else whole)

    def rest(self) -> bytes:
        """What was kept back, at the end of the stream: an event without an end."""
        kept, self._kept = bytes(self._kept), bytearray()
        return kept

    def error(self, body: bytes) -> bytes:
        """An event that says why the stream ends here, as the SDKs of its vendor read it.

        Args:
            body: the error as the body of an answer would tell it, on one line.
        """
        return (b"event: error\n" if self._api == "anthropic" else b"") + b"data: " + body + b"\n\n"

    def _last_end(self) -> int:
        """Where the last whole event ends; 0 where none does."""
        start = max(self._seen - 1, 0)
        self._seen = len(self._kept)
        end = max(self._kept.rfind(pair, start) for pair in _PAIRS) + 2
        if end < 2:
            return 0
        return end + (self._kept[end - 1 : end + 1] == b"\r\n")

    def _may_tell(self, data: bytes) -> bool:
        """Whether it is worth to be taken apart."""
        if _USAGE.search(data) is not None:
            return True
        if self._api not in STREAMS_ASKED_FOR_USAGE:
            return False
        return _DONE in data or (self._tier is None and _TIER in data)

    def _hear(self, whole: bytes) -> bytes:
        """Take events in; what of them is for the agent."""
        shown = []
        for event in _split(whole):
            self._hid = self._may_tell(event) and self._hear_event(event) and self._hides
            if not self._hid:
                shown.append(event)
        return b"".join(shown)

    def _hear_event(self, event: bytes) -> bool:
        """Take in one; whether it holds a usage and nothing else."""
        data = b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
        if data.strip() == _DONE:
            self.final = self._usage is not None
            return False
        try:
            if self._api in STREAMS_ASKED_FOR_USAGE:
                return self._hear_chunk(_chunk.decode(data))
            self._hear_step(_event.decode(data))
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

    def _hear_step(self, event: _Event) -> None:
        if event.type in _ENDS and event.response is not None and event.response.usage is not None:
            self._usage, self._tier, self.final = event.response.usage, event.response.service_tier, True
        elif event.type == "message_start" and event.message is not None:
            self._usage, self.final = dict(event.message.usage or {}), False
        elif event.type == "message_delta" and event.usage is not None and self._usage is not None:
            said = {name: value for name, value in event.usage.items() if value is not None}
            self._usage, self.final = {**self._usage, **said}, True


def _split(whole: bytes) -> Iterator[bytes]:
    begin = 0
    for found in _EVENT_END.finditer(whole):
        yield whole[begin : found.end()]
        begin = found.end()
