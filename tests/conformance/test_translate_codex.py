"""What the real Codex makes of an Anthropic provider's answers (wire-contract E.5)."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.rig import Gateway, Provider
from tests.support.provider_streams import (
    a_delta,
    a_end,
    a_error,
    a_open,
    a_start,
    a_text,
    a_thinking,
    a_tool,
)
from tests.support.scripted_upstream import Exchange, stream

CODEX = Path(__file__).parents[1] / "clients" / "node_modules" / ".bin" / "codex"
TURN_SECONDS = 90
SIGNATURE = "EqQB-signature"

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not CODEX.exists(), reason="the Codex CLI is not installed: npm was not here"),
]


async def turn(gateway: Gateway, provider: Provider, folder: Path) -> list[dict[str, Any]]:
    """Lets Codex take one turn, and returns its events; fails if it failed."""
    home = folder / "codex"
    home.mkdir()
    (home / "config.toml").write_text(
        f"""
model = "{provider.model}"
model_provider = "lurus"

[model_providers.lurus]
name = "Lurus Switch"
base_url = "{gateway.mesh.base_url}/v1"
env_key = "LURUS_API_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 2
"""
    )
    options = ["--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    codex = await asyncio.create_subprocess_exec(
        str(CODEX),
        "exec",
        *options,
        "Go.",
        env={**os.environ, "CODEX_HOME": str(home), "LURUS_API_KEY": gateway.key},
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(codex.communicate(), TURN_SECONDS)
    except TimeoutError:
        codex.kill()
        raise
    assert codex.returncode == 0, (output[-3000:] + errors[-3000:]).decode(errors="replace")
    return [json.loads(line) for line in output.splitlines() if line.startswith(b"{")]


def said(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Returns the finished items of a kind."""
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    return [item for item in items if item["type"] == kind]


async def test_Y09_codex_takes_thinking_text_and_calls(gateway: Gateway, tmp_path: Path) -> None:
    provider = await gateway.add("A")
    provider.upstream.scripts = [_two_calls, stream([a_start(), a_text(0, "All done."), a_end()])]
    events = await turn(gateway, provider, tmp_path)
    assert any(event["type"] == "turn.completed" for event in events)
    assert [item["text"] for item in said(events, "agent_message")] == ["I look.", "All done."]
    outputs = [item["aggregated_output"] for item in said(events, "command_execution")]
    assert sorted(outputs) == ["one\n", "two\n"]
    _, second = provider.upstream.requests
    turns = second.json()["messages"]
    thought = {"type": "thinking", "thinking": "Let me see.", "signature": SIGNATURE}
    assert turns[-2]["content"][0] == thought
    results = [block for block in turns[-1]["content"] if block["type"] == "tool_result"]
    assert [result["tool_use_id"] for result in results] == ["toolu_1", "toolu_2"]
    assert "one" in json.dumps(results[0]) and "two" in json.dumps(results[1])


async def _two_calls(exchange: Exchange) -> None:
    tools = {tool["name"] for tool in exchange.request.json()["tools"]}
    assert "exec_command" in tools, tools
    events = [
        a_start(),
        a_thinking(0, "Let me see.", SIGNATURE),
        a_text(1, "I ", "look."),
        a_tool(2, "toolu_1", "exec_command", '{"cmd":', '"echo one"}'),
        a_tool(3, "toolu_2", "exec_command", '{"cmd":"echo two"}'),
        a_end("tool_use"),
    ]
    await stream(events)(exchange)


async def test_Y22_codex_reconnects_once_and_completes(gateway: Gateway, tmp_path: Path) -> None:
    provider = await gateway.add("A")
    broken = [
        a_start(),
        a_open(0, {"type": "text", "text": ""}),
        a_delta(0, "text_delta", text="a"),
        a_delta(0, "text_delta", text="b"),
        a_error("overloaded_error", "Overloaded"),
    ]
    provider.upstream.scripts = [stream(broken), stream([a_start(), a_text(0, "All done."), a_end()])]
    events = await turn(gateway, provider, tmp_path)
    assert any(event["type"] == "turn.completed" for event in events)
    assert [item["text"] for item in said(events, "agent_message")] == ["All done."]
    assert len(provider.upstream.requests) == 2
