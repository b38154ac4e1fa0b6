"""Writes the hub's messages as those of this dialect.

Here the results of tools are messages of their own that must follow their
calls, and only some servers take rules in mid-conversation.
"""

import base64
from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlock, ChatMedia, ChatMessage, ChatThinking, ChatToolCall
from lurus_dialects import loose
from lurus_dialects.dialect import Dialect
from lurus_dialects.openai_chat.tool_writer import ToolWriter
from lurus_dialects.openai_chat.vendor_fields import (
    OWN,
    translate_block_fields,
    translate_message_fields,
)
from lurus_dialects.tools import call_id
from lurus_dialects.translation import Losses, Target

NO_OUTPUT: Final = "[no tool output recorded]"
TOOL_ERROR: Final = "[tool error] "
ATTRIBUTION: Final = "x-anthropic-billing-header:"
MAX_CACHE_MARKS: Final = 4
_RULES: Final = (chat_pb2.CHAT_ROLE_SYSTEM, chat_pb2.CHAT_ROLE_DEVELOPER)
_ASSISTANT: Final = chat_pb2.CHAT_ROLE_ASSISTANT
_CUSTOM: Final = chat_pb2.CHAT_TOOL_KIND_CUSTOM
_AUDIO_FORMATS: Final = {"audio/mpeg": "mp3", "audio/x-wav": "wav", "audio/wave": "wav"}
_EXTENSIONS: Final = {"application/pdf": "pdf", "text/plain": "txt", "text/markdown": "md"}

Part = dict[str, Any]


class MessageWriter:
    """Writes the messages of one request."""

    def __init__(self, source: Dialect | None, target: Target, tools: ToolWriter, losses: Losses) -> None:
        self._source = source
        # Read from this dialect: nothing has to be merged, renamed or completed.
        self._is_own = source is Dialect.OPENAI_CHAT
        self._target = target
        self._quirks = target.quirks
        self._tools = tools
        self._losses = losses
        self._written: list[dict[str, Any]] = []
        # Calls without a result yet, by id, with their paths.
        self._unanswered: dict[str, str] = {}
        self._known_calls: set[str] = set()
        # What a tool returned besides text, and rules that came between calls and results.
        self._held: list[Part] = []
        has_marks = self._is_own or source is Dialect.OPENAI_RESPONSES
        self._marks_left = 2**31 if has_marks else MAX_CACHE_MARKS * self._quirks.has_explicit_cache

    def write(self, messages: list[tuple[str, ChatMessage]]) -> list[dict[str, Any]]:
        """Returns the messages, each given with its path."""
        is_leading = True
        for path, message in messages:
            is_leading &= message.role in _RULES
            if message.role in _RULES:
                self._add_rules(path, message, is_leading)
            elif message.role == _ASSISTANT:
                self._add_answer(path, message)
            else:
                self._add_turn(path, message)
        self._complete_results()
        if messages and messages[-1][1].role == _ASSISTANT and not self._is_own:
            self._losses.warn(messages[-1][0], "the model may not go on with an answer that is begun")
        return self._written

    # Rules.

    def _add_rules(self, path: str, message: ChatMessage, is_leading: bool) -> None:
        blocks = list(message.blocks)
        if blocks and path.startswith("system") and blocks[0].text.startswith(ATTRIBUTION):
            self._losses.note("system[0]")
            blocks = blocks[1:]
        parts = self._parts(blocks, path)
        if not parts and not self._is_own:
            return
        if is_leading or self._is_own or self._quirks.has_mid_system:
            written = {"role": self._role_of(message), "content": _content(parts)}
            self._finish(path, message, written)
            if self._unanswered and not self._is_own:
                self._complete_results()
            self._written.append(written)
            return
        self._losses.warn(path, "rules in mid-conversation went into a user's turn")
        self._add_to_user([{**part, "text": f"<system>{part.get('text', '')}</system>"} for part in parts])

    def _role_of(self, message: ChatMessage) -> str:
        is_developer = message.role == chat_pb2.CHAT_ROLE_DEVELOPER
        if self._is_own:
            return "developer" if is_developer else "system"
        if self._source is Dialect.OPENAI_RESPONSES and message.role == chat_pb2.CHAT_ROLE_SYSTEM:
            is_developer = message.source_path == "instructions"
        elif self._source is Dialect.ANTHROPIC:
            is_developer = True
        return "developer" if is_developer and self._quirks.has_developer_role else "system"

    def _add_to_user(self, parts: list[Part]) -> None:
        """Puts parts into the user's turn that is near: the last one, or the next."""
        if self._unanswered or not self._written or self._written[-1]["role"] != "user":
            self._held += parts
            return
        last = self._written[-1]
        last["content"] = _content([*_as_parts(last["content"]), *parts])

    # Users and tools.

    def _add_turn(self, path: str, message: ChatMessage) -> None:
        rest: list[ChatBlock] = []
        for i, block in enumerate(message.blocks):
            if block.HasField("tool_result"):
                self._add_result(block, message, block.source_path or f"{path}.blocks[{i}]")
            else:
                rest.append(block)
        if not rest and message.blocks:
            return
        if rest and rest[0].vendor_block.name == "function" and self._is_own:
            self._written.append(msgspec.json.decode(rest[0].vendor_block.json))
            return
        if not self._is_own:
            self._complete_results(is_followed_by_user=True)
        held, self._held = self._held, []
        parts = [*held, *self._parts(rest, path)]
        if not parts and not self._is_own:
            return
        written = {"role": "user", "content": _content(parts)}
        self._finish(path, message, written)
        self._written.append(written)

    def _add_result(self, block: ChatBlock, message: ChatMessage, path: str) -> None:
        result = block.tool_result
        identifier = self._call_id(result.tool_call_id)
        if not self._is_own and identifier not in self._known_calls:
            self._losses.refuse(_id_path(message, path), "answers a call that was not made")
        self._unanswered.pop(identifier, None)
        prefix = TOOL_ERROR if result.is_error else ""
        if prefix:
            self._losses.note(f"{path}.is_error")
        texts: list[tuple[str, ChatBlock]] = []
        others: list[tuple[str, ChatBlock]] = []
        for i, inner in enumerate(result.blocks):
            inner_path = inner.source_path or f"{path}.blocks[{i}]"
            is_text = inner.WhichOneof("block") in ("text", "refusal")
            (texts if is_text else others).append((inner_path, inner))
        parts = [self._part(inner, inner_path) for inner_path, inner in texts]
        written: dict[str, Any] = {"role": "tool", "tool_call_id": identifier}
        if self._quirks.has_tool_parts:
            parts += [self._part(inner, inner_path) for inner_path, inner in others]
        elif others:
            self._attach(identifier, others)
        written["content"] = self._result_content(parts, prefix)
        translate_block_fields(block.vendor_fields, written, path, self._losses)
        translate_message_fields(message.vendor_fields, written, path, self._losses)
        self._written.append(written)

    def _attach(self, identifier: str, blocks: list[tuple[str, ChatBlock]]) -> None:
        """Holds what a result may not contain here, for the next user's turn."""
        self._held.append({"type": "text", "text": f"[attachment of tool result {identifier}]"})
        for path, block in blocks:
            self._losses.warn(path, "went from the tool's result into the next user's turn")
            self._held.append(self._part(block, path))

    def _result_content(self, parts: list[Part], prefix: str) -> Any:
        if parts and prefix and parts[0].get("type") == "text":
            parts[0]["text"] = prefix + parts[0]["text"]
        elif prefix:
            parts.insert(0, {"type": "text", "text": prefix.rstrip()})
        if not parts:
            return "" if self._is_own or not self._held else "[see the attachment]"
        is_text_only = all(part.keys() == {"type", "text"} for part in parts)
        if is_text_only and not self._is_own:
            return "\n\n".join(part["text"] for part in parts)
        return _content(parts)

    def _complete_results(self, *, is_followed_by_user: bool = False) -> None:
        """Gives every call a result, since one without is refused, and releases what was held."""
        if not self._is_own:
            for identifier, path in self._unanswered.items():
                self._losses.warn(path, f"the call has no result and was given {NO_OUTPUT!r}")
                content = f"{TOOL_ERROR}{NO_OUTPUT}"
                self._written.append({"role": "tool", "tool_call_id": identifier, "content": content})
        self._unanswered.clear()
        if self._held and not is_followed_by_user:
            self._written.append({"role": "user", "content": _content(self._held)})
            self._held = []

    # Answers.

    def _add_answer(self, path: str, message: ChatMessage) -> None:
        if not self._is_own and (self._unanswered or self._held) and not self._continues_answer():
            self._complete_results()
        written: dict[str, Any] = {"role": "assistant", "content": None}
        parts: list[Part] = []
        for i, block in enumerate(message.blocks):
            self._add_answer_block(written, parts, block, block.source_path or f"{path}.blocks[{i}]")
        if parts:
            written["content"] = _content(parts) if self._is_own else _joined(parts)
        self._finish(path, message, written)
        if len(written) == 2 and not parts and not self._is_own:
            return
        if self._continues_answer() and not self._is_own:
            _merge(self._written[-1], written)
        else:
            self._written.append(written)

    def _continues_answer(self) -> bool:
        return bool(self._written) and self._written[-1]["role"] == "assistant"

    def _add_answer_block(
        self, written: dict[str, Any], parts: list[Part], block: ChatBlock, path: str
    ) -> None:
        kind = block.WhichOneof("block")
        if kind == "tool_call":
            if not parts and "tool_calls" not in written and self._is_own:
                written["content"] = None
            written.setdefault("tool_calls", []).append(self._call(block, path))
        elif kind == "thinking":
            self._add_thinking(written, block.thinking, path)
        elif kind == "refusal" and (path.endswith(".refusal") or not self._is_own):
            written["refusal"] = block.refusal
        elif kind == "vendor_block" and self._is_own and path.endswith(f".{block.vendor_block.name}"):
            written[block.vendor_block.name] = msgspec.Raw(block.vendor_block.json)
        elif kind is not None:
            if "tool_calls" in written and not self._is_own:
                self._losses.note(path)
            parts.append(self._part(block, path))

    def _add_thinking(self, written: dict[str, Any], thinking: ChatThinking, path: str) -> None:
        """Gives thinking back where it is wanted; elsewhere it means nothing (wire-contract C.3)."""
        is_client = self._is_own and thinking.dialect == OWN and not thinking.provider_id
        maker = (thinking.provider_id, thinking.upstream_model)
        is_maker = maker == (self._target.provider_id, self._target.upstream_model)
        original = loose.decode(thinking.original) if thinking.dialect == OWN else None
        if is_client and isinstance(original, dict):
            written.update(original)
        elif self._quirks.wants_reasoning_back and is_maker and isinstance(original, dict):
            written["reasoning_content"] = loose.text_of(original, "reasoning_content")
        elif self._quirks.wants_reasoning_back and thinking.text:
            written["reasoning_content"] = thinking.text
        else:
            self._losses.note(path)

    def _call(self, block: ChatBlock, path: str) -> dict[str, Any]:
        call = block.tool_call
        identifier = self._call_id(call.tool_call_id)
        self._unanswered[identifier] = path
        self._known_calls.add(identifier)
        name = self._tools.name(call.name, call.namespace)
        is_wrapped = self._tools.is_wrapped(call.kind)
        if call.kind == _CUSTOM and not is_wrapped:
            inner: dict[str, Any] = {"name": name, "input": call.arguments.decode("utf-8", "replace")}
            written = {"id": identifier, "type": "custom", "custom": inner}
        else:
            inner = {"name": name, "arguments": self._arguments(call, is_wrapped)}
            written = {"id": identifier, "type": "function", "function": inner}
        translate_block_fields(block.vendor_fields, written, path, self._losses)
        return written

    def _call_id(self, given: str) -> str:
        return given if self._is_own else call_id(given)

    def _arguments(self, call: ChatToolCall, is_wrapped: bool) -> str:
        text = call.arguments.decode("utf-8", "replace")
        if is_wrapped:
            return msgspec.json.encode({"input": text}).decode()
        if self._is_own:
            return text
        if self._source is Dialect.ANTHROPIC and text:
            try:
                return msgspec.json.format(text, indent=-1)
            except (msgspec.DecodeError, RecursionError):
                return text
        return text or "{}"

    # Parts.

    def _finish(self, path: str, message: ChatMessage, written: dict[str, Any]) -> None:
        if message.name and self._is_own:
            written["name"] = message.name
        elif message.name:
            self._losses.note(f"{path}.name")
        translate_message_fields(message.vendor_fields, written, path, self._losses)

    def _parts(self, blocks: list[ChatBlock], path: str) -> list[Part]:
        parts = [
            self._part(block, block.source_path or f"{path}.blocks[{i}]") for i, block in enumerate(blocks)
        ]
        return parts if self._is_own else [part for part in parts if part.get("text") != ""]

    def _part(self, block: ChatBlock, path: str) -> Part:
        kind = block.WhichOneof("block")
        if kind == "text":
            part: Part = {"type": "text", "text": block.text}
        elif kind == "refusal":
            part = {"type": "refusal", "refusal": block.refusal}
        elif kind == "media":
            part = self._media(block.media, path)
        elif kind == "vendor_block" and block.vendor_block.dialect == OWN:
            return msgspec.json.decode(block.vendor_block.json, type=dict[str, msgspec.Raw])
        elif kind == "vendor_block":
            self._losses.refuse(path, f"{block.vendor_block.name} is known only to another provider")
        else:
            self._losses.refuse(path, "cannot stand here at this provider")
        if block.citations:
            self._losses.note(f"{path}.citations")
        if block.HasField("cache_hint"):
            self._mark(block, part, path)
        translate_block_fields(block.vendor_fields, part, path, self._losses)
        return part

    def _mark(self, block: ChatBlock, part: Part, path: str) -> None:
        if not self._marks_left:
            self._losses.note(f"{path}.cache_control")
            return
        self._marks_left -= 1
        part["prompt_cache_breakpoint"] = {"mode": "explicit"}
        if block.cache_hint.ttl in ("30m", "12h") or (self._is_own and block.cache_hint.ttl):
            part["prompt_cache_breakpoint"]["ttl"] = block.cache_hint.ttl

    def _media(self, media: ChatMedia, path: str) -> Part:
        if media.WhichOneof("source") == "file_id" and not self._is_own:
            self._losses.refuse(path, "a file that another provider holds cannot be sent")
        if media.kind == chat_pb2.CHAT_MEDIA_KIND_AUDIO:
            return self._audio(media, path)
        if media.kind == chat_pb2.CHAT_MEDIA_KIND_DOCUMENT:
            return self._document(media, path)
        image = {"url": media.url or _data_url(media)}
        if media.detail:
            image["detail"] = media.detail
        return {"type": "image_url", "image_url": image}

    def _document(self, media: ChatMedia, path: str) -> Part:
        source = media.WhichOneof("source")
        if source == "text":
            self._losses.warn(path, "a document of plain text was sent as a text")
            return {"type": "text", "text": f"{media.title}\n\n{media.text}".lstrip("\n")}
        if source == "url" and not media.url.startswith("data:"):
            self._losses.refuse(path, "the provider's dialect takes documents as data, not by address")
        file: dict[str, Any] = {}
        if media.title:
            file["filename"] = media.title
        elif not self._is_own:
            # Data without a name is refused.
            file["filename"] = f"document.{_EXTENSIONS.get(media.media_type, 'bin')}"
        if source == "file_id":
            file = {"file_id": media.file_id, **({"filename": media.title} if media.title else {})}
        else:
            file["file_data"] = media.url or _data_url(media)
        if media.detail:
            self._losses.warn(f"{path}.detail", "is not known to the provider's dialect and was left out")
        return {"type": "file", "file": file}

    def _audio(self, media: ChatMedia, path: str) -> Part:
        data = _base64(media)
        if not data:
            self._losses.refuse(path, "sound can be sent to this provider only as data")
        form = _AUDIO_FORMATS.get(media.media_type, media.media_type.partition("/")[2])
        return {"type": "input_audio", "input_audio": {"data": data, "format": form}}


def _content(parts: list[Part]) -> Any:
    """Returns a string for a lone plain text, else the parts."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"} and isinstance(parts[0]["text"], str):
        return parts[0]["text"]
    return parts if parts else ""


def _as_parts(content: Any) -> list[Part]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())


def _joined(parts: list[Part]) -> Any:
    """Returns the texts of an answer as one, since many servers take nothing else there."""
    if all(part.keys() == {"type", "text"} for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _merge(last: dict[str, Any], written: dict[str, Any]) -> None:
    """Makes one message of two that follow each other."""
    if written["content"] is not None:
        if isinstance(last["content"], str) and isinstance(written["content"], str):
            last["content"] = "\n\n".join(filter(None, (last["content"], written["content"])))
        else:
            last["content"] = [*_as_parts(last["content"]), *_as_parts(written["content"])] or None
    for name, value in written.items():
        if name == "tool_calls":
            last.setdefault("tool_calls", []).extend(value)
        elif name == "reasoning_content":
            last[name] = "\n\n".join(filter(None, (last.get(name, ""), value)))
        elif name != "content":
            last[name] = value


def _id_path(message: ChatMessage, path: str) -> str:
    if message.role != chat_pb2.CHAT_ROLE_TOOL:
        return f"{path}.tool_use_id"
    place = message.source_path or path
    return f"{place}.call_id" if place.startswith("input") else f"{place}.tool_call_id"


def _base64(media: ChatMedia) -> str:
    return media.base64_data or base64.b64encode(media.data).decode()


def _data_url(media: ChatMedia) -> str:
    data = _base64(media)
    return f"data:{media.media_type};base64,{data}" if media.media_type else data
