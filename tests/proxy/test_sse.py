"""Streams of language models: passed on as they come, settled by the usage that they tell at their end."""

import asyncio
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from kbctld.core.vendor import Vendor as VendorFile
from kbctld.core.vendor import read_vendor
from kbctld.proxy.sse import UsageStream, usage_in
from kbctld.proxy.upstream import UpstreamLimits
from tests.support.agent import Reply
from tests.support.loop import run
from tests.support.vendor import Line, answer
from tests.support.world import SECRET, World, open_world


def shipped(name: str) -> VendorFile:
    return read_vendor((resources.files("kbctld") / "vendors" / f"{name}.toml").read_text(encoding="utf-8"))


OPENAI, ANTHROPIC = shipped("openai"), shipped("anthropic")
CHAT = '{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}],"max_tokens":100,"stream":true}'
# gpt-4o-mini: 150 nano-USD a token read, 600 written.
ASKED = CHAT[:-1] + ',"stream_options":{"include_usage":true}}'
RESPONSES = '{"model":"gpt-5","input":"hi","max_output_tokens":100,"stream":true}'
MESSAGES = '{"model":"claude-haiku-4-5","max_tokens":100,"messages":[],"stream":true}'


def event(**said: Any) -> bytes:
    return b"data: " + json.dumps(said, ensure_ascii=False).encode() + b"\n\n"


def delta(text: str, **more: Any) -> bytes:
    return event(id="c1", choices=[{"index": 0, "delta": {"content": text}}], **more)


SAID = [delta('he said "usage": 5\n\n', usage=None), b": still there\n\n", delta("é", service_tier="default")]
USAGE = event(id="c1", choices=[], usage={"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10})
DONE = b"data: [DONE]\n\n"
CHAT_STREAM = b"".join([*SAID, USAGE, DONE])
CHAT_SHOWN = b"".join([*SAID, DONE])
CHAT_SPENT = 8 * 150 + 2 * 600

RESPONSES_STREAM = b"".join(
    b"event: %b\n" % kind.encode() + event(type=kind, **more)
    for kind, more in (
        ("response.created", {"response": {"id": "r", "usage": None}}),
        ("response.output_text.delta", {"delta": "hi"}),
        (
            "response.completed",
            {
                "response": {
                    "id": "r",
                    "service_tier": "default",
                    "usage": {"input_tokens": 8, "output_tokens": 2},
                }
            },
        ),
    )
)
MESSAGES_STREAM = b"".join(
    b"event: %b\r\n" % kind.encode() + event(type=kind, **more).replace(b"\n\n", b"\r\n\r\n")
    for kind, more in (
        ("message_start", {"message": {"usage": {"input_tokens": 8, "output_tokens": 1}}}),
        ("ping", {}),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "hi"}}),
        ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}),
        ("message_stop", {}),
    )
)


def request(world: World, vendor: str, path: str, body: str, key: str | None = None) -> bytes:
    raw = body.encode()
    head = (
        f"POST /{vendor}{path} HTTP/1.1\r\nHost: 127.0.0.1:{world.port}\r\n"
        f"Authorization: Bearer {key or world.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


CHAT_PATH = "/v1/chat/completions"
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunked(stream: bytes, size: int) -> list[bytes]:
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    return [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]


def streaming(stream: bytes, size: int, *, end: bytes = b"0\r\n\r\n", pause: bool = False) -> Any:
    async def script(line: Line) -> None:
        while True:
            await line.request()
            await line.say(HEAD)
            for piece in chunked(stream, size):
                await line.say(piece)
                await asyncio.sleep(0.001 if pause else 0)
            if not end:
                line.reset()
                return
            await line.say(end)

    return script


def told_in(reply: Reply, before: bytes) -> str:
    """The code of the refusal that the stream ends with, behind these events and nothing else."""
    assert reply.body.startswith(before)
    event = reply.body[len(before) :]
    assert event.endswith(b"\n\n")
    *_, data = event[:-2].split(b"\n")
    error = json.loads(data.removeprefix(b"data: "))["error"]
    return str(error["message"].partition(":")[0])


async def spent_and_held(world: World) -> tuple[int, int]:
    await world.check_books()
    account = world.grant.scopes[0].account
    return account.posted_total, account.held_total


@pytest.mark.parametrize("hides", [True, False])
@pytest.mark.parametrize(
    ("api", "stream", "shown"),
    [
        ("openai-chat", CHAT_STREAM, CHAT_SHOWN),
        ("openai-chat", CHAT_STREAM.replace(b"\n", b"\r\n"), CHAT_SHOWN.replace(b"\n", b"\r\n")),
        ("openai-chat", CHAT_STREAM.replace(b"\n", b"\r"), CHAT_SHOWN.replace(b"\n", b"\r")),
        ("openai-responses", RESPONSES_STREAM, RESPONSES_STREAM),
        ("anthropic", MESSAGES_STREAM, MESSAGES_STREAM),
    ],
)
def test_wherever_a_stream_is_cut_the_same_bytes_pass_and_the_same_usage_is_heard(
    api: Any, stream: bytes, shown: bytes, hides: bool
) -> None:
    for cut in range(len(stream) + 1):
        events = UsageStream(api, hides=hides)
        passed = events.feed(stream[:cut]) + events.feed(stream[cut:]) + events.rest()
        assert passed == (shown if hides else stream), cut
        usage = events.told["usage"]
        assert (usage.get("prompt_tokens") or usage.get("input_tokens")) == 8, cut
        assert (usage.get("completion_tokens") or usage.get("output_tokens")) == 2, cut
    events = UsageStream(api, hides=hides)
    passed = b"".join(events.feed(stream[at : at + 1]) for at in range(len(stream))) + events.rest()
    assert passed == (shown if hides else stream)
    assert events.final


@pytest.mark.parametrize("hides", [True, False])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\r\r\n", b"\n\r"])
def test_nothing_is_held_back_longer_than_its_event_and_nothing_passes_before(
    end: bytes, hides: bool
) -> None:
    """What has passed always ends with an event, so that a refusal can follow it."""
    events = UsageStream("openai-chat", hides=hides)
    for said in SAID[0], b": still there\n\n", SAID[2]:
        body, end_of_line = said[:-2], end[:1] if end[:2] != b"\r\n" else end[:2]
        whole = body.replace(b"\n", end_of_line)
        passed = b"".join(events.feed(whole[at : at + 1]) for at in range(len(whole)))
        assert passed == b""
        passed = b"".join(events.feed(end[at : at + 1]) for at in range(len(end)))
        assert passed == whole + end
    assert events.rest() == b""


@pytest.mark.parametrize("hides", [True, False])
def test_the_last_half_of_a_line_end_goes_where_its_event_went(hides: bool) -> None:
    usage = USAGE.replace(b"\n\n", b"\r\r\n")
    events = UsageStream("openai-chat", hides=hides)
    passed = [events.feed(piece) for piece in (SAID[0], usage[:-1], b"", usage[-1:], DONE)]
    assert b"".join(passed) == SAID[0] + (b"" if hides else usage) + DONE
    assert events.final


@pytest.mark.parametrize(
    ("api", "parts"),
    [
        (
            "openai-chat",
            [b'{"choices":[],', b'"usage"', b":", b'{"prompt_tokens":8,', b'"completion_tokens":2}}'],
        ),
        (
            "openai-responses",
            [
                b'{"type":"response.completed","response":{',
                b'"usage" :',
                b' {"input_tokens":8,"output_tokens":2}}}',
            ],
        ),
    ],
)
def test_a_usage_is_heard_in_data_of_several_lines(api: Any, parts: list[bytes]) -> None:
    stream = b"".join(b"data:" + part + b"\n" for part in parts) + b"\n"
    for end in (b"\n", b"\r\n", b"\r"):
        events = UsageStream(api, hides=True)
        events.feed(stream.replace(b"\n", end) + b"x")
        assert events.final


def test_a_message_that_begins_anew_has_not_told_its_usage() -> None:
    events = UsageStream("anthropic", hides=False)
    events.feed(MESSAGES_STREAM)
    assert events.final
    events.feed(MESSAGES_STREAM.partition(b"event: ping")[0])
    assert events.told == {}


def test_a_tier_that_only_an_early_event_tells_is_kept() -> None:
    events = UsageStream("openai-chat", hides=True)
    events.feed(delta("a", service_tier="priority") + SAID[0] + USAGE + DONE)
    assert events.told["service_tier"] == "priority"


def test_events_without_a_usage_are_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is spent on a long stream must not grow with what nobody needs to know."""
    heard: list[bytes] = []
    hear = UsageStream._hear_event

    def counted(self: UsageStream, event: bytes) -> bool:
        heard.append(event)
        return hear(self, event)

    monkeypatch.setattr(UsageStream, "_hear_event", counted)
    for api, events, most in (
        ("openai-chat", [delta("x", usage=None)] * 1000 + [USAGE, DONE], 2),
        ("openai-responses", [event(type="response.output_text.delta", delta="x")] * 1000, 0),
        ("anthropic", [MESSAGES_STREAM], 2),
    ):
        heard.clear()
        stream = UsageStream(api, hides=True)  # type: ignore[arg-type]
        stream.feed(b"".join(events))
        assert len(heard) == most, api


def test_an_event_beyond_all_bounds_passes_unread() -> None:
    big = b"data: " + b"x" * (11 * 1024 * 1024)
    for hides in (True, False):
        events = UsageStream("openai-chat", hides=hides)
        passed = events.feed(SAID[0]) + events.feed(big) + events.feed(b"\n\n") + events.feed(USAGE)
        assert passed + events.rest() == SAID[0] + big + b"\n\n" + USAGE
        assert events.told == {}


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"usage": 5}', b"\xff", b"[" * 100_000])
def test_an_answer_that_can_t_be_read_tells_nothing(raw: bytes) -> None:
    assert not usage_in(raw).get("usage")


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_the_usage_we_asked_for_settles_the_call_and_is_not_passed_on(tmp_path: Path, size: int) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={"openai": OPENAI}) as world:
            world.vendor.script = streaming(CHAT_STREAM, size)
            reply = await world.ask(request(world, "openai", CHAT_PATH, CHAT))
            assert (reply.status, reply.whole, reply.body) == (200, True, CHAT_SHOWN)
            assert world.heard.body == ASKED.encode()
            assert await spent_and_held(world) == (CHAT_SPENT, 0)
            row = await world.last()
            most = (len(CHAT) * 150 + 100 * 600) * 5 // 2  # its project may be set to a dearer tier
            assert (row["outcome"], row["requested_nano"]) == ("posted", most)

    run(main())


def test_a_stream_of_known_length_is_as_long_as_what_is_passed_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={"openai": OPENAI}) as world:
            kind = b"Content-Type: text/event-stream"
            long = SAID[0] * 2000 + CHAT_STREAM
            for stream, shown in ((CHAT_STREAM, CHAT_SHOWN), (long, SAID[0] * 2000 + CHAT_SHOWN)):
                world.vendor.answers.append(answer(stream, 200, kind))
                reply = await world.ask(request(world, "openai", CHAT_PATH, CHAT))
                assert (reply.whole, reply.body) == (True, shown)
            world.vendor.answers.append(answer(long, 200, kind))
            reply = await world.ask(request(world, "openai", CHAT_PATH, ASKED))
            assert (reply.whole, reply.body) == (True, long)
            assert await spent_and_held(world) == (3 * CHAT_SPENT, 0)

    run(main())


def test_who_asked_for_the_usage_gets_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={"openai": OPENAI}) as world:
            world.vendor.script = streaming(CHAT_STREAM, 50)
            reply = await world.ask(request(world, "openai", CHAT_PATH, ASKED))
            assert reply.body == CHAT_STREAM
            assert world.heard.body == ASKED.encode()
            assert await spent_and_held(world) == (CHAT_SPENT, 0)

    run(main())


@pytest.mark.parametrize(
    ("name", "path", "body", "stream", "nano"),
    [
        ("openai", "/v1/responses", RESPONSES, RESPONSES_STREAM, 8 * 1250 + 2 * 10_000),
        ("anthropic", "/v1/messages", MESSAGES, MESSAGES_STREAM, 8 * 1000 + 2 * 5000),
    ],
)
def test_other_streams_pass_byte_by_byte_and_tell_their_usage_themselves(
    tmp_path: Path, name: str, path: str, body: str, stream: bytes, nano: int
) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={name: shipped(name)}) as world:
            world.vendor.script = streaming(stream, 3)
            reply = await world.ask(request(world, name, path, body))
            assert (reply.status, reply.body) == (200, stream)
            assert world.heard.body == body.encode()
            assert await spent_and_held(world) == (nano, 0)

    run(main())


@pytest.mark.parametrize("padding", [0, 3_000_000])
def test_an_answer_that_is_no_stream_settles_by_its_usage(tmp_path: Path, padding: int) -> None:
    """Wherever in it the usage stands, and however long it is."""
    body = CHAT.replace(',"stream":true', "")
    said = {
        "choices": [{"message": {"content": "x" * padding}}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 2},
    }

    async def main() -> None:
        async with open_world(tmp_path, vendors={"openai": OPENAI}) as world:
            world.vendor.answers.append(answer(json.dumps(said).encode()))
            reply = await world.ask(request(world, "openai", CHAT_PATH, body))
            assert reply.json == said
            assert world.heard.body == body.encode()
            assert await spent_and_held(world) == (CHAT_SPENT, 0)

    run(main())


@pytest.mark.parametrize(
    "stream",
    [b"".join([*SAID, DONE]), b"".join(SAID), event(error={"message": "overloaded"}), b""],
    ids=["no usage", "no end", "an error", "nothing"],
)
def test_law_3_a_whole_stream_without_its_usage_spends_the_hold(tmp_path: Path, stream: bytes) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={"openai": OPENAI}) as world:
            world.vendor.script = streaming(stream, 50)
            assert (await world.ask(request(world, "openai", CHAT_PATH, CHAT))).body == stream
            row = await world.last()
            assert await spent_and_held(world) == (row["requested_nano"], 0)

    run(main())


def test_law_1_a_usage_above_the_hold_is_spent_and_freezes_the_key(tmp_path: Path) -> None:
    more = event(choices=[], usage={"prompt_tokens": 8, "completion_tokens": 1000})

    async def main() -> None:
        async with open_world(tmp_path, vendors={"openai": OPENAI}) as world:
            world.vendor.script = streaming(more + DONE, 50)
            assert (await world.ask(request(world, "openai", CHAT_PATH, CHAT))).body == DONE
            assert await spent_and_held(world) == (8 * 150 + 1000 * 600, 0)
            again = await world.ask(request(world, "openai", CHAT_PATH, CHAT))
            assert (again.status, again.code) == (401, "key_revoked")

    run(main())


def test_law_3_an_agent_that_hangs_up_just_before_the_end_pays_what_was_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={"openai": OPENAI}) as world:
            world.vendor.script = streaming(SAID[0] * 50 + CHAT_STREAM, 100, pause=True)
            agent = await world.connect()
            await agent.send(request(world, "openai", CHAT_PATH, CHAT))
            await agent.reader.readuntil(b"he said")
            agent.reset()
            row = await world.last()
            assert (row["outcome"], row["amount_nano"]) == ("posted", CHAT_SPENT)
            assert await spent_and_held(world) == (CHAT_SPENT, 0)

    run(main())


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(
    ("name", "path", "body", "begun", "usage", "nano"),
    [
        ("openai", CHAT_PATH, CHAT, SAID[0], USAGE, CHAT_SPENT),
        (
            "anthropic",
            "/v1/messages",
            MESSAGES,
            MESSAGES_STREAM.partition(b"event: ping")[0],
            b"event: message_delta" + MESSAGES_STREAM.partition(b"event: message_delta")[2],
            8 * 1000 + 2 * 5000,
        ),
    ],
)
def test_law_3_an_agent_that_hangs_up_stops_the_vendor_and_keeps_its_hold_unless_the_usage_was_told(
    tmp_path: Path, name: str, path: str, body: str, begun: bytes, usage: bytes, nano: int, told: bool
) -> None:
    stopped = asyncio.Event()

    async def endless(line: Line) -> None:
        await line.request()
        await line.say(HEAD + chunked(begun, 1000)[0])
        try:
            for number in range(10_000):
                await line.say(chunked(event(type="ping", choices=[]), 1000)[0])
                if told and number == 3:
                    await line.say(chunked(usage, 1000)[0])
                await asyncio.sleep(0.02)
        except ConnectionError:
            stopped.set()

    async def main() -> None:
        async with open_world(tmp_path, vendors={name: shipped(name)}) as world:
            world.vendor.script = endless
            agent = await world.connect()
            await agent.send(request(world, name, path, body))
            await agent.reader.readuntil(begun[:6])
            agent.reset()
            row = await world.last()
            await asyncio.wait_for(stopped.wait(), 5)
            assert "the agent left the stream" in row["reason"]
            assert (row["policy_check_result"], row["status"]) == ("allowed", 200)
            assert row["outcome"] == ("posted" if told else "unknown")
            assert await spent_and_held(world) == ((nano, 0) if told else (0, row["requested_nano"]))
            assert not world.pool._idle

    run(main())


async def begins(line: Line) -> None:
    """An event and half of another, and nothing more."""
    await line.request()
    await line.say(HEAD + chunked(SAID[0] + b'data: {"half', 1000)[0])
    await line.hear_out()


@pytest.mark.parametrize(
    ("vendor", "path", "body"), [("openai", CHAT_PATH, CHAT), ("anthropic", "/v1/messages", MESSAGES)]
)
@pytest.mark.parametrize("ends", ["key_revoked", "shutting_down", "upstream_timeout"])
def test_what_ends_a_stream_is_told_in_it_between_two_events(
    tmp_path: Path, vendor: str, path: str, body: str, ends: str
) -> None:
    patience = UpstreamLimits(silence_s=0.1, stream_silence_s=0.4 if ends == "upstream_timeout" else 20)

    async def main() -> None:
        async with open_world(tmp_path, vendors={vendor: shipped(vendor)}, upstream=patience) as world:
            world.vendor.script = begins
            agent = await world.connect()
            began = asyncio.get_running_loop().time()
            await agent.send(request(world, vendor, path, body))
            await agent.reader.readuntil(b"\r\n\r\n")
            shown = await agent.reader.readuntil(SAID[0])
            if ends == "key_revoked":
                assert world.plane.cut([world.grant]) == 1
            elif ends == "shutting_down":
                await world.server.drain(0.0, world.plane.stop)
            rest = await agent.reader.readuntil(b"0\r\n\r\n")
            if ends == "upstream_timeout":
                assert asyncio.get_running_loop().time() - began > 0.35
            reply = Reply(body=unchunked(shown + rest))
            assert told_in(reply, SAID[0]) == ends
            event = reply.body.removeprefix(SAID[0])
            assert event.startswith(b"event: error\ndata: {" if vendor == "anthropic" else b"data: {")
            row = await world.last()
            assert (row["outcome"], row["status"]) == ("unknown", 200)
            assert await spent_and_held(world) == (0, row["requested_nano"])
            if ends == "shutting_down":
                assert await agent.rest() == b""
            agent.close()

    run(main())


def unchunked(raw: bytes) -> bytes:
    body = b""
    while raw and not raw.startswith(b"0\r\n"):
        size, _, raw = raw.partition(b"\r\n")
        body, raw = body + raw[: int(size, 16)], raw[int(size, 16) + 2 :]
    return body


def test_a_stream_with_an_event_beyond_all_bounds_is_cut_where_it_breaks(tmp_path: Path) -> None:
    big = b"data: " + b"x" * (11 * 1024 * 1024)

    async def main() -> None:
        async with open_world(tmp_path, vendors={"openai": OPENAI}) as world:
            world.vendor.script = streaming(big, 200_000, end=b"")
            reply = await world.ask(request(world, "openai", CHAT_PATH, CHAT))
            assert not reply.whole
            assert big.startswith(reply.body)

    run(main())


def test_law_3_a_stream_that_breaks_off_keeps_its_hold_unless_it_told_its_usage(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={"openai": OPENAI}) as world:
            world.vendor.script = streaming(b"".join(SAID) + b'data: {"half', 50, end=b"")
            reply = await world.ask(request(world, "openai", CHAT_PATH, CHAT))
            assert reply.whole
            assert told_in(reply, b"".join(SAID)) == "upstream_invalid"
            row = await world.last()
            assert row["outcome"] == "unknown"
            assert "stays held" in row["reason"]
            assert await spent_and_held(world) == (0, row["requested_nano"])
            world.vendor.script = streaming(b"".join([*SAID, USAGE]), 50, end=b"")
            assert told_in(await world.ask(request(world, "openai", CHAT_PATH, CHAT)), b"".join(SAID))
            told = await world.last()
            assert told["outcome"] == "posted"
            assert "had told what the call cost" in told["reason"]
            assert await spent_and_held(world) == (CHAT_SPENT, row["requested_nano"])

    run(main())


def test_law_3_what_a_message_has_cost_is_told_at_its_end_not_at_its_start(tmp_path: Path) -> None:
    begun = MESSAGES_STREAM.partition(b"event: message_delta")[0]

    async def main() -> None:
        async with open_world(tmp_path, vendors={"anthropic": ANTHROPIC}) as world:
            world.vendor.script = streaming(begun, 50)
            assert (await world.ask(request(world, "anthropic", "/v1/messages", MESSAGES))).body == begun
            row = await world.last()
            assert await spent_and_held(world) == (row["requested_nano"], 0)

    run(main())


def test_law_6_a_secret_in_a_stream_is_cut_and_its_usage_still_counts(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={"openai": OPENAI}) as world:
            world.vendor.script = streaming(SAID[0] + delta(SECRET) + CHAT_STREAM, 30)
            reply = await world.ask(request(world, "openai", CHAT_PATH, CHAT))
            assert reply.whole
            assert SECRET[:20].encode() not in reply.body
            assert told_in(reply, SAID[0]) == "secret_reflected"
            assert await spent_and_held(world) == (CHAT_SPENT, 0)
            assert "real secret" in (await world.last())["reason"]

    run(main())


def test_a_key_without_a_cap_streams_from_a_model_that_nobody_knows(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={"openai": OPENAI}) as world:
            _, key = await world.issue(vendors=("openai",), daily_cap_nano=None)
            world.vendor.script = streaming(CHAT_STREAM, 50)
            body = CHAT.replace("gpt-4o-mini", "gpt-99")
            assert (await world.ask(request(world, "openai", CHAT_PATH, body, key))).body == CHAT_SHOWN
            refused = await world.ask(request(world, "openai", CHAT_PATH, body))
            assert (refused.status, refused.json["error"]["code"]) == (400, "amount_unknown")

    run(main())


def test_a_hundred_streams_at_once_are_each_told_apart(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path, vendors={"openai": OPENAI}) as world:
            world.vendor.script = streaming(CHAT_STREAM, 40, pause=True)
            asked = [world.ask(request(world, "openai", CHAT_PATH, CHAT)) for _ in range(100)]
            replies: list[Reply] = await asyncio.gather(*asked)
            assert {reply.body for reply in replies} == {CHAT_SHOWN}
            assert await spent_and_held(world) == (100 * CHAT_SPENT, 0)
            await world.check_oracle()

    run(main())
