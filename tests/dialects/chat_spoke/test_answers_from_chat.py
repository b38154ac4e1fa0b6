"""What a chat provider's answer says (wire-contract C.2, C.3, C.4, E.5)."""

import json
from typing import Any

import pytest

from lurus.routing.v1 import chat_pb2
from lurus.usage.v1 import usage_pb2
from lurus_dialects import translate
from lurus_dialects.openai_chat import answer_reader
from lurus_dialects.translation import ToolName
from tests.dialects.chat_spoke.spoke import A, C, R, blocks, read, write
from tests.dialects.streams import GOLDENS, recorded
from tests.support.provider_streams import (
    C_USAGE,
    DONE,
    c_arguments,
    c_body,
    c_call,
    c_chunk,
    c_finish,
    c_start,
    c_text,
)

PATCH = '*** Begin Patch\n+"q"\n*** End Patch'
END, CALLS = chat_pb2.CHAT_STOP_KIND_END_TURN, chat_pb2.CHAT_STOP_KIND_TOOL_CALLS


def said(*stream: bytes, **tools: ToolName) -> list[Any]:
    return read(C, b"".join(stream), tools)


def finish(events: list[Any]) -> Any:
    assert events[-1].HasField("finish"), events[-1]
    return events[-1].finish


def error(events: list[Any]) -> Any:
    assert events[-1].HasField("error") and sum(e.HasField("error") for e in events) == 1
    assert not any(event.HasField("finish") for event in events)
    return events[-1].error


class TestBlocks:
    def test_Y01_text_a_call_and_usage(self) -> None:
        events = said(
            c_start(),
            c_text("I ", "look"),
            c_call(0, "a", "f"),
            c_arguments(0, "{", "}"),
            c_finish("tool_calls"),
        )
        assert blocks(events) == ["I look", ("a", "f", "{}")]
        assert events[0].start.response_id == "chatcmpl-upstream" and events[0].start.model == "gpt-up"
        end = finish(events)
        assert (end.kind, end.stop_reason, end.has_provider_tokens) == (CALLS, "tool_calls", True)
        assert (end.tokens.input, end.tokens.output) == (15, 9)

    def test_Y02_alternating_calls(self) -> None:
        fragments = [
            c_arguments(place, part) for place, part in [(0, '{"a'), (1, "{"), (0, '":1}'), (1, "}")]
        ]
        events = said(c_start(), c_call(0, "a", "f"), c_call(1, "b", "g"), *fragments, c_finish("tool_calls"))
        assert blocks(events) == [("a", "f", '{"a":1}'), ("b", "g", "{}")]

    def test_Y03_text_amid_a_call_is_a_block_of_its_own(self) -> None:
        amid = [c_arguments(0, '{"a"'), c_text("by the way"), c_arguments(0, ":1}")]
        events = said(c_start(), c_call(0, "a", "f"), *amid, c_finish("tool_calls"))
        assert blocks(events) == [("a", "f", '{"a":1}'), "by the way"]

    @pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
    def test_Y04_thinking_leads_and_is_sealed(self, name: str) -> None:
        thoughts = [c_chunk({"content": None, name: part}) for part in ("Let me", " see.")]
        events = said(c_start(), *thoughts, c_text("42"), c_finish("stop"))
        assert blocks(events) == ["Let me see.", "42"]
        (seal,) = [event.thinking_seal for event in events if event.HasField("thinking_seal")]
        assert json.loads(seal.original) == {"reasoning_content": "Let me see."}
        assert seal.dialect == usage_pb2.DIALECT_OPENAI_CHAT
        written = write(A, events, provider_id="prov", upstream_model="up")
        assert written.index(b"signature_delta") < written.index(b"text_delta")

    def test_Y08_repeated_ids_and_names(self) -> None:
        function = {"name": "f", "arguments": '{"a"'}
        call = {"index": 0, "id": "a", "type": "function", "function": function}
        again = {**call, "function": {"name": "f", "arguments": ":1}"}}
        events = said(c_chunk({"tool_calls": [call]}), c_chunk({"tool_calls": [again]}), c_finish("stop"))
        assert blocks(events) == [("a", "f", '{"a":1}')]

    def test_Y08_calls_without_an_index(self) -> None:
        def fragment(**fields: Any) -> bytes:
            return c_chunk({"tool_calls": [fields]})

        by_id = [
            fragment(id=i, function={"name": n, "arguments": p})
            for i, n, p in [("a", "f", "{"), ("b", "g", "{"), ("a", "f", "}"), ("b", "g", "}")]
        ]
        expected = [("a", "f", "{}"), ("b", "g", "{}")]
        assert blocks(said(*by_id, c_finish("stop"))) == expected
        last_open = [
            fragment(id=i, function={"name": n, "arguments": ""}) + fragment(function={"arguments": "{}"})
            for i, n in [("a", "f"), ("b", "g")]
        ]
        assert blocks(said(*last_open, c_finish("stop"))) == expected

    def test_whole_calls_without_index_and_id_are_told_apart(self) -> None:
        both = [{"function": {"name": name, "arguments": "{}"}} for name in ("f", "f")]
        found = blocks(said(c_chunk({"tool_calls": both}), c_finish("stop")))
        assert [call[1:] for call in found] == [("f", "{}")] * 2
        assert len({call[0] for call in found}) == 2 and all(call[0] for call in found)

    def test_calls_that_all_have_index_0_are_told_apart_by_id(self) -> None:
        calls = [c_call(0, "a", "f"), c_arguments(0, "{}"), c_call(0, "b", "g"), c_arguments(0, "{}")]
        assert blocks(said(*calls, c_finish("stop"))) == [("a", "f", "{}"), ("b", "g", "{}")]

    def test_arguments_given_as_an_object(self) -> None:
        function = {"name": "f", "arguments": {"a": 1}}
        events = said(
            c_chunk({"tool_calls": [{"index": 0, "id": "a", "function": function}]}), c_finish("stop")
        )
        assert blocks(events) == [("a", "f", '{"a":1}')]

    def test_arguments_before_the_name_are_kept(self) -> None:
        early = c_chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"arguments": "{"}}]})
        events = said(early, c_call(0, "a", "f"), c_arguments(0, "}"), c_finish("stop"))
        assert blocks(events) == [("a", "f", "{}")]

    def test_a_legacy_call(self) -> None:
        parts = [{"name": "f", "arguments": "{"}, {"arguments": "}"}]
        events = said(*(c_chunk({"function_call": part}) for part in parts), c_finish("function_call"))
        ((call_id, *call),) = blocks(events)
        assert call_id and call == ["f", "{}"] and finish(events).kind == CALLS

    def test_T8_names_are_given_back(self) -> None:
        names = {"n__f": ToolName("f", "n"), "short": ToolName("x" * 90)}
        calls = [c_call(0, "a", "n__f"), c_call(1, "b", "short")]
        events = said(*calls, c_finish("tool_calls"), **names)
        told = [event.tool_call for event in events if event.HasField("tool_call")]
        assert [(call.name, call.namespace) for call in told] == [("f", "n"), ("x" * 90, "")]

    def test_Y18_a_wrapped_text_is_unwrapped(self) -> None:
        arguments = json.dumps({"input": PATCH})
        parts = [arguments[at : at + 9] for at in range(0, len(arguments), 9)]
        wrapped = {"apply_patch": ToolName("apply_patch", "", True)}
        events = said(
            c_call(0, "a", "apply_patch"), c_arguments(0, *parts), c_finish("tool_calls"), **wrapped
        )
        assert blocks(events) == [("a", "apply_patch", PATCH)]
        assert sum(event.HasField("arguments_delta") for event in events) == 1
        assert events[-2].tool_call.kind == chat_pb2.CHAT_TOOL_KIND_CUSTOM
        assert json.dumps(PATCH)[1:-1].encode() in write(R, events)

    def test_a_custom_tool_of_the_dialect_itself(self) -> None:
        call = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "p", "input": "x"}}
        events = said(c_chunk({"tool_calls": [call]}), c_finish("stop"))
        assert events[-2].tool_call.kind == chat_pb2.CHAT_TOOL_KIND_CUSTOM
        assert events[-2].tool_call.arguments == b"x"

    def test_S15_empty_deltas_open_nothing(self) -> None:
        events = said(
            c_chunk({}), c_chunk({"content": ""}), c_chunk(), c_chunk({"content": None}), c_finish("stop")
        )
        assert [event.WhichOneof("event") for event in events] == ["start", "usage", "finish"]

    def test_of_several_answers_the_first_is_read(self) -> None:
        other = [{"index": 1, "delta": {"content": "no"}, "finish_reason": "stop"}]
        first = {"index": 0, "delta": {"content": "yes"}, "finish_reason": None}
        events = said(
            c_chunk(choices=other), c_chunk(choices=[*other, first]), c_chunk(choices=other), c_finish("stop")
        )
        assert blocks(events) == ["yes"]

    def test_G19_half_characters_are_joined_or_replaced(self) -> None:
        halves = c_text("a\ud83d", "\ude00b", "c\ud83d")
        assert blocks(said(halves, c_finish("stop"))) == ["a\U0001f600bc\ufffd"]
        parts = c_call(0, "a", "f") + c_arguments(0, '{"a":"\ud83d', '\ude00"}')
        assert blocks(said(parts, c_finish("stop"))) == [("a", "f", '{"a":"\U0001f600"}')]

    def test_a_refusal_is_a_block(self) -> None:
        events = said(c_chunk({"refusal": "I "}), c_chunk({"refusal": "can't"}), c_finish("stop"))
        assert blocks(events) == ["I can't"]
        assert events[1].block_start.kind == chat_pb2.CHAT_BLOCK_KIND_REFUSAL

    def test_what_is_kept_of_an_answer_is_bounded(self) -> None:
        part = "x" * (1024 * 1024)
        events = said(c_call(0, "a", "f"), c_arguments(0, *[part] * 9), c_finish("stop"))
        assert error(events).reason == "UPSTREAM_FAILED"


class TestEnds:
    def test_Y05_without_usage_the_terminator_ends_it(self) -> None:
        end = finish(said(c_start(), c_text("x"), c_chunk({}, "stop"), DONE))
        assert end.kind == END and not end.has_provider_tokens

    def test_the_end_of_the_stream_is_enough_after_a_finish(self) -> None:
        assert finish(said(c_start(), c_text("x"), c_chunk({}, "stop"))).kind == END

    def test_the_finish_waits_for_usage_and_no_longer(self) -> None:
        reader = answer_reader.StreamReader({})
        for chunk in (c_text("x"), c_chunk({}, "stop")):
            assert not any(event.HasField("finish") for event in reader.read(b"", chunk[6:-2]))
        assert finish(reader.read(b"", c_chunk(usage=C_USAGE)[6:-2])).has_provider_tokens
        assert reader.read(b"", b"[DONE]") == reader.end() == []

    @pytest.mark.parametrize("reason", [None, ""])
    def test_Y06_without_a_finish_it_is_cut(self, reason: str | None) -> None:
        assert error(said(c_start(), c_text("half"), c_chunk({}, reason))).reason == "UPSTREAM_CUT"
        assert error(said()).reason == "UPSTREAM_CUT"
        assert error(said(DONE)).reason == "UPSTREAM_CUT"

    @pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "function_call", "novel"])
    def test_Y07_any_finish_with_a_whole_call_is_one_for_tools(self, reason: str) -> None:
        events = said(c_call(0, "a", "f"), c_arguments(0, "{}"), c_finish(reason))
        assert (finish(events).kind, finish(events).stop_reason) == (CALLS, reason)

    def test_a_call_cut_by_the_limit_is_not_one_to_make(self) -> None:
        events = said(c_call(0, "a", "f"), c_arguments(0, '{"a":'), c_finish("length"))
        assert finish(events).kind == chat_pb2.CHAT_STOP_KIND_MAX_TOKENS

    @pytest.mark.parametrize(
        ("reason", "kind"),
        [
            ("stop", END),
            ("length", chat_pb2.CHAT_STOP_KIND_MAX_TOKENS),
            ("content_filter", chat_pb2.CHAT_STOP_KIND_REFUSAL),
            ("novel", END),
        ],
    )
    def test_words(self, reason: str, kind: int) -> None:
        assert finish(said(c_text("x"), c_finish(reason))).kind == kind

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            ({"error": {"message": "m", "type": "server_error", "code": None}}, "UPSTREAM_FAILED"),
            ({"error": {"message": "m", "code": "context_length_exceeded"}}, "CONTEXT_TOO_LONG"),
            ({"error": "m"}, "UPSTREAM_FAILED"),
            ({"object": "error", "message": "m", "code": 400}, "UPSTREAM_FAILED"),
        ],
    )
    def test_errors(self, data: dict[str, Any], reason: str) -> None:
        found = error(said(c_text("x"), f"data: {json.dumps(data)}\n\n".encode(), DONE))
        assert (found.reason, found.message) == (reason, "m")
        (plain,) = translate.read_body(C, json.dumps(data).encode(), {})
        assert plain.error == found

    def test_what_concerns_our_credential_is_not_shown(self) -> None:
        data = {"error": {"message": "key sk-123 is wrong", "code": "invalid_api_key"}}
        found = error(said(f"data: {json.dumps(data)}\n\n".encode()))
        assert found.reason == "UPSTREAM_CREDENTIAL_REJECTED" and "sk-123" not in found.message

    def test_a_finish_that_is_an_error(self) -> None:
        assert error(said(c_text("x"), c_chunk({}, "error"), DONE)).reason == "UPSTREAM_FAILED"

    def test_a_piece_that_cannot_be_read_ends_the_answer(self) -> None:
        assert (
            error(said(c_text("x"), b'data: {"choices":[{\n\n', c_finish("stop"))).reason == "UPSTREAM_FAILED"
        )
        assert blocks(said(c_text("x"), b"data: ping\n\n", c_finish("stop"))) == ["x"]


class TestUsage:
    def test_M02_what_the_cache_holds_is_not_input(self) -> None:
        details = {"cached_tokens": 1000, "cache_write_tokens": 100}
        usage = {"prompt_tokens": 1110, "completion_tokens": 50, "prompt_tokens_details": details}
        tokens = finish(said(c_text("x"), c_finish("stop", usage))).tokens
        assert (tokens.input, tokens.cache_read, tokens.cache_write_30m, tokens.output) == (10, 1000, 100, 50)

    def test_M06_the_last_of_several_wins(self) -> None:
        counted = [
            c_chunk({"content": "x"}, usage={"prompt_tokens": 4, "completion_tokens": n}) for n in (1, 2, 3)
        ]
        events = said(*counted, c_chunk({}, "stop"), DONE)
        assert finish(events).tokens.output == 3
        assert [event.usage.output for event in events if event.HasField("usage")] == [1, 2, 3]


class TestBodies:
    def test_Y25_a_whole_answer_says_what_its_stream_says(self) -> None:
        call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
        message = {"reasoning_content": "hm", "content": "I look", "tool_calls": [call]}
        body = translate.read_body(C, json.dumps(c_body(message, "tool_calls")).encode(), {})
        assert blocks(body) == ["hm", "I look", ("a", "f", '{"a":1}')]
        thought = c_chunk({"reasoning_content": "hm"})
        streamed = said(
            thought, c_text("I look"), c_call(0, "a", "f"), c_arguments(0, '{"a":1}'), c_finish("tool_calls")
        )
        assert finish(body) == finish(streamed) and blocks(body) == blocks(streamed)

    def test_calls_without_ids_and_content_in_parts(self) -> None:
        functions = [{"function": {"name": name, "arguments": {"a": 1}}} for name in "fg"]
        parts = [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]
        message = {"content": parts, "tool_calls": functions}
        found = blocks(translate.read_body(C, json.dumps(c_body(message)).encode(), {}))
        assert [found[0], *(call[1:] for call in found[1:])] == ["xy", ("f", '{"a":1}'), ("g", '{"a":1}')]

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"choices":[]}', b'{"choices":{}}', b"\xff"])
    def test_what_is_no_answer_is_an_error(self, body: bytes) -> None:
        (event,) = translate.read_body(C, body, {})
        assert event.error.reason == "UPSTREAM_FAILED"


@pytest.mark.parametrize("name", sorted(name for name in GOLDENS if name.startswith("openai_chat")))
def test_a_recorded_stream_counts_as_it_is_charged(name: str) -> None:
    golden, events = GOLDENS[name], read(C, recorded(name))
    if not golden.is_ok:
        error(events)
        return
    tokens = finish(events).tokens
    assert (tokens.input, tokens.cache_read) == (golden.tokens.input, golden.tokens.cache_read)
    assert (tokens.output, tokens.reasoning) == (golden.tokens.output, golden.tokens.reasoning)
    assert finish(events).stop_reason == golden.stop_reason
