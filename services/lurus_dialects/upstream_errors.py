"""What a provider's failure means, and how a client is told.

The wording of a provider's refusal is kept byte for byte: Claude Code repairs
its request by reading it. What concerns our own credential is never shown.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from lurus_common import errors as reasons
from lurus_common.errors import LurusError, UpstreamFailed
from lurus_dialects import loose
from lurus_dialects.anthropic import observe as anthropic
from lurus_dialects.dialect import Dialect
from lurus_dialects.errors import HttpError, error_headers, http_error
from lurus_dialects.headers import to_client, upstream_request_id
from lurus_dialects.openai_chat import observe as openai_chat
from lurus_dialects.openai_responses import observe as openai_responses

Headers = Iterable[tuple[str, str]]

MAX_ERROR_BODY_BYTES = 256 * 1024

_IS_ERROR_BODY: Final = {
    Dialect.ANTHROPIC: anthropic.is_error_body,
    Dialect.OPENAI_CHAT: openai_chat.is_error_body,
    Dialect.OPENAI_RESPONSES: openai_responses.is_error_body,
}
_CREDENTIAL_STATUSES: Final = frozenset({401, 402, 403})
_CALLER_STATUSES: Final = frozenset({400, 404, 405, 406, 413, 414, 415, 422, 501})
_RELAYED_STATUSES: Final = _CALLER_STATUSES | {429}
# What providers call an account of ours without money, under a status that blames the caller.
_SPENT_CODES: Final = frozenset(
    {"insufficient_quota", "billing_error", "billing_not_active", "usage_limit_reached"}
)
_SPENT_WORDS: Final = "credit balance is too low"

# Statuses for the errors that a provider reports inside a stream of status 200.
_STREAM_STATUSES: Final = {
    "overloaded_error": 529,
    "server_is_overloaded": 503,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "billing_error": 429,
    "invalid_request_error": 400,
    "invalid_prompt": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "timeout_error": 504,
    "api_error": 500,
    "server_error": 500,
}


# How vendors and common servers say that a prompt does not fit, with the numbers if they tell them.
MAX_MESSAGE_CHARACTERS = 2000
_TOO_LONG_CODES: Final = frozenset({"context_length_exceeded", "context_window_exceeded"})
_TOO_LONG_WORDS: Final = re.compile(
    r"prompt is too long|input is too long|maximum context length|context[ _]length[ _]exceeded"
    r"|exceed(?:s|ed)? (?:the )?context|context window",
    re.IGNORECASE,
)
_TOKENS_AND_MAXIMUM: Final = (
    re.compile(r"(?P<tokens>\d+) tokens > (?P<maximum>\d+) maximum"),
    re.compile(r"exceed context limit: (?P<tokens>\d+) \+ \d+ > (?P<maximum>\d+)"),
    re.compile(
        r"maximum context length is (?P<maximum>\d+) tokens.*?"
        r"(?:resulted in|requested(?: about)?|contains?(?: at least)?|has) (?P<tokens>\d+)",
        re.DOTALL,
    ),
)
_ERRORS: Final = {
    kind.reason: kind
    for kind in vars(reasons).values()
    if isinstance(kind, type) and issubclass(kind, LurusError)
}


# How providers say that they do not know or take a field. Anthropic names its place first.
_FORM_CODES: Final = frozenset(
    {
        "unknown_parameter",
        "unsupported_parameter",
        "unsupported_value",
        "invalid_type",
        "invalid_value",
        "missing_required_parameter",
        "integer_below_min_value",
        "integer_above_max_value",
        "string_above_max_length",
        "invalid_function_parameters",
    }
)
_FORM_WORDS: Final = re.compile(
    r"^[a-z_]+(\.[A-Za-z0-9_]+)*: |extra inputs are not permitted|(unknown|unrecognized|unsupported) "
    r"(request argument|parameter|field|argument)|does not support",
    re.IGNORECASE,
)
_CONTENT_CODES: Final = frozenset({"invalid_prompt", "content_filter", "content_policy_violation"})


class FailureClass(StrEnum):
    """What to do after a failed attempt (design §6)."""

    CREDENTIAL = "credential"  # Bench this credential, ask the next candidate.
    THROTTLE = "throttle"  # Bench for as long as the provider says, ask the next.
    TRANSIENT = "transient"  # Ask the next; the breaker counts it.
    MODEL = "model"  # This provider does not have the model; ask the next.
    GATEWAY = "gateway"  # A defect of ours: ask the next, count nothing against the provider.
    CALLER = "caller"  # The request is at fault: return the answer as it is, count nothing.


def failure_class(status: int, body: bytes = b"", headers: Headers = ()) -> FailureClass:
    """Returns what a provider's answer means for routing.

    `status` 0 stands for a connection that failed or timed out. A 2xx comes
    here if its body was no answer.
    """
    error = _error_fields(body)
    if status in _CREDENTIAL_STATUSES or (400 <= status < 500 and _is_spent(error)):
        return FailureClass.CREDENTIAL
    if status in (429, 529) or (status == 503 and any(name.lower() == "retry-after" for name, _ in headers)):
        return FailureClass.THROTTLE
    if status in (400, 404) and _is_about_model(error):
        return FailureClass.MODEL
    if status == 404 and not error:
        # Not from an API: the base URL or something before the provider is wrong.
        return FailureClass.TRANSIENT
    return FailureClass.CALLER if status in _CALLER_STATUSES else FailureClass.TRANSIENT


def blames_form(status: int, body: bytes) -> bool:
    """True if a provider refuses how a request is written, and not what it says or how long it is."""
    error = _error_fields(body)
    words = {loose.text_of(error, "type"), loose.text_of(error, "code")}
    message = loose.text_of(error, "message")
    if words & _CONTENT_CODES or _is_too_long(error, message):
        return False
    if status in (404, 422):
        # A path that it does not have, or a body that its validator refuses.
        return True
    is_named = bool(words & _FORM_CODES or loose.text_of(error, "param"))
    return status == 400 and (is_named or _FORM_WORDS.search(message) is not None)


def stream_error_status(error_body: bytes) -> int:
    """Returns the HTTP status for an error that came as an event of a stream (`Answer.error_body`)."""
    error = _error_fields(error_body)
    for name in ("code", "type"):
        status = _STREAM_STATUSES.get(loose.text_of(error, name))
        if status is not None:
            return status
    return 502


@dataclass(frozen=True, slots=True)
class Report:
    """A provider's failure in the words of `lurus.errors.v1`, which every dialect can express."""

    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    def error(self) -> LurusError:
        """Returns it as an exception, for callers over gRPC."""
        return _ERRORS.get(self.reason, UpstreamFailed)(self.message, **self.metadata)


def report(status: int, body: bytes, headers: Headers = (), retry_after_seconds: float = math.inf) -> Report:
    """Returns what a provider's error means, whatever its dialect (wire-contract C.5).

    Its words are kept where they speak of the client's request; what they say
    of the provider's own state may name accounts of ours.
    """
    error = _error_fields(body)
    kind = failure_class(status, body, headers)
    if kind is FailureClass.CREDENTIAL:
        return Report("UPSTREAM_CREDENTIAL_REJECTED", "the provider refused the gateway's credential")
    message = loose.text_of(error, "message")[:MAX_MESSAGE_CHARACTERS]
    if 400 <= status < 500 and status != 429 and _is_too_long(error, message):
        return Report("CONTEXT_TOO_LONG", message or "the prompt is too long", _size(message))
    if kind is FailureClass.MODEL:
        return Report("MODEL_NOT_FOUND", "the provider does not have this model")
    wait = {"retry_after_seconds": f"{retry_after_seconds:g}"} if math.isfinite(retry_after_seconds) else {}
    if status == 429:
        return Report("RATE_LIMITED", "the provider takes no more requests at the moment", wait)
    if status in (503, 529):
        return Report("OVERLOADED", "the provider is overloaded", wait)
    if status in (408, 504):
        return Report("UPSTREAM_TIMEOUT", "the provider did not answer in time")
    if status == 413:
        return Report("REQUEST_TOO_LARGE", message or "the request is too large for the provider")
    if kind is FailureClass.CALLER:
        reason = "NOT_FOUND" if status == 404 else "INVALID_REQUEST"
        return Report(reason, message or "the provider refused the request")
    return Report("UPSTREAM_FAILED", "the provider failed to answer")


def translated_error(
    dialect: Dialect,
    status: int,
    headers: Headers,
    body: bytes,
    request_id: str,
    retry_after_seconds: float = math.inf,
) -> HttpError:
    """Returns what a client is told of an error of a provider of another dialect."""
    given = list(headers)
    found = report(status, body, given, retry_after_seconds)
    shown = http_error(dialect, found.reason, found.message, found.metadata, request_id)
    if upstream_id := upstream_request_id(given):
        shown.headers.append(("x-lurus-upstream-request-id", upstream_id))
    return shown


def upstream_error(
    dialect: Dialect, status: int, headers: Headers, body: bytes, request_id: str
) -> HttpError:
    """Returns what the client is told of a provider's error (wire-contract B5).

    Verbatim if it is an error in the dialect's shape that concerns the client;
    else in our own words, with nothing of the provider's text. `headers` are
    the provider's; those that a client may see are kept.
    """
    if failure_class(status, body, headers) is FailureClass.CREDENTIAL:
        message = "the provider refused the gateway's credential"
        return http_error(dialect, "UPSTREAM_CREDENTIAL_REJECTED", message, {}, request_id)
    kept = [(name, value) for name, value in to_client(headers) if name != "content-type"]
    if (status in _RELAYED_STATUSES or 500 <= status < 600) and _is_dialect_error(dialect, body):
        return HttpError(status, [*error_headers(request_id), *kept], body)
    wrapped = http_error(dialect, "UPSTREAM_FAILED", "the provider failed to answer", {}, request_id)
    is_server_error = 500 <= status < 600
    return HttpError(status if is_server_error else wrapped.status, [*wrapped.headers, *kept], wrapped.body)


def _is_dialect_error(dialect: Dialect, body: bytes) -> bool:
    value = loose.decode(body) if len(body) <= MAX_ERROR_BODY_BYTES else None
    return isinstance(value, dict) and _IS_ERROR_BODY[dialect](value)


def _error_fields(body: bytes) -> dict[str, Any]:
    value = loose.decode(body) if 0 < len(body) <= MAX_ERROR_BODY_BYTES else None
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}


def _is_spent(error: dict[str, Any]) -> bool:
    words = {loose.text_of(error, "type"), loose.text_of(error, "code")}
    return bool(words & _SPENT_CODES) or _SPENT_WORDS in loose.text_of(error, "message").lower()


def _is_about_model(error: dict[str, Any]) -> bool:
    if loose.text_of(error, "code") in ("model_not_found", "model_not_supported"):
        return True
    is_not_found = loose.text_of(error, "type") == "not_found_error"
    return is_not_found and loose.text_of(error, "message").lower().startswith("model")


def _is_too_long(error: dict[str, Any], message: str) -> bool:
    words = {loose.text_of(error, "type"), loose.text_of(error, "code")}
    return bool(words & _TOO_LONG_CODES) or _TOO_LONG_WORDS.search(message) is not None


def _size(message: str) -> dict[str, str]:
    """How long the prompt is and may be, as far as the provider tells."""
    found = next((match for words in _TOKENS_AND_MAXIMUM if (match := words.search(message))), None)
    return found.groupdict() if found else {}
