"""What a chat client gets (wire-contract A.2.5, C.2, C.4, E.5)."""

import json
from typing import Any

import pytest

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatError, ChatFinish, StreamChatResponse
from lurus.usage.v1.usage_pb2 import Tokens
from lurus_dialects import translate
from lurus_dialects.dialect import Dialect
from lurus_dialects.translation import Asked
from tests.dialects.chat_spoke.spoke import (
    CHAT_ID,
    A,
    C,
    R,
    asked,
    calls,
    chat,
    chunks,
    content,
    deltas,
    finish_reason,
    read,
    write,
)
from tests.dialects.streams import GOLDENS, recorded
from tests.support.provider_streams import (
    ResponsesStream,
    a_close,
    a_delta,
    a_end,
    a_error,
    a_open,
    a_start,
    a_text,
    a_thinking,
    a_tool,
    c_chunk,
    c_start,
    c_text,
    named,
)

TWO_CALLS = a_tool(2, "toolu_1", "f", "", '{"a"', ":1}") + a_tool(3, "toolu_2", "g", '{"b":', "[2]}")
THINKING = a_thinking(0, "Let me see.", "EqQB")


class TestStream:
    def test_the_frame(self) -> None:
        found = chat(A, a_start(), a_text(0, "a", "b"), a_end())
        assert found[-1] == "[DONE]" and deltas(found)[0] == {"role": "assistant", "content": ""}
        for chunk in found[:-1]:
            assert (chunk["id"], chunk["created"], chunk["model"]) == (CHAT_ID, 7, "alias")
            assert chunk["object"] == "chat.completion.chunk" and "usage" not in chunk
            assert chunk["choices"][0]["index"] == 0
        assert deltas(found)[-1] == {} and content(found) == "ab" and finish_reason(found) == "stop"

    def test_usage_comes_last_and_only_if_asked_for(self) -> None:
        found = chat(A, a_start(), a_text(0, "a"), a_end(), includes_usage=True)
        assert found[-1] == "[DONE]" and found[-2]["choices"] == []
        assert all(chunk["usage"] is None for chunk in found[:-2])
        assert found[-2]["usage"]["total_tokens"] == 24

    def test_Y10_calls_are_counted_not_blocks(self) -> None:
        found = chat(A, a_start(), THINKING, a_text(1, "I look"), TWO_CALLS, a_end("tool_use"))
        assert calls(found) == [("toolu_1", "f", '{"a":1}'), ("toolu_2", "g", '{"b":[2]}')]
        assert finish_reason(found) == "tool_calls"
        fragments = [call for delta in deltas(found) for call in delta.get("tool_calls", ())]
        assert [call["index"] for call in fragments] == sorted(call["index"] for call in fragments)
        assert sum("id" in call for call in fragments) == sum("name" in c["function"] for c in fragments) == 2
        assert fragments[0]["function"]["arguments"] == ""

    @pytest.mark.parametrize("parts", [("",), ()])
    def test_Y11_a_call_without_arguments_has_an_empty_object(self, parts: tuple[str, ...]) -> None:
        found = chat(A, a_start(), a_tool(0, "toolu_1", "f", *parts), a_end("tool_use"))
        assert calls(found) == [("toolu_1", "f", "{}")]

    @pytest.mark.parametrize(
        ("reason", "expected"),
        [
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("pause_turn", "stop"),
            ("max_tokens", "length"),
            ("model_context_window_exceeded", "length"),
            ("refusal", "content_filter"),
            ("novel", "stop"),
        ],
    )
    def test_Y12_Y13_words(self, reason: str, expected: str) -> None:
        found = chat(A, a_start(), a_text(0, "x"), a_end(reason))
        assert finish_reason(found) == expected and found[-1] == "[DONE]"

    def test_Y14_what_is_unknown_is_passed_over(self) -> None:
        citation = {"type": "char_location", "cited_text": "x", "document_index": 0}
        stream = [
            named("ping"),
            a_start(),
            a_open(0, {"type": "text", "text": ""}),
            a_delta(0, "text_delta", text="in"),
            a_delta(0, "hologram_delta", hologram="x"),
            a_delta(0, "citations_delta", citation=citation),
            a_delta(0, "text_delta", text="tact"),
            a_close(0),
            a_open(1, {"type": "unknown", "data": "x"}),
            a_close(1),
            a_end(),
        ]
        writer = translate.stream_writer(C, asked())
        found = b"".join(writer.write(event) for event in read(A, b"".join(stream)))
        assert content(chunks(found)) == "intact" and b"hologram" not in found
        assert writer.dropped_count >= 3  # type: ignore[attr-defined]  # not of the protocol

    def test_Y17_text_only_at_the_end_of_an_item_is_told_once(self) -> None:
        stream = ResponsesStream()
        begin = stream.start()
        found = chat(R, begin + stream.text("whole", has_deltas=False) + stream.end())
        assert content(found) == "whole"

    def test_C3_thinking_is_shown_unless_it_is_hidden(self) -> None:
        stream = (a_start(), THINKING, a_text(1, "42"), a_end())
        shown = chat(A, *stream)
        assert content(shown, "reasoning_content") == "Let me see." and content(shown) == "42"
        hidden = write(C, read(A, b"".join(stream)), hides_reasoning=True)
        assert b"reasoning_content" not in hidden and b"EqQB" not in hidden

    def test_interleaved_blocks_need_no_order(self) -> None:
        stream = ResponsesStream()
        begin = stream.start()
        both = stream.call("call_1", "f", '{"a"', ":1}") + stream.text("x") + stream.call("call_2", "g", "{}")
        found = chat(R, begin + both + stream.end())
        assert calls(found) == [("call_1", "f", '{"a":1}'), ("call_2", "g", "{}")]
        assert content(found) == "x" and finish_reason(found) == "tool_calls"

    def test_a_custom_call(self) -> None:
        stream = ResponsesStream()
        begin = stream.start()
        patch = stream.call("call_3", "patch", "*** Begin", " Patch\n", is_custom=True)
        found = chat(R, begin + patch + stream.end())
        assert calls(found) == [("call_3", "patch", "*** Begin Patch\n")]
        assert all(c["type"] == "custom" for d in deltas(found) for c in d.get("tool_calls", ()) if "id" in c)

    def test_Y21_an_error_ends_it_without_a_terminator(self) -> None:
        found = chat(A, a_start(), a_text(0, "half"), a_error("overloaded_error", "Overloaded"))
        assert found[-1].keys() == {"error"} and "[DONE]" not in found
        assert found[-1]["error"].keys() == {"message", "type", "param", "code"}

    def test_after_its_end_nothing_is_written(self) -> None:
        writer = translate.stream_writer(C, asked())
        written = writer.error("UPSTREAM_CUT", "cut", "req_1")
        assert writer.is_over and b"[DONE]" not in written
        assert writer.write(StreamChatResponse(text_delta="x")) == b""
        first = translate.stream_writer(C, asked())
        assert b"role" not in first.write(StreamChatResponse(error=ChatError(reason="UPSTREAM_FAILED")))

    def test_G11_a_heartbeat_is_a_comment(self) -> None:
        assert translate.stream_writer(C, asked()).heartbeat() == b": keepalive\n\n"


class TestUsage:
    def test_M01_input_includes_what_the_cache_read_and_wrote(self) -> None:
        tokens = Tokens(
            input=10, cache_read=1000, cache_write_5m=60, cache_write_1h=40, output=50, reasoning=9
        )
        finish = StreamChatResponse(finish=ChatFinish(tokens=tokens))
        found = chunks(write(C, [finish], includes_usage=True))
        usage = found[-2]["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (1110, 50, 1160)
        assert usage["prompt_tokens_details"] == {"cached_tokens": 1000, "cache_write_tokens": 100}
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 9


class TestBody:
    def body(self, *stream: bytes, **fields: Any) -> Any:
        return json.loads(translate.write_body(C, read(A, b"".join(stream)), asked(**fields)))

    def test_Y25_a_whole_answer(self) -> None:
        body = self.body(a_start(), THINKING, a_text(1, "I look"), TWO_CALLS, a_end("tool_use"))
        assert (body["id"], body["object"], body["created"], body["model"]) == (
            CHAT_ID,
            "chat.completion",
            7,
            "alias",
        )
        (choice,) = body["choices"]
        assert choice["finish_reason"] == "tool_calls" and choice["index"] == 0
        message = choice["message"]
        assert (message["content"], message["reasoning_content"]) == ("I look", "Let me see.")
        assert [(c["id"], c["function"]["arguments"]) for c in message["tool_calls"]] == [
            ("toolu_1", '{"a":1}'),
            ("toolu_2", '{"b":[2]}'),
        ]
        assert body["usage"]["total_tokens"] == 24

    def test_Y25_content_is_always_a_key(self) -> None:
        body = self.body(a_start(), TWO_CALLS, a_end("tool_use"))
        assert body["choices"][0]["message"]["content"] is None
        body = self.body(a_start(), a_text(0, "half"), a_end("max_tokens"), hides_reasoning=True)
        assert body["choices"][0]["message"] == {"role": "assistant", "content": "half", "refusal": None}
        assert body["choices"][0]["finish_reason"] == "length"
        assert self.body(a_start(), a_end())["choices"][0]["message"]["content"] == ""


def comparable(events: list[StreamChatResponse]) -> list[StreamChatResponse]:
    """Returns events without what is ours to choose: ids, the model, and how often usage is told."""
    kept = []
    for event in events:
        event = StreamChatResponse.FromString(event.SerializeToString())
        if event.HasField("start"):
            event.start.Clear()
        if event.HasField("finish"):
            event.finish.ClearField("vendor_fields")
        if not event.HasField("usage"):
            kept.append(event)
    return kept


@pytest.mark.parametrize(
    "name", sorted(n for n, g in GOLDENS.items() if n.startswith("openai_chat") and g.is_ok)
)
def test_a_recorded_stream_says_the_same_after_it_was_written_again(name: str) -> None:
    told = read(C, recorded(name))
    assert comparable(read(C, write(C, told, includes_usage=True))) == comparable(told)


@pytest.mark.parametrize("name", sorted(n for n, g in GOLDENS.items() if g.is_ok))
def test_a_body_says_what_the_stream_says(name: str) -> None:
    told = read(Dialect(name.partition("-")[0]), recorded(name))
    who: Asked = asked()
    body = json.loads(translate.write_body(C, told, who))
    found = chunks(write(C, told))
    message = body["choices"][0]["message"]
    assert (message["content"] or "") == content(found)
    assert (message["refusal"] or "") == content(found, "refusal")
    assert message.get("reasoning_content", "") == content(found, "reasoning_content")
    whole = [c.get("function") or c["custom"] for c in message.get("tool_calls", ())]
    assert [list(c.values()) for c in whole] == [list(call[1:]) for call in calls(found)]
    assert body["choices"][0]["finish_reason"] == finish_reason(found)


def test_a_block_without_a_start_of_the_answer_gets_one() -> None:
    assert chat(C, c_chunk({"content": "x"}), c_start(), c_text("y"), c_chunk({}, "stop"))[0]["choices"][0][
        "delta"
    ] == {"role": "assistant", "content": ""}
    finish = ChatFinish(kind=chat_pb2.CHAT_STOP_KIND_END_TURN)
    found = chunks(write(C, [StreamChatResponse(text_delta="x"), StreamChatResponse(finish=finish)]))
    assert deltas(found)[0]["role"] == "assistant" and content(found) == "x"
