"""Admission without a round trip: reservations against money that billing has lent.

Per account the worker holds one lease at a time. A request reserves what that
key and model have cost of late; when it ends, what it really cost is spent.
Overshoot is bounded: a worker never admits a request whose reservation the
lease does not cover, so an account can exceed its balance by at most what the
requests in flight cost beyond their reservations.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from prometheus_client import Counter

from lurus.billing.v1 import billing_pb2
from lurus_common.errors import AccountingUnavailable, BalanceTooLow, DependencyUnavailable, QuotaExceeded

log = logging.getLogger(__name__)

MAX_LEARNED = 50_000
# A cheaper request lowers the learned cost slowly, a dearer one raises it at once.
DECAY_SHIFT = 4
RENEW_BELOW = 0.5
RENEW_EARLY_SECONDS = 10.0
REFUSAL_SECONDS = 1.0
OUTAGE_SECONDS = 1.0
# After its end a lease still serves this long while billing does not answer.
GRACE_SECONDS = 30.0
MIN_RESERVATION_NANO_USD = 1

RENEWED = Counter(
    "lurus_lease_renewals", "Leases that billing was asked for, by what came of it.", ["outcome"]
)

AskLease = Callable[[billing_pb2.LeaseQuotaRequest], Awaitable[billing_pb2.LeaseQuotaResponse]]


@dataclass(slots=True)
class Reservation:
    """Money set aside for one request."""

    account_id: str
    lease_id: str
    amount_nano_usd: int
    cost_key: tuple[str, str]


@dataclass(slots=True)
class _Account:
    """What this worker holds of one account."""

    lease_id: str = ""
    remaining: int = 0
    spent: int = 0
    reserved: int = 0
    expires: float = 0.0
    refused: "Exception | None" = None
    refused_until: float = 0.0
    outage_until: float = 0.0
    renewing: "asyncio.Task[None] | None" = None

    def covers(self, amount: int, now: float) -> bool:
        return bool(self.lease_id) and now < self.expires and self.remaining >= amount


class Leases:
    """The leases of one worker.

    Args:
        ask: calls `LeaseQuota`; raises DependencyUnavailable if billing is away.
        worker_id: who spends.
        amount_nano_usd: what to ask for at a time.
        clock: seconds, monotonic.
    """

    def __init__(
        self, ask: AskLease, worker_id: str, amount_nano_usd: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._worker_id = worker_id
        self._amount = amount_nano_usd
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._learned: OrderedDict[tuple[str, str], int] = OrderedDict()

    async def reserve(
        self, account_id: str, policy: int, cost_key: tuple[str, str], estimate: int
    ) -> Reservation:
        """Sets money aside, from memory if the lease covers it.

        Args:
            account_id: who pays.
            policy: what to do when billing cannot be asked.
            cost_key: key id and model, whose learned cost is reserved.
            estimate: nano-USD, used until a cost was learned.

        Raises:
            BalanceTooLow, QuotaExceeded: billing lends no more.
            AccountingUnavailable: billing cannot be asked and the policy forbids to go on.
        """
        account = self._accounts.setdefault(account_id, _Account())
        wanted = self._learned.get(cost_key, estimate)
        amount = max(min(wanted, self._amount), MIN_RESERVATION_NANO_USD)
        now = self._clock()
        if not account.covers(amount, now):
            await self._make_cover(account_id, account, policy, amount)
        elif account.remaining < self._amount * RENEW_BELOW or account.expires - now < RENEW_EARLY_SECONDS:
            self._renew_in_background(account_id, account)
        account.remaining -= amount
        account.reserved += amount
        return Reservation(account_id, account.lease_id, amount, cost_key)

    def settle(self, reservation: Reservation, cost: int) -> None:
        """Spends what a request really cost and frees the rest. Learns from it."""
        self._free(reservation, cost)
        learned = self._learned.get(reservation.cost_key, 0)
        self._learned[reservation.cost_key] = max(cost, learned - ((learned - cost) >> DECAY_SHIFT))
        self._learned.move_to_end(reservation.cost_key)
        if len(self._learned) > MAX_LEARNED:
            self._learned.popitem(last=False)

    async def hand_back(self) -> None:
        """Returns what is left of every lease, so that it need not expire first. For a stop in order."""
        for account_id, account in self._accounts.items():
            if account.lease_id:
                request = billing_pb2.LeaseQuotaRequest(
                    account_id=account_id,
                    worker_id=self._worker_id,
                    previous_lease_id=account.lease_id,
                    previous_spent_nano_usd=max(account.spent + account.reserved, 0),
                )
                try:
                    await self._ask(request)
                except DependencyUnavailable:
                    return

    def release(self, reservation: Reservation) -> None:
        """Frees a reservation whose request used nothing."""
        self._free(reservation, 0)

    def _free(self, reservation: Reservation, cost: int) -> None:
        account = self._accounts[reservation.account_id]
        if reservation.lease_id != account.lease_id:
            return  # that lease was handed back, this reservation declared as spent
        account.reserved -= reservation.amount_nano_usd
        account.remaining += reservation.amount_nano_usd - cost
        account.spent += cost

    async def _make_cover(self, account_id: str, account: _Account, policy: int, amount: int) -> None:
        """Renews until the lease covers `amount`, or decides what happens without."""
        now = self._clock()
        if account.refused and now < account.refused_until and not account.covers(amount, now):
            raise account.refused
        if now >= account.outage_until:
            self._renew_in_background(account_id, account)
            if account.renewing:
                await asyncio.shield(account.renewing)
        now = self._clock()
        if account.covers(amount, now):
            return
        if now < account.outage_until:
            self._go_on_without(account, policy, amount, now)
            return
        raise account.refused or BalanceTooLow(
            "the balance does not cover this request", account_id=account_id, required_nano_usd=amount
        )

    def _go_on_without(self, account: _Account, policy: int, amount: int, now: float) -> None:
        if policy == billing_pb2.OFFLINE_POLICY_OPEN:
            return
        in_grace = bool(account.lease_id) and now < account.expires + GRACE_SECONDS
        if policy != billing_pb2.OFFLINE_POLICY_CLOSED and in_grace and account.remaining >= amount:
            return
        raise AccountingUnavailable("the balance cannot be checked now", retry_after_seconds=5)

    def _renew_in_background(self, account_id: str, account: _Account) -> None:
        if account.renewing is None and self._clock() >= account.outage_until:
            account.renewing = asyncio.create_task(self._renew(account_id, account))

    async def _renew(self, account_id: str, account: _Account) -> None:
        request = billing_pb2.LeaseQuotaRequest(
            account_id=account_id,
            worker_id=self._worker_id,
            amount_nano_usd=self._amount,
            previous_lease_id=account.lease_id,
            # What is reserved will be settled under the old lease: it counts as spent.
            previous_spent_nano_usd=max(account.spent + account.reserved, 0),
        )
        before = account.spent + account.reserved
        try:
            lease = await self._ask(request)
        except DependencyUnavailable:
            account.outage_until = self._clock() + OUTAGE_SECONDS
            RENEWED.labels("away").inc()
        except Exception:
            log.exception("a lease could not be renewed")
            account.outage_until = self._clock() + OUTAGE_SECONDS
            RENEWED.labels("failed").inc()
        else:
            # Requests admitted while billing was asked took from the old lease; they
            # are paid from the new one, since billing has closed the old.
            late = max(account.spent + account.reserved - before, 0)
            self._take(account_id, account, lease, late)
        finally:
            account.renewing = None

    def _take(
        self, account_id: str, account: _Account, lease: billing_pb2.LeaseQuotaResponse, late: int
    ) -> None:
        now = self._clock()
        account.lease_id = lease.lease_id
        account.remaining = lease.amount_nano_usd - late
        account.spent, account.reserved = late, 0
        account.expires = now + lease.lifetime_milliseconds / 1000
        account.refused = None
        if lease.refusal_reason:
            account.refused = _refusal(account_id, lease)
            account.refused_until = now + REFUSAL_SECONDS
        RENEWED.labels("refused" if lease.refusal_reason else "granted").inc()


def _refusal(account_id: str, lease: billing_pb2.LeaseQuotaResponse) -> Exception:
    if lease.refusal_reason == "QUOTA_EXCEEDED":
        reset = lease.reset_time.ToJsonString() if lease.HasField("reset_time") else None
        when = f"; it resets at {reset}" if reset else ""
        message = f"the quota of this account is used up{when}; ask its operator to raise it"
        return QuotaExceeded(message, account_id=account_id, reset_time=reset)
    return BalanceTooLow("the balance of this account is used up; top it up to go on", account_id=account_id)
