"""What a provider's error means to a client of another dialect (wire-contract C.5)."""

import json
import math

import pytest

from lurus_dialects.dialect import Dialect
from lurus_dialects.upstream_errors import Report, report, translated_error

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES


def body(message: str = "words", kind: str = "invalid_request_error", code: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "code": code}}).encode()


def shown(dialect: Dialect, status: int, given: bytes, wait: float = math.inf) -> tuple[int, str, str | None]:
    error = translated_error(dialect, status, [("request-id", "up-1")], given, "req_1", wait)
    fields = json.loads(error.body)["error"]
    assert ("x-lurus-upstream-request-id", "up-1") in error.headers
    return error.status, fields["type"], fields.get("code")


class TestTable:
    @pytest.mark.parametrize(
        ("status", "given", "anthropic", "openai"),
        [
            (400, body(), (400, "invalid_request_error", None), (400, "invalid_request_error", None)),
            (422, body(), (400, "invalid_request_error", None), (400, "invalid_request_error", None)),
            (
                400,
                body(code="context_length_exceeded"),
                (400, "invalid_request_error", None),
                (400, "invalid_request_error", "context_length_exceeded"),
            ),
            (
                404,
                body(code="model_not_found"),
                (404, "not_found_error", None),
                (404, "invalid_request_error", "model_not_found"),
            ),
            (
                429,
                body(kind="rate_limit_error"),
                (429, "rate_limit_error", None),
                (429, "rate_limit_exceeded", "rate_limit_exceeded"),
            ),
            (401, body(), (502, "api_error", None), (502, "server_error", "upstream_auth_error")),
            (402, body(), (502, "api_error", None), (502, "server_error", "upstream_auth_error")),
            (403, body(), (502, "api_error", None), (502, "server_error", "upstream_auth_error")),
            (
                429,
                body(code="insufficient_quota"),
                (502, "api_error", None),
                (502, "server_error", "upstream_auth_error"),
            ),
            (503, body(), (529, "overloaded_error", None), (503, "server_error", "server_is_overloaded")),
            (529, body(), (529, "overloaded_error", None), (503, "server_error", "server_is_overloaded")),
            (504, body(), (504, "timeout_error", None), (504, "server_error", "upstream_timeout")),
            (500, body(), (502, "api_error", None), (502, "server_error", "upstream_error")),
            (500, b"<html>", (502, "api_error", None), (502, "server_error", "upstream_error")),
        ],
    )
    def test_each_cause_has_its_form(
        self,
        status: int,
        given: bytes,
        anthropic: tuple[int, str, str | None],
        openai: tuple[int, str, str | None],
    ) -> None:
        assert shown(A, status, given) == anthropic
        assert shown(C, status, given) == openai
        assert shown(R, status, given) == openai

    def test_the_wait_is_passed_on(self) -> None:
        for dialect in (A, C, R):
            headers = dict(translated_error(dialect, 429, [], body(), "req_1", 7.0).headers)
            assert headers["retry-after"] == "7"
        text = json.loads(translated_error(R, 429, [], body(), "req_1", 7.0).body)["error"]["message"]
        assert text.endswith("Please try again in 7s.")


class TestTooLong:
    @pytest.mark.parametrize(
        ("words", "tokens", "maximum"),
        [
            ("prompt is too long: 210000 tokens > 200000 maximum", "210000", "200000"),
            (
                "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease one",
                "188240",
                "200000",
            ),
            (
                "This model's maximum context length is 128000 tokens. However, your messages resulted in "
                "130500 tokens. Please reduce the length of the messages.",
                "130500",
                "128000",
            ),
            (
                "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens "
                "(4000 in the messages, 1000 in the completion).",
                "5000",
                "4096",
            ),
        ],
    )
    def test_its_numbers_are_found(self, words: str, tokens: str, maximum: str) -> None:
        found = report(400, body(words))
        assert found == Report("CONTEXT_TOO_LONG", words, {"tokens": tokens, "maximum": maximum})
        error = translated_error(A, 400, [], body(words), "req_1")
        expected = f"prompt is too long: {tokens} tokens > {maximum} maximum"
        assert json.loads(error.body)["error"]["message"] == expected

    @pytest.mark.parametrize(
        "words",
        [
            "Your input exceeds the context window of this model. Please adjust your input and try again.",
            "input is too long for requested model",
        ],
    )
    def test_it_is_known_without_numbers(self, words: str) -> None:
        assert report(400, body(words)).reason == "CONTEXT_TOO_LONG"
        error = json.loads(translated_error(A, 400, [], body(words), "req_1").body)["error"]
        assert error["message"].startswith("prompt is too long")

    def test_other_refusals_are_not_it(self) -> None:
        assert report(400, body("max_tokens is too large: 5 > 4")).reason == "INVALID_REQUEST"
        assert report(500, body("prompt is too long")).reason == "UPSTREAM_FAILED"


class TestWords:
    def test_a_refusal_keeps_them_and_the_rest_does_not(self) -> None:
        secret = "org-7 at https://internal"
        assert secret in report(400, body(secret)).message
        for status in (401, 402, 403, 429, 500, 503, 529):
            assert secret not in report(status, body(secret)).message

    def test_they_are_bounded(self) -> None:
        assert len(report(400, body("x" * 100_000)).message) == 2000

    def test_it_becomes_an_error_of_its_type(self) -> None:
        error = report(429, b"", retry_after_seconds=3).error()
        assert (error.reason, error.metadata) == ("RATE_LIMITED", {"retry_after_seconds": "3"})
