"""The edge's HTTP application: FastAPI, with the LLM routes in front of its router."""

import logging
from collections.abc import Mapping

import grpc.aio
from fastapi import FastAPI
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lurus_common.errors import InternalError, LurusError, MethodNotAllowed, PathNotFound
from lurus_common.ids import new_id
from lurus_common.rpc import error_of
from lurus_common.telemetry import Readiness, exposition
from lurus_dialects.endpoints import FIXED
from lurus_dialects.errors import dialect_of_path, http_error
from lurus_edge.models import Models
from lurus_edge.relay import Relays
from lurus_edge.transcode import REST_PREFIX, Transcoder

log = logging.getLogger(__name__)

MAX_SHOWN_PATH = 256
TELEMETRY_OFF = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


class EdgeApp(FastAPI):
    """FastAPI that looks for an LLM route first: its middleware costs 16 µs a request, and more a chunk."""

    def __init__(self, relays: Relays) -> None:
        super().__init__(
            title="Lurus Switch",
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            redirect_slashes=False,
            telemetry=TELEMETRY_OFF,  # type: ignore[arg-type]  # a TypedDict of theirs
        )
        self._relays = relays

    def build_middleware_stack(self) -> ASGIApp:
        """Returns the whole application, the LLM routes before everything else."""
        relays = self._relays
        llm_routes, route_of_id = _llm_routes(relays), relays.route_of_id
        others = super().build_middleware_stack()

        async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
            # The raw path: one that is spelled with escapes is another path.
            raw_path = scope.get("raw_path", b"")
            llm_route = llm_routes.get(raw_path) or route_of_id(raw_path)
            if llm_route is not None:
                await llm_route(scope, receive, send)
            else:
                await others(scope, receive, _with_our_headers(send, relays))

        return dispatch


def make_app(
    relays: Relays, routing: grpc.aio.Channel, services: Mapping[str, grpc.aio.Channel], readiness: Readiness
) -> EdgeApp:
    """Returns the application.

    Args:
        relays: serve the LLM routes.
        routing: channel to the routing service, for what a client's own key opens.
        services: channels by area (`provider`, `billing`, `log`, `routing`) for the REST routes. Callers
            come with a token of their own, so none may present one, and all must lead to a server
            that checks it: the in-process channel to the routing service does not.
        readiness: says what is missing.
    """
    app = EdgeApp(relays)
    _add_models(app, Models(routing))
    _add_probes(app, relays, readiness)
    app.mount(REST_PREFIX, Transcoder(services))
    for kind in (HTTPException, LurusError, grpc.aio.AioRpcError, Exception):
        app.add_exception_handler(kind, _report)
    return app


def _llm_routes(relays: Relays) -> dict[bytes, ASGIApp]:
    routes: dict[bytes, ASGIApp] = {}
    for path, endpoint in FIXED.items():
        route = relays.route(path, endpoint)
        routes[path.encode()] = routes[path.removeprefix("/v1").encode()] = route
    return routes


def _with_our_headers(send: Send, relays: Relays) -> Send:
    """Returns `send` for answers that carry an id, theirs or a new one (wire-contract G8).

    An edge that drains also asks each client to come back on another connection.
    """

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if not any(name == b"request-id" for name, _ in headers):
                request_id = new_id("req").encode()
                headers += [(b"request-id", request_id), (b"x-request-id", request_id)]
            if relays.is_draining:
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        await send(message)

    return send_with_headers


def _add_models(app: FastAPI, models: Models) -> None:
    for prefix in ("/v1", ""):
        app.add_api_route(f"{prefix}/models", models.list_models, methods=["GET"], response_model=None)
        app.add_api_route(
            prefix + "/models/{model_id:path}", models.get_model, methods=["GET"], response_model=None
        )


def _add_probes(app: FastAPI, relays: Relays, readiness: Readiness) -> None:
    async def name() -> Response:
        return JSONResponse({"name": "lurus-switch"})

    async def health() -> Response:
        return JSONResponse({"status": "alive"})

    async def ready() -> Response:
        problems = {"edge": "it is draining"} if relays.is_draining else await readiness()
        status = {"status": "not ready", "problems": problems} if problems else {"status": "ready"}
        return JSONResponse(status, status_code=503 if problems else 200)

    async def metrics() -> Response:
        return Response(exposition(), headers={"content-type": CONTENT_TYPE_LATEST})

    probes = {"/": name, "/api/hello": name, "/health": health, "/ready": ready, "/metrics": metrics}
    for path, endpoint in probes.items():
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_model=None)


async def _report(request: Request, error: Exception) -> Response:
    """Reports a failure outside the LLM routes in the shape of the dialect that the path implies."""
    dialect = dialect_of_path(request.url.path, request.headers.items())
    failure = _expected(request, error)
    request_id = failure.metadata.get("request_id") or new_id("req")
    answer = http_error(dialect, failure.reason, failure.message, failure.metadata, request_id)
    return Response(answer.body, answer.status, dict(answer.headers))


def _expected(request: Request, error: Exception) -> LurusError:
    if isinstance(error, LurusError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        return error_of(error)
    if isinstance(error, HTTPException) and error.status_code == 404:
        return PathNotFound(f"there is nothing at {request.url.path[:MAX_SHOWN_PATH]}")
    if isinstance(error, HTTPException) and error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"this path does not take {request.method}", allow=allow)
    return InternalError("internal error")
