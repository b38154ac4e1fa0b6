"""Short ways through the Responses spoke."""

import json
from collections.abc import Iterable
from typing import Any

from lurus.provider.v1.provider_pb2 import ProviderQuirks
from lurus.routing.v1.chat_pb2 import StreamChatRequest, StreamChatResponse
from lurus_dialects.dialect import Dialect
from lurus_dialects.openai_responses.answer_reader import StreamReader
from lurus_dialects.openai_responses.answer_writer import StreamWriter
from lurus_dialects.openai_responses.request_reader import read_request
from lurus_dialects.openai_responses.request_writer import write_request
from lurus_dialects.sse import SseParser
from lurus_dialects.translation import Asked, Losses, Target, ToolName

MODEL = "gpt-up"
SEED = {"model": "m", "input": "hi", "include": ["reasoning.encrypted_content"]}


def target(**more: Any) -> Target:
    """Returns a provider of Responses."""
    quirks = ProviderQuirks(**more.pop("quirks", {}))
    return Target(Dialect.OPENAI_RESPONSES, MODEL, "prov_r", quirks, **more)


def read(body: dict[str, Any], losses: Losses | None = None) -> StreamChatRequest:
    """Returns what the hub makes of a client's body."""
    return read_request(json.dumps(body).encode(), losses or Losses())


def write(
    request: StreamChatRequest,
    losses: Losses | None = None,
    to: Target | None = None,
    *,
    is_streaming: bool = False,
) -> dict[str, Any]:
    """Returns the body that a provider gets."""
    written = write_request(request, to or target(), losses or Losses(), is_streaming=is_streaming)
    body: dict[str, Any] = json.loads(written.body)
    return body


def asked(request: StreamChatRequest | None = None, **more: Any) -> Asked:
    """Returns what a writer knows of a request."""
    return Asked(request or read(SEED), "resp_01ABC", 1_763_852_000, **more)


def events_of(stream: bytes) -> list[tuple[bytes, bytes]]:
    """Returns name and data of every event of a stream."""
    parser = SseParser()
    blocks = parser.feed(stream)
    last = parser.finish()
    return [(b.name, b.data) for b in [*blocks, *([last] if last else [])] if b.data]


def read_stream(stream: bytes, tool_names: dict[str, ToolName] | None = None) -> list[StreamChatResponse]:
    """Returns what the hub makes of a provider's stream, its end included."""
    reader = StreamReader(tool_names or {})
    told = [event for name, data in events_of(stream) for event in reader.read(name, data)]
    return told + reader.end()


def write_stream(events: Iterable[StreamChatResponse], to: Asked | None = None) -> bytes:
    """Returns the stream that a client gets."""
    writer = StreamWriter(to or asked())
    return b"".join(writer.write(event) for event in events)


def provider(*events: dict[str, Any]) -> bytes:
    """Returns a provider's stream of events."""
    return b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)


def texts(events: Iterable[StreamChatResponse]) -> str:
    """Returns all text of an answer."""
    return "".join(event.text_delta for event in events)
