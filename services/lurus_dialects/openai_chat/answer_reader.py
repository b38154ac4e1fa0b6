"""Reads answers in the shape of OpenAI Chat Completions as events of the hub.

Servers of this dialect differ most: usage may ride on any chunk, calls may
lack an index or repeat their name, arguments may be an object, and the finish
may say `stop` after a call (wire-contract C.4).
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatCitation,
    ChatError,
    ChatFinish,
    ChatStart,
    ChatVendorField,
    StreamChatResponse,
)
from lurus.usage.v1 import usage_pb2
from lurus_dialects import loose
from lurus_dialects.dialect import Dialect
from lurus_dialects.failures import cut_off, too_large, unusable
from lurus_dialects.openai_chat.failure_reader import failure_in
from lurus_dialects.openai_chat.stream_blocks import (
    REFUSAL,
    TEXT,
    THINKING,
    CallBlock,
    Events,
    TooLarge,
    WordsBlock,
)
from lurus_dialects.surrogates import joined
from lurus_dialects.translation import ToolName, set_tokens
from lurus_dialects.usage import UsageMeter

# No answer of any model comes near.
MAX_CALLS: Final = 10_000
_STOP_KINDS: Final = {
    "stop": chat_pb2.CHAT_STOP_KIND_END_TURN,
    "length": chat_pb2.CHAT_STOP_KIND_MAX_TOKENS,
    "tool_calls": chat_pb2.CHAT_STOP_KIND_TOOL_CALLS,
    "function_call": chat_pb2.CHAT_STOP_KIND_TOOL_CALLS,
    "content_filter": chat_pb2.CHAT_STOP_KIND_REFUSAL,
}
# Ends that may have cut a call; whatever else the server says, a turn with calls is one for tools.
_CUTTING_ENDS: Final = (chat_pb2.CHAT_STOP_KIND_MAX_TOKENS, chat_pb2.CHAT_STOP_KIND_REFUSAL)


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None
    input: str | None = None


class _Call(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: _Function | None = None
    custom: _Function | None = None


class _UrlCitation(msgspec.Struct, gc=False):
    title: str | None = None
    url: str | None = None


class _Annotation(msgspec.Struct, gc=False):
    type: str | None = None
    url_citation: _UrlCitation | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None
    annotations: msgspec.Raw = loose.ABSENT


class _Choice(msgspec.Struct, gc=False):
    index: int | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    object: str | None = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = loose.ABSENT
    error: msgspec.Raw = loose.ABSENT
    service_tier: str | None = None
    system_fingerprint: str | None = None


_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_ANNOTATIONS: Final = msgspec.json.Decoder(list[msgspec.Raw])


class StreamReader:
    """See `translation.AnswerReader`. Of several choices only the first is read."""

    def __init__(self, tool_names: Mapping[str, ToolName]) -> None:
        self._tool_names = tool_names
        self._meter = UsageMeter(Dialect.OPENAI_CHAT)
        self._words: WordsBlock | None = None
        # Those of one place in the list, in the order of their begin.
        self._calls: list[tuple[int | None, CallBlock]] = []
        self._next_index = 0
        self._response_id = ""
        self._stop_reason = ""
        self._vendor_fields: dict[str, str] = {}
        self._is_started = False
        self._is_over = False

    def read(self, name: bytes, data: bytes) -> Events:
        """Returns what one event says."""
        if self._is_over or not data:
            return []
        try:
            chunk = _CHUNK.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return self._read_odd(data)
        return self._bounded(chunk, data)

    def end(self) -> Events:
        """Returns what the end of the stream says: complete if the provider had said why it stops."""
        if self._is_over:
            return []
        if self._stop_reason:
            return self._finished()
        return self._ended_by(cut_off())

    def _read_odd(self, data: bytes) -> Events:
        if data.strip() == b"[DONE]":
            return self._finished() if self._is_started else self.end()
        value = loose.decode(data)
        if not isinstance(value, dict):
            if data.lstrip()[:1] == b"{":
                # An answer that lacks a piece is another answer.
                return self._ended_by(unusable("the provider sent an event that cannot be read"))
            return []
        return self._bounded(_fitted(value), data)

    def _bounded(self, chunk: _Chunk, data: bytes) -> Events:
        try:
            return self._read_chunk(chunk, data)
        except TooLarge:
            return self._ended_by(too_large())

    def _read_chunk(self, chunk: _Chunk, data: bytes) -> Events:
        if loose.is_stated(chunk.error) or chunk.object == "error":
            return self._ended_by(failure_in(data))
        events = [] if self._is_started else self._start(chunk)
        if chunk.choices:
            choice = chunk.choices[0] if not chunk.choices[0].index else _first(chunk.choices)
            if choice.delta is not None:
                events += self._read_delta(choice.delta)
            if choice.finish_reason:
                self._stop_reason = joined(choice.finish_reason)
                if self._stop_reason == "error":
                    return [*events, *self._ended_by(failure_in(data))]
        if chunk.service_tier or chunk.system_fingerprint:
            self._note(chunk)
        if chunk.usage and loose.is_stated(chunk.usage) and self._meter.add(chunk.usage):
            events.append(StreamChatResponse(usage=self._tokens()))
            if self._stop_reason and not chunk.choices:
                # Nothing but the terminator follows, and some servers forget that.
                events += self._finished()
        return events

    def _start(self, chunk: _Chunk) -> Events:
        if self._is_started:
            return []
        self._is_started = True
        self._response_id = joined(chunk.id or "")
        start = ChatStart(response_id=self._response_id, model=joined(chunk.model or ""))
        return [StreamChatResponse(start=start)]

    def _note(self, chunk: _Chunk) -> None:
        for name in ("service_tier", "system_fingerprint"):
            value = getattr(chunk, name)
            if value:
                self._vendor_fields[name] = value

    def _read_delta(self, delta: _Delta) -> Events:
        events: Events = []
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            events += self._add_words(THINKING, thought)
        if delta.content:
            events += self._add_words(TEXT, delta.content)
        if delta.refusal:
            events += self._add_words(REFUSAL, delta.refusal)
        if loose.is_stated(delta.annotations):
            events += self._cite(delta.annotations)
        for call in delta.tool_calls or ():
            events += self._add_call(call)
        if delta.function_call is not None:
            events += self._add_call(_Call(index=0, function=delta.function_call))
        return events

    def _add_words(self, kind: chat_pb2.ChatBlockKind.ValueType, text: str) -> Events:
        words = self._words
        if words is not None and words.kind == kind:
            return words.add(text)
        events = self._end_words() + self._end_whole_calls()
        self._words = words = WordsBlock(kind, self._take_index())
        return [*events, words.begin(), *words.add(text)]

    def _end_words(self) -> Events:
        words, self._words = self._words, None
        return [] if words is None else words.end()

    def _end_whole_calls(self) -> Events:
        """Ends calls of which nothing can follow, so that what comes next need not wait for them."""
        events: Events = []
        for _, call in self._calls:
            if call.has_begun and not call.has_ended and call.is_complete:
                events += call.end()
        return events

    def _take_index(self) -> int:
        self._next_index += 1
        return self._next_index - 1

    def _cite(self, raw: msgspec.Raw) -> Events:
        try:
            annotations = _ANNOTATIONS.decode(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return []
        if not annotations:
            return []
        events: Events = []
        if self._words is None or self._words.kind != TEXT:
            events += self._end_words()
            self._words = WordsBlock(TEXT, self._take_index())
            events.append(self._words.begin())
        position = self._words.index
        return events + [
            StreamChatResponse(citation=_citation(item), block_index=position) for item in annotations
        ]

    def _add_call(self, fragment: _Call) -> Events:
        function = fragment.function or fragment.custom or _Function()
        call = self._call_of(fragment, function)
        call.given_id = call.given_id or fragment.id or ""
        call.name = call.name or function.name or ""
        events: Events = []
        if not call.has_begun and call.name:
            events += self._end_words() + self._end_whole_calls()
            events += call.begin(self._take_index())
        return events + call.add(function.arguments or function.input or "")

    def _call_of(self, fragment: _Call, function: _Function) -> CallBlock:
        """Returns the call that a fragment belongs to, a new one if it is the first of it."""
        for index, call in reversed(self._calls):
            if fragment.index is not None and index == fragment.index:
                # Some servers count every call as the first; only the id tells them apart.
                is_other = fragment.id and call.given_id and fragment.id != call.given_id and function.name
                if not is_other:
                    return call
                break
            if fragment.index is None and fragment.id and fragment.id == call.given_id:
                return call
            if fragment.index is None and not fragment.id:
                # A name after complete arguments is another call's.
                if function.name and call.is_complete:
                    break
                return call
        if len(self._calls) >= MAX_CALLS:
            raise TooLarge
        fallback_id = f"{self._response_id}/{len(self._calls)}"
        call = CallBlock(fallback_id, fragment.custom is not None, self._tool_names)
        self._calls.append((fragment.index, call))
        return call

    def read_body(self, chunk: _Chunk, data: bytes) -> Events:
        """Returns what a whole answer says."""
        if loose.is_stated(chunk.error) or chunk.object == "error":
            return self._ended_by(failure_in(data))
        if not chunk.choices:
            return self._ended_by(unusable("the provider's answer holds no choice"))
        events = self._start(chunk)
        choice = _first(chunk.choices)
        message = choice.message or choice.delta or _Delta()
        for place, call in enumerate(message.tool_calls or ()):
            call.index = place
        events += self._read_delta(message)
        self._stop_reason = joined(choice.finish_reason or "")
        self._note(chunk)
        if chunk.usage:
            self._meter.add(chunk.usage)
        return events + self._finished()

    def bounded_body(self, chunk: _Chunk, data: bytes) -> Events:
        """Returns what a whole answer says, or that it is too large."""
        try:
            return self.read_body(chunk, data)
        except TooLarge:
            return self._ended_by(too_large())

    def _finished(self) -> Events:
        events = self._end_words()
        for _, call in self._calls:
            if not call.has_begun:
                # Without a name nobody can run it, but it is not ours to hide.
                events += call.begin(self._take_index())
            if not call.has_ended:
                events += call.end()
        self._is_over = True
        kind = _STOP_KINDS.get(self._stop_reason, chat_pb2.CHAT_STOP_KIND_UNSPECIFIED)
        is_cut = kind in _CUTTING_ENDS and any(call.is_cut for _, call in self._calls)
        if self._calls and not is_cut:
            kind = chat_pb2.CHAT_STOP_KIND_TOOL_CALLS
        finish = ChatFinish(
            stop_reason=self._stop_reason,
            kind=kind or chat_pb2.CHAT_STOP_KIND_END_TURN,
            tokens=self._tokens(),
            has_provider_tokens=self._meter.is_used,
            vendor_fields=[
                ChatVendorField(
                    dialect=usage_pb2.DIALECT_OPENAI_CHAT, name=name, json=msgspec.json.encode(joined(value))
                )
                for name, value in self._vendor_fields.items()
            ],
        )
        return [*events, StreamChatResponse(finish=finish)]

    def _tokens(self) -> usage_pb2.Tokens:
        tokens = usage_pb2.Tokens()
        set_tokens(tokens, self._meter.tokens())
        return tokens

    def _ended_by(self, error: ChatError) -> Events:
        self._is_over = True
        return [StreamChatResponse(error=error)]


def read_body(body: bytes, tool_names: Mapping[str, ToolName]) -> list[StreamChatResponse]:
    """See `translate.read_body`."""
    try:
        chunk = _CHUNK.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = loose.decode(body)
        chunk = _fitted(value) if isinstance(value, dict) else _Chunk()
    return StreamReader(tool_names).bounded_body(chunk, body)


def _fitted(value: dict[str, Any]) -> _Chunk:
    """Returns what fits of a chunk; a content that is a list of parts is taken for their texts."""
    for choice in loose.objects_in(value, "choices"):
        for name in ("delta", "message"):
            inner = choice.get(name)
            if isinstance(inner, dict) and isinstance(inner.get("content"), list):
                inner["content"] = "".join(
                    loose.text_of(part, "text") for part in loose.objects_in(inner, "content")
                )
    return loose.fit(_Chunk, value)


def _first(choices: list[_Choice]) -> _Choice:
    """Returns the first of several answers; of another one nothing is told."""
    return next((choice for choice in choices if not choice.index), _Choice())


def _citation(raw: msgspec.Raw) -> ChatCitation:
    try:
        known = msgspec.json.decode(raw, type=_Annotation)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        known = _Annotation()
    url = known.url_citation or _UrlCitation()
    original = ChatVendorField(
        dialect=usage_pb2.DIALECT_OPENAI_CHAT, name=known.type or "annotation", json=bytes(raw)
    )
    return ChatCitation(title=url.title or "", url=url.url or "", original=original)
