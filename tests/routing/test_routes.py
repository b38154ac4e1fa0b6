"""What operators and teams can ask: models, explanations, health; and who may ask."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lurus.provider.v1 import provider_pb2
from lurus.routing.v1 import routing_pb2
from lurus_common.errors import (
    DependencyUnavailable,
    InvalidRequest,
    KeyInvalid,
    LurusError,
    NotFound,
    Overloaded,
)
from lurus_common.rpc import error_of
from lurus_common.settings import Settings
from lurus_routing import breaker, follow
from lurus_routing.board import MAX_WATCHERS, RouteBoard
from lurus_routing.health import Health
from tests.support.scripted_upstream import Exchange, plain, stream

from .rig import (
    ADMIN_TOKEN,
    ANTHROPIC,
    CHAT,
    MakeRig,
    Rig,
    events_of,
    make_provider,
    plain_answer,
    refusal,
    stream_request,
    until,
)

pytestmark = pytest.mark.anyio

ADMIN = (("authorization", f"Bearer {ADMIN_TOKEN}"),)


async def asked(call: Any) -> Any:
    """Awaits a unary call, with its error as the type that the service raised."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


class TestListModels:
    async def test_a_key_sees_what_it_may_use(self, make_rig: MakeRig) -> None:
        rig = await make_rig(
            {
                "one": {"supported_models": ["claude-1", "claude-2", "gpt-*"], "dialects": [ANTHROPIC]},
                "two": {
                    "dialects": [CHAT],
                    "model_mappings": [provider_pb2.ModelMapping(model="claude-1", upstream_model="x")],
                },
            }
        )
        rig.key = rig.billing.add_key(allowed_models=["claude-1", "other"])
        for request, metadata in (
            (routing_pb2.ListModelsRequest(credentials=[rig.key]), ()),
            (routing_pb2.ListModelsRequest(), (("authorization", f"Bearer {rig.key}"),)),
        ):
            found = await asked(rig.stub.ListModels(request, metadata=metadata))
            assert [(model.model_id, list(model.dialects)) for model in found.models] == [
                ("claude-1", [ANTHROPIC, CHAT])
            ]
        everything = await asked(
            rig.stub.ListModels(routing_pb2.ListModelsRequest(credentials=[ADMIN_TOKEN]))
        )
        assert [model.model_id for model in everything.models] == ["claude-1", "claude-2"]

    async def test_without_a_key_nothing_is_listed(self, rig: Rig) -> None:
        for credentials in ([], [""], ["x"]):
            error = await refusal(
                asked(rig.stub.ListModels(routing_pb2.ListModelsRequest(credentials=credentials)))
            )
            assert isinstance(error, KeyInvalid)


class TestExplainRoute:
    async def test_it_tells_who_would_be_asked_and_why_not_others(self, pair: Rig) -> None:
        pair.upstream.script = plain("{}", 401)
        pair.other.script = plain(plain_answer(ANTHROPIC))
        await pair.relay()
        request = routing_pb2.ExplainRouteRequest(model="m-1", dialect=ANTHROPIC)
        found = (await asked(pair.stub.ExplainRoute(request, metadata=ADMIN))).candidates
        assert [(row.provider_id, row.skip_reason) for row in found] == [
            ("two", ""),
            ("one", "benched: credential refused with 401"),
        ]
        assert found[0].breaker == routing_pb2.BREAKER_STATE_CLOSED
        assert 50 < found[1].bench_duration.seconds <= 60

    async def test_a_key_decides_too(self, rig: Rig) -> None:
        key = rig.billing.add_key(allowed_models=["other"])
        key_id = rig.billing.grant_of(key).key_id
        request = routing_pb2.ExplainRouteRequest(model="m-1", key_id=key_id)

        async def explain() -> Any:
            try:
                return await asked(rig.stub.ExplainRoute(request, metadata=ADMIN))
            except NotFound:
                return None  # the watch has not told of it yet

        while (found := await explain()) is None:
            await asyncio.sleep(0.01)
        assert list(found.candidates) == []

    @pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),)])
    async def test_it_is_for_operators(self, rig: Rig, metadata: Any) -> None:
        """Also in process, where the edge hands requests of anybody over."""
        request = routing_pb2.ExplainRouteRequest(model="m-1")
        assert isinstance(await refusal(asked(rig.stub.ExplainRoute(request, metadata=metadata))), KeyInvalid)
        request = routing_pb2.ExplainRouteRequest()
        assert isinstance(
            await refusal(asked(rig.stub.ExplainRoute(request, metadata=ADMIN))), InvalidRequest
        )


class Watching:
    """What a watcher knows, message by message."""

    def __init__(self, rig: Rig) -> None:
        self.call = rig.stub.WatchRoutes(routing_pb2.WatchRoutesRequest(), metadata=ADMIN)
        self.rows: dict[tuple[str, str], routing_pb2.CandidateExplanation] = {}
        self.snapshot_count = 0

    async def until(self, condition: Any) -> Any:
        """Reads until something is true of the rows."""
        async with asyncio.timeout(30):
            while not (found := condition(self.rows)):
                message = await self.call.read()
                if message.is_snapshot:
                    self.rows, self.snapshot_count = {}, self.snapshot_count + 1
                self.rows.update({(row.provider_id, row.upstream_model): row for row in message.candidates})
        return found


class TestWatchRoutes:
    async def test_it_tells_all_and_then_what_changes(self, pair: Rig) -> None:
        watching = Watching(pair)
        await watching.until(lambda rows: set(rows) == {("one", ""), ("two", "")})
        pair.upstream.script = plain("{}", 401)
        pair.other.script = stream([0.05, *events_of(ANTHROPIC)])
        await pair.relay(stream_request(ANTHROPIC))
        benched = await watching.until(lambda rows: rows["one", ""].skip_reason and rows["one", ""])
        assert (benched.skip_reason, benched.bench_duration.seconds) == (
            "benched: credential refused with 401",
            59,
        )
        asked = await watching.until(lambda rows: rows.get(("two", "m-1")))
        assert asked.breaker == routing_pb2.BREAKER_STATE_CLOSED
        assert asked.latency_duration.ToMilliseconds() >= 50
        assert watching.snapshot_count == 1
        pair.provider.tell(deleted_provider_ids=["one"])
        await watching.until(lambda rows: ("one", "") not in rows)
        assert watching.snapshot_count == 2
        watching.call.cancel()

    async def test_a_breaker_is_seen_to_open(self, pair: Rig) -> None:
        watching = Watching(pair)
        pair.upstream.script = plain("{}", 500)
        pair.other.script = plain(plain_answer(ANTHROPIC))
        for _ in range(6):
            await pair.relay()
        row = await watching.until(lambda rows: (row := rows.get(("one", "m-1"))) and row.skip_reason and row)
        assert (row.breaker, row.skip_reason) == (routing_pb2.BREAKER_STATE_OPEN, "breaker open")
        watching.call.cancel()

    async def test_nobody_makes_it_grow(self) -> None:
        """A watcher that never reads holds its place, and nothing else; there are so many places."""
        health = Health()
        board = RouteBoard(health, lambda: None, "worker-0")
        watchers = [board.watch() for _ in range(MAX_WATCHERS)]
        for watcher in watchers:
            assert (await anext(watcher)).is_snapshot
        with pytest.raises(Overloaded):
            await anext(board.watch())
        await watchers[0].aclose()  # type: ignore[attr-defined]
        late = board.watch()
        assert (await anext(late)).is_snapshot

    async def test_it_is_for_operators(self, rig: Rig) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.stub.WatchRoutes(routing_pb2.WatchRoutesRequest()).read()
        assert isinstance(error_of(caught.value), KeyInvalid)


class TestProbes:
    """Providers that rest are asked for their list of models."""

    SECONDS = 0.2

    @staticmethod
    def answering(lists: int, calls: int) -> Any:
        """Lists answer with one status, calls with another one."""

        async def script(exchange: Exchange) -> None:
            status = lists if exchange.request.method == "GET" else calls
            await plain(plain_answer(ANTHROPIC) if status == 200 else b"{}", status)(exchange)

        return script

    @staticmethod
    def count(rig: Rig, method: str) -> int:
        return sum(request.method == method for request in rig.upstream.requests)

    async def test_a_breaker_lets_its_probe_pass_and_is_closed_by_that_only(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"level": 1}, "two": {"level": 2}}, probe_seconds=self.SECONDS)
        rig.other.script = plain(plain_answer(ANTHROPIC))
        rig.upstream.script = self.answering(500, 500)
        for _ in range(6):
            assert (await rig.relay()).end.provider_id == "two"
        await until(lambda: self.count(rig, "GET") >= 2)  # failed ones change nothing
        assert (await rig.relay()).end.provider_id == "two"
        assert self.count(rig, "POST") == breaker.FAILURES_IN_A_ROW
        rig.upstream.script = self.answering(200, 500)
        request = rig.upstream.requests[-1]
        assert (request.target, request.header("x-api-key")) == (
            "/v1/models",
            "sk-upstream-canary-one-default",
        )
        # It gives lists and answers no calls: one call finds that out, and no other one has to.
        async with asyncio.timeout(20):
            while self.count(rig, "POST") == breaker.FAILURES_IN_A_ROW:
                assert (await rig.relay()).end.provider_id == "two"
        await asyncio.sleep(3 * self.SECONDS)
        for _ in range(5):
            assert (await rig.relay()).end.provider_id == "two"
        assert self.count(rig, "POST") == breaker.FAILURES_IN_A_ROW + 1

    async def test_the_one_that_is_back_is_asked_again(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"level": 1}, "two": {"level": 2}}, probe_seconds=self.SECONDS)
        rig.other.script = plain(plain_answer(ANTHROPIC))
        rig.upstream.script = self.answering(200, 500)
        for _ in range(5):
            await rig.relay()
        rig.upstream.script = self.answering(200, 200)
        async with asyncio.timeout(20):  # less than the 30 s for which it is open
            while (await rig.relay()).end.provider_id != "one":
                await asyncio.sleep(0.01)

    @pytest.mark.parametrize(("status", "is_lifted"), [(401, True), (402, False), (403, False), (429, False)])
    async def test_a_list_lifts_the_bench_of_an_unknown_credential_only(
        self, make_rig: MakeRig, status: int, is_lifted: bool
    ) -> None:
        rig = await make_rig({"one": {"level": 1}, "two": {"level": 2}}, probe_seconds=self.SECONDS)
        rig.other.script = plain(plain_answer(ANTHROPIC))
        rig.upstream.script = self.answering(200, status)
        assert (await rig.relay()).end.provider_id == "two"
        rig.upstream.script = self.answering(200, 200)
        if is_lifted:
            async with asyncio.timeout(20):
                while (await rig.relay()).end.provider_id != "one":
                    await asyncio.sleep(0.01)
            return
        await asyncio.sleep(3 * self.SECONDS)
        assert (await rig.relay()).end.provider_id == "two"
        assert self.count(rig, "GET") == 0

    async def test_one_that_is_left_out_is_not_probed(self, make_rig: MakeRig) -> None:
        limits = provider_pb2.ProviderLimits(no_probes=True)
        rig = await make_rig(
            {"one": {"level": 1, "limits": limits}, "two": {"level": 2}}, probe_seconds=self.SECONDS
        )
        rig.other.script = plain(plain_answer(ANTHROPIC))
        rig.upstream.script = self.answering(200, 401)
        await rig.relay()
        await asyncio.sleep(3 * self.SECONDS)
        assert self.count(rig, "GET") == 0


class TestReadiness:
    async def test_before_the_providers_are_known_calls_may_come_back(
        self, settings: Settings, kind: str
    ) -> None:
        rig = Rig(settings, kind)
        async with rig.upstream, rig.other:
            rig.use(one={})
            await rig.billing_server.start()
            await rig.provider_server.start()
            await rig.provider_server.stop()
            async with rig.routing(is_awaited=False):
                error = await refusal(rig.relay())
                assert isinstance(error, DependencyUnavailable)
                assert error.metadata["retry_after_seconds"] == "2"
                await rig.provider_server.start()
                rig.upstream.script = plain(plain_answer(ANTHROPIC))

                async def works() -> bool:
                    try:
                        return (await rig.relay()).head.status == 200
                    except LurusError:
                        return False

                while not await works():
                    await asyncio.sleep(0.02)
                # What is known stays known without the service that told it.
                await rig.provider_server.stop()
                assert await works()
            await rig.billing_server.stop()

    async def test_a_senseless_provider_harms_nobody(self, rig: Rig) -> None:
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        limits = provider_pb2.ProviderLimits(max_concurrency=-5)
        limits.idle_timeout.seconds, limits.first_event_timeout.seconds = 10**15, -3
        rig.provider.tell(providers=[make_provider("aaa", "http://[", limits=limits)])
        answers = [await rig.relay() for _ in range(10)]
        assert {answer.end.provider_id for answer in answers} == {"one"}

    async def test_what_cannot_be_taken_is_skipped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(follow, "FIRST_RETRY_SECONDS", 0.01)
        taken: list[int] = []

        class Call:
            async def __aiter__(self) -> AsyncIterator[int]:
                for number in range(3):
                    yield number

            def cancel(self) -> None:
                taken.append(-1)

        def take(number: int) -> None:
            if number == 1:
                raise ValueError("a row that makes no sense")
            taken.append(number)

        source = SimpleNamespace(take=take, fail=lambda problem: None)
        following = asyncio.create_task(follow._follow("rows", Call, source))
        await until(lambda: taken.count(-1) == 2)
        following.cancel()
        assert taken[:4] == [0, -1, 0, -1]

    @pytest.mark.parametrize("kind", ["wire"], indirect=True)
    async def test_it_speaks_health(self, rig: Rig) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="lurus.routing.v1.RoutingService")
            assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
            watch = stub.Watch(request)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
