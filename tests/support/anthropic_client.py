"""Reads answers of Anthropic Messages as its clients do (wire-contract A.1.5)."""

import json
from typing import Any

from tests.support.told import Told, event_json

_A_DELTAS = {
    "text": {"text_delta", "citations_delta"},
    "thinking": {"thinking_delta", "signature_delta"},
    "redacted_thinking": set[str](),
    "tool_use": {"input_json_delta"},
}


def read_stream(events: list[tuple[str, bytes]]) -> Told:
    """Returns what a client makes of the events of a stream."""
    reader = _AnthropicClient()
    for name, data in events:
        reader.read(event_json(name, data))
    return reader.told


class _AnthropicClient:
    def __init__(self) -> None:
        self.told = Told()
        self.is_begun = False
        self.index = -1
        self.block: dict[str, Any] | None = None
        self.parts: list[str] = []
        self.seals: list[str] = []

    def read(self, event: dict[str, Any]) -> None:
        self.told.events.append(event)
        assert not self.told.is_complete and self.told.error is None, f"{event} after the end"
        if event["type"] == "ping":
            return
        if event["type"] == "error":
            self.told.error = event["error"]
            assert event["request_id"]
            return
        assert self.is_begun != (event["type"] == "message_start"), f"{event} out of place"
        getattr(self, f"_on_{event['type']}")(event)

    def _on_message_start(self, event: dict[str, Any]) -> None:
        self.is_begun = True
        message = event["message"]
        assert message["role"] == "assistant" and message["content"] == [] and message["type"] == "message"
        assert message["id"].startswith("msg_") and message["stop_reason"] is None
        assert message["usage"]["input_tokens"] >= 0 and message["usage"]["output_tokens"] >= 0
        self.told.model = message["model"]

    def _on_content_block_start(self, event: dict[str, Any]) -> None:
        assert self.block is None, "two blocks are open"
        assert event["index"] == self.index + 1, "a gap between blocks"
        assert not self.told.finish, "a block after message_delta"
        self.index, self.block, self.parts, self.seals = event["index"], event["content_block"], [], []
        if self.block["type"] == "tool_use":
            assert self.block["input"] == {} and self.block["id"]

    def _on_content_block_delta(self, event: dict[str, Any]) -> None:
        assert self.block is not None and event["index"] == self.index, "a delta for no open block"
        delta = event["delta"]
        assert delta["type"] in _A_DELTAS[self.block["type"]], f"{delta} in {self.block}"
        assert not self.seals, "a delta after the signature"
        if delta["type"] == "signature_delta":
            self.seals.append(delta["signature"])
        elif delta["type"] != "citations_delta":
            part = delta[
                {"text_delta": "text", "thinking_delta": "thinking"}.get(delta["type"], "partial_json")
            ]
            assert part or delta["type"] == "input_json_delta", "an empty delta"
            self.parts.append(part)

    def _on_content_block_stop(self, event: dict[str, Any]) -> None:
        assert self.block is not None and event["index"] == self.index
        text = "".join(self.parts)
        kind = self.block["type"]
        if kind == "tool_use":
            self.told.blocks.append(("tool", self.block["id"], self.block["name"], text or "{}"))
        elif kind == "thinking":
            assert len(self.seals) == 1, "a thinking block has one signature"
            self.told.blocks.append(("thinking", text, self.seals[0]))
        elif kind == "redacted_thinking":
            self.told.blocks.append(("thinking", "", self.block["data"]))
        else:
            assert text, "an empty text block"
            self.told.blocks.append(("text", text))
        self.block = None

    def _on_message_delta(self, event: dict[str, Any]) -> None:
        assert self.block is None, "message_delta amid a block"
        self.told.finish = event["delta"]["stop_reason"] or self.told.finish
        assert "output_tokens" in event["usage"]
        self.told.usage.update(event["usage"])

    def _on_message_stop(self, event: dict[str, Any]) -> None:
        assert self.told.finish, "no stop_reason"
        self.told.is_complete = True


def read_body(body: dict[str, Any]) -> Told:
    """Returns what a client makes of a plain answer."""
    assert body["type"] == "message" and body["role"] == "assistant" and body["id"].startswith("msg_")
    result = Told(
        finish=body["stop_reason"], usage=body["usage"], model=body["model"], is_complete=True, whole=body
    )
    assert {"input_tokens", "output_tokens"} <= body["usage"].keys()
    for block in body["content"]:
        if block["type"] == "tool_use":
            arguments = json.dumps(block["input"], separators=(",", ":"), ensure_ascii=False)
            result.blocks.append(("tool", block["id"], block["name"], arguments))
        elif block["type"] == "thinking":
            result.blocks.append(("thinking", block["thinking"], block["signature"]))
        elif block["type"] == "redacted_thinking":
            result.blocks.append(("thinking", "", block["data"]))
        else:
            assert block["type"] == "text" and block["text"]
            result.blocks.append(("text", block["text"]))
    return result
