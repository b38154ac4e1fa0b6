"""From the bus into the log."""

import time

import pytest
from nats.js import JetStreamContext

from lurus.log.v1.log_pb2 import ListLogsRequest, LogFilter
from lurus.log.v1.log_pb2_grpc import LogServiceStub
from lurus_common import bus
from lurus_log import queries
from lurus_log.store import LogStore

from .events import eventually, make_event, newest_first, publish

pytestmark = pytest.mark.anyio


async def test_a_single_call_is_visible_within_two_seconds(
    stub: LogServiceStub, jetstream: JetStreamContext
) -> None:
    start = time.monotonic()
    event = make_event(account_id="acct_single")
    await publish(jetstream, [event])
    wanted = ListLogsRequest(filter=LogFilter(account_id=event.account_id))

    async def is_there() -> bool:
        return list((await stub.ListLogs(wanted)).events) == [event]

    await eventually(is_there)
    print(f"visible after {time.monotonic() - start:.2f} s")
    assert time.monotonic() - start < 15  # P6


@pytest.mark.row("F24", "F38")
async def test_events_published_again_count_once_and_poison_is_parked(
    stub: LogServiceStub, store: LogStore, jetstream: JetStreamContext
) -> None:
    account = "acct_again"
    events = [make_event(n, account_id=account) for n in range(600)]
    broken_clock = make_event(account_id=account)
    broken_clock.event_time.FromSeconds(0)
    await publish(jetstream, events[:300])
    await jetstream.publish(f"{bus.SUBJECT_PREFIX}.{account}", b"\xff\xff no event")
    await publish(jetstream, [broken_clock])
    await publish(jetstream, events[300:])
    for event in events[::2]:
        # Without its id in a header the bus takes a repeat for something new.
        await jetstream.publish(bus.subject_of(event), event.SerializeToString())
    wanted = LogFilter(account_id=account)

    async def all_are_there() -> bool:
        response = await stub.ListLogs(ListLogsRequest(filter=wanted, page_size=1000))
        info = await jetstream.consumer_info(bus.STREAM_NAME, "log")
        return len(response.events) == 600 and not info.num_pending and not info.num_ack_pending

    await eventually(all_are_there)
    response = await stub.ListLogs(ListLogsRequest(filter=wanted, page_size=1000))
    assert list(response.events) == newest_first(events)
    query = queries.Query("SELECT reason FROM dead_letter FINAL WHERE endsWith(subject, 'again')")
    parked = await store._select(query)
    assert sorted(str(row[0]).split(":")[0] for row in parked) == ["refused", "unreadable"]
