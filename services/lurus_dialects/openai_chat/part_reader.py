"""Reads the parts of a message's content into blocks of the hub."""

from typing import Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlock, ChatCacheHint, ChatMedia
from lurus_dialects.media import audio_type, set_url
from lurus_dialects.members import is_text, items_of, refuse, text_of
from lurus_dialects.openai_chat.members import Members, vendor_field


def read_content(raw: msgspec.Raw, path: str) -> list[ChatBlock]:
    """Returns the blocks of a content: a string or a list of parts."""
    if is_text(raw):
        return [ChatBlock(text=text_of(raw, path), source_path=path)]
    return [_read_part(item, f"{path}[{i}]") for i, item in enumerate(items_of(raw, path))]


def _read_part(raw: msgspec.Raw, path: str) -> ChatBlock:
    members = Members(raw, path)
    kind = members.text("type")
    if kind == "text":
        block = ChatBlock(text=members.required_text("text"))
    elif kind == "refusal":
        block = ChatBlock(refusal=members.required_text("refusal"))
    elif kind in _MEDIA_READERS:
        block = ChatBlock(media=_read_media(kind, members))
    elif kind:
        return ChatBlock(vendor_block=vendor_field(kind, raw), source_path=path)
    else:
        refuse(members.path_of("type"), "is missing")
    block.source_path = path
    _take_cache_hint(members, block)
    if rest := members.rest():
        block.vendor_fields.extend(rest)
    return block


def _take_cache_hint(members: Members, block: ChatBlock) -> None:
    raw = members.take("prompt_cache_breakpoint")
    if raw is None:
        return
    mark = Members(raw, members.path_of("prompt_cache_breakpoint"))
    mode = mark.text("mode")
    block.cache_hint.CopyFrom(ChatCacheHint(ttl=mark.text("ttl")))
    if mode != "explicit" or not mark.is_empty():
        members.keep("prompt_cache_breakpoint", raw)


def _read_media(kind: str, members: Members) -> ChatMedia:
    raw = members.take(kind)
    if raw is None:
        refuse(members.path_of(kind), "is missing")
    inner = Members(raw, members.path_of(kind))
    media = _MEDIA_READERS[kind](inner)
    if not inner.is_empty():
        members.keep(kind, raw)
    return media


def _read_image(members: Members) -> ChatMedia:
    media = ChatMedia(kind=chat_pb2.CHAT_MEDIA_KIND_IMAGE, detail=members.text("detail"))
    set_url(media, members.required_text("url"))
    return media


def _read_file(members: Members) -> ChatMedia:
    media = ChatMedia(kind=chat_pb2.CHAT_MEDIA_KIND_DOCUMENT, title=members.text("filename"))
    data = members.take("file_data")
    if data is None:
        media.file_id = members.text("file_id")
        if not media.file_id:
            refuse(members.path_of("file_data"), "is missing")
        return media
    text = text_of(data, members.path_of("file_data"))
    if text.startswith("data:"):
        set_url(media, text)
    else:
        media.base64_data = text
    return media


def _read_audio(members: Members) -> ChatMedia:
    form = members.required_text("format")
    return ChatMedia(
        kind=chat_pb2.CHAT_MEDIA_KIND_AUDIO,
        media_type=audio_type(form),
        base64_data=members.required_text("data"),
    )


_MEDIA_READERS: Final = {"image_url": _read_image, "file": _read_file, "input_audio": _read_audio}
