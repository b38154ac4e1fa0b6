"""Expected failures, as types with a gRPC code and a reason.

Imports no transport: `rpc.py` turns these into statuses, `lurus_dialects` into
the error bodies of the three client APIs. Reasons are the values of
`lurus.errors.v1.ErrorReason` without their prefix.
"""

from typing import ClassVar


class LurusError(Exception):
    """A failure that a caller may be told about.

    Every value that the message mentions is in `metadata` too, since the
    message is not API.
    """

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {name: str(value) for name, value in metadata.items() if value is not None}


class InvalidRequest(LurusError):
    """The request is malformed; `param` is the path of the field, if known."""

    code, reason = "INVALID_ARGUMENT", "INVALID_REQUEST"


class ContextTooLong(LurusError):
    """The prompt does not fit the model."""

    code, reason = "INVALID_ARGUMENT", "CONTEXT_TOO_LONG"


class KeyInvalid(LurusError):
    """No credential, or one that is unknown, revoked, expired or malformed."""

    code, reason = "UNAUTHENTICATED", "KEY_INVALID"


class PermissionDenied(LurusError):
    """The caller is known and may not do this."""

    code, reason = "PERMISSION_DENIED", "PERMISSION_DENIED"


class ModelForbidden(LurusError):
    """The key is live and may not use this model."""

    code, reason = "PERMISSION_DENIED", "MODEL_FORBIDDEN"


class ModelNotFound(LurusError):
    """No provider serves this model in this dialect."""

    code, reason = "NOT_FOUND", "MODEL_NOT_FOUND"


class PathNotFound(LurusError):
    """No such HTTP path."""

    code, reason = "UNIMPLEMENTED", "PATH_NOT_FOUND"


class MethodNotAllowed(LurusError):
    """The path exists, with another method; `allow` lists them."""

    code, reason = "UNIMPLEMENTED", "METHOD_NOT_ALLOWED"


class RequestTooLarge(LurusError):
    """The body exceeds its limit; `maximum_bytes` says which."""

    code, reason = "RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE"


class MediaTypeUnsupported(LurusError):
    """The content type is not JSON."""

    code, reason = "INVALID_ARGUMENT", "MEDIA_TYPE_UNSUPPORTED"


class EncodingUnsupported(LurusError):
    """The content encoding or charset is not one we read."""

    code, reason = "INVALID_ARGUMENT", "ENCODING_UNSUPPORTED"


class EncodingInvalid(LurusError):
    """The body is not what its content encoding says."""

    code, reason = "INVALID_ARGUMENT", "ENCODING_INVALID"


class WebsocketUnsupported(LurusError):
    """The caller asked for a websocket, which is not served."""

    code, reason = "UNIMPLEMENTED", "WEBSOCKET_UNSUPPORTED"


class Conflict(LurusError):
    """The same id came again with another content."""

    code, reason = "ABORTED", "CONFLICT"


class Untranslatable(LurusError):
    """The provider's dialect cannot express a part of the request; `param` says where it stands."""

    code, reason = "INVALID_ARGUMENT", "UNTRANSLATABLE"


class PreviousResponseNotFound(LurusError):
    """The request continues an answer that no provider of ours holds."""

    code, reason = "NOT_FOUND", "PREVIOUS_RESPONSE_NOT_FOUND"


class ResponseNotFound(LurusError):
    """The caller's account has no answer of this id with any provider of ours."""

    code, reason = "NOT_FOUND", "RESPONSE_NOT_FOUND"


class BalanceTooLow(LurusError):
    """The account's balance does not cover this request."""

    code, reason = "FAILED_PRECONDITION", "BALANCE_TOO_LOW"


class QuotaExceeded(LurusError):
    """A quota of the account is used up."""

    code, reason = "FAILED_PRECONDITION", "QUOTA_EXCEEDED"


class RateLimited(LurusError):
    """Too much at the moment; `retry_after_seconds` says for how long."""

    code, reason = "RESOURCE_EXHAUSTED", "RATE_LIMITED"


class Overloaded(LurusError):
    """We shed load or drain."""

    code, reason = "UNAVAILABLE", "OVERLOADED"


class NoHealthyProvider(LurusError):
    """Every candidate is benched."""

    code, reason = "UNAVAILABLE", "NO_HEALTHY_PROVIDER"


class UpstreamFailed(LurusError):
    """The providers asked have failed."""

    code, reason = "UNAVAILABLE", "UPSTREAM_FAILED"


class UpstreamCredentialRejected(LurusError):
    """The provider refused our own credential."""

    code, reason = "UNAVAILABLE", "UPSTREAM_CREDENTIAL_REJECTED"


class UpstreamTimeout(LurusError):
    """The provider did not answer in time."""

    code, reason = "DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT"


class UpstreamCut(LurusError):
    """The provider ended a stream without its terminator."""

    code, reason = "UNAVAILABLE", "UPSTREAM_CUT"


class AuthenticationUnavailable(LurusError):
    """The key cannot be checked now: a dependency is away."""

    code, reason = "UNAVAILABLE", "AUTHENTICATION_UNAVAILABLE"


class AccountingUnavailable(LurusError):
    """The request cannot be accounted for now."""

    code, reason = "UNAVAILABLE", "ACCOUNTING_UNAVAILABLE"


class DependencyUnavailable(LurusError):
    """A store or service behind this one is away."""

    code, reason = "UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"


class NotFound(LurusError):
    """No such resource."""

    code, reason = "NOT_FOUND", "NOT_FOUND"


class AlreadyExists(LurusError):
    """A resource with this id exists, with another content."""

    code, reason = "ALREADY_EXISTS", "ALREADY_EXISTS"


class FailedPrecondition(LurusError):
    """The resource is in a state that does not allow this."""

    code, reason = "FAILED_PRECONDITION", "FAILED_PRECONDITION"


class NotBuiltYet(LurusError):
    """The method is part of the contract and not built yet."""

    code, reason = "UNIMPLEMENTED", "NOT_IMPLEMENTED"


class InternalError(LurusError):
    """A defect of ours; also how a peer's unexplained failure is reported."""
