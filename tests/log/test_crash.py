"""Stores that are away, killed and back; a service that dies between insert and ack."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectionResetError
from nats.js import JetStreamContext

from lurus.log.v1.log_pb2 import GetStatsRequest, ListLogsRequest
from lurus.log.v1.log_pb2_grpc import LogServiceStub
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common import bus
from lurus_common.errors import DependencyUnavailable
from lurus_common.rpc import error_of, open_channel
from lurus_common.settings import Settings, to_environment
from lurus_log.queries import Query
from lurus_log.server import log_server
from lurus_log.store import LogStore
from lurus_switch.embedded import DataDir, EmbeddedBackends
from tests.support.drained import is_drained

from .conftest import TOKEN
from .events import eventually, make_event, publish

pytestmark = pytest.mark.anyio

ACK_WAIT_SECONDS = 2


@pytest.fixture
def own(tmp_path: Path) -> EmbeddedBackends:
    """A bus and a ClickHouse of the test, not started yet."""
    return EmbeddedBackends(DataDir(tmp_path), names=("nats", "clickhouse"))


@pytest.fixture
def own_settings(own: EmbeddedBackends) -> Iterator[Settings]:
    yield Settings(
        clickhouse_url=own.urls.clickhouse_url,
        nats_url=own.urls.nats_url,
        admin_token=TOKEN,
        log_port=0,
        ack_wait_seconds=ACK_WAIT_SECONDS,
    )
    own.data_dir.close()


@pytest.fixture
async def own_jetstream(own: EmbeddedBackends) -> AsyncIterator[JetStreamContext]:
    """The bus, once it runs."""
    let_bodies_be_cut()
    async with own:
        client = await bus.connect(own.urls.nats_url, "test")
        jetstream = client.jetstream()
        await bus.ensure_stream(jetstream)
        yield jetstream
        await client.close()


def let_bodies_be_cut() -> None:
    """Lets aiohttp's task that writes a body fail unheard.

    If the connection is cut between the last part and the end of a body, nobody
    awaits that task: who made the request has been told already.
    """
    loop = asyncio.get_running_loop()
    fail = loop.get_exception_handler() or asyncio.AbstractEventLoop.default_exception_handler

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), ClientConnectionResetError):
            fail(loop, context)

    loop.set_exception_handler(handle)


async def is_true(stub: LogServiceStub, events: list[UsageEvent]) -> bool:
    """Whether the log has each event once; fails at once if it has one twice."""
    try:
        [row] = (await stub.GetStats(GetStatsRequest())).rows
    except Exception:
        return False
    assert row.request_count <= len(events)
    return (row.request_count, row.cost_nano_usd, row.tokens.output) == (
        len(events),
        sum(event.cost_nano_usd for event in events),
        sum(event.tokens.output for event in events),
    )


async def test_the_service_starts_before_its_stores(own: EmbeddedBackends, own_settings: Settings) -> None:
    async with (
        log_server(own_settings) as port,
        open_channel(f"127.0.0.1:{port}", TOKEN) as channel,
    ):
        stub = LogServiceStub(channel)
        with pytest.raises(Exception) as caught:
            await stub.ListLogs(ListLogsRequest())
        assert isinstance(error_of(caught.value), DependencyUnavailable)  # type: ignore[arg-type]
        async with own:
            client = await bus.connect(own.urls.nats_url, "test")
            await bus.ensure_stream(client.jetstream())
            events = [make_event(n) for n in range(3)]
            await publish(client.jetstream(), events)
            await eventually(lambda: is_true(stub, events))
            await client.close()
        with pytest.raises(Exception) as caught:
            await stub.ListLogs(ListLogsRequest())
        assert isinstance(error_of(caught.value), DependencyUnavailable)  # type: ignore[arg-type]


@pytest.mark.row("F34")
async def test_clickhouse_killed_while_events_come_loses_and_doubles_nothing(
    own: EmbeddedBackends, own_settings: Settings, own_jetstream: JetStreamContext
) -> None:
    events = [make_event(n, age_seconds=n * 20) for n in range(4_000)]
    moments = random.Random(7)
    async with (
        log_server(own_settings) as port,
        open_channel(f"127.0.0.1:{port}", TOKEN) as channel,
    ):
        publishing = asyncio.create_task(publish(own_jetstream, events))
        for _ in range(3):
            await asyncio.sleep(moments.uniform(0.2, 0.6))
            pid = own.supervisor.status_of("clickhouse").pid
            own.supervisor.signal("clickhouse", signal.SIGKILL)
            await own.supervisor.wait_ready("clickhouse", other_than_pid=pid)
        await publishing
        await eventually(lambda: is_true(LogServiceStub(channel), events))


@pytest.mark.row("F34", "F36")
async def test_a_service_killed_between_insert_and_ack_stores_nothing_twice(
    own_settings: Settings, own_jetstream: JetStreamContext
) -> None:
    events = [make_event(n) for n in range(900)]
    await publish(own_jetstream, events)
    store = LogStore(own_settings.clickhouse_url)
    await store.start()
    # Else the repeats are soon merged away, and this would show nothing.
    await store._connected().command("SYSTEM STOP MERGES usage_events")
    path = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for _ in range(2):
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("dying_service.py")),
            env={**path, "PATH": os.environ["PATH"], **to_environment(own_settings)},
        )
        assert await asyncio.wait_for(child.wait(), 30) == -signal.SIGKILL
    async with (
        log_server(own_settings) as port,
        open_channel(f"127.0.0.1:{port}", TOKEN) as channel,
    ):
        await eventually(lambda: is_drained(own_jetstream, "log"))
        [[rows]] = await store._select(Query("SELECT count() FROM usage_events"))
        assert isinstance(rows, int)
        assert rows > len(events)
        assert await is_true(LogServiceStub(channel), events)
    await store.close()
