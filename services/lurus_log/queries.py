"""The statements that read the log: text of our own, with every value as a server-side parameter."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lurus.log.v1.log_pb2 import LogFilter, StatsGroup
from lurus_log.filters import Position, TimeRange, model_prefix
from lurus_log.rows import dialect_word, terminal_word

MAX_QUERY_SECONDS = 10
MAX_ROWS_TO_READ = 200_000_000
MAX_QUERY_BYTES = 2 * 1024**3

# They stand in the statement, since settings of a connection outlive it. Of
# one request all copies are in one partition, so partitions need no merging.
LIMITS = (
    f"SETTINGS readonly = 2, max_execution_time = {MAX_QUERY_SECONDS}, "
    f"max_rows_to_read = {MAX_ROWS_TO_READ}, max_memory_usage = {MAX_QUERY_BYTES}, "
    "do_not_merge_across_partitions_select_final = 1"
)
# PREWHERE runs before FINAL, so it names only what all copies of a request have in common.
_FROM = "FROM usage_events FINAL PREWHERE"
_START = "event_time >= fromUnixTimestamp64Micro({start:Int64}, 'UTC')"
_END = "event_time < fromUnixTimestamp64Micro({end:Int64}, 'UTC')"
_PLACE = "(event_time, request_id)"
_MICROS = "toUnixTimestamp64Micro(event_time) AS event_micros"

_GROUPS: dict[int, str] = {
    StatsGroup.STATS_GROUP_HOUR: "toUnixTimestamp(toStartOfHour(event_time))",
    StatsGroup.STATS_GROUP_DAY: "toUnixTimestamp(toStartOfDay(event_time))",
    StatsGroup.STATS_GROUP_MODEL: "model",
    StatsGroup.STATS_GROUP_PROVIDER: "provider_id",
    StatsGroup.STATS_GROUP_ACCOUNT: "account_id",
    StatsGroup.STATS_GROUP_KEY: "key_id",
}
_TIME_GROUPS = (StatsGroup.STATS_GROUP_HOUR, StatsGroup.STATS_GROUP_DAY)
_BROKEN = "('UPSTREAM_ERROR', 'TRUNCATED', 'TIMEOUT', 'WORKER_LOST')"
_TOKENS = (
    "input",
    "cache_read",
    "cache_write_5m",
    "cache_write_30m",
    "cache_write_1h",
    "cache_write_12h",
    "output",
    "reasoning",
)


@dataclass(slots=True)
class Query:
    """A statement and the values of its `{name:Type}` parameters."""

    text: str
    parameters: dict[str, object] = field(default_factory=dict)


def keys_query(
    wanted: LogFilter, times: TimeRange, after: Position | None, limit: int, *, newest_first: bool
) -> Query:
    """Finds the places of the next requests and the sizes of their events, which it does not read."""
    before_final, parameters = _times(times)
    if after:
        before_final += f" AND {_PLACE} {'<' if newest_first else '>'} {_place('after', after, parameters)}"
    where = _where(wanted, parameters)
    parameters["limit"] = limit
    order = "DESC" if newest_first else "ASC"
    return Query(
        f"SELECT {_MICROS}, request_id, event_bytes {_FROM} {before_final} {where} "
        f"ORDER BY event_time {order}, request_id {order} LIMIT {{limit:UInt32}} {LIMITS}",
        parameters,
    )


def events_query(
    wanted: LogFilter, oldest: Position, newest: Position, limit: int, *, newest_first: bool
) -> Query:
    """Reads the events from one place to another, both included."""
    before_final, parameters = _times(TimeRange(oldest.event_micros, newest.event_micros + 1))
    before_final += f" AND {_PLACE} >= {_place('oldest', oldest, parameters)}"
    before_final += f" AND {_PLACE} <= {_place('newest', newest, parameters)}"
    where = _where(wanted, parameters)
    parameters["limit"] = limit
    order = "DESC" if newest_first else "ASC"
    return Query(
        f"SELECT {_MICROS}, request_id, event {_FROM} {before_final} {where} "
        f"ORDER BY event_time {order}, request_id {order} LIMIT {{limit:UInt32}} {LIMITS}",
        parameters,
    )


def event_query(request_id: str, times: TimeRange) -> Query:
    """Reads one event, if it ended in these times."""
    before_final, parameters = _times(times)
    parameters["request_id"] = request_id
    return Query(
        f"SELECT event {_FROM} {before_final} AND request_id = {{request_id:String}} LIMIT 1 {LIMITS}",
        parameters,
    )


def stats_query(wanted: LogFilter, times: TimeRange, group_by: Sequence[int], limit: int) -> Query:
    """Counts, sums and quantiles. Columns: `group_by` in its order, then as `statistics.row_of` reads them.

    Quantiles are exact: of n values in order, the one with the number floor(q * n) from 0.
    """
    before_final, parameters = _times(times)
    where = _where(wanted, parameters)
    parameters["limit"] = limit
    groups = [f"{_GROUPS[group]} AS group_{index}" for index, group in enumerate(group_by)]
    names = [f"group_{index}" for index in range(len(group_by))]
    by_time = [f"{name}" for name, group in zip(names, group_by, strict=True) if group in _TIME_GROUPS]
    others = [name for name in names if name not in by_time]
    grouping = f"GROUP BY {', '.join(names)}" if names else ""
    return Query(
        f"SELECT {', '.join([*groups, *_aggregates()])} {_FROM} {before_final} {where} {grouping} "
        f"ORDER BY {', '.join([*by_time, 'cost DESC', *others])} LIMIT {{limit:UInt32}} {LIMITS}",
        parameters,
    )


def _aggregates() -> list[str]:
    return [
        "count()",
        f"countIf(http_status >= 400 OR terminal IN {_BROKEN})",
        "countIf(is_unpriced)",
        "sum(cost_nano_usd) AS cost",
        *(f"sum({name}_tokens)" for name in _TOKENS),
        *_quantiles("first_event_micros"),
        *_quantiles("total_micros"),
    ]


def _quantiles(column: str) -> tuple[str, str]:
    known = f"isNotNull({column})"
    return f"countIf({known})", f"quantilesExactIf(0.5, 0.95, 0.99)(assumeNotNull({column}), {known})"


def _times(times: TimeRange) -> tuple[str, dict[str, object]]:
    return f"{_START} AND {_END}", {"start": times.start, "end": times.end}


def _place(name: str, position: Position, parameters: dict[str, object]) -> str:
    parameters[f"{name}_micros"] = position.event_micros
    parameters[f"{name}_id"] = position.request_id
    return f"(fromUnixTimestamp64Micro({{{name}_micros:Int64}}, 'UTC'), {{{name}_id:String}})"


def _where(wanted: LogFilter, parameters: dict[str, object]) -> str:
    """The conditions of a filter but for its times; adds what they compare with to `parameters`."""
    prefix = model_prefix(wanted.model)
    values: dict[str, object] = {
        "account_id": wanted.account_id,
        "key_id": wanted.key_id,
        "model": wanted.model if prefix is None else "",
        "model_prefix": prefix,
        "provider_id": wanted.provider_id,
        "dialect": wanted.dialect and dialect_word(wanted.dialect),
        "terminal": wanted.terminal and terminal_word(wanted.terminal),
        "min_http_status": wanted.min_http_status,
        "session_id": wanted.session_id,
    }
    used = {name: value for name, value in values.items() if value}
    parameters.update(used)
    conditions = [_CONDITIONS.get(name, f"{name} = {{{name}:String}}") for name in used]
    return " AND ".join(["WHERE 1", *conditions, *(["is_unpriced"] if wanted.only_unpriced else [])])


_CONDITIONS = {
    "model_prefix": "startsWith(model, {model_prefix:String})",
    "min_http_status": "http_status >= {min_http_status:Int32}",
}
