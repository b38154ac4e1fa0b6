"""Admission without a round trip: reservations against money that billing has lent.

Per account the worker holds one lease at a time. A request reserves what that
key and model have cost of late; when it ends, what it really cost is spent.
A request is admitted only if the lease covers its reservation, so an account
can exceed its balance by at most what the requests in flight cost beyond their
reservations. While a lease is being replaced, requests go on being admitted
from what is left of it and are paid from the next one; should billing then
refuse, what was admitted in these milliseconds (never more than was left) is
exceeded too. Without billing, the account's policy decides.

What a lease lends is kept on disk, and what was spent of it follows from the
outbox, so a worker that starts again goes on with what is left, and so does one
that takes the place of another. They do so only while billing cannot be asked:
a lease from disk serves, after its end too, as one does that has outlived an
outage. Billing may have lent its rest anew by then, or the predecessor may still
serve from it, so per outage, worker and account what was left of one lease may be
spent beyond the balance, and no more, however long the grace is.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from prometheus_client import Counter

from lurus.billing.v1 import billing_pb2
from lurus_common.errors import AccountingUnavailable, BalanceTooLow, LurusError, QuotaExceeded

log = logging.getLogger(__name__)

MAX_LEARNED = 50_000
MAX_ACCOUNTS = 50_000
# A cheaper request lowers the learned cost slowly, a dearer one raises it at once.
DECAY_SHIFT = 4
RENEW_EARLY_SECONDS = 10.0
# How long a refusal or a partial grant is believed before billing is asked again.
REFUSAL_SECONDS = 1.0
# After billing did not answer it is asked again so often, and nobody waits for it so long.
OUTAGE_SECONDS = 1.0
AWAY_SECONDS = 10.0
MIN_RESERVATION_NANO_USD = 1
# One who waits is alone, so the second renewal covers it unless those who do not wait take that too.
MAX_RENEWALS_AWAITED = 5
HAND_BACK_SECONDS = 3.0

RENEWED = Counter(
    "lurus_lease_renewals", "Leases that billing was asked for, by what came of it.", ["outcome"]
)

# How many of the leases on disk are taken up at the start.
MAX_RESTORED = 10_000

AskLease = Callable[[billing_pb2.LeaseQuotaRequest], Awaitable[billing_pb2.LeaseQuotaResponse]]


@dataclass(slots=True, eq=False)
class Reservation:
    """Money set aside for one request."""

    account_id: str
    lease_id: str
    amount_nano_usd: int
    cost_key: tuple[str, str]


@dataclass(frozen=True, slots=True)
class KeptLease:
    """A lease on disk. Times are Unix nanoseconds; `spent_nano_usd` counts only when it is read."""

    account_id: str
    lease_id: str
    granted_nano_usd: int
    ask_time_ns: int
    expire_time_ns: int
    spent_nano_usd: int = 0


@dataclass(frozen=True, slots=True)
class KeptLeases:
    """Leases by account, and what requests have cost of late, by key id and model."""

    leases: dict[str, KeptLease]
    costs: dict[tuple[str, str], int] = field(default_factory=dict)


class LeaseStore(Protocol):
    """Where leases are kept."""

    def keep_lease(self, lease: KeptLease) -> None:
        """Keeps the lease of an account, soon."""

    def forget_lease(self, account_id: str) -> None:
        """Forgets the lease of an account, soon."""


@dataclass(slots=True, eq=False)
class _Account:
    """What this worker holds of one account. Of a lease, granted = spent + reserved + remaining."""

    account_id: str
    lease_id: str = ""
    # Whether another worker may still spend of it, and returns it: then it is not returned from here.
    is_anothers: bool = False
    granted: int = 0
    spent: int = 0
    reserved: int = 0
    expires: float = 0.0
    # Until then it serves while billing cannot be asked.
    serves_until: float = 0.0
    # Made, and spent by those that have ended, since the lease is being replaced.
    late: set[Reservation] = field(default_factory=set)
    late_spent: int = 0
    refusal: billing_pb2.LeaseQuotaResponse | None = None
    # Billing is not asked again before: it refused or gave less than asked; it did not answer.
    content_until: float = 0.0
    outage_until: float = 0.0
    away_until: float = 0.0
    renewing: "asyncio.Task[None] | None" = None
    # Those whom the lease does not cover wait in line: one renewal may cover many of them.
    line: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def remaining(self) -> int:
        return self.granted - self.spent - self.reserved

    @property
    def is_idle(self) -> bool:
        return not self.reserved and self.renewing is None and not self.line.locked()

    def covers(self, amount: int, now: float) -> bool:
        return bool(self.lease_id) and now < self.expires and self.remaining >= amount

    def has_expired(self, now: float) -> bool:
        return bool(self.lease_id) and now >= self.expires

    def is_low(self, now: float) -> bool:
        return self.remaining < self.granted // 2 or self.expires - now < RENEW_EARLY_SECONDS


class Leases:
    """The leases of one worker.

    Args:
        ask: calls `LeaseQuota`; raises LurusError if billing cannot tell.
        worker_id: who spends.
        amount_nano_usd: what to ask for at a time.
        grace_seconds: for so long after its end a lease serves while billing does not answer.
        store: keeps leases for the next start; None keeps none.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        ask: AskLease,
        worker_id: str,
        amount_nano_usd: int,
        grace_seconds: float,
        store: LeaseStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._worker_id = worker_id
        self._amount = amount_nano_usd
        self._grace_seconds = grace_seconds
        self._store = store
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._learned: OrderedDict[tuple[str, str], int] = OrderedDict()

    def restore(self, kept: KeptLeases, *, are_anothers: bool = False) -> None:
        """Takes up leases from disk, of accounts of which none is at hand.

        Billing is asked all the same before they are used.

        Args:
            kept: the leases, and what requests have cost of late.
            are_anothers: the worker that they were lent to still runs, and returns them when it can.
        """
        now, now_ns = self._clock(), time.time_ns()
        for key, cost in islice(kept.costs.items(), MAX_LEARNED):
            self._learned.setdefault(key, cost)
        for lease in islice(kept.leases.values(), MAX_RESTORED):
            account = self._account(lease.account_id)
            if account.lease_id:
                continue
            account.lease_id, account.granted = lease.lease_id, lease.granted_nano_usd
            account.spent, account.is_anothers = lease.spent_nano_usd, are_anothers
            account.expires = now
            # A clock that was set back must not lengthen its life.
            left_ns = min(lease.expire_time_ns - now_ns, lease.expire_time_ns - lease.ask_time_ns)
            account.serves_until = now + left_ns / 1e9 + self._grace_seconds

    async def reserve(
        self, account_id: str, policy: int, cost_key: tuple[str, str], estimate: int
    ) -> Reservation:
        """Sets money aside, from memory if the lease covers it.

        Args:
            account_id: who pays.
            policy: what to do when billing cannot be asked.
            cost_key: key id and model, whose learned cost is reserved.
            estimate: nano-USD, used until a cost was learned; also enough if the
                account has no more than that left, since one dear request must
                not keep the cheap ones out.

        Raises:
            BalanceTooLow, QuotaExceeded: billing lends no more.
            AccountingUnavailable: billing cannot be asked and the policy forbids to go on.
        """
        account = self._account(account_id)
        wanted = self._learned.get(cost_key, estimate)
        wanted = max(min(wanted, self._amount), MIN_RESERVATION_NANO_USD)
        now = self._clock()
        if account.covers(wanted, now):
            if account.is_low(now):
                self._renew_in_background(account)
            amount = wanted
        else:
            least = max(min(wanted, estimate), MIN_RESERVATION_NANO_USD)
            async with account.line:
                amount = await self._make_cover(account, policy, wanted, least)
        account.reserved += amount
        reservation = Reservation(account_id, account.lease_id, amount, cost_key)
        if account.renewing:
            account.late.add(reservation)
        return reservation

    def settle(self, reservation: Reservation, cost: int) -> None:
        """Spends what a request really cost and frees the rest. Learns from it."""
        self._free(reservation, cost)
        learned = self._learned.get(reservation.cost_key, 0)
        self._learned[reservation.cost_key] = max(cost, learned - ((learned - cost) >> DECAY_SHIFT))
        self._learned.move_to_end(reservation.cost_key)
        if len(self._learned) > MAX_LEARNED:
            self._learned.popitem(last=False)

    def release(self, reservation: Reservation) -> None:
        """Frees a reservation whose request used nothing."""
        self._free(reservation, 0)

    async def hand_back(self) -> None:
        """Returns what is left of every lease, so that it need not expire first. For a stop in order."""
        own = [account for account in self._accounts.values() if account.lease_id and not account.is_anothers]
        asked = [self._hand_back(account) for account in own]
        try:
            async with asyncio.timeout(HAND_BACK_SECONDS):
                await asyncio.gather(*asked)
        except TimeoutError:
            log.info("billing did not take the leases back; they expire")

    async def _hand_back(self, account: _Account) -> None:
        if account.renewing:
            await asyncio.wait([account.renewing])
        try:
            await self._ask(self._request(account, amount=0))
        except LurusError:
            return  # it stays on disk: without billing the next start needs it
        if self._store is not None:
            self._store.forget_lease(account.account_id)

    def _account(self, account_id: str) -> _Account:
        account = self._accounts.get(account_id)
        if account is None:
            account = self._accounts[account_id] = _Account(account_id)
            if len(self._accounts) > MAX_ACCOUNTS and next(iter(self._accounts.values())).is_idle:
                self._accounts.popitem(last=False)
        else:
            self._accounts.move_to_end(account_id)
        return account

    def _free(self, reservation: Reservation, cost: int) -> None:
        account = self._accounts.get(reservation.account_id)
        if account is None or reservation.lease_id != account.lease_id:
            return  # that lease was handed back, this reservation declared as spent
        account.reserved -= reservation.amount_nano_usd
        account.spent += cost
        if reservation in account.late:
            account.late.discard(reservation)
            account.late_spent += cost

    async def _make_cover(self, account: _Account, policy: int, wanted: int, least: int) -> int:
        """Renews until the lease covers `wanted`, or decides what else to do; returns what to reserve."""
        for _ in range(MAX_RENEWALS_AWAITED):
            now = self._clock()
            if account.covers(wanted, now):
                return wanted
            if now < account.away_until:
                self._renew_in_background(account)
                self._go_on_without(account, policy, least, now)
                return least
            if now < account.content_until and account.granted < wanted and not account.has_expired(now):
                if account.covers(least, now):
                    return account.remaining
                raise _refusal(account, least)
            self._renew_in_background(account, is_urgent=True)
            if account.renewing:
                await asyncio.shield(account.renewing)
        raise AccountingUnavailable("too many requests of this account wait at once", retry_after_seconds=1)

    def _go_on_without(self, account: _Account, policy: int, amount: int, now: float) -> None:
        if policy == billing_pb2.OFFLINE_POLICY_OPEN:
            return
        in_grace = bool(account.lease_id) and now < account.serves_until
        if policy != billing_pb2.OFFLINE_POLICY_CLOSED and in_grace and account.remaining >= amount:
            return
        raise AccountingUnavailable("the balance cannot be checked now", retry_after_seconds=5)

    def _renew_in_background(self, account: _Account, is_urgent: bool = False) -> None:
        now = self._clock()
        if account.renewing or now < account.outage_until or (now < account.content_until and not is_urgent):
            return
        # Said now, not when the task runs: what is reserved from here on is late.
        request = self._request(account, self._amount)
        account.renewing = asyncio.create_task(self._renew(account, request))

    def _request(self, account: _Account, amount: int) -> billing_pb2.LeaseQuotaRequest:
        return billing_pb2.LeaseQuotaRequest(
            account_id=account.account_id,
            worker_id=self._worker_id,
            amount_nano_usd=amount,
            previous_lease_id="" if account.is_anothers else account.lease_id,
            # What is reserved will be settled under the old lease: it counts as spent.
            previous_spent_nano_usd=0 if account.is_anothers else max(account.spent + account.reserved, 0),
        )

    async def _renew(self, account: _Account, request: billing_pb2.LeaseQuotaRequest) -> None:
        # A lease lives from when it is asked for: how long the answer took, billing cannot know.
        sent = self._clock()
        try:
            lease = await self._ask(request)
        except Exception as error:
            outcome = "away" if isinstance(error, LurusError) else "failed"
            if outcome == "failed":
                log.exception("a lease could not be renewed")
            account.outage_until = self._clock() + OUTAGE_SECONDS
            account.away_until = self._clock() + AWAY_SECONDS
            RENEWED.labels(outcome).inc()
        else:
            self._take(account, lease, sent)
            RENEWED.labels("refused" if lease.refusal_reason else "granted").inc()
        finally:
            account.renewing = None
            account.late.clear()
            account.late_spent = 0

    def _take(self, account: _Account, lease: billing_pb2.LeaseQuotaResponse, sent: float) -> None:
        account.lease_id, account.granted = lease.lease_id, lease.amount_nano_usd
        account.is_anothers = False
        account.expires = sent + lease.lifetime_milliseconds / 1000
        account.serves_until = account.expires + self._grace_seconds
        self._keep(account, sent)
        account.spent = account.late_spent if lease.lease_id else 0
        account.reserved = 0
        for reservation in account.late if lease.lease_id else ():
            reservation.lease_id = lease.lease_id
            account.reserved += reservation.amount_nano_usd
        account.away_until = 0.0
        account.refusal = lease if lease.refusal_reason else None
        if lease.amount_nano_usd < self._amount:
            account.content_until = self._clock() + REFUSAL_SECONDS

    def _keep(self, account: _Account, sent: float) -> None:
        if self._store is None:
            return
        if not account.lease_id:
            self._store.forget_lease(account.account_id)
            return
        ask_time_ns = time.time_ns() - int((self._clock() - sent) * 1e9)
        lifetime_ns = int((account.expires - sent) * 1e9)
        self._store.keep_lease(
            KeptLease(
                account.account_id, account.lease_id, account.granted, ask_time_ns, ask_time_ns + lifetime_ns
            )
        )


def _refusal(account: _Account, required: int) -> LurusError:
    lease = account.refusal
    if lease is not None and lease.refusal_reason == "QUOTA_EXCEEDED":
        reset = lease.reset_time.ToJsonString() if lease.HasField("reset_time") else None
        when = f"; it resets at {reset}" if reset else ""
        message = f"the quota of this account is used up{when}; ask its operator to raise it"
        return QuotaExceeded(message, account_id=account.account_id, reset_time=reset)
    return BalanceTooLow(
        "the balance of this account does not cover this request; top it up to go on",
        account_id=account.account_id,
        required_nano_usd=required,
    )
