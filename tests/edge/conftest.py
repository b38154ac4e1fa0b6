"""A scripted routing service, and the edge in front of it, on both kinds of channel."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from typing import Any

import aiohttp
import grpc.aio
import pytest

from lurus.routing.v1 import routing_pb2 as pb
from lurus.routing.v1.routing_pb2_grpc import RoutingServiceServicer, add_RoutingServiceServicer_to_server
from lurus_common.errors import KeyInvalid
from lurus_common.inprocess import InProcessServer
from lurus_common.rpc import ErrorInterceptor, make_server, open_channel
from lurus_common.settings import Settings
from lurus_common.telemetry import Readiness
from lurus_edge.server import EdgeServer, edge_server

REQUEST_ID = "req_01JABCDEFGHJKMNPQRSTVWXYZ0"
Script = Callable[[pb.RelayRequest], AsyncIterator[pb.RelayResponse]]


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Runs async tests on the loop that the edge runs on."""
    return ("asyncio", {"use_uvloop": True})


class ScriptedRouting(RoutingServiceServicer):
    """Answers as the test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.script: Script = plain(b"{}")
        self.requests: list[pb.RelayRequest] = []
        self.model_requests: list[pb.ListModelsRequest] = []
        self.models: list[pb.ServedModel] = []
        self.ended = asyncio.Event()

    async def Relay(self, request: pb.RelayRequest, context: Any) -> AsyncIterator[pb.RelayResponse]:
        self.requests.append(request)
        try:
            async for response in self.script(request):
                yield response
        finally:
            self.ended.set()

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        self.model_requests.append(request)
        if not request.credentials:
            raise KeyInvalid("present a key", request_id=REQUEST_ID)
        return pb.ListModelsResponse(models=self.models)

    def headers(self) -> dict[str, bytes]:
        """The headers of the last request."""
        return {header.name: header.value for header in self.requests[-1].headers}


def head(status: int = 200, *, is_streaming: bool = False, **headers: str) -> pb.RelayResponse:
    """Returns the begin of an answer."""
    kind = "text/event-stream; charset=utf-8" if is_streaming else "application/json"
    named = {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    fields = [pb.Header(name=name, value=value.encode()) for name, value in named.items()]
    start = pb.RelayHead(status=status, headers=fields, request_id=REQUEST_ID, is_streaming=is_streaming)
    return pb.RelayResponse(head=start)


def data(*parts: bytes) -> list[pb.RelayResponse]:
    """Returns one message for each part."""
    return [pb.RelayResponse(data=part) for part in parts]


END = pb.RelayResponse(end=pb.RelayEnd(attempt_count=1))


def plain(body: bytes, status: int = 200, **headers: str) -> Script:
    """Answers with one JSON body."""
    return playing([head(status, **headers), *data(body), END])


def playing(steps: Iterable[Any]) -> Script:
    """Answers with messages in order; a number is a pause in seconds, an event one until it is set."""

    async def script(_: pb.RelayRequest) -> AsyncIterator[pb.RelayResponse]:
        for step in steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, float):
                await asyncio.sleep(step)
            else:
                yield step

    return script


class Edge:
    """A running edge, the script behind it, and a client of it."""

    def __init__(self, server: EdgeServer, routing: ScriptedRouting, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.routing = routing
        self.session = session
        self.url = f"http://127.0.0.1:{server.port}"

    async def raw(self, request: bytes) -> bytes:
        """Sends bytes on a connection of their own, and returns all that comes until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            writer.write(request)
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()

    async def call(self, method: str, path: str, **more: Any) -> tuple[int, dict[str, str], Any]:
        """Returns status, headers in lower case, and the JSON or text of an answer."""
        async with self.session.request(method, self.url + path, allow_redirects=False, **more) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            is_json = headers.get("content-type") == "application/json" and method != "HEAD"
            return answer.status, headers, await (answer.json() if is_json else answer.text())


Channels = Callable[[AsyncExitStack, ScriptedRouting], Awaitable[grpc.aio.Channel]]


async def _in_process(stack: AsyncExitStack, routing: ScriptedRouting) -> grpc.aio.Channel:
    server = InProcessServer([ErrorInterceptor()])
    add_RoutingServiceServicer_to_server(routing, server)  # type: ignore[arg-type]
    return await stack.enter_async_context(server.channel())


async def _wire(stack: AsyncExitStack, routing: ScriptedRouting) -> grpc.aio.Channel:
    server = make_server([ErrorInterceptor()], for_inference=True)
    add_RoutingServiceServicer_to_server(routing, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0)
    return await stack.enter_async_context(open_channel(f"127.0.0.1:{port}", for_inference=True))


async def _ready() -> dict[str, str]:
    return {}


@asynccontextmanager
async def running_edge(
    channels: Channels,
    services: Mapping[str, grpc.aio.Channel] = MappingProxyType({}),
    readiness: Readiness = _ready,
    share_port: bool = False,
    **settings: Any,
) -> AsyncIterator[Edge]:
    """Serves an edge with these settings in front of a scripted routing service."""
    chosen = {"edge_port": 0, "drain_seconds": 5.0, "max_body_bytes": 200_000, **settings}
    async with AsyncExitStack() as stack:
        routing = ScriptedRouting()
        channel = await channels(stack, routing)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        server = await stack.enter_async_context(
            edge_server(
                Settings(**chosen),
                routing_channel=channel,
                service_channels=services,
                readiness=readiness,
                share_port=share_port,
            )
        )
        yield Edge(server, routing, session)
        # A client's idle connections would be closed by the drain; its own close is quicker.
        await session.close()


@pytest.fixture(scope="module", params=[_in_process, _wire], ids=["in process", "wire"])
async def shared_edge(request: pytest.FixtureRequest) -> AsyncIterator[Edge]:
    async with running_edge(request.param) as edge:
        yield edge


@pytest.fixture
def edge(shared_edge: Edge) -> Edge:
    shared_edge.routing.reset()
    return shared_edge


@pytest.fixture(params=[_in_process, _wire], ids=["in process", "wire"])
def make_edge(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes an edge of a test's own, with settings."""

    def make(channels: Channels = request.param, **settings: Any) -> Any:
        return running_edge(channels, **settings)

    return make


@pytest.fixture(scope="session")
def in_process_edge() -> Callable[..., Any]:
    """Makes an edge on the in-process channel, with settings and services."""

    def make(**settings: Any) -> Any:
        return running_edge(_in_process, **settings)

    return make


@pytest.fixture(scope="session")
def relayed() -> Any:
    """The words in which scripts are written."""

    class Words:
        pass

    for word in (head, data, plain, playing):
        setattr(Words, word.__name__, staticmethod(word))
    Words.END = END
    Words.REQUEST_ID = REQUEST_ID
    return Words
