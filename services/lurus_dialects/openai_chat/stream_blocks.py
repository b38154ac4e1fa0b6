"""The blocks of an answer of this dialect, which says neither where one begins nor where it ends."""

from collections.abc import Mapping
from typing import Final

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
from lurus_dialects.surrogates import Joiner, joined
from lurus_dialects.tools import call_id, unwrapped
from lurus_dialects.translation import ToolName

# Of what is kept of one block until its end.
MAX_BLOCK_BYTES: Final = 8 * 1024 * 1024
TEXT: Final = chat_pb2.CHAT_BLOCK_KIND_TEXT
REFUSAL: Final = chat_pb2.CHAT_BLOCK_KIND_REFUSAL
THINKING: Final = chat_pb2.CHAT_BLOCK_KIND_THINKING

Events = list[StreamChatResponse]


class TooLarge(Exception):
    """A block is over the limit."""


class WordsBlock:
    """Text, a refusal or thinking."""

    __slots__ = ("_joiner", "_size", "_thoughts", "index", "kind")

    def __init__(self, kind: chat_pb2.ChatBlockKind.ValueType, index: int) -> None:
        self.kind = kind
        self.index = index
        self._joiner = Joiner()
        self._thoughts: list[str] = []
        self._size = 0

    def begin(self) -> StreamChatResponse:
        """Returns the start."""
        return StreamChatResponse(block_start=ChatBlockStart(kind=self.kind), block_index=self.index)

    def add(self, text: str) -> Events:
        """Returns what goes on."""
        text = self._joiner.feed(text)
        if not text:
            return []
        if self.kind != THINKING:
            return [StreamChatResponse(text_delta=text, block_index=self.index)]
        self._size += len(text)
        if self._size > MAX_BLOCK_BYTES:
            raise TooLarge
        self._thoughts.append(text)
        return [StreamChatResponse(thinking_delta=text, block_index=self.index)]

    def end(self) -> Events:
        """Returns what was held, the thinking as its provider wants it back, and the end."""
        events = self.add(self._joiner.finish())
        if self.kind == THINKING:
            original = msgspec.json.encode({"reasoning_content": "".join(self._thoughts)})
            seal = ChatThinking(original=original, dialect=usage_pb2.DIALECT_OPENAI_CHAT)
            events.append(StreamChatResponse(thinking_seal=seal, block_index=self.index))
        return [*events, StreamChatResponse(block_end=ChatBlockEnd(), block_index=self.index)]


class CallBlock:
    """A call of a tool. It begins when its name is known, whatever came before."""

    def __init__(self, fallback_id: str, is_custom: bool, tool_names: Mapping[str, ToolName]) -> None:
        self.given_id = ""
        self.name = ""
        self._fallback_id = fallback_id
        self._is_custom = is_custom
        self._tool_names = tool_names
        self._joiner = Joiner()
        self._parts: list[str] = []
        self._size = 0
        self._index = -1
        self._is_wrapped = False
        self._call = ChatToolCall()
        self.has_ended = False

    @property
    def has_begun(self) -> bool:
        """True once the start was told."""
        return self._index >= 0

    @property
    def is_complete(self) -> bool:
        """True if the arguments are a whole JSON object; a custom tool's text has no such end."""
        return not self._is_custom and isinstance(loose.decode("".join(self._parts).encode()), dict)

    @property
    def is_cut(self) -> bool:
        """True if the arguments were begun and not completed."""
        return bool(self._parts) and not self.is_complete

    def begin(self, index: int) -> Events:
        """Returns the start, under the name that the client gave the tool, and the arguments so far."""
        name = joined(self.name)
        tool = self._tool_names.get(name) or ToolName(name)
        self._index, self._is_wrapped = index, tool.is_wrapped
        is_custom = self._is_custom or tool.is_wrapped
        self._call = ChatToolCall(
            tool_call_id=joined(self.given_id) or call_id(self._fallback_id),
            name=tool.name,
            namespace=tool.namespace,
            kind=chat_pb2.CHAT_TOOL_KIND_CUSTOM if is_custom else chat_pb2.CHAT_TOOL_KIND_FUNCTION,
        )
        start = ChatBlockStart(kind=chat_pb2.CHAT_BLOCK_KIND_TOOL_CALL, tool_call=self._call)
        return [StreamChatResponse(block_start=start, block_index=index), *self._told("".join(self._parts))]

    def add(self, arguments: str) -> Events:
        """Returns the piece of the arguments; of a wrapped text and before the start, nothing yet."""
        if self.has_ended:
            return []
        part = self._joiner.feed(arguments)
        if not part:
            return []
        self._size += len(part)
        if self._size > MAX_BLOCK_BYTES:
            raise TooLarge
        self._parts.append(part)
        return self._told(part) if self.has_begun else []

    def end(self) -> Events:
        """Returns the complete call."""
        events = self.add(self._joiner.finish())
        self.has_ended = True
        arguments = "".join(self._parts)
        if self._is_wrapped:
            arguments = unwrapped(arguments)
            if arguments:
                events.append(StreamChatResponse(arguments_delta=arguments, block_index=self._index))
        elif not arguments and not self._is_custom:
            arguments = "{}"
        self._call.arguments = arguments.encode()
        return [*events, StreamChatResponse(tool_call=self._call, block_index=self._index)]

    def _told(self, part: str) -> Events:
        if not part or self._is_wrapped:
            return []
        return [StreamChatResponse(arguments_delta=part, block_index=self._index)]
