"""What a provider's stream says, however odd it is (wire-contract A.1.5, A.1.7)."""

import json
from typing import Any

import pytest

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import StreamChatResponse
from lurus.usage.v1 import usage_pb2
from lurus_dialects.anthropic import answer_blocks
from lurus_dialects.anthropic.answer_reader import StreamReader, read_body
from lurus_dialects.translation import ToolName
from tests.dialects.anthropic_spoke.hub import read_stream, sse
from tests.dialects.streams import recorded

BEGIN = {"type": "message_start", "message": {"id": "msg_1", "model": "claude", "usage": {"input_tokens": 3}}}
END = {"type": "message_stop"}


def start(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, kind: str, **value: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **value}}


def stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def ended(reason: str | None = "end_turn", **more: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason, **more}, "usage": {"output_tokens": 7}}


def kinds(events: list[StreamChatResponse]) -> list[str]:
    return [event.WhichOneof("event") or "" for event in events]


def words(events: list[StreamChatResponse]) -> str:
    return "".join(event.text_delta for event in events)


def calls(events: list[StreamChatResponse]) -> list[chat_pb2.ChatToolCall]:
    return [event.tool_call for event in events if event.HasField("tool_call")]


class TestEvents:
    def test_an_answer_in_order(self) -> None:
        events = read_stream(
            sse(
                BEGIN, start(0, type="text", text=""), delta(0, "text_delta", text="a"), stop(0), ended(), END
            )
        )
        assert kinds(events) == [
            "start",
            "usage",
            "block_start",
            "text_delta",
            "block_end",
            "usage",
            "finish",
        ]
        assert (events[0].start.response_id, events[0].start.model) == ("msg_1", "claude")
        assert events[-1].finish.kind == chat_pb2.CHAT_STOP_KIND_END_TURN
        assert events[-1].finish.tokens == usage_pb2.Tokens(input=3, output=7)
        assert events[-1].finish.has_provider_tokens

    def test_nothing_follows_the_end(self) -> None:
        assert kinds(read_stream(sse(BEGIN, END, ended(), BEGIN, END)))[-1] == "finish"

    def test_M03_counts_are_cumulative(self) -> None:
        assert read_stream(recorded("anthropic-thinking"))[-1].finish.tokens.output == 50

    @pytest.mark.parametrize("word", ["new_reason", "compaction"])
    def test_a_new_stop_reason_is_the_end_of_the_turn(self, word: str) -> None:
        finish = read_stream(sse(BEGIN, ended(word), END))[-1].finish
        assert (finish.kind, finish.stop_reason) == (chat_pb2.CHAT_STOP_KIND_UNSPECIFIED, word)

    def test_Y13_what_a_refusal_says_of_itself_is_kept(self) -> None:
        finish = read_stream(recorded("anthropic-refusal"))[-1].finish
        assert finish.kind == chat_pb2.CHAT_STOP_KIND_REFUSAL
        assert [field.name for field in finish.vendor_fields] == ["stop_details"]

    @pytest.mark.parametrize("size", [1, 40, 200, 600])
    def test_a_stream_without_its_end_was_cut(self, size: int) -> None:
        events = read_stream(recorded("anthropic-tools")[: -size - 1])
        assert events[-1].error.reason == "UPSTREAM_CUT"
        assert "finish" not in kinds(events)

    def test_an_event_is_known_by_its_type_without_its_name(self) -> None:
        data = json.dumps(BEGIN).encode()
        assert kinds(StreamReader({}).read(b"", data))[0] == "start"


class TestErrors:
    @pytest.mark.parametrize(
        ("kind", "message", "reason", "status"),
        [
            ("overloaded_error", "busy", "OVERLOADED", 529),
            ("rate_limit_error", "slow", "RATE_LIMITED", 429),
            ("invalid_request_error", "prompt is too long: 2 tokens > 1 maximum", "CONTEXT_TOO_LONG", 400),
            ("api_error", "oops", "UPSTREAM_FAILED", 500),
            ("new_error", "oops", "UPSTREAM_FAILED", 502),
        ],
    )
    def test_Y22_Y23_the_provider_s_error_ends_the_answer(
        self, kind: str, message: str, reason: str, status: int
    ) -> None:
        error = read_stream(sse(BEGIN, {"type": "error", "error": {"type": kind, "message": message}}, END))[
            -1
        ].error
        assert (error.reason, error.message, error.http_status, error.code) == (reason, message, status, kind)

    def test_what_a_provider_says_of_our_credential_is_not_shown(self) -> None:
        body = {"type": "error", "error": {"type": "authentication_error", "message": "key sk-1 of acct"}}
        for events in (read_stream(sse(body)), read_body(json.dumps(body).encode(), {})):
            assert "sk-1" not in events[-1].error.message

    def test_a_vital_event_that_cannot_be_read_ends_the_answer(self) -> None:
        events = read_stream(sse(BEGIN) + b"event: content_block_delta\ndata: {broken\n\n" + sse(END))
        assert events[-1].error.reason == "UPSTREAM_FAILED"

    def test_other_events_that_cannot_be_read_are_nothing(self) -> None:
        events = read_stream(sse(BEGIN) + b"data: [DONE]\n\nevent: x\ndata: 3\n\n" + sse(ended(), END))
        assert kinds(events)[-1] == "finish"

    def test_a_block_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(answer_blocks, "MAX_BLOCK_BYTES", 100)
        for block, kind, name in (
            ({"type": "tool_use", "id": "i", "name": "n"}, "input_json_delta", "partial_json"),
            ({"type": "thinking"}, "thinking_delta", "thinking"),
            ({"type": "server_tool_use"}, "input_json_delta", "partial_json"),
        ):
            deltas = [delta(0, kind, **{name: "x" * 60})] * 2
            assert read_stream(sse(BEGIN, start(0, **block), *deltas))[-1].error.reason == "UPSTREAM_FAILED"

    @pytest.mark.parametrize(
        "block",
        [
            None,
            3,
            "x",
            [],
            {},
            {"type": 3},
            {"type": "text", "text": {"a": 1}},
            {"type": "tool_use", "input": [1]},
        ],
    )
    @pytest.mark.parametrize(
        "change", [None, 3, "x", [], {}, {"type": None}, {"type": "text_delta", "text": 3}]
    )
    def test_odd_events_never_raise(self, block: Any, change: Any) -> None:
        events = read_stream(
            sse(
                {"type": "message_start", "message": block},
                {"type": "content_block_start", "index": 0, "content_block": block},
                {"type": "content_block_start", "index": "0", "content_block": block},
                {"type": "content_block_delta", "index": 0, "delta": change},
                {"type": "content_block_delta", "index": None, "delta": change},
                {"type": "content_block_stop", "index": {}},
                {"type": "message_delta", "delta": change, "usage": block},
                END,
            )
        )
        assert kinds(events)[-1] == "finish"
        assert kinds(events).count("block_start") == kinds(events).count("block_end") + len(calls(events))


class TestBlocks:
    def test_Y10_gaps_and_interleaved_blocks(self) -> None:
        events = read_stream(
            sse(
                BEGIN,
                start(2, type="tool_use", id="a", name="x", input={}),
                start(3, type="tool_use", id="b", name="y", input={}),
                delta(3, "input_json_delta", partial_json='{"n":'),
                delta(2, "input_json_delta", partial_json='{"m":1.10}'),
                delta(3, "input_json_delta", partial_json="2}"),
                stop(3),
                stop(2),
                ended("tool_use"),
                END,
            )
        )
        assert [(call.name, call.arguments) for call in calls(events)] == [
            ("y", b'{"n":2}'),
            ("x", b'{"m":1.10}'),
        ]
        assert [event.block_index for event in events if event.HasField("block_start")] == [0, 1]

    @pytest.mark.parametrize("parts", [[], [""]])
    def test_Y11_no_arguments_are_an_empty_object(self, parts: list[str]) -> None:
        deltas = [delta(0, "input_json_delta", partial_json=part) for part in parts]
        events = read_stream(
            sse(BEGIN, start(0, type="tool_use", id="a", name="x", input={}), *deltas, stop(0), END)
        )
        assert calls(events)[0].arguments == b"{}"
        assert "arguments_delta" not in kinds(events)

    def test_arguments_that_came_in_the_start_count_if_no_others_come(self) -> None:
        events = read_stream(
            sse(BEGIN, start(0, type="tool_use", id="a", name="x", input={"q": 1}), stop(0), END)
        )
        assert json.loads(calls(events)[0].arguments) == {"q": 1}

    def test_Y26_tools_get_the_names_back_that_the_client_gave_them(self) -> None:
        names = {"mcp__gh__search": ToolName("search", "mcp__gh")}
        events = read_stream(
            sse(BEGIN, start(0, type="tool_use", id="a", name="mcp__gh__search"), stop(0), END), names
        )
        (call,) = calls(events)
        assert (call.name, call.namespace) == ("search", "mcp__gh")

    def test_Y18_a_wrapped_tool_s_text_is_decoded_exactly(self) -> None:
        patch = '*** Begin Patch\n+"q" 世😀\n'
        text = json.dumps({"input": patch})
        parts = [text[i : i + 7] for i in range(0, len(text), 7)]
        deltas = [delta(0, "input_json_delta", partial_json=part) for part in parts]
        names = {"apply_patch": ToolName("apply_patch", is_wrapped=True)}
        stream = sse(BEGIN, start(0, type="tool_use", id="a", name="apply_patch"), *deltas, stop(0), END)
        events = read_stream(stream, names)
        (call,) = calls(events)
        assert (call.arguments.decode(), call.kind) == (patch, chat_pb2.CHAT_TOOL_KIND_CUSTOM)
        assert [event.arguments_delta for event in events if event.arguments_delta] == [patch]

    def test_Y09_thinking_is_sealed_whole(self) -> None:
        events = read_stream(recorded("anthropic-thinking"))
        first, second = (event.thinking_seal for event in events if event.HasField("thinking_seal"))
        assert json.loads(first.original) == {
            "type": "thinking",
            "thinking": "The user wants 27 * 453.",
            "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds",
        }
        assert not first.is_redacted and second.is_redacted
        assert json.loads(second.original)["type"] == "redacted_thinking"

    def test_Y14_what_is_unknown_is_told_and_breaks_nothing(self) -> None:
        events = read_stream(
            sse(
                BEGIN,
                {"type": "future_event", "x": 1},
                start(0, type="text", text=""),
                delta(0, "text_delta", text="a"),
                delta(0, "future_delta", x=1),
                {"type": "ping"},
                delta(
                    0, "citations_delta", citation={"type": "page", "document_title": "T", "cited_text": "c"}
                ),
                delta(0, "text_delta", text="b"),
                stop(0),
                start(1, type="future_block", x=1),
                delta(1, "future_delta", x=1),
                stop(1),
                ended(),
                END,
            )
        )
        assert words(events) == "ab"
        names = [event.vendor_event.name for event in events if event.HasField("vendor_event")]
        assert names == ["event.future_event", "delta.future_delta", "delta.future_delta", "future_block"]
        (citation,) = [event.citation for event in events if event.HasField("citation")]
        assert (citation.title, citation.cited_text) == ("T", "c")

    def test_a_delta_without_a_start_is_not_lost(self) -> None:
        events = read_stream(sse(BEGIN, delta(0, "text_delta", text="a"), ended(), END))
        assert words(events) == "a" and kinds(events).count("block_end") == 1

    def test_a_block_of_the_dialect_comes_whole(self) -> None:
        events = read_stream(
            sse(
                BEGIN,
                start(0, type="server_tool_use", id="s", name="web_search", input={}),
                delta(0, "input_json_delta", partial_json='{"q":1.'),
                delta(0, "input_json_delta", partial_json="10}"),
                stop(0),
                END,
            )
        )
        (event,) = [event.vendor_event for event in events if event.HasField("vendor_event")]
        assert event.name == "server_tool_use" and b'"input":{"q":1.10}' in event.json


class TestSurrogates:
    def halves(self, *parts: bytes) -> list[StreamChatResponse]:
        text = [
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            b'"delta":{"type":"text_delta","text":"' + part + b'"}}\n\n'
            for part in parts
        ]
        return read_stream(sse(BEGIN, start(0, type="text", text="")) + b"".join(text) + sse(stop(0), END))

    def test_G19_a_pair_in_two_events_is_joined(self) -> None:
        assert words(self.halves(b"a\\ud83d", b"\\ude00b")) == "a😀b"

    @pytest.mark.parametrize("part", [b"a\\ud83d", b"a\\ude00"])
    def test_G19_a_lone_half_is_replaced(self, part: bytes) -> None:
        assert words(self.halves(part)) == "a\ufffd"
        assert words(self.halves(part, b"b")) == "a\ufffdb"


class TestBody:
    def test_Y25_a_plain_answer_is_a_stream(self) -> None:
        content = [
            {"type": "thinking", "thinking": "hm", "signature": "Eq"},
            {"type": "text", "text": "a"},
            {"type": "tool_use", "id": "i", "name": "n", "input": {"q": 1}},
        ]
        body = {"type": "message", "id": "m", "model": "c", "content": content, "stop_reason": "tool_use"}
        events = read_body(
            json.dumps({**body, "usage": {"input_tokens": 1, "output_tokens": 2}}).encode(), {}
        )
        assert words(events) == "a" and json.loads(calls(events)[0].arguments) == {"q": 1}
        (seal,) = [event.thinking_seal for event in events if event.HasField("thinking_seal")]
        assert json.loads(seal.original)["signature"] == "Eq"
        assert events[-1].finish.tokens == usage_pb2.Tokens(input=1, output=2)

    @pytest.mark.parametrize(
        "body", [b"", b"x", b"3", b"{}", b"[]", b'{"content":3}', b'{"type":"error"}', b"\xff"]
    )
    def test_what_is_no_answer_is_an_error(self, body: bytes) -> None:
        assert kinds(read_body(body, {})) == ["error"]

    def test_a_lone_half_in_a_body_is_replaced(self) -> None:
        assert (
            words(read_body(b'{"content":[{"type":"text","text":"a\\ud83d"}],"id":"\\ud83d"}', {}))
            == "a\ufffd"
        )
