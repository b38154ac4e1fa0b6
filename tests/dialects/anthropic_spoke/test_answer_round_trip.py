"""An answer that is read, written and read again says the same."""

import json

import pytest

from lurus.routing.v1.chat_pb2 import StreamChatRequest, StreamChatResponse
from lurus_dialects.anthropic.answer_reader import read_body
from lurus_dialects.anthropic.answer_writer import write_body
from tests.dialects.anthropic_spoke.hub import asked, check_grammar, read_stream, sent, write_stream
from tests.dialects.streams import GOLDENS, recorded

NAMES = [name for name in GOLDENS if name.startswith("anthropic-")]


def said(events: list[StreamChatResponse]) -> list[StreamChatResponse]:
    """Returns all but the counts on the way: the writer estimates them."""
    return [event for event in events if not event.HasField("usage")]


def of(events: list[StreamChatResponse]) -> object:
    start = events[0].start
    return asked(
        request=StreamChatRequest(model=start.model), response_id=start.response_id, estimated_input_tokens=1
    )


@pytest.mark.parametrize("name", NAMES)
def test_streams_come_back_the_same(name: str) -> None:
    first = read_stream(recorded(name))
    written = write_stream(first, of(first))
    second = read_stream(written)
    if name == "anthropic-error":
        assert second[-1].error.reason == first[-1].error.reason == "OVERLOADED"
        assert said(second)[:-1] == said(first)[:-1]
        return
    check_grammar(sent(written))
    assert said(second) == said(first)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "anthropic-error"])
def test_a_plain_answer_says_what_its_stream_says(name: str) -> None:
    events = read_stream(recorded(name))
    body = write_body(events, of(events))
    again = read_body(body, {})
    assert write_body(again, of(events)) == body
    assert again[-1].finish == events[-1].finish
    assert json.loads(body)["content"]
