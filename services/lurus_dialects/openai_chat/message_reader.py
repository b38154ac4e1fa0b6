"""Reads a client's messages into the hub's form, one for each."""

from typing import Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatBlock,
    ChatMessage,
    ChatThinking,
    ChatToolCall,
    ChatToolResult,
)
from lurus.usage.v1 import usage_pb2
from lurus_dialects.openai_chat.members import Members, refuse, text_of, vendor_field
from lurus_dialects.openai_chat.part_reader import read_content

_ROLES: Final = {
    "user": chat_pb2.CHAT_ROLE_USER,
    "assistant": chat_pb2.CHAT_ROLE_ASSISTANT,
    "system": chat_pb2.CHAT_ROLE_SYSTEM,
    "developer": chat_pb2.CHAT_ROLE_DEVELOPER,
    "tool": chat_pb2.CHAT_ROLE_TOOL,
}
# Members in which servers put the thinking, the usual one first.
THINKING_NAMES: Final = ("reasoning_content", "reasoning")
# Members of an answer that only this dialect knows, and whose loss would change what was said.
_SPOKEN: Final = ("function_call", "audio")


def read_messages(members: Members) -> list[ChatMessage]:
    """Returns the messages in their order."""
    items = members.items("messages")
    if not items:
        refuse("messages", "must be a list with at least one message")
    return [_read_message(raw, f"messages[{i}]") for i, raw in enumerate(items)]


def _read_message(raw: msgspec.Raw, path: str) -> ChatMessage:
    members = Members(raw, path)
    role = members.text("role")
    if role == "function":
        # The result of a legacy call.
        block = ChatBlock(vendor_block=vendor_field(role, raw), source_path=path)
        return ChatMessage(role=chat_pb2.CHAT_ROLE_TOOL, blocks=[block], source_path=path)
    if role not in _ROLES:
        refuse(members.path_of("role"), "must be developer, system, user, assistant or tool")
    message = ChatMessage(role=_ROLES[role], name=members.text("name"), source_path=path)
    if role == "assistant":
        _read_answer(members, message)
    elif role == "tool":
        message.blocks.append(_read_result(members))
    else:
        _read_content(members, message)
    if rest := members.rest():
        message.vendor_fields.extend(rest)
    return message


def _read_content(members: Members, message: ChatMessage) -> None:
    content = members.take("content")
    if content is None:
        refuse(members.path_of("content"), "is missing")
    message.blocks.extend(read_content(content, members.path_of("content")))


def _read_answer(members: Members, message: ChatMessage) -> None:
    if thinking := _read_thinking(members):
        message.blocks.append(thinking)
    content = members.take("content")
    if content is not None:
        message.blocks.extend(read_content(content, members.path_of("content")))
    refusal = members.text("refusal")
    if refusal:
        message.blocks.append(ChatBlock(refusal=refusal, source_path=members.path_of("refusal")))
    for i, raw in enumerate(members.items("tool_calls")):
        message.blocks.append(_read_call(raw, f"{members.path_of('tool_calls')}[{i}]"))
    for name in _SPOKEN:
        raw_member = members.take(name)
        if raw_member is not None:
            field = vendor_field(name, raw_member)
            message.blocks.append(ChatBlock(vendor_block=field, source_path=members.path_of(name)))


def _read_thinking(members: Members) -> ChatBlock | None:
    stated: dict[str, msgspec.Raw] = {}
    texts = []
    for name in THINKING_NAMES:
        raw = members.take(name)
        if raw is not None:
            stated[name] = raw
            texts.append(text_of(raw, members.path_of(name)))
    if not stated:
        return None
    thinking = ChatThinking(
        text=next(filter(None, texts), ""),
        original=msgspec.json.encode(stated),
        dialect=usage_pb2.DIALECT_OPENAI_CHAT,
    )
    return ChatBlock(thinking=thinking, source_path=members.path_of(next(iter(stated))))


def _read_call(raw: msgspec.Raw, path: str) -> ChatBlock:
    members = Members(raw, path)
    kind = members.text("type") or "function"
    if kind not in ("function", "custom"):
        return ChatBlock(vendor_block=vendor_field(kind, raw), source_path=path)
    call_id = members.required_text("id")
    inner = members.object(kind)
    if inner is None:
        refuse(members.path_of(kind), "is missing")
    is_custom = kind == "custom"
    call = ChatToolCall(
        tool_call_id=call_id,
        name=inner.required_text("name"),
        arguments=inner.text("input" if is_custom else "arguments").encode(),
        kind=chat_pb2.CHAT_TOOL_KIND_CUSTOM if is_custom else chat_pb2.CHAT_TOOL_KIND_FUNCTION,
    )
    if not call_id or not call.name:
        refuse(inner.path_of("name") if call_id else members.path_of("id"), "is missing")
    block = ChatBlock(tool_call=call, source_path=path)
    if rest := [*inner.rest(f"{kind}."), *members.rest()]:
        block.vendor_fields.extend(rest)
    return block


def _read_result(members: Members) -> ChatBlock:
    call_id = members.text("tool_call_id")
    if not call_id:
        refuse(members.path_of("tool_call_id"), "is missing")
    content = members.take("content")
    path = members.path_of("content")
    result = ChatToolResult(tool_call_id=call_id, blocks=read_content(content, path) if content else [])
    return ChatBlock(tool_result=result, source_path=members.path)
