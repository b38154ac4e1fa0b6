"""What a client is streamed, whatever the provider's dialect (wire-contract A.1.5, C.2, C.4)."""

import json
from typing import Any

import pytest

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatThinking, ChatVendorField, StreamChatResponse
from lurus.usage.v1 import usage_pb2
from lurus_dialects import envelope
from lurus_dialects.anthropic import answer_writer
from lurus_dialects.anthropic.answer_writer import StreamWriter, write_body
from tests.dialects.anthropic_spoke.hub import (
    CALL,
    REFUSAL,
    START,
    TEXT,
    THINKING,
    arguments,
    asked,
    begin,
    called,
    content,
    finish,
    sent,
    stop,
    text,
    write_stream,
)

TOOLS = chat_pb2.CHAT_STOP_KIND_TOOL_CALLS
R = usage_pb2.DIALECT_OPENAI_RESPONSES
A = usage_pb2.DIALECT_ANTHROPIC


def call(index: int, *parts: str, name: str = "n", call_id: str = "call_1") -> list[StreamChatResponse]:
    """Returns a whole call."""
    stated = {"name": name, "tool_call_id": call_id}
    deltas = [arguments(index, part) for part in parts]
    return [begin(index, CALL, **stated), *deltas, called(index, "".join(parts) or "{}", **stated)]


def thought(words: str = "") -> StreamChatResponse:
    return StreamChatResponse(thinking_delta=words, block_index=0)


def seal(**fields: Any) -> StreamChatResponse:
    return StreamChatResponse(thinking_seal=ChatThinking(**fields), block_index=0)


def usage_of(stream: bytes) -> dict[str, Any]:
    usage: dict[str, Any] = sent(stream)[-2]["usage"]
    return usage


class TestFrame:
    def test_the_start_states_the_name_that_was_asked_for(self) -> None:
        first = sent(write_stream([START, finish()]))[0]["message"]
        assert (first["id"], first["model"]) == ("msg_01H", "asked-model")
        assert first["usage"] == {"input_tokens": 5, "output_tokens": 1}
        assert first["content"] == [] and first["stop_reason"] is None

    def test_the_start_comes_with_the_first_event_whatever_it_is(self) -> None:
        written = StreamWriter(asked()).write(StreamChatResponse(usage=usage_pb2.Tokens(input=1)))
        assert written.startswith(b"event: message_start\n")

    def test_a_silent_connection_gets_pings(self) -> None:
        assert StreamWriter(asked()).heartbeat() == b'event: ping\ndata: {"type": "ping"}\n\n'

    def test_an_error_is_the_last_event(self) -> None:
        writer = StreamWriter(asked())
        writer.write(START)
        error = StreamChatResponse(error={"reason": "OVERLOADED", "message": "busy"})
        event = json.loads(writer.write(error).partition(b"data: ")[2])
        assert event["error"] == {"type": "overloaded_error", "message": "busy"}
        assert event["request_id"] == "req_01H"
        assert writer.is_over and writer.write(finish()) == b""

    def test_Y05_without_counts_the_answer_ends_with_estimates(self) -> None:
        stream = write_stream([START, begin(0, TEXT), text(0, "x" * 40), stop(0), finish()])
        assert usage_of(stream)["input_tokens"] == 5
        assert usage_of(stream)["output_tokens"] in (10, 11)

    def test_M02_writes_to_the_cache_are_one_sum(self) -> None:
        usage = usage_of(
            write_stream([START, finish(input=10, cache_read=1000, cache_write_30m=100, output=50)])
        )
        assert usage == {
            "input_tokens": 10,
            "cache_creation_input_tokens": 100,
            "cache_read_input_tokens": 1000,
            "output_tokens": 50,
        }

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            (chat_pb2.CHAT_STOP_KIND_UNSPECIFIED, "end_turn"),
            (chat_pb2.CHAT_STOP_KIND_END_TURN, "end_turn"),
            (chat_pb2.CHAT_STOP_KIND_MAX_TOKENS, "max_tokens"),
            (chat_pb2.CHAT_STOP_KIND_REFUSAL, "refusal"),
            (chat_pb2.CHAT_STOP_KIND_PAUSE, "pause_turn"),
            (chat_pb2.CHAT_STOP_KIND_CONTEXT_FULL, "model_context_window_exceeded"),
            (chat_pb2.CHAT_STOP_KIND_TOOL_CALLS, "tool_use"),
        ],
    )
    def test_stop_reasons(self, kind: int, reason: str) -> None:
        assert sent(write_stream([START, finish(kind)]))[-2]["delta"]["stop_reason"] == reason

    def test_Y07_an_end_after_a_call_is_a_call(self) -> None:
        stream = write_stream([START, *call(0, "{}"), finish()])
        assert sent(stream)[-2]["delta"]["stop_reason"] == "tool_use"

    def test_Y19_a_call_cut_by_the_limit_is_cut_by_the_limit(self) -> None:
        stream = write_stream([START, *call(0, "{}"), finish(chat_pb2.CHAT_STOP_KIND_MAX_TOKENS)])
        assert sent(stream)[-2]["delta"]["stop_reason"] == "max_tokens"


class TestBlocks:
    def test_Y01_text_then_a_call(self) -> None:
        events = [
            START,
            begin(0, TEXT),
            text(0, "a"),
            stop(0),
            *call(1, '{"a"', ":1}"),
            finish(TOOLS, output=1),
        ]
        assert content(write_stream(events)) == [
            {"type": "text", "text": "a"},
            {"type": "tool_use", "id": "call_1", "name": "n", "input": {"a": 1}},
        ]

    def test_Y02_alternating_calls_come_one_after_the_other(self) -> None:
        events = [
            START,
            begin(0, CALL, name="a", tool_call_id="1"),
            begin(1, CALL, name="b", tool_call_id="2"),
        ]
        for part in ('{"x":', '"y"', "}"):
            events += [arguments(0, part), arguments(1, part)]
        events += [called(0, "-"), called(1, "-"), finish(TOOLS)]
        blocks = content(write_stream(events))
        assert [(block["name"], block["input"]) for block in blocks] == [("a", {"x": "y"}), ("b", {"x": "y"})]

    def test_Y02_a_complete_call_gives_way_before_its_end_is_told(self) -> None:
        writer = StreamWriter(asked())
        for event in (START, begin(0, CALL, name="a", tool_call_id="1"), arguments(0, '{"x":1}')):
            writer.write(event)
        second = writer.write(begin(1, CALL, name="b", tool_call_id="2"))
        assert b"content_block_stop" in second and b'"name":"b"' in second
        assert writer.write(called(0, '{"x":1}')) == b""
        assert b"partial_json" in writer.write(arguments(1, "{}"))

    def test_Y03_text_amid_a_call_waits_for_its_end(self) -> None:
        first, *rest, last = call(0, '{"a":', "1}")
        events = [
            START,
            first,
            rest[0],
            begin(1, TEXT),
            text(1, "amid"),
            rest[1],
            stop(1),
            last,
            finish(TOOLS),
        ]
        assert [block["type"] for block in content(write_stream(events))] == ["tool_use", "text"]
        assert content(write_stream(events))[1]["text"] == "amid"

    def test_a_text_gives_way_and_goes_on_in_a_new_block(self) -> None:
        events = [
            START,
            begin(0, TEXT),
            text(0, "a"),
            *call(1, "{}"),
            text(0, "b"),
            text(0, "c"),
            stop(0),
            finish(),
        ]
        blocks = content(write_stream(events))
        assert [block.get("text", "call") for block in blocks] == ["a", "call", "bc"]

    def test_an_unfinished_call_is_released_with_what_waited_at_the_finish(self) -> None:
        events = [
            START,
            begin(0, CALL, name="a", tool_call_id="1"),
            arguments(0, '{"'),
            begin(1, TEXT),
            text(1, "t"),
        ]
        stream = write_stream([*events, finish(chat_pb2.CHAT_STOP_KIND_MAX_TOKENS)])
        starts = [e["content_block"]["type"] for e in sent(stream) if e["type"] == "content_block_start"]
        assert starts == ["tool_use", "text"]

    def test_S15_empty_deltas_open_no_block(self) -> None:
        events = [
            START,
            begin(0, TEXT),
            text(0, ""),
            stop(0),
            begin(1, TEXT),
            text(1, "x"),
            stop(1),
            finish(),
        ]
        assert content(write_stream(events)) == [{"type": "text", "text": "x"}]

    def test_a_refusal_is_text(self) -> None:
        events = [START, begin(0, REFUSAL), text(0, "no"), stop(0), finish(chat_pb2.CHAT_STOP_KIND_REFUSAL)]
        assert content(write_stream(events)) == [{"type": "text", "text": "no"}]

    def test_Y11_a_call_without_arguments_has_no_delta(self) -> None:
        stream = write_stream([START, *call(0), finish(TOOLS)])
        assert b"input_json_delta" not in stream
        assert content(stream)[0]["input"] == {}

    def test_a_call_whose_arguments_came_at_its_end_only(self) -> None:
        events = [START, begin(0, CALL, name="n", tool_call_id="c"), called(0, '{"a":1.10}'), finish(TOOLS)]
        assert b'"partial_json":"{\\"a\\":1.10}"' in write_stream(events)

    def test_a_call_without_an_id_gets_one(self) -> None:
        block = content(write_stream([START, *call(0, "{}", call_id=""), finish(TOOLS)]))[0]
        assert block["id"] == "toolu_01H_0"

    def test_a_custom_tool_is_wrapped(self) -> None:
        stated: dict[str, Any] = {"name": "p", "tool_call_id": "c", "kind": chat_pb2.CHAT_TOOL_KIND_CUSTOM}
        events = [
            START,
            begin(0, CALL, **stated),
            arguments(0, 'a"'),
            arguments(0, "b"),
            called(0, 'a"b', **stated),
        ]
        assert content(write_stream([*events, finish(TOOLS)]))[0]["input"] == {"input": 'a"b'}

    def test_what_waits_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(answer_writer, "MAX_WAITING_BYTES", 1000)
        writer = StreamWriter(asked())
        written = [writer.write(event) for event in (START, begin(0, CALL, name="a"), begin(1, TEXT))]
        written += [writer.write(text(1, "x" * 100)) for _ in range(20)]
        assert written[-1] == b"" and writer.is_over
        assert sum(b"event: error" in part for part in written) == 1


class TestThinking:
    def test_Y04_thinking_is_signed_once_and_comes_first(self) -> None:
        events = [
            START,
            begin(0, THINKING),
            thought("hm"),
            thought("."),
            seal(dialect=R, original=b'{"a":1}'),
        ]
        events += [stop(0), begin(1, TEXT), text(1, "t"), stop(1), finish()]
        thinking, _ = content(write_stream(events))
        assert thinking["thinking"] == "hm."
        opened = envelope.unseal(thinking["signature"])
        assert opened is not None
        assert (opened.original, opened.provider_id, opened.upstream_model) == (b'{"a":1}', "prov", "up")

    def test_Y15_thinking_without_words_is_signed(self) -> None:
        events = [
            START,
            begin(0, THINKING),
            seal(dialect=R, original=b"{}", is_redacted=True),
            stop(0),
            finish(),
        ]
        (block,) = content(write_stream(events))
        assert block["type"] == "thinking" and block["thinking"] == ""
        assert envelope.is_envelope(block["signature"])

    def test_thinking_that_nobody_sealed_is_dropped_by_whoever_gets_it_back(self) -> None:
        (block,) = content(write_stream([START, begin(0, THINKING), thought("hm"), stop(0), finish()]))
        opened = envelope.unseal(block["signature"])
        assert opened is not None and opened.original == b""

    def test_the_dialect_s_own_signature_stays(self) -> None:
        events = [
            START,
            begin(0, THINKING),
            thought("hm"),
            seal(dialect=A, original=b'{"signature":"Eq"}'),
            stop(0),
        ]
        assert content(write_stream([*events, finish()]))[0]["signature"] == "Eq"

    def test_redacted_thinking_of_the_dialect(self) -> None:
        events = [
            START,
            begin(0, THINKING),
            seal(dialect=A, original=b'{"data":"Em"}', is_redacted=True),
            stop(0),
        ]
        assert content(write_stream([*events, finish()])) == [{"type": "redacted_thinking", "data": "Em"}]

    def test_a_call_waits_until_the_thinking_is_signed(self) -> None:
        events = [START, begin(0, THINKING), thought("hm"), *call(1, "{}"), thought("m")]
        events += [seal(dialect=R, original=b"{}"), stop(0), finish(TOOLS)]
        assert [block["type"] for block in content(write_stream(events))] == ["thinking", "tool_use"]

    def test_thinking_without_anything_is_no_block(self) -> None:
        assert content(write_stream([START, begin(0, THINKING), stop(0), finish()])) == []


class TestVendor:
    def event(self, name: str, value: bytes, dialect: Any = A) -> StreamChatResponse:
        return StreamChatResponse(vendor_event=ChatVendorField(dialect=dialect, name=name, json=value))

    @pytest.mark.parametrize("name", ["event.future", "delta.future"])
    def test_Y14_unknown_events_are_dropped_and_counted(self, name: str) -> None:
        writer = StreamWriter(asked())
        writer.write(START)
        assert writer.write(self.event(name, b"{}")) == b""
        assert writer.write(self.event("search", b"{}", R)) == b""
        assert writer.dropped_count == 2

    def test_a_block_of_the_dialect_stands_between_the_others(self) -> None:
        block = b'{"type":"server_tool_use","id":"s","name":"web_search","input":{"q":1}}'
        events = [
            START,
            begin(0, TEXT),
            text(0, "a"),
            self.event("server_tool_use", block),
            stop(0),
            finish(),
        ]
        stream = write_stream(events)
        assert [block["type"] for block in content(stream)] == ["text", "server_tool_use"]
        assert b'"partial_json":"{\\"q\\":1}"' in stream

    def test_sources_of_others_are_dropped(self) -> None:
        writer = StreamWriter(asked())
        writer.write(START)
        writer.write(begin(0, TEXT))
        citation = {"url": "https://e.org", "original": {"dialect": R, "name": "url_citation", "json": b"{}"}}
        assert writer.write(StreamChatResponse(citation=citation, block_index=0)) == b""
        assert writer.dropped_count == 1


class TestBody:
    def test_Y25_a_plain_answer(self) -> None:
        events = [START, begin(0, THINKING), thought("hm"), seal(dialect=R, original=b"{}"), stop(0)]
        events += [
            begin(1, TEXT),
            text(1, "a"),
            stop(1),
            *call(2, '{"n":', "1.10}"),
            finish(TOOLS, input=3, output=4),
        ]
        body = write_body(events, asked())
        assert b'"input":{"n":1.10}' in body
        message = json.loads(body)
        assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use"]
        assert (message["id"], message["model"], message["stop_reason"]) == (
            "msg_01H",
            "asked-model",
            "tool_use",
        )
        assert message["usage"]["output_tokens"] == 4 and message["stop_sequence"] is None

    def test_broken_arguments_become_an_object(self) -> None:
        body = json.loads(write_body([START, *call(0, '{"a'), finish(TOOLS)], asked()))
        assert body["content"][0]["input"] == {"raw_arguments": '{"a'}

    def test_a_stop_sequence_is_named(self) -> None:
        end = StreamChatResponse(finish={"kind": chat_pb2.CHAT_STOP_KIND_STOP_SEQUENCE, "stop_sequence": "X"})
        body = json.loads(write_body([START, end], asked()))
        assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "X")
