"""Reads requests in the shape of OpenAI Chat Completions into the hub's form."""

from typing import Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatOutputFormat, StreamChatRequest
from lurus.usage.v1 import usage_pb2
from lurus_dialects.members import is_text, refuse, text_of
from lurus_dialects.openai_chat.members import Members
from lurus_dialects.openai_chat.message_reader import read_messages
from lurus_dialects.openai_chat.tool_reader import read_choice, read_tools
from lurus_dialects.translation import Losses

MAX_TEMPERATURE: Final = 2.0


def read_request(body: bytes, losses: Losses) -> StreamChatRequest:
    """See `translate.read_request`."""
    members = Members(body, "")
    request = StreamChatRequest(model=members.text("model"), source_dialect=usage_pb2.DIALECT_OPENAI_CHAT)
    if not request.model:
        refuse("model", "is missing")
    # The caller knows from its own look at the body.
    members.flag("stream")
    request.messages.extend(read_messages(members))
    _read_limits(members, request)
    _read_tools(members, request)
    _read_thinking(members, request)
    _read_format(members, request)
    _read_logprobs(members, request)
    _read_identity(members, request)
    request.vendor_fields.extend(members.rest())
    return request


def _read_limits(members: Members, request: StreamChatRequest) -> None:
    old, new = members.integer("max_tokens"), members.integer("max_completion_tokens")
    if new == 0 or old == 0:
        refuse("max_tokens" if old == 0 else "max_completion_tokens", "must be at least 1")
    if old and new and old != new:
        members.keep("max_tokens", msgspec.Raw(b"%d" % old))
    request.max_output_tokens = new or old or 0
    temperature = members.number("temperature", MAX_TEMPERATURE)
    if temperature is not None:
        request.temperature = temperature
    top_p = members.number("top_p", 1)
    if top_p is not None:
        request.top_p = top_p
    raw = members.take("stop")
    if raw is None:
        return
    if is_text(raw):
        request.stop_sequences.append(text_of(raw, "stop"))
    else:
        members.keep("stop", raw)
        request.stop_sequences.extend(members.texts("stop"))


def _read_tools(members: Members, request: StreamChatRequest) -> None:
    request.tools.extend(read_tools(members))
    choice = read_choice(members)
    if choice is not None:
        request.tool_choice.CopyFrom(choice)
    is_parallel = members.flag("parallel_tool_calls")
    if is_parallel is not None:
        request.has_parallel_tool_calls = is_parallel


def _read_thinking(members: Members, request: StreamChatRequest) -> None:
    effort = members.text("reasoning_effort")
    if effort == "none":
        request.reasoning.mode = chat_pb2.CHAT_REASONING_MODE_DISABLED
    elif effort:
        request.reasoning.effort = effort
    request.verbosity = members.text("verbosity")


def _read_format(members: Members, request: StreamChatRequest) -> None:
    raw = members.take("response_format")
    if raw is None:
        return
    shape = Members(raw, "response_format")
    kind = shape.required_text("type")
    if kind == "text":
        request.output_format.kind = chat_pb2.CHAT_OUTPUT_KIND_TEXT
    elif kind == "json_object":
        request.output_format.kind = chat_pb2.CHAT_OUTPUT_KIND_JSON_OBJECT
    elif kind == "json_schema":
        read = _read_schema(shape)
        if read is not None:
            request.output_format.CopyFrom(read)
    if not request.HasField("output_format") or not shape.is_empty():
        members.keep("response_format", raw)


def _read_schema(shape: Members) -> ChatOutputFormat | None:
    """Returns the schema; None if only this dialect knows all that is said of it."""
    stated = shape.object("json_schema")
    if stated is None:
        refuse("response_format.json_schema", "is missing")
    schema = stated.take("schema")
    read = ChatOutputFormat(
        kind=chat_pb2.CHAT_OUTPUT_KIND_JSON_SCHEMA,
        name=stated.text("name"),
        description=stated.text("description"),
    )
    if schema is not None:
        Members(schema, stated.path_of("schema"))
        read.schema = bytes(schema)
    is_strict = stated.flag("strict")
    if is_strict is not None:
        read.is_strict = is_strict
    return read if stated.is_empty() else None


def _read_logprobs(members: Members, request: StreamChatRequest) -> None:
    if members.flag("logprobs"):
        request.top_logprobs = members.integer("top_logprobs") or 0


def _read_identity(members: Members, request: StreamChatRequest) -> None:
    for name in ("user", "safety_identifier"):
        raw = members.take(name)
        if raw is not None:
            request.end_user_id = text_of(raw, name) or request.end_user_id
            # Both may be stated, and providers keep them apart.
            members.keep(name, raw)
    request.service_tier = members.text("service_tier")
    request.prompt_cache_key = members.text("prompt_cache_key")
    request.metadata.update(members.text_map("metadata"))
    is_stored = members.flag("store")
    if is_stored is not None:
        request.is_stored = is_stored
