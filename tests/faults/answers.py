"""Writes answers as the three kinds of providers do, in pieces that can be cut, reordered and spoiled."""

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

ANTHROPIC, CHAT, RESPONSES = "anthropic", "openai_chat", "openai_responses"
DIALECTS = (ANTHROPIC, CHAT, RESPONSES)
INPUT_TOKENS = 12
CACHED_TOKENS = 3
MIB = 2**20
HUGE_COUNT = 2**63
MODEL = "fault-model"
# What a provider may say of its usage.
USAGES = ("stated", "absent", "null", "negative", "float", "huge", "decreasing")


class Piece(NamedTuple):
    """One event of a stream, with its blank line."""

    data: bytes
    # Has text of the answer in it.
    text: str = ""
    # Begins or ends the stream.
    is_first: bool = False
    is_terminal: bool = False
    # What it says of the tokens.
    usage: dict[str, Any] | None = None


Answer = tuple[list[Piece], dict[str, Any]]


def answer(dialect: str, answer_id: str, words: Sequence[str], usage: str = "stated") -> Answer:
    """Returns an answer as a stream and as one body.

    Args:
        dialect: one of `DIALECTS`.
        answer_id: unique; the answer carries it with the dialect's prefix.
        words: the text; each is an event and an output token.
        usage: one of `USAGES`.
    """
    return _ANSWERS[dialect](answer_id, words, usage)


def usage_of(dialect: str, output_tokens: int) -> dict[str, Any]:
    """Returns honest usage: 12 tokens of fresh input, 3 that were read from a cache, and the output."""
    if dialect == ANTHROPIC:
        return {
            "input_tokens": INPUT_TOKENS,
            "cache_read_input_tokens": CACHED_TOKENS,
            "cache_creation_input_tokens": 0,
            "output_tokens": output_tokens,
        }
    total_input = INPUT_TOKENS + CACHED_TOKENS
    side, other = ("prompt", "completion") if dialect == CHAT else ("input", "output")
    return {
        f"{side}_tokens": total_input,
        f"{side}_tokens_details": {"cached_tokens": CACHED_TOKENS},
        f"{other}_tokens": output_tokens,
        f"{other}_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": total_input + output_tokens,
    }


def spoilt(usage: dict[str, Any], how: str) -> dict[str, Any] | None:
    """Returns usage with impossible counts of output, or None."""
    if how in ("absent", "null"):
        return None
    name = "completion_tokens" if "completion_tokens" in usage else "output_tokens"
    wrong: dict[str, Any] = {"negative": -5, "float": usage[name] + 0.5, "huge": HUGE_COUNT}
    return {**usage, name: wrong[how]} if how in wrong else usage


def error_body(dialect: str, status: int) -> dict[str, Any]:
    """Returns a failure as a vendor words it."""
    message = f"the fault kit was asked to fail with {status}"
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    if dialect == ANTHROPIC:
        return {"type": "error", "error": {"type": kind, "message": message}}
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": _OPENAI_CODES.get(status)}}


def event(data: dict[str, Any], name: str = "") -> bytes:
    """Returns an event; the name is left out if it is empty."""
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(data)}\n\n".encode()


def unknown_event(dialect: str) -> bytes:
    """Returns an event that no client knows yet."""
    if dialect == CHAT:
        return event({"object": "chat.completion.tomorrow", "choices": [], "news": True})
    name = "tomorrow" if dialect == ANTHROPIC else "response.tomorrow"
    return event({"type": name, "sequence_number": 0, "news": True}, name)


def gzip_bomb(mib: int) -> Iterator[bytes]:
    """Yields the parts of a file that unpacks to so many MiB of spaces."""
    plain, check = b" " * MIB, 0
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = deflater.compress(plain) + deflater.flush(zlib.Z_FULL_FLUSH)
    yield b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    for _ in range(mib):
        check = zlib.crc32(plain, check)
        yield block
    yield b"\x03\0" + struct.pack("<II", check, mib * MIB % 2**32)


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OPENAI_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def _with_usage(value: dict[str, Any], usage: dict[str, Any] | None, how: str) -> dict[str, Any]:
    return value if usage is None and how == "absent" else {**value, "usage": usage}


def _named(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


def _anthropic(answer_id: str, words: Sequence[str], how: str) -> Answer:
    usage = spoilt(usage_of(ANTHROPIC, len(words)), how)
    first = usage and {**usage, "output_tokens": len(words) * 10 if how == "decreasing" else 1}
    base = {"id": f"msg_{answer_id}", "type": "message", "role": "assistant", "model": MODEL}
    empty = {**base, "content": [], "stop_reason": None, "stop_sequence": None}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    change = _with_usage({"type": "message_delta", "delta": end}, usage, how)
    start = event({"type": "message_start", "message": _with_usage(empty, first, how)}, "message_start")
    block = {"type": "text", "text": ""}
    pieces = [
        Piece(start, is_first=True, usage=first),
        Piece(_named("content_block_start", index=0, content_block=block)),
        *(
            Piece(_named("content_block_delta", index=0, delta={"type": "text_delta", "text": word}), word)
            for word in words
        ),
        Piece(_named("content_block_stop", index=0)),
        Piece(event(change, "message_delta"), usage=usage),
        Piece(_named("message_stop"), is_terminal=True),
    ]
    text = {"type": "text", "text": "".join(words)}
    return pieces, _with_usage({**empty, "content": [text], **end}, usage, how)


def _chat(answer_id: str, words: Sequence[str], how: str) -> Answer:
    usage = spoilt(usage_of(CHAT, len(words)), how)
    frame = {"id": f"chatcmpl-{answer_id}", "created": 1_763_852_000, "model": MODEL}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return event({**frame, "object": "chat.completion.chunk", "choices": [choice]})

    def counts(found: dict[str, Any] | None) -> Piece:
        value = {**frame, "object": "chat.completion.chunk", "choices": [], "usage": found}
        return Piece(event(value), usage=found)

    message = {"role": "assistant", "content": "".join(words)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    larger = usage and {**usage, "completion_tokens": len(words) * 10}
    pieces = [
        Piece(chunk({"role": "assistant", "content": ""}), is_first=True),
        *(Piece(chunk({"content": word}), word) for word in words),
        Piece(chunk({}, "stop")),
        *([counts(larger)] if how == "decreasing" else []),
        *([] if how == "absent" else [counts(usage)]),
        Piece(b"data: [DONE]\n\n", is_terminal=True),
    ]
    body = {**frame, "object": "chat.completion", "choices": [choice]}
    return pieces, _with_usage(body, usage, how)


def _responses(answer_id: str, words: Sequence[str], how: str) -> Answer:
    usage = spoilt(usage_of(RESPONSES, len(words)), how)
    larger = {**usage, "output_tokens": len(words) * 10} if usage and how == "decreasing" else None
    text = "".join(words)
    at = {"item_id": f"msg_{answer_id}", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": at["item_id"], "type": "message", "role": "assistant"}
    done = {**item, "status": "completed", "content": [part]}
    base = {
        "id": f"resp_{answer_id}",
        "object": "response",
        "created_at": 1_763_852_000,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": MODEL,
        "parallel_tool_calls": True,
        "store": False,
        "tool_choice": "auto",
        "tools": [],
    }
    begun = {**base, "status": "in_progress", "output": [], "usage": larger}
    body = _with_usage({**base, "status": "completed", "output": [done]}, usage, how)
    added = {**item, "status": "in_progress", "content": []}
    plan: list[tuple[str, dict[str, Any], str, dict[str, Any] | None]] = [
        ("response.created", {"response": {**begun, "usage": None}}, "", None),
        ("response.in_progress", {"response": begun}, "", larger),
        ("response.output_item.added", {"output_index": 0, "item": added}, "", None),
        ("response.content_part.added", {**at, "part": {**part, "text": ""}}, "", None),
        *(("response.output_text.delta", {**at, "delta": word}, word, None) for word in words),
        ("response.output_text.done", {**at, "text": text}, "", None),
        ("response.content_part.done", {**at, "part": part}, "", None),
        ("response.output_item.done", {"output_index": 0, "item": done}, "", None),
        ("response.completed", {"response": body}, "", usage),
    ]
    pieces = [
        Piece(
            _named(kind, sequence_number=number, **fields),
            said,
            is_first=number == 0,
            is_terminal=number == len(plan) - 1,
            usage=counts,
        )
        for number, (kind, fields, said, counts) in enumerate(plan)
    ]
    return pieces, body


_ANSWERS: dict[str, Callable[[str, Sequence[str], str], Answer]] = {
    ANTHROPIC: _anthropic,
    CHAT: _chat,
    RESPONSES: _responses,
}
