"""Reads a plain JSON answer as a whole."""

from typing import Final

import msgspec

from lurus_dialects import loose
from lurus_dialects.answer import Answer
from lurus_dialects.anthropic import observe as anthropic
from lurus_dialects.dialect import Dialect
from lurus_dialects.endpoints import Kind
from lurus_dialects.openai_chat import observe as openai_chat
from lurus_dialects.openai_responses import observe as openai_responses

_READERS: Final = {
    Dialect.ANTHROPIC: anthropic,
    Dialect.OPENAI_CHAT: openai_chat,
    Dialect.OPENAI_RESPONSES: openai_responses,
}

_OF_ANY_SHAPE: Final = frozenset({Kind.STORED, Kind.BATCHES})


class BodyUsage(Answer):
    """What a plain body says.

    Attributes:
        is_answer: the body is an answer in the dialect's shape.
        is_error: the body is an error in the dialect's shape. If neither, the
            body is not from an API of this dialect, and the caller answers 502.
    """

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(dialect)
        self.is_answer = False
        self.is_error = False
        self.terminal_seen = True


def body_usage(dialect: Dialect, body: bytes, kind: Kind = Kind.CHAT) -> BodyUsage:
    """Returns what a plain JSON body of a provider says; never raises.

    Args:
        dialect: of the provider.
        body: what it answered.
        kind: what it was asked for: a list of vectors, an item of a store and a chat look different.
    """
    found = BodyUsage(dialect)
    value = loose.decode(body)
    if not isinstance(value, dict):
        found.broken_event_count += 1
        return found
    reader = _READERS[dialect]
    if reader.is_error_body(value):
        found.is_error = True
        found.note_error(body)
        return found
    is_chat = reader.observe_body(found, value)
    is_list = kind is Kind.EMBEDDINGS and isinstance(value.get("data"), list)
    found.is_answer = found.terminal_ok = is_chat or is_list or kind in _OF_ANY_SHAPE
    if not (is_chat or is_list):
        return found
    found.response_id = loose.text_of(value, "id")
    found.response_model = loose.text_of(value, "model")
    usage, tool_usage = _usage_bytes(body, value)
    found.final_usage_seen = found.meter.add(usage)
    found.meter.add_tools(tool_usage)
    return found


class _Usage(msgspec.Struct):
    usage: msgspec.Raw = loose.ABSENT
    tool_usage: msgspec.Raw = loose.ABSENT


def _usage_bytes(body: bytes, value: dict[str, object]) -> tuple[bytes, bytes]:
    try:
        found = msgspec.json.decode(body, type=_Usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return loose.compact(value.get("usage")), loose.compact(value.get("tool_usage"))
    return bytes(found.usage), bytes(found.tool_usage)
