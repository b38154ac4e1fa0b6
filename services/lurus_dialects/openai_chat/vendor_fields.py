"""What becomes of fields of other dialects in a request to OpenAI Chat Completions (wire-contract C.1)."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from lurus.routing.v1.chat_pb2 import ChatVendorField
from lurus.usage.v1 import usage_pb2
from lurus_dialects import loose
from lurus_dialects.translation import Losses, is_text_source

OWN: Final = usage_pb2.DIALECT_OPENAI_CHAT
_A: Final = usage_pb2.DIALECT_ANTHROPIC
_R: Final = usage_pb2.DIALECT_OPENAI_RESPONSES

# Fields of Responses that mean the same here (EX).
_EXACT: Final = frozenset({"user", "safety_identifier", "prompt_cache_options", "moderation"})

# Without semantic effect (L0), by name; of a dotted name its first part counts too.
_SILENT: Final = {
    _A: frozenset(
        {"context_management", "diagnostics", "tags", "cache_control", "thinking", "tool_choice", "metadata"}
    ),
    _R: frozenset(
        {"include", "context_management", "client_metadata", "reasoning", "tool_choice", "stream_options"}
    ),
}
_SILENT_OF_MESSAGE: Final = frozenset(
    {"output_config", "annotations", "id", "status", "phase", "cache_control", "type"}
    | {"internal_chat_message_metadata_passthrough"}
)
_SILENT_OF_BLOCK: Final = frozenset(
    {"citations", "cache_control", "caller", "annotations", "logprobs", "id", "status", "created_by"}
    | {"internal_chat_message_metadata_passthrough", "prompt_cache_breakpoint"}
)
_SILENT_OF_TOOL: Final = frozenset(
    {
        "cache_control",
        "defer_loading",
        "eager_input_streaming",
        "input_examples",
        "allowed_callers",
        "output_schema",
        "async",
        "namespace",
    }
)
_REFUSED: Final = {
    _A: {
        "inference_geo": "a promise about the place of computing cannot be kept by another provider",
        "container": "containers exist only at Anthropic",
        "mcp_servers": "servers of tools are called only by Anthropic",
        "safeguards": "safeguards exist only at Anthropic",
        "billing_policy": "a billing policy exists only at Anthropic",
        "compaction": "compaction is done only by Anthropic",
    },
    _R: {
        "conversation": "the provider remembers no conversations",
        "prompt": "the provider stores no prompts",
    },
}
_NOTHING: Final = (b"null", b"false", b'"disabled"', b'"standard"')


def translate_fields(fields: Iterable[ChatVendorField], body: dict[str, Any], losses: Losses) -> None:
    """Adds what the request's vendor fields mean here to `body`, and accounts for the others."""
    for field in fields:
        if field.dialect == OWN or (field.dialect == _R and field.name in _EXACT):
            body[field.name] = msgspec.Raw(field.json)
        elif field.json != b"null":
            _lose(field, losses)


def _lose(field: ChatVendorField, losses: Losses) -> None:
    name, top = field.name, field.name.partition(".")[0]
    refusals = _REFUSED.get(field.dialect, {})
    if top in refusals:
        losses.refuse(name, f"{name} cannot be sent to this provider: {refusals[top]}")
    if _is_state(field):
        losses.refuse(name, f"{name} cannot be sent to this provider, which holds no state")
    is_no_wish = name in ("background", "truncation", "speed") and field.json in _NOTHING
    if is_no_wish or top in _SILENT.get(field.dialect, frozenset()):
        losses.note(name)
    else:
        losses.warn(name, "is not known to the provider's dialect and was left out")


def _is_state(field: ChatVendorField) -> bool:
    """True if the field asks for something that its own provider has to remember."""
    if field.dialect == _R:
        return field.name == "background" and field.json == b"true"
    value = loose.decode(field.json)
    is_thread = field.dialect == _A and field.name == "thread" and isinstance(value, dict)
    return is_thread and (value.get("type") == "continue" or "previous_message_id" in value)


def translate_message_fields(
    fields: Iterable[ChatVendorField],
    message: dict[str, Any],
    path: str,
    losses: Losses,
    *,
    has_phase: bool,
) -> None:
    """Adds what a message's vendor fields mean here to `message`, and accounts for the others.

    Args:
        has_phase: the provider knows the `phase` of Responses; some refuse what they do not know.
    """
    for field in fields:
        if field.dialect == OWN or (has_phase and field.name == "phase"):
            message[field.name] = msgspec.Raw(field.json)
        else:
            _lose_inner(field, _SILENT_OF_MESSAGE, path, losses)


def translate_block_fields(
    fields: Iterable[ChatVendorField], part: dict[str, Any], path: str, losses: Losses
) -> None:
    """Adds what a block's vendor fields mean here to `part`, and accounts for the others."""
    for field in fields:
        if field.dialect == OWN:
            _put(part, field)
        elif field.name == "citations" and field.json.startswith(b"{") and b"true" in field.json:
            # Of a document it is a wish; of a text it is what was cited, a list.
            losses.warn(f"{path}.citations", "the provider's dialect cites no documents")
        elif is_text_source(field):
            # That the document became a text was said of the block.
            continue
        else:
            _lose_inner(field, _SILENT_OF_BLOCK, path, losses)


def translate_tool_fields(
    fields: Iterable[ChatVendorField], tool: dict[str, Any], path: str, losses: Losses
) -> None:
    """Adds what a tool's vendor fields mean here to `tool`, and accounts for the others."""
    for field in fields:
        if field.dialect == OWN:
            _put(tool, field)
        else:
            _lose_inner(field, _SILENT_OF_TOOL, path, losses)


def _put(value: dict[str, Any], field: ChatVendorField) -> None:
    """Puts a field back where it stood; `function.` and `custom.` name an object inside."""
    outer, dot, inner = field.name.partition(".")
    if dot and isinstance(value.get(outer), dict):
        value[outer][inner] = msgspec.Raw(field.json)
    else:
        value[field.name] = msgspec.Raw(field.json)


def _lose_inner(field: ChatVendorField, silent: frozenset[str], path: str, losses: Losses) -> None:
    where = f"{path}.{field.name}"
    if field.json == b"null" or field.name in silent or field.name.partition(".")[0] in silent:
        losses.note(where)
    else:
        losses.warn(where, "is not known to the provider's dialect and was left out")
