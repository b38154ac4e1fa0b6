"""What happens when providers fail: who is asked next, what the client sees, who pays."""

import asyncio
import json
import time
from typing import Any, ClassVar

import pytest

from lurus.provider.v1 import provider_pb2
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import LurusError, NoHealthyProvider, UpstreamFailed, UpstreamTimeout
from lurus_routing import breaker, health, retry
from tests.support.scripted_upstream import (
    Exchange,
    Script,
    hang_up,
    plain,
    raw,
    reset,
    silent,
    stream,
)

from .rig import (
    ALL_DIALECTS,
    ANTHROPIC,
    CHAT,
    COST,
    RESPONSES,
    Answer,
    DialectValue,
    MakeRig,
    Rig,
    begin_events,
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

OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
PAIR: dict[str, dict[str, Any]] = {"one": {"level": 1}, "two": {"level": 2}}


def error_body(kind: str, message: str = "boom") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def answers(rig: Rig) -> None:
    """Lets both upstreams answer well."""
    for upstream in (rig.upstream, rig.other):
        upstream.script = stream(events_of(ANTHROPIC))


BEFORE_THE_FIRST_EVENT: dict[str, Script] = {
    "500": plain(error_body("api_error"), 500),
    "502": plain("<html>", 502, {"content-type": "text/html"}),
    "503": plain(error_body("api_error"), 503),
    "529": plain(OVERLOADED, 529),
    "429": plain(error_body("rate_limit_error"), 429, {"retry-after": "30"}),
    "401": plain(error_body("authentication_error"), 401),
    "402": plain(error_body("billing_error"), 402),
    "403": plain(error_body("permission_error"), 403),
    "our money is spent": plain(error_body("invalid_request_error", "Your credit balance is too low"), 400),
    "404 without an error": plain("not here", 404),
    "redirect": plain("", 302, {"location": "http://127.0.0.1:1/"}),
    "reset": reset,
    "hang up": hang_up,
    "not HTTP": raw(b"SSH-2.0-OpenSSH\r\n\r\n"),
    "no first event": silent,
    "head, then the end": stream([]),
    "head, then a cut": stream([], is_ended=False),
    "half an event": stream([b"event: message_start\nda"], is_ended=False),
    "HTML": plain("<html>sorry</html>", 200, {"content-type": "text/html"}),
    "JSON instead of a stream": plain(plain_answer(ANTHROPIC)),
    "an error in JSON": plain(OVERLOADED),
    "an error as first event": stream([named("error", error=OVERLOADED["error"])]),
    "empty": plain(""),
}


class TestBeforeTheFirstEvent:
    @pytest.mark.parametrize("failure", BEFORE_THE_FIRST_EVENT.values(), ids=BEFORE_THE_FIRST_EVENT)
    async def test_the_next_one_answers(self, make_rig: MakeRig, failure: Script) -> None:
        rig = await make_rig(PAIR, upstream_first_event_seconds=0.3)
        answers(rig)
        rig.upstream.script = failure
        answer = await rig.relay(stream_request(ANTHROPIC))
        assert answer.head.status == 200
        assert answer.body == b"".join(events_of(ANTHROPIC))
        assert answer.body.count(b"event: message_start") == 1
        assert len(rig.other.requests) == len(rig.upstream.requests) == 1
        event = await rig.event(answer.request_id)
        assert [attempt.provider_id for attempt in event.attempts] == ["one", "two"]
        assert event.attempts[0].error_reason and not event.attempts[1].error_reason
        assert (event.provider_id, event.cost_nano_usd) == ("two", COST)

    async def test_a_refused_connection_costs_little_time(self, make_rig: MakeRig) -> None:
        rig = await make_rig(PAIR)
        answers(rig)
        await rig.upstream.stop()
        started = time.monotonic()
        answer = await rig.relay(stream_request(ANTHROPIC))
        assert answer.end.provider_id == "two"
        assert time.monotonic() - started < 4

    @in_process_only
    @pytest.mark.parametrize(
        ("status", "expected"),
        [(500, 500), (503, 503), (529, 529), (401, 502), (402, 502), (403, 502), (302, 502)],
    )
    async def test_the_failure_of_the_only_one_is_told_and_free(
        self, make_rig: MakeRig, status: int, expected: int
    ) -> None:
        rig = await make_rig()
        rig.upstream.script = plain(error_body("api_error", f"secret {status}"), status)
        answer = await rig.relay(stream_request(ANTHROPIC))
        assert answer.head.status == expected
        assert not answer.head.is_streaming
        is_verbatim = expected in (500, 503, 529)
        assert (b"secret" in answer.body) == is_verbatim
        event = await rig.event(answer.request_id)
        assert (event.cost_nano_usd, event.token_source) == (0, usage_pb2.TOKEN_SOURCE_UNSPECIFIED)
        assert event.terminal == usage_pb2.TERMINAL_UPSTREAM_ERROR
        assert event.http_status == expected
        assert rig.billing.lease_requests[0].previous_spent_nano_usd == 0

    @in_process_only
    @pytest.mark.parametrize("status", [400, 404, 413, 422])
    async def test_the_callers_own_fault_is_relayed_word_for_word(self, pair: Rig, status: int) -> None:
        body = json.dumps(
            error_body("invalid_request_error", "thinking.adaptive.display: Extra inputs")
        ).encode()
        pair.upstream.script = plain(body, status)
        for _ in range(7):  # more often than a breaker bears
            answer = await pair.relay(stream_request(ANTHROPIC))
            assert (answer.head.status, answer.body) == (status, body)
        assert pair.other.requests == []

    async def test_nobody_answers_at_all(self, make_rig: MakeRig) -> None:
        rig = await make_rig(PAIR)
        await rig.upstream.stop()
        await rig.other.stop()
        error = await refusal(rig.relay(stream_request(ANTHROPIC)))
        assert isinstance(error, UpstreamFailed)
        assert error.metadata["attempt_count"] == "2"
        event = await rig.event(error.metadata["request_id"])
        assert (event.http_status, event.cost_nano_usd, len(event.attempts)) == (502, 0, 2)
        assert event.terminal == usage_pb2.TERMINAL_UPSTREAM_ERROR

    async def test_nobody_answers_in_time(self, make_rig: MakeRig) -> None:
        rig = await make_rig(upstream_first_event_seconds=0.1)
        rig.upstream.script = silent
        error = await refusal(rig.relay(stream_request(ANTHROPIC)))
        assert isinstance(error, UpstreamTimeout)
        event = await rig.event(error.metadata["request_id"])
        assert (event.http_status, event.terminal) == (504, usage_pb2.TERMINAL_TIMEOUT)
        await rig.upstream.requests[0].gone.wait()

    async def test_three_attempts_are_the_most(self, make_rig: MakeRig) -> None:
        credentials = ["a", "b", "c", "d", "e"]
        rig = await make_rig({"one": {"credentials": credentials}})
        rig.upstream.script = plain(OVERLOADED, 500)
        answer = await rig.relay()
        assert (answer.head.status, answer.end.attempt_count) == (500, 3)
        assert len({request.header("x-api-key") for request in rig.upstream.requests}) == 3

    async def test_a_connection_that_was_closed_meanwhile_is_made_again(self, rig: Rig) -> None:
        rig.upstream.scripts = [hang_up]
        answers(rig)
        answer = await rig.relay(stream_request(ANTHROPIC))
        assert (answer.head.status, answer.end.attempt_count) == (200, 2)

    async def test_a_cut_body_goes_to_the_next_one(self, pair: Rig) -> None:
        async def cut(exchange: Exchange) -> None:
            await exchange.send_head(200, {"content-type": "application/json", "content-length": "500"})
            await exchange.send(b"{" * 300)
            exchange.close()

        pair.upstream.script = cut
        pair.other.script = plain(plain_answer(ANTHROPIC))
        assert (await pair.relay()).end.provider_id == "two"
        pair.other.script = cut
        error = await refusal(pair.relay())
        assert isinstance(error, UpstreamFailed)

    @pytest.mark.parametrize("rules", [{}, {"supported_models": ["*"]}, {"supported_models": ["m-*"]}])
    async def test_an_unknown_model_is_tried_only_where_a_rule_names_it(
        self, make_rig: MakeRig, rules: dict[str, Any]
    ) -> None:
        rig = await make_rig({"one": {"level": 1}, "two": {"level": 2, **rules}})
        rig.upstream.script = plain(error_body("not_found_error", "model: m-1"), 404)
        rig.other.script = plain(plain_answer(ANTHROPIC))
        answer = await rig.relay()
        is_named = rules.get("supported_models") == ["m-*"]
        assert (answer.head.status, len(rig.other.requests)) == ((200, 1) if is_named else (404, 0))

    async def test_redirects_are_not_followed(self, rig: Rig) -> None:
        rig.upstream.script = plain("", 307, {"location": f"{rig.other.url}/v1/messages"})
        assert (await rig.relay()).head.status == 502
        assert rig.other.requests == []

    async def test_a_host_that_is_not_allowed_is_not_called(self, make_rig: MakeRig) -> None:
        rig = await make_rig(PAIR, allowed_http_hosts="localhost")
        answers(rig)
        error = await refusal(rig.relay())
        assert isinstance(error, UpstreamFailed)
        assert rig.upstream.connection_count == rig.other.connection_count == 0


class TestAfterTheFirstEvent:
    ERRORS: ClassVar = {
        ANTHROPIC: (b"event: error\n", b'"type":"api_error"', b"message_stop"),
        CHAT: (b'data: {"error":', b'"code":"upstream_error"', b"[DONE]"),
        RESPONSES: (b"event: response.failed\n", b'"code":"server_error"', b"response.completed"),
    }

    def check_cut(self, answer: Answer, dialect: DialectValue, begin: bytes) -> None:
        name, detail, terminator = self.ERRORS[dialect]
        assert answer.body.startswith(begin)
        error = answer.body.removeprefix(begin)
        assert error.startswith(name) and detail in error and error.endswith(b"\n\n")
        assert error.count(b"\n\n") == 1, "nothing follows the error, least of all another answer"
        assert terminator not in answer.body

    @pytest.mark.parametrize("dialect", ALL_DIALECTS)
    @pytest.mark.parametrize("how", ["fin", "reset", "last chunk missing", "in order"])
    async def test_a_cut_stream_ends_with_an_error(self, pair: Rig, dialect: DialectValue, how: str) -> None:
        texts = [text_event(dialect, "x" * 40, number) for number in (2, 3, 4)]
        begin = b"".join([*begin_events(dialect), *texts])

        async def script(exchange: Exchange) -> None:
            await exchange.send_stream_head()
            await exchange.send_chunk(begin + b"event: con")
            await asyncio.sleep(0.05)
            if how == "in order":
                await exchange.end_chunks()
            elif how == "reset":
                exchange.reset()
            else:
                exchange.close()

        pair.upstream.script = script
        answer = await pair.relay(stream_request(dialect), dialect)
        self.check_cut(answer, dialect, begin)
        assert pair.other.requests == []
        event = await pair.event(answer.request_id)
        assert event.terminal == answer.end.terminal == usage_pb2.TERMINAL_TRUNCATED
        assert event.error_reason in ("UPSTREAM_CUT", "UPSTREAM_FAILED")
        # 120 characters were seen: 30 tokens, whatever the provider would have said.
        assert event.tokens.output == answer.end.tokens.output == 30
        is_stated = dialect == ANTHROPIC
        assert event.token_source == (
            usage_pb2.TOKEN_SOURCE_PARTIAL if is_stated else usage_pb2.TOKEN_SOURCE_ESTIMATED
        )
        assert event.tokens.input == (10 if is_stated else -(-event.request_bytes // 4))
        assert event.cost_nano_usd > 0

    async def test_a_cut_before_any_content_is_free(self, rig: Rig) -> None:
        rig.upstream.script = stream([begin_events(ANTHROPIC)[0]], is_ended=False)
        answer = await rig.relay(stream_request(ANTHROPIC))
        assert answer.end.cost_nano_usd == 0
        assert (await rig.event(answer.request_id)).cost_nano_usd == 0

    @pytest.mark.parametrize("dialect", ALL_DIALECTS)
    async def test_silence_ends_the_stream(self, make_rig: MakeRig, dialect: DialectValue) -> None:
        rig = await make_rig(upstream_idle_seconds=0.25, heartbeat_seconds=0.1)
        begin = b"".join([*begin_events(dialect), text_event(dialect, "half")])
        rig.upstream.script = stream([begin, 30.0])
        answer = await rig.relay(stream_request(dialect), dialect)
        assert answer.end.terminal == usage_pb2.TERMINAL_TIMEOUT
        assert len(answer.parts) == 4  # begin, two heartbeats, error
        assert (await rig.event(answer.request_id)).error_reason == "UPSTREAM_TIMEOUT"
        await asyncio.wait_for(rig.upstream.requests[0].gone.wait(), 15)

    async def test_a_stream_has_a_longest_time(self, make_rig: MakeRig) -> None:
        rig = await make_rig(stream_total_seconds=0.3)
        rig.upstream.script = stream(events_of(ANTHROPIC, ["x"] * 300), pause_seconds=0.01)
        answer = await rig.relay(stream_request(ANTHROPIC))
        assert answer.end.terminal == usage_pb2.TERMINAL_TIMEOUT
        assert b"event: error" in answer.body

    async def test_an_error_event_is_relayed(self, pair: Rig) -> None:
        events = [
            *begin_events(ANTHROPIC),
            text_event(ANTHROPIC, "half"),
            named("error", error=OVERLOADED["error"]),
        ]
        pair.upstream.script = stream(events, pause_seconds=0.02)
        answer = await pair.relay(stream_request(ANTHROPIC))
        assert answer.body == b"".join(events)
        assert answer.end.terminal == usage_pb2.TERMINAL_UPSTREAM_ERROR
        assert pair.other.requests == []

    async def test_an_event_over_the_limit_ends_the_stream(self, rig: Rig) -> None:
        begin = b"".join([*begin_events(ANTHROPIC), text_event(ANTHROPIC, "x" * 40)])
        rig.upstream.script = stream([begin, 0.05, b"data: " + b"x" * 9_000_000])
        self.check_cut(await rig.relay(stream_request(ANTHROPIC)), ANTHROPIC, begin)


class TestBreaker:
    @pytest.fixture(autouse=True)
    def no_retries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retry, "MIN_BUDGET", 0)

    async def fail(self, rig: Rig, count: int) -> None:
        rig.upstream.script = plain(OVERLOADED, 500)
        for _ in range(count):
            assert (await rig.relay()).head.status == 500

    async def test_it_opens_and_says_when_to_come_back(self, rig: Rig) -> None:
        await self.fail(rig, breaker.FAILURES_IN_A_ROW)
        error = await refusal(rig.relay())
        assert isinstance(error, NoHealthyProvider)
        assert 3 < float(error.metadata["retry_after_seconds"]) <= breaker.LAST_RESORT_SECONDS
        assert len(rig.upstream.requests) == breaker.FAILURES_IN_A_ROW
        event = await rig.event(error.metadata["request_id"])
        assert b"breaker open" in event.decision

    async def test_only_one_of_a_hundred_probes(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(breaker, "OPEN_SECONDS", 0.05)
        await self.fail(rig, breaker.FAILURES_IN_A_ROW)
        await asyncio.sleep(0.06)
        may_answer = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            await may_answer.wait()
            await plain(plain_answer(ANTHROPIC))(exchange)

        rig.upstream.script = script
        seen = len(rig.upstream.requests)
        calls = [asyncio.create_task(rig.relay()) for _ in range(100)]
        await until(lambda: sum(call.done() for call in calls) == 99)
        await rig.upstream.until_requests(seen + 1)
        assert len(rig.upstream.requests) == seen + 1
        may_answer.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, NoHealthyProvider)]
        assert len(refused) == 99
        assert {error.metadata["retry_after_seconds"] for error in refused} == {"1.0"}
        assert (await rig.relay()).head.status == 200

    async def test_a_probe_whose_client_leaves_makes_room(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(breaker, "OPEN_SECONDS", 0.05)
        await self.fail(rig, breaker.FAILURES_IN_A_ROW)
        await asyncio.sleep(0.06)
        rig.upstream.script = silent
        call = asyncio.create_task(rig.relay())
        request = await rig.upstream.until_requests(breaker.FAILURES_IN_A_ROW + 1)
        call.cancel()
        await asyncio.wait([call])
        await asyncio.wait_for(request.gone.wait(), 15)
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        assert (await rig.relay()).head.status == 200

    async def test_cut_streams_count(self, rig: Rig) -> None:
        rig.upstream.script = stream([*begin_events(ANTHROPIC), text_event(ANTHROPIC, "x")], is_ended=False)
        for _ in range(breaker.FAILURES_IN_A_ROW - 1):
            await rig.relay(stream_request(ANTHROPIC))
        # Each began well, so they are not in a row.
        assert (await rig.relay(stream_request(ANTHROPIC))).head.status == 200


class TestBenches:
    async def test_a_throttled_credential_waits_as_long_as_it_is_told(self, pair: Rig) -> None:
        answers(pair)
        pair.upstream.script = plain(error_body("rate_limit_error"), 429, {"retry-after": "30"})
        assert [(await pair.relay(stream_request(ANTHROPIC))).end.attempt_count for _ in range(3)] == [
            2,
            1,
            1,
        ]
        assert len(pair.upstream.requests) == 1

    async def test_throttled_everywhere_shows_the_shortest_wait(self, pair: Rig) -> None:
        for upstream, seconds in ((pair.upstream, "7"), (pair.other, "33")):
            upstream.script = plain(error_body("rate_limit_error"), 429, {"retry-after": seconds})
        answer = await pair.relay()
        assert answer.head.status == 429
        assert [h.value for h in answer.head.headers if h.name == "retry-after"] == [b"7"]

    async def test_a_long_wait_is_told_as_a_minute(self, rig: Rig) -> None:
        rig.upstream.script = plain(error_body("rate_limit_error"), 429, {"retry-after": "300"})
        answer = await rig.relay()
        assert [h.value for h in answer.head.headers if h.name == "retry-after"] == [b"60"]

    @in_process_only
    @pytest.mark.parametrize("value", ["nan", "inf", "-5", "soon", "1e999"])
    async def test_nonsense_does_not_bench_for_ever(
        self, rig: Rig, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(health, "THROTTLE_BENCH_SECONDS", 0.05)
        rig.upstream.scripts = [plain(error_body("rate_limit_error"), 429, {"retry-after": value})]
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        assert (await rig.relay()).head.status == 429
        await asyncio.sleep(0.06)
        assert (await rig.relay()).head.status == 200

    @pytest.mark.parametrize("providers", [{"one": {}}, PAIR], ids=["the only one", "all"])
    async def test_a_throttle_does_not_take_the_model_away(
        self, make_rig: MakeRig, providers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(health, "LAST_RESORT_SECONDS", 0.2)
        rig = await make_rig(providers)
        for upstream in (rig.upstream, rig.other):
            upstream.scripts = [plain(error_body("rate_limit_error"), 429, {"retry-after": "300"})]
        answers(rig)
        assert (await rig.relay(stream_request(ANTHROPIC))).head.status == 429
        error = await refusal(rig.relay(stream_request(ANTHROPIC)))
        assert isinstance(error, NoHealthyProvider)
        assert float(error.metadata["retry_after_seconds"]) <= 1
        await asyncio.sleep(0.21)
        assert (await rig.relay(stream_request(ANTHROPIC))).head.status == 200

    async def test_a_new_credential_gets_a_chance(self, rig: Rig) -> None:
        rig.upstream.script = plain(error_body("authentication_error"), 401)
        assert (await rig.relay()).head.status == 502
        assert isinstance(await refusal(rig.relay()), NoHealthyProvider)
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        rig.provider.tell(providers=rig.provider.providers.values())

        async def is_back() -> bool:
            try:
                return (await rig.relay()).head.status == 200
            except LurusError:
                return False

        while not await is_back():
            await asyncio.sleep(0.01)

    async def test_a_provider_has_a_limit_of_calls_at_once(self, make_rig: MakeRig) -> None:
        limits = provider_pb2.ProviderLimits(max_concurrency=1)
        rig = await make_rig({"one": {"level": 1, "limits": limits}, "two": {"level": 2}})
        may_end = asyncio.Event()
        rig.upstream.script = stream([*begin_events(ANTHROPIC), may_end, *events_of(ANTHROPIC)[2:]])
        rig.other.script = stream(events_of(ANTHROPIC))
        first = asyncio.create_task(rig.relay(stream_request(ANTHROPIC)))
        await rig.upstream.until_requests(1)
        assert (await rig.relay(stream_request(ANTHROPIC))).end.provider_id == "two"
        may_end.set()
        assert (await first).end.provider_id == "one"
        assert (await rig.relay(stream_request(ANTHROPIC))).end.provider_id == "one"


class TestAffinity:
    @pytest.mark.parametrize(
        "fields",
        [
            {"headers": [("x-claude-code-session-id", "session-{}")]},
            {"body": {"metadata": {"user_id": "user {}"}}},
            {"body": {"system": "you are number {}"}},
        ],
        ids=["header", "user id", "instructions"],
    )
    async def test_a_conversation_stays_with_a_credential(
        self, make_rig: MakeRig, fields: dict[str, Any]
    ) -> None:
        rig = await make_rig({"one": {"credentials": ["a", "b", "c", "d"]}})
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        used = []
        for number in range(8):
            given = json.loads(json.dumps(fields).replace("{}", str(number)))
            body = plain_request(ANTHROPIC, **given.get("body", {}))
            headers = [tuple(pair) for pair in given.get("headers", [])]
            for turn in range(2):
                body["messages"] = [{"role": "user", "content": f"turn {turn}"}]
                await rig.relay(body, headers=headers)
            used.append([request.header("x-api-key") for request in rig.upstream.requests[-2:]])
        assert all(first == second for first, second in used)
        assert len({first for first, _ in used}) > 1
