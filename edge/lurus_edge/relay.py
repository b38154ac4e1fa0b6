"""The LLM routes: a client's bytes to the routing service, and its answer back, as they come.

The edge parses no JSON. One `Exchange` is one request; it ends the call when
the client leaves, and never ends a cut answer so that it looks whole.
"""

import logging
import time
from collections.abc import AsyncIterable

import grpc.aio
from starlette.types import Receive, Scope, Send

from lurus.routing.v1.routing_pb2 import RelayHead, RelayRequest, RelayResponse
from lurus.routing.v1.routing_pb2_grpc import RoutingServiceStub
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import (
    InternalError,
    InvalidRequest,
    LurusError,
    MethodNotAllowed,
    Overloaded,
    UpstreamCut,
    WebsocketUnsupported,
)
from lurus_common.ids import new_id
from lurus_common.large import beside_loop
from lurus_common.rpc import error_of
from lurus_dialects.answer import Answer
from lurus_dialects.dialect import Dialect
from lurus_dialects.endpoints import Endpoint, endpoint_of
from lurus_dialects.errors import http_error, stream_error
from lurus_edge.bodies import read_body
from lurus_edge.departure import ClientGone, Departure
from lurus_edge.inbound import Inbound, check_content_type, read_headers
from lurus_edge.metrics import DialectMetrics
from lurus_edge.shedding import Shedder, overloaded

log = logging.getLogger(__name__)

DIALECTS = {
    Dialect.ANTHROPIC: usage_pb2.DIALECT_ANTHROPIC,
    Dialect.OPENAI_CHAT: usage_pb2.DIALECT_OPENAI_CHAT,
    Dialect.OPENAI_RESPONSES: usage_pb2.DIALECT_OPENAI_RESPONSES,
}
# Where ids stand in paths; a longer path is none of them.
ID_PATHS = (b"/v1/responses/", b"/responses/", b"/v1/messages/batches/", b"/messages/batches/")
MAX_ID_PATH_BYTES = 320
RESTARTING = "the gateway is being restarted"
EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
EVENT_END_BYTES = 4
STREAM_HEADERS = (
    # Whatever the provider says: an event stream is UTF-8.
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
# Set by us, or by nobody (wire-contract G5, G8).
OUR_HEADERS = frozenset({"request-id", "x-request-id", "connection", "transfer-encoding", "content-length"})
OUR_STREAM_HEADERS = OUR_HEADERS | {"content-type", "cache-control", "x-accel-buffering", "content-encoding"}


class Relays:
    """What the LLM routes of one edge share: the routing service, limits, the live exchanges."""

    def __init__(
        self, routing: grpc.aio.Channel, max_body_bytes: int, max_held_body_bytes: int, shedder: Shedder
    ) -> None:
        self.stub = RoutingServiceStub(routing)
        self.max_body_bytes = max_body_bytes
        self.max_held_body_bytes = max_held_body_bytes
        self.shedder = shedder
        self.held_body_bytes = 0
        self.is_draining = False
        self.live: set[Exchange] = set()
        self.metrics = {dialect: DialectMetrics(dialect) for dialect in DIALECTS}

    def route(self, path: str, endpoint: Endpoint) -> "RelayRoute":
        """Returns the ASGI application that serves `path`, which has the prefix `/v1`."""
        return RelayRoute(self, path, endpoint, self.metrics[endpoint.dialect])

    def route_of_id(self, raw_path: bytes) -> "RelayRoute | None":
        """Returns what serves a path with an id in it, None if nothing does."""
        if not raw_path.startswith(ID_PATHS) or len(raw_path) > MAX_ID_PATH_BYTES:
            return None
        path = "/v1" + raw_path.decode("latin-1").removeprefix("/v1")
        endpoint = endpoint_of(path)
        return None if endpoint is None else self.route(path, endpoint)

    def cut(self) -> None:
        """Ends all live exchanges with the error event of their dialect: the drain limit is reached."""
        for exchange in list(self.live):
            exchange.cut()


class RelayRoute:
    """One LLM route, as a raw ASGI application."""

    def __init__(self, relays: Relays, path: str, endpoint: Endpoint, metrics: DialectMetrics) -> None:
        self.relays = relays
        self.dialect = endpoint.dialect
        self.methods = endpoint.methods
        self.path = path
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Exchange(self, scope, receive, send).run()


class Exchange:
    """One request and its answer."""

    def __init__(self, route: RelayRoute, scope: Scope, receive: Receive, send: Send) -> None:
        self._route = route
        self._relays = route.relays
        self._scope = scope
        self._receive = receive
        self._send = send
        self._connection = scope["extensions"]["lurus"]["connection"]
        self._departure = Departure(self._connection)
        self._start = time.monotonic()
        self._held_bytes = 0
        self._request_id = ""
        self._status = 0
        self._is_streaming = False
        self._is_finished = False
        self._is_cut = False
        self._tail = b"\n\n"
        self._held_status = 0
        self._held_headers: list[tuple[bytes, bytes]] | None = None
        self._held_data = b""

    async def run(self) -> None:
        """Answers the request, whatever happens."""
        metrics = self._route.metrics
        self._relays.live.add(self)
        metrics.live_requests += 1
        try:
            await self._answer()
        except ClientGone:
            metrics.disconnects.inc()
        except LurusError as error:
            await self._fail(error)
        except grpc.aio.AioRpcError as error:
            await self._fail(error_of(error))
        except Exception:
            log.exception("relaying %s failed", self._route.path)
            await self._fail(InternalError("internal error"))
        finally:
            self._connection.may_probe = None
            self._release_body()
            self._relays.live.discard(self)
            metrics.live_requests -= 1
            if self._is_streaming:
                metrics.live_streams -= 1
            if self._status:
                metrics.count(self._status)

    def cut(self) -> None:
        """Ends the exchange with an error, as far as the client can still be told."""
        self._is_cut = True
        self._departure.end()

    async def _answer(self) -> None:
        inbound = read_headers(self._scope["headers"])
        self._check(inbound)
        relays = self._relays
        body = await read_body(self._receive, inbound.content_coding, relays.max_body_bytes, self._hold_body)
        if body and self._scope["method"] != "POST":
            raise InvalidRequest("a request of this method has no body")
        if self._is_cut:
            raise Overloaded(RESTARTING)
        request = await beside_loop(len(body), self._request, inbound, body)
        call = relays.stub.Relay(request)
        # The call keeps what it needs: a stream of minutes must not hold its request here too.
        del inbound, body, request
        try:
            async with self._departure:
                await self._forward(call)
        except ClientGone:
            if self._is_cut:
                raise Overloaded(RESTARTING) from None
            raise
        except grpc.aio.AioRpcError:
            if not self._is_finished:
                raise
        finally:
            call.cancel()

    def _check(self, inbound: Inbound) -> None:
        method = self._scope["method"]
        if method == "GET" and inbound.upgrade == b"websocket":
            raise WebsocketUnsupported("websockets are not served here; use HTTP")
        if method not in self._route.methods:
            allow = ", ".join(self._route.methods)
            raise MethodNotAllowed(f"this path takes {allow} only", allow=allow)
        self._relays.shedder.check(len(self._relays.live), self._scope["headers"])
        check_content_type(inbound.content_type)

    def _request(self, inbound: Inbound, body: bytes) -> RelayRequest:
        client, method = self._scope["client"], self._scope["method"]
        return RelayRequest(
            dialect=DIALECTS[self._route.dialect],
            path=self._route.path,
            query=self._scope["query_string"].decode("latin-1"),
            headers=inbound.headers,  # type: ignore[arg-type]  # protobuf takes dicts too, at half the cost
            body=body,
            credentials=inbound.credentials(self._route.dialect),
            client_address=client[0] if client else "",
            method="" if method == "POST" else method,
        )

    async def _forward(self, responses: AsyncIterable[RelayResponse]) -> None:
        """Sends what comes. Goes on after `end` until the call is over, which lets the service tidy up."""
        send, send_now = self._send, self._connection.send_now
        async for response in responses:
            data = response.data
            if data:
                if self._held_headers is not None:
                    await self._hold_answer(data)
                    continue
                if not send_now(data):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                self._tail = data if len(data) >= EVENT_END_BYTES else self._tail[-EVENT_END_BYTES:] + data
            elif response.HasField("head"):
                await self._start_answer(response.head)
            elif response.HasField("end"):
                self._is_finished = True
                await self._end_answer()
                self._departure.forget()
        if not self._is_finished:
            raise UpstreamCut("the answer was cut")

    async def _start_answer(self, head: RelayHead) -> None:
        self._release_body()
        self._request_id = head.request_id
        request_id = head.request_id.encode()
        headers = [(b"request-id", request_id), (b"x-request-id", request_id)]
        ours = OUR_STREAM_HEADERS if head.is_streaming else OUR_HEADERS
        headers += [
            (header.name.encode(), header.value) for header in head.headers if header.name not in ours
        ]
        if head.is_streaming:
            self._is_streaming = True
            self._route.metrics.live_streams += 1
            self._connection.may_probe = self._is_between_events
            await self._send_head(head.status, [*headers, *STREAM_HEADERS])
        else:
            self._held_status, self._held_headers = head.status, headers

    def _is_between_events(self) -> bool:
        return self._tail.endswith(EVENT_ENDS)

    async def _hold_answer(self, data: bytes) -> None:
        """Keeps the only part of a plain answer until its end, so that its length can be stated."""
        if not self._held_data:
            self._held_data = data
            return
        headers, self._held_headers = self._held_headers or [], None
        await self._send_head(self._held_status, headers)
        await self._send({"type": "http.response.body", "body": self._held_data + data, "more_body": True})
        self._held_data = b""

    async def _end_answer(self) -> None:
        if self._held_headers is not None:
            length = (b"content-length", b"%d" % len(self._held_data))
            await self._send_head(self._held_status, [*self._held_headers, length])
        await self._send({"type": "http.response.body", "body": self._held_data})

    async def _send_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status
        if self._relays.is_draining:
            headers.append((b"connection", b"close"))
        self._route.metrics.first_byte.observe(time.monotonic() - self._start)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _fail(self, error: LurusError) -> None:
        """Reports a failure: as an HTTP error, as an event, or by breaking the connection."""
        request_id = self._request_id or error.metadata.get("request_id") or new_id("req")
        if not self._status:
            await self._send_error(error, request_id)
        elif self._is_streaming and self._tail.endswith(EVENT_ENDS):
            event = stream_error(Answer(self._route.dialect), error.reason, error.message, request_id)
            await self._send({"type": "http.response.body", "body": event})
        else:
            self._connection.abort()

    async def _send_error(self, error: LurusError, request_id: str) -> None:
        answer = http_error(self._route.dialect, error.reason, error.message, error.metadata, request_id)
        headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in answer.headers]
        headers.append((b"content-length", b"%d" % len(answer.body)))
        await self._send_head(answer.status, headers)
        await self._send({"type": "http.response.body", "body": answer.body})

    def _hold_body(self, size: int) -> None:
        self._held_bytes += size
        self._relays.held_body_bytes += size
        if self._relays.held_body_bytes > self._relays.max_held_body_bytes:
            raise overloaded("bodies", "the gateway holds as many request bodies as it can")

    def _release_body(self) -> None:
        self._relays.held_body_bytes -= self._held_bytes
        self._held_bytes = 0
