"""The methods for callers of no dialect, over the path of every call."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import msgspec

from lurus.routing.v1.chat_pb2 import (
    ChatReceipt,
    CompleteChatResponse,
    CountTokensResponse,
    StreamChatRequest,
    StreamChatResponse,
)
from lurus.routing.v1.routing_pb2 import RelayEnd
from lurus_common.errors import UpstreamCut
from lurus_dialects.typed import check_typed, put_together, typed_events
from lurus_routing.counts import ESTIMATED
from lurus_routing.incoming import COMPLETE_CHAT, COUNT_TOKENS, STREAM_CHAT
from lurus_routing.relay import Relay


async def stream_chat(
    relay: Relay, request: StreamChatRequest, credential: str
) -> AsyncIterator[StreamChatResponse]:
    """Gives the events of an answer as they come, and then its receipt.

    Raises:
        LurusError: before the first event; later failures are events.
    """
    check_typed(request)
    request_id = ""
    parts = relay.serve_typed(STREAM_CHAT, credential, request, is_streaming=True)
    async with aclosing(parts):
        async for part in parts:
            for event in typed_events(part.data):
                yield event
            if part.HasField("head"):
                request_id = part.head.request_id
            elif part.HasField("end"):
                yield StreamChatResponse(receipt=_receipt(request_id, part.end))


async def complete_chat(relay: Relay, request: StreamChatRequest, credential: str) -> CompleteChatResponse:
    """Returns a whole answer with its receipt.

    Raises:
        LurusError: there is none.
    """
    check_typed(request)
    frames = b""
    answer = CompleteChatResponse()
    parts = relay.serve_typed(COMPLETE_CHAT, credential, request, is_streaming=False)
    async with aclosing(parts):
        async for part in parts:
            frames += part.data
            if part.HasField("head"):
                answer.request_id = part.head.request_id
            elif part.HasField("end"):
                answer.cost_nano_usd = part.end.cost_nano_usd
                answer.provider_id = part.end.provider_id
                answer.lossy_fields.extend(part.end.lossy_fields)
                answer.receipt.CopyFrom(_receipt(answer.request_id, part.end))
    answer.MergeFrom(put_together(typed_events(frames)))
    if not answer.HasField("finish"):
        raise UpstreamCut("the answer was cut", request_id=answer.request_id)
    return answer


def _receipt(request_id: str, end: RelayEnd) -> ChatReceipt:
    return ChatReceipt(
        request_id=request_id,
        cost_nano_usd=end.cost_nano_usd,
        tokens=end.tokens,
        token_source=end.token_source,
        terminal=end.terminal,
        provider_id=end.provider_id,
        upstream_model=end.upstream_model,
        attempt_count=end.attempt_count,
        lossy_fields=end.lossy_fields,
    )


async def count_tokens(relay: Relay, request: StreamChatRequest, credential: str) -> CountTokensResponse:
    """Returns a provider's count, or an estimate that says so.

    Raises:
        LurusError: nobody serves the model, or the request is none.
    """
    check_typed(request)
    body = b""
    is_exact = True
    parts = relay.serve_typed(COUNT_TOKENS, credential, request, is_streaming=False)
    async with aclosing(parts):
        async for part in parts:
            body += part.data
            if part.HasField("head"):
                is_exact = all(header.name != ESTIMATED[0] for header in part.head.headers)
    return CountTokensResponse(
        input_tokens=max(1, msgspec.json.decode(body)["input_tokens"]), is_exact=is_exact
    )
