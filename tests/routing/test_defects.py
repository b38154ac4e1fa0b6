"""A reader or a writer of ours that raises: the client's stream ends in its own words, and is paid for."""

import asyncio
import itertools
import logging
from typing import Any

import pytest

from lurus.routing.v1.chat_pb2 import StreamChatResponse
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import InternalError
from lurus_dialects import translate, watch
from lurus_dialects.dialect import Dialect
from lurus_dialects.translation import DIALECTS
from lurus_routing import metrics
from tests.support.scripted_upstream import Script, stream

from .reading import events_in, text_in
from .rig import (
    ALL_DIALECTS,
    ANTHROPIC,
    CHAT,
    RESPONSES,
    Answer,
    DialectValue,
    MakeRig,
    events_of,
    in_process_only,
    refusal,
    stream_request,
)
from .test_typed import chat, metadata

pytestmark = pytest.mark.anyio

NAMES: dict[int, Dialect] = {number: dialect for dialect, number in DIALECTS.items()}
DIRECTIONS = list(itertools.permutations(ALL_DIALECTS, 2))
# Long enough that some of it is charged.
TEXTS = ["one ", "two " * 100, "boom ", "never "]


class Defect(Exception):
    """What nobody has thought of."""


def break_reader(monkeypatch: pytest.MonkeyPatch, provider: DialectValue, at: bytes = b"boom") -> None:
    """Makes the reader of a provider's dialect raise at an event."""

    class Broken(translate._STREAM_READERS[NAMES[provider]]):  # type: ignore[misc]
        def read(self, name: bytes, data: bytes) -> list[StreamChatResponse]:
            if at in data:
                raise Defect
            return super().read(name, data)  # type: ignore[no-any-return]

    monkeypatch.setitem(translate._STREAM_READERS, NAMES[provider], Broken)


def break_writer(monkeypatch: pytest.MonkeyPatch, client: DialectValue) -> None:
    """Makes the writer of a client's dialect raise at a text, and from then on even at an error."""

    class Broken(translate._STREAM_WRITERS[NAMES[client]]):  # type: ignore[misc]
        def write(self, event: StreamChatResponse) -> bytes:
            if "boom" in event.text_delta:
                raise Defect
            return super().write(event)  # type: ignore[no-any-return]

        def error(self, reason: str, message: str, request_id: str) -> bytes:
            raise Defect

    monkeypatch.setitem(translate._STREAM_WRITERS, NAMES[client], Broken)


def in_two_parts(provider: DialectValue) -> tuple[Script, asyncio.Event]:
    """Returns a stream that goes on, in one chunk, when its reader has the first text and says so."""
    events, has_begun = events_of(provider, TEXTS), asyncio.Event()
    first = next(i for i, event in enumerate(events) if b"one " in event) + 1
    return stream([b"".join(events[:first]), has_begun, b"".join(events[first:])]), has_begun


def check_end(client: DialectValue, body: bytes) -> None:
    """Checks that a stream ends in the error event of its dialect, and in nothing after it."""
    name, data = events_in(body)[-1]
    if client == ANTHROPIC:
        assert (name, data["error"]) == ("error", {"type": "api_error", "message": "internal error"})
    elif client == CHAT:
        assert (data["error"]["code"], data["error"]["message"]) == ("internal_error", "internal error")
    else:
        assert (name, data["response"]["status"]) == ("response.failed", "failed")
        assert data["response"]["error"] == {"code": "server_error", "message": "internal error"}
        assert data["response"]["id"] == events_in(body)[0][1]["response"]["id"]


def defects(client: DialectValue, provider: DialectValue) -> float:
    """How many were counted."""
    child = metrics.DEFECTS.labels(NAMES[client].value, NAMES[provider].value)
    return float(child._value.get())


@pytest.mark.parametrize("where", ["reader", "writer"])
@pytest.mark.parametrize(("client", "provider"), DIRECTIONS)
class TestAmidAnAnswer:
    async def test_the_stream_ends_in_the_clients_words_and_is_paid_for(
        self,
        make_rig: MakeRig,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        client: DialectValue,
        provider: DialectValue,
        where: str,
    ) -> None:
        rig = await make_rig({"one": {"dialects": [provider]}})
        if where == "reader":
            break_reader(monkeypatch, provider)
        else:
            break_writer(monkeypatch, client)
        before = defects(client, provider)
        rig.upstream.script, has_begun = in_two_parts(provider)
        answer = Answer()
        with caplog.at_level(logging.ERROR):
            async for response in rig.start(rig.request(stream_request(client), client)):
                answer.take(response)
                has_begun.set()
        assert text_in(client, answer) == TEXTS[0] + TEXTS[1]
        check_end(client, answer.body)
        event = await rig.event(answer.request_id)
        assert (event.terminal, event.error_reason) == (usage_pb2.TERMINAL_TRUNCATED, "INTERNAL")
        assert event.tokens.output >= 100
        assert answer.end.cost_nano_usd == event.cost_nano_usd > 0
        assert defects(client, provider) == before + 1
        told = [record for record in caplog.records if answer.request_id in record.getMessage()]
        assert [record.exc_info is not None for record in told] == [True]
        assert await rig.is_well("one")


@in_process_only
class TestBeforeAnAnswer:
    async def test_another_provider_is_asked(
        self, make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rig = await make_rig({"one": {"dialects": [CHAT]}, "two": {"dialects": [RESPONSES], "level": 2}})
        break_reader(monkeypatch, CHAT, b"role")
        rig.upstream.script = stream(events_of(CHAT))
        rig.other.script = stream(events_of(RESPONSES))
        answer = await rig.relay(stream_request(ANTHROPIC))
        assert text_in(ANTHROPIC, answer) == "one two three"
        event = await rig.event(answer.request_id)
        assert [attempt.error_reason for attempt in event.attempts] == ["INTERNAL", ""]
        assert await rig.is_well("one")

    async def test_without_another_it_is_our_fault(
        self, make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rig = await make_rig({"one": {"dialects": [CHAT]}})
        break_reader(monkeypatch, CHAT, b"role")
        rig.upstream.script = stream(events_of(CHAT))
        error = await refusal(rig.relay(stream_request(ANTHROPIC)))
        assert isinstance(error, InternalError)
        assert (await rig.only_event()).cost_nano_usd == 0


@in_process_only
async def test_a_typed_answer_ends_in_an_error_and_its_receipt(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await make_rig({"one": {"dialects": [CHAT]}})
    break_reader(monkeypatch, CHAT)
    rig.upstream.script, has_begun = in_two_parts(CHAT)
    events = []
    async for event in rig.stub.StreamChat(chat(), metadata=metadata(rig)):
        events.append(event)
        has_begun.set()
    error, receipt = events[-2:]
    assert error.error.reason == "INTERNAL"
    assert receipt.receipt.cost_nano_usd > 0


@in_process_only
async def test_a_relayed_stream_outlives_a_defect_in_counting(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await make_rig()
    observe = watch.OBSERVERS[Dialect.ANTHROPIC]

    def broken(answer: Any, name: bytes, data: bytes) -> bool:
        if b"boom" in data:
            raise Defect
        return observe(answer, name, data)

    monkeypatch.setitem(watch.OBSERVERS, Dialect.ANTHROPIC, broken)
    events = events_of(ANTHROPIC, TEXTS)
    rig.upstream.script = stream(events)
    answer = await rig.relay(stream_request(ANTHROPIC))
    assert answer.body == b"".join(events)
    assert answer.end.tokens.output == 50
