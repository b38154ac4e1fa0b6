"""The channel without a socket behaves as one with a socket does, as far as callers can tell."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from lurus.routing.v1 import routing_pb2 as pb
from lurus.routing.v1.routing_pb2_grpc import (
    RoutingServiceServicer,
    RoutingServiceStub,
    add_RoutingServiceServicer_to_server,
)
from lurus_common.errors import BalanceTooLow, InvalidRequest, LurusError
from lurus_common.inprocess import InProcessServer
from lurus_common.rpc import error_of, make_server, open_channel, server_interceptors

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", autouse=True)
async def one_loop() -> AsyncIterator[None]:
    """Keeps one event loop for all tests: grpc.aio does not bear many in one process."""
    yield


TOKEN = "a-token-of-the-tests"
ADMIN = (("authorization", f"Bearer {TOKEN}"),)


class Servicer(RoutingServiceServicer):
    """Does what the test says."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.ended = asyncio.Event()
        self.ended_by: BaseException | None = None
        self.seconds_left: float | None = None

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        self.seconds_left = context.time_remaining()
        await self._play()
        return pb.ListModelsResponse(models=[pb.ServedModel(model_id="m")])

    async def WatchRoutes(
        self, request: pb.WatchRoutesRequest, context: Any
    ) -> AsyncIterator[pb.WatchRoutesResponse]:
        self.seconds_left = context.time_remaining()
        try:
            for number in range(1000):
                await self._play()
                yield pb.WatchRoutesResponse(candidates=[pb.CandidateExplanation(level=number)])
        except BaseException as error:
            self.ended_by = error
            raise
        finally:
            self.ended.set()

    async def _play(self) -> None:
        if not self.steps:
            return
        step = self.steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        await asyncio.sleep(step)


Setup = tuple[Servicer, Any]


async def _in_process(stack: AsyncExitStack, servicer: Servicer) -> Any:
    server = InProcessServer(server_interceptors(TOKEN))
    add_RoutingServiceServicer_to_server(servicer, cast(grpc.aio.Server, server))
    return await stack.enter_async_context(server.channel())


async def _wire(stack: AsyncExitStack, servicer: Servicer) -> Any:
    server = make_server(server_interceptors(TOKEN))
    add_RoutingServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0)
    return await stack.enter_async_context(open_channel(f"127.0.0.1:{port}"))


@pytest.fixture(params=[_in_process, _wire], ids=["in process", "wire"])
async def setup(request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
    make: Callable[[AsyncExitStack, Servicer], Awaitable[Any]] = request.param
    async with AsyncExitStack() as stack:
        servicer = Servicer()  # type: ignore[abstract]
        yield servicer, RoutingServiceStub(await make(stack, servicer))


def watch(stub: Any, **options: Any) -> Any:
    return stub.WatchRoutes(pb.WatchRoutesRequest(), metadata=ADMIN, **options)


class TestUnary:
    async def test_it_answers(self, setup: Setup) -> None:
        servicer, stub = setup
        answer = await stub.ListModels(pb.ListModelsRequest(), metadata=ADMIN)
        assert [model.model_id for model in answer.models] == ["m"]
        assert servicer.seconds_left is None or servicer.seconds_left > 10

    async def test_errors_keep_type_and_metadata(self, setup: Setup) -> None:
        servicer, stub = setup
        servicer.steps = [BalanceTooLow("too low", account_id="acct_1", required_nano_usd=7)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListModels(pb.ListModelsRequest(), metadata=ADMIN)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        error = error_of(caught.value)
        assert isinstance(error, BalanceTooLow)
        assert (error.message, error.metadata) == (
            "too low",
            {"account_id": "acct_1", "required_nano_usd": "7"},
        )

    async def test_the_deadline_is_seen_and_kept(self, setup: Setup) -> None:
        servicer, stub = setup
        servicer.steps = [30]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListModels(pb.ListModelsRequest(), metadata=ADMIN, timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert servicer.seconds_left is not None and 0 < servicer.seconds_left <= 0.2

    async def test_rules_and_token_are_checked(self, setup: Setup) -> None:
        _, stub = setup
        for metadata, expected in (
            (ADMIN, grpc.StatusCode.INVALID_ARGUMENT),
            ((), grpc.StatusCode.UNAUTHENTICATED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ExplainRoute(pb.ExplainRouteRequest(), metadata=metadata)
            assert caught.value.code() is expected

    async def test_a_method_that_is_not_there(self, setup: Setup) -> None:
        _, stub = setup
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ExplainRoute(pb.ExplainRouteRequest(model="m"), metadata=ADMIN)
        assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL)


class TestStream:
    async def test_it_can_be_iterated_and_read(self, setup: Setup) -> None:
        servicer, stub = setup
        servicer.steps = [0, 0, 0, InvalidRequest("enough", param="x")]
        call = watch(stub)
        assert (await call.read()).candidates[0].level == 0
        levels = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in call:
                levels.append(response.candidates[0].level)
        assert levels == [1, 2]
        error = error_of(caught.value)
        assert isinstance(error, InvalidRequest) and error.metadata == {"param": "x"}
        assert call.done()
        assert not call.cancel()

    async def test_it_is_cancelled_between_messages(self, setup: Setup) -> None:
        servicer, stub = setup
        call = watch(stub)
        await call.read()
        assert call.cancel()
        await asyncio.wait_for(servicer.ended.wait(), 15)
        with pytest.raises(asyncio.CancelledError):
            while True:
                await call.read()

    async def test_it_is_cancelled_while_waiting(self, setup: Setup) -> None:
        servicer, stub = setup
        servicer.steps = [0, 30]
        call = watch(stub)
        await call.read()
        reading = asyncio.create_task(call.read())
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(servicer.ended.wait(), 15)
        assert isinstance(servicer.ended_by, asyncio.CancelledError)

    async def test_a_reader_that_is_cancelled_stops_the_handler(self, setup: Setup) -> None:
        servicer, stub = setup
        servicer.steps = [0, 30]
        call = watch(stub)

        async def read_all() -> None:
            try:
                async for _ in call:
                    pass
            finally:
                call.cancel()

        reading = asyncio.create_task(read_all())
        await asyncio.sleep(0.05)
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()
        await asyncio.wait_for(servicer.ended.wait(), 15)

    async def test_it_is_cancelled_before_it_began(self, setup: Setup) -> None:
        _, stub = setup
        call = watch(stub)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.read()

    @pytest.mark.parametrize("steps", [[30], [0, 0.05, 30]])
    async def test_the_deadline_ends_it(self, setup: Setup, steps: list[float]) -> None:
        servicer, stub = setup
        servicer.steps = list(steps)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in watch(stub, timeout=0.3):
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(servicer.ended.wait(), 15)

    async def test_closing_the_channel_waits_for_what_was_cancelled(self) -> None:
        servicer = Servicer()  # type: ignore[abstract]
        async with AsyncExitStack() as stack:
            channel = await _in_process(stack, servicer)
            call = watch(RoutingServiceStub(channel))
            await call.read()
            call.cancel()
        assert servicer.ended.is_set()


async def test_a_method_nobody_serves_is_unimplemented() -> None:
    stub: Any = RoutingServiceStub(InProcessServer().channel())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListModels(pb.ListModelsRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.WatchRoutes(pb.WatchRoutesRequest()).read()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert isinstance(error_of(caught.value), LurusError)
