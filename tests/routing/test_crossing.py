"""Who is asked in which dialect, what is lost on the way, and what another vendor never sees."""

import asyncio

import pytest

from lurus.provider.v1 import provider_pb2
from lurus.routing.v1 import routing_pb2
from lurus_common.errors import InvalidRequest, LurusError, PreviousResponseNotFound, Untranslatable
from tests.support.scripted_upstream import plain, stream

from .reading import error_in, headers_of, provider_error, rate_limit_event, text_in, tokens_of
from .rig import (
    ANTHROPIC,
    CHAT,
    COST,
    PATHS,
    RESPONSES,
    SECRET,
    MakeRig,
    Rig,
    events_of,
    in_process_only,
    plain_answer,
    plain_request,
    refusal,
    stream_request,
    until,
)

pytestmark = pytest.mark.anyio

GIVEN = [
    ("content-type", "application/json"),
    ("anthropic-version", "2026-10-21"),
    ("anthropic-beta", "x-2026"),
    ("x-claude-code-session-id", "11111111-2222-3333-4444-555555555555"),
    ("x-codex-turn-metadata", "{}"),
    ("session-id", "66666666-2222-3333-4444-555555555555"),
    ("x-stainless-lang", "python"),
    ("openai-beta", "y"),
    ("user-agent", "claude-cli/2"),
    ("x-lurus-strict", "0"),
]


class TestOrder:
    async def test_a_relay_comes_before_a_translation_of_the_same_level(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [RESPONSES], "weight": 1000}, "two": {"weight": 1}})
        rig.other.script = plain(plain_answer(ANTHROPIC))
        for _ in range(10):
            assert (await rig.relay()).body == plain_answer(ANTHROPIC)
        assert rig.upstream.requests == []
        request = routing_pb2.ExplainRouteRequest(model="m-1", dialect=ANTHROPIC)
        explained = await rig.stub.ExplainRoute(
            request, metadata=(("authorization", f"Bearer {rig.settings.admin_token}"),)
        )
        assert [(row.provider_id, row.dialect, row.is_translated) for row in explained.candidates] == [
            ("two", ANTHROPIC, False),
            ("one", RESPONSES, True),
        ]

    async def test_a_better_level_is_translated_for(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [RESPONSES], "level": 1}, "two": {"level": 2}})
        rig.upstream.script = plain(plain_answer(RESPONSES))
        assert text_in(ANTHROPIC, await rig.relay()) == "hello there"
        assert rig.other.requests == []

    @pytest.mark.parametrize("is_streaming", [False, True])
    async def test_a_relay_fails_over_to_a_translation(self, make_rig: MakeRig, is_streaming: bool) -> None:
        rig = await make_rig({"one": {"dialects": [ANTHROPIC]}, "two": {"dialects": [RESPONSES]}})
        rig.upstream.script = plain("gone", 500)
        rig.other.script = stream(events_of(RESPONSES)) if is_streaming else plain(plain_answer(RESPONSES))
        body = (stream_request if is_streaming else plain_request)(ANTHROPIC)
        answer = await rig.relay(body)
        assert text_in(ANTHROPIC, answer) == ("one two three" if is_streaming else "hello there")
        event = await rig.event(answer.request_id)
        assert [attempt.provider_id for attempt in event.attempts] == ["one", "two"]
        assert (event.tokens, event.cost_nano_usd) == (tokens_of(RESPONSES), COST)

    @pytest.mark.parametrize("is_streaming", [False, True])
    async def test_a_translation_fails_over_to_a_relay(self, make_rig: MakeRig, is_streaming: bool) -> None:
        rig = await make_rig({"one": {"dialects": [RESPONSES], "level": 1}, "two": {"level": 2}})
        rig.upstream.script = stream([rate_limit_event(RESPONSES)]) if is_streaming else plain("gone", 500)
        events = events_of(ANTHROPIC)
        rig.other.script = stream(events) if is_streaming else plain(plain_answer(ANTHROPIC))
        body = (stream_request if is_streaming else plain_request)(ANTHROPIC)
        answer = await rig.relay(body)
        assert answer.body == (b"".join(events) if is_streaming else plain_answer(ANTHROPIC))
        assert answer.end.tokens == tokens_of(ANTHROPIC)

    @in_process_only
    @pytest.mark.parametrize(
        ("status", "error", "is_ours"),
        [
            (400, {"message": "Unknown parameter: 'x'.", "code": "unknown_parameter"}, True),
            (400, {"message": "bad", "type": "invalid_request_error", "param": "tools[0]"}, True),
            (422, {"message": "1 validation error", "type": "BadRequestError"}, True),
            (404, {"message": "Unknown request URL", "type": "invalid_request_error"}, True),
            (400, {"message": "too long", "code": "context_length_exceeded", "param": "messages"}, False),
            (400, {"message": "no", "code": "content_filter", "param": "prompt"}, False),
            (400, {"message": "The image is broken.", "type": "invalid_request_error"}, False),
        ],
    )
    async def test_a_refusal_of_our_words_is_judged_by_who_gets_the_clients(
        self, make_rig: MakeRig, status: int, error: dict[str, str], is_ours: bool
    ) -> None:
        rig = await make_rig(
            {
                "one": {"dialects": [CHAT], "level": 1, "credentials": ("first", "second")},
                "two": {"dialects": [ANTHROPIC], "level": 2},
            }
        )
        rig.upstream.script = plain({"error": error}, status)
        rig.other.script = plain(plain_answer(ANTHROPIC))
        answer = await rig.relay()
        assert answer.head.status == (200 if is_ours else 400)
        assert len(rig.upstream.requests) == 1
        assert len(rig.other.requests) == is_ours
        assert (await rig.is_well("one")) and answer.end.attempt_count == 1 + is_ours

    async def test_a_refusal_of_the_clients_own_words_is_returned(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"level": 1}, "two": {"level": 2}})
        body = provider_error(ANTHROPIC, "invalid_request_error", "top_k: Extra inputs are not permitted")
        rig.upstream.script = plain(body, 400)
        answer = await rig.relay()
        assert (answer.head.status, answer.body, rig.other.requests) == (400, body, [])

    async def test_a_refusal_of_the_last_one_is_told_in_the_clients_words(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [ANTHROPIC]}, "two": {"dialects": [RESPONSES]}})
        rig.upstream.script = plain("gone", 500)
        rig.other.script = plain(provider_error(RESPONSES, "server_error", "no"), 503)
        answer = await rig.relay()
        assert (answer.head.status, error_in(answer)["type"]) == (529, "overloaded_error")


@in_process_only
class TestWhatIsLost:
    async def test_fields_that_are_lost_are_named(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [RESPONSES]}})
        rig.upstream.script = plain(plain_answer(RESPONSES))
        answer = await rig.relay(plain_request(ANTHROPIC, top_k=5))
        assert headers_of(answer)["x-lurus-lossy"] == b"top_k"
        assert list(answer.end.lossy_fields) == ["top_k"]
        plain_one = await rig.relay()
        assert "x-lurus-lossy" not in headers_of(plain_one)

    async def test_a_strict_client_is_refused_before_anybody_is_called(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [RESPONSES]}})
        body = plain_request(ANTHROPIC, top_k=5)
        error = await refusal(rig.relay(body, headers=[("x-lurus-strict", "1")]))
        assert (type(error), error.metadata["param"]) == (Untranslatable, "top_k")
        assert rig.upstream.requests == []
        assert rig.billing.lease_requests == []

    async def test_what_cannot_be_said_is_refused_before_anybody_is_called(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [RESPONSES]}})
        error = await refusal(rig.relay(plain_request(ANTHROPIC, stop_sequences=["X"])))
        assert isinstance(error, Untranslatable)
        assert error.message.startswith("stop_sequences")
        assert rig.upstream.requests == []
        assert rig.billing.lease_requests == []
        [event] = [event for _, event in (await until(rig.rows)).values()]
        assert (event.error_reason, event.http_status) == ("UNTRANSLATABLE", 400)

    async def test_it_goes_to_who_can_take_it(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [RESPONSES], "level": 1}, "two": {"level": 2}})
        rig.other.script = plain(plain_answer(ANTHROPIC))
        answer = await rig.relay(plain_request(ANTHROPIC, stop_sequences=["X"]))
        assert answer.body == plain_answer(ANTHROPIC)
        assert rig.upstream.requests == []

    async def test_a_provider_of_two_dialects_is_asked_in_the_one_that_can_say_it(
        self, make_rig: MakeRig
    ) -> None:
        rig = await make_rig({"one": {"dialects": [RESPONSES, CHAT]}})
        rig.upstream.script = plain(plain_answer(CHAT))
        answer = await rig.relay(plain_request(ANTHROPIC, stop_sequences=["X"]))
        assert text_in(ANTHROPIC, answer) == "hello there"
        assert rig.upstream.requests[0].target == PATHS[CHAT]

    async def test_what_is_refused_after_a_failure_does_not_hide_the_failure(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [ANTHROPIC]}, "two": {"dialects": [RESPONSES]}})
        rig.upstream.script = plain("gone", 500)
        answer = await rig.relay(plain_request(ANTHROPIC, stop_sequences=["X"]))
        assert answer.head.status == 500
        assert rig.other.requests == []


@in_process_only
class TestHeaders:
    async def test_none_of_the_clients_own_goes_to_another_vendor(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [RESPONSES]}})
        rig.upstream.script = plain(plain_answer(RESPONSES), headers={"openai-model": "x"})
        answer = await rig.relay(headers=GIVEN)
        [request] = rig.upstream.requests
        assert {name for name, _ in request.headers} == {
            "host", "content-type", "content-length", "accept", "accept-encoding", "user-agent",
            "authorization",
        }  # fmt: skip
        assert request.header("authorization") == f"Bearer {SECRET}-one-default"
        assert b"11111111" not in request.head + request.body
        assert "openai-model" not in headers_of(answer)

    @pytest.mark.parametrize(("stated", "version"), [("", "2023-06-01"), ("2026-10-21", "2026-10-21")])
    async def test_an_anthropic_provider_is_told_its_version(
        self, make_rig: MakeRig, stated: str, version: str
    ) -> None:
        quirks = provider_pb2.ProviderQuirks(anthropic_version=stated)
        rig = await make_rig({"one": {"dialects": [ANTHROPIC], "quirks": quirks}})
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        await rig.relay(dialect=RESPONSES, headers=GIVEN)
        [request] = rig.upstream.requests
        assert request.header("anthropic-version") == version
        assert request.header("x-api-key") == f"{SECRET}-one-default"
        foreign = ("x-codex", "openai", "session", "anthropic-beta")
        assert not [name for name, _ in request.headers if name.startswith(foreign)]

    async def test_a_header_that_nobody_takes_is_refused_before_anything_is_reserved(self, rig: Rig) -> None:
        error = await refusal(rig.relay(headers=[("x-long", "a" * 8001)]))
        assert isinstance(error, InvalidRequest)
        assert rig.billing.lease_requests == []
        assert rig.upstream.requests == []


@in_process_only
class TestThinkingOfOthers:
    async def test_it_is_cut_out_of_what_is_relayed(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [ANTHROPIC]}})
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        body = (
            b'{"model":"m-1", "max_tokens":100 ,"messages":[{"role":"assistant","content":[BLOCK'
            b'{"type":"text","text":"1.0 \\u00e9"}]},{"role":"user","content":"go"}]}'
        )
        block = b'{"type":"thinking","thinking":"","signature":"lsw1.e30"}, '
        await rig.relay(body.replace(b"BLOCK", block))
        assert rig.upstream.requests[0].body == body.replace(b"BLOCK", b"")


@in_process_only
class TestHeldAnswers:
    async def many(self, make_rig: MakeRig) -> Rig:
        rig = await make_rig({"one": {"credentials": ("a", "b", "c")}, "two": {"dialects": [ANTHROPIC]}})
        rig.upstream.script = plain(plain_answer(RESPONSES))
        return rig

    async def test_a_continued_answer_goes_to_its_holder(self, make_rig: MakeRig) -> None:
        rig = await self.many(make_rig)
        await rig.relay(dialect=RESPONSES)
        first = rig.upstream.requests[0].header("authorization")
        for number in range(12):
            body = plain_request(
                RESPONSES, prompt_cache_key=f"session {number}", previous_response_id="resp_1"
            )
            await rig.relay(body, RESPONSES)
        assert {request.header("authorization") for request in rig.upstream.requests} == {first}

    async def test_its_removal_is_told_and_nobody_else_is_asked(self, make_rig: MakeRig) -> None:
        rig = await self.many(make_rig)
        await rig.relay(dialect=RESPONSES)
        held = rig.upstream.requests[0].header("authorization").rpartition("-")[2]
        provider = rig.provider.providers["one"]
        kept = [credential for credential in provider.credentials if credential.credential_id != held]
        del provider.credentials[:]
        provider.credentials.extend(kept)
        rig.provider.tell(providers=[provider])
        error: LurusError | None = None
        for _ in range(200):
            try:
                await rig.relay(plain_request(RESPONSES, previous_response_id="resp_1"), RESPONSES)
                await asyncio.sleep(0.01)
            except PreviousResponseNotFound as found:
                error = found
                break
        assert error is not None
        assert error.metadata["param"] == "previous_response_id"
        assert {r.header("authorization").rpartition("-")[2] for r in rig.upstream.requests} == {held}

    async def test_an_unknown_one_is_tried_with_one_credential(self, make_rig: MakeRig) -> None:
        rig = await self.many(make_rig)
        rig.upstream.script = plain("gone", 500)
        await rig.relay(plain_request(RESPONSES, previous_response_id="resp_1"), RESPONSES)
        assert len({request.header("authorization") for request in rig.upstream.requests}) == 1

    async def test_somebody_elses_is_not_found(self, make_rig: MakeRig) -> None:
        rig = await self.many(make_rig)
        await rig.relay(dialect=RESPONSES)
        rig.key = rig.billing.add_key()
        error = await refusal(rig.relay(plain_request(RESPONSES, previous_response_id="resp_1"), RESPONSES))
        assert isinstance(error, PreviousResponseNotFound)
        assert len(rig.upstream.requests) == 1

    async def test_nobody_of_another_dialect_holds_it(self, make_rig: MakeRig) -> None:
        rig = await make_rig({"one": {"dialects": [ANTHROPIC]}})
        error = await refusal(rig.relay(plain_request(RESPONSES, previous_response_id="resp_1"), RESPONSES))
        assert isinstance(error, PreviousResponseNotFound)
        assert rig.upstream.requests == []
