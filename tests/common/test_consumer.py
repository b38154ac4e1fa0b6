"""The consumer of usage events on a real NATS, with a store that can be told to fail."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StreamConfig
from nats.js.errors import NotFoundError

from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common import bus, consumer
from lurus_common.consumer import FETCH_SECONDS, ParkedEvent, UsageConsumer
from lurus_common.errors import DependencyUnavailable
from lurus_common.ids import new_id
from lurus_switch.embedded import EmbeddedBackends

pytestmark = pytest.mark.anyio
DURABLE = "test"


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackends]:
    with EmbeddedBackends.running(tmp_path_factory.mktemp("nats"), ("nats",)) as running:
        yield running


@pytest.fixture
async def client(nats: EmbeddedBackends) -> AsyncIterator[Client]:
    client = await bus.connect(nats.urls.nats_url, "test")
    yield client
    with suppress(NotFoundError):
        await client.jetstream().delete_stream(bus.STREAM_NAME)
    await client.close()


@pytest.fixture
def jetstream(client: Client) -> JetStreamContext:
    return client.jetstream()


class BadData(Exception):
    """What the store says of an event that is at fault."""


class Store:
    """Remembers what it was given; fails as it is told."""

    def __init__(self) -> None:
        self.handled: Counter[str] = Counter()
        self.batches: list[int] = []
        self.parked: dict[int, ParkedEvent] = {}
        self.fail: Callable[[Sequence[UsageEvent]], None] = lambda events: None
        self.fail_park: Callable[[], None] = lambda: None
        self.wait_seconds = 0.0

    async def handle(self, events: Sequence[UsageEvent]) -> None:
        self.fail(events)
        await asyncio.sleep(self.wait_seconds)
        self.batches.append(len(events))
        self.handled.update(event.request_id for event in events)

    def has_handled(self, ids: Sequence[str]) -> bool:
        return self.handled.keys() == set(ids)

    async def park(self, parked: ParkedEvent) -> None:
        self.fail_park()
        self.parked[parked.stream_sequence] = parked


@pytest.fixture
def store() -> Store:
    return Store()


@asynccontextmanager
async def consuming(
    jetstream: JetStreamContext, store: Store, **times: float
) -> AsyncIterator[UsageConsumer]:
    running = UsageConsumer(jetstream, DURABLE, store.handle, store.park, (BadData,), **times)
    task = asyncio.create_task(running.run())
    try:
        yield running
    finally:
        running.stop()
        await asyncio.wait_for(task, 10)


def event(model: str = "m") -> UsageEvent:
    return UsageEvent(
        request_id=new_id("req"), account_id="acct_a", model=model, event_time=datetime.now(UTC)
    )


async def publish(jetstream: JetStreamContext, *events: UsageEvent) -> list[str]:
    await bus.ensure_stream(jetstream)
    for one in events:
        await bus.publish(jetstream, one.request_id, bus.subject_of(one), one.SerializeToString())
    return [one.request_id for one in events]


async def until(check: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def acked(jetstream: JetStreamContext, count: int) -> None:
    """Waits until the bus knows that `count` messages are done."""
    deadline = time.monotonic() + 10
    while True:
        info = await jetstream.consumer_info(bus.STREAM_NAME, DURABLE)
        if info.ack_floor and info.ack_floor.stream_seq == count and not info.num_ack_pending:
            return
        assert time.monotonic() < deadline, f"acked up to {info.ack_floor}"
        await asyncio.sleep(0.02)


class TestConsume:
    async def test_it_makes_the_stream_and_handles_what_comes_soon(
        self, jetstream: JetStreamContext, store: Store
    ) -> None:
        async with consuming(jetstream, store):
            ids = await publish(jetstream, event())
            await until(lambda: store.handled.keys() == set(ids))
            seconds: list[float] = []
            while len(seconds) < 3:
                start = time.monotonic()
                ids += await publish(jetstream, event())
                await until(partial(store.has_handled, ids))
                seconds.append(time.monotonic() - start)
            # The machine may be busy with something else, but not each time.
            assert min(seconds) < FETCH_SECONDS / 2
            await acked(jetstream, 4)

    async def test_a_backlog_comes_in_batches_each_event_once(
        self, jetstream: JetStreamContext, store: Store
    ) -> None:
        ids = await publish(jetstream, *(event() for _ in range(450)))
        async with consuming(jetstream, store):
            await until(lambda: len(store.handled) == 450)
            await acked(jetstream, 450)
        assert store.handled == Counter(ids)
        assert max(store.batches) <= consumer.BATCH_EVENTS
        assert len(store.batches) < 20

    async def test_stopping_finishes_the_batch_at_hand(
        self, jetstream: JetStreamContext, store: Store
    ) -> None:
        ids = await publish(jetstream, event(), event())
        store.wait_seconds = 0.5
        async with consuming(jetstream, store) as running:
            await asyncio.sleep(0.3)
            running.stop()
        assert store.handled == Counter(ids)
        await acked(jetstream, 2)


class TestPoison:
    @pytest.mark.row("F24")
    async def test_what_cannot_be_read_is_parked_and_neighbours_go_on(
        self, jetstream: JetStreamContext, store: Store
    ) -> None:
        negative = event()
        negative.cost_nano_usd = -1
        await publish(jetstream)
        for payload in (b"\xff\xff garbage", b"", negative.SerializeToString()):
            await jetstream.publish("lurus.v1.usage.acct_a", payload)
        ids = await publish(jetstream, event(), event())
        async with consuming(jetstream, store):
            await until(lambda: len(store.handled) == 2 and len(store.parked) == 3)
            await acked(jetstream, 5)
        assert store.handled == Counter(ids)
        assert store.parked[1].payload == b"\xff\xff garbage"
        assert "cost_nano_usd" in store.parked[3].reason

    @pytest.mark.row("F24")
    async def test_an_event_at_fault_is_found_by_halves(
        self, jetstream: JetStreamContext, store: Store
    ) -> None:
        bad = [event("bad"), event("bad")]
        ids = await publish(jetstream, *(event() for _ in range(20)), bad[0], event(), bad[1])

        def fail(events: Sequence[UsageEvent]) -> None:
            if any(one.model == "bad" for one in events):
                raise BadData("a NUL character")

        store.fail = fail
        async with consuming(jetstream, store):
            await until(lambda: len(store.handled) == 21 and len(store.parked) == 2)
            await acked(jetstream, 23)
        assert set(store.handled) == set(ids) - {one.request_id for one in bad}
        assert {parked.payload for parked in store.parked.values()} == {
            one.SerializeToString() for one in bad
        }

    @pytest.mark.row("F24")
    async def test_one_that_fails_unforeseen_holds_up_nobody_and_is_not_lost(
        self, jetstream: JetStreamContext, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(consumer, "MAX_DELAY_SECONDS", 0.5)
        bad = event("bad")
        ids = await publish(jetstream, *(event() for _ in range(10)), bad, *(event() for _ in range(10)))
        is_broken = True

        def fail(events: Sequence[UsageEvent]) -> None:
            if is_broken and any(one.model == "bad" for one in events):
                raise KeyError("a defect of ours")

        store.fail = fail
        async with consuming(jetstream, store):
            await until(lambda: len(store.handled) == 20, 30)
            assert store.parked == {}
            is_broken = False
            await until(lambda: set(store.handled) == set(ids), 30)

    async def test_an_event_that_cannot_be_parked_comes_again(
        self, jetstream: JetStreamContext, store: Store
    ) -> None:
        def away() -> None:
            store.fail_park = lambda: None
            raise DependencyUnavailable("away")

        store.fail_park = away
        await publish(jetstream)
        await jetstream.publish("lurus.v1.usage.acct_a", b"garbage")
        ids = await publish(jetstream, event())
        async with consuming(jetstream, store):
            await until(lambda: len(store.parked) == 1 and set(store.handled) == set(ids))
            await acked(jetstream, 2)


class TestFailure:
    async def test_while_the_store_is_away_nothing_is_lost(
        self, jetstream: JetStreamContext, store: Store
    ) -> None:
        failures = 0

        def fail(events: Sequence[UsageEvent]) -> None:
            nonlocal failures
            failures += 1
            if failures <= 3:
                raise DependencyUnavailable("PostgreSQL did not answer")

        store.fail = fail
        ids = await publish(jetstream, *(event() for _ in range(5)))
        async with consuming(jetstream, store):
            await until(lambda: set(store.handled) == set(ids))
            await acked(jetstream, 5)
        assert store.parked == {}

    async def test_halves_that_are_committed_do_not_come_again_when_the_store_goes_away(
        self, jetstream: JetStreamContext, store: Store
    ) -> None:
        calls = 0

        def fail(events: Sequence[UsageEvent]) -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise BadData("in one of the halves")
            if calls == 3:
                raise DependencyUnavailable("PostgreSQL did not answer")

        store.fail = fail
        ids = await publish(jetstream, *(event() for _ in range(4)))
        async with consuming(jetstream, store):
            await until(lambda: set(store.handled) == set(ids))
            await acked(jetstream, 4)
        assert store.handled == Counter(ids)

    @pytest.mark.row("F37")
    async def test_two_consumers_slower_than_the_ack_wait_miss_nothing(
        self, jetstream: JetStreamContext, store: Store
    ) -> None:
        store.wait_seconds = 0.3
        ids = await publish(jetstream, *(event() for _ in range(20)))
        times = {"ack_wait_seconds": 0.2}
        async with consuming(jetstream, store, **times), consuming(jetstream, store, **times):
            await until(
                lambda: max(store.handled.values(), default=0) > 1
            )  # redelivered: it is at least once
            store.wait_seconds = 0.0
            await acked(jetstream, 20)
        assert set(store.handled) == set(ids)

    async def test_a_consumer_that_the_bus_lost_is_made_again(
        self, jetstream: JetStreamContext, store: Store
    ) -> None:
        async with consuming(jetstream, store):
            await publish(jetstream, event())
            await until(lambda: len(store.handled) == 1)
            await jetstream.delete_consumer(bus.STREAM_NAME, DURABLE)
            await publish(jetstream, event())
            await until(lambda: len(store.handled) == 2)

    @pytest.mark.row("F25")
    async def test_it_goes_on_after_the_bus_was_killed(
        self, jetstream: JetStreamContext, store: Store, nats: EmbeddedBackends
    ) -> None:
        async with consuming(jetstream, store):
            first = await publish(jetstream, event())
            await until(lambda: set(store.handled) == set(first))
            await asyncio.to_thread(nats.supervisor.signal, "nats", 9)
            late = event()
            start = time.monotonic()
            while True:
                try:
                    await publish(jetstream, late)
                    break
                except (bus.NatsError, OSError):
                    assert time.monotonic() - start < 30
                    await asyncio.sleep(0.1)
            await until(lambda: late.request_id in store.handled)

    async def test_a_wrong_stream_is_a_problem_until_it_is_mended(
        self, jetstream: JetStreamContext, store: Store
    ) -> None:
        wrong = StreamConfig(name=bus.STREAM_NAME, subjects=[bus.SUBJECTS], discard=DiscardPolicy.OLD)
        await jetstream.add_stream(wrong)
        async with consuming(jetstream, store) as running:
            await until(lambda: "discard" in running.problem)
            await jetstream.delete_stream(bus.STREAM_NAME)
            await publish(jetstream, event())
            await until(lambda: len(store.handled) == 1)
            assert running.problem == ""

    async def test_a_consumer_that_would_lose_events_is_a_problem_until_it_is_mended(
        self, jetstream: JetStreamContext, store: Store
    ) -> None:
        await publish(jetstream, event())
        wrong = bus.consumer_config(DURABLE).evolve(max_deliver=3)
        await jetstream.add_consumer(bus.STREAM_NAME, wrong)
        async with consuming(jetstream, store) as running:
            await until(lambda: "max_deliver is 3, must be -1" in running.problem)
            assert not store.handled
            await jetstream.delete_consumer(bus.STREAM_NAME, DURABLE)
            await until(lambda: len(store.handled) == 1)
            assert running.problem == ""
