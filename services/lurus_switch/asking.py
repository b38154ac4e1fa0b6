"""One prompt in any dialect: the request's body, and the text in the events of its answer."""

import json
import time
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field
from typing import Any

from lurus.routing.v1 import routing_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus_dialects.sse import SseParser

PATHS = {
    usage_pb2.DIALECT_ANTHROPIC: "/v1/messages",
    usage_pb2.DIALECT_OPENAI_CHAT: "/v1/chat/completions",
    usage_pb2.DIALECT_OPENAI_RESPONSES: "/v1/responses",
}
MAX_ERROR_BYTES = 64 * 1024


@dataclass(slots=True)
class Answer:
    """What came back. `end` is None if the answer was cut, `error` empty if it is none."""

    request_id: str = ""
    status: int = 0
    pieces: list[str] = field(default_factory=list)
    error: str = ""
    first_text_seconds: float = 0.0
    end: pb.RelayEnd | None = None

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self.pieces)


def request_of(
    dialect: usage_pb2.Dialect.ValueType, model: str, prompt: str, max_tokens: int, api_key: str
) -> pb.RelayRequest:
    """Returns a streaming request of one user turn."""
    messages = [{"role": "user", "content": prompt}]
    body: dict[str, Any] = {"model": model, "stream": True}
    headers = [pb.Header(name="content-type", value=b"application/json")]
    if dialect == usage_pb2.DIALECT_ANTHROPIC:
        body.update(messages=messages, max_tokens=max_tokens)
        headers.append(pb.Header(name="anthropic-version", value=b"2023-06-01"))
    elif dialect == usage_pb2.DIALECT_OPENAI_CHAT:
        body.update(messages=messages, max_completion_tokens=max_tokens)
    else:
        body.update(input=prompt, max_output_tokens=max_tokens, store=False)
    return pb.RelayRequest(
        dialect=dialect,
        path=PATHS[dialect],
        headers=headers,
        body=json.dumps(body, ensure_ascii=False).encode(),
        credentials=[api_key],
    )


async def read_answer(
    dialect: usage_pb2.Dialect.ValueType,
    parts: AsyncIterable[pb.RelayResponse],
    write: Callable[[str], None],
) -> Answer:
    """Reads an answer to its end and hands over its text as it comes."""
    begin, answer, parser, plain = time.monotonic(), Answer(), SseParser(), bytearray()
    is_stream = False
    async for part in parts:
        if part.HasField("head"):
            answer.status, answer.request_id = part.head.status, part.head.request_id
            is_stream = part.head.is_streaming and answer.status < 400
        elif part.HasField("end"):
            answer.end = part.end
        elif is_stream:
            for event in parser.feed(part.data):
                _take(dialect, event.data, answer, write, begin)
        else:
            plain += part.data[: MAX_ERROR_BYTES - len(plain)]
    if plain or answer.status >= 400:
        answer.error = answer.error or error_text(bytes(plain)) or "no reason was told"
    return answer


def _take(dialect: int, data: Any, answer: Answer, write: Callable[[str], None], begin: float) -> None:
    try:
        event = json.loads(data)
    except ValueError:
        return
    if not isinstance(event, dict):
        return
    answer.error = answer.error or stream_error(event)
    text = event_text(dialect, event)
    if text:
        answer.first_text_seconds = answer.first_text_seconds or time.monotonic() - begin
        answer.pieces.append(text)
        write(text)


def event_text(dialect: int, event: dict[str, Any]) -> str:
    """Returns the text that an event adds to the answer."""
    if dialect == usage_pb2.DIALECT_ANTHROPIC:
        delta = event.get("delta") if event.get("type") == "content_block_delta" else None
        found = delta.get("text") if isinstance(delta, dict) else None
    elif dialect == usage_pb2.DIALECT_OPENAI_CHAT:
        choices = event.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        delta = first.get("delta") if isinstance(first, dict) else None
        found = delta.get("content") if isinstance(delta, dict) else None
    else:
        found = event.get("delta") if event.get("type") == "response.output_text.delta" else None
    return found if isinstance(found, str) else ""


def stream_error(event: dict[str, Any]) -> str:
    """Returns the message of an error in a stream, or an empty string."""
    response = event.get("response")
    error = event.get("error") or (response.get("error") if isinstance(response, dict) else None)
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return str(error) if error else ""


def error_text(body: bytes) -> str:
    """Returns the message of an error's body in any dialect."""
    try:
        tree = json.loads(body)
    except ValueError:
        return body.decode(errors="replace").strip()[:500]
    return stream_error(tree) if isinstance(tree, dict) else ""
