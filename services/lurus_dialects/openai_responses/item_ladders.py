"""Writes the events of one output item, from `output_item.added` to `output_item.done` (A.3.5)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatThinking, ChatToolCall
from lurus_dialects import envelope
from lurus_dialects.translation import Asked

_ENCODER: Final = msgspec.json.Encoder()


class Emitter:
    """Numbers the events of a stream."""

    def __init__(self) -> None:
        self.sequence_number = 0

    def event(self, kind: str, fields: dict[str, Any]) -> bytes:
        """Returns an event."""
        return self.raw(kind, _ENCODER.encode(fields)[1:])

    def raw(self, kind: str, rest: bytes) -> bytes:
        """Returns an event; `rest` is the JSON of its fields without the opening brace."""
        number = self.sequence_number
        self.sequence_number = number + 1
        name = kind.encode()
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b\n\n' % (name, name, number, rest)

    def template(self, kind: str, fields: dict[str, Any]) -> tuple[bytes, bytes]:
        """Returns what comes before the number of a delta, and what comes between it and the text."""
        name = kind.encode()
        middle = b"," + _ENCODER.encode(fields)[1:-1] + b',"delta":'
        return b'event: %b\ndata: {"type":"%b","sequence_number":' % (name, name), middle


class Ladder(ABC):
    """The events of one item.

    Attributes:
        done_item: the whole item, once it is done.
    """

    def __init__(self, emitter: Emitter, index: int, item_id: str) -> None:
        self._emitter = emitter
        self._index = index
        self._id = item_id
        self.done_item = b""

    def _added(self, item: dict[str, Any]) -> bytes:
        fields = {"output_index": self._index, "item": item}
        return self._emitter.event("response.output_item.added", fields)

    def _done(self, item: dict[str, Any]) -> bytes:
        self.done_item = _ENCODER.encode(item)
        rest = b'"output_index":%d,"item":%b}' % (self._index, self.done_item)
        return self._emitter.raw("response.output_item.done", rest)

    def _place(self, **more: int) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self._index, **more}

    @abstractmethod
    def finish(self) -> bytes:
        """Returns the last events of the item."""


class _Delta:
    """Writes one kind of delta fast, and remembers the text."""

    __slots__ = ("_emitter", "_head", "_middle", "_pieces", "_tail")

    def __init__(self, emitter: Emitter, kind: str, fields: dict[str, Any], tail: bytes = b"}\n\n") -> None:
        self._emitter = emitter
        self._head, self._middle = emitter.template(kind, fields)
        self._tail = tail
        self._pieces: list[str] = []

    def write(self, text: str) -> bytes:
        """Returns an event with a piece of the text."""
        emitter = self._emitter
        number = emitter.sequence_number
        emitter.sequence_number = number + 1
        self._pieces.append(text)
        return b"%b%d%b%b%b" % (self._head, number, self._middle, _ENCODER.encode(text), self._tail)

    @property
    def text(self) -> str:
        """All pieces, joined."""
        return "".join(self._pieces)


class _Part:
    """A part of a message."""

    def __init__(self, emitter: Emitter, place: dict[str, Any], is_refusal: bool) -> None:
        self._emitter = emitter
        self._place = place
        self._name = "refusal" if is_refusal else "output_text"
        self.is_open = True
        self.annotations: list[msgspec.Raw] = []
        tail = b"}\n\n" if is_refusal else b',"logprobs":[]}\n\n'
        self.delta = _Delta(emitter, f"response.{self._name}.delta", place, tail)

    def begin(self) -> bytes:
        """Returns the part's first event."""
        return self._emitter.event("response.content_part.added", {**self._place, "part": self.part("")})

    def part(self, text: str) -> dict[str, Any]:
        """Returns the part with a text."""
        if self._name == "refusal":
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "annotations": self.annotations, "logprobs": [], "text": text}

    def annotate(self, raw: bytes) -> bytes:
        """Returns the event of a source."""
        number = len(self.annotations)
        self.annotations.append(msgspec.Raw(raw))
        fields = {**self._place, "annotation_index": number, "annotation": msgspec.Raw(raw)}
        return self._emitter.event("response.output_text.annotation.added", fields)

    def end(self) -> bytes:
        """Returns the part's last events."""
        self.is_open = False
        text = self.delta.text
        whole: dict[str, Any] = {"refusal": text}
        if self._name == "output_text":
            whole = {"text": text, "logprobs": []}
        done = self._emitter.event(f"response.{self._name}.done", {**self._place, **whole})
        return done + self._emitter.event(
            "response.content_part.done", {**self._place, "part": self.part(text)}
        )


class MessageLadder(Ladder):
    """A message: one part for each block of a run of texts."""

    def __init__(self, emitter: Emitter, index: int, item_id: str) -> None:
        super().__init__(emitter, index, item_id)
        self._parts: list[_Part] = []

    def begin(self) -> bytes:
        """Returns the item's first event."""
        return self._added(self._item("in_progress", []))

    def add_part(self, *, is_refusal: bool) -> tuple[int, bytes]:
        """Returns the number of a new part and its first event."""
        number = len(self._parts)
        part = _Part(self._emitter, self._place(content_index=number), is_refusal)
        self._parts.append(part)
        return number, part.begin()

    def writer_of(self, number: int) -> Callable[[str], bytes]:
        """Returns what writes the deltas of a part."""
        return self._parts[number].delta.write

    def annotate(self, number: int, raw: bytes) -> bytes:
        """Returns the event of a source of a part's text."""
        return self._parts[number].annotate(raw)

    def end_part(self, number: int) -> bytes:
        """Returns the last events of a part."""
        return self._parts[number].end()

    @property
    def has_open_part(self) -> bool:
        """True while a part goes on."""
        return any(part.is_open for part in self._parts)

    def finish(self) -> bytes:
        """Returns the last events of the item."""
        ends = b"".join(part.end() for part in self._parts if part.is_open)
        parts = [part.part(part.delta.text) for part in self._parts]
        return ends + self._done(self._item("completed", parts))

    def _item(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }


class ReasoningLadder(Ladder):
    """Reasoning: a summary of at most one part, and the sealed form."""

    def __init__(self, emitter: Emitter, index: int, item_id: str, asked: Asked) -> None:
        super().__init__(emitter, index, item_id)
        self._asked = asked
        self._delta: _Delta | None = None
        self._sealed = ""

    def begin(self) -> bytes:
        """Returns the item's first event."""
        return self._added({"id": self._id, "type": "reasoning", "summary": []})

    def add(self, text: str) -> bytes:
        """Returns a piece of the summary."""
        if self._delta is not None:
            return self._delta.write(text)
        place = self._place(summary_index=0)
        self._delta = _Delta(self._emitter, "response.reasoning_summary_text.delta", place)
        added = self._emitter.event("response.reasoning_summary_part.added", {**place, "part": _summary("")})
        return added + self._delta.write(text)

    def seal(self, thinking: ChatThinking) -> None:
        """Keeps the sealed form for the end, if the client wants it."""
        if not self._asked.request.reasoning.is_sealed_form_included or not thinking.original:
            return
        maker = ChatThinking(
            original=thinking.original,
            dialect=thinking.dialect,
            provider_id=self._asked.provider_id,
            upstream_model=self._asked.upstream_model,
        )
        self._sealed = envelope.seal(maker)

    def finish(self) -> bytes:
        """Returns the last events of the item."""
        events, summary = b"", []
        if self._delta is not None:
            text, place = self._delta.text, self._place(summary_index=0)
            summary = [_summary(text)]
            events = self._emitter.event("response.reasoning_summary_text.done", {**place, "text": text})
            events += self._emitter.event(
                "response.reasoning_summary_part.done", {**place, "part": summary[0]}
            )
        item: dict[str, Any] = {"id": self._id, "type": "reasoning", "summary": summary}
        if self._sealed:
            item["encrypted_content"] = self._sealed
        return events + self._done(item)


def _summary(text: str) -> dict[str, str]:
    return {"type": "summary_text", "text": text}


class CallLadder(Ladder):
    """A call of a tool."""

    def __init__(self, emitter: Emitter, index: int, item_id: str, call: ChatToolCall) -> None:
        super().__init__(emitter, index, item_id)
        self._call = call
        self._is_custom = call.kind == chat_pb2.CHAT_TOOL_KIND_CUSTOM
        self._field = "input" if self._is_custom else "arguments"
        self._name = "custom_tool_call_input" if self._is_custom else "function_call_arguments"
        self.delta = _Delta(emitter, f"response.{self._name}.delta", self._place())

    def begin(self) -> bytes:
        """Returns the item's first event."""
        return self._added(self._item("in_progress", ""))

    def complete(self, call: ChatToolCall) -> bytes:
        """Returns the deltas that the whole call has and that did not come yet."""
        whole = call.arguments.decode("utf-8", "replace")
        told = self.delta.text
        missing = whole[len(told) :] if whole.startswith(told) else ""
        return self.delta.write(missing) if missing else b""

    def finish(self) -> bytes:
        """Returns the last events of the item."""
        text = self.delta.text
        done = self._emitter.event(f"response.{self._name}.done", {**self._place(), self._field: text})
        return done + self._done(self._item("completed", text))

    def _item(self, status: str, text: str) -> dict[str, Any]:
        call = self._call
        item = {"id": self._id, "type": "custom_tool_call" if self._is_custom else "function_call"}
        item |= {"status": status, "call_id": call.tool_call_id, "name": call.name}
        if call.namespace:
            item["namespace"] = call.namespace
        item[self._field] = text
        return item


def call_prefix(call: ChatToolCall) -> str:
    """Returns what the id of a call's item begins with."""
    return "ctc" if call.kind == chat_pb2.CHAT_TOOL_KIND_CUSTOM else "fc"
