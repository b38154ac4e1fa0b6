"""The official SDKs read what the relay adds to a stream: heartbeats, and the event that ends it."""

from typing import Any

import anthropic
import httpx2
import openai
import pytest

from lurus_dialects.dialect import Dialect
from lurus_dialects.sse import SseParser
from lurus_dialects.watch import StreamWatcher

from .streams import dialect_of, recorded

HELLO: Any = [{"role": "user", "content": "x"}]


def read_with_sdk(dialect: Dialect, stream: bytes) -> Any:
    """Returns the final answer that the SDK's stream helper makes of `stream`."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)

    http_client = httpx2.Client(transport=httpx2.MockTransport(answer))
    if dialect is Dialect.ANTHROPIC:
        claude = anthropic.Anthropic(api_key="k", max_retries=0, http_client=http_client)
        with claude.messages.stream(model="m", max_tokens=1, messages=HELLO) as messages:
            return messages.get_final_message()
    gpt = openai.OpenAI(api_key="k", max_retries=0, http_client=http_client)
    if dialect is Dialect.OPENAI_CHAT:
        with gpt.chat.completions.stream(model="m", messages=HELLO) as chat:
            return chat.get_final_completion()
    with gpt.responses.stream(model="m", input="x") as responses:
        return responses.get_final_response()


def with_heartbeats(dialect: Dialect, stream: bytes) -> bytes:
    watcher = StreamWatcher(dialect)
    parts: list[bytes] = []
    for event in SseParser().feed(stream):
        parts += [watcher.feed(event.raw), watcher.heartbeat()]
    return b"".join(parts[:-1])


@pytest.mark.parametrize(
    "name", ["anthropic-thinking", "anthropic-crlf", "openai_chat-text", "openai_responses-text"]
)
def test_heartbeats_between_all_events_change_nothing(name: str) -> None:
    dialect = dialect_of(name)
    plain = read_with_sdk(dialect, recorded(name))
    assert read_with_sdk(dialect, with_heartbeats(dialect, recorded(name))).model_dump() == plain.model_dump()


def test_heartbeats_of_a_chat_stream_with_ids_change_nothing() -> None:
    events = SseParser().feed(recorded("openai_chat-text"))
    stream = b"".join(b"id: 1\n" + event.raw for event in events)
    final = read_with_sdk(Dialect.OPENAI_CHAT, with_heartbeats(Dialect.OPENAI_CHAT, stream))
    assert final.usage.prompt_tokens == 1110


@pytest.mark.parametrize("name", ["anthropic-tools", "openai_chat-text", "openai_responses-text"])
@pytest.mark.parametrize("event_count", [2, 5])
def test_k10_a_stream_that_dies_is_never_a_shorter_answer(name: str, event_count: int) -> None:
    dialect = dialect_of(name)
    watcher = StreamWatcher(dialect)
    events = SseParser().feed(recorded(name))
    released = watcher.feed(b"".join(event.raw for event in events[:event_count]) + b"data: {")
    released += watcher.finish()
    assert not watcher.terminal_ok
    error = watcher.stream_error("UPSTREAM_CUT", "the provider cut the answer", "req_1")
    with pytest.raises((anthropic.APIStatusError, openai.APIError, RuntimeError)) as caught:
        read_with_sdk(dialect, released + error)
    if dialect is not Dialect.OPENAI_RESPONSES:
        assert "the provider cut the answer" in str(caught.value)
