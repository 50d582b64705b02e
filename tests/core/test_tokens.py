"""What a language model's call is held at and spent at; no byte brings more than it bounds."""

import json
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbctld.core.cost import Price, price
from kbctld.core.document import read_document
from kbctld.core.form import Form
from kbctld.core.operation import Operation, Tokens
from kbctld.core.refusal import Code, Refusal
from kbctld.core.tariff import UntoldError
from kbctld.core.tokens import (
    Ladder,
    TokenApi,
    TokenPrice,
    ask_for_usage,
    bound,
    spent,
    wants_usage,
)
from kbctld.core.vendor import read_vendor
from kbctld.core.vendor_file import VendorFileError
from tests.core.support import EMPTY, HEAD, RATES

CHAT: TokenApi = "openai-chat"
RESPONSES: TokenApi = "openai-responses"
ANTHROPIC: TokenApi = "anthropic"

# A token costs 2 nano-USD read, 7 written, 3 kept, 5 kept for long, 1 read again.
M = 1_000_000
PRICE = TokenPrice(
    Ladder(((0, 2 * M),)),
    Ladder(((0, 7 * M),)),
    Ladder(((0, 1 * M),)),
    Ladder(((0, 3 * M),)),
    Ladder(((0, 5 * M),)),
)
OWN = replace(PRICE, surcharges=False)
READER = TokenPrice(Ladder(((0, 2 * M),)))
WRITER = TokenPrice(Ladder(((0, 2 * M),)), Ladder(((0, 7 * M),)))
LONG = TokenPrice(Ladder(((0, 2 * M), (1000, 4 * M))), Ladder(((0, 7 * M), (1000, 9 * M))))

USER = {"role": "user", "content": "hi"}
BODIES: dict[TokenApi, dict[str, Any]] = {
    "openai-chat": {"model": "m", "messages": [USER], "max_tokens": 10, "service_tier": "default"},
    "openai-responses": {"model": "m", "input": "hi", "max_output_tokens": 10, "service_tier": "default"},
    "openai-completions": {"model": "m", "prompt": "hi", "max_tokens": 10},
    "openai-embeddings": {"model": "m", "input": "hi"},
    "anthropic": {"model": "m", "messages": [USER], "max_tokens": 10, "inference_geo": "global"},
}


def held(api: TokenApi, price: TokenPrice | None = PRICE, *leave: str, **more: Any) -> int:
    body = {name: value for name, value in {**BODIES[api], **more}.items() if name not in leave}
    return bound(api, read_document(json.dumps(body).encode()), lambda model: price).nano


def size(api: TokenApi, **more: Any) -> int:
    return len(json.dumps({**BODIES[api], **more}))


def refusal(api: TokenApi, *leave: str, price: TokenPrice | None = PRICE, **more: Any) -> str:
    with pytest.raises(UntoldError) as raised:
        held(api, price, *leave, **more)
    return str(raised.value)


@pytest.mark.parametrize("api", BODIES)
def test_the_hold_is_every_byte_at_the_dearest_input_and_the_maximum_at_the_dearest_output(
    api: TokenApi,
) -> None:
    written = 0 if api == "openai-embeddings" else 10
    assert held(api) == size(api) * 5 + written * 7


@pytest.mark.parametrize(
    ("api", "more", "written"),
    [
        (CHAT, {"n": 3}, 30),
        (CHAT, {"max_completion_tokens": 20}, 20),
        ("openai-completions", {"n": 2, "best_of": 5}, 50),
        ("openai-completions", {"prompt": ["a", "b", "c"]}, 30),
        ("openai-completions", {"prompt": [1, 2, 3]}, 10),
        ("openai-completions", {"prompt": [[1], [2]], "n": 2}, 40),
        ("openai-completions", {"prompt": []}, 10),
        (CHAT, {"n": None, "max_completion_tokens": None}, 10),
    ],
)
def test_what_multiplies_the_output_multiplies_the_hold(
    api: TokenApi, more: dict[str, Any], written: int
) -> None:
    assert held(api, **more) == size(api, **more) * 5 + written * 7


def test_the_hold_covers_prices_that_rise_with_the_prompt_and_input_that_is_no_text() -> None:
    assert held(CHAT, LONG) == size(CHAT) * 4 + 90
    loud = TokenPrice(Ladder(((0, 2 * M),)), Ladder(((0, 7 * M),)), other_input=11 * M, other_output=13 * M)
    assert held(CHAT, loud) == size(CHAT) * 11 + 130


def test_a_workspace_may_cost_a_tenth_more_unless_the_body_says_where() -> None:
    plain = held(ANTHROPIC)
    assert held(ANTHROPIC, PRICE, "inference_geo") == -(-(plain - 27 * 5) * 11 // 10)


def test_a_sum_of_fractions_is_rounded_up() -> None:
    one = TokenPrice(Ladder(((0, 1),)), Ladder(((0, 1),)))
    assert held(CHAT, one) == 1


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("api", "more", "values"),
    [
        (CHAT, {"tools": [TOOL]}, 5),
        (CHAT, {"response_format": {"type": "json_object"}}, 1),
        (RESPONSES, {"tools": [{"type": "custom", "name": "f"}]}, 3),
        (RESPONSES, {"text": {"format": {"type": "text"}}}, 2),
        (ANTHROPIC, {"tools": [{"name": "f", "input_schema": {}}]}, 3),
        (ANTHROPIC, {"output_config": {"effort": "low"}}, 1),
        (ANTHROPIC, {"thinking": {"type": "adaptive"}}, 1),
    ],
)
def test_tools_and_schemas_bring_instructions_of_the_vendor_and_what_it_writes_around_their_values(
    api: TokenApi, more: dict[str, Any], values: int
) -> None:
    assert held(api, **more) == (size(api, **more) + 1000 + values * 8) * 5 + 70


def shown(schema: Any) -> str:
    """The longest of some ways to show a schema to a model."""
    ways = [json.dumps(schema), json.dumps(schema, indent=2), " | ".join(map(json.dumps, schema["enum"]))]
    return max(ways, key=lambda way: len(way.split()) + sum(map(way.count, ",|[]")))


@pytest.mark.parametrize(
    ("api", "more"),
    [
        (CHAT, lambda schema: {"tools": [{"type": "function", "function": schema}]}),
        (CHAT, lambda schema: {"functions": [schema]}),
        (CHAT, lambda schema: {"response_format": schema}),
        (CHAT, lambda schema: {"messages": [{"role": "assistant", "function_call": schema}]}),
        (RESPONSES, lambda schema: {"tools": [{"type": "function", "parameters": schema}]}),
        (RESPONSES, lambda schema: {"text": schema}),
        (ANTHROPIC, lambda schema: {"tools": [{"name": "f", "input_schema": schema}]}),
        (ANTHROPIC, lambda schema: block("tool_use", id="1", name="f", input=schema)),
    ],
)
def test_law_1_a_schema_that_the_vendor_writes_in_its_own_way_is_bounded_all_the_same(
    api: TokenApi, more: Any
) -> None:
    """Bytes alone do not bound it: ``[1,1]`` is five of them, and six tokens as ``[1, 1]``."""
    schema = {"enum": [1] * 2000}
    compact = json.dumps(schema, separators=(",", ":"))
    tokens = sum(2 if char in ",|" else 1 for char in shown(schema) if char != " ") + shown(schema).count(" ")
    assert tokens > len(compact)
    body = {**BODIES[api], **more(schema)}
    raw = json.dumps(body, separators=(",", ":")).encode()
    plain = TokenPrice(Ladder(((0, M),)), Ladder(((0, 0),)))
    assert bound(api, read_document(raw), lambda model: plain).nano >= len(raw) - len(compact) + tokens
    foreign = {"enum": ["é" * 1000]}
    raw = json.dumps({**BODIES[api], **more(foreign)}, ensure_ascii=False).encode()
    nano = bound(api, read_document(raw), lambda model: plain).nano
    assert nano >= len(raw) + 4 * 1000, "written with escapes, each of these letters has six characters"


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("api", ["openai-chat", "openai-embeddings", "anthropic"])
def test_law_1_text_that_a_tokenizer_normalises_first_is_bounded_as_it_then_is(
    api: TokenApi, escaped: bool
) -> None:
    """One ligature of three bytes is a sentence of 33 in its compatible form."""
    text = "\ufdfa" * 100
    body = {
        **BODIES[api],
        **({"input": text} if api == "openai-embeddings" else {"messages": [{**USER, "content": text}]}),
    }
    raw = json.dumps(body, ensure_ascii=escaped).encode()
    plain = TokenPrice(Ladder(((0, M),)), Ladder(((0, 0),)))
    tokens = len(unicodedata.normalize("NFKC", text).encode())
    assert tokens > len(raw)
    assert bound(api, read_document(raw), lambda model: plain).nano >= tokens


@pytest.mark.parametrize("api", [CHAT, RESPONSES])
@pytest.mark.parametrize("tier", [None, "auto"])
def test_law_1_a_tier_that_the_body_leaves_to_the_project_is_held_at_its_price(
    api: TokenApi, tier: str | None
) -> None:
    """A project can be set to priority, and no request says so."""
    body = {**BODIES[api], "service_tier": tier}
    document = read_document(json.dumps(body).encode())
    usage = {"prompt_tokens": document.size, "completion_tokens": 10}
    if api == RESPONSES:
        usage = {"input_tokens": document.size, "output_tokens": 10}
    true = spent(api, WRITER, {"usage": usage, "service_tier": "priority"})
    assert true is not None
    assert true == bound(api, document, lambda model: WRITER).nano
    own = replace(WRITER, surcharges=False)
    assert bound(api, document, lambda model: own).nano * 5 == true * 2


@pytest.mark.parametrize(("budget", "written"), [(5, 10), (9, 10), (10, 20), (500, 510)])
def test_thinking_beyond_the_maximum_is_held_too(budget: int, written: int) -> None:
    """Between tools a model may think for longer than ``max_tokens``."""
    more: dict[str, Any] = {"thinking": {"type": "enabled", "budget_tokens": budget}}
    assert held(ANTHROPIC, **more) == (size(ANTHROPIC, **more) + 1000 + 16) * 5 + written * 7
    assert "budget_tokens" in refusal(ANTHROPIC, thinking={"type": "enabled", "budget_tokens": "5"})


PICTURE = "data:image/png;base64," + "A" * 5000


@pytest.mark.parametrize(
    ("api", "more", "tokens"),
    [
        (
            CHAT,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}
                ]
            },
            50_000,
        ),
        (
            RESPONSES,
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}]},
            50_000,
        ),
        (
            ANTHROPIC,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "base64", "data": PICTURE}}],
                    }
                ]
            },
            10_000,
        ),
    ],
)
def test_an_image_in_the_body_counts_as_an_image_not_as_its_bytes(
    api: TokenApi, more: dict[str, Any], tokens: int
) -> None:
    assert held(api, **more) == (size(api, **more) - len(PICTURE) + tokens) * 5 + 70


def block(kind: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": kind, **more}]}]}


def item(kind: str, **more: Any) -> dict[str, Any]:
    return {"input": [{"type": kind, **more}]}


@pytest.mark.parametrize(
    ("api", "more"),
    [
        (CHAT, {"stream": True, "stream_options": {"include_usage": True}, "modalities": ["text"]}),
        (CHAT, {"service_tier": "auto", "store": True, "seed": 1, "audio": None, "web_search_options": None}),
        (CHAT, {"messages": [{"role": "assistant", "content": None, "tool_calls": [{**TOOL, "id": "1"}]}]}),
        (CHAT, {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]}),
        (CHAT, {"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}}),
        (RESPONSES, {"background": False, "reasoning": {"effort": "low"}, "instructions": "be brief"}),
        (RESPONSES, item("reasoning", id="rs_1", summary=[], encrypted_content="abc")),
        (RESPONSES, item("function_call_output", call_id="1", output="42")),
        (RESPONSES, item("message", role="assistant", content=[{"type": "output_text", "text": "hi"}])),
        (ANTHROPIC, block("text", text="hi", cache_control={"type": "ephemeral", "ttl": "1h"})),
        (ANTHROPIC, block("tool_result", tool_use_id="1", content=[{"type": "text", "text": "42"}])),
        (ANTHROPIC, block("document", source={"type": "text", "data": "long"}, title="t")),
        (ANTHROPIC, block("thinking", thinking="hm", signature="abc")),
        (ANTHROPIC, {"thinking": {"type": "enabled", "budget_tokens": 5}, "system": "be brief"}),
        (ANTHROPIC, {"speed": "standard", "service_tier": "standard_only"}),
    ],
)
def test_what_bytes_bound_is_held_and_passes(api: TokenApi, more: dict[str, Any]) -> None:
    assert held(api, **more) >= size(api, **more) * 5


URL = "https://images.test/cat.png"
UNBOUNDED: list[tuple[TokenApi, dict[str, Any], str]] = [
    (CHAT, block("image_url", image_url={"url": URL}), "fetched from elsewhere"),
    (CHAT, block("image_url", image_url={"url": 5}), "fetched from elsewhere"),
    (CHAT, block("image_url", image_url="x"), "no object"),
    (CHAT, block("input_audio", input_audio={"data": "x"}), "type input_audio"),
    (CHAT, block("file", file={"file_id": "file_1"}), "type file"),
    (CHAT, {"messages": [{"role": "user", "content": ["hi"]}]}, "type nothing"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "type nothing"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "no list"),
    (CHAT, {"messages": [{"role": "root", "content": "hi"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "stored at the vendor"),
    (CHAT, {"messages": [{**USER, "Content": "x"}]}, "messages[0].Content"),
    (CHAT, {"messages": "hi"}, "no list"),
    (CHAT, {"audio": {"voice": "x"}}, "speech"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities[1]"),
    (CHAT, {"prediction": {"content": "x"}}, "prediction"),
    (CHAT, {"web_search_options": {}}, "web_search_options"),
    (CHAT, {"moderation": {}}, "moderation"),
    (CHAT, {"service_tier": "priority"}, "service_tier"),
    (CHAT, {"service_tier": "flex"}, "service_tier"),
    (CHAT, {"stream": "true"}, "stream"),
    (CHAT, {"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    (CHAT, {"tools": [{"type": "web_search"}]}, "type web_search"),
    (CHAT, {"tools": [{"function": {}}]}, "type nothing"),
    (CHAT, {"prompt_cache_options": {"ttl": "12h"}}, "prompt_cache_options.ttl"),
    (CHAT, {"Max_Tokens": 1}, "Max_Tokens"),
    (CHAT, {"max_new_thing": 1}, "max_new_thing"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "no text"),
    (RESPONSES, block("text"), "messages"),
    (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
    (RESPONSES, {"conversation": "conv_1"}, "conversation"),
    (RESPONSES, {"prompt": {"id": "pmpt_1"}}, "prompt"),
    (RESPONSES, {"background": True}, "background"),
    (RESPONSES, {"context_management": []}, "context_management"),
    (RESPONSES, {"reasoning": {"mode": "pro"}}, "reasoning.mode"),
    (RESPONSES, {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, "type file_search"),
    (RESPONSES, {"tools": [{"type": "mcp", "server_url": URL}]}, "type mcp"),
    (RESPONSES, {"tools": [{"type": "code_interpreter"}]}, "type code_interpreter"),
    (RESPONSES, item("item_reference", id="msg_1"), "type item_reference"),
    (RESPONSES, item("reasoning", id="rs_1", summary=[]), "stored at the vendor"),
    (RESPONSES, item("message", role="user", content=[{"type": "input_file", "file_id": "f"}]), "input_file"),
    (RESPONSES, item("message", role="user", content=[{"type": "input_image", "file_id": "f"}]), "file_id"),
    (
        RESPONSES,
        item("message", role="user", content=[{"type": "input_image", "image_url": URL}]),
        "elsewhere",
    ),
    ("openai-embeddings", {"max_tokens": 5}, "max_tokens"),
    (ANTHROPIC, block("image", source={"type": "url", "url": URL}), "type url"),
    (ANTHROPIC, block("image", source={"type": "base64", "data": 5}), "no text"),
    (ANTHROPIC, block("image", source={"type": "file", "file_id": "file_1"}), "type file"),
    (ANTHROPIC, block("document", source={"type": "base64", "data": "x"}), "type base64"),
    (
        ANTHROPIC,
        block("document", source={"type": "text", "data": "x"}, citations={"enabled": True}),
        "citations",
    ),
    (ANTHROPIC, block("container_upload", file_id="file_1"), "type container_upload"),
    (ANTHROPIC, block("server_tool_use", id="1"), "type server_tool_use"),
    (ANTHROPIC, {"container": "c"}, "container"),
    (ANTHROPIC, {"mcp_servers": []}, "mcp_servers"),
    (ANTHROPIC, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
    (ANTHROPIC, {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "bash_20250124"),
    (ANTHROPIC, {"speed": "fast"}, "speed"),
    (ANTHROPIC, {"inference_geo": "us"}, "inference_geo"),
    (ANTHROPIC, {"fallbacks": []}, "fallbacks"),
]


@pytest.mark.parametrize(("api", "more", "named"), UNBOUNDED)
def test_law_10_what_bytes_do_not_bound_is_refused_by_name(
    api: TokenApi, more: dict[str, Any], named: str
) -> None:
    assert named in refusal(api, **more)


@pytest.mark.parametrize("value", ["10", 0, -1, 1.5, 10**9, True, [10], {}])
def test_a_maximum_is_a_plain_count(value: Any) -> None:
    assert "max_tokens" in refusal(CHAT, max_tokens=value)


@pytest.mark.parametrize(
    ("api", "name"), [(CHAT, "max_tokens"), (RESPONSES, "max_output_tokens"), (ANTHROPIC, "max_tokens")]
)
def test_law_4_without_a_maximum_nothing_is_bounded(api: TokenApi, name: str) -> None:
    with pytest.raises(UntoldError) as raised:
        held(api, PRICE, name)
    assert raised.value.remedy.startswith("send max_")


@pytest.mark.parametrize("model", [None, 5, "", "x" * 201])
def test_a_body_names_its_model(model: Any) -> None:
    assert "model" in refusal(CHAT, model=model)


def test_law_4_a_model_without_a_price_is_refused() -> None:
    assert "no price for the model m" in refusal(CHAT, price=None)
    assert "what the model m writes" in refusal(CHAT, price=READER)
    assert held("openai-embeddings", READER) == size("openai-embeddings") * 2
    assert "searches" in refusal(CHAT, model="gpt-4o-search-preview")
    assert "searches" in refusal(CHAT, model="o3-deep-research")


def test_a_refusal_says_the_operation_the_reason_and_the_remedy() -> None:
    operation = Operation(name="chat.create", match="POST /v1/chat", cost=Tokens(api=CHAT))
    body = read_document(b'{"model": "m", "messages": []}')
    refused = price(operation, body, EMPTY, {}, {}, RATES, None, lambda model: PRICE)
    assert isinstance(refused, Refusal)
    assert refused.code is Code.AMOUNT_UNKNOWN
    assert "chat.create" in refused.sentence
    assert refused.remedy == "send max_completion_tokens"
    form = price(operation, EMPTY, EMPTY, {}, {}, RATES)
    assert isinstance(form, Refusal)
    assert "no JSON body" in form.sentence
    stray = price(operation, body, Form((("max_tokens", "1"),), has_semicolon=False), {}, {}, RATES)
    assert isinstance(stray, Refusal)
    assert stray.code is Code.AMBIGUOUS_REQUEST
    whole = read_document(json.dumps(BODIES[CHAT]).encode())
    assert isinstance(price(operation, whole, EMPTY, {}, {}, RATES), Refusal)  # nobody handed prices over
    quote = price(operation, whole, EMPTY, {}, {}, RATES, None, lambda model: PRICE)
    assert quote == Price(held(CHAT), exact=False, tokens=PRICE)
    dear = TokenPrice(Ladder(((0, 2 * M),)), Ladder(((0, 10**24),)))
    assert isinstance(price(operation, whole, EMPTY, {}, {}, RATES, None, lambda model: dear), Refusal)


@given(
    content=st.text(max_size=50), most=st.integers(1, 10**6), times=st.integers(1, 100), escaped=st.booleans()
)
def test_law_1_no_call_within_its_bounds_costs_more_than_is_held(
    content: str, most: int, times: int, escaped: bool
) -> None:
    """A token is a byte of text at least, however JSON writes it; no more is written than was asked for."""
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": most, "n": times}
    raw = json.dumps(body, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    try:
        document = read_document(raw)
    except ValueError:
        return  # half of a surrogate pair
    nano = bound(CHAT, document, lambda model: PRICE).nano
    usage: dict[str, Any] = {"prompt_tokens": len(content.encode()), "completion_tokens": most * times}
    usage |= {"prompt_tokens_details": {"cache_write_tokens": len(content.encode())}}
    true = spent(CHAT, PRICE, {"usage": usage})
    assert true is not None
    assert true <= nano


# --- what was spent -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api", "price", "usage", "more", "nano"),
    [
        (CHAT, PRICE, {"prompt_tokens": 10, "completion_tokens": 4}, {}, 48),
        (CHAT, PRICE, {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 20}, {}, 90),
        (
            CHAT,
            PRICE,
            {"prompt_tokens": 10, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 6}},
            {},
            14,
        ),
        (
            RESPONSES,
            PRICE,
            {
                "input_tokens": 10,
                "output_tokens": 4,
                "input_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 3},
                "output_tokens_details": {"reasoning_tokens": 3},
            },
            {"service_tier": "default"},
            2 + 6 + 15 + 28,
        ),
        (CHAT, WRITER, {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 5}}, {}, 10),
        (CHAT, PRICE, {"prompt_tokens": 10, "completion_tokens": 4}, {"service_tier": "priority"}, 120),
        (CHAT, PRICE, {"prompt_tokens": 10, "completion_tokens": 4}, {"service_tier": "new"}, 288),
        (CHAT, PRICE, {"prompt_tokens": 10, "completion_tokens": 4}, {"service_tier": 5}, 48),
        (CHAT, OWN, {"prompt_tokens": 10, "completion_tokens": 4}, {"service_tier": "on_demand"}, 48),
        (ANTHROPIC, OWN, {"input_tokens": 10, "output_tokens": 4, "service_tier": "on_demand"}, {}, 48),
        (CHAT, LONG, {"prompt_tokens": 1000, "completion_tokens": 1}, {}, 2007),
        (CHAT, LONG, {"prompt_tokens": 1001, "completion_tokens": 1}, {}, 4013),
        ("openai-embeddings", READER, {"prompt_tokens": 10, "total_tokens": 10}, {}, 20),
        (ANTHROPIC, PRICE, {"input_tokens": 10, "output_tokens": 4}, {}, 48),
        (
            ANTHROPIC,
            PRICE,
            {
                "input_tokens": 10,
                "output_tokens": 4,
                "cache_read_input_tokens": 2,
                "cache_creation_input_tokens": 5,
                "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 2},
                "server_tool_use": {"web_search_requests": 0},
                "service_tier": "standard",
            },
            {},
            48 + 2 + 9 + 10,
        ),
        (
            ANTHROPIC,
            PRICE,
            {"input_tokens": 10, "output_tokens": 4, "cache_creation_input_tokens": 5},
            {},
            48 + 25,
        ),
        (ANTHROPIC, WRITER, {"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": 1}, {}, 11),
        (ANTHROPIC, PRICE, {"input_tokens": 10, "output_tokens": 4, "inference_geo": "us"}, {}, 53),
        (ANTHROPIC, PRICE, {"input_tokens": 10, "output_tokens": 4, "inference_geo": "global"}, {}, 48),
        (ANTHROPIC, PRICE, {"input_tokens": 10, "output_tokens": 4, "speed": "fast"}, {}, 288),
    ],
)
def test_the_usage_says_what_it_cost(
    api: TokenApi, price: TokenPrice, usage: dict[str, Any], more: dict[str, Any], nano: int
) -> None:
    assert spent(api, price, {"usage": usage, **more}) == nano


@pytest.mark.parametrize(
    ("api", "price", "usage"),
    [
        (CHAT, PRICE, None),
        (CHAT, PRICE, {}),
        (CHAT, PRICE, {"prompt_tokens": "10", "completion_tokens": 1}),
        (CHAT, PRICE, {"prompt_tokens": -1, "completion_tokens": 1}),
        (CHAT, PRICE, {"prompt_tokens": True, "completion_tokens": 1}),
        (CHAT, PRICE, {"prompt_tokens": 10**11, "completion_tokens": 1}),
        (CHAT, PRICE, {"prompt_tokens": 1, "input_tokens": 1, "completion_tokens": 1}),
        (CHAT, PRICE, {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}}),
        (CHAT, PRICE, {"prompt_tokens": 1, "prompt_tokens_details": [1]}),
        (CHAT, PRICE, {"prompt_tokens": 1, "prompt_tokens_details": {"audio_tokens": 1}}),
        (CHAT, PRICE, {"prompt_tokens": 1, "completion_tokens_details": {"audio_tokens": 1}}),
        (CHAT, READER, {"prompt_tokens": 1, "completion_tokens": 1}),
        (ANTHROPIC, PRICE, {"input_tokens": 1}),
        (ANTHROPIC, READER, {"input_tokens": 1, "output_tokens": 1}),
        (
            ANTHROPIC,
            PRICE,
            {"input_tokens": 1, "output_tokens": 1, "server_tool_use": {"web_search_requests": 1}},
        ),
    ],
)
def test_law_3_a_usage_that_can_t_be_read_spends_the_hold(
    api: TokenApi, price: TokenPrice, usage: Any
) -> None:
    assert spent(api, price, {"usage": usage}) is None


# --- asking for the usage -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"stream":true}', '{"stream":true,"stream_options":{"include_usage":true}}'),
        (' { "stream" : true } ', ' { "stream" : true ,"stream_options":{"include_usage":true}} '),
        (
            '{"stream_options":null,"stream":true}',
            '{"stream_options":{"include_usage":true},"stream":true}',
        ),
        (
            '{"stream":true,"stream_options":{}}',
            '{"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            '{"stream":true,"stream_options":{"include_obfuscation":false }}',
            '{"stream":true,"stream_options":{"include_obfuscation":false ,"include_usage":true}}',
        ),
        (
            '{"stream":true,"stream_options":{"include_usage": false,"include_obfuscation":true}}',
            '{"stream":true,"stream_options":{"include_usage": true,"include_obfuscation":true}}',
        ),
        (
            '{"a":"}\\"{\\u00e4","b":[1,{"c":"é"}],"stream":true}',
            '{"a":"}\\"{\\u00e4","b":[1,{"c":"é"}],"stream":true,"stream_options":{"include_usage":true}}',
        ),
    ],
)
def test_only_what_asks_for_the_usage_is_added(before: str, after: str) -> None:
    assert wants_usage(CHAT, read_document(before.encode()))
    assert ask_for_usage(before.encode()).decode() == after
    assert not wants_usage(CHAT, read_document(after.encode()))


@pytest.mark.parametrize(
    ("api", "body"),
    [
        (CHAT, "{}"),
        (CHAT, '{"stream":false}'),
        (CHAT, '{"stream":true,"stream_options":{"include_usage":true}}'),
        (CHAT, '{"stream":true,"stream_options":[]}'),
        (RESPONSES, '{"stream":true}'),
        (ANTHROPIC, '{"stream":true}'),
    ],
)
def test_nothing_is_added_where_it_is_told_anyway(api: TokenApi, body: str) -> None:
    assert not wants_usage(api, read_document(body.encode()))


LINE = '[[model_price]]\nmodel = "m*"\ninput_per_million = 1.5\nsource = "list"\ndated = "2026-11-21"\n'
CHAT_OPERATION = """
[[operation]]
name = "chat.create"
match = "POST /v1/chat"
cost = { kind = "tokens", api = "openai-chat" }
"""
JSON_HEAD = HEAD.replace('"form"', '"json"')


def test_a_vendor_file_tells_prices() -> None:
    vendor = read_vendor(JSON_HEAD + 'adds = "/v1"\n' + CHAT_OPERATION + LINE)
    assert vendor.file.model_price[0].model == "m*"
    assert vendor.adds == "/v1"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (HEAD + CHAT_OPERATION + LINE, "JSON bodies"),
        (JSON_HEAD + CHAT_OPERATION, "model_table"),
        (JSON_HEAD + CHAT_OPERATION.replace("openai-chat", "chat") + LINE, "openai-responses"),
        (JSON_HEAD + 'model_table = "groq"\n' + CHAT_OPERATION, "openai or anthropic"),
        (JSON_HEAD + CHAT_OPERATION + LINE.replace("m*", "*m"), "price.model"),
        (JSON_HEAD + CHAT_OPERATION + LINE.replace("2026-11-21", "today"), "price.dated"),
        (JSON_HEAD + CHAT_OPERATION + LINE.replace("1.5", "-1"), "price.input_per_million"),
        (JSON_HEAD + CHAT_OPERATION + LINE.replace("1.5", "inf"), "input_per_million"),
        (JSON_HEAD + CHAT_OPERATION + LINE.replace("source", "sauce"), "sauce"),
        (JSON_HEAD + 'adds = "/v9"\n' + CHAT_OPERATION + LINE, "adds"),
    ],
)
def test_law_10_a_wrong_price_line_is_an_error(text: str, named: str) -> None:
    with pytest.raises(VendorFileError, match=named):
        read_vendor(text)
