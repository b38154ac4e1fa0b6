"""Tells whose words a request of the hub was read from, since each dialect loses something else."""

from collections.abc import Iterator
from typing import Final

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlock, ChatMessage, ChatVendorField, StreamChatRequest
from lurus.usage.v1 import usage_pb2
from lurus_dialects.dialect import Dialect

_DIALECTS: Final = {
    usage_pb2.DIALECT_ANTHROPIC: Dialect.ANTHROPIC,
    usage_pb2.DIALECT_OPENAI_CHAT: Dialect.OPENAI_CHAT,
    usage_pb2.DIALECT_OPENAI_RESPONSES: Dialect.OPENAI_RESPONSES,
}
# Only the chat dialect has these roles in a list called `messages`.
_CHAT_ROLES: Final = frozenset({chat_pb2.CHAT_ROLE_DEVELOPER, chat_pb2.CHAT_ROLE_TOOL})
# Anthropic's dialect has no words for these.
_CHAT_FIELDS: Final = ("verbosity", "prompt_cache_key", "metadata")
_CHAT_STATES: Final = ("is_stored", "top_logprobs")
_MAX_ANTHROPIC_TEMPERATURE: Final = 1


def source_of(request: StreamChatRequest) -> Dialect | None:
    """Returns the dialect of the client's JSON; None for a typed caller.

    Chat and Anthropic requests look alike where neither uses anything of its
    own. A limit on the output tells them apart then: Anthropic demands one.
    """
    path = request.messages[0].source_path if request.messages else ""
    if not path:
        return None
    if path.startswith("in"):  # `input[0]`, `instructions`
        return Dialect.OPENAI_RESPONSES
    if path.startswith("system"):
        return Dialect.ANTHROPIC
    for field in _vendor_fields(request):
        if field.dialect in _DIALECTS:
            return _DIALECTS[field.dialect]
    return Dialect.OPENAI_CHAT if _looks_like_chat(request) else Dialect.ANTHROPIC


def _vendor_fields(request: StreamChatRequest) -> Iterator[ChatVendorField]:
    yield from request.vendor_fields
    for tool in request.tools:
        if tool.HasField("hosted"):
            yield tool.hosted
        yield from tool.vendor_fields
    for message in request.messages:
        yield from message.vendor_fields
        for block in message.blocks:
            if block.HasField("vendor_block"):
                yield block.vendor_block
            yield from block.vendor_fields


def _looks_like_chat(request: StreamChatRequest) -> bool:
    if not request.max_output_tokens or request.temperature > _MAX_ANTHROPIC_TEMPERATURE:
        return True
    if any(getattr(request, name) for name in _CHAT_FIELDS):
        return True
    if any(request.HasField(name) for name in _CHAT_STATES):
        return True
    shape = request.output_format
    if shape.name or shape.kind not in (0, chat_pb2.CHAT_OUTPUT_KIND_JSON_SCHEMA):
        return True
    if request.tool_choice.allowed_names:
        return True
    custom = chat_pb2.CHAT_TOOL_KIND_CUSTOM
    return any(tool.kind == custom for tool in request.tools) or any(
        _is_of_chat(message) for message in request.messages
    )


def _is_of_chat(message: ChatMessage) -> bool:
    if message.role in _CHAT_ROLES or message.name:
        return True
    return any(_is_block_of_chat(block) for block in message.blocks)


def _is_block_of_chat(block: ChatBlock) -> bool:
    if block.HasField("thinking"):
        return block.thinking.dialect == usage_pb2.DIALECT_OPENAI_CHAT and not block.thinking.provider_id
    return block.HasField("refusal") or bool(block.media.detail)
