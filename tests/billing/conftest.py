"""A database for each module, a bus for each module that wants one, and an audit of the ledger after every test."""

import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import lurus_billing
import pytest
from lurus.usage.v1 import usage_pb2
from lurus_billing.account_store import AccountStore
from lurus_billing.key_store import KeyStore
from lurus_billing.store import LedgerStore
from lurus_common import postgres
from lurus_common.ids import new_id
from lurus_common.migrations import migrate
from lurus_common.settings import Settings
from lurus_switch.embedded import EmbeddedBackends

from lurus.billing.v1 import billing_pb2 as pb

MIGRATIONS = Path(lurus_billing.__file__).parent / "migrations"
ADMIN_TOKEN = secrets.token_hex(16)
PEPPER = secrets.token_hex(16)

AUDIT = """
SELECT 'the sum over all ledger accounts is ' || sum(balance_nano_usd) FROM billing.ledger_account
HAVING sum(balance_nano_usd) <> 0
UNION ALL
SELECT 'the balance of ' || l.ledger_account_id || ' is not the sum of its transfers'
FROM billing.ledger_account l
WHERE l.balance_nano_usd <>
    (SELECT coalesce(sum(amount_nano_usd), 0) FROM billing.transfer WHERE credit_account_id = l.ledger_account_id)
  - (SELECT coalesce(sum(amount_nano_usd), 0) FROM billing.transfer WHERE debit_account_id = l.ledger_account_id)
UNION ALL
SELECT 'transfer ' || transaction_id || ' has a wrong number or balance_after'
FROM (
    SELECT transaction_id, sequence, balance_after_nano_usd,
        row_number() OVER w AS number,
        sum(CASE WHEN credit_account_id = account_id THEN amount_nano_usd ELSE -amount_nano_usd END) OVER w AS running
    FROM billing.transfer WINDOW w AS (PARTITION BY account_id ORDER BY sequence)
) t WHERE sequence <> number OR balance_after_nano_usd <> running
UNION ALL
SELECT 'usage of ' || l.ledger_account_id || ' is not the sum of its buckets or transfers'
FROM billing.ledger_account l
WHERE l.ledger_account_id NOT LIKE 'house:%' AND (
    l.used_nano_usd <> (SELECT coalesce(sum(amount_nano_usd), 0) FROM billing.usage_bucket
        WHERE account_id = l.ledger_account_id)
    OR l.used_nano_usd <> (SELECT coalesce(sum(amount_nano_usd), 0) FROM billing.transfer
        WHERE account_id = l.ledger_account_id AND kind = 1))
"""


@pytest.fixture(scope="module")
async def database_url(backends: EmbeddedBackends) -> AsyncIterator[str]:
    """A database of the module's own, migrated."""
    name = f"billing_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(backends.urls.database_url)
    await connection.execute(f"CREATE DATABASE {name}")
    base = backends.urls.database_url.rpartition("/")[0]
    try:
        yield f"{base}/{name}"
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()


@pytest.fixture(scope="module")
async def module_pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await postgres.open_pool(database_url, schema="billing")
    await migrate(pool, "billing", MIGRATIONS)
    yield pool
    await postgres.close_pool(pool)


@pytest.fixture
async def pool(module_pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Pool]:
    """A pool; after the test the ledger must hold."""
    yield module_pool
    assert [row[0] for row in await module_pool.fetch(AUDIT)] == []


@pytest.fixture(scope="module")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bus of the module's own: the name of the stream is fixed."""
    with EmbeddedBackends.running(tmp_path_factory.mktemp("nats"), ("nats",)) as running:
        yield running.urls.nats_url


@pytest.fixture
def ledger_store(pool: asyncpg.Pool) -> LedgerStore:
    return LedgerStore(pool)


@pytest.fixture
def accounts(pool: asyncpg.Pool) -> AccountStore:
    return AccountStore(pool)


@pytest.fixture
def keys(pool: asyncpg.Pool) -> KeyStore:
    return KeyStore(pool)


@pytest.fixture
async def account_id(accounts: AccountStore) -> str:
    """A new account without money."""
    return (await accounts.create(pb.Account(account_id=new_id("acct")))).account_id


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Of a server on free ports, with a bus that is not there."""
    return Settings(
        database_url=database_url,
        nats_url="nats://127.0.0.1:9",
        admin_token=ADMIN_TOKEN,
        key_pepper=PEPPER,
        billing_port=0,
    )


@pytest.fixture
def make_event() -> Callable[..., usage_pb2.UsageEvent]:
    """Returns a maker of usage events: account and cost, the rest by name."""

    def make(payer: str, cost: int = 0, **fields: Any) -> usage_pb2.UsageEvent:
        event = usage_pb2.UsageEvent(
            account_id=payer,
            cost_nano_usd=cost,
            model="claude-test",
            tokens=usage_pb2.Tokens(input=10, output=20),
            token_source=usage_pb2.TOKEN_SOURCE_PROVIDER,
            event_time=datetime.now(UTC),
            price_id="price_1",
        )
        event.request_id = fields.pop("request_id", None) or new_id("req")
        for name, value in fields.items():
            setattr(event, name, value)
        return event

    return make
