"""Ledger, leases and reservations together, against a small model: hypothesis chooses what happens."""

from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from tests.billing.bank import LEASE, Bank, ask, rich

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import BalanceTooLow, Conflict, FailedPrecondition, QuotaExceeded
from lurus_common.ids import new_id

CREDIT = 50
ACTIONS = {
    "charge": 6,
    "lend": 4,
    "reserve": 6,
    "settle": 5,
    "release": 2,
    "expire_reservation": 2,
    "expire_lease": 1,
    "sweep": 1,
    "repeat_event": 2,
    "change_event": 1,
    "refuse": 1,
    "repeat_reservation": 2,
    "change_reservation": 1,
    "top_up": 2,
    "limit": 1,
}


@dataclass
class _Lease:
    granted: int
    settled: int = 0
    declared: int | None = None
    is_over: bool = False

    @property
    def held(self) -> int:
        claimed = self.granted if self.declared is None else self.declared
        return 0 if self.is_over else max(0, claimed - self.settled)


@dataclass
class _Reservation:
    amount: int
    state: int = pb.RESERVATION_STATE_OPEN
    settled: int | None = None

    @property
    def held(self) -> int:
        return self.amount if self.state == pb.RESERVATION_STATE_OPEN else 0


class MoneyMachine(RuleBasedStateMachine):
    """One account, one worker, many reservations; events that repeat, change, and are refused."""

    bank: Bank

    def __init__(self) -> None:
        super().__init__()
        self.name = new_id("acct")
        account = pb.Account(account_id=self.name, credit_limit_nano_usd=CREDIT)
        self.bank.run(self.bank.accounts.create(account))
        self.money = self.used = self.cap = 0
        # What was charged of leases and reservations after their end, and beyond what they held.
        self.late = self.excess = 0
        self.leases: dict[str, _Lease] = {}
        self.reservations: dict[str, _Reservation] = {}
        self.events: list[usage_pb2.UsageEvent] = []
        self.lease_id = ""
        self.top_up(400)

    # One rule, since hypothesis leaves out whole rules at random, and some of these need others.
    @rule(
        action=st.sampled_from([name for name, weight in ACTIONS.items() for _ in range(weight)]),
        number=st.sampled_from([0, 1, 10, 40, 100, 400]),
        which=st.integers(0, 5),
    )
    def act(self, action: str, number: int, which: int) -> None:
        if action == "expire_lease":
            self.expire_lease(which)
        elif action in (
            "settle",
            "release",
            "expire_reservation",
            "repeat_reservation",
            "change_reservation",
        ):
            if self.reservations:
                names = list(self.reservations)
                getattr(self, action)(names[-1 - which % len(names)], number)
        elif action in ("repeat_event", "change_event"):
            if self.events:
                getattr(self, action)(self.events[-1 - which % len(self.events)])
        else:
            getattr(self, action)(number)

    def held(self) -> int:
        return sum(one.held for one in (*self.leases.values(), *self.reservations.values()))

    def covered(self) -> int:
        return max(0, self.money + CREDIT - self.used - self.held())

    def available(self) -> int:
        left = max(0, self.cap - self.used - self.held()) if self.cap else self.covered()
        return min(self.covered(), left)

    def top_up(self, number: int) -> None:
        self.bank.run(rich(self.bank.ledger, self.name, number + 1))
        self.money += number + 1

    def limit(self, number: int) -> None:
        self.cap = 3 * number
        quota = pb.Quota(total_limit_nano_usd=self.cap)
        self.bank.run(self.bank.budgets.set_quota(self.name, quota))

    def settled(self, *events: usage_pb2.UsageEvent) -> tuple[int, int, int]:
        done = self.bank.run(self.bank.ledger.settle(events))
        return done.count, done.repeat_count, done.conflict_count

    def charge(self, number: int) -> None:
        event = self.bank.make_event(self.name, number, lease_id=self.lease_id)
        assert self.settled(event, event) == (1, 1, 0)
        self.events.append(event)
        self.used += number
        lease = self.leases.get(self.lease_id)
        before = lease.held if lease else 0
        if lease:
            lease.settled += number
        freed = before - (lease.held if lease else 0)
        if lease and lease.is_over:
            self.late += number
        else:
            self.excess += number - freed

    def repeat_event(self, event: usage_pb2.UsageEvent) -> None:
        assert self.settled(event) == (0, 1, 0)

    def change_event(self, event: usage_pb2.UsageEvent) -> None:
        other = usage_pb2.UsageEvent()
        other.CopyFrom(event)
        other.cost_nano_usd += 1
        other.model = new_id("model")  # each change is a letter of its own
        assert self.settled(other, event) == (0, 1, 1)

    def refuse(self, number: int) -> None:
        event = self.bank.make_event(self.name, terminal=usage_pb2.TERMINAL_REFUSED, price_id="")
        event.ClearField("tokens")
        assert self.settled(event) == (0, 0, 0)

    def lend(self, number: int) -> None:
        """Returns the worker's lease with what it says it spent, and asks for another."""
        old = self.leases.get(self.lease_id)
        spent = old.settled + number // 10 if old else 0
        answer = self.bank.run(self.bank.budgets.lend(ask(self.name, number, self.lease_id, spent)))
        if old:
            before = old.held
            old.declared = spent if old.declared is None else max(old.declared, spent)
            # A lease that is returned after its end is kept track of for one more lease time.
            old.is_over = False
            self.excess += max(0, old.held - before)
        available = self.available()
        assert answer.amount_nano_usd == min(number, LEASE, available)
        if number and not available:
            expected = "QUOTA_EXCEEDED" if self.covered() else "BALANCE_TOO_LOW"
            assert answer.refusal_reason == expected
        self.lease_id = answer.lease_id
        if answer.lease_id:
            self.leases[answer.lease_id] = _Lease(answer.amount_nano_usd)

    def expire_lease(self, which: int) -> None:
        if not self.leases:
            return
        names = list(self.leases)
        lease_id = names[-1 - which % len(names)]
        query = "UPDATE billing.lease SET expire_time = clock_timestamp() WHERE lease_id = $1"
        self.bank.run(self.bank.pool.execute(query, lease_id))
        self.leases[lease_id].is_over = True

    def reserve(self, number: int) -> None:
        request = self.wanted(new_id("rsv"), number)
        try:
            self.bank.run(self.bank.reservations.reserve(request))
        except BalanceTooLow:
            assert number > self.covered()
        except QuotaExceeded:
            assert self.available() < number <= self.covered()
        else:
            assert number <= self.available()
            self.reservations[request.reservation_id] = _Reservation(number)

    def wanted(self, reservation_id: str, amount: int) -> pb.CreateReservationRequest:
        return pb.CreateReservationRequest(
            reservation_id=reservation_id, account_id=self.name, amount_nano_usd=amount
        )

    def repeat_reservation(self, reservation_id: str, _: int) -> None:
        kept = self.reservations[reservation_id]
        answer = self.bank.run(self.bank.reservations.reserve(self.wanted(reservation_id, kept.amount)))
        assert answer.state == kept.state

    def change_reservation(self, reservation_id: str, _: int) -> None:
        other = self.wanted(reservation_id, self.reservations[reservation_id].amount + 1)
        try:
            self.bank.run(self.bank.reservations.reserve(other))
        except Conflict:
            return
        raise AssertionError("another content was accepted")

    def settle(self, reservation_id: str, number: int) -> None:
        kept = self.reservations[reservation_id]
        request = pb.SettleReservationRequest(reservation_id=reservation_id, amount_nano_usd=number)
        try:
            booked, _ = self.bank.run(self.bank.reservations.settle(request))
        except Conflict:
            assert kept.settled not in (None, number)
            return
        assert (booked.amount_nano_usd, kept.settled in (None, number)) == (-number, True)
        if kept.settled is None:
            self.used += number
            self.late += 0 if kept.held else number
            self.excess += max(0, number - kept.amount) if kept.held else 0
            kept.state, kept.settled = pb.RESERVATION_STATE_SETTLED, number

    def release(self, reservation_id: str, _: int) -> None:
        kept = self.reservations[reservation_id]
        try:
            self.bank.run(self.bank.reservations.release(reservation_id))
        except FailedPrecondition:
            assert kept.settled is not None
            return
        assert kept.settled is None
        if kept.state == pb.RESERVATION_STATE_OPEN:
            kept.state = pb.RESERVATION_STATE_RELEASED

    def expire_reservation(self, reservation_id: str, _: int) -> None:
        query = "UPDATE billing.reservation SET expire_time = clock_timestamp() WHERE reservation_id = $1"
        self.bank.run(self.bank.pool.execute(query, reservation_id))
        kept = self.reservations[reservation_id]
        if kept.state == pb.RESERVATION_STATE_OPEN:
            kept.state = pb.RESERVATION_STATE_EXPIRED
            # Marked at once, so that a later release finds it as the model has it.
            self.sweep(0)

    def sweep(self, _: int) -> None:
        self.bank.run(self.bank.reservations.expire())

    @invariant()
    def every_number_is_the_models(self) -> None:
        found = self.bank.run(self.bank.budgets.balance(self.name))
        leased = sum(lease.held for lease in self.leases.values())
        assert found.balance_nano_usd == self.money - self.used
        assert found.leased_nano_usd == leased
        assert found.reserved_nano_usd == self.held() - leased
        assert found.available_nano_usd == self.available()
        spendable = self.money - found.balance_nano_usd + found.leased_nano_usd + found.reserved_nano_usd
        assert spendable <= self.money + CREDIT + self.late + self.excess

    def teardown(self) -> None:
        quota = self.bank.run(self.bank.budgets.quota(self.name))
        assert quota.total_used_nano_usd == quota.daily_used_nano_usd == self.used


def test_the_stores_agree_with_the_model(bank: Bank) -> None:
    machine = type("BoundMoneyMachine", (MoneyMachine,), {"bank": bank})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
