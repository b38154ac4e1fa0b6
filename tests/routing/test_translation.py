"""Calls that go to a provider of another dialect: the same money, the client's own words."""

import asyncio
import itertools

import pytest

from lurus.usage.v1 import usage_pb2
from tests.support.scripted_upstream import plain, stream

from .reading import (
    check_usage,
    error_in,
    events_in,
    headers_of,
    overloaded_event,
    provider_error,
    rate_limit_event,
    text_in,
    tokens_of,
    usage_in,
)
from .rig import (
    ALL_DIALECTS,
    ANTHROPIC,
    CHAT,
    COST,
    PATHS,
    RESPONSES,
    DialectValue,
    MakeRig,
    Rig,
    begin_events,
    end_events,
    events_of,
    in_process_only,
    plain_answer,
    plain_request,
    refusal,
    stream_request,
    text_event,
)

pytestmark = pytest.mark.anyio

DIRECTIONS = list(itertools.permutations(ALL_DIALECTS, 2))
NAMES = {ANTHROPIC: "A", CHAT: "C", RESPONSES: "R"}
both_ways = pytest.mark.parametrize(
    ("client", "provider"), DIRECTIONS, ids=[f"{NAMES[c]}-{NAMES[p]}" for c, p in DIRECTIONS]
)
TERMINALS = {
    ANTHROPIC: b"event: message_stop",
    CHAT: b"data: [DONE]",
    RESPONSES: b"event: response.completed",
}


@pytest.fixture
async def crossed(make_rig: MakeRig, client: DialectValue, provider: DialectValue) -> Rig:
    """A rig whose provider does not speak the client's dialect."""
    return await make_rig({"one": {"dialects": [provider]}})


@both_ways
class TestAnswers:
    async def test_a_plain_answer_is_translated_and_charged_exactly(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        crossed.upstream.script = plain(plain_answer(provider), headers={"request-id": "up-req"})
        answer = await crossed.relay(dialect=client)
        assert (answer.head.status, answer.head.is_streaming) == (200, False)
        assert text_in(client, answer) == "hello there"
        check_usage(client, usage_in(client, answer))
        headers = headers_of(answer)
        assert headers["content-type"] == b"application/json"
        assert headers["x-lurus-upstream-request-id"] == b"up-req"
        event = await crossed.event(answer.request_id)
        assert (event.tokens, event.cost_nano_usd) == (tokens_of(provider), COST)
        assert event.token_source == usage_pb2.TOKEN_SOURCE_PROVIDER
        assert event.terminal == usage_pb2.TERMINAL_COMPLETE
        assert (event.dialect, event.path) == (client, PATHS[client])
        assert (answer.end.tokens, answer.end.cost_nano_usd) == (event.tokens, COST)
        [request] = crossed.upstream.requests
        assert request.target == PATHS[provider]
        assert not request.json().get("stream")

    async def test_a_stream_is_translated_and_charged_exactly(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        crossed.upstream.script = stream(events_of(provider))
        options = {"stream_options": {"include_usage": True}} if client == CHAT else {}
        answer = await crossed.relay(stream_request(client, **options), client)
        assert answer.head.is_streaming
        assert text_in(client, answer) == "one two three"
        check_usage(client, usage_in(client, answer))
        assert TERMINALS[client] in answer.body.split(b"\n\n")[-2]
        event = await crossed.event(answer.request_id)
        assert (event.tokens, event.cost_nano_usd) == (tokens_of(provider), COST)
        assert event.token_source == usage_pb2.TOKEN_SOURCE_PROVIDER
        assert event.terminal == usage_pb2.TERMINAL_COMPLETE
        assert event.response_bytes == len(answer.body)
        assert crossed.upstream.requests[0].json()["stream"] is True

    @in_process_only
    async def test_chunk_boundaries_do_not_matter(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        whole = b"".join(events_of(provider, ("世界😀", "\u2028")))
        crossed.upstream.script = stream([whole[i : i + 1] for i in range(len(whole))])
        answer = await crossed.relay(stream_request(client), client)
        assert text_in(client, answer) == "世界😀\u2028"
        assert answer.end.tokens == tokens_of(provider)

    async def test_the_usage_row_is_durable_before_the_terminal_event(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        may_end = asyncio.Event()  # so that nothing but the terminal event tells of the end
        events, end = events_of(provider), end_events(provider)
        crossed.upstream.script = stream([*events[: -len(end)], 0.1, *end, may_end])
        call = crossed.start(crossed.request(stream_request(client), client))
        states = []
        async for response in call:
            if response.HasField("data"):
                # Another connection reads the file at the very moment of receipt.
                rows = crossed.rows()
                is_last = TERMINALS[client] in response.data
                states.append((is_last, [state for state, _ in rows.values()]))
                if is_last:
                    may_end.set()
        assert [state for is_last, [state] in states if is_last] in ([1], [2])
        assert {state for is_last, [state] in states if not is_last} == {0}

    @in_process_only
    async def test_the_first_event_does_not_wait_for_the_third(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        may_go_on = asyncio.Event()
        events = events_of(provider)
        crossed.upstream.script = stream([*events[:-4], may_go_on, *events[-4:]])
        call = crossed.start(crossed.request(stream_request(client), client))
        await call.read()
        assert (await asyncio.wait_for(call.read(), 15)).data
        may_go_on.set()
        rest = [response async for response in call]
        assert rest[-1].end.tokens == tokens_of(provider)

    @in_process_only
    async def test_a_stream_without_usage_is_estimated_and_shown_as_charged(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        if provider != CHAT:
            pytest.skip("only a chat provider may end in order without its counts")
        silent = [*begin_events(CHAT), text_event(CHAT, "x" * 400), end_events(CHAT)[0], end_events(CHAT)[-1]]
        crossed.upstream.script = stream(silent)
        answer = await crossed.relay(stream_request(client), client)
        event = await crossed.event(answer.request_id)
        assert event.token_source == usage_pb2.TOKEN_SOURCE_ESTIMATED
        assert event.tokens.output == 100
        assert event.tokens.input > 0
        usage = usage_in(client, answer)
        assert (usage["input_tokens"], usage["output_tokens"]) == (event.tokens.input, event.tokens.output)


@both_ways
@in_process_only
class TestWaiting:
    async def test_a_silent_provider_is_covered_by_heartbeats(
        self, make_rig: MakeRig, client: DialectValue, provider: DialectValue
    ) -> None:
        rig = await make_rig({"one": {"dialects": [provider]}}, heartbeat_seconds=0.05)
        events = events_of(provider)
        rig.upstream.script = stream([*events[:-3], 0.3, *events[-3:]])
        answer = await rig.relay(stream_request(client), client)
        assert text_in(client, answer) == "one two three"
        if client == ANTHROPIC:
            assert answer.body.count(b"event: ping") >= 2
        elif client == CHAT:
            assert answer.body.count(b": keepalive\n\n") >= 2
        else:
            assert answer.body.count(b"event: keepalive\n") >= 2
            numbers = [data["sequence_number"] for _, data in events_in(answer.body)]
            assert numbers == list(range(len(numbers)))

    async def test_comments_of_a_provider_that_thinks_keep_the_client(
        self, make_rig: MakeRig, client: DialectValue, provider: DialectValue
    ) -> None:
        rig = await make_rig({"one": {"dialects": [provider]}}, upstream_first_event_seconds=0.3)
        rig.upstream.script = stream([b": processing\n\n", 0.2, b": still\n\n", 0.3, *events_of(provider)])
        answer = await rig.relay(stream_request(client), client)
        assert text_in(client, answer) == "one two three"
        assert b"processing" not in answer.body

    async def test_a_client_that_leaves_pays_for_what_it_got(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        begin = [*begin_events(provider), text_event(provider, "x" * 400)]
        crossed.upstream.script = stream([*begin, asyncio.Event()])
        call = crossed.start(crossed.request(stream_request(client), client))
        async for response in call:
            if b"xxx" in response.data:
                break
        call.cancel()
        event = await crossed.only_event()
        assert event.terminal == usage_pb2.TERMINAL_CLIENT_GONE
        assert event.tokens.output == 100
        assert event.tokens.input > 0
        await asyncio.wait_for(crossed.upstream.requests[0].gone.wait(), 15)

    async def test_a_large_request_is_translated_too(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        crossed.upstream.script = plain(plain_answer(provider))
        name = "input" if client == RESPONSES else "messages"
        body = plain_request(client)
        body[name] = [{"role": "user", "content": "y" * 2_000_000}]
        assert text_in(client, await crossed.relay(body, client)) == "hello there"
        assert crossed.upstream.requests[0].body.count(b"y" * 2_000_000) == 1


@both_ways
@in_process_only
class TestFailures:
    async def test_a_cut_stream_ends_in_the_clients_error_and_is_charged_as_far_as_it_came(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        crossed.upstream.script = stream([*begin_events(provider), text_event(provider, "x" * 400)])
        answer = await crossed.relay(stream_request(client), client)
        assert TERMINALS[client] not in answer.body
        name, data = events_in(answer.body)[-1]
        if client == ANTHROPIC:
            assert (name, data["error"]["type"]) == ("error", "api_error")
        elif client == CHAT:
            assert data["error"]["type"] == "server_error"
        else:
            assert (name, data["response"]["error"]["code"]) == ("response.failed", "server_error")
        event = await crossed.event(answer.request_id)
        assert (event.terminal, event.error_reason) == (usage_pb2.TERMINAL_TRUNCATED, "UPSTREAM_CUT")
        assert event.tokens.output == 100

    async def test_an_error_amid_the_answer_is_told_in_the_clients_words(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        crossed.upstream.script = stream(
            [*begin_events(provider), text_event(provider, "so far"), overloaded_event(provider)]
        )
        answer = await crossed.relay(stream_request(client), client)
        assert TERMINALS[client] not in answer.body
        assert text_in(client, answer) == "so far"
        name, data = events_in(answer.body)[-1]
        if client == ANTHROPIC:
            assert (name, data["error"]["type"]) == ("error", "overloaded_error")
        elif client == CHAT:
            assert data["error"]["code"] == "server_is_overloaded"
        else:
            assert (name, data["response"]["error"]["code"]) == ("response.failed", "server_error")
        event = await crossed.event(answer.request_id)
        assert event.terminal == usage_pb2.TERMINAL_UPSTREAM_ERROR

    async def test_an_error_before_content_is_an_answer_without_a_stream(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        crossed.upstream.script = stream([rate_limit_event(provider)])
        answer = await crossed.relay(stream_request(client), client)
        assert (answer.head.status, answer.head.is_streaming) == (429, False)
        kind = error_in(answer)["type"]
        assert kind == ("rate_limit_error" if client == ANTHROPIC else "rate_limit_exceeded")
        assert (await crossed.event(answer.request_id)).cost_nano_usd == 0

    async def test_an_empty_stream_is_no_answer(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        crossed.upstream.script = stream([])
        error = await refusal(crossed.relay(stream_request(client), client))
        assert error.reason == "UPSTREAM_FAILED"

    async def test_a_refused_credential_is_not_the_clients(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        crossed.upstream.script = plain(
            provider_error(provider, "authentication_error", "key sk-1 is bad"), 401
        )
        answer = await crossed.relay(dialect=client)
        assert answer.head.status == 502
        assert b"sk-1" not in answer.body

    async def test_a_refusal_of_the_request_keeps_its_words(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        crossed.upstream.script = plain(
            provider_error(provider, "invalid_request_error", "no such tool: x"), 422
        )
        answer = await crossed.relay(dialect=client)
        assert answer.head.status == 400
        assert error_in(answer)["type"] == "invalid_request_error"
        assert "no such tool: x" in error_in(answer)["message"]

    async def test_a_prompt_that_is_too_long_is_told_so_that_the_client_compacts(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        words = (
            "prompt is too long: 130500 tokens > 128000 maximum"
            if provider == ANTHROPIC
            else "This model's maximum context length is 128000 tokens. Your messages resulted in 130500."
        )
        crossed.upstream.script = plain(provider_error(provider, "invalid_request_error", words), 400)
        answer = await crossed.relay(dialect=client)
        assert answer.head.status == 400
        error = error_in(answer)
        if client == ANTHROPIC:
            assert error["message"] == "prompt is too long: 130500 tokens > 128000 maximum"
        else:
            assert error["code"] == "context_length_exceeded"

    async def test_a_throttled_request_may_come_again_when_the_provider_says(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        body = provider_error(provider, "rate_limit_error", "organization org-secret is out of tokens")
        crossed.upstream.script = plain(body, 429, headers={"retry-after": "7"})
        answer = await crossed.relay(dialect=client)
        assert answer.head.status == 429
        assert b"org-secret" not in answer.body
        assert headers_of(answer)["retry-after"] == b"7"

    async def test_what_is_no_answer_is_not_shown(
        self, crossed: Rig, client: DialectValue, provider: DialectValue
    ) -> None:
        crossed.upstream.script = plain("<html>oops</html>", headers={"content-type": "text/html"})
        answer = await crossed.relay(dialect=client)
        assert answer.head.status == 502
        assert b"oops" not in answer.body
