"""What passes through a call: bytes, headers, usage. On the in-process channel and on the wire."""

import asyncio
import time
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from lurus.provider.v1 import provider_pb2
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import InvalidRequest, ModelForbidden, ModelNotFound, RequestTooLarge
from tests.support.scripted_upstream import Exchange, plain, raw, stream

from .rig import (
    ALL_DIALECTS,
    ANTHROPIC,
    CHAT,
    COST,
    PATHS,
    RESPONSES,
    SECRET,
    DialectValue,
    MakeRig,
    Rig,
    begin_events,
    chat_usage,
    chunk,
    collect,
    delta,
    end_events,
    events_of,
    in_process_only,
    named,
    plain_answer,
    plain_request,
    refusal,
    stream_request,
    text_event,
    until,
)

pytestmark = pytest.mark.anyio

PROVIDER, PARTIAL, ESTIMATED = (
    usage_pb2.TOKEN_SOURCE_PROVIDER,
    usage_pb2.TOKEN_SOURCE_PARTIAL,
    usage_pb2.TOKEN_SOURCE_ESTIMATED,
)
# What every answer of the rig states.
TOKENS = {
    ANTHROPIC: usage_pb2.Tokens(input=10, cache_read=1000, cache_write_5m=100, output=50),
    CHAT: usage_pb2.Tokens(input=10, cache_read=1000, cache_write_30m=100, output=50),
    RESPONSES: usage_pb2.Tokens(input=10, cache_read=1000, cache_write_30m=100, output=50),
}


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("dialect", ALL_DIALECTS)
class TestAnswers:
    async def test_a_plain_answer_passes_byte_for_byte(self, rig: Rig, dialect: DialectValue) -> None:
        rig.upstream.script = plain(
            plain_answer(dialect), headers={"request-id": "up-req", "set-cookie": "a=b"}
        )
        before = metric("lurus_cost_nano_usd_total", provider="one")
        answer = await rig.relay(dialect=dialect)
        assert answer.head.status == 200
        assert not answer.head.is_streaming
        assert answer.body == plain_answer(dialect)
        headers = {header.name: header.value for header in answer.head.headers}
        assert headers == {"content-type": b"application/json", "x-lurus-upstream-request-id": b"up-req"}
        assert (answer.end.tokens, answer.end.cost_nano_usd) == (TOKENS[dialect], COST)
        event = await rig.event(answer.request_id)
        assert (event.tokens, event.cost_nano_usd, event.price_id) == (TOKENS[dialect], COST, "price_1")
        assert event.token_source == PROVIDER
        assert event.terminal == usage_pb2.TERMINAL_COMPLETE
        assert event.response_bytes == len(plain_answer(dialect))
        assert event.HasField("first_event_duration")
        assert event.upstream_request_id == "up-req"
        assert event.http_status == 200
        assert metric("lurus_cost_nano_usd_total", provider="one") - before == COST

    async def test_a_stream_passes_byte_for_byte(self, rig: Rig, dialect: DialectValue) -> None:
        events = events_of(dialect)
        rig.upstream.script = stream(events)
        answer = await rig.relay(stream_request(dialect, stream_options={"include_usage": True}), dialect)
        assert answer.head.is_streaming
        assert answer.body == b"".join(events)
        event = await rig.event(answer.request_id)
        assert (event.tokens, event.cost_nano_usd, event.token_source) == (TOKENS[dialect], COST, PROVIDER)
        assert event.response_bytes == len(answer.body)
        assert (event.is_streaming, event.path) == (True, PATHS[dialect])
        assert answer.end.tokens == TOKENS[dialect]

    async def test_a_stream_of_single_bytes_passes_unchanged(self, rig: Rig, dialect: DialectValue) -> None:
        whole = b"".join(events_of(dialect, ("世界😀", "\u2028")))
        rig.upstream.script = stream([whole[i : i + 1] for i in range(len(whole))])
        answer = await rig.relay(stream_request(dialect, stream_options={"include_usage": True}), dialect)
        assert answer.body == whole
        assert answer.end.tokens == TOKENS[dialect]

    async def test_the_first_event_does_not_wait_for_the_third(self, rig: Rig, dialect: DialectValue) -> None:
        may_go_on = asyncio.Event()
        events = events_of(dialect)
        rig.upstream.script = stream([events[0], events[1], may_go_on, *events[2:]])
        call = rig.start(rig.request(stream_request(dialect), dialect))
        await call.read()
        first = await asyncio.wait_for(call.read(), 15)
        assert first.data.startswith(events[0])
        may_go_on.set()
        rest = [response async for response in call]
        assert rest[-1].end.tokens == TOKENS[dialect]

    async def test_the_usage_row_is_durable_before_the_terminal_event(
        self, rig: Rig, dialect: DialectValue
    ) -> None:
        may_end = asyncio.Event()  # so that nothing but the terminal event tells of the end
        events = events_of(dialect)
        rig.upstream.script = stream([*events[:-1], 0.02, events[-1], may_end])
        call = rig.start(rig.request(stream_request(dialect), dialect))
        states = []
        async for response in call:
            if response.HasField("data"):
                # Another connection reads the file at the very moment of receipt.
                rows = rig.rows()
                is_last = response.data.endswith(events[-1])
                states.append((is_last, [state for state, _ in rows.values()]))
                if is_last:
                    may_end.set()
        assert [state for is_last, [state] in states if is_last] in ([1], [2])
        assert {state for is_last, [state] in states if not is_last} == {0}


class TestRequests:
    BODY = (
        b'{ "model" :"alias", "max_tokens": 100,"x":{"y":[{"z":1.0, "e":1e3}]}, "n":12345678901234567890,\n'
        b'"t":"\\u00e9", "t":"twice", "fallbacks":[{"model":"alias"}],'
        b'"messages":[{"role":"user","content":"say \\"model\\": \\"alias\\""}] }'
    )

    async def test_only_the_model_changes(self, make_rig: MakeRig) -> None:
        rig = await make_rig(
            {"one": {"model_mappings": [provider_pb2.ModelMapping(model="alias", upstream_model="up/ü")]}}
        )
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        await rig.relay(self.BODY)
        assert rig.upstream.requests[0].body == self.BODY.replace(b'"alias"', '"up/ü"'.encode(), 1)

    async def test_an_equal_name_changes_nothing(self, rig: Rig) -> None:
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        await rig.relay(self.BODY)
        assert rig.upstream.requests[0].body == self.BODY

    async def test_a_large_body_passes_whole(self, rig: Rig) -> None:
        body = stream_request(ANTHROPIC, messages=[{"role": "user", "content": "x" * 20_000_000}])
        rig.upstream.script = stream(events_of(ANTHROPIC))
        request = rig.request(body)
        await collect(rig.start(request))
        assert rig.upstream.requests[0].body == request.body

    async def test_headers_are_the_clients_with_our_credential(self, rig: Rig) -> None:
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        headers = [
            ("authorization", f"Bearer {rig.key}"),
            ("x-api-key", "theirs"),
            ("cookie", "a=b"),
            ("connection", "x-foo"),
            ("x-foo", "1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-lurus-strict", "1"),
            ("anthropic-beta", "first"),
            ("anthropic-beta", "second"),
            ("anthropic-new-thing", "1"),
            ("user-agent", "claude-cli/2.1"),
            ("content-type", "application/json"),
        ]
        answer = await rig.relay(headers=headers, query="beta=true&x=%20")
        seen = rig.upstream.requests[0]
        names = {name for name, _ in seen.headers}
        assert names == {
            "host",
            "content-length",
            "content-type",
            "user-agent",
            "accept-encoding",
            "anthropic-version",
            "anthropic-beta",
            "anthropic-new-thing",
            "x-api-key",
        }
        assert seen.header("x-api-key") == f"{SECRET}-one-default"
        assert seen.header("anthropic-beta") == "first,second"
        assert seen.header("accept-encoding") == "identity"
        assert seen.target == "/v1/messages?beta=true&x=%20"
        assert (await rig.event(answer.request_id)).user_agent == "claude-cli/2.1"

    async def test_other_dialects_present_a_bearer_token(self, rig: Rig) -> None:
        rig.upstream.script = plain(plain_answer(CHAT))
        await rig.relay(dialect=CHAT)
        assert rig.upstream.requests[0].header("authorization") == f"Bearer {SECRET}-one-default"
        assert not rig.upstream.requests[0].header("x-api-key")

    async def test_connections_are_reused(self, rig: Rig) -> None:
        rig.upstream.scripts = [
            plain(plain_answer(ANTHROPIC)),
            stream(events_of(ANTHROPIC)),
            plain({"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}, 400),
            plain(plain_answer(ANTHROPIC)),
        ]
        await rig.relay()
        await rig.relay(stream_request(ANTHROPIC))
        await rig.relay()
        await rig.relay()
        assert rig.upstream.connection_count == 1


class TestIncludeUsage:
    """Rows P09 to P14 of the wire contract."""

    USAGE = chunk(choices=[], usage=chat_usage())

    async def call(self, rig: Rig, events: list[bytes], **options: Any) -> tuple[bytes, Any, Any]:
        rig.upstream.script = stream(events)
        answer = await rig.relay(stream_request(CHAT, **options), CHAT)
        return answer.body, rig.upstream.requests[0].json(), answer.end

    async def test_usage_is_asked_for_and_not_shown(self, rig: Rig) -> None:
        events = events_of(CHAT)
        body, sent, end = await self.call(rig, events)
        assert sent["stream_options"] == {"include_usage": True}
        assert body == b"".join(event for event in events if event != self.USAGE)
        assert (end.tokens, end.token_source) == (TOKENS[CHAT], PROVIDER)

    async def test_options_of_the_client_are_kept(self, rig: Rig) -> None:
        options = {"include_usage": False, "include_obfuscation": False}
        body, sent, end = await self.call(rig, events_of(CHAT), stream_options=options)
        assert sent["stream_options"] == {"include_usage": True, "include_obfuscation": False}
        assert self.USAGE not in body
        assert end.tokens == TOKENS[CHAT]

    async def test_a_client_that_asks_sees_it(self, rig: Rig) -> None:
        events = [*begin_events(CHAT), chunk(choices=[], usage=None), *end_events(CHAT)]
        body, _, _ = await self.call(rig, events, stream_options={"include_usage": True})
        assert body == b"".join(events)

    async def test_usage_beside_a_choice_stays(self, rig: Rig) -> None:
        last = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=chat_usage())
        events = [*begin_events(CHAT), delta("hi"), last, b"data: [DONE]\n\n"]
        body, _, end = await self.call(rig, events)
        assert body == b"".join(events)
        assert end.tokens == TOKENS[CHAT]

    async def test_null_usage_stays(self, rig: Rig) -> None:
        events = [
            chunk(choices=[{"index": 0, "delta": {"content": "hi"}}], usage=None),
            chunk(choices=[], usage=None),
            *end_events(CHAT),
        ]
        body, _, _ = await self.call(rig, events)
        assert body == b"".join(event for event in events if event != self.USAGE)

    async def test_a_provider_that_cannot_is_not_asked(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"quirks": provider_pb2.ProviderQuirks(no_stream_options=True)}})
        events = [*begin_events(CHAT), delta("hello there"), end_events(CHAT)[0], b"data: [DONE]\n\n"]
        request = stream_request(CHAT)
        _, sent, end = await self.call(rig, events)
        assert sent == request
        assert end.token_source == ESTIMATED
        assert end.terminal == usage_pb2.TERMINAL_COMPLETE
        assert end.tokens.output == 3
        assert end.tokens.input > 0


class TestMetering:
    async def test_cumulative_usage_is_not_added_up(self, rig: Rig) -> None:
        rig.upstream.script = stream(
            [
                *begin_events(ANTHROPIC),
                text_event(ANTHROPIC, "hi"),
                named("message_delta", delta={}, usage={"output_tokens": 20}),
                named("message_delta", delta={}, usage={"output_tokens": 50, "input_tokens": 12}),
                named("message_stop"),
            ]
        )
        answer = await rig.relay(stream_request(ANTHROPIC))
        assert (answer.end.tokens.output, answer.end.tokens.input) == (50, 12)

    async def test_impossible_counts_are_clamped_and_counted(self, rig: Rig) -> None:
        before = metric("lurus_suspect_usage_total", provider="one")
        usage = {
            "prompt_tokens": 100,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 120},
        }
        body = msgspec.json.decode(plain_answer(CHAT))
        rig.upstream.script = plain({**body, "usage": usage})
        answer = await rig.relay(dialect=CHAT)
        assert (answer.end.tokens.input, answer.end.tokens.cache_read) == (0, 120)
        assert answer.end.cost_nano_usd >= 0
        assert metric("lurus_suspect_usage_total", provider="one") > before

    async def test_the_last_of_many_usages_counts(self, rig: Rig) -> None:
        events = [
            chunk(
                choices=[{"index": 0, "delta": {"content": "x"}}],
                usage={"prompt_tokens": 10, "completion_tokens": number},
            )
            for number in (1, 2, 3)
        ]
        rig.upstream.script = stream([*events, end_events(CHAT)[0], b"data: [DONE]\n\n"])
        answer = await rig.relay(stream_request(CHAT), CHAT)
        assert (answer.end.tokens.input, answer.end.tokens.output) == (10, 3)

    @pytest.mark.parametrize("status", ["incomplete", "failed"])
    async def test_an_answer_that_ended_early_is_metered(self, rig: Rig, status: str) -> None:
        usage = {"input_tokens": 7, "output_tokens": 9, "total_tokens": 16}
        response = {
            "id": "resp_1",
            "status": status,
            "usage": usage,
            "incomplete_details": {"reason": "max_output_tokens"},
        }
        if status == "failed":
            response["error"] = {"code": "server_error", "message": "boom"}
        end = named(f"response.{status}", sequence_number=9, response=response)
        events = [*begin_events(RESPONSES), text_event(RESPONSES, "half"), end]
        rig.upstream.script = stream(events, pause_seconds=0.01)
        answer = await rig.relay(stream_request(RESPONSES), RESPONSES)
        assert answer.body == b"".join(events)
        assert (answer.end.tokens.input, answer.end.tokens.output) == (7, 9)
        wanted = (
            usage_pb2.TERMINAL_INCOMPLETE if status == "incomplete" else usage_pb2.TERMINAL_UPSTREAM_ERROR
        )
        assert answer.end.terminal == wanted

    async def test_a_model_without_a_price_is_marked(self, make_rig: MakeRig) -> None:
        rig = await make_rig(prices=[])
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        before = metric("lurus_unpriced_requests_total", provider="one")
        answer = await rig.relay()
        event = await rig.event(answer.request_id)
        assert (event.is_unpriced, event.cost_nano_usd, event.price_id) == (True, 0, "")
        assert metric("lurus_unpriced_requests_total", provider="one") == before + 1

    async def test_the_multiplier_of_a_provider_counts(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"cost_multiplier_ppm": 1_500_000}})
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        assert (await rig.relay()).end.cost_nano_usd == COST * 3 // 2

    async def test_hostile_text_of_a_provider_fits_the_event(self, rig: Rig) -> None:
        body = plain_answer(ANTHROPIC).replace(b"msg_1", b"m\\u0000\\ud800" + b"x" * 400)
        rig.upstream.script = plain(
            body.replace(b"end_turn", b"\\u0000stop" * 40), headers={"request-id": "a" * 300}
        )
        answer = await rig.relay(headers=[("user-agent", "ü" * 400), ("session-id", "a b" * 300)])
        event = await rig.event(answer.request_id)  # checked against the rules of its contract
        assert len(event.session_id) == 32


class TestCountTokens:
    PATH = "/v1/messages/count_tokens"

    async def test_it_is_relayed_and_never_billed(self, rig: Rig) -> None:
        rig.upstream.script = plain(b'{"input_tokens": 42}')
        body = plain_request(ANTHROPIC)
        del body["max_tokens"]
        answers = await asyncio.gather(*(rig.relay(body, path=self.PATH) for _ in range(26)))
        assert {answer.body for answer in answers} == {b'{"input_tokens": 42}'}
        assert {answer.end.cost_nano_usd for answer in answers} == {0}
        assert rig.rows() == {}
        assert rig.billing.lease_requests == []

    async def test_its_failures_tell_nothing_about_a_provider(self, rig: Rig) -> None:
        rig.upstream.script = plain("gone", 500)
        for _ in range(8):
            await rig.relay(path=self.PATH)
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        assert (await rig.relay()).head.status == 200

    async def test_a_count_is_never_made_up(self, rig: Rig) -> None:
        rig.upstream.script = plain(b"{}")
        assert (await rig.relay(path=self.PATH)).head.status == 502


class TestRefusedCalls:
    async def test_nothing_of_a_refused_call_reaches_a_provider(self, make_rig: MakeRig) -> None:
        rig = await make_rig(max_body_bytes=10_000)
        rig.key = rig.billing.add_key(allowed_models=["m-*"])
        forbidden = await refusal(rig.relay(plain_request(ANTHROPIC, model="x-1")))
        assert isinstance(forbidden, ModelForbidden)
        assert isinstance(await refusal(rig.relay(b"{")), InvalidRequest)
        assert isinstance(await refusal(rig.relay(b" " * 10_001)), RequestTooLarge)
        await until(lambda: len(rig.rows()) == 2)
        events = {event.error_reason: event for _, event in rig.rows().values()}
        assert set(events) == {"MODEL_FORBIDDEN", "INVALID_REQUEST"}
        assert {event.http_status for event in events.values()} == {403, 400}
        assert {event.terminal for event in events.values()} == {usage_pb2.TERMINAL_REFUSED}
        assert events["MODEL_FORBIDDEN"].request_id == forbidden.metadata["request_id"]
        assert rig.upstream.requests == []
        assert rig.billing.lease_requests == []

    async def test_an_unknown_model_is_named(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"supported_models": ["m-1"], "dialects": [CHAT]}})
        for body, dialect in (
            (plain_request(CHAT, model="m-2"), CHAT),
            (plain_request(ANTHROPIC, model="m-2"), ANTHROPIC),
        ):
            error = await refusal(rig.relay(body, dialect))
            assert isinstance(error, ModelNotFound)
            assert error.metadata["model"] == body["model"]

    @in_process_only
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("path", "/v1/../v1/messages"),
            ("path", "/v1/chat/completions"),
            ("query", "a b"),
            ("query", "a HTTP/1.1\r\nx: y"),
            ("query", "a#b"),
            ("query", "é"),
            ("query", "a" * 8193),
            ("headers", [("x y", "1")]),
            ("headers", [("x\r\ny", "1")]),
            ("headers", [("X-Upper", "1")]),
            ("headers", [("x", "1\r\nhost: evil")]),
            ("headers", [("x", "\0")]),
            ("headers", [("x", "1")] * 101),
            ("headers", [("x", "1" * 33_000)]),
            ("credentials", ["x"] * 5),
        ],
    )
    async def test_what_cannot_be_passed_on_is_refused(self, rig: Rig, field: str, value: Any) -> None:
        error = await refusal(rig.relay(**{field: value}))
        assert isinstance(error, InvalidRequest)
        assert error.metadata["param"] == field
        assert rig.upstream.requests == []

    async def test_calls_are_limited(self, make_rig: MakeRig) -> None:
        rig = await make_rig(max_live_requests=1)
        rig.upstream.script = stream(events_of(ANTHROPIC), pause_seconds=0.05)
        first = asyncio.create_task(rig.relay(stream_request(ANTHROPIC)))
        await rig.upstream.until_requests(1)
        error = await refusal(rig.relay())
        assert error.reason == "OVERLOADED"
        assert error.metadata["request_id"].startswith("req_")
        await first
        assert (await rig.relay(stream_request(ANTHROPIC))).head.status == 200


class TestSlowness:
    @pytest.mark.parametrize(
        ("dialect", "beat"),
        [
            (ANTHROPIC, b'event: ping\ndata: {"type": "ping"}\n\n'),
            (CHAT, b": keepalive\n\n"),
            (RESPONSES, b'event: keepalive\ndata: {"type":"keepalive","sequence_number":1}\n\n'),
        ],
    )
    async def test_silence_is_filled_with_heartbeats(
        self, make_rig: MakeRig, dialect: DialectValue, beat: bytes
    ) -> None:
        rig = await make_rig(heartbeat_seconds=0.05)
        events = events_of(dialect)
        begin, rest = begin_events(dialect), events[len(begin_events(dialect)) :]
        rig.upstream.script = stream([b"".join(begin), 0.28, *rest])
        answer = await rig.relay(stream_request(dialect, stream_options={"include_usage": True}), dialect)
        assert answer.parts.count(beat) in (4, 5)
        assert answer.body.replace(beat, b"") == b"".join(events)

    async def test_a_slow_stream_is_not_cut(self, make_rig: MakeRig) -> None:
        """A stream of ten minutes with an event a second, at a two-hundredth of its pace."""
        rig = await make_rig(
            upstream_idle_seconds=0.2,
            upstream_first_event_seconds=0.2,
            heartbeat_seconds=0.1,
            unary_total_seconds=0.5,
        )
        rig.upstream.script = stream(events_of(ANTHROPIC, ["x"] * 300), pause_seconds=0.005)
        started = time.monotonic()
        answer = await rig.relay(stream_request(ANTHROPIC))
        assert time.monotonic() - started > 1.5
        assert answer.end.terminal == usage_pb2.TERMINAL_COMPLETE

    async def test_all_that_came_meanwhile_goes_out_at_once(self, rig: Rig) -> None:
        events = events_of(CHAT, ["x"] * 200)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
        rig.upstream.script = raw(head + b"".join(events))
        answer = await rig.relay(stream_request(CHAT, stream_options={"include_usage": True}), CHAT)
        assert answer.body == b"".join(events)
        assert len(answer.parts) < 20

    async def test_an_event_of_megabytes_passes(self, rig: Rig) -> None:
        events = events_of(ANTHROPIC, ["x" * 6_000_000, "y"])
        rig.upstream.script = stream(events)
        answer = await rig.relay(stream_request(ANTHROPIC))
        assert answer.body == b"".join(events)

    async def test_a_provider_that_keeps_its_stream_open_holds_nobody_up(self, rig: Rig) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.send_stream_head()
            for event in events_of(ANTHROPIC):
                await exchange.send_chunk(event)
            await exchange.until_gone()

        rig.upstream.script = script
        started = time.monotonic()
        answer = await rig.relay(stream_request(ANTHROPIC))
        assert answer.end.terminal == usage_pb2.TERMINAL_COMPLETE
        assert time.monotonic() - started < 15
