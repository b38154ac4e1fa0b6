"""Writes one block of a stream.

A part is opened by its first content, so that the index of a block without
any is never used. Its `write` returns None for an event that it does not know.
"""

from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatThinking, ChatToolCall, StreamChatResponse
from lurus.usage.v1 import usage_pb2
from lurus_dialects.anthropic.answer_blocks import read_fields
from lurus_dialects.anthropic.answer_frame import call_input, call_start, sealed
from lurus_dialects.anthropic.block_writer import is_object
from lurus_dialects.translation import Asked

# What is kept of a call's arguments, to tell when they are complete.
MAX_KEPT_BYTES: Final = 8 * 1024 * 1024

_encode: Final = msgspec.json.Encoder().encode
_END: Final = b"}}\n\n"


class TextPart:
    """A block of text."""

    # It may be closed at any time: what comes later goes into another block.
    may_end = True

    def __init__(self, index: int) -> None:
        self.is_open = False
        self.text_bytes = 0
        self._index = index
        self._before = _delta_start(index, b"text_delta", b"text")

    def write(self, event: StreamChatResponse) -> bytes | None:
        """Returns the delta of a text or a source."""
        text = event.text_delta
        if text:
            encoded = _encode(text)
            self.text_bytes += len(encoded)
            if self.is_open:
                return self._before + encoded + _END
            return self._opened() + self._before + encoded + _END
        if event.HasField("citation"):
            return self._citation(event)
        return b"" if event.HasField("text_delta") else None

    def end(self, call: ChatToolCall | None) -> bytes:
        """Returns the end."""
        return _stopped(self._index) if self.is_open else b""

    def _citation(self, event: StreamChatResponse) -> bytes | None:
        original = event.citation.original
        if original.dialect != usage_pb2.DIALECT_ANTHROPIC:
            return None
        delta = {"type": "citations_delta", "citation": msgspec.Raw(original.json)}
        return self._opened() + _delta(self._index, delta)

    def _opened(self) -> bytes:
        if self.is_open:
            return b""
        self.is_open = True
        return _started(self._index, {"type": "text", "text": ""})


class ThinkingPart:
    """A block of thinking, whose signature comes once and last."""

    may_end = False

    def __init__(self, index: int, asked: Asked) -> None:
        self.is_open = False
        self.text_bytes = 0
        self._index = index
        self._asked = asked
        self._seal: ChatThinking | None = None
        self._before = _delta_start(index, b"thinking_delta", b"thinking")

    def write(self, event: StreamChatResponse) -> bytes | None:
        """Returns the delta of a thought; what its provider wants back is kept until the end."""
        text = event.thinking_delta
        if text:
            encoded = _encode(text)
            self.text_bytes += len(encoded)
            return self._opened() + self._before + encoded + _END
        if event.HasField("thinking_seal"):
            self._seal = event.thinking_seal
            return b""
        return b"" if event.HasField("thinking_delta") else None

    def end(self, call: ChatToolCall | None) -> bytes:
        """Returns the signature and the end; nothing if there was no thinking at all."""
        if not self.is_open and self._seal is None:
            return b""
        name, value = sealed(self._seal, self._asked)
        if name == "data" and not self.is_open:
            self.is_open = True
            return _started(self._index, {"type": "redacted_thinking", "data": value}) + _stopped(self._index)
        signature = _delta(self._index, {"type": "signature_delta", "signature": value})
        return self._opened() + signature + _stopped(self._index)

    def _opened(self) -> bytes:
        if self.is_open:
            return b""
        self.is_open = True
        return _started(self._index, {"type": "thinking", "thinking": "", "signature": ""})


class CallPart:
    """A call of a tool; clients take its arguments from the deltas only."""

    is_open = True

    def __init__(self, index: int, call: ChatToolCall, asked: Asked) -> None:
        self.text_bytes = 0
        self.start = _started(index, call_start(call, asked, index))
        self._index = index
        self._is_custom = call.kind == chat_pb2.CHAT_TOOL_KIND_CUSTOM
        self._before = _delta_start(index, b"input_json_delta", b"partial_json")
        self._parts: list[str] = []
        self._checked_count = 0
        self._is_complete = False

    @property
    def may_end(self) -> bool:
        """True once the arguments are a complete object: nothing can follow."""
        if self._is_custom or len(self._parts) == self._checked_count or self.text_bytes > MAX_KEPT_BYTES:
            return self._is_complete
        self._checked_count = len(self._parts)
        if self._parts[-1].rstrip().endswith("}"):
            self._is_complete = is_object("".join(self._parts).encode())
        return self._is_complete

    def write(self, event: StreamChatResponse) -> bytes | None:
        """Returns the delta of the arguments; a custom tool's text is written when it is whole."""
        text = event.arguments_delta
        if not text:
            return b"" if event.HasField("arguments_delta") else None
        if self._is_custom:
            return b""
        encoded = _encode(text)
        self.text_bytes += len(encoded)
        if self.text_bytes <= MAX_KEPT_BYTES:
            self._parts.append(text)
        return self._before + encoded + _END

    def end(self, call: ChatToolCall | None) -> bytes:
        """Returns the arguments that no delta brought, and the end."""
        written = b""
        if call is not None and not self.text_bytes and call.arguments not in (b"", b"{}"):
            given = _encode(call_input(call)) if self._is_custom else call.arguments
            self.text_bytes += len(given)
            written = self._before + _encode(given.decode("utf-8", "replace")) + _END
        return written + _stopped(self._index)


Part = TextPart | ThinkingPart | CallPart


def vendor_block_events(index: int, json: bytes) -> bytes:
    """Returns a whole block that only this dialect knows."""
    fields: dict[str, Any] = dict(read_fields(json))
    given, delta = None, b""
    if fields.get("type") in (msgspec.Raw(b'"server_tool_use"'), msgspec.Raw(b'"mcp_tool_use"')):
        given = fields.get("input")
        fields["input"] = {}
        if given is not None and bytes(given) != b"{}":
            delta = _delta(index, {"type": "input_json_delta", "partial_json": bytes(given).decode()})
    elif fields.get("type") == msgspec.Raw(b'"compaction"') and "content" in fields:
        delta = _delta(index, {"type": "compaction_delta", "content": fields["content"]})
        fields["content"] = None
    return _started(index, fields) + delta + _stopped(index)


def event_bytes(name: str, value: Any) -> bytes:
    """Returns one event."""
    return b"event: " + name.encode() + b"\ndata: " + _encode(value) + b"\n\n"


def _started(index: int, block: dict[str, Any]) -> bytes:
    value = {"type": "content_block_start", "index": index, "content_block": block}
    return event_bytes("content_block_start", value)


def _stopped(index: int) -> bytes:
    return b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % index


def _delta(index: int, delta: dict[str, Any]) -> bytes:
    return event_bytes("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta})


def _delta_start(index: int, kind: bytes, name: bytes) -> bytes:
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
        b'"delta":{"type":"%b","%b":' % (index, kind, name)
    )
