"""A channel to a servicer in the same process: the generated stubs, no socket.

    server = InProcessServer(interceptors)
    add_RoutingServiceServicer_to_server(servicer, server)
    stub = RoutingServiceStub(server.channel())

Messages pass by reference, so a handler must not change its request. A stream's
handler runs in the caller's own task: no queue, no task more, and a caller that
is cancelled cancels the handler where it waits.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio

from lurus_common.rpc import ErrorInterceptor, HandlerInterceptor, RpcHandler, report_error

Metadata = Sequence[tuple[str, str | bytes]]
_OK = grpc.StatusCode.OK


class InProcessServer:
    """Takes servicers as a grpc.aio server does, and gives out channels to them."""

    def __init__(self, interceptors: Sequence[HandlerInterceptor] = ()) -> None:
        self._interceptors = interceptors
        self._handlers: dict[str, RpcHandler] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Called by generated code; the registered form below has all that is needed."""

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, RpcHandler]
    ) -> None:
        """Called by generated code with each service's methods."""
        for name, handler in method_handlers.items():
            method = f"/{service_name}/{name}"
            for interceptor in reversed(self._interceptors):
                # A stream of ours reports its failures itself: a generator around it costs each message.
                if not (handler.unary_stream and isinstance(interceptor, ErrorInterceptor)):
                    handler = interceptor.wrap(handler, method)
            self._handlers[method] = handler

    def channel(self) -> "InProcessChannel":
        """Returns a channel to the servicers added so far."""
        return InProcessChannel(self._handlers)


class InProcessChannel(grpc.aio.Channel):
    """Calls handlers directly. Unary and server-streaming methods only."""

    def __init__(self, handlers: Mapping[str, RpcHandler]) -> None:
        self._handlers = handlers
        self._closing: set[asyncio.Task[None]] = set()

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Any:
        """Returns what calls `method`."""
        handler = self._handlers.get(method)

        async def call(
            request: Any,
            *,
            timeout: float | None = None,  # noqa: ASYNC109  # grpc's own signature
            metadata: Metadata | None = None,
            **_: Any,
        ) -> Any:
            context = InProcessContext(metadata, timeout)
            if handler is None or handler.unary_unary is None:
                raise _failure(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served", ())
            try:
                async with asyncio.timeout(timeout):
                    return await handler.unary_unary(request, context)
            except _Abort as abort:
                raise _failure(abort.code, abort.details, abort.trailing) from None
            except TimeoutError:
                raise _failure(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline exceeded", ()) from None

        return call

    def unary_stream(self, method: str, *_: Any, **__: Any) -> Any:
        """Returns what calls `method`."""
        handler = self._handlers.get(method)

        def call(
            request: Any, *, timeout: float | None = None, metadata: Metadata | None = None, **_: Any
        ) -> "InProcessStream":
            context = InProcessContext(metadata, timeout)
            responses = _unserved(method) if handler is None else handler.unary_stream(request, context)
            return InProcessStream(responses, context, method, self._closing)

        return call

    def stream_unary(self, method: str, *_: Any, **__: Any) -> NoReturn:
        """Not part of our contracts."""
        raise NotImplementedError(method)

    stream_stream = stream_unary

    async def close(self, grace: float | None = None) -> None:
        """Waits until cancelled streams have cleaned up."""
        await asyncio.gather(*self._closing, return_exceptions=True)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Always ready."""
        return grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Never changes."""
        await asyncio.Future()

    async def channel_ready(self) -> None:
        """Always ready."""

    async def __aenter__(self) -> "InProcessChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class InProcessStream:
    """One call: iterate it, or cancel it."""

    def __init__(
        self,
        responses: AsyncIterator[Any],
        context: "InProcessContext",
        method: str,
        closing: set[asyncio.Task[None]],
    ) -> None:
        self._responses = responses
        self._context = context
        self._method = method
        self._closing = closing
        self._reader: asyncio.Task[Any] | None = None
        self._is_done = False
        self._is_cancelled = False

    def __aiter__(self) -> "InProcessStream":
        return self

    async def __anext__(self) -> Any:
        if self._is_done:
            raise asyncio.CancelledError if self._is_cancelled else StopAsyncIteration
        self._reader = asyncio.current_task()
        try:
            if self._context.deadline is None:
                return await self._responses.__anext__()
            return await self._next_in_time(self._context.deadline)
        except BaseException as error:
            # Whatever it was has ended the handler too: it runs in this very task.
            self._is_done = True
            if isinstance(error, StopAsyncIteration) or not isinstance(error, Exception):
                raise
            raise await self._failure_of(error) from None
        finally:
            self._reader = None

    async def _next_in_time(self, deadline: float) -> Any:
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await self._responses.__anext__()
        except TimeoutError:
            if limit.expired():
                raise _Abort(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline exceeded", ()) from None
            raise

    async def _failure_of(self, error: Exception) -> grpc.aio.AioRpcError:
        """Returns what a caller is told of an exception, as `ErrorInterceptor` has it on the wire."""
        try:
            await report_error(self._context, error, self._method)
        except _Abort as abort:
            return _failure(abort.code, abort.details, abort.trailing)

    async def read(self) -> Any:
        """Returns the next response, or `grpc.aio.EOF`."""
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            return grpc.aio.EOF

    def cancel(self) -> bool:
        """Stops the handler where it waits; False if it had finished.

        A task that waits for the next response is cancelled with it, as by grpc.aio.
        """
        if self._is_done:
            return False
        self._is_done = self._is_cancelled = True
        if self._reader is not None:
            self._reader.cancel()
            return True
        task = asyncio.ensure_future(self._close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return True

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._is_done

    async def _close(self) -> None:
        close = getattr(self._responses, "aclose", None)
        if close is not None:
            await close()


class InProcessContext:
    """What handlers see of a call; the part of grpc.aio.ServicerContext that ours use."""

    def __init__(self, metadata: Metadata | None, timeout: float | None) -> None:
        self._metadata = tuple(metadata or ())
        self.deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout

    def invocation_metadata(self) -> Metadata:
        """What the caller sent."""
        return self._metadata

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, None without one."""
        return None if self.deadline is None else self.deadline - asyncio.get_running_loop().time()

    def peer(self) -> str:
        """Who calls."""
        return "inprocess"

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        """Ends the call with a status."""
        raise _Abort(code, details, tuple(trailing_metadata))

    async def abort_with_status(self, status: Any) -> NoReturn:
        """Ends the call with a rich status."""
        raise _Abort(status.code, status.details, tuple(status.trailing_metadata))


class _Abort(grpc.aio.AbortError):
    def __init__(self, code: grpc.StatusCode, details: str, trailing: Metadata) -> None:
        super().__init__(details)
        self.code, self.details, self.trailing = code, details, trailing


def _failure(code: grpc.StatusCode, details: str, trailing: Metadata) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


async def _unserved(method: str) -> AsyncIterator[Any]:
    if method:  # always; the yield below makes this an async generator
        raise _Abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served", ())
    yield
