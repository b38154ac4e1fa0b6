"""Reads answers as clients do, and fails on whatever one of them would choke on (wire-contract A.x.5)."""

import json

from lurus_dialects.dialect import Dialect
from lurus_dialects.sse import SseParser
from tests.support import anthropic_client, chat_client, responses_client
from tests.support.told import Told

_READERS = {
    Dialect.ANTHROPIC: anthropic_client.read_stream,
    Dialect.OPENAI_CHAT: chat_client.read_stream,
    Dialect.OPENAI_RESPONSES: responses_client.read_stream,
}
_BODY_READERS = {
    Dialect.ANTHROPIC: anthropic_client.read_body,
    Dialect.OPENAI_CHAT: chat_client.read_body,
    Dialect.OPENAI_RESPONSES: responses_client.read_body,
}


def told(dialect: Dialect, stream: bytes) -> Told:
    """Returns what a client makes of a stream; fails if it is against its grammar."""
    return _READERS[dialect](_events(stream))


def told_by_body(dialect: Dialect, body: bytes) -> Told:
    """Returns what a client makes of a plain answer."""
    return _BODY_READERS[dialect](json.loads(body))


def _events(stream: bytes) -> list[tuple[str, bytes]]:
    parser = SseParser()
    found = parser.feed(stream)
    assert parser.finish() is None, "the stream ends within an event"
    assert not any(event.has_id for event in found)
    return [(event.name.decode(), event.data) for event in found if event.data]
