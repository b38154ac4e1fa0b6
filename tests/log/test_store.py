"""The store on the real engine: repeats count once, filters, pages, statistics."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Hashable

import pytest

from lurus.log.v1.log_pb2 import LogFilter, StatsGroup, StatsRow
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.consumer import ParkedEvent
from lurus_common.errors import InvalidRequest
from lurus_common.ids import new_id
from lurus_log import queries
from lurus_log.filters import ALWAYS, Position, TimeRange, matches
from lurus_log.rows import EventUnfit
from lurus_log.statistics import row_of
from lurus_log.store import MAX_PAGE_BYTES, LogStore

from .events import NOW, Truth, make_event, newest_first, quantile, timestamp, truths

pytestmark = pytest.mark.anyio

NOW_MICROS = NOW * 1_000_000
HOUR, DAY = StatsGroup.STATS_GROUP_HOUR, StatsGroup.STATS_GROUP_DAY
MODEL, PROVIDER = StatsGroup.STATS_GROUP_MODEL, StatsGroup.STATS_GROUP_PROVIDER
ACCOUNT, KEY = StatsGroup.STATS_GROUP_ACCOUNT, StatsGroup.STATS_GROUP_KEY


async def all_of(store: LogStore, wanted: LogFilter, limit: int = 1000) -> list[UsageEvent]:
    """Returns what a list shows, page by page."""
    found: list[UsageEvent] = []
    after: Position | None = None
    while True:
        page = await store.newest(wanted, ALWAYS, after, limit, NOW_MICROS)
        found += page.events
        after = page.next_position
        if after is None:
            return found


async def stats(store: LogStore, *group_by: int) -> list[StatsRow]:
    rows = await store.statistics(LogFilter(), ALWAYS, group_by, 1000)
    return [row_of(row, group_by) for row in rows]


class TestInsert:
    async def test_an_event_comes_back_whole(self, store: LogStore) -> None:
        event = make_event(8)
        await store.insert([event])
        assert await store.find(event.request_id) == event
        assert await all_of(store, LogFilter()) == [event]

    async def test_repeats_in_other_batches_count_once(self, store: LogStore) -> None:
        events = [make_event(number) for number in range(300)]
        shuffled = random.Random(1)
        await store.insert(events)
        for size in (1, 7, 299, 300):
            await store.insert(shuffled.sample(events, size))
        await store.insert(events[:10] + events[:10])
        assert await all_of(store, LogFilter()) == newest_first(events)
        [row] = await stats(store)
        assert_true(row, truths(events, lambda _: 0)[0])

    async def test_an_event_that_fits_no_row_is_at_fault_itself(self, store: LogStore) -> None:
        for seconds in (0, 5_000_000_000, -62_000_000_000, 253_000_000_000):
            event = make_event()
            event.event_time.FromSeconds(seconds)
            with pytest.raises(EventUnfit):
                await store.insert([make_event(1), event])
        assert await all_of(store, LogFilter()) == []

    async def test_unknown_enum_values_and_hostile_text_are_stored(self, store: LogStore) -> None:
        hostile = make_event(
            1, model="' OR 1=1--", session_id="a\\'\n\t\x00{x:String}", dialect=99, terminal=77
        )
        await store.insert([hostile])
        assert await store.find(hostile.request_id) == hostile
        wanted = LogFilter(model=hostile.model, session_id=hostile.session_id)
        assert await all_of(store, wanted) == [hostile]

    async def test_a_parked_message_is_kept_once(self, store: LogStore) -> None:
        parked = ParkedEvent(7, "lurus.v1.usage.x", b"\xff\x00 no event", "unreadable")
        await store.park(parked)
        await store.park(parked)
        rows = await store._select(queries.Query("SELECT *, payload AS event FROM dead_letter FINAL"))
        assert [(row[0], row[1], row[3], row[-1]) for row in rows] == [
            (7, parked.subject, parked.reason, parked.payload)
        ]


class TestFind:
    async def test_finds_what_ended_long_after_it_arrived(self, store: LogStore) -> None:
        event = make_event(age_seconds=0, request_id=make_event(age_seconds=20 * 86400).request_id)
        await store.insert([event, make_event(1)])
        assert await store.find(event.request_id) == event

    async def test_finds_nothing_of_an_unknown_id(self, store: LogStore) -> None:
        await store.insert([make_event(1)])
        assert await store.find(new_id("req")) is None
        assert await store.find("req_" + "Z" * 26) is None


FILTERS = [
    LogFilter(account_id="acct_1"),
    LogFilter(key_id="key_2"),
    LogFilter(model="gpt-6"),
    LogFilter(model="claude-*"),
    LogFilter(model="*"),
    LogFilter(model="gpt_*"),
    LogFilter(model="gp%"),
    LogFilter(model="%_%*"),
    LogFilter(model="claude-"),
    LogFilter(model="' OR 1=1--"),
    LogFilter(account_id='{"$gt": ""}'),
    LogFilter(key_id="') OR sleep(3) --"),
    LogFilter(session_id="{start:Int64}"),
    LogFilter(provider_id="provider-1"),
    LogFilter(dialect=2),
    LogFilter(terminal=5),
    LogFilter(min_http_status=400),
    LogFilter(session_id="session-3"),
    LogFilter(only_unpriced=True),
    LogFilter(account_id="acct_1", key_id="key_1", model="gpt*", min_http_status=1),
]


class TestPages:
    async def test_each_filter_shows_what_it_means(self, store: LogStore) -> None:
        events = newest_first(make_event(number) for number in range(250))
        await store.insert(events)
        for wanted in FILTERS:
            assert await all_of(store, wanted, 97) == [e for e in events if matches(wanted, e)], wanted

    async def test_a_time_range_holds_its_start_and_not_its_end(self, store: LogStore) -> None:
        events = newest_first(make_event(number) for number in range(10))
        await store.insert(events)
        start, end = (e.event_time.ToMicroseconds() for e in (events[7], events[2]))
        page = await store.newest(LogFilter(), TimeRange(start, end), None, 100, NOW_MICROS)
        assert page.events == events[3:8]
        page = await store.oldest(LogFilter(), TimeRange(start, end), None, 100)
        assert page.events == events[3:8][::-1]

    @pytest.mark.parametrize("limit", [1, 7, 50])
    async def test_pages_are_complete_even_at_one_moment(self, store: LogStore, limit: int) -> None:
        moment = timestamp(NOW - 100)
        events = newest_first(
            [make_event(n) for n in range(20)] + [make_event(1, event_time=moment) for _ in range(40)]
        )
        await store.insert(events)
        assert await all_of(store, LogFilter(), limit) == events

    async def test_pages_stay_stable_while_events_come(self, store: LogStore) -> None:
        """New events and repeats do not shift what is still to be shown."""
        events = newest_first(make_event(n) for n in range(60))
        await store.insert(events)
        shown: list[UsageEvent] = []
        after: Position | None = None
        for number in range(100):
            page = await store.newest(LogFilter(), ALWAYS, after, 10, NOW_MICROS)
            shown += page.events
            after = page.next_position
            if after is None:
                break
            await store.insert([make_event(age_seconds=-number - 1.5), *events[::7]])
        assert shown == events

    async def test_an_export_is_complete_and_oldest_first(self, store: LogStore) -> None:
        events = newest_first(make_event(n, age_seconds=n * 9000.5) for n in range(60))
        await store.insert(events)
        shown: list[UsageEvent] = []
        after: Position | None = None
        while page := await store.oldest(LogFilter(), ALWAYS, after, 7):
            shown += page.events
            after = page.next_position
            if after is None:
                break
        assert shown == events[::-1]

    async def test_large_events_make_short_pages(self, store: LogStore) -> None:
        events = newest_first(
            make_event(n, raw_usage=random.Random(n).randbytes(60_000), decision=b"x" * 60_000)
            for n in range(70)
        )
        await store.insert(events)
        page = await store.newest(LogFilter(), ALWAYS, None, 1000, NOW_MICROS)
        assert 20 < len(page.events) < 30
        assert sum(event.ByteSize() for event in page.events) <= MAX_PAGE_BYTES
        assert await all_of(store, LogFilter()) == events

    async def test_a_query_that_reads_too_much_is_the_callers_to_narrow(
        self, store: LogStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await store.insert([make_event(n) for n in range(20)])
        limits = queries.LIMITS.replace(str(queries.MAX_ROWS_TO_READ), "5")
        monkeypatch.setattr(queries, "LIMITS", limits)
        with pytest.raises(InvalidRequest):
            await all_of(store, LogFilter())

    async def test_reads_cannot_write(self, store: LogStore) -> None:
        with pytest.raises(Exception, match="readonly"):
            await store._select(
                queries.Query(f"INSERT INTO dead_letter (subject) {queries.LIMITS} VALUES ('x')")
            )


def assert_true(row: StatsRow, truth: Truth) -> None:
    assert (row.request_count, row.error_count) == (truth.request_count, truth.error_count)
    assert (row.unpriced_count, row.cost_nano_usd) == (truth.unpriced_count, truth.cost_nano_usd)
    assert {name: getattr(row.tokens, name) for name in truth.tokens} == truth.tokens
    for quantiles, values in ((row.first_event, truth.first_event), (row.total, truth.total)):
        if values:
            assert quantiles.p50_duration.ToMicroseconds() == quantile(values, 0.5)
            assert quantiles.p95_duration.ToMicroseconds() == quantile(values, 0.95)
            assert quantiles.p99_duration.ToMicroseconds() == quantile(values, 0.99)
        else:
            assert not quantiles.HasField("p50_duration")


def bucket(seconds: int) -> Callable[[UsageEvent], int]:
    return lambda event: event.event_time.seconds // seconds * seconds


GROUPINGS: list[tuple[tuple[int, ...], Callable[[UsageEvent], Hashable], Callable[[StatsRow], Hashable]]] = [
    ((HOUR,), bucket(3600), lambda row: row.bucket_time.seconds),
    ((DAY,), bucket(86400), lambda row: row.bucket_time.seconds),
    ((MODEL,), lambda event: event.model, lambda row: row.model),
    ((PROVIDER,), lambda event: event.provider_id, lambda row: row.provider_id),
    ((ACCOUNT,), lambda event: event.account_id, lambda row: row.account_id),
    ((KEY,), lambda event: event.key_id, lambda row: row.key_id),
    (
        (MODEL, DAY, KEY),
        lambda event: (event.model, bucket(86400)(event), event.key_id),
        lambda row: (row.model, row.bucket_time.seconds, row.key_id),
    ),
]


class TestStatistics:
    async def test_each_grouping_is_exact(self, store: LogStore) -> None:
        events = [make_event(n, age_seconds=n * 601.25) for n in range(500)]
        await store.insert(events)
        await store.insert(events[::3])
        for group_by, of_event, of_row in GROUPINGS:
            rows = await stats(store, *group_by)
            expected = truths(events, of_event)
            assert {of_row(row) for row in rows} == set(expected)
            assert len(rows) == len(expected)
            for row in rows:
                assert_true(row, expected[of_row(row)])

    async def test_rows_are_by_time_or_by_cost(self, store: LogStore) -> None:
        await store.insert([make_event(n, age_seconds=n * 601.25) for n in range(200)])
        costs = [row.cost_nano_usd for row in await stats(store, MODEL, KEY)]
        assert costs == sorted(costs, reverse=True)
        rows = await stats(store, MODEL, HOUR)
        order = [(row.bucket_time.seconds, -row.cost_nano_usd) for row in rows]
        assert order == sorted(order)

    async def test_of_nothing_it_is_one_row_of_zeros_or_no_row(self, store: LogStore) -> None:
        [row] = await stats(store)
        assert_true(row, Truth())
        assert await stats(store, MODEL) == []


async def test_a_hundred_thousand_rows_are_listed_and_summed_at_once(store: LogStore) -> None:
    """Measured on two shared cores: a page 60 ms, statistics by hour and model 50 ms."""
    template = make_event(age_seconds=0).SerializeToString()
    await store._connected().command(
        "INSERT INTO usage_events (account_id, event_time, request_id, version, model, http_status, "
        "terminal, first_event_micros, total_micros, input_tokens, cost_nano_usd, event, event_bytes) "
        "SELECT concat('acct_', toString(number % 50)), "
        "fromUnixTimestamp64Micro({now:Int64} - number * 2592000, 'UTC'), "
        "concat('req_', leftPad(toString(200000 - number), 26, '0')), 1, ['a', 'b', 'c'][number % 3 + 1], "
        "200, 'COMPLETE', number, number * 3, number, 100, unhex({event:String}), {bytes:Int64} "
        "FROM numbers(100000)",
        {"now": NOW_MICROS, "event": template.hex(), "bytes": len(template)},
    )

    async def seconds_of(work: Callable[[], Awaitable[object]]) -> float:
        start = time.perf_counter()
        await work()
        return time.perf_counter() - start

    page = lambda: store.newest(LogFilter(), ALWAYS, None, 50, NOW_MICROS)  # noqa: E731
    listing = min([await seconds_of(page) for _ in "123"])
    summing = min([await seconds_of(lambda: stats(store, HOUR, MODEL)) for _ in "123"])
    finding = min([await seconds_of(lambda: store.find(f"req_{150_000:026}")) for _ in "123"])
    print(f"list {listing:.3f} s, statistics {summing:.3f} s, find {finding:.3f} s")
    assert max(listing, summing, finding) < 1.0
    assert (await stats(store))[0].request_count == 100_000


async def test_reads_and_inserts_at_once_do_not_disturb_each_other(store: LogStore) -> None:
    batches = [[make_event(n + 20 * batch) for n in range(20)] for batch in range(10)]
    await asyncio.gather(
        *(store.insert(batch) for batch in batches), *(all_of(store, LogFilter()) for _ in range(10))
    )
    assert await all_of(store, LogFilter()) == newest_first(event for batch in batches for event in batch)
