"""RoutingService over gRPC, on the wire and in process."""

import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1 import routing_pb2 as pb
from lurus.routing.v1.routing_pb2_grpc import RoutingServiceServicer
from lurus.usage.v1 import usage_pb2
from lurus_common import matching
from lurus_common.errors import DependencyUnavailable, NotBuiltYet, NotFound
from lurus_common.rpc import bearer_token
from lurus_common.status import Status
from lurus_dialects.translation import DIALECTS
from lurus_routing import typed_calls
from lurus_routing.breaker import State
from lurus_routing.call import duration
from lurus_routing.candidate import Candidate
from lurus_routing.catalog import Catalog
from lurus_routing.keys import KeyTable
from lurus_routing.plan import make_plan
from lurus_routing.relay import Relay

_BREAKER_STATES = {
    State.CLOSED: pb.BREAKER_STATE_CLOSED,
    State.OPEN: pb.BREAKER_STATE_OPEN,
    State.HALF_OPEN: pb.BREAKER_STATE_HALF_OPEN,
}


class RoutingServicer(RoutingServiceServicer):
    """Messages in, one call, messages out."""

    def __init__(self, relay: Relay, keys: KeyTable, admin_token: str, status: Status) -> None:
        self._relay = relay
        self._keys = keys
        self._admin_token = admin_token
        self._status = status

    def Relay(self, request: pb.RelayRequest, context: Any) -> AsyncIterator[pb.RelayResponse]:
        # Handed on, not looped over: who closes it closes the call itself.
        return self._relay.serve(request)

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        allowed = await self._allowed_models(list(request.credentials) or [bearer_token(context)])
        catalog = self._catalog()
        names = [name for name in catalog.served_names().items() if matching.allows(allowed, name[0])]
        return pb.ListModelsResponse(models=[_model(catalog, name, dialects) for name, dialects in names])

    async def ExplainRoute(self, request: pb.ExplainRouteRequest, context: Any) -> pb.ExplainRouteResponse:
        catalog = self._catalog()
        session = ""
        if request.key_id:
            grant = self._keys.by_id(request.key_id)
            if grant is None:
                raise NotFound("no such key", resource="key", id=request.key_id)
            session = f"{grant.account_id}/{request.session_id}" if request.session_id else ""
            if not matching.allows(grant.allowed_models, request.model):
                return pb.ExplainRouteResponse()
        matches = catalog.candidates(request.dialect, request.model)
        now = time.monotonic()
        plan = make_plan(matches, self._relay.health, now, session or request.session_id, random.random)
        choices = [(candidate, "") for candidate in plan.candidates]
        choices += [(skip.candidate, skip.reason) for skip in plan.skipped]
        rows = [
            self._explain(candidate, reason, now, bool(request.dialect) and not candidate.is_relay)
            for candidate, reason in choices
        ]
        return pb.ExplainRouteResponse(candidates=rows)

    def StreamChat(
        self, request: chat_pb2.StreamChatRequest, context: Any
    ) -> AsyncIterator[chat_pb2.StreamChatResponse]:
        return typed_calls.stream_chat(self._relay, request, bearer_token(context))

    async def CompleteChat(
        self, request: chat_pb2.CompleteChatRequest, context: Any
    ) -> chat_pb2.CompleteChatResponse:
        return await typed_calls.complete_chat(self._relay, request.request, bearer_token(context))

    async def CountTokens(
        self, request: chat_pb2.CountTokensRequest, context: Any
    ) -> chat_pb2.CountTokensResponse:
        return await typed_calls.count_tokens(self._relay, request.request, bearer_token(context))

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        return self._status.message()

    async def WatchRoutes(
        self, request: pb.WatchRoutesRequest, context: Any
    ) -> AsyncIterator[pb.WatchRoutesResponse]:
        raise _not_built("WatchRoutes")
        yield  # type: ignore[unreachable]  # makes this a stream

    def _catalog(self) -> Catalog:
        if self._relay.catalog is None:
            raise DependencyUnavailable("the providers are not known yet", dependency="provider")
        return self._relay.catalog

    async def _allowed_models(self, credentials: Sequence[str]) -> Sequence[str]:
        """What a caller may use: the operator all, a key what it allows."""
        if self._admin_token and self._admin_token in credentials:
            return []
        return (await self._keys.authenticate(credentials)).allowed_models

    def _explain(
        self, candidate: Candidate, skip_reason: str, now: float, is_translated: bool
    ) -> pb.CandidateExplanation:
        health = self._relay.health
        bench = health.bench(candidate.key[:2], now)
        remaining: Duration | None = duration(bench.until - now) if bench else None
        return pb.CandidateExplanation(
            provider_id=candidate.provider_id,
            credential_id=candidate.credential_id,
            upstream_model=candidate.upstream_model,
            rule=candidate.rule,
            level=candidate.level,
            weight=candidate.weight,
            skip_reason=skip_reason,
            breaker=_BREAKER_STATES[health.state(candidate.key, now)],
            bench_duration=remaining,
            dialect=DIALECTS[candidate.dialect],
            is_translated=is_translated,
        )


def _model(catalog: Catalog, name: str, dialects: set[int]) -> pb.ServedModel:
    served = pb.ServedModel(
        model_id=name,
        display_name=name,
        dialects=[usage_pb2.Dialect.ValueType(value) for value in sorted(dialects)],
    )
    model = catalog.models.get(name)
    if model is not None:
        served.display_name = model.display_name or name
        served.owned_by = model.owned_by
        served.max_input_tokens = model.max_input_tokens
        served.max_output_tokens = model.max_output_tokens
        if model.HasField("release_time"):
            served.release_time.CopyFrom(model.release_time)
    return served


def _not_built(method: str) -> NotBuiltYet:
    return NotBuiltYet(f"{method} is not built yet", method=f"lurus.routing.v1.RoutingService/{method}")
