"""Reads the messages that agents send by the hundred, without looking at every member by itself.

A message of which every member is known and of the usual type is decoded in
one go. Any other is left to `block_reader`, which knows the rest and finds the
fault; both read the same.
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatMessage, ChatThinking, StreamChatRequest
from lurus.usage.v1 import usage_pb2
from lurus_dialects import envelope
from lurus_dialects.translation import Losses


class _Cache(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    type: Literal["ephemeral"]
    ttl: str = ""


class _Block(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", gc=False):
    """A block, known by its `type`."""


class _Text(_Block, tag="text"):
    text: str
    cache_control: _Cache | None = None


class _Thinking(_Block, tag="thinking"):
    thinking: str
    signature: str


class _ToolUse(_Block, tag="tool_use"):
    id: str
    name: str
    input: msgspec.Raw
    cache_control: _Cache | None = None


class _ToolResult(_Block, tag="tool_result"):
    tool_use_id: str
    content: str | list[_Text] = ""
    is_error: bool = False
    cache_control: _Cache | None = None


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Text | _Thinking | _ToolUse | _ToolResult]


_MESSAGE: Final = msgspec.json.Decoder(_Message)
_ROLES: Final = {
    "user": chat_pb2.CHAT_ROLE_USER,
    "assistant": chat_pb2.CHAT_ROLE_ASSISTANT,
    "system": chat_pb2.CHAT_ROLE_SYSTEM,
}


def add_plain_message(request: StreamChatRequest, raw: msgspec.Raw, path: str, losses: Losses) -> bool:
    """Adds a message if it is a plain one; returns whether it is."""
    try:
        message = _MESSAGE.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    content = message.content
    if not isinstance(content, str) and not all(map(_is_sound, content)):
        return False
    added = request.messages.add(role=_ROLES[message.role], source_path=path)
    path += ".content"
    if isinstance(content, str):
        added.blocks.add(text=content, source_path=path)
    else:
        _add_blocks(added, content, path, losses)
    return True


def _is_sound(block: _Block) -> bool:
    """False if there is a fault that only a slower look can name."""
    if isinstance(block, _ToolUse):
        return bool(block.id and block.name) and bytes(memoryview(block.input)[:1]) == b"{"
    return not isinstance(block, _ToolResult) or bool(block.tool_use_id)


def _add_blocks(
    message: ChatMessage,
    content: Sequence[_Text | _Thinking | _ToolUse | _ToolResult],
    path: str,
    losses: Losses,
) -> None:
    for i, block in enumerate(content):
        if isinstance(block, _Thinking):
            _add_thinking(message, block, f"{path}[{i}]", losses)
            continue
        added = message.blocks.add(source_path=f"{path}[{i}]")
        if isinstance(block, _Text):
            added.text = block.text
        elif isinstance(block, _ToolUse):
            call = added.tool_call
            call.tool_call_id, call.name = block.id, block.name
            call.arguments = bytes(block.input)
            call.kind = chat_pb2.CHAT_TOOL_KIND_FUNCTION
        else:
            _fill_result(added.tool_result, block, f"{path}[{i}].content")
        if block.cache_control is not None:
            added.cache_hint.ttl = block.cache_control.ttl
            added.cache_hint.SetInParent()


def _fill_result(result: chat_pb2.ChatToolResult, block: _ToolResult, path: str) -> None:
    result.tool_call_id = block.tool_use_id
    result.is_error = block.is_error
    result.kind = chat_pb2.CHAT_TOOL_KIND_FUNCTION
    if isinstance(block.content, str):
        if block.content:
            result.blocks.add(text=block.content, source_path=path)
        return
    for i, part in enumerate(block.content):
        added = result.blocks.add(text=part.text, source_path=f"{path}[{i}]")
        if part.cache_control is not None:
            added.cache_hint.ttl = part.cache_control.ttl
            added.cache_hint.SetInParent()


def _add_thinking(message: ChatMessage, block: _Thinking, path: str, losses: Losses) -> None:
    made = envelope.unseal(block.signature) if envelope.is_envelope(block.signature) else _own(block)
    if made is None:
        losses.note("thinking")
        return
    made.text = block.thinking
    message.blocks.add(thinking=made, source_path=path)


def _own(block: _Thinking) -> ChatThinking:
    return ChatThinking(original=msgspec.json.encode(block), dialect=usage_pb2.DIALECT_ANTHROPIC)
