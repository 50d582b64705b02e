"""P1, P2, P5, P20: no head passes the gate that two readers could take for two things."""

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbctld.http1.gate import BadHead, Head, read_head
from kbctld.http1.server import Connection, Limits, Request, Server
from tests.http1.corpus import BODIES, FINE, HEADS, Case, graft
from tests.support.loop import run

HOST = b"127.0.0.1:4815"
KEY = b"vault_key_of_an_agent"


def whole(case: Case) -> bytes:
    return graft(case.change, host=HOST, key=KEY)


def head_of(case: Case) -> bytes:
    """What the server hands to the gate."""
    head, end, _ = whole(case).partition(b"\r\n\r\n")
    return head + end


def test_the_corpus_is_large_and_says_each_thing_once() -> None:
    assert len(HEADS) >= 150
    assert len({case.name for case in (*HEADS, *BODIES, *FINE)}) == len(HEADS) + len(BODIES) + len(FINE)
    requests = [whole(case) for case in (*HEADS, *BODIES)]
    assert len(set(requests)) == len(requests)


@pytest.mark.parametrize("case", FINE, ids=str)
def test_controls_pass(case: Case) -> None:
    """The graft is sound: what is refused below is refused for its one change."""
    head = read_head(head_of(case))
    assert (head.method, head.target) == ("POST", "/stripe/v1/payment_intents")
    assert head.length == (None if b"Transfer-Encoding" in head_of(case) else 23)
    assert head.get(b"host") == HOST


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_bad_heads_are_refused(case: Case) -> None:
    with pytest.raises(BadHead) as caught:
        read_head(head_of(case))
    assert (caught.value.status, caught.value.code) == (case.status, case.code)
    assert KEY.decode() not in caught.value.sentence


@pytest.mark.parametrize(
    ("version", "options", "keeps"),
    [
        (b" HTTP/1.1", b"", True),
        (b" HTTP/1.1", b"Connection: close\r\n", False),
        (b" HTTP/1.1", b"Connection: X , CLOSE\r\n", False),
        (b" HTTP/1.1", b"Connection: keep-alive\r\n", True),
        (b" HTTP/1.0", b"", False),
        (b" HTTP/1.0", b"Connection: Keep-Alive\r\n", True),
        (b" HTTP/1.0", b"Connection: keep-alive, close\r\n", False),
    ],
)
@pytest.mark.parametrize("length", [b"", b"Content-Length: 23\r\n"])
def test_who_wants_the_connection_kept(version: bytes, options: bytes, keeps: bool, length: bytes) -> None:
    change = {"version": version, "more": options, "length": length}
    assert read_head(head_of(Case("", change))).keep_alive is keeps


def test_only_http_1_1_waits_for_100_continue() -> None:
    expects = {"more": b"Expect: 100-continue\r\n"}
    assert read_head(head_of(Case("", expects))).expects_continue
    assert not read_head(head_of(Case("", {**expects, "version": b" HTTP/1.0"}))).expects_continue


# --- the same verdict in whatever pieces the bytes come ------------------------------------------


class Wire:
    """A transport that goes nowhere."""

    def write(self, data: bytes) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    abort = close = pause_reading = resume_reading = write_eof = lambda self: None
    can_write_eof = lambda self: True  # noqa: E731


async def first_verdict(raw: bytes, step: int) -> tuple[int, str] | Head | None:
    """What a connection makes of these bytes; None while it waits for more."""
    verdicts: list[tuple[int, str] | Head] = []

    async def handle(request: Request) -> None:
        assert request.head is not None
        verdicts.append(request.head)

    async def reject(_request: Request, bad: BadHead) -> None:
        verdicts.append((bad.status, bad.code))

    def later(_request: Request) -> Awaitable[None]:
        return handle(_request)

    server = Server(later, reject, Limits())
    connection = Connection(server)
    connection.connection_made(cast(asyncio.BaseTransport, Wire()))
    for start in range(0, len(raw), step):
        connection.data_received(raw[start : start + step])
        if connection.request is not None:
            break
    await asyncio.sleep(0)
    connection.connection_lost(None)
    await server.drain(0)
    return verdicts[0] if verdicts else None


def test_byte_by_byte_gives_the_verdict_of_all_at_once() -> None:
    async def main() -> None:
        for case in (*HEADS, *FINE):
            if case.name == "LF LF at the end":
                continue  # below: its head has no end
            raw = whole(case)
            at_once = await first_verdict(raw, len(raw))
            step = 1 if len(raw) < 1000 else 97
            assert await first_verdict(raw, step) == at_once, case.name
            assert (at_once == (case.status, case.code)) is (case in HEADS), case.name

    run(main())


@pytest.mark.parametrize("step", [1, 10_000])
def test_a_bare_line_feed_is_refused_though_the_head_never_ends(step: int) -> None:
    """For laxer readers it has ended: waiting for more would only hang."""
    raw = whole(next(case for case in HEADS if case.name == "LF LF at the end"))
    assert b"\r\n\r\n" not in raw
    assert run(first_verdict(raw, step)) == (400, "malformed_request")


# --- what passes means the same to another reader ------------------------------------------------

PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\x00",
    b"\x0b",
    b"\xa0",
    b"_",
    b"0",
    b"1",
    b"chunked",
    b"identity",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Host: evil\r\n",
    b"X: y\r\n",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b" HTTP/1.1",
    b"GET / HTTP/1.1\r\n",
]

mutations = st.lists(
    st.tuples(
        st.sampled_from(["insert", "replace", "remove", "repeat", "swap case"]),
        st.integers(0, 400),
        st.integers(1, 30),
        st.sampled_from(PIECES),
    ),
    min_size=1,
    max_size=4,
)


def mutate(raw: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, where, count, piece in changes:
        at = where % (len(raw) + 1)
        end = min(len(raw), at + count)
        match kind:
            case "insert":
                raw = raw[:at] + piece + raw[at:]
            case "replace":
                raw = raw[:at] + piece + raw[end:]
            case "remove":
                raw = raw[:at] + raw[end:]
            case "repeat":
                raw = raw[:end] + raw[at:end] + raw[end:]
            case _:
                raw = raw[:at] + raw[at:end].swapcase() + raw[end:]
    return raw


def as_h11_reads(raw: bytes) -> Any:
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(raw)
    try:
        event = parser.next_event()
        if not isinstance(event, h11.Request):
            return None
        rest = parser.next_event()
    except h11.RemoteProtocolError:
        return None
    length: int | None = 0
    fields = dict(event.headers)
    if not isinstance(rest, h11.EndOfMessage):
        length = None if b"transfer-encoding" in fields else int(fields[b"content-length"])
    return event.method.decode(), event.target.decode(), tuple(event.headers), length


@settings(max_examples=600, deadline=None, database=None)
@given(base=st.sampled_from([case for case in FINE if len(whole(case)) < 1000]), changes=mutations)
def test_whatever_passes_means_the_same_to_h11(
    base: Case, changes: list[tuple[str, int, int, bytes]]
) -> None:
    raw = mutate(head_of(base), changes)
    head, end, _ = raw.partition(b"\r\n\r\n")
    try:
        read = read_head(head + end)
    except BadHead:
        return
    second = as_h11_reads(head + end)
    if second is not None:
        assert second == (read.method, read.target, read.fields, read.length)


def test_the_second_opinion_is_heard() -> None:
    """The fuzz above would prove nothing if h11 refused, or the gate did, most of what it draws."""
    agreed = 0
    for case in FINE:
        read, second = read_head(head_of(case)), as_h11_reads(head_of(case))
        if second is not None:
            assert second == (read.method, read.target, read.fields, read.length)
            agreed += 1
    assert agreed >= len(FINE) - 1
