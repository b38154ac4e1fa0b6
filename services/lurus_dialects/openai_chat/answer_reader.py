"""Reads answers in the shape of OpenAI Chat Completions as events of the hub."""

from collections.abc import Mapping

from lurus.routing.v1.chat_pb2 import StreamChatResponse
from lurus_dialects.translation import ToolName


class StreamReader:
    """See `translation.AnswerReader`."""

    def __init__(self, tool_names: Mapping[str, ToolName]) -> None:
        self._tool_names = tool_names

    def read(self, name: bytes, data: bytes) -> list[StreamChatResponse]:
        """Returns what one event says."""
        raise NotImplementedError

    def end(self) -> list[StreamChatResponse]:
        """Returns what the end of the stream says."""
        raise NotImplementedError


def read_body(body: bytes, tool_names: Mapping[str, ToolName]) -> list[StreamChatResponse]:
    """See `translate.read_body`."""
    raise NotImplementedError
