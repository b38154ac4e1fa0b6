"""Tells what an error of the provider means."""

from typing import Final

from lurus.routing.v1.chat_pb2 import ChatError
from lurus_dialects import loose
from lurus_dialects.surrogates import joined
from lurus_dialects.upstream_errors import stream_error_status

_REASONS: Final = {
    "context_length_exceeded": "CONTEXT_TOO_LONG",
    "invalid_prompt": "INVALID_REQUEST",
    "invalid_request_error": "INVALID_REQUEST",
    "rate_limit_exceeded": "RATE_LIMITED",
    "server_is_overloaded": "OVERLOADED",
    "slow_down": "OVERLOADED",
    "model_not_found": "MODEL_NOT_FOUND",
    "timeout_error": "UPSTREAM_TIMEOUT",
    "insufficient_quota": "UPSTREAM_CREDENTIAL_REJECTED",
    "billing_not_active": "UPSTREAM_CREDENTIAL_REJECTED",
    "usage_limit_reached": "UPSTREAM_CREDENTIAL_REJECTED",
    "invalid_api_key": "UPSTREAM_CREDENTIAL_REJECTED",
    "authentication_error": "UPSTREAM_CREDENTIAL_REJECTED",
    "permission_error": "UPSTREAM_CREDENTIAL_REJECTED",
}
_OUR_CREDENTIAL: Final = "UPSTREAM_CREDENTIAL_REJECTED"


def failure_of(code: str | None, message: str | None) -> ChatError:
    """Returns the error that a provider reports; what concerns our credential is not repeated."""
    word = joined(code or "")
    reason = _REASONS.get(word, "UPSTREAM_FAILED")
    text = joined(message or "") or "the provider failed to answer"
    if reason == _OUR_CREDENTIAL:
        text = "the provider refused the gateway's credential"
    status = stream_error_status(loose.compact({"error": {"code": word}}))
    return ChatError(reason=reason, message=text, http_status=status, code=word)


def cut_off() -> ChatError:
    """Returns the error of a stream that ends too early."""
    return ChatError(
        reason="UPSTREAM_CUT", message="the provider's stream ended before its answer did", http_status=502
    )


def too_large() -> ChatError:
    """Returns the error of an answer that is more than we hold."""
    return ChatError(
        reason="UPSTREAM_FAILED", message="the provider's answer is over the limit", http_status=502
    )
