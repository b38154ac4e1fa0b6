"""Short ways to read, write and compare, shared by the tests of this dialect."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lurus.provider.v1.provider_pb2 import ProviderQuirks
from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatBlockEnd,
    ChatBlockStart,
    ChatToolCall,
    StreamChatRequest,
    StreamChatResponse,
)
from lurus_dialects.anthropic.answer_reader import StreamReader
from lurus_dialects.anthropic.answer_writer import StreamWriter
from lurus_dialects.anthropic.request_reader import read_request
from lurus_dialects.anthropic.request_writer import write_request
from lurus_dialects.dialect import Dialect
from lurus_dialects.sse import SseParser
from lurus_dialects.translation import Asked, Losses, Target, ToolName

TEXT, THINKING = chat_pb2.CHAT_BLOCK_KIND_TEXT, chat_pb2.CHAT_BLOCK_KIND_THINKING
CALL, REFUSAL = chat_pb2.CHAT_BLOCK_KIND_TOOL_CALL, chat_pb2.CHAT_BLOCK_KIND_REFUSAL


def target(**more: Any) -> Target:
    """Returns an Anthropic provider; keyword arguments are quirks, but for those of `Target`."""
    own = {name: more.pop(name) for name in ("max_output_tokens", "efforts", "provider_id") if name in more}
    return Target(Dialect.ANTHROPIC, "claude-up", quirks=ProviderQuirks(**more), **own)


def read(body: Mapping[str, Any] | bytes, losses: Losses | None = None) -> StreamChatRequest:
    """Returns a client's request in the hub's form."""
    text = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    return read_request(text, losses or Losses())


def write(
    request: StreamChatRequest, to: Target | None = None, losses: Losses | None = None
) -> dict[str, Any]:
    """Returns what a provider is sent."""
    written = write_request(request, to or target(), losses or Losses(), is_streaming=False)
    body: dict[str, Any] = json.loads(written.body)
    return body


def asked(**more: Any) -> Asked:
    """Returns what a writer knows of a request."""
    fields: dict[str, Any] = {
        "request": StreamChatRequest(model="asked-model"),
        "response_id": "msg_01H",
        "create_seconds": 1,
        "estimated_input_tokens": 5,
        "provider_id": "prov",
        "upstream_model": "up",
    }
    return Asked(**{**fields, **more})


def read_stream(
    stream: bytes, tool_names: Mapping[str, ToolName] | None = None, end: bool = True
) -> list[StreamChatResponse]:
    """Returns what a provider's stream says."""
    parser, reader = SseParser(), StreamReader(tool_names or {})
    events = [event for block in parser.feed(stream) for event in reader.read(block.name, block.data)]
    return events + (reader.end() if end else [])


def sse(*datas: Mapping[str, Any]) -> bytes:
    """Returns a stream of events, which are named by their types."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (data["type"].encode(), json.dumps(data).encode()) for data in datas
    )


def write_stream(events: Iterable[StreamChatResponse], of: Asked | None = None) -> bytes:
    """Returns what a client is sent."""
    writer = StreamWriter(of or asked())
    return b"".join(writer.write(event) for event in events)


def sent(stream: bytes) -> list[dict[str, Any]]:
    """Returns the events of a written stream, after a look at the grammar (A.1.5)."""
    events: list[dict[str, Any]] = []
    for block in SseParser().feed(stream):
        event = json.loads(block.data)
        assert block.name.decode() == event["type"]
        events.append(event)
    check_grammar(events)
    return events


def check_grammar(events: list[dict[str, Any]]) -> None:
    """Fails unless one block is open at a time and indexes are contiguous."""
    assert events[0]["type"] in ("message_start", "error")
    open_index, next_index, signatures = None, 0, 0
    for event in events[1:]:
        kind = event["type"]
        if kind == "content_block_start":
            assert open_index is None and event["index"] == next_index
            open_index, next_index, signatures = next_index, next_index + 1, 0
            block = event["content_block"]
        elif kind == "content_block_delta":
            assert event["index"] == open_index
            assert signatures == 0
            signatures += event["delta"]["type"] == "signature_delta"
        elif kind == "content_block_stop":
            assert event["index"] == open_index
            assert signatures == (block["type"] == "thinking")
            open_index = None
        elif kind == "message_delta":
            assert open_index is None
    if events[-1]["type"] != "error":
        assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]


def content(stream: bytes) -> list[dict[str, Any]]:
    """Returns the blocks of a written stream as a client puts them together."""
    blocks: list[dict[str, Any]] = []
    for event in sent(stream):
        if event["type"] == "content_block_start":
            blocks.append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            for name in ("text", "thinking", "signature"):
                if name in delta:
                    blocks[-1][name] += delta[name]
            blocks[-1]["json"] += delta.get("partial_json", "")
    for block in blocks:
        arguments = block.pop("json")
        if block["type"] == "tool_use":
            assert block["input"] == {}
            block["input"] = json.loads(arguments or "{}")
    return blocks


def begin(index: int, kind: int, /, **call: Any) -> StreamChatResponse:
    """Returns the start of a block."""
    start = ChatBlockStart(kind=kind, tool_call=ChatToolCall(**call) if call else None)  # type: ignore[arg-type]
    return StreamChatResponse(block_start=start, block_index=index)


def text(index: int, words: str) -> StreamChatResponse:
    """Returns a delta of text."""
    return StreamChatResponse(text_delta=words, block_index=index)


def arguments(index: int, part: str) -> StreamChatResponse:
    """Returns a delta of a call."""
    return StreamChatResponse(arguments_delta=part, block_index=index)


def called(index: int, whole: str, /, **call: Any) -> StreamChatResponse:
    """Returns the end of a call."""
    return StreamChatResponse(tool_call=ChatToolCall(arguments=whole.encode(), **call), block_index=index)


def stop(index: int) -> StreamChatResponse:
    """Returns the end of another block."""
    return StreamChatResponse(block_end=ChatBlockEnd(), block_index=index)


START = StreamChatResponse(start={"response_id": "x", "model": "y"})


def finish(kind: int = chat_pb2.CHAT_STOP_KIND_END_TURN, **tokens: int) -> StreamChatResponse:
    """Returns the end of an answer; with counts, if some are given."""
    return StreamChatResponse(finish={"kind": kind, "tokens": tokens, "has_provider_tokens": bool(tokens)})
