"""Reads what a client lets the model call: `tools` and `tool_choice`."""

from typing import Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatTool, ChatToolChoice
from lurus_dialects.members import is_text, refuse, text_of
from lurus_dialects.openai_responses.members import Members, vendor_field

_MODES: Final = {
    "auto": chat_pb2.CHAT_TOOL_CHOICE_MODE_AUTO,
    "required": chat_pb2.CHAT_TOOL_CHOICE_MODE_ANY,
    "none": chat_pb2.CHAT_TOOL_CHOICE_MODE_NONE,
}
_KINDS: Final = {
    "function": chat_pb2.CHAT_TOOL_KIND_FUNCTION,
    "custom": chat_pb2.CHAT_TOOL_KIND_CUSTOM,
}


def read_tools(members: Members) -> list[ChatTool]:
    """Returns all tools; those of a namespace stand one after the other."""
    tools: list[ChatTool] = []
    for i, item in enumerate(members.items("tools")):
        tools += _read_entry(item, f"tools[{i}]")
    return tools


def read_additional_tools(item: bytes, path: str) -> list[ChatTool]:
    """Returns the tools that an item of the input brings."""
    members = Members(item, path)
    tools: list[ChatTool] = []
    for i, entry in enumerate(members.items("tools")):
        tools += _read_entry(entry, f"{path}.tools[{i}]")
    return tools


def _read_entry(raw: msgspec.Raw, path: str) -> list[ChatTool]:
    members = Members(raw, path)
    kind = members.required_text("type")
    if kind != "namespace":
        return [_read_tool(kind, members, raw)]
    name, description = members.required_text("name"), members.text("description")
    tools = []
    for i, item in enumerate(members.items("tools")):
        inner = Members(item, f"{path}.tools[{i}]")
        tools.append(_read_tool(inner.required_text("type"), inner, item))
    if not tools:
        return [_hosted(kind, raw, path)]
    for tool in tools:
        tool.namespace, tool.namespace_description = name, description
    tools[0].vendor_fields.extend(members.rest("namespace."))
    return tools


def _read_tool(kind: str, members: Members, raw: msgspec.Raw) -> ChatTool:
    if kind not in _KINDS:
        return _hosted(kind, raw, members.path)
    tool = ChatTool(
        name=members.required_text("name"),
        description=members.text("description"),
        kind=_KINDS[kind],
        source_path=members.path,
    )
    if kind == "function":
        _read_function(tool, members)
    else:
        tool.format = _object_bytes(members, "format")
    tool.vendor_fields.extend(members.rest())
    return tool


def _read_function(tool: ChatTool, members: Members) -> None:
    tool.schema = _object_bytes(members, "parameters")
    is_strict = members.flag("strict")
    if is_strict is not None:
        tool.is_strict = is_strict


def _object_bytes(members: Members, name: str) -> bytes:
    raw = members.take(name)
    if raw is None:
        return b""
    # Decoded for its check alone.
    Members(raw, members.path_of(name))
    return bytes(raw)


def _hosted(kind: str, raw: msgspec.Raw, path: str) -> ChatTool:
    return ChatTool(
        name=kind,
        kind=chat_pb2.CHAT_TOOL_KIND_HOSTED,
        hosted=vendor_field(kind, raw),
        source_path=path,
    )


def read_choice(members: Members) -> ChatToolChoice | None:
    """Returns what the model must call; None if the client leaves it open.

    A choice that the hub cannot hold whole stays among the rest of `members` too.
    """
    raw = members.take("tool_choice")
    if raw is None:
        return None
    if is_text(raw):
        mode = _MODES.get(text_of(raw, "tool_choice"))
        if mode is None:
            refuse("tool_choice", "must be none, auto, required or an object")
        return ChatToolChoice(mode=mode)
    choice = Members(raw, "tool_choice")
    kind = choice.required_text("type")
    if kind == "allowed_tools":
        read = _read_allowed(choice)
    elif kind in _KINDS:
        read = ChatToolChoice(
            mode=chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL,
            name=choice.required_text("name"),
            namespace=choice.text("namespace"),
            kind=_KINDS[kind],
        )
    else:
        hosted = chat_pb2.CHAT_TOOL_KIND_HOSTED
        read = ChatToolChoice(mode=chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL, name=kind, kind=hosted)
    if not choice.is_empty() or (kind == "allowed_tools" and not read.allowed_names):
        members.keep("tool_choice", raw)
    return read


def _read_allowed(choice: Members) -> ChatToolChoice:
    mode = _MODES.get(choice.text("mode") or "auto")
    if mode is None or mode == chat_pb2.CHAT_TOOL_CHOICE_MODE_NONE:
        refuse("tool_choice.mode", "must be auto or required")
    read = ChatToolChoice(mode=mode)
    raw = choice.take("tools")
    if raw is None:
        refuse("tool_choice.tools", "is missing")
    choice.keep("tools", raw)
    is_plain = True
    for i, item in enumerate(choice.items("tools")):
        tool = Members(item, f"tool_choice.tools[{i}]")
        kind = tool.required_text("type")
        read.allowed_names.append(tool.required_text("name") if kind in _KINDS else kind)
        is_plain = is_plain and kind in _KINDS and tool.is_empty()
    if not is_plain or not read.allowed_names:
        choice.keep("tools", raw)
    return read
