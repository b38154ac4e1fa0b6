"""Token counts: merged, never overwritten, never counted twice."""

import json

import pytest

from lurus_common.money import Tokens
from lurus_dialects.body import body_usage
from lurus_dialects.dialect import Dialect
from lurus_dialects.usage import MAX_RAW_USAGE_BYTES, MAX_TOKEN_COUNT, UsageMeter

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES


def metered(dialect: Dialect, *pieces: object) -> UsageMeter:
    meter = UsageMeter(dialect)
    for piece in pieces:
        meter.add(json.dumps(piece).encode())
    return meter


class TestMerging:
    def test_an_absent_or_null_count_keeps_its_value(self) -> None:
        meter = metered(
            A, {"input_tokens": 10, "cache_read_input_tokens": 5}, {"input_tokens": None, "output_tokens": 4}
        )
        assert meter.tokens() == Tokens(input=10, cache_read=5, output=4)

    def test_m03_the_last_cumulative_value_wins(self) -> None:
        meter = metered(A, {"output_tokens": 20}, {"input_tokens": 12, "output_tokens": 50})
        assert meter.tokens() == Tokens(input=12, output=50)
        assert meter.anomaly_count == 0

    def test_a_count_never_shrinks_and_the_attempt_is_counted(self) -> None:
        meter = metered(A, {"input_tokens": 9, "output_tokens": 30}, {"output_tokens": 20})
        assert meter.tokens() == Tokens(input=9, output=30)
        assert meter.anomaly_count == 1

    def test_cached_input_that_is_stated_late_is_not_fresh_as_well(self) -> None:
        late = {"prompt_tokens": 100, "prompt_tokens_details": {"cached_tokens": 80}}
        meter = metered(C, {"prompt_tokens": 100}, late)
        assert meter.tokens() == Tokens(input=20, cache_read=80)
        assert meter.anomaly_count == 0

    def test_null_is_no_usage_and_zero_is(self) -> None:
        assert not metered(C, None).is_used
        assert metered(C, {"prompt_tokens": 0, "completion_tokens": 0}).is_used

    def test_raw_usage_is_what_the_provider_stated_with_every_digit(self) -> None:
        meter = UsageMeter(A)
        meter.add(b'{"input_tokens": 1.0e1, "a":{"b": 12345678901234567890}, "output_tokens":1}')
        meter.add(b'{"output_tokens": 7, "a":null}')
        assert meter.raw == b'{"input_tokens":1.0e1,"a":{"b": 12345678901234567890},"output_tokens":7}'
        meter.add(b'{"note":"' + b"x" * MAX_RAW_USAGE_BYTES + b'"}')
        assert meter.raw == b""


class TestNormalising:
    def test_m01_anthropic_input_excludes_the_cache(self) -> None:
        usage = {"input_tokens": 10, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 1000}
        assert metered(A, usage).tokens() == Tokens(input=10, cache_read=1000, cache_write_5m=100)

    def test_m02_openai_input_includes_the_cache(self) -> None:
        details = {"cached_tokens": 1000, "cache_write_tokens": 100}
        usage = {"prompt_tokens": 1110, "completion_tokens": 50, "prompt_tokens_details": details}
        expected = Tokens(input=10, cache_read=1000, cache_write_30m=100, output=50)
        assert metered(C, usage).tokens() == expected

    def test_m04_compactions_are_added_once(self) -> None:
        steps = [{"type": "compaction", "input_tokens": 5000, "output_tokens": 300}, {"type": "message"}]
        usage = {"input_tokens": 40, "output_tokens": 9, "iterations": steps}
        assert metered(A, usage, usage).tokens() == Tokens(input=5040, output=309)

    def test_m05_more_cached_than_prompted_is_suspect_and_never_negative(self) -> None:
        meter = metered(C, {"prompt_tokens": 100, "prompt_tokens_details": {"cached_tokens": 120}})
        assert meter.tokens() == Tokens(cache_read=120)
        assert meter.anomaly_count == 1

    def test_writes_are_split_by_lifetime_and_the_rest_has_the_default(self) -> None:
        split = {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}
        usage = {"cache_creation_input_tokens": 50, "cache_creation": split}
        assert metered(A, usage).tokens() == Tokens(cache_write_5m=30, cache_write_1h=20)
        details = {"cache_write_tokens": 50, "cache_write_tokens_details": {"ttl_12h_tokens": 20}}
        usage_r = {"input_tokens": 50, "input_tokens_details": details}
        assert metered(R, usage_r).tokens() == Tokens(cache_write_30m=30, cache_write_12h=20)

    @pytest.mark.parametrize(
        ("count", "expected"),
        [
            (-5, 0),
            (3.0, 3),
            (2.9, 2),
            (10**30, 0),
            (2**63, 0),
            (float("inf"), 0),
            (MAX_TOKEN_COUNT + 1, 0),
            (float("nan"), 0),
            ("7", 0),
            (True, 0),
            ([1], 0),
        ],
    )
    def test_b44_a_count_that_cannot_be_is_clamped_and_suspect(self, count: object, expected: int) -> None:
        for dialect, name in ((A, "output_tokens"), (C, "completion_tokens"), (R, "output_tokens")):
            meter = metered(dialect, {name: count})
            assert meter.tokens() == Tokens(output=expected)
            assert meter.anomaly_count == 1
            is_number = isinstance(count, int | float) and count > MAX_TOKEN_COUNT
            assert meter.is_output_absurd == is_number and not meter.is_input_absurd

    @pytest.mark.parametrize("usage", [3, "x", [], {"prompt_tokens_details": 7}, {"iterations": {}}])
    def test_usage_of_another_shape_counts_nothing(self, usage: object) -> None:
        for dialect in Dialect:
            assert metered(dialect, usage).tokens() == Tokens()


class TestPlainBodies:
    def test_anthropic(self) -> None:
        body = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-x",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "hello"},
                {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"a": 1}},
            ],
            "stop_reason": "tool_use",
            "usage": {"input_tokens": 10, "cache_read_input_tokens": 3, "output_tokens": 5},
        }
        found = body_usage(A, json.dumps(body).encode())
        assert found.is_answer and found.terminal_ok and not found.is_error
        assert found.tokens == Tokens(input=10, cache_read=3, output=5)
        assert (found.response_id, found.response_model) == ("msg_1", "claude-x")
        assert found.stop_reason == "tool_use"
        assert found.output_bytes == len('hmhelloRead{"a":1}')
        assert json.loads(found.raw_usage) == body["usage"]

    def test_openai_chat(self) -> None:
        call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
        body = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "gpt-x",
            "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 5},
        }
        found = body_usage(C, json.dumps(body).encode())
        assert found.is_answer and found.content_seen and found.final_usage_seen
        assert found.tokens == Tokens(input=12, output=5)
        assert (found.stop_reason, found.output_bytes) == ("tool_calls", 3)

    @pytest.mark.parametrize(
        ("status", "reason"), [("completed", "completed"), ("incomplete", "max_output_tokens")]
    )
    def test_openai_responses(self, status: str, reason: str) -> None:
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        body = {
            "id": "resp_1",
            "object": "response",
            "status": status,
            "error": None,
            "incomplete_details": details,
            "output": [{"type": "message", "content": [{"type": "output_text", "text": "four"}]}],
            "usage": {
                "input_tokens": 12,
                "output_tokens": 5,
                "output_tokens_details": {"reasoning_tokens": 2},
            },
        }
        found = body_usage(R, json.dumps(body).encode())
        assert found.is_answer and not found.is_error
        assert found.tokens == Tokens(input=12, output=5, reasoning=2)
        assert (found.stop_reason, found.estimated_output_tokens()) == (reason, 1)

    def test_usage_keeps_its_spelling(self) -> None:
        body = b'{"choices":[],"usage":{"prompt_tokens" : 3,"cost":1.50e-3}}'
        assert body_usage(C, body).raw_usage == b'{"prompt_tokens":3,"cost":1.50e-3}'

    def test_without_usage_the_output_is_estimated(self) -> None:
        body = b'{"choices":[{"message":{"content":"some words"}}]}'
        found = body_usage(C, body)
        assert found.is_answer and not found.usage_seen
        assert found.estimated_output_tokens() == 3

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b"{}", b'{"ok":true}', b"[" * 9999])
    def test_what_is_neither_answer_nor_error(self, body: bytes) -> None:
        for dialect in Dialect:
            found = body_usage(dialect, body)
            assert not found.is_answer and not found.is_error and not found.terminal_ok

    def test_errors_under_a_status_of_success(self) -> None:
        anthropic = b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}'
        openai = b'{"error":{"message":"m","type":"server_error","param":null,"code":null}}'
        assert body_usage(A, anthropic).is_error
        assert body_usage(C, openai).is_error and body_usage(R, openai).is_error
        assert not body_usage(A, openai).is_error
        assert body_usage(C, openai).error_body == openai

    def test_images_in_an_answer_are_no_output_text(self) -> None:
        item = {"type": "image_generation_call", "result": "A" * 100_000}
        body = json.dumps({"object": "response", "output": [item]}).encode()
        assert body_usage(R, body).output_bytes == 0
