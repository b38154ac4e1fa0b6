"""What every gRPC process has: a server with health and reflection, the ops port, patience with stores."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lurus_common.rpc import make_server, server_interceptors
from lurus_common.settings import Settings
from lurus_common.telemetry import Readiness, ops_server

log = logging.getLogger(__name__)

OPS_PORT_BASE = 19100
STORE_WAIT_SECONDS = 60.0
STORE_POLL_SECONDS = 0.1
STOP_SECONDS = 5.0
STOP_MARGIN_SECONDS = 2.0
CANCEL_SECONDS = 1.0

Result = TypeVar("Result")


class StoreUnreachable(Exception):
    """A store did not answer while a process was starting."""


async def patiently(
    name: str, call: Callable[[], Awaitable[Result]], refusals: tuple[type[Exception], ...]
) -> Result:
    """Returns what `call` returns, trying again while the store is not up yet.

    Args:
        name: the store, for the message.
        call: connects, or asks for something.
        refusals: exceptions that mean "not up yet"; others pass through at once.

    Raises:
        StoreUnreachable: after `STORE_WAIT_SECONDS`.
    """
    deadline = asyncio.get_running_loop().time() + STORE_WAIT_SECONDS
    while True:
        try:
            return await call()
        except refusals as error:
            if asyncio.get_running_loop().time() > deadline:
                raise StoreUnreachable(
                    f"{name} did not answer for {STORE_WAIT_SECONDS:.0f} s: {error}"
                ) from error
            await asyncio.sleep(STORE_POLL_SECONDS)


@asynccontextmanager
async def grpc_service(
    settings: Settings,
    port: int,
    service_names: Sequence[str],
    register: Callable[[grpc.aio.Server], None],
    readiness: Readiness,
    *,
    open_methods: Sequence[str] = (),
    for_inference: bool = False,
    share_port: bool = False,
) -> AsyncIterator[int]:
    """Serves gRPC with health and reflection, and the ops port; yields the gRPC port it got.

    Args:
        settings: for the host, the admin token and the ops port.
        port: 0 means a free one.
        service_names: full names, for health and reflection.
        register: adds the servicers to the server.
        readiness: says what is missing.
        open_methods: see `server_interceptors`.
        for_inference: admits bodies of 32 MiB.
        share_port: lets several workers listen on one port.
    """
    interceptors = server_interceptors(settings.admin_token, open_methods)
    server = make_server(interceptors, for_inference=for_inference, share_port=share_port)
    register(server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = [*service_names, health.SERVICE_NAME]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    bound = server.add_insecure_port(f"{settings.host}:{port}")
    await server.start()
    for name in ("", *names):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        async with ops_server(settings.ops_host, ops_port(settings, port), readiness):
            log.info("serving %s on %s:%d", ", ".join(service_names), settings.host, bound)
            yield bound
    finally:
        await checks.enter_graceful_shutdown()
        await _stop(server)


async def _stop(server: grpc.aio.Server) -> None:
    """Ends a server: calls may finish for a while, then are cancelled.

    Nobody waits longer than the calls may take, whatever the library waits for.
    """
    try:
        async with asyncio.timeout(STOP_SECONDS + STOP_MARGIN_SECONDS):
            await server.stop(STOP_SECONDS)
    except TimeoutError:
        log.warning("the gRPC server did not confirm that it has stopped")


def ops_port(settings: Settings, port: int) -> int:
    """The ops port of a process: as set, else 19100 + the last digit of its port, else a free one."""
    if settings.ops_port or not port:
        return settings.ops_port
    return OPS_PORT_BASE + port % 10


@asynccontextmanager
async def beside(work: Coroutine[object, object, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """Runs `work` beside the block and ends it with the block; should it fail, the log says so."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report)
    try:
        yield task
    finally:
        # Again, until it has ended: a driver's own error may take a cancellation's place.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=CANCEL_SECONDS)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception():
        log.critical("%s ended", task.get_name(), exc_info=task.exception())
