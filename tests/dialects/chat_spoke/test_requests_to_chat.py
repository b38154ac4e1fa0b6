"""What a chat provider is sent for clients of other dialects (wire-contract C.1, E.4)."""

import hashlib
import json
from typing import Any

import pytest

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatBlock,
    ChatMessage,
    ChatThinking,
    ChatTool,
    StreamChatRequest,
)
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import PreviousResponseNotFound, Untranslatable
from lurus_dialects import envelope, translate
from lurus_dialects.translation import Losses, Target, ToolName
from tests.conformance.requests import (
    A_IMAGE,
    C_IMAGE,
    CLAUDE_CODE_USER,
    PATCH,
    PNG,
    SCHEMA,
    a_request,
    a_result,
    a_tool,
    a_use,
    assistant,
    codex_request,
    r_request,
    r_result,
    r_use,
    request_of,
    text,
    user,
)
from tests.dialects.chat_spoke.spoke import A, C, R, Sent, refused

SYSTEM = [text("t1"), {**text("t2"), "cache_control": {"type": "ephemeral"}}]
MID = a_request(
    user("one"), {"role": "system", "content": "mid"}, assistant("two"), user("three"), system=SYSTEM
)


def roles(sent: Sent) -> list[str]:
    return [message["role"] for message in sent.messages]


class TestRules:
    @pytest.mark.parametrize("has_developer_role", [True, False])
    def test_Q01_rules_lead_and_stay_in_place(self, has_developer_role: bool) -> None:
        sent = Sent(A, C, MID, has_mid_system=True, has_developer_role=has_developer_role)
        role = "developer" if has_developer_role else "system"
        assert sent.messages[0] == {"role": role, "content": [text("t1"), text("t2")]}
        assert sent.messages[2] == {"role": role, "content": "mid"}
        assert b"cache_control" not in sent.raw and sent.losses.warned == []

    def test_Q01_later_rules_go_into_the_turn_before(self) -> None:
        sent = Sent(A, C, MID)
        assert roles(sent) == ["system", "user", "assistant", "user"]
        assert sent.messages[1]["content"] == [text("one"), text("<system>mid</system>")]
        assert sent.losses.warned == ["messages[1]"]

    def test_later_rules_behind_an_answer_go_into_the_turn_behind(self) -> None:
        history = [user("one"), assistant("two"), {"role": "system", "content": "mid"}, user("three")]
        sent = Sent(A, C, a_request(*history))
        assert sent.messages[2]["content"] == [text("<system>mid</system>"), text("three")]

    def test_leading_rules_are_one_message_where_the_provider_takes_no_others(self) -> None:
        rules = {"role": "developer", "content": "two"}
        request = r_request(rules, user("hi"), instructions="one")
        sent = Sent(R, C, request)
        assert sent.messages[0] == {"role": "system", "content": [text("one"), text("two")]}
        assert roles(Sent(R, C, request, has_mid_system=True)) == ["system", "system", "user"]

    def test_rules_amid_calls_and_results_wait_for_these(self) -> None:
        rules = {"role": "developer", "content": "mid"}
        request = r_request(user("do"), r_use("a"), rules, user("wait"), r_result("a", "1"))
        sent = Sent(R, C, request, has_mid_system=True)
        assert roles(sent) == ["user", "assistant", "tool", "system", "user"]
        assert sent.losses.warned == []

    def test_Q28_the_attribution_of_claude_code_is_left_out(self) -> None:
        system = [text("x-anthropic-billing-header: cc_version=2; cch=0"), text("You are.")]
        sent = Sent(A, C, request_of(A, system=system))
        assert sent.messages[0] == {"role": "system", "content": "You are."}
        assert sent.losses.warned == [] and b"billing" not in sent.raw


class TestResults:
    def test_Q03_results_come_before_the_rest_of_the_turn(self) -> None:
        turn = user([a_result("a", "fine"), a_result("b", "bad", is_error=True), text("go"), A_IMAGE])
        sent = Sent(A, C, a_request(user("do"), assistant([a_use("a"), a_use("b")]), turn))
        assert sent.messages[2:] == [
            {"role": "tool", "tool_call_id": "a", "content": "fine"},
            {"role": "tool", "tool_call_id": "b", "content": "[tool error] bad"},
            user([text("go"), C_IMAGE]),
        ]

    def test_Q04_an_image_of_a_result_goes_to_the_user(self) -> None:
        turn = user([a_result("a", [text("out"), A_IMAGE]), text("go")])
        request = a_request(user("do"), assistant([a_use("a")]), turn)
        sent = Sent(A, C, request)
        assert sent.messages[2]["content"] == "out"
        assert sent.messages[3] == user([text("[attachment of tool result a]"), C_IMAGE, text("go")])
        assert sent.losses.warned == ["messages[2].content[0].content[1]"]
        inline = Sent(A, C, request, has_tool_parts=True)
        assert inline.messages[2]["content"] == [text("out"), C_IMAGE] and inline.losses.warned == []

    def test_attachments_wait_for_the_last_result(self) -> None:
        turn = user([a_result("a", [A_IMAGE]), a_result("b", "fine")])
        sent = Sent(A, C, a_request(user("do"), assistant([a_use("a"), a_use("b")]), turn))
        assert roles(sent) == ["user", "assistant", "tool", "tool", "user"]
        assert sent.messages[2]["content"] == "[see the attachment]"

    def test_T9_a_call_without_a_result_gets_one(self) -> None:
        history = [
            user("do"),
            assistant([a_use("a"), a_use("b")]),
            user([a_result("b", "1")]),
            assistant("x"),
        ]
        sent = Sent(A, C, a_request(*history, user("go")))
        assert roles(sent) == ["user", "assistant", "tool", "tool", "assistant", "user"]
        assert sent.messages[3]["tool_call_id"] == "a"
        assert sent.messages[3]["content"] == "[tool error] [no tool output recorded]"
        assert sent.losses.warned == ["messages[1].content[0]"]

    def test_T9_a_result_without_a_call_is_refused(self) -> None:
        assert refused(A, C, a_request(user("do"), assistant("x"), user([a_result("a", "1")]))) == (
            "messages[2].content[0].tool_use_id"
        )
        assert refused(R, C, r_request(user("do"), r_result("a", "1"))) == "input[1].call_id"
        twice = r_request(user("do"), r_use("a"), r_result("a", "1"), r_result("a", "2"))
        assert refused(R, C, twice) == "input[3].call_id"


class TestCalls:
    def test_Q06_arguments_keep_digits_letters_and_order(self) -> None:
        raw = json.dumps(a_request(user("do"), assistant([a_use("a")]), user([a_result("a", "1")])))
        sent = Sent(
            A, C, raw.replace('"input": {}', r'"input": {"z": 12345678901234567890, "s":"é\n"}').encode()
        )
        (call,) = sent.messages[1]["tool_calls"]
        assert call["function"]["arguments"] == r'{"z":12345678901234567890,"s":"é\n"}'

    def test_T7_texts_of_an_answer_are_joined_and_stand_before_the_calls(self) -> None:
        answer = assistant([text("one "), a_use("a"), text("two")])
        sent = Sent(A, C, a_request(user("do"), answer, user([a_result("a", "1")])))
        assert sent.messages[1]["content"] == "one two" and len(sent.messages[1]["tool_calls"]) == 1
        assert sent.losses.warned == []

    def test_Q11_neighbouring_items_are_one_message(self) -> None:
        reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
        words = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]}
        items: list[dict[str, Any]] = [
            reasoning,
            words,
            r_use("a", '{"x":1}'),
            r_use("b"),
            r_result("a", "1"),
            r_result("b", "2"),
        ]
        sent = Sent(R, C, r_request(user("do"), *items))
        assert roles(sent) == ["user", "assistant", "tool", "tool"]
        assert sent.messages[1]["content"] == "ok"
        assert [call["id"] for call in sent.messages[1]["tool_calls"]] == ["a", "b"]
        assert b"reasoning" not in sent.raw and b"gAAAA" not in sent.raw

    def test_Q13_long_names_and_odd_ids(self) -> None:
        name, odd = "n" * 90, "call_abc|fc_123"
        history = [user("do"), assistant([a_use(odd, name)]), user([a_result(odd, "1")])]
        sent = Sent(
            A, C, a_request(*history, tools=[a_tool(name)], tool_choice={"type": "tool", "name": name})
        )
        short = f"{'n' * 55}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        (call,) = sent.messages[1]["tool_calls"]
        assert call["function"]["name"] == sent.body["tools"][0]["function"]["name"] == short
        assert sent.body["tool_choice"]["function"]["name"] == short
        assert sent.tool_names == {short: ToolName(name)}
        assert call["id"] == sent.messages[2]["tool_call_id"] and len(call["id"]) == 31


class TestTools:
    def test_T11_custom_tools_are_wrapped_unless_the_provider_knows_them(self) -> None:
        sent = Sent(R, C, codex_request())
        functions = {tool["function"]["name"]: tool["function"] for tool in sent.body["tools"]}
        assert list(functions) == ["exec_command", "apply_patch", "mcp__gh__search"]
        schema = functions["apply_patch"]["parameters"]
        assert (
            schema["required"] == ["input"] and "begin_patch" in schema["properties"]["input"]["description"]
        )
        assert sent.tool_names["apply_patch"] == ToolName("apply_patch", "", True)
        assert sent.tool_names["mcp__gh__search"] == ToolName("search", "mcp__gh")
        assert {"tools[1].format", "tools[3]", "tools[4]"} <= set(sent.losses.warned)
        used = [c["function"] for m in sent.messages for c in m.get("tool_calls", ())]
        assert json.loads(used[1]["arguments"]) == {"input": PATCH}
        assert [call["name"] for call in used] == list(functions)
        own = Sent(R, C, codex_request(), has_custom_tools=True).body["tools"][1]
        assert own["type"] == "custom" and own["custom"]["format"]["type"] == "grammar"
        assert own["custom"]["format"]["grammar"].keys() == {"syntax", "definition"}

    def test_T12_hosted_tools_are_left_out_or_refused(self) -> None:
        hosted = {"type": "web_search"}
        assert refused(R, C, request_of(R, tools=[hosted])) == "tools"
        tools = [{"type": "function", "name": "f", "parameters": SCHEMA}, hosted]
        assert refused(R, C, request_of(R, tools=tools, tool_choice=hosted)) == "tool_choice"
        assert Sent(R, C, request_of(R, tools=tools)).losses.warned == ["tools[1]"]

    def test_T8_two_tools_of_one_name_are_refused(self) -> None:
        function = {"type": "function", "name": "f", "parameters": SCHEMA}
        space = {"type": "namespace", "name": "a", "tools": [function]}
        same = {**function, "name": "a__f"}
        assert refused(R, C, request_of(R, tools=[same, space])) == "tools[1].tools[0].name"

    def test_Q17_choices(self) -> None:
        choice = {"type": "any", "disable_parallel_tool_use": True}
        sent = Sent(A, C, request_of(A, tools=[a_tool()], tool_choice=choice))
        assert (sent.body["tool_choice"], sent.body["parallel_tool_calls"]) == ("required", False)
        hosted = [{"type": "function", "name": "f"}, {"type": "web_search"}]
        tools = [{"type": "function", "name": "f"}, {"type": "web_search"}]
        allowed = {"type": "allowed_tools", "mode": "required", "tools": hosted}
        sent = Sent(R, C, request_of(R, tools=tools, tool_choice=allowed))
        expected = {"mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]}
        assert sent.body["tool_choice"] == {"type": "allowed_tools", "allowed_tools": expected}

    def test_T13_a_choice_without_tools_is_none(self) -> None:
        sent = Sent(R, C, request_of(R, tool_choice="auto", parallel_tool_calls=True))
        assert not {"tool_choice", "parallel_tool_calls"} & sent.body.keys()
        assert refused(R, C, request_of(R, tool_choice="required")) == "tool_choice"

    def test_T10_a_tool_without_a_schema_takes_any_object(self) -> None:
        sent = Sent(R, C, request_of(R, tools=[{"type": "function", "name": "f"}]))
        assert sent.body["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}


class TestMedia:
    def test_Q15_documents(self) -> None:
        source: dict[str, Any] = {"type": "base64", "media_type": "application/pdf", "data": PNG}
        document = {"type": "document", "source": source, "title": "Report"}
        sent = Sent(A, C, a_request(user([text("see"), document])))
        file = {"file_data": f"data:application/pdf;base64,{PNG}", "filename": "Report"}
        assert sent.messages[0]["content"][1] == {"type": "file", "file": file}
        plain = {**document, "source": {"type": "text", "media_type": "text/plain", "data": "words"}}
        sent = Sent(A, C, a_request(user([text("see"), plain])))
        assert sent.messages[0]["content"][1] == text("Report\n\nwords")
        assert sent.losses.warned == ["messages[0].content[1]"]
        for kind in ("url", "file"):
            given = {"type": kind, "url": "https://x.example/a.pdf", "file_id": "file_1"}
            request = a_request(user([text("see"), {**document, "source": given}]))
            assert refused(A, C, request) == "messages[0].content[1]"

    def test_Q29_an_unknown_block_is_named_by_its_place(self) -> None:
        turn = user([text("see"), {"type": "hologram"}])
        assert (
            refused(A, C, a_request(user("a"), assistant("b"), user("c"), turn)) == "messages[3].content[1]"
        )

    def test_media_in_the_models_own_words_are_refused(self) -> None:
        assert (
            refused(A, C, a_request(user("a"), assistant([A_IMAGE]), user("b"))) == "messages[1].content[0]"
        )


class TestThinking:
    def history(self, upstream_model: str) -> dict[str, Any]:
        """A turn of a chat provider, which an Anthropic client gives back."""
        original = b'{"reasoning_content":"hm"}'
        dialect = usage_pb2.DIALECT_OPENAI_CHAT
        made = ChatThinking(
            original=original, dialect=dialect, provider_id="prov", upstream_model=upstream_model
        )
        block = {"type": "thinking", "thinking": "hm", "signature": envelope.seal(made)}
        return a_request(user("a"), assistant([block, text("b")]), user("c"))

    def test_T6_it_is_given_back_only_where_it_is_wanted(self) -> None:
        for model in ("upstream-model", "another"):
            wanted = Sent(A, C, self.history(model), wants_reasoning_back=True)
            assert wanted.messages[1] == assistant("b", reasoning_content="hm")
            sent = Sent(A, C, self.history(model))
            assert sent.messages[1] == assistant("b")
            assert sent.losses.warned == [] and sent.losses.silent

    def test_T6_foreign_signatures_never_leave(self) -> None:
        block = {"type": "thinking", "thinking": "hm", "signature": "EqQB"}
        request = a_request(user("a"), assistant([block, text("b")]), user("c"))
        for is_wanted in (True, False):
            assert b"EqQB" not in Sent(A, C, request, wants_reasoning_back=is_wanted).raw

    def test_an_answer_of_which_nothing_is_left_is_left_out(self) -> None:
        block = {"type": "thinking", "thinking": "", "signature": "EqQB"}
        sent = Sent(A, C, a_request(user("a"), assistant([block]), user("c")))
        assert roles(sent) == ["user", "user"]


class TestFields:
    def test_the_frame(self) -> None:
        sent = Sent(A, C, request_of(A), is_streaming=True)
        assert sent.body["model"] == "upstream-model" and sent.body["stream"] is True
        assert sent.body["stream_options"] == {"include_usage": True}
        assert (
            "stream_options" not in Sent(A, C, request_of(A), is_streaming=True, no_stream_options=True).body
        )
        assert "stream" not in Sent(A, C, request_of(A)).body

    def test_T15_the_limit_has_two_names_and_the_models_bound(self) -> None:
        assert Sent(A, C, request_of(A)).body["max_completion_tokens"] == 100
        sent = Sent(A, C, request_of(A), wants_max_tokens=True, max_output_tokens=50)
        assert sent.body["max_tokens"] == 50 and sent.losses.warned == ["max_tokens"]

    def test_Q20_five_stop_sequences_are_refused(self) -> None:
        assert refused(A, C, request_of(A, stop_sequences=list("ABCDE"))) == "stop_sequences"
        assert Sent(A, C, request_of(A, stop_sequences=["X"])).body["stop"] == ["X"]

    def test_Q21_efforts(self) -> None:
        sent = Sent(A, C, request_of(A, output_config={"effort": "max"}))
        assert sent.body["reasoning_effort"] == "max"
        clamped = Sent(A, C, request_of(A, output_config={"effort": "max"}), efforts=("low", "high"))
        assert clamped.body["reasoning_effort"] == "high" and clamped.losses.warned == []
        budget = {"type": "enabled", "budget_tokens": 10_000}
        assert Sent(A, C, request_of(A, thinking=budget)).body["reasoning_effort"] == "medium"
        disabled = Sent(A, C, request_of(A, thinking={"type": "disabled"}))
        assert disabled.body["reasoning_effort"] == "none"

    def test_T16_what_the_models_refuse_is_left_out_and_named(self) -> None:
        sent = Sent(A, C, request_of(A, temperature=0.5, top_k=3), dropped_params=["temperature"])
        assert not {"temperature", "top_k"} & sent.body.keys()
        assert sorted(sent.losses.warned) == ["temperature", "top_k"]

    def test_Q22_a_schema_gets_a_name_and_is_strict(self) -> None:
        wanted = {"format": {"type": "json_schema", "schema": SCHEMA}}
        sent = Sent(A, C, request_of(A, output_config=wanted))
        expected = {"name": "output", "schema": SCHEMA, "strict": True}
        assert sent.body["response_format"] == {"type": "json_schema", "json_schema": expected}

    def test_Q23_whom_claude_code_names_stays_here(self) -> None:
        sent = Sent(A, C, request_of(A, metadata={"user_id": CLAUDE_CODE_USER}))
        digest = hashlib.sha256(CLAUDE_CODE_USER.encode()).hexdigest()
        assert sent.body["safety_identifier"] == digest
        assert CLAUDE_CODE_USER[10:40].encode() not in sent.raw and "prompt_cache_key" not in sent.body

    def test_T20_a_short_name_of_a_person_stays_here_too(self) -> None:
        sent = Sent(A, C, request_of(A, metadata={"user_id": "bob"}))
        assert sent.body["safety_identifier"] == hashlib.sha256(b"bob").hexdigest()

    def test_T20_the_user_of_responses_is_the_user(self) -> None:
        sent = Sent(R, C, request_of(R, user="u"))
        assert sent.body["user"] == "u" and "safety_identifier" not in sent.body
        assert "user" not in sent.losses.silent
        sent = Sent(R, A, request_of(R, user="u"))
        assert sent.body["metadata"] == {"user_id": "u"} and "user" not in sent.losses.silent

    @pytest.mark.parametrize("is_known", [True, False])
    def test_T2_a_phase_is_sent_to_who_knows_it(self, is_known: bool) -> None:
        phased = r_request(user("hi"), assistant("yes", phase="commentary"), user("go"))
        sent = Sent(R, C, phased, has_message_phase=is_known)
        assert [m.get("phase") for m in sent.messages][1] == ("commentary" if is_known else None)
        assert ("input[1].phase" in sent.losses.silent, sent.losses.warned) == (not is_known, [])

    @pytest.mark.parametrize("target", [C, R])
    def test_T4_a_document_of_texts_is_one_loss(self, target: Any) -> None:
        source = {"type": "content", "content": [text("one"), text("two")]}
        sent = Sent(A, target, a_request(user([text("see"), {"type": "document", "source": source}])))
        assert sent.losses.warned == ["messages[0].content[1]"]

    def test_Q24_an_answer_that_somebody_else_holds(self) -> None:
        with pytest.raises(PreviousResponseNotFound):
            Sent(R, C, request_of(R, previous_response_id="resp_1"))

    @pytest.mark.parametrize(
        ("source", "field", "value"),
        [
            (A, "safeguards", {"mode": "x"}),  # Q25
            (A, "inference_geo", "us"),  # Q26
            (A, "mcp_servers", [{"name": "x"}]),
            (A, "container", "c"),
            (A, "billing_policy", "x"),
            (A, "thread", {"type": "continue", "previous_message_id": "m"}),
            (R, "conversation", "conv_1"),
            (R, "background", True),
            (R, "prompt", {"id": "p"}),
        ],
    )
    def test_Q27_what_must_not_vanish_is_refused(self, source: Any, field: str, value: Any) -> None:
        assert refused(source, C, request_of(source, **{field: value})) == field

    @pytest.mark.parametrize(
        ("source", "field", "value"),
        [
            (A, "unheard_of", {"x": 1}),
            (A, "speed", "fast"),
            (A, "service_tier", "standard_only"),
            (A, "fallbacks", [{"model": "m"}]),
            (R, "truncation", "auto"),
            (R, "max_tool_calls", 3),
        ],
    )
    def test_Q27_what_is_lost_is_named_and_refused_to_the_strict(
        self, source: Any, field: str, value: Any
    ) -> None:
        sent = Sent(source, C, request_of(source, **{field: value}))
        assert sent.losses.warned == [field] and field not in sent.body
        strict = Losses(is_strict=True)
        with pytest.raises(Untranslatable):
            translate.write_request(sent.request, Target(C, "m"), strict, is_streaming=False)

    @pytest.mark.parametrize(
        ("source", "field", "value"),
        [
            (A, "context_management", {"edits": []}),
            (A, "diagnostics", {}),
            (A, "speed", "standard"),
            (A, "cache_control", {"type": "ephemeral"}),
            (R, "client_metadata", {"x": "secret"}),
            (R, "store", False),
            (R, "include", ["reasoning.encrypted_content"]),
            (R, "background", False),
            (R, "truncation", "disabled"),
        ],
    )
    def test_hints_vanish_silently(self, source: Any, field: str, value: Any) -> None:
        sent = Sent(source, C, request_of(source, **{field: value}))
        assert sent.losses.warned == [] and field not in sent.body

    def test_T26_an_answer_that_is_begun_is_sent_and_named(self) -> None:
        sent = Sent(A, C, a_request(user("a"), assistant("{")))
        assert sent.messages[-1] == assistant("{") and sent.losses.warned == ["messages[1]"]

    def test_fields_of_responses_that_mean_the_same(self) -> None:
        same = {"user": "u", "safety_identifier": "s", "metadata": {"k": "v"}, "prompt_cache_key": "p"}
        sent = Sent(R, C, request_of(R, **same, service_tier="flex", text={"verbosity": "low"}))
        assert same.items() <= sent.body.items()
        assert (sent.body["service_tier"], sent.body["verbosity"]) == ("flex", "low")
        assert sent.losses.warned == []


def test_a_typed_request_needs_no_dialect() -> None:
    message = ChatMessage(role=chat_pb2.CHAT_ROLE_USER, blocks=[ChatBlock(text="hi")])
    tool = ChatTool(name="f", namespace="n", kind=chat_pb2.CHAT_TOOL_KIND_FUNCTION)
    request = StreamChatRequest(model="m", messages=[message], tools=[tool], end_user_id="bob")
    written = translate.write_request(request, Target(C, "up"), Losses(), is_streaming=False)
    body = json.loads(written.body)
    assert body["messages"] == [user("hi")] and body["safety_identifier"] == "bob"
    assert written.tool_names == {"n__f": ToolName("f", "n")}
