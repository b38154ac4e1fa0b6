"""The relay's watcher: nothing of a stream is changed, and everything it says is known."""

import json
from collections.abc import Iterable

import pytest

from lurus_common.money import Tokens
from lurus_dialects import loose
from lurus_dialects.dialect import Dialect
from lurus_dialects.sse import EventTooLarge, SseParser
from lurus_dialects.watch import StreamWatcher

from .streams import GOLDENS, Golden, dialect_of, recorded

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES


def watch(dialect: Dialect, chunks: Iterable[bytes], **options: bool) -> tuple[StreamWatcher, bytes]:
    watcher = StreamWatcher(dialect, **options)
    released = b"".join([watcher.feed(chunk) for chunk in chunks])
    return watcher, released + watcher.finish()


def found(watcher: StreamWatcher) -> Golden:
    assert watcher.broken_event_count == watcher.anomaly_count == 0
    assert watcher.error_seen != watcher.terminal_ok
    return Golden(
        watcher.tokens,
        watcher.stop_reason,
        watcher.response_id,
        watcher.output_bytes,
        watcher.sequence_number,
        watcher.terminal_ok,
    )


def one_byte_chunks(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("name", GOLDENS)
class TestGoldenStreams:
    def test_in_one_chunk(self, name: str, line_end: bytes) -> None:
        stream = recorded(name).replace(b"\n", line_end)
        watcher, released = watch(dialect_of(name), [stream])
        assert released == stream
        assert found(watcher) == GOLDENS[name]

    @pytest.mark.row("B43")
    def test_byte_by_byte(self, name: str, line_end: bytes) -> None:
        stream = recorded(name).replace(b"\n", line_end)
        watcher, released = watch(dialect_of(name), one_byte_chunks(stream))
        assert released == stream
        assert found(watcher) == GOLDENS[name]


@pytest.mark.parametrize(
    "name", ["anthropic-tools", "anthropic-crlf", "openai_chat-text", "openai_responses-text"]
)
@pytest.mark.row("B43")
def test_defect_b2_usage_survives_a_cut_at_every_byte(name: str) -> None:
    stream = recorded(name)
    for cut in range(len(stream)):
        watcher, released = watch(dialect_of(name), [stream[:cut], stream[cut:]])
        assert released == stream, cut
        assert found(watcher) == GOLDENS[name.replace("crlf", "tools")], cut


def test_ordinary_streams_are_read_by_the_strict_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loose one is slow, and spells numbers anew."""
    monkeypatch.setattr(loose, "fit", None)
    for name, golden in GOLDENS.items():
        watcher, _ = watch(dialect_of(name), [recorded(name)])
        assert found(watcher) == golden


def test_a_stream_recorded_with_crlf_is_the_same_stream() -> None:
    watcher, released = watch(A, [recorded("anthropic-crlf")])
    assert released == recorded("anthropic-crlf")
    assert found(watcher) == GOLDENS["anthropic-tools"]


def test_defect_b_every_dialect_is_metered_where_it_states_usage() -> None:
    for name in ("anthropic-tools", "openai_chat-text", "openai_responses-text"):
        watcher, _ = watch(dialect_of(name), [recorded(name)])
        assert watcher.usage_seen and watcher.final_usage_seen
        assert (watcher.tokens.input, watcher.tokens.output) == (10, 50)


def test_events_are_released_as_soon_as_they_are_whole() -> None:
    watcher = StreamWatcher(A)
    stream = recorded("anthropic-tools")
    first_end = stream.index(b"\n\n") + 2
    assert watcher.feed(stream[: first_end - 1]) == b""
    assert watcher.feed(stream[first_end - 1 : first_end + 5]) == stream[:first_end]
    assert not watcher.content_seen
    assert watcher.tokens.cache_read == 1000


@pytest.mark.parametrize("name", [n for n in GOLDENS if GOLDENS[n].is_ok])
def test_the_terminal_event_is_known_before_it_is_released(name: str) -> None:
    watcher = StreamWatcher(dialect_of(name))
    for event in SseParser().feed(recorded(name)):
        assert not watcher.is_over
        watcher.feed(event.raw)
    assert watcher.terminal_seen and watcher.terminal_ok


class TestCutStreams:
    @pytest.mark.parametrize("name", [n for n in GOLDENS if GOLDENS[n].is_ok])
    def test_a_cut_stream_has_no_terminal_and_no_half_event(self, name: str) -> None:
        stream = recorded(name)
        starts = [0]
        for event in SseParser().feed(stream):
            starts.append(starts[-1] + len(event.raw))
        cut = starts[2] + 20
        watcher, released = watch(dialect_of(name), [stream[:cut]])
        assert released == stream[: starts[2]]
        assert not watcher.is_over and not watcher.terminal_ok

    @pytest.mark.parametrize("missing", [1, 2])
    def test_a_last_event_that_lacks_only_its_blank_line_is_completed(self, missing: int) -> None:
        for name in ("anthropic-tools", "openai_chat-text", "openai_responses-text", "anthropic-crlf"):
            stream = recorded(name)
            missing_bytes = missing * (2 if name.endswith("crlf") else 1)
            watcher, released = watch(dialect_of(name), [stream[:-missing_bytes]])
            assert released == stream
            assert watcher.terminal_ok

    def test_a_chat_answer_without_done_is_whole_once_its_reason_is_known(self) -> None:
        stream = recorded("openai_chat-tools").removesuffix(b"data: [DONE]\n\n")
        watcher, released = watch(C, [stream])
        assert released == stream
        assert watcher.terminal_ok and not watcher.terminal_seen

    @pytest.mark.row("B46")
    def test_output_of_a_cut_stream_is_estimated_from_what_was_seen(self) -> None:
        stream = recorded("anthropic-tools")
        watcher, _ = watch(A, [stream[: stream.index(b"event: message_delta")]])
        assert watcher.tokens.output == 1 and not watcher.final_usage_seen
        assert watcher.estimated_output_tokens() == -(-GOLDENS["anthropic-tools"].output_bytes // 4)

    def test_one_character_is_never_estimated_as_nothing(self) -> None:
        watcher = StreamWatcher(C)
        assert watcher.estimated_output_tokens() == 0
        watcher.feed(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
        assert watcher.content_seen and watcher.estimated_output_tokens() == 1


class TestHiddenUsageChunk:
    """B6, P09–P13."""

    @pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
    def test_defect_b3_the_chunk_that_was_not_asked_for_is_metered_and_hidden(self, line_end: bytes) -> None:
        stream = recorded("openai_chat-text").replace(b"\n", line_end)
        events = SseParser().feed(stream)
        expected = stream.replace(events[-2].raw, b"")
        for chunks in ([stream], one_byte_chunks(stream), [event.raw for event in events]):
            watcher, released = watch(C, chunks, strip_usage_chunk=True)
            assert released == expected
            assert found(watcher) == GOLDENS["openai_chat-text"]

    def test_usage_beside_a_choice_is_relayed(self) -> None:
        usage = b'{"prompt_tokens":3,"completion_tokens":1}'
        stream = b'data: {"choices":[{"index":0,"delta":{}}],"usage":' + usage + b"}\n\n"
        watcher, released = watch(C, [stream], strip_usage_chunk=True)
        assert released == stream
        assert watcher.tokens == Tokens(input=3, output=1)

    def test_chunks_without_usage_are_relayed(self) -> None:
        stream = b'data: {"choices":[],"usage":null}\n\ndata: {"choices":[],"prompt_filter_results":[]}\n\n'
        assert watch(C, [stream], strip_usage_chunk=True)[1] == stream

    @pytest.mark.parametrize("name", ["anthropic-tools", "openai_responses-text"])
    def test_other_dialects_have_no_such_chunk(self, name: str) -> None:
        assert watch(dialect_of(name), [recorded(name)], strip_usage_chunk=True)[1] == recorded(name)


class TestOddStreams:
    @pytest.mark.parametrize("dialect", list(Dialect))
    @pytest.mark.parametrize(
        "data",
        [
            b"{",
            b"nonsense",
            b"[1]",
            b"\xff\xfe",
            b'{"type":3,"choices":7,"delta":[]}',
            b"[" * 5000,
            b'{"usage":' + b"9" * 5000 + b"}",
            b'{"choices":[{"delta":{"content":["a"]}}]}',
            b'{"type":"message_start","message":[],"response":1}',
        ],
    )
    @pytest.mark.row("B44")
    def test_garbage_passes_and_nothing_is_raised(self, dialect: Dialect, data: bytes) -> None:
        stream = b"event: x\ndata: " + data + b"\n\n"
        watcher, released = watch(dialect, [stream])
        assert released == stream
        assert watcher.tokens == Tokens() and not watcher.is_over

    @pytest.mark.row("B44")
    def test_broken_events_are_counted(self) -> None:
        assert watch(A, [b"data: {\n\ndata: }\n\n: fine\n\n"])[0].broken_event_count == 2

    def test_half_a_surrogate_pair_is_output_like_any_other(self) -> None:
        stream = b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n'
        watcher, released = watch(C, [stream])
        assert released == stream
        assert watcher.output_bytes == 3 and watcher.broken_event_count == 0

    def test_arguments_given_as_an_object_are_output(self) -> None:
        data = b'{"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]}}]}'
        assert watch(C, [b"data: " + data + b"\n\n"])[0].output_bytes == len('f{"a":1}')

    @pytest.mark.row("B43")
    def test_an_event_over_the_limit_ends_the_stream_after_what_was_before_it(self) -> None:
        for size in (1, 50, 1000):
            stream = b"data: {}\n\n" * 3 + b"data: " + b"x" * 200 + b"\n\n"
            watcher = StreamWatcher(A, maximum_event_bytes=100)
            released = b""
            with pytest.raises(EventTooLarge):
                for begin in range(0, 2000, size):
                    released += watcher.feed(stream[begin : begin + size])
            assert released == b"data: {}\n\n" * 3
            assert watcher.finish() == b""

    def test_an_event_of_6_megabytes_passes(self) -> None:
        data = json.dumps(
            {"type": "content_block_delta", "delta": {"partial_json": "x" * (6 << 20)}}
        ).encode()
        stream = b"event: content_block_delta\ndata: " + data + b"\n\n"
        chunks = [stream[i : i + 65536] for i in range(0, len(stream), 65536)]
        watcher, released = watch(A, chunks)
        assert released == stream
        assert watcher.output_bytes == 6 << 20

    def test_upstream_errors_are_kept_as_a_body_of_the_dialect(self) -> None:
        overloaded, _ = watch(A, [recorded("anthropic-error")])
        assert json.loads(overloaded.error_body)["error"]["type"] == "overloaded_error"
        chat, _ = watch(C, [recorded("openai_chat-error")])
        assert json.loads(chat.error_body)["error"]["type"] == "server_error"
        failed, _ = watch(R, [recorded("openai_responses-failed")])
        assert json.loads(failed.error_body)["error"]["code"] == "server_error"
        bare, _ = watch(R, [recorded("openai_responses-error")])
        assert json.loads(bare.error_body)["error"]["code"] == "rate_limit_exceeded"
        assert not bare.content_seen

    def test_text_that_comes_only_with_the_finished_item_is_output(self) -> None:
        item = {"type": "message", "content": [{"type": "output_text", "text": "twelve bytes"}]}
        data = json.dumps({"type": "response.output_item.done", "sequence_number": 4, "item": item}).encode()
        watcher, _ = watch(R, [b"data: " + data + b"\n\n"])
        assert watcher.content_seen and watcher.estimated_output_tokens() == 3


class TestHeartbeat:
    def test_anthropic(self) -> None:
        assert StreamWatcher(A).heartbeat() == b'event: ping\ndata: {"type": "ping"}\n\n'

    def test_chat_comments_and_never_makes_an_empty_event_after_an_id(self) -> None:
        watcher = StreamWatcher(C)
        assert watcher.heartbeat() == b": keepalive\n\n"
        watcher.feed(b"id: 7\ndata: {}\n\n")
        assert watcher.heartbeat() == b": keepalive\n"

    def test_responses_comments_before_the_first_event_and_numbers_afterwards(self) -> None:
        watcher = StreamWatcher(R)
        assert watcher.heartbeat() == b": keepalive\n\n"
        stream = recorded("openai_responses-text")
        watcher.feed(stream[: stream.index(b"event: response.output_item.added")])
        assert watcher.heartbeat() == b'event: keepalive\ndata: {"type":"keepalive","sequence_number":1}\n\n'


class TestStreamError:
    """The event after which a begun stream ends."""

    def test_anthropic(self) -> None:
        event = StreamWatcher(A).stream_error("UPSTREAM_TIMEOUT", "too slow", "req_1")
        name, data = event.split(b"\n", 1)
        assert name == b"event: error" and event.endswith(b"\n\n")
        assert json.loads(data.removeprefix(b"data: ")) == {
            "type": "error",
            "error": {"type": "timeout_error", "message": "too slow"},
            "request_id": "req_1",
        }

    def test_chat(self) -> None:
        event = StreamWatcher(C).stream_error("UPSTREAM_CUT", "cut", "req_1")
        assert json.loads(event.removeprefix(b"data: ")) == {
            "error": {"message": "cut", "type": "server_error", "param": None, "code": "upstream_error"}
        }

    def test_responses_continues_the_numbers_and_repeats_the_id_and_the_items(self) -> None:
        stream = recorded("openai_responses-tools")
        watcher, _ = watch(R, [stream[: stream.index(b"event: response.completed")]])
        event = watcher.stream_error("UPSTREAM_CUT", "cut", "req_1")
        assert event.startswith(b"event: response.failed\ndata: ")
        data = json.loads(event.partition(b"data: ")[2])
        assert data["sequence_number"] == 19
        response = data["response"]
        assert (response["id"], response["status"]) == ("resp_68c2f1e0t00l", "failed")
        assert response["error"] == {"code": "server_error", "message": "cut"}
        assert [item["type"] for item in response["output"]] == [
            "reasoning",
            "function_call",
            "custom_tool_call",
        ]

    def test_responses_before_any_event_makes_up_an_id(self) -> None:
        data = json.loads(StreamWatcher(R).stream_error("OVERLOADED", "x", "req_1").partition(b"data: ")[2])
        assert data["sequence_number"] == 0
        assert data["response"]["id"] == "resp_1"
        # `server_is_overloaded` would end Codex's turn.
        assert data["response"]["error"]["code"] == "server_error"
