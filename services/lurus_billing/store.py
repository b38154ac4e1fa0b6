"""The ledger in PostgreSQL: bookings, balances' history, and what was set aside.

Locks are taken in one order everywhere, so that writers never wait in a circle:
ledger accounts by id, then everything that hangs on them.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import Tokens, UsageEvent
from lurus_billing import ledger
from lurus_billing.ledger import Entry, Posting, Standing
from lurus_common import postgres
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

_LOCK = """
SELECT l.ledger_account_id, l.balance_nano_usd, l.sequence,
    coalesce(a.credit_limit_nano_usd, 0) AS credit_limit
FROM billing.ledger_account l LEFT JOIN billing.account a ON a.account_id = l.ledger_account_id
WHERE l.ledger_account_id = ANY($1) ORDER BY l.ledger_account_id FOR UPDATE OF l
"""
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
# Column and type, in the order of `_row`.
_COLUMNS = {
    "transaction_id": "text",
    "account_id": "text",
    "sequence": "bigint",
    "debit_account_id": "text",
    "credit_account_id": "text",
    "amount_nano_usd": "bigint",
    "balance_after_nano_usd": "bigint",
    "kind": "smallint",
    "body_sha": "bytea",
    "description": "text",
    "event_time": "timestamptz",
    "key_id": "text",
    "model": "text",
    "price_id": "text",
    "is_unpriced": "boolean",
    "token_source": "smallint",
    "lease_id": "text",
    "input_tokens": "bigint",
    "cache_read_tokens": "bigint",
    "cache_write_5m_tokens": "bigint",
    "cache_write_30m_tokens": "bigint",
    "cache_write_1h_tokens": "bigint",
    "cache_write_12h_tokens": "bigint",
    "output_tokens": "bigint",
    "reasoning_tokens": "bigint",
}
_NAMES = ", ".join(_COLUMNS)
_ARRAYS = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(_COLUMNS.values(), 1))
_INSERT = f"INSERT INTO billing.transfer ({_NAMES}) SELECT * FROM unnest({_ARRAYS})"  # noqa: S608  # our own names
_CHANGE = """
UPDATE billing.ledger_account AS l
SET balance_nano_usd = l.balance_nano_usd + c.change, used_nano_usd = l.used_nano_usd + c.used,
    sequence = l.sequence + c.count
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS c(id, change, used, count)
WHERE l.ledger_account_id = c.id
"""
_ADD_USAGE = """
INSERT INTO billing.usage_bucket AS u (account_id, start_time, amount_nano_usd)
SELECT n.id, to_timestamp(n.start), n.amount
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS n(id, start, amount)
ON CONFLICT (account_id, start_time)
DO UPDATE SET amount_nano_usd = u.amount_nano_usd + excluded.amount_nano_usd
"""
_SETTLE_LEASES = """
UPDATE billing.lease AS l SET settled_nano_usd = l.settled_nano_usd + n.amount
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n(lease_id, account_id, amount)
WHERE l.lease_id = n.lease_id AND l.account_id = n.account_id
"""
_SET_ASIDE = """
INSERT INTO billing.dead_letter (cause, stream_sequence, subject, request_id, payload, payload_sha, reason)
VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING dead_letter_id
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
        do not exist are created as unknown.

        Raises:
            DATA_ERRORS: if an event cannot be booked; then none is.
            DependencyUnavailable: if PostgreSQL is away; then it may have happened.
        """
        entries = [ledger.usage_entry(event) for event in events]
        try:
            return await self._settle(entries)
        except _AccountsMissing as missing:
            await self._create_unknown(missing.ids)
        return await self._settle(entries)

    async def _settle(self, entries: Sequence[Entry]) -> Settled:
        async with transaction(self._pool) as connection:
            standings = await _lock(connection, ledger.ledger_accounts(entries))
            sorting = await _sort(connection, entries)
            postings = ledger.book(sorting.fresh, standings)
            await _write(connection, postings, standings)
            await _write_usage(connection, postings)
            conflict_count = 0
            for entry in sorting.conflicts:
                conflict_count += await _keep_conflict(connection, entry)
        return _settled(postings, len(sorting.repeats), conflict_count)

    async def _create_unknown(self, ids: Sequence[str]) -> None:
        """Creates accounts in a transaction of its own, so that locks are taken in one go."""
        log.error("usage came for accounts that do not exist; they are created as closed: %s", ", ".join(ids))
        async with transaction(self._pool) as connection:
            await connection.execute(_CREATE_UNKNOWN, ids, pb.OFFLINE_POLICY_LEASE)
            await connection.execute(_CREATE_LEDGER_ACCOUNTS, ids)

    async def move(self, request: pb.CreateTransactionRequest) -> pb.Transaction:
        """Books a movement by hand; the same one again changes nothing.

        Raises:
            NotFound: if there is no such account.
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
            standings = await _lock(connection, ledger.ledger_accounts([entry]))
            sorting = await _sort(connection, [entry])
            if sorting.conflicts:
                raise AlreadyExists(
                    "a transaction with this id exists, with another content",
                    resource="transaction",
                    id=entry.transaction_id,
                )
            try:
                postings = ledger.book(sorting.fresh, standings)
                await _write(connection, postings, standings)
            except OverflowError as error:
                raise FailedPrecondition("a balance would not fit 64 bits") from error
            row = await connection.fetchrow(
                "SELECT * FROM billing.transfer WHERE transaction_id = $1", entry.transaction_id
            )
        return _transaction(row)

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
        shown = [_transaction(row) for row in rows[:limit]]
        token = encode_token(rows[limit - 1]["sequence"]) if len(rows) > limit else ""
        return pb.ListTransactionsResponse(transactions=shown, next_page_token=token)

    async def park(self, parked: ParkedEvent) -> None:
        """Keeps an event for a person; the same one again changes nothing."""
        async with postgres.connection(self._pool) as connection:
            await connection.fetchval(
                _SET_ASIDE,
                "parked",
                parked.stream_sequence,
                _storable(parked.subject),
                "",
                parked.payload,
                hashlib.sha256(parked.payload).digest(),
                _storable(parked.reason),
            )


class _AccountsMissing(Exception):
    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(", ".join(ids))
        self.ids = ids


async def _lock(connection: Connection, ids: Sequence[str]) -> dict[str, Standing]:
    """Locks ledger accounts in their order and returns where they stand."""
    rows = await connection.fetch(_LOCK, ids)
    standings = {
        row["ledger_account_id"]: Standing(row["balance_nano_usd"], row["sequence"], row["credit_limit"])
        for row in rows
    }
    if len(standings) < len(ids):
        raise _AccountsMissing(sorted(set(ids) - set(standings)))
    return standings


async def _sort(connection: Connection, entries: Sequence[Entry]) -> ledger.Sorting:
    rows = await connection.fetch(
        "SELECT transaction_id, body_sha FROM billing.transfer WHERE transaction_id = ANY($1)",
        [entry.transaction_id for entry in entries],
    )
    return ledger.sort(entries, {row["transaction_id"]: row["body_sha"] for row in rows})


async def _write(
    connection: Connection, postings: Sequence[Posting], standings: Mapping[str, Standing]
) -> None:
    if not postings:
        return
    found = sorted(ledger.changes(postings, standings).items())
    await connection.execute(_INSERT, *map(list, zip(*(_row(posting) for posting in postings), strict=True)))
    await connection.execute(
        _CHANGE,
        [ledger_account_id for ledger_account_id, _ in found],
        [change.balance_nano_usd for _, change in found],
        [change.used_nano_usd for _, change in found],
        [change.count for _, change in found],
    )


async def _write_usage(connection: Connection, postings: Sequence[Posting]) -> None:
    if not any(posting.amount_nano_usd for posting in postings):
        return
    buckets = sorted(ledger.usage_buckets(postings, datetime.now(UTC)).items())
    ids, starts = [key[0] for key, _ in buckets], [key[1] for key, _ in buckets]
    await connection.execute(_ADD_USAGE, ids, starts, [amount for _, amount in buckets])
    leases = sorted(ledger.lease_settlements(postings).items())
    if leases:
        lease_ids, accounts = [key[0] for key, _ in leases], [key[1] for key, _ in leases]
        await connection.execute(_SETTLE_LEASES, lease_ids, accounts, [amount for _, amount in leases])


def _row(posting: Posting) -> tuple[object, ...]:
    entry, event = posting.entry, posting.entry.event
    booking = (
        entry.transaction_id,
        entry.account_id,
        posting.sequence,
        posting.debit_account_id,
        posting.credit_account_id,
        posting.amount_nano_usd,
        posting.balance_after_nano_usd,
        entry.kind,
        entry.body_sha,
        entry.description,
    )
    if event is None:
        return (*booking, None, None, None, None, False, 0, None, *[None] * 8)
    usage = (
        ledger.event_time(event),
        event.key_id,
        event.model,
        event.price_id,
        event.is_unpriced,
        event.token_source,
        event.lease_id,
    )
    return (*booking, *usage, *_counts(event.tokens))


def _counts(tokens: Tokens) -> tuple[int, ...]:
    return (
        tokens.input,
        tokens.cache_read,
        tokens.cache_write_5m,
        tokens.cache_write_30m,
        tokens.cache_write_1h,
        tokens.cache_write_12h,
        tokens.output,
        tokens.reasoning,
    )


async def _keep_conflict(connection: Connection, entry: Entry) -> bool:
    """Keeps an event that repeats an id with another content; returns whether it is new."""
    payload = entry.event.SerializeToString() if entry.event else b""
    reason = "the request id is booked with another content"
    found = await connection.fetchval(
        _SET_ASIDE, "conflict", 0, "", entry.transaction_id, payload, entry.body_sha, reason
    )
    return found is not None


async def _require_account(connection: Connection, account_id: str) -> None:
    if not await connection.fetchval("SELECT true FROM billing.account WHERE account_id = $1", account_id):
        raise NotFound("no such account", resource="account", id=account_id)


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


def _storable(text: str) -> str:
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _transaction(row: asyncpg.Record) -> pb.Transaction:
    is_credit = row["credit_account_id"] == row["account_id"]
    amount = row["amount_nano_usd"] if is_credit else -row["amount_nano_usd"]
    transaction = pb.Transaction(
        transaction_id=row["transaction_id"],
        account_id=row["account_id"],
        kind=row["kind"],
        amount_nano_usd=amount,
        balance_after_nano_usd=row["balance_after_nano_usd"],
        description=row["description"],
        create_time=row["create_time"],
        model=row["model"] or "",
        price_id=row["price_id"] or "",
        token_source=row["token_source"],
        is_unpriced=row["is_unpriced"],
    )
    if row["kind"] == pb.TRANSACTION_KIND_USAGE:
        transaction.tokens.CopyFrom(_tokens(row))
    return transaction


def _tokens(row: asyncpg.Record) -> Tokens:
    return Tokens(
        input=row["input_tokens"],
        cache_read=row["cache_read_tokens"],
        cache_write_5m=row["cache_write_5m_tokens"],
        cache_write_30m=row["cache_write_30m_tokens"],
        cache_write_1h=row["cache_write_1h_tokens"],
        cache_write_12h=row["cache_write_12h_tokens"],
        output=row["output_tokens"],
        reasoning=row["reasoning_tokens"],
    )
