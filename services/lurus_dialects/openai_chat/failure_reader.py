"""Tells what an error of the provider means."""

from typing import Any, Final

from lurus.routing.v1.chat_pb2 import ChatError
from lurus_dialects import loose
from lurus_dialects.surrogates import joined
from lurus_dialects.upstream_errors import stream_error_status

_REASONS: Final = {
    "context_length_exceeded": "CONTEXT_TOO_LONG",
    "context_window_exceeded": "CONTEXT_TOO_LONG",
    "invalid_request_error": "INVALID_REQUEST",
    "invalid_prompt": "INVALID_REQUEST",
    "rate_limit_exceeded": "RATE_LIMITED",
    "rate_limit_error": "RATE_LIMITED",
    "server_is_overloaded": "OVERLOADED",
    "overloaded_error": "OVERLOADED",
    "model_not_found": "MODEL_NOT_FOUND",
    "timeout_error": "UPSTREAM_TIMEOUT",
}
_OUR_CREDENTIAL: Final = frozenset(
    {
        "insufficient_quota",
        "billing_not_active",
        "invalid_api_key",
        "authentication_error",
        "permission_error",
    }
)


def failure_of(data: bytes) -> ChatError:
    """Returns the error in an event or a body, in whichever of the shapes that servers use."""
    value = loose.decode(data)
    body: dict[str, Any] = value if isinstance(value, dict) else {}
    error = body.get("error")
    fields: dict[str, Any] = error if isinstance(error, dict) else body
    code = joined(loose.text_of(fields, "code") or loose.text_of(fields, "type"))
    message = joined(loose.text_of(fields, "message") or (error if isinstance(error, str) else ""))
    reason = _REASONS.get(code, "UPSTREAM_FAILED")
    if code in _OUR_CREDENTIAL:
        reason, message = "UPSTREAM_CREDENTIAL_REJECTED", "the provider refused the gateway's credential"
    return ChatError(
        reason=reason,
        message=message or "the provider broke off its answer",
        http_status=stream_error_status(loose.compact({"error": {"code": code}})),
        code=code,
    )
