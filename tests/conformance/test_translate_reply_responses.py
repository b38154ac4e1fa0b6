"""What a client sees of a Responses provider, of failures and of plain bodies (wire-contract E.5)."""

import json
from typing import Any

import pytest
from tests.conformance.requests import (
    A,
    C,
    R,
    a_request,
    a_tool,
    assistant,
    c_tool,
    codex_request,
    r_tool,
    request_of,
    text,
    user,
)
from tests.conformance.rig import Gateway
from tests.conformance.translating import Sent, ask
from tests.support.provider_streams import (
    R_USAGE,
    ResponsesStream,
    a_body,
    a_delta,
    a_end,
    a_error,
    a_open,
    a_start,
    c_arguments,
    c_body,
    c_call,
    c_finish,
    c_start,
    r_body,
)
from tests.support.provider_streams import (
    a_tool as a_call,
)
from tests.support.scripted_upstream import plain, stream

from lurus_dialects.dialect import Dialect

pytestmark = pytest.mark.anyio

TOOLS = {A: [a_tool("f"), a_tool("g")], C: [c_tool("f"), c_tool("g")], R: [r_tool("f"), r_tool("g")]}
PATCH = '*** Begin Patch\n+"q"\n+é\\n😀\n*** End Patch\n'


async def streamed(gateway: Gateway, client: Dialect, provider: Dialect, *chunks: bytes) -> Sent:
    """Returns what the client sees of a provider's stream, and checks its grammar."""
    request = request_of(client, stream=True, tools=TOOLS[client])
    return await ask(gateway, client, provider, request, answer=stream(list(chunks)))


async def plainly(
    gateway: Gateway, client: Dialect, provider: Dialect, body: dict[str, Any], status: int = 200
) -> Sent:
    """Returns what the client sees of a provider's plain body."""
    include = {"include": ["reasoning.encrypted_content"]} if client is R else {}
    request = request_of(client, tools=TOOLS[client], **include)
    return await ask(gateway, client, provider, request, answer=plain(body, status))


class TestReasoning:
    async def test_Y15_r_to_a_sealed_reasoning_comes_back_as_it_was(self, gateway: Gateway) -> None:
        blocks, item = await self._first_turn(gateway)
        sent = await ask(gateway, A, R, self._second_turn(blocks))
        kinds = [found.get("type", "message") for found in sent.upstream["input"]]
        assert "reasoning" in kinds
        assert sent.upstream["input"][kinds.index("reasoning")] == item

    async def test_Y16_r_to_a_another_provider_does_not_get_it(self, gateway: Gateway) -> None:
        blocks, _ = await self._first_turn(gateway)
        sent = await ask(gateway, A, await gateway.add("R"), self._second_turn(blocks))
        assert sent.status == 200
        assert "reasoning" not in [found.get("type") for found in sent.upstream["input"]]
        assert b"gAAAA" not in sent.upstream_bytes

    async def _first_turn(self, gateway: Gateway) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        events = ResponsesStream()
        chunks = [events.start(), events.reasoning(), events.text("42"), events.end()]
        sent = await streamed(gateway, A, R, *chunks)
        assert sent.told.kinds == ["thinking", "text"]
        _, thought, seal = sent.told.blocks[0]
        assert thought == "" and seal.startswith("lsw1.")
        return [{"type": "thinking", "thinking": "", "signature": seal}, text("42")], events.items[0]

    def _second_turn(self, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        return a_request(user("hi"), assistant(blocks), user("go on"))


class TestResponsesProvider:
    @pytest.mark.parametrize("client", [A, C])
    async def test_Y17_text_that_comes_late_comes_once(self, gateway: Gateway, client: Dialect) -> None:
        events = ResponsesStream()
        sent = await streamed(
            gateway, client, R, events.start(), events.text("only here", has_deltas=False), events.end()
        )
        assert sent.told.blocks == [("text", "only here")] and sent.told.is_complete

    async def test_Y19_to_a_a_full_answer_is_metered(self, gateway: Gateway) -> None:
        events = ResponsesStream()
        details = {"reason": "max_output_tokens"}
        chunks = [
            events.start(),
            events.text("half of"),
            events.end("incomplete", incomplete_details=details),
        ]
        sent = await streamed(gateway, A, R, *chunks)
        assert sent.told.finish == "max_tokens" and sent.told.is_complete
        usage = sent.told.usage
        assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (12, 3, 9)
        event = await sent.event()
        assert (event.tokens.input, event.tokens.cache_read, event.tokens.output) == (12, 3, 9)

    @pytest.mark.parametrize("client", [A, C])
    async def test_Y20_a_limit_before_any_answer_is_a_status(self, gateway: Gateway, client: Dialect) -> None:
        events = ResponsesStream()
        error = {"code": "rate_limit_exceeded", "message": "Rate limit reached. Please try again in 2s."}
        sent = await streamed(
            gateway, client, R, events.start(), events.end("failed", error=error, usage=None)
        )
        assert sent.status == 429
        assert sent.answered.header("retry-after")
        found = sent.json()["error"]
        assert found["type" if client is A else "code"] == (
            "rate_limit_error" if client is A else "rate_limit_exceeded"
        )

    @pytest.mark.parametrize("client", [A, C])
    async def test_Y21_a_failure_amid_an_answer_is_an_event(self, gateway: Gateway, client: Dialect) -> None:
        events = ResponsesStream()
        error = {"code": "server_error", "message": "It broke."}
        chunks = [events.start(), events.text("a", "b", "c"), events.end("failed", error=error)]
        sent = await streamed(gateway, client, R, *chunks)
        assert sent.status == 200 and not sent.told.is_complete
        assert sent.told.error is not None
        assert sent.told.error["type"] == ("api_error" if client is A else "server_error")
        assert b"[DONE]" not in sent.body and b"message_stop" not in sent.body


class TestCustomTools:
    async def test_Y18_r_to_c_a_wrapped_call_is_unwrapped(self, gateway: Gateway) -> None:
        wrapped = json.dumps({"input": PATCH}, ensure_ascii=True)
        size = -(-len(wrapped) // 7)
        parts = [wrapped[start : start + size] for start in range(0, len(wrapped), size)]
        assert len(parts) == 7
        answer = stream(
            [
                c_start(),
                c_call(0, "call_1", "apply_patch"),
                c_arguments(0, *parts),
                c_finish("tool_calls"),
            ]
        )
        sent = await ask(gateway, R, C, codex_request(), answer=answer, has_custom_tools=False)
        assert sent.upstream["tools"][1]["function"]["parameters"]["required"] == ["input"]
        assert sent.told.blocks == [("custom", "call_1", "apply_patch", PATCH, "")]
        assert [item["type"] for item in sent.told.whole["output"]] == ["custom_tool_call"]

    async def test_Y26_r_to_a_a_call_in_a_namespace_gets_it_back(self, gateway: Gateway) -> None:
        answer = stream([a_start(), a_call(0, "toolu_1", "mcp__gh__search", '{"q":"x"}'), a_end("tool_use")])
        sent = await ask(gateway, R, A, codex_request(), answer=answer)
        assert sent.told.blocks == [("tool", "toolu_1", "search", '{"q":"x"}', "mcp__gh")]


class TestFailures:
    async def test_Y22_a_to_r_an_error_amid_an_answer_lets_codex_reconnect(self, gateway: Gateway) -> None:
        chunks = [
            a_start(),
            a_open(0, {"type": "text", "text": ""}),
            a_delta(0, "text_delta", text="a"),
            a_delta(0, "text_delta", text="b"),
            a_error("overloaded_error", "Overloaded"),
        ]
        sent = await streamed(gateway, R, A, *chunks)
        assert sent.told.events[-1]["type"] == "response.failed"
        assert sent.told.error is not None and sent.told.error["code"] == "server_error"

    @pytest.mark.parametrize("client", [C, R])
    @pytest.mark.parametrize("is_streaming", [False, True])
    async def test_Y23_from_a_a_long_prompt_has_its_code(
        self, gateway: Gateway, client: Dialect, is_streaming: bool
    ) -> None:
        message = "prompt is too long: 210000 tokens > 200000 maximum"
        body = {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
        sent = await ask(gateway, client, A, request_of(client, stream=is_streaming), answer=plain(body, 400))
        assert sent.status == 400
        assert sent.json()["error"]["code"] == "context_length_exceeded"

    @pytest.mark.parametrize("is_streaming", [False, True])
    async def test_Y24_c_to_a_a_long_prompt_has_its_words(self, gateway: Gateway, is_streaming: bool) -> None:
        message = (
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 130500 "
            "tokens. Please reduce the length of the messages."
        )
        error = {"message": message, "type": "invalid_request_error", "param": "messages"}
        body = {"error": {**error, "code": "context_length_exceeded"}}
        sent = await ask(gateway, A, C, request_of(A, stream=is_streaming), answer=plain(body, 400))
        assert sent.status == 400
        assert sent.json()["error"] == {
            "type": "invalid_request_error",
            "message": "prompt is too long: 130500 tokens > 128000 maximum",
        }


class TestPlainBodies:
    async def test_Y25_y01_c_to_a(self, gateway: Gateway) -> None:
        function = {"name": "f", "arguments": '{"a":1}'}
        message = {
            "content": "I look",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        }
        sent = await plainly(gateway, A, C, c_body(message, "tool_calls"))
        assert sent.told.blocks == [("text", "I look"), ("tool", "call_1", "f", '{"a":1}')]
        assert sent.told.finish == "tool_use" and sent.told.model == sent.provider.model
        assert (sent.told.usage["input_tokens"], sent.told.usage["output_tokens"]) == (15, 9)
        event = await sent.event()
        assert (event.tokens.input, event.tokens.output) == (15, 9)

    @pytest.mark.parametrize("client", [C, R])
    async def test_Y25_y09_from_a(self, gateway: Gateway, client: Dialect) -> None:
        content = [
            {"type": "thinking", "thinking": "Let me see.", "signature": "EqQB"},
            text("I look"),
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
        ]
        sent = await plainly(gateway, client, A, a_body(content, "tool_use"))
        assert sent.told.kinds == ["thinking", "text", "tool", "tool"]
        assert sent.told.blocks[0][1] == "Let me see." and sent.told.text == "I look"
        calls = [(call_id, name, json.loads(given)) for _, call_id, name, given, *_ in sent.told.tools]
        assert calls == [("toolu_1", "f", {"a": 1}), ("toolu_2", "g", {})]
        if client is C:
            assert sent.told.finish == "tool_calls"
        else:
            assert sent.told.finish == "completed" and sent.told.blocks[0][2].startswith("lsw1.")

    async def test_Y25_a_call_alone_still_has_content(self, gateway: Gateway) -> None:
        content = [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}]
        sent = await plainly(gateway, C, A, a_body(content, "tool_use"))
        message = sent.json()["choices"][0]["message"]
        assert message["content"] is None and len(message["tool_calls"]) == 1

    @pytest.mark.parametrize(("client", "finish"), [(C, "length"), (R, "max_output_tokens")])
    async def test_Y25_y12_from_a(self, gateway: Gateway, client: Dialect, finish: str) -> None:
        sent = await plainly(gateway, client, A, a_body([text("half of")], "max_tokens"))
        assert (sent.told.finish, sent.told.text) == (finish, "half of")
        assert sent.told.usage["total_tokens"] == 24

    @pytest.mark.parametrize("client", [A, C])
    async def test_Y25_a_plain_answer_of_responses(self, gateway: Gateway, client: Dialect) -> None:
        events = ResponsesStream()
        events.reasoning("Let me see.")
        events.text("I look")
        events.call("call_1", "f", '{"a":1}')
        sent = await plainly(gateway, client, R, r_body(events.items, usage=R_USAGE))
        assert sent.told.kinds == ["thinking", "text", "tool"]
        assert sent.told.tools == [("tool", "call_1", "f", '{"a":1}')]
        assert sent.told.finish == ("tool_use" if client is A else "tool_calls")
