"""Plain answers of providers that are asked for streams only (wire-contract B8)."""

import itertools
from typing import Any

import msgspec
import pytest

from lurus.provider.v1 import provider_pb2
from lurus.usage.v1 import usage_pb2
from tests.support.scripted_upstream import plain, stream

from .reading import check_usage, headers_of, overloaded_event, text_in, tokens_of, usage_in
from .rig import (
    ALL_DIALECTS,
    ANTHROPIC,
    CHAT,
    COST,
    DialectValue,
    MakeRig,
    Rig,
    begin_events,
    events_of,
    in_process_only,
    plain_answer,
    plain_request,
    text_event,
)
from .test_typed import chat, completed

pytestmark = [pytest.mark.anyio, in_process_only]

WANTED = provider_pb2.ProviderQuirks(wants_streams=True)
of_all = pytest.mark.parametrize("dialect", ALL_DIALECTS)
EVERY_WAY = list(itertools.product(ALL_DIALECTS, repeat=2))


async def a_rig(make_rig: MakeRig, provider: DialectValue, **more: Any) -> Rig:
    rig = await make_rig({"one": {"dialects": [provider], "quirks": WANTED}, **more})
    rig.upstream.script = stream(events_of(provider))
    return rig


@pytest.mark.parametrize(("client", "provider"), EVERY_WAY)
async def test_a_stream_is_asked_for_and_a_plain_answer_given(
    make_rig: MakeRig, client: DialectValue, provider: DialectValue
) -> None:
    rig = await a_rig(make_rig, provider)
    answer = await rig.relay(dialect=client)
    sent = rig.upstream.requests[0].json()
    assert sent["stream"] is True
    assert sent.get("stream_options") == ({"include_usage": True} if provider == CHAT else None)
    assert (answer.head.status, answer.head.is_streaming) == (200, False)
    assert headers_of(answer)["content-type"] == b"application/json"
    if client != provider or provider in (ANTHROPIC, CHAT):
        assert text_in(client, answer) == "one two three"
    check_usage(client, usage_in(client, answer))
    event = await rig.event(answer.request_id)
    assert (event.tokens, event.cost_nano_usd) == (tokens_of(provider), COST)
    assert event.token_source == usage_pb2.TOKEN_SOURCE_PROVIDER
    assert (event.terminal, event.is_streaming) == (usage_pb2.TERMINAL_COMPLETE, False)


@of_all
async def test_other_bytes_of_the_request_stay(make_rig: MakeRig, dialect: DialectValue) -> None:
    rig = await a_rig(make_rig, dialect)
    body = msgspec.json.format(msgspec.json.encode({**plain_request(dialect), "stream": False, "x": 1}))
    body = body.replace(b'"x": 1', b'"x": 1.0')
    await rig.relay(body, dialect)
    sent = rig.upstream.requests[0].body
    assert sent.startswith(body.replace(b"false", b"true")[:-2])


@of_all
async def test_a_provider_that_answers_plain_all_the_same_is_relayed(
    make_rig: MakeRig, dialect: DialectValue
) -> None:
    rig = await a_rig(make_rig, dialect)
    rig.upstream.script = plain(plain_answer(dialect))
    assert (await rig.relay(dialect=dialect)).body == plain_answer(dialect)


@pytest.mark.parametrize(("client", "provider"), [(d, d) for d in ALL_DIALECTS] + [(ANTHROPIC, CHAT)])
async def test_a_cut_or_failed_stream_is_no_answer_and_another_is_asked(
    make_rig: MakeRig, client: DialectValue, provider: DialectValue
) -> None:
    rig = await a_rig(make_rig, provider, two={"level": 2, "dialects": [client]})
    begun = [*begin_events(provider), text_event(provider, "so far")]
    for script in (stream(begun), stream([*begun, overloaded_event(provider)])):
        rig.upstream.script = script
        rig.other.script = plain(plain_answer(client))
        answer = await rig.relay(dialect=client)
        assert answer.body == plain_answer(client)
        assert (answer.end.attempt_count, answer.end.cost_nano_usd) == (2, COST)


async def test_a_typed_caller_gets_a_whole_answer(make_rig: MakeRig) -> None:
    rig = await a_rig(make_rig, CHAT)
    answer = await completed(rig, chat())
    assert [block.text for block in answer.blocks] == ["one two three"]
    assert answer.cost_nano_usd == COST
