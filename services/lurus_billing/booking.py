"""How entries reach the ledger: the steps of a transaction that books.

Locks are taken in one order everywhere, so that writers never wait in a circle:
ledger accounts by id, then everything that hangs on them.
"""

from collections.abc import Mapping, Sequence

import asyncpg

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import Tokens, UsageEvent
from lurus_billing import ledger
from lurus_billing.ledger import Entry, Posting, Standing
from lurus_common.postgres import Connection

_LOCK = """
SELECT l.ledger_account_id, l.balance_nano_usd, l.sequence,
    coalesce(a.credit_limit_nano_usd, 0) AS credit_limit
FROM billing.ledger_account l LEFT JOIN billing.account a ON a.account_id = l.ledger_account_id
WHERE l.ledger_account_id = ANY($1) ORDER BY l.ledger_account_id FOR UPDATE OF l
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
    "corrects_transaction_id": "text",
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
_KEEP_EVENTS = """
INSERT INTO billing.usage_event (request_id, payload)
SELECT * FROM unnest($1::text[], $2::bytea[]) ON CONFLICT DO NOTHING
"""
# What of an event only the request log keeps.
_LOG_ONLY = ("decision", "session_id", "user_agent")


class AccountsMissing(Exception):
    """Ledger accounts that are to be booked on do not exist."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(", ".join(ids))
        self.ids = ids


async def lock(connection: Connection, ids: Sequence[str]) -> dict[str, Standing]:
    """Locks ledger accounts in their order and returns where they stand.

    Raises:
        AccountsMissing: names those that do not exist.
    """
    rows = await connection.fetch(_LOCK, ids)
    standings = {
        row["ledger_account_id"]: Standing(row["balance_nano_usd"], row["sequence"], row["credit_limit"])
        for row in rows
    }
    if len(standings) < len(ids):
        raise AccountsMissing(sorted(set(ids) - set(standings)))
    return standings


async def sort(connection: Connection, entries: Sequence[Entry]) -> ledger.Sorting:
    """Tells entries apart by what is booked already."""
    rows = await connection.fetch(
        "SELECT transaction_id, body_sha FROM billing.transfer WHERE transaction_id = ANY($1)",
        [entry.transaction_id for entry in entries],
    )
    return ledger.sort(entries, {row["transaction_id"]: row["body_sha"] for row in rows})


async def write(
    connection: Connection, entries: Sequence[Entry], standings: Mapping[str, Standing]
) -> list[Posting]:
    """Books new entries on accounts that are locked, and returns their postings.

    Raises:
        OverflowError: if a balance would not fit its column.
    """
    postings = ledger.book(entries, standings)
    if not postings:
        return []
    found = sorted(ledger.changes(postings, standings).items())
    await connection.execute(_INSERT, *map(list, zip(*(_row(posting) for posting in postings), strict=True)))
    await connection.execute(
        _CHANGE,
        [ledger_account_id for ledger_account_id, _ in found],
        [change.balance_nano_usd for _, change in found],
        [change.used_nano_usd for _, change in found],
        [change.count for _, change in found],
    )
    await _write_usage(connection, postings)
    return postings


async def _write_usage(connection: Connection, postings: Sequence[Posting]) -> None:
    events = [posting.entry.event for posting in postings if posting.entry.event]
    if events:
        ids, payloads = [event.request_id for event in events], [_payload(event) for event in events]
        await connection.execute(_KEEP_EVENTS, ids, payloads)
    if not any(posting.amount_nano_usd for posting in postings if posting.entry.used_seconds is not None):
        return
    now = await connection.fetchval("SELECT clock_timestamp()")
    buckets = sorted(ledger.usage_buckets(postings, now).items())
    ids, starts = [key[0] for key, _ in buckets], [key[1] for key, _ in buckets]
    await connection.execute(_ADD_USAGE, ids, starts, [amount for _, amount in buckets])
    leases = sorted(ledger.lease_settlements(postings).items())
    if leases:
        lease_ids, accounts = [key[0] for key, _ in leases], [key[1] for key, _ in leases]
        await connection.execute(_SETTLE_LEASES, lease_ids, accounts, [amount for _, amount in leases])


def _payload(event: UsageEvent) -> bytes:
    kept = UsageEvent()
    kept.CopyFrom(event)
    for name in _LOG_ONLY:
        kept.ClearField(name)  # type: ignore[arg-type]  # each is one of its fields
    return kept.SerializeToString()


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
        entry.corrects_transaction_id or None,
    )
    if event is None:
        return (*booking, None, None, None, entry.price_id or None, False, 0, None, *[None] * 8)
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


def transaction_of(row: asyncpg.Record) -> pb.Transaction:
    """Returns a row of `transfer` as it is seen from its account."""
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
        corrects_transaction_id=row["corrects_transaction_id"] or "",
    )
    if row["input_tokens"] is not None:
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
