"""What a client sees of a Chat or an Anthropic provider's answer (wire-contract E.5)."""

import json
from typing import Any

import pytest
from tests.conformance.requests import A, C, R, a_tool, c_tool, r_tool, request_of
from tests.conformance.rig import Gateway
from tests.conformance.translating import Sent, ask
from tests.dialects.test_sdk_streams import read_with_sdk
from tests.support.provider_streams import (
    DONE,
    a_close,
    a_delta,
    a_end,
    a_open,
    a_start,
    a_text,
    a_thinking,
    c_arguments,
    c_call,
    c_chunk,
    c_finish,
    c_start,
    c_text,
    named,
)
from tests.support.provider_streams import (
    a_tool as a_call,
)
from tests.support.scripted_upstream import stream

from lurus.usage.v1 import usage_pb2
from lurus_dialects import envelope
from lurus_dialects.dialect import Dialect

pytestmark = pytest.mark.anyio

TOOLS = {A: [a_tool("f"), a_tool("g")], C: [c_tool("f"), c_tool("g")], R: [r_tool("f"), r_tool("g")]}
THINKING = a_thinking(0, "Let me see.", "EqQB-signature")
TWO_CALLS = a_call(2, "toolu_1", "f", "", '{"a"', ":1}") + a_call(3, "toolu_2", "g", '{"b":', "[2]}")


async def streamed(
    gateway: Gateway, client: Dialect, provider: Dialect, *chunks: bytes, **fields: Any
) -> Sent:
    """Returns what the client sees of a provider's stream, and checks its grammar."""
    is_ended = fields.pop("is_ended", True)
    if client is R:
        fields["include"] = ["reasoning.encrypted_content"]
    request = request_of(client, stream=True, tools=TOOLS[client], **fields)
    return await ask(gateway, client, provider, request, answer=stream(list(chunks), is_ended=is_ended))


class TestChatProvider:
    async def test_Y01_to_a_text_a_call_and_usage(self, gateway: Gateway) -> None:
        sent = await streamed(
            gateway,
            A,
            C,
            c_start(),
            c_text("I ", "look"),
            c_call(0, "call_1", "f"),
            c_arguments(0, '{"a"', ":1}"),
            c_finish("tool_calls"),
        )
        assert sent.told.blocks == [("text", "I look"), ("tool", "call_1", "f", '{"a":1}')]
        assert sent.told.finish == "tool_use" and sent.told.is_complete
        usage = {name: sent.told.usage[name] for name in ("input_tokens", "output_tokens")}
        assert usage == {"input_tokens": 15, "output_tokens": 9}
        assert {"cache_read_input_tokens", "cache_creation_input_tokens"} <= sent.told.usage.keys()
        kinds = [event["type"] for event in sent.told.events if event["type"] != "ping"]
        assert kinds[-2:] == ["message_delta", "message_stop"]
        assert sent.told.model == sent.provider.model
        event = await sent.event()
        assert (event.tokens.input, event.tokens.output) == (15, 9)

    async def test_Y02_to_a_alternating_calls_are_blocks_one_after_the_other(self, gateway: Gateway) -> None:
        fragments = [
            c_arguments(0, '{"a'),
            c_arguments(1, '{"b":'),
            c_arguments(0, '":1}'),
            c_arguments(1, "2}"),
        ]
        calls = [c_call(0, "call_1", "f"), c_call(1, "call_2", "g")]
        sent = await streamed(gateway, A, C, c_start(), *calls, *fragments, c_finish("tool_calls"))
        assert sent.told.blocks == [
            ("tool", "call_1", "f", '{"a":1}'),
            ("tool", "call_2", "g", '{"b":2}'),
        ]

    async def test_Y03_to_a_text_amid_a_call_stands_behind_it(self, gateway: Gateway) -> None:
        sent = await streamed(
            gateway,
            A,
            C,
            c_start(),
            c_call(0, "call_1", "f"),
            c_arguments(0, '{"a"'),
            c_text("by the way"),
            c_arguments(0, ":1}"),
            c_finish("tool_calls"),
        )
        assert sent.told.blocks == [("tool", "call_1", "f", '{"a":1}'), ("text", "by the way")]

    async def test_Y04_to_a_thinking_leads_and_is_sealed(self, gateway: Gateway) -> None:
        thoughts = [c_chunk({"reasoning_content": part}) for part in ("Let me", " see.")]
        sent = await streamed(gateway, A, C, c_start(), *thoughts, c_text("42"), c_finish("stop"))
        assert sent.told.kinds == ["thinking", "text"]
        _, thought, seal = sent.told.blocks[0]
        assert thought == "Let me see." and seal.startswith("lsw1.")
        unsealed = envelope.unseal(seal)
        assert unsealed is not None and unsealed.dialect == usage_pb2.DIALECT_OPENAI_CHAT
        assert sent.told.finish == "end_turn"

    async def test_Y05_to_a_without_usage_the_answer_still_ends(self, gateway: Gateway) -> None:
        sent = await streamed(
            gateway, A, C, c_start(), c_text("eight ch", "aracters"), c_chunk({}, "stop"), DONE
        )
        assert sent.told.is_complete and sent.told.finish == "end_turn"
        assert sent.told.usage["output_tokens"] > 0
        event = await sent.event()
        assert event.token_source == usage_pb2.TOKEN_SOURCE_ESTIMATED
        assert event.tokens.output == 4

    @pytest.mark.parametrize("is_ended", [True, False])
    async def test_Y06_to_a_an_end_without_a_finish_is_an_error(
        self, gateway: Gateway, is_ended: bool
    ) -> None:
        sent = await streamed(gateway, A, C, c_start(), c_text("half of"), is_ended=is_ended)
        assert sent.told.error is not None and sent.told.error["type"] == "api_error"
        assert not sent.told.is_complete and b"message_stop" not in sent.body

    async def test_Y07_a_stop_with_a_call_is_a_call(self, gateway: Gateway) -> None:
        chunks = [c_start(), c_call(0, "call_1", "f"), c_arguments(0, "{}"), c_finish("stop")]
        sent = await streamed(gateway, A, C, *chunks)
        assert sent.told.finish == "tool_use" and sent.told.kinds == ["tool"]
        sent = await streamed(gateway, R, C, *chunks)
        assert sent.told.finish == "completed"
        assert sent.told.blocks == [("tool", "call_1", "f", "{}", "")]

    @pytest.mark.parametrize("client", [A, R])
    @pytest.mark.parametrize("oddity", ["repeated", "no index", "no index, no id"])
    async def test_Y08_repeats_and_missing_indexes_are_one_call_each(
        self, gateway: Gateway, client: Dialect, oddity: str
    ) -> None:
        sent = await streamed(gateway, client, C, c_start(), *_odd_calls(oddity), c_finish("tool_calls"))
        assert [call[1:4] for call in sent.told.tools] == [
            ("call_1", "f", '{"a":1}'),
            ("call_2", "g", '{"b":2}'),
        ]


def _odd_calls(oddity: str) -> list[bytes]:
    chunks = []
    for index, (call_id, name, parts) in enumerate(
        [("call_1", "f", ['{"a"', ":1}"]), ("call_2", "g", ['{"b"', ":2}"])]
    ):
        for number, part in enumerate(["", *parts]):
            function = {"name": name, "arguments": part}
            call = {"index": index, "id": call_id, "type": "function", "function": function}
            if oddity != "repeated":
                del call["index"]
            if oddity.endswith("no id") and number:
                call = {"function": {"arguments": part}}
            chunks.append(c_chunk({"tool_calls": [call]}))
    return chunks


class TestAnthropicProvider:
    async def test_Y09_to_r_thinking_text_and_two_calls(self, gateway: Gateway) -> None:
        sent = await streamed(
            gateway, R, A, a_start(), THINKING, a_text(1, "I ", "look"), TWO_CALLS, a_end("tool_use")
        )
        assert sent.told.kinds == ["thinking", "text", "tool", "tool"]
        _, thought, seal = sent.told.blocks[0]
        assert thought == "Let me see."
        unsealed = envelope.unseal(seal)
        assert unsealed is not None
        assert json.loads(unsealed.original) == {
            "type": "thinking",
            "thinking": "Let me see.",
            "signature": "EqQB-signature",
        }
        assert sent.told.blocks[1] == ("text", "I look")
        assert sent.told.tools == [
            ("tool", "toolu_1", "f", '{"a":1}', ""),
            ("tool", "toolu_2", "g", '{"b":[2]}', ""),
        ]
        items = sent.told.whole["output"]
        assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call"]
        final = read_with_sdk(R, sent.body)
        assert final.output_text == "I look" and final.output[2].arguments == '{"a":1}'
        usage = sent.told.usage
        assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (15, 9, 24)
        assert usage["input_tokens_details"]["cached_tokens"] == 3

    async def test_Y10_to_c_calls_are_counted_not_blocks(self, gateway: Gateway) -> None:
        blocks = [THINKING, a_text(1, "I look"), TWO_CALLS]
        sent = await streamed(gateway, C, A, a_start(), *blocks, a_end("tool_use"))
        assert sent.told.tools == [
            ("tool", "toolu_1", "f", '{"a":1}'),
            ("tool", "toolu_2", "g", '{"b":[2]}'),
        ]
        fragments = [
            call
            for chunk in sent.told.events
            for choice in chunk["choices"]
            for call in choice["delta"].get("tool_calls", ())
        ]
        assert sorted({call["index"] for call in fragments}) == [0, 1]
        assert [call["id"] for call in fragments if "id" in call] == ["toolu_1", "toolu_2"]
        final = read_with_sdk(C, sent.body)
        called = [call.function.arguments for call in final.choices[0].message.tool_calls]
        assert called == ['{"a":1}', '{"b":[2]}']
        assert sent.told.finish == "tool_calls"

    @pytest.mark.parametrize("parts", [("",), ()], ids=["an empty delta", "no delta"])
    async def test_Y11_a_call_without_arguments_has_an_empty_object(
        self, gateway: Gateway, parts: tuple[str, ...]
    ) -> None:
        chunks = [a_start(), a_call(0, "toolu_1", "f", *parts), a_end("tool_use")]
        sent = await streamed(gateway, C, A, *chunks)
        assert sent.told.tools == [("tool", "toolu_1", "f", "{}")]
        sent = await streamed(gateway, R, A, *chunks)
        assert sent.told.tools == [("tool", "toolu_1", "f", "{}", "")]
        done = [e for e in sent.told.events if e["type"] == "response.function_call_arguments.done"]
        assert [event["arguments"] for event in done] == ["{}"]

    async def test_Y12_a_full_answer_is_incomplete(self, gateway: Gateway) -> None:
        chunks = [a_start(), a_text(0, "half of"), a_end("max_tokens")]
        sent = await streamed(gateway, C, A, *chunks)
        assert sent.told.finish == "length" and sent.told.is_complete
        sent = await streamed(gateway, R, A, *chunks)
        assert sent.told.events[-1]["type"] == "response.incomplete"
        assert sent.told.finish == "max_output_tokens" and sent.told.text == "half of"
        assert sent.told.usage["output_tokens"] == 9

    async def test_Y13_a_refusal_is_filtered_content(self, gateway: Gateway) -> None:
        details = {"type": "refusal", "category": "cyber", "explanation": "no"}
        chunks = [a_start(), a_text(0, "I can"), a_end("refusal", stop_details=details)]
        sent = await streamed(gateway, C, A, *chunks)
        assert sent.told.finish == "content_filter" and sent.told.is_complete
        sent = await streamed(gateway, R, A, *chunks)
        assert sent.told.events[-1]["type"] == "response.incomplete"
        assert sent.told.finish == "content_filter"

    @pytest.mark.parametrize("client", [C, R])
    async def test_Y14_what_is_unknown_is_passed_over(self, gateway: Gateway, client: Dialect) -> None:
        unknown = {"type": "hologram", "data": "x"}
        citation = {"type": "char_location", "cited_text": "x", "document_index": 0}
        sent = await streamed(
            gateway,
            client,
            A,
            named("ping"),
            a_start(),
            a_open(0, {"type": "text", "text": ""}),
            a_delta(0, "text_delta", text="in"),
            a_delta(0, "hologram_delta", hologram="x"),
            a_delta(0, "citations_delta", citation=citation),
            named("ping"),
            a_delta(0, "text_delta", text="tact"),
            a_close(0),
            a_open(1, unknown),
            a_delta(1, "hologram_delta", hologram="y"),
            a_close(1),
            named("future_event", x=1),
            a_end(),
        )
        assert sent.told.text == "intact" and sent.told.is_complete
        assert sent.told.kinds == ["text"]
        assert b"hologram" not in sent.body
        metrics = await gateway.http.get("/metrics")
        counted = f'lurus_lost_events_total{{provider="{sent.provider.provider_id}"}}'
        # The unknown delta, the unknown block and the unknown event, and what belongs to them.
        assert float(metrics.text.partition(f"\n{counted} ")[2].split("\n")[0]) >= 3
