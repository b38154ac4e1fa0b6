"""WatchProviders: the whole set once, then every change, whoever made it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest
from tests.provider.rig import ADMIN_TOKEN, a_provider, create, new_name, refused, served

from lurus.provider.v1 import provider_pb2 as pb
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus_common import postgres
from lurus_common.errors import Overloaded
from lurus_common.rpc import open_channel
from lurus_common.settings import Settings
from lurus_provider import feed, store
from lurus_provider.server import provider_server

pytestmark = pytest.mark.anyio


@dataclass
class Follower:
    """What a client knows who applies every message."""

    revisions: list[int] = field(default_factory=list)
    snapshot_count: int = 0
    rows: dict[str, Any] = field(default_factory=dict)

    def take(self, message: pb.WatchProvidersResponse) -> None:
        self.revisions.append(message.revision)
        if message.is_snapshot:
            self.snapshot_count += 1
            self.rows.clear()
        for provider in message.providers:
            self.rows[provider.provider_id] = provider
        for model in message.models:
            self.rows[model.model_id] = model
        for price in message.prices:
            self.rows[price.price_id] = price
        for gone in (message.deleted_provider_ids, message.deleted_model_ids, message.deleted_price_ids):
            for name in gone:
                self.rows.pop(name, None)

    async def reach(self, revision: int) -> None:
        async with asyncio.timeout(10):
            while not self.revisions or self.revisions[-1] < revision:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def following(stub: ProviderServiceStub) -> AsyncIterator[Follower]:
    follower = Follower()
    call = stub.WatchProviders(pb.WatchProvidersRequest())

    async def follow() -> None:
        async for message in call:
            follower.take(message)

    task = asyncio.create_task(follow())
    try:
        await follower.reach(0)
        yield follower
    finally:
        call.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def latest(stub: ProviderServiceStub) -> pb.WatchProvidersResponse:
    call = stub.WatchProviders(pb.WatchProvidersRequest())
    message = await call.read()
    call.cancel()
    return message


@asynccontextmanager
async def store_of(settings: Settings) -> AsyncIterator[store.ProviderStore]:
    pool = await postgres.open_pool(settings.database_url, schema="provider", max_size=1)
    try:
        yield store.ProviderStore(pool, lambda revision: None)
    finally:
        await postgres.close_pool(pool)


async def write_something(stub: ProviderServiceStub, seed: int) -> None:
    choose = random.Random(seed)
    names = [new_name(f"w{seed}") for _ in range(3)]
    for _ in range(8):
        name, level = choose.choice(names), choose.randint(1, 10)
        kind = choose.choice(["create", "update", "delete", "model", "price"])
        try:
            if kind == "create":
                await create(stub, provider_id=name, level=level)
            elif kind == "update":
                change = pb.Provider(provider_id=name, level=level)
                await stub.UpdateProvider(pb.UpdateProviderRequest(provider=change))
            elif kind == "delete":
                await stub.DeleteProvider(pb.DeleteProviderRequest(provider_id=name))
            elif kind == "model":
                model = pb.Model(model_id=f"model-{name}", max_input_tokens=level)
                await stub.CreateModel(pb.CreateModelRequest(model=model))
            else:
                price = pb.Price(price_id=f"price_{name}-{level}", model=name)
                await stub.CreatePrice(pb.CreatePriceRequest(price=price))
        except grpc.aio.AioRpcError as error:
            assert error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS)


async def test_two_processes_and_many_writers_lose_nothing(settings: Settings) -> None:
    async with (
        served(settings) as one,
        served(settings) as other,
        following(one) as first,
        following(other) as second,
    ):
        await asyncio.gather(*(write_something((one, other)[seed % 2], seed) for seed in range(8)))
        truth = Follower()
        truth.take(await latest(one))
        for follower in (first, second):
            await follower.reach(truth.revisions[-1])
            assert follower.rows == truth.rows
            assert follower.snapshot_count == 1
            assert follower.revisions == sorted(set(follower.revisions))


async def test_a_change_in_the_database_is_seen_within_a_moment(stub: ProviderServiceStub) -> None:
    async with following(stub) as follower:
        started = asyncio.get_running_loop().time()
        created = await create(stub)
        await follower.reach(follower.revisions[0] + 1)
        assert asyncio.get_running_loop().time() - started < 1
        assert follower.rows[created.provider_id].credentials[0].sealed_secret


async def test_what_was_deleted_and_made_again_is_there(
    settings: Settings, stub: ProviderServiceStub
) -> None:
    created = await create(stub)
    before = (await latest(stub)).revision
    await stub.DeleteProvider(pb.DeleteProviderRequest(provider_id=created.provider_id))
    again = await create(stub, provider_id=created.provider_id, level=9)
    async with store_of(settings) as mine:
        message = await mine.changes(before)
    assert not message.deleted_provider_ids
    assert [(row.provider_id, row.level) for row in message.providers] == [(again.provider_id, 9)]


async def test_who_is_far_behind_or_ahead_gets_the_whole_set(
    settings: Settings, stub: ProviderServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = await create(stub)
    monkeypatch.setattr(store, "KEPT_REVISIONS", 2)
    async with store_of(settings) as mine:
        now = await mine.revision()
        assert await mine.changes(now) == pb.WatchProvidersResponse(revision=now)
        await stub.DeleteProvider(pb.DeleteProviderRequest(provider_id=created.provider_id))
        message = await mine.changes(now)
        assert (message.is_snapshot, list(message.deleted_provider_ids)) == (False, [created.provider_id])
        for since in (now - 2, now + 99, -5):
            message = await mine.changes(since)
            assert message.is_snapshot
            assert not message.deleted_provider_ids
        for _ in range(3):
            await create(stub)
        async with postgres.connection(mine._pool) as connection:
            # Too old to be asked for.
            assert not await connection.fetch("SELECT id FROM provider.deletion")


async def test_streams_end_when_the_service_stops_and_nobody_waits(settings: Settings) -> None:
    async with AsyncExitStack() as client:
        async with provider_server(settings) as port:
            channel = await client.enter_async_context(open_channel(f"127.0.0.1:{port}", ADMIN_TOKEN))
            call = ProviderServiceStub(channel).WatchProviders(pb.WatchProvidersRequest())
            await call.read()
            stopped = asyncio.get_running_loop().time()
        assert await call.read() is grpc.aio.EOF
        assert asyncio.get_running_loop().time() - stopped < 2


async def test_streams_have_a_limit(stub: ProviderServiceStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_WATCHERS", 1)
    async with following(stub):
        error = await refused(stub.WatchProviders(pb.WatchProvidersRequest()).read())
        assert isinstance(error, Overloaded)


async def test_the_set_has_a_limit(stub: ProviderServiceStub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await latest(stub)
    monkeypatch.setitem(store._MAXIMA, "provider", len(before.providers))
    given = a_provider()
    error = await refused(stub.CreateProvider(pb.CreateProviderRequest(provider=given)))
    assert error.metadata["resource"] == "provider"
    assert (await latest(stub)).revision == before.revision
