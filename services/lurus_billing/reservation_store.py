"""Reservations in PostgreSQL: money that a caller sets aside for something whose cost it will know later.

All under the lock of the account's row in `ledger_account`, and by the
database's clock, as in budget_store.py.
"""

from datetime import datetime, timedelta

import asyncpg

from lurus.billing.v1 import billing_pb2 as pb
from lurus_billing import booking, leases, ledger
from lurus_billing.budget_store import lock_account, read_budget
from lurus_common import postgres
from lurus_common.errors import (
    BalanceTooLow,
    Conflict,
    FailedPrecondition,
    LurusError,
    NotFound,
    QuotaExceeded,
)
from lurus_common.postgres import Connection, transaction

# As long as a stream may take, and a minute.
DEFAULT_LIFETIME = timedelta(seconds=3660)
EXPIRED_AT_ONCE = 1000

_INSERT = """
INSERT INTO billing.reservation
    (reservation_id, account_id, reserved_nano_usd, lifetime_microseconds, expire_time)
VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING *
"""
_SETTLE = """
UPDATE billing.reservation SET state = $2, settled_nano_usd = $3, update_time = now()
WHERE reservation_id = $1
"""
_RELEASE = "UPDATE billing.reservation SET state = $2, update_time = now() WHERE reservation_id = $1"
# Two sweepers take different rows, and neither waits for who settles one at this moment.
_EXPIRE = """
WITH expired AS (
    SELECT reservation_id FROM billing.reservation
    WHERE state = $1 AND expire_time <= clock_timestamp()
    ORDER BY expire_time LIMIT $3 FOR UPDATE SKIP LOCKED
), changed AS (
    UPDATE billing.reservation AS r SET state = $2, update_time = now() FROM expired
    WHERE r.reservation_id = expired.reservation_id RETURNING true
)
SELECT count(*) FROM changed
"""


class ReservationStore:
    """What callers have set aside."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def reserve(self, request: pb.CreateReservationRequest) -> pb.CreateReservationResponse:
        """Sets money aside; the same reservation again changes nothing, whatever became of it.

        Raises:
            NotFound: if there is no such account.
            Conflict: if the id was used for another reservation.
            FailedPrecondition: if the account is closed.
            BalanceTooLow: if balance and credit do not cover it.
            QuotaExceeded: if what is left of a quota does not.
        """
        async with transaction(self._pool) as connection:
            now = await lock_account(connection, request.account_id)
            row = await _find(connection, request.reservation_id)
            if row is None:
                await _require_funds(connection, request, now)
                row = await _insert(connection, request, now)
            # Taken for another account at this moment: now it can be seen.
            row = row or await _find(connection, request.reservation_id)
        if row is None or _content(row) != _wanted(request):
            raise Conflict(
                "a reservation with this id exists, with another content",
                resource="reservation",
                id=request.reservation_id,
            )
        return pb.CreateReservationResponse(expire_time=row["expire_time"], state=_state(row, now))

    async def settle(self, request: pb.SettleReservationRequest) -> tuple[pb.Transaction, bool]:
        """Books what a reservation cost, whatever became of it; returns that, and whether it is an overdraft.

        The same amount again changes nothing.

        Raises:
            NotFound: if there is no such reservation.
            Conflict: if it is settled with another amount.
            FailedPrecondition: if a balance would not fit 64 bits.
        """
        async with transaction(self._pool) as connection:
            account_id = (await _require(connection, request.reservation_id))["account_id"]
            house = ledger.HOUSE_OF_KIND[pb.TRANSACTION_KIND_USAGE]
            standings = await booking.lock(connection, sorted([account_id, house]))
            row = await _require(connection, request.reservation_id, "FOR UPDATE")
            is_overdraft = False
            if row["state"] != pb.RESERVATION_STATE_SETTLED:
                now = await connection.fetchval("SELECT clock_timestamp()")
                entry = ledger.reservation_entry(request, account_id, now)
                try:
                    (posting,) = await booking.write(connection, [entry], standings)
                except OverflowError as error:
                    raise FailedPrecondition("a balance would not fit 64 bits") from error
                is_overdraft = posting.is_overdraft
                state, amount = pb.RESERVATION_STATE_SETTLED, request.amount_nano_usd
                await connection.execute(_SETTLE, request.reservation_id, state, amount)
            elif row["settled_nano_usd"] != request.amount_nano_usd:
                raise Conflict(
                    "the reservation is settled with another amount",
                    resource="reservation",
                    id=request.reservation_id,
                    settled_nano_usd=row["settled_nano_usd"],
                )
            booked = await connection.fetchrow(
                "SELECT * FROM billing.transfer WHERE transaction_id = $1", request.reservation_id
            )
        return booking.transaction_of(booked), is_overdraft

    async def release(self, reservation_id: str) -> None:
        """Frees a reservation; one that is free already stays so.

        Raises:
            NotFound: if there is no such reservation.
            FailedPrecondition: if it is settled.
        """
        async with transaction(self._pool) as connection:
            account_id = (await _require(connection, reservation_id))["account_id"]
            await lock_account(connection, account_id)
            row = await _require(connection, reservation_id, "FOR UPDATE")
            if row["state"] == pb.RESERVATION_STATE_SETTLED:
                raise FailedPrecondition(
                    "the reservation is settled", resource="reservation", id=reservation_id
                )
            if row["state"] == pb.RESERVATION_STATE_OPEN:
                await connection.execute(_RELEASE, reservation_id, pb.RESERVATION_STATE_RELEASED)

    async def expire(self) -> int:
        """Marks reservations whose time has run out, oldest first; returns how many.

        `EXPIRED_AT_ONCE` at most.
        """
        states = (pb.RESERVATION_STATE_OPEN, pb.RESERVATION_STATE_EXPIRED)
        async with postgres.connection(self._pool) as connection:
            return int(await connection.fetchval(_EXPIRE, *states, EXPIRED_AT_ONCE))


async def _find(connection: Connection, reservation_id: str, locking: str = "") -> asyncpg.Record | None:
    query = f"SELECT * FROM billing.reservation WHERE reservation_id = $1 {locking}"  # noqa: S608  # our own words
    return await connection.fetchrow(query, reservation_id)


async def _require(connection: Connection, reservation_id: str, locking: str = "") -> asyncpg.Record:
    row = await _find(connection, reservation_id, locking)
    if row is None:
        raise NotFound("no such reservation", resource="reservation", id=reservation_id)
    return row


async def _require_funds(connection: Connection, request: pb.CreateReservationRequest, now: datetime) -> None:
    budget = await read_budget(connection, request.account_id, now)
    if budget.is_closed:
        raise FailedPrecondition("the account is closed", resource="account", id=request.account_id)
    refused = leases.refusal(budget.funds, request.amount_nano_usd)
    if refused:
        raise _refused(refused, request, leases.available(budget.funds))


def _refused(refused: leases.Refusal, request: pb.CreateReservationRequest, available: int) -> LurusError:
    amounts = {"available_nano_usd": available, "required_nano_usd": request.amount_nano_usd}
    if refused.reason == leases.BALANCE_TOO_LOW:
        return BalanceTooLow("the balance does not cover this", id=request.account_id, **amounts)
    reset_time = refused.reset_time.isoformat() if refused.reset_time else None
    return QuotaExceeded("a quota is used up", id=request.account_id, reset_time=reset_time, **amounts)


async def _insert(
    connection: Connection, request: pb.CreateReservationRequest, now: datetime
) -> asyncpg.Record | None:
    _, amount, microseconds = _wanted(request)
    expire_time = now + timedelta(microseconds=microseconds)
    return await connection.fetchrow(
        _INSERT, request.reservation_id, request.account_id, amount, microseconds, expire_time
    )


def _wanted(request: pb.CreateReservationRequest) -> tuple[str, int, int]:
    lifetime = DEFAULT_LIFETIME
    if request.HasField("lifetime_duration"):
        lifetime = request.lifetime_duration.ToTimedelta()
    microseconds = max(1, lifetime // timedelta(microseconds=1))
    return request.account_id, request.amount_nano_usd, microseconds


def _content(row: asyncpg.Record) -> tuple[str, int, int]:
    return row["account_id"], row["reserved_nano_usd"], row["lifetime_microseconds"]


def _state(row: asyncpg.Record, now: datetime) -> pb.ReservationState.ValueType:
    state: pb.ReservationState.ValueType = row["state"]
    if state == pb.RESERVATION_STATE_OPEN and row["expire_time"] <= now:
        return pb.RESERVATION_STATE_EXPIRED
    return state
