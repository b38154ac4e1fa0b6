"""What every gRPC process has: a server with health and reflection, the ops port, patience with stores."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lurus_common.life import Life
from lurus_common.rpc import make_server, server_interceptors
from lurus_common.settings import Settings
from lurus_common.status import Status
from lurus_common.telemetry import Readiness, ops_server

log = logging.getLogger(__name__)

OPS_PORT_BASE = 19100
STORE_WAIT_SECONDS = 60.0
STORE_POLL_SECONDS = 0.1
STOP_SECONDS = 5.0
# How long calls that are ended at the limit have for their last words.
CUT_SECONDS = 2.0
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
    life: Life | None = None,
    drain_seconds: float = STOP_SECONDS,
    cut: Callable[[], None] = lambda: None,
    status: Status | None = None,
) -> AsyncIterator[int]:
    """Serves gRPC with health and reflection, and the ops port; yields the gRPC port it got.

    It drains as soon as the life of the process ends, at the latest when the block is left, and is
    not ready from that moment on.

    Args:
        settings: for the host, the admin token and the ops port.
        port: 0 means a free one.
        service_names: full names, for health and reflection.
        register: adds the servicers to the server.
        readiness: says what is missing.
        open_methods: see `server_interceptors`.
        for_inference: admits bodies of 32 MiB.
        share_port: lets several workers listen on one port.
        life: of the process.
        drain_seconds: how long calls may go on once nothing new is taken.
        cut: told to end the calls that are left then.
        status: of the process, for the ops port.
    """
    life = life or Life()
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

    async def problems() -> dict[str, str]:
        # First, since it is what a supervisor looks for.
        return {**({"process": life.problem} if life.problem else {}), **await readiness()}

    async def end() -> None:
        await life.ending.wait()
        await checks.enter_graceful_shutdown()
        await asyncio.sleep(life.announce_seconds(settings))
        await _stop(server, drain_seconds, cut)

    async with ops_server(settings.ops_host, ops_port(settings, port), problems, status):
        log.info("serving %s on %s:%d", ", ".join(service_names), settings.host, bound)
        ending = asyncio.create_task(end(), name="end of the gRPC server")
        try:
            yield bound
        finally:
            life.end()
            await ending


async def _stop(server: grpc.aio.Server, seconds: float, cut: Callable[[], None]) -> None:
    """Ends a server: no call is taken any more, those under way may finish for a while, then are ended.

    Nobody waits longer than the calls may take, whatever the library waits for.
    """
    stopping = asyncio.create_task(server.stop(seconds + CUT_SECONDS))
    done, _ = await asyncio.wait([stopping], timeout=seconds)
    if not done:
        cut()
        done, _ = await asyncio.wait([stopping], timeout=CUT_SECONDS + STOP_MARGIN_SECONDS)
    if not done:
        stopping.cancel()
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
        await end_tasks([task])


async def end_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels until all have ended: a driver's own error may take a cancellation's place."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_SECONDS)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception():
        log.critical("%s ended", task.get_name(), exc_info=task.exception())
