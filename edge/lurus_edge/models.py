"""`GET /v1/models`, in the shape that each client expects (wire-contract G3, A.1.9, A.2.1, A.3.6)."""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc.aio
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from lurus.routing.v1.routing_pb2 import ListModelsRequest, ServedModel
from lurus.routing.v1.routing_pb2_grpc import RoutingServiceStub
from lurus_common.errors import InvalidRequest, ModelNotFound
from lurus_common.rpc import UNARY_DEADLINE_SECONDS
from lurus_dialects.dialect import Dialect
from lurus_edge.inbound import read_headers

DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 1000
UNKNOWN_DATE = "1970-01-01T00:00:00Z"


class Models:
    """The two routes. What a key may use is the routing service's answer."""

    def __init__(self, routing: grpc.aio.Channel) -> None:
        self._stub = RoutingServiceStub(routing)

    async def list_models(self, request: Request) -> Response:
        """Answers with the models that the caller's key may use."""
        models = await self._served(request)
        query = request.query_params
        if dialect_of(request) is Dialect.ANTHROPIC and "client_version" not in query:
            return _json(anthropic_page(models, query))
        # Codex takes `data` too; without complete catalogue entries `models` must be absent.
        return _json({"object": "list", "data": [_openai_model(model) for model in models]})

    async def get_model(self, request: Request) -> Response:
        """Answers with one model, if the caller's key may use it."""
        model_id = request.path_params["model_id"]
        for model in await self._served(request):
            if model.model_id == model_id:
                is_anthropic = dialect_of(request) is Dialect.ANTHROPIC
                return _json(_anthropic_model(model) if is_anthropic else _openai_model(model))
        raise ModelNotFound(f"there is no model {model_id}", model=model_id)

    async def _served(self, request: Request) -> Sequence[ServedModel]:
        credentials = read_headers(request.headers.raw).credentials(dialect_of(request))
        # Said explicitly, so that no channel adds a credential of its own.
        metadata = (("authorization", f"Bearer {credentials[0]}" if credentials else ""),)
        answer = await self._stub.ListModels(
            ListModelsRequest(credentials=credentials), timeout=UNARY_DEADLINE_SECONDS, metadata=metadata
        )
        return answer.models


def dialect_of(request: Request) -> Dialect:
    """Returns the dialect of a caller of a path that all dialects share."""
    return Dialect.ANTHROPIC if "anthropic-version" in request.headers else Dialect.OPENAI_CHAT


def anthropic_page(models: Sequence[ServedModel], query: Mapping[str, str]) -> dict[str, Any]:
    """Returns the page that `limit`, `after_id` and `before_id` ask for.

    Raises:
        InvalidRequest: one of them does not fit.
    """
    size = _page_size(query.get("limit", ""))
    start, end = 0, len(models)
    if "after_id" in query:
        start = _position(models, query, "after_id") + 1
    if "before_id" in query:
        end = _position(models, query, "before_id")
        start = max(start, end - size)
    page = models[start:end][:size]
    has_more = start > 0 if "before_id" in query else start + len(page) < end
    return {
        "data": [_anthropic_model(model) for model in page],
        "first_id": page[0].model_id if page else None,
        "last_id": page[-1].model_id if page else None,
        "has_more": has_more,
    }


def _page_size(text: str) -> int:
    if not text:
        return DEFAULT_PAGE_SIZE
    size = int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0
    if not 1 <= size <= MAX_PAGE_SIZE:
        raise InvalidRequest(f"limit must be between 1 and {MAX_PAGE_SIZE}", param="limit")
    return size


def _position(models: Sequence[ServedModel], query: Mapping[str, str], name: str) -> int:
    for position, model in enumerate(models):
        if model.model_id == query[name]:
            return position
    raise InvalidRequest(f"{name} names no model", param=name)


def _anthropic_model(model: ServedModel) -> dict[str, Any]:
    has_date = model.HasField("release_time")
    return {
        "type": "model",
        "id": model.model_id,
        "display_name": model.display_name or model.model_id,
        "created_at": model.release_time.ToJsonString() if has_date else UNKNOWN_DATE,
        "lifecycle": "active",
        "max_input_tokens": model.max_input_tokens or None,
        "max_tokens": model.max_output_tokens or None,
        "capabilities": None,
    }


def _openai_model(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.model_id,
        "object": "model",
        "created": model.release_time.seconds,
        "owned_by": model.owned_by or "lurus-switch",
    }


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
