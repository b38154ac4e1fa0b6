"""Tells whose words a request of the hub was read from, since each dialect loses something else."""

from collections.abc import Iterator
from typing import Final

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatVendorField, StreamChatRequest
from lurus.usage.v1 import usage_pb2
from lurus_dialects.dialect import Dialect

_DIALECTS: Final = {
    usage_pb2.DIALECT_ANTHROPIC: Dialect.ANTHROPIC,
    usage_pb2.DIALECT_OPENAI_CHAT: Dialect.OPENAI_CHAT,
    usage_pb2.DIALECT_OPENAI_RESPONSES: Dialect.OPENAI_RESPONSES,
}
# Only the chat dialect has these roles in a list called `messages`.
_CHAT_ROLES: Final = frozenset({chat_pb2.CHAT_ROLE_DEVELOPER, chat_pb2.CHAT_ROLE_TOOL})


def source_of(request: StreamChatRequest) -> Dialect | None:
    """Returns the dialect of the client's JSON; None for a typed caller.

    Chat and Anthropic requests look alike where neither uses anything of its
    own; such a one counts as Anthropic's, whose ids of people must not be shown.
    """
    path = request.messages[0].source_path if request.messages else ""
    if path.startswith(("input", "instructions")):
        return Dialect.OPENAI_RESPONSES
    if path.startswith("system"):
        return Dialect.ANTHROPIC
    for field in _vendor_fields(request):
        if field.dialect in _DIALECTS:
            return _DIALECTS[field.dialect]
    if not path:
        return None
    is_chat = any(message.role in _CHAT_ROLES for message in request.messages)
    return Dialect.OPENAI_CHAT if is_chat else Dialect.ANTHROPIC


def _vendor_fields(request: StreamChatRequest) -> Iterator[ChatVendorField]:
    yield from request.vendor_fields
    for tool in request.tools:
        yield tool.hosted
        yield from tool.vendor_fields
    for message in request.messages:
        yield from message.vendor_fields
        for block in message.blocks:
            yield block.vendor_block
            yield from block.vendor_fields
