"""The relay of calls, on the in-process channel and on the wire: one suite for both."""

import pytest

from lurus.usage.v1 import usage_pb2
from tests.support.scripted_upstream import plain, stream

from .rig import ALL_DIALECTS, COST, PATHS, DialectValue, Rig, events_of, plain_answer, stream_request

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("dialect", ALL_DIALECTS)
class TestHappyPath:
    async def test_a_plain_answer_is_relayed(self, rig: Rig, dialect: DialectValue) -> None:
        rig.upstream.script = plain(plain_answer(dialect))
        answer = await rig.relay(dialect=dialect)
        assert answer.head.status == 200
        assert answer.body == plain_answer(dialect)
        assert answer.end.cost_nano_usd == COST
        assert rig.upstream.requests[0].target == PATHS[dialect]

    async def test_a_stream_is_relayed(self, rig: Rig, dialect: DialectValue) -> None:
        events = events_of(dialect)
        rig.upstream.script = stream(events)
        answer = await rig.relay(stream_request(dialect, stream_options={"include_usage": True}), dialect)
        assert answer.head.is_streaming
        assert answer.body == b"".join(events)
        assert answer.end.token_source == usage_pb2.TOKEN_SOURCE_PROVIDER
        assert answer.end.cost_nano_usd == COST
