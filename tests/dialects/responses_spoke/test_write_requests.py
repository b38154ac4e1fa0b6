"""Requests of other dialects, as a Responses provider gets them (wire-contract C.1, E.4)."""

import hashlib
import json
from typing import Any

import pytest

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatBlock,
    ChatCacheHint,
    ChatMedia,
    ChatMessage,
    ChatOutputFormat,
    ChatReasoning,
    ChatThinking,
    ChatTool,
    ChatToolCall,
    ChatToolChoice,
    ChatToolResult,
    ChatVendorField,
    StreamChatRequest,
)
from lurus_common.errors import Untranslatable
from lurus_dialects.openai_responses.request_writer import write_request
from lurus_dialects.translation import Losses, ToolName
from tests.dialects.responses_spoke import spoke

A, C, R = 1, 2, 3
SYSTEM, USER, ASSISTANT, TOOL = (
    chat_pb2.CHAT_ROLE_SYSTEM,
    chat_pb2.CHAT_ROLE_USER,
    chat_pb2.CHAT_ROLE_ASSISTANT,
    chat_pb2.CHAT_ROLE_TOOL,
)
FUNCTION, CUSTOM, HOSTED = (
    chat_pb2.CHAT_TOOL_KIND_FUNCTION,
    chat_pb2.CHAT_TOOL_KIND_CUSTOM,
    chat_pb2.CHAT_TOOL_KIND_HOSTED,
)


def said(role: int, path: str, *blocks: ChatBlock, **more: Any) -> ChatMessage:
    for i, block in enumerate(blocks):
        block.source_path = block.source_path or (
            f"{path}[{i}]" if path == "system" else f"{path}.content[{i}]"
        )
    return ChatMessage(role=role, blocks=blocks, source_path=path, **more)  # type: ignore[arg-type]


def t(text: str, **more: Any) -> ChatBlock:
    return ChatBlock(text=text, **more)


def call(
    name: str = "f", call_id: str = "call_1", arguments: bytes = b"{}", kind: int = FUNCTION
) -> ChatBlock:
    tool_call = ChatToolCall(tool_call_id=call_id, name=name, arguments=arguments, kind=kind)  # type: ignore[arg-type]
    return ChatBlock(tool_call=tool_call)


def result(*blocks: ChatBlock, call_id: str = "call_1", is_error: bool = False) -> ChatBlock:
    return ChatBlock(tool_result=ChatToolResult(tool_call_id=call_id, blocks=blocks, is_error=is_error))


def png() -> ChatBlock:
    return ChatBlock(
        media=ChatMedia(kind=chat_pb2.CHAT_MEDIA_KIND_IMAGE, media_type="image/png", base64_data="AAAA")
    )


def field(dialect: int, name: str, value: Any) -> ChatVendorField:
    return ChatVendorField(dialect=dialect, name=name, json=json.dumps(value).encode())  # type: ignore[arg-type]


def from_a(*messages: ChatMessage, **more: Any) -> StreamChatRequest:
    """Returns a request of an Anthropic client."""
    first = said(SYSTEM, "system", t("t1"), t("t2", cache_hint=ChatCacheHint()))
    rest = messages or (said(USER, "messages[0]", t("hi")),)
    return StreamChatRequest(model="m", messages=[first, *rest], source_dialect=A, **more)  # type: ignore[arg-type]


def from_c(*messages: ChatMessage, **more: Any) -> StreamChatRequest:
    """Returns a request of a chat client."""
    rest = messages or (said(USER, "messages[0]", t("hi")),)
    return StreamChatRequest(model="m", messages=rest, source_dialect=C, **more)  # type: ignore[arg-type]


def refused(request: StreamChatRequest) -> str:
    with pytest.raises(Untranslatable) as caught:
        spoke.write(request)
    assert str(caught.value).startswith(caught.value.metadata["param"])
    return caught.value.metadata["param"]


def lost(request: StreamChatRequest) -> tuple[dict[str, Any], list[str]]:
    losses = Losses()
    body = spoke.write(request, losses)
    return body, losses.warned


class TestConversation:
    def test_Q02_a_system_becomes_instructions_and_a_later_one_a_developer_item(self) -> None:
        request = from_a(
            said(USER, "messages[0]", t("u")),
            said(SYSTEM, "messages[1]", t("mid")),
            tools=[ChatTool(name="f")],
        )
        body, warned = lost(request)
        assert body["instructions"] == "t1\n\nt2" and body["store"] is False and not warned
        assert [item["role"] for item in body["input"]] == ["user", "developer"]
        assert body["tools"][0]["strict"] is False and "cache_control" not in json.dumps(body)
        assert body["tools"][0]["parameters"] == {"type": "object", "properties": {}}

    def test_Q28_the_attribution_block_is_dropped(self) -> None:
        request = from_a()
        request.messages[0].blocks[0].text = "x-anthropic-billing-header: cc"
        assert spoke.write(request)["instructions"] == "t2"

    def test_T1_chat_rules_stay_in_place(self) -> None:
        developer = said(chat_pb2.CHAT_ROLE_DEVELOPER, "messages[1]", t("d"))
        body = spoke.write(from_c(said(SYSTEM, "messages[0]", t("s")), developer))
        assert [item["role"] for item in body["input"]] == ["system", "developer"]
        assert "instructions" not in body

    def test_Q05_a_result_with_an_image_becomes_one_list(self) -> None:
        made = said(ASSISTANT, "messages[1]", call())
        answered = said(USER, "messages[2]", result(t("see"), png()), t("go"))
        body = spoke.write(from_a(made, answered))
        assert body["input"][1] == {
            "type": "function_call_output",
            "call_id": "call_1",
            "output": [
                {"type": "input_text", "text": "see"},
                {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
            ],
        }
        assert body["input"][2]["content"] == [{"type": "input_text", "text": "go"}]

    def test_T9_a_lone_text_is_a_string_and_an_error_says_so(self) -> None:
        made = said(ASSISTANT, "messages[1]", call())
        body = spoke.write(from_a(made, said(USER, "messages[2]", result(t("no"), is_error=True))))
        assert body["input"][1]["output"] == "[tool error] no"

    def test_Q09_a_result_without_a_call_is_refused(self) -> None:
        orphan = said(TOOL, "messages[2]", result(t("x"), call_id="call_9"))
        assert refused(from_c(said(USER, "messages[1]", t("u")), orphan)) == "messages[2].tool_call_id"

    def test_T11_chat_results_of_custom_calls_get_their_kind_from_the_call(self) -> None:
        made = said(ASSISTANT, "messages[1]", call("p", arguments=b"raw", kind=CUSTOM))
        body = spoke.write(from_c(made, said(TOOL, "messages[2]", result(t("ok")))))
        assert [item["type"] for item in body["input"]] == ["custom_tool_call", "custom_tool_call_output"]
        assert body["input"][0]["input"] == "raw"

    def test_Q06_arguments_keep_their_digits(self) -> None:
        arguments = '{"n": 12345678901234567890, "s": "é\\n"}'.encode()
        made = said(ASSISTANT, "messages[1]", call(arguments=arguments))
        body = spoke.write(from_a(made, said(USER, "messages[2]", result(t("x")))))
        assert body["input"][0]["arguments"] == '{"n":12345678901234567890,"s":"é\\n"}'

    def test_Q13_long_names_and_odd_ids_are_changed_alike(self) -> None:
        name = "n" * 90
        made = said(ASSISTANT, "messages[1]", call(name, "call_abc|fc_123"))
        request = from_a(
            made,
            said(USER, "messages[2]", result(t("x"), call_id="call_abc|fc_123")),
            tools=[ChatTool(name=name)],
        )
        written = write_request(request, spoke.target(), Losses(), is_streaming=True)
        body = json.loads(written.body)
        short = body["tools"][0]["name"]
        assert len(short) <= 64 and body["input"][0]["name"] == short
        assert body["input"][0]["call_id"] == body["input"][1]["call_id"] != "call_abc|fc_123"
        assert written.tool_names == {short: ToolName(name)} and body["stream"] is True

    def test_T3_T4_T5_media(self) -> None:
        kind = chat_pb2.CHAT_MEDIA_KIND_DOCUMENT
        blocks = [
            ChatBlock(
                media=ChatMedia(kind=kind, media_type="application/pdf", base64_data="AA", title="a.pdf")
            ),
            ChatBlock(media=ChatMedia(kind=kind, url="https://x/y.pdf")),
            ChatBlock(media=ChatMedia(kind=kind, text="plain", title="T")),
            ChatBlock(
                media=ChatMedia(
                    kind=chat_pb2.CHAT_MEDIA_KIND_AUDIO, media_type="audio/mpeg", base64_data="BB"
                )
            ),
        ]
        body, warned = lost(from_a(said(USER, "messages[0]", *blocks)))
        assert body["input"][0]["content"] == [
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"},
            {"type": "input_file", "file_url": "https://x/y.pdf"},
            {"type": "input_text", "text": "T\n\nplain"},
            {"type": "input_audio", "input_audio": {"data": "BB", "format": "mp3"}},
        ]
        assert warned == ["messages[0].content[2]"]
        held = ChatBlock(media=ChatMedia(kind=kind, file_id="file_1"))
        assert refused(from_a(said(USER, "messages[0]", held))) == "messages[0].content[0]"

    def test_Q29_a_block_of_another_dialect_is_refused_by_its_path(self) -> None:
        odd = ChatBlock(vendor_block=field(A, "search_result", {}))
        assert refused(from_a(said(USER, "messages[3]", t("x"), odd))) == "messages[3].content[1]"

    def test_T6_foreign_thinking_is_dropped(self) -> None:
        thinking = ChatBlock(thinking=ChatThinking(text="hm", original=b"{}", dialect=A))  # type: ignore[arg-type]
        losses = Losses()
        made = said(ASSISTANT, "messages[0]", thinking, t("a"))
        body = spoke.write(from_a(made, said(USER, "messages[1]", t("u"))), losses)
        assert [item["type"] for item in body["input"]] == ["message", "message"]
        assert "messages[0].content[0]" in losses.silent

    def test_Y16_thinking_of_another_provider_is_dropped(self) -> None:
        item = b'{"type":"reasoning","id":"rs_1","summary":[]}'
        for provider, count in (("prov_r", 2), ("prov_other", 1)):
            thinking = ChatThinking(
                original=item,
                dialect=R,  # type: ignore[arg-type]
                provider_id=provider,
                upstream_model=spoke.MODEL,
            )
            made = said(ASSISTANT, "messages[0]", ChatBlock(thinking=thinking))
            assert len(spoke.write(from_a(made, said(USER, "messages[1]", t("u"))))["input"]) == count

    def test_T26_a_prefill_is_forwarded_and_named(self) -> None:
        _, warned = lost(from_a(said(ASSISTANT, "messages[1]", t("It is"))))
        assert warned == ["messages[1]"]

    def test_typed_callers_need_no_paths(self) -> None:
        messages = [ChatMessage(role=SYSTEM, blocks=[t("s")]), ChatMessage(role=USER, blocks=[t("u")])]
        body = spoke.write(StreamChatRequest(model="m", messages=messages, end_user_id="me"))
        assert [item["role"] for item in body["input"]] == ["system", "user"]
        assert body["store"] is False and body["safety_identifier"] == "me"


class TestTools:
    def test_T12_hosted_tools_of_others_are_left_out(self) -> None:
        hosted = ChatTool(
            name="w", kind=HOSTED, hosted=field(A, "web_search_20250305", {}), source_path="tools[1]"
        )
        body, warned = lost(from_a(tools=[ChatTool(name="f"), hosted]))
        assert len(body["tools"]) == 1 and warned == ["tools[1]"]
        assert refused(from_a(tools=[hosted])) == "tools"
        mode = chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL
        forced = ChatToolChoice(mode=mode, name="web_search_20250305", kind=HOSTED)
        assert refused(from_a(tools=[ChatTool(name="f"), hosted], tool_choice=forced)) == "tool_choice"

    def test_Q17_choices(self) -> None:
        any_tool = ChatToolChoice(mode=chat_pb2.CHAT_TOOL_CHOICE_MODE_ANY)
        body = spoke.write(
            from_a(tools=[ChatTool(name="f")], tool_choice=any_tool, has_parallel_tool_calls=False)
        )
        assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
        one = ChatToolChoice(mode=chat_pb2.CHAT_TOOL_CHOICE_MODE_TOOL, name="p")
        tools = [ChatTool(name="f"), ChatTool(name="p", kind=CUSTOM)]
        assert spoke.write(from_c(tools=tools, tool_choice=one))["tool_choice"] == {
            "type": "custom",
            "name": "p",
        }
        some = ChatToolChoice(mode=chat_pb2.CHAT_TOOL_CHOICE_MODE_ANY, allowed_names=["f", "p"])
        assert spoke.write(from_c(tools=tools, tool_choice=some))["tool_choice"] == {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "p"}],
        }


class TestFields:
    def test_Q19_stop_sequences_are_refused(self) -> None:
        assert refused(from_a(stop_sequences=["X"])) == "stop_sequences"
        assert refused(from_c(stop_sequences=["X"])) == "stop"

    @pytest.mark.parametrize(
        ("reasoning", "effort"),
        [
            (ChatReasoning(effort="max"), "max"),
            (ChatReasoning(mode=chat_pb2.CHAT_REASONING_MODE_BUDGET, budget_tokens=10000), "medium"),
            (ChatReasoning(mode=chat_pb2.CHAT_REASONING_MODE_BUDGET, budget_tokens=30000), "xhigh"),
            (ChatReasoning(mode=chat_pb2.CHAT_REASONING_MODE_DISABLED), "none"),
        ],
    )
    def test_Q21_efforts(self, reasoning: ChatReasoning, effort: str) -> None:
        assert spoke.write(from_a(reasoning=reasoning))["reasoning"]["effort"] == effort

    def test_T14_an_effort_is_clamped_to_what_the_model_knows(self) -> None:
        to = spoke.target(efforts=["low", "high"])
        assert spoke.write(from_a(reasoning=ChatReasoning(effort="max")), to=to)["reasoning"] == {
            "effort": "high"
        }
        assert spoke.write(from_a(reasoning=ChatReasoning(effort="minimal")), to=to)["reasoning"] == {
            "effort": "low"
        }

    def test_T14_thinking_of_anthropic_clients_is_sealed(self) -> None:
        reasoning = ChatReasoning(mode=chat_pb2.CHAT_REASONING_MODE_ADAPTIVE, summary="omitted")
        body = spoke.write(from_a(reasoning=reasoning))
        assert body["include"] == ["reasoning.encrypted_content"] and "reasoning" not in body

    def test_T15_T16_limits_and_sampling(self) -> None:
        losses = Losses()
        request = from_a(max_output_tokens=9000, temperature=0.5, top_p=0.9, top_k=3)
        to = spoke.target(max_output_tokens=8000, quirks={"dropped_params": ["temperature"]})
        body = spoke.write(request, losses, to)
        assert body["max_output_tokens"] == 8000 and body["top_p"] == 0.9 and "temperature" not in body
        assert losses.warned == ["max_tokens", "top_k", "temperature"]

    def test_Q22_a_schema_gets_a_name_and_is_strict(self) -> None:
        shape = ChatOutputFormat(kind=chat_pb2.CHAT_OUTPUT_KIND_JSON_SCHEMA, schema=b'{"type":"object"}')
        expected = {"type": "json_schema", "schema": {"type": "object"}, "name": "output", "strict": True}
        assert spoke.write(from_a(output_format=shape))["text"] == {"format": expected}

    def test_Q23_a_person_is_hashed_for_another_vendor(self) -> None:
        person = '{"device_id":"secret","account":"a"}'
        body = spoke.write(from_a(end_user_id=person))
        assert body["safety_identifier"] == hashlib.sha256(person.encode()).hexdigest()
        assert "secret" not in json.dumps(body)

    def test_T20_chat_identity_is_exact(self) -> None:
        fields = [field(C, "user", "me")]
        request = from_c(end_user_id="me", metadata={"a": "b"}, prompt_cache_key="k", vendor_fields=fields)
        body, warned = lost(request)
        assert (body["user"], body["metadata"], body["prompt_cache_key"]) == ("me", {"a": "b"}, "k")
        assert "safety_identifier" not in body and not warned

    @pytest.mark.parametrize(
        ("dialect", "name", "value"),
        [
            (A, "safeguards", {}),
            (A, "inference_geo", "us"),
            (A, "mcp_servers", []),
            (A, "container", "c"),
            (A, "thread", {"type": "continue"}),
            (A, "billing_policy", {}),
            (C, "n", 2),
            (C, "functions", []),
            (C, "function_call", "auto"),
            (C, "modalities", ["text", "audio"]),
        ],
    )
    def test_Q25_Q26_what_must_not_vanish_is_refused(self, dialect: int, name: str, value: Any) -> None:
        request = from_a() if dialect == A else from_c()
        request.vendor_fields.append(field(dialect, name, value))
        assert refused(request) == name

    @pytest.mark.parametrize(
        ("dialect", "name", "value", "is_warned"),
        [
            (A, "fallbacks", [], True),
            (A, "thread", {"type": "create"}, True),
            (A, "future", 1, True),
            (A, "diagnostics", {}, False),
            (A, "context_management", {}, False),
            (C, "seed", 1, True),
            (C, "logit_bias", {}, True),
            (C, "web_search_options", {}, True),
            (C, "n", 1, False),
            (C, "stream_options", {"include_usage": True}, False),
        ],
    )
    def test_Q27_losses_are_warned_and_refused_to_strict_clients(
        self, dialect: int, name: str, value: Any, is_warned: bool
    ) -> None:
        request = from_a() if dialect == A else from_c()
        request.vendor_fields.append(field(dialect, name, value))
        body, warned = lost(request)
        assert warned == [name] * is_warned and name not in body
        if is_warned:
            with pytest.raises(Untranslatable):
                spoke.write(request, Losses(is_strict=True))

    def test_T19_log_probabilities_of_chat(self) -> None:
        body = spoke.write(from_c(top_logprobs=3))
        assert (body["include"], body["top_logprobs"]) == (["message.output_text.logprobs"], 3)

    def test_T21_tiers(self) -> None:
        assert spoke.write(from_a(service_tier="auto"))["service_tier"] == "auto"
        body, warned = lost(from_a(service_tier="standard_only"))
        assert "service_tier" not in body and warned == ["service_tier"]
        assert spoke.write(from_c(service_tier="flex"))["service_tier"] == "flex"

    def test_T22_cache_hints_of_chat_are_marks(self) -> None:
        marked = said(USER, "messages[0]", t("x", cache_hint=ChatCacheHint(ttl="30m")))
        mark = {"mode": "explicit", "ttl": "30m"}
        assert spoke.write(from_c(marked))["input"][0]["content"][0]["prompt_cache_breakpoint"] == mark
        blocks = [t("x", cache_hint=ChatCacheHint(ttl="1h")) for _ in range(6)]
        to = spoke.target(quirks={"has_explicit_cache": True})
        parts = spoke.write(from_a(said(USER, "messages[0]", *blocks)), to=to)["input"][0]["content"]
        assert [part.get("prompt_cache_breakpoint") for part in parts] == [{"mode": "explicit"}] * 4 + [
            None
        ] * 2
