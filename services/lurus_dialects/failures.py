"""Tells what an error that a provider reports in its answer means, whatever its dialect."""

from typing import Final

from lurus.routing.v1.chat_pb2 import ChatError
from lurus_dialects import loose
from lurus_dialects.surrogates import joined
from lurus_dialects.upstream_errors import stream_error_status

_OUR_CREDENTIAL: Final = "UPSTREAM_CREDENTIAL_REJECTED"
# Codes of OpenAI and of servers like it, and types of Anthropic.
_REASONS: Final = {
    "context_length_exceeded": "CONTEXT_TOO_LONG",
    "context_window_exceeded": "CONTEXT_TOO_LONG",
    "invalid_request_error": "INVALID_REQUEST",
    "invalid_prompt": "INVALID_REQUEST",
    "request_too_large": "REQUEST_TOO_LARGE",
    "rate_limit_exceeded": "RATE_LIMITED",
    "rate_limit_error": "RATE_LIMITED",
    "server_is_overloaded": "OVERLOADED",
    "overloaded_error": "OVERLOADED",
    "slow_down": "OVERLOADED",
    "model_not_found": "MODEL_NOT_FOUND",
    "not_found_error": "MODEL_NOT_FOUND",
    "timeout_error": "UPSTREAM_TIMEOUT",
    "insufficient_quota": _OUR_CREDENTIAL,
    "billing_not_active": _OUR_CREDENTIAL,
    "billing_error": _OUR_CREDENTIAL,
    "usage_limit_reached": _OUR_CREDENTIAL,
    "invalid_api_key": _OUR_CREDENTIAL,
    "authentication_error": _OUR_CREDENTIAL,
    "permission_error": _OUR_CREDENTIAL,
}
_TOO_LONG: Final = "prompt is too long"


def failure_of(code: str, message: str) -> ChatError:
    """Returns the error that a provider reports; what concerns our credential is not repeated."""
    word, text = joined(code), joined(message)
    reason = _REASONS.get(word, "UPSTREAM_FAILED")
    if text.startswith(_TOO_LONG):
        reason = "CONTEXT_TOO_LONG"
    if reason == _OUR_CREDENTIAL:
        text = "the provider refused the gateway's credential"
    return ChatError(
        reason=reason,
        message=text or "the provider broke off its answer",
        http_status=stream_error_status(loose.compact({"error": {"code": word}})),
        code=word,
    )


def cut_off() -> ChatError:
    """Returns the error of a stream that ends too early."""
    return ChatError(
        reason="UPSTREAM_CUT", message="the provider's stream ended before its answer did", http_status=502
    )


def unusable(why: str) -> ChatError:
    """Returns the error of an answer that cannot be used."""
    return ChatError(reason="UPSTREAM_FAILED", message=why, http_status=502)


def too_large() -> ChatError:
    """Returns the error of an answer that is more than we hold."""
    return unusable("the provider's answer is over the limit")
