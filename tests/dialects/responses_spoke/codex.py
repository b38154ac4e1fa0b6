"""A request as Codex sends it (wire-contract D2)."""

from copy import deepcopy
from typing import Any

PATCH_TOOL: dict[str, Any] = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch" LF hunk+'},
}
NAMESPACE: dict[str, Any] = {
    "type": "namespace",
    "name": "mcp__gh",
    "description": "GitHub.",
    "tools": [
        {
            "type": "function",
            "name": "search",
            "description": "Finds code.",
            "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
            "strict": False,
            "defer_loading": True,
        }
    ],
}


def request(text: str = "say hi") -> dict[str, Any]:
    """Returns the body of a second turn, with everything that Codex puts into it."""
    return {
        "model": "gpt-5.6-codex",
        "input": [*_history(), _message("user", "input_text", text)],
        "tools": _tools(),
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "high", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "019a-session",
        "text": {"verbosity": "low"},
        "client_metadata": {"x-codex-installation-id": "b5e0"},
    }


def _tools() -> list[dict[str, Any]]:
    # Copies: a test that changes its request changes no other one's.
    patch, namespace = deepcopy((PATCH_TOOL, NAMESPACE))
    return [_exec_tool(), patch, {"type": "tool_search"}, {"type": "web_search"}, namespace]


def _message(role: str, kind: str, *texts: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text} for text in texts]}


def _history() -> list[dict[str, Any]]:
    return [
        _message("developer", "input_text", "You are Codex.", "<permissions>read only</permissions>"),
        _message("user", "input_text", "<environment_context>\u2028</environment_context>", "fix it 世界😀"),
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "**Planning**"}],
            "content": None,
            "encrypted_content": "gAAAAABo",
        },
        _message("assistant", "output_text", "I look.") | {"phase": "commentary"},
        {
            "type": "function_call",
            "name": "exec_command",
            "arguments": '{"cmd": "ls", "n": 12345678901234567890}',
            "call_id": "call_1",
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "a.py\n"},
        {
            "type": "custom_tool_call",
            "name": "apply_patch",
            "input": "*** Begin Patch\n",
            "call_id": "call_2",
        },
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "Done!"},
        {
            "type": "function_call",
            "name": "search",
            "namespace": "mcp__gh",
            "arguments": "{}",
            "call_id": "call_3",
        },
        {
            "type": "function_call_output",
            "call_id": "call_3",
            "output": [
                {"type": "input_text", "text": "found"},
                {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "high"},
            ],
        },
    ]


def _exec_tool() -> dict[str, Any]:
    properties = {"cmd": {"type": "string"}, "yield_time_ms": {"type": "number", "maximum": 1e3}}
    return {
        "type": "function",
        "name": "exec_command",
        "description": "Runs a command.",
        "strict": False,
        "parameters": {"type": "object", "properties": properties, "required": ["cmd"]},
    }
