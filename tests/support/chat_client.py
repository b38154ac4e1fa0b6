"""Reads answers of OpenAI Chat Completions as its clients do (wire-contract A.2.5)."""

import json
from typing import Any

from tests.support.told import Told


def read_stream(events: list[tuple[str, bytes]]) -> Told:
    """Returns what a client makes of the events of a stream."""
    reader = _ChatClient()
    for name, data in events:
        assert not name, "chunks have no names"
        assert not reader.told.is_complete and reader.told.error is None, f"{data!r} after the end"
        if data == b"[DONE]":
            reader.end()
        else:
            reader.read(json.loads(data))
    return reader.told


class _ChatClient:
    """Accumulates as the SDK does: it concatenates whatever is repeated."""

    def __init__(self) -> None:
        self.told = Told()
        self.identity: tuple[Any, ...] | None = None
        self.parts: dict[str, str] = {}
        self.tools: list[dict[str, str]] = []

    def read(self, chunk: dict[str, Any]) -> None:
        self.told.events.append(chunk)
        json.dumps(chunk, ensure_ascii=False).encode()
        if "error" in chunk:
            self.told.error = chunk["error"]
            assert {"message", "type", "param", "code"} <= chunk["error"].keys()
            self._keep()
            return
        assert not self.told.usage, "a chunk after the usage chunk"
        identity = (chunk["id"], chunk["created"], chunk["model"], chunk["object"])
        assert identity[3] == "chat.completion.chunk"
        if self.identity is None:
            assert chunk["choices"][0]["delta"].get("role") == "assistant"
            self.identity, self.told.model = identity, chunk["model"]
        assert identity == self.identity, "id, created or model changed"
        if not chunk["choices"]:
            self.told.usage = chunk["usage"]
            assert self.told.finish and self.told.usage
            return
        (choice,) = chunk["choices"]
        assert not self.told.finish, "a choice after the finish"
        self._delta(choice["delta"])
        if choice["finish_reason"]:
            assert not choice["delta"]
            self.told.finish = choice["finish_reason"]

    def _delta(self, delta: dict[str, Any]) -> None:
        for key, kind in (("reasoning_content", "thinking"), ("content", "text"), ("refusal", "refusal")):
            if delta.get(key):
                self.parts[kind] = self.parts.get(kind, "") + delta[key]
        for call in delta.get("tool_calls", ()):
            assert call["index"] <= len(self.tools), "a gap between calls"
            if call["index"] == len(self.tools):
                self.tools.append({"id": "", "name": "", "arguments": "", "type": ""})
            self._fragment(self.tools[call["index"]], call)

    def _fragment(self, tool: dict[str, str], call: dict[str, Any]) -> None:
        tool["id"] += call.get("id") or ""
        tool["type"] += call.get("type") or ""
        inner = call.get("function") or call.get("custom") or {}
        tool["name"] += inner.get("name") or ""
        tool["arguments"] += inner.get("arguments") or inner.get("input") or ""

    def end(self) -> None:
        assert self.told.finish, "no finish_reason"
        self.told.is_complete = True
        self._keep()

    def _keep(self) -> None:
        for kind in ("thinking", "text", "refusal"):
            if kind in self.parts:
                seal = ("",) if kind == "thinking" else ()
                self.told.blocks.append((kind, self.parts[kind], *seal))
        for tool in self.tools:
            kind = {"function": "tool", "custom": "custom"}[tool["type"]]
            self.told.blocks.append((kind, tool["id"], tool["name"], tool["arguments"]))


def read_body(body: dict[str, Any]) -> Told:
    """Returns what a client makes of a plain answer."""
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    message = choice["message"]
    assert message["role"] == "assistant" and "content" in message
    usage = body["usage"]
    result = Told(
        finish=choice["finish_reason"], usage=usage, model=body["model"], is_complete=True, whole=body
    )
    if message.get("reasoning_content"):
        result.blocks.append(("thinking", message["reasoning_content"], ""))
    if message["content"]:
        result.blocks.append(("text", message["content"]))
    if message.get("refusal"):
        result.blocks.append(("refusal", message["refusal"]))
    for call in message.get("tool_calls", ()):
        kind, inner = ("custom", call["custom"]) if call["type"] == "custom" else ("tool", call["function"])
        arguments = inner["input" if kind == "custom" else "arguments"]
        result.blocks.append((kind, call["id"], inner["name"], arguments))
    return result
