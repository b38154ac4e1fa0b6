"""Writes requests in the shape of Anthropic Messages from the hub's form."""

from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatVendorField, StreamChatRequest
from lurus_common.errors import PreviousResponseNotFound
from lurus_dialects import loose
from lurus_dialects.anthropic.block_writer import is_own
from lurus_dialects.anthropic.reasoning_writer import write_reasoning
from lurus_dialects.anthropic.setting import Setting, cache_control, has_cache_hint
from lurus_dialects.anthropic.tool_writer import write_choice, write_tools
from lurus_dialects.anthropic.turns import Conversation
from lurus_dialects.translation import Losses, Target, Written, states_person

DEFAULT_MAX_TOKENS: Final = 32_000

# Written from the hub's own fields, whatever a vendor field of that name says.
_RESERVED: Final = frozenset({"model", "messages", "system", "stream", "max_tokens", "tools"})
_NESTED: Final = frozenset({"thinking", "output_config", "tool_choice", "metadata"})
_SAMPLING: Final = ("temperature", "top_p", "top_k")
_MIN_THINKING_TOP_P: Final = 0.95

# Fields of OpenAI: without them the answer is not what was asked for.
_REFUSED: Final = {
    "functions": "use tools instead",
    "function_call": "use tool_choice instead",
    "conversation": "the gateway keeps no conversations",
    "background": "the gateway runs nothing in the background",
    "prompt": "the gateway keeps no prompts",
    "logprobs": "an Anthropic model states none",
    "top_logprobs": "an Anthropic model states none",
    "n": "an Anthropic model gives one answer",
    "modalities": "an Anthropic model writes text only",
}
# Hints whose loss nobody notices.
_SILENT: Final = frozenset(
    {
        "audio",
        "client_metadata",
        "context_management",
        "include",
        "metadata",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning.context",
        "reasoning.generate_summary",
        "reasoning.mode",
        "safety_identifier",
        "store",
        "stream",
        "stream_options",
        "user",
    }
)
# Values of refused fields that ask for nothing.
_HARMLESS: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "background": (False,),
    "modalities": (["text"],),
    "truncation": ("disabled",),
    "function_call": ("none", "auto"),
    "functions": ([],),
}


def write_request(
    request: StreamChatRequest, target: Target, losses: Losses, *, is_streaming: bool
) -> Written:
    """See `translate.write_request`."""
    setting = Setting(request, target, losses)
    _refuse_foreign_state(request, setting)
    conversation = Conversation(request, setting)
    max_tokens = _max_tokens(request, setting)
    body: dict[str, Any] = {"model": target.upstream_model, "max_tokens": max_tokens}
    if conversation.system:
        body["system"] = conversation.system
    tools = write_tools(request, setting)
    if tools:
        body["tools"] = tools
    body["messages"] = [turn.as_json() for turn in conversation.turns]
    _add_choice(body, request, setting, bool(tools))
    _add_reasoning(body, request, setting, conversation)
    _add_format(body, request, setting)
    _add_sampling(body, request, setting)
    _add_identity(body, request, setting)
    if is_streaming:
        body["stream"] = True
    _add_vendor_fields(body, request, setting)
    _drop_params(body, setting)
    return Written(msgspec.json.encode(body), setting.tool_names)


def _refuse_foreign_state(request: StreamChatRequest, setting: Setting) -> None:
    if request.previous_response_id:
        raise PreviousResponseNotFound(
            "previous_response_id: the provider holds no earlier answer; send the whole conversation",
            param="previous_response_id",
        )
    if request.HasField("top_logprobs"):
        # With none listed, the client has asked for them by another field.
        word = "top_logprobs" if request.top_logprobs else setting.word("logprobs")
        setting.losses.refuse(word, "an Anthropic model states none")


def _max_tokens(request: StreamChatRequest, setting: Setting) -> int:
    maximum = setting.target.max_output_tokens
    limit = request.max_output_tokens or maximum or DEFAULT_MAX_TOKENS
    if maximum and limit > maximum:
        setting.losses.warn(setting.word("max_output_tokens"), f"the model writes {maximum} tokens at most")
        return maximum
    return limit


def _add_choice(body: dict[str, Any], request: StreamChatRequest, setting: Setting, has_tools: bool) -> None:
    choice = write_choice(request, setting, has_tools)
    if choice is not None:
        body["tool_choice"] = choice
    if request.tool_choice.allowed_names:
        setting.losses.note("tool_choice")


def _add_reasoning(
    body: dict[str, Any], request: StreamChatRequest, setting: Setting, conversation: Conversation
) -> None:
    if not request.HasField("reasoning"):
        return
    is_loop = conversation.is_in_tool_loop_without_thinking
    thinking, effort = write_reasoning(request, setting, body["max_tokens"], is_loop)
    if thinking is not None:
        body["thinking"] = thinking
    if effort:
        body["output_config"] = {"effort": effort}


def _add_format(body: dict[str, Any], request: StreamChatRequest, setting: Setting) -> None:
    shape = request.output_format
    word = setting.word("output_format")
    if shape.kind == chat_pb2.CHAT_OUTPUT_KIND_JSON_OBJECT:
        setting.losses.warn(word, "an Anthropic model is not held to JSON without a schema")
    if shape.kind != chat_pb2.CHAT_OUTPUT_KIND_JSON_SCHEMA:
        return
    for name in ("name", "description"):
        if getattr(shape, name):
            setting.losses.note(name)
    if shape.HasField("is_strict"):
        setting.losses.note("strict")
    schema = setting.raw(shape.schema or b"{}", f"{word}.schema")
    body.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": schema}


def _add_sampling(body: dict[str, Any], request: StreamChatRequest, setting: Setting) -> None:
    is_thinking = body.get("thinking", {}).get("type") in ("enabled", "adaptive")
    for name in _SAMPLING:
        if not request.HasField(name):
            continue
        value = getattr(request, name)
        if setting.has_new_version:
            setting.losses.warn(name, "the provider's version of the API refuses it")
        elif is_thinking and not setting.is_own and not _goes_with_thinking(name, value):
            setting.losses.warn(name, "an Anthropic model that thinks does not take it")
        elif name == "temperature" and value > 1:
            setting.losses.warn(name, "1 is the maximum")
            body[name] = 1
        else:
            body[name] = value
    if request.stop_sequences:
        body["stop_sequences"] = list(request.stop_sequences)
    if request.verbosity:
        setting.losses.warn(setting.word("verbosity"), "an Anthropic model knows none")


def _goes_with_thinking(name: str, value: float) -> bool:
    if name == "top_p":
        return value >= _MIN_THINKING_TOP_P
    return name == "temperature" and value == 1


def _add_identity(body: dict[str, Any], request: StreamChatRequest, setting: Setting) -> None:
    if request.end_user_id:
        body["metadata"] = {"user_id": request.end_user_id}
    tier = request.service_tier
    if tier in ("auto", "standard_only") or (tier and setting.is_own):
        body["service_tier"] = tier
    elif tier:
        setting.losses.warn("service_tier", "an Anthropic model has other tiers")
    for name in ("metadata", "prompt_cache_key"):
        if getattr(request, name):
            setting.losses.note(name)
    if request.HasField("is_stored"):
        setting.losses.note("store")
    _add_caching(body, request, setting)


def _add_caching(body: dict[str, Any], request: StreamChatRequest, setting: Setting) -> None:
    if any(field.name == "cache_control" and is_own(field) for field in request.vendor_fields):
        # The client's own words say more than the hint.
        return
    if request.HasField("cache_hint"):
        body["cache_control"] = cache_control(request.cache_hint)
    elif not setting.is_own and not setting.target.quirks.no_auto_cache and not has_cache_hint(request):
        # OpenAI's clients expect the cache to work unasked.
        body["cache_control"] = {"type": "ephemeral"}


def _add_vendor_fields(body: dict[str, Any], request: StreamChatRequest, setting: Setting) -> None:
    for field in request.vendor_fields:
        if is_own(field):
            if field.name not in _RESERVED:
                _put(body, field.name, setting.raw(field.json, field.name))
        elif not (_is_harmless(field) or states_person(field, request.end_user_id)):
            _lose(field, setting.losses)


def _put(body: dict[str, Any], name: str, value: msgspec.Raw) -> None:
    """Writes a field to the place that its dotted name says, never over what is there."""
    outer, dot, inner = name.partition(".")
    if not dot or outer not in _NESTED:
        body.setdefault(name, value)
        return
    place = body.setdefault(outer, {})
    if isinstance(place, dict):
        first, dot, last = inner.partition(".")
        if dot and isinstance(place.get(first), dict):
            place, inner = place[first], last
        place.setdefault(inner, value)


def _is_harmless(field: ChatVendorField) -> bool:
    return field.name in _HARMLESS and loose.decode(field.json) in _HARMLESS[field.name]


def _lose(field: ChatVendorField, losses: Losses) -> None:
    if field.name in _REFUSED:
        losses.refuse(field.name, _REFUSED[field.name])
    elif field.name in _SILENT or field.name.startswith("x-codex-"):
        losses.note(field.name)
    else:
        losses.warn(field.name, "an Anthropic model has no such field")


def _drop_params(body: dict[str, Any], setting: Setting) -> None:
    for name in setting.target.quirks.dropped_params:
        if name in body and name not in _RESERVED:
            del body[name]
            setting.losses.warn(name, "the provider's models refuse it")
