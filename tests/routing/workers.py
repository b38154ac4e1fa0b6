"""Several gateway workers of one installation, as clients see them: edge, routing, one real Redis.

async with Workers(settings) as workers:
    workers.rig.use(one={"credentials": ("a", "b", "c")})
    first, second = await workers.start("w1"), await workers.start("w2")
    told = await first.post("/v1/responses", {"model": "m-1", "input": "hi"})
    assert (await second.get(f"/v1/responses/{told.json['id']}")).status == 200
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import msgspec
from redis.asyncio import Redis

from lurus.provider.v1.provider_pb2 import Model
from lurus.routing.v1.routing_pb2 import ExplainRouteRequest
from lurus.routing.v1.routing_pb2_grpc import RoutingServiceStub
from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.settings import Settings
from lurus_edge.server import edge_server
from lurus_routing.server import routing_in_process

from .rig import PRICE, Rig, read_outbox


@dataclass(frozen=True, slots=True)
class Told:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.body)


class Worker:
    """One worker, and a client of it."""

    def __init__(self, rig: Rig, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._rig = rig
        self._settings = settings
        self._session = session
        self._stack = AsyncExitStack()
        self._stub: Any = None

    async def start(self) -> None:
        """Serves until `stop`."""
        routing = await self._stack.enter_async_context(routing_in_process(self._settings))
        channel, self._stub = routing.channel, RoutingServiceStub(routing.channel)
        server = await self._stack.enter_async_context(
            edge_server(self._settings, routing_channel=channel, service_channels={}, readiness=_ready)
        )
        self._url = f"http://127.0.0.1:{server.port}"
        await self.until_known()

    async def stop(self) -> None:
        """Drains and ends."""
        await self._stack.aclose()

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Told:
        """Makes a request with the rig's key."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        usual = {"authorization": f"Bearer {self._rig.key}", "content-type": "application/json"}
        given = {**usual, **named}
        data = None if body is None else msgspec.json.encode(body)
        async with self._session.request(method, self._url + path, data=data, headers=given) as answer:
            return Told(answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read())

    async def get(self, path: str, **headers: str) -> Told:
        """A GET."""
        return await self.ask("GET", path, **headers)

    async def post(self, path: str, body: Any = None, **headers: str) -> Told:
        """A POST."""
        return await self.ask("POST", path, body, **headers)

    async def first_choice(self, session_id: str) -> str:
        """The credential that this worker would ask first for a session."""
        key_id = self._rig.billing.grant_of(self._rig.key).key_id
        request = ExplainRouteRequest(
            model="m-1", dialect=usage_pb2.DIALECT_ANTHROPIC, session_id=session_id, key_id=key_id
        )
        metadata = (("authorization", f"Bearer {self._settings.admin_token}"),)
        return str((await self._stub.ExplainRoute(request, metadata=metadata)).candidates[0].credential_id)

    def finals(self) -> list[UsageEvent]:
        """The final events of this worker so far."""
        path = self._rig.outbox_path.with_name(f"outbox-{self._settings.worker_id}.db")
        return [event for state, event in read_outbox(path).values() if state]

    async def until_known(self) -> None:
        """Waits until the worker knows the rig's key, and the providers."""
        while (told := await self.get("/v1/models")).status != 200 or not told.json["data"]:
            await asyncio.sleep(0.01)


async def _ready() -> dict[str, str]:
    return {}


class Workers:
    """The installation."""

    def __init__(self, settings: Settings) -> None:
        self.rig = Rig(settings, "in process")
        self.rig.provider.prices.append(PRICE)
        self.rig.provider.models.append(Model(model_id="m-1"))
        self._stack = AsyncExitStack()
        self._workers: list[Worker] = []

    async def __aenter__(self) -> Self:
        rig = self.rig
        for upstream in (rig.upstream, rig.other):
            await self._stack.enter_async_context(upstream)
        for neighbour in (rig.billing_server, rig.provider_server):
            await neighbour.start()
            self._stack.push_async_callback(neighbour.stop)
        self._session = await self._stack.enter_async_context(aiohttp.ClientSession())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        for worker in self._workers:
            await worker.stop()
        await self._stack.aclose()
        assert self.rig.upstream.failures + self.rig.other.failures == []

    async def start(self, name: str) -> Worker:
        """Starts a worker."""
        settings = msgspec.structs.replace(
            self.rig.settings,
            worker_id=name,
            edge_port=0,
            billing_address=f"127.0.0.1:{self.rig.billing_server.port}",
            provider_address=f"127.0.0.1:{self.rig.provider_server.port}",
        )
        worker = Worker(self.rig, settings, self._session)
        await worker.start()
        self._workers.append(worker)
        return worker

    def credentials_asked(self) -> list[str]:
        """The credentials that the first upstream was asked with, in order, by their last word."""
        return [
            (request.header("x-api-key") or request.header("authorization")).rpartition("-")[2]
            for request in self.rig.upstream.requests
        ]

    async def keys(self) -> list[bytes]:
        """The names in the shared Redis."""
        redis = Redis.from_url(self.rig.settings.redis_url)
        try:
            return list(await redis.keys("*"))
        finally:
            await redis.aclose()

    async def has_keys(self, count: int) -> bool:
        """Whether the shared Redis has so many names, at least."""
        return len(await self.keys()) >= count
