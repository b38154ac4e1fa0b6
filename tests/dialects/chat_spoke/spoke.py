"""Runs requests and answers through the hub, without a gateway around it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from lurus.provider.v1.provider_pb2 import ProviderQuirks
from lurus.routing.v1.chat_pb2 import StreamChatRequest, StreamChatResponse
from lurus_common.errors import LurusError
from lurus_dialects import translate
from lurus_dialects.dialect import Dialect
from lurus_dialects.sse import SseParser
from lurus_dialects.translation import Asked, Losses, Target, ToolName

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES
CHAT_ID = "chatcmpl-test"


class Sent:
    """A request of one dialect as a provider of another gets it."""

    def __init__(
        self, source: Dialect, target: Dialect, body: Any, *, is_streaming: bool = False, **fields: Any
    ) -> None:
        quirks = ProviderQuirks(
            **{k: v for k, v in fields.items() if k in ProviderQuirks.DESCRIPTOR.fields_by_name}
        )
        others = {k: v for k, v in fields.items() if k not in ProviderQuirks.DESCRIPTOR.fields_by_name}
        self.losses = Losses()
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.request = translate.read_request(source, raw, self.losses)
        to = Target(target, "upstream-model", "prov", quirks, **others)
        written = translate.write_request(self.request, to, self.losses, is_streaming=is_streaming)
        self.raw, self.tool_names = written.body, written.tool_names
        self.body: Any = json.loads(written.body)

    @property
    def messages(self) -> list[Any]:
        """The messages that the provider gets."""
        messages: list[Any] = self.body["messages"]
        return messages


def refused(source: Dialect, target: Dialect, body: Any, **quirks: Any) -> str:
    """Returns the place for which a request is refused."""
    with pytest.raises(LurusError) as caught:
        Sent(source, target, body, **quirks)
    param: str = caught.value.metadata["param"]
    assert caught.value.message.startswith(param)
    return param


def read(
    dialect: Dialect, stream: bytes, tool_names: Mapping[str, ToolName] | None = None
) -> list[StreamChatResponse]:
    """Returns what a provider's stream says, its end included."""
    parser, reader = SseParser(), translate.stream_reader(dialect, tool_names or {})
    events = list(parser.feed(stream))
    last = parser.finish()
    said = [
        said for e in [*events, *([last] if last else [])] if e.data for said in reader.read(e.name, e.data)
    ]
    return said + reader.end()


def asked(**fields: Any) -> Asked:
    """Returns what a writer knows of its request."""
    fields = {"response_id": CHAT_ID, "create_seconds": 7, **fields}
    return Asked(request=StreamChatRequest(model="alias"), **fields)


def write(dialect: Dialect, events: Iterable[StreamChatResponse], **fields: Any) -> bytes:
    """Returns events as a client's stream."""
    writer = translate.stream_writer(dialect, asked(**fields))
    return b"".join([writer.write(event) for event in events])


def chunks(stream: bytes) -> list[Any]:
    """Returns the JSON of a chat stream, the terminator as a string."""
    datas = [event.data for event in SseParser().feed(stream) if event.data]
    return [data.decode() if data == b"[DONE]" else json.loads(data) for data in datas]


def chat(dialect: Dialect, *stream: bytes, **fields: Any) -> list[Any]:
    """Returns the chunks that a chat client gets of a provider's stream."""
    return chunks(write(C, read(dialect, b"".join(stream)), **fields))


def deltas(found: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the deltas of chunks."""
    return [chunk["choices"][0]["delta"] for chunk in found if isinstance(chunk, dict) and chunk["choices"]]


def content(found: Sequence[Any], name: str = "content") -> str:
    """Returns the text of chunks."""
    return "".join(delta.get(name) or "" for delta in deltas(found))


def finish_reason(found: Sequence[Any]) -> Any:
    """Returns why an answer ended, which one chunk says."""
    (reason,) = [
        chunk["choices"][0]["finish_reason"]
        for chunk in found
        if isinstance(chunk, dict) and chunk["choices"] and chunk["choices"][0]["finish_reason"]
    ]
    return reason


def calls(found: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Returns id, name and arguments of the calls in chunks, put together as the SDK does: by joining all."""
    joined: list[list[str]] = []
    for delta in deltas(found):
        for call in delta.get("tool_calls", ()):
            inner = call.get("function") or call.get("custom")
            assert call["index"] <= len(joined), "an index that the SDK cannot reach"
            if call["index"] == len(joined):
                joined.append(["", "", ""])
            parts = (call.get("id"), inner.get("name"), inner.get("arguments") or inner.get("input"))
            for place, part in enumerate(parts):
                joined[call["index"]][place] += part or ""
    return [(one, two, three) for one, two, three in joined]


def blocks(said: Sequence[StreamChatResponse]) -> list[Any]:
    """Returns the blocks of a reader's events, and checks that each is begun and ended once."""
    kinds: dict[int, Any] = {}
    found: dict[int, Any] = {}
    open_: set[int] = set()
    for event in said:
        index, kind = event.block_index, event.WhichOneof("event")
        if kind == "block_start":
            assert index == len(kinds)
            kinds[index], found[index] = event.block_start.kind, ""
            open_.add(index)
        elif kind in ("text_delta", "thinking_delta", "arguments_delta"):
            assert index in open_
            found[index] += getattr(event, kind)
        elif kind in ("block_end", "tool_call"):
            open_.remove(index)
            if kind == "tool_call":
                call = event.tool_call
                assert call.arguments.decode() == (found[index] or "{}")
                found[index] = (call.tool_call_id, call.name, call.arguments.decode())
        elif kind == "finish":
            assert not open_
    return [found[index] for index in sorted(found)]
