"""Answers of Responses providers and to Responses clients (wire-contract A.3.5, C.2-C.5, E.5)."""

import json
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatBlockEnd,
    ChatBlockStart,
    ChatError,
    ChatFinish,
    ChatStart,
    ChatThinking,
    ChatToolCall,
    StreamChatResponse,
)
from lurus.usage.v1.usage_pb2 import Tokens
from lurus_dialects import envelope
from lurus_dialects.openai_responses import item_blocks
from lurus_dialects.openai_responses.answer_reader import StreamReader, read_body
from lurus_dialects.openai_responses.answer_writer import StreamWriter, write_body
from lurus_dialects.translation import ToolName
from tests.dialects.responses_spoke import codex, spoke
from tests.dialects.streams import recorded
from tests.support import responses_client
from tests.support.told import Told

E = StreamChatResponse
TEXT, THINKING, CALL, REFUSAL = (
    chat_pb2.CHAT_BLOCK_KIND_TEXT,
    chat_pb2.CHAT_BLOCK_KIND_THINKING,
    chat_pb2.CHAT_BLOCK_KIND_TOOL_CALL,
    chat_pb2.CHAT_BLOCK_KIND_REFUSAL,
)
FUNCTION, CUSTOM = chat_pb2.CHAT_TOOL_KIND_FUNCTION, chat_pb2.CHAT_TOOL_KIND_CUSTOM
TOKENS = Tokens(input=10, cache_read=1000, cache_write_5m=100, output=50, reasoning=7)
START = E(start=ChatStart(response_id="msg_up", model="claude-up"))
CREATED = {"type": "response.created", "response": {"id": "resp_up", "model": "gpt-up", "output": []}}
USAGE = {"input_tokens": 20, "input_tokens_details": {"cached_tokens": 5}, "output_tokens": 9}


def block(index: int, kind: int, *deltas: str) -> list[StreamChatResponse]:
    """Returns a whole block of text, refusal or thinking."""
    name = "thinking_delta" if kind == THINKING else "text_delta"
    parts = [E(block_index=index, **{name: delta}) for delta in deltas]  # type: ignore[arg-type]
    return [opened(index, kind), *parts, E(block_end=ChatBlockEnd(), block_index=index)]


def opened(index: int, block_kind: int, **call: Any) -> StreamChatResponse:
    start = ChatBlockStart(kind=block_kind, tool_call=ChatToolCall(**call) if call else None)  # type: ignore[arg-type]
    return E(block_start=start, block_index=index)


def arguments(index: int, delta: str) -> StreamChatResponse:
    return E(arguments_delta=delta, block_index=index)


def called(index: int, *deltas: str, **call: Any) -> list[StreamChatResponse]:
    call = {"tool_call_id": f"call_{index}", "name": "f", "kind": FUNCTION, **call}
    whole = "".join(deltas) or "{}"
    end = E(tool_call=ChatToolCall(**call, arguments=whole.encode()), block_index=index)
    return [opened(index, CALL, **call), *(arguments(index, delta) for delta in deltas), end]


def finish(kind: int = chat_pb2.CHAT_STOP_KIND_END_TURN) -> StreamChatResponse:
    return E(finish=ChatFinish(kind=kind, tokens=TOKENS, has_provider_tokens=True))  # type: ignore[arg-type]


def told(*events: StreamChatResponse, **asked: Any) -> Told:
    """Returns what a client makes of an answer."""
    stream = spoke.write_stream([START, *events], spoke.asked(**asked))
    return responses_client.read_stream([(name.decode(), data) for name, data in spoke.events_of(stream)])


def answered(*output: dict[str, Any], kind: str = "completed", **more: Any) -> dict[str, Any]:
    response = {"id": "resp_up", "status": kind, "output": list(output), "usage": USAGE, **more}
    return {"type": f"response.{kind}", "response": response}


def message(*texts: str) -> dict[str, Any]:
    return {
        "type": "message",
        "id": "msg_1",
        "content": [{"type": "output_text", "text": text} for text in texts],
    }


def done(index: int, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def delta(text: str, index: int = 0, kind: str = "output_text", **more: Any) -> dict[str, Any]:
    return {
        "type": f"response.{kind}.delta",
        "output_index": index,
        "content_index": 0,
        "delta": text,
        **more,
    }


class TestWriter:
    def test_Y09_thinking_text_and_two_calls_are_four_items(self) -> None:
        seal = E(thinking_seal=ChatThinking(original=b'{"type":"thinking"}', dialect=1), block_index=0)  # type: ignore[arg-type]
        thinking = block(0, THINKING, "hm", "m")
        thinking.insert(-1, seal)
        client = told(
            *thinking,
            *block(1, TEXT, "I ", "look."),
            *called(2, '{"a":', "1}"),
            *called(3, '{"b":2}'),
            finish(chat_pb2.CHAT_STOP_KIND_TOOL_CALLS),
            provider_id="prov_a",
            upstream_model="claude-up",
        )
        (_, text, sealed), *rest = client.blocks
        assert text == "hmm" and client.finish == "completed"
        opened_seal = envelope.unseal(sealed)
        assert opened_seal is not None and opened_seal.original == b'{"type":"thinking"}'
        assert (opened_seal.provider_id, opened_seal.upstream_model) == ("prov_a", "claude-up")
        assert rest == [
            ("text", "I look."),
            ("tool", "call_2", "f", '{"a":1}', ""),
            ("tool", "call_3", "f", '{"b":2}', ""),
        ]

    def test_C3_sealed_thinking_is_left_out_unless_asked_for(self) -> None:
        seal = E(thinking_seal=ChatThinking(original=b"{}", dialect=1), block_index=0)  # type: ignore[arg-type]
        events = [opened(0, THINKING), seal, E(block_end=ChatBlockEnd())]
        client = told(*events, finish(), request=spoke.read({"model": "m", "input": "x"}))
        assert client.blocks == [("thinking", "", "")]

    def test_C4_a_run_of_texts_is_one_message(self) -> None:
        client = told(
            *block(0, TEXT, "a"), *block(1, REFUSAL, "no"), *called(2), *block(3, TEXT, "b"), finish()
        )
        assert [len(item.get("content", [])) for item in client.whole["output"]] == [2, 0, 1]
        ids = [item["id"] for item in client.whole["output"]]
        assert ids == ["msg_01ABC_0", "fc_01ABC_1", "msg_01ABC_2"]

    def test_Y11_a_call_without_arguments_has_an_empty_object(self) -> None:
        assert told(*called(0), finish()).blocks == [("tool", "call_0", "f", "{}", "")]

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            (chat_pb2.CHAT_STOP_KIND_MAX_TOKENS, "max_output_tokens"),
            (chat_pb2.CHAT_STOP_KIND_CONTEXT_FULL, "max_output_tokens"),
            (chat_pb2.CHAT_STOP_KIND_REFUSAL, "content_filter"),
            (chat_pb2.CHAT_STOP_KIND_PAUSE, "completed"),
            (chat_pb2.CHAT_STOP_KIND_STOP_SEQUENCE, "completed"),
            (chat_pb2.CHAT_STOP_KIND_UNSPECIFIED, "completed"),
        ],
    )
    def test_Y12_Y13_why_an_answer_ends(self, kind: int, reason: str) -> None:
        client = told(*block(0, TEXT, "x"), finish(kind))
        assert client.finish == reason and client.usage is not None
        assert client.usage["output_tokens"] == 50

    def test_M01_usage_includes_the_cache(self) -> None:
        assert told(finish()).usage == {
            "input_tokens": 1110,
            "input_tokens_details": {"cached_tokens": 1000, "cache_write_tokens": 100},
            "output_tokens": 50,
            "output_tokens_details": {"reasoning_tokens": 7},
            "total_tokens": 1160,
        }

    def test_Y18_a_custom_call_has_its_own_item(self) -> None:
        patch = '*** Begin Patch\n+"q"\n'
        client = told(*called(0, patch, name="apply_patch", kind=CUSTOM), finish())
        assert client.blocks == [("custom", "call_0", "apply_patch", patch, "")]
        assert [e["type"] for e in client.events].count("response.custom_tool_call_input.delta") == 1

    def test_Y26_a_namespaced_call_keeps_its_namespace(self) -> None:
        client = told(*called(0, name="search", namespace="mcp__gh"), finish())
        assert client.blocks == [("tool", "call_0", "search", "{}", "mcp__gh")]

    @pytest.mark.parametrize(
        ("reason", "code"),
        [
            ("OVERLOADED", "server_error"),
            ("RATE_LIMITED", "rate_limit_exceeded"),
            ("CONTEXT_TOO_LONG", "context_length_exceeded"),
            ("INVALID_REQUEST", "invalid_prompt"),
            ("UPSTREAM_CUT", "server_error"),
        ],
    )
    def test_Y22_an_error_fails_the_response_with_the_items_done(self, reason: str, code: str) -> None:
        error = E(error=ChatError(reason=reason, message="Sorry"))
        client = told(*called(0), *block(1, TEXT, "half")[:-1], error)
        assert client.error is not None and client.error["code"] == code
        assert [item["type"] for item in client.whole["output"]] == ["function_call"]
        assert ("try again in" in client.error["message"]) == (reason == "RATE_LIMITED")

    def test_S19_silence_is_filled_with_numbered_events_once_the_answer_began(self) -> None:
        writer = StreamWriter(spoke.asked())
        assert writer.heartbeat() == b": keepalive\n\n"
        stream = writer.write(START) + writer.heartbeat() + writer.heartbeat()
        stream += b"".join(writer.write(event) for event in [*block(0, TEXT, "x"), finish()])
        events = [(name.decode(), data) for name, data in spoke.events_of(stream)]
        assert [name for name, _ in events].count("keepalive") == 2
        assert responses_client.read_stream(events).is_complete
        assert writer.is_over and writer.heartbeat() == b"" == writer.write(finish())

    def test_Y02_interleaved_blocks_keep_their_own_items(self) -> None:
        zero, one = called(1, '{"a":', "1}"), called(2, '{"b":', "2}")
        text = block(0, TEXT, "a", "b")
        mixed = [
            text[0],
            text[1],
            zero[0],
            one[0],
            zero[1],
            one[1],
            text[2],
            one[2],
            zero[2],
            one[3],
            text[3],
            zero[3],
        ]
        client = told(*mixed, finish())
        assert [found[-2] if found[0] == "tool" else found[-1] for found in client.blocks] == [
            "ab",
            '{"a":1}',
            '{"b":2}',
        ]

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_any_order_of_blocks_is_a_ladder(self, data: st.DataObject) -> None:
        kinds = data.draw(st.lists(st.sampled_from([TEXT, REFUSAL, THINKING, CALL]), max_size=5))
        lanes = [called(i, "{", "}") if k == CALL else block(i, k, "a", "b") for i, k in enumerate(kinds)]
        mixed: list[StreamChatResponse] = []
        begun: list[list[StreamChatResponse]] = []
        while lanes or begun:
            if lanes and (not begun or data.draw(st.booleans())):
                begun.append(lanes.pop(0))
                mixed.append(begun[-1].pop(0))
                continue
            lane = data.draw(st.sampled_from(begun))
            mixed.append(lane.pop(0))
            begun = [lane for lane in begun if lane]
        client = told(*mixed, finish())
        assert client.is_complete and len(client.blocks) == len(kinds)

    def test_the_answer_repeats_what_was_asked(self) -> None:
        body = codex.request() | {"instructions": "be brief", "temperature": 0.5}
        whole = told(finish(), request=spoke.read(body)).whole
        for name in (
            "tools",
            "tool_choice",
            "instructions",
            "parallel_tool_calls",
            "temperature",
            "reasoning",
        ):
            assert whole[name] == body[name], name
        assert whole["model"] == body["model"] and whole["store"] is False

    def test_Y25_a_plain_body_equals_the_streams_last_event(self) -> None:
        events = [START, *block(0, TEXT, "x"), *called(1), finish(chat_pb2.CHAT_STOP_KIND_MAX_TOKENS)]
        body = json.loads(write_body(events, spoke.asked()))
        assert body == told(*events[1:]).whole
        assert responses_client.read_body(body).finish == "max_output_tokens"

    def test_an_endless_answer_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lurus_dialects.openai_responses.answer_writer.MAX_ANSWER_CHARACTERS", 3)
        assert told(*block(0, TEXT, "ab", "cd")).error is not None


class TestSdk:
    """The OpenAI SDK's helper takes our streams, and its models our objects."""

    def test_Y09_K08_the_helper_accepts_every_kind_of_block(self) -> None:
        tools = codex.request()["tools"][:2]
        request = spoke.read({**spoke.SEED, "tools": tools, "instructions": "i"})
        events = [
            START,
            *block(0, THINKING, "hm"),
            *block(1, TEXT, "He", "llo"),
            *called(2, '{"a":', "1}"),
            *called(3, "raw", kind=CUSTOM),
            finish(),
        ]
        stream = spoke.write_stream(events, spoke.asked(request))
        with _client(stream, "text/event-stream") as client, client.responses.stream(**spoke.SEED) as helper:  # type: ignore[arg-type]
            final = helper.get_final_response()
        assert final.output_text == "Hello"
        assert [item.type for item in final.output] == [
            "reasoning",
            "message",
            "function_call",
            "custom_tool_call",
        ]
        assert final.usage is not None and final.usage.total_tokens == 1160

    def test_Y25_the_models_accept_a_plain_body(self) -> None:
        request = spoke.read({**spoke.SEED, "tools": codex.request()["tools"][:2]})
        events = [START, *block(0, TEXT, "Hello"), *called(1), finish()]
        body = write_body(events, spoke.asked(request))
        strict = openai.types.responses.Response.model_validate_json(body)
        assert strict.output_text == "Hello" and len(strict.tools) == 2

    def test_every_event_fits_its_model(self) -> None:
        events = [
            START,
            *block(0, THINKING, "h"),
            *block(1, TEXT, "x"),
            *block(2, REFUSAL, "n"),
            *called(3),
            finish(),
        ]
        adapter = openai._models.TypeAdapter(openai.types.responses.ResponseStreamEvent)
        for _, data in spoke.events_of(spoke.write_stream(events)):
            adapter.validate_json(data)


def _client(body: bytes, content_type: str) -> openai.OpenAI:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=body, headers={"content-type": content_type})

    transport = httpx.MockTransport(answer)
    return openai.OpenAI(api_key="k", base_url="http://x/v1", http_client=httpx.Client(transport=transport))


def kinds(events: list[StreamChatResponse]) -> list[str]:
    return [event.WhichOneof("event") or "" for event in events]


class TestReader:
    @pytest.mark.parametrize(
        "events",
        [
            [CREATED, done(0, message("Hello", "You")), answered()],
            [CREATED, answered(message("Hello", "You"))],
            [CREATED, delta("Hel"), done(0, message("Hello", "You")), answered(message("Hello", "You"))],
            [
                CREATED,
                {"type": "response.output_text.done", "output_index": 0, "content_index": 0, "text": "Hello"},
                done(0, message("Hello", "You")),
                answered(),
            ],
        ],
    )
    def test_Y17_text_is_told_once_wherever_it_stands(self, events: list[dict[str, Any]]) -> None:
        found = spoke.read_stream(spoke.provider(*events))
        assert spoke.texts(found) == "HelloYou"
        assert kinds(found).count("block_start") == kinds(found).count("block_end") == 2
        assert found[-1].finish.kind == chat_pb2.CHAT_STOP_KIND_END_TURN

    @pytest.mark.parametrize(
        ("reason", "kind"),
        [
            ("max_output_tokens", chat_pb2.CHAT_STOP_KIND_MAX_TOKENS),
            ("content_filter", chat_pb2.CHAT_STOP_KIND_REFUSAL),
            ("steered", chat_pb2.CHAT_STOP_KIND_END_TURN),
            ("max_messages", chat_pb2.CHAT_STOP_KIND_END_TURN),
        ],
    )
    def test_Y19_M14_an_incomplete_answer_states_reason_and_usage(self, reason: str, kind: int) -> None:
        end = answered(kind="incomplete", incomplete_details={"reason": reason})
        last = spoke.read_stream(spoke.provider(CREATED, delta("x"), end))[-1].finish
        assert (last.kind, last.stop_reason) == (kind, reason)
        assert last.has_provider_tokens and last.tokens == Tokens(input=15, cache_read=5, output=9)

    @pytest.mark.parametrize(
        ("code", "reason", "status"),
        [
            ("rate_limit_exceeded", "RATE_LIMITED", 429),
            ("context_length_exceeded", "CONTEXT_TOO_LONG", 400),
            ("server_error", "UPSTREAM_FAILED", 500),
            ("insufficient_quota", "UPSTREAM_CREDENTIAL_REJECTED", 429),
            ("odd", "UPSTREAM_FAILED", 502),
        ],
    )
    def test_Y20_Y21_failures_have_code_and_status(self, code: str, reason: str, status: int) -> None:
        failed = answered(kind="failed", error={"code": code, "message": "Sorry."})
        bare = {"type": "error", "code": code, "message": "Sorry."}
        for events in ([failed], [CREATED, delta("x"), failed], [bare], [CREATED, delta("x"), bare]):
            error = spoke.read_stream(spoke.provider(*events))[-1].error
            assert (error.reason, error.code, error.http_status) == (reason, code, status)
        failure = spoke.read_stream(spoke.provider(CREATED, failed))
        assert kinds(failure) == ["start", "usage", "error"]

    def test_H04_G10_a_cut_stream_is_an_error(self) -> None:
        found = spoke.read_stream(spoke.provider(CREATED, delta("x")))
        assert found[-1].error.reason == "UPSTREAM_CUT"
        assert spoke.read_stream(b"")[-1].error.reason == "UPSTREAM_CUT"

    def test_Y15_reasoning_is_sealed_with_the_whole_item(self) -> None:
        item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
        found = spoke.read_stream(spoke.provider(CREATED, done(0, item), answered()))
        assert kinds(found) == ["start", "block_start", "thinking_seal", "block_end", "usage", "finish"]
        assert json.loads(found[2].thinking_seal.original) == item

    def test_summaries_are_joined_by_a_blank_line(self) -> None:
        parts = [{"type": "summary_text", "text": text} for text in ("one", "two")]
        item = {"type": "reasoning", "id": "rs_1", "summary": parts}
        streamed = [
            {
                "type": "response.reasoning_summary_text.delta",
                "output_index": 0,
                "summary_index": 0,
                "delta": "one",
            },
            {
                "type": "response.reasoning_summary_text.delta",
                "output_index": 0,
                "summary_index": 1,
                "delta": "tw",
            },
        ]
        for events in ([done(0, item)], [*streamed, done(0, item)]):
            found = spoke.read_stream(spoke.provider(CREATED, *events, answered()))
            assert "".join(event.thinking_delta for event in found) == "one\n\ntwo"

    def test_Y18_a_wrapped_custom_call_is_unwrapped(self) -> None:
        names = {"apply_patch": ToolName("apply_patch", is_wrapped=True)}
        text = '*** Begin Patch\n+"q"\n'
        whole = json.dumps({"input": text})
        item = {"type": "function_call", "call_id": "c", "name": "apply_patch", "arguments": ""}
        events = [
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            *(delta(piece, kind="function_call_arguments") for piece in (whole[:9], whole[9:])),
            done(0, item | {"arguments": whole}),
            answered(),
        ]
        found = spoke.read_stream(spoke.provider(CREATED, *events), names)
        assert kinds(found)[1:4] == ["block_start", "arguments_delta", "tool_call"]
        assert found[2].arguments_delta == text and found[3].tool_call.arguments.decode() == text
        assert found[3].tool_call.kind == CUSTOM
        assert found[-1].finish.kind == chat_pb2.CHAT_STOP_KIND_TOOL_CALLS

    def test_Q13_names_are_mapped_back_and_empty_arguments_are_an_object(self) -> None:
        item = {"type": "function_call", "call_id": "c", "name": "short", "arguments": ""}
        names = {"short": ToolName("long", "ns")}
        found = spoke.read_stream(spoke.provider(CREATED, done(0, item), answered()), names)
        call = found[2].tool_call
        assert (call.name, call.namespace, call.arguments) == ("long", "ns", b"{}")

    def test_G19_halves_of_a_character_are_joined(self) -> None:
        halves = b"".join(
            b'data: {"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"%b"}\n\n'
            % part
            for part in (rb"a\ud83d", rb"\ude00b", rb"\ud83d", b"c", rb"\ud83d")
        )
        stream = spoke.provider(CREATED) + halves + spoke.provider(answered())
        assert spoke.texts(spoke.read_stream(stream)) == "a😀b\ufffdc\ufffd"

    def test_hosted_items_and_unknown_events_are_vendor_events(self) -> None:
        item = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
        events = [
            {"type": "response.web_search_call.searching"},
            done(0, item),
            {"type": "response.odd"},
            {"type": "keepalive"},
        ]
        found = spoke.read_stream(spoke.provider(CREATED, *events, answered()))
        assert [e.vendor_event.name for e in found if e.HasField("vendor_event")] == [
            "web_search_call",
            "response.odd",
        ]

    def test_oversized_arguments_end_in_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(item_blocks, "MAX_ARGUMENT_CHARACTERS", 4)
        events = [delta("12345", kind="function_call_arguments")]
        assert spoke.read_stream(spoke.provider(CREATED, *events))[-1].error.reason == "UPSTREAM_FAILED"

    def test_Y25_a_plain_body_says_what_the_stream_says(self) -> None:
        for name in ("text", "tools", "incomplete", "refusal"):
            stream = recorded(f"openai_responses-{name}")
            last = json.loads(spoke.events_of(stream)[-1][1])["response"]
            found = read_body(json.dumps(last).encode(), {})
            streamed = spoke.read_stream(stream)
            assert found[-1] == streamed[-1] and spoke.texts(found) == spoke.texts(streamed)
            calls = [[e.tool_call for e in events if e.HasField("tool_call")] for events in (found, streamed)]
            assert calls[0] == calls[1]

    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"{}", b'{"error":{"code":"server_error","message":"x"}}', b'{"output":7}']
    )
    def test_a_body_that_is_no_answer_is_an_error_or_empty(self, body: bytes) -> None:
        assert kinds(read_body(body, {}))[-1] in ("error", "finish")

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_nothing_a_provider_sends_raises(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(["tools", "text", "refusal", "failed"]))
        reader = StreamReader({})
        found = []
        odd = st.none() | st.integers() | st.text(max_size=3) | st.just([1]) | st.just({"a": [None]})
        for event_name, raw in spoke.events_of(recorded(f"openai_responses-{name}")):
            event = json.loads(raw)
            for target in (event, event.get("item"), event.get("response")):
                if isinstance(target, dict) and data.draw(st.integers(0, 9)) == 0:
                    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(odd)
            if data.draw(st.integers(0, 9)):
                found += reader.read(event_name, json.dumps(event).encode())
        found += reader.end()
        assert kinds(found)[-1] in ("finish", "error")
        # The hub's rules hold for whatever was read, so a client's stream is whole too.
        spoke.write_stream(found)
