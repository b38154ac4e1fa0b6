"""Reads answers in the shape of Anthropic Messages."""

from typing import Any

import msgspec

from lurus_dialects import loose
from lurus_dialects.answer import Answer


class _Delta(msgspec.Struct, gc=False):
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    content: str | None = None
    stop_reason: str | None = None


class _Message(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    usage: msgspec.Raw = loose.ABSENT


class _Block(msgspec.Struct, gc=False):
    name: str | None = None
    text: str | None = None
    thinking: str | None = None


class _Event(msgspec.Struct, gc=False):
    type: str | None = None
    delta: _Delta | None = None
    message: _Message | None = None
    content_block: _Block | None = None
    usage: msgspec.Raw = loose.ABSENT
    error: msgspec.Raw = loose.ABSENT


_EVENT = msgspec.json.Decoder(_Event)


def observe_event(answer: Answer, name: bytes, data: bytes) -> bool:
    """Notes what one event says; returns False, since none is ever to be hidden."""
    try:
        event = _EVENT.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = loose.decode(data)
        if not isinstance(value, dict):
            answer.broken_event_count += 1
            return False
        event = loose.fit(_Event, value)
    kind = event.type
    if kind == "content_block_delta":
        answer.content_seen = True
        delta = event.delta
        if delta is not None:
            answer.add_output(delta.text or delta.partial_json or delta.thinking or delta.content)
    elif kind == "content_block_start":
        answer.content_seen = True
        block = event.content_block
        if block is not None:
            answer.add_output(block.name or block.text or block.thinking)
    else:
        _observe_frame(answer, kind or name.decode("utf-8", "replace"), event, data)
    return False


def _observe_frame(answer: Answer, kind: str, event: _Event, data: bytes) -> None:
    if kind == "message_start":
        if event.message is not None:
            answer.response_id = event.message.id or ""
            answer.response_model = event.message.model or ""
            answer.meter.add(event.message.usage)
    elif kind == "message_delta":
        if event.delta is not None and event.delta.stop_reason:
            answer.stop_reason = event.delta.stop_reason
        answer.final_usage_seen |= answer.meter.add(event.usage)
    elif kind == "message_stop":
        answer.terminal_seen = True
        answer.terminal_ok = not answer.error_seen
    elif kind == "error" or (loose.is_stated(event.error) and event.type is None):
        answer.note_error(data)


def observe_body(answer: Answer, body: dict[str, Any]) -> bool:
    """Notes what a plain answer wrote; returns whether it is one of this dialect."""
    if not isinstance(body.get("content"), list) or body.get("type", "message") != "message":
        return False
    answer.stop_reason = loose.text_of(body, "stop_reason")
    for block in loose.objects_in(body, "content"):
        answer.content_seen = True
        answer.add_output(loose.text_of(block, "name", "text", "thinking"))
        if block.get("input"):
            answer.add_output(loose.compact(block["input"]).decode())
    return True


def is_error_body(body: dict[str, Any]) -> bool:
    """True for `{"type":"error","error":{"type":…,"message":…}}`."""
    error = body.get("error")
    return body.get("type") == "error" and isinstance(error, dict) and isinstance(error.get("type"), str)
