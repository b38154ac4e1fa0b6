"""REST under `/api/v1`: the unary and server-streaming methods that the contracts give an HTTP route."""

import logging
from collections.abc import Mapping
from typing import Any

import grpc.aio
import msgspec
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from starlette.types import Receive, Scope, Send

from lurus.billing.v1.billing_pb2 import DESCRIPTOR as BILLING
from lurus.billing.v1.billing_pb2_grpc import BillingServiceServicer
from lurus.log.v1.log_pb2 import DESCRIPTOR as LOG
from lurus.log.v1.log_pb2_grpc import LogServiceServicer
from lurus.provider.v1.provider_pb2 import DESCRIPTOR as PROVIDER
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceServicer
from lurus.routing.v1.routing_pb2 import DESCRIPTOR as ROUTING
from lurus.routing.v1.routing_pb2_grpc import RoutingServiceServicer
from lurus_common.errors import (
    DependencyUnavailable,
    InternalError,
    LurusError,
    MethodNotAllowed,
    PathNotFound,
)
from lurus_common.ids import new_id
from lurus_common.rpc import MAX_MESSAGE_BYTES, UNARY_DEADLINE_SECONDS, error_of
from lurus_edge.bindings import Binding, bindings_of, request_of, to_json
from lurus_edge.bodies import read_body
from lurus_edge.departure import ClientGone, Departure
from lurus_edge.inbound import Inbound, check_content_type, read_headers
from lurus_edge.openapi import document

log = logging.getLogger(__name__)

REST_PREFIX = "/api/v1"
OPENAPI_PATH = "/api/v1/openapi.json"
# Each service, and the generated class whose docstrings are the contract's comments.
SERVICES = (
    (PROVIDER.services_by_name["ProviderService"], ProviderServiceServicer),
    (BILLING.services_by_name["BillingService"], BillingServiceServicer),
    (LOG.services_by_name["LogService"], LogServiceServicer),
    (ROUTING.services_by_name["RoutingService"], RoutingServiceServicer),
)
# Room for the frame around what JSON says in more bytes.
MAX_REST_BODY_BYTES = MAX_MESSAGE_BYTES
# Source: google/rpc/code.proto, which names the HTTP status of each code.
HTTP_STATUS = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
# What HTTP can say more exactly than a gRPC code.
HTTP_STATUS_OF_REASON = {
    "PATH_NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "REQUEST_TOO_LARGE": 413,
    "MEDIA_TYPE_UNSUPPORTED": 415,
}


class Transcoder:
    """The ASGI application of the REST routes."""

    def __init__(self, channels: Mapping[str, grpc.aio.Channel]) -> None:
        """Serves the methods of all contracts.

        Args:
            channels: by area. A call to an area without one is answered 503. None of them
                may present a token of its own: callers come with theirs.
        """
        self._bindings = bindings_of(service for service, _ in SERVICES)
        self._channels = channels
        self._openapi = msgspec.json.encode(document(self._bindings, _summaries()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send)
        try:
            await self._serve(scope, receive, answer)
        except ClientGone:
            pass
        except LurusError as error:
            await answer.fail(error)
        except grpc.aio.AioRpcError as error:
            await answer.fail(error_of(error))
        except Exception:
            log.exception("%s failed", scope["path"])
            await answer.fail(InternalError("internal error"))

    async def _serve(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        path = scope["raw_path"].decode("ascii")
        if path == OPENAPI_PATH and scope["method"] == "GET":
            await answer.whole(200, self._openapi)
            return
        binding, values = self._find(scope["method"], path)
        inbound = read_headers(scope["headers"])
        body = await read_body(receive, inbound.content_coding, MAX_REST_BODY_BYTES, _hold_nothing)
        if body:
            check_content_type(inbound.content_type)
        request = request_of(binding, values, scope["query_string"].decode("ascii"), body)
        metadata = _metadata(scope, inbound)
        if binding.method.server_streaming:
            answer.is_event_stream = _wants_events(scope)
            async with Departure(scope["extensions"]["lurus"]["connection"]):
                await self._stream(binding, request, metadata, answer)
        else:
            await self._call(binding, request, metadata, answer)

    def _find(self, http_method: str, path: str) -> tuple[Binding, tuple[str, ...]]:
        allowed: list[str] = []
        for binding in self._bindings:
            if match := binding.pattern.fullmatch(path):
                if binding.http_method == http_method:
                    return binding, match.groups()
                allowed.append(binding.http_method)
        if allowed:
            methods = ", ".join(sorted(set(allowed)))
            raise MethodNotAllowed(f"this path does not take {http_method}", allow=methods)
        raise PathNotFound("there is nothing at this path")

    async def _call(
        self, binding: Binding, request: Message, metadata: "Metadata", answer: "_Answer"
    ) -> None:
        method = self._channel(binding).unary_unary(binding.rpc_path, **_serializers(binding))
        response = await method(request, metadata=metadata, timeout=UNARY_DEADLINE_SECONDS)
        await answer.whole(200, to_json(response, binding.response_body))

    async def _stream(
        self, binding: Binding, request: Message, metadata: "Metadata", answer: "_Answer"
    ) -> None:
        method = self._channel(binding).unary_stream(binding.rpc_path, **_serializers(binding))
        call = method(request, metadata=metadata)
        try:
            async for response in call:
                await answer.item(to_json(response, binding.response_body))
        finally:
            call.cancel()
        await answer.end()

    def _channel(self, binding: Binding) -> grpc.aio.Channel:
        channel = self._channels.get(binding.area)
        if channel is None:
            raise DependencyUnavailable(f"this edge knows no {binding.area} service", dependency=binding.area)
        return channel


Metadata = tuple[tuple[str, str], ...]


def _summaries() -> dict[str, str]:
    """The first line of each method's comment, by gRPC path."""
    found = {}
    for service, documented in SERVICES:
        for method in service.methods:
            comment = (getattr(documented, method.name).__doc__ or "").strip()
            found[f"/{service.full_name}/{method.name}"] = comment.partition("\n")[0]
    return found


def _metadata(scope: Scope, inbound: Inbound) -> Metadata:
    """The caller's credential, an empty one too, so that no channel adds another."""
    for name, value in scope["headers"]:
        if name == b"authorization" and value.isascii():
            return (("authorization", value.decode("ascii")),)
    return (("authorization", f"Bearer {inbound.api_keys[0]}" if inbound.api_keys else ""),)


def _serializers(binding: Binding) -> dict[str, Any]:
    request_class: Any = GetMessageClass(binding.method.input_type)
    response_class: Any = GetMessageClass(binding.method.output_type)
    return {
        "request_serializer": request_class.SerializeToString,
        "response_deserializer": response_class.FromString,
    }


def _wants_events(scope: Scope) -> bool:
    return any(
        name == b"accept" and b"text/event-stream" in value.lower() for name, value in scope["headers"]
    )


def _hold_nothing(_: int) -> None:
    """REST bodies are small; nobody counts them."""


class _Answer:
    """An answer on its way: one object, or a stream of them as NDJSON or events."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_started = False
        self.is_event_stream = False

    async def whole(self, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        length = (b"content-length", b"%d" % len(body))
        await self._start(status, b"application/json", (length, *headers))
        await self._send({"type": "http.response.body", "body": body})

    async def item(self, body: bytes) -> None:
        if not self._is_started:
            await self._start_stream()
        line = b"data: " + body + b"\n\n" if self.is_event_stream else body + b"\n"
        await self._send({"type": "http.response.body", "body": line, "more_body": True})

    async def end(self) -> None:
        if not self._is_started:
            await self._start_stream()
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: LurusError) -> None:
        body = msgspec.json.encode({"error": _error(error)})
        if not self._is_started:
            status = HTTP_STATUS_OF_REASON.get(error.reason) or HTTP_STATUS.get(error.code, 500)
            await self.whole(status, body, _error_headers(error))
            return
        line = b"event: error\ndata: " + body + b"\n\n" if self.is_event_stream else body + b"\n"
        await self._send({"type": "http.response.body", "body": line})

    async def _start_stream(self) -> None:
        kind = b"text/event-stream; charset=utf-8" if self.is_event_stream else b"application/x-ndjson"
        await self._start(200, kind, ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")))

    async def _start(self, status: int, kind: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        self._is_started = True
        request_id = new_id("req").encode()
        common = [(b"content-type", kind), (b"request-id", request_id), (b"x-request-id", request_id)]
        await self._send({"type": "http.response.start", "status": status, "headers": [*common, *headers]})


def _error(error: LurusError) -> dict[str, object]:
    return {
        "code": error.code,
        "reason": error.reason,
        "message": error.message,
        "metadata": error.metadata,
    }


def _error_headers(error: LurusError) -> tuple[tuple[bytes, bytes], ...]:
    headers: list[tuple[bytes, bytes]] = []
    if allow := error.metadata.get("allow"):
        headers.append((b"allow", allow.encode("latin-1", "replace")))
    if seconds := error.metadata.get("retry_after_seconds"):
        headers.append((b"retry-after", seconds.partition(".")[0].encode("latin-1", "replace")))
    return tuple(headers)
