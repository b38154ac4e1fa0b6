"""Answers made below ASGI, to requests that never became complete."""

import json
from http import HTTPStatus
from typing import NamedTuple

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from lurus_common.ids import new_id
from lurus_edge.metrics import REFUSED

TLS_RECORD = b"\x16\x03"
ANTHROPIC_PATHS = (b"/v1/messages", b"/messages")
# Codex repeats a 413 six times, so its API answers 400 with the same code.
RESPONSES_PATHS = (b"/v1/responses", b"/responses")
ANTHROPIC_TYPES = {
    HTTPStatus.REQUEST_TIMEOUT: "timeout_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
}


class Refusal(NamedTuple):
    """An answer made below ASGI; `code` is the error code of the OpenAI shape."""

    status: HTTPStatus
    code: str
    message: str


class Refused(Exception):
    """Stops the parser from inside one of its callbacks."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


SLOW_HEAD = Refusal(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", "The request head took too long.")
SLOW_BODY = Refusal(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", "The request body took too long.")
MALFORMED = Refusal(HTTPStatus.BAD_REQUEST, "bad_request", "The bytes received are not a valid HTTP request.")
TLS_SENT = Refusal(HTTPStatus.BAD_REQUEST, "bad_request", "This port speaks plain HTTP, and TLS arrived.")
BAD_VERSION = Refusal(HTTPStatus.BAD_REQUEST, "bad_request", "Only versions 1.1 and 1.0 of HTTP are served.")
BAD_HOST = Refusal(HTTPStatus.BAD_REQUEST, "bad_request", "A request needs exactly one Host header.")
BAD_FRAMING = Refusal(HTTPStatus.BAD_REQUEST, "bad_request", "The length of the request body is not clear.")
BAD_CHUNKS = Refusal(HTTPStatus.BAD_REQUEST, "bad_request", "The chunks of the request body are too small.")
PIPELINE_FULL = Refusal(HTTPStatus.BAD_REQUEST, "bad_request", "Too many requests are pipelined.")
URL_TOO_LONG = Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, "url_too_long", "The URL is too long.")
HEAD_TOO_LARGE = Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "The request headers are too large."
)
BODY_TOO_LARGE = Refusal(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "request_too_large", "The request body is larger than the limit."
)
# Of a request whose answer is sent, but whose body is not read.
ANSWERED = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "server_is_overloaded", "It is answered already.")


def reason(error: httptools.HttpParserError, data: bytes) -> Refusal:
    """Returns why the parser stopped within `data`."""
    cause = error.__context__
    if isinstance(cause, Refused):
        return cause.refusal
    return TLS_SENT if data.startswith(TLS_RECORD) else MALFORMED


def response(refusal: Refusal, url: bytes, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    """Returns a whole HTTP/1.1 response in the error shape of the API that `url` belongs to."""
    REFUSED.labels(str(refusal.status.value)).inc()
    request_id = new_id("req")
    status = refusal.status
    if status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE and url.startswith(RESPONSES_PATHS):
        status = HTTPStatus.BAD_REQUEST
    body = _error_body(refusal, url, request_id)
    headers = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"request-id", request_id.encode()),
        (b"x-request-id", request_id.encode()),
    ]
    if status is not HTTPStatus.REQUEST_TIMEOUT:
        headers.append((b"x-should-retry", b"false"))
    head = b"".join(b"%s: %s\r\n" % header for header in headers)
    return STATUS_LINE[status] + head + b"\r\n" + body


def _error_body(refusal: Refusal, url: bytes, request_id: str) -> bytes:
    kind = ANTHROPIC_TYPES.get(refusal.status, "invalid_request_error")
    if url.startswith(ANTHROPIC_PATHS):
        error: dict[str, object] = {"type": kind, "message": refusal.message}
        return json.dumps({"type": "error", "error": error, "request_id": request_id}).encode()
    error = {"message": refusal.message, "type": "invalid_request_error", "param": None, "code": refusal.code}
    return json.dumps({"error": error}).encode()
