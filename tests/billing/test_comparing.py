"""What books say of the same requests, compared without stores."""

from collections.abc import Callable

import pytest

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus_billing import comparing
from lurus_billing.comparing import BookValue, Fact, Read, fact_of

BOOKS = (pb.BOOK_OUTBOX, pb.BOOK_BUS, pb.BOOK_LEDGER, pb.BOOK_LOG)
FACT = Fact("acct_a", 70, (1, 2, 0, 0, 0, 0, 3, 0), 1_000)
DEARER = Fact("acct_a", 75, FACT.tokens, 1_000)
REFUSED = Fact("acct_a", 0, (0,) * 8, 2_000, is_idle=True)

Spoil = Callable[[dict[BookValue, Read]], object]


def sound() -> dict[BookValue, Read]:
    """Two charged requests that all have, and a refused one that is not in the ledger."""
    books = {book: Read({"req_a": FACT, "req_b": FACT, "req_refused": REFUSED}) for book in BOOKS}
    del books[pb.BOOK_LEDGER].facts["req_refused"]
    return books


def test_sound_books_are_green() -> None:
    books = sound()
    assert comparing.compare(books) == []
    assert comparing.outcome(books.values(), []) == pb.RECONCILE_OUTCOME_GREEN


def test_an_outbox_may_have_forgotten() -> None:
    books = sound()
    books[pb.BOOK_OUTBOX].facts.clear()
    assert comparing.compare(books) == []


CASES: list[tuple[Spoil, list[BookValue], list[BookValue], int]] = [
    (lambda books: books[pb.BOOK_LEDGER].facts.pop("req_a"), [pb.BOOK_LEDGER], [], 70),
    (lambda books: books[pb.BOOK_LOG].facts.pop("req_a"), [pb.BOOK_LOG], [], 0),
    (lambda books: books[pb.BOOK_BUS].facts.pop("req_a"), [pb.BOOK_BUS], [], 0),
    (lambda books: books[pb.BOOK_LEDGER].facts.update(req_a=DEARER), [], [pb.BOOK_LEDGER], 5),
    (lambda books: books[pb.BOOK_LOG].facts.update(req_a=DEARER), [], [pb.BOOK_LOG], 0),
    (lambda books: books[pb.BOOK_LOG].facts.pop("req_refused"), [pb.BOOK_LOG], [], 0),
]


@pytest.mark.parametrize(("spoil", "missing", "different", "error"), CASES, ids=range(len(CASES)))
def test_what_is_wrong_is_a_drift(
    spoil: Spoil, missing: list[BookValue], different: list[BookValue], error: int
) -> None:
    books = sound()
    spoil(books)
    [found] = comparing.compare(books)
    assert (list(found.missing), list(found.different)) == (missing, different)
    assert found.ledger_error_nano_usd == error
    assert comparing.outcome(books.values(), [found]) == pb.RECONCILE_OUTCOME_DRIFT


@pytest.mark.parametrize("book", BOOKS)
def test_what_could_not_be_read_lacks_nothing_and_is_never_green(book: BookValue) -> None:
    books = sound()
    books[book] = Read(problem="it is away")
    assert comparing.compare(books) == []
    assert comparing.outcome(books.values(), []) == pb.RECONCILE_OUTCOME_UNKNOWN


def test_only_what_costs_nothing_and_was_refused_is_not_in_the_ledger() -> None:
    refused = usage_pb2.UsageEvent(account_id="acct_a", terminal=usage_pb2.TERMINAL_REFUSED)
    assert fact_of(refused).is_idle
    refused.cost_nano_usd = 1
    assert not fact_of(refused).is_idle


def test_sums() -> None:
    found = comparing.report(pb.BOOK_LOG, sound()[pb.BOOK_LOG])
    assert (found.request_count, found.cost_nano_usd) == (3, 140)
    assert (found.tokens.input, found.tokens.cache_read, found.tokens.output) == (2, 4, 6)
    assert not comparing.report(pb.BOOK_LOG, Read()).tokens.ListFields()
