"""The typed form of a chat, for callers of no dialect: what is checked, written and put together of it."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import (
    ChatBlock,
    ChatError,
    ChatVendorField,
    CompleteChatResponse,
    StreamChatRequest,
    StreamChatResponse,
)
from lurus_common.errors import InvalidRequest
from lurus_dialects.translation import Asked

# Deeper ones are nobody's; every level of a result's blocks is one more.
MAX_BLOCK_DEPTH: Final = 4
# What the typed fields say. A second statement of them could ask for another model than was allowed.
_STATED_ELSEWHERE: Final = frozenset(
    {"background", "input", "instructions", "messages", "model", "stream", "stream_options", "system"}
)
_FRAME: Final = struct.Struct(">I")


def check_typed(request: StreamChatRequest) -> None:
    """Checks what the contract's rules cannot say: JSON in it goes into a provider's request as it is.

    Raises:
        InvalidRequest: a field that holds JSON does not; `param` names it.
    """
    # Only our own readers know whose words a request was read from.
    request.ClearField("source_dialect")
    _check_fields("vendor_fields", request.vendor_fields)
    for field in request.vendor_fields:
        if field.name in _STATED_ELSEWHERE:
            raise InvalidRequest("vendor_fields: state this in its own field", param="vendor_fields")
    _check_json("output_format.schema", request.output_format.schema)
    for number, tool in enumerate(request.tools):
        path = f"tools[{number}]"
        _check_json(f"{path}.schema", tool.schema)
        _check_json(f"{path}.format", tool.format)
        _check_fields(f"{path}.vendor_fields", tool.vendor_fields)
        if tool.HasField("hosted"):
            _check_fields(f"{path}.hosted", [tool.hosted])
    for number, message in enumerate(request.messages):
        path = f"messages[{number}]"
        _check_fields(f"{path}.vendor_fields", message.vendor_fields)
        _check_blocks(f"{path}.blocks", message.blocks, MAX_BLOCK_DEPTH)


class TypedWriter:
    """Writes events as they are: frames that `typed_events` reads. See `translation.AnswerWriter`."""

    def __init__(self, asked: Asked, request_id: str, lossy_fields: Sequence[str] = ()) -> None:
        self.is_over = False
        self._asked = asked
        self._request_id = request_id
        self._lossy_fields = lossy_fields

    def write(self, event: StreamChatResponse) -> bytes:
        """Returns one frame."""
        kind = event.WhichOneof("event")
        if kind == "start":
            event.start.request_id = self._request_id
            event.start.provider_id = self._asked.provider_id
            event.start.lossy_fields[:] = self._lossy_fields
        elif kind == "thinking_seal":
            event.thinking_seal.provider_id = self._asked.provider_id
            event.thinking_seal.upstream_model = self._asked.upstream_model
        elif kind in ("finish", "error"):
            self.is_over = True
        data = event.SerializeToString()
        return _FRAME.pack(len(data)) + data

    def heartbeat(self) -> bytes:
        """Returns nothing: gRPC keeps its connections alive itself."""
        return b""

    def error(self, reason: str, message: str, request_id: str) -> bytes:
        """Returns the frame that ends a begun stream which cannot be completed."""
        return self.write(StreamChatResponse(error=ChatError(reason=reason, message=message)))


def typed_events(frames: bytes) -> Iterator[StreamChatResponse]:
    """Gives the events in what a `TypedWriter` wrote."""
    position = 0
    while position < len(frames):
        (size,) = _FRAME.unpack_from(frames, position)
        begin = position + _FRAME.size
        position = begin + size
        yield StreamChatResponse.FromString(frames[begin:position])


def put_together(events: Iterable[StreamChatResponse]) -> CompleteChatResponse:
    """Returns the answer whose events these are, with its start, blocks and finish.

    What only one dialect knows stands among the blocks, where it came.
    """
    answer = CompleteChatResponse()
    blocks: dict[int, ChatBlock] = {}
    refusals: set[int] = set()
    vendor_blocks: list[tuple[int, ChatBlock]] = []
    for event in events:
        kind = event.WhichOneof("event")
        block = blocks.setdefault(event.block_index, ChatBlock()) if kind in _OF_BLOCKS else ChatBlock()
        if kind == "start":
            answer.start.CopyFrom(event.start)
        elif kind == "finish":
            answer.finish.CopyFrom(event.finish)
        elif kind == "block_start" and event.block_start.kind == chat_pb2.CHAT_BLOCK_KIND_REFUSAL:
            refusals.add(event.block_index)
        elif kind == "text_delta" and event.block_index in refusals:
            block.refusal += event.text_delta
        elif kind == "text_delta":
            block.text += event.text_delta
        elif kind == "thinking_delta":
            block.thinking.text += event.thinking_delta
        elif kind == "thinking_seal":
            text = block.thinking.text
            block.thinking.CopyFrom(event.thinking_seal)
            block.thinking.text = text or event.thinking_seal.text
        elif kind == "tool_call":
            block.tool_call.CopyFrom(event.tool_call)
        elif kind == "citation":
            block.citations.append(event.citation)
        elif kind == "vendor_event":
            # It has no position of its own: it follows the blocks that have begun, and its like.
            vendor_blocks.append((max(blocks, default=-1), ChatBlock(vendor_block=event.vendor_event)))
    told = [(index, block) for index, block in sorted(blocks.items()) if block.WhichOneof("block")]
    answer.blocks.extend(block for _, block in sorted([*told, *vendor_blocks], key=itemgetter(0)))
    return answer


_OF_BLOCKS: Final = frozenset(
    {"block_start", "text_delta", "thinking_delta", "thinking_seal", "tool_call", "citation"}
)


def _check_blocks(path: str, blocks: Iterable[ChatBlock], depth: int) -> None:
    if not depth:
        raise InvalidRequest(f"{path}: nested too deeply", param=path)
    for number, block in enumerate(blocks):
        place = f"{path}[{number}]"
        kind = block.WhichOneof("block")
        if kind is None:
            raise InvalidRequest(f"{place}: the block is empty", param=place)
        _check_fields(f"{place}.vendor_fields", block.vendor_fields)
        if kind == "tool_result":
            _check_blocks(f"{place}.tool_result.blocks", block.tool_result.blocks, depth - 1)
        elif kind == "thinking":
            _check_json(f"{place}.thinking.original", block.thinking.original)
        elif kind == "vendor_block":
            _check_fields(f"{place}.vendor_block", [block.vendor_block])
        for citation in block.citations:
            _check_fields(f"{place}.citations", [citation.original])


def _check_fields(path: str, fields: Iterable[ChatVendorField]) -> None:
    for field in fields:
        _check_json(path, field.json)


def _check_json(path: str, value: bytes) -> None:
    if not value:
        return
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise InvalidRequest(f"{path}: must be JSON", param=path) from None
