"""One call from its bytes to its receipt: authenticate, plan, admit, attempt, release, settle."""

import asyncio
import random
import time
from collections.abc import AsyncIterator

from aiohttp import ClientSession

from lurus.provider.v1.provider_pb2 import WatchProvidersResponse
from lurus.routing.v1.routing_pb2 import Header, RelayHead, RelayRequest, RelayResponse
from lurus.usage.v1 import usage_pb2
from lurus_common import matching
from lurus_common.errors import (
    DependencyUnavailable,
    InvalidRequest,
    LurusError,
    ModelForbidden,
    ModelNotFound,
    NoHealthyProvider,
    Overloaded,
    UpstreamCut,
    UpstreamTimeout,
)
from lurus_common.money import Tokens, cost
from lurus_common.settings import Settings
from lurus_dialects.dialect import Dialect
from lurus_dialects.headers import to_upstream
from lurus_dialects.request import Peek, peek, request_include_usage, splice_model
from lurus_dialects.watch import StreamWatcher
from lurus_routing import metrics
from lurus_routing.attempts import Answered, Attempts, Outgoing
from lurus_routing.call import INCOMPLETE_REASONS, Call
from lurus_routing.catalog import Catalog, CatalogBuilder
from lurus_routing.health import Health
from lurus_routing.keys import KeyTable
from lurus_routing.leases import Leases
from lurus_routing.outbox import Outbox
from lurus_routing.plan import Candidate, make_plan
from lurus_routing.upstream import read_chunk

DIALECTS = {
    usage_pb2.DIALECT_ANTHROPIC: Dialect.ANTHROPIC,
    usage_pb2.DIALECT_OPENAI_CHAT: Dialect.OPENAI_CHAT,
    usage_pb2.DIALECT_OPENAI_RESPONSES: Dialect.OPENAI_RESPONSES,
}
PATHS = {
    "/v1/messages": Dialect.ANTHROPIC,
    "/v1/messages/count_tokens": Dialect.ANTHROPIC,
    "/v1/chat/completions": Dialect.OPENAI_CHAT,
    "/v1/responses": Dialect.OPENAI_RESPONSES,
}
COUNT_PATH = "/v1/messages/count_tokens"
# Reserved for a key and model whose cost is not learned yet.
FIRST_GUESS_OUTPUT_TOKENS = 1000
# After the terminal event a provider may still close its stream in order.
AFTER_END_SECONDS = 1.0
CHECKPOINT_SECONDS = 0.25


class Relay:
    """Serves calls. What it needs comes as arguments; it owns only the calls that are live."""

    def __init__(
        self, settings: Settings, session: ClientSession, keys: KeyTable, leases: Leases, outbox: Outbox
    ) -> None:
        self.catalog: Catalog | None = None
        self.health = Health()
        self._builder = CatalogBuilder(settings)
        self._settings = settings
        self._keys = keys
        self._leases = leases
        self._outbox = outbox
        self._attempts = Attempts(session, self.health)
        self._live: set[Call] = set()

    def take_providers(self, change: WatchProvidersResponse) -> None:
        """Takes what the provider service tells."""
        self.catalog = self._builder.take(change)
        for provider in change.providers:
            for credential in provider.credentials:
                self.health.forget_bench((provider.provider_id, credential.credential_id))

    async def serve(self, request: RelayRequest) -> AsyncIterator[RelayResponse]:
        """Yields the answer: head, data, end.

        Raises:
            LurusError: before the head, with `request_id` in its metadata.
        """
        call = Call(request, self._settings.worker_id)
        if len(self._live) >= self._settings.max_live_requests:
            raise Overloaded("too many requests at once", request_id=call.request_id, retry_after_seconds=2)
        self._live.add(call)
        metrics.LIVE.inc()
        try:
            async for response in self._serve(call):
                yield response
        except LurusError as error:
            call.error_reason = call.error_reason or error.reason
            error.metadata["request_id"] = call.request_id
            raise
        except (asyncio.CancelledError, GeneratorExit):
            call.terminal = usage_pb2.TERMINAL_CLIENT_GONE
            raise
        finally:
            self._live.discard(call)
            metrics.LIVE.dec()
            call.close_upstream()
            # Not awaited: a client that left must not be able to cancel its own bill.
            self._settle(call)

    async def _serve(self, call: Call) -> AsyncIterator[RelayResponse]:
        request = call.request
        dialect = _dialect_of(request)
        call.grant = await self._keys.authenticate(request.credentials)
        counts_only = request.path == COUNT_PATH
        peeked = call.peeked = peek(dialect, request.body, counts_only=counts_only)
        self._plan(call, peeked)
        if not counts_only:
            await self._admit(call)
        outgoing = self._outgoing(call, dialect, peeked, counts_only)
        answered = await self._attempts.answer(
            call, outgoing, lambda candidate: _body(request.body, peeked, candidate)
        )
        call.http_status = answered.status
        if answered.watcher is None:
            async for response in self._release_whole(call, answered):
                yield response
        else:
            async for response in self._release_stream(call, answered, answered.watcher):
                yield response

    def _plan(self, call: Call, peeked: Peek) -> None:
        """Fills in candidates and prices."""
        if call.grant.allowed_models and not matching.allows(call.grant.allowed_models, peeked.model):
            raise ModelForbidden("this key may not use this model", model=peeked.model)
        if self.catalog is None:
            raise DependencyUnavailable(
                "the providers are not known yet", dependency="provider", retry_after_seconds=2
            )
        matches = self.catalog.candidates(call.request.dialect, peeked.model)
        if not matches:
            raise ModelNotFound(
                "no provider serves this model in this dialect; see GET /v1/models", model=peeked.model
            )
        call.prices = self.catalog.prices
        now = time.monotonic()
        call.plan = make_plan(matches, self.health, now, call.session(), random.random)
        if not call.plan.candidates:
            seconds = min(self.health.wait_seconds(candidate.key, now) for candidate in matches)
            raise NoHealthyProvider(
                "every provider of this model is resting after failures",
                retry_after_seconds=round(seconds, 1),
            )

    async def _admit(self, call: Call) -> None:
        """Reserves money, then makes the intent durable."""
        cost_key = (call.grant.key_id, call.model)
        call.reservation = await self._leases.reserve(
            call.grant.account_id, call.grant.offline_policy, cost_key, _estimate(call)
        )
        call.terminal = usage_pb2.TERMINAL_CLIENT_GONE  # until something else is known
        await self._outbox.intend(call.event())
        call.has_intent = True

    def _outgoing(self, call: Call, dialect: Dialect, peeked: Peek, counts_only: bool) -> Outgoing:
        request = call.request
        given = [(header.name, header.value.decode("latin-1")) for header in request.headers]
        settings = self._settings
        return Outgoing(
            dialect=dialect,
            target=f"{request.path}?{request.query}" if request.query else request.path,
            headers=to_upstream(dialect, given),
            is_streaming=peeked.is_streaming,
            strips_usage=dialect is Dialect.OPENAI_CHAT and not peeked.asks_for_usage,
            total_seconds=settings.stream_total_seconds
            if peeked.is_streaming
            else settings.unary_total_seconds,
            counts_only=counts_only,
        )

    async def _release_whole(self, call: Call, answered: Answered) -> AsyncIterator[RelayResponse]:
        if call.is_answered:
            call.terminal = _finished(call.answer.stop_reason if call.answer else "")
        await self._settle(call)
        yield _head(call, answered, is_streaming=False)
        call.note_release(len(answered.body))
        yield RelayResponse(data=answered.body)
        yield RelayResponse(end=call.end())

    async def _release_stream(
        self, call: Call, answered: Answered, watcher: StreamWatcher
    ) -> AsyncIterator[RelayResponse]:
        yield _head(call, answered, is_streaming=True)
        async for released in self._events(call, answered.body, watcher):
            call.note_release(len(released))
            yield RelayResponse(data=released)
        yield RelayResponse(end=call.end())

    async def _events(self, call: Call, begin: bytes, watcher: StreamWatcher) -> AsyncIterator[bytes]:
        """Yields what may be released; the usage row is durable before the terminal event is."""
        released = begin
        heard = time.monotonic()
        try:
            while True:
                if watcher.is_over:
                    call.terminal = _ended(watcher)
                    await self._settle(call)
                if released:
                    yield released
                chunk = await self._next_chunk(call, watcher, heard)
                if chunk is None:
                    released = watcher.heartbeat()
                    continue
                if not chunk:
                    break
                heard = time.monotonic()
                released = watcher.feed(chunk)
            async for last in self._end(call, watcher):
                yield last
        except LurusError as error:
            if not watcher.is_over:
                yield await self._broken(call, watcher, error)

    async def _next_chunk(self, call: Call, watcher: StreamWatcher, heard: float) -> bytes | None:
        """Returns what has arrived, empty at the end, or None when a heartbeat is due.

        Raises:
            UpstreamTimeout: nothing came since `heard` for longer than the provider may be silent.
        """
        if call.candidate is None or call.response is None:
            raise AssertionError("a stream has its candidate and its response")
        silence = AFTER_END_SECONDS if watcher.is_over else call.candidate.idle_seconds
        until = min(heard + silence, call.start + self._settings.stream_total_seconds)
        beat = time.monotonic() + self._settings.heartbeat_seconds
        try:
            return await read_chunk(call.response, min(beat, until))
        except UpstreamTimeout:
            if time.monotonic() >= until:
                raise
            return None

    async def _end(self, call: Call, watcher: StreamWatcher) -> AsyncIterator[bytes]:
        """The provider's stream has ended: with a terminator, or cut."""
        was_over = watcher.is_over
        tail = watcher.finish()
        if was_over:
            return
        if watcher.is_over or watcher.terminal_ok:
            call.terminal = _ended(watcher)
            await self._settle(call)
            if tail:
                yield tail
            return
        if tail:
            yield tail
        raise UpstreamCut("the provider ended its stream before its answer was complete")

    async def _broken(self, call: Call, watcher: StreamWatcher, error: LurusError) -> bytes:
        """Settles a stream that cannot be completed; returns the event that says so."""
        is_timeout = isinstance(error, UpstreamTimeout)
        call.terminal = usage_pb2.TERMINAL_TIMEOUT if is_timeout else usage_pb2.TERMINAL_TRUNCATED
        call.error_reason = error.reason
        if call.candidate is not None:
            self.health.fail(call.candidate.key, time.monotonic())
        await self._settle(call)
        return watcher.stream_error(error.reason, error.message, call.request_id)

    def _settle(self, call: Call) -> "asyncio.Future[None]":
        """Makes the final event durable, once; the future ends when it is."""
        if call.settled is not None:
            return _done()
        event = call.settled = call.event()
        if call.reservation is not None:
            if event.HasField("tokens") and event.token_source:
                self._leases.settle(call.reservation, event.cost_nano_usd)
            else:
                self._leases.release(call.reservation)
        _count(call, event)
        if call.has_intent:
            return self._outbox.finish(event)
        # A refusal is worth a row in the log, as long as rows can be written.
        if call.grant.account_id and call.request.path != COUNT_PATH and not self._outbox.problem:
            return self._outbox.record(event)
        return _done()

    async def keep_checkpoints(self) -> None:
        """Brings the intents of live streams up to date, all in one transaction, until cancelled."""
        while True:
            await asyncio.sleep(CHECKPOINT_SECONDS)
            rows = []
            for call in list(self._live):
                if (
                    call.is_answered
                    and call.settled is None
                    and call.response_bytes != call.checkpointed_bytes
                ):
                    call.checkpointed_bytes = call.response_bytes
                    rows.append((call.event().SerializeToString(), call.request_id))
            if rows:
                await asyncio.gather(self._outbox.checkpoint(rows), return_exceptions=True)


def _dialect_of(request: RelayRequest) -> Dialect:
    dialect = PATHS.get(request.path)
    if dialect is None or DIALECTS.get(request.dialect) is not dialect:
        raise InvalidRequest("path and dialect do not belong together", param="path")
    return dialect


def _body(body: bytes, peeked: Peek, candidate: Candidate) -> bytes:
    spliced = splice_model(body, peeked, candidate.upstream_model)
    if peeked.dialect is Dialect.OPENAI_CHAT and peeked.is_streaming and candidate.has_stream_options:
        return request_include_usage(spliced)
    return spliced


def _estimate(call: Call) -> int:
    """What the request would cost at the first candidate with a short answer."""
    candidate = call.plan.candidates[0]
    price = call.prices.find(candidate.provider_id, candidate.upstream_model, call.model, call.start_ns)
    if price is None or call.peeked is None:
        return 0
    tokens = Tokens(input=call.peeked.estimated_input_tokens(), output=FIRST_GUESS_OUTPUT_TOKENS)
    return cost(tokens, price.rates, candidate.cost_multiplier_ppm)


def _head(call: Call, answered: Answered, is_streaming: bool) -> RelayResponse:
    headers = [
        Header(name=name, value=value.encode("latin-1", "replace")) for name, value in answered.headers
    ]
    return RelayResponse(
        head=RelayHead(
            status=answered.status, headers=headers, request_id=call.request_id, is_streaming=is_streaming
        )
    )


def _ended(watcher: StreamWatcher) -> "usage_pb2.Terminal.ValueType":
    if watcher.error_seen:
        return usage_pb2.TERMINAL_UPSTREAM_ERROR
    return _finished(watcher.stop_reason)


def _finished(stop_reason: str) -> "usage_pb2.Terminal.ValueType":
    if stop_reason in INCOMPLETE_REASONS:
        return usage_pb2.TERMINAL_INCOMPLETE
    return usage_pb2.TERMINAL_COMPLETE


def _count(call: Call, event: usage_pb2.UsageEvent) -> None:
    terminal = usage_pb2.Terminal.Name(event.terminal).removeprefix("TERMINAL_").lower()
    metrics.REQUESTS.labels(PATHS[event.path].value if event.path in PATHS else "none", terminal).inc()
    if not event.provider_id:
        return
    tokens, provider_id = event.tokens, event.provider_id
    writes = tokens.cache_write_5m + tokens.cache_write_30m + tokens.cache_write_1h + tokens.cache_write_12h
    counts = (tokens.input, tokens.cache_read, writes, tokens.output)
    for kind, count in zip(metrics.TOKEN_KINDS, counts, strict=True):
        if count:
            metrics.TOKENS.labels(provider_id, kind).inc(count)
    metrics.COST.labels(provider_id).inc(event.cost_nano_usd)
    if event.is_unpriced:
        metrics.UNPRICED.labels(provider_id).inc()
    if call.first_event_seconds is not None:
        metrics.FIRST_EVENT.labels(provider_id).observe(call.first_event_seconds)
    if call.answer is not None:
        metrics.SUSPECT.labels(provider_id).inc(call.answer.anomaly_count)
        metrics.BROKEN.labels(provider_id).inc(call.answer.broken_event_count)


def _done() -> "asyncio.Future[None]":
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future
