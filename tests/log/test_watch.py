"""The live tail."""

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest
from nats.js import JetStreamContext

from lurus.log.v1.log_pb2 import ListLogsRequest, LogFilter, WatchUsageRequest, WatchUsageResponse
from lurus.log.v1.log_pb2_grpc import LogServiceStub
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common import bus
from lurus_common.errors import Overloaded
from lurus_common.rpc import open_channel
from lurus_common.settings import Settings
from lurus_log.server import log_server
from lurus_log.watch import MAX_WAITING_EVENTS, MAX_WATCHERS, UsageTail, Watcher
from lurus_switch.embedded import EmbeddedBackends

from .conftest import TOKEN
from .events import eventually, make_event, publish

pytestmark = pytest.mark.anyio


async def seen(watch: Any, count: int) -> tuple[list[UsageEvent], int]:
    """Returns the next events of a watch, and how many it skipped: `count` together."""
    events: list[UsageEvent] = []
    skipped = 0
    async with asyncio.timeout(30):
        while len(events) + skipped < count:
            response = await watch.read()
            skipped += response.skipped_count
            if response.HasField("event"):
                events.append(response.event)
    return events, skipped


async def test_a_watch_begins_with_a_sign_of_life_and_shows_what_comes(
    stub: LogServiceStub, jetstream: JetStreamContext
) -> None:
    await publish(jetstream, [make_event(1)])
    watch = stub.WatchUsage(WatchUsageRequest())
    picky = stub.WatchUsage(WatchUsageRequest(filter=LogFilter(account_id="acct_2", model="gpt*")))
    assert await watch.read() == await picky.read() == WatchUsageResponse()
    await jetstream.publish(f"{bus.SUBJECT_PREFIX}.x", b"no event")
    events = [make_event(n) for n in range(20)]
    await publish(jetstream, events)
    assert await seen(watch, 20) == (events, 0)
    assert await seen(picky, 3) == ([events[2], events[8], events[17]], 0)
    watch.cancel()
    picky.cancel()


async def test_every_process_shows_all_and_together_they_store_each_once(
    settings: Settings, jetstream: JetStreamContext
) -> None:
    async with (
        log_server(settings) as one,
        log_server(settings) as other,
        open_channel(f"127.0.0.1:{one}", TOKEN) as first_channel,
        open_channel(f"127.0.0.1:{other}", TOKEN) as second_channel,
    ):
        stubs = [LogServiceStub(first_channel), LogServiceStub(second_channel)]
        watches = [stub.WatchUsage(WatchUsageRequest()) for stub in stubs]
        for watch in watches:
            await watch.read()
        account = "acct_two"
        events = [make_event(n, account_id=account) for n in range(50)]
        await publish(jetstream, events)
        for watch in watches:
            assert await seen(watch, 50) == (events, 0)
            watch.cancel()

        async def is_stored() -> bool:
            wanted = ListLogsRequest(filter=LogFilter(account_id=account), page_size=1000)
            return len((await stubs[0].ListLogs(wanted)).events) == 50

        await eventually(is_stored)


async def test_a_slow_caller_skips_and_is_told(stub: LogServiceStub, jetstream: JetStreamContext) -> None:
    slow, quick = stub.WatchUsage(WatchUsageRequest()), stub.WatchUsage(WatchUsageRequest())
    await slow.read()
    await quick.read()
    events = [make_event(n, raw_usage=bytes(10_000)) for n in range(3 * MAX_WAITING_EVENTS)]
    reading = asyncio.create_task(seen(quick, len(events)))
    await publish(jetstream, events)
    await reading
    shown, skipped = await seen(slow, len(events))
    assert skipped > 0
    numbers = [event.request_bytes for event in shown]
    assert numbers == sorted(set(numbers))
    assert shown[-MAX_WAITING_EVENTS:] == events[-MAX_WAITING_EVENTS:]
    slow.cancel()
    quick.cancel()


async def test_a_watch_goes_on_where_it_was_after_the_bus_was_away(
    stub: LogServiceStub, jetstream: JetStreamContext, log_bus: EmbeddedBackends
) -> None:
    watch = stub.WatchUsage(WatchUsageRequest())
    await watch.read()
    before, after = [make_event(n) for n in range(5)], [make_event(n) for n in range(5, 10)]
    await publish(jetstream, before)
    assert await seen(watch, 5) == (before, 0)
    await log_bus.supervisor.restart("nats")
    await eventually(lambda: is_published(jetstream, after[0]))
    await publish(jetstream, after[1:])
    assert await seen(watch, 5) == (after, 0)
    watch.cancel()


async def is_published(jetstream: JetStreamContext, event: UsageEvent) -> bool:
    try:
        await publish(jetstream, [event])
    except (bus.NatsError, OSError):
        return False
    return True


async def test_an_idle_watch_shows_signs_of_life_and_ends_with_the_service() -> None:
    tail = UsageTail()
    with tail.watch(LogFilter()) as watcher:
        responses = watcher.responses(0.02)
        assert [await anext(responses), await anext(responses)] == [WatchUsageResponse()] * 2
        tail.close()
        with pytest.raises(Overloaded):
            await anext(responses)
    with pytest.raises(Overloaded), tail.watch(LogFilter()):
        pass


async def test_the_oldest_events_make_room() -> None:
    watcher = Watcher(LogFilter())
    events = [make_event(n) for n in range(MAX_WAITING_EVENTS + 3)]
    for event in events:
        watcher.offer(event)
    responses = watcher.responses(1)
    assert await anext(responses) == WatchUsageResponse(event=events[3], skipped_count=3)
    assert await anext(responses) == WatchUsageResponse(event=events[4])


async def test_watchers_are_limited() -> None:
    tail = UsageTail()
    with ExitStack() as stack:
        for _ in range(MAX_WATCHERS):
            stack.enter_context(tail.watch(LogFilter()))
        with pytest.raises(Overloaded), tail.watch(LogFilter()):
            pass
    with tail.watch(LogFilter()):
        pass
