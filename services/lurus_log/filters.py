"""Which requests a filter means: its time range, and whether one event is among them."""

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from lurus.log.v1.log_pb2 import LogFilter
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.errors import InvalidRequest
from lurus_common.ids import is_request_id
from lurus_common.paging import decode_token, encode_token
from lurus_log.rows import EARLIEST_MICROS, LATEST_MICROS, micros_of

HOUR_MICROS = 3_600_000_000
DAY_MICROS = 24 * HOUR_MICROS
# A page is looked for in the nearest hour first, then in more, at last in all.
WINDOWS_MICROS = (HOUR_MICROS, 7 * DAY_MICROS)
# A request id holds the time of its arrival; most requests end within a day of it.
CLOCK_SKEW_MICROS = HOUR_MICROS
MIN_SECONDS, MAX_SECONDS = -62_135_596_800, 253_402_300_799
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True, slots=True)
class TimeRange:
    """From `start` until before `end`, in microseconds since 1970."""

    start: int
    end: int


ALWAYS = TimeRange(EARLIEST_MICROS, LATEST_MICROS)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """The place of an event in the order of the log."""

    event_micros: int
    request_id: str

    def token(self) -> str:
        """Returns it as a page token."""
        return encode_token(self.event_micros, self.request_id)


def position_of(page_token: str) -> Position | None:
    """Returns the position that a page token stands for, or None for the first page.

    Raises:
        InvalidRequest: if it is not one of ours.
    """
    values = decode_token(page_token, int, str)
    if values is None:
        return None
    event_micros, request_id = values
    assert isinstance(event_micros, int) and isinstance(request_id, str)
    if not EARLIEST_MICROS <= event_micros < LATEST_MICROS or not is_request_id(request_id):
        raise InvalidRequest("page_token is not one that this list returned", param="page_token")
    return Position(event_micros, request_id)


def time_range(wanted: LogFilter, default_start: int = EARLIEST_MICROS) -> TimeRange:
    """Returns the times of a filter, cut to those that the log can hold.

    Args:
        wanted: the filter.
        default_start: where to begin if the filter names no time at all.

    Raises:
        InvalidRequest: if a time is none, or the range ends before it starts.
    """
    has_start, has_end = wanted.HasField("start_time"), wanted.HasField("end_time")
    start = _micros(wanted.start_time, "start_time") if has_start else ALWAYS.start
    end = _micros(wanted.end_time, "end_time") if has_end else ALWAYS.end
    if start > end:
        raise InvalidRequest("start_time must not be after end_time", param="filter.start_time")
    if not has_start and not has_end:
        start = default_start
    return TimeRange(_cut(start), _cut(end))


def _micros(time: Timestamp, name: str) -> int:
    if not MIN_SECONDS <= time.seconds <= MAX_SECONDS or not 0 <= time.nanos < 1_000_000_000:
        raise InvalidRequest(f"{name} is not a time between the years 1 and 9999", param=f"filter.{name}")
    return micros_of(time)


def _cut(micros: int) -> int:
    return max(ALWAYS.start, min(ALWAYS.end, micros))


def windows_back(times: TimeRange, position: Position | None, now: int) -> Iterator[TimeRange]:
    """Yields growing parts of a range that end where a page begins; the last one is all of it.

    Reading the newest requests of a large log must not read all of it.
    """
    anchor = min(times.end, position.event_micros if position else now)
    end = min(times.end, position.event_micros + 1) if position else times.end
    for span in WINDOWS_MICROS:
        if anchor - span > times.start:
            yield TimeRange(anchor - span, end)
    yield TimeRange(times.start, end)


def windows_forward(times: TimeRange, position: Position | None) -> Iterator[TimeRange]:
    """Yields growing parts of a range that start where a page begins; the last one is all of it."""
    start = max(times.start, position.event_micros) if position else times.start
    for span in WINDOWS_MICROS:
        if start + span < times.end:
            yield TimeRange(start, start + span)
    yield TimeRange(start, times.end)


def windows_around(request_id: str) -> Iterator[TimeRange]:
    """Yields where to look for a request: near the time in its id, then everywhere."""
    arrival = _arrival_micros(request_id)
    near = TimeRange(_cut(arrival - CLOCK_SKEW_MICROS), _cut(arrival + DAY_MICROS))
    if near.start < near.end:
        yield near
    yield ALWAYS


def _arrival_micros(request_id: str) -> int:
    """The first ten characters of a ULID are its milliseconds. Source: https://github.com/ulid/spec"""
    milliseconds = 0
    for character in request_id.removeprefix("req_")[:10]:
        milliseconds = milliseconds * 32 + _CROCKFORD.index(character)
    return milliseconds * 1_000


def model_prefix(model: str) -> str | None:
    """Returns the prefix that a model filter means, or None if it means one model."""
    return model[:-1] if model.endswith("*") else None


def matches(wanted: LogFilter, event: UsageEvent) -> bool:
    """Whether a filter, without its times, means this event."""
    prefix = model_prefix(wanted.model)
    model_fits = event.model == wanted.model if prefix is None else event.model.startswith(prefix)
    return (
        wanted.account_id in ("", event.account_id)
        and wanted.key_id in ("", event.key_id)
        and (not wanted.model or model_fits)
        and wanted.provider_id in ("", event.provider_id)
        and wanted.dialect in (0, event.dialect)
        and wanted.terminal in (0, event.terminal)
        and event.http_status >= wanted.min_http_status
        and wanted.session_id in ("", event.session_id)
        and (event.is_unpriced or not wanted.only_unpriced)
    )
