"""Reads answers in the shape of OpenAI Chat Completions."""

from typing import Any

import msgspec

from lurus_dialects import loose
from lurus_dialects.answer import Answer


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None
    input: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None
    custom: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    audio: msgspec.Raw = loose.ABSENT


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = loose.ABSENT
    error: msgspec.Raw = loose.ABSENT
    object: str | None = None


_CHUNK = msgspec.json.Decoder(_Chunk)


def observe_event(answer: Answer, name: bytes, data: bytes) -> bool:
    """Notes what one event says; returns whether it holds usage and no choice (wire-contract B6)."""
    try:
        chunk = _CHUNK.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _observe_odd(answer, data)
    return _observe_chunk(answer, chunk, data)


def _observe_odd(answer: Answer, data: bytes) -> bool:
    if data.strip() == b"[DONE]":
        answer.terminal_seen = True
        answer.terminal_ok = not answer.error_seen
        return False
    value = loose.decode(data)
    if isinstance(value, dict):
        return _observe_chunk(answer, loose.fit(_Chunk, value), data)
    answer.broken_event_count += 1
    return False


def _observe_chunk(answer: Answer, chunk: _Chunk, data: bytes) -> bool:
    if chunk.choices:
        for choice in chunk.choices:
            if choice.delta is not None:
                _observe_delta(answer, choice.delta)
            if choice.text:
                answer.add_output(choice.text)
            if choice.finish_reason:
                answer.stop_reason = choice.finish_reason
    if not answer.response_id and chunk.id:
        answer.response_id, answer.response_model = chunk.id, chunk.model or ""
    if (chunk.error and loose.is_stated(chunk.error)) or chunk.object == "error":
        answer.note_error(data)
    if not chunk.usage or not loose.is_stated(chunk.usage) or not answer.meter.add(chunk.usage):
        return False
    answer.final_usage_seen = True
    return chunk.choices is not None and not chunk.choices


def _observe_delta(answer: Answer, delta: _Delta) -> None:
    text = delta.content or delta.reasoning_content or delta.reasoning or delta.refusal
    if text:
        answer.add_output(text)
    if delta.tool_calls:
        for call in delta.tool_calls:
            answer.content_seen = True
            _observe_function(answer, call.function or call.custom)
    if delta.function_call is not None:
        _observe_function(answer, delta.function_call)
    if loose.is_stated(delta.audio):
        answer.content_seen = True


def _observe_function(answer: Answer, function: _Function | None) -> None:
    if function is not None:
        answer.add_output(function.name)
        answer.add_output(function.arguments or function.input)


def observe_body(answer: Answer, body: dict[str, Any]) -> bool:
    """Notes what a plain answer wrote; returns whether it is one of this dialect."""
    if not isinstance(body.get("choices"), list):
        return False
    for choice in loose.objects_in(body, "choices"):
        answer.stop_reason = loose.text_of(choice, "finish_reason") or answer.stop_reason
        answer.add_output(loose.text_of(choice, "text"))
        message = choice.get("message")
        if isinstance(message, dict):
            _observe_delta(answer, loose.fit(_Delta, message))
    return True


def is_error_body(body: dict[str, Any]) -> bool:
    """True for `{"error":{"message":…}}`."""
    error = body.get("error")
    return isinstance(error, dict) and isinstance(error.get("message"), str)
