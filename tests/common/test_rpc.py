"""Servers and channels: errors, tokens, rules and limits, on the wire."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from lurus.provider.v1 import provider_pb2
from lurus.provider.v1.provider_pb2_grpc import (
    ProviderServiceServicer,
    ProviderServiceStub,
    add_ProviderServiceServicer_to_server,
)
from lurus_common import errors
from lurus_common.errors import (
    DependencyUnavailable,
    InternalError,
    InvalidRequest,
    LurusError,
    RequestTooLarge,
)
from lurus_common.rpc import MAX_MESSAGE_BYTES, error_of, make_server, open_channel, server_interceptors

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", autouse=True)
async def one_loop() -> AsyncIterator[None]:
    """Keeps one event loop for all tests: grpc.aio does not bear many in one process."""
    yield


TOKEN = "a-token-of-the-tests"
SERVICE = "lurus.provider.v1.ProviderService"
KINDS = sorted(
    {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LurusError)},
    key=lambda kind: kind.__name__,
)


class Servicer(ProviderServiceServicer):
    """Raises what the test says."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.requests: list[Any] = []

    async def GetProvider(self, request: Any, context: Any) -> provider_pb2.GetProviderResponse:
        self._note(request)
        return provider_pb2.GetProviderResponse()

    async def UpdateProvider(self, request: Any, context: Any) -> provider_pb2.UpdateProviderResponse:
        self._note(request)
        return provider_pb2.UpdateProviderResponse()

    async def WatchProviders(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._note(request)
        yield provider_pb2.WatchProvidersResponse()

    def _note(self, request: Any) -> None:
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure


@pytest.fixture
async def servicer() -> Servicer:
    return Servicer()  # type: ignore[abstract]


@pytest.fixture
async def address(servicer: Servicer) -> AsyncIterator[str]:
    server = make_server(server_interceptors(TOKEN, [f"/{SERVICE}/GetProvider"]))
    add_ProviderServiceServicer_to_server(servicer, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await checks.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    yield f"127.0.0.1:{port}"
    await server.stop(0)


@pytest.fixture
async def stub(address: str) -> AsyncIterator[Any]:
    async with open_channel(address, TOKEN) as channel:
        yield ProviderServiceStub(channel)


GET = provider_pb2.GetProviderRequest(provider_id="p")


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


class TestErrors:
    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
    async def test_every_type_makes_the_round_trip(
        self, servicer: Servicer, stub: Any, kind: type[LurusError]
    ) -> None:
        servicer.failure = kind("what happened: ü", account_id="acct_1", count=3, nothing=None)
        found = await failure_of(stub.GetProvider(GET))
        assert found.code().name == kind.code
        error = error_of(found)
        assert error.reason == kind.reason
        assert type(error) is kind or kind is LurusError
        assert (error.message, error.metadata) == ("what happened: ü", {"account_id": "acct_1", "count": "3"})
        streamed = await failure_of(stub.WatchProviders(provider_pb2.WatchProvidersRequest()).read())
        assert error_of(streamed).reason == kind.reason

    def test_reasons_are_told_apart(self) -> None:
        reasons = [kind.reason for kind in KINDS if kind not in (LurusError, InternalError)]
        assert len(set(reasons)) == len(reasons)

    async def test_the_text_of_anything_else_is_hidden(
        self, servicer: Servicer, stub: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        servicer.failure = ValueError("password=hunter2")
        for call in (stub.GetProvider(GET), stub.WatchProviders(provider_pb2.WatchProvidersRequest()).read()):
            found = await failure_of(call)
            assert found.code() is grpc.StatusCode.INTERNAL
            assert "hunter2" not in repr(found) + str(found.trailing_metadata())
            assert isinstance(error_of(found), InternalError)
        assert "hunter2" in caplog.text

    async def test_an_error_of_a_service_behind_passes_on(self, servicer: Servicer, stub: Any) -> None:
        servicer.failure = errors.QuotaExceeded("used up", reset_time="tomorrow")
        servicer.failure = await failure_of(stub.GetProvider(GET))
        error = error_of(await failure_of(stub.GetProvider(GET)))
        assert isinstance(error, errors.QuotaExceeded)
        assert error.metadata == {"reset_time": "tomorrow"}

    async def test_a_store_that_hangs_is_an_outage(self, servicer: Servicer, stub: Any) -> None:
        servicer.failure = TimeoutError()
        assert isinstance(error_of(await failure_of(stub.GetProvider(GET))), DependencyUnavailable)

    async def test_a_service_that_is_away_is_an_outage_at_once(self) -> None:
        async with open_channel("127.0.0.1:1", TOKEN) as channel:
            dead: Any = ProviderServiceStub(channel)
            found = await asyncio.wait_for(failure_of(dead.GetProvider(GET)), 15)
        assert isinstance(error_of(found), DependencyUnavailable)


class TestTokens:
    @pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", "ü"])
    async def test_others_are_refused(self, address: str, servicer: Servicer, token: str) -> None:
        metadata = (
            (("authorization", f"Bearer {token}".encode().decode("latin-1")),) if token.isascii() else ()
        )
        async with open_channel(address) as channel:
            plain: Any = ProviderServiceStub(channel)
            found = await failure_of(
                plain.UpdateProvider(provider_pb2.UpdateProviderRequest(), metadata=metadata)
            )
            assert error_of(found).reason == "KEY_INVALID"
            found = await failure_of(
                plain.WatchProviders(provider_pb2.WatchProvidersRequest(), metadata=metadata).read()
            )
            assert found.code() is grpc.StatusCode.UNAUTHENTICATED
        assert servicer.requests == []

    async def test_open_methods_need_none(self, address: str) -> None:
        async with open_channel(address) as channel:
            plain: Any = ProviderServiceStub(channel)
            await plain.GetProvider(GET)

    async def test_without_a_token_of_its_own_a_server_admits_nobody(self) -> None:
        server = make_server(server_interceptors(""))
        add_ProviderServiceServicer_to_server(Servicer(), server)  # type: ignore[abstract]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with open_channel(f"127.0.0.1:{port}") as channel:
            plain: Any = ProviderServiceStub(channel)
            found = await failure_of(plain.GetProvider(GET, metadata=(("authorization", "Bearer "),)))
            assert found.code() is grpc.StatusCode.UNAUTHENTICATED
        await server.stop(0)

    async def test_reflection_answers_who_has_it(self, address: str) -> None:
        async with open_channel(address) as channel:
            reflecting: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]

            async def ask() -> AsyncIterator[Any]:
                yield reflection_pb2.ServerReflectionRequest(list_services="")

            metadata = (("authorization", f"Bearer {TOKEN}"),)
            answer = await reflecting.ServerReflectionInfo(ask(), metadata=metadata).read()
            names = [service.name for service in answer.list_services_response.service]
            assert SERVICE in names

    async def test_reflection_refuses_others(self, address: str) -> None:
        async with open_channel(address) as channel:
            reflecting: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
            # It sends nothing: a message on its way into a call that is refused is an error of its own.
            call = reflecting.ServerReflectionInfo()
            assert (await failure_of(call.read())).code() is grpc.StatusCode.UNAUTHENTICATED

    async def test_health_is_open_and_can_be_watched(self, address: str) -> None:
        async with open_channel(address) as channel:
            checking: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=SERVICE)
            assert (await checking.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
            call = checking.Watch(request)
            assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
            call.cancel()


class TestRules:
    @pytest.mark.row("B41")
    async def test_the_fields_are_named(self, servicer: Servicer, stub: Any) -> None:
        provider = provider_pb2.Provider(provider_id="Not A Slug", base_url="https://x.example", level=11)
        found = await failure_of(stub.UpdateProvider(provider_pb2.UpdateProviderRequest(provider=provider)))
        error = error_of(found)
        assert isinstance(error, InvalidRequest)
        assert "provider.provider_id" in error.message and "provider.level" in error.message
        assert error.metadata["param"] == "provider.provider_id"
        assert servicer.requests == []

    async def test_an_update_may_leave_fields_out(self, servicer: Servicer, stub: Any) -> None:
        provider = provider_pb2.Provider(provider_id="p", level=3)
        await stub.UpdateProvider(
            provider_pb2.UpdateProviderRequest(provider=provider, update_mask=FieldMask(paths=["level"]))
        )
        assert len(servicer.requests) == 1

    async def test_few_of_many_violations_are_shown(self, stub: Any) -> None:
        provider = provider_pb2.Provider(provider_id="p", tags=[""] * 20)
        request = provider_pb2.UpdateProviderRequest(provider=provider)
        error = error_of(await failure_of(stub.UpdateProvider(request)))
        assert len(error.message) < 500


class TestLimits:
    @pytest.mark.row("B38")
    async def test_a_message_over_the_limit_is_refused(
        self, servicer: Servicer, stub: Any, address: str
    ) -> None:
        large = provider_pb2.GetProviderRequest(provider_id="p" * MAX_MESSAGE_BYTES)
        assert isinstance(error_of(await failure_of(stub.GetProvider(large))), RequestTooLarge)
        async with open_channel(address, TOKEN, for_inference=True) as channel:
            generous: Any = ProviderServiceStub(channel)
            assert isinstance(error_of(await failure_of(generous.GetProvider(large))), RequestTooLarge)
        assert servicer.requests == []
        await stub.GetProvider(GET)  # the connection has survived

    @pytest.mark.row("B42")
    async def test_unary_calls_have_a_deadline(self, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from lurus_common import rpc

        monkeypatch.setattr(rpc, "UNARY_DEADLINE_SECONDS", 0.1)
        async with open_channel("127.0.0.1:1") as channel:
            dead: Any = ProviderServiceStub(channel)
            found = await failure_of(dead.GetProvider(GET, wait_for_ready=True))
            assert found.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"])
async def test_a_peer_that_is_away_or_goes_away_is_told_of_as_such(code: str) -> None:
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode[code], nothing, nothing, "")
    assert isinstance(error_of(error), DependencyUnavailable)
