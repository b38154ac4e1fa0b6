"""The ledger in PostgreSQL: bookings, balances' history, and what was set aside."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing import booking, dead_letters, ledger
from lurus_billing.ledger import Entry, Posting
from lurus_common.consumer import ParkedEvent
from lurus_common.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound
from lurus_common.paging import decode_token, encode_token, page_limit
from lurus_common.postgres import Connection, transaction

log = logging.getLogger(__name__)

# What `settle` raises if an event is at fault, not the database.
DATA_ERRORS: tuple[type[Exception], ...] = (
    ledger.EventRefused,
    InvalidRequest,
    OverflowError,
    asyncpg.DataError,
    asyncpg.CheckViolationError,
)
BOOKING_ATTEMPTS = 3

_CREATE_UNKNOWN = """
INSERT INTO billing.account
    (account_id, display_name, credit_limit_nano_usd, offline_policy, time_zone, is_closed, is_unknown)
SELECT id, 'unknown: usage came for it', 0, $2, '', true, true FROM unnest($1::text[]) AS id ORDER BY id
ON CONFLICT DO NOTHING
"""
_CREATE_LEDGER_ACCOUNTS = """
INSERT INTO billing.ledger_account (ledger_account_id)
SELECT id FROM unnest($1::text[]) AS id ORDER BY id ON CONFLICT DO NOTHING
"""
_LIST = """
SELECT * FROM billing.transfer
WHERE account_id = $1 AND sequence < $2 AND ($3 = 0 OR kind = $3) AND ($4 = '' OR transaction_id = $4)
ORDER BY sequence DESC LIMIT $5
"""
_LAST_SEQUENCE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Settled:
    """What one batch did."""

    count: int
    repeat_count: int
    conflict_count: int
    overdraft_count: int
    unpriced_count: int
    cost_nano_usd: int


class LedgerStore:
    """The ledger."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def settle(self, events: Sequence[UsageEvent]) -> Settled:
        """Books a batch of usage events in one transaction, each request once.

        An event whose id is booked already changes nothing; with another
        content it is kept as a dead letter, and the first wins. Accounts that
        do not exist are created as unknown. Of requests that were refused and
        cost nothing no row is written.

        Raises:
            DATA_ERRORS: if an event cannot be booked; then none is.
            DependencyUnavailable: if PostgreSQL is away; then it may have happened.
        """
        entries = [ledger.usage_entry(event) for event in events]
        try:
            return await self._settle(entries)
        except booking.AccountsMissing as missing:
            await self._create_unknown(missing.ids)
        return await self._settle(entries)

    async def _settle(self, entries: Sequence[Entry]) -> Settled:
        charges = [entry for entry in entries if not ledger.is_idle(entry)]
        async with transaction(self._pool) as connection:
            standings = await booking.lock(connection, ledger.ledger_accounts(charges)) if charges else {}
            sorting = await booking.sort(connection, entries)
            postings = await booking.write(connection, sorting.fresh, standings)
            conflicts = [
                entry for entry in sorting.conflicts if await dead_letters.keep_conflict(connection, entry)
            ]
        for entry in conflicts:
            log.error("%s came again with another content; it is not charged again", entry.transaction_id)
        return _settled(postings, len(sorting.repeats), len(conflicts))

    async def _create_unknown(self, ids: Sequence[str]) -> None:
        """Creates accounts in a transaction of its own, so that locks are taken in one go."""
        log.error("usage came for accounts that do not exist; they are created as closed: %s", ", ".join(ids))
        async with transaction(self._pool) as connection:
            await connection.execute(_CREATE_UNKNOWN, ids, pb.OFFLINE_POLICY_LEASE)
            await connection.execute(_CREATE_LEDGER_ACCOUNTS, ids)

    async def move(self, request: pb.CreateTransactionRequest) -> pb.Transaction:
        """Books a movement by hand; the same one again changes nothing.

        Raises:
            NotFound: if there is no such account, or nothing that it could correct.
            AlreadyExists: if the id was used for something else.
            FailedPrecondition: if a balance would not fit 64 bits.
        """
        entry = ledger.manual_entry(request)
        for _ in range(BOOKING_ATTEMPTS - 1):
            try:
                return await self._move(entry)
            except asyncpg.UniqueViolationError:
                # The same id was booked on other accounts at this moment: now it can be seen.
                continue
        return await self._move(entry)

    async def _move(self, entry: Entry) -> pb.Transaction:
        async with transaction(self._pool) as connection:
            await _require_account(connection, entry.account_id)
            await _require_corrected(connection, entry)
            standings = await booking.lock(connection, ledger.ledger_accounts([entry]))
            sorting = await booking.sort(connection, [entry])
            if sorting.conflicts:
                raise AlreadyExists(
                    "a transaction with this id exists, with another content",
                    resource="transaction",
                    id=entry.transaction_id,
                )
            try:
                await booking.write(connection, sorting.fresh, standings)
            except OverflowError as error:
                raise FailedPrecondition("a balance would not fit 64 bits") from error
            row = await connection.fetchrow(
                "SELECT * FROM billing.transfer WHERE transaction_id = $1", entry.transaction_id
            )
        return booking.transaction_of(row)

    async def transactions(self, request: pb.ListTransactionsRequest) -> pb.ListTransactionsResponse:
        """Returns a page of an account's ledger, newest first.

        Raises:
            NotFound: if there is no such account.
            InvalidRequest: if the page token is not ours.
        """
        limit = page_limit(request.page_size)
        position = decode_token(request.page_token, int) or [_LAST_SEQUENCE]
        async with transaction(self._pool, read_only=True) as connection:
            await _require_account(connection, request.account_id)
            rows = await connection.fetch(
                _LIST, request.account_id, position[0], request.kind, request.transaction_id, limit + 1
            )
        shown = [booking.transaction_of(row) for row in rows[:limit]]
        token = encode_token(rows[limit - 1]["sequence"]) if len(rows) > limit else ""
        return pb.ListTransactionsResponse(transactions=shown, next_page_token=token)

    async def park(self, parked: ParkedEvent) -> None:
        """Keeps an event for a person; the same one again changes nothing."""
        await dead_letters.park(self._pool, parked)


async def _require_account(connection: Connection, account_id: str) -> None:
    if not await connection.fetchval("SELECT true FROM billing.account WHERE account_id = $1", account_id):
        raise NotFound("no such account", resource="account", id=account_id)


async def _require_corrected(connection: Connection, entry: Entry) -> None:
    """Raises NotFound if an entry corrects what is not booked on its account."""
    corrected = entry.corrects_transaction_id
    if not corrected:
        return
    owner = await connection.fetchval(
        "SELECT account_id FROM billing.transfer WHERE transaction_id = $1", corrected
    )
    if owner != entry.account_id:
        raise NotFound("the account has no such transaction", resource="transaction", id=corrected)


def _settled(postings: Sequence[Posting], repeat_count: int, conflict_count: int) -> Settled:
    events = [posting.entry.event for posting in postings]
    return Settled(
        count=len(postings),
        repeat_count=repeat_count,
        conflict_count=conflict_count,
        overdraft_count=sum(posting.is_overdraft for posting in postings),
        unpriced_count=sum(event is not None and event.is_unpriced for event in events),
        cost_nano_usd=sum(posting.amount_nano_usd for posting in postings),
    )
