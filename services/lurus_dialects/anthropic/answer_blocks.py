"""One block of an answer while it is being read.

Every kind has `begin`, `read` and `end`, which return the hub's events; None
stands for a block over the limit.
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatBlockEnd,
    ChatBlockStart,
    ChatThinking,
    ChatToolCall,
    StreamChatResponse,
)
from lurus.usage.v1 import usage_pb2
from lurus_dialects import loose
from lurus_dialects.anthropic.block_reader import read_citation
from lurus_dialects.anthropic.members import vendor_field
from lurus_dialects.surrogates import Joiner, joined
from lurus_dialects.tools import unwrapped
from lurus_dialects.translation import ToolName

# Of what is kept of one block until its end.
MAX_BLOCK_BYTES: Final = 8 * 1024 * 1024

Events = list[StreamChatResponse]


class Delta(msgspec.Struct, gc=False):
    """What a `content_block_delta` may bring."""

    type: str | None = None
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None
    content: str | None = None
    citation: msgspec.Raw = loose.ABSENT


class _Start(msgspec.Struct, gc=False):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = loose.ABSENT
    citations: msgspec.Raw = loose.ABSENT


_START: Final = msgspec.json.Decoder(_Start)
_DELTA: Final = msgspec.json.Decoder(Delta)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


class OpenBlock(Protocol):
    """A block that was begun."""

    # False if the block has no place among those of the hub.
    is_indexed: bool

    def begin(self) -> Events | None:
        """Returns the start, and what it brought with it."""
        ...

    def read(self, delta: Delta) -> Events | None:
        """Returns what a delta says."""
        ...

    def end(self) -> Events:
        """Returns the end, after all that was held."""
        ...


def open_block(raw: msgspec.Raw, index: int, tool_names: Mapping[str, ToolName]) -> OpenBlock:
    """Returns a reader for the block that `content_block` begins."""
    start = _decoded(_START, _Start, raw)
    if start.type == "text":
        return TextBlock(index, start)
    if start.type == "thinking" or start.type == "redacted_thinking":
        return ThinkingBlock(index, start, raw)
    if start.type == "tool_use":
        return ToolBlock(index, start, tool_names)
    return VendorBlock(start.type or "block", raw)


def read_delta(raw: msgspec.Raw) -> Delta:
    """Returns what fits of a delta, however odd it is."""
    delta: Delta = _decoded(_DELTA, Delta, raw)
    return delta


def read_fields(raw: msgspec.Raw | bytes) -> dict[str, msgspec.Raw]:
    """Returns the members of an object; none if it is another value."""
    try:
        return _FIELDS.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = loose.decode(bytes(raw))
    if not isinstance(value, dict):
        return {}
    return {name: msgspec.Raw(loose.compact(item)) for name, item in value.items()}


class TextBlock:
    """Text with its sources."""

    is_indexed = True

    def __init__(self, index: int, start: _Start) -> None:
        self._index = index
        self._start = start
        self._joiner = Joiner()

    def begin(self) -> Events:
        """Returns the start and the text and sources that came with it."""
        start = ChatBlockStart(kind=chat_pb2.CHAT_BLOCK_KIND_TEXT)
        events = [StreamChatResponse(block_start=start, block_index=self._index)]
        events += self._text(self._start.text or "")
        for raw in _items(self._start.citations):
            events += self._citation(raw)
        return events

    def read(self, delta: Delta) -> Events:
        """Returns the text or the source that a delta brings."""
        if delta.type == "text_delta":
            return self._text(delta.text or "")
        if delta.type == "citations_delta" and delta.citation:
            return self._citation(delta.citation)
        return _unknown(delta)

    def end(self) -> Events:
        """Returns the end."""
        events = self._text(self._joiner.finish())
        return [*events, StreamChatResponse(block_end=ChatBlockEnd(), block_index=self._index)]

    def _text(self, text: str) -> Events:
        text = self._joiner.feed(text)
        return [StreamChatResponse(text_delta=text, block_index=self._index)] if text else []

    def _citation(self, raw: msgspec.Raw) -> Events:
        return [StreamChatResponse(citation=read_citation(raw), block_index=self._index)]


class ThinkingBlock:
    """Thinking, which its provider wants back exactly as it was."""

    is_indexed = True

    def __init__(self, index: int, start: _Start, raw: msgspec.Raw) -> None:
        self._index = index
        self._start = start
        self._raw = bytes(raw)
        self._joiner = Joiner()
        self._texts: list[str] = []
        self._signatures = [start.signature or ""]
        self._size = 0

    def begin(self) -> Events:
        """Returns the start and the thinking that came with it."""
        start = ChatBlockStart(kind=chat_pb2.CHAT_BLOCK_KIND_THINKING)
        event = StreamChatResponse(block_start=start, block_index=self._index)
        return [event, *self._thinking(self._start.thinking or "")]

    def read(self, delta: Delta) -> Events | None:
        """Returns the thinking that a delta brings; a signature is kept."""
        self._size += len(delta.thinking or "") + len(delta.signature or "")
        if self._size > MAX_BLOCK_BYTES:
            return None
        if delta.type == "thinking_delta":
            return self._thinking(delta.thinking or "")
        if delta.type == "signature_delta":
            self._signatures.append(delta.signature or "")
            return []
        return _unknown(delta)

    def end(self) -> Events:
        """Returns the whole block for its provider, and the end."""
        events = self._thinking(self._joiner.finish())
        is_redacted = self._start.type == "redacted_thinking"
        original = self._raw if is_redacted else self._whole()
        seal = ChatThinking(original=original, dialect=usage_pb2.DIALECT_ANTHROPIC, is_redacted=is_redacted)
        return [
            *events,
            StreamChatResponse(thinking_seal=seal, block_index=self._index),
            StreamChatResponse(block_end=ChatBlockEnd(), block_index=self._index),
        ]

    def _whole(self) -> bytes:
        fields: dict[str, Any] = dict(read_fields(self._raw))
        fields["thinking"] = "".join(self._texts)
        fields["signature"] = joined("".join(self._signatures))
        return msgspec.json.encode(fields)

    def _thinking(self, text: str) -> Events:
        text = self._joiner.feed(text)
        if not text:
            return []
        self._texts.append(text)
        return [StreamChatResponse(thinking_delta=text, block_index=self._index)]


class ToolBlock:
    """A call of a tool, under the name that the client gave it."""

    is_indexed = True

    def __init__(self, index: int, start: _Start, tool_names: Mapping[str, ToolName]) -> None:
        name = joined(start.name or "")
        tool = tool_names.get(name) or ToolName(name)
        is_custom = tool.is_wrapped
        self._index = index
        self._is_wrapped = is_custom
        self._call = ChatToolCall(
            tool_call_id=joined(start.id or ""),
            name=tool.name,
            namespace=tool.namespace,
            kind=chat_pb2.CHAT_TOOL_KIND_CUSTOM if is_custom else chat_pb2.CHAT_TOOL_KIND_FUNCTION,
        )
        # Claude sends `{}` here; other servers send the whole input.
        given = bytes(start.input) if loose.is_stated(start.input) else b""
        self._given = given if read_fields(given or b"{}") else b""
        self._joiner = Joiner()
        self._parts: list[str] = []
        self._size = 0

    def begin(self) -> Events:
        """Returns the start, without arguments."""
        start = ChatBlockStart(kind=chat_pb2.CHAT_BLOCK_KIND_TOOL_CALL, tool_call=self._call)
        return [StreamChatResponse(block_start=start, block_index=self._index)]

    def read(self, delta: Delta) -> Events | None:
        """Returns the piece of the arguments that a delta brings; a wrapped text is kept until its end."""
        if delta.type != "input_json_delta":
            return _unknown(delta)
        part = self._joiner.feed(delta.partial_json or "")
        self._size += len(part)
        if self._size > MAX_BLOCK_BYTES:
            return None
        return self._arguments(part)

    def end(self) -> Events:
        """Returns the complete call."""
        events = self._arguments(self._joiner.finish())
        if not self._parts and self._given:
            events += self._arguments(self._given.decode("utf-8", "replace"))
        arguments = "".join(self._parts)
        if self._is_wrapped:
            arguments = unwrapped(arguments)
            if arguments:
                events.append(StreamChatResponse(arguments_delta=arguments, block_index=self._index))
        elif not arguments:
            arguments = "{}"
        self._call.arguments = arguments.encode()
        return [*events, StreamChatResponse(tool_call=self._call, block_index=self._index)]

    def _arguments(self, part: str) -> Events:
        if not part:
            return []
        self._parts.append(part)
        if self._is_wrapped:
            return []
        return [StreamChatResponse(arguments_delta=part, block_index=self._index)]


class VendorBlock:
    """A block that only this dialect knows: its searches, its code, its compaction."""

    is_indexed = False

    def __init__(self, kind: str, raw: msgspec.Raw) -> None:
        self._kind = joined(kind)
        self._raw = bytes(raw)
        self._input: list[str] = []
        self._content: list[str] = []
        self._size = 0

    def begin(self) -> Events:
        """Returns nothing: the block is told of when it is whole."""
        return []

    def read(self, delta: Delta) -> Events | None:
        """Keeps a piece of the block."""
        self._size += len(delta.partial_json or "") + len(delta.content or "")
        if self._size > MAX_BLOCK_BYTES:
            return None
        if delta.type == "input_json_delta":
            self._input.append(delta.partial_json or "")
        elif delta.type == "compaction_delta":
            self._content.append(delta.content or "")
        else:
            return _unknown(delta)
        return []

    def end(self) -> Events:
        """Returns the whole block."""
        return [StreamChatResponse(vendor_event=vendor_field(self._kind, self._whole()))]

    def _whole(self) -> bytes:
        given, content = joined("".join(self._input)), joined("".join(self._content))
        if not given and not content:
            return self._raw
        fields: dict[str, Any] = dict(read_fields(self._raw))
        if content:
            fields["content"] = content
        if given:
            is_whole = loose.decode(given.encode()) is not None
            fields["input"] = msgspec.Raw(given.encode()) if is_whole else {"raw_arguments": given}
        return msgspec.json.encode(fields)


def _unknown(delta: Delta) -> Events:
    kind = joined(delta.type or "")
    return [StreamChatResponse(vendor_event=vendor_field(f"delta.{kind}", msgspec.json.encode(kind)))]


def _items(raw: msgspec.Raw) -> list[msgspec.Raw]:
    try:
        return _LIST.decode(raw) if loose.is_stated(raw) else []
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return []


def _decoded(decoder: Any, kind: type[Any], raw: msgspec.Raw) -> Any:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = loose.decode(bytes(raw))
        return loose.fit(kind, value) if isinstance(value, dict) else kind()
