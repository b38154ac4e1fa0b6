"""Reads answers in the shape of Anthropic Messages as events of the hub.

Blocks that only this dialect knows become one `vendor_event` with the block's
type as its name and the whole block as its JSON. Unknown events and deltas
become vendor events called `event.<type>` and `delta.<type>`.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatError,
    ChatFinish,
    ChatStart,
    ChatVendorField,
    StreamChatResponse,
)
from lurus.usage.v1 import usage_pb2
from lurus_dialects import loose
from lurus_dialects.anthropic.answer_blocks import Delta, OpenBlock, open_block, read_delta, read_fields
from lurus_dialects.anthropic.members import vendor_field
from lurus_dialects.dialect import Dialect
from lurus_dialects.failures import failure_of
from lurus_dialects.surrogates import joined
from lurus_dialects.translation import ToolName
from lurus_dialects.usage import UsageMeter

# No answer of any model comes near.
MAX_BLOCKS: Final = 10_000

STOP_KINDS: Final = {
    "end_turn": chat_pb2.CHAT_STOP_KIND_END_TURN,
    "stop_sequence": chat_pb2.CHAT_STOP_KIND_STOP_SEQUENCE,
    "tool_use": chat_pb2.CHAT_STOP_KIND_TOOL_CALLS,
    "max_tokens": chat_pb2.CHAT_STOP_KIND_MAX_TOKENS,
    "refusal": chat_pb2.CHAT_STOP_KIND_REFUSAL,
    "pause_turn": chat_pb2.CHAT_STOP_KIND_PAUSE,
    "model_context_window_exceeded": chat_pb2.CHAT_STOP_KIND_CONTEXT_FULL,
}
# An answer that lacks one of these is another answer.
_VITAL: Final = (b"message_", b"content_block_")


class _Message(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    usage: msgspec.Raw = loose.ABSENT


class _Error(msgspec.Struct, gc=False):
    type: str | None = None
    message: str | None = None


class _Event(msgspec.Struct, gc=False):
    type: str | None = None
    index: int | None = None
    delta: msgspec.Raw = loose.ABSENT
    content_block: msgspec.Raw = loose.ABSENT
    message: _Message | None = None
    usage: msgspec.Raw = loose.ABSENT
    error: _Error | None = None
    context_management: msgspec.Raw = loose.ABSENT


class _DeltaEvent(msgspec.Struct, gc=False):
    index: int
    delta: Delta
    type: str | None = None


class _Body(msgspec.Struct):
    type: str | None = None
    id: str | None = None
    model: str | None = None
    content: list[msgspec.Raw] | None = None
    usage: msgspec.Raw = loose.ABSENT
    error: _Error | None = None
    context_management: msgspec.Raw = loose.ABSENT


_EVENT: Final = msgspec.json.Decoder(_Event)
_DELTA_EVENT: Final = msgspec.json.Decoder(_DeltaEvent)
_BODY: Final = msgspec.json.Decoder(_Body)
_OF_THE_MESSAGE: Final = frozenset({"type", "id", "role", "model", "content", "usage", "context_management"})


class StreamReader:
    """See `translation.AnswerReader`."""

    def __init__(self, tool_names: Mapping[str, ToolName]) -> None:
        self._tool_names = tool_names
        self._meter = UsageMeter(Dialect.ANTHROPIC)
        self._blocks: dict[int, OpenBlock] = {}
        self._next_index = 0
        self._is_started = False
        self._is_over = False
        self._finish = ChatFinish()

    def read(self, name: bytes, data: bytes) -> list[StreamChatResponse]:
        """Returns what one event says."""
        if self._is_over or not data:
            return []
        if name == b"content_block_delta":
            try:
                event = _DELTA_EVENT.decode(data)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                return self._read_any(name, data)
            block = self._blocks.get(event.index)
            if block is not None:
                return self._bounded(block.read(event.delta))
        return self._read_any(name, data)

    def end(self) -> list[StreamChatResponse]:
        """Returns what the end of the stream says: a stream without `message_stop` was cut."""
        if self._is_over:
            return []
        return self._broken("UPSTREAM_CUT", "the provider's stream ended before its answer was complete")

    def read_message(self, body: "_Body", data: bytes) -> list[StreamChatResponse]:
        """Returns what a whole message says."""
        events = self._start(_Message(body.id, body.model, body.usage))
        for index, raw in enumerate(body.content or []):
            events += self._begin(index, raw)
            events += self._stop(index)
        self._note_finish(_rest_of(data), body.context_management)
        return events + self._finished()

    def fail(self, reason: str, message: str) -> list[StreamChatResponse]:
        """Returns the end of an answer that cannot be read."""
        return self._broken(reason, message)

    def fail_by(self, error: _Error) -> list[StreamChatResponse]:
        """Returns the end of an answer that the provider broke off."""
        return self._error(error)

    def _read_any(self, name: bytes, data: bytes) -> list[StreamChatResponse]:
        event = _decoded(data)
        if event is None:
            if name.startswith(_VITAL):
                return self._broken("UPSTREAM_FAILED", "the provider sent an event that cannot be read")
            return []
        kind = event.type or name.decode("utf-8", "replace")
        if kind == "content_block_delta":
            return self._read_delta(event)
        if kind == "content_block_start":
            return self._begin(self._index_of(event), event.content_block)
        if kind == "content_block_stop":
            return self._stop(self._index_of(event))
        return self._read_frame(kind, event, data)

    def _read_frame(self, kind: str, event: _Event, data: bytes) -> list[StreamChatResponse]:
        if kind == "message_start":
            return self._start(event.message or _Message())
        if kind == "message_delta":
            self._note_finish(read_fields(event.delta), event.context_management)
            return self._started() + self._counted(event.usage)
        if kind == "message_stop":
            return self._started() + self._finished()
        if kind == "ping":
            return []
        if kind == "error" or (event.error is not None and event.type is None):
            return self._error(event.error or _Error())
        return [_vendor_event(f"event.{kind}", data)]

    def _start(self, message: _Message) -> list[StreamChatResponse]:
        events: list[StreamChatResponse] = []
        if not self._is_started:
            self._is_started = True
            start = ChatStart(response_id=joined(message.id or ""), model=joined(message.model or ""))
            events.append(StreamChatResponse(start=start))
        return events + self._counted(message.usage)

    def _started(self) -> list[StreamChatResponse]:
        return [] if self._is_started else self._start(_Message())

    def _counted(self, usage: msgspec.Raw) -> list[StreamChatResponse]:
        if not loose.is_stated(usage) or not self._meter.add(usage):
            return []
        return [StreamChatResponse(usage=self._tokens())]

    def _tokens(self) -> usage_pb2.Tokens:
        tokens = self._meter.tokens()
        return usage_pb2.Tokens(
            input=tokens.input,
            cache_read=tokens.cache_read,
            cache_write_5m=tokens.cache_write_5m,
            cache_write_1h=tokens.cache_write_1h,
            output=tokens.output,
            reasoning=tokens.reasoning,
        )

    def _index_of(self, event: _Event) -> int:
        return event.index if event.index is not None else max(self._blocks, default=0)

    def _begin(self, index: int, raw: msgspec.Raw) -> list[StreamChatResponse]:
        events = self._started()
        if index in self._blocks:
            events += self._stop(index)
        if self._next_index >= MAX_BLOCKS:
            return events + self._broken("UPSTREAM_FAILED", "the provider sent too many blocks")
        block = open_block(raw, self._next_index, self._tool_names)
        self._next_index += block.is_indexed
        self._blocks[index] = block
        return events + self._bounded(block.begin())

    def _read_delta(self, event: _Event) -> list[StreamChatResponse]:
        delta = read_delta(event.delta)
        index = self._index_of(event)
        events: list[StreamChatResponse] = []
        if index not in self._blocks:
            # Some gateways forget the start; what the model wrote is not lost for that.
            kind = {"text_delta": b"text", "thinking_delta": b"thinking"}.get(delta.type or "")
            if kind is None:
                return [_vendor_event(f"delta.{delta.type}", bytes(event.delta))]
            events += self._begin(index, msgspec.Raw(b'{"type":"' + kind + b'"}'))
        return events + self._bounded(self._blocks[index].read(delta))

    def _bounded(self, events: list[StreamChatResponse] | None) -> list[StreamChatResponse]:
        if events is None:
            return self._broken("UPSTREAM_FAILED", "the provider sent a block over the limit")
        return events

    def _stop(self, index: int) -> list[StreamChatResponse]:
        block = self._blocks.pop(index, None)
        return [] if block is None else block.end()

    def _note_finish(self, fields: dict[str, msgspec.Raw], context_management: msgspec.Raw) -> None:
        reason = loose.decode(bytes(fields.pop("stop_reason", b"")))
        if isinstance(reason, str) and reason:
            self._finish.stop_reason = joined(reason)
            self._finish.kind = STOP_KINDS.get(reason, chat_pb2.CHAT_STOP_KIND_UNSPECIFIED)
        sequence = loose.decode(bytes(fields.pop("stop_sequence", b"")))
        if isinstance(sequence, str):
            self._finish.stop_sequence = joined(sequence)
        if loose.is_stated(context_management):
            fields["context_management"] = context_management
        for name, raw in fields.items():
            if loose.is_stated(raw):
                self._keep(vendor_field(name, raw))

    def _keep(self, field: ChatVendorField) -> None:
        kept = [old for old in self._finish.vendor_fields if old.name != field.name]
        del self._finish.vendor_fields[:]
        self._finish.vendor_fields.extend([*kept, field])

    def _finished(self) -> list[StreamChatResponse]:
        events = [event for index in list(self._blocks) for event in self._stop(index)]
        self._is_over = True
        finish = self._finish
        if finish.stop_reason and not finish.kind:
            # The word itself is lost on everyone but this dialect's own clients.
            self._keep(vendor_field("stop_reason", msgspec.json.encode(finish.stop_reason)))
        finish.has_provider_tokens = self._meter.is_used
        finish.tokens.CopyFrom(self._tokens())
        return [*events, StreamChatResponse(finish=finish)]

    def _error(self, error: _Error) -> list[StreamChatResponse]:
        self._is_over = True
        return [StreamChatResponse(error=failure_of(error.type or "", error.message or ""))]

    def _broken(self, reason: str, message: str) -> list[StreamChatResponse]:
        self._is_over = True
        return [StreamChatResponse(error=ChatError(reason=reason, message=message))]


def read_body(body: bytes, tool_names: Mapping[str, ToolName]) -> list[StreamChatResponse]:
    """See `translate.read_body`."""
    reader = StreamReader(tool_names)
    try:
        message = _BODY.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = loose.decode(body)
        if not isinstance(value, dict):
            return reader.fail("UPSTREAM_FAILED", "the provider's answer cannot be read")
        message, body = _loose_body(value), loose.compact(value)
    if message.type == "error" or (message.error is not None and message.content is None):
        return reader.fail_by(message.error or _Error())
    if message.content is None:
        return reader.fail("UPSTREAM_FAILED", "the provider's answer cannot be read")
    return reader.read_message(message, body)


def _rest_of(body: bytes) -> dict[str, msgspec.Raw]:
    """Returns how a plain answer ended: what a stream says in `message_delta`."""
    return {name: raw for name, raw in read_fields(body).items() if name not in _OF_THE_MESSAGE}


def _loose_body(value: dict[str, Any]) -> _Body:
    content = value.pop("content", None)
    body = loose.fit(_Body, value)
    if isinstance(content, list):
        body.content = [msgspec.Raw(loose.compact(item)) for item in content]
    value["content"] = content
    return body


def _decoded(data: bytes) -> _Event | None:
    try:
        return _EVENT.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = loose.decode(data)
        return loose.fit(_Event, value) if isinstance(value, dict) else None


def _vendor_event(name: str, json: bytes) -> StreamChatResponse:
    return StreamChatResponse(vendor_event=vendor_field(joined(name), json))
