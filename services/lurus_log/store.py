"""The request log in ClickHouse, over its HTTP interface, embedded or deployed.

A store can be made before ClickHouse answers: until `start` has succeeded, and
whenever ClickHouse is away, its methods raise DependencyUnavailable.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import aiohttp
import clickhouse_connect
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import Error as ClickHouseError
from clickhouse_connect.driver.exceptions import OperationalError
from prometheus_client import Counter, Histogram

from lurus.log.v1.log_pb2 import LogFilter
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.consumer import ParkedEvent
from lurus_common.errors import DependencyUnavailable, InvalidRequest
from lurus_common.migrations import SchemaTooNew
from lurus_log import queries
from lurus_log.filters import Position, TimeRange, windows_around, windows_back, windows_forward
from lurus_log.queries import MAX_QUERY_SECONDS, Query
from lurus_log.rows import COLUMNS, EventUnfit, row_of
from lurus_log.schema import migrate

log = logging.getLogger(__name__)

CONNECT_SECONDS = 2.0
READ_SECONDS = MAX_QUERY_SECONDS + 2.0
# Less than the bus waits for an ack, so that a batch is not handed out twice meanwhile.
INSERT_SECONDS = 20.0
START_SECONDS = 60.0
MAX_CONNECTIONS = 16
MAX_PAGE_BYTES = 3 * 1024 * 1024

# Codes of ClickHouse. Source: https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp
_DATABASE_UNKNOWN = 81
_READS_TOO_MUCH = frozenset({158, 159, 160, 241, 307, 396})
# Unknown table or database (before the first start there), network, access, too many queries, parts or
# memory, read-only disk, Keeper away: what an operator or time heals.
_AWAY = frozenset(
    {60, 81, 192, 194, 202, 209, 210, 225, 241, 242, 243, 252, 279, 285, 319, 425, 497, 516, 999}
)
_ABOUT_DATA = frozenset({6, 27, 53, 69, 117, 349, 407})

INSERTED = Counter("lurus_log_inserted_rows", "Rows that ClickHouse has confirmed, repeats included.")
INSERT_FAILURES = Counter("lurus_log_insert_failures", "Batches that ClickHouse has not confirmed.")
INSERT_SECONDS_SPENT = Histogram(
    "lurus_log_insert_seconds", "Time of a confirmed batch.", buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10)
)


@dataclass(frozen=True, slots=True)
class Page:
    """Some events in order, and where the next page begins, or None if there is no more."""

    events: Sequence[UsageEvent]
    next_position: Position | None


class LogStore:
    """The request log.

    Args:
        url: `http://USER:PASSWORD@HOST:PORT/DATABASE`, or https.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: AsyncClient | None = None
        # What an operator has to mend before the log can be used; empty if nothing.
        self.problem = ""

    @property
    def is_started(self) -> bool:
        """Whether `start` has succeeded."""
        return self._client is not None

    async def start(self) -> None:
        """Connects, makes the database if there is none, and migrates it. Repeats do nothing.

        Raises:
            DependencyUnavailable: if ClickHouse does not answer yet.
            SchemaTooNew: if a newer release has been here.
        """
        if self._client is not None:
            return
        async with _failures_named(START_SECONDS):
            client = await self._connect()
            try:
                await migrate(client, _database_of(self._url))
            except BaseException as error:
                self.problem = str(error) if isinstance(error, SchemaTooNew) else ""
                await client.close()
                raise
        self._client, self.problem = client, ""

    async def ping(self) -> None:
        """Returns if ClickHouse answers.

        Raises:
            DependencyUnavailable: if it does not.
        """
        async with _failures_named(READ_SECONDS, reads=True):
            await self._connected().command("SELECT 1")

    async def close(self) -> None:
        """Closes the connections."""
        if self._client:
            await self._client.close()
            self._client = None

    async def insert(self, events: Sequence[UsageEvent]) -> None:
        """Stores events; returns when they are on disk. Repeats of an event are one in everything that reads.

        Raises:
            EventUnfit: if an event is at fault.
            DependencyUnavailable: if it is not known to be stored.
        """
        rows = [row_of(event) for event in events]
        token = _token(event.request_id for event in events)
        with INSERT_FAILURES.count_exceptions(DependencyUnavailable), INSERT_SECONDS_SPENT.time():
            await self._insert("usage_events", COLUMNS, rows, token)
        INSERTED.inc(len(rows))

    async def park(self, parked: ParkedEvent) -> None:
        """Keeps a message that cannot be stored for a person; the same one again changes nothing."""
        columns = {"stream_sequence": "Int64", "subject": "String", "payload": "String", "reason": "String"}
        row = (parked.stream_sequence, parked.subject, parked.payload, parked.reason)
        await self._insert("dead_letter", columns, [row], _token([str(parked.stream_sequence)]))

    async def find(self, request_id: str) -> UsageEvent | None:
        """Returns one event, or None."""
        for times in windows_around(request_id):
            rows = await self._select(queries.event_query(request_id, times))
            if rows:
                return _event(rows[0][0])
        return None

    async def newest(
        self, wanted: LogFilter, times: TimeRange, after: Position | None, limit: int, now: int
    ) -> Page:
        """Returns the next page of a list, newest first.

        Args:
            wanted: which requests; its times are in `times`.
            times: when they ended.
            after: where the page before ended.
            limit: events at most; fewer if they are large.
            now: microseconds since 1970.
        """
        windows = windows_back(times, after, now)
        return await self._page(wanted, windows, after, limit, newest_first=True)

    async def oldest(self, wanted: LogFilter, times: TimeRange, after: Position | None, limit: int) -> Page:
        """Returns the next page, oldest first; otherwise like `newest`."""
        windows = windows_forward(times, after)
        return await self._page(wanted, windows, after, limit, newest_first=False)

    async def statistics(
        self, wanted: LogFilter, times: TimeRange, group_by: Sequence[int], limit: int
    ) -> Sequence[Sequence[object]]:
        """Returns the rows of `queries.stats_query`, one more than `limit` if there are more."""
        return await self._select(queries.stats_query(wanted, times, group_by, limit + 1))

    async def _page(
        self,
        wanted: LogFilter,
        windows: Iterable[TimeRange],
        after: Position | None,
        limit: int,
        *,
        newest_first: bool,
    ) -> Page:
        """Reads places and sizes first, then the events of as many as a message holds."""
        keys: Sequence[Sequence[object]] = ()
        for times in windows:
            query = queries.keys_query(wanted, times, after, limit + 1, newest_first=newest_first)
            keys = await self._select(query)
            if len(keys) > limit:
                break
        shown = _that_fit(keys[:limit])
        if not shown:
            return Page([], None)
        oldest, newest = sorted((shown[0], shown[-1]))
        query = queries.events_query(wanted, oldest, newest, len(shown), newest_first=newest_first)
        rows = await self._select(query)
        # A late event may have come between the two reads and pushed out the last one.
        last = _position(rows[-1]) if rows else shown[-1]
        is_last = len(shown) == len(keys) and last == shown[-1]
        return Page([_event(row[2]) for row in rows], None if is_last else last)

    async def _select(self, query: Query) -> Sequence[Sequence[object]]:
        async with _failures_named(READ_SECONDS, reads=True):
            result = await self._connected().query(
                query.text, query.parameters, column_formats={"event": "bytes"}
            )
        return result.result_rows

    async def _insert(
        self, table: str, columns: dict[str, str], rows: Sequence[Sequence[object]], token: str
    ) -> None:
        async with _failures_named(INSERT_SECONDS):
            await self._connected().insert(
                table,
                rows,
                column_names=list(columns),
                column_type_names=list(columns.values()),
                settings={"async_insert": 0, "wait_end_of_query": 1, "insert_deduplication_token": token},
            )

    def _connected(self) -> AsyncClient:
        if self._client is None:
            raise DependencyUnavailable("the request log is away: ClickHouse has not answered yet")
        return self._client

    async def _connect(self) -> AsyncClient:
        database = _database_of(self._url)
        try:
            return await _open(self._url, database)
        except ClickHouseError as error:
            if error.code != _DATABASE_UNKNOWN:
                raise
        client = await _open(self._url, "default")
        try:
            await client.command("CREATE DATABASE IF NOT EXISTS {name:Identifier}", {"name": database})
        finally:
            await client.close()
        return await _open(self._url, database)


async def _open(url: str, database: str) -> AsyncClient:
    parts = urlsplit(url)
    return await clickhouse_connect.get_async_client(
        interface=parts.scheme,
        host=parts.hostname,
        port=parts.port or 0,
        username=unquote(parts.username or "default"),
        password=unquote(parts.password or ""),
        database=database,
        connect_timeout=CONNECT_SECONDS,
        send_receive_timeout=INSERT_SECONDS,
        connector_limit=MAX_CONNECTIONS,
        connector_limit_per_host=MAX_CONNECTIONS,
        query_retries=0,
        client_name="lurus-log",
        autogenerate_session_id=False,
    )


def _database_of(url: str) -> str:
    return unquote(urlsplit(url).path.strip("/")) or "default"


@asynccontextmanager
async def _failures_named(seconds: float, *, reads: bool = False) -> AsyncIterator[None]:
    """Turns what ClickHouse and the way to it may do into errors that a caller can act on."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except ClickHouseError as error:
        raise _named(error, reads=reads) from error
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is one
        raise _away(type(error).__name__) from error


def _named(error: ClickHouseError, *, reads: bool) -> Exception:
    if reads and error.code in _READS_TOO_MUCH:
        return InvalidRequest(
            "the query reads too much; narrow its times, or name an account or a session",
            param="filter",
            clickhouse_code=error.code,
        )
    if not reads and error.code in _ABOUT_DATA:
        return EventUnfit(f"ClickHouse refuses it with code {error.code}")
    if error.code in _AWAY or (error.code is None and isinstance(error, OperationalError)):
        return _away(error.name or "it cannot be reached")
    return error


def _away(why: str) -> DependencyUnavailable:
    return DependencyUnavailable(f"the request log is away: ClickHouse: {why}")


def _token(ids: Iterable[str]) -> str:
    """Names a batch by its events, so that a replicated table recognises the same batch again."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _that_fit(keys: Sequence[Sequence[object]]) -> list[Position]:
    """The places of as many events as fit a message, of at least one."""
    shown: list[Position] = []
    total = 0
    for key in keys:
        size = key[2]
        assert isinstance(size, int)
        total += size
        if shown and total > MAX_PAGE_BYTES:
            break
        shown.append(_position(key))
    return shown


def _position(row: Sequence[object]) -> Position:
    event_micros, request_id = row[0], row[1]
    assert isinstance(event_micros, int) and isinstance(request_id, str)
    return Position(event_micros, request_id)


def _event(serialized: object) -> UsageEvent:
    assert isinstance(serialized, bytes)
    return UsageEvent.FromString(serialized)
