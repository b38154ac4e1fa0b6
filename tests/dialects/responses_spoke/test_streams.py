"""Recorded streams, through the hub and back."""

import pytest

from lurus.routing.v1.chat_pb2 import StreamChatResponse
from tests.dialects.responses_spoke import spoke
from tests.dialects.streams import GOLDENS, recorded
from tests.support import responses_client

RECORDED = sorted(name for name in GOLDENS if name.startswith("openai_responses"))


def comparable(events: list[StreamChatResponse]) -> list[StreamChatResponse]:
    """Returns events without what is ours to choose: ids, model, and the wrapping of sealed thinking."""
    kept = []
    for event in events:
        event = StreamChatResponse.FromString(event.SerializeToString())
        if event.HasField("start"):
            event.start.Clear()
        if event.HasField("thinking_seal"):
            event.thinking_seal.original = b""
        kept.append(event)
    return kept


@pytest.mark.parametrize("name", [n for n in RECORDED if n.split("-")[1] not in ("failed", "error")])
def test_a_recorded_stream_says_the_same_after_it_was_written_again(name: str) -> None:
    told = spoke.read_stream(recorded(name))
    written = spoke.write_stream(told)
    assert comparable(spoke.read_stream(written)) == comparable(told)
    client = responses_client.read_stream([(n.decode(), d) for n, d in spoke.events_of(written)])
    assert client.is_complete and client.blocks
