"""Clients that leave or stop reading: the provider is let go at once, and what was used is settled."""

import asyncio
import time
from typing import Any

import grpc.aio
import pytest

from lurus.routing.v1.routing_pb2 import ListModelsRequest
from lurus.routing.v1.routing_pb2_grpc import RoutingServiceStub
from lurus.usage.v1 import usage_pb2
from lurus_common.rpc import open_channel
from lurus_common.settings import Settings
from lurus_routing import worker
from lurus_routing.relay import Relay
from tests.support.scripted_upstream import Exchange, silent, stream

from .rig import (
    ANTHROPIC,
    CHAT,
    PRICE,
    MakeRig,
    Rig,
    begin_events,
    delta,
    end_events,
    events_of,
    stream_request,
    text_event,
    until,
)

pytestmark = pytest.mark.anyio

GONE_SECONDS = 1.0


async def read_until(call: Any, text: bytes) -> None:
    """Reads a call until its data ends with `text`."""
    async for response in call:
        if response.data.endswith(text):
            return
    raise AssertionError("the call ended before")


async def leave(rig: Rig, call: Any) -> usage_pb2.UsageEvent:
    """Cancels a call; checks that the provider is let go in time, and returns the event."""
    request = rig.upstream.requests[-1]
    left = time.monotonic()
    call.cancel()
    await asyncio.wait_for(request.gone.wait(), GONE_SECONDS)
    assert request.gone_at is not None and request.gone_at - left < GONE_SECONDS
    return await rig.only_event()


class TestLeaving:
    async def test_amid_the_content(self, rig: Rig) -> None:
        texts = [text_event(ANTHROPIC, "x" * 40) for _ in range(3)]
        rig.upstream.script = stream([*begin_events(ANTHROPIC), *texts, 30.0])
        call = rig.start(rig.request(stream_request(ANTHROPIC)))
        received = 0
        async for response in call:
            received += response.data.count(b"text_delta")
            if received == 3:
                break
        event = await leave(rig, call)
        assert event.terminal == usage_pb2.TERMINAL_CLIENT_GONE
        assert event.token_source == usage_pb2.TOKEN_SOURCE_PARTIAL
        assert (event.tokens.input, event.tokens.cache_read, event.tokens.cache_write_5m) == (10, 1000, 100)
        assert event.tokens.output == 30
        assert event.cost_nano_usd > 0
        assert event.http_status == 200

    async def test_before_the_chunk_with_the_usage(self, rig: Rig) -> None:
        finish = end_events(CHAT)[0]
        rig.upstream.script = stream([*begin_events(CHAT), delta("y" * 400), finish, 30.0])
        call = rig.start(rig.request(stream_request(CHAT), CHAT))
        await read_until(call, finish)
        event = await leave(rig, call)
        assert event.tokens.output == 100
        assert event.tokens.input > 0
        assert event.token_source == usage_pb2.TOKEN_SOURCE_ESTIMATED
        assert event.cost_nano_usd > 0

    async def test_after_the_terminal_event(self, rig: Rig) -> None:
        events = events_of(ANTHROPIC)
        rig.upstream.script = stream([*events, 30.0])
        call = rig.start(rig.request(stream_request(ANTHROPIC)))
        await read_until(call, events[-1])
        event = await leave(rig, call)
        assert event.terminal == usage_pb2.TERMINAL_COMPLETE
        assert event.tokens.output == 50

    @pytest.mark.parametrize("is_streaming", [True, False])
    async def test_before_any_answer_costs_nothing(self, rig: Rig, is_streaming: bool) -> None:
        rig.upstream.script = silent
        body = stream_request(ANTHROPIC) if is_streaming else None
        call = rig.start(rig.request(body))
        reading = asyncio.ensure_future(call.read())
        await rig.upstream.until_requests(1)
        event = await leave(rig, call)
        assert (event.cost_nano_usd, event.token_source) == (0, usage_pb2.TOKEN_SOURCE_UNSPECIFIED)
        assert (event.terminal, event.http_status) == (usage_pb2.TERMINAL_CLIENT_GONE, 0)
        with pytest.raises(asyncio.CancelledError):
            await reading

    async def test_while_the_provider_thinks(self, rig: Rig) -> None:
        rig.upstream.script = stream([*begin_events(ANTHROPIC), 30.0])
        call = rig.start(rig.request(stream_request(ANTHROPIC)))
        await read_until(call, begin_events(ANTHROPIC)[-1])
        reading = asyncio.ensure_future(call.read())
        await asyncio.sleep(0.05)
        event = await leave(rig, call)
        assert event.tokens.input == 10
        with pytest.raises(asyncio.CancelledError):
            await reading

    async def test_by_a_deadline(self, rig: Rig) -> None:
        rig.upstream.script = stream([*begin_events(ANTHROPIC), 30.0])
        call = rig.stub.Relay(rig.request(stream_request(ANTHROPIC)), timeout=0.3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_until(call, b"never")
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(rig.upstream.requests[0].gone.wait(), GONE_SECONDS)
        assert (await rig.only_event()).terminal == usage_pb2.TERMINAL_CLIENT_GONE

    @pytest.mark.parametrize("waits_for", ["key", "lease"])
    async def test_while_billing_is_asked(self, rig: Rig, waits_for: str) -> None:
        if waits_for == "key":
            rig.key = rig.billing.add_key(is_watched=False)
        rig.billing.delay_seconds = 0.2
        call = rig.start(rig.request())
        reading = asyncio.ensure_future(call.read())
        await until(lambda: rig.billing.lookup_count or rig.billing.lease_requests)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.sleep(0.3)
        assert rig.upstream.requests == []
        assert all(event.cost_nano_usd == 0 for _, event in rig.rows().values())


class TestNotReading:
    @staticmethod
    async def flood(exchange: Exchange) -> None:
        """Writes for as long as somebody takes it, at most 64 MB."""
        await exchange.send_stream_head()
        await exchange.send_chunk(b"".join(begin_events(ANTHROPIC)))
        piece = text_event(ANTHROPIC, "z" * 60_000)
        for _ in range(1000):
            await exchange.send_chunk(piece)
            exchange.sent_bytes += len(piece)

    async def test_a_client_that_does_not_read_stops_the_provider(self, rig: Rig) -> None:
        exchanges: list[Exchange] = []

        async def script(exchange: Exchange) -> None:
            exchanges.append(exchange)
            await self.flood(exchange)

        rig.upstream.script = script
        call = rig.start(rig.request(stream_request(ANTHROPIC)))
        await call.read()
        await call.read()
        await asyncio.sleep(0.3)
        sent = exchanges[0].sent_bytes
        await asyncio.sleep(0.1)
        assert sent == exchanges[0].sent_bytes < 12_000_000
        call.cancel()
        await asyncio.wait_for(rig.upstream.requests[0].gone.wait(), GONE_SECONDS)

    async def test_it_is_cut_after_a_while(self, make_rig: MakeRig) -> None:
        rig = await make_rig(client_stall_seconds=0.3)
        rig.upstream.script = self.flood
        call = rig.start(rig.request(stream_request(ANTHROPIC)))
        await call.read()
        await call.read()
        event = await rig.only_event()
        await asyncio.wait_for(rig.upstream.requests[0].gone.wait(), GONE_SECONDS)
        assert event.terminal == usage_pb2.TERMINAL_CLIENT_GONE
        assert event.tokens.input == 10
        # Should it read on after all, it is told that this is not the whole answer.
        data = b"".join([response.data async for response in call])
        assert b"event: error" in data[-400:]
        assert b"message_stop" not in data
        assert len(rig.rows()) == 1


@pytest.mark.parametrize("kind", ["wire"], indirect=True)
class TestDrain:
    async def test_a_call_that_ends_in_time_is_whole_and_no_new_one_is_taken(self, make_rig: MakeRig) -> None:
        rig = await make_rig(drain_seconds=20)
        may_end = asyncio.Event()
        events = events_of(ANTHROPIC)
        rig.upstream.script = stream([*events[:-1], may_end, events[-1]])
        call = rig.start(rig.request(stream_request(ANTHROPIC)))
        await call.read()
        rig.life.end()
        async with open_channel(f"127.0.0.1:{rig.port}") as channel:
            late = RoutingServiceStub(channel)
            while True:
                try:
                    await late.ListModels(ListModelsRequest(credentials=[rig.key]))
                except grpc.aio.AioRpcError as error:
                    # The second is gRPC's own word to a call that comes while its port closes.
                    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                    break
        may_end.set()
        data = b"".join([response.data async for response in call])
        assert data.endswith(events[-1])
        assert [event.terminal for _, event in rig.rows().values()] == [usage_pb2.TERMINAL_COMPLETE]

    async def test_the_limit_ends_a_call_in_its_own_words_and_settles_it(self, make_rig: MakeRig) -> None:
        rig = await make_rig(drain_seconds=0.3)
        rig.upstream.script = stream([*begin_events(ANTHROPIC), text_event(ANTHROPIC, "x" * 40), 30.0])
        call = rig.start(rig.request(stream_request(ANTHROPIC)))
        await read_until(call, text_event(ANTHROPIC, "x" * 40))
        rig.life.end()
        data = b"".join([response.data async for response in call])
        assert b"overloaded_error" in data
        assert b"message_stop" not in data
        await asyncio.wait_for(rig.upstream.requests[0].gone.wait(), GONE_SECONDS)
        event = await rig.only_event()
        assert event.token_source == usage_pb2.TOKEN_SOURCE_PARTIAL
        assert event.error_reason == "OVERLOADED"


class Insides:
    """What a routing service holds, for the tests that look for what is left behind."""

    def __init__(self) -> None:
        self.relay: Relay

    def capture(self, *arguments: Any) -> Relay:
        self.relay = Relay(*arguments)
        return self.relay

    def left_behind(self, account_id: str) -> list[Any]:
        """Everything that a call holds while it is live."""
        relay = self.relay
        account = relay._leases._accounts.get(account_id)
        return [
            *relay._live,
            *relay.health._live.elements(),
            *([account.reserved] if account and account.reserved else []),
            *([relay.health.live_count] if relay.health.live_count else []),
            *(row for row in relay.health._routes.values() if row.breaker.probe or row.breaker.waiting),
        ]


@pytest.fixture
async def insides(monkeypatch: pytest.MonkeyPatch) -> Insides:
    insides = Insides()
    monkeypatch.setattr(worker, "Relay", insides.capture)
    return insides


async def test_wherever_a_call_is_cancelled_it_leaves_nothing_behind(
    insides: Insides, settings: Settings
) -> None:
    rig = Rig(settings, "in process")
    rig.provider.prices.append(PRICE)
    events = events_of(ANTHROPIC)
    async with rig.upstream, rig.other:
        rig.use(one={"level": 1}, two={"level": 2})
        async with rig.running():
            step = 0
            is_finished = False
            while not is_finished:
                rig.upstream.scripts = [stream([])]  # fails, so that the failover is cancelled too
                rig.other.script = stream(events, pause_seconds=0.001)
                # Each round has a key and an account of its own, which have to be asked for.
                rig.key = rig.billing.add_key(is_watched=False)
                task = asyncio.create_task(rig.relay(stream_request(ANTHROPIC)))
                for _ in range(step):
                    await asyncio.sleep(0)
                is_finished = task.done()
                task.cancel()
                await asyncio.wait([task])
                await asyncio.sleep(0)
                assert insides.left_behind(rig.account_id) == [], f"after {step} steps"
                rig.upstream.scripts.clear()
                step += 1 if step < 40 else 7
            assert step > 60
            await until(lambda: all(state for state, _ in rig.rows().values()))
            connector = insides.relay._attempts._session.connector
            assert connector is not None
            await until(lambda: not connector._acquired)
