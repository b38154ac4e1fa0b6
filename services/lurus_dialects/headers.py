"""Which headers pass, in both directions (wire-contract B3, B4)."""

from collections.abc import Iterable
from typing import Final

from lurus_common.errors import InvalidRequest
from lurus_dialects.dialect import Dialect

Headers = Iterable[tuple[str, str]]

DEFAULT_ANTHROPIC_VERSION = "2023-06-01"
MAX_UPSTREAM_REQUEST_ID_CHARACTERS = 256
# What common servers take in one line is 8 KiB. They refuse a longer one in words of no dialect,
# which would look like a failure of the provider.
MAX_LINE_BYTES = 8000

_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect", "http2-settings"}
)
_CREDENTIALS: Final = frozenset(
    {"authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "cookie2", "set-cookie"}
)
# They describe the connection, or the body before it was decoded and edited.
_OF_THE_MESSAGE: Final = frozenset(
    {
        "host",
        "content-length",
        "content-encoding",
        "content-md5",
        "content-digest",
        "repr-digest",
        "digest",
        "accept-encoding",
    }
)
# Whose request it is, is decided by its key alone; where it came from is nobody's business.
_IDENTITY: Final = frozenset(
    {
        "forwarded",
        "via",
        "x-real-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "true-client-ip",
        "cf-connecting-ip",
        "x-user-id",
        "x-user",
        "x-tenant",
        "x-tenant-id",
        "x-account-id",
        "grpc-timeout",
        "traceparent",
        "tracestate",
        "baggage",
        # They name the client's own account with the vendor, which is not the one that pays.
        "openai-organization",
        "openai-project",
    }
)
_REMOVED: Final = _HOP_BY_HOP | _CREDENTIALS | _OF_THE_MESSAGE | _IDENTITY
_REMOVED_PREFIXES: Final = ("proxy-", "x-forwarded-", "x-lurus-", "x-original-", "x-envoy-")

_TO_CLIENT: Final = frozenset(
    {
        "content-type",
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
        "x-codex-turn-state",
        "openai-model",
        "x-reasoning-included",
        "x-models-etag",
        "openai-processing-ms",
    }
)


def to_upstream(dialect: Dialect, headers: Headers) -> list[tuple[str, str]]:
    """Returns a client's headers as a provider gets them, names in lower case, without any credential.

    All that is not removed passes, so that headers of tomorrow work. Names are
    compared with `_` read as `-`. Several `anthropic-beta` lines become one, in
    order. The caller adds the provider's credential.

    Raises:
        InvalidRequest: a line would be longer than providers take.
    """
    given = [(name.lower(), value) for name, value in headers]
    listed = _listed_by_connection(given)
    passed: list[tuple[str, str]] = []
    betas: list[str] = []
    for name, value in given:
        normal = name.replace("_", "-")
        if normal in _REMOVED or normal.startswith(_REMOVED_PREFIXES) or normal in listed:
            continue
        if not _is_plain(value):
            continue
        if name == "anthropic-beta":
            betas.append(value)
        else:
            passed.append((name, value))
    if betas:
        passed.append(("anthropic-beta", ",".join(betas)))
    names = {name for name, _ in passed}
    if dialect is Dialect.ANTHROPIC and "anthropic-version" not in names:
        passed.append(("anthropic-version", DEFAULT_ANTHROPIC_VERSION))
    if "content-type" not in names:
        passed.append(("content-type", "application/json"))
    passed.append(("accept-encoding", "identity"))
    for name, value in passed:
        if len(name) + len(value.encode()) > MAX_LINE_BYTES:
            raise InvalidRequest(f"a header is longer than {MAX_LINE_BYTES} bytes", maximum=MAX_LINE_BYTES)
    return passed


def to_other_dialect(
    dialect: Dialect, *, is_streaming: bool, anthropic_version: str = ""
) -> list[tuple[str, str]]:
    """Returns the headers of a request that was translated into `dialect`.

    None of the client's: they speak of its own dialect, its program and its
    sessions, which are nobody's business at another vendor.
    """
    accept = "text/event-stream" if is_streaming else "application/json"
    headers = [
        ("content-type", "application/json"),
        ("accept", accept),
        ("accept-encoding", "identity"),
        ("user-agent", "lurus-switch"),
    ]
    if dialect is Dialect.ANTHROPIC:
        headers.append(("anthropic-version", anthropic_version or DEFAULT_ANTHROPIC_VERSION))
    return headers


def of_translated_answer(headers: Headers, *, is_streaming: bool) -> list[tuple[str, str]]:
    """Returns the headers that a client gets with a provider's answer in another dialect."""
    kind = "text/event-stream; charset=utf-8" if is_streaming else "application/json"
    found = upstream_request_id(headers)
    return [("content-type", kind), *([("x-lurus-upstream-request-id", found)] if found else [])]


def to_client(headers: Headers) -> list[tuple[str, str]]:
    """Returns those of a provider's headers that a client gets, names in lower case.

    The provider's request id becomes `x-lurus-upstream-request-id`. Quotas and
    organisations in the rest are the gateway's own, not the client's.
    """
    given = [(name.lower(), value) for name, value in headers]
    passed = [(name, value) for name, value in given if name in _TO_CLIENT and _is_plain(value)]
    if found := upstream_request_id(given):
        passed.append(("x-lurus-upstream-request-id", found))
    return passed


def upstream_request_id(headers: Headers) -> str:
    """Returns the provider's own id of a request, printable and cut at 256 characters; empty if none."""
    found = ""
    for name, value in headers:
        if name.lower() in ("request-id", "x-request-id") and value.isascii() and value.isprintable():
            found = found or value[:MAX_UPSTREAM_REQUEST_ID_CHARACTERS]
    return found


def _listed_by_connection(headers: list[tuple[str, str]]) -> set[str]:
    values = [value for name, value in headers if name == "connection"]
    return {item.strip().lower().replace("_", "-") for value in values for item in value.split(",")}


def _is_plain(value: str) -> bool:
    return "\n" not in value and "\r" not in value and "\0" not in value
