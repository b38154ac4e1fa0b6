"""Usage from the bus to Lago: once, whatever goes wrong on the way."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiohttp
import asyncpg
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from tests.billing.calls import refused
from tests.billing.test_consumer import eventually, publish
from tests.support.drained import is_drained
from tests.support.fake_lago import API_KEY, METRIC_CODE, FakeLago, Fault

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing import dead_letters
from lurus_billing.dead_letters import DeadLetterStore
from lurus_billing.lago import LagoClient, LagoExport, LagoRefused
from lurus_common import bus
from lurus_common.consumer import ParkedEvent
from lurus_common.errors import DependencyUnavailable
from lurus_common.status import Dependency

pytestmark = pytest.mark.anyio
Make = Callable[..., UsageEvent]
ACK_WAIT_SECONDS = 1.0
COST = 12_345_678_901


@pytest.fixture(params=["postgresql", "clickhouse"])
async def lago(request: pytest.FixtureRequest) -> AsyncIterator[FakeLago]:
    store: Literal["postgresql", "clickhouse"] = request.param
    fake = FakeLago(store)
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def client(nats_url: str) -> AsyncIterator[Client]:
    client = await bus.connect(nats_url, "test")
    await bus.ensure_stream(client.jetstream())
    yield client
    await client.jetstream().delete_stream(bus.STREAM_NAME)
    await client.close()


@pytest.fixture
def jetstream(client: Client) -> JetStreamContext:
    return client.jetstream()


@asynccontextmanager
async def talking(lago: FakeLago, api_key: str = API_KEY) -> AsyncIterator[LagoClient]:
    async with aiohttp.ClientSession() as session:
        yield LagoClient(session, lago.url, api_key, METRIC_CODE)


class Parking:
    """Notes what is set aside."""

    def __init__(self) -> None:
        self.letters: list[ParkedEvent] = []

    async def __call__(self, parked: ParkedEvent) -> None:
        self.letters.append(parked)


@asynccontextmanager
async def exporting(nats_url: str, client: LagoClient, park: Parking) -> AsyncIterator[LagoExport]:
    export = LagoExport(nats_url, client, park, ACK_WAIT_SECONDS)
    task = asyncio.create_task(export.run())
    try:
        yield export
    finally:
        task.cancel()  # as abruptly as it can be: nothing at hand is finished
        await asyncio.wait([task], timeout=15)


def costs(lago: FakeLago) -> dict[str, list[str]]:
    """What Lago bills for each request, in cents."""
    return {
        name: [event["precise_total_amount_cents"] for event in events]
        for name, events in lago.billed().items()
    }


class TestClient:
    async def test_an_event_says_what_was_used(self, lago: FakeLago, make_event: Make) -> None:
        event = make_event("acct_lago", COST)
        event.event_time.FromNanoseconds(1_763_900_000_123_456_789)
        event.tokens.input, event.tokens.output = 1200, 400
        async with talking(lago) as client:
            await client.send([event])
        (sent,) = lago.events
        assert sent["transaction_id"] == event.request_id
        assert (sent["external_subscription_id"], sent["code"]) == ("acct_lago", METRIC_CODE)
        assert sent["timestamp"] == "1763900000.123"
        assert sent["precise_total_amount_cents"] == "1234.5678901"
        assert sent["properties"]["cost_nano_usd"] == str(COST)
        assert (sent["properties"]["input_tokens"], sent["properties"]["output_tokens"]) == ("1200", "400")

    async def test_one_repeat_does_not_keep_its_batch_out(self, lago: FakeLago, make_event: Make) -> None:
        events = [make_event("acct_lago", number) for number in range(1, 251)]
        async with talking(lago) as client:
            await client.send(events[100:101])
            await client.send(events)
            await client.send(events)
        assert {name: len(found) for name, found in lago.billed().items()} == {
            event.request_id: 1 for event in events
        }

    async def test_a_refused_request_is_no_usage(self, lago: FakeLago, make_event: Make) -> None:
        event = make_event("acct_lago", 0, terminal=usage_pb2.TERMINAL_REFUSED)
        event.ClearField("tokens")
        async with talking(lago) as client:
            await client.send([event])
        assert not lago.call_count

    @pytest.mark.parametrize("fault", ["429", "500", "stored 500", "cut", "stored cut"])
    async def test_what_is_not_known_to_be_there_is_sent_again_and_billed_once(
        self, lago: FakeLago, make_event: Make, fault: Fault
    ) -> None:
        events = [make_event("acct_lago", 10_000_000) for _ in range(3)]
        lago.faults.append(fault)
        async with talking(lago) as client:
            with pytest.raises(DependencyUnavailable):
                await client.send(events)
            assert client.problem
            await client.send(events)
            assert not client.problem
        assert costs(lago) == {event.request_id: ["1.0000000"] for event in events}

    async def test_a_wrong_key_is_told_and_never_shown(self, lago: FakeLago, make_event: Make) -> None:
        async with talking(lago, "lago-wrong-secret") as client:
            with pytest.raises(DependencyUnavailable) as caught:
                await client.send([make_event("acct_lago", 1)])
        assert "LURUS_LAGO_API_KEY" in client.problem
        assert "lago-wrong-secret" not in str(caught.value.message) + client.problem

    async def test_what_lago_refuses_is_not_tried_for_ever(self, lago: FakeLago, make_event: Make) -> None:
        lago.closed.add("acct_unknown")
        async with talking(lago) as client:
            with pytest.raises(LagoRefused, match="subscription_not_found"):
                await client.send([make_event("acct_unknown", 1)])


class TestExport:
    async def test_each_event_is_billed_once_though_lago_fails_and_we_are_killed(
        self, lago: FakeLago, nats_url: str, jetstream: JetStreamContext, make_event: Make
    ) -> None:
        class Killed(LagoClient):
            """Dies when Lago has answered, before the bus is told."""

            async def send(self, events: Sequence[UsageEvent]) -> None:
                await super().send(events)
                answered.set()
                await asyncio.Event().wait()

        answered, parking = asyncio.Event(), Parking()
        lago.faults += ["500", "stored cut", "429", "stored 500"]
        events = [make_event("acct_lago", 10_000_000) for _ in range(30)]
        await publish(jetstream, *events)
        async with aiohttp.ClientSession() as session:
            killed = Killed(session, lago.url, API_KEY, METRIC_CODE)
            async with exporting(nats_url, killed, parking):
                await asyncio.wait_for(answered.wait(), 30)
            assert not await is_drained(jetstream, "lago")
            client = LagoClient(session, lago.url, API_KEY, METRIC_CODE)
            async with exporting(nats_url, client, parking) as export:
                await eventually(lambda: is_drained(jetstream, "lago"))
                row = Dependency("lago")
                export.describe(row)
                assert (row.problem, row.backlog_count) == ("", 0)
        assert costs(lago) == {event.request_id: ["1.0000000"] for event in events}
        assert not parking.letters

    async def test_one_that_is_refused_is_set_aside_alone(
        self, lago: FakeLago, nats_url: str, jetstream: JetStreamContext, make_event: Make
    ) -> None:
        lago.closed.add("acct_unknown")
        events = [make_event("acct_unknown" if number == 7 else "acct_lago", 5) for number in range(20)]
        await publish(jetstream, *events)
        parking = Parking()
        async with talking(lago) as client, exporting(nats_url, client, parking):
            await eventually(lambda: is_drained(jetstream, "lago"))
        assert set(lago.billed()) == {event.request_id for event in events} - {events[7].request_id}
        assert [UsageEvent.FromString(letter.payload) for letter in parking.letters] == [events[7]]


async def test_a_letter_is_for_lago_and_not_sent_without_one(
    stub: Any, pool: asyncpg.Pool, make_event: Make
) -> None:
    event = make_event("acct_lago", 5)
    letter = ParkedEvent(4711, "lurus.v1.usage.acct_lago", event.SerializeToString(), "refused: no such code")
    await dead_letters.park_export(pool, letter)
    await dead_letters.park_export(pool, letter)
    await dead_letters.park_export(pool, ParkedEvent(4712, "", b"\xff", "unreadable: no event"))
    request = pb.ListDeadLettersRequest(cause=pb.DEAD_LETTER_CAUSE_EXPORT)
    (found,) = (await stub.ListDeadLetters(request)).dead_letters
    again = pb.ReplayDeadLetterRequest(dead_letter_id=found.dead_letter_id)
    assert "no Lago is set" in (await refused(stub.ReplayDeadLetter(again))).message
    assert (await DeadLetterStore(pool).open_counts())["export"] == 1
    resolve = pb.ResolveDeadLetterRequest(dead_letter_id=found.dead_letter_id, resolution="billed by hand")
    assert (await stub.ResolveDeadLetter(resolve)).dead_letter.resolution == "billed by hand"
