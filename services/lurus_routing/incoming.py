"""What is checked of a call before anything is done with it.

The edge has checked the same of what came over HTTP; a team that calls over
gRPC has not. What passes here can neither smuggle a line into the request to
a provider nor make a provider look broken.
"""

import re
from typing import Final

from lurus.routing.v1.routing_pb2 import RelayRequest
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import InvalidRequest, RequestTooLarge
from lurus_dialects.dialect import Dialect
from lurus_dialects.endpoints import Endpoint, endpoint_of

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024
MAX_QUERY_CHARACTERS = 8192
MAX_CREDENTIALS = 4
COUNT_PATH: Final = "/v1/messages/count_tokens"
RESPONSES_COUNT_PATH: Final = "/v1/responses/input_tokens"
_SERVICE: Final = "/lurus.routing.v1.RoutingService"
STREAM_CHAT: Final = f"{_SERVICE}/StreamChat"
COMPLETE_CHAT: Final = f"{_SERVICE}/CompleteChat"
COUNT_TOKENS: Final = f"{_SERVICE}/CountTokens"
# Their answers are counts: never charged, never logged.
COUNT_PATHS: Final = frozenset({COUNT_PATH, RESPONSES_COUNT_PATH, COUNT_TOKENS})

_DIALECTS: Final = {
    usage_pb2.DIALECT_ANTHROPIC: Dialect.ANTHROPIC,
    usage_pb2.DIALECT_OPENAI_CHAT: Dialect.OPENAI_CHAT,
    usage_pb2.DIALECT_OPENAI_RESPONSES: Dialect.OPENAI_RESPONSES,
}
# Visible ASCII without `#`; a token and a field value of RFC 9110.
_QUERY = re.compile(r'[!"$-~]*')
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


def check_incoming(request: RelayRequest, body: bytes, max_body_bytes: int) -> Endpoint:
    """Returns what a call asks for.

    Args:
        request: the call; its own body is not looked at.
        body: that of the call.
        max_body_bytes: more is refused.

    Raises:
        InvalidRequest, RequestTooLarge: it cannot be passed on as it is.
    """
    endpoint = endpoint_of(request.path)
    if endpoint is None or _DIALECTS.get(request.dialect) is not endpoint.dialect:
        raise InvalidRequest("path and dialect do not belong together", param="path")
    method = request.method or "POST"
    if method not in endpoint.methods or (body and method != "POST"):
        raise InvalidRequest("path, method and body do not belong together", param="method")
    if len(body) > max_body_bytes:
        raise RequestTooLarge(f"the body is larger than {max_body_bytes} bytes", maximum_bytes=max_body_bytes)
    if len(request.query) > MAX_QUERY_CHARACTERS or not _QUERY.fullmatch(request.query):
        raise InvalidRequest("the query is not that of a URL", param="query")
    if len(request.credentials) > MAX_CREDENTIALS:
        raise InvalidRequest(f"more than {MAX_CREDENTIALS} credentials", param="credentials")
    _check_headers(request)
    return endpoint


def without_body(request: RelayRequest) -> RelayRequest:
    """Returns all else that a call said."""
    return RelayRequest(
        dialect=request.dialect,
        path=request.path,
        query=request.query,
        headers=request.headers,
        credentials=request.credentials,
        client_address=request.client_address,
        method=request.method,
    )


def _check_headers(request: RelayRequest) -> None:
    size = 0
    for header in request.headers:
        name, value = header.name, header.value
        size += len(name) + len(value)
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise InvalidRequest("a header is not one of HTTP, its name in lower case", param="headers")
    if len(request.headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise InvalidRequest(
            f"more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes of them", param="headers"
        )
