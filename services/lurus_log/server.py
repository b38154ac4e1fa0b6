"""Builds and serves the log service."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lurus.log.v1.log_pb2 import DESCRIPTOR
from lurus.log.v1.log_pb2_grpc import add_LogServiceServicer_to_server
from lurus_common.errors import DependencyUnavailable
from lurus_common.migrations import SchemaTooNew
from lurus_common.serving import beside, grpc_service
from lurus_common.settings import Settings
from lurus_common.status import Status, keep_asking
from lurus_log.consumer import LogConsumer
from lurus_log.servicer import LogServicer
from lurus_log.store import LogStore
from lurus_log.watch import UsageTail

log = logging.getLogger(__name__)

SERVICE = DESCRIPTOR.services_by_name["LogService"].full_name
# Between two looks for ClickHouse while it is away at start.
START_RETRY_SECONDS = 0.5
# A batch of events at hand is given this long to be stored.
FINISH_SECONDS = 10.0


@asynccontextmanager
async def log_server(settings: Settings) -> AsyncIterator[int]:
    """Serves LogService and stores usage; yields the gRPC port.

    It waits neither for ClickHouse nor for the bus: until ClickHouse is there,
    calls are answered with DEPENDENCY_UNAVAILABLE and events stay on the bus.
    It stops in order: watches end, gRPC drains, the batch at hand is stored and
    acknowledged, connections close.

    Raises:
        SettingsError: if one of the settings that it needs is missing.
        SchemaTooNew: if ClickHouse is there and a newer release has been there.
    """
    settings.require("clickhouse_url", "nats_url", "admin_token")
    store, tail = LogStore(settings.clickhouse_url), UsageTail()
    usage = LogConsumer(settings.nats_url, store, tail, settings.ack_wait_seconds)
    servicer = LogServicer(store, tail)
    status = Status("log")
    clickhouse = status.add("clickhouse")
    status.add("nats", usage.describe)

    async def problems() -> dict[str, str]:
        found = {"clickhouse": store.problem, "usage": usage.problem}
        return {name: problem for name, problem in found.items() if problem}

    async with (
        _started(store),
        _consuming(usage),
        beside(keep_asking(clickhouse, store.ping), "status"),
        grpc_service(
            settings,
            settings.log_port,
            [SERVICE],
            lambda server: add_LogServiceServicer_to_server(servicer, server),
            problems,
            status=status,
        ) as port,
    ):
        with contextlib.closing(tail):
            yield port


@asynccontextmanager
async def _started(store: LogStore) -> AsyncIterator[None]:
    """Starts the store, at once or as soon as ClickHouse is there."""
    try:
        with contextlib.suppress(DependencyUnavailable):
            await store.start()
        async with beside(_start_later(store), "start of the request log"):
            yield
    finally:
        await store.close()


async def _start_later(store: LogStore) -> None:
    while not store.is_started:
        await asyncio.sleep(START_RETRY_SECONDS)
        try:
            await store.start()
        except DependencyUnavailable as error:
            log.debug("%s", error.message)
        except SchemaTooNew as error:
            log.error("%s", error)
        except Exception:
            log.exception("the request log cannot be started; it is tried again")


@asynccontextmanager
async def _consuming(usage: LogConsumer) -> AsyncIterator[None]:
    async with beside(usage.run(), "usage consumer") as task:
        try:
            yield
        finally:
            if usage.stop():
                await asyncio.wait([task], timeout=FINISH_SECONDS)
