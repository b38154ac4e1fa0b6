"""Each timer of a call, set by its provider: it ends what it is for, and nothing else."""

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lurus.provider.v1 import provider_pb2
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import UpstreamTimeout
from tests.support.scripted_upstream import plain, silent, stream

from .rig import (
    ANTHROPIC,
    CHAT,
    RESPONSES,
    MakeRig,
    begin_events,
    events_of,
    in_process_only,
    make_provider,
    plain_answer,
    refusal,
    stream_request,
)

pytestmark = [pytest.mark.anyio, in_process_only]

SHORT = 0.3
LONG = 20.0


def limits(**seconds: float) -> provider_pb2.ProviderLimits:
    made = provider_pb2.ProviderLimits()
    for name, value in seconds.items():
        getattr(made, name).FromMilliseconds(int(value * 1000))
    return made


def pair(**seconds: float) -> dict[str, dict[str, Any]]:
    return {
        "one": {"level": 1, "limits": limits(**{"connect_timeout": LONG, **seconds})},
        "two": {"level": 2},
    }


@pytest.fixture
def deaf() -> Iterator[str]:
    """The URL of a listener that takes connections and never says a word, so that TLS never begins."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"


async def test_to_connect(make_rig: MakeRig, deaf: str) -> None:
    rig = await make_rig(pair(connect_timeout=SHORT))
    rig.provider.tell(providers=[make_provider("one", deaf, **pair(connect_timeout=SHORT)["one"])])
    rig.other.script = stream(events_of(ANTHROPIC))
    while True:  # until the change has arrived
        started = time.monotonic()
        answer = await rig.relay(stream_request(ANTHROPIC))
        assert answer.head.status == 200 and time.monotonic() - started < LONG
        event = await rig.event(answer.request_id)
        if event.attempts[0].error_reason == UpstreamTimeout.reason:
            break
    assert answer.end.provider_id == "two"


async def test_to_the_first_event(make_rig: MakeRig) -> None:
    rig = await make_rig(pair(first_event_timeout=SHORT, thinking_timeout=LONG))
    rig.upstream.script = silent
    rig.other.script = stream(events_of(ANTHROPIC))
    answer = await rig.relay(stream_request(ANTHROPIC))
    assert answer.end.provider_id == "two"


@pytest.mark.parametrize(
    ("dialect", "more", "thinks"),
    [
        (ANTHROPIC, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        (ANTHROPIC, {"thinking": {"type": "disabled"}}, False),
        (CHAT, {"reasoning_effort": "high"}, True),
        (CHAT, {"reasoning_effort": "none"}, False),
        (RESPONSES, {"reasoning": {"effort": "medium"}}, True),
        (RESPONSES, {}, False),
    ],
)
async def test_thinking_has_longer(
    make_rig: MakeRig, dialect: Any, more: dict[str, Any], thinks: bool
) -> None:
    rig = await make_rig(pair(first_event_timeout=SHORT, thinking_timeout=LONG))
    rig.upstream.script = stream([3 * SHORT, *events_of(dialect)])
    rig.other.script = stream(events_of(dialect))
    answer = await rig.relay(stream_request(dialect, **more), dialect)
    assert answer.end.provider_id == ("one" if thinks else "two")


async def test_a_model_may_think_unasked(make_rig: MakeRig) -> None:
    rig = await make_rig(pair(first_event_timeout=SHORT, thinking_timeout=LONG))
    rig.provider.tell(models=[provider_pb2.Model(model_id="m-1", thinks_first=True)])
    rig.other.script = stream(events_of(ANTHROPIC))
    rig.upstream.script = stream([3 * SHORT, *events_of(ANTHROPIC)])
    while (await rig.relay(stream_request(ANTHROPIC))).end.provider_id != "one":
        pass  # until the change has arrived


async def test_between_bytes(make_rig: MakeRig) -> None:
    rig = await make_rig(pair(idle_timeout=SHORT), heartbeat_seconds=SHORT / 3)
    rig.upstream.script = stream([*events_of(ANTHROPIC)[:3], LONG])
    answer = await rig.relay(stream_request(ANTHROPIC))
    assert answer.end.terminal == usage_pb2.TERMINAL_TIMEOUT
    # Heartbeats only while the provider's own timer runs: it ends them with the stream.
    assert 1 <= answer.body.count(b"event: ping") <= 3


async def test_of_a_whole_stream_and_not_before(make_rig: MakeRig) -> None:
    """A failed attempt before it takes nothing off its time, and a healthy stream has all of it."""
    rig = await make_rig(
        {"one": {"level": 1}, "two": {"level": 2, "limits": limits(stream_total_timeout=1.0)}}
    )
    rig.upstream.script = stream([0.8], is_ended=False)
    rig.other.script = stream([*begin_events(ANTHROPIC), 0.6, *events_of(ANTHROPIC)[2:]])
    answer = await rig.relay(stream_request(ANTHROPIC))
    assert (answer.end.provider_id, answer.end.terminal) == ("two", usage_pb2.TERMINAL_COMPLETE)
    rig.upstream.script = stream([], is_ended=False)
    rig.other.script = stream(events_of(ANTHROPIC, ["x"] * 500), pause_seconds=0.01)
    started = time.monotonic()
    answer = await rig.relay(stream_request(ANTHROPIC))
    assert answer.end.terminal == usage_pb2.TERMINAL_TIMEOUT
    assert time.monotonic() - started >= 1.0


async def test_of_a_plain_answer(make_rig: MakeRig) -> None:
    rig = await make_rig(
        {"one": {"limits": limits(unary_total_timeout=SHORT, first_event_timeout=SHORT / 10)}}
    )
    rig.upstream.script = silent
    error = await refusal(rig.relay())
    assert isinstance(error, UpstreamTimeout)

    async def slow(exchange: Any) -> None:
        await asyncio.sleep(SHORT / 3)  # more than to the first event, which is of streams only
        await plain(plain_answer(ANTHROPIC))(exchange)

    rig.upstream.script = slow
    assert (await rig.relay()).head.status == 200
