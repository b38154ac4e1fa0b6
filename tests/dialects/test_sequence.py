"""Blocks that alternate at the provider come one after the other."""

from lurus.routing.v1.chat_pb2 import ChatBlockStart, ChatFinish, ChatToolCall, StreamChatResponse
from lurus_dialects import sequence
from lurus_dialects.sequence import Sequencer


def begin(index: int) -> StreamChatResponse:
    return StreamChatResponse(block_start=ChatBlockStart(), block_index=index)


def part(index: int, text: str = "x") -> StreamChatResponse:
    return StreamChatResponse(arguments_delta=text, block_index=index)


def end(index: int) -> StreamChatResponse:
    return StreamChatResponse(tool_call=ChatToolCall(), block_index=index)


def fed(events: list[StreamChatResponse]) -> list[StreamChatResponse]:
    sequencer = Sequencer()
    return [told for event in events for told in sequencer.feed(event)]


def test_blocks_in_order_pass_at_once() -> None:
    sequencer = Sequencer()
    for event in (begin(0), part(0), end(0), begin(1), part(1), end(1)):
        assert sequencer.feed(event) == [event]


def test_alternating_blocks_are_put_one_after_the_other() -> None:
    given = [
        begin(0),
        begin(1),
        part(0),
        part(1),
        begin(2),
        part(2),
        part(0),
        end(0),
        part(1),
        end(1),
        end(2),
    ]
    finish = StreamChatResponse(finish=ChatFinish())
    told = fed([*given, finish])
    assert [event.block_index for event in told[:-1]] == [0] * 4 + [1] * 4 + [2] * 3
    assert told[-1] == finish and len(told) == len(given) + 1


def test_what_is_held_is_bounded(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sequence, "MAX_HELD_BYTES", 1000)
    told = fed([begin(0), begin(1), *[part(1, "x" * 100) for _ in range(20)]])
    assert told[-1].error.reason == "UPSTREAM_FAILED"
