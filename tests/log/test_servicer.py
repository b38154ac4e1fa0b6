"""The service over a socket: answers, refusals, exports."""

from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from lurus.log.v1.log_pb2 import (
    ExportLogsRequest,
    GetLogRequest,
    GetStatsRequest,
    ListLogsRequest,
    LogFilter,
    StatsGroup,
)
from lurus.log.v1.log_pb2_grpc import LogServiceStub
from lurus_common.errors import InvalidRequest, LurusError, NotFound
from lurus_common.ids import new_id
from lurus_common.rpc import error_of
from lurus_common.settings import Settings, SettingsError
from lurus_log.server import log_server
from lurus_log.servicer import EXPORT_EVENTS
from lurus_log.store import LogStore

from .events import NOW, make_event, newest_first

pytestmark = pytest.mark.anyio

YEAR_99999 = Timestamp(seconds=3_093_527_980_800)


async def failure_of(call: Any) -> LurusError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_of(caught.value)


async def test_lists_gets_and_counts(stub: LogServiceStub, store: LogStore) -> None:
    events = newest_first(make_event(n) for n in range(120))
    await store.insert(events)
    first = await stub.ListLogs(ListLogsRequest())
    second = await stub.ListLogs(ListLogsRequest(page_size=10**9, page_token=first.next_page_token))
    assert [*first.events, *second.events] == events
    assert (len(first.events), second.next_page_token) == (50, "")
    assert (await stub.GetLog(GetLogRequest(request_id=events[5].request_id))).event == events[5]
    stats = await stub.GetStats(GetStatsRequest(group_by=[StatsGroup.STATS_GROUP_KEY], page_size=3))
    assert (len(stats.rows), stats.is_truncated) == (3, True)


async def test_statistics_are_of_the_last_day_unless_told(stub: LogServiceStub, store: LogStore) -> None:
    await store.insert([make_event(1), make_event(2, age_seconds=30 * 3600)])
    assert (await stub.GetStats(GetStatsRequest())).rows[0].request_count == 1
    since = LogFilter(start_time=Timestamp(seconds=NOW - 40 * 3600))
    assert (await stub.GetStats(GetStatsRequest(filter=since))).rows[0].request_count == 2


@pytest.mark.parametrize("request_id", [new_id("req"), "' OR 1=1--", "%", "evt_1"], ids=range(4))
async def test_what_is_not_there_is_not_found(stub: LogServiceStub, request_id: str) -> None:
    failure = await failure_of(stub.GetLog(GetLogRequest(request_id=request_id)))
    assert isinstance(failure, NotFound)
    assert failure.metadata == {"resource": "request", "id": request_id}


@pytest.mark.row("B25", "B41")
async def test_bad_input_is_the_callers_fault(stub: LogServiceStub) -> None:
    lists = [
        ListLogsRequest(page_size=-1),
        ListLogsRequest(page_token="nonsense"),
        ListLogsRequest(page_token="WzEsICJ4Il0"),
        ListLogsRequest(page_token="x" * 3000),
        ListLogsRequest(filter=LogFilter(model="%_" * 5_000)),
        ListLogsRequest(filter=LogFilter(account_id="%" * 10_000)),
        ListLogsRequest(filter=LogFilter(min_http_status=600)),
        ListLogsRequest(filter=LogFilter(dialect=99)),  # type: ignore[arg-type]
        ListLogsRequest(filter=LogFilter(end_time=YEAR_99999)),
        ListLogsRequest(filter=LogFilter(start_time=Timestamp(seconds=2), end_time=Timestamp(seconds=1))),
    ]
    for request in lists:
        assert isinstance(await failure_of(stub.ListLogs(request)), InvalidRequest), request
    groups: list[list[Any]] = [[1, 1], [0], [1, 2, 3, 4], [99]]
    for stats in [
        GetStatsRequest(page_size=-1),
        GetStatsRequest(filter=LogFilter(start_time=YEAR_99999)),
        *(GetStatsRequest(group_by=group) for group in groups),
    ]:
        assert isinstance(await failure_of(stub.GetStats(stats)), InvalidRequest), stats
    assert isinstance(await failure_of(stub.GetLog(GetLogRequest())), InvalidRequest)
    export = stub.ExportLogs(ExportLogsRequest(filter=LogFilter(start_time=YEAR_99999)))
    assert isinstance(await failure_of(anext(aiter(export))), InvalidRequest)


@pytest.mark.row("B24", "B26")
async def test_hostile_filters_match_literally_or_not_at_all(stub: LogServiceStub, store: LogStore) -> None:
    odd = make_event(1, model="%_%_%_'; DROP TABLE usage_events; --")
    await store.insert([make_event(2), odd])
    for text in ("%_%_%*", odd.model):
        found = await stub.ListLogs(ListLogsRequest(filter=LogFilter(model=text)))
        assert list(found.events) == [odd]
    for text in ("%", "(a+)+$", ".*", "_*", "' OR 1=1--"):
        assert not (await stub.ListLogs(ListLogsRequest(filter=LogFilter(model=text)))).events


async def test_an_export_streams_all_and_holds_little(stub: LogServiceStub, store: LogStore) -> None:
    """100 MB of events; what the process grows by is a few pages, of the server and of this client."""
    padding = bytes(20_000)
    for start in range(0, 5_000, 500):
        await store.insert([make_event(n, raw_usage=padding) for n in range(start, start + 500)])
    process = psutil.Process()
    count, latest, before, peak = 0, 0, process.memory_info().rss, 0
    async for response in stub.ExportLogs(ExportLogsRequest()):
        assert 0 < len(response.events) <= EXPORT_EVENTS
        times = [event.event_time.ToMicroseconds() for event in response.events]
        assert times == sorted(times)
        assert latest <= times[0]
        count, latest = count + len(times), times[-1]
        peak = max(peak, process.memory_info().rss)
    print(f"grew by {(peak - before) / 1e6:.0f} MB")
    assert count == 5_000
    assert peak - before < 60_000_000


async def test_an_export_filters_and_may_be_empty(stub: LogServiceStub, store: LogStore) -> None:
    events = [make_event(n) for n in range(10)]
    await store.insert(events)
    wanted = LogFilter(account_id="acct_1")
    found = [e async for r in stub.ExportLogs(ExportLogsRequest(filter=wanted)) for e in r.events]
    assert found == [e for e in newest_first(events)[::-1] if e.account_id == "acct_1"]
    nobody = ExportLogsRequest(filter=LogFilter(account_id="acct_nobody"))
    assert [r async for r in stub.ExportLogs(nobody)] == []


async def test_a_missing_setting_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="LURUS_CLICKHOUSE_URL"):
        async with log_server(Settings()):
            pytest.fail("it started")
