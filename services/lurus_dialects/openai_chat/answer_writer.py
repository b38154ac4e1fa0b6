"""Writes events of the hub as answers in the shape of OpenAI Chat Completions."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlockStart, ChatFinish, ChatToolCall, StreamChatResponse
from lurus.usage.v1 import usage_pb2
from lurus_dialects import errors
from lurus_dialects.answer import Answer
from lurus_dialects.dialect import Dialect
from lurus_dialects.tools import flat_name
from lurus_dialects.translation import Asked

_OWN: Final = usage_pb2.DIALECT_OPENAI_CHAT
_CUSTOM: Final = chat_pb2.CHAT_TOOL_KIND_CUSTOM
_REFUSAL: Final = chat_pb2.CHAT_BLOCK_KIND_REFUSAL
_DONE: Final = b"data: [DONE]\n\n"
_FINISH_REASONS: Final = {
    chat_pb2.CHAT_STOP_KIND_TOOL_CALLS: "tool_calls",
    chat_pb2.CHAT_STOP_KIND_MAX_TOKENS: "length",
    chat_pb2.CHAT_STOP_KIND_CONTEXT_FULL: "length",
    chat_pb2.CHAT_STOP_KIND_REFUSAL: "content_filter",
}
_encode = msgspec.json.Encoder().encode


class _OpenCall:
    """A call whose arguments go on."""

    __slots__ = ("field", "has_arguments", "place")

    def __init__(self, place: int, field: str) -> None:
        self.place = place
        self.field = field
        self.has_arguments = False


class StreamWriter:
    """See `translation.AnswerWriter`. Blocks may interleave here as they do in the hub.

    Attributes:
        dropped_count: events that this dialect cannot show.
    """

    def __init__(self, asked: Asked) -> None:
        self.is_over = False
        self.dropped_count = 0
        self._asked = asked
        identity = {
            "id": asked.response_id,
            "object": "chat.completion.chunk",
            "created": asked.create_seconds,
            "model": asked.request.model,
        }
        self._head = b"data: " + _encode(identity)[:-1] + b',"choices":['
        self._tail = b',"usage":null}\n\n' if asked.includes_usage else b"}\n\n"
        self._delta_tail = b',"finish_reason":null}]' + self._tail
        self._is_started = False
        self._refusals: set[int] = set()
        self._calls: dict[int, _OpenCall] = {}

    def write(self, event: StreamChatResponse) -> bytes:
        """Returns whole events of the dialect."""
        if self.is_over:
            return b""
        kind = event.WhichOneof("event")
        if kind == "error":
            return self.error(event.error.reason, event.error.message, "")
        begin = b"" if self._is_started else self._begin()
        if kind == "text_delta":
            name = "refusal" if event.block_index in self._refusals else "content"
            return begin + self._delta({name: event.text_delta})
        if kind == "thinking_delta":
            return begin + self._thinking(event.thinking_delta)
        if kind == "arguments_delta":
            return begin + self._arguments(event.block_index, event.arguments_delta)
        if kind == "block_start":
            return begin + self._block_start(event.block_index, event.block_start)
        if kind == "tool_call":
            return begin + self._call_end(event.block_index, event.tool_call)
        if kind == "citation":
            return begin + self._citation(event.citation)
        if kind == "finish":
            return begin + self._finish(event.finish)
        self.dropped_count += kind in ("vendor_event", "thinking_seal")
        return begin

    def heartbeat(self) -> bytes:
        """Returns bytes that keep a silent connection alive."""
        return b": keepalive\n\n"

    def error(self, reason: str, message: str, request_id: str) -> bytes:
        """Returns the event that ends a stream which cannot be completed; no `[DONE]` follows it."""
        self.is_over = True
        return errors.stream_error(Answer(Dialect.OPENAI_CHAT), reason, message, request_id)

    def _begin(self) -> bytes:
        self._is_started = True
        return self._delta({"role": "assistant", "content": ""})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return b'%s{"index":0,"delta":%s%s' % (self._head, _encode(delta), self._delta_tail)

    def _thinking(self, text: str) -> bytes:
        return b"" if self._asked.hides_reasoning else self._delta({"reasoning_content": text})

    def _block_start(self, index: int, start: ChatBlockStart) -> bytes:
        if start.kind == _REFUSAL:
            self._refusals.add(index)
        if start.kind != chat_pb2.CHAT_BLOCK_KIND_TOOL_CALL:
            return b""
        call = start.tool_call
        kind, field = _words(call)
        opened = _OpenCall(len(self._calls), field)
        self._calls[index] = opened
        value = {"index": opened.place, **_call(call, kind, field, "")}
        return self._delta({"tool_calls": [value]})

    def _arguments(self, index: int, part: str) -> bytes:
        call = self._calls.get(index)
        if call is None:
            return b""
        call.has_arguments = True
        kind = "custom" if call.field == "input" else "function"
        return self._delta({"tool_calls": [{"index": call.place, kind: {call.field: part}}]})

    def _call_end(self, index: int, call: ChatToolCall) -> bytes:
        opened = self._calls.get(index)
        if opened is None or opened.has_arguments or not call.arguments:
            return b""
        # A call without arguments is one with an empty object (Y11).
        return self._arguments(index, call.arguments.decode("utf-8", "replace"))

    def _citation(self, citation: chat_pb2.ChatCitation) -> bytes:
        annotation = _annotation(citation)
        if annotation is None:
            self.dropped_count += 1
            return b""
        return self._delta({"annotations": [annotation]})

    def _finish(self, finish: ChatFinish) -> bytes:
        self.is_over = True
        reason = _encode(_finish_reason(finish, bool(self._calls)))
        end = b'%s{"index":0,"delta":{},"finish_reason":%s}]%s' % (self._head, reason, self._tail)
        if not self._asked.includes_usage:
            return end + _DONE
        usage = b'%s],"usage":%s}\n\n' % (self._head, _encode(_usage(finish.tokens)))
        return end + usage + _DONE


def write_body(events: Sequence[StreamChatResponse], asked: Asked) -> bytes:
    """See `translate.write_body`."""
    texts: dict[str, list[str]] = {"content": [], "refusal": [], "reasoning_content": []}
    calls: list[dict[str, Any]] = []
    annotations: list[Any] = []
    refusals: set[int] = set()
    finish = ChatFinish()
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "block_start" and event.block_start.kind == _REFUSAL:
            refusals.add(event.block_index)
        elif kind == "text_delta":
            texts["refusal" if event.block_index in refusals else "content"].append(event.text_delta)
        elif kind == "thinking_delta" and not asked.hides_reasoning:
            texts["reasoning_content"].append(event.thinking_delta)
        elif kind == "tool_call":
            calls.append(_whole_call(event.tool_call))
        elif kind == "citation" and (annotation := _annotation(event.citation)) is not None:
            annotations.append(annotation)
        elif kind == "finish":
            finish = event.finish
    message = _message(texts, calls, annotations)
    return _encode(_completion(message, finish, bool(calls), asked))


def _message(texts: dict[str, list[str]], calls: list[Any], annotations: list[Any]) -> dict[str, Any]:
    content = "".join(texts["content"])
    is_silent = not content and (calls or texts["refusal"])
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if is_silent else content,
        "refusal": "".join(texts["refusal"]) or None,
    }
    if texts["reasoning_content"]:
        message["reasoning_content"] = "".join(texts["reasoning_content"])
    if calls:
        message["tool_calls"] = calls
    if annotations:
        message["annotations"] = annotations
    return message


def _completion(message: dict[str, Any], finish: ChatFinish, has_calls: bool, asked: Asked) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _finish_reason(finish, has_calls),
    }
    completion: dict[str, Any] = {
        "id": asked.response_id,
        "object": "chat.completion",
        "created": asked.create_seconds,
        "model": asked.request.model,
        "choices": [choice],
        "usage": _usage(finish.tokens),
    }
    for field in finish.vendor_fields:
        if field.dialect == _OWN:
            completion.setdefault(field.name, msgspec.Raw(field.json))
    return completion


def _finish_reason(finish: ChatFinish, has_calls: bool) -> str:
    reason = _FINISH_REASONS.get(finish.kind, "stop")
    return "tool_calls" if reason == "stop" and has_calls else reason


def _words(call: ChatToolCall) -> tuple[str, str]:
    """Returns what kind of tool it is, and what its arguments are called."""
    return ("custom", "input") if call.kind == _CUSTOM else ("function", "arguments")


def _call(call: ChatToolCall, kind: str, field: str, arguments: str) -> dict[str, Any]:
    name = flat_name(call.name, call.namespace) if call.namespace else call.name
    return {"id": call.tool_call_id, "type": kind, kind: {"name": name, field: arguments}}


def _whole_call(call: ChatToolCall) -> dict[str, Any]:
    return _call(call, *_words(call), call.arguments.decode("utf-8", "replace"))


def _annotation(citation: chat_pb2.ChatCitation) -> Any:
    """Returns a source in the form of this dialect; None if it has no address to show."""
    if citation.original.dialect == _OWN:
        return msgspec.Raw(citation.original.json)
    if not citation.url:
        return None
    where = {"start_index": 0, "end_index": 0, "title": citation.title, "url": citation.url}
    return {"type": "url_citation", "url_citation": where}


def _usage(tokens: usage_pb2.Tokens) -> dict[str, Any]:
    """Returns the counts; here the input includes what the cache read and wrote."""
    written = tokens.cache_write_5m + tokens.cache_write_30m + tokens.cache_write_1h + tokens.cache_write_12h
    read = tokens.input + tokens.cache_read + written
    return {
        "prompt_tokens": read,
        "completion_tokens": tokens.output,
        "total_tokens": read + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cache_read, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }
