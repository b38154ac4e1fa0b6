"""A usage event as a row of the table `usage_events`."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lurus.usage.v1.usage_pb2 import Dialect, Terminal, TokenSource, UsageEvent

# Of `event_time`; what lies outside is a broken clock and would make the partitions of a century.
EARLIEST_MICROS = 946_684_800_000_000
LATEST_MICROS = 4_102_444_800_000_000
FIRST_VERSION = 1
_TEXT, _WORD, _COUNT, _FLAG = "String", "LowCardinality(String)", "Int64", "Bool"

# Columns and their types, in the order of `row_of`.
COLUMNS = {
    "account_id": _TEXT,
    "event_time": "DateTime64(6, 'UTC')",
    "request_id": _TEXT,
    "version": "UInt32",
    "key_id": _TEXT,
    "session_id": _TEXT,
    "dialect": _WORD,
    "is_streaming": _FLAG,
    "model": _WORD,
    "provider_id": _WORD,
    "credential_id": _WORD,
    "upstream_model": _WORD,
    "attempt_count": "Int32",
    "terminal": _WORD,
    "http_status": "Int32",
    "error_reason": _WORD,
    "stop_reason": _WORD,
    "first_event_micros": "Nullable(Int64)",
    "total_micros": "Nullable(Int64)",
    "request_bytes": _COUNT,
    "response_bytes": _COUNT,
    "token_source": _WORD,
    "input_tokens": _COUNT,
    "cache_read_tokens": _COUNT,
    "cache_write_5m_tokens": _COUNT,
    "cache_write_30m_tokens": _COUNT,
    "cache_write_1h_tokens": _COUNT,
    "cache_write_12h_tokens": _COUNT,
    "output_tokens": _COUNT,
    "reasoning_tokens": _COUNT,
    "cost_nano_usd": _COUNT,
    "price_id": _WORD,
    "is_unpriced": _FLAG,
    "worker_id": _WORD,
    "event": _TEXT,
    "event_bytes": _COUNT,
}


def _words(items: Iterable[tuple[str, int]], prefix: str) -> Mapping[int, str]:
    return {number: name.removeprefix(prefix) for name, number in items}


# A value that a newer release has added is stored as its number.
_DIALECTS = _words(Dialect.items(), "DIALECT_")
_TERMINALS = _words(Terminal.items(), "TERMINAL_")
_TOKEN_SOURCES = _words(TokenSource.items(), "TOKEN_SOURCE_")


class EventUnfit(Exception):
    """The event is at fault, not the store: it can never become a row."""


def row_of(event: UsageEvent) -> Sequence[object]:
    """Returns the row of an event.

    Raises:
        EventUnfit: if it ended before 2000 or after 2099.
    """
    micros = micros_of(event.event_time)
    if not EARLIEST_MICROS <= micros < LATEST_MICROS:
        raise EventUnfit(f"event_time {event.event_time.seconds} s is not within 2000 to 2099")
    event_bytes = event.SerializeToString()
    return (
        event.account_id,
        datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000),
        event.request_id,
        FIRST_VERSION,
        event.key_id,
        event.session_id,
        dialect_word(event.dialect),
        event.is_streaming,
        event.model,
        event.provider_id,
        event.credential_id,
        event.upstream_model,
        len(event.attempts),
        terminal_word(event.terminal),
        event.http_status,
        event.error_reason,
        event.stop_reason,
        _duration_micros(event.first_event_duration) if event.HasField("first_event_duration") else None,
        _duration_micros(event.total_duration) if event.HasField("total_duration") else None,
        event.request_bytes,
        event.response_bytes,
        _TOKEN_SOURCES.get(event.token_source, str(event.token_source)),
        *_token_counts(event),
        event.cost_nano_usd,
        event.price_id,
        event.is_unpriced,
        event.worker_id,
        event_bytes,
        len(event_bytes),
    )


def micros_of(time: Timestamp) -> int:
    """Returns a time in microseconds since 1970, rounded down."""
    return time.seconds * 1_000_000 + time.nanos // 1_000


def dialect_word(dialect: int) -> str:
    """Returns how a dialect is stored: its name without prefix."""
    return _DIALECTS.get(dialect, str(dialect))


def terminal_word(terminal: int) -> str:
    """Returns how a terminal is stored: its name without prefix."""
    return _TERMINALS.get(terminal, str(terminal))


def _token_counts(event: UsageEvent) -> tuple[int, ...]:
    tokens = event.tokens
    return (
        tokens.input,
        tokens.cache_read,
        tokens.cache_write_5m,
        tokens.cache_write_30m,
        tokens.cache_write_1h,
        tokens.cache_write_12h,
        tokens.output,
        tokens.reasoning,
    )


def _duration_micros(duration: Duration) -> int:
    return duration.seconds * 1_000_000 + duration.nanos // 1_000
