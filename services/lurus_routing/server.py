"""Builds the routing service: on the wire, or in process for a gateway."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lurus.billing.v1.billing_pb2_grpc import BillingServiceStub
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus.routing.v1.routing_pb2_grpc import add_RoutingServiceServicer_to_server
from lurus_common.inprocess import InProcessChannel, InProcessServer
from lurus_common.life import Life
from lurus_common.rpc import open_channel, server_interceptors
from lurus_common.serving import grpc_service
from lurus_common.settings import Settings
from lurus_common.telemetry import Readiness
from lurus_routing.follow import follow_keys, follow_providers, key_lookup, lease_request
from lurus_routing.keys import KeyTable
from lurus_routing.leases import Leases
from lurus_routing.limit_exchange import shared_limits
from lurus_routing.outbox import Outbox
from lurus_routing.outbox_relay import OutboxRelay
from lurus_routing.rate_limiter import RateLimiter
from lurus_routing.relay import Relay
from lurus_routing.servicer import RoutingServicer
from lurus_routing.upstream import open_session

if TYPE_CHECKING:  # the async stubs exist for the type checker only
    from lurus.billing.v1.billing_pb2_grpc import BillingServiceAsyncStub
    from lurus.provider.v1.provider_pb2_grpc import ProviderServiceAsyncStub

SERVICE = "lurus.routing.v1.RoutingService"
# These check an API key themselves.
_KEY_METHODS = ("Relay", "StreamChat", "CompleteChat", "CountTokens", "ListModels")
OPEN_METHODS = tuple(f"/{SERVICE}/{name}" for name in _KEY_METHODS)
FLUSH_SECONDS = 3.0
# Behind an edge in the same process: that ends its own calls first.
EDGE_SECONDS = 5.0


@asynccontextmanager
async def routing_server(settings: Settings, life: Life | None = None) -> AsyncIterator[int]:
    """Serves RoutingService over gRPC; yields its port."""
    life = life or Life()
    async with _routing(settings) as routing, _wire(settings, routing, life, settings.drain_seconds) as port:
        yield port


@asynccontextmanager
async def routing_in_process(
    settings: Settings, life: Life | None = None
) -> AsyncIterator[tuple[InProcessChannel, int]]:
    """Gives a channel without a socket, and serves the gRPC port as well; yields both."""
    life, limit = life or Life(), settings.drain_seconds + EDGE_SECONDS
    async with _routing(settings) as routing, _wire(settings, routing, life, limit) as port:
        server = InProcessServer(server_interceptors(settings.admin_token, OPEN_METHODS))
        add_RoutingServiceServicer_to_server(routing.servicer, server)  # type: ignore[arg-type]
        channel = server.channel()
        try:
            yield channel, port
        finally:
            await channel.close()


class _Routing(NamedTuple):
    servicer: RoutingServicer
    readiness: Readiness
    cut: Callable[[], None]


def _wire(settings: Settings, routing: _Routing, life: Life, drain_seconds: float) -> Any:
    return grpc_service(
        settings,
        settings.routing_port,
        [SERVICE],
        lambda server: add_RoutingServiceServicer_to_server(routing.servicer, server),
        routing.readiness,
        open_methods=OPEN_METHODS,
        for_inference=True,
        share_port=True,
        life=life,
        drain_seconds=drain_seconds,
        cut=routing.cut,
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
        outbox = await stack.enter_async_context(
            Outbox(Path(settings.data_dir) / "outbox", settings.worker_id, settings.max_outbox_rows)
        )
        publisher = OutboxRelay(outbox, settings.nats_url, settings.worker_id)
        keys = KeyTable(settings.key_pepper, key_lookup(billing))
        leases = Leases(lease_request(billing), settings.worker_id, settings.lease_nano_usd)
        session = await stack.enter_async_context(open_session(settings.http_hosts()))
        limiter = RateLimiter(settings.gateway_workers, bool(settings.redis_url))
        await stack.enter_async_context(shared_limits(settings, limiter))
        relay = Relay(settings, session, keys, leases, outbox, limiter)
        await stack.enter_async_context(
            _background(
                follow_keys(billing, keys),
                follow_providers(provider, relay.take_providers),
                publisher.run(),
                outbox.look_after_orphans(),
                relay.tend(),
            )
        )
        stack.push_async_callback(publisher.flush, FLUSH_SECONDS)
        stack.push_async_callback(leases.hand_back)
        stack.push_async_callback(relay.stop)

        async def readiness() -> dict[str, str]:
            # A store that is away does not make the data plane unready.
            problems = {} if relay.catalog else {"providers": "not known yet"}
            return {**problems, **({"outbox": outbox.problem} if outbox.problem else {})}

        yield _Routing(RoutingServicer(relay, keys, settings.admin_token), readiness, relay.cut)


@asynccontextmanager
async def _background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs loops beside the server; one that fails ends the process, loudly."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
