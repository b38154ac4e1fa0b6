"""The state of all routes of a worker, for those who watch.

One table for all watchers, in which each row has the number of its last
change. A watcher remembers only up to which number it has seen: a slow one
gets the newest state of what has changed meanwhile, and holds nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator

from lurus.routing.v1 import routing_pb2 as pb
from lurus_common.errors import Overloaded
from lurus_routing.catalog import Catalog
from lurus_routing.explain import set_health
from lurus_routing.health import Health, RouteKey

MAX_WATCHERS = 32
ROWS_PER_MESSAGE = 500
PAUSE_SECONDS = 0.5
# Of all time, at most so much goes into looking for changes.
MAX_SHARE = 0.05


class RouteBoard:
    """Rows by route, looked through only while somebody watches.

    Args:
        health: of the worker.
        catalog: gives the catalog of now, None if there is none yet.
        worker_id: of the worker.
    """

    def __init__(self, health: Health, catalog: Callable[[], Catalog | None], worker_id: str) -> None:
        self._health = health
        self._catalog = catalog
        self._worker_id = worker_id
        self._rows: dict[RouteKey, tuple[int, object, pb.CandidateExplanation]] = {}
        self._number = 0
        self._whole = 0
        self._due = 0.0
        self._watcher_count = 0
        self._ending = asyncio.Event()

    def end_with(self, ending: asyncio.Event) -> None:
        """Ends all streams when the process begins to stop."""
        self._ending = ending

    async def watch(self) -> AsyncIterator[pb.WatchRoutesResponse]:
        """Gives all rows, then those that have changed, for ever.

        Raises:
            Overloaded: too many watch already, or the process stops.
        """
        if self._watcher_count >= MAX_WATCHERS:
            raise Overloaded("too many watch the routes already", retry_after_seconds=10)
        self._watcher_count += 1
        seen = -1
        try:
            while not self._ending.is_set():
                self._look()
                is_snapshot = seen < self._whole
                rows = [row for number, _, row in self._rows.values() if is_snapshot or number > seen]
                seen = self._number
                for message in self._messages(rows, is_snapshot):
                    yield message
                await self._pause()
        finally:
            self._watcher_count -= 1
        raise Overloaded("the service is stopping; watch another one")

    def _messages(
        self, rows: list[pb.CandidateExplanation], is_snapshot: bool
    ) -> Iterator[pb.WatchRoutesResponse]:
        starts = range(0, max(len(rows), 1), ROWS_PER_MESSAGE) if rows or is_snapshot else ()
        for start in starts:
            yield pb.WatchRoutesResponse(
                candidates=rows[start : start + ROWS_PER_MESSAGE],
                is_snapshot=is_snapshot and start == 0,
                worker_id=self._worker_id,
            )

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(PAUSE_SECONDS):
                await self._ending.wait()
        except TimeoutError:
            pass

    def _look(self) -> None:
        """Brings the rows up to date, unless that was done just now."""
        now = time.monotonic()
        if now < self._due:
            return
        catalog = self._catalog()
        credentials = catalog.credentials() if catalog else {}
        keys = {(*name, "") for name in credentials} | {
            key for key in self._health.routes() if key[:2] in credentials
        }
        self._number += 1
        if not keys >= self._rows.keys():
            self._whole = self._number
        self._rows = {key: self._row(key, credentials[key[:2]], now) for key in sorted(keys)}
        self._due = now + max(PAUSE_SECONDS / 2, (time.monotonic() - now) / MAX_SHARE)

    def _row(
        self, key: RouteKey, about: pb.CandidateExplanation, now: float
    ) -> tuple[int, object, pb.CandidateExplanation]:
        row = pb.CandidateExplanation()
        row.CopyFrom(about)
        row.upstream_model = key[2]
        signature = set_health(row, self._health, key, now)
        before = self._rows.get(key)
        return before if before and before[1] == signature else (self._number, signature, row)
