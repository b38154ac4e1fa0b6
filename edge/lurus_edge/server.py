"""Serves the edge: uvicorn on uvloop, behind the connection guard, with a drain of our own."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import cast

import grpc.aio
import uvicorn

from lurus_common.life import Life
from lurus_common.listening import listen
from lurus_common.serving import beside
from lurus_common.settings import Settings
from lurus_common.telemetry import Readiness
from lurus_edge.admission import Admission
from lurus_edge.app import EdgeApp, make_app
from lurus_edge.guard import GuardedProtocol, guarded
from lurus_edge.lateness import LatenessLimit
from lurus_edge.limits import GuardLimits
from lurus_edge.relay import Relays
from lurus_edge.shedding import Shedder, memory_limit

log = logging.getLogger(__name__)

# How long idle connections live on when others take the new ones: a request may be under way on each.
LINGER_SECONDS = 2.0
LINGER_POLL_SECONDS = 0.05
# How long the exchanges that were cut at the drain limit have for their last event.
CUT_SECONDS = 2.0
# Connections that are taken at once, beside the one of each turn of the loop.
MAX_WAITING = 100


class EdgeServer(uvicorn.Server):
    """A running edge. Attributes: `port` it got, `app` that it serves."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, app: EdgeApp, relays: Relays) -> None:
        super().__init__(config)
        self.app = app
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._taking: set[asyncio.Task[None]] = set()
        self._relays = relays
        self._has_started = asyncio.Event()
        self._serving = asyncio.create_task(self.serve([listener]))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the process: the edge is one of the things that it stops."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to accept connections."""
        await super().startup(sockets)
        self._has_started.set()

    async def wait_until_started(self) -> None:
        """Returns when connections are accepted; raises if that failed."""
        starting = asyncio.create_task(self._has_started.wait())
        await asyncio.wait({starting, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        if self._serving.done():
            self._serving.result()

    async def drain(self, announce_seconds: float, drain_seconds: float, linger_seconds: float = 0.0) -> None:
        """Stops accepting, lets live requests finish, cuts what is left at the limit, and stops.

        Args:
            announce_seconds: for which connections are still accepted. Answers ask to close from now on.
            drain_seconds: for which requests may go on when connections are no longer accepted.
            linger_seconds: for which idle connections stay open then: a client may be writing to one.
        """
        self._relays.is_draining = True
        await asyncio.sleep(announce_seconds)
        for server in self.servers:
            server.close()
        until = asyncio.get_running_loop().time() + linger_seconds
        while self.server_state.connections and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110
            await asyncio.sleep(LINGER_POLL_SECONDS)
        self.should_exit = True
        await asyncio.wait({self._serving}, timeout=drain_seconds)
        if not self._serving.done():
            log.warning("cutting %d requests at the drain limit", len(self._relays.live))
            self._relays.cut()
            await asyncio.wait({self._serving}, timeout=CUT_SECONDS)
        await self.stop()

    def close_idle(self) -> None:
        """Closes connections that wait for another request."""
        for connection in list(self.server_state.connections):
            cast(GuardedProtocol, connection).close_if_idle()

    def live_count(self) -> int:
        """Returns how many requests are being answered."""
        return len(self.server_state.tasks)

    def take_waiting(self) -> int:
        """Accepts connections that wait, since uvloop takes one in each of its turns; returns how many.

        Those of a busy worker would wait for a second each time 20 of them came, and nobody would know.
        """
        before = len(self._taking)
        with contextlib.suppress(OSError):  # There is none, or no descriptor for it.
            while len(self._taking) < MAX_WAITING and all(server.is_serving() for server in self.servers):
                task = asyncio.create_task(self._take(self._listener.accept()[0]))
                self._taking.add(task)
                task.add_done_callback(self._taking.discard)
        return len(self._taking) - before

    async def _take(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # It is gone already.
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> GuardedProtocol:
        """Makes what uvicorn makes for each connection."""
        kind = cast(type[GuardedProtocol], self.config.http_protocol_class)
        return kind(self.config, self.server_state, self.lifespan.state)

    async def stop(self) -> None:
        """Stops at once: what is still being answered is broken off."""
        self.should_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.wait({self._serving}, timeout=CUT_SECONDS)
        if not self._serving.done():
            self.force_exit = True
            self._serving.cancel()
        await asyncio.gather(self._serving, *self._taking, *self.server_state.tasks, return_exceptions=True)


@asynccontextmanager
async def edge_server(
    settings: Settings,
    *,
    routing_channel: grpc.aio.Channel,
    service_channels: Mapping[str, grpc.aio.Channel],
    readiness: Readiness,
    share_port: bool = False,
    life: Life | None = None,
) -> AsyncIterator[EdgeServer]:
    """Serves the edge on `settings.host`, and drains when left.

    The running loop should be uvloop's: on plain asyncio the edge costs 2.5 times as much.

    Args:
        settings: for the address, the limits and the drain.
        routing_channel: to the routing service, in process or over the wire, for inference.
        service_channels: by area (`provider`, `billing`, `log`, `routing`), for REST; a missing one is
            answered 503. Callers come with a token of their own, so none may present one, and all
            must lead to a server that checks it: the in-process channel to routing does not.
        readiness: says what is missing.
        share_port: lets several workers listen on one port.
        life: of the process; it may have brought the socket to listen on.
    """
    life = life or Life()
    lateness = LatenessLimit(settings.max_loop_late_seconds, settings.min_live_requests)
    shedder = Shedder(settings.max_live_requests, memory_limit(settings), lateness)
    relays = Relays(routing_channel, settings.max_body_bytes, settings.max_held_body_bytes, shedder)
    app = make_app(relays, routing_channel, service_channels, readiness)
    listener = life.listener or listen(settings.host, settings.edge_port, share_port)
    server = EdgeServer(_config(app, settings, Admission(relays)), listener, app, relays)
    try:
        await server.wait_until_started()
        async with beside(shedder.run(server), "the look at memory and loop"):
            yield server
    except BaseException:
        await server.stop()
        raise
    life.end()
    try:
        await server.drain(
            life.announce_seconds(settings),
            settings.drain_seconds,
            LINGER_SECONDS if life.is_replaced or settings.profile == "prod" else 0.0,
        )
    finally:
        await server.stop()


def _config(app: EdgeApp, settings: Settings, admission: Admission) -> uvicorn.Config:
    limits = GuardLimits(
        head_seconds=settings.client_head_seconds,
        body_seconds=settings.client_body_seconds,
        keep_alive_seconds=settings.client_idle_seconds,
        write_stall_seconds=settings.client_stall_seconds,
        body_bytes=settings.max_body_bytes,
    )
    return uvicorn.Config(
        app,
        http=guarded(limits, admission),
        ws="none",
        lifespan="on",
        interface="asgi3",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
    )
