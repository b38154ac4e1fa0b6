"""How failures look to the three clients, and what they do about them."""

import json
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from lurus.errors.v1.errors_pb2 import ErrorReason
from lurus_dialects.dialect import Dialect
from lurus_dialects.errors import HttpError, dialect_of_path, http_error

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES

REASONS = [name.removeprefix("ERROR_REASON_") for name in ErrorReason.DESCRIPTOR.values_by_name]
REASONS.remove("UNSPECIFIED")
TERMINAL = {
    "INVALID_REQUEST",
    "CONTEXT_TOO_LONG",
    "KEY_INVALID",
    "PERMISSION_DENIED",
    "MODEL_FORBIDDEN",
    "MODEL_NOT_FOUND",
    "PATH_NOT_FOUND",
    "METHOD_NOT_ALLOWED",
    "REQUEST_TOO_LARGE",
    "MEDIA_TYPE_UNSUPPORTED",
    "ENCODING_UNSUPPORTED",
    "ENCODING_INVALID",
    "WEBSOCKET_UNSUPPORTED",
    "UNTRANSLATABLE",
    "RESPONSE_NOT_FOUND",
    "PREVIOUS_RESPONSE_NOT_FOUND",
    "CONFLICT",
    "BALANCE_TOO_LOW",
    "QUOTA_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "NOT_IMPLEMENTED",
}


def error_of(dialect: Dialect, reason: str, **metadata: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Returns status, error object and headers."""
    error = http_error(dialect, reason, "what happened", metadata, "req_1")
    return error.status, json.loads(error.body)["error"], dict(error.headers)


class Wire:
    """Both SDKs, connected to an answer."""

    def __init__(self) -> None:
        self._error: HttpError | None = None
        self._call_count = 0
        transport = httpx2.MockTransport(self._answer)
        http_client = httpx2.Client(transport=transport)
        self._anthropic = anthropic.Anthropic(api_key="k", max_retries=1, http_client=http_client)
        self._openai = openai.OpenAI(api_key="k", max_retries=1, http_client=http_client)

    def raised(
        self, dialect: Dialect, error: HttpError
    ) -> tuple[anthropic.APIStatusError | openai.APIStatusError, int]:
        """Returns what the SDK of `dialect` raises and after how many calls."""
        self._error, self._call_count = error, 0
        if dialect is A:
            with pytest.raises(anthropic.APIStatusError) as caught:
                self._anthropic.messages.create(
                    model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}]
                )
            return caught.value, self._call_count
        with pytest.raises(openai.APIStatusError) as openai_caught:
            self._openai.responses.create(model="m", input="x")
        return openai_caught.value, self._call_count

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        assert self._error is not None
        self._call_count += 1
        headers = [pair for pair in self._error.headers if not pair[0].startswith("retry-after")]
        return httpx2.Response(
            self._error.status, headers=[*headers, ("retry-after-ms", "1")], content=self._error.body
        )


@pytest.fixture(scope="module")
def wire() -> Wire:
    """Both SDKs, connected to an answer."""
    return Wire()


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("reason", REASONS)
class TestEveryReason:
    def test_has_the_dialects_shape_and_our_request_id(self, dialect: Dialect, reason: str) -> None:
        error = http_error(dialect, reason, "what happened", {}, "req_1")
        body = json.loads(error.body)
        headers = dict(error.headers)
        assert headers["request-id"] == headers["x-request-id"] == "req_1"
        assert headers["content-type"] == "application/json"
        assert "what happened" in body["error"]["message"]
        if dialect is A:
            assert body["type"] == "error" and body["request_id"] == "req_1"
            assert set(body["error"]) <= {"type", "message", "details"}
        else:
            assert set(body["error"]) == {"message", "type", "param", "code"}

    def test_tells_the_client_whether_to_try_again(self, dialect: Dialect, reason: str) -> None:
        _, _, headers = error_of(dialect, reason)
        assert (headers.get("x-should-retry") == "false") == (reason in TERMINAL)
        assert not ("retry-after" in headers and "x-should-retry" in headers)

    def test_is_raised_by_the_sdk_and_tried_as_often_as_meant(
        self, dialect: Dialect, reason: str, wire: Wire
    ) -> None:
        error = http_error(dialect, reason, "what happened", {}, "req_1")
        raised, call_count = wire.raised(dialect, error)
        assert raised.status_code == error.status
        assert raised.request_id == "req_1"
        assert call_count == (1 if reason in TERMINAL else 2)


@pytest.mark.parametrize(
    ("reason", "anthropic_form", "chat_form", "responses_form"),
    [
        ("KEY_INVALID", (401, "authentication_error"), (401, "invalid_api_key"), (401, "invalid_api_key")),
        ("MODEL_FORBIDDEN", (403, "permission_error"), (404, "model_not_found"), (404, "model_not_found")),
        ("MODEL_NOT_FOUND", (404, "not_found_error"), (404, "model_not_found"), (404, "model_not_found")),
        ("BALANCE_TOO_LOW", (429, "billing_error"), (429, "insufficient_quota"), (429, "insufficient_quota")),
        (
            "RATE_LIMITED",
            (429, "rate_limit_error"),
            (429, "rate_limit_exceeded"),
            (429, "rate_limit_exceeded"),
        ),
        # Codex tries a 413 six times.
        (
            "REQUEST_TOO_LARGE",
            (413, "request_too_large"),
            (413, "request_too_large"),
            (400, "request_too_large"),
        ),
        (
            "NO_HEALTHY_PROVIDER",
            (529, "overloaded_error"),
            (503, "server_is_overloaded"),
            (503, "server_is_overloaded"),
        ),
        # Never 401: Claude Code would log the user out.
        (
            "UPSTREAM_CREDENTIAL_REJECTED",
            (502, "api_error"),
            (502, "upstream_auth_error"),
            (502, "upstream_auth_error"),
        ),
        ("UPSTREAM_TIMEOUT", (504, "timeout_error"), (504, "upstream_timeout"), (504, "upstream_timeout")),
        (
            "AUTHENTICATION_UNAVAILABLE",
            (503, "api_error"),
            (503, "service_unavailable"),
            (503, "service_unavailable"),
        ),
        ("INTERNAL", (500, "api_error"), (500, "internal_error"), (500, "internal_error")),
    ],
)
def test_status_and_word(
    reason: str, anthropic_form: object, chat_form: object, responses_form: object
) -> None:
    status, error, _ = error_of(A, reason)
    assert (status, error["type"]) == anthropic_form
    for dialect, form in ((C, chat_form), (R, responses_form)):
        status, error, _ = error_of(dialect, reason)
        assert (status, error["code"]) == form


def test_a_refused_balance_looks_terminal_and_tempts_nobody_to_wait() -> None:
    for dialect in Dialect:
        _, error, headers = error_of(dialect, "QUOTA_EXCEEDED")
        assert "retry-after" not in headers
        if dialect is not A:
            assert error["type"] == error["code"] == "insufficient_quota"
    assert error_of(A, "QUOTA_EXCEEDED", retry_after_seconds="86400")[2]["retry-after"] == "86400"


@pytest.mark.parametrize(
    ("stated", "seconds", "milliseconds"),
    [
        ("7", "7", "7000"),
        ("1.5", "2", "1500"),
        ("0", "1", "1"),
        ("9999", "60", "60000"),
        ("nan", "5", "5000"),
        ("x", "5", "5000"),
    ],
)
def test_waits_are_bounded(stated: str, seconds: str, milliseconds: str) -> None:
    _, _, headers = error_of(C, "RATE_LIMITED", retry_after_seconds=stated)
    assert (headers["retry-after"], headers["retry-after-ms"]) == (seconds, milliseconds)


def test_codex_reads_the_wait_in_the_message() -> None:
    assert error_of(R, "RATE_LIMITED", retry_after_seconds="1.5")[1]["message"] == (
        "what happened. Please try again in 1.5s."
    )


def test_a_wait_that_is_stated_is_not_stated_again() -> None:
    message = "Rate limit reached. Please try again in 2s."
    shown = http_error(R, "RATE_LIMITED", message, {"retry_after_seconds": "7"}, "req_1")
    assert json.loads(shown.body)["error"]["message"] == message
    assert json.loads(http_error(R, "RATE_LIMITED", "Do try again in time.", {}, "").body)["error"][
        "message"
    ] == ("Do try again in time. Please try again in 5s.")


def test_claude_code_compacts_at_these_words() -> None:
    _, error, _ = error_of(A, "CONTEXT_TOO_LONG", tokens="210000", maximum="200000")
    assert error["message"] == "prompt is too long: 210000 tokens > 200000 maximum"
    assert error_of(R, "CONTEXT_TOO_LONG")[1]["code"] == "context_length_exceeded"


def test_param_code_and_details_come_from_the_metadata() -> None:
    _, error, _ = error_of(R, "INVALID_REQUEST", param="input[3]", code="previous_response_not_found")
    assert (error["param"], error["code"]) == ("input[3]", "previous_response_not_found")
    assert error_of(A, "ENCODING_UNSUPPORTED")[1]["details"] == {
        "error_code": "request_body_encoding_unsupported"
    }
    charset = error_of(A, "ENCODING_UNSUPPORTED", error_code="unsupported_charset")[1]
    assert charset["details"] == {"error_code": "unsupported_charset"}


def test_allowed_methods_and_closing() -> None:
    assert error_of(C, "METHOD_NOT_ALLOWED", allow="POST")[2]["allow"] == "POST"
    status, _, headers = error_of(R, "WEBSOCKET_UNSUPPORTED")
    assert (status, headers["connection"]) == (426, "close")


def test_an_unknown_reason_shows_nothing() -> None:
    error = http_error(A, "SOMETHING_NEW", "secret", {}, "req_1")
    assert error.status == 500 and b"secret" not in error.body


def test_a_lone_surrogate_in_a_message_is_no_second_failure() -> None:
    assert json.loads(http_error(C, "INVALID_REQUEST", "\ud800", {}, "r").body)["error"]["message"] == "?"


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/v1/messages", [], A),
        ("/messages/count_tokens", [], A),
        ("/v1/responses/resp_1", [("anthropic-version", "x")], R),
        ("/responses", [], R),
        ("/v1/chat/completions", [], C),
        ("/nothing", [], C),
        ("/v1/models", [("Anthropic-Version", "2023-06-01")], A),
        ("/v1/messagesque", [], A),
    ],
)
def test_g17_a_path_implies_a_dialect(path: str, headers: list[tuple[str, str]], expected: Dialect) -> None:
    assert dialect_of_path(path, headers) is expected
