"""Balances, quotas and leases in a real PostgreSQL."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tests.billing.bank import HOUR, LEASE, Bank, ask, rich

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing.account_store import AccountStore
from lurus_billing.budget_store import BudgetStore
from lurus_billing.store import LedgerStore
from lurus_common.errors import DependencyUnavailable, FailedPrecondition, InvalidRequest, NotFound
from lurus_common.ids import new_id

pytestmark = pytest.mark.anyio
Make = Callable[..., UsageEvent]


@pytest.fixture
def budgets(pool: asyncpg.Pool) -> BudgetStore:
    return BudgetStore(pool, LEASE, HOUR)


async def standing(budgets: BudgetStore, account_id: str) -> tuple[int, int, int]:
    found = await budgets.balance(account_id)
    return found.balance_nano_usd, found.leased_nano_usd, found.available_nano_usd


class TestLend:
    async def test_it_lends_until_nothing_is_left(
        self, budgets: BudgetStore, ledger_store: LedgerStore, account_id: str
    ) -> None:
        await rich(ledger_store, account_id, 700)
        granted = [await budgets.lend(ask(account_id, 1000)) for _ in range(4)]
        assert [one.amount_nano_usd for one in granted] == [300, 300, 100, 0]
        assert (granted[3].lease_id, granted[3].refusal_reason) == ("", "BALANCE_TOO_LOW")
        assert granted[0].lifetime_milliseconds == HOUR * 1000
        assert granted[0].lease_id.startswith("lease_")
        assert await standing(budgets, account_id) == (700, 700, 0)

    @pytest.mark.row("F41")
    async def test_200_at_once_on_money_for_10_get_money_for_10(
        self, budgets: BudgetStore, ledger_store: LedgerStore, account_id: str
    ) -> None:
        await rich(ledger_store, account_id, 10 * LEASE)
        answers = await asyncio.gather(
            *(budgets.lend(ask(account_id)) for _ in range(200)), return_exceptions=True
        )
        granted = [one for one in answers if isinstance(one, pb.LeaseQuotaResponse)]
        others = {type(one) for one in answers if not isinstance(one, pb.LeaseQuotaResponse)}
        assert others <= {DependencyUnavailable}  # on a slow machine some wait too long for a connection
        assert sum(one.amount_nano_usd for one in granted) == 10 * LEASE
        assert sum(bool(one.lease_id) for one in granted) == 10

    async def test_what_is_settled_of_a_lease_is_outstanding_no_more(
        self, budgets: BudgetStore, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        await rich(ledger_store, account_id, 1000)
        lease = await budgets.lend(ask(account_id))
        await ledger_store.settle([make_event(account_id, 120, lease_id=lease.lease_id)])
        assert await standing(budgets, account_id) == (880, 180, 700)

    async def test_another_account_cannot_settle_or_return_a_lease(
        self, budgets: BudgetStore, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        await rich(ledger_store, account_id, 1000)
        lease = await budgets.lend(ask(account_id))
        await ledger_store.settle([make_event("acct_thief", 120, lease_id=lease.lease_id)])
        with pytest.raises(InvalidRequest):
            await budgets.lend(ask("acct_thief", previous=lease.lease_id))
        assert await standing(budgets, account_id) == (1000, 300, 700)

    async def test_a_returned_lease_holds_back_what_is_on_its_way(
        self, budgets: BudgetStore, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        await rich(ledger_store, account_id, 300)
        first = await budgets.lend(ask(account_id))
        second = await budgets.lend(ask(account_id, previous=first.lease_id, spent=90))
        assert second.amount_nano_usd == 210
        again = await budgets.lend(ask(account_id, previous=first.lease_id, spent=90))
        assert again.amount_nano_usd == 0  # the second one's money stays with the second
        await ledger_store.settle([make_event(account_id, 90, lease_id=first.lease_id)])
        assert await standing(budgets, account_id) == (210, 210, 0)

    async def test_an_expired_lease_holds_back_nothing(
        self, budgets: BudgetStore, ledger_store: LedgerStore, account_id: str, pool: asyncpg.Pool
    ) -> None:
        await rich(ledger_store, account_id, 300)
        short = BudgetStore(pool, LEASE, 0.2)
        await short.lend(ask(account_id))
        assert (await short.lend(ask(account_id))).refusal_reason == "BALANCE_TOO_LOW"
        await asyncio.sleep(0.25)
        assert (await short.lend(ask(account_id))).amount_nano_usd == 300

    async def test_asking_for_nothing_only_returns(
        self, budgets: BudgetStore, ledger_store: LedgerStore, account_id: str
    ) -> None:
        await rich(ledger_store, account_id, 300)
        lease = await budgets.lend(ask(account_id))
        answer = await budgets.lend(ask(account_id, 0, lease.lease_id))
        assert answer == pb.LeaseQuotaResponse()
        assert await standing(budgets, account_id) == (300, 0, 300)

    async def test_an_unknown_previous_lease_is_nothing_to_return(
        self, budgets: BudgetStore, ledger_store: LedgerStore, account_id: str
    ) -> None:
        await rich(ledger_store, account_id, 300)
        assert (await budgets.lend(ask(account_id, previous="lease_long_ago"))).amount_nano_usd == 300

    async def test_closed_and_unknown_accounts_are_lent_nothing(
        self, budgets: BudgetStore, accounts: AccountStore, account_id: str
    ) -> None:
        await accounts.update(pb.Account(account_id=account_id, is_closed=True), ["is_closed"])
        with pytest.raises(FailedPrecondition):
            await budgets.lend(ask(account_id))
        with pytest.raises(NotFound):
            await budgets.lend(ask("acct_nobody"))


class TestQuota:
    async def test_a_day_that_is_used_up_is_refused_until_it_ends(
        self,
        budgets: BudgetStore,
        ledger_store: LedgerStore,
        accounts: AccountStore,
        make_event: Make,
    ) -> None:
        zone = "Asia/Shanghai"
        account = await accounts.create(pb.Account(account_id=new_id("acct"), time_zone=zone))
        name = account.account_id
        await rich(ledger_store, name, 10_000)
        await budgets.set_quota(name, pb.Quota(daily_limit_nano_usd=500, monthly_limit_nano_usd=9_000))
        yesterday = datetime.now(UTC) - timedelta(days=1)
        await ledger_store.settle([make_event(name, 400), make_event(name, 77, event_time=yesterday)])
        lease = await budgets.lend(ask(name))
        assert lease.amount_nano_usd == 100
        refusal = await budgets.lend(ask(name))
        quota = await budgets.quota(name)
        assert refusal.refusal_reason == "QUOTA_EXCEEDED"
        assert refusal.reset_time == quota.daily_reset_time
        assert quota.daily_reset_time.ToDatetime().hour == 16  # midnight in Shanghai
        assert (quota.daily_used_nano_usd, quota.total_used_nano_usd) == (400, 477)
        assert (await standing(budgets, name))[2] == 0

    async def test_a_total_never_resets_and_zero_lifts_it(
        self, budgets: BudgetStore, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        await rich(ledger_store, account_id, 10_000)
        await budgets.set_quota(account_id, pb.Quota(total_limit_nano_usd=50))
        await ledger_store.settle([make_event(account_id, 60)])
        refusal = await budgets.lend(ask(account_id))
        assert (refusal.refusal_reason, refusal.HasField("reset_time")) == ("QUOTA_EXCEEDED", False)
        await budgets.set_quota(account_id, pb.Quota())
        assert (await budgets.lend(ask(account_id))).amount_nano_usd == 300

    async def test_unknown_accounts_are_not_found(self, budgets: BudgetStore) -> None:
        for call in (budgets.balance, budgets.quota, lambda name: budgets.set_quota(name, pb.Quota())):
            with pytest.raises(NotFound):
                await call("acct_nobody")


class _Lent:
    """A lease as its worker and the test know it."""

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.spent = 0
        self.settled = 0
        self.late = 0
        self.is_usable = True


class LeaseMachine(RuleBasedStateMachine):
    """Three workers share an account, with answers that get lost, late settlements and expiry."""

    bank: Bank

    def __init__(self) -> None:
        super().__init__()
        self.name = new_id("acct")
        self.bank.run(self.bank.accounts.create(pb.Account(account_id=self.name, credit_limit_nano_usd=50)))
        self.money = 50
        self.top_up(500)
        self.leases: dict[str, _Lent] = {}
        self.current = ["", "", ""]
        self.in_flight: list[UsageEvent] = []

    # One rule, since hypothesis leaves out whole rules at random, and without leases nothing happens.
    @rule(
        action=st.sampled_from([*["lease", "spend", "settle"] * 4, "lose", "expire", "repeat", "top_up"]),
        worker=st.integers(0, 2),
        number=st.sampled_from([1, 10, 50, 50, 100]),
    )
    def act(self, action: str, worker: int, number: int) -> None:
        if action == "top_up":
            self.top_up(number)
        elif action in ("lease", "lose"):
            self.lease(worker, 4 * number, is_lost=action == "lose")
        elif action == "spend":
            self.spend(worker, number)
        elif action in ("settle", "repeat"):
            self.settle(1 + number // 20, is_repeated=action == "repeat")
        elif self.leases:
            self.expire(list(self.leases)[-1 - number % len(self.leases)])

    def top_up(self, amount: int) -> None:
        self.bank.run(rich(self.bank.ledger, self.name, amount))
        self.money += amount

    def lease(self, worker: int, amount: int, is_lost: bool) -> None:
        """Returns the worker's lease, which then admits nothing more, and asks for another."""
        previous = self.current[worker]
        held = self.leases.get(previous)
        if held:
            held.is_usable = False
        request = ask(self.name, amount, previous, held.spent if held else 0)
        answer = self.bank.run(self.bank.budgets.lend(request))
        if answer.lease_id:
            self.leases[answer.lease_id] = _Lent(answer.amount_nano_usd)
            self.leases[answer.lease_id].is_usable = not is_lost
        if not is_lost:
            self.current[worker] = answer.lease_id

    def spend(self, worker: int, share: int) -> None:
        lease = self.leases.get(self.current[worker])
        if lease is None or not lease.is_usable or lease.spent == lease.amount:
            return
        cost = max(1, (lease.amount - lease.spent) * share // 100)
        lease.spent += cost
        self.in_flight.append(self.bank.make_event(self.name, cost, lease_id=self.current[worker]))

    def settle(self, count: int, is_repeated: bool) -> None:
        batch, self.in_flight = self.in_flight[:count], self.in_flight[count:]
        if not batch:
            return
        for _ in range(1 + is_repeated):
            self.bank.run(self.bank.ledger.settle(batch))
        for event in batch:
            self.leases[event.lease_id].settled += event.cost_nano_usd

    def expire(self, lease_id: str) -> None:
        query = "UPDATE billing.lease SET expire_time = clock_timestamp() WHERE lease_id = $1"
        self.bank.run(self.bank.pool.execute(query, lease_id))
        lease = self.leases[lease_id]
        lease.is_usable = False
        lease.late = max(lease.late, lease.spent - lease.settled)

    @invariant()
    def no_more_can_be_spent_than_there_is_and_came_late(self) -> None:
        """Even if every worker spends all that it was lent, now."""
        leases = self.leases.values()
        spendable = sum(lease.amount if lease.is_usable else lease.spent for lease in leases)
        assert spendable <= self.money + sum(lease.late for lease in leases)

    def teardown(self) -> None:
        self.settle(len(self.in_flight), is_repeated=False)
        balance = self.bank.run(self.bank.budgets.balance(self.name)).balance_nano_usd
        assert balance == self.money - 50 - sum(lease.spent for lease in self.leases.values())


def test_overspending_stays_within_its_bound(bank: Bank) -> None:
    machine = type("BoundLeaseMachine", (LeaseMachine,), {"bank": bank})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
