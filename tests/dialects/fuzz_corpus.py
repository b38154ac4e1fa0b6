"""Requests and bodies with something of everything, to be harmed."""

from typing import Any

from lurus_dialects.dialect import Dialect
from tests.conformance.requests import (
    A_IMAGE,
    C_IMAGE,
    PNG,
    R_IMAGE,
    SCHEMA,
    a_request,
    a_result,
    a_tool,
    a_use,
    assistant,
    c_request,
    c_result,
    c_tool,
    c_use,
    codex_request,
    r_request,
    r_result,
    r_tool,
    r_use,
    text,
    user,
)
from tests.support.provider_streams import ResponsesStream, a_body, c_body, r_body

_CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
_PDF = {"type": "base64", "media_type": "application/pdf", "data": PNG}
_THOUGHT = {
    "type": "thinking",
    "thinking": "hm",
    "signature": "lsw1.eyJwIjoiUiIsInUiOiJvbmUiLCJtIjoidXAiLCJiIjp7fX0",
}
_ANTHROPIC = [
    a_request(
        user([text("see"), {**A_IMAGE, **_CACHED}, {"type": "document", "source": _PDF, "title": "T"}]),
        {"role": "system", "content": "mid", "output_config": {"effort": "low"}},
        assistant(
            [_THOUGHT, {"type": "redacted_thinking", "data": "x"}, text("ok"), a_use("a", a=1), a_use("b|1")]
        ),
        user([a_result("a", [text("out"), A_IMAGE]), a_result("b|1", "bad", is_error=True), text("go")]),
        system=[text("rules"), {**text("more"), **_CACHED}],
        tools=[
            a_tool("f", **_CACHED),
            a_tool("n" * 90),
            {"type": "web_search_20260101", "name": "web_search"},
        ],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "adaptive", "display": "omitted"},
        output_config={"effort": "max", "format": {"type": "json_schema", "schema": SCHEMA}},
        metadata={"user_id": "u"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        temperature=0.5,
        top_p=0.9,
        stop_sequences=["X"],
        stream=True,
    ),
    a_request(user("hi"), thinking={"type": "enabled", "budget_tokens": 2000}, top_k=3, service_tier="auto"),
]
_CHAT = [
    c_request(
        {"role": "system", "content": [text("rules")]},
        user(
            [
                text("see"),
                C_IMAGE,
                {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PNG}"}},
            ]
        ),
        assistant("ok", tool_calls=[c_use("a", '{"a":1}'), c_use("b", '{"b":')], reasoning_content="hm"),
        c_result("a", "out"),
        c_result("b", [text("more")]),
        {"role": "developer", "content": "mid"},
        user("go"),
        tools=[c_tool(), {"type": "custom", "custom": {"name": "patch", "description": "d"}}],
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
        },
        stream_options={"include_usage": True},
        reasoning_effort="high",
        max_completion_tokens=100,
        temperature=1.5,
        stop=["X", "Y"],
        metadata={"k": "v"},
        parallel_tool_calls=False,
        stream=True,
    ),
    c_request(user("hi"), stop="X", n=1, logprobs=True, top_logprobs=2, seed=3, user="u", verbosity="low"),
]
_RESPONSES = [
    codex_request(),
    r_request(
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "see"}, R_IMAGE]},
        r_use("a", '{"a":1}'),
        r_result("a", [{"type": "input_text", "text": "out"}, R_IMAGE]),
        assistant("ok"),
        user("go"),
        instructions="rules",
        tools=[r_tool()],
        tool_choice={
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "f"}],
        },
        text={"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}, "verbosity": "low"},
        max_output_tokens=100,
        include=["message.output_text.logprobs"],
        truncation="auto",
        metadata={"k": "v"},
    ),
    {"model": "m", "input": "hi"},
]
REQUESTS: dict[Dialect, list[dict[str, Any]]] = {
    Dialect.ANTHROPIC: _ANTHROPIC,
    Dialect.OPENAI_CHAT: _CHAT,
    Dialect.OPENAI_RESPONSES: _RESPONSES,
}


def _items() -> list[dict[str, Any]]:
    stream = ResponsesStream()
    stream.reasoning("hm")
    stream.text("ok")
    stream.call("call_1", "f", '{"a":1}')
    stream.call("call_2", "apply_patch", "*** Begin", is_custom=True)
    return stream.items


_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "apply_patch", "arguments": '{"input":"x"}'},
}
BODIES: dict[Dialect, list[dict[str, Any]]] = {
    Dialect.ANTHROPIC: [
        a_body([_THOUGHT, text("ok"), a_use("a", "apply_patch", input="x")], "tool_use"),
        {"type": "error", "error": {"type": "overloaded_error", "message": "m"}},
    ],
    Dialect.OPENAI_CHAT: [
        c_body({"content": "ok", "reasoning_content": "hm", "tool_calls": [_CALL]}, "tool_calls"),
        {"error": {"message": "m", "type": "server_error", "param": None, "code": None}},
    ],
    Dialect.OPENAI_RESPONSES: [
        r_body(_items()),
        r_body(_items(), "incomplete", incomplete_details={"reason": "max_output_tokens"}),
        r_body([], "failed", error={"code": "server_error", "message": "m"}),
    ],
}
