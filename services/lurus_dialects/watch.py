"""Watches a stream pass from a provider to a client of the same dialect.

Nothing here changes a byte of what the client reads, except the one chunk that
the client did not ask for, and nothing here can break the stream: an event
that cannot be read passes and is counted.
"""

from collections.abc import Callable
from typing import Final

from lurus_dialects import errors, loose
from lurus_dialects.answer import Answer
from lurus_dialects.anthropic import observe as anthropic
from lurus_dialects.dialect import Dialect
from lurus_dialects.openai_chat import observe as openai_chat
from lurus_dialects.openai_responses import observe as openai_responses
from lurus_dialects.sse import MAX_EVENT_BYTES, SseEvent, SseParser, is_unterminated_event, terminated

OBSERVERS: Final[dict[Dialect, Callable[[Answer, bytes, bytes], bool]]] = {
    Dialect.ANTHROPIC: anthropic.observe_event,
    Dialect.OPENAI_CHAT: openai_chat.observe_event,
    Dialect.OPENAI_RESPONSES: openai_responses.observe_event,
}


class StreamWatcher(Answer):
    """Releases whole events of a stream and notes what they say.

    All that a chunk says is noted when `feed` returns, before the caller
    releases the returned bytes: if `is_over` has become true, the usage row is
    written first.

    Args:
        strip_usage_chunk: hide the chunks with usage and no choice, for a
            client that did not ask for them (wire-contract B6).
    """

    def __init__(
        self, dialect: Dialect, strip_usage_chunk: bool = False, maximum_event_bytes: int = MAX_EVENT_BYTES
    ) -> None:
        super().__init__(dialect)
        self._parser = SseParser(maximum_event_bytes)
        self._observe = OBSERVERS[dialect]
        self._strips_usage = strip_usage_chunk and dialect is Dialect.OPENAI_CHAT
        self._has_id = False

    def feed(self, chunk: bytes) -> bytes:
        """Returns the bytes that may be released now: whole events, untouched.

        Raises:
            EventTooLarge: the stream is unusable; events before the large one
                were returned by earlier calls.
        """
        events = self._parser.feed(chunk)
        if len(events) == 1:
            event = events[0]
            return b"" if self._is_hidden(event) else event.raw
        return b"".join([event.raw for event in events if not self._is_hidden(event)])

    def finish(self) -> bytes:
        """Returns what may still be released when the provider has ended the stream.

        An unfinished last event is dropped, unless it lacks only its blank
        line, which is then added: a client's parser would not dispatch it.
        """
        released = b""
        tail = self._parser.finish()
        if tail is not None and self._is_whole(tail) and not self._is_hidden(tail):
            released = terminated(tail.raw)
        if self.dialect is Dialect.OPENAI_CHAT and self.stop_reason and not self.error_seen:
            self.terminal_ok = True
        return released

    def heartbeat(self) -> bytes:
        """Returns bytes that keep a silent connection alive and change nothing (wire-contract G11, G12)."""
        if self.dialect is Dialect.ANTHROPIC:
            return b'event: ping\ndata: {"type": "ping"}\n\n'
        if self.dialect is Dialect.OPENAI_RESPONSES and self.sequence_number >= 0:
            return (
                b'event: keepalive\ndata: {"type":"keepalive","sequence_number":%d}\n\n'
                % self.sequence_number
            )
        # After an `id:` line the OpenAI SDK makes an empty event of every blank line, and dies of it.
        return b": keepalive\n" if self._has_id else b": keepalive\n\n"

    def stream_error(self, reason: str, message: str, request_id: str) -> bytes:
        """Returns the event that ends a stream which was begun and cannot be completed.

        The dialect's terminator must not follow it.
        """
        return errors.stream_error(self, reason, message, request_id)

    def _is_hidden(self, event: SseEvent) -> bool:
        if event.has_id:
            self._has_id = True
        if not event.data:
            return False
        try:
            return self._observe(self, event.name, event.data) and self._strips_usage
        except Exception:
            # A defect of ours in counting is no reason to keep an event from the client.
            self.broken_event_count += 1
            return False

    def _is_whole(self, tail: SseEvent) -> bool:
        if not is_unterminated_event(tail.raw):
            return False
        return tail.data.strip() == b"[DONE]" or isinstance(loose.decode(tail.data), dict)
