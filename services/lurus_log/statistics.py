"""Statistics: the rules of a request for them, and their rows as messages."""

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lurus.log.v1.log_pb2 import GetStatsRequest, GetStatsResponse, Quantiles, StatsGroup, StatsRow
from lurus.usage.v1.usage_pb2 import Tokens
from lurus_common.paging import page_limit
from lurus_log.filters import DAY_MICROS, TimeRange, time_range

DEFAULT_ROWS = 1000
MAX_ROWS = 10_000
# Leaves room below the 4 MiB that services exchange.
MAX_RESPONSE_BYTES = 3 * 1024 * 1024

_NAMES: dict[int, str] = {
    StatsGroup.STATS_GROUP_MODEL: "model",
    StatsGroup.STATS_GROUP_PROVIDER: "provider_id",
    StatsGroup.STATS_GROUP_ACCOUNT: "account_id",
    StatsGroup.STATS_GROUP_KEY: "key_id",
}


def stats_limit(request: GetStatsRequest) -> int:
    """Returns how many rows may be answered.

    Raises:
        InvalidRequest: if `page_size` is below 0.
    """
    return page_limit(request.page_size, DEFAULT_ROWS, MAX_ROWS)


def stats_times(request: GetStatsRequest, now: int) -> TimeRange:
    """Returns the times of a request, the last 24 hours if it names none.

    Raises:
        InvalidRequest: if a time is none, or the range ends before it starts.
    """
    return time_range(request.filter, default_start=now - DAY_MICROS)


def stats_groups(request: GetStatsRequest) -> list[int]:
    """Returns by what to group. A row has one time, so days are nothing beside hours."""
    groups = [int(group) for group in request.group_by]
    if StatsGroup.STATS_GROUP_HOUR in groups and StatsGroup.STATS_GROUP_DAY in groups:
        groups.remove(StatsGroup.STATS_GROUP_DAY)
    return groups


def stats_response(rows: Sequence[Sequence[object]], group_by: Sequence[int], limit: int) -> GetStatsResponse:
    """Returns the rows of a `stats_query` that asked for one more than `limit`."""
    response = GetStatsResponse()
    size = 0
    for columns in rows[:limit]:
        row = row_of(columns, group_by)
        size += row.ByteSize() + 4
        if size > MAX_RESPONSE_BYTES:
            break
        response.rows.append(row)
    response.is_truncated = len(response.rows) < len(rows)
    return response


def row_of(columns: Sequence[object], group_by: Sequence[int]) -> StatsRow:
    """Returns the columns of a `stats_query` as a message."""
    row = StatsRow()
    for group, value in zip(group_by, columns, strict=False):
        if group in _NAMES:
            setattr(row, _NAMES[group], value)
        else:
            row.bucket_time.CopyFrom(Timestamp(seconds=_int(value)))
    values = columns[len(group_by) :]
    row.request_count, row.error_count, row.unpriced_count, row.cost_nano_usd = map(_int, values[:4])
    row.tokens.CopyFrom(_tokens([_int(value) for value in values[4:12]]))
    _set_quantiles(row.first_event, values[12], values[13])
    _set_quantiles(row.total, values[14], values[15])
    return row


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _tokens(counts: Sequence[int]) -> Tokens:
    names = [field.name for field in Tokens.DESCRIPTOR.fields]
    return Tokens(**dict(zip(names, counts, strict=True)))


def _set_quantiles(target: Quantiles, count: object, micros: object) -> None:
    """Leaves them unset if no request of the group has this duration."""
    if not count:
        return
    assert isinstance(micros, (list, tuple))
    for name, value in zip(("p50_duration", "p95_duration", "p99_duration"), micros, strict=True):
        getattr(target, name).CopyFrom(_duration(_int(value)))


def _duration(micros: int) -> Duration:
    seconds, rest = divmod(micros, 1_000_000)
    return Duration(seconds=seconds, nanos=rest * 1_000)
