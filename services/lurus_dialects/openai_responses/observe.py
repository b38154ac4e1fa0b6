"""Reads answers in the shape of OpenAI Responses."""

from typing import Any, Final

import msgspec

from lurus_dialects import loose
from lurus_dialects.answer import Answer
from lurus_dialects.usage import text_bytes

_TERMINALS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_LIFECYCLE: Final = _TERMINALS | {"response.created", "response.queued", "response.in_progress"}


class _Error(msgspec.Struct, gc=False):
    code: str | None = None
    message: str | None = None


class _Details(msgspec.Struct, gc=False):
    reason: str | None = None


class _Response(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    status: str | None = None
    usage: msgspec.Raw = loose.ABSENT
    tool_usage: msgspec.Raw = loose.ABSENT
    error: _Error | None = None
    incomplete_details: _Details | None = None


class _Event(msgspec.Struct, gc=False):
    type: str | None = None
    sequence_number: int | None = None
    delta: str | None = None
    response: _Response | None = None
    item: msgspec.Raw = loose.ABSENT
    error: msgspec.Raw = loose.ABSENT


_EVENT = msgspec.json.Decoder(_Event)


def observe_event(answer: Answer, name: bytes, data: bytes) -> bool:
    """Notes what one event says; returns False, since none is ever to be hidden."""
    try:
        event = _EVENT.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = loose.decode(data)
        if not isinstance(value, dict):
            answer.broken_event_count += data.strip() != b"[DONE]"
            return False
        event = loose.fit(_Event, value)
    if event.sequence_number is not None:
        answer.sequence_number = event.sequence_number
    kind = event.type or name.decode("utf-8", "replace")
    if event.delta is not None and kind.endswith(".delta"):
        answer.content_seen = True
        if not kind.startswith("response.audio."):
            answer.add_output(event.delta)
    elif kind in _LIFECYCLE:
        _observe_response(answer, kind, event.response or _Response())
    elif kind == "response.output_item.done":
        _observe_item(answer, event.item)
    elif kind == "response.output_item.added":
        answer.content_seen = True
    elif kind == "error" or (loose.is_stated(event.error) and event.type is None):
        answer.note_error(_error_body(data))
    return False


def _observe_response(answer: Answer, kind: str, response: _Response) -> None:
    answer.response_id = response.id or answer.response_id
    answer.response_model = response.model or answer.response_model
    has_usage = answer.meter.add(response.usage)
    answer.meter.add_tools(response.tool_usage)
    if kind not in _TERMINALS:
        return
    answer.terminal_seen = True
    answer.final_usage_seen |= has_usage
    answer.stop_reason = _stop_reason(kind, response)
    if kind == "response.failed":
        error = response.error or _Error()
        answer.note_error(loose.compact({"error": _plain_error(error.code, error.message)}))
    else:
        answer.terminal_ok = not answer.error_seen


def _stop_reason(kind: str, response: _Response) -> str:
    details = response.incomplete_details
    return (details and details.reason) or response.status or kind.removeprefix("response.")


def _error_body(data: bytes) -> bytes:
    """Returns the error of a bare `error` event, whose fields are at the top, in the shape of a body."""
    value = loose.decode(data)
    error = value.get("error") if isinstance(value, dict) else None
    fields = error if isinstance(error, dict) else value if isinstance(value, dict) else {}
    return loose.compact(
        {"error": _plain_error(loose.text_of(fields, "code"), loose.text_of(fields, "message"))}
    )


def _plain_error(code: str | None, message: str | None) -> dict[str, str | None]:
    return {"message": message or "", "type": code or "server_error", "param": None, "code": code or None}


def _observe_item(answer: Answer, raw: msgspec.Raw) -> None:
    answer.content_seen = True
    if not loose.is_stated(raw):
        return
    answer.keep_done_item(bytes(raw))
    item = loose.decode(bytes(raw))
    if isinstance(item, dict):
        answer.add_done_output(_item_bytes(item))


def _item_bytes(item: dict[str, Any]) -> int:
    texts = loose.text_of(item, "name", "arguments", "input")
    for part in (*loose.objects_in(item, "content"), *loose.objects_in(item, "summary")):
        texts += loose.text_of(part, "text", "refusal")
    return text_bytes(texts)


def observe_body(answer: Answer, body: dict[str, Any]) -> bool:
    """Notes what a plain answer wrote; returns whether it is one of this dialect."""
    if body.get("object") != "response" and not isinstance(body.get("output"), list):
        return False
    response = loose.fit(_Response, body)
    answer.stop_reason = _stop_reason("response.completed", response)
    for item in loose.objects_in(body, "output"):
        answer.content_seen = True
        answer.add_done_output(_item_bytes(item))
    return True


def is_error_body(body: dict[str, Any]) -> bool:
    """True for `{"error":{"message":…}}`, which is no response object."""
    error = body.get("error")
    return (
        body.get("object") != "response" and isinstance(error, dict) and isinstance(error.get("message"), str)
    )
