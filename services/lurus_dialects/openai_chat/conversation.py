"""Makes messages of this dialect out of the hub's.

The dialect wants one message of the model before its tools' results, each
result in a message of its own directly behind the calls, and media only from
users. What stands between calls and results waits until these are complete.
"""

from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlock, ChatMessage, ChatThinking, ChatToolCall, StreamChatRequest
from lurus_dialects.dialect import Dialect
from lurus_dialects.openai_chat.part_writer import Part, PartWriter, is_plain_text, simple, texts_of
from lurus_dialects.openai_chat.tool_writer import ToolWriter
from lurus_dialects.openai_chat.vendor_fields import OWN, translate_block_fields, translate_message_fields
from lurus_dialects.tools import call_id
from lurus_dialects.translation import Losses, Target

ATTRIBUTION: Final = "x-anthropic-billing-header:"
NO_OUTPUT: Final = "[no tool output recorded]"
TOOL_ERROR: Final = "[tool error] "
ATTACHMENT: Final = "[attachment of tool result {}]"
ATTACHED: Final = "[see the attachment below]"
_SYSTEM: Final = chat_pb2.CHAT_ROLE_SYSTEM
_DEVELOPER: Final = chat_pb2.CHAT_ROLE_DEVELOPER
_ASSISTANT: Final = chat_pb2.CHAT_ROLE_ASSISTANT
_CUSTOM: Final = chat_pb2.CHAT_TOOL_KIND_CUSTOM
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])

Message = dict[str, Any]


class Conversation:
    """The messages of a request.

    Attributes:
        messages: in order, ready to be encoded.
    """

    def __init__(
        self,
        request: StreamChatRequest,
        source: Dialect | None,
        target: Target,
        tools: ToolWriter,
        losses: Losses,
    ) -> None:
        self.messages: list[Message | msgspec.Raw] = []
        self._source = source
        self._is_own = source is Dialect.OPENAI_CHAT
        self._target = target
        self._quirks = target.quirks
        self._tools = tools
        self._parts = PartWriter(source, target, losses)
        self._losses = losses
        # Calls of the last message of the model that have no result yet, by id, with their paths.
        self._unanswered: dict[str, str] = {}
        # What stood between calls and their results.
        self._held: list[Message | msgspec.Raw] = []
        # A user's message that holds only rules, which the user's next words join.
        self._rules_turn: Message | None = None
        self._build(request)

    def _build(self, request: StreamChatRequest) -> None:
        is_leading = True
        for i, message in enumerate(request.messages):
            path = message.source_path or f"messages[{i}]"
            is_rule = message.role in (_SYSTEM, _DEVELOPER)
            is_leading = is_leading and is_rule
            if self._is_whole(message):
                self._add(self._parts.vendor_block(message.blocks[0], path))
            elif is_rule:
                self._add_rules(message, path, is_leading)
            elif message.role == _ASSISTANT:
                self._add_answer(message, path)
            else:
                self._add_turn(message, path)
        self._settle()
        self._check_end(request)

    def _check_end(self, request: StreamChatRequest) -> None:
        if not self.messages:
            self._losses.refuse("messages", "the provider needs at least one message with content")
        last = self.messages[-1]
        if isinstance(last, dict) and last["role"] == "assistant" and not self._is_own:
            at = len(request.messages) - 1
            path = request.messages[at].source_path or f"messages[{at}]"
            self._losses.warn(path, "an answer that is begun may not be continued")

    def _is_whole(self, message: ChatMessage) -> bool:
        """True for a message that only one dialect knows, such as the result of a legacy call."""
        if len(message.blocks) != 1 or message.blocks[0].WhichOneof("block") != "vendor_block":
            return False
        return bool(message.source_path) and message.blocks[0].source_path == message.source_path

    # Where messages go

    def _add(self, message: Message | msgspec.Raw) -> None:
        self._rules_turn = None
        (self._held if self._unanswered and not self._is_own else self.messages).append(message)

    def _settle(self) -> None:
        """Ends the time for results: every call gets one, and what has waited follows."""
        if self._is_own:
            return
        for identifier, path in self._unanswered.items():
            self._losses.warn(path, f"the call has no result and was given {NO_OUTPUT!r}")
            content = TOOL_ERROR + NO_OUTPUT
            self.messages.append({"role": "tool", "tool_call_id": identifier, "content": content})
        self._unanswered.clear()
        self._release()

    def _release(self) -> None:
        self.messages.extend(self._held)
        self._held.clear()

    # Rules

    def _add_rules(self, message: ChatMessage, path: str, is_leading: bool) -> None:
        parts = self._rules(message, path)
        if not parts and not self._is_own:
            return
        if is_leading or self._quirks.has_mid_system or self._is_own:
            self._add_rules_message(message, path, parts, is_leading)
            return
        self._losses.warn(path, "rules in mid-conversation went into a user's turn")
        tagged: list[Part] = [{"type": "text", "text": f"<system>{text}</system>"} for text in _texts(parts)]
        self._add_to_user(tagged, is_rules=True)

    def _add_rules_message(
        self, message: ChatMessage, path: str, parts: list[Part], is_leading: bool
    ) -> None:
        role = self._rules_role(message)
        last = self.messages[-1] if self.messages else None
        if is_leading and not self._is_own and not self._quirks.has_mid_system and isinstance(last, dict):
            # Templates of such models want one message of rules, at the begin.
            if last["role"] == role and "name" not in last:
                last["content"] = [*_as_parts(last["content"]), *parts]
                return
        self._add(self._finished({"role": role, "content": self._content(message, parts)}, message, path))

    def _rules_role(self, message: ChatMessage) -> str:
        # Anthropic's rules are the program's, not the provider's.
        is_developer = message.role == _DEVELOPER or self._source is Dialect.ANTHROPIC
        return "developer" if is_developer and self._quirks.has_developer_role else "system"

    def _rules(self, message: ChatMessage, path: str) -> list[Part]:
        parts: list[Part] = []
        for i, block in enumerate(message.blocks):
            block_path = block.source_path or f"{path}.blocks[{i}]"
            is_text = block.WhichOneof("block") in ("text", "refusal")
            if not is_text and not self._is_own:
                self._losses.refuse(block_path, "the provider takes rules as text only")
            if i == 0 and path.startswith("system") and block.text.startswith(ATTRIBUTION):
                self._losses.note(block_path)
            else:
                parts.append(self._parts.write(block, block_path))
        return parts

    # Users and tools

    def _add_turn(self, message: ChatMessage, path: str) -> None:
        parts: list[Part] = []
        has_results = False
        for i, block in enumerate(message.blocks):
            block_path = block.source_path or f"{path}.blocks[{i}]"
            if block.HasField("tool_result"):
                has_results = True
                self._add_result(block, message, path, block_path)
            elif not block.HasField("thinking"):
                parts.append(self._parts.write(block, block_path))
            else:
                self._losses.note(block_path)
        if parts or (self._is_own and not has_results):
            self._add_user(message, path, parts)
        elif message.vendor_fields and not has_results:
            translate_message_fields(message.vendor_fields, {}, path, self._losses)

    def _add_user(self, message: ChatMessage, path: str, parts: list[Part]) -> None:
        if self._is_own or message.name or self._rules_turn is None:
            turn = {"role": "user", "content": self._content(message, parts)}
            self._add(self._finished(turn, message, path))
        else:
            self._rules_turn["content"] = [*_as_parts(self._rules_turn["content"]), *parts]
            self._rules_turn = None

    def _add_to_user(self, parts: list[Part], *, is_rules: bool) -> None:
        """Adds parts to the user's last words if nothing stands between, else as a message."""
        sink = self._held if self._unanswered else self.messages
        last = sink[-1] if sink else None
        if isinstance(last, dict) and last["role"] == "user":
            last["content"] = [*_as_parts(last["content"]), *parts]
            return
        turn: Message = {"role": "user", "content": simple(parts)}
        self._add(turn)
        self._rules_turn = turn if is_rules else None

    def _add_result(self, block: ChatBlock, message: ChatMessage, path: str, block_path: str) -> None:
        result = block.tool_result
        given = result.tool_call_id
        identifier = given if self._is_own else call_id(given)
        if not self._is_own and identifier not in self._unanswered:
            place = _id_path(message, path, block_path)
            self._losses.refuse(place, "the turn before has no call of this id without a result")
        texts, attachments = self._result_parts(block, block_path)
        if result.is_error:
            self._losses.note(f"{block_path}.is_error")
            _prefix(texts)
        content: Any = simple(texts)
        if not texts:
            content = ATTACHED if attachments else ""
        elif self._is_own and len(texts) == 1 and _is_item(result.blocks[0]):
            content = texts
        written: Message = {"role": "tool", "tool_call_id": identifier, "content": content}
        if message.role == chat_pb2.CHAT_ROLE_TOOL:
            self._finished(written, message, path)
        translate_block_fields(block.vendor_fields, written, block_path, self._losses)
        self.messages.append(written)
        self._rules_turn = None
        self._unanswered.pop(identifier, None)
        if attachments:
            heading: Part = {"type": "text", "text": ATTACHMENT.format(identifier)}
            self._attach([heading, *attachments])
        if not self._unanswered:
            self._release()

    def _attach(self, parts: list[Part]) -> None:
        """Adds attachments to what waits for the end of the results."""
        last = self._held[-1] if self._held else None
        if isinstance(last, dict) and last["role"] == "user":
            last["content"] = [*_as_parts(last["content"]), *parts]
        else:
            self._held.append({"role": "user", "content": parts})

    def _result_parts(self, block: ChatBlock, path: str) -> tuple[list[Part], list[Part]]:
        """Returns what a tool's message holds, and what must follow as the user's."""
        texts: list[Part] = []
        attachments: list[Part] = []
        for i, inner in enumerate(block.tool_result.blocks):
            inner_path = inner.source_path or f"{path}.blocks[{i}]"
            part = self._parts.write(inner, inner_path)
            is_text = isinstance(part, dict) and part["type"] == "text"
            if is_text or self._quirks.has_tool_parts or self._is_own:
                texts.append(part)
            else:
                self._losses.warn(inner_path, "a tool's medium was sent as the user's")
                attachments.append(part)
        return texts, attachments

    # The model

    def _add_answer(self, message: ChatMessage, path: str) -> None:
        turn = self._open_answer()
        is_new = turn is None
        written: Message = turn if turn is not None else {"role": "assistant", "content": None}
        before = len(written)
        parts: list[Part] = []
        for i, block in enumerate(message.blocks):
            block_path = block.source_path or f"{path}.blocks[{i}]"
            self._add_to_answer(written, parts, block, block_path)
        if self._is_own:
            written["content"] = self._content(message, parts) if parts else None
        elif parts:
            self._add_words(written, parts)
        self._finished(written, message, path)
        has_words = written["content"] is not None or len(written) > before
        if is_new and (has_words or self._is_own):
            self._settle()
            self._rules_turn = None
            self.messages.append(written)
        self._note_calls(written, message, path)

    def _open_answer(self) -> Message | None:
        """Returns the message of the model that the next words of it join."""
        last = self.messages[-1] if self.messages else None
        is_open = isinstance(last, dict) and last["role"] == "assistant"
        return last if is_open and not self._held and not self._is_own else None  # type: ignore[return-value]

    def _add_words(self, written: Message, parts: list[Part]) -> None:
        before = written["content"]
        # All words stand before all calls, whatever their order was.
        words = texts_of(parts)
        written["content"] = f"{before}\n\n{words}" if before and words else before or words or None

    def _add_to_answer(self, written: Message, parts: list[Part], block: ChatBlock, path: str) -> None:
        kind = block.WhichOneof("block")
        if kind == "tool_call":
            written.setdefault("tool_calls", []).append(self._call(block, path))
        elif kind == "thinking":
            self._think(written, block.thinking, path)
        elif kind == "vendor_block":
            self._add_vendor_block(written, parts, block, path)
        elif kind == "refusal" and self._is_own and not path.endswith("]"):
            written["refusal"] = block.refusal
        elif kind in ("text", "refusal") or (kind == "media" and self._is_own):
            parts.append(self._parts.write(block, path))
        elif kind is not None:
            self._losses.refuse(path, "the provider's models are not held to have said this")

    def _add_vendor_block(self, written: Message, parts: list[Part], block: ChatBlock, path: str) -> None:
        raw = self._parts.vendor_block(block, path)
        if path.endswith(f".{block.vendor_block.name}"):
            written[block.vendor_block.name] = raw
        elif ".tool_calls[" in path:
            written.setdefault("tool_calls", []).append(raw)
        else:
            parts.append(raw)

    def _think(self, written: Message, thinking: ChatThinking, path: str) -> None:
        """Gives thinking back where it is wanted (wire-contract C.3)."""
        is_from_client = thinking.dialect == OWN and not thinking.provider_id
        if not (self._is_own and is_from_client) and not self._quirks.wants_reasoning_back:
            self._losses.note(path)
            return
        members = _members(thinking.original) if thinking.dialect == OWN else {}
        if members:
            written.update({name: value for name, value in members.items() if name not in written})
        elif thinking.text:
            before = written.get("reasoning_content")
            is_text = isinstance(before, str)
            written["reasoning_content"] = f"{before}\n\n{thinking.text}" if is_text else thinking.text
        else:
            self._losses.note(path)

    def _call(self, block: ChatBlock, path: str) -> dict[str, Any]:
        call = block.tool_call
        identifier = call.tool_call_id if self._is_own else call_id(call.tool_call_id)
        name = self._tools.name(call.name, call.namespace)
        text = call.arguments.decode("utf-8", "replace")
        if call.kind == _CUSTOM and self._tools.has_custom_tools:
            written: dict[str, Any] = {"id": identifier, "type": "custom"}
            written["custom"] = {"name": name, "input": text}
        else:
            arguments = self._arguments(call, text)
            written = {"id": identifier, "type": "function"}
            written["function"] = {"name": name, "arguments": arguments}
        if block.HasField("cache_hint"):
            self._losses.note(f"{path}.cache_control")
        if block.vendor_fields:
            translate_block_fields(block.vendor_fields, written, path, self._losses)
        return written

    def _arguments(self, call: ChatToolCall, text: str) -> str:
        if call.kind == _CUSTOM:
            return msgspec.json.encode({"input": text}).decode()
        if self._is_own or (text and self._source is Dialect.OPENAI_RESPONSES):
            return text
        try:
            return msgspec.json.format(text, indent=-1) if text else "{}"
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return text

    def _note_calls(self, written: Message, message: ChatMessage, path: str) -> None:
        if self._is_own:
            return
        for i, block in enumerate(message.blocks):
            if block.HasField("tool_call"):
                identifier = call_id(block.tool_call.tool_call_id)
                self._unanswered[identifier] = block.source_path or f"{path}.blocks[{i}]"

    # What all messages share

    def _content(self, message: ChatMessage, parts: list[Part]) -> str | list[Part]:
        """Returns a string for a lone text, unless the client itself sent a list."""
        if self._is_own and len(parts) == 1 and _is_item(message.blocks[0]):
            return parts
        return simple(parts)

    def _finished(self, written: Message, message: ChatMessage, path: str) -> Message:
        if message.name:
            written["name"] = message.name
        if message.vendor_fields:
            translate_message_fields(message.vendor_fields, written, path, self._losses)
        return written


def _as_parts(content: Any) -> list[Part]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _texts(parts: list[Part]) -> list[str]:
    return [part["text"] for part in parts if isinstance(part, dict)]


def _is_item(block: ChatBlock) -> bool:
    """True if the client wrote a block as an item of a list."""
    return block.source_path.endswith("]")


def _prefix(texts: list[Part]) -> None:
    first = texts[0] if texts else None
    if isinstance(first, dict) and first["type"] == "text":
        first["text"] = TOOL_ERROR + first["text"]
    else:
        texts.insert(0, {"type": "text", "text": TOOL_ERROR.rstrip()})


def _id_path(message: ChatMessage, path: str, block_path: str) -> str:
    if path.startswith("input"):
        return f"{path}.call_id"
    is_of_tool = message.role == chat_pb2.CHAT_ROLE_TOOL or not message.source_path
    return f"{path}.tool_call_id" if is_of_tool else f"{block_path}.tool_use_id"


def _members(original: bytes) -> dict[str, Any]:
    try:
        return dict(_MEMBERS.decode(original))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
