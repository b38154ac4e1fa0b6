"""Writes what the model may call: `tools` and `tool_choice`."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatTool, StreamChatRequest
from lurus_dialects.openai_responses.vendor_fields import OWN, translate_tool_fields
from lurus_dialects.tools import flat_name
from lurus_dialects.translation import Losses, ToolName

ANY_OBJECT: Final = msgspec.Raw(b'{"type":"object","properties":{}}')
_MODES: Final = {
    chat_pb2.CHAT_TOOL_CHOICE_MODE_AUTO: "auto",
    chat_pb2.CHAT_TOOL_CHOICE_MODE_ANY: "required",
    chat_pb2.CHAT_TOOL_CHOICE_MODE_NONE: "none",
}
_HOSTED: Final = chat_pb2.CHAT_TOOL_KIND_HOSTED
_CUSTOM: Final = chat_pb2.CHAT_TOOL_KIND_CUSTOM


class ToolWriter:
    """Writes tools and remembers the names that had to change.

    Attributes:
        tool_names: the client's names by those that the provider knows.
    """

    def __init__(self, request: StreamChatRequest, losses: Losses, *, is_own: bool) -> None:
        self.tool_names: dict[str, ToolName] = {}
        self._request = request
        self._losses = losses
        # Read from this dialect: nothing has to be added or renamed.
        self._is_own = is_own

    def name(self, name: str) -> str:
        """Returns the provider's name of a tool."""
        return name if self._is_own else flat_name(name)

    def tools(self) -> list[Any]:
        """Returns all tools; those of one namespace are put together."""
        written: list[Any] = []
        namespace: dict[str, Any] | None = None
        for i, tool in enumerate(self._request.tools):
            if self._is_own and tool.source_path.startswith("input"):
                continue  # Its item brings it.
            value = self._tool(tool, tool.source_path or f"tools[{i}]")
            if value is None:
                continue
            if not tool.namespace:
                namespace = None
                written.append(value)
                continue
            if namespace is None or namespace["name"] != tool.namespace or _starts_namespace(tool):
                namespace = _namespace(tool)
                written.append(namespace)
            namespace["tools"].append(value)
        if self._request.tools and not written and not self._is_own:
            self._losses.refuse("tools", "none of them can be called at this provider")
        return written

    def _tool(self, tool: ChatTool, path: str) -> Any:
        if tool.HasField("hosted"):
            if tool.hosted.dialect == OWN:
                return msgspec.Raw(tool.hosted.json)
            self._losses.warn(path, "is run by another provider and was left out")
            return None
        name = self.name(tool.name)
        if name != tool.name:
            self.tool_names[name] = ToolName(tool.name, tool.namespace)
        if tool.HasField("cache_hint"):
            self._losses.note(f"{path}.cache_control")
        value: dict[str, Any] = {"type": "custom" if tool.kind == _CUSTOM else "function", "name": name}
        if tool.description:
            value["description"] = tool.description
        if tool.kind == _CUSTOM:
            if tool.format:
                value["format"] = msgspec.Raw(tool.format)
        else:
            self._add_schema(tool, value)
        translate_tool_fields(tool.vendor_fields, value, path, self._losses)
        return value

    def _add_schema(self, tool: ChatTool, value: dict[str, Any]) -> None:
        if tool.schema:
            value["parameters"] = msgspec.Raw(tool.schema)
        elif not self._is_own:
            value["parameters"] = ANY_OBJECT
        if tool.HasField("is_strict"):
            value["strict"] = tool.is_strict
        elif not self._is_own:
            # Only here does an absent `strict` mean "try".
            value["strict"] = False

    def choice(self) -> Any:
        """Returns what the model must call; None if it is left open."""
        choice = self._request.tool_choice
        if choice.allowed_names:
            is_any = choice.mode == chat_pb2.CHAT_TOOL_CHOICE_MODE_ANY
            allowed = [self._reference(name) for name in choice.allowed_names]
            return {"type": "allowed_tools", "mode": "required" if is_any else "auto", "tools": allowed}
        if choice.mode != chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL:
            return _MODES.get(choice.mode)
        if choice.kind == _HOSTED:
            if not any(t.hosted.dialect == OWN for t in self._request.tools) and not self._is_own:
                self._losses.refuse("tool_choice", f"{choice.name} is run by another provider")
            return {"type": choice.name}
        reference = self._reference(choice.name, choice.kind)
        if choice.namespace:
            reference["namespace"] = choice.namespace
        return reference

    def _reference(self, name: str, kind: int = chat_pb2.CHAT_TOOL_KIND_UNSPECIFIED) -> dict[str, Any]:
        kind = kind or next((tool.kind for tool in self._request.tools if tool.name == name), 0)
        if kind == _HOSTED:
            return {"type": name}
        return {"type": "custom" if kind == _CUSTOM else "function", "name": self.name(name)}


def _starts_namespace(tool: ChatTool) -> bool:
    return any(field.name.startswith("namespace.") for field in tool.vendor_fields)


def _namespace(tool: ChatTool) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "namespace", "name": tool.namespace}
    if tool.namespace_description:
        value["description"] = tool.namespace_description
    for field in tool.vendor_fields:
        outer, _, inner = field.name.partition(".")
        if outer == "namespace" and inner and field.dialect == OWN:
            value[inner] = msgspec.Raw(field.json)
    value["tools"] = []
    return value


def echo_of_tools(request: StreamChatRequest) -> tuple[Sequence[Any], Any]:
    """Returns `tools` and `tool_choice` as an answer repeats them."""
    writer = ToolWriter(request, Losses(), is_own=True)
    tools = writer.tools() if request.tools else []
    return tools, writer.choice() or "auto"
