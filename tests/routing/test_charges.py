"""The settlement table, cell by cell; tiers, units and multipliers; what attempts and lost caches cost."""

import asyncio
from typing import Any

import pytest

from lurus.billing.v1.billing_pb2 import (
    INTERRUPTION_POLICY_BILL,
    INTERRUPTION_POLICY_WAIVE,
    SettlementPolicy,
)
from lurus.provider.v1 import provider_pb2
from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_routing.cache_loss import MAX_SESSIONS, SessionCaches
from lurus_routing.drains import Drains
from lurus_routing.outbox_file import _estimated
from tests.support.scripted_upstream import plain, stream

from .rig import (
    ANTHROPIC,
    COST,
    PRICE,
    RESPONSES,
    MakeRig,
    Rig,
    begin_events,
    end_events,
    events_of,
    named,
    plain_answer,
    stream_request,
    text_event,
)
from .test_departure import leave, read_until

pytestmark = pytest.mark.anyio

WAIVE = INTERRUPTION_POLICY_WAIVE
BILLED, WAIVED = usage_pb2.CHARGE_REASON_BILLED_BY_POLICY, usage_pb2.CHARGE_REASON_WAIVED_BY_POLICY
COMPLETE, NOTHING = usage_pb2.CHARGE_REASON_COMPLETE, usage_pb2.CHARGE_REASON_NOTHING_SERVED
TEXT = text_event(ANTHROPIC, "x" * 40)
# What is on its way of an answer that is interrupted: input as stated, 10 tokens of text.
CUT_COST = 10 * 1000 + 1000 * 100 + 100 * 1250 + 10 * 5000
ERROR = named("error", error={"type": "api_error", "message": "boom"})
CUTS: dict[str, tuple[list[Any], int]] = {
    "upstream_error": ([*begin_events(ANTHROPIC), TEXT, ERROR], usage_pb2.TERMINAL_UPSTREAM_ERROR),
    "timeout": ([*begin_events(ANTHROPIC), TEXT, 30.0], usage_pb2.TERMINAL_TIMEOUT),
    "truncated": ([*begin_events(ANTHROPIC), TEXT], usage_pb2.TERMINAL_TRUNCATED),
}


def policy(rig: Rig, **cells: Any) -> None:
    """Gives the rig's caller a key of an account with a policy."""
    rig.key = rig.billing.add_key(settlement_policy=SettlementPolicy(**cells))


async def served(rig: Rig, events: list[Any]) -> UsageEvent:
    """The event of a stream that is read to its end, whatever that is."""
    rig.upstream.script = stream(events)
    return await rig.event((await rig.relay(stream_request(ANTHROPIC))).request_id)


class TestSettlementTable:
    @pytest.mark.parametrize("cell", CUTS)
    async def test_an_interrupted_answer_is_billed_or_waived_as_the_account_says(
        self, make_rig: MakeRig, cell: str
    ) -> None:
        rig = await make_rig(upstream_idle_seconds=0.3)
        events, terminal = CUTS[cell]
        others = {name: WAIVE for name in (*CUTS, "client_gone") if name != cell}
        for chosen in (0, INTERRUPTION_POLICY_BILL):
            policy(rig, **others, **{cell: chosen})
            billed = await served(rig, events)
            assert (billed.terminal, billed.charge_reason) == (terminal, BILLED)
            assert (billed.cost_nano_usd, billed.waived_nano_usd) == (CUT_COST, 0)
            assert billed.token_source == usage_pb2.TOKEN_SOURCE_PARTIAL
        policy(rig, **{cell: WAIVE})
        waived = await served(rig, events)
        assert (waived.terminal, waived.charge_reason) == (terminal, WAIVED)
        assert (waived.cost_nano_usd, waived.waived_nano_usd) == (0, CUT_COST)
        assert waived.tokens == billed.tokens
        assert waived.attempts[0].cost_nano_usd == CUT_COST  # we pay it all the same

    @pytest.mark.parametrize(("chosen", "reason"), [(0, BILLED), (WAIVE, WAIVED)])
    async def test_a_client_that_leaves(self, rig: Rig, chosen: Any, reason: int) -> None:
        policy(rig, client_gone=chosen)
        rig.upstream.script = stream([*begin_events(ANTHROPIC), TEXT, 30.0])
        call = rig.start(rig.request(stream_request(ANTHROPIC)))
        await read_until(call, TEXT)
        event = await leave(rig, call)
        assert (event.terminal, event.charge_reason) == (usage_pb2.TERMINAL_CLIENT_GONE, reason)
        costs = (CUT_COST, 0) if reason == BILLED else (0, CUT_COST)
        assert (event.cost_nano_usd, event.waived_nano_usd) == costs

    async def test_a_client_that_leaves_after_the_last_count_has_had_its_answer(self, rig: Rig) -> None:
        policy(rig, client_gone=WAIVE)
        *events, stop = end_events(ANTHROPIC)
        rig.upstream.script = stream([*begin_events(ANTHROPIC), TEXT, *events, 30.0, stop])
        call = rig.start(rig.request(stream_request(ANTHROPIC)))
        await read_until(call, events[-1])
        event = await leave(rig, call)
        assert (event.terminal, event.charge_reason) == (usage_pb2.TERMINAL_CLIENT_GONE, COMPLETE)
        assert event.cost_nano_usd == COST

    async def test_a_drain_learns_the_provider_s_own_count(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        has_left = asyncio.Event()
        take = Drains.take

        def note(drains: Drains, *arguments: Any) -> bool:
            has_left.set()
            return take(drains, *arguments)

        monkeypatch.setattr(Drains, "take", note)
        policy(rig, client_gone_drain_milliseconds=2000)
        go_on = asyncio.Event()
        rig.upstream.script = stream([*begin_events(ANTHROPIC), TEXT, go_on, *end_events(ANTHROPIC)])
        call = rig.start(rig.request(stream_request(ANTHROPIC)))
        await read_until(call, TEXT)
        call.cancel()
        await has_left.wait()
        go_on.set()
        event = await rig.only_event()
        assert (event.terminal, event.charge_reason) == (usage_pb2.TERMINAL_CLIENT_GONE, COMPLETE)
        assert (event.token_source, event.cost_nano_usd) == (usage_pb2.TOKEN_SOURCE_PROVIDER, COST)

    async def test_a_drain_that_learns_nothing_ends(self, rig: Rig) -> None:
        policy(rig, client_gone_drain_milliseconds=200)
        rig.upstream.script = stream([*begin_events(ANTHROPIC), TEXT, 30.0])
        call = rig.start(rig.request(stream_request(ANTHROPIC)))
        await read_until(call, TEXT)
        event = await leave(rig, call)
        assert (event.charge_reason, event.cost_nano_usd) == (BILLED, CUT_COST)

    async def test_what_is_complete_is_billed_whatever_the_policy(self, rig: Rig) -> None:
        policy(rig, client_gone=WAIVE, upstream_error=WAIVE, timeout=WAIVE, truncated=WAIVE)
        event = await served(rig, events_of(ANTHROPIC))
        assert (event.charge_reason, event.cost_nano_usd) == (COMPLETE, COST)
        zeros = {"input_tokens": 0, "output_tokens": 0}
        start = named("message_start", message={"id": "m", "content": [], "usage": zeros})
        delta = named("message_delta", delta={"stop_reason": "end_turn"}, usage=zeros)
        free = await served(rig, [start, TEXT, delta, named("message_stop")])
        assert (free.charge_reason, free.cost_nano_usd) == (COMPLETE, 0)
        assert free.token_source == usage_pb2.TOKEN_SOURCE_PROVIDER

    async def test_what_failed_before_any_content_costs_nothing_but_us(self, pair: Rig) -> None:
        pair.upstream.script = stream([*begin_events(ANTHROPIC)[:1], ERROR])
        pair.other.script = stream(events_of(ANTHROPIC))
        answer = await pair.relay(stream_request(ANTHROPIC))
        event = await pair.event(answer.request_id)
        assert (event.charge_reason, event.cost_nano_usd) == (COMPLETE, COST)
        first, second = event.attempts
        # It had stated its input and one token of output.
        assert first.tokens == usage_pb2.Tokens(input=10, cache_read=1000, cache_write_5m=100, output=1)
        assert first.cost_nano_usd == 10 * 1000 + 1000 * 100 + 100 * 1250 + 5000
        assert (first.token_source, second.cost_nano_usd) == (usage_pb2.TOKEN_SOURCE_PARTIAL, COST)

    async def test_an_error_body_is_never_charged(self, rig: Rig) -> None:
        body = {"type": "error", "error": {"type": "invalid_request_error", "message": "no " * 500}}
        rig.upstream.script = plain(body, 400)
        event = await rig.event((await rig.relay()).request_id)
        assert (event.charge_reason, event.cost_nano_usd) == (NOTHING, 0)
        assert not event.HasField("tokens")
        assert event.attempts[0].token_source == usage_pb2.TOKEN_SOURCE_UNSPECIFIED

    def test_a_lost_worker_is_no_client_that_left(self) -> None:
        checkpoint = UsageEvent(charge_reason=WAIVED, waived_nano_usd=70)
        event = UsageEvent.FromString(_estimated(checkpoint.SerializeToString(), "worker"))
        assert (event.charge_reason, event.cost_nano_usd, event.waived_nano_usd) == (BILLED, 70, 0)


class TestPrices:
    async def test_both_multipliers_are_applied_and_recorded(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"cost_multiplier_ppm": 500_000}})
        rig.key = rig.billing.add_key(price_multiplier_ppm=1_200_001)
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        event = await rig.event((await rig.relay()).request_id)
        assert (event.provider_multiplier_ppm, event.account_multiplier_ppm) == (500_000, 1_200_001)
        assert event.cost_nano_usd == -(-COST * 500_000 * 1_200_001 // 10**12)
        attempt = event.attempts[0]
        assert (attempt.cost_nano_usd, attempt.provider_multiplier_ppm) == (COST // 2, 500_000)

    async def test_a_long_prompt_has_the_rates_of_its_tier(self, make_rig: MakeRig) -> None:
        price = provider_pb2.Price()
        price.CopyFrom(PRICE)
        price.tiers.add(above_input_tokens=1109, input_nano_usd=2 * 10**9, output_nano_usd=7 * 10**9)
        price.tiers.add(above_input_tokens=1110, input_nano_usd=99 * 10**9)
        rig = await make_rig(prices=[price])
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        event = await rig.event((await rig.relay()).request_id)
        assert event.cost_nano_usd == 10 * 2000 + 50 * 7000

    async def test_hosted_tools_are_units_and_one_without_a_rate_is_marked(self, make_rig: MakeRig) -> None:
        price = provider_pb2.Price()
        price.CopyFrom(PRICE)
        price.unit_rates.add(kind="web_search", nano_usd_per_thousand=10 * 10**9)
        rig = await make_rig({"one": {"dialects": [ANTHROPIC, RESPONSES]}}, prices=[price])
        usage = {"output_tokens": 50, "server_tool_use": {"web_search_requests": 3}}
        middle = named("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
        event = await served(rig, [*begin_events(ANTHROPIC), TEXT, middle, named("message_stop")])
        assert event.cost_nano_usd == COST + 30_000_000
        assert [(unit.kind, unit.count) for unit in event.units] == [("web_search", 3)]
        assert not event.has_unpriced_units
        usage["server_tool_use"] = {"web_search_requests": 3, "web_fetch_requests": 1}
        middle = named("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
        event = await served(rig, [*begin_events(ANTHROPIC), TEXT, middle, named("message_stop")])
        assert (event.cost_nano_usd, event.has_unpriced_units) == (COST + 30_000_000, True)


class TestLostCache:
    async def test_a_session_that_moves_pays_for_its_cache_again_and_is_told(self, pair: Rig) -> None:
        session = {"x-claude-code-session-id": "s-1", "content-type": "application/json"}
        headers = list(session.items())
        pair.upstream.script = stream(events_of(ANTHROPIC))
        one = await pair.relay(stream_request(ANTHROPIC), headers=headers)
        assert not (await pair.event(one.request_id)).HasField("lost_cache_tokens")
        pair.upstream.script = plain({"type": "error", "error": {"type": "overloaded_error"}}, 529)
        fresh = {"input_tokens": 1105, "cache_read_input_tokens": 5, "output_tokens": 1}
        start = named("message_start", message={"id": "m", "content": [], "usage": fresh})
        pair.other.script = stream([start, TEXT, *end_events(ANTHROPIC)])
        two = await pair.event((await pair.relay(stream_request(ANTHROPIC), headers=headers)).request_id)
        # 1100 were cached at the first; 5 are here by chance.
        assert (two.provider_id, two.lost_cache_tokens) == ("two", 1095)
        assert two.lost_cache_nano_usd == 1095 * (1000 - 100)
        three = await pair.event((await pair.relay(stream_request(ANTHROPIC), headers=headers)).request_id)
        assert (three.provider_id, three.HasField("lost_cache_tokens")) == ("two", False)

    def test_sessions_are_forgotten_in_the_order_in_which_they_were_used(self) -> None:
        caches = SessionCaches()
        for number in range(MAX_SESSIONS + 1):
            caches.learn(str(number), ("one", "default"), number)
        assert caches.elsewhere("0", ("two", "default")) is None
        assert caches.elsewhere("1", ("two", "default")) == 1
        assert caches.elsewhere("1", ("one", "default")) is None
