"""The response object that begins and ends an answer, and repeats what was asked."""

from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import StreamChatRequest
from lurus.usage.v1.usage_pb2 import Tokens
from lurus_dialects.openai_responses.request_writer import format_of
from lurus_dialects.openai_responses.tool_writer import echo_of_tools
from lurus_dialects.translation import Asked

# What a client sees of its own vendor fields.
_ECHOED: Final = frozenset({"truncation", "max_tool_calls", "user"})


class ResponseObject:
    """Writes the response object of one answer in its states."""

    def __init__(self, asked: Asked) -> None:
        head = {
            "id": asked.response_id,
            "object": "response",
            "created_at": asked.create_seconds,
            "model": asked.request.model,
        }
        # Each is an object without its closing brace, or without its opening one.
        self._head = msgspec.json.encode(head)[:-1]
        self._echo = msgspec.json.encode(_echo(asked.request))[1:]

    def encode(
        self,
        status: str,
        output: list[bytes],
        *,
        usage: bytes = b"null",
        error: bytes = b"null",
        incomplete_reason: str = "",
    ) -> bytes:
        """Returns the object as JSON; `output` are whole items."""
        details = b'{"reason":%b}' % msgspec.json.encode(incomplete_reason) if incomplete_reason else b"null"
        state = b',"status":"%b","error":%b,"incomplete_details":%b,"output":[%b],"usage":%b,' % (
            status.encode(),
            error,
            details,
            b",".join(output),
            usage,
        )
        return self._head + state + self._echo


def _echo(request: StreamChatRequest) -> dict[str, Any]:
    tools, choice = echo_of_tools(request)
    is_parallel = request.has_parallel_tool_calls if request.HasField("has_parallel_tool_calls") else True
    reasoning = request.reasoning
    is_off = reasoning.mode == chat_pb2.CHAT_REASONING_MODE_DISABLED
    echo: dict[str, Any] = {
        "background": False,
        "instructions": _instructions(request),
        "max_output_tokens": request.max_output_tokens or None,
        "max_tool_calls": None,
        "metadata": dict(request.metadata),
        "parallel_tool_calls": is_parallel,
        "previous_response_id": None,
        "prompt_cache_key": request.prompt_cache_key or None,
        "reasoning": {
            "effort": "none" if is_off else reasoning.effort or None,
            "summary": reasoning.summary if reasoning.summary not in ("", "omitted") else None,
        },
        "safety_identifier": request.end_user_id or None,
        "service_tier": request.service_tier or "default",
        # Nothing is kept that could be asked for later.
        "store": False,
        "temperature": request.temperature if request.HasField("temperature") else 1.0,
        "text": _text(request),
        "tool_choice": choice,
        "tools": tools,
        "top_logprobs": request.top_logprobs,
        "top_p": request.top_p if request.HasField("top_p") else 1.0,
        "truncation": "disabled",
        "user": None,
    }
    for field in request.vendor_fields:
        if field.name in _ECHOED:
            echo[field.name] = msgspec.Raw(field.json)
    return echo


def _instructions(request: StreamChatRequest) -> str | None:
    first = request.messages[0] if request.messages else None
    if first is None or first.source_path != "instructions":
        return None
    return "".join(block.text for block in first.blocks)


def _text(request: StreamChatRequest) -> dict[str, Any]:
    return {
        "format": format_of(request.output_format, is_own=True),
        "verbosity": request.verbosity or "medium",
    }


def usage_json(tokens: Tokens) -> bytes:
    """Returns `usage`; its input includes what the cache read and wrote (wire-contract U)."""
    by_30m, by_12h = tokens.cache_write_30m, tokens.cache_write_12h
    written = tokens.cache_write_5m + by_30m + tokens.cache_write_1h + by_12h
    details: dict[str, Any] = {"cached_tokens": tokens.cache_read, "cache_write_tokens": written}
    if written == by_30m + by_12h and written:
        details["cache_write_tokens_details"] = {"ttl_30m_tokens": by_30m, "ttl_12h_tokens": by_12h}
    total = tokens.input + tokens.cache_read + written
    usage = {
        "input_tokens": total,
        "input_tokens_details": details,
        "output_tokens": tokens.output,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": total + tokens.output,
    }
    return msgspec.json.encode(usage)
