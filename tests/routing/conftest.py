"""A routing service between scripted neighbours, on both kinds of channel."""

import gc
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from lurus.provider.v1 import provider_pb2
from lurus_common.settings import Settings
from lurus_switch.embedded import EmbeddedBackends

from .rig import ADMIN_TOKEN, CREDENTIAL_KEY, PEPPER, PRICE, MakeRig, Rig
from .workers import Workers

KINDS = ("in process", "wire")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Runs async tests on the loop that the gateway runs on."""
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="package")
async def one_loop() -> AsyncIterator[None]:
    """Keeps one event loop for all tests: grpc.aio does not bear many in one process."""
    yield
    # A stopped server says good-bye to its loop when it is collected: while there is one.
    gc.collect()


@pytest.fixture(scope="package")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bus of these tests' own: the name of the stream is fixed."""
    with EmbeddedBackends.running(tmp_path_factory.mktemp("nats"), ("nats",)) as running:
        yield running.urls.nats_url


@pytest.fixture(scope="package")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackends]:
    """A Redis that tests may stop and kill; its URL is `urls.redis_url`."""
    with EmbeddedBackends.running(tmp_path_factory.mktemp("valkey"), ("valkey",)) as running:
        yield running


@pytest.fixture
async def workers(
    one_loop: None, settings: Settings, redis_server: EmbeddedBackends
) -> AsyncIterator[Workers]:
    """An installation whose workers share a Redis; no worker runs yet."""
    url = redis_server.urls.redis_url
    redis = Redis.from_url(url)
    await redis.flushall()
    await redis.aclose()
    async with Workers(msgspec.structs.replace(settings, redis_url=url)) as found:
        yield found


@pytest.fixture
def settings(tmp_path: Path, nats_url: str) -> Settings:
    return Settings(
        data_dir=str(tmp_path),
        nats_url=nats_url,
        admin_token=ADMIN_TOKEN,
        key_pepper=PEPPER,
        credential_key=CREDENTIAL_KEY,
        routing_port=0,
        upstream_connect_seconds=1,
        upstream_first_event_seconds=5,
        upstream_idle_seconds=5,
    )


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """How the caller reaches the service."""
    return str(request.param)


@pytest.fixture
async def make_rig(one_loop: None, settings: Settings, kind: str) -> AsyncIterator[MakeRig]:
    """Starts rigs, all on one loop, with other settings; `providers` are the arguments of `Rig.use`."""
    rigs: list[Rig] = []
    async with AsyncExitStack() as stack:

        async def make(
            providers: dict[str, dict[str, Any]] | None = None,
            prices: Sequence[provider_pb2.Price] = (PRICE,),
            **changes: Any,
        ) -> Rig:
            rig = Rig(msgspec.structs.replace(settings, **changes), kind)
            rig.provider.prices.extend(prices)
            await stack.enter_async_context(rig.upstream)
            await stack.enter_async_context(rig.other)
            rig.use(**(providers or {"one": {}}))
            await stack.enter_async_context(rig.running())
            rigs.append(rig)
            return rig

        yield make
        assert [failure for rig in rigs for failure in rig.upstream.failures + rig.other.failures] == []


@pytest.fixture
async def rig(make_rig: MakeRig) -> Rig:
    """A rig with one provider."""
    return await make_rig()


@pytest.fixture
async def pair(make_rig: MakeRig) -> Rig:
    """A rig with two providers, `one` before `two`."""
    return await make_rig({"one": {"level": 1}, "two": {"level": 2}})
