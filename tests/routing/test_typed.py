"""StreamChat, CompleteChat and CountTokens: for teams, over whatever dialect a provider speaks."""

import asyncio
from typing import Any

import grpc.aio
import msgspec
import pytest

from lurus.billing.v1.billing_pb2 import RateLimits
from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import StreamChatRequest, StreamChatResponse
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import (
    ContextTooLong,
    InvalidRequest,
    KeyInvalid,
    ModelForbidden,
    RateLimited,
    Untranslatable,
    UpstreamCredentialRejected,
)
from lurus_common.rpc import error_of
from lurus_routing import metrics
from tests.support.scripted_upstream import plain, stream

from .reading import overloaded_event, provider_error, rate_limit_event, tokens_of
from .rig import (
    ALL_DIALECTS,
    ANTHROPIC,
    CHAT,
    COST,
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
    text_event,
)

pytestmark = pytest.mark.anyio

of_all_dialects = pytest.mark.parametrize("provider", ALL_DIALECTS, ids=["A", "C", "R"])


def chat(text: str = "hi", **more: Any) -> StreamChatRequest:
    """A small typed request."""
    message = chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_USER, blocks=[chat_pb2.ChatBlock(text=text)])
    return StreamChatRequest(model="m-1", messages=[message], **more)


def metadata(rig: Rig) -> tuple[tuple[str, str], ...]:
    """What a caller presents."""
    return (("authorization", f"Bearer {rig.key}"),)


async def streamed(rig: Rig, request: StreamChatRequest) -> list[StreamChatResponse]:
    """Calls StreamChat; returns its events, raises as the service did."""
    try:
        return [event async for event in rig.stub.StreamChat(request, metadata=metadata(rig))]
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


async def completed(rig: Rig, request: StreamChatRequest) -> chat_pb2.CompleteChatResponse:
    """The same of CompleteChat."""
    try:
        wrapped = chat_pb2.CompleteChatRequest(request=request)
        return await rig.stub.CompleteChat(wrapped, metadata=metadata(rig))
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


async def counted(rig: Rig, request: StreamChatRequest) -> chat_pb2.CountTokensResponse:
    """The same of CountTokens."""
    try:
        wrapped = chat_pb2.CountTokensRequest(request=request)
        return await rig.stub.CountTokens(wrapped, metadata=metadata(rig))
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


def check_receipt(receipt: chat_pb2.ChatReceipt, event: usage_pb2.UsageEvent) -> None:
    """Checks that a caller is told what is in the ledger."""
    for name in ("request_id", "cost_nano_usd", "tokens", "token_source", "terminal"):
        assert getattr(receipt, name) == getattr(event, name), name
    assert (receipt.provider_id, receipt.upstream_model) == ("one", "m-1")
    assert receipt.attempt_count == len(event.attempts) == 1


@of_all_dialects
class TestChat:
    async def test_a_stream_of_any_provider_comes_as_events(
        self, make_rig: MakeRig, provider: DialectValue
    ) -> None:
        rig = await make_rig({"one": {"dialects": [provider]}})
        rig.upstream.script = stream(events_of(provider))
        events = await streamed(rig, chat())
        kinds = [event.WhichOneof("event") for event in events]
        assert (kinds[0], kinds[-2:]) == ("start", ["finish", "receipt"])
        assert "".join(event.text_delta for event in events) == "one two three"
        finish = events[-2].finish
        assert (finish.tokens, finish.has_provider_tokens) == (tokens_of(provider), True)
        assert finish.kind == chat_pb2.CHAT_STOP_KIND_END_TURN
        start = events[0].start
        assert start.provider_id == "one"
        event = await rig.event(start.request_id)
        assert (event.tokens, event.cost_nano_usd) == (tokens_of(provider), COST)
        check_receipt(events[-1].receipt, event)
        assert event.path == "/lurus.routing.v1.RoutingService/StreamChat"
        assert (event.is_streaming, event.terminal) == (True, usage_pb2.TERMINAL_COMPLETE)

    async def test_the_usage_row_is_durable_before_the_finish(
        self, make_rig: MakeRig, provider: DialectValue
    ) -> None:
        rig = await make_rig({"one": {"dialects": [provider]}})
        may_end = asyncio.Event()
        events, end = events_of(provider), end_events(provider)
        rig.upstream.script = stream([*events[: -len(end)], 0.1, *end, may_end])
        states = []
        async for event in rig.stub.StreamChat(chat(), metadata=metadata(rig)):
            if event.HasField("text_delta") or event.HasField("finish"):
                states.append((event.HasField("finish"), [state for state, _ in rig.rows().values()]))
            if event.HasField("finish"):
                may_end.set()
        assert [state for is_last, [state] in states if is_last] in ([1], [2])
        assert {state for is_last, [state] in states if not is_last} == {0}

    async def test_a_whole_answer_comes_with_its_receipt(
        self, make_rig: MakeRig, provider: DialectValue
    ) -> None:
        rig = await make_rig({"one": {"dialects": [provider]}})
        rig.upstream.script = plain(plain_answer(provider))
        answer = await completed(rig, chat())
        assert [block.text for block in answer.blocks] == ["hello there"]
        assert (answer.finish.tokens, answer.cost_nano_usd) == (tokens_of(provider), COST)
        assert answer.provider_id == "one"
        event = await rig.event(answer.request_id)
        assert (event.cost_nano_usd, event.is_streaming) == (COST, False)
        check_receipt(answer.receipt, event)

    @in_process_only
    async def test_a_cut_stream_ends_in_an_error_event(
        self, make_rig: MakeRig, provider: DialectValue
    ) -> None:
        rig = await make_rig({"one": {"dialects": [provider]}})
        rig.upstream.script = stream([*begin_events(provider), text_event(provider, "so far")])
        events = await streamed(rig, chat())
        assert events[-2].error.reason == "UPSTREAM_CUT"
        event = await rig.event(events[0].start.request_id)
        assert event.terminal == usage_pb2.TERMINAL_TRUNCATED
        check_receipt(events[-1].receipt, event)

    @in_process_only
    async def test_an_error_amid_the_answer_is_an_event(
        self, make_rig: MakeRig, provider: DialectValue
    ) -> None:
        rig = await make_rig({"one": {"dialects": [provider]}})
        broken = [*begin_events(provider), text_event(provider, "so far"), overloaded_event(provider)]
        rig.upstream.script = stream(broken)
        events = await streamed(rig, chat())
        assert events[-2].error.reason == "OVERLOADED"

    @in_process_only
    async def test_an_error_before_content_is_a_status(
        self, make_rig: MakeRig, provider: DialectValue
    ) -> None:
        rig = await make_rig({"one": {"dialects": [provider]}})
        rig.upstream.script = stream([rate_limit_event(provider)])
        assert isinstance(await refusal(streamed(rig, chat())), RateLimited)

    @in_process_only
    async def test_what_a_provider_answers_is_an_error_of_its_type(
        self, make_rig: MakeRig, provider: DialectValue
    ) -> None:
        rig = await make_rig({"one": {"dialects": [provider]}})
        words = "prompt is too long: 5 tokens > 4 maximum"
        rig.upstream.script = plain(provider_error(provider, "invalid_request_error", words), 400)
        error = await refusal(completed(rig, chat()))
        assert (type(error), error.metadata["maximum"]) == (ContextTooLong, "4")
        rig.upstream.script = plain(provider_error(provider, "authentication_error", "no"), 401)
        assert isinstance(await refusal(completed(rig, chat())), UpstreamCredentialRejected)


class TestCallers:
    async def test_they_present_a_key(self, rig: Rig) -> None:
        rig.key = "lsk_wrong"
        for call in (streamed, completed, counted):
            assert isinstance(await refusal(call(rig, chat())), KeyInvalid)
        assert rig.upstream.requests == []

    async def test_a_key_may_not_use_every_model(self, rig: Rig) -> None:
        rig.key = rig.billing.add_key(allowed_models=["other"])
        for call in (streamed, completed, counted):
            assert isinstance(await refusal(call(rig, chat())), ModelForbidden)

    async def test_who_leaves_ends_the_call_and_pays_what_was_used(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [ANTHROPIC]}})
        begin = [*begin_events(ANTHROPIC), text_event(ANTHROPIC, "x" * 400)]
        rig.upstream.script = stream([*begin, asyncio.Event()])
        call = rig.stub.StreamChat(chat(), metadata=metadata(rig))
        async for event in call:
            if event.HasField("text_delta"):
                break
        call.cancel()
        event = await rig.only_event()
        assert event.terminal == usage_pb2.TERMINAL_CLIENT_GONE
        assert (event.tokens.input, event.tokens.output) == (10, 100)
        await asyncio.wait_for(rig.upstream.requests[0].gone.wait(), 15)

    @in_process_only
    @pytest.mark.parametrize(
        "broken",
        [
            {"tools": [chat_pb2.ChatTool(name="t", schema=b'{}},"model":"dear"')]},
            {"vendor_fields": [chat_pb2.ChatVendorField(dialect=RESPONSES, name="x", json=b"{")]},
            {"vendor_fields": [chat_pb2.ChatVendorField(dialect=RESPONSES, name="model", json=b'"dear"')]},
            {"output_format": chat_pb2.ChatOutputFormat(kind=3, schema=b"1 1")},
        ],
    )
    async def test_json_that_is_none_reaches_no_provider(
        self, make_rig: MakeRig, broken: dict[str, Any]
    ) -> None:
        rig = await make_rig({"one": {"dialects": [RESPONSES]}})
        assert isinstance(await refusal(streamed(rig, chat(**broken))), InvalidRequest)
        assert rig.upstream.requests == []

    @in_process_only
    async def test_what_cannot_be_said_is_refused(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [RESPONSES]}})
        assert isinstance(await refusal(streamed(rig, chat(stop_sequences=["X"]))), Untranslatable)

    @in_process_only
    async def test_lost_fields_are_named(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [RESPONSES]}})
        rig.upstream.script = plain(plain_answer(RESPONSES))
        assert list((await completed(rig, chat(top_k=5))).lossy_fields) == ["top_k"]
        rig.upstream.script = stream(events_of(RESPONSES))
        events = await streamed(rig, chat(top_k=5))
        assert list(events[0].start.lossy_fields) == list(events[-1].receipt.lossy_fields) == ["top_k"]

    @in_process_only
    async def test_what_only_one_dialect_knows_is_told(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [ANTHROPIC]}})
        answer = msgspec.json.decode(plain_answer(ANTHROPIC))
        answer["content"].insert(0, {"type": "hologram", "x": 1.10})
        rig.upstream.script = plain(answer)
        lost = metrics.LOST_EVENTS.labels("one")._value
        before = lost.get()
        first, second = (await completed(rig, chat())).blocks
        assert (first.vendor_block.name, second.text) == ("hologram", "hello there")
        assert lost.get() == before
        await rig.relay(dialect=CHAT)
        assert lost.get() == before + 1


class TestCounts:
    @pytest.mark.parametrize(
        ("provider", "path"),
        [(ANTHROPIC, "/v1/messages/count_tokens"), (RESPONSES, "/v1/responses/input_tokens")],
    )
    async def test_a_provider_that_counts_is_asked(
        self, make_rig: MakeRig, provider: DialectValue, path: str
    ) -> None:
        rig = await make_rig({"one": {"dialects": [provider]}})
        rig.upstream.script = plain(b'{"object": "response.input_tokens", "input_tokens": 42}')
        count = await counted(rig, chat())
        assert (count.input_tokens, count.is_exact) == (42, True)
        [request] = rig.upstream.requests
        assert request.target == path
        assert not {"max_tokens", "stream", "max_output_tokens", "store"} & set(request.json())
        assert rig.rows() == {}

    @of_all_dialects
    async def test_else_it_is_estimated_and_said_so(self, make_rig: MakeRig, provider: DialectValue) -> None:
        rig = await make_rig({"one": {"dialects": [provider]}})
        rig.upstream.script = plain("no such path", 404)
        small = await counted(rig, chat("x" * 400))
        tool = chat_pb2.ChatTool(
            name="t", kind=chat_pb2.CHAT_TOOL_KIND_FUNCTION, schema=msgspec.json.encode({"x": "y" * 400})
        )
        large = await counted(rig, chat("x" * 400, tools=[tool]))
        assert not small.is_exact
        assert 100 <= small.input_tokens < 120
        assert large.input_tokens - small.input_tokens >= 100
        assert len(rig.upstream.requests) == (0 if provider == CHAT else 2)

    @pytest.mark.parametrize(
        ("client", "path"),
        [(ANTHROPIC, "/v1/messages/count_tokens"), (RESPONSES, "/v1/responses/input_tokens")],
    )
    async def test_a_client_of_another_dialect_gets_a_count(
        self, make_rig: MakeRig, client: DialectValue, path: str
    ) -> None:
        rig = await make_rig({"one": {"dialects": [CHAT]}})
        body = plain_request(client)
        body.pop("max_tokens", None)
        answer = await rig.relay(body, client, path=path)
        assert answer.head.status == 200
        assert msgspec.json.decode(answer.body)["input_tokens"] > 0
        assert rig.rows() == {}
        assert rig.upstream.requests == []

    async def test_a_client_of_another_dialect_gets_an_exact_one_if_there_is_one(
        self, make_rig: MakeRig
    ) -> None:
        rig = await make_rig({"one": {"dialects": [ANTHROPIC]}})
        rig.upstream.script = plain(b'{"input_tokens": 42}')
        answer = await rig.relay(dialect=RESPONSES, path="/v1/responses/input_tokens")
        assert msgspec.json.decode(answer.body) == {"object": "response.input_tokens", "input_tokens": 42}


@pytest.mark.parametrize("method", [streamed, completed])
async def test_a_caller_above_its_rate_limit_is_told_when_to_come_back(
    make_rig: MakeRig, method: Any
) -> None:
    rig = await make_rig()
    rig.upstream.script = plain(plain_answer(ANTHROPIC))
    rig.key = rig.billing.add_key(rate_limits=RateLimits(requests_per_minute=1))
    await completed(rig, chat())
    with pytest.raises(RateLimited) as caught:
        await method(rig, chat())
    cause = caught.value.__cause__
    assert isinstance(cause, grpc.aio.AioRpcError)
    assert cause.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    told = caught.value.metadata
    assert (told["scope"], told["limit"]) == ("key", "requests_per_minute")
    assert 0 < float(told["retry_after_seconds"]) <= 60
    assert len(rig.upstream.requests) == 1
