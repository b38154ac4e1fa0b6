"""Images, documents and sounds in the forms that both OpenAI dialects share."""

import base64
from typing import Any, Final

from lurus.routing.v1.chat_pb2 import ChatMedia

_AUDIO_TYPES: Final = {"mp3": "audio/mpeg"}
_AUDIO_FORMATS: Final = {"audio/mpeg": "mp3", "audio/x-wav": "wav", "audio/wave": "wav"}
_EXTENSIONS: Final = {"application/pdf": "pdf", "text/plain": "txt", "text/markdown": "md"}
# What follows the media type in a data URL that the hub can hold in pieces.
_BASE64_MARK: Final = ";base64,"


def base64_of(media: ChatMedia) -> str:
    """Returns the content in base64, empty if it stands elsewhere."""
    return media.base64_data or base64.b64encode(media.data).decode()


def data_url(media: ChatMedia) -> str:
    """Returns the content as a data URL; mere base64 if its type is unknown."""
    data = base64_of(media)
    return f"data:{media.media_type};base64,{data}" if media.media_type else data


def set_url(media: ChatMedia, url: str) -> None:
    """Keeps a URL, or what a plain data URL holds."""
    # The content may be megabytes long; its head is not.
    head, mark, data = url.partition(_BASE64_MARK)
    if not mark or not head.startswith("data:") or len(head) == len("data:") or ";" in head:
        media.url = url
        return
    media.media_type = head.removeprefix("data:")
    media.base64_data = data


def audio_type(form: str) -> str:
    """Returns the media type of a sound, given `wav`, `mp3` …"""
    return _AUDIO_TYPES.get(form, f"audio/{form}")


def audio_part(media: ChatMedia) -> dict[str, Any]:
    """Returns a sound as both dialects state it."""
    form = _AUDIO_FORMATS.get(media.media_type, media.media_type.partition("/")[2])
    return {"type": "input_audio", "input_audio": {"data": base64_of(media), "format": form}}


def made_up_name(media: ChatMedia) -> str:
    """Returns a file name for data without one, which is refused."""
    return f"document.{_EXTENSIONS.get(media.media_type, 'bin')}"
