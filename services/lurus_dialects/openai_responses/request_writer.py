"""Writes requests in the shape of OpenAI Responses from the hub's form."""

import hashlib
from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatMessage, ChatOutputFormat, StreamChatRequest
from lurus_dialects import loose
from lurus_dialects.dialect import Dialect
from lurus_dialects.efforts import clamped, effort_of
from lurus_dialects.openai_responses.item_writer import ItemWriter
from lurus_dialects.openai_responses.request_reader import LOGPROBS, SEALED_REASONING
from lurus_dialects.openai_responses.tool_writer import ToolWriter
from lurus_dialects.openai_responses.vendor_fields import translate_fields
from lurus_dialects.translation import Losses, Target, Written, source_of

MAX_SAFETY_IDENTIFIER_CHARACTERS: Final = 64
ATTRIBUTION: Final = "x-anthropic-billing-header:"
_MANUAL: Final = (chat_pb2.CHAT_REASONING_MODE_ADAPTIVE, chat_pb2.CHAT_REASONING_MODE_BUDGET)
_LIMIT_NAMES: Final = {
    Dialect.ANTHROPIC: "max_tokens",
    Dialect.OPENAI_CHAT: "max_completion_tokens",
}


def write_request(
    request: StreamChatRequest, target: Target, losses: Losses, *, is_streaming: bool
) -> Written:
    """See `translate.write_request`."""
    source = source_of(request)
    is_own = source is Dialect.OPENAI_RESPONSES
    if request.stop_sequences:
        name = "stop" if source is Dialect.OPENAI_CHAT else "stop_sequences"
        losses.refuse(name, "the provider's dialect knows no stop sequences")
    body: dict[str, Any] = {"model": target.upstream_model}
    tools = ToolWriter(request, losses, is_own=is_own)
    _add_conversation(request, body, ItemWriter(source, target, tools, losses), source, losses)
    _add_tools(request, body, tools)
    _add_limits(request, body, target, losses, source)
    _add_reasoning(request, body, target, losses, source)
    _add_text(request, body, is_own=is_own)
    _add_identity(request, body, losses, source)
    translate_fields(request.vendor_fields, body, losses)
    _drop(body, target, losses)
    if is_streaming:
        body["stream"] = True
    else:
        body.pop("stream_options", None)
    return Written(msgspec.json.encode(body), tools.tool_names)


def _add_conversation(
    request: StreamChatRequest,
    body: dict[str, Any],
    items: ItemWriter,
    source: Dialect | None,
    losses: Losses,
) -> None:
    messages = [(m.source_path or f"messages[{i}]", m) for i, m in enumerate(request.messages)]
    if messages and _is_instructions(messages[0]):
        instructions = _instructions(messages.pop(0)[1], losses)
        if instructions is not None:
            body["instructions"] = instructions
    is_own = source is Dialect.OPENAI_RESPONSES
    if messages and messages[-1][1].role == chat_pb2.CHAT_ROLE_ASSISTANT and not is_own:
        losses.warn(messages[-1][0], "the model starts a new turn and does not go on with this one")
    if request.previous_response_id:
        body["previous_response_id"] = request.previous_response_id
    written = items.write(messages, bool(request.previous_response_id))
    if written or not is_own:
        body["input"] = written
    if request.HasField("cache_hint"):
        losses.note("cache_control")


def _is_instructions(pair: tuple[str, ChatMessage]) -> bool:
    path, message = pair
    if message.role != chat_pb2.CHAT_ROLE_SYSTEM or not path.startswith(("instructions", "system")):
        return False
    return all(block.HasField("text") for block in message.blocks)


def _instructions(message: ChatMessage, losses: Losses) -> str | None:
    blocks = list(message.blocks)
    if blocks and message.source_path.startswith("system") and blocks[0].text.startswith(ATTRIBUTION):
        losses.note("system[0]")
        blocks = blocks[1:]
    for block in blocks:
        if block.HasField("cache_hint"):
            losses.note("system.cache_control")
    return "\n\n".join(block.text for block in blocks) if blocks else None


def _add_tools(request: StreamChatRequest, body: dict[str, Any], tools: ToolWriter) -> None:
    written = tools.tools()
    if written:
        body["tools"] = written
    choice = tools.choice()
    if choice is not None:
        body["tool_choice"] = choice
    if request.HasField("has_parallel_tool_calls"):
        body["parallel_tool_calls"] = request.has_parallel_tool_calls


def _add_limits(
    request: StreamChatRequest,
    body: dict[str, Any],
    target: Target,
    losses: Losses,
    source: Dialect | None,
) -> None:
    limit = request.max_output_tokens
    if 0 < target.max_output_tokens < limit:
        name = _LIMIT_NAMES.get(source, "max_output_tokens") if source else "max_output_tokens"
        losses.warn(name, "the model writes fewer tokens, and its maximum was taken")
        limit = target.max_output_tokens
    if limit:
        body["max_output_tokens"] = limit
    if request.HasField("temperature"):
        body["temperature"] = request.temperature
    if request.HasField("top_p"):
        body["top_p"] = request.top_p
    if request.HasField("top_k"):
        losses.warn("top_k", "is not known to the provider's dialect and was left out")
    if request.HasField("top_logprobs"):
        body.setdefault("include", []).append(LOGPROBS)
        if request.top_logprobs:
            body["top_logprobs"] = request.top_logprobs


def _add_reasoning(
    request: StreamChatRequest,
    body: dict[str, Any],
    target: Target,
    losses: Losses,
    source: Dialect | None,
) -> None:
    reasoning = request.reasoning
    written: dict[str, Any] = {}
    effort = _effort(request, target, losses)
    if effort:
        written["effort"] = effort
    if reasoning.summary and reasoning.summary != "omitted":
        written["summary"] = reasoning.summary
    elif reasoning.summary and source is Dialect.OPENAI_RESPONSES:
        written["summary"] = None
    if written:
        body["reasoning"] = written
    # A client of Anthropic's dialect always gets the thinking's signature, and sends it back.
    is_thinking = source is Dialect.ANTHROPIC and reasoning.mode in _MANUAL
    if reasoning.is_sealed_form_included or is_thinking:
        body.setdefault("include", []).append(SEALED_REASONING)


def _effort(request: StreamChatRequest, target: Target, losses: Losses) -> str:
    stated = effort_of(request.reasoning)
    effort = clamped(stated, target.efforts)
    if effort != stated:
        losses.note("reasoning.effort")
    return effort


def _add_text(request: StreamChatRequest, body: dict[str, Any], *, is_own: bool) -> None:
    written: dict[str, Any] = {}
    if request.HasField("output_format"):
        written["format"] = format_of(request.output_format, is_own=is_own)
    if request.verbosity:
        written["verbosity"] = request.verbosity
    if written:
        body["text"] = written


def format_of(shape: ChatOutputFormat, *, is_own: bool) -> dict[str, Any]:
    """Returns `text.format`; what other dialects leave out gets its default."""
    if shape.kind == chat_pb2.CHAT_OUTPUT_KIND_JSON_OBJECT:
        return {"type": "json_object"}
    if shape.kind != chat_pb2.CHAT_OUTPUT_KIND_JSON_SCHEMA:
        return {"type": "text"}
    written: dict[str, Any] = {"type": "json_schema", "schema": msgspec.Raw(shape.schema or b"{}")}
    if shape.name or not is_own:
        written["name"] = shape.name or "output"
    if shape.HasField("is_strict") or not is_own:
        written["strict"] = shape.is_strict if shape.HasField("is_strict") else True
    if shape.description:
        written["description"] = shape.description
    return written


def _add_identity(
    request: StreamChatRequest, body: dict[str, Any], losses: Losses, source: Dialect | None
) -> None:
    is_own = source is Dialect.OPENAI_RESPONSES
    _add_end_user(request, body, source)
    if request.metadata:
        body["metadata"] = dict(request.metadata)
    if request.prompt_cache_key:
        body["prompt_cache_key"] = request.prompt_cache_key
    tier = request.service_tier
    if tier and (tier == "auto" or source is not Dialect.ANTHROPIC) and tier != "standard_only":
        body["service_tier"] = tier
    elif tier:
        losses.warn("service_tier", f"{tier} is not known to the provider's dialect and was left out")
    if not is_own:
        body["store"] = False
        if request.is_stored:
            losses.note("store")
    elif request.HasField("is_stored"):
        body["store"] = request.is_stored


def _add_end_user(request: StreamChatRequest, body: dict[str, Any], source: Dialect | None) -> None:
    """Says for whom the request is; Anthropic's ids tell too much to be shown to another vendor (T20)."""
    person = request.end_user_id
    if not person or any(_is_user(field, person) for field in request.vendor_fields):
        return
    is_long = len(person) > MAX_SAFETY_IDENTIFIER_CHARACTERS
    if source is Dialect.ANTHROPIC or (is_long and source is not Dialect.OPENAI_RESPONSES):
        person = hashlib.sha256(person.encode()).hexdigest()
    body["safety_identifier"] = person


def _is_user(field: chat_pb2.ChatVendorField, person: str) -> bool:
    return field.name == "user" and loose.decode(field.json) == person


def _drop(body: dict[str, Any], target: Target, losses: Losses) -> None:
    """Leaves out what the provider's models refuse."""
    for name in target.quirks.dropped_params:
        if body.pop(name, None) is not None:
            losses.warn(name, "is refused by the provider's models and was left out")
