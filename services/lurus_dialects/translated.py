"""An answer on its way from a provider of one dialect to a client of another.

`TranslatedStream` stands where `watch.StreamWatcher` stands when both dialects
are equal: the same facts are noted from the provider's own bytes, so that what
is charged does not depend on the translation.
"""

from collections.abc import Iterable, Sequence

import msgspec

from lurus.routing.v1.chat_pb2 import ChatError, ChatFinish, StreamChatResponse
from lurus_common.money import Tokens
from lurus_dialects import errors, loose
from lurus_dialects.answer import Answer
from lurus_dialects.dialect import Dialect
from lurus_dialects.sequence import Sequencer
from lurus_dialects.sse import MAX_EVENT_BYTES, SseEvent, SseParser, is_unterminated_event
from lurus_dialects.translation import DIALECTS, AnswerReader, AnswerWriter, set_tokens
from lurus_dialects.upstream_errors import report, stream_error_status
from lurus_dialects.watch import OBSERVERS


class TranslatedStream(Answer):
    """Turns a provider's bytes into a client's and notes what they say.

    All that a chunk says is noted when `feed` returns, before the caller
    releases the returned bytes: if `is_over` has become true, they end with the
    client's terminal event, and the usage row is written first.

    Args:
        dialect: the provider's.
        reader: of the provider's dialect.
        writer: of the client's dialect.
        estimated_input_tokens: stated if the provider never states its count.
        client: the client's dialect; None for a typed caller, who is told everything.
    """

    def __init__(
        self,
        dialect: Dialect,
        reader: AnswerReader,
        writer: AnswerWriter,
        request_id: str,
        estimated_input_tokens: int = 0,
        maximum_event_bytes: int = MAX_EVENT_BYTES,
        client: Dialect | None = None,
    ) -> None:
        super().__init__(dialect)
        self._client = client
        self._parser = SseParser(maximum_event_bytes)
        self._observe = OBSERVERS[dialect]
        self._reader = reader
        self._writer = writer
        self._request_id = request_id
        self._estimated_input_tokens = estimated_input_tokens
        self._sequencer = Sequencer()
        self._has_begun = False
        # Written, and not returned yet.
        self._written: list[bytes] = []
        self._is_broken = False

    @property
    def is_over(self) -> bool:
        """True once the client's terminal or error event was returned."""
        return self._writer.is_over and not self._is_broken

    def feed(self, chunk: bytes) -> bytes:
        """Returns the client's whole events that may be released now.

        Raises:
            EventTooLarge: the stream is unusable; events before the large one
                were returned by earlier calls.
            Exception: a reader or a writer has a defect; what it wrote before comes with `stream_error`.
        """
        if self._writer.is_over:
            return b""
        try:
            for event in self._parser.feed(chunk):
                self._written.append(self._take(event))
        except Exception:
            self._is_broken = True
            raise
        return self._taken()

    def _taken(self) -> bytes:
        written, self._written = self._written, []
        return written[0] if len(written) == 1 else b"".join(written)

    def finish(self) -> bytes:
        """Returns what may still be released when the provider has ended the stream.

        Without the provider's terminator that is not the client's: `is_over`
        stays false, and the caller ends the stream with `stream_error`.

        Raises:
            Exception: as `feed`.
        """
        try:
            return self._finished()
        except Exception:
            self._is_broken = True
            raise

    def _finished(self) -> bytes:
        tail = self._parser.finish()
        released = b""
        if tail is not None and _is_whole(tail):
            released = self._take(tail)
        if self._writer.is_over:
            return released
        events = self._reader.end()
        return released + self._write_all([event for event in events if not event.HasField("error")])

    def heartbeat(self) -> bytes:
        """Returns bytes that keep a silent connection alive and change nothing."""
        return self._writer.heartbeat()

    def stream_error(self, reason: str, message: str, request_id: str) -> bytes:
        """Returns the event that ends a stream which was begun and cannot be completed."""
        self._is_broken = False
        written = self._taken()
        try:
            return written + self._writer.error(reason, message, request_id)
        except Exception:
            if self._client is None:
                raise
            # It is the writer that is broken: in the words that need none.
            return written + errors.stream_error(Answer(self._client), reason, message, request_id)

    def _take(self, event: SseEvent) -> bytes:
        if self._writer.is_over:
            return b""
        if not event.data:
            # A provider that makes its client wait says so with comments. They are passed on as
            # far as they show that somebody is there; later our own heartbeats do.
            is_comment = not self._has_begun and b":" in event.raw
            return self._writer.heartbeat() if is_comment else b""
        self._observe(self, event.name, event.data)
        events = self._reader.read(event.name, event.data)
        released = self._write_all(events)
        if not self._writer.is_over and (self.error_seen or self.terminal_seen):
            # The provider has ended its answer. A reader that waits for more would wait in vain.
            released += self._write_all(self._reader.end())
            released += self._error_event() if not self._writer.is_over else b""
        return released

    def _write_all(self, events: Sequence[StreamChatResponse]) -> bytes:
        feed, write = self._sequencer.feed, self._write
        return b"".join([write(told) for event in events for told in feed(event)])

    def _write(self, event: StreamChatResponse) -> bytes:
        if self._writer.is_over:
            return b""
        self._has_begun = True
        kind = event.WhichOneof("event")
        if kind == "finish":
            state_tokens(event.finish, self, self._estimated_input_tokens)
        elif kind == "error":
            if not self.error_seen:
                self.note_error(error_body(event.error))
            return self._error_event()
        elif kind == "vendor_event" and self._client is not None:
            self.lost_event_count += lost_event_count(self._client, [event])
        return self._writer.write(event)

    def _error_event(self) -> bytes:
        """The provider's own error, in the client's words."""
        found = report(stream_error_status(self.error_body), self.error_body)
        return self._writer.error(found.reason, found.message, self._request_id)


def state_tokens(finish: ChatFinish, answer: Answer, estimated_input_tokens: int) -> None:
    """Puts into `finish` the very counts that are charged, estimates where the provider stated none."""
    tokens = answer.tokens
    is_final = answer.final_usage_seen and not answer.meter.is_absurd
    if not is_final:
        tokens.output = max(tokens.output, answer.estimated_output_tokens())
        if answer.meter.is_input_absurd or not answer.usage_seen:
            tokens = Tokens(input=estimated_input_tokens, output=tokens.output)
    finish.tokens.Clear()
    set_tokens(finish.tokens, tokens)
    finish.has_provider_tokens = is_final


def lost_event_count(client: Dialect, events: Iterable[StreamChatResponse]) -> int:
    """Returns how many of the events are known to another dialect than the client's only."""
    known = DIALECTS[client]
    return sum(event.HasField("vendor_event") and event.vendor_event.dialect != known for event in events)


def error_body(error: ChatError) -> bytes:
    """Returns an error that a reader has found as a provider's error body."""
    code = error.code or "api_error"
    return msgspec.json.encode({"error": {"type": code, "code": code, "message": error.message}})


def _is_whole(tail: SseEvent) -> bool:
    if not is_unterminated_event(tail.raw):
        return False
    return tail.data.strip() == b"[DONE]" or isinstance(loose.decode(tail.data), dict)
