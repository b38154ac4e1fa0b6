"""Writes events of the hub as answers in the shape of Anthropic Messages (wire-contract A.1.5, C.4)."""

from collections.abc import Sequence
from typing import Final

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlockStart, ChatFinish, ChatToolCall, StreamChatResponse
from lurus.usage.v1 import usage_pb2
from lurus_dialects.answer import Answer
from lurus_dialects.anthropic.answer_frame import (
    OF_THE_EVENT,
    final_usage,
    is_vendor_block,
    message_json,
    stop_fields,
)
from lurus_dialects.anthropic.answer_parts import (
    CallPart,
    Part,
    TextPart,
    ThinkingPart,
    event_bytes,
    vendor_block_events,
)
from lurus_dialects.anthropic.body_writer import body_bytes
from lurus_dialects.dialect import Dialect
from lurus_dialects.errors import stream_error
from lurus_dialects.translation import Asked
from lurus_dialects.usage import estimated_tokens

# Of blocks that wait for another one's end.
MAX_WAITING_BYTES: Final = 8 * 1024 * 1024

_PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'
_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_NO_BLOCK: Final = -1
_ENDS: Final = ("block_end", "tool_call")
# Kind of a block whose start is missing, by what it brings.
_IMPLIED_KINDS: Final = {
    "text_delta": chat_pb2.CHAT_BLOCK_KIND_TEXT,
    "citation": chat_pb2.CHAT_BLOCK_KIND_TEXT,
    "thinking_delta": chat_pb2.CHAT_BLOCK_KIND_THINKING,
    "thinking_seal": chat_pb2.CHAT_BLOCK_KIND_THINKING,
}


class StreamWriter:
    """See `translation.AnswerWriter`.

    One block is open at a time. What comes for others waits, in the order in
    which they began: clients take a delta for any other block for a broken
    stream. A text gives way to a newcomer at once and goes on in a new block;
    a call gives way when its arguments are complete, thinking when it is signed.

    Attributes:
        dropped_count: events that this dialect has no words for.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self.is_over = False
        self.dropped_count = 0
        self._is_started = False
        self._next_index = 0
        self._has_calls = False
        self._text_bytes = 0
        self._part: Part | None = None
        self._open_index = _NO_BLOCK
        self._starts: dict[int, ChatBlockStart] = {}
        self._waiting: dict[int, list[StreamChatResponse]] = {}
        self._waiting_bytes = 0

    def write(self, event: StreamChatResponse) -> bytes:
        """Returns whole events of the dialect."""
        if self.is_over:
            return b""
        if self._part is not None and event.block_index == self._open_index:
            written = self._part.write(event)
            if written is not None:
                return written
        return self._write_any(event)

    def heartbeat(self) -> bytes:
        """Returns bytes that keep a silent connection alive."""
        return _PING

    def error(self, reason: str, message: str, request_id: str) -> bytes:
        """Returns the event that ends a stream which cannot be completed."""
        self.is_over = True
        return stream_error(Answer(Dialect.ANTHROPIC), reason, message, request_id)

    def _write_any(self, event: StreamChatResponse) -> bytes:
        kind = event.WhichOneof("event")
        if kind == "error":
            return self._error(event.error.reason, event.error.message)
        written = self._started()
        if kind == "finish":
            return written + self._finished(event.finish)
        if kind == "vendor_event":
            return written + self._vendor_event(event)
        if kind == "block_start":
            self._starts[event.block_index] = event.block_start
            return written + self._queued(event.block_index, event)
        if kind is None or kind in ("start", "usage"):
            return written
        return written + self._block_event(kind, event)

    def _error(self, reason: str, message: str) -> bytes:
        return self.error(reason, message, "req_" + self._asked.response_id.removeprefix("msg_"))

    def _started(self) -> bytes:
        if self._is_started:
            return b""
        self._is_started = True
        usage = {"input_tokens": self._asked.estimated_input_tokens, "output_tokens": 1}
        message = message_json(self._asked, [], usage, {"stop_reason": None, "stop_sequence": None})
        return event_bytes("message_start", {"type": "message_start", "message": message})

    def _block_event(self, kind: str, event: StreamChatResponse) -> bytes:
        index = event.block_index
        if index == self._open_index:
            if kind not in _ENDS:
                self.dropped_count += 1
                return b""
            self._starts.pop(index, None)
            return self._closed(event.tool_call if kind == "tool_call" else None) + self._released()
        if index not in self._starts:
            # Either a late word on a call that is complete, or a block without a start.
            if kind not in _IMPLIED_KINDS:
                return b""
            self._starts[index] = ChatBlockStart(kind=_IMPLIED_KINDS[kind])
        if kind == "block_end" and index not in self._waiting:
            # A text that gave way, and had nothing more to say.
            del self._starts[index]
            return b""
        return self._queued(index, event)

    def _queued(self, index: int, event: StreamChatResponse) -> bytes:
        """Lets an event of a block that is not open wait, and returns what need not wait any longer."""
        self._waiting.setdefault(index, []).append(event)
        self._waiting_bytes += event.ByteSize()
        if self._waiting_bytes > MAX_WAITING_BYTES:
            return self._error("UPSTREAM_FAILED", "the provider's blocks interleave beyond the limit")
        return self._released()

    def _released(self, is_last: bool = False) -> bytes:
        """Returns the blocks that waited, as far as the open one gives way."""
        written = b""
        while self._waiting and (self._part is None or is_last or self._part.may_end):
            written += self._yielded()
            index = next(iter(self._waiting))
            events = self._waiting.pop(index)
            self._waiting_bytes -= sum(event.ByteSize() for event in events)
            written += b"".join([self._replayed(index, event) for event in events])
        return written

    def _yielded(self) -> bytes:
        """Closes the open block for a newcomer."""
        if isinstance(self._part, CallPart):
            # Whatever still comes for it says nothing.
            self._starts.pop(self._open_index, None)
        return self._closed(None)

    def _replayed(self, index: int, event: StreamChatResponse) -> bytes:
        kind = event.WhichOneof("event")
        if kind == "vendor_event":
            self._next_index += 1
            return vendor_block_events(self._next_index - 1, event.vendor_event.json)
        written = self._opened(index) if self._open_index != index else b""
        if kind in _ENDS:
            self._starts.pop(index, None)
            return written + self._closed(event.tool_call if kind == "tool_call" else None)
        if self._part is None or kind == "block_start":
            return written
        part_of_event = self._part.write(event)
        if part_of_event is None:
            self.dropped_count += 1
        return written + (part_of_event or b"")

    def _opened(self, index: int) -> bytes:
        start = self._starts.get(index) or ChatBlockStart()
        self._open_index = index
        if start.kind == chat_pb2.CHAT_BLOCK_KIND_TOOL_CALL:
            self._has_calls = True
            call = CallPart(self._next_index, start.tool_call, self._asked)
            self._part = call
            return call.start
        if start.kind == chat_pb2.CHAT_BLOCK_KIND_THINKING:
            self._part = ThinkingPart(self._next_index, self._asked)
        else:
            self._part = TextPart(self._next_index)
        return b""

    def _closed(self, call: ChatToolCall | None) -> bytes:
        part = self._part
        if part is None:
            return b""
        written = part.end(call)
        self._next_index += part.is_open
        self._text_bytes += part.text_bytes
        self._part, self._open_index = None, _NO_BLOCK
        return written

    def _vendor_event(self, event: StreamChatResponse) -> bytes:
        field = event.vendor_event
        if field.dialect != usage_pb2.DIALECT_ANTHROPIC or not is_vendor_block(field.name):
            self.dropped_count += 1
            return b""
        # The hub gives such a block no position; none of its own is negative.
        return self._queued(_NO_BLOCK - 1 - len(self._waiting), event)

    def _finished(self, finish: ChatFinish) -> bytes:
        written = self._released(is_last=True) + self._closed(None)
        self.is_over = True
        delta = stop_fields(finish, self._has_calls)
        value = {
            "type": "message_delta",
            "delta": delta,
            "usage": final_usage(finish, self._asked, estimated_tokens(self._text_bytes)),
        }
        if OF_THE_EVENT in delta:
            value[OF_THE_EVENT] = delta.pop(OF_THE_EVENT)
        return written + event_bytes("message_delta", value) + _STOP


def write_body(events: Sequence[StreamChatResponse], asked: Asked) -> bytes:
    """See `translate.write_body`."""
    return body_bytes(events, asked)
