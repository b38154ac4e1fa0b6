"""The watch over the books: compares each minute when it is closed, and shows as metrics what differs.

A drift shows until it is gone. Minutes that are not green are looked at again, with pauses, for an hour; then
they are set aside, and what differs in them goes on to count. Whenever the rest is green, some of those set
aside are compared anew, so that a repair, or a service that is back, ends it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from prometheus_client import Gauge

from lurus.billing.v1 import billing_pb2 as pb
from lurus_billing import comparing
from lurus_billing.books import Span, TooMany
from lurus_common.errors import LurusError

log = logging.getLogger(__name__)

MINUTE = timedelta(minutes=1)
# How long after its end a minute is taken for closed: by then every event has been everywhere.
SETTLING = MINUTE
WATCH_SECONDS = 60.0
# Each look that is not green doubles the pause before the next one, to spare the services that are read.
MAX_PAUSE_SECONDS = 300.0
MAX_WATCHED = timedelta(hours=1)
# Spans that are set aside; with so many the alarm has been on for a day.
MAX_SET_ASIDE = 1_440
# Of them, those that a look compares anew.
RETRIED = 2

DRIFT = Gauge(
    "lurus_drift_requests",
    "Requests of closed minutes that a book lacks, or has otherwise. Alarm: must be 0.",
    ["book"],
)
UNREAD = Gauge("lurus_unreconciled_books", "Books that could not be read whole the last time.")
RECONCILED = Gauge("lurus_reconciled_time_seconds", "Until when all books agree, in Unix time.")

_NAMES = {book: pb.Book.Name(book).removeprefix("BOOK_").lower() for book in comparing.ORDER}

Drifts = Counter[str]
Compare = Callable[[Span], Awaitable[pb.ReconcileResponse]]


class DriftWatch:
    """Knows from when on the books are not known to agree.

    Args:
        compare: compares a span of closed minutes.
    """

    def __init__(self, compare: Compare) -> None:
        self._compare = compare
        self._set_aside: dict[Span, Drifts] = {}
        self._drifts: Drifts = Counter()
        # Nothing has been read yet.
        UNREAD.set(len(_NAMES))

    async def run(self) -> None:
        """Looks each minute, until cancelled; begins with the hour before, when nobody may have looked."""
        begin, pause = None, WATCH_SECONDS
        while True:
            await asyncio.sleep(pause)
            end = closed_minute(time.time())
            begin = await self.look(begin or end - MAX_WATCHED, end)
            pause = WATCH_SECONDS if begin == end else min(2 * pause, MAX_PAUSE_SECONDS)

    async def look(self, begin: datetime, end: datetime) -> datetime:
        """Compares from `begin` to `end`, and shows what is found; returns from when on to look again."""
        try:
            latest = max(begin, end - MAX_WATCHED)
            if begin < latest:
                await self._set_aside_span(Span(begin, latest))
                begin = latest
            begin = await self._advance(begin, end)
            if begin == end:
                await self._retry()
            return begin
        except LurusError as error:
            log.warning("the books are compared later: %s", error.message)
            UNREAD.set(len(_NAMES))
            return begin

    def forgive(self, span: Span, found: pb.ReconcileResponse) -> None:
        """Takes back what was set aside, if all of it is green now."""
        if found.outcome != pb.RECONCILE_OUTCOME_GREEN:
            return
        for other in [other for other in self._set_aside if span.contains(other)]:
            del self._set_aside[other]
        self._show()

    async def _advance(self, begin: datetime, end: datetime) -> datetime:
        """Compares as much at once as one comparison takes; goes on while it is green."""
        step = end - begin
        while begin < end:
            upto = min(begin + step, end)
            try:
                found = await self._compare(Span(begin, upto))
            except TooMany:
                if step <= MINUTE:
                    return self._beyond(begin)
                step = max(MINUTE, _floor_span(step / 2))
                continue
            self._note(found)
            if found.outcome != pb.RECONCILE_OUTCOME_GREEN:
                return begin
            begin = upto
        return end

    def _beyond(self, begin: datetime) -> datetime:
        log.error("the minute from %s has too many requests to be compared", begin.isoformat())
        UNREAD.set(len(_NAMES))
        self._keep(Span(begin, begin + MINUTE), Counter())
        return begin + MINUTE

    def _note(self, found: pb.ReconcileResponse) -> None:
        self._drifts = _drifts(found)
        self._show()
        UNREAD.set(sum(bool(book.problem) for book in found.books))
        if found.outcome == pb.RECONCILE_OUTCOME_GREEN and not self._set_aside:
            RECONCILED.set(found.end_time.seconds)
        elif found.outcome == pb.RECONCILE_OUTCOME_DRIFT:
            log.error(
                "the books differ in %d requests between %s and %s; see `lurus reconcile`",
                found.drift_count,
                found.start_time.ToJsonString(),
                found.end_time.ToJsonString(),
            )

    async def _set_aside_span(self, span: Span) -> None:
        """Looks a last time at what is not green for an hour."""
        try:
            found = await self._compare(span)
        except TooMany:
            self._keep(span, Counter())
            return
        if found.outcome != pb.RECONCILE_OUTCOME_GREEN:
            log.error("what is not green from %s on is set aside", found.start_time.ToJsonString())
            self._keep(span, _drifts(found))

    async def _retry(self) -> None:
        """Compares some of what was set aside anew; those that are not green yet wait for their next turn."""
        for span in list(self._set_aside)[:RETRIED]:
            try:
                found = await self._compare(span)
            except TooMany:
                continue
            del self._set_aside[span]
            if found.outcome != pb.RECONCILE_OUTCOME_GREEN:
                self._keep(span, _drifts(found))
        self._show()

    def _keep(self, span: Span, drifts: Drifts) -> None:
        if len(self._set_aside) < MAX_SET_ASIDE:
            self._set_aside[span] = drifts

    def _show(self) -> None:
        total = sum(self._set_aside.values(), Counter(self._drifts))
        for name in _NAMES.values():
            DRIFT.labels(name).set(total[name])


def _drifts(found: pb.ReconcileResponse) -> Drifts:
    """Returns for each book in how many requests it differs; all of them, where the list is cut."""
    is_cut = found.drift_count > len(found.drifts)
    counts: Drifts = Counter()
    for drift in found.drifts:
        counts.update(_NAMES[book] for book in {*drift.missing, *drift.different})
    return Counter({name: found.drift_count if is_cut else count for name, count in counts.items()})


def closed_minute(now: float) -> datetime:
    """Returns the end of the last minute that is closed, at a moment in Unix seconds."""
    return floor(datetime.fromtimestamp(now, UTC) - SETTLING)


def floor(moment: datetime) -> datetime:
    """Returns the begin of a moment's minute."""
    return moment.replace(second=0, microsecond=0)


def _floor_span(span: timedelta) -> timedelta:
    """Returns the whole minutes of a span."""
    return span // MINUTE * MINUTE
