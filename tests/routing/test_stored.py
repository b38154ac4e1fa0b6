"""Endpoints that are passed on: stored answers, compaction, OpenAI's older API, batches; and who pays."""

import asyncio
import re
from typing import Any

import msgspec
import pytest

from lurus.provider.v1 import provider_pb2
from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_dialects.endpoints import Kind
from lurus_routing import collector, debts
from tests.support.scripted_upstream import Exchange, plain, stream

from .rig import (
    CHAT,
    COST,
    RESPONSES,
    chat_usage,
    events_of,
    plain_answer,
    plain_request,
    responses_usage,
    until,
)
from .test_affinity import eventually
from .workers import Worker, Workers

pytestmark = pytest.mark.anyio

THREE = {"credentials": ("a", "b", "c")}
STORED = "/v1/responses/resp_1"
BATCHES = "/v1/messages/batches"
_WORDS = (
    b'"message":"Response with id \'%b\' not found.","type":"invalid_request_error","param":null,"code":null'
)
NOT_FOUND = b'{"error":{' + _WORDS + b"}}"


def queued(status: str = "queued", **fields: Any) -> dict[str, Any]:
    """A background answer that goes on."""
    return {"id": "resp_1", "object": "response", "status": status, "output": [], "usage": None, **fields}


async def two(workers: Workers) -> tuple[Worker, Worker]:
    return await workers.start("w1"), await workers.start("w2")


def charged(*workers: Worker) -> list[UsageEvent]:
    """Events that cost something."""
    return [event for worker in workers for event in worker.finals() if event.cost_nano_usd]


class TestStoredAnswers:
    @pytest.mark.parametrize("prefix", ["/v1", ""])
    async def test_each_endpoint_reaches_the_holder_from_any_worker(
        self, workers: Workers, prefix: str
    ) -> None:
        workers.rig.use(one=THREE)
        workers.rig.upstream.script = plain(plain_answer(RESPONSES))
        first, second = await two(workers)
        await first.post("/v1/responses", plain_request(RESPONSES))
        holder = workers.credentials_asked()[0]
        await eventually(lambda: workers.has_keys(2))
        answers = {
            ("GET", "", "include=reasoning.encrypted_content"): plain_answer(RESPONSES),
            (
                "GET",
                "/input_items",
                "limit=2&order=asc",
            ): b'{"object":"list","data":[{"id":"i1"}] ,"has_more":false}',
            ("POST", "/cancel", ""): plain_answer(RESPONSES),
            ("DELETE", "", ""): b'{"id":"resp_1", "object":"response","deleted":true}',
        }
        for (method, rest, query), body in answers.items():
            for worker in (first, second):
                workers.rig.upstream.script = plain(body)
                target = f"/responses/resp_1{rest}" + (f"?{query}" if query else "")
                told = await worker.ask(method, prefix + target, openai_beta="x")
                assert (told.status, told.body) == (200, body)
                received = workers.rig.upstream.requests[-1]
                assert (received.method, received.target) == (method, "/v1" + target)
                assert (received.body, received.header("openai-beta")) == (b"", "x")
        assert set(workers.credentials_asked()) == {holder}
        # Only the making of the answer costs anything.
        assert [event.cost_nano_usd for event in charged(first, second)] == [COST]

    async def test_a_resumed_stream_is_relayed_and_not_charged_again(self, workers: Workers) -> None:
        workers.rig.use(one=THREE)
        events = events_of(RESPONSES)
        workers.rig.upstream.script = stream(events)
        first, second = await two(workers)
        made = await first.post("/v1/responses", plain_request(RESPONSES, stream=True))
        assert made.body == b"".join(events)
        await eventually(lambda: workers.has_keys(2))
        workers.rig.upstream.script = stream(events[3:])
        told = await second.get(f"{STORED}?stream=true&starting_after=3")
        assert told.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert told.body == b"".join(events[3:])
        assert workers.rig.upstream.requests[-1].target == f"{STORED}?stream=true&starting_after=3"
        # One that is cut ends with an error, like any stream.
        workers.rig.upstream.script = stream(events[3:4], is_ended=False)
        assert b"event: response.failed" in (await second.get(f"{STORED}?stream=true")).body
        await until(lambda: len(second.finals()) == 2)
        assert [event.cost_nano_usd for event in charged(first, second)] == [COST]
        assert {event.token_source for event in second.finals()} == {usage_pb2.TOKEN_SOURCE_UNSPECIFIED}

    async def test_an_unknown_one_and_another_accounts_are_not_found_in_the_same_words(
        self, workers: Workers
    ) -> None:
        workers.rig.use(one=THREE)
        workers.rig.upstream.script = plain(plain_answer(RESPONSES))
        first, second = await two(workers)
        await first.post("/v1/responses", plain_request(RESPONSES))
        await eventually(lambda: workers.has_keys(2))
        calls = [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")]
        for method, rest in calls:
            told = await first.ask(method, f"/v1/responses/resp_2{rest}")
            assert (told.status, told.body) == (404, NOT_FOUND % b"resp_2")
        workers.rig.key = workers.rig.billing.add_key()
        for worker in (first, second):
            await worker.until_known()
            for method, rest in calls:
                told = await worker.ask(method, STORED + rest)
                assert (told.status, told.body) == (404, NOT_FOUND % b"resp_1")
        assert len(workers.rig.upstream.requests) == 1
        told = await first.ask("GET", STORED, authorization="Bearer lsk_nobody")
        assert told.status == 401

    async def test_nobody_else_is_asked_when_the_holder_fails_or_is_gone(self, workers: Workers) -> None:
        workers.rig.use(one={}, two={"level": 2})
        workers.rig.upstream.script = plain(plain_answer(RESPONSES))
        first = await workers.start("w1")
        await first.post("/v1/responses", plain_request(RESPONSES))
        error = (
            b'{"error":{"message":"No such thing.","type":"invalid_request_error","param":null,"code":null}}'
        )
        workers.rig.upstream.script = plain(error, 404)
        told = await first.get(STORED)
        assert (told.status, told.body) == (404, error)
        workers.rig.upstream.script = plain("broken", 500)
        assert (await first.get(STORED)).status == 500
        workers.rig.provider.tell(deleted_provider_ids=["one"])

        async def is_gone() -> bool:
            return (await first.get(STORED)).body == NOT_FOUND % b"resp_1"

        await eventually(is_gone)
        assert workers.rig.other.requests == []


class TestBackground:
    """The request that begins one is told no usage: it is charged when that is known, once."""

    @pytest.fixture(autouse=True)
    def patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The worker itself does not ask within a test, unless the test says so."""
        monkeypatch.setattr(collector, "FIRST_WAIT_SECONDS", 3600.0)

    async def begin(self, workers: Workers, worker: Worker, **fields: Any) -> UsageEvent:
        workers.rig.upstream.script = plain(queued())
        body = plain_request(RESPONSES, background=True, **fields)
        assert (await worker.post("/v1/responses", body)).json["status"] == "queued"
        [event] = await until(worker.finals)
        assert (event.cost_nano_usd, event.token_source) == (0, usage_pb2.TOKEN_SOURCE_UNSPECIFIED)
        return event

    async def test_whoever_sees_the_usage_charges_and_repeats_do_nothing(self, workers: Workers) -> None:
        workers.rig.use(one=THREE)
        first, second = await two(workers)
        begun = await self.begin(workers, first)
        await eventually(lambda: workers.has_keys(2))
        workers.rig.upstream.script = plain(queued("in_progress"))
        assert (await first.get(STORED)).status == (await second.get(STORED)).status == 200
        assert charged(first, second) == []
        workers.rig.upstream.script = plain(plain_answer(RESPONSES))
        await asyncio.gather(*[worker.get(STORED) for worker in (first, second) for _ in range(5)])
        workers.rig.upstream.script = stream(events_of(RESPONSES))
        await second.get(f"{STORED}?stream=true")
        in_first, in_second = charged(first), charged(second)
        # Each worker at most one, and both the very same: the ledger takes an id once.
        assert [len(in_first), len(in_second)] == [1, 1]
        assert in_first == in_second
        event = in_first[0]
        assert event.request_id == debts.charge_id(begun.request_id) != begun.request_id
        assert (event.account_id, event.key_id) == (begun.account_id, begun.key_id)
        assert (event.cost_nano_usd, event.token_source) == (COST, usage_pb2.TOKEN_SOURCE_PROVIDER)
        assert (event.tokens.input, event.tokens.cache_read, event.tokens.output) == (10, 1000, 50)
        assert (event.model, event.event_time) == ("m-1", begun.start_time)

    async def test_a_stream_that_is_left_is_charged_when_it_is_resumed(self, workers: Workers) -> None:
        workers.rig.use(one=THREE)
        first = await workers.start("w1")
        events = events_of(RESPONSES)
        workers.rig.upstream.script = stream(events[:3], is_ended=False)
        body = plain_request(RESPONSES, background=True, stream=True)
        await first.post("/v1/responses", body)
        await until(first.finals)
        assert charged(first) == []
        workers.rig.upstream.script = stream(events[3:])
        await first.get(f"{STORED}?stream=true&starting_after=2")
        assert [event.cost_nano_usd for event in charged(first)] == [COST]

    async def test_a_stream_seen_to_its_end_is_charged_there_and_nowhere_else(self, workers: Workers) -> None:
        workers.rig.use(one=THREE)
        first, second = await two(workers)
        workers.rig.upstream.script = stream(events_of(RESPONSES))
        told = await first.post("/v1/responses", plain_request(RESPONSES, background=True, stream=True))
        await eventually(lambda: workers.has_keys(2))
        workers.rig.upstream.script = plain(plain_answer(RESPONSES))
        for worker in (first, second):
            await worker.get(STORED)
        [event] = charged(first, second)
        assert (event.request_id, event.cost_nano_usd) == (told.headers["x-request-id"], COST)

    async def test_the_worker_itself_collects_what_nobody_comes_back_for(
        self, workers: Workers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(collector, "FIRST_WAIT_SECONDS", 0.02)
        workers.rig.use(one=THREE)
        first = await workers.start("w1")
        workers.rig.upstream.scripts = [plain(queued()), plain(queued("in_progress")), plain("", 500)]
        workers.rig.upstream.script = plain(plain_answer(RESPONSES))
        await first.post("/v1/responses", plain_request(RESPONSES, background=True))
        [event] = await until(lambda: charged(first))
        assert event.cost_nano_usd == COST
        assert len(set(workers.credentials_asked())) == 1
        count = len(workers.rig.upstream.requests)
        await first.get(STORED)
        assert len(workers.rig.upstream.requests) == count + 1
        assert len(charged(first)) == 1

    async def test_what_is_deleted_is_charged_first(self, workers: Workers) -> None:
        workers.rig.use(one=THREE)
        first = await workers.start("w1")
        begun = await self.begin(workers, first, instructions="x" * 4000)
        workers.rig.upstream.scripts = [
            plain(queued("in_progress")),
            plain({"id": "resp_1", "deleted": True}),
        ]
        assert (await first.ask("DELETE", STORED)).status == 200
        [event] = charged(first)
        assert event.request_id == debts.charge_id(begun.request_id)
        assert event.token_source == usage_pb2.TOKEN_SOURCE_ESTIMATED
        assert event.tokens.input > 1000

    async def test_a_cancelled_one_is_charged_what_it_states(self, workers: Workers) -> None:
        workers.rig.use(one=THREE)
        first = await workers.start("w1")
        await self.begin(workers, first)
        workers.rig.upstream.script = plain(queued("cancelled", usage=responses_usage()))
        for _ in range(2):
            await first.post(f"{STORED}/cancel")
        assert [event.cost_nano_usd for event in charged(first)] == [COST]

    def test_the_id_of_a_charge_has_the_shape_of_a_request_id(self) -> None:
        begun = "req_01M83MBKMC0NJZ315935GZS2M0"
        assert re.fullmatch(r"req_01M83MBKMC[0-9A-HJKMNP-TV-Z]{16}", debts.charge_id(begun))
        assert debts.charge_id(begun) == debts.charge_id(begun) != debts.charge_id(begun[:-1] + "1")


class TestCompact:
    async def test_it_is_metered_to_the_token(self, workers: Workers) -> None:
        workers.rig.use(
            one={"model_mappings": [provider_pb2.ModelMapping(model="m-1", upstream_model="up-1")]}
        )
        worker = await workers.start("w1")
        answer = {
            "id": "resp_9",
            "object": "response.compaction",
            "output": [{"type": "compaction", "encrypted_content": "x"}],
            "usage": responses_usage(),
        }
        workers.rig.upstream.script = plain(answer)
        told = await worker.post("/v1/responses/compact", plain_request(RESPONSES, instructions="be brief"))
        assert told.json == answer
        received = workers.rig.upstream.requests[0]
        assert (received.target, received.json()["model"]) == ("/v1/responses/compact", "up-1")
        [event] = await until(worker.finals)
        assert (event.path, event.cost_nano_usd) == ("/v1/responses/compact", COST)
        assert (event.tokens.input, event.tokens.cache_read, event.tokens.cache_write_30m) == (10, 1000, 100)
        assert (event.tokens.output, event.token_source) == (50, usage_pb2.TOKEN_SOURCE_PROVIDER)

    async def test_it_is_never_translated(self, workers: Workers) -> None:
        workers.rig.use(one={"dialects": [CHAT]})
        worker = await workers.start("w1")
        told = await worker.post("/v1/responses/compact", plain_request(RESPONSES))
        assert (told.status, told.json["error"]["code"]) == (404, "model_not_found")
        assert workers.rig.upstream.requests == []


EXTRAS = [provider_pb2.EXTRA_ENDPOINT_COMPLETIONS, provider_pb2.EXTRA_ENDPOINT_EMBEDDINGS]


class TestOlderEndpoints:
    async def test_completions_are_metered_to_the_token(self, workers: Workers) -> None:
        workers.rig.use(one={"extra_endpoints": EXTRAS})
        worker = await workers.start("w1")
        choice = {"index": 0, "text": "abc", "finish_reason": "stop", "logprobs": None}
        answer = {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": chat_usage()}
        workers.rig.upstream.script = plain(answer)
        told = await worker.post("/v1/completions", {"model": "m-1", "prompt": ["a", 1.0], "max_tokens": 9})
        assert told.json == answer
        assert workers.rig.upstream.requests[0].body == b'{"model":"m-1","prompt":["a",1.0],"max_tokens":9}'
        [event] = await until(worker.finals)
        assert (event.path, event.cost_nano_usd, event.tokens.output) == ("/v1/completions", COST, 50)

    async def test_a_streamed_completion_is_relayed_and_metered(self, workers: Workers) -> None:
        workers.rig.use(one={"extra_endpoints": EXTRAS})
        worker = await workers.start("w1")
        texts = [
            b'data: {"id":"cmpl-1","choices":[{"index":0,"text":"%d","finish_reason":null}]}\n\n' % n
            for n in range(3)
        ]
        end = b'data: {"id":"cmpl-1","choices":[{"index":0,"text":"","finish_reason":"stop"}]}\n\n'
        usage = b'data: {"id":"cmpl-1","choices":[],"usage":%b}\n\n' % msgspec.json.encode(chat_usage())
        done = b"data: [DONE]\n\n"
        workers.rig.upstream.script = stream([*texts, end, usage, done])
        told = await worker.post("/completions", {"model": "m-1", "prompt": "a", "stream": True})
        assert told.body == b"".join([*texts, end, done])
        [event] = await until(worker.finals)
        assert (event.is_streaming, event.cost_nano_usd) == (True, COST)

    async def test_embeddings_are_metered_to_the_token(self, workers: Workers) -> None:
        workers.rig.use(one={"extra_endpoints": EXTRAS})
        worker = await workers.start("w1")
        vectors = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.10,-2e-3]}],'
        answer = vectors + b'"model":"up-1","usage":{"prompt_tokens":8,"total_tokens":8}}'
        workers.rig.upstream.script = plain(answer)
        told = await worker.post("/embeddings", {"model": "m-1", "input": ["a", "b"]})
        assert (told.status, told.body) == (200, answer)
        assert workers.rig.upstream.requests[0].target == "/v1/embeddings"
        [event] = await until(worker.finals)
        assert (event.tokens.input, event.tokens.output, event.cost_nano_usd) == (8, 0, 8 * 1000)
        assert (event.token_source, event.path) == (usage_pb2.TOKEN_SOURCE_PROVIDER, "/v1/embeddings")

    @pytest.mark.parametrize("kind", [Kind.COMPLETIONS, Kind.EMBEDDINGS])
    @pytest.mark.parametrize(
        "fields", [{}, {"dialects": [RESPONSES], "extra_endpoints": EXTRAS}, "the other"]
    )
    async def test_who_is_not_set_up_for_it_is_not_asked(
        self, workers: Workers, kind: Kind, fields: Any
    ) -> None:
        if fields == "the other":
            fields = {"extra_endpoints": [EXTRAS[kind is Kind.COMPLETIONS]]}
        workers.rig.use(one=fields)
        worker = await workers.start("w1")
        told = await worker.post(f"/v1/{kind}", {"model": "m-1", "prompt": "a", "input": "a"})
        assert (told.status, told.json["error"]["code"]) == (404, "model_not_found")
        assert workers.rig.upstream.requests == []


class TestBatches:
    async def start(self, workers: Workers, **others: Any) -> Worker:
        batches = {"credentials": ("a", "b"), "batch_account_ids": [workers.rig.account_id]}
        workers.rig.use(one=batches, **others)
        return await workers.start("w1")

    async def test_all_of_it_passes_for_an_account_that_is_named(self, workers: Workers) -> None:
        worker = await self.start(workers, two={})
        url = "https://api.example.com/proxy/v1/messages/batches/msgbatch_1/results"
        batch = b'{"id":"msgbatch_1","type":"message_batch", "results_url": "%b"}'
        workers.rig.upstream.script = plain(batch % url.encode())
        body = {"requests": [{"custom_id": "x", "params": {"model": "m-9", "max_tokens": 1, "messages": []}}]}
        made = await worker.post(BATCHES, body, anthropic_beta="b-1")
        # Clients follow it with the key that we have given them.
        assert made.body == batch % b"/v1/messages/batches/msgbatch_1/results"
        received = workers.rig.upstream.requests[0]
        assert (received.json(), received.header("anthropic-beta")) == (body, "b-1")
        for method, rest in (
            ("GET", "?limit=2"),
            ("GET", "/msgbatch_1"),
            ("POST", "/msgbatch_1/cancel"),
            ("DELETE", "/msgbatch_1"),
        ):
            told = await worker.ask(method, BATCHES + rest)
            received = workers.rig.upstream.requests[-1]
            assert (told.status, received.method, received.target) == (200, method, BATCHES + rest)
        assert set(workers.credentials_asked()) == {"a"}
        assert workers.rig.other.requests == []
        assert charged(worker) == []

    async def test_results_of_any_size_pass_as_they_come(self, workers: Workers) -> None:
        worker = await self.start(workers)
        line = b'{"custom_id":"x","result":{"type":"succeeded","message":{"usage":{"output_tokens":5}}}}\n'

        async def script(exchange: Exchange) -> None:
            await exchange.send_stream_head(headers={"content-type": "application/x-jsonl"})
            for _ in range(20):
                await exchange.send_chunk(line * 1000)
            await exchange.end_chunks()

        workers.rig.upstream.script = script
        told = await worker.get(f"{BATCHES}/msgbatch_1/results")
        assert (told.status, told.body) == (200, line * 20_000)
        assert told.headers["content-type"] == "application/x-jsonl"
        assert charged(worker) == []

    async def test_nobody_has_them_who_is_not_named_once(self, workers: Workers) -> None:
        worker = await self.start(workers, two={"batch_account_ids": [workers.rig.account_id]})
        told = await worker.post(BATCHES, {})
        assert (told.status, told.json["error"]["type"]) == (404, "not_found_error")
        workers.rig.provider.tell(deleted_provider_ids=["two"])

        async def is_open() -> bool:
            return (await worker.get(BATCHES)).status == 200

        await eventually(is_open)
        count = len(workers.rig.upstream.requests)
        named_key = workers.rig.key
        workers.rig.key = workers.rig.billing.add_key()
        await worker.until_known()
        assert (await worker.post(BATCHES, {})).status == 404
        grant = workers.rig.billing.grant_of(named_key)
        workers.rig.key = workers.rig.billing.add_key(account_id=grant.account_id, allowed_models=["m-1"])
        await worker.until_known()
        told = await worker.post(BATCHES, {})
        assert (told.status, told.json["error"]["type"]) == (403, "permission_error")
        assert len(workers.rig.upstream.requests) == count
