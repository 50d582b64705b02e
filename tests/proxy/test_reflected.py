"""P17, law 6: a vendor that repeats the real secret repeats it to nobody, and into no row."""

import asyncio
import base64
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.loop import run
from tests.support.vendor import Line, answer
from tests.support.world import SECRET, open_world

RAW = SECRET.encode()
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DISGUISES: dict[str, bytes] = {
    "raw": RAW,
    "upper": RAW.upper(),
    "lower": RAW.lower(),
    "hex": RAW.hex().encode(),
    "HEX": RAW.hex().upper().encode(),
    "percent": quote(SECRET, safe="").encode(),
    "every byte percent": "".join(f"%{byte:02X}" for byte in RAW).encode(),
    "every byte percent, lower": "".join(f"%{byte:02x}" for byte in RAW).encode(),
    "base64": base64.b64encode(RAW),
    "base64 as user": b"Basic " + base64.b64encode(RAW + b":"),
    "base64 as password": b"Basic " + base64.b64encode(b":" + RAW),
    "base64 as password of ab": b"Basic " + base64.b64encode(b"ab:" + RAW),
    "base64 within": base64.b64encode(b"key=" + RAW + b"&more"),
    "base64url": base64.urlsafe_b64encode(b"??" + RAW + b">>"),
}
PLACES: dict[str, Callable[[bytes], bytes]] = {
    "a header": lambda text: answer(b"{}", 200, b"X-Echo: you sent " + text),
    "a header that stands twice": lambda text: answer(b"{}", 200, b"X-Echo: fine", b"X-Echo: " + text),
    "the request id": lambda text: answer(b"{}", 200, b"Request-Id: " + text),
    "a small body": lambda text: answer(b'{"error":{"message":"Invalid API Key: ' + text + b'"}}', 401),
    "a large body": lambda text: answer(b"x" * 70_000 + text + b"y" * 70_000),
    "a chunk": lambda text: CHUNKED + b"%x\r\n" % len(text) + text + b"\r\n0\r\n\r\n",
    "chunks of one byte": lambda text: (
        CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in b"data: " + text + b"\n\n") + b"0\r\n\r\n"
    ),
}
STREAMED = ("a large body", "a chunk", "chunks of one byte")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_repeated_secret_does_not_reach_the_agent(tmp_path: Path, disguise: str, place: str) -> None:
    needle = DISGUISES[disguise]

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.answers.append(PLACES[place](needle))
            agent = await world.connect()
            await agent.send(world.request().replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            raw = await agent.rest()
            agent.close()
            joined = raw.replace(b"\r\n1\r\n", b"")
            assert needle not in joined
            assert RAW[:20] not in joined
            row = await world.last()
            assert "repeated the real secret" in row["reason"]
            assert SECRET not in repr(row)
            assert needle.decode() not in repr(row)
            refused = place == "a small body"
            assert row["outcome"] == ("voided" if refused else "posted"), "the vendor's answer settles"
            assert (world.held_cents, world.posted_cents) == ((0, 0) if refused else (0, 100))
            if place in STREAMED:
                assert raw.startswith(b"HTTP/1.1 200")
                assert not raw.endswith(b"0\r\n\r\n"), "its copy can't be taken for a whole one"
                assert len(raw) < 71_000
            else:
                assert raw.startswith(b"HTTP/1.1 502")
                assert b"secret_reflected" in raw
            await world.check_books()

    run(main())


def test_in_the_name_of_a_header(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.answers.append(answer(b"{}", 200, b"X-" + RAW + b": yes"))
            reply = await world.ask()
            assert (reply.status, reply.code) == (502, "secret_reflected")

    run(main())


def test_it_is_found_wherever_the_stream_is_cut(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            for offset in range(1, len(RAW)):

                async def split(line: Line, offset: int = offset) -> None:
                    await line.request()
                    await line.say(CHUNKED + b"%x\r\ndata: " % (6 + offset) + RAW[:offset] + b"\r\n")
                    await asyncio.sleep(0.001)
                    rest = RAW[offset:] + b" end"
                    await line.say(b"%x\r\n" % len(rest) + rest + b"\r\n0\r\n\r\n")

                world.vendor.script = split
                while world.pool._open:  # each gets a connection, and so a script, of its own
                    world.pool.close()
                    await asyncio.sleep(0)
                reply = await world.ask()
                assert (reply.status, reply.whole, reply.body) == (200, False, b"data: "), offset

    run(main())


def test_what_only_begins_like_it_passes(tmp_path: Path) -> None:
    body = b"data: " + RAW[:-1] + b"_ and sk_ s"

    async def main() -> None:
        async with open_world(tmp_path) as world:
            for raw in (answer(body), CHUNKED + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"):
                world.vendor.answers.append(raw)
                reply = await world.ask()
                assert (reply.status, reply.body, reply.whole) == (200, body, True)

    run(main())


def test_a_rotated_secret_is_looked_for_too(tmp_path: Path) -> None:
    """Also one that was removed and set again, under the same name."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            file = world.plane.vendors["stripe"]
            for number, again in enumerate((False, True, True)):
                new = f"sk_live_rotated_{number}_0123456789"
                if again:
                    await world.credentials.remove("stripe", world.vault.now_ns(), "tester")
                await world.credentials.set("stripe", file, new, world.vault.now_ns(), "tester")
                world.vendor.answers.append(answer(new.encode()))
                reply = await world.ask()
                assert (reply.status, reply.code) == (502, "secret_reflected")
                assert world.heard.all(b"authorization") == [b"Bearer " + new.encode()]

    run(main())


def test_a_rotated_secret_is_gone_once_the_calls_with_it_have_ended(tmp_path: Path) -> None:
    """The call that is under way ends well, still looked through for the old one; then nothing holds it."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(line: Line) -> None:
        await line.request()
        begun.set()
        await go.wait()
        await line.say(answer(RAW))

    async def main() -> None:
        async with open_world(tmp_path) as world:
            assert (await world.ask()).status == 200
            world.vendor.script = slow
            world.pool.close()
            old = world.credentials.get("stripe")
            assert old is not None
            watched = weakref.ref(old.revealed())
            del old
            call = asyncio.create_task(world.ask())
            await begun.wait()
            new = await world.credentials.set(
                "stripe", world.plane.vendors["stripe"], "sk_test_the_new_one_0123", 0, "tester"
            )
            world.plane.forget(new.name)
            gc.collect()
            assert watched() is not None, "the call under way has it"
            go.set()
            assert (await call).code == "secret_reflected"
            await world.calm()
            gc.collect()
            assert watched() is None
            assert world.plane._scrubbers == {}

    run(main())
