"""How the sandbox provider writes an answer: as events of a stream or as a plain body.

The grammars are those of wire-contract §A.1.5, §A.2.5 and §A.3.5, all of the
official SDKs' helpers and of Codex included.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

from lurus_dialects.dialect import Dialect
from lurus_switch.sandbox_request import Turn
from lurus_switch.sandbox_script import Script

# An event of a stream, and whether it is content (which faults count).
Event = tuple[bytes, bool]


def stream(turn: Turn, script: Script, states_usage: bool) -> Iterator[Event]:
    """Yields the events of a streamed answer, terminator included."""
    return _STREAMS[turn.dialect](turn, script, states_usage)


def body(turn: Turn, script: Script, states_usage: bool) -> dict[str, Any]:
    """Returns a plain answer."""
    return _BODIES[turn.dialect](turn, script, states_usage)


def encode(value: object) -> bytes:
    """Returns compact JSON in UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def _named(value: dict[str, Any], is_content: bool = False) -> Event:
    return b"event: %s\ndata: %s\n\n" % (value["type"].encode(), encode(value)), is_content


def _id(prefix: str) -> str:
    return f"{prefix}sandbox{uuid.uuid4().hex[:20]}"


# Anthropic Messages


def _anthropic_usage(script: Script, output: int) -> dict[str, Any]:
    usage = script.usage
    return {
        "input_tokens": usage.fresh,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write,
            "ephemeral_1h_input_tokens": 0,
        },
        "output_tokens": output,
        "service_tier": "standard",
    }


def _anthropic_stop(script: Script) -> str:
    if script.is_cut_short:
        return "max_tokens"
    return "end_turn" if script.call is None else "tool_use"


def _anthropic_message(turn: Turn) -> dict[str, Any]:
    return {
        "id": _id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": turn.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _anthropic_call(script: Script) -> dict[str, Any]:
    assert script.call is not None
    return {"type": "tool_use", "id": _id("toolu_"), "name": script.call.name, "input": {}}


def _anthropic_stream(turn: Turn, script: Script, states_usage: bool) -> Iterator[Event]:
    start = {"usage": _anthropic_usage(script, 1)} if states_usage else {}
    yield _named({"type": "message_start", "message": {**_anthropic_message(turn), **start}})
    yield _named({"type": "ping"})
    index = 0
    if script.thinking:
        opening = {"type": "thinking", "thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in script.thinking]
        seal = {"type": "signature_delta", "signature": script.signature}
        yield from _anthropic_block(index, opening, [*deltas, seal])
        index += 1
    if script.text:
        deltas = [{"type": "text_delta", "text": piece} for piece in script.text]
        yield from _anthropic_block(index, {"type": "text", "text": ""}, deltas)
        index += 1
    if script.call is not None:
        fragments = ["", *script.call.fragments()]
        deltas = [{"type": "input_json_delta", "partial_json": fragment} for fragment in fragments]
        yield from _anthropic_block(index, _anthropic_call(script), deltas)
    delta = {"stop_reason": _anthropic_stop(script), "stop_sequence": None}
    end = {"usage": _anthropic_final_usage(script)} if states_usage else {}
    yield _named({"type": "message_delta", "delta": delta, **end})
    yield _named({"type": "message_stop"})


def _anthropic_final_usage(script: Script) -> dict[str, Any]:
    usage = _anthropic_usage(script, script.usage.output)
    if script.usage.reasoning:
        usage["output_tokens_details"] = {"thinking_tokens": script.usage.reasoning}
    return usage


def _anthropic_block(index: int, opening: dict[str, Any], deltas: list[dict[str, str]]) -> Iterator[Event]:
    yield _named({"type": "content_block_start", "index": index, "content_block": opening})
    for delta in deltas:
        yield _named({"type": "content_block_delta", "index": index, "delta": delta}, True)
    yield _named({"type": "content_block_stop", "index": index})


def _anthropic_body(turn: Turn, script: Script, states_usage: bool) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if script.thinking:
        content.append({"type": "thinking", "thinking": script.full_thinking, "signature": script.signature})
    if script.text:
        content.append({"type": "text", "text": script.full_text})
    if script.call is not None:
        content.append({**_anthropic_call(script), "input": json.loads(script.call.arguments)})
    answer = {**_anthropic_message(turn), "content": content, "stop_reason": _anthropic_stop(script)}
    return {**answer, "usage": _anthropic_final_usage(script)} if states_usage else answer


# OpenAI Chat Completions


def _chat_usage(script: Script) -> dict[str, Any]:
    usage = script.usage
    return {
        "prompt_tokens": usage.total_input,
        "completion_tokens": usage.output,
        "total_tokens": usage.total_input + usage.output,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _chat_finish(script: Script) -> str:
    if script.is_cut_short:
        return "length"
    return "stop" if script.call is None else "tool_calls"


def _chat_call(script: Script, arguments: str) -> dict[str, Any]:
    assert script.call is not None
    kind, key = ("custom", "input") if script.call.is_custom else ("function", "arguments")
    return {"id": _id("call_"), "type": kind, kind: {"name": script.call.name, key: arguments}}


def _chat_stream(turn: Turn, script: Script, states_usage: bool) -> Iterator[Event]:
    frame = {
        "id": _id("chatcmpl-"),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": turn.model,
    }
    has_usage_chunk = turn.include_usage and states_usage
    tail = {"usage": None} if has_usage_chunk else {}

    def chunk(delta: dict[str, Any], finish: str | None = None, is_content: bool = True) -> Event:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: %s\n\n" % encode({**frame, "choices": [choice], **tail}), is_content

    yield chunk({"role": "assistant", "content": "", "refusal": None}, is_content=False)
    for piece in script.thinking:
        yield chunk({"reasoning_content": piece})
    for piece in script.text:
        yield chunk({"content": piece})
    if script.call is not None:
        yield chunk({"tool_calls": [{"index": 0, **_chat_call(script, "")}]})
        kind, key = ("custom", "input") if script.call.is_custom else ("function", "arguments")
        for fragment in script.call.fragments():
            yield chunk({"tool_calls": [{"index": 0, kind: {key: fragment}}]})
    yield chunk({}, _chat_finish(script), is_content=False)
    if has_usage_chunk:
        yield b"data: %s\n\n" % encode({**frame, "choices": [], "usage": _chat_usage(script)}), False
    yield b"data: [DONE]\n\n", False


def _chat_body(turn: Turn, script: Script, states_usage: bool) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": script.full_text or None,
        "refusal": None,
        "annotations": [],
    }
    if script.thinking:
        message["reasoning_content"] = script.full_thinking
    if script.call is not None:
        message["tool_calls"] = [_chat_call(script, script.call.arguments)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _chat_finish(script)}
    answer = {
        "id": _id("chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": turn.model,
        "choices": [choice],
    }
    return {**answer, "usage": _chat_usage(script)} if states_usage else answer


# OpenAI Responses


def _responses_usage(script: Script) -> dict[str, Any]:
    usage = script.usage
    return {
        "input_tokens": usage.total_input,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write,
        },
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total_input + usage.output,
    }


def _response(turn: Turn) -> dict[str, Any]:
    return {
        "id": _id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": turn.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
    }


def _finished(
    response: dict[str, Any], script: Script, items: list[dict[str, Any]], states_usage: bool
) -> dict[str, Any]:
    details = {"reason": "max_output_tokens"} if script.is_cut_short else None
    return {
        **response,
        "status": "incomplete" if script.is_cut_short else "completed",
        "incomplete_details": details,
        "output": items,
        "usage": _responses_usage(script) if states_usage else None,
    }


class _Ladder:
    """The events of a Responses stream, numbered; finished items are kept."""

    def __init__(self, turn: Turn, script: Script) -> None:
        self._turn = turn
        self._script = script
        self._number = -1
        self.items: list[dict[str, Any]] = []

    def event(self, kind: str, is_content: bool = False, **fields: Any) -> Event:
        """Returns the next event."""
        self._number += 1
        return _named({"type": kind, "sequence_number": self._number, **fields}, is_content)

    def reasoning(self) -> Iterator[Event]:
        """Yields a reasoning item with one summary part."""
        sealed = self._script.signature if self._turn.shows_encrypted_reasoning else None
        part = {"type": "summary_text", "text": self._script.full_thinking}
        item: dict[str, Any] = {
            "id": _id("rs_"),
            "type": "reasoning",
            "summary": [],
            "encrypted_content": None,
        }
        done = {**item, "summary": [part], "encrypted_content": sealed}
        place: dict[str, Any] = {
            "item_id": item["id"],
            "output_index": len(self.items),
            "summary_index": 0,
        }
        yield self.event("response.output_item.added", output_index=len(self.items), item=item)
        empty = {**part, "text": ""}
        yield self.event("response.reasoning_summary_part.added", **place, part=empty)
        for piece in self._script.thinking:
            yield self.event("response.reasoning_summary_text.delta", True, **place, delta=piece)
        yield self.event("response.reasoning_summary_text.done", **place, text=part["text"])
        yield self.event("response.reasoning_summary_part.done", **place, part=part)
        yield self._done(done)

    def message(self) -> Iterator[Event]:
        """Yields a message with one text part."""
        text = self._script.full_text
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
        item: dict[str, Any] = {
            "id": _id("msg_"),
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        place: dict[str, Any] = {
            "item_id": item["id"],
            "output_index": len(self.items),
            "content_index": 0,
        }
        yield self.event("response.output_item.added", output_index=len(self.items), item=item)
        yield self.event("response.content_part.added", **place, part={**part, "text": ""})
        for piece in self._script.text:
            yield self.event("response.output_text.delta", True, **place, delta=piece, logprobs=[])
        yield self.event("response.output_text.done", **place, text=text, logprobs=[])
        yield self.event("response.content_part.done", **place, part=part)
        yield self._done({**item, "status": "completed", "content": [part]})

    def call(self) -> Iterator[Event]:
        """Yields a function call or a custom tool call."""
        call = self._script.call
        assert call is not None
        kind, key = ("custom_tool_call", "input") if call.is_custom else ("function_call", "arguments")
        stem = "response.custom_tool_call_input" if call.is_custom else "response.function_call_arguments"
        item: dict[str, Any] = {
            "id": _id("ctc_" if call.is_custom else "fc_"),
            "type": kind,
            "status": "in_progress",
            "call_id": _id("call_"),
            "name": call.name,
            key: "",
        }
        place: dict[str, Any] = {"item_id": item["id"], "output_index": len(self.items)}
        yield self.event("response.output_item.added", output_index=len(self.items), item=item)
        for fragment in call.fragments():
            yield self.event(f"{stem}.delta", True, **place, delta=fragment)
        whole: dict[str, Any] = {key: call.arguments, **({} if call.is_custom else {"name": call.name})}
        yield self.event(f"{stem}.done", **place, **whole)
        yield self._done({**item, "status": "completed", key: call.arguments})

    def all_items(self) -> Iterator[Event]:
        """Yields every item of the script."""
        if self._script.thinking:
            yield from self.reasoning()
        if self._script.text:
            yield from self.message()
        if self._script.call is not None:
            yield from self.call()

    def _done(self, item: dict[str, Any]) -> Event:
        self.items.append(item)
        return self.event("response.output_item.done", output_index=len(self.items) - 1, item=item)


def _responses_stream(turn: Turn, script: Script, states_usage: bool) -> Iterator[Event]:
    response = _response(turn)
    ladder = _Ladder(turn, script)
    yield ladder.event("response.created", response=response)
    yield ladder.event("response.in_progress", response=response)
    yield from ladder.all_items()
    finished = _finished(response, script, ladder.items, states_usage)
    yield ladder.event(f"response.{finished['status']}", response=finished)


def _responses_body(turn: Turn, script: Script, states_usage: bool) -> dict[str, Any]:
    ladder = _Ladder(turn, script)
    for _ in ladder.all_items():
        pass
    return _finished(_response(turn), script, ladder.items, states_usage)


_STREAMS: Final[dict[Dialect, Callable[[Turn, Script, bool], Iterator[Event]]]] = {
    Dialect.ANTHROPIC: _anthropic_stream,
    Dialect.OPENAI_CHAT: _chat_stream,
    Dialect.OPENAI_RESPONSES: _responses_stream,
}
_BODIES: Final[dict[Dialect, Callable[[Turn, Script, bool], dict[str, Any]]]] = {
    Dialect.ANTHROPIC: _anthropic_body,
    Dialect.OPENAI_CHAT: _chat_body,
    Dialect.OPENAI_RESPONSES: _responses_body,
}
