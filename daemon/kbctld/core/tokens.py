"""What a call to a language model can cost at most, and what it did cost.

Before: the bytes of the body bound its input tokens, since every token of a byte-level tokenizer stands for
a byte of text or more, and JSON never writes a text shorter than it is. What a vendor may lengthen before it
counts is lengthened here too: text that it normalises, schemas that it writes in a form of its own. The
maximum that the body states bounds the output. Both at the dearest price of the model. After: the usage that
the vendor states.

What must stay true: whatever the bytes of a body do not bound (an address to fetch, a stored conversation, a
tool that the vendor runs) is refused by name. The vocabulary is closed: a member that is not known here may
cost anything. No float; every division rounds up.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from kbctld.core.document import Document, Json, Number
from kbctld.core.tariff import UntoldError

MODEL_MAX = 200

TokenApi: TypeAlias = Literal[
    "openai-chat", "openai-responses", "openai-completions", "openai-embeddings", "anthropic"
]
"""How a body asks for tokens and an answer counts them."""

STREAMS_ASKED_FOR_USAGE = frozenset({"openai-chat", "openai-completions"})
"""Their streams tell the usage only where ``stream_options.include_usage`` asks for it."""

_MILLION = 1_000_000
_COUNT = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_COUNTED_MAX = 10**10

# A tile of the model with the dearest tiles counts 5,667 tokens, its picture 2,833 more, and at most eight
# tiles are cut from one: 48,169. Models that count patches stay below: at most 10,000, at up to 2.46 tokens.
_OPENAI_IMAGE_TOKENS = 50_000
# Width x height / 750 after scaling down: 1,600 for most models, 4,784 where the long edge may have 2,576
# pixels. Twice that, for a model to come.
_ANTHROPIC_IMAGE_TOKENS = 10_000
# Vendors write instructions of their own in front of tools and schemas: 735 tokens at most are documented.
_INSTRUCTIONS_TOKENS = 1_000
# Schemas and tools are shown to a model in a form of the vendor's own: as types, tags or JSON on many lines.
# So much may stand around each value: a line end, an indent, a space, a comma, marks of a list or a tag.
_AROUND_A_VALUE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Ladder:
    """A price that may rise with the length of the prompt; a step holds for all tokens of the call.

    Attributes:
        steps: more input tokens than the first number cost the second, in nano-USD per million; ascending.
    """

    steps: tuple[tuple[int, int], ...]

    def at(self, tokens: int) -> int:
        return max((nano for start, nano in self.steps if tokens > start), default=self.steps[0][1])

    @property
    def dearest(self) -> int:
        return max(nano for _, nano in self.steps)


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """What a model's tokens cost.

    Attributes:
        input: plain input.
        output: what is written, thinking included; None for a model that writes nothing.
        cache_read: input that the vendor still had; None for the price of input.
        cache_write: input that it kept; None where that costs no more.
        cache_write_long: the same for longer.
        other_input: the dearest price of input that is no text; 0 where there is none.
        other_output: the same of output.
        surcharges: whether a setting of project or workspace may make the vendor's list dearer.
    """

    input: Ladder
    output: Ladder | None = None
    cache_read: Ladder | None = None
    cache_write: Ladder | None = None
    cache_write_long: Ladder | None = None
    other_input: int = 0
    other_output: int = 0
    surcharges: bool = True

    @property
    def dearest_input(self) -> int:
        ladders = (self.input, self.cache_read, self.cache_write, self.cache_write_long)
        return max(self.other_input, *(ladder.dearest for ladder in ladders if ladder is not None))

    @property
    def dearest_output(self) -> int:
        return max(self.other_output, self.output.dearest if self.output is not None else 0)


FindPrice: TypeAlias = Callable[[str], TokenPrice | None]
"""The price of a model by the name that a body gives it; None where nobody knows it."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The most tokens that a call can take, and the prices they are counted at.

    Attributes:
        nano: nano-USD.
        price: of the model that the body names.
    """

    nano: int
    price: TokenPrice


def deciding(api: TokenApi) -> list[str]:
    """The members that decide about the price."""
    return ["model", *_MAXIMA[api], *_TIMES[api]]


def bound(api: TokenApi, document: Document, find: FindPrice) -> Bound:
    """The most that a body can cost.

    Raises:
        UntoldError: that can't be told, with what it is.
    """
    # Only members that are known, spelt as the vendor spells them, pass this: no reader can see another one.
    seen = _Seen()
    _object(_BODIES[api])("", document.members, seen)
    model = document.members.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MODEL_MAX:
        raise UntoldError("it names no model", "state model")
    if "-search" in model or "deep-research" in model:
        raise UntoldError(f"{model} searches by itself, at a price for each search")
    price = find(model)
    if price is None:
        raise UntoldError(
            f"there is no price for the model {model}",
            "add it to config.toml, as vendors/README.md shows, and restart the daemon",
        )
    written = _most_written(api, document)
    if written and price.output is None:
        raise UntoldError(f"there is no price for what the model {model} writes")
    tokens = document.size - seen.image_bytes + seen.images * _IMAGE_TOKENS[api]
    tokens += seen.rewritten + _normalised(document.members)
    if seen.instructs:
        tokens += _INSTRUCTIONS_TOKENS
    nano = tokens * price.dearest_input + written * price.dearest_output
    if price.surcharges:
        nano *= _dearest_tenths(api, document)
    return Bound(_up(nano, _MILLION * (10 if price.surcharges else 1)), price)


def _dearest_tenths(api: TokenApi, document: Document) -> int:
    """What the vendor may take for its list price, in tenths of that, where the body leaves it open."""
    if api == "anthropic":
        # The workspace may keep its work in one country.
        return 10 if document.members.get("inference_geo") == "global" else _ELSEWHERE_TENTHS
    if api in ("openai-chat", "openai-responses") and document.members.get("service_tier") != "default":
        return max(_OPENAI_TIER_TENTHS.values())  # the project may be set to it
    return 10


def _normalised(value: Json) -> int:
    """How many bytes longer texts get for a tokenizer that takes them in their compatible form (NFKC).

    A published one of Anthropic's does, and those of many open models; one letter can become 18.
    """
    match value:
        case str():
            if value.isascii():
                return 0
            return max(len(unicodedata.normalize("NFKC", value).encode()) - len(value.encode()), 0)
        case list():
            return sum(map(_normalised, value))
        case dict():
            return sum(_normalised(name) + _normalised(item) for name, item in value.items())
    return 0


def _shown_anew(value: Json) -> int:
    """How many tokens more than its bytes a value can take where the vendor writes it in its own way."""
    match value:
        case str():
            # A writer may escape what is no ASCII.
            return 0 if value.isascii() else max(len(json.dumps(value)) - len(value.encode()), 0)
        case list():
            return sum(_AROUND_A_VALUE_TOKENS + _shown_anew(item) for item in value)
        case dict():
            return sum(
                _AROUND_A_VALUE_TOKENS + _shown_anew(name) + _shown_anew(item) for name, item in value.items()
            )
    return 0


def wants_usage(api: TokenApi, document: Document) -> bool:
    """Whether the answer will be a stream that does not tell its usage, because nobody asked for it."""
    if api not in STREAMS_ASKED_FOR_USAGE or document.members.get("stream") is not True:
        return False
    options = document.members.get("stream_options")
    return options is None or (isinstance(options, dict) and options.get("include_usage") is not True)


def ask_for_usage(raw: bytes) -> bytes:
    """The body with ``stream_options.include_usage``, every other byte as it was sent.

    Args:
        raw: a body that ``read_document`` took and ``bound`` or ``wants_usage`` looked at.
    """
    text = raw.decode("utf-8")
    spans, end = _spans(text, text.index("{"))
    if "stream_options" not in spans:
        # There is a member before it: the one that makes it a stream.
        return f'{text[:end]},"stream_options":{{"include_usage":true}}{text[end:]}'.encode()
    start, stop = spans["stream_options"]
    if text[start] != "{":
        return f'{text[:start]}{{"include_usage":true}}{text[stop:]}'.encode()
    inner, inner_end = _spans(text, start)
    if "include_usage" in inner:
        start, stop = inner["include_usage"]
        return f"{text[:start]}true{text[stop:]}".encode()
    comma = "," if inner else ""
    return f'{text[:inner_end]}{comma}"include_usage":true{text[inner_end:]}'.encode()


# --- what was spent -----------------------------------------------------------------------------------


def spent(api: TokenApi, price: TokenPrice, answer: Mapping[str, Any]) -> int | None:
    """Nano-USD that an answer says it cost; None where it does not say, or says it in a way not known here.

    Args:
        api: whose answer it is.
        price: what the call was held at.
        answer: its members; of a stream, those that the events told together.
    """
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    try:
        if api == "anthropic":
            return _spent_anthropic(price, usage)
        return _spent_openai(price, usage, answer.get("service_tier"))
    except _Untold:
        return None


class _Untold(Exception):  # noqa: N818 - an outcome, not a defect
    """A count that is none."""


def _spent_openai(price: TokenPrice, usage: Mapping[str, Any], tier: object) -> int:
    # Chat and Responses use two words for each.
    read = _count_of(usage, "prompt_tokens", "input_tokens")
    written = _count_of(usage, "completion_tokens", "output_tokens", absent=0)
    # Servers that count thinking apart still count it in the total.
    written = max(written, _count_of(usage, "total_tokens", absent=0) - read)
    details = _object_of(usage, "prompt_tokens_details", "input_tokens_details")
    made = _object_of(usage, "completion_tokens_details", "output_tokens_details")
    if _count_of(details, "audio_tokens", absent=0) or _count_of(made, "audio_tokens", absent=0):
        raise _Untold
    cached = _count_of(details, "cached_tokens", absent=0)
    kept = _count_of(details, "cache_write_tokens", absent=0)
    if cached + kept > read:
        raise _Untold
    total = (
        (read - cached - kept) * price.input.at(read)
        + cached * (price.cache_read or price.input).at(read)
        + kept * _dearest_write(price).at(read)
    )
    if written:
        if price.output is None:
            raise _Untold
        total += written * price.output.at(read)
    if not price.surcharges:
        return _up(total, _MILLION)
    tenths = _OPENAI_TIER_TENTHS.get(tier if isinstance(tier, str) else "", _SURCHARGE_MAX_TENTHS)
    return _up(total * tenths, 10 * _MILLION)


def _spent_anthropic(price: TokenPrice, usage: Mapping[str, Any]) -> int:
    plain = _count_of(usage, "input_tokens")
    cached = _count_of(usage, "cache_read_input_tokens", absent=0)
    kept = _count_of(usage, "cache_creation_input_tokens", absent=0)
    written = _count_of(usage, "output_tokens")
    by_age = _object_of(usage, "cache_creation")
    short = _count_of(by_age, "ephemeral_5m_input_tokens", absent=0)
    long = _count_of(by_age, "ephemeral_1h_input_tokens", absent=0)
    read = plain + cached + kept
    if short + long != kept:
        short, long = 0, kept  # it does not say which: the dearer
    if any(_object_of(usage, "server_tool_use").values()) or price.output is None:
        raise _Untold
    total = (
        plain * price.input.at(read)
        + cached * (price.cache_read or price.input).at(read)
        + short * (price.cache_write or price.input).at(read)
        + long * _dearest_write(price).at(read)
        + written * price.output.at(read)
    )
    if not price.surcharges:
        return _up(total, _MILLION)
    if usage.get("inference_geo") not in (None, "", "global", "not_available"):
        total = _up(total * _ELSEWHERE_TENTHS, 10)
    usual = usage.get("speed") in (None, "standard") and usage.get("service_tier") in _ANTHROPIC_TIERS
    return _up(total * (10 if usual else _SURCHARGE_MAX_TENTHS), 10 * _MILLION)


# What a project or workspace is set to may raise the price, in tenths of it: OpenAI's priority costs 2.5
# times the standard price at most, work in one country a tenth more; Anthropic's fast mode has cost six
# times, and so does a tier that is not known here.
_SURCHARGE_MAX_TENTHS = 60
_OPENAI_TIER_TENTHS = {"": 10, "default": 10, "auto": 10, "flex": 10, "scale": 10, "priority": 25, "fast": 25}
_ELSEWHERE_TENTHS = 11
_ANTHROPIC_TIERS = (None, "standard", "priority", "batch")


def _dearest_write(price: TokenPrice) -> Ladder:
    return price.cache_write_long or price.cache_write or price.input


def _count_of(said: Mapping[str, Any], *names: str, absent: int | None = None) -> int:
    found = [said[name] for name in names if said.get(name) is not None]
    if not found and absent is not None:
        return absent
    if len(found) != 1 or type(found[0]) is not int or not 0 <= found[0] <= _COUNTED_MAX:
        raise _Untold
    return int(found[0])


def _object_of(said: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    found: Any = next((said[name] for name in names if said.get(name) is not None), {})
    if not isinstance(found, dict):
        raise _Untold
    return found


def _up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


# --- what a body may hold -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Seen:
    """What was met on the way through a body.

    Attributes:
        images: how many stand in it.
        image_bytes: what they take of its bytes; their tokens do not follow from those.
        instructs: whether something makes the vendor add instructions of its own.
        rewritten: the tokens more than bytes that values can take which the vendor writes in its own way.
    """

    images: int = 0
    image_bytes: int = 0
    instructs: bool = False
    rewritten: int = 0


_Check: TypeAlias = Callable[[str, Json, _Seen], None]
"""Looks at a value at a place, and raises ``UntoldError`` where bytes do not bound what it costs."""


def _bytes(where: str, value: Json, seen: _Seen) -> None:
    """Whatever it is, its bytes bound it."""


def _anew(where: str, value: Json, seen: _Seen) -> None:
    """Whatever it is, its bytes and what the vendor may write around its values bound it."""
    seen.rewritten += _shown_anew(value)


def _never(why: str) -> _Check:
    """Named, so that its refusal can say more than that it is unknown."""

    def check(where: str, value: Json, seen: _Seen) -> None:
        raise UntoldError(f"{where} {why}", f"leave {where} out")

    return check


def _words(*words: str) -> _Check:
    def check(where: str, value: Json, seen: _Seen) -> None:
        if value not in words:
            raise UntoldError(f"{where} is not {' or '.join(words)}", f"send {where} as {words[0]}")

    return check


def _flag(where: str, value: Json, seen: _Seen) -> None:
    if not isinstance(value, bool):
        raise UntoldError(f"{where} is neither true nor false")


def _off(where: str, value: Json, seen: _Seen) -> None:
    if value is not False:
        raise UntoldError(f"{where} is not false", f"leave {where} out")


def _string(where: str, value: Json, seen: _Seen) -> None:
    if not isinstance(value, str):
        raise UntoldError(f"{where} is no text")


def _data_url(where: str, value: Json, seen: _Seen) -> None:
    if not isinstance(value, str) or not value.startswith("data:image/"):
        raise UntoldError(f"{where} is fetched from elsewhere", "send the image inline, as data:image/...")
    _image(value, seen)


def _image_data(where: str, value: Json, seen: _Seen) -> None:
    if not isinstance(value, str):
        raise UntoldError(f"{where} is no text")
    _image(value, seen)


def _image(text: str, seen: _Seen) -> None:
    seen.images += 1
    seen.image_bytes += len(text.encode())  # never more than it took in the body, where it may stand escaped


def _object(members: Mapping[str, _Check]) -> _Check:
    """An object of known members; null is absence."""

    def check(where: str, value: Json, seen: _Seen) -> None:
        if not isinstance(value, dict):
            raise UntoldError(f"{where} is no object")
        for name, item in value.items():
            place = f"{where}.{name}" if where else name
            known = members.get(name)
            if known is None:
                raise UntoldError(f"what {place[:200]} brings is not known here", f"leave {place[:200]} out")
            if item is not None:
                known(place, item, seen)

    return check


def _each(check_item: _Check) -> _Check:
    def check(where: str, value: Json, seen: _Seen) -> None:
        if not isinstance(value, list):
            raise UntoldError(f"{where} is no list")
        for number, item in enumerate(value):
            check_item(f"{where}[{number}]", item, seen)

    return check


def _text_or(otherwise: _Check) -> _Check:
    def check(where: str, value: Json, seen: _Seen) -> None:
        if not isinstance(value, str):
            otherwise(where, value, seen)

    return check


def _kinds(kinds: Mapping[str, Mapping[str, _Check]], usual: str = "") -> _Check:
    """An object whose ``type`` says what else may stand in it; ``usual`` where it names none."""
    checks = {kind: _object({"type": _bytes, **members}) for kind, members in kinds.items()}

    def check(where: str, value: Json, seen: _Seen) -> None:
        kind = value.get("type", usual) if isinstance(value, dict) else None
        known = checks.get(kind) if isinstance(kind, str) else None
        if known is None:
            said = kind if isinstance(kind, str) and kind else "nothing"
            raise UntoldError(
                f"{where} is of type {said[:100]}, and what that brings is not known here",
                f"only {', '.join(kinds)} can be priced here",
            )
        known(where, value, seen)

    return check


def _sealed(check_item: _Check) -> _Check:
    """Thinking of an earlier answer stands here sealed; a mere name of it brings what the vendor stored."""

    def check(where: str, value: Json, seen: _Seen) -> None:
        check_item(where, value, seen)
        if (
            isinstance(value, dict)
            and value.get("type") == "reasoning"
            and not value.get("encrypted_content")
        ):
            raise UntoldError(
                f"{where} brings what is stored at the vendor",
                'ask for include=["reasoning.encrypted_content"] with store=false, or leave it out',
            )

    return check


def _instructs(check_it: _Check) -> _Check:
    """Brings instructions of the vendor's, and is itself written anew."""

    def check(where: str, value: Json, seen: _Seen) -> None:
        seen.instructs = True
        _anew(where, value, seen)
        check_it(where, value, seen)

    return check


def _members(names: str) -> dict[str, _Check]:
    return dict.fromkeys(names.split(), _bytes)


# What is refused by name says more than that it is unknown.
_STORED = _never("brings what is stored at the vendor")
_RUNS = _never("makes the vendor run or fetch something")

_OPENAI_CACHE = _object({"mode": _bytes, "ttl": _words("30m")})
_OPENAI_COMMON: dict[str, _Check] = {
    **_members("metadata model prompt_cache_key safety_identifier store temperature top_p top_logprobs user"),
    "parallel_tool_calls": _bytes,
    "prompt_cache_retention": _bytes,
    "prompt_cache_options": _OPENAI_CACHE,
    # The project's own setting may say otherwise; then the answer tells it.
    "service_tier": _words("default", "auto"),
    "stream": _flag,
}
_CHAT_PARTS = _kinds(
    {
        "text": {"text": _string},
        "refusal": {"refusal": _string},
        "image_url": {"image_url": _object({"url": _data_url, "detail": _bytes})},
    }
)
_CHAT: dict[str, _Check] = {
    **_OPENAI_COMMON,
    **_members("frequency_penalty presence_penalty logit_bias logprobs seed stop reasoning_effort verbosity"),
    **_members("tool_choice function_call max_completion_tokens max_tokens n"),
    "messages": _each(
        _object(
            {
                **_members("name tool_call_id refusal annotations"),
                "function_call": _anew,
                "role": _words("user", "system", "developer", "assistant", "tool", "function"),
                "content": _text_or(_each(_CHAT_PARTS)),
                "tool_calls": _each(
                    _kinds(
                        {
                            "function": {**_members("id index"), "function": _anew},
                            "custom": {**_members("id index"), "custom": _anew},
                        }
                    )
                ),
                "audio": _STORED,
            }
        )
    ),
    "functions": _instructs(_bytes),
    "response_format": _instructs(_bytes),
    "tools": _instructs(_each(_kinds({"function": {"function": _bytes}, "custom": {"custom": _bytes}}))),
    "modalities": _each(_words("text")),
    "stream_options": _object({"include_usage": _flag, "include_obfuscation": _flag}),
    "audio": _never("asks for speech, which has a price of its own"),
    "prediction": _never("is billed as output where it was not met"),
    "web_search_options": _RUNS,
    "moderation": _RUNS,
}
_RESPONSE_PARTS = _kinds(
    {
        "input_text": {"text": _string},
        "output_text": {"text": _string, "annotations": _bytes, "logprobs": _bytes},
        "refusal": {"refusal": _string},
        "input_image": {"image_url": _data_url, "detail": _bytes, "file_id": _STORED},
    }
)
_RESPONSE_CONTENT = _text_or(_each(_RESPONSE_PARTS))
_RESPONSE_ITEMS: dict[str, dict[str, _Check]] = {
    "message": {**_members("id role status phase"), "content": _RESPONSE_CONTENT},
    "function_call": {
        **_members("id call_id name status"),
        "arguments": _anew,
        "caller": _kinds({"direct": {}}),
    },
    "function_call_output": {**_members("id call_id status"), "output": _RESPONSE_CONTENT},
    "custom_tool_call": {**_members("id call_id name input status"), "caller": _kinds({"direct": {}})},
    "custom_tool_call_output": {**_members("id call_id status"), "output": _RESPONSE_CONTENT},
    "reasoning": {**_members("id summary content status"), "encrypted_content": _string},
}
_RESPONSES: dict[str, _Check] = {
    **_OPENAI_COMMON,
    **_members("include instructions max_output_tokens max_tool_calls tool_choice truncation"),
    "reasoning": _object({**_members("context effort generate_summary summary"), "mode": _words("standard")}),
    "input": _text_or(_each(_sealed(_kinds(_RESPONSE_ITEMS, usual="message")))),
    "text": _instructs(_bytes),
    "tools": _instructs(
        _each(
            _kinds(
                {
                    "function": _members("name description parameters strict"),
                    "custom": _members("name description format"),
                }
            )
        )
    ),
    "stream_options": _object({"include_obfuscation": _flag}),
    "background": _off,
    "conversation": _STORED,
    "context_management": _RUNS,
    "moderation": _RUNS,
    "previous_response_id": _STORED,
    "prompt": _STORED,
}
_COMPLETIONS: dict[str, _Check] = {
    **_members(
        "best_of echo frequency_penalty logit_bias logprobs max_tokens model n presence_penalty prompt seed"
    ),
    **_members("stop suffix temperature top_p user"),
    "stream": _flag,
    "stream_options": _object({"include_usage": _flag, "include_obfuscation": _flag}),
}
_EMBEDDINGS = _members("dimensions encoding_format input model user")

_CACHED: dict[str, _Check] = {"cache_control": _object(_members("type ttl"))}
_TEXT_BLOCK: dict[str, _Check] = {"text": _string, "citations": _bytes, **_CACHED}
_IMAGE_BLOCK: dict[str, _Check] = {
    "source": _kinds({"base64": {"media_type": _bytes, "data": _image_data}}),
    **_CACHED,
}
# A PDF is read as text and as one image for each of its pages, and how many it has its bytes do not say; with
# citations a document is cut into marked pieces.
_DOCUMENT_BLOCK: dict[str, _Check] = {
    "source": _kinds({"text": {"media_type": _bytes, "data": _string}}),
    **_members("title context"),
    **_CACHED,
}
_ANTHROPIC_TEXT = _text_or(_each(_kinds({"text": _TEXT_BLOCK})))
_ANTHROPIC_BLOCKS: dict[str, dict[str, _Check]] = {
    "text": _TEXT_BLOCK,
    "image": _IMAGE_BLOCK,
    "document": _DOCUMENT_BLOCK,
    "thinking": {"thinking": _string, "signature": _string},
    "redacted_thinking": {"data": _string},
    "tool_use": {**_members("id name"), "input": _anew, **_CACHED, "caller": _kinds({"direct": {}})},
    "tool_result": {
        **_members("tool_use_id is_error"),
        **_CACHED,
        "content": _text_or(
            _each(_kinds({"text": _TEXT_BLOCK, "image": _IMAGE_BLOCK, "document": _DOCUMENT_BLOCK}))
        ),
    },
}
_ANTHROPIC: dict[str, _Check] = {
    **_members("max_tokens metadata model stop_sequences temperature tool_choice top_k top_p"),
    **_CACHED,
    "thinking": _instructs(_object(_members("type budget_tokens display"))),
    "messages": _each(
        _object(
            {
                "role": _words("user", "assistant", "system"),
                "content": _text_or(_each(_kinds(_ANTHROPIC_BLOCKS))),
            }
        )
    ),
    "system": _ANTHROPIC_TEXT,
    "output_config": _instructs(_object(_members("effort format"))),
    "stream": _flag,
    "tools": _instructs(
        _each(
            _kinds(
                {
                    "custom": {
                        **_members(
                            "name description input_schema strict eager_input_streaming input_examples"
                        ),
                        **_CACHED,
                    }
                },
                usual="custom",
            )
        )
    ),
    "service_tier": _words("standard_only", "auto"),
    "inference_geo": _words("global"),
    "speed": _words("standard"),
    "container": _STORED,
    "context_management": _RUNS,
    "mcp_servers": _RUNS,
}

_BODIES: dict[TokenApi, dict[str, _Check]] = {
    "openai-chat": _CHAT,
    "openai-responses": _RESPONSES,
    "openai-completions": _COMPLETIONS,
    "openai-embeddings": _EMBEDDINGS,
    "anthropic": _ANTHROPIC,
}
_MAXIMA: dict[TokenApi, tuple[str, ...]] = {
    "openai-chat": ("max_completion_tokens", "max_tokens"),
    "openai-responses": ("max_output_tokens",),
    "openai-completions": ("max_tokens",),
    "openai-embeddings": (),
    "anthropic": ("max_tokens",),
}
_TIMES: dict[TokenApi, tuple[str, ...]] = {
    "openai-chat": ("n",),
    "openai-responses": (),
    "openai-completions": ("n", "best_of"),
    "openai-embeddings": (),
    "anthropic": (),
}
_IMAGE_TOKENS: dict[TokenApi, int] = {
    "openai-chat": _OPENAI_IMAGE_TOKENS,
    "openai-responses": _OPENAI_IMAGE_TOKENS,
    "openai-completions": 0,
    "openai-embeddings": 0,
    "anthropic": _ANTHROPIC_IMAGE_TOKENS,
}


def _most_written(api: TokenApi, document: Document) -> int:
    """The most output tokens that the body asks for."""
    names = _MAXIMA[api]
    if not names:
        return 0
    stated = [_stated(document, name) for name in names if document.members.get(name) is not None]
    if not stated:
        raise UntoldError("it states no maximum of output tokens", f"send {names[0]}")
    times = [_stated(document, name) for name in _TIMES[api] if document.members.get(name) is not None]
    written = max(stated) * max(times, default=1)
    thinking = document.members.get("thinking")
    if api == "anthropic" and isinstance(thinking, dict) and thinking.get("budget_tokens") is not None:
        budget = _plain_count(thinking["budget_tokens"], "thinking.budget_tokens")
        if budget >= written:
            written += budget  # between tools a model may think beyond max_tokens
    prompt = document.members.get("prompt")
    if (
        api == "openai-completions"
        and isinstance(prompt, list)
        and not isinstance(next(iter(prompt), None), Number)
    ):
        written *= max(1, len(prompt))  # a list of prompts is answered one by one; a list of numbers is one
    return written


def _stated(document: Document, name: str) -> int:
    return _plain_count(document.members[name], name)


def _plain_count(value: Json, name: str) -> int:
    if not isinstance(value, Number) or not _COUNT.fullmatch(value.text):
        raise UntoldError(f"its {name} is not a plain count of one or more", f"send {name} as digits only")
    return int(value.text)


# --- where a member stands in a text ------------------------------------------------------------------

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def _spans(text: str, start: int) -> tuple[dict[str, tuple[int, int]], int]:
    """Where the values of the object at ``start`` stand, and its closing bracket."""
    spans = {}
    at = _past_space(text, start + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        at = _past_space(text, _past_space(text, at) + 1)  # the colon
        _, end = _DECODER.raw_decode(text, at)
        spans[str(name)] = at, end
        at = _past_space(text, end)
        if text[at] == ",":
            at = _past_space(text, at + 1)
    return spans, at


def _past_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
