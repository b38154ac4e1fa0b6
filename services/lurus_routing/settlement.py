"""The end of a call: its money, its usage event, its metrics. Once, whatever happened."""

import asyncio
import logging
import time
from collections import OrderedDict

from lurus.usage.v1.usage_pb2 import Tokens, UsageEvent
from lurus_dialects.endpoints import endpoint_of
from lurus_routing import metrics
from lurus_routing.cache_loss import SessionCaches
from lurus_routing.call import Call
from lurus_routing.incoming import COUNT_PATHS
from lurus_routing.leases import Leases
from lurus_routing.outbox import Outbox

log = logging.getLogger(__name__)

# A stream that is over does not wait longer for a disk that cannot be written.
DURABLE_SECONDS = 5.0
# Of answers that were charged after their request. What is forgotten here, the ledger still takes only once.
MAX_REMEMBERED_CHARGES = 10_000


class Settlement:
    """Settles calls of one worker."""

    def __init__(self, leases: Leases, outbox: Outbox) -> None:
        self._leases = leases
        self._outbox = outbox
        self._caches = SessionCaches()
        self._charges: OrderedDict[str, asyncio.Future[None]] = OrderedDict()

    def settle(self, call: Call) -> "asyncio.Future[None]":
        """Makes the final event durable, once; the future ends when it is.

        Need not be awaited: a client that leaves must not be able to cancel its own bill.
        The future is cancelled with who awaits it, which changes nothing else.
        """
        if call.settled is not None:
            return call.settled
        call.is_over = True
        if call.affinity and call.candidate is not None:
            call.cached_elsewhere = self._caches.elsewhere(call.affinity, call.candidate.key[:2])
        event = call.event()
        call.receipt = event
        if call.affinity and call.candidate is not None and event.token_source:
            cached = event.tokens.cache_read + _cache_writes(event.tokens)
            self._caches.learn(call.affinity, call.candidate.key[:2], cached)
        if call.reservation is not None:
            if event.token_source:
                self._leases.settle(call.reservation, event.cost_nano_usd)
            else:
                self._leases.release(call.reservation)
        _count(call, event)
        call.settled = self._write(call, event)
        if (owed := call.charge_of_another()) is not None:
            # What the client waits for: what this call was told costs money, the call itself does not.
            call.settled = self.charge(owed)
        return call.settled

    def charge(self, event: UsageEvent) -> "asyncio.Future[None]":
        """Makes an event durable that charges for another request's answer. Repeats do nothing."""
        known = self._charges.get(event.request_id)
        if known is not None:
            return known
        metrics.of_provider(event.provider_id).cost.inc(event.cost_nano_usd)
        self._charges[event.request_id] = done = self._outbox.record(event)
        if len(self._charges) > MAX_REMEMBERED_CHARGES:
            self._charges.popitem(last=False)
        return done

    async def settle_durably(self, call: Call) -> None:
        """Settles a call and waits until its event is on disk.

        With a disk that takes nothing, running streams finish all the same:
        their events are kept in memory and tried again.
        """
        future = self.settle(call)
        if future.done() or self._outbox.problem:
            return
        try:
            with call.alarm.by(time.monotonic() + DURABLE_SECONDS):
                await future
        except TimeoutError:
            log.error("%s is released before its usage is on disk", call.request_id)

    def _write(self, call: Call, event: UsageEvent) -> "asyncio.Future[None]":
        if call.has_intent:
            return self._outbox.finish(event)
        # A refusal is worth a row in the log, as long as rows can be written.
        is_logged = call.grant.account_id and call.request.path not in COUNT_PATHS
        if is_logged and not self._outbox.problem and not self._outbox.is_full:
            return self._outbox.record(event)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


def _cache_writes(tokens: Tokens) -> int:
    return tokens.cache_write_5m + tokens.cache_write_30m + tokens.cache_write_1h + tokens.cache_write_12h


def _count(call: Call, event: UsageEvent) -> None:
    endpoint = endpoint_of(event.path)
    name = endpoint.dialect.value if endpoint else "typed" if event.path.startswith("/lurus.") else "none"
    metrics.requests_of(name, event.terminal).inc()
    if not event.provider_id:
        return
    provider = metrics.of_provider(event.provider_id)
    tokens = event.tokens
    counts = (tokens.input, tokens.cache_read, _cache_writes(tokens), tokens.output)
    for counter, count in zip(provider.tokens, counts, strict=True):
        if count:
            counter.inc(count)
    if event.cost_nano_usd:
        provider.cost.inc(event.cost_nano_usd)
    if event.is_unpriced:
        provider.unpriced.inc()
    if call.first_event_seconds is not None:
        provider.first_event.observe(call.first_event_seconds)
    if call.answer is not None:
        if suspect_count := call.answer.anomaly_count:
            provider.suspect.inc(suspect_count)
        if call.answer.meter.is_absurd:
            provider.absurd.inc()
        if call.answer.broken_event_count:
            provider.broken.inc(call.answer.broken_event_count)
        if call.answer.lost_event_count:
            provider.lost.inc(call.answer.lost_event_count)
