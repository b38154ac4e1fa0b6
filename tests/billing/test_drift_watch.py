"""What the watch over the books shows, and what it looks at again; comparisons are told, not made."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY

from lurus.billing.v1 import billing_pb2 as pb
from lurus_billing.books import Span, TooMany
from lurus_billing.drift_watch import MAX_WATCHED, MINUTE, DriftWatch
from lurus_common.errors import DependencyUnavailable

pytestmark = pytest.mark.anyio
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
Answer = Callable[[Span], pb.ReconcileResponse]


def green(span: Span) -> pb.ReconcileResponse:
    found = pb.ReconcileResponse(outcome=pb.RECONCILE_OUTCOME_GREEN)
    found.end_time.FromDatetime(span.end)
    return found


def unknown(span: Span) -> pb.ReconcileResponse:
    books = [pb.BookReport(book=pb.BOOK_LOG, problem="it is away")]
    return pb.ReconcileResponse(outcome=pb.RECONCILE_OUTCOME_UNKNOWN, books=books)


def drift_of(moment: datetime) -> Answer:
    """A request that the ledger lacks, at one moment."""

    def answer(span: Span) -> pb.ReconcileResponse:
        if not span.start <= moment < span.end:
            return green(span)
        drifts = [pb.Drift(request_id="req_a", missing=[pb.BOOK_LEDGER])]
        return pb.ReconcileResponse(outcome=pb.RECONCILE_OUTCOME_DRIFT, drift_count=1, drifts=drifts)

    return answer


class Told:
    """A watch whose comparisons say what `answer` says."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Span] = []
        self.watch = DriftWatch(self._compare)

    async def _compare(self, span: Span) -> pb.ReconcileResponse:
        self.asked.append(span)
        return self.answer(span)

    async def each_minute(self, begin: datetime, ends: Iterable[datetime]) -> datetime:
        for end in ends:
            begin = await self.watch.look(begin, end)
        return begin


def metric(name: str, **labels: str) -> float:
    found = REGISTRY.get_sample_value(name, labels)
    assert found is not None
    return found


def minutes(count: int) -> list[datetime]:
    return [NOON + number * MINUTE for number in range(1, count + 1)]


async def test_green_minutes_are_looked_at_once() -> None:
    told = Told(green)
    assert await told.each_minute(NOON, minutes(3)) == NOON + 3 * MINUTE
    assert [(span.start, span.end) for span in told.asked] == [(end - MINUTE, end) for end in minutes(3)]
    assert metric("lurus_drift_requests", book="ledger") == 0
    assert metric("lurus_reconciled_time_seconds") == (NOON + 3 * MINUTE).timestamp()


async def test_before_the_first_look_no_book_counts_as_read() -> None:
    Told(green)
    assert metric("lurus_unreconciled_books") == 4


async def test_a_drift_shows_for_longer_than_it_is_watched_until_it_is_repaired() -> None:
    told = Told(drift_of(NOON + timedelta(seconds=30)))
    begin = await told.each_minute(NOON, minutes(90))
    assert metric("lurus_drift_requests", book="ledger") == 1
    assert metric("lurus_drift_requests", book="log") == 0
    assert metric("lurus_reconciled_time_seconds") < (NOON + 90 * MINUTE).timestamp()
    assert all(span.end - span.start <= MAX_WATCHED for span in told.asked)
    told.answer = green
    last = NOON + 91 * MINUTE
    assert await told.watch.look(begin, last) == last
    assert metric("lurus_drift_requests", book="ledger") == 0
    assert await told.watch.look(last, last + MINUTE)
    assert metric("lurus_reconciled_time_seconds") == (last + MINUTE).timestamp()


async def test_what_somebody_finds_green_is_forgiven() -> None:
    told = Told(drift_of(NOON + timedelta(seconds=30)))
    await told.each_minute(NOON, minutes(90))
    for begin, shown in ((NOON + MINUTE, 1), (NOON, 0)):
        span = Span(begin, NOON + 90 * MINUTE)
        told.watch.forgive(span, green(span))
        assert metric("lurus_drift_requests", book="ledger") == shown


async def test_minutes_that_could_not_be_read_are_compared_when_all_are_back() -> None:
    told = Told(unknown)
    begin = await told.each_minute(NOON, minutes(75))
    assert metric("lurus_unreconciled_books") == 1
    told.answer = drift_of(NOON + timedelta(seconds=30))
    for number in range(76, 100):
        begin = await told.watch.look(begin, NOON + number * MINUTE)
    assert metric("lurus_drift_requests", book="ledger") == 1, "of a minute that was set aside unread"


async def test_a_store_that_is_away_leaves_no_metric_as_it_was() -> None:
    def away(span: Span) -> pb.ReconcileResponse:
        raise DependencyUnavailable("it is away", dependency="postgres")

    told = Told(green)
    await told.watch.look(NOON, NOON + MINUTE)
    assert metric("lurus_unreconciled_books") == 0
    told.answer = away
    assert await told.watch.look(NOON + MINUTE, NOON + 2 * MINUTE) == NOON + MINUTE
    assert metric("lurus_unreconciled_books") == 4


async def test_what_is_too_much_at_once_is_compared_in_parts_and_a_minute_that_is_is_told() -> None:
    def narrow(span: Span) -> pb.ReconcileResponse:
        if span.end - span.start > 15 * MINUTE:
            raise TooMany
        return green(span)

    told = Told(narrow)
    end = NOON + 60 * MINUTE
    assert await told.watch.look(NOON, end) == end
    parts = [span for span in told.asked if span.end - span.start <= 15 * MINUTE]
    assert [span.start for span in parts] == [NOON + number * 15 * MINUTE for number in range(4)]
    assert parts[-1].end == end

    def never(span: Span) -> pb.ReconcileResponse:
        raise TooMany

    told.answer = never
    assert await told.watch.look(end, end + MINUTE) == end + MINUTE
    assert metric("lurus_unreconciled_books") == 4
