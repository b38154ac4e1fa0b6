"""Statistics: the rules of a request, and rows as messages."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from lurus.log.v1.log_pb2 import GetStatsRequest, LogFilter, StatsGroup
from lurus_common.errors import InvalidRequest
from lurus_log.filters import ALWAYS, DAY_MICROS, TimeRange
from lurus_log.statistics import MAX_RESPONSE_BYTES, stats_groups, stats_limit, stats_response, stats_times

NOW_MICROS = 1_800_000_000_000_000
ROW = (3, 1, 2, 50, *range(8), 2, [10, 2_000_001, 30], 0, [0, 0, 0])


def test_without_times_it_is_the_last_day() -> None:
    assert stats_times(GetStatsRequest(), NOW_MICROS) == TimeRange(NOW_MICROS - DAY_MICROS, ALWAYS.end)
    since = GetStatsRequest(filter=LogFilter(start_time=Timestamp(seconds=1_700_000_000)))
    assert stats_times(since, NOW_MICROS).start == 1_700_000_000_000_000


@pytest.mark.parametrize(("page_size", "limit"), [(0, 1000), (1, 1), (10**9, 10_000)])
def test_rows_are_limited(page_size: int, limit: int) -> None:
    assert stats_limit(GetStatsRequest(page_size=page_size)) == limit


def test_a_negative_page_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        stats_limit(GetStatsRequest(page_size=-1))


def test_days_are_nothing_beside_hours() -> None:
    hour, day, key = StatsGroup.STATS_GROUP_HOUR, StatsGroup.STATS_GROUP_DAY, StatsGroup.STATS_GROUP_KEY
    assert stats_groups(GetStatsRequest(group_by=[day, key, hour])) == [key, hour]
    assert stats_groups(GetStatsRequest(group_by=[day])) == [day]


def test_a_row_is_read_in_the_order_of_its_groups() -> None:
    groups = [StatsGroup.STATS_GROUP_KEY, StatsGroup.STATS_GROUP_HOUR]
    response = stats_response([("key_1", 3600, *ROW)], groups, 1)
    row = response.rows[0]
    assert (row.key_id, row.bucket_time.seconds, row.model) == ("key_1", 3600, "")
    assert (row.request_count, row.error_count, row.unpriced_count, row.cost_nano_usd) == (3, 1, 2, 50)
    assert (row.tokens.input, row.tokens.reasoning) == (0, 7)
    assert row.first_event.p95_duration.ToMicroseconds() == 2_000_001
    assert not row.HasField("total")
    assert not response.is_truncated


def test_more_rows_than_asked_for_or_than_a_message_holds_are_cut() -> None:
    assert stats_response([ROW, ROW], [], 1).is_truncated
    rows = [("m" * 512, *ROW)] * 10_000
    response = stats_response(rows, [StatsGroup.STATS_GROUP_MODEL], 10_000)
    assert response.is_truncated
    assert MAX_RESPONSE_BYTES - 10_000 < response.ByteSize() <= MAX_RESPONSE_BYTES + 16
