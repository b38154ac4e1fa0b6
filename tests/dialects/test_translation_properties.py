"""What holds for every stream however it is cut, and for every request wherever it goes."""

import itertools
import json
from collections.abc import Iterable
from functools import lru_cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lurus.provider.v1.provider_pb2 import ProviderQuirks
from lurus.routing.v1.chat_pb2 import StreamChatRequest, StreamChatResponse
from lurus_common.errors import Untranslatable
from lurus_dialects import translate
from lurus_dialects.dialect import Dialect
from lurus_dialects.sse import SseParser
from lurus_dialects.translation import Losses, Target

from .histories import Marked, histories
from .made_streams import MADE
from .streams import GOLDENS, dialect_of, recorded

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES
STREAMS = {name: (dialect_of(name), recorded(name)) for name in GOLDENS} | MADE
DIRECTIONS = list(itertools.permutations(Dialect, 2))
EVERYTHING = ProviderQuirks(
    has_custom_tools=True, has_mid_system=True, has_developer_role=True, has_tool_parts=True
)


def heard(dialect: Dialect, chunks: Iterable[bytes]) -> bytes:
    """Returns all that a reader says of a stream that comes in these chunks, as bytes."""
    parser = SseParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    last = parser.finish()
    if last is not None:
        events.append(last)
    return _said(dialect, tuple((event.name, event.data) for event in events if event.data))


@lru_cache(maxsize=1000)
def _said(dialect: Dialect, events: tuple[tuple[bytes, bytes], ...]) -> bytes:
    reader = translate.stream_reader(dialect, {})
    said: list[StreamChatResponse] = []
    for name, data in events:
        said += reader.read(name, data)
    said += reader.end()
    return b"".join(event.SerializeToString(deterministic=True) + b"|" for event in said)


def with_line_ends(stream: bytes, line_end: bytes) -> bytes:
    """Returns a stream whose lines end so."""
    return stream.replace(b"\r\n", b"\n").replace(b"\n", line_end)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("name", STREAMS)
class TestCuts:
    def test_a_stream_cut_in_two_anywhere_says_the_same(self, name: str, line_end: bytes) -> None:
        dialect, stream = STREAMS[name]
        stream = with_line_ends(stream, line_end)
        whole = heard(dialect, [stream])
        assert whole
        for offset in range(1, len(stream)):
            assert heard(dialect, [stream[:offset], stream[offset:]]) == whole, f"cut at {offset}"

    def test_a_stream_byte_by_byte_says_the_same(self, name: str, line_end: bytes) -> None:
        dialect, stream = STREAMS[name]
        stream = with_line_ends(stream, line_end)
        pieces = [stream[at : at + 1] for at in range(len(stream))]
        assert heard(dialect, pieces) == heard(dialect, [stream])


@pytest.mark.parametrize("name", STREAMS)
def test_line_ends_do_not_matter(name: str) -> None:
    dialect, stream = STREAMS[name]
    lf, crlf, cr = (heard(dialect, [with_line_ends(stream, end)]) for end in (b"\n", b"\r\n", b"\r"))
    assert lf == crlf == cr


class TestRequests:
    @pytest.mark.parametrize(("source", "target"), DIRECTIONS, ids=lambda dialect: dialect.value)
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_every_block_arrives_or_its_loss_is_named(
        self, source: Dialect, target: Dialect, data: st.DataObject
    ) -> None:
        history = data.draw(histories(source))
        quirks = data.draw(st.sampled_from([ProviderQuirks(), EVERYTHING]))
        losses = Losses()
        try:
            written = self._written(source, target, history.body, quirks, losses)
        except Untranslatable as error:
            assert error.message.startswith(error.metadata["param"])
            assert any(_touch(error.metadata["param"], block.path) for block in history.blocks)
            return
        arrived = self._flat(translate.read_request(target, written, Losses()))
        for block in history.blocks:
            assert block.marker in arrived or self._is_named(block, losses), (
                f"{block} is lost; warned {losses.warned}, noted {losses.silent}"
            )

    @pytest.mark.parametrize("dialect", list(Dialect))
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_a_request_that_stays_in_its_dialect_loses_nothing(
        self, dialect: Dialect, data: st.DataObject
    ) -> None:
        history = data.draw(histories(dialect))
        losses = Losses()
        written = self._written(dialect, dialect, history.body, EVERYTHING, losses)
        once = translate.read_request(dialect, history.body, Losses())
        # A begun answer is named to all, since a request does not say whose words it was in.
        assert set(losses.warned) <= {once.messages[-1].source_path}
        again = translate.read_request(dialect, written, Losses())
        assert all(block.marker in self._flat(again) for block in history.blocks)
        assert self._roles(again) == self._roles(once)

    def _written(
        self, source: Dialect, target: Dialect, body: bytes, quirks: ProviderQuirks, losses: Losses
    ) -> bytes:
        request = translate.read_request(source, body, losses)
        to = Target(dialect=target, upstream_model="m", quirks=quirks, max_output_tokens=1000)
        written = translate.write_request(request, to, losses, is_streaming=True).body
        assert isinstance(json.loads(written), dict)
        return written

    def _roles(self, request: StreamChatRequest) -> list[int]:
        """Turns of one speaker in a row are one turn."""
        return [role for role, _ in itertools.groupby(message.role for message in request.messages)]

    def _flat(self, request: StreamChatRequest) -> str:
        return "".join(str(message) for message in request.messages)

    def _is_named(self, block: Marked, losses: Losses) -> bool:
        if block.is_thinking:
            return bool(losses.silent)
        return any(_touch(path, block.path) for path in losses.warned)


def _touch(one: str, other: str) -> bool:
    """Whether one path lies at or below the other."""
    shorter, longer = sorted((one, other), key=len)
    return longer == shorter or longer.startswith((f"{shorter}.", f"{shorter}["))
