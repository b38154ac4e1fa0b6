"""Reads the four books that keep usage events, for a span of time. Each read says whether it is whole."""

import asyncio
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import grpc.aio
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamState

from lurus.billing.v1 import billing_pb2 as pb
from lurus.log.v1.log_pb2 import ExportLogsRequest, LogFilter
from lurus.routing.v1.routing_pb2 import ListOutboxEventsRequest
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing.comparing import KINDS, Fact, Read, fact_of
from lurus_common import bus
from lurus_common.errors import LurusError
from lurus_common.postgres import transaction
from lurus_common.rpc import error_of

if TYPE_CHECKING:
    from lurus.log.v1.log_pb2_grpc import LogServiceAsyncStub
    from lurus.routing.v1.routing_pb2_grpc import RoutingServiceAsyncStub

# Of one comparison; more are for several.
MAX_EVENTS = 200_000
MAX_LETTERS = 1_000
FETCH_EVENTS = 500
FETCH_SECONDS = 5.0
READ_SECONDS = 120.0
# How much earlier than it was finished a request may seem to reach the bus, if clocks differ.
SKEW = timedelta(minutes=5)
# How long after its end a request is on the bus, unless the bus was away: then all of the stream is read.
LATE = timedelta(minutes=15)

_USAGE = f"""
SELECT transaction_id, account_id, debit_account_id, amount_nano_usd, event_time,
    {", ".join(f"{kind}_tokens" for kind in KINDS)}
FROM billing.transfer WHERE event_time >= $1 AND event_time < $2 AND kind = $3 LIMIT $4
"""  # noqa: S608  # our own names
_PARKED = """
SELECT payload FROM billing.dead_letter WHERE cause = 'parked' AND resolve_time IS NULL
ORDER BY dead_letter_id DESC LIMIT $1
"""


class TooMany(Exception):
    """There are more events than one comparison takes."""


class Span:
    """From when on, until when; both in UTC, `end` excluded."""

    def __init__(self, start: datetime, end: datetime) -> None:
        self.start, self.end = start, end
        self._micros = tuple(int(moment.timestamp() * 1e6) for moment in (start, end))

    def has(self, micros: int) -> bool:
        """Whether a request was finished within it, by microseconds since 1970."""
        return self._micros[0] <= micros < self._micros[1]

    def contains(self, other: "Span") -> bool:
        """Whether all of another one is within it."""
        return self.start <= other.start and other.end <= self.end


class Books:
    """All four of them.

    Args:
        pool: of the ledger.
        log: the log service.
        routing: the routing service of the host whose outboxes are read.
    """

    def __init__(
        self, pool: asyncpg.Pool, log: "LogServiceAsyncStub", routing: "RoutingServiceAsyncStub"
    ) -> None:
        self._pool = pool
        self._log = log
        self._routing = routing

    async def outbox(self, span: Span) -> tuple[Read, dict[str, UsageEvent]]:
        """Reads the outboxes; returns their events too, since they can be published again."""
        events: dict[str, UsageEvent] = {}
        request = ListOutboxEventsRequest(start_time=stamp(span.start), end_time=stamp(span.end))
        try:
            async with asyncio.timeout(READ_SECONDS):
                async for some in self._routing.ListOutboxEvents(request):
                    events |= {event.request_id: event for event in (*some.sent_events, *some.unsent_events)}
                    _require_few(events)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            return Read(problem=f"the outboxes cannot be read: {_said(error)}"), events
        return Read(_facts(events.values(), span)), events

    async def log(self, span: Span) -> tuple[Read, dict[str, UsageEvent]]:
        """Reads the request log; returns its events too, since they can be published again."""
        events: dict[str, UsageEvent] = {}
        request = ExportLogsRequest(filter=LogFilter(start_time=stamp(span.start), end_time=stamp(span.end)))
        try:
            async with asyncio.timeout(READ_SECONDS):
                async for some in self._log.ExportLogs(request):
                    events |= {event.request_id: event for event in some.events}
                    _require_few(events)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            return Read(problem=f"the request log cannot be read: {_said(error)}"), events
        return Read(_facts(events.values(), span)), events

    async def ledger(self, span: Span) -> Read:
        """Reads the ledger."""
        read = Read()
        try:
            async with transaction(self._pool, read_only=True) as connection:
                rows = await connection.fetch(
                    _USAGE, span.start, span.end, pb.TRANSACTION_KIND_USAGE, MAX_EVENTS + 1
                )
        except LurusError as error:
            return Read(problem=f"the ledger cannot be read: {error.message}")
        for row in rows:
            sign = 1 if row["debit_account_id"] == row["account_id"] else -1
            tokens = tuple(row[f"{kind}_tokens"] or 0 for kind in KINDS)
            moment = int(row["event_time"].timestamp() * 1e6)
            cost = sign * row["amount_nano_usd"]
            read.facts[row["transaction_id"]] = Fact(row["account_id"], cost, tokens, moment)
        _require_few(read.facts)
        return read

    async def parked(self) -> set[str]:
        """Returns the requests that wait among the dead letters; the newest, if there are many."""
        async with transaction(self._pool, read_only=True) as connection:
            rows = await connection.fetch(_PARKED, MAX_LETTERS)
        return {event.request_id for row in rows if (event := _event(row["payload"])) is not None}


async def read_bus(
    client: Client | None, span: Span, known: Iterable[str]
) -> tuple[Read, dict[str, UsageEvent]]:
    """Reads the stream as far as events are late; to its end if one of `known` is missing.

    Returns:
        What it says, and its events, which can be published again.
    """
    if client is None or not client.is_connected:
        return Read(problem="the bus is away"), {}
    events: dict[str, UsageEvent] = {}
    try:
        async with asyncio.timeout(READ_SECONDS):
            problem = await _gather(client.jetstream(), span, set(known), events)
    except (bus.NatsError, OSError, TimeoutError) as error:
        return Read(problem=f"the bus cannot be read: {error or type(error).__name__}"), events
    return Read(_facts(events.values(), span), problem), events


async def _gather(
    jetstream: JetStreamContext, span: Span, known: set[str], events: dict[str, UsageEvent]
) -> str:
    """Fills in the events of a span; returns why they may not be all, or an empty string."""
    found = await jetstream.stream_info(bus.STREAM_NAME)
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_TIME,
        opt_start_time=span.start - SKEW,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=READ_SECONDS,
        mem_storage=True,
    )
    subscription = await jetstream.pull_subscribe(bus.SUBJECTS, stream=bus.STREAM_NAME, config=config)
    try:
        first: Msg | None = None
        pending = (await subscription.consumer_info()).num_pending
        while pending:
            messages = await _fetched(subscription)
            if not messages:
                return f"the bus does not give out {pending} more events"
            for message in messages:
                first = first or message
                event = _event(message.data)
                # Of two with the same id the first one counts, as in the ledger.
                if event is not None and span.has(event.event_time.ToMicroseconds()):
                    events.setdefault(event.request_id, event)
            _require_few(events)
            pending = messages[-1].metadata.num_pending
            if _stored(messages[-1]) > span.end + LATE and known <= events.keys():
                break
    finally:
        await subscription.unsubscribe()
    return "the stream no longer has all of that time" if _is_cut(found.state, first, span) else ""


def _is_cut(state: StreamState, first: Msg | None, span: Span) -> bool:
    """Whether events of a span may be gone: retention takes the oldest.

    Args:
        first: the first message from the span's begin on.
    """
    if state.first_seq <= 1:
        return False
    if first is None:
        return not state.messages
    return first.metadata.sequence.stream == state.first_seq and _stored(first) > span.start


async def _fetched(subscription: JetStreamContext.PullSubscription) -> list[Msg]:
    try:
        return await subscription.fetch(FETCH_EVENTS, timeout=FETCH_SECONDS)
    except TimeoutError:
        return []


def _stored(message: Msg) -> datetime:
    return message.metadata.timestamp.astimezone(UTC)


def _event(payload: bytes) -> UsageEvent | None:
    """Returns what bytes say, None if they are no event: that is parked, and nobody's request."""
    try:
        return UsageEvent.FromString(payload)
    except DecodeError:
        return None


def _facts(events: Iterable[UsageEvent], span: Span) -> dict[str, Fact]:
    def within() -> Iterator[tuple[str, Fact]]:
        for event in events:
            fact = fact_of(event)
            if span.has(fact.time):
                yield event.request_id, fact

    return dict(within())


def _require_few(found: dict[str, UsageEvent] | dict[str, Fact]) -> None:
    if len(found) > MAX_EVENTS:
        raise TooMany


def stamp(moment: datetime) -> Timestamp:
    """Returns a time as a message."""
    found = Timestamp()
    found.FromDatetime(moment)
    return found


def _said(error: grpc.aio.AioRpcError | TimeoutError) -> str:
    return error_of(error).message if isinstance(error, grpc.aio.AioRpcError) else "it takes too long"
