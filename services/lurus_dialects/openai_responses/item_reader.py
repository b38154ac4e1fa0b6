"""Reads the items of a client's `input` into messages of the hub, one for each item."""

from collections.abc import Callable
from typing import Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatBlock,
    ChatCacheHint,
    ChatMedia,
    ChatMessage,
    ChatThinking,
    ChatToolCall,
    ChatToolResult,
)
from lurus.usage.v1 import usage_pb2
from lurus_dialects import envelope
from lurus_dialects.media import audio_type, set_url
from lurus_dialects.members import is_text, items_of, refuse, text_of
from lurus_dialects.openai_responses.members import Members, vendor_field
from lurus_dialects.openai_responses.plain_items import read_plain
from lurus_dialects.translation import Losses

_ROLES: Final = {
    "user": chat_pb2.CHAT_ROLE_USER,
    "assistant": chat_pb2.CHAT_ROLE_ASSISTANT,
    "system": chat_pb2.CHAT_ROLE_SYSTEM,
    "developer": chat_pb2.CHAT_ROLE_DEVELOPER,
}
_TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text"})

_ReadItem = Callable[[Members, msgspec.Raw, Losses], ChatMessage | None]


def read_input(raw: msgspec.Raw, losses: Losses) -> list[ChatMessage]:
    """Returns the messages of `input`, a string or a list of items."""
    if is_text(raw):
        text = ChatBlock(text=text_of(raw, "input"), source_path="input")
        return [ChatMessage(role=chat_pb2.CHAT_ROLE_USER, blocks=[text], source_path="input")]
    messages = (_read_item(item, f"input[{i}]", losses) for i, item in enumerate(items_of(raw, "input")))
    return [message for message in messages if message is not None]


def _read_item(raw: msgspec.Raw, path: str, losses: Losses) -> ChatMessage | None:
    plain = read_plain(raw, path)
    if plain is not None:
        return plain
    members = Members(raw, path)
    kind = members.text("type") or _unstated_type(members)
    read = _READERS.get(kind)
    message = _read_unknown(kind, raw) if read is None else read(members, raw, losses)
    if message is None:
        return None
    message.source_path = path
    for block in message.blocks:
        block.source_path = block.source_path or path
    return message


def _unstated_type(members: Members) -> str:
    if members.has("role"):
        return "message"
    if not members.has("id"):
        refuse(members.path_of("type"), "is missing")
    return "item_reference"


def _read_unknown(kind: str, raw: msgspec.Raw) -> ChatMessage:
    """Returns an item that only this dialect knows, whole."""
    role = chat_pb2.CHAT_ROLE_ASSISTANT if kind.endswith("_call") else chat_pb2.CHAT_ROLE_USER
    return ChatMessage(role=role, blocks=[ChatBlock(vendor_block=vendor_field(kind, raw))])


def _read_message(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatMessage:
    role = _ROLES.get(members.text("role"))
    if role is None:
        refuse(members.path_of("role"), "must be user, assistant, system or developer")
    content = members.take("content")
    if content is None:
        refuse(members.path_of("content"), "is missing")
    blocks = read_content(content, members.path_of("content"))
    return ChatMessage(role=role, blocks=blocks, vendor_fields=members.rest())


def _read_reasoning(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatMessage | None:
    summaries = _texts_in(members, "summary")
    contents = _texts_in(members, "content")
    text = "\n\n".join(summaries) or "".join(contents)
    sealed = members.text("encrypted_content")
    thinking: ChatThinking | None
    if envelope.is_envelope(sealed):
        thinking = envelope.unseal(sealed)
        if thinking is None:
            losses.note(members.path_of("encrypted_content"))
            return None
    else:
        thinking = ChatThinking(original=bytes(raw), dialect=usage_pb2.DIALECT_OPENAI_RESPONSES)
    thinking.text = text
    thinking.summaries.extend(summaries)
    return ChatMessage(role=chat_pb2.CHAT_ROLE_ASSISTANT, blocks=[ChatBlock(thinking=thinking)])


def _texts_in(members: Members, name: str) -> list[str]:
    path = members.path_of(name)
    return [Members(item, f"{path}[{i}]").text("text") for i, item in enumerate(members.items(name))]


def _read_function_call(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatMessage:
    return _call(members, "arguments", chat_pb2.CHAT_TOOL_KIND_FUNCTION)


def _read_custom_call(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatMessage:
    return _call(members, "input", chat_pb2.CHAT_TOOL_KIND_CUSTOM)


def _call(members: Members, arguments: str, kind: "chat_pb2.ChatToolKind.ValueType") -> ChatMessage:
    call = ChatToolCall(
        tool_call_id=members.required_text("call_id"),
        name=members.required_text("name"),
        arguments=members.required_text(arguments).encode(),
        kind=kind,
        namespace=members.text("namespace"),
    )
    block = ChatBlock(tool_call=call, vendor_fields=members.rest())
    return ChatMessage(role=chat_pb2.CHAT_ROLE_ASSISTANT, blocks=[block])


def _read_function_result(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatMessage:
    return _result(members, chat_pb2.CHAT_TOOL_KIND_FUNCTION)


def _read_custom_result(members: Members, raw: msgspec.Raw, losses: Losses) -> ChatMessage:
    return _result(members, chat_pb2.CHAT_TOOL_KIND_CUSTOM)


def _result(members: Members, kind: "chat_pb2.ChatToolKind.ValueType") -> ChatMessage:
    call_id = members.required_text("call_id")
    output = members.take("output")
    if output is None:
        refuse(members.path_of("output"), "is missing")
    blocks = read_content(output, members.path_of("output"))
    result = ChatToolResult(tool_call_id=call_id, blocks=blocks, kind=kind)
    block = ChatBlock(tool_result=result, vendor_fields=members.rest())
    return ChatMessage(role=chat_pb2.CHAT_ROLE_TOOL, blocks=[block])


_READERS: Final[dict[str, _ReadItem]] = {
    "message": _read_message,
    "reasoning": _read_reasoning,
    "function_call": _read_function_call,
    "function_call_output": _read_function_result,
    "custom_tool_call": _read_custom_call,
    "custom_tool_call_output": _read_custom_result,
}


def read_content(raw: msgspec.Raw, path: str) -> list[ChatBlock]:
    """Returns the blocks of a content or of a tool's output: a string or a list of parts."""
    if is_text(raw):
        return [ChatBlock(text=text_of(raw, path), source_path=path)]
    return [_read_part(item, f"{path}[{i}]") for i, item in enumerate(items_of(raw, path))]


def _read_part(raw: msgspec.Raw, path: str) -> ChatBlock:
    members = Members(raw, path)
    kind = members.text("type")
    if kind in _TEXT_PARTS:
        block = ChatBlock(text=members.required_text("text"))
    elif kind == "refusal":
        block = ChatBlock(refusal=members.required_text("refusal"))
    elif kind in _MEDIA_READERS:
        block = ChatBlock(media=_MEDIA_READERS[kind](members))
    elif kind:
        return ChatBlock(vendor_block=vendor_field(kind, raw), source_path=path)
    else:
        refuse(members.path_of("type"), "is missing")
    block.source_path = path
    _take_cache_hint(members, block)
    block.vendor_fields.extend(members.rest())
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


def _read_image(members: Members) -> ChatMedia:
    media = ChatMedia(kind=chat_pb2.CHAT_MEDIA_KIND_IMAGE, detail=members.text("detail"))
    url = members.take("image_url")
    if url is not None:
        set_url(media, text_of(url, members.path_of("image_url")))
        return media
    media.file_id = members.text("file_id")
    if not media.file_id:
        refuse(members.path_of("image_url"), "is missing")
    return media


def _read_file(members: Members) -> ChatMedia:
    media = ChatMedia(
        kind=chat_pb2.CHAT_MEDIA_KIND_DOCUMENT,
        title=members.text("filename"),
        detail=members.text("detail"),
    )
    data = members.take("file_data")
    url = None if data is not None else members.take("file_url")
    if data is not None:
        text = text_of(data, members.path_of("file_data"))
        if text.startswith("data:"):
            set_url(media, text)
        else:
            media.base64_data = text
    elif url is not None:
        media.url = text_of(url, members.path_of("file_url"))
    else:
        media.file_id = members.text("file_id")
        if not media.file_id:
            refuse(members.path_of("file_data"), "is missing")
    return media


def _read_audio(members: Members) -> ChatMedia:
    raw = members.take("input_audio")
    if raw is None:
        refuse(members.path_of("input_audio"), "is missing")
    audio = Members(raw, members.path_of("input_audio"))
    form = audio.required_text("format")
    media = ChatMedia(
        kind=chat_pb2.CHAT_MEDIA_KIND_AUDIO,
        media_type=audio_type(form),
        base64_data=audio.required_text("data"),
    )
    if not audio.is_empty():
        members.keep("input_audio", raw)
    return media


_MEDIA_READERS: Final = {"input_image": _read_image, "input_file": _read_file, "input_audio": _read_audio}
