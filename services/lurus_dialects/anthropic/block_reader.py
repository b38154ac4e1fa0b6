"""Reads the content blocks of a client's messages into the hub's form."""

from collections.abc import Callable
from typing import Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatBlock,
    ChatCacheHint,
    ChatCitation,
    ChatMedia,
    ChatThinking,
    ChatToolCall,
    ChatToolResult,
    ChatVendorField,
)
from lurus.usage.v1 import usage_pb2
from lurus_dialects import envelope
from lurus_dialects.anthropic.members import Members, vendor_field
from lurus_dialects.members import is_text, items_of, refuse, text_of
from lurus_dialects.translation import Losses

_Read = Callable[[Members, msgspec.Raw, Losses], ChatBlock | None]


def read_content(raw: msgspec.Raw, path: str, losses: Losses) -> list[ChatBlock]:
    """Returns the blocks of a message or of `system`: a string or a list."""
    return _read_list(raw, path, losses, _READERS)


def take_cache_hint(members: Members) -> tuple[ChatCacheHint | None, list[ChatVendorField]]:
    """Returns the hint of `cache_control`, and what of it the hub cannot say."""
    raw = members.take("cache_control")
    if raw is None:
        return None, []
    control = Members(raw, members.path_of("cache_control"))
    kind, ttl = control.text("type"), control.text("ttl")
    if kind != "ephemeral":
        return None, [vendor_field("cache_control", raw)]
    return ChatCacheHint(ttl=ttl), [vendor_field("cache_control", raw)] if control.rest() else []


def read_citation(raw: msgspec.Raw | bytes) -> ChatCitation:
    """Returns a source of a text; whatever its kind, the original is kept whole."""
    try:
        known = _CITATION.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        known = _Citation()
    return ChatCitation(
        title=known.title or known.document_title or "",
        url=known.url or known.source or "",
        cited_text=known.cited_text or "",
        original=vendor_field(known.type or "citation", raw),
    )


class _Citation(msgspec.Struct):
    type: str | None = None
    title: str | None = None
    document_title: str | None = None
    url: str | None = None
    source: str | None = None
    cited_text: str | None = None


_CITATION: Final = msgspec.json.Decoder(_Citation)


def _read_list(raw: msgspec.Raw, path: str, losses: Losses, readers: dict[str, _Read]) -> list[ChatBlock]:
    if is_text(raw):
        return [ChatBlock(text=text_of(raw, path), source_path=path)]
    blocks = (
        _read_block(item, f"{path}[{i}]", losses, readers) for i, item in enumerate(items_of(raw, path))
    )
    return [block for block in blocks if block is not None]


def _read_block(raw: msgspec.Raw, path: str, losses: Losses, readers: dict[str, _Read]) -> ChatBlock | None:
    members = Members(raw, path)
    kind = members.text("type")
    if not kind:
        refuse(f"{path}.type", "is missing")
    read = readers.get(kind)
    if read is None:
        return ChatBlock(vendor_block=vendor_field(kind, raw), source_path=path)
    block = read(members, raw, losses)
    if block is None:
        return None
    block.source_path = path
    if block.WhichOneof("block") in ("vendor_block", "thinking"):
        return block
    hint, unknown = take_cache_hint(members)
    if hint is not None:
        block.cache_hint.CopyFrom(hint)
    block.vendor_fields.extend(unknown)
    block.vendor_fields.extend(members.rest())
    return block


def _read_text(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatBlock:
    return ChatBlock(
        text=members.text("text"), citations=[read_citation(item) for item in members.items("citations")]
    )


def _read_image(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatBlock:
    return _read_media(members, raw, chat_pb2.CHAT_MEDIA_KIND_IMAGE)


def _read_document(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatBlock:
    block = _read_media(members, raw, chat_pb2.CHAT_MEDIA_KIND_DOCUMENT)
    if block.HasField("media"):
        block.media.title = members.text("title")
    return block


def _read_media(members: Members, raw: msgspec.Raw, kind: chat_pb2.ChatMediaKind.ValueType) -> ChatBlock:
    """Returns a medium; a vendor's block if its source is none that others know."""
    stated = members.take("source")
    if stated is None:
        refuse(members.path_of("source"), "is missing")
    source = Members(stated, members.path_of("source"))
    media = _read_source(source)
    if media is None:
        return ChatBlock(
            vendor_block=vendor_field("image" if kind == chat_pb2.CHAT_MEDIA_KIND_IMAGE else "document", raw)
        )
    media.kind = kind
    block = ChatBlock(media=media)
    if source.rest() or media.WhichOneof("source") == "file_id":
        # A file is of use to this vendor only, and so is what the hub cannot say.
        block.vendor_fields.append(vendor_field("source", stated))
    return block


def _read_source(source: Members) -> ChatMedia | None:
    kind = source.text("type")
    if kind == "base64":
        return ChatMedia(base64_data=source.text("data"), media_type=source.text("media_type"))
    if kind == "url":
        return ChatMedia(url=source.text("url"))
    if kind == "file":
        return ChatMedia(file_id=source.text("file_id"))
    if kind == "text":
        return ChatMedia(text=source.text("data"), media_type=source.text("media_type"))
    return _read_parts(source) if kind == "content" else None


def _read_parts(source: Members) -> ChatMedia | None:
    """Returns a document that is made of text parts; None if it has others.

    Its parts stay in `source`, so that the caller keeps the original.
    """
    raw = source.take("content")
    if raw is None:
        refuse(source.path_of("content"), "is missing")
    source.keep("content", raw)
    if is_text(raw):
        return ChatMedia(text=text_of(raw, source.path_of("content")), media_type="text/plain")
    texts = []
    for i, item in enumerate(items_of(raw, source.path_of("content"))):
        part = Members(item, f"{source.path_of('content')}[{i}]")
        if part.text("type") != "text":
            return None
        texts.append(part.text("text"))
    return ChatMedia(text="\n\n".join(texts), media_type="text/plain")


def _read_thinking(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatBlock | None:
    thinking = _unsealed(members.text("signature"), raw, losses)
    if thinking is None:
        return None
    thinking.text = members.text("thinking")
    return ChatBlock(thinking=thinking)


def _read_redacted(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatBlock | None:
    thinking = _unsealed(members.text("data"), raw, losses)
    if thinking is None:
        return None
    thinking.is_redacted = True
    return ChatBlock(thinking=thinking)


def _unsealed(signature: str, raw: msgspec.Raw, losses: Losses) -> ChatThinking | None:
    if not envelope.is_envelope(signature):
        return ChatThinking(original=bytes(raw), dialect=usage_pb2.DIALECT_ANTHROPIC)
    thinking = envelope.unseal(signature)
    if thinking is None:
        losses.note("thinking")
    return thinking


def _read_tool_use(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatBlock:
    call_id, name = members.text("id"), members.text("name")
    if not call_id or not name:
        refuse(members.path_of("name" if call_id else "id"), "is missing")
    arguments = members.take("input")
    if arguments is not None:
        Members(arguments, members.path_of("input"))
    return ChatBlock(
        tool_call=ChatToolCall(
            tool_call_id=call_id,
            name=name,
            arguments=b"{}" if arguments is None else bytes(arguments),
            kind=chat_pb2.CHAT_TOOL_KIND_FUNCTION,
        )
    )


def _read_tool_result(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatBlock:
    call_id = members.text("tool_use_id")
    if not call_id:
        refuse(members.path_of("tool_use_id"), "is missing")
    content = members.take("content")
    path = members.path_of("content")
    return ChatBlock(
        tool_result=ChatToolResult(
            tool_call_id=call_id,
            blocks=[] if content is None else _read_list(content, path, losses, _RESULT_READERS),
            is_error=bool(members.flag("is_error")),
            kind=chat_pb2.CHAT_TOOL_KIND_FUNCTION,
        )
    )


# What a tool may say. Results do not nest.
_RESULT_READERS: Final[dict[str, _Read]] = {
    "text": _read_text,
    "image": _read_image,
    "document": _read_document,
}
_READERS: Final[dict[str, _Read]] = {
    **_RESULT_READERS,
    "thinking": _read_thinking,
    "redacted_thinking": _read_redacted,
    "tool_use": _read_tool_use,
    "tool_result": _read_tool_result,
}
