"""The Codex CLI against a running mesh: one turn with a tool call, key and model of the sandbox."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.support.mesh import Mesh

CODEX = Path(__file__).parents[1] / "clients" / "node_modules" / ".bin" / "codex"
TURN_SECONDS = 90

pytestmark = pytest.mark.skipif(not CODEX.exists(), reason="the Codex CLI is not installed: npm was not here")


def write_config(home: Path, mesh: Mesh) -> None:
    home.mkdir()
    (home / "config.toml").write_text(
        f"""
model = "sandbox-tools"
model_provider = "lurus"

[model_providers.lurus]
name = "Lurus Switch"
base_url = "{mesh.base_url}/v1"
env_key = "LURUS_API_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
    )


def test_a_turn_with_a_tool_call_completes_and_is_billed(mesh: Mesh, tmp_path: Path) -> None:
    write_config(tmp_path / "codex", mesh)
    before = set(request_ids(mesh))
    command = [
        str(CODEX),
        "exec",
        "--json",
        "--skip-git-repo-check",
        "--dangerously-bypass-approvals-and-sandbox",
    ]
    done = subprocess.run(
        [*command, "Run a command."],
        env={**os.environ, "CODEX_HOME": str(tmp_path / "codex"), "LURUS_API_KEY": mesh.key},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TURN_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    commands = [item for item in items if item["type"] == "command_execution"]
    assert commands and "hello from the sandbox" in commands[0]["aggregated_output"]
    assert any(item["type"] == "agent_message" for item in items)
    assert any(event["type"] == "turn.completed" for event in events)
    for request_id in set(request_ids(mesh)) - before:
        mesh.transaction(request_id)


def request_ids(mesh: Mesh) -> list[str]:
    rows = mesh.rest("GET", "logs?page_size=100").get("events", [])
    return [row["request_id"] for row in rows if row["path"] == "/v1/responses"]
