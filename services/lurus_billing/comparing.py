"""Compares the books that keep usage events, request by request. No store is asked here.

An event goes from an outbox to the bus, and from there to the ledger and to the request log. So the bus and
the log must have every event; the ledger those that it books; an outbox only what its workers have made and
not forgotten yet. A request is a drift if a book lacks it that could be read whole, or has it otherwise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import Tokens, UsageEvent
from lurus_billing import ledger

BookValue: TypeAlias = "pb.Book.ValueType"
# Whose word counts if they differ: the event as it was sent; the ledger keeps no refused requests.
ORDER: Sequence[BookValue] = (pb.BOOK_BUS, pb.BOOK_OUTBOX, pb.BOOK_LOG, pb.BOOK_LEDGER)
KINDS = tuple(field.name for field in Tokens.DESCRIPTOR.fields)


@dataclass(frozen=True, slots=True)
class Fact:
    """What a book says of a request."""

    account_id: str
    cost_nano_usd: int
    # In the order of `KINDS`.
    tokens: tuple[int, ...]
    # Microseconds since 1970.
    time: int
    # It has used nothing and costs nothing: the ledger has no row of it.
    is_idle: bool = False

    def is_like(self, other: "Fact") -> bool:
        """Whether both say the same of the money."""
        mine = (self.account_id, self.cost_nano_usd, self.tokens)
        return mine == (other.account_id, other.cost_nano_usd, other.tokens)


@dataclass(slots=True)
class Read:
    """What was read of one book, by request id."""

    facts: dict[str, Fact] = field(default_factory=dict)
    # Why it is not all; empty if it is.
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """A request on which books do not agree."""

    request_id: str
    fact: Fact
    missing: tuple[BookValue, ...]
    different: tuple[BookValue, ...]
    # What the ledger has too much or too little, without sign.
    ledger_error_nano_usd: int


def fact_of(event: UsageEvent) -> Fact:
    """Returns what an event says."""
    tokens = tuple(getattr(event.tokens, kind) for kind in KINDS)
    return Fact(
        event.account_id,
        event.cost_nano_usd,
        tokens,
        event.event_time.ToMicroseconds(),
        ledger.is_idle_event(event),
    )


def compare(books: Mapping[BookValue, Read]) -> list[Difference]:
    """Returns the requests on which the books differ, oldest first. What was not read whole lacks nothing."""
    found = []
    for request_id in {request_id for book in books.values() for request_id in book.facts}:
        difference = _compared(request_id, books)
        if difference.missing or difference.different:
            found.append(difference)
    return sorted(found, key=lambda difference: (difference.fact.time, difference.request_id))


def _compared(request_id: str, books: Mapping[BookValue, Read]) -> Difference:
    said = {book: books[book].facts[request_id] for book in ORDER if request_id in books[book].facts}
    reference = next(iter(said.values()))
    wanted = [pb.BOOK_BUS, pb.BOOK_LOG, *([] if reference.is_idle else [pb.BOOK_LEDGER])]
    missing = tuple(book for book in sorted(wanted) if book not in said and not books[book].problem)
    different = tuple(sorted(book for book, fact in said.items() if not fact.is_like(reference)))
    booked = said.get(pb.BOOK_LEDGER)
    error = 0
    if booked is not None or pb.BOOK_LEDGER in missing:
        error = abs((booked.cost_nano_usd if booked else 0) - reference.cost_nano_usd)
    return Difference(request_id, reference, missing, different, error)


def outcome(books: Iterable[Read], differences: Sequence[Difference]) -> pb.ReconcileOutcome.ValueType:
    """Returns what it comes to: never green while a book could not be read whole."""
    if differences:
        return pb.RECONCILE_OUTCOME_DRIFT
    is_whole = not any(book.problem for book in books)
    return pb.RECONCILE_OUTCOME_GREEN if is_whole else pb.RECONCILE_OUTCOME_UNKNOWN


def report(book: BookValue, read: Read) -> pb.BookReport:
    """Returns the sums of a book."""
    sums = [sum(counts) for counts in zip(*(fact.tokens for fact in read.facts.values()), strict=True)]
    return pb.BookReport(
        book=book,
        problem=read.problem,
        request_count=len(read.facts),
        tokens=Tokens(**dict(zip(KINDS, sums, strict=False))),
        cost_nano_usd=sum(fact.cost_nano_usd for fact in read.facts.values()),
    )
