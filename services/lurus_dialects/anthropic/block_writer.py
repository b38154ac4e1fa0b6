"""Writes the hub's blocks as content blocks of this dialect."""

import base64
import binascii
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatBlock,
    ChatCitation,
    ChatMedia,
    ChatThinking,
    ChatToolCall,
    ChatVendorField,
)
from lurus.usage.v1 import usage_pb2
from lurus_dialects import tools
from lurus_dialects.anthropic.setting import Setting, cache_control
from lurus_dialects.translation import ADDITIONAL_TOOLS

# A content block: built here, or as it came.
Written = dict[str, Any] | msgspec.Raw

_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_IMAGE_TYPES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_PDF: Final = "application/pdf"
_PDF_START: Final = "JVBERi0"  # `%PDF-` in base64


class BlockWriter:
    """Writes blocks of one request."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._losses = setting.losses

    def write(self, block: ChatBlock, kind: str | None, path: str, is_from_user: bool) -> Written | None:
        """Returns a block of this kind; None if nothing of it is left."""
        if kind == "text":
            return self._text(block, block.text, path, is_from_user)
        if kind == "thinking":
            return self._thinking(block.thinking)
        if kind == "tool_call":
            return self._finished(self.tool_call(block.tool_call, path), block, path)
        if kind == "tool_result":
            return self._finished(self._tool_result(block, path), block, path)
        if kind == "media":
            return self._media(block, path)
        if kind == "refusal":
            return self._text(block, block.refusal, path, is_from_user)
        return None if kind is None else self._vendor_block(block.vendor_block, path)

    def tool_call(self, call: ChatToolCall, path: str) -> dict[str, Any]:
        """Returns a call of a tool; of a custom one, with its text wrapped."""
        return {
            "type": "tool_use",
            "id": tools.call_id(call.tool_call_id),
            "name": self._setting.upstream_name(call.name, call.namespace),
            "input": self._arguments(call, path),
        }

    def _arguments(self, call: ChatToolCall, path: str) -> Any:
        if call.kind == chat_pb2.CHAT_TOOL_KIND_CUSTOM:
            return {"input": call.arguments.decode("utf-8", "replace")}
        if not call.arguments.strip():
            return {}
        if is_object(call.arguments):
            return msgspec.Raw(call.arguments)
        self._losses.warn(f"{path}.arguments", "are no JSON object and were sent as a text")
        return {"raw_arguments": call.arguments.decode("utf-8", "replace")}

    def _vendor_block(self, field: ChatVendorField, path: str) -> msgspec.Raw | None:
        if field.name == ADDITIONAL_TOOLS:
            return None
        if field.dialect != usage_pb2.DIALECT_ANTHROPIC:
            self._losses.refuse(path, f"an Anthropic model cannot be sent {field.name or 'this'}")
        return self._setting.raw(field.json, path)

    def _thinking(self, thinking: ChatThinking) -> msgspec.Raw | None:
        target = self._setting.target
        is_ours = not thinking.provider_id or (
            thinking.provider_id == target.provider_id and thinking.upstream_model == target.upstream_model
        )
        if thinking.dialect == usage_pb2.DIALECT_ANTHROPIC and thinking.original and is_ours:
            return self._setting.raw(thinking.original, "thinking")
        # Signatures are valid only where they were made.
        self._losses.note("thinking")
        return None

    def _text(self, block: ChatBlock, text: str, path: str, is_from_user: bool) -> dict[str, Any] | None:
        # The dialect refuses texts that show nothing.
        if not text or text.isspace():
            return None
        written: dict[str, Any] = {"type": "text", "text": text}
        citations = block.citations
        if citations:
            self._add_citations(written, citations, path, is_from_user)
        return self._finished(written, block, path)

    def _add_citations(
        self, written: dict[str, Any], citations: Iterable[ChatCitation], path: str, is_from_user: bool
    ) -> None:
        kept = []
        for citation in citations:
            original = citation.original
            is_known = original.dialect == usage_pb2.DIALECT_ANTHROPIC
            if is_known and not (is_from_user and self._setting.has_new_version):
                kept.append(self._setting.raw(original.json, f"{path}.citations"))
            else:
                self._losses.note("citations")
        if kept:
            written["citations"] = kept

    def _tool_result(self, block: ChatBlock, path: str) -> dict[str, Any]:
        result = block.tool_result
        written: dict[str, Any] = {
            "type": "tool_result",
            "tool_use_id": tools.call_id(result.tool_call_id),
        }
        parts: list[Written] = []
        for i, inner in enumerate(result.blocks):
            inner_path = inner.source_path or f"{path}.blocks[{i}]"
            part = self.write(inner, inner.WhichOneof("block"), inner_path, False)
            if part is not None:
                parts.append(part)
        if len(parts) == 1 and isinstance(parts[0], dict) and parts[0].keys() == {"type", "text"}:
            written["content"] = parts[0]["text"]
        elif parts:
            written["content"] = parts
        if result.is_error:
            written["is_error"] = True
        return written

    def _finished(self, written: dict[str, Any], block: ChatBlock, path: str) -> dict[str, Any]:
        """Returns the block with what every kind may have."""
        fields = block.vendor_fields
        if fields:
            self._setting.add_vendor_fields(written, fields, path)
        if block.HasField("cache_hint"):
            written.setdefault("cache_control", cache_control(block.cache_hint))
        return written

    def _media(self, block: ChatBlock, path: str) -> dict[str, Any]:
        media = block.media
        if media.kind == chat_pb2.CHAT_MEDIA_KIND_AUDIO:
            self._losses.refuse(path, "an Anthropic model does not hear")
        is_image = media.kind == chat_pb2.CHAT_MEDIA_KIND_IMAGE
        written: dict[str, Any] = {"type": "image" if is_image else "document"}
        own = next((f for f in block.vendor_fields if f.name == "source" and is_own(f)), None)
        if own is not None:
            written["source"] = self._setting.raw(own.json, f"{path}.source")
        elif is_image:
            written["source"] = self._image_source(media, path)
        else:
            written["source"] = self._document_source(media, path)
        if media.title and not is_image:
            written["title"] = media.title
        if media.detail:
            self._lose_detail(is_image, path)
        return self._finished(written, block, path)

    def _lose_detail(self, is_image: bool, path: str) -> None:
        if is_image:
            self._losses.note("detail")
        else:
            self._losses.warn(f"{path}.detail", "an Anthropic model reads a document in one way only")

    def _image_source(self, media: ChatMedia, path: str) -> dict[str, Any]:
        if media.WhichOneof("source") == "url":
            return {"type": "url", "url": media.url}
        data = self._base64(media, path)
        media_type = "image/jpeg" if media.media_type == "image/jpg" else media.media_type
        if media_type not in _IMAGE_TYPES:
            self._losses.refuse(path, "an Anthropic model takes images as JPEG, PNG, GIF and WebP only")
        return {"type": "base64", "media_type": media_type, "data": data}

    def _document_source(self, media: ChatMedia, path: str) -> dict[str, Any]:
        source = media.WhichOneof("source")
        if source == "url":
            return {"type": "url", "url": media.url}
        if source == "text":
            return {"type": "text", "media_type": "text/plain", "data": media.text}
        data = self._base64(media, path)
        if media.media_type == _PDF or (not media.media_type and data.startswith(_PDF_START)):
            return {"type": "base64", "media_type": _PDF, "data": data}
        if not media.media_type.startswith("text/"):
            self._losses.refuse(path, "an Anthropic model takes documents as PDF and text only")
        return {"type": "text", "media_type": "text/plain", "data": self._decoded(data, path)}

    def _base64(self, media: ChatMedia, path: str) -> str:
        source = media.WhichOneof("source")
        if source not in ("base64_data", "data"):
            why = "a file that one provider holds cannot go to another" if source else "has no content"
            self._losses.refuse(path, why)
        return media.base64_data if source == "base64_data" else base64.b64encode(media.data).decode()

    def _decoded(self, data: str, path: str) -> str:
        try:
            return base64.b64decode(data, validate=True).decode()
        except (binascii.Error, ValueError):
            self._losses.refuse(path, "is no text in base64")


def is_own(field: ChatVendorField) -> bool:
    """True if a vendor field is one of this dialect."""
    return field.dialect == usage_pb2.DIALECT_ANTHROPIC


def is_object(text: bytes) -> bool:
    """True if `text` is a JSON object."""
    try:
        _MEMBERS.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True
