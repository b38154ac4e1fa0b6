"""gRPC servers and channels, made in one place with one set of arguments.

Nobody else calls `grpc.aio.server` or `grpc.aio.*_channel`. The interceptors
here turn `LurusError` into a status with an `ErrorInfo`, hide the text of every
other exception, check the caller's token and the request's rules.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from lurus_common import errors
from lurus_common.errors import InternalError, InvalidRequest, KeyInvalid, LurusError

if TYPE_CHECKING:
    from protovalidate import Validator

log = logging.getLogger(__name__)

ERROR_DOMAIN = "lurus-switch"
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# A body of 32 MiB and its frame; one event of a stream may be nearly as large.
MAX_INFERENCE_MESSAGE_BYTES = 48 * 1024 * 1024
UNARY_DEADLINE_SECONDS = 15.0
MAX_VIOLATIONS_SHOWN = 5
# Of one connection. Beyond, a call waits in its client without a word, so inference has room for all
# that an edge admits.
MAX_STREAMS = 1_000
MAX_INFERENCE_STREAMS = 16_000

# Measured, see `reliability.md` §4.3 in the design notes: without bdp_probe=0 a
# slow reader holds megabytes; ping_timeout, not keepalive_timeout, notices a dead peer. What a peer may send
# before its reader asks, and what is read of a socket at once, which a stalled stream holds on to, are small:
# 200 streams that nobody reads took 580 KiB each in edge and router together, and take less than half.
_COMMON_OPTIONS = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4096),
    ("grpc.experimental.tcp_read_chunk_size", 4096),
    ("grpc.experimental.tcp_max_read_chunk_size", 8192),
    ("grpc.enable_retries", 0),
    ("grpc.max_metadata_size", 16384),
)
_CHANNEL_OPTIONS = (
    *_COMMON_OPTIONS,
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
_SERVER_OPTIONS = (
    *_COMMON_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


def _message_options(maximum: int) -> tuple[tuple[str, int], ...]:
    return (("grpc.max_send_message_length", maximum), ("grpc.max_receive_message_length", maximum))


def open_channel(address: str, token: str = "", *, for_inference: bool = False) -> grpc.aio.Channel:
    """Returns a channel to HOST:PORT that presents `token` with every call.

    It connects when first used, reconnects within about a second, and gives
    unary calls without a deadline one of `UNARY_DEADLINE_SECONDS`.
    """
    maximum = MAX_INFERENCE_MESSAGE_BYTES if for_inference else MAX_MESSAGE_BYTES
    interceptors: list[grpc.aio.ClientInterceptor] = [_UnaryCaller(token), _StreamCaller(token)]
    options = (*_CHANNEL_OPTIONS, *_message_options(maximum))
    return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)


def make_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    *,
    for_inference: bool = False,
    share_port: bool = False,
) -> grpc.aio.Server:
    """Returns a server; `share_port` lets several workers listen on one port."""
    maximum = MAX_INFERENCE_MESSAGE_BYTES if for_inference else MAX_MESSAGE_BYTES
    options = (
        *_SERVER_OPTIONS,
        *_message_options(maximum),
        ("grpc.max_concurrent_streams", MAX_INFERENCE_STREAMS if for_inference else MAX_STREAMS),
        ("grpc.so_reuseport", int(share_port)),
    )
    return grpc.aio.server(interceptors=list(interceptors), options=options)


def server_interceptors(admin_token: str, open_methods: Iterable[str] = ()) -> list["HandlerInterceptor"]:
    """The interceptors of every server, outermost first: errors, token, rules.

    Args:
        admin_token: what callers present as `authorization: Bearer …`.
        open_methods: full names (`/package.Service/Method`, or `/package.Service/` for all
            of a service) that need no token, because they check a key of their own.
    """
    return [ErrorInterceptor(), TokenInterceptor(admin_token, open_methods), RulesInterceptor()]


Handler = Callable[[Any, Any], Any]
RpcHandler: TypeAlias = Any  # grpc.RpcMethodHandler; its four kinds are told apart at run time


class HandlerInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the two kinds of handlers that our contracts have."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[RpcHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> RpcHandler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        return self.wrap(handler, handler_call_details.method)

    def wrap(self, handler: RpcHandler, method: str) -> RpcHandler:
        """Returns the handler with this interceptor around it; also used in process."""
        serializers = {
            "request_deserializer": self.deserializer(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self.unary(handler.unary_unary, method), **serializers)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                self.stream(handler.unary_stream, method), **serializers
            )
        return handler

    def deserializer(self, parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        """Returns what reads a request off the wire."""
        return parse

    def unary(self, inner: Handler, method: str) -> Handler:
        async def call(request: Any, context: Any) -> Any:
            await self.before(request, context, method)
            return await inner(request, context)

        return call

    def stream(self, inner: Handler, method: str) -> Handler:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            await self.before(request, context, method)
            async with aclosing(inner(request, context)) as responses:
                async for response in responses:
                    yield response

        return call

    async def before(self, request: Any, context: Any, method: str) -> None:
        """Runs before the handler; raises to refuse the call."""


class ErrorInterceptor(HandlerInterceptor):
    """Turns exceptions into statuses; everything unexpected is INTERNAL without its text."""

    def wrap(self, handler: RpcHandler, method: str) -> RpcHandler:
        # Health and reflection are not ours: they report their own failures, in their own style.
        return super().wrap(handler, method) if method.startswith("/lurus.") else handler

    def deserializer(self, parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        """Returns what reads a request, or the failure: grpc would tell it as UNKNOWN and log it as ours."""

        def read(data: bytes) -> Any:
            try:
                return parse(data)
            except DecodeError:
                return InvalidRequest("the bytes are no message of this method")

        return read

    def unary(self, inner: Handler, method: str) -> Handler:
        async def call(request: Any, context: Any) -> Any:
            try:
                if isinstance(request, InvalidRequest):
                    raise request
                return await inner(request, context)
            except Exception as error:
                await report_error(context, error, method)

        return call

    def stream(self, inner: Handler, method: str) -> Handler:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                if isinstance(request, InvalidRequest):
                    raise request
                # A caller that leaves closes this generator only: that is passed on at
                # once, since what is inside may hold a call to a provider.
                answering = inner(request, context)
                # It may be large, and the answer goes on for minutes.
                del request
                async with aclosing(answering) as responses:
                    async for response in responses:
                        yield response
            except Exception as error:
                await report_error(context, error, method)

        return call


class TokenInterceptor(HandlerInterceptor):
    """Refuses callers without the admin token, except on the methods that check a key themselves."""

    def __init__(self, admin_token: str, open_methods: Iterable[str] = ()) -> None:
        self._token = admin_token.encode()
        self._open = ("/grpc.health.v1.Health/", *open_methods)

    def wrap(self, handler: RpcHandler, method: str) -> RpcHandler:
        if method.startswith(self._open):
            return handler
        return _AnyKindInterceptor(self._check).wrap(handler, method)

    async def _check(self, request: Any, context: Any, method: str) -> None:
        if not self._token or not hmac.compare_digest(bearer_token(context).encode(), self._token):
            error = KeyInvalid("present the admin token as `authorization: Bearer TOKEN`")
            await abort_with(context, error)


class _AnyKindInterceptor(HandlerInterceptor):
    """Runs a check before handlers of all four kinds (reflection is bidirectional)."""

    def __init__(self, check: Callable[[Any, Any, str], Awaitable[None]]) -> None:
        self._check = check

    async def before(self, request: Any, context: Any, method: str) -> None:
        await self._check(request, context, method)

    def wrap(self, handler: RpcHandler, method: str) -> RpcHandler:
        if handler.stream_unary:
            raise NotImplementedError(f"{method} is of a kind that nobody guards")
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(
                self.stream(handler.stream_stream, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return super().wrap(handler, method)


class RulesInterceptor(HandlerInterceptor):
    """Refuses requests that break the rules written in the contracts."""

    def __init__(self) -> None:
        # Imports and makes it when the server starts, not during its first request.
        _validator()

    def wrap(self, handler: RpcHandler, method: str) -> RpcHandler:
        # The relay path checks what it needs itself: 40 µs on a body of 30 KB.
        if not method.startswith("/lurus.") or method == "/lurus.routing.v1.RoutingService/Relay":
            return handler
        return super().wrap(handler, method)

    async def before(self, request: Any, context: Any, method: str) -> None:
        check_rules(_validator(), request)


@cache
def _validator() -> "Validator":
    """The one of this process: compiling the rules of a message takes it some 20 ms."""
    # Only servers need it, and it would be a third of the time that a command takes to start.
    from protovalidate import Validator

    return Validator()


def check_rules(validator: "Validator", message: Message) -> None:
    """Raises InvalidRequest, naming the fields, if `message` breaks the rules of its contract.

    In a request with an `update_mask`, a field that the resource leaves out
    breaks no rule: who merges it into the stored one checks the result again.
    """
    violations = validator.collect_violations(message)
    if violations and "update_mask" in message.DESCRIPTOR.fields_by_name:
        violations = [found for found in violations if not _is_left_out(found, message)]
    if violations:
        shown = [_violation_text(violation) for violation in violations[:MAX_VIOLATIONS_SHOWN]]
        raise InvalidRequest("; ".join(shown), param=_violation_path(violations[0]))


def _is_left_out(violation: Any, request: Message) -> bool:
    names = _violation_path(violation).split(".")
    if len(names) != 2:
        return False
    resource = getattr(request, names[0])
    return all(field.name != names[1] for field, _ in resource.ListFields())


def _violation_path(violation: Any) -> str:
    elements = violation.proto.field.elements if hasattr(violation, "proto") else violation.field.elements
    return ".".join(element.field_name for element in elements)


def _violation_text(violation: Any) -> str:
    message = violation.proto.message if hasattr(violation, "proto") else violation.message
    return f"{_violation_path(violation)}: {message}"


def bearer_token(context: Any) -> str:
    """The token that a caller presented, or an empty string."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            return text[7:].strip() if text[:7].lower() == "bearer " else ""
    return ""


async def report_error(context: Any, error: Exception, method: str) -> NoReturn:
    """Ends a call with the status of an exception; everything unexpected is INTERNAL without its text."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, grpc.aio.AioRpcError):
        error = error_of(error)
    elif isinstance(error, asyncio.TimeoutError):
        error = errors.DependencyUnavailable("a store did not answer in time")
    elif not isinstance(error, LurusError):
        log.error("%s failed", method, exc_info=error)
        error = InternalError("internal error")
    await abort_with(context, error)
    raise AssertionError("abort returned")


async def abort_with(context: Any, error: LurusError) -> NoReturn:
    """Ends a call with the status, reason and metadata of `error`."""
    await context.abort_with_status(rpc_status.to_status(status_of(error)))
    raise AssertionError("abort returned")


def status_of(error: LurusError) -> status_pb2.Status:
    """Returns `error` as google.rpc.Status with one ErrorInfo."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
    detail = AnyMessage()
    detail.Pack(info)
    return status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.message, details=[detail])


_BY_REASON: dict[str, type[LurusError]] = {
    kind.reason: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LurusError)
}


# CANCELLED is gRPC's word to a call that comes while the peer closes its port.
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)


def error_of(error: grpc.aio.AioRpcError) -> LurusError:
    """Returns what a peer reported, as the type that it raised.

    A failure without ErrorInfo is the transport's: UNAVAILABLE, CANCELLED and
    DEADLINE_EXCEEDED become DependencyUnavailable, the rest InternalError.
    """
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            found = _error_in(status_pb2.Status.FromString(value))
            if found:
                return found
    if error.code() in _AWAY:
        return errors.DependencyUnavailable("a service behind this one did not answer")
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.RequestTooLarge("the message exceeds the size that services exchange")
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return errors.NotBuiltYet(error.details() or "not implemented")
    return InternalError("internal error")


def _error_in(status: status_pb2.Status) -> LurusError | None:
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
            kind = _BY_REASON.get(info.reason, InternalError)
            return kind(status.message, **info.metadata)
    return None


class _Caller:
    def __init__(self, token: str) -> None:
        self._token = token

    def _details(
        self, details: grpc.aio.ClientCallDetails, timeout: float | None
    ) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        if self._token and metadata.get("authorization") is None:
            metadata.add("authorization", f"Bearer {self._token}")
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout or timeout, metadata, details.credentials, details.wait_for_ready
        )


class _UnaryCaller(_Caller, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._details(client_call_details, UNARY_DEADLINE_SECONDS), request)


class _StreamCaller(_Caller, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._details(client_call_details, None), request)
