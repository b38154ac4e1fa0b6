"""LogService over gRPC."""

import time
from collections.abc import AsyncIterator
from typing import Any

from lurus.log.v1.log_pb2 import (
    ExportLogsRequest,
    ExportLogsResponse,
    GetLogRequest,
    GetLogResponse,
    GetStatsRequest,
    GetStatsResponse,
    ListLogsRequest,
    ListLogsResponse,
    WatchUsageRequest,
    WatchUsageResponse,
)
from lurus.log.v1.log_pb2_grpc import LogServiceServicer
from lurus_common.errors import NotFound
from lurus_common.ids import is_request_id
from lurus_common.paging import page_limit
from lurus_log.filters import Position, position_of, time_range
from lurus_log.statistics import stats_groups, stats_limit, stats_response, stats_times
from lurus_log.store import LogStore
from lurus_log.watch import SIGN_OF_LIFE_SECONDS, UsageTail

EXPORT_EVENTS = 500


class LogServicer(LogServiceServicer):
    """Answers from the store, and watches by the tail.

    Args:
        store: the request log.
        tail: the events as they come.
        sign_of_life_seconds: how often a watch without events says that it lives.
    """

    def __init__(
        self, store: LogStore, tail: UsageTail, sign_of_life_seconds: float = SIGN_OF_LIFE_SECONDS
    ) -> None:
        self._store = store
        self._tail = tail
        self._sign_of_life_seconds = sign_of_life_seconds

    async def ListLogs(self, request: ListLogsRequest, context: Any) -> ListLogsResponse:
        limit, after = page_limit(request.page_size), position_of(request.page_token)
        times = time_range(request.filter)
        page = await self._store.newest(request.filter, times, after, limit, _now_micros())
        token = page.next_position.token() if page.next_position else ""
        return ListLogsResponse(events=page.events, next_page_token=token)

    async def GetLog(self, request: GetLogRequest, context: Any) -> GetLogResponse:
        event = None
        if is_request_id(request.request_id):
            event = await self._store.find(request.request_id)
        if event is None:
            raise NotFound("no such request", resource="request", id=request.request_id)
        return GetLogResponse(event=event)

    async def GetStats(self, request: GetStatsRequest, context: Any) -> GetStatsResponse:
        limit, times = stats_limit(request), stats_times(request, _now_micros())
        group_by = stats_groups(request)
        rows = await self._store.statistics(request.filter, times, group_by, limit)
        return stats_response(rows, group_by, limit)

    async def WatchUsage(self, request: WatchUsageRequest, context: Any) -> AsyncIterator[WatchUsageResponse]:
        with self._tail.watch(request.filter) as watcher:
            await self._tail.attached()
            # Says that what is published from here on will be seen.
            yield WatchUsageResponse()
            async for response in watcher.responses(self._sign_of_life_seconds):
                yield response

    async def ExportLogs(self, request: ExportLogsRequest, context: Any) -> AsyncIterator[ExportLogsResponse]:
        times = time_range(request.filter)
        after: Position | None = None
        while True:
            page = await self._store.oldest(request.filter, times, after, EXPORT_EVENTS)
            if page.events:
                yield ExportLogsResponse(events=page.events)
            after = page.next_position
            if after is None:
                return


def _now_micros() -> int:
    return time.time_ns() // 1_000
