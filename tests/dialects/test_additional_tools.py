"""Codex brings the tools of models that it knows as an item of the input."""

import json

import pytest

from lurus_dialects.dialect import Dialect
from lurus_dialects.translate import read_request, write_request
from lurus_dialects.translation import Losses, Target

FUNCTION = {"type": "function", "name": "wait", "parameters": {"type": "object", "properties": {}}}
CUSTOM = {"type": "custom", "name": "exec", "format": {"type": "text"}}
ITEM = {
    "type": "additional_tools",
    "role": "developer",
    "tools": [{"type": "namespace", "name": "functions", "description": "d", "tools": [CUSTOM, FUNCTION]}],
}
BODY = json.dumps(
    {"model": "m", "input": [ITEM, {"type": "message", "role": "user", "content": "hi"}], "stream": True}
).encode()


@pytest.mark.parametrize("dialect", [Dialect.ANTHROPIC, Dialect.OPENAI_CHAT])
def test_they_reach_a_provider_of_another_dialect(dialect: Dialect) -> None:
    losses = Losses()
    request = read_request(Dialect.OPENAI_RESPONSES, BODY, losses)
    written = write_request(request, Target(dialect, "up"), losses, is_streaming=True)
    body = json.loads(written.body)
    names = [tool.get("function", tool)["name"] for tool in body["tools"]]
    assert names == ["functions__exec", "functions__wait"]
    assert written.tool_names["functions__exec"].namespace == "functions"
    assert written.tool_names["functions__exec"].is_wrapped
    assert [message["role"] for message in body["messages"]] == ["user"]


def test_they_stay_where_they_are_for_a_provider_of_their_own() -> None:
    losses = Losses()
    request = read_request(Dialect.OPENAI_RESPONSES, BODY, losses)
    body = json.loads(
        write_request(request, Target(Dialect.OPENAI_RESPONSES, "up"), losses, is_streaming=True).body
    )
    assert body["input"][0] == ITEM and "tools" not in body
