"""Streams with what recorded ones seldom have: interleaved blocks, halved characters, odd framing, cuts."""

import json

from lurus_dialects.dialect import Dialect
from tests.support.provider_streams import (
    DONE,
    ResponsesStream,
    a_close,
    a_delta,
    a_end,
    a_error,
    a_open,
    a_start,
    a_text,
    a_thinking,
    a_tool,
    c_arguments,
    c_call,
    c_chunk,
    c_finish,
    c_start,
    c_text,
    named,
)

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES
_TEXT_BLOCK = {"type": "text", "text": ""}
# Letters of one to four bytes, and separators that are no line ends.
_LETTERS = "aé世😀\u2028\u0085\ufeff"


def _readable(stream: bytes) -> bytes:
    """Returns a stream whose letters stand as they are, not as escapes."""
    lines = stream.split(b"\n")
    data = b"data: {"
    return b"\n".join(
        b"data: " + json.dumps(json.loads(line[6:]), ensure_ascii=False).encode()
        if line[:7] == data
        else line
        for line in lines
    )


def _anthropic_blocks() -> bytes:
    opened = [a_open(0, _TEXT_BLOCK), a_open(1, {"type": "tool_use", "id": "t1", "name": "f", "input": {}})]
    deltas = [
        a_delta(1, "input_json_delta", partial_json='{"a"'),
        a_delta(0, "text_delta", text="one "),
        a_delta(1, "input_json_delta", partial_json=":1}"),
        a_delta(0, "text_delta", text="two"),
    ]
    return b"".join([named("ping"), a_start(), *opened, *deltas, a_close(1), a_close(0), a_end("tool_use")])


def _anthropic_oddities() -> bytes:
    citation = {"type": "char_location", "cited_text": "x", "document_index": 0, "document_title": "T"}
    hosted = {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {}}
    return b"".join(
        [
            b": comment\n\n",
            a_start(),
            a_thinking(0, _LETTERS, "sig"),
            a_thinking(1, "", "sig-of-nothing"),
            a_open(2, {"type": "redacted_thinking", "data": "xyz"}),
            a_close(2),
            a_open(3, hosted),
            a_delta(3, "input_json_delta", partial_json='{"query":"x"}'),
            a_close(3),
            a_open(4, {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": []}),
            a_close(4),
            a_open(5, _TEXT_BLOCK),
            a_delta(5, "text_delta", text="half \ud83d"),
            a_delta(5, "text_delta", text="\ude00 whole \ud83d"),
            a_delta(5, "citations_delta", citation=citation),
            a_close(5),
            named("future_event", x=1),
            a_end("stop_sequence", stop_sequence="X"),
        ]
    )


def _chat_calls() -> bytes:
    fragments = [c_arguments(0, '{"a'), c_arguments(1, '{"b":'), c_arguments(0, '":1}'), c_arguments(1, "2}")]
    calls = [c_call(0, "call_1", "f"), c_call(1, "call_2", "g")]
    return b"".join([c_start(), c_text("first"), *calls, *fragments, c_finish("stop")])


def _chat_oddities() -> bytes:
    return b"".join(
        [
            b"id: 7\nretry: 100\n\n",
            c_chunk(),
            c_chunk({}),
            c_chunk({"content": None, "reasoning_content": _LETTERS}),
            c_chunk({"reasoning": " more"}),
            c_text("", "half \ud83d", "\ude00 whole", _LETTERS),
            b'data:{"choices":[{"index":0,\ndata:"delta":{"content":"three lines"},\n',
            b'data: "finish_reason":null}]}\n\n',
            c_chunk({}, "length", usage={"prompt_tokens": 1, "completion_tokens": 2}),
            b"data:[DONE]\n\n",
        ]
    )


def _responses_items() -> bytes:
    stream = ResponsesStream()
    return b"".join(
        [
            stream.start(),
            stream.reasoning("one", "two"),
            stream.reasoning(),
            stream.text("half \ud83d", "\ude00 whole", _LETTERS),
            stream.text("only at the end", has_deltas=False),
            stream.call("call_1", "f", '{"a"', ":1}"),
            stream.call("call_2", "search", "{}", namespace="mcp__gh"),
            stream.call("call_3", "apply_patch", "*** Begin", " Patch\n", is_custom=True),
            stream.event("response.future", x=1),
            stream.end(),
        ]
    )


def _responses_failure() -> bytes:
    stream = ResponsesStream()
    error = {"code": "server_error", "message": "It broke."}
    return b"".join([stream.start(), stream.text("a", "b"), stream.end("failed", error=error)])


MADE: dict[str, tuple[Dialect, bytes]] = {
    "anthropic blocks": (A, _anthropic_blocks()),
    "anthropic oddities": (A, _anthropic_oddities()),
    "anthropic error": (A, a_start() + a_text(0, "half") + a_error("overloaded_error", "Overloaded")),
    "anthropic cut": (A, a_start() + a_text(0, "half") + a_tool(1, "t", "f", '{"a"')),
    "chat calls": (C, _chat_calls()),
    "chat oddities": (C, _chat_oddities()),
    "chat cut": (C, c_start() + c_text("half of")),
    "chat without usage": (C, c_start() + c_text("x") + c_chunk({}, "stop") + DONE),
    "chat without done": (C, c_start() + c_text("x") + c_chunk({}, "stop")),
    "responses items": (R, _responses_items()),
    "responses failure": (R, _responses_failure()),
}
MADE["anthropic letters"] = (A, _readable(a_start() + a_text(0, *_LETTERS, _LETTERS) + a_end()))
