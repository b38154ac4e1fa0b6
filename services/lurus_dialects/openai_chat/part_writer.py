"""Writes blocks of the hub as parts of a message's content."""

from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlock, ChatMedia
from lurus_dialects.dialect import Dialect
from lurus_dialects.media import audio_part, base64_of, data_url, made_up_name
from lurus_dialects.openai_chat.vendor_fields import OWN, translate_block_fields
from lurus_dialects.translation import Losses, Target

MAX_CACHE_MARKS: Final = 4

Part = dict[str, Any]


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
            part: Part = {"type": "text", "text": block.text}
        elif kind == "refusal":
            word = "refusal" if self._is_own else "text"
            part = {"type": word, word: block.refusal}
        elif kind == "media":
            part = self._media(block.media, path)
        elif kind == "vendor_block" and block.vendor_block.dialect == OWN:
            return msgspec.json.decode(block.vendor_block.json, type=dict[str, msgspec.Raw])
        elif kind == "vendor_block":
            self._losses.refuse(path, f"{block.vendor_block.name} is known only to another provider")
        else:
            self._losses.refuse(path, "cannot stand here at this provider")
        if block.citations:
            self._losses.note(f"{path}.citations")
        if block.HasField("cache_hint"):
            self._mark(block, part, path)
        translate_block_fields(block.vendor_fields, part, path, self._losses)
        return part

    def _mark(self, block: ChatBlock, part: Part, path: str) -> None:
        if not self._marks_left:
            self._losses.note(f"{path}.cache_control")
            return
        self._marks_left -= 1
        part["prompt_cache_breakpoint"] = {"mode": "explicit"}
        if block.cache_hint.ttl in ("30m", "12h") or (self._is_own and block.cache_hint.ttl):
            part["prompt_cache_breakpoint"]["ttl"] = block.cache_hint.ttl

    def _media(self, media: ChatMedia, path: str) -> Part:
        if media.WhichOneof("source") == "file_id" and not self._is_own:
            self._losses.refuse(path, "a file that another provider holds cannot be sent")
        if media.kind == chat_pb2.CHAT_MEDIA_KIND_AUDIO:
            return self._audio(media, path)
        if media.kind == chat_pb2.CHAT_MEDIA_KIND_DOCUMENT:
            return self._document(media, path)
        image = {"url": media.url or data_url(media)}
        if media.detail:
            image["detail"] = media.detail
        return {"type": "image_url", "image_url": image}

    def _document(self, media: ChatMedia, path: str) -> Part:
        source = media.WhichOneof("source")
        if source == "text":
            self._losses.warn(path, "a document of plain text was sent as a text")
            return {"type": "text", "text": f"{media.title}\n\n{media.text}".lstrip("\n")}
        if source == "url" and not media.url.startswith("data:"):
            self._losses.refuse(path, "the provider's dialect takes documents as data, not by address")
        file: dict[str, Any] = {}
        if media.title:
            file["filename"] = media.title
        elif not self._is_own:
            # Data without a name is refused.
            file["filename"] = made_up_name(media)
        if source == "file_id":
            file = {"file_id": media.file_id, **({"filename": media.title} if media.title else {})}
        else:
            file["file_data"] = media.url or data_url(media)
        if media.detail:
            self._losses.warn(f"{path}.detail", "is not known to the provider's dialect and was left out")
        return {"type": "file", "file": file}

    def _audio(self, media: ChatMedia, path: str) -> Part:
        if not base64_of(media):
            self._losses.refuse(path, "sound can be sent to this provider only as data")
        return audio_part(media)


def content_of(parts: list[Part]) -> Any:
    """Returns a string for a lone plain text, else the parts."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"} and isinstance(parts[0]["text"], str):
        return parts[0]["text"]
    return parts if parts else ""


def as_parts(content: Any) -> list[Part]:
    """Returns the parts of a content in either form."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
