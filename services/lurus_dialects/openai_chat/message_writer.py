"""Writes the hub's messages as those of this dialect.

Here the results of tools are messages of their own that must follow their
calls, and only some servers take rules in mid-conversation.
"""

from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlock, ChatMessage, ChatThinking, ChatToolCall, ChatToolResult
from lurus_dialects import loose
from lurus_dialects.dialect import Dialect
from lurus_dialects.openai_chat.part_writer import Part, PartWriter, as_parts, content_of
from lurus_dialects.openai_chat.tool_writer import ToolWriter
from lurus_dialects.openai_chat.vendor_fields import (
    OWN,
    translate_block_fields,
    translate_message_fields,
)
from lurus_dialects.tools import call_id
from lurus_dialects.translation import ADDITIONAL_TOOLS, Losses, Target

NO_OUTPUT: Final = "[no tool output recorded]"
TOOL_ERROR: Final = "[tool error] "
ATTACHED: Final = "[see the attachment]"
ATTRIBUTION: Final = "x-anthropic-billing-header:"
_RULES: Final = (chat_pb2.CHAT_ROLE_SYSTEM, chat_pb2.CHAT_ROLE_DEVELOPER)
_ASSISTANT: Final = chat_pb2.CHAT_ROLE_ASSISTANT
_CUSTOM: Final = chat_pb2.CHAT_TOOL_KIND_CUSTOM


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
        # Calls of the last answer without a result yet, by id, with their paths.
        self._unanswered: dict[str, str] = {}
        # Messages that came between calls and their results, where none may stand.
        self._waiting: list[dict[str, Any]] = []
        # What a tool returned besides text, and rules, for the next user's turn.
        self._held: list[Part] = []
        self._part_writer = PartWriter(source, target, losses)

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
            written = {"role": self._role_of(message), "content": content_of(parts)}
            self._finish(path, message, written)
            if not (is_leading and self._joins_rules(written)):
                self._add(written)
            return
        self._losses.warn(path, "rules in mid-conversation went into a user's turn")
        self._add_to_user([{**part, "text": f"<system>{part.get('text', '')}</system>"} for part in parts])

    def _joins_rules(self, written: dict[str, Any]) -> bool:
        """Adds rules to those before them, since the templates of many models take one message of rules."""
        last = self._written[-1] if self._written else {}
        is_joined = (
            not self._is_own and not self._quirks.has_mid_system and last.get("role") == written["role"]
        )
        if is_joined:
            last["content"] = content_of([*as_parts(last["content"]), *as_parts(written["content"])])
        return is_joined

    def _add(self, written: dict[str, Any]) -> None:
        """Adds a message; behind calls that have no results yet, it waits for these."""
        (self._waiting if self._unanswered and not self._is_own else self._written).append(written)

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
        last["content"] = content_of([*as_parts(last["content"]), *parts])

    # Users and tools.

    def _add_turn(self, path: str, message: ChatMessage) -> None:
        rest: list[ChatBlock] = []
        for i, block in enumerate(message.blocks):
            if block.HasField("tool_result"):
                self._add_result(block, message, block.source_path or f"{path}.blocks[{i}]")
            elif block.vendor_block.name != ADDITIONAL_TOOLS:
                rest.append(block)
        if not rest and message.blocks:
            return
        if rest and rest[0].vendor_block.name == "function" and self._is_own:
            members = msgspec.json.decode(rest[0].vendor_block.json, type=dict[str, msgspec.Raw])
            self._written.append({**members, "role": "function"})
            return
        held, self._held = self._held, []
        parts = [*held, *self._parts(rest, path)]
        if not parts and not self._is_own:
            return
        written = {"role": "user", "content": content_of(parts)}
        self._finish(path, message, written)
        self._add(written)

    def _add_result(self, block: ChatBlock, message: ChatMessage, path: str) -> None:
        result = block.tool_result
        identifier = self._call_id(result.tool_call_id)
        if not self._is_own and identifier not in self._unanswered:
            why = "the turn before has no call of this id without a result"
            self._losses.refuse(_id_path(message, path), why)
        prefix = TOOL_ERROR if result.is_error else ""
        if prefix:
            self._losses.note(f"{path}.is_error")
        written = {
            "role": "tool",
            "tool_call_id": identifier,
            "content": self._result_content(result, prefix, identifier, path),
        }
        if block.vendor_fields:
            translate_block_fields(block.vendor_fields, written, path, self._losses)
        if message.role == chat_pb2.CHAT_ROLE_TOOL:
            self._finish(message.source_path or path, message, written)
        self._written.append(written)
        self._unanswered.pop(identifier, None)
        if not self._unanswered:
            self._release()

    def _attach(self, identifier: str, blocks: list[tuple[str, ChatBlock]]) -> None:
        """Holds what a result may not contain here, for the next user's turn."""
        self._held.append({"type": "text", "text": f"[attachment of tool result {identifier}]"})
        for path, block in blocks:
            self._losses.warn(path, "went from the tool's result into the next user's turn")
            self._held.append(self._part_writer.write(block, path))

    def _result_content(self, result: ChatToolResult, prefix: str, identifier: str, path: str) -> Any:
        blocks = list(result.blocks)
        if len(blocks) == 1 and _is_plain(blocks[0]):
            return prefix + blocks[0].text
        texts: list[Part] = []
        others: list[tuple[str, ChatBlock]] = []
        has_parts = self._quirks.has_tool_parts or self._is_own
        for i, block in enumerate(blocks):
            block_path = block.source_path or f"{path}.blocks[{i}]"
            if has_parts or block.WhichOneof("block") in ("text", "refusal"):
                texts.append(self._part_writer.write(block, block_path))
            else:
                others.append((block_path, block))
        if others:
            self._attach(identifier, others)
        return self._joined_texts(texts, prefix) if texts or not others else f"{prefix}{ATTACHED}"

    def _joined_texts(self, parts: list[Part], prefix: str) -> Any:
        if parts and prefix and parts[0].get("type") == "text":
            parts[0]["text"] = prefix + parts[0]["text"]
        elif prefix:
            parts.insert(0, {"type": "text", "text": prefix.rstrip()})
        if not self._is_own and all(part.keys() == {"type", "text"} for part in parts):
            return "\n\n".join(part["text"] for part in parts)
        return content_of(parts)

    def _complete_results(self) -> None:
        """Gives every call a result, since one without is refused, and releases what was held."""
        if not self._is_own:
            for identifier, path in self._unanswered.items():
                self._losses.warn(path, f"the call has no result and was given {NO_OUTPUT!r}")
                content = f"{TOOL_ERROR}{NO_OUTPUT}"
                self._written.append({"role": "tool", "tool_call_id": identifier, "content": content})
        self._unanswered.clear()
        self._release()
        if self._held:
            self._written.append({"role": "user", "content": content_of(self._held)})
            self._held = []

    def _release(self) -> None:
        self._written += self._waiting
        self._waiting = []

    # Answers.

    def _add_answer(self, path: str, message: ChatMessage) -> None:
        if not self._is_own and not self._continues_answer():
            self._complete_results()
        written: dict[str, Any] = {"role": "assistant", "content": None}
        parts: list[Part] = []
        for i, block in enumerate(message.blocks):
            self._add_answer_block(written, parts, block, block.source_path or f"{path}.blocks[{i}]")
        if parts:
            written["content"] = content_of(parts) if self._is_own else _joined(parts)
        self._finish(path, message, written)
        if len(written) == 2 and not parts and not self._is_own:
            return
        if self._continues_answer() and not self._is_own:
            _merge(self._written[-1], written)
        else:
            self._written.append(written)

    def _continues_answer(self) -> bool:
        is_open = bool(self._written) and self._written[-1]["role"] == "assistant"
        return is_open and not self._waiting and not self._held

    def _add_answer_block(
        self, written: dict[str, Any], parts: list[Part], block: ChatBlock, path: str
    ) -> None:
        kind = block.WhichOneof("block")
        if kind == "tool_call":
            written.setdefault("tool_calls", []).append(self._call(block, path))
        elif kind == "thinking":
            self._add_thinking(written, block.thinking, path)
        elif kind == "refusal" and path.endswith(".refusal") and self._is_own:
            written["refusal"] = block.refusal
        elif kind == "media" and not self._is_own:
            self._losses.refuse(path, "the provider does not take this for something that a model said")
        elif kind == "vendor_block" and self._is_own and path.endswith(f".{block.vendor_block.name}"):
            written[block.vendor_block.name] = msgspec.Raw(block.vendor_block.json)
        elif kind == "vendor_block" and self._is_own and ".tool_calls[" in path:
            written.setdefault("tool_calls", []).append(msgspec.Raw(block.vendor_block.json))
        elif kind is not None:
            if "tool_calls" in written and not self._is_own:
                self._losses.note(path)
            parts.append(self._part_writer.write(block, path))

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
        name = self._tools.name(call.name, call.namespace)
        is_wrapped = self._tools.is_wrapped(call.kind)
        if call.kind == _CUSTOM and not is_wrapped:
            inner: dict[str, Any] = {"name": name, "input": call.arguments.decode("utf-8", "replace")}
            written = {"id": identifier, "type": "custom", "custom": inner}
        else:
            inner = {"name": name, "arguments": self._arguments(call, is_wrapped)}
            written = {"id": identifier, "type": "function", "function": inner}
        if block.vendor_fields:
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
        if message.name:
            written["name"] = message.name
        if message.vendor_fields:
            has_phase = self._quirks.has_message_phase
            translate_message_fields(message.vendor_fields, written, path, self._losses, has_phase=has_phase)

    def _parts(self, blocks: list[ChatBlock], path: str) -> list[Part]:
        parts = [
            self._part_writer.write(block, block.source_path or f"{path}.blocks[{i}]")
            for i, block in enumerate(blocks)
        ]
        return parts if self._is_own else [part for part in parts if part.get("text") != ""]


def _is_plain(block: ChatBlock) -> bool:
    """True for a text that nothing else is said of."""
    is_text = block.WhichOneof("block") == "text"
    return is_text and not block.vendor_fields and not block.citations and not block.HasField("cache_hint")


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
            last["content"] = [*as_parts(last["content"]), *as_parts(written["content"])] or None
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
