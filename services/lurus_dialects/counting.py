"""Counts the input of a request: what a provider is asked, and what we estimate if nobody counts."""

from typing import Final

import msgspec

from lurus.routing.v1.chat_pb2 import ChatBlock, ChatMedia, StreamChatRequest
from lurus_dialects.dialect import Dialect
from lurus_dialects.usage import estimated_tokens

# What vendors charge for a picture of usual size, and for what frames a message or a tool.
MEDIUM_TOKENS: Final = 1500
FRAME_TOKENS: Final = 4
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NOT_COUNTED: Final = frozenset({"max_tokens", "stream", "temperature", "top_p", "top_k", "metadata"})
# The fields of `POST /v1/responses/input_tokens`.
_COUNTED_BY_RESPONSES: Final = frozenset(
    {
        "conversation",
        "input",
        "instructions",
        "model",
        "parallel_tool_calls",
        "reasoning",
        "text",
        "tool_choice",
        "tools",
        "truncation",
    }
)


def count_body(dialect: Dialect, body: bytes) -> bytes:
    """Returns the request for a count, made of a request for an answer."""
    members = _MEMBERS.decode(body)
    if dialect is Dialect.ANTHROPIC:
        kept = {name: value for name, value in members.items() if name not in _NOT_COUNTED}
    else:
        kept = {name: value for name, value in members.items() if name in _COUNTED_BY_RESPONSES}
    return msgspec.json.encode(kept)


def count_answer(client: Dialect | None, input_tokens: int) -> bytes:
    """Returns a count as clients of a dialect expect it."""
    if client is Dialect.OPENAI_RESPONSES:
        return msgspec.json.encode({"object": "response.input_tokens", "input_tokens": input_tokens})
    return msgspec.json.encode({"input_tokens": input_tokens})


def estimated_input_tokens(request: StreamChatRequest) -> int:
    """Returns what a request's texts, tools and media are taken for; at least 1."""
    frames = len(request.messages) + len(request.tools)
    byte_count = sum(_block_bytes(block) for message in request.messages for block in message.blocks)
    for tool in request.tools:
        byte_count += len(tool.name) + len(tool.description.encode()) + len(tool.schema) + len(tool.format)
        byte_count += len(tool.hosted.json)
    byte_count += len(request.output_format.schema)
    media = sum(_media_count(block) for message in request.messages for block in message.blocks)
    return max(1, estimated_tokens(byte_count) + frames * FRAME_TOKENS + media * MEDIUM_TOKENS)


def _block_bytes(block: ChatBlock) -> int:
    kind = block.WhichOneof("block")
    if kind == "text":
        return len(block.text.encode())
    if kind == "refusal":
        return len(block.refusal.encode())
    if kind == "tool_call":
        return len(block.tool_call.name) + len(block.tool_call.arguments)
    if kind == "tool_result":
        return sum(map(_block_bytes, block.tool_result.blocks))
    if kind == "thinking":
        return len(block.thinking.text.encode())
    if kind == "media":
        return len(block.media.text.encode())
    return len(block.vendor_block.json)


def _media_count(block: ChatBlock) -> int:
    if block.WhichOneof("block") == "tool_result":
        return sum(map(_media_count, block.tool_result.blocks))
    return int(block.HasField("media") and not _is_text(block.media))


def _is_text(media: ChatMedia) -> bool:
    return media.WhichOneof("source") == "text"
