"""Keys in PostgreSQL, and the order of their changes.

Whoever changes a key or a grant counts up the one revision row first and so
holds it until the commit. Revisions become visible in their order, and a reader
that goes on from the last one it has seen misses nothing.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import asyncpg
from google.protobuf.message import Message

from lurus.billing.v1 import billing_pb2 as pb
from lurus_billing import demands, rate_limits
from lurus_billing.masks import copy_field
from lurus_common import postgres
from lurus_common.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound
from lurus_common.paging import decode_token, encode_token, page_limit
from lurus_common.postgres import Connection, transaction

CHANNEL = "lurus_billing_keys"
CHANGEABLE = ("display_name", "allowed_models", "expire_time", *rate_limits.PATHS, *demands.PATHS)
SHOWN_CHARACTERS = 8
GRANTS_PER_PAGE = 1000
# Half of what a message may have, so that pages of keys with long lists fit.
MAX_PAGE_BYTES = 2 * 1024 * 1024

_COLUMNS = """
    k.key_id, k.account_id, k.verifier, k.secret_prefix, k.display_name, k.allowed_models, k.expire_time,
    k.revoke_time, k.revision, k.create_time, k.update_time,
    k.requests_per_minute, k.tokens_per_minute, k.concurrent_requests, k.demands
"""
_ACCOUNT_LIMITS = ", ".join(f"a.{name} AS account_{name}" for name in rate_limits.COLUMNS)
_INSERT = """
INSERT INTO billing.key
    (key_id, account_id, display_name, allowed_models, expire_time,
     requests_per_minute, tokens_per_minute, concurrent_requests, demands, verifier, secret_prefix, revision)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING *
"""
_UPDATE = """
UPDATE billing.key
SET display_name = $2, allowed_models = $3, expire_time = $4,
    requests_per_minute = $5, tokens_per_minute = $6, concurrent_requests = $7, demands = $8,
    revision = $9, update_time = now()
WHERE key_id = $1 RETURNING *
"""
_REVOKE = """
UPDATE billing.key SET revoke_time = now(), revision = $2, update_time = now() WHERE key_id = $1 RETURNING *
"""
_GRANTS = f"""
SELECT {_COLUMNS}, a.is_closed, a.offline_policy, a.price_multiplier_ppm, a.settlement_policy,
    {_ACCOUNT_LIMITS}, a.demands AS account_demands
FROM billing.key k JOIN billing.account a USING (account_id)
"""  # noqa: S608  # our own words
_GRANTS_AFTER = f"{_GRANTS} WHERE (k.revision, k.key_id) > ($1, $2) ORDER BY k.revision, k.key_id LIMIT $3"
_GRANT_OF = f"{_GRANTS} WHERE k.verifier = $1"
_PAGE = f"""
SELECT {_COLUMNS} FROM billing.key k
WHERE k.key_id > $1 AND ($2 = '' OR k.account_id = $2) ORDER BY k.key_id LIMIT $3
"""  # noqa: S608  # our own words

Resource = TypeVar("Resource", bound=Message)
Position = tuple[int, str]
START: Position = (0, "")


class KeyStore:
    """Keys and what the routing service knows of them."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def find(self, key_id: str) -> pb.Key:
        """Returns a key.

        Raises:
            NotFound: if there is none.
        """
        async with postgres.connection(self._pool) as connection:
            return _key(await _row(connection, key_id))

    async def page(self, request: pb.ListKeysRequest) -> pb.ListKeysResponse:
        """Returns a page of keys by id, of one account or of all."""
        limit = page_limit(request.page_size)
        position = decode_token(request.page_token, str) or [""]
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(_PAGE, position[0], request.account_id, limit + 1)
        keys = fitting([_key(row) for row in rows[:limit]])
        token = encode_token(keys[-1].key_id) if len(keys) < len(rows) else ""
        return pb.ListKeysResponse(keys=keys, next_page_token=token)

    async def create(self, key: pb.Key, verifier: bytes, secret_prefix: str) -> tuple[pb.Key, bool]:
        """Creates a key and returns it and whether it is new; the same one again changes nothing.

        Raises:
            NotFound: if there is no such account.
            FailedPrecondition: if the account is closed.
            AlreadyExists: if the id is taken by one that differs.
        """
        async with transaction(self._pool) as connection:
            revision = await next_revision(connection)
            found = await connection.fetchrow("SELECT * FROM billing.key WHERE key_id = $1", key.key_id)
            if found is None:
                await _require_open_account(connection, key.account_id)
                row = await connection.fetchrow(
                    _INSERT, key.key_id, key.account_id, *_values(key), verifier, secret_prefix, revision
                )
                return _key(row), True
            existing = _key(found)
        if (existing.account_id, *_values(existing)) != (key.account_id, *_values(key)):
            raise AlreadyExists(
                "a key with this id exists, with another content", resource="key", id=key.key_id
            )
        return existing, False

    async def update(self, key: pb.Key, fields: Sequence[str]) -> pb.Key:
        """Changes fields of a key.

        Raises:
            NotFound: if there is no such key.
            InvalidRequest: if it belongs to another account than `key` says.
        """
        async with transaction(self._pool) as connection:
            revision = await next_revision(connection)
            changed = _key(await _row(connection, key.key_id))
            if key.account_id not in ("", changed.account_id):
                raise InvalidRequest("the account of a key cannot change", param="key.account_id")
            display_name, allowed_models, expire_time, *_ = _values(changed)
            for path in (*rate_limits.PATHS, *demands.PATHS):
                if path in fields:
                    copy_field(key, changed, path)
            row = await connection.fetchrow(
                _UPDATE,
                key.key_id,
                key.display_name if "display_name" in fields else display_name,
                list(key.allowed_models) if "allowed_models" in fields else allowed_models,
                _time(key) if "expire_time" in fields else expire_time,
                *rate_limits.rate_limit_values(changed.rate_limits),
                demands.demands_value(changed.demands),
                revision,
            )
        return _key(row)

    async def revoke(self, key_id: str) -> pb.Key:
        """Stops a key for good; again changes nothing.

        Raises:
            NotFound: if there is no such key.
        """
        async with transaction(self._pool) as connection:
            revision = await next_revision(connection)
            row = await _row(connection, key_id)
            if row["revoke_time"] is None:
                row = await connection.fetchrow(_REVOKE, key_id, revision)
        return _key(row)

    async def grant(self, verifier: bytes) -> pb.KeyGrant:
        """Returns what the routing service needs of the key with a verifier, live or not.

        Raises:
            NotFound: if there is none.
        """
        async with postgres.connection(self._pool) as connection:
            row = await connection.fetchrow(_GRANT_OF, verifier)
        if row is None:
            raise NotFound("no such key", resource="key")
        return _grant(row)

    async def grants_after(self, position: Position) -> tuple[list[pb.KeyGrant], Position]:
        """Returns the grants that changed after a position, oldest first, and the position they reach.

        At most as many as fit one message; none if there are no more.
        """
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(_GRANTS_AFTER, *position, GRANTS_PER_PAGE)
        grants = fitting([_grant(row) for row in rows])
        if not grants:
            return [], position
        last = rows[len(grants) - 1]
        return grants, (last["revision"], last["key_id"])


async def next_revision(connection: Connection) -> int:
    """Returns the number of the next change; until the commit nobody else gets one.

    Taken before any other lock.
    """
    value = await connection.fetchval("UPDATE billing.revision SET value = value + 1 RETURNING value")
    await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, str(value))
    return int(value)


async def stamp_keys(connection: Connection, account_id: str, revision: int) -> None:
    """Marks the keys of an account as changed, in the transaction that changes their grants."""
    await connection.execute(
        "UPDATE billing.key SET revision = $2 WHERE account_id = $1", account_id, revision
    )


def fitting(messages: list[Resource]) -> list[Resource]:
    """Returns as many of the first messages as fit one page; at least one, if there is one."""
    total = 0
    for number, message in enumerate(messages):
        total += message.ByteSize()
        if total > MAX_PAGE_BYTES:
            return messages[: max(1, number)]
    return messages


async def _row(connection: Connection, key_id: str) -> asyncpg.Record:
    row = await connection.fetchrow("SELECT * FROM billing.key WHERE key_id = $1", key_id)
    if row is None:
        raise NotFound("no such key", resource="key", id=key_id)
    return row


async def _require_open_account(connection: Connection, account_id: str) -> None:
    is_closed = await connection.fetchval(
        "SELECT is_closed FROM billing.account WHERE account_id = $1", account_id
    )
    if is_closed is None:
        raise NotFound("no such account", resource="account", id=account_id)
    if is_closed:
        raise FailedPrecondition("the account is closed", resource="account", id=account_id)


def _values(key: pb.Key) -> tuple[Any, ...]:
    limits = rate_limits.rate_limit_values(key.rate_limits)
    wanted = demands.demands_value(key.demands)
    return key.display_name, list(key.allowed_models), _time(key), *limits, wanted


def _time(key: pb.Key) -> datetime | None:
    if not key.HasField("expire_time"):
        return None
    try:
        return key.expire_time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest("expire_time is not a time", param="key.expire_time") from error


def _key(row: asyncpg.Record) -> pb.Key:
    return pb.Key(
        key_id=row["key_id"],
        account_id=row["account_id"],
        display_name=row["display_name"],
        secret_prefix=row["secret_prefix"],
        allowed_models=row["allowed_models"],
        expire_time=row["expire_time"],
        revoke_time=row["revoke_time"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        rate_limits=rate_limits.rate_limits_of(row),
        demands=demands.demands_of(row["demands"]),
    )


def _grant(row: asyncpg.Record) -> pb.KeyGrant:
    return pb.KeyGrant(
        key_id=row["key_id"],
        verifier=row["verifier"],
        account_id=row["account_id"],
        allowed_models=row["allowed_models"],
        expire_time=row["expire_time"],
        is_revoked=row["revoke_time"] is not None or row["is_closed"],
        offline_policy=row["offline_policy"],
        price_multiplier_ppm=row["price_multiplier_ppm"],
        settlement_policy=settlement_policy_of(row),
        rate_limits=rate_limits.rate_limits_of(row),
        account_rate_limits=rate_limits.rate_limits_of(row, "account_"),
        demands=demands.merged(row["demands"], row["account_demands"]),
    )


def settlement_policy_of(row: asyncpg.Record) -> pb.SettlementPolicy | None:
    """Returns the policy in a row of `account`; None for the defaults."""
    return pb.SettlementPolicy.FromString(row["settlement_policy"]) if row["settlement_policy"] else None
