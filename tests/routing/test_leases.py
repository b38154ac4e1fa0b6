"""The leases of one worker against a bank that keeps the contract of billing's leases."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lurus.billing.v1 import billing_pb2
from lurus_common.errors import AccountingUnavailable, BalanceTooLow, DependencyUnavailable
from lurus_routing import leases as module
from lurus_routing.leases import Leases, Reservation

pytestmark = pytest.mark.anyio

KEY = ("key_1", "m")
OPEN = billing_pb2.OFFLINE_POLICY_OPEN


class Bank:
    """Lends a balance; may be away, and may answer late."""

    def __init__(self, balance: int) -> None:
        self.balance = balance
        self.held: dict[str, int] = {}
        self.is_away = False
        self.is_slow = False
        self.waiting: list[asyncio.Event] = []
        self.ask_count = 0
        self.lifetime_milliseconds = 60_000
        # What was left of a lease when it was returned: until the answer comes, it is still lent from.
        self.returned_rest = 0

    async def ask(self, request: billing_pb2.LeaseQuotaRequest) -> billing_pb2.LeaseQuotaResponse:
        self.ask_count += 1
        if self.is_away:
            raise DependencyUnavailable("billing is away")
        answer = self.lend(request)
        if self.is_slow:
            self.waiting.append(asyncio.Event())
            await self.waiting[-1].wait()
        return answer

    def lend(self, request: billing_pb2.LeaseQuotaRequest) -> billing_pb2.LeaseQuotaResponse:
        if request.previous_lease_id in self.held:
            held = self.held.pop(request.previous_lease_id)
            self.balance -= request.previous_spent_nano_usd
            self.returned_rest = max(0, held - request.previous_spent_nano_usd)
        amount = max(0, min(request.amount_nano_usd, self.balance - sum(self.held.values())))
        if not amount:
            return billing_pb2.LeaseQuotaResponse(refusal_reason="BALANCE_TOO_LOW")
        lease_id = f"lease_{self.ask_count}"
        self.held[lease_id] = amount
        return billing_pb2.LeaseQuotaResponse(
            lease_id=lease_id, amount_nano_usd=amount, lifetime_milliseconds=self.lifetime_milliseconds
        )


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(balance: int, lease: int = 100) -> tuple[Leases, Bank, Clock]:
    bank, clock = Bank(balance), Clock()
    return Leases(bank.ask, "worker", lease, 30.0, clock=clock), bank, clock


class TestReserve:
    async def test_what_is_not_used_is_free_again(self) -> None:
        leases, bank, _ = make(1000)
        for _ in range(50):
            leases.release(await leases.reserve("a", 0, KEY, 40))
        assert bank.ask_count == 1

    async def test_the_learned_cost_is_reserved(self) -> None:
        leases, _, _ = make(1000)
        leases.settle(await leases.reserve("a", 0, KEY, 40), 7)
        assert (await leases.reserve("a", 0, KEY, 40)).amount_nano_usd == 7
        assert (await leases.reserve("a", 0, ("key_2", "m"), 40)).amount_nano_usd == 40

    async def test_a_dear_request_counts_at_once_and_fades(self) -> None:
        leases, _, _ = make(10**6, lease=10**4)
        for cost in (10, 1000):
            leases.settle(await leases.reserve("a", 0, KEY, 1), cost)
        amounts = []
        for _ in range(80):
            reservation = await leases.reserve("a", 0, KEY, 1)
            amounts.append(reservation.amount_nano_usd)
            leases.settle(reservation, 10)
        assert amounts[0] == 1000
        assert amounts == sorted(amounts, reverse=True)
        assert amounts[-1] < 50

    async def test_a_lease_lives_from_when_it_was_asked_for(self) -> None:
        leases, bank, clock = make(1000)
        bank.is_slow = True
        reserving = asyncio.create_task(leases.reserve("a", 0, KEY, 10))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        clock.now += 59.5
        bank.waiting[0].set()
        await reserving
        bank.is_slow = False
        clock.now += 1
        await leases.reserve("a", 0, KEY, 10)
        assert bank.ask_count == 2

    async def test_it_is_renewed_early_without_a_wait(self) -> None:
        leases, bank, clock = make(1000)
        await leases.reserve("a", 0, KEY, 10)
        clock.now += 55
        await leases.reserve("a", 0, KEY, 10)
        assert bank.ask_count == 1  # asked beside, not before
        await asyncio.sleep(0.01)
        assert bank.ask_count == 2

    async def test_those_admitted_meanwhile_are_paid_from_the_next_lease(self) -> None:
        leases, bank, _ = make(1000)
        first = await leases.reserve("a", 0, KEY, 60)
        bank.is_slow = True
        second = await leases.reserve("a", 0, KEY, 30)  # low: starts the renewal
        await asyncio.sleep(0.01)
        third = await leases.reserve("a", 0, KEY, 5)
        assert third.lease_id == second.lease_id == first.lease_id
        leases.settle(second, 29)
        bank.waiting[0].set()
        await asyncio.sleep(0.01)
        account = leases._accounts["a"]
        assert third.lease_id == account.lease_id != first.lease_id
        assert (account.spent, account.reserved) == (29, 5)
        assert bank.balance == 1000 - 60
        leases.settle(first, 60)
        leases.settle(third, 4)
        assert (account.spent, account.reserved) == (33, 0)

    async def test_a_small_balance_does_not_ask_all_the_time(self) -> None:
        leases, bank, _ = make(20)
        for _ in range(30):
            leases.release(await leases.reserve("a", 0, KEY, 15))
            await asyncio.sleep(0)
        assert bank.ask_count <= 2

    async def test_who_leaves_while_it_is_asked_takes_nothing(self) -> None:
        leases, bank, _ = make(1000)
        bank.is_slow = True
        waiting = [asyncio.create_task(leases.reserve("a", 0, KEY, 10)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in waiting[:2]:
            task.cancel()
        bank.waiting[0].set()
        await asyncio.wait(waiting)
        assert leases._accounts["a"].reserved == 10

    async def test_accounts_that_are_idle_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_ACCOUNTS", 10)
        leases, _, _ = make(10**6)
        kept = await leases.reserve("kept", 0, KEY, 10)
        for number in range(50):
            leases.release(await leases.reserve(f"a{number}", 0, KEY, 10))
            await leases.reserve("kept", 0, KEY, 10)
        assert len(leases._accounts) <= 11
        leases.settle(kept, 10)

    async def test_a_defect_of_billing_is_an_outage(self) -> None:
        leases, bank, _ = make(1000)

        async def broken(_: Any) -> Any:
            raise ValueError("a bug")

        leases._ask = broken
        with pytest.raises(AccountingUnavailable):
            await leases.reserve("a", 0, KEY, 10)
        assert (await leases.reserve("a", OPEN, KEY, 10)).amount_nano_usd == 10
        assert bank.ask_count == 0


class LeaseMachine(RuleBasedStateMachine):
    """Any interleaving of requests, renewals, answers, outages and time."""

    BALANCE = 1000

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bank, self.clock = Bank(self.BALANCE), Clock()
        self.leases = Leases(self.bank.ask, "worker", 100, 30.0, clock=self.clock)
        self.live: list[Reservation] = []
        self.pending: list[asyncio.Task[Reservation]] = []
        # What requests cost, and by how much they went beyond what they had reserved.
        self.cost = 0
        self.excess = 0

    def run(self) -> None:
        async def settle_down() -> None:
            for _ in range(12):
                await asyncio.sleep(0)

        self.loop.run_until_complete(settle_down())
        done = [task for task in self.pending if task.done()]
        self.pending = [task for task in self.pending if not task.done()]
        for task in done:
            if task.cancelled() or isinstance(task.exception(), BalanceTooLow | AccountingUnavailable):
                continue
            self.live.append(task.result())

    @rule(estimate=st.integers(0, 150), key=st.sampled_from(["k1", "k2"]))
    def request(self, estimate: int, key: str) -> None:
        coroutine = self.leases.reserve("a", 0, (key, "m"), estimate)
        self.pending.append(self.loop.create_task(coroutine))
        self.run()

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.pending)).cancel()
        self.run()

    @precondition(lambda self: self.live)
    @rule(data=st.data(), more=st.sampled_from([0, 0, 0, 30]))
    def finish(self, data: st.DataObject, more: int) -> None:
        reservation = data.draw(st.sampled_from(self.live))
        self.live.remove(reservation)
        cost = data.draw(st.integers(0, reservation.amount_nano_usd)) + more
        self.leases.settle(reservation, cost)
        self.cost += cost
        self.excess += max(0, cost - reservation.amount_nano_usd)
        self.run()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        reservation = data.draw(st.sampled_from(self.live))
        self.live.remove(reservation)
        self.leases.release(reservation)
        self.run()

    @rule(is_slow=st.booleans())
    def change_pace(self, is_slow: bool) -> None:
        self.bank.is_slow = is_slow

    @precondition(lambda self: self.bank.waiting)
    @rule()
    def answer(self) -> None:
        self.bank.waiting.pop(0).set()
        self.run()

    @rule(seconds=st.sampled_from([0.2, 1.1, 11.0]))
    def wait(self, seconds: float) -> None:
        # Leases do not run out here: what billing lends anew of an expired one is its own business.
        self.clock.now += seconds if self.clock.now < 1040 else 0.001

    @invariant()
    def no_more_is_admitted_than_was_lent(self) -> None:
        account = self.leases._accounts.get("a")
        if account is None:
            return
        # While a lease is being replaced, and for those admitted then if the next is
        # refused, the rest of the returned one counts too: never more than was left of it.
        slack = self.bank.returned_rest
        assert account.remaining >= -self.excess - slack
        reserved = sum(reservation.amount_nano_usd for reservation in self.live)
        assert self.cost + reserved <= self.BALANCE + self.excess + slack * max(1, self.bank.ask_count)

    @invariant()
    def the_account_is_in_order(self) -> None:
        account = self.leases._accounts.get("a")
        if account is None:
            return
        of_this_lease = [one for one in self.live if one.lease_id == account.lease_id]
        assert account.reserved == sum(one.amount_nano_usd for one in of_this_lease)
        assert account.spent >= 0

    def teardown(self) -> None:
        self.bank.is_slow = False
        for event in self.bank.waiting:
            event.set()
        for task in self.pending:
            task.cancel()
        try:
            self.run()
            for reservation in self.live:
                self.leases.release(reservation)
            account = self.leases._accounts.get("a")
            assert account is None or account.reserved == 0
            self.loop.run_until_complete(asyncio.sleep(0))
        finally:
            self.loop.close()


class InTimeMachine(LeaseMachine):
    """With a billing that answers at once, nothing is ever admitted beyond the balance."""

    @rule()
    def change_pace(self) -> None:
        self.bank.is_slow = False

    @invariant()
    def no_more_is_admitted_than_was_lent(self) -> None:
        reserved = sum(reservation.amount_nano_usd for reservation in self.live)
        assert self.cost + reserved <= self.BALANCE + self.excess


MACHINE = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
LeaseMachine.TestCase.settings = MACHINE
InTimeMachine.TestCase.settings = MACHINE
TestLeaseMachine = LeaseMachine.TestCase
TestInTimeMachine = InTimeMachine.TestCase
