"""Filters: times, positions, windows, and whether one event is meant."""

import base64

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from lurus.log.v1.log_pb2 import LogFilter
from lurus_common.errors import InvalidRequest
from lurus_common.ids import new_id
from lurus_common.paging import encode_token
from lurus_log.filters import (
    ALWAYS,
    DAY_MICROS,
    HOUR_MICROS,
    Position,
    TimeRange,
    matches,
    position_of,
    time_range,
    windows_around,
    windows_back,
    windows_forward,
)

from .events import NOW, make_event

NOW_MICROS = NOW * 1_000_000
YEAR_99999 = 3_093_527_980_800


class TestTimeRange:
    def test_without_times_it_is_all_or_begins_where_told(self) -> None:
        assert time_range(LogFilter()) == ALWAYS
        assert time_range(LogFilter(), default_start=NOW_MICROS) == TimeRange(NOW_MICROS, ALWAYS.end)

    def test_one_time_leaves_the_other_side_open(self) -> None:
        at = Timestamp(seconds=NOW, nanos=1_999)
        assert time_range(LogFilter(start_time=at), default_start=7) == TimeRange(NOW_MICROS + 1, ALWAYS.end)
        assert time_range(LogFilter(end_time=at), default_start=7) == TimeRange(ALWAYS.start, NOW_MICROS + 1)

    @pytest.mark.parametrize("seconds", [YEAR_99999, -YEAR_99999, 2**63 - 1, -(2**63)])
    def test_refuses_what_is_no_time(self, seconds: int) -> None:
        for name in ("start_time", "end_time"):
            with pytest.raises(InvalidRequest) as caught:
                time_range(LogFilter(**{name: Timestamp(seconds=seconds)}))
            assert caught.value.metadata["param"] == f"filter.{name}"

    @pytest.mark.parametrize("nanos", [-1, 1_000_000_000])
    def test_refuses_nanoseconds_out_of_range(self, nanos: int) -> None:
        with pytest.raises(InvalidRequest):
            time_range(LogFilter(start_time=Timestamp(seconds=NOW, nanos=nanos)))

    def test_refuses_an_end_before_the_start_and_takes_both_at_once(self) -> None:
        later, now = Timestamp(seconds=NOW + 1), Timestamp(seconds=NOW)
        with pytest.raises(InvalidRequest):
            time_range(LogFilter(start_time=later, end_time=now))
        assert time_range(LogFilter(start_time=now, end_time=now)) == TimeRange(NOW_MICROS, NOW_MICROS)

    def test_cuts_years_that_the_log_cannot_hold(self) -> None:
        wanted = LogFilter(start_time=Timestamp(seconds=-(10**10)), end_time=Timestamp(seconds=2 * 10**11))
        assert time_range(wanted) == ALWAYS


class TestPosition:
    def test_survives_the_page_token(self) -> None:
        position = Position(NOW_MICROS, new_id("req"))
        assert position_of(position.token()) == position
        assert position_of("") is None

    @pytest.mark.parametrize(
        "token",
        [
            "x",
            "%_%_",
            "' OR 1=1--",
            base64.urlsafe_b64encode(b"[1]").decode(),
            encode_token(NOW_MICROS),
            encode_token(new_id("req"), NOW_MICROS),
            encode_token(10**30, new_id("req")),
            encode_token(-1, new_id("req")),
            encode_token(NOW_MICROS, "' OR 1=1--"),
        ],
        ids=range(9),
    )
    def test_refuses_tokens_of_others(self, token: str) -> None:
        with pytest.raises(InvalidRequest):
            position_of(token)


class TestWindows:
    def test_a_list_looks_near_first_and_everywhere_at_last(self) -> None:
        windows = list(windows_back(ALWAYS, None, NOW_MICROS))
        assert windows[0] == TimeRange(NOW_MICROS - HOUR_MICROS, ALWAYS.end)
        assert windows[-1] == ALWAYS
        assert list(windows_back(ALWAYS, Position(5 + ALWAYS.start, "req_"), NOW_MICROS)) == [
            TimeRange(ALWAYS.start, ALWAYS.start + 6)
        ]

    def test_a_short_range_is_one_window(self) -> None:
        times = TimeRange(NOW_MICROS - 5, NOW_MICROS)
        assert list(windows_back(times, None, NOW_MICROS)) == [times]
        assert list(windows_forward(times, None)) == [times]

    def test_an_export_goes_on_where_it_was(self) -> None:
        windows = list(windows_forward(ALWAYS, Position(NOW_MICROS, "req_")))
        assert windows[0] == TimeRange(NOW_MICROS, NOW_MICROS + HOUR_MICROS)
        assert windows[-1] == TimeRange(NOW_MICROS, ALWAYS.end)

    def test_a_request_is_looked_for_near_the_time_in_its_id(self) -> None:
        near, everywhere = windows_around(make_event(age_seconds=0).request_id)
        assert everywhere == ALWAYS
        assert near == TimeRange(NOW_MICROS - 2_000_000 - HOUR_MICROS, NOW_MICROS - 2_000_000 + DAY_MICROS)

    def test_an_id_with_an_impossible_time_is_looked_for_everywhere(self) -> None:
        assert list(windows_around("req_" + "Z" * 26)) == [ALWAYS]


class TestMatches:
    def test_every_field_that_is_set_must_match(self) -> None:
        event = make_event(7)
        assert matches(LogFilter(), event)
        same = LogFilter(account_id=event.account_id, model="gpt*", min_http_status=200, only_unpriced=True)
        assert matches(same, event)
        same.account_id = "acct_other"
        assert not matches(same, event)

    def test_a_star_within_a_model_is_a_star(self) -> None:
        assert not matches(LogFilter(model="gp*6"), make_event(2))
        assert not matches(LogFilter(model="%"), make_event(2))
        assert matches(LogFilter(model="*"), make_event(2))

    def test_times_are_ignored(self) -> None:
        assert matches(LogFilter(end_time=Timestamp(seconds=1)), make_event())
