"""`lurus serve TARGET`: one process of the mesh, from its settings to its drain.

Imports only what the target needs: a mesh has half a dozen processes on a
machine that may have two cores. `python -m lurus_switch.targets TARGET` starts
the same process without the command line's own imports.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import uvloop

from lurus_common.life import Life
from lurus_common.listening import inherited_listener, raise_descriptor_limit
from lurus_common.settings import Settings, SettingsError, read_settings
from lurus_switch.failures import FAILED, OK, UNREACHABLE, USAGE

if TYPE_CHECKING:
    from grpc.aio import Channel

log = logging.getLogger(__name__)

Target: TypeAlias = Callable[[AsyncExitStack, Settings, Life], Awaitable[None]]


async def _provider(stack: AsyncExitStack, settings: Settings, life: Life) -> None:
    from lurus_provider.server import provider_server

    await stack.enter_async_context(provider_server(settings))


async def _billing(stack: AsyncExitStack, settings: Settings, life: Life) -> None:
    from lurus_billing.server import billing_server

    await stack.enter_async_context(billing_server(settings))


async def _log(stack: AsyncExitStack, settings: Settings, life: Life) -> None:
    from lurus_log.server import log_server

    await stack.enter_async_context(log_server(settings))


async def _routing(stack: AsyncExitStack, settings: Settings, life: Life) -> None:
    from lurus_routing.server import routing_server

    await stack.enter_async_context(routing_server(settings, life))


async def _gateway(stack: AsyncExitStack, settings: Settings, life: Life) -> None:
    """Edge and routing in one process; the edge is left first, so that it drains before what it calls."""
    from lurus_edge.server import edge_server
    from lurus_routing.server import routing_in_process

    routing = await stack.enter_async_context(routing_in_process(settings, life))
    services = await _service_channels(stack, settings)
    await stack.enter_async_context(
        edge_server(
            settings,
            routing_channel=routing.channel,
            service_channels=services,
            readiness=routing.readiness,
            share_port=True,
            life=life,
        )
    )


async def _edge(stack: AsyncExitStack, settings: Settings, life: Life) -> None:
    """The edge alone, and the ops port that a gateway has from its routing service."""
    from lurus_common.rpc import open_channel
    from lurus_common.serving import beside, ops_port
    from lurus_common.status import Status, keep_asking
    from lurus_common.telemetry import ops_server
    from lurus_edge.server import edge_server

    channel = await stack.enter_async_context(open_channel(settings.routing_address, for_inference=True))
    services = await _service_channels(stack, settings)

    async def readiness() -> dict[str, str]:
        return {"process": life.problem} if life.problem else {}

    status = Status("edge")
    asking = keep_asking(status.add("routing"), lambda: _check(channel))
    await stack.enter_async_context(beside(asking, "status"))
    port = ops_port(settings, settings.edge_port)
    await stack.enter_async_context(ops_server(settings.ops_host, port, readiness, status))
    await stack.enter_async_context(
        edge_server(
            settings,
            routing_channel=channel,
            service_channels=services,
            readiness=_nothing_missing,
            life=life,
        )
    )


async def _check(channel: "Channel") -> None:
    """Returns if who is behind a channel says that it serves."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest())
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise ConnectionError("it does not serve")


async def _sandbox(stack: AsyncExitStack, settings: Settings, life: Life) -> None:
    from lurus_switch.sandbox import running

    await stack.enter_async_context(running(settings.host, settings.sandbox_port))


async def _service_channels(stack: AsyncExitStack, settings: Settings) -> Mapping[str, "Channel"]:
    """Channels without a token: callers of the REST interface present their own."""
    from lurus_common.rpc import open_channel

    return {
        area: await stack.enter_async_context(open_channel(address))
        for area, address in (
            ("provider", settings.provider_address),
            ("billing", settings.billing_address),
            ("log", settings.log_address),
            ("routing", settings.routing_address),
        )
    }


async def _nothing_missing() -> dict[str, str]:
    return {}


TARGETS: dict[str, Target] = {
    "gateway": _gateway,
    "edge": _edge,
    "routing": _routing,
    "provider": _provider,
    "billing": _billing,
    "log": _log,
    "sandbox": _sandbox,
}


def serve(target: str, environment: Mapping[str, str], routing_address: str = "") -> int:
    """Serves a target until SIGTERM or SIGINT, and drains; returns the exit code of the process.

    Args:
        target: of `TARGETS`.
        environment: holds the settings.
        routing_address: replaces `LURUS_ROUTING_ADDRESS` for the edge, if set.
    """
    from lurus_common.telemetry import start_logging

    given = {**environment, **({"LURUS_ROUTING_ADDRESS": routing_address} if routing_address else {})}
    try:
        settings = read_settings(given)
        start_logging(settings.log_level, target)
        raise_descriptor_limit()
        return uvloop.run(_serve(target, settings, inherited_listener(environment)))
    except SettingsError as error:
        print(f"lurus serve {target}: the settings do not fit.\n{error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return OK


async def _serve(target: str, settings: Settings, listener: socket.socket | None) -> int:
    life = Life(listener, has_started=False)
    _end_on_signals(life)
    try:
        async with AsyncExitStack() as stack:
            await TARGETS[target](stack, settings, life)
            _tune_memory()
            life.has_started = True
            log.info("%s is serving", target)
            await life.ending.wait()
            log.info("%s is draining", target)
    except asyncio.CancelledError:
        log.warning("%s was stopped before it had started or drained", target)
    except BaseException as error:
        return _report(target, error)
    log.info("%s has ended", target)
    return OK


def _end_on_signals(life: Life) -> None:
    """Ends a life in order at SIGTERM, SIGINT and SIGHUP, which says that another process has its place.

    A signal before it serves, and a second one at any time, cancels the task.
    """
    task = asyncio.current_task()

    def on_signal(number: signal.Signals) -> None:
        if life.has_started and not life.ending.is_set():
            life.end(is_replaced=number is signal.SIGHUP)
        elif task is not None:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)


def _tune_memory() -> None:
    """Takes what start-up has made out of the collector's sight: it stays for as long as the process.

    Measured in a gateway: a full collection would stop all streams for 70 ms, and so takes none.
    """
    gc.collect()
    gc.freeze()


def _report(target: str, error: BaseException) -> int:
    """Logs why a target has failed, in one sentence where it is an expected one; returns the exit code."""
    found = _first(error)
    if isinstance(found, SettingsError):
        print(f"lurus serve {target}: the settings do not fit.\n{found}", file=sys.stderr)
        return USAGE
    if type(found).__name__ == "StoreUnreachable":
        log.critical("%s cannot start: %s", target, found)
        return UNREACHABLE
    if isinstance(found, OSError) or "Failed to bind" in str(found):
        log.critical("%s cannot start: %s", target, found)
        return FAILED
    log.critical("%s has failed", target, exc_info=error)
    return FAILED


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def main() -> int:
    """Serves the target named on the command line; returns the exit code."""
    arguments = argparse.ArgumentParser(description="Serves one process of the mesh.")
    arguments.add_argument("target", choices=TARGETS)
    arguments.add_argument("--routing", default="", metavar="HOST:PORT")
    given = arguments.parse_args()
    return serve(given.target, os.environ, given.routing)


if __name__ == "__main__":
    raise SystemExit(main())
