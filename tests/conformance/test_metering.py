"""What is metered, and what is paid (wire-contract E.6)."""

import asyncio
import json
import time
from typing import Any

import pytest
from tests.conformance.rig import PRICES, Gateway, Provider
from tests.conformance.streams import (
    C_USAGE,
    FRESH,
    OUTPUT,
    R_USAGE,
    READ,
    WRITTEN,
    begin,
    deltas,
    end,
    plain_body,
    whole,
)
from tests.support import provider_streams as streams
from tests.support.scripted_upstream import Exchange, plain, silent, stream

from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import Tokens, UsageEvent
from lurus_common import bus

pytestmark = pytest.mark.anyio

MILLION = 1_000_000
WHOLE_COST = (
    FRESH * PRICES["input_nano_usd"]
    + READ * PRICES["cache_read_nano_usd"]
    + WRITTEN * PRICES["cache_write_5m_nano_usd"]
    + OUTPUT * PRICES["output_nano_usd"]
) // MILLION


def writes(tokens: Tokens) -> int:
    """Tokens written to a cache, for however long."""
    return tokens.cache_write_5m + tokens.cache_write_30m + tokens.cache_write_1h + tokens.cache_write_12h


def counts(event: UsageEvent) -> tuple[int, int, int, int]:
    """Fresh input, read, written, output."""
    tokens = event.tokens
    return tokens.input, tokens.cache_read, writes(tokens), tokens.output


def usage_of(told: Any, client: str) -> dict[str, Any]:
    """The usage that a client reads off a stream, the last statement of each count."""
    found: dict[str, Any] = {}
    for event in told.events:
        if not event.data or event.data == "[DONE]":
            continue
        data = event.json
        stated = data.get("usage") or data.get("message", data.get("response", {})).get("usage") or {}
        found |= {name: value for name, value in stated.items() if value is not None}
    assert found, f"{client} is told no usage"
    return found


class TestCounts:
    @pytest.mark.parametrize("is_streaming", [True, False], ids=["stream", "plain"])
    async def test_M01_anthropic_counts_for_a_chat_client(self, gateway: Gateway, is_streaming: bool) -> None:
        told = await gateway.given(
            "C",
            "A",
            events=whole("A", "hello") if is_streaming else None,
            body=plain_body("A"),
            request={"stream_options": {"include_usage": True}} if is_streaming else {},
        )
        usage = usage_of(told, "C") if is_streaming else told.json()["usage"]
        assert usage["prompt_tokens"] == 1110
        assert usage["prompt_tokens_details"]["cached_tokens"] == 1000
        assert usage["prompt_tokens_details"]["cache_write_tokens"] == 100
        assert (usage["completion_tokens"], usage["total_tokens"]) == (50, 1160)
        record = await told.record()
        assert counts(record) == (10, 1000, 100, 50)
        assert record.cost_nano_usd == WHOLE_COST
        assert record.token_source == usage_pb2.TOKEN_SOURCE_PROVIDER

    @pytest.mark.parametrize("is_streaming", [True, False], ids=["stream", "plain"])
    @pytest.mark.parametrize("upstream", ["C", "R"])
    async def test_M02_openai_counts_for_an_anthropic_client(
        self, gateway: Gateway, upstream: str, is_streaming: bool
    ) -> None:
        told = await gateway.given(
            "A",
            upstream,
            events=whole(upstream, "hello") if is_streaming else None,
            body=plain_body(upstream),
        )
        usage = usage_of(told, "A") if is_streaming else told.json()["usage"]
        assert usage["input_tokens"] == 10
        assert usage["cache_read_input_tokens"] == 1000
        assert usage["cache_creation_input_tokens"] == 100
        assert usage["output_tokens"] == 50
        assert counts(await told.record()) == (10, 1000, 100, 50)

    @pytest.mark.parametrize("dialect", ["A", "C", "R"])
    async def test_M02_the_same_counts_are_relayed(self, gateway: Gateway, dialect: str) -> None:
        for answer in ({"events": whole(dialect, "hello")}, {"body": plain_body(dialect)}):
            told = await gateway.given(dialect, dialect, **answer)  # type: ignore[arg-type]
            record = await told.record()
            assert counts(record) == (10, 1000, 100, 50)
            assert record.cost_nano_usd == WHOLE_COST

    @pytest.mark.parametrize("client", ["A", "C"])
    async def test_M03_a_later_count_replaces_an_earlier_one(self, gateway: Gateway, client: str) -> None:
        change = {"stop_reason": "end_turn", "stop_sequence": None}
        events = [
            *begin("A"),
            *deltas("A", "hello"),
            streams.a_close(0),
            streams.named("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 20}),
            streams.named("message_delta", delta=change, usage={"output_tokens": 50, "input_tokens": 12}),
            streams.named("message_stop"),
        ]
        told = await gateway.given(client, "A", events=events)
        assert told.texts() == "hello"
        record = await told.record()
        assert (record.tokens.input, record.tokens.output) == (12, 50)

    async def test_M04_compactions_are_counted_in_addition(self, gateway: Gateway) -> None:
        iterations = [
            {"type": "compaction", "input_tokens": 5000, "output_tokens": 300},
            {"type": "message", "input_tokens": 10, "output_tokens": 50},
        ]
        usage = {"input_tokens": 10, "output_tokens": 50, "iterations": iterations}
        told = await gateway.given("A", "A", body={**plain_body("A"), "usage": usage})
        record = await told.record()
        assert (record.tokens.input, record.tokens.output) == (5010, 350)
        change = {"stop_reason": "end_turn", "stop_sequence": None}
        events = [*begin("A"), *deltas("A", "x"), streams.a_close(0)]
        events += [streams.named("message_delta", delta=change, usage=usage), streams.named("message_stop")]
        record = await (await gateway.given("A", "A", events=events)).record()
        assert (record.tokens.input, record.tokens.output) == (5010, 350)

    @pytest.mark.row("B44")
    async def test_M05_counts_that_cannot_be_true_cost_nothing_below_zero(self, gateway: Gateway) -> None:
        usage = {**C_USAGE, "prompt_tokens": 100, "prompt_tokens_details": {"cached_tokens": 120}}
        before = await self.suspects(gateway)
        told = await gateway.given("C", "C", body={**plain_body("C"), "usage": usage})
        record = await told.record()
        assert record.tokens.input == 0
        assert record.cost_nano_usd > 0
        assert await self.suspects(gateway) > before

    async def suspects(self, gateway: Gateway) -> float:
        text = (await gateway.post("/metrics", method="GET")).body.decode()
        lines = [line for line in text.splitlines() if line.startswith("lurus_suspect_usage_total{")]
        return sum(float(line.split(" ")[1]) for line in lines)

    @pytest.mark.parametrize("client", ["C", "A"])
    @pytest.mark.row("B44")
    async def test_M06_cumulative_counts_are_not_added(self, gateway: Gateway, client: str) -> None:
        def chunk(text: str, output: int) -> bytes:
            return streams.c_chunk({"content": text}, usage={**C_USAGE, "completion_tokens": output})

        last = streams.c_chunk({}, "stop", usage=C_USAGE)
        events = [*begin("C"), chunk("a", 10), chunk("b", 20), chunk("c", 30), last, streams.DONE]
        told = await gateway.given(client, "C", events=events)
        assert told.texts() == "abc"
        assert counts(await told.record()) == (10, 1000, 100, 50)


class TestDepartures:
    @pytest.mark.parametrize("upstream", ["A", "C", "R"])
    @pytest.mark.row("F13")
    async def test_M07_a_client_that_leaves_pays_for_what_it_got(
        self, gateway: Gateway, upstream: str
    ) -> None:
        provider = await gateway.default(upstream)
        events = [*begin(upstream), *deltas(upstream, *["several words of text "] * 3)]
        provider.upstream.script = stream([*events, 30.0])
        client = await gateway.open("A", provider)
        answer = await client.read_head()
        await client.read_until(lambda answer: answer.body.count(b"several words") == 3)
        left = time.monotonic()
        client.leave()
        received = await provider.upstream.until_requests(1)
        await asyncio.wait_for(received.gone.wait(), 15)
        assert received.gone_at is not None and received.gone_at - left <= 1
        record = await gateway.record(answer.header("request-id"))
        assert record.terminal == usage_pb2.TERMINAL_CLIENT_GONE
        # 66 bytes of text.
        assert 10 <= record.tokens.output <= 40
        assert record.tokens.input > 0
        assert record.cost_nano_usd > 0
        if upstream == "A":
            assert counts(record)[:3] == (FRESH, READ, WRITTEN)
            assert record.token_source == usage_pb2.TOKEN_SOURCE_PARTIAL
        else:
            assert record.token_source == usage_pb2.TOKEN_SOURCE_ESTIMATED

    @pytest.mark.row("F14")
    async def test_M08_leaving_before_the_usage_chunk_is_no_free_ride(self, gateway: Gateway) -> None:
        provider = await gateway.default("C")
        text = "a sentence with some words in it. " * 20
        provider.upstream.script = stream(
            [*begin("C"), *deltas("C", text), streams.c_chunk({}, "stop"), 30.0, *end("C")]
        )
        client = await gateway.open("C", provider)
        answer = await client.read_head()
        await client.read_until(lambda answer: b'"stop"' in answer.body)
        client.leave()
        record = await gateway.record(answer.header("request-id"))
        assert record.tokens.output >= len(text) // 8
        assert record.cost_nano_usd > 0

    async def test_M09_leaving_before_the_head_costs_nothing(self, gateway: Gateway) -> None:
        provider = await gateway.default("A")
        provider.upstream.script = silent
        client = await gateway.open("A", provider)
        received = await provider.upstream.until_requests(1)
        left = time.monotonic()
        client.leave()
        await asyncio.wait_for(received.gone.wait(), 15)
        assert received.gone_at is not None and received.gone_at - left <= 1
        record = await gateway.last_record(provider.model)
        assert record.terminal == usage_pb2.TERMINAL_CLIENT_GONE
        assert counts(record) == (0, 0, 0, 0)
        assert record.cost_nano_usd == 0


class TestAttempts:
    COUNTING = "/v1/messages/count_tokens?beta=true"

    @pytest.mark.parametrize("upstream", ["A", "C"])
    async def test_M10_both_attempts_are_recorded_and_one_is_paid(
        self, gateway: Gateway, upstream: str
    ) -> None:
        async def slow_failure(exchange: Exchange) -> None:
            await asyncio.sleep(0.2)
            await plain({"error": {"type": "api_error", "message": "broken"}}, 500)(exchange)

        failing = await gateway.add("A", script=slow_failure, level=1)
        answering = await gateway.add(
            upstream, model=failing.model, script=plain(plain_body(upstream)), level=2
        )
        told = await gateway.ask("A", failing)
        assert told.status == 200
        record = await told.record()
        assert [attempt.provider_id for attempt in record.attempts] == [
            failing.provider_id,
            answering.provider_id,
        ]
        assert [attempt.http_status for attempt in record.attempts] == [500, 200]
        assert record.attempts[0].error_reason and not record.attempts[1].error_reason
        assert record.provider_id == answering.provider_id
        assert record.cost_nano_usd == WHOLE_COST

    @pytest.mark.row("F38")
    async def test_M11_an_event_that_is_delivered_again_is_not_paid_again(self, gateway: Gateway) -> None:
        account_id, key = await gateway.account()
        provider = await gateway.default("A")
        provider.upstream.script = plain(plain_body("A"))
        told = await gateway.ask("A", provider, headers=[f"x-api-key: {key}"])
        record = await told.record()
        path = f"transactions?account_id={account_id}"

        async def entries() -> list[dict[str, Any]]:
            found = (await gateway.rest("GET", path))["transactions"]
            return [entry for entry in found if entry["transaction_id"] == told.request_id]

        assert len(await gateway.eventually(entries, 20)) == 1
        await self.deliver_again(gateway, record)
        # What comes behind it on the same subject has been settled, so it has been seen.
        later = await gateway.ask("A", provider, headers=[f"x-api-key: {key}"])
        await later.record()

        async def has_settled_both() -> bool:
            found = (await gateway.rest("GET", path))["transactions"]
            return any(entry["transaction_id"] == later.request_id for entry in found)

        await gateway.eventually(has_settled_both, 20)
        assert len(await entries()) == 1
        balance = await gateway.rest("GET", f"accounts/{account_id}/balance")
        assert int(balance["balance_nano_usd"]) == 10**9 - 2 * WHOLE_COST

    async def deliver_again(self, gateway: Gateway, record: UsageEvent) -> None:
        """Puts an event on the bus under another message id, so that the bus cannot tell that it is one."""
        data_dir = gateway.mesh.data_dir
        token = (data_dir / "secrets" / "nats").read_text().strip()
        port = json.loads((data_dir / "ports.json").read_text())["nats"]
        client = await bus.connect(f"nats://{token}@127.0.0.1:{port}", "conformance")
        try:
            for number in range(3):
                await bus.publish(
                    client.jetstream(),
                    f"again-{number}-{record.request_id}",
                    bus.subject_of(record),
                    record.SerializeToString(),
                )
        finally:
            await client.close()

    async def test_M12_a_turn_that_is_repeated_is_metered_twice(self, gateway: Gateway) -> None:
        provider = await gateway.default("A")
        error = streams.a_error("overloaded_error", "busy")
        provider.upstream.scripts = [
            stream([*begin("A"), *deltas("A", "some words "), error]),
            plain(plain_body("A")),
        ]
        session = "3f0a9d6e-4b1c-4f43-8f7e-0d6c8e1b2a3c"
        lines = [f"x-claude-code-session-id: {session}"]
        broken = await gateway.ask("A", provider, headers=lines, is_streaming=True)
        repeated = await gateway.ask("A", provider, headers=lines)
        assert broken.names[-1] == "error" and "message_stop" not in broken.names
        assert repeated.status == 200
        first, second = await broken.record(), await repeated.record()
        assert first.request_id != second.request_id
        assert first.session_id == second.session_id == session
        assert first.terminal == usage_pb2.TERMINAL_UPSTREAM_ERROR
        assert first.tokens.output > 0 and first.cost_nano_usd > 0
        assert counts(second) == (10, 1000, 100, 50)

    async def test_M13_many_counts_at_once_all_pass_and_cost_nothing(self, gateway: Gateway) -> None:
        provider = await gateway.default("A")
        provider.upstream.script = plain({"input_tokens": 17})
        told = await self.count_many(gateway, provider)
        assert {(found.status, found.json()["input_tokens"]) for found in told} == {(200, 17)}
        assert {request.target for request in provider.upstream.requests} == {self.COUNTING}

    @pytest.mark.parametrize("upstream", ["C", "R"])
    async def test_M13_counts_for_a_model_of_another_dialect(self, gateway: Gateway, upstream: str) -> None:
        provider = await gateway.default(upstream)
        answer = {"object": "response.input_tokens", "input_tokens": 17}
        provider.upstream.script = plain(answer)
        told = await self.count_many(gateway, provider)
        assert {found.status for found in told} == {200}
        assert all(found.json()["input_tokens"] > 0 for found in told)

    async def count_many(self, gateway: Gateway, provider: Provider) -> list[Any]:
        before = len(gateway.all_finals())
        body = json.dumps({"model": provider.model, "messages": [{"role": "user", "content": "hi"}]}).encode()
        told = await asyncio.gather(*(gateway.post(self.COUNTING, body) for _ in range(26)))
        await asyncio.sleep(0.2)
        assert len(gateway.all_finals()) == before
        return list(told)

    @pytest.mark.parametrize("status", ["incomplete", "failed"])
    @pytest.mark.parametrize("client", ["R", "A", "C"])
    async def test_M14_usage_of_unfinished_responses_is_metered(
        self, gateway: Gateway, client: str, status: str
    ) -> None:
        answer = streams.ResponsesStream()
        details: dict[str, Any] = {"incomplete_details": {"reason": "max_output_tokens"}}
        if status == "failed":
            details = {"error": {"code": "server_error", "message": "broken"}}
        events = [answer.start(), answer.text("hello"), answer.end(status, usage=R_USAGE, **details)]
        told = await gateway.given(client, "R", events=events)
        assert told.status == 200 and told.texts() == "hello"
        record = await told.record()
        assert counts(record) == (10, 1000, 100, 50)
        assert record.token_source == usage_pb2.TOKEN_SOURCE_PROVIDER
        expected = {"incomplete": usage_pb2.TERMINAL_INCOMPLETE, "failed": usage_pb2.TERMINAL_UPSTREAM_ERROR}
        assert record.terminal == expected[status]
