"""P1, P2, P3: what a recording vendor received is what the audit says was allowed, and nothing else."""

import random
from pathlib import Path

import httptools
import pytest

from tests.http1.corpus import BODIES, FINE, HEADS, graft
from tests.support.loop import run
from tests.support.world import World, open_world


class Naive:
    """A reader that takes whatever httptools takes."""

    def __init__(self) -> None:
        self.ended = 0

    def on_message_complete(self) -> None:
        self.ended += 1


def test_the_corpus_bites() -> None:
    """Without the gate a good part of it would get through, so the silence below means something."""
    taken = []
    for case in (*HEADS, *BODIES):
        reader = Naive()
        parser = httptools.HttpRequestParser(reader)
        try:
            parser.feed_data(graft(case.change, host=b"127.0.0.1:4815", key=b"k"))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            continue
        if reader.ended:
            taken.append(case.name)
    assert len(taken) > 60
    for name in (
        "Host missing",
        "Host twice, different",
        "chunks b'17;a=b\\r\\namount=100&currency=usd\\r\\n0\\r\\n\\r\\n'",
    ):
        assert name in taken


def grafted(world: World, change: object) -> bytes:
    assert isinstance(change, dict)
    return graft(change, host=b"127.0.0.1:%d" % world.port, key=world.key.encode())


def test_controls_are_forwarded_once_each(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            for number, case in enumerate(FINE, start=1):
                reply = await world.ask(grafted(world, case.change))
                assert reply.status == 200, case.name
                assert len(world.vendor.arrived) == number, case.name
                assert world.heard.body == b"amount=100&currency=usd", case.name
                assert world.heard.all(b"content-length") == [b"23"], case.name
            await world.check_oracle()
            await world.check_books()
            assert world.posted_cents == 100 * len(FINE)

    run(main())


@pytest.mark.parametrize("step", [None, 1])
def test_every_bad_request_leaves_a_row_and_goes_nowhere(tmp_path: Path, step: int | None) -> None:
    """Each is followed on its connection by a perfect request, which must not be taken for one."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            for case in (*HEADS, *BODIES):
                raw = grafted(world, case.change)
                agent = await world.connect()
                await agent.send(raw + world.request(), step if len(raw) < 1000 else None)
                reply = await agent.reply()
                assert (reply.status, reply.code) == (case.status, case.code), case.name
                assert reply.get(b"connection") == b"close", case.name
                assert await agent.rest() == b"", case.name
                agent.close()
            assert world.vendor.lines == 0
            rows = await world.rows()
            told = [(row["policy_check_result"], row["status"], row["outcome"]) for row in rows]
            assert told == [(case.code, case.status, "refused") for case in (*HEADS, *BODIES)]
            assert (await world.ask()).status == 200
            await world.check_oracle()
            await world.check_books()

    run(main())


PIECES = (
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\x00",
    b"0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 23\r\n",
    b"POST /stripe/v1/payment_intents HTTP/1.1\r\n",
    b"GET /stripe/v1/balance HTTP/1.1\r\n",
    b"chunked",
    b"17\r\n",
    b"23",
)


def mutate(raw: bytes, dice: random.Random) -> bytes:
    """Insert, replace, remove, repeat or move something, or cut the stream off."""
    at, end = sorted(dice.randrange(len(raw) + 1) for _ in range(2))
    end = min(end, at + dice.choice((1, 2, 8, 40)))
    match dice.randrange(7):
        case 0:
            return raw[:at] + dice.choice(PIECES) + raw[at:]
        case 1:
            return raw[:at] + dice.choice(PIECES) + raw[end:]
        case 2:
            return raw[:at] + raw[end:]
        case 3:
            return raw[:end] + raw[at:end] + raw[end:]
        case 4:
            to = dice.randrange(len(raw) + 1)
            return raw[:to] + raw[at:end] + raw[to:]
        case 5:
            return raw[:at] + bytes([dice.randrange(256)]) + raw[at + 1 :]
        case _:
            return raw[:at]


def test_mutated_streams_never_make_vendor_and_audit_disagree(tmp_path: Path) -> None:
    dice = random.Random(20261121)

    async def main() -> None:
        async with open_world(tmp_path) as world:
            plain = world.request()
            get = world.request("GET", "/stripe/v1/balance?limit=3", body=b"")
            chunks = grafted(world, FINE[-5].change)
            assert b"chunked" in chunks
            for _ in range(1200):
                stream = b"".join(dice.choices((plain, get, chunks), k=dice.choice((1, 2, 3))))
                for _ in range(dice.choice((1, 1, 2, 4))):
                    stream = mutate(stream, dice)
                agent = await world.connect()
                await agent.send(stream)
                agent.half_close()
                await agent.rest()
                agent.close()
            await world.check_oracle()
            await world.check_books()
            rows = await world.rows()
            allowed = sum(row["policy_check_result"] == "allowed" for row in rows)
            assert 300 < allowed < len(rows) - 300, "both kinds were drawn"

    run(main())
