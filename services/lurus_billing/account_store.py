"""Accounts in PostgreSQL."""

from collections.abc import Sequence

import asyncpg

from lurus.billing.v1 import billing_pb2 as pb
from lurus_billing import demands, rate_limits
from lurus_billing.key_store import next_revision, settlement_policy_of, stamp_keys
from lurus_billing.masks import copy_field
from lurus_common import postgres
from lurus_common.errors import AlreadyExists, NotFound
from lurus_common.money import require_amount
from lurus_common.paging import decode_token, encode_token, page_limit
from lurus_common.postgres import Connection, transaction

_POLICIES = tuple(f"settlement_policy.{field.name}" for field in pb.SettlementPolicy.DESCRIPTOR.fields)
CHANGEABLE = (
    "display_name",
    "credit_limit_nano_usd",
    "offline_policy",
    "time_zone",
    "is_closed",
    "price_multiplier_ppm",
    *_POLICIES,
    *rate_limits.PATHS,
    *demands.PATHS,
)
# What of an account its keys' grants say.
_IN_GRANTS = frozenset(
    {"offline_policy", "is_closed", "price_multiplier_ppm", *_POLICIES, *rate_limits.PATHS, *demands.PATHS}
)

# An account that usage has created, unknown and closed, is taken over with its ledger.
_CREATE = """
INSERT INTO billing.account AS a
    (account_id, display_name, credit_limit_nano_usd, offline_policy, time_zone, is_closed,
     price_multiplier_ppm, settlement_policy, requests_per_minute, tokens_per_minute, concurrent_requests,
     demands)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (account_id) DO UPDATE SET
    display_name = excluded.display_name, credit_limit_nano_usd = excluded.credit_limit_nano_usd,
    offline_policy = excluded.offline_policy, time_zone = excluded.time_zone,
    is_closed = excluded.is_closed, is_unknown = false, update_time = now(),
    price_multiplier_ppm = excluded.price_multiplier_ppm, settlement_policy = excluded.settlement_policy,
    requests_per_minute = excluded.requests_per_minute, tokens_per_minute = excluded.tokens_per_minute,
    concurrent_requests = excluded.concurrent_requests, demands = excluded.demands
WHERE a.is_unknown
RETURNING *
"""
_UPDATE = """
UPDATE billing.account SET display_name = $2, credit_limit_nano_usd = $3, offline_policy = $4,
    time_zone = $5, is_closed = $6, is_unknown = false, update_time = now(),
    price_multiplier_ppm = $7, settlement_policy = $8,
    requests_per_minute = $9, tokens_per_minute = $10, concurrent_requests = $11, demands = $12
WHERE account_id = $1 RETURNING *
"""


class AccountStore:
    """Accounts."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def find(self, account_id: str) -> pb.Account:
        """Returns an account.

        Raises:
            NotFound: if there is none.
        """
        async with postgres.connection(self._pool) as connection:
            return _account(await _row(connection, account_id))

    async def page(self, request: pb.ListAccountsRequest) -> pb.ListAccountsResponse:
        """Returns a page of accounts by id."""
        limit = page_limit(request.page_size)
        position = decode_token(request.page_token, str) or [""]
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT * FROM billing.account WHERE account_id > $1 ORDER BY account_id LIMIT $2",
                position[0],
                limit + 1,
            )
        token = encode_token(rows[limit - 1]["account_id"]) if len(rows) > limit else ""
        return pb.ListAccountsResponse(accounts=map(_account, rows[:limit]), next_page_token=token)

    async def create(self, account: pb.Account) -> pb.Account:
        """Creates an account with its ledger; the same one again changes nothing.

        Raises:
            AlreadyExists: if the id is taken by one that differs.
        """
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(_CREATE, account.account_id, *_values(account))
            if row is None:
                found = _account(await _row(connection, account.account_id))
                if _values(found) != _values(account):
                    raise AlreadyExists(
                        "an account with this id exists, with another content",
                        resource="account",
                        id=account.account_id,
                    )
                return found
            await connection.execute(
                "INSERT INTO billing.ledger_account (ledger_account_id) VALUES ($1) ON CONFLICT DO NOTHING",
                account.account_id,
            )
        return _account(row)

    async def update(self, account: pb.Account, fields: Sequence[str]) -> pb.Account:
        """Changes fields of an account and, if they are theirs too, its keys' grants.

        Raises:
            NotFound: if there is no such account.
        """
        async with transaction(self._pool) as connection:
            if _IN_GRANTS.intersection(fields):
                revision = await next_revision(connection)
                await stamp_keys(connection, account.account_id, revision)
            changed = _account(await _row(connection, account.account_id, "FOR NO KEY UPDATE"))
            for path in fields:
                copy_field(account, changed, path)
            row = await connection.fetchrow(_UPDATE, account.account_id, *_values(changed))
        return _account(row)


async def _row(connection: Connection, account_id: str, locking: str = "") -> asyncpg.Record:
    query = f"SELECT * FROM billing.account WHERE account_id = $1 {locking}"  # noqa: S608  # our own words
    row = await connection.fetchrow(query, account_id)
    if row is None:
        raise NotFound("no such account", resource="account", id=account_id)
    return row


def _values(account: pb.Account) -> tuple[object, ...]:
    return (
        account.display_name,
        require_amount(account.credit_limit_nano_usd, "credit_limit_nano_usd"),
        account.offline_policy or pb.OFFLINE_POLICY_LEASE,
        account.time_zone,
        account.is_closed,
        require_amount(account.price_multiplier_ppm, "price_multiplier_ppm"),
        account.settlement_policy.SerializeToString(deterministic=True),
        *rate_limits.rate_limit_values(account.rate_limits),
        demands.demands_value(account.demands),
    )


def _account(row: asyncpg.Record) -> pb.Account:
    return pb.Account(
        account_id=row["account_id"],
        display_name=row["display_name"],
        credit_limit_nano_usd=row["credit_limit_nano_usd"],
        offline_policy=row["offline_policy"],
        time_zone=row["time_zone"],
        is_closed=row["is_closed"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        price_multiplier_ppm=row["price_multiplier_ppm"],
        settlement_policy=settlement_policy_of(row),
        rate_limits=rate_limits.rate_limits_of(row),
        demands=demands.demands_of(row["demands"]),
    )
