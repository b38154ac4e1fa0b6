"""What the parts of the request writer share: whom it is for, what is lost, and how tools are called."""

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatCacheHint, ChatVendorField, StreamChatRequest
from lurus.usage.v1 import usage_pb2
from lurus_dialects import tools
from lurus_dialects.translation import Losses, Target, ToolName

_RAW: Final = msgspec.json.Decoder(msgspec.Raw)
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
_LONG_LIVED: Final = frozenset({"1h", "12h"})
# Fields by their place in the dialects of clients, for messages.
_WORDS: Final[dict[str, tuple[str, str, str]]] = {
    "max_output_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
    "reasoning": ("thinking", "reasoning_effort", "reasoning.effort"),
    "output_format": ("output_config.format", "response_format", "text.format"),
    "logprobs": ("top_logprobs", "logprobs", "include"),
    "verbosity": ("verbosity", "verbosity", "text.verbosity"),
}
_TYPED_WORDS: Final = {"logprobs": "top_logprobs"}
# Of a message, a block or a tool: names and states that mean nothing elsewhere.
_SILENT: Final = frozenset(
    {
        "id",
        "type",
        "status",
        "phase",
        "name",
        "index",
        "annotations",
        "logprobs",
        "reasoning_content",
        "reasoning",
        "internal_chat_message_metadata_passthrough",
        "created_by",
        "caller",
        "refusal",
    }
)


class Setting:
    """The frame of one request that is being written.

    Attributes:
        source: dialect of the client; unspecified for a typed caller.
        tool_names: see `Written`.
    """

    def __init__(self, request: StreamChatRequest, target: Target, losses: Losses) -> None:
        self.target = target
        self.losses = losses
        self.source = request.source_dialect
        self.tool_names: dict[str, ToolName] = {}

    @property
    def is_own(self) -> bool:
        """True if the client speaks this dialect, so that nothing needs to change."""
        return self.source == usage_pb2.DIALECT_ANTHROPIC

    @property
    def has_new_version(self) -> bool:
        """True if the provider's version of the dialect is the one without sampling."""
        return self.target.quirks.anthropic_version >= "2026-10-21"

    def word(self, field: str) -> str:
        """Returns what the client calls a field of the request."""
        if not self.source:
            return _TYPED_WORDS.get(field, field)
        if field not in _WORDS:
            return field
        return _WORDS[field][_DIALECT_POSITIONS[self.source]]

    def upstream_name(self, name: str, namespace: str) -> str:
        """Returns what the provider knows a tool by."""
        full = f"{namespace}{tools.NAMESPACE_SEPARATOR}{name}" if namespace else name
        return full if _NAME.match(full) else tools.flat_name(name, namespace)

    def add_vendor_fields(self, block: dict[str, Any], fields: Iterable[ChatVendorField], path: str) -> None:
        """Writes what this dialect knows into `block`, never over what is there; the rest is lost."""
        for field in fields:
            if field.dialect == usage_pb2.DIALECT_ANTHROPIC:
                block.setdefault(field.name, self.raw(field.json, f"{path}.{field.name}"))
            elif field.name in _SILENT:
                self.losses.note(field.name)
            else:
                self.losses.warn(f"{path}.{field.name}", "an Anthropic model has no such field")

    def raw(self, json: bytes, path: str) -> msgspec.Raw:
        """Returns JSON that was checked to be one value, so that it cannot reach beyond its place."""
        try:
            raw: msgspec.Raw = _RAW.decode(json)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self.losses.refuse(path, "is not JSON")
        return raw


_DIALECT_POSITIONS: Final = {
    usage_pb2.DIALECT_ANTHROPIC: 0,
    usage_pb2.DIALECT_OPENAI_CHAT: 1,
    usage_pb2.DIALECT_OPENAI_RESPONSES: 2,
}


def cache_control(hint: ChatCacheHint) -> dict[str, str]:
    """Returns `cache_control`; the dialect knows five minutes, its default, and one hour."""
    if hint.ttl in _LONG_LIVED:
        return {"type": "ephemeral", "ttl": "1h"}
    return {"type": "ephemeral", "ttl": "5m"} if hint.ttl == "5m" else {"type": "ephemeral"}


def has_cache_hint(request: StreamChatRequest) -> bool:
    """True if the client says anywhere what is worth caching."""
    return (
        request.HasField("cache_hint")
        or any(tool.HasField("cache_hint") for tool in request.tools)
        or any(_has_hint(block) for message in request.messages for block in message.blocks)
    )


def _has_hint(block: chat_pb2.ChatBlock) -> bool:
    return block.HasField("cache_hint") or any(
        part.HasField("cache_hint") for part in block.tool_result.blocks
    )
