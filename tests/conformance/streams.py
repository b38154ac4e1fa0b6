"""Whole streams and bodies of providers, and what the clients of the conformance cases make of them."""

import json
from typing import Any

from tests.support import provider_streams as provider
from tests.support.raw_client import ServerEvent

# Fresh input, read from the cache, written to it, output: one usage in three vocabularies.
FRESH, READ, WRITTEN, OUTPUT = 10, 1000, 100, 50
A_USAGE = {
    "input_tokens": FRESH,
    "cache_read_input_tokens": READ,
    "cache_creation_input_tokens": WRITTEN,
    "output_tokens": 1,
}
C_USAGE = {
    "prompt_tokens": FRESH + READ + WRITTEN,
    "completion_tokens": OUTPUT,
    "total_tokens": FRESH + READ + WRITTEN + OUTPUT,
    "prompt_tokens_details": {"cached_tokens": READ, "cache_write_tokens": WRITTEN},
}
R_USAGE = {
    "input_tokens": FRESH + READ + WRITTEN,
    "input_tokens_details": {"cached_tokens": READ, "cache_write_tokens": WRITTEN},
    "output_tokens": OUTPUT,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": FRESH + READ + WRITTEN + OUTPUT,
}


def begin(dialect: str) -> list[bytes]:
    """How a stream begins, with nothing of its text yet."""
    if dialect == "A":
        return [provider.a_start(A_USAGE), provider.a_open(0, {"type": "text", "text": ""})]
    if dialect == "C":
        return [provider.c_start()]
    return [responses("").partition(b"event: response.output_text.delta")[0]]


def deltas(dialect: str, *parts: str, first: int = 0) -> list[bytes]:
    """One event for each part of the text; the first of them is the `first` of its text."""
    if dialect == "A":
        return [provider.a_delta(0, "text_delta", text=part) for part in parts]
    if dialect == "C":
        return [provider.c_text(part) for part in parts]
    at = {"output_index": 0, "item_id": "msg_0", "content_index": 0}
    return [
        provider.named("response.output_text.delta", sequence_number=4 + number, **at, delta=part)
        for number, part in enumerate(parts, first)
    ]


def end(dialect: str, *parts: str) -> list[bytes]:
    """How a stream ends; of Responses it repeats the parts of the text."""
    if dialect == "A":
        return [provider.a_close(0), provider.a_end(output_tokens=OUTPUT)]
    if dialect == "C":
        return [
            provider.c_chunk({}, "stop"),
            provider.c_chunk(usage=C_USAGE),
            provider.DONE,
        ]
    tail = responses(*parts).partition(b"event: response.output_text.done")
    return [tail[1] + tail[2]]


def whole(dialect: str, *parts: str) -> list[bytes]:
    """A whole stream of one text."""
    return [*begin(dialect), *deltas(dialect, *parts), *end(dialect, *parts)]


def responses(*parts: str) -> bytes:
    """A whole stream of Responses with one message."""
    stream = provider.ResponsesStream()
    middle = stream.start() + stream.text(*parts)
    return middle + stream.end(usage=R_USAGE)


def plain_body(dialect: str, text: str = "hello") -> dict[str, Any]:
    """A whole plain answer."""
    if dialect == "A":
        usage = {**A_USAGE, "output_tokens": OUTPUT}
        return provider.a_body([{"type": "text", "text": text}], usage=usage)
    if dialect == "C":
        return provider.c_body({"content": text}, usage=C_USAGE)
    content = [{"type": "output_text", "text": text, "annotations": []}]
    item = {"id": "msg_0", "type": "message", "role": "assistant", "status": "completed", "content": content}
    return provider.r_body([item], usage=R_USAGE)


def text_in(dialect: str, body: dict[str, Any]) -> str:
    """The text of a plain answer."""
    if dialect == "A":
        return "".join(block.get("text", "") for block in body["content"])
    if dialect == "C":
        return str(body["choices"][0]["message"]["content"])
    return "".join(part["text"] for item in body["output"] for part in item.get("content", ()))


def is_error(dialect: str, event: ServerEvent) -> bool:
    """Whether an event is what the dialect ends a failed stream with."""
    if not event.data or event.data == "[DONE]":
        return False
    data = event.json
    if dialect == "A":
        return event.name == "error" and data["type"] == "error" and data["error"]["type"] == "api_error"
    if dialect == "C":
        return "error" in data
    return (
        event.name == data["type"] == "response.failed"
        and data["response"]["error"]["code"] == "server_error"
        and data["response"]["status"] == "failed"
    )


def has_end(dialect: str, events: list[ServerEvent]) -> bool:
    """Whether the stream claims to be complete."""
    if dialect == "C":
        return any(event.data == "[DONE]" for event in events)
    ends = {"message_stop", "response.completed", "response.incomplete"}
    return any(event.name in ends for event in events)


def normal(events: list[ServerEvent]) -> list[Any]:
    """The events without what differs between two runs: ids and times."""
    found = []
    for event in events:
        data = event.data if event.data in (None, "[DONE]") else _without_ids(json.loads(event.data or ""))
        found.append((event.name, data, event.comments))
    return found


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        moving = {"id", "item_id", "created", "created_at", "completed_at", "request_id"}
        return {name: _without_ids(item) for name, item in value.items() if name not in moving}
    if isinstance(value, list):
        return [_without_ids(item) for item in value]
    return value
