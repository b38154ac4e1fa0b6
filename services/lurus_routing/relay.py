"""One call from its bytes to its receipt: authenticate, plan, admit, attempt, release, settle."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from aiohttp import ClientSession

from lurus.provider.v1.provider_pb2 import WatchProvidersResponse
from lurus.routing.v1.chat_pb2 import StreamChatRequest
from lurus.routing.v1.routing_pb2 import Header, RelayHead, RelayRequest, RelayResponse
from lurus.usage.v1 import usage_pb2
from lurus_common import matching
from lurus_common.errors import (
    DependencyUnavailable,
    InternalError,
    LurusError,
    ModelForbidden,
    ModelNotFound,
    Overloaded,
)
from lurus_common.large import LARGE_BYTES, beside_loop
from lurus_common.settings import Settings
from lurus_dialects.endpoints import Endpoint, Kind, id_in
from lurus_dialects.request import Peek, peek
from lurus_routing import metrics
from lurus_routing.affinity import NOT_THE_HOLDER, Continued, Holders, among, may_continue, serving
from lurus_routing.attempts import Attempts, no_healthy_provider
from lurus_routing.breaker import State
from lurus_routing.call import Call
from lurus_routing.candidate import Candidate
from lurus_routing.catalog import Catalog, CatalogBuilder
from lurus_routing.collector import Collector
from lurus_routing.counts import count_tokens
from lurus_routing.demands import meeting
from lurus_routing.drains import Drains
from lurus_routing.estimate import first_estimate
from lurus_routing.health import Health
from lurus_routing.held import Held
from lurus_routing.incoming import COUNT_PATHS, check_incoming
from lurus_routing.keys import KeyTable
from lurus_routing.leases import Leases
from lurus_routing.moves import Moves
from lurus_routing.outbox import Outbox
from lurus_routing.outcome import Answered
from lurus_routing.outgoing import Outgoing, peek_typed, take_first_possible
from lurus_routing.plan import first_choice, make_plan
from lurus_routing.rate_limiter import RateLimiter
from lurus_routing.release import Release, finished, whole
from lurus_routing.repeats import REPEAT_HEADER, Repeats
from lurus_routing.settlement import Settlement
from lurus_routing.shared import Shared
from lurus_routing.stored import holder_of

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 0.25


class Relay:
    """Serves calls. What it needs comes as arguments; it owns only the calls that are live."""

    def __init__(
        self,
        settings: Settings,
        session: ClientSession,
        keys: KeyTable,
        leases: Leases,
        outbox: Outbox,
        limiter: RateLimiter,
        shared: Shared | None = None,
    ) -> None:
        self.catalog: Catalog | None = None
        # Nobody has confirmed it for longer than the settings allow.
        self.is_catalog_too_old = False
        self.health = Health()
        self.worker_id = settings.worker_id
        self._builder = CatalogBuilder(settings)
        self._settings = settings
        self._keys = keys
        self._leases = leases
        self._outbox = outbox
        self._limiter = limiter
        self._settlement = Settlement(leases, outbox)
        self._attempts = Attempts(session, self.health)
        self._holders = Holders(shared)
        self._repeats = Repeats(shared)
        self.moves = Moves(shared)
        self.collector = Collector(session, self._settlement, self._holders, lambda: self.catalog)
        self._drains = Drains()
        self._live: set[Call] = set()
        metrics.LIVE.set_function(self._live.__len__)

    async def stop(self) -> None:
        """Ends what goes on without a client."""
        await self._drains.stop()

    def take_providers(self, change: WatchProvidersResponse) -> None:
        """Takes what the provider service tells."""
        self.catalog = self._builder.take(change)
        self.health.forget_all_but(provider.provider_id for provider in self.catalog.providers)
        for provider in change.providers:
            for credential in provider.credentials:
                self.health.forget_bench((provider.provider_id, credential.credential_id))

    def capture_providers(self) -> Callable[[], bytes]:
        """Returns what gives all that the provider service has told, as one serialised message."""
        return self._builder.capture()

    def serve(self, request: RelayRequest) -> AsyncIterator[RelayResponse]:
        """Gives the answer: head, data, end.

        It may be closed or cancelled wherever it waits: that ends the call to
        the provider at once, and settles what was used.

        Raises:
            LurusError: before the head, with `request_id` in its metadata.
        """
        return self._serve(Call(request, self._settings.worker_id), None)

    def serve_typed(
        self, method: str, credential: str, typed: StreamChatRequest, *, is_streaming: bool
    ) -> AsyncGenerator[RelayResponse]:
        """Gives the answer to a typed request: as `serve`, its data are frames of `translated.typed_events`.

        Raises:
            LurusError: before the head, whatever a provider answered.
        """
        request = RelayRequest(path=method, credentials=[credential])
        peeked = peek_typed(typed, is_streaming=is_streaming)
        return self._serve(Call(request, self._settings.worker_id, peeked), typed)

    async def _serve(self, call: Call, typed: StreamChatRequest | None) -> AsyncGenerator[RelayResponse]:
        if len(self._live) >= self._settings.max_live_requests:
            raise Overloaded(
                "too many requests at once",
                request_id=call.request_id,
                retry_after_seconds=f"{random.uniform(1, 5):.2f}",  # noqa: S311  # nothing secret
            )
        self._live.add(call)
        release: Release | None = None
        is_drained = False
        try:
            answered = await self._answer(call, typed)
            call.forget_body()
            if answered.watcher is not None:
                release = Release(
                    call, answered.body, answered.watcher, self._settings, self.health, self._settlement
                )
            yield _head(call, answered, self._more_headers(call))
            if release is None:
                async for data in whole(call, answered, self._settings):
                    yield RelayResponse(data=data)
            else:
                while released := await release.next():
                    yield RelayResponse(data=released)
            yield RelayResponse(end=call.end())
        except LurusError as error:
            call.note_error(error)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            call.terminal = usage_pb2.TERMINAL_CLIENT_GONE
            is_drained = release is not None and self._drains.take(call, release, self._close)
            raise
        except Exception as error:
            log.exception("serving %s failed", call.request_id)
            call.note_error(InternalError(""))
            raise InternalError("internal error", request_id=call.request_id) from error
        finally:
            if not is_drained:
                self._close(call)

    def _close(self, call: Call) -> None:
        """Gives back all that a call holds. Waits for nothing, so that nothing can prevent it."""
        self._live.discard(call)
        call.close_upstream()
        call.alarm.close()
        if call.permit is not None:
            self.health.end(call.permit)
        self._settlement.settle(call)
        if call.admission is not None:
            self._limiter.end(call.admission, call.used_tokens())
        self._remember(call)

    def _remember(self, call: Call) -> None:
        """Notes what became of an answer that the provider keeps."""
        self._holders.learn(call, is_over=True)
        self._repeats.claim(call)
        if (debt := call.debt()) is not None and call.answer is not None and call.candidate is not None:
            held = Held(*call.candidate.key[:2], call.model, call.candidate.upstream_model, debt)
            self.collector.watch(call.answer.response_id, held)
        if call.asks_holder is not None and call.charge_of_another() is not None:
            self.collector.forget(id_in(call.request.path), call.asks_holder)

    async def _answer(self, call: Call, typed: StreamChatRequest | None) -> Answered:
        """Returns an answer of which nothing has been released yet."""
        request = call.request
        counts_only = request.path in COUNT_PATHS
        endpoint = None
        if call.peeked is None:
            endpoint = call.endpoint = check_incoming(request, call.body, self._settings.max_body_bytes)
        call.grant = await self._keys.authenticate(request.credentials)
        await self._limit(call, counts_only)
        await self._repeats.check(call)
        if endpoint is not None and endpoint.kind in (Kind.STORED, Kind.BATCHES):
            answered = await self._ask_holder(call, endpoint)
        else:
            answered = await self._ask(call, typed, counts_only=counts_only)
        call.http_status = answered.status
        if answered.watcher is None and not answered.is_passed_on:
            if call.answer is not None or counts_only:
                call.terminal = finished(call.answer.stop_reason if call.answer else "")
            call.note_release(len(answered.body))
            await self._settlement.settle_durably(call)
        return answered

    async def _ask(self, call: Call, typed: StreamChatRequest | None, *, counts_only: bool) -> Answered:
        """Asks whoever serves the model."""
        peeked, endpoint = call.peeked, call.endpoint
        if peeked is None and endpoint is not None:
            peeked = await beside_loop(len(call.body), _read, call, endpoint)
        assert peeked is not None  # it came with a typed call
        continued = await self._holders.continued_by(call) if may_continue(call, peeked) else None
        matches, session = self._plan(call, peeked, continued)
        outgoing = Outgoing(call, peeked, self._settings, typed)
        if counts_only:
            answered = await count_tokens(self._attempts, call, outgoing)
        else:
            await take_first_possible(call, outgoing)
            await self._admit(call, peeked)
            answered = await self._attempts.answer(call, outgoing)
        self._holders.learn(call)
        if session and (len(call.attempts) > 1 or call.plan.skipped):
            self._note_move(call, matches, session)
        return answered

    async def _limit(self, call: Call, counts_only: bool) -> None:
        """Lets a call begin if its key's and its account's rate limits do."""
        if counts_only:
            self._limiter.admit_count(call.grant)
        else:
            body_bytes = call.peeked.body_bytes if call.peeked else len(call.body)
            call.admission = await self._limiter.admit(call.grant, body_bytes)

    def _more_headers(self, call: Call) -> list[tuple[str, str]]:
        """Headers that tell a client of its limits, if it has any, and of what it repeats."""
        more = [(REPEAT_HEADER, call.repeat_of)] if call.repeat_of else []
        if call.admission is not None and call.endpoint is not None:
            more += self._limiter.headers(call.admission, call.endpoint.dialect)
        return more

    async def _ask_holder(self, call: Call, endpoint: Endpoint) -> Answered:
        """Asks whoever keeps what the path names."""
        catalog = self._known_catalog()
        candidate = await holder_of(call, endpoint, self._holders, catalog)
        assert call.peeked is not None  # filled in just now
        meeting(call, [candidate], call.model)
        call.plan = make_plan([candidate], self.health, time.monotonic(), "", random.random)
        if not call.plan.candidates:
            raise no_healthy_provider(self.health, [candidate], call.plan.is_last_resort)
        if call.request.method == "DELETE" and call.asks_holder is not None:
            await self.collector.collect_finally(id_in(call.request.path), call.asks_holder)
        return await self._attempts.answer(call, Outgoing(call, call.peeked, self._settings))

    def _note_move(self, call: Call, matches: list[Candidate], session: str) -> None:
        """Keeps a session where it was answered, if its first choice has failed."""
        first, chosen = first_choice(matches, session, self.moves.of(session)), call.candidate
        if call.answer is None or chosen is None or chosen.key[:2] == first.key[:2]:
            return
        has_failed = any(
            (attempt.provider_id, attempt.credential_id) == first.key[:2] for attempt in call.attempts
        )
        now = time.monotonic()
        is_ill = (
            self.health.bench(first.key[:2], now) or self.health.state(first.key, now) is not State.CLOSED
        )
        if (has_failed or is_ill) and chosen.level == first.level:
            self.moves.note(session, chosen.key[:2])

    def _known_catalog(self) -> Catalog:
        if self.catalog is None or self.is_catalog_too_old:
            raise DependencyUnavailable(
                "the providers are not known yet", dependency="provider", retry_after_seconds=2
            )
        return self.catalog

    def _plan(self, call: Call, peeked: Peek, continued: Continued | None) -> tuple[list[Candidate], str]:
        """Fills in candidates and prices; returns who fits, and what keeps the session where it is."""
        if call.grant.allowed_models and not matching.allows(call.grant.allowed_models, peeked.model):
            raise ModelForbidden("this key may not use this model", model=peeked.model)
        catalog = self._known_catalog()
        matches = serving(call, catalog.candidates(call.request.dialect, peeked.model))
        if not matches:
            raise ModelNotFound("no provider serves this model; see GET /v1/models", model=peeked.model)
        call.prices = catalog.prices
        matches, unmet = meeting(call, matches, peeked.model)
        matches = among(call, matches, continued)
        session = _session(call, matches)
        moved_to = self.moves.of(session)
        call.thinks_first = catalog.thinks_first(peeked.model)
        call.affinity = session
        call.plan = make_plan(
            matches,
            self.health,
            time.monotonic(),
            session,
            random.random,
            moved_to,
            by_latency=catalog.goes_by_latency(peeked.model),
        )
        call.plan.skipped += unmet
        if not call.plan.candidates:
            raise no_healthy_provider(self.health, matches, call.plan.is_last_resort)
        if continued is not None and continued.held is None:
            call.plan.keep_first(NOT_THE_HOLDER)
        return matches, session

    async def _admit(self, call: Call, peeked: Peek) -> None:
        """Reserves money, then makes the intent durable."""
        cost_key = (call.grant.key_id, call.model)
        call.reservation = await self._leases.reserve(
            call.grant.account_id, call.grant.offline_policy, cost_key, first_estimate(call, peeked)
        )
        # Until something else is known, and of no importance if nothing ever is.
        call.terminal = usage_pb2.TERMINAL_CLIENT_GONE
        await self._outbox.intend(call.event())
        call.has_intent = True

    async def tend(self) -> None:
        """Looks after live streams, until cancelled: checkpoints, and clients that have stopped reading."""
        while True:
            await asyncio.sleep(CHECKPOINT_SECONDS)
            self._cut_stalled(time.monotonic() - self._settings.client_stall_seconds)
            rows = [row for call in self._live if (row := _checkpoint(call)) is not None]
            if rows:
                # What cannot be written now is written with the next one, or with the final event.
                await asyncio.gather(self._outbox.checkpoint(rows), return_exceptions=True)

    def _cut_stalled(self, since: float) -> None:
        """Ends the upstream calls of those who have taken nothing since then; what was used is settled."""
        for call in self._live:
            if call.waits_for_client_since is not None and call.waits_for_client_since < since:
                call.terminal = usage_pb2.TERMINAL_CLIENT_GONE
                call.close_upstream()
                self._settlement.settle(call)

    def cut(self) -> None:
        """Ends all live calls with the error of their dialect: the drain limit is reached."""
        for call in list(self._live):
            call.cut_by = Overloaded("the gateway is being restarted", retry_after_seconds=1)
            call.close_upstream()


def _read(call: Call, endpoint: Endpoint) -> Peek:
    """Fills in what routing needs of a body, and all that takes long to find if it is large."""
    peeked = call.peeked = peek(endpoint.dialect, call.body, endpoint.kind)
    if len(call.body) > LARGE_BYTES and not call.session():
        call.conversation()
    return peeked


def _session(call: Call, matches: Sequence[Candidate]) -> str:
    """What keeps the requests of one conversation with one credential, whose cache knows them."""
    if len(matches) == 1:
        return ""
    return call.session() or call.conversation()


def _head(call: Call, answered: Answered, more: Sequence[tuple[str, str]]) -> RelayResponse:
    headers = [
        Header(name=name, value=value.encode("latin-1", "replace"))
        for name, value in (*answered.headers, *more)
    ]
    head = RelayHead(
        status=answered.status,
        headers=headers,
        request_id=call.request_id,
        is_streaming=answered.watcher is not None,
    )
    return RelayResponse(head=head)


def _checkpoint(call: Call) -> tuple[bytes, str] | None:
    """Returns the event so far of a live stream, None if nothing has happened since the last one."""
    if call.answer is None or call.settled is not None or call.response_bytes == call.checkpointed_bytes:
        return None
    call.checkpointed_bytes = call.response_bytes
    return call.event().SerializeToString(), call.request_id
