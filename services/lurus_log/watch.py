"""The live tail: every watcher of this process sees each event once it is on the bus.

Several log processes share one durable consumer, so that each stores a part
only; a tail has a consumer of its own while somebody watches.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from google.protobuf.message import DecodeError
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from prometheus_client import Counter, Gauge
from protovalidate import Validator

from lurus.log.v1.log_pb2 import LogFilter, WatchUsageResponse
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common import bus
from lurus_common.errors import InvalidRequest, Overloaded
from lurus_common.rpc import check_rules
from lurus_log.filters import matches

log = logging.getLogger(__name__)

MAX_WATCHERS = 200
MAX_WAITING_EVENTS = 256
SIGN_OF_LIFE_SECONDS = 15.0
# How long a watch waits for the bus before it begins without it.
ATTACH_SECONDS = 2.0
FETCH_EVENTS = 200
FETCH_SECONDS = 1.0
RETRY_SECONDS = 0.5
# When the bus forgets the consumer of a process that is gone.
INACTIVE_SECONDS = 60.0

WATCHERS = Gauge("lurus_log_watchers", "Callers that watch usage.")
SKIPPED = Counter("lurus_log_skipped_events", "Events that slow watchers did not get.")


class Watcher:
    """What waits for one caller. When it is full the oldest events make room, and are counted."""

    def __init__(self, wanted: LogFilter) -> None:
        self._wanted = wanted
        self._events: deque[UsageEvent] = deque()
        self._skipped_count = 0
        self._changed = asyncio.Event()
        self._is_closed = False

    def offer(self, event: UsageEvent) -> None:
        """Adds an event if the caller wants it."""
        if not matches(self._wanted, event):
            return
        if len(self._events) >= MAX_WAITING_EVENTS:
            self._events.popleft()
            self._skipped_count += 1
            SKIPPED.inc()
        self._events.append(event)
        self._changed.set()

    def close(self) -> None:
        """Ends the watch."""
        self._is_closed = True
        self._changed.set()

    async def responses(self, sign_of_life_seconds: float) -> AsyncIterator[WatchUsageResponse]:
        """Yields events as they come, and an empty response when none came for a while.

        Raises:
            Overloaded: when the process stops.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(sign_of_life_seconds):
                    await self._changed.wait()
            if self._is_closed:
                raise Overloaded("the log service is stopping; watch again")
            if not self._events:
                yield WatchUsageResponse()
            while self._events:
                event, skipped_count = self._events.popleft(), self._skipped_count
                self._skipped_count = 0
                yield WatchUsageResponse(event=event, skipped_count=skipped_count)
            self._changed.clear()


class UsageTail:
    """Reads the bus from now on, while there are watchers."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()
        self._is_watched = asyncio.Event()
        self._is_attached = asyncio.Event()
        self._is_closed = False
        self._last_sequence: int | None = None
        self._validator = Validator()

    @contextmanager
    def watch(self, wanted: LogFilter) -> Iterator[Watcher]:
        """Adds a watcher for the time of the block.

        Raises:
            Overloaded: if there are too many, or the process stops.
        """
        if self._is_closed or len(self._watchers) >= MAX_WATCHERS:
            raise Overloaded("too many callers watch usage", maximum_watchers=MAX_WATCHERS)
        watcher = Watcher(wanted)
        self._watchers.add(watcher)
        self._is_watched.set()
        WATCHERS.set(len(self._watchers))
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            WATCHERS.set(len(self._watchers))
            if not self._watchers:
                self._is_watched.clear()

    async def attached(self) -> None:
        """Returns when the tail reads the bus, or after `ATTACH_SECONDS` if the bus is away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ATTACH_SECONDS):
                await self._is_attached.wait()

    def close(self) -> None:
        """Ends all watches, now and later."""
        self._is_closed = True
        for watcher in self._watchers:
            watcher.close()

    async def run(self, jetstream: JetStreamContext) -> None:
        """Reads the bus until cancelled. After a failure it goes on where it was."""
        while True:
            await self._is_watched.wait()
            try:
                await self._follow(jetstream)
            except (bus.NatsError, OSError, TimeoutError) as error:
                log.warning("watch: the bus is away (%s)", error or type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self, jetstream: JetStreamContext) -> None:
        consumer = await self._attach(jetstream)
        subscription = await jetstream.pull_subscribe_bind(consumer=consumer, stream=bus.STREAM_NAME)
        self._is_attached.set()
        try:
            while self._watchers:
                await self._fetch(subscription)
            self._last_sequence = None
        finally:
            self._is_attached.clear()
            with contextlib.suppress(bus.NatsError, OSError, TimeoutError):
                await subscription.unsubscribe()
                await jetstream.delete_consumer(bus.STREAM_NAME, consumer)

    async def _attach(self, jetstream: JetStreamContext) -> str:
        """Makes a consumer that begins after the last event seen, or after the last there is."""
        newest = (await bus.ensure_stream(jetstream)).state.last_seq
        if self._last_sequence is None or self._last_sequence > newest:
            self._last_sequence = newest
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._last_sequence + 1,
            ack_policy=AckPolicy.NONE,
            filter_subject=bus.SUBJECTS,
            inactive_threshold=INACTIVE_SECONDS,
            mem_storage=True,
        )
        return (await jetstream.add_consumer(bus.STREAM_NAME, config)).name

    async def _fetch(self, subscription: JetStreamContext.PullSubscription) -> None:
        try:
            messages = await subscription.fetch(FETCH_EVENTS, timeout=FETCH_SECONDS)
        except TimeoutError:
            return
        for message in messages:
            self._last_sequence = message.metadata.sequence.stream
            if event := self._read(message):
                for watcher in self._watchers:
                    watcher.offer(event)

    def _read(self, message: Msg) -> UsageEvent | None:
        """Returns its event, or None if it is one that the log parks."""
        try:
            event = UsageEvent.FromString(message.data)
            check_rules(self._validator, event)
        except (DecodeError, InvalidRequest):
            return None
        return event
