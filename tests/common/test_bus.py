"""The usage stream on a real NATS."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, DeliverPolicy, DiscardPolicy, StreamConfig
from nats.js.errors import NotFoundError

from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common import bus
from lurus_common.ids import new_id
from lurus_switch.embedded import EmbeddedBackends

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackends]:
    with EmbeddedBackends.running(tmp_path_factory.mktemp("nats"), ("nats",)) as running:
        yield running


@pytest.fixture
def nats_url(nats: EmbeddedBackends) -> str:
    return nats.urls.nats_url


@pytest.fixture
async def client(nats_url: str) -> AsyncIterator[Client]:
    client = await bus.connect(nats_url, "test")
    yield client
    await client.close()


@pytest.fixture
async def jetstream(client: Client) -> AsyncIterator[JetStreamContext]:
    """JetStream without the stream; each test makes its own."""
    jetstream = client.jetstream()
    yield jetstream
    with suppress(NotFoundError):
        await jetstream.delete_stream(bus.STREAM_NAME)


def event(account_id: str = "acct_a") -> UsageEvent:
    return UsageEvent(request_id=new_id("req"), account_id=account_id, event_time=datetime.now(UTC))


async def publish(jetstream: JetStreamContext, one: UsageEvent) -> bool:
    ack = await bus.publish(jetstream, one.request_id, bus.subject_of(one), one.SerializeToString())
    return bool(ack.duplicate)


class TestEnsureStream:
    async def test_it_keeps_unread_money(self, jetstream: JetStreamContext) -> None:
        created = (await bus.ensure_stream(jetstream)).config
        found = (await jetstream.stream_info(bus.STREAM_NAME)).config
        assert created == found
        assert (found.discard, found.deny_delete, found.deny_purge) == (DiscardPolicy.NEW, True, True)
        assert (found.max_age, found.duplicate_window) == (14 * 86_400, 600)

    async def test_many_starters_at_once_agree(self, jetstream: JetStreamContext) -> None:
        found = await asyncio.gather(*(bus.ensure_stream(jetstream) for _ in range(10)))
        assert {info.config.name for info in found} == {bus.STREAM_NAME}

    async def test_a_stream_that_would_lose_money_is_refused(self, jetstream: JetStreamContext) -> None:
        wrong = StreamConfig(name=bus.STREAM_NAME, subjects=[bus.SUBJECTS], discard=DiscardPolicy.OLD)
        await jetstream.add_stream(wrong)
        with pytest.raises(bus.StreamMismatch, match=r"discard is .*old.*; deny_delete"):
            await bus.ensure_stream(jetstream)

    async def test_another_size_and_age_are_the_operators_choice(self, jetstream: JetStreamContext) -> None:
        await jetstream.add_stream(bus.STREAM.evolve(max_bytes=1_000_000, max_age=3600))
        assert (await bus.ensure_stream(jetstream)).config.max_bytes == 1_000_000


class TestEnsureConsumer:
    async def test_it_gives_up_no_event_and_takes_none_for_done(self, jetstream: JetStreamContext) -> None:
        await bus.ensure_stream(jetstream)
        await asyncio.gather(*(bus.ensure_consumer(jetstream, "one") for _ in range(5)))
        found = (await jetstream.consumer_info(bus.STREAM_NAME, "one")).config
        assert (found.ack_policy, found.deliver_policy) == (AckPolicy.EXPLICIT, DeliverPolicy.ALL)
        assert (found.max_deliver, found.filter_subject) == (-1, bus.SUBJECTS)
        assert (found.ack_wait, found.max_ack_pending) == (30, 2000)

    @pytest.mark.parametrize(
        "change",
        [
            {"max_deliver": 5},
            {"ack_policy": AckPolicy.NONE},
            {"deliver_policy": DeliverPolicy.NEW},
            {"filter_subject": f"{bus.SUBJECT_PREFIX}.acct_a"},
        ],
        ids=lambda change: next(iter(change)),
    )
    async def test_one_that_would_lose_money_is_refused(
        self, jetstream: JetStreamContext, change: dict[str, object]
    ) -> None:
        await bus.ensure_stream(jetstream)
        await jetstream.add_consumer(bus.STREAM_NAME, bus.consumer_config("one").evolve(**change))
        with pytest.raises(bus.StreamMismatch, match=f"consumer one: {next(iter(change))} is"):
            await bus.ensure_consumer(jetstream, "one")

    async def test_its_times_follow_the_settings(self, jetstream: JetStreamContext) -> None:
        await bus.ensure_stream(jetstream)
        await bus.ensure_consumer(jetstream, "one")
        await bus.ensure_consumer(jetstream, "one", 5)
        assert (await jetstream.consumer_info(bus.STREAM_NAME, "one")).config.ack_wait == 5


class TestServer:
    def test_the_embedded_one_writes_to_disk_before_it_acknowledges(self, nats: EmbeddedBackends) -> None:
        port = json.loads((nats.data_dir.path / "ports.json").read_text())["nats_http"]
        found = httpx.get(f"http://127.0.0.1:{port}/varz").json()["jetstream"]["config"]
        assert found["sync_always"] is True

    def test_so_does_the_deployed_one(self) -> None:
        deployed = Path(__file__).parents[2] / "deploy/nats/nats.conf"
        assert re.search(r"^\s*sync_interval: always$", deployed.read_text(), re.MULTILINE)


class TestPublish:
    async def test_a_repeat_is_stored_once(self, jetstream: JetStreamContext) -> None:
        await bus.ensure_stream(jetstream)
        one = event()
        assert not await publish(jetstream, one)
        assert await publish(jetstream, one)
        assert (await jetstream.stream_info(bus.STREAM_NAME)).state.messages == 1

    @pytest.mark.row("F27")
    async def test_without_the_stream_it_fails_as_the_bus_does(self, jetstream: JetStreamContext) -> None:
        with pytest.raises(bus.NatsError):
            await publish(jetstream, event())

    @pytest.mark.row("F27")
    async def test_a_full_stream_refuses_and_forgets_nothing(self, jetstream: JetStreamContext) -> None:
        await jetstream.add_stream(bus.STREAM.evolve(max_bytes=4096))
        with pytest.raises(bus.NatsError):
            for _ in range(100):
                await publish(jetstream, event())
        assert (await jetstream.stream_info(bus.STREAM_NAME)).state.first_seq == 1


class TestConnect:
    async def test_it_waits_for_a_bus_that_is_away_and_can_be_given_up(self) -> None:
        connecting = asyncio.create_task(bus.connect("nats://127.0.0.1:9", "test"))
        await asyncio.sleep(0.3)
        assert not connecting.done()
        connecting.cancel()
        await asyncio.wait([connecting], timeout=1)
        assert connecting.cancelled()
