"""What is known of one answer while it passes: the same for all three dialects."""

from lurus_common.money import Tokens
from lurus_dialects.dialect import Dialect
from lurus_dialects.usage import UsageMeter, estimated_tokens, text_bytes

# Finished output items of a Responses stream, kept for the event that reports a failure.
MAX_KEPT_ITEM_BYTES = 256 * 1024


class Answer:
    """Facts about one answer, filled in by the reader of its dialect.

    Attributes:
        meter: the provider's token counts, merged.
        usage_seen: the provider stated any count, even zero.
        final_usage_seen: it stated the output at the answer's end, not only
            at its start (Anthropic's `message_start` says 1).
        terminal_seen: `message_stop`, `[DONE]` or `response.completed`,
            `.incomplete`, `.failed` was seen; for a plain body, always true.
        terminal_ok: the answer is complete, with no error. Also true for a
            chat stream without `[DONE]` whose `finish_reason` was seen.
        error_seen: the provider's own error event, `response.failed` or error body.
        error_body: that error as a JSON body of the dialect; empty if none.
        content_seen: text, arguments, reasoning or a call was seen.
        sequence_number: of the last Responses event; -1 before the first.
        response_id, response_model, stop_reason: in the provider's words.
        broken_event_count: events that are not JSON of the dialect.
        lost_event_count: events and blocks that a client of another dialect cannot be told.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.meter = UsageMeter(dialect)
        self.final_usage_seen = False
        self.terminal_seen = False
        self.terminal_ok = False
        self.error_seen = False
        self.error_body = b""
        self.content_seen = False
        self.sequence_number = -1
        self.response_id = ""
        self.response_model = ""
        self.stop_reason = ""
        self.broken_event_count = 0
        self.lost_event_count = 0
        self.done_items: list[bytes] = []
        self._done_item_bytes = 0
        self._delta_bytes = 0
        self._done_text_bytes = 0

    @property
    def tokens(self) -> Tokens:
        """Counts that the provider stated so far; see `UsageMeter`."""
        return self.meter.tokens()

    @property
    def units(self) -> dict[str, int]:
        """What the provider counted besides tokens so far, by kind."""
        return self.meter.units()

    @property
    def usage_seen(self) -> bool:
        """True once the provider stated any count."""
        return self.meter.is_used

    @property
    def anomaly_count(self) -> int:
        """How often the provider's counts could not be true; they are suspect then."""
        return self.meter.anomaly_count

    @property
    def raw_usage(self) -> bytes:
        """The provider's usage JSON, pieces merged, kept so that a request can be priced again."""
        return self.meter.raw

    @property
    def is_over(self) -> bool:
        """True once the terminal event or the provider's error was seen."""
        return self.terminal_seen or self.error_seen

    @property
    def output_bytes(self) -> int:
        """Size in UTF-8 of the text, arguments and reasoning seen, however often they were repeated."""
        return max(self._delta_bytes, self._done_text_bytes)

    def estimated_output_tokens(self) -> int:
        """Returns what `output_bytes` are taken for: a quarter, rounded up; never 0 if text was seen."""
        return estimated_tokens(self.output_bytes)

    def add_output(self, text: str | None) -> None:
        """Counts a piece of what the model wrote."""
        if text:
            self.content_seen = True
            self._delta_bytes += text_bytes(text)

    def add_done_output(self, byte_count: int) -> None:
        """Counts a whole item that repeats what its deltas brought, or stands in for them."""
        self._done_text_bytes += byte_count

    def note_error(self, body: bytes) -> None:
        """Notes the provider's own error, given in the shape of an error body."""
        self.error_seen, self.terminal_ok = True, False
        self.error_body = body

    def keep_done_item(self, item: bytes) -> None:
        """Keeps a finished output item, as long as all of them are small."""
        self._done_item_bytes += len(item)
        if self._done_item_bytes > MAX_KEPT_ITEM_BYTES:
            self.done_items.clear()
        else:
            self.done_items.append(item)

    @property
    def are_items_complete(self) -> bool:
        """True if `done_items` holds every item that was finished."""
        return self._done_item_bytes <= MAX_KEPT_ITEM_BYTES
