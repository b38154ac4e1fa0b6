"""Reads requests in the shape of OpenAI Responses into the hub's form."""

from lurus.routing.v1.chat_pb2 import StreamChatRequest
from lurus_dialects.translation import Losses


def read_request(body: bytes, losses: Losses) -> StreamChatRequest:
    """See `translate.read_request`."""
    raise NotImplementedError
