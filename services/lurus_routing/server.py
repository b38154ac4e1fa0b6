"""Builds the routing service: on the wire, or in process for a gateway."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lurus.billing.v1.billing_pb2_grpc import BillingServiceStub
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus.routing.v1.routing_pb2_grpc import add_RoutingServiceServicer_to_server
from lurus_common.inprocess import InProcessChannel, InProcessServer
from lurus_common.life import Life
from lurus_common.rpc import open_channel, server_interceptors
from lurus_common.serving import end_tasks, grpc_service
from lurus_common.settings import Settings
from lurus_common.telemetry import Readiness
from lurus_routing.follow import follow_keys, follow_providers
from lurus_routing.limit_exchange import shared_limits
from lurus_routing.outbox import Outbox
from lurus_routing.probing import Prober
from lurus_routing.rate_limiter import RateLimiter
from lurus_routing.servicer import RoutingServicer
from lurus_routing.shared import open_shared
from lurus_routing.upstream import open_session
from lurus_routing.worker import Worker

if TYPE_CHECKING:  # the async stubs exist for the type checker only
    from lurus.billing.v1.billing_pb2_grpc import BillingServiceAsyncStub
    from lurus.provider.v1.provider_pb2_grpc import ProviderServiceAsyncStub

SERVICE = "lurus.routing.v1.RoutingService"
# These check an API key themselves.
_KEY_METHODS = ("Relay", "StreamChat", "CompleteChat", "CountTokens", "ListModels")
OPEN_METHODS = tuple(f"/{SERVICE}/{name}" for name in _KEY_METHODS)
# Behind an edge in the same process: that ends its own calls first.
EDGE_SECONDS = 5.0


@asynccontextmanager
async def routing_server(settings: Settings, life: Life | None = None) -> AsyncIterator[int]:
    """Serves RoutingService over gRPC; yields its port."""
    life = life or Life()
    async with _routing(settings) as routing, _wire(settings, routing, life, settings.drain_seconds) as port:
        yield port


@asynccontextmanager
async def routing_in_process(settings: Settings, life: Life | None = None) -> AsyncIterator["InProcess"]:
    """Gives a channel without a socket, and serves the gRPC port as well."""
    life, limit = life or Life(), settings.drain_seconds + EDGE_SECONDS
    async with _routing(settings) as routing, _wire(settings, routing, life, limit) as port:
        server = InProcessServer(server_interceptors(settings.admin_token, OPEN_METHODS))
        add_RoutingServiceServicer_to_server(routing.servicer, server)  # type: ignore[arg-type]
        channel = server.channel()
        try:
            yield InProcess(channel, port, routing.worker.readiness)
        finally:
            await channel.close()


class InProcess(NamedTuple):
    """The routing service for an edge in its process: `readiness` says what it lacks to serve."""

    channel: InProcessChannel
    port: int
    readiness: Readiness


class _Routing(NamedTuple):
    servicer: RoutingServicer
    worker: Worker


def _wire(settings: Settings, routing: _Routing, life: Life, drain_seconds: float) -> Any:
    routing.servicer.board.end_with(life.ending)
    return grpc_service(
        settings,
        settings.routing_port,
        [SERVICE],
        lambda server: add_RoutingServiceServicer_to_server(routing.servicer, server),
        routing.worker.readiness,
        open_methods=OPEN_METHODS,
        for_inference=True,
        share_port=True,
        life=life,
        drain_seconds=drain_seconds,
        cut=routing.worker.relay.cut,
        status=routing.worker.status,
    )


@asynccontextmanager
async def _routing(settings: Settings) -> AsyncIterator[_Routing]:
    settings.require("data_dir", "nats_url", "admin_token", "key_pepper", "credential_key")
    settings.credential_key_bytes()
    async with AsyncExitStack() as stack:
        billing_channel = await stack.enter_async_context(
            open_channel(settings.billing_address, settings.admin_token)
        )
        provider_channel = await stack.enter_async_context(
            open_channel(settings.provider_address, settings.admin_token)
        )
        billing: BillingServiceAsyncStub = BillingServiceStub(billing_channel)
        provider: ProviderServiceAsyncStub = ProviderServiceStub(provider_channel)
        outboxes = Path(settings.data_dir) / "outbox"
        outbox = await stack.enter_async_context(
            Outbox(outboxes, settings.worker_id, settings.max_outbox_rows)
        )
        session = await stack.enter_async_context(open_session(settings.http_hosts()))
        limiter = RateLimiter(settings.gateway_workers, bool(settings.redis_url))
        await stack.enter_async_context(shared_limits(settings, limiter))
        shared = None
        if settings.redis_url:
            shared = await stack.enter_async_context(open_shared(settings.redis_url, settings.key_pepper))
        worker = Worker(settings, session, outbox, billing, limiter, shared)
        sharing = [shared.send(), shared.follow(worker.relay.moves.take)] if shared is not None else []
        await worker.restore()
        await stack.enter_async_context(
            _background(
                *sharing,
                worker.relay.collector.run(),
                follow_keys(billing, worker.keys),
                follow_providers(provider, worker.providers),
                worker.keys.keeper.run(),
                worker.providers.keeper.run(),
                worker.publisher.run(),
                worker.look_after_orphans(),
                worker.relay.tend(),
                worker.watch_itself(),
                worker.ask_redis(),
                Prober(
                    session, worker.relay.health, lambda: worker.relay.catalog, settings.probe_seconds
                ).run(),
            )
        )
        stack.push_async_callback(worker.stop)
        servicer = RoutingServicer(worker.relay, worker.table, settings.admin_token, worker.status, outboxes)
        yield _Routing(servicer, worker)


@asynccontextmanager
async def _background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs loops beside the server; one that fails ends the process, loudly."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
        try:
            yield
        finally:
            await end_tasks(tasks)
