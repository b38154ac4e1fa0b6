"""Writes tools, and which of them the model must call."""

from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatTool, ChatToolChoice, StreamChatRequest
from lurus_dialects.anthropic.block_writer import is_own
from lurus_dialects.anthropic.setting import Setting, cache_control
from lurus_dialects.translation import ToolName

_ANY_OBJECT: Final = {"type": "object", "properties": {}}
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MODES: Final = {
    chat_pb2.CHAT_TOOL_CHOICE_MODE_AUTO: "auto",
    chat_pb2.CHAT_TOOL_CHOICE_MODE_ANY: "any",
    chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL: "tool",
    chat_pb2.CHAT_TOOL_CHOICE_MODE_NONE: "none",
}


def write_tools(request: StreamChatRequest, setting: Setting) -> list[Any]:
    """Returns the tools that the model may call, and notes those that are called otherwise upstream."""
    written: list[Any] = []
    known: dict[str, ToolName] = {}
    for i, tool in enumerate(request.tools):
        path = tool.source_path or f"tools[{i}]"
        if not _is_allowed(tool, request.tool_choice):
            setting.losses.note("tools")
        elif tool.kind == chat_pb2.CHAT_TOOL_KIND_HOSTED or tool.HasField("hosted"):
            if is_own(tool.hosted):
                written.append(setting.raw(tool.hosted.json, path))
            else:
                setting.losses.warn(path, f"no Anthropic model has {tool.hosted.name or tool.name}")
        else:
            written.append(_write_tool(tool, path, setting, known))
    if request.tools and not written:
        setting.losses.refuse("tools", "an Anthropic model has none of them")
    setting.tool_names.update({name: tool for name, tool in known.items() if tool != ToolName(name)})
    return written


def write_choice(request: StreamChatRequest, setting: Setting, has_tools: bool) -> dict[str, Any] | None:
    """Returns `tool_choice`; None if the model's default is meant."""
    choice = request.tool_choice
    is_serial = request.HasField("has_parallel_tool_calls") and not request.has_parallel_tool_calls
    word = _MODES.get(choice.mode)
    if word is None and is_serial and has_tools:
        word = "auto"
    if word is None or (not has_tools and word in ("auto", "none")):
        # Without tools the dialect refuses to hear of them.
        return None
    written: dict[str, Any] = {"type": word}
    if word == "tool":
        written["name"] = _chosen_name(choice, request, setting)
    if request.HasField("has_parallel_tool_calls") and word != "none":
        return {**written, **_serial(is_serial, setting)}
    return written


def is_forced(request: StreamChatRequest) -> bool:
    """True if the model must call a tool."""
    return request.tool_choice.mode in (
        chat_pb2.CHAT_TOOL_CHOICE_MODE_ANY,
        chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL,
    )


def _serial(is_serial: bool, setting: Setting) -> dict[str, bool]:
    if is_serial or setting.is_own:
        return {"disable_parallel_tool_use": is_serial}
    return {}


def _chosen_name(choice: ChatToolChoice, request: StreamChatRequest, setting: Setting) -> Any:
    for field in request.vendor_fields:
        if field.name == "tool_choice.name" and is_own(field):
            return setting.raw(field.json, field.name)
    if choice.kind != chat_pb2.CHAT_TOOL_KIND_HOSTED:
        return setting.upstream_name(choice.name, choice.namespace)
    own = [tool.name for tool in request.tools if tool.hosted.name == choice.name and is_own(tool.hosted)]
    if not own:
        setting.losses.refuse("tool_choice", f"no Anthropic model has {choice.name}")
    return own[0]


def _is_allowed(tool: ChatTool, choice: ChatToolChoice) -> bool:
    if not choice.allowed_names:
        return True
    name = tool.hosted.name if tool.HasField("hosted") else tool.name
    full = f"{tool.namespace}__{tool.name}" if tool.namespace else name
    return name in choice.allowed_names or full in choice.allowed_names


def _write_tool(tool: ChatTool, path: str, setting: Setting, known: dict[str, ToolName]) -> dict[str, Any]:
    is_custom = tool.kind == chat_pb2.CHAT_TOOL_KIND_CUSTOM
    name = setting.upstream_name(tool.name, tool.namespace)
    if name in known:
        setting.losses.refuse(f"{path}.name", f"two tools are called {name}")
    known[name] = ToolName(tool.name, tool.namespace, is_custom)
    written: dict[str, Any] = {"name": name}
    if tool.description:
        written["description"] = tool.description
    written["input_schema"] = _wrapper(tool, path, setting) if is_custom else _schema(tool, path, setting)
    if tool.HasField("is_strict"):
        written["strict"] = tool.is_strict
    if tool.namespace_description:
        setting.losses.note("namespace")
    _add_extras(written, tool, path, setting)
    return written


def _add_extras(written: dict[str, Any], tool: ChatTool, path: str, setting: Setting) -> None:
    for field in tool.vendor_fields:
        if is_own(field):
            written.setdefault(field.name, setting.raw(field.json, f"{path}.{field.name}"))
        else:
            setting.losses.note(field.name)
    if tool.HasField("cache_hint"):
        written.setdefault("cache_control", cache_control(tool.cache_hint))


def _schema(tool: ChatTool, path: str, setting: Setting) -> Any:
    if not tool.schema:
        return _ANY_OBJECT
    try:
        members = _MEMBERS.decode(tool.schema)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        setting.losses.refuse(f"{path}.parameters", "must be a JSON schema")
    # OpenAI takes a schema without a type for an object's.
    return msgspec.Raw(tool.schema) if "type" in members else {**_ANY_OBJECT, **members}


def _wrapper(tool: ChatTool, path: str, setting: Setting) -> dict[str, Any]:
    """Returns the schema of a function that stands in for a tool that takes text (T11)."""
    described = tool.description
    if tool.format:
        definition = setting.raw(tool.format, f"{path}.format")
        grammar = _MEMBERS.decode(definition) if bytes(definition).lstrip()[:1] == b"{" else {}
        if grammar.get("type") != msgspec.Raw(b'"text"'):
            setting.losses.warn(f"{path}.format", "the grammar is described and not enforced")
            described = "\n\n".join(filter(None, (described, _definition(grammar, tool.format))))
    text = {"type": "string", "description": described}
    return {"type": "object", "properties": {"input": text}, "required": ["input"]}


def _definition(grammar: dict[str, msgspec.Raw], whole: bytes) -> str:
    try:
        return msgspec.json.decode(grammar["definition"], type=str)
    except (KeyError, msgspec.MsgspecError, ValueError):
        return whole.decode("utf-8", "replace")
