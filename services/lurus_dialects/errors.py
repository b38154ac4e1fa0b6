"""Failures as each client API reports them: HTTP answers, and events in a begun stream.

Bodies and statuses follow wire-contract §A.x.6 and §C.6, which were measured
with the real clients; retry headers follow reliability §7.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import msgspec

from lurus_dialects.answer import Answer
from lurus_dialects.dialect import Dialect

MAX_RETRY_AFTER_SECONDS = 120  # The OpenAI SDK does not retry at all if told to wait longer.
MAX_RATE_LIMIT_SECONDS = 60
_STATES_WAIT: Final = re.compile(r"try again in\s*\d", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HttpError:
    """An answer that reports a failure; the server adds `content-length`."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class _Retry(Enum):
    """What the headers tell the client to do."""

    NEVER = "never"  # x-should-retry: false
    LATER = "later"  # retry-after
    AS_USUAL = "as usual"  # nothing said; the client's own rule


@dataclass(frozen=True, slots=True)
class _Form:
    """How one reason looks in the dialects.

    `openai_code` None leaves the code to the metadata. `responses_status` and
    `stream_code` are what differs in Responses: Codex repeats a 413 six times,
    and takes the codes of a failed stream as commands.
    """

    anthropic_status: int
    anthropic_type: str
    openai_status: int
    openai_type: str
    openai_code: str | None
    retry: _Retry
    retry_seconds: float | None = None
    error_code: str | None = None
    responses_status: int | None = None
    stream_code: str = "server_error"


def _refusal(status: int, anthropic_type: str, code: str | None, **more: Any) -> _Form:
    openai_status = more.pop("openai_status", status)
    return _Form(status, anthropic_type, openai_status, "invalid_request_error", code, _Retry.NEVER, **more)


def _outage(anthropic_status: int, anthropic_type: str, openai_status: int, code: str, **more: Any) -> _Form:
    retry = _Retry.LATER if "retry_seconds" in more else _Retry.AS_USUAL
    return _Form(anthropic_status, anthropic_type, openai_status, "server_error", code, retry, **more)


_SPENT = _Form(
    429,
    "billing_error",
    429,
    "insufficient_quota",
    "insufficient_quota",
    _Retry.NEVER,
    stream_code="insufficient_quota",
)
_BUSY = _outage(529, "overloaded_error", 503, "server_is_overloaded", retry_seconds=2)
_AWAY = _outage(503, "api_error", 503, "service_unavailable", retry_seconds=5)
_UPSTREAM = _outage(502, "api_error", 502, "upstream_error")
_INTERNAL = _outage(500, "api_error", 500, "internal_error")

_FORMS: Final[dict[str, _Form]] = {
    "INVALID_REQUEST": _refusal(400, "invalid_request_error", None, stream_code="invalid_prompt"),
    "CONTEXT_TOO_LONG": _refusal(
        400, "invalid_request_error", "context_length_exceeded", stream_code="context_length_exceeded"
    ),
    "KEY_INVALID": _refusal(401, "authentication_error", "invalid_api_key"),
    "PERMISSION_DENIED": _refusal(403, "permission_error", "permission_denied"),
    # Codex gives up at once on 404, and asks six times on 403.
    "MODEL_FORBIDDEN": _refusal(403, "permission_error", "model_not_found", openai_status=404),
    "MODEL_NOT_FOUND": _refusal(404, "not_found_error", "model_not_found"),
    "PATH_NOT_FOUND": _refusal(404, "not_found_error", "unknown_url"),
    "METHOD_NOT_ALLOWED": _refusal(405, "invalid_request_error", "method_not_allowed"),
    "REQUEST_TOO_LARGE": _refusal(413, "request_too_large", "request_too_large", responses_status=400),
    "MEDIA_TYPE_UNSUPPORTED": _refusal(415, "invalid_request_error", "unsupported_media_type"),
    "ENCODING_UNSUPPORTED": _refusal(
        400,
        "invalid_request_error",
        "invalid_content_encoding",
        error_code="request_body_encoding_unsupported",
    ),
    "ENCODING_INVALID": _refusal(
        400, "invalid_request_error", "invalid_content_encoding", error_code="request_body_encoding_invalid"
    ),
    "WEBSOCKET_UNSUPPORTED": _refusal(426, "invalid_request_error", "websocket_unsupported"),
    "CONFLICT": _refusal(409, "conflict_error", "idempotency_conflict"),
    "UNTRANSLATABLE": _refusal(400, "invalid_request_error", "unsupported_parameter"),
    "PREVIOUS_RESPONSE_NOT_FOUND": _refusal(400, "invalid_request_error", "previous_response_not_found"),
    # OpenAI says it without a code.
    "RESPONSE_NOT_FOUND": _refusal(404, "not_found_error", None),
    "BALANCE_TOO_LOW": _SPENT,
    "QUOTA_EXCEEDED": _SPENT,
    "RATE_LIMITED": _Form(
        429,
        "rate_limit_error",
        429,
        "rate_limit_exceeded",
        "rate_limit_exceeded",
        _Retry.LATER,
        retry_seconds=5,
        stream_code="rate_limit_exceeded",
    ),
    "OVERLOADED": _BUSY,
    "NO_HEALTHY_PROVIDER": _BUSY,
    "UPSTREAM_FAILED": _UPSTREAM,
    "UPSTREAM_CREDENTIAL_REJECTED": _outage(502, "api_error", 502, "upstream_auth_error"),
    "UPSTREAM_TIMEOUT": _outage(504, "timeout_error", 504, "upstream_timeout"),
    "UPSTREAM_CUT": _UPSTREAM,
    "AUTHENTICATION_UNAVAILABLE": _AWAY,
    "ACCOUNTING_UNAVAILABLE": _AWAY,
    "DEPENDENCY_UNAVAILABLE": _AWAY,
    "NOT_FOUND": _refusal(404, "not_found_error", "not_found"),
    "ALREADY_EXISTS": _refusal(409, "conflict_error", "already_exists"),
    "FAILED_PRECONDITION": _refusal(400, "invalid_request_error", "failed_precondition"),
    "NOT_IMPLEMENTED": _refusal(501, "api_error", "not_implemented"),
    "INTERNAL": _INTERNAL,
}


def http_error(
    dialect: Dialect, reason: str, message: str, metadata: Mapping[str, str], request_id: str
) -> HttpError:
    """Returns the answer that reports a failure of ours to a client.

    `metadata` is that of the `LurusError`. Read from it: `param`, `code` (of
    an OpenAI body), `error_code` (of an Anthropic one), `allow`, `tokens` and
    `maximum`, `retry_after_seconds`. An unknown reason counts as `INTERNAL`,
    and its message is not shown.
    """
    form = _FORMS.get(reason)
    if form is None:
        form, message = _INTERNAL, "internal error"
    wait_seconds = _wait_seconds(reason, form, metadata)
    text = _message(dialect, reason, message, metadata, wait_seconds)
    if dialect is Dialect.ANTHROPIC:
        status, body = form.anthropic_status, _anthropic_body(form, text, metadata, request_id)
    else:
        status, body = form.openai_status, {"error": _openai_error(form, text, metadata)}
        if dialect is Dialect.OPENAI_RESPONSES and form.responses_status is not None:
            status = form.responses_status
    headers = [*error_headers(request_id), *_retry_headers(form, wait_seconds)]
    if reason == "METHOD_NOT_ALLOWED" and "allow" in metadata:
        headers.append(("allow", metadata["allow"]))
    if reason == "WEBSOCKET_UNSUPPORTED":
        headers.append(("connection", "close"))
    return HttpError(status, headers, _encode(body))


def error_headers(request_id: str) -> list[tuple[str, str]]:
    """Returns the headers that every error answer has."""
    return [("content-type", "application/json"), ("request-id", request_id), ("x-request-id", request_id)]


def stream_error(answer: Answer, reason: str, message: str, request_id: str) -> bytes:
    """Returns the event that ends a begun stream with a failure (wire-contract A.1.5, A.2.5, A.3.5)."""
    form = _FORMS.get(reason)
    if form is None:
        form, message = _INTERNAL, "internal error"
    if answer.dialect is Dialect.ANTHROPIC:
        return b"event: error\ndata: " + _encode(_anthropic_body(form, message, {}, request_id)) + b"\n\n"
    if answer.dialect is Dialect.OPENAI_CHAT:
        return b"data: " + _encode({"error": _openai_error(form, message, {})}) + b"\n\n"
    if form.stream_code == "rate_limit_exceeded":
        message = _with_wait(message, form.retry_seconds or 1)
    return b"event: response.failed\ndata: " + _failed_response(answer, form, message, request_id) + b"\n\n"


def _failed_response(answer: Answer, form: _Form, message: str, request_id: str) -> bytes:
    response: dict[str, Any] = {
        "id": answer.response_id or "resp_" + request_id.removeprefix("req_"),
        "object": "response",
        "status": "failed",
        "model": answer.response_model,
        "error": {"code": form.stream_code, "message": message},
        "incomplete_details": None,
    }
    if answer.are_items_complete:
        response["output"] = [msgspec.Raw(item) for item in answer.done_items]
    if answer.raw_usage:
        response["usage"] = msgspec.Raw(answer.raw_usage)
    number = answer.sequence_number + 1
    return _encode({"type": "response.failed", "sequence_number": number, "response": response})


def dialect_of_path(path: str, headers: Iterable[tuple[str, str]]) -> Dialect:
    """Returns the dialect in which a request to `path` is answered, also if nothing is there (G17)."""
    relative = path.removeprefix("/v1")
    if relative.startswith("/messages"):
        return Dialect.ANTHROPIC
    if relative.startswith("/responses"):
        return Dialect.OPENAI_RESPONSES
    if relative.startswith("/chat/"):
        return Dialect.OPENAI_CHAT
    has_version = any(name.lower() == "anthropic-version" for name, _ in headers)
    return Dialect.ANTHROPIC if has_version else Dialect.OPENAI_CHAT


def _anthropic_body(
    form: _Form, message: str, metadata: Mapping[str, str], request_id: str
) -> dict[str, Any]:
    error: dict[str, Any] = {"type": form.anthropic_type, "message": message}
    error_code = metadata.get("error_code", form.error_code)
    if error_code:
        error["details"] = {"error_code": error_code}
    return {"type": "error", "error": error, "request_id": request_id}


def _openai_error(form: _Form, message: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    code = metadata.get("code") if form.openai_code is None else form.openai_code
    return {"message": message, "type": form.openai_type, "param": metadata.get("param"), "code": code}


def _message(
    dialect: Dialect, reason: str, message: str, metadata: Mapping[str, str], wait_seconds: float | None
) -> str:
    if reason == "CONTEXT_TOO_LONG" and dialect is Dialect.ANTHROPIC:
        # Claude Code compacts the conversation when it reads exactly these words.
        if "tokens" in metadata and "maximum" in metadata:
            return f"prompt is too long: {metadata['tokens']} tokens > {metadata['maximum']} maximum"
        return message if message.startswith("prompt is too long") else f"prompt is too long: {message}"
    if reason == "RATE_LIMITED" and dialect is not Dialect.ANTHROPIC and wait_seconds is not None:
        return _with_wait(message, wait_seconds)
    return message


def _with_wait(message: str, wait_seconds: float) -> str:
    # Codex waits for as long as this sentence says, the first of them if there are two.
    if _STATES_WAIT.search(message):
        return message
    return f"{message.rstrip('. ')}. Please try again in {wait_seconds:g}s."


def _wait_seconds(reason: str, form: _Form, metadata: Mapping[str, str]) -> float | None:
    try:
        stated = float(metadata["retry_after_seconds"])
    except (KeyError, ValueError):
        stated = math.nan
    if not math.isfinite(stated) or stated < 0:
        return form.retry_seconds
    if form.retry is _Retry.NEVER:
        return stated if form is _SPENT else None
    longest = MAX_RATE_LIMIT_SECONDS if reason == "RATE_LIMITED" else MAX_RETRY_AFTER_SECONDS
    return min(stated, longest)


def _retry_headers(form: _Form, wait_seconds: float | None) -> list[tuple[str, str]]:
    headers: list[tuple[str, str]] = []
    if form.retry is _Retry.NEVER:
        headers.append(("x-should-retry", "false"))
    if wait_seconds is not None:
        headers.append(("retry-after", str(max(1, math.ceil(wait_seconds)))))
        if form is not _SPENT:
            headers.append(("retry-after-ms", str(max(1, math.ceil(wait_seconds * 1000)))))
    return headers


def _encode(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        # A message quotes a lone surrogate.
        return msgspec.json.encode(_without_surrogates(value))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {name: _without_surrogates(item) for name, item in value.items()}
    return value
