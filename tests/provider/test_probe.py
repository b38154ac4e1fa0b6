"""CheckHealth against a scripted provider on a real socket."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import ClientSession, web
from tests.provider.rig import SECRET, create

from lurus.provider.v1 import provider_pb2 as pb
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus.usage.v1 import usage_pb2
from lurus_provider import probe
from lurus_provider.credentials import seal_all

pytestmark = pytest.mark.anyio

KEY = os.urandom(32)
LOOPBACK = frozenset({"127.0.0.1"})


@dataclass
class Upstream:
    """What it heard, at /NAME/v1/models, and what it answers for each NAME."""

    port: int = 0
    heard: list[web.Request] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.heard.append(request)
        name = request.match_info["name"]
        if name.isdigit():
            return web.json_response({"error": SECRET}, status=int(name))
        if name == "redirect":
            raise web.HTTPFound(f"http://127.0.0.1:{self.port}/trap/v1/models")
        if name == "html":
            return web.Response(text="<html>welcome</html>", content_type="text/html")
        if name == "endless":
            return await self._endless(request)
        if name == "silent":
            await asyncio.sleep(60)
        if name == "cut":
            assert request.transport
            request.transport.abort()
        if name == "headers":
            return web.json_response({}, headers={"x-large": "x" * 100_000})
        return web.json_response({"data": []})

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b'{"data": [' + b" " * 65_536)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    found = Upstream()
    app = web.Application()
    app.add_routes([web.get("/{name}/v1/models", found.answer)])
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.port = runner.addresses[0][1]
    yield found
    await runner.cleanup()


@pytest.fixture
async def session(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ClientSession]:
    monkeypatch.setattr(probe, "TOTAL_SECONDS", 0.4)
    async with probe.open_session(LOOPBACK) as found:
        yield found


def sealed(upstream: Upstream, name: str, dialect: int = usage_pb2.DIALECT_ANTHROPIC) -> pb.Provider:
    provider = pb.Provider(
        provider_id="p",
        dialects=[dialect],
        base_url=f"http://127.0.0.1:{upstream.port}/{name}",
        credentials=[pb.Credential(credential_id="default", secret=SECRET)],
    )
    seal_all(provider, None, KEY)
    return provider


@pytest.mark.parametrize(
    ("name", "status", "detail"),
    [
        ("good", 200, ""),
        ("endless", 200, ""),
        ("401", 401, "refused"),
        ("403", 403, "refused"),
        ("404", 404, "cannot be checked"),
        ("429", 429, "throttles"),
        ("500", 500, "answered 500"),
        ("204", 204, "answered 204"),
        ("redirect", 302, "redirects"),
        ("html", 200, "not JSON"),
        ("silent", 0, "no answer"),
        ("cut", 0, "properly"),
        ("headers", 0, "properly"),
    ],
)
async def test_answers(
    session: ClientSession, upstream: Upstream, name: str, status: int, detail: str
) -> None:
    async with asyncio.timeout(5):
        (health,) = await probe.probe_all(session, sealed(upstream, name), KEY)
    assert (health.credential_id, health.http_status, health.is_healthy) == ("default", status, not detail)
    assert detail in health.detail
    assert SECRET not in str(health)
    assert health.latency_duration.ToMicroseconds() > 0
    assert {request.match_info["name"] for request in upstream.heard} == {name}


async def test_the_credential_goes_in_the_header_of_the_first_dialect(
    session: ClientSession, upstream: Upstream
) -> None:
    for dialect in (usage_pb2.DIALECT_ANTHROPIC, usage_pb2.DIALECT_OPENAI_CHAT):
        await probe.probe_all(session, sealed(upstream, "good", dialect), KEY)
    anthropic, openai = (request.headers for request in upstream.heard)
    assert anthropic["x-api-key"] == SECRET
    assert anthropic["anthropic-version"] == "2023-06-01"
    assert "authorization" not in anthropic
    assert openai["authorization"] == f"Bearer {SECRET}"
    assert "x-api-key" not in openai


async def test_an_address_that_is_no_longer_allowed_is_not_called(upstream: Upstream) -> None:
    async with probe.open_session(frozenset()) as session:
        (health,) = await probe.probe_all(session, sealed(upstream, "good"), KEY)
    assert "not allowed" in health.detail
    assert not upstream.heard


async def test_nobody_listens_and_a_key_that_does_not_open(
    session: ClientSession, upstream: Upstream
) -> None:
    (health,) = await probe.probe_all(session, sealed(Upstream(port=1), "good"), KEY)
    assert "no connection" in health.detail
    (health,) = await probe.probe_all(session, sealed(upstream, "good"), os.urandom(32))
    assert "LURUS_CREDENTIAL_KEY" in health.detail
    assert not upstream.heard


async def test_check_health_answers_for_each_enabled_credential(
    stub: ProviderServiceStub, upstream: Upstream
) -> None:
    credentials = [
        pb.Credential(credential_id="one", secret="s1"),
        pb.Credential(credential_id="off", secret="s2", is_disabled=True),
        pb.Credential(credential_id="two", secret="s3"),
    ]
    url = f"http://127.0.0.1:{upstream.port}/good"
    created = await create(stub, base_url=url, credentials=credentials)
    found = await stub.CheckHealth(pb.CheckHealthRequest(provider_id=created.provider_id))
    assert found.is_healthy
    assert [row.credential_id for row in found.credentials] == ["one", "two"]
    assert sorted(request.headers["x-api-key"] for request in upstream.heard) == ["s1", "s3"]
