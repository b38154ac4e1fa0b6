"""Writes events of the hub as answers in the shape of OpenAI Responses."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatFinish, ChatToolCall, StreamChatResponse
from lurus_dialects.answer import Answer
from lurus_dialects.dialect import Dialect
from lurus_dialects.errors import stream_error
from lurus_dialects.openai_responses.item_ladders import (
    CallLadder,
    Emitter,
    Ladder,
    MessageLadder,
    ReasoningLadder,
    call_prefix,
)
from lurus_dialects.openai_responses.response_object import ResponseObject, usage_json
from lurus_dialects.openai_responses.vendor_fields import OWN
from lurus_dialects.translation import Asked

# The last event repeats the whole answer.
MAX_ANSWER_CHARACTERS: Final = 32 * 1024 * 1024
_INCOMPLETE: Final = {
    chat_pb2.CHAT_STOP_KIND_MAX_TOKENS: "max_output_tokens",
    chat_pb2.CHAT_STOP_KIND_CONTEXT_FULL: "max_output_tokens",
    chat_pb2.CHAT_STOP_KIND_REFUSAL: "content_filter",
}
_TEXTS: Final = (chat_pb2.CHAT_BLOCK_KIND_TEXT, chat_pb2.CHAT_BLOCK_KIND_REFUSAL)


class StreamWriter:
    """See `translation.AnswerWriter`.

    A block of thinking and a call are an item each, a run of texts is one.
    Items begin in the order of their blocks and are done in the same order,
    since clients take them as they are done: one that is ready early waits.

    Attributes:
        whole: the response object that ended the answer, as JSON.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._emitter = Emitter()
        self._response = ResponseObject(asked)
        self._is_started = False
        self._ladders: list[Ladder] = []
        self._ready: set[int] = set()
        self._done_items: list[bytes] = []
        # The message that the next text joins, and its place among the ladders.
        self._message: MessageLadder | None = None
        self._message_index = -1
        self._places: dict[int, tuple[int, int]] = {}
        self._deltas: dict[int, Callable[[str], bytes]] = {}
        self._character_count = 0
        self._usage = b"null"
        self.is_over = False
        self.whole = b""

    def write(self, event: StreamChatResponse) -> bytes:
        """Returns whole events of the dialect."""
        if self.is_over:
            return b""
        kind = event.WhichOneof("event")
        if kind in _DELTAS:
            return self._delta(event.block_index, getattr(event, kind))
        handle = _HANDLERS.get(kind or "")
        return handle(self, event) if handle else b""

    def heartbeat(self) -> bytes:
        """Returns bytes that keep a silent connection alive."""
        if self.is_over:
            return b""
        if not self._is_started:
            return b": keepalive\n\n"
        number = self._emitter.sequence_number
        self._emitter.sequence_number = number + 1
        return b'event: keepalive\ndata: {"type":"keepalive","sequence_number":%d}\n\n' % number

    def error(self, reason: str, message: str, request_id: str) -> bytes:
        """Returns the event that ends a stream which cannot be completed."""
        if self.is_over:
            return b""
        events = self._start()
        self.is_over = True
        failure = _failure(reason, message, request_id)
        self.whole = self._response.encode("failed", self._done_items, usage=self._usage, error=failure)
        return events + self._emitter.raw("response.failed", b'"response":%b}' % self.whole)

    def _start(self) -> bytes:
        if self._is_started:
            return b""
        self._is_started = True
        begin = b'"response":%b}' % self._response.encode("in_progress", [])
        return self._emitter.raw("response.created", begin) + self._emitter.raw("response.in_progress", begin)

    def _begin(self, event: StreamChatResponse) -> bytes:
        return self._start()

    def _delta(self, block: int, text: str) -> bytes:
        if not text:
            return b""
        self._character_count += len(text)
        write = self._deltas.get(block)
        if self._character_count > MAX_ANSWER_CHARACTERS:
            return self.error("UPSTREAM_FAILED", "the provider's answer is over the limit", "")
        return write(text) if write else b""

    def _block_start(self, event: StreamChatResponse) -> bytes:
        events = self._start()
        kind, block = event.block_start.kind, event.block_index
        if kind in _TEXTS:
            return events + self._start_text(block, kind == chat_pb2.CHAT_BLOCK_KIND_REFUSAL)
        events += self._leave_message()
        if kind == chat_pb2.CHAT_BLOCK_KIND_THINKING:
            reasoning = ReasoningLadder(self._emitter, len(self._ladders), self._id("rs"), self._asked)
            self._add(block, reasoning, reasoning.add)
            return events + reasoning.begin()
        return events + self._start_call(block, event.block_start.tool_call)

    def _start_call(self, block: int, call: ChatToolCall) -> bytes:
        ladder = CallLadder(self._emitter, len(self._ladders), self._id(call_prefix(call)), call)
        self._add(block, ladder, ladder.delta.write)
        return ladder.begin()

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._asked.response_id.removeprefix('resp_')}_{len(self._ladders)}"

    def _add(self, block: int, ladder: Ladder, write: Callable[[str], bytes]) -> None:
        self._places[block] = (len(self._ladders), 0)
        self._deltas[block] = write
        self._ladders.append(ladder)

    def _start_text(self, block: int, is_refusal: bool) -> bytes:
        events = b""
        message = self._message
        if message is None:
            message = MessageLadder(self._emitter, len(self._ladders), self._id("msg"))
            self._message, self._message_index = message, len(self._ladders)
            self._ladders.append(message)
            events = message.begin()
        part, added = message.add_part(is_refusal=is_refusal)
        self._places[block] = (self._message_index, part)
        self._deltas[block] = message.writer_of(part)
        return events + added

    def _leave_message(self) -> bytes:
        """Ends the run of texts; the message is ready once its last part is."""
        message, self._message = self._message, None
        if message is None or message.has_open_part:
            return b""
        return self._set_ready(self._message_index)

    def _set_ready(self, index: int) -> bytes:
        """Returns the last events of items that no earlier one keeps waiting."""
        self._ready.add(index)
        events = b""
        while len(self._done_items) in self._ready:
            ladder = self._ladders[len(self._done_items)]
            events += ladder.finish()
            self._done_items.append(ladder.done_item)
        return events

    def _block_end(self, event: StreamChatResponse) -> bytes:
        place = self._places.pop(event.block_index, None)
        self._deltas.pop(event.block_index, None)
        if place is None:
            return b""
        index, part = place
        ladder = self._ladders[index]
        if not isinstance(ladder, MessageLadder):
            return self._set_ready(index)
        events = ladder.end_part(part)
        if ladder is not self._message and not ladder.has_open_part:
            events += self._set_ready(index)
        return events

    def _tool_call(self, event: StreamChatResponse) -> bytes:
        events = b""
        block = event.block_index
        if block not in self._places:
            events = self._start() + self._leave_message() + self._start_call(block, event.tool_call)
        index, _ = self._places[block]
        ladder = self._ladders[index]
        if isinstance(ladder, CallLadder):
            events += ladder.complete(event.tool_call)
        return events + self._block_end(event)

    def _seal(self, event: StreamChatResponse) -> bytes:
        place = self._places.get(event.block_index)
        ladder = self._ladders[place[0]] if place else None
        if isinstance(ladder, ReasoningLadder):
            ladder.seal(event.thinking_seal)
        return b""

    def _citation(self, event: StreamChatResponse) -> bytes:
        """Writes sources only of this dialect: others do not tell where in the text they belong."""
        place = self._places.get(event.block_index)
        ladder = self._ladders[place[0]] if place else None
        original = event.citation.original
        if place is None or not isinstance(ladder, MessageLadder) or original.dialect != OWN:
            return b""
        return ladder.annotate(place[1], original.json)

    def _count(self, event: StreamChatResponse) -> bytes:
        self._usage = usage_json(event.usage)
        return b""

    def _error(self, event: StreamChatResponse) -> bytes:
        return self.error(event.error.reason, event.error.message, "")

    def _finish(self, event: StreamChatResponse) -> bytes:
        events = self._start()
        finish: ChatFinish = event.finish
        self._message = None
        for index in range(len(self._ladders)):
            if index not in self._ready:
                events += self._set_ready(index)
        self.is_over = True
        reason = _INCOMPLETE.get(finish.kind, "")
        status = "incomplete" if reason else "completed"
        self.whole = self._response.encode(
            status, self._done_items, usage=usage_json(finish.tokens), incomplete_reason=reason
        )
        return events + self._emitter.raw(f"response.{status}", b'"response":%b}' % self.whole)


def _failure(reason: str, message: str, request_id: str) -> bytes:
    """Returns code and message of a failure, which Codex takes as a command."""
    event = stream_error(Answer(Dialect.OPENAI_RESPONSES), reason, message, request_id)
    data: dict[str, Any] = msgspec.json.decode(event.partition(b"data: ")[2])
    return msgspec.json.encode(data["response"]["error"])


_DELTAS: Final = frozenset({"text_delta", "thinking_delta", "arguments_delta"})
_HANDLERS: Final[dict[str, Callable[[StreamWriter, StreamChatResponse], bytes]]] = {
    "start": StreamWriter._begin,
    "block_start": StreamWriter._block_start,
    "block_end": StreamWriter._block_end,
    "tool_call": StreamWriter._tool_call,
    "thinking_seal": StreamWriter._seal,
    "citation": StreamWriter._citation,
    "usage": StreamWriter._count,
    "finish": StreamWriter._finish,
    "error": StreamWriter._error,
}


def write_body(events: Sequence[StreamChatResponse], asked: Asked) -> bytes:
    """See `translate.write_body`."""
    writer = StreamWriter(asked)
    for event in events:
        writer.write(event)
    return writer.whole
