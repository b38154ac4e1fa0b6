"""Writes a whole answer as the content of one message."""

from collections.abc import Sequence
from typing import Any

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatBlockStart,
    ChatFinish,
    ChatThinking,
    ChatToolCall,
    StreamChatResponse,
)
from lurus.usage.v1 import usage_pb2
from lurus_dialects.anthropic.answer_frame import (
    call_input,
    call_start,
    final_usage,
    is_vendor_block,
    message_json,
    sealed,
    stop_fields,
)
from lurus_dialects.translation import Asked
from lurus_dialects.usage import estimated_tokens


def body_bytes(events: Sequence[StreamChatResponse], asked: Asked) -> bytes:
    """Returns the message that `events` tell, of which the last is `finish`."""
    blocks: dict[int, _Block] = {}
    finish = ChatFinish()
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "finish":
            finish = event.finish
        elif kind == "vendor_event":
            _keep_vendor_block(event, blocks)
        elif kind == "block_start":
            blocks[event.block_index] = _Block(event.block_start)
        elif kind is not None and event.block_index in blocks:
            blocks[event.block_index].add(kind, event)
    written = [block.as_json(asked, position) for position, block in enumerate(blocks.values())]
    content = [block for block in written if block is not None]
    has_calls = any(block.kind == chat_pb2.CHAT_BLOCK_KIND_TOOL_CALL for block in blocks.values())
    estimate = estimated_tokens(sum(block.size for block in blocks.values()))
    message = message_json(
        asked, content, final_usage(finish, asked, estimate), stop_fields(finish, has_calls)
    )
    return msgspec.json.encode(message)


def _keep_vendor_block(event: StreamChatResponse, blocks: "dict[int, _Block]") -> None:
    field = event.vendor_event
    if field.dialect == usage_pb2.DIALECT_ANTHROPIC and is_vendor_block(field.name):
        block = _Block(ChatBlockStart())
        block.original = field.json
        # The hub gives such a block no position; none of its own is negative.
        blocks[-1 - len(blocks)] = block


class _Block:
    """What was said of one block."""

    def __init__(self, start: ChatBlockStart) -> None:
        self.kind = start.kind
        self.original = b""
        self.size = 0
        self._texts: list[str] = []
        self._citations: list[msgspec.Raw] = []
        self._seal: ChatThinking | None = None
        self._call: ChatToolCall = start.tool_call

    def add(self, kind: str, event: StreamChatResponse) -> None:
        """Takes one event of the block."""
        if kind in ("text_delta", "thinking_delta"):
            text: str = getattr(event, kind)
            self._texts.append(text)
            self.size += len(text)
        elif kind == "tool_call":
            self._call = event.tool_call
            self.size += len(event.tool_call.arguments)
        elif kind == "thinking_seal":
            self._seal = event.thinking_seal
        elif kind == "citation" and event.citation.original.dialect == usage_pb2.DIALECT_ANTHROPIC:
            self._citations.append(msgspec.Raw(event.citation.original.json))

    def as_json(self, asked: Asked, position: int) -> Any:
        """Returns the block; None if it is empty."""
        if self.original:
            return msgspec.Raw(self.original)
        text = "".join(self._texts)
        if self.kind == chat_pb2.CHAT_BLOCK_KIND_TOOL_CALL:
            return {**call_start(self._call, asked, position), "input": call_input(self._call)}
        if self.kind == chat_pb2.CHAT_BLOCK_KIND_THINKING:
            return self._thinking(text, asked)
        if not text and not self._citations:
            return None
        cited: dict[str, Any] = {"citations": self._citations} if self._citations else {}
        return {"type": "text", "text": text, **cited}

    def _thinking(self, text: str, asked: Asked) -> dict[str, Any] | None:
        if not text and self._seal is None:
            return None
        name, value = sealed(self._seal, asked)
        if name == "data":
            return {"type": "redacted_thinking", "data": value}
        return {"type": "thinking", "thinking": text, "signature": value}
