"""Writes what the model may call: `tools` and `tool_choice`."""

from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatTool, StreamChatRequest
from lurus_dialects import loose
from lurus_dialects.openai_chat.vendor_fields import OWN, translate_tool_fields
from lurus_dialects.tools import flat_name
from lurus_dialects.translation import Losses, Target, ToolName

_ANY_OBJECT: Final = msgspec.Raw(b'{"type":"object","properties":{}}')
_MODES: Final = {
    chat_pb2.CHAT_TOOL_CHOICE_MODE_AUTO: "auto",
    chat_pb2.CHAT_TOOL_CHOICE_MODE_ANY: "required",
    chat_pb2.CHAT_TOOL_CHOICE_MODE_NONE: "none",
}
_FORCING: Final = (chat_pb2.CHAT_TOOL_CHOICE_MODE_ANY, chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL)
_CUSTOM: Final = chat_pb2.CHAT_TOOL_KIND_CUSTOM


class ToolWriter:
    """Writes tools and remembers those whose name or kind had to change.

    Attributes:
        tool_names: the client's names by those that the provider knows.
    """

    def __init__(self, request: StreamChatRequest, target: Target, losses: Losses, *, is_own: bool) -> None:
        self.tool_names: dict[str, ToolName] = {}
        self._request = request
        self._losses = losses
        self._is_own = is_own
        self._has_custom = is_own or target.quirks.has_custom_tools

    def name(self, name: str, namespace: str = "") -> str:
        """Returns the provider's name of a tool."""
        return name if self._is_own else flat_name(name, namespace)

    def is_wrapped(self, kind: int) -> bool:
        """True if a tool of this kind becomes a function that takes a text (T11)."""
        return kind == _CUSTOM and not self._has_custom

    def tools(self) -> list[Any]:
        """Returns the tools that this provider can be given."""
        written = []
        known: set[str] = set()
        for i, tool in enumerate(self._request.tools):
            value = self._tool(tool, tool.source_path or f"tools[{i}]", known)
            if value is not None:
                written.append(value)
        if self._request.tools and not written:
            self._losses.refuse("tools", "none of them can be called at this provider")
        return written

    def _tool(self, tool: ChatTool, path: str, known: set[str]) -> Any:
        if tool.HasField("hosted"):
            if tool.hosted.dialect == OWN:
                return msgspec.Raw(tool.hosted.json)
            self._losses.warn(path, "is run by another provider and was left out")
            return None
        name = self.name(tool.name, tool.namespace)
        if name in known and not self._is_own:
            self._losses.refuse(f"{path}.name", f"two tools are called {name}")
        known.add(name)
        is_wrapped = self.is_wrapped(tool.kind)
        if name != tool.name or is_wrapped:
            self.tool_names[name] = ToolName(tool.name, tool.namespace, is_wrapped)
        if tool.HasField("cache_hint"):
            self._losses.note(f"{path}.cache_control")
        if tool.kind == _CUSTOM and not is_wrapped:
            value: dict[str, Any] = {"type": "custom", "custom": self._custom(tool, name)}
        elif is_wrapped:
            value = {"type": "function", "function": self._wrapper(tool, name, path)}
        else:
            value = {"type": "function", "function": self._function(tool, name)}
        translate_tool_fields(tool.vendor_fields, value, path, self._losses)
        return value

    def _function(self, tool: ChatTool, name: str) -> dict[str, Any]:
        function: dict[str, Any] = {"name": name}
        if tool.description:
            function["description"] = tool.description
        if tool.schema:
            function["parameters"] = msgspec.Raw(tool.schema)
        elif not self._is_own:
            function["parameters"] = _ANY_OBJECT
        if tool.HasField("is_strict"):
            function["strict"] = tool.is_strict
        return function

    def _custom(self, tool: ChatTool, name: str) -> dict[str, Any]:
        custom: dict[str, Any] = {"name": name}
        if tool.description:
            custom["description"] = tool.description
        if tool.format:
            custom["format"] = _format(tool.format)
        return custom

    def _wrapper(self, tool: ChatTool, name: str, path: str) -> dict[str, Any]:
        """Returns the function that stands for a custom tool."""
        format_ = loose.decode(tool.format) if tool.format else None
        described = tool.description
        if isinstance(format_, dict) and format_.get("type") != "text":
            self._losses.warn(f"{path}.format", "the grammar is described and not enforced")
            definition = loose.text_of(format_, "definition") or tool.format.decode("utf-8", "replace")
            described = "\n\n".join(filter(None, (described, definition)))
        text = {"type": "string", "description": described}
        schema = {"type": "object", "properties": {"input": text}, "required": ["input"]}
        function: dict[str, Any] = {"name": name, "parameters": schema}
        if tool.description:
            function["description"] = tool.description
        return function

    def choice(self) -> Any:
        """Returns what the model must call; None if it is left open."""
        choice = self._request.tool_choice
        if not self._request.tools and not self._is_own:
            # The dialect refuses to hear of a choice where there is none.
            if choice.mode in _FORCING:
                self._losses.refuse("tool_choice", "there is no tool that could be called")
            return None
        if choice.allowed_names:
            return self._allowed()
        if choice.mode != chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL:
            return _MODES.get(choice.mode)
        if choice.kind == chat_pb2.CHAT_TOOL_KIND_HOSTED:
            if not self._is_own:
                self._losses.refuse("tool_choice", f"{choice.name} is run by another provider")
            return {"type": choice.name}
        return self._reference(choice.name, choice.namespace, choice.kind)

    def _allowed(self) -> Any:
        """Returns those of the allowed tools that this provider was given."""
        choice = self._request.tool_choice
        allowed: list[Any] = []
        for name in choice.allowed_names:
            tool = self._find(name)
            if tool is None or not tool.HasField("hosted"):
                allowed.append(self._reference(name))
            elif tool.hosted.dialect == OWN:
                allowed.append({"type": name})
            else:
                self._losses.note("tool_choice")
        if not allowed:
            self._losses.refuse("tool_choice", "none of the allowed tools can be called at this provider")
        is_any = choice.mode == chat_pb2.CHAT_TOOL_CHOICE_MODE_ANY
        inner = {"mode": "required" if is_any else "auto", "tools": allowed}
        return {"type": "allowed_tools", "allowed_tools": inner}

    def _find(self, name: str) -> ChatTool | None:
        """Returns a tool by its name, with or without its namespace."""
        for tool in self._request.tools:
            if name == tool.name or (tool.namespace and name == f"{tool.namespace}__{tool.name}"):
                return tool
        return None

    def _reference(self, name: str, namespace: str = "", kind: int = 0) -> dict[str, Any]:
        tool = self._find(name)
        if tool is not None:
            name, kind, namespace = tool.name, kind or tool.kind, namespace or tool.namespace
        word = "custom" if kind == _CUSTOM and not self.is_wrapped(kind) else "function"
        return {"type": word, word: {"name": self.name(name, namespace)}}


def _format(stated: bytes) -> Any:
    """Returns the format of a custom tool; here a grammar stands in an object of its own."""
    value = loose.decode(stated)
    if not isinstance(value, dict) or value.get("type") != "grammar" or "grammar" in value:
        return msgspec.Raw(stated)
    return {"type": "grammar", "grammar": {name: item for name, item in value.items() if name != "type"}}
