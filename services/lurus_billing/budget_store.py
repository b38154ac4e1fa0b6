"""Balances, quotas, leases and what is left in PostgreSQL.

Everything that changes what may be spent, settlements too, happens under the
lock of the account's row in `ledger_account`, and by the database's clock.
"""

from dataclasses import dataclass
from datetime import datetime

import asyncpg
from google.protobuf.timestamp_pb2 import Timestamp

from lurus.billing.v1 import billing_pb2 as pb
from lurus_billing import leases
from lurus_billing.leases import Cap, Funds, Lease, Periods
from lurus_common.errors import FailedPrecondition, InvalidRequest, NotFound
from lurus_common.ids import new_id
from lurus_common.money import require_amount
from lurus_common.postgres import Connection, transaction

# The time is taken outside of the query that waits for the lock, so after the wait.
_LOCK = """
SELECT clock_timestamp() FROM (
    SELECT true FROM billing.ledger_account WHERE ledger_account_id = $1 FOR UPDATE
) AS locked
"""
_STANDING = """
SELECT l.balance_nano_usd, l.used_nano_usd, a.credit_limit_nano_usd, a.time_zone, a.is_closed,
    coalesce(q.daily_limit_nano_usd, 0) AS daily_limit,
    coalesce(q.monthly_limit_nano_usd, 0) AS monthly_limit,
    coalesce(q.total_limit_nano_usd, 0) AS total_limit
FROM billing.ledger_account l
JOIN billing.account a ON a.account_id = l.ledger_account_id
LEFT JOIN billing.quota q ON q.account_id = l.ledger_account_id
WHERE l.ledger_account_id = $1
"""
_USED = """
SELECT coalesce(sum(amount_nano_usd) FILTER (WHERE start_time >= $2), 0)::bigint AS daily,
    coalesce(sum(amount_nano_usd), 0)::bigint AS monthly
FROM billing.usage_bucket WHERE account_id = $1 AND start_time >= $3
"""
_LEASES = """
SELECT granted_nano_usd, settled_nano_usd, declared_spent_nano_usd, expire_time
FROM billing.lease WHERE account_id = $1 AND expire_time > $2
"""
_RESERVED = """
SELECT coalesce(sum(reserved_nano_usd), 0)::bigint FROM billing.reservation
WHERE account_id = $1 AND state = $3 AND expire_time > $2
"""
# Returning a lease again keeps the greater amount, and does not keep it for longer.
_RETURN = """
UPDATE billing.lease SET
    declared_spent_nano_usd = greatest(declared_spent_nano_usd, $2),
    expire_time = CASE WHEN declared_spent_nano_usd IS NULL
        THEN $3::timestamptz + make_interval(secs => $4) ELSE expire_time END
WHERE lease_id = $1
"""
_LEND = """
INSERT INTO billing.lease (lease_id, account_id, worker_id, granted_nano_usd, expire_time)
VALUES ($1, $2, $3, $4, $5::timestamptz + make_interval(secs => $6)) RETURNING expire_time
"""
# Expired leases stay for a day, for people.
_FORGET = (
    "DELETE FROM billing.lease WHERE account_id = $1 AND expire_time < $2::timestamptz - interval '1 day'"
)
_SET_QUOTA = """
INSERT INTO billing.quota (account_id, daily_limit_nano_usd, monthly_limit_nano_usd, total_limit_nano_usd)
VALUES ($1, $2, $3, $4) ON CONFLICT (account_id) DO UPDATE SET
    daily_limit_nano_usd = excluded.daily_limit_nano_usd,
    monthly_limit_nano_usd = excluded.monthly_limit_nano_usd,
    total_limit_nano_usd = excluded.total_limit_nano_usd
"""


@dataclass(frozen=True, slots=True)
class Budget:
    """What an account has at a moment, and what decides what it may spend."""

    now: datetime
    periods: Periods
    funds: Funds
    is_closed: bool


class BudgetStore:
    """What accounts may spend, and what of it is lent."""

    def __init__(self, pool: asyncpg.Pool, lease_nano_usd: int, lease_seconds: float) -> None:
        self._pool = pool
        self._lease_nano_usd = lease_nano_usd
        self._lease_seconds = lease_seconds

    async def balance(self, account_id: str) -> pb.GetBalanceResponse:
        """Returns what an account has.

        Raises:
            NotFound: if there is no such account.
        """
        async with transaction(self._pool, read_only=True) as connection:
            return _balance(account_id, await read_budget(connection, account_id))

    async def quota(self, account_id: str) -> pb.GetQuotaResponse:
        """Returns an account's caps and what is used of each.

        Raises:
            NotFound: if there is no such account.
        """
        async with transaction(self._pool, read_only=True) as connection:
            return _quota(account_id, await read_budget(connection, account_id))

    async def both(self, account_id: str) -> pb.WatchBudgetResponse:
        """Returns balance and quota of one moment.

        Raises:
            NotFound: if there is no such account.
        """
        async with transaction(self._pool, read_only=True) as connection:
            budget = await read_budget(connection, account_id)
        return pb.WatchBudgetResponse(balance=_balance(account_id, budget), quota=_quota(account_id, budget))

    async def set_quota(self, account_id: str, quota: pb.Quota) -> pb.Quota:
        """Sets all caps of an account.

        Raises:
            NotFound: if there is no such account.
        """
        async with transaction(self._pool) as connection:
            await read_budget(connection, account_id)
            await connection.execute(
                _SET_QUOTA,
                account_id,
                require_amount(quota.daily_limit_nano_usd, "daily_limit_nano_usd"),
                require_amount(quota.monthly_limit_nano_usd, "monthly_limit_nano_usd"),
                require_amount(quota.total_limit_nano_usd, "total_limit_nano_usd"),
            )
        return quota

    async def lend(self, request: pb.LeaseQuotaRequest) -> pb.LeaseQuotaResponse:
        """Takes back the previous lease, if any, and lends a worker what may be lent.

        Raises:
            NotFound: if there is no such account.
            FailedPrecondition: if the account is closed.
            InvalidRequest: if the previous lease is another account's.
        """
        async with transaction(self._pool) as connection:
            now = await lock_account(connection, request.account_id)
            await self._take_back(connection, request, now)
            budget = await read_budget(connection, request.account_id, now)
            if budget.is_closed:
                raise FailedPrecondition("the account is closed", resource="account", id=request.account_id)
            granted = leases.grant(budget.funds, request.amount_nano_usd, self._lease_nano_usd)
            if granted.amount_nano_usd:
                return await self._lend(connection, request, granted.amount_nano_usd, now)
        reset_time = _timestamp(granted.reset_time) if granted.reset_time else None
        return pb.LeaseQuotaResponse(refusal_reason=granted.refusal_reason, reset_time=reset_time)

    async def _take_back(self, connection: Connection, request: pb.LeaseQuotaRequest, now: datetime) -> None:
        if not request.previous_lease_id:
            return
        owner = await connection.fetchval(
            "SELECT account_id FROM billing.lease WHERE lease_id = $1", request.previous_lease_id
        )
        if owner is None:
            return
        if owner != request.account_id:
            raise InvalidRequest("the lease belongs to another account", param="previous_lease_id")
        spent = require_amount(request.previous_spent_nano_usd, "previous_spent_nano_usd")
        await connection.execute(_RETURN, request.previous_lease_id, spent, now, self._lease_seconds)

    async def _lend(
        self, connection: Connection, request: pb.LeaseQuotaRequest, amount: int, now: datetime
    ) -> pb.LeaseQuotaResponse:
        await connection.execute(_FORGET, request.account_id, now)
        lease_id = new_id("lease")
        expire_time = await connection.fetchval(
            _LEND, lease_id, request.account_id, request.worker_id, amount, now, self._lease_seconds
        )
        return pb.LeaseQuotaResponse(
            lease_id=lease_id,
            amount_nano_usd=amount,
            expire_time=expire_time,
            lifetime_milliseconds=int(self._lease_seconds * 1000),
        )


def _balance(account_id: str, budget: Budget) -> pb.GetBalanceResponse:
    funds = budget.funds
    return pb.GetBalanceResponse(
        account_id=account_id,
        balance_nano_usd=funds.balance_nano_usd,
        leased_nano_usd=funds.leased_nano_usd,
        available_nano_usd=leases.available(funds),
        reserved_nano_usd=funds.reserved_nano_usd,
    )


def _quota(account_id: str, budget: Budget) -> pb.GetQuotaResponse:
    daily, monthly, total = budget.funds.caps
    held = budget.funds.held_nano_usd
    return pb.GetQuotaResponse(
        account_id=account_id,
        quota=pb.Quota(
            daily_limit_nano_usd=daily.limit_nano_usd,
            monthly_limit_nano_usd=monthly.limit_nano_usd,
            total_limit_nano_usd=total.limit_nano_usd,
        ),
        daily_used_nano_usd=daily.used_nano_usd,
        monthly_used_nano_usd=monthly.used_nano_usd,
        total_used_nano_usd=total.used_nano_usd,
        daily_reset_time=_timestamp(budget.periods.day_end),
        monthly_reset_time=_timestamp(budget.periods.month_end),
        daily_left_nano_usd=daily.left(held),
        monthly_left_nano_usd=monthly.left(held),
        total_left_nano_usd=total.left(held),
    )


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


async def lock_account(connection: Connection, account_id: str) -> datetime:
    """Locks an account's row and returns the database's time once it is ours.

    Raises:
        NotFound: if there is no such account.
    """
    now: datetime | None = await connection.fetchval(_LOCK, account_id)
    if now is None:
        raise _not_found(account_id)
    return now


def _not_found(account_id: str) -> NotFound:
    return NotFound("no such account", resource="account", id=account_id)


async def read_budget(connection: Connection, account_id: str, now: datetime | None = None) -> Budget:
    """Returns what an account has, now by the database's clock if no moment is given.

    Raises:
        NotFound: if there is no such account.
    """
    row = await connection.fetchrow(_STANDING, account_id)
    if row is None:
        raise _not_found(account_id)
    now = now or await connection.fetchval("SELECT clock_timestamp()")
    periods = leases.periods(now, row["time_zone"])
    used = await connection.fetchrow(_USED, account_id, periods.day_start, periods.month_start)
    lent = [Lease(*found) for found in await connection.fetch(_LEASES, account_id, now)]
    caps = (
        Cap(row["daily_limit"], used["daily"], periods.day_end),
        Cap(row["monthly_limit"], used["monthly"], periods.month_end),
        Cap(row["total_limit"], row["used_nano_usd"], None),
    )
    reserved = await connection.fetchval(_RESERVED, account_id, now, pb.RESERVATION_STATE_OPEN)
    leased = leases.leased(lent, now)
    funds = Funds(row["balance_nano_usd"], row["credit_limit_nano_usd"], leased, caps, reserved)
    return Budget(now, periods, funds, row["is_closed"])
