"""Reads answers in the shape of OpenAI Responses as events of the hub."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatError,
    ChatFinish,
    ChatStart,
    StreamChatResponse,
)
from lurus.usage.v1 import usage_pb2
from lurus_dialects import loose
from lurus_dialects.dialect import Dialect
from lurus_dialects.failures import cut_off, failure_of, too_large
from lurus_dialects.openai_responses.item_blocks import (
    CallItem,
    Item,
    MessageItem,
    Part,
    ReasoningItem,
    TooLarge,
    VendorItem,
)
from lurus_dialects.openai_responses.members import vendor_field
from lurus_dialects.openai_responses.provider_events import EVENT, ErrorFields, Event, Response, raw_items
from lurus_dialects.surrogates import joined
from lurus_dialects.translation import ToolName
from lurus_dialects.usage import UsageMeter

_STOP_KINDS: Final = {
    "max_output_tokens": chat_pb2.CHAT_STOP_KIND_MAX_TOKENS,
    "content_filter": chat_pb2.CHAT_STOP_KIND_REFUSAL,
}


_Kind = TypeVar("_Kind", bound=Item)


class StreamReader:
    """See `translation.AnswerReader`.

    Each item of `output` is followed by an object of its kind, which knows
    what of it was told; the events only find the item.
    """

    def __init__(self, tool_names: Mapping[str, ToolName]) -> None:
        self._tool_names = tool_names
        self._meter = UsageMeter(Dialect.OPENAI_RESPONSES)
        self._items: dict[int, Item] = {}
        self._done: set[int] = set()
        self._part: Part | None = None
        self._part_item: int | None = None
        self._block_count = 0
        self._has_call = False
        self._is_started = False
        self._is_over = False
        self._events: list[StreamChatResponse] = []

    def read(self, name: bytes, data: bytes) -> list[StreamChatResponse]:
        """Returns what one event says."""
        if self._is_over:
            return []
        try:
            event = EVENT.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = loose.decode(data)
            if not isinstance(value, dict):
                return []
            event = loose.fit(Event, value)
        kind = event.type
        if kind is None:
            kind = "error" if event.error is not None else name.decode("utf-8", "replace")
        part = self._part
        if (
            kind == _TEXT_DELTA
            and event.delta
            and part is not None
            and part.is_open
            and event.content_index == part.index
            and event.output_index == self._part_item
        ):
            # Nearly every event: the text of the part that the last one was about goes on.
            return part.tell(part.text.add(event.delta))
        handle = _HANDLERS.get(kind)
        events = self._begin_events()
        try:
            if handle is not None:
                handle(self, event)
            elif kind not in _IGNORED and not kind.endswith(_PROGRESS):
                self._tell(StreamChatResponse(vendor_event=vendor_field(kind, data)))
        except TooLarge:
            self._fail(too_large())
        return events

    def end(self) -> list[StreamChatResponse]:
        """Returns what the end of the stream says."""
        if self._is_over:
            return []
        events = self._begin_events()
        self._fail(cut_off())
        return events

    def read_response(self, body: bytes) -> list[StreamChatResponse]:
        """Returns what a response object says that came as a whole."""
        try:
            response = msgspec.json.decode(body, type=Response)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = loose.decode(body)
            response = loose.fit(Response, value) if isinstance(value, dict) else Response()
        events = self._begin_events()
        event = Event(response=response, error=response.error)
        if not loose.is_stated(response.output):
            self._bare_error(event)
            return events
        self._begin(response)
        try:
            for index, raw in enumerate(raw_items(response.output)):
                self._finish_item(index, raw)
            _BODY_ENDS.get(response.status or "completed", StreamReader._failed)(self, event)
        except TooLarge:
            self._fail(too_large())
        return events

    # What events do. Every one but `read` puts into `self._events` what is to be told.

    def _tell(self, event: StreamChatResponse) -> None:
        if not self._is_started:
            self._begin(None)
        self._events.append(event)

    def _begin(self, response: Response | None) -> None:
        self._is_started = True
        start = ChatStart()
        if response is not None:
            start.response_id, start.model = joined(response.id or ""), joined(response.model or "")
        self._events.append(StreamChatResponse(start=start))

    def _lifecycle(self, event: Event) -> None:
        response = event.response or Response()
        if not self._is_started:
            self._begin(response)
        if self._meter.add(response.usage):
            self._tell(StreamChatResponse(usage=self._tokens()))

    def _tokens(self) -> usage_pb2.Tokens:
        tokens = self._meter.tokens()
        return usage_pb2.Tokens(
            input=tokens.input,
            cache_read=tokens.cache_read,
            cache_write_5m=tokens.cache_write_5m,
            cache_write_30m=tokens.cache_write_30m,
            cache_write_1h=tokens.cache_write_1h,
            cache_write_12h=tokens.cache_write_12h,
            output=tokens.output,
            reasoning=tokens.reasoning,
        )

    def _item(self, event: Event, kind: type[_Kind]) -> _Kind | None:
        """Returns the item that an event is about, begun now if its begin was not told."""
        index = event.output_index or 0
        item = self._items.get(index)
        if item is None and index not in self._done:
            item = self._items[index] = kind(self._next_block, self._tool_names)
        return item if isinstance(item, kind) else None

    def _begin_events(self) -> list[StreamChatResponse]:
        self._events = []
        return self._events

    def _next_block(self) -> int:
        self._block_count += 1
        return self._block_count - 1

    def _tell_all(self, events: list[StreamChatResponse]) -> None:
        if events and not self._is_started:
            self._begin(None)
        self._events += events

    def _item_added(self, event: Event) -> None:
        index = event.output_index or 0
        if index in self._items or index in self._done:
            return
        value = loose.decode(bytes(event.item)) if event.item else None
        if not isinstance(value, dict):
            return
        item = self._items[index] = self._new_item(value)
        self._tell_all(item.begin(value))

    def _new_item(self, value: dict[str, Any]) -> Item:
        kind = _ITEM_KINDS.get(loose.text_of(value, "type"), VendorItem)
        return kind(self._next_block, self._tool_names)

    def _item_done(self, event: Event) -> None:
        if event.item:
            self._finish_item(event.output_index or 0, event.item)

    def _finish_item(self, index: int, raw: msgspec.Raw) -> None:
        value = loose.decode(bytes(raw))
        if not isinstance(value, dict) or index in self._done:
            return
        item = self._items.pop(index, None) or self._new_item(value)
        self._done.add(index)
        self._has_call = self._has_call or isinstance(item, CallItem)
        self._tell_all(item.finish(value, bytes(raw)))

    def _text_delta(self, event: Event) -> None:
        item = self._item(event, MessageItem)
        if item is not None and event.delta:
            index = event.content_index or 0
            self._tell_all(item.add(index, event.delta, is_refusal=False))
            self._part, self._part_item = item.part(index), event.output_index

    def _refusal_delta(self, event: Event) -> None:
        item = self._item(event, MessageItem)
        if item is not None and event.delta:
            self._tell_all(item.add(event.content_index or 0, event.delta, is_refusal=True))

    def _text_done(self, event: Event) -> None:
        item = self._item(event, MessageItem)
        if item is not None:
            self._tell_all(item.complete(event.content_index or 0, event.text or "", is_refusal=False))

    def _refusal_done(self, event: Event) -> None:
        item = self._item(event, MessageItem)
        if item is not None:
            self._tell_all(item.complete(event.content_index or 0, event.refusal or "", is_refusal=True))

    def _part_done(self, event: Event) -> None:
        item = self._items.get(event.output_index or 0)
        if isinstance(item, MessageItem):
            self._tell_all(item.end_part(event.content_index or 0))

    def _annotation(self, event: Event) -> None:
        item = self._items.get(event.output_index or 0)
        if isinstance(item, MessageItem) and event.annotation:
            self._tell_all(item.annotate(event.content_index or 0, bytes(event.annotation)))

    def _summary_delta(self, event: Event) -> None:
        item = self._item(event, ReasoningItem)
        if item is not None and event.delta:
            self._tell_all(item.add_summary(event.summary_index or 0, event.delta))

    def _summary_done(self, event: Event) -> None:
        item = self._item(event, ReasoningItem)
        if item is not None and event.text:
            self._tell_all(item.complete_summary(event.summary_index or 0, event.text))

    def _reasoning_delta(self, event: Event) -> None:
        item = self._item(event, ReasoningItem)
        if item is not None and event.delta:
            self._tell_all(item.add_content(event.content_index or 0, event.delta))

    def _reasoning_done(self, event: Event) -> None:
        item = self._item(event, ReasoningItem)
        if item is not None and event.text:
            self._tell_all(item.complete_content(event.content_index or 0, event.text))

    def _arguments_delta(self, event: Event) -> None:
        item = self._item(event, CallItem)
        if item is not None and event.delta:
            self._tell_all(item.add(event.delta))

    def _arguments_done(self, event: Event) -> None:
        item = self._items.get(event.output_index or 0)
        if isinstance(item, CallItem):
            self._tell_all(item.complete(event.arguments or event.input or ""))

    def _completed(self, event: Event) -> None:
        response = event.response or Response()
        if response.status in ("failed", "cancelled"):
            self._failed(event)
            return
        self._lifecycle(event)
        self._finish_items(response)
        stop = chat_pb2.CHAT_STOP_KIND_TOOL_CALLS if self._has_call else chat_pb2.CHAT_STOP_KIND_END_TURN
        self._finish(stop, joined(response.status or "completed"))

    def _incomplete(self, event: Event) -> None:
        response = event.response or Response()
        self._lifecycle(event)
        self._finish_items(response)
        reason = response.incomplete_details and response.incomplete_details.reason
        kind = _STOP_KINDS.get(reason or "", chat_pb2.CHAT_STOP_KIND_END_TURN)
        self._finish(kind, joined(reason or "incomplete"))

    def _finish_items(self, response: Response) -> None:
        """Tells what only the terminal event holds, and ends what is open."""
        is_streamed = bool(self._items or self._done)
        for index, raw in enumerate(raw_items(response.output)):
            if index in self._items or not is_streamed:
                self._finish_item(index, raw)
        for index, item in sorted(self._items.items()):
            self._has_call = self._has_call or isinstance(item, CallItem)
            self._done.add(index)
            self._tell_all(item.finish({}, b""))
        self._items.clear()

    def _finish(self, kind: "chat_pb2.ChatStopKind.ValueType", word: str) -> None:
        self._is_over = True
        finish = ChatFinish(
            stop_reason=word, tokens=self._tokens(), kind=kind, has_provider_tokens=self._meter.is_used
        )
        self._events.append(StreamChatResponse(finish=finish))

    def _failed(self, event: Event) -> None:
        if event.response is not None:
            self._lifecycle(event)
        response = event.response or Response()
        error = response.error or ErrorFields(message=f"the answer was {response.status or 'broken off'}")
        self._fail(failure_of(error.code or error.type or "", error.message or ""))

    def _bare_error(self, event: Event) -> None:
        error = event.error or ErrorFields(code=event.code, message=event.message)
        self._fail(failure_of(error.code or error.type or "", error.message or ""))

    def _fail(self, error: ChatError) -> None:
        self._is_over = True
        self._events.append(StreamChatResponse(error=error))


_ITEM_KINDS: Final[dict[str, type[Item]]] = {
    "message": MessageItem,
    "reasoning": ReasoningItem,
    "function_call": CallItem,
    "custom_tool_call": CallItem,
}
_HANDLERS: Final[dict[str, Callable[[StreamReader, Event], None]]] = {
    "response.output_text.delta": StreamReader._text_delta,
    "response.output_text.done": StreamReader._text_done,
    "response.output_text.annotation.added": StreamReader._annotation,
    "response.refusal.delta": StreamReader._refusal_delta,
    "response.refusal.done": StreamReader._refusal_done,
    "response.content_part.done": StreamReader._part_done,
    "response.reasoning_summary_text.delta": StreamReader._summary_delta,
    "response.reasoning_summary_text.done": StreamReader._summary_done,
    "response.reasoning_text.delta": StreamReader._reasoning_delta,
    "response.reasoning_text.done": StreamReader._reasoning_done,
    "response.function_call_arguments.delta": StreamReader._arguments_delta,
    "response.function_call_arguments.done": StreamReader._arguments_done,
    "response.custom_tool_call_input.delta": StreamReader._arguments_delta,
    "response.custom_tool_call_input.done": StreamReader._arguments_done,
    "response.output_item.added": StreamReader._item_added,
    "response.output_item.done": StreamReader._item_done,
    "response.created": StreamReader._lifecycle,
    "response.queued": StreamReader._lifecycle,
    "response.in_progress": StreamReader._lifecycle,
    "response.completed": StreamReader._completed,
    "response.incomplete": StreamReader._incomplete,
    "response.failed": StreamReader._failed,
    "response.cancelled": StreamReader._failed,
    "error": StreamReader._bare_error,
}
_TEXT_DELTA: Final = "response.output_text.delta"
# Parts begin with their first delta.
_IGNORED: Final = frozenset(
    {
        "",
        "keepalive",
        "message",
        "response.content_part.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_part.done",
    }
)
# Steps of hosted tools, whose item comes whole when it is done.
_PROGRESS: Final = (".in_progress", ".searching", ".generating", ".interpreting", ".completed", ".failed")
_BODY_ENDS: Final = {
    "completed": StreamReader._completed,
    "incomplete": StreamReader._incomplete,
}


def read_body(body: bytes, tool_names: Mapping[str, ToolName]) -> list[StreamChatResponse]:
    """See `translate.read_body`."""
    return StreamReader(tool_names).read_response(body)
