"""What a plain answer and a stream have in common: the message around the blocks, and how it ends."""

from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatFinish, ChatThinking, ChatToolCall
from lurus.usage.v1 import usage_pb2
from lurus_dialects import envelope, loose, tools
from lurus_dialects.anthropic.block_writer import is_object
from lurus_dialects.translation import Asked

_STOP_REASONS: Final = {
    chat_pb2.CHAT_STOP_KIND_END_TURN: "end_turn",
    chat_pb2.CHAT_STOP_KIND_STOP_SEQUENCE: "stop_sequence",
    chat_pb2.CHAT_STOP_KIND_TOOL_CALLS: "tool_use",
    chat_pb2.CHAT_STOP_KIND_MAX_TOKENS: "max_tokens",
    chat_pb2.CHAT_STOP_KIND_REFUSAL: "refusal",
    chat_pb2.CHAT_STOP_KIND_PAUSE: "pause_turn",
    chat_pb2.CHAT_STOP_KIND_CONTEXT_FULL: "model_context_window_exceeded",
}
_END_KINDS: Final = (chat_pb2.CHAT_STOP_KIND_END_TURN, chat_pb2.CHAT_STOP_KIND_UNSPECIFIED)
# Beside `delta` in a stream, beside the rest in a plain answer.
OF_THE_EVENT: Final = "context_management"


def message_json(
    asked: Asked, content: list[Any], usage: dict[str, Any], stop: dict[str, Any]
) -> dict[str, Any]:
    """Returns a message."""
    return {
        "id": asked.response_id,
        "type": "message",
        "role": "assistant",
        "model": asked.request.model,
        "content": content,
        **stop,
        "usage": usage,
    }


def stop_fields(finish: ChatFinish, has_calls: bool) -> dict[str, Any]:
    """Returns why the answer ended, and what only this dialect knows of it."""
    own = {
        field.name: msgspec.Raw(field.json)
        for field in finish.vendor_fields
        if field.dialect == usage_pb2.DIALECT_ANTHROPIC
    }
    reason = _STOP_REASONS.get(finish.kind, "end_turn")
    if has_calls and finish.kind in _END_KINDS:
        # Some servers say `stop` after a call, which the client would then not make.
        reason = "tool_use"
    return {"stop_reason": reason, "stop_sequence": finish.stop_sequence or None, **own}


def final_usage(finish: ChatFinish, asked: Asked, estimated_output_tokens: int) -> dict[str, Any]:
    """Returns all four counts; Claude Code takes them over those of the start."""
    tokens = finish.tokens
    writes = {"5m": tokens.cache_write_5m, "1h": tokens.cache_write_1h}
    usage: dict[str, Any] = {
        "input_tokens": tokens.input,
        "cache_creation_input_tokens": sum(writes.values()) + tokens.cache_write_30m + tokens.cache_write_12h,
        "cache_read_input_tokens": tokens.cache_read,
        "output_tokens": tokens.output,
    }
    if not finish.has_provider_tokens:
        usage["input_tokens"] = tokens.input or asked.estimated_input_tokens
        usage["output_tokens"] = tokens.output or estimated_output_tokens
    if any(writes.values()):
        # Only this dialect's own providers have these lifetimes.
        usage["cache_creation"] = {f"ephemeral_{name}_input_tokens": count for name, count in writes.items()}
    if tokens.reasoning:
        usage["output_tokens_details"] = {"thinking_tokens": tokens.reasoning}
    return usage


def sealed(seal: ChatThinking | None, asked: Asked) -> tuple[str, str]:
    """Returns the name and the value under which a client keeps thinking until its next turn.

    The name is `signature`, or `data` of a redacted block. Thinking of other
    makers goes into an envelope.
    """
    if seal is not None and seal.dialect == usage_pb2.DIALECT_ANTHROPIC and seal.original:
        name = "data" if seal.is_redacted else "signature"
        value = loose.decode(seal.original)
        return name, loose.text_of(value, name) if isinstance(value, dict) else ""
    thinking = ChatThinking(dialect=usage_pb2.DIALECT_OPENAI_CHAT)
    if seal is not None and seal.dialect:
        thinking.CopyFrom(seal)
    thinking.provider_id, thinking.upstream_model = asked.provider_id, asked.upstream_model
    return "signature", envelope.seal(thinking)


def call_start(call: ChatToolCall, asked: Asked, index: int) -> dict[str, Any]:
    """Returns a call without its arguments."""
    invented = f"toolu_{asked.response_id.removeprefix('msg_')}_{index}"
    name = tools.flat_name(call.name, call.namespace) if call.namespace else call.name
    return {"type": "tool_use", "id": call.tool_call_id or invented, "name": name, "input": {}}


def call_input(call: ChatToolCall) -> Any:
    """Returns a call's arguments as an object."""
    if call.kind == chat_pb2.CHAT_TOOL_KIND_CUSTOM:
        return {"input": call.arguments.decode("utf-8", "replace")}
    if not call.arguments.strip():
        return {}
    if is_object(call.arguments):
        return msgspec.Raw(call.arguments)
    return {"raw_arguments": call.arguments.decode("utf-8", "replace")}


def is_vendor_block(name: str) -> bool:
    """True if a vendor event of this dialect is a whole block; see `answer_reader`."""
    return not name.startswith(("event.", "delta."))
