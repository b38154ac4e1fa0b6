"""Reconciliation: what all books say of the same minutes, and its repair."""

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import Counter

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing import comparing
from lurus_billing.books import MAX_EVENTS, Books, Span, TooMany, read_bus, stamp
from lurus_billing.comparing import BookValue, Difference, Read
from lurus_billing.consumer import UsageBus
from lurus_billing.drift_watch import DriftWatch, closed_minute, floor
from lurus_common.errors import InvalidRequest

DEFAULT_SPAN = timedelta(hours=1)
MAX_SPAN = timedelta(days=1)
MAX_LISTED = 100
MAX_REPAIRED = 10_000

REPAIRED = Counter("lurus_repaired_events", "Events that a reconciliation has published again.")


class Reconciler:
    """Compares, one comparison at a time."""

    def __init__(self, books: Books, usage: UsageBus) -> None:
        self._books = books
        self._usage = usage
        self._turn = asyncio.Lock()
        self._watch = DriftWatch(self.compare)

    async def watch(self) -> None:
        """Compares each minute when it is closed, until cancelled, and shows the drift as metrics."""
        await self._watch.run()

    async def answer(self, request: pb.ReconcileRequest) -> pb.ReconcileResponse:
        """Compares what was asked for.

        Raises:
            InvalidRequest: the span is empty, too long, or has more events than one comparison takes.
        """
        span = _asked(request)
        try:
            found = await self.compare(span, is_repair=request.is_repair)
        except TooMany:
            raise InvalidRequest(
                f"there are more than {MAX_EVENTS} requests in that time; ask for less of it",
                param="start_time",
                maximum=MAX_EVENTS,
            ) from None
        self._watch.forgive(span, found)
        return found

    async def compare(self, span: Span, *, is_repair: bool = False) -> pb.ReconcileResponse:
        """Compares all books for a span of closed minutes.

        Raises:
            TooMany: there are more events than one comparison takes.
        """
        async with self._turn:
            books, events = await self._read(span)
            differences = comparing.compare(books)
            response = await self._response(span, books, differences)
            if is_repair:
                response.repaired_count = await self._repair(differences, events)
            return response

    async def _read(self, span: Span) -> tuple[dict[BookValue, Read], dict[str, UsageEvent]]:
        """Reads the bus last: what has not reached another book yet may still be on its way there."""
        outbox, made = await self._books.outbox(span)
        ledger = await self._books.ledger(span)
        logged, written = await self._books.log(span)
        known = {*outbox.facts, *ledger.facts, *logged.facts}
        on_bus, sent = await read_bus(self._usage.client, span, known)
        books = {
            pb.BOOK_OUTBOX: outbox,
            pb.BOOK_BUS: on_bus,
            pb.BOOK_LEDGER: ledger,
            pb.BOOK_LOG: logged,
        }
        return books, {**written, **made, **sent}

    async def _response(
        self, span: Span, books: Mapping[BookValue, Read], differences: list[Difference]
    ) -> pb.ReconcileResponse:
        listed = differences[:MAX_LISTED]
        may_be_parked = any(pb.BOOK_LEDGER in one.missing for one in listed)
        parked = await self._books.parked() if may_be_parked else set()
        return pb.ReconcileResponse(
            drift_count=len(differences),
            drift_nano_usd=sum(one.ledger_error_nano_usd for one in differences),
            outcome=comparing.outcome(books.values(), differences),
            books=[comparing.report(book, read) for book, read in books.items()],
            drifts=[_drift(one, one.request_id in parked) for one in listed],
            start_time=stamp(span.start),
            end_time=stamp(span.end),
        )

    async def _repair(self, differences: list[Difference], events: Mapping[str, UsageEvent]) -> int:
        """Publishes again what is missing somewhere; both consumers take what they know for a repeat.

        Of what is there and differs nothing is published: the first content counts, and a person has to look.
        """
        count = 0
        for difference in differences[:MAX_REPAIRED]:
            event = events.get(difference.request_id)
            if event is None or not difference.missing or difference.different:
                continue
            await self._usage.publish_again(event)
            count += 1
        REPAIRED.inc(count)
        return count


def _asked(request: pb.ReconcileRequest) -> Span:
    end = closed_minute(time.time())
    if request.HasField("end_time"):
        end = min(end, _minute(request.end_time, "end_time"))
    start = (
        _minute(request.start_time, "start_time") if request.HasField("start_time") else end - DEFAULT_SPAN
    )
    if start >= end:
        raise InvalidRequest("there is no closed minute in that time", param="start_time")
    if end - start > MAX_SPAN:
        raise InvalidRequest("ask for at most a day at once", param="start_time")
    return Span(start, end)


def _minute(moment: Timestamp, name: str) -> datetime:
    try:
        return floor(moment.ToDatetime(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{name} is not a time", param=name) from error


def _drift(difference: Difference, is_parked: bool) -> pb.Drift:
    found = pb.Drift(
        request_id=difference.request_id,
        account_id=difference.fact.account_id,
        cost_nano_usd=difference.fact.cost_nano_usd,
        missing=difference.missing,
        different=difference.different,
        is_parked=is_parked,
    )
    found.event_time.FromMicroseconds(difference.fact.time)
    return found
