"""The ledger in a real PostgreSQL: booked once, in two columns, for ever."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import pytest

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing.account_store import AccountStore
from lurus_billing.store import DATA_ERRORS, LedgerStore
from lurus_common.consumer import ParkedEvent
from lurus_common.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound
from lurus_common.ids import new_id

pytestmark = pytest.mark.anyio
Make = Callable[..., UsageEvent]


def top_up(account_id: str, amount: int, transaction_id: str = "") -> pb.CreateTransactionRequest:
    return pb.CreateTransactionRequest(
        transaction_id=transaction_id or new_id("tx"),
        account_id=account_id,
        kind=pb.TRANSACTION_KIND_TOP_UP,
        amount_nano_usd=amount,
    )


async def balance(pool: asyncpg.Pool, account_id: str) -> int:
    query = "SELECT balance_nano_usd FROM billing.ledger_account WHERE ledger_account_id = $1"
    return int(await pool.fetchval(query, account_id))


async def listed(store: LedgerStore, account_id: str, **fields: object) -> list[pb.Transaction]:
    request = pb.ListTransactionsRequest(account_id=account_id, **fields)
    return list((await store.transactions(request)).transactions)


def refusal(make_event: Make, payer: str, **fields: object) -> UsageEvent:
    event = make_event(payer, 0, terminal=usage_pb2.TERMINAL_REFUSED, token_source=0, price_id="", **fields)
    event.ClearField("tokens")
    return event


async def conflicts(pool: asyncpg.Pool, request_id: str) -> int:
    query = "SELECT count(*) FROM billing.dead_letter WHERE cause = 'conflict' AND request_id = $1"
    return int(await pool.fetchval(query, request_id))


class TestSettle:
    @pytest.mark.row("F38")
    async def test_the_same_event_five_times_debits_once(
        self, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str, make_event: Make
    ) -> None:
        event = make_event(account_id, 60)
        await ledger_store.move(top_up(account_id, 100))
        await ledger_store.settle([event, event])
        for _ in range(3):
            assert (await ledger_store.settle([event])).count == 0
        assert await balance(pool, account_id) == 40
        assert [entry.amount_nano_usd for entry in await listed(ledger_store, account_id)] == [-60, 100]

    async def test_a_settlement_is_never_refused(
        self, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str, make_event: Make
    ) -> None:
        settled = await ledger_store.settle([make_event(account_id, 70)])
        assert (settled.count, settled.overdraft_count, settled.cost_nano_usd) == (1, 1, 70)
        assert await balance(pool, account_id) == -70

    async def test_below_zero_within_the_credit_limit_is_no_overdraft(
        self, ledger_store: LedgerStore, accounts: AccountStore, make_event: Make
    ) -> None:
        account = await accounts.create(pb.Account(account_id=new_id("acct"), credit_limit_nano_usd=50))
        within = await ledger_store.settle([make_event(account.account_id, 50)])
        beyond = await ledger_store.settle([make_event(account.account_id, 1)])
        assert (within.overdraft_count, beyond.overdraft_count) == (0, 1)

    @pytest.mark.row("F39")
    async def test_the_same_id_with_another_content_is_an_alarm_and_the_first_wins(
        self, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str, make_event: Make
    ) -> None:
        first = make_event(account_id, 10)
        other = make_event(account_id, 99, request_id=first.request_id)
        await ledger_store.settle([first])
        assert (await ledger_store.settle([other])).conflict_count == 1
        assert (await ledger_store.settle([other])).conflict_count == 0  # the redelivery is the same one
        assert await balance(pool, account_id) == -10
        assert await conflicts(pool, first.request_id) == 1

    @pytest.mark.row("F39")
    async def test_a_conflict_within_a_batch_and_on_another_account_is_found(
        self, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str, make_event: Make
    ) -> None:
        first = make_event(account_id, 10)
        other = make_event("acct_other", 99, request_id=first.request_id)
        settled = await ledger_store.settle([first, other])
        assert (settled.count, settled.conflict_count) == (1, 1)
        assert await balance(pool, "acct_other") == 0

    async def test_a_conflict_is_told_in_the_log(
        self,
        ledger_store: LedgerStore,
        account_id: str,
        make_event: Make,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        first = make_event(account_id, 10)
        await ledger_store.settle([first])
        await ledger_store.settle([first])
        assert not caplog.records
        await ledger_store.settle([make_event(account_id, 99, request_id=first.request_id)])
        (record,) = caplog.records
        assert (record.levelname, first.request_id in record.getMessage()) == ("ERROR", True)

    async def test_refused_requests_write_no_row_and_no_account(
        self, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str, make_event: Make
    ) -> None:
        idle = [refusal(make_event, payer) for payer in (account_id, account_id, "acct_idle")]
        settled = await ledger_store.settle(idle)
        assert (settled.count, settled.repeat_count, settled.conflict_count) == (0, 0, 0)
        assert await listed(ledger_store, account_id) == []
        assert (
            await pool.fetchval(
                "SELECT count(*) FROM billing.usage_event WHERE request_id = ANY($1)",
                [event.request_id for event in idle],
            )
            == 0
        )
        query = "SELECT count(*) FROM billing.account WHERE account_id = 'acct_idle'"
        assert await pool.fetchval(query) == 0

    @pytest.mark.parametrize(
        "fields",
        [
            {"cost_nano_usd": 1},
            {"is_unpriced": True},
            {"terminal": usage_pb2.TERMINAL_UPSTREAM_ERROR},
            {"terminal": usage_pb2.TERMINAL_UNSPECIFIED},
            {"tokens": 1},
        ],
    )
    async def test_whatever_else_costs_nothing_has_its_row(
        self, ledger_store: LedgerStore, account_id: str, make_event: Make, fields: dict[str, Any]
    ) -> None:
        event = refusal(make_event, account_id)
        event.tokens.reasoning = fields.pop("tokens", 0)
        for name, value in fields.items():
            setattr(event, name, value)
        assert (await ledger_store.settle([event])).count == 1
        assert len(await listed(ledger_store, account_id)) == 1

    @pytest.mark.parametrize("is_first", [True, False])
    async def test_a_refusal_never_takes_the_place_of_a_charge_with_its_id(
        self, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str, make_event: Make, is_first: bool
    ) -> None:
        charge = make_event(account_id, 10)
        idle = refusal(make_event, account_id, request_id=charge.request_id)
        settled = await ledger_store.settle([idle, charge] if is_first else [charge, idle])
        assert (settled.count, settled.conflict_count) == (1, 1)
        assert await balance(pool, account_id) == -10
        assert (await ledger_store.settle([idle])).count == 0

    async def test_requests_that_cost_nothing_or_have_no_price_have_their_row(
        self, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        events = [make_event(account_id, 0), make_event(account_id, 0, is_unpriced=True, price_id="")]
        settled = await ledger_store.settle(events)
        newest, oldest = await listed(ledger_store, account_id)
        assert settled.unpriced_count == 1
        assert (newest.is_unpriced, newest.price_id, newest.amount_nano_usd) == (True, "", 0)
        assert (oldest.is_unpriced, oldest.price_id, oldest.tokens.output) == (False, "price_1", 20)

    async def test_usage_of_an_account_that_does_not_exist_is_kept_as_debt(
        self, ledger_store: LedgerStore, accounts: AccountStore, pool: asyncpg.Pool, make_event: Make
    ) -> None:
        unknown = new_id("acct")
        await ledger_store.settle([make_event(unknown, 5)])
        assert (await accounts.find(unknown)).is_closed
        adopted = await accounts.create(pb.Account(account_id=unknown, display_name="found"))
        assert (adopted.is_closed, adopted.display_name) == (False, "found")
        assert await balance(pool, unknown) == -5

    @pytest.mark.parametrize(
        "fields",
        [
            {"model": "a\0b"},
            {"account_id": "house:usage"},
            {"account_id": "acct_a\n"},
            {"cost_nano_usd": 2**63 - 1},
            {"cost_nano_usd": -1},
            {"token_source": 70_000},
        ],
    )
    async def test_an_event_that_no_row_can_hold_is_refused_as_data(
        self, ledger_store: LedgerStore, account_id: str, make_event: Make, fields: dict[str, object]
    ) -> None:
        with pytest.raises(DATA_ERRORS):
            await ledger_store.settle([make_event(account_id, 1), make_event(account_id, 1, **fields)])
        assert await listed(ledger_store, account_id) == []

    @pytest.mark.row("F37")
    async def test_consumers_at_once_in_any_order_book_once_and_never_deadlock(
        self, ledger_store: LedgerStore, pool: asyncpg.Pool, make_event: Make
    ) -> None:
        names = [new_id("acct") for _ in range(10)]
        events = [make_event(names[number % 10], 1) for number in range(300)]
        batches = [random.Random(seed).sample(events, 150) for seed in range(12)]
        settled = await asyncio.gather(*(ledger_store.settle(batch) for batch in [*batches, events]))
        assert sum(one.count for one in settled) == 300
        assert [await balance(pool, name) for name in names] == [-30] * 10

    async def test_a_batch_costs_far_less_than_its_events_one_by_one(
        self, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        async def seconds(batches: Sequence[Sequence[UsageEvent]]) -> float:
            begin = time.perf_counter()
            for batch in batches:
                await ledger_store.settle(batch)
            return time.perf_counter() - begin

        ratios = []
        for _ in range(3):
            events = [make_event(account_id, 7) for _ in range(200)]
            alone = await seconds([[make_event(account_id, 7)] for _ in range(20)])
            ratios.append(alone / 20 / (await seconds([events]) / 200))
        print("by single events", ratios)
        assert max(ratios) > 3, ratios


class TestLedgerInTheDatabase:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE billing.transfer SET amount_nano_usd = 0",
            "DELETE FROM billing.transfer",
            "TRUNCATE billing.transfer",
            "DELETE FROM billing.ledger_account",
            "UPDATE billing.ledger_account SET balance_nano_usd = balance_nano_usd + 1",
            "INSERT INTO billing.ledger_account (ledger_account_id, balance_nano_usd) VALUES ('acct_x', 1)",
        ],
    )
    async def test_it_cannot_be_changed_or_unbalanced(
        self, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str, make_event: Make, statement: str
    ) -> None:
        await ledger_store.settle([make_event(account_id, 1)])
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await pool.execute(statement)


class TestMove:
    async def test_the_same_transaction_again_changes_nothing(
        self, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str
    ) -> None:
        request = top_up(account_id, 100)
        first = await ledger_store.move(request)
        assert await ledger_store.move(request) == first
        assert (first.amount_nano_usd, first.balance_after_nano_usd) == (100, 100)
        assert await balance(pool, account_id) == 100

    async def test_the_same_id_with_another_content_is_refused(
        self, ledger_store: LedgerStore, account_id: str
    ) -> None:
        request = top_up(account_id, 100)
        await ledger_store.move(request)
        with pytest.raises(AlreadyExists):
            await ledger_store.move(top_up(account_id, 101, request.transaction_id))

    async def test_one_id_at_once_on_accounts_with_nothing_in_common_books_once(
        self, ledger_store: LedgerStore, accounts: AccountStore, pool: asyncpg.Pool
    ) -> None:
        names = [(await accounts.create(pb.Account(account_id=new_id("acct")))).account_id for _ in range(6)]
        requests = [top_up(name, 5, "tx_race_" + new_id("x")[:1] + names[0][-8:]) for name in names]
        for request in requests[::2]:
            request.kind = pb.TRANSACTION_KIND_ADJUSTMENT
        answers = await asyncio.gather(*map(ledger_store.move, requests), return_exceptions=True)
        assert sum(isinstance(answer, pb.Transaction) for answer in answers) == 1
        assert sum(isinstance(answer, AlreadyExists) for answer in answers) == 5
        assert sum([await balance(pool, name) for name in names]) == 5

    async def test_an_unknown_account_is_not_found(self, ledger_store: LedgerStore) -> None:
        with pytest.raises(NotFound):
            await ledger_store.move(top_up("acct_nobody", 1))

    async def test_a_balance_that_fits_no_column_is_refused(
        self, ledger_store: LedgerStore, account_id: str
    ) -> None:
        request = top_up(account_id, 10**18)
        request.kind = pb.TRANSACTION_KIND_ADJUSTMENT
        done = 0
        with pytest.raises(FailedPrecondition):
            for number in range(10):
                request.transaction_id = f"tx_{account_id}_{number}"
                await ledger_store.move(request)
                done += 1
        assert done == 9


class TestTransactions:
    async def test_pages_are_newest_first_and_stable_for_equal_times(
        self, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        await ledger_store.settle([make_event(account_id, cost) for cost in (1, 2, 3, 4, 5)])
        request = pb.ListTransactionsRequest(account_id=account_id, page_size=2)
        seen = []
        while True:
            page = await ledger_store.transactions(request)
            seen += [(entry.amount_nano_usd, entry.balance_after_nano_usd) for entry in page.transactions]
            await ledger_store.settle([make_event(account_id, 100)])  # a newcomer moves no page
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert seen == [(-5, -15), (-4, -10), (-3, -6), (-2, -3), (-1, -1)]

    async def test_filters_by_kind_and_id(
        self, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        event = make_event(account_id, 1)
        await ledger_store.settle([event, make_event(account_id, 2)])
        await ledger_store.move(top_up(account_id, 9))
        kind = pb.TRANSACTION_KIND_TOP_UP
        assert [entry.amount_nano_usd for entry in await listed(ledger_store, account_id, kind=kind)] == [9]
        found = await listed(ledger_store, account_id, transaction_id=event.request_id)
        assert [entry.amount_nano_usd for entry in found] == [-1]

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"account_id": "acct_nobody"}, NotFound),
            ({"page_size": -1}, InvalidRequest),
            ({"page_token": "nonsense"}, InvalidRequest),
        ],
    )
    async def test_bad_requests(
        self, ledger_store: LedgerStore, account_id: str, fields: dict[str, object], error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            await ledger_store.transactions(
                pb.ListTransactionsRequest(**{"account_id": account_id, **fields})
            )


class TestPark:
    async def test_a_parked_event_is_kept_once_with_whatever_text(
        self, ledger_store: LedgerStore, pool: asyncpg.Pool
    ) -> None:
        parked = ParkedEvent(7, "lurus.v1.usage.acct\0", b"\xff\0", "why\0 \udcff")
        await ledger_store.park(parked)
        await ledger_store.park(parked)
        await ledger_store.park(ParkedEvent(7, "after the bus was lost", b"other", "why"))
        query = "SELECT subject, payload FROM billing.dead_letter WHERE cause = 'parked' ORDER BY 1"
        rows = [tuple(row) for row in await pool.fetch(query)]
        assert rows == [("after the bus was lost", b"other"), ("lurus.v1.usage.acct\\0", b"\xff\0")]
