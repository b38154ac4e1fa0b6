"""Writes events of the hub as answers in the shape of OpenAI Chat Completions."""

from collections.abc import Sequence

from lurus.routing.v1.chat_pb2 import StreamChatResponse
from lurus_dialects.translation import Asked


class StreamWriter:
    """See `translation.AnswerWriter`."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self.is_over = False

    def write(self, event: StreamChatResponse) -> bytes:
        """Returns whole events of the dialect."""
        raise NotImplementedError

    def heartbeat(self) -> bytes:
        """Returns bytes that keep a silent connection alive."""
        raise NotImplementedError

    def error(self, reason: str, message: str, request_id: str) -> bytes:
        """Returns the event that ends a stream which cannot be completed."""
        raise NotImplementedError


def write_body(events: Sequence[StreamChatResponse], asked: Asked) -> bytes:
    """See `translate.write_body`."""
    raise NotImplementedError
