"""Framing of server-sent events."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lurus_dialects.sse import EventTooLarge, SseEvent, SseParser


def parse(*chunks: bytes) -> list[SseEvent]:
    parser = SseParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    tail = parser.finish()
    return [*events, tail] if tail is not None else events


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [(b"", b"a")]),
        (b"data:a\n\n", [(b"", b"a")]),
        (b"data:  a\n\n", [(b"", b" a")]),
        (b"data\n\n", [(b"", b"")]),
        (b"data: a\ndata:b\ndata: \n\n", [(b"", b"a\nb\n")]),
        (b"event: x\ndata: a\n\n", [(b"x", b"a")]),
        (b"event:x\ndata:a\n\n", [(b"x", b"a")]),
        (b"data: a\nevent: x\n\n", [(b"x", b"a")]),
        (b": only a comment\n\n", [(b"", b"")]),
        (b": c\nfoo: bar\nretry: 3\ndata: a\n\n", [(b"", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")]),
        ("data: \u2028\u0085\u2029\x0b\x0c\n\n".encode(), [(b"", "\u2028\u0085\u2029\x0b\x0c".encode())]),
        (b"\n\ndata: a\n\n\n\ndata: b\n\n", [(b"", b""), (b"", b"a"), (b"", b""), (b"", b"b")]),
        (b"data: unfinished", [(b"", b"unfinished")]),
    ],
)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_forms(stream: bytes, expected: list[tuple[bytes, bytes]], line_end: bytes) -> None:
    stream = stream.replace(b"\n", line_end)
    for chunks in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        events = parse(*chunks)
        fields = [(event.name, event.data) for event in events]
        dispatched = [pair for pair in expected if pair[1]]
        assert [pair for pair in fields if pair[1]] == [(name, data) for name, data in dispatched]
        assert b"".join(event.raw for event in events) == stream


@given(
    st.lists(
        st.sampled_from([b"data: x", b"data:y", b"event: e", b": c", b"\n", b"\r\n", b"\r", b"id: 1", b"z"])
    ),
    st.lists(st.integers(0, 60)),
)
@pytest.mark.row("B43")
def test_no_byte_is_lost_and_cuts_do_not_matter(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    whole = parse(stream)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = parse(*[stream[a:b] for a, b in pairwise(edges)])
    assert b"".join(event.raw for event in pieces) == stream == b"".join(event.raw for event in whole)
    assert [(e.name, e.data) for e in pieces if e.data] == [(e.name, e.data) for e in whole if e.data]


def test_an_id_is_noticed() -> None:
    assert [event.has_id for event in parse(b"data: a\n\nid: 7\ndata: a\n\n")] == [False, True]


def test_a_crlf_stream_is_not_released_between_cr_and_lf() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\r\n\r") == []
    assert [event.raw for event in parser.feed(b"\n")] == [b"data: a\r\n\r\n"]


def test_a_cr_stream_is_not_held_back() -> None:
    assert [event.data for event in SseParser().feed(b"data: a\r\r")] == [b"a"]


def test_an_event_over_the_limit_is_refused_and_not_kept() -> None:
    parser = SseParser(maximum_event_bytes=1000)
    for _ in range(1000):
        assert parser.feed(b"x") == []
    with pytest.raises(EventTooLarge) as caught:
        parser.feed(b"x")
    assert caught.value.metadata == {"maximum_bytes": "1000"}
    assert parser.held_bytes == 0
    with pytest.raises(EventTooLarge):
        parser.feed(b"data: a\n\n")
    assert parser.finish() is None
