"""Writes requests in the shape of OpenAI Chat Completions from the hub's form."""

import hashlib
from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatOutputFormat, StreamChatRequest
from lurus_common.errors import PreviousResponseNotFound
from lurus_dialects import loose
from lurus_dialects.dialect import Dialect
from lurus_dialects.efforts import clamped, effort_of
from lurus_dialects.openai_chat.message_writer import MessageWriter
from lurus_dialects.openai_chat.tool_writer import ToolWriter
from lurus_dialects.openai_chat.vendor_fields import translate_fields
from lurus_dialects.translation import Losses, Target, Written, source_of, states_person

MAX_SAFETY_IDENTIFIER_CHARACTERS: Final = 64
MAX_STOP_SEQUENCES: Final = 4
_LIMIT_NAMES: Final = {Dialect.ANTHROPIC: "max_tokens", Dialect.OPENAI_RESPONSES: "max_output_tokens"}


def write_request(
    request: StreamChatRequest, target: Target, losses: Losses, *, is_streaming: bool
) -> Written:
    """See `translate.write_request`."""
    source = source_of(request)
    is_own = source is Dialect.OPENAI_CHAT
    if request.previous_response_id:
        raise PreviousResponseNotFound(
            "previous_response_id: the provider holds no earlier answer; send the whole conversation",
            param="previous_response_id",
        )
    tools = ToolWriter(request, target, losses, is_own=is_own)
    body: dict[str, Any] = {"model": target.upstream_model}
    messages = [(m.source_path or f"messages[{i}]", m) for i, m in enumerate(request.messages)]
    body["messages"] = MessageWriter(source, target, tools, losses).write(messages)
    if not body["messages"]:
        losses.refuse("messages", "the provider needs at least one message with content")
    _add_tools(request, body, tools)
    _add_limits(request, body, target, losses, source)
    _add_reasoning(request, body, target, losses)
    _add_output(request, body, is_own=is_own)
    _add_identity(request, body, losses, source)
    translate_fields(request.vendor_fields, body, losses)
    _drop(body, target, losses)
    _add_streaming(body, target, is_streaming=is_streaming)
    return Written(msgspec.json.encode(body), tools.tool_names)


def _add_tools(request: StreamChatRequest, body: dict[str, Any], tools: ToolWriter) -> None:
    if request.tools:
        body["tools"] = tools.tools()
    choice = tools.choice()
    if choice is not None:
        body["tool_choice"] = choice
    is_own = source_of(request) is Dialect.OPENAI_CHAT
    if request.HasField("has_parallel_tool_calls") and (request.tools or is_own):
        # Responses says so without any tools too, which is refused here.
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
        name = _LIMIT_NAMES.get(source, "max_completion_tokens") if source else "max_output_tokens"
        losses.warn(name, "the model writes fewer tokens, and its maximum was taken")
        limit = target.max_output_tokens
    if limit:
        body["max_tokens" if target.quirks.wants_max_tokens else "max_completion_tokens"] = limit
    if request.HasField("temperature"):
        body["temperature"] = request.temperature
    if request.HasField("top_p"):
        body["top_p"] = request.top_p
    if request.HasField("top_k"):
        losses.warn("top_k", "is not known to the provider's dialect and was left out")
    if request.HasField("top_logprobs"):
        body["logprobs"] = True
        if request.top_logprobs:
            body["top_logprobs"] = request.top_logprobs
    stops = list(request.stop_sequences)
    if len(stops) > MAX_STOP_SEQUENCES and source is not Dialect.OPENAI_CHAT:
        losses.refuse("stop_sequences", f"the provider's dialect takes {MAX_STOP_SEQUENCES} at most")
    if stops:
        body["stop"] = stops


def _add_reasoning(request: StreamChatRequest, body: dict[str, Any], target: Target, losses: Losses) -> None:
    stated = effort_of(request.reasoning)
    effort = clamped(stated, target.efforts)
    if effort != stated:
        losses.note("reasoning_effort")
    if effort:
        body["reasoning_effort"] = effort
    if request.reasoning.summary:
        losses.note("reasoning.summary")


def _add_output(request: StreamChatRequest, body: dict[str, Any], *, is_own: bool) -> None:
    if request.HasField("output_format"):
        body["response_format"] = _format(request.output_format, is_own=is_own)
    if request.verbosity:
        body["verbosity"] = request.verbosity


def _format(shape: ChatOutputFormat, *, is_own: bool) -> dict[str, Any]:
    if shape.kind == chat_pb2.CHAT_OUTPUT_KIND_JSON_OBJECT:
        return {"type": "json_object"}
    if shape.kind != chat_pb2.CHAT_OUTPUT_KIND_JSON_SCHEMA:
        return {"type": "text"}
    schema: dict[str, Any] = {}
    if shape.name or not is_own:
        schema["name"] = shape.name or "output"
    if shape.description:
        schema["description"] = shape.description
    if shape.schema:
        schema["schema"] = msgspec.Raw(shape.schema)
    if shape.HasField("is_strict") or not is_own:
        schema["strict"] = shape.is_strict if shape.HasField("is_strict") else True
    return {"type": "json_schema", "json_schema": schema}


def _add_identity(
    request: StreamChatRequest, body: dict[str, Any], losses: Losses, source: Dialect | None
) -> None:
    _add_end_user(request, body, source)
    if request.metadata:
        body["metadata"] = dict(request.metadata)
    if request.prompt_cache_key:
        body["prompt_cache_key"] = request.prompt_cache_key
    tier = request.service_tier
    if tier and tier != "standard_only" and (tier == "auto" or source is not Dialect.ANTHROPIC):
        body["service_tier"] = tier
    elif tier:
        losses.warn("service_tier", f"{tier} is not known to the provider's dialect and was left out")
    if source is Dialect.OPENAI_CHAT and request.HasField("is_stored"):
        body["store"] = request.is_stored
    elif request.is_stored:
        losses.note("store")
    if request.HasField("cache_hint"):
        losses.note("cache_control")


def _add_end_user(request: StreamChatRequest, body: dict[str, Any], source: Dialect | None) -> None:
    """Says for whom the request is; Anthropic's ids tell too much to be shown to another vendor (T20)."""
    person = request.end_user_id
    if not person or any(states_person(field, person) for field in request.vendor_fields):
        return
    is_long = len(person) > MAX_SAFETY_IDENTIFIER_CHARACTERS
    if source is Dialect.ANTHROPIC or (is_long and source is not Dialect.OPENAI_CHAT):
        person = hashlib.sha256(person.encode()).hexdigest()
    body["safety_identifier"] = person


def _drop(body: dict[str, Any], target: Target, losses: Losses) -> None:
    """Leaves out what the provider's models refuse."""
    for name in target.quirks.dropped_params:
        if body.pop(name, None) is not None:
            losses.warn(name, "is refused by the provider's models and was left out")


def _add_streaming(body: dict[str, Any], target: Target, *, is_streaming: bool) -> None:
    options = loose.decode(bytes(body.pop("stream_options", b"null")))
    if not is_streaming:
        return
    body["stream"] = True
    if target.quirks.no_stream_options:
        return
    given = options if isinstance(options, dict) else {}
    body["stream_options"] = {**given, "include_usage": True}
