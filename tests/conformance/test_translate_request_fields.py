"""What a provider of another dialect is sent: choices, limits, formats, identity (wire-contract E.4)."""

import re
from typing import Any

import pytest
from tests.conformance.requests import (
    CLAUDE_CODE_USER,
    SCHEMA,
    A,
    C,
    R,
    a_request,
    a_tool,
    assistant,
    c_request,
    c_result,
    c_tool,
    c_use,
    r_request,
    r_tool,
    request_of,
    text,
    user,
)
from tests.conformance.rig import Gateway
from tests.conformance.translating import Sent, ask

from lurus_dialects.dialect import Dialect

pytestmark = pytest.mark.anyio

FORMAT = {"name": "answer", "schema": SCHEMA, "strict": True}
# Each refused in any direction that is named.
REFUSED: list[tuple[str, Dialect, Dialect, dict[str, Any]]] = [
    ("n", C, A, c_request(user("hi"), n=2)),
    ("n", C, R, c_request(user("hi"), n=2)),
    ("stop_sequences", A, R, request_of(A, stop_sequences=["X"])),
    ("inference_geo", A, C, request_of(A, inference_geo="us")),
    ("safeguards", A, R, request_of(A, safeguards={"mode": "x"})),
    ("background", R, A, request_of(R, background=True)),
    ("conversation", R, C, request_of(R, conversation="conv_1")),
    ("mcp_servers", A, C, request_of(A, mcp_servers=[{"type": "url", "url": "https://x", "name": "x"}])),
]
# Each warned of in the direction that is named.
WARNED: list[tuple[str, Dialect, Dialect, dict[str, Any]]] = [
    ("top_k", A, C, request_of(A, top_k=5)),
    ("top_k", A, R, request_of(A, top_k=5)),
    ("seed", C, A, request_of(C, seed=7)),
    ("seed", C, R, request_of(C, seed=7)),
    ("temperature", C, A, request_of(C, temperature=1.7)),
    ("truncation", R, A, request_of(R, truncation="auto")),
    ("tools[1]", R, C, request_of(R, tools=[r_tool(), {"type": "web_search"}])),
    ("unheard_of", A, C, request_of(A, unheard_of={"x": 1})),
    ("unheard_of", C, R, request_of(C, unheard_of={"x": 1})),
    ("unheard_of", R, A, request_of(R, unheard_of={"x": 1})),
]


class TestChoices:
    @pytest.mark.parametrize("target", [C, R])
    async def test_Q17_from_a_any_is_required_and_parallel_calls_are_off(
        self, gateway: Gateway, target: Dialect
    ) -> None:
        choice = {"type": "any", "disable_parallel_tool_use": True}
        sent = await ask(gateway, A, target, request_of(A, tools=[a_tool()], tool_choice=choice))
        assert sent.upstream["tool_choice"] == "required"
        assert sent.upstream["parallel_tool_calls"] is False

    @pytest.mark.parametrize("source", [C, R])
    @pytest.mark.parametrize(("mode", "expected"), [("auto", "auto"), ("required", "any")])
    async def test_Q17_to_a_only_the_allowed_tools_are_left(
        self, gateway: Gateway, source: Dialect, mode: str, expected: str
    ) -> None:
        if source is C:
            names = [{"type": "function", "function": {"name": "g"}}]
            choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": names}}
            tools = [c_tool("f"), c_tool("g")]
        else:
            choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "g"}]}
            tools = [r_tool("f"), r_tool("g")]
        sent = await ask(gateway, source, A, request_of(source, tools=tools, tool_choice=choice))
        assert [tool["name"] for tool in sent.upstream["tools"]] == ["g"]
        assert sent.upstream["tool_choice"]["type"] == expected
        assert sent.lossy == []


class TestLimits:
    async def test_Q18_c_to_a_what_is_absent_is_added_and_what_is_too_much_clamped(
        self, gateway: Gateway
    ) -> None:
        request = c_request(user("hi"), temperature=1.7, top_p=0.9, seed=7)
        (await ask(gateway, C, A, {**request, "n": 2})).assert_refused("n")
        provider = await gateway.add("A")
        await gateway.rest("POST", "models", json={"model_id": provider.model, "max_output_tokens": "4321"})

        async def asked() -> Sent | None:
            found = await ask(gateway, C, provider, request)
            return found if found.upstream["max_tokens"] == 4321 else None

        sent = await gateway.eventually(asked)
        assert sent.upstream.get("temperature", 1) == 1
        assert "seed" not in sent.upstream
        assert {"temperature", "seed"} <= set(sent.lossy) and "top_p" not in sent.lossy
        assert sent.upstream["top_p"] == 0.9

    async def test_Q19_a_to_r_stop_sequences_are_refused(self, gateway: Gateway) -> None:
        sent = await ask(gateway, A, R, request_of(A, stop_sequences=["X"]))
        sent.assert_refused("stop_sequences")

    async def test_Q20_a_to_c_five_stop_sequences_are_refused(self, gateway: Gateway) -> None:
        sent = await ask(gateway, A, C, request_of(A, stop_sequences=list("ABCDE")))
        sent.assert_refused("stop_sequences")
        sent = await ask(gateway, A, C, request_of(A, stop_sequences=list("ABCD")))
        assert sent.upstream["stop"] == list("ABCD")


class TestEffort:
    @pytest.mark.parametrize("target", [C, R])
    async def test_Q21_from_a_max_stays_max(self, gateway: Gateway, target: Dialect) -> None:
        sent = await ask(gateway, A, target, request_of(A, output_config={"effort": "max"}))
        assert _effort(target, sent.upstream) == "max"

    async def test_Q21_r_to_a_minimal_is_low(self, gateway: Gateway) -> None:
        sent = await ask(gateway, R, A, request_of(R, reasoning={"effort": "minimal"}))
        assert sent.upstream["output_config"]["effort"] == "low"

    async def test_Q21_a_to_r_a_budget_is_an_effort(self, gateway: Gateway) -> None:
        thinking = {"type": "enabled", "budget_tokens": 10_000}
        sent = await ask(gateway, A, R, {**request_of(A, thinking=thinking), "max_tokens": 20_000})
        assert _effort(R, sent.upstream) == "medium"


class TestFormats:
    async def test_Q22_c_to_a_a_schema(self, gateway: Gateway) -> None:
        response_format = {"type": "json_schema", "json_schema": FORMAT}
        sent = await ask(gateway, C, A, request_of(C, response_format=response_format))
        assert sent.upstream["output_config"]["format"] == {"type": "json_schema", "schema": SCHEMA}
        assert sent.lossy == []

    async def test_Q22_a_to_r_a_schema_gets_a_name_and_is_strict(self, gateway: Gateway) -> None:
        wanted = {"format": {"type": "json_schema", "schema": SCHEMA}}
        sent = await ask(gateway, A, R, request_of(A, output_config=wanted))
        expected = {"type": "json_schema", "name": "output", "schema": SCHEMA, "strict": True}
        assert sent.upstream["text"]["format"] == expected


class TestIdentity:
    async def test_Q23_a_to_r_whom_claude_code_names_stays_here(self, gateway: Gateway) -> None:
        request = request_of(A, metadata={"user_id": CLAUDE_CODE_USER})
        sent = await ask(
            gateway, A, R, request, "x-claude-code-session-id: 9f0c1d2e-aaaa-bbbb-cccc-123456789abc"
        )
        assert re.fullmatch("[0-9a-f]{64}", sent.upstream["safety_identifier"])
        wire = sent.received.head + sent.upstream_bytes
        for secret in re.findall(rb"[0-9a-f-]{32,36}", CLAUDE_CODE_USER.encode()):
            assert secret not in wire

    @pytest.mark.parametrize("target", [A, C])
    async def test_Q24_from_r_an_answer_that_somebody_else_holds(
        self, gateway: Gateway, target: Dialect
    ) -> None:
        sent = await ask(gateway, R, target, request_of(R, previous_response_id="resp_1"))
        sent.assert_refused("previous_response_id", code="previous_response_not_found")


class TestRefusals:
    @pytest.mark.parametrize("target", [C, R])
    async def test_Q25_from_a_safeguards_are_named(self, gateway: Gateway, target: Dialect) -> None:
        sent = await ask(gateway, A, target, request_of(A, safeguards={"mode": "x"}))
        sent.assert_refused("safeguards")
        assert "safeguards" in sent.json()["error"]["message"]

    @pytest.mark.parametrize("target", [C, R])
    async def test_Q26_from_a_a_place_of_work_is_never_dropped(
        self, gateway: Gateway, target: Dialect
    ) -> None:
        sent = await ask(gateway, A, target, request_of(A, inference_geo="us"))
        sent.assert_refused("inference_geo")

    @pytest.mark.parametrize(("path", "source", "target", "request_"), REFUSED)
    @pytest.mark.parametrize("is_strict", [True, False])
    async def test_Q27_what_is_refused_is_refused_to_all(
        self,
        gateway: Gateway,
        path: str,
        source: Dialect,
        target: Dialect,
        request_: dict[str, Any],
        is_strict: bool,
    ) -> None:
        sent = await ask(gateway, source, target, request_, *["x-lurus-strict: 1"] * is_strict)
        sent.assert_refused(path)

    @pytest.mark.parametrize(("path", "source", "target", "request_"), WARNED)
    async def test_Q27_what_is_warned_of_is_refused_to_the_strict(
        self, gateway: Gateway, path: str, source: Dialect, target: Dialect, request_: dict[str, Any]
    ) -> None:
        sent = await ask(gateway, source, target, request_)
        assert path in sent.lossy and sent.status == 200
        sent = await ask(gateway, source, target, request_, "x-lurus-strict: 1")
        sent.assert_refused(path)

    async def test_Q28_a_to_c_the_attribution_of_claude_code_is_not_the_providers(
        self, gateway: Gateway
    ) -> None:
        system = [text("x-anthropic-billing-header: cc_version=2.1; cch=0"), text("You are.")]
        for target in (C, R):
            sent = await ask(gateway, A, target, request_of(A, system=system))
            assert b"billing-header" not in sent.upstream_bytes and b"You are." in sent.upstream_bytes
            assert sent.lossy == []

    @pytest.mark.parametrize(
        ("source", "target"), [(A, C), (A, R), (C, A), (C, R), (R, A), (R, C)], ids=lambda d: d.value
    )
    async def test_Q29_an_unknown_block_is_named_by_its_place(
        self, gateway: Gateway, source: Dialect, target: Dialect
    ) -> None:
        known = {"type": "input_text", "text": "see"} if source is R else text("see")
        turn = user([known, {"type": "hologram", "data": "x"}])
        if source is R:
            request = r_request(user("a"), assistant("b"), user("c"), turn)
        else:
            request = (a_request if source is A else c_request)(user("a"), assistant("b"), user("c"), turn)
        sent = await ask(gateway, source, target, request)
        sent.assert_refused("input[3].content[1]" if source is R else "messages[3].content[1]")


def _effort(dialect: Dialect, body: dict[str, Any]) -> str:
    found: str = body["reasoning_effort"] if dialect is C else body["reasoning"]["effort"]
    return found


async def test_a_request_of_a_chat_that_calls_a_tool_is_complete_for_responses(gateway: Gateway) -> None:
    """The direction that no case of the table names."""
    history = [user("do"), assistant(None, tool_calls=[c_use("a", '{"a":1}')]), c_result("a", "1")]
    sent = await ask(gateway, C, R, c_request(*history, tools=[c_tool()]))
    kinds = [item.get("type", "message") for item in sent.upstream["input"]]
    assert kinds == ["message", "function_call", "function_call_output"]
    assert sent.upstream["input"][1]["arguments"] == '{"a":1}'
    assert sent.upstream["tools"][0]["strict"] is False
