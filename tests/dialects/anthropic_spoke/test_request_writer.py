"""What an Anthropic provider is sent for clients of other dialects (wire-contract C.1, C.3, E.4)."""

import base64
import json
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from lurus.routing.v1.chat_pb2 import ChatThinking, StreamChatRequest
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import PreviousResponseNotFound, Untranslatable
from lurus_dialects.anthropic.request_writer import write_request
from lurus_dialects.translation import Losses, ToolName
from tests.dialects.anthropic_spoke.hub import target, write

C, R = usage_pb2.DIALECT_OPENAI_CHAT, usage_pb2.DIALECT_OPENAI_RESPONSES
A = usage_pb2.DIALECT_ANTHROPIC
ROLES = {"s": "SYSTEM", "d": "DEVELOPER", "u": "USER", "a": "ASSISTANT", "t": "TOOL"}


def message(role: str, *blocks: Any, path: str = "", **more: Any) -> dict[str, Any]:
    listed = [{"text": block} if isinstance(block, str) else block for block in blocks]
    return {"role": f"CHAT_ROLE_{ROLES[role]}", "blocks": listed, "source_path": path, **more}


def call(call_id: str, arguments: bytes = b"{}", name: str = "f", **more: Any) -> dict[str, Any]:
    return {"tool_call": {"tool_call_id": call_id, "name": name, "arguments": raw(arguments), **more}}


def result(call_id: str, *blocks: Any, **more: Any) -> dict[str, Any]:
    listed = [{"text": block} if isinstance(block, str) else block for block in blocks]
    return {"tool_result": {"tool_call_id": call_id, "blocks": listed, **more}}


def raw(data: bytes) -> str:
    return base64.b64encode(data).decode()


def vendor(name: str, value: Any, dialect: Any = C) -> dict[str, Any]:
    return {"dialect": dialect, "name": name, "json": raw(json.dumps(value).encode())}


def image(**media: Any) -> dict[str, Any]:
    return {"media": {"kind": "CHAT_MEDIA_KIND_IMAGE", **media}}


def document(**media: Any) -> dict[str, Any]:
    return {"media": {"kind": "CHAT_MEDIA_KIND_DOCUMENT", **media}}


def request(*messages: Any, source: Any = C, **fields: Any) -> StreamChatRequest:
    said = list(messages) or [message("u", "hi")]
    return ParseDict(
        {"model": "m", "messages": said, "source_dialect": source, **fields}, StreamChatRequest()
    )


def sent(*messages: Any, **fields: Any) -> dict[str, Any]:
    return write(request(*messages, **fields), target(no_auto_cache=True))


def lossy(hub: StreamChatRequest, **quirks: Any) -> tuple[dict[str, Any], list[str]]:
    losses = Losses()
    return write(hub, target(no_auto_cache=True, **quirks), losses), losses.warned


def refused(hub: StreamChatRequest) -> str:
    with pytest.raises(Untranslatable) as caught:
        write(hub)
    path = caught.value.metadata["param"]
    assert caught.value.message.startswith(str(path))
    return str(path)


def texts(message: dict[str, Any]) -> list[str]:
    return [block.get("text", block["type"]) for block in message["content"]]


class TestConversation:
    def test_T1_leading_rules_are_the_system_prompt(self) -> None:
        body = sent(message("s", "a", ""), message("d", "b"), message("u", "hi"))
        assert [block["text"] for block in body["system"]] == ["a", "b"]
        assert [turn["role"] for turn in body["messages"]] == ["user"]

    def test_Q01_later_rules_stay_where_the_model_knows_them(self) -> None:
        hub = request(message("u", "hi"), message("s", "rule"), message("u", "go"))
        body, warned = lossy(hub, has_mid_system=True)
        assert [turn["role"] for turn in body["messages"]] == ["user", "system", "user"]
        assert warned == []

    def test_Q01_later_rules_go_into_the_user_s_turn_elsewhere(self) -> None:
        hub = request(message("u", "hi"), message("s", "rule", path="messages[1]"), message("u", "go"))
        body, warned = lossy(hub)
        assert texts(body["messages"][0]) == ["hi", "<system>rule</system>", "go"]
        assert warned == ["messages[1]"]

    @pytest.mark.parametrize("has_mid_system", [True, False])
    def test_rules_between_a_call_and_its_result_do_not_part_them(self, has_mid_system: bool) -> None:
        hub = request(
            message("u", "hi"), message("a", call("1")), message("s", "rule"), message("t", result("1", "r"))
        )
        body, _ = lossy(hub, has_mid_system=has_mid_system)
        assert body["messages"][2]["content"][0]["type"] == "tool_result"

    def test_Q08_results_come_first_in_one_turn(self) -> None:
        body = sent(
            message("u", "hi"),
            message("a", "x", call("1"), call("2"), call("3")),
            *[message("t", result(number, number)) for number in "123"],
            message("u", "go"),
        )
        assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
        assert [block.get("tool_use_id") for block in body["messages"][2]["content"]] == ["1", "2", "3", None]
        assert body["messages"][2]["content"][0]["content"] == "1"

    def test_T7_adjacent_items_of_the_model_are_one_turn(self) -> None:
        body = sent(message("u", "hi"), message("a", "x"), message("a", call("1")), message("t", result("1")))
        assert texts(body["messages"][1]) == ["x", "tool_use"]

    @pytest.mark.parametrize(
        ("path", "named"), [("messages[2]", "messages[2].tool_call_id"), ("input[2]", "input[2].call_id")]
    )
    def test_Q09_a_result_needs_its_call(self, path: str, named: str) -> None:
        hub = request(message("u", "a"), message("a", "b"), message("t", result("x", "r"), path=path))
        assert refused(hub) == named

    def test_Q09_a_second_result_is_one_too_many(self) -> None:
        hub = request(
            message("u", "a"), message("a", call("1")), *[message("t", result("1"), path="messages[2]")] * 2
        )
        assert refused(hub) == "messages[2].tool_call_id"

    def test_T9_a_call_without_a_result_gets_one(self) -> None:
        hub = request(
            message("u", "a"),
            message("a", call("1")),
            message("u", "go"),
            message("a", "b"),
            message("u", "c"),
        )
        body, warned = lossy(hub)
        assert body["messages"][2]["content"][0] == {
            "type": "tool_result",
            "tool_use_id": "1",
            "content": "[no tool output recorded]",
            "is_error": True,
        }
        assert warned == ["messages[1].blocks[0]"]

    def test_T2_what_shows_nothing_is_dropped(self) -> None:
        body = sent(message("u", "a"), message("a", "", " \n"), message("u", "b"))
        assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}]

    def test_a_conversation_of_rules_only_is_refused(self) -> None:
        assert refused(request(message("s", "a"))) == "messages"

    def test_T2_a_refusal_is_text(self) -> None:
        body = sent(message("u", "a"), message("a", {"refusal": "no"}), message("u", "b"))
        assert texts(body["messages"][1]) == ["no"]

    def test_T26_a_prefill_is_a_loss(self) -> None:
        body, warned = lossy(request(message("u", "a"), message("a", "b", path="messages[1]")))
        assert body["messages"][-1]["role"] == "assistant"
        assert warned == ["messages[1]"]

    def test_Q29_an_unknown_block_is_refused_by_its_path(self) -> None:
        block = {"vendor_block": vendor("new", {}), "source_path": "messages[3].content[1]"}
        assert refused(request(message("u", block))) == "messages[3].content[1]"

    def test_T24_compaction_is_named(self) -> None:
        block = {"vendor_block": vendor("compaction_trigger", {}, R), "source_path": "input[1]"}
        with pytest.raises(Untranslatable, match="compaction_trigger"):
            write(request(message("u", block)))

    def test_a_message_of_the_client_cannot_reach_beyond_its_place(self) -> None:
        block = {"vendor_block": {"dialect": A, "name": "x", "json": raw(b'{}], "model":"dear"')}}
        assert refused(request(message("u", block), source=0)) == "messages[0].blocks[0]"

    @pytest.mark.parametrize("name", ["model", "messages", "stream", "max_tokens", "system", "tools"])
    def test_a_vendor_field_cannot_speak_for_the_hub(self, name: str) -> None:
        body = write(request(source=0, vendor_fields=[vendor(name, "x", A)]))
        assert body.get(name) != "x"


class TestToolCalls:
    @pytest.mark.parametrize(
        ("given", "expected", "named"),
        [
            (b"", "{}", []),
            (b'{"a":', '{"raw_arguments":"{\\"a\\":"}', ["messages[1].blocks[0].arguments"]),
            (b"[1]", '{"raw_arguments":"[1]"}', ["messages[1].blocks[0].arguments"]),
            (b'{"n":12345678901234567890,"f":1.10}', '{"n":12345678901234567890,"f":1.10}', []),
        ],
    )
    def test_Q07_arguments(self, given: bytes, expected: str, named: list[str]) -> None:
        losses = Losses()
        hub = request(message("u", "a"), message("a", call("1", given)), message("t", result("1")))
        written = write_request(hub, target(), losses, is_streaming=True)
        assert f'"input":{expected}' in written.body.decode()
        assert losses.warned == named

    def test_T8_odd_ids_are_the_same_in_call_and_result(self) -> None:
        body = sent(
            message("u", "a"), message("a", call("call_abc|fc_123")), message("t", result("call_abc|fc_123"))
        )
        used, answered = body["messages"][1]["content"][0], body["messages"][2]["content"][0]
        assert used["id"] == answered["tool_use_id"] and used["id"].startswith("call_")

    def test_T11_a_custom_call_is_wrapped(self) -> None:
        kind = {"kind": "CHAT_TOOL_KIND_CUSTOM"}
        body = sent(
            message("u", "a"), message("a", call("1", b'a"b', **kind)), message("t", result("1", **kind))
        )
        assert body["messages"][1]["content"][0]["input"] == {"input": 'a"b'}

    def test_Q12_a_result_with_an_image(self) -> None:
        parts = ["t", image(media_type="image/png", base64_data="aGk=")]
        body = sent(
            message("u", "a"), message("a", call("1")), message("t", result("1", *parts, is_error=True))
        )
        written = body["messages"][2]["content"][0]
        assert [part["type"] for part in written["content"]] == ["text", "image"]
        assert written["is_error"] is True


class TestMedia:
    @pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "image/gif", "image/webp", "image/jpg"])
    def test_Q14_images(self, kind: str) -> None:
        source = sent(message("u", image(media_type=kind, data=raw(b"hi"))))["messages"][0]["content"][0][
            "source"
        ]
        assert source == {"type": "base64", "media_type": kind.replace("jpg", "jpeg"), "data": "aGk="}

    @pytest.mark.parametrize(
        "block",
        [
            image(media_type="image/tiff", base64_data="aGk="),
            image(base64_data="aGk="),
            image(file_id="file_1"),
            image(),
            document(file_id="file_1"),
            document(media_type="application/zip", base64_data="aGk="),
            document(media_type="text/plain", base64_data="!"),
            {"media": {"kind": "CHAT_MEDIA_KIND_AUDIO", "media_type": "audio/wav", "base64_data": "aGk="}},
        ],
    )
    def test_Q14_Q16_other_media_are_refused(self, block: dict[str, Any]) -> None:
        path = "messages[0].content[0]"
        assert refused(request(message("u", {**block, "source_path": path}))) == path

    def test_Q15_documents(self) -> None:
        blocks = [
            document(media_type="application/pdf", base64_data="JVBERi0x", title="a.pdf"),
            document(base64_data="JVBERi0x"),
            document(media_type="text/csv", base64_data="aGk="),
            document(url="https://e.org/a.pdf"),
        ]
        written = sent(message("u", *blocks))["messages"][0]["content"]
        assert written[0]["title"] == "a.pdf"
        kinds = [(block["source"]["type"], block["source"].get("media_type")) for block in written]
        pdf = ("base64", "application/pdf")
        assert kinds == [pdf, pdf, ("text", "text/plain"), ("url", None)]
        assert written[2]["source"]["data"] == "hi"

    def test_T3_T4_detail(self) -> None:
        hub = request(
            message(
                "u", image(url="https://e.org", detail="low"), document(url="https://e.org", detail="low")
            )
        )
        assert lossy(hub)[1] == ["messages[0].blocks[1].detail"]


class TestThinking:
    def history(self, **thinking: Any) -> StreamChatRequest:
        hub = request(message("u", "a"), message("a", "x", "y"), message("u", "b"))
        hub.messages[1].blocks[0].thinking.CopyFrom(ChatThinking(**thinking))
        return hub

    @pytest.mark.parametrize(
        ("thinking", "is_sent"),
        [
            ({"dialect": A}, True),
            ({"dialect": A, "provider_id": "p", "upstream_model": "claude-up"}, True),
            ({"dialect": A, "provider_id": "q", "upstream_model": "claude-up"}, False),
            ({"dialect": A, "provider_id": "p", "upstream_model": "other"}, False),
            ({"dialect": R}, False),
        ],
    )
    def test_Y16_only_its_maker_gets_thinking_back(self, thinking: dict[str, Any], is_sent: bool) -> None:
        hub = self.history(original=b'{"type":"thinking","thinking":"hm","signature":"Eq"}', **thinking)
        blocks = write(hub, target(provider_id="p"))["messages"][1]["content"]
        assert [block["type"] for block in blocks] == ["thinking"] * is_sent + ["text"]

    @pytest.mark.parametrize("effort", ["low", "medium", "high", "xhigh", "max"])
    def test_Q21_efforts_have_the_same_names(self, effort: str) -> None:
        body = sent(reasoning={"effort": effort})
        assert body["thinking"] == {"type": "adaptive"}
        assert body["output_config"] == {"effort": effort}

    def test_Q21_minimal_is_low(self) -> None:
        assert sent(source=R, reasoning={"effort": "minimal"})["output_config"]["effort"] == "low"

    def test_T14_none_is_disabled(self) -> None:
        body = sent(reasoning={"mode": "CHAT_REASONING_MODE_DISABLED"})
        assert body["thinking"] == {"type": "disabled"} and "output_config" not in body

    def test_T14_efforts_are_lowered_to_what_the_model_knows(self) -> None:
        hub = request(reasoning={"effort": "max"})
        assert write(hub, target(efforts=["low", "high"]))["output_config"]["effort"] == "high"
        assert (
            write(request(reasoning={"effort": "low"}), target(efforts=["high"]))["output_config"]["effort"]
            == "high"
        )

    @pytest.mark.parametrize(
        ("effort", "max_tokens", "budget"),
        [("low", 0, 2048), ("max", 0, 31999), ("", 0, 16384), ("high", 2000, 1999)],
    )
    def test_T14_models_without_adaptive_thinking_get_a_budget(
        self, effort: str, max_tokens: int, budget: int
    ) -> None:
        reasoning = {"effort": effort, "mode": "CHAT_REASONING_MODE_ADAPTIVE"}
        hub = request(reasoning=reasoning, max_output_tokens=max_tokens)
        body, warned = lossy(hub, no_adaptive_thinking=True)
        assert body["thinking"] == {"type": "enabled", "budget_tokens": budget}
        assert "output_config" not in body and warned == []

    def test_T14_a_short_answer_leaves_no_room_for_thinking(self) -> None:
        hub = request(reasoning={"effort": "high"}, max_output_tokens=1000)
        body, warned = lossy(hub, no_adaptive_thinking=True)
        assert "thinking" not in body and warned == ["reasoning_effort"]

    @pytest.mark.parametrize(
        ("summary", "display"), [("auto", "summarized"), ("detailed", "summarized"), ("omitted", "omitted")]
    )
    def test_T14_summaries(self, summary: str, display: str) -> None:
        assert sent(reasoning={"effort": "low", "summary": summary})["thinking"]["display"] == display

    @pytest.mark.parametrize("mode", ["ANY", "TOOL"])
    def test_T13_a_forced_call_goes_without_a_budget(self, mode: str) -> None:
        choice = {"mode": f"CHAT_TOOL_CHOICE_MODE_{mode}", "name": "f"}
        hub = request(source=R, tools=[{"name": "f"}], tool_choice=choice, reasoning={"effort": "high"})
        body, warned = lossy(hub, no_adaptive_thinking=True)
        assert "thinking" not in body and warned == ["reasoning.effort"]
        assert "thinking" in lossy(hub)[0]

    @pytest.mark.parametrize("has_thinking", [True, False])
    def test_C3_a_tool_loop_begins_with_thinking_or_has_none(self, has_thinking: bool) -> None:
        hub = request(
            message("u", "a"),
            message("a", "x", call("1")),
            message("t", result("1")),
            reasoning={"effort": "low"},
        )
        if has_thinking:
            hub.messages[1].blocks[0].thinking.CopyFrom(ChatThinking(original=b"{}", dialect=A))
        body, warned = lossy(hub, no_adaptive_thinking=True)
        assert ("thinking" in body, warned == []) == (has_thinking, has_thinking)


class TestTools:
    def test_T10_functions(self) -> None:
        tools = [
            {
                "name": "a",
                "description": "d",
                "schema": raw(b'{"type":"object","x":1.10}'),
                "is_strict": True,
            },
            {"name": "b"},
            {"name": "c", "schema": raw(b'{"properties":{}}')},
        ]
        body = sent(tools=tools)
        assert body["tools"][0] == {
            "name": "a",
            "description": "d",
            "input_schema": {"type": "object", "x": 1.1},
            "strict": True,
        }
        assert body["tools"][1]["input_schema"] == {"type": "object", "properties": {}}
        assert body["tools"][2]["input_schema"] == {"type": "object", "properties": {}}

    def test_Q10_custom_namespaced_and_hosted_tools(self) -> None:
        grammar = raw(b'{"type":"grammar","syntax":"lark","definition":"start: x"}')
        hub = request(
            source=R,
            tools=[
                {
                    "name": "apply_patch",
                    "kind": "CHAT_TOOL_KIND_CUSTOM",
                    "format": grammar,
                    "description": "Edits",
                    "source_path": "tools[0]",
                },
                {"name": "search", "namespace": "mcp__gh"},
                {
                    "name": "web_search",
                    "kind": "CHAT_TOOL_KIND_HOSTED",
                    "hosted": vendor("web_search", {}, R),
                    "source_path": "tools[2]",
                },
            ],
        )
        losses = Losses()
        written = write_request(hub, target(), losses, is_streaming=True)
        patch, search = json.loads(written.body)["tools"]
        assert patch["input_schema"]["required"] == ["input"]
        assert patch["input_schema"]["properties"]["input"]["description"] == "Edits\n\nstart: x"
        assert search["name"] == "mcp__gh__search"
        assert written.tool_names == {
            "apply_patch": ToolName("apply_patch", is_wrapped=True),
            "mcp__gh__search": ToolName("search", "mcp__gh"),
        }
        assert losses.warned == ["tools[0].format", "tools[2]"]
        assert json.loads(written.body)["cache_control"] == {"type": "ephemeral"}

    def test_T12_nothing_left_of_the_tools_is_refused(self) -> None:
        hosted = {"name": "w", "kind": "CHAT_TOOL_KIND_HOSTED", "hosted": vendor("web_search", {}, R)}
        assert refused(request(tools=[hosted])) == "tools"

    def test_T12_a_forced_hosted_tool_is_refused(self) -> None:
        hosted = {"name": "w", "kind": "CHAT_TOOL_KIND_HOSTED", "hosted": vendor("web_search", {}, R)}
        choice = {"mode": "CHAT_TOOL_CHOICE_MODE_TOOL", "name": "web_search", "kind": "CHAT_TOOL_KIND_HOSTED"}
        assert refused(request(tools=[{"name": "f"}, hosted], tool_choice=choice)) == "tool_choice"

    def test_T8_names_beyond_the_limit_are_hashed_and_mapped_back(self) -> None:
        name = "n" * 129
        losses = Losses()
        choice = {"mode": "CHAT_TOOL_CHOICE_MODE_TOOL", "name": name}
        hub = request(
            message("u", "a"),
            message("a", call("1", name=name)),
            message("t", result("1")),
            tools=[{"name": name}],
            tool_choice=choice,
        )
        written = write_request(hub, target(), losses, is_streaming=False)
        body = json.loads(written.body)
        short = body["tools"][0]["name"]
        assert len(short) == 64 and written.tool_names == {short: ToolName(name)}
        assert body["messages"][1]["content"][0]["name"] == body["tool_choice"]["name"] == short

    def test_T8_two_tools_of_one_name_are_refused(self) -> None:
        tools = [{"name": "a__b"}, {"name": "b", "namespace": "a"}]
        assert refused(request(tools=tools)) == "tools[1].name"

    @pytest.mark.parametrize(("mode", "word"), [("AUTO", "auto"), ("ANY", "any"), ("NONE", "none")])
    def test_Q17_choices(self, mode: str, word: str) -> None:
        body = sent(tools=[{"name": "f"}], tool_choice={"mode": f"CHAT_TOOL_CHOICE_MODE_{mode}"})
        assert body["tool_choice"] == {"type": word}

    def test_Q17_one_call_at_a_time(self) -> None:
        body = sent(tools=[{"name": "f"}], has_parallel_tool_calls=False)
        assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
        assert "tool_choice" not in sent(tools=[{"name": "f"}], has_parallel_tool_calls=True)
        assert "tool_choice" not in sent(has_parallel_tool_calls=False)

    def test_Q17_allowed_tools_are_filtered(self) -> None:
        choice = {"mode": "CHAT_TOOL_CHOICE_MODE_ANY", "allowed_names": ["b", "n__c"]}
        tools = [{"name": "a"}, {"name": "b"}, {"name": "c", "namespace": "n"}]
        body = sent(tools=tools, tool_choice=choice)
        assert [tool["name"] for tool in body["tools"]] == ["b", "n__c"]
        assert body["tool_choice"] == {"type": "any"}


class TestFields:
    def test_T15_max_tokens_are_always_stated(self) -> None:
        assert sent()["max_tokens"] == 32_000
        assert write(request(), target(max_output_tokens=64_000))["max_tokens"] == 64_000
        assert sent(max_output_tokens=7)["max_tokens"] == 7

    @pytest.mark.parametrize(("source", "name"), [(C, "max_completion_tokens"), (R, "max_output_tokens")])
    def test_T15_more_than_the_model_writes_is_clamped(self, source: Any, name: str) -> None:
        losses = Losses()
        body = write(request(source=source, max_output_tokens=9), target(max_output_tokens=8), losses)
        assert (body["max_tokens"], losses.warned) == (8, [name])

    def test_Q18_sampling(self) -> None:
        hub = request(temperature=1.7, top_p=0.9, vendor_fields=[vendor("seed", 1), vendor("n", 1)])
        body, warned = lossy(hub)
        assert (body["temperature"], body["top_p"]) == (1, 0.9)
        assert warned == ["temperature", "seed"]

    @pytest.mark.parametrize(
        "quirks", [{"anthropic_version": "2026-10-21"}, {"dropped_params": ["temperature", "top_p", "top_k"]}]
    )
    def test_T16_sampling_is_dropped_where_it_is_refused(self, quirks: dict[str, Any]) -> None:
        body, warned = lossy(request(temperature=1, top_p=1, top_k=4), **quirks)
        assert not body.keys() & {"temperature", "top_p", "top_k"}
        assert warned == ["temperature", "top_p", "top_k"]

    def test_T16_a_model_that_thinks_takes_no_temperature(self) -> None:
        body, warned = lossy(request(temperature=0.5, reasoning={"effort": "low"}))
        assert "temperature" not in body and warned == ["temperature"]

    def test_T17_stop_sequences(self) -> None:
        assert sent(stop_sequences=list("abcde"))["stop_sequences"] == list("abcde")

    def test_Q22_a_schema(self) -> None:
        shape = {
            "kind": "CHAT_OUTPUT_KIND_JSON_SCHEMA",
            "name": "n",
            "schema": raw(b'{"a":1.10}'),
            "is_strict": True,
        }
        body, warned = lossy(request(output_format=shape))
        assert body["output_config"]["format"] == {"type": "json_schema", "schema": {"a": 1.1}}
        assert warned == []

    @pytest.mark.parametrize(("source", "name"), [(C, "response_format"), (R, "text.format")])
    def test_T18_any_object_is_a_loss(self, source: Any, name: str) -> None:
        hub = request(source=source, output_format={"kind": "CHAT_OUTPUT_KIND_JSON_OBJECT"})
        assert lossy(hub)[1] == [name]

    def test_T20_T21_identity_and_tiers(self) -> None:
        hub = request(
            end_user_id="u", metadata={"a": "b"}, prompt_cache_key="k", is_stored=True, service_tier="auto"
        )
        body, warned = lossy(hub)
        assert (body["metadata"], body["service_tier"], warned) == ({"user_id": "u"}, "auto", [])
        assert lossy(request(service_tier="flex"))[1] == ["service_tier"]

    def test_T22_caching(self) -> None:
        marked = message("u", {"text": "a", "cache_hint": {"ttl": "12h"}})
        body = write(request(marked))
        assert body["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
        assert "cache_control" not in body
        assert write(request())["cache_control"] == {"type": "ephemeral"}
        assert "cache_control" not in write(request(source=A))
        assert "cache_control" not in write(request(), target(no_auto_cache=True))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("n", 2),
            ("logprobs", True),
            ("functions", [{}]),
            ("modalities", ["text", "audio"]),
            ("conversation", "c"),
            ("background", True),
            ("prompt", {"id": "p"}),
        ],
    )
    def test_T19_T23_what_changes_the_answer_is_refused(self, name: str, value: Any) -> None:
        assert refused(request(vendor_fields=[vendor(name, value)])) == name

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("n", 1),
            ("logprobs", False),
            ("background", False),
            ("modalities", ["text"]),
            ("truncation", "disabled"),
        ],
    )
    def test_T19_T23_what_asks_for_nothing_is_no_loss(self, name: str, value: Any) -> None:
        assert lossy(request(vendor_fields=[vendor(name, value)]))[1] == []

    def test_Q24_an_earlier_answer_is_not_found(self) -> None:
        with pytest.raises(PreviousResponseNotFound):
            write(request(previous_response_id="resp_1"))

    def test_unknown_fields_are_losses(self) -> None:
        hub = request(
            vendor_fields=[vendor("new", 1), vendor("client_metadata", {}), vendor("logit_bias", {"1": 2})]
        )
        assert lossy(hub)[1] == ["new", "logit_bias"]

    def test_Q27_a_strict_client_loses_nothing(self) -> None:
        with pytest.raises(Untranslatable):
            write(request(vendor_fields=[vendor("seed", 1)]), losses=Losses(is_strict=True))
