"""Writes streams and bodies as the three kinds of providers send them."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

A_USAGE = {
    "input_tokens": 12,
    "cache_read_input_tokens": 3,
    "cache_creation_input_tokens": 0,
    "output_tokens": 1,
}
C_USAGE = {"prompt_tokens": 15, "completion_tokens": 9, "total_tokens": 24}
R_USAGE = {
    "input_tokens": 15,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 24,
}
DONE = b"data: [DONE]\n\n"


def named(kind: str, **fields: Any) -> bytes:
    """Returns an event with a name, as Anthropic and Responses have it."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


# Anthropic Messages


def a_start(usage: dict[str, Any] | None = None, **fields: Any) -> bytes:
    """Returns `message_start`."""
    message = {
        "id": "msg_upstream",
        "type": "message",
        "role": "assistant",
        "model": "claude-up",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage or A_USAGE,
        **fields,
    }
    return named("message_start", message=message)


def a_open(index: int, block: dict[str, Any]) -> bytes:
    """Returns `content_block_start`."""
    return named("content_block_start", index=index, content_block=block)


def a_delta(index: int, kind: str, **fields: Any) -> bytes:
    """Returns `content_block_delta`."""
    return named("content_block_delta", index=index, delta={"type": kind, **fields})


def a_close(index: int) -> bytes:
    """Returns `content_block_stop`."""
    return named("content_block_stop", index=index)


def a_text(index: int, *parts: str) -> bytes:
    """Returns a whole block of text."""
    deltas = [a_delta(index, "text_delta", text=part) for part in parts]
    return b"".join([a_open(index, {"type": "text", "text": ""}), *deltas, a_close(index)])


def a_thinking(index: int, text: str, signature: str) -> bytes:
    """Returns a whole block of thinking."""
    deltas = [a_delta(index, "thinking_delta", thinking=text)] if text else []
    seal = a_delta(index, "signature_delta", signature=signature)
    block = {"type": "thinking", "thinking": "", "signature": ""}
    return b"".join([a_open(index, block), *deltas, seal, a_close(index)])


def a_tool(index: int, call_id: str, name: str, *parts: str) -> bytes:
    """Returns a whole call of a tool; `parts` are its arguments, cut anywhere."""
    block = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
    deltas = [a_delta(index, "input_json_delta", partial_json=part) for part in parts]
    return b"".join([a_open(index, block), *deltas, a_close(index)])


def a_end(stop_reason: str = "end_turn", output_tokens: int = 9, **delta: Any) -> bytes:
    """Returns `message_delta` and `message_stop`."""
    change = {"stop_reason": stop_reason, "stop_sequence": None, **delta}
    return named("message_delta", delta=change, usage={"output_tokens": output_tokens}) + named(
        "message_stop"
    )


def a_error(kind: str, message: str) -> bytes:
    """Returns the event that ends a stream with a failure."""
    return named("error", error={"type": kind, "message": message}, request_id="req_upstream")


def a_body(content: Sequence[dict[str, Any]], stop_reason: str = "end_turn", **fields: Any) -> dict[str, Any]:
    """Returns a plain answer."""
    return {
        "id": "msg_upstream",
        "type": "message",
        "role": "assistant",
        "model": "claude-up",
        "content": list(content),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {**A_USAGE, "output_tokens": 9},
        **fields,
    }


# OpenAI Chat Completions


def c_chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **fields: Any) -> bytes:
    """Returns a chunk; without a delta, one without choices."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {
        "id": "chatcmpl-upstream",
        "object": "chat.completion.chunk",
        "created": 1763852000,
        "model": "gpt-up",
        "choices": choices,
        **fields,
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def c_start() -> bytes:
    """Returns the first chunk."""
    return c_chunk({"role": "assistant", "content": ""})


def c_text(*parts: str) -> bytes:
    """Returns a chunk for each part."""
    return b"".join(c_chunk({"content": part}) for part in parts)


def c_call(index: int, call_id: str, name: str) -> bytes:
    """Returns the first fragment of a call."""
    function = {"name": name, "arguments": ""}
    return c_chunk(
        {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
    )


def c_arguments(index: int, *parts: str) -> bytes:
    """Returns later fragments of a call."""
    return b"".join(
        c_chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]}) for part in parts
    )


def c_finish(reason: str, usage: dict[str, Any] | None = C_USAGE) -> bytes:
    """Returns the finish, the usage chunk unless it is None, and the terminator."""
    return c_chunk({}, reason) + (c_chunk(usage=usage) if usage else b"") + DONE


def c_body(message: dict[str, Any], finish: str = "stop", **fields: Any) -> dict[str, Any]:
    """Returns a plain answer."""
    return {
        "id": "chatcmpl-upstream",
        "object": "chat.completion",
        "created": 1763852000,
        "model": "gpt-up",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": None, **message},
                "finish_reason": finish,
            }
        ],
        "usage": C_USAGE,
        **fields,
    }


# OpenAI Responses


class ResponsesStream:
    """A stream of Responses: numbers its events and keeps its items."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._count = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        """Returns one event."""
        self._count += 1
        return named(kind, sequence_number=self._count - 1, **fields)

    def start(self) -> bytes:
        """Returns the first two events."""
        response = r_body([], "in_progress", usage=None)
        return self.event("response.created", response=response) + self.event(
            "response.in_progress", response=response
        )

    def text(self, *parts: str, has_deltas: bool = True) -> bytes:
        """Returns a whole message."""
        at = {"output_index": len(self.items), "item_id": f"msg_{len(self.items)}", "content_index": 0}
        item = {"id": at["item_id"], "type": "message", "role": "assistant", "status": "completed"}
        text = "".join(parts)
        whole = {"type": "output_text", "text": text, "annotations": []}
        found = [self.added({**item, "status": "in_progress", "content": []})]
        if has_deltas:
            found.append(self.event("response.content_part.added", **at, part={**whole, "text": ""}))
            found += [self.event("response.output_text.delta", **at, delta=part) for part in parts]
            found.append(self.event("response.output_text.done", **at, text=text))
            found.append(self.event("response.content_part.done", **at, part=whole))
        return b"".join([*found, self.done({**item, "content": [whole]})])

    def reasoning(self, *summaries: str, encrypted: str = "gAAAA-secret") -> bytes:
        """Returns a whole item of reasoning."""
        at = {"output_index": len(self.items), "item_id": f"rs_{len(self.items)}"}
        item: dict[str, Any] = {"id": at["item_id"], "type": "reasoning", "summary": []}
        found = [self.added(item)]
        for index, text in enumerate(summaries):
            where = {**at, "summary_index": index}
            part = {"type": "summary_text", "text": text}
            found += [
                self.event("response.reasoning_summary_part.added", **where, part={**part, "text": ""}),
                self.event("response.reasoning_summary_text.delta", **where, delta=text),
                self.event("response.reasoning_summary_text.done", **where, text=text),
                self.event("response.reasoning_summary_part.done", **where, part=part),
            ]
        parts = [{"type": "summary_text", "text": text} for text in summaries]
        return b"".join([*found, self.done({**item, "summary": parts, "encrypted_content": encrypted})])

    def call(self, call_id: str, name: str, *parts: str, is_custom: bool = False, **fields: Any) -> bytes:
        """Returns a whole call."""
        kind, key = ("custom_tool_call", "input") if is_custom else ("function_call", "arguments")
        event = "response.custom_tool_call_input" if is_custom else "response.function_call_arguments"
        at = {"output_index": len(self.items), "item_id": f"fc_{len(self.items)}"}
        item = {"id": at["item_id"], "type": kind, "call_id": call_id, "name": name, **fields}
        text = "".join(parts)
        return b"".join(
            [
                self.added({**item, "status": "in_progress", key: ""}),
                *(self.event(f"{event}.delta", **at, delta=part) for part in parts),
                self.event(f"{event}.done", **at, **{key: text}),
                self.done({**item, "status": "completed", key: text}),
            ]
        )

    def added(self, item: dict[str, Any]) -> bytes:
        """Returns the begin of an item."""
        return self.event("response.output_item.added", output_index=len(self.items), item=item)

    def done(self, item: dict[str, Any]) -> bytes:
        """Returns the end of an item."""
        event = self.event("response.output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)
        return event

    def end(self, status: str = "completed", **fields: Any) -> bytes:
        """Returns the terminal event."""
        return self.event(f"response.{status}", response=r_body(self.items, status, **fields))


def r_body(items: Iterable[dict[str, Any]], status: str = "completed", **fields: Any) -> dict[str, Any]:
    """Returns a plain answer."""
    return {
        "id": "resp_upstream",
        "object": "response",
        "created_at": 1763852000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": "gpt-up",
        "output": list(items),
        "usage": R_USAGE,
        **fields,
    }
