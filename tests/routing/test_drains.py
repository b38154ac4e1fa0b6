"""Streams that are read on after their clients have left (wire-contract U5)."""

import asyncio

import pytest

from lurus.provider.v1 import provider_pb2
from lurus.usage.v1 import usage_pb2
from lurus_routing import drains
from tests.support.scripted_upstream import stream

from .reading import tokens_of
from .rig import (
    ALL_DIALECTS,
    ANTHROPIC,
    CHAT,
    COST,
    RESPONSES,
    DialectValue,
    MakeRig,
    Rig,
    events_of,
    in_process_only,
    stream_request,
    until,
)

pytestmark = pytest.mark.anyio

DIRECTIONS = [*((d, d) for d in ALL_DIALECTS), (ANTHROPIC, CHAT), (CHAT, RESPONSES), (RESPONSES, ANTHROPIC)]


async def begin(
    make_rig: MakeRig, client: DialectValue = ANTHROPIC, provider: DialectValue = ANTHROPIC
) -> tuple[Rig, asyncio.Event]:
    """Returns a rig whose client has left amid an answer, and what lets the provider go on."""
    fields = {"dialects": [provider], "on_disconnect": provider_pb2.ON_DISCONNECT_DRAIN}
    rig = await make_rig({"one": fields})
    events, may_go_on = events_of(provider), asyncio.Event()
    first = next(number for number, event in enumerate(events) if b"one " in event) + 1
    rig.upstream.script = stream([*events[:first], may_go_on, *events[first:]])
    call = rig.start(rig.request(stream_request(client), client))
    async for response in call:
        if b"one " in response.data:
            break
    call.cancel()
    return rig, may_go_on


async def until_gone(rig: Rig) -> None:
    """Waits until the provider is let go."""
    await asyncio.wait_for(rig.upstream.requests[0].gone.wait(), 20)


@pytest.mark.parametrize(("client", "provider"), DIRECTIONS)
async def test_what_was_used_is_exact_and_charged_once(
    make_rig: MakeRig, client: DialectValue, provider: DialectValue
) -> None:
    rig, may_go_on = await begin(make_rig, client, provider)
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert [state for state, _ in rig.rows().values()] == [0]
    assert not rig.upstream.requests[0].gone.is_set()
    may_go_on.set()
    event = await rig.only_event()
    assert event.terminal == usage_pb2.TERMINAL_CLIENT_GONE
    assert (event.tokens, event.cost_nano_usd) == (tokens_of(provider), COST)
    assert event.token_source == usage_pb2.TOKEN_SOURCE_PROVIDER
    assert len(rig.rows()) == 1


@in_process_only
async def test_it_is_not_read_for_ever(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drains, "MAX_DRAIN_SECONDS", 0.2)
    rig, _ = await begin(make_rig)
    await until_gone(rig)
    event = await rig.only_event()
    assert event.terminal == usage_pb2.TERMINAL_CLIENT_GONE
    assert event.token_source == usage_pb2.TOKEN_SOURCE_PARTIAL


@in_process_only
async def test_no_more_are_read_than_there_may_be(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drains, "MAX_DRAINS", 0)
    rig, _ = await begin(make_rig)
    await until_gone(rig)
    assert (await rig.only_event()).token_source == usage_pb2.TOKEN_SOURCE_PARTIAL


@in_process_only
async def test_a_server_that_stops_waits_for_none(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    make = drains.Drains.__init__

    def remember(self: drains.Drains) -> None:
        make(self)
        held.append(self)

    monkeypatch.setattr(drains.Drains, "__init__", remember)
    rig, _ = await begin(make_rig)
    await until(lambda: held[0]._tasks)
    await held[0].stop()
    await until_gone(rig)
    event = await rig.only_event()
    assert event.token_source == usage_pb2.TOKEN_SOURCE_PARTIAL
    assert len(rig.rows()) == 1
