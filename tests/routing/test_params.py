"""Fields that an operator leaves out of requests or writes into them, relayed and translated."""

from typing import Any

import pytest

from lurus.provider.v1 import provider_pb2
from lurus_common.errors import Untranslatable
from tests.support.scripted_upstream import plain, stream

from .reading import headers_of
from .rig import (
    ALL_DIALECTS,
    ANTHROPIC,
    CHAT,
    RESPONSES,
    DialectValue,
    MakeRig,
    Rig,
    events_of,
    in_process_only,
    plain_answer,
    refusal,
)

pytestmark = [pytest.mark.anyio, in_process_only]

QUIRKS = provider_pb2.ProviderQuirks(
    dropped_params=["temperature"],
    set_params=[
        provider_pb2.SetParam(name="service_tier", json='"flex"'),
        provider_pb2.SetParam(name="top_p", json="0.50"),
    ],
)
BODIES = {
    ANTHROPIC: b'{ "model":"m-1","max_tokens" : 9, "temperature":1.0,"top_p":0.9,"messages":[{"role":"user",'
    b'"content":"hi"}]%s }',
    CHAT: b'{ "model":"m-1", "temperature":1.0,"top_p":0.9,"messages":[{"role":"user","content":"hi"}]%s }',
    RESPONSES: b'{ "model":"m-1", "temperature":1.0,"top_p":0.9,"input":"hi"%s }',
}


async def a_rig(make_rig: MakeRig, provider: DialectValue) -> Rig:
    rig = await make_rig({"one": {"dialects": [provider], "quirks": QUIRKS}})
    rig.upstream.script = plain(plain_answer(provider))
    return rig


@pytest.mark.parametrize("dialect", ALL_DIALECTS)
async def test_a_relayed_request_changes_there_only(make_rig: MakeRig, dialect: DialectValue) -> None:
    rig = await a_rig(make_rig, dialect)
    answer = await rig.relay(BODIES[dialect] % b"", dialect)
    expected = BODIES[dialect].replace(b'"temperature":1.0,', b"").replace(b"0.9", b"0.50")
    assert rig.upstream.requests[0].body == expected % b',"service_tier":"flex"'
    assert headers_of(answer)["x-lurus-lossy"] == b"temperature,top_p"
    assert list(answer.end.lossy_fields) == ["temperature", "top_p"]
    strict = [("content-type", "application/json"), ("x-lurus-strict", "1")]
    refused = await refusal(rig.relay(BODIES[dialect] % b"", dialect, headers=strict))
    assert isinstance(refused, Untranslatable) and len(rig.upstream.requests) == 1


async def test_usage_is_asked_for_all_the_same(make_rig: MakeRig) -> None:
    rig = await a_rig(make_rig, CHAT)
    rig.upstream.script = stream(events_of(CHAT))
    answer = await rig.relay(BODIES[CHAT] % b',"stream":true', CHAT)
    sent: Any = rig.upstream.requests[0].json()
    assert sent["stream_options"] == {"include_usage": True} and sent["service_tier"] == "flex"
    assert answer.end.tokens.output == 50


@pytest.mark.parametrize(
    ("client", "provider"), [(ANTHROPIC, CHAT), (CHAT, RESPONSES), (RESPONSES, ANTHROPIC)]
)
async def test_a_translated_request_gets_them_too(
    make_rig: MakeRig, client: DialectValue, provider: DialectValue
) -> None:
    rig = await a_rig(make_rig, provider)
    answer = await rig.relay(BODIES[client] % b"", client)
    sent: Any = rig.upstream.requests[0].json()
    assert (sent["service_tier"], sent["top_p"], sent.get("temperature")) == ("flex", 0.5, None)
    assert b"temperature" in headers_of(answer)["x-lurus-lossy"]


async def test_a_count_is_of_what_the_client_sends(make_rig: MakeRig) -> None:
    rig = await a_rig(make_rig, ANTHROPIC)
    rig.upstream.script = plain(b'{"input_tokens": 42}')
    await rig.relay(BODIES[ANTHROPIC] % b"", ANTHROPIC, path="/v1/messages/count_tokens")
    sent: Any = rig.upstream.requests[0].json()
    assert (sent.get("temperature"), sent["top_p"], sent.get("service_tier")) == (None, 0.9, None)
