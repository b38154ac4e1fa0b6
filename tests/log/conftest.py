"""Fixtures: the request log in a database of its own, a bus of its own, and the service on both."""

import itertools
import tempfile
from collections.abc import AsyncIterator, Iterator

import pytest
from nats.js import JetStreamContext

from lurus.log.v1.log_pb2_grpc import LogServiceStub
from lurus_common import bus
from lurus_common.rpc import open_channel
from lurus_common.settings import Settings
from lurus_log.server import log_server
from lurus_log.store import LogStore
from lurus_switch.embedded import EmbeddedBackends

TOKEN = "admin-token-of-the-tests"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def log_bus() -> Iterator[EmbeddedBackends]:
    """A bus whose consumer named `log` belongs to these tests alone."""
    with tempfile.TemporaryDirectory() as path, EmbeddedBackends.running(path, ("nats",)) as running:
        yield running


@pytest.fixture
def clickhouse_url(backends: EmbeddedBackends) -> str:
    """A database that does not exist yet."""
    return f"{backends.urls.clickhouse_url.rpartition('/')[0]}/log_{next(_numbers)}"


@pytest.fixture
async def store(clickhouse_url: str) -> AsyncIterator[LogStore]:
    store = LogStore(clickhouse_url)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def settings(clickhouse_url: str, log_bus: EmbeddedBackends) -> Settings:
    return Settings(
        clickhouse_url=clickhouse_url, nats_url=log_bus.urls.nats_url, admin_token=TOKEN, log_port=0
    )


@pytest.fixture
async def jetstream(log_bus: EmbeddedBackends) -> AsyncIterator[JetStreamContext]:
    client = await bus.connect(log_bus.urls.nats_url, "test")
    jetstream = client.jetstream()
    await bus.ensure_stream(jetstream)
    yield jetstream
    await client.close()


@pytest.fixture
async def stub(settings: Settings) -> AsyncIterator[LogServiceStub]:
    """The whole service, over a socket."""
    async with log_server(settings) as port, open_channel(f"127.0.0.1:{port}", TOKEN) as channel:
        yield LogServiceStub(channel)
