"""Reads a client's messages into the hub's form, one for each."""

from typing import Final, Literal

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
from lurus_dialects.members import refuse, text_of
from lurus_dialects.openai_chat.members import Members, vendor_field
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


class _Function(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    name: str
    arguments: str


class _Call(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    id: str
    function: _Function
    type: Literal["function"] = "function"


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A message that says no more than nearly every message does."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: tuple[_Call, ...] = ()
    tool_call_id: str = ""


_PLAIN: Final = msgspec.json.Decoder(_Plain)


def read_messages(members: Members) -> list[ChatMessage]:
    """Returns the messages in their order."""
    items = members.items("messages")
    if not items:
        refuse("messages", "must be a list with at least one message")
    return [_read_any(raw, f"messages[{i}]") for i, raw in enumerate(items)]


def _read_any(raw: msgspec.Raw, path: str) -> ChatMessage:
    try:
        plain = _PLAIN.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _read_message(raw, path)
    return _read_plain(plain, path) or _read_message(raw, path)


def _read_plain(plain: _Plain, path: str) -> ChatMessage | None:
    """Returns a message by a shorter way than `_read_message`; None if only that one will do."""
    message = ChatMessage(role=_ROLES[plain.role], source_path=path)
    if plain.role == "tool":
        if plain.content is None or not plain.tool_call_id or plain.tool_calls:
            return None
        result = message.blocks.add(source_path=path).tool_result
        result.tool_call_id = plain.tool_call_id
        result.blocks.add(text=plain.content, source_path=f"{path}.content")
        return message
    is_answer = plain.role == "assistant"
    if plain.tool_call_id or (not is_answer and (plain.content is None or plain.tool_calls)):
        return None
    if plain.content is not None:
        message.blocks.add(text=plain.content, source_path=f"{path}.content")
    for i, call in enumerate(plain.tool_calls):
        if not call.id or not call.function.name:
            return None
        read = message.blocks.add(source_path=f"{path}.tool_calls[{i}]").tool_call
        read.tool_call_id, read.name = call.id, call.function.name
        read.arguments = call.function.arguments.encode()
        read.kind = chat_pb2.CHAT_TOOL_KIND_FUNCTION
    return message


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
