"""What a provider's failure means for routing and for the client."""

import json

import pytest

from lurus_dialects.dialect import Dialect
from lurus_dialects.upstream_errors import failure_class, stream_error_status, upstream_error

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES


def anthropic_error(kind: str, message: str = "m") -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


def openai_error(code: str | None, message: str = "m", kind: str = "invalid_request_error") -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "headers", "expected"),
    [
        (401, b"", [], "credential"),
        (402, b"", [], "credential"),
        (403, b"<html>", [], "credential"),
        (429, openai_error("insufficient_quota"), [], "credential"),
        (429, anthropic_error("billing_error"), [], "credential"),
        (
            400,
            anthropic_error("invalid_request_error", "Your credit balance is too low to"),
            [],
            "credential",
        ),
        (429, openai_error("rate_limit_exceeded"), [], "throttle"),
        (529, anthropic_error("overloaded_error"), [], "throttle"),
        (503, b"", [("Retry-After", "3")], "throttle"),
        (503, b"", [], "transient"),
        (0, b"", [], "transient"),
        (408, b"", [], "transient"),
        (409, b"", [], "transient"),
        (500, b"", [], "transient"),
        (522, b"", [], "transient"),
        (302, b"", [], "transient"),
        (200, b"<html>", [], "transient"),
        (404, b"<html>not here", [], "transient"),
        (404, anthropic_error("not_found_error", "model: claude-x"), [], "model"),
        (404, openai_error("model_not_found"), [], "model"),
        (400, openai_error("model_not_found"), [], "model"),
        (404, openai_error(None, "Response with id 'resp_1' not found."), [], "caller"),
        *[(status, b"", [], "caller") for status in (400, 405, 406, 413, 414, 415, 422, 501)],
    ],
)
def test_failure_classes(status: int, body: bytes, headers: list[tuple[str, str]], expected: str) -> None:
    assert failure_class(status, body, headers) == expected


class TestUpstreamError:
    def test_p07_a_refusal_is_relayed_in_its_own_words(self) -> None:
        body = b'{"type": "error","error":{"message":"thinking.adaptive.display: Extra inputs","type":"x"} }'
        error = upstream_error(A, 400, [("content-type", "application/json")], body, "req_1")
        assert (error.status, error.body) == (400, body)
        assert dict(error.headers)["request-id"] == "req_1"

    @pytest.mark.parametrize("status", [400, 404, 413, 422, 429, 500, 503, 529])
    def test_statuses_that_are_kept(self, status: int) -> None:
        body = openai_error("some_code")
        for dialect in (C, R):
            error = upstream_error(dialect, status, [], body, "req_1")
            assert (error.status, error.body) == (status, body)

    @pytest.mark.parametrize("status", [401, 402, 403])
    def test_h27_our_credential_is_not_the_clients_concern(self, status: int) -> None:
        for dialect, body in (
            (A, anthropic_error("authentication_error", "sk-123")),
            (C, openai_error("sk-123")),
        ):
            error = upstream_error(dialect, status, [], body, "req_1")
            assert error.status == 502 and b"sk-123" not in error.body

    def test_an_account_of_ours_without_money_is_not_the_clients_fault(self) -> None:
        body = anthropic_error("invalid_request_error", "Your credit balance is too low to access the API")
        error = upstream_error(A, 400, [], body, "req_1")
        assert error.status == 502 and b"credit" not in error.body

    @pytest.mark.parametrize(
        ("status", "expected"), [(400, 502), (429, 502), (408, 502), (500, 500), (522, 522)]
    )
    @pytest.mark.parametrize(
        ("dialect", "body"),
        [
            (C, b""),
            (A, b"<html>secret"),
            (R, b'{"error":"secret"}'),
            (A, openai_error(None, "secret")),
            (C, b'{"detail":"secret"}'),
        ],
    )
    def test_a_foreign_shape_is_wrapped_and_not_shown(
        self, dialect: Dialect, body: bytes, status: int, expected: int
    ) -> None:
        error = upstream_error(dialect, status, [], body, "req_1")
        assert error.status == expected
        assert b"secret" not in error.body and json.loads(error.body)["error"]["message"]

    def test_h18_retry_hints_pass_and_quotas_of_ours_do_not(self) -> None:
        given = [
            ("Retry-After", "7"),
            ("anthropic-ratelimit-requests-remaining", "0"),
            ("cf-ray", "x"),
            ("request-id", "req_up"),
            ("x-should-retry", "true"),
        ]
        headers = upstream_error(A, 429, given, anthropic_error("rate_limit_error"), "req_1").headers
        assert ("retry-after", "7") in headers and ("x-should-retry", "true") in headers
        assert ("x-lurus-upstream-request-id", "req_up") in headers
        assert not any(name.startswith(("anthropic-", "cf-")) for name, _ in headers)
        assert [name for name, _ in headers].count("content-type") == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (anthropic_error("overloaded_error"), 529),
        (anthropic_error("rate_limit_error"), 429),
        (openai_error("rate_limit_exceeded"), 429),
        (openai_error("context_length_exceeded"), 400),
        (openai_error("server_error"), 500),
        (b"", 502),
    ],
)
def test_an_error_in_a_stream_has_a_status_too(body: bytes, status: int) -> None:
    assert stream_error_status(body) == status
