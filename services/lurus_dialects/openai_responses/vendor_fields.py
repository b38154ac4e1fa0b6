"""What becomes of fields of other dialects in a request to OpenAI Responses (wire-contract C.1)."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from lurus.routing.v1.chat_pb2 import ChatVendorField
from lurus.usage.v1 import usage_pb2
from lurus_dialects import loose
from lurus_dialects.translation import Losses, is_text_source

OWN: Final = usage_pb2.DIALECT_OPENAI_RESPONSES
_A: Final = usage_pb2.DIALECT_ANTHROPIC
_C: Final = usage_pb2.DIALECT_OPENAI_CHAT

# Chat's fields that mean the same here (EX).
_EXACT: Final = frozenset({"user", "safety_identifier", "prompt_cache_options", "moderation"})
_EXACT_OF_MESSAGE: Final = frozenset({"phase"})

# Without semantic effect (L0), by name; of a dotted name its first part counts too.
_SILENT: Final = {
    _A: frozenset(
        {
            "context_management",
            "diagnostics",
            "tags",
            "cache_control",
            "thinking.between_tools",
            "tool_choice",
            "stream",
        }
    ),
    _C: frozenset({"store", "stream_options", "user", "include_obfuscation"}),
}
_SILENT_OF_MESSAGE: Final = frozenset({"output_config", "annotations", "name", "id", "cache_control"})
_SILENT_OF_BLOCK: Final = frozenset({"citations", "cache_control", "caller", "prompt_cache_breakpoint", "id"})
_SILENT_OF_TOOL: Final = frozenset(
    {
        "cache_control",
        "defer_loading",
        "eager_input_streaming",
        "input_examples",
        "allowed_callers",
        "output_schema",
        "async",
        "prompt_cache_breakpoint",
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
    _C: {
        "audio": "the provider's dialect has no spoken answers",
        "functions": "the legacy form of tools is not translated",
        "function_call": "the legacy form of tools is not translated",
    },
}


def translate_fields(fields: Iterable[ChatVendorField], body: dict[str, Any], losses: Losses) -> None:
    """Adds what the request's vendor fields mean here to `body`, and accounts for the others."""
    for field in fields:
        if field.json == b"null":
            continue
        if field.dialect == OWN:
            _put(body, field)
        elif field.dialect == _C and field.name in _EXACT:
            body.setdefault(field.name, msgspec.Raw(field.json))
        else:
            _lose(field, body, losses)


def _put(body: dict[str, Any], field: ChatVendorField) -> None:
    """Puts a field back where it stood; only `reasoning` and `text` have dotted names."""
    outer, dot, inner = field.name.partition(".")
    if field.name == "include":
        others = loose.decode(field.json)
        body.setdefault("include", []).extend(others if isinstance(others, list) else [])
    elif not dot:
        body[outer] = msgspec.Raw(field.json)
    elif outer in ("reasoning", "text"):
        body.setdefault(outer, {})[inner] = msgspec.Raw(field.json)
    else:
        body[field.name] = msgspec.Raw(field.json)


def _lose(field: ChatVendorField, body: dict[str, Any], losses: Losses) -> None:
    name, top = field.name, field.name.partition(".")[0]
    refusals = _REFUSED.get(field.dialect, {})
    if top in refusals:
        losses.refuse(name, f"{name} cannot be sent to this provider: {refusals[top]}")
    if field.dialect == _C and name == "stream_options":
        _take_obfuscation(field, body)
    why = _why_refused(field)
    if why:
        losses.refuse(name, why)
    if _is_silent(field):
        losses.note(name)
    else:
        losses.warn(name, "is not known to the provider's dialect and was left out")


def _take_obfuscation(field: ChatVendorField, body: dict[str, Any]) -> None:
    options = loose.decode(field.json)
    if isinstance(options, dict) and isinstance(options.get("include_obfuscation"), bool):
        body["stream_options"] = {"include_obfuscation": options["include_obfuscation"]}


def _why_refused(field: ChatVendorField) -> str:
    """Returns why a field is refused for its value; empty if it is not."""
    value = loose.decode(field.json)
    if field.dialect == _C and field.name == "n" and value != 1:
        return "the provider's dialect gives one answer"
    if field.dialect == _C and field.name == "modalities" and isinstance(value, list) and "audio" in value:
        return "the provider's dialect has no spoken answers"
    is_thread = field.dialect == _A and field.name == "thread" and isinstance(value, dict)
    if is_thread and (value.get("type") == "continue" or "previous_message_id" in value):
        return "a thread goes on only at the provider that holds it"
    return ""


def _is_silent(field: ChatVendorField) -> bool:
    if field.dialect == _C and field.name in ("n", "modalities"):
        return True
    if field.dialect == _A and (field.name, field.json) == ("speed", b'"standard"'):
        return True
    names = _SILENT.get(field.dialect, frozenset())
    return field.name in names or field.name.partition(".")[0] in names


def translate_message_fields(
    fields: Iterable[ChatVendorField], item: dict[str, Any], path: str, losses: Losses
) -> None:
    """Adds what a message's vendor fields mean here to `item`, and accounts for the others."""
    for field in fields:
        if field.dialect == OWN or field.name in _EXACT_OF_MESSAGE:
            item[field.name] = msgspec.Raw(field.json)
        elif field.name == "audio" or field.name == "function_call":
            losses.refuse(f"{path}.{field.name}", "cannot be sent to this provider")
        else:
            _lose_inner(field, _SILENT_OF_MESSAGE, path, losses)


def translate_block_fields(
    fields: Iterable[ChatVendorField], part: dict[str, Any], path: str, losses: Losses
) -> None:
    """Adds what a block's vendor fields mean here to `part`, and accounts for the others."""
    for field in fields:
        if field.dialect == OWN:
            part[field.name] = msgspec.Raw(field.json)
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
            if not field.name.startswith("namespace."):
                tool[field.name] = msgspec.Raw(field.json)
        else:
            _lose_inner(field, _SILENT_OF_TOOL, path, losses)


def _lose_inner(field: ChatVendorField, silent: frozenset[str], path: str, losses: Losses) -> None:
    where = f"{path}.{field.name}"
    if field.name in silent or field.name.partition(".")[0] in silent:
        losses.note(where)
    elif field.json != b"null":
        losses.warn(where, "is not known to the provider's dialect and was left out")
