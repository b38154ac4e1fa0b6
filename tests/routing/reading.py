"""What a client of each dialect reads in an answer, and how providers report failures."""

from typing import Any

import msgspec

from lurus.usage.v1 import usage_pb2
from lurus_dialects.sse import SseParser

from .rig import ANTHROPIC, CHAT, RESPONSES, Answer, DialectValue, named


def tokens_of(provider: DialectValue) -> usage_pb2.Tokens:
    """What every answer of the rig states."""
    written = {"cache_write_5m" if provider == ANTHROPIC else "cache_write_30m": 100}
    return usage_pb2.Tokens(input=10, cache_read=1000, output=50, **written)


def events_in(body: bytes) -> list[tuple[str, Any]]:
    """Names and data of a stream's events; data that is no JSON stays as it is."""
    found = []
    for event in SseParser().feed(body):
        if event.data:
            is_done = event.data == b"[DONE]"
            found.append((event.name.decode(), "[DONE]" if is_done else msgspec.json.decode(event.data)))
    return found


def text_in(client: DialectValue, answer: Answer) -> str:
    """The text that a client reads."""
    if not answer.head.is_streaming:
        body = msgspec.json.decode(answer.body)
        if client == ANTHROPIC:
            return "".join(block.get("text", "") for block in body["content"])
        if client == CHAT:
            return str(body["choices"][0]["message"]["content"])
        return "".join(part["text"] for item in body["output"] for part in item.get("content", ()))
    texts = []
    for name, data in events_in(answer.body):
        if client == ANTHROPIC and name == "content_block_delta":
            texts.append(data["delta"].get("text", ""))
        elif client == CHAT and data != "[DONE]" and data.get("choices"):
            texts.append(data["choices"][0]["delta"].get("content") or "")
        elif client == RESPONSES and name == "response.output_text.delta":
            texts.append(data["delta"])
    return "".join(texts)


def usage_in(client: DialectValue, answer: Answer) -> dict[str, Any]:
    """The last usage that a client reads."""
    if not answer.head.is_streaming:
        return dict(msgspec.json.decode(answer.body)["usage"])
    found: dict[str, Any] = {}
    for _, data in events_in(answer.body):
        if isinstance(data, dict):
            found = data.get("usage") or data.get("response", {}).get("usage") or found
    return found


def check_usage(client: DialectValue, usage: dict[str, Any]) -> None:
    """Checks that a client reads 10 fresh, 1000 cached, 100 written and 50 output tokens."""
    if client == ANTHROPIC:
        names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
        assert [usage[name] for name in names] == [10, 1000, 100, 50]
        return
    given, made = ("prompt", "completion") if client == CHAT else ("input", "output")
    assert (usage[f"{given}_tokens"], usage[f"{made}_tokens"], usage["total_tokens"]) == (1110, 50, 1160)
    assert usage[f"{given}_tokens_details"]["cached_tokens"] == 1000


def headers_of(answer: Answer) -> dict[str, bytes]:
    """The headers that a client reads."""
    return {header.name: header.value for header in answer.head.headers}


def error_in(answer: Answer) -> dict[str, Any]:
    """The error of a plain answer."""
    return dict(msgspec.json.decode(answer.body)["error"])


def provider_error(provider: DialectValue, kind: str, message: str) -> bytes:
    """An error body as a provider of a dialect writes it."""
    if provider == ANTHROPIC:
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": None}})


def overloaded_event(provider: DialectValue) -> bytes:
    """An error in a stream."""
    if provider == ANTHROPIC:
        return named("error", error={"type": "overloaded_error", "message": "Overloaded"})
    error = {"message": "busy", "type": "server_error", "code": "server_is_overloaded"}
    if provider == CHAT:
        return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"
    response = {"id": "resp_1", "object": "response", "status": "failed", "error": error, "output": []}
    return named("response.failed", sequence_number=8, response=response)


def rate_limit_event(provider: DialectValue) -> bytes:
    """The same, of too many requests."""
    if provider == ANTHROPIC:
        return named("error", error={"type": "rate_limit_error", "message": "slow down"})
    error = {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}
    if provider == CHAT:
        return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"
    response = {"id": "resp_1", "object": "response", "status": "failed", "error": error, "output": []}
    return named("response.failed", sequence_number=0, response=response)
