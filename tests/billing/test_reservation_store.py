"""Reservations in a real PostgreSQL: set aside once, charged once, never refused at the end."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.billing.bank import HOUR, LEASE, ask, rich

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing import reservation_store, sweeper
from lurus_billing.account_store import AccountStore
from lurus_billing.budget_store import BudgetStore
from lurus_billing.dead_letters import DeadLetterStore
from lurus_billing.reservation_store import ReservationStore
from lurus_billing.store import LedgerStore
from lurus_common.errors import (
    BalanceTooLow,
    Conflict,
    DependencyUnavailable,
    FailedPrecondition,
    NotFound,
    QuotaExceeded,
)
from lurus_common.ids import new_id

pytestmark = pytest.mark.anyio
Make = Callable[..., UsageEvent]
OPEN, SETTLED = pb.RESERVATION_STATE_OPEN, pb.RESERVATION_STATE_SETTLED
RELEASED, EXPIRED = pb.RESERVATION_STATE_RELEASED, pb.RESERVATION_STATE_EXPIRED


@pytest.fixture
def store(pool: asyncpg.Pool) -> ReservationStore:
    return ReservationStore(pool)


@pytest.fixture
def budgets(pool: asyncpg.Pool) -> BudgetStore:
    return BudgetStore(pool, LEASE, HOUR)


@pytest.fixture
async def payer(ledger_store: LedgerStore, account_id: str) -> str:
    """An account with 1000."""
    await rich(ledger_store, account_id, 1000)
    return account_id


def wanted(
    account_id: str, amount: int, reservation_id: str = "", seconds: float = 0.0
) -> pb.CreateReservationRequest:
    request = pb.CreateReservationRequest(
        reservation_id=reservation_id or new_id("rsv"), account_id=account_id, amount_nano_usd=amount
    )
    if seconds:
        request.lifetime_duration.CopyFrom(Duration(nanos=round(seconds * 10**9)))
    return request


def charge(request: pb.CreateReservationRequest, amount: int) -> pb.SettleReservationRequest:
    return pb.SettleReservationRequest(reservation_id=request.reservation_id, amount_nano_usd=amount)


async def standing(budgets: BudgetStore, account_id: str) -> tuple[int, int, int]:
    found = await budgets.balance(account_id)
    return found.balance_nano_usd, found.reserved_nano_usd, found.available_nano_usd


async def entries(store: LedgerStore, account_id: str) -> list[int]:
    found = await store.transactions(pb.ListTransactionsRequest(account_id=account_id))
    return [entry.amount_nano_usd for entry in found.transactions]


class TestReserve:
    async def test_what_is_set_aside_is_nobody_elses(
        self, store: ReservationStore, budgets: BudgetStore, payer: str
    ) -> None:
        assert (await store.reserve(wanted(payer, 600))).state == OPEN
        assert await standing(budgets, payer) == (1000, 600, 400)
        with pytest.raises(BalanceTooLow) as refused:
            await store.reserve(wanted(payer, 401))
        assert refused.value.metadata["available_nano_usd"] == "400"
        assert (await budgets.lend(ask(payer, 300))).amount_nano_usd == 300
        assert (await budgets.lend(ask(payer, 300))).amount_nano_usd == 100
        with pytest.raises(BalanceTooLow):
            await store.reserve(wanted(payer, 1))
        assert (await store.reserve(wanted(payer, 0))).state == OPEN

    async def test_the_same_one_again_changes_nothing_and_says_what_became_of_it(
        self, store: ReservationStore, budgets: BudgetStore, payer: str
    ) -> None:
        request = wanted(payer, 600)
        first = await store.reserve(request)
        assert await store.reserve(request) == first
        assert await standing(budgets, payer) == (1000, 600, 400)
        await store.settle(charge(request, 1000))
        again = await store.reserve(request)  # although there is no money for it any more
        assert (again.state, again.expire_time) == (SETTLED, first.expire_time)
        assert await standing(budgets, payer) == (0, 0, 0)

    @pytest.mark.parametrize("change", ["amount", "account", "lifetime"])
    async def test_the_same_id_with_another_content_is_a_conflict(
        self,
        store: ReservationStore,
        budgets: BudgetStore,
        accounts: AccountStore,
        ledger_store: LedgerStore,
        payer: str,
        change: str,
    ) -> None:
        request = wanted(payer, 600)
        await store.reserve(request)
        other = await accounts.create(pb.Account(account_id=new_id("acct"), credit_limit_nano_usd=1000))
        if change == "amount":
            request.amount_nano_usd = 10
        elif change == "account":
            request.account_id = other.account_id
        else:
            request.lifetime_duration.CopyFrom(Duration(seconds=60))
        with pytest.raises(Conflict):
            await store.reserve(request)
        assert await standing(budgets, payer) == (1000, 600, 400)
        assert await standing(budgets, other.account_id) == (0, 0, 1000)

    @pytest.mark.row("F41")
    async def test_200_at_once_on_money_for_10_get_money_for_10(
        self, store: ReservationStore, budgets: BudgetStore, payer: str
    ) -> None:
        requests = [wanted(payer, 100) for _ in range(200)]
        answers = await asyncio.gather(*map(store.reserve, requests), return_exceptions=True)
        granted = [one for one in answers if isinstance(one, pb.CreateReservationResponse)]
        others = {type(one) for one in answers if not isinstance(one, pb.CreateReservationResponse)}
        assert others <= {BalanceTooLow, DependencyUnavailable}
        assert len(granted) == 10
        assert await standing(budgets, payer) == (1000, 1000, 0)

    async def test_one_id_at_once_is_one_reservation_also_on_accounts_with_nothing_in_common(
        self, store: ReservationStore, pool: asyncpg.Pool, accounts: AccountStore
    ) -> None:
        names = [new_id("acct") for _ in range(6)]
        for name in names:
            await accounts.create(pb.Account(account_id=name, credit_limit_nano_usd=100))
        reservation_id = new_id("rsv")
        requests = [wanted(name, 5, reservation_id) for name in names for _ in range(3)]
        answers = await asyncio.gather(*map(store.reserve, requests), return_exceptions=True)
        assert sum(isinstance(answer, pb.CreateReservationResponse) for answer in answers) == 3
        assert sum(isinstance(answer, Conflict) for answer in answers) == 15
        query = "SELECT count(*) FROM billing.reservation WHERE reservation_id = $1"
        assert await pool.fetchval(query, reservation_id) == 1

    async def test_a_quota_refuses_with_its_reset_and_counts_what_is_set_aside(
        self, store: ReservationStore, budgets: BudgetStore, payer: str
    ) -> None:
        await budgets.set_quota(payer, pb.Quota(daily_limit_nano_usd=50, total_limit_nano_usd=900))
        await store.reserve(wanted(payer, 30))
        quota = await budgets.quota(payer)
        assert (quota.daily_left_nano_usd, quota.total_left_nano_usd) == (20, 870)
        assert not quota.HasField("monthly_left_nano_usd")
        with pytest.raises(QuotaExceeded) as refused:
            await store.reserve(wanted(payer, 21))
        reset = datetime.fromisoformat(refused.value.metadata["reset_time"])
        assert reset.timestamp() == quota.daily_reset_time.seconds
        await budgets.set_quota(payer, pb.Quota(total_limit_nano_usd=50))
        with pytest.raises(QuotaExceeded) as refused:
            await store.reserve(wanted(payer, 21))
        assert "reset_time" not in refused.value.metadata
        assert (await store.reserve(wanted(payer, 20))).state == OPEN

    async def test_closed_and_unknown_accounts_reserve_nothing(
        self, store: ReservationStore, accounts: AccountStore, payer: str
    ) -> None:
        with pytest.raises(NotFound):
            await store.reserve(wanted("acct_nobody", 0))
        await accounts.update(pb.Account(account_id=payer, is_closed=True), ["is_closed"])
        with pytest.raises(FailedPrecondition):
            await store.reserve(wanted(payer, 1))


class TestSettle:
    @pytest.mark.parametrize("amount", [0, 1, 599, 600])
    async def test_it_charges_what_it_cost_and_frees_the_rest(
        self, store: ReservationStore, budgets: BudgetStore, payer: str, amount: int
    ) -> None:
        request = wanted(payer, 600)
        await store.reserve(request)
        booked, is_overdraft = await store.settle(charge(request, amount))
        assert (booked.transaction_id, booked.account_id) == (request.reservation_id, payer)
        assert (booked.kind, booked.amount_nano_usd) == (pb.TRANSACTION_KIND_USAGE, -amount)
        assert (booked.balance_after_nano_usd, is_overdraft) == (1000 - amount, False)
        assert not booked.HasField("tokens")
        assert await standing(budgets, payer) == (1000 - amount, 0, 1000 - amount)
        assert (await budgets.quota(payer)).daily_used_nano_usd == amount

    @pytest.mark.parametrize("end", ["open", "expired", "swept", "released", "closed", "capped"])
    @pytest.mark.row("F40")
    async def test_it_is_never_refused_or_clipped(
        self,
        store: ReservationStore,
        budgets: BudgetStore,
        accounts: AccountStore,
        pool: asyncpg.Pool,
        ledger_store: LedgerStore,
        payer: str,
        end: str,
    ) -> None:
        request = wanted(payer, 600, seconds=0.001 if end in ("expired", "swept") else 0.0)
        await store.reserve(request)
        await asyncio.sleep(0.01)
        if end == "swept":
            await sweeper.sweep(store, DeadLetterStore(pool))
        elif end == "released":
            await store.release(request.reservation_id)
        elif end == "closed":
            await accounts.update(pb.Account(account_id=payer, is_closed=True), ["is_closed"])
        elif end == "capped":
            await budgets.set_quota(payer, pb.Quota(total_limit_nano_usd=1))
        booked, is_overdraft = await store.settle(charge(request, 1700))
        assert (booked.amount_nano_usd, booked.balance_after_nano_usd) == (-1700, -700)
        assert is_overdraft
        assert await entries(ledger_store, payer) == [-1700, 1000]
        assert await standing(budgets, payer) == (-700, 0, 0)

    async def test_again_it_charges_once_and_another_amount_is_a_conflict(
        self, store: ReservationStore, ledger_store: LedgerStore, payer: str
    ) -> None:
        request = wanted(payer, 600)
        await store.reserve(request)
        answers = await asyncio.gather(*(store.settle(charge(request, 70)) for _ in range(20)))
        assert {booked.SerializeToString() for booked, _ in answers} == {answers[0][0].SerializeToString()}
        with pytest.raises(Conflict) as refused:
            await store.settle(charge(request, 71))
        assert refused.value.metadata["settled_nano_usd"] == "70"
        assert await entries(ledger_store, payer) == [-70, 1000]

    async def test_two_amounts_at_once_charge_one_of_them(
        self, store: ReservationStore, ledger_store: LedgerStore, payer: str
    ) -> None:
        request = wanted(payer, 600)
        await store.reserve(request)
        calls = [store.settle(charge(request, amount)) for amount in (10, 20) * 8]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(answer, Conflict) for answer in answers) == 8
        assert len(await entries(ledger_store, payer)) == 2

    async def test_an_unknown_reservation_has_nobody_to_charge(self, store: ReservationStore) -> None:
        with pytest.raises(NotFound):
            await store.settle(pb.SettleReservationRequest(reservation_id="rsv_nobody", amount_nano_usd=1))


class TestRelease:
    async def test_it_frees_the_money_and_again_changes_nothing(
        self, store: ReservationStore, budgets: BudgetStore, payer: str
    ) -> None:
        request = wanted(payer, 600)
        await store.reserve(request)
        for _ in range(2):
            await store.release(request.reservation_id)
        assert await standing(budgets, payer) == (1000, 0, 1000)
        assert (await store.reserve(request)).state == RELEASED

    async def test_what_is_settled_cannot_be_released(
        self, store: ReservationStore, budgets: BudgetStore, payer: str
    ) -> None:
        request = wanted(payer, 600)
        await store.reserve(request)
        await store.settle(charge(request, 70))
        with pytest.raises(FailedPrecondition):
            await store.release(request.reservation_id)
        assert await standing(budgets, payer) == (930, 0, 930)
        with pytest.raises(NotFound):
            await store.release("rsv_nobody")


class TestExpiry:
    @pytest.mark.row("F35", "F40")
    async def test_it_goes_by_the_clock_of_the_database(
        self, store: ReservationStore, pool: asyncpg.Pool, payer: str
    ) -> None:
        async def clock() -> datetime:
            return await pool.fetchval("SELECT clock_timestamp()")

        before = await clock()
        requests = [wanted(payer, 1), wanted(payer, 1, seconds=0.5)]
        default, short = [await store.reserve(request) for request in requests]
        after = await clock()
        await store.release(requests[1].reservation_id)  # or it would run out during a later test
        lifetimes = [(default, reservation_store.DEFAULT_LIFETIME), (short, timedelta(seconds=0.5))]
        for answer, lifetime in lifetimes:
            expire_time = answer.expire_time.ToDatetime(tzinfo=before.tzinfo)
            assert before + lifetime <= expire_time <= after + lifetime

    async def test_money_is_free_when_the_time_is_over_swept_or_not(
        self, store: ReservationStore, budgets: BudgetStore, payer: str
    ) -> None:
        request = wanted(payer, 1000, seconds=0.3)
        await store.reserve(request)
        assert await standing(budgets, payer) == (1000, 1000, 0)
        with pytest.raises(BalanceTooLow):
            await store.reserve(wanted(payer, 1))
        await asyncio.sleep(0.35)
        assert await standing(budgets, payer) == (1000, 0, 1000)
        assert (await store.reserve(request)).state == EXPIRED
        assert (await store.reserve(wanted(payer, 1000))).state == OPEN

    async def test_sweepers_at_once_mark_each_reservation_once_and_only_what_is_over(
        self, store: ReservationStore, pool: asyncpg.Pool, payer: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reservation_store, "EXPIRED_AT_ONCE", 7)
        monkeypatch.setattr(sweeper, "EXPIRED_AT_ONCE", 7)
        await sweeper.sweep(store, DeadLetterStore(pool))
        short = [wanted(payer, 10, seconds=0.001) for _ in range(40)]
        for request in [*short, wanted(payer, 10)]:
            await store.reserve(request)
        await asyncio.sleep(0.01)
        letters = DeadLetterStore(pool)
        counts = await asyncio.gather(*(sweeper.sweep(store, letters) for _ in range(3)))
        counts.append(await sweeper.sweep(store, letters))
        query = "SELECT state, count(*) FROM billing.reservation WHERE account_id = $1 GROUP BY 1"
        assert sum(counts) == 40
        assert {row[0]: row[1] for row in await pool.fetch(query, payer)} == {OPEN: 1, EXPIRED: 40}

    @pytest.mark.row("F40")
    async def test_settling_at_the_moment_of_the_sweep_charges_once(
        self, store: ReservationStore, pool: asyncpg.Pool, ledger_store: LedgerStore, payer: str
    ) -> None:
        requests = [wanted(payer, 10, seconds=0.001) for _ in range(30)]
        for request in requests:
            await store.reserve(request)
        settling = [store.settle(charge(request, 7)) for request in requests]
        sweeping = [sweeper.sweep(store, DeadLetterStore(pool)) for _ in range(5)]
        await asyncio.gather(*settling, *sweeping)
        assert await entries(ledger_store, payer) == [-7] * 30 + [1000]
        query = "SELECT DISTINCT state FROM billing.reservation WHERE account_id = $1"
        assert [row[0] for row in await pool.fetch(query, payer)] == [SETTLED]
