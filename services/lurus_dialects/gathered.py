"""A stream of which the client gets a plain answer, when it is whole."""

from typing import Final

from lurus.routing.v1.chat_pb2 import StreamChatResponse
from lurus_dialects.anthropic.gather import Gatherer as AnthropicGatherer
from lurus_dialects.dialect import Dialect
from lurus_dialects.gathering import Gatherer
from lurus_dialects.openai_chat.gather import Gatherer as ChatGatherer
from lurus_dialects.openai_responses.gather import Gatherer as ResponsesGatherer
from lurus_dialects.sse import SseEvent
from lurus_dialects.watch import StreamWatcher

_GATHERERS: Final[dict[Dialect, type[Gatherer]]] = {
    Dialect.ANTHROPIC: AnthropicGatherer,
    Dialect.OPENAI_CHAT: ChatGatherer,
    Dialect.OPENAI_RESPONSES: ResponsesGatherer,
}


class GatheredStream(StreamWatcher):
    """Watches a stream, for a client of the same dialect, and puts it together beside that."""

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(dialect)
        self._gatherer = _GATHERERS[dialect]()

    def whole(self) -> bytes:
        """Returns the plain answer, once `terminal_ok`."""
        return self._gatherer.whole()

    def _is_hidden(self, event: SseEvent) -> bool:
        is_hidden = super()._is_hidden(event)
        if event.data and not self.error_seen:
            self._gatherer.take(event.name, event.data)
            self.lost_event_count = self._gatherer.lost_count
        return is_hidden


class EventCollector:
    """Keeps events for a plain answer in place of writing them. See `translation.AnswerWriter`."""

    def __init__(self) -> None:
        self.is_over = False
        self.events: list[StreamChatResponse] = []

    def write(self, event: StreamChatResponse) -> bytes:
        """Keeps an event."""
        self.events.append(event)
        self.is_over = event.HasField("finish")
        return b""

    def heartbeat(self) -> bytes:
        """Returns nothing: there is no client yet who waits for bytes."""
        return b""

    def error(self, reason: str, message: str, request_id: str) -> bytes:
        """Ends the answer; who reads the stream knows of the error."""
        self.is_over = True
        return b""
