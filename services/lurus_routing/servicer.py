"""RoutingService over gRPC, on the wire and in process."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1 import routing_pb2 as pb
from lurus.routing.v1.routing_pb2_grpc import RoutingServiceServicer
from lurus.usage.v1 import usage_pb2
from lurus_common import matching
from lurus_common.errors import DependencyUnavailable, NotFound
from lurus_common.rpc import bearer_token
from lurus_common.status import Status
from lurus_routing import typed_calls
from lurus_routing.board import RouteBoard
from lurus_routing.catalog import Catalog
from lurus_routing.demands import divide
from lurus_routing.explain import explained, set_price
from lurus_routing.keys import KeyTable
from lurus_routing.outbox_reading import read_outboxes
from lurus_routing.plan import Plan, Skip, make_plan
from lurus_routing.relay import Relay


class RoutingServicer(RoutingServiceServicer):
    """Messages in, one call, messages out."""

    def __init__(
        self, relay: Relay, keys: KeyTable, admin_token: str, status: Status, outboxes: Path
    ) -> None:
        self._relay = relay
        self._keys = keys
        self._admin_token = admin_token
        self._status = status
        # The directory that has those of all workers.
        self._outboxes = outboxes
        self.board = RouteBoard(relay.health, lambda: relay.catalog, relay.worker_id)

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
        session, grant = "", None
        if request.key_id:
            grant = self._keys.by_id(request.key_id)
            if grant is None:
                raise NotFound("no such key", resource="key", id=request.key_id)
            session = f"{grant.account_id}/{request.session_id}" if request.session_id else ""
            if not matching.allows(grant.allowed_models, request.model):
                return pb.ExplainRouteResponse()
        matches = catalog.candidates(request.dialect, request.model)
        unmet: list[Skip] = []
        if grant is not None and grant.HasField("demands"):
            matches, unmet = divide(grant, matches, catalog.prices, request.model, time.time_ns())
        by_latency = catalog.goes_by_latency(request.model)
        session = session or request.session_id
        plan = make_plan(
            matches,
            self._relay.health,
            time.monotonic(),
            session,
            random.random,
            self._relay.moves.of(session),
            by_latency=by_latency,
        )
        plan.skipped += unmet
        return pb.ExplainRouteResponse(
            candidates=self._explained(catalog, request, plan),
            policy="least_latency" if by_latency else "weight",
            is_last_resort=plan.is_last_resort and bool(matches),
        )

    def _explained(
        self, catalog: Catalog, request: pb.ExplainRouteRequest, plan: Plan
    ) -> list[pb.CandidateExplanation]:
        rows = []
        choices = [(candidate, "") for candidate in plan.candidates]
        for candidate, reason in [*choices, *((skip.candidate, skip.reason) for skip in plan.skipped)]:
            row = explained(
                candidate,
                reason,
                self._relay.health,
                time.monotonic(),
                is_translated=bool(request.dialect) and not candidate.is_relay,
                is_reserve=candidate.key in plan.reserve,
            )
            set_price(row, catalog, candidate, request.model, time.time_ns())
            rows.append(row)
        return rows

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

    async def ListOutboxEvents(
        self, request: pb.ListOutboxEventsRequest, context: Any
    ) -> AsyncIterator[pb.ListOutboxEventsResponse]:
        end_ns = request.end_time.ToNanoseconds() if request.HasField("end_time") else time.time_ns()
        found = read_outboxes(self._outboxes, request.start_time.ToNanoseconds(), end_ns)
        with contextlib.closing(found):
            while (response := await asyncio.to_thread(next, found, None)) is not None:
                yield response

    def WatchRoutes(
        self, request: pb.WatchRoutesRequest, context: Any
    ) -> AsyncIterator[pb.WatchRoutesResponse]:
        return self.board.watch()

    def _catalog(self) -> Catalog:
        if self._relay.catalog is None:
            raise DependencyUnavailable("the providers are not known yet", dependency="provider")
        return self._relay.catalog

    async def _allowed_models(self, credentials: Sequence[str]) -> Sequence[str]:
        """What a caller may use: the operator all, a key what it allows."""
        if self._admin_token and self._admin_token in credentials:
            return []
        return (await self._keys.authenticate(credentials)).allowed_models


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
