"""A database for each module, a bus for each that wants one, and an audit of the ledger after every test."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.billing.bank import Bank
from tests.billing.calls import stub_of

import lurus_billing
from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus_billing.account_store import AccountStore
from lurus_billing.key_store import KeyStore
from lurus_billing.store import LedgerStore
from lurus_common import postgres
from lurus_common.ids import new_id
from lurus_common.migrations import migrate
from lurus_common.settings import Settings
from lurus_switch.embedded import EmbeddedBackends

MIGRATIONS = Path(lurus_billing.__file__).parent / "migrations"
ADMIN_TOKEN = secrets.token_hex(16)
PEPPER = secrets.token_hex(16)

AUDIT = """
WITH entry AS (
    SELECT debit_account_id AS id, -amount_nano_usd AS change FROM billing.transfer
    UNION ALL SELECT credit_account_id, amount_nano_usd FROM billing.transfer
), numbered AS (
    SELECT *, row_number() OVER w AS number, sum(change) OVER w AS running
    FROM (
        SELECT *, CASE WHEN credit_account_id = account_id THEN 1 ELSE -1 END * amount_nano_usd AS change
        FROM billing.transfer
    ) t WINDOW w AS (PARTITION BY account_id ORDER BY sequence)
), used AS (
    SELECT account_id AS id, sum(amount_nano_usd) AS booked FROM billing.transfer WHERE kind = 1 GROUP BY 1
), bucketed AS (
    SELECT account_id AS id, sum(amount_nano_usd) AS counted FROM billing.usage_bucket GROUP BY 1
)
SELECT 'the sum over all ledger accounts is ' || sum(balance_nano_usd) FROM billing.ledger_account
HAVING sum(balance_nano_usd) <> 0
UNION ALL
SELECT 'the balance of ' || ledger_account_id || ' is not the sum of its transfers'
FROM billing.ledger_account
WHERE balance_nano_usd <> (SELECT coalesce(sum(change), 0) FROM entry WHERE id = ledger_account_id)
UNION ALL
SELECT 'transfer ' || transaction_id || ' has a wrong number or balance_after'
FROM numbered WHERE sequence <> number OR balance_after_nano_usd <> running
UNION ALL
SELECT 'usage of ' || ledger_account_id || ' is not the sum of its buckets or transfers'
FROM billing.ledger_account LEFT JOIN used ON used.id = ledger_account_id
    LEFT JOIN bucketed ON bucketed.id = ledger_account_id
WHERE used_nano_usd <> coalesce(booked, 0) OR used_nano_usd <> coalesce(counted, 0)
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
    """Of a server on free ports, with a bus and a provider service that are not there."""
    return Settings(
        database_url=database_url,
        nats_url="nats://127.0.0.1:9",
        provider_address="127.0.0.1:9",
        log_address="127.0.0.1:9",
        routing_address="127.0.0.1:9",
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


@pytest.fixture
def bank(
    database_url: str,
    module_pool: asyncpg.Pool,
    make_event: Callable[..., usage_pb2.UsageEvent],
    anyio_backend: str,
) -> Iterator[Bank]:
    """Stores for a state machine; after it the ledger must hold."""
    loop = asyncio.new_event_loop()
    pool = loop.run_until_complete(postgres.open_pool(database_url, schema="billing", max_size=2))
    yield Bank(loop, pool, make_event)
    found = [row[0] for row in loop.run_until_complete(pool.fetch(AUDIT))]
    loop.run_until_complete(postgres.close_pool(pool))
    loop.close()
    assert found == []


@pytest.fixture
async def stub(settings: Settings, pool: asyncpg.Pool) -> AsyncIterator[Any]:
    """The service without a bus."""
    async with stub_of(settings) as stub:
        yield stub
