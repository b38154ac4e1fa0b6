"""Writes requests in the shape of Anthropic Messages from the hub's form."""

from lurus.routing.v1.chat_pb2 import StreamChatRequest
from lurus_dialects.translation import Losses, Target, Written


def write_request(
    request: StreamChatRequest, target: Target, losses: Losses, *, is_streaming: bool
) -> Written:
    """See `translate.write_request`."""
    raise NotImplementedError
