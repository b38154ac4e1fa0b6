"""The rules of leases and quotas, without a database or a clock.

A lease lends a worker a part of an account's money, so that the worker can
admit requests without asking. What a lease holds back from everybody else is
its outstanding amount:

- open: what was granted, less what has been settled of it so far;
- returned: what the worker said it had spent, less what has been settled;
- after its expire time: nothing. A returned lease expires one lease time after
  its return, so a call that is lost or repeated, or a worker that is lost, keeps
  money back for one lease time at most.

A reservation holds its amount back from everybody else in the same way, until it
is settled or released or expires.

A grant never exceeds balance + credit limit - outstanding - reserved, nor the
quota left, so at every moment

    spent <= balance at the start + credit limit + late + excess

where *late* is what had been spent of leases and was not settled yet when they
expired, and *excess* is what requests cost beyond what their worker was lent or
had declared. Both are 0 if workers spend no more than they were lent, return
leases before they expire, declare what they spent, and settle that within one
lease time of the return. What is settled of a reservation after its expiry is
late too, what is settled above its amount is excess.

For this a worker counts a lease's lifetime from when it *sent* the request for
it, and admits nothing more from a lease once it has sent the request that
returns it; whatever it spent all the same, it declares when it asks again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from lurus_common.money import require_amount

BALANCE_TOO_LOW = "BALANCE_TOO_LOW"
QUOTA_EXCEEDED = "QUOTA_EXCEEDED"


@dataclass(frozen=True, slots=True)
class Lease:
    """One lease as it stands."""

    granted_nano_usd: int
    settled_nano_usd: int
    # What was spent of a returned lease; None while it is open.
    declared_spent_nano_usd: int | None
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Periods:
    """The day and the month that a moment belongs to, in one time zone."""

    day_start: datetime
    day_end: datetime
    month_start: datetime
    month_end: datetime


@dataclass(frozen=True, slots=True)
class Cap:
    """One cap of a quota: 0 means none."""

    limit_nano_usd: int
    used_nano_usd: int
    reset_time: datetime | None

    def left(self, held_nano_usd: int) -> int | None:
        """What may still be lent or set aside; None without a limit."""
        if not self.limit_nano_usd:
            return None
        return max(0, self.limit_nano_usd - self.used_nano_usd - held_nano_usd)


@dataclass(frozen=True, slots=True)
class Funds:
    """What decides how much an account may be lent, or set aside."""

    balance_nano_usd: int
    credit_limit_nano_usd: int
    leased_nano_usd: int
    caps: tuple[Cap, ...] = ()
    reserved_nano_usd: int = 0

    @property
    def held_nano_usd(self) -> int:
        """What leases and reservations hold back together."""
        return self.leased_nano_usd + self.reserved_nano_usd


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an account cannot have an amount, and when its quota resets if that is why."""

    reason: str
    reset_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What is lent: 0 with a reason if nothing can be."""

    amount_nano_usd: int
    refusal_reason: str = ""
    reset_time: datetime | None = None


def outstanding(lease: Lease, now: datetime) -> int:
    """What a lease holds back, in nano-USD."""
    if lease.expire_time <= now:
        return 0
    claimed = lease.granted_nano_usd
    if lease.declared_spent_nano_usd is not None:
        claimed = lease.declared_spent_nano_usd
    return max(0, claimed - lease.settled_nano_usd)


def leased(leases: Iterable[Lease], now: datetime) -> int:
    """What all leases of an account hold back, in nano-USD."""
    return sum(outstanding(lease, now) for lease in leases)


def covered(funds: Funds) -> int:
    """Balance and credit that nobody holds; never below 0."""
    return max(0, funds.balance_nano_usd + funds.credit_limit_nano_usd - funds.held_nano_usd)


def available(funds: Funds) -> int:
    """What new requests may still use: at most the quota left; never below 0."""
    lefts = [left for cap in funds.caps if (left := cap.left(funds.held_nano_usd)) is not None]
    return min([covered(funds), *lefts])


def refusal(funds: Funds, amount: int) -> Refusal | None:
    """Why an account cannot have `amount`; None if it can."""
    if amount <= available(funds):
        return None
    if covered(funds) < amount:
        return Refusal(BALANCE_TOO_LOW)
    lefts = [(cap.left(funds.held_nano_usd), cap.reset_time) for cap in funds.caps]
    blocking = [time for left, time in lefts if left is not None and left < amount]
    if None in blocking:
        return Refusal(QUOTA_EXCEEDED)
    return Refusal(QUOTA_EXCEEDED, max(time for time in blocking if time))


def grant(funds: Funds, requested: int, maximum: int) -> Grant:
    """Decides what a worker is lent.

    Args:
        funds: of the account.
        requested: what the worker would like, >= 0.
        maximum: what one lease may be worth.
    """
    free = available(funds)
    if free > 0:
        amount = min(require_amount(requested, "amount_nano_usd"), maximum, free)
        return Grant(require_amount(amount, "amount_nano_usd"))
    refused = refusal(funds, 1)
    return Grant(0, refused.reason, refused.reset_time) if refused else Grant(0)


def periods(now: datetime, time_zone: str) -> Periods:
    """Returns the day and the month of `now` in a time zone, as moments in UTC.

    A day that begins with a jump of the clock begins at the jump.
    """
    zone = _zone(time_zone)
    today = now.astimezone(zone).date()
    first = today.replace(day=1)
    next_first = (first + timedelta(days=31)).replace(day=1)
    days = (today, today + timedelta(days=1), first, next_first)
    starts = [datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC) for day in days]
    return Periods(*starts)


def is_time_zone(name: str) -> bool:
    """Whether `name` is one of the IANA time zones that this machine knows; empty is UTC."""
    return not name or name in _zone_names()


@lru_cache(maxsize=1)
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones())


def _zone(name: str) -> tzinfo:
    return ZoneInfo(name) if name else UTC
