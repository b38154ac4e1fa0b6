"""The stream between two dialects, with a reader and a writer that do as they are told."""

import json

import pytest

from lurus.routing.v1.chat_pb2 import (
    ChatBlockStart,
    ChatError,
    ChatFinish,
    ChatStart,
    ChatThinking,
    ChatVendorField,
    StreamChatRequest,
    StreamChatResponse,
)
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import InvalidRequest
from lurus_dialects import typed
from lurus_dialects.dialect import Dialect
from lurus_dialects.translated import TranslatedStream
from lurus_dialects.translation import Asked
from lurus_dialects.typed import TypedWriter, check_typed, put_together, typed_events

START = StreamChatResponse(start=ChatStart(response_id="msg_1"))
TEXT = StreamChatResponse(text_delta="hi")
HOLOGRAM = StreamChatResponse(
    vendor_event=ChatVendorField(
        dialect=usage_pb2.DIALECT_ANTHROPIC, name="hologram", json=b'{"type":"hologram"}'
    )
)
FINISH = StreamChatResponse(finish=ChatFinish(stop_reason="end_turn"))
BROKEN = StreamChatResponse(error=ChatError(reason="UPSTREAM_FAILED", message="a defect"))
# What they say counts for the facts only: the reader below says what it was told to.
BEGIN = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":7}}}\n\n'
DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"12345678"}}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
ERROR = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"org-1"}}\n\n'
ASKED = Asked(StreamChatRequest(), "", 0, provider_id="p", upstream_model="u")


class ScriptedReader:
    """Says what it was told, event by event, and at the end."""

    def __init__(self, *says: list[StreamChatResponse], end: list[StreamChatResponse] | None = None) -> None:
        self._says = list(says)
        self._end = end or []

    def read(self, name: bytes, data: bytes) -> list[StreamChatResponse]:
        return self._says.pop(0) if self._says else []

    def end(self) -> list[StreamChatResponse]:
        said, self._end = self._end, []
        return said


def stream_of(reader: ScriptedReader) -> TranslatedStream:
    return TranslatedStream(Dialect.ANTHROPIC, reader, TypedWriter(ASKED, "req_1", ["top_k"]), "req_1", 99)


def kinds(frames: bytes) -> list[str | None]:
    return [event.WhichOneof("event") for event in typed_events(frames)]


class TestEnds:
    def test_it_is_over_with_the_clients_terminal_event(self) -> None:
        stream = stream_of(ScriptedReader([START], [TEXT, FINISH]))
        assert kinds(stream.feed(BEGIN)) == ["start"]
        assert not stream.is_over
        assert kinds(stream.feed(DELTA)) == ["text_delta", "finish"]
        assert stream.is_over
        assert stream.feed(DELTA) == b""
        assert stream.finish() == b""

    def test_a_reader_that_waits_after_the_providers_end_is_asked_to_end(self) -> None:
        stream = stream_of(ScriptedReader([START], [TEXT], end=[FINISH]))
        assert kinds(stream.feed(BEGIN + DELTA + STOP)) == ["start", "text_delta", "finish"]
        assert stream.is_over

    def test_the_end_of_the_bytes_may_be_the_end_of_the_answer(self) -> None:
        stream = stream_of(ScriptedReader([START], end=[FINISH]))
        stream.feed(BEGIN)
        assert kinds(stream.finish()) == ["finish"]
        assert stream.is_over

    def test_a_cut_is_left_to_who_settles_it(self) -> None:
        stream = stream_of(ScriptedReader([START], end=[BROKEN]))
        stream.feed(BEGIN)
        assert stream.finish() == b""
        assert not stream.is_over
        assert kinds(stream.stream_error("UPSTREAM_CUT", "cut", "req_1")) == ["error"]
        assert stream.is_over


class TestErrors:
    @pytest.mark.parametrize("said", [[], [BROKEN]])
    def test_the_providers_own_is_told_in_our_words(self, said: list[StreamChatResponse]) -> None:
        stream = stream_of(ScriptedReader([START], said))
        [_, event] = typed_events(stream.feed(BEGIN + ERROR))
        assert event.error.reason == "OVERLOADED"
        assert "org-1" not in event.error.message
        assert (stream.error_seen, stream.is_over) == (True, True)

    def test_what_only_the_reader_has_found_is_noted_too(self) -> None:
        stream = stream_of(ScriptedReader([START], [BROKEN]))
        [_, event] = typed_events(stream.feed(BEGIN + DELTA))
        assert event.error.reason == "UPSTREAM_FAILED"
        assert (stream.error_seen, stream.is_over) == (True, True)
        assert json.loads(stream.error_body)["error"]["message"] == "a defect"


class TestCounts:
    def test_the_finish_states_what_is_charged(self) -> None:
        stream = stream_of(ScriptedReader([START], [FINISH]))
        [_, event] = typed_events(stream.feed(BEGIN + DELTA))
        assert event.finish.tokens == usage_pb2.Tokens(input=7, output=2)
        assert not event.finish.has_provider_tokens

    def test_an_input_that_nobody_states_is_estimated(self) -> None:
        stream = stream_of(ScriptedReader([FINISH]))
        [event] = typed_events(stream.feed(DELTA))
        assert event.finish.tokens == usage_pb2.Tokens(input=99, output=2)

    @pytest.mark.parametrize(
        ("client", "count"), [(None, 0), (Dialect.OPENAI_CHAT, 1), (Dialect.ANTHROPIC, 0)]
    )
    def test_lost_is_what_the_client_cannot_be_told(self, client: Dialect | None, count: int) -> None:
        reader = ScriptedReader([START, HOLOGRAM])
        stream = TranslatedStream(
            Dialect.ANTHROPIC, reader, TypedWriter(ASKED, "req_1"), "req_1", client=client
        )
        assert kinds(stream.feed(BEGIN)) == ["start", "vendor_event"]
        assert stream.lost_event_count == count


class TestTypedAnswers:
    def test_what_one_dialect_knows_stands_where_it_came(self) -> None:
        second = StreamChatResponse(text_delta="there", block_index=1)
        whole = put_together([HOLOGRAM, TEXT, HOLOGRAM, HOLOGRAM, second])
        found = [block.WhichOneof("block") for block in whole.blocks]
        assert found == ["vendor_block", "text", "vendor_block", "vendor_block", "text"]
        assert whole.blocks[0].vendor_block.json == b'{"type":"hologram"}'

    def test_the_start_says_who_and_what(self) -> None:
        [event] = typed_events(stream_of(ScriptedReader([START])).feed(BEGIN))
        assert (event.start.request_id, event.start.provider_id) == ("req_1", "p")
        assert list(event.start.lossy_fields) == ["top_k"]

    def test_blocks_are_put_together_in_their_order(self) -> None:
        seal = ChatThinking(original=b"{}", provider_id="p")
        events = [
            START,
            StreamChatResponse(block_index=1, block_start=ChatBlockStart(kind=1)),
            StreamChatResponse(block_index=0, block_start=ChatBlockStart(kind=2)),
            StreamChatResponse(block_index=1, text_delta="a"),
            StreamChatResponse(block_index=0, thinking_delta="hm"),
            StreamChatResponse(block_index=1, text_delta="b"),
            StreamChatResponse(block_index=0, thinking_seal=seal),
            StreamChatResponse(block_index=2, block_start=ChatBlockStart(kind=4)),
            StreamChatResponse(block_index=2, text_delta="no"),
            FINISH,
        ]
        answer = put_together(events)
        thinking, text, refused = answer.blocks
        assert (thinking.thinking.text, thinking.thinking.original) == ("hm", b"{}")
        assert (text.text, refused.refusal) == ("ab", "no")
        assert answer.finish.stop_reason == "end_turn"

    def test_a_nest_of_blocks_is_bounded(self) -> None:
        request = StreamChatRequest()
        blocks = request.messages.add().blocks
        for _ in range(typed.MAX_BLOCK_DEPTH):
            blocks = blocks.add().tool_result.blocks
        blocks.add(text="too deep")
        with pytest.raises(InvalidRequest, match="deeply"):
            check_typed(request)
