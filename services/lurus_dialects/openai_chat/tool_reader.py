"""Reads what a client lets the model call: `tools` and `tool_choice`."""

from typing import Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatTool, ChatToolChoice
from lurus_dialects.members import is_text, refuse, text_of
from lurus_dialects.openai_chat.members import Members, vendor_field

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
    """Returns all tools."""
    return [_read_tool(raw, f"tools[{i}]") for i, raw in enumerate(members.items("tools"))]


def _read_tool(raw: msgspec.Raw, path: str) -> ChatTool:
    members = Members(raw, path)
    kind = members.required_text("type")
    if kind not in _KINDS:
        return ChatTool(
            name=kind,
            kind=chat_pb2.CHAT_TOOL_KIND_HOSTED,
            hosted=vendor_field(kind, raw),
            source_path=path,
        )
    inner = members.object(kind)
    if inner is None:
        refuse(members.path_of(kind), "is missing")
    tool = ChatTool(
        name=_name(inner),
        description=inner.text("description"),
        kind=_KINDS[kind],
        source_path=path,
    )
    if kind == "function":
        _read_function(tool, inner)
    else:
        _read_format(tool, inner)
    tool.vendor_fields.extend([*inner.rest(f"{kind}."), *members.rest()])
    return tool


def _name(members: Members) -> str:
    name = members.required_text("name")
    if not name:
        refuse(members.path_of("name"), "is missing")
    return name


def _read_function(tool: ChatTool, members: Members) -> None:
    schema = members.take("parameters")
    if schema is not None:
        Members(schema, members.path_of("parameters"))
        tool.schema = bytes(schema)
    is_strict = members.flag("strict")
    if is_strict is not None:
        tool.is_strict = is_strict


def _read_format(tool: ChatTool, members: Members) -> None:
    """Reads the format of a custom tool; what stands under `grammar` here stands beside `type` in the hub."""
    raw = members.take("format")
    if raw is None:
        return
    stated = Members(raw, members.path_of("format"))
    kind = stated.required_text("type")
    grammar = stated.object("grammar") if kind == "grammar" else None
    if kind not in ("text", "grammar") or not stated.is_empty() or (grammar is None and kind == "grammar"):
        # Whatever else there may be is passed on as it is.
        tool.format = bytes(raw)
        return
    fields: dict[str, object] = {"type": kind}
    if grammar is not None:
        fields.update({field.name: msgspec.Raw(field.json) for field in grammar.rest()})
    tool.format = msgspec.json.encode(fields)


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
        read = _read_one(choice, kind)
    else:
        hosted = chat_pb2.CHAT_TOOL_KIND_HOSTED
        read = ChatToolChoice(mode=chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL, name=kind, kind=hosted)
    if not choice.is_empty():
        members.keep("tool_choice", raw)
    return read


def _read_one(choice: Members, kind: str) -> ChatToolChoice:
    inner = choice.object(kind)
    if inner is None:
        refuse(choice.path_of(kind), "is missing")
    return ChatToolChoice(mode=chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL, name=_name(inner), kind=_KINDS[kind])


def _read_allowed(choice: Members) -> ChatToolChoice:
    allowed = choice.object("allowed_tools")
    if allowed is None:
        refuse("tool_choice.allowed_tools", "is missing")
    mode = _MODES.get(allowed.text("mode") or "auto")
    if mode is None or mode == chat_pb2.CHAT_TOOL_CHOICE_MODE_NONE:
        refuse(allowed.path_of("mode"), "must be auto or required")
    read = ChatToolChoice(mode=mode)
    for i, item in enumerate(allowed.items("tools")):
        tool = Members(item, f"{allowed.path_of('tools')}[{i}]")
        kind = tool.required_text("type")
        inner = tool.object(kind) if kind in _KINDS else None
        read.allowed_names.append(kind if inner is None else _name(inner))
    if not read.allowed_names:
        refuse(allowed.path_of("tools"), "is missing")
    return read
