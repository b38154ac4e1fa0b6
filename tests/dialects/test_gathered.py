"""Streams put together are what the same provider's plain answer would have been."""

import json
from typing import Any

import pytest

from lurus_dialects.dialect import Dialect
from lurus_dialects.gathered import GatheredStream

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES


def of_events(*events: dict[str, Any]) -> bytes:
    """Returns events with their names."""
    return b"".join(b"event: %s\ndata: %s\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)


def of_chunks(*chunks: dict[str, Any]) -> bytes:
    """Returns chunks of one chat answer, with its end."""
    head = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "up",
        "service_tier": "auto",
    }
    lines = [json.dumps({**head, **chunk}) for chunk in chunks]
    return b"".join(b"data: %s\n\n" % line.encode() for line in [*lines, "[DONE]"])


def whole(dialect: Dialect, stream: bytes) -> Any:
    """Returns the answer, fed byte by byte."""
    gathered = GatheredStream(dialect)
    for i in range(len(stream)):
        gathered.feed(stream[i : i + 1])
    gathered.finish()
    assert gathered.terminal_ok
    return json.loads(gathered.whole())


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the events of a block."""
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def test_anthropic() -> None:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "up", "future": {"x": 1}}
    begin = {"content": [], "stop_reason": None, "stop_sequence": None}
    usage = {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1}
    cited = {"type": "char_location", "cited_text": "x"}
    stream = of_events(
        {"type": "message_start", "message": {**head, **begin, "usage": usage}},
        {"type": "ping"},
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "h"},
            {"type": "thinking_delta", "thinking": "m"},
            {"type": "signature_delta", "signature": "sig"},
        ),
        *block(
            1,
            {"type": "text", "text": ""},
            {"type": "text_delta", "text": "\ud83d"},
            {"type": "text_delta", "text": "\ude00 hi"},
            {"type": "citations_delta", "citation": cited},
        ),
        *block(2, {"type": "redacted_thinking", "data": "x"}),
        *block(
            3,
            {"type": "tool_use", "id": "t", "name": "f", "input": {}},
            {"type": "input_json_delta", "partial_json": ""},
            {"type": "input_json_delta", "partial_json": '{"n":1234567890'},
            {"type": "input_json_delta", "partial_json": "1234567890}"},
        ),
        *block(4, {"type": "tool_use", "id": "u", "name": "g", "input": {}}),
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {"output_tokens": 50, "input_tokens": None},
        },
        {"type": "message_stop"},
    )
    assert whole(A, stream) == {
        **head,
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "sig"},
            {"type": "text", "text": "\U0001f600 hi", "citations": [cited]},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"n": 12345678901234567890}},
            {"type": "tool_use", "id": "u", "name": "g", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 50},
    }


def test_an_unknown_delta_is_counted() -> None:
    gathered = GatheredStream(A)
    start: dict[str, Any] = {"type": "message_start", "message": {"type": "message"}}
    gathered.feed(of_events(start, *block(0, {"type": "hologram"}, {"type": "hologram_delta"})))
    assert gathered.lost_event_count == 1


def chosen(delta: dict[str, Any], index: int = 0, **more: Any) -> dict[str, Any]:
    """Returns a chunk with one choice."""
    return {"choices": [{"index": index, "delta": delta, "finish_reason": None, **more}], "usage": None}


def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    """Returns a fragment of a call."""
    function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
    return {"tool_calls": [{"index": index, "function": function, **more}]}


def test_chat() -> None:
    first, second = ({"token": t, "logprob": -0.5, "bytes": None, "top_logprobs": []} for t in "ab")
    ended = {"finish_reason": "tool_calls"}
    stream = of_chunks(
        chosen({"role": "assistant", "content": "", "refusal": None}),
        chosen({"content": "a"}, logprobs={"content": [first], "refusal": None}),
        chosen({"content": "b"}, logprobs={"content": [second], "refusal": None}),
        chosen(call(0, "", id="x", type="function", name="f")),
        chosen(call(1, "", id="y", type="function", name="g")),
        chosen(call(0, '{"a":')),
        chosen(call(1, "{}", id="y", name="g")),
        chosen(call(0, "1}")),
        chosen({"role": "assistant", "content": "other"}, 1),
        chosen({}, **ended),
        chosen({}, 1, finish_reason="stop"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
    )
    assert whole(C, stream) == {
        "id": "c1",
        "object": "chat.completion",
        "created": 7,
        "model": "up",
        "service_tier": "auto",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "ab",
                    "refusal": None,
                    "tool_calls": [
                        {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                        {"id": "y", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ],
                },
                "logprobs": {"content": [first, second], "refusal": None},
                "finish_reason": "tool_calls",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "other"},
                "logprobs": None,
                "finish_reason": "stop",
            },
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }


@pytest.mark.parametrize("has_output", [True, False])
@pytest.mark.parametrize("kind", ["completed", "incomplete"])
def test_responses(kind: str, has_output: bool) -> None:
    item = {"type": "message", "id": "i", "content": [{"type": "output_text", "text": "hi"}]}
    response = {"id": "resp_1", "status": kind, "output": [item], "usage": {"input_tokens": 1}}
    told = response if has_output else {**response, "output": []}
    stream = of_events(
        {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_1", "output": []}},
        {"type": "response.output_item.done", "sequence_number": 1, "item": item},
        {"type": f"response.{kind}", "sequence_number": 2, "response": told},
    )
    assert whole(R, stream) == response
