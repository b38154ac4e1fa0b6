"""Reads requests in the shape of OpenAI Responses into the hub's form.

What is left over of an object inside the request is a vendor field with a
dotted name, `reasoning.context`, which is also its path.
"""

from typing import Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlock, ChatMessage, ChatOutputFormat, StreamChatRequest
from lurus.usage.v1 import usage_pb2
from lurus_dialects.members import refuse
from lurus_dialects.openai_responses.item_reader import read_input
from lurus_dialects.openai_responses.members import Members, vendor_field
from lurus_dialects.openai_responses.tool_reader import read_additional_tools, read_choice, read_tools
from lurus_dialects.translation import ADDITIONAL_TOOLS, Losses

MAX_TEMPERATURE: Final = 2.0
SEALED_REASONING: Final = "reasoning.encrypted_content"
LOGPROBS: Final = "message.output_text.logprobs"
# With one of these the provider knows what was said before.
_STATE: Final = ("previous_response_id", "conversation", "prompt")


def read_request(body: bytes, losses: Losses) -> StreamChatRequest:
    """See `translate.read_request`."""
    members = Members(body, "")
    request = StreamChatRequest(
        model=members.text("model"), source_dialect=usage_pb2.DIALECT_OPENAI_RESPONSES
    )
    if not request.model:
        refuse("model", "is missing")
    # The caller knows from its own look at the body.
    members.flag("stream")
    _read_conversation(members, request, losses)
    _read_limits(members, request)
    _read_tools(members, request)
    _read_reasoning(members, request)
    _read_include(members, request)
    _read_text(members, request)
    _read_identity(members, request)
    request.vendor_fields.extend(members.rest())
    return request


def _read_conversation(members: Members, request: StreamChatRequest, losses: Losses) -> None:
    instructions = members.take("instructions")
    if instructions is not None:
        members.keep("instructions", instructions)
        text = ChatBlock(text=members.text("instructions"), source_path="instructions")
        request.messages.append(
            ChatMessage(role=chat_pb2.CHAT_ROLE_SYSTEM, blocks=[text], source_path="instructions")
        )
    has_state = any(members.has(name) for name in _STATE)
    raw = members.take("input")
    if raw is not None:
        request.messages.extend(read_input(raw, losses))
    elif not has_state:
        refuse("input", "is missing")
    request.previous_response_id = members.text("previous_response_id")


def _read_limits(members: Members, request: StreamChatRequest) -> None:
    request.max_output_tokens = members.integer("max_output_tokens") or 0
    temperature = members.number("temperature", MAX_TEMPERATURE)
    if temperature is not None:
        request.temperature = temperature
    top_p = members.number("top_p", 1)
    if top_p is not None:
        request.top_p = top_p


def _read_tools(members: Members, request: StreamChatRequest) -> None:
    request.tools.extend(read_tools(members))
    for message in request.messages:
        for block in message.blocks:
            if block.vendor_block.name == ADDITIONAL_TOOLS:
                request.tools.extend(read_additional_tools(block.vendor_block.json, block.source_path))
    choice = read_choice(members)
    if choice is not None:
        request.tool_choice.CopyFrom(choice)
    is_parallel = members.flag("parallel_tool_calls")
    if is_parallel is not None:
        request.has_parallel_tool_calls = is_parallel


def _read_reasoning(members: Members, request: StreamChatRequest) -> None:
    reasoning = members.object("reasoning")
    if reasoning is None:
        return
    effort = reasoning.text("effort")
    if effort == "none":
        request.reasoning.mode = chat_pb2.CHAT_REASONING_MODE_DISABLED
    else:
        request.reasoning.effort = effort
    is_hidden = reasoning.has("summary")
    request.reasoning.summary = reasoning.text("summary") or ("omitted" if is_hidden else "")
    request.vendor_fields.extend(reasoning.rest("reasoning."))


def _read_include(members: Members, request: StreamChatRequest) -> None:
    included = members.texts("include")
    if SEALED_REASONING in included:
        request.reasoning.is_sealed_form_included = True
    if LOGPROBS in included:
        request.top_logprobs = members.integer("top_logprobs") or 0
    others = [name for name in included if name not in (SEALED_REASONING, LOGPROBS)]
    if others:
        request.vendor_fields.append(vendor_field("include", msgspec.json.encode(others)))


def _read_text(members: Members, request: StreamChatRequest) -> None:
    text = members.object("text")
    if text is None:
        return
    request.verbosity = text.text("verbosity")
    raw = text.take("format")
    if raw is not None:
        shape = _read_format(Members(raw, "text.format"))
        if shape is None:
            text.keep("format", raw)
        else:
            request.output_format.CopyFrom(shape)
    request.vendor_fields.extend(text.rest("text."))


def _read_format(members: Members) -> ChatOutputFormat | None:
    """Returns the shape of the answer; None if only this dialect knows it."""
    kind = members.required_text("type")
    if kind == "text":
        read = ChatOutputFormat(kind=chat_pb2.CHAT_OUTPUT_KIND_TEXT)
    elif kind == "json_object":
        read = ChatOutputFormat(kind=chat_pb2.CHAT_OUTPUT_KIND_JSON_OBJECT)
    elif kind == "json_schema":
        read = _read_schema(members)
    else:
        return None
    return read if members.is_empty() else None


def _read_schema(members: Members) -> ChatOutputFormat:
    schema = members.take("schema")
    if schema is None:
        refuse(members.path_of("schema"), "is missing")
    Members(schema, members.path_of("schema"))
    read = ChatOutputFormat(
        kind=chat_pb2.CHAT_OUTPUT_KIND_JSON_SCHEMA,
        name=members.text("name"),
        schema=bytes(schema),
        description=members.text("description"),
    )
    is_strict = members.flag("strict")
    if is_strict is not None:
        read.is_strict = is_strict
    return read


def _read_identity(members: Members, request: StreamChatRequest) -> None:
    user = members.take("user")
    request.end_user_id = members.text("safety_identifier")
    if user is not None:
        members.keep("user", user)
        name = members.text("user")
        request.end_user_id = request.end_user_id or name
        # Both may be stated, and providers keep them apart.
        members.keep("user", user)
    request.service_tier = members.text("service_tier")
    request.prompt_cache_key = members.text("prompt_cache_key")
    request.metadata.update(members.text_map("metadata"))
    is_stored = members.flag("store")
    if is_stored is not None:
        request.is_stored = is_stored
