"""Writes messages of the hub as items of `input`."""

from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlock, ChatMedia, ChatMessage, ChatThinking, ChatToolResult
from lurus_dialects.dialect import Dialect
from lurus_dialects.media import audio_part, base64_of, data_url, made_up_name
from lurus_dialects.openai_responses.tool_writer import ToolWriter
from lurus_dialects.openai_responses.vendor_fields import (
    OWN,
    translate_block_fields,
    translate_message_fields,
)
from lurus_dialects.tools import call_id
from lurus_dialects.translation import Losses, Target

MAX_CACHE_MARKS: Final = 4
TOOL_ERROR: Final = "[tool error] "
_ROLES: Final = {
    chat_pb2.CHAT_ROLE_UNSPECIFIED: "user",
    chat_pb2.CHAT_ROLE_SYSTEM: "system",
    chat_pb2.CHAT_ROLE_USER: "user",
    chat_pb2.CHAT_ROLE_ASSISTANT: "assistant",
    chat_pb2.CHAT_ROLE_DEVELOPER: "developer",
    chat_pb2.CHAT_ROLE_TOOL: "user",
}
_CUSTOM: Final = chat_pb2.CHAT_TOOL_KIND_CUSTOM


class ItemWriter:
    """Writes the items of one request."""

    def __init__(self, source: Dialect | None, target: Target, tools: ToolWriter, losses: Losses) -> None:
        self._source = source
        self._is_own = source is Dialect.OPENAI_RESPONSES
        self._target = target
        self._tools = tools
        self._losses = losses
        self._items: list[Any] = []
        self._parts: list[Any] = []
        self._call_kinds: dict[str, int] = {}
        # Chat marks what to cache in the same words; of others only as many as are allowed.
        has_marks = self._is_own or source is Dialect.OPENAI_CHAT
        self._marks_left = 2**31 if has_marks else MAX_CACHE_MARKS * target.quirks.has_explicit_cache

    def write(self, messages: list[tuple[str, ChatMessage]], has_state: bool) -> list[Any]:
        """Returns the items of messages, each given with its path.

        Args:
            has_state: the provider remembers what came before, calls included.
        """
        for path, message in messages:
            self._message(path, message, has_state)
        return self._items

    def _message(self, path: str, message: ChatMessage, has_state: bool) -> None:
        first = len(self._items)
        for i, block in enumerate(message.blocks):
            block_path = block.source_path or f"{path}.blocks[{i}]"
            kind = block.WhichOneof("block")
            if kind == "tool_call":
                self._flush(message)
                self._call(block, block_path)
            elif kind == "tool_result":
                self._flush(message)
                self._result(block, block_path, message, has_state)
            elif kind == "thinking":
                self._flush(message)
                self._thinking(block.thinking, block_path)
            elif kind == "vendor_block" and block_path == message.source_path:
                self._flush(message)
                self._items.append(self._vendor_block(block, block_path))
            elif kind is not None and not self._is_silence(block, message):
                self._parts.append(self._part(block, block_path, message.role))
        is_empty = not message.blocks and self._is_own
        self._flush(message, is_forced=is_empty)
        self._finish(path, message, first)

    def _is_silence(self, block: ChatBlock, message: ChatMessage) -> bool:
        """Whether a client of another dialect gives back the empty text beside a model's calls."""
        is_empty = block.WhichOneof("block") == "text" and not block.text
        return is_empty and not self._is_own and message.role == chat_pb2.CHAT_ROLE_ASSISTANT

    def _flush(self, message: ChatMessage, *, is_forced: bool = False) -> None:
        """Ends the message item that collects parts."""
        if self._parts or is_forced:
            role = self._role(message)
            self._items.append({"type": "message", "role": role, "content": self._parts})
            self._parts = []

    def _role(self, message: ChatMessage) -> str:
        # Anthropic's rules in mid-conversation are the program's, not the provider's.
        if message.role == chat_pb2.CHAT_ROLE_SYSTEM and self._source is Dialect.ANTHROPIC:
            return "developer"
        return _ROLES.get(message.role, "user")

    def _finish(self, path: str, message: ChatMessage, first: int) -> None:
        """Gives the first message item of a message what the message has besides its blocks."""
        if message.name:
            self._losses.note(f"{path}.name")
        if not message.vendor_fields:
            return
        written = self._items[first:]
        item = next((i for i in written if isinstance(i, dict) and i["type"] == "message"), {})
        translate_message_fields(message.vendor_fields, item, path, self._losses)

    def _vendor_block(self, block: ChatBlock, path: str) -> Any:
        if block.vendor_block.dialect != OWN:
            name = block.vendor_block.name
            self._losses.refuse(path, f"{name} is known only to another provider")
        return msgspec.Raw(block.vendor_block.json)

    def _call(self, block: ChatBlock, path: str) -> None:
        call = block.tool_call
        identifier = call.tool_call_id if self._is_own else call_id(call.tool_call_id)
        self._call_kinds[identifier] = call.kind
        item: dict[str, Any] = {"type": "function_call", "call_id": identifier}
        item["name"] = self._tools.name(call.name)
        if call.namespace:
            item["namespace"] = call.namespace
        text = call.arguments.decode("utf-8", "replace")
        if call.kind == _CUSTOM:
            item["type"], item["input"] = "custom_tool_call", text
        else:
            item["arguments"] = self._arguments(text)
        translate_block_fields(block.vendor_fields, item, path, self._losses)
        self._items.append(item)

    def _arguments(self, text: str) -> str:
        if self._is_own:
            return text
        if self._source is Dialect.ANTHROPIC and text:
            try:
                return msgspec.json.format(text, indent=-1)
            except (msgspec.DecodeError, RecursionError):
                return text
        return text or "{}"

    def _result(self, block: ChatBlock, path: str, message: ChatMessage, has_state: bool) -> None:
        result = block.tool_result
        identifier = result.tool_call_id if self._is_own else call_id(result.tool_call_id)
        if identifier not in self._call_kinds and not self._is_own and not has_state:
            self._losses.refuse(_id_path(block, message, path), "answers a call that was not made")
        kind = result.kind if self._is_own else self._call_kinds.get(identifier) or result.kind
        item_type = "custom_tool_call_output" if kind == _CUSTOM else "function_call_output"
        output = self._output(result, path)
        item: dict[str, Any] = {"type": item_type, "call_id": identifier, "output": output}
        translate_block_fields(block.vendor_fields, item, path, self._losses)
        self._items.append(item)

    def _output(self, result: ChatToolResult, path: str) -> Any:
        """Returns a string for a lone plain text, else a list of parts."""
        prefix = ""
        if result.is_error:
            prefix = TOOL_ERROR
            self._losses.note(f"{path}.is_error")
        blocks = list(result.blocks)
        if not blocks:
            return [] if self._is_own else prefix.rstrip()
        if len(blocks) == 1 and _is_plain_text(blocks[0]):
            return prefix + blocks[0].text
        user = chat_pb2.CHAT_ROLE_USER
        parts = []
        for i, block in enumerate(blocks):
            block_path = block.source_path or f"{path}.blocks[{i}]"
            if block.media.kind == chat_pb2.CHAT_MEDIA_KIND_AUDIO and not self._is_own:
                self._losses.refuse(block_path, "the result of a tool cannot hold sound at this provider")
            parts.append(self._part(block, block_path, user))
        if prefix and isinstance(parts[0], dict) and parts[0]["type"] == "input_text":
            parts[0]["text"] = prefix + parts[0]["text"]
        elif prefix:
            parts.insert(0, {"type": "input_text", "text": prefix.rstrip()})
        return parts

    def _thinking(self, thinking: ChatThinking, path: str) -> None:
        """Writes thinking back where it was made, and nowhere else (wire-contract C.3)."""
        is_own = thinking.dialect == OWN and bool(thinking.original)
        if thinking.provider_id:
            maker = (thinking.provider_id, thinking.upstream_model)
            is_known = maker == (self._target.provider_id, self._target.upstream_model)
        else:
            is_known = self._is_own
        if is_own and is_known:
            self._items.append(msgspec.Raw(thinking.original))
        else:
            self._losses.note(path)

    def _part(self, block: ChatBlock, path: str, role: int) -> Any:
        kind = block.WhichOneof("block")
        if kind == "text":
            is_output = role == chat_pb2.CHAT_ROLE_ASSISTANT
            part: dict[str, Any] = {"type": "output_text" if is_output else "input_text", "text": block.text}
        elif kind == "refusal":
            part = {"type": "refusal", "refusal": block.refusal}
        elif kind == "media":
            part = self._media(block.media, path)
        elif kind == "vendor_block":
            return self._vendor_block(block, path)
        else:
            self._losses.refuse(path, "cannot stand here at this provider")
        if block.citations:
            self._losses.note(f"{path}.citations")
        if block.HasField("cache_hint"):
            self._mark(block, part, path)
        if block.vendor_fields:
            translate_block_fields(block.vendor_fields, part, path, self._losses)
        return part

    def _mark(self, block: ChatBlock, part: dict[str, Any], path: str) -> None:
        if not self._marks_left:
            self._losses.note(f"{path}.cache_control")
            return
        self._marks_left -= 1
        part["prompt_cache_breakpoint"] = {"mode": "explicit"}
        if block.cache_hint.ttl in ("30m", "12h") or (self._is_own and block.cache_hint.ttl):
            part["prompt_cache_breakpoint"]["ttl"] = block.cache_hint.ttl

    def _media(self, media: ChatMedia, path: str) -> dict[str, Any]:
        if media.WhichOneof("source") == "file_id" and not self._is_own:
            self._losses.refuse(path, "a file that another provider holds cannot be sent")
        if media.kind == chat_pb2.CHAT_MEDIA_KIND_AUDIO:
            return self._audio(media, path)
        if media.kind == chat_pb2.CHAT_MEDIA_KIND_DOCUMENT:
            return self._document(media, path)
        part: dict[str, Any] = {"type": "input_image"}
        if media.file_id:
            part["file_id"] = media.file_id
        else:
            part["image_url"] = media.url or data_url(media)
        if media.detail:
            part["detail"] = media.detail
        return part

    def _document(self, media: ChatMedia, path: str) -> dict[str, Any]:
        source = media.WhichOneof("source")
        if source == "text":
            self._losses.warn(path, "a document of plain text was sent as a text")
            return {"type": "input_text", "text": f"{media.title}\n\n{media.text}".lstrip("\n")}
        part: dict[str, Any] = {"type": "input_file"}
        if media.title:
            part["filename"] = media.title
        if source == "file_id":
            part["file_id"] = media.file_id
        elif source == "url" and not media.url.startswith("data:"):
            part["file_url"] = media.url
        else:
            part["file_data"] = media.url or data_url(media)
            if not media.title and not self._is_own:
                # Data without a name is refused.
                part["filename"] = made_up_name(media)
        if media.detail:
            part["detail"] = media.detail
        return part

    def _audio(self, media: ChatMedia, path: str) -> dict[str, Any]:
        if not base64_of(media):
            self._losses.refuse(path, "sound can be sent to this provider only as data")
        return audio_part(media)


def _is_plain_text(block: ChatBlock) -> bool:
    is_text = block.WhichOneof("block") == "text"
    return is_text and not block.vendor_fields and not block.HasField("cache_hint")


def _id_path(block: ChatBlock, message: ChatMessage, path: str) -> str:
    if message.role == chat_pb2.CHAT_ROLE_TOOL:
        return f"{message.source_path or path}.tool_call_id"
    return f"{path}.tool_use_id" if block.source_path else f"{path}.tool_call_id"
