"""What a provider of another dialect is sent: messages, media, calls and results (wire-contract E.4)."""

import hashlib
import itertools
import json
from typing import Any

import pytest
from tests.conformance.requests import (
    A_IMAGE,
    C_IMAGE,
    PATCH,
    PNG,
    R_IMAGE,
    A,
    C,
    R,
    a_request,
    a_result,
    a_tool,
    a_use,
    assistant,
    c_request,
    c_result,
    c_use,
    codex_request,
    r_request,
    r_result,
    r_use,
    text,
    user,
)
from tests.conformance.rig import Gateway
from tests.conformance.translating import ask
from tests.support import provider_streams as provider
from tests.support.scripted_upstream import stream

pytestmark = pytest.mark.anyio

CACHED = {"cache_control": {"type": "ephemeral"}}
SYSTEM = [text("t1"), {**text("t2"), **CACHED}]
MID_SYSTEM = a_request(
    user("one"),
    {"role": "system", "content": [{**text("mid"), **CACHED}]},
    assistant("two"),
    user("three"),
    system=SYSTEM,
    tools=[a_tool(**CACHED)],
)
TEXT_AND_IMAGE = [text("out"), A_IMAGE]


class TestSystem:
    @pytest.mark.parametrize("role", ["system", "developer"])
    async def test_Q01_a_to_c_rules_lead_and_stay_in_place(self, gateway: Gateway, role: str) -> None:
        sent = await ask(
            gateway, A, C, MID_SYSTEM, has_mid_system=True, has_developer_role=role == "developer"
        )
        assert _flat(sent.upstream["messages"]) == [
            (role, "t1|t2"),
            ("user", "one"),
            (role, "mid"),
            ("assistant", "two"),
            ("user", "three"),
        ]
        assert sent.upstream["messages"][0]["content"] == [text("t1"), text("t2")]
        assert b"cache_control" not in sent.upstream_bytes

    async def test_Q01_a_to_c_later_rules_are_folded_where_the_provider_takes_none(
        self, gateway: Gateway
    ) -> None:
        sent = await ask(gateway, A, C, MID_SYSTEM, has_mid_system=False)
        roles = [message["role"] for message in sent.upstream["messages"]]
        assert roles == ["system", "user", "assistant", "user"]
        first_turn = _texts(sent.upstream["messages"][1])
        assert "one" in first_turn and any("mid" in part for part in first_turn)
        assert b"cache_control" not in sent.upstream_bytes

    async def test_Q02_a_to_r_rules_are_instructions_and_later_ones_developer_items(
        self, gateway: Gateway
    ) -> None:
        sent = await ask(gateway, A, R, MID_SYSTEM, has_mid_system=True)
        body = sent.upstream
        assert body["instructions"] == "t1\n\nt2"
        assert [item["role"] for item in body["input"]] == ["user", "developer", "assistant", "user"]
        assert _flat(body["input"])[1] == ("developer", "mid")
        assert body["store"] is False
        assert [tool["strict"] for tool in body["tools"]] == [False]
        assert b"cache_control" not in sent.upstream_bytes


class TestResults:
    async def test_Q03_a_to_c_results_come_before_the_rest_of_the_turn(self, gateway: Gateway) -> None:
        request = a_request(
            user("do"),
            assistant([a_use("a"), a_use("b")]),
            user([a_result("a", "fine"), a_result("b", "bad", is_error=True), text("go"), A_IMAGE]),
        )
        sent = await ask(gateway, A, C, request)
        one, two, rest = sent.upstream["messages"][2:]
        assert (one["role"], one["tool_call_id"], _texts(one)) == ("tool", "a", ["fine"])
        assert (two["role"], two["tool_call_id"], _texts(two)) == ("tool", "b", ["[tool error] bad"])
        assert rest == user([text("go"), C_IMAGE])

    async def test_Q04_a_to_c_an_image_of_a_result_moves_to_the_user_and_is_named(
        self, gateway: Gateway
    ) -> None:
        request = a_request(
            user("do"), assistant([a_use("a")]), user([a_result("a", TEXT_AND_IMAGE), text("go")])
        )
        sent = await ask(gateway, A, C, request)
        result, rest = sent.upstream["messages"][2:]
        assert (result["role"], _texts(result)) == ("tool", ["out"])
        assert rest["role"] == "user" and C_IMAGE in rest["content"]
        assert "[attachment of tool result a]" in "".join(_texts(rest))
        assert any(path.startswith("messages[2].content[0]") for path in sent.lossy)

    async def test_Q05_a_to_r_a_result_of_text_and_image_is_one_list(self, gateway: Gateway) -> None:
        request = a_request(user("do"), assistant([a_use("a")]), user([a_result("a", TEXT_AND_IMAGE)]))
        sent = await ask(gateway, A, R, request)
        result = sent.upstream["input"][-1]
        assert (result["type"], result["call_id"]) == ("function_call_output", "a")
        assert [part["type"] for part in result["output"]] == ["input_text", "input_image"]
        assert result["output"][0]["text"] == "out"
        assert result["output"][1]["image_url"] == R_IMAGE["image_url"]
        assert sent.lossy == []

    async def test_Q08_c_to_a_results_in_a_row_are_one_user_turn(self, gateway: Gateway) -> None:
        calls = [c_use("a"), c_use("b"), c_use("c")]
        results = [c_result("a", "1"), c_result("b", "2"), c_result("c", "3")]
        sent = await ask(
            gateway, C, A, c_request(user("do"), assistant(None, tool_calls=calls), *results, user("go"))
        )
        roles = [message["role"] for message in sent.upstream["messages"]]
        assert roles == ["user", "assistant", "user"]
        blocks = sent.upstream["messages"][2]["content"]
        assert [block["type"] for block in blocks] == ["tool_result"] * 3 + ["text"]
        assert [block["tool_use_id"] for block in blocks[:3]] == ["a", "b", "c"]
        assert blocks[3]["text"] == "go"

    async def test_Q09_c_to_a_a_result_without_a_call_is_refused(self, gateway: Gateway) -> None:
        request = c_request(user("do"), assistant("done"), c_result("nobody", "1"))
        sent = await ask(gateway, C, A, request)
        sent.assert_refused("messages[2].tool_call_id")

    async def test_Q12_r_to_a_a_list_of_a_result_becomes_blocks(self, gateway: Gateway) -> None:
        output = [{"type": "input_text", "text": "out"}, R_IMAGE]
        sent = await ask(gateway, R, A, r_request(user("do"), r_use("a"), r_result("a", output)))
        (result,) = sent.upstream["messages"][-1]["content"]
        assert (result["type"], result["tool_use_id"]) == ("tool_result", "a")
        assert result["content"] == [text("out"), A_IMAGE]


class TestCalls:
    async def test_Q06_a_to_c_arguments_keep_digits_and_letters(self, gateway: Gateway) -> None:
        raw = json.dumps(a_request(user("do"), assistant([a_use("a")]), user([a_result("a", "1")])))
        arguments = r'{"n":12345678901234567890,"s":"é\n"}'
        body = raw.replace('"input": {}', f'"input": {arguments}').encode()
        sent = await ask(gateway, A, C, body)
        (call,) = sent.upstream["messages"][1]["tool_calls"]
        assert "12345678901234567890" in call["function"]["arguments"]
        assert json.loads(call["function"]["arguments"]) == {"n": 12345678901234567890, "s": "é\n"}

    async def test_Q07_c_to_a_empty_and_broken_arguments(self, gateway: Gateway) -> None:
        calls = [c_use("a", ""), c_use("b", '{"a":')]
        results = [c_result("a", "1"), c_result("b", "2")]
        sent = await ask(gateway, C, A, c_request(user("do"), assistant(None, tool_calls=calls), *results))
        one, two = sent.upstream["messages"][1]["content"]
        assert one["input"] == {}
        assert two["input"] == {"raw_arguments": '{"a":'}
        assert len(sent.lossy) == 1 and sent.lossy[0].startswith("messages[1].tool_calls[1]")

    async def test_Q10_r_to_a_a_request_of_codex(self, gateway: Gateway) -> None:
        sent = await ask(gateway, R, A, codex_request())
        body = sent.upstream
        assert [tool["name"] for tool in body["tools"]] == ["exec_command", "apply_patch", "mcp__gh__search"]
        assert all(tool.get("type", "custom") == "custom" for tool in body["tools"])
        patch = body["tools"][1]
        assert patch["input_schema"]["required"] == ["input"]
        assert "begin_patch" in json.dumps(patch["input_schema"])
        assert "Edits files." in json.dumps(patch)
        assert {"tools[3]", "tools[4]"} <= set(sent.lossy)
        assert "".join(_texts({"content": body["system"]})) == "You are a coding agent."
        assert body["cache_control"] == {"type": "ephemeral"}
        assert b"secret-installation" not in sent.upstream_bytes
        assert b"gAAAA" not in sent.upstream_bytes
        _assert_anthropic_turns(body["messages"])
        uses = [block for message in body["messages"] for block in message["content"] if "input" in block]
        assert [use["name"] for use in uses] == ["exec_command", "apply_patch", "mcp__gh__search"]
        assert uses[1]["input"] == {"input": PATCH}

    async def test_Q11_r_to_c_neighbouring_items_are_one_message(self, gateway: Gateway) -> None:
        request = r_request(
            user("do"),
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]},
            r_use("a", '{"x":1}'),
            r_use("b", '{"x":2}'),
            r_result("a", "1"),
            r_result("b", "2"),
        )
        sent = await ask(gateway, R, C, request)
        _, answer, *results = sent.upstream["messages"]
        assert (answer["role"], _texts(answer)) == ("assistant", ["ok"])
        assert [(call["id"], call["function"]["arguments"]) for call in answer["tool_calls"]] == [
            ("a", '{"x":1}'),
            ("b", '{"x":2}'),
        ]
        assert [(m["role"], m["tool_call_id"], _texts(m)) for m in results] == [
            ("tool", "a", ["1"]),
            ("tool", "b", ["2"]),
        ]
        assert b"gAAAA" not in sent.upstream_bytes and b"reasoning" not in sent.upstream_bytes

    async def test_Q13_a_to_c_long_names_and_odd_ids(self, gateway: Gateway) -> None:
        long_name, odd_id = "n" * 90, "call_abc|fc_123"
        request = a_request(
            user("do"),
            assistant([a_use(odd_id, long_name)]),
            user([a_result(odd_id, "1")]),
            tools=[a_tool(long_name)],
            stream=True,
        )
        digest = hashlib.sha256(long_name.encode()).hexdigest()[:8]
        short = f"{'n' * 55}_{digest}"
        answer = stream(
            [
                provider.c_start(),
                provider.c_call(0, "call_9", short),
                provider.c_arguments(0, "{}"),
                provider.c_finish("tool_calls"),
            ]
        )
        sent = await ask(gateway, A, C, request, answer=answer)
        (call,) = sent.upstream["messages"][1]["tool_calls"]
        assert call["function"]["name"] == short == sent.upstream["tools"][0]["function"]["name"]
        assert call["id"] == sent.upstream["messages"][2]["tool_call_id"]
        assert call["id"] != odd_id and call["id"].startswith("call_") and len(call["id"]) == 31
        assert sent.told.tools == [("tool", "call_9", long_name, "{}")]


class TestMedia:
    async def test_Q14_c_to_a_images(self, gateway: Gateway) -> None:
        webp = {"type": "image_url", "image_url": {"url": "data:image/webp;base64,UklGRg=="}}
        sent = await ask(gateway, C, A, c_request(user([text("see"), webp])))
        source = {"type": "base64", "media_type": "image/webp", "data": "UklGRg=="}
        assert sent.upstream["messages"][0]["content"][1] == {"type": "image", "source": source}
        tiff = {"type": "image_url", "image_url": {"url": "data:image/tiff;base64,SUkqAA=="}}
        sent = await ask(gateway, C, A, c_request(user([text("see"), tiff])))
        sent.assert_refused("messages[0].content[1]")

    async def test_Q15_a_to_c_documents(self, gateway: Gateway) -> None:
        source = {"type": "base64", "media_type": "application/pdf", "data": PNG}
        document: dict[str, Any] = {"type": "document", "source": source, "title": "Report"}
        sent = await ask(gateway, A, C, a_request(user([text("see"), document])))
        (part,) = [p for p in sent.upstream["messages"][0]["content"] if p["type"] == "file"]
        assert part["file"] == {"file_data": f"data:application/pdf;base64,{PNG}", "filename": "Report"}
        document["source"] = {"type": "url", "url": "https://example.com/a.pdf"}
        sent = await ask(gateway, A, C, a_request(user([text("see"), document])))
        sent.assert_refused("messages[0].content[1]")

    async def test_Q16_c_to_a_sound_is_refused(self, gateway: Gateway) -> None:
        sound = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
        sent = await ask(gateway, C, A, c_request(user([text("hear"), sound])))
        sent.assert_refused("messages[0].content[1]")


def _texts(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [p["text"] for p in content if "text" in p]


def _flat(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(message["role"], "|".join(_texts(message))) for message in messages]


def _assert_anthropic_turns(messages: list[dict[str, Any]]) -> None:
    """Roles alternate, and every call is answered at the begin of the next turn."""
    roles = [message["role"] for message in messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)
    for message, following in itertools.pairwise(messages):
        calls = [b["id"] for b in message["content"] if isinstance(b, dict) and b["type"] == "tool_use"]
        answers = [b["tool_use_id"] for b in following["content"] if "tool_use_id" in b][: len(calls)]
        assert answers == calls
