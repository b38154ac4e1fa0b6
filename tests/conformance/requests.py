"""Writes requests as the three kinds of clients send them."""

import json
from typing import Any

from lurus_dialects.dialect import Dialect

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES
MODEL = "alias"
UPSTREAM_MODEL = "upstream-model"
# One by one pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
A_IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
C_IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
R_IMAGE = {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
PATCH = '*** Begin Patch\n*** Update File: a.py\n+print("q")\n*** End Patch\n'


def a_request(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Returns a request of Anthropic Messages."""
    return {"model": MODEL, "max_tokens": 100, "messages": list(messages), **fields}


def c_request(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Returns a request of Chat Completions."""
    return {"model": MODEL, "messages": list(messages), **fields}


def r_request(*items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Returns a request of Responses."""
    return {"model": MODEL, "input": list(items), **fields}


def request_of(dialect: Dialect, **fields: Any) -> dict[str, Any]:
    """Returns the shortest request of a dialect, with these fields as well."""
    return {A: a_request, C: c_request, R: r_request}[dialect](user("hi"), **fields)


def user(content: Any) -> dict[str, Any]:
    """Returns a user's message; the same in all dialects if `content` is a text."""
    return {"role": "user", "content": content}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    """Returns a message of the model; the same in all dialects if `content` is a text."""
    return {"role": "assistant", "content": content, **fields}


def text(value: str) -> dict[str, Any]:
    """Returns a block of Anthropic or a part of Chat."""
    return {"type": "text", "text": value}


def a_use(call_id: str, name: str = "f", **arguments: Any) -> dict[str, Any]:
    """Returns a call in an Anthropic history."""
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def a_result(call_id: str, content: Any, **fields: Any) -> dict[str, Any]:
    """Returns a result in an Anthropic history."""
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **fields}


def a_tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    """Returns an Anthropic tool."""
    return {"name": name, "description": f"does {name}", "input_schema": SCHEMA, **fields}


def c_use(call_id: str, arguments: str = "{}", name: str = "f") -> dict[str, Any]:
    """Returns a call in a chat history."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def c_result(call_id: str, content: Any) -> dict[str, Any]:
    """Returns a result in a chat history."""
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def c_tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    """Returns a chat tool."""
    function = {"name": name, "description": f"does {name}", "parameters": SCHEMA, **fields}
    return {"type": "function", "function": function}


def r_use(call_id: str, arguments: str = "{}", name: str = "f", **fields: Any) -> dict[str, Any]:
    """Returns a call in a Responses history; its `id` differs from its `call_id`."""
    item = {"type": "function_call", "id": f"fc_of_{call_id}", "call_id": call_id}
    return {**item, "name": name, "arguments": arguments, **fields}


def r_result(call_id: str, output: Any) -> dict[str, Any]:
    """Returns a result in a Responses history."""
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def r_tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    """Returns a Responses tool."""
    return {"type": "function", "name": name, "description": f"does {name}", "parameters": SCHEMA, **fields}


def codex_request() -> dict[str, Any]:
    """Returns what Codex sends in the second step of a turn (wire-contract D2)."""
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: begin_patch hunk end_patch"}
    return r_request(
        {"type": "message", "role": "developer", "content": [_input("You are a coding agent.")]},
        {"type": "message", "role": "user", "content": [_input("<environment_context/>")]},
        {"type": "message", "role": "user", "content": [_input("fix a.py")]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Look first."}],
            "encrypted_content": "gAAAA-of-somebody-else",
        },
        r_use("call_1", '{"cmd":["cat","a.py"]}', "exec_command"),
        r_result("call_1", "print(1)\n"),
        {
            "type": "custom_tool_call",
            "id": "ctc_1",
            "call_id": "call_2",
            "name": "apply_patch",
            "input": PATCH,
        },
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "Done!"},
        r_use("call_3", '{"q":"x"}', "search", namespace="mcp__gh"),
        r_result("call_3", "nothing"),
        stream=True,
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="0199-session",
        parallel_tool_calls=True,
        tool_choice="auto",
        reasoning={"effort": "medium", "summary": "auto"},
        text={"verbosity": "low"},
        client_metadata={"x-codex-installation-id": "secret-installation"},
        tools=[
            r_tool("exec_command", strict=False),
            {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": grammar},
            {"type": "namespace", "name": "mcp__gh", "description": "GitHub.", "tools": [r_tool("search")]},
            {"type": "tool_search", "execution": "client"},
            {"type": "web_search", "external_web_access": False},
        ],
    )


def _input(value: str) -> dict[str, Any]:
    return {"type": "input_text", "text": value}


CLAUDE_CODE_USER = json.dumps(
    {
        "device_id": "5d41402abc4b2a76b9719d911017c592",
        "account_uuid": "1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        "session_id": "9f0c1d2e-aaaa-bbbb-cccc-123456789abc",
    }
)
