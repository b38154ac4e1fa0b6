"""Writes blocks of the hub as parts of a message's content."""

import base64
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlock, ChatMedia
from lurus_dialects.dialect import Dialect
from lurus_dialects.openai_chat.vendor_fields import OWN, raw_json, translate_block_fields
from lurus_dialects.translation import Losses, Target

# A part of a content: built here, or as it came.
Part = dict[str, Any] | msgspec.Raw

MAX_CACHE_MARKS: Final = 4
_AUDIO_FORMATS: Final = {"audio/mpeg": "mp3", "audio/x-wav": "wav", "audio/wave": "wav"}
_EXTENSIONS: Final = {"application/pdf": "pdf", "text/plain": "txt", "text/markdown": "md"}
_PDF_START: Final = "JVBERi0"  # `%PDF-` in base64
_TTLS: Final = frozenset({"30m", "12h"})
_IMAGE: Final = chat_pb2.CHAT_MEDIA_KIND_IMAGE
_AUDIO: Final = chat_pb2.CHAT_MEDIA_KIND_AUDIO


class PartWriter:
    """Writes the parts of one request."""

    def __init__(self, source: Dialect | None, target: Target, losses: Losses) -> None:
        self._is_own = source is Dialect.OPENAI_CHAT
        self._losses = losses
        # Responses marks what to cache in the same words; of others only as many as are allowed.
        has_marks = self._is_own or source is Dialect.OPENAI_RESPONSES
        self._marks_left = 2**31 if has_marks else MAX_CACHE_MARKS * target.quirks.has_explicit_cache

    def write(self, block: ChatBlock, path: str) -> Part:
        """Returns a part; refuses a block that no content can hold."""
        kind = block.WhichOneof("block")
        if kind == "text":
            part: dict[str, Any] = {"type": "text", "text": block.text}
        elif kind == "refusal" and self._is_own:
            part = {"type": "refusal", "refusal": block.refusal}
        elif kind == "refusal":
            part = {"type": "text", "text": block.refusal}
        elif kind == "media":
            part = self._media(block.media, path)
        elif kind == "vendor_block":
            return self.vendor_block(block, path)
        else:
            self._losses.refuse(path, "cannot stand here at this provider")
        if block.citations:
            self._losses.note(f"{path}.citations")
        if block.HasField("cache_hint"):
            self._mark(block, part, path)
        if block.vendor_fields:
            translate_block_fields(block.vendor_fields, part, path, self._losses)
        return part

    def vendor_block(self, block: ChatBlock, path: str) -> msgspec.Raw:
        """Returns a block that only this dialect knows; refuses those of others."""
        field = block.vendor_block
        if field.dialect != OWN:
            self._losses.refuse(path, f"{field.name or 'this'} is known only to another provider")
        return raw_json(field.json, path, self._losses)

    def _mark(self, block: ChatBlock, part: dict[str, Any], path: str) -> None:
        if not self._marks_left:
            self._losses.note(f"{path}.cache_control")
            return
        self._marks_left -= 1
        part["prompt_cache_breakpoint"] = {"mode": "explicit"}
        if block.cache_hint.ttl in _TTLS or (self._is_own and block.cache_hint.ttl):
            part["prompt_cache_breakpoint"]["ttl"] = block.cache_hint.ttl

    def _media(self, media: ChatMedia, path: str) -> dict[str, Any]:
        source = media.WhichOneof("source")
        if source is None:
            self._losses.refuse(path, "has no content")
        if source == "file_id" and not (self._is_own and media.kind not in (_IMAGE, _AUDIO)):
            self._losses.refuse(path, "a file that another provider holds cannot be sent")
        if media.kind == _IMAGE:
            return self._image(media, path)
        if media.kind == _AUDIO:
            return self._audio(media, path)
        return self._document(media, path)

    def _image(self, media: ChatMedia, path: str) -> dict[str, Any]:
        if media.WhichOneof("source") == "text":
            self._losses.refuse(path, "an image cannot be a text")
        image = {"url": media.url or f"data:{media.media_type or 'image/png'};base64,{_base64(media)}"}
        if media.detail:
            image["detail"] = media.detail
        return {"type": "image_url", "image_url": image}

    def _audio(self, media: ChatMedia, path: str) -> dict[str, Any]:
        if media.WhichOneof("source") not in ("data", "base64_data"):
            self._losses.refuse(path, "sound can be sent to this provider only as data")
        form = _AUDIO_FORMATS.get(media.media_type, media.media_type.partition("/")[2])
        return {"type": "input_audio", "input_audio": {"data": _base64(media), "format": form}}

    def _document(self, media: ChatMedia, path: str) -> dict[str, Any]:
        source = media.WhichOneof("source")
        if media.detail:
            self._losses.warn(f"{path}.detail", "the provider reads a document in one way only")
        if source == "text":
            self._losses.warn(path, "a document of plain text was sent as a text")
            return {"type": "text", "text": f"{media.title}\n\n{media.text}".lstrip("\n")}
        if source == "url" and not media.url.startswith("data:"):
            self._losses.refuse(path, "a document can be sent to this provider only as data")
        file: dict[str, Any] = {"file_id": media.file_id} if source == "file_id" else {}
        if not file:
            file["file_data"] = media.url or self._data_url(media)
        if media.title:
            file["filename"] = media.title
        elif source != "file_id" and not self._is_own:
            # Data without a name is refused.
            file["filename"] = f"document.{_EXTENSIONS.get(_media_type(media), 'bin')}"
        return {"type": "file", "file": file}

    def _data_url(self, media: ChatMedia) -> str:
        data = _base64(media)
        media_type = media.media_type if self._is_own else _media_type(media)
        return f"data:{media_type};base64,{data}" if media_type else data


def simple(parts: list[Part]) -> str | list[Part]:
    """Returns a lone plain text as a string, which every server takes; else the parts."""
    if len(parts) == 1 and is_plain_text(parts[0]):
        return str(parts[0]["text"])  # type: ignore[call-overload]  # it is a dict
    return parts


def is_plain_text(part: Part) -> bool:
    """True for a part that says no more than its text."""
    return isinstance(part, dict) and part["type"] == "text" and len(part) == 2


def texts_of(parts: Iterable[Part]) -> str:
    """Returns the texts of text parts, joined."""
    return "".join(part["text"] for part in parts if isinstance(part, dict) and part["type"] == "text")


def _media_type(media: ChatMedia) -> str:
    if media.media_type:
        return media.media_type
    return "application/pdf" if media.base64_data.startswith(_PDF_START) else ""


def _base64(media: ChatMedia) -> str:
    return media.base64_data or base64.b64encode(media.data).decode()
