"""Reads usage events from the bus in batches, at least once, for a durable consumer.

The effect of a batch is one call of `handle`, which must be idempotent by
request id; the ack comes after it. An event that cannot be read, or that the
store refuses as data, is parked by `park` and terminated, so that its
neighbours go on. Everything else is tried again for ever: a store that is away
is not the message's fault. After a failure that nobody foresaw batches shrink
and such events come again later and later, so that one of them that breaks
`handle` ends up alone and its neighbours go on too.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from prometheus_client import Counter, Gauge
from protovalidate import Validator

from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common import bus
from lurus_common.errors import DependencyUnavailable, InvalidRequest
from lurus_common.rpc import check_rules
from lurus_common.status import Dependency

log = logging.getLogger(__name__)

BATCH_EVENTS = 200
FETCH_SECONDS = 1.0
LEAST_LINGER_SECONDS = 0.02
FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 5.0
# How long an event that failed unforeseen stays away at most.
MAX_DELAY_SECONDS = 60.0
# Whoever is so far behind should be looked at.
OLD_SECONDS = 30.0

# How the reason of an event begins that none of the consumers can read.
UNREADABLE = "unreadable"

CONSUMED = Counter("lurus_consumed_events", "Usage events whose effect is committed.", ["consumer"])
REDELIVERED = Counter("lurus_redelivered_events", "Usage events that came more than once.", ["consumer"])
PARKED = Counter("lurus_parked_events", "Usage events that were set aside for a person.", ["consumer"])
LAG = Gauge(
    "lurus_consumer_lag_events", "Usage events on the bus that this consumer has not committed.", ["consumer"]
)


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """An event that cannot be processed, as it came."""

    stream_sequence: int
    subject: str
    payload: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class _Delivery:
    event: UsageEvent
    message: Msg


Handle = Callable[[Sequence[UsageEvent]], Awaitable[None]]
Park = Callable[[ParkedEvent], Awaitable[None]]


class UsageConsumer:
    """One durable consumer of the usage stream.

    Args:
        jetstream: of a connection that reconnects.
        durable: its name on the bus, the same in every process of the service.
        handle: commits a batch, in one transaction.
        park: keeps an event for a person; idempotent by stream sequence.
        data_errors: what `handle` raises if an event is at fault, not the store.
        batch_events: the most that one call of `handle` gets.
        linger_seconds: how long a batch that is not full waits for more.
        ack_wait_seconds: after so long the bus delivers again what is not acknowledged.
    """

    def __init__(
        self,
        jetstream: JetStreamContext,
        durable: str,
        handle: Handle,
        park: Park,
        data_errors: tuple[type[Exception], ...],
        *,
        batch_events: int = BATCH_EVENTS,
        linger_seconds: float = 0.0,
        ack_wait_seconds: float = bus.ACK_WAIT_SECONDS,
    ) -> None:
        self._jetstream = jetstream
        self._durable = durable
        self._handle = handle
        self._park = park
        self._data_errors = data_errors
        self._batch_events = batch_events
        self._linger_seconds = linger_seconds
        self._ack_wait_seconds = ack_wait_seconds
        self._validator = Validator()
        self._stopping = asyncio.Event()
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._fetch_events = batch_events
        # What an operator has to mend before events are consumed again; empty if nothing.
        self.problem = ""
        self._consumed = CONSUMED.labels(durable)
        self._redelivered = REDELIVERED.labels(durable)
        self._parked = PARKED.labels(durable)
        self._lag = LAG.labels(durable)
        self._behind_count = 0
        # When the bus got the event that was committed last.
        self._committed_time = 0.0

    def stop(self) -> None:
        """Lets `run` finish the batch at hand and return."""
        self._stopping.set()

    def describe(self, row: Dependency) -> None:
        """Brings up to date how far this consumer is behind the bus."""
        row.backlog_count = self._behind_count
        row.lag_seconds = None
        row.warning = self.problem
        if self._behind_count and self._committed_time:
            row.lag_seconds = time.time() - self._committed_time
            if row.lag_seconds > OLD_SECONDS:
                row.warning = row.warning or f"events wait for {row.lag_seconds:.0f} s"

    def _note_behind(self, count: int) -> None:
        self._behind_count = count
        self._lag.set(count)

    async def run(self) -> None:
        """Consumes until `stop`."""
        while not self._stopping.is_set():
            try:
                await self._consume()
            except (NatsError, OSError) as error:
                log.warning("%s: the bus is away (%s)", self._durable, error or type(error).__name__)
                await self._back_off()
            except bus.StreamMismatch as error:
                self.problem = str(error)
                log.error("%s: %s", self._durable, error)
                await self._back_off()
            except Exception:
                log.exception("%s: consuming failed; it begins again", self._durable)
                await self._back_off()

    async def _back_off(self) -> None:
        await self._pause(self._retry_seconds)
        self._retry_seconds = min(self._retry_seconds * 2, MAX_RETRY_SECONDS)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _consume(self) -> None:
        """Consumes until `stop` or a failure of the bus.

        A failure of the store keeps the subscription: what it has received and
        not handed out would come again only after `ack_wait`.
        """
        subscription = await self._subscribe()
        try:
            while not self._stopping.is_set():
                messages = await self._fetch(subscription)
                if messages and not await self._process(messages):
                    await self._back_off()
                    continue
                self._retry_seconds = FIRST_RETRY_SECONDS
                if messages:
                    self._committed_time = messages[-1].metadata.timestamp.timestamp()
                    self._note_behind(messages[-1].metadata.num_pending)
                    self._fetch_events = min(self._fetch_events * 2, self._batch_events)
        finally:
            with contextlib.suppress(NatsError, OSError):
                await subscription.unsubscribe()

    async def _subscribe(self) -> JetStreamContext.PullSubscription:
        await bus.ensure_stream(self._jetstream)
        await bus.ensure_consumer(self._jetstream, self._durable, self._ack_wait_seconds)
        self.problem = ""
        return await self._jetstream.pull_subscribe_bind(self._durable, stream=bus.STREAM_NAME)

    async def _fetch(self, subscription: JetStreamContext.PullSubscription) -> list[Msg]:
        messages = await _fetch_some(subscription, 1, FETCH_SECONDS)
        if not messages:
            await self._check_consumer()
        elif self._fetch_events > 1:
            # Asked for many at first, the client would hold the first one back for all of the time.
            linger = max(self._linger_seconds, LEAST_LINGER_SECONDS)
            messages += await _fetch_some(subscription, self._fetch_events - 1, linger)
        return messages

    async def _check_consumer(self) -> None:
        """An idle fetch looks the same when the bus has lost the consumer: find out, and start over."""
        info = await self._jetstream.consumer_info(bus.STREAM_NAME, self._durable)
        self._note_behind((info.num_pending or 0) + (info.num_ack_pending or 0))

    async def _process(self, messages: Sequence[Msg]) -> bool:
        """Commits and parks messages; False if some have to come again."""
        try:
            deliveries = [delivery for message in messages if (delivery := await self._read(message))]
            await self._commit(sorted(deliveries, key=lambda delivery: delivery.event.request_id))
        except DependencyUnavailable as error:
            log.warning("%s: %s; the batch comes again", self._durable, error.message)
            await _give_back(messages, FIRST_RETRY_SECONDS)
        except (NatsError, OSError):
            await _give_back(messages, FIRST_RETRY_SECONDS)
            raise
        except Exception:
            log.exception("%s: a batch failed; it comes again", self._durable)
            self._fetch_events = max(1, len(messages) // 2)
            if len(messages) > 1:
                self._retry_seconds = FIRST_RETRY_SECONDS
            await _give_back(messages, FIRST_RETRY_SECONDS if len(messages) > 1 else _delay(messages[0]))
        else:
            return True
        return False

    async def _read(self, message: Msg) -> _Delivery | None:
        if message.metadata.num_delivered > 1:
            self._redelivered.inc()
        try:
            event = UsageEvent.FromString(message.data)
            check_rules(self._validator, event)
        except (DecodeError, InvalidRequest) as error:
            await self._set_aside(message, f"{UNREADABLE}: {error}")
            return None
        return _Delivery(event, message)

    async def _commit(self, deliveries: Sequence[_Delivery]) -> None:
        """Commits a batch; if an event is at fault, halves find it."""
        if not deliveries:
            return
        try:
            await self._handle([delivery.event for delivery in deliveries])
        except self._data_errors as error:
            if len(deliveries) == 1:
                await self._set_aside(deliveries[0].message, f"refused: {type(error).__name__}: {error}")
                return
            middle = len(deliveries) // 2
            await self._commit(deliveries[:middle])
            await self._commit(deliveries[middle:])
            return
        for delivery in deliveries:
            await delivery.message.ack()
        self._consumed.inc(len(deliveries))

    async def _set_aside(self, message: Msg, reason: str) -> None:
        log.error("%s: event %s parked: %s", self._durable, message.metadata.sequence.stream, reason)
        parked = ParkedEvent(message.metadata.sequence.stream, message.subject, message.data, reason[:1000])
        await self._park(parked)
        await message.term()
        self._parked.inc()


async def _give_back(messages: Sequence[Msg], delay_seconds: float) -> None:
    """Lets the bus deliver again what is neither committed nor parked, sooner than after `ack_wait`."""
    with contextlib.suppress(NatsError, OSError):
        for message in messages:
            if not message.is_acked:
                await message.nak(delay=delay_seconds)


def _delay(message: Msg) -> float:
    doublings = min(message.metadata.num_delivered - 1, 16)
    return float(min(FIRST_RETRY_SECONDS * 2.0**doublings, MAX_DELAY_SECONDS))


async def _fetch_some(
    subscription: JetStreamContext.PullSubscription, count: int, seconds: float
) -> list[Msg]:
    """Returns what is there, at most `count`, or an empty list after `seconds` without any."""
    try:
        return await subscription.fetch(count, timeout=seconds)
    except TimeoutError:
        return []
