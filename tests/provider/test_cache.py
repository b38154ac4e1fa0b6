"""Redis may be missing, silent, garbage or old: never an error, never a stale answer."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from tests.provider.rig import CREDENTIAL_KEY, create, new_name, served

from lurus.provider.v1 import provider_pb2 as pb
from lurus_common.settings import Settings
from lurus_provider import cache
from lurus_provider.cache import SetCache, open_cache

pytestmark = pytest.mark.anyio
KEY = base64.b64decode(CREDENTIAL_KEY)


@asynccontextmanager
async def opened(url: str, name: str = "") -> AsyncIterator[SetCache]:
    async with open_cache(url, KEY, name or new_name("installation")) as found:
        yield found


def a_set(revision: int) -> pb.WatchProvidersResponse:
    return pb.WatchProvidersResponse(revision=revision, models=[pb.Model(model_id=f"m{revision}")])


async def test_a_stale_set_never_replaces_a_newer_one(settings: Settings) -> None:
    async with opened(settings.redis_url) as kept:
        assert await kept.get() is None
        for revision in (5, 3, 4):
            await kept.put(a_set(revision))
            assert await kept.get() == a_set(5)
        await kept.put(a_set(6))
        assert await kept.get() == a_set(6)
        await asyncio.gather(*(kept.put(a_set(revision)) for revision in range(7, 30)))
        assert await kept.get() == a_set(29)


async def test_it_forgets(settings: Settings) -> None:
    async with opened(settings.redis_url) as kept:
        await kept.put(a_set(1))
        assert 0 < await kept._redis.pttl(kept._name) <= cache.KEEP_SECONDS * 1000


async def test_a_set_of_another_installation_or_key_is_nothing(settings: Settings) -> None:
    async with opened(settings.redis_url, "one") as one, opened(settings.redis_url, "two") as two:
        await one.put(a_set(1))
        assert await two.get() is None
    async with open_cache(settings.redis_url, b"k" * 32, "one") as stranger:
        assert await stranger.get() is None


@pytest.mark.parametrize("garbage", [b"", b"x", b"\x00" * 31, b"\xff" * 500])
@pytest.mark.row("F30")
async def test_garbage_is_nothing_and_is_replaced(settings: Settings, garbage: bytes) -> None:
    async with opened(settings.redis_url) as kept:
        await kept.put(a_set(1))
        await kept._redis.hset(kept._name, mapping={"set": garbage, "revision": b"junk"})
        assert await kept.get() is None
        await kept.put(a_set(2))
        assert await kept.get() == a_set(2)
        await kept._redis.delete(kept._name)
        await kept._redis.set(kept._name, garbage)
        assert await kept.get() is None
        kept._skip_until = 0
        await kept.put(a_set(3))
        assert await kept.get() == a_set(3)


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await reader.read()


async def wrong_types(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        writer.write(b":42\r\n")


async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        writer.write(b"$-7\r\n*3\r\n\xff\xfe%2\r\n")


@asynccontextmanager
async def listening(answer: Answer) -> AsyncIterator[str]:
    writers = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            await answer(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


@pytest.mark.parametrize("answer", [silent, hang_up, http, wrong_types, nonsense])
@pytest.mark.row("F30")
async def test_a_peer_that_is_not_redis_is_left_alone(answer: Answer) -> None:
    async with listening(answer) as url, opened(url) as kept:
        started = asyncio.get_running_loop().time()
        for _ in range(20):
            assert await kept.get() is None
            await kept.put(a_set(1))
        assert asyncio.get_running_loop().time() - started < 2


async def test_the_service_answers_without_redis_and_with_a_broken_one(settings: Settings) -> None:
    async with listening(silent) as broken:
        for url in ("", "redis://127.0.0.1:1/0", broken):
            async with served(settings, redis_url=url) as stub:
                created = await create(stub)
                request = pb.GetProviderRequest(provider_id=created.provider_id)
                assert (await stub.GetProvider(request)).provider == created


@pytest.mark.row("F30")
async def test_what_is_written_is_read_with_redis_flushed_in_between(settings: Settings) -> None:
    redis = Redis.from_url(settings.redis_url)
    async with served(settings) as one, served(settings) as other:
        for level in range(1, 8):
            created = await create(one, level=level)
            request = pb.GetProviderRequest(provider_id=created.provider_id)
            assert (await one.GetProvider(request)).provider == created
            if level % 3 == 0:
                await redis.flushdb()
        async with asyncio.timeout(5):
            while len((await other.ListProviders(pb.ListProvidersRequest())).providers) < 7:
                await asyncio.sleep(0.01)
    await redis.aclose()
