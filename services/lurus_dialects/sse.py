"""Server-sent events out of bytes, without waiting and without losing a byte.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import re

import msgspec

from lurus_common.errors import UpstreamFailed

MAX_EVENT_BYTES = 8 * 1024 * 1024

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
# Atomic, so that one CRLF is never read as two line ends.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_BLANK_LINE_MAX_BYTES = 4
_CARRIAGE_RETURN = 13
# Up to here an unfinished block is joined with the next chunk and cut anew.
_MAX_SMALL_BYTES = 16 * 1024


class EventTooLarge(UpstreamFailed):
    """One event of a stream exceeds `maximum_bytes`."""


class SseEvent(msgspec.Struct, gc=False):
    """One block of a stream: an event, or only comments, ids or blank lines.

    The `raw` bytes of all blocks, joined, are the stream, whatever its line
    ends. `data` is empty if the block dispatches no event; several data lines
    are joined by a line feed. `name` is empty without an `event:` line.
    """

    raw: bytes
    data: bytes = b""
    name: bytes = b""
    has_id: bool = False


class SseParser:
    """Cuts a byte stream into blocks, wherever the chunks were cut.

    Lines end with LF, CRLF or CR, mixed at will. A byte order mark at the
    start belongs to the first block's `raw` and to no field. Never split such
    a stream by `str.splitlines`: it also splits at U+2028 and U+0085.
    """

    def __init__(self, maximum_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._maximum = maximum_event_bytes
        self._small = min(_MAX_SMALL_BYTES, maximum_event_bytes)
        self._held = b""  # An unfinished block while it is small; `_large` is empty then.
        self._large = bytearray()
        self._is_at_start = True
        self._is_too_large = False

    @property
    def held_bytes(self) -> int:
        """Size of the unfinished block."""
        return len(self._held) + len(self._large)

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Returns the blocks that `chunk` completes, in order.

        A block is complete with its blank line. If that ends with the CR of a
        stream that ends lines with CRLF, the LF is waited for.

        Raises:
            EventTooLarge: if a block is over the limit. What was complete
                before it has been returned by then; the stream is unusable.
        """
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if _CARRIAGE_RETURN in chunk or self._is_at_start or self._large or len(chunk) > self._small:
            return self._feed_any(chunk)
        lines = chunk.split(b"\n")
        # One whole event is what nearly every chunk is.
        if len(lines) == 4 and not lines[2] and not lines[3]:
            event, data = lines[0], lines[1]
            if data[:6] == b"data: " and event[:7] == b"event: ":
                return [SseEvent(chunk, data[6:], event[7:])]
        elif len(lines) == 3 and not lines[1] and not lines[2] and lines[0][:6] == b"data: ":
            return [SseEvent(chunk, lines[0][6:])]
        return self._feed_uniform(chunk, b"\n")

    def finish(self) -> SseEvent | None:
        """Returns the last block if the stream ended before its blank line.

        Its last line counts as ended. Whether it is whole, only its reader can
        tell; see `is_unterminated_event`.
        """
        raw = self._held + self._large
        self._held, self._large = b"", bytearray()
        return self._parse_block(raw) if raw and not self._is_too_large else None

    def _feed_uniform(self, chunk: bytes, line_end: bytes) -> list[SseEvent]:
        """Cuts a small chunk whose lines all end alike."""
        blank = line_end * 2
        blocks = chunk.split(blank)
        self._held = blocks.pop()
        events: list[SseEvent] = []
        for block in blocks:
            lines = block.split(line_end)
            if len(lines) == 2 and lines[1][:6] == b"data: " and lines[0][:7] == b"event: ":
                events.append(SseEvent(block + blank, lines[1][6:], lines[0][7:]))
            else:
                events.append(_parse_lines(block + blank, lines))
        return events

    def _feed_any(self, chunk: bytes) -> list[SseEvent]:
        if self._is_too_large:
            raise self._too_large()
        if not self._is_at_start and not self._large and len(chunk) <= self._small:
            line_count = chunk.count(b"\r\n")
            if line_count == chunk.count(b"\n") == chunk.count(b"\r"):
                return self._feed_uniform(chunk, b"\r\n")
        events: list[SseEvent] = []
        for raw in self._cut(chunk):
            if len(raw) > self._maximum:
                self._is_too_large = True
                break
            events.append(self._parse_block(raw))
        self._is_too_large |= len(self._large) > self._maximum
        if len(self._large) <= self._small or self._is_too_large:
            self._held, self._large = bytes(self._large), bytearray()
        if self._is_too_large:
            self._held = b""
            self._small = -1  # So that every later call comes here, and raises.
            if not events:
                raise self._too_large()
        return events

    def _cut(self, chunk: bytes) -> list[bytes]:
        large = self._large
        search_from = max(0, len(large) - _BLANK_LINE_MAX_BYTES + 1)
        large += chunk
        ends = [match.end() for match in _BLANK_LINE.finditer(large, search_from)]
        if ends and ends[-1] == len(large) and large.endswith(b"\n\r"):
            ends.pop()
        if not ends:
            return []
        taken = bytes(large[: ends[-1]])
        del large[: ends[-1]]
        return [taken[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def _parse_block(self, raw: bytes) -> SseEvent:
        is_first, self._is_at_start = self._is_at_start, False
        lines = _LINE_END.split(raw.removeprefix(_BYTE_ORDER_MARK) if is_first else raw)
        return _parse_lines(raw, lines)

    def _too_large(self) -> EventTooLarge:
        return EventTooLarge("the provider sent an event over the limit", maximum_bytes=self._maximum)


def is_unterminated_event(raw: bytes) -> bool:
    """True if a last block lacks nothing after its data line but the blank line."""
    last_line = _LINE_END.split(raw.rstrip(b"\r\n"))[-1]
    return last_line.startswith(b"data:")


def terminated(raw: bytes) -> bytes:
    """Returns a block that the end of the stream cut with the blank line it lacks."""
    match = _LINE_END.search(raw)
    line_end = match.group() if match else b"\n"
    content = raw.rstrip(b"\r\n")
    return content + line_end * 2


def _parse_lines(raw: bytes, lines: list[bytes]) -> SseEvent:
    data: list[bytes] = []
    name = b""
    has_id = False
    for line in lines:
        if line[:6] == b"data: ":
            data.append(line[6:])
            continue
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.removeprefix(b" ")
        elif field == b"id":
            has_id = True
    return SseEvent(raw, data[0] if len(data) == 1 else b"\n".join(data), name, has_id)
