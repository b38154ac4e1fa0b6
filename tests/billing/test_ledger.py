"""The rules of the ledger."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing import ledger
from lurus_billing.ledger import Entry, EventRefused, Standing

Make = Callable[..., UsageEvent]
KINDS = [
    pb.TRANSACTION_KIND_USAGE,
    pb.TRANSACTION_KIND_TOP_UP,
    pb.TRANSACTION_KIND_REFUND,
    pb.TRANSACTION_KIND_ADJUSTMENT,
]


def entry(transaction_id: str, body: str = "a", amount: int = -1, account_id: str = "acct_a") -> Entry:
    return Entry(transaction_id, account_id, pb.TRANSACTION_KIND_USAGE, amount, body.ljust(32).encode())


class TestSort:
    def test_the_first_with_an_id_wins(self) -> None:
        batch = [entry("1"), entry("2"), entry("1"), entry("2", "b"), entry("3"), entry("4")]
        known = {"3": b"a".ljust(32), "4": b"z".ljust(32)}
        sorting = ledger.sort(batch, known)
        assert [one.transaction_id for one in sorting.fresh] == ["1", "2"]
        assert [one.transaction_id for one in sorting.repeats] == ["1", "3"]
        assert [one.transaction_id for one in sorting.conflicts] == ["2", "4"]


class TestBook:
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(KINDS), st.integers(-(10**18), 10**18), st.sampled_from(["acct_a", "acct_b"])
            )
        )
    )
    def test_every_batch_leaves_the_sum_as_it_was(self, movements: list[tuple[int, int, str]]) -> None:
        entries = [
            Entry(str(number), account, kind, amount, bytes(32))  # type: ignore[arg-type]
            for number, (kind, amount, account) in enumerate(movements)
        ]
        standings = {name: Standing() for name in ledger.ledger_accounts(entries)}
        try:
            postings = ledger.book(entries, standings)
            changes = ledger.changes(postings, standings)
        except OverflowError:
            return
        assert sum(change.balance_nano_usd for change in changes.values()) == 0
        for name in {"acct_a", "acct_b"} & changes.keys():
            own = [posting for posting in postings if posting.entry.account_id == name]
            assert own[-1].balance_after_nano_usd == changes[name].balance_nano_usd
            assert [posting.sequence for posting in own] == list(range(1, changes[name].count + 1))
            assert all(posting.amount_nano_usd >= 0 for posting in own)

    def test_a_balance_that_fits_no_column_is_an_error(self) -> None:
        standings = {"acct_a": Standing(-(2**63)), "house:usage": Standing()}
        with pytest.raises(OverflowError):
            ledger.book([entry("1")], standings)

    def test_a_house_account_that_is_full_is_an_error(self) -> None:
        standings = {"acct_a": Standing(), "house:usage": Standing(2**63 - 1)}
        with pytest.raises(OverflowError):
            ledger.changes(ledger.book([entry("1")], standings), standings)

    @pytest.mark.parametrize("amount", [1.0, True, "1"])
    def test_only_whole_numbers_are_booked(self, amount: object) -> None:
        with pytest.raises(TypeError):
            ledger.book([entry("1", amount=amount)], {"acct_a": Standing()})  # type: ignore[arg-type]


class TestUsage:
    def test_an_impossible_time_is_refused(self, make_event: Make) -> None:
        event = make_event("acct_a", 1)
        event.event_time.seconds = 10**15
        with pytest.raises(EventRefused):
            ledger.usage_entry(event)

    def test_late_usage_counts_when_it_was_and_early_usage_now(self, make_event: Make) -> None:
        now = datetime(2026, 1, 1, 12, 20, tzinfo=UTC)
        times = [datetime(2025, 12, 31, 23, 59, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)]
        events = [make_event("acct_a", 5, event_time=time) for time in times]
        entries = [ledger.usage_entry(event) for event in events]
        standings = {name: Standing() for name in ledger.ledger_accounts(entries)}
        buckets = ledger.usage_buckets(ledger.book(entries, standings), now)
        starts = [datetime.fromtimestamp(seconds, UTC) for _, seconds in buckets]
        assert starts == [
            datetime(2025, 12, 31, 23, 45, tzinfo=UTC),
            datetime(2026, 1, 1, 12, 15, tzinfo=UTC),
        ]
