"""Follows the items of a provider's answer and tells them as blocks of the hub.

A provider may state a text in deltas, in a `done` event and in the finished
item; each tells only what the earlier ones left out.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatBlockEnd,
    ChatBlockStart,
    ChatCitation,
    ChatThinking,
    ChatToolCall,
    StreamChatResponse,
)
from lurus.usage.v1 import usage_pb2
from lurus_dialects import loose
from lurus_dialects.openai_responses.members import vendor_field
from lurus_dialects.surrogates import joined
from lurus_dialects.tools import unwrapped
from lurus_dialects.translation import ToolName

MAX_ARGUMENT_CHARACTERS: Final = 8 * 1024 * 1024
_SEPARATOR: Final = "\n\n"
_TEXT: Final = chat_pb2.CHAT_BLOCK_KIND_TEXT
_REFUSAL: Final = chat_pb2.CHAT_BLOCK_KIND_REFUSAL


class TooLarge(Exception):
    """Arguments are over the limit."""


class Item:
    """One item of `output`."""

    def __init__(self, next_block: Callable[[], int], tool_names: Mapping[str, ToolName]) -> None:
        self._next_block = next_block
        self._tool_names = tool_names

    def begin(self, value: dict[str, Any]) -> list[StreamChatResponse]:
        """Returns what the item says when it begins."""
        return []

    def finish(self, value: dict[str, Any], raw: bytes) -> list[StreamChatResponse]:
        """Returns what is left to tell; the item is empty if the provider never finished it."""
        return []


class _Text:
    """A text that comes in pieces, perhaps cut inside a character."""

    __slots__ = ("_half", "length")

    def __init__(self) -> None:
        self.length = 0
        self._half = ""

    def add(self, piece: str) -> str:
        """Returns the characters that `piece` completes."""
        if self._half or not _is_encodable(piece):
            piece = self._half + piece
            self._half = piece[-1] if "\ud800" <= piece[-1] <= "\udbff" else ""
            piece = joined(piece[: len(piece) - len(self._half)])
        self.length += len(piece)
        return piece

    def complete(self, whole: str) -> str:
        """Returns what the pieces left out of the whole text."""
        whole = whole if _is_encodable(whole) else joined(whole)
        left = whole[self.length :]
        if self._half and not left:
            left = "\ufffd"
        self._half = ""
        self.length += len(left)
        return left


def _is_encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Part:
    """A part of a message: one block."""

    __slots__ = ("block", "citation_count", "index", "is_open", "text")

    def __init__(self, index: int, block: int) -> None:
        self.index = index
        self.block = block
        self.text = _Text()
        self.citation_count = 0
        self.is_open = True

    def tell(self, text: str) -> list[StreamChatResponse]:
        """Returns the text as an event; none if it is empty."""
        return [StreamChatResponse(text_delta=text, block_index=self.block)] if text else []


class MessageItem(Item):
    """A message; every part with text in it is a block."""

    def __init__(self, next_block: Callable[[], int], tool_names: Mapping[str, ToolName]) -> None:
        super().__init__(next_block, tool_names)
        self._parts: dict[int, Part] = {}

    def part(self, index: int) -> Part | None:
        """Returns a part that has begun."""
        return self._parts.get(index)

    def add(self, index: int, delta: str, *, is_refusal: bool) -> list[StreamChatResponse]:
        """Returns a piece of a part's text."""
        part = self._parts.get(index)
        if part is None:
            part, events = self._start(index, is_refusal)
            return events + part.tell(part.text.add(delta))
        return part.tell(part.text.add(delta)) if part.is_open else []

    def complete(self, index: int, text: str, *, is_refusal: bool) -> list[StreamChatResponse]:
        """Returns what the deltas of a part left out."""
        events: list[StreamChatResponse] = []
        part = self._parts.get(index)
        if part is None:
            if not text:
                return []
            part, events = self._start(index, is_refusal)
        return events + part.tell(part.text.complete(text)) if part.is_open else []

    def annotate(self, index: int, raw: bytes) -> list[StreamChatResponse]:
        """Returns a source of a part's text."""
        part = self._parts.get(index)
        if part is None or not part.is_open:
            return []
        part.citation_count += 1
        return [StreamChatResponse(citation=_citation(raw), block_index=part.block)]

    def end_part(self, index: int) -> list[StreamChatResponse]:
        """Returns the end of a part's block."""
        part = self._parts.get(index)
        if part is None or not part.is_open:
            return []
        part.is_open = False
        end = StreamChatResponse(block_end=ChatBlockEnd(), block_index=part.block)
        return [*part.tell(part.text.complete("")), end]

    def finish(self, value: dict[str, Any], raw: bytes) -> list[StreamChatResponse]:
        """Returns what was not told of any part."""
        events: list[StreamChatResponse] = []
        for index, content in enumerate(loose.objects_in(value, "content")):
            is_refusal = content.get("type") == "refusal"
            text = loose.text_of(content, "refusal" if is_refusal else "text")
            events += self.complete(index, text, is_refusal=is_refusal)
            part = self._parts.get(index)
            told = part.citation_count if part else 0
            for annotation in loose.objects_in(content, "annotations")[told:]:
                events += self.annotate(index, loose.compact(annotation))
        for index in sorted(self._parts):
            events += self.end_part(index)
        return events

    def _start(self, index: int, is_refusal: bool) -> tuple[Part, list[StreamChatResponse]]:
        part = self._parts[index] = Part(index, self._next_block())
        start = ChatBlockStart(kind=_REFUSAL if is_refusal else _TEXT)
        return part, [StreamChatResponse(block_start=start, block_index=part.block)]


def _citation(raw: bytes) -> ChatCitation:
    value = loose.decode(raw)
    fields = value if isinstance(value, dict) else {}
    kind = joined(loose.text_of(fields, "type")) or "annotation"
    return ChatCitation(
        title=joined(loose.text_of(fields, "title") or loose.text_of(fields, "filename")),
        url=joined(loose.text_of(fields, "url")),
        original=vendor_field(kind, raw),
    )


class ReasoningItem(Item):
    """Reasoning: one block. Its words are the summary, or the content of providers that show that first."""

    def __init__(self, next_block: Callable[[], int], tool_names: Mapping[str, ToolName]) -> None:
        super().__init__(next_block, tool_names)
        self._block = -1
        self._texts: dict[int, _Text] = {}
        self._source = ""

    def begin(self, value: dict[str, Any]) -> list[StreamChatResponse]:
        """Returns the start of the block."""
        return self._start()

    def add_summary(self, index: int, delta: str) -> list[StreamChatResponse]:
        """Returns a piece of the summary."""
        return self._add("summary", index, delta)

    def complete_summary(self, index: int, text: str) -> list[StreamChatResponse]:
        """Returns what the deltas left out of a part of the summary."""
        return self._complete("summary", index, text)

    def add_content(self, index: int, delta: str) -> list[StreamChatResponse]:
        """Returns a piece of the reasoning itself."""
        return self._add("content", index, delta)

    def complete_content(self, index: int, text: str) -> list[StreamChatResponse]:
        """Returns what the deltas left out of the reasoning itself."""
        return self._complete("content", index, text)

    def finish(self, value: dict[str, Any], raw: bytes) -> list[StreamChatResponse]:
        """Returns what was not told, the sealed form and the end."""
        events = self._start()
        for source in ("summary", "content"):
            for index, part in enumerate(loose.objects_in(value, source)):
                events += self._complete(source, index, loose.text_of(part, "text"))
        # Without it the provider takes the item back only if it has stored it.
        if loose.text_of(value, "encrypted_content"):
            seal = ChatThinking(original=raw, dialect=usage_pb2.DIALECT_OPENAI_RESPONSES)
            events.append(StreamChatResponse(thinking_seal=seal, block_index=self._block))
        events.append(StreamChatResponse(block_end=ChatBlockEnd(), block_index=self._block))
        return events

    def _start(self) -> list[StreamChatResponse]:
        if self._block >= 0:
            return []
        self._block = self._next_block()
        start = ChatBlockStart(kind=chat_pb2.CHAT_BLOCK_KIND_THINKING)
        return [StreamChatResponse(block_start=start, block_index=self._block)]

    def _add(self, source: str, index: int, delta: str) -> list[StreamChatResponse]:
        text, events = self._text(source, index)
        return events + self._tell(text.add(delta)) if text else []

    def _complete(self, source: str, index: int, whole: str) -> list[StreamChatResponse]:
        if not whole:
            return []
        text, events = self._text(source, index)
        return events + self._tell(text.complete(whole)) if text else []

    def _text(self, source: str, index: int) -> tuple[_Text | None, list[StreamChatResponse]]:
        """Returns a part's text, and what is told when the part begins."""
        self._source = self._source or source
        if source != self._source:
            return None, []
        text = self._texts.get(index)
        if text is not None:
            return text, []
        events = self._start()
        if self._texts and source == "summary":
            events += self._tell(_SEPARATOR)
        text = self._texts[index] = _Text()
        return text, events

    def _tell(self, text: str) -> list[StreamChatResponse]:
        return [StreamChatResponse(thinking_delta=text, block_index=self._block)] if text else []


class CallItem(Item):
    """A call of a tool: one block."""

    def __init__(self, next_block: Callable[[], int], tool_names: Mapping[str, ToolName]) -> None:
        super().__init__(next_block, tool_names)
        self._block = -1
        self._call = ChatToolCall()
        self._is_wrapped = False
        self._text = _Text()
        self._pieces: list[str] = []
        self._waiting: list[str] = []

    def begin(self, value: dict[str, Any]) -> list[StreamChatResponse]:
        """Returns the start of the block, if the tool's name is known."""
        name = joined(loose.text_of(value, "name"))
        if self._block >= 0 or not name:
            return []
        is_custom = value.get("type") == "custom_tool_call"
        known = self._tool_names.get(name)
        self._is_wrapped = known is not None and known.is_wrapped and not is_custom
        namespace = joined(loose.text_of(value, "namespace"))
        self._call = ChatToolCall(
            tool_call_id=joined(loose.text_of(value, "call_id") or loose.text_of(value, "id")),
            name=known.name if known else name,
            namespace=(known.namespace if known else "") or namespace,
            kind=chat_pb2.CHAT_TOOL_KIND_CUSTOM
            if is_custom or self._is_wrapped
            else chat_pb2.CHAT_TOOL_KIND_FUNCTION,
        )
        self._block = self._next_block()
        start = ChatBlockStart(kind=chat_pb2.CHAT_BLOCK_KIND_TOOL_CALL, tool_call=self._call)
        waiting, self._waiting = "".join(self._waiting), []
        return [StreamChatResponse(block_start=start, block_index=self._block), *self._tell(waiting)]

    def add(self, delta: str) -> list[StreamChatResponse]:
        """Returns a piece of the arguments."""
        return self._take(self._text.add(delta))

    def complete(self, whole: str) -> list[StreamChatResponse]:
        """Returns what the deltas left out of the arguments."""
        return self._take(self._text.complete(whole))

    def finish(self, value: dict[str, Any], raw: bytes) -> list[StreamChatResponse]:
        """Returns what was not told, and the whole call; nothing if no name ever came."""
        events = self.begin(value)
        if self._block < 0:
            return events
        events += self.complete(_arguments(value))
        text = "".join(self._pieces)
        if self._is_wrapped:
            text = unwrapped(text)
            if text:
                events.append(StreamChatResponse(arguments_delta=text, block_index=self._block))
        is_function = self._call.kind == chat_pb2.CHAT_TOOL_KIND_FUNCTION
        self._call.arguments = (text or ("{}" if is_function else "")).encode()
        events.append(StreamChatResponse(tool_call=self._call, block_index=self._block))
        return events

    def _take(self, text: str) -> list[StreamChatResponse]:
        if not text:
            return []
        if self._text.length > MAX_ARGUMENT_CHARACTERS:
            raise TooLarge
        self._pieces.append(text)
        if self._block < 0:
            self._waiting.append(text)
            return []
        return self._tell(text)

    def _tell(self, text: str) -> list[StreamChatResponse]:
        if not text or self._is_wrapped:
            return []
        return [StreamChatResponse(arguments_delta=text, block_index=self._block)]


def _arguments(value: dict[str, Any]) -> str:
    """Returns the arguments of a finished item; servers that send an object mean its JSON."""
    for name in ("arguments", "input"):
        given = value.get(name)
        if isinstance(given, dict | list):
            return loose.compact(given).decode()
        if isinstance(given, str):
            return given
    return ""


class VendorItem(Item):
    """An item that only this dialect knows."""

    def finish(self, value: dict[str, Any], raw: bytes) -> list[StreamChatResponse]:
        """Returns the whole item."""
        kind = joined(loose.text_of(value, "type"))
        return [StreamChatResponse(vendor_event=vendor_field(kind, raw))] if raw else []
