"""The four services of a mesh as scripts: each method answers what a test says, and requests are kept."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from lurus.billing.v1 import billing_pb2
from lurus.log.v1 import log_pb2
from lurus.provider.v1 import provider_pb2
from lurus.routing.v1 import routing_pb2
from lurus_common.errors import NotBuiltYet
from lurus_common.rpc import bearer_token, make_server, server_interceptors

TOKEN = "scripted-admin-token"
SERVICES = {
    "provider": provider_pb2.DESCRIPTOR.services_by_name["ProviderService"],
    "billing": billing_pb2.DESCRIPTOR.services_by_name["BillingService"],
    "log": log_pb2.DESCRIPTOR.services_by_name["LogService"],
    "routing": routing_pb2.DESCRIPTOR.services_by_name["RoutingService"],
}
OPEN_METHODS = ("/lurus.routing.v1.RoutingService/",)

# What a method answers: a message, an exception, several messages of a stream, or a function of the request.
Answer = Any


@dataclass
class ScriptedMesh:
    """A running script. `ports` by area, `requests` in order, `tokens` that callers presented."""

    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Settings with which commands find it."""
        addresses = {f"LURUS_{area.upper()}_ADDRESS": f"127.0.0.1:{p}" for area, p in self.ports.items()}
        return {**addresses, "LURUS_ADMIN_TOKEN": TOKEN}

    def answer(self, method: str, request: Any, context: Any) -> Answer:
        self.requests.append(request)
        self.tokens.append(bearer_token(context))
        found = self.answers.get(method, NotBuiltYet(f"{method} has no script"))
        found = found(request) if callable(found) else found
        if isinstance(found, Exception):
            raise found
        return found

    def last(self, kind: type[Any]) -> Any:
        """The last request of a type."""
        return next(request for request in reversed(self.requests) if isinstance(request, kind))


def _handlers(mesh: ScriptedMesh, service: ServiceDescriptor) -> grpc.GenericRpcHandler:
    methods: dict[str, grpc.RpcMethodHandler] = {}
    for method in service.methods:
        request_type = method.input_type._concrete_class
        kind = (
            grpc.unary_stream_rpc_method_handler
            if method.server_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        call = _stream(mesh, method.name) if method.server_streaming else _unary(mesh, method.name)
        methods[method.name] = kind(
            call,
            request_deserializer=request_type.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _unary(mesh: ScriptedMesh, name: str) -> Callable[[Any, Any], Any]:
    async def call(request: Any, context: Any) -> Any:
        return mesh.answer(name, request, context)

    return call


def _stream(mesh: ScriptedMesh, name: str) -> Callable[[Any, Any], Any]:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        for message in mesh.answer(name, request, context):
            if isinstance(message, Exception):
                raise message
            yield message

    return call


async def _serve(mesh: ScriptedMesh, is_up: threading.Event, stop: asyncio.Event) -> None:
    servers = []
    for area, service in SERVICES.items():
        server = make_server(server_interceptors(TOKEN, OPEN_METHODS))
        server.add_generic_rpc_handlers((_handlers(mesh, service),))
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        await checks.set("", health_pb2.HealthCheckResponse.SERVING)
        mesh.ports[area] = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
    is_up.set()
    await stop.wait()
    for server in servers:
        await server.stop(None)


@contextmanager
def scripted_mesh() -> Iterator[ScriptedMesh]:
    """Serves a script on a thread of its own, since a command runs its own event loop."""
    mesh, is_up = ScriptedMesh(), threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=[_serve(mesh, is_up, stop)])
    thread.start()
    assert is_up.wait(20)
    yield mesh
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()
