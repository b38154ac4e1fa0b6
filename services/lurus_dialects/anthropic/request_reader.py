"""Reads requests in the shape of Anthropic Messages into the hub's form.

What is left over of an object inside the request is a vendor field with a
dotted name, `output_config.task_budget`, which is also its path.
"""

from typing import Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatMessage,
    ChatOutputFormat,
    ChatReasoning,
    ChatTool,
    ChatToolChoice,
    StreamChatRequest,
)
from lurus.usage.v1 import usage_pb2
from lurus_dialects.anthropic.block_reader import read_content, take_cache_hint
from lurus_dialects.anthropic.members import Members, vendor_field
from lurus_dialects.anthropic.plain_messages import add_plain_message
from lurus_dialects.members import refuse
from lurus_dialects.translation import Losses

MAX_TEMPERATURE: Final = 2.0

_ROLES: Final = {
    "user": chat_pb2.CHAT_ROLE_USER,
    "assistant": chat_pb2.CHAT_ROLE_ASSISTANT,
    "system": chat_pb2.CHAT_ROLE_SYSTEM,
}
_CHOICES: Final = {
    "auto": chat_pb2.CHAT_TOOL_CHOICE_MODE_AUTO,
    "any": chat_pb2.CHAT_TOOL_CHOICE_MODE_ANY,
    "tool": chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL,
    "none": chat_pb2.CHAT_TOOL_CHOICE_MODE_NONE,
}
_THINKING: Final = {
    "adaptive": chat_pb2.CHAT_REASONING_MODE_ADAPTIVE,
    "enabled": chat_pb2.CHAT_REASONING_MODE_BUDGET,
    "disabled": chat_pb2.CHAT_REASONING_MODE_DISABLED,
}
_SUMMARIES: Final = {"omitted": "omitted", "summarized": "auto"}


def read_request(body: bytes, losses: Losses) -> StreamChatRequest:
    """See `translate.read_request`."""
    members = Members(body, "")
    request = StreamChatRequest(model=members.text("model"), source_dialect=usage_pb2.DIALECT_ANTHROPIC)
    if not request.model:
        refuse("model", "is missing")
    # The caller knows from its own look at the body.
    members.take("stream")
    _read_conversation(members, request, losses)
    _read_limits(members, request, losses)
    _read_tools(members, request)
    _read_thinking(members, request)
    _read_output_config(members, request)
    _read_identity(members, request)
    request.vendor_fields.extend(members.rest())
    return request


def _read_conversation(members: Members, request: StreamChatRequest, losses: Losses) -> None:
    system = members.take("system")
    if system is not None:
        blocks = read_content(system, "system", losses)
        if any(not block.HasField("text") for block in blocks):
            refuse("system", "must be a string or a list of text blocks")
        request.messages.append(
            ChatMessage(role=chat_pb2.CHAT_ROLE_SYSTEM, blocks=blocks, source_path="system")
        )
    items = members.items("messages")
    if not items:
        refuse("messages", "must be a list with at least one message")
    for i, item in enumerate(items):
        path = f"messages[{i}]"
        if not add_plain_message(request, item, path, losses):
            request.messages.append(_read_message(Members(item, path), losses))


def _read_message(members: Members, losses: Losses) -> ChatMessage:
    role = _ROLES.get(members.text("role"))
    if role is None:
        refuse(members.path_of("role"), "must be user, assistant or system")
    content = members.take("content")
    if content is None:
        refuse(members.path_of("content"), "is missing")
    return ChatMessage(
        role=role,
        blocks=read_content(content, members.path_of("content"), losses),
        vendor_fields=members.rest(),
        source_path=members.path,
    )


def _read_limits(members: Members, request: StreamChatRequest, losses: Losses) -> None:
    limit = members.integer("max_tokens")
    if limit == 0:
        losses.refuse("max_tokens", "0 only warms the cache of an Anthropic model")
    request.max_output_tokens = limit or 0
    temperature = members.number("temperature", MAX_TEMPERATURE)
    if temperature is not None:
        request.temperature = temperature
    top_p = members.number("top_p", 1)
    if top_p is not None:
        request.top_p = top_p
    top_k = members.integer("top_k")
    if top_k is not None:
        request.top_k = top_k
    request.stop_sequences.extend(members.texts("stop_sequences"))


def _read_tools(members: Members, request: StreamChatRequest) -> None:
    for i, item in enumerate(members.items("tools")):
        request.tools.append(_read_tool(item, Members(item, f"tools[{i}]")))
    choice = members.object("tool_choice")
    if choice is None:
        return
    mode = _CHOICES.get(choice.text("type"))
    if mode is None:
        refuse("tool_choice.type", "must be auto, any, tool or none")
    request.tool_choice.CopyFrom(_read_choice(mode, choice.text("name"), request))
    is_serial = choice.flag("disable_parallel_tool_use")
    if is_serial is not None:
        request.has_parallel_tool_calls = not is_serial
    request.vendor_fields.extend(choice.rest("tool_choice."))


def _read_choice(
    mode: chat_pb2.ChatToolChoiceMode.ValueType, name: str, request: StreamChatRequest
) -> ChatToolChoice:
    if mode != chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL:
        return ChatToolChoice(mode=mode)
    if not name:
        refuse("tool_choice.name", "is missing")
    hosted = {tool.name: tool.hosted.name for tool in request.tools if tool.HasField("hosted")}
    kind = hosted.get(name)
    if kind is None:
        return ChatToolChoice(mode=mode, name=name, kind=chat_pb2.CHAT_TOOL_KIND_FUNCTION)
    if list(hosted.values()).count(kind) > 1:
        # The hub knows a hosted tool by its type.
        request.vendor_fields.append(vendor_field("tool_choice.name", msgspec.json.encode(name)))
    return ChatToolChoice(mode=mode, name=kind, kind=chat_pb2.CHAT_TOOL_KIND_HOSTED)


def _read_tool(raw: msgspec.Raw, members: Members) -> ChatTool:
    kind, name = members.text("type"), members.text("name")
    if kind not in ("", "custom"):
        return ChatTool(
            name=name,
            kind=chat_pb2.CHAT_TOOL_KIND_HOSTED,
            hosted=vendor_field(kind, raw),
            source_path=members.path,
        )
    if not name:
        refuse(members.path_of("name"), "is missing")
    schema = members.take("input_schema")
    if schema is not None:
        Members(schema, members.path_of("input_schema"))
    hint, unknown = take_cache_hint(members)
    return ChatTool(
        name=name,
        description=members.text("description"),
        schema=b"" if schema is None else bytes(schema),
        kind=chat_pb2.CHAT_TOOL_KIND_FUNCTION,
        is_strict=members.flag("strict"),
        cache_hint=hint,
        vendor_fields=[*unknown, *members.rest()],
        source_path=members.path,
    )


def _read_thinking(members: Members, request: StreamChatRequest) -> None:
    raw = members.take("thinking")
    if raw is None:
        return
    thinking = Members(raw, "thinking")
    mode = _THINKING.get(thinking.text("type"))
    display = thinking.text("display")
    if mode is None or (display and display not in _SUMMARIES):
        request.vendor_fields.append(vendor_field("thinking", raw))
        return
    request.reasoning.CopyFrom(
        ChatReasoning(
            mode=mode,
            budget_tokens=thinking.integer("budget_tokens") or 0,
            summary=_SUMMARIES.get(display, ""),
        )
    )
    request.vendor_fields.extend(thinking.rest("thinking."))


def _read_output_config(members: Members, request: StreamChatRequest) -> None:
    config = members.object("output_config")
    if config is None:
        return
    effort = config.text("effort")
    if effort:
        request.reasoning.effort = effort
    shape = config.take("format")
    if shape is not None:
        _read_format(shape, request)
    request.vendor_fields.extend(config.rest("output_config."))


def _read_format(raw: msgspec.Raw, request: StreamChatRequest) -> None:
    members = Members(raw, "output_config.format")
    kind, schema = members.text("type"), members.take("schema")
    if kind == "json_schema" and schema is not None:
        Members(schema, "output_config.format.schema")
        request.output_format.CopyFrom(
            ChatOutputFormat(kind=chat_pb2.CHAT_OUTPUT_KIND_JSON_SCHEMA, schema=bytes(schema))
        )
        request.vendor_fields.extend(members.rest("output_config.format."))
    else:
        request.vendor_fields.append(vendor_field("output_config.format", raw))


def _read_identity(members: Members, request: StreamChatRequest) -> None:
    metadata = members.object("metadata")
    if metadata is not None:
        request.end_user_id = metadata.text("user_id")
        request.vendor_fields.extend(metadata.rest("metadata."))
    request.service_tier = members.text("service_tier")
    hint, unknown = take_cache_hint(members)
    if hint is not None:
        request.cache_hint.CopyFrom(hint)
    request.vendor_fields.extend(unknown)
