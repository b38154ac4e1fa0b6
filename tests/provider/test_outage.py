"""PostgreSQL is killed: calls say so, streams stay, everything returns by itself."""

import asyncio
import signal
from collections.abc import Iterator

import aiohttp
import grpc.aio
import msgspec
import psutil
import pytest
from tests.provider.rig import a_provider, create, refused, served
from tests.provider.test_watch import following, latest

from lurus.provider.v1 import provider_pb2 as pb
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus_common.errors import DependencyUnavailable
from lurus_common.settings import Settings
from lurus_switch.embedded import EmbeddedBackends, free_port

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackends]:
    """A PostgreSQL and a Redis that only these tests kill."""
    path = tmp_path_factory.mktemp("killed")
    with EmbeddedBackends.running(path, ("postgres", "valkey")) as running:
        yield running


@pytest.fixture
def fragile(settings: Settings, own: EmbeddedBackends) -> Settings:
    return msgspec.structs.replace(settings, database_url=own.urls.database_url, redis_url=own.urls.redis_url)


def suspend(pid: int) -> list[psutil.Process]:
    """Stops PostgreSQL and all that it has started, so that connections stay open and say nothing."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in processes:
        process.suspend()
    return processes


async def eventually_created(stub: ProviderServiceStub, provider: pb.Provider) -> pb.Provider:
    async with asyncio.timeout(20):
        while True:
            try:
                return (await stub.CreateProvider(pb.CreateProviderRequest(provider=provider))).provider
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                await asyncio.sleep(0.05)


@pytest.mark.row("F28")
async def test_it_comes_back_after_postgresql_was_killed(fragile: Settings, own: EmbeddedBackends) -> None:
    ops = free_port()
    async with served(fragile, ops_port=ops) as stub, following(stub) as follower:
        created = await create(stub)
        await stub.GetProvider(pb.GetProviderRequest(provider_id=created.provider_id))
        pid = await own.supervisor.wait_ready("postgres")
        own.supervisor.signal("postgres", signal.SIGKILL)
        error = await refused(stub.CreateProvider(pb.CreateProviderRequest(provider=a_provider())))
        assert isinstance(error, DependencyUnavailable)
        assert error.metadata == {"dependency": "postgresql"}
        # Reads are answered from Redis meanwhile.
        found = await stub.GetProvider(pb.GetProviderRequest(provider_id=created.provider_id))
        assert found.provider == created
        await own.supervisor.wait_ready("postgres", other_than_pid=pid)
        another = await eventually_created(stub, a_provider())
        await follower.reach((await latest(stub)).revision)
        assert another.provider_id in follower.rows
        assert follower.snapshot_count == 1
        async with asyncio.timeout(10), aiohttp.ClientSession() as session:
            while (await session.get(f"http://127.0.0.1:{ops}/ready")).status != 200:
                await asyncio.sleep(0.1)


async def test_without_redis_reads_say_that_postgresql_is_away(
    fragile: Settings, own: EmbeddedBackends
) -> None:
    ops = free_port()
    async with served(fragile, redis_url="", ops_port=ops) as stub, aiohttp.ClientSession() as session:
        request = pb.ListProvidersRequest()
        await stub.ListProviders(request)
        pid = await own.supervisor.wait_ready("postgres")
        suspended = suspend(pid)  # worse than dead: connected and silent
        try:
            async with asyncio.timeout(15):
                while True:
                    try:
                        await stub.ListProviders(request)
                    except grpc.aio.AioRpcError as error:
                        assert error.code() is grpc.StatusCode.UNAVAILABLE
                        break
                    await asyncio.sleep(0.1)
            calls = [refused(stub.ListProviders(request)) for _ in range(5)]
            async with asyncio.timeout(10):  # together, not one after the other
                assert all(isinstance(error, DependencyUnavailable) for error in await asyncio.gather(*calls))
            async with session.get(f"http://127.0.0.1:{ops}/ready") as response:
                assert response.status == 503
                assert (await response.json())["problems"] == {"postgresql": "does not answer"}
        finally:
            for process in suspended:
                process.resume()
        own.supervisor.signal("postgres", signal.SIGKILL)
        await own.supervisor.wait_ready("postgres", other_than_pid=pid)
        assert await eventually_created(stub, a_provider())


@pytest.mark.row("F30")
async def test_redis_may_die_in_flight(fragile: Settings, own: EmbeddedBackends) -> None:
    async with served(fragile) as stub:
        for number in range(30):
            created = await create(stub)
            if number == 10:
                own.supervisor.signal("valkey", signal.SIGKILL)
            found = await stub.GetProvider(pb.GetProviderRequest(provider_id=created.provider_id))
            assert found.provider == created
