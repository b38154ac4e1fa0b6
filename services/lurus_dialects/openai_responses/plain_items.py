"""Reads the items that most of a history is made of in one go.

An item with anything else in it than its kind always has is left to
`item_reader`, which takes every member by itself and knows what to blame.
"""

from typing import Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlock, ChatMessage, ChatToolCall, ChatToolResult

_ROLES: Final = {
    "user": chat_pb2.CHAT_ROLE_USER,
    "assistant": chat_pb2.CHAT_ROLE_ASSISTANT,
    "system": chat_pb2.CHAT_ROLE_SYSTEM,
    "developer": chat_pb2.CHAT_ROLE_DEVELOPER,
}
_TEXT_PARTS: Final = frozenset({"input_text", "output_text"})


class _Part(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    type: str
    text: str


class _Message(msgspec.Struct, tag="message", gc=False, forbid_unknown_fields=True):
    role: str
    content: str | list[_Part]


class _Call(msgspec.Struct, tag="function_call", gc=False, forbid_unknown_fields=True):
    call_id: str
    name: str
    arguments: str
    namespace: str = ""


class _Result(msgspec.Struct, tag="function_call_output", gc=False, forbid_unknown_fields=True):
    call_id: str
    output: str


_ITEM: Final = msgspec.json.Decoder(_Message | _Call | _Result)


def read_plain(raw: msgspec.Raw, path: str) -> ChatMessage | None:
    """Returns the message of an item; None if it is not one of the plain ones."""
    try:
        item = _ITEM.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if type(item) is _Message:
        return _message(item, path)
    if type(item) is _Call:
        call = ChatToolCall(
            tool_call_id=item.call_id,
            name=item.name,
            arguments=item.arguments.encode(),
            kind=chat_pb2.CHAT_TOOL_KIND_FUNCTION,
            namespace=item.namespace,
        )
        block = ChatBlock(tool_call=call, source_path=path)
        return ChatMessage(role=chat_pb2.CHAT_ROLE_ASSISTANT, blocks=[block], source_path=path)
    if type(item) is _Result:
        text = ChatBlock(text=item.output, source_path=f"{path}.output")
        kind = chat_pb2.CHAT_TOOL_KIND_FUNCTION
        result = ChatToolResult(tool_call_id=item.call_id, blocks=[text], kind=kind)
        block = ChatBlock(tool_result=result, source_path=path)
        return ChatMessage(role=chat_pb2.CHAT_ROLE_TOOL, blocks=[block], source_path=path)
    return None


def _message(item: _Message, path: str) -> ChatMessage | None:
    role = _ROLES.get(item.role)
    if role is None:
        return None
    content_path = f"{path}.content"
    if isinstance(item.content, str):
        blocks = [ChatBlock(text=item.content, source_path=content_path)]
    else:
        blocks = []
        for i, part in enumerate(item.content):
            if part.type not in _TEXT_PARTS:
                return None
            blocks.append(ChatBlock(text=part.text, source_path=f"{content_path}[{i}]"))
    return ChatMessage(role=role, blocks=blocks, source_path=path)
